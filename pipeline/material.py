"""What samples of any task are made of on their way: scenes laid onto each other, whole images that patches are cut from, judged windows.

Whole images of a pair or group enter, by the names that `samples` gives them; windows of them leave, with the shares that decide whether
they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import PatchSettings, TaskName
from sereno.pipeline.errors import DataError
from sereno.pipeline.patches import CLOUDY_FROM
from sereno.pipeline.plates import place_scene
from sereno.pipeline.registration import Registration
from sereno.pipeline.samples import SAMPLES, select_specs
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE, Bool2d, bands_of, geobox_of, plates_of, to_scene
from sereno.pipeline.shiftfield import ShiftField
from sereno.pipeline.splits import Window

Array = npt.NDArray[Any]


class Laid(NamedTuple):
    """The scenes of a group on each other."""

    scenes: dict[str, xr.Dataset]
    """By role, each on its own grid."""
    registrations: dict[str, Registration]
    """The field of each role that was compared with another one."""
    grid: GeoBox
    """In whose pixels those fields are."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """What else was measured, for provenance and summary."""


class Material(NamedTuple):
    """Whole images of one pair or group."""

    task: TaskName
    """What they are for."""
    arrays: Mapping[str, Callable[[], Array]]
    """What reads an image, by the names of `SAMPLES` but `mask`; (..., band, y, x) on its own grid. One is in memory at a time."""
    mask: npt.NDArray[np.uint8]
    """(..., channel, y, x) as patches hold it; validity is 0 where clouds are not known."""
    names: Mapping[str, Sequence[str]]
    """Names along its dims, by their plural: `bands`, ..."""
    ratio: int
    """Pixels of the grid along each side of a coarse pixel."""
    unsure: Bool2d
    """(y, x) of the mask, True where nobody knows whether there is cloud in an image."""
    gaps_days: Mapping[str, float] = MappingProxyType({})
    """Time of other dates minus the sample's own, days, by their names (`PatchRecord.gaps_days`)."""


class Limit(NamedTuple):
    """One measured share of a window against one setting."""

    setting: str
    """Name in `PatchSettings`."""
    what: str
    """The share in words."""
    value: float
    """Share found in the window."""
    limit: float
    """Value of the setting."""
    is_met: bool
    """Whether the window passes."""

    def describe(self) -> str:
        """The reason in words, with the value seen and the limit."""
        side = "below" if self.setting.startswith("min") else "above"
        return f"{self.what} is {self.value:.4f}, {side} patch.{self.setting} {self.limit:g}"


def cut_window(array: Array, window: Window, size_px: int, ratio: int = 1) -> Array:
    """The window of an image (..., y, x) whose pixels are `ratio` times those of the grid that window and size are counted in."""
    row, col, size = window.row // ratio, window.col // ratio, size_px // ratio
    return array[..., row : row + size, col : col + size]


def cut_mask(material: Material, window: Window, size_px: int) -> Array:
    """The window of the mask, (..., channel, row, col)."""
    return cut_window(material.mask, window, size_px, _ratio_of_mask(material))


def measure_unsure(material: Material, window: Window, size_px: int) -> float:
    """Share of the window of which nobody knows whether there is cloud."""
    return float(cut_window(material.unsure, window, size_px, _ratio_of_mask(material)).mean())


def _ratio_of_mask(material: Material) -> int:
    return material.ratio if SAMPLES[material.task][-1].is_coarse else 1


def cut_patches(material: Material, windows: Sequence[Window], size_px: int) -> dict[str, tuple[tuple[str, ...], Array, dict[str, str]]]:
    """The windows of every array as variables of a patch store: dims, values (patch, ..., row, col), units."""
    variables = {}
    for spec in select_specs(material.task, material.names):
        whole = material.mask if spec.name == "mask" else material.arrays[spec.name]()
        ratio = material.ratio if spec.is_coarse else 1
        cut = np.empty((len(windows), *whole.shape[:-2], size_px // ratio, size_px // ratio), whole.dtype)
        for place, window in enumerate(windows):
            cut[place] = cut_window(whole, window, size_px, ratio)
        variables[spec.name] = (spec.all_dims, cut, {"units": spec.units})
    return variables


def check_windows(windows: Sequence[Window], size_px: int, ratio: int) -> None:
    """Refuse windows that do not begin and end with a coarse pixel.

    Raises:
        DataError: some do not.
    """
    off = [window.name for window in windows if size_px % ratio or window.row % ratio or window.col % ratio]
    if off:
        raise DataError(
            f"{len(off)} windows of {size_px} px, the first {off[0]}, do not begin and end with a coarse pixel of {ratio} x {ratio}: set "
            f"patch.size_px to a multiple of {ratio} and buffer_px to one of {2 * ratio}"
        )


def measure_clear(mask: Array, settings: PatchSettings) -> tuple[Limit, ...]:
    """Validity and cloud of a window of a task whose images must all be clear: mask (..., channel, row, col), of all dates together."""
    *leading, _, rows, columns = mask.shape
    dates = mask.reshape(-1, *mask.shape[-3:])
    valid = float((dates[:, -1] > 0).all(axis=0).mean())
    covered = float((dates[:, :-1].reshape(-1, rows, columns) >= CLOUDY_FROM).any(axis=0).mean()) if mask.shape[-3] > 1 else 0.0
    what = "dates" if leading else "images"
    return (
        Limit("min_valid", f"share valid in all {what}", valid, settings.min_valid, valid >= settings.min_valid),
        Limit("max_target_cloud", "share of cloud and shadow", covered, settings.max_target_cloud, covered <= settings.max_target_cloud),
    )


def move_scene(scene: xr.Dataset, field: ShiftField) -> xr.Dataset:
    """An optical scene with `field`, in pixels of its own grid, taken out.

    Where it keeps the images it was made of, it is interpolated once more from there; else it moves by whole pixels.
    """
    if field.is_zero:
        return scene
    facts, bands, grid = scene.attrs["provenance"], bands_of(scene), geobox_of(scene)
    if plates_of(scene):
        reflectance, valid = place_scene(scene, grid, field)
        stored = np.clip(np.rint(reflectance * REFLECTANCE_SCALE), 0, MAX_REFLECTANCE).astype(np.uint16)
        return to_scene(stored, valid, bands=bands, geobox=grid, provenance=facts)
    dy, dx = (round(float(shift)) for shift in field.evaluate(*field.centre))
    moved = {name: _shift_image(scene[name].values, dy, dx) for name in ("data", "valid", *(("scl",) if "scl" in scene else ()))}
    return to_scene(moved["data"], moved["valid"], bands=bands, geobox=grid, provenance=facts, scl=moved.get("scl"))


def _shift_image(image: Array, dy: int, dx: int) -> Array:
    """What lies at (row + dy, col + dx) of an image (..., y, x); 0 where that is outside."""
    moved = np.zeros_like(image)
    rows, cols = ((slice(max(0, -step), min(size, size - step)), slice(max(0, step), min(size, size + step)))
                  for step, size in ((dy, image.shape[-2]), (dx, image.shape[-1])))  # fmt: skip
    moved[..., rows[0], cols[0]] = image[..., rows[1], cols[1]]
    return moved


def read_values(job: xr.Dataset, name: str) -> Array:
    """The values of one variable of a pair or group."""
    values: Array = job[name].values
    return values
