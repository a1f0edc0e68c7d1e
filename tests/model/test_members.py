"""Groups on the page: every scene with its date and clouds, every shift with its error, and what was not measured is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_results import write_group

from sereno.model.members import describe_groups
from sereno.model.page import Shots, Table, Text
from sereno.model.results import Results, read_results
from sereno.pipeline.config import TaskName


def read(folder: Path, task: TaskName) -> Results:
    write_group(folder, task)
    return read_results(folder, ())


def read_words(results: Results) -> str:
    return " ".join(block.words for block in describe_groups(results) if isinstance(block, Text))


def find_table(results: Results, heading: str) -> list[dict[str, str]]:
    table = next(block for block in describe_groups(results) if isinstance(block, Table) and heading in block.head)
    return [dict(zip(table.head, (cell.words for cell in row), strict=True)) for row in table.rows]


def make_record(*, verdict: str = "applied", **changed: Any) -> dict[str, Any]:
    windows = [{"row": 4.0, "col": 5.0, "dy": 0.3, "dx": -0.4, "inlier": True}]
    return {
        "verdict": verdict, "reason": "as measured", "dy_px": 0.3, "dx_px": -0.4, "pixel_m": 20.0, "mean_shift_px": 0.5, "sigma_px": 0.01,
        "rms_px": 0.05, "n_inlier": 1, "n_good": 1, "n_windows": 2, "windows": windows, "shape": [24, 24], **changed,
    }  # fmt: skip


def measure(results: Results, **records: Any) -> Results:
    key = ("west", "g")
    return replace(results, aligned={key: results.aligned[key] | {"registration": records}})


def test_every_scene_of_a_group_has_a_line(tmp_path: Path) -> None:
    rows = find_table(read(tmp_path, "spatiotemporal-fusion"), "taken")
    assert [row["as"] for row in rows] == ["coarse-1", "coarse-2", "coarse-3", "fine-1", "fine-2", "fine-3"]
    assert [row["taken"] for row in rows[3:]] == ["2021-06-13", "2021-06-18", "2021-06-23"]
    assert {row["cloud, %"] for row in rows} == {"4"}
    assert {row["valid, %"] for row in rows} == {"100.0"}


@pytest.mark.parametrize(
    ("task", "words"),
    [("spatiotemporal-fusion", "fine dates were not compared"), ("snapshot-reconstruction", "simulated from their own cubes")],
)
def test_where_no_shift_was_asked_for_that_is_said(tmp_path: Path, task: TaskName, words: str) -> None:
    assert words in read_words(read(tmp_path, task))


def test_a_measured_shift_is_told_in_metres_with_its_error(tmp_path: Path) -> None:
    results = measure(read(tmp_path, "pansharpening"), pan=make_record())
    (row,) = find_table(results, "shift, m")
    assert (row["image"], row["dy, px"], row["dx, px"], row["shift, m"], row["σ, px"]) == ("pan", "+0.30", "-0.40", "10.0", "0.010")
    assert "pan lay 10.0 to 10.0 m off" in read_words(results)
    assert "at most 0.2 m. 1 of 1 fields were found." in read_words(results)
    assert any(isinstance(block, Shots) and block.shots[0].title == "Shift of every matching window" for block in describe_groups(results))


def test_a_shift_that_was_refused_is_not_called_measured(tmp_path: Path) -> None:
    results = measure(read(tmp_path, "pansharpening"), pan=make_record(verdict="refused", windows=[]))
    assert "pan was never moved: none of 1 fields was found" in read_words(results)


def test_a_group_that_was_given_up_is_shown_as_such(tmp_path: Path) -> None:
    results = read(tmp_path, "pansharpening")
    key = ("west", "g")
    given_up = replace(results, aligned={key: results.aligned[key] | {"refused": "the ms scene: nothing is valid"}})
    assert {row["valid, %"] for row in find_table(given_up, "taken")} == {"not used"}
    assert "1 group in 1 area, 1 of them given up" in read_words(given_up)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (said,) = describe_groups(read_results(tmp_path, ()))
    assert isinstance(said, Text)
    assert "run `sereno query`" in said.words
    assert "Not aligned: west g: run `sereno align`." in read_words(replace(read(tmp_path, "pansharpening"), aligned={}))
