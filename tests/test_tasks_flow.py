"""Laws of the other tasks from dataset to scores: they learn, go on where they were, and refuse what does not fit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from killed_runs import train_until_killed
from safetensors.torch import load_file
from task_samples import write_fusion, write_sharpening, write_snapshot

from sereno.model import train
from sereno.model.adversarial import create_critics
from sereno.model.checkpoint import _read_state, load_checkpoint
from sereno.model.config import AfsstSettings, EvaluateSettings, TrainSettings
from sereno.model.data import read_facts
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.tasks import TASKS
from sereno.model.train import train_network
from sereno.pipeline.errors import ConfigError, DataError
from sereno.pipeline.store import read_manifest, store_of, write_manifest

COUNTS = {"train": 4, "val": 2, "test": 3}
TINY: dict[str, Any] = {
    "steps": 12, "batch_size": 2, "crops_per_patch": 2, "lr": 1e-2, "ema": 0.5, "warmup_steps": 1,
    "validate_every": 6, "save_every": 4, "device": "cpu",
}  # fmt: skip
SHARPENING = TrainSettings.model_validate({**TINY, "crop_px": 32, "network": {"name": "sfiin", "width": 4, "blocks": 1}})
FUSION = TrainSettings.model_validate(
    {
        **TINY,
        "crop_px": 16,
        "network": {"name": "stfgan", "width": 4, "coarse_blocks": 1, "fine_blocks": 1},
        "adversarial": {"warmup_steps": 3, "weight": 0.01, "lr": 1e-3},
    }
)
CPU = EvaluateSettings(device="cpu", examples=2)


@pytest.fixture(scope="module")
def sharpening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharpening(tmp_path_factory.mktemp("sharpening"), COUNTS)


def read_history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def check_going_on(dataset: Path, folder: Path, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train twice, once killed on the way; the checkpoint of the other."""
    whole, killed = folder / "whole/c.safetensors", folder / "killed/c.safetensors"
    train_network(dataset, whole, settings)
    train_until_killed(dataset, killed, settings, monkeypatch, after=5)
    assert (killed.parent / "state.pt").is_file()
    train_network(dataset, killed, settings)
    for name in ("c.safetensors", "last.safetensors", "history.csv"):
        assert (killed.parent / name).read_bytes() == (whole.parent / name).read_bytes(), name
    return whole


def check_scores(dataset: Path, checkpoint: Path) -> dict[str, Any]:
    """Score a checkpoint; its summary."""
    output = checkpoint.parent / "evaluate/scores.csv"
    evaluate_checkpoint(dataset, checkpoint, output, CPU)
    summary: dict[str, Any] = json.loads(output.with_name("summary.json").read_text())
    scoring = TASKS[load_checkpoint(checkpoint, train.choose_device("cpu")).meta.task].scoring
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNTS["test"] * len(scoring.methods) * len(scoring.regions)
    assert set(scoring.metrics) < rows[0].keys()
    assert summary["methods"] == dict(scoring.methods)
    assert set(summary["network_minus"]) == {*scoring.baselines, "region", "note"}
    return summary


def test_sharpening_is_learnt_goes_on_where_it_was_and_is_scored(sharpening: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = check_going_on(sharpening, tmp_path, SHARPENING, monkeypatch)
    losses = [float(row["val_loss"]) for row in read_history(checkpoint.parent) if row["val_loss"]]
    assert losses[-1] < losses[0]
    summary = check_scores(sharpening, checkpoint)
    assert summary["checkpoint"]["task"] == "pansharpening"
    assert summary["checkpoint"]["guide_bands"] == ["PAN"]
    reached = {method: summary["scores"][method]["reduced"]["psnr"]["mean"] for method in summary["methods"]}
    assert reached["network"] > reached["bicubic"] > 15
    assert summary["scores"]["network"]["full"]["qnr"]["n"] == COUNTS["test"]


def test_a_batch_of_samples_may_be_cut_up(sharpening: Path, tmp_path: Path) -> None:
    losses = []
    for pieces in (1, 2):
        settings = SHARPENING.model_copy(update={"accumulate": pieces, "steps": 4})
        train_network(sharpening, tmp_path / f"{pieces}/c.safetensors", settings)
        losses.append([float(row["total"]) for row in read_history(tmp_path / str(pieces)) if row["total"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_network_of_another_task_is_refused_before_training_and_before_scoring(sharpening: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'afsst' does not serve the task 'pansharpening'; allowed are"):
        train_network(sharpening, tmp_path / "c.safetensors", SHARPENING.model_copy(update={"network": AfsstSettings()}))
    other = write_sharpening(tmp_path / "other", COUNTS, ratio=2)
    train_network(sharpening, tmp_path / "c.safetensors", SHARPENING.model_copy(update={"steps": 1}))
    with pytest.raises(DataError, match=r"task pansharpening at ratio 2 .* trained for pansharpening at ratio 4"):
        evaluate_checkpoint(other, tmp_path / "c.safetensors", tmp_path / "scores.csv", CPU)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fusion(tmp_path_factory.mktemp("fusion"), COUNTS, ratio=16)


@pytest.mark.parametrize("changes", [{}, {"objective": "wgan-gp", "critic_steps": 2}])
def test_a_contest_goes_on_where_it_was(fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    assert FUSION.adversarial is not None
    settings = FUSION.model_copy(update={"adversarial": FUSION.adversarial.model_copy(update=changes)})
    checkpoint = check_going_on(fusion, tmp_path, settings, monkeypatch)
    (row,) = [row for row in read_history(checkpoint.parent) if row["step"] == "12"]
    assert float(row["fooling"]) != 0
    assert float(row["critic"]) != 0
    assert (float(row["penalty"]) > 0) == ("objective" in changes)


def test_fusion_learnt_against_critics_is_scored(fusion: Path, tmp_path: Path) -> None:
    train_network(fusion, tmp_path / "c.safetensors", FUSION.model_copy(update={"precision": "bf16"}))
    summary = check_scores(fusion, tmp_path / "c.safetensors")
    assert summary["scores"]["network"]["changed"]["rmse"]["n"] == COUNTS["test"]


def test_critics_rest_during_the_warm_up_and_are_clipped_after_it(fusion: Path, tmp_path: Path) -> None:
    assert FUSION.adversarial is not None
    facts, critics = read_facts(fusion), []
    for steps in (2, 6):
        train_network(fusion, tmp_path / f"{steps}/c.safetensors", FUSION.model_copy(update={"steps": steps}))
        critics.append(_read_state(tmp_path / f"{steps}/state.pt")["state"]["critics"])
    rested, moved = (read_history(tmp_path / str(steps))[-1] for steps in (2, 6))
    assert float(rested["critic"]) == float(rested["fooling"]) == 0
    assert float(moved["critic"]) != 0
    fresh = create_critics(FUSION, facts.mean, facts.std).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in critics[0].items())
    kernels = [tensor for name, tensor in critics[1].items() if tensor.ndim == 4]
    assert kernels
    assert max(kernel.abs().max().item() for kernel in kernels) <= FUSION.adversarial.clip


@pytest.mark.parametrize("objective", ["wgan-clip", "wgan-gp"])
def test_a_contest_cut_into_pieces_is_the_same(fusion: Path, tmp_path: Path, objective: str) -> None:
    assert FUSION.adversarial is not None
    adversarial, rows = FUSION.adversarial.model_copy(update={"objective": objective}), []
    for pieces in (1, 2):
        settings = FUSION.model_copy(update={"adversarial": adversarial, "accumulate": pieces, "steps": 6})
        train_network(fusion, tmp_path / f"{pieces}/c.safetensors", settings)
        columns = ("total", "first", "fooling", "critic", "margin", "penalty")
        rows.append([float(read_history(tmp_path / str(pieces))[-1][name]) for name in columns])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


STFNET = TrainSettings.model_validate({**TINY, "crop_px": 16, "network": {"name": "stfnet", "width": 4}})


def test_stfnet_goes_on_where_it_was_and_is_scored(fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = check_going_on(fusion, tmp_path, STFNET, monkeypatch)
    spans = [float(row["span"]) for row in read_history(checkpoint.parent) if row["span"]]
    assert len(spans) > 1
    check_scores(fusion, checkpoint)


def test_stfnet_never_looks_at_the_middle_image_but_to_be_validated(fusion: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(fusion.parent, tmp_path / "other")) / fusion.name
    for split in ("train", "val"):
        images = zarr.open_group(store_of(other), mode="r+")[f"{split}/fine"]
        assert isinstance(images, zarr.Array)
        images[:, 1] = np.random.default_rng(0).integers(1, 9_000, images[:, 1].shape).astype(np.uint16)
    write_manifest(other, kind="dataset", summary=read_manifest(other, kind="dataset")["summary"])
    weights, losses = [], []
    for number, dataset in enumerate((fusion, other)):
        train_network(dataset, tmp_path / f"{number}/c.safetensors", STFNET)
        weights.append(load_file(tmp_path / f"{number}/last.safetensors"))
        losses.append([row["val_loss"] for row in read_history(tmp_path / str(number)) if row["val_loss"]])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(one != two for one, two in zip(*losses, strict=True))


def test_snapshots_are_learnt_with_the_head_for_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_snapshot(tmp_path / "data", COUNTS)
    network = {
        "name": "s2snapshot",
        "width": 8,
        "head_dim": 4,
        "stages": 1,
        "blocks": 1,
        "window_px": 4,
        "encoding_steps": 6,
        "base": "open",
    }
    settings = TrainSettings.model_validate({**TINY, "crop_px": 16, "network": network})
    checkpoint = check_going_on(dataset, tmp_path, settings, monkeypatch)
    before, after = ([float(row["aware"]) for row in read_history(checkpoint.parent) if row["step"] == step] for step in ("6", "12"))
    assert before == [0]
    assert after[0] > 0
    check_scores(dataset, checkpoint)


@pytest.mark.slow
def test_two_processes_teach_network_and_critics_the_same_as_one(fusion: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one/c.safetensors", tmp_path / "two/c.safetensors"
    settings = FUSION.model_copy(update={"steps": 6, "lr": 1e-3})
    train_network(fusion, one, settings)
    shared = settings.model_copy(update={"processes": 2}).to_json()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sereno.model"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", str(fusion), str(two), "--settings", shared],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(path.with_name("last.safetensors")) for path in (one, two))
    assert max((ours[name].float() - theirs[name].float()).abs().max().item() for name in ours) < 1e-4
    rows = [read_history(path.parent)[-1] for path in (one, two)]
    for name in ("total", "first", "fooling", "critic", "margin"):
        assert float(rows[0][name]) == pytest.approx(float(rows[1][name]), rel=1e-3), name
    critics = [_read_state(path.with_name("state.pt"))["state"]["critics"] for path in (one, two)]
    assert max((critics[0][name] - critics[1][name]).abs().max().item() for name in critics[0]) < 1e-3
