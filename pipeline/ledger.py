"""The ledger: what became of every item and every asset, and what reading it cost.

Lists of entries enter and become CSV files beside the locks and the scenes; the report and `sereno ledger` read them back. Bytes, retries
and seconds stand here and not in the manifests, since they differ from run to run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import Status
from sereno.pipeline.store import staged


class Entry(NamedTuple):
    """One line."""

    step: str
    """`query` or `ingest`."""
    area: str
    """Area."""
    scene: str
    """Scene id; empty where the item became no scene."""
    item: str
    """Id of the item in its catalogue."""
    asset: str
    """Band, or empty for the item as a whole."""
    status: Status
    """What became of it."""
    reason: str = ""
    """In words; empty for what was used."""
    retries: int = 0
    """How often reading was tried again."""
    bytes_read: int = 0
    """Bytes fetched or read from disk, as far as they can be counted; compressed."""
    seconds: float = 0.0
    """Wall time."""


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """Write `entries` as CSV, in the order of step, scene, item and asset."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Entry._fields)
    writer.writerows(entry._replace(seconds=round(entry.seconds, 3)) for entry in sorted(entries))
    with staged(path) as partial:
        partial.write_text(text.getvalue())


def read_ledger(path: Path) -> list[Entry]:
    """The entries of one file.

    Raises:
        DataError: it is not a ledger.
    """
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Entry._fields or any(len(row) != len(Entry._fields) for row in rows):
        raise DataError(f"ledger {path} has not the columns {', '.join(Entry._fields)}: delete it and run the step again")
    return [_parse_row(dict(zip(Entry._fields, row, strict=True))) for row in rows[1:]]


def _parse_row(row: dict[str, str]) -> Entry:
    numbers = {"retries": int(row["retries"]), "bytes_read": int(row["bytes_read"]), "seconds": float(row["seconds"])}
    return Entry(**{**row, **numbers})  # type: ignore[arg-type] # names and types are those of the fields


def ledger_of(manifest: Path) -> Path:
    """Where the ledger of a lock or of a scene lies: `AREA.json` gives `AREA.ledger.csv`."""
    return manifest.with_name(f"{manifest.stem}.ledger.csv")
