"""A user's own table of pairs: which products belong together, whatever their times and cloud covers are.

Enters: the text of the table, and the candidates of an area. Leaves: triplets, and for every row and candidate that is not used the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sereno.pipeline.acquisitions import Candidate, Cause, Refused, refuse
from sereno.pipeline.archives import strip_suffix
from sereno.pipeline.config import Inputs
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.pairing import Triplet
from sereno.pipeline.pairs import Role, is_sar

OTHER_MARKS: Final = (";", "\t")
"""What spreadsheets part columns by where the comma stands in numbers, or text is copied."""


class Row(NamedTuple):
    """One line of a user's table of pairs."""

    sar: str
    """Name of the SAR product."""
    cloudy: str
    """Name of the input; empty: clouds are simulated over the target."""
    clear: str
    """Name of the target."""


def parse_table(text: str, *, where: str, inputs: Inputs = "found") -> tuple[Row, ...]:
    """The rows of a CSV table with the columns `sar`, `cloudy` and `clear`; others are passed over, endings of archives removed.

    `inputs` is that of the settings: with `either` the column `cloudy` may be empty, or not there; with `simulated` it is not read.

    Raises:
        ConfigError: columns are not parted by commas, a column or a value is missing, or there are no rows.
    """
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    needed = [name for name in Row._fields if name != "cloudy" or inputs == "found"]
    lacking = [name for name in needed if name not in (reader.fieldnames or ())]
    remedy = "; for clouds simulated over clear products set pipeline.query.inputs to either"
    if lacking:
        head = reader.fieldnames or ()
        if len(head) == 1 and any(mark in head[0] for mark in OTHER_MARKS):
            raise ConfigError(f"{where}: the first line is {head[0]!r}: columns are parted by commas; save the table with commas")
        seen = ", ".join(head) or "nothing"
        raise ConfigError(
            f"{where}: the table has no column {', '.join(lacking)} (it has {seen}); its first line must name {','.join(needed)}"
            f"{remedy if lacking == ['cloudy'] else ''}"
        )
    rows = [Row(*(strip_suffix((line.get(name) or "").strip()) for name in Row._fields)) for line in reader]
    rows = [row._replace(cloudy="") for row in rows] if inputs == "simulated" else rows
    if not rows:
        raise ConfigError(f"{where}: the table has no rows")
    for number, row in enumerate(rows, 2):
        if not all(getattr(row, name) for name in needed):
            raise ConfigError(f"{where}: line {number} lacks a product{remedy if row.sar and row.clear else ''}")
    return tuple(rows)


def choose_by_table(
    optical: Sequence[Candidate], sar: Sequence[Candidate], rows: Iterable[Row], *, skies: int = 1
) -> tuple[list[Triplet], list[Refused]]:
    """The triplets that a table names, in order of time; and what is not used: rows with a product that is not there, and other scenes.

    A product belongs to the scene that it was laid together into with others of its overflight. A row without an input becomes `skies`
    triplets whose input is the target under a simulated sky.
    """
    places = {item.item: one for one in (*optical, *sar) for item in one.scene.items}
    triplets: dict[tuple[str, ...], list[Triplet]] = {}
    refused: list[Refused] = []
    for row in rows:
        name, role = _find_input(row)
        lacking = [name for name in row if name and name not in places]
        if lacking:
            reason = f"its row in the table also names {', '.join(lacking)}, which cannot be used in this area"
            refused += [refuse(places[name], role, reason, Cause.ITEM)] if name in places else []
            continue
        triplet = Triplet(places[name], places[row.clear], places[row.sar])
        fault = _find_fault(triplet, row)
        if fault:
            refused.append(refuse(triplet.cloudy, role, fault, Cause.ITEM))
            continue
        numbers = [None] if row.cloudy else range(1, skies + 1)
        triplets[(row.cloudy, *(part.scene.id for part in triplet.scenes))] = [triplet._replace(sky=number) for number in numbers]
    chosen = sorted((one for skies_of in triplets.values() for one in skies_of), key=_to_order)
    used = {part.scene.id for triplet in chosen for part in triplet.scenes} | {name for one in refused for name in one.items}
    kinds: tuple[tuple[Role, Sequence[Candidate]], ...] = (("cloudy", optical), ("sar", sar))
    for kind, others in kinds:
        refused += [refuse(one, kind, "no row of the table names it", Cause.UNUSED) for one in others if one.scene.id not in used]
    return chosen, refused


def _find_input(row: Row) -> tuple[str, Role]:
    """The product that is the input of a row, and what it is a candidate for."""
    return (row.cloudy, "cloudy") if row.cloudy else (row.clear, "clear")


def _find_fault(triplet: Triplet, row: Row) -> str | None:
    """Why the products of a row form no pair, or None."""
    if triplet.cloudy.scene.sensor != triplet.clear.scene.sensor or not is_sar(triplet.sar.scene.sensor):
        sensors = f"SAR {triplet.sar.scene.sensor}, input {triplet.cloudy.scene.sensor}, target {triplet.clear.scene.sensor}"
        return f"its row in the table joins what forms no pair: {sensors}"
    if row.cloudy and triplet.cloudy.scene.id == triplet.clear.scene.id:
        return "its row in the table names one acquisition as input and target: leave cloudy empty, and clouds are simulated over it"
    return None


def _to_order(triplet: Triplet) -> tuple[object, ...]:
    return triplet.cloudy.moment, triplet.cloudy.scene.id, triplet.sky or 0
