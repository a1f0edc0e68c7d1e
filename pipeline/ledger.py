"""The ledger: what became of every item and every asset, and what reading it cost.

Lists of entries enter and become CSV files beside the locks and the scenes; the report and `sereno ledger` read them back. Bytes, retries
and seconds stand here and not in the manifests, since they differ from run to run.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, get_args

from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import Status
from sereno.pipeline.store import staged

SEARCH: Final = "search"
"""Stands for the asset in the line that says what a search took."""


class Entry(NamedTuple):
    """One line."""

    step: str
    """`query`, `dem` or `ingest`."""
    area: str
    """Area."""
    scene: str
    """Scene id; empty where the item became no scene."""
    item: str
    """Id of the item in its catalogue."""
    asset: str
    """Band; empty for the item as a whole; `SEARCH` where the line is about a whole search."""
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


def read_ledgers(paths: Iterable[Path]) -> list[Entry]:
    """The entries of several files, in their order.

    Raises:
        DataError: one of them is not a ledger.
    """
    return [entry for path in paths for entry in read_ledger(path)]


def find_ledgers(results: Path) -> list[Path]:
    """All ledgers in the folder that the workflow writes to, those of searches first."""
    found = (sorted(results.glob(place)) for place in ("query/*.ledger.csv", "dem/*.ledger.csv", "ingest/*/*.ledger.csv"))
    return [path for paths in found for path in paths]


class Sum(NamedTuple):
    """Entries of one step and one status together."""

    step: str
    """`query`, `dem` or `ingest`."""
    status: Status
    """What became of them."""
    items: int
    """Entries about an item as a whole."""
    assets: int
    """Entries about one asset."""
    retries: int
    """How often reading was tried again."""
    bytes_read: int
    """Bytes fetched or read from disk."""
    seconds: float
    """Wall time of all of them, one after the other."""


def sum_entries(entries: Iterable[Entry]) -> list[Sum]:
    """Sums by step and status, the most usual status of each step first."""
    groups: dict[tuple[str, Status], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.step, entry.status), []).append(entry)
    order = sorted(groups, key=lambda key: (key[0] != "query", key[0], get_args(Status).index(key[1])))
    return [_sum_group(key, groups[key]) for key in order]


def _sum_group(key: tuple[str, Status], entries: list[Entry]) -> Sum:
    assets = sum(bool(entry.asset) for entry in entries)
    retries, size = sum(entry.retries for entry in entries), sum(entry.bytes_read for entry in entries)
    return Sum(*key, len(entries) - assets, assets, retries, size, math.fsum(entry.seconds for entry in entries))


def list_losses(entries: Iterable[Entry]) -> list[Entry]:
    """Entries that are not plainly used, by status, reason and place."""
    told = [entry for entry in entries if entry.status != "used" or entry.reason]
    return sorted(told, key=lambda entry: (get_args(Status).index(entry.status), entry.reason, entry))


def describe_ledger(entries: Sequence[Entry]) -> list[str]:
    """The sums as a table, then a line for each entry that is not plainly used."""
    head = ("step", "status", "items", "assets", "retries", "read", "seconds")
    sums = [(*map(str, row[:5]), to_size(row.bytes_read), f"{row.seconds:.1f}") for row in sum_entries(entries)]
    table = to_lines([head, *sums], n_words=2)
    told = [
        f"{e.status}: {' '.join(part for part in (e.area, e.scene, e.item, e.asset) if part)}: {e.reason}" for e in list_losses(entries)
    ]
    return [*table, "", *(told or ["everything was used"])]


def describe_losses(entries: Iterable[Entry], results: Path) -> list[str]:
    """How much could not be read, where the reasons stand and how to read it again: one line, or none if nothing was lost.

    `results` is the folder that the workflow writes to. A scene none of whose items gave a pixel is counted as unused.
    """
    entries = list(entries)
    read = [entry for entry in entries if entry.step == "ingest"]
    lost = [entry for entry in read if entry.asset and entry.status != "used"]
    items: dict[tuple[str, str], set[Status]] = {}
    for entry in read:
        if not entry.asset:
            items.setdefault((entry.area, entry.scene), set()).add(entry.status)
    unused = [scene for scene, statuses in items.items() if not statuses & {"used", "partly"}]
    parts = (
        [f"{_count(len(lost), 'asset')} of {_count(len({entry[1:3] for entry in lost}), 'scene')} could not be read whole"] if lost else []
    )
    parts += [f"{_count(len(unused), 'scene')} gave no usable ground"] if unused else []
    areas = {entry.area for entry in entries if entry.step == "dem" and entry.status != "used"}
    heights = [
        f"elevation models of {_count(len(areas), 'area')} could not be read whole: to read them again when they are back, delete "
        f"{results}/dem/AREA.json and give the same command again"
    ]
    if not parts:
        return heights if areas else []
    return (heights if areas else []) + [
        f"{' and '.join(parts)}: `sereno ledger {shlex.quote(str(results))}` gives the reasons; to read a scene again when its "
        f"files are back, delete {results}/ingest/AREA/SCENE.json and give the same command again"
    ]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def to_lines(rows: Sequence[Sequence[str]], *, n_words: int) -> list[str]:
    """Rows of cells as lines with straight columns: the first `n_words` columns to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        [cell.ljust(w) if place < n_words else cell.rjust(w) for place, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in padded]


def to_size(size: float) -> str:
    """Bytes in words: `1.5 GB`, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.{0 if unit == 'B' or size >= 99.5 else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
