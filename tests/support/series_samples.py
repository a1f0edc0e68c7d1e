"""Tiny datasets of cloud removal with the clear dates around every input, made by hand in the form of `sereno.pipeline.samples`.

The ground changes evenly in time: what lies between the dates is known exactly, if their days are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.store import store_of, write_manifest

Arrays = dict[str, npt.NDArray[Any]]
BANDS, SAR = ("B02", "B03", "B04"), ("VV", "VH")
GAPS = {"before": -15.0, "after": 5.0}
"""Days of the dates from the input."""
SHARE = 0.75
"""How far on the way from the date before to the one after the input lies."""
SPECTRA = np.array([[500, 1500, 3000], [2500, 800, 400]])
CLOUD = 8000
"""Stored reflectance under a cloud."""


def make_series(count: int, generator: np.random.Generator, *, size_px: int = 24) -> Arrays:
    """Two classes of ground that change between the dates: SAR tells them apart, a cloud hides the right half of every input."""
    cells = -(-size_px // 3)
    classes = generator.integers(0, 2, (count, cells, cells)).repeat(3, 1).repeat(3, 2)[:, :size_px, :size_px]
    before = SPECTRA[classes].transpose(0, 3, 1, 2)
    after = before + 400 * (1 + classes[:, None])
    clear = before + (SHARE * (after - before)).astype(int)
    mask = np.zeros((count, len(MASK_CHANNELS), size_px, size_px), np.uint8)
    mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_target", "valid_sar")]] = 255
    mask[:, MASK_CHANNELS.index("cloud_input"), :, size_px // 2 :] = 255
    covered = mask[:, MASK_CHANNELS.index("cloud_input")][:, None] > 0
    sar = np.stack([-500 - 1500 * classes, -1000 - 1500 * classes], axis=1)
    return {
        "sar": sar.astype(np.int16),
        "cloudy": np.where(covered, CLOUD, clear).astype(np.uint16),
        "clear": clear.astype(np.uint16),
        "around": np.stack([before, after], axis=1).astype(np.uint16),
        "around_clear": np.full((count, 2, size_px, size_px), 255, np.uint8),
        "mask": mask,
    }


def write_series(folder: Path, counts: Mapping[str, int], *, gaps: Mapping[str, float] = GAPS) -> Path:
    """The manifest of a packed dataset of such series; other `gaps` than the true ones make what lies between the dates wrong."""
    manifest, generator = folder / "dataset.json", np.random.default_rng(0)
    root, rows = zarr.create_group(store_of(manifest), zarr_format=3), []
    for split, count in counts.items():
        group = root.require_group(split)
        for name, values in make_series(count, generator).items():
            group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]))[:] = values
        rows += [to_row(split, position, gaps) for position in range(count)]
    with (store_of(manifest) / "patches.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields))
        writer.writeheader()
        writer.writerows(rows)
    summary = {
        "bands": list(BANDS),
        "sar_bands": list(SAR),
        "training_mean": [0.15, 0.12, 0.17],
        "training_std": [0.1, 0.05, 0.13],
        "channels": {"sar": list(SAR), "cloudy": list(BANDS), "clear": list(BANDS), "around": list(BANDS)},
    }
    write_manifest(manifest, kind="dataset", summary=summary)
    return manifest


def to_row(split: str, position: int, gaps: Mapping[str, float]) -> dict[str, Any]:
    """A record as it stands in `patches.csv`."""
    where = {"area": "west", "pair": "p", "block": f"b{position}", "crs": "EPSG:32632", "bounds_m": "[0, 0, 240, 240]", "row": 0, "col": 0}
    shares = dict.fromkeys(("valid_share", "cloud_input_share", "cloud_target_share", "sar_gap_days", "clear_gap_days"), 0.5)
    stated = {"gaps_days": json.dumps(gaps)}
    return {"id": f"west/p/{split}{position}", "split": split, "position": position, **where, **shares, **stated}
