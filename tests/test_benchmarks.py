"""Laws of the table of `benchmarks/quality.py`: what is run, in which order, and what the intervals and verdicts mean."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quality
import quality_plan as plans
import quality_table as table
import scipy.stats

from sereno.pipeline.errors import ConfigError, MissingError, StoreError
from sereno.pipeline.store import write_manifest


def write_dataset(folder: Path, name: str = "dataset", *, series: bool = False) -> Path:
    """A manifest; nothing more is looked at when a table is planned."""
    (folder / f"{name}.zarr").mkdir(parents=True)
    channels = {"channels": {"around": ["B02"]}} if series else {}
    write_manifest(folder / f"{name}.json", kind="dataset", summary={"bands": ["B02"], **channels})
    return folder / f"{name}.json"


def plan(tmp_path: Path, *words: str) -> Any:
    """The plan of a command line whose dataset and output come first."""
    dataset = tmp_path / "dataset.json"
    if not dataset.exists():
        write_dataset(tmp_path)
    return plans.make_plan(parse(str(dataset), str(tmp_path / "out"), *words))


def parse(*words: str) -> argparse.Namespace:
    before, sys.argv = sys.argv, ["quality.py", *words]
    try:
        arguments: argparse.Namespace = quality.parse_arguments()
    finally:
        sys.argv = before
    return arguments


def means(level: float) -> Any:
    """What a run scores that has `level` in every column."""
    return dict.fromkeys(table.COLUMNS, level)


def row(name: str, *levels: float, first_seed: int = 0) -> Any:
    runs = {seed: means(level) for seed, level in enumerate(levels, first_seed)}
    return table.Row(name, runs, None, {"parameters": 1_500_000, "samples": 3200, "cpu_s": [60.0], "code": ["x"]})


def compare(ours: Any, other: Any) -> Any:
    """Their difference in PSNR on cloudy pixels."""
    return table.compare_rows(ours, other)["cloudy", "psnr"]


def write_summary(folder: Path, **levels: float | None) -> None:
    """`summary.json` as `sereno evaluate` writes it, every score of a method being its level."""
    scores = {
        method: {region: {metric: {"mean": level} for metric in table.METRICS} for region in ("all", "cloudy", "clear")}
        for method, level in levels.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"scores": scores}))


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(25, 0.4, 5)
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    interval = table.to_interval(values.tolist())
    assert (interval.mean, interval.mean - interval.half, interval.mean + interval.half) == pytest.approx((values.mean(), low, high))
    assert interval.n == 5


def test_the_interval_covers_the_truth_19_times_out_of_20() -> None:
    generator = np.random.default_rng(1)
    intervals = [table.to_interval(generator.normal(0, 1, 3).tolist()) for _ in range(2000)]
    assert sum(abs(interval.mean) < interval.half for interval in intervals) / 2000 == pytest.approx(0.95, abs=0.015)


def test_what_all_seeds_share_cancels_in_a_paired_difference() -> None:
    psnr = compare(row("ours", 20.0, 25.0, 30.0), row("theirs", 19.5, 24.4, 29.6))
    assert psnr.mean == pytest.approx(0.5)
    assert psnr.half < 0.3  # although the seeds are five apart
    assert table.judge(psnr) == "ahead"
    assert table.judge(compare(row("theirs", 19.5, 24.4, 29.6), row("ours", 20.0, 25.0, 30.0))) == "behind"


def test_only_seeds_of_both_are_compared() -> None:
    psnr = compare(row("ours", 20.0, 21.0, 22.0), row("theirs", 20.0, 21.5, first_seed=1))
    assert psnr.n == 2
    assert psnr.mean == pytest.approx(0.75)
    assert table.judge(compare(row("ours", 20.0), row("theirs", 20.0, first_seed=7))) == "no seed in common"


def test_neither_an_interval_that_holds_zero_nor_one_seed_resolves_anything() -> None:
    assert table.judge(compare(row("ours", 20.0, 21.0, 19.0), row("theirs", 19.9, 21.2, 19.0))) == "not resolved"
    assert table.judge(compare(row("ours", 30.0), row("theirs", 20.0))) == "one seed says nothing"
    assert table.judge(compare(row("ours", math.nan), row("theirs", 20.0))) == "not known"


def test_what_needs_no_training_is_compared_with_every_seed_where_it_is_known() -> None:
    floor = table.to_fixed("nearest clear date", {"psnr": 27.5, "ssim": 0.9})
    assert compare(row("afsst-s", 24.0, 26.0), floor) == pytest.approx((-2.5, 12.706, 2), abs=1e-3)
    assert math.isnan(floor.fixed["all", "psnr"])


def test_the_written_table_names_every_row_and_has_no_nan() -> None:
    networks = [row("afsst-s", 24.0, 24.5), row("unet", 23.0, 25.5), row("concat")]
    rows = [*networks, table.Row("copy", {}, means(10.0), {}), table.to_fixed("floor", {"psnr": 22.0})]
    text = table.write_table("demo", rows, "afsst-s")
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines[:6]} == {len(lines[0])}
    assert {len(line) for line in lines[6:]} == {len(lines[6])}
    assert "nan" not in text
    assert [line[1].strip() for line in lines[2:6]] == ["afsst-s", "unet", "copy", "floor"]  # concat has no run yet
    assert [line[1].strip() for line in lines[8:]] == ["unet", "copy", "floor"]
    assert "24.25 ± 3.18" in text  # 12.706 sqrt(0.125) / sqrt(2): two seeds say little
    json.dumps(table.to_json(rows, "afsst-s"), allow_nan=False)


def test_means_are_read_as_evaluate_writes_them(tmp_path: Path) -> None:
    write_summary(tmp_path, network=20.0, copy=None)
    read = table.read_means(tmp_path / "summary.json")
    assert read["network"] == means(20.0)
    assert all(math.isnan(value) for value in read["copy"].values())


def test_datasets_are_compared_only_where_copying_scores_the_same() -> None:
    real, zeroed = ([row("afsst-s", *levels), table.Row("copy", {}, means(9.5), {})] for levels in ((25.0, 26.0), (22.0, 23.5)))
    [(name, difference)] = table.compare_datasets(real, zeroed)
    assert (name, difference["cloudy", "psnr"].mean) == ("afsst-s", pytest.approx(2.75))
    assert table.compare_datasets(real, [zeroed[0], table.Row("copy", {}, means(9.6), {})]) == []


def test_the_first_seed_of_every_network_comes_before_the_second_of_any(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "--only", "afsst-s,unet", "--seeds", "2").jobs
    assert [(job.variant, job.settings.seed) for job in jobs] == [("afsst-s", 0), ("unet", 0), ("afsst-s", 1), ("unet", 1)]
    assert len({job.folder for job in jobs}) == 4


def test_all_networks_see_as_many_samples_in_tokens_of_one_size(tmp_path: Path) -> None:
    write_dataset(tmp_path, series=True)
    jobs = plan(tmp_path, "--form", "full", "--seeds", "1", "--stem-px", "2", "--steps", "90", "--settings", '{"lr": 0.002}').jobs
    assert [job.variant for job in jobs] == list(plans.VARIANTS)
    assert {(job.settings.steps, job.settings.batch_size, job.settings.crop_px, job.settings.lr) for job in jobs} == {(90, 16, 128, 0.002)}
    assert {job.settings.network.stem_px for job in jobs} == {2}
    without = {job.variant: job.settings for job in jobs}
    assert not without["without-sar"].network.use_sar
    assert without["no-weighting"].loss.cloud_emphasis == 0
    assert without["learned-weighting"].loss.weighting == "learned"
    assert without["sfi"].network.fusion == "sfi"
    assert (without["frequency-loss"].loss.amplitude, without["frequency-loss"].loss.phase) == (0.1, 0.1)
    assert [name for name, settings in without.items() if settings.adversarial] == ["adversarial"]
    assert [name for name, settings in without.items() if settings.network.base == "dates"] == ["dates", "temporal"]
    assert [name for name, settings in without.items() if settings.loss.temporal] == ["temporal"]


def test_networks_of_series_are_skipped_with_the_reason_where_there_is_no_series(tmp_path: Path) -> None:
    (plain, series), chosen = (
        (write_dataset(tmp_path / name, series=name == "series") for name in ("plain", "series")),
        "afsst-s,dates,temporal",
    )
    words = (f"plain={plain}", f"series={series}", str(tmp_path / "out"), "--only", chosen, "--seeds", "1")
    made = plans.make_plan(parse(*words))
    assert [job.name for job in made.jobs] == [
        "plain/afsst-s/seed-0", "series/afsst-s/seed-0", "series/dates/seed-0", "series/temporal/seed-0",
    ]  # fmt: skip
    assert [line.split(":")[0] for line in made.skipped] == ["dates is skipped on plain", "temporal is skipped on plain"]
    for text in (plans.describe_plan(made), quality.describe_table(made, {}, {})):
        assert all(line in text for line in made.skipped)
        assert "`pipeline.query.series: true`" in text
    scoring = plans.make_plan(parse(str(series), str(tmp_path / "out"), "--score", f"plain={plain}", "--only", chosen, "--seeds", "1"))
    assert [len(job.scored) for job in scoring.jobs] == [1, 0, 0]
    assert plans.make_plan(parse(str(series), str(tmp_path / "out"), "--only", chosen)).skipped == ()


def test_the_small_form_fits_into_ninety_minutes_on_two_cores(tmp_path: Path) -> None:
    seconds = sum(plans.guess_core_s(job.settings) for job in plan(tmp_path).jobs)
    assert seconds / 2 / 60 <= 90


def test_a_peer_is_read_from_its_folder_and_also_trained_with_its_authors_rate(tmp_path: Path) -> None:
    (tmp_path / "TCRNet").mkdir()
    chosen = ("--peer", f"tcrnet={tmp_path / 'TCRNet'}", "--form", "full", "--seeds", "1", "--only", "tcrnet,tcrnet-own-rate")
    ours, theirs = (job.settings for job in plan(tmp_path, *chosen).jobs)
    assert ours.network.source == "benchmarks/peers.py:make_tcrnet"
    assert ours.network.options == {"folder": str(tmp_path / "TCRNet")}
    assert (ours.lr, theirs.lr) == (1e-3, 1e-4)
    assert theirs.network == ours.network


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no network is called afsst-x"):
        plan(tmp_path, "--only", "afsst-x")
    with pytest.raises(ConfigError, match="expected NAME=FOLDER"):
        plan(tmp_path, "--peer", "nobody=/tmp")
    with pytest.raises(MissingError, match="is no folder"):
        plan(tmp_path, "--peer", f"tcrnet={tmp_path / 'absent'}")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        plan(tmp_path, "--settings", '{"stepps": 3}')
    with pytest.raises(ConfigError, match="no dataset is called 'other'"):
        plan(tmp_path, "--floors", "other=floors.json")


def test_several_datasets_have_a_folder_each_and_only_the_first_is_scored_elsewhere(tmp_path: Path) -> None:
    real, zeroed, shuffled = (write_dataset(tmp_path / name) for name in ("real", "zeroed", "shuffled"))
    words = f"real={real} zeroed={zeroed} {tmp_path}/out --score shuffled={shuffled} --only afsst-s --seeds 1".split()
    first, second = plans.make_plan(parse(*words)).jobs
    assert first.folder == tmp_path / "out/real/afsst-s/seed-0"
    assert [first.scores(dataset) for dataset in (first.dataset, *first.scored)] == [first.folder, first.folder / "on-shuffled"]
    assert second.scored == ()
    with pytest.raises(ConfigError, match="same name"):
        plans.make_plan(parse(str(real), str(zeroed), str(tmp_path / "out")))


def test_floors_beside_a_dataset_are_taken(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "floors.json").write_text('{"nearest": {"psnr": 28.0}}')
    assert plan(tmp_path).floors == {"dataset": {"nearest": {"psnr": 28.0}}}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose commands only note that they were called, and score."""
    monkeypatch.setattr(quality, "_ask", lambda program, *_: "1 1" if "fingerprint" in program else "1500000")
    job = plan(tmp_path, "--only", "afsst-s", "--seeds", "1").jobs[0]

    def call(self: Any, command: list[str], log: Any) -> float:
        self.called.append(command[3])
        (job.folder / "state.pt").touch()
        if command[3] == "evaluate":
            write_summary(Path(command[6]).parent, network=25.0, copy=10.0)
        return 60.0

    monkeypatch.setattr(quality.Bench, "call", call)
    return job


def run(job: Any, *, keep: bool = False) -> list[str]:
    """Verbs that are called when the run is made."""
    with (job.output.parent / "lock").open("a") as lock:
        bench = quality.Bench(1, lock, keep=keep)
    bench.called = []
    assert quality.run_job(job, bench) == bool(bench.called)
    return list(bench.called)


def test_a_finished_run_is_good_for_its_settings_data_and_code_alone(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(job) == ["train", "evaluate"]
    assert run(job) == []
    assert not (job.folder / "last.safetensors").exists()
    elsewhere = job.dataset._replace(name="elsewhere")
    assert run(job._replace(scored=(elsewhere,))) == ["evaluate"]
    assert run(job._replace(dataset=job.dataset._replace(sha256="other")), keep=True) == ["train", "evaluate"]
    assert run(job) == ["train", "evaluate"]
    changed = job._replace(settings=job.settings.model_copy(update={"steps": 1}))
    assert not quality.is_of(changed, quality.read_record(job))
    for code, wanted in (("1 2", ["evaluate"]), ("2 2", ["train", "evaluate"])):
        monkeypatch.setattr(quality, "_ask", lambda program, *_, code=code: code if "fingerprint" in program else "1")
        assert run(job, keep=True) == []
        assert run(job) == wanted
    (job.folder / "summary.json").unlink()
    assert run(job) == ["evaluate"]


def test_the_table_holds_what_is_finished_and_says_what_failed(job: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(tmp_path, "--only", "afsst-s", "--seeds", "1")
    with (tmp_path / "lock").open("a") as lock:
        bench = quality.Bench(1, lock, keep=False)
    bench.called = []
    assert quality.run_plan(made, bench) == {}
    assert "[1/1] dataset/afsst-s/seed-0: 25.00 dB on cloudy pixels" in capsys.readouterr().out
    quality.write_tables(made, bench, {"dataset/unet/seed-0": "no memory"})
    text = (made.output / "table.md").read_text()
    assert re.search(r"\| afsst-s +\| 1.50 M +\| 3,200 +\| 1 +\| 1.0 +\| 25.00 ", text)
    assert re.search(r"\| copy +\| \+15.00 .*one seed says nothing", text)
    assert "- dataset/unet/seed-0 failed: no memory" in text
    assert list(json.loads((made.output / "table.json").read_text())["runs"]) == ["dataset/afsst-s/seed-0"]


def test_one_table_at_a_time_is_made_in_a_folder(tmp_path: Path) -> None:
    with quality.open_lock(tmp_path), pytest.raises(StoreError, match="another table is being made there"):
        quality.open_lock(tmp_path)
    quality.open_lock(tmp_path).close()


def test_a_stopped_run_leaves_what_it_needs_to_go_on(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as lock, (tmp_path / "log.txt").open("ab") as log:
        bench = quality.Bench(1, lock, keep=False)
        threading.Timer(0.5, bench.stop).start()
        started = time.monotonic()
        with pytest.raises(quality.RunError, match="stopped"):
            bench.call([sys.executable, "-c", "import time; time.sleep(60)"], log)
        assert time.monotonic() - started < 30
        bench.stopping.clear()
        with pytest.raises(quality.RunError, match=r"ended with 3: the last word \(all of it in"):
            bench.call([sys.executable, "-c", "import sys; print('the last word'); sys.exit(3)"], log)
