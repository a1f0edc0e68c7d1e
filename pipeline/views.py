"""How simulated images of Gaofen lie over the ground: where a pixel looks, what it sees, and the coefficients that say so.

Relief and layers on its grid enter; layers as an image shows them leave, turned against north, and high ground leans. Coefficients err by
a known distance, as those of real orbits do.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.rpc import RPC
from rasterio.warp import transform
from scipy.ndimage import map_coordinates

from sereno.pipeline.rpc import fit_rpc, shift_ground

Float = npt.NDArray[np.float64]
Layers = npt.NDArray[np.float32]

HEADING_DEG: Final = 12.0
"""Images are turned by so much: the ground track of a sun-synchronous orbit at middle latitudes."""
FIT_HEIGHTS_M: Final = (-1500.0, -750.0, 0.0, 750.0, 1500.0)
"""Heights above the mean of the ground at which coefficients are fitted."""
FIT_POINTS: Final = 15
"""Rows and columns at which they are fitted."""
ITERATIONS: Final = 60
"""At most so many steps from a pixel down to the relief that it sees; each leaves slope times lean of the error."""
STRIP_ROWS: Final = 256
"""Rows of an image that are seen at a time."""
HEIGHT_TOLERANCE_M: Final = 0.05
"""The relief is found when a step changes its height by less than this."""


class Terrain(NamedTuple):
    """The relief that is seen."""

    geobox: GeoBox
    """Its grid, in metres."""
    heights_m: Layers
    """(y, x) above the ellipsoid."""


class View(NamedTuple):
    """How an image lies over the ground."""

    origin: tuple[float, float]
    """Place of the centre of the first pixel at height 0."""
    gsd_m: float
    """Distance of rows and columns."""
    size: tuple[int, int]
    """Rows and columns."""
    lean: float
    """Metres along columns by which a metre of height is displaced; below 0 towards the first column."""
    crs: str
    """CRS of the ground."""
    height_m: float
    """Mean height of the ground."""

    @property
    def axes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Unit vectors (east, north) of rising columns and of rising rows."""
        sine, cosine = math.sin(math.radians(HEADING_DEG)), math.cos(math.radians(HEADING_DEG))
        return (cosine, -sine), (-sine, -cosine)

    def to_image(self, x: Float, y: Float, heights_m: Float | float) -> tuple[Float, Float]:
        """Rows and columns of places."""
        (across, down), dx, dy = self.axes, x - self.origin[0], y - self.origin[1]
        return (dx * down[0] + dy * down[1]) / self.gsd_m, (dx * across[0] + dy * across[1] + self.lean * heights_m) / self.gsd_m

    def to_ground(self, rows: Float, columns: Float, heights_m: Float | float) -> tuple[Float, Float]:
        """Places of rows and columns at given heights."""
        (across, down), along, aside = self.axes, rows * self.gsd_m, columns * self.gsd_m - self.lean * heights_m
        return self.origin[0] + aside * across[0] + along * down[0], self.origin[1] + aside * across[1] + along * down[1]


def make_view(terrain: Terrain, gsd_m: float, lean: float) -> View:
    """A view that holds all of the ground; where an image reaches beyond it, it holds no values."""
    box, middle = terrain.geobox.boundingbox, float(terrain.heights_m.mean())
    x, y = (np.array(axis) for axis in ([box.left, box.right, box.right, box.left], [box.top, box.top, box.bottom, box.bottom]))
    view = View((box.left, box.top), gsd_m, (1, 1), lean, str(terrain.geobox.crs), middle)
    rows, columns = view.to_image(x, y, middle)
    first = view.to_ground(np.array([rows.min()]), np.array([columns.min()]), 0.0)
    size = (math.ceil(np.ptp(rows)) + 1, math.ceil(np.ptp(columns)) + 1)
    return view._replace(origin=(float(first[0][0]), float(first[1][0])), size=size)


def see_ground(terrain: Terrain, layers: Layers, view: View, pixels: tuple[Float, Float]) -> Layers:
    """`layers` (n, y, x) of the ground as seen at rows and columns (both (row, column)) of a view: (n, row, column), 0 beyond the ground.

    The height of what is seen is found step by step, so that high ground leans over what lies behind it. Strip by strip, since a radar
    image has many more pixels than the ground.
    """
    seen = np.empty((len(layers), *pixels[0].shape), np.float32)
    for first in range(0, len(pixels[0]), STRIP_ROWS):
        strip = slice(first, first + STRIP_ROWS)
        part = (pixels[0][strip], pixels[1][strip])
        places = _to_indices(terrain.geobox, view.to_ground(*part, _find_heights(terrain, view, part)))
        for layer, image in zip(layers, seen, strict=True):
            map_coordinates(layer.astype(np.float32, copy=False), places, image[strip], order=1, mode="constant", cval=0.0)
    return seen


def _find_heights(terrain: Terrain, view: View, pixels: tuple[Float, Float]) -> Float:
    """Heights of what is seen at rows and columns of a view."""
    heights = np.full(pixels[0].shape, view.height_m)
    for _ in range(ITERATIONS):
        places = _to_indices(terrain.geobox, view.to_ground(*pixels, heights))
        found = map_coordinates(terrain.heights_m, places, np.float64, order=1, mode="nearest")
        heights, change = found, np.abs(found - heights).max()
        if change < HEIGHT_TOLERANCE_M:
            break
    return heights


def _to_indices(geobox: GeoBox, places: tuple[Float, Float]) -> Float:
    """Rows and columns of places in the arrays of the ground, whole numbers at centres: (2, ...)."""
    inverse, (x, y) = ~geobox.transform, places
    return np.stack([inverse.d * x + inverse.e * y + inverse.f - 0.5, inverse.a * x + inverse.b * y + inverse.c - 0.5])


def see_image(terrain: Terrain, layers: Layers, view: View) -> Layers:
    """`layers` (n, y, x) of the ground as the whole image of a view: (n, row, column), 0 beyond the ground."""
    rows, columns = np.meshgrid(*(np.arange(n, dtype=float) for n in view.size), indexing="ij")
    return see_ground(terrain, layers, view, (rows, columns))


def make_rpc(view: View, error_m: tuple[float, float] = (0.0, 0.0)) -> RPC:
    """Coefficients of a view, which place everything `error_m` (east, north) off."""
    axes = [np.linspace(0, n - 1, FIT_POINTS) for n in view.size]
    rows, columns, heights = (axis.ravel() for axis in np.meshgrid(*axes, view.height_m + np.array(FIT_HEIGHTS_M), indexing="ij"))
    longitudes, latitudes = to_degrees(view.crs, *view.to_ground(rows, columns, heights))
    rpc = fit_rpc((rows, columns), (longitudes, latitudes, heights))
    x, y = view.to_ground(np.array([view.size[0] / 2]), np.array([view.size[1] / 2]), view.height_m)
    (lon, moved_lon), (lat, moved_lat) = to_degrees(view.crs, np.append(x, x + error_m[0]), np.append(y, y + error_m[1]))
    return shift_ground(rpc, longitude_deg=float(moved_lon - lon), latitude_deg=float(moved_lat - lat))


def to_degrees(crs: str, x: Float, y: Float) -> tuple[Float, Float]:
    """Longitudes and latitudes of places in `crs`."""
    longitudes, latitudes = transform(crs, "EPSG:4326", x, y)
    return np.asarray(longitudes), np.asarray(latitudes)


def find_centre(view: View) -> tuple[float, float]:
    """Longitude and latitude of the middle of an image, at the mean height."""
    corners = find_corners(view)
    longitude, latitude = (sum(axis) / 4 for axis in zip(*corners, strict=True))
    return longitude, latitude


def find_corners(view: View) -> list[tuple[float, float]]:
    """Longitude and latitude of top left, top right, bottom right and bottom left of an image, at the mean height."""
    last_row, last_column = view.size[0] - 1.0, view.size[1] - 1.0
    rows, columns = np.array([0.0, 0.0, last_row, last_row]), np.array([0.0, last_column, last_column, 0.0])
    longitudes, latitudes = to_degrees(view.crs, *view.to_ground(rows, columns, view.height_m))
    return [(round(float(lon), 6), round(float(lat), 6)) for lon, lat in zip(longitudes, latitudes, strict=True)]
