"""Scenes that keep the images they were geocoded from, so that a field of shifts found later costs no second interpolation.

A stored scene, a grid and a field enter; values on that grid leave, interpolated once from what the sensor saw. Scenes on their product's
own grid (RTC, Sentinel-2, SEN12MS-CR) have no plates and are interpolated once from that grid. Two kinds are interpolated a second time
when a field is taken out: Sentinel-1 that sarsen corrected for terrain, and slices of RTC in a neighbouring UTM zone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.geometry import (
    Positions,
    compose_positions,
    displace_pixels,
    locate_pixels,
    measure_ratio,
    resample_sar,
    sample_strips,
)
from sereno.pipeline.radiometry import centi_db_to_power, to_reflectance
from sereno.pipeline.scene import LATTICE_STEP_PX, Plate, bands_of, geobox_of, plates_of
from sereno.pipeline.shiftfield import ShiftField

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Locator = Callable[[Double, Double], tuple[Double, Double]]
"""Rows and columns of an image at rows and columns of a grid, whole numbers being centres on both sides."""


def place_scene(scene: xr.Dataset, target: GeoBox, field: ShiftField | None = None) -> tuple[Float, Bool]:
    """The scene on `target` with `field` (pixels of `target`) taken out: (band, y, x) linear power or reflectance 0..1, (y, x) validity.

    `field` says that content which belongs at (row, col) is found at (row + dy, col + dx). Without a field, on its own grid, a scene is
    what its `data` says. A scene with plates is interpolated from them, see `place_plates`. Peak memory: one plate in float32 twice, and
    the result twice.
    """
    bands, source, plates = bands_of(scene, str(scene["data"].dims[0])), geobox_of(scene), plates_of(scene)
    if plates:
        return place_plates(plates, bands, source=source, target=target, field=field)
    return resample_sar(_to_linear(scene["data"].values), scene["valid"].values, source=source, target=target, field=field)


def place_plates(
    plates: Sequence[Plate], bands: tuple[str, ...], *, source: GeoBox, target: GeoBox, field: ShiftField | None = None
) -> tuple[Float, Bool]:
    """Plates, whose positions are those of the grid `source`, on `target`: (band, y, x) power or reflectance 0..1, (y, x) validity.

    Each is interpolated once, at the place of a pixel displaced by `field` and at the height of the pixel itself: the field is an error of
    the sensor's place, which moves an image over the ground, while relief stays where it is. Layers are laid in their order, each where
    those before it are not valid.
    """
    values, valid = np.zeros((len(bands), *target.shape), np.float32), np.zeros(tuple(target.shape), bool)
    for _, members in itertools.groupby(sorted(plates, key=_layer_of), key=_layer_of):
        layer = list(members)
        if {band for plate in layer for band in plate.bands} != set(bands) or valid.all():
            continue  # a band of it is not there, or it is not needed
        seen, inside = np.zeros_like(values), np.ones_like(valid)
        for plate in layer:
            placed, usable = _place_plate(plate, source, target, field)
            seen[[bands.index(band) for band in plate.bands]] = placed
            inside &= usable
        fresh = inside & ~valid
        np.copyto(values, seen, where=fresh)
        valid |= fresh
    return values, valid


def _layer_of(plate: Plate) -> int:
    return plate.layer


def _place_plate(plate: Plate, source: GeoBox, target: GeoBox, field: ShiftField | None) -> tuple[Float, Bool]:
    lattice = Positions(*plate.lattice)
    relief = None if plate.relief is None else Positions(*plate.relief.astype(np.float64))

    def locate(top: int, n_rows: int) -> Positions:
        shape = (n_rows, target.shape[1])
        places = locate_pixels(source, target, displace_pixels(shape, field, top=top))
        flat = compose_positions(lattice, places, step_px=LATTICE_STEP_PX, first_px=-LATTICE_STEP_PX)
        if relief is None:
            return flat
        lifted = compose_positions(relief, locate_pixels(source, target, displace_pixels(shape, None, top=top)))
        return Positions(flat.rows + lifted.rows, flat.cols + lifted.cols)

    down, across = (own * coarser for own, coarser in zip(plate.ratio, measure_ratio(source, target), strict=True))
    return sample_strips((_to_linear(plate.values), plate.valid), target.shape[0], locate, ratio=(down, across))


def _to_linear(stored: npt.NDArray[Any]) -> Float:
    """Stored values as linear power or reflectance."""
    return centi_db_to_power(stored) if stored.dtype == np.int16 else to_reflectance(stored)


def make_lattice(locate: Locator, shape: tuple[int, ...]) -> Double:
    """The lattice of a plate, (2, rows, cols), over a grid of `shape`, of what `locate` says of flat ground."""
    rows, cols = (np.arange(-LATTICE_STEP_PX, size + 2 * LATTICE_STEP_PX, LATTICE_STEP_PX, dtype=np.float64) for size in shape)
    return np.stack(locate(*np.meshgrid(rows, cols, indexing="ij")))
