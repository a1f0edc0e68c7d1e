"""Laws of the learning rate."""

from __future__ import annotations

import itertools

import pytest
import torch

from sereno.model.config import TrainSettings
from sereno.model.schedule import compute_rate


def rates_of(**changes: object) -> list[float]:
    settings = TrainSettings(lr=1.0, warmup_steps=10, steps=110).model_copy(update=changes)
    return [compute_rate(settings, step) for step in range(settings.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rate_rises_in_a_line_to_its_peak(schedule: str) -> None:
    assert rates_of(schedule=schedule)[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])


def test_a_cosine_falls_to_nearly_nothing() -> None:
    rates = rates_of()
    assert rates[60] == pytest.approx(0.5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3


def test_a_constant_rate_stays() -> None:
    assert set(rates_of(schedule="constant")[10:]) == {1.0}


def test_steps_fall_as_in_torch() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=30, gamma=0.2)
    expected = []
    for _ in range(110):
        expected.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates_of(schedule="step", step_every=30, step_factor=0.2, warmup_steps=0) == pytest.approx(expected)


def test_the_rate_never_is_zero_before_the_end_however_short_the_run() -> None:
    for warmup, steps in ((0, 1), (50, 20), (5, 5), (5, 6)):
        assert min(rates_of(warmup_steps=warmup, steps=steps)) > 0
