"""Repeats of one acquisition are resolved, and what one overflight delivered in pieces becomes one scene."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from real_files import find_samples

from sereno.pipeline.acquisitions import (
    Candidate,
    Cause,
    Found,
    Refused,
    assemble_scenes,
    drop_duplicates,
    give_unique_ids,
    role_of,
    to_refusals,
)
from sereno.pipeline.areas import compute_share, cut_footprint, to_ground
from sereno.pipeline.config import Area
from sereno.pipeline.items import to_item_record
from sereno.pipeline.pairs import ItemRecord, SceneRecord

GROUND = to_ground(Area(bounds_m=(500_000, 5_000_000, 510_000, 5_010_000), epsg=32632), 10)
SLICE = "S1A_IW_GRDH_1SDV_20210601T05{}_20210601T05{}_038335_0475BF"
S1 = SLICE.format("2548", "2613")
STRIP = "S2A_OPER_MSI_L2A_DS_2APS_{}_S20210601T{}_N05.00"


def to_found(name: str, west: float = 0, east: float = 1, **facts: Any) -> Found:
    """An item over the strip of the area between two shares of its width; Sentinel-1 if its id says so."""
    record = {
        "item": name,
        "collection": facts.pop("collection", "c1"),
        "sensor": facts.pop("sensor", "sentinel1-rtc" if name.startswith("S1") else "sentinel2-l2a"),
        "time": facts.pop("time", "2021-06-01T10:20:21Z"),
        "crs": facts.pop("crs", "EPSG:32632"),
        "bbox": (9, 45, 10, 46),
        "assets": {},
        "cloud_cover_pct": facts.pop("cover", None),
        "processing_baseline": facts.pop("baseline", None),
        "properties": facts,
    }
    part = shapely.box(500_000 + west * 10_000, 5_000_000, 500_000 + east * 10_000, 5_010_000)
    return Found(ItemRecord.model_validate(record), part)


def assemble(*found: Found, min_overlap: float = 0.6) -> tuple[list[Candidate], list[Refused]]:
    return assemble_scenes(found, GROUND, min_overlap=min_overlap, clear_cover_pct=5)


@pytest.mark.parametrize(
    ("older", "newer", "words"),
    [
        ({"baseline": "02.14"}, {"baseline": "05.00"}, "baseline 02.14 against 05.00"),
        ({"generated": "2021-06-01T15:00:00Z"}, {"generated": "2023-01-01T00:00:00Z"}, "processed 2021-06-01T15:00:00Z against 2023"),
        ({"collection": "c2"}, {"collection": "c1"}, "collection c2 against c1"),
        ({"baseline": None}, {"baseline": "05.00"}, "baseline not stated against 05.00"),
        (
            {"datastrip": STRIP.format("20210601T150000", "102021"), "baseline": "02.14"},
            {"datastrip": STRIP.format("20230101T000000", "102021"), "baseline": "05.00"},
            "baseline",
        ),
        # The product level asked for first wins, however new the other is.
        (
            {"sensor": "sentinel2-l1c", "collection": "c2", "baseline": "05.00"},
            {"baseline": "02.14"},
            "product sentinel2-l1c against sentinel2-l2a",
        ),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_processings_the_newest_stays(older: dict[str, Any], newer: dict[str, Any], words: str, swapped: bool) -> None:
    facts = {"platform": "sentinel-2a", "tile": "32TNR"}
    both = [to_found("S2-old", **{**facts, **older}), to_found("S2-new", **{**facts, **newer})]
    kept, dropped = drop_duplicates(both[::-1] if swapped else both, ("c1", "c2"))
    assert [one.record.item for one in kept] == ["S2-new"]
    assert [(one.record.item, reason.startswith("duplicate of S2-new, ")) for one, reason in dropped] == [("S2-old", True)]
    assert words in dropped[0][1]


@pytest.mark.parametrize("suffixes", [("_0A1B", "_FFFF"), ("", "_FFFF"), ("_0A1B_COG", "_FFFF_COG"), ("_0A1B.SAFE", "_FFFF"), ("", "_rtc")])
def test_sentinel1_items_that_differ_in_the_last_four_characters_are_duplicates(suffixes: tuple[str, str]) -> None:
    both = [to_found(f"{S1}{suffix}", generated=f"202{number}") for number, suffix in enumerate(suffixes)]
    kept, dropped = drop_duplicates(both, ("c1",))
    assert [one.record.item for one in kept] == [f"{S1}{suffixes[1]}"]
    assert dropped[0][1].startswith(f"duplicate of {S1}{suffixes[1]}")


def test_terrain_corrected_and_ground_range_products_of_one_acquisition_are_one() -> None:
    both = [to_found(f"{S1}_rtc", collection="rtc"), to_found(f"{S1}_0A1B", sensor="sentinel1-grd", collection="grd", generated="2030")]
    kept, _ = drop_duplicates(both, ("rtc", "grd"))
    assert [one.record.sensor for one in kept] == ["sentinel1-rtc"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tile": "32TNR"}, {"tile": "32TNS"}),
        ({"platform": "sentinel-2a"}, {"platform": "sentinel-2b"}),
        ({"datastrip": STRIP.format("20210601T150000", "102021")}, {"datastrip": STRIP.format("20210601T150000", "102033")}),
        ({"name": f"{S1}_0A1B"}, {"name": f"{S1[:-1]}0_0A1B"}),
        ({"name": f"{S1}_rtc"}, {"name": f"{SLICE.format('2613', '2638')}_rtc"}),
        ({"tile": "", "name": "S2-one"}, {"tile": "", "name": "S2-two"}),
    ],
)
def test_other_tiles_platforms_and_halves_of_a_datatake_are_no_duplicates(one: dict[str, Any], other: dict[str, Any]) -> None:
    both = [to_found(**{"name": name, "tile": "32TNR", **facts}) for name, facts in (("S2-a", one), ("S2-b", other))]
    kept, dropped = drop_duplicates(both, ("c1",))
    assert len(kept) == 2
    assert not dropped


def test_the_slices_of_a_datatake_become_one_scene() -> None:
    first, second = to_found(f"{SLICE.format('2548', '2613')}_rtc", 0, 0.45), to_found(f"{SLICE.format('2613', '2638')}_rtc", 0.4, 1)
    candidates, refused = assemble(first, second, min_overlap=1)
    assert not refused
    [(scene, covered)] = candidates
    # The larger share is laid first.
    assert [item.item for item in scene.items] == [second.record.item, first.record.item]
    assert compute_share(covered, GROUND) == pytest.approx(1)
    assert scene.id == f"{second.record.item}.2-items"
    assert scene.item == f"{second.record.item}+{first.record.item}"


@pytest.mark.parametrize(
    "other",
    [
        to_found(f"{S1[:-6]}0475C0_rtc", 0.5, 1),  # another datatake
        to_found(f"{S1.replace('S1A', 'S1B')}_rtc", 0.5, 1),
        to_found(f"{S1}_0A1B", 0.5, 1, sensor="sentinel1-grd"),
    ],
)
def test_no_scene_joins_two_datatakes_platforms_or_products(other: Found) -> None:
    candidates, _ = assemble(to_found(f"{S1}_rtc", 0, 0.5), other, min_overlap=0.5)
    assert sorted(len(one.scene.items) for one in candidates) == [1, 1]


PRODUCT = "S2A_MSIL2A_20210601T102021_N0500_R065_T{}_20210601T134512"


@pytest.mark.parametrize(
    "facts",
    [
        {"product": f"{PRODUCT}.SAFE"},
        {"datatake": "GS2A_20210601T102021_031035_N05.00"},
        {},  # nothing but times that follow each other
    ],
)
def test_tiles_of_two_zones_become_one_scene_those_of_the_grid_first(facts: dict[str, str]) -> None:
    tiles = [("33TUL", "EPSG:32633", 0.0, 0.7, "10:20:33"), ("32TQR", "EPSG:32632", 0.6, 1.0, "10:20:21")]
    found = [
        to_found(
            f"S2A_{tile}_20210601",
            *(west, east),
            crs=crs,
            tile=tile,
            time=f"2021-06-01T{moment}Z",
            **{key: value.format(tile) for key, value in facts.items()},
        )
        for tile, crs, west, east, moment in tiles
    ]
    [(scene, covered)], refused = assemble(*found)
    assert [item.crs for item in scene.items] == ["EPSG:32632", "EPSG:32633"]
    assert compute_share(covered, GROUND) == pytest.approx(1)
    assert not refused


@pytest.mark.parametrize(("seconds", "scenes"), [(25, 1), (119, 1), (121, 2), (5900, 2)])
def test_overflights_without_names_are_told_apart_by_time(seconds: int, scenes: int) -> None:
    first = datetime(2021, 6, 1, 10, 20, tzinfo=UTC)
    times = [f"{first + timedelta(seconds=later):%Y-%m-%dT%H:%M:%SZ}" for later in (0, seconds)]
    candidates, _ = assemble(to_found("S2-a", 0, 0.5, time=times[0]), to_found("S2-b", 0.5, 1, time=times[1]), min_overlap=0.5)
    assert len(candidates) == scenes


def test_both_halves_of_a_split_datastrip_stay_even_with_the_footprint_of_the_whole_tile() -> None:
    strips = [STRIP.format("20210601T150000", moment) for moment in ("102021", "102033")]
    product = PRODUCT.format("32TNR")
    halves = [to_found(f"S2-half-{number}", tile="32TNR", datastrip=strip, product=product) for number, strip in enumerate(strips)]
    kept, dropped = drop_duplicates(halves, ("c1",))
    [(scene, _)], refused = assemble(*kept)
    assert [item.item for item in scene.items] == ["S2-half-0", "S2-half-1"]
    assert not dropped
    assert not refused


def test_items_that_add_nothing_are_refused_as_such() -> None:
    facts = {"product": PRODUCT.format("32TNR")}
    candidates, refused = assemble(
        to_found("S2-whole", 0, 1, tile="32TNR", cover=3, **facts),
        to_found("S2-part", 0.2, 0.4, tile="32TPR", cover=50, **facts),
        to_found("S2-outside", 2, 3, tile="32TQR", **facts, time="2021-06-01T10:20:21Z")._replace(part=shapely.Polygon()),
    )
    assert [one.scene.id for one in candidates] == ["S2-whole"]
    assert {one.items: (one.role, one.reason, one.cause) for one in refused} == {
        ("S2-part",): ("cloudy", "adds 0.0% of the area to S2-whole", Cause.OVERLAP),
        ("S2-outside",): ("cloudy", "adds 0.0% of the area to S2-whole", Cause.OVERLAP),
    }


def test_what_covers_too_little_together_is_refused_with_all_its_items() -> None:
    candidates, refused = assemble(to_found(f"{S1}_rtc", 0, 0.2), to_found(f"{SLICE.format('2613', '2638')}_rtc", 0.2, 0.5))
    assert not candidates
    [one] = refused
    assert one.reason == "covers 50.0% of the area together, needed 60.0%"
    assert len(one.items) == 2
    assert [line.item for line in to_refusals(refused)] == sorted(one.items)
    (outside,) = assemble(to_found("S2-out")._replace(part=shapely.Polygon()))[1]
    assert (outside.reason, outside.cause) == ("covers none of the area", Cause.ELSEWHERE)


def test_the_catalogues_cloud_cover_of_a_scene_is_weighted_by_what_each_item_adds() -> None:
    tiles = [to_found("S2-a", 0, 0.75, tile="a", cover=10), to_found("S2-b", 0.5, 1, tile="b", cover=50)]
    [(scene, _)], _ = assemble(*tiles)
    assert scene.cloud_cover_pct == pytest.approx(0.75 * 10 + 0.25 * 50, abs=0.1)
    assert scene.cover_source == "catalogue"
    [(silent, _)], _ = assemble(tiles[0], to_found("S2-b", 0.5, 1, tile="b"))
    assert silent.cloud_cover_pct is None
    assert silent.cover_source is None
    [(single, _)], _ = assemble(to_found("S2-a", tile="a", cover=12.3456789))
    assert single.cloud_cover_pct == 12.3456789


def test_ids_are_safe_for_files_and_unique() -> None:
    names = [("a", "c1"), ("a", "c2"), ("b/ü:c", "c1"), ("d", "c1"), ("d", "c1"), ("_e", "c1")]
    scenes = [assemble(to_found(name, collection=collection))[0][0] for name, collection in names]
    assert [one.scene.id for one in give_unique_ids(scenes)] == ["a.c1", "a.c2", "b-c", "d.c1", "d.c1.2", "e"]


def test_the_role_follows_from_sensor_and_cover() -> None:
    assert [
        role_of(*facts, 5) for facts in (("sentinel1-grd", None), ("sentinel2-l2a", 50), ("sentinel2-l2a", 1), ("sentinel2-l1c", None))
    ] == [
        "sar",
        "cloudy",
        "clear",
        "cloudy",
    ]


SPANS = st.lists(st.tuples(st.floats(0, 0.9), st.floats(0.05, 1), st.sampled_from(("t1", "t2")), st.booleans()), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(spans=SPANS, rnd=st.randoms())
def test_every_item_is_in_one_scene_or_refused_whatever_the_order(spans: list[tuple[float, float, str, bool]], rnd: Any) -> None:
    found = [
        to_found(f"S2-{number}", west, min(1, west + width), tile=str(number), datatake=take, crs="EPSG:32633" if other else "EPSG:32632")
        for number, (west, width, take, other) in enumerate(spans)
    ]
    candidates, refused = assemble(*found)
    listed = [item.item for one in candidates for item in one.scene.items] + [item for one in refused for item in one.items]
    assert sorted(listed) == sorted(one.record.item for one in found)
    for one in candidates:
        parts = [other.part for other in found if other.record in one.scene.items]
        assert one.covered.equals(shapely.union_all(parts))
        assert compute_share(one.covered, GROUND) >= 0.6
        crs = [item.crs for item in one.scene.items]
        assert crs == sorted(crs)
    shuffled = list(found)
    rnd.shuffle(shuffled)
    assert assemble(*shuffled) == (candidates, refused)


@pytest.mark.real
def test_the_real_slices_of_one_datatake_are_joined() -> None:
    items = json.loads((find_samples() / "stac/stac_geoparquet/data/sentinel-1-rtc-pc.json").read_text())[1:3]
    first, second = (shapely.from_geojson(json.dumps(item["geometry"])) for item in items)
    border = shapely.union(first, second).centroid  # neighbours of equal length meet in the middle
    west, south, east, north = border.x - 0.3, border.y - 0.3, border.x + 0.3, border.y + 0.3
    ground = to_ground(Area(bbox=(west, south, east, north)), 10)
    found = [Found(to_item_record(item), cut_footprint(item["geometry"], ground)) for item in items]
    [(scene, covered)], refused = assemble_scenes(found, ground, min_overlap=0.9, clear_cover_pct=5)
    assert {item.item for item in scene.items} == {item["id"] for item in items}
    assert compute_share(covered, ground) > 0.99
    assert not refused


def test_a_scene_keeps_the_facts_of_its_first_item() -> None:
    [(scene, _)], _ = assemble(to_found("S2-a", time="2021-06-01T10:20:21Z"))
    assert scene == SceneRecord(id="S2-a", sensor="sentinel2-l2a", time="2021-06-01T10:20:21Z", items=(to_found("S2-a").record,))


MODIS: dict[str, Any] = {"sensor": "modis-09a1", "crs": "", "time": "2021-06-05T23:59:59.500000Z", "platform": "terra"}


def test_tiles_of_one_composite_are_one_scene_and_those_of_another_satellite_are_not() -> None:
    tiles = [
        to_found(f"MOD09A1.A2021153.{tile}.061.1", *share, tile=tile, **MODIS)
        for tile, share in (("h18v04", (0, 0.5)), ("h19v04", (0.5, 1)))
    ]
    aqua = to_found("MYD09A1.A2021153.h18v04.061.1", tile="h18v04", **MODIS | {"platform": "aqua"})
    scenes, refused = assemble(*tiles, aqua)
    assert sorted(len(one.scene.items) for one in scenes) == [1, 2]
    assert refused == []


def test_rows_of_one_path_of_landsat_are_one_scene() -> None:
    facts = {"sensor": "landsat-oli", "platform": "landsat-9"}
    rows = [
        to_found("LC09_L2SP_193028_20210603_02_T1", 0, 0.6, tile="193028", time="2021-06-03T10:07:20Z", **facts),
        to_found("LC09_L2SP_193029_20210603_02_T1", 0.5, 1, tile="193029", time="2021-06-03T10:07:44Z", **facts),
    ]
    [scene], _ = assemble(*rows)
    assert len(scene.scene.items) == 2


def test_of_two_processings_of_a_composite_the_later_one_stays() -> None:
    old, new = (
        to_found(f"MOD09A1.A2021153.h18v04.061.{made}", tile="h18v04", generated=made, **MODIS) for made in ("2021-06-19", "2022-01-01")
    )
    kept, dropped = drop_duplicates([new, old], ["c1"])
    assert [one.record.item for one in kept] == [new.record.item]
    assert [one.record.item for one, _ in dropped] == [old.record.item]
