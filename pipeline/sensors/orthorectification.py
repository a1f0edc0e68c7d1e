"""Images that are placed by rational polynomial coefficients, or by a map projection, on a wanted grid in one interpolation.

An opened image and a grid enter; the part of the image under the grid, and then that part on the grid, leave. Between the two the reader
calibrates, so that what is interpolated is radiance or power, never decibel. What is not known is NaN, and stays so wherever it enters.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.rpc import RPC
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from sereno.pipeline import archives, rpc
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.sensors.access import Access
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.geolocation import read_heights, warn_of_datum
from sereno.pipeline.signing import Resolver

Float = npt.NDArray[np.float64]
Layers = npt.NDArray[np.float32]

LATTICE_PX: Final = 16
"""Positions are computed for every so many pixels of the grid to find which part of an image is needed."""
MARGIN_PX: Final = 8
"""Image pixels read around that part, for the kernel and for relief between the lattice's points."""
DEM_MARGIN_PX: Final = 4
"""Pixels of heights around the grid, since they are interpolated."""
WARP_EXTRA_PX: Final = 64
"""Image pixels that GDAL looks at around those its own estimate finds: relief inside the grid may lead further out than along its edges."""


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
    """(y, x) on the grid and DEM_MARGIN_PX pixels around it, NaN where not known; None if there is no DEM."""
    constant_m: float
    """What is taken where there is no DEM."""
    words: str
    """Where they come from, for the provenance."""
    warnings: tuple[str, ...]
    """What a user should know."""


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
        yield {name: Path(path) for name, (path, _) in places.items()}
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


def read_relief(grid: GeoBox, settings: IngestSettings, stated_m: float) -> Relief:
    """Heights on `grid`; where the settings name no DEM, one height: theirs, else `stated_m` of the product.

    Raises:
        MissingError: the DEM or the geoid is not there.
        DataError: one of them has no height in the area.
    """
    dem, geoid = settings.dem, settings.geoid
    if dem is None:
        height = stated_m if settings.gaofen.height_m is None else settings.gaofen.height_m
        source = "stated by the product" if settings.gaofen.height_m is None else "of pipeline.ingest.gaofen.height_m"
        words = f"{height:.1f} m above the ellipsoid everywhere, {source}"
        return Relief(None, height, words, (f"relief is not corrected: ground is taken as {words}; set pipeline.ingest.dem",))
    padded = grid.pad(DEM_MARGIN_PX)
    heights = read_heights(dem, padded).astype(np.float64)
    notes = []
    if geoid is not None:
        heights = heights + read_heights(geoid, padded)
        words = f"{dem} above the geoid {geoid}"
    else:
        notes = [warning for warning in (warn_of_datum(dem),) if warning]
        words = notes[0] if notes else f"{dem}, taken as above the ellipsoid"
        notes = [f"{warning}; set pipeline.ingest.geoid" for warning in notes]
    unknown = float(np.isnan(heights).mean())
    if unknown:
        notes.append(f"pipeline.ingest.dem {dem} has no height on {unknown:.1%} of the area, which is not used: give one that covers it")
    return Relief(heights, float(np.nanmedian(heights)), words, tuple(notes))


def find_cut(placement: Placement, size: tuple[int, int], grid: GeoBox, relief: Relief) -> Cut | None:
    """The part of an image of `size` (rows, columns) that `grid` needs, or None if it lies beside the image."""
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
    return max(1, math.floor(steps[0] + 1e-3)), max(1, math.floor(steps[1] + 1e-3))


def warp_layers(layers: Layers, placement: Placement, grid: GeoBox, relief: Relief, *, steps: tuple[float, float]) -> Layers:
    """(n, row, column) of an image -> (n, y, x) on `grid`, bilinear, NaN wherever a NaN enters or no height is known.

    Every pixel is placed by itself (no approximation between them), at its own height. `steps` are rows and columns of `layers` per pixel
    of the grid: above 1 the kernel widens, so that nothing is left out.
    """
    # A ring of what is not known: GDAL would repeat the outermost pixel for half a pixel beyond the edge.
    framed, placed = np.pad(layers, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan), placement.crop(-1, -1)
    warped: Layers = np.full((len(layers), *grid.shape), np.nan, np.float32)
    options: dict[str, Any] = {"XSCALE": 1 / steps[1], "YSCALE": 1 / steps[0], "SAMPLE_GRID": "YES", "SOURCE_EXTRA": WARP_EXTRA_PX}
    target = {"dst_transform": grid.transform, "dst_crs": str(grid.crs), "dst_nodata": np.nan, "resampling": Resampling.bilinear}
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if placed.rpc is None:
            options |= {"src_transform": placed.transform, "src_crs": placed.crs}
        else:
            options |= {"rpcs": placed.rpc, "src_crs": placed.crs}
            options |= {"RPC_HEIGHT": relief.constant_m} if relief.heights_m is None else {"RPC_DEM": _write_dem(stack, relief, grid)}
        reproject(framed, warped, tolerance=0, **target, **options)
    warped[:, ~_find_described(placed, grid)] = np.nan
    if relief.heights_m is not None and placed.rpc is not None:
        inner = slice(DEM_MARGIN_PX, -DEM_MARGIN_PX)
        warped[:, np.isnan(relief.heights_m[inner, inner])] = np.nan
    return warped


def _find_described(placement: Placement, grid: GeoBox) -> npt.NDArray[np.bool_]:
    """Which pixels (y, x) of `grid` lie where a placement means something, by blocks of LATTICE_PX."""
    rows, columns = ((np.arange(-(-n // LATTICE_PX)) + 0.5) * LATTICE_PX for n in grid.shape)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    blocks = np.isfinite(locate(placement, grid, (y, x), 0.0)[0])
    described: npt.NDArray[np.bool_] = blocks.repeat(LATTICE_PX, axis=0).repeat(LATTICE_PX, axis=1)
    return described[: grid.shape.y, : grid.shape.x]


def _write_dem(stack: contextlib.ExitStack, relief: Relief, grid: GeoBox) -> str:
    """The heights as a file in memory, on the grid itself, so that no datum and no interpolation of GDAL's own comes in."""
    assert relief.heights_m is not None  # the caller has looked
    known = np.where(np.isnan(relief.heights_m), relief.constant_m, relief.heights_m).astype(np.float32)
    padded = grid.pad(DEM_MARGIN_PX)
    memory = stack.enter_context(MemoryFile(ext=".tif"))
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": padded.shape.y, "width": padded.shape.x}
    with memory.open(**profile, crs=str(padded.crs), transform=padded.transform) as file:
        file.write(known, 1)
    return str(memory.name)


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
