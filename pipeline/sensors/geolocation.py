"""Where ground lies in a Sentinel-1 image: from its geolocation grid, for places with a height.

Enters: the geolocation grid of an annotation, or the ground control points of a file. Leaves: image lines and pixels of a grid's pixels.

A spline through the points in line and pixel would be wrong between them: each point sits on terrain of its own height, and a mountain
under one of them moves it by 1/tan(incidence) of its height. Here line and slant range are smooth functions of place, height acts on range
as geometry says, and the annotation's own polynomials lead from range to pixel; what is left at the points is measured and reported.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator, RegularGridInterpolator

from sereno.pipeline.errors import DataError
from sereno.pipeline.safe import Float, GeolocationGrid, GroundRange, compute_ground_range

SCALE_M: Final = 1e5
"""Coordinates are divided by this before they are fitted, so that powers of them stay near 1."""
HEIGHT_SCALE_M: Final = 1e3
"""The same for heights."""
MIN_POINTS: Final = 60
"""Fewest points of a fit with 27 terms; products have 210."""
LATTICE_PX: Final = 16
"""Positions are computed for every so many pixels and interpolated between, which errs by less than a thousandth of a pixel."""
HEIGHT_STEP_M: Final = 500.0
"""Difference of heights from which the change of position with height is taken, which is nearly a parabola."""


class Geolocation(NamedTuple):
    """A fitted geolocation."""

    crs: str
    """CRS of the places, in metres."""
    centre: tuple[float, float]
    """Place at which the fit has its origin."""
    image: Float
    """(terms, 2): line and pixel by place and height."""
    ranges: Float | None
    """(terms, 2): squared slant range to the place on the ellipsoid, and height of the sensor above its tangent plane, in metres; None if
    the source states no ranges: then the pixel is taken from `image`."""
    ground_range: GroundRange | None
    """From slant range to pixel."""
    residual_px: tuple[float, float]
    """Root mean square of what is left at the points, lines and pixels."""
    places: Float
    """(n, 2) x and y of the points."""
    heights_m: Float
    """(n,) their heights."""


class Positions(NamedTuple):
    """Image coordinates of a grid's pixel centres; whole numbers are centres of image pixels."""

    lines: Float
    """(y, x)"""
    pixels: Float
    """(y, x)"""


def fit_geolocation(grid: GeolocationGrid, ground_range: GroundRange | None, crs: str) -> Geolocation:
    """The geolocation as a function of place in `crs` and height: polynomials of fifth degree, by least squares.

    Raises:
        DataError: there are too few points.
    """
    if grid.lines.size < MIN_POINTS:
        raise DataError(f"{grid.lines.size} ground control points are too few, at least {MIN_POINTS} are needed: name the item in exclude")
    places = np.stack(transform("EPSG:4326", crs, grid.longitudes_deg, grid.latitudes_deg), axis=1)
    centre = (float(places[:, 0].mean()), float(places[:, 1].mean()))
    place_terms, height_terms = _make_terms(places - centre, grid.heights_m)
    image = _solve(np.concatenate([place_terms, height_terms], axis=1), np.stack([grid.lines, grid.pixels], axis=1))
    ranges = None
    if ground_range is not None and grid.slant_ranges_m is not None and grid.incidence_deg is not None:
        upward = grid.slant_ranges_m * np.cos(np.radians(grid.incidence_deg))  # from the point to the sensor, along the normal
        squared = grid.slant_ranges_m**2 + 2 * grid.heights_m * upward + grid.heights_m**2
        ranges = _solve(place_terms, np.stack([squared, upward + grid.heights_m], axis=1))
    fitted = Geolocation(crs, centre, image, ranges, ground_range, (0.0, 0.0), places, grid.heights_m)
    lines, pixels = locate(fitted, places, grid.heights_m)
    residual = [round(float(np.sqrt(np.mean((a - b) ** 2))), 4) for a, b in ((lines, grid.lines), (pixels, grid.pixels))]
    return fitted._replace(residual_px=(residual[0], residual[1]))


def _solve(terms: Float, values: Float) -> Float:
    return np.asarray(np.linalg.lstsq(terms, values, rcond=None)[0], np.float64)


def locate(geolocation: Geolocation, places: Float, heights_m: Float) -> tuple[Float, Float]:
    """Lines and pixels (n,) of `places` (n, 2) with heights above the ellipsoid (n,).

    With S the sensor, n the normal at a place P on the ellipsoid: |S - P - h n|^2 = |S - P|^2 - 2 h (S - P) n + h^2, so that what height
    does to range need not be fitted, which flat ground would not allow.
    """
    place_terms, height_terms = _make_terms(places - geolocation.centre, heights_m)
    lines, pixels = (np.concatenate([place_terms, height_terms], axis=1) @ geolocation.image).T
    if geolocation.ranges is None or geolocation.ground_range is None:
        return lines, pixels
    squared, upward = (place_terms @ geolocation.ranges).T
    ranges = np.sqrt(squared - 2 * heights_m * upward + heights_m**2)
    return lines, compute_ground_range(geolocation.ground_range, lines, ranges)


def _make_terms(offsets: Float, heights_m: Float) -> tuple[Float, Float]:
    """Powers of place up to the fifth degree (n, 21), and of place up to the second with height (n, 6)."""
    (x, y), h = (offsets / SCALE_M).T, heights_m / HEIGHT_SCALE_M
    powers = {degree: [x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)] for degree in (2, 5)}
    return np.stack(powers[5], axis=1), np.stack([h * term for term in powers[2]], axis=1)


def compute_positions(geolocation: Geolocation, geobox: GeoBox, heights_m: npt.NDArray[np.floating[Any]] | None = None) -> Positions:
    """Image coordinates of the pixel centres of `geobox` (in the CRS of the geolocation).

    `heights_m` (y, x) are above the ellipsoid; None takes the surface through the points, which knows nothing of the relief between them.
    """
    rows, columns = (np.arange(-LATTICE_PX, size + 2 * LATTICE_PX, LATTICE_PX, dtype=float) for size in geobox.shape)
    y, x = (axis.ravel() + 0.5 for axis in np.meshgrid(rows, columns, indexing="ij"))
    affine = geobox.transform
    places = np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], axis=1)
    surface = compute_surface(geolocation, places)
    base = np.stack(locate(geolocation, places, surface))
    if heights_m is None:
        return Positions(*_densify(base, (rows, columns), geobox))
    above, below = (np.stack(locate(geolocation, places, surface + sign * HEIGHT_STEP_M)) for sign in (1, -1))
    slope, bend = (above - below) / (2 * HEIGHT_STEP_M), (above + below - 2 * base) / (2 * HEIGHT_STEP_M**2)
    dense = _densify(np.concatenate([base, slope, bend, surface[None]]), (rows, columns), geobox)
    rise = heights_m - dense[6]
    return Positions(*(dense[axis] + rise * (dense[2 + axis] + rise * dense[4 + axis]) for axis in (0, 1)))


def compute_surface(geolocation: Geolocation, places: Float) -> Float:
    """Heights (n,) at `places` (n, 2): linear between the points, that of the nearest one outside of them."""
    heights: Float = LinearNDInterpolator(geolocation.places, geolocation.heights_m)(places)
    outside = np.isnan(heights)
    if outside.any():
        heights[outside] = NearestNDInterpolator(geolocation.places, geolocation.heights_m)(places[outside])
    return heights


def _densify(layers: Float, lattice: tuple[Float, Float], geobox: GeoBox) -> Float:
    """Layers (n, points) on the lattice of rows and columns as (n, y, x), linear between its points."""
    rows, columns = lattice
    values = layers.reshape(len(layers), rows.size, columns.size)
    wanted = np.meshgrid(*(np.arange(size, dtype=float) for size in geobox.shape), indexing="ij")
    points = np.stack([axis.ravel() for axis in wanted], axis=1)
    return np.stack([RegularGridInterpolator((rows, columns), layer)(points).reshape(geobox.shape) for layer in values])
