"""The data card says of each task what it is, and its example is of an array that there is."""

from typing import Any

import pytest

from sereno.pipeline.card import WORDS, describe_dataset
from sereno.pipeline.config import TaskName
from sereno.pipeline.samples import MASK_CHANNELS_OF, MEASURED, ROLES_OF, SAMPLES


def make_summary(task: TaskName, sensor: str = "sentinel2-l2a") -> dict[str, Any]:
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
        "refused": {"min_valid": 4},
        "left_out": [],
    }


@pytest.mark.parametrize("task", SAMPLES)
def test_every_task_has_a_card_with_its_arrays_roles_and_statistics(task: TaskName) -> None:
    card = describe_dataset("d.zarr", make_summary(task))
    assert f"3 {WORDS[task].content} of 64 x 64 pixels" in card
    for spec in SAMPLES[task]:
        assert f"| {spec.name} | {', '.join(spec.all_dims)} | {spec.units} |" in card
    assert all(f"| {role} | sentinel2-l2a |" in card for roles in ROLES_OF[task] for role in roles)
    assert card.count("| 0.1234 | 0.0567 |") == len(MEASURED[task])
    assert f'train["{WORDS[task].array}"]' in card
    assert card.endswith("```\n")


@pytest.mark.parametrize("task", SAMPLES)
def test_the_array_of_the_example_is_one_of_the_sample(task: TaskName) -> None:
    assert WORDS[task].array in {spec.name for spec in SAMPLES[task]}


def test_other_data_than_sentinel_gets_no_copernicus_note() -> None:
    assert "Copernicus" in describe_dataset("d.zarr", make_summary("pansharpening"))
    card = describe_dataset("d.zarr", make_summary("pansharpening", "gaofen-pms"))
    assert "Copernicus" not in card
    assert "gaofen-pms" in card
