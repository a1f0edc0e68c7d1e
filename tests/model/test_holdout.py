"""What is said of held-out ground."""

from dataclasses import replace
from pathlib import Path

from sereno.model.holdout import describe_dataset, draw_areas
from sereno.model.page import Text
from sereno.model.results import read_results

FACTS = {
    "counts": {"train": 6, "val": 1, "test": 2}, "leakage": {"min_distance_m": 320.0, "required_m": 320.0, "footprints": 9},
    "areas": {"west": {"pairs": ["a", "b"]}}, "size_px": 128, "resolution_m": 10.0,
}  # fmt: skip


def test_counts_and_distances_of_the_splits_are_said(tmp_path: Path) -> None:
    (said,) = describe_dataset(replace(read_results(tmp_path, ()), dataset=FACTS))
    assert isinstance(said, Text)
    assert "9 patches of 128 × 128 pixels (1.28 km) from 2 pairs of 1 area: 6 train, 1 val, 2 test." in said.words
    assert "over 9 footprints the nearest patches of different splits are 320 m apart (320 m asked for)" in said.words


def test_one_split_alone_holds_no_ground_out(tmp_path: Path) -> None:
    (said,) = describe_dataset(replace(read_results(tmp_path, ()), dataset={**FACTS, "leakage": {"min_distance_m": None}}))
    assert isinstance(said, Text)
    assert "no ground is held out" in said.words


def test_without_a_dataset_the_step_is_named(tmp_path: Path) -> None:
    for describe in (describe_dataset, draw_areas):
        (said,) = describe(read_results(tmp_path, ()))
        assert isinstance(said, Text)
        assert "run `sereno pack`" in said.words
