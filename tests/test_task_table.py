"""Laws of the table of `benchmarks/tasks.py`: what is run, by which settings, and when a network counts as ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tasks

from sereno.model.config import StfganSettings, StfnetSettings
from sereno.model.scoring import FUSING
from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.store import write_manifest


def write_dataset(folder: Path) -> Path:
    """A manifest; nothing more is looked at when a table is planned."""
    (folder / "dataset.zarr").mkdir(parents=True)
    write_manifest(folder / "dataset.json", kind="dataset", summary={"task": "spatiotemporal-fusion"})
    return folder / "dataset.json"


def make_run(rmse: float, seed: int = 0) -> dict[str, Any]:
    """What is known of a run whose RMSE of changed land is this, beside a line in time of 0.03 and another baseline of 0.02."""
    methods = {"network": rmse, "linear": 0.03, "change": 0.02}
    means = {"rmse": {"mean": 0.0}, "psnr": {"mean": None}, "ssim": {"mean": 0.5}}
    scores = {
        name: {"all": means | {"rmse": {"mean": value / 2}}, "changed": means | {"rmse": {"mean": value}}}
        for name, value in methods.items()
    }
    summary = {"scores": scores, "regions": FUSING.regions, "patches": 25, "split": "test", "blocks": 4}
    return {"summary": summary, "seed": seed, "steps": 600, "parameters": 92_716, "cpu_s": 100.0 + seed}


def compare(*rmse: float) -> list[str]:
    runs = [make_run(value, seed) for seed, value in enumerate(rmse)]
    return tasks._compare("stfnet", runs, ("changed", "rmse"))


def test_the_best_baseline_is_the_one_that_counts_and_less_error_is_better() -> None:
    network, metric, best, mean, seeds, spread, verdict = compare(0.014, 0.015, 0.016)
    assert (network, metric, best) == ("stfnet", "rmse", "change")
    assert (mean, seeds, spread, verdict) == ("0.00500", "0.00400 .. 0.00600", "0.00200", "yes")


@pytest.mark.parametrize(
    ("rmse", "verdict"),
    [
        ((0.014, 0.018), "no"),
        ((0.021, 0.0211), "no"),
        ((0.014,), "one seed says nothing"),
        ((0.0195, 0.0199), "no"),
        ((0.0190, 0.0194), "yes"),
    ],
)
def test_a_network_is_ahead_only_where_its_worst_seed_is_by_more_than_the_seeds_differ(rmse: tuple[float, ...], verdict: str) -> None:
    assert compare(*rmse)[-1] == verdict


def test_the_table_names_networks_and_baselines_and_leaves_out_what_nothing_scores() -> None:
    runs = [make_run(0.014), make_run(0.016, 1)]
    text = tasks.write_table(tasks.Table("spatiotemporal-fusion", "spatiotemporal-fusion", {"stfnet": runs, "stfgan": []}))
    lines = text.splitlines()
    assert "25 test patches of 4 ground blocks" in lines[2]
    assert lines[4] == "|  | rmse, changed | ssim, changed | rmse, all | seeds | parameters | steps | core-s |"
    assert lines[6] == "| stfnet | 0.01500 | 0.5000 | 0.00750 | 2 | 92,716 | 600 | 100 |"
    assert lines[7].startswith("| linear | 0.03000 |")
    assert "stfgan" not in text
    assert "nan" not in text.lower()


def test_seeds_of_all_networks_come_in_turn_with_the_settings_of_the_recipe(tmp_path: Path) -> None:
    dataset = {"spatiotemporal-fusion": write_dataset(tmp_path)}
    jobs = tasks.plan_jobs(dataset, tmp_path / "out", 2)
    networks = list(tasks.NETWORKS["spatiotemporal-fusion"])
    assert [job.variant for job in jobs] == networks * 2
    assert [job.settings.seed for job in jobs] == [0] * len(networks) + [1] * len(networks)
    recipe = tasks.read_recipe("spatiotemporal-fusion").train
    first = jobs[0].settings
    assert first == recipe.model_copy(update={"pictures": 0})
    kinds = {job.variant: job.settings.network for job in jobs}
    span, gan = kinds["stfnet-span"], kinds["stfgan"]
    assert isinstance(span, StfnetSettings)
    assert isinstance(gan, StfganSettings)
    assert (span.learning, gan.width) == ("span", 16)
    assert [job.variant for job in tasks.plan_jobs(dataset, tmp_path / "out", 1, ["stfgan"])] == ["stfgan"]


def test_a_run_at_work_is_ended_where_the_table_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tasks.plan_jobs({"pansharpening": write_dataset(tmp_path)}, tmp_path / "out", 1, ["sfiin"])
    with tasks.open_lock(tmp_path / "out") as lock:
        bench = tasks.Bench(1, lock, keep=False)
        asleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        bench.processes.add(asleep)

        def interrupt(*_: object) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(tasks, "run_job", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tasks.run_jobs(jobs, tmp_path / "out", bench)
    assert asleep.poll() is not None


def test_every_recipe_of_the_table_has_networks_of_its_task() -> None:
    for name in tasks.NETWORKS:
        model = tasks.read_recipe(name)
        assert all(model.run_settings(run) for run in model.runs)


def test_unknown_names_and_missing_datasets_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path)
    with pytest.raises(ConfigError, match="no table has sharpening: recipes are pansharpening, "):
        tasks.plan_jobs({"sharpening": dataset}, tmp_path, 1)
    with pytest.raises(ConfigError, match=r"no table has unet: .* networks s2snapshot, sfiin"):
        tasks.plan_jobs({"pansharpening": dataset}, tmp_path, 1, ["unet"])
    with pytest.raises(ConfigError, match=r"expected NAME=DATASET\.json, seen dataset.json"):
        tasks.find_datasets(["dataset.json"])
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    with pytest.raises(MissingError, match="no recipe has packed a dataset"):
        tasks.find_datasets([])
