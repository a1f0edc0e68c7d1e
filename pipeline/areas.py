"""The ground to work on: areas as users state them become one grid, an outline, and boxes to search in.

Enters: an `Area` of the settings. Leaves: a `Ground`; footprints of items are measured against it. Pure, but for an area's file.
Longitudes are counted around the area, so that nothing here sees the seam at 180 degrees but the boxes of the search.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline.config import Area
from sereno.pipeline.errors import ConfigError, DataError
from sereno.pipeline.mgrs import UTM_ZONE_DEG, find_zone, is_utm, to_tile
from sereno.pipeline.polygons import (
    DEGREES,
    EDGE_STEP_M,
    Bbox,
    list_parts,
    list_polygons,
    parse_geojson,
    project,
    read_geojson,
    unwrap,
)

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
OUTLINE_STEP_M: Final = 0.5
"""Outlines are drawn to this accuracy, which keeps the lock short."""
SNAP_SHARE: Final = 1e-6
"""Bounds may miss a whole number of pixels by this share of a pixel."""


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
    epsg = area.epsg or find_zone(middle.x, middle.y)
    projected = project(shapely.segmentize(polygon, EDGE_STEP_DEG), CRS(DEGREES), CRS(f"EPSG:{epsg}"))
    if not np.isfinite(projected.bounds).all():
        raise ConfigError(
            f"the area around {middle.x:.2f}, {middle.y:.2f} degrees cannot be drawn in EPSG:{epsg}: split it if it is larger than "
            f"{MAX_SIDE_M / 1000:g} km, else leave 'epsg' out"
        )
    geobox = _grow_to_pixels(projected.bounds, epsg, resolution_m)
    return Ground(geobox, None if is_box else _draw_outline(projected))


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
    if is_utm(crs) and off > MAX_OFF_MIDDLE_M:
        raise ConfigError(
            f"the area lies {off / 1000:.0f} km from the central meridian of {crs}, where its grid is distorted: give the zone it lies in, "
            "or leave 'epsg' out"
        )


def _check_epsg(epsg: int) -> None:
    try:
        crs = CRS(f"EPSG:{epsg}")
    except CRSError:
        raise ConfigError(f"EPSG {epsg} is not known: give the code of a UTM zone, for example 32632") from None
    if not crs.projected or crs.units[0] != "metre":
        raise ConfigError(f"EPSG {epsg} is not a projected CRS in metres: give the code of a UTM zone, for example 32632")


def _to_degrees_polygon(area: Area) -> tuple[Geometry, bool]:
    """The area in degrees, in one piece also across 180 degrees, and whether it is a plain box."""
    if area.bbox is not None:
        west, south, east, north = area.bbox
        return shapely.box(west, south, east + 360 if east < west else east, north), True
    if area.mgrs is not None:
        epsg, bounds = to_tile(area.mgrs)
        outline = shapely.segmentize(shapely.box(*bounds), EDGE_STEP_M)
        return unwrap(project(outline, CRS(f"EPSG:{epsg}"), CRS(DEGREES)), epsg % 100 * UTM_ZONE_DEG - 183), True
    if area.file is not None:
        return parse_geojson(read_geojson(area.file), str(area.file)), False
    assert area.geojson is not None  # Area takes one of five
    return parse_geojson(area.geojson, "geojson"), False


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
        polygons = [unwrap(one, middle) for one in list_polygons(shape(footprint))]
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError) as error:  # shapely's faults with what is no GeoJSON
        raise DataError(f"its footprint is no GeoJSON geometry ({error})") from None
    if not polygons:
        raise DataError(f"its footprint is a {footprint.get('type')} without any ground, expected a polygon")
    window = shapely.box(west - CLIP_DEG, south - CLIP_DEG, east + CLIP_DEG, north + CLIP_DEG)
    clipped = shapely.intersection(shapely.make_valid(shapely.union_all(polygons)), window)
    projected = project(shapely.segmentize(clipped, EDGE_STEP_DEG), CRS(DEGREES), CRS(str(ground.geobox.crs)))
    part = shapely.intersection(shapely.make_valid(projected), ground.geometry)
    return shapely.MultiPolygon([one for one in list_parts(part) if one.geom_type == "Polygon" and not one.is_empty])


def compute_share(part: Geometry, ground: Ground) -> float:
    """Share (0..1) of the ground that `part`, in the grid's CRS and inside the ground, covers."""
    return float(part.area / ground.geometry.area)


def compute_common_share(parts: Iterable[Geometry], ground: Ground) -> float:
    """Share (0..1) of the ground that every one of `parts` covers, which are in the grid's CRS and inside the ground."""
    lacking = shapely.union_all([shapely.difference(ground.geometry, part) for part in parts])  # unlike what they share, always polygons
    return 1.0 - float(lacking.area / ground.geometry.area)


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
    centre = project(shapely.Point((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2), crs, CRS(DEGREES)).x
    outline = project(shapely.segmentize(geobox.extent.geom, EDGE_STEP_M), crs, CRS(DEGREES))
    west, south, east, north = unwrap(outline, centre).bounds
    return west, south, east, north
