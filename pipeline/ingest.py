"""Step `ingest`: one scene of the lock is read, calibrated and stored, with validity apart from values and provenance beside them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, assert_never

from odc.geo.geobox import GeoBox

from sereno.pipeline.config import WHOLE, IngestSettings
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.groups import average_scene, to_coarse_grid, to_fine_grid
from sereno.pipeline.imagers import pixel_of
from sereno.pipeline.ledger import Entry, ledger_of, write_ledger
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import Lock, SceneRecord, Sensor
from sereno.pipeline.scene import bands_of
from sereno.pipeline.signing import Resolver, check_credentials, find_resolver
from sereno.pipeline.store import save_dataset

logger = logging.getLogger(__name__)

Reader = Callable[[SceneRecord, GeoBox, IngestSettings, Resolver], Reading]


def find_reader(sensor: Sensor) -> Reader:
    """Who reads a sensor: a new one is one file and two lines here. Only the one that is needed is imported."""
    match sensor:
        case "sentinel2-l2a" | "sentinel2-l1c":
            from sereno.pipeline.sensors.sentinel2 import read_scene
        case "sentinel1-rtc":
            from sereno.pipeline.sensors.sentinel1 import read_scene
        case "sentinel1-grd":
            from sereno.pipeline.sensors.sentinel1_grd import read_scene
        case "sentinel1-safe":
            from sereno.pipeline.sensors.sentinel1_safe import read_scene
        case "gaofen3":
            from sereno.pipeline.sensors.gaofen3 import read_scene
        case "gaofen-pms" | "gaofen-wfv" | "gaofen-wfv4":
            from sereno.pipeline.sensors.gaofen6 import read_scene
        case "sen12mscr-s1" | "sen12mscr-s2":
            from sereno.pipeline.sensors.sen12mscr import read_scene
        case "landsat-oli" | "landsat-tm" | "modis-09a1" | "modis-43a4":
            from sereno.pipeline.sensors.imager import read_scene
        case "cube":
            from sereno.pipeline.sensors.cube import read_scene
        case _:
            _refuse_sensor(sensor)
    return read_scene


def _refuse_sensor(sensor: Literal["dem"]) -> NoReturn:
    """Refuse what is no scene; mypy refuses a call with any other sensor, which then lacks a reader."""
    if sensor == "dem":
        raise ConfigError("elevation models are no scenes: `sereno dem` joins them")
    assert_never(sensor)


def ingest_scene(lock: Path, scene_id: str, output: Path, settings: IngestSettings) -> None:
    """Write scene `scene_id` of the lock at `lock` as a store of kind `scene` with manifest `output`, and its ledger beside it.

    It lies on the lock's grid, or on one of coarser pixels, and has the bands of the settings, or others, as its record says.

    The manifest's summary holds the provenance, so that lost tiles, clamped values and warnings are seen without opening the store. A scene
    with too little valid ground is written too, as refused: all of it is invalid.

    Raises:
        MissingError: the lock, the scene in it, its catalogue or one of its bands is not there.
        ConfigError: a key that reading its assets takes is missing.
        CatalogueError: assets cannot be read now; running again later goes on.
        StoreError: the scene cannot be written.
    """
    started = time.monotonic()
    content = Lock.read(lock)
    record = content.scene(scene_id)
    assets = [asset for item in record.items for asset in item.assets.values()]
    logger.info("ingest %s: reading up to %d assets of %s", scene_id, len(assets), record.item)
    resolver = find_resolver(record.catalogue or content.catalogue, record.items[0].collection)
    check_credentials(resolver, (asset.href for asset in assets))
    chosen = settings.model_copy(update={"bands": record.bands}) if record.bands else settings
    grid, steps = content.grid.to_geobox(), _count_steps(record, content)
    grid = to_fine_grid(grid, steps) if record.averaged else to_coarse_grid(grid, record.zoom)
    scene, entries = find_reader(record.sensor)(record, grid, chosen, resolver)
    scene = average_scene(scene, record.zoom * steps, record.clear_share) if record.averaged else scene
    facts: dict[str, Any] = scene.attrs["provenance"]
    for warning in facts["warnings"]:
        logger.warning("ingest %s: %s", scene_id, warning)
    if facts["refused"]:
        logger.warning("ingest %s: the scene is refused: %s", scene_id, facts["refused"])
    dim = "sar_band" if "sar_band" in scene.dims else "band"
    write_ledger(ledger_of(output), [entry._replace(area=content.area, scene=scene_id) for entry in entries])
    save_dataset(scene, output, kind="scene", summary={**facts, "scene": scene_id, "bands": list(bands_of(scene, dim))})
    _log_end(scene_id, facts, entries, time.monotonic() - started)


def _count_steps(record: SceneRecord, lock: Lock) -> int:
    """Points along each side of a pixel of the lock's grid at which another sensor is looked at: as many as it has pixels there."""
    if record.clear_share is None:
        return 1
    return max(1, math.ceil(abs(lock.grid.transform[4]) / pixel_of(record.sensor) - WHOLE))


def _log_end(scene_id: str, facts: Mapping[str, Any], entries: Sequence[Entry], seconds: float) -> None:
    logger.info(
        "ingest %s: %.1f %% valid, %d values clamped, %d losses, %d retries, %.1f MB read, %.1f s",
        scene_id,
        100 * facts["valid_share"],
        facts["n_clamped"],
        len(facts["lost"]),
        sum(entry.retries for entry in entries),
        sum(entry.bytes_read for entry in entries) / 1e6,
        seconds,
    )
