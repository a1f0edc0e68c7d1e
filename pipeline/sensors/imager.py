"""Landsat, MODIS and what else the table of imagers knows: the items of one overflight in, one scene of reflectance on the wanted grid out.

Digital numbers become reflectance by the product's own scale and offset, quality bits become scene classes. What is averaged afterwards is
taken from the pixel that lies under each point; what stays as it is read is interpolated where the grids do not fit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.imagers import IMAGERS, NODATA, QA, Imager, to_classes
from sereno.pipeline.mosaic import Part, Reading, describe_absence, find_place, lay_items, lose_incomplete, to_entry, to_reading
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE, Bool2d
from sereno.pipeline.scheduler import run_tasks
from sereno.pipeline.sensors.assets import select_assets
from sereno.pipeline.sensors.layers import Layer, Rule, read_layer
from sereno.pipeline.signing import Resolver

WITHOUT_QA: Final = "its ground has class 0, cloud is not known there, and the bands alone decide what is valid"
"""What becomes of an item whose quality bits are lost."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene on `geobox`: reflectance of `settings.bands` (all of the product if empty), validity, classes if it has quality bits.

    A pixel is valid if every band has a number within the product's valid range there, and the quality bits say that something was seen.
    What cannot be read is invalid and listed in `provenance["lost"]`. Negative reflectance is set to 0 and counted.

    Raises:
        MissingError: a band is wanted that the product does not have.
        CatalogueError: an asset cannot be read now, or must not be read.
    """
    imager = IMAGERS[record.sensor]
    bands = settings.bands or imager.band_names
    unknown = [band for band in bands if not imager.names_of(band)]
    if unknown:
        known = ", ".join((*imager.bands, *imager.synonyms))
        raise MissingError(
            f"{record.item}: {imager.name} has no band {', '.join(unknown)}; correct pipeline.ingest.bands, known are {known}"
        )
    plan = Plan(bands, Resampling.nearest if record.averaged else Resampling.bilinear, settings, resolver)
    return to_reading(record, lay_items(record.items, geobox, partial(_read_item, plan=plan)), geobox, bands=bands, settings=settings)


def is_number(values: npt.NDArray[Any], nodata: float | None, *, imager: Imager) -> Bool2d:
    """Which digital numbers are data: in the product's valid range, which its fill value is not, and not the file's nodata value."""
    low, high = imager.valid_range
    known: Bool2d = (values >= low) & (values <= high)
    return known if nodata is None else known & (values != nodata)


def is_seen(values: npt.NDArray[Any], nodata: float | None, *, imager: Imager) -> Bool2d:
    """Where quality bits say that something was seen."""
    assert imager.quality is not None  # or there would be no such asset
    seen: Bool2d = to_classes(imager.quality, values) != NODATA
    return seen if nodata is None else seen & (values != nodata)


def to_reflectance(dn: npt.NDArray[Any], valid: Bool2d, imager: Imager) -> tuple[npt.NDArray[np.uint16], int]:
    """Digital numbers (y, x) as stored reflectance, and how many valid values had to be clamped."""
    exact = np.rint((dn.astype(np.float64) * imager.scale + imager.offset) * REFLECTANCE_SCALE)
    stored = np.clip(exact, 0, MAX_REFLECTANCE)
    return stored.astype(np.uint16), int(np.count_nonzero((stored != exact) & valid))


class Plan(NamedTuple):
    """How the items of a scene are read."""

    bands: tuple[str, ...]
    """Our names, in the order of the scene."""
    resampling: Resampling
    """Interpolation of bands where the grids do not fit."""
    settings: IngestSettings
    """How often reading is tried, and by how many."""
    resolver: Resolver
    """Makes addresses readable."""


def _read_item(item: ItemRecord, geobox: GeoBox, wanted: Bool2d, *, plan: Plan) -> Part:
    bands = plan.bands
    imager = IMAGERS[item.sensor]
    if lost_part := lose_incomplete(item, bands, n_bands=len(bands), dtype=np.uint16):
        return lost_part
    place = find_place(wanted)
    layers = _read_layers(item, geobox[place], plan)
    classes = _find_classes(imager, layers.get(QA))
    valid = wanted[place].copy()
    for name, layer in layers.items():
        if name != QA or classes is not None:
            valid &= layer.has_data
    stored = [to_reflectance(layers[band].values, valid, imager) for band in bands]
    unstated = ((QA, describe_absence(item)),) if imager.quality and QA not in item.assets else ()
    is_lost = bool(imager.quality) and classes is None
    facts = {
        "offset": round(imager.offset * REFLECTANCE_SCALE),
        "offset_reason": f"defined for all of {imager.name}",
        "offset_check": None,
        "calibration": f"surface reflectance = DN x {imager.scale:g} + {imager.offset:g}",
        "n_clamped": sum(count for _, count in stored),
    }
    entries = (*(layer.entry for layer in layers.values()), *(to_entry(item, name, "missing", words) for name, words in unstated))
    lost = (*unstated, *((name, words) for name, layer in layers.items() for words in layer.lost))
    warnings = (f"item {item.item}: {QA} is lost: {WITHOUT_QA}",) if is_lost else ()
    nothing = np.zeros(valid.shape, np.uint8) if is_lost else None
    values = np.stack([reflectance for reflectance, _ in stored])
    return Part(place, values, valid, facts, entries, nothing if classes is None else classes, warnings, lost)


def _find_classes(imager: Imager, layer: Layer | None) -> npt.NDArray[np.uint8] | None:
    """Scene classes (y, x), 0 where the file has none; None if there are no quality bits, or they are lost as a whole."""
    if imager.quality is None or layer is None or layer.entry.status in ("missing", "unreadable"):
        return None
    return np.where(layer.has_data, to_classes(imager.quality, layer.values), NODATA).astype(np.uint8)


def _read_layers(item: ItemRecord, geobox: GeoBox, plan: Plan) -> dict[str, Layer]:
    """Digital numbers of the bands and quality bits on `geobox`."""
    imager = IMAGERS[item.sensor]
    number, seen = Rule(partial(is_number, imager=imager), plan.resampling), Rule(partial(is_seen, imager=imager), Resampling.nearest)
    assets = select_assets(item, (*plan.bands, QA), plan.resolver, plan.settings)
    tasks = [partial(read_layer, asset, geobox, seen if name == QA else number) for name, asset in assets.items()]
    return dict(zip(assets, run_tasks(tasks, plan.settings.scheduler, plan.settings.readers), strict=True))
