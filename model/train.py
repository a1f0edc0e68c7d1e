"""Train a network: the loop in plain sight.

A packed dataset enters; a checkpoint and `history.csv` leave. Beside them lies `state.pt`: a killed run goes on from it and ends with
the same bytes as one that was not killed (on one machine, with as many threads). It stays: a finished run that is asked for again with
the same data, settings and code is written again in seconds instead of trained again; without `state.pt` it is trained from the start.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import functional_call

from sereno.model.checkpoint import CheckpointMeta, choose_device, hash_file, identify_run, load_state, save_checkpoint, save_state
from sereno.model.config import TrainSettings
from sereno.model.data import Batch, DatasetFacts, Draw, PatchFeed, SplitArrays, open_split, read_facts, read_records, to_batch
from sereno.model.flow import hold_folder
from sereno.model.losses import compute_loss
from sereno.model.metrics import masked_psnr
from sereno.model.tasks import CLOUD_REMOVAL, Signature, create_network
from sereno.pipeline.errors import TrainingError
from sereno.pipeline.fingerprint import fingerprint
from sereno.pipeline.store import write_text

logger = logging.getLogger(__name__)

PARTS: Final = ("total", "pixel", "spatial", "spectral")
"""Parts of the loss in the history."""
COLUMNS: Final = ("step", "lr", *PARTS, "val_loss", "val_psnr_db")
"""Columns of `history.csv`; the validation's are empty where there was none. Losses are means since the row before."""
ROW_EVERY: Final = 20
"""Steps between rows of the history."""
LOG_EVERY_S: Final = 20.0
"""Seconds between lines in the log."""
VALIDATION_BATCH: Final = 4
"""Patches per forward pass of a validation."""
CLOUDY: Final = 0.5
"""A pixel whose cloud probability is at least this counts as cloudy in the validation's PSNR."""


class Score(NamedTuple):
    """What a validation found."""

    loss: float
    """Mean loss over the patches with a usable target."""
    psnr_db: float | None
    """Mean over patches of the PSNR of cloudy pixels; None if there are none."""


class Best(NamedTuple):
    """The weights that are saved in the end."""

    step: int
    """Optimiser steps after which they were taken."""
    score: Score | None
    """Their validation; None without a validation split."""
    weights: dict[str, Tensor]
    """State dict of the network."""


class Run:
    """What changes while training: weights, their average, the optimiser, the history, the best so far."""

    def __init__(self, network: nn.Module, settings: TrainSettings) -> None:
        self.network, self.settings = network, settings
        self.average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.sums = dict.fromkeys(PARTS, 0.0)
        self.best: Best | None = None

    def to_state(self) -> dict[str, Any]:
        """Everything, as plain values and tensors. Nothing else is random: a crop depends on the seed and its number alone."""
        best = None if self.best is None else {**self.best._asdict(), "score": self.best.score and tuple(self.best.score)}
        weights, optimiser = self.network.state_dict(), self.optimiser.state_dict()
        progress = {"step": self.step, "rows": self.rows, "sums": self.sums, "best": best}
        return {"network": weights, "average": self.average, "optimiser": optimiser, **progress}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `to_state` saw."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
        self.step, self.rows, self.sums = state["step"], state["rows"], state["sums"]
        best = state["best"]
        self.best = best and Best(best["step"], best["score"] and Score(*best["score"]), best["weights"])


def train_network(dataset: Path, output: Path, settings: TrainSettings) -> None:
    """Train on `dataset` (a manifest) and write the checkpoint `output`; history and state lie beside it.

    Raises:
        ConfigError: the network does not fit the dataset, or the device is not there.
        MissingError, StoreError: the dataset is unfinished or damaged, or another process is training to the same place.
        TrainingError: the training split is empty, or the loss is no longer finite.
    """
    with hold_folder(output.parent):
        _train_alone(dataset, output, settings)


def _train_alone(dataset: Path, output: Path, settings: TrainSettings) -> None:
    facts, state_file = read_facts(dataset), output.with_name("state.pt")
    identity = identify_run(settings, hash_file(dataset), fingerprint("sereno.model.train"))
    device = choose_device(settings.device)
    feed = PatchFeed(open_split(dataset, "train"), settings, facts.sar_bands)
    validation = open_split(dataset, "val")
    network = create_network(CLOUD_REMOVAL, settings.network, Signature(*facts), seed=settings.seed).to(device)
    run = Run(network, settings)
    if (state := load_state(state_file, identity=identity)) is not None:
        run.restore(state)
    _log_start(run, feed, validation)
    started, logged = time.monotonic(), time.monotonic()
    if run.step == 0:
        _validate(run, validation, facts)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("train", total=settings.steps, completed=run.step)
        for draw in feed.stream(run.step):
            if run.step == settings.steps:
                break
            _take_step(run, draw, dataset)
            if _needs_validation(run):
                _validate(run, validation, facts)
            if run.step % settings.save_every == 0 or run.step == settings.steps:
                save_state(state_file, run.to_state(), identity=identity)
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                _log_progress(run)
            progress.update(bar, completed=run.step)
    _save_run(run, dataset, output, facts)
    logger.info("trained %s: %d steps in %.0f s, kept step %d", output, run.step, time.monotonic() - started, _best_of(run).step)


def _take_step(run: Run, draw: Draw, dataset: Path) -> None:
    """One batch forward and backward, one step of the optimiser, one row of the history where one is due."""
    settings, device = run.settings, next(run.network.parameters()).device
    batch = draw.batch.to(device)
    run.network.train()
    losses = compute_loss(run.network(batch.optical, batch.sar, batch.cloud), batch, settings.loss)
    run.optimiser.zero_grad()
    losses["total"].backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), settings.clip_norm)
    if not (math.isfinite(losses["total"].item()) and math.isfinite(norm.item())):
        raise TrainingError(_describe_divergence(run, draw, dataset))
    rate = compute_rate(settings, run.step)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.step()
    run.step += 1
    _update_average(run)
    for part in PARTS:
        run.sums[part] += losses[part].item()
    if run.step % ROW_EVERY == 0 or _needs_validation(run):
        taken = run.step - (run.rows[-1]["step"] if run.rows else 0)
        run.rows.append({"step": run.step, "lr": rate} | {part: run.sums[part] / taken for part in PARTS})
        run.sums = dict.fromkeys(PARTS, 0.0)


def _needs_validation(run: Run) -> bool:
    return run.step % run.settings.validate_every == 0 or run.step == run.settings.steps


def compute_rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of the step after `step` steps: linear warm-up, then a cosine that ends at zero (Loshchilov and Hutter 2017)."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (1 + math.cos(math.pi * min(1.0, share))) / 2


@torch.no_grad()
def _update_average(run: Run) -> None:
    """Move the averaged weights towards the weights; faster at first, so that the first ones are forgotten."""
    decay = min(run.settings.ema, run.step / (run.step + 9))
    for name, tensor in run.network.state_dict().items():
        if tensor.is_floating_point():
            run.average[name].lerp_(tensor, 1 - decay)
        else:
            run.average[name].copy_(tensor)


def _validate(run: Run, validation: SplitArrays, facts: DatasetFacts) -> None:
    """Score the averaged weights, keep them if they are the best, and enter the score into the history.

    Without validation patches the newest weights are kept.
    """
    if not validation.n_patches:
        run.best = Best(run.step, None, {name: tensor.clone() for name, tensor in run.average.items()})
        return
    score = score_weights(run, validation, facts)
    if run.best is None or run.best.score is None or score.loss < run.best.score.loss:
        run.best = Best(run.step, score, {name: tensor.clone() for name, tensor in run.average.items()})
    if run.step == 0:
        run.rows.append({"step": 0})
    run.rows[-1] |= {"val_loss": score.loss, "val_psnr_db": score.psnr_db}
    logger.info("step %d: validation loss %.5f, cloudy pixels %s dB", run.step, score.loss, _in_words(score.psnr_db))


@torch.no_grad()
def score_weights(run: Run, validation: SplitArrays, facts: DatasetFacts) -> Score:
    """Loss and PSNR of cloudy pixels with the averaged weights, each a mean over the patches that have it.

    Raises:
        TrainingError: no validation patch has a usable target pixel.
    """
    settings, device = run.settings, next(run.network.parameters()).device
    losses, ratios = [], []
    run.network.eval()
    for start in range(0, validation.n_patches, VALIDATION_BATCH):
        stored = validation.read(start, min(start + VALIDATION_BATCH, validation.n_patches))
        batch = to_batch(*stored, settings.sar_range, facts.sar_bands).to(device)
        prediction = functional_call(run.network, run.average, (batch.optical, batch.sar, batch.cloud))
        for image in range(len(prediction)):
            alone = Batch(*(tensor[image : image + 1] for tensor in batch))
            if alone.weight.any():
                losses.append(compute_loss(prediction[image : image + 1], alone, settings.loss)["total"].item())
        region = (batch.cloud[:, 0] >= CLOUDY) & (batch.weight[:, 0] > 0)
        ratios += [value for value in masked_psnr(prediction, batch.target, region).tolist() if math.isfinite(value)]
    if not losses:
        raise TrainingError("no validation patch has a clear target pixel: loosen 'patch.max_target_cloud' or draw other splits")
    return Score(sum(losses) / len(losses), sum(ratios) / len(ratios) if ratios else None)


def _save_run(run: Run, dataset: Path, output: Path, facts: DatasetFacts) -> None:
    """Write the history, then the checkpoint: where the checkpoint is, everything is."""
    best = _best_of(run)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.rows)
    write_text(output.with_name("history.csv"), text.getvalue())
    meta = CheckpointMeta(
        settings=run.settings,
        bands=facts.bands,
        sar_bands=facts.sar_bands,
        training_mean=facts.mean,
        training_std=facts.std,
        dataset_sha256=hash_file(dataset),
        step=best.step,
        best_loss=best.score and best.score.loss,
        best_psnr_db=best.score and best.score.psnr_db,
    )
    save_checkpoint(output, best.weights, meta)


def _best_of(run: Run) -> Best:
    assert run.best is not None, "the last step is always validated"
    return run.best


def _describe_divergence(run: Run, draw: Draw, dataset: Path) -> str:
    records = read_records(dataset, "train")
    names = ", ".join(sorted({records[place].id for place in draw.patches}))
    return f"loss or gradient is not finite at step {run.step + 1}, patches {names} of {dataset}: lower 'train.lr' or look at these patches"


def _log_start(run: Run, feed: PatchFeed, validation: SplitArrays) -> None:
    size = sum(parameter.numel() for parameter in run.network.parameters())
    device = next(run.network.parameters()).device
    start = f"going on after step {run.step}" if run.step else "starting"
    logger.info("%s: %d steps, %d crops per epoch, %.2f M parameters, %s", start, run.settings.steps, feed.epoch_crops, size / 1e6, device)
    if not validation.n_patches:
        logger.warning("the validation split is empty: the last weights are kept instead of the best")


def _log_progress(run: Run) -> None:
    loss = next((row["total"] for row in reversed(run.rows) if "total" in row), None)
    logger.info("step %d of %d, loss %s", run.step, run.settings.steps, "not yet known" if loss is None else f"{loss:.5f}")


def _in_words(ratio: float | None) -> str:
    return "have no" if ratio is None else f"{ratio:.2f}"
