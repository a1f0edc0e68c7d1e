"""What was left out, for the report: every candidate, tile, window and registration that was refused or lost, with its reason.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sereno.model.alignment import list_fields
from sereno.model.page import Block, Cell, Heading, Table, Text, show_first
from sereno.model.results import CLEARING, Results

SETTING_WORDS: Final = {
    "min_valid": "too little valid in SAR, input and target",
    "max_target_cloud": "too much cloud and shadow in the target",
    "min_input_cloud": "too little cloud and shadow in the input",
}
"""Limits of `patch` in words."""
GROUP_WORDS: Final = {"min_valid": "too little valid in the images of a group", "max_target_cloud": "too much cloud and shadow"}
"""The same where patches are cut from groups."""


def describe_losses(results: Results) -> list[Block]:
    """Every candidate, tile, window and registration that was refused or lost, with reasons."""
    return [
        *_list_refused_scenes(results),
        *_list_lost_tiles(results),
        *_list_refused_pairs(results),
        *_count_refused_windows(results),
        *_list_refused_shifts(results),
    ]


def _list_refused_scenes(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused candidates")]
    refused = [(area, entry) for area, lock in results.locks.items() for entry in lock.refused]
    if not refused:
        return [*blocks, Text("No candidate scene was refused." if results.locks else "There is no lock: run `sereno query`.")]
    rows = [(area, entry.role, entry.item, entry.reason) for area, entry in refused]
    return [*blocks, *show_first(("area", "as", "item", "reason"), rows, "the locks in query/")]


def _list_lost_tiles(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Lost tiles and warnings")]
    rows = []
    for (area, scene), facts in results.scenes.items():
        rows += [(area, scene, f"{lost['asset'] or 'all of it'}: {lost['reason']}") for lost in facts.get("lost", ())]
        rows += [(area, scene, warning) for warning in facts.get("warnings", ())]
    if not rows:
        return [*blocks, Text(f"None in {len(results.scenes)} scenes." if results.scenes else "No scene was read: run `sereno ingest`.")]
    return [*blocks, *show_first(("area", "scene", "what"), rows, "the manifests in ingest/")]


def _list_refused_pairs(results: Results) -> list[Block]:
    """Pairs that are not used at all; nothing where there is none."""
    rows = [(*key, words) for key in results.aligned if (words := results.refusal(key))]
    if not rows:
        return []
    note = Text("A scene of these pairs was refused, or nobody knows where it lies, so they hold no valid pixel and give no patch.")
    return [Heading("Refused pairs"), note, *show_first(("area", "pair", "reason"), rows, "the manifests in align/")]


def _count_refused_windows(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused windows")]
    cut = [summary for key, summary in results.patched.items() if not results.refusal(key)]
    groups: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for summary in cut:
        for entry in summary["refused"]:
            groups[entry["setting"], entry["limit"]].append(entry["value"])
    told = f"{sum(len(summary['patches']) for summary in cut)} windows were kept."
    if len(cut) < len(results.patched):
        told += f" Windows of pairs that are not used at all ({len(results.patched) - len(cut)}) are not counted."
    if not groups:
        return [*blocks, Text(f"None; {told}" if results.patched else "No pair was cut: run `sereno patch`.")]
    words = SETTING_WORDS if results.task == CLEARING else SETTING_WORDS | GROUP_WORDS
    rows = [
        (words.get(setting, setting), f"patch.{setting} {limit:g}", str(len(values)), f"{min(values):.3f} to {max(values):.3f}")
        for (setting, limit), values in sorted(groups.items())
    ]
    head = ("reason", "limit", "windows", "shares seen")
    return [*blocks, Table(head, [[Cell(word) for word in row] for row in rows], n_words=2), Text(told, "small")]


def _list_refused_shifts(results: Results) -> list[Block]:
    blocks: list[Block] = [Heading("Refused registrations")]
    measured = list_fields(results)
    refused = [field for field in measured if field.record["verdict"] == "refused"]
    if not refused:
        return [*blocks, Text(f"None of {len(measured)} fields." if results.aligned else "No pair was aligned: run `sereno align`.")]
    rows = [[Cell(f"{field.key[0]} {field.key[1]}"), Cell(field.image), Cell(field.record["reason"])] for field in refused]
    return [
        *blocks,
        Text("These images were left where their geocoding puts them, or their pair was given up."),
        Table(("pair", "image", "reason"), rows, n_words=3),
    ]
