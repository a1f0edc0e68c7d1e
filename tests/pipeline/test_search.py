"""What a search asks for and which items answer it, without a server."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import cql2
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.pipeline.errors import DataError
from sereno.pipeline.search import CRS84, OPERATORS, find_items, parse_moment, parse_query_string, parse_search, period_of, select_fields

DEGREES = st.integers(-8, 8).map(float)
BOXES = st.tuples(DEGREES, DEGREES, st.integers(1, 4), st.integers(1, 4)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))

PERCENT = st.integers(0, 800).map(lambda eighths: eighths / 8)  # exact in any parser; the last bit of others may differ between two


def to_item(name: str, box: tuple[float, float, float, float] = (0, 0, 1, 1), **properties: Any) -> dict[str, Any]:
    outline = json.loads(shapely.to_geojson(shapely.box(*box)))
    return {
        "type": "Feature",
        "id": name,
        "collection": "c",
        "geometry": outline,
        "properties": {"datetime": "2021-06-03T10:00:00Z", **properties},
        "assets": {"red": {"href": "red.tif"}},
    }


def find(items: list[dict[str, Any]], **body: Any) -> list[str]:
    return [item["id"] for item in find_items(tuple(items), parse_search(body))]


@settings(max_examples=40, deadline=None)
@given(boxes=st.lists(BOXES, min_size=1, max_size=5), asked=BOXES)
def test_a_box_finds_what_shapely_says_it_touches(boxes: list[tuple[float, float, float, float]], asked: tuple[float, ...]) -> None:
    items = [to_item(str(number), box) for number, box in enumerate(boxes)]
    expected = [str(number) for number, box in enumerate(boxes) if shapely.box(*box).intersects(shapely.box(*asked))]
    assert find(items, bbox=list(asked)) == expected
    assert find(items, intersects=json.loads(shapely.to_geojson(shapely.box(*asked)))) == expected


@pytest.mark.parametrize(
    "longitudes",
    [(179.9, 180.2), (-180.1, -179.8), (179.9, -179.8), (-179.8, 179.9)],
    ids=["beyond 180", "beyond -180", "from 180 to -180", "from -180 to 180"],
)
def test_a_footprint_across_180_degrees_is_found_on_both_sides_however_it_is_written(longitudes: tuple[float, float]) -> None:
    west, east = longitudes
    ring = [[west, 66], [east, 66], [east, 67], [west, 67], [west, 66]]
    item = {**to_item("a"), "geometry": {"type": "Polygon", "coordinates": [ring]}}
    for several in (item, {**item, "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]}}):
        assert find([several], bbox=[179.95, 66.5, 179.97, 66.6]) == ["a"]
        assert find([several], bbox=[-179.95, 66.5, -179.85, 66.6]) == ["a"]
        assert find([several], bbox=[179.95, 67.5, 179.97, 67.6]) == []


def test_a_footprint_round_the_globe_is_found_everywhere() -> None:
    item = to_item("a", (-180, -90, 180, 90))
    assert all(find([item], bbox=[west, 1, west + 1, 2]) == ["a"] for west in range(-180, 180, 30))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.one_of(st.none(), PERCENT), max_size=6), limit=PERCENT)
def test_query_and_filter_agree_and_never_match_what_is_not_stated(values: list[float | None], limit: float) -> None:
    items = [to_item(str(number), **({} if value is None else {"eo:cloud_cover": value})) for number, value in enumerate(values)]
    expected = [str(number) for number, value in enumerate(values) if value is not None and value < limit]
    assert find(items, query={"eo:cloud_cover": {"lt": limit}}) == expected
    assert find(items, query={"eo:cloud_cover": {"lt": repr(limit)}}) == expected
    assert find(items, filter={"op": "<", "args": [{"property": "eo:cloud_cover"}, limit]}) == expected


@settings(max_examples=40, deadline=None)
@given(numbers=st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=8), descends=st.booleans())
def test_sorting_is_stable_and_puts_unknown_values_last(numbers: list[int | None], descends: bool) -> None:
    items = [to_item(f"{place}", **({} if number is None else {"n": number})) for place, number in enumerate([*numbers, 0])]
    order = find(items, sortby=[{"field": "n", "direction": "desc" if descends else "asc"}])
    known = [(place, number) for place, number in enumerate([*numbers, 0]) if number is not None]
    expected = [str(place) for place, number in sorted(known, key=lambda pair: (-pair[1] if descends else pair[1], pair[0]))]
    assert order == expected + [str(place) for place, number in enumerate(numbers) if number is None]


def test_times_sort_as_times_whatever_their_spelling() -> None:
    times = {"late": "2021-06-03T10:00:00.5Z", "early": "2021-06-03T10:00:00Z", "first": "2021-06-03T11:00:00+02:00"}
    items = [to_item(name, datetime=moment) for name, moment in times.items()]
    assert find(items, sortby=[{"field": "properties.datetime"}]) == ["first", "early", "late"]


def test_an_acquisition_with_a_duration_matches_any_moment_of_it() -> None:
    item = to_item("a", start_datetime="2021-06-03T10:00:00Z", end_datetime="2021-06-03 10:00:20+00:00", datetime="2021-06-03T10:00:10Z")
    assert find([item], datetime="2021-06-03T10:00:20Z") == ["a"]
    assert find([item], datetime="2021-06-03T09:00:00Z/2021-06-03T10:00:00Z") == ["a"]
    assert find([item], datetime="2021-06-03T10:00:21Z/..") == []
    with pytest.raises(DataError, match="states no time"):
        period_of({"id": "a", "properties": {}})


@pytest.mark.parametrize(
    "body",
    [
        {"collections": ["a", "b"], "ids": ["x"], "bbox": [1.0, 2.0, 3.0, 4.0], "limit": 5, "token": "3"},
        {"intersects": {"type": "Point", "coordinates": [1, 2]}, "datetime": "2021-06-03T10:00:00+00:00/.."},
        {"query": {"n": {"gte": 3}}, "sortby": [{"field": "n", "direction": "desc"}, {"field": "id", "direction": "asc"}]},
        {"fields": {"include": ["id", "properties.n"], "exclude": ["links"]}, "filter": "n < 3", "filter-lang": "cql2-text"},
        {"filter": {"op": "=", "args": [{"property": "n"}, 1]}, "filter-lang": "cql2-json", "filter-crs": CRS84},
    ],
)
def test_get_and_post_ask_the_same(body: dict[str, Any]) -> None:
    plain: dict[str, str] = {}
    for key, value in body.items():
        if key == "sortby":
            plain[key] = ",".join(("-" if entry["direction"] == "desc" else "+") + entry["field"] for entry in value)
        elif key == "fields":
            plain[key] = ",".join([*value["include"], *(f"-{name}" for name in value["exclude"])])
        else:
            plain[key] = (
                ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value) if isinstance(value, dict) else str(value)
            )
    one, other = (parse_search(shape) for shape in (body, parse_query_string(parse_qsl(urlencode(plain)))))
    for search in (one, other):
        for name in ("area", "filter"):
            parsed = getattr(search, name)
            object.__setattr__(search, name, parsed and parsed.to_json())
    assert one == other
    # A plus that was not escaped arrives as a blank.
    assert parse_query_string([("sortby", " n,-id")])["sortby"][0] == {"field": "n", "direction": "asc"}


FILTERS = (
    "n < 3 AND NOT n <> 2",
    "n <= 3 OR n >= 5",
    "n > 1 AND n = 2",
    "x IS NULL",
    "s LIKE 'ab%'",
    "n BETWEEN 1 AND 3",
    "n IN (2, 9)",
    "n + 1 = 3",
    "n - 1 = 1",
    "n * 2 = 4",
    "n / 2 = 1",
    "S_INTERSECTS(geometry, POINT(0.2 0.2))",
)
"""True for an item with n = 2 and s = abc at 0..1 degrees."""


@pytest.mark.parametrize("text", FILTERS)
def test_every_operator_is_evaluated(text: str) -> None:
    assert find([to_item("a", n=2, s="abc")], filter=text, **{"filter-lang": "cql2-text"}) == ["a"]
    assert find([to_item("a", n=2, s="abc")], filter=f"NOT ({text})", **{"filter-lang": "cql2-text"}) == []


def test_no_more_operators_are_claimed_than_are_tested() -> None:
    used = json.dumps([cql2.parse_text(text).to_json() for text in FILTERS])
    assert {operator for operator in OPERATORS if json.dumps({"op": operator})[1:-1] in used} == OPERATORS


def test_selecting_fields_leaves_the_item_as_it_was() -> None:
    item = to_item("a", n=2)
    before = json.dumps(item)
    shown = select_fields(item, ("properties",), ("properties.n",))
    assert shown == {"type": "Feature", "id": "a", "collection": "c", "properties": {"datetime": "2021-06-03T10:00:00Z"}}
    shown["properties"]["datetime"] = "changed"
    assert json.dumps(item) == before


@pytest.mark.parametrize("text", ["2021-06-03", "2021-06-03T10:00:00", "noon", "2021-13-03T10:00:00Z"])
def test_a_time_without_zone_is_no_moment(text: str) -> None:
    with pytest.raises(DataError, match="RFC 3339"):
        parse_moment(text)
