from datetime import UTC, datetime

import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import stac
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.items import to_item_record
from sereno.pipeline.twins import lay_footprints

GEOBOX = GeoBox((288, 288), Affine(10, 0, 498160, 0, -10, 5042640), "EPSG:32632")
TIME = datetime(2021, 6, 3, 10, 20, 0, 24000, tzinfo=UTC)


def _optical(dialect: stac.Dialect, baseline: str) -> dict:
    product = stac.Product("ITEM", "west", TIME, GEOBOX, dialect)
    return stac.to_optical_item(product, stac.OpticalFacts(baseline, 41.5, 2.0, 145.0, 62.0))


@pytest.mark.parametrize(("baseline", "expected"), [("02.14", False), ("03.01", False), ("04.00", True), ("05.09", True)])
def test_offset_begins_with_baseline_four(baseline: str, expected: bool) -> None:
    assert stac.has_offset(baseline) is expected


@pytest.mark.parametrize(
    ("epsg", "left", "top", "code"),
    [(32613, 399960, 4500000, "13TDE"), (32647, 399960, 9100020, "47XML"), (32632, 600000, 5400000, "32UPU")],
)
def test_grid_code_is_that_of_the_real_tile(epsg: int, left: float, top: float, code: str) -> None:
    assert stac.to_grid_code(GeoBox((10980, 10980), Affine(10, 0, left, 0, -10, top), f"EPSG:{epsg}")) == code


def test_earth_search_names_assets_by_colour_and_states_the_offset() -> None:
    old, new = _optical("earth-search", "03.01"), _optical("earth-search", "05.00")
    assert set(new["assets"]) == {band.common_name for band in SENTINEL2_BANDS if band.name in L2A_BANDS} | {"scl"}
    assert new["assets"]["nir08"]["raster:bands"][0]["offset"] == -0.1
    assert old["assets"]["nir08"]["raster:bands"][0]["offset"] == 0
    assert new["properties"]["proj:code"] == "EPSG:32632"
    assert "proj:epsg" not in new["properties"]


def test_planetary_computer_names_assets_by_band_and_states_no_offset() -> None:
    item = _optical("planetary-computer", "05.00")
    assert set(item["assets"]) == {*L2A_BANDS, "SCL"}
    assert not any("raster:bands" in asset for asset in item["assets"].values())
    assert item["properties"]["proj:epsg"] == 32632
    assert item["properties"]["s2:mean_solar_zenith"] == 28.0


def test_assets_state_their_own_grid() -> None:
    asset = _optical("earth-search", "05.00")["assets"]["coastal"]
    assert asset["proj:shape"] == [48, 48]
    assert asset["proj:transform"] == [60, 0, 498160, 0, -60, 5042640]


@pytest.mark.parametrize("dialect", ["earth-search", "planetary-computer"])
def test_items_are_read_by_pystac_and_bbox_encloses_the_outline(dialect: stac.Dialect) -> None:
    product = stac.Product("ITEM", "west", TIME, GEOBOX, dialect)
    for content in (_optical(dialect, "05.00"), stac.to_sar_item(product, stac.SarFacts("ascending", 15)), stac.to_dem_item(product)):
        item = pystac.Item.from_dict(content)
        assert item.datetime == TIME
        west, south, east, north = item.bbox or ()
        assert all(west <= x <= east and south <= y <= north for x, y in content["geometry"]["coordinates"][0])
        assert 8.9 < west < east < 9.1
        assert 45.4 < south < north < 45.6


def test_sar_declares_the_nodata_value_of_planetary_computer() -> None:
    item = stac.to_sar_item(stac.Product("S", "west", TIME, GEOBOX, "earth-search"), stac.SarFacts("descending", 66))
    assert item["assets"]["vh"]["raster:bands"][0]["nodata"] == -32768
    assert item["properties"]["sat:orbit_state"] == "descending"


def test_size_and_checksum_are_stated_as_the_file_extension_asks() -> None:
    item = _optical("earth-search", "05.00")
    stated = pystac.Item.from_dict(stac.with_files(item, {"red": stac.FileFacts(17, "ab" * 32)}))
    fields = stated.assets["red"].extra_fields
    assert (fields["file:size"], fields["file:checksum"]) == (17, "1220" + "ab" * 32)
    assert "file:size" not in stated.assets["blue"].extra_fields
    assert any("/file/" in name for name in stated.stac_extensions)
    assert "file:size" not in item["assets"]["red"]


def test_collection_spans_its_items() -> None:
    collection = stac.to_collection("sentinel-2-c1-l2a", [_optical("earth-search", "05.00")])
    read = pystac.Collection.from_dict(collection)
    assert read.extent.temporal.intervals[0][0] == TIME
    assert [link.href for link in read.get_links("item")] == ["ITEM.json"]


def _landsat(dialect: stac.Dialect) -> dict:
    product = stac.Product("LC09_L2SP_193028_20210603_02_T1", "west", TIME, GEOBOX.zoom_out(3), dialect)
    return stac.to_landsat_item(product, stac.LandsatFacts(3.5, 145.0, 62.0, (193, 28)))


def _modis() -> dict:
    start, end = datetime(2021, 6, 2, tzinfo=UTC), datetime(2021, 6, 9, 23, 59, 59, tzinfo=UTC)
    product = stac.Product("MOD09A1.A2021153.h18v04.061.2021170120000", "west", TIME, lay_footprints(GEOBOX).geobox, "planetary-computer")
    return stac.to_modis_item(product, stac.ModisFacts(start, end, (18, 4)))


@pytest.mark.parametrize("dialect", ["earth-search", "planetary-computer"])
def test_items_of_landsat_are_those_of_the_catalogues(dialect: stac.Dialect) -> None:
    item = _landsat(dialect)
    assert set(item["assets"]) == {"blue", "green", "red", "nir08", "swir16", "swir22", "qa_pixel"}
    assert item["assets"]["red"]["raster:bands"][0].items() >= {"nodata": 0, "scale": 2.75e-05, "offset": -0.2}.items()
    assert item["assets"]["red"]["eo:bands"] == [{"name": "SR_B4", "common_name": "red"}]
    assert item["collection"] == "landsat-c2-l2"
    assert pystac.Item.from_dict(item).datetime == TIME
    record = to_item_record(item)
    assert (record.sensor, record.cloud_cover_pct, record.crs) == ("landsat-oli", 3.5, "EPSG:32632")


def test_an_item_of_modis_states_a_period_and_a_projection_but_no_moment_and_no_code() -> None:
    item = _modis()
    properties = item["properties"]
    assert (properties["datetime"], properties["proj:epsg"], properties["modis:tile-id"]) == (None, None, "51018004")
    assert "inusoidal" in properties["proj:wkt2"]
    assert item["assets"]["sur_refl_b02"]["eo:bands"] == [{"name": "sur_refl_b02", "common_name": "nir08"}]
    assert pystac.Item.from_dict(item).common_metadata.start_datetime == datetime(2021, 6, 2, tzinfo=UTC)
    west, south, east, north = item["bbox"]
    middle = stac.to_middle(GEOBOX)
    assert west < middle[0] < east
    assert south < middle[1] < north
    assert to_item_record(item).time == "2021-06-05T23:59:59.500000Z"


def test_a_collection_of_composites_spans_their_beginnings() -> None:
    assert stac.to_collection("modis-09A1-061", [_modis()])["extent"]["temporal"]["interval"] == [["2021-06-02T00:00:00.000Z"] * 2]
