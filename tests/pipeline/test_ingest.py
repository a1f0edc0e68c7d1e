"""The step `ingest`: the lock's scene is stored with what is known of it, or refused in one line with nothing left behind."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.ingest import READERS, ingest_scene
from sereno.pipeline.ledger import ledger_of, read_ledger
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, SceneRecord, Sensor
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.sensors.sen12mscr import list_pairs
from sereno.pipeline.store import open_dataset, read_manifest, verify_store

SAMPLES = os.environ.get("SERENO_SAMPLES")
GRID = GeoBox((64, 64), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
SETTINGS = IngestSettings(bands=("B02", "B05"), attempts=2, margin_px=4)


def write(path: Path, values: Any, step: int) -> None:
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "width": values.shape[1],
        "height": values.shape[0],
        "count": 1,
        "crs": "EPSG:32632",
    }
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    with rasterio.open(path, "w", **profile, **tiles, transform=Affine(step, 0, 500_000, 0, -step, 5_000_000)) as file:
        file.write(values, 1)


def make_scene(name: str, item: str, sensor: Sensor, bands: tuple[str, ...], **facts: Any) -> SceneRecord:
    common = {"collection": "c", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632", "bbox": (8, 45, 9, 46)}
    assets = {band: AssetRecord(href=f"{band}.tif") for band in bands}
    record = ItemRecord(item=item, sensor=sensor, assets=assets, **common, **facts)
    return SceneRecord(id=name, sensor=sensor, time=record.time, items=(record,))


def make_lock(folder: Path) -> Path:
    """A lock with one optical and one SAR scene whose assets lie beside it."""
    rng = np.random.default_rng(4)
    gsd_m = {band.name: band.gsd_m for band in SENTINEL2_BANDS}
    for name in SETTINGS.bands:
        write(folder / f"{name}.tif", rng.integers(1100, 9000, (64 * 10 // gsd_m[name],) * 2).astype(np.uint16), gsd_m[name])
    for name in ("VV", "VH"):
        write(folder / f"{name}.tif", rng.gamma(4.4, 0.02, (64, 64)).astype(np.float32), 10)
    scenes = {
        "S2": make_scene("S2", "S2A_X", "sentinel2-l2a", SETTINGS.bands, processing_baseline="05.09"),
        "S1": make_scene("S1", "S1A_X", "sentinel1-rtc", ("VV", "VH")),
    }
    lock = Lock(area="west", catalogue=str(folder), grid=GridRecord.from_geobox(GRID), scenes=scenes, pairs=(), refused=())
    (folder / "lock.json").write_text(json.dumps(lock.model_dump(mode="json")))
    return folder / "lock.json"


def test_every_sensor_of_the_lock_has_a_reader() -> None:
    assert set(READERS) == set(get_args(Sensor))


def test_an_optical_scene_is_stored_with_its_provenance(tmp_path: Path) -> None:
    ingest_scene(make_lock(tmp_path), "S2", tmp_path / "S2.json", SETTINGS)
    scene, summary = open_dataset(tmp_path / "S2.json", kind="scene"), read_manifest(tmp_path / "S2.json")["summary"]
    with rasterio.open(tmp_path / "B02.tif") as file:
        np.testing.assert_array_equal(scene["data"].sel(band="B02"), file.read(1) - 1000)
    assert geobox_of(scene) == GRID
    assert summary["bands"] == ["B02", "B05"]
    assert (summary["item"], summary["offset"], summary["n_clamped"], summary["valid_share"], summary["lost"]) == (
        "S2A_X",
        -1000,
        0,
        1.0,
        [],
    )
    assert verify_store(tmp_path / "S2.json") > 0


def test_a_sar_scene_is_stored_with_its_margin(tmp_path: Path) -> None:
    ingest_scene(make_lock(tmp_path), "S1", tmp_path / "S1.json", SETTINGS)
    scene = open_dataset(tmp_path / "S1.json", kind="scene")
    assert scene["data"].dtype == np.int16
    assert scene["valid"].shape == (72, 72)
    np.testing.assert_array_equal(np.pad(np.ones((64, 64), bool), 4), scene["valid"])


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    for name in ("a", "b"):
        ingest_scene(lock, "S2", tmp_path / name / "S2.json", SETTINGS)
    assert (tmp_path / "a" / "S2.json").read_bytes() == (tmp_path / "b" / "S2.json").read_bytes()


def test_a_corrupt_tile_is_listed_in_the_manifest_and_invalid_in_the_scene(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    content = bytearray((tmp_path / "B02.tif").read_bytes())
    content[-300:-260] = b"\xff" * 40  # inside the last tile; GDAL does not notice every damage, but this one
    (tmp_path / "B02.tif").write_bytes(content)
    ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS)
    (lost,) = read_manifest(tmp_path / "S2.json")["summary"]["lost"]
    assert lost["asset"] == "B02"
    assert lost["reason"].startswith("rows 48-63, columns 48-63: ")
    expected = np.ones((64, 64), bool)
    expected[48:, 48:] = False
    np.testing.assert_array_equal(open_dataset(tmp_path / "S2.json")["valid"], expected)


def test_a_scene_with_too_little_valid_ground_is_written_as_refused_with_the_share(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    values = np.zeros((64, 64), np.uint16)
    values[:, :6] = 2000
    write(tmp_path / "B02.tif", values, 10)
    ingest_scene(lock, "S2", tmp_path / "out" / "S2.json", SETTINGS.model_copy(update={"min_valid": 0.1}))
    summary = read_manifest(tmp_path / "out" / "S2.json", kind="scene")["summary"]
    assert summary["refused"] == "9.4% of the ground is valid, pipeline.ingest.min_valid wants 10.0%"
    scene = open_dataset(tmp_path / "out" / "S2.json")
    assert not scene["valid"].values.any()
    assert not scene["data"].values.any()


def test_an_unknown_scene_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="scene 'S9' is not in the lock of area 'west'"):
        ingest_scene(make_lock(tmp_path), "S9", tmp_path / "S9.json", SETTINGS)


def test_a_file_that_is_gone_is_in_the_ledger_and_the_run_goes_on(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    (tmp_path / "B05.tif").unlink()
    ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS)
    entries = {entry.asset: entry for entry in read_ledger(ledger_of(tmp_path / "S2.json"))}
    assert {name: entry.status for name, entry in entries.items()} == {"B02": "used", "B05": "missing", "": "missing"}
    assert {(entry.step, entry.area, entry.scene, entry.item) for entry in entries.values()} == {("ingest", "west", "S2", "S2A_X")}
    assert entries["B02"].bytes_read > 0.9 * (tmp_path / "B02.tif").stat().st_size - 2000
    assert read_manifest(tmp_path / "S2.json")["summary"]["refused"]


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
def test_the_real_triplet_goes_from_lock_to_stored_scenes(tmp_path: Path) -> None:
    area, folder = "ROIs1970_fall_139", Path(str(SAMPLES)) / "sen12mscr" / "glfcr"
    lock = list_pairs(folder, area)
    (tmp_path / "lock.json").write_text(json.dumps(lock.model_dump(mode="json")))
    for kind, name in (("s1", "s1"), ("s2_cloudy", "s2_cloudy"), ("s2", "s2_cloudfree")):
        output = tmp_path / f"{kind}.json"
        ingest_scene(tmp_path / "lock.json", f"{area}.{kind}", output, IngestSettings())
        with rasterio.open(folder / name / f"{area}_p839.tif") as file:
            values = file.read()
        stored = open_dataset(output, kind="scene")["data"].values
        np.testing.assert_allclose(stored, values * 100 if kind == "s1" else values, atol=0.51 if kind == "s1" else 0)


def test_a_dataset_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    record = make_scene("r", "r/s2", "sen12mscr-s2", ())
    lock = Lock(area="r", catalogue=str(tmp_path / "gone"), grid=GridRecord.from_geobox(GRID), scenes={"r": record}, pairs=(), refused=())
    (tmp_path / "lock.json").write_text(json.dumps(lock.model_dump(mode="json")))
    with pytest.raises(MissingError, match=r"folder .*gone of c does not exist"):
        ingest_scene(tmp_path / "lock.json", "r", tmp_path / "r.json", SETTINGS)
