"""Laws of verdicts: a win needs its whole interval, a difference is read in the metric's direction, runs are compared on shared patches."""

from __future__ import annotations

from typing import Any

import pytest

from sereno.model.results import RunResults
from sereno.model.verdicts import HEADINGS, bootstrap_runs, call_difference, compare_runs, grade, is_larger_better, show_score

INTERVALS: list[tuple[tuple[float, float | None, float | None], str, str]] = [
    ((1.0, 0.5, 1.5), "ahead", "good"),
    ((1.0, -0.5, 2.5), "level", "plain"),
    ((1.0, None, None), "level", "plain"),
    ((0.0, -0.5, 0.5), "behind", "plain"),
    ((-1.0, -2.5, 0.5), "behind", "plain"),
    ((-1.0, -1.5, -0.5), "behind", "bad"),
]


@pytest.mark.parametrize(("given", "called", "tone"), INTERVALS)
def test_a_difference_is_called_what_its_interval_allows_in_the_direction_of_its_metric(given: Any, called: str, tone: str) -> None:
    mean, low, high = given
    interval = {"mean": mean, "low": low, "high": high}
    assert (call_difference(interval, "psnr"), grade(interval, "psnr")) == (called, tone)
    turned = {"mean": -mean, "low": None if high is None else -high, "high": None if low is None else -low}
    assert (call_difference(turned, "rmse"), grade(turned, "rmse")) == (called, tone)


def test_errors_and_distortions_alone_are_better_when_small() -> None:
    assert {metric for metric in HEADINGS if not is_larger_better(metric)} == {"rmse", "mae", "sam_deg", "ergas", "d_lambda", "d_s"}


def test_a_score_has_its_unit_and_decimals() -> None:
    assert [show_score(metric, 1.23456) for metric in ("psnr", "ssim", "sam_deg", "ergas")] == ["1.23 dB", "1.2346", "1.23°", "1.23 %"]


def make_run(name: str, psnr: dict[str, float]) -> RunResults:
    rows = [{"id": patch, "method": "network", "region": "all", "block": patch, "psnr": str(value)} for patch, value in psnr.items()]
    return RunResults(name=name, history=[], summary=None, scores=rows, examples=None, predictions={}, pictures={})


def test_runs_are_compared_on_the_patches_that_both_have() -> None:
    ours, theirs = make_run("a", {"p": 30, "q": 32, "r": 99}), make_run("b", {"q": 30, "p": 26})
    assert bootstrap_runs((ours, theirs), "all", "psnr")["mean"] == 3
    table = compare_runs({"a": ours, "b": theirs}, "all", ["psnr"], place="everywhere")
    assert [cell.words for cell in table.rows[0]][:2] == ["a minus b", "+3.00"]
    assert [cell.words for cell in table.rows[0]][-2:] == ["2", "2"]
