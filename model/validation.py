"""How good a run's averaged weights are on the validation patches: the score by which its best weights are kept.

A run and the patches enter, a score leaves; each process scores its share of the patches, and all get the score of all.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from sereno.model.batches import AnyBatch, Signature
from sereno.model.data import SplitArrays
from sereno.model.losses import compute_loss
from sereno.model.metrics import masked_psnr
from sereno.model.ranks import Ranks, sum_numbers
from sereno.model.run import Run, Score
from sereno.model.tasks import TASKS
from sereno.pipeline.errors import TrainingError

VALIDATION_BATCH: Final = 4
"""Patches per forward pass of a validation."""


@torch.no_grad()
def score_weights(run: Run, validation: SplitArrays, *, signature: Signature, ranks: Ranks) -> Score:
    """Loss and PSNR (of cloudy pixels where the task has some) with the averaged weights, each a mean over the patches that have it.

    Raises:
        TrainingError: no validation patch has a usable target pixel.
    """
    losses: list[float] = []
    ratios: list[float] = []
    for start in range(0, validation.n_patches, VALIDATION_BATCH)[ranks.rank :: ranks.world]:
        stored = validation.read(start, min(start + VALIDATION_BATCH, validation.n_patches))
        batch = TASKS[signature.task].make_batch(stored, signature, run.settings).to(run.device)
        prediction = run.answer_averaged(batch)
        losses += _measure_losses(run, prediction, batch)
        ratios += _measure_ratios(prediction, batch)
    found = {"loss": math.fsum(losses), "losses": len(losses), "ratio": math.fsum(ratios), "ratios": len(ratios)}
    total = sum_numbers(found, ranks)
    if not total["losses"]:
        raise TrainingError("no validation patch has a clear target pixel: loosen 'patch.max_target_cloud' or draw other splits")
    return Score(total["loss"] / total["losses"], total["ratio"] / total["ratios"] if total["ratios"] else None)


def _measure_losses(run: Run, prediction: Tensor, batch: AnyBatch) -> list[float]:
    """Loss of each patch that has a usable target."""
    weight = run.weigh(batch)
    patches = zip(torch.split(prediction, 1), batch.cut(len(prediction)), torch.split(weight, 1), strict=True)
    return [
        compute_loss(image, alone, run.settings.loss, weight=its_weight)["total"].item()
        for image, alone, its_weight in patches
        if alone.weight.any()
    ]


def _measure_ratios(prediction: Tensor, batch: AnyBatch) -> list[float]:
    """PSNR in dB of each patch that has pixels of the batch's focus."""
    return [value for value in masked_psnr(prediction, batch.target, batch.focus).tolist() if math.isfinite(value)]


def describe_validation_memory() -> str:
    """What to try where memory does not suffice for a validation."""
    return f"out of memory with {VALIDATION_BATCH} whole patches in a validation: take a smaller network or cut smaller patches"
