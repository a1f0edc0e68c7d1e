"""A camera of one's own from a mask file to cubes of measured pictures: learnt with noise, scored, and used by the command line."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
import zarr
from killed_runs import train_until_killed
from rasterio.errors import NotGeoreferencedWarning
from scipy.io import savemat
from task_samples import make_snapshot, write_dataset

from sereno.model import train
from sereno.model.__main__ import main
from sereno.model.checkpoint import load_checkpoint
from sereno.model.config import EvaluateSettings, TrainSettings
from sereno.model.data import PatchFeed, open_split, read_facts
from sereno.model.evaluate import evaluate_checkpoint
from sereno.pipeline.sensors.cube import open_cube
from sereno.pipeline.store import store_of

WAVELENGTHS = (450.0, 512.5, 600.0, 700.0)
BANDS = ("450nm", "512.5nm", "600nm", "700nm")
MASK = np.random.default_rng(1).random((32, 32)).astype(np.float32)
"""Shares of light, not only 0 and 1; as large as a patch, twice as large as a crop."""
SETTINGS: dict[str, Any] = {
    "network": {"name": "s2snapshot", "width": 8, "head_dim": 4, "stages": 1, "blocks": 1, "window_px": 4, "base": "open",
                "consistency": 1},
    "steps": 12, "batch_size": 2, "crop_px": 16, "crops_per_patch": 2, "lr": 1e-2, "ema": 0.5, "warmup_steps": 1,
    "validate_every": 6, "save_every": 4, "device": "cpu",
}  # fmt: skip
SHIFT_PX = 3


class Studio:
    """A camera, its pictures and what was learnt for it."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        self.folder, self.mask, self.checkpoint = folder, folder / "mask.mat", folder / "whole/c.safetensors"
        savemat(self.mask, {"mask": MASK})
        splits = {split: make_snapshot(count, generator) for split, count in {"train": 4, "val": 2, "test": 3}.items()}
        self.dataset = write_dataset(folder, "snapshot-reconstruction", splits, channels={"cube": BANDS})
        camera = {"file": str(self.mask), "shift_px": SHIFT_PX, "electrons": 2000, "read_noise": 0.01}
        self.settings = TrainSettings.model_validate({**SETTINGS, "aperture": camera})
        train.train_network(self.dataset, self.checkpoint, self.settings)

    def read_cube(self, number: int) -> npt.NDArray[np.float64]:
        """A cube that was held out."""
        group: Any = zarr.open_group(store_of(self.dataset), path="test", mode="r")
        cube: npt.NDArray[np.float64] = group["cube"][number] / 10_000
        return cube

    def take_picture(self, number: int) -> npt.NDArray[np.float64]:
        """What the camera measures of it, band by band: the sum of shifted bands times 2 over their number."""
        cube = self.read_cube(number)
        picture = np.zeros((32, 32 + SHIFT_PX * 3))
        for band in range(4):
            picture[:, SHIFT_PX * band : SHIFT_PX * band + 32] += MASK * cube[band] * 2 / 4
        return picture


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["sereno", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in {0, None}, words


def test_a_cube_from_its_measured_picture_scores_what_evaluate_says_of_it(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_checkpoint(studio.dataset, studio.checkpoint, tmp_path / "scores.csv", EvaluateSettings(device="cpu"))
    with (tmp_path / "scores.csv").open() as file:
        said = [row for row in csv.DictReader(file) if row["method"] == "network"]
    studio.mask.rename(tmp_path / "gone.mat")  # the checkpoint is whole without it
    for number, name in enumerate(("y.npy", "y.mat", "y.png")):
        picture, truth = studio.take_picture(number), studio.read_cube(number)
        how: tuple[object, ...] = ()
        if name == "y.npy":
            np.save(tmp_path / name, picture)
        elif name == "y.mat":
            savemat(tmp_path / name, {"meas": picture})
        else:
            with (
                pytest.warns(NotGeoreferencedWarning),
                rasterio.open(tmp_path / name, "w", "PNG", *picture.shape[::-1], 1, dtype="uint16") as image,
            ):
                image.write(np.rint(picture * 40_000 + 500).astype(np.uint16), 1)
            how = ("--settings", '{"measurement_scale": 40500, "measurement_black": 500}')
        call(monkeypatch, "predict", studio.checkpoint, tmp_path / name, tmp_path / "cube.tif", *how)
        cube = open_cube(tmp_path / "cube.tif")
        assert cube.wavelengths_nm == WAVELENGTHS
        psnr = -10 * np.log10(np.mean((cube.values - truth) ** 2))
        assert psnr == pytest.approx(float(said[number]["psnr"]), abs=2e-3 if name == "y.png" else 2e-4)
    call(monkeypatch, "predict", studio.checkpoint, tmp_path / "y.mat", tmp_path / "other.tif", "--aperture", tmp_path / "gone.mat")
    record = json.loads((tmp_path / "other.json").read_text())
    assert record["aperture"] == {"file": "gone.mat", "sha256": record["aperture"]["sha256"], "shape": [32, 32], "shift_px": SHIFT_PX}
    (tmp_path / "gone.mat").rename(studio.mask)


def test_a_run_with_a_mask_and_noise_goes_on_where_it_was_to_the_byte(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = studio.folder / "killed/c.safetensors"
    train_until_killed(studio.dataset, killed, studio.settings, monkeypatch, after=5)
    train.train_network(studio.dataset, killed, studio.settings)
    for name in ("c.safetensors", "last.safetensors", "history.csv"):
        assert (killed.parent / name).read_bytes() == (studio.checkpoint.parent / name).read_bytes(), name


def test_another_mask_at_the_same_place_is_another_run(studio: Studio, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    held = load_checkpoint(studio.checkpoint, torch.device("cpu")).settings.aperture
    assert held is not None
    assert (held.file, held.pattern is not None) == ("mask.mat", True)
    settings = studio.settings.model_copy(update={"steps": 2})
    train.train_network(studio.dataset, tmp_path / "c.safetensors", settings)
    before = studio.mask.read_bytes()
    savemat(studio.mask, {"mask": MASK[::-1]})
    with caplog.at_level(logging.WARNING):
        train.train_network(studio.dataset, tmp_path / "c.safetensors", settings)
    studio.mask.write_bytes(before)
    assert "the saved state" in caplog.text
    assert "is of another run: 'train.aperture.pattern." in caplog.text


def test_neither_three_words_nor_an_aperture_for_a_pair_are_taken(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["a.tif"], ["a.json", "b.json", "c.tif", "--aperture", "m.npy"], ["a", "b", "c", "d.tif"]):
        monkeypatch.setattr(sys, "argv", ["sereno", "predict", str(studio.checkpoint), *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert "expected CHECKPOINT PAIR MASKS OUTPUT, or CHECKPOINT MEASUREMENT OUTPUT" in capsys.readouterr().err


def test_processes_that_share_a_batch_see_what_one_process_sees(studio: Studio) -> None:
    settings = train.load_aperture(studio.settings)
    feed = PatchFeed(open_split(studio.dataset, "train"), settings, read_facts(studio.dataset))
    whole, halves = feed.draw(3).batch, [feed.draw(3, (part, 2)).batch for part in range(2)]
    for place, seen in enumerate(whole.inputs):
        assert torch.equal(torch.cat([half.inputs[place] for half in halves]), seen)
    assert not torch.equal(whole.inputs[1][0], whole.inputs[1][1]), "each crop is seen through a piece of its own"
