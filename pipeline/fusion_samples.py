"""Samples of spatiotemporal fusion: three dates, fine and coarse, of which the one in the middle is the target.

Six scenes enter; they leave with the fine ones laid onto the target where that is asked for, and later as what patches are cut from.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import uniform_filter

from sereno.pipeline.averages import average_blocks
from sereno.pipeline.config import WHOLE, AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.groups import ratio_of
from sereno.pipeline.imagers import is_covered, pixel_of
from sereno.pipeline.material import Array, Laid, Material, move_scene, read_values
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.registration import Layer, Registration, estimate_field
from sereno.pipeline.samples import DATED_BY, MASK_CHANNELS_OF, ROLES_OF
from sereno.pipeline.scene import REFLECTANCE_SCALE, bands_of, find_unknown, geobox_of

DATES: Final = ("1", "2", "3")
"""How the dates are called, in order of time."""
FINE, COARSE = ROLES_OF["spatiotemporal-fusion"]
"""Roles of the fine and of the coarse images, in order of the dates."""
TARGET: Final = DATED_BY["spatiotemporal-fusion"]
"""What the others are laid onto."""
SMOOTH_PX: Final = 3
"""Two sensors are compared in means over so many coarse pixels along each side."""
MIN_COMPARED: Final = 30
"""Fewer pixels say nothing of a gain."""
MIN_CONTRAST: Final = 0.002
"""Least median difference in reflectance between the darker and the brighter half of the pixels that are compared."""
ROBUST_STEPS: Final = 20
"""Repetitions of the weighted fit, which settles sooner."""
BISQUARE: Final = 4.685
"""Residuals beyond so many standard deviations count for nothing: 95 % efficient on normal ones (Beaton & Tukey 1974)."""
NORMAL_MAD: Final = 1.4826
"""Standard deviation over median deviation of a normal distribution."""


def check_series(scenes: dict[str, xr.Dataset], name: str) -> None:
    """Refuse scenes that are no series of fine and coarse images.

    Raises:
        DataError: fine images are not of one product, dates are not in order or one of them is missing, or bands differ.
    """
    missing = [role for role in (*FINE, *COARSE) if role not in scenes]
    if missing:
        raise DataError(f"group {name}: {', '.join(missing)} is missing; a series has three dates, fine and coarse: query again")
    for roles in (FINE, COARSE):
        sensors = [scenes[role].attrs["provenance"]["sensor"] for role in roles]
        times = [scenes[role].attrs["provenance"]["time"] for role in roles]
        if len(set(sensors)) > 1:
            raise DataError(f"group {name}: {', '.join(roles)} are of {', '.join(sensors)}; all must be of one product: query one")
        if times != sorted(set(times)):
            raise DataError(
                f"group {name}: {', '.join(roles)} were taken at {', '.join(times)}; needed are three dates in order: query again"
            )
    bands = {role: bands_of(scenes[role]) for role in (*FINE, *COARSE)}
    other = next((role for role in bands if bands[role] != bands[TARGET]), None)
    if other is not None:
        raise DataError(f"group {name}: {TARGET} has bands {bands[TARGET]}, {other} has {bands[other]}; set pipeline.ingest.bands")


def lay_series(scenes: dict[str, xr.Dataset], settings: AlignSettings) -> Laid:
    """The scenes, the fine ones moved onto the target by whole pixels where `register_cloudy` asks for that and the shift is sure.

    Where coarse images are of another sensor it is measured how its reflectance differs (`radiometry` in the facts); nothing is changed.
    """
    target = scenes[TARGET]
    facts = {"radiometry": compare_sensors(scenes)} if is_other_sensor(scenes) else {}
    if not settings.register_cloudy:
        return Laid(scenes, {}, geobox_of(target), facts)
    fixed, pixel_m = _to_layer(target), measure_pixel(geobox_of(target))
    rigid = settings.model_copy(update={"field": "shift"})
    found: dict[str, Registration] = {
        role: estimate_field(fixed, _to_layer(scenes[role]), rigid, pixel_m=pixel_m) for role in FINE if role != TARGET
    }
    moved = {role: move_scene(scenes[role], one.field) for role, one in found.items() if one.verdict == "applied"}
    return Laid({**scenes, **moved}, found, geobox_of(target), facts)


def is_other_sensor(scenes: dict[str, xr.Dataset]) -> bool:
    """Whether coarse images are of another acquisition than the fine ones."""
    items = {role: scene.attrs["provenance"]["item"] for role, scene in scenes.items()}
    return any(items[coarse] != items[fine] for fine, coarse in zip(FINE, COARSE, strict=True))


def compare_sensors(scenes: dict[str, xr.Dataset]) -> dict[str, dict[str, float | int]]:
    """By band, coarse reflectance as a straight line over averaged fine reflectance: `gain`, `offset`, `scatter`, and `pixels` compared.

    All three dates together, where the coarse pixel counts and all fine ones under it and its neighbours are clear. A coarse image that was
    laid of a sensor's pixels, askew to the coarse grid, is blurred by one of them: so is the fine one for this; what differs then is lost
    in means over SMOOTH_PX coarse pixels. The fit is robust. Bands that cannot be compared are left out.
    """
    pairs = [_pair_pixels(scenes[fine], scenes[coarse]) for fine, coarse in zip(FINE, COARSE, strict=True)]
    fine, coarse = (np.concatenate([pair[side] for pair in pairs], axis=1) for side in (0, 1))
    bands = bands_of(scenes[TARGET])
    fits = {band: fit_line(fine[index], coarse[index]) for index, band in enumerate(bands)}
    return {band: fit | {"pixels": int(fine.shape[1])} for band, fit in fits.items() if fit}


def _pair_pixels(fine: xr.Dataset, coarse: xr.Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reflectance (band, pixel) of the averaged fine image and of the coarse one, where both are known and clear around."""
    ratio = fine["valid"].shape[0] // coarse["valid"].shape[0]
    valid = fine["valid"].values
    clear = valid & ~is_covered(fine["scl"].values) if "scl" in fine else valid
    sure = (average_blocks(clear, ratio) == 1) & coarse["valid"].values
    whole = uniform_filter(sure.astype(np.float64), SMOOTH_PX, mode="constant") > 1 - WHOLE
    blur_px = max(1, round(pixel_of(coarse.attrs["provenance"]["sensor"]) / measure_pixel(geobox_of(fine))))
    means = np.stack([average_blocks(uniform_filter(image.astype(np.float64), blur_px), ratio) for image in fine["data"].values])
    smooth = [[uniform_filter(image.astype(np.float64), SMOOTH_PX)[whole] for image in images] for images in (means, coarse["data"].values)]
    return np.array(smooth[0]) / REFLECTANCE_SCALE, np.array(smooth[1]) / REFLECTANCE_SCALE


def fit_line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> dict[str, float]:
    """`gain`, `offset` and `scatter` of y = gain x + offset, both (pixel,); empty with fewer than MIN_COMPARED pixels or without contrast.

    Slopes between the lower and the upper half of x, their median (Theil 1950), then least squares with the bisquare weights of Tukey
    (Beaton & Tukey 1974). The scatter is 1.4826 times the median deviation from the line, the standard deviation if it is normal.
    """
    if x.size < MIN_COMPARED:
        return {}
    order, half = np.argsort(x, kind="stable"), x.size // 2
    low, high = order[:half], order[-half:]
    run = x[high] - x[low]
    if np.median(run) < MIN_CONTRAST:
        return {}
    gain = float(np.median((y[high] - y[low])[run > 0] / run[run > 0]))
    offset = float(np.median(y - gain * x))
    for _ in range(ROBUST_STEPS):
        residual = y - gain * x - offset
        spread = max(NORMAL_MAD * float(np.median(np.abs(residual))), 1e-6)
        weight = np.clip(1 - (residual / (BISQUARE * spread)) ** 2, 0, None) ** 2
        gain, offset = (float(number) for number in np.polyfit(x, y, 1, w=np.sqrt(weight)))
    scatter = NORMAL_MAD * float(np.median(np.abs(y - gain * x - offset)))
    return {"gain": round(gain, 4), "offset": round(offset, 5), "scatter": round(scatter, 5)}


def _to_layer(scene: xr.Dataset) -> Layer:
    return Layer(to_reflectance(scene["data"].values), scene["valid"].values)


def list_material(group: xr.Dataset, masks: xr.Dataset) -> Material:
    """What patches are cut from: both images of all dates, and the mask of each date, valid where its coarse image is too.

    Raises:
        DataError: the masks do not say where clouds are known.
    """
    ratio, channels = ratio_of(group), MASK_CHANNELS_OF["spatiotemporal-fusion"]
    unknown = {role: find_unknown(group, masks, role) for role in FINE}
    stacked = np.empty((len(DATES), len(channels), *group["valid_fine-1"].shape), np.uint8)
    for date, fine, coarse in zip(stacked, FINE, COARSE, strict=True):
        seen = group[f"valid_{coarse}"].values.repeat(ratio, axis=0).repeat(ratio, axis=1)
        date[channels.index("cloud")] = masks[f"cloud_{fine}"].values
        date[channels.index("shadow")] = masks[f"shadow_{fine}"].values
        date[channels.index("valid")] = np.where(group[f"valid_{fine}"].values & seen & ~unknown[fine], 255, 0)
    arrays = {"fine": partial(_stack, group, FINE), "coarse": partial(_stack, group, COARSE)}
    names = {"bands": bands_of(group), "dates": DATES}
    unsure = np.logical_or.reduce(list(unknown.values()))
    return Material("spatiotemporal-fusion", arrays, stacked, names, ratio, unsure, find_gaps(group))


def find_gaps(group: xr.Dataset) -> dict[str, float]:
    """Days from the target to each date, by its name; nothing if the group does not state them."""
    gaps = group.attrs["provenance"]["pair"].get("gaps_days", {})
    return {date: round(gaps[role] - gaps[TARGET], 6) for date, role in zip(DATES, FINE, strict=True)} if {*FINE} <= {*gaps} else {}


def _stack(group: xr.Dataset, roles: tuple[str, ...]) -> Array:
    """Images of three dates, (date, band, y, x)."""
    return np.stack([read_values(group, role) for role in roles])
