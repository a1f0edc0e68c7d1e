"""The data card says what is simulated, what was moved, how products were calibrated, and nothing that is not so."""

from typing import Any, get_args

import pytest

from sereno.pipeline.config import TaskName
from sereno.pipeline.datacard import (
    WORDS,
    count_registrations,
    count_skies,
    describe_dataset,
    join_radiometry,
    list_calibrations,
    list_limits,
)
from sereno.pipeline.patches import SPLITS
from sereno.pipeline.samples import MASK_CHANNELS_OF, MEASURED, ROLES_OF, SAMPLES

TAKEN_ON_OTHER_DAYS = "were taken on other days than the inputs"
GF3 = {"item": "r1", "gf3:scale_divisor": 32767.0, "gf3:scale_divisor_reason": "complex: 2 band of int16", "heights": "DEM dem.tif"}
GF6 = {"item": "o1", "calib_year": 2020, "calib_source": "a bulletin", "heights": "302.7 m everywhere", "share": 0.7}


def make_record(verdict: str = "applied", shift_px: float = 4.0, sigma_px: float | None = 0.1) -> dict[str, Any]:
    return {"verdict": verdict, "max_shift_px": shift_px, "sigma_px": sigma_px, "pixel_m": 8.0}


def make_provenance(sky: int | None = None, cover: float = 0.25, **facts: Any) -> dict[str, Any]:
    """One pair of Gaofen, as `align` records it."""
    provenance = {
        "sar": {"sensor": "gaofen3", "items": [GF3]},
        "cloudy": {"sensor": "gaofen-pms", "items": [GF6]},
        "clear": {"sensor": "gaofen-pms", "items": [{**GF6, "item": "o2"}]},
        "registration": make_record(),
        "registration_cloudy": None if sky else make_record(shift_px=9.0, sigma_px=0.05),
    }
    overlay = {} if sky is None else {"overlay": {"seed": 3, "sky": sky, "cover": cover}}
    return provenance | overlay | facts


def make_scenes(*sensors: str) -> dict[str, Any]:
    facts = {"collections": ["c"], "baselines": ["None"], "offsets": ["0"], "levels": ["top"]}
    return {role: {"sensors": [sensor], **facts} for role, sensor in zip(("sar", "cloudy", "clear"), sensors, strict=True)}


def make_summary(provenances: list[dict[str, Any]], scenes: dict[str, Any], n_areas: int = 1) -> dict[str, Any]:
    area = {"patches": 5, "pairs": ["p1"], "crs": ["EPSG:32650"], "first": "2020-06-01", "last": "2020-06-05", "bbox": [1, 2, 3, 4]}
    return {
        "task": "cloud-removal",
        "channels": {"sar": ["HH"], "cloudy": ["B1"], "clear": ["B1"], "mask": ["valid_sar"]},
        "statistics": {"clear": {"mean": [0.1], "std": [0.02]}},
        "size_px": 64,
        "resolution_m": 8.0,
        "counts": dict.fromkeys(SPLITS, 5),
        "splits": {"method": "none", "blocks": dict.fromkeys(SPLITS, 1)},
        "leakage": {"min_distance_m": None},
        "areas": {f"a{n}": area for n in range(n_areas)},
        "scenes": scenes,
        "skies": count_skies(provenances),
        "registration": count_registrations(provenances),
        "gaofen": list_calibrations(provenances),
        "left_out": [],
        "refused": {},
        "cloud_share": {"edges": [0.0, 1.0], **{split: [5] for split in SPLITS}},
    }


def describe(provenances: list[dict[str, Any]], scenes: dict[str, Any], **facts: Any) -> str:
    return describe_dataset("d.zarr", make_summary(provenances, scenes, **facts))


GAOFEN = make_scenes("gaofen3", "gaofen-pms", "gaofen-pms")
SENTINEL = make_scenes("sentinel1-rtc", "sentinel2-l2a", "sentinel2-l2a")


def test_skies_are_counted_with_their_seed_and_cover() -> None:
    found = count_skies([make_provenance(1, 0.2), make_provenance(2, 0.5), make_provenance()])
    assert found == {"pairs": 3, "simulated": 2, "seeds": [3], "skies": 2, "cover": [0.2, 0.5]}


def test_the_head_says_that_clouds_are_simulated_and_the_limits_never_the_opposite() -> None:
    card = describe([make_provenance(1, 0.2), make_provenance(2, 0.5)], GAOFEN)
    head, limits = card.split("## Splits")[0], card.split("## Known limits")[1]
    assert "**Simulated clouds**: 2 of 2 pairs have as input no image of a cloudy day but the target itself" in head
    assert "(seed 3; skies of one target: 2; dense cloud over 20% to 50% of the ground)" in head
    assert TAKEN_ON_OTHER_DAYS not in limits
    assert "no change of the ground" in limits
    assert "masks of targets are estimates" in limits


def test_real_clouds_are_told_as_before() -> None:
    card = describe([make_provenance()], SENTINEL)
    assert "imulated clouds" not in card
    assert f"- Clear targets {TAKEN_ON_OTHER_DAYS}" in card
    assert "- Cloud and shadow masks are estimates" in card


def test_of_both_kinds_each_limit_says_whose_it_is() -> None:
    provenances = [make_provenance(1), make_provenance()]
    limits = " ".join(list_limits(GAOFEN, count_skies(provenances)))
    assert f"Clear targets of pairs with real clouds {TAKEN_ON_OTHER_DAYS}" in limits
    assert "masks of real images are estimates" in limits
    assert "**Simulated clouds**: 1 of 2 pairs have" in describe(provenances, GAOFEN)


def test_registration_is_counted_per_image_in_metres() -> None:
    refused = {"registration": make_record("refused", 0.0, None), "registration_cloudy": make_record("refused", 0.0, 3.0)}
    found = count_registrations([make_provenance(), make_provenance(1, registration=make_record(shift_px=6.0)), make_provenance(**refused)])
    assert found["sar"] == {"applied": 2, "refused": 1, "not_asked": 0, "max_shift_m": 48.0, "max_error_m": 0.8}
    assert found["cloudy"] == {"applied": 1, "refused": 1, "not_asked": 1, "max_shift_m": 72.0, "max_error_m": 0.4}
    assert count_registrations([{}])["sar"]["max_shift_m"] is None
    assert "| cloudy | 1 | 0 | 0 | 72.0 | 0.4 |" in describe([make_provenance()], GAOFEN)
    assert "| sar | 0 | 0 | 1 | - | - |" in describe([{}], GAOFEN)


def test_equal_calibrations_of_gaofen_are_listed_once_with_their_products() -> None:
    unused = {**GF6, "item": "o3", "calib_year": 2018, "share": 0.0}
    second = make_provenance(clear={"sensor": "gaofen-pms", "items": [{**GF6, "item": "o4", "calib_year": 2019}, unused]})
    assert list_calibrations([make_provenance(), second, make_provenance()]) == [
        {"sensor": "gaofen-pms", "calibration": "gains of 2019 (a bulletin)", "heights": "302.7 m everywhere", "products": 1},
        {"sensor": "gaofen-pms", "calibration": "gains of 2020 (a bulletin)", "heights": "302.7 m everywhere", "products": 2},
        {"sensor": "gaofen3", "calibration": "digital numbers / 32767 (complex: 2 band of int16)", "heights": "DEM dem.tif", "products": 1},
    ]
    own = make_provenance(clear={"sensor": "gaofen-wfv", "items": [{**GF6, "calib_year": None, "calib_source": "pipeline.ingest.x"}]})
    assert "| gaofen-wfv | 1 | gains (pipeline.ingest.x) | 302.7 m everywhere |" in describe([own], GAOFEN)
    assert "## Gaofen" not in describe([{"sar": {"sensor": "sentinel1-rtc", "items": [{}]}}], SENTINEL)


@pytest.mark.parametrize(("scenes", "is_dropped"), [(GAOFEN, True), (SENTINEL, False)])
def test_what_became_of_images_that_cannot_be_placed_is_told_as_align_does_it(scenes: dict[str, Any], is_dropped: bool) -> None:
    processing = describe([make_provenance()], scenes).split("## Processing")[1].split("##")[0]
    assert ("a pair in which one cannot be placed is left out" in processing) == is_dropped
    assert "left where its geocoding puts it" in processing


def test_one_is_counted_as_one_and_what_nobody_states_has_no_column() -> None:
    card = describe([make_provenance()], GAOFEN)
    assert "from 1 scene pair of 1 area, " in card
    assert "from 2 scene pairs of 2 areas, " in describe([make_provenance()], GAOFEN, n_areas=2)
    assert "None |" not in card
    assert "processing baseline" not in card
    stated = make_scenes("sentinel1-rtc", "sentinel2-l2a", "sentinel2-l2a")
    stated["clear"]["baselines"] = ["05.00"]
    assert "| sar | sentinel1-rtc | c | - | 0 | top |" in describe([{}], stated)


def test_other_data_than_sentinel_gets_no_copernicus_note() -> None:
    card = describe([make_provenance()], GAOFEN)
    assert "Copernicus" not in card
    assert "That of the products it was made from: gaofen-pms, gaofen3." in card
    assert "Contains modified Copernicus Sentinel data 2020" in describe([{}], SENTINEL)


def test_only_sen12mscr_is_said_to_state_no_times() -> None:
    words = "SEN12MS-CR states no times"
    assert words not in describe([{}], SENTINEL)
    assert words in describe([{}], make_scenes("sen12mscr-s1", "sen12mscr-s2", "sen12mscr-s2"))


def make_task_summary(task: TaskName, sensor: str = "sentinel2-l2a") -> dict[str, Any]:
    facts = {"sensors": [sensor], "collections": ["c"], "baselines": ["05.09"], "offsets": ["1000"], "levels": ["-"]}
    channels = {spec.name: [f"{spec.name}-band"] for spec in SAMPLES[task]} | {"mask": list(MASK_CHANNELS_OF[task])}
    area = {"patches": 3, "pairs": ["p1"], "crs": ["EPSG:32632"], "bbox": [9, 45, 10, 46], "first": "2021-06-03", "last": "2021-07-03"}
    counts = {"train": 1, "val": 1, "test": 1}
    return {
        "task": task,
        "size_px": 64,
        "resolution_m": 10.0,
        "counts": counts,
        "areas": {"west": area},
        "splits": {"method": "blocks", "seed": 1, "blocks": counts},
        "leakage": {"min_distance_m": 480.0, "required_m": 480.0, "shared_blocks": 0, "footprints": 3},
        "scenes": {role: facts for roles in ROLES_OF[task] for role in roles},
        "channels": channels,
        "statistics": {name: {"mean": [0.1234], "std": [0.0567]} for name in MEASURED[task]},
        "cloud_share": {"edges": [0, 1], "train": [1], "val": [1], "test": [1]},
        "skies": {"pairs": 1, "simulated": 0, "seeds": [], "skies": 0, "cover": []},
        "registration": {},
        "gaofen": [],
        "refused": {"min_valid": 4},
        "left_out": [],
    }


@pytest.mark.parametrize("task", get_args(TaskName))
def test_every_task_has_a_card_with_its_arrays_roles_and_statistics(task: TaskName) -> None:
    card = describe_dataset("d.zarr", make_task_summary(task))
    assert f"3 {WORDS[task].content} of 64 x 64 pixels" in card
    for spec in (spec for spec in SAMPLES[task] if not spec.is_optional):
        assert f"| {spec.name} | {', '.join(spec.all_dims)} | {spec.units} |" in card
    assert all(f"| {role} | sentinel2-l2a |" in card for roles in ROLES_OF[task] for role in roles)
    assert card.count("| 0.1234 | 0.0567 |") == len(MEASURED[task])
    assert f'train["{WORDS[task].array}"]' in card
    assert card.endswith("```\n")


@pytest.mark.parametrize("task", get_args(TaskName))
def test_the_arrays_of_the_example_are_of_the_sample(task: TaskName) -> None:
    assert {WORDS[task].array, WORDS[task].stored} <= {spec.name for spec in SAMPLES[task]}


def test_other_tasks_are_licensed_by_their_sensors_too() -> None:
    assert "Copernicus" in describe_dataset("d.zarr", make_task_summary("pansharpening"))
    card = describe_dataset("d.zarr", make_task_summary("pansharpening", "gaofen-pms"))
    assert "Copernicus" not in card
    assert "gaofen-pms" in card


def test_what_was_compared_in_groups_is_counted_by_role() -> None:
    provenances = [{"task": "pansharpening", "registration": {"pan": make_record(verdict)}} for verdict in ("applied", "refused")]
    assert {role: (facts["applied"], facts["refused"]) for role, facts in count_registrations(provenances).items()} == {"pan": (1, 1)}
    card = describe_dataset("d.zarr", make_task_summary("pansharpening") | {"registration": count_registrations(provenances)})
    assert "| pan | 1 | 1 | 0 | 32.0 | 0.8 |" in card
    assert "onto the clear one" not in card


def test_dates_around_pairs_are_counted_with_what_moved_them() -> None:
    around = {role: {"sensor": "gaofen-pms", "items": [{**GF6, "item": role}]} for role in ("before", "after")}
    record = make_provenance(**around, registration_before=make_record(shift_px=3.0), registration_after=make_record("refused"))
    found = count_registrations([record])
    assert list(found) == ["sar", "cloudy", "before", "after"]
    assert ((found["before"]["applied"], found["after"]["refused"]), found["before"]["max_shift_m"]) == ((1, 1), 24.0)
    [_, optical] = sorted(list_calibrations([record]), key=lambda entry: entry["sensor"] == "gaofen-pms")
    assert optical["products"] == 4
    assert list(count_registrations([make_provenance()])) == ["sar", "cloudy"]


def test_the_card_tells_of_dates_around_pairs_only_where_they_are() -> None:
    plain = make_summary([make_provenance()], SENTINEL)
    series = plain | {
        "bands": ["B1"],
        "dates": ["before", "after"],
        "channels": plain["channels"] | {"around": ["B1"], "around_clear": ["before", "after"]},
    }
    assert "around" not in describe_dataset("d.zarr", plain)
    card = describe_dataset("d.zarr", series)
    assert "| around | patch, date, band, row, col | reflectance x 10000 | B1 |" in card
    assert "each with the clear dates before and after it" in card
    assert "## Dates around each pair" in card


def test_a_task_whose_samples_are_dates_tells_of_none_around_them() -> None:
    card = describe_dataset("d.zarr", make_task_summary("spatiotemporal-fusion") | {"dates": ["1", "2", "3"]})
    assert "around" not in card


def test_what_two_sensors_differ_by_is_the_median_of_all_series_and_told_in_the_card() -> None:
    def to_fit(gain: float) -> dict[str, float]:
        return {"gain": gain, "offset": 0.01, "scatter": 0.002, "pixels": 300}

    series = [{"radiometry": {"B04": to_fit(gain)}} for gain in (1.0, 1.05, 1.3)] + [{"radiometry": {"B08": to_fit(0.9)}}, {}]
    joined = join_radiometry(series)
    assert joined == {
        "radiometry": {
            "B04": {"gain": 1.05, "offset": 0.01, "scatter": 0.002, "series": 3},
            "B08": {"gain": 0.9, "offset": 0.01, "scatter": 0.002, "series": 1},
        }
    }
    assert join_radiometry([{}]) == {}
