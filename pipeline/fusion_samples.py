"""Samples of spatiotemporal fusion: three dates, fine and coarse, of which the one in the middle is the target.

Six scenes enter; they leave with the fine ones laid onto the target where that is asked for, and later as what patches are cut from.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import xarray as xr

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.groups import ratio_of
from sereno.pipeline.material import Array, Laid, Material, move_scene, read_image
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.registration import Layer, Registration, estimate_field
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import bands_of, find_unknown, geobox_of

DATES: Final = ("1", "2", "3")
"""How the dates are called, in order of time."""
FINE: Final = tuple(f"fine-{date}" for date in DATES)
COARSE: Final = tuple(f"coarse-{date}" for date in DATES)
TARGET: Final = "fine-2"
"""What the others are laid onto."""


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
    """The scenes, the fine ones moved onto the target by whole pixels where `register_cloudy` asks for that and the shift is sure."""
    target = scenes[TARGET]
    if not settings.register_cloudy:
        return Laid(scenes, {}, geobox_of(target))
    fixed, pixel_m = _to_layer(target), abs(float(geobox_of(target).resolution.y))
    rigid = settings.model_copy(update={"field": "shift"})
    found: dict[str, Registration] = {
        role: estimate_field(fixed, _to_layer(scenes[role]), rigid, pixel_m=pixel_m) for role in FINE if role != TARGET
    }
    moved = {role: move_scene(scenes[role], one.field) for role, one in found.items() if one.verdict == "applied"}
    return Laid({**scenes, **moved}, found, geobox_of(target))


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
    return np.stack([read_image(group, role) for role in roles])
