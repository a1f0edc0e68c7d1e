"""Spatiotemporal fusion from a simulated world to the dataset: three clear dates, fine and averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from data_steps import run_steps

from sereno.pipeline.pairs import Lock
from sereno.pipeline.store import open_dataset, read_manifest, store_of

BANDS = ["B03", "B04", "B08"]
VALUES = {
    "task": "spatiotemporal-fusion",
    "simulate": {
        "cloudy_dates": 5,
        "first_day": "2021-06-08",
        "areas": {"a": {"epsg": 32632, "west_m": 499200, "south_m": 5040000, "size_px": 240}},
    },
    "query": {
        "areas": {"a": {"epsg": 32632, "bounds_m": [499200, 5040000, 501600, 5042400]}},
        "bands": BANDS,
        "coarse_m": 80,
        "clear_cover_pct": 8,
    },
    "ingest": {"bands": BANDS},
    "patch": {"size_px": 32, "buffer_px": 16, "max_target_cloud": 0.6},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lock, Path]:
    folder = tmp_path_factory.mktemp("fusion")
    return folder, *run_steps(folder, VALUES, "simulate")


def test_three_clear_dates_are_one_sample(made: tuple[Path, Lock, Path]) -> None:
    _, lock, dataset = made
    assert [sorted(group.scenes) for group in lock.groups] == [[f"{kind}-{n}" for kind in ("coarse", "fine") for n in (1, 2, 3)]]
    summary = read_manifest(dataset, kind="dataset")["summary"]
    assert (summary["task"], summary["ratio"], summary["dates"]) == ("spatiotemporal-fusion", 8, ["1", "2", "3"])
    assert summary["channels"] == {"fine": BANDS, "coarse": BANDS, "mask": ["cloud", "shadow", "valid"]}
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    shapes = {name: train[name].shape[1:] for name in ("fine", "coarse", "mask")}
    assert shapes == {"fine": (3, 3, 32, 32), "coarse": (3, 3, 4, 4), "mask": (3, 3, 32, 32)}
    assert summary["areas"]["a"]["first"] == lock.scene(lock.groups[0].scenes["fine-2"]).time


def test_coarse_images_are_means_of_the_fine_ones_of_their_date(made: tuple[Path, Lock, Path]) -> None:
    train: Any = zarr.open_group(store_of(made[2]), path="train", mode="r")
    fine, coarse, valid = train["fine"][:].astype(float), train["coarse"][:], train["mask"][:, :, 2] > 0
    means = fine.reshape(*fine.shape[:3], 4, 8, 4, 8).mean(axis=(4, 6))
    whole = valid.reshape(*valid.shape[:2], 4, 8, 4, 8).all(axis=(3, 5))
    assert whole.mean() > 0.9
    assert np.abs(means - coarse)[np.broadcast_to(whole[:, :, None], coarse.shape)].max() <= 0.5


def test_the_land_changes_between_the_dates_more_than_noise(made: tuple[Path, Lock, Path]) -> None:
    folder, lock, _ = made
    group = open_dataset(folder / f"align/{lock.groups[0].id}.json", kind="group")
    first, middle, last = (group[f"fine-{n}"].sel(band="B08").values.astype(float) for n in (1, 2, 3))
    straight = (first + last) / 2
    assert np.sqrt(np.mean((middle - straight) ** 2)) > 100  # a hundredth of reflectance; the sensor's noise is less than a half of that
