"""What the report says of cloud removal: the verdict against every baseline, tables of scores by region, and scores by cloud cover.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from sereno.model.gallery import BASELINE_WORDS
from sereno.model.holdout import GROUND_WORDS, describe_dataset
from sereno.model.page import Block, Cell, Heading, Shot, Shots, Table, Text, mark_best, show_count, show_number, show_range
from sereno.model.pictures import Bars, assign_colours, draw_bars
from sereno.model.results import Json, Results, RunResults
from sereno.model.verdicts import HEADINGS, call_difference, compare_runs, find_digits, is_larger_better, name_metric, show_score

REGION_WORDS: Final = {"cloudy": "Under clouds and shadows", "clear": "Where the input is clear", "all": "All valid pixels"}
"""Headings of the regions, the one that matters first."""
COMPARED: Final = ("psnr", "ssim")
"""Metrics of the comparison."""
COLUMNS: Final = ("psnr", "ssim", "sam_deg", "mae", "rmse", "ergas")
"""Metrics of the score tables, in reading order."""


def describe_result(results: Results) -> list[Block]:
    """In words: what the networks are worth on held-out ground, and what they were measured on."""
    blocks: list[Block] = []
    if not results.runs:
        blocks.append(Text("No run has scores yet: run `sereno evaluate`.", "missing"))
    for run in results.runs:
        blocks += _describe_run(run)
    scored = [run for run in results.runs if run.scores and run.summary]
    blocks += [compare_runs({run.name: run for run in scored}, "cloudy", COMPARED, place="under clouds")] if len(scored) > 1 else []
    blocks += describe_dataset(results)
    return blocks


def _describe_run(run: RunResults) -> list[Block]:
    if run.summary is None:
        return [Text(f"{run.name} has no scores: run `sereno evaluate`.", "missing")]
    summary = run.summary
    reached = summary["scores"]["network"]["cloudy"]
    if reached["psnr"]["mean"] is None:
        return [Text(f"{run.name}: none of the {summary['patches']} {summary['split']} patches has a cloudy pixel to score.", "missing")]
    ground = f"{summary['patches']} {summary['split']} patches of {summary['blocks']} ground blocks"
    psnr, ssim = show_number(reached["psnr"]["mean"], 2), show_number(reached["ssim"]["mean"], 3)
    head = f"On {GROUND_WORDS[summary['split']]}, under clouds, {run.name} reaches {psnr} dB PSNR and {ssim} SSIM"
    verdict, tone = _judge(summary["network_minus"])
    table = Table(
        ("network minus", "PSNR, dB", "95 % interval", "SSIM", "95 % interval", "patches", "blocks"),
        [_compare_row(name, summary["network_minus"][name]) for name in _list_baselines(summary)],
    )
    return [Text(f"{head}. {verdict} Measured on {ground}.", tone), table]


def _list_baselines(summary: Json) -> list[str]:
    return [name for name in summary["methods"] if name != "network"]


def _compare_row(name: str, compared: Json) -> list[Cell]:
    psnr, ssim = compared["psnr"]["by_block"], compared["ssim"]["by_block"]
    words = (
        BASELINE_WORDS.get(name, name), show_number(psnr["mean"], 2, sign=True), show_range(psnr, 2),
        show_number(ssim["mean"], 4, sign=True), show_range(ssim, 4), str(psnr["n"]), str(psnr["n_groups"]),
    )  # fmt: skip
    return [Cell(word) for word in words]


def _judge(compared: Json) -> tuple[str, str]:
    """Sentences that never hide a baseline that wins, and their tone."""
    lost: list[str] = []
    unsure: list[str] = []
    won: list[str] = []
    names = [name for name in compared if isinstance(compared[name], dict)]
    for name in sorted(names, key=lambda name: [*BASELINE_WORDS, name].index(name)):
        label = BASELINE_WORDS.get(name, name)
        found: defaultdict[str, list[str]] = defaultdict(list)
        for metric in COMPARED:
            interval = compared[name][metric]["by_block"]
            if interval["mean"] is not None:
                called = call_difference(interval, metric)
                behind = f" (95 % interval {show_range(interval, find_digits(metric))})" if called == "behind" else ""
                found[called].append(f"{show_score(metric, abs(interval['mean']))} {name_metric(metric)}{behind}")
        for called, sentences in (("behind", lost), ("level", unsure), ("ahead", won)):
            if found[called]:
                sentences.append(f"the {label} by {' and '.join(found[called])}")
    said = [f"It is behind {'; and behind '.join(lost)}."] if lost else []
    said += [f"It beats {', '.join(won)}."] if won else []
    said += [f"It is ahead of {', '.join(unsure)}, but not clearly: the 95 % interval reaches zero or there is none."] if unsure else []
    return " ".join(said), "bad" if lost else "plain" if unsure else "good"


def describe_scores(results: Results) -> list[Block]:
    """Methods by metrics for each region, and by cloud cover; several runs side by side."""
    summaries = {run.name: run.summary for run in results.runs if run.summary is not None}
    if not summaries:
        return [Text("No run has scores yet: run `sereno evaluate`.", "missing")]
    methods = _collect_methods(summaries)
    blocks: list[Block] = [_explain_methods(summaries)]
    regions = next(iter(summaries.values()))["regions"]
    for region, words in REGION_WORDS.items():
        rows = [_to_score_row(label, summary["scores"][name][region]) for label, (name, summary) in methods.items()]
        larger = [is_larger_better(metric) for metric in COLUMNS]
        blocks += [Heading(words), Text(f"{_capitalise(regions[region])}.", "small")]
        blocks.append(Table(("method", *(HEADINGS[metric] for metric in COLUMNS), "patches", "pixels"), mark_best(rows, larger)))
    return [*blocks, Heading("By cloud cover of the input"), *_draw_cover(methods)]


def _collect_methods(summaries: Mapping[str, Json]) -> dict[str, tuple[str, Json]]:
    """Label to method and the summary it is taken from: networks first, then baselines, told apart where runs saw other patches."""
    methods = {name: ("network", summary) for name, summary in summaries.items()}
    for run, summary in summaries.items():
        for name in _list_baselines(summary):
            label = BASELINE_WORDS.get(name, name)
            known = methods.get(label)
            if known is None:
                methods[label] = (name, summary)
            elif known[1]["scores"][name] != summary["scores"][name]:
                methods[f"{label} (patches of {run})"] = (name, summary)
    return methods


def _explain_methods(summaries: Mapping[str, Json]) -> Text:
    summary = next(iter(summaries.values()))
    words = "; ".join(f"{BASELINE_WORDS.get(name, name)}: {summary['methods'][name]}" for name in _list_baselines(summary))
    scored = ", ".join(f"{name} on {summary['patches']} {summary['split']} patches" for name, summary in summaries.items())
    return Text(
        "Means over patches, all bands, reflectance not clipped, PSNR with peak 1, ERGAS with ratio 1; the best of each column is bold. "
        f"Scored: {scored}. {words}."
    )


def _to_score_row(label: str, scores: Json) -> list[Cell]:
    values = [show_number(scores[metric]["mean"], find_digits(metric)) for metric in COLUMNS]
    exact = scores["psnr"]["n_infinite"]
    patches = f"{scores['psnr']['n']}" + (f" + {exact} exact" if exact else "")
    return [Cell(word) for word in (label, *values, patches, show_count(scores["n_pixels"]))]


def _draw_cover(methods: Mapping[str, tuple[str, Json]]) -> list[Block]:
    """PSNR and SSIM of cloudy pixels by cloud cover of the input."""
    bins = next(iter(methods.values()))[1]["by_cover"]
    kept = [place for place, entry in enumerate(bins) if entry["patches"]]
    groups = [f"{bins[place]['cover_pct'][0]}–{bins[place]['cover_pct'][1]} %\nn = {bins[place]['patches']}" for place in kept]
    colours = _colour_methods(methods)
    shots = []
    for metric in COMPARED:
        bars = [
            Bars(label, [_to_float(summary["by_cover"][place]["scores"][name]["cloudy"][metric]["mean"]) for place in kept], colours[label])
            for label, (name, summary) in methods.items()
        ]
        words, digits = HEADINGS[metric].removesuffix(" ↑"), find_digits(metric) // 2
        drawn = draw_bars(groups, bars, x_label="cloud and shadow in the input", y_label=words, digits=digits)
        shots.append(Shot(drawn, f"{name_metric(metric)} under clouds"))
    empty = [f"{low}–{high} %" for low, high in (entry["cover_pct"] for entry in bins if not entry["patches"])]
    blocks: list[Block] = [Shots(shots, "wide")]
    return [*blocks, Text(f"No patch has a cloud cover of {', '.join(empty)}.", "small")] if empty else blocks


def _colour_methods(methods: Mapping[str, tuple[str, Json]]) -> Mapping[str, str]:
    networks = [label for label, (name, _) in methods.items() if name == "network"]
    return assign_colours([label for label in methods if label not in networks], networks)


def _to_float(value: float | None) -> float:
    return math.nan if value is None else value


def _capitalise(words: str) -> str:
    return words[:1].upper() + words[1:]
