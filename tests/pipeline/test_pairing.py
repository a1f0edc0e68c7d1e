"""The rules by which scenes become pairs, on hand-made records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.pipeline.config import QuerySettings
from sereno.pipeline.pairing import Candidate, Cause, Triplet, choose_triplets, drop_duplicates, role_of, to_pairs
from sereno.pipeline.pairs import SceneRecord

DAY_ZERO = datetime(2021, 6, 1, 10, tzinfo=UTC)
LIMITS = {"cloudy_cover_pct": (10, 90), "clear_cover_pct": 5, "max_gap_clear_days": 12, "max_gap_sar_days": 2}


def to_settings(**changes: Any) -> QuerySettings:
    return QuerySettings.model_validate({"areas": {"a": {"bbox": (9, 45, 10, 46)}}, **LIMITS, **changes})


def to_candidate(name: str, day: float, cover: float | None = None, **facts: Any) -> Candidate:
    """A Sentinel-2 scene if a cover is given, or if the name begins with `S2`; else a Sentinel-1 scene."""
    is_optical = cover is not None or name.startswith("S2")
    record = {
        "id": name,
        "item": facts.pop("item", name),
        "collection": facts.pop("collection", "c1"),
        "sensor": "sentinel2-l2a" if is_optical else "sentinel1-rtc",
        "time": (DAY_ZERO + timedelta(days=day)).isoformat().replace("+00:00", "Z"),
        "crs": "EPSG:32632",
        "bbox": (9, 45, 10, 46),
        "assets": {},
        "cloud_cover_pct": cover,
        "processing_baseline": facts.pop("baseline", None),
        "properties": facts,
    }
    return Candidate(SceneRecord.model_validate(record), 1.0)


def choose(optical: list[Candidate], sar: list[Candidate], **changes: Any) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Ids of the triplets (cloudy, clear, SAR), and the reason of each refused item."""
    triplets, refused = choose_triplets(optical, sar, to_settings(**changes))
    chosen = [(t.cloudy.scene.id, t.clear.scene.id, t.sar.scene.id) for t in triplets]
    return chosen, {entry.refusal.item: f"{entry.refusal.role}: {entry.refusal.reason}" for entry in refused}


CLOUDY, CLEAR, SAR = to_candidate("cloudy", 10, 50), to_candidate("clear", 5, 1), to_candidate("sar", 9)


def test_a_cloudy_scene_takes_the_nearest_clear_and_the_nearest_sar_scene() -> None:
    others = [to_candidate("later", 14, 2), to_candidate("early", 0, 0)], [to_candidate("sar-later", 11.5), SAR]
    chosen, refused = choose([CLOUDY, CLEAR, *others[0]], others[1])
    assert chosen == [("cloudy", "later", "sar")]
    assert refused == {
        "clear": "clear: no pair needs it: each cloudy scene within 12 days has a nearer one or was refused",
        "early": "clear: no pair needs it: each cloudy scene within 12 days has a nearer one or was refused",
        "sar-later": "sar: no pair needs it: each cloudy scene within 2 days has a nearer one or was refused",
    }


def test_of_two_equally_near_scenes_the_earlier_one_is_taken() -> None:
    chosen, _ = choose([CLOUDY, to_candidate("after", 15, 1), CLEAR], [to_candidate("z-before", 9), to_candidate("a-after", 11)])
    assert chosen == [("cloudy", "clear", "z-before")]


@pytest.mark.parametrize(
    ("optical", "sar", "item", "reason"),
    [
        ([CLOUDY], [SAR], "cloudy", "cloudy: needs a clear scene within 12 days: there is none"),
        ([CLOUDY, CLEAR], [], "cloudy", "cloudy: needs a SAR scene within 2 days: there is none"),
        ([to_candidate("far", 18, 50), CLEAR], [SAR], "far", "needs a clear scene within 12 days: the nearest, clear, is 13.00 days away"),
        ([CLOUDY, CLEAR], [to_candidate("sar", 7.5)], "cloudy", "needs a SAR scene within 2 days: the nearest, sar, is 2.50 days away"),
        ([to_candidate("hazy", 10, 7.25), CLEAR], [SAR], "hazy", "cloud cover 7.2 %, needed 10 to 90 % as input or at most 5 % as target"),
        ([to_candidate("closed", 10, 95), CLEAR], [SAR], "closed", "cloud cover 95.0 %"),
        ([to_candidate("S2-silent", 10), CLEAR], [SAR], "S2-silent", "the catalogue states no cloud cover"),
        ([CLEAR], [SAR], "clear", "clear: no pair needs it: there is no cloudy scene"),
        ([CLOUDY, CLEAR], [to_candidate("sar", 2)], "sar", "sar: no pair needs it: the nearest cloudy scene is 8.00 days away, allowed 2"),
    ],
)
def test_what_is_not_used_says_why(optical: list[Candidate], sar: list[Candidate], item: str, reason: str) -> None:
    chosen, refused = choose(optical, sar)
    assert not chosen
    assert reason in refused[item]


def test_gaps_at_the_limit_are_allowed() -> None:
    chosen, _ = choose([to_candidate("c", 0, 10), to_candidate("d", 12, 5)], [to_candidate("s", -2)])
    assert chosen == [("c", "d", "s")]


def test_a_scene_that_is_cloudy_and_clear_is_not_its_own_target() -> None:
    both = to_candidate("both", 10, 4)
    chosen, refused = choose([both], [SAR], cloudy_cover_pct=(0, 90))
    assert not chosen
    assert "there is none" in refused["both"]
    chosen, _ = choose([both, CLEAR], [SAR], cloudy_cover_pct=(0, 90))
    assert chosen == [("both", "clear", "sar")]


def test_max_pairs_keeps_the_smallest_gaps_in_order_of_time() -> None:
    optical = [to_candidate(f"c{day}", day, 50) for day in (0, 10, 20)] + [to_candidate("k0", 6, 0), to_candidate("k1", 21, 0)]
    sar = [to_candidate(f"s{day}", day) for day in (0, 10, 20)]
    chosen, refused = choose(optical, sar, max_pairs=2)
    assert chosen == [("c10", "k0", "s10"), ("c20", "k1", "s20")]
    assert refused["c0"] == "cloudy: rank 3 by time gaps (6.00 days in all), max_pairs 2"
    assert refused["s0"].startswith("sar: no pair needs it")


S1 = "S1A_IW_GRDH_1SDV_20210601T052548_20210601T052613_038335_0475BF"
STRIP = "S2A_OPER_MSI_L2A_DS_2APS_{}_S20210601T{}_N05.00"


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
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_processings_the_newest_stays(older: dict[str, Any], newer: dict[str, Any], words: str, swapped: bool) -> None:
    facts = {"platform": "sentinel-2a", "tile": "32TNR"}
    both = [to_candidate("S2-old", 0, 50, **facts, **older), to_candidate("S2-new", 0, 50, **facts, **newer)]
    kept, dropped = drop_duplicates(both[::-1] if swapped else both, ("c1", "c2"))
    assert [one.scene.id for one in kept] == ["S2-new"]
    assert [(one.scene.id, reason.startswith("duplicate of S2-new, ")) for one, reason in dropped] == [("S2-old", True)]
    assert words in dropped[0][1]


@pytest.mark.parametrize("suffixes", [("_0A1B", "_FFFF"), ("", "_FFFF")])
def test_sentinel1_items_that_differ_in_the_last_four_characters_are_duplicates(suffixes: tuple[str, str]) -> None:
    both = [to_candidate(f"{S1}{suffix}", 0, generated=f"202{number}") for number, suffix in enumerate(suffixes)]
    kept, dropped = drop_duplicates(both, ("c1",))
    assert [one.scene.id for one in kept] == [f"{S1}_FFFF"]
    assert dropped[0][1].startswith(f"duplicate of {S1}_FFFF")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tile": "32TNR"}, {"tile": "32TNS"}),
        ({"platform": "sentinel-2a"}, {"platform": "sentinel-2b"}),
        ({"datastrip": STRIP.format("20210601T150000", "102021")}, {"datastrip": STRIP.format("20210601T150000", "102033")}),
        ({"item": f"{S1}_0A1B"}, {"item": f"{S1[:-1]}0_0A1B"}),
        ({"item": f"{S1}_rtc"}, {"item": f"{S1.replace('052548', '052613')}_rtc"}),
    ],
)
def test_other_tiles_platforms_and_halves_of_a_datatake_are_no_duplicates(one: dict[str, Any], other: dict[str, Any]) -> None:
    kept, dropped = drop_duplicates([to_candidate("S2-a", 0, 50, **one), to_candidate("S2-b", 0, 50, **other)], ("c1",))
    assert len(kept) == 2
    assert not dropped


def test_pairs_of_one_day_get_different_names() -> None:
    triplets = [Triplet(to_candidate(name, day, 50), CLEAR, SAR) for name, day in (("a", 0), ("b", 0.1), ("c", 1))]
    pairs = to_pairs(triplets)
    assert [pair.id for pair in pairs] == ["20210601", "20210601-2", "20210602"]
    assert (pairs[0].clear_gap_days, pairs[0].sar_gap_days) == (5.0, 9.0)


def test_the_role_follows_from_sensor_and_cover() -> None:
    settings_ = to_settings()
    assert [role_of(one, settings_) for one in (SAR, CLOUDY, CLEAR, to_candidate("S2", 0))] == ["sar", "cloudy", "clear", "cloudy"]


COVERS = st.one_of(st.none(), st.floats(0, 100))
SCENES = st.lists(st.tuples(st.floats(0, 40), COVERS), max_size=12)


@settings(max_examples=150, deadline=None)
@given(optical=SCENES, days=st.lists(st.floats(0, 40), max_size=6), most=st.one_of(st.none(), st.integers(1, 3)), rnd=st.randoms())
def test_no_pair_uses_a_scene_outside_its_limits(
    optical: list[tuple[float, float | None]], days: list[float], most: int | None, rnd: Any
) -> None:
    scenes = [to_candidate(f"S2-{number}", day, cover) for number, (day, cover) in enumerate(optical)]
    sar = [to_candidate(f"s{number}", day) for number, day in enumerate(days)]
    given_ = to_settings(max_pairs=most)
    triplets, refused = choose_triplets(scenes, sar, given_)
    for triplet in triplets:
        cloudy, clear, radar = (part.moment for part in triplet)
        assert 10 <= (triplet.cloudy.scene.cloud_cover_pct or -1) <= 90
        assert 0 <= (triplet.clear.scene.cloud_cover_pct or 0) <= 5
        assert abs(clear - cloudy) <= timedelta(days=12)
        assert abs(radar - cloudy) <= timedelta(days=2)
        assert not [s for s in sar if abs(s.moment - cloudy) < abs(radar - cloudy)]
    assert len(triplets) <= (most or len(triplets))
    used = {part.scene.id for triplet in triplets for part in triplet}
    listed = [entry.refusal.item for entry in refused]
    # Every candidate is used or listed once, never both, since no scene is input and target with these limits.
    assert sorted([*used, *listed]) == sorted(one.scene.id for one in (*scenes, *sar))
    assert all(entry.cause in Cause for entry in refused)
    rnd.shuffle(scenes)
    rnd.shuffle(sar)
    again, refused_again = choose_triplets(scenes, sar, given_)
    assert again == triplets
    assert sorted(map(str, refused_again)) == sorted(map(str, refused))
