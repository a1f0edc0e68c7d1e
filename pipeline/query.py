"""Search the scenes of one area and pair them: SAR, cloudy input, clear target.

Reads: a catalogue. Writes: the lock, with every candidate that was not used and why. The same catalogue gives the same bytes.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from odc.geo.geobox import GeoBox

from sereno.pipeline import store
from sereno.pipeline.areas import Ground, compute_share, cut_footprint, to_bboxes, to_geobox
from sereno.pipeline.catalogue import Catalogue, Period, open_catalogue, search_items, select_collections
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.items import to_item_record
from sereno.pipeline.pairing import Candidate, Cause, Refused, choose_triplets, drop_duplicates, refuse, role_of, to_pairs
from sereno.pipeline.pairs import GridRecord, Lock, Refusal, Role, SceneRecord

logger = logging.getLogger(__name__)


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
    kind: str
    """`optical` or `sar`."""


def _search(catalogue: Catalogue, geobox: GeoBox, what: tuple[QuerySettings, str]) -> Found:
    settings, kind = what
    asked, known = (
        (settings.optical_collections, catalogue.preset.optical_collections)
        if kind == "optical"
        else (settings.sar_collections, catalogue.preset.sar_collections)
    )
    wanted = asked or known
    collections = select_collections(catalogue, wanted)
    margin = timedelta(0) if kind == "optical" else timedelta(days=settings.max_gap_sar_days)
    return Found(search_items(catalogue, collections, to_bboxes(geobox)[0], to_period(settings, margin)), collections, catalogue.base_url, kind)


def to_period(settings: QuerySettings, margin: timedelta) -> Period:
    """First and last moment of a search, UTC, widened by `margin`; a bare day as the end means all of that day."""

    def to_moment(value: date | None, at: time) -> datetime | None:
        if value is None:
            return None
        moment = value if isinstance(value, datetime) else datetime.combine(value, at)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

    start, end = to_moment(settings.start, time.min), to_moment(settings.end, time(23, 59, 59))
    return start and start - margin, end and end + margin


def _judge_items(found: Found, geobox: GeoBox, settings: QuerySettings) -> tuple[list[Candidate], list[Refused]]:
    """Those items that can be read, are no duplicates and cover enough of the area, and the refusals of the others."""
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for item in found.items:
        try:
            if item.get("id") in settings.exclude:
                raise DataError("named in pipeline.query.exclude")
            record = to_item_record(item, base_url=found.base_url)
            scene = SceneRecord(
                id=re.sub(r"[^A-Za-z0-9._-]+", "-", record.item).lstrip("._-"),
                sensor=record.sensor,
                time=record.time,
                items=(record,),
                cloud_cover_pct=record.cloud_cover_pct,
                cover_source=None if record.cloud_cover_pct is None else "catalogue",
            )
            candidates.append(Candidate(scene, compute_share(cut_footprint(item.get("geometry"), Ground(geobox, None)), Ground(geobox, None))))
        except (ConfigError, DataError, MissingError) as error:
            role: Role = "sar" if found.kind == "sar" else "cloudy"
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
        c if counts[c.scene.id] == 1 else c._replace(scene=c.scene.model_copy(update={"id": f"{c.scene.id}.{c.scene.items[0].collection}"}))
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
