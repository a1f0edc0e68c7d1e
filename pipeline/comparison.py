"""How two locks differ: scenes, items, files, pairs and groups that came, went or changed, and the ground they are about.

Two locks enter; changes leave, each with the place it is at in words. When a catalogue was searched is no difference. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline.pairs import ItemRecord, Lock, SceneRecord

Tree = Mapping[str, Any]
"""What a lock says, by the words it is called by; leaves are text, numbers or None."""

MARKS: Final = {"added": "+", "removed": "-", "changed": "~"}
"""First character of a line."""
LONGEST: Final = 60
"""Longer values are cut in the middle: both ends of a checksum or address tell enough."""


class Change(NamedTuple):
    """One difference."""

    kind: Literal["added", "removed", "changed"]
    """What happened from the first lock to the second."""
    place: tuple[str, ...]
    """Where, from the outside in: `scene X`, `item Y`, `B04`, `checksum`."""
    before: Any = None
    """Value in the first lock, if it changed."""
    after: Any = None
    """Value in the second lock, if it changed."""

    def describe(self) -> str:
        """The change in one line."""
        values = f": {_show(self.before)} -> {_show(self.after)}" if self.kind == "changed" else ""
        return f"{MARKS[self.kind]} {', '.join(self.place)}{values}"


def compare_locks(first: Lock, second: Lock) -> list[Change]:
    """Every difference from `first` to `second`, ground before scenes before pairs before refusals; none if they say the same."""
    return list(_compare_trees(_to_tree(first), _to_tree(second), ()))


def count_changes(changes: list[Change]) -> dict[str, int]:
    """How many changes there are of each kind and outermost thing, for example `pairs added`; only what there is."""
    counts: dict[str, int] = {}
    for change in changes:
        thing = change.place[0].split(" ")[0]
        kind = change.kind if len(change.place) == 1 else "changed"
        counts[f"{thing} {kind}"] = counts.get(f"{thing} {kind}", 0) + 1
    return counts


def _compare_trees(first: Tree, second: Tree, place: tuple[str, ...]) -> Iterator[Change]:
    for key in dict.fromkeys((*first, *second)):
        here = (*place, key)
        if key not in second or key not in first:
            yield Change("removed" if key in first else "added", here)
        elif isinstance(first[key], Mapping) and isinstance(second[key], Mapping):
            yield from _compare_trees(first[key], second[key], here)
        elif first[key] != second[key]:
            yield Change("changed", here, first[key], second[key])


def _to_tree(lock: Lock) -> Tree:
    refusals: dict[str, dict[str, str]] = {}
    for entry in lock.refused:
        refusals.setdefault(f"refusal {entry.item} as {entry.role}", {})[entry.status] = entry.reason
    return {
        "area": lock.area,
        "catalogue": lock.catalogue,
        "grid": lock.grid.model_dump(mode="json"),
        "outline": lock.outline and str(lock.outline),
        **{f"scene {name}": _describe_scene(scene) for name, scene in lock.scenes.items()},
        **({"dem": _describe_scene(lock.dem)} if lock.dem else {}),
        "task": lock.task,
        **{f"pair {pair.id}": pair.model_dump(mode="json", exclude={"id"}) for pair in lock.pairs},
        **{f"group {group.id}": group.model_dump(mode="json", exclude={"id"}) for group in lock.groups},
        **refusals,
    }


def _describe_scene(scene: SceneRecord) -> Tree:
    own = scene.model_dump(mode="json", exclude={"id", "items"})
    return {**own, "order of items": scene.item, **{f"item {item.item}": _describe_item(item) for item in scene.items}}


def _describe_item(item: ItemRecord) -> Tree:
    own = item.model_dump(mode="json", exclude={"item", "assets", "properties"})
    return {**own, **item.properties, **{name: asset.model_dump(mode="json") for name, asset in item.assets.items()}}


def _show(value: Any) -> str:
    text = "not stated" if value is None else str(value)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"
