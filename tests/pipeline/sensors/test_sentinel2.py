"""An L2A item becomes reflectance on the area's grid, its offset removed, its holes invalid."""

import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from listening import listening
from odc.geo.geobox import GeoBox
from rasters import NORTH, WEST, to_geobox, write_raster

from sereno.pipeline import http, offset
from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.sensors.sentinel2 import read_scene
from sereno.pipeline.signing import Resolver

SAMPLES = os.environ.get("SERENO_SAMPLES")
GSD_M = {band.name: band.gsd_m for band in SENTINEL2_BANDS} | {SCL: 20}
AREA = GeoBox((48, 36), Affine(10, 0, WEST + 50, 0, -10, NORTH - 70), "EPSG:32632")
"""Begins within a 20 m and within a 60 m pixel of the item."""


def write(path: Path, values: npt.NDArray[Any], gsd_m: int) -> Path:
    return write_raster(path, values, to_geobox(values, gsd_m))


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


def test_a_wanted_band_that_is_only_there_coarser_is_a_warning(tmp_path: Path) -> None:
    record = make_item(tmp_path, properties={"coarser": "B02 from B02_20m, B03 from B03_60m"})
    (warning,) = read(record, bands=("B03", "B04")).attrs["provenance"]["warnings"]
    assert warning == "item S2A_X: B03 from B03_60m: coarser than the product's own sampling, which the catalogue does not have"
    assert read(record, bands=("B04",)).attrs["provenance"]["warnings"] == []


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


@pytest.mark.parametrize("kind", ["gone", "not stated"])
def test_ground_whose_scl_is_lost_has_class_zero_and_says_so(tmp_path: Path, kind: str) -> None:
    """What the bands say stays; that no class is known stands in the values, the warnings, the losses and the ledger."""
    record = make_item(tmp_path)
    change(tmp_path / "B04.tif", (slice(10, 11), slice(10, 12)), 0)
    lose_scl(record, kind)
    reading = read_all(record)
    invalid = np.zeros((48, 36), bool)
    invalid[3, 5:7] = True
    np.testing.assert_array_equal(reading.scene["valid"], ~invalid)
    assert "scl" not in reading.scene or not reading.scene["scl"].values.any()
    facts = reading.scene.attrs["provenance"]
    (warning,) = facts["warnings"]
    assert warning == "item S2A_X: SCL is lost: its ground has class 0, cloud is not known there, and the bands alone decide what is valid"
    assert [(loss["item"], loss["asset"]) for loss in facts["lost"]] == [("S2A_X", SCL)]
    assert {entry.asset: entry.status for entry in reading.entries if entry.asset in (SCL, "")} == {SCL: "missing", "": "partly"}


def lose_scl(record: ItemRecord, kind: str) -> None:
    """The file is gone, or the item does not state it."""
    Path(record.assets[SCL].href).unlink()
    if kind == "not stated":
        del record.assets[SCL]


@pytest.mark.parametrize("kind", ["gone", "not stated"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_tile_without_scl_never_borrows_the_classes_of_another(tmp_path: Path, kind: str, order: tuple[int, int]) -> None:
    """The west half has no data in the tile that states classes, and these say vegetation there all the same."""
    east, west = make_folder(tmp_path / "east"), make_folder(tmp_path / "west")
    items = [make_item(east, item="east"), make_item(west, item="west")]
    for folder, columns in ((east, slice(0, 30)), (west, slice(30, 60))):
        change(folder / "B04.tif", (slice(None), columns), 0)
    lose_scl(items[1], kind)
    reading = read_all(*(items[place] for place in order))
    classes = reading.scene["scl"].values
    is_west = np.arange(36) < 25  # the area begins 5 pixels into the tiles
    assert reading.scene["valid"].values.all()
    np.testing.assert_array_equal(classes, np.where(is_west, 0, 4)[None].repeat(48, axis=0))
    assert {entry.item: entry.status for entry in reading.entries if not entry.asset} == {"east": "used", "west": "partly"}
    assert [loss["item"] for loss in reading.scene.attrs["provenance"]["lost"]] == ["west"]


def test_offsets_are_removed_before_items_are_laid_together(tmp_path: Path) -> None:
    """Two processings of one ground, the older without offset: together they are as one."""
    new, old = make_folder(tmp_path / "new"), make_folder(tmp_path / "old")
    items = [make_item(new, item="new"), make_item(old, item="old", processing_baseline="02.14")]
    for name in L2A_BANDS:
        with rasterio.open(old / f"{name}.tif", "r+") as file:
            file.write(file.read(1) - 1000, 1)
        change(new / f"{name}.tif", (slice(None), slice(0, 300 // GSD_M[name])), 0)
    reading = read_all(*items)
    alone = read(make_item(tmp_path))
    np.testing.assert_array_equal(reading.scene["data"], alone["data"])
    facts = reading.scene.attrs["provenance"]
    assert (facts["offset"], facts["offset_reason"]) == (None, "differs: see items")
    assert [item["offset"] for item in facts["items"]] == [-1000, 0]
    assert [item["share"] > 0 for item in facts["items"]] == [True, True]
    assert facts["processing_baseline"] is None


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


MTD_XML = """<?xml version="1.0"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
 <n1:General_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
 <{quantification}>10000</{quantification}>{offsets}</n1:General_Info>
</n1:Level-{level}_User_Product>"""


def write_metadata(path: Path, level: str, offset: int | None, baseline: str) -> AssetRecord:
    tag = "RADIO_ADD_OFFSET" if level == "1C" else "BOA_ADD_OFFSET"
    offsets = "" if offset is None else "".join(f'<{tag} band_id="{band}">{offset}</{tag}>' for band in range(13))
    quantification = "QUANTIFICATION_VALUE" if level == "1C" else "BOA_QUANTIFICATION_VALUE"
    path.write_text(MTD_XML.format(level=level, baseline=baseline, quantification=quantification, offsets=offsets))
    return AssetRecord(href=str(path))


def test_the_products_own_metadata_decides_where_it_may_be_believed(tmp_path: Path) -> None:
    record = make_item(tmp_path, offset_sources=("metadata", "baseline"), processing_baseline="02.14")
    record.assets["MTD"] = write_metadata(tmp_path / "MTD_MSIL2A.xml", "2A", -1000, "05.00")
    reading = read_all(record)
    facts = reading.scene.attrs["provenance"]
    assert (facts["offset"], facts["offset_reason"]) == (-1000, "product metadata: -1000 in every band")
    assert "but processing baseline 02.14" in facts["warnings"][0]
    entry = next(entry for entry in reading.entries if entry.asset == "MTD")
    assert (entry.status, entry.bytes_read) == ("used", (tmp_path / "MTD_MSIL2A.xml").stat().st_size)
    doubted = record.model_copy(update={"offset_sources": ("baseline",)})
    assert read(doubted).attrs["provenance"]["offset"] == 0


@pytest.mark.parametrize(("content", "status"), [("<html/>", "unreadable"), (None, "missing")])
def test_metadata_that_is_lost_leaves_the_offset_to_the_other_sources(tmp_path: Path, content: str | None, status: str) -> None:
    record = make_item(tmp_path, offset_sources=("metadata", "baseline"))
    record.assets["MTD"] = AssetRecord(href=str(tmp_path / "MTD.xml"))
    if content:
        (tmp_path / "MTD.xml").write_text(content)
    reading = read_all(record)
    facts = reading.scene.attrs["provenance"]
    assert (facts["offset"], facts["offset_reason"]) == (-1000, "processing baseline 05.09 (04.00 or later)")
    assert "its metadata cannot say which offset it has" in facts["warnings"][0]
    assert {entry.asset: entry.status for entry in reading.entries}["MTD"] == status
    assert facts["lost"] == []


def test_tries_to_read_metadata_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "compute_pause", lambda *_: 0.0)
    record = make_item(tmp_path, offset_sources=("metadata",))
    record.assets["MTD"] = write_metadata(tmp_path / "MTD.xml", "2A", -1000, "05.00")
    content, asked = (tmp_path / "MTD.xml").read_bytes(), []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        handler.send_response(503 if len(asked) < 3 else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with listening(respond) as url:
        record.assets["MTD"] = AssetRecord(href=f"{url}/MTD.xml")
        (entry,) = (entry for entry in read_all(record).entries if entry.asset == "MTD")
    assert (entry.status, entry.retries, entry.bytes_read) == ("used", 2, len(content))


def test_as_many_readers_work_as_the_settings_say_where_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(tasks: Any, scheduler: str, workers: int) -> Any:
        asked.append((scheduler, workers))
        return [task() for task in tasks]

    monkeypatch.setattr("sereno.pipeline.sensors.sentinel2.run_tasks", run)
    record = make_item(tmp_path)
    for choice in (("threads", 3), ("tcp://10.0.0.1:8786", 7)):
        read_all(record, scheduler=choice[0], readers=choice[1])
    assert asked == [("threads", 3), ("tcp://10.0.0.1:8786", 7)]


def test_an_item_of_which_nothing_tells_the_offset_is_refused_in_words(tmp_path: Path) -> None:
    reading = read_all(make_item(tmp_path, processing_baseline=None))
    assert not reading.scene["valid"].values.any()
    assert "cannot tell whether its values carry the reflectance offset" in reading.scene.attrs["provenance"]["refused"]
    (entry,) = reading.entries
    assert (entry.asset, entry.status) == ("", "refused")


@pytest.mark.parametrize("offset_dn", [None, -1000])
def test_top_of_atmosphere_has_thirteen_bands_and_its_own_offset(tmp_path: Path, offset_dn: int | None) -> None:
    baseline = "05.09" if offset_dn else "02.09"
    rng = np.random.default_rng(6)
    files = {name: write(tmp_path / f"{name}.tif", _values(name, rng), GSD_M[name]) for name in L1C_BANDS}
    assets = {name: AssetRecord(href=str(path)) for name, path in files.items()}
    assets["MTD"] = write_metadata(tmp_path / "MTD_MSIL1C.xml", "1C", offset_dn, baseline)
    facts = {"item": "S2A_T", "collection": "c", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632", "bbox": (8, 45, 9, 46)}
    record = ItemRecord(sensor="sentinel2-l1c", assets=assets, processing_baseline=baseline, offset_sources=("metadata",), **facts)
    scene = read(record)
    assert tuple(scene["band"].values) == L1C_BANDS
    assert "scl" not in scene
    for band in ("B10", "B04"):
        with rasterio.open(files[band]) as file:
            values = file.read(1)
        rows, columns = (70 + 10 * np.arange(48)) // GSD_M[band], (50 + 10 * np.arange(36)) // GSD_M[band]
        np.testing.assert_array_equal(scene["data"].sel(band=band), values[rows][:, columns] - (1000 if offset_dn else 0))
    assert scene.attrs["provenance"]["calibration"] == "top-of-atmosphere reflectance = (DN + offset) / 10000"


def test_a_band_that_the_product_never_has_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"sentinel2-l2a has no band B10; correct pipeline\.ingest\.bands"):
        read(make_item(tmp_path), bands=("B10",))


def test_all_bands_in_one_file_are_told_apart_by_their_index(tmp_path: Path) -> None:
    stack = np.random.default_rng(8).integers(1100, 9000, (3, 60, 60)).astype(np.uint16)
    profile = {"driver": "GTiff", "dtype": "uint16", "width": 60, "height": 60, "count": 3, "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH)) as file:
        file.write(stack)
    bands = {"B02": 3, "B03": 1, "B04": 2}
    record = make_item(make_folder(tmp_path / "x"))
    record = record.model_copy(update={"assets": {name: AssetRecord(href=str(tmp_path / "a.tif"), index=i) for name, i in bands.items()}})
    scene = read(record, bands=tuple(bands))
    for band, index in bands.items():
        np.testing.assert_array_equal(scene["data"].sel(band=band), stack[index - 1, 7:55, 5:41] - 1000)


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
