"""The embedded STAC API, seen through the standard client, GDAL and plain HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac_client
import pytest
import rasterio
import requests
from rasterio.windows import Window

from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.server import build_app, running_server, serve_folder

CLOUD = {"a1": 5.0, "a2": 12.5, "a3": 80.0, "a4": 12.5, "a5": 0.0}
"""Cloud cover of the optical items; `a1` is the eldest, each next one is five days younger and one degree further east."""


def write_catalogue(folder: Path) -> Path:
    """A static catalogue with five optical items, two SAR items without cloud cover, and one image."""
    optical = [
        to_item(name, index, {"eo:cloud_cover": cloud, "platform": "sentinel-2a", "tags": ["x", name]})
        for index, (name, cloud) in enumerate(CLOUD.items())
    ]
    sar = [to_item(name, index * 2, {"platform": "sentinel-1a", "sat:relative_orbit": 44}) for index, name in enumerate(("s1", "s2"))]
    write_json(
        folder / "catalog.json", to_stac("Catalog", "tiny", [("child", "./optical/collection.json"), ("child", "./sar/collection.json")])
    )
    for name, items in (("optical", optical), ("sar", sar)):
        links = [
            ("root", "../catalog.json"),
            *(("item", f"./{item['id']}/{item['id']}.json") for item in items),
            ("license", "https://x.org"),
        ]
        extent = {"spatial": {"bbox": [[10, 45, 16, 46]]}, "temporal": {"interval": [["2021-06-01T00:00:00Z", None]]}}
        write_json(folder / name / "collection.json", {**to_stac("Collection", name, links), "license": "other", "extent": extent})
        for item in items:
            write_json(folder / name / item["id"] / f"{item['id']}.json", {**item, "collection": name})
    values = np.random.default_rng(3).integers(1, 9999, (2, 300, 400)).astype(np.uint16)
    profile = {
        "driver": "GTiff",
        "count": 2,
        "height": 300,
        "width": 400,
        "dtype": "uint16",
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
    }
    grid = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(folder / "optical" / "a1" / "B 04.tif", "w", compress="deflate", **profile, **grid) as file:
        file.write(values)
    return folder


def to_stac(kind: str, name: str, links: list[tuple[str, str]]) -> dict[str, Any]:
    plain = {"type": kind, "stac_version": "1.0.0", "id": name, "description": f"the {name}"}
    return {**plain, "links": [{"rel": rel, "href": href} for rel, href in links]}


def to_item(name: str, index: int, properties: dict[str, Any]) -> dict[str, Any]:
    west = 10.0 + index
    ring = [[west, 45], [west + 0.9, 45], [west + 0.9, 46], [west, 46], [west, 45]]
    return {
        **to_stac("Feature", name, [("collection", "../collection.json")]),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, 45, west + 0.9, 46],
        "properties": {"datetime": f"2021-06-{3 + 5 * index:02d}T10:00:00Z", **properties},
        "assets": {"red": {"href": "./B%2004.tif", "eo:bands": [{"name": "B04"}]}, "far": {"href": "https://example.org/x.tif"}},
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[str]:
    with running_server(folder) as address:
        yield address


@pytest.fixture(scope="module")
def client(base: str) -> pystac_client.Client:
    return pystac_client.Client.open(base)


def find(client: pystac_client.Client, **search: Any) -> list[str]:
    """Ids of the items found by POST, checked to be those found by GET."""
    found = [item["id"] for item in client.search(**search).items_as_dicts()]
    assert found == [item["id"] for item in client.search(method="GET", **search).items_as_dicts()]
    return found


SEARCHES: list[tuple[dict[str, Any], list[str]]] = [
    ({"collections": ["optical"]}, ["a1", "a2", "a3", "a4", "a5"]),
    ({"collections": ["sar"]}, ["s1", "s2"]),
    ({"collections": ["sar", "optical"], "ids": ["s1", "a5", "nothing"]}, ["s1", "a5"]),
    ({"collections": ["unheard-of"]}, []),
    ({"bbox": [10.1, 45.1, 10.2, 45.2]}, ["a1", "s1"]),
    ({"bbox": [10.95, 45.1, 10.99, 45.2]}, []),
    ({"bbox": [11.5, 45.1, 0, 12.5, 45.2, 9]}, ["a2", "a3", "s2"]),
    ({"bbox": [13.5, 40, -170, 50]}, ["a4", "a5"]),
    ({"intersects": {"type": "Point", "coordinates": [12.5, 45.5]}}, ["a3", "s2"]),
    ({"intersects": {"type": "Polygon", "coordinates": [[[9, 44], [12, 44], [10.5, 45.5], [9, 44]]]}}, ["a1", "s1", "a2"]),
    ({"datetime": "2021-06-08T10:00:00Z"}, ["a2"]),
    ({"datetime": "2021-06-08"}, ["a2"]),
    ({"datetime": "2021-06-08T12:00:00+02:00"}, ["a2"]),
    ({"datetime": "2021-06-08T10:00:01Z/2021-06-18T10:00:00Z"}, ["a3", "s2", "a4"]),
    ({"datetime": "../2021-06-08T10:00:00Z"}, ["a1", "s1", "a2"]),
    ({"datetime": "2021-06-18T00:00:00Z/.."}, ["a4", "a5"]),
    ({"query": ["eo:cloud_cover<12.5"]}, ["a1", "a5"]),
    ({"query": {"eo:cloud_cover": {"gte": 12.5, "lt": "80"}}}, ["a2", "a4"]),
    ({"query": {"platform": {"startsWith": "sentinel-1"}, "sat:relative_orbit": {"eq": "44"}}}, ["s1", "s2"]),
    ({"query": {"platform": {"in": ["sentinel-1a"]}, "datetime": {"endsWith": "13T10:00:00Z"}}}, ["s2"]),
    ({"query": {"tags": {"contains": "a3"}}}, ["a3"]),
    ({"query": {"eo:cloud_cover": {"neq": 0}}}, ["a1", "a2", "a3", "a4"]),
    ({"filter": {"op": "<", "args": [{"property": "eo:cloud_cover"}, 10]}}, ["a1", "a5"]),
    ({"filter": {"op": "between", "args": [{"property": "properties.eo:cloud_cover"}, 10, 20]}}, ["a2", "a4"]),
    ({"filter": "eo:cloud_cover <= 5 OR platform = 'sentinel-1a'"}, ["a1", "s1", "s2", "a5"]),
    ({"filter": "NOT eo:cloud_cover > 5"}, ["a1", "a5"]),
    ({"filter": "eo:cloud_cover IS NULL AND collection = 'sar'"}, ["s1", "s2"]),
    ({"filter": "id IN ('a1', 'a3') AND datetime > TIMESTAMP('2021-06-04T00:00:00Z')"}, ["a3"]),
    ({"filter": "platform LIKE 'sentinel-2%' AND S_INTERSECTS(geometry, POINT(13.5 45.5))"}, ["a4"]),
    ({"sortby": "-id", "collections": ["optical"]}, ["a5", "a4", "a3", "a2", "a1"]),
    ({"sortby": ["+properties.eo:cloud_cover", "-properties.datetime"]}, ["a5", "a1", "a4", "a2", "a3", "s2", "s1"]),
    ({"sortby": [{"field": "eo:cloud_cover", "direction": "desc"}], "collections": ["optical"]}, ["a3", "a2", "a4", "a1", "a5"]),
]


@pytest.mark.parametrize(("search", "expected"), SEARCHES, ids=lambda value: json.dumps(value)[:60])
def test_search_finds_what_the_parameters_say(client: pystac_client.Client, search: dict[str, Any], expected: list[str]) -> None:
    assert find(client, **search) == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_paging_returns_everything_exactly_once(client: pystac_client.Client, method: str, limit: int) -> None:
    search = client.search(method=method, limit=limit, filter="eo:cloud_cover < 90 OR platform LIKE '%1a'", sortby="-datetime")
    assert [item.id for item in search.items()] == ["a5", "a4", "a3", "s2", "a2", "a1", "s1"]
    assert search.matched() == 7
    assert len(list(client.search(method=method, limit=limit, max_items=4).items())) == 4


def test_collections_and_items_are_served_with_their_links(client: pystac_client.Client, base: str) -> None:
    assert [collection.id for collection in client.get_collections()] == ["optical", "sar"]
    optical = client.get_collection("optical")
    assert [item.id for item in optical.get_items()] == ["a1", "a2", "a3", "a4", "a5"]
    item = optical.get_item("a2")
    assert item is not None
    assert item.assets["red"].href == f"{base}/optical/a2/B%2004.tif"
    assert item.assets["far"].href == "https://example.org/x.tif"
    assert item.get_collection().id == "optical"
    assert any(link.rel == "license" for link in optical.links)
    page = requests.get(f"{base}/collections/optical/items", params={"limit": 2, "bbox": "11,45,20,46"}, timeout=5).json()
    assert [item["id"] for item in page["features"]] == ["a2", "a3"]
    assert page["numberMatched"] == 4
    following = requests.get(next(link["href"] for link in page["links"] if link["rel"] == "next"), timeout=5).json()
    assert [item["id"] for item in following["features"]] == ["a4", "a5"]
    assert not any(link["rel"] == "next" for link in following["links"])


def test_every_link_of_the_landing_page_answers(base: str) -> None:
    landing = requests.get(base, timeout=5).json()
    for link in landing["links"]:
        answer = requests.request(link.get("method", "GET"), link["href"], timeout=5)
        assert answer.status_code == 200, link
        assert answer.headers["content-type"].startswith(link["type"]), link
    assert requests.get(f"{base}/conformance", timeout=5).json()["conformsTo"] == landing["conformsTo"]
    assert "eo:cloud_cover" in requests.get(f"{base}/queryables", timeout=5).json()["properties"]
    assert "eo:cloud_cover" not in requests.get(f"{base}/collections/sar/queryables", timeout=5).json()["properties"]


def test_fields_are_included_and_excluded(client: pystac_client.Client) -> None:
    def only(**fields: Any) -> dict[str, Any]:
        (item,) = client.search(ids=["a1"], **fields).items_as_dicts()
        (same,) = client.search(ids=["a1"], method="GET", **fields).items_as_dicts()
        assert item == same
        return item

    assert only(fields={"include": ["properties.eo:cloud_cover"], "exclude": []}) == {
        "type": "Feature",
        "id": "a1",
        "collection": "optical",
        "properties": {"eo:cloud_cover": 5.0},
    }
    slim = only(fields=["-links", "-assets.far", "-properties.platform", "-id"])
    assert "links" not in slim
    assert list(slim["assets"]) == ["red"]
    assert "platform" not in slim["properties"]
    assert slim["id"] == "a1"
    whole = only()
    assert whole["properties"]["platform"] == "sentinel-2a"  # an earlier request took nothing out of the catalogue
    assert "far" in whole["assets"]


BAD_BODIES: list[dict[str, Any]] = [
    {"bbox": [1, 2, 3]},
    {"bbox": [1, 5, 2, 4]},
    {"bbox": ["west", 2, 3, 4]},
    {"bbox": [1, 2, 3, 4], "intersects": {"type": "Point", "coordinates": [1, 2]}},
    {"intersects": {"type": "Blob", "coordinates": [1, 2]}},
    {"intersects": "here"},
    {"datetime": "yesterday"},
    {"datetime": "2021-06-08T10:00:00"},
    {"datetime": "2021-06-08T10:00:00Z/2021-06-01T10:00:00Z"},
    {"datetime": "../.."},
    {"collections": "optical"},
    {"ids": [3]},
    {"limit": 0},
    {"limit": "many"},
    {"token": "-1"},
    {"query": {"eo:cloud_cover": {"below": 3}}},
    {"query": {"eo:cloud_cover": 3}},
    {"filter": {"op": "<"}},
    {"filter": {"op": "levitates", "args": [{"property": "id"}, 1]}},
    {"filter": "eo:cloud_cover <"},
    {"filter": "eo:cloud_cover < 3", "filter-lang": "cql2-text", "filter-crs": "EPSG:32632"},
    {"filter": "eo:cloud_cover < 3", "filter-lang": "sql"},
    {"sortby": [{"field": "id", "direction": "sideways"}]},
    {"sortby": [{"field": "no:such_field"}]},
    {"fields": ["id"]},
    {"colections": ["optical"]},
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=json.dumps)
def test_a_request_that_is_not_understood_is_refused_in_one_line(base: str, body: dict[str, Any]) -> None:
    answer = requests.post(f"{base}/search", json=body, timeout=5)
    assert answer.status_code == 400
    assert set(answer.json()) == {"code", "description"}
    assert "\n" not in answer.json()["description"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/search?limit=1&limit=2", 400),
        ("/search?intersects={", 400),
        ("/search?bbox=1,2,3", 400),
        ("/search?filter=%7B%7D&filter-lang=cql2-json", 400),
        ("/collections/optical/items?collections=sar", 400),
        ("/collections/none", 404),
        ("/collections/optical/items/none", 404),
        ("/elsewhere", 404),
    ],
)
def test_faulty_addresses_answer_in_json(base: str, path: str, status: int) -> None:
    answer = requests.get(base + path, timeout=5)
    assert answer.status_code == status
    assert answer.json()["description"]
    assert requests.post(f"{base}/search", data="[1]", timeout=5).status_code == 400
    assert requests.post(f"{base}/search", data="{", timeout=5).status_code == 400
    assert requests.delete(f"{base}/search", timeout=5).status_code == 405


def test_gdal_reads_windows_by_range_as_from_the_file(base: str, folder: Path) -> None:
    path = folder / "optical" / "a1" / "B 04.tif"
    rng = np.random.default_rng(5)
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "VSI_CACHE": "NO", "GDAL_HTTP_PROXY": ""}
    with (
        rasterio.Env(**options),
        rasterio.open(f"/vsicurl/{base}/optical/a1/B%2004.tif") as remote,
        rasterio.open(path) as local,
    ):
        assert remote.crs == local.crs
        for _ in range(12):
            row, column = rng.integers(0, 250), rng.integers(0, 350)
            window = Window(column, row, 50, 40)
            np.testing.assert_array_equal(remote.read(window=window), local.read(window=window))


def test_assets_obey_range_requests(base: str, folder: Path) -> None:
    address, content = f"{base}/optical/a1/B%2004.tif", (folder / "optical" / "a1" / "B 04.tif").read_bytes()
    head = requests.head(address, timeout=5)
    assert (head.status_code, int(head.headers["content-length"]), head.headers["accept-ranges"]) == (200, len(content), "bytes")
    part = requests.get(address, headers={"Range": "bytes=100-299"}, timeout=5)
    assert (part.status_code, part.content) == (206, content[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(content)}"
    assert requests.get(address, headers={"Range": "bytes=-7"}, timeout=5).content == content[-7:]
    beyond = requests.get(address, headers={"Range": f"bytes={len(content)}-"}, timeout=5)
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(content)}")
    assert requests.get(base + "/optical/a1/none.tif", timeout=5).status_code == 404


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/optical/..%2f..%2fsecret.txt", "/link.txt"])
def test_files_outside_the_folder_are_never_served(base: str, folder: Path, path: str) -> None:
    import http.client  # requests would tidy the path before sending it

    (folder.parent / "secret.txt").write_text("secret")
    link = folder / "link.txt"
    if not link.is_symlink():
        link.symlink_to(folder.parent / "secret.txt")
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"secret" not in answer.read().replace(b"secret.txt", b"")
    connection.close()


def test_the_server_ends_with_its_block(folder: Path) -> None:
    with running_server(folder) as address:
        assert requests.get(address, timeout=5).ok
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)
    with pytest.raises(ZeroDivisionError), running_server(folder) as address:
        raise ZeroDivisionError
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)


def test_the_server_ends_when_its_parent_is_killed(folder: Path) -> None:
    script = (
        "import sys, time, pathlib\nfrom sereno.pipeline.server import running_server\n"
        "with running_server(pathlib.Path(sys.argv[1])) as address:\n    print(address, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert requests.get(address, timeout=5).ok
        os.kill(parent.pid, signal.SIGKILL)
    assert has_ended(address)


def has_ended(address: str) -> bool:
    """Whether nothing listens any more, given ten seconds."""
    for _ in range(100):
        try:
            requests.get(address, timeout=1)
        except requests.ConnectionError:
            return True
        time.sleep(0.1)
    return False


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no catalog"), running_server(tmp_path):
        pass
    (tmp_path / "catalog.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"), running_server(tmp_path):
        pass
    write_json(tmp_path / "catalog.json", to_stac("Catalog", "c", [("child", "missing.json")]))
    with pytest.raises(MissingError, match="is linked but does not exist"):
        build_app(tmp_path)


@pytest.mark.parametrize(("href", "reason"), [("../../../secret.tif", "leads out of"), ("../../search/x.tif", "the API uses itself")])
def test_an_asset_that_cannot_be_served_is_refused(tmp_path: Path, href: str, reason: str) -> None:
    write_catalogue(tmp_path)
    path = tmp_path / "sar" / "s1" / "s1.json"
    item = json.loads(path.read_text())
    item["assets"]["red"]["href"] = href
    path.write_text(json.dumps(item))
    with pytest.raises(DataError, match=reason):
        build_app(tmp_path)


def test_a_taken_port_is_reported(folder: Path, base: str) -> None:
    with pytest.raises(ConfigError, match="choose another"):
        serve_folder(folder, int(base.rsplit(":", 1)[1]))


def test_the_child_imports_no_raster_library() -> None:
    code = (
        "import sys, sereno.pipeline.server; print([m for m in ('numpy', 'rasterio', 'shapely', 'xarray', 'pydantic') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
