"""Polygons in degrees: read from GeoJSON, mended, in one piece across 180 degrees, and projected.

Enters: GeoJSON geometries, features and collections. Leaves: polygons whose longitudes are counted around a place, without a seam.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline.errors import ConfigError, DataError, MissingError

Bbox = tuple[float, float, float, float]

DEGREES: Final = "EPSG:4326"
"""CRS of GeoJSON; here always longitude, latitude."""
EDGE_STEP_M: Final = 5_000.0
"""Edges in metres are split into pieces of this length before they are shown in degrees, since straight lines bend."""
GEOJSON_CRS: Final = ("CRS84", "EPSG::4326", "EPSG:4326")
"""How the name of a CRS may end that GeoJSON of before RFC 7946 states."""


def read_geojson(path: Path) -> Any:
    """What a file holds as JSON.

    Raises:
        MissingError: there is no such file.
        ConfigError: it is of another format; the message has the command that converts it.
    """
    convert = f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 -lco RFC7946=YES area.geojson {path}"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingError(f"the area's file {path} does not exist") from None
    except (OSError, ValueError):  # a folder, or bytes that are no text or no JSON
        raise ConfigError(f"the area's file {path} is no GeoJSON: convert it with `{convert}`") from None


def parse_geojson(value: Any, where: str) -> Geometry:
    """The polygons of a GeoJSON geometry, feature or collection as one geometry in degrees, in one piece across 180 degrees.

    `where` names the source in messages.

    Raises:
        ConfigError: it holds no polygon with some ground, or its coordinates are not degrees; the message says how to convert it.
    """
    try:
        name = str(((value.get("crs") or {}).get("properties") or {}).get("name") or GEOJSON_CRS[0])
        parts = [shape(geometry) for geometry in _geometries_of(value)]
        polygons = [one for part in parts for one in list_polygons(part)]
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # shapely's faults with what is no GeoJSON
        raise ConfigError(f"area {where}: no GeoJSON polygon, feature or collection ({' '.join(str(error).split())[:120]})") from None
    if not polygons:
        kinds = ", ".join(sorted({part.geom_type for part in parts})) or "nothing"
        raise ConfigError(f"area {where}: an area needs polygons with some ground, seen {kinds}")
    west, south, east, north = shapely.total_bounds(parts)
    if not name.endswith(GEOJSON_CRS) or not (-360 <= west <= east <= 540 and -90 <= south <= north <= 90):
        seen = f"{west:g} {south:g} {east:g} {north:g}" + ("" if name == GEOJSON_CRS[0] else f" in {name}")
        raise ConfigError(
            f"area {where}: coordinates must be longitude and latitude in degrees, seen {seen}: convert it with "
            "`ogr2ogr -t_srs EPSG:4326 -lco RFC7946=YES area.geojson FILE`"
        )
    first = unwrap(polygons[0], 0.0)
    return shapely.union_all([unwrap(one, shapely.box(*first.bounds).centroid.x) for one in polygons])


def _geometries_of(value: Any) -> Iterable[dict[str, Any]]:
    """The geometries that a GeoJSON value holds."""
    kind = value["type"]
    if kind == "FeatureCollection":
        return [one for feature in value["features"] for one in _geometries_of(feature)]
    if kind == "GeometryCollection":
        return [one for geometry in value["geometries"] for one in _geometries_of(geometry)]
    return _geometries_of(value["geometry"]) if kind == "Feature" else [value]


def list_polygons(geometry: Geometry) -> list[Geometry]:
    """The polygons that a geometry in degrees is made of, mended where they cross themselves; what has no ground is left out.

    Raises:
        DataError: a polygon goes round a pole.
    """
    polygons = [one for one in list_parts(geometry) if one.geom_type == "Polygon" and not one.is_empty]
    mended = [list_parts(shapely.make_valid(unwrap(one, None))) for one in polygons]
    return [one for parts in mended for one in parts if one.geom_type == "Polygon" and one.area]


def list_parts(geometry: Geometry) -> list[Geometry]:
    """The simple geometries of which a collection, at any depth, is made; a simple one is its own part."""
    return [one for part in geometry.geoms for one in list_parts(part)] if hasattr(geometry, "geoms") else [geometry]


def unwrap(polygon: Geometry, middle: float | None) -> Geometry:
    """`polygon` (degrees) without jumps at 180 degrees, the copy of it that lies nearest to the longitude `middle`.

    Edges go the short way round: no item is half a globe wide.

    Raises:
        DataError: the polygon goes round a pole.
    """
    rings = [_straighten(np.asarray(ring.coords)[:, :2]) for ring in (polygon.exterior, *polygon.interiors)]
    if any(abs(ring[0, 0] - ring[-1, 0]) > 180 for ring in rings):
        raise DataError("the polygon goes round a pole: cut it into parts")
    for ring in rings:
        ring[-1] = ring[0]  # rounding may have opened it, and would leave two points in one place
    shifts = [360 * round((rings[0][:, 0].mean() - ring[:, 0].mean()) / 360) for ring in rings]
    moved = [_shift(ring, shift) for ring, shift in zip(rings, shifts, strict=True)]
    if middle is not None:
        centre = (moved[0][:, 0].min() + moved[0][:, 0].max()) / 2
        moved = [_shift(ring, 360 * round((middle - centre) / 360)) for ring in moved]
    return shapely.Polygon(moved[0], moved[1:])


def _straighten(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ring (point, 2) with each longitude within 180 degrees of the one before."""
    return np.stack([np.unwrap(xy[:, 0], period=360), xy[:, 1]], axis=1)


def _shift(xy: npt.NDArray[np.float64], longitude: float) -> npt.NDArray[np.float64]:
    return np.stack([xy[:, 0] + longitude, xy[:, 1]], axis=1)


def project(geometry: Geometry, source: CRS, target: CRS) -> Geometry:
    """`geometry` with its points in another CRS; edges between them stay straight, so split long ones first."""
    # odc-geo's own `to_crs` warns with shapely 2.2, which deprecates the function that it calls.
    transform = source.transformer_to_crs(target)
    return shapely.transform(geometry, lambda xy: np.stack(transform(xy[:, 0], xy[:, 1]), axis=1))
