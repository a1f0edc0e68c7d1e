"""An L2A item becomes reflectance on the area's grid, its offset removed, its holes invalid."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import offset
from sereno.pipeline.bands import L2A_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.sensors.sentinel2 import read_scene
from sereno.pipeline.signing import Resolver

SAMPLES = os.environ.get("SERENO_SAMPLES")
WEST, NORTH = 500_040.0, 5_000_040.0
GSD_M = {band.name: band.gsd_m for band in SENTINEL2_BANDS} | {SCL: 20}
AREA = GeoBox((48, 36), Affine(10, 0, WEST + 50, 0, -10, NORTH - 70), "EPSG:32632")
"""Begins within a 20 m and within a 60 m pixel of the item."""


def write(path: Path, values: npt.NDArray[Any], gsd_m: int) -> Path:
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "width": values.shape[1],
        "height": values.shape[0],
        "count": 1,
        "crs": "EPSG:32632",
    }
    with rasterio.open(path, "w", **profile, transform=Affine(gsd_m, 0, WEST, 0, -gsd_m, NORTH)) as file:
        file.write(values, 1)
    return path


def make_item(folder: Path, **facts: object) -> ItemRecord:
    """An item of 600 m, random above 1000 in every band, all ground vegetation, with its bands at their own sampling."""
    rng = np.random.default_rng(5)
    assets = {name: AssetRecord(href=str(write(folder / f"{name}.tif", _values(name, rng), GSD_M[name]))) for name in (*L2A_BANDS, SCL)}
    known = {"item": "S2A_X", "collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632"}
    return ItemRecord(**{**known, "bbox": (8, 45, 9, 46), "assets": assets, "processing_baseline": "05.09", **facts})


def _values(name: str, rng: np.random.Generator) -> npt.NDArray[Any]:
    side = 600 // GSD_M[name]
    return np.full((side, side), 4, np.uint8) if name == SCL else rng.integers(1100, 9000, (side, side)).astype(np.uint16)


def change(path: Path, place: tuple[slice, slice], value: int) -> None:
    with rasterio.open(path, "r+") as file:
        values = file.read(1)
        values[place] = value
        file.write(values, 1)


def read_all(*items: ItemRecord, area: GeoBox = AREA, **settings: Any) -> Reading:
    record = SceneRecord(id="s", sensor=items[0].sensor, time=items[0].time, items=items)
    return read_scene(record, area, IngestSettings(attempts=1, **settings), Resolver("/"))


def read(item: ItemRecord, **settings: Any) -> Any:
    return read_all(item, **settings).scene


def test_every_band_holds_its_own_pixels_less_the_offset(tmp_path: Path) -> None:
    scene = read(make_item(tmp_path))
    assert tuple(scene["band"].values) == L2A_BANDS
    for band in L2A_BANDS:
        with rasterio.open(tmp_path / f"{band}.tif") as file:
            values = file.read(1)
        rows, columns = (70 + 10 * np.arange(48)) // GSD_M[band], (50 + 10 * np.arange(36)) // GSD_M[band]
        np.testing.assert_array_equal(scene["data"].sel(band=band), values[rows][:, columns] - 1000)
    assert scene["valid"].values.all()
    assert (scene["scl"].values == 4).all()
    facts = scene.attrs["provenance"]
    assert (facts["offset"], facts["n_clamped"], facts["lost"], facts["valid_share"]) == (-1000, 0, [], 1.0)


def test_only_the_wanted_bands_are_read_in_the_wanted_order(tmp_path: Path) -> None:
    record = make_item(tmp_path)
    (tmp_path / "B12.tif").unlink()
    assert read(record, bands=("B04", "B02"))["band"].values.tolist() == ["B04", "B02"]


def test_a_pixel_is_valid_only_if_every_band_and_the_classes_have_data(tmp_path: Path) -> None:
    record = make_item(tmp_path)
    change(tmp_path / "B04.tif", (slice(10, 11), slice(10, 12)), 0)
    change(tmp_path / "SCL.tif", (slice(10, 11), slice(10, 11)), 0)
    scene = read(record)
    invalid = np.zeros((48, 36), bool)
    invalid[3, 5:7] = True  # 10 m pixels (10, 10..11) of the item
    invalid[13:15, 15:17] = True  # 20 m pixel (10, 10)
    np.testing.assert_array_equal(scene["valid"], ~invalid)
    assert (scene["data"].values[:, invalid] == 0).all()


def test_dark_pixels_are_clamped_counted_and_stay_valid(tmp_path: Path) -> None:
    record = make_item(tmp_path)
    change(tmp_path / "B04.tif", (slice(10, 11), slice(10, 12)), 900)
    scene = read(record)
    assert scene["valid"].values.all()
    assert scene["data"].sel(band="B04").values[3, 5:7].tolist() == [0, 0]
    assert scene.attrs["provenance"]["n_clamped"] == 2


def test_an_offset_left_in_by_a_wrong_flag_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offset, "MIN_DARK_PX", 100)
    (warning,) = read(make_item(tmp_path, offset_applied=True)).attrs["provenance"]["warnings"]
    assert "the offset was probably left in" in warning
    assert read(make_item(tmp_path)).attrs["provenance"]["warnings"] == []


def test_ground_beyond_the_footprint_is_invalid(tmp_path: Path) -> None:
    record = make_item(tmp_path)
    area = GeoBox((20, 40), Affine(10, 0, WEST + 400, 0, -10, NORTH), "EPSG:32632")
    scene = read(record, area=area)
    np.testing.assert_array_equal(scene["valid"].values.all(axis=0), np.arange(40) < 20)


def test_a_missing_band_costs_the_scene_and_is_named(tmp_path: Path) -> None:
    record = make_item(tmp_path)
    del record.assets["B8A"]
    reading = read_all(record)
    facts = reading.scene.attrs["provenance"]
    assert facts["refused"].startswith(
        "0.0% of the ground is valid, pipeline.ingest.min_valid wants 5.0%; 1 losses, the first: item S2A_X, B8A"
    )
    assert not reading.scene["valid"].values.any()
    assert [(entry.asset, entry.status) for entry in reading.entries] == [("B8A", "missing"), ("", "missing")]


@pytest.mark.parametrize(("content", "status"), [(b"not a raster", "unreadable"), (None, "missing")])
def test_an_asset_that_cannot_be_opened_refuses_the_scene(tmp_path: Path, content: bytes | None, status: str) -> None:
    record = make_item(tmp_path)
    (tmp_path / "B8A.tif").unlink()
    if content:
        (tmp_path / "B8A.tif").write_bytes(content)
    reading = read_all(record)
    (lost,) = reading.scene.attrs["provenance"]["lost"]
    assert lost["asset"] == "B8A"
    assert reading.scene.attrs["provenance"]["refused"]
    assert {entry.asset: entry.status for entry in reading.entries}["B8A"] == status
    assert (reading.scene["data"].values == 0).all()


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
@pytest.mark.parametrize("day", ["20170703", "20190723"])
def test_a_real_chip_with_nodata_65535_keeps_its_values_and_classes(tmp_path: Path, day: str) -> None:
    folder = Path(str(SAMPLES)) / "s2" / "sen2r"
    bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    with rasterio.open(folder / f"S2A2A_{day}_022_Barbellino_BOA_10.tif") as file:
        values, profile, crs, transform = file.read(), file.profile, file.crs, file.transform
    profile.update(count=1)
    for band, layer in zip(bands, values, strict=True):
        with rasterio.open(tmp_path / f"{band}.tif", "w", **profile) as copy:
            copy.write(layer, 1)
    with rasterio.open(folder / f"S2A2A_{day}_022_Barbellino_SCL_10.tif") as file:
        scl = file.read(1).repeat(2, axis=0).repeat(2, axis=1)
    files = {band: tmp_path / f"{band}.tif" for band in bands} | {SCL: folder / f"S2A2A_{day}_022_Barbellino_SCL_10.tif"}
    record = ItemRecord(
        item=day,
        collection="c",
        sensor="sentinel2-l2a",
        time="",
        crs="",
        bbox=(9, 46, 10, 47),
        assets={name: AssetRecord(href=str(file)) for name, file in files.items()},
        processing_baseline="02.13",
    )
    geobox = GeoBox(values.shape[1:], transform, str(crs))
    scene = read(record, area=geobox, bands=bands)
    valid = (values != 65535).all(axis=0) & (scl != 0)
    np.testing.assert_array_equal(scene["valid"], valid)
    np.testing.assert_array_equal(scene["data"].values, np.where(valid, values, 0))
    np.testing.assert_array_equal(scene["scl"], scl)
