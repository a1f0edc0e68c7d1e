"""Search the scenes of one area and pair them: SAR, cloudy input, clear target.

Reads: a catalogue. Writes: the lock, with every candidate that was not used and why. The same catalogue gives the same bytes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline import store
from sereno.pipeline.catalogue import Bbox, Catalogue, Period, open_catalogue, search_items, select_collections, to_scene_record
from sereno.pipeline.config import Area, QuerySettings
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.pairing import Candidate, Cause, Refused, choose_triplets, drop_duplicates, refuse, role_of, to_pairs
from sereno.pipeline.pairs import GridRecord, Lock, Refusal, Role

logger = logging.getLogger(__name__)

UTM_ZONE_DEG: Final = 6
"""Width of a UTM zone in degrees of longitude."""
EDGE_STEP_DEG: Final = 0.05
"""Edges of an area are split into pieces of this length before they are projected, since straight lines bend."""
CLIP_DEG: Final = 1.0
"""Footprints are cut this far around the area before they are projected: a UTM zone is only good near its meridian."""
EDGE_STEP_M: Final = 5_000.0
"""The same for edges in metres."""
DEGREES: Final = "EPSG:4326"
"""CRS of STAC footprints; here always longitude, latitude."""
SNAP_SHARE: Final = 1e-6
"""Bounds may miss a whole number of pixels by this share of a pixel."""


def query_pairs(area: str, output: Path, settings: QuerySettings) -> None:
    """Write the lock of `area` to `output`.

    Raises:
        ConfigError: the settings name no such area, or its bounds are not whole pixels.
        CatalogueError: the catalogue does not answer, or has none of the collections.
        MissingError: the catalogue's folder is not there, or nothing forms a pair.
    """
    started = monotonic()
    logger.info("query %s: searching %s", area, settings.catalogue)
    if settings.source == "sen12mscr":
        from sereno.pipeline.sensors.sen12mscr import list_pairs  # it reads images, which a search never does

        lock = list_pairs(Path(settings.catalogue), area)
    else:
        lock = _search_pairs(area, settings)
    store.write_json(output, lock.model_dump(mode="json"))
    counts = f"{len(lock.pairs)} pairs of {len(lock.scenes)} scenes, {len(lock.refused)} candidates refused"
    logger.info("query %s: %s, %.1f s", area, counts, monotonic() - started)


def _search_pairs(area: str, settings: QuerySettings) -> Lock:
    if area not in settings.areas:
        raise ConfigError(f"area {area!r} is not in pipeline.query.areas, which has {', '.join(sorted(settings.areas))}")
    geobox = to_geobox(settings.areas[area], settings.resolution_m)
    with open_catalogue(settings.catalogue) as catalogue:
        found = {kind: _search(catalogue, geobox, (settings, kind)) for kind in ("optical", "sar")}
    optical, refused_optical = _judge_items(found["optical"], geobox, settings)
    sar, refused_sar = _judge_items(found["sar"], geobox, settings)
    triplets, refused = choose_triplets(optical, sar, settings)
    refused = [*refused_optical, *refused_sar, *refused]
    if not triplets:
        raise MissingError(_describe_failure(area, {kind: len(items.items) for kind, items in found.items()}, refused))
    scenes = {part.scene.id: part.scene for triplet in triplets for part in triplet}
    return Lock(
        area=area,
        catalogue=settings.catalogue,
        grid=GridRecord.from_geobox(geobox),
        scenes=dict(sorted(scenes.items())),
        pairs=to_pairs(triplets),
        refused=tuple(sorted((entry.refusal for entry in refused), key=lambda entry: (entry.role, entry.item, entry.reason))),
    )


class Found(NamedTuple):
    """Answer of one search."""

    items: list[dict[str, Any]]
    """The items."""
    collections: tuple[str, ...]
    """The collections that were searched, the preferred one first."""
    base_url: str
    """URL of the catalogue."""


def _search(catalogue: Catalogue, geobox: GeoBox, what: tuple[QuerySettings, str]) -> Found:
    settings, kind = what
    wanted = settings.optical_collections if kind == "optical" else settings.sar_collections
    collections = select_collections(catalogue, wanted)
    margin = timedelta(0) if kind == "optical" else timedelta(days=settings.max_gap_sar_days)
    return Found(search_items(catalogue, collections, _to_bbox(geobox), to_period(settings, margin)), collections, catalogue.base_url)


def to_period(settings: QuerySettings, margin: timedelta) -> Period:
    """First and last moment of a search, UTC, widened by `margin`; a bare day as the end means all of that day."""

    def to_moment(value: date | None, at: time) -> datetime | None:
        if value is None:
            return None
        moment = value if isinstance(value, datetime) else datetime.combine(value, at)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

    start, end = to_moment(settings.start, time.min), to_moment(settings.end, time(23, 59, 59))
    return start and start - margin, end and end + margin


def to_geobox(area: Area, resolution_m: float) -> GeoBox:
    """The grid of an area: its bounds in metres as they are, or its box in degrees, projected and grown to whole pixels.

    Without `epsg` the UTM zone is that of the box's centre.

    Raises:
        ConfigError: bounds in metres are not a whole number of pixels wide and high, or `epsg` is no CRS in metres.
    """
    epsg = area.epsg
    if epsg is not None:
        _check_epsg(epsg)
    if area.bbox is not None:
        west, south, east, north = area.bbox
        epsg = epsg or _utm_epsg((west + east) / 2, (south + north) / 2)
        outline = shapely.segmentize(shapely.box(west, south, east, north), EDGE_STEP_DEG)
        left, bottom, right, top = _project(outline, CRS(DEGREES), CRS(f"EPSG:{epsg}")).bounds
        left, bottom = (math.floor(edge / resolution_m) * resolution_m for edge in (left, bottom))
        right, top = (math.ceil(edge / resolution_m) * resolution_m for edge in (right, top))
    else:
        assert area.bounds_m is not None  # Area takes one of the two
        left, bottom, right, top = area.bounds_m
    columns, rows = (right - left) / resolution_m, (top - bottom) / resolution_m
    if max(abs(columns - round(columns)), abs(rows - round(rows))) > SNAP_SHARE or not round(columns) or not round(rows):
        raise ConfigError(f"bounds_m {area.bounds_m} are {columns:g} x {rows:g} pixels of {resolution_m} m: give a whole number of pixels")
    return GeoBox((round(rows), round(columns)), Affine(resolution_m, 0, left, 0, -resolution_m, top), f"EPSG:{epsg}")


def _check_epsg(epsg: int) -> None:
    try:
        crs = CRS(f"EPSG:{epsg}")
    except CRSError:
        raise ConfigError(f"EPSG {epsg} is not known: give the code of a UTM zone, for example 32632") from None
    if not crs.projected or crs.units[0] != "metre":
        raise ConfigError(f"EPSG {epsg} is not a projected CRS in metres: give the code of a UTM zone, for example 32632")


def _utm_epsg(longitude: float, latitude: float) -> int:
    zone = min(int((longitude + 180) // UTM_ZONE_DEG) + 1, 60)
    return (32_600 if latitude >= 0 else 32_700) + zone


def compute_overlap(footprint: dict[str, Any] | None, geobox: GeoBox) -> float:
    """Share (0..1) of the grid's ground inside a GeoJSON footprint in degrees, measured in the grid's CRS.

    Raises:
        DataError: there is no footprint, or it is no geometry.
    """
    if not footprint:
        raise DataError("the item states no footprint")
    try:
        outline = shapely.make_valid(shape(footprint))
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError) as error:  # shapely's faults with what is no GeoJSON
        raise DataError(f"its footprint is no GeoJSON geometry ({error})") from None
    west, south, east, north = _to_bbox(geobox)
    clipped = shapely.intersection(outline, shapely.box(west - CLIP_DEG, south - CLIP_DEG, east + CLIP_DEG, north + CLIP_DEG))
    ground = shapely.segmentize(clipped, EDGE_STEP_DEG)
    area = geobox.extent.geom
    return float(shapely.intersection(_project(ground, CRS(DEGREES), CRS(str(geobox.crs))), area).area / area.area)


def _to_bbox(geobox: GeoBox) -> Bbox:
    """West, south, east, north of the grid in degrees."""
    outline = shapely.segmentize(geobox.extent.geom, EDGE_STEP_M)
    west, south, east, north = _project(outline, CRS(str(geobox.crs)), CRS(DEGREES)).bounds
    return west, south, east, north


def _project(geometry: Geometry, source: CRS, target: CRS) -> Geometry:
    # odc-geo's own `to_crs` warns with shapely 2.2, which deprecates the function that it calls.
    transform = source.transformer_to_crs(target)
    return shapely.transform(geometry, lambda xy: np.stack(transform(xy[:, 0], xy[:, 1]), axis=1))


def _judge_items(found: Found, geobox: GeoBox, settings: QuerySettings) -> tuple[list[Candidate], list[Refused]]:
    """Those items that can be read, are no duplicates and cover enough of the area, and the refusals of the others."""
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for item in found.items:
        try:
            if item.get("id") in settings.exclude:
                raise DataError("named in pipeline.query.exclude")
            scene = to_scene_record(item, base_url=found.base_url)
            candidates.append(Candidate(scene, compute_overlap(item.get("geometry"), geobox)))
        except (ConfigError, DataError, MissingError) as error:
            role: Role = "sar" if str(item.get("collection")) in settings.sar_collections else "cloudy"
            refused.append(Refused(Refusal(item=str(item.get("id")), role=role, reason=str(error)), Cause.ITEM))
    unique, duplicates = drop_duplicates(candidates, found.collections)
    covering = [candidate for candidate in unique if candidate.overlap >= settings.min_overlap]
    for candidate in unique:
        if candidate.overlap < settings.min_overlap:
            reason = f"covers {candidate.overlap:.1%} of the area, needed {settings.min_overlap:.1%}"
            refused.append(refuse(candidate, role_of(candidate, settings), reason, Cause.OVERLAP))
    named = _with_unique_ids(covering)
    return named, [*refused, *(refuse(c, role_of(c, settings), reason, Cause.DUPLICATE) for c, reason in duplicates)]


def _with_unique_ids(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, ids completed by the collection where two collections use the same one."""
    counts = Counter(candidate.scene.id for candidate in candidates)
    return [
        c if counts[c.scene.id] == 1 else c._replace(scene=c.scene.model_copy(update={"id": f"{c.scene.id}.{c.scene.collection}"}))
        for c in candidates
    ]


def _describe_failure(area: str, counts: dict[str, int], refused: list[Refused]) -> str:
    """One line: what was found, why it was refused, what to widen."""
    found = f"area {area!r}: no pair among {counts['optical']} optical and {counts['sar']} SAR items"
    if not refused:
        return f"{found}: widen the area or start..end"
    # What was merely not needed follows from the other refusals; of two causes as frequent, a missing partner was nearer to a pair.
    causes: Counter[Cause] = Counter(entry.cause for entry in refused)
    partner = (Cause.CLEAR_GAP, Cause.SAR_GAP)
    cause, count = max(causes.items(), key=lambda entry: (entry[0] is not Cause.UNUSED, entry[1], entry[0] in partner))
    example = next(entry.refusal for entry in refused if entry.cause is cause)
    return f"{found}; {count} refused for one cause, for example {example.item}: {example.reason}; {cause.value}"
