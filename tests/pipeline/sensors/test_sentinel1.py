"""RTC backscatter stays on its own grid, in centi-dB, and a zero is never a measurement."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from rasters import to_geobox, write_raster

from sereno.pipeline.config import IngestSettings, SpeckleSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.sensors.sentinel1 import read_scene
from sereno.pipeline.signing import Resolver

UTM32 = "EPSG:32632"
WEST, NORTH = 500_003.0, 5_000_004.0
"""Not on the area's pixels: an item has a grid of its own."""
AREA = GeoBox((30, 40), Affine(10, 0, 500_200, 0, -10, 4_999_800), UTM32)
SETTINGS = IngestSettings(margin_px=4, attempts=1)


def make_item(folder: Path, values: npt.NDArray[np.float32], *, crs: str = UTM32, nodata: float | None = None) -> ItemRecord:
    """An item with `values` as VV and a tenth of them as VH."""
    geobox = to_geobox(values, 10, crs=crs, origin=(WEST, NORTH))
    for name, layer in (("VV", values), ("VH", np.where(values == nodata, values, values / 10))):
        write_raster(folder / f"{name}.tif", layer.astype(np.float32), geobox, nodata=nodata)
    facts = {"item": folder.name, "collection": "c", "sensor": "sentinel1-rtc", "time": "2021-06-03T10:00:00Z", "crs": crs}
    assets = {name: AssetRecord(href=str(folder / f"{name}.tif")) for name in ("VV", "VH")}
    return ItemRecord(**facts, bbox=(8, 45, 9, 46), assets=assets)


def read_all(*items: ItemRecord, area: GeoBox = AREA, settings: IngestSettings = SETTINGS) -> Reading:
    record = SceneRecord(id="s", sensor="sentinel1-rtc", time=items[0].time, items=items)
    return read_scene(record, area, settings, Resolver("/"))


def read(item: ItemRecord, area: GeoBox = AREA) -> Any:
    return read_all(item, area=area).scene


def speckle() -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).gamma(4.4, 0.1 / 4.4, (100, 100)).astype(np.float32)


def test_values_are_those_of_the_file_in_centi_db_on_its_own_grid(tmp_path: Path) -> None:
    power = speckle()
    scene = read(make_item(tmp_path, power))
    own = geobox_of(scene)
    row, column = round((NORTH - own.transform.f) / 10), round((own.transform.c - WEST) / 10)
    expected = power[row : row + own.shape.y, column : column + own.shape.x]
    assert scene["valid"].values.all()
    np.testing.assert_allclose(scene["data"].sel(sar_band="VV") / 100, 10 * np.log10(expected), atol=0.0051)
    np.testing.assert_allclose(scene["data"].sel(sar_band="VH") / 100, 10 * np.log10(expected) - 10, atol=0.0051)


def test_the_scene_covers_the_area_and_its_margin(tmp_path: Path) -> None:
    scene = read(make_item(tmp_path, speckle()))
    wanted, own = AREA.pad(4).boundingbox, geobox_of(scene).boundingbox
    assert own.left <= wanted.left
    assert own.right >= wanted.right
    assert own.bottom <= wanted.bottom
    assert own.top >= wanted.top


@pytest.mark.parametrize("hole", [0.0, -0.001, np.nan, -32768.0])
def test_zero_fill_negative_nan_and_nodata_are_invalid(tmp_path: Path, hole: float) -> None:
    power = speckle()
    power[40:50, 30:45] = hole
    scene = read(make_item(tmp_path, power, nodata=-32768.0))
    own = geobox_of(scene)
    row, column = round((NORTH - own.transform.f) / 10), round((own.transform.c - WEST) / 10)
    expected = np.ones((100, 100), bool)
    expected[40:50, 30:45] = False
    np.testing.assert_array_equal(scene["valid"], expected[row : row + own.shape.y, column : column + own.shape.x])
    assert (scene["data"].values[:, ~scene["valid"].values] == 0).all()


def test_ground_beyond_the_item_is_invalid(tmp_path: Path) -> None:
    scene = read(make_item(tmp_path, speckle()[:40]))
    bottom = NORTH - 400
    below = scene["y"].values < bottom
    assert below.any()
    np.testing.assert_array_equal(scene["valid"].values.all(axis=1), ~below)


def test_another_zone_is_warped_in_power_and_a_zero_fill_does_not_darken_its_neighbours(tmp_path: Path) -> None:
    power = np.full((400, 400), 0.2, np.float32)
    power[:, 200:] = 0
    record = make_item(tmp_path, power)
    (x,), (y,) = transform(UTM32, "EPSG:32633", [WEST + 2000], [NORTH - 2000])
    area = GeoBox((100, 200), Affine(10, 0, round(x) - 1000, 0, -10, round(y) + 500), "EPSG:32633")
    scene = read(record, area)
    valid = scene["valid"].values
    assert geobox_of(scene) == area.pad(4)
    assert 0.1 < valid.mean() < 0.9
    assert np.unique(scene["data"].sel(sar_band="VV").values[valid]).tolist() == [-699]


def test_warping_averages_power_and_not_decibels(tmp_path: Path) -> None:
    power = np.where(np.indices((100, 100)).sum(axis=0) % 2, 0.001, 1.0).astype(np.float32)
    area = GeoBox((20, 20), Affine(20, 0, WEST + 200, 0, -20, NORTH - 200), UTM32)
    scene = read(make_item(tmp_path, power), area)
    middle = scene["data"].sel(sar_band="VV").values[5:-5, 5:-5] / 100
    assert np.abs(middle - 10 * np.log10(0.5005)).max() < 0.5  # the mean of the decibels would be -15


def test_an_item_without_one_polarisation_of_the_scene_is_lost_and_named(tmp_path: Path) -> None:
    whole, half = (make_item(make_folder(tmp_path / name), speckle()) for name in ("a", "b"))
    del half.assets["VH"]
    reading = read_all(half, whole)
    facts = reading.scene.attrs["provenance"]
    assert [item["share"] > 0 for item in facts["items"]] == [False, True]
    assert facts["lost"] == [{"item": "b", "asset": "VH", "reason": "the item states no such asset (it has VV)"}]
    assert ("b", "VH", "missing") in [(entry.item, entry.asset, entry.status) for entry in reading.entries]


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_speckle_is_reduced_in_power_and_the_filter_is_named(tmp_path: Path) -> None:
    item = make_item(tmp_path, speckle())
    plain = read_all(item).scene
    filtered = read_all(item, settings=SETTINGS.model_copy(update={"speckle": SpeckleSettings(method="boxcar", window_px=5)})).scene
    before, after = (10 ** (scene["data"].sel(sar_band="VV").values / 1000) for scene in (plain, filtered))
    inner = (slice(2, -2), slice(2, -2))
    assert after[inner].mean() == pytest.approx(before.mean(), rel=0.02)
    assert after[inner].std() < before[inner].std() / 3
    assert (plain.attrs["provenance"]["speckle"], filtered.attrs["provenance"]["speckle"]) == (None, "boxcar, window 5 px, in power")


def test_a_scene_of_one_polarisation_holds_that_one(tmp_path: Path) -> None:
    item = make_item(tmp_path, speckle())
    scene = read(item.model_copy(update={"assets": {"HH": item.assets["VV"]}}))
    assert scene["sar_band"].values.tolist() == ["HH"]
    assert scene["valid"].values.all()


def test_polarisations_are_stored_in_the_order_that_the_lock_names(tmp_path: Path) -> None:
    item = make_item(tmp_path, speckle())
    scene = read(item.model_copy(update={"properties": {"polarisations": "VH VV"}}))
    assert scene["sar_band"].values.tolist() == ["VH", "VV"]
    assert scene["data"].values[0] + 1000 == pytest.approx(scene["data"].values[1], abs=1)  # VH is a tenth of VV


def test_a_scene_without_any_polarisation_is_a_fault_of_the_lock(tmp_path: Path) -> None:
    item = make_item(tmp_path, speckle())
    with pytest.raises(MissingError, match=r"has no asset of a polarisation \(VV, VH, HH, HV\): run the query step again"):
        read(item.model_copy(update={"assets": {}}))


def test_as_many_readers_work_as_the_settings_say_where_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(tasks: Any, scheduler: str, workers: int) -> Any:
        asked.append((len(tasks), scheduler, workers))
        return [task() for task in pickle.loads(pickle.dumps(tasks))]

    monkeypatch.setattr("sereno.pipeline.sensors.sentinel1.run_tasks", run)
    item = make_item(tmp_path, speckle())
    for choice in (("threads", 3), ("tcp://10.0.0.1:8786", 7)):
        read_all(item, settings=SETTINGS.model_copy(update={"scheduler": choice[0], "readers": choice[1]}))
    assert asked == [(2, "threads", 3), (2, "tcp://10.0.0.1:8786", 7)]


def test_a_lost_band_costs_its_item_and_the_other_one_is_used(tmp_path: Path) -> None:
    first, second = (make_item(make_folder(tmp_path / name), speckle()) for name in ("a", "b"))
    (tmp_path / "a" / "VH.tif").write_bytes(b"no image")
    reading = read_all(first, second)
    assert reading.scene["valid"].values.all()
    assert {(entry.item, entry.asset): entry.status for entry in reading.entries} == {
        ("a", "VV"): "used",
        ("a", "VH"): "unreadable",
        ("a", ""): "unreadable",
        ("b", "VV"): "used",
        ("b", "VH"): "used",
        ("b", ""): "used",
    }
