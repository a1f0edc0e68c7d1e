"""Search the scenes of one area and pair them: SAR, cloudy input, clear target.

Reads: catalogues, a folder of products, a dataset or a frozen lock; of the optical scenes a small overview of their classification. Writes:
the lock, with every candidate that was not used and why, and the ledger beside it. The same folder gives the same lock, byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

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
    role_of,
    to_refusals,
)
from sereno.pipeline.areas import Ground, cut_footprint, to_bboxes, to_ground
from sereno.pipeline.bands import L1C_BANDS, SCL
from sereno.pipeline.catalogue import Catalogue, Period, open_catalogue, search_items, select_collections
from sereno.pipeline.config import QuerySettings, parse_settings
from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError
from sereno.pipeline.http import Budget, hide_secrets, make_session
from sereno.pipeline.items import to_item_record
from sereno.pipeline.ledger import Entry, ledger_of, write_ledger
from sereno.pipeline.pairing import choose_triplets, find_fault, find_gap, select_hopeful, to_pairs
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, SceneRecord, Status
from sereno.pipeline.signing import Resolver, check_credentials

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

Kind = Literal["optical", "sar"]

PROBES: Final = 8
"""Servers are asked for so many files at the same time."""
PROBE_TRIES: Final = 2
"""At most so many requests per file on average: what a probe tells is not worth more."""
LONGEST_PROBE_PAUSE_S: Final = 2.0
"""Longest pause between two tries of a probe, seconds."""


def query_pairs(area: str, output: Path, settings: QuerySettings) -> None:
    """Write the lock of `area` to `output`, and beside it the ledger of every item.

    Raises:
        ConfigError: the settings name no such area, its ground is no grid, or a key for reading is missing.
        CatalogueError: a catalogue does not answer, or has none of the collections.
        MissingError: a folder is not there, or nothing forms a pair.
    """
    started = monotonic()
    logger.info("query %s: %s %s", area, "taking the lock from" if settings.source == "lock" else "searching", settings.catalogue)
    lock, notes = _make_lock(area, settings)
    write_ledger(ledger_of(output), _to_entries(area, lock, notes))
    store.write_json(output, lock.model_dump(mode="json"))
    counts = f"{len(lock.pairs)} pairs of {len(lock.scenes)} scenes, {len(lock.refused)} items refused"
    logger.info("query %s: %s, %.1f s", area, counts, monotonic() - started)


def _make_lock(area: str, settings: QuerySettings) -> tuple[Lock, list[Entry]]:
    if settings.source == "sen12mscr":
        from sereno.pipeline.sensors.sen12mscr import list_pairs  # it reads images, which a search never does

        return list_pairs(Path(settings.catalogue), area), []
    return (read_frozen_lock(area, Path(settings.catalogue)), []) if settings.source == "lock" else _search_pairs(area, settings)


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
    lost = sorted({name for pair in lock.pairs for name in (pair.sar, pair.cloudy, pair.clear)} - set(lock.scenes))
    renamed = sorted(name for name, scene in lock.scenes.items() if scene.id != name)
    if lost or renamed or not lock.pairs:
        raise ConfigError(
            f"frozen lock {path} is damaged: {len(lock.pairs)} pairs, scenes lost: {', '.join(lost) or 'none'}, under another name: "
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


Sources = Mapping[Kind, Source]


class Listed(NamedTuple):
    """What one search found, before anything is judged."""

    items: list[tuple[ItemRecord, dict[str, Any] | None] | Refused]
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
    if area not in settings.areas:
        raise ConfigError(f"area {area!r} is not in pipeline.query.areas, which has {', '.join(sorted(settings.areas))}")
    ground = to_ground(settings.areas[area], settings.resolution_m)
    with contextlib.ExitStack() as stack:
        sources = _open_sources(stack, settings)
        listed = {kind: _list_items(kind, source, ground, settings) for kind, source in sources.items()}
        optical, sar = _judge_all(listed, sources, (ground, settings))
        measured = _measure_covers(optical, sar, (ground, sources["optical"].resolver, settings))
        triplets, unpaired = choose_triplets(measured.candidates, sar.candidates, settings)
        refused = [*measured.refused, *sar.refused, *unpaired]
        if not triplets:
            raise MissingError(_describe_failure(area, {kind: len(found.items) for kind, found in listed.items()}, refused))
        scenes = {part.scene.id: part.scene for triplet in triplets for part in triplet}
        scenes, unknown = _probe_scenes(scenes, sources) if settings.probe else (scenes, [])
    lock = Lock(
        area=area,
        catalogue=settings.catalogue,
        searched=None if all(source.is_local for source in sources.values()) else _now(),
        grid=GridRecord.from_geobox(ground.geobox),
        outline=ground.outline_json,
        scenes=dict(sorted(scenes.items())),
        pairs=to_pairs(triplets),
        refused=to_refusals(refused),
    )
    return lock, [*(found.note for found in listed.values()), *measured.notes, *unknown]


def _with_catalogue(judged: Judged, address: str) -> Judged:
    """The scenes with the place where their assets are found, since it is not that of the lock."""
    return judged._replace(
        candidates=[one._replace(scene=one.scene.model_copy(update={"catalogue": address})) for one in judged.candidates]
    )


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _open_sources(stack: contextlib.ExitStack, settings: QuerySettings) -> Sources:
    """Where optical and where SAR scenes are searched, open as long as the stack."""
    optical = Source(settings.catalogue, stack.enter_context(open_catalogue(settings.catalogue, max_requests=settings.max_requests)))
    address = settings.sar_catalogue
    if address is None or address == settings.catalogue:
        return {"optical": optical, "sar": optical}
    if Path(address).is_dir() and not (Path(address) / "catalog.json").is_file():
        return {"optical": optical, "sar": Source(address, None)}
    return {"optical": optical, "sar": Source(address, stack.enter_context(open_catalogue(address, max_requests=settings.max_requests)))}


def _list_items(kind: Kind, source: Source, ground: Ground, settings: QuerySettings) -> Listed:
    margin = timedelta(0) if kind == "optical" else timedelta(days=settings.max_gap_sar_days)
    period, started = to_period(settings, margin), monotonic()
    if source.catalogue is None:
        return _list_products(Path(source.address), period)
    preset = source.catalogue.preset
    asked, known = (
        (settings.optical_collections, preset.optical_collections)
        if kind == "optical"
        else (settings.sar_collections, preset.sar_collections)
    )
    collections = select_collections(source.catalogue, asked or known)
    found, statistics = search_items(source.catalogue, collections, to_bboxes(ground.geobox), period)
    items = [_to_record(kind, item, source.catalogue) for item in found]
    words = f"{kind} search: {len(items)} items in {statistics.pages} pages, {statistics.repeats} repeated, {statistics.requests} requests"
    reason = "; ".join([words, *statistics.warnings])
    note = Entry("query", "", "", "", "search", "used", reason, statistics.retries, 0, monotonic() - started)
    return Listed(items, collections, note)


def _list_products(folder: Path, period: Period) -> Listed:
    """The Sentinel-1 products of a folder that were taken within `period`, and those that cannot be used."""
    from sereno.pipeline.sensors.sentinel1_safe import list_products  # it reads products, which a search never does

    first, last = period
    listing = list_products(folder)
    moments = [datetime.fromisoformat(record.time) for record, _ in listing.items]
    inside = [(first is None or first <= moment) and (last is None or moment <= last) for moment in moments]
    chosen = [entry for entry, is_inside in zip(listing.items, inside, strict=True) if is_inside]
    refused = [Refused((name,), "sar", reason, Cause.ITEM) for name, reason in listing.refused]
    words = f"sar search: {len(chosen)} of {len(listing.items)} usable products of {folder} were taken within start..end"
    return Listed([*chosen, *refused], (), Entry("query", "", "", "", "search", "used", words))


def _to_record(kind: Kind, item: dict[str, Any], catalogue: Catalogue) -> tuple[ItemRecord, dict[str, Any] | None] | Refused:
    try:
        record = to_item_record(item, base_url=catalogue.base_url, offset_sources=catalogue.preset.offset_sources)
    except (ConfigError, DataError, MissingError) as error:
        status: Status = "missing" if isinstance(error, MissingError) else "refused"
        return Refused((str(item.get("id")),), "sar" if kind == "sar" else "cloudy", str(error), Cause.ITEM, status)
    return record, item.get("geometry")


def to_period(settings: QuerySettings, margin: timedelta) -> Period:
    """First and last moment of a search, UTC, widened by `margin`; a bare day as the end means all of that day."""

    def to_moment(value: date | None, at: time) -> datetime | None:
        if value is None:
            return None
        moment = value if isinstance(value, datetime) else datetime.combine(value, at)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

    start, end = to_moment(settings.start, time.min), to_moment(settings.end, time(23, 59, 59))
    return start and start - margin, end and end + margin


def _judge_all(listed: Mapping[Kind, Listed], sources: Sources, how: tuple[Ground, QuerySettings]) -> tuple[Judged, Judged]:
    """The optical and the SAR acquisitions under ids that no two of them share, and what is refused of each."""
    optical, sar = (_judge_items(listed[kind], *how) for kind in ("optical", "sar"))
    if sources["sar"] is not sources["optical"]:
        sar = _with_catalogue(sar, sources["sar"].address)
    named, count = give_unique_ids([*optical.candidates, *sar.candidates]), len(optical.candidates)
    return optical._replace(candidates=named[:count]), sar._replace(candidates=named[count:])


def _judge_items(listed: Listed, ground: Ground, settings: QuerySettings) -> Judged:
    """The acquisitions that the items make and that cover enough of the area, and the refusals of all other items."""
    read = [entry for entry in listed.items if not isinstance(entry, Refused)]
    refused = [entry for entry in listed.items if isinstance(entry, Refused)]
    expected = _list_bands([record for record, _ in read])
    found: list[Found] = []
    for record, footprint in read:
        fault = find_fault(record, settings) or find_gap(record, expected[record.sensor])
        try:
            found += [] if fault else [Found(record, cut_footprint(footprint, ground))]
        except DataError as error:
            fault = _refuse_item(record, str(error), Cause.ITEM, settings)
        refused += [fault] if fault else []
    unique, repeated = drop_duplicates(found, listed.collections)
    duplicates = [_refuse_item(one.record, reason, Cause.DUPLICATE, settings)._replace(status="duplicate") for one, reason in repeated]
    candidates, apart = assemble_scenes(unique, ground, min_overlap=settings.min_overlap, clear_cover_pct=settings.clear_cover_pct)
    return Judged(candidates, [*refused, *duplicates, *apart])


def _list_bands(records: Iterable[ItemRecord]) -> dict[str, frozenset[str]]:
    """The bands that items of each sensor hold, all items together: a catalogue may lack some altogether."""
    held: dict[str, frozenset[str]] = {}
    for record in records:
        held[record.sensor] = held.get(record.sensor, frozenset()) | (record.assets.keys() & set(L1C_BANDS))
    return held


def _refuse_item(record: ItemRecord, reason: str, cause: Cause, settings: QuerySettings) -> Refused:
    return Refused((record.item,), role_of(record.sensor, record.cloud_cover_pct, settings.clear_cover_pct), reason, cause)


def _measure_covers(optical: Judged, sar: Judged, how: tuple[Ground, Resolver, QuerySettings]) -> Judged:
    """The optical scenes with their cloud cover over the area, and without those that have too little data there.

    Measured are those that can still take part, whatever their cover. Where the classification is lost the catalogue's word stays.
    """
    from sereno.pipeline.cover import measure_covers  # it reads images, which a search without it never does

    ground, resolver, settings = how
    if settings.cover_from == "catalogue":
        return optical
    hopeful = select_hopeful(optical.candidates, sar.candidates, settings)
    _check_readable(resolver, hopeful)
    covers = measure_covers([one.scene for one in hopeful], ground, resolver, settings.cover_pixel_m)
    measured = {one.scene.id: cover for one, cover in zip(hopeful, covers, strict=True)}
    candidates, refused = [], list(optical.refused)
    for one in optical.candidates:
        cover = measured.get(one.scene.id)
        if cover is None or cover.valid_share is None:
            candidates.append(one)
        elif cover.valid_share < settings.min_overlap:
            reason = f"has data on {cover.valid_share:.1%} of the area by SCL, needed {settings.min_overlap:.1%}"
            refused.append(refuse(one, role_of(one.scene.sensor, cover.cloud_pct, settings.clear_cover_pct), reason, Cause.OVERLAP))
        else:
            facts = {"cloud_cover_pct": cover.cloud_pct, "cover_source": "scl"}
            candidates.append(one._replace(scene=one.scene.model_copy(update=facts)))
    known = sum(cover.valid_share is not None for cover in covers)
    logger.info("cloud cover of %d scenes measured over the area, of %d others not readable", known, len(covers) - known)
    return Judged(candidates, refused, tuple(_to_note(name, entry) for name, cover in measured.items() for entry in cover.entries))


def _check_readable(resolver: Resolver, candidates: Iterable[Candidate]) -> None:
    try:
        check_credentials(resolver, [item.assets[SCL].href for one in candidates for item in one.scene.items if SCL in item.assets])
    except ConfigError as error:
        raise ConfigError(f"{error}; or set pipeline.query.cover_from to catalogue, which searches without reading") from None


def _to_note(scene: str, entry: Entry) -> Entry:
    """The line of a classification; where it is lost, what is done instead."""
    instead = f"{entry.reason}; the catalogue's cloud cover is taken"
    return entry._replace(scene=scene, reason=entry.reason if entry.status == "used" else instead)


class Probe(NamedTuple):
    """What a server says of a file."""

    etag: str | None
    """Its ETag; None if it states none."""
    size_bytes: int | None
    """Its size; None if it states none."""
    fault: str = ""
    """Why nothing is known."""


Files = dict[tuple[str, str], Probe]
"""What servers say of files, by the catalogue of their scene and their address."""


def _probe_scenes(scenes: Mapping[str, SceneRecord], sources: Sources) -> tuple[dict[str, SceneRecord], list[Entry]]:
    """The scenes with size and ETag of the files on web servers that have no checksum, and lines on the files that do not tell."""
    asked: dict[tuple[str, str], Resolver] = {}
    for scene in scenes.values():
        source = sources["sar" if scene.sensor.startswith("sentinel1") else "optical"]
        assets = [] if source.is_local else [asset for item in scene.items for asset in item.assets.values() if asset.checksum is None]
        webs = [asset.href for asset in assets if not source.resolver(asset.href).startswith("/")]
        asked |= {(scene.catalogue, href): source.resolver for href in webs}
    budget = Budget(PROBE_TRIES * len(asked), "the rest is not asked")
    session = make_session(budget, pause=lambda seconds: sleep(min(seconds, LONGEST_PROBE_PAUSE_S)))
    with session, ThreadPoolExecutor(PROBES) as executor:
        probes = executor.map(lambda entry: _probe(session, entry[0][1], entry[1]), asked.items())
        files = dict(zip(asked, probes, strict=True))
    notes = [
        Entry("query", "", name, item.item, band, "used", f"size and ETag are not known: {files[scene.catalogue, asset.href].fault}")
        for name, scene in scenes.items()
        for item in scene.items
        for band, asset in item.assets.items()
        if (scene.catalogue, asset.href) in files and files[scene.catalogue, asset.href].fault
    ]
    return {name: _with_files(scene, files) for name, scene in scenes.items()}, notes


def _probe(session: requests.Session, href: str, resolver: Resolver) -> Probe:
    """What the server of `href` says of it; a signature that is refused is renewed once."""
    import requests

    for renew in (False, True):
        address = resolver.to_web(href, renew=renew, method="HEAD")
        try:
            answer = session.head(address, headers={"Accept-Encoding": "identity"}, allow_redirects=True)
        except (requests.RequestException, CatalogueError) as error:
            return Probe(None, None, hide_secrets(str(error))[:200])
        if answer.status_code not in (requests.codes.unauthorized, requests.codes.forbidden):
            break
    if answer.status_code != requests.codes.ok:
        return Probe(None, None, f"the server answers HTTP {answer.status_code}")
    size = answer.headers.get("Content-Length", "")
    return Probe(answer.headers.get("ETag"), int(size) if size.isdigit() else None)


def _with_files(scene: SceneRecord, files: Files) -> SceneRecord:
    def complete(asset: AssetRecord) -> AssetRecord:
        probe = files.get((scene.catalogue, asset.href))
        if probe is None or asset.checksum is not None:
            return asset
        return asset.model_copy(update={"etag": probe.etag, "size_bytes": probe.size_bytes or asset.size_bytes})

    def complete_item(item: ItemRecord) -> ItemRecord:
        return item.model_copy(update={"assets": {name: complete(asset) for name, asset in item.assets.items()}})

    return scene.model_copy(update={"items": tuple(map(complete_item, scene.items))})


def _to_entries(area: str, lock: Lock, notes: Iterable[Entry]) -> list[Entry]:
    """The ledger: every item of the lock, used or not, and further notes."""
    used = [Entry("query", area, scene.id, item.item, "", "used") for scene in lock.scenes.values() for item in scene.items]
    refused = [Entry("query", area, "", entry.item, "", entry.status, entry.reason) for entry in lock.refused]
    return [*used, *refused, *(note._replace(area=area) for note in notes)]


def _describe_failure(area: str, counts: Mapping[Kind, int], refused: Sequence[Refused]) -> str:
    """One line: what was found, why it was refused, what to widen."""
    found = f"area {area!r}: no pair among {counts['optical']} optical and {counts['sar']} SAR items"
    if not refused:
        return f"{found}: widen the area or start..end"
    # What was merely not needed follows from the other refusals; of two causes as frequent, a missing partner was nearer to a pair.
    causes: Counter[Cause] = Counter(entry.cause for entry in refused)
    partner = (Cause.CLEAR_GAP, Cause.SAR_GAP)
    order = sorted(causes, key=lambda cause: (cause is not Cause.UNUSED, causes[cause], cause in partner), reverse=True)
    examples = {entry.cause: f"{'+'.join(entry.items)}: {entry.reason}" for entry in reversed(refused)}
    for cause in order:
        logger.info("query %s: %d refused, for example %s", area, causes[cause], examples[cause])
    return f"{found}; {causes[order[0]]} refused for one cause, for example {examples[order[0]]}; {order[0].value}"
