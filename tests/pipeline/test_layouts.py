"""Names of SEN12MS-CR are compared whole; what is incomplete is refused by name."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.layouts import area_of_split_entry, find_cubes, find_sen12mscr_rois

SPLITS = json.loads((Path(__file__).parents[2] / "recipes" / "sen12mscr_splits.json").read_text())
LEAKED_TEST = {
    "ROIs1158_spring_106",
    "ROIs1158_spring_123",
    "ROIs1158_spring_140",
    "ROIs1868_summer_119",
    "ROIs1868_summer_73",
    "ROIs1970_fall_139",
}
LEAKED_VALIDATION = {"ROIs1970_fall_65", "ROIs1158_spring_17", "ROIs2017_winter_84"}
"""ROIs that the reference loader's substring test also counts as training."""


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def published(season: str, roi: int, window: int, *kinds: str) -> list[str]:
    return [f"{season}_{kind}/{kind}_{roi}/{season}_{kind}_{roi}_p{window}.tif" for kind in kinds or ("s1", "s2", "s2_cloudy")]


def test_the_published_layout_gives_every_roi_its_own_windows(tmp_path: Path) -> None:
    folder = touch(tmp_path, *(name for roi in (3, 31) for window in (5, 10) for name in published("ROIs1158_spring", roi, window)))
    rois = find_sen12mscr_rois(folder)
    assert list(rois) == ["ROIs1158_spring_3", "ROIs1158_spring_31"]
    assert [window.name for window in rois["ROIs1158_spring_31"].windows] == ["p5", "p10"]
    assert rois["ROIs1158_spring_31"].windows[0].s2_cloudy == "ROIs1158_spring_s2_cloudy/s2_cloudy_31/ROIs1158_spring_s2_cloudy_31_p5.tif"


def test_three_folders_with_equal_names_are_found_too(tmp_path: Path) -> None:
    name = "ROIs1970_fall_139_p839.tif"
    roi = find_sen12mscr_rois(touch(tmp_path, f"s1/{name}", f"s2_cloudy/{name}", f"s2_cloudfree/{name}"))["ROIs1970_fall_139"]
    (window,) = roi.windows
    assert (window.name, window.s1, window.s2) == ("p839", f"s1/{name}", f"s2_cloudfree/{name}")
    assert roi.refused == ()


def test_a_window_without_all_three_files_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    folder = touch(tmp_path, *published("ROIs1158_spring", 3, 5), *published("ROIs1158_spring", 3, 6, "s1", "s2"))
    roi = find_sen12mscr_rois(folder)["ROIs1158_spring_3"]
    assert [window.name for window in roi.windows] == ["p5"]
    assert roi.refused == (("p6", "no s2_cloudy file"),)


def test_a_file_whose_name_belongs_to_another_folder_is_refused(tmp_path: Path) -> None:
    stray = "ROIs1158_spring_s1/s1_3/ROIs1158_spring_s1_31_p5.tif"
    roi = find_sen12mscr_rois(touch(tmp_path, *published("ROIs1158_spring", 3, 5), stray))["ROIs1158_spring_3"]
    assert len(roi.windows) == 1
    assert roi.refused == ((stray, "its name does not fit the folder it lies in"),)


def test_a_folder_without_windows_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no complete window: expected ROIs1158_spring_s1/s1_31"):
        find_sen12mscr_rois(touch(tmp_path, "readme.txt"))
    with pytest.raises(MissingError, match="does not exist"):
        find_sen12mscr_rois(tmp_path / "absent")


def test_split_entries_and_area_names_name_the_same_area() -> None:
    assert area_of_split_entry("ROIs1970_fall_s1/s1_3") == "ROIs1970_fall_3"
    assert area_of_split_entry("ROIs1970_fall_3") == "ROIs1970_fall_3"


@pytest.mark.parametrize("entry", ["ROIs1970_fall_s1/s2_3", "s1_3", "ROIs1970_fall_s1/s1_3/", "ROIs1970_autumn_3", "ROIs1970_fall_3 "])
def test_what_is_no_published_entry_names_nothing_but_itself(entry: str) -> None:
    assert area_of_split_entry(entry) == entry


def test_the_published_splits_are_155_10_and_10_areas_and_share_none() -> None:
    areas = {split: {area_of_split_entry(entry) for entry in entries} for split, entries in SPLITS.items()}
    assert {split: len(names) for split, names in areas.items()} == {"train": 155, "val": 10, "test": 10}
    assert all(not one & other for one, other in combinations(areas.values(), 2))


def test_the_rois_that_a_substring_match_leaks_stay_out_of_training(tmp_path: Path) -> None:
    leaked = LEAKED_TEST | LEAKED_VALIDATION
    pieces = [re.fullmatch(r"(ROIs\d+)_(\w+)_(\d+)", area) for area in sorted(leaked)]
    names = [name for piece in pieces if piece for name in published(f"{piece[1]}_{piece[2]}", int(piece[3]), 30)]
    by_substring = {area_of_split_entry(name.rpartition("/")[0]) for name in names if any(entry in name for entry in SPLITS["train"])}
    assert by_substring == leaked  # the fault is real: this is what the reference loader does
    train, held_out = ({area_of_split_entry(entry) for entry in entries} for entries in (SPLITS["train"], SPLITS["test"] + SPLITS["val"]))
    found = set(find_sen12mscr_rois(touch(tmp_path, *names)))
    assert found == leaked
    assert not found & train
    assert found <= held_out


def test_cubes_are_areas_by_the_stems_of_their_files(tmp_path: Path) -> None:
    for name in ("b.npy", "a.mat", "a.wavelengths.txt", "notes.md"):
        (tmp_path / name).touch()
    assert find_cubes(tmp_path) == {"a": "a.mat", "b": "b.npy"}
    (tmp_path / "b.tif").touch()
    with pytest.raises(ConfigError, match=r"b\.tif: its stem becomes the name of an area, but b\.npy has the same stem: rename it"):
        find_cubes(tmp_path)
    (tmp_path / "b.tif").rename(tmp_path / "two words.tif")
    with pytest.raises(ConfigError, match=r"two words\.tif: .* a name has letters"):
        find_cubes(tmp_path)


def test_a_folder_without_cubes_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="holds no cube"):
        find_cubes(tmp_path)
    with pytest.raises(MissingError, match="does not exist"):
        find_cubes(tmp_path / "nowhere")
