"""Tasks give the same results in the same order, wherever they run."""

import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import CatalogueError, DataError, MissingError
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.scheduler import run_tasks
from sereno.pipeline.sensors.sentinel2 import read_scene
from sereno.pipeline.signing import Resolver


def square(number: int) -> int:
    return number**2


def fail(number: int) -> int:
    raise DataError(f"number {number}")


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_threads_keep_the_order(workers: int) -> None:
    assert run_tasks([partial(square, number) for number in range(11)], "threads", workers) == [number**2 for number in range(11)]
    assert run_tasks([], "threads", workers) == []


def test_no_more_tasks_are_at_work_than_there_are_workers() -> None:
    lock, seen, at_work = threading.Lock(), [], []

    def watch(number: int) -> int:
        with lock:
            at_work.append(number)
            seen.append(len(at_work))
        threading.Event().wait(0.005)
        with lock:
            at_work.remove(number)
        return number

    assert run_tasks([partial(watch, number) for number in range(12)], "threads", 3) == list(range(12))
    assert max(seen) <= 3


@pytest.mark.parametrize("workers", [1, 4])
def test_a_fault_of_a_task_comes_out_as_it_is(workers: int) -> None:
    with pytest.raises(DataError, match="number 2"):
        run_tasks([partial(square, 1), partial(fail, 2), partial(square, 3)], "threads", workers)


def test_an_address_where_nobody_answers_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("sereno.pipeline.scheduler.CONNECT_S", 0.3)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(CatalogueError, match=rf"no dask scheduler answers at '{address}'.*pipeline.ingest.scheduler to `threads`"):
            run_tasks([partial(square, 1)], address, 2)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingError, match="needs the package distributed: install sereno with the extra `cluster`"):
        run_tasks([partial(square, 1)], "tcp://127.0.0.1:8786", 2)


@pytest.mark.filterwarnings("ignore")  # those of distributed and tornado are not ours
def test_a_cluster_reads_the_same_scene_as_threads(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    geobox = GeoBox((48, 48), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
    for number, band in enumerate(("B02", "B03", "B05")):
        profile = {"driver": "GTiff", "dtype": "uint16", "width": 48, "height": 48, "count": 1, "crs": "EPSG:32632"}
        values = np.random.default_rng(number).integers(1, 9000, (48, 48)).astype(np.uint16)
        with rasterio.open(tmp_path / f"{band}.tif", "w", **profile, transform=geobox.transform) as file:
            file.write(values, 1)
    facts = {"collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632", "bbox": (8, 45, 9, 46)}
    assets = {band: AssetRecord(href=f"{band}.tif") for band in ("B02", "B03", "B05", "B04")}
    item = ItemRecord(item="X", assets=assets, processing_baseline="05.09", **facts)
    scene = SceneRecord(id="s", sensor="sentinel2-l2a", time=item.time, items=(item,))
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp") as cluster:
        readings = [
            read_scene(scene, geobox, IngestSettings(bands=("B02", "B03", "B05"), scheduler=scheduler), Resolver(str(tmp_path)))
            for scheduler in ("threads", cluster.scheduler_address)
        ]
        with pytest.raises(DataError, match="number 2"):
            run_tasks([partial(square, 1), partial(fail, 2)], cluster.scheduler_address, 2)
    assert readings[0].scene.identical(readings[1].scene)
    assert [entry._replace(seconds=0) for entry in readings[0].entries] == [entry._replace(seconds=0) for entry in readings[1].entries]
