"""Example patches of the other tasks: what they show lies where it should, and whatever is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_results import QUICK, SECTIONS, SMALL, WRITERS, make_results

from sereno.model.config import EvaluateSettings, ReportSettings, TrainSettings
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.examples import COMPOSERS, SHOWN, choose_pixels, describe_patches
from sereno.model.page import Heading, Shots, Text
from sereno.model.predicted import describe_images
from sereno.model.report import write_report
from sereno.model.results import Results, read_examples, read_results
from sereno.model.tasks import TASKS
from sereno.model.train import train_network
from sereno.pipeline.store import write_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make_results(tmp_path_factory.mktemp("results"), task) for task in WRITERS}  # type: ignore[arg-type]


def read(folder: Path) -> Results:
    return read_results(folder, ("mine",))


def make_page(results: Path, folder: Path) -> str:
    write_report(results, folder / "index.html", ReportSettings(), runs=("mine",))
    return (folder / "index.html").read_text()


def list_titles(results: Results) -> list[list[str]]:
    return [[shot.title for shot in block.shots] for block in describe_patches(results) if isinstance(block, Shots)]


@pytest.mark.parametrize("task", WRITERS)
def test_a_finished_page_is_complete_and_the_same_each_time(finished: dict[str, Path], tmp_path: Path, task: str) -> None:
    page = make_page(finished[task], tmp_path)
    assert re.findall(r'<section id="([\w-]+)">', page) == SECTIONS
    assert [words for words in re.findall(r'class="missing">(.*?)</p>', page) if "sereno query" not in words] == []
    assert "The best baseline by it is" in page
    assert "parameters with the 4 bands" in page
    assert make_page(finished[task], tmp_path) == page


@pytest.mark.parametrize(
    ("task", "step"),
    [
        *(("spatiotemporal-fusion", step) for step in ("query", "align", "mask", "pack", "evaluate", "predict")),
        ("pansharpening", "train"),
        ("snapshot-reconstruction", "align"),
    ],
)
def test_a_missing_step_leaves_a_page_that_names_it(finished: dict[str, Path], tmp_path: Path, task: str, step: str) -> None:
    shutil.copytree(finished[task], tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / step)
    page = make_page(tmp_path / "results", tmp_path)
    assert re.findall(r'<section id="([\w-]+)">', page) == SECTIONS
    if step != "mask":
        assert f"run <code>sereno {step}</code>" in page


def test_sharpened_patches_are_shown_at_both_scales_and_judged_at_the_reduced_one(finished: dict[str, Path]) -> None:
    reduced, full = list_titles(read(finished["pansharpening"]))[:2]
    assert reduced[:2] == ["multispectral, made coarser", "sharp, made coarser"]
    assert reduced[-2:] == [f"error of {reduced[2]}", "error of mine (sfiin)"]
    assert "truth" in reduced
    assert full[:2] == ["multispectral, as taken", "sharp, as taken"]
    assert {"bicubic", "GSA", "mine (sfiin)"} <= {*reduced} & {*full}
    assert not [title for title in full if "error" in title or "truth" in title]


def test_weights_that_are_not_those_that_were_scored_answer_nothing(finished: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(finished["pansharpening"], tmp_path / "results")
    path = tmp_path / "results/evaluate/mine/summary.json"
    summary = json.loads(path.read_text())
    summary["checkpoint"]["weights_sha256"] = 64 * "0"
    write_json(path, summary)
    blocks = describe_patches(read(tmp_path / "results"))
    assert any(isinstance(block, Text) and "holds other weights than those that were scored" in block.words for block in blocks)
    reduced, full = list_titles(read(tmp_path / "results"))[:2]
    assert "mine (sfiin)" not in reduced
    assert "mine (sfiin)" in full, "that answer was stored"


def test_fused_patches_show_three_dates_twice_and_where_land_changed(finished: dict[str, Path]) -> None:
    blocks = describe_patches(read(finished["spatiotemporal-fusion"]))
    given, made = [block for block in blocks if isinstance(block, Shots)][:2]
    fine, coarse = given.shots[:3], given.shots[4:]
    assert [shot.title for shot in fine] == ["fine, first date", "fine, middle date: the truth", "fine, last date"]
    assert [shot.title for shot in coarse] == ["coarse, first date", "coarse, middle date", "coarse, last date"]
    arrays = read_examples(read(finished["spatiotemporal-fusion"]).runs[0])
    dates = arrays["fine"][0] / 10_000
    changed = np.abs(dates[1] - (dates[0] + dates[2]) / 2).mean(axis=0) > 0.02
    assert given.shots[3].note == f"{100 * changed.mean():.1f} %"
    assert {"line in time", "STARFM-like", "mine (stfnet)", "truth", "error of mine (stfnet)"} <= {shot.title for shot in made.shots}


def test_days_of_the_dates_are_those_of_the_lock(finished: dict[str, Path]) -> None:
    results = read(finished["spatiotemporal-fusion"])
    lock = results.locks["west"]
    renamed = lock.model_copy(update={"groups": (lock.groups[0].model_copy(update={"id": "p"}),)})  # the patches are of a group p
    given = next(block for block in describe_patches(replace(results, locks={"west": renamed})) if isinstance(block, Shots))
    assert [shot.note for shot in given.shots[:3]] == ["2021-06-13", "2021-06-18", "2021-06-23"]


def test_errors_are_those_of_the_stored_answers(finished: dict[str, Path]) -> None:
    results = read(finished["snapshot-reconstruction"])
    arrays = read_examples(results.runs[0])
    shown = next(block for block in describe_patches(results) if isinstance(block, Shots))
    for name, key in (("mine (s2snapshot)", "prediction"),):
        error = np.abs(arrays[key][0].astype(float) - arrays["cube"][0]).mean() / 10_000
        assert next(shot.note for shot in shown.shots if shot.title == f"error of {name}") == f"mean {error:.4f}"


def test_snapshots_come_with_spectra(finished: dict[str, Path]) -> None:
    pictures, spectra = list_titles(read(finished["snapshot-reconstruction"]))[:2]
    assert pictures[0] == "picture"
    assert {"initial estimate", "GAP-TV", "mine (s2snapshot)", "truth"} <= {*pictures}
    assert spectra == ["spectra"]


def add_run(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """Train and evaluate another run of the snapshots."""
    dataset, checkpoint = folder / "pack/dataset.json", folder / "train" / name / "checkpoint.safetensors"
    network = {"name": "s2snapshot", **SMALL, **settings.pop("network", {})}
    train_network(dataset, checkpoint, TrainSettings.model_validate({**QUICK, "network": network, **settings}))
    evaluate_checkpoint(dataset, checkpoint, folder / "evaluate" / name / "scores.csv", EvaluateSettings(device="cpu", examples=2))


def test_a_run_with_another_camera_or_estimate_is_shown_with_its_own(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(finished["snapshot-reconstruction"], folder)
    add_run(folder, "camera", {"aperture": {"shift_px": 1}})
    add_run(folder, "base", {"network": {"base": "first"}})
    add_run(folder, "same", {"seed": 1})
    results = read_results(folder, ("mine", "camera", "base", "same"))
    titles = list_titles(results)[0]
    whose = "(of camera (s2snapshot))"
    assert titles[:2] == ["picture", f"picture {whose}"]
    assert titles[2:8] == [
        "GAP-TV", "initial estimate", f"GAP-TV {whose}", f"initial estimate {whose}", "initial estimate (of base (s2snapshot))",
        "mine (s2snapshot)",
    ]  # fmt: skip
    assert not [block.words for block in describe_patches(results) if isinstance(block, Text) and block.tone == "missing"]
    assert titles[8:11] == [f"{name} (s2snapshot)" for name in ("camera", "base", "same")]


def test_a_baseline_that_is_no_longer_what_was_scored_is_said_and_not_shown(finished: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(finished["snapshot-reconstruction"], tmp_path / "results")
    path = tmp_path / "results/evaluate/mine/examples.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["scores"][:, arrays["methods"].tolist().index("gap-tv")] += 0.5
    np.savez(path, **arrays)
    results = read(tmp_path / "results")
    assert "GAP-TV" not in list_titles(results)[0]
    assert "initial estimate" in list_titles(results)[0], "that answer was stored"
    assert "GAP-TV: made again it is not what was scored" in " ".join(b.words for b in describe_patches(results) if isinstance(b, Text))


def test_pixels_whose_spectra_differ_most_are_chosen() -> None:
    cube = np.full((3, 8, 8), 100)
    cube[:, 2, 3], cube[:, 6, 6] = (900, 100, 100), (100, 800, 100)
    cube[:, 0, 0] = 5000
    trusted = np.ones((8, 8), bool)
    trusted[0, 0] = False
    chosen = choose_pixels(cube, trusted, 3)
    assert set(chosen[1:]) == {(2, 3), (6, 6)}
    assert cube[:, *chosen[0]].tolist() == [100, 100, 100]
    assert choose_pixels(cube, ~np.ones((8, 8), bool), 3) == []


def test_examples_of_an_older_version_are_said_to_be(finished: dict[str, Path], tmp_path: Path) -> None:
    for task in WRITERS:
        shutil.copytree(finished[task], tmp_path / task)
        path = tmp_path / task / "evaluate/mine/summary.json"
        summary = json.loads(path.read_text())
        summary["checkpoint"]["settings"]["gone"] = 1
        write_json(path, summary)
        (said,) = describe_patches(read(tmp_path / task))
        assert isinstance(said, Text)
        assert "of another version: run `sereno evaluate` again" in said.words


def keep_none(folder: Path) -> None:
    (folder / "evaluate/mine/examples.npz").unlink()


def empty(folder: Path) -> None:
    path = folder / "evaluate/mine/examples.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **(arrays | {"id": np.array([], dtype=np.str_)}))


@pytest.mark.parametrize("edit", [keep_none, empty])
def test_no_example_patch_is_no_fault(finished: dict[str, Path], tmp_path: Path, edit: Callable[[Path], None]) -> None:
    shutil.copytree(finished["spatiotemporal-fusion"], tmp_path / "results")
    edit(tmp_path / "results")
    (said,) = describe_patches(read(tmp_path / "results"))
    assert isinstance(said, Text)
    assert "set `evaluate.examples` above 0" in said.words


def test_runs_of_different_networks_stand_side_by_side(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(finished["spatiotemporal-fusion"], folder)
    for step in ("train", "evaluate", "predict"):
        shutil.copytree(folder / step / "mine", folder / step / "other")
    path = folder / "evaluate/other/summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    summary["checkpoint"]["settings"]["network"] = {"name": "stfgan", "width": 8}
    write_json(path, summary)
    results = read_results(folder, ("mine", "other"))
    made = list_titles(results)[1]
    assert made.index("other (stfgan)") == made.index("mine (stfnet)") + 1
    assert "error of other (stfgan)" in made
    whole = next(block for block in describe_images(results, picture_px=64) if isinstance(block, Shots))
    assert {"made by mine (stfnet)", "made by other (stfgan)"} <= {shot.title for shot in whole.shots}
    write_report(folder, tmp_path / "index.html", ReportSettings())
    page = (tmp_path / "index.html").read_text()
    assert "mine (stfnet) minus other (stfgan)" in page


def test_every_task_shows_baselines_that_it_has() -> None:
    assert COMPOSERS.keys() == SHOWN.keys() == TASKS.keys() - {"cloud-removal"}
    for task, methods in SHOWN.items():
        assert {*methods} <= {*TASKS[task].scoring.baselines}


def test_each_patch_is_called_by_its_name(finished: dict[str, Path]) -> None:
    headings = [block.words for block in describe_patches(read(finished["pansharpening"])) if isinstance(block, Heading)]
    assert headings == ["west/p/test0", "west/p/test1"]
