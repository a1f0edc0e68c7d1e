"""Samples of pan-sharpening: the fine guide (`pan`) and the coarse bands (`ms`) of one product.

Two scenes enter, on grids of which one is a whole number of times coarser; they leave with the guide laid onto the coarse bands by the
shift that was measured, and later as what patches are cut from. Coarse bands are never interpolated: they are what is learnt from.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from sereno.pipeline.clouds import SCL_CLOUD
from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.groups import ratio_of, shrink_valid, view_image
from sereno.pipeline.material import Laid, Material, move_scene, read_values
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.registration import Layer, estimate_field, refine_field, settle_field, shrink_layer
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import bands_of, find_unknown, geobox_of, plates_of
from sereno.pipeline.shiftfield import ShiftField


def check_product(scenes: dict[str, xr.Dataset], name: str) -> None:
    """Refuse scenes that are not of one product.

    Raises:
        DataError: they are of two items, times or sensors.
    """
    facts = {role: scene.attrs["provenance"] for role, scene in scenes.items()}
    for what in ("item", "time", "sensor"):
        if facts["pan"].get(what) != facts["ms"].get(what):
            raise DataError(
                f"group {name}: pan is of {what} {facts['pan'].get(what)!r}, ms of {facts['ms'].get(what)!r}; both must "
                "be images of one product: run `sereno query` again, or correct the lock"
            )


def lay_guide(scenes: dict[str, xr.Dataset], settings: AlignSettings) -> Laid:
    """The scenes with the guide moved by the field that was measured, if it is sure; else as they are.

    Averaged to coarse pixels the guide is compared with the coarse bands. Where it keeps the image it was made of, it is interpolated once
    more from there; else it moves by whole fine pixels, so that nothing is interpolated.
    """
    pan, ms = scenes["pan"], scenes["ms"]
    coarse = geobox_of(ms)
    ratio, pixel_m = pan.sizes["y"] // ms.sizes["y"], measure_pixel(coarse)
    fixed = _to_layer(ms)

    def place(field: ShiftField) -> Layer:
        return shrink_layer(_to_layer(move_scene(pan, refine_field(field, ratio))), ratio)

    if any(plate.relief is not None for plate in plates_of(pan)):
        found = settle_field(fixed, place, settings, pixel_m=pixel_m)
    else:
        moved = shrink_layer(_to_layer(pan), ratio)
        rigid = settings if plates_of(pan) else settings.model_copy(update={"field": "shift"})
        found = estimate_field(fixed, moved, rigid, pixel_m=pixel_m)
    laid = move_scene(pan, refine_field(found.field, ratio)) if found.verdict == "applied" else pan
    return Laid({"pan": laid, "ms": ms}, {"pan": found}, coarse)


def _to_layer(scene: xr.Dataset) -> Layer:
    """All bands of a scene where there is no cloud by its classes: bands of one product see clouds at slightly different places."""
    valid = scene["valid"].values
    cloud = np.isin(scene["scl"].values, SCL_CLOUD) if "scl" in scene else np.zeros_like(valid)
    return Layer(to_reflectance(scene["data"].values), valid & ~cloud)


def list_material(group: xr.Dataset, masks: xr.Dataset) -> Material:
    """What patches are cut from: both images, and the mask of the coarse one, valid where the guide is too.

    Raises:
        DataError: the masks do not say where clouds are known.
    """
    ratio, ms = ratio_of(group), view_image(group, "ms")
    unknown = find_unknown(ms, masks, "ms")
    valid = ms["valid_ms"].values & shrink_valid(group["valid_pan"].values, ratio) & ~unknown
    channels = {"cloud": masks["cloud_ms"].values, "shadow": masks["shadow_ms"].values, "valid": np.where(valid, 255, 0).astype(np.uint8)}
    stacked = np.stack([channels[name] for name in MASK_CHANNELS_OF["pansharpening"]])
    arrays = {role: partial(read_values, group, role) for role in ("pan", "ms")}
    names = {"bands": bands_of(group), "pan_bands": bands_of(group, "pan_band")}
    return Material("pansharpening", arrays, stacked, names, ratio, unknown)
