"""How the learning rate goes: a function of the settings and of the number of steps taken, so that nothing has to be saved of it."""

from __future__ import annotations

import math

from sereno.model.config import TrainSettings


def compute_rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of the step after `step` steps: linear warm-up to `lr`, then what `schedule` says.

    `cosine` falls along half a cosine to zero at the last step (Loshchilov and Hutter 2017, without restarts). `step` is multiplied by
    `step_factor` after every `step_every` steps, warm-up included (StepLR of the notes: 0.2 every 50 epochs). `constant` stays.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        return float(settings.lr * settings.step_factor ** (step // settings.step_every))
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (1 + math.cos(math.pi * min(1.0, share))) / 2
