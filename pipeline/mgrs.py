"""UTM zones and the squares of the Military Grid Reference System, by which Sentinel-2 tiles are named.

Enters: a place, or the name of a square. Leaves: EPSG codes, and the bounds of the tile of that name.
"""

from __future__ import annotations

import math
from typing import Final

import shapely
from odc.geo.crs import CRS
from pyproj import Transformer

from sereno.pipeline.errors import ConfigError
from sereno.pipeline.polygons import DEGREES, EDGE_STEP_M, Bbox, project, unwrap

PLACE_DIGITS: Final = 9
"""Degrees that are equal to so many digits are one place: 0.1 mm."""
UTM_ZONE_DEG: Final = 6
"""Width of a UTM zone in degrees of longitude."""
UTM_SOUTH: Final = -80.0
UTM_NORTH: Final = 84.0
"""UTM ends at these latitudes; beyond them are the polar stereographic zones."""
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


def is_utm(crs: str) -> bool:
    """Whether `crs`, for example `EPSG:32632`, is a UTM zone on WGS 84."""
    code = int(crs.removeprefix("EPSG:"))
    return code // 100 in (326, 327) and 1 <= code % 100 <= 60


def find_zone(longitude: float, latitude: float) -> int:
    """EPSG code of the UTM zone of a place in degrees, with the exceptions of Norway and Svalbard; longitudes may lie beyond 180.

    A place on the edge of two zones lies in the eastern one, also if rounding has moved it, so that 180 and -180 are one place.

    Raises:
        ConfigError: there are no UTM zones at that latitude.
    """
    longitude, latitude = round(longitude, PLACE_DIGITS), round(latitude, PLACE_DIGITS)
    if not UTM_SOUTH <= latitude < UTM_NORTH:
        pole = "3413 or 32661" if latitude > 0 else "3031 or 32761"
        raise ConfigError(
            f"the area's centre lies at {latitude:.2f} degrees, where there are no UTM zones: give 'epsg', for example {pole}"
        )
    longitude = (longitude + 180) % 360 - 180
    zone = int((longitude + 180) // UTM_ZONE_DEG) + 1
    band = MGRS_BANDS[min(len(MGRS_BANDS) - 1, int((latitude - UTM_SOUTH) // 8))]
    for other in (zone - 1, zone + 1):
        west, east = _limit_zone(other, band)
        zone = other if west <= longitude < east else zone
    return (32_600 if latitude >= 0 else 32_700) + zone


def _limit_zone(zone: int, band: str) -> tuple[float, float]:
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
    west, east = _limit_zone(epsg % 100, band)
    if west == east:
        return False
    outline = shapely.segmentize(shapely.box(*square), EDGE_STEP_M)
    shown = unwrap(project(outline, CRS(f"EPSG:{epsg}"), CRS(DEGREES)), (west + east) / 2)
    return bool(shapely.box(west, south, east, UTM_NORTH if band == "X" else south + 8).intersection(shown).area > 0)
