"""The rules by which clear scenes become groups, on hand-made records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import shapely
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from sereno.pipeline.acquisitions import Candidate, Cause
from sereno.pipeline.config import Area, QuerySettings
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.grouping import (
    check_common_bands,
    find_grouper,
    find_ratio,
    group_products,
    group_series,
    group_two_sensors,
    to_fine_ground,
)
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord

BOUNDS = (500_000, 5_000_000, 510_000, 5_010_000)
AREA = Area(bounds_m=BOUNDS, epsg=32632)
DAY_ZERO = datetime(2021, 6, 1, 10, tzinfo=UTC)


def to_settings(**changes: Any) -> QuerySettings:
    return QuerySettings.model_validate({"areas": {"a": AREA}, **changes})


def to_candidate(
    name: str, day: float = 0, cover: float | None = 1, sensor: str = "sentinel2-l2a", assets: tuple[str, ...] = ()
) -> Candidate:
    moment = (DAY_ZERO + timedelta(days=day)).isoformat().replace("+00:00", "Z")
    facts = {"collection": "c", "sensor": sensor, "time": moment, "crs": "", "bbox": (9, 45, 10, 46)}
    item = ItemRecord.model_validate({"item": name.upper(), **facts, "assets": {key: AssetRecord(href=key) for key in assets}})
    scene = SceneRecord(id=name, sensor=item.sensor, time=moment, items=(item,), cloud_cover_pct=cover)
    return Candidate(scene, shapely.box(*BOUNDS))


def test_a_clear_product_is_one_group_of_its_fine_and_its_coarse_bands() -> None:
    found = group_products([to_candidate("s")], to_settings())
    [group] = found.groups
    assert (group.id, group.scenes, group.roles, group.scene_ids) == (
        "20210601",
        {"pan": "s-pan", "ms": "s-ms"},
        ("ms", "pan"),
        ("s-ms", "s-pan"),
    )
    pan, ms = found.scenes["s-pan"], found.scenes["s-ms"]
    assert (pan.bands, pan.zoom) == (("B02", "B03", "B04", "B08"), 1)
    assert (ms.bands, ms.zoom) == (("B05", "B06", "B07", "B8A", "B11", "B12"), 2)
    assert pan.items == ms.items


def test_gaofen_is_sharpened_by_its_panchromatic_image_where_it_has_one() -> None:
    settings = to_settings(source="gaofen", resolution_m=2)
    found = group_products(
        [to_candidate("g", sensor="gaofen-pms", assets=("PAN", "image-1")), to_candidate("bare", sensor="gaofen-pms", assets=("image-1",))],
        settings,
    )
    assert [group.scenes["pan"] for group in found.groups] == ["g-pan"]
    assert (found.scenes["g-pan"].bands, found.scenes["g-ms"].bands, found.scenes["g-ms"].zoom) == (("PAN",), ("B1", "B2", "B3", "B4"), 4)
    [refused] = found.refused
    assert (refused.items, refused.cause) == (("BARE",), Cause.ITEM)
    assert "no panchromatic image" in refused.reason


def test_products_of_one_day_have_names_of_their_own_and_all_else_its_reason() -> None:
    candidates = [
        to_candidate("a"),
        to_candidate("b", 0.2),
        to_candidate("cloudy", 1, 50),
        to_candidate("dark", 2, None),
        to_candidate("wide", 3, sensor="gaofen-wfv"),
    ]
    found = group_products(candidates, to_settings())
    assert [group.id for group in found.groups] == ["20210601", "20210601-2"]
    reasons = {entry.items[0]: entry.reason for entry in found.refused}
    assert reasons["CLOUDY"] == "cloud cover 50.0 %, needed at most 5 %"
    assert "nothing tells its cloud cover" in reasons["DARK"]
    assert "gaofen-wfv has no finer bands" in reasons["WIDE"]
    assert len(reasons) == 3


def test_the_clearest_stay_where_their_number_is_limited() -> None:
    found = group_products([to_candidate("a", 0, 3), to_candidate("b", 5, 0), to_candidate("c", 10, 2)], to_settings(max_pairs=2))
    assert [group.scenes["ms"] for group in found.groups] == ["b-ms", "c-ms"]
    assert [entry.cause for entry in found.refused] == [Cause.MAX_PAIRS]


def test_bands_may_be_chosen_but_both_kinds_are_needed() -> None:
    found = group_products([to_candidate("s")], to_settings(bands=("B04", "B11")))
    assert (found.scenes["s-pan"].bands, found.scenes["s-ms"].bands) == (("B04",), ("B11",))
    [refused] = group_products([to_candidate("s")], to_settings(bands=("B04",))).refused
    assert "leaves no coarse band" in refused.reason


@given(st.permutations(range(6)))
@limits(max_examples=20, deadline=None)
def test_the_order_of_candidates_changes_nothing(order: list[int]) -> None:
    candidates = [to_candidate(f"s{n}", 0.1 * n, float(n)) for n in range(6)]
    assert (
        group_products([candidates[n] for n in order], to_settings(max_pairs=3))[:2]
        == group_products(candidates, to_settings(max_pairs=3))[:2]
    )


@pytest.mark.parametrize(
    ("task", "changes", "ratio"),
    [
        ("pansharpening", {}, 2),
        ("pansharpening", {"source": "gaofen", "resolution_m": 2}, 4),
        ("pansharpening", {"coarse_m": 60}, 6),
        ("spatiotemporal-fusion", {}, 16),
        ("spatiotemporal-fusion", {"coarse_m": 80}, 8),
        ("snapshot-reconstruction", {}, 1),
    ],
)
def test_the_ratio_is_that_of_the_products_or_of_the_settings(task: Any, changes: dict[str, Any], ratio: int) -> None:
    assert find_ratio(task, to_settings(**changes)) == ratio


@pytest.mark.parametrize(("changes", "seen"), [({"source": "gaofen", "resolution_m": 3}, "2.667"), ({"resolution_m": 20}, "are 1 pixels")])
def test_a_ratio_that_is_not_whole_is_one_line(changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(ConfigError, match=r"resolution_m .* to a whole part of") as caught:
        find_ratio("pansharpening", to_settings(**changes))
    assert seen in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fine_grid_has_the_edges_of_coarse_pixels() -> None:
    box = to_fine_ground(AREA, to_settings(), 2).geobox
    assert tuple(box.shape) == (1000, 1000)
    assert (box.transform.a, box.transform.c, box.transform.f) == (10, 500_000, 5_010_000)
    grown = to_fine_ground(Area(bbox=(9.0, 45.0, 9.01, 45.01)), to_settings(), 2).geobox
    assert grown.transform.c % 20 == grown.transform.f % 20 == grown.shape.x % 2 == grown.shape.y % 2 == 0
    with pytest.raises(ConfigError, match="left must be multiples of 20 m"):
        to_fine_ground(Area(bounds_m=(500_010, 5_000_000, 510_010, 5_010_000), epsg=32632), to_settings(), 2)


def test_a_task_without_a_search_is_named() -> None:
    with pytest.raises(ConfigError, match="searched for: cloud-removal, pansharpening"):
        find_grouper("snapshot-reconstruction")


def test_three_clear_dates_that_follow_each_other_are_a_series() -> None:
    days = {"a": 0, "b": 10, "c": 20.5, "d": 30, "cloudy": 15}
    found = group_series([to_candidate(name, day, 60 if name == "cloudy" else 1) for name, day in days.items()], to_settings())
    assert [group.id for group in found.groups] == ["20210611", "20210621"]
    first = found.groups[0]
    assert first.scenes == {
        "fine-1": "a",
        "fine-2": "b",
        "fine-3": "c",
        "coarse-1": "a-coarse",
        "coarse-2": "b-coarse",
        "coarse-3": "c-coarse",
    }
    assert first.gaps_days == {"fine-1": 0, "fine-2": 10, "fine-3": 20.5}
    assert (found.scenes["b"].zoom, found.scenes["b"].averaged) == (1, False)
    assert (found.scenes["b-coarse"].zoom, found.scenes["b-coarse"].averaged) == (16, True)
    assert len(found.scenes) == 8
    assert [entry.items for entry in found.refused] == [("CLOUDY",)]


def test_dates_too_far_apart_or_too_few_are_refused_with_the_limit() -> None:
    found = group_series([to_candidate("a"), to_candidate("b", 10), to_candidate("c", 40)], to_settings())
    assert (found.groups, found.scenes) == ((), {})
    assert {entry.cause for entry in found.refused} == {Cause.CLEAR_GAP}
    assert "each at most 20 days after the one before" in found.refused[0].reason


def test_of_many_series_the_shortest_stay_in_order_of_time() -> None:
    days = {"a": 0, "b": 15, "c": 20, "d": 25, "e": 40}
    found = group_series([to_candidate(name, day) for name, day in days.items()], to_settings(max_pairs=2))
    assert [(group.id, group.scenes["fine-1"]) for group in found.groups] == [("20210616", "a"), ("20210621", "b")]  # equal: earlier
    assert [entry.items for entry in found.refused] == [("E",)]


def to_modis(name: str, day: float, **facts: Any) -> Candidate:
    """A coarse candidate; with `period` (days from, to) a composite."""
    cover, period = facts.get("cover", 0.5), facts.get("period")
    one = to_candidate(name, day, cover, facts.get("sensor", "modis-09a1"))
    if period:
        ends = "/".join((DAY_ZERO + timedelta(days=end)).isoformat() for end in period)
        item = one.scene.items[0].model_copy(update={"properties": {"period": ends}})
        one = one._replace(scene=one.scene.model_copy(update={"items": (item,)}))
    return one._replace(covered=facts.get("covered", one.covered))


def to_two(**changes: Any) -> QuerySettings:
    return to_settings(**{"coarse_collections": ["modis-09A1-061"], "resolution_m": 30, **changes})


def reasons_of(found: Any) -> dict[str, str]:
    return {entry.items[0]: entry.reason for entry in found.refused}


FINE = [to_candidate(name, day, sensor="landsat-oli") for name, day in (("a", 0), ("b", 10), ("c", 20))]


def test_three_fine_dates_take_the_nearest_coarse_image_each() -> None:
    coarse = [to_modis(f"m{number}", day) for number, day in enumerate((0.4, 0.9, 10.2, 20.9, 30))]
    found = group_two_sensors(FINE, coarse, to_two())
    [group] = found.groups
    assert group.scenes == {"fine-1": "a", "fine-2": "b", "fine-3": "c", "coarse-1": "m0", "coarse-2": "m2", "coarse-3": "m3"}
    assert group.gaps_days == {"fine-1": 0, "fine-2": 10, "fine-3": 20, "coarse-1": 0.4, "coarse-2": 10.2, "coarse-3": 20.9}
    m2, b = found.scenes["m2"], found.scenes["b"]
    assert (m2.zoom, m2.averaged, m2.clear_share, b.zoom, b.averaged, b.clear_share) == (16, True, 0.75, 1, False, None)
    assert reasons_of(found) == {"M1": "no series needs it", "M4": "no series needs it"}


def test_a_date_without_a_coarse_image_says_how_far_the_nearest_is() -> None:
    coarse = [to_modis("m0", 0.2), to_modis("m1", 12.5), to_modis("m2", 20)]
    found = group_two_sensors(FINE, coarse, to_two())
    assert found.groups == ()
    assert reasons_of(found)["B"] == "needs a clear coarse image within 1 days: the nearest, M1, is 2.50 days away"
    assert {entry.cause for entry in found.refused if entry.items == ("B",)} == {Cause.COARSE_GAP}
    assert len(group_two_sensors(FINE, coarse, to_two(max_gap_coarse_days=2.5)).groups) == 1


def test_no_coarse_image_at_all_is_said_of_every_date() -> None:
    found = group_two_sensors(FINE, [], to_two())
    assert reasons_of(found) == dict.fromkeys("ABC", "needs a clear coarse image within 1 days: there is none")


def test_a_composite_is_near_all_days_of_its_period_and_the_nearest_middle_wins() -> None:
    coarse = [to_modis("m0", -3.5, period=(-7.5, 0.5)), to_modis("m1", 4.5, period=(0.5, 8.5))]
    coarse += [
        to_modis("m2", 12.5, period=(8.5, 16.5)),
        to_modis("n2", 10.5, period=(6.5, 14.5)),
        to_modis("m3", 20.5, period=(16.5, 24.5)),
    ]
    [group] = group_two_sensors(FINE, coarse, to_two(max_gap_coarse_days=0)).groups
    assert [group.scenes[f"coarse-{n}"] for n in (1, 2, 3)] == ["m0", "n2", "m3"]


def test_a_coarse_image_belongs_to_one_fine_date_alone() -> None:
    fine = [*FINE, to_candidate("d", 8, sensor="landsat-oli")]
    coarse = [to_modis("m0", 0), to_modis("m1", 9.5, period=(5.5, 13.5)), to_modis("m2", 20)]
    found = group_two_sensors(fine, coarse, to_two())
    assert [group.scenes["fine-2"] for group in found.groups] == ["b"]
    assert reasons_of(found)["D"] == "its coarse image M1 is nearer to the fine one of 2021-06-11"


def test_a_cloudy_coarse_image_is_refused_and_one_of_which_nothing_is_known_is_not() -> None:
    coarse = [to_modis("m0", 0, cover=None), to_modis("cloudy", 10.1, cover=40), to_modis("m1", 10.3), to_modis("m2", 20)]
    found = group_two_sensors(FINE, coarse, to_two())
    assert found.groups[0].scenes["coarse-2"] == "m1"
    assert reasons_of(found)["CLOUDY"] == "cloud cover 40.0 %, needed at most 5 %"


def test_a_coarse_image_that_shares_too_little_ground_gives_way_to_the_next() -> None:
    left, _, right, top = BOUNDS
    half = shapely.box(left, top - 5000, right, top)
    coarse = [to_modis("m0", 0), to_modis("half", 10, covered=half), to_modis("m1", 10.5), to_modis("m2", 20)]
    assert group_two_sensors(FINE, coarse, to_two()).groups[0].scenes["coarse-2"] == "m1"
    found = group_two_sensors(FINE, coarse[:2] + coarse[3:], to_two())
    assert "the nearest, HALF, shares 50.0% of the fine one's ground with it" in reasons_of(found)["B"]


def test_all_coarse_images_of_a_search_are_of_one_product() -> None:
    daily = [to_modis(f"d{day}", day, sensor="modis-43a4") for day in (0, 10, 20)]
    others = [to_modis("m0", 0.1), to_modis("m1", 10.1)]
    [group] = group_two_sensors(FINE, [*others, *daily], to_two()).groups
    assert [group.scenes[f"coarse-{n}"] for n in (1, 2, 3)] == ["d0", "d10", "d20"]


@given(st.permutations(range(4)), st.permutations(range(5)))
@limits(max_examples=20, deadline=None)
def test_the_order_of_fine_and_coarse_candidates_changes_nothing(first: list[int], second: list[int]) -> None:
    fine = [*FINE, to_candidate("d", 30, sensor="landsat-oli")]
    coarse = [to_modis(f"m{n}", day) for n, day in enumerate((0.1, 10, 10, 20.2, 30))]
    expected = group_two_sensors(fine, coarse, to_two())
    found = group_two_sensors([fine[n] for n in first], [coarse[n] for n in second], to_two())
    assert (found.groups, found.scenes, sorted(map(str, found.refused))) == (
        expected.groups,
        expected.scenes,
        sorted(map(str, expected.refused)),
    )


@pytest.mark.parametrize(("resolution_m", "ratio"), [(30, 16), (10, 48), (60, 8)])
def test_modis_decides_the_coarse_pixel(resolution_m: float, ratio: int) -> None:
    assert find_ratio("spatiotemporal-fusion", to_two(resolution_m=resolution_m)) == ratio
    assert find_ratio("spatiotemporal-fusion", to_two(coarse_collections=["landsat-c2-l2"])) == 16


def test_a_coarse_pixel_that_is_not_whole_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"coarse pixels of 480 m are 19.2 pixels of the grid .* set pipeline.query.resolution_m .* or coarse_m"
    ):
        find_ratio("spatiotemporal-fusion", to_two(resolution_m=25))


def test_the_grid_of_landsat_begins_half_a_pixel_off() -> None:
    settings = to_two(origin_m=15)
    grown = to_fine_ground(Area(bbox=(9.0, 45.0, 9.1, 45.1)), settings, 16).geobox
    assert grown.transform.c % 480 == grown.transform.f % 480 == 15
    stated = to_fine_ground(Area(bounds_m=(499_215, 5_040_015, 508_815, 5_049_615), epsg=32632), settings, 16).geobox
    assert (stated.transform.c, stated.transform.f, tuple(stated.shape)) == (499_215, 5_049_615, (320, 320))
    with pytest.raises(ConfigError, match="left and top must be multiples of 480 m plus origin_m 15"):
        to_fine_ground(Area(bounds_m=(499_200, 5_040_000, 508_800, 5_049_600), epsg=32632), settings, 16)


def test_sensors_without_a_common_band_are_one_line() -> None:
    check_common_bands(["landsat-oli"], ["modis-09a1"], to_two(bands=("B04",)))
    with pytest.raises(
        ConfigError, match=r"coarse_collections modis-09A1-061: sentinel1-rtc has no band in common with landsat-oli, which has B01"
    ):
        check_common_bands(["landsat-oli"], ["sentinel1-rtc"], to_two())
    with pytest.raises(ConfigError, match=r"bands is empty, .*: B02, B03, B04, B08, B8A, B11, B12$"):
        check_common_bands(["sentinel2-l2a"], ["modis-09a1"], to_two())
