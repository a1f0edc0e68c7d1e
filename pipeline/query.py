"""Search the scenes of one area and pair them: SAR, cloudy input, clear target; or form the groups of other tasks.

Reads: catalogues, a folder of products, a dataset or a frozen lock; of the optical scenes a small overview of their classification. Writes:
the lock, with every candidate that was not used and why, and the ledger beside it. The same folder gives the same lock, byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline import store
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
    to_refusals,
)
from sereno.pipeline.advice import Aim, Kind, Read, describe_failure
from sereno.pipeline.areas import Ground, cut_footprint, to_bboxes, to_ground
from sereno.pipeline.bands import L1C_BANDS, SCL
from sereno.pipeline.catalogue import Catalogue, Period, open_catalogue, search_items, select_collections
from sereno.pipeline.config import QuerySettings, TaskName, parse_settings
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.grouping import check_common_bands, find_grouper, find_ratio, group_two_sensors, to_fine_ground
from sereno.pipeline.imagers import find_classification, has_classification
from sereno.pipeline.items import to_item_record
from sereno.pipeline.ledger import SEARCH, Entry, ledger_of, write_ledger
from sereno.pipeline.pairing import (
    Triplet,
    choose_triplets,
    find_fault,
    find_lacking_bands,
    select_hopeful,
    select_polarisations,
    to_pairs,
)
from sereno.pipeline.pairs import GridRecord, ItemRecord, Lock, SceneRecord, Status
from sereno.pipeline.probes import probe_scenes
from sereno.pipeline.signing import Resolver, check_credentials
from sereno.pipeline.table import Row, choose_by_table, parse_table

logger = logging.getLogger(__name__)

GAOFEN_GSD_M: Final = {"gaofen-pms": 8.0, "gaofen-wfv": 16.0, "gaofen-wfv4": 16.0}
"""Pixels of the optical cameras of Gaofen-1 and 6; PMS of Gaofen-2 has 4 m."""
FINEST_SHARE: Final = 0.6
"""A grid whose pixel is less than this share of an image's shows nothing that the image does."""


def query_pairs(area: str, output: Path, settings: QuerySettings, *, dem_margin_m: float = 0.0, task: TaskName = "cloud-removal") -> None:
    """Write the lock of `area` to `output`, and beside it the ledger of every item.

    Scenes form pairs for cloud removal, and groups for any other `task` (`sereno.pipeline.grouping`). Where the settings ask
    for elevation models they are searched as far as `dem_margin_m` around the area.

    Raises:
        ConfigError: the settings name no such area, its ground is no grid, or a key for reading is missing.
        CatalogueError: a catalogue does not answer, or has none of the collections.
        MissingError: a folder is not there, or nothing forms a pair.
    """
    started = monotonic()
    logger.info("query %s: %s %s", area, "taking the lock from" if settings.source == "lock" else "searching", settings.catalogue)
    lock, notes = _make_lock(area, settings, task)
    if settings.dem_catalogue is not None and settings.source != "lock":
        lock, found = _add_elevations(lock, settings, dem_margin_m)
        notes += found
    write_ledger(ledger_of(output), _to_entries(area, lock, notes))
    store.write_json(output, lock.model_dump(mode="json"))
    counts = f"{len(lock.jobs)} {'groups' if lock.groups else 'pairs'} of {len(lock.scenes)} scenes, {len(lock.refused)} items refused"
    logger.info("query %s: %s, %.1f s", area, counts, monotonic() - started)


def _make_lock(area: str, settings: QuerySettings, task: TaskName) -> tuple[Lock, list[Entry]]:
    """The lock from where the settings say, and what the ledger tells besides."""
    if settings.source == "lock":
        lock = read_frozen_lock(area, Path(settings.catalogue))
        if lock.task != task:
            raise ConfigError(
                f"the frozen lock of area {area!r} in {settings.catalogue} is for {lock.task}, but pipeline.task is {task}: set that to "
                f"{lock.task}, or search again without 'source: lock'"
            )
        if settings.series and any(pair.before is None for pair in lock.pairs):
            raise ConfigError(
                f"the frozen lock of area {area!r} in {settings.catalogue} has pairs without scenes before and after them, which "
                "pipeline.query.series asks for: leave that out, or search again without 'source: lock'"
            )
        if settings.dem_catalogue is not None and lock.dem is None:
            raise ConfigError(
                f"the frozen lock of area {area!r} in {settings.catalogue} names no elevation models, which pipeline.query.dem_catalogue "
                "asks for: search again without 'source: lock', or name a GeoTIFF in pipeline.ingest.dem instead"
            )
        return lock, []
    if settings.source == "sen12mscr":
        from sereno.pipeline.sensors.sen12mscr import list_pairs  # it reads images, which a search never does

        return list_pairs(Path(settings.catalogue), area, skies=settings.skies if settings.inputs == "simulated" else 0), []
    if settings.source == "cubes":
        from sereno.pipeline.sensors.cube import list_cube  # it reads cubes, which a search never does

        return list_cube(Path(settings.catalogue), area), []
    return _search_pairs(area, settings) if task == "cloud-removal" else _search_groups(area, settings, task)


def _add_elevations(lock: Lock, settings: QuerySettings, margin_m: float) -> tuple[Lock, list[Entry]]:
    """The lock with the elevation models around its area, and what the ledger tells of them."""
    from sereno.pipeline.elevation import find_elevations

    ground = to_ground(settings.areas[lock.area], settings.resolution_m)
    found = find_elevations(lock.area, ground, settings, margin_m=margin_m)
    searched = lock.searched or (None if found.is_local else _tell_time())
    return lock.model_copy(update={"dem": found.record, "searched": searched}), list(found.notes)


def _tell_time() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_frozen_lock(area: str, folder: Path) -> Lock:
    """The lock `AREA.json` of `folder`, checked; no catalogue is asked.

    Raises:
        MissingError: the folder has none.
        ConfigError: it is of another format or area, or damaged.
    """
    path = folder / f"{area}.json"
    if not path.is_file():
        raise MissingError(f"there is no lock {path}: set pipeline.query.catalogue to the folder with the locks")
    try:
        text = path.read_text()
    except ValueError:  # bytes that are no text
        raise ConfigError(f"frozen lock {path} is damaged: it is no text; fetch it again") from None
    lock = parse_settings(Lock, text, where=f"frozen lock {path} (fetch it again, or write it with this version of sereno)")
    lost = sorted({name for job in lock.jobs for name in job.scene_ids} - set(lock.scenes))
    renamed = sorted(name for name, scene in lock.scenes.items() if scene.id != name)
    if lost or renamed or not lock.jobs:
        raise ConfigError(
            f"frozen lock {path} is damaged: {len(lock.jobs)} {'groups' if lock.groups else 'pairs'}, scenes lost: "
            f"{', '.join(lost) or 'none'}, under another name: "
            f"{', '.join(renamed) or 'none'}; fetch it again"
        )
    if lock.area != area:
        raise ConfigError(f"frozen lock {path} is of area {lock.area!r}, expected {area!r}: give the file its own name again")
    return lock


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


def _search_pairs(area: str, settings: QuerySettings) -> tuple[Lock, list[Entry]]:
    """The lock of one search: list items, judge them, measure clouds, choose triplets, probe their files."""
    _check_area(area, settings)
    with contextlib.ExitStack() as stack:
        search = Search(to_ground(settings.areas[area], settings.resolution_m), _open_sources(stack, settings), settings)
        listed = {kind: _list_items(search, kind) for kind in search.sources}
        _warn_of_unknown(search, listed)
        _warn_of_pixels(settings, listed["optical"])
        optical, sar = _judge_all(search, listed)
        measured = _measure_covers(search, optical, sar)
        triplets, unpaired = _choose(search, measured, sar)
        refused = [*measured.refused, *sar.refused, *unpaired]
        if not triplets:
            for entry in to_refusals(refused):  # a failed step leaves no ledger: its log is where the reasons are
                logger.info("query %s: %s as %s: %s: %s", area, entry.status, entry.role, entry.item, entry.reason)
            raise MissingError(
                describe_failure(area, Aim("pair", search.ground, settings), {kind: found.items for kind, found in listed.items()}, refused)
            )
        scenes, unknown = _probe_used(search, _list_used(triplets))
    lock = Lock(
        area=area,
        catalogue=settings.catalogue,
        searched=None if all(source.is_local for source in search.sources.values()) else _tell_time(),
        grid=GridRecord.from_geobox(search.ground.geobox),
        outline=search.ground.outline_json,
        scenes=dict(sorted(scenes.items())),
        pairs=to_pairs(triplets),
        refused=to_refusals(refused),
    )
    return lock, [*(found.note for found in listed.values()), *measured.notes, *unknown]


def _check_area(area: str, settings: QuerySettings) -> None:
    if area not in settings.areas:
        raise ConfigError(f"area {area!r} is not in pipeline.query.areas, which has {', '.join(sorted(settings.areas))}")


def _search_groups(area: str, settings: QuerySettings, task: TaskName) -> tuple[Lock, list[Entry]]:
    """The lock of one search for another task than cloud removal: the same steps without SAR."""
    _check_area(area, settings)
    group_scenes, ratio = find_grouper(task), find_ratio(task, settings)
    with contextlib.ExitStack() as stack:
        sources = _open_group_sources(stack, settings)
        search = Search(to_fine_ground(settings.areas[area], settings, ratio), sources, settings)
        listed = {kind: _list_items(search, kind) for kind in sources}
        _warn_of_unknown(search, listed)
        judged = _judge_kinds(search, listed)
        measured = {kind: _measure_covers(search, found, None, kind=kind) for kind, found in judged.items()}
        fine = measured["optical"].candidates
        coarse = measured["coarse"].candidates if "coarse" in measured else None
        grouped = group_scenes(fine, settings) if coarse is None else group_two_sensors(fine, coarse, settings)
        refused = [*(one for found in measured.values() for one in found.refused), *grouped.refused]
        if not grouped.groups:
            for entry in to_refusals(refused):
                logger.info("query %s: %s: %s: %s", area, entry.status, entry.item, entry.reason)
            aim = Aim(f"group for {task}", search.ground, settings)
            raise MissingError(describe_failure(area, aim, {kind: found.items for kind, found in listed.items()}, refused))
        scenes, unknown = _probe_used(search, _split_kinds(grouped.scenes.values()))
    lock = Lock(
        area=area,
        catalogue=settings.catalogue,
        searched=None if all(source.is_local for source in sources.values()) else _tell_time(),
        grid=GridRecord.from_geobox(search.ground.geobox),
        outline=search.ground.outline_json,
        scenes=dict(sorted(scenes.items())),
        pairs=(),
        task=task,
        groups=grouped.groups,
        refused=to_refusals(refused),
    )
    notes = [*(found.note for found in listed.values()), *(note for found in measured.values() for note in found.notes)]
    return lock, [*notes, *unknown]


def _open_group_sources(stack: contextlib.ExitStack, settings: QuerySettings) -> dict[Kind, Source]:
    """Where fine scenes, and coarse ones of another sensor if there are such, are searched, open as long as the stack."""
    optical = _open_sources(stack, settings.model_copy(update={"sar_catalogue": None}))["optical"]
    if not settings.coarse_collections:
        return {"optical": optical}
    if optical.catalogue is None:
        raise ConfigError(
            f"pipeline.query.coarse_collections needs STAC catalogues, but 'source' is {settings.source}: leave it out, and coarse images "
            "become averages of the fine ones"
        )
    address = settings.coarse_catalogue
    if address is None or address == settings.catalogue:
        return {"optical": optical, "coarse": optical}
    return {"optical": optical, "coarse": Source(address, stack.enter_context(open_catalogue(address, max_requests=settings.max_requests)))}


def _judge_kinds(search: Search, listed: Mapping[Kind, Listed]) -> dict[Kind, Judged]:
    """The fine and the coarse acquisitions under ids that no two of them share, and what is refused of each."""
    sensors = {kind: [entry[0].sensor for entry in found.items if not isinstance(entry, Refused)] for kind, found in listed.items()}
    check_common_bands(sensors["optical"], sensors.get("coarse", ()), search.settings)
    judged = {kind: _judge_items(search, found) for kind, found in listed.items()}
    if "coarse" in judged and search.sources["coarse"] is not search.sources["optical"]:
        place = {"catalogue": search.sources["coarse"].address}
        judged["coarse"] = judged["coarse"]._replace(candidates=[_change_scene(one, place) for one in judged["coarse"].candidates])
    named = iter(give_unique_ids([one for found in judged.values() for one in found.candidates]))
    return {kind: found._replace(candidates=[next(named) for _ in found.candidates]) for kind, found in judged.items()}


def _split_kinds(scenes: Iterable[SceneRecord]) -> dict[Kind, list[SceneRecord]]:
    """The scenes of groups by where they were searched: those of another sensor than the fine ones state which share must be clear."""
    split: dict[Kind, list[SceneRecord]] = {}
    for scene in scenes:
        split.setdefault("optical" if scene.clear_share is None else "coarse", []).append(scene)
    return split


def _choose(search: Search, optical: Judged, sar: Judged) -> tuple[list[Triplet], list[Refused]]:
    """The triplets, by the user's table if there is one, and what none of them uses."""
    settings = search.settings
    if settings.table is None:
        return choose_triplets(optical.candidates, sar.candidates, ground=search.ground, settings=settings)
    rows = _read_table(settings)
    return choose_by_table(optical.candidates, sar.candidates, rows, skies=settings.skies)


def _read_table(settings: QuerySettings) -> tuple[Row, ...]:
    """The rows of the user's table of pairs; none if there is no table."""
    if settings.table is None:
        return ()
    if not settings.table.is_file():
        raise MissingError(f"pipeline.query.table {settings.table} does not exist: correct its path, or leave it out to pair by time")
    return parse_table(settings.table.read_text(), where=f"pipeline.query.table {settings.table}", inputs=settings.inputs)


def _warn_of_unknown(search: Search, listed: Mapping[Kind, Listed]) -> None:
    """Log names in the settings that nothing answers to: they may be misspelt."""
    settings = search.settings
    for kind, asked in (
        ("optical_collections", settings.optical_collections),
        ("sar_collections", settings.sar_collections),
        ("coarse_collections", settings.coarse_collections),
    ):
        searched = {name for found in listed.values() for name in found.collections}
        for name in asked:
            if name not in searched:
                logger.warning("pipeline.query.%s: the catalogue has no %r, it is passed over", kind, name)
    seen = {name for found in listed.values() for entry in found.items for name in _names_of(entry)}
    for name in settings.exclude:
        if name not in seen:
            logger.warning("pipeline.query.exclude: no item found is called %r", name)
    for name in sorted({name for row in _read_table(settings) for name in row if name} - seen):
        logger.warning("pipeline.query.table: no product found is called %r, its row is passed over", name)


def _warn_of_pixels(settings: QuerySettings, listed: Listed) -> None:
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


def _open_sources(stack: contextlib.ExitStack, settings: QuerySettings) -> dict[Kind, Source]:
    """Where optical and where SAR scenes are searched, open as long as the stack."""

    def open_source(address: str) -> Source:
        return Source(address, stack.enter_context(open_catalogue(address, max_requests=settings.max_requests)))

    if settings.source == "gaofen":
        images = Source(settings.catalogue, None)
        return {"optical": images, "sar": Source(settings.sar_catalogue, None) if settings.sar_catalogue else images}
    optical, address = open_source(settings.catalogue), settings.sar_catalogue
    if address is None or address == settings.catalogue:
        return {"optical": optical, "sar": optical}
    holds_products = Path(address).is_dir() and not (Path(address) / "catalog.json").is_file()
    return {"optical": optical, "sar": Source(address, None) if holds_products else open_source(address)}


def _list_items(search: Search, kind: Kind) -> Listed:
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


def _judge_all(search: Search, listed: Mapping[Kind, Listed]) -> tuple[Judged, Judged]:
    """The optical and the SAR acquisitions under ids that no two of them share, and what is refused of each."""
    optical, sar = _judge_items(search, listed["optical"]), _judge_items(search, listed["sar"])
    place = search.sources["sar"].address
    if search.sources["sar"] is not search.sources["optical"]:  # the lock names only the optical place, so each SAR scene names its own
        sar = sar._replace(candidates=[_change_scene(one, {"catalogue": place}) for one in sar.candidates])
    named, count = give_unique_ids([*optical.candidates, *sar.candidates]), len(optical.candidates)
    return optical._replace(candidates=named[:count]), sar._replace(candidates=named[count:])


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


def _measure_covers(search: Search, optical: Judged, sar: Judged | None, *, kind: Kind = "optical") -> Judged:
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


def _list_used(triplets: Sequence[Triplet]) -> dict[Kind, list[SceneRecord]]:
    """The scenes of the triplets by kind."""
    optical = [one.scene for triplet in triplets for one in (triplet.cloudy, triplet.clear, *triplet.around)]
    return {"optical": optical, "sar": [triplet.sar.scene for triplet in triplets]}


def _probe_used(search: Search, used: Mapping[Kind, Sequence[SceneRecord]]) -> tuple[dict[str, SceneRecord], list[Entry]]:
    """The scenes by id, with what servers say of their files if the settings ask for that."""
    scenes = {scene.id: scene for kind in used for scene in used[kind]}
    if not search.settings.probe:
        return scenes, []
    remote = {kind: source for kind, source in search.sources.items() if not source.is_local}
    return probe_scenes(scenes, {scene.id: source.resolver for kind, source in remote.items() for scene in used[kind]})


def _to_entries(area: str, lock: Lock, notes: Iterable[Entry]) -> list[Entry]:
    """The ledger: every item of the lock, used or not, and further notes."""
    scenes = [*lock.scenes.values(), *([lock.dem] if lock.dem else [])]
    used = [Entry("query", area, scene.id, item.item, "", "used") for scene in scenes for item in scene.items]
    refused = [Entry("query", area, "", entry.item, "", entry.status, entry.reason) for entry in lock.refused]
    return [*used, *refused, *(note._replace(area=area) for note in notes)]
