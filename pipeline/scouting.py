"""What catalogues and folders offer over one area: listed, judged item by item, measured for clouds, asked for their files.

Enters: the settings of a search. Leaves: acquisitions that may become part of a pair or group, the reason for every item that may not, and
lines for the ledger. Which of them form pairs or groups say `pairing`, `table` and `grouping`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline.acquisitions import (
    Candidate,
    Cause,
    Found,
    Refused,
    assemble_scenes,
    drop_duplicates,
    give_unique_ids,
    refuse,
    refuse_item,
    role_of,
)
from sereno.pipeline.advice import Kind, Read
from sereno.pipeline.areas import Ground, cut_footprint, to_bboxes
from sereno.pipeline.bands import L1C_BANDS, SCL
from sereno.pipeline.catalogue import Catalogue, Period, open_catalogue, search_items, select_collections
from sereno.pipeline.config import QuerySettings, TaskName
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.grouping import check_common_bands
from sereno.pipeline.imagers import find_classification, has_classification
from sereno.pipeline.items import to_item_record
from sereno.pipeline.ledger import SEARCH, Entry
from sereno.pipeline.pairing import find_fault, find_lacking_bands, select_hopeful, select_polarisations
from sereno.pipeline.pairs import ItemRecord, SceneRecord, Status
from sereno.pipeline.probes import probe_scenes
from sereno.pipeline.signing import Resolver, check_credentials
from sereno.pipeline.table import Row, parse_table

logger = logging.getLogger(__name__)

GAOFEN_GSD_M: Final = {"gaofen-pms": 8.0, "gaofen-wfv": 16.0, "gaofen-wfv4": 16.0}
"""Pixels of the optical cameras of Gaofen-1 and 6; PMS of Gaofen-2 has 4 m."""
FINEST_SHARE: Final = 0.6
"""A grid whose pixel is less than this share of an image's shows nothing that the image does."""


class Source(NamedTuple):
    """Where one kind of scenes is searched."""

    address: str
    """As the settings give it."""
    catalogue: Catalogue | None
    """The open catalogue; None for a folder of products."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.address).is_dir()

    @property
    def resolver(self) -> Resolver:
        """Makes the addresses of its assets readable."""
        return Resolver(self.address) if self.catalogue is None else self.catalogue.resolver


class Search(NamedTuple):
    """What is searched, and where."""

    ground: Ground
    """The area as a grid with its outline."""
    sources: Mapping[Kind, Source]
    """Where optical and where SAR scenes are searched."""
    settings: QuerySettings
    """How scenes are judged and become pairs."""


class Listed(NamedTuple):
    """What one search found, before anything is judged."""

    items: list[Read | Refused]
    """Records with their footprints, or why an item is none."""
    collections: tuple[str, ...]
    """The collections that were searched, the preferred one first."""
    note: Entry
    """What the search took."""


class Judged(NamedTuple):
    """What is left of the items after one step, and what is not."""

    candidates: list[Candidate]
    """Scenes that may become part of a pair."""
    refused: list[Refused]
    """The others."""
    notes: tuple[Entry, ...] = ()
    """Lines for the ledger."""


def open_sources(stack: contextlib.ExitStack, settings: QuerySettings, task: TaskName) -> dict[Kind, Source]:
    """Where scenes of each kind that the task needs are searched, open as long as the stack.

    Raises:
        ConfigError: coarse images of another sensor are asked for where no catalogue is searched.
        MissingError, CatalogueError: as `open_catalogue`.
    """

    def open_source(address: str) -> Source:
        return Source(address, stack.enter_context(open_catalogue(address, max_requests=settings.max_requests)))

    optical = Source(settings.catalogue, None) if settings.source == "gaofen" else open_source(settings.catalogue)
    if task == "cloud-removal":
        return {"optical": optical, "sar": _open_sar(optical, settings, open_source)}
    if not settings.coarse_collections:
        return {"optical": optical}
    if optical.catalogue is None:
        raise ConfigError(
            f"pipeline.query.coarse_collections needs STAC catalogues, but 'source' is {settings.source}: leave it out, and coarse images "
            "become averages of the fine ones"
        )
    elsewhere = settings.coarse_catalogue not in (None, settings.catalogue)
    return {"optical": optical, "coarse": open_source(str(settings.coarse_catalogue)) if elsewhere else optical}


def _open_sar(optical: Source, settings: QuerySettings, open_source: Callable[[str], Source]) -> Source:
    address = settings.sar_catalogue
    if settings.source == "gaofen":
        return Source(address, None) if address else optical
    if address is None or address == settings.catalogue:
        return optical
    holds_products = Path(address).is_dir() and not (Path(address) / "catalog.json").is_file()
    return Source(address, None) if holds_products else open_source(address)


def list_items(search: Search, kind: Kind) -> Listed:
    """The items of one kind that a catalogue lists over the ground, or the products of a folder."""
    source, settings = search.sources[kind], search.settings
    margin = timedelta(days={"optical": 0.0, "sar": settings.max_gap_sar_days, "coarse": settings.max_gap_coarse_days}[kind])
    period, started = to_period(settings, margin), monotonic()
    if source.catalogue is None:
        return _list_products(search, kind, period)
    preset = source.catalogue.preset
    wanted = {
        "optical": settings.optical_collections or preset.optical_collections,
        "sar": settings.sar_collections or preset.sar_collections,
        "coarse": settings.coarse_collections,
    }[kind]
    named = "coarse_collections" if kind == "coarse" else "optical_collections and sar_collections"
    collections = select_collections(source.catalogue, wanted, settings=named)
    found, statistics = search_items(source.catalogue, collections, to_bboxes(search.ground.geobox), period)
    items = [_to_record(kind, item, source.catalogue) for item in found]
    words = f"{kind} search: {len(items)} items in {statistics.pages} pages, {statistics.repeats} repeated, {statistics.requests} requests"
    reason = "; ".join([words, *statistics.warnings])
    note = Entry("query", "", "", "", SEARCH, "used", reason, statistics.retries, 0, monotonic() - started)
    return Listed(items, collections, note)


def _list_products(search: Search, kind: Kind, period: Period) -> Listed:
    """The products of a folder that were taken within `period`, and those that cannot be used."""
    folder = Path(search.sources[kind].address)
    found, unfit = _list_gaofen(folder, "sar" if kind == "sar" else "optical") if search.settings.source == "gaofen" else _list_safe(folder)
    first, last = period
    moments = [datetime.fromisoformat(record.time) for record, _ in found]
    inside = [(first is None or first <= moment) and (last is None or moment <= last) for moment in moments]
    chosen = [entry for entry, is_inside in zip(found, inside, strict=True) if is_inside]
    refused = [Refused((name,), "sar" if kind == "sar" else "cloudy", reason, Cause.ITEM) for name, reason in unfit]
    words = f"{kind} search: {len(chosen)} of {len(found)} usable products of {folder} were taken within start..end"
    return Listed([*chosen, *refused], (), Entry("query", "", "", "", SEARCH, "used", words))


def _list_safe(folder: Path) -> tuple[list[Read], list[tuple[str, str]]]:
    """The Sentinel-1 products of a folder, and names and reasons of those that cannot be used."""
    from sereno.pipeline.sensors.sentinel1_safe import list_products  # it reads products, which a search never does

    items, refused = list_products(folder)
    return list(items), refused


def _list_gaofen(folder: Path, kind: Literal["sar", "optical"]) -> tuple[list[Read], list[tuple[str, str]]]:
    """The Gaofen products of one kind in a folder, and names and reasons of those that cannot be used.

    A product that cannot be used is named once: as that kind which its name tells.
    """
    from sereno.pipeline.sensors.gaofen_folder import list_products  # it reads products, which a search never does

    listing = list_products(folder, kind)
    return [(record, footprint) for record, footprint in listing.items], listing.refused


def _to_record(kind: Kind, item: dict[str, Any], catalogue: Catalogue) -> Read | Refused:
    try:
        record = to_item_record(item, base_url=catalogue.base_url, offset_sources=catalogue.preset.offset_sources)
    except (ConfigError, DataError, MissingError) as error:
        status: Status = "missing" if isinstance(error, MissingError) else "refused"
        return Refused((str(item.get("id")),), "sar" if kind == "sar" else "cloudy", str(error), Cause.ITEM, status)
    return record, item.get("geometry")


def to_period(settings: QuerySettings, margin: timedelta) -> Period:
    """First and last moment of a search, UTC, widened by `margin`."""
    start, end = settings.period
    return start and start - margin, end and end + margin


def warn_of_unknown(search: Search, listed: Mapping[Kind, Listed]) -> None:
    """Log names in the settings that nothing answers to: they may be misspelt."""
    settings = search.settings
    for setting, asked in (
        ("optical_collections", settings.optical_collections),
        ("sar_collections", settings.sar_collections),
        ("coarse_collections", settings.coarse_collections),
    ):
        searched = {name for found in listed.values() for name in found.collections}
        for name in asked:
            if name not in searched:
                logger.warning("pipeline.query.%s: the catalogue has no %r, it is passed over", setting, name)
    seen = {name for found in listed.values() for entry in found.items for name in _names_of(entry)}
    for name in settings.exclude:
        if name not in seen:
            logger.warning("pipeline.query.exclude: no item found is called %r", name)
    for name in sorted({name for row in read_table(settings) for name in row if name} - seen):
        logger.warning("pipeline.query.table: no product found is called %r, its row is passed over", name)


def warn_of_pixels(settings: QuerySettings, listed: Listed) -> None:
    """Log which images are much coarser than the grid: the recipe for one camera may have been taken for another."""
    for sensor, gsd_m in GAOFEN_GSD_M.items():
        names = [entry[0].item for entry in listed.items if not isinstance(entry, Refused) and entry[0].sensor == sensor]
        if names and settings.resolution_m < gsd_m * FINEST_SHARE:
            logger.warning(
                "pipeline.query.resolution_m is %g m, but %d images have pixels of %g m (%s), which are only interpolated: set it to %g",
                settings.resolution_m, len(names), gsd_m, names[0], gsd_m,
            )  # fmt: skip


def _names_of(entry: Read | Refused) -> tuple[str, ...]:
    return entry.items if isinstance(entry, Refused) else (entry[0].item,)


def read_table(settings: QuerySettings) -> tuple[Row, ...]:
    """The rows of the user's table of pairs; none if there is no table.

    Raises:
        MissingError: it is not there.
        ConfigError: as `parse_table`.
    """
    if settings.table is None:
        return ()
    if not settings.table.is_file():
        raise MissingError(f"pipeline.query.table {settings.table} does not exist: correct its path, or leave it out to pair by time")
    return parse_table(settings.table.read_text(), where=f"pipeline.query.table {settings.table}", inputs=settings.inputs)


def judge_kinds(search: Search, listed: Mapping[Kind, Listed]) -> dict[Kind, Judged]:
    """The acquisitions of each kind under ids that no two of them share, and what is refused of each.

    The lock names the optical place alone, so that each scene from elsewhere names its own.

    Raises:
        ConfigError: coarse images would not have the bands of the fine ones.
    """
    sensors = {kind: [entry[0].sensor for entry in found.items if not isinstance(entry, Refused)] for kind, found in listed.items()}
    check_common_bands(sensors["optical"], sensors.get("coarse", ()), search.settings)
    judged = {kind: _judge_items(search, found) for kind, found in listed.items()}
    for kind, source in search.sources.items():
        if source is not search.sources["optical"]:
            place = {"catalogue": source.address}
            judged[kind] = judged[kind]._replace(candidates=[_change_scene(one, place) for one in judged[kind].candidates])
    named = iter(give_unique_ids([one for found in judged.values() for one in found.candidates]))
    return {kind: found._replace(candidates=[next(named) for _ in found.candidates]) for kind, found in judged.items()}


def _change_scene(candidate: Candidate, facts: Mapping[str, Any]) -> Candidate:
    return candidate._replace(scene=candidate.scene.model_copy(update=facts))


def _judge_items(search: Search, listed: Listed) -> Judged:
    """The acquisitions that the items make and that cover enough of the area, and the refusals of all other items."""
    settings = search.settings
    read = [entry for entry in listed.items if not isinstance(entry, Refused)]
    refused = [entry for entry in listed.items if isinstance(entry, Refused)]
    expected = _list_bands([record for record, _ in read])
    judged = [_judge_item(search, entry, expected[entry[0].sensor]) for entry in read]
    unfit = [one for one in judged if isinstance(one, Refused)]
    unique, repeated = drop_duplicates([one for one in judged if isinstance(one, Found)], listed.collections)
    limit = settings.clear_cover_pct
    duplicates = [
        refuse_item(one.record, reason, Cause.DUPLICATE, clear_cover_pct=limit)._replace(status="duplicate") for one, reason in repeated
    ]
    candidates, apart = assemble_scenes(unique, search.ground, min_overlap=settings.min_overlap, clear_cover_pct=limit)
    return Judged(candidates, [*refused, *unfit, *duplicates, *apart])


def _judge_item(search: Search, entry: Read, expected: frozenset[str]) -> Found | Refused:
    """The part of the ground that an item covers, or why the item is refused whatever its partners may be."""
    record, footprint = entry
    fault = find_fault(record, search.settings) or find_lacking_bands(record, expected, search.settings)
    if fault:
        return fault
    record = select_polarisations(record, search.settings)
    try:
        return Found(record, cut_footprint(footprint, search.ground))
    except DataError as error:
        return refuse_item(record, str(error), Cause.ITEM, clear_cover_pct=search.settings.clear_cover_pct)


def _list_bands(records: Iterable[ItemRecord]) -> dict[str, frozenset[str]]:
    """The bands that items of each sensor hold, all items together: a catalogue may lack some altogether."""
    held: dict[str, frozenset[str]] = {}
    for record in records:
        held[record.sensor] = held.get(record.sensor, frozenset()) | (record.assets.keys() & set(L1C_BANDS))
    return held


def measure_clouds(search: Search, optical: Judged, sar: Judged | None, *, kind: Kind = "optical") -> Judged:
    """The optical scenes with their cloud cover over the area, and without those that have too little data there.

    Measured are those that can still take part, whatever their cover; without `sar` all can. Where the classification
    is lost the catalogue's word stays.
    """
    from sereno.pipeline.cover import measure_covers  # it reads images, which a search without it never does

    settings, resolver = search.settings, search.sources[kind].resolver
    if settings.cover_from == "catalogue" or settings.source == "gaofen":  # Gaofen has no classification
        return optical
    hopeful = optical.candidates if sar is None else select_hopeful(optical.candidates, sar.candidates, settings)
    hopeful = [one for one in hopeful if has_classification(one.scene.sensor)]
    _check_readable(resolver, hopeful)
    covers = measure_covers([one.scene for one in hopeful], search.ground, resolver, settings.cover_pixel_m)
    measured = {one.scene.id: cover for one, cover in zip(hopeful, covers, strict=True)}
    candidates, refused = [], list(optical.refused)
    for one in optical.candidates:
        cover = measured.get(one.scene.id)
        if cover is None or cover.valid_share is None:
            candidates.append(one)
        elif cover.valid_share < settings.min_overlap:
            reason = f"has data on {cover.valid_share:.1%} of the area by {_name_classes(one)}, needed {settings.min_overlap:.1%}"
            refused.append(refuse(one, role_of(one.scene.sensor, cover.cloud_pct, settings.clear_cover_pct), reason, Cause.OVERLAP))
        else:
            candidates.append(_change_scene(one, {"cloud_cover_pct": cover.cloud_pct, "cover_source": "scl"}))
    lost = [name for name, cover in measured.items() if cover.valid_share is None]
    for name in lost:
        logger.warning(
            "%s: a scene classification cannot be read: the catalogue's cloud cover is taken, and masks by SCL will not know its clouds",
            name,
        )
    logger.info("cloud cover of %d scenes measured over the area, of %d others not readable", len(covers) - len(lost), len(lost))
    return Judged(candidates, refused, tuple(_to_note(name, entry) for name, cover in measured.items() for entry in cover.entries))


def _check_readable(resolver: Resolver, candidates: Iterable[Candidate]) -> None:
    try:
        items = [item for one in candidates for item in one.scene.items]
        check_credentials(resolver, [item.assets[name].href for item in items if (name := find_classification(item))])
    except ConfigError as error:
        raise ConfigError(f"{error}; or set pipeline.query.cover_from to catalogue, which searches without reading") from None


def _name_classes(candidate: Candidate) -> str:
    """What the classes of a scene are called."""
    return find_classification(candidate.scene.items[0]) or SCL


def _to_note(scene: str, entry: Entry) -> Entry:
    """The line of a classification; where it is lost, what is done instead."""
    instead = f"{entry.reason}; the catalogue's cloud cover is taken"
    return entry._replace(scene=scene, reason=entry.reason if entry.status == "used" else instead)


def probe_used(search: Search, used: Mapping[Kind, Sequence[SceneRecord]]) -> tuple[dict[str, SceneRecord], list[Entry]]:
    """The scenes by id, with what servers say of their files if the settings ask for that."""
    scenes = {scene.id: scene for kind in used for scene in used[kind]}
    if not search.settings.probe:
        return scenes, []
    remote = {kind: source for kind, source in search.sources.items() if not source.is_local}
    return probe_scenes(scenes, {scene.id: source.resolver for kind, source in remote.items() for scene in used.get(kind, ())})
