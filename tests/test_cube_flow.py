"""Hyperspectral cubes from a simulated world to the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from data_steps import run_steps

from sereno.pipeline.store import read_manifest, store_of

VALUES = {
    "task": "snapshot-reconstruction",
    "simulate": {"areas": {"a": {"epsg": 32632, "west_m": 498400, "south_m": 5040000, "size_px": 240, "satellites": "cube"}}},
    "query": {"source": "cubes"},
    "patch": {"size_px": 32, "buffer_px": 8},
}


def test_cubes_become_patches_of_all_their_bands(tmp_path: Path) -> None:
    lock, dataset = run_steps(tmp_path, VALUES, "simulate/cubes")
    assert lock.groups[0].scenes == {"cube": "a"}
    summary = read_manifest(dataset, kind="dataset")["summary"]
    assert (summary["task"], summary["ratio"], len(summary["bands"])) == ("snapshot-reconstruction", 1, 28)
    assert summary["bands"][:2] == ["450nm", "460nm"]
    assert summary["channels"]["mask"] == ["valid"]
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    assert (train["cube"].shape[1:], train["mask"].shape[1:]) == ((28, 32, 32), (1, 32, 32))
    assert summary["statistics"]["cube"]["mean"] == pytest.approx(train["cube"][:].mean(axis=(0, 2, 3)) / 10_000, rel=1e-9)
    stored = np.load(tmp_path / "simulate/cubes/a.npy").astype(float) / 65_535
    assert train["cube"][:].mean() / 10_000 == pytest.approx(stored.mean(), rel=0.3)
