"""Servers as they are: down for a moment, torn, slow, out of signatures, with damaged and missing files, with pages that go in circles.

What heals leaves no trace in locks, scenes, pairs and patches: they are those of a clean run, byte for byte. What does not heal costs its
own pixels and stands in the ledger. What may heal later fails the job in one line, and nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from faulty import FaultyServer, Gate, answer, cut, delay, edit, end_at, hush, rot, running_faulty, tear
from steps import (
    AREA,
    PATCH,
    Square,
    drop_checksums,
    has_written,
    insist,
    make_world,
    read_entries,
    read_outcome,
    run_ingest,
    run_query,
    run_rest,
    to_query,
)

from sereno.pipeline import catalogue, http, presets, signing
from sereno.pipeline.config import IngestSettings, QuerySettings
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import Lock
from sereno.pipeline.query import query_pairs
from sereno.pipeline.sensors import access, assets
from sereno.pipeline.server import running_server
from sereno.pipeline.store import open_dataset, verify_store

Json = dict[str, Any]
Outcome = dict[str, Json]

SQUARE = Square(size_px=600)  # a 10 m band has four storage tiles
SETTINGS = IngestSettings()
ASSETS = "^/assets/"
SEARCH = "^/search"
CLOUDY = "S2A_T32TNR_20210608T102000_L2A"
TILE_EDGE = 512 - 24
"""Row and column of the area at which the lower right storage tile begins: products have a margin of 24 pixels."""
CLEAR = "S2A_T32TNR_20210603T102000_L2A"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience that takes milliseconds; proxies of the surroundings are not asked for our own servers."""
    for module, name, seconds in ((http, "FIRST_PAUSE_S", 0.005), (assets, "BACKOFF_S", 0.005), (signing, "TOKEN_PAUSE_S", 0.005)):
        monkeypatch.setattr(module, name, seconds)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("faults") / "world", SQUARE)
    drop_checksums(folder)
    return folder


@pytest.fixture(scope="module")
def inner(world: Path) -> Iterator[str]:
    with running_server(world) as address:
        yield address


@pytest.fixture
def server(inner: str) -> Iterator[FaultyServer]:
    """A server of its own for each test, good at first: GDAL keeps in memory what it has read from an address."""
    with running_faulty(inner) as server:
        yield server


@pytest.fixture(scope="module")
def clean(inner: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a run without faults leaves."""
    with running_faulty(inner) as server:
        return run(tmp_path_factory.mktemp("clean"), server)


def limit_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a server that says nothing for a second at most."""
    monkeypatch.setattr(http, "TIMEOUT_S", (1.0, 0.3))
    monkeypatch.setattr(assets, "TIMEOUT_S", (1.0, 0.3))
    monkeypatch.setitem(access.GDAL_OPTIONS, "GDAL_HTTP_TIMEOUT", 1)


def settings_for(server: FaultyServer, **changes: Any) -> QuerySettings:
    return to_query(server.url, SQUARE, **changes)


def run(folder: Path, server: FaultyServer, settings: IngestSettings = SETTINGS) -> Outcome:
    """All steps; what they leave."""
    lock = run_query(folder, settings_for(server))
    run_ingest(folder, lock, settings)
    run_rest(folder, lock)
    return read_outcome(folder, server.url)


def assert_same(outcome: Outcome, clean: Outcome) -> None:
    """Equal, with the first difference named."""
    assert outcome.keys() == clean.keys()
    for name, value in clean.items():
        assert outcome[name] == value, name


def total_retries(folder: Path) -> int:
    return sum(entry.retries for entry in read_entries(folder))


def losses(folder: Path) -> dict[tuple[str, str], Entry]:
    """Lines about assets that are not whole, by item and asset."""
    entries = [entry for entry in read_entries(folder) if entry.step == "ingest" and entry.asset]
    return {(entry.item, entry.asset): entry for entry in entries if entry.status != "used"}


def scene_of(outcome: Outcome, name: str) -> Json:
    summary: Json = outcome[f"ingest/{AREA}/{name}.json"]["summary"]
    return summary


def block_bytes(path: Path, column: int, row: int) -> tuple[int, int]:
    """First and last byte of one storage tile."""
    with rasterio.open(path) as file:
        first, size = (int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    return first, first + size - 1


def test_two_clean_runs_leave_the_same(server: FaultyServer, clean: Outcome, tmp_path: Path) -> None:
    assert_same(run(tmp_path, server), clean)
    assert len(clean[f"patch/{AREA}/20210608.json"]["summary"]["patches"]) > 10
    assert not losses(tmp_path)
    assert total_retries(tmp_path) == 0


@pytest.mark.parametrize(
    ("spoil", "every"),
    [(answer(503), 4), (answer(429, Retry_After="0"), 5), (answer(502), 3), (tear, 5), (cut, 5), (delay(0.02), 1)],
    ids=["503", "429", "502", "reset", "cut", "slow"],
)
def test_what_heals_leaves_no_trace(server: FaultyServer, clean: Outcome, tmp_path: Path, spoil: Any, every: int) -> None:
    catalogue_fault = server.add("^/($|search|collections)", spoil, every=2 if every > 1 else 1)
    asset_fault = server.add(ASSETS, spoil, every=every)
    probe_fault = server.add(ASSETS, spoil, every=every, method="HEAD")
    assert_same(run(tmp_path, server), clean)
    assert min(catalogue_fault.hits, asset_fault.hits, probe_fault.hits) >= 2
    assert not losses(tmp_path)
    if every > 1:
        assert total_retries(tmp_path) > 0
        verify_store(tmp_path / "ingest" / AREA / f"{CLOUDY}.json")


def test_a_server_that_falls_silent_is_asked_again(
    server: FaultyServer, clean: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_silence(monkeypatch)
    faults = [server.add(SEARCH, hush, times=1), server.add("/B04.tif", hush, times=1), server.add("/vh.tif", hush, times=1)]
    assert_same(run(tmp_path, server), clean)
    assert [fault.hits for fault in faults] == [1, 1, 1]
    assert not losses(tmp_path)


def test_a_day_with_every_fault_that_heals_ends_like_a_clean_one(server: FaultyServer, clean: Outcome, tmp_path: Path) -> None:
    faults = [server.add(ASSETS, spoil, every=every) for spoil, every in ((answer(503), 11), (tear, 13), (cut, 17), (answer(500), 19))]
    faults += [server.add(SEARCH, answer(504), times=2), server.add(SEARCH, tear, times=2), server.add("^/", delay(0.005), every=3)]
    assert_same(run(tmp_path, server), clean)
    assert all(fault.hits for fault in faults)
    assert not losses(tmp_path)


@pytest.fixture
def gate(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The server as one whose assets need signatures of a service, as Planetary Computer's do."""
    preset = presets.PRESETS["local"]._replace(url=server.url, signed_by=f"{server.url}/token")
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "signed": preset})
    monkeypatch.setattr(signing, "SIGNED_HOST", server.url.removeprefix("http://127.0.0.1"))
    monkeypatch.setattr(signing, "_TOKENS", signing.TokenStore())
    server.gate = Gate(uses=25)
    return server.gate


def test_expired_signatures_are_renewed_and_never_stored(server: FaultyServer, clean: Outcome, tmp_path: Path, gate: Gate) -> None:
    assert_same(run(tmp_path, server), clean)
    assert gate.given > 3
    assert gate.refused > 3
    assert not losses(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sig=" in path.read_bytes()]


def test_a_token_service_may_fail_for_a_moment_but_not_for_good(server: FaultyServer, clean: Outcome, tmp_path: Path, gate: Gate) -> None:
    fault = server.add("^/token/", answer(503))
    with pytest.raises(CatalogueError, match="signature"):
        query_pairs(AREA, tmp_path / "query" / f"{AREA}.json", settings_for(server))
    assert not has_written(tmp_path)
    fault.times = fault.hits + 2
    query_pairs(AREA, tmp_path / "query" / f"{AREA}.json", settings_for(server))
    assert read_outcome(tmp_path, server.url)[f"query/{AREA}.json"] == clean[f"query/{AREA}.json"]


def test_refused_access_is_no_loss(server: FaultyServer, clean: Outcome, tmp_path: Path, gate: Gate) -> None:
    lock = run_query(tmp_path, settings_for(server))
    gate.is_broken = True
    output = tmp_path / "ingest" / AREA / f"{CLOUDY}.json"
    with pytest.raises(CatalogueError, match="403"):
        ingest_scene(lock, CLOUDY, output, SETTINGS)
    assert not has_written(tmp_path / "ingest")
    gate.is_broken = False
    ingest_scene(lock, CLOUDY, output, SETTINGS)
    assert read_outcome(tmp_path, server.url)[f"ingest/{AREA}/{CLOUDY}.json"] == clean[f"ingest/{AREA}/{CLOUDY}.json"]


def test_a_catalogue_that_is_down_fails_the_search_and_leaves_nothing(server: FaultyServer, clean: Outcome, tmp_path: Path) -> None:
    output = tmp_path / "query" / f"{AREA}.json"
    server.stop()
    try:
        with pytest.raises(CatalogueError) as caught:
            query_pairs(AREA, output, settings_for(server))
    finally:
        server.start()
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    assert not has_written(tmp_path)
    query_pairs(AREA, output, settings_for(server))
    assert read_outcome(tmp_path, server.url)[f"query/{AREA}.json"] == clean[f"query/{AREA}.json"]


@pytest.mark.parametrize("name", [CLOUDY, "S1A_IW_GRDH_1SDV_20210608T170048_20210608T170113_038287_04758F_rtc"], ids=["optical", "sar"])
def test_an_outage_while_reading_is_no_loss(server: FaultyServer, clean: Outcome, tmp_path: Path, name: str) -> None:
    lock = run_query(tmp_path, settings_for(server))
    output = tmp_path / "ingest" / AREA / f"{name}.json"
    server.stop()
    try:
        with pytest.raises(CatalogueError) as caught:
            ingest_scene(lock, name, output, SETTINGS)
    finally:
        server.start()
    assert "\n" not in str(caught.value)
    assert not has_written(tmp_path / "ingest")
    ingest_scene(lock, name, output, SETTINGS)
    assert read_outcome(tmp_path, server.url)[f"ingest/{AREA}/{name}.json"] == clean[f"ingest/{AREA}/{name}.json"]
    assert not losses(tmp_path)


@pytest.mark.parametrize(
    "spoil", [answer(503), answer(429), answer(500), tear, cut, hush], ids=["503", "429", "500", "reset", "cut", "silence"]
)
def test_one_asset_that_does_not_come_now_is_no_loss(
    server: FaultyServer, clean: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    limit_silence(monkeypatch)
    lock = run_query(tmp_path, settings_for(server))
    fault = server.add(f"/{CLOUDY}/B11.tif bytes=[1-9]", spoil)
    output = tmp_path / "ingest" / AREA / f"{CLOUDY}.json"
    with pytest.raises(CatalogueError, match=r"B11 .*B11\.tif"):
        ingest_scene(lock, CLOUDY, output, IngestSettings(attempts=2))
    assert fault.hits >= 2
    assert not has_written(tmp_path / "ingest")
    server.reset()
    ingest_scene(lock, CLOUDY, output, SETTINGS)
    assert read_outcome(tmp_path, server.url)[f"ingest/{AREA}/{CLOUDY}.json"] == clean[f"ingest/{AREA}/{CLOUDY}.json"]


def spoil_tile(path: Path, kind: str) -> Callable[..., Any]:
    """The lower right tile of a file damaged, or missing because the file ends before it."""
    first, last = block_bytes(path, 1, 1)
    return rot(first + 2, last) if kind == "rotten" else end_at(first + 1)


@pytest.mark.parametrize("kind", ["rotten", "ended"])
def test_a_damaged_tile_costs_its_own_pixels_and_no_others(
    server: FaultyServer, clean: Outcome, world: Path, tmp_path: Path, kind: str
) -> None:
    lock = run_query(tmp_path, settings_for(server))
    fault = server.add(f"/{CLOUDY}/B08.tif", spoil_tile(world / "assets" / AREA / CLOUDY / "B08.tif", kind))
    run_ingest(tmp_path, lock, IngestSettings(check="none"))
    run_rest(tmp_path, lock)
    outcome = read_outcome(tmp_path, server.url)
    assert fault.hits > 0
    assert list(losses(tmp_path)) == [(CLOUDY, "B08")]
    assert losses(tmp_path)[CLOUDY, "B08"].status == "partly"
    [lost] = scene_of(outcome, CLOUDY)["lost"]
    assert (lost["item"], lost["asset"]) == (CLOUDY, "B08")
    assert scene_of(outcome, CLOUDY)["refused"] is None
    valid = open_dataset(tmp_path / "ingest" / AREA / f"{CLOUDY}.json")["valid"].values
    assert not valid[TILE_EDGE:, TILE_EDGE:].any()
    assert valid[:TILE_EDGE].mean() > 0.9
    assert windows_of(outcome) == {place for place in windows_of(clean) if min(place) + PATCH.size_px <= TILE_EDGE}
    assert windows_of(outcome) < windows_of(clean)
    for name, value in clean.items():
        if CLOUDY not in name and name.startswith(("query", "ingest")):
            assert outcome[name] == value, name


def windows_of(outcome: Outcome) -> set[tuple[int, int]]:
    """Row and column of the patches that were kept."""
    return {(patch["row"], patch["col"]) for patch in outcome[f"patch/{AREA}/20210608.json"]["summary"]["patches"]}


def test_a_loss_is_the_same_on_a_quiet_and_on_a_bad_day(server: FaultyServer, inner: str, world: Path, tmp_path: Path) -> None:
    outcomes = []
    with running_faulty(inner) as other:
        for day, place in (("quiet", server), ("bad", other)):
            place.add(f"/{CLOUDY}/B08.tif", spoil_tile(world / "assets" / AREA / CLOUDY / "B08.tif", "rotten"))
            if day == "bad":
                place.add(ASSETS, answer(503), every=9)
                place.add(ASSETS, tear, every=13)
            outcomes.append(run(tmp_path / day, place))
    assert_same(*outcomes)
    assert losses(tmp_path / "bad").keys() == {(CLOUDY, "B08")}


@pytest.mark.parametrize("asset", ["B05", "vv"])
def test_a_missing_asset_refuses_its_scene_and_the_pair_but_not_the_run(
    server: FaultyServer, clean: Outcome, tmp_path: Path, asset: str
) -> None:
    lock = run_query(tmp_path, settings_for(server))
    folder = f"{CLOUDY}/{asset}" if asset == "B05" else asset
    fault = server.add(f"/{folder}.tif", answer(404))
    run_ingest(tmp_path, lock, SETTINGS)
    run_rest(tmp_path, lock)
    outcome = read_outcome(tmp_path, server.url)
    assert fault.hits > 0
    [entry] = losses(tmp_path).values()
    assert (entry.asset, entry.status) == (asset.upper(), "missing")
    assert "404" in entry.reason
    [scene] = [name for name in Lock.read(lock).scenes if scene_of(outcome, name)["refused"]]
    assert scene == entry.scene
    assert not open_dataset(tmp_path / "ingest" / AREA / f"{scene}.json")["valid"].values.any()
    assert not outcome[f"patch/{AREA}/20210608.json"]["summary"]["patches"]
    assert outcome[f"patch/{AREA}/20210608.json"]["summary"]["pair_refused"]
    others = [name for name in Lock.read(lock).scenes if name != scene]
    assert all(outcome[f"ingest/{AREA}/{name}.json"] == clean[f"ingest/{AREA}/{name}.json"] for name in others)


@pytest.mark.parametrize("role", ["cloudy", "clear"])
@pytest.mark.parametrize("kind", ["gone", "unreadable", "not stated"])
def test_a_lost_classification_makes_no_cloud_clear_and_stops_no_run(
    server: FaultyServer, clean: Outcome, tmp_path: Path, kind: str, role: str
) -> None:
    """The pixels stay what they are, what is cloud among them is unknown, and the pair says why it gives no patch."""
    item = {"cloudy": CLOUDY, "clear": CLEAR}[role]
    lose_classification(server, item, kind)
    lock = run_query(tmp_path, settings_for(server))
    assert Lock.read(lock).scenes[item].cover_source == "catalogue"
    run_ingest(tmp_path, lock, SETTINGS)
    run_rest(tmp_path, lock)
    outcome = read_outcome(tmp_path, server.url)
    [entry] = losses(tmp_path).values()
    assert (entry.item, entry.asset, entry.status) == (item, "SCL", "unreadable" if kind == "unreadable" else "missing")
    [whole] = [one for one in read_entries(tmp_path) if one.step == "ingest" and one.item == item and not one.asset]
    assert whole.status == "partly"
    assert [(loss["item"], loss["asset"]) for loss in scene_of(outcome, item)["lost"]] == [(item, "SCL")]
    assert any("SCL is lost" in warning for warning in scene_of(outcome, item)["warnings"])
    pair, masks = (open_dataset(tmp_path / step / AREA / "20210608.json") for step in ("align", "mask"))
    for name in ("cloudy", "clear"):
        assert pair[f"valid_{name}"].values.mean() > 0.9
        np.testing.assert_array_equal(masks[f"known_{name}"], pair[f"valid_{name}"].values & (name != role))
    patches = outcome[f"patch/{AREA}/20210608.json"]["summary"]
    assert not patches["patches"]
    assert f"the {role} image has no scene classification" in patches["pair_refused"]
    assert len(patches["refused"]) == len(clean[f"patch/{AREA}/20210608.json"]["summary"]["refused"]) + len(windows_of(clean))


def lose_classification(server: FaultyServer, item: str, kind: str) -> None:
    """Take the scene classification of `item` away, for the search and for reading."""

    def drop(page: Json) -> Json:
        for feature in page["features"]:
            if feature["id"] == item:
                assert feature["assets"].pop("scl")
        return page

    if kind == "not stated":
        server.add(SEARCH, edit(drop))
        return
    server.add(f"/{item}/SCL.tif", answer(404) if kind == "gone" else rot(0, 200))
    if kind == "gone":
        server.add(f"/{item}/SCL.tif", answer(404), method="HEAD")


def test_a_missing_classification_is_stated_and_the_catalogue_believed(server: FaultyServer, tmp_path: Path) -> None:
    server.add(f"/{CLOUDY}/SCL.tif", answer(404))
    server.add(f"/{CLOUDY}/SCL.tif", answer(404), method="HEAD")
    lock = Lock.read(run_query(tmp_path, settings_for(server)))
    assert lock.scenes[CLOUDY].cover_source == "catalogue"
    assert lock.scenes[CLEAR].cover_source == "scl"
    [entry] = [entry for entry in read_entries(tmp_path) if entry.asset == "SCL" and entry.status == "missing"]
    assert entry.item == CLOUDY


def repeat_first(page: Json) -> Json:
    """The page with its first item once more, as servers do whose order is not settled."""
    return {**page, "features": [*page["features"], *page["features"][:1]]}


def test_repeated_items_are_counted_once(server: FaultyServer, clean: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "PAGE", 1)
    fault = server.add(SEARCH, edit(repeat_first))
    lock = run_query(tmp_path, settings_for(server))
    assert fault.hits >= 4
    assert read_outcome(tmp_path, server.url)[f"query/{AREA}.json"] == clean[f"query/{AREA}.json"]
    assert any("3 repeated" in entry.reason for entry in read_entries(tmp_path))
    assert lock.is_file()


def test_pages_without_end_are_left_and_the_lock_is_the_same(
    server: FaultyServer, clean: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PAGE", 1)
    circle = {"rel": "next", "href": f"{server.url}/search?collections=sentinel-2-c1-l2a&limit=1&token=0", "method": "GET"}

    def close_circle(page: Json) -> Json:
        has_next = any(link["rel"] == "next" for link in page["links"])
        return page if has_next else {**page, "links": [*page["links"], circle]}

    server.add("^/search.*sentinel-2", edit(close_circle))
    run_query(tmp_path, settings_for(server))
    assert read_outcome(tmp_path, server.url)[f"query/{AREA}.json"] == clean[f"query/{AREA}.json"]
    assert any("circles" in entry.reason for entry in read_entries(tmp_path))


def test_pages_that_break_off_are_asked_for_again(
    server: FaultyServer, clean: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PAGE", 1)
    fault = server.add("^/search.*token=1", tear, times=http.ATTEMPTS + 1)
    query_pairs(AREA, tmp_path / "query" / f"{AREA}.json", settings_for(server))
    assert fault.hits == http.ATTEMPTS + 1
    assert read_outcome(tmp_path, server.url)[f"query/{AREA}.json"] == clean[f"query/{AREA}.json"]
    assert any("broke off" in entry.reason for entry in read_entries(tmp_path))


@pytest.mark.parametrize("spoil", [None, answer(503), answer(403), tear], ids=["quiet", "503", "403", "reset"])
def test_a_file_that_was_replaced_since_the_search_is_not_mixed_in(server: FaultyServer, tmp_path: Path, spoil: Any) -> None:
    lock = run_query(tmp_path, settings_for(server))
    content = json.loads(lock.read_text())
    content["scenes"][CLOUDY]["items"][0]["assets"]["B04"]["etag"] = '"another"'
    lock.write_text(json.dumps(content))
    if spoil:
        server.add("/B04.tif bytes=0-0$", spoil, times=1)
    ingest_scene(lock, CLOUDY, tmp_path / "ingest" / AREA / f"{CLOUDY}.json", SETTINGS)
    entry = losses(tmp_path)[CLOUDY, "B04"]
    assert entry.status == "unreadable"
    assert "ETag" in entry.reason


def test_the_harness_does_what_it_says(server: FaultyServer) -> None:
    """A fault that is not switched on would let every test above pass."""
    import requests

    place = f"{server.url}/assets/{AREA}/{CLEAR}/B04.tif"
    good = requests.get(place, timeout=5).content
    server.add("B04", tear, times=1)
    server.add("B04", cut, times=1)
    with pytest.raises(requests.RequestException):
        _ = requests.get(place, timeout=5).content
    server.reset()
    server.add("B04", cut, times=1)
    with pytest.raises(requests.RequestException):
        _ = requests.get(place, timeout=5).content
    server.add("B04", rot(10, 12), times=1)
    rotten = requests.get(place, headers={"Range": "bytes=8-20"}, timeout=5).content
    assert np.flatnonzero(np.frombuffer(rotten, np.uint8) != np.frombuffer(good[8:21], np.uint8)).tolist() == [2, 3, 4]
    server.reset()
    assert requests.get(place, timeout=5).content == good
    assert insist(lambda: None) == 0
