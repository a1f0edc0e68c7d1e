"""Step `ingest`: one scene of the lock is read, calibrated and stored, with validity apart from values and provenance beside them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.catalogue import open_catalogue
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.ledger import Entry, ledger_of, write_ledger
from sereno.pipeline.pairs import ItemRecord, Lock, SceneRecord, Sensor
from sereno.pipeline.scene import bands_of
from sereno.pipeline.sensors import sen12mscr, sentinel1, sentinel2
from sereno.pipeline.store import save_dataset

logger = logging.getLogger(__name__)

Reader = Callable[[ItemRecord, GeoBox, IngestSettings, Callable[[str], str]], xr.Dataset]

READERS: Final[Mapping[Sensor, Reader]] = {
    "sentinel2-l2a": sentinel2.read_scene,
    "sentinel1-rtc": sentinel1.read_scene,
    "sen12mscr-s2": sen12mscr.read_scene,
    "sen12mscr-s1": sen12mscr.read_scene,
}
"""Who reads which sensor: a new sensor is one file and one line here."""
FOLDER_SENSORS: Final[frozenset[Sensor]] = frozenset({"sen12mscr-s1", "sen12mscr-s2"})
"""Sensors whose catalogue is a plain folder."""
GDAL_SETTINGS: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not list the folder of a remote file
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": 32_768,  # the header of a cloud-optimised file in one request
    "VSI_CACHE": True,
}
"""How GDAL reads over HTTP; seconds and bytes."""


def ingest_scene(lock: Path, scene_id: str, output: Path, settings: IngestSettings) -> None:
    """Write scene `scene_id` of the lock at `lock` as a store of kind `scene` with manifest `output`.

    The manifest's summary holds the provenance, so that lost tiles, clamped values and warnings are seen without opening the store.

    Raises:
        MissingError: the lock, the scene in it, its catalogue or one of its bands is not there.
        DataError: an asset cannot be opened, or less than `settings.min_valid` of the ground is valid.
        CatalogueError: the catalogue does not answer.
        StoreError: the scene cannot be written.
    """
    started = time.monotonic()
    content = Lock.read(lock)
    record = content.scene(scene_id)
    logger.info("ingest %s: reading %d assets of %s", scene_id, sum(len(item.assets) for item in record.items), record.item)
    with rasterio.Env(**GDAL_SETTINGS), _open_assets(content, record) as resolve:
        scene = READERS[record.sensor](record.items[0], content.grid.to_geobox(), settings, resolve)
    facts: dict[str, Any] = scene.attrs["provenance"]
    check_valid(record, facts, settings)
    for warning in facts["warnings"]:
        logger.warning("ingest %s: %s", scene_id, warning)
    dim = "sar_band" if "sar_band" in scene.dims else "band"
    save_dataset(scene, output, kind="scene", summary={**facts, "scene": scene_id, "bands": list(bands_of(scene, dim))})
    items = [Entry("ingest", content.area, scene_id, item.item, "", "used") for item in record.items]
    write_ledger(ledger_of(output), items)
    logger.info(
        "ingest %s: %.1f %% valid, %d values clamped, %d tiles lost, %.1f s",
        scene_id,
        100 * facts["valid_share"],
        facts["n_clamped"],
        len(facts["lost"]),
        time.monotonic() - started,
    )


def check_valid(record: SceneRecord, facts: Mapping[str, Any], settings: IngestSettings) -> None:
    """Refuse a scene with too little valid ground.

    Raises:
        DataError: with the share seen, the share wanted, and what was lost.
    """
    if facts["valid_share"] < settings.min_valid:
        lost = f" ({len(facts['lost'])} tiles cannot be read, the first: {facts['lost'][0]['reason']})" if facts["lost"] else ""
        raise DataError(
            f"scene {record.id}: {facts['valid_share']:.1%} of the ground is valid{lost}, pipeline.ingest.min_valid wants "
            f"{settings.min_valid:.1%}: lower that, or name {record.item} in pipeline.query.exclude"
        )


@contextlib.contextmanager
def _open_assets(lock: Lock, record: SceneRecord) -> Iterator[Callable[[str], str]]:
    """A function that turns an asset's address in the lock into what GDAL opens."""
    if record.sensor in FOLDER_SENSORS:
        folder = Path(lock.catalogue)
        if not folder.is_dir():
            raise MissingError(
                f"folder {folder} of {record.item} does not exist: set pipeline.query.catalogue and run the query step again"
            )
        yield lambda href: str(folder / href)
    else:
        with open_catalogue(lock.catalogue) as catalogue:
            yield catalogue.resolver
