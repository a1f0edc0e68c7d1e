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


def with_runs(**runs: object) -> Flow:
    return Flow({**VALUES, "model": {"runs": runs}}, results="r")


def test_several_processes_are_started_by_torchrun_and_one_by_itself() -> None:
    flow = with_runs(one={}, two={"processes": 2})
    assert (flow.launch("one"), flow.processes("one")) == ("sereno", 1)
    assert (flow.launch("two"), flow.processes("two")) == ("torchrun --standalone --nproc-per-node 2 -m sereno.model", 2)


@pytest.mark.parametrize("start", ["r/train/first/checkpoint.safetensors", "./r/train/../train/first/checkpoint.safetensors"])
def test_a_run_that_starts_from_another_names_its_checkpoint_as_that_one_writes_it(start: str) -> None:
    flow = with_runs(first={}, second={"start_from": start})
    assert flow.start_files("first") == []
    assert flow.start_files("second") == ["r/train/first/checkpoint.safetensors"]
    absolute = with_runs(first={}, second={"start_from": str(Path(start).absolute())})
    assert absolute.start_files("second") == flow.start_files("second")
    elsewhere = with_runs(only={"start_from": "/other/r/train/x/checkpoint.safetensors"})
    assert elsewhere.start_files("only") == ["/other/r/train/x/checkpoint.safetensors"]


@pytest.mark.parametrize(("start", "known"), [("itself", "first"), ("frist", "first")])
def test_a_run_that_starts_from_itself_or_from_none_is_refused(start: str, known: str) -> None:
    with pytest.raises(
        ConfigError, match=f"model.runs.itself: 'start_from' is .* no other run bears the name '{start}'; others are: {known}"
    ):
        with_runs(first={}, itself={"start_from": f"r/train/{start}/checkpoint.safetensors"})


def test_the_file_of_a_custom_network_is_known_and_ours_have_none() -> None:
    flow = with_runs(ours={}, theirs={"network": {"name": "custom", "source": "lib/peer.py:make"}})
    assert (flow.network_files("ours"), flow.network_files("theirs")) == ([], ["lib/peer.py"])


def test_only_one_flow_works_in_a_folder(tmp_path: Path) -> None:
    first = hold_folder(tmp_path)
    with pytest.raises(StoreError, match=r"is already at work in"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()
