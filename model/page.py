"""What the report's page is made of: sections of blocks (text, tables, pictures), and how numbers are written in words.

Blocks enter, HTML leaves; `report.html.jinja` says how each kind of block looks. All text is escaped there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

NOTHING: Final = "–"
"""Stands in tables where there is no number."""
NARROW_SPACE: Final = "\u202f"
"""Between groups of three digits."""
NO_DAY: Final = "1970-01-01"
"""The day that readers give images of which nobody says when they were taken."""
MAX_ROWS: Final = 60
"""Longest list of what was refused or lost; how many more there are, and where they are listed, is said."""
MAX_SHOWN: Final = 12
"""Maps and shift fields shown; how many more there are is said."""


class Text(NamedTuple):
    """A paragraph."""

    words: str
    """Plain text; the template escapes it."""
    tone: str = "plain"
    """`plain`, `small`, `good`, `bad`, or `missing` for what is not there."""
    kind: str = "text"
    """How the template knows it."""


class Heading(NamedTuple):
    """A heading inside a section."""

    words: str
    """Plain text."""
    kind: str = "heading"
    """How the template knows it."""


class Cell(NamedTuple):
    """One field of a table."""

    words: str
    """Plain text."""
    is_best: bool = False
    """Shown bold."""


class Table(NamedTuple):
    """Rows under headings."""

    head: Sequence[str]
    """One per column."""
    rows: Sequence[Sequence[Cell]]
    """Cells in the order of the head."""
    n_words: int = 1
    """So many columns at the left hold words and are set left, the others hold numbers."""
    kind: str = "table"
    """How the template knows it."""


class Shot(NamedTuple):
    """A picture with its words."""

    uri: str
    """PNG data URI."""
    title: str
    """What it shows."""
    note: str = ""
    """More about it."""


class Shots(NamedTuple):
    """Pictures side by side."""

    shots: Sequence[Shot]
    """In reading order."""
    size: str
    """`scene`, `patch`, `chart`, `wide` or `map`: how wide each may become."""
    columns: int = 1
    """So many stand side by side on a wide screen; of weight for `scene` and `patch` only."""
    kind: str = "shots"
    """How the template knows it."""


class Legend(NamedTuple):
    """What colours mean."""

    entries: Sequence[tuple[str, str]]
    """CSS colour and words."""
    kind: str = "legend"
    """How the template knows it."""


Block = Text | Heading | Table | Shots | Legend


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    """Name in links within the page."""
    title: str
    """Its heading."""
    blocks: Sequence[Block]
    """What it shows."""


def render_page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML; all text is escaped."""
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(title=title, sections=sections)


def mark_best(rows: Sequence[Sequence[Cell]], larger_is_better: Sequence[bool], first: int = 1) -> list[list[Cell]]:
    """The rows with the best number of each column marked, from column `first` on; what is equal as it is shown is all marked."""
    marked = [list(row) for row in rows]
    for place, larger in enumerate(larger_is_better, first):
        numbers = [float(row[place].words) if row[place].words != NOTHING else math.nan for row in rows]
        finite = [number for number in numbers if not math.isnan(number)]
        best = (max if larger else min)(finite, default=math.nan)
        for row, number in zip(marked, numbers, strict=True):
            row[place] = row[place]._replace(is_best=number == best and len(rows) > 1)
    return marked


def show_first(head: Sequence[str], rows: Sequence[Sequence[str]], source: str) -> list[Block]:
    """A table of words, and where all rows are if they are too many to show."""
    table = Table(head, [[Cell(word) for word in row] for row in rows[:MAX_ROWS]], n_words=len(head))
    more = Text(f"The first {MAX_ROWS} of {len(rows)} are shown; {source} list all.", "small")
    return [table, more] if len(rows) > MAX_ROWS else [table]


def say_more(count: int, what: str) -> list[Block]:
    """That only the first of so many are shown, if there are more."""
    return [Text(f"The first {MAX_SHOWN} of {count} {what} are shown.", "small")] if count > MAX_SHOWN else []


def show_count(count: int) -> str:
    """A whole number with a space between groups of three digits."""
    return f"{count:,}".replace(",", NARROW_SPACE)


def show_number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number in words; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def show_day(time: str, properties: Mapping[str, str]) -> str:
    """The day of a time, a dash where nobody says it; marked where the reader's nominal time stands for one that the product lacks."""
    if time.startswith(NO_DAY):
        return NOTHING
    return f"{time[:10]} (nominal)" if properties.get("time", "").startswith("nominal") else time[:10]


def show_range(interval: Mapping[str, Any], digits: int) -> str:
    """The ends `low` and `high` of an interval in words, or that there are too few groups for one."""
    low, high = interval["low"], interval["high"]
    if low is None or math.isnan(low):
        return "too few blocks"
    return f"{show_number(low, digits, sign=True)} to {show_number(high, digits, sign=True)}"


def show_share(share: float) -> str:
    """A share of 0..1 in percent."""
    return f"{100 * share:.1f} %"
