"""Opening catalogues, and searches that outlive the moods of servers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from listening import listening
from real_files import find_samples

from sereno.pipeline import http
from sereno.pipeline.catalogue import (
    LONG_PERIOD,
    STALE_PAGES,
    Catalogue,
    SearchResult,
    open_catalogue,
    search_items,
    select_collections,
    split_period,
)
from sereno.pipeline.errors import CatalogueError, MissingError, PermanentError
from sereno.pipeline.http import ATTEMPTS
from sereno.pipeline.presets import PRESETS

Json = dict[str, Any]
WORLD = (-180.0, -90.0, 180.0, 90.0)
RING = [[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]
OPEN = (None, None)


def to_item(name: str, collection: str = "sentinel-2-l2a", **more: Any) -> Json:
    plain = {"type": "Feature", "stac_version": "1.0.0", "bbox": [10, 45, 11, 46], "links": [], "assets": {"B04": {"href": f"{name}.tif"}}}
    place = {"geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": {"datetime": "2021-06-03T10:20:00Z"}}
    return {**plain, **place, "id": name, "collection": collection, **more}


# Servers in a mood.


class Cut(bytes):
    """A body of which the server sends the first half."""


class Unannounced(bytes):
    """A body of which the server sends the first half, without having said how long it is."""


Answer = Callable[[str, str, int], tuple[int, Any]]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that answers with `answer(base, path, number of the request)`; and the paths asked."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        sent = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        asked.append(handler.path + sent.decode())
        status, value = answer(f"http://{handler.headers['Host']}", asked[-1], len(asked))
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        if not isinstance(value, Unannounced):
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.close_connection = isinstance(value, Cut | Unannounced)
        with suppress(BrokenPipeError):  # the client of a slow answer has gone
            handler.wfile.write(content[: len(content) // 2] if handler.close_connection else content)

    with listening(respond) as address:
        yield address, asked


def to_landing(base: str) -> Json:
    """The landing page of a minimal STAC API."""
    links = [{"rel": "search", "href": f"{base}/search", "type": "application/geo+json"}, {"rel": "data", "href": f"{base}/collections"}]
    conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "collections", "item-search")]
    plain = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "d"}
    return {**plain, "conformsTo": conforms, "links": [*links, {"rel": "self", "href": base}, {"rel": "root", "href": base}]}


def to_collections(*names: str) -> Json:
    extent = {"spatial": {"bbox": [list(WORLD)]}, "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]}}
    plain = {"type": "Collection", "stac_version": "1.0.0", "description": "d", "license": "other", "links": [], "extent": extent}
    return {"collections": [{**plain, "id": name} for name in names], "links": []}


def to_page(base: str, names: str, *, onward: str | None = None, **more: Any) -> Json:
    """A page with one item per letter of `names`, and the next page's token."""
    links = [] if onward is None else [{"rel": "next", "href": f"{base}/search?token={onward}"}]
    return {"type": "FeatureCollection", "features": [to_item(name) for name in names], "links": links, **more}


def answer_as_api(base: str, path: str, pages: dict[str, Json | Callable[[], Any]]) -> tuple[int, Any]:
    """A minimal STAC API whose search pages are given by token; the first one has the token "0"."""
    if path.startswith("/search"):
        page = pages[path.partition("token=")[2].partition("&")[0] or "0"]
        said = page() if callable(page) else page
        return said if isinstance(said, tuple) else (200, said)
    return 200, to_collections("sentinel-2-l2a") if path.startswith("/collections") else to_landing(base)


def search(base: str, *, period: Any = OPEN, bboxes: Any = (WORLD,), limit: int | None = None) -> SearchResult:
    with open_catalogue(base, max_requests=limit, pause=lambda _: None) as catalogue:
        return search_items(catalogue, ("sentinel-2-l2a",), bboxes, period)


def names_of(result: SearchResult) -> str:
    return "".join(item["id"] for item in result.items)


@contextmanager
def paging(make: Callable[[str], dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """A server of the pages that `make(base)` gives."""
    with answering(lambda base, path, _: answer_as_api(base, path, make(base))) as served:
        yield served


def test_items_repeated_from_page_to_page_are_kept_once_and_counted() -> None:
    with paging(lambda b: {"0": to_page(b, "ba", onward="1"), "1": to_page(b, "ac", onward="2"), "2": to_page(b, "cc")}) as (base, asked):
        result = search(base)
    assert names_of(result) == "abc"
    assert result.statistics == (len(asked), 0, 3, 3, ())
    assert result.statistics.repeats == 3


def test_the_same_id_in_two_collections_is_two_items() -> None:
    twins = {"type": "FeatureCollection", "features": [to_item("a", "y"), to_item("a", "x")], "links": []}
    with paging(lambda _: {"0": twins}) as (base, _):
        assert [item["collection"] for item in search(base).items] == ["x", "y"]


def test_a_next_link_that_was_followed_ends_the_paging_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with paging(lambda b: {"0": to_page(b, "a", onward="1"), "1": to_page(b, "b", onward="1")}) as (base, asked):
        result = search(base)
    assert names_of(result) == "ab"
    assert len(asked) == 3  # the landing page and two others
    assert "went round in circles and was stopped after 2 pages with 2 items" in result.statistics.warnings[0]
    assert "round in circles" in caplog.text


def test_a_next_link_to_the_page_itself_ends_the_paging() -> None:
    with paging(lambda b: {"0": to_page(b, "a", onward="0")}) as (base, _):
        result = search(base)
    assert names_of(result) == "a"
    assert len(result.statistics.warnings) == 1


def test_endless_pages_without_anything_new_are_ended() -> None:
    count = iter(range(1, 1000))
    with answering(
        lambda base, path, _: (200, to_page(base, "ab", onward=f"x{next(count)}")) if "search" in path else answer_as_api(base, path, {})
    ) as (base, asked):
        result = search(base)
    assert names_of(result) == "ab"
    assert result.statistics.pages == STALE_PAGES + 1
    assert len(asked) == STALE_PAGES + 2


def test_endless_pages_with_ever_new_items_are_ended_by_the_budget() -> None:
    def answer(base: str, path: str, number: int) -> tuple[int, Any]:
        page = {"features": [to_item(f"i{number}")], "links": [{"rel": "next", "href": f"{base}/search?token={number}"}]}
        return (200, page) if "search" in path else answer_as_api(base, path, {})

    with answering(answer) as (base, asked), pytest.raises(PermanentError, match=r"20 requests made.*smaller area.*max_requests") as caught:
        search(base, limit=20)
    assert len(asked) == 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"numberMatched": 5}, ["5 items were announced, 3 came"]),
        ({"context": {"matched": 4}}, ["4 items were announced, 3 came"]),
        ({"numberMatched": 3}, []),
        ({"numberMatched": 2}, []),
        ({"numberMatched": None, "context": None}, []),
    ],
)
def test_fewer_items_than_announced_are_said_with_numbers(more: Json, words: list[str]) -> None:
    with paging(lambda b: {"0": to_page(b, "ab", onward="1", **more), "1": to_page(b, "bc", **more)}) as (base, _):
        result = search(base)
    assert names_of(result) == "abc"
    assert [note.partition(": ")[2] for note in result.statistics.warnings] == words


@pytest.mark.parametrize("more", [{"numberMatched": 0}, {"features": None}, {}])
def test_an_empty_answer_is_no_item_and_no_warning(more: Json) -> None:
    with paging(lambda b: {"0": to_page(b, "", **more)}) as (base, _):
        result = search(base)
    assert result.items == []
    assert result.statistics.warnings == ()


@pytest.mark.parametrize("pages", [["a", "", "", "", "b", "cd"], ["", "abcd"], ["ab", "", "cd", ""], ["abcd", *[""] * STALE_PAGES]])
def test_empty_pages_that_lead_on_are_followed_to_the_end(pages: list[str]) -> None:
    onward = [*map(str, range(1, len(pages))), None]

    with paging(lambda b: {str(n): to_page(b, names, onward=onward[n]) for n, names in enumerate(pages)}) as (base, _):
        result = search(base)
    assert names_of(result) == "abcd"
    assert result.statistics == (len(pages) + 1, 0, len(pages), 0, ())


def test_empty_pages_without_end_are_ended_with_a_warning() -> None:
    count = iter(range(1, 1000))
    with answering(
        lambda base, path, _: (200, to_page(base, "", onward=f"x{next(count)}")) if "search" in path else answer_as_api(base, path, {})
    ) as (base, _):
        result = search(base)
    assert result.statistics.pages == STALE_PAGES
    (note,) = result.statistics.warnings
    assert f"nothing new in {STALE_PAGES} pages one after the other and was stopped after {STALE_PAGES} pages with 0 items" in note


@pytest.mark.parametrize("page", [{"links": []}, {"features": {"a": 1}}, [1], 1])
def test_a_page_without_a_list_of_features_is_named(page: Any) -> None:
    with paging(lambda _: {"0": page}) as (base, _), pytest.raises(CatalogueError, match="answers, but not as a STAC API"):
        search(base)


def test_a_next_link_may_be_a_post_with_a_token() -> None:
    onward = {"rel": "next", "href": "", "method": "POST", "body": {"token": "1"}, "merge": True}

    def answer(base: str, path: str, _: int) -> tuple[int, Any]:
        if path.startswith("/search") and '"token": "1"' in path:
            return 200, to_page(base, "b")
        first = {**to_page(base, "a"), "links": [{**onward, "href": f"{base}/search"}]}
        return answer_as_api(base, path, {"0": first})

    with answering(answer) as (base, asked):
        assert names_of(search(base)) == "ab"
    assert json.loads(asked[-1].removeprefix("/search"))["token"] == "1"


# Moods.


def test_a_gateway_that_is_down_for_a_moment_is_asked_again() -> None:
    moods = {2: 503, 3: 429, 5: 502}

    def answer(base: str, path: str, number: int) -> Any:
        return (moods[number], {}) if number in moods else answer_as_api(base, path, {"0": to_page(base, "a")})

    with answering(answer) as (base, asked), open_catalogue(base, pause=lambda _: None) as catalogue:
        result = search_items(catalogue, ("sentinel-2-l2a",), (WORLD,), OPEN)
        assert names_of(result) == "a"
        assert result.statistics[:3] == (4, 2, 1)
        assert catalogue.collections == ("sentinel-2-l2a",)
        assert catalogue.collections == ("sentinel-2-l2a",)
    assert sum(path.startswith("/collections") for path in asked) == 2  # once, and once more after the 502


@pytest.mark.parametrize("body", [Cut, Unannounced])
def test_a_page_that_breaks_off_is_read_again(body: type[bytes]) -> None:
    broken: list[bytes] = []

    def page(base: str) -> Any:
        broken.append(b"once")
        return body(json.dumps(to_page(base, "b")).encode()) if len(broken) == 1 else to_page(base, "b")

    with paging(lambda b: {"0": to_page(b, "a", onward="1"), "1": lambda: page(b)}) as (base, asked):
        result = search(base)
    assert names_of(result) == "ab"
    again = body is Unannounced  # nothing shows that it is not whole but that it is no JSON
    assert len(result.statistics.warnings) == again
    assert len(asked) == (5 if again else 4)


def test_a_server_that_is_slow_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", (1.0, 0.1))
    waits = iter([0.4])

    def page(base: str) -> Any:
        time.sleep(next(waits, 0.0))
        return to_page(base, "a")

    with paging(lambda b: {"0": lambda: page(b)}) as (base, _):
        result = search(base)
    assert names_of(result) == "a"
    assert result.statistics.retries == 1


def test_a_month_whose_page_dies_is_asked_again_from_its_start_once() -> None:
    failing = [503] * (ATTEMPTS + 1)

    def page(base: str) -> Any:
        return (failing.pop(), {}) if failing else to_page(base, "b")

    with paging(lambda b: {"0": to_page(b, "a", onward="1"), "1": lambda: page(b)}) as (base, asked):
        result = search(base, period=(datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 6, 20, tzinfo=UTC)))
    assert names_of(result) == "ab"
    assert result.statistics.warnings == ("2021-06-01/2021-06-20: its pages broke off and were asked for again",)
    assert sum("token" in path for path in asked) == ATTEMPTS + 2
    assert result.statistics.retries == ATTEMPTS


def test_a_server_that_stays_down_is_named() -> None:
    with (
        paging(lambda b: {"0": to_page(b, "a", onward="1"), "1": lambda: (503, {"description": "no"})}) as (base, asked),
        pytest.raises(CatalogueError, match=r"does not answer as it should: HTTP 503: .*try again later") as caught,
    ):
        search(base)
    assert not isinstance(caught.value, PermanentError)
    assert sum("token" in path for path in asked) == 2 * (ATTEMPTS + 1)


def test_what_will_not_heal_is_not_asked_twice() -> None:
    with paging(lambda _: {"0": lambda: (400, {"description": "bbox?"})}) as (base, asked), pytest.raises(PermanentError, match="HTTP 400"):
        search(base)
    assert sum("search" in path for path in asked) == 1


@pytest.mark.parametrize(
    ("status", "value", "words"),
    [
        (404, {"description": "no\nsuch page"}, "does not answer as it should: .*no"),
        (404, b"see https://h/a.tif?st=1&sig=secret now", "see https://h/a.tif now"),
        (200, b"<html>hello</html>", "answers, but not as a STAC API"),
        (200, [1], "answers, but not as a STAC API"),
        (200, {}, "answers, but not as a STAC API"),
        (200, {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "d", "links": []}, "offers no item search"),
    ],
)
def test_what_is_no_stac_api_is_named_in_one_line(status: int, value: Any, words: str) -> None:
    with answering(lambda *_: (status, value)) as (base, _), pytest.raises(CatalogueError, match=words) as caught:
        search(base)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("features", [["a"], [{"type": "Feature"}], [{"id": ""}]])
def test_features_that_are_no_items_are_named(features: Any) -> None:
    with (
        paging(lambda _: {"0": {"features": features, "links": []}}) as (base, _),
        pytest.raises(CatalogueError, match="no item with an id"),
    ):
        search(base)


@pytest.mark.parametrize("version", ["v1.0.0", "v1.0.0-rc.2", "v1.1.0"])
def test_an_api_may_state_any_minor_version_of_item_search(version: str) -> None:
    def answer(base: str, path: str, _: int) -> tuple[int, Any]:
        landing = to_landing(base)
        landing["conformsTo"] = [name.replace("v1.0.0", version) for name in landing["conformsTo"]]
        if path.startswith("/collections"):
            return 200, to_collections("sentinel-2-l2a")
        return 200, {"type": "FeatureCollection", "features": [to_item("a")], "links": []} if path.startswith("/search") else landing

    with answering(answer) as (base, _):
        assert names_of(search(base)) == "a"


def test_a_dead_address_is_reported_soon() -> None:
    with answering(lambda *_: (200, {})) as (base, _):
        pass
    with (
        open_catalogue(base, pause=lambda _: None) as catalogue,
        pytest.raises(CatalogueError, match="nothing listens at its address; try"),
    ):
        select_collections(catalogue, ("c",))
    assert catalogue.budget.requests == 1 + http.CONNECT_ATTEMPTS


def test_a_host_that_is_not_found_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with (
        open_catalogue("http://no-such-host.invalid/stac", pause=lambda _: None) as catalogue,
        pytest.raises(CatalogueError, match=r"no-such-host\.invalid/stac does not answer as it should: its host is not found"),
    ):
        select_collections(catalogue, ("c",))


def test_passwords_in_addresses_stay_out_of_messages_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with paging(lambda b: {"0": to_page(b, "a", numberMatched=2)}) as (base, _):
        address = base.replace("//", "//me:secret@")
        assert len(search(address).statistics.warnings) == 1
        with open_catalogue(address) as catalogue, pytest.raises(PermanentError, match="none of the collections") as caught:
            select_collections(catalogue, ("c",))
    assert "secret" not in str(caught.value) + caplog.text


# Months and boxes.


@given(st.datetimes(datetime(2015, 1, 1), datetime(2030, 1, 1)), st.timedeltas(timedelta(0), timedelta(days=900)))
def test_months_cover_the_period_without_gap(start: datetime, length: timedelta) -> None:
    period = (start.replace(tzinfo=UTC), start.replace(tzinfo=UTC) + length)
    parts = split_period(period)
    assert (parts[0][0], parts[-1][1]) == period
    assert [end for _, end in parts[:-1]] == [begin for begin, _ in parts[1:]]
    assert all(begin is not None and end is not None and end - begin <= LONG_PERIOD for begin, end in parts)
    assert all(begin is not None and (begin.day, begin.hour, begin.microsecond) == (1, 0, 0) for begin, _ in parts[1:])
    assert len(parts) <= length.days // 28 + 2


@pytest.mark.parametrize("period", [OPEN, (datetime(2015, 1, 1, tzinfo=UTC), None), (None, datetime(2015, 1, 1, tzinfo=UTC))])
def test_an_open_period_is_asked_for_at_once(period: Any) -> None:
    assert split_period(period) == (period,)


def test_every_month_and_every_box_is_asked_and_what_lies_in_two_is_kept_once() -> None:
    boxes = ((178.0, -18.0, 180.0, -17.0), (-180.0, -18.0, -179.0, -17.0))

    def answer(base: str, path: str, _: int) -> tuple[int, Any]:
        asked = parse_qs(urlsplit(path).query)
        east = float(asked.get("bbox", ["0"])[0].split(",")[0]) > 0
        month = asked.get("datetime", ["2021-00"])[0][6]
        return answer_as_api(base, path, {"0": to_page(base, f"x{month}{'e' if east else 'w'}")})

    with answering(answer) as (base, asked):
        result = search(base, period=(datetime(2021, 6, 10, tzinfo=UTC), datetime(2021, 8, 2, 23, 59, 59, tzinfo=UTC)), bboxes=boxes)
    assert names_of(result) == "678ewx"
    assert result.statistics.repeats == 0
    periods = [parse_qs(urlsplit(path).query)["datetime"][0] for path in asked if path.startswith("/search")]
    assert periods[::2] == [
        "2021-06-10T00:00:00Z/2021-07-01T00:00:00Z",
        "2021-07-01T00:00:00Z/2021-08-01T00:00:00Z",
        "2021-08-01T00:00:00Z/2021-08-02T23:59:59Z",
    ]
    assert periods[::2] == periods[1::2]


# Doors.


def test_a_name_opens_its_preset_without_asking_anybody() -> None:
    for name, preset in PRESETS.items():
        if preset.url:
            with open_catalogue(name) as catalogue:
                assert (catalogue.base_url, catalogue.preset) == (preset.url, preset)
                assert catalogue.resolver.token_service == preset.signed_by


def test_a_lacking_folder_or_catalogue_is_named(tmp_path: Path) -> None:
    known = r"neither a preset \(earth-search, planetary-computer, cdse\), a URL nor a folder"
    with pytest.raises(MissingError, match=known), open_catalogue(str(tmp_path / "none")):
        pass
    with pytest.raises(MissingError, match="holds no catalog"), open_catalogue(str(tmp_path)):
        pass


def write_world(folder: Path) -> Path:
    """Two collections, one item each, in the layout of a static catalogue."""
    extent = {"spatial": {"bbox": [[10, 45, 11, 46]]}, "temporal": {"interval": [["2021-06-01T00:00:00Z", None]]}}
    plain = {"stac_version": "1.0.0", "description": "d"}
    names = ("sentinel-2-l2a", "sentinel-1-rtc")
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "item.json").write_text(json.dumps(to_item("a", name, assets={"vv": {"href": "vv.tif"}})))
        (folder / name / "vv.tif").write_bytes(b"pixels")
        links = [{"rel": "item", "href": "./item.json"}]
        collection = {**plain, "type": "Collection", "id": name, "license": "other", "extent": extent, "links": links}
        (folder / name / "collection.json").write_text(json.dumps(collection))
    children = [{"rel": "child", "href": f"{name}/collection.json"} for name in names]
    (folder / "catalog.json").write_text(json.dumps({**plain, "type": "Catalog", "id": "world", "links": children}))
    return folder


def test_a_folder_is_served_as_long_as_it_is_open(tmp_path: Path) -> None:
    with open_catalogue(str(write_world(tmp_path))) as catalogue:
        assert catalogue.collections == ("sentinel-1-rtc", "sentinel-2-l2a")
        assert select_collections(catalogue, ("sentinel-2-c1-l2a", "sentinel-2-l2a")) == ("sentinel-2-l2a",)
        with pytest.raises(CatalogueError, match="none of the collections a, b; it has sentinel-1-rtc, sentinel-2-l2a"):
            select_collections(catalogue, ("a", "b"))
        period = (None, datetime(2021, 6, 3, 12, tzinfo=UTC))
        (item,) = search_items(catalogue, ("sentinel-1-rtc",), ((10.5, 45.5, 12, 47),), period).items
        assert requests.get(catalogue.resolver("sentinel-1-rtc/vv.tif"), timeout=5).content == b"pixels"
        assert item["assets"]["vv"]["href"] == catalogue.resolver("sentinel-1-rtc/vv.tif")
        assert search_items(catalogue, ("sentinel-1-rtc",), ((20, 45.5, 21, 47),), OPEN).items == []
    with pytest.raises(requests.ConnectionError):
        requests.get(catalogue.resolver("sentinel-1-rtc/vv.tif"), timeout=5)


# Recorded answers.


@pytest.fixture(scope="module")
def samples() -> Path:
    return find_samples() / "stac"


@pytest.mark.real
def test_real_collections_of_earth_search_are_listed(samples: Path) -> None:
    recorded = json.loads((samples / "recorded" / "01_earthsearch_GET.json").read_text())["response"]
    with answering(lambda base, path, _: (200, recorded if "collections" in path else to_landing(base))) as (base, _):
        catalogue = Catalogue(base, base, PRESETS["earth-search"], pause=lambda _: None)
        assert len(catalogue.collections) == 9
        assert select_collections(catalogue, catalogue.preset.optical_collections) == ("sentinel-2-c1-l2a", "sentinel-2-l2a")
        assert select_collections(catalogue, catalogue.preset.sar_collections) == ("sentinel-1-grd",)


@pytest.mark.real
@pytest.mark.parametrize(("name", "kind"), [("13", "grd"), ("14", "rtc")])
def test_real_pages_of_planetary_computer_are_followed_by_their_tokens(samples: Path, name: str, kind: str) -> None:
    recorded = json.loads((samples / "recorded" / f"{name}_planetarycomputer_GET.json").read_text())["response"]
    token = next(link for link in recorded["links"] if link["rel"] == "next")["href"].partition("token=")[2]
    assert token == f"next:sentinel-1-{kind}:{recorded['features'][0]['id']}"

    def answer(base: str, path: str, _: int) -> tuple[int, Any]:
        here = json.loads(json.dumps(recorded).replace("https://planetarycomputer.microsoft.com/api/stac/v1", base))
        second = {**to_page(base, ""), "features": [{**here["features"][0], "id": "another"}]}
        if path.startswith(f"/collections/sentinel-1-{kind}/items"):  # where the recorded link leads
            return (200, second) if "token=" in path else (404, {})
        return answer_as_api(base, path, {"0": here})

    with answering(answer) as (base, _):
        result = search(base)
    assert [item["id"] for item in result.items] == sorted([recorded["features"][0]["id"], "another"])
    assert result.statistics.warnings == ()
