"""The assets of an item: pixels of one raster file on a wanted grid, with what could not be read named instead of hidden.

Every sensor reads through this file: an asset and a grid enter, values and the mask of those that exist leave. Where the file's grid
fits the wanted one, pixels are copied or repeated, never interpolated.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.geometry import WARP_TOLERANCE_PX, scale_options
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.scene import Bool2d

logger = logging.getLogger(__name__)

BACKOFF_S: Final = 0.1
"""Pause before the second attempt, seconds; doubled before each further one."""
SNAP_PX: Final = 1e-3
"""Two grids fit if their pixel edges lie within this many pixels of each other."""
WARP_MARGIN_PX: Final = 4
"""Source pixels read around the area before warping, for the kernel."""

T = TypeVar("T")


class Asset(NamedTuple):
    """One file of an item."""

    label: str
    """Item and band, for messages."""
    href: str
    """What GDAL opens: a path or URL."""
    attempts: int
    """How often it is tried before it counts as unreadable."""

    @property
    def place(self) -> str:
        """Label and address for messages, without the query part of the URL: signatures do not belong into logs."""
        return f"{self.label} ({self.href.partition('?')[0]})"


class Pixels(NamedTuple):
    """Values of one asset."""

    values: npt.NDArray[Any]
    """(band, y, x) in the file's dtype; 0 where not readable."""
    readable: Bool2d
    """(y, x), False where the file holds a tile that cannot be read."""
    lost: tuple[str, ...]
    """One line per unreadable tile."""


class Layer(NamedTuple):
    """One band on the wanted grid."""

    values: npt.NDArray[Any]
    """(y, x); meaningless where there is no data."""
    has_data: Bool2d
    """(y, x), True where the file covers the pixel with a value that is not nodata."""
    lost: tuple[str, ...]
    """One line per unreadable tile."""


class Rule(NamedTuple):
    """How the pixels of a product are to be read."""

    is_data: Callable[[npt.NDArray[Any], float | None], Bool2d]
    """Which of the values (y, x) are data, given the nodata value that the file declares (None: it declares none)."""
    resampling: Resampling = Resampling.bilinear
    """Interpolation where the grids do not fit."""


class GridMatch(NamedTuple):
    """How a wanted grid lies on a file's pixels when no interpolation is needed."""

    rows: npt.NDArray[np.int64]
    """File row of each wanted row; outside of the file also negative or too large."""
    columns: npt.NDArray[np.int64]
    """File column of each wanted column."""


def select_assets(record: ItemRecord, names: tuple[str, ...], resolve: Callable[[str], str], attempts: int) -> dict[str, Asset]:
    """The assets of `record` for the bands `names`, by name; `resolve` turns an address into what GDAL opens.

    Raises:
        MissingError: the item lacks some of them.
    """
    missing = [name for name in names if name not in record.assets]
    if missing:
        raise MissingError(
            f"item {record.item} of {record.collection} has no asset for {', '.join(missing)} (it has {', '.join(sorted(record.assets))}): "
            "name the item in pipeline.query.exclude, or leave the band out of pipeline.ingest.bands"
        )
    return {name: Asset(f"item {record.item}, {name}", resolve(record.assets[name].href), attempts) for name in names}


def describe_item(record: ItemRecord, layers: Mapping[str, Layer], valid: Bool2d) -> dict[str, Any]:
    """The part of a scene's provenance that every catalogue item has: who it is, when, under which sun, what was lost."""
    return {
        "item": record.item,
        "collection": record.collection,
        "sensor": record.sensor,
        "time": record.time,
        "processing_baseline": record.processing_baseline,
        "sun_azimuth_deg": record.sun_azimuth_deg,
        "sun_elevation_deg": record.sun_elevation_deg,
        "properties": dict(record.properties),
        "valid_share": round(float(valid.mean()), 6),
        "lost": [{"asset": name, "reason": reason} for name, layer in layers.items() for reason in layer.lost],
    }


def read_layer(asset: Asset, geobox: GeoBox, rule: Rule) -> Layer:
    """The first band of `asset` on `geobox`: pixels copied where the grids fit, else warped.

    Raises:
        DataError: the asset cannot be opened after all its attempts, or has no CRS.
    """
    with open_raster(asset) as source:
        match = match_grid(source.crs, source.transform, geobox)
        if match is not None:
            return _copy_pixels(asset, source, match, rule)
        return _warp_pixels(asset, source, geobox, rule)


def open_raster(asset: Asset) -> DatasetReader:
    """`asset` opened for reading; the caller closes it.

    Raises:
        DataError: it cannot be opened after all its attempts, or has no CRS.
    """
    try:
        source: DatasetReader = _retry(lambda: rasterio.open(asset.href), asset.attempts)
    except RasterioIOError as error:
        reason = _reason_of(error, asset)
        raise DataError(
            f"{asset.place} cannot be opened after {asset.attempts} attempts: {reason}; "
            "check the address and the network, or name the item in pipeline.query.exclude"
        ) from error
    if source.crs is None:
        source.close()
        raise DataError(f"{asset.place} has no CRS, so its place on the ground is unknown: name the item in pipeline.query.exclude")
    return source


def read_pixels(asset: Asset, source: DatasetReader, window: Window, bands: tuple[int, ...] = (1,)) -> Pixels:
    """`window` of the opened `source`, whole if it can be read within the attempts, else tile by tile with the unreadable ones listed."""
    try:
        values = _retry(lambda: source.read(bands, window=window), asset.attempts)
    except RasterioIOError:
        return _read_tiles(asset, source, window, bands)
    return Pixels(values, np.ones(values.shape[1:], bool), ())


def match_grid(crs: object, transform: Affine, geobox: GeoBox) -> GridMatch | None:
    """How `geobox` lies on a file with `crs` and `transform`, or None if reading it needs interpolation.

    The grids fit if both are north-up in one CRS, the file's pixel is a whole multiple of the wanted one, and edges meet: then each wanted
    pixel lies inside one pixel of the file, wherever the coarse grid begins.
    """
    wanted = geobox.transform
    rotated = any(abs(number) > 0 for number in (transform.b, transform.d, wanted.b, wanted.d))
    if rotated or CRS(crs) != geobox.crs or transform.a <= 0 or transform.e >= 0 or wanted.a <= 0 or wanted.e >= 0:
        return None
    rows = _match_axis((transform.f, transform.e), (wanted.f, wanted.e), geobox.shape.y)
    columns = _match_axis((transform.c, transform.a), (wanted.c, wanted.a), geobox.shape.x)
    return None if rows is None or columns is None else GridMatch(rows, columns)


def _match_axis(source: tuple[float, float], wanted: tuple[float, float], size: int) -> npt.NDArray[np.int64] | None:
    """Source index of each of `size` wanted pixels along one axis; the pairs are origin and step in CRS units."""
    ratio = source[1] / wanted[1]
    first = (wanted[0] - source[0]) / wanted[1]
    if round(ratio) < 1 or abs(ratio - round(ratio)) * size > SNAP_PX or abs(first - round(first)) > SNAP_PX:
        return None
    indices: npt.NDArray[np.int64] = (round(first) + np.arange(size)) // round(ratio)
    return indices


def own_geobox(asset: Asset, geobox: GeoBox, margin_px: int) -> GeoBox:
    """The grid that a file should be read on: its own, cropped to `geobox` plus a margin, if it differs from that only by a shift.

    A file in another CRS or pixel size gets `geobox` plus the margin. The crop may reach beyond the file: what lies there is no data.

    Raises:
        DataError: the asset cannot be opened, or has no CRS.
    """
    wanted = geobox.pad(margin_px)
    with open_raster(asset) as source:
        crs, own = source.crs, source.transform
    step = wanted.transform
    same_step = max(abs(own.a - step.a), abs(own.e - step.e)) * max(wanted.shape) < SNAP_PX * abs(step.a)
    if CRS(crs) != wanted.crs or own.b or own.d or not same_step:
        return wanted
    column, row = ~own * (step.c, step.f)
    first_column, first_row = math.floor(column + SNAP_PX), math.floor(row + SNAP_PX)
    # A grid that lies between the wanted pixels needs one more of its own to cover the last of them.
    extra_x, extra_y = int(column - first_column > SNAP_PX), int(row - first_row > SNAP_PX)
    shape = (wanted.shape.y + extra_y, wanted.shape.x + extra_x)
    return GeoBox(shape, own * Affine.translation(first_column, first_row), wanted.crs)


def _copy_pixels(asset: Asset, source: DatasetReader, match: GridMatch, rule: Rule) -> Layer:
    shape = (match.rows.size, match.columns.size)
    inside_rows = np.flatnonzero((match.rows >= 0) & (match.rows < source.height))
    inside_columns = np.flatnonzero((match.columns >= 0) & (match.columns < source.width))
    values, has_data = np.zeros(shape, source.dtypes[0]), np.zeros(shape, bool)
    if not inside_rows.size or not inside_columns.size:
        return Layer(values, has_data, ())
    rows, columns = match.rows[inside_rows], match.columns[inside_columns]
    window = Window.from_slices((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1))
    pixels = read_pixels(asset, source, window)
    block = pixels.values[0]
    known = pixels.readable & rule.is_data(block, source.nodata)
    target = (slice(inside_rows[0], inside_rows[-1] + 1), slice(inside_columns[0], inside_columns[-1] + 1))
    values[target] = _repeat(block, rows - rows[0], columns - columns[0])
    has_data[target] = _repeat(known, rows - rows[0], columns - columns[0])
    return Layer(values, has_data, pixels.lost)


def _repeat(block: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    same = block.shape == (rows.size, columns.size)
    return block if same else block[rows][:, columns]


def _warp_pixels(asset: Asset, source: DatasetReader, geobox: GeoBox, rule: Rule) -> Layer:
    """`source` interpolated onto `geobox`: in float32 with NaN as nodata, so that no value can be mistaken for nodata on the way."""
    bounds = transform_bounds(str(geobox.crs), source.crs, *geobox.boundingbox)
    window = _window_of(source, bounds)
    values, has_data = np.zeros(tuple(geobox.shape), source.dtypes[0]), np.zeros(tuple(geobox.shape), bool)
    if window is None:
        return Layer(values, has_data, ())
    pixels = read_pixels(asset, source, window)
    block = pixels.values[0]
    known = pixels.readable & rule.is_data(block, source.nodata)
    warped, _ = reproject(
        np.where(known, block, np.nan).astype(np.float32),
        np.full(values.shape, np.nan, np.float32),
        src_transform=source.window_transform(window),
        src_crs=source.crs,
        src_nodata=np.nan,
        dst_transform=geobox.transform,
        dst_crs=str(geobox.crs),
        dst_nodata=np.nan,
        resampling=rule.resampling,
        tolerance=WARP_TOLERANCE_PX,
        **scale_options(GeoBox(block.shape, source.window_transform(window), source.crs), geobox),
    )
    has_data = np.isfinite(warped)
    filled = np.where(has_data, warped, 0)
    values = filled.astype(block.dtype) if block.dtype.kind == "f" else np.rint(filled).astype(block.dtype)
    return Layer(values, has_data, pixels.lost)


def _window_of(source: DatasetReader, bounds: tuple[float, float, float, float]) -> Window | None:
    """The pixels of `source` under `bounds` (left, bottom, right, top in its CRS) plus a margin, or None if there are none."""
    left, bottom, right, top = bounds
    corners = [~source.transform * (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    row_range = (max(0, math.floor(min(rows)) - WARP_MARGIN_PX), min(source.height, math.ceil(max(rows)) + WARP_MARGIN_PX))
    column_range = (max(0, math.floor(min(columns)) - WARP_MARGIN_PX), min(source.width, math.ceil(max(columns)) + WARP_MARGIN_PX))
    if row_range[0] >= row_range[1] or column_range[0] >= column_range[1]:
        return None
    return Window.from_slices(row_range, column_range)


def _read_tiles(asset: Asset, source: DatasetReader, window: Window, bands: tuple[int, ...]) -> Pixels:
    """`window` read tile by tile: what some tiles have lost does not cost the others."""
    first_row, first_column = int(window.row_off), int(window.col_off)
    shape = (int(window.height), int(window.width))
    values, readable = np.zeros((len(bands), *shape), source.dtypes[0]), np.ones(shape, bool)
    lost = []
    for tile in _tiles_in(source, window):
        rows, columns = tile.toslices()
        place = (
            slice(rows.start - first_row, rows.stop - first_row),
            slice(columns.start - first_column, columns.stop - first_column),
        )
        try:
            values[:, *place] = source.read(bands, window=tile)
        except RasterioIOError as error:
            readable[place] = False
            lost.append(f"rows {rows.start}-{rows.stop - 1}, columns {columns.start}-{columns.stop - 1}: {_reason_of(error, asset)}")
    logger.warning("%s: %d tiles cannot be read, their pixels are invalid", asset.place, len(lost))
    return Pixels(values, readable, tuple(lost))


def _tiles_in(source: DatasetReader, window: Window) -> Iterator[Window]:
    """The parts of `window` that lie in one storage tile of `source` each."""
    height, width = source.block_shapes[0]
    bottom, right = int(window.row_off + window.height), int(window.col_off + window.width)
    for row in range(int(window.row_off) // height * height, bottom, height):
        for column in range(int(window.col_off) // width * width, right, width):
            top, left = max(row, int(window.row_off)), max(column, int(window.col_off))
            yield Window.from_slices((top, min(row + height, bottom)), (left, min(column + width, right)))


def _retry(attempt: Callable[[], T], attempts: int) -> T:
    """What `attempt` returns, tried up to `attempts` times with growing pauses; the last RasterioIOError is passed on."""
    for count in range(attempts - 1):
        try:
            return attempt()
        except RasterioIOError:
            time.sleep(BACKOFF_S * 2**count)
    return attempt()


def _reason_of(error: RasterioIOError, asset: Asset) -> str:
    """GDAL's own words, which rasterio keeps as the cause, in one line without the address's signature."""
    text = " ".join(str(error.__cause__ or error).split())
    return text.replace(asset.href, asset.href.partition("?")[0])[:200]
