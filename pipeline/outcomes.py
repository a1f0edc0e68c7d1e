"""What a whole run lost on its way, beside what could not be read: products refused, scenes that carry warnings, pairs given up.

Locks and the manifests of `ingest` and `align` in the results folder enter; lines leave for the end of a run, `sereno ledger` and
`sereno plan`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from sereno.pipeline.pairs import Lock
from sereno.pipeline.store import read_manifest

CAUSE_WORDS: Final[Mapping[str | None, str]] = {
    "item": "cannot be used",
    "excluded": "are excluded by name",
    "elsewhere": "cover nothing of the area",
    "overlap": "cover too little of the area",
    "duplicate": "are the same acquisition again",
    "polarisation": "have other polarisations",
    "orbit": "are of other orbits",
    "cover": "are neither cloudy nor clear enough",
    "clear_cover": "are too cloudy as target",
    "clear_gap": "have no clear scene near in time",
    "series": "have no clear scene before or after",
    "coarse_gap": "have no coarse scene near in time",
    "sar_gap": "have no SAR near in time",
    "unused": "are needed by no pair",
    "max_pairs": "are beyond the pairs wanted",
    None: "are refused for other reasons",
}
"""Causes of refusals in a lock, in words, those first that the user may not expect."""
UNFIT: Final = "item"
"""The cause of a product that is damaged, incomplete or not what it should be: the others are choices of the settings."""


class Outcome(NamedTuple):
    """What became of the products, scenes and pairs that the locks of a run name."""

    unfit: list[str]
    """Products that cannot be used, whatever the settings: area and item."""
    warnings: dict[str, list[str]]
    """Of each scene that carries some, by its area and id, what was found on reading it."""
    given_up: list[str]
    """A line for each pair that is not used: area, pair and reason."""
    n_pairs: int
    """Pairs or groups that are aligned, those given up among them."""


def read_outcome(results: Path) -> Outcome:
    """What is known so far in the folder that the workflow writes to; what no lock names any more is left out.

    Raises:
        StoreError, ConfigError: a lock or a manifest is damaged.
    """
    locks = [Lock.read(path) for path in sorted(results.glob("query/*.json"))]
    scenes = {
        f"{lock.area} {name}": _read_summary(results / f"ingest/{lock.area}/{name}.json", "scene") for lock in locks for name in lock.scenes
    }
    pairs = {
        f"{lock.area} {job.id}": _read_summary(results / f"align/{lock.area}/{job.id}.json", "group" if lock.groups else "pair")
        for lock in locks
        for job in lock.jobs
    }
    return Outcome(
        unfit=sorted({f"{lock.area} {one.item}" for lock in locks for one in lock.refused if one.cause == UNFIT}),
        warnings={name: found["warnings"] for name, found in scenes.items() if found.get("warnings")},
        given_up=[f"{name}: {found['refused']}" for name, found in pairs.items() if found.get("refused")],
        n_pairs=sum(bool(found) for found in pairs.values()),
    )


def _read_summary(manifest: Path, kind: str) -> dict[str, Any]:
    """The summary of a manifest; empty where the step has not run."""
    summary: dict[str, Any] = read_manifest(manifest, kind=kind)["summary"] if manifest.is_file() else {}
    return summary


def list_outcome(outcome: Outcome) -> list[str]:
    """A line for each warning and each pair given up, with its reason; refused products stand in the ledgers of the searches."""
    warned = [f"warning: {name}: {words}" for name, warnings in outcome.warnings.items() for words in warnings]
    return [*warned, *(f"given up: {line}" for line in outcome.given_up)]


def describe_outcome(outcome: Outcome, results: Path) -> list[str]:
    """How much a run lost, and where the reasons stand: one line, or none if nothing was lost; `results` is the folder of the run."""
    parts = [_count(len(outcome.unfit), "product") + " refused"] if outcome.unfit else []
    parts += [_count(len(outcome.warnings), "scene") + " with warnings"] if outcome.warnings else []
    parts += [f"{len(outcome.given_up)} of {_count(outcome.n_pairs, 'pair')} given up"] if outcome.given_up else []
    return [f"{', '.join(parts)}: `sereno ledger {shlex.quote(str(results))}` gives the reasons"] if parts else []


def describe_refusals(locks: Iterable[Lock]) -> list[str]:
    """What the searches refused, by cause: one line, or none if nothing was refused. An item is counted once for each cause."""
    found = {(lock.area, one.item, one.cause) for lock in locks for one in lock.refused}
    counts = Counter(cause for _, _, cause in found)
    parts = [f"{counts[cause]} {words}" for cause, words in CAUSE_WORDS.items() if counts[cause]]
    return [f"refused in the search: {', '.join(parts)}; the locks name each with its reason"] if parts else []


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
