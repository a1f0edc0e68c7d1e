"""Sentinel-2 L2A and L1C: the items of one overflight in, one scene of reflectance on the area's grid out.

Bands come at 10, 20 or 60 m and are repeated, not interpolated, where an item lies in the area's CRS. The offset of newer processing
baselines is decided per item and removed in integers before items are laid together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, SCL
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.http import Budget
from sereno.pipeline.items import MTD
from sereno.pipeline.ledger import Entry
from sereno.pipeline.mosaic import Part, Reading, describe_absence, find_place, lay_items, lose_incomplete, lose_item, to_entry, to_reading
from sereno.pipeline.offset import decide_offset, describe_check, find_contradictions, judge_offset, read_offset
from sereno.pipeline.pairs import ItemRecord, SceneRecord, Status
from sereno.pipeline.radiometry import to_stored_reflectance
from sereno.pipeline.scene import MAX_REFLECTANCE, Bool2d
from sereno.pipeline.scheduler import THREADS, run_tasks
from sereno.pipeline.sensors.assets import LossError, check_unchanged, select_assets
from sereno.pipeline.sensors.layers import Layer, Rule, read_layer
from sereno.pipeline.signing import Resolver, read_file

NODATA_DN: Final = 0
"""Digital number of missing pixels in every band and in SCL, where the file does not say (ESA, Sentinel-2 product specification)."""
CLEAR_CLASSES: Final = (2, 4, 5, 6)
"""SCL classes whose dark pixels are judged: dark features, vegetation, bare ground, water."""
PRODUCT_BANDS: Final = {"sentinel2-l2a": L2A_BANDS, "sentinel2-l1c": L1C_BANDS}
"""Bands of each product, in its order."""
CALIBRATIONS: Final = {
    "sentinel2-l2a": "surface reflectance = (DN + offset) / 10000",
    "sentinel2-l1c": "top-of-atmosphere reflectance = (DN + offset) / 10000",
}
"""What the stored values mean."""
WITHOUT_SCL: Final = "its ground has class 0, cloud is not known there, and the bands alone decide what is valid"
"""What becomes of an item whose classes are lost."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene on `geobox`: reflectance of `settings.bands` (all of the product if empty), validity, SCL if an item has it.

    A pixel is valid if every band and SCL have data there. What cannot be read is invalid and listed in `provenance["lost"]`; where SCL as
    a whole is lost or not stated, classes are 0, which says that cloud is not known, and the bands alone decide. Peak memory: twice the
    scene if it has several items, else the scene and a byte per pixel and band.

    Raises:
        MissingError: a band is wanted that the product does not have.
        CatalogueError: an asset cannot be read now, or must not be read.
    """
    known = PRODUCT_BANDS[record.sensor]
    bands = settings.bands or known
    unknown = [band for band in bands if band not in known]
    if unknown:
        raise MissingError(
            f"{record.item}: {record.sensor} has no band {', '.join(unknown)}; correct pipeline.ingest.bands, known are {', '.join(known)}"
        )
    mosaic = lay_items(record.items, geobox, partial(_read_item, bands=bands, settings=settings, resolver=resolver))
    return to_reading(record, mosaic, geobox, bands=bands, settings=settings)


def has_value(values: npt.NDArray[Any], nodata: float | None) -> Bool2d:
    """Which digital numbers are data: all but the file's nodata value, or 0 where the file declares none."""
    known: Bool2d = values != (NODATA_DN if nodata is None else nodata)
    return known


def _read_item(
    item: ItemRecord, geobox: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    if lost_part := lose_incomplete(item, bands, n_bands=len(bands), dtype=np.uint16):
        return lost_part
    try:
        offset = _decide_offset(item, settings, resolver)
    except DataError as error:
        return lose_item(item, str(error), n_bands=len(bands), dtype=np.uint16)
    place = find_place(wanted)
    data, layers = _read_layers(item, geobox[place], bands, settings, resolver)
    classes = _to_classes(layers[SCL]) if SCL in layers else None
    unstated = _find_unstated_scl(item)
    scl_is_lost = bool(unstated) or (SCL in layers and layers[SCL].entry.status in ("missing", "unreadable"))
    valid = wanted[place].copy()
    for name, layer in layers.items():
        if not (name == SCL and scl_is_lost):
            valid &= layer.has_data
    n_clamped = _remove_offset(data, valid, offset.dn)
    check = judge_offset(data, valid if classes is None or scl_is_lost else valid & np.isin(classes, CLEAR_CLASSES), bands)
    facts = {
        "offset": offset.dn,
        "offset_reason": offset.reason,
        "offset_check": {**check._asdict(), "histogram": list(check.histogram)},
        "calibration": CALIBRATIONS[item.sensor],
        "n_clamped": n_clamped,
    }
    about_scl = f"{SCL} is lost: {WITHOUT_SCL}" if scl_is_lost else None
    about_item = (describe_coarser(item, layers), describe_check(check), about_scl)
    warnings = (*offset.warnings, *(f"item {item.item}: {words}" for words in about_item if words))
    lost = (*unstated, *((name, words) for name, layer in layers.items() for words in layer.lost))
    stated = (layer.entry for layer in layers.values())
    entries = (*offset.entries, *stated, *(to_entry(item, name, "missing", words) for name, words in unstated))
    return Part(place, data, valid, facts, entries, classes, warnings, lost)


def _find_unstated_scl(item: ItemRecord) -> tuple[tuple[str, str], ...]:
    """The loss of an L2A item that states no SCL, as asset and reason; nothing if it does, or is of a product that never has one."""
    if item.sensor != "sentinel2-l2a" or SCL in item.assets:
        return ()
    return ((SCL, describe_absence(item)),)


def describe_coarser(item: ItemRecord, names: Iterable[str]) -> str | None:
    """Which of the assets `names` the item has only coarser than native, in words; None if there is no such one."""
    entries = item.properties.get("coarser", "").split(", ")
    coarser = [entry for entry in entries if entry.split(" ")[0] in set(names)]
    return f"{', '.join(coarser)}: coarser than the product's own sampling, which the catalogue does not have" if coarser else None


def _remove_offset(data: npt.NDArray[np.uint16], valid: Bool2d, offset_dn: int) -> int:
    """Turn digital numbers (band, y, x) into stored reflectance where they lie; how many valid values were clamped."""
    n_clamped = 0
    for values in data:  # one band at a time: no second array of all of them
        if offset_dn or values.max() > MAX_REFLECTANCE:
            values[...], clamped = to_stored_reflectance(values, valid, offset_dn=offset_dn)
            n_clamped += clamped
    return n_clamped


def _to_classes(layer: Layer) -> npt.NDArray[np.uint8]:
    """Scene classes, 0 where there are none."""
    classes = layer.values.astype(np.uint8, copy=False)
    return classes if layer.has_data.all() else np.where(layer.has_data, classes, 0).astype(np.uint8)


class Offset(NamedTuple):
    """What is added to an item's digital numbers."""

    dn: int
    """The number."""
    reason: str
    """Who says so, in words."""
    warnings: tuple[str, ...]
    """Who says otherwise, and what could not be asked."""
    entries: tuple[Entry, ...]
    """The ledger's line of the product metadata, if it was read."""


def _decide_offset(item: ItemRecord, settings: IngestSettings, resolver: Resolver) -> Offset:
    """The offset of `item`, the product's own metadata asked if it may be believed; if that is lost, the other sources decide.

    Raises:
        DataError: nothing that may be believed decides it.
        CatalogueError: the metadata cannot be read now.
    """
    asset = select_assets(item, (MTD,), resolver, settings).get(MTD)
    if asset is None or "metadata" not in item.offset_sources:
        return Offset(*decide_offset(item), find_contradictions(item), ())
    started, budget, stated, n_bytes = time.monotonic(), Budget(), None, 0
    status: Status = "used"
    reason = ""
    try:
        check_unchanged(asset)
        text = read_file(resolver, asset.record.href, budget)
        n_bytes = len(text)
        stated = read_offset(text, where=asset.place)
    except LossError as loss:
        status, reason = loss.status, loss.words
    except MissingError as error:
        status, reason = "missing", str(error)
    except DataError as error:
        status, reason = "unreadable", str(error)
    entry = Entry("ingest", "", "", item.item, MTD, status, reason, budget.retries, n_bytes, time.monotonic() - started)
    lost = (f"item {item.item}: its metadata cannot say which offset it has: {reason}",) if reason else ()
    return Offset(*decide_offset(item, stated), (*lost, *find_contradictions(item, stated)), (entry,))


def _read_layers(
    item: ItemRecord, geobox: GeoBox, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> tuple[npt.NDArray[np.uint16], dict[str, Layer]]:
    """Digital numbers (band, y, x) on `geobox`, and the layers of the bands and of SCL.

    In this process bands are read straight into the array; workers elsewhere send theirs.
    """
    assets = select_assets(item, (*bands, SCL) if item.sensor == "sentinel2-l2a" else bands, resolver, settings)
    data = np.empty((len(bands), *geobox.shape), np.uint16)
    is_here = settings.scheduler == THREADS
    outputs: dict[str, npt.NDArray[Any] | None] = dict(zip(bands, data, strict=True)) if is_here else {}
    rules = {name: Rule(has_value, Resampling.nearest if name == SCL else Resampling.bilinear) for name in assets}
    tasks = [partial(read_layer, asset, geobox, rules[name], outputs.get(name)) for name, asset in assets.items()]
    layers = dict(zip(assets, run_tasks(tasks, settings.scheduler, settings.readers), strict=True))
    if not is_here:
        for index, band in enumerate(bands):
            data[index] = layers[band].values
    return data, layers
