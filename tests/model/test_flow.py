"""What the Snakefile asks of the config."""

import json
from pathlib import Path

import pytest

from sereno.model.flow import Flow, hold_folder
from sereno.pipeline.errors import ConfigError, StoreError

VALUES = {
    "pipeline": {"query": {"areas": {"a": {"bbox": [1, 2, 3, 4]}, "b": {"bbox": [5, 6, 7, 8]}}}},
    "model": {"runs": {"full": {}, "optical-only": {"network": {"use_sar": False}}}},
}


def test_each_query_job_sees_only_its_own_area() -> None:
    flow = Flow(VALUES, results="r")
    assert flow.areas == ("a", "b")
    assert list(json.loads(flow.settings("query", area="b"))["areas"]) == ["b"]


def test_each_run_has_the_training_settings_with_its_own_differences() -> None:
    flow = Flow(VALUES, results="r")
    full, optical = (json.loads(flow.settings("train", run=run)) for run in flow.runs)
    assert full.pop("network") == optical.pop("network") | {"use_sar": True}
    assert full == optical


def test_a_training_setting_is_in_no_data_job() -> None:
    changed = {**VALUES, "model": {**VALUES["model"], "train": {"lr": 0.5}}}
    before, after = Flow(VALUES, results="r"), Flow(changed, results="r")
    for step in ("ingest", "align", "mask", "patch", "pack", "evaluate", "predict", "report"):
        assert before.settings(step) == after.settings(step)
    assert before.settings("train", run="full") != after.settings("train", run="full")


def test_asking_for_more_scenes_clears_none_of_them_again() -> None:
    few, many, other = (
        Flow({**VALUES, "model": {"predict": changed}}, results="r").settings("predict")
        for changed in ({"pairs_per_area": 1}, {"pairs_per_area": None}, {"tile_px": 128})
    )
    assert few == many != other


def test_a_fault_in_a_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'network.usesar', did you mean 'use_sar'\?"):
        Flow({**VALUES, "model": {"runs": {"x": {"network": {"usesar": False}}}}}, results="r")


def test_only_one_flow_works_in_a_folder(tmp_path: Path) -> None:
    first = hold_folder(tmp_path)
    with pytest.raises(StoreError, match=r"is already at work in"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()
