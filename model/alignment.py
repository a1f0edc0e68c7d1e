"""How images lie on each other in the report: what was measured of every field, and pictures that show whether borders go on.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import xarray as xr

from sereno.model.page import NOTHING, Block, Cell, Heading, Shot, Shots, Table, Text, show_number
from sereno.model.pictures import Picture, Stretch, encode_png, join_checkerboard, to_sar_composite, to_true_colour
from sereno.model.results import CLEARING, Array, Json, Key, Results
from sereno.pipeline.scene import bands_of
from sereno.pipeline.store import open_dataset

MAX_BOARDS: Final = 6
"""Checkerboards shown; how many more pairs there are is said."""
CROP_PX: Final = 320
"""Side of the ground that is shown, pixels of the grid: small enough that a shift of one pixel can be seen."""
FIELD_PX: Final = 32
"""Side of a field of the checkerboard."""
ENLARGED: Final = 2
"""Screen pixels to a pixel of the grid."""
FIELD_COLUMNS: Final = (
    "area", "pair", "image", "status", "field", "mean shift, m", "mean shift, px", "largest, m", "held out, px", "σ, px", "σ, m",
    "correlation", "by chance", "compared",
)  # fmt: skip
"""Headings of the table of fields."""
RECORDS: Final[dict[str, str]] = {"sar": "registration", "cloudy": "registration_cloudy"}
"""Keys of the records of what is laid onto the clear scene of a pair."""


class Measured(NamedTuple):
    """One field."""

    key: Key
    """Area and pair, or group."""
    role: str
    """What was laid onto the clear scene; of a group the role of the scene that was laid onto another one."""
    record: Json
    """What was measured."""

    @property
    def image(self) -> str:
        """What it is called on the page."""
        return "SAR" if self.role == "sar" else self.role


def describe_fields(results: Results, stretch: Stretch) -> list[Block]:
    """The quality record of every field, and checkerboards of clear scene and what was laid onto it; nothing where nothing was measured."""
    fields = list_fields(results)
    if not fields:
        return []
    rows = [[Cell(word) for word in _show_field(field)] for field in fields]
    note = "Held out: distance of windows from a field fitted without them. σ: predicted standard deviation per axis, where it is "
    note += "largest. By chance: how often windows that point anywhere would agree as well."
    shown = [field for field in fields if not results.refusal(field.key)]
    boards = [_show_board(results, field, stretch) for field in shown[:MAX_BOARDS]]
    words = "Squares of the clear scene and of SAR, or of the cloudy image, in turn: roads, rivers and borders should go on from one into "
    words += "the next."
    more = [Text(f"{len(shown) - MAX_BOARDS} more fields are not shown.", "small")] if len(shown) > MAX_BOARDS else []
    pictures: list[Block] = [Text(words, "small"), Shots(boards, "scene", 3), *more] if boards else []
    return [Heading("How images lie on the clear one"), Table(FIELD_COLUMNS, rows, n_words=5), Text(note, "small"), *pictures]


def list_fields(results: Results) -> list[Measured]:
    """Every field that was asked for, those of pairs among them that were given up because it was refused.

    Of a pair with a scene that was refused nothing was measured: `align` says so by giving the field the reason of the whole pair.
    """
    return [
        Measured(key, role, record)
        for key, summary in results.aligned.items()
        for role, record in _list_records(summary).items()
        if record["reason"] != results.refusal(key)
    ]


def _list_records(summary: Json) -> dict[str, Json]:
    """What was measured of a pair or group, by the role that was moved."""
    if summary.get("task", CLEARING) != CLEARING:  # groups hold their records by role
        return dict(summary.get("registration") or {})
    return {role: summary[name] for role, name in RECORDS.items() if summary.get(name) is not None}


def _show_field(field: Measured) -> list[str]:
    record = field.record

    def show(name: str, digits: int, scale: float = 1.0) -> str:
        value = record.get(name)
        return NOTHING if value is None else show_number(scale * value, digits)

    pixel_m, chance = record["pixel_m"], record.get("false_alarms")
    words = [*field.key, field.image, record["status"].replace("_", " "), record["field"]["degree"]]
    words += [show("mean_shift_px", 1, pixel_m), show("mean_shift_px", 2), show("max_shift_px", 1, pixel_m), show("held_out_px", 2)]
    words += [show("sigma_px", 3), show("sigma_px", 2, pixel_m), show("median_peak", 2)]
    return [*words, NOTHING if chance is None else f"{chance:.0e}", record["descriptor"]]


def _show_board(results: Results, field: Measured, stretch: Stretch) -> Shot:
    """Checkerboard of the ground that can be judged best."""
    pair = open_dataset(results.manifest("align", field.key), kind="pair")
    window = choose_crop(pair["valid_clear"].values & pair[f"valid_{field.role}"].values, CROP_PX)
    clear = _paint_image(pair, "clear", window, stretch)
    board = join_checkerboard(clear, _paint_image(pair, field.role, window, stretch), field_px=FIELD_PX)
    enlarged = board.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    what = f"{bands_of(pair, 'sar_band')[0]} in grey" if field.role == "sar" else "clear and cloudy"
    return Shot(encode_png(enlarged), f"{field.key[0]} {field.key[1]}", f"field {field.record['verdict']}; {what}")


def _paint_image(pair: xr.Dataset, role: str, window: tuple[slice, slice], stretch: Stretch) -> Picture:
    """An image of a pair inside a window of rows and columns: in true colour, SAR in the grey of its first polarisation."""
    valid = pair[f"valid_{role}"].values[window]
    if role != "sar":
        return to_true_colour(pair[role].values[:, *window], valid, bands=bands_of(pair), stretch=stretch)
    return to_sar_composite(pair["sar"].values[:1, *window], valid, sar_bands=bands_of(pair, "sar_band")[:1])


def choose_crop(usable: Array, side: int) -> tuple[slice, slice]:
    """The square of `side` pixels, or less at the edge of a small scene, with most usable ground (y, x), nearest to the middle of those."""
    starts: list[Sequence[int]] = [range(0, max(length - side, 0) + 1, max(side // 2, 1)) for length in usable.shape]
    middle = [(length - side) / 2 for length in usable.shape]
    best = max(
        ((top, left) for top in starts[0] for left in starts[1]),
        key=lambda corner: (
            round(float(np.mean(usable[corner[0] : corner[0] + side, corner[1] : corner[1] + side])), 2),
            -abs(corner[0] - middle[0]) - abs(corner[1] - middle[1]),
        ),
    )
    return slice(best[0], best[0] + side), slice(best[1], best[1] + side)
