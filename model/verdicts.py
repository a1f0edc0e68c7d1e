"""Metrics on the page: their headings, decimals and direction, what a difference is called, and a run against others.

Summaries and scores of runs enter; words, tones and tables leave. The reports of all tasks are made with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch

from sereno.model.metrics import bootstrap_difference
from sereno.model.page import Cell, Table, show_number, show_range
from sereno.model.results import Json, RunResults

DIGITS: Final = {"psnr": 2, "sam_deg": 2, "ergas": 2}
"""Decimals of metrics; of all others 4: `find_digits`."""
HEADINGS: Final = {
    "psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "sam_deg": "SAM, ° ↓", "mae": "MAE ↓", "rmse": "RMSE ↓", "ergas": "ERGAS, % ↓", "q2n": "Q2n ↑",
    "d_lambda": "D_λ ↓", "d_s": "D_s ↓", "qnr": "QNR ↑",
}  # fmt: skip
"""Headings of metrics; the arrow says which direction is better."""
UNITS: Final = {"psnr": " dB", "sam_deg": "°", "ergas": " %"}
"""Units of metrics in a sentence."""
BOOTSTRAP_SEED: Final = 0


def find_digits(metric: str) -> int:
    """Decimals that a metric is shown with."""
    return DIGITS.get(metric, 4)


def is_larger_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return HEADINGS[metric].endswith("↑")


def show_score(metric: str, value: float) -> str:
    """A score with its unit."""
    return f"{show_number(value, find_digits(metric))}{UNITS.get(metric, '')}"


def name_metric(metric: str) -> str:
    """A metric in a sentence: its heading without unit and arrow."""
    return HEADINGS[metric].split(",")[0].split(" ")[0]


def call_difference(interval: Json, metric: str) -> Literal["behind", "level", "ahead"]:
    """What a difference, ours minus theirs, is called: ahead only where the whole interval says so, level if ahead by its mean alone."""
    if interval["mean"] == 0 or (interval["mean"] > 0) != is_larger_better(metric):
        return "behind"
    return "ahead" if grade(interval, metric) == "good" else "level"


def grade(interval: Json, metric: str) -> str:
    """Tone of a difference: good and bad are told only where the whole interval lies on one side."""
    if interval["mean"] is None or interval["low"] is None:
        return "plain"
    low, high = (interval["low"], interval["high"]) if is_larger_better(metric) else (-interval["high"], -interval["low"])
    return "good" if low > 0 else "bad" if high <= 0 else "plain"


def compare_runs(runs: Mapping[str, RunResults], region: str, metrics: Sequence[str], *, place: str) -> Table:
    """The first run against each other one by name, patch by patch, in a region that is called `place`."""
    (name, first), *others = runs.items()
    rows = []
    for other, run in others:
        cells = [f"{name} minus {other}"]
        for metric in metrics:
            interval = bootstrap_runs((first, run), region, metric)
            cells += [show_number(interval["mean"], find_digits(metric), sign=True), show_range(interval, find_digits(metric))]
        rows.append([Cell(word) for word in (*cells, str(interval["n"]), str(interval["n_groups"]))])
    heads = (word for metric in metrics for word in (HEADINGS[metric], "95 % interval"))
    return Table((f"run against run, {place}", *heads, "patches", "blocks"), rows)


def bootstrap_runs(runs: tuple[RunResults, RunResults], region: str, metric: str) -> Json:
    """Paired difference of a metric, first run minus second, over the patches that both have, blocks drawn."""
    ours, theirs = (
        {row["id"]: row for row in run.scores if (row["method"], row["region"]) == ("network", region) and metric in row} for run in runs
    )
    shared = [name for name in ours if name in theirs]
    difference = torch.tensor([float(ours[name][metric]) - float(theirs[name][metric]) for name in shared], dtype=torch.float64)
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    return bootstrap_difference(difference, [ours[name]["block"] for name in shared], generator=generator)._asdict()
