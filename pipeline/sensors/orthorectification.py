"""Images that are placed by rational polynomial coefficients, or by a map projection: which part lies under a grid, and where in it.

An opened image and the ground of a scene enter; the window of the image under it leaves, and for every pixel of the scene's grid the row
and column at which it is found there, so that a reader makes a plate of the part that it has calibrated (`sereno.pipeline.scene`).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.warp import transform
from rasterio.windows import Window

from sereno.pipeline import archives, rpc
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.geometry import Positions, compose_positions
from sereno.pipeline.mosaic import Place
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.plates import make_lattice
from sereno.pipeline.scene import LATTICE_STEP_PX
from sereno.pipeline.sensors.access import Access
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.geolocation import HEIGHT_STEP_M
from sereno.pipeline.sensors.heights import Heights
from sereno.pipeline.signing import Resolver

Float = npt.NDArray[np.float64]
Layers = npt.NDArray[np.float32]

LATTICE_PX: Final = 16
"""Positions are computed for every so many pixels of the grid to find which part of an image is needed."""
MARGIN_PX: Final = 8
"""Image pixels read around that part, for the kernel and for relief between the lattice's points."""
STRIP_ROWS: Final = 256
"""Rows of a grid, or of an averaged image, that are computed at a time."""
RELIEF_STEP_PX: Final = 2.0**-10
"""What relief adds to positions is rounded to this, so that it takes half the room on disk."""
LOOKS_SLACK: Final = 1e-3
"""Rows and columns per pixel that miss a whole number by less count as that number: they are medians of computed positions."""
REACH: Final = 1.5
"""Coefficients describe ground within this multiple of their own scales around their offsets: cubic polynomials may lead ground far beside
an image back into it."""


class Placement(NamedTuple):
    """How ground is found in an image: by coefficients, or by a map projection."""

    rpc: RPC | None
    """From longitude, latitude and height; None for a map-projected image."""
    transform: Affine = Affine.identity()
    """From columns and rows of corners to map coordinates, where `rpc` is None."""
    crs: str = "EPSG:4326"
    """CRS of what `rpc` or `transform` lead to."""

    def crop(self, row: float, column: float) -> Placement:
        """That of the part which begins at `row` and `column`."""
        if self.rpc is None:
            return self._replace(transform=self.transform * Affine.translation(column, row))
        return self._replace(rpc=rpc.crop_rpc(self.rpc, row=row, column=column))

    def average(self, looks: tuple[int, int]) -> Placement:
        """That of the image of which blocks of `looks` (rows, columns) were averaged."""
        if self.rpc is None:
            return self._replace(transform=self.transform * Affine.scale(looks[1], looks[0]))
        return self._replace(rpc=rpc.multilook_rpc(self.rpc, looks))


class Relief(NamedTuple):
    """Heights of the ground above the ellipsoid."""

    heights_m: Float | None
    """(y, x) on the grid, NaN where not known; None if there is no DEM."""
    constant_m: float
    """What is taken where there is no DEM."""
    words: str
    """Where they come from, for the provenance."""
    warnings: tuple[str, ...]
    """What a user should know."""


class Ground(NamedTuple):
    """The ground that is read."""

    grid: GeoBox
    """Of the whole scene."""
    place: Place
    """Rows and columns of it that are wanted."""
    margin_px: int
    """Pixels around them under which an image is kept too, since it may have to be moved."""
    relief: Relief
    """Heights of what is wanted."""


class Cut(NamedTuple):
    """The part of an image under a grid."""

    window: Window
    """Rows and columns of the file."""
    steps: tuple[float, float]
    """Rows and columns of the image per pixel of the grid."""


@contextlib.contextmanager
def open_product(item: ItemRecord, names: tuple[str, ...], resolver: Resolver) -> Iterator[dict[str, Path]]:
    """The files of the assets `names` on a disk as long as the block lasts; those of an archive are unpacked for that time.

    Raises:
        MissingError: one of them is not there.
        DataError: the archive is damaged, or must not be trusted.
        StoreError: there is no room to unpack it.
    """
    places = {name: archives.split_href(resolver(item.assets[name].href)) for name in names}
    roots = {root for root, member in places.values() if member}
    if not roots:
        paths = {name: Path(path) for name, (path, _) in places.items()}
        gone = next((path for path in paths.values() if not path.is_file()), None)
        if gone is not None:
            raise MissingError(f"{gone} is not there any more: put it back, or run `sereno query` again")
        yield paths
        return
    (root,) = roots  # one product, one archive
    with archives.lay_out(Path(root), tuple(sorted({member for _, member in places.values()}))) as laid:
        yield {name: laid[member] for name, (_, member) in places.items()}


@contextlib.contextmanager
def open_image(item: ItemRecord, name: str, path: Path, settings: IngestSettings) -> Iterator[Access]:
    """The image `name` of a product under reading, at `path`.

    Raises:
        LossError: it is not there, cannot be opened, or is not that of the lock.
    """
    record = item.assets[name].model_copy(update={"href": path.name})
    asset = Asset(item.item, name, record, Resolver(str(path.parent)), settings.attempts, settings.check)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # its place is in a file beside it
        with Access(asset) as access:
            yield access


def to_relief(heights: Heights | None, settings: IngestSettings, stated_m: float) -> Relief:
    """The relief of `heights`; without them one height: that of the settings, else `stated_m` of the product."""
    if heights is not None:
        values = heights.values_m.astype(np.float64)
        return Relief(values, float(np.nanmedian(values)), heights.words, heights.warnings)
    height = stated_m if settings.gaofen.height_m is None else settings.gaofen.height_m
    source = "stated by the product" if settings.gaofen.height_m is None else "of pipeline.ingest.gaofen.height_m"
    words = f"{height:.1f} m above the ellipsoid everywhere, {source}"
    return Relief(None, height, words, (f"relief is not corrected: ground is taken as {words}; set pipeline.ingest.dem",))


def find_cut(placement: Placement, size: tuple[int, int], ground: Ground) -> Cut | None:
    """The part of an image of `size` (rows, columns) that `ground` and its margin need, or None if they lie beside the image."""
    grid, relief = ground.grid[ground.place].pad(ground.margin_px), ground.relief
    rows, columns = (np.unique(np.append(np.arange(0, n, LATTICE_PX), n)).astype(float) for n in grid.shape)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    lowest, highest = relief.constant_m, relief.constant_m
    if relief.heights_m is not None:
        lowest, highest = float(np.nanmin(relief.heights_m)), float(np.nanmax(relief.heights_m))
    seen = [locate(placement, grid, (y, x), height) for height in (lowest, highest)]
    spans, steps = [], []
    for axis, n_px in enumerate(size):
        places = np.stack([position[axis] for position in seen])
        finite = places[np.isfinite(places)]
        if not finite.size or finite.max() < 0 or finite.min() > n_px - 1:
            return None
        spans.append((max(0, math.floor(finite.min()) - MARGIN_PX), min(n_px, math.ceil(finite.max()) + 1 + MARGIN_PX)))
        down, across = np.diff(places[0], axis=0)[:, :-1] / np.diff(rows)[:, None], np.diff(places[0], axis=1)[:-1] / np.diff(columns)
        steps.append(float(np.nanmedian(np.hypot(down, across))))
    return Cut(Window.from_slices(*spans), (steps[0], steps[1]))


def locate(placement: Placement, grid: GeoBox, pixels: tuple[Float, Float], height_m: Float | float) -> tuple[Float, Float]:
    """Rows and columns of the image (whole numbers are centres) at rows and columns of the grid's corners, of any one shape.

    NaN where coefficients mean nothing.
    """
    affine, (rows, columns) = grid.transform, pixels
    x, y = affine.a * columns + affine.b * rows + affine.c, affine.d * columns + affine.e * rows + affine.f
    lon, lat = (np.asarray(axis).reshape(x.shape) for axis in transform(str(grid.crs), placement.crs, x.ravel(), y.ravel()))
    if placement.rpc is not None:
        described = _is_described(placement.rpc, lon, lat)
        seen = rpc.to_image(placement.rpc, lon, lat, height_m)
        return np.where(described, seen[0], np.nan), np.where(described, seen[1], np.nan)
    inverse = ~placement.transform
    return inverse.d * lon + inverse.e * lat + inverse.f - 0.5, inverse.a * lon + inverse.b * lat + inverse.c - 0.5


def _is_described(coefficients: RPC, longitudes: Float, latitudes: Float) -> npt.NDArray[np.bool_]:
    """Which places lie where the coefficients mean something."""
    east = np.abs((longitudes - coefficients.long_off + 180) % 360 - 180)
    described: npt.NDArray[np.bool_] = (east <= REACH * coefficients.long_scale) & (
        np.abs(latitudes - coefficients.lat_off) <= REACH * coefficients.lat_scale
    )
    return described


def count_looks(steps: tuple[float, float]) -> tuple[int, int]:
    """How many rows and columns of an image to average so that what is left is not coarser than a pixel of the grid."""
    return max(1, math.floor(steps[0] + LOOKS_SLACK)), max(1, math.floor(steps[1] + LOOKS_SLACK))


def average_looks(values: npt.NDArray[Any], known: npt.NDArray[np.bool_], looks: tuple[int, int]) -> tuple[Layers, npt.NDArray[np.bool_]]:
    """Means of blocks of `looks` (rows, columns) of an image (n, row, column), float32, and which blocks are `known` (row, column) in full.

    Rows and columns that fill no block are left out.
    """
    rows, columns = (size // n for size, n in zip(known.shape, looks, strict=True))
    averaged, whole = np.empty((len(values), rows, columns), np.float32), np.empty((rows, columns), bool)
    for first in range(0, rows, STRIP_ROWS):
        strip = slice(first, min(first + STRIP_ROWS, rows))
        blocks = (strip.stop - first, looks[0], columns, looks[1])
        part = (slice(first * looks[0], strip.stop * looks[0]), slice(columns * looks[1]))
        averaged[:, strip] = values[:, *part].reshape(-1, *blocks).mean(axis=(2, 4), dtype=np.float32)
        whole[strip] = known[part].reshape(blocks).all(axis=(1, 3))
    return averaged, whole


def find_positions(placement: Placement, ground: Ground) -> tuple[Float, Layers | None]:
    """Where the pixels of the scene's grid are found in an image: the lattice of its plate, and what relief adds.

    The lattice (2, rows, cols) takes all ground at the one height of the relief, the second (2, y, x) leads from there to the height of
    each pixel, along a parabola through three heights, off by less than 1e-4 px but for its rounding. It is NaN where a height is not
    known and where nothing is wanted, and None where heights play no part.
    """
    grid, (heights, constant) = ground.grid, ground.relief[:2]
    if heights is None or placement.rpc is None:
        return make_lattice(partial(_locate_centres, placement, grid, constant), tuple(grid.shape)), None
    rise = heights - constant
    step = max(HEIGHT_STEP_M, float(np.nanmax(np.abs(rise))))
    levels = (constant + sign * step for sign in (-1, 0, 1))
    below, flat, above = (make_lattice(partial(_locate_centres, placement, grid, height), tuple(grid.shape)) for height in levels)
    slope, bend = (above - below) / (2 * step), (above + below - 2 * flat) / (2 * step**2)
    relief: Layers = np.full((2, *grid.shape), np.nan, np.float32)
    (first, last), columns = (ground.place[0].start, ground.place[0].stop), ground.place[1]
    for top in range(first, last, STRIP_ROWS):
        strip = slice(top, min(top + STRIP_ROWS, last))
        risen = rise[strip.start - first : strip.stop - first]
        places = Positions(*np.meshgrid(*(np.arange(axis.start, axis.stop, dtype=float) for axis in (strip, columns)), indexing="ij"))
        slopes, bends = (
            compose_positions(Positions(*term), places, step_px=LATTICE_STEP_PX, first_px=-LATTICE_STEP_PX) for term in (slope, bend)
        )
        for axis in (0, 1):
            relief[axis, strip, columns] = np.rint(risen * (slopes[axis] + risen * bends[axis]) / RELIEF_STEP_PX) * RELIEF_STEP_PX
    return flat, relief


def _locate_centres(placement: Placement, grid: GeoBox, height_m: float, rows: Float, columns: Float) -> tuple[Float, Float]:
    """Rows and columns of the image at centres of pixels of the grid, at one height."""
    return locate(placement, grid, (rows + 0.5, columns + 0.5), height_m)


def to_footprint(corners: Sequence[tuple[float, float]]) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    """West, south, east, north in degrees, and the polygon as GeoJSON, of an image by its corners (longitude, latitude) in order.

    Across 180 degrees west is greater than east, and the polygon goes on beyond 180.
    """
    wide = max(x for x, _ in corners) - min(x for x, _ in corners) > 180
    ring = [[x + 360 if wide and x < 0 else x, y] for x, y in (*corners, corners[0])]
    longitudes, latitudes = zip(*ring, strict=True)
    bbox = (min(longitudes), min(latitudes), max(longitudes) - (360 if wide else 0), max(latitudes))
    return bbox, {"type": "Polygon", "coordinates": [ring]}


def to_placement(access: Access, coefficients: RPC | None, *, where: str) -> Placement:
    """How ground is found in an opened image: by its own map projection where `coefficients` are None.

    Raises:
        DataError: it has neither.
    """
    if coefficients is not None:
        return Placement(coefficients)  # NOTE: level 1 images may carry a false geotransform, which is passed over
    if access.source.crs is None:
        raise DataError(
            f"{where} has neither rational polynomial coefficients (.rpb, .rpc) nor a map projection, so its place on the ground is not "
            "known: fetch the whole product"
        )
    return Placement(None, access.source.transform, access.source.crs.to_wkt())
