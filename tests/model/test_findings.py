"""Laws of the report of the other tasks: no baseline that wins is hidden, and a table holds what its protocol has."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from task_samples import write_fusion, write_sharpening, write_snapshot

from sereno.model.config import EvaluateSettings, ReportSettings, TrainSettings
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.findings import VIEWS, describe_patches, describe_tables, describe_verdicts
from sereno.model.page import Heading, Shots, Table, Text
from sereno.model.report import write_report
from sereno.model.results import Results, read_results
from sereno.model.train import train_network
from sereno.pipeline.samples import SAMPLES
from sereno.pipeline.store import write_json

COUNTS = {"train": 2, "val": 1, "test": 2}
QUICK: dict[str, Any] = {"steps": 1, "batch_size": 1, "crop_px": 16, "device": "cpu"}
SMALL = {"width": 8, "head_dim": 4, "stages": 1, "blocks": 1, "window_px": 4, "base": "open"}
WRITERS: dict[str, Any] = {
    "pansharpening": (partial(write_sharpening, size_px=128), {"name": "sfiin", "width": 4, "blocks": 1}),
    "spatiotemporal-fusion": (write_fusion, {"name": "stfnet", "width": 4}),
    "snapshot-reconstruction": (write_snapshot, {"name": "s2snapshot", **SMALL}),
}


def make_results(folder: Path, task: str) -> Path:
    """A folder of results: a dataset, a run of one step, its scores."""
    write, network = WRITERS[task]
    (folder / "pack").mkdir(parents=True)
    dataset = write(folder / "pack", COUNTS)
    checkpoint = folder / "train/mine/checkpoint.safetensors"
    train_network(dataset, checkpoint, TrainSettings.model_validate({**QUICK, "network": network}))
    evaluate_checkpoint(dataset, checkpoint, folder / "evaluate/mine/scores.csv", EvaluateSettings(device="cpu", examples=2))
    return folder


@pytest.fixture(scope="module")
def sharpened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("results"), "pansharpening")


def read(folder: Path) -> Results:
    return read_results(folder, ("mine",))


@pytest.mark.parametrize(("better", "tone"), [(True, "good"), (False, "bad")])
def test_the_verdict_is_against_the_best_baseline_whoever_wins(sharpened: Path, tmp_path: Path, better: bool, tone: str) -> None:
    summary = json.loads((sharpened / "evaluate/mine/summary.json").read_text())
    for method, value in {"bicubic": 20.0, "brovey": 21.0, "gsa": 23.0, "network": 25.0 if better else 22.0}.items():
        summary["scores"][method]["reduced"]["psnr"]["mean"] = value
    side = 1.0 if better else -1.0
    for baseline in ("bicubic", "brovey", "gsa"):
        sides = {"mean": 2 * side, "low": min(side, 3 * side), "high": max(side, 3 * side), "n": 2, "n_groups": 2}
        summary["network_minus"][baseline]["psnr"]["by_block"] = sides
    write_json(tmp_path / "evaluate/mine/summary.json", summary)
    text, table = describe_verdicts(read(tmp_path))
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    assert "the best baseline (gsa) 23.00" in text.words
    assert text.tone == tone
    assert len(table.rows) == 3


def test_each_protocol_has_a_table_of_the_metrics_it_has(sharpened: Path) -> None:
    blocks = describe_tables(read(sharpened))
    tables = [block for block in blocks if isinstance(block, Table)]
    heads = [" ".join(table.head) for table in tables]
    assert len(tables) == 2
    (reduced,) = [head for head in heads if "PSNR" in head]
    (full,) = [head for head in heads if "QNR" in head]
    assert "Q2n" in reduced
    assert "D_λ" not in reduced
    assert "SAM" not in full
    assert all(len(table.rows) == 4 for table in tables)


@pytest.mark.parametrize("task", WRITERS)
def test_a_page_of_every_task_is_written_with_the_answer_first(task: str, tmp_path: Path) -> None:
    results = make_results(tmp_path, task)
    blocks = describe_patches(read(results))
    assert [block.words for block in blocks if isinstance(block, Heading)] == ["west/p/test0", "west/p/test1"]
    for block in blocks:
        if isinstance(block, Shots):
            assert [shot.title for shot in block.shots] == ["mine", *(view.label for view in VIEWS[task])]
    facts = {"counts": COUNTS, "leakage": {"min_distance_m": None}, "areas": {}, "size_px": 32, "resolution_m": 10.0, "bands": ["B1"]}
    manifest = results / "pack/dataset.json"
    described = json.loads(manifest.read_text())
    described["summary"] |= facts
    write_json(manifest, described)
    write_report(results, tmp_path / "index.html", ReportSettings(), runs=("mine",))
    page = (tmp_path / "index.html").read_text()
    assert "the best baseline" in page
    assert "Scores" in page


def test_what_is_shown_is_stored_or_an_answer() -> None:
    for task, views in VIEWS.items():
        stored = {spec.name: spec for spec in SAMPLES[task]}  # type: ignore[index]
        for view in views:
            assert (view.date is not None) == (view.array in stored and "date" in stored[view.array].dims)


def test_without_scores_the_page_says_what_to_run(tmp_path: Path) -> None:
    for describe in (describe_verdicts, describe_tables, describe_patches):
        (block,) = describe(read_results(tmp_path, ()))
        assert isinstance(block, Text)
        assert "run `sereno evaluate`" in block.words
