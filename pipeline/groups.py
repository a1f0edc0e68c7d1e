"""What a group is: the scenes of a sample of another task than cloud removal, each on its own grid, in one dataset.

A group holds for each role (`pan`, `ms`; `fine-1` to `fine-3`, `coarse-1` to `coarse-3`; `cube`):

    ROLE        (band, y, x) or (band, y_coarse, x_coarse)   uint16 reflectance x 10000; the bands of `pan` are along `pan_band`
    valid_ROLE  (y, x) or (y_coarse, x_coarse)               bool, True = usable
    scl_ROLE    likewise                                     uint8 scene classes, only where the product has them

The grid of y and x is that of the lock; a coarse pixel covers `attrs["ratio"]` of its pixels along each side. `attrs["provenance"]` holds
`task`, `ratio`, `area`, `pair` (the group as the lock states it), the provenance of each scene by its role, `registration` and `refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.averages import average_blocks
from sereno.pipeline.config import TaskName
from sereno.pipeline.errors import StoreError
from sereno.pipeline.imagers import is_covered
from sereno.pipeline.scene import OPTICAL_UNITS, Bool2d, bands_of, geobox_of, to_scene, with_grid
from sereno.pipeline.store import open_dataset, read_manifest

FINE: Final = ("y", "x")
"""Dims of fine images."""
COARSE: Final = ("y_coarse", "x_coarse")
"""Dims of coarse images."""
BAND_DIMS: Final = {"pan": "pan_band"}
"""Dim of bands by role, where it is not `band`."""


def to_group(scenes: Mapping[str, xr.Dataset], grid: GeoBox, provenance: dict[str, Any]) -> xr.Dataset:
    """Scenes by role as one group; those that do not lie on `grid` are coarse, all on one grid."""
    variables: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for role, scene in scenes.items():
        dim, place = BAND_DIMS.get(role, "band"), FINE if geobox_of(scene) == grid else COARSE
        variables[role] = ((dim, *place), scene["data"].values, {"units": OPTICAL_UNITS})
        variables[f"valid_{role}"] = (place, scene["valid"].values)
        if "scl" in scene:
            variables[f"scl_{role}"] = (place, scene["scl"].values)
        names[dim] = list(bands_of(scene))
    return with_grid(xr.Dataset(variables, coords=names, attrs={"provenance": provenance, "ratio": provenance["ratio"]}), grid)


def open_job(manifest: Path) -> xr.Dataset:
    """The pair or group that `align` has written to `manifest`.

    Raises:
        MissingError: there is none.
        StoreError: it is damaged, or neither.
    """
    kind = read_manifest(manifest)["kind"]
    if kind not in ("pair", "group"):
        raise StoreError(f"{manifest} describes a {kind!r}, expected a 'pair' or a 'group'")
    return open_dataset(manifest, kind=kind)


def task_of(job: xr.Dataset) -> TaskName:
    """What a pair or group is for."""
    task: TaskName = job.attrs["provenance"].get("task", "cloud-removal")
    return task


def ratio_of(job: xr.Dataset) -> int:
    """Pixels of its grid along each side of a coarse pixel; 1 where nothing is coarse."""
    return int(job.attrs.get("ratio", 1))


def to_coarse_grid(grid: GeoBox, ratio: int) -> GeoBox:
    """The grid of pixels `ratio` times coarser, which `grid` holds a whole number of."""
    return GeoBox((grid.shape.y // ratio, grid.shape.x // ratio), grid.transform * Affine.scale(ratio), grid.crs)


def view_image(job: xr.Dataset, role: str) -> xr.Dataset:
    """One image of a pair or group with what belongs to it, on its own grid along y and x, its bands along `band`."""
    if FINE == job[f"valid_{role}"].dims and job[role].dims[0] == "band":
        return job
    names = {"pan_band": "band", **dict(zip(COARSE, FINE, strict=True))}
    variables = {}
    for name in (role, f"valid_{role}", f"scl_{role}"):
        if name in job:
            image = job[name]
            variables[name] = (tuple(names.get(str(dim), dim) for dim in image.dims), image.values, dict(image.attrs))
    bands = list(bands_of(job, str(job[role].dims[0])))
    plain = xr.Dataset(variables, coords={"band": bands}, attrs={"provenance": job.attrs["provenance"]})
    grid = geobox_of(job)
    return with_grid(plain, to_coarse_grid(grid, ratio_of(job)) if job[f"valid_{role}"].dims == COARSE else grid)


def to_fine_grid(grid: GeoBox, steps: int) -> GeoBox:
    """The grid with `steps` pixels along each side of one of `grid`."""
    return GeoBox((grid.shape.y * steps, grid.shape.x * steps), grid.transform * Affine.scale(1 / steps), grid.crs)


def average_scene(scene: xr.Dataset, ratio: int, clear_share: float | None = None) -> xr.Dataset:
    """An optical scene on pixels `ratio` times coarser; without classes and plates.

    Means of its values, valid where all are. With `clear_share`, means of what is valid and clear by its classes, valid where that is so
    large a share.
    """
    values, known = scene["data"].values, scene["valid"].values
    facts: dict[str, Any] = {"averaged": ratio}
    if clear_share is None:
        means = np.stack([np.rint(average_blocks(image, ratio)) for image in values])
        valid = shrink_valid(known, ratio)
    else:
        known = known & ~is_covered(scene["scl"].values) if "scl" in scene else known
        share = average_blocks(known, ratio)
        means = np.stack([np.rint(average_blocks(image * known, ratio) / np.maximum(share, ratio**-2)) for image in values])
        valid = (share >= clear_share) & (share > 0)
        facts |= {"clear_share": clear_share, "valid_share": round(float(valid.mean()), 6)}
    grid, provenance = to_coarse_grid(geobox_of(scene), ratio), scene.attrs["provenance"]
    return to_scene(means.astype(np.uint16), valid, bands=bands_of(scene), geobox=grid, provenance={**provenance, **facts})


def shrink_valid(valid: Bool2d, ratio: int) -> Bool2d:
    """Which coarse pixels hold valid fine ones alone, (y, x) -> (y / ratio, x / ratio)."""
    rows, columns = (size // ratio for size in valid.shape)
    whole: Bool2d = np.asarray(valid.reshape(rows, ratio, columns, ratio).all(axis=(1, 3)))
    return whole
