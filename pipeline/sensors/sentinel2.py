"""Sentinel-2 L2A: one surface-reflectance item in, one scene on the area's grid out.

Bands come at 10, 20 or 60 m and are repeated, not interpolated, where the item lies in the area's CRS. The offset of newer
processing baselines is decided per item and removed in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from sereno.pipeline.bands import L2A_BANDS, SCL
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.offset import decide_offset, find_shift_fault
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.radiometry import to_stored_reflectance
from sereno.pipeline.scene import Bool2d, to_scene
from sereno.pipeline.sensors.assets import Asset, Layer, Rule, describe_item, read_layer, select_assets

NODATA_DN: Final = 0
"""Digital number of missing pixels in every L2A band and in SCL, where the file does not say (ESA, Sentinel-2 product specification)."""
CLEAR_CLASSES: Final = (2, 4, 5, 6)
"""SCL classes whose dark pixels are judged: dark features, vegetation, bare ground, water."""
READERS: Final = 4
"""Bands read at the same time: over HTTP most of the time is waiting."""


def read_scene(record: ItemRecord, geobox: GeoBox, settings: IngestSettings, resolve: Callable[[str], str]) -> xr.Dataset:
    """The item as a scene on `geobox`: reflectance of `settings.bands` (all twelve if empty), validity, SCL if the item has it.

    A pixel is valid if every band and SCL have data there. `resolve` turns an asset's address into what GDAL opens. Unreadable tiles are
    invalid and listed in `provenance["lost"]`.

    Raises:
        MissingError: the item lacks a band.
        DataError: an asset cannot be opened, or nothing tells whether the values carry an offset.
    """
    bands = settings.bands or L2A_BANDS
    offset_dn, reason = decide_offset(record)
    names = (*bands, SCL) if SCL in record.assets else bands
    layers = _read_layers(select_assets(record, names, resolve, settings.attempts), geobox)
    valid = np.logical_and.reduce([layer.has_data for layer in layers.values()])
    data = np.empty((len(bands), *geobox.shape), np.uint16)
    n_clamped = 0
    for index, band in enumerate(bands):
        data[index], clamped = to_stored_reflectance(layers[band].values, valid, offset_dn=offset_dn)
        n_clamped += clamped
    scl = np.where(layers[SCL].has_data, layers[SCL].values, 0).astype(np.uint8) if SCL in layers else None
    clear = valid if scl is None else valid & np.isin(scl, CLEAR_CLASSES)
    fault = find_shift_fault(data, clear, bands)
    provenance = {
        **describe_item(record, layers, valid),
        "offset": offset_dn,
        "offset_reason": reason,
        "calibration": "surface reflectance = (DN + offset) / 10000",
        "n_clamped": n_clamped,
        "warnings": [fault] if fault else [],
    }
    return to_scene(data, valid, bands=bands, geobox=geobox, provenance=provenance, scl=scl)


def has_value(values: npt.NDArray[Any], nodata: float | None) -> Bool2d:
    """Which digital numbers are data: all but the file's nodata value, or 0 where the file declares none."""
    known: Bool2d = values != (NODATA_DN if nodata is None else nodata)
    return known


def _read_layers(assets: dict[str, Asset], geobox: GeoBox) -> dict[str, Layer]:
    def read(name: str) -> Layer:
        return read_layer(assets[name], geobox, Rule(has_value, Resampling.nearest if name == SCL else Resampling.bilinear))

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(assets, pool.map(read, assets), strict=True))
