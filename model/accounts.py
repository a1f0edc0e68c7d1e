"""What the data steps spent and decided, for the report: the ledger's sums, losses, offsets, scenes refused, how far cloud masks agree.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from sereno.model.page import NOTHING, Block, Cell, Heading, Table, Text, show_first, show_number, show_share
from sereno.model.results import Key, Results
from sereno.pipeline.ledger import SEARCH, list_losses, sum_entries, to_size

SUM_COLUMNS: Final = ("step", "what became of it", "items", "assets", "tried again", "read", "seconds")
"""Headings of the sums."""
ROLES: Final = ("cloudy", "clear")
"""Images of a pair whose masks are compared, those that are listed first."""
HALF_TOLD: Final = "; without a visible band they cannot tell whether it was removed twice"
"""What is added to the verdict `not left in` of dark pixels."""
CHOICE_COLUMNS: Final = ("method", "chosen because", "pairs")
"""Headings of what `auto` came to."""
MEASURES: Final = ("both", "only_first", "only_second", "neither", "iou")
"""Keys of an agreement of masks, in reading order."""
AGREEMENT_COLUMNS: Final = ("area", "pair", "image", "cloud in both", "in the first alone", "in the second alone", "in none", "both of any")
"""Headings of the agreement of masks."""

FINDINGS: Final = ("thick", "thin", "clear_as_cloud", "shadow", "clear_as_shadow")
"""Keys of what a method finds of simulated clouds, in reading order."""
FINDING_COLUMNS: Final = (
    "area", "pair", "method", "thick cloud found", "thin cloud found", "clear called cloud", "shadow found", "clear called shadow",
)  # fmt: skip
"""Headings of that."""


def describe_accounts(results: Results) -> list[Block]:
    """The ledger's sums and losses, offsets that were decided, scenes that were refused, and what decided on clouds and how surely."""
    read = [*_sum_ledger(results), *_list_losses(results), *_count_offsets(results), *_list_refused(results)]
    return [*read, *_list_unknown(results), *_list_chosen(results), *_compare_masks(results), *_score_truth(results)]


def _sum_ledger(results: Results) -> list[Block]:
    if not results.ledger:
        return [Text("There is no ledger: run `sereno query` and `sereno ingest`.", "missing")]
    sums = sum_entries(results.ledger)
    rows = [
        (row.step, row.status, str(row.items), str(row.assets), str(row.retries), to_size(row.bytes_read), show_number(row.seconds, 1))
        for row in sums
    ]
    read, seconds = sum(row.bytes_read for row in sums), sum(row.seconds for row in sums)
    again = sum(row.retries for row in sums)
    said = (
        f"Reading took {to_size(read)} and {seconds:.0f} s, all readers added up; {again} times something was tried again. "
        "Items are catalogue items, assets their files; what was searched and not used is listed below under what was left out."
    )
    searches = [[Cell(entry.area), Cell(entry.reason)] for entry in results.ledger if entry.asset == SEARCH]
    table = Table(SUM_COLUMNS, [[Cell(word) for word in row] for row in rows], n_words=2)
    return [table, Text(said, "small"), *([Table(("area", "what was searched"), searches, n_words=2)] if searches else [])]


def _list_losses(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Losses while reading")]
    entries = [entry for entry in results.ledger if entry.step == "ingest"]
    losses = list_losses(entries)
    if not losses:
        return [*blocks, Text(f"None in {len(entries)} entries." if entries else "No scene was read: run `sereno ingest`.")]
    rows = [(entry.status, entry.area, entry.scene, entry.item, entry.asset or NOTHING, entry.reason) for entry in losses]
    return [*blocks, *show_first(("status", "area", "scene", "item", "asset", "reason"), rows, "the ledgers in ingest/")]


def _count_offsets(results: Results) -> list[Block]:
    """How many optical items had which offset removed, why, and what their dark pixels said of it."""
    items = [item for facts in results.scenes.values() if str(facts.get("sensor", "")).startswith("sentinel2") for item in _items_of(facts)]
    if not items:
        return []
    counts = Counter((str(item.get("offset")), str(item.get("offset_reason")), _show_check(item.get("offset_check"))) for item in items)
    rows = [[Cell(word) for word in (offset, reason, check, str(n))] for (offset, reason, check), n in sorted(counts.items())]
    return [Heading("Reflectance offsets"), Table(("added to stored values", "because", "dark pixels", "items"), rows, n_words=3)]


def _show_check(check: Mapping[str, Any] | None) -> str:
    """The verdict of the dark pixels, with what it leaves open; sensors without that check have none."""
    if not check:
        return "not asked"
    return f"{check['verdict']}{HALF_TOLD if check['verdict'] == 'not left in' else ''}"


def _items_of(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a scene's manifest says of each of its items that laid something down."""
    return [item for item in facts.get("items", ()) if item.get("share", 1)]


def _list_refused(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused scenes")]
    rows = [(area, scene, str(facts["refused"])) for (area, scene), facts in results.scenes.items() if facts.get("refused")]
    if not rows:
        return [*blocks, Text(f"None of {len(results.scenes)} scenes." if results.scenes else "No scene was read: run `sereno ingest`.")]
    note = Text("Their pairs hold no valid pixel and give no patch.")
    return [*blocks, note, *show_first(("area", "scene", "reason"), rows, "the manifests in ingest/")]


def _list_unknown(results: Results) -> list[Block]:
    """Images of which the method could not decide everywhere whether there is cloud; nothing where it could."""
    rows = [
        (*key, role, show_share(share), why or "classes of a part are lost")
        for key, summary in results.masked.items()
        for role, why in _order_roles(summary.get("unknown") or {}).items()
        if (share := summary.get(f"known_{role}_share", 1)) < 1 and (share or why)
    ]
    if not rows:
        return []
    note = Text(
        "What is not known is never clear: patches do not use it, and predictions treat it as cloud. Shares are of the valid pixels."
    )
    table = show_first(("area", "pair", "image", "clouds known", "because"), rows, "the manifests in mask/")
    return [Heading("Clouds that are not known"), note, *table]


def _order_roles(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of images by role, those of a pair first."""
    return {role: found[role] for role in (*(role for role in ROLES if role in found), *sorted(found.keys() - set(ROLES)))}


def _list_chosen(results: Results) -> list[Block]:
    """Which methods `auto` came to for how many pairs, and why; nothing where methods were named."""
    chosen = Counter((summary["method"], summary["why"]) for summary in results.masked.values() if summary.get("asked") == "auto")
    rows = [[Cell(method), Cell(why), Cell(str(number))] for (method, why), number in chosen.items()]
    return [Heading("Cloud methods that were chosen"), Table(CHOICE_COLUMNS, rows, n_words=2)] if rows else []


def _compare_masks(results: Results) -> list[Block]:
    """Agreement of the two methods of each pair's masks; nothing where one method is on."""
    compared = {key: summary for key, summary in results.masked.items() if summary.get("agreement")}
    if not compared:
        return []
    rows = [row for key, summary in compared.items() for row in _to_agreement_rows(key, summary["agreement"])]
    first, second = (" or ".join(dict.fromkeys(str(summary[name]) for summary in compared.values())) for name in ("method", "second"))
    said = f"{first} decides; {second} is compared with it and decides nothing. Shares are of the valid pixels."
    return [Heading("Agreement of cloud masks"), Text(said), Table(AGREEMENT_COLUMNS, rows, n_words=3)]


def _to_agreement_rows(key: Key, agreement: Mapping[str, Mapping[str, float | None]]) -> list[list[Cell]]:
    """One row per image that was compared, the input first."""
    return [
        [*map(Cell, (*key, role)), *(_to_share_cell(found[name]) for name in MEASURES)] for role, found in _order_roles(agreement).items()
    ]


def _score_truth(results: Results) -> list[Block]:
    """What each method finds of simulated clouds; nothing where none were simulated, or only asked of a classification made of them."""
    rows = [
        [*map(Cell, (*key, method)), *(_to_share_cell(found[name]) for name in FINDINGS)]
        for key, summary in results.masked.items()
        for method, found in summary.get("truth", {}).items()
    ]
    if not rows:
        return []
    said = "These inputs lie under simulated clouds, whose truth is the mask; what a method finds of it tells how real they look to it."
    return [Heading("Simulated clouds"), Text(said), Table(FINDING_COLUMNS, rows, n_words=3)]


def _to_share_cell(share: float | None) -> Cell:
    return Cell(NOTHING if share is None else show_share(share))
