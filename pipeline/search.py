"""What a STAC search asks for, and which items answer it.

Enters: the parameters of a request (query string or JSON body) and the items of a catalogue. Leaves: the matching items, in order, with
the fields asked for. Pure; geometry and filters are the business of cql2, so that no raster library is loaded by the server.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import cql2

from sereno.pipeline.errors import DataError

Json = dict[str, Any]

DEFAULT_LIMIT: Final = 100
"""Items per page if the request does not say."""
MAX_LIMIT: Final = 10_000
"""Most items per page; a larger `limit` is served as this one, as OGC API - Features asks."""
PARAMETERS: Final = ("collections", "ids", "bbox", "intersects", "datetime", "limit", "token")
"""Parameters of items and of search."""
EXTENSIONS: Final = ("query", "filter", "filter-lang", "filter-crs", "sortby", "fields")
"""Further parameters of search."""
CRS84: Final = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
"""The one CRS in which filters are understood: longitude, latitude in degrees."""
TIMES: Final = ("datetime", "start_datetime", "end_datetime", "created", "updated")
"""Properties that hold an instant (STAC common metadata)."""
HALF_TURN: Final = 180.0
"""The longitude at which east meets west, degrees."""
ALWAYS: Final = ("type", "id", "collection")
"""Fields that an answer has in any case."""
OPERATORS: Final = frozenset(
    ["and", "or", "not", "=", "<>", "<", "<=", ">", ">=", "isNull", "like", "between", "in", "+", "-", "*", "/", "s_intersects"]
)
"""CQL2 operators that are evaluated; cql2 takes any other for a function that matches nothing, so others are refused."""
COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "eq": lambda seen, asked: seen == asked,
    "neq": lambda seen, asked: seen != asked,
    "lt": lambda seen, asked: seen < asked,
    "lte": lambda seen, asked: seen <= asked,
    "gt": lambda seen, asked: seen > asked,
    "gte": lambda seen, asked: seen >= asked,
    "startsWith": lambda seen, asked: str(seen).startswith(str(asked)),
    "endsWith": lambda seen, asked: str(seen).endswith(str(asked)),
    "contains": lambda seen, asked: asked in seen if isinstance(seen, list) else str(asked) in str(seen),
    "in": lambda seen, asked: seen in asked,
}
"""Operators of the query extension."""


@dataclass(frozen=True)
class Search:
    """One understood search request; None always means `not asked for`."""

    collections: tuple[str, ...] | None
    """Collection ids."""
    ids: tuple[str, ...] | None
    """Item ids."""
    area: Any | None
    """A parsed CQL2 expression: the footprint meets the geometry asked for."""
    period: tuple[datetime | None, datetime | None] | None
    """First and last moment; None at one end means open."""
    query: Mapping[str, Mapping[str, Any]]
    """Property to operator to value, all of which must hold."""
    filter: Any | None
    """A parsed CQL2 expression."""
    sort: tuple[tuple[str, bool], ...]
    """Field and whether it descends, the most important first."""
    include: tuple[str, ...]
    """Fields to show; empty means all."""
    exclude: tuple[str, ...]
    """Fields to leave out; stronger than `include`."""
    limit: int
    """Items per page."""
    offset: int
    """Items before this page."""


def parse_moment(text: str) -> datetime:
    """An instant with its time zone, from RFC 3339 text.

    Raises:
        DataError: the text is something else, or names no time zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise DataError(f"'datetime': {text!r} is not an RFC 3339 time such as 2021-06-03T10:00:00Z")
    return moment


def period_of(item: Json) -> tuple[datetime, datetime]:
    """First and last moment of an item's acquisition.

    Raises:
        DataError: the item states no time.
    """
    properties = item["properties"]
    first = properties.get("start_datetime") or properties.get("datetime")
    last = properties.get("end_datetime") or properties.get("datetime")
    if not first or not last:
        raise DataError(f"item {item['id']!r} states no time: it needs 'datetime', or 'start_datetime' and 'end_datetime'")
    return parse_moment(first), parse_moment(last)


def parse_query_string(pairs: list[tuple[str, str]]) -> Json:
    """GET parameters in the shape of a POST body.

    Raises:
        DataError: a parameter is given twice, or does not have the form that its name asks for.
    """
    plain = dict(pairs)
    if len(plain) < len(pairs):
        raise DataError(f"a parameter is given twice: {sorted(key for key, _ in pairs)}")
    body: Json = dict(plain)
    for key in plain.keys() & {"collections", "ids", "bbox"}:
        body[key] = plain[key].split(",")
    for key in plain.keys() & {"intersects", "query"}:
        body[key] = parse_json(key, plain[key])
    if "filter" in plain and plain.get("filter-lang", "cql2-text") == "cql2-json":
        body["filter"] = parse_json("filter", plain["filter"])
    elif "filter" in plain:
        body["filter-lang"] = plain.get("filter-lang", "cql2-text")
    if "sortby" in plain:
        # A bare plus in an address is decoded to a blank.
        fields = [part.replace(" ", "+", 1) if part.startswith(" ") else part for part in plain["sortby"].split(",")]
        body["sortby"] = [{"field": part.lstrip("+-"), "direction": "desc" if part.startswith("-") else "asc"} for part in fields]
    if "fields" in plain:
        fields = [part.strip().removeprefix("+") for part in plain["fields"].split(",") if part.strip()]
        excluded = [part[1:] for part in fields if part.startswith("-")]
        body["fields"] = {"include": [part for part in fields if not part.startswith("-")], "exclude": excluded}
    return body


def parse_json(key: str, text: str) -> Any:
    """The JSON value of the parameter `key`.

    Raises:
        DataError: `text` is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise DataError(f"{key!r} is not valid JSON: {text[:80]!r}") from None


def parse_search(body: Json) -> Search:
    """The search that a POST body asks for.

    Raises:
        DataError: a parameter is unknown, of the wrong type, or contradicts another; the message names it and the value seen.
    """
    unknown = sorted(body.keys() - {*PARAMETERS, *EXTENSIONS})
    if unknown:
        raise DataError(f"unknown parameter {unknown[0]!r}; known are {', '.join((*PARAMETERS, *EXTENSIONS))}")
    fields = body.get("fields") or {}
    if not isinstance(fields, dict):
        raise DataError(f"'fields' must be an object with 'include' and 'exclude', seen {fields!r}")
    return Search(
        collections=_parse_names(body, "collections"),
        ids=_parse_names(body, "ids"),
        area=_parse_area(body),
        period=_parse_period(body.get("datetime")),
        query=_parse_query(body.get("query") or {}),
        filter=_parse_filter(body),
        sort=_parse_sort(body.get("sortby") or []),
        include=_parse_names(fields, "include") or (),
        exclude=_parse_names(fields, "exclude") or (),
        limit=min(_parse_count(body, "limit", DEFAULT_LIMIT, least=1), MAX_LIMIT),
        offset=_parse_count(body, "token", 0, least=0),
    )


def _parse_names(body: Json, key: str) -> tuple[str, ...] | None:
    names = body.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{key!r} must be a list of names, seen {names!r}")
    return tuple(names)


def _parse_count(body: Json, key: str, default: int, *, least: int) -> int:
    seen = body.get(key)
    if seen is None:
        return default
    if isinstance(seen, bool) or not str(seen).isascii() or not str(seen).isdigit() or int(seen) < least:
        raise DataError(f"{key!r} must be a whole number of at least {least}, seen {seen!r}")
    return int(seen)


def _parse_area(body: Json) -> Any | None:
    bbox, geometry = body.get("bbox"), body.get("intersects")
    if bbox is None and geometry is None:
        return None
    if bbox is not None and geometry is not None:
        raise DataError("give either 'bbox' or 'intersects', not both")
    if bbox is not None:
        geometry = _to_multipolygon(bbox)
    elif not isinstance(geometry, dict) or "type" not in geometry:
        raise DataError(f"'intersects' must be a GeoJSON geometry, seen {str(geometry)[:80]!r}")
    return _parse_cql2({"op": "s_intersects", "args": [{"property": "geometry"}, geometry]}, "intersects")


def _to_multipolygon(bbox: Any) -> Json:
    """The box as GeoJSON; one that crosses the antimeridian (west > east) becomes two."""
    try:
        numbers = [float(value) for value in bbox]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (4, 6) or not all(math.isfinite(value) for value in numbers):
        raise DataError(f"'bbox' must be 4 or 6 numbers: west, south, (lowest,) east, north(, highest), seen {bbox!r}")
    west, south, east, north = numbers if len(numbers) == 4 else (*numbers[:2], *numbers[3:5])
    if south > north:
        raise DataError(f"'bbox': south {south} lies above north {north}")
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in spans]
    return {"type": "MultiPolygon", "coordinates": rings}


def _parse_period(text: Any) -> tuple[datetime | None, datetime | None] | None:
    if text is None:
        return None
    if not isinstance(text, str) or text.count("/") > 1:
        raise DataError(f"'datetime' must be an instant or an interval FIRST/LAST, seen {text!r}")
    if "/" not in text:
        return (moment := parse_moment(text)), moment
    first, last = (None if end in ("", "..") else parse_moment(end) for end in text.split("/"))
    if first is None and last is None:
        raise DataError(f"'datetime': {text!r} is open at both ends; leave it out instead")
    if first and last and first > last:
        raise DataError(f"'datetime': {text!r} ends before it begins")
    return first, last


def _parse_query(query: Any) -> Json:
    if not isinstance(query, dict) or not all(isinstance(tests, dict) for tests in query.values()):
        raise DataError(f'\'query\' must be an object such as {{"eo:cloud_cover": {{"lt": 10}}}}, seen {str(query)[:80]!r}')
    for name, tests in query.items():
        for operator, value in tests.items():
            if operator not in COMPARISONS:
                raise DataError(f"'query': unknown operator {operator!r} for {name!r}; known are {', '.join(COMPARISONS)}")
            if operator == "in" and not isinstance(value, list):
                raise DataError(f"'query': 'in' for {name!r} needs a list, seen {value!r}")
    return query


def _parse_filter(body: Json) -> Any | None:
    expression, language = body.get("filter"), body.get("filter-lang", "cql2-json")
    if language not in ("cql2-json", "cql2-text"):
        raise DataError(f"'filter-lang' must be cql2-text or cql2-json, seen {language!r}")
    if body.get("filter-crs", CRS84) != CRS84:
        raise DataError(f"'filter-crs' must be {CRS84}, seen {body['filter-crs']!r}")
    if expression is None:
        return None
    if not isinstance(expression, str if language == "cql2-text" else dict):
        raise DataError(f"'filter' does not have the form of {language}: {str(expression)[:80]!r}")
    return _parse_cql2(expression, "filter")


def _parse_cql2(expression: str | Json, key: str) -> Any:
    try:
        parsed = cql2.parse_text(expression) if isinstance(expression, str) else cql2.parse_json(json.dumps(expression))
        parsed.validate()
    except (cql2.ParseError, cql2.ValidationError):
        raise DataError(f"{key!r} is not understood: {str(expression)[:200]!r}") from None
    unknown = sorted(_operators_of(parsed.to_json()) - OPERATORS)
    if unknown:
        raise DataError(f"{key!r} uses the unknown function {unknown[0]!r}")
    return parsed


def _operators_of(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_operators_of, node))
    if not isinstance(node, dict) or "op" not in node:
        return set()
    return {node["op"]} | _operators_of(node.get("args", []))


def _parse_sort(sortby: Any) -> tuple[tuple[str, bool], ...]:
    entries = sortby if isinstance(sortby, list) else [sortby]
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get("field") or entry.get("direction", "asc") not in ("asc", "desc"):
            raise DataError(f"'sortby' needs entries with 'field' and 'direction' asc or desc, seen {entry!r}")
    return tuple((entry["field"], entry.get("direction") == "desc") for entry in entries)


def find_items(items: tuple[Json, ...], search: Search) -> list[Json]:
    """All items that match, in the order asked for.

    Raises:
        DataError: the order names a field that no item has.
    """
    found = [item for item in items if _is_match(item, search)]
    for field, descends in reversed(search.sort):
        if items and all(_value_of(item, field) is None for item in items):
            raise DataError(f"'sortby': no item has the field {field!r}")
        known = [item for item in found if _value_of(item, field) is not None]
        unknown = [item for item in found if _value_of(item, field) is None]
        found = sorted(known, key=functools.partial(_to_order, field), reverse=descends) + unknown
    return found


def _to_order(field: str, item: Json) -> tuple[str, Any]:
    """Numbers sort as numbers, times as times, all else as text, so that mixed values still have an order."""
    value = _value_of(item, field)
    if isinstance(value, int | float):
        return "number", value
    return ("time", parse_moment(value)) if field.removeprefix("properties.") in TIMES else ("text", str(value))


def _value_of(item: Json, field: str) -> Any:
    if field in ("id", "collection", "geometry", "bbox"):
        return item.get(field)
    return item["properties"].get(field.removeprefix("properties."))


def _is_match(item: Json, search: Search) -> bool:
    if search.collections is not None and item["collection"] not in search.collections:
        return False
    if search.ids is not None and item["id"] not in search.ids:
        return False
    if search.period is not None:
        (first, last), (begin, end) = search.period, period_of(item)
        if (first and end < first) or (last and begin > last):
            return False
    if not all(_is_passing(item, name, tests) for name, tests in search.query.items()):
        return False
    shown = item if search.area is None and search.filter is None else {**item, "geometry": _spread_footprint(item.get("geometry"))}
    # A property that an item lacks leaves the expression undecided, which as in SQL is no match; `matches` would raise there.
    return all(expression is None or expression.reduce(shown).to_json() is True for expression in (search.area, search.filter))


def _spread_footprint(geometry: Any) -> Any:
    """The footprint, joined by copies of its polygons where it reaches beyond 180 degrees on the other side.

    cql2 draws longitudes on a plane: there a ring that jumps from 180 to -180 goes round the globe the other way, and one that runs to 181
    ends beyond the edge, so that searches on the ground that they cover would not find them.
    """
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        return geometry
    polygons = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    outlines = [_straighten(polygon[0]) for polygon in polygons]
    crossing = [ring for ring in outlines if any(abs(place[0]) > HALF_TURN for place in ring)]
    copies = [[[[place[0] + turn, place[1]] for place in ring]] for ring in crossing for turn in (-2 * HALF_TURN, 0, 2 * HALF_TURN)]
    return {"type": "MultiPolygon", "coordinates": [*polygons, *copies]} if copies else geometry


def _straighten(ring: list[list[float]]) -> list[list[float]]:
    """The ring with each longitude within 180 degrees of the one before: edges go the short way round."""
    straight = [ring[0]]
    for longitude, *others in ring[1:]:
        turns = round((straight[-1][0] - longitude) / (2 * HALF_TURN))
        straight.append([longitude + 2 * HALF_TURN * turns, *others])
    return straight


def _is_passing(item: Json, name: str, tests: Mapping[str, Any]) -> bool:
    seen = _value_of(item, name)
    return seen is not None and all(_compare(seen, operator, asked) for operator, asked in tests.items())


def _compare(seen: Any, operator: str, asked: Any) -> bool:
    """Whether the comparison holds; what cannot be compared does not match."""
    try:
        asked = [_to_kind_of(seen, one) for one in asked] if operator == "in" else _to_kind_of(seen, asked)
        return COMPARISONS[operator](seen, asked)
    except (TypeError, ValueError):
        return False


def _to_kind_of(seen: Any, asked: Any) -> Any:
    """`asked` as a number where a number is compared: clients that are given text such as `eo:cloud_cover<11` send text."""
    if isinstance(seen, bool) or not isinstance(asked, str):
        return asked
    return float(asked) if isinstance(seen, int | float) else asked


def select_fields(item: Json, include: tuple[str, ...], exclude: tuple[str, ...]) -> Json:
    """A copy of the item with the fields asked for; `type`, `id` and `collection` are always there."""
    chosen: Json = {} if include else item
    for path in (*ALWAYS, *include) if include else ():
        _copy_field(item, chosen, path.split("."))
    chosen = copy.deepcopy(chosen)
    for path in set(exclude) - set(ALWAYS):
        _drop_field(chosen, path.split("."))
    return chosen


def _copy_field(source: Json, target: Json, parts: list[str]) -> None:
    first, *rest = parts
    if rest and isinstance(source.get(first), dict):
        _copy_field(source[first], target.setdefault(first, {}), rest)
    elif not rest and first in source:
        target[first] = source[first]


def _drop_field(target: Json, parts: list[str]) -> None:
    first, *rest = parts
    if not rest:
        target.pop(first, None)
    elif isinstance(target.get(first), dict):
        _drop_field(target[first], rest)
