"""The table of `quality.py`: scores of runs enter; means with intervals, paired differences and a verdict leave, as text and as JSON.

The unit is the seed: a run is one number per column, its mean over the test patches; intervals are Student's over seeds. They say how
far training by chance scatters, not how far another piece of ground would differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from scipy.special import stdtrit

from sereno.pipeline.store import read_json

METRICS: Final = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "sam_deg": ("SAM, deg", 2), "mae": ("MAE", 4)}
"""Metrics that are compared, on cloudy pixels: heading and decimals."""
COLUMNS: Final = (*(("cloudy", metric) for metric in METRICS), ("all", "psnr"), ("clear", "psnr"))
"""Region and metric of what is shown of every row."""
CONFIDENCE: Final = 0.95
"""Of the intervals."""

Column = tuple[str, str]
Means = dict[Column, float]
"""What one run, or a baseline, scores: by region and metric, the mean over the test patches; NaN where nothing was scored."""


class Row(NamedTuple):
    """One line of the table: a network with its seeds, or something that needs no training."""

    name: str
    """Variant, baseline or floor."""
    runs: dict[int, Means]
    """Scores by seed; empty for what needs no training."""
    fixed: Means | None
    """What it scores if it needs no training; None for a network."""
    facts: dict[str, Any]
    """`parameters`, `samples`, `cpu_s` (a list of what is known), `code`; empty for what needs no training."""


class Interval(NamedTuple):
    """A mean, and how far it may be off with `CONFIDENCE`."""

    mean: float
    """NaN if there is nothing."""
    half: float
    """Half the interval's width; NaN where nothing can be said."""
    n: int
    """Seeds behind it."""


def read_means(path: Path) -> dict[str, Means]:
    """By method, the means in the `summary.json` that `sereno evaluate` wrote to `path`.

    Raises:
        MissingError, StoreError: there is no such file, or it is not JSON.
    """
    scores = read_json(path)["scores"]
    return {method: {(region, metric): _number(of[region][metric]["mean"]) for region, metric in COLUMNS} for method, of in scores.items()}


def to_fixed(name: str, cloudy: Mapping[str, float]) -> Row:
    """A row that needs no training, of which only the scores on cloudy pixels are known, by metric."""
    return Row(name, {}, {column: _number(cloudy.get(column[1]) if column[0] == "cloudy" else None) for column in COLUMNS}, {})


def _number(value: float | None) -> float:
    """JSON has no NaN."""
    return math.nan if value is None else value


def to_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's interval, which needs two of them, and all of them known."""
    n, mean = len(values), statistics.fmean(values) if values else math.nan
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, n)
    return Interval(mean, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n), n)


def summarise_row(row: Row) -> dict[Column, Interval]:
    """Means over the seeds, by column."""
    if row.fixed is not None:
        return {column: Interval(mean, math.nan, 0) for column, mean in row.fixed.items()}
    return {column: to_interval([means[column] for means in row.runs.values()]) for column in COLUMNS}


def compare_rows(ours: Row, other: Row) -> dict[Column, Interval]:
    """Ours minus the other, by column: over the seeds that both have, or over ours where the other needs no training."""
    pairs = [(means, other.fixed or other.runs[seed]) for seed, means in ours.runs.items() if other.fixed or seed in other.runs]
    return {column: to_interval([mine[column] - theirs[column] for mine, theirs in pairs]) for column in COLUMNS}


def compare_datasets(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[str, dict[Column, Interval]]]:
    """Each network on one dataset minus itself on another; nothing unless copying scores the same on both: the test patches are alike."""
    copies = [row.fixed["cloudy", "psnr"] for rows in (first, second) for row in rows if row.name == "copy" and row.fixed]
    if len(copies) < 2 or not math.isclose(*copies, rel_tol=1e-6):
        return []
    others = {row.name: row for row in second}
    return [(row.name, compare_rows(row, others[row.name])) for row in first if row.runs and row.name in others and others[row.name].runs]


def judge(difference: Interval) -> str:
    """What a difference in PSNR says of the first of the two."""
    if not difference.n:
        return "no seed in common"
    if math.isnan(difference.half):
        return "not known" if math.isnan(difference.mean) else "one seed says nothing"
    if abs(difference.mean) <= difference.half:
        return "not resolved"
    return "ahead" if difference.mean > 0 else "behind"


def write_table(title: str, rows: Sequence[Row], reference: str) -> str:
    """Both tables of one dataset in Markdown: what each row scores, and the reference minus each."""
    shown = [row for row in rows if row.runs or row.fixed]
    headings = [f"{METRICS[metric][0]}, {region}" for region, metric in COLUMNS]
    lines = [["", "parameters", "samples", "n seeds", "training, CPU min", *headings], *map(_write_row, shown)]
    text = f"## {title}\n\n{_to_markdown(lines)}\n"
    ours = next((row for row in shown if row.name == reference and row.runs), None)
    if ours is None:
        return text + f"No run of `{reference}` is finished, so nothing is compared with it.\n"
    differences = [(row.name, compare_rows(ours, row)) for row in shown if row is not ours]
    return text + write_differences((f"`{reference}` minus", f"`{reference}` is, by PSNR"), differences)


def _write_row(row: Row) -> list[str]:
    parameters, samples, cpu_s = (row.facts.get(key) for key in ("parameters", "samples", "cpu_s"))
    facts = [f"{parameters / 1e6:.2f} M" if parameters else "-", f"{samples:,}" if samples else "-", str(len(row.runs) or "-")]
    minutes = f"{statistics.fmean(cpu_s) / 60:.1f}" if cpu_s else "-"
    return [row.name, *facts, minutes, *(_write_interval(interval, column[1]) for column, interval in summarise_row(row).items())]


def write_differences(headings: tuple[str, str], differences: Sequence[tuple[str, Mapping[Column, Interval]]]) -> str:
    """Differences on cloudy pixels with their verdicts in Markdown; `headings` of the first column and of the last."""
    lines = [[headings[0], *(heading for heading, _ in METRICS.values()), "n seeds", headings[1]]]
    for name, difference in differences:
        psnr = difference["cloudy", "psnr"]
        cells = [_write_interval(difference["cloudy", metric], metric, sign="+") for metric in METRICS]
        lines.append([name, *cells, str(psnr.n), judge(psnr)])
    return _to_markdown(lines)


def _write_interval(interval: Interval, metric: str, *, sign: str = "") -> str:
    if math.isnan(interval.mean):
        return "-"
    decimals = METRICS[metric][1]
    half = "" if math.isnan(interval.half) else f" ± {interval.half:.{decimals}f}"
    return f"{interval.mean:{sign}.{decimals}f}{half}"


def _to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the heading, as a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]]) + "\n"


def to_json(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """The table as plain values: per row its facts, its means by seed and over them, and the reference minus it."""
    ours = next((row for row in rows if row.name == reference and row.runs), None)
    return [
        {
            "name": row.name,
            "facts": row.facts,
            "by_seed": {str(seed): _name_columns(means) for seed, means in row.runs.items()},
            "means": _name_columns(summarise_row(row)),
            "reference_minus_it": _name_columns(compare_rows(ours, row)) if ours and row is not ours else None,
        }
        for row in rows
        if row.runs or row.fixed
    ]


def _name_columns(values: Mapping[Column, Interval | float]) -> dict[str, Any]:
    """Keys as text, and what is not known as None."""
    return {" ".join(column): _to_plain(value) for column, value in values.items()}


def _to_plain(value: Interval | float) -> Any:
    if isinstance(value, Interval):
        return {name: _to_plain(number) for name, number in value._asdict().items()}
    return value if math.isfinite(value) else None
