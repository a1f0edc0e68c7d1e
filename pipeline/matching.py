"""Where windows of one image are found in another: masked correlation of descriptors, and what its peak is worth.

Descriptors of two images on one grid enter, with a first guess of the field between them; a match per window leaves. Whether matches make
sense together is not asked here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.descriptors import Features
from sereno.pipeline.shiftfield import ShiftField, Votes

MIN_WINDOW_PX: Final = 32
"""Smaller windows hold too few edges."""
MIN_WINDOWS_PER_SIDE: Final = 5
"""Where fewer windows fit along a side, they overlap more."""
MAX_WINDOWS_PER_SIDE: Final = 12
"""More windows would hardly sharpen the field, only cost time."""
MIN_WINDOW_VALID: Final = 0.3
"""Share of a window that must be usable in both images."""
EXCLUSION_PX: Final = 4
"""Half side of the square around the peak that does not count as background or second peak."""
MIN_RADIUS_PX: Final = EXCLUSION_PX + 1
"""Least search in which a peak in the middle has any background: with one pixel less not one window of two equal images is good."""
MIN_PSR: Final = 3.5
"""Smallest peak-to-sidelobe ratio of a good window: (peak - mean) / standard deviation of the background."""
MAX_SECOND_PEAK: Final = 0.95
"""Largest second peak of a good window, as a share of the first."""

NEAR_PX: Final = 2.5
"""How far from a field that is believed the top of a window may lie; natural peaks of SAR and optical are 1 to 2 px broad."""

Float = npt.NDArray[np.float32]


class Layout(NamedTuple):
    """Where windows lie and how far they are moved."""

    tops: npt.NDArray[np.int64]
    """First rows."""
    lefts: npt.NDArray[np.int64]
    """First columns."""
    side: int
    """Side of a window, pixels."""
    radius: int
    """How far it is moved each way, pixels."""
    overlap: float
    """How many windows cover a pixel on average, at least 1: so many count as one independent witness."""


def lay_windows(shape: tuple[int, ...], radius: int, settings: AlignSettings) -> Layout | None:
    """Windows spread evenly over the scene, overlapping more where it is small; None if it is too small altogether."""
    shorter = min(shape)
    side = min(settings.window_px, 3 * shorter // 8)
    if side < MIN_WINDOW_PX:
        return None
    step = settings.step_px if (shorter - side) // settings.step_px + 1 >= MIN_WINDOWS_PER_SIDE else side // 4
    starts = []
    for length in shape:
        count = min((length - side) // step + 1, MAX_WINDOWS_PER_SIDE)
        starts.append(np.linspace(0, length - side, count).round().astype(np.int64))
    overlap = max(len(starts[0]) * len(starts[1]) * side**2 / (shape[0] * shape[1]), 1.0)
    return Layout(starts[0], starts[1], side, radius, overlap)


class Peak(NamedTuple):
    """The top of a correlation surface."""

    row: float
    """Place on the surface, sub-pixel."""
    col: float
    """Place on the surface, sub-pixel."""
    psr: float
    """Peak-to-sidelobe ratio."""


class Match(NamedTuple):
    """What one good window says."""

    row: float
    """Centre of its usable ground, pixels of the grid."""
    col: float
    """Centre of its usable ground, pixels of the grid."""
    dy: float
    """Shift of content, rows."""
    dx: float
    """Shift of content, columns."""
    peak: float
    """Normalised correlation at that shift, -1..1."""
    psr: float
    """Peak-to-sidelobe ratio."""


class Window(NamedTuple):
    """One window with enough valid ground."""

    row: float
    """Centre of its usable ground, pixels of the grid."""
    col: float
    """Centre of its usable ground, pixels of the grid."""
    first_dy: int
    """Shift that the first row of the surface stands for."""
    first_dx: int
    """Shift that its first column stands for."""
    surface: Float
    """Correlation at each lag."""


class Matches(NamedTuple):
    """What all windows say."""

    good: list[Match]
    """Windows with one clear peak."""
    windows: list[Window]
    """Every window with enough valid ground."""
    n_laid: int
    """All windows, those without enough valid ground too."""

    @property
    def peaks(self) -> list[float]:
        """Largest correlation of every window with enough valid ground."""
        return [float(window.surface.max()) for window in self.windows]


def match_windows(fixed: Features, moved: Features, layout: Layout, guess: ShiftField) -> Matches:
    """Every window of `fixed` sought in `moved` within `layout.radius` of where `guess` puts it, to the nearest pixel."""
    windows, good = [], []
    corners = [(int(top), int(left)) for top in layout.tops for left in layout.lefts]
    for corner in corners:
        window = _match_window(fixed, moved, corner, (layout, guess))
        if window is None:
            continue
        windows.append(window)
        found = find_peak(window.surface)
        if found is not None:
            shift = window.first_dy + found.row, window.first_dx + found.col
            good.append(Match(window.row, window.col, *shift, float(window.surface.max()), found.psr))
    return Matches(good, windows, len(corners))


def _match_window(fixed: Features, moved: Features, corner: tuple[int, int], plan: tuple[Layout, ShiftField]) -> Window | None:
    """One window; None if too little of it is usable in both images."""
    (top, left), (layout, guess), side = corner, plan, plan[0].side
    template = _cut(fixed, corner, side)
    if template.usable.mean() < MIN_WINDOW_VALID:
        return None
    middle = (side - 1) / 2
    jump = [round(float(shift)) - layout.radius for shift in guess.evaluate(top + middle, left + middle)]
    region = _cut(moved, (top + jump[0], left + jump[1]), side + 2 * layout.radius)
    inner = np.s_[layout.radius : layout.radius + side]
    both = template.usable * region.usable[inner, inner]
    if both.mean() < MIN_WINDOW_VALID:
        return None
    row, col = (float(np.average(np.arange(side), weights=both.sum(axis=axis))) for axis in (1, 0))
    return Window(top + row, left + col, jump[0], jump[1], correlate_masked(template, region))


def match_again(windows: list[Window], field: ShiftField) -> list[Match]:
    """The top of every window's surface within `NEAR_PX` of what `field` predicts, clear or not; windows without one are left out.

    What windows say alone decides whether a field is believed; once it is, those that were not sure may sharpen it.
    """
    found = []
    for window in windows:
        dy, dx = (float(shift) for shift in field.evaluate(window.row, window.col))
        top = _climb(window.surface, (dy - window.first_dy, dx - window.first_dx))
        if top is not None:
            peak = float(window.surface[round(top[0]), round(top[1])])
            found.append(Match(window.row, window.col, window.first_dy + top[0], window.first_dx + top[1], peak, 0.0))
    return found


def _climb(surface: Float, start: tuple[float, float]) -> tuple[float, float] | None:
    """Sub-pixel place of the largest value within `NEAR_PX` of `start`; None if that is no top."""
    distance = np.hypot(np.arange(surface.shape[0])[:, None] - start[0], np.arange(surface.shape[1])[None] - start[1])
    row, col = (int(index) for index in np.unravel_index(int(np.where(distance <= NEAR_PX, surface, -2).argmax()), surface.shape))
    if not (0 < row < surface.shape[0] - 1 and 0 < col < surface.shape[1] - 1) or surface[row, col] <= 0:
        return None
    near = surface[row - 1 : row + 2, col - 1 : col + 2].astype(np.float64)
    offset = _solve_quadric(near) if near.argmax() == 4 else None
    return None if offset is None else (row + offset[0], col + offset[1])


def _cut(features: Features, corner: tuple[int, int], side: int) -> Features:
    """A square of `features` that may reach beyond the image, where nothing is usable."""
    values = np.zeros((len(features.values), side, side), np.float32)
    usable = np.zeros((side, side), np.float32)
    spans = [(max(first, 0), min(first + side, length)) for first, length in zip(corner, features.usable.shape, strict=True)]
    if all(low < high for low, high in spans):
        there = tuple(slice(low, high) for low, high in spans)
        here = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, corner, strict=True))
        values[:, *here], usable[here] = features.values[:, *there], features.usable[there]
    return Features(values, usable)


def to_votes(matches: list[Match], overlap: float) -> Votes:
    """Matches as votes for a field; they count by the square of their correlation."""
    rows, cols, dy, dx, peaks = np.array([match[:5] for match in matches], np.float64).reshape(-1, 5).T
    return Votes(rows, cols, dy, dx, peaks**2, overlap)


def correlate_masked(template: Features, region: Features) -> Float:
    """Correlation of `template` (K, h, w) with `region` (K, h + 2r, w + 2r) at each lag: (2r + 1, 2r + 1), values -1..1.

    Means are taken out per channel over usable pixels; only pairs of usable pixels count (Padfield 2012, with one mean per
    window instead of one per lag, which saves two transforms per channel). Where nothing overlaps the value is 0.
    """
    lags = tuple(whole - part + 1 for whole, part in zip(region.usable.shape, template.usable.shape, strict=True))
    size = [fft.next_fast_len(length, real=True) for length in region.usable.shape]
    small, large = _centre(template), _centre(region)
    energies = [np.einsum("kyx,kyx->yx", values, values)[None] for values in (small, large)]
    spectra_small = fft.rfft2(np.concatenate([small, energies[0], template.usable[None]]), size)
    spectra_large = fft.rfft2(np.concatenate([large, energies[1], region.usable[None]]), size)
    products = np.stack(
        [
            np.einsum("kyx,kyx->yx", spectra_small[:-2].conj(), spectra_large[:-2]),
            spectra_small[-2].conj() * spectra_large[-1],
            spectra_small[-1].conj() * spectra_large[-2],
        ]
    )
    joint, energy_small, energy_large = fft.irfft2(products, size)[:, : lags[0], : lags[1]]
    # The transforms leave rounding noise where there is nothing, hence the floor relative to the largest energy.
    power = np.maximum(energy_small, 0) * np.maximum(energy_large, 0)
    enough = power > 1e-6 * max(float(energies[0].sum() * energies[1].sum()), 1e-12)
    surface: Float = np.where(enough, joint / np.sqrt(np.where(enough, power, 1)), 0).astype(np.float32)
    return surface


def _centre(features: Features) -> Float:
    count = max(float(features.usable.sum()), 1.0)
    means = features.values.sum(axis=(1, 2), dtype=np.float64) / count
    centred: Float = features.values - (means[:, None, None] * features.usable).astype(np.float32)
    return centred


def find_peak(surface: Float) -> Peak | None:
    """The one clear peak of `surface`; None if it lies on the edge or is not clear.

    The top is that of the quadric fitted by least squares to the 3 x 3 values around the largest one.
    """
    if is_at_edge(surface):
        return None
    row, col = (int(index) for index in np.unravel_index(int(surface.argmax()), surface.shape))
    background = np.ones(surface.shape, bool)
    background[max(row - EXCLUSION_PX, 0) : row + EXCLUSION_PX + 1, max(col - EXCLUSION_PX, 0) : col + EXCLUSION_PX + 1] = False
    rest = surface[background]
    peak = float(surface[row, col])
    if rest.size < 2 or peak <= 0 or rest.max() > MAX_SECOND_PEAK * peak:
        return None
    psr = float((peak - rest.mean()) / max(float(rest.std()), 1e-12))
    offset = _solve_quadric(surface[row - 1 : row + 2, col - 1 : col + 2].astype(np.float64))
    return None if offset is None or psr < MIN_PSR else Peak(row + offset[0], col + offset[1], psr)


def is_at_edge(surface: Float) -> bool:
    """Whether the largest value lies on the outermost rows or columns, so that the true top may lie outside."""
    place = np.unravel_index(int(surface.argmax()), surface.shape)
    return any(index in (0, length - 1) for index, length in zip(place, surface.shape, strict=True))


def _solve_quadric(near: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Offset of the top of the quadric through 3 x 3 values (least squares); None if it has no top within one pixel."""
    slope_row, slope_col = (near[2] - near[0]).sum() / 6, (near[:, 2] - near[:, 0]).sum() / 6
    bend_row = (near[0] - 2 * near[1] + near[2]).sum() / 3
    bend_col = (near[:, 0] - 2 * near[:, 1] + near[:, 2]).sum() / 3
    twist = (near[2, 2] - near[2, 0] - near[0, 2] + near[0, 0]) / 4
    determinant = bend_row * bend_col - twist**2
    if bend_row >= 0 or determinant <= 0:
        return None
    row = (twist * slope_col - bend_col * slope_row) / determinant
    col = (twist * slope_row - bend_row * slope_col) / determinant
    return (float(row), float(col)) if max(abs(row), abs(col)) <= 1 else None
