"""Moving values from one grid to another, once.

Values with their validity and two grids enter; values and validity on the target grid leave. Backscatter is averaged as power,
never as decibel, and a shift found by registration is part of the same interpolation, so that pixels are interpolated only once.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio.warp
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

FULL_WEIGHT: Final = 0.999
"""Interpolated validity from which a pixel counts as made of valid ground only; below 1 for the sake of float32."""
TOLERANCE_PX: Final = 0.01
"""Largest error of the warped coordinates; between grids of one CRS they are exact. GDAL's own default is 0.125."""


def resample_sar(
    power: Float, valid: Bool, *, source: GeoBox, target: GeoBox, shift_px: tuple[float, float] = (0.0, 0.0)
) -> tuple[Float, Bool]:
    """SAR on the target grid with a shift taken out: (band, y, x), (y, x) -> the same on `target`, in one bilinear interpolation.

    `power` is linear, not dB: the mean of two dB values is not the dB value of their mean power. `shift_px` (rows, columns, in
    pixels of `target`) says that content which belongs at (row, col) is found at (row + dy, col + dx). A target pixel is valid if
    every source pixel that enters it is; the others are 0.
    """
    weights = valid.astype(np.float32)
    stack = np.concatenate([np.where(valid, power, 0).astype(np.float32), weights[None]])
    # One ring of invalid pixels: GDAL would repeat the outermost pixel for half a pixel beyond the edge.
    stack = np.pad(stack, ((0, 0), (1, 1), (1, 1)))
    warped = np.zeros((len(stack), *target.shape), np.float32)
    rasterio.warp.reproject(
        stack,
        warped,
        src_transform=source.transform * Affine.translation(-1, -1),
        src_crs=str(source.crs),
        dst_transform=target.transform * Affine.translation(shift_px[1], shift_px[0]),
        dst_crs=str(target.crs),
        resampling=Resampling.bilinear,
        tolerance=TOLERANCE_PX,
        **_fix_kernel(source, target),
    )
    weight = warped[-1]
    inside = weight >= FULL_WEIGHT
    values: Float = np.where(inside, warped[:-1] / np.where(inside, weight, 1), 0).astype(np.float32)
    return values, inside


def _fix_kernel(source: GeoBox, target: GeoBox) -> dict[str, Any]:
    """The ratio of pixel sizes for GDAL's kernel: GDAL would guess it from extents, which is 5 % wrong where grids are turned."""
    if not all(grid.crs is not None and grid.crs.projected for grid in (source, target)):
        return {}
    across = abs(source.resolution.x / target.resolution.x)
    down = abs(source.resolution.y / target.resolution.y)
    return {"XSCALE": str(min(across, 1.0)), "YSCALE": str(min(down, 1.0))}


def to_metres(shift_px: tuple[float, float], grid: GeoBox) -> tuple[float, float]:
    """A shift (rows, columns) in pixels of `grid` as (east, north) in units of its CRS, metres for UTM."""
    affine, (dy, dx) = grid.transform, shift_px
    return affine.a * dx + affine.b * dy, affine.d * dx + affine.e * dy
