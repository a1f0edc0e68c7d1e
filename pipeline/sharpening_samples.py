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
from sereno.pipeline.groups import average_valid, ratio_of, view_image
from sereno.pipeline.material import Array, Laid, Material
from sereno.pipeline.plates import place_scene
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.registration import Layer, estimate_field, refine_field, settle_field, shrink_layer
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE, bands_of, find_unknown, geobox_of, plates_of, to_scene
from sereno.pipeline.shiftfield import ShiftField


def check_product(scenes: dict[str, xr.Dataset], name: str) -> None:
    """Refuse scenes that are not of one product.

    Raises:
        DataError: they are of two, or of two processing levels.
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
    ratio, pixel_m = pan.sizes["y"] // ms.sizes["y"], abs(float(coarse.resolution.y))
    fixed = _to_layer(ms)

    def place(field: ShiftField) -> Layer:
        return shrink_layer(_to_layer(move_guide(pan, refine_field(field, ratio))), ratio)

    if any(plate.relief is not None for plate in plates_of(pan)):
        found = settle_field(fixed, place, settings, pixel_m=pixel_m)
    else:
        moved = shrink_layer(_to_layer(pan), ratio)
        rigid = settings if plates_of(pan) else settings.model_copy(update={"field": "shift"})
        found = estimate_field(fixed, moved, rigid, pixel_m=pixel_m)
    laid = move_guide(pan, refine_field(found.field, ratio)) if found.verdict == "applied" else pan
    return Laid({"pan": laid, "ms": ms}, {"pan": found}, coarse)


def _to_layer(scene: xr.Dataset) -> Layer:
    """All bands of a scene where there is no cloud by its classes: bands of one product see clouds at slightly different places."""
    valid = scene["valid"].values
    cloud = np.isin(scene["scl"].values, SCL_CLOUD) if "scl" in scene else np.zeros_like(valid)
    return Layer(to_reflectance(scene["data"].values), valid & ~cloud)


def move_guide(pan: xr.Dataset, field: ShiftField) -> xr.Dataset:
    """The guide with `field`, in pixels of its own grid, taken out."""
    if field.is_zero:
        return pan
    facts, bands, grid = pan.attrs["provenance"], bands_of(pan), geobox_of(pan)
    if plates_of(pan):
        reflectance, valid = place_scene(pan, grid, field)
        stored = np.clip(np.rint(reflectance * REFLECTANCE_SCALE), 0, MAX_REFLECTANCE).astype(np.uint16)
        return to_scene(stored, valid, bands=bands, geobox=grid, provenance=facts)
    dy, dx = (round(float(shift)) for shift in field.evaluate(*field.centre))
    moved = {name: _roll(pan[name].values, dy, dx) for name in ("data", "valid", *(("scl",) if "scl" in pan else ()))}
    return to_scene(moved["data"], moved["valid"], bands=bands, geobox=grid, provenance=facts, scl=moved.get("scl"))


def _roll(image: Array, dy: int, dx: int) -> Array:
    """What lies at (row + dy, col + dx) of an image (..., y, x); 0 where that is outside."""
    moved = np.zeros_like(image)
    rows, cols = ((slice(max(0, -step), min(size, size - step)), slice(max(0, step), min(size, size + step)))
                  for step, size in ((dy, image.shape[-2]), (dx, image.shape[-1])))  # fmt: skip
    moved[..., rows[0], cols[0]] = image[..., rows[1], cols[1]]
    return moved


def list_material(group: xr.Dataset, masks: xr.Dataset) -> Material:
    """What patches are cut from: both images, and the mask of the coarse one, valid where the guide is too.

    Raises:
        DataError: the masks do not say where clouds are known.
    """
    ratio, ms = ratio_of(group), view_image(group, "ms")
    unknown = find_unknown(ms, masks, "ms")
    valid = ms["valid_ms"].values & average_valid(group["valid_pan"].values, ratio) & ~unknown
    channels = {"cloud": masks["cloud_ms"].values, "shadow": masks["shadow_ms"].values, "valid": np.where(valid, 255, 0).astype(np.uint8)}
    stacked = np.stack([channels[name] for name in MASK_CHANNELS_OF["pansharpening"]])
    arrays = {role: partial(_read, group, role) for role in ("pan", "ms")}
    names = {"bands": bands_of(group), "pan_bands": bands_of(group, "pan_band")}
    return Material("pansharpening", arrays, stacked, names, ratio, unknown)


def _read(group: xr.Dataset, name: str) -> Array:
    values: Array = group[name].values
    return values
