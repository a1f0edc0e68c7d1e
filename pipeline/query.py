"""Search the scenes of one area and pair them: SAR, cloudy input, clear target; or form the groups of other tasks.

Reads: catalogues, a folder of products, a dataset or a frozen lock; of the optical scenes a small overview of their classification. Writes:
the lock, with every candidate that was not used and why, and the ledger beside it. The same folder gives the same lock, byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from sereno.pipeline import store
from sereno.pipeline.acquisitions import Refused, to_refusals
from sereno.pipeline.advice import Aim, Kind, describe_failure
from sereno.pipeline.areas import Ground, to_ground
from sereno.pipeline.config import Area, QuerySettings, TaskName, check_query, parse_settings
from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.grouping import find_grouper, find_ratio, group_two_sensors, to_fine_ground
from sereno.pipeline.ledger import Entry, ledger_of, write_ledger
from sereno.pipeline.pairing import Triplet, choose_triplets, to_pairs
from sereno.pipeline.pairs import GridRecord, Group, Lock, Pair, SceneRecord
from sereno.pipeline.scouting import (
    Judged,
    Search,
    judge_kinds,
    list_items,
    measure_clouds,
    open_sources,
    probe_used,
    read_table,
    warn_of_pixels,
    warn_of_unknown,
)
from sereno.pipeline.table import choose_by_table

logger = logging.getLogger(__name__)


def query_pairs(area: str, output: Path, settings: QuerySettings, *, dem_margin_m: float = 0.0, task: TaskName = "cloud-removal") -> None:
    """Write the lock of `area` to `output`, and beside it the ledger of every item.

    Scenes form pairs for cloud removal, and groups for any other `task` (`sereno.pipeline.grouping`). Where the settings ask
    for elevation models they are searched as far as `dem_margin_m` around the area.

    Raises:
        ConfigError: the settings do not serve the task or name no such area, its ground is no grid, or a key for reading is missing.
        CatalogueError: a catalogue does not answer, or has none of the collections.
        MissingError: a folder is not there, or nothing forms a pair.
    """
    check_query(settings, task)
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
        check_frozen_lock(lock, settings, task)
        return lock, []
    if settings.source == "sen12mscr":
        from sereno.pipeline.sensors.sen12mscr import list_pairs  # it reads images, which a search never does

        return list_pairs(Path(settings.catalogue), area, skies=settings.skies if settings.inputs == "simulated" else 0), []
    if settings.source == "cubes":
        from sereno.pipeline.sensors.cube import list_cube  # it reads cubes, which a search never does

        return list_cube(Path(settings.catalogue), area), []
    return _search(area, settings, task)


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


def check_frozen_lock(lock: Lock, settings: QuerySettings, task: TaskName) -> None:
    """Refuse a frozen lock that lacks what is asked for.

    Raises:
        ConfigError: it is for another task, or has no series or no elevation models.
    """
    name = f"the frozen lock of area {lock.area!r} in {settings.catalogue}"
    if lock.task != task:
        raise ConfigError(
            f"{name} is for {lock.task}, but pipeline.task is {task}: set that to {lock.task}, or search again without 'source: lock'"
        )
    if settings.series and any(pair.before is None for pair in lock.pairs):
        raise ConfigError(
            f"{name} has pairs without scenes before and after them, which pipeline.query.series asks for: leave that out, or search again "
            "without 'source: lock'"
        )
    if settings.dem_catalogue is not None and lock.dem is None:
        raise ConfigError(
            f"{name} names no elevation models, which pipeline.query.dem_catalogue asks for: search again without 'source: lock', or name "
            "a GeoTIFF in pipeline.ingest.dem instead"
        )


class Formed(NamedTuple):
    """What the acquisitions of an area became."""

    pairs: tuple[Pair, ...]
    """For cloud removal."""
    groups: tuple[Group, ...]
    """For other tasks."""
    used: Mapping[Kind, Sequence[SceneRecord]]
    """The scenes that they name, by where they were searched."""
    refused: list[Refused]
    """Everything else."""
    notes: list[Entry]
    """Lines for the ledger."""


def _search(area: str, settings: QuerySettings, task: TaskName) -> tuple[Lock, list[Entry]]:
    """The lock of one search: list items, judge them, measure clouds, form pairs or groups, probe their files."""
    if area not in settings.areas:
        raise ConfigError(f"area {area!r} is not in pipeline.query.areas, which has {', '.join(sorted(settings.areas))}")
    ground = _to_ground(settings.areas[area], settings, task)
    with contextlib.ExitStack() as stack:
        search = Search(ground, open_sources(stack, settings, task), settings)
        listed = {kind: list_items(search, kind) for kind in search.sources}
        warn_of_unknown(search, listed)
        if task == "cloud-removal":  # others have fine bands as well
            warn_of_pixels(settings, listed["optical"])
        judged = judge_kinds(search, listed)
        formed = _form_pairs(search, judged) if task == "cloud-removal" else _form_groups(search, judged, task)
        if not formed.pairs and not formed.groups:
            for entry in to_refusals(formed.refused):  # a failed step leaves no ledger: its log is where the reasons are
                logger.info("query %s: %s as %s: %s: %s", area, entry.status, entry.role, entry.item, entry.reason)
            aim = Aim("pair" if task == "cloud-removal" else f"group for {task}", ground, settings)
            raise MissingError(describe_failure(area, aim, {kind: found.items for kind, found in listed.items()}, formed.refused))
        scenes, unknown = probe_used(search, formed.used)
    lock = Lock(
        area=area,
        catalogue=settings.catalogue,
        searched=None if all(source.is_local for source in search.sources.values()) else _tell_time(),
        grid=GridRecord.from_geobox(ground.geobox),
        outline=ground.outline_json,
        scenes=dict(sorted(scenes.items())),
        pairs=formed.pairs,
        task=task,
        groups=formed.groups,
        refused=to_refusals(formed.refused),
    )
    return lock, [*(found.note for found in listed.values()), *formed.notes, *unknown]


def _to_ground(area: Area, settings: QuerySettings, task: TaskName) -> Ground:
    """The area as the grid of pairs, or the fine grid of groups."""
    if task == "cloud-removal":
        return to_ground(area, settings.resolution_m)
    find_grouper(task)  # a task that nobody can search for is named before its ratio is asked
    return to_fine_ground(area, settings, find_ratio(task, settings))


def _form_pairs(search: Search, judged: Mapping[Kind, Judged]) -> Formed:
    """The pairs, by the user's table if there is one, and what none of them uses."""
    settings, sar = search.settings, judged["sar"]
    optical = measure_clouds(search, judged["optical"], sar)
    if settings.table is None:
        triplets, unpaired = choose_triplets(optical.candidates, sar.candidates, ground=search.ground, settings=settings)
    else:
        triplets, unpaired = choose_by_table(optical.candidates, sar.candidates, read_table(settings), skies=settings.skies)
    return Formed(
        pairs=to_pairs(triplets),
        groups=(),
        used=_list_used(triplets),
        refused=[*optical.refused, *sar.refused, *unpaired],
        notes=list(optical.notes),
    )


def _form_groups(search: Search, judged: Mapping[Kind, Judged], task: TaskName) -> Formed:
    """The groups of another task, with coarse images of another sensor where these were searched, and what none of them uses."""
    measured = {kind: measure_clouds(search, found, None, kind=kind) for kind, found in judged.items()}
    fine, settings = measured["optical"].candidates, search.settings
    if "coarse" in measured:
        grouped = group_two_sensors(fine, measured["coarse"].candidates, settings)
    else:
        grouped = find_grouper(task)(fine, settings)
    return Formed(
        pairs=(),
        groups=grouped.groups,
        used=_split_kinds(grouped.scenes.values()),
        refused=[*(one for found in measured.values() for one in found.refused), *grouped.refused],
        notes=[note for found in measured.values() for note in found.notes],
    )


def _split_kinds(scenes: Iterable[SceneRecord]) -> dict[Kind, list[SceneRecord]]:
    """The scenes of groups by where they were searched: those of another sensor than the fine ones state which share must be clear."""
    split: dict[Kind, list[SceneRecord]] = {}
    for scene in scenes:
        split.setdefault("optical" if scene.clear_share is None else "coarse", []).append(scene)
    return split


def _list_used(triplets: Sequence[Triplet]) -> dict[Kind, list[SceneRecord]]:
    """The scenes of the triplets by kind."""
    optical = [one.scene for triplet in triplets for one in (triplet.cloudy, triplet.clear, *triplet.around)]
    return {"optical": optical, "sar": [triplet.sar.scene for triplet in triplets]}


def _to_entries(area: str, lock: Lock, notes: Iterable[Entry]) -> list[Entry]:
    """The ledger: every item of the lock, used or not, and further notes."""
    scenes = [*lock.scenes.values(), *([lock.dem] if lock.dem else [])]
    used = [Entry("query", area, scene.id, item.item, "", "used") for scene in scenes for item in scene.items]
    refused = [Entry("query", area, "", entry.item, "", entry.status, entry.reason) for entry in lock.refused]
    return [*used, *refused, *(note._replace(area=area) for note in notes)]
