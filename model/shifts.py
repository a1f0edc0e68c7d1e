"""Pairs in the report: where they lie, what they are made of, and by how much images were shifted, beside the truth where it is known.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from sereno.model.alignment import Measured, list_fields
from sereno.model.holdout import draw_areas
from sereno.model.page import MAX_SHOWN, NOTHING, Block, Cell, Heading, Shot, Shots, Table, Text, say_more, show_day, show_number
from sereno.model.pictures import Arrow, Arrows, draw_arrows, draw_histogram
from sereno.model.results import Json, Key, Results, find_true_shift

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


def describe_pairs(results: Results) -> list[Block]:
    """Where the areas lie and how they are split, every pair with its shift, and how well windows agree."""
    if not results.locks:
        return [Text("There is no lock, so no pair is known: run `sereno query`.", "missing")]
    keys = [(area, pair.id) for area, lock in results.locks.items() for pair in lock.pairs]
    pairs = Table(PAIR_COLUMNS, [_to_pair_row(results, key) for key in keys], n_words=2)
    return [*draw_areas(results), Heading("Pairs"), pairs, Heading("Shifts"), *_describe_shifts(results, keys)]


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
    return [Shots(shots, "chart"), *say_more(len(drawn), "fields"), *missing]
