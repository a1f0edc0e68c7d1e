"""Scenes that keep the image they were geocoded from, so that a field of shifts found later costs no second interpolation.

A stored scene, a grid and a field enter; values on that grid leave, interpolated once from what the sensor saw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.geometry import resample_sar
from sereno.pipeline.radiometry import centi_db_to_power, to_reflectance
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.shiftfield import ShiftField

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


def place_scene(scene: xr.Dataset, target: GeoBox, field: ShiftField | None = None) -> tuple[Float, Bool]:
    """The scene on `target` with `field` (pixels of `target`) taken out: (band, y, x) linear power or reflectance 0..1, (y, x) validity.

    `field` says that content which belongs at (row, col) is found at (row + dy, col + dx).
    """
    stored = scene["data"].values
    values = centi_db_to_power(stored) if "sar_band" in scene.dims else to_reflectance(stored)
    return resample_sar(values, scene["valid"].values, source=geobox_of(scene), target=target, field=field)
