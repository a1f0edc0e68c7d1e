"""Our search against a STAC server that others wrote: pgstac on PostgreSQL, holding a simulated world and, where at hand, real items.

Everything is asked of our embedded server as well; the two have to agree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from pystac_client import Client
from stac_server import Programs, StacServer, find_programs, running_stac
from steps import Square, has_written, make_world, read_outcome, run_ingest, run_query, to_query

from sereno.pipeline import catalogue
from sereno.pipeline.catalogue import Catalogue, Period, open_catalogue, search_items
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import CatalogueError, SerenoError
from sereno.pipeline.items import to_dem_record, to_item_record
from sereno.pipeline.ledger import Entry, ledger_of, read_ledger
from sereno.pipeline.query import query_pairs
from sereno.pipeline.server import load_catalogue, running_server

Json = dict[str, Any]

FOUND = find_programs()
SAMPLES = os.environ.get("SERENO_SAMPLES")
pytestmark = [pytest.mark.server, pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))]
real = pytest.mark.skipif(SAMPLES is None, reason="SERENO_SAMPLES is not set to the folder of real samples")

SQUARES = (Square("west", 300, "earth-search", 32632), Square("east", 300, "planetary-computer", 32633))
WORLD: Final = (-180.0, -90.0, 180.0, 90.0)
ANY_TIME: Final[Period] = (None, None)
REAL_FILES: Final = (
    "stac_geoparquet/data/sentinel-1-rtc-pc.json",
    "stac_geoparquet/data/sentinel-2-l2a-pc.json",
    "odc_stac/site2-2020_jun_jul-35MNM.geojson",
    "rustac/server/data/sentinel-2/item-collection.json",
)
"""Searches answered by real servers, below `stac` in the folder of samples."""


class Servers(NamedTuple):
    """The same content twice."""

    ours: str
    """Address of the embedded server."""
    theirs: StacServer
    """The other one."""


def read_real_items() -> list[Json]:
    """The real items by collection and id, each once; none where the samples are not at hand."""
    if SAMPLES is None:
        return []
    read = [json.loads((Path(SAMPLES) / "stac" / name).read_text()) for name in REAL_FILES]
    items = [item for page in read for item in (page if isinstance(page, list) else page["features"])]
    return list({(item["collection"], item["id"]): item for item in items}.values())


def add_items(folder: Path, items: list[Json]) -> None:
    """Add items to the static catalogue in `folder`, beside those of its own."""
    for item in items:
        path = folder / "items" / item["collection"] / "collection.json"
        name = f"real-{item['id']}.json"
        (path.parent / name).write_text(json.dumps({**item, "links": []}))
        collection = json.loads(path.read_text())
        collection["links"].append({"rel": "item", "href": name, "type": "application/geo+json"})
        path.write_text(json.dumps(collection))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = make_world(tmp_path_factory.mktemp("server") / "world", *SQUARES)
    add_items(folder, read_real_items())
    content = load_catalogue(folder)
    assert isinstance(FOUND, Programs)
    with running_server(folder) as ours:
        items = [{**item, "links": [], "assets": to_absolute(item["assets"], ours)} for item in content.items]
        collections = [{**collection, "links": []} for collection in content.collections.values()]
        with running_stac(FOUND, collections, items) as theirs:
            yield Servers(ours, theirs)


def to_absolute(assets: Json, address: str) -> Json:
    """Assets at the file server, those elsewhere as they are."""
    return {
        key: {**asset, "href": f"{address}/{asset['href']}" if "//" not in asset["href"] else asset["href"]}
        for key, asset in assets.items()
    }


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


def open_at(address: str) -> Catalogue:
    with open_catalogue(address) as opened:
        return opened


def bare(item: Json) -> Json:
    """An item without links, which are the server's own."""
    return {key: value for key, value in item.items() if key != "links"}


def search_both(servers: Servers, collections: tuple[str, ...], bbox: tuple[float, float, float, float], period: Period) -> list[Json]:
    """What both servers find, which has to be the same."""
    ours, theirs = (search_items(open_at(url), collections, [bbox], period) for url in (servers.ours, servers.theirs.url))
    assert [bare(item) for item in theirs.items] == [bare(item) for item in ours.items]
    assert not theirs.statistics.warnings
    return theirs.items


def bbox_of(square: Square, servers: Servers) -> tuple[float, float, float, float]:
    """The box around one area of the world."""
    found = search_items(open_at(servers.ours), ("sentinel-1-rtc",), [WORLD], ANY_TIME).items
    [box] = {tuple(item["bbox"]) for item in found if f"/{square.name}/" in item["assets"]["vv"]["href"]}
    return box


def test_both_know_the_same_collections(servers: Servers) -> None:
    assert open_at(servers.theirs.url).collections == open_at(servers.ours).collections


def test_all_items_are_found_and_equal(servers: Servers) -> None:
    names = open_at(servers.ours).collections
    assert len(search_both(servers, names, WORLD, ANY_TIME)) == 12 + len(read_real_items())


@pytest.mark.parametrize("square", SQUARES, ids=["west", "east"])
def test_an_area_gives_its_own_items(servers: Servers, square: Square) -> None:
    bbox = bbox_of(square, servers)
    items = search_both(servers, open_at(servers.ours).collections, bbox, ANY_TIME)
    assert len(items) == 6
    far = (bbox[0] + 1.5, bbox[1], bbox[2] + 1.5, bbox[3])
    assert not search_both(servers, open_at(servers.ours).collections, far, ANY_TIME)


def test_periods_include_their_ends(servers: Servers) -> None:
    bbox = bbox_of(SQUARES[0], servers)
    moment = datetime(2021, 6, 8, 10, 20, 7, 24_000, tzinfo=UTC)
    second = timedelta(seconds=1)
    collections = ("sentinel-2-c1-l2a",)
    assert len(search_both(servers, collections, bbox, (moment.replace(microsecond=0), moment + second))) == 1
    assert not search_both(servers, collections, bbox, (moment + second, moment + 2 * second))
    assert len(search_both(servers, collections, bbox, (moment - timedelta(days=5, seconds=1), moment + second))) == 2
    assert len(search_both(servers, collections, bbox, (None, moment + second))) == 2
    assert len(search_both(servers, collections, bbox, (moment - second, None))) == 2


def test_a_long_period_asked_by_months_gives_each_item_once(servers: Servers) -> None:
    bbox = bbox_of(SQUARES[0], servers)
    period = (datetime(2021, 3, 1, tzinfo=UTC), datetime(2021, 9, 30, tzinfo=UTC))
    found = search_items(open_at(servers.theirs.url), ("sentinel-2-c1-l2a", "sentinel-1-rtc"), [bbox], period)
    assert len(found.items) == 5
    assert found.statistics.requests >= 7
    assert search_both(servers, ("sentinel-2-c1-l2a", "sentinel-1-rtc"), bbox, period) == found.items


@pytest.mark.parametrize("counting", [False, True], ids=["no-count", "count"])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_small_pages_give_every_item_once(servers: Servers, monkeypatch: pytest.MonkeyPatch, size: int, counting: bool) -> None:
    names = ("sentinel-1-rtc", "sentinel-2-c1-l2a", "sentinel-2-l2a")
    whole = search_items(open_at(servers.ours), names, [WORLD], (None, datetime(2021, 12, 31, tzinfo=UTC))).items
    monkeypatch.setattr(catalogue, "PAGE", size)
    servers.theirs.count_matches(counting=counting)
    try:
        found = search_items(open_at(servers.theirs.url), names, [WORLD], (None, datetime(2021, 12, 31, tzinfo=UTC)))
    finally:
        servers.theirs.count_matches(counting=False)
    assert [bare(item) for item in found.items] == [bare(item) for item in whole]
    assert found.statistics.pages == max(1, -(-len(whole) // size))
    assert (found.statistics.repeats, found.statistics.retries, found.statistics.warnings) == (0, 0, ())


def test_elevation_models_are_found_without_limits_of_time(servers: Servers) -> None:
    (item,) = search_both(servers, ("cop-dem-glo-30",), bbox_of(SQUARES[0], servers), (None, None))
    record = to_dem_record(item)
    assert (record.item, record.properties) == ("DEM_west", {"vertical_datum": "ellipsoid"})


def test_a_count_is_stated_where_it_is_switched_on(servers: Servers) -> None:
    client = open_at(servers.theirs.url).client
    with pytest.warns(UserWarning, match="numberMatched"):
        assert client.search(collections=["sentinel-1-rtc"], bbox=WORLD, limit=2).matched() is None
    servers.theirs.count_matches(counting=True)
    try:
        assert client.search(collections=["cop-dem-glo-30"], bbox=WORLD, limit=1).matched() == 2
    finally:
        servers.theirs.count_matches(counting=False)


FILTERS: Final[dict[str, Json]] = {
    "query": {"query": {"eo:cloud_cover": {"lt": 50}}},
    "query-equal": {"query": {"s2:processing_baseline": {"eq": "05.00"}}},
    "cql2-json": {"filter": {"op": "<=", "args": [{"property": "eo:cloud_cover"}, 50]}, "filter_lang": "cql2-json"},
    "cql2-and": {
        "filter": {
            "op": "and",
            "args": [
                {"op": ">", "args": [{"property": "eo:cloud_cover"}, 0.5]},
                {"op": "=", "args": [{"property": "s2:processing_baseline"}, "05.00"]},
            ],
        },
        "filter_lang": "cql2-json",
    },
    "cql2-text": {"filter": "eo:cloud_cover < 50", "filter_lang": "cql2-text", "method": "GET"},
    "cql2-between": {"filter": {"op": "between", "args": [{"property": "eo:cloud_cover"}, 10, 90]}, "filter_lang": "cql2-json"},
    "ids": {"ids": ["DEM_west"], "collections": ["cop-dem-glo-30"]},
    "sorted": {"sortby": "-properties.datetime"},
    "intersects": {"intersects": {"type": "Point", "coordinates": [9.0, 45.53]}, "bbox": None},
}


# NOTE: stac-fastapi 7 calls its classes v1.1.0, which pystac-client 0.9 does not know, although both mean the same.
@pytest.mark.filterwarnings("ignore::pystac_client.warnings.DoesNotConformTo")
@pytest.mark.parametrize("name", FILTERS)
def test_filters_choose_the_same_items(servers: Servers, name: str) -> None:
    wanted = {"collections": ["sentinel-2-c1-l2a", "sentinel-2-l2a"], "bbox": WORLD, "datetime": "../2021-12-31T00:00:00Z", "limit": 3}
    options = {key: value for key, value in {**wanted, **FILTERS[name]}.items() if value is not None}
    found = {}
    for place, url in (("ours", servers.ours), ("theirs", servers.theirs.url)):
        found[place] = [(item["collection"], item["id"]) for item in Client.open(url).search(**options).items_as_dicts()]
    kept = found if name == "sorted" else {place: sorted(ids) for place, ids in found.items()}
    assert kept["theirs"] == kept["ours"]
    assert kept["ours"]


@pytest.mark.parametrize("square", SQUARES, ids=["west", "east"])
def test_a_lock_from_either_server_holds_the_same(servers: Servers, tmp_path: Path, square: Square) -> None:
    locks = {}
    for place, url in (("ours", servers.ours), ("theirs", servers.theirs.url)):
        path = run_query(tmp_path / place, to_query(url, *SQUARES), square.name)
        locks[place] = json.loads(path.read_text().replace(f"{servers.ours}/assets", "assets").replace(url, "SERVER"))
        assert locks[place].pop("searched").endswith("Z")
    assert locks["theirs"] == locks["ours"]
    assert len(locks["ours"]["pairs"]) == 1
    assert outcomes(tmp_path / "theirs", square.name) == outcomes(tmp_path / "ours", square.name)


def outcomes(folder: Path, area: str) -> list[tuple[str, ...]]:
    """The ledger of a search without what it cost."""
    entries: list[Entry] = read_ledger(ledger_of(folder / "query" / f"{area}.json"))
    return [(entry.scene, entry.item, entry.asset, entry.status, entry.reason) for entry in entries if entry.item]


def test_scenes_read_from_either_lock_are_the_same(servers: Servers, tmp_path: Path) -> None:
    for place, url in (("ours", servers.ours), ("theirs", servers.theirs.url)):
        run_ingest(tmp_path / place, run_query(tmp_path / place, to_query(url, *SQUARES), "west"), IngestSettings(bands=("B02", "B8A")))
    ours, theirs = (read_outcome(tmp_path / place / "ingest", servers.ours) for place in ("ours", "theirs"))
    assert theirs == ours
    assert len(ours) == 3


def test_a_wrong_collection_or_address_is_one_line(servers: Servers, tmp_path: Path) -> None:
    url = servers.theirs.url
    for settings in (to_query(url, *SQUARES, sar_collections=("sentinel-9",)), to_query(f"{url}/collections", *SQUARES)):
        with pytest.raises(CatalogueError) as caught:
            query_pairs("west", tmp_path / "west.json", settings)
        assert "\n" not in str(caught.value)
    assert not has_written(tmp_path)


@real
@pytest.mark.real
def test_real_items_come_back_as_they_went_in(servers: Servers) -> None:
    wanted = {(item["collection"], item["id"]): item for item in read_real_items()}
    names = tuple(sorted({collection for collection, _ in wanted}))
    found = {(item["collection"], item["id"]): item for item in search_items(open_at(servers.theirs.url), names, [WORLD], ANY_TIME).items}
    assert wanted.keys() <= found.keys()
    for key, item in wanted.items():
        assert to_outcome(found[key]) == to_outcome(item)


def to_outcome(item: Json) -> object:
    """What our own record makes of an item, or why it makes none."""
    try:
        return to_item_record(item, base_url="https://stac.example", offset_sources=("flag", "metadata", "declared", "baseline"))
    except SerenoError as error:
        return str(error)


@real
@pytest.mark.real
def test_real_searches_choose_by_date_and_cloud(servers: Servers) -> None:
    """Thirteen real dates of tile 35MNM, of which a filter keeps those whose own figures say so."""
    dates = [item for item in read_real_items() if "_T35MNM_" in item["id"]]
    west, south, east, north = (
        min(values) if i < 2 else max(values) for i, values in enumerate(zip(*(d["bbox"] for d in dates), strict=True))
    )
    clear = sorted(item["id"] for item in dates if item["properties"]["eo:cloud_cover"] < 1)
    july = sorted(item["id"] for item in dates if item["properties"]["datetime"].startswith("2020-07"))
    assert 0 < len(clear) < len(dates) == 13
    assert 0 < len(july) < 13
    for url in (servers.ours, servers.theirs.url):
        search = Client.open(url).search(
            collections=["sentinel-2-l2a"], bbox=(west, south, east, north), query={"eo:cloud_cover": {"lt": 1}}
        )
        assert sorted(item["id"] for item in search.items_as_dicts()) == clear
        period = (datetime(2020, 7, 1, tzinfo=UTC), datetime(2020, 7, 31, 23, 59, 59, tzinfo=UTC))
        found = search_items(open_at(url), ("sentinel-2-l2a",), [(west, south, east, north)], period).items
        assert [item["id"] for item in found] == july
