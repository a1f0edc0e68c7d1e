"""How training went, for the report: loss, validation, and the parts of each run's loss.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sereno.model.page import MAX_SHOWN, Block, Shot, Shots, Text
from sereno.model.pictures import Line, assign_colours, draw_lines
from sereno.model.results import CLEARING, Results

NOT_PARTS: Final = ("step", "lr", "grad_norm", "total")
"""Columns of the history that are no part of the loss; nor are those of the validation."""
CONTEST: Final = ("fooling", "critic", "margin", "penalty")
"""Columns of the contest of a network with its critics, which may be below zero."""
PART_WORDS: Final = {
    "first": "first: the loss of the first stage's image",
    "span": "span: how far both changes over the whole span are from the true one; the middle image is never looked at",
    "consistency": "consistency: how far the answers from the first and the last date are from each other",
    "encoding": "encoding: how far a head is from the cube seen through the aperture",
    "aware": "aware: errors weighted by how little light that head expects, 0 in its first steps",
    "sides": "sides: the loss of the answers from the date before alone and from the date after alone, their mean",
    "fooling": "fooling: what the network loses to the critic, before its weight",
    "critic": "critic: what the critic loses",
    "margin": "margin: mean score of true images less that of made ones; if it only grows the critic has won; at 0 it tells nothing apart",
    "penalty": "penalty: how far the critic's gradient is from length 1, before its weight",
}
"""What parts of the loss are that only some networks have."""


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
            y_label="PSNR of cloudy pixels, dB" if results.task == CLEARING else "validation PSNR, dB",
        )
        shots.append(Shot(drawn, "Validation"))
    else:
        blocks.append(Text("There was no validation with cloudy pixels, so no validation curve.", "missing"))
    shots += _draw_parts(histories) + _draw_contests(histories)
    kept = [f"{run.name} keeps the weights of step {run.summary['checkpoint']['step']}" for run in results.runs if run.summary is not None]
    columns = {column for rows in histories.values() for column in rows[0] if any(row.get(column) for row in rows)}
    said = [words for part, words in PART_WORDS.items() if part in columns] + kept
    return [*blocks, Shots(shots, "chart"), *([Text(f"{'; '.join(said)}.", "small")] if said else [])]


def _draw_parts(histories: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Shot]:
    """What each run's loss is made of, where it has several parts."""
    shots = []
    for name, rows in list(histories.items())[:MAX_SHOWN]:
        parts = [column for column in rows[0] if column not in (*NOT_PARTS, *CONTEST) and not column.startswith("val_")]
        lines = [_to_line(part, rows, part, colour) for part, colour in assign_colours([], parts).items()]
        lines = [line for line in lines if line.x]
        if len(lines) > 1:
            shots.append(Shot(draw_lines(lines, x_label="step", y_label="part of the loss", log=True), f"Parts of the loss, {name}"))
    return shots


def _draw_contests(histories: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Shot]:
    """The contest of each run with its critics, where there was one."""
    shots = []
    for name, rows in list(histories.items())[:MAX_SHOWN]:
        lines = [_to_line(part, rows, part, colour) for part, colour in assign_colours([], CONTEST).items()]
        lines = [line for line in lines if any(line.y)]
        if lines:
            shots.append(Shot(draw_lines(lines, x_label="step", y_label="contest with the critic"), f"Network against critic, {name}"))
    return shots


def _to_line(name: str, rows: Sequence[Mapping[str, str]], column: str, colour: str) -> Line:
    points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return Line(name, [x for x, _ in points], [y for _, y in points], colour)
