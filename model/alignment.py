"""How SAR lies on optical in the report: what was measured of every pair's field, and pictures that show whether borders go on.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sereno.model.page import NOTHING, Block, Cell, Heading, Shot, Shots, Table, Text, show_number
from sereno.model.pictures import Stretch, encode_png, join_checkerboard, to_sar_composite, to_true_colour
from sereno.model.results import Array, Json, Key, Results
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
    "area", "pair", "status", "field", "mean shift, m", "largest, m", "held out, px", "σ, px", "correlation", "by chance", "compared"
)  # fmt: skip
"""Headings of the table of fields."""


def describe_fields(results: Results, stretch: Stretch) -> list[Block]:
    """The quality record of every measured field, and checkerboards of clear scene and aligned SAR; nothing without pairs."""
    keys = [key for key in results.aligned if not results.refusal(key)]
    if not keys:
        return []
    rows = [[Cell(word) for word in _show_field(key, results.aligned[key]["registration"])] for key in keys]
    note = "Held out: distance of windows from a field fitted without them. σ: predicted standard deviation per axis, where it is "
    note += "largest. By chance: how often windows that point anywhere would agree as well."
    boards = [_show_board(results, key, stretch) for key in keys[:MAX_BOARDS]]
    words = "Squares of the clear scene and of SAR in turn: roads, rivers and borders should go on from one into the next."
    more = [Text(f"{len(keys) - MAX_BOARDS} more pairs are not shown.", "small")] if len(keys) > MAX_BOARDS else []
    table = Table(FIELD_COLUMNS, rows, n_words=4)
    return [Heading("How SAR lies on optical"), table, Text(note, "small"), Text(words, "small"), Shots(boards, "scene", 3), *more]


def _show_field(key: Key, registration: Json) -> list[str]:
    def show(name: str, digits: int, scale: float = 1.0) -> str:
        value = registration.get(name)
        return NOTHING if value is None else show_number(scale * value, digits)

    pixel_m, chance = registration["pixel_m"], registration.get("false_alarms")
    words = [*key, registration["status"].replace("_", " "), registration["field"]["degree"]]
    words += [show("mean_shift_px", 1, pixel_m), show("max_shift_px", 1, pixel_m), show("held_out_px", 2), show("sigma_px", 3)]
    return [*words, show("median_peak", 2), NOTHING if chance is None else f"{chance:.0e}", registration["descriptor"]]


def _show_board(results: Results, key: Key, stretch: Stretch) -> Shot:
    """Checkerboard of the most usable ground of one pair."""
    pair = open_dataset(results.manifest("align", key), kind="pair")
    window = choose_crop(pair["valid_clear"].values & pair["valid_sar"].values, CROP_PX)
    clear = to_true_colour(pair["clear"].values[:, *window], pair["valid_clear"].values[window], bands=bands_of(pair), stretch=stretch)
    names = bands_of(pair, "sar_band")
    sar = to_sar_composite(pair["sar"].values[:1, *window], pair["valid_sar"].values[window], sar_bands=names[:1])
    board = join_checkerboard(clear, sar, field_px=FIELD_PX)
    enlarged = board.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    verdict = results.aligned[key]["registration"]["verdict"]
    return Shot(encode_png(enlarged), f"{key[0]} {key[1]}", f"field {verdict}; {names[0]} in grey")


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
