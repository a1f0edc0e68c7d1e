"""Sentinel-1 RTC: terrain-corrected gamma0 in linear power in, one scene in centi-dB out, not moved by a fraction of a pixel.

The scene stays on the items' own grid with a margin around the area, so that co-registration resamples it once and finds ground beyond
every edge.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import POLARISATIONS
from sereno.pipeline.config import IngestSettings, SpeckleSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.mosaic import Mosaic, Part, Reading, find_place, lay_items, lose_incomplete, to_reading
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.radiometry import FLOOR_DB, power_to_centi_db
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.scheduler import run_tasks
from sereno.pipeline.sensors.assets import select_assets
from sereno.pipeline.sensors.layers import Rule, find_own_grid, read_layer
from sereno.pipeline.signing import Resolver
from sereno.pipeline.speckle import Power, describe_filter, reduce_speckle

CALIBRATION: Final = f"gamma0 of the provider, terrain corrected; 10 log10(power), not below {FLOOR_DB:g} dB"
"""What the stored values mean."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene in int16 centi-dB: the polarisations that its items hold, on the items' own grid, cropped to `geobox` plus a margin.

    That grid is the one of the first item in the area's CRS and pixel size; items on another grid, for example slices in the next UTM zone,
    are warped onto it in power (Small 2011 defines gamma0 as a mean of power, never of dB). If no item lies in the area's CRS it is
    `geobox` plus the margin. A pixel is valid if all polarisations hold a finite power above zero that is not the file's nodata: Planetary
    Computer fills some scenes with zeros that no nodata value declares (microsoft/PlanetaryComputer issue 493). Peak memory:
    3.4 times the scene in float32 (measured with two polarisations), with a speckle filter once more, and what it takes for a strip.

    Raises:
        MissingError: no item holds a polarisation.
        CatalogueError: an asset cannot be read now, or must not be read.
    """
    bands = list_polarisations(record)
    first_assets = [select_assets(item, bands[:1], resolver, settings) for item in record.items]
    own = (find_own_grid(assets[bands[0]], geobox, settings.margin_px) for assets in first_assets if assets)
    grid = next((found for found in own if found is not None), None) or geobox.pad(settings.margin_px)
    mosaic = lay_items(record.items, grid, partial(_read_item, bands=bands, settings=settings, resolver=resolver))
    return to_sar_reading(record, mosaic, grid, bands=bands, settings=settings)


def list_polarisations(record: SceneRecord) -> tuple[str, ...]:
    """The polarisations that items of the scene hold, in the order in which they are stored: that of the record's facts, where they say.

    Raises:
        MissingError: there are none.
    """
    stated = [name for item in record.items for name in item.properties.get("polarisations", "").split()]
    held = {name for item in record.items for name in item.assets}
    bands = tuple(name for name in dict.fromkeys((*stated, *POLARISATIONS)) if name in held)
    if not bands:
        raise MissingError(f"{record.item} has no asset of a polarisation ({', '.join(POLARISATIONS)}): run the query step again")
    return bands


def to_sar_reading(record: SceneRecord, mosaic: Mosaic, grid: GeoBox, *, bands: tuple[str, ...], settings: IngestSettings) -> Reading:
    """The scene of a mosaic of linear power: speckle reduced as the settings say, then in centi-dB.

    Of a mosaic with plates the values come from these, in which speckle was reduced already.
    """
    data, n_clamped = to_stored_power(mosaic.values, mosaic.valid, SpeckleSettings(method="none") if mosaic.plates else settings.speckle)
    reading = to_reading(record, mosaic._replace(values=data), grid, bands=bands, settings=settings)
    provenance = reading.scene.attrs["provenance"]
    provenance |= {"n_clamped": provenance["n_clamped"] + n_clamped, "speckle": describe_filter(settings.speckle)}
    return reading


def to_stored_power(power: Power, valid: Bool2d, speckle: SpeckleSettings) -> tuple[npt.NDArray[np.int16], int]:
    """Linear power (band, y, x) with its speckle reduced, in centi-dB, and how many values valid (y, x) had to be raised."""
    filtered = power if speckle.method == "none" else reduce_speckle(power, valid, speckle)
    data, n_clamped = np.empty(power.shape, np.int16), 0
    for stored, band in zip(data, filtered, strict=True):  # one at a time: no further array of all of them in floating point
        stored[...], n_raised = power_to_centi_db(band, valid)
        n_clamped += n_raised
    return data, n_clamped


def describe_power(calibration: str) -> dict[str, Any]:
    """What is recorded of any item of backscatter; `calibration` says what its values mean."""
    return {"offset": 0, "offset_reason": "backscatter has none", "offset_check": None, "calibration": calibration, "n_clamped": 0}


def has_power(values: npt.NDArray[Any], nodata: float | None) -> Bool2d:
    """Which values are backscatter: finite, above zero, and not the file's nodata value."""
    known: Bool2d = np.isfinite(values) & (values > 0)
    return known if nodata is None else known & (values != nodata)


def _read_item(
    item: ItemRecord, grid: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    if lost_part := lose_incomplete(item, bands, n_bands=len(bands), dtype=np.float32):
        return lost_part
    place = find_place(wanted)
    assets = select_assets(item, bands, resolver, settings)
    tasks = [partial(read_layer, asset, grid[place], Rule(has_power)) for asset in assets.values()]
    layers = dict(zip(assets, run_tasks(tasks, settings.scheduler, settings.readers), strict=True))
    valid = wanted[place].copy()
    for layer in layers.values():
        valid &= layer.has_data
    power = np.stack([np.where(valid, layers[band].values, 0).astype(np.float32, copy=False) for band in bands])
    lost = tuple((name, words) for name, layer in layers.items() for words in layer.lost)
    return Part(place, power, valid, describe_power(CALIBRATION), tuple(layer.entry for layer in layers.values()), lost=lost)
