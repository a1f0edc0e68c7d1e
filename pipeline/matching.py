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
MIN_PSR: Final = 3.5
"""Smallest peak-to-sidelobe ratio of a good window: (peak - mean) / standard deviation of the background."""
MAX_SECOND_PEAK: Final = 0.95
"""Largest second peak of a good window, as a share of the first."""

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
    """Shift of SAR content, rows."""
    dx: float
    """Shift of SAR content, columns."""
    peak: float
    """Normalised correlation at that shift, -1..1."""
    psr: float
    """Peak-to-sidelobe ratio."""


class Matches(NamedTuple):
    """What all windows say."""

    good: list[Match]
    """Windows with one clear peak."""
    peaks: list[float]
    """Largest correlation of every window with enough valid ground."""
    n_laid: int
    """All windows, those without enough valid ground too."""


def match_windows(optical: Features, sar: Features, layout: Layout, guess: ShiftField) -> Matches:
    """Every window of `optical` sought in `sar` within `layout.radius` of where `guess` puts it, to the nearest pixel."""
    good, peaks = [], []
    corners = [(int(top), int(left)) for top in layout.tops for left in layout.lefts]
    middle = (layout.side - 1) / 2
    for top, left in corners:
        jump = tuple(round(float(shift)) for shift in guess.evaluate(top + middle, left + middle))
        window = np.s_[top : top + layout.side, left : left + layout.side]
        template = Features(optical.values[:, *window], optical.usable[window])
        if template.usable.mean() < MIN_WINDOW_VALID:
            continue
        region = _cut(sar, (top + jump[0] - layout.radius, left + jump[1] - layout.radius), layout.side + 2 * layout.radius)
        inner = np.s_[layout.radius : layout.radius + layout.side]
        both = template.usable * region.usable[inner, inner]
        if both.mean() < MIN_WINDOW_VALID:
            continue
        surface = correlate_masked(template, region)
        peaks.append(float(surface.max()))
        found = find_peak(surface)
        if found is not None:
            row, col = (float(np.average(np.arange(layout.side), weights=both.sum(axis=axis))) for axis in (1, 0))
            shift = found.row - layout.radius + jump[0], found.col - layout.radius + jump[1]
            good.append(Match(top + row, left + col, *shift, peaks[-1], found.psr))
    return Matches(good, peaks, len(corners))


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
    row, col = (int(index) for index in np.unravel_index(int(surface.argmax()), surface.shape))
    if not (0 < row < surface.shape[0] - 1 and 0 < col < surface.shape[1] - 1):
        return None
    background = np.ones(surface.shape, bool)
    background[max(row - EXCLUSION_PX, 0) : row + EXCLUSION_PX + 1, max(col - EXCLUSION_PX, 0) : col + EXCLUSION_PX + 1] = False
    rest = surface[background]
    peak = float(surface[row, col])
    if rest.size < 2 or peak <= 0 or rest.max() > MAX_SECOND_PEAK * peak:
        return None
    psr = float((peak - rest.mean()) / max(float(rest.std()), 1e-12))
    offset = _solve_quadric(surface[row - 1 : row + 2, col - 1 : col + 2].astype(np.float64))
    return None if offset is None or psr < MIN_PSR else Peak(row + offset[0], col + offset[1], psr)


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
