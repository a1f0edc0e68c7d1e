"""The table of `quality.py`: scores of runs enter; means with intervals, paired differences and a verdict leave, as text and as JSON.

The unit is the seed: a run is one number per column, its mean over the test patches; intervals are Student's over seeds. They say how
far training by chance scatters, not how far another piece of ground would differ; with one seed only the latter can be estimated.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from scipy.special import stdtrit

METRICS: Final = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "sam_deg": ("SAM, deg", 2), "mae": ("MAE", 4)}
"""Metrics that are compared, on cloudy pixels: heading and decimals."""
COLUMNS: Final = (*(("cloudy", metric) for metric in METRICS), ("all", "psnr"), ("clear", "psnr"))
"""Region and metric of what is shown of every row."""
BASELINES: Final = ("copy", "mean", "fill")
"""Methods that need no weights; every run's scores hold them."""
CONFIDENCE: Final = 0.95
"""Of the intervals."""
BOOTSTRAP_SEED: Final = 0

Column = tuple[str, str]
Means = dict[Column, float]
"""What one run, or a baseline, scores: by region and metric, the mean over the test patches."""


class Scores(NamedTuple):
    """`scores.csv` of one run."""

    patches: tuple[str, ...]
    """Ids of the test patches."""
    blocks: tuple[str, ...]
    """Ground block of each."""
    values: dict[tuple[str, str, str], tuple[float, ...]]
    """By method, region and metric: one value per patch; NaN where the region is empty."""

    def means(self, method: str) -> Means:
        """Means over the patches that have a finite value; NaN if none has."""
        return {column: _mean(value for value in self.values[method, *column] if math.isfinite(value)) for column in COLUMNS}


class Row(NamedTuple):
    """One line of the table: a network with its seeds, or something that needs no training."""

    name: str
    """Variant, baseline or floor."""
    runs: dict[int, Scores]
    """Scores by seed; empty for what needs no training."""
    fixed: Means | None
    """What it scores if it needs no training; None for a network."""
    facts: dict[str, Any]
    """`parameters`, `samples`, `cpu_s`, `wall_s` (lists of what is known), `code`; empty for what needs no training."""

    def means(self) -> dict[int, Means]:
        """By seed."""
        return {seed: scores.means("network") for seed, scores in sorted(self.runs.items())}


class Interval(NamedTuple):
    """A mean and the range it is in with `CONFIDENCE`."""

    mean: float
    """NaN if there is nothing."""
    low: float
    """NaN if nothing can be said."""
    high: float
    """NaN likewise."""
    n: int
    """Seeds behind it."""


class Difference(NamedTuple):
    """The reference minus another row, on cloudy pixels."""

    name: str
    """The other row."""
    metrics: dict[str, Interval]
    """By metric; paired by seed."""
    of_ground: bool
    """True: one seed only, so that the intervals come from drawing ground blocks and say nothing of seeds."""

    @property
    def verdict(self) -> str:
        """What the interval of the PSNR says of the reference."""
        mean, low, high, n = self.metrics["psnr"]
        if math.isnan(low):
            return "no seed in common" if not n else "not known" if math.isnan(mean) else "one seed says nothing"
        word = "ahead" if low > 0 else "behind" if high < 0 else "not resolved"
        return f"{word} on this ground, one seed" if self.of_ground else word


def read_scores(path: Path) -> Scores:
    """The scores in `path`, as `sereno evaluate` writes them."""
    values: dict[tuple[str, str, str], list[float]] = {}
    blocks: dict[str, str] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            blocks[row["id"]] = row["block"]
            for metric in METRICS:
                values.setdefault((row["method"], row["region"], metric), []).append(float(row[metric]))
    return Scores(tuple(blocks), tuple(blocks.values()), {key: tuple(column) for key, column in values.items()})


def to_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's interval; without limits if there are fewer than two, or one is not known."""
    n = len(values)
    mean = _mean(values)
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _mean(values: Any) -> float:
    known = list(values)
    return statistics.fmean(known) if known else math.nan


def compare_rows(reference: Row, other: Row) -> Difference:
    """Reference minus other: over the seeds that both have, or over the reference's where the other needs no training."""
    ours, theirs = reference.means(), other.means()
    seeds = [seed for seed in ours if other.fixed is not None or seed in theirs]
    if len(seeds) == 1 and (other.fixed is None or other.name in BASELINES):
        run = reference.runs[seeds[0]]
        theirs_by_patch, method = (other.runs[seeds[0]], "network") if other.fixed is None else (run, other.name)
        return Difference(other.name, _draw_ground(run, theirs_by_patch, method), of_ground=True)
    metrics = {}
    for metric in METRICS:
        column = ("cloudy", metric)
        metrics[metric] = to_interval([ours[seed][column] - (other.fixed or theirs[seed])[column] for seed in seeds])
    return Difference(other.name, metrics, of_ground=False)


def _draw_ground(ours: Scores, theirs: Scores, method: str) -> dict[str, Interval]:
    """One run's network minus `method` of `theirs`, patch by patch, with the interval from drawing ground blocks."""
    import torch

    from sereno.model.metrics import bootstrap_difference

    intervals = {}
    for metric in METRICS:
        network = torch.tensor(ours.values["network", "cloudy", metric], dtype=torch.float64)
        difference = network - torch.tensor(theirs.values[method, "cloudy", metric], dtype=torch.float64)
        drawn = bootstrap_difference(difference, ours.blocks, generator=torch.Generator().manual_seed(BOOTSTRAP_SEED))
        intervals[metric] = Interval(drawn.mean, drawn.low, drawn.high, 1)
    return intervals


def add_baselines(rows: Sequence[Row], floors: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The networks' rows, then what needs no weights, then the floors: scores on cloudy pixels by name and metric."""
    scores = next((scores for row in rows for scores in row.runs.values()), None)
    baselines = [Row(name, {}, scores.means(name), {}) for name in BASELINES] if scores else []
    fixed = [Row(name, {}, {column: _floor(floor, column) for column in COLUMNS}, {}) for name, floor in floors.items()]
    return [*rows, *baselines, *fixed]


def _floor(floor: Mapping[str, float], column: Column) -> float:
    return floor.get(column[1], math.nan) if column[0] == "cloudy" else math.nan


def write_table(title: str, rows: Sequence[Row], reference: str) -> str:
    """Both tables of one dataset in Markdown: what each row scores, and the reference minus each."""
    shown = [row for row in rows if row.runs or row.fixed]
    ours = next((row for row in shown if row.name == reference and row.runs), None)
    text = f"## {title}\n\n{_write_scores(shown)}"
    if ours is None:
        return text + f"\nNo run of `{reference}` is finished, so nothing is compared with it.\n"
    return text + "\n" + _write_differences(reference, [compare_rows(ours, row) for row in shown if row is not ours])


def _write_scores(rows: Sequence[Row]) -> str:
    headings = [f"{METRICS[metric][0]}, {region}" for region, metric in COLUMNS]
    lines = [["", "parameters", "samples", "n seeds", "training, CPU min", *headings]]
    for row in rows:
        seeds = row.means()
        cells = [
            _write_interval(to_interval([means[column] for means in seeds.values()]) if seeds else _exact(row.fixed, column), column[1])
            for column in COLUMNS
        ]
        minutes = [seconds / 60 for seconds in row.facts.get("cpu_s", [])]
        parameters, samples = (row.facts.get(key) for key in ("parameters", "samples"))
        facts = [f"{parameters / 1e6:.2f} M" if parameters else "-", f"{samples:,}" if samples else "-"]
        lines.append([row.name, *facts, str(len(seeds) or "-"), f"{_mean(minutes):.1f}" if minutes else "-", *cells])
    return _to_markdown(lines)


def _exact(means: Means | None, column: Column) -> Interval:
    return Interval((means or {}).get(column, math.nan), math.nan, math.nan, 0)


def _write_interval(interval: Interval, metric: str) -> str:
    decimals = METRICS[metric][1]
    if math.isnan(interval.mean):
        return "-"
    half = interval.high - interval.mean
    return f"{interval.mean:.{decimals}f}" + ("" if math.isnan(half) else f" ± {half:.{decimals}f}")


def _write_differences(reference: str, differences: Sequence[Difference]) -> str:
    lines = [[f"`{reference}` minus", *(heading for heading, _ in METRICS.values()), "n seeds", f"`{reference}` is, by PSNR"]]
    for difference in differences:
        cells = [_write_difference(difference.metrics[metric], METRICS[metric][1]) for metric in METRICS]
        lines.append([difference.name, *cells, str(difference.metrics["psnr"].n), difference.verdict])
    return _to_markdown(lines)


def _write_difference(interval: Interval, decimals: int) -> str:
    if math.isnan(interval.mean):
        return "-"
    limits = "" if math.isnan(interval.low) else f" [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"
    return f"{interval.mean:+.{decimals}f}{limits}"


def compare_datasets(first: Sequence[Row], second: Sequence[Row]) -> list[Difference]:
    """Each network scored on one dataset minus itself on another, over the seeds of both; nothing unless the test patches are the same."""
    others = {row.name: row for row in second}
    pairs = [(row, others[row.name]) for row in first if row.name in others and row.runs.keys() & others[row.name].runs.keys()]
    return [compare_rows(row, other) for row, other in pairs if _patches_of(row) == _patches_of(other)]


def _patches_of(row: Row) -> tuple[str, ...]:
    return next(iter(row.runs.values())).patches


def write_dataset_table(first: str, second: str, differences: Sequence[Difference]) -> str:
    """The same networks on two datasets of the same test patches, in Markdown."""
    lines = [[f"{first} minus {second}", *(heading for heading, _ in METRICS.values()), "n seeds", f"on {first} it is, by PSNR"]]
    for difference in differences:
        cells = [_write_difference(difference.metrics[metric], METRICS[metric][1]) for metric in METRICS]
        lines.append([difference.name, *cells, str(difference.metrics["psnr"].n), difference.verdict])
    return f"## {first} against {second}: the same test patches\n\n{_to_markdown(lines)}"


def _to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the heading, as a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]]) + "\n"


def to_json(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """The table as plain values: per row its facts, its means by seed and over them, and the reference minus it."""
    ours = next((row for row in rows if row.name == reference and row.runs), None)
    return [_describe_row(row, None if ours is None or row is ours else compare_rows(ours, row)) for row in rows if row.runs or row.fixed]


def _describe_row(row: Row, difference: Difference | None) -> dict[str, Any]:
    seeds = row.means()
    means = {
        f"{region} {metric}": _plain(
            to_interval([of[region, metric] for of in seeds.values()]) if seeds else _exact(row.fixed, (region, metric))
        )
        for region, metric in COLUMNS
    }
    by_seed = {str(seed): {f"{region} {metric}": _finite(value) for (region, metric), value in of.items()} for seed, of in seeds.items()}
    described: dict[str, Any] = {"name": row.name, "facts": row.facts, "means": means, "by_seed": by_seed}
    if difference is not None:
        metrics = {metric: _plain(interval) for metric, interval in difference.metrics.items()}
        described["reference_minus_it"] = {**metrics, "verdict": difference.verdict}
    return described


def _plain(interval: Interval) -> dict[str, float | int | None]:
    return {name: _finite(value) for name, value in interval._asdict().items()}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
