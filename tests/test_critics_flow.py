"""Laws of training against a critic, for each objective: it goes on exactly, a batch may be shared and cut, and bf16 does no harm.

The network is one for cloud removal; what is particular to the stages of STFGAN is in `test_tasks_flow`.
"""

from __future__ import annotations

import csv
import os
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

from sereno.model import train
from sereno.model.adversarial import OBJECTIVES, draw_shares
from sereno.model.checkpoint import _read_state
from sereno.model.config import TrainSettings
from sereno.model.train import train_network
from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.store import store_of, write_manifest

NAMES = tuple(OBJECTIVES)
COLUMNS = ("total", "pixel", "fooling", "critic", "margin", "penalty")
"""What a history says of both sides."""
NEAR = 1e-3
"""What rounding in another order may come to in a few steps."""
SPECTRA = np.array([[500, 1500, 3000], [2500, 800, 400]], np.uint16)


def settings_of(objective: str, **changes: Any) -> TrainSettings:
    """A warm-up of two steps, then two turns of the critic at each: small steps, so that what is rounded does not grow."""
    values: dict[str, Any] = {
        "network": {"width": 8, "head_dim": 4, "levels": 1, "blocks": 1, "window_px": 4, "stem_px": 2},
        "adversarial": {"objective": objective, "width": 4, "warmup_steps": 2, "critic_steps": 2, "weight": 0.05, "lr": 1e-3, "clip": 0.05},
        "steps": 6, "batch_size": 4, "crop_px": 16, "crops_per_patch": 2, "lr": 1e-3, "ema": 0.5, "warmup_steps": 1,
        "validate_every": 3, "save_every": 4, "pictures": 0, "device": "cpu", **changes,
    }  # fmt: skip
    return TrainSettings.model_validate(values)


def write_dataset(folder: Path, *, hidden: int = 0) -> Path:
    """A cloud hides half of every input; a third of every target is not trusted, and what lies there is `hidden`."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest, generator = folder / "dataset.json", np.random.default_rng(0)
    root, rows = zarr.create_group(store_of(manifest), zarr_format=3), []
    for split, count in {"train": 6, "val": 2, "test": 0}.items():
        classes = generator.integers(0, 2, (count, 8, 8)).repeat(3, axis=1).repeat(3, axis=2)
        clear = SPECTRA[classes].transpose(0, 3, 1, 2) if count else np.zeros((0, 3, 24, 24), np.uint16)
        mask = np.zeros((count, len(MASK_CHANNELS), 24, 24), np.uint8)
        mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_sar", "valid_target")]] = 255
        mask[:, MASK_CHANNELS.index("cloud_input"), :, 12:] = 255
        mask[:, MASK_CHANNELS.index("cloud_target"), :4] = 255
        mask[:, MASK_CHANNELS.index("valid_target"), 20:] = 0
        cloudy = np.where(mask[:, :1] > 0, 8000, clear).astype(np.uint16)
        if hidden:
            clear[:, :, :4], clear[:, :, 20:] = hidden, hidden
        sar = np.stack([-500 - 1500 * classes, -1000 - 1500 * classes], axis=1).astype(np.int16)
        for name, values in {"sar": sar, "cloudy": cloudy, "clear": clear, "mask": mask}.items():
            root.require_group(split).create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1, *values.shape[1:]))[:] = values
        rows += [to_row(split, position) for position in range(count)]
    with (store_of(manifest) / "patches.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields), restval="")
        writer.writeheader()
        writer.writerows(rows)
    facts = {"bands": ["B02", "B03", "B04"], "sar_bands": ["VV", "VH"], "training_mean": [0.15, 0.115, 0.17]}
    write_manifest(manifest, kind="dataset", summary=facts | {"training_std": [0.1, 0.04, 0.13]})
    return manifest


def to_row(split: str, position: int) -> dict[str, Any]:
    fixed = {"area": "west", "pair": "p", "block": "b", "crs": "EPSG:32632", "bounds_m": "[0, 0, 240, 240]", "row": 0, "col": 0}
    shares = dict.fromkeys(("valid_share", "cloud_input_share", "cloud_target_share", "sar_gap_days", "clear_gap_days"), 0.5)
    return {"id": f"west/p/{split}{position}", "split": split, "position": position, **fixed, **shares}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=NAMES)
def whole(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An objective, and the folder of a run with it that nothing disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    train_network(dataset, folder / "c.safetensors", settings_of(request.param))
    return request.param, folder


def read_history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def read_critics(folder: Path) -> torch.Tensor:
    state = _read_state(folder / "state.pt")["state"]["critics"]
    return torch.cat([tensor.flatten() for _, tensor in sorted(state.items())])


def read_weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "last.safetensors").items())])


def measure_distance(first: Path, second: Path) -> dict[str, float]:
    """How far two runs end apart: differences of weights, and of the history relative to its values.

    The mean is that of a critic's, since its optimiser, RMSprop, makes whole steps of gradients that are hardly more than rounding.
    """
    lines = [[row for row in read_history(folder) if row["total"]] for folder in (first, second)]
    assert len(lines[0]) == len(lines[1]) > 1
    columns = {
        name: max(abs(float(one[name]) - float(two[name])) / (abs(float(two[name])) + 1e-3) for one, two in zip(*lines, strict=True))
        for name in COLUMNS
    }
    critics, networks = ((read(first) - read(second)).abs() for read in (read_critics, read_weights))
    return {**columns, "weights of the critic": critics.mean().item(), "weights of the network": networks.max().item()}


def test_both_sides_have_learnt(whole: tuple[str, Path]) -> None:
    objective, folder = whole
    row = [row for row in read_history(folder) if row["total"]][-1]
    assert all(float(row[name]) != 0 for name in ("fooling", "critic", "margin"))
    assert (float(row["penalty"]) > 0) == (objective == "wgan-gp")


def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(
    dataset: Path, whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed a step after its state was saved, when the critic has learnt for two steps."""
    objective, folder = whole
    train_until_killed(dataset, tmp_path / "c.safetensors", settings_of(objective), monkeypatch, after=5)
    assert not (tmp_path / "last.safetensors").exists()
    train_network(dataset, tmp_path / "c.safetensors", settings_of(objective))
    for name in ("c.safetensors", "last.safetensors", "history.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert torch.equal(read_critics(tmp_path), read_critics(folder))


def test_a_batch_in_pieces_teaches_both_the_same(dataset: Path, whole: tuple[str, Path], tmp_path: Path) -> None:
    objective, folder = whole
    train_network(dataset, tmp_path / "c.safetensors", settings_of(objective, accumulate=4))
    assert max(measure_distance(tmp_path, folder).values()) < NEAR, measure_distance(tmp_path, folder)


@pytest.mark.slow
def test_two_processes_teach_both_the_same_as_one(dataset: Path, whole: tuple[str, Path], tmp_path: Path) -> None:
    """As a person would start them; pieces besides."""
    objective, folder = whole
    settings = settings_of(objective, processes=2, accumulate=2).to_json()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sereno.model"]
    done = subprocess.run(
        [*command, "train", str(dataset), str(tmp_path / "c.safetensors"), "--settings", settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(measure_distance(tmp_path, folder).values()) < NEAR, measure_distance(tmp_path, folder)


@pytest.mark.parametrize("objective", NAMES)
def test_bf16_stays_finite_and_near_fp32(dataset: Path, tmp_path: Path, objective: str) -> None:
    """Rounded to one part in 256, squared in the penalty; how far apart a few steps end depends on the number of threads too.

    The critic takes tiny steps, since of its first ones RMSprop keeps little but the signs.
    """
    rows = []
    for precision in ("fp32", "bf16"):
        settings = settings_of(objective, precision=precision)
        assert settings.adversarial is not None
        slow = settings.adversarial.model_copy(update={"lr": 1e-5})
        train_network(dataset, tmp_path / precision / "c.safetensors", settings.model_copy(update={"adversarial": slow}))
        rows.append([row for row in read_history(tmp_path / precision) if row["total"]][-1])
    assert all(read(tmp_path / "bf16").isfinite().all() for read in (read_critics, read_weights))
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16/c.safetensors").values()} == {torch.float32}
    assert rows[0]["fooling"] != rows[1]["fooling"], "nothing was rounded"
    for name in COLUMNS:
        assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=0.1, abs=2e-3), name


def test_shares_depend_on_seed_step_and_turn_alone() -> None:
    settings = settings_of("wgan-gp")
    first = draw_shares(settings, critics=2, step=5, turn=0)
    assert first.shape == (2, 4)
    assert ((first >= 0) & (first < 1)).all()
    torch.manual_seed(1)
    assert torch.equal(first, draw_shares(settings, critics=2, step=5, turn=0))
    others = [
        draw_shares(settings_of("wgan-gp", seed=seed), critics=2, step=step, turn=turn)
        for seed, step, turn in [(0, 6, 0), (0, 5, 1), (1, 5, 0)]
    ]
    assert all(not torch.equal(first, other) for other in others)
    halves = [draw_shares(settings, critics=2, step=5, turn=0, part=(number, 2)) for number in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), first)


@pytest.mark.parametrize("pieces", [1, 4])
def test_every_image_has_its_own_share_however_a_batch_is_cut(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    judge, seen = train.compute_critic_loss, []

    def note(*given: Any, shares: torch.Tensor) -> Any:
        seen.append(shares)
        return judge(*given, shares=shares)

    monkeypatch.setattr(train, "compute_critic_loss", note)
    settings = settings_of("wgan-gp", steps=3, accumulate=pieces)
    train_network(dataset, tmp_path / "c.safetensors", settings)
    whole = torch.cat([draw_shares(settings, critics=1, step=2, turn=turn)[0] for turn in range(2)])
    assert len(seen) == 2 * pieces
    assert torch.equal(torch.cat(seen), whole)


def test_what_is_not_trusted_teaches_nobody(whole: tuple[str, Path], tmp_path: Path) -> None:
    """Clouds and gaps of the target hold something else: both sides end with the same weights, to the last bit."""
    objective, folder = whole
    other = write_dataset(tmp_path / "data", hidden=9000)
    train_network(other, tmp_path / "c.safetensors", settings_of(objective))
    assert torch.equal(read_critics(tmp_path), read_critics(folder))
    assert torch.equal(read_weights(tmp_path), read_weights(folder))


@pytest.mark.parametrize("objective", NAMES)
def test_critics_are_shown_zeros_where_the_target_is_not_trusted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """What the network made there is hidden too: else its clouds would tell it from a clear target, or the critic from its own making."""
    shown: dict[str, list[torch.Tensor]] = {"fool": [], "judge": []}
    fool, judge = train.compute_fooling_loss, train.compute_critic_loss

    def note_made(critic: Any, made: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        shown["fool"].append(made.detach())
        return fool(critic, made, *rest, **more)

    def note_contest(critic: Any, contest: Any, *rest: Any, **more: Any) -> Any:
        shown["judge"] += [contest.real, contest.made]
        return judge(critic, contest, *rest, **more)

    monkeypatch.setattr(train, "compute_fooling_loss", note_made)
    monkeypatch.setattr(train, "compute_critic_loss", note_contest)
    take, trust = train._take_step, []
    monkeypatch.setattr(train, "_take_step", lambda run, draw, *rest: (trust.append(draw.batch.weight), take(run, draw, *rest)))
    train_network(dataset, tmp_path / "c.safetensors", settings_of(objective, steps=4))
    hidden = [weight.expand(-1, 3, -1, -1) == 0 for weight in trust[2:]]
    assert all(0.1 < where.float().mean() < 0.9 for where in hidden)
    for images, count in ((shown["fool"], 1), (shown["judge"], 4)):
        assert len(images) == count * len(hidden)
        for number, image in enumerate(images):
            assert not image[hidden[number // count]].any()
            assert image[~hidden[number // count]].all()
