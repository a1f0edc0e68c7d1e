"""The rules by which scenes become pairs, on hand-made records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.pipeline.acquisitions import Candidate, Cause
from sereno.pipeline.areas import to_ground
from sereno.pipeline.config import Area, QuerySettings
from sereno.pipeline.pairing import Triplet, choose_triplets, find_fault, find_lacking_bands, select_hopeful, select_polarisations, to_pairs
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord

DAY_ZERO = datetime(2021, 6, 1, 10, tzinfo=UTC)
GROUND = to_ground(Area(bounds_m=(500_000, 5_000_000, 510_000, 5_010_000), epsg=32632), 10)
LIMITS = {"cloudy_cover_pct": (10, 90), "clear_cover_pct": 5, "max_gap_clear_days": 12, "max_gap_sar_days": 2}


def to_settings(**changes: Any) -> QuerySettings:
    return QuerySettings.model_validate({"areas": {"a": {"bbox": (9, 45, 10, 46)}}, **LIMITS, **changes})


def to_item(name: str, **facts: Any) -> ItemRecord:
    """A Sentinel-1 item with both polarisations, unless the facts say otherwise; those that are no field become properties."""
    known = {"collection": "c1", "sensor": "sentinel1-rtc", "time": "2021-06-01T10:00:00Z", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46)}
    known["assets"] = {band: AssetRecord(href=band) for band in ("VV", "VH")}
    fields = {key: facts.pop(key) for key in list(facts) if key in ItemRecord.model_fields}
    return ItemRecord.model_validate({"item": name, **known, **fields, "properties": facts})


def to_candidate(name: str, day: float, cover: float | None = None, **facts: Any) -> Candidate:
    """A Sentinel-2 scene if a cover is given, or if the name begins with `S2`; else a Sentinel-1 scene."""
    is_optical = cover is not None or name.startswith("S2")
    moment = (DAY_ZERO + timedelta(days=day)).isoformat().replace("+00:00", "Z")
    sensor = facts.pop("sensor", "sentinel2-l2a" if is_optical else "sentinel1-rtc")
    source, part = facts.pop("source", None if cover is None else "catalogue"), facts.pop("part", (0, 1))
    item = to_item(name, sensor=sensor, time=moment, cloud_cover_pct=cover)
    scene = SceneRecord(id=name, sensor=sensor, time=moment, items=(item,), cloud_cover_pct=cover, cover_source=source)
    return Candidate(scene, to_part(*part))


def to_part(west: float, east: float) -> shapely.Polygon:
    """The strip of the ground between two shares of its width."""
    return shapely.box(500_000 + west * 10_000, 5_000_000, 500_000 + east * 10_000, 5_010_000)


def choose(optical: list[Candidate], sar: list[Candidate], **changes: Any) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Ids of the triplets (cloudy, clear, SAR), and the reason of each refused item."""
    triplets, refused = choose_triplets(optical, sar, ground=GROUND, settings=to_settings(**changes))
    chosen = [(t.cloudy.scene.id, t.clear.scene.id, t.sar.scene.id) for t in triplets]
    return chosen, {item: f"{entry.role}: {entry.reason}" for entry in refused for item in entry.items}


CLOUDY, CLEAR, SAR = to_candidate("cloudy", 10, 50), to_candidate("clear", 5, 1), to_candidate("sar", 9)


def test_a_cloudy_scene_takes_the_nearest_clear_and_the_nearest_sar_scene() -> None:
    others = [to_candidate("later", 14, 2), to_candidate("early", 0, 0)], [to_candidate("sar-later", 11.5), SAR]
    chosen, refused = choose([CLOUDY, CLEAR, *others[0]], others[1])
    assert chosen == [("cloudy", "later", "sar")]
    assert refused == {
        "clear": "clear: no pair needs it: each cloudy scene within 12 days took another one or was refused",
        "early": "clear: no pair needs it: each cloudy scene within 12 days took another one or was refused",
        "sar-later": "sar: no pair needs it: each cloudy scene within 2 days took another one or was refused",
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
        (
            [to_candidate("hazy", 10, 7.25), CLEAR],
            [SAR],
            "hazy",
            "cloud cover 7.2 % by the catalogue, needed 10 to 90 % as input or at most 5 % as target",
        ),
        ([to_candidate("closed", 10, 95), CLEAR], [SAR], "closed", "cloud cover 95.0 %"),
        ([to_candidate("S2-silent", 10), CLEAR], [SAR], "S2-silent", "nothing tells its cloud cover"),
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


def test_three_scenes_that_share_too_little_ground_are_no_pair() -> None:
    """Each covers 60 %, every two of them share 20 % or more, but all three share 20 % only."""
    optical = [to_candidate("cloudy", 10, 50, part=(0, 0.6)), to_candidate("clear", 5, 1, part=(0.2, 0.8))]
    sar = [to_candidate("sar", 9, part=(0.4, 1))]
    chosen, refused = choose(optical, sar)
    assert not chosen
    assert refused["cloudy"].startswith(
        "cloudy: shares 20.0% of the area with the clear scene clear and the SAR scene sar, needed 60.0% of the three"
    )
    assert refused["clear"].startswith("clear: no pair needs it: each cloudy scene within 12 days took another one or was refused")
    assert choose(optical, sar, min_overlap=0.2)[0] == [("cloudy", "clear", "sar")]


def test_the_nearest_partners_that_share_enough_ground_are_taken() -> None:
    cloudy = to_candidate("cloudy", 10, 50, part=(0, 0.7))
    near, far = to_candidate("near", 11, 1, part=(0.3, 1)), to_candidate("far", 5, 1, part=(0, 0.65))
    soon, late = to_candidate("soon", 10.5, part=(0.3, 1)), to_candidate("late", 11.5)
    assert choose([cloudy, near, far], [soon, late])[0] == [("cloudy", "far", "late")]
    assert choose([cloudy, near, far], [soon, late], min_overlap=0.4)[0] == [("cloudy", "near", "soon")]
    assert choose([cloudy, near, far], [soon, late], min_overlap=0.65)[0] == [("cloudy", "far", "late")]
    assert choose([cloudy, near, far], [soon])[1]["cloudy"].startswith("cloudy: shares 40.0% of the area with the clear scene near and")


def test_max_pairs_keeps_the_smallest_gaps_in_order_of_time() -> None:
    optical = [to_candidate(f"c{day}", day, 50) for day in (0, 10, 20)] + [to_candidate("k0", 6, 0), to_candidate("k1", 21, 0)]
    sar = [to_candidate(f"s{day}", day) for day in (0, 10, 20)]
    chosen, refused = choose(optical, sar, max_pairs=2)
    assert chosen == [("c10", "k0", "s10"), ("c20", "k1", "s20")]
    assert refused["c0"] == "cloudy: rank 3 by time gaps (6.00 days in all), max_pairs 2"
    assert refused["s0"].startswith("sar: no pair needs it")


def test_a_reason_says_where_the_cloud_cover_is_from() -> None:
    _, refused = choose([to_candidate("hazy", 10, 7.25, source="scl"), CLEAR], [SAR])
    assert "cloud cover 7.2 % of the area by SCL, needed" in refused["hazy"]


def test_input_and_target_are_of_one_product_level() -> None:
    raw = to_candidate("raw", 11, 1, sensor="sentinel2-l1c")
    chosen, refused = choose([CLOUDY, raw], [SAR])
    assert not chosen
    assert "needs a clear scene within 12 days: there is none" in refused["cloudy"]
    chosen, _ = choose([CLOUDY, CLEAR, raw], [SAR])
    assert chosen == [("cloudy", "clear", "sar")]


@pytest.mark.parametrize(
    ("facts", "changes", "reason"),
    [
        ({}, {"exclude": ("s1",)}, "named in pipeline.query.exclude"),
        ({"assets": {"HH": AssetRecord(href="hh")}}, {}, "has no VV and no VH, needed VV, VH; it has HH"),
        (
            {"assets": {name: AssetRecord(href=name) for name in ("VV", "annotation-VV", "noise-VV")}},
            {},
            "has no VH, needed VV, VH; it has VV",
        ),
        ({"assets": {}}, {}, "it has none"),
        ({"orbit_state": "ascending"}, {"orbit_state": "descending"}, "orbit state ascending, needed descending"),
        ({}, {"orbit_state": "descending"}, "orbit state not stated, needed descending"),
        ({"relative_orbit": "66"}, {"relative_orbits": (6, 44)}, "relative orbit 66, needed 6, 44"),
        ({}, {"relative_orbits": (66,)}, "relative orbit not stated, needed 66"),
    ],
)
def test_an_item_that_lacks_what_is_asked_for_is_refused_with_the_reason(
    facts: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    fault = find_fault(to_item("s1", **facts), to_settings(**changes))
    assert fault is not None
    assert fault.reason.endswith(reason)
    assert (fault.items, fault.role) == (("s1",), "sar")
    assert fault.status == ("missing" if fault.cause is Cause.POLARISATION else "refused")


@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        ({}, {}),
        ({"orbit_state": "DESCENDING", "relative_orbit": "66"}, {"orbit_state": "descending", "relative_orbits": (6, 66)}),
        ({"assets": {"HH": AssetRecord(href="h"), "HV": AssetRecord(href="h")}}, {"polarisations": ("HH",)}),
        ({"sensor": "sentinel2-l2a", "assets": {}}, {"orbit_state": "descending", "relative_orbits": (6,)}),
    ],
)
def test_an_item_that_has_what_is_asked_for_passes(facts: dict[str, Any], changes: dict[str, Any]) -> None:
    assert find_fault(to_item("s1", **facts), to_settings(**changes)) is None


DUAL = ("VV", "VH", *(f"{kind}-{name}" for kind in ("annotation", "calibration", "noise") for name in ("VV", "VH")))


@pytest.mark.parametrize("wanted", [("VV",), ("VH", "VV"), ("VV", "VV")])
def test_a_sar_item_keeps_the_wanted_polarisations_and_names_them_in_their_order(wanted: tuple[str, ...]) -> None:
    item = to_item("s1", assets={name: AssetRecord(href=name) for name in (*DUAL, "manifest")}, polarisations="VV VH", mode="IW")
    kept = select_polarisations(item, to_settings(polarisations=wanted))
    assert set(kept.assets) == {"manifest", *(name for name in DUAL if name.rpartition("-")[2] in wanted)}
    assert kept.properties == {"polarisations": " ".join(dict.fromkeys(wanted)), "mode": "IW"}


def test_items_of_one_and_of_two_polarisations_agree_where_one_is_wanted() -> None:
    dual, single = (to_item("s1", assets={name: AssetRecord(href=name) for name in names}) for names in (("VV", "VH"), ("VV",)))
    assert select_polarisations(dual, to_settings(polarisations=("VV",))) == select_polarisations(
        single, to_settings(polarisations=("VV",))
    )


def test_an_optical_item_keeps_all_its_assets() -> None:
    item = to_item("S2", sensor="sentinel2-l2a", assets={name: AssetRecord(href=name) for name in ("B02", "SCL", "MTD")})
    assert select_polarisations(item, to_settings(polarisations=("VV",))) == item


def test_an_item_that_lacks_a_band_which_others_have_is_refused() -> None:
    item = to_item("S2", sensor="sentinel2-l2a", assets={"B02": AssetRecord(href="b")})
    fault = find_lacking_bands(item, frozenset({"B02", "B03", "B04", "SCL"}), to_settings())
    assert fault is not None
    assert fault.reason.startswith(
        "has no B03, B04, which other items have; if it is not needed, name those that are in pipeline.query.bands"
    )
    assert fault.status == "missing"
    assert find_lacking_bands(item, frozenset({"B02", "SCL"}), to_settings()) is None
    assert find_lacking_bands(to_item("s1"), frozenset({"B02"}), to_settings()) is None


def test_an_item_is_not_refused_for_want_of_a_band_that_nobody_needs() -> None:
    item = to_item("S2", sensor="sentinel2-l2a", assets={name: AssetRecord(href=name) for name in ("B02", "B03")})
    held = frozenset({"B02", "B03", "B09"})
    assert find_lacking_bands(item, held, to_settings(bands=("B03",))) is None
    fault = find_lacking_bands(item, held, to_settings(bands=("B03", "B09")))
    assert fault is not None
    assert fault.reason == "has no B09, needed by pipeline.query.bands"


def test_only_scenes_that_can_still_take_part_are_measured() -> None:
    optical = [
        to_candidate("S2-input", 10),
        to_candidate("S2-target", 20),  # no SAR of its own, but an input within 12 days
        to_candidate("S2-late", 30),  # near the target alone, which can be no input
        to_candidate("S2-raw", 11, sensor="sentinel2-l1c"),  # nothing of its own level
        to_candidate("S2-lonely", 60),
    ]
    sar = [to_candidate("s", 9), to_candidate("far", 60)]
    hopeful = select_hopeful(optical, sar, to_settings())
    assert [one.scene.id for one in hopeful] == ["S2-input", "S2-target"]
    assert not select_hopeful(optical, [], to_settings())


def test_pairs_of_one_day_get_different_names() -> None:
    triplets = [Triplet(to_candidate(name, day, 50), CLEAR, SAR) for name, day in (("a", 0), ("b", 0.1), ("c", 1))]
    pairs = to_pairs(triplets)
    assert [pair.id for pair in pairs] == ["20210601", "20210601-2", "20210602"]
    assert (pairs[0].clear_gap_days, pairs[0].sar_gap_days) == (5.0, 9.0)


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
    triplets, refused = choose_triplets(scenes, sar, ground=GROUND, settings=given_)
    for triplet in triplets:
        cloudy, clear, radar = (part.moment for part in triplet.scenes)
        assert 10 <= (triplet.cloudy.scene.cloud_cover_pct or -1) <= 90
        assert 0 <= (triplet.clear.scene.cloud_cover_pct or 0) <= 5
        assert abs(clear - cloudy) <= timedelta(days=12)
        assert abs(radar - cloudy) <= timedelta(days=2)
        assert not [s for s in sar if abs(s.moment - cloudy) < abs(radar - cloudy)]
    assert len(triplets) <= (most or len(triplets))
    used = {part.scene.id for triplet in triplets for part in triplet.scenes}
    listed = [item for entry in refused for item in entry.items]
    # Every candidate is used or listed once, never both, since no scene is input and target with these limits.
    assert sorted([*used, *listed]) == sorted(one.scene.id for one in (*scenes, *sar))
    assert all(entry.cause in Cause for entry in refused)
    # Whoever is in a pair was worth measuring.
    assert {t.cloudy.scene.id for t in triplets} | {t.clear.scene.id for t in triplets} <= {
        one.scene.id for one in select_hopeful(scenes, sar, given_)
    }
    rnd.shuffle(scenes)
    rnd.shuffle(sar)
    again, refused_again = choose_triplets(scenes, sar, ground=GROUND, settings=given_)
    assert again == triplets
    assert sorted(map(str, refused_again)) == sorted(map(str, refused))


def simulate(optical: list[Candidate], sar: list[Candidate], **changes: Any) -> tuple[list[tuple[str, str, str, int]], dict[str, str]]:
    """Ids of the pairs, their clear scene, SAR scene and sky; and the reason of each refused item."""
    triplets, refused = choose_triplets(optical, sar, ground=GROUND, settings=to_settings(**{"inputs": "simulated", **changes}))
    assert all(pair.cloudy == pair.clear and pair.clear_gap_days == 0 for pair in to_pairs(triplets) if pair.sky)
    chosen = [(pair.id, pair.clear, pair.sar, pair.sky or 0) for pair in to_pairs(triplets)]
    return chosen, {item: f"{entry.role}: {entry.reason}" for entry in refused for item in entry.items}


def test_every_clear_scene_with_sar_becomes_a_pair_for_each_sky() -> None:
    later, far = to_candidate("later", 14, 2), to_candidate("far", 30, 0)
    chosen, refused = simulate([CLOUDY, CLEAR, later, far], [SAR, to_candidate("sar-4", 4), to_candidate("sar-15", 15)], skies=2)
    assert chosen == [
        ("20210606-sky1", "clear", "sar-4", 1),
        ("20210606-sky2", "clear", "sar-4", 2),
        ("20210615-sky1", "later", "sar-15", 1),
        ("20210615-sky2", "later", "sar-15", 2),
    ]
    assert refused == {
        "cloudy": "cloudy: cloud cover 50.0 % by the catalogue, needed at most 5 % to lay a simulated sky over it",
        "far": "clear: needs a SAR scene within 2 days: the nearest, sar-15, is 15.00 days away",
        "sar": "sar: no pair needs it: the nearest clear scene is 4.00 days away, allowed 2",
    }


def test_skies_of_two_scenes_of_one_day_have_names_of_their_own() -> None:
    chosen, _ = simulate([CLEAR, to_candidate("noon", 5.1, 0)], [to_candidate("s", 5)], skies=2)
    assert [name for name, *_ in chosen] == ["20210606-sky1", "20210606-sky2", "20210606-2-sky1", "20210606-2-sky2"]


def test_most_pairs_are_shared_between_scenes_before_any_gets_its_second_sky() -> None:
    optical, sar = [CLEAR, to_candidate("b", 10, 1), to_candidate("c", 20, 1)], [to_candidate(f"s{day}", day) for day in (5.5, 10.1, 21)]
    chosen, refused = simulate(optical, sar, skies=3, max_pairs=4)
    assert [(clear, sky) for _, clear, _, sky in chosen] == [("clear", 1), ("b", 1), ("b", 2), ("c", 1)]
    assert not refused
    chosen, refused = simulate(optical, sar, skies=3, max_pairs=2)
    assert [clear for _, clear, *_ in chosen] == ["clear", "b"]
    assert refused["c"] == "clear: its gap to SAR is not among the 2 smallest, max_pairs 2"


def test_clear_and_sar_must_share_ground_under_a_simulated_sky_too() -> None:
    sar = [to_candidate("near", 5, part=(0, 0.3)), to_candidate("whole", 6)]
    assert simulate([CLEAR], sar)[0] == [("20210606-sky1", "clear", "whole", 1)]
    chosen, refused = simulate([CLEAR], sar[:1])
    assert not chosen
    assert refused["clear"].startswith("clear: shares 30.0% of the area with the SAR scene near, needed 60.0% of the two")


def test_either_takes_real_clouds_where_they_are_and_simulated_ones_where_not() -> None:
    chosen, _ = simulate([CLOUDY, CLEAR], [SAR, to_candidate("s", 5)], inputs="either", skies=3)
    assert [(name, sky) for name, _, _, sky in chosen] == [("20210611", 0)]
    chosen, refused = simulate([CLOUDY, CLEAR], [to_candidate("s", 5)], inputs="either", skies=2)
    assert [(name, sky) for name, _, _, sky in chosen] == [("20210606-sky1", 1), ("20210606-sky2", 2)]
    assert refused == {"cloudy": "cloudy: needs a SAR scene within 2 days: the nearest, s, is 5.00 days away"}


@settings(max_examples=100, deadline=None)
@given(
    optical=SCENES,
    days=st.lists(st.floats(0, 40), max_size=6),
    most=st.one_of(st.none(), st.integers(1, 5)),
    skies=st.integers(1, 3),
    inputs=st.sampled_from(["simulated", "either"]),
)
def test_every_candidate_is_used_or_listed_once_whatever_the_inputs_are(
    optical: list[tuple[float, float | None]], days: list[float], most: int | None, skies: int, inputs: str
) -> None:
    scenes = [to_candidate(f"S2-{number}", day, cover) for number, (day, cover) in enumerate(optical)]
    sar = [to_candidate(f"s{number}", day) for number, day in enumerate(days)]
    given_ = to_settings(max_pairs=most, skies=skies, inputs=inputs)
    triplets, refused = choose_triplets(scenes, sar, ground=GROUND, settings=given_)
    assert len(triplets) <= (most or len(triplets))
    assert len({pair.id for pair in to_pairs(triplets)}) == len(triplets)
    used = {part.scene.id for triplet in triplets for part in triplet.scenes}
    listed = [item for entry in refused for item in entry.items]
    assert sorted([*used, *listed]) == sorted(one.scene.id for one in (*scenes, *sar))
    assert {t.clear.scene.id for t in triplets} <= {one.scene.id for one in select_hopeful(scenes, sar, given_)}


def frame(optical: list[Candidate], sar: list[Candidate], **changes: Any) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Ids of the pairs of a series (cloudy, clear, before, after), and the reason of each refused item."""
    triplets, refused = choose_triplets(optical, sar, ground=GROUND, settings=to_settings(series=True, **changes))
    chosen = [(pair.cloudy, pair.clear, pair.before or "", pair.after or "") for pair in to_pairs(triplets)]
    return chosen, {item: f"{entry.role}: {entry.reason}" for entry in refused for item in entry.items}


def to_clear(*days: float) -> list[Candidate]:
    return [to_candidate(f"k{day}", day, 1) for day in days]


def test_around_a_pair_are_the_last_clear_scene_before_and_the_first_after_both() -> None:
    chosen, refused = frame([CLOUDY, *to_clear(-3, 1, 7, 13, 18)], [SAR])
    assert chosen == [("cloudy", "k7", "k1", "k13")]
    assert sorted(refused) == ["k-3", "k18"]
    [pair] = to_pairs(choose_triplets([CLOUDY, *to_clear(1, 7, 13)], [SAR], ground=GROUND, settings=to_settings(series=True))[0])
    assert (pair.clear_gap_days, pair.before_gap_days, pair.after_gap_days) == (-3, -9, 3)


def test_a_target_that_lacks_one_of_them_gives_way_to_one_that_has_both() -> None:
    assert frame([CLOUDY, *to_clear(7, 14, 20)], [SAR])[0] == [("cloudy", "k14", "k7", "k20")]
    assert choose([CLOUDY, *to_clear(7, 14, 20)], [SAR])[0] == [("cloudy", "k7", "sar")]
    assert frame([CLOUDY, *to_clear(0, 6, 13)], [SAR])[0] == [("cloudy", "k6", "k0", "k13")]


@pytest.mark.parametrize(
    ("days", "reason"),
    [
        ((7, 14), "after input and target k7, each within 24 days: there is none before; no other target has both either"),
        ((14, 20), "after input and target k14, each within 24 days: there is none before; no other target has both either"),
        ((7,), "after input and target k7, each within 24 days: there is none before and none after"),
        ((-3, 7), "after input and target k7, each within 24 days: there is none after"),
        ((7, 14, 35), "after input and target k7, each within 24 days: there is none before; no other target has both either"),
    ],
)
def test_an_input_that_no_target_frames_is_refused_with_the_reason(days: tuple[float, ...], reason: str) -> None:
    chosen, refused = frame([CLOUDY, *to_clear(*days)], [SAR])
    assert not chosen
    assert refused["cloudy"] == f"cloudy: needs a clear scene before and one {reason}"
    settings_ = to_settings(series=True)
    found = choose_triplets([CLOUDY, *to_clear(*days)], [SAR], ground=GROUND, settings=settings_)[1]
    assert {one.cause for one in found if "cloudy" in one.items} == {Cause.SERIES}


def test_around_a_pair_are_scenes_of_its_product_that_are_clear() -> None:
    raw, hazy = to_candidate("raw", 12, 1, sensor="sentinel2-l1c"), to_candidate("hazy", 11, 7)
    assert frame([CLOUDY, raw, hazy, *to_clear(1, 7, 13)], [SAR])[0] == [("cloudy", "k7", "k1", "k13")]
    assert not frame([CLOUDY, raw, hazy, *to_clear(1, 7)], [SAR])[0]


def test_scenes_around_a_pair_may_be_twice_as_far_as_its_target() -> None:
    assert frame([CLOUDY, *to_clear(-14, 7, 34)], [SAR])[0] == [("cloudy", "k7", "k-14", "k34")]
    assert not frame([CLOUDY, *to_clear(-14, 7, 34.1)], [SAR])[0]
    assert not frame([CLOUDY, *to_clear(-14.1, 7, 34)], [SAR])[0]


def test_what_may_stand_around_a_pair_is_measured() -> None:
    optical = [to_candidate(f"S2-{day}", day) for day in (-18, -14, 7, 10, 34, 35)]
    ids = [one.scene.id for one in select_hopeful(optical, [SAR], to_settings(series=True))]
    assert ids == ["S2--14", "S2-7", "S2-10", "S2-34"]
    simulated = select_hopeful(optical, [SAR], to_settings(series=True, inputs="simulated"))
    assert [one.scene.id for one in simulated] == ids


def test_a_simulated_sky_lies_over_a_date_between_two_others() -> None:
    optical, sar = to_clear(0, 5, 10), [to_candidate(f"s{day}", day) for day in (0, 5, 10)]
    chosen, refused = frame(optical, sar, inputs="simulated", skies=2)
    assert chosen == [("k5", "k5", "k0", "k10")] * 2
    assert refused["k0"] == "clear: needs a clear scene before and one after it, each within 24 days: there is none before"
    assert refused["k10"].endswith("there is none after")
    assert frame(optical, sar, inputs="either")[0] == chosen[:1]


@settings(max_examples=150, deadline=None)
@given(optical=SCENES, days=st.lists(st.floats(0, 40), max_size=6), inputs=st.sampled_from(["found", "simulated"]), rnd=st.randoms())
def test_no_series_leaves_the_order_of_time(optical: list[tuple[float, float | None]], days: list[float], inputs: str, rnd: Any) -> None:
    """The oracle asks every clear scene whether it would have been nearer."""
    scenes = [to_candidate(f"S2-{number}", day, cover) for number, (day, cover) in enumerate(optical)]
    sar = [to_candidate(f"s{number}", day) for number, day in enumerate(days)]
    given_ = to_settings(series=True, inputs=inputs)
    triplets, refused = choose_triplets(scenes, sar, ground=GROUND, settings=given_)
    clear = [one for one in scenes if one.scene.cloud_cover_pct is not None and one.scene.cloud_cover_pct <= 5]
    for triplet in triplets:
        before, after = triplet.around
        first, last = sorted((triplet.cloudy.moment, triplet.clear.moment))
        assert before.moment < first <= last < after.moment
        assert not [one for one in clear if before.moment < one.moment < first or last < one.moment < after.moment]
        assert {before.scene.id, after.scene.id} <= {one.scene.id for one in clear}
        assert max(triplet.cloudy.moment - before.moment, after.moment - triplet.cloudy.moment) <= timedelta(days=24)
        assert triplet.used <= {one.scene.id for one in (*select_hopeful(scenes, sar, given_), *sar)}
    used = {name for triplet in triplets for name in triplet.used}
    assert used | {item for entry in refused for item in entry.items} == {one.scene.id for one in (*scenes, *sar)}
    plain = {t.cloudy.scene.id for t in choose_triplets(scenes, sar, ground=GROUND, settings=to_settings(inputs=inputs))[0]}
    assert {t.cloudy.scene.id for t in triplets} <= plain
    rnd.shuffle(scenes)
    assert choose_triplets(scenes, sar, ground=GROUND, settings=given_)[0] == triplets
