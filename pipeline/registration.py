"""How far the content of one image lies from that of another: a field of shifts per scene, with its uncertainty and a verdict.

Two images enter, optical and SAR or optical of two dates, on one grid, with their validity; a `Registration` leaves. Descriptors that
ignore contrast are compared in many windows, from coarse to fine where the search is wide, and the simplest field on which the windows
agree is taken. When they do not agree, or any gate is not passed, it is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.config import AlignSettings, FieldDegree
from sereno.pipeline.descriptors import DESCRIPTORS, Features
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.matching import (
    MIN_RADIUS_PX,
    MIN_WINDOW_PX,
    MIN_WINDOW_VALID,
    Layout,
    Matches,
    is_at_edge,
    lay_windows,
    match_again,
    match_windows,
    to_votes,
)
from sereno.pipeline.shiftfield import INLIER_PX, Fit, ShiftField, count_false_alarms, fit_field, join_fields, make_shift, spread_lattice

LOG_OFFSET: Final = 0.01
"""Reflectance added before the logarithm, so that dark water does not dominate."""
DIRECT_PX: Final = 12
"""Widest search on the grid itself; wider ones begin on a coarser grid, whose speckle is averaged and whose chance peaks are fewer."""
COARSE_SIDE_PX: Final = 192
"""A coarser grid keeps at least so many pixels along its shorter side: with 128, a real scene of 256 pixels was refused that a search of 30
pixels on the grid itself measured as surely as one of 10."""
MIN_COARSE_SHARE: Final = 0.33
"""With ground in a smaller share of windows a refusal on a coarser grid says that clouds leave little of it, not that images differ."""
FEW_WINDOWS: Final = 16
"""Where fewer windows have ground they are laid again, four to a side of a window, to make the most of gaps between clouds."""
COARSE_VALID: Final = 0.75
"""Share of its pixels that a coarser pixel needs valid."""
FINE_RADIUS_PX: Final = 8
"""Least radius of a finer search: enough background to tell a peak from."""
MAX_PLACINGS: Final = 4
"""Times an image with relief is placed and measured at most; two or three are usual."""
SETTLED_PX: Final = 0.5
"""An image that is left to move by no more than this is not placed again: relief of slope 1 then bends it by less."""
MIN_GOOD: Final = 8
"""Smallest number of good windows."""
MIN_APART: Final = 3.0
"""Smallest number of windows that agree, those counted once that share ground: fewer see a corner of the scene and not the rest."""
MIN_GOOD_SHARE: Final = 0.25
"""Smallest share of good windows among all."""
MIN_WITNESSES: Final[dict[FieldDegree, int]] = {"shift": 0, "affine": 10, "quadratic": 15}
"""Independent good windows (their number by their overlap) from which a field of that degree needs but a small gain."""
MIN_GAIN: Final = 0.98
"""A freer field is taken if it lowers the distance of held-out windows at least to this share. In the simulated world a true affine part of
0.08 px lowered it to 0.81-0.98, a quadratic one that was not there raised it to 1.01-1.02."""
MIN_GAIN_OF_FEW: Final = 0.5
"""The same where there are fewer witnesses than `MIN_WITNESSES`: two dates of one optical sensor agree within hundredths of a pixel, so
that what clouds leave of them tells a slope which a shift alone would miss by a pixel at the far side."""
MAX_SHARE_OF_SEARCH: Final = 0.8
"""A field that reaches nearer to the end of the search range is refused: the true one may lie outside."""
MAX_FALSE_ALARMS: Final = 1e-3
"""Expected number of equally good agreements among windows that point anywhere."""

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Status = Literal["ok", "low_texture", "no_ground", "inconsistent", "out_of_range"]
"""`low_texture`: windows see too little structure. `no_ground`: too little is usable in both images. `inconsistent`: windows disagree or
are too few to be sure. `out_of_range`: the field, or the best match of most windows, lies at the end of the search."""


class Layer(NamedTuple):
    """One image for registration."""

    values: Float
    """(band, y, x): reflectance 0..1, best green, red and near infrared, or SAR in dB. NaN and infinite values count as not valid."""
    valid: Bool
    """(y, x), True = usable: no cloud, no shadow, observed."""
    kind: Literal["optical", "sar"] = "optical"
    """Which of the two `values` are. SAR taken for optical has no structure and is refused."""


Placer = Callable[[ShiftField], Layer]
"""Gives an image with a field taken out, interpolated from what the sensor saw."""


class WindowMatch(NamedTuple):
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
    residual_px: float
    """Distance from the field that was fitted, even if it was refused."""
    inlier: bool
    """Whether it agrees with that field."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """A measured field and how far it can be trusted."""

    field: ShiftField
    """Content at (row, col) of the fixed image appears at (row + dy, col + dx) of the moved one. Zero if refused."""
    verdict: Literal["applied", "refused"]
    """`refused` means: nothing tells how far the moved image lies from where its geocoding puts it."""
    status: Status
    """Why, in one word."""
    reason: str
    """Why, in words, with the value seen and the limit."""
    shape: tuple[int, int]
    """Rows and columns of the grid."""
    pixel_m: float
    """Side of a pixel, metres."""
    descriptor: str
    """What was compared."""
    search_px: float
    """How far was searched, pixels of the grid."""
    coarse_factor: int
    """How much coarser the grid was on which the search began; 1 if there was none."""
    valid_share: float
    """Share of the scene usable in both images."""
    n_laid: int
    """Windows laid over the scene."""
    n_windows: int = 0
    """Windows with enough valid ground."""
    n_good: int = 0
    """Windows with one clear peak inside the search range."""
    n_inlier: int = 0
    """Good windows within `INLIER_PX` of the field."""
    inlier_ratio: float = 0.0
    """`n_inlier` / `n_good`."""
    rms_px: float | None = None
    """Scatter of the inliers around the field; None if nothing was fitted."""
    held_out_px: float | None = None
    """The same for good windows that did not enter the fit, each at most `INLIER_PX`; None if nothing was fitted."""
    sigma_px: float | None = None
    """Predicted standard deviation of the field per axis where it is largest in the scene, overlap counted in; None if unknown."""
    median_peak: float = 0.0
    """Median correlation peak over all windows, -1..1."""
    median_psr: float | None = None
    """Median peak-to-sidelobe ratio of the good windows; None without one."""
    false_alarms: float | None = None
    """Expected number of equally good agreements by chance; None if nothing was fitted."""
    windows: tuple[WindowMatch, ...] = ()
    """The good windows."""
    fitted: ShiftField | None = None
    """The field that was fitted, refused or not; None if none was. Not to be believed, but another measurement may begin there."""

    @property
    def shift_px(self) -> tuple[float, float]:
        """(dy, dx) of the field in the middle of the scene."""
        dy, dx = self.field.evaluate(*self.field.centre)
        return float(dy), float(dx)

    def to_record(self) -> dict[str, Any]:
        """The registration as plain JSON values, rounded to 1e-4: what provenance and report need."""
        record = {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in {"field", "windows", "fitted"}
        }
        dy, dx = self.shift_px
        lengths = np.hypot(*self.field.evaluate(*spread_lattice(self.shape)))
        record |= {
            "dy_px": dy,
            "dx_px": dx,
            "mean_shift_px": float(lengths.mean()),
            "max_shift_px": float(lengths.max()),
            "shape": list(self.shape),
        }
        windows = [{key: _round(value) for key, value in match._asdict().items()} for match in self.windows]
        return {key: _round(value) for key, value in record.items()} | {"field": self.field.to_record(), "windows": windows}


def _round(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 4) if abs(value) >= 1e-3 or value == 0 else float(f"{value:.4g}")


def check_search(settings: AlignSettings, *, pixel_m: float) -> None:
    """Whether a search so wide can find anything on pixels of `pixel_m` metres.

    Raises:
        ConfigError: it cannot.
    """
    if settings.search_m < MIN_RADIUS_PX * pixel_m:
        raise ConfigError(
            f"pipeline.align.search_m is {settings.search_m:g}, {settings.search_m / pixel_m:.1f} pixels of {pixel_m:g} m, where no match "
            f"stands out from what lies around it: set it to {MIN_RADIUS_PX * pixel_m:g} or more"
        )


def estimate_field(fixed: Layer, moved: Layer, settings: AlignSettings, *, pixel_m: float) -> Registration:
    """The field of shifts of the content of `moved` relative to `fixed`, or a refusal with its reason; never an exception for bad pixels.

    Both lie on one grid with pixels of `pixel_m` metres. Equal input and settings give equal output.

    Source: descriptors after Dalal & Triggs (2005) or Heinrich et al. (2012), masked correlation after Padfield (2012), consensus after
    Fischler & Bolles (1981), gates as `_find_fault` names them.
    """
    fixed, moved = (layer._replace(valid=layer.valid & np.isfinite(layer.values).all(axis=0)) for layer in (fixed, moved))
    return _measure(fixed, moved, settings, pixel_m=pixel_m, coarse=_begin_coarse((fixed, moved), settings, pixel_m))


def _begin_coarse(layers: tuple[Layer, Layer], settings: AlignSettings, pixel_m: float) -> Registration | None:
    """What a coarser grid says; None where the search begins on the grid itself.

    Between many clouds little ground is left on a coarse grid: where few windows have any, it begins on one half as coarse.
    """
    factor = choose_factor(settings.search_m / pixel_m, layers[0].valid.shape)
    while factor > 1:
        fixed, moved = (shrink_layer(layer, factor) for layer in layers)
        coarse = _measure(fixed, moved, settings, pixel_m=pixel_m * factor, coarse=None)
        if coarse.verdict == "applied" or coarse.n_windows >= MIN_COARSE_SHARE * coarse.n_laid:
            return coarse
        factor //= 2
    return None


def _measure(fixed: Layer, moved: Layer, settings: AlignSettings, *, pixel_m: float, coarse: Registration | None) -> Registration:
    """The field on one grid, near what a coarser one says if there is one, else within the whole search."""
    rows, cols = fixed.valid.shape
    search_px, factor = settings.search_m / pixel_m, 1 if coarse is None else round(coarse.pixel_m / pixel_m)
    start = dataclasses.replace(
        start_registration((rows, cols), "nothing was measured", pixel_m=pixel_m),
        search_px=search_px,
        coarse_factor=factor,
        descriptor=settings.descriptor,
        valid_share=float((fixed.valid & moved.valid).mean()),
    )
    if coarse is not None and coarse.verdict == "refused":
        return _refuse_as(coarse, start)
    radius, guess = math.ceil(search_px), start.field
    if coarse is not None:
        radius, guess = max(FINE_RADIUS_PX, 2 * factor), refine_field(coarse.field, factor)
        start = dataclasses.replace(start, fitted=guess)
    layout = lay_windows(fixed.valid.shape, radius, settings)
    if layout is None:
        reason = f"a scene of {fixed.valid.shape} pixels is too small for windows of {MIN_WINDOW_PX}"
        return dataclasses.replace(start, status="no_ground", reason=reason)
    features = describe_layer(fixed, settings), describe_layer(moved, settings)
    matches = match_windows(*features, layout, guess)
    if 0 < len(matches.windows) < FEW_WINDOWS:
        layout = lay_windows(fixed.valid.shape, radius, settings.model_copy(update={"step_px": layout.side // 4})) or layout
        matches = match_windows(*features, layout, guess)
    return _judge(matches, layout, start, settings)


def _refuse_as(coarse: Registration, start: Registration) -> Registration:
    """The refusal of a coarser grid as that of the finer one, with the field that was fitted there, if one was."""
    fitted = None if coarse.fitted is None else refine_field(coarse.fitted, start.coarse_factor)
    reason = f"on pixels of {coarse.pixel_m:g} m: {coarse.reason}"
    return dataclasses.replace(start, status=coarse.status, reason=reason, fitted=fitted)


def settle_field(fixed: Layer, place: Placer, settings: AlignSettings, *, pixel_m: float) -> Registration:
    """The field of an image whose relief falls into place only as the field is taken out; otherwise as `estimate_field`.

    Hills bend an image that is placed 100 m off, and windows disagree, however smooth the error that put it there. So a fitted field, even
    a refused one, says where the image is placed next; what is believed, or not, is the last measurement alone, with all its gates.
    """
    known = make_shift(fixed.valid.shape)
    found = estimate_field(fixed, place(known), settings, pixel_m=pixel_m)
    first, near = found, settings.model_copy(update={"search_m": min(settings.search_m, DIRECT_PX * pixel_m)})
    for _ in range(MAX_PLACINGS - 1):
        if found.fitted is None or _measure_reach(found.fitted, found.shape) <= SETTLED_PX:
            break
        known = join_fields(known, found.fitted)
        found = estimate_field(fixed, place(known), near, pixel_m=pixel_m)
    return found if found is first else _add_known(found, known, first)


def _add_known(found: Registration, known: ShiftField, first: Registration) -> Registration:
    """What was found once `known` had been taken out, as it is of the image before; `first` knows how far was searched."""
    whole = dataclasses.replace(found, search_px=first.search_px, coarse_factor=first.coarse_factor, valid_share=first.valid_share)
    if found.verdict == "refused":
        return dataclasses.replace(whole, reason=f"placed again: {found.reason}")
    field, limit = join_fields(known, found.field), MAX_SHARE_OF_SEARCH * first.search_px
    reach = _measure_reach(field, found.shape)
    if reach > limit:
        reason = f"shifts of up to {reach:.2f} px are beyond {limit:.1f}, too near the end of the search range"
        return dataclasses.replace(whole, field=make_shift(found.shape), verdict="refused", status="out_of_range", reason=reason)
    before = [known.evaluate(window.row + window.dy, window.col + window.dx) for window in found.windows]
    windows = [
        window._replace(dy=window.dy + float(dy), dx=window.dx + float(dx)) for window, (dy, dx) in zip(found.windows, before, strict=True)
    ]
    return dataclasses.replace(whole, field=field, fitted=field, windows=tuple(windows))


def _measure_reach(field: ShiftField, shape: tuple[int, int]) -> float:
    """Largest shift along an axis, pixels."""
    return max(float(np.abs(axis).max()) for axis in field.evaluate(*spread_lattice(shape)))


def start_registration(shape: tuple[int, int], reason: str, *, pixel_m: float) -> Registration:
    """What is known before anything is measured: nothing is moved, for that reason."""
    return Registration(
        field=make_shift(shape),
        verdict="refused",
        status="no_ground",
        reason=reason,
        shape=(int(shape[0]), int(shape[1])),
        pixel_m=pixel_m,
        descriptor="none",
        search_px=0.0,
        coarse_factor=1,
        valid_share=0.0,
        n_laid=0,
    )


def describe_layer(layer: Layer, settings: AlignSettings) -> Features:
    """Descriptors of the logarithm of reflectance, or of the mean dB of all polarisations."""
    values = np.where(layer.valid, layer.values, 0)
    values = values.mean(axis=0, keepdims=True) if layer.kind == "sar" else np.log(np.maximum(values, 0) + LOG_OFFSET)
    return DESCRIPTORS[settings.descriptor](values.astype(np.float32), layer.valid)


def choose_factor(search_px: float, shape: tuple[int, ...]) -> int:
    """How much coarser the grid is on which a search of that radius begins: a power of two, 1 if none is needed or the scene is small."""
    factor = 1
    while search_px / factor > DIRECT_PX and min(shape) // (2 * factor) >= COARSE_SIDE_PX:
        factor *= 2
    return factor


def shrink_layer(layer: Layer, factor: int) -> Layer:
    """Means of `factor` x `factor` pixels, of SAR as power; rows and columns that do not fill one are dropped."""
    if layer.kind == "sar":
        return _shrink_sar(layer, factor)
    values, weights = _sum_blocks(layer.values, layer.valid, factor)
    means: Float = (values / np.maximum(weights, 1)).astype(np.float32)
    return layer._replace(values=means, valid=weights >= COARSE_VALID * factor**2)


def _shrink_sar(layer: Layer, factor: int) -> Layer:
    power, valid, _ = shrink_layer(Layer((10 ** (layer.values / 10)).astype(np.float32), layer.valid), factor)
    valid = valid & (power > 0).all(axis=0)
    decibel: Float = (10 * np.log10(np.where(valid, power, 1))).astype(np.float32)
    return layer._replace(values=decibel, valid=valid)


def _sum_blocks(values: Float, valid: Bool, factor: int) -> tuple[Float, Float]:
    rows, cols = (length // factor for length in valid.shape)

    def gather(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        cut = image[..., : rows * factor, : cols * factor]
        summed: npt.NDArray[Any] = cut.reshape(*image.shape[:-2], rows, factor, cols, factor).sum(axis=(-3, -1))
        return summed

    return gather(np.where(valid, values, 0)), gather(valid.astype(np.float32))


def refine_field(field: ShiftField, factor: int) -> ShiftField:
    """A field of a grid `factor` times coarser, in pixels of the finer one."""
    row, col = (factor * (place + 0.5) - 0.5 for place in field.centre)
    dy, dx = (tuple(factor * value for value in axis) for axis in (field.dy, field.dx))
    return ShiftField(field.degree, dy, dx, (row, col), field.scale_px * factor)


def _judge(matches: Matches, layout: Layout, start: Registration, settings: AlignSettings) -> Registration:
    """The field on which the windows agree, if all gates are passed."""
    seen = dataclasses.replace(start, n_laid=matches.n_laid, n_windows=len(matches.peaks), n_good=len(matches.good))
    if not matches.peaks:
        return dataclasses.replace(seen, reason=f"no window has {MIN_WINDOW_VALID:.0%} of its ground usable in both images")
    seen = dataclasses.replace(seen, median_peak=float(np.median(matches.peaks)))
    needed = max(MIN_GOOD, math.ceil(MIN_GOOD_SHARE * len(matches.peaks)))
    if len(matches.good) < needed:
        status, why = _explain_lack(matches, settings.min_peak)
        reason = f"only {len(matches.good)} of {len(matches.peaks)} windows have one clear peak, {needed} are needed{why}"
        return dataclasses.replace(seen, status=status, reason=reason)
    fit = choose_fit(matches, layout, start, settings)
    seen = _take_fit(seen, fit, matches, layout)
    fault = _find_fault(seen, fit.field, settings)
    if fault is None and seen.n_inlier < MIN_APART * layout.overlap:
        fault = (
            "no_ground",
            f"the {seen.n_inlier} windows that agree share their ground {layout.overlap:.1f}-fold: {MIN_APART:g} apart are needed",
        )
    if fault is not None:
        return dataclasses.replace(seen, status=fault[0], reason=fault[1])
    reason = f"{seen.n_inlier} of {seen.n_good} good windows agree within {INLIER_PX:g} px, scatter {seen.rms_px:.2f} px"
    return dataclasses.replace(_sharpen(seen, fit, matches, layout), verdict="applied", status="ok", reason=reason)


def _explain_lack(matches: Matches, min_peak: float) -> tuple[Status, str]:
    """Why too few windows have a clear peak: too little ground, a search that ends before the best match, or too little structure."""
    if len(matches.windows) < MIN_GOOD:
        return "no_ground", ""
    n_edge = sum(is_at_edge(window.surface) and float(window.surface.max()) >= min_peak for window in matches.windows)
    if 2 * n_edge >= len(matches.windows):
        return "out_of_range", f"; {n_edge} match best at the end of the search: widen pipeline.align.search_m"
    return "low_texture", ""


def _sharpen(seen: Registration, fit: Fit, matches: Matches, layout: Layout) -> Registration:
    """A believed field, fitted again to all windows, each asked only near that field; as it was where this gives no more windows."""
    again = match_again(matches.windows, fit.field)
    sharper = fit_field(to_votes(again, layout.overlap), fit.field.degree, seen.shape) if len(again) >= len(matches.good) else None
    sigma = math.inf if sharper is None else float(sharper.predict_sigma(*spread_lattice(seen.shape)).max())
    if sharper is None or not math.isfinite(sigma):
        return dataclasses.replace(seen, field=fit.field, fitted=fit.field)
    distances = [math.dist((window.dy, window.dx), sharper.field.evaluate(window.row, window.col)) for window in seen.windows]
    windows = tuple(window._replace(residual_px=distance) for window, distance in zip(seen.windows, distances, strict=True))
    return dataclasses.replace(seen, field=sharper.field, fitted=sharper.field, sigma_px=sigma, windows=windows)


def choose_fit(matches: Matches, layout: Layout, start: Registration, settings: AlignSettings) -> Fit:
    """The simplest field that explains windows about as well as any: a freer one must lower the distance of windows held out."""
    votes = to_votes(matches.good, layout.overlap)
    best = fit_field(votes, "shift", start.shape)
    assert best is not None
    degrees: tuple[FieldDegree, ...] = ("shift", "affine", "quadratic")
    for degree in degrees[1 : degrees.index(settings.field) + 1]:
        needed = MIN_GAIN if len(matches.good) / layout.overlap >= MIN_WITNESSES[degree] else MIN_GAIN_OF_FEW
        freer = fit_field(votes, degree, start.shape)
        if freer is None or freer.held_out_px > needed * best.held_out_px:
            continue
        if float(freer.predict_sigma(*spread_lattice(start.shape)).max()) <= settings.max_sigma_px:
            best = freer
    return best


def _take_fit(seen: Registration, fit: Fit, matches: Matches, layout: Layout) -> Registration:
    """What the fit says, without its field: that is taken only if all gates are passed."""
    distances = fit.residuals_px[fit.inlier]
    sigma = float(fit.predict_sigma(*spread_lattice(seen.shape)).max())
    windows = [
        WindowMatch(*match[:5], float(residual), bool(agrees))
        for match, residual, agrees in zip(matches.good, fit.residuals_px, fit.inlier, strict=True)
    ]
    return dataclasses.replace(
        seen,
        n_inlier=int(fit.inlier.sum()),
        inlier_ratio=float(fit.inlier.mean()),
        rms_px=float(np.sqrt(np.mean(distances**2))) if distances.size else INLIER_PX,
        fitted=fit.field,
        held_out_px=fit.held_out_px,
        sigma_px=sigma if math.isfinite(sigma) else INLIER_PX,
        median_psr=float(np.median([match.psr for match in matches.good])),
        false_alarms=count_false_alarms(to_votes(matches.good, layout.overlap), fit, layout.radius),
        windows=tuple(windows),
    )


def _find_fault(seen: Registration, field: ShiftField, settings: AlignSettings) -> tuple[Status, str] | None:
    """The first gate that is not passed, as a word and in words; None if all are."""
    assert seen.rms_px is not None
    assert seen.sigma_px is not None
    assert seen.false_alarms is not None
    share, least, limit = settings.min_inlier_ratio, settings.min_peak, MAX_SHARE_OF_SEARCH * seen.search_px
    dy, dx = (float(np.abs(axis).max()) for axis in field.evaluate(*spread_lattice(seen.shape)))
    gates: list[tuple[bool, Status, str]] = [
        (seen.median_peak >= least, "low_texture", f"median correlation {seen.median_peak:.3f} is below {least:g}"),
        (
            seen.inlier_ratio >= share,
            "inconsistent",
            f"only {seen.inlier_ratio:.0%} of {seen.n_good} good windows agree, {share:.0%} are needed",
        ),
        (seen.n_inlier >= MIN_GOOD, "inconsistent", f"only {seen.n_inlier} windows agree, {MIN_GOOD} are needed"),
        (
            seen.rms_px <= settings.max_rms_px,
            "inconsistent",
            f"windows scatter by {seen.rms_px:.2f} px, above {settings.max_rms_px:g}",
        ),
        (
            seen.sigma_px <= settings.max_sigma_px,
            "inconsistent",
            f"uncertainty {seen.sigma_px:.2f} px is above {settings.max_sigma_px:g}",
        ),
        (
            seen.false_alarms <= MAX_FALSE_ALARMS,
            "inconsistent",
            f"chance alone gives such an agreement {seen.false_alarms:.1g} times, above {MAX_FALSE_ALARMS:g}",
        ),
        (
            max(dy, dx) <= limit,
            "out_of_range",
            f"shifts of up to ({dy:.2f}, {dx:.2f}) px are beyond {limit:.1f}, too near the end of the search range",
        ),
    ]
    return next(((status, words) for passed, status, words in gates if not passed), None)
