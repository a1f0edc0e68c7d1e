"""How far SAR content lies from optical content: one sub-pixel shift per scene, with its uncertainty and a verdict.

Two images of unlike physics enter, on one grid, with their validity; a `Registration` leaves. Grey values of SAR and optical do
not correlate, but edges of parcels, roads and shores lie at the same place with the same orientation, so dense histograms of
gradient orientation (Dalal & Triggs 2005) are compared in many windows, and the shift on which the windows agree is taken.
When they do not agree it is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, special

from sereno.pipeline.config import AlignSettings

N_BINS: Final = 9
"""Unsigned orientations over 180 degrees (Dalal & Triggs 2005, section 6.3)."""
GRADIENT_SIGMA_PX: Final = 1.5
"""Scale of the Gaussian derivative; smaller ones follow speckle."""
CELL_SIGMA_PX: Final = 1.0
"""Gaussian weight of the neighbourhood whose votes enter a histogram."""
NORM_FLOOR: Final = 1.5
"""Histograms weaker than this share of the median length are not raised to unit length: speckle on flat ground stays quiet.
Measured on simulated scenes of one look: error 0.13 px, against 0.55 px with a floor of 1."""
LOG_OFFSET: Final = 0.01
"""Reflectance added before the logarithm, so that dark water does not dominate."""
EDGE_PX: Final = 6
"""Invalid ground grows by this: the reach of both filters, 3 sigma and a pixel or two."""
TINY: Final = 1e-30
"""Keeps divisions finite where there is no gradient at all."""
MIN_WINDOW_PX: Final = 32
"""Smaller windows hold too few edges."""
MIN_WINDOWS_PER_SIDE: Final = 5
"""Where fewer windows fit along a side, they overlap more."""
MAX_WINDOWS_PER_SIDE: Final = 12
"""More windows would not sharpen one shift, only cost time."""
MIN_WINDOW_VALID: Final = 0.3
"""Share of a window that must be usable in both images."""
EXCLUSION_PX: Final = 4
"""Half side of the square around the peak that does not count as background or second peak."""
MIN_PSR: Final = 3.5
"""Smallest peak-to-sidelobe ratio of a good window: (peak - mean) / standard deviation of the background."""
MAX_SECOND_PEAK: Final = 0.95
"""Largest second peak of a good window, as a share of the first."""
INLIER_PX: Final = 1.0
"""A window agrees with a shift within this distance; lives with scale and rotation errors of some 1e-4."""
MIN_GOOD: Final = 8
"""Smallest number of good windows."""
MIN_GOOD_SHARE: Final = 0.25
"""Smallest share of good windows among all."""
MAX_SHARE_OF_SEARCH: Final = 0.8
"""A shift nearer to the end of the search range is refused: the true one may lie outside."""
MAX_FALSE_ALARMS: Final = 1e-3
"""Expected number of equally good agreements among windows that point anywhere (a contrario, Desolneux et al. 2000)."""

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class WindowMatch(NamedTuple):
    """What one good window says."""

    row: float
    """Centre of the window, pixels of the grid."""
    col: float
    """Centre of the window, pixels of the grid."""
    dy: float
    """Shift of SAR content, rows."""
    dx: float
    """Shift of SAR content, columns."""
    peak: float
    """Normalised correlation at that shift, -1..1."""
    inlier: bool
    """Whether it agrees with the shift of the scene."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """A measured shift and how far it can be trusted."""

    dy_px: float
    """Content at (row, col) of the optical image appears at (row + dy, col + dx) of the SAR image. 0 if refused."""
    dx_px: float
    """See `dy_px`."""
    sigma_px: float | None
    """Predicted standard deviation of the shift per axis, overlap of windows counted in; None if nothing agreed."""
    n_windows: int
    """Windows with enough valid ground."""
    n_good: int
    """Windows with one clear peak inside the search range."""
    n_inlier: int
    """Good windows within `INLIER_PX` of the shift."""
    inlier_ratio: float
    """`n_inlier` / `n_good`."""
    rms_px: float | None
    """Scatter of the inliers around the shift; None if nothing agreed."""
    median_peak: float
    """Median correlation peak over all windows, -1..1."""
    verdict: Literal["applied", "refused"]
    """`refused` means: leave SAR where its geocoding puts it."""
    reason: str
    """Why, in words, with the value seen and the limit."""
    windows: tuple[WindowMatch, ...] = ()
    """The good windows."""

    def to_record(self) -> dict[str, Any]:
        """The registration as plain JSON values, rounded to 1e-4: what provenance and report need."""
        record = {key: _round(value) for key, value in dataclasses.asdict(self).items() if key != "windows"}
        windows = [{key: _round(value) for key, value in match._asdict().items()} for match in self.windows]
        return record | {"windows": windows}


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def estimate_shift(optical: Float, sar: Float, *, valid_optical: Bool, valid_sar: Bool, settings: AlignSettings) -> Registration:
    """The shift of SAR content relative to optical content, or a refusal with its reason; never an exception for bad pixels.

    `optical` (band, y, x) reflectance 0..1, best green, red and near infrared; `sar` (sar_band, y, x) dB; `valid_*` (y, x), True =
    usable. NaN and infinite values count as not usable. Equal input and settings give equal output: agreement is sought
    from every window in turn, so nothing is drawn at random.

    Source: orientation histograms after Dalal & Triggs (2005), masked correlation after Padfield (2012), consensus after
    Fischler & Bolles (1981) with every window as a hypothesis.
    """
    valid_optical = valid_optical & np.isfinite(optical).all(axis=0)
    valid_sar = valid_sar & np.isfinite(sar).all(axis=0)
    layout = _lay_windows(valid_optical.shape, settings)
    if layout is None:
        return _refuse(NOTHING, f"a scene of {valid_optical.shape} pixels is too small for windows of {MIN_WINDOW_PX}")
    log_optical = np.log(np.maximum(np.where(valid_optical, optical, 0), 0) + LOG_OFFSET)
    mean_sar = np.where(valid_sar, sar, 0).mean(axis=0, keepdims=True)
    optical_features = describe_edges(log_optical.astype(np.float32), valid_optical)
    sar_features = describe_edges(mean_sar.astype(np.float32), valid_sar)
    matches, peaks = _match_windows(optical_features, sar_features, layout)
    return _judge(matches, peaks, layout, settings)


NOTHING: Final = Registration(
    dy_px=0.0,
    dx_px=0.0,
    sigma_px=None,
    n_windows=0,
    n_good=0,
    n_inlier=0,
    inlier_ratio=0.0,
    rms_px=None,
    median_peak=0.0,
    verdict="refused",
    reason="nothing was measured",
)
"""What is known before anything is measured."""


def _refuse(seen: Registration, reason: str) -> Registration:
    return dataclasses.replace(seen, dy_px=0.0, dx_px=0.0, verdict="refused", reason=reason)


class Features(NamedTuple):
    """Edge histograms of one image."""

    values: Float
    """(N_BINS, y, x), length at most 1 per pixel, 0 where not usable."""
    usable: Float
    """(y, x), 1 where the histogram saw valid ground only, else 0."""


def describe_edges(image: Float, valid: Bool) -> Features:
    """Which way edges run around each pixel: (band, y, x), (y, x) -> (N_BINS, y, x), blind to contrast and its sign.

    Per pixel the band with the strongest gradient votes with its magnitude for the two orientation bins next to it; votes
    are gathered over a Gaussian cell and scaled to unit length (Dalal & Triggs 2005, sections 6.2-6.4; their cells have a
    grid, ours lie around every pixel).
    """
    filled = _fill_invalid(image, valid)
    usable = ndimage.minimum_filter(valid.astype(np.uint8), size=2 * EDGE_PX + 1, mode="nearest").astype(bool)
    magnitude, bins = _pick_gradient(filled, usable)
    values = np.empty((N_BINS, *valid.shape), np.float32)
    for index in range(N_BINS):
        distance = np.abs((bins - index + N_BINS / 2) % N_BINS - N_BINS / 2)
        votes = magnitude * np.maximum(1 - distance, 0)
        values[index] = ndimage.gaussian_filter(votes, CELL_SIGMA_PX, truncate=3)
    length = np.sqrt(np.einsum("kyx,kyx->yx", values, values))
    floor = NORM_FLOOR * float(np.median(length[usable])) if usable.any() else 0.0
    values *= usable / np.maximum(length, max(floor, TINY))
    return Features(values, usable.astype(np.float32))


def _fill_invalid(image: Float, valid: Bool) -> Float:
    """`image` with each band's median where it is not valid, so that filters stay finite; those pixels are masked later."""
    levels = np.median(image[:, valid], axis=1) if valid.any() else np.zeros(len(image))
    filled: Float = np.where(valid, image, levels[:, None, None]).astype(np.float32)
    return filled


def _pick_gradient(image: Float, usable: Bool) -> tuple[Float, Float]:
    """Magnitude and orientation (in bins, 0..N_BINS) of the strongest band, each band measured against its own median."""
    best = np.zeros(usable.shape, np.float32)
    bins = np.zeros(usable.shape, np.float32)
    for band in image:
        rows = ndimage.gaussian_filter(band, GRADIENT_SIGMA_PX, order=(1, 0), truncate=3)
        cols = ndimage.gaussian_filter(band, GRADIENT_SIGMA_PX, order=(0, 1), truncate=3)
        magnitude = np.hypot(rows, cols)
        level = float(np.median(magnitude[usable])) if usable.any() else 0.0
        magnitude /= level if level > 0 else 1.0
        stronger = magnitude > best
        best = np.where(stronger, magnitude, best)
        bins = np.where(stronger, np.arctan2(rows, cols) * np.float32(N_BINS / np.pi) % N_BINS, bins)
    return best, bins


class _Layout(NamedTuple):
    """Where windows lie and how far they are moved."""

    tops: npt.NDArray[np.int64]
    lefts: npt.NDArray[np.int64]
    side: int
    radius: int
    overlap: float
    """How many windows cover a pixel on average: so many count as one independent witness."""


def _lay_windows(shape: tuple[int, ...], settings: AlignSettings) -> _Layout | None:
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
    return _Layout(starts[0], starts[1], side, int(np.ceil(settings.max_shift_px)), overlap)


def _match_windows(optical: Features, sar: Features, layout: _Layout) -> tuple[list[WindowMatch], list[float]]:
    """The good windows, and the correlation peaks of all windows with enough valid ground."""
    radius, side = layout.radius, layout.side
    padding = ((radius, radius), (radius, radius))
    sar_values = np.pad(sar.values, ((0, 0), *padding))
    sar_usable = np.pad(sar.usable, padding)
    matches, peaks = [], []
    for top in layout.tops:
        for left in layout.lefts:
            window = np.s_[top : top + side, left : left + side]
            reach = np.s_[top : top + side + 2 * radius, left : left + side + 2 * radius]
            both = optical.usable[window] * sar.usable[window]
            if both.mean() < MIN_WINDOW_VALID:
                continue
            surface = correlate_masked(
                Features(optical.values[:, *window], optical.usable[window]), Features(sar_values[:, *reach], sar_usable[reach])
            )
            peaks.append(float(surface.max()))
            found = find_peak(surface)
            if found is not None:
                centre = (float(top) + (side - 1) / 2, float(left) + (side - 1) / 2)
                matches.append(WindowMatch(*centre, found[0] - radius, found[1] - radius, peaks[-1], False))
    return matches, peaks


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


def find_peak(surface: Float) -> tuple[float, float] | None:
    """Sub-pixel place (row, column) of the one clear peak of `surface`; None if it lies on the edge or is not clear.

    The top is that of the quadric fitted by least squares to the 3 x 3 values around the largest one.
    """
    row, col = (int(index) for index in np.unravel_index(int(surface.argmax()), surface.shape))
    if not (0 < row < surface.shape[0] - 1 and 0 < col < surface.shape[1] - 1):
        return None
    background = np.ones(surface.shape, bool)
    background[max(row - EXCLUSION_PX, 0) : row + EXCLUSION_PX + 1, max(col - EXCLUSION_PX, 0) : col + EXCLUSION_PX + 1] = False
    rest = surface[background]
    peak = float(surface[row, col])
    if rest.size < 2 or peak - rest.mean() < MIN_PSR * rest.std() or rest.max() > MAX_SECOND_PEAK * peak or peak <= 0:
        return None
    near = surface[row - 1 : row + 2, col - 1 : col + 2].astype(np.float64)
    offset = _solve_quadric(near)
    return None if offset is None else (row + offset[0], col + offset[1])


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


def _judge(matches: list[WindowMatch], peaks: list[float], layout: _Layout, settings: AlignSettings) -> Registration:
    """The shift on which the windows agree, if all gates are passed."""
    if not peaks:
        return _refuse(NOTHING, f"no window has {MIN_WINDOW_VALID:.0%} of its ground usable in both images")
    seen = dataclasses.replace(NOTHING, n_windows=len(peaks), n_good=len(matches), median_peak=float(np.median(peaks)))
    needed = max(MIN_GOOD, int(np.ceil(MIN_GOOD_SHARE * len(peaks))))
    if len(matches) < needed:
        return _refuse(seen, f"only {len(matches)} of {len(peaks)} windows have one clear peak, {needed} are needed")
    vectors = np.array([(match.dy, match.dx) for match in matches])
    inlier = _seek_consensus(vectors)
    weights = np.array([match.peak for match in matches]) ** 2
    shift, sigma = _fit_shift(vectors[inlier], weights[inlier], overlap=layout.overlap)
    seen = dataclasses.replace(
        seen,
        dy_px=float(shift[0]),
        dx_px=float(shift[1]),
        sigma_px=sigma,
        n_inlier=int(inlier.sum()),
        inlier_ratio=float(inlier.mean()),
        rms_px=float(np.sqrt(((vectors[inlier] - shift) ** 2).sum(axis=1).mean())),
        windows=tuple(match._replace(inlier=bool(agrees)) for match, agrees in zip(matches, inlier, strict=True)),
    )
    fault = _find_fault(seen, layout, settings)
    if fault:
        return _refuse(seen, fault)
    reason = f"{seen.n_inlier} of {seen.n_good} good windows agree within {INLIER_PX:g} px, scatter {seen.rms_px:.2f} px"
    return dataclasses.replace(seen, verdict="applied", reason=reason)


def _seek_consensus(vectors: npt.NDArray[np.float64]) -> Bool:
    """Which vectors (n, 2) agree: the largest set within `INLIER_PX` of one of them, then of that set's mean until it settles."""
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    members: Bool = distances[int((distances <= INLIER_PX).sum(axis=1).argmax())] <= INLIER_PX
    for _ in range(10):
        again: Bool = np.linalg.norm(vectors - vectors[members].mean(axis=0), axis=1) <= INLIER_PX
        if not again.any() or np.array_equal(again, members):
            break
        members = again
    return members


def _fit_shift(
    vectors: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], *, overlap: float
) -> tuple[npt.NDArray[np.float64], float]:
    """Weighted mean of `vectors` (n, 2) after trimming beyond 3 scaled median deviations, and its standard deviation per axis.

    Overlapping windows share pixels, so `overlap` windows count as one; with a single one left the scatter says
    nothing, and the standard deviation is `INLIER_PX`.
    """
    distance = np.linalg.norm(vectors - np.median(vectors, axis=0), axis=1)
    keep = distance <= max(3 * 1.4826 * float(np.median(distance)), 0.1)
    vectors, weights = vectors[keep], weights[keep]
    shift: npt.NDArray[np.float64] = np.average(vectors, axis=0, weights=weights)
    variance = np.average(((vectors - shift) ** 2).mean(axis=1), weights=weights)
    independent = weights.sum() ** 2 / (weights**2).sum() / overlap
    return shift, float(np.sqrt(variance / (independent - 1))) if independent > 1 else INLIER_PX


def _find_fault(seen: Registration, layout: _Layout, settings: AlignSettings) -> str | None:
    """The first gate that is not passed, in words; None if all are."""
    assert seen.rms_px is not None
    assert seen.sigma_px is not None
    share, least = settings.min_inlier_ratio, settings.min_peak
    limit = MAX_SHARE_OF_SEARCH * settings.max_shift_px
    alarms = _count_false_alarms(seen.n_good, seen.n_inlier, layout)
    gates = [
        (seen.median_peak >= least, f"median correlation {seen.median_peak:.3f} is below {least:g}"),
        (seen.inlier_ratio >= share, f"only {seen.inlier_ratio:.0%} of {seen.n_good} good windows agree, {share:.0%} are needed"),
        (seen.n_inlier >= MIN_GOOD, f"only {seen.n_inlier} windows agree, {MIN_GOOD} are needed"),
        (seen.rms_px <= settings.max_rms_px, f"windows scatter by {seen.rms_px:.2f} px, above {settings.max_rms_px:g}"),
        (seen.sigma_px <= settings.max_sigma_px, f"uncertainty {seen.sigma_px:.2f} px is above {settings.max_sigma_px:g}"),
        (alarms <= MAX_FALSE_ALARMS, f"chance alone gives such an agreement {alarms:.1g} times, above {MAX_FALSE_ALARMS:g}"),
        (
            max(abs(seen.dy_px), abs(seen.dx_px)) <= limit,
            f"shift ({seen.dy_px:.2f}, {seen.dx_px:.2f}) px is beyond {limit:g}, too near the end of the search range",
        ),
    ]
    return next((words for passed, words in gates if not passed), None)


def _count_false_alarms(n_good: int, n_inlier: int, layout: _Layout) -> float:
    """Expected number of groups of `n_inlier` among `n_good` windows if each pointed anywhere in the search range.

    Binomial tail, as the incomplete beta function so that counts need not be whole, times the number of hypotheses (Desolneux,
    Moisan & Morel 2000). Counts are divided by the number of windows that share the same ground, since those agree by construction.
    """
    chance = np.pi * INLIER_PX**2 / (2 * layout.radius + 1) ** 2
    others, agreeing = n_good / layout.overlap - 1, n_inlier / layout.overlap - 1
    return float(n_good * special.betainc(agreeing, others - agreeing + 1, chance)) if agreeing > 0 else float(n_good)
