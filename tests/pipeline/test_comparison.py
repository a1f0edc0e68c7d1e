"""Two locks: what came, went and changed is named, and nothing else."""

from typing import Any

import pytest

from sereno.pipeline.comparison import compare_locks, count_changes
from sereno.pipeline.pairs import AssetRecord, GridRecord, Group, ItemRecord, Lock, Pair, Refusal, SceneRecord

MOMENT = "2021-06-03T10:20:00Z"


def make_item(name: str, **changes: Any) -> ItemRecord:
    facts: dict[str, Any] = {"item": name, "collection": "c", "sensor": "sentinel2-l2a", "time": MOMENT, "crs": "EPSG:32632"}
    assets = {"B04": AssetRecord(href="a/B04.tif", checksum="1220" + "ab" * 32, etag='"1"', size_bytes=7)}
    return ItemRecord.model_validate(facts | {"bbox": (9, 45, 10, 46), "assets": assets} | changes)


def make_scene(name: str, *items: ItemRecord) -> SceneRecord:
    return SceneRecord(id=name, sensor="sentinel2-l2a", time=MOMENT, items=items or (make_item(name.upper()),))


def make_pair(name: str, **changes: Any) -> Pair:
    return Pair.model_validate({"id": name, "sar": "s", "cloudy": "o", "clear": "c", "sar_gap_days": 0, "clear_gap_days": 5} | changes)


GRID = GridRecord(crs="EPSG:32632", transform=(10, 0, 498_400, 0, -10, 5_040_000), shape=(8, 8))
LOCK = Lock(
    area="west",
    catalogue="here",
    grid=GRID,
    scenes={name: make_scene(name) for name in ("s", "o", "c")},
    pairs=(make_pair("p"),),
    refused=(Refusal(item="X", role="clear", reason="too cloudy"),),
)


def lines(**changes: Any) -> list[str]:
    return [change.describe() for change in compare_locks(LOCK, LOCK.model_copy(update=changes))]


def with_item(item: ItemRecord) -> dict[str, SceneRecord]:
    return {**LOCK.scenes, "o": make_scene("o", item)}


def test_a_lock_does_not_differ_from_itself_nor_from_a_later_search_that_found_the_same() -> None:
    assert lines() == []
    assert lines(searched="2026-01-01T00:00:00Z") == []


def test_scenes_pairs_and_refusals_that_come_and_go_are_one_line_each() -> None:
    assert lines(scenes={**LOCK.scenes, "n": make_scene("n")}) == ["+ scene n"]
    assert lines(scenes={name: scene for name, scene in LOCK.scenes.items() if name != "o"}) == ["- scene o"]
    assert lines(pairs=(make_pair("p"), make_pair("q"))) == ["+ pair q"]
    assert lines(pairs=()) == ["- pair p"]
    assert lines(refused=()) == ["- refusal X as clear"]
    assert lines(groups=(Group(id="g", scenes={"cube": "s"}),), task="snapshot-reconstruction") == [
        "~ task: cloud-removal -> snapshot-reconstruction",
        "+ group g",
    ]


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (make_item("O", processing_baseline="05.09"), "~ scene o, item O, processing_baseline: not stated -> 05.09"),
        (make_item("O", offset_sources=("flag",)), "~ scene o, item O, offset_sources: ['flag', 'declared', 'baseline'] -> ['flag']"),
        (make_item("O", assets={}), "- scene o, item O, B04"),
    ],
)
def test_what_changed_in_an_item_is_named_with_both_values(item: ItemRecord, line: str) -> None:
    assert lines(scenes=with_item(item)) == [line]


@pytest.mark.parametrize("field", ["checksum", "etag", "href", "size_bytes"])
def test_a_changed_file_is_named_with_both_ends_of_long_values(field: str) -> None:
    asset = LOCK.scene("o").items[0].assets["B04"].model_copy(update={field: 9 if field == "size_bytes" else "1220" + "cd" * 32})
    [line] = lines(scenes=with_item(make_item("O", assets={"B04": asset})))
    assert line.startswith(f"~ scene o, item O, B04, {field}: ")
    assert "..." in line or field == "size_bytes"
    assert len(line) < 200


def test_elevation_models_that_come_or_change_are_named() -> None:
    dem = make_scene("dem", make_item("d", sensor="dem"))
    assert lines(dem=dem) == ["+ dem"]
    changed = make_scene("dem", make_item("d", sensor="dem", crs="EPSG:4326"))
    seen = compare_locks(LOCK.model_copy(update={"dem": dem}), LOCK.model_copy(update={"dem": changed}))
    assert [change.describe() for change in seen] == ["~ dem, item d, crs: EPSG:32632 -> EPSG:4326"]


def test_items_are_compared_by_name_and_so_is_the_order_in_which_they_are_laid() -> None:
    tiles = (make_item("A"), make_item("B"))
    first, second = (LOCK.model_copy(update={"scenes": {"o": make_scene("o", *order)}}) for order in (tiles, tiles[::-1]))
    assert [change.describe() for change in compare_locks(first, second)] == ["~ scene o, order of items: A+B -> B+A"]
    alone = LOCK.model_copy(update={"scenes": {"o": make_scene("o", tiles[0])}})
    assert [change.describe() for change in compare_locks(alone, first)] == ["~ scene o, order of items: A -> A+B", "+ scene o, item B"]


def test_another_grid_outline_or_catalogue_is_a_difference() -> None:
    moved = GRID.model_copy(update={"shape": (9, 8)})
    assert lines(grid=moved) == ["~ grid, shape: [8, 8] -> [9, 8]"]
    assert lines(catalogue="there") == ["~ catalogue: here -> there"]
    [line] = lines(outline={"type": "Polygon", "coordinates": []})
    assert line.startswith("~ outline: not stated -> ")


def test_from_there_to_here_is_the_opposite_of_from_here_to_there() -> None:
    other = LOCK.model_copy(update={"pairs": (make_pair("q"),), "scenes": with_item(make_item("O", processing_baseline="04.00"))})
    there, back = compare_locks(LOCK, other), compare_locks(other, LOCK)
    opposite = {"added": "removed", "removed": "added", "changed": "changed"}
    assert {(opposite[c.kind], c.place, c.after, c.before) for c in there} == {(c.kind, c.place, c.before, c.after) for c in back}


def test_changes_are_counted_by_the_outermost_thing() -> None:
    changes = compare_locks(LOCK, LOCK.model_copy(update={"pairs": (make_pair("q"),), "scenes": with_item(make_item("O", assets={}))}))
    assert count_changes(changes) == {"scene changed": 1, "pair removed": 1, "pair added": 1}


def test_pairs_under_simulated_skies_come_go_and_change_like_others() -> None:
    first, second = (make_pair(f"p-sky{sky}", cloudy="c", sky=sky, clear_gap_days=0) for sky in (1, 2))
    before, after = (LOCK.model_copy(update={"pairs": pairs}) for pairs in ((first,), (first, second)))
    assert [change.describe() for change in compare_locks(before, after)] == ["+ pair p-sky2"]
    renamed = LOCK.model_copy(update={"pairs": (second.model_copy(update={"id": "p-sky1"}),)})
    assert [change.describe() for change in compare_locks(before, renamed)] == ["~ pair p-sky1, sky: 1 -> 2"]
