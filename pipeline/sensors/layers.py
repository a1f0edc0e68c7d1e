"""Bands on the wanted grid: copied or repeated where the file's grid fits, interpolated only where it does not.

Enters: an asset and a grid. Leaves: values, the mask of those that exist, and a line of the ledger.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from sereno.pipeline.geometry import WARP_TOLERANCE_PX, scale_options
from sereno.pipeline.ledger import Entry
from sereno.pipeline.mgrs import is_utm
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.sensors.access import Access, Pixels, read_pixels
from sereno.pipeline.sensors.assets import Asset, LossError

logger = logging.getLogger(__name__)

SNAP_PX: Final = 1e-3
"""Two grids fit if their pixel edges lie within this many pixels of each other."""
FALSE_NORTHING_M: Final = 10_000_000
"""Northing of the equator in the southern half of a UTM zone, 0 in the northern one: all that differs (DMA TM 8358.2, 1989)."""
SOUTHERN: Final = 100
"""EPSG code of the southern half of a UTM zone less that of the northern one."""
WARP_MARGIN_PX: Final = 4
"""Source pixels read around the area before warping, for the kernel."""
WARPING: Final = threading.Lock()
"""Held while a band is warped: one at a time bounds the memory, and rasterio's way to silence a warning is not made for threads."""
WARP_THREADS: Final = 4
"""Threads of GDAL in one warp."""


class Layer(NamedTuple):
    """One band on the wanted grid."""

    values: npt.NDArray[Any]
    """(y, x); meaningless where there is no data."""
    has_data: Bool2d
    """(y, x), True where the file covers the pixel with a value that is not nodata."""
    lost: tuple[str, ...]
    """One line per unreadable tile, or one for the whole file."""
    entry: Entry
    """What became of the asset and what it cost; scene and area are filled in later."""


class Rule(NamedTuple):
    """How the pixels of a product are to be read; picklable, so `is_data` is a function of a module."""

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


def read_layer(asset: Asset, geobox: GeoBox, rule: Rule, out: npt.NDArray[Any] | None = None) -> Layer:
    """The band of `asset` on `geobox`: pixels copied where the grids fit, else warped; into `out` (y, x) if given.

    What will not heal is no error: a file that cannot be used gives a layer without data, a damaged tile lacks its pixels, and the entry
    says so.

    Raises:
        CatalogueError: the asset cannot be read now, in spite of all attempts, or must not be read.
    """
    access = Access(asset)
    try:
        with access:
            if access.source.crs is None:
                raise LossError("unreadable", "the file has no CRS, so its place on the ground is unknown")
            if asset.record.index > access.source.count:
                raise LossError("unreadable", f"the file has {access.source.count} bands, band {asset.record.index} is wanted")
            match = match_grid(access.source.crs, access.source.transform, geobox)
            if match is not None:
                return _copy_pixels(access, match, rule, out)
            return _warp_pixels(access, geobox, rule, out)
    except LossError as loss:
        logger.warning("%s is lost: %s", asset.place, loss.words)
        values = _blank(out, tuple(geobox.shape), np.dtype(np.uint8))
        return Layer(values, np.broadcast_to(np.False_, values.shape), (loss.words,), access.to_entry(loss.status, loss.words))


def _blank(out: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros, in `out` if there is one."""
    if out is None:
        return np.zeros(shape, dtype)
    out[...] = 0
    return out


def match_grid(crs: object, transform: Affine, geobox: GeoBox) -> GridMatch | None:
    """How `geobox` lies on a file with `crs` and `transform`, or None if reading it needs interpolation.

    The grids fit if both are north-up in one CRS, or in the two halves of one UTM zone, the file's pixel is a whole multiple of the wanted
    one, and edges meet: then each wanted pixel lies inside one pixel of the file, wherever the coarse grid begins.
    """
    own, wanted = _move_origin(CRS(crs), transform, geobox.crs), geobox.transform
    if own is None or any(abs(number) > 0 for number in (own.b, own.d, wanted.b, wanted.d)):
        return None
    if own.a <= 0 or own.e >= 0 or wanted.a <= 0 or wanted.e >= 0:
        return None
    rows = _match_axis((own.f, own.e), (wanted.f, wanted.e), geobox.shape.y)
    columns = _match_axis((own.c, own.a), (wanted.c, wanted.a), geobox.shape.x)
    return None if rows is None or columns is None else GridMatch(rows, columns)


def _move_origin(crs: CRS, transform: Affine, wanted: CRS | None) -> Affine | None:
    """`transform` of a grid in `crs` as one in `wanted`; None if that takes more than another origin."""
    if crs == wanted:
        return transform
    own_code, code = (0 if one is None or one.epsg is None else one.epsg for one in (crs, wanted))
    if abs(code - own_code) != SOUTHERN or not all(is_utm(f"EPSG:{one}") for one in (own_code, code)):
        return None
    return Affine.translation(0, math.copysign(FALSE_NORTHING_M, code - own_code)) * transform


def _match_axis(source: tuple[float, float], wanted: tuple[float, float], size: int) -> npt.NDArray[np.int64] | None:
    """Source index of each of `size` wanted pixels along one axis; the pairs are origin and step in CRS units."""
    ratio = source[1] / wanted[1]
    first = (wanted[0] - source[0]) / wanted[1]
    if round(ratio) < 1 or abs(ratio - round(ratio)) * size > SNAP_PX or abs(first - round(first)) > SNAP_PX:
        return None
    indices: npt.NDArray[np.int64] = (round(first) + np.arange(size)) // round(ratio)
    return indices


def find_own_grid(asset: Asset, geobox: GeoBox, margin_px: int) -> GeoBox | None:
    """The grid of a file, cropped to `geobox` plus a margin, if it differs from that only by a shift; else None.

    The crop may reach beyond the file: what lies there is no data. A file that is lost has no grid.

    Raises:
        CatalogueError: the asset cannot be opened now.
    """
    wanted = geobox.pad(margin_px)
    try:
        with Access(asset._replace(check="none")) as access:
            crs, stated = access.source.crs, access.source.transform
    except LossError:  # reading it will say so, and whether it has changed
        return None
    step, own = wanted.transform, None if crs is None else _move_origin(CRS(crs), stated, wanted.crs)
    if own is None or own.b or own.d:
        return None
    if max(abs(own.a - step.a), abs(own.e - step.e)) * max(wanted.shape) >= SNAP_PX * abs(step.a):
        return None
    column, row = ~own * (step.c, step.f)
    first_column, first_row = math.floor(column + SNAP_PX), math.floor(row + SNAP_PX)
    # A grid that lies between the wanted pixels needs one more of its own to cover the last of them.
    extra_x, extra_y = int(column - first_column > SNAP_PX), int(row - first_row > SNAP_PX)
    shape = (wanted.shape.y + extra_y, wanted.shape.x + extra_x)
    return GeoBox(shape, own * Affine.translation(first_column, first_row), wanted.crs)


def _copy_pixels(access: Access, match: GridMatch, rule: Rule, out: npt.NDArray[Any] | None) -> Layer:
    source, band = access.source, access.asset.record.index
    dtype = np.dtype(source.dtypes[band - 1])
    shape = (match.rows.size, match.columns.size)
    inside_rows = np.flatnonzero((match.rows >= 0) & (match.rows < source.height))
    inside_columns = np.flatnonzero((match.columns >= 0) & (match.columns < source.width))
    covers_all = (inside_rows.size, inside_columns.size) == shape
    values = out if out is not None and covers_all else _blank(out, shape, dtype)
    if not inside_rows.size or not inside_columns.size:
        return Layer(values, np.broadcast_to(np.False_, shape), (), access.to_entry("used", "its ground lies beside the area"))
    rows, columns = match.rows[inside_rows], match.columns[inside_columns]
    window = Window.from_slices((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1))
    target = (slice(inside_rows[0], inside_rows[-1] + 1), slice(inside_columns[0], inside_columns[-1] + 1))
    view, nodata = values[target], source.nodatavals[band - 1]
    is_same = view.shape == (int(window.height), int(window.width)) and view.dtype == dtype
    pixels = read_pixels(access, window, (band,), view[None] if is_same else None)
    block = pixels.values[0]
    known = rule.is_data(block, nodata)
    if pixels.lost:
        known &= pixels.readable
    if not np.shares_memory(block, view):
        _repeat(block, rows - rows[0], columns - columns[0], view)
    if covers_all and known.all():
        return Layer(values, np.broadcast_to(np.True_, shape), pixels.lost, _judge(access, pixels, known))
    has_data = np.zeros(shape, bool)
    _repeat(known, rows - rows[0], columns - columns[0], has_data[target])
    return Layer(values, has_data, pixels.lost, _judge(access, pixels, known))


def _judge(access: Access, pixels: Pixels, known: Bool2d) -> Entry:
    """The asset's line in the ledger after its pixels were read."""
    if not pixels.lost:
        return access.to_entry("used")
    more = f" (+{len(pixels.lost) - 1} more)" if len(pixels.lost) > 1 else ""
    return access.to_entry("partly" if known.any() or pixels.readable.any() else "unreadable", pixels.lost[0] + more)


def _repeat(block: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Write `block` with its rows and columns repeated to `out` (y, x); both indices begin at 0 and rise."""
    wide = block if block.shape[1] == columns.size else np.take(block, columns, axis=1)
    if out.flags.c_contiguous and out.dtype == wide.dtype:
        np.take(wide, rows, axis=0, out=out, mode="clip")  # `clip` since `raise` would write to a buffer first
    else:
        out[...] = np.take(wide, rows, axis=0)


def _warp_pixels(access: Access, geobox: GeoBox, rule: Rule, out: npt.NDArray[Any] | None) -> Layer:
    """The file interpolated onto `geobox`; a pixel has data if all that enter it have."""
    source, band = access.source, access.asset.record.index
    window, transform, crs = _window_of(source, geobox), source.transform, source.crs
    nodata, dtype = source.nodatavals[band - 1], np.dtype(source.dtypes[band - 1])
    if window is None:
        values = _blank(out, tuple(geobox.shape), dtype)
        return Layer(values, np.broadcast_to(np.False_, values.shape), (), access.to_entry("used", "its ground lies beside the area"))
    pixels = read_pixels(access, window, (band,))
    known = pixels.readable & rule.is_data(pixels.values[0], nodata)
    with WARPING:
        # A ring of what is not known: GDAL would repeat the outermost pixel for half a pixel beyond the edge.
        block = np.full((known.shape[0] + 2, known.shape[1] + 2), np.nan, np.float32)
        np.copyto(block[1:-1, 1:-1], pixels.values[0], where=known)
        own = GeoBox(block.shape, transform * Affine.translation(window.col_off - 1, window.row_off - 1), crs)
        warped = _warp(block, own, geobox, rule.resampling)
    has_data = np.isfinite(warped)
    warped[~has_data] = 0
    values = out if out is not None else np.empty(warped.shape, dtype)
    np.copyto(values, warped if values.dtype.kind == "f" else np.rint(warped, out=warped), casting="unsafe")
    return Layer(values, has_data, pixels.lost, _judge(access, pixels, known))


def _warp(block: npt.NDArray[np.float32], own: GeoBox, geobox: GeoBox, resampling: Resampling) -> npt.NDArray[np.float32]:
    """`block` on `geobox`, NaN wherever a NaN enters: GDAL is told of no nodata value, so that it does not make up for what is missing."""
    warped: npt.NDArray[np.float32] = np.empty(tuple(geobox.shape), np.float32)
    reproject(
        block,
        warped,
        src_transform=own.transform,
        src_crs=str(own.crs),
        dst_transform=geobox.transform,
        dst_crs=str(geobox.crs),
        dst_nodata=np.nan,
        resampling=resampling,
        num_threads=WARP_THREADS,
        tolerance=WARP_TOLERANCE_PX,
        **scale_options(own, geobox),
    )
    return warped


def _window_of(source: DatasetReader, geobox: GeoBox) -> Window | None:
    """The pixels of `source` under `geobox` plus a margin, or None if there are none."""
    try:
        left, bottom, right, top = transform_bounds(str(geobox.crs), source.crs, *geobox.boundingbox)
    except CRSError:  # the area lies where the file's projection does not reach
        return None
    corners = [~source.transform * (x, y) for x in (left, right) for y in (bottom, top)]
    if not np.isfinite(corners).all():
        return None
    columns, rows = zip(*corners, strict=True)
    row_range = (max(0, math.floor(min(rows)) - WARP_MARGIN_PX), min(source.height, math.ceil(max(rows)) + WARP_MARGIN_PX))
    column_range = (max(0, math.floor(min(columns)) - WARP_MARGIN_PX), min(source.width, math.ceil(max(columns)) + WARP_MARGIN_PX))
    if row_range[0] >= row_range[1] or column_range[0] >= column_range[1]:
        return None
    return Window.from_slices(row_range, column_range)
