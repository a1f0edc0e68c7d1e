"""Tiny packed datasets of every task but cloud removal, made by hand in the form of `sereno.pipeline.samples`.

Enters: a folder, how many patches each split has, a seed. Leaves: a manifest as `sereno pack` writes it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import TaskName
from sereno.pipeline.groups import to_group
from sereno.pipeline.patches import PatchRecord
from sereno.pipeline.samples import MASK_CHANNELS_OF, SAMPLES
from sereno.pipeline.scene import geobox_of, to_scene, with_grid
from sereno.pipeline.store import store_of, write_manifest

Arrays = dict[str, npt.NDArray[Any]]
BANDS = ("B1", "B2", "B3", "B4")


def draw_ground(count: int, bands: int, size_px: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Fields of different sizes with spectra of their own, reflectance: (count, bands, size, size)."""
    ground = np.zeros((count, bands, size_px, size_px))
    for field_px, contrast in ((16, 0.08), (4, 0.05), (1, 0.02)):
        cells = -(-size_px // field_px)
        classes = generator.integers(0, 4, (count, cells, cells)).repeat(field_px, 1).repeat(field_px, 2)[:, :size_px, :size_px]
        spectra = np.random.default_rng(field_px).normal(0, contrast, (4, bands))
        ground += spectra[classes].transpose(0, 3, 1, 2)
    return np.clip(0.25 + ground, 0.01, 0.95)


def average(image: npt.NDArray[np.float64], ratio: int) -> npt.NDArray[np.float64]:
    """Means of squares of pixels: (..., H, W) -> (..., H / ratio, W / ratio)."""
    *lead, rows, columns = image.shape
    return image.reshape(*lead, rows // ratio, ratio, columns // ratio, ratio).mean((-3, -1))


def to_stored(reflectance: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Reflectance as it is stored."""
    return np.round(reflectance * 10_000).astype(np.uint16)


def make_mask(task: TaskName, *shape: int) -> npt.NDArray[np.uint8]:
    """A mask under which everything is clear and valid; `shape` is that of the array less the channel: (count, ..., H, W)."""
    channels = MASK_CHANNELS_OF[task]
    mask = np.zeros((*shape[:-2], len(channels), *shape[-2:]), np.uint8)
    mask[..., channels.index("valid"), :, :] = 255
    return mask


def make_sharpening(count: int, generator: np.random.Generator, *, ratio: int = 4, size_px: int = 64) -> Arrays:
    """Ground seen by a panchromatic band and, coarser, by four."""
    ground = draw_ground(count, len(BANDS), size_px, generator)
    ms = average(ground, ratio)
    pan = ground.mean(axis=1, keepdims=True)
    return {"pan": to_stored(pan), "ms": to_stored(ms), "mask": make_mask("pansharpening", count, *ms.shape[-2:])}


def make_fusion(count: int, generator: np.random.Generator, *, ratio: int = 4, size_px: int = 32) -> Arrays:
    """Three dates: all land grows brighter, and some fields change between the first and the second."""
    before = draw_ground(count, len(BANDS), size_px, generator)
    changed = generator.integers(0, 4, (count, 1, size_px // 8, size_px // 8)).repeat(8, 2).repeat(8, 3) == 0
    middle = np.where(changed, 0.6 * before, before) + 0.02
    fine = np.stack([before, middle, middle + 0.03], axis=1)
    return {
        "fine": to_stored(fine),
        "coarse": to_stored(average(fine, ratio)),
        "mask": make_mask("spatiotemporal-fusion", count, 3, size_px, size_px),
    }


def make_snapshot(count: int, generator: np.random.Generator, *, size_px: int = 32) -> Arrays:
    """Cubes of four bands."""
    cube = draw_ground(count, len(BANDS), size_px, generator)
    return {"cube": to_stored(cube), "mask": make_mask("snapshot-reconstruction", count, size_px, size_px)}


def write_dataset(
    folder: Path, task: TaskName, splits: Mapping[str, Arrays], *, ratio: int = 1, channels: Mapping[str, tuple[str, ...]]
) -> Path:
    """The manifest of a packed dataset of these splits; statistics are those of the split `train`."""
    manifest = folder / "dataset.json"
    root, rows = zarr.create_group(store_of(manifest), zarr_format=3), []
    for split, arrays in splits.items():
        for spec in SAMPLES[task]:
            values = arrays[spec.name]
            root.require_group(split).create_array(spec.name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]))[:] = (
                values
            )
        rows += [to_row(split, position) for position in range(len(arrays["mask"]))]
    with (store_of(manifest) / "patches.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    statistics = {name: describe_values(splits["train"][name]) for name in channels}
    summary = {"task": task, "ratio": ratio, "channels": {name: list(names) for name, names in channels.items()}, "statistics": statistics}
    write_manifest(manifest, kind="dataset", summary=summary)
    return manifest


def describe_values(values: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Mean and deviation per band, reflectance."""
    axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 3)
    return {"mean": (values.mean(axes) / 1e4).tolist(), "std": (values.std(axes) / 1e4).tolist()}


def write_sharpening(folder: Path, counts: Mapping[str, int], *, ratio: int = 4, size_px: int = 64) -> Path:
    """A dataset of pan-sharpening."""
    generator = np.random.default_rng(0)
    splits = {split: make_sharpening(count, generator, ratio=ratio, size_px=size_px) for split, count in counts.items()}
    return write_dataset(folder, "pansharpening", splits, ratio=ratio, channels={"pan": ("PAN",), "ms": BANDS})


def write_fusion(folder: Path, counts: Mapping[str, int], *, ratio: int = 4, size_px: int = 32) -> Path:
    """A dataset of spatiotemporal fusion."""
    generator = np.random.default_rng(0)
    splits = {split: make_fusion(count, generator, ratio=ratio, size_px=size_px) for split, count in counts.items()}
    return write_dataset(folder, "spatiotemporal-fusion", splits, ratio=ratio, channels={"fine": BANDS, "coarse": BANDS})


def write_snapshot(folder: Path, counts: Mapping[str, int]) -> Path:
    """A dataset of snapshot reconstruction."""
    generator = np.random.default_rng(0)
    splits = {split: make_snapshot(count, generator) for split, count in counts.items()}
    return write_dataset(folder, "snapshot-reconstruction", splits, channels={"cube": BANDS})


def to_row(split: str, position: int) -> dict[str, Any]:
    """A record as it stands in `patches.csv`."""
    fixed = {
        "area": "west",
        "pair": "p",
        "block": f"b{position}",
        "crs": "EPSG:32632",
        "bounds_m": json.dumps([0, 0, 240, 240]),
        "row": 0,
        "col": 0,
    }
    shares = dict.fromkeys(("valid_share", "cloud_input_share", "cloud_target_share", "sar_gap_days", "clear_gap_days"), 0.5)
    return {"id": f"west/p/{split}{position}", "split": split, "position": position, **fixed, **shares}


def make_group(task: TaskName, *, ratio: int = 1, size_px: int = 96) -> tuple[xr.Dataset, xr.Dataset]:
    """A group of one patch as large as the scene, and its masks, under which everything is clear and known."""
    generator, grid = np.random.default_rng(1), GeoBox((size_px, size_px), Affine(10, 0, 498_400, 0, -10, 5_040_000), "EPSG:32632")
    makers = {"pansharpening": make_sharpening, "spatiotemporal-fusion": make_fusion, "snapshot-reconstruction": make_snapshot}
    arrays = makers[task](1, generator, **({"ratio": ratio} if ratio > 1 else {}), size_px=size_px)  # type: ignore[operator]
    if task == "spatiotemporal-fusion":
        images = {f"{kind}-{date + 1}": arrays[kind][0, date] for kind in ("fine", "coarse") for date in range(3)}
    else:
        images = {name: values[0] for name, values in arrays.items() if name != "mask"}
    scenes = {role: to_plain_scene(role, image, grid) for role, image in images.items()}
    provenance = {
        "task": task,
        "ratio": ratio,
        "area": "west",
        "pair": {"id": "g"},
        **{role: {"item": role, "time": "t"} for role in images},
    }
    masked = {"pansharpening": ("ms",), "spatiotemporal-fusion": ("fine-1", "fine-2", "fine-3"), "snapshot-reconstruction": ()}[task]
    variables: dict[str, Any] = {}
    for role in masked:
        shape = images[role].shape[1:]
        variables |= {f"{kind}_{role}": (("y", "x"), np.zeros(shape, np.uint8)) for kind in ("cloud", "shadow")}
        variables[f"known_{role}"] = (("y", "x"), np.ones(shape, bool))
    mask_grid = geobox_of(scenes[masked[0]]) if masked else grid
    masks = with_grid(xr.Dataset(variables, attrs={"provenance": provenance}), mask_grid)
    return to_group(scenes, grid, provenance), masks


def to_plain_scene(role: str, image: npt.NDArray[np.uint16], grid: GeoBox) -> xr.Dataset:
    """An image of the ground of `grid` as a valid scene."""
    step = grid.shape.y // image.shape[1]
    own = GeoBox(image.shape[1:], grid.transform * Affine.scale(step), grid.crs)
    bands = ("PAN",) if role == "pan" else BANDS
    return to_scene(
        image, np.ones(image.shape[1:], bool), bands=bands, geobox=own, provenance={"item": role, "sensor": "made", "time": "t"}
    )
