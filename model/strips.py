"""Whole rows of a group, read as the arrays that samples of its task are made of: what `predict` walks over.

A group and its masks enter (see `align` and `mask` of the pipeline); arrays by the names of `sereno.pipeline.samples` leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from sereno.model.batches import Signature
from sereno.pipeline.config import TaskName
from sereno.pipeline.scene import bands_of, find_unknown

Array = npt.NDArray[Any]
DATES: Final = ("1", "2", "3")
"""How the dates of a series are called."""


class Rows(NamedTuple):
    """Some rows of a group and its masks, cut but not read."""

    group: xr.Dataset
    """Images by role, `y` and `y_coarse` cut alike."""
    masks: xr.Dataset
    """Probabilities by role, on the grids of their images."""


def describe_group(group: xr.Dataset) -> Signature:
    """What a group is of, without statistics."""
    provenance = group.attrs["provenance"]
    guide = bands_of(group, "pan_band") if "pan_band" in group.dims else ()
    return Signature(bands_of(group), (), (), (), provenance["task"], int(provenance["ratio"]), guide)


def read_rows(group: xr.Dataset, masks: xr.Dataset, first: int, stop: int) -> dict[str, Array]:
    """Rows `first` to `stop` (exclusive) of the fine grid, whole coarse pixels of them: (..., row, col) by the names of `SAMPLES`."""
    signature = describe_group(group)
    coarse = slice(first // signature.ratio, stop // signature.ratio)
    is_coarse = signature.task == "pansharpening"
    fine = slice(first, stop)
    cut = group.isel({"y": fine, **({"y_coarse": coarse} if "y_coarse" in group.dims else {})})
    return READERS[signature.task](Rows(cut, _cut_masks(masks, coarse if is_coarse else fine)), signature.ratio)


def _cut_masks(masks: xr.Dataset, rows: slice) -> xr.Dataset:
    """Masks of some rows; their own dims may be those of the coarse grid."""
    return masks.isel({dim: rows for dim in ("y", "y_coarse") if dim in masks.dims})


def _read_sharpening(rows: Rows, ratio: int) -> dict[str, Array]:
    pan = rows.group["valid_pan"].values
    seen = pan.reshape(pan.shape[0] // ratio, ratio, pan.shape[1] // ratio, ratio).all(axis=(1, 3))
    mask = _stack_mask(rows.masks, "ms", rows.group["valid_ms"].values & seen)
    return {"pan": rows.group["pan"].values, "ms": rows.group["ms"].values, "mask": mask}


def _read_fusion(rows: Rows, ratio: int) -> dict[str, Array]:
    fine, coarse = (np.stack([rows.group[f"{kind}-{date}"].values for date in DATES]) for kind in ("fine", "coarse"))
    masks = []
    for date in DATES:
        seen = rows.group[f"valid_coarse-{date}"].values.repeat(ratio, axis=0).repeat(ratio, axis=1)
        known = ~find_unknown(rows.group, rows.masks, f"fine-{date}")
        masks.append(_stack_mask(rows.masks, f"fine-{date}", rows.group[f"valid_fine-{date}"].values & seen & known))
    return {"fine": fine, "coarse": coarse, "mask": np.stack(masks)}


def _read_cube(rows: Rows, _ratio: int) -> dict[str, Array]:
    return {"cube": rows.group["cube"].values, "mask": _to_byte(rows.group["valid_cube"].values)[None]}


def _stack_mask(masks: xr.Dataset, role: str, valid: Array) -> Array:
    """Cloud, shadow and validity as patches hold them: (3, row, col) uint8."""
    return np.stack([masks[f"cloud_{role}"].values, masks[f"shadow_{role}"].values, _to_byte(valid)])


def _to_byte(valid: Array) -> Array:
    return np.where(valid, 255, 0).astype(np.uint8)


READERS: Final[Mapping[TaskName, Callable[[Rows, int], dict[str, Array]]]] = {
    "pansharpening": _read_sharpening,
    "spatiotemporal-fusion": _read_fusion,
    "snapshot-reconstruction": _read_cube,
}
"""What reads the rows of a task's group."""
