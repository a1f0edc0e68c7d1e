"""What the report says of a run of any other task than cloud removal: a verdict, tables by protocol, and example patches.

Results enter; blocks of the page leave. What is scored, where and by which metrics stands in each run's summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.model.page import Block, Cell, Heading, Shot, Shots, Table, Text, mark_best, show_number, show_range
from sereno.model.pictures import Picture, Stretch, encode_png, measure_stretch, to_true_colour
from sereno.model.results import Json, Results, RunResults, read_examples
from sereno.pipeline.bands import rgb_indices
from sereno.pipeline.errors import MissingError

DIGITS: Final = {"psnr": 2, "sam_deg": 2, "ergas": 2}
"""Decimals of metrics; of all others 4."""
HEADINGS: Final = {
    "psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "sam_deg": "SAM, ° ↓", "mae": "MAE ↓", "rmse": "RMSE ↓", "ergas": "ERGAS, % ↓", "q2n": "Q2n ↑",
    "d_lambda": "D_λ ↓", "d_s": "D_s ↓", "qnr": "QNR ↑",
}  # fmt: skip
"""Headings of metrics; the arrow says which direction is better."""
COLOURS: Final = ("B04", "B03", "B02")
"""Names under which three bands are shown as red, green and blue."""
PICTURE_PX: Final = 192
"""Smallest side of the picture of a patch; coarse images are shown with larger pixels."""

Array = npt.NDArray[Any]


class View(NamedTuple):
    """One picture of an example patch."""

    label: str
    """What it is, in words."""
    array: str
    """Name of the stored array."""
    date: int | None = None
    """Place along the date axis of arrays that have one."""


VIEWS: Final[Mapping[str, tuple[View, ...]]] = {
    "pansharpening": (View("multispectral", "ms"), View("bicubic", "bicubic"), View("GSA", "gsa")),
    "spatiotemporal-fusion": (
        View("fine, first date", "fine", 0),
        View("fine, last date", "fine", 2),
        View("coarse, middle date", "coarse", 1),
        View("linear in time", "linear"),
        View("after STARFM", "starfm"),
        View("fine, middle date: the truth", "fine", 1),
    ),
    "snapshot-reconstruction": (View("estimate", "estimate"), View("cube: the truth", "cube")),
}
"""What is shown of each task beside the networks' answers, which come first."""


def describe_verdicts(results: Results) -> list[Block]:
    """In words and intervals: what each network is worth against every baseline, on what ground."""
    scored = [run for run in results.runs if run.summary is not None]
    if not scored:
        return [Text("No run has scores yet: run `sereno evaluate`.", "missing")]
    return [block for run in scored for block in _describe_run(run)]


def _describe_run(run: RunResults) -> list[Block]:
    summary = run.summary
    assert summary is not None
    compared = dict(summary["network_minus"])
    region, _ = compared.pop("region"), compared.pop("note")
    metrics = [metric for metric in summary["metrics"] if metric in next(iter(compared.values()))]
    scores = {method: summary["scores"][method][region] for method in summary["methods"]}
    leader = metrics[0]
    best = _find_best(scores, leader)
    ground = f"{summary['patches']} {summary['split']} patches of {summary['blocks']} ground blocks"
    ours, theirs = (show_number(scores[method][leader]["mean"], DIGITS.get(leader, 4)) for method in ("network", best))
    interval = compared[best][leader]["by_block"]
    said = f"{run.name}: {HEADINGS[leader][:-2]} {ours}, the best baseline ({best}) {theirs}; {region}: {summary['regions'][region]}."
    rows = [_to_difference_row(name, compared[name], metrics) for name in compared]
    head = ("network minus", *(word for metric in metrics for word in (HEADINGS[metric], "95 % interval")))
    return [Text(f"{said} Measured on {ground}.", _grade(interval, leader)), Table(head, rows)]


def _find_best(scores: Mapping[str, Json], metric: str) -> str:
    """The baseline with the best mean of a metric."""
    means = {name: score[metric]["mean"] for name, score in scores.items() if name != "network" and score[metric]["mean"] is not None}
    choose = max if _is_larger_better(metric) else min
    return choose(means, key=lambda name: means[name]) if means else next(name for name in scores if name != "network")


def _grade(interval: Json, metric: str) -> str:
    """Tone of a difference: good and bad are told only where the whole interval lies on one side."""
    if interval["mean"] is None or interval["low"] is None:
        return "plain"
    low, high = (interval["low"], interval["high"]) if _is_larger_better(metric) else (-interval["high"], -interval["low"])
    return "good" if low > 0 else "bad" if high <= 0 else "plain"


def _is_larger_better(metric: str) -> bool:
    return HEADINGS[metric].endswith("↑")


def _to_difference_row(name: str, compared: Json, metrics: Sequence[str]) -> list[Cell]:
    cells = [name]
    for metric in metrics:
        interval, digits = compared[metric]["by_block"], DIGITS.get(metric, 4)
        cells += [show_number(interval["mean"], digits, sign=True), show_range(interval, digits)]
    return [Cell(word) for word in cells]


def describe_tables(results: Results) -> list[Block]:
    """Methods by metrics, a table for each region or protocol of each run."""
    blocks: list[Block] = []
    for run in results.runs:
        if run.summary is None:
            continue
        blocks.append(Text("; ".join(f"{name}: {words}" for name, words in run.summary["methods"].items()) + ".", "small"))
        for region, words in run.summary["regions"].items():
            blocks += [Heading(f"{run.name}, {region}"), Text(f"{words}.", "small"), _tabulate(run.summary, region)]
    return blocks or [Text("No run has scores yet: run `sereno evaluate`.", "missing")]


def _tabulate(summary: Json, region: str) -> Table:
    """Mean scores of every method, of the metrics that the region has."""
    scores = {method: summary["scores"][method][region] for method in summary["methods"]}
    metrics = [metric for metric in HEADINGS if metric in summary["metrics"] and any(score[metric]["n"] for score in scores.values())]
    rows = [
        [Cell(method), *(Cell(show_number(score[metric]["mean"], DIGITS.get(metric, 4))) for metric in metrics)]
        for method, score in scores.items()
    ]
    return Table(("method", *(HEADINGS[metric] for metric in metrics)), mark_best(rows, [_is_larger_better(metric) for metric in metrics]))


def describe_patches(results: Results) -> list[Block]:
    """Some patches with every run's answer beside what it was made of."""
    blocks: list[Block] = []
    for run in results.runs:
        arrays = read_examples(run)
        if not arrays or run.summary is None:
            continue
        task = run.summary["checkpoint"]["task"]
        views = (View(run.name, "prediction"), *(view for view in VIEWS[task] if view.array in arrays))
        stretch = _stretch_like(arrays["prediction"], tuple(arrays["bands"].tolist()))
        for place, name in enumerate(arrays["id"].tolist()):
            shots = [_show_view(arrays, place, view, stretch) for view in views]
            blocks += [Heading(name), Shots(shots, "patch", len(shots))]
    return blocks or [Text("No example patches were kept: set `evaluate.examples` above 0 and run `sereno evaluate`.", "missing")]


def _show_view(arrays: Mapping[str, Array], place: int, view: View, stretch: Stretch) -> Shot:
    image = arrays[view.array][place]
    shown = _to_colours(image if view.date is None else image[view.date], tuple(arrays["bands"].tolist()))
    picture = to_true_colour(shown, np.ones(shown.shape[1:], bool), bands=COLOURS, stretch=stretch)
    return Shot(encode_png(_enlarge(picture)), view.label)


def _stretch_like(images: Array, bands: tuple[str, ...]) -> Stretch:
    """One stretch for all pictures of a run: (patch, band, y, x)."""
    return measure_stretch([(_to_colours(image, bands), np.ones(image.shape[1:], bool)) for image in images], COLOURS)


def _to_colours(image: Array, bands: tuple[str, ...]) -> Array:
    """Three bands to show: red, green and blue where there are such, else the last, the middle and the first: (band, y, x) -> (3, y, x)."""
    try:
        places = list(rgb_indices(bands))
    except MissingError:
        places = [len(bands) - 1, len(bands) // 2, 0]
    chosen: Array = image[places]
    return chosen


def _enlarge(picture: Picture) -> Picture:
    """Pixels repeated until the picture is large enough to be seen."""
    factor = max(1, -(-PICTURE_PX // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
