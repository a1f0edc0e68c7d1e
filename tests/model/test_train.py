"""Laws of training: it learns, it goes on exactly where it was, and it says why it cannot."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from killed_runs import train_until_killed
from safetensors.torch import load_file
from series_samples import write_series
from torch import Tensor, nn

from sereno.model import lessons, train
from sereno.model.checkpoint import load_checkpoint
from sereno.model.config import AdversarialSettings, AfsstSettings, LossSettings, S2TransformerSettings, TrainSettings, UnetSettings
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
    assert (f"going on after step {after // 4 * 4}" in caplog.text) == (after >= 4), "states are saved after every fourth step"
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


LEARNED = {"weighting": "learned", "encoding_steps": 3}
STAGED = S2TransformerSettings(
    name="s2transformer", width=8, head_dim=4, stages=2, blocks=1, window_px=4, stem_px=2, drop_path=0.5, pins=True
)
KINDS: dict[str, dict[str, Any]] = {
    "learned weighting, Adam, steps": {"loss": LossSettings(**LEARNED), "optimiser": "adam", "schedule": "step", "step_every": 5},
    "chance and stages": {"network": STAGED, "loss": LossSettings(stages=0.5)},
    "fp16, pieces": {"precision": "fp16", "accumulate": 2},
    "bf16, no average": {"precision": "bf16", "ema": 0.0, "schedule": "constant"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_goes_on_exactly(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    settings = SETTINGS.model_copy(update={**KINDS[kind], "steps": 8})
    whole, killed = tmp_path / "whole/c.safetensors", tmp_path / "killed/c.safetensors"
    train_network(dataset, whole, settings)
    train_until_killed(dataset, killed, settings, monkeypatch, after=7)
    monkeypatch.setattr(train, "_train_encoder", lambda *_: pytest.fail("the mask encoder is learnt once"))
    train_network(dataset, killed, settings)
    for name in ("c.safetensors", "last.safetensors", "history.csv"):
        assert killed.with_name(name).read_bytes() == whole.with_name(name).read_bytes()
    rows = read_history(tmp_path / "whole")
    assert dtypes_of(whole) == {torch.float32}
    assert all(math.isfinite(float(row["total"])) and float(row["grad_norm"]) > 0 for row in rows[1:])
    assert ("stages" in rows[1]) == (kind == "chance and stages")


def dtypes_of(checkpoint: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(checkpoint).values() if tensor.is_floating_point()}


def weights_of(checkpoint: Path) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(checkpoint).items())])


def apart(first: Path, second: Path) -> float:
    """Largest difference of two checkpoints' weights, for weights of about one."""
    return (weights_of(first) - weights_of(second)).abs().max().item()


def assert_same_history(first: Path, second: Path, *, within: float) -> None:
    for ours, theirs in zip(read_history(first), read_history(second), strict=True):
        for name, value in ours.items():
            assert (value == "") == (theirs[name] == "")
            assert not value or float(value) == pytest.approx(float(theirs[name]), rel=within), name


SHARED = SETTINGS.model_copy(update={"batch_size": 4, "steps": 6, "lr": 1e-3, "loss": LossSettings(carl=0.1, amplitude=0.1, **LEARNED)})
"""Batches that can be cut, with a loss whose parts are divided by many things."""


@pytest.fixture(scope="module")
def uncut(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uncut") / "c.safetensors"
    train_network(dataset, output, SHARED)
    return output


@pytest.mark.parametrize("pieces", [2, 4])
def test_a_batch_in_pieces_teaches_the_same(dataset: Path, uncut: Path, tmp_path: Path, pieces: int) -> None:
    train_network(dataset, tmp_path / "c.safetensors", SHARED.model_copy(update={"accumulate": pieces}))
    assert apart(tmp_path / "last.safetensors", uncut.with_name("last.safetensors")) < 1e-6
    assert_same_history(tmp_path, uncut.parent, within=1e-5)


DATED = SHARED.model_copy(
    update={"network": SETTINGS.network.model_copy(update={"base": "dates"}), "loss": LossSettings(carl=0.1, temporal=0.5)}
)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose inputs have clear dates around them; what lies between these is not the target, so that there is much to learn."""
    return write_series(tmp_path_factory.mktemp("series"), {"train": 6, "val": 2, "test": 0}, gaps={"before": -5.0, "after": 15.0})


def test_a_series_with_temporal_consistency_goes_on_exactly_and_in_pieces_alike(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, pieces = (tmp_path / name / "c.safetensors" for name in ("whole", "killed", "pieces"))
    train_network(series, whole, DATED)
    train_until_killed(series, killed, DATED, monkeypatch, after=5)
    train_network(series, killed, DATED)
    for name in ("c.safetensors", "last.safetensors", "history.csv"):
        assert killed.with_name(name).read_bytes() == whole.with_name(name).read_bytes()
    train_network(series, pieces, DATED.model_copy(update={"accumulate": 2}))
    assert apart(pieces.with_name("last.safetensors"), whole.with_name("last.safetensors")) < 1e-6
    assert_same_history(pieces.parent, whole.parent, within=1e-5)
    rows = read_history(whole.parent)
    assert all(float(rows[-1][name]) > 0 for name in ("sides", "consistency"))
    assert load_checkpoint(whole, torch.device("cpu")).meta.signature.series


def test_two_processes_teach_agreement_as_one_does(series: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one/c.safetensors", tmp_path / "two/c.safetensors"
    train_network(series, one, DATED)
    both = start_processes(series, two, DATED.model_copy(update={"processes": 2, "accumulate": 2}))
    said, _ = both.communicate(timeout=300)
    assert both.returncode == 0, said
    assert apart(two.with_name("last.safetensors"), one.with_name("last.safetensors")) < 1e-5
    assert_same_history(two.parent, one.parent, within=1e-5)


def test_a_dataset_without_a_series_is_refused_by_who_looks_at_dates(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"looks at clear images before and after .*`pipeline\.query\.series`"):
        train_network(dataset, tmp_path / "c.safetensors", DATED)


def start_processes(dataset: Path, output: Path, settings: TrainSettings) -> subprocess.Popen[str]:
    """As a person would: torchrun with the command line."""
    arguments = ("train", str(dataset), str(output), "--settings", settings.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sereno.model", *arguments]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_teach_the_same_as_one(tmp_path: Path) -> None:
    """Nine validation patches in three batches: one process scores two of them, the other one; pieces besides."""
    manifest = write_dataset(tmp_path, {"train": 6, "val": 9})
    one, two = tmp_path / "one/c.safetensors", tmp_path / "two/c.safetensors"
    train_network(manifest, one, SHARED)
    both = start_processes(manifest, two, SHARED.model_copy(update={"processes": 2, "accumulate": 2}))
    said, _ = both.communicate(timeout=300)
    assert both.returncode == 0, said
    assert said.count("step 6: validation loss") == 1, "only the first process talks"
    assert apart(two.with_name("last.safetensors"), one.with_name("last.safetensors")) < 1e-5
    assert apart(two, one) < 1e-5
    assert_same_history(two.parent, one.parent, within=1e-5)
    scores = [[float(row["val_loss"]) for row in read_history(path.parent)] for path in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_together(dataset: Path, tmp_path: Path) -> None:
    settings = SHARED.model_copy(update={"processes": 2, "steps": 3000, "save_every": 5, "validate_every": 1000})
    both = start_processes(dataset, tmp_path / "c.safetensors", settings)
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    both.send_signal(signal.SIGTERM)
    said, _ = both.communicate(timeout=120)
    stops = re.findall(r"stopped after step (\d+) of 3000", said)
    assert len(stops) == 2, said
    assert stops[0] == stops[1]
    assert "Traceback" not in said.partition("sereno train")[0]
    assert torch.load(io.BytesIO((tmp_path / "state.pt").read_bytes().partition(b"\n")[2]))["state"]["step"] == int(stops[0])
    again = start_processes(dataset, tmp_path / "c.safetensors", settings)
    for line in again.stdout or ():
        if "going on after step" in line:
            assert int(line.split("after step ")[1].split(":")[0]) == int(stops[0])
            break
    else:
        pytest.fail("the second start did not go on")
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler, which warns of its own parts
@pytest.mark.parametrize("network", [SETTINGS.network, UnetSettings(name="unet", width=8, levels=2)], ids=lambda network: network.name)
def test_a_compiled_network_learns_the_same(dataset: Path, tmp_path: Path, network: Any) -> None:
    settings = SHARED.model_copy(update={"network": network, "steps": 3})
    for name, compiled in (("eager", False), ("compiled", True)):
        train_network(dataset, tmp_path / name / "c.safetensors", settings.model_copy(update={"compile": compiled}))
    assert apart(tmp_path / "eager/last.safetensors", tmp_path / "compiled/last.safetensors") < 1e-4


@pytest.mark.parametrize("harm", ["cut short", "flipped"])
def test_beside_a_damaged_state_training_goes_on_from_the_one_before(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    train_until_killed(dataset, tmp_path / "c.safetensors", SETTINGS, monkeypatch, after=9)
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content[:-1] if harm == "cut short" else content)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)
    assert "state.pt cannot be read" in caplog.text
    assert f"going on from the state before it, {tmp_path}/state.previous.pt" in caplog.text
    assert "going on after step 4" in caplog.text
    assert (tmp_path / "c.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_does(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    take = train._take_step

    def take_and_ask(run: train.Run, *rest: Any) -> None:
        if run.step == 6:
            os.kill(os.getpid(), number)
        take(run, *rest)

    before = signal.signal(number, signal.default_int_handler)
    try:
        monkeypatch.setattr(train, "_take_step", take_and_ask)
        with pytest.raises(train.StoppedError) as stopped:
            train_network(dataset, tmp_path / "c.safetensors", SETTINGS)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert str(stopped.value) == f"stopped after step 7 of 12, saved in {tmp_path}/state.pt; the same command goes on from there"
    assert stopped.value.exit_code == code
    assert load_checkpoint(tmp_path / "last.safetensors", torch.device("cpu")).meta.step == 7
    assert not (tmp_path / "c.safetensors").exists()
    monkeypatch.setattr(
        train, "_take_step", lambda run, *rest: take(run, *rest) if run.step >= 7 else pytest.fail("a step was taken twice")
    )
    train_network(dataset, tmp_path / "c.safetensors", SETTINGS)
    assert (tmp_path / "c.safetensors").read_bytes() == whole.read_bytes()
    assert (tmp_path / "history.csv").read_bytes() == (whole.parent / "history.csv").read_bytes()


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
    train_network(manifest, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"patience": 2}))
    assert "validation split is empty" in caplog.text
    assert "'train.patience' has no effect: there is no early stopping" in caplog.text
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
    honest = lessons.compute_loss
    monkeypatch.setattr(
        lessons, "compute_loss", lambda *given, **more: {part: value * float("nan") for part, value in honest(*given, **more).items()}
    )
    with pytest.raises(TrainingError, match=r"not finite at step 1, patches west/p/train\d.*lower 'train\.lr' or look at these patches$"):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)
    assert not list(tmp_path.glob("*.safetensors")), "before the first step there is nothing to keep"


def break_loss(monkeypatch: pytest.MonkeyPatch, *, factor: Callable[[int], float]) -> None:
    """Multiply the loss of the n-th call by `factor(n)`; its gradient follows."""
    honest, calls = lessons.compute_loss, itertools.count()

    def broken(*given: Any, **more: Any) -> dict[str, torch.Tensor]:
        wrong = factor(next(calls))
        return {part: value * wrong for part, value in honest(*given, **more).items()}

    monkeypatch.setattr(lessons, "compute_loss", broken)


NO_VALIDATION = {"train": 6, "val": 0}


def test_a_gradient_that_is_no_number_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_dataset(tmp_path, NO_VALIDATION)
    break_loss(monkeypatch, factor=lambda call: math.inf if call == 9 else 1.0)
    with pytest.raises(TrainingError, match=r"not finite at step 10, patches west/p/train.*; the weights so far are .*'train.start_from'"):
        train_network(manifest, tmp_path / "c.safetensors", SETTINGS)
    state = torch.load(io.BytesIO((tmp_path / "state.pt").read_bytes().partition(b"\n")[2]))["state"]
    assert state["step"] == 8
    assert all(tensor.isfinite().all() for tensor in state["network"].values())
    assert load_checkpoint(tmp_path / "last.safetensors", torch.device("cpu")).meta.step == 9
    assert weights_of(tmp_path / "last.safetensors").isfinite().all()
    assert (tmp_path / "history.csv").exists()
    assert not (tmp_path / "c.safetensors").exists()


def test_what_a_fault_leaves_is_what_a_run_of_the_steps_before_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, settings = write_dataset(tmp_path, NO_VALIDATION), SETTINGS.model_copy(update={"schedule": "constant"})
    train_network(manifest, tmp_path / "whole/c.safetensors", settings.model_copy(update={"steps": 4}))
    learn, calls = train._learn_piece, itertools.count()
    monkeypatch.setattr(train, "_learn_piece", lambda *given: raise_shortage_of_a_gpu() if next(calls) == 4 else learn(*given))
    with pytest.raises(TrainingError, match=rf"out of memory .*; the weights so far are in {tmp_path}/last\.safetensors"):
        train_network(manifest, tmp_path / "c.safetensors", settings)
    assert apart(tmp_path / "last.safetensors", tmp_path / "whole/last.safetensors") == 0


def test_a_signal_while_the_mask_encoder_learns_stops_before_anything_is_saved(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = train.compute_encoding_loss

    def ask(*given: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*given)

    monkeypatch.setattr(train, "compute_encoding_loss", ask)
    settings = SETTINGS.model_copy(update={"loss": LossSettings(**LEARNED)})
    with pytest.raises(train.StoppedError, match=r"while the mask encoder was learnt.*nothing was saved yet") as stopped:
        train_network(dataset, tmp_path / "c.safetensors", settings)
    assert stopped.value.exit_code == 143
    assert not list(tmp_path.glob("[!.]*"))


def test_training_that_does_not_help_says_so(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_network(dataset, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"lr": 3.0, "warmup_steps": 0, "divergence": None}))
    assert load_checkpoint(tmp_path / "c.safetensors", torch.device("cpu")).meta.step == 0
    assert "training did not improve on the weights it started from, which are kept (step 0): lower 'train.lr'" in caplog.text


def test_a_fault_names_the_patches_of_its_own_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_dataset(tmp_path, NO_VALIDATION)
    seen: list[tuple[int, ...]] = []
    take = train._take_step
    monkeypatch.setattr(train, "_take_step", lambda run, draw, *rest: (seen.append(draw.patches), take(run, draw, *rest)))
    break_loss(monkeypatch, factor=lambda call: math.nan if call == 4 else 1.0)
    with pytest.raises(TrainingError) as fault:
        train_network(manifest, tmp_path / "c.safetensors", SETTINGS)
    assert re.findall(r"train(\d)", str(fault.value)) == [str(place) for place in sorted(set(seen[4]))]


def test_fp16_leaves_out_single_overflows_and_stops_after_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, settings = write_dataset(tmp_path, NO_VALIDATION), SETTINGS.model_copy(update={"precision": "fp16", "weight_decay": 0.0})
    with monkeypatch.context() as patch:
        break_loss(patch, factor=lambda call: math.inf if call in (0, 3, 4) else 1.0)
        train_network(manifest, tmp_path / "some/c.safetensors", settings)
    assert math.isfinite(float(read_history(tmp_path / "some")[-1]["total"]))
    assert weights_of(tmp_path / "some/last.safetensors").isfinite().all()
    break_loss(monkeypatch, factor=lambda _: math.inf)
    with pytest.raises(TrainingError, match=r"fp16 overflows 16 times in a row at step 16, patches .* set 'train\.precision' to bf16"):
        train_network(manifest, tmp_path / "all/c.safetensors", settings.model_copy(update={"steps": 20}))


def test_a_loss_that_grows_without_end_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, settings = write_dataset(tmp_path, NO_VALIDATION), SETTINGS.model_copy(update={"steps": 60, "lr": 1e-5})
    break_loss(monkeypatch, factor=lambda call: 1.0 if call < 30 else 1000.0)
    with pytest.raises(TrainingError, match=r"the loss has diverged: \d.* after 0\.\d+ at step 31, patches .*raise 'train\.divergence'"):
        train_network(manifest, tmp_path / "c.safetensors", settings)
    train_network(manifest, tmp_path / "d.safetensors", settings.model_copy(update={"divergence": None, "steps": 32}))


def raise_real_shortage() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def raise_shortage_of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("run_out", [raise_real_shortage, raise_shortage_of_a_gpu])
def test_where_memory_does_not_suffice_it_is_said_what_to_try(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None]
) -> None:
    monkeypatch.setattr(train, "_learn_piece", lambda *_: run_out())
    with pytest.raises(
        TrainingError, match=r"with 4 crops of 16 px at a time: set 'train\.accumulate' to 2 \(same result\) or .*batch_size' to 2"
    ):
        train_network(dataset, tmp_path / "c.safetensors", SHARED)


def test_a_network_that_cannot_be_compiled_is_refused_in_one_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no compiler found\nand much more")

    monkeypatch.setattr(train, "_learn_piece", fail)
    with pytest.raises(ConfigError, match=r"'train\.compile': torch cannot compile the network \(no compiler found\); set it to false"):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)


def test_training_that_no_longer_helps_stops_early_and_is_then_finished(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(
        update={"lr": 1.0, "warmup_steps": 0, "steps": 100, "validate_every": 2, "patience": 2, "divergence": None}
    )
    train_network(dataset, tmp_path / "c.safetensors", settings)
    rows = read_history(tmp_path)
    losses = [float(row["val_loss"]) for row in rows]
    assert int(rows[-1]["step"]) < 100
    assert min(losses[-2:]) >= min(losses[:-2]) == losses[-3]
    assert load_checkpoint(tmp_path / "c.safetensors", torch.device("cpu")).meta.step == int(rows[-3]["step"])
    monkeypatch.setattr(train, "_take_step", lambda *_: pytest.fail("a step was taken"))
    train_network(dataset, tmp_path / "c.safetensors", settings)


def test_training_starts_from_a_checkpoint_that_fits(dataset: Path, whole: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"start_from": str(whole), "steps": 1})
    train_network(dataset, tmp_path / "c.safetensors", settings)
    kept = load_checkpoint(whole, torch.device("cpu")).meta
    assert float(read_history(tmp_path)[0]["val_loss"]) == kept.best_loss
    other = settings.model_copy(update={"network": SETTINGS.network.model_copy(update={"blocks": 2})})
    with pytest.raises(ConfigError, match=r"'train\.start_from' .* is another network: 'train\.network\.blocks' was 1 and is 2"):
        train_network(dataset, tmp_path / "c.safetensors", other)


def test_the_critic_moves_the_weights_by_its_weight_once_the_warm_up_is_over(dataset: Path, tmp_path: Path) -> None:
    last = {}
    for steps, weight in itertools.product((2, 4), (0.0, 1.0)):
        adversarial = AdversarialSettings(weight=weight, warmup_steps=2, width=4)
        output = tmp_path / f"{steps}-{weight}/c.safetensors"
        train_network(dataset, output, SETTINGS.model_copy(update={"steps": steps, "adversarial": adversarial}))
        last[steps, weight] = load_file(output.with_name("last.safetensors"))
    same = {steps: all(torch.equal(last[steps, 0.0][name], last[steps, 1.0][name]) for name in last[steps, 0.0]) for steps in (2, 4)}
    assert same == {2: True, 4: False}


class Meter(nn.Module):
    """A critic that scores an image by its mean, times a weight of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * image.mean(dim=(1, 2, 3))


def test_a_critic_learns_to_score_real_images_above_made_ones() -> None:
    """Real ones of 0.6, made ones of 0.2, half of the pixels trusted: scores 0.3 and 0.1, 0.2 apart in both images of a batch of two."""
    settings = SETTINGS.model_copy(update={"adversarial": AdversarialSettings(objective="wgan-clip")})
    critic, trust = Meter(), torch.zeros(2, 1, 4, 4)
    trust[..., :2] = 1
    run = train.Run(nn.Conv2d(3, 3, 1), settings, device=torch.device("cpu"), bands=3, critics=nn.ModuleList([critic]))
    pair = lessons.Shown(made=torch.full((2, 3, 4, 4), 0.2), real=torch.full((2, 3, 4, 4), 0.6), trust=trust)
    judged = train._judge_pair(run, critic, pair, torch.full((2,), 0.5))
    assert judged.tolist() == pytest.approx([-0.2, 0.2, 0])
    assert critic.gain.grad is not None
    assert critic.gain.grad.item() == pytest.approx(-0.2), "a larger gain tells them further apart"


def test_processes_that_begin_apart_are_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "sum_numbers", lambda values, _: {name: value + 4 for name, value in values.items()})
    with pytest.raises(TrainingError, match="would begin after step 0, others elsewhere: write to a disk that all share"):
        train_network(dataset, tmp_path / "c.safetensors", SETTINGS)


def test_training_leaves_the_callers_chance_alone(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_network(dataset, tmp_path / "c.safetensors", SETTINGS.model_copy(update={"steps": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_trained_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.json does not exist"):
        train_network(tmp_path / "nowhere.json", tmp_path / "c", SETTINGS)
    with pytest.raises(TrainingError, match="'crop_px' 128 is larger than the patches"):
        train_network(dataset, tmp_path / "c", SETTINGS.model_copy(update={"crop_px": 128}))
    with pytest.raises(ConfigError, match="device 'toaster'"):
        train_network(dataset, tmp_path / "c", SETTINGS.model_copy(update={"device": "toaster"}))
