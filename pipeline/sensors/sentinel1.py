"""Sentinel-1 RTC: terrain-corrected gamma0 in linear power in, one scene in centi-dB out, not moved by a fraction of a pixel.

The scene stays on its own grid with a margin around the area, so that co-registration resamples it once and finds ground beyond every edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import SAR_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.radiometry import FLOOR_DB, power_to_centi_db
from sereno.pipeline.scene import Bool2d, to_scene
from sereno.pipeline.sensors.assets import Rule, describe_item, own_geobox, read_layer, select_assets


def read_scene(record: ItemRecord, geobox: GeoBox, settings: IngestSettings, resolve: Callable[[str], str]) -> xr.Dataset:
    """The item as a scene: VV and VH in int16 centi-dB on its own grid, cropped to `geobox` plus `settings.margin_px`.

    An item in another CRS or pixel size is warped in power (Small 2011 defines gamma0 as a mean of power, never of dB) onto `geobox` plus
    the margin. A pixel is valid if both polarisations hold a finite power above zero that is not the file's nodata: Planetary Computer
    fills some scenes with zeros that no nodata value declares (microsoft/PlanetaryComputer issue 493).

    Raises:
        MissingError: the item lacks a polarisation.
        DataError: an asset cannot be opened.
    """
    assets = select_assets(record, SAR_BANDS, resolve, settings.attempts)
    own = own_geobox(assets[SAR_BANDS[0]], geobox, settings.margin_px)
    layers = {band: read_layer(asset, own, Rule(has_power)) for band, asset in assets.items()}
    valid = np.logical_and.reduce([layer.has_data for layer in layers.values()])
    power = np.stack([layers[band].values for band in SAR_BANDS])
    data, n_clamped = power_to_centi_db(power, np.broadcast_to(valid, power.shape))
    provenance = {
        **describe_item(record, layers, valid),
        "offset": 0,
        "offset_reason": "backscatter has none",
        "calibration": f"gamma0 of the provider, terrain corrected; 10 log10(power), not below {FLOOR_DB:g} dB",
        "n_clamped": n_clamped,
        "warnings": [],
    }
    return to_scene(data, valid, bands=SAR_BANDS, geobox=own, provenance=provenance)


def has_power(values: npt.NDArray[Any], nodata: float | None) -> Bool2d:
    """Which values are backscatter: finite, above zero, and not the file's nodata value."""
    known: Bool2d = np.isfinite(values) & (values > 0)
    return known if nodata is None else known & (values != nodata)
