"""Which ground the report's scores are from: the dataset, how far its splits lie apart, and maps of them.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

import json
from typing import Final

import rasterio

from sereno.model.page import MAX_SHOWN, Block, Shot, Shots, Text, say_more
from sereno.model.pictures import Plot, draw_map
from sereno.model.results import CLEARING, Results
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.patches import SPLITS

GROUND_WORDS: Final = {
    "test": "held-out ground",
    "val": "validation ground, which chose the weights",
    "train": "the ground it was trained on, which shows memory and not skill",
}
"""What a score on a split is worth."""
ORIGINS: Final = {CLEARING: "The world is simulated, so the truth under the clouds is known."}
"""What a simulated world is good for, by task."""


def describe_dataset(results: Results) -> list[Block]:
    """How many patches there are, of what, how far the splits lie apart, and which runs were trained on other ones."""
    if results.dataset is None:
        return [Text("There is no packed dataset: run `sereno pack`.", "missing")]
    facts = results.dataset
    counts, leakage = facts["counts"], facts["leakage"]
    kind = "pairs" if results.task == CLEARING else "groups"
    pairs = sum(len(area["pairs"]) for area in facts["areas"].values())
    size_km = facts["size_px"] * facts["resolution_m"] / 1000
    said = (
        f"Dataset: {sum(counts.values())} patches of {facts['size_px']} × {facts['size_px']} pixels ({size_km:.2f} km) from "
        f"{pairs} {kind} of {len(facts['areas'])} {'area' if len(facts['areas']) == 1 else 'areas'}: "
        + ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        + "."
    )
    if leakage["min_distance_m"] is None:
        apart = "There is only one split, so no ground is held out."
    else:
        apart = (
            f"No ground is shared between splits: over {leakage['footprints']} footprints the nearest patches of different splits are "
            f"{leakage['min_distance_m']:.0f} m apart ({leakage['required_m']:.0f} m asked for)."
        )
    origin = ORIGINS.get(results.task, "The world is simulated.") if results.world else ""
    stale = [run.name for run in results.runs if run.summary and run.summary["checkpoint"]["dataset_sha256"] != results.dataset_sha256]
    blocks: list[Block] = [Text(f"{said} {apart} {origin}".strip())]
    if stale:
        blocks.append(Text(f"{', '.join(stale)}: trained on another version of the dataset than the one described here.", "bad"))
    return blocks


def draw_areas(results: Results) -> list[Block]:
    """A map per area with the patches in the colours of their splits."""
    if not results.records:
        return [Text("There is no packed dataset, so no map of its splits: run `sereno pack`.", "missing")]
    shots = []
    for area, lock in list(results.locks.items())[:MAX_SHOWN]:
        plots = sorted({Plot(tuple(json.loads(row["bounds_m"])), row["split"]) for row in results.records if row["area"] == area})
        shots.append(Shot(draw_map(plots, _outline_of(lock.grid), title=f"{area}, {lock.grid.crs}"), f"Patches of {area}"))
    blocks: list[Block] = [Shots(shots, "map")]
    return [*blocks, *say_more(len(results.locks), "areas")]


def _outline_of(grid: GridRecord) -> tuple[float, float, float, float]:
    """Left, bottom, right, top in metres."""
    affine, (rows, columns) = rasterio.Affine(*grid.transform), grid.shape
    (left, top), (right, bottom) = affine * (0, 0), affine * (columns, rows)
    return left, bottom, right, top
