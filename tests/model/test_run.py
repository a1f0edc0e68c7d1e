"""Laws of what changes while training: averages, trends, rows, and that nothing of it is lost."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sereno.model.batches import Batch
from sereno.model.config import LossSettings, TrainSettings
from sereno.model.run import SETTLED, Best, Run, Score, Sums, Trend, create_encoder

CPU = torch.device("cpu")


class Shift(nn.Module):
    """Adds a learnt number per band, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, optical: Tensor, _sar: Tensor, _cloud: Tensor) -> Tensor:
        self.calls += 1
        return optical + self.shift


def make_run(**changes: object) -> Run:
    return Run(Shift(), TrainSettings(**changes), device=CPU, bands=3)


def take_steps(run: Run, count: int) -> None:
    for _ in range(count):
        run.network.shift.grad = torch.full((3, 1, 1), float(run.step % 3) - 0.5)
        run.optimiser.step()
        run.step += 1
        run.update_average()


def test_the_average_follows_the_weights_and_without_decay_is_the_weights() -> None:
    run, expected = make_run(ema=0.9, lr=0.1), torch.zeros(3, 1, 1)
    for step in range(1, 6):
        take_steps(run, 1)
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * run.network.shift.detach()
        assert torch.allclose(run.average["shift"], expected, atol=1e-7)
    run.network.calls += 7
    run.update_average()
    assert run.average["calls"] == 7
    plain = make_run(ema=0.0)
    take_steps(plain, 3)
    assert torch.equal(plain.average["shift"], plain.network.shift)


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_a_restored_run_goes_on_as_if_nothing_had_been(optimiser: str) -> None:
    first = make_run(optimiser=optimiser, lr=0.1, weight_decay=0.1)
    take_steps(first, 5)
    first.best = Best(3, Score(0.5, None), {"shift": torch.ones(3, 1, 1)})
    first.trend, first.sums, first.skipped, first.worse = Trend().follow(2.0), first.sums.add([1.0] * len(first.sums.values)), 2, 1
    second = make_run(optimiser=optimiser, lr=0.1, weight_decay=0.1)
    second.restore(copy.deepcopy(first.to_state()))  # a state shares memory until it is on disk
    assert (second.step, second.trend, second.sums, second.skipped, second.worse) == (5, first.trend, first.sums, 2, 1)
    assert second.best is not None
    assert (second.best.step, second.best.score) == (3, Score(0.5, None))
    for run in (first, second):
        take_steps(run, 4)
    assert torch.equal(first.network.shift, second.network.shift)
    assert torch.equal(first.average["shift"], second.average["shift"])


def test_adam_decays_weights_through_the_gradient_and_adamw_apart_from_it() -> None:
    shifts = {}
    for optimiser in ("adam", "adamw"):
        run = make_run(optimiser=optimiser, lr=0.1, weight_decay=0.5)
        run.network.shift.data.fill_(2.0)
        run.network.shift.grad = torch.zeros(3, 1, 1)
        run.optimiser.step()
        shifts[optimiser] = run.network.shift[0].item()
    assert shifts == pytest.approx({"adam": 2 - 0.1, "adamw": 2 * (1 - 0.1 * 0.5)}, rel=1e-5)


def test_a_trend_is_judged_once_settled_and_empty_batches_have_no_say() -> None:
    trend = Trend()
    for _ in range(SETTLED):
        trend = trend.follow(1.0)
        assert trend.lowest == math.inf
    trend = trend.follow(1.0).follow(0.0)
    assert trend == Trend(SETTLED + 1, 1.0, 1.0, 0.0)
    for _ in range(200):
        trend = trend.follow(5.0)
    assert trend.smooth == pytest.approx(5, abs=0.01)
    assert trend.lowest == 1


def test_a_row_holds_means_and_none_without_steps() -> None:
    settings = TrainSettings(loss=LossSettings(spatial=0, spectral=0, sam=0.1))
    assert Sums.columns(settings) == ("grad_norm", "total", "pixel", "sam")
    sums = Sums.begin(settings)
    assert sums.to_means(settings) == {}
    assert sums.add([1.0, 2.0, 3.0, 4.0]).add([3.0, 2.0, 1.0, 0.0]).to_means(settings) == {"grad_norm": 2, "total": 2, "pixel": 2, "sam": 2}


def test_a_run_is_over_after_its_steps_or_when_patience_is_out() -> None:
    run = make_run(steps=5, patience=2)
    assert not run.is_over
    run.worse = 2
    assert run.is_over
    run.worse, run.step = 1, 5
    assert run.is_over
    endless = make_run(steps=5)
    endless.worse = 1000
    assert not endless.is_over


def test_the_best_is_kept_and_those_after_it_are_counted() -> None:
    run = make_run(lr=0.1)
    for loss in (0.5, 0.3, 0.4, 0.3):
        take_steps(run, 1)
        run.keep_best(Score(loss, None))
    assert run.best is not None
    assert (run.best.step, run.best.score, run.worse) == (2, Score(0.3, None), 2)
    kept = run.best.weights["shift"].clone()
    take_steps(run, 1)
    assert torch.equal(run.best.weights["shift"], kept), "a copy, which training does not move"
    run.keep_best(None)
    assert (run.best.step, run.best.score, run.worse) == (5, None, 0)


def test_sound_weights_stay_as_they_were_whatever_comes_after() -> None:
    run = make_run(lr=0.1)
    assert not run.has_sound, "no step was taken"
    take_steps(run, 2)
    run.keep_sound()
    before = run.average["shift"].clone()
    run.average["shift"].fill_(math.nan)
    assert torch.equal(run.sound.weights["shift"], before)
    assert (run.sound.step, run.has_sound) == (2, True)
    run.skipped = 2
    assert not run.has_sound, "fp16 left out every step"


@pytest.mark.parametrize(("precision", "skipped"), [("fp16", 1), ("fp32", 0)])
def test_only_with_fp16_a_step_of_too_large_a_gradient_does_not_count(precision: str, skipped: int) -> None:
    run = make_run(precision=precision)
    values = [0.5] * len(run.sums.values)
    run.follow([math.inf, *values[1:]])
    assert (run.skipped, run.sums.steps, run.trend.seen) == (skipped, 1 - skipped, 1 - skipped)
    run.follow(values)
    assert (run.skipped, run.sums.steps, run.trend.last) == (0, 2 - skipped, 0.5)


def test_the_averaged_weights_answer_and_not_the_newest() -> None:
    run, ones = make_run(), torch.ones(1, 3, 4, 4)
    run.average["shift"].fill_(2.0)
    answer = run.answer_averaged(Batch(*[ones] * 7))
    assert torch.equal(answer, 3 * ones)
    assert not answer.requires_grad
    assert not run.network.training


def test_the_mask_encoder_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (create_encoder(3, seed).layers[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
