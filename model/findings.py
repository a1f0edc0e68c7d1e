"""What the report says of runs of any other task than cloud removal: verdicts in words, what the metrics are worth, tables by protocol.

Results enter; blocks of the page leave. What is scored, where and by which metrics stands in each run's summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sereno.model.holdout import GROUND_WORDS
from sereno.model.indices import WITHOUT_TRUTH
from sereno.model.page import Block, Cell, Heading, Table, Text, mark_best, show_number, show_range
from sereno.model.results import Json, Results, RunResults, network_of, task_of
from sereno.model.verdicts import HEADINGS, call_difference, compare_runs, find_digits, grade, is_larger_better, name_metric, show_score

LABELS: Final = {
    "bicubic": "bicubic", "brovey": "Brovey", "gsa": "GSA", "nearest": "nearest date", "linear": "line in time",
    "change": "coarse change", "starfm": "STARFM-like", "estimate": "initial estimate", "first": "picture shifted back", "gap-tv": "GAP-TV",
}  # fmt: skip
"""Short names of methods that need no weights."""
REGION_WORDS: Final = {
    ("pansharpening", "reduced"): "At reduced resolution, where the truth is known",
    ("pansharpening", "full"): "At full resolution, where nobody knows the truth",
    ("spatiotemporal-fusion", "changed"): "Where the land changed",
    ("spatiotemporal-fusion", "all"): "All clear pixels",
    ("snapshot-reconstruction", "all"): "All valid pixels",
}
"""Headings of regions and protocols, those first that verdicts rest on."""
EXPLANATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "pansharpening": (
        "Reduced resolution (Wald et al. 1997): both images are made coarser by the ratio of their pixels, so that the multispectral "
        "image as it was taken is the truth. PSNR, MAE and RMSE compare reflectance, SSIM structure, SAM the angle between spectra, ERGAS "
        "the error relative to each band's mean, divided by that ratio, Q2n all bands together (1 is perfect). What is learnt at this "
        "scale is used at the finer one, where nobody can check it.",
        "Full resolution (Alparone et al. 2008): D_λ says how far the likeness of bands to each other changed, D_s that of bands to the "
        "sharp image, and QNR = (1 − D_λ)(1 − D_s). None of them knows the truth. On real 20 m bands of Sentinel-2 QNR ranks bicubic "
        "enlargement first, which adds no detail at all: read it to notice that a method spoils colours, and never as a verdict.",
    ),
    "spatiotemporal-fusion": (
        "Most land hardly changes between the dates, and there the line in time is right by itself. What a method is worth shows where "
        "land changed: pixels of the middle date that lie off the mean of both outer dates. RMSE and MAE are in reflectance, SAM is the "
        "angle between spectra, ERGAS the error relative to each band's mean, divided by the ratio of coarse pixels to fine ones.",
    ),
    "snapshot-reconstruction": (
        "A snapshot is one grey picture in which all bands lie shifted over each other behind a coded aperture. The network is given an "
        "initial estimate of the cube made from it, and adds to it: what it is worth is what it gains over that estimate, and over "
        "GAP-TV, the classical way. SAM is the angle between spectra, the measure of their shape; ERGAS is taken with ratio 1.",
    ),
}
"""What metrics and regions mean, in paragraphs by task."""
LEADERS: Final = {"spatiotemporal-fusion": "rmse"}
"""The metric that the verdict on a task rests on; of all others PSNR."""
BASES: Final = {
    "gap-tv": "some rounds of GAP-TV, fewer than those of the baseline",
    "gap-tv-full": "GAP-TV with all the rounds of the baseline",
    "open": "the mean of all bands that met in a detector pixel",
    "first": "the picture shifted back and masked, divided by the light of each detector pixel",
}
"""What the initial estimate of a snapshot is, by `network.base`."""


def list_scored(results: Results) -> list[RunResults]:
    """Runs of the page's task that have scores."""
    return [run for run in results.runs if run.summary is not None and task_of(run) == results.task]


def name_run(run: RunResults) -> str:
    """A run as it is called on the page: its name, and its network where that is called otherwise."""
    network = network_of(run)
    return run.name if network in ("", run.name) else f"{run.name} ({network})"


def describe_verdicts(results: Results) -> list[Block]:
    """In words and intervals: what each network is worth against every baseline, on what ground; runs of another task are named."""
    blocks: list[Block] = []
    for run in results.runs:
        if run.summary is None:
            blocks.append(Text(f"{run.name} has no scores: run `sereno evaluate`.", "missing"))
        elif task_of(run) != results.task:
            blocks.append(
                Text(f"{name_run(run)} is for {task_of(run)}, this page for {results.task}: its scores are not shown.", "missing")
            )
        else:
            blocks += _describe_run(run, run.summary)
    scored = list_scored(results)
    if len(scored) > 1 and scored[0].summary is not None and (metrics := list_compared(scored[0].summary)):
        region = str(scored[0].summary["network_minus"].get("region"))
        blocks.append(compare_runs({name_run(run): run for run in scored}, region, metrics, place=region))
    return blocks or [Text("No run has scores yet: run `sereno evaluate`.", "missing")]


def _describe_run(run: RunResults, summary: Json) -> list[Block]:
    """The verdict, and all differences with their intervals."""
    told: Json = summary.get("network_minus") or {}
    compared: dict[str, Json] = {name: found for name, found in told.items() if isinstance(found, dict)}
    region = str(told.get("region"))
    if not compared:
        return [Text(f"{name_run(run)} was evaluated by an older version, which compared nothing: run `sereno evaluate` again.", "missing")]
    metrics = list_compared(summary)
    scores = {method: summary["scores"][method][region] for method in summary["methods"]}
    if not metrics or scores["network"][metrics[0]]["mean"] is None:
        return [Text(f"{name_run(run)}: nothing of the {summary['patches']} {summary['split']} patches could be scored.", "missing")]
    said, tone = _judge(scores, compared, metrics)
    place = REGION_WORDS.get((task_of(run), region), region)
    ours = show_score(metrics[0], scores["network"][metrics[0]]["mean"])
    head = f"{place}, on {GROUND_WORDS[summary['split']]}, {name_run(run)} reaches {ours} {name_metric(metrics[0])}"
    ground = f"Measured on {summary['patches']} {summary['split']} patches of {summary['blocks']} ground blocks"
    return [
        Text(f"{head}. {said} {ground}.", tone),
        *_list_lost(summary),
        Table(
            ("network minus", *(word for metric in metrics for word in (HEADINGS[metric], "95 % interval"))),
            [_to_difference_row(name, compared[name], metrics) for name in compared],
        ),
    ]


def _judge(scores: Mapping[str, Json], compared: Mapping[str, Json], metrics: Sequence[str]) -> tuple[str, str]:
    """Sentences that name the best baseline and every baseline that wins, and their tone: that of the difference to the best one."""
    leader = metrics[0]
    best = find_best(scores, leader)
    behind: list[str] = []
    level: list[str] = []
    ahead: list[str] = []
    for name, found in compared.items():
        ours = {metric: found[metric]["by_block"] for metric in metrics if found[metric]["by_block"]["mean"] is not None}
        lost = [metric for metric in ours if call_difference(ours[metric], metric) == "behind"]
        if lost:
            behind.append(f"{LABELS.get(name, name)} by {' and '.join(_show_difference(ours[metric], metric) for metric in lost)}")
        if leader in ours and leader not in lost:
            chosen, tone = (ahead, True) if call_difference(ours[leader], leader) == "ahead" else (level, False)
            chosen.append(f"{LABELS.get(name, name)} by {_show_difference(ours[leader], leader, is_short=tone)}")
    said = [f"The best baseline by it is {LABELS.get(best, best)} with {show_score(leader, scores[best][leader]['mean'])}."]
    said += [f"The network is behind {'; behind '.join(behind)}."] if behind else []
    said += [f"It beats {', '.join(ahead)}."] if ahead else []
    said += [f"It is ahead of {', '.join(level)}, but not clearly: the interval reaches zero or there is none."] if level else []
    return " ".join(said), grade(compared[best][leader]["by_block"], leader)


def _show_difference(interval: Json, metric: str, *, is_short: bool = False) -> str:
    """How far apart, by which metric, and how sure that is."""
    words = f"{show_score(metric, abs(interval['mean']))} {name_metric(metric)}"
    return words if is_short else f"{words} (95 % interval {show_range(interval, find_digits(metric))})"


def _list_lost(summary: Json) -> list[Block]:
    """Every region and metric with truth in which a baseline has the better mean, but for those of the verdict."""
    told = [((summary.get("network_minus") or {}).get("region"), metric) for metric in list_compared(summary)]
    lost = []
    for region in summary["regions"]:
        for metric in summary["metrics"]:
            scores = {method: summary["scores"][method][region] for method in summary["methods"]}
            if (region, metric) in told or metric in WITHOUT_TRUTH or metric not in HEADINGS or scores["network"][metric]["mean"] is None:
                continue
            best, ours = find_best(scores, metric), scores["network"][metric]["mean"]
            theirs = scores[best][metric]["mean"]
            if theirs is not None and (theirs > ours if is_larger_better(metric) else theirs < ours):
                numbers = f"{show_score(metric, theirs)} against {show_score(metric, ours)}"
                lost.append(f"{name_metric(metric)} {region}: {LABELS.get(best, best)} {numbers}")
    return [Text(f"Other means by which a baseline is better than the network: {'; '.join(lost)}.")] if lost else []


def find_best(scores: Mapping[str, Json], metric: str) -> str:
    """The baseline with the best mean of a metric."""
    means = {name: score[metric]["mean"] for name, score in scores.items() if name != "network" and score[metric]["mean"] is not None}
    choose = max if is_larger_better(metric) else min
    return choose(means, key=lambda name: means[name]) if means else next(name for name in scores if name != "network")


def list_compared(summary: Json) -> list[str]:
    """Metrics in which a network is compared with baselines, that which the verdict rests on first; none in old summaries."""
    known = next((found for found in (summary.get("network_minus") or {}).values() if isinstance(found, Mapping)), {})
    leader = LEADERS.get(summary["checkpoint"].get("task"))
    return sorted((metric for metric in HEADINGS if metric in known), key=lambda metric: metric != leader)


def find_rival(summary: Json) -> str:
    """The baseline that the verdict is against."""
    region = summary["network_minus"]["region"]
    scores = {method: summary["scores"][method][region] for method in summary["methods"]}
    return find_best(scores, list_compared(summary)[0])


def _to_difference_row(name: str, compared: Json, metrics: Sequence[str]) -> list[Cell]:
    cells = [LABELS.get(name, name)]
    for metric in metrics:
        interval, digits = compared[metric]["by_block"], find_digits(metric)
        cells += [show_number(interval["mean"], digits, sign=True), show_range(interval, digits)]
    return [Cell(word) for word in cells]


def describe_tables(results: Results) -> list[Block]:
    """What methods and metrics are, then methods by metrics, a table for each region or protocol with all runs in it."""
    scored = list_scored(results)
    if not scored:
        return [Text("No run has scores yet: run `sereno evaluate`.", "missing")]
    summaries = {name_run(run): run.summary for run in scored if run.summary is not None}
    blocks: list[Block] = [Text(words) for words in EXPLANATIONS.get(results.task, ())]
    blocks += _explain_bases(scored)
    methods = {name: words for summary in summaries.values() for name, words in summary["methods"].items() if name != "network"}
    told = "; ".join(f"{LABELS.get(name, name)}: {words}" for name, words in methods.items())
    blocks.append(Text(f"Means over patches; the best of each column is bold. {told}.", "small"))
    regions = {name: words for summary in summaries.values() for name, words in summary["regions"].items()}
    order = [region for task, region in REGION_WORDS if task == results.task and region in regions]
    for region in (*order, *(name for name in regions if name not in order)):
        heading = REGION_WORDS.get((results.task, region), region)
        blocks += [Heading(heading), Text(f"{regions[region]}.", "small"), _tabulate(summaries, region)]
    return blocks


def _explain_bases(scored: Sequence[RunResults]) -> list[Block]:
    """What the initial estimates of snapshots are."""
    runs = [run for run in scored if task_of(run) == "snapshot-reconstruction"]
    bases = {name_run(run): ((run.summary or {})["checkpoint"]["settings"]["network"]).get("base") for run in runs}
    said = [f"{name}: {BASES.get(base, base)}" for name, base in bases.items() if base]
    return [Text(f"The initial estimate (`network.base`) of {'; of '.join(said)}.")] if said else []


def _tabulate(summaries: Mapping[str, Json], region: str) -> Table:
    """Mean scores of every method in a region, of the metrics that it has; networks first."""
    scores = {name: score[region] for name, score in collect_scores(summaries).items() if region in score}
    metrics = [metric for metric in HEADINGS if any(score.get(metric, {}).get("n") for score in scores.values())]
    rows = [
        [Cell(name), *(Cell(show_number(score.get(metric, {}).get("mean"), find_digits(metric))) for metric in metrics)]
        for name, score in scores.items()
    ]
    return Table(("method", *(HEADINGS[metric] for metric in metrics)), mark_best(rows, [is_larger_better(metric) for metric in metrics]))


def collect_scores(summaries: Mapping[str, Json]) -> dict[str, Json]:
    """Scores by region of every run's network by its name, then of the baselines; these are told apart where runs saw them differ."""
    scores = {name: summary["scores"]["network"] for name, summary in summaries.items()}
    for run, summary in summaries.items():
        for method in summary["methods"]:
            label, found = LABELS.get(method, method), summary["scores"][method]
            if method != "network" and scores.setdefault(label, found) != found:
                scores[f"{label} (of {run})"] = found
    return scores
