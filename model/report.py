"""`sereno report`: one self-contained page with pictures, maps, curves and tables.

The results tree of the other steps enters; one HTML file leaves, with every picture inside it. What is missing is named on the page,
with the step that would make it. A function per section, in the order of the page.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import rasterio
import torch

from sereno.model.accounts import describe_accounts
from sereno.model.alignment import Measured, describe_fields, list_fields
from sereno.model.config import ReportSettings
from sereno.model.findings import describe_patches, describe_tables, describe_verdicts
from sereno.model.gallery import BASELINE_WORDS, choose_stretch, describe_examples, describe_progress, describe_scenes
from sereno.model.metrics import bootstrap_difference
from sereno.model.page import (
    NOTHING,
    Block,
    Cell,
    Heading,
    Section,
    Shot,
    Shots,
    Table,
    Text,
    mark_best,
    render_page,
    show_day,
    show_first,
    show_number,
    show_range,
)
from sereno.model.pictures import (
    Arrow,
    Arrows,
    Bars,
    Line,
    Plot,
    assign_colours,
    draw_arrows,
    draw_bars,
    draw_histogram,
    draw_lines,
    draw_map,
)
from sereno.model.results import Json, Key, Results, RunResults, find_true_shift, read_results
from sereno.pipeline.errors import MissingError
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.patches import SPLITS
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS
from sereno.pipeline.store import write_text

logger = logging.getLogger(__name__)

CLEARING: Final = "cloud-removal"
"""The task that a dataset is for which does not say."""
MAX_SHOWN: Final = 12
"""Maps and shift fields shown; how many more there are is said."""
NARROW_SPACE: Final = "\u202f"
"""Between groups of three digits."""
PAIR_COLUMNS: Final = ("area", "pair", "cloudy", "cloud, %", "clear", "days", "SAR", "days", "windows kept", "of")
"""Headings of the table of pairs."""
SHIFT_COLUMNS: Final = (
    "area", "pair", "image", "verdict", "dy, px", "dx, px", "east, m", "north, m", "scatter, px", "windows: agreeing", "good",
    "all",
)  # fmt: skip
"""Headings of the table of shifts."""
TRUTH_COLUMNS: Final = ("true dy, px", "true dx, px", "off before, m", "off after, m", "off after, px")
"""Further headings where the world is simulated."""
ROLE_WORDS: Final = {"sar": "SAR", "cloudy": "The cloudy image"}
"""What is registered to the clear scene, in a sentence."""
SETTING_WORDS: Final = {
    "min_valid": "too little valid in SAR, input and target",
    "max_target_cloud": "too much cloud and shadow in the target",
    "min_input_cloud": "too little cloud and shadow in the input",
}
"""Limits of `patch` in words."""
GROUND_WORDS: Final = {
    "test": "held-out ground",
    "val": "validation ground, which chose the weights",
    "train": "the ground it was trained on, which shows memory and not skill",
}
"""What a score on a split is worth."""
NOT_PARTS: Final = ("step", "lr", "grad_norm", "total")
"""Columns of the history that are no part of the loss; nor are those of the validation."""
REGION_WORDS: Final = {"cloudy": "Under clouds and shadows", "clear": "Where the input is clear", "all": "All valid pixels"}
"""Headings of the regions, the one that matters first."""
COMPARED: Final = (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 4))
"""Metrics of the comparison: key, name, unit, digits."""
PACKAGES: Final = ("sereno", "torch", "numpy", "xarray", "zarr", "rasterio", "odc-geo", "scipy", "snakemake", "matplotlib")
"""Software whose versions are named."""
BOOTSTRAP_SEED: Final = 0


class Metric(NamedTuple):
    """A column of the score tables."""

    key: str
    """Its key in the summary."""
    heading: str
    """Its heading, with the unit and the direction that is better."""
    digits: int
    """Decimals shown."""
    is_larger_better: bool
    """Whether the largest value is the best."""


class Errors(NamedTuple):
    """How far an image lies from where it belongs, in the middle of the scene."""

    true_px: tuple[float, float]
    """Rows and columns by which it lay off the clear scene, pixels of the grid."""
    before_m: float
    """Metres from the clear scene before it was moved."""
    after_m: float
    """Metres from the clear scene after."""
    after_px: float
    """The same in pixels of the grid."""


METRIC_COLUMNS: Final = (
    Metric("psnr", "PSNR, dB ↑", 2, True),
    Metric("ssim", "SSIM ↑", 4, True),
    Metric("sam_deg", "SAM, ° ↓", 2, False),
    Metric("mae", "MAE ↓", 4, False),
    Metric("rmse", "RMSE ↓", 4, False),
    Metric("ergas", "ERGAS, % ↓", 2, False),
)
"""Metrics of the score tables, in reading order."""


def write_report(results: Path, output: Path, settings: ReportSettings, *, runs: tuple[str, ...] = ()) -> None:
    """Write the page about `results` to `output`; `runs` names the runs to show, none named means all that have scores.

    Raises:
        MissingError: there is no such folder.
        StoreError: a file that is there is damaged, or the page cannot be written.
    """
    if not results.is_dir():
        raise MissingError(f"results folder {results} does not exist: run the workflow first, or name the folder that it wrote to")
    started = time.monotonic()
    logger.info("report: reading %s", results)
    found = read_results(results, runs)
    sections = _compose_other(found) if _is_other(found) else _compose_clearing(found, settings)
    page = render_page(settings.title, sections)
    write_text(output, page)
    logger.info("report: wrote %s, %.1f MB in %.1f s", output, len(page) / 1e6, time.monotonic() - started)


def _is_other(found: Results) -> bool:
    """Whether the dataset is for another task than cloud removal."""
    return bool((found.dataset or {}).get("task", CLEARING) != CLEARING)


def _compose_other(found: Results) -> list[Section]:
    """The page of the tasks other than cloud removal."""
    return [
        Section("result", "Result", describe_verdicts(found) + _describe_dataset(found)),
        Section("scores", "Scores", describe_tables(found)),
        Section("examples", "Example patches", describe_patches(found)),
        Section("training", "Training", describe_training(found) + describe_progress(found)),
        Section("ledger", "Ledger", describe_accounts(found)),
        Section("left-out", "What was left out", describe_losses(found)),
        Section("making", "How it was made", describe_making(found)),
    ]


def _compose_clearing(found: Results, settings: ReportSettings) -> list[Section]:
    """The page of cloud removal."""
    stretch = choose_stretch(found)
    return [
        Section("result", "Result", describe_result(found)),
        Section("scenes", "Cleared scenes", describe_scenes(found, stretch, picture_px=settings.scene_picture_px)),
        Section("scores", "Scores", describe_scores(found)),
        Section("examples", "Example patches", describe_examples(found, stretch)),
        Section("training", "Training", describe_training(found) + describe_progress(found)),
        Section("pairs", "Pairs and shifts", describe_pairs(found) + describe_fields(found, stretch)),
        Section("ledger", "Ledger", describe_accounts(found)),
        Section("left-out", "What was left out", describe_losses(found)),
        Section("making", "How it was made", describe_making(found)),
    ]


def describe_result(results: Results) -> list[Block]:
    """In words: what the networks are worth on held-out ground, and what they were measured on."""
    blocks: list[Block] = []
    if not results.runs:
        blocks.append(Text("No run has scores yet: run `sereno evaluate`.", "missing"))
    for run in results.runs:
        blocks += _describe_run(run)
    scored = [run for run in results.runs if run.scores and run.summary]
    blocks += _compare_runs(scored) if len(scored) > 1 else []
    blocks += _describe_dataset(results)
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
    for name, label in BASELINE_WORDS.items():
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key, metric, unit, digits in COMPARED if name in compared else ():
            interval = compared[name][key]["by_block"]
            if interval["mean"] is not None:
                grade, behind = _grade(interval), f" (95 % interval {show_range(interval, digits)})" if interval["mean"] <= 0 else ""
                found[grade].append(f"{show_number(abs(interval['mean']), digits)}{unit} {metric}{behind}")
        for grade, sentences in (("lost", lost), ("unsure", unsure), ("won", won)):
            if found[grade]:
                sentences.append(f"the {label} by {' and '.join(found[grade])}")
    said = [f"It is behind {'; and behind '.join(lost)}."] if lost else []
    said += [f"It beats {', '.join(won)}."] if won else []
    said += [f"It is ahead of {', '.join(unsure)}, but not clearly: the 95 % interval reaches zero or there is none."] if unsure else []
    return " ".join(said), "bad" if lost else "plain" if unsure else "good"


def _grade(interval: Json) -> str:
    """Whether a difference is lost, won, or won by less than its interval can tell."""
    if interval["mean"] <= 0:
        return "lost"
    return "won" if interval["low"] is not None and interval["low"] > 0 else "unsure"


def _compare_runs(runs: Sequence[RunResults]) -> list[Block]:
    """The first run against each other one, patch by patch."""
    first, rows = runs[0], []
    for other in runs[1:]:
        cells = [f"{first.name} minus {other.name}"]
        for key, _, _, digits in COMPARED:
            interval = _bootstrap(first, other, key)
            cells += [show_number(interval["mean"], digits, sign=True), show_range(interval, digits)]
        rows.append([Cell(word) for word in (*cells, str(interval["n"]), str(interval["n_groups"]))])
    head = ("run against run, under clouds", "PSNR, dB", "95 % interval", "SSIM", "95 % interval", "patches", "blocks")
    return [Table(head, rows)]


def _bootstrap(first: RunResults, second: RunResults, metric: str) -> Json:
    """Paired difference of a metric over the patches that both runs have, blocks drawn."""
    ours, theirs = (
        {row["id"]: row for row in run.scores if (row["method"], row["region"]) == ("network", "cloudy")} for run in (first, second)
    )
    shared = [name for name in ours if name in theirs]
    difference = torch.tensor([float(ours[name][metric]) - float(theirs[name][metric]) for name in shared], dtype=torch.float64)
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    return bootstrap_difference(difference, [ours[name]["block"] for name in shared], generator=generator)._asdict()


def _describe_dataset(results: Results) -> list[Block]:
    if results.dataset is None:
        return [Text("There is no packed dataset: run `sereno pack`.", "missing")]
    facts = results.dataset
    counts, leakage = facts["counts"], facts["leakage"]
    pairs = sum(len(area["pairs"]) for area in facts["areas"].values())
    size_km = facts["size_px"] * facts["resolution_m"] / 1000
    said = (
        f"Dataset: {sum(counts.values())} patches of {facts['size_px']} × {facts['size_px']} pixels ({size_km:.2f} km) from "
        f"{pairs} pairs of {len(facts['areas'])} areas: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS) + "."
    )
    if leakage["min_distance_m"] is None:
        apart = "There is only one split, so no ground is held out."
    else:
        apart = (
            f"No ground is shared between splits: over {leakage['footprints']} footprints the nearest patches of different splits are "
            f"{leakage['min_distance_m']:.0f} m apart ({leakage['required_m']:.0f} m asked for)."
        )
    origin = "The world is simulated, so the truth under the clouds is known." if results.world else ""
    stale = [run.name for run in results.runs if run.summary and run.summary["checkpoint"]["dataset_sha256"] != results.dataset_sha256]
    blocks: list[Block] = [Text(f"{said} {apart} {origin}".strip())]
    if stale:
        blocks.append(Text(f"{', '.join(stale)}: trained on another version of the dataset than the one described here.", "bad"))
    return blocks


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
        larger = [column.is_larger_better for column in METRIC_COLUMNS]
        blocks += [Heading(words), Text(f"{_capitalise(regions[region])}.", "small")]
        blocks.append(Table(("method", *(column.heading for column in METRIC_COLUMNS), "patches", "pixels"), mark_best(rows, larger)))
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
        "Means over patches, all bands, reflectance not clipped, PSNR with peak 1; the best of each column is bold. "
        f"Scored: {scored}. {words}."
    )


def _to_score_row(label: str, scores: Json) -> list[Cell]:
    values = [show_number(scores[column.key]["mean"], column.digits) for column in METRIC_COLUMNS]
    exact = scores["psnr"]["n_infinite"]
    patches = f"{scores['psnr']['n']}" + (f" + {exact} exact" if exact else "")
    return [Cell(word) for word in (label, *values, patches, f"{scores['n_pixels']:,}".replace(",", NARROW_SPACE))]


def _draw_cover(methods: Mapping[str, tuple[str, Json]]) -> list[Block]:
    """PSNR and SSIM of cloudy pixels by cloud cover of the input."""
    bins = next(iter(methods.values()))[1]["by_cover"]
    kept = [place for place, entry in enumerate(bins) if entry["patches"]]
    groups = [f"{bins[place]['cover_pct'][0]}–{bins[place]['cover_pct'][1]} %\nn = {bins[place]['patches']}" for place in kept]
    colours = _colour_methods(methods)
    shots = []
    for key, metric, unit, digits in COMPARED:
        bars = [
            Bars(label, [_to_float(summary["by_cover"][place]["scores"][name]["cloudy"][key]["mean"]) for place in kept], colours[label])
            for label, (name, summary) in methods.items()
        ]
        drawn = draw_bars(
            groups, bars, x_label="cloud and shadow in the input", y_label=f"{metric}{unit and ','}{unit}", digits=digits // 2
        )
        shots.append(Shot(drawn, f"{metric} under clouds"))
    empty = [f"{low}–{high} %" for low, high in (entry["cover_pct"] for entry in bins if not entry["patches"])]
    blocks: list[Block] = [Shots(shots, "wide")]
    return [*blocks, Text(f"No patch has a cloud cover of {', '.join(empty)}.", "small")] if empty else blocks


def _colour_methods(methods: Mapping[str, tuple[str, Json]]) -> Mapping[str, str]:
    networks = [label for label, (name, _) in methods.items() if name == "network"]
    return assign_colours([label for label in methods if label not in networks], networks)


def describe_training(results: Results) -> list[Block]:
    """Loss and validation curves, one line per run, and the parts of each run's loss."""
    histories = {run.name: run.history for run in results.runs if run.history}
    missing = [run.name for run in results.runs if not run.history]
    blocks: list[Block] = [Text(f"{name} has no history: run `sereno train`.", "missing") for name in missing]
    if not histories:
        return blocks or [Text("No run was trained: run `sereno train`.", "missing")]
    colours = assign_colours([], list(histories))
    losses = [_to_line(f"{name}, training", rows, "total", colours[name]) for name, rows in histories.items()]
    losses += [_to_line(f"{name}, validation", rows, "val_loss", colours[name])._replace(dashed=True) for name, rows in histories.items()]
    ratios = [_to_line(name, rows, "val_psnr_db", colours[name]) for name, rows in histories.items()]
    shots = [Shot(draw_lines([line for line in losses if line.x], x_label="step", y_label="loss", log=True), "Loss")]
    if any(line.x for line in ratios):
        drawn = draw_lines(
            [line for line in ratios if line.x],
            x_label="step",
            y_label="validation PSNR, dB" if _is_other(results) else "PSNR of cloudy pixels, dB",
        )
        shots.append(Shot(drawn, "Validation"))
    else:
        blocks.append(Text("There was no validation with cloudy pixels, so no validation curve.", "missing"))
    shots += _draw_parts(histories)
    kept = [f"{run.name} keeps the weights of step {run.summary['checkpoint']['step']}" for run in results.runs if run.summary is not None]
    return [*blocks, Shots(shots, "chart"), Text(f"{'; '.join(kept)}.", "small")] if kept else [*blocks, Shots(shots, "chart")]


def _draw_parts(histories: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Shot]:
    """What each run's loss is made of, where it has several parts."""
    shots = []
    for name, rows in list(histories.items())[:MAX_SHOWN]:
        parts = [column for column in rows[0] if column not in NOT_PARTS and not column.startswith("val_")]
        lines = [_to_line(part, rows, part, colour) for part, colour in assign_colours([], parts).items()]
        lines = [line for line in lines if line.x]
        if len(lines) > 1:
            shots.append(Shot(draw_lines(lines, x_label="step", y_label="part of the loss", log=True), f"Parts of the loss, {name}"))
    return shots


def _to_line(name: str, rows: Sequence[Mapping[str, str]], column: str, colour: str) -> Line:
    points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return Line(name, [x for x, _ in points], [y for _, y in points], colour)


def describe_pairs(results: Results) -> list[Block]:
    """Where the areas lie and how they are split, every pair with its shift, and how well windows agree."""
    if not results.locks:
        return [Text("There is no lock, so no pair is known: run `sereno query`.", "missing")]
    keys = [(area, pair.id) for area, lock in results.locks.items() for pair in lock.pairs]
    pairs = Table(PAIR_COLUMNS, [_to_pair_row(results, key) for key in keys], n_words=2)
    return [*_draw_areas(results), Heading("Pairs"), pairs, Heading("Shifts"), *_describe_shifts(results, keys)]


def _draw_areas(results: Results) -> list[Block]:
    """A map per area with the patches in the colours of their splits."""
    if not results.records:
        return [Text("There is no packed dataset, so no map of its splits: run `sereno pack`.", "missing")]
    shots = []
    for area, lock in list(results.locks.items())[:MAX_SHOWN]:
        plots = sorted({Plot(tuple(json.loads(row["bounds_m"])), row["split"]) for row in results.records if row["area"] == area})
        shots.append(Shot(draw_map(plots, _outline_of(lock.grid), title=f"{area}, {lock.grid.crs}"), f"Patches of {area}"))
    blocks: list[Block] = [Shots(shots, "map")]
    return [*blocks, *_say_more(len(results.locks), "areas")]


def _outline_of(grid: GridRecord) -> tuple[float, float, float, float]:
    """Left, bottom, right, top in metres."""
    affine, (rows, columns) = rasterio.Affine(*grid.transform), grid.shape
    (left, top), (right, bottom) = affine * (0, 0), affine * (columns, rows)
    return left, bottom, right, top


def _say_more(count: int, what: str) -> list[Block]:
    return [Text(f"The first {MAX_SHOWN} of {count} {what} are shown.", "small")] if count > MAX_SHOWN else []


def _to_pair_row(results: Results, key: Key) -> list[Cell]:
    lock = results.locks[key[0]]
    pair = lock.pair(key[1])
    cloudy, clear, sar = lock.scene(pair.cloudy), lock.scene(pair.clear), lock.scene(pair.sar)
    words = [
        *key,
        show_day(cloudy.time, cloudy.items[0].properties),
        show_number(cloudy.cloud_cover_pct, 0),
        show_day(clear.time, clear.items[0].properties),
        show_number(pair.clear_gap_days, 1, sign=True),
    ]
    words += [show_day(sar.time, sar.items[0].properties), show_number(pair.sar_gap_days, 1, sign=True)]
    if results.refusal(key):
        words += ["not used"]
    elif key in results.patched:
        kept, refused = len(results.patched[key]["patches"]), len(results.patched[key]["refused"])
        words += [str(kept), str(kept + refused)]
    return [Cell(word) for word in words + [NOTHING] * (len(PAIR_COLUMNS) - len(words))]


def _describe_shifts(results: Results, keys: Sequence[Key]) -> list[Block]:
    """The measured shift of every pair, beside the true one where it is known, and how windows agree."""
    missing: list[Block] = [
        Text(f"{area} {pair} has not been aligned: run `sereno align`.", "missing")
        for area, pair in keys
        if (area, pair) not in results.aligned
    ]
    fields = list_fields(results)
    if not fields:
        return missing
    errors = [find_errors(results, field) for field in fields]
    is_known = any(errors)
    rows = [
        [Cell(word) for word in (*_show_shift(field), *(_show_errors(error) if is_known else ()))]
        for field, error in zip(fields, errors, strict=True)
    ]
    note = "A shift is where the content of an image lay before it was moved, against that of the clear one: rows down, columns right. "
    note += "Scatter is the root mean square distance of the agreeing windows from the field. "
    note += (
        "Off before and after: how far an image truly lay from the clear one where its geocoding put it, and how far it lies from it now, "
        "both in the middle of the scene."
        if is_known
        else "True shifts are not known: the data is not simulated."
    )
    table = Table(SHIFT_COLUMNS + (TRUTH_COLUMNS if is_known else ()), rows, n_words=4)
    return [*missing, *_sum_up_errors(fields, errors), table, Text(note, "small"), *_draw_shifts(results, fields)]


def find_errors(results: Results, field: Measured) -> Errors | None:
    """How far an image of a simulated world lay off before it was moved, and lies off after; None where that is not known."""
    true = find_true_shift(results, field.key, field.role)
    if true is None:
        return None
    record = field.record
    left_px = math.dist(true, (record["dy_px"], record["dx_px"]))
    return Errors(true, record["pixel_m"] * math.hypot(*true), record["pixel_m"] * left_px, left_px)


def _show_shift(field: Measured) -> list[str]:
    record = field.record
    words = [*field.key, field.image, record["verdict"], *(show_number(record[name], 2, sign=True) for name in ("dy_px", "dx_px"))]
    words += [show_number(metres, 1, sign=True) for metres in record["shift_m"]]
    words += [NOTHING if record["rms_px"] is None else show_number(record["rms_px"], 3)]
    return words + [str(record[name]) for name in ("n_inlier", "n_good", "n_windows")]


def _show_errors(errors: Errors | None) -> list[str]:
    if errors is None:
        return [NOTHING] * len(TRUTH_COLUMNS)
    words = [show_number(shift, 2, sign=True) for shift in errors.true_px]
    return [*words, show_number(errors.before_m, 1), show_number(errors.after_m, 1), show_number(errors.after_px, 3)]


def _sum_up_errors(fields: Sequence[Measured], errors: Sequence[Errors | None]) -> list[Block]:
    """One sentence per kind of image: how far it lay off before and lies off after, by the truth, else by what was measured."""
    blocks: list[Block] = []
    for role, words in ROLE_WORDS.items():
        found = [error for field, error in zip(fields, errors, strict=True) if field.role == role and error is not None]
        if not found:
            blocks += [Text(said) for said in _sum_up_measured(words, [field.record for field in fields if field.role == role])]
        else:
            before, after = (
                f"{min(ends):.1f} to {max(ends):.1f} m" for ends in zip(*((e.before_m, e.after_m) for e in found), strict=True)
            )
            blocks.append(Text(f"{words} lay {before} from the clear image before registration and lies {after} from it after."))
    return blocks


def _sum_up_measured(image: str, records: Sequence[Json]) -> list[str]:
    """What fields say of one kind of image where no truth is known, at most one text."""
    applied = [record for record in records if record["verdict"] == "applied"]
    if not records:
        return []
    if not applied:
        return [f"{image} was never laid onto the clear image: none of {len(records)} fields was found."]
    shifts = [record["pixel_m"] * record["mean_shift_px"] for record in applied]
    worst = max(applied, key=lambda record: record["sigma_px"])
    after = f"{worst['sigma_px']:.2f} px ({worst['pixel_m'] * worst['sigma_px']:.1f} m)"
    said = f"{image} lay {min(shifts):.1f} to {max(shifts):.1f} m from the clear image, by the field that was taken out; "
    said += f"predicted error after, as a standard deviation per axis: at most {after}."
    missed = len(records) - len(applied)
    return [f"{said} {missed} of {len(records)} fields {'was' if missed == 1 else 'were'} not found." if missed else said]


def _draw_shifts(results: Results, fields: Sequence[Measured]) -> list[Block]:
    """Shift fields, and how far windows lie from the field of their scene."""
    drawn, residuals = [], []
    for field in fields:
        windows, verdict = field.record["windows"], field.record["verdict"]
        arrows = [Arrow(w["row"], w["col"], w["dy"], w["dx"], w["inlier"]) for w in windows]
        title = f"{field.key[0]} {field.key[1]}\n{field.image} {verdict}"
        drawn.append(Arrows(title, results.locks[field.key[0]].grid.shape, arrows))
        if verdict == "applied":
            residuals += [w["residual_px"] for w in windows]
    shots = [Shot(draw_arrows(drawn[:MAX_SHOWN]), "Shift of every matching window")]
    if residuals:
        chart = draw_histogram(residuals, x_label="distance from the scene's field, px", y_label="windows")
        shots.append(Shot(chart, "Residuals of accepted fields"))
    missing: list[Block] = [] if residuals else [Text("No shift was accepted, so there are no residuals.", "missing")]
    return [Shots(shots, "chart"), *_say_more(len(drawn), "fields"), *missing]


def describe_losses(results: Results) -> list[Block]:
    """Every candidate, tile, window and registration that was refused or lost, with reasons."""
    return [
        *_list_refused_scenes(results),
        *_list_lost_tiles(results),
        *_list_refused_pairs(results),
        *_count_refused_windows(results),
        *_list_refused_shifts(results),
    ]


def _list_refused_scenes(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused candidates")]
    refused = [(area, entry) for area, lock in results.locks.items() for entry in lock.refused]
    if not refused:
        return [*blocks, Text("No candidate scene was refused." if results.locks else "There is no lock: run `sereno query`.")]
    rows = [(area, entry.role, entry.item, entry.reason) for area, entry in refused]
    return [*blocks, *show_first(("area", "as", "item", "reason"), rows, "the locks in query/")]


def _list_lost_tiles(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Lost tiles and warnings")]
    rows = []
    for (area, scene), facts in results.scenes.items():
        rows += [(area, scene, f"{lost['asset'] or 'all of it'}: {lost['reason']}") for lost in facts.get("lost", ())]
        rows += [(area, scene, warning) for warning in facts.get("warnings", ())]
    if not rows:
        return [*blocks, Text(f"None in {len(results.scenes)} scenes." if results.scenes else "No scene was read: run `sereno ingest`.")]
    return [*blocks, *show_first(("area", "scene", "what"), rows, "the manifests in ingest/")]


def _list_refused_pairs(results: Results) -> list[Block]:
    """Pairs that are not used at all; nothing where there is none."""
    rows = [(*key, words) for key in results.aligned if (words := results.refusal(key))]
    if not rows:
        return []
    note = Text("A scene of these pairs was refused, or nobody knows where it lies, so they hold no valid pixel and give no patch.")
    return [Heading("Refused pairs"), note, *show_first(("area", "pair", "reason"), rows, "the manifests in align/")]


def _count_refused_windows(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused windows")]
    cut = [summary for key, summary in results.patched.items() if not results.refusal(key)]
    groups: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for summary in cut:
        for entry in summary["refused"]:
            groups[entry["setting"], entry["limit"]].append(entry["value"])
    told = f"{sum(len(summary['patches']) for summary in cut)} windows were kept."
    if len(cut) < len(results.patched):
        told += f" Windows of pairs that are not used at all ({len(results.patched) - len(cut)}) are not counted."
    if not groups:
        return [*blocks, Text(f"None; {told}" if results.patched else "No pair was cut: run `sereno patch`.")]
    rows = [
        (SETTING_WORDS.get(setting, setting), f"patch.{setting} {limit:g}", str(len(values)), f"{min(values):.3f} to {max(values):.3f}")
        for (setting, limit), values in sorted(groups.items())
    ]
    head = ("reason", "limit", "windows", "shares seen")
    return [*blocks, Table(head, [[Cell(word) for word in row] for row in rows], n_words=2), Text(told, "small")]


def _list_refused_shifts(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused registrations")]
    measured = list_fields(results)
    refused = [field for field in measured if field.record["verdict"] == "refused"]
    if not refused:
        return [*blocks, Text(f"None of {len(measured)} fields." if results.aligned else "No pair was aligned: run `sereno align`.")]
    rows = [[Cell(f"{field.key[0]} {field.key[1]}"), Cell(field.image), Cell(field.record["reason"])] for field in refused]
    return [
        *blocks,
        Text("These images were left where their geocoding puts them, or their pair was given up."),
        Table(("pair", "image", "reason"), rows, n_words=3),
    ]


def describe_making(results: Results) -> list[Block]:
    """Software, checksums, bands, units and settings: what somebody needs to make the page again."""
    blocks: list[Block] = [Heading("Software"), _to_fact_table({name: version(name) for name in PACKAGES})]
    facts = {"optical values": OPTICAL_UNITS, "SAR values": SAR_UNITS, "scores": "reflectance, 1 = 100 %; dB with peak 1; degrees; percent"}
    if results.dataset is not None:
        facts |= {"optical bands": ", ".join(results.dataset["bands"]), "SAR bands": ", ".join(results.dataset.get("sar_bands", ()))}
        facts |= {"pixel size": f"{results.dataset['resolution_m']:g} m", "SHA-256 of pack/dataset.json": results.dataset_sha256}
    blocks += [Heading("Data"), _to_fact_table(facts)]
    summaries = {run.name: run.summary for run in results.runs if run.summary is not None}
    if not summaries:
        return [*blocks, Text("No run has been evaluated, so there are no settings to list.", "missing")]
    columns = {name: _describe_settings(summary) for name, summary in summaries.items()}
    keys = list(dict.fromkeys(key for settings in columns.values() for key in settings))
    rows = [[Cell(key), *(_mark_difference(key, name, columns) for name in columns)] for key in keys]
    return [*blocks, Heading("Settings of the runs"), Table(("setting", *columns), rows, n_words=1 + len(columns))]


def _to_fact_table(facts: Mapping[str, str]) -> Table:
    return Table((), [[Cell(name), Cell(words)] for name, words in facts.items()], n_words=2)


def _describe_settings(summary: Json) -> dict[str, str]:
    checkpoint = summary["checkpoint"]
    training, scoring = _flatten(checkpoint["settings"], "train"), _flatten(summary["settings"], "evaluate")
    return training | scoring | {"weights (SHA-256)": checkpoint["weights_sha256"][:16], "sereno": checkpoint["sereno"]}


def _flatten(values: Mapping[str, Any], path: str) -> dict[str, str]:
    """Settings with their whole path as key."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{path}.{key}") if isinstance(value, Mapping) else {f"{path}.{key}": json.dumps(value)}
    return flat


def _mark_difference(key: str, name: str, columns: Mapping[str, Mapping[str, str]]) -> Cell:
    """The value, bold where the runs differ."""
    return Cell(columns[name].get(key, NOTHING), is_best=len({settings.get(key) for settings in columns.values()}) > 1)


def _to_float(value: float | None) -> float:
    return math.nan if value is None else value


def _capitalise(words: str) -> str:
    return words[:1].upper() + words[1:]
