"""The ground to work on: areas as users state them become one grid, an outline, and boxes to search in.

Enters: an `Area` of the settings. Leaves: a `GeoBox` in metres; footprints of items are measured against it. Pure, but for an area's file.
"""

from __future__ import annotations

import math
from typing import Any, Final

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

Bbox = tuple[float, float, float, float]

UTM_ZONE_DEG: Final = 6
"""Width of a UTM zone in degrees of longitude."""
EDGE_STEP_DEG: Final = 0.05
"""Edges of an area are split into pieces of this length before they are projected, since straight lines bend."""
CLIP_DEG: Final = 1.0
"""Footprints are cut this far around the area before they are projected: a UTM zone is only good near its meridian."""
EDGE_STEP_M: Final = 5_000.0
"""The same for edges in metres."""
DEGREES: Final = "EPSG:4326"
"""CRS of STAC footprints; here always longitude, latitude."""
SNAP_SHARE: Final = 1e-6
"""Bounds may miss a whole number of pixels by this share of a pixel."""


def to_geobox(area: Area, resolution_m: float) -> GeoBox:
    """The grid of an area: its bounds in metres as they are, or its box in degrees, projected and grown to whole pixels.

    Without `epsg` the UTM zone is that of the box's centre.

    Raises:
        ConfigError: bounds in metres are not a whole number of pixels wide and high, or `epsg` is no CRS in metres.
    """
    epsg = area.epsg
    if epsg is not None:
        _check_epsg(epsg)
    if area.bbox is not None:
        west, south, east, north = area.bbox
        epsg = epsg or _utm_epsg((west + east) / 2, (south + north) / 2)
        outline = shapely.segmentize(shapely.box(west, south, east, north), EDGE_STEP_DEG)
        left, bottom, right, top = _project(outline, CRS(DEGREES), CRS(f"EPSG:{epsg}")).bounds
        left, bottom = (math.floor(edge / resolution_m) * resolution_m for edge in (left, bottom))
        right, top = (math.ceil(edge / resolution_m) * resolution_m for edge in (right, top))
    else:
        assert area.bounds_m is not None  # Area takes one of the two
        left, bottom, right, top = area.bounds_m
    columns, rows = (right - left) / resolution_m, (top - bottom) / resolution_m
    if max(abs(columns - round(columns)), abs(rows - round(rows))) > SNAP_SHARE or not round(columns) or not round(rows):
        raise ConfigError(f"bounds_m {area.bounds_m} are {columns:g} x {rows:g} pixels of {resolution_m} m: give a whole number of pixels")
    return GeoBox((round(rows), round(columns)), Affine(resolution_m, 0, left, 0, -resolution_m, top), f"EPSG:{epsg}")


def _check_epsg(epsg: int) -> None:
    try:
        crs = CRS(f"EPSG:{epsg}")
    except CRSError:
        raise ConfigError(f"EPSG {epsg} is not known: give the code of a UTM zone, for example 32632") from None
    if not crs.projected or crs.units[0] != "metre":
        raise ConfigError(f"EPSG {epsg} is not a projected CRS in metres: give the code of a UTM zone, for example 32632")


def _utm_epsg(longitude: float, latitude: float) -> int:
    zone = min(int((longitude + 180) // UTM_ZONE_DEG) + 1, 60)
    return (32_600 if latitude >= 0 else 32_700) + zone


def compute_overlap(footprint: dict[str, Any] | None, geobox: GeoBox) -> float:
    """Share (0..1) of the grid's ground inside a GeoJSON footprint in degrees, measured in the grid's CRS.

    Raises:
        DataError: there is no footprint, or it is no geometry.
    """
    if not footprint:
        raise DataError("the item states no footprint")
    try:
        outline = shapely.make_valid(shape(footprint))
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError) as error:  # shapely's faults with what is no GeoJSON
        raise DataError(f"its footprint is no GeoJSON geometry ({error})") from None
    west, south, east, north = to_bbox(geobox)
    clipped = shapely.intersection(outline, shapely.box(west - CLIP_DEG, south - CLIP_DEG, east + CLIP_DEG, north + CLIP_DEG))
    ground = shapely.segmentize(clipped, EDGE_STEP_DEG)
    area = geobox.extent.geom
    return float(shapely.intersection(_project(ground, CRS(DEGREES), CRS(str(geobox.crs))), area).area / area.area)


def to_bbox(geobox: GeoBox) -> Bbox:
    """West, south, east, north of the grid in degrees."""
    outline = shapely.segmentize(geobox.extent.geom, EDGE_STEP_M)
    west, south, east, north = _project(outline, CRS(str(geobox.crs)), CRS(DEGREES)).bounds
    return west, south, east, north


def _project(geometry: Geometry, source: CRS, target: CRS) -> Geometry:
    # odc-geo's own `to_crs` warns with shapely 2.2, which deprecates the function that it calls.
    transform = source.transformer_to_crs(target)
    return shapely.transform(geometry, lambda xy: np.stack(transform(xy[:, 0], xy[:, 1]), axis=1))
