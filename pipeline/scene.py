"""What a scene and a pair are: xarray datasets with named dims, one grid, units, validity apart from values, provenance.

A scene holds one acquisition:

    data   (band, y, x)   uint16 reflectance x 10000, or int16 centi-dB of backscatter
    valid  (y, x)         bool, True = usable
    scl    (y, x)         uint8 scene classes, only where the product has them

A pair holds three acquisitions on one grid: `sar`, `cloudy`, `clear` with `valid_sar`, `valid_cloudy`, `valid_clear`
and, where the product has them, `scl_cloudy`, `scl_clear`. Optical bands are along `band`, polarisations along `sar_band`.

Masks lie on the grid of their pair: `cloud_*` and `shadow_*` (y, x) uint8, probability x 255, and `known_*` (y, x) bool, True = valid and
the method could decide, for `cloudy` and `clear`. What is not known is never clear.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from sereno.pipeline.errors import DataError

REFLECTANCE_SCALE: Final = 10_000
"""Stored reflectance is reflectance times this."""
CENTI_DB: Final = 100
"""Stored backscatter is decibel times this."""
OPTICAL_UNITS: Final = "reflectance x 10000"
"""`attrs["units"]` of optical values."""
SAR_UNITS: Final = "backscatter centi-dB"
"""`attrs["units"]` of SAR values; `provenance["calibration"]` says whether they are gamma0 (RTC) or sigma0 (SEN12MS-CR)."""
MAX_REFLECTANCE: Final = 65_534
"""Largest stored optical value; 65535 stays free as the nodata value of written images."""

Bool2d = npt.NDArray[np.bool_]


def to_scene(
    data: npt.NDArray[Any],
    valid: Bool2d,
    *,
    bands: tuple[str, ...],
    geobox: GeoBox,
    provenance: dict[str, Any],
    scl: npt.NDArray[np.uint8] | None = None,
) -> xr.Dataset:
    """A scene as a dataset: data (band, y, x) uint16 or int16, valid (y, x) bool, scl (y, x) uint8 or None.

    Pixels that are not valid are set to 0 in `data`, so that equal scenes have equal bytes.

    Raises:
        DataError: shapes, dtype and band names do not fit each other.
    """
    shape = (len(bands), *geobox.shape)
    if data.shape != shape or valid.shape != shape[1:] or (scl is not None and scl.shape != shape[1:]):
        raise DataError(f"scene of bands {bands} on a grid {geobox.shape}: data is {data.shape}, valid is {valid.shape}")
    if data.dtype not in (np.uint16, np.int16):
        raise DataError(f"scene values must be uint16 (optical) or int16 (SAR), not {data.dtype}")
    units = OPTICAL_UNITS if data.dtype == np.uint16 else SAR_UNITS
    dim = "band" if data.dtype == np.uint16 else "sar_band"
    variables: dict[str, Any] = {
        "data": ((dim, "y", "x"), data if valid.all() else data * valid, {"units": units}),
        "valid": (("y", "x"), valid.astype(bool, copy=False)),
    }
    if scl is not None:
        variables["scl"] = (("y", "x"), scl.astype(np.uint8, copy=False))
    return with_grid(xr.Dataset(variables, coords={dim: list(bands)}, attrs={"provenance": provenance}), geobox)


def with_grid(dataset: xr.Dataset, geobox: GeoBox) -> xr.Dataset:
    """`dataset` with coordinates y and x, the CF grid mapping `spatial_ref`, and the `proj:` and `spatial:` attributes."""
    located = dataset.assign_coords(xr_coords(geobox))
    for variable in located.data_vars.values():
        if {"y", "x"} <= set(variable.dims):
            variable.attrs["grid_mapping"] = "spatial_ref"
    affine, bounds = geobox.transform, geobox.boundingbox
    located.attrs.update(
        {
            "proj:code": str(geobox.crs),
            "spatial:dimensions": ["y", "x"],
            "spatial:shape": [geobox.shape.y, geobox.shape.x],
            "spatial:transform": [affine.a, affine.b, affine.c, affine.d, affine.e, affine.f],
            "spatial:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        }
    )
    return located


def geobox_of(dataset: xr.Dataset) -> GeoBox:
    """The grid of a scene or a pair.

    Raises:
        DataError: the dataset carries no grid.
    """
    try:
        rows, columns = dataset.attrs["spatial:shape"]
        transform, crs = dataset.attrs["spatial:transform"], dataset.attrs["proj:code"]
    except KeyError as error:
        raise DataError(f"dataset carries no grid: attribute {error} is missing") from None
    return GeoBox((rows, columns), Affine(*transform), crs)


def find_unknown(pair: xr.Dataset, masks: xr.Dataset, role: str) -> Bool2d:
    """Valid pixels (y, x) of image `role` (`cloudy` or `clear`) of which nobody can say whether there is cloud.

    Raises:
        DataError: the masks do not say it; they are of an earlier version.
    """
    if f"known_{role}" not in masks:
        raise DataError(f"the masks of the pair do not say where clouds of the {role} image are known: run `sereno mask` again")
    unknown: Bool2d = pair[f"valid_{role}"].values & ~masks[f"known_{role}"].values
    return unknown


def bands_of(dataset: xr.Dataset, dim: str = "band") -> tuple[str, ...]:
    """Band names along `dim` (`band` or `sar_band`)."""
    return tuple(str(name) for name in dataset[dim].values)
