"""Laws of training: it learns, it goes on exactly where it was, and it says why it cannot."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from sereno.model import train
from sereno.model.checkpoint import load_checkpoint
from sereno.model.config import AfsstSettings, TrainSettings
from sereno.model.flow import hold_folder
from sereno.model.train import train_network
from sereno.pipeline.errors import ConfigError, MissingError, StoreError, TrainingError
from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.store import store_of, write_manifest

SETTINGS = TrainSettings(
    network=AfsstSettings(width=8, head_dim=4, levels=1, blocks=1, window_px=4, stem_px=2),
    steps=12,
    batch_size=2,
    crop_px=16,
    crops_per_patch=2,
    lr=5e-3,
    warmup_steps=2,
    validate_every=5,
    save_every=4,
    device="cpu",
)
SPECTRA = np.array([[500, 1500, 3000], [2500, 800, 400]], np.uint16)


def write_dataset(folder: Path, counts: dict[str, int], *, usable: int = 255) -> Path:
    """Two classes: SAR tells them apart, a cloud hides half of every input."""
    manifest, generator = folder / "dataset.json", np.random.default_rng(0)
    root, rows = zarr.create_group(store_of(manifest), zarr_format=3), []
    for split, count in counts.items():
        classes = generator.integers(0, 2, (count, 8, 8)).repeat(3, axis=1).repeat(3, axis=2)
        clear = SPECTRA[classes].transpose(0, 3, 1, 2) if count else np.zeros((0, 3, 24, 24), np.uint16)
        mask = np.zeros((count, len(MASK_CHANNELS), 24, 24), np.uint8)
        mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_sar")]] = 255
        mask[:, MASK_CHANNELS.index("valid_target")] = usable
        mask[:, 0, :, 12:] = 255
        cloudy = np.where(mask[:, :1] > 0, 8000, clear).astype(np.uint16)
        sar = np.stack([-500 - 1500 * classes, -1000 - 1500 * classes], axis=1).astype(np.int16)
        for name, values in {"sar": sar, "cloudy": cloudy, "clear": clear, "mask": mask}.items():
            root.require_group(split).create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]))[:] = values
        rows += [to_row(split, position) for position in range(count)]
    with (store_of(manifest) / "patches.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields))
        writer.writeheader()
        writer.writerows(rows)
    facts = {
        "bands": ["B02", "B03", "B04"],
        "sar_bands": ["VV", "VH"],
        "training_mean": [0.15, 0.115, 0.17],
        "training_std": [0.1, 0.04, 0.13],
    }
    write_manifest(manifest, kind="dataset", summary=facts)
    return manifest


def to_row(split: str, position: int) -> dict[str, Any]:
    fixed = {"area": "west", "pair": "p", "block": "b", "crs": "EPSG:32632", "bounds_m": "[0, 0, 240, 240]", "row": 0, "col": 0}
    shares = dict.fromkeys(("valid_share", "cloud_input_share", "cloud_target_share", "sar_gap_days", "clear_gap_days"), 0.5)
    return {"id": f"west/p/{split}{position}", "split": split, "position": position, **fixed, **shares}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 6, "val": 2, "test": 0})


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "c.safetensors"
    train_network(dataset, output, SETTINGS)
    return output


def read_history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def train_until_killed(dataset: Path, output: Path, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Leave the disk as a kill after that many steps would."""
    take = train._take_step

    def take_or_die(run: train.Run, *rest: Any) -> None:
        if run.step == after:
            raise KeyboardInterrupt
        take(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_take_step", take_or_die)
        with pytest.raises(KeyboardInterrupt):
            train_network(dataset, output, settings)


@pytest.mark.parametrize("after", [2, 6, 11])
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    killed = tmp_path / "c.safetensors"
    train_until_killed(dataset, killed, SETTINGS, monkeypatch, after=after)
    assert not killed.exists()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train_network(dataset, killed, SETTINGS)
    assert f"going on after step {after // 4 * 4}" in caplog.text or after < 4
    assert killed.read_bytes() == whole.read_bytes()
    assert (killed.parent / "history.csv").read_bytes() == (whole.parent / "history.csv").read_bytes()


def test_a_finished_run_leaves_checkpoint_history_and_state(whole: Path) -> None:
    assert sorted(file.name for file in whole.parent.glob("[!.]*")) == [
        "c.safetensors",
        "history.csv",
        "last.safetensors",
        "pictures",
        "state.previous.pt",
        "state.pt",
    ]
    rows = read_history(whole.parent)
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 12]
    assert all(row["val_loss"] and row["val_psnr_db"] for row in rows)
    assert all(row["total"] for row in rows[1:])


def test_a_finished_run_that_is_asked_for_again_is_not_trained_again(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again" / whole.name
    again.parent.mkdir()
    (again.parent / "state.pt").write_bytes((whole.parent / "state.pt").read_bytes())
    monkeypatch.setattr(train, "_take_step", lambda *_: pytest.fail("a step was taken"))
    train_network(dataset, again, SETTINGS)
    assert again.read_bytes() == whole.read_bytes()
    assert (again.parent / "history.csv").read_bytes() == (whole.parent / "history.csv").read_bytes()


def test_two_do_not_train_to_one_place(dataset: Path, tmp_path: Path) -> None:
    with hold_folder(tmp_path), pytest.raises(StoreError, match="is already at work in"):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)


def test_other_settings_start_anew(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, fresh = tmp_path / "other" / "c.safetensors", tmp_path / "fresh" / "c.safetensors"
    train_until_killed(dataset, other, SETTINGS, monkeypatch, after=9)
    changed = SETTINGS.model_copy(update={"lr": 1e-3})
    train_network(dataset, other, changed)
    assert "starting anew" in caplog.text
    train_network(dataset, fresh, changed)
    assert other.read_bytes() == fresh.read_bytes()


def test_a_state_of_other_code_is_not_gone_on_from(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(train, "fingerprint", lambda _: "before an edit")
        train_until_killed(dataset, killed, SETTINGS, monkeypatch, after=9)
    train_network(dataset, killed, SETTINGS)
    assert "starting anew" in caplog.text
    assert killed.read_bytes() == whole.read_bytes()


def test_training_learns_what_sar_shows_under_the_cloud(dataset: Path, tmp_path: Path) -> None:
    train_network(dataset, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"steps": 100, "validate_every": 50, "lr": 1e-2}))
    rows = read_history(tmp_path)
    assert float(rows[-1]["val_psnr_db"]) > float(rows[0]["val_psnr_db"]) + 4


def test_the_checkpoint_is_the_best_of_the_validations_and_says_which(dataset: Path, tmp_path: Path) -> None:
    train_network(dataset, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"lr": 0.3, "warmup_steps": 0}))
    rows = read_history(tmp_path)
    best = min(rows, key=lambda row: float(row["val_loss"]))
    meta = load_checkpoint(tmp_path / "c.safetensors", torch.device("cpu")).meta
    assert (meta.step, meta.best_loss, meta.best_psnr_db) == (int(best["step"]), float(best["val_loss"]), float(best["val_psnr_db"]))


def test_without_validation_the_last_weights_are_kept_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_dataset(tmp_path, {"train": 3, "val": 0, "test": 0})
    train_network(manifest, tmp_path / "c.safetensors", SETTINGS)
    assert "validation split is empty" in caplog.text
    meta = load_checkpoint(tmp_path / "c.safetensors", torch.device("cpu")).meta
    assert (meta.step, meta.best_loss) == (SETTINGS.steps, None)


def test_without_any_clear_target_nothing_is_learnt_and_nothing_breaks(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, {"train": 3, "val": 0, "test": 0}, usable=0)
    train_network(manifest, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"weight_decay": 0.0}))
    assert {float(row["total"]) for row in read_history(tmp_path)} == {0.0}
    (tmp_path / "more").mkdir()
    with pytest.raises(TrainingError, match="no validation patch has a clear target pixel"):
        train_network(write_dataset(tmp_path / "more", {"train": 3, "val": 1}, usable=0), tmp_path / "d.safetensors", SETTINGS)


def test_a_loss_that_is_no_number_stops_with_the_patches_named(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = train.compute_loss
    monkeypatch.setattr(
        train, "compute_loss", lambda *given, **more: {part: value * float("nan") for part, value in honest(*given, **more).items()}
    )
    with pytest.raises(TrainingError, match=r"not finite at step 1, patches west/p/train\d.*lower 'train\.lr'"):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)
    assert not (tmp_path / "c.safetensors").exists()


def test_what_cannot_be_trained_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.json does not exist"):
        train_network(tmp_path / "nowhere.json", tmp_path / "c", SETTINGS)
    with pytest.raises(TrainingError, match="'crop_px' 128 is larger than the patches"):
        train_network(dataset, tmp_path / "c", SETTINGS.model_copy(update={"crop_px": 128}))
    with pytest.raises(ConfigError, match="device 'toaster'"):
        train_network(dataset, tmp_path / "c", SETTINGS.model_copy(update={"device": "toaster"}))
