"""Opening catalogues, outliving their moods, and bringing the items of both dialects into one form."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pystac
import pytest
import requests

from sereno.pipeline import catalogue as nouns
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.catalogue import Catalogue, open_catalogue, resolve_href, search_items, select_collections, to_scene_record
from sereno.pipeline.errors import CatalogueError, DataError, MissingError

COMMON = {band.name: band.common_name for band in SENTINEL2_BANDS}
WORLD = (-180.0, -90.0, 180.0, 90.0)
RING = [[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]


def to_item(name: str, properties: dict[str, Any], assets: dict[str, Any], **more: Any) -> dict[str, Any]:
    plain = {"type": "Feature", "stac_version": "1.0.0", "id": name, "bbox": [10, 45, 11, 46], "links": []}
    return {**plain, "geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": properties, "assets": assets, **more}


def earth_search_item() -> dict[str, Any]:
    properties = {
        "datetime": "2021-06-03T10:20:00.024000Z",
        "platform": "sentinel-2a",
        "constellation": "sentinel-2",
        "proj:code": "EPSG:32632",
        "grid:code": "MGRS-32TNR",
        "eo:cloud_cover": 12.5,
        "view:sun_azimuth": 150.0,
        "view:sun_elevation": 60.0,
        "s2:processing_baseline": "05.00",
        "s2:generation_time": "2023-01-01T00:00:00Z",
        "earthsearch:boa_offset_applied": False,
    }
    assets = {COMMON[name]: {"href": f"{name}.tif", "raster:bands": [{"scale": 0.0001, "offset": -0.1}]} for name in L2A_BANDS}
    assets["scl"] = {"href": "SCL.tif", "raster:bands": [{"nodata": 0}]}
    return to_item("S2A_T32TNR_20210603T102000_L2A", properties, assets, collection="sentinel-2-c1-l2a")


def planetary_item() -> dict[str, Any]:
    properties = {
        "datetime": "2021-06-03T10:20:00.024000Z",
        "platform": "Sentinel-2A",
        "constellation": "Sentinel 2",
        "proj:epsg": 32632,
        "s2:mgrs_tile": "32TNR",
        "eo:cloud_cover": 12.5,
        "s2:mean_solar_azimuth": 150.0,
        "s2:mean_solar_zenith": 30.0,
        "s2:processing_baseline": "05.00",
        "s2:generation_time": "2023-01-01T00:00:00Z",
    }
    assets = {name: {"href": f"{name}.tif"} for name in (*L2A_BANDS, "SCL")}
    return to_item("S2A_MSIL2A_20210603T102000_N0500_R022_T32TNR_20230101T000000", properties, assets, collection="sentinel-2-l2a")


def sar_item(**properties: Any) -> dict[str, Any]:
    known = {"datetime": "2021-06-02T05:25:48Z", "platform": "SENTINEL-1A", "constellation": "Sentinel-1", "proj:epsg": 32632}
    assets = {"vv": {"href": "vv.tif"}, "vh": {"href": "vh.tif"}}
    return to_item("S1A_rtc", {**known, "sat:relative_orbit": 44, **properties}, assets, collection="sentinel-1-rtc")


def test_both_dialects_become_the_same_record() -> None:
    one, other = (to_scene_record(item()).model_dump() for item in (earth_search_item, planetary_item))
    differing = {key for key in one if one[key] != other[key]}
    assert differing == {"id", "item", "collection", "declared_offset", "offset_applied"}
    assert (one["declared_offset"], one["offset_applied"]) == (-0.1, False)
    assert (other["declared_offset"], other["offset_applied"]) == (None, None)
    assert list(one["assets"]) == [*L2A_BANDS, "SCL"]
    assert one["assets"]["B8A"] == "B8A.tif"
    assert (one["time"], one["crs"], one["sensor"]) == ("2021-06-03T10:20:00.024000Z", "EPSG:32632", "sentinel2-l2a")
    assert (one["sun_azimuth_deg"], one["sun_elevation_deg"]) == (150.0, 60.0)
    assert one["properties"] == {"platform": "sentinel-2a", "tile": "32TNR", "generated": "2023-01-01T00:00:00Z"}


@pytest.mark.parametrize("make", [earth_search_item, planetary_item, sar_item])
def test_pystac_rewriting_an_item_changes_nothing_in_the_record(make: Any) -> None:
    rewritten = pystac.Item.from_dict(copy.deepcopy(make()), migrate=True).to_dict(transform_hrefs=False)
    assert to_scene_record(rewritten) == to_scene_record(make())


def test_a_sar_item_has_both_polarisations_and_no_optical_facts() -> None:
    record = to_scene_record(sar_item(**{"sat:orbit_state": "descending"}))
    assert record.sensor == "sentinel1-rtc"
    assert record.assets == {"VV": "vv.tif", "VH": "vh.tif"}
    assert record.properties == {"platform": "sentinel-1a", "orbit_state": "descending", "relative_orbit": "44"}
    assert (record.cloud_cover_pct, record.declared_offset, record.time) == (None, None, "2021-06-02T05:25:48Z")


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


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (change(earth_search_item(), "assets/red"), MissingError, r"asset B04 or red or b04 is missing; the item has blue, coastal"),
        (change(planetary_item(), "assets/B12"), MissingError, r"asset B12 or swir22 or b12 is missing"),
        (change(sar_item(), "assets/vh"), MissingError, r"asset VH or vh is missing; the item has vv"),
        (change(sar_item(), "collection", "sentinel-1-grd"), DataError, r"'sentinel-1-grd' is not terrain-corrected gamma0"),
        (change(planetary_item(), "properties/s2:product_type", "S2MSI1C"), DataError, r"S2MSI1C is not surface reflectance"),
        (change(planetary_item(), "properties/constellation", "landsat"), DataError, r"'landsat' is not known"),
        (change(planetary_item(), "properties/datetime", "noon"), DataError, r"time 'noon' is not RFC 3339"),
        (change(planetary_item(), "bbox"), DataError, r"states no bbox"),
        (change(earth_search_item(), "assets/red/raster:bands", [{"offset": 0}]), DataError, r"different offsets: \[-0.1, 0\]"),
    ],
)
def test_an_item_that_cannot_be_read_says_why(item: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        to_scene_record(item)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "field", "expected"),
    [
        (change(planetary_item(), "properties/s2:processing_baseline"), "processing_baseline", "05.00"),  # from the product's name
        (change(earth_search_item(), "properties/s2:processing_baseline"), "processing_baseline", None),
        (change(planetary_item(), "bbox", [10, 45, -3, 11, 46, 900]), "bbox", (10, 45, 11, 46)),
        (change(planetary_item(), "properties/datetime", "2021-06-03T12:20:00+02:00"), "time", "2021-06-03T10:20:00Z"),
        (change(planetary_item(), "id", "a/b c:d"), "id", "a-b-c-d"),
        (change(sar_item(), "properties/proj:epsg"), "crs", ""),
        (change(planetary_item(), "assets/SCL"), "assets", {name: f"{name}.tif" for name in L2A_BANDS}),
    ],
)
def test_what_is_stated_otherwise_or_not_at_all(item: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(to_scene_record(item), field) == expected


def test_offsets_are_found_where_stac_1_1_puts_them() -> None:
    item = earth_search_item()
    for asset in item["assets"].values():
        asset["raster:offset"] = (asset.pop("raster:bands")[0]).get("offset")
    assert to_scene_record(item).declared_offset == -0.1


def test_addresses_inside_the_catalogue_are_kept_relative_to_it() -> None:
    item = sar_item()
    item["assets"]["vv"]["href"], item["assets"]["vh"]["href"] = "http://127.0.0.1:81/w/vv.tif", "http://127.0.0.1:810/vh.tif"
    record = to_scene_record(item, base_url="http://127.0.0.1:81")
    assert record.assets == {"VV": "w/vv.tif", "VH": "http://127.0.0.1:810/vh.tif"}
    later = Catalogue("folder", "http://127.0.0.1:99")
    assert resolve_href(later, record.assets["VV"]) == "http://127.0.0.1:99/w/vv.tif"
    assert resolve_href(later, record.assets["VH"]) == "http://127.0.0.1:810/vh.tif"


def test_relative_addresses_are_taken_from_the_item_s_own() -> None:
    item = sar_item()
    item["links"] = [{"rel": "self", "href": "https://example.org/stac/items/a.json"}]
    item["assets"]["vv"]["href"] = "../data/vv.tif"
    assert to_scene_record(item).assets["VV"] == "https://example.org/stac/data/vv.tif"


# Catalogues that answer, in a mood or not.


@contextmanager
def answering(answer: Any) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that answers with `answer(base, path, number of the request)`; and the paths asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            asked.append(self.path)
            status, value = answer(f"http://{self.headers['Host']}", self.path, len(asked))
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def answer_as_api(base: str, path: str, pages: dict[str, list[str]]) -> Any:
    """A minimal STAC API: the landing page, one collection, and search pages by token, each with items of given ids."""
    if path.startswith("/search"):
        token = path.partition("token=")[2] or "0"
        links = [{"rel": "next", "href": f"{base}/search?token={int(token) + 1}"}] if str(int(token) + 1) in pages else []
        return 200, {"type": "FeatureCollection", "features": [{**planetary_item(), "id": name} for name in pages[token]], "links": links}
    collection = {
        "type": "Collection",
        "id": "sentinel-2-l2a",
        "stac_version": "1.0.0",
        "description": "d",
        "license": "other",
        "links": [],
    }
    extent = {"spatial": {"bbox": [list(WORLD)]}, "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]}}
    if path.startswith("/collections"):
        return 200, {"collections": [{**collection, "extent": extent}], "links": []}
    links = [{"rel": "search", "href": f"{base}/search", "type": "application/geo+json"}, {"rel": "data", "href": f"{base}/collections"}]
    conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "collections", "item-search")]
    plain = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "d"}
    return 200, {**plain, "conformsTo": conforms, "links": [*links, {"rel": "self", "href": base}, {"rel": "root", "href": base}]}


def test_items_repeated_from_page_to_page_are_kept_once() -> None:
    pages = {"0": ["b", "a"], "1": ["a", "c"], "2": ["c"]}
    with answering(lambda base, path, _: answer_as_api(base, path, pages)) as (base, _), open_catalogue(base) as catalogue:
        found = search_items(catalogue, ("sentinel-2-l2a",), WORLD, (datetime(2021, 6, 1, tzinfo=UTC), None))
    assert [item["id"] for item in found] == ["a", "b", "c"]


def test_a_gateway_that_is_down_for_a_moment_is_asked_again() -> None:
    moods = {2: 503, 3: 429, 5: 502}

    def answer(base: str, path: str, number: int) -> Any:
        return (moods[number], {}) if number in moods else answer_as_api(base, path, {"0": ["a"]})

    with answering(answer) as (base, asked), open_catalogue(base) as catalogue:
        assert [item["id"] for item in search_items(catalogue, ("sentinel-2-l2a",), WORLD, (None, None))] == ["a"]
        assert catalogue.collections == ("sentinel-2-l2a",)
        assert catalogue.collections == ("sentinel-2-l2a",)
    assert sum(path.startswith("/collections") for path in asked) == 2  # once, and once more after the 502


@pytest.mark.parametrize(
    ("status", "value", "words"),
    [
        (404, {"description": "no\nsuch page"}, "does not answer as it should: .*no"),
        (200, b"<html>hello</html>", "answers, but not as a STAC API"),
        (200, [1], "answers, but not as a STAC API"),
        (200, {}, "answers, but not as a STAC API"),
        (200, {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "d", "links": []}, "offers no item search"),
    ],
)
def test_what_is_no_stac_api_is_named_in_one_line(status: int, value: Any, words: str) -> None:
    with (
        answering(lambda *_: (status, value)) as (base, _),
        open_catalogue(base) as catalogue,
        pytest.raises(CatalogueError, match=words) as caught,
    ):
        search_items(catalogue, ("c",), WORLD, (None, None))
    assert "\n" not in str(caught.value)


def test_a_dead_address_is_reported_soon() -> None:
    with answering(lambda *_: (200, {})) as (base, _):
        pass
    with open_catalogue(base) as catalogue, pytest.raises(CatalogueError, match="does not answer"):
        select_collections(catalogue, ("c",))


def test_a_lacking_folder_or_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="neither a URL nor a folder"), open_catalogue(str(tmp_path / "none")):
        pass
    with pytest.raises(MissingError, match="holds no catalog"), open_catalogue(str(tmp_path)):
        pass


def test_signatures_are_fetched_when_reading_and_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda _base, path, _: (200, {"token": "st=1&sig=2"}) if "bad" not in path else (403, {})) as (base, asked):
        monkeypatch.setattr(nouns, "TOKENS", {"signed.example": f"{base}/token"})
        catalogue = Catalogue("https://signed.example/stac", "https://signed.example/stac")
        for name in ("vv", "vh"):
            href = f"https://store.blob.core.windows.net/rtc/a/{name}.tif"
            assert resolve_href(catalogue, href) == f"{href}?st=1&sig=2"
        assert asked == ["/token/store/rtc"]
        assert resolve_href(catalogue, "https://elsewhere.org/a.tif") == "https://elsewhere.org/a.tif"
        assert resolve_href(Catalogue("x", "https://other.example"), href) == href
        with pytest.raises(CatalogueError, match="gives no signature"):
            resolve_href(catalogue, "https://bad.blob.core.windows.net/rtc/a.tif")


# The embedded server behind the same door.


def write_world(folder: Path) -> Path:
    """Two collections, one item each, in the layout of a static catalogue."""
    items = {"sentinel-2-l2a": planetary_item(), "sentinel-1-rtc": sar_item()}
    extent = {"spatial": {"bbox": [[10, 45, 11, 46]]}, "temporal": {"interval": [["2021-06-01T00:00:00Z", None]]}}
    plain = {"stac_version": "1.0.0", "description": "d"}
    for name, item in items.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "item.json").write_text(json.dumps(item))
        (folder / name / "vv.tif").write_bytes(b"pixels")
        links = [{"rel": "item", "href": "./item.json"}]
        collection = {**plain, "type": "Collection", "id": name, "license": "other", "extent": extent, "links": links}
        (folder / name / "collection.json").write_text(json.dumps(collection))
    children = [{"rel": "child", "href": f"{name}/collection.json"} for name in items]
    (folder / "catalog.json").write_text(json.dumps({**plain, "type": "Catalog", "id": "world", "links": children}))
    return folder


def test_a_folder_is_served_as_long_as_it_is_open(tmp_path: Path) -> None:
    with open_catalogue(str(write_world(tmp_path))) as catalogue:
        assert catalogue.collections == ("sentinel-1-rtc", "sentinel-2-l2a")
        assert select_collections(catalogue, ("sentinel-2-c1-l2a", "sentinel-2-l2a")) == ("sentinel-2-l2a",)
        with pytest.raises(CatalogueError, match="none of the collections a, b; it has sentinel-1-rtc, sentinel-2-l2a"):
            select_collections(catalogue, ("a", "b"))
        (item,) = search_items(catalogue, ("sentinel-1-rtc",), (10.5, 45.5, 12, 47), (None, datetime(2021, 6, 2, 6, tzinfo=UTC)))
        record = to_scene_record(item, base_url=catalogue.base_url)
        assert record.assets["VV"] == "sentinel-1-rtc/vv.tif"
        assert requests.get(resolve_href(catalogue, record.assets["VV"]), timeout=5).content == b"pixels"
        assert search_items(catalogue, ("sentinel-1-rtc",), (20, 45.5, 21, 47), (None, None)) == []
    with pytest.raises(requests.ConnectionError):
        requests.get(resolve_href(catalogue, record.assets["VV"]), timeout=5)


# Real items.


@pytest.fixture(scope="module")
def samples() -> Path:
    folder = os.environ.get("SERENO_SAMPLES")
    if not folder:
        pytest.skip("SERENO_SAMPLES is not set to the folder of real samples")
    return Path(folder) / "stac"


def read_items(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    items: list[dict[str, Any]] = content if isinstance(content, list) else content.get("features", [content])
    return items


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:Could not parse bucket:UserWarning")  # pystac rewriting the storage extension
@pytest.mark.parametrize(
    ("path", "count", "sensor", "offsets"),
    [
        ("rustac/server/data/sentinel-2/item-collection.json", 10, "sentinel2-l2a", {-0.1}),
        ("stac_geoparquet/data/sentinel-2-l2a-pc.json", 4, "sentinel2-l2a", {None}),
        ("stac_geoparquet/data/sentinel-1-rtc-pc.json", 4, "sentinel1-rtc", {None}),
        ("odc_stac/site2-2020_jun_jul-35MNM.geojson", 13, "sentinel2-l2a", {None}),
    ],
)
def test_real_items_become_records_before_and_after_pystac(
    samples: Path, path: str, count: int, sensor: str, offsets: set[float | None]
) -> None:
    items = read_items(samples / path)
    records = [to_scene_record(item) for item in items]
    rewritten = [to_scene_record(pystac.Item.from_dict(copy.deepcopy(item)).to_dict(transform_hrefs=False)) for item in items]
    assert rewritten == records
    assert len(records) == count
    assert {record.sensor for record in records} == {sensor}
    assert {record.declared_offset for record in records} == offsets
    for record in records:
        assert record.crs.startswith(("EPSG:326", "EPSG:327"))
        assert all(href.startswith("https://") for href in record.assets.values())
        assert list(record.assets) == ([*L2A_BANDS, "SCL"] if sensor == "sentinel2-l2a" else ["VV", "VH"])
        assert all(name in href for name, href in record.assets.items()) or sensor == "sentinel1-rtc"
        assert record.properties["platform"].startswith("sentinel-")
        if sensor == "sentinel2-l2a":
            assert record.processing_baseline in {"02.12", "05.10"}
            assert record.sun_elevation_deg is not None
            assert 0 < record.sun_elevation_deg < 90
            assert record.properties["tile"] in record.item


@pytest.mark.real
def test_real_ground_range_products_are_refused(samples: Path) -> None:
    refused = 0
    for path in sorted((samples / "stactools_sentinel1" / "examples" / "grd").glob("*/*.json")):
        with pytest.raises((DataError, MissingError)):
            to_scene_record(json.loads(path.read_text()))
        refused += 1
    recorded = json.loads((samples / "recorded" / "13_planetarycomputer_GET.json").read_text())
    for item in recorded["response"]["features"]:
        with pytest.raises(DataError, match="not terrain-corrected"):
            to_scene_record(item)
        refused += 1
    assert refused == 3


@pytest.mark.real
def test_a_recorded_answer_of_planetary_computer_becomes_a_record(samples: Path) -> None:
    recorded = json.loads((samples / "recorded" / "14_planetarycomputer_GET.json").read_text())
    (item,) = recorded["response"]["features"]
    record = to_scene_record(item)
    assert (record.item, record.sensor) == ("S1A_IW_GRDH_1SDV_20250311T044231_20250311T044249_058252_073302_rtc", "sentinel1-rtc")


@pytest.mark.real
@pytest.mark.parametrize(("baseline", "offset"), [("02.14", 0.0), ("04.00", -0.1)])
def test_items_of_stactools_state_their_offset(samples: Path, baseline: str, offset: float) -> None:
    paths = (samples / "stactools_sentinel2").glob("*/expected_output.json")
    records = [to_scene_record(json.loads(path.read_text())) for path in paths]
    assert [record.declared_offset for record in records if record.processing_baseline == baseline] == [offset]
