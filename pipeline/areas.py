"""The ground to work on: areas as users state them become one grid, an outline, and boxes to search in.

Enters: an `Area` of the settings. Leaves: a `Ground`; footprints of items are measured against it. Pure, but for an area's file.
Longitudes are counted around the area, so that nothing here sees the seam at 180 degrees but the boxes of the search.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline.config import Area
from sereno.pipeline.errors import ConfigError, DataError, MissingError

Bbox = tuple[float, float, float, float]

UTM_ZONE_DEG: Final = 6
"""Width of a UTM zone in degrees of longitude."""
UTM_SOUTH: Final = -80.0
UTM_NORTH: Final = 84.0
"""UTM ends at these latitudes; beyond them are the polar stereographic zones."""
UTM_MIDDLE_M: Final = 500_000.0
"""Easting of a zone's central meridian, metres."""
MAX_SIDE_M: Final = 200_000.0
"""Largest side of an area: two Sentinel-2 tiles. One job holds a whole scene of it; what is larger is better several areas."""
MAX_OFF_MIDDLE_M: Final = 600_000.0
"""A UTM grid may reach this far from its central meridian: there the scale is off by 0.4 % already (0.9996 (1 + d^2 / 2 R^2), Snyder
1987, eq. 8-11). An area of the largest side with the zone of its centre never gets there; one with a wrong `epsg` does."""
EDGE_STEP_DEG: Final = 0.05
"""Edges of an area are split into pieces of this length before they are projected, since straight lines bend."""
CLIP_DEG: Final = 1.0
"""Footprints are cut this far around the area before they are projected: a UTM zone is only good near its meridian."""
EDGE_STEP_M: Final = 5_000.0
"""The same for edges in metres."""
OUTLINE_STEP_M: Final = 0.5
"""Outlines are drawn to this accuracy, which keeps the lock short."""
DEGREES: Final = "EPSG:4326"
"""CRS of GeoJSON; here always longitude, latitude."""
SNAP_SHARE: Final = 1e-6
"""Bounds may miss a whole number of pixels by this share of a pixel."""
GEOJSON_CRS: Final = ("CRS84", "EPSG::4326", "EPSG:4326")
"""How the name of a CRS may end that GeoJSON of before RFC 7946 states."""

SQUARE_M: Final = 100_000
"""Side of an MGRS square."""
TILE_M: Final = 109_800
"""Side of a Sentinel-2 tile: a square, and a margin on the right and below."""
TILE_STEP_M: Final = 60
"""Corners of Sentinel-2 tiles lie on multiples of this, counted from the equator: their coarsest pixel."""
MGRS_BANDS: Final = "CDEFGHJKLMNPQRSTUVWX"
"""Bands of 8 degrees of latitude from 80 S on; the last one has 12."""
MGRS_COLUMNS: Final = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")
"""Letters of the squares from 100 km easting on, for zones 1, 2, 3 and every third after them."""
MGRS_ROWS: Final = "ABCDEFGHJKLMNPQRSTUV"
"""Letters of the squares from the equator on; they begin with F in even zones (DMA TM 8358.1, 1990)."""
ROWS_CYCLE_M: Final = SQUARE_M * len(MGRS_ROWS)
"""After so many metres of northing the letters repeat; a band of latitude is shorter."""


class Ground(NamedTuple):
    """One area, ready to work on."""

    geobox: GeoBox
    """The common grid of everything."""
    outline: Geometry | None
    """Polygon in the grid's CRS outside which nothing is used; None means the whole grid."""

    @property
    def geometry(self) -> Geometry:
        """The ground that counts, in the grid's CRS."""
        return self.geobox.extent.geom if self.outline is None else self.outline

    @property
    def outline_json(self) -> dict[str, Any] | None:
        """The outline as a GeoJSON geometry."""
        return None if self.outline is None else json.loads(shapely.to_geojson(self.outline))


def to_ground(area: Area, resolution_m: float) -> Ground:
    """The grid and the outline of an area.

    Bounds in metres are taken as they are; everything else is projected and grown to whole pixels. Without `epsg` the zone is the UTM zone
    of the area's centre, with the exceptions of Norway and Svalbard; that of an MGRS tile is its own.

    Raises:
        ConfigError: bounds in metres are not a whole number of pixels, `epsg` is no CRS in metres or lies far away, the GeoJSON is no
            polygon, the tile does not exist, or the area is larger than MAX_SIDE_M.
        MissingError: the area's file does not exist.
    """
    if area.epsg is not None:
        _check_epsg(area.epsg)
    if area.bounds_m is not None:
        return Ground(_to_whole_pixels(area.bounds_m, f"EPSG:{area.epsg}", resolution_m), None)
    if area.mgrs is not None and area.epsg is None:
        epsg, bounds = to_tile(area.mgrs)
        return Ground(_grow_to_pixels(bounds, epsg, resolution_m), None)
    polygon, is_box = _to_degrees_polygon(area)
    middle = shapely.box(*polygon.bounds).centroid  # longitudes of `polygon` may lie beyond 180
    epsg = area.epsg or _utm_epsg(middle.x, middle.y)
    projected = _project(shapely.segmentize(polygon, EDGE_STEP_DEG), CRS(DEGREES), CRS(f"EPSG:{epsg}"))
    if not np.isfinite(projected.bounds).all():
        raise ConfigError(
            f"the area around {middle.x:.2f}, {middle.y:.2f} degrees cannot be drawn in EPSG:{epsg}: split it if it is larger than "
            f"{MAX_SIDE_M / 1000:g} km, else leave 'epsg' out"
        )
    geobox = _grow_to_pixels(projected.bounds, epsg, resolution_m)
    return Ground(geobox, None if is_box else _draw_outline(projected))


def to_geobox(area: Area, resolution_m: float) -> GeoBox:
    """The grid of an area alone; errors as `to_ground`."""
    return to_ground(area, resolution_m).geobox


def _to_whole_pixels(bounds: Bbox, crs: str, resolution_m: float) -> GeoBox:
    left, bottom, right, top = bounds
    columns, rows = (right - left) / resolution_m, (top - bottom) / resolution_m
    if max(abs(columns - round(columns)), abs(rows - round(rows))) > SNAP_SHARE or not round(columns) or not round(rows):
        raise ConfigError(f"bounds_m {bounds} are {columns:g} x {rows:g} pixels of {resolution_m} m: give a whole number of pixels")
    _check_size(bounds, crs)
    return GeoBox((round(rows), round(columns)), Affine(resolution_m, 0, left, 0, -resolution_m, top), crs)


def _grow_to_pixels(bounds: Bbox, epsg: int, resolution_m: float) -> GeoBox:
    left, bottom = (math.floor(edge / resolution_m + SNAP_SHARE) * resolution_m for edge in bounds[:2])
    right, top = (math.ceil(edge / resolution_m - SNAP_SHARE) * resolution_m for edge in bounds[2:])
    return _to_whole_pixels((left, bottom, right, top), f"EPSG:{epsg}", resolution_m)


def _check_size(bounds: Bbox, crs: str) -> None:
    left, bottom, right, top = bounds
    if max(right - left, top - bottom) > MAX_SIDE_M:
        raise ConfigError(
            f"the area is {(right - left) / 1000:.0f} x {(top - bottom) / 1000:.0f} km, at most {MAX_SIDE_M / 1000:g} km fit one grid: "
            "split it into several areas of pipeline.query.areas"
        )
    off = max(abs(left - UTM_MIDDLE_M), abs(right - UTM_MIDDLE_M))
    if _is_utm(crs) and off > MAX_OFF_MIDDLE_M:
        raise ConfigError(
            f"the area lies {off / 1000:.0f} km from the central meridian of {crs}, where its grid is distorted: give the zone it lies in, "
            "or leave 'epsg' out"
        )


def _is_utm(crs: str) -> bool:
    code = int(crs.removeprefix("EPSG:"))
    return code // 100 in (326, 327) and 1 <= code % 100 <= 60


def _check_epsg(epsg: int) -> None:
    try:
        crs = CRS(f"EPSG:{epsg}")
    except CRSError:
        raise ConfigError(f"EPSG {epsg} is not known: give the code of a UTM zone, for example 32632") from None
    if not crs.projected or crs.units[0] != "metre":
        raise ConfigError(f"EPSG {epsg} is not a projected CRS in metres: give the code of a UTM zone, for example 32632")


def _utm_epsg(longitude: float, latitude: float) -> int:
    """EPSG code of the UTM zone of a place; longitudes may lie beyond 180 degrees."""
    if not UTM_SOUTH <= latitude < UTM_NORTH:
        pole = "3413 or 32661" if latitude > 0 else "3031 or 32761"
        raise ConfigError(
            f"the area's centre lies at {latitude:.2f} degrees, where there are no UTM zones: give 'epsg', for example {pole}"
        )
    longitude = (longitude + 180) % 360 - 180
    zone = int((longitude + 180) // UTM_ZONE_DEG) + 1
    band = MGRS_BANDS[min(len(MGRS_BANDS) - 1, int((latitude - UTM_SOUTH) // 8))]
    for other in (zone - 1, zone + 1):
        west, east = _zone_limits(other, band)
        zone = other if west <= longitude < east else zone
    return (32_600 if latitude >= 0 else 32_700) + zone


def _zone_limits(zone: int, band: str) -> tuple[float, float]:
    """Western and eastern edge of a zone in a band of latitude, degrees; equal if the zone is not there."""
    odd = {("V", 31): (0, 3), ("V", 32): (3, 12), ("X", 31): (0, 9), ("X", 33): (9, 21), ("X", 35): (21, 33), ("X", 37): (33, 42)}
    if (band, zone) in odd:
        return odd[band, zone]
    west = (zone - 1) * UTM_ZONE_DEG - 180
    return (west, west) if band == "X" and zone in (32, 34, 36) else (west, west + UTM_ZONE_DEG)


def to_tile(name: str) -> tuple[int, Bbox]:
    """EPSG code and bounds in metres of the Sentinel-2 tile over an MGRS square such as `32TNR`.

    The upper left corner is that of the square, moved outwards to a multiple of TILE_STEP_M (seen in all tiles at hand).

    Raises:
        ConfigError: there is no such square.
    """
    zone, band, column, row = int(name[:-3]), name[-3], name[-2], name[-1]
    letters = MGRS_COLUMNS[(zone - 1) % 3]
    if not 1 <= zone <= 60 or column not in letters:
        raise ConfigError(f"there is no MGRS square {name}: zones are 1 to 60, and the squares of zone {zone} begin with {letters}")
    south = UTM_SOUTH + 8 * MGRS_BANDS.index(band)
    epsg, shift = (32_600 + zone, 0) if south >= 0 else (32_700 + zone, 10_000_000)
    _, lowest = Transformer.from_crs(DEGREES, f"EPSG:{epsg}", always_xy=True).transform(zone * UTM_ZONE_DEG - 183, south)
    first = math.floor((lowest - shift) / SQUARE_M) * SQUARE_M - SQUARE_M
    index = MGRS_ROWS.index(row) - (0 if zone % 2 else 5)
    bottom = first + (index * SQUARE_M - first) % ROWS_CYCLE_M
    left = (letters.index(column) + 1) * SQUARE_M
    square = (left, bottom + shift, left + SQUARE_M, bottom + shift + SQUARE_M)
    if not _is_square(square, epsg, band):
        raise ConfigError(f"there is no MGRS square {name}: zone {zone} has no {column}{row} in band {band}")
    corner_x = math.floor(left / TILE_STEP_M) * TILE_STEP_M
    corner_y = math.ceil((bottom + SQUARE_M) / TILE_STEP_M) * TILE_STEP_M + shift
    return epsg, (corner_x, corner_y - TILE_M, corner_x + TILE_M, corner_y)


def _is_square(square: Bbox, epsg: int, band: str) -> bool:
    """Whether some ground of the square lies in its zone and band."""
    south = UTM_SOUTH + 8 * MGRS_BANDS.index(band)
    west, east = _zone_limits(epsg % 100, band)
    if west == east:
        return False
    outline = shapely.segmentize(shapely.box(*square), EDGE_STEP_M)
    shown = _unwrap(_project(outline, CRS(f"EPSG:{epsg}"), CRS(DEGREES)), (west + east) / 2)
    return bool(shapely.box(west, south, east, UTM_NORTH if band == "X" else south + 8).intersection(shown).area > 0)


def _to_degrees_polygon(area: Area) -> tuple[Geometry, bool]:
    """The area in degrees, in one piece also across 180 degrees, and whether it is a plain box."""
    if area.bbox is not None:
        west, south, east, north = area.bbox
        return shapely.box(west, south, east + 360 if east < west else east, north), True
    if area.mgrs is not None:
        epsg, bounds = to_tile(area.mgrs)
        outline = shapely.segmentize(shapely.box(*bounds), EDGE_STEP_M)
        return _unwrap(_project(outline, CRS(f"EPSG:{epsg}"), CRS(DEGREES)), epsg % 100 * UTM_ZONE_DEG - 183), True
    if area.file is not None:
        return _parse_geojson(_read_geojson(area.file), str(area.file)), False
    assert area.geojson is not None  # Area takes one of five
    return _parse_geojson(area.geojson, "geojson"), False


def _read_geojson(path: Path) -> Any:
    convert = f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 -lco RFC7946=YES area.geojson {path}"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingError(f"the area's file {path} does not exist") from None
    except (OSError, ValueError):  # a folder, or bytes that are no text or no JSON
        raise ConfigError(f"the area's file {path} is no GeoJSON: convert it with `{convert}`") from None


def _parse_geojson(value: Any, where: str) -> Geometry:
    """The polygons of a GeoJSON geometry, feature or collection as one geometry in degrees, in one piece across 180 degrees."""
    try:
        name = str(((value.get("crs") or {}).get("properties") or {}).get("name") or GEOJSON_CRS[0])
        parts = [shape(geometry) for geometry in _geometries_of(value)]
        polygons = [one for part in parts for one in _polygons_of(part)]
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
    first = _unwrap(polygons[0], 0.0)
    return shapely.union_all([_unwrap(one, shapely.box(*first.bounds).centroid.x) for one in polygons])


def _geometries_of(value: Any) -> Iterable[dict[str, Any]]:
    """The geometries that a GeoJSON value holds."""
    kind = value["type"]
    if kind == "FeatureCollection":
        return [one for feature in value["features"] for one in _geometries_of(feature)]
    if kind == "GeometryCollection":
        return [one for geometry in value["geometries"] for one in _geometries_of(geometry)]
    return _geometries_of(value["geometry"]) if kind == "Feature" else [value]


def _polygons_of(geometry: Geometry) -> list[Geometry]:
    """The polygons that a geometry is made of, mended where they cross themselves; what has no ground is left out."""
    polygons = [one for one in _parts_of(geometry) if one.geom_type == "Polygon" and not one.is_empty]
    mended = [_parts_of(shapely.make_valid(_unwrap(one, None))) for one in polygons]
    return [one for parts in mended for one in parts if one.geom_type == "Polygon" and one.area]


def _parts_of(geometry: Geometry) -> list[Geometry]:
    return [one for part in geometry.geoms for one in _parts_of(part)] if hasattr(geometry, "geoms") else [geometry]


def _unwrap(polygon: Geometry, middle: float | None) -> Geometry:
    """`polygon` (degrees) without jumps at 180 degrees, the copy of it that lies nearest to the longitude `middle`.

    Edges go the short way round: no item is half a globe wide.
    """
    rings = [_straighten(np.asarray(ring.coords)[:, :2]) for ring in (polygon.exterior, *polygon.interiors)]
    if any(abs(ring[0, 0] - ring[-1, 0]) > 180 for ring in rings):
        raise DataError("the polygon goes round a pole: cut it into parts")
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


def _draw_outline(projected: Geometry) -> Geometry:
    """`projected` (metres) with no more points than its accuracy needs, coordinates in millimetres."""
    drawn = shapely.set_precision(shapely.simplify(projected, OUTLINE_STEP_M), 0.001)
    return shapely.normalize(drawn)


def cut_footprint(footprint: dict[str, Any] | None, ground: Ground) -> Geometry:
    """The part of the ground inside a GeoJSON footprint in degrees, in the grid's CRS; empty if they do not meet.

    Footprints that cross 180 degrees may be split there, run beyond 180, or jump from one side to the other.

    Raises:
        DataError: there is no footprint, or it is no polygon.
    """
    if not footprint:
        raise DataError("the item states no footprint")
    west, south, east, north = _limits_of(ground.geobox)
    middle = (west + east) / 2
    try:
        polygons = [_unwrap(one, middle) for one in _polygons_of(shape(footprint))]
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError) as error:  # shapely's faults with what is no GeoJSON
        raise DataError(f"its footprint is no GeoJSON geometry ({error})") from None
    if not polygons:
        raise DataError(f"its footprint is a {footprint.get('type')} without any ground, expected a polygon")
    window = shapely.box(west - CLIP_DEG, south - CLIP_DEG, east + CLIP_DEG, north + CLIP_DEG)
    clipped = shapely.intersection(shapely.make_valid(shapely.union_all(polygons)), window)
    projected = _project(shapely.segmentize(clipped, EDGE_STEP_DEG), CRS(DEGREES), CRS(str(ground.geobox.crs)))
    part = shapely.intersection(shapely.make_valid(projected), ground.geometry)
    return shapely.MultiPolygon([one for one in _parts_of(part) if one.geom_type == "Polygon" and not one.is_empty])


def compute_share(part: Geometry, ground: Ground) -> float:
    """Share (0..1) of the ground that `part`, in the grid's CRS and inside the ground, covers."""
    return float(part.area / ground.geometry.area)


def to_bboxes(geobox: GeoBox) -> tuple[Bbox, ...]:
    """West, south, east, north of the grid in degrees; two boxes if it crosses 180 degrees."""
    west, south, east, north = _limits_of(geobox)
    if east > 180:
        return (west, south, 180.0, north), (-180.0, south, east - 360, north)
    if west < -180:
        return (west + 360, south, 180.0, north), (-180.0, south, east, north)
    return ((west, south, east, north),)


@functools.lru_cache(maxsize=16)
def _limits_of(geobox: GeoBox) -> Bbox:
    """West, south, east, north of the grid in degrees, longitudes around its centre: beyond 180 where it crosses the seam."""
    crs, bounds = CRS(str(geobox.crs)), geobox.boundingbox
    centre = _project(shapely.Point((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2), crs, CRS(DEGREES)).x
    outline = _project(shapely.segmentize(geobox.extent.geom, EDGE_STEP_M), crs, CRS(DEGREES))
    west, south, east, north = _unwrap(outline, centre).bounds
    return west, south, east, north


def _project(geometry: Geometry, source: CRS, target: CRS) -> Geometry:
    # odc-geo's own `to_crs` warns with shapely 2.2, which deprecates the function that it calls.
    transform = source.transformer_to_crs(target)
    return shapely.transform(geometry, lambda xy: np.stack(transform(xy[:, 0], xy[:, 1]), axis=1))
