"""The step `ingest`: the lock's scene is stored with what is known of it, or refused in one line with nothing left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasters import to_geobox, write_raster

from sereno.pipeline.bands import SCL, SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.imagers import IMAGERS
from sereno.pipeline.ingest import find_reader, ingest_scene
from sereno.pipeline.ledger import ledger_of, read_ledger
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, SceneRecord, Sensor
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.sensors.sen12mscr import list_pairs
from sereno.pipeline.store import open_dataset, read_manifest, verify_store

SAMPLES = os.environ.get("SERENO_SAMPLES")
GRID = GeoBox((64, 64), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
SETTINGS = IngestSettings(bands=("B02", "B05"), attempts=2, margin_px=4)


def write(path: Path, values: Any, step: int) -> None:
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    write_raster(path, values, to_geobox(values, step, origin=(500_000, 5_000_000)), **tiles)


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
    write(folder / "SCL.tif", np.full((32, 32), 4, np.uint8), 20)
    for name in ("VV", "VH"):
        write(folder / f"{name}.tif", rng.gamma(4.4, 0.02, (64, 64)).astype(np.float32), 10)
    scenes = {
        "S2": make_scene("S2", "S2A_X", "sentinel2-l2a", (*SETTINGS.bands, SCL), processing_baseline="05.09"),
        "S1": make_scene("S1", "S1A_X", "sentinel1-rtc", ("VV", "VH")),
    }
    lock = Lock(area="west", catalogue=str(folder), grid=GridRecord.from_geobox(GRID), scenes=scenes, pairs=(), refused=())
    (folder / "lock.json").write_text(json.dumps(lock.model_dump(mode="json")))
    return folder / "lock.json"


@pytest.mark.parametrize("sensor", [sensor for sensor in get_args(Sensor) if sensor != "dem"])
def test_every_sensor_of_the_lock_has_a_reader(sensor: Sensor) -> None:
    kind = "imager" if sensor in IMAGERS else sensor.partition("-")[0]
    assert find_reader(sensor).__module__.rpartition(".")[2].startswith(kind)


def test_elevation_models_are_refused_and_a_sensor_that_nobody_reads_is_our_own_fault() -> None:
    with pytest.raises(ConfigError, match="elevation models are no scenes"):
        find_reader("dem")
    with pytest.raises(AssertionError, match="unheard-of"):
        find_reader("unheard-of")  # type: ignore[arg-type]


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
    assert {name: entry.status for name, entry in entries.items()} == {"B02": "used", "B05": "missing", "SCL": "used", "": "missing"}
    assert {(entry.step, entry.area, entry.scene, entry.item) for entry in entries.values()} == {("ingest", "west", "S2", "S2A_X")}
    assert entries["B02"].bytes_read > 0.9 * (tmp_path / "B02.tif").stat().st_size - 2000
    assert read_manifest(tmp_path / "S2.json")["summary"]["refused"]


def change_lock(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_scene_of_two_items_has_a_line_for_each_of_their_assets(tmp_path: Path) -> None:
    values = np.full((64, 64), 2000, np.uint16)
    values[:, 30:] = 0

    def add_item(content: dict[str, Any]) -> None:
        items = content["scenes"]["S2"]["items"]
        first = json.loads(json.dumps(items[0])) | {"item": "S2A_W"}
        first["assets"]["B02"]["href"] = "west.tif"
        items.insert(0, first)

    lock = change_lock(make_lock(tmp_path), add_item)
    write(tmp_path / "west.tif", values, 10)
    ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS)
    lines = [(entry.item, entry.asset, entry.status) for entry in read_ledger(ledger_of(tmp_path / "S2.json"))]
    assert lines == [(item, asset, "used") for item in ("S2A_W", "S2A_X") for asset in ("", "B02", "B05", "SCL")]
    scene, summary = open_dataset(tmp_path / "S2.json"), read_manifest(tmp_path / "S2.json")["summary"]
    assert summary["item"] == "S2A_W+S2A_X"
    assert [item["share"] for item in summary["items"]] == [30 / 64, 34 / 64]
    assert (scene["data"].sel(band="B02").values[:, :30] == 1000).all()
    assert scene["valid"].values.all()


def test_a_scene_is_read_from_its_own_catalogue(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("VV", "VH"):
        (tmp_path / f"{name}.tif").rename(tmp_path / "other" / f"{name}.tif")
    change_lock(lock, lambda content: content["scenes"]["S1"].update(catalogue=str(tmp_path / "other")))
    ingest_scene(lock, "S1", tmp_path / "S1.json", SETTINGS)
    assert read_manifest(tmp_path / "S1.json")["summary"]["refused"] is None


def test_a_file_that_is_not_that_of_the_lock_is_not_used(tmp_path: Path) -> None:
    lock = change_lock(make_lock(tmp_path), lambda content: content["scenes"]["S2"]["items"][0]["assets"]["B02"].update(checksum="0" * 32))
    ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS)
    summary = read_manifest(tmp_path / "S2.json")["summary"]
    assert "B02: checksum differs from the lock: md5" in summary["refused"]
    ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS.model_copy(update={"check": "size"}))
    assert read_manifest(tmp_path / "S2.json")["summary"]["refused"] is None


def test_a_missing_key_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def move(content: dict[str, Any]) -> None:
        content["catalogue"] = "cdse"
        content["scenes"]["S2"]["items"][0]["assets"]["B02"]["href"] = "s3://eodata/B02.jp2"

    lock = change_lock(make_lock(tmp_path), move)
    with pytest.raises(ConfigError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ingest_scene(lock, "S2", tmp_path / "S2.json", SETTINGS)


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


def test_a_scene_has_the_bands_and_the_coarser_grid_of_its_record(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["scenes"]["S2"] |= {"bands": ["B05"], "zoom": 2}

    ingest_scene(change_lock(make_lock(tmp_path), change), "S2", tmp_path / "S2.json", SETTINGS)
    scene = open_dataset(tmp_path / "S2.json", kind="scene")
    assert (scene["data"].shape, scene["scl"].shape) == ((1, 32, 32), (32, 32))
    assert geobox_of(scene).transform == GRID.transform * Affine.scale(2)
    with rasterio.open(tmp_path / "B05.tif") as file:
        np.testing.assert_array_equal(scene["data"].values[0], file.read(1) - 1000)
