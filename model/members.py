"""Groups in the report: where they lie, the scenes each is made of, with dates, clouds and what is valid, and how these lie on each other.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sereno.model.alignment import Measured, list_fields
from sereno.model.holdout import draw_areas
from sereno.model.page import (
    MAX_SHOWN,
    NOTHING,
    Block,
    Cell,
    Heading,
    Shot,
    Shots,
    Table,
    Text,
    say_more,
    show_day,
    show_first,
    show_number,
)
from sereno.model.pictures import Arrow, Arrows, draw_arrows
from sereno.model.results import Json, Key, Results
from sereno.pipeline.pairs import Group, Lock

SCENE_COLUMNS: Final = ("area", "group", "as", "taken", "days", "cloud, %", "valid, %", "bands", "scene")
"""Headings of the table of scenes."""
SHIFT_COLUMNS: Final = (
    "area", "group", "image", "verdict", "dy, px", "dx, px", "shift, m", "scatter, px", "σ, px", "windows: agreeing", "good", "all",
)  # fmt: skip
"""Headings of the table of shifts."""
UNMEASURED: Final[Mapping[str, str]] = {
    "pansharpening": "No registration of the sharp image was asked for.",
    "spatiotemporal-fusion": (
        "The fine dates were not compared: products of the Sentinels and of Landsat lie right to about a pixel. Set "
        "`pipeline.align.register_cloudy: true` to have them laid onto the middle date."
    ),
    "snapshot-reconstruction": "Pictures are simulated from their own cubes, so there is nothing that could lie beside its place.",
}
"""What is said where no shift was measured, by task."""
LAID_ONTO: Final[Mapping[str, str]] = {
    "pansharpening": "averaged to coarse pixels, the sharp image against the multispectral one; in coarse pixels",
    "spatiotemporal-fusion": "each outer fine date against the middle one",
}
"""What a shift is between, by task."""


def describe_groups(results: Results) -> list[Block]:
    """Maps of the areas, a line for every scene of every group, what became of their windows, and shifts that were measured."""
    groups = [(lock, group) for lock in results.locks.values() for group in lock.groups]
    if not groups:
        return [Text("There is no lock with groups, so none is known: run `sereno query`.", "missing")]
    scenes = show_first(SCENE_COLUMNS, [row for lock, group in groups for row in _list_scenes(results, lock, group)], "the locks in query/")
    missing = [f"{lock.area} {group.id}" for lock, group in groups if (lock.area, group.id) not in results.aligned]
    unaligned: list[Block] = [Text(f"Not aligned: {', '.join(missing)}: run `sereno align`.", "missing")] if missing else []
    return [
        *draw_areas(results), Heading("Groups and their scenes"), *_count_windows(results, groups), *scenes,
        Heading("Shifts between images of a group"), *unaligned, *_describe_shifts(results),
    ]  # fmt: skip


def _list_scenes(results: Results, lock: Lock, group: Group) -> list[list[str]]:
    """A row for each scene of a group."""
    aligned = results.aligned.get((lock.area, group.id)) or {}
    shares, bands = aligned.get("valid_share") or {}, aligned.get("bands") or {}
    rows = []
    for role in group.roles:
        scene = lock.scene(group.scenes[role])
        share = None if aligned.get("refused") else shares.get(role)
        gap = group.gaps_days.get(role)
        rows.append(
            [
                lock.area,
                group.id,
                role,
                show_day(scene.time, scene.items[0].properties),
                NOTHING if gap is None else show_number(gap, 1, sign=True),
                show_number(scene.cloud_cover_pct, 0),
                "not used" if aligned.get("refused") else show_number(None if share is None else 100 * share, 1),
                _name_bands(bands.get(role) or scene.bands),
                scene.item,
            ]
        )
    return rows


def _name_bands(bands: Sequence[str]) -> str:
    """All names of a few bands; of many the number, the first and the last."""
    if len(bands) <= 8:
        return ", ".join(bands) or NOTHING
    return f"{len(bands)}: {bands[0]} to {bands[-1]}"


def _count_windows(results: Results, groups: Sequence[tuple[Lock, Group]]) -> list[Block]:
    """How many groups there are, and how many windows were kept of them."""
    cut = [results.patched[key] for key in ((lock.area, group.id) for lock, group in groups) if key in results.patched]
    given_up = sum(results.refusal((lock.area, group.id)) is not None for lock, group in groups)
    kept, refused = (sum(len(summary[name]) for summary in cut) for name in ("patches", "refused"))
    said = f"{len(groups)} {'group' if len(groups) == 1 else 'groups'} in {len(results.locks)} "
    said += "area" if len(results.locks) == 1 else "areas"
    said += f", {given_up} of them given up" if given_up else ""
    said += f"; {kept} of {kept + refused} windows were kept" if cut else "; none was cut into patches yet: run `sereno patch`"
    return [Text(f"{said}. Days are counted from the first scene of a group; scenes without a number were taken together with it.")]


def _describe_shifts(results: Results) -> list[Block]:
    """What was measured between images of a group."""
    fields = list_fields(results)
    if not fields:
        return [Text(UNMEASURED.get(results.task, "No shift was measured."))] if results.aligned else []
    rows = [[Cell(word) for word in _show_shift(field)] for field in fields]
    note = f"Where the content of an image lay before it was moved ({LAID_ONTO.get(results.task, 'by the role named')}): rows down, "
    note += "columns right. Scatter is the root mean square distance of the agreeing windows from the field; σ its predicted error."
    drawn = [_to_arrows(results, field) for field in fields]
    shots: list[Block] = [Shots([Shot(draw_arrows(drawn[:MAX_SHOWN]), "Shift of every matching window")], "chart")]
    table = Table(SHIFT_COLUMNS, rows, n_words=4)
    return [*_sum_up(fields), table, Text(note, "small"), *shots, *say_more(len(drawn), "fields")]


def _sum_up(fields: Sequence[Measured]) -> list[Block]:
    """A sentence per role."""
    blocks: list[Block] = []
    for role in dict.fromkeys(field.role for field in fields):
        records = [field.record for field in fields if field.role == role]
        applied = [record for record in records if record["verdict"] == "applied"]
        if not applied:
            blocks.append(Text(f"{role} was never moved: none of {len(records)} fields was found; it lies where its geocoding puts it."))
            continue
        shifts = [record["pixel_m"] * record["mean_shift_px"] for record in applied]
        sigma = max(record["pixel_m"] * record["sigma_px"] for record in applied)
        said = f"{role} lay {min(shifts):.1f} to {max(shifts):.1f} m off, by the field that was taken out; predicted error after it: at "
        blocks.append(Text(f"{said}most {sigma:.1f} m. {len(applied)} of {len(records)} fields were found."))
    return blocks


def _show_shift(field: Measured) -> list[str]:
    record = field.record
    words = [*field.key, field.role, record["verdict"], *(show_number(record[name], 2, sign=True) for name in ("dy_px", "dx_px"))]
    words += [show_number(record["pixel_m"] * record["mean_shift_px"], 1)]
    words += [NOTHING if record.get(name) is None else show_number(record[name], 3) for name in ("rms_px", "sigma_px")]
    return words + [str(record[name]) for name in ("n_inlier", "n_good", "n_windows")]


def _to_arrows(results: Results, field: Measured) -> Arrows:
    """Matching windows of a field, on the grid that they were measured on."""
    record: Json = field.record
    key: Key = field.key
    rows, columns = record.get("shape") or results.locks[key[0]].grid.shape
    arrows = [Arrow(w["row"], w["col"], w["dy"], w["dx"], w["inlier"]) for w in record["windows"]]
    return Arrows(f"{key[0]} {key[1]}\n{field.role} {record['verdict']}", (rows, columns), arrows)
