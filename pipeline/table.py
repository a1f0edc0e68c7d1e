"""A user's own table of pairs: which products belong together, whatever their times and cloud covers are.

Enters: the text of the table, and the candidates of an area. Leaves: triplets, and for every row and candidate that is not used the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sereno.pipeline.acquisitions import Candidate, Cause, Refused, refuse
from sereno.pipeline.archives import strip_suffix
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.pairing import Triplet
from sereno.pipeline.pairs import Role, is_sar


class Row(NamedTuple):
    """One line of a user's table of pairs."""

    sar: str
    """Name of the SAR product."""
    cloudy: str
    """Name of the input."""
    clear: str
    """Name of the target."""


def parse_table(text: str, *, where: str) -> tuple[Row, ...]:
    """The rows of a CSV table with the columns `sar`, `cloudy` and `clear`; others are passed over, endings of archives removed.

    Raises:
        ConfigError: a column or a value is missing, or there are no rows.
    """
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    lacking = [name for name in Row._fields if name not in (reader.fieldnames or ())]
    if lacking:
        seen = ", ".join(reader.fieldnames or ()) or "nothing"
        raise ConfigError(
            f"{where}: the table has no column {', '.join(lacking)} (it has {seen}); its first line must name sar,cloudy,clear"
        )
    rows = [Row(*(strip_suffix((line[name] or "").strip()) for name in Row._fields)) for line in reader]
    faulty = [number for number, row in enumerate(rows, 2) if not all(row)]
    if faulty or not rows:
        raise ConfigError(f"{where}: " + (f"line {faulty[0]} lacks a product" if faulty else "the table has no rows"))
    return tuple(rows)


def choose_by_table(optical: Sequence[Candidate], sar: Sequence[Candidate], rows: Iterable[Row]) -> tuple[list[Triplet], list[Refused]]:
    """The triplets that a table names, in order of time; and what is not used: rows with a product that is not there, and other scenes.

    A product belongs to the scene that it was laid together into with others of its overflight.
    """
    places = {item.item: one for one in (*optical, *sar) for item in one.scene.items}
    triplets: dict[tuple[str, ...], Triplet] = {}
    refused: list[Refused] = []
    for row in rows:
        lacking = [name for name in row if name not in places]
        if lacking:
            reason = f"its row in the table also names {', '.join(lacking)}, which cannot be used in this area"
            refused += [refuse(places[row.cloudy], "cloudy", reason, Cause.ITEM)] if row.cloudy in places else []
            continue
        triplet = Triplet(places[row.cloudy], places[row.clear], places[row.sar])
        if triplet.cloudy.scene.sensor != triplet.clear.scene.sensor or not is_sar(triplet.sar.scene.sensor):
            sensors = f"SAR {triplet.sar.scene.sensor}, input {triplet.cloudy.scene.sensor}, target {triplet.clear.scene.sensor}"
            refused.append(refuse(triplet.cloudy, "cloudy", f"its row in the table joins what forms no pair: {sensors}", Cause.ITEM))
            continue
        triplets[tuple(part.scene.id for part in triplet)] = triplet
    chosen = sorted(triplets.values(), key=lambda triplet: (triplet.cloudy.moment, triplet.cloudy.scene.id))
    used = {part.scene.id for triplet in chosen for part in triplet} | {name for one in refused for name in one.items}
    kinds: tuple[tuple[Role, Sequence[Candidate]], ...] = (("cloudy", optical), ("sar", sar))
    for role, others in kinds:
        refused += [refuse(one, role, "no row of the table names it", Cause.UNUSED) for one in others if one.scene.id not in used]
    return chosen, refused
