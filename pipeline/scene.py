"""What a scene and a pair are: xarray datasets with named dims, one grid, units, validity apart from values, provenance.

A scene holds one acquisition:

    data   (band, y, x)   uint16 reflectance x 10000, or int16 centi-dB of backscatter
    valid  (y, x)         bool, True = usable
    scl    (y, x)         uint8 scene classes, only where the product has them

A scene that was geocoded keeps the images it was made of, its plates, so that `align` can interpolate them once more from the start
instead of interpolating `data` a second time (`sereno.pipeline.plates`). Plate 0, and likewise 1, 2, ...:

    plate_0          (band_0, plate_row_0, plate_col_0)   as `data`: what the sensor saw under the area and `margin_px` around it
    plate_valid_0    (plate_row_0, plate_col_0)   bool, True = usable
    plate_lattice_0  (axis, lattice_row_0, lattice_col_0)   float64: row and column of the plate at which pixels -16, 0, 16, ... of the
                                              scene's grid (y and x) are found if all ground has one height
    plate_relief_0   (axis, y, x)             float32: how far from there relief moves each pixel, NaN where its height is not known;
                                              not there if the ground was taken as flat

Whole rows and columns are centres of pixels. The attribute `ratio` of `plate_0` has rows and columns of the plate per pixel of the grid;
`layer` says which image of the scene it belongs to. Plates of one layer share its bands: a pixel is valid in a layer where it is in all
of them (in scenes of Sentinel-1, `band` is `sar_band`). Where layers overlap, the lowest one that is valid there stays.

A pair holds three acquisitions on one grid: `sar`, `cloudy`, `clear` with `valid_sar`, `valid_cloudy`, `valid_clear`
and, where the product has them, `scl_cloudy`, `scl_clear`. Optical bands are along `band`, polarisations along `sar_band`.
In a series it also holds `before` and `after`, the clear dates around them, likewise with `valid_*` and `scl_*`; masks then have these too.
Where the input is made of the target under a simulated sky, `cloud_truth` and `shadow_truth` (y, x) uint8 say what share of the ground's
picture and of the sunlight is lost, x 255 (`sereno.pipeline.skies`).

Masks lie on the grid of their pair: `cloud_*` and `shadow_*` (y, x) uint8, probability x 255, and `known_*` (y, x) bool, True = valid and
the method could decide, for `cloudy` and `clear`. What is not known is never clear.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

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
LATTICE_STEP_PX: Final = 16
"""Pixels of the scene's grid between two points of a plate's lattice, between which positions are linear to less than 1e-3 px: slant range,
the most bent of all, departs by 0.003 m between points 160 m apart."""

Bool2d = npt.NDArray[np.bool_]


class Plate(NamedTuple):
    """An image as the sensor saw it, and where in it the ground of a scene's grid is found."""

    bands: tuple[str, ...]
    """What it shows; some or all bands of the scene."""
    values: npt.NDArray[Any]
    """(band, row, col) uint16 or int16 in the units of the scene; 0 where not valid."""
    valid: Bool2d
    """(row, col), True = usable."""
    lattice: npt.NDArray[np.float64]
    """(2, rows, cols): row and column of the plate at which every sixteenth pixel of the grid, from -16 on, is found at one height."""
    relief: npt.NDArray[np.float32] | None
    """(2, y, x): how far from there relief moves each pixel of the grid; NaN where its height is not known. None: flat ground."""
    ratio: tuple[float, float]
    """Rows and columns of the plate per pixel of the grid."""
    layer: int = 0
    """Which image it belongs to; where they overlap the lowest one stays."""


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


def with_plates(scene: xr.Dataset, plates: Sequence[Plate]) -> xr.Dataset:
    """`scene` with the images it was made of; bytes of pixels that are not valid are 0."""
    dim = "sar_band" if "sar_band" in scene.dims else "band"
    variables: dict[str, Any] = {}
    for number, plate in enumerate(plates):
        row, col = f"plate_row_{number}", f"plate_col_{number}"
        facts = {"units": scene["data"].attrs["units"], "layer": plate.layer, "ratio": list(plate.ratio)}
        variables |= {
            f"plate_{number}": ((f"{dim}_{number}", row, col), np.where(plate.valid, plate.values, 0).astype(plate.values.dtype), facts),
            f"plate_valid_{number}": ((row, col), plate.valid),
            f"plate_lattice_{number}": (("axis", f"lattice_row_{number}", f"lattice_col_{number}"), plate.lattice),
        }
        if plate.relief is not None:
            variables[f"plate_relief_{number}"] = (("axis", "y", "x"), plate.relief, {"grid_mapping": "spatial_ref"})
    return scene.assign(variables).assign_coords({f"{dim}_{number}": list(plate.bands) for number, plate in enumerate(plates)})


def plates_of(scene: xr.Dataset) -> tuple[Plate, ...]:
    """The images that a scene was made of; none if it lies on its product's own grid, was refused, or is of an earlier version."""
    dim = "sar_band" if "sar_band" in scene.dims else "band"
    plates = []
    for number in itertools.takewhile(lambda number: f"plate_{number}" in scene, itertools.count()):
        image, relief = scene[f"plate_{number}"], scene.get(f"plate_relief_{number}")
        rows, cols = image.attrs["ratio"]
        plates.append(
            Plate(
                bands_of(scene, f"{dim}_{number}"),
                image.values,
                scene[f"plate_valid_{number}"].values,
                scene[f"plate_lattice_{number}"].values,
                None if relief is None else relief.values,
                (rows, cols),
                image.attrs["layer"],
            )
        )
    return tuple(plates)


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
