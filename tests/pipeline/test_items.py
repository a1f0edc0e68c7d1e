"""Items of every dialect become one record, keep what is needed later, and say why they cannot be used."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pystac
import pytest
from real_files import find_samples

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.items import to_item_record
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.presets import PRESETS

COMMON = {band.name: band.common_name for band in SENTINEL2_BANDS}
GSD_M = {band.name: band.gsd_m for band in SENTINEL2_BANDS}
RING = [[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]
SLICE = "S1A_IW_GRDH_1SDV_20250312T052236_20250312T052301_058267_073394"


def to_item(name: str, properties: dict[str, Any], assets: dict[str, Any], **more: Any) -> dict[str, Any]:
    plain = {"type": "Feature", "stac_version": "1.0.0", "id": name, "bbox": [10, 45, 11, 46], "links": []}
    return {**plain, "geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": properties, "assets": assets, **more}


PRODUCT = {
    "s2:product_type": "S2MSI2A",
    "s2:product_uri": "S2A_MSIL2A_20210603T102000_N0500_R022_T32TNR_20230101T000000.SAFE",
    "s2:processing_baseline": "05.00",
    "s2:generation_time": "2023-01-01T00:00:00Z",
    "s2:datatake_id": "GS2A_20210603T102000_031068_N05.00",
    "s2:datastrip_id": "S2A_OPER_MSI_L2A_DS_S2RP_20230101T000000_S20210603T102201_N05.00",
}
"""What Earth Search and Planetary Computer say of a product in the same words."""


def c1_item() -> dict[str, Any]:
    """Earth Search, `sentinel-2-c1-l2a`."""
    properties = {
        "datetime": "2021-06-03T10:20:00.024000Z",
        "platform": "sentinel-2a",
        "constellation": "sentinel-2",
        "proj:code": "EPSG:32632",
        "grid:code": "MGRS-32TNR",
        "eo:cloud_cover": 12.5,
        "view:sun_azimuth": 150.0,
        "view:sun_elevation": 60.0,
        **PRODUCT,
        "earthsearch:boa_offset_applied": False,
    }
    assets = {COMMON[name]: {"href": f"{name}.tif", "raster:bands": [{"scale": 0.0001, "offset": -0.1}]} for name in L2A_BANDS}
    assets["scl"] = {"href": "SCL.tif", "raster:bands": [{"nodata": 0}]}
    assets["product_metadata"] = {"href": "product_metadata.xml", "type": "application/xml"}
    assets["granule_metadata"] = {"href": "metadata.xml", "type": "application/xml"}
    return to_item("S2A_T32TNR_20210603T102000_L2A", properties, assets, collection="sentinel-2-c1-l2a")


def twin_item() -> dict[str, Any]:
    """Earth Search, `sentinel-2-l2a`: every GeoTIFF has a twin in JPEG 2000 elsewhere, which still carries the offset."""
    item = c1_item()
    for key in [key for key in item["assets"] if "metadata" not in key]:
        item["assets"][f"{key}-jp2"] = {"href": f"s3://sentinel-s2-l2a/{key}.jp2", "type": "image/jp2", "eo:bands": [{"name": key}]}
    visual = [{"name": name, "common_name": COMMON[name]} for name in ("B04", "B03", "B02")]
    item["assets"]["visual"] = {"href": "TCI.tif", "type": "image/tiff", "eo:bands": visual}
    return {**item, "collection": "sentinel-2-l2a"}


def planetary_item() -> dict[str, Any]:
    """Planetary Computer, `sentinel-2-l2a`."""
    properties = {
        "datetime": "2021-06-03T10:20:00.024000Z",
        "platform": "Sentinel-2A",
        "constellation": "Sentinel 2",
        "proj:epsg": 32632,
        "s2:mgrs_tile": "32TNR",
        "eo:cloud_cover": 12.5,
        "s2:mean_solar_azimuth": 150.0,
        "s2:mean_solar_zenith": 30.0,
        **PRODUCT,
        "sat:relative_orbit": 22,
    }
    assets = {name: {"href": f"{name}.tif"} for name in (*L2A_BANDS, "SCL")}
    assets["product-metadata"] = {"href": "product_metadata.xml"}
    return to_item("S2A_MSIL2A_20210603T102000_N0500_R022_T32TNR_20230101T000000", properties, assets, collection="sentinel-2-l2a")


def cdse_item() -> dict[str, Any]:
    """Copernicus Data Space, STAC 1.1: resolutions in the keys, CRS, scale and offset at the assets."""
    properties = {
        "datetime": "2021-06-03T10:20:00.024000Z",
        "platform": "sentinel-2a",
        "constellation": "sentinel-2",
        "grid:code": "MGRS-32TNR",
        "eo:cloud_cover": 12.5,
        "view:sun_azimuth": 150.0,
        "view:sun_elevation": 60.0,
        "product:type": "S2MSI2A",
        "processing:level": "L2",
        "processing:version": "05.00",
        "processing:datetime": "2023-01-01T00:00:00Z",
        "eopf:datatake_id": "GS2A_20210603T102000_031068_N05.00",
        "eopf:datastrip_id": "S2A_OPER_MSI_L2A_DS_S2RP_20230101T000000_S20210603T102201_N05.00",
        "sat:relative_orbit": 22,
        "sat:absolute_orbit": 31068,
    }
    assets: dict[str, Any] = {"product_metadata": {"href": "product_metadata.xml"}}
    for name in (*L2A_BANDS, "SCL"):
        for gsd in (60, 20, 10):
            if gsd >= GSD_M.get(name, 20):
                asset = {"href": f"{name}.tif", "type": "image/jp2", "gsd": gsd, "proj:code": "EPSG:32632"}
                stated = {"raster:scale": 0.0001, "raster:offset": -0.1, "bands": [{"name": name}]} if name != "SCL" else {}
                native = gsd == GSD_M.get(name, 20)
                assets[f"{name}_{gsd}m"] = {**asset, **stated, "href": f"{name}.tif" if native else f"{name}_{gsd}m.tif"}
    return to_item("S2A_MSIL2A_20210603T102000_N0500_R022_T32TNR_20230101T000000", properties, assets, stac_version="1.1.0")


def stactools_item() -> dict[str, Any]:
    """What stactools writes: common names, coarser twins with the resolution in the key, finer ones of 60 m bands likewise."""
    item = c1_item()
    for key in list(COMMON.values()):
        if key in item["assets"]:
            for gsd in (60, 20):
                item["assets"][f"{key}_{gsd}m"] = {"href": f"{key}_{gsd}m.tif", "proj:transform": [gsd, 0, 0, 0, -gsd, 0]}
    item["assets"]["scl_60m"] = {"href": "scl_60m.tif", "gsd": 60}
    item.pop("collection")
    return item


def sar_item(**properties: Any) -> dict[str, Any]:
    """Planetary Computer, `sentinel-1-rtc`."""
    known = {"datetime": "2021-06-02T05:25:48Z", "platform": "SENTINEL-1A", "constellation": "Sentinel-1", "proj:epsg": 32632}
    assets = {"vv": {"href": "vv.tif"}, "vh": {"href": "vh.tif"}}
    return to_item("S1A_rtc", {**known, "sat:relative_orbit": 44, **properties}, assets, collection="sentinel-1-rtc")


def grd_item(*polarisations: str, mode: str = "IW") -> dict[str, Any]:
    """Planetary Computer and Earth Search, `sentinel-1-grd`: the product annotation is listed as the file on radio interference."""
    properties = {
        "datetime": "2025-03-12T05:22:49.103098Z",
        "platform": "SENTINEL-1A",
        "sar:product_type": "GRD",
        "sar:instrument_mode": mode,
        "sat:absolute_orbit": 58267,
        "sat:orbit_state": "descending",
        "s1:slice_number": "28",
        "s1:datatake_id": "471956",
        "proj:epsg": 4326,
    }
    assets: dict[str, Any] = {"safe-manifest": {"href": "s3://sentinel-s1-l1c/a/manifest.safe"}}
    for name in map(str.lower, polarisations):
        own = f"{mode.lower()}-{name}"
        assets[name] = {"href": f"s3://sentinel-s1-l1c/a/measurement/{own}.tiff"}
        assets[f"schema-product-{name}"] = {"href": f"s3://sentinel-s1-l1c/a/annotation/rfi/rfi-{own}.xml", "file:size": 7}
        for kind in ("calibration", "noise"):
            assets[f"schema-{kind}-{name}"] = {"href": f"s3://sentinel-s1-l1c/a/annotation/calibration/{kind}-{own}.xml"}
    return to_item(SLICE, properties, assets, collection="sentinel-1-grd")


def l1c_item() -> dict[str, Any]:
    """Earth Search, `sentinel-2-l1c`."""
    item = c1_item()
    for key in ("scl", "granule_metadata"):
        item["assets"].pop(key)
    item["assets"]["cirrus"] = {"href": "B10.tif"}
    item["properties"]["s2:product_type"] = "S2MSI1C"
    return {**item, "collection": "sentinel-2-l1c"}


def hrefs_of(record: ItemRecord) -> dict[str, str]:
    return {name: asset.href for name, asset in record.assets.items()}


def change(item: dict[str, Any], path: str, value: Any = None) -> dict[str, Any]:
    """`item` with one value at a path such as `assets/red` replaced, or taken out if None."""
    *outer, last = path.split("/")
    holder = item
    for part in outer:
        holder = holder[part]
    if value is None:
        holder.pop(last)
    else:
        holder[last] = value
    return item


@pytest.mark.parametrize("make", [c1_item, twin_item, planetary_item, cdse_item, stactools_item])
def test_every_dialect_becomes_the_same_record(make: Any) -> None:
    record = to_item_record(make())
    assert hrefs_of(record) == {**{name: f"{name}.tif" for name in (*L2A_BANDS, "SCL")}, "MTD": "product_metadata.xml"}
    assert list(record.assets) == [*L2A_BANDS, "SCL", "MTD"]
    assert (record.time, record.crs, record.sensor) == ("2021-06-03T10:20:00.024000Z", "EPSG:32632", "sentinel2-l2a")
    assert (record.sun_azimuth_deg, record.sun_elevation_deg, record.cloud_cover_pct) == (150.0, 60.0, 12.5)
    assert record.processing_baseline == "05.00"
    assert record.declared_offset == (None if make is planetary_item else -0.1)
    assert record.offset_applied == (None if make in (planetary_item, cdse_item) else False)
    expected = {
        "platform": "sentinel-2a",
        "tile": "32TNR",
        "relative_orbit": "22",
        "datatake": "GS2A_20210603T102000_031068_N05.00",
        "datastrip": "S2A_OPER_MSI_L2A_DS_S2RP_20230101T000000_S20210603T102201_N05.00",
        "generated": "2023-01-01T00:00:00Z",
    }
    assert expected.items() <= record.properties.items()
    assert "coarser" not in record.properties


@pytest.mark.parametrize("make", [c1_item, planetary_item, cdse_item, stactools_item, l1c_item, sar_item, lambda: grd_item("HH")])
@pytest.mark.filterwarnings("ignore:Could not parse bucket:UserWarning")
def test_pystac_rewriting_an_item_changes_nothing_in_the_record(make: Any) -> None:
    rewritten = pystac.Item.from_dict(copy.deepcopy(make()), migrate=True).to_dict(transform_hrefs=False)
    assert to_item_record(rewritten) == to_item_record(make())


def test_whom_to_believe_comes_from_the_preset() -> None:
    sources = PRESETS["planetary-computer"].offset_sources
    assert to_item_record(planetary_item(), offset_sources=sources).offset_sources == sources
    assert to_item_record(planetary_item()).offset_sources == PRESETS["local"].offset_sources


def test_a_top_of_atmosphere_item_has_all_thirteen_bands_and_no_classes() -> None:
    record = to_item_record(l1c_item())
    assert record.sensor == "sentinel2-l1c"
    assert list(record.assets) == [*L1C_BANDS, "MTD"]


@pytest.mark.parametrize(
    ("changes", "sensor"),
    [
        ({"properties/s2:product_type": None}, "sentinel2-l2a"),  # by the product's name
        ({"properties/s2:product_type": None, "properties/s2:product_uri": None}, "sentinel2-l2a"),  # by the item's
        ({"properties/s2:product_type": None, "properties/s2:product_uri": None, "id": "x"}, "sentinel2-l2a"),  # by the collection's
        ({"properties/s2:product_type": "S2MSI1C"}, "sentinel2-l1c"),
    ],
)
def test_the_level_is_what_the_product_says_before_what_the_collection_says(changes: dict[str, Any], sensor: str) -> None:
    item = c1_item()
    for path, value in changes.items():
        change(item, path, value)
    assert to_item_record(item).sensor == sensor


def test_a_missing_band_leaves_a_record_without_it() -> None:
    record = to_item_record(change(twin_item(), "assets/red"))
    assert list(record.assets) == [*(name for name in L2A_BANDS if name != "B04"), "SCL", "MTD"]


def test_a_band_that_is_only_there_coarser_is_taken_and_named() -> None:
    record = to_item_record(change(cdse_item(), "assets/B02_10m"))
    assert record.assets["B02"].href == "B02_20m.tif"
    assert record.properties["coarser"] == "B02 from B02_20m"


def test_a_finer_twin_is_preferred_to_a_coarser_one() -> None:
    item = change(cdse_item(), "assets/B05_20m", {"href": "B05_10m.tif", "gsd": 10})
    assert to_item_record(item).assets["B05"].href == "B05_10m.tif"


def test_bands_of_one_file_are_told_apart_by_their_place() -> None:
    names = ("B8A", "B04", "red-edge", "B03", "scl")
    for key in ("eo:bands", "bands"):
        assets = {"data": {"href": "all.tif", key: [{"name": name} for name in names]}, "preview": {"href": "p.tif"}}
        assets["preview"][key] = [{"name": "B02"}]
        record = to_item_record({**planetary_item(), "assets": assets})
        assert {name: (asset.href, asset.index) for name, asset in record.assets.items()} == {
            "B03": ("all.tif", 4),
            "B04": ("all.tif", 2),
            "B8A": ("all.tif", 1),
            "SCL": ("all.tif", 5),
        }


def test_the_offset_of_a_band_is_read_at_its_place_in_the_file() -> None:
    asset = {"href": "all.tif", "eo:bands": [{"name": "SCL"}, {"name": "B04"}], "raster:bands": [{"offset": 0}, {"offset": -0.1}]}
    assert to_item_record({**planetary_item(), "assets": {"data": asset}}).declared_offset == -0.1


@pytest.mark.parametrize("polarisations", [("VV", "VH"), ("VV",), ("HH",), ("HH", "HV")])
@pytest.mark.parametrize("mode", ["IW", "EW"])
def test_ground_range_holds_its_polarisations_each_with_what_describes_it(polarisations: tuple[str, ...], mode: str) -> None:
    record = to_item_record(grd_item(*reversed(polarisations), mode=mode))
    assert (record.sensor, record.crs) == ("sentinel1-grd", "")
    described = [f"{kind}-{name}" for name in polarisations for kind in ("annotation", "calibration", "noise")]
    assert list(record.assets) == [*polarisations, *described]
    for name in polarisations:
        own = f"{mode.lower()}-{name.lower()}"
        assert record.assets[name].href == f"s3://sentinel-s1-l1c/a/measurement/{own}.tiff"
        assert record.assets[f"annotation-{name}"].href == f"s3://sentinel-s1-l1c/a/annotation/{own}.xml"
        assert record.assets[f"annotation-{name}"].size_bytes is None  # that of the file on interference is another's
        assert record.assets[f"noise-{name}"].href == f"s3://sentinel-s1-l1c/a/annotation/calibration/noise-{own}.xml"
    assert record.properties == {
        "platform": "sentinel-1a",
        "orbit_state": "descending",
        "absolute_orbit": "58267",
        "datatake": "471956",
        "mode": mode,
        "slice": "28",
        "polarisations": " ".join(polarisations),
    }


def test_ground_range_of_cdse_keeps_its_own_names_and_lacks_a_crs() -> None:
    name, folder = "s1c-iw-grd-vv-20260728t150953-20260728t151018-003932-007d3b-001-cog", "s3://eodata/S1C_COG.SAFE"
    properties = {"datetime": "2026-07-28T15:10:05Z", "platform": "sentinel-1c", "product:type": "IW_GRDH_1S", "sar:instrument_mode": "IW"}
    assets = {
        "vv": {"href": f"{folder}/measurement/{name}.tiff", "proj:code": None, "file:size": 9},
        "schema-calibration-vv": {"href": f"{folder}/annotation/calibration/calibration-{name}.xml", "file:size": 8},
        "safe_manifest": {"href": f"{folder}/manifest.safe"},
        "Product": {"href": "https://download.example/odata/v1/Products(1)/$value"},
    }
    record = to_item_record(to_item(f"{SLICE}_COG", properties, assets, stac_version="1.1.0", collection="sentinel-1-grd"))
    assert (record.sensor, record.crs, record.properties["platform"]) == ("sentinel1-grd", "", "sentinel-1c")
    assert {key: (asset.href.removeprefix(folder), asset.size_bytes) for key, asset in record.assets.items()} == {
        "VV": (f"/measurement/{name}.tiff", 9),
        "annotation-VV": (f"/annotation/{name}.xml", None),
        "calibration-VV": (f"/annotation/calibration/calibration-{name}.xml", 8),
    }


def test_an_annotation_that_is_not_listed_lies_beside_the_calibration() -> None:
    record = to_item_record(change(grd_item("VV"), "assets/schema-product-vv"))
    assert record.assets["annotation-VV"].href == "s3://sentinel-s1-l1c/a/annotation/iw-vv.xml"


def test_a_terrain_corrected_item_has_no_optical_facts() -> None:
    record = to_item_record(sar_item(**{"sat:orbit_state": "descending"}))
    assert record.sensor == "sentinel1-rtc"
    assert hrefs_of(record) == {"VV": "vv.tif", "VH": "vh.tif"}
    expected = {"platform": "sentinel-1a", "orbit_state": "descending", "relative_orbit": "44", "polarisations": "VV VH"}
    assert record.properties == expected
    assert (record.cloud_cover_pct, record.declared_offset, record.time) == (None, None, "2021-06-02T05:25:48Z")


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        ({**c1_item(), "assets": {"scl": {"href": "a"}}}, MissingError, r"none of B01, B02.*is among its assets: scl"),
        ({**twin_item(), "assets": {"red-jp2": {"href": "a"}}}, MissingError, r"among its assets: red-jp2"),
        ({**sar_item(), "assets": {"thumbnail": {"href": "a"}}}, MissingError, r"none of VV, VH, HH, HV is among its assets: thumbnail"),
        (change(grd_item("VV"), "properties/sar:product_type", "SLC"), DataError, r"SLC is neither terrain-corrected.*nor ground range"),
        (change(planetary_item(), "properties/platform", "landsat-8"), DataError, r"'landsat-8' is not known"),
        (change(planetary_item(), "properties/datetime", "noon"), DataError, r"time 'noon' is not RFC 3339"),
        (change(planetary_item(), "bbox"), DataError, r"states no bbox"),
        (change(planetary_item(), "bbox", [1, 2, 3]), DataError, r"bbox \[1, 2, 3\] is not of four or six numbers"),
        (change(planetary_item(), "bbox", [10, 46, 11, 45]), DataError, r"is not west, south, east, north"),
        (change(c1_item(), "assets/red/raster:bands", [{"offset": 0}]), DataError, r"different offsets: \[-0.1, 0.0\]"),
        (change(c1_item(), "properties/eo:cloud_cover", "some"), ConfigError, r"cloud_cover_pct.*'some'"),
        (
            {**c1_item(), "id": "x", "collection": "mine", "properties": {"platform": "sentinel-2a"}},
            DataError,
            r"whether it is L1C or L2A: product type '', collection 'mine'",
        ),
    ],
)
def test_an_item_that_cannot_be_read_says_why(item: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        to_item_record(item)
    assert "\n" not in str(caught.value)


def list_places(part: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested mappings and lists, the outermost left out."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [*([place] if place else []), *(found for key, value in inner for found in list_places(value, (*place, key)))]


@pytest.mark.parametrize("make", [c1_item, planetary_item, cdse_item, sar_item, lambda: grd_item("HH")])
@pytest.mark.parametrize(
    "junk", [None, "x", "7", -1, 3.5, float("nan"), [], [None], ["7"], {}, {"a": 1}, True, 10**400], ids=lambda junk: repr(junk)[:9]
)
def test_whatever_stands_anywhere_in_an_item_gives_a_record_or_a_refusal(make: Any, junk: Any) -> None:
    whole = make()
    for place in list_places(whole):
        *outer, last = place
        holder = whole
        for key in outer:
            holder = holder[key]
        before, holder[last] = holder[last], junk
        with contextlib.suppress(ConfigError, DataError, MissingError):
            to_item_record(whole)
        holder[last] = before


@pytest.mark.parametrize(
    ("item", "field", "expected"),
    [
        (change(planetary_item(), "properties/s2:processing_baseline"), "processing_baseline", "05.00"),  # from the product's name
        (change(planetary_item(), "properties/s2:processing_baseline", "5.11"), "processing_baseline", "05.11"),
        (change(cdse_item(), "properties/processing:version", "v2024.02.01"), "processing_baseline", "05.00"),
        (change(planetary_item(), "bbox", [10, 45, -3, 11, 46, 900]), "bbox", (10, 45, 11, 46)),
        (change(planetary_item(), "bbox", [179.4, -17, -179.6, -16]), "bbox", (179.4, -17, -179.6, -16)),
        (change(planetary_item(), "bbox", [179.5, -17, 180.5, -16]), "bbox", (179.5, -17, -179.5, -16)),
        (change(planetary_item(), "properties/datetime", "2021-06-03T12:20:00+02:00"), "time", "2021-06-03T10:20:00Z"),
        (change(planetary_item(), "properties/proj:epsg"), "crs", "EPSG:32632"),  # from the tile
        (change(change(planetary_item(), "properties/proj:epsg"), "properties/s2:mgrs_tile", "35MNM"), "crs", "EPSG:32735"),
        (change(sar_item(), "properties/proj:epsg"), "crs", ""),
    ],
)
def test_what_is_stated_otherwise_or_not_at_all(item: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(to_item_record(item), field) == expected


def test_a_tile_has_two_digits_however_it_is_written() -> None:
    for properties in ({"grid:code": "MGRS-6VVN"}, {"mgrs:utm_zone": 6, "mgrs:latitude_band": "V", "mgrs:grid_square": "VN"}):
        item = change(c1_item(), "properties/grid:code")
        item["properties"].update(properties)
        assert to_item_record(item).properties["tile"] == "06VVN"


def test_checksum_and_size_of_files_are_kept() -> None:
    item = change(c1_item(), "assets/red", {"href": "a.tif", "file:checksum": "1220ab", "file:size": 12})
    asset = to_item_record(item).assets["B04"]
    assert (asset.checksum, asset.size_bytes) == ("1220ab", 12)


def test_addresses_inside_the_catalogue_are_kept_relative_to_it() -> None:
    item = sar_item()
    item["assets"]["vv"]["href"], item["assets"]["vh"]["href"] = "http://127.0.0.1:81/w/vv.tif", "http://127.0.0.1:810/vh.tif"
    record = to_item_record(item, base_url="http://127.0.0.1:81")
    assert hrefs_of(record) == {"VV": "w/vv.tif", "VH": "http://127.0.0.1:810/vh.tif"}


def test_relative_addresses_are_taken_from_the_item_s_own() -> None:
    item = sar_item()
    item["links"] = [{"rel": "self", "href": "https://example.org/stac/items/a.json"}]
    item["assets"]["vv"]["href"] = "../data/vv.tif"
    assert to_item_record(item).assets["VV"].href == "https://example.org/stac/data/vv.tif"


def test_a_signature_in_an_address_does_not_reach_the_lock() -> None:
    item = change(sar_item(), "assets/vv/href", "https://a.blob.core.windows.net/c/vv.tif?se=2025-01-01T00%3A00%3A00Z&sp=rl&sig=secret")
    assert to_item_record(item).assets["VV"].href == "https://a.blob.core.windows.net/c/vv.tif"


# Real items.


@pytest.fixture(scope="module")
def samples() -> Path:
    return find_samples() / "stac"


def read_items(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    content = content.get("response", content) if isinstance(content, dict) else content
    items: list[dict[str, Any]] = content if isinstance(content, list) else content.get("features", [content])
    return [item for item in items if item.get("type") == "Feature"]


REAL = {
    "odc_stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json": {"sentinel2-l2a": 1},
    "odc_stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531_raster_ext.json": {"sentinel2-l2a": 1},
    "odc_stac/sentinel-2-l2a.collection.json": {},
    "odc_stac/site2-2020_jun_jul-35MNM.geojson": {"sentinel2-l2a": 13},
    "recorded/01_earthsearch_GET.json": {},
    "recorded/05_planetarycomputer_GET.json": {},
    "recorded/13_planetarycomputer_GET.json": {"sentinel1-grd": 1},
    "recorded/14_planetarycomputer_GET.json": {"sentinel1-rtc": 1},
    "rustac/server/data/sentinel-2/collection.json": {},
    "rustac/server/data/sentinel-2/item-collection.json": {"sentinel2-l2a": 10},
    "stac_geoparquet/data/cop-dem-glo-30-pc.json": {"refused": 4},
    "stac_geoparquet/data/sentinel-1-rtc-pc.json": {"sentinel1-rtc": 4},
    "stac_geoparquet/data/sentinel-2-l2a-pc.json": {"sentinel2-l2a": 4},
    "stactools_sentinel1/examples/grd/S1A_EW_GRDM_1SDH_20221130T014342_20221130T014446_046117_058549": {"sentinel1-grd": 1},
    "stactools_sentinel1/examples/grd/S1A_IW_GRDH_1SDV_20210809T173953_20210809T174018_039156_049F13": {"sentinel1-grd": 1},
    "stactools_sentinel1/examples/grd/collection.json": {},
    "stactools_sentinel2/S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.SAFE": {"sentinel2-l2a": 1},
    "stactools_sentinel2/esa_S2B_MSIL2A_20210122T133229_N0214_R081_T22HBD_20210122T155500.SAFE": {"sentinel2-l2a": 1},
}
"""Every file with JSON among the samples, a folder standing for the one in it, and what its items are; `refused`: elevation models."""


@pytest.mark.real
def test_no_real_file_is_left_out(samples: Path) -> None:
    found = [path for path in samples.rglob("*") if path.suffix in (".json", ".geojson")]
    names = {path.relative_to(samples).as_posix() for path in found}
    assert {name if name in REAL else str(Path(name).parent) for name in names} == REAL.keys()
    assert len(found) == len(REAL)
    assert sum(sum(counts.values()) for counts in REAL.values()) == 43


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:Could not parse bucket:UserWarning")  # pystac rewriting the storage extension
@pytest.mark.parametrize(("name", "counts"), REAL.items())
def test_every_real_item_becomes_a_record_before_and_after_pystac(samples: Path, name: str, counts: dict[str, int]) -> None:
    path = samples / name if (samples / name).is_file() else next((samples / name).glob("*.json"))
    kinds: Counter[str] = Counter()
    for item in read_items(path):
        if "dem" in item["id"].lower():
            with pytest.raises(DataError, match="'tandem-x' is not known"):
                to_item_record(item)
            kinds["refused"] += 1
            continue
        record = to_item_record(item)
        rewritten = pystac.Item.from_dict(copy.deepcopy(item)).to_dict(transform_hrefs=False)
        assert to_item_record(rewritten) == record
        check_record(record)
        kinds[record.sensor] += 1
    assert kinds == counts


def check_record(record: ItemRecord) -> None:
    """What is true of every real item, whoever wrote it."""
    assert record.properties["platform"] in {f"sentinel-{unit}" for unit in ("1a", "2a", "2b")}
    west, south, east, north = record.bbox
    assert -180 <= west < east <= 180
    assert -90 <= south < north <= 90
    if record.sensor == "sentinel2-l2a":
        assert list(record.assets) == [*L2A_BANDS, "SCL", "MTD"]
        assert all(name in record.assets[name].href for name in (*L2A_BANDS, "SCL"))
        assert all(f"_{GSD_M[name]}m." in record.assets[name].href or "earth-search" in record.assets[name].href for name in L2A_BANDS)
        assert record.assets["MTD"].href.endswith(("MTD_MSIL2A.xml", "product_metadata.xml"))
        assert record.crs.startswith(("EPSG:326", "EPSG:327"))
        assert record.crs.endswith(record.properties["tile"][:2])
        assert f"_N{str(record.processing_baseline).replace('.', '')}_" in record.properties["product"]
        assert f"_R{int(record.properties['relative_orbit']):03d}_" in record.properties["product"]
        assert record.declared_offset in ({"02.14": {0.0}, "04.00": {-0.1}}.get(str(record.processing_baseline), {None, -0.1}))
        assert {"datatake", "datastrip", "generated"} <= record.properties.keys()
        assert record.sun_elevation_deg is not None
        assert 0 < record.sun_elevation_deg < 90
    else:
        held = record.properties["polarisations"].split()
        assert held == (["HH", "HV"] if "_1SDH_" in record.item else ["VV", "VH"])
        assert all(f"-{name.lower()}" in record.assets[name].href for name in held)
        kinds = () if record.sensor == "sentinel1-rtc" else ("annotation", "calibration", "noise")
        assert list(record.assets) == [*held, *(f"{kind}-{name}" for name in held for kind in kinds)]
        assert not any("rfi" in asset.href for asset in record.assets.values())
        assert f"_{record.properties['mode']}_" in record.item
        assert f"_{int(record.properties['absolute_orbit']):06d}_" in record.item
        assert {"orbit_state", "relative_orbit", "datatake", "slice"} <= record.properties.keys()


LANDSAT_KEYS = {"blue": "SR_B2", "green": "SR_B3", "red": "SR_B4", "nir08": "SR_B5", "swir16": "SR_B6", "swir22": "SR_B7"}


def landsat_item(**raster: Any) -> dict[str, Any]:
    """Both catalogues, `landsat-c2-l2`, in the shape of stactools-landsat's."""
    numbers = {"nodata": 0, "data_type": "uint16", "scale": 2.75e-05, "offset": -0.2, **raster}
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    assets: dict[str, Any] = {
        key: {"href": f"{name}.TIF", "type": cog, "eo:bands": [{"name": name, "common_name": key}], "raster:bands": [numbers]}
        for key, name in LANDSAT_KEYS.items()
    }
    assets["qa_pixel"] = {"href": "QA_PIXEL.TIF", "type": cog, "raster:bands": [{"data_type": "uint16", "unit": "bit index"}]}
    assets["lwir11"] = {"href": "ST_B10.TIF", "type": cog, "raster:bands": [{"scale": 0.00341802, "offset": 149.0}]}
    assets["mtl.xml"] = {"href": "MTL.xml", "type": "application/xml"}
    properties = {
        "platform": "landsat-9",
        "datetime": "2022-01-29T15:28:34.396428Z",
        "created": "2022-03-09T15:13:21.724443Z",
        "eo:cloud_cover": 21.12,
        "view:sun_elevation": 57.84,
        "view:sun_azimuth": 112.2,
        "proj:epsg": 32617,
        "landsat:wrs_path": "010",
        "landsat:wrs_row": "065",
    }
    return to_item("LC09_L2SP_010065_20220129_02_T1", properties, assets, collection="landsat-c2-l2")


def modis_item() -> dict[str, Any]:
    """Planetary Computer, `modis-09A1-061`: no moment, no EPSG code, a file with all bands beside those of one."""
    bands = {1: "red", 2: "nir08", 3: "blue", 4: "green", 5: "lwir12", 6: "swir16", 7: "swir22"}
    names = {number: {"name": f"sur_refl_b0{number}", "common_name": common} for number, common in bands.items()}
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    assets: dict[str, Any] = {
        band["name"]: {
            "href": f"{band['name']}.tif",
            "type": cog,
            "eo:bands": [band],
            "raster:bands": [{"data_type": "int16", "spatial_resolution": 500, "scale": 0.0001}],
        }
        for band in names.values()
    }
    assets["hdf"] = {"href": "all.hdf", "type": "application/x-hdf", "eo:bands": list(names.values())}
    assets["sur_refl_state_500m"] = {"href": "state.tif", "type": cog, "raster:bands": [{"data_type": "uint16"}]}
    assets["sur_refl_szen"] = {"href": "szen.tif", "type": cog, "raster:bands": [{"scale": 0.01}]}
    properties = {
        "datetime": None,
        "start_datetime": "2022-02-02T00:00:00Z",
        "end_datetime": "2022-02-09T23:59:59Z",
        "modis:horizontal-tile": 19,
        "modis:vertical-tile": 10,
        "platform": "terra",
        "created": "2022-02-11T04:35:14Z",
        "proj:epsg": None,
        "proj:wkt2": 'PROJCS["unnamed", ...]',
    }
    return to_item("MOD09A1.A2022033.h19v10.061.2022042043514", properties, assets, collection="modis-09A1-061")


def test_an_item_of_landsat_is_a_record_by_our_names() -> None:
    record = to_item_record(landsat_item())
    hrefs = {name: asset.href for name, asset in record.assets.items()}
    near = {"B08": "SR_B5.TIF", "B8A": "SR_B5.TIF"}
    visible = {"B02": "SR_B2.TIF", "B03": "SR_B3.TIF", "B04": "SR_B4.TIF"}
    assert hrefs == {**visible, **near, "B11": "SR_B6.TIF", "B12": "SR_B7.TIF", "QA": "QA_PIXEL.TIF"}
    assert (record.sensor, record.time, record.crs) == ("landsat-oli", "2022-01-29T15:28:34.396428Z", "EPSG:32617")
    assert (record.cloud_cover_pct, record.sun_elevation_deg, record.declared_offset) == (21.12, 57.84, None)
    assert record.properties == {"platform": "landsat-9", "tile": "010065", "generated": "2022-03-09T15:13:21.724443Z"}


def test_bands_of_landsat_are_found_by_the_name_inside_too() -> None:
    item = landsat_item()
    item["assets"] = {asset["href"]: asset for asset in item["assets"].values()}
    assert to_item_record(item).assets["B8A"].href == "SR_B5.TIF"


def test_a_composite_of_modis_is_dated_by_the_middle_of_its_period() -> None:
    record = to_item_record(modis_item())
    assert {name: asset.href for name, asset in record.assets.items()} == {
        "B02": "sur_refl_b03.tif",
        "B03": "sur_refl_b04.tif",
        "B04": "sur_refl_b01.tif",
        "B08": "sur_refl_b02.tif",
        "B8A": "sur_refl_b02.tif",
        "B11": "sur_refl_b06.tif",
        "B12": "sur_refl_b07.tif",
        "QA": "state.tif",
    }
    assert (record.sensor, record.time, record.crs, record.cloud_cover_pct) == ("modis-09a1", "2022-02-05T23:59:59.500000Z", "", None)
    assert record.properties["period"] == "2022-02-02T00:00:00Z/2022-02-09T23:59:59Z"
    assert record.properties["tile"] == "h19v10"


def test_a_daily_product_keeps_the_day_that_it_states() -> None:
    item = modis_item()
    item["id"] = "MCD43A4.A2022032.h14v10.061.2022041051831"
    item["properties"] |= {"datetime": "2022-02-01T00:00:00Z", "platform": "terra,aqua"}
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    reflectance = {f"Nadir_Reflectance_Band{n}": {"href": f"nbar{n}.tif", "type": cog} for n in range(1, 8)}
    quality = {f"BRDF_Albedo_Band_Mandatory_Quality_Band{n}": {"href": f"q{n}.tif", "type": cog} for n in range(1, 8)}
    record = to_item_record({**item, "assets": reflectance | quality})
    assert (record.sensor, record.time, record.assets["B8A"].href) == ("modis-43a4", "2022-02-01T00:00:00Z", "nbar2.tif")
    assert "QA" not in record.assets
    assert "period" not in record.properties


@pytest.mark.parametrize(
    ("raster", "words"),
    [
        ({"scale": 0.0001}, "scale 0.0001 where it is 2.75e-05"),
        ({"offset": 0}, "offset 0 where it is -0.2"),
        ({"scale": None, "offset": None}, ""),
    ],
)
def test_a_scale_that_contradicts_the_product_is_named_and_nothing_is_read(raster: dict[str, Any], words: str) -> None:
    if not words:
        assert to_item_record(landsat_item(**raster)).sensor == "landsat-oli"
        return
    with pytest.raises(DataError, match=rf"its asset blue states {words} in Landsat 8/9 Collection 2 Level-2"):
        to_item_record(landsat_item(**raster))


def test_what_no_row_knows_names_all_that_are_known() -> None:
    item = landsat_item()
    with pytest.raises(
        DataError, match=r"platform 'landsat-9' is not known: expected sentinel-1 or sentinel-2, or Landsat 8/9 .*, MODIS 09A1"
    ):
        to_item_record({**item, "id": "LC09_L1TP_010065_20220129_02_T1"})


def test_an_item_of_landsat_without_reflectance_is_missing() -> None:
    item = landsat_item()
    with pytest.raises(
        MissingError, match="none of coastal, blue, green, red, nir08, swir16, swir22 is among its assets: lwir11, qa_pixel"
    ):
        to_item_record({**item, "assets": {key: item["assets"][key] for key in ("lwir11", "qa_pixel")}})
