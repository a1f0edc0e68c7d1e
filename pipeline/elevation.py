"""The elevation models of an area: which ones a catalogue lists, how much of the ground they cover, and the grid they are joined on.

Enters: an area's ground and the address of a catalogue. Leaves: a scene record with one item per elevation model, for the lock, and what
was not used, for the ledger.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline.areas import Ground, compute_share, cut_footprint, to_bboxes
from sereno.pipeline.catalogue import Catalogue, open_catalogue, search_items, select_collections
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.http import hide_secrets
from sereno.pipeline.items import to_dem_record
from sereno.pipeline.ledger import SEARCH, Entry
from sereno.pipeline.pairs import ItemRecord, SceneRecord, Status
from sereno.pipeline.probes import probe_scenes

logger = logging.getLogger(__name__)

SCENE: Final = "dem"
"""Stands for the scene id in the ledger."""
WHOLE: Final = 0.9999
"""From this share on ground counts as covered: footprints are rounded."""


class Elevations(NamedTuple):
    """What a search for elevation models found."""

    record: SceneRecord
    """Those that meet the ground, sorted by item."""
    notes: tuple[Entry, ...]
    """Lines of the ledger: the search, and what was not used."""
    is_local: bool
    """Whether they lie in a folder of this machine."""


class _Listed(NamedTuple):
    """One item and the ground it covers."""

    record: ItemRecord
    """The item."""
    part: Geometry
    """The part of the ground under it, in the grid's CRS."""


def to_dem_grid(geobox: GeoBox, margin_m: float, pixel_m: float) -> GeoBox:
    """The grid of heights around `geobox`: whole pixels whose edges lie at multiples of `pixel_m` in its CRS, with the margin inside."""
    bounds = geobox.boundingbox
    left, bottom = (math.floor((edge - margin_m) / pixel_m) for edge in (bounds.left, bounds.bottom))
    right, top = (math.ceil((edge + margin_m) / pixel_m) for edge in (bounds.right, bounds.top))
    return GeoBox((top - bottom, right - left), Affine(pixel_m, 0, left * pixel_m, 0, -pixel_m, top * pixel_m), geobox.crs)


def find_elevations(area: str, ground: Ground, settings: QuerySettings, *, margin_m: float) -> Elevations:
    """The elevation models over the ground and `margin_m` around it, in `settings.dem_catalogue`; whatever their dates of production.

    Raises:
        MissingError: the catalogue lists none there, or is a folder that is not there.
        CatalogueError: it does not answer, or has no such collection.
    """
    address, started = settings.dem_catalogue, monotonic()
    assert address is not None  # the caller has looked
    around = Ground(to_dem_grid(ground.geobox, margin_m, measure_pixel(ground.geobox)), None)
    with open_catalogue(address, max_requests=settings.max_requests) as catalogue:
        names = select_collections(catalogue, (settings.dem_collection,), settings="dem_collection")
        found, statistics = search_items(catalogue, names, to_bboxes(around.geobox), (None, None))
        judged = [_judge_item(item, around, catalogue) for item in found]
        used = [one for one in judged if isinstance(one, _Listed)]
        refused = [one for one in judged if isinstance(one, Entry)]
        where = f"{settings.dem_collection} of catalogue {hide_secrets(address)}"
        if not used:
            raise MissingError(_describe_failure(area, around, where, refused))
        record, unknown = _probe(_to_record(used, address), catalogue, settings)
    _report_cover(area, used, (ground, around), where)
    words = f"elevation search: {len(found)} items in {statistics.pages} pages, {statistics.requests} requests"
    reason = "; ".join([words, *statistics.warnings])
    note = Entry("query", "", "", "", SEARCH, "used", reason, statistics.retries, 0, monotonic() - started)
    return Elevations(record, (note, *refused, *unknown), Path(address).is_dir())


def _judge_item(item: dict[str, Any], around: Ground, catalogue: Catalogue) -> _Listed | Entry:
    """The item with its part of the ground, or a line of the ledger on why it is not used."""
    try:
        record = to_dem_record(item, base_url=catalogue.base_url)
        part = cut_footprint(item.get("geometry"), around)
    except (ConfigError, DataError, MissingError) as error:
        logger.warning("elevation model %s is not used: %s", item.get("id"), error)
        status: Status = "missing" if isinstance(error, MissingError) else "refused"
        return Entry("query", "", SCENE, str(item.get("id")), "", status, str(error))
    if part.is_empty:
        return Entry("query", "", SCENE, record.item, "", "refused", "lies beside the area and its margin")
    return _Listed(record, part)


def _to_record(used: Sequence[_Listed], address: str) -> SceneRecord:
    items = tuple(sorted((one.record for one in used), key=lambda record: record.item))
    return SceneRecord(id=SCENE, sensor="dem", time=items[0].time, items=items, catalogue=address)


def _probe(record: SceneRecord, catalogue: Catalogue, settings: QuerySettings) -> tuple[SceneRecord, list[Entry]]:
    """The record with what servers say of its files, if the settings ask for that and they lie on servers."""
    if not settings.probe or Path(catalogue.address).is_dir():
        return record, []
    probed, notes = probe_scenes({SCENE: record}, {SCENE: catalogue.resolver})
    return probed[SCENE], notes


def _report_cover(area: str, used: Sequence[_Listed], grounds: tuple[Ground, Ground], where: str) -> None:
    """Log how much of the area, and of it with its margin, the elevation models cover: loudly if that is not all of it."""
    covered = shapely.union_all([one.part for one in used])
    inner, outer = (compute_share(shapely.intersection(covered, ground.geometry), ground) for ground in grounds)
    words = f"area {area!r}: {len(used)} elevation models of {where} cover {inner:.1%} of it, {outer:.1%} with the margin around it"
    if min(inner, outer) >= WHOLE:
        logger.info("%s", words)
        return
    logger.warning(
        "%s: nothing is placed where heights are not known; where the rest is open sea set pipeline.dem.missing to sea, else name another "
        "pipeline.query.dem_collection or catalogue, or a smaller pipeline.dem.margin_m",
        words,
    )


def _describe_failure(area: str, around: Ground, where: str, refused: Sequence[Entry]) -> str:
    boxes = " and ".join(str([round(edge, 4) for edge in box]) for box in to_bboxes(around.geobox))
    example = f", for example {refused[0].item}: {refused[0].reason}" if refused else ""
    return (
        f"area {area!r}: no elevation model in {boxes} (west, south, east, north) in {where}, {len(refused)} items refused{example}: "
        "name another pipeline.query.dem_catalogue or dem_collection, or a GeoTIFF in pipeline.ingest.dem"
    )
