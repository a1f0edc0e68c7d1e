"""Laws of the table of `benchmarks/quality.py`: what is run, in which order, and what the intervals and verdicts mean."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.store import write_manifest

ROOT = Path(__file__).parent.parent
BLOCKS = ("a", "a", "b", "c")


def import_benchmark(name: str) -> ModuleType:
    """A script of `benchmarks/`, found as when it is run."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


quality, plans, table = (import_benchmark(name) for name in ("quality", "quality_plan", "quality_table"))


def write_dataset(folder: Path, name: str = "dataset") -> Path:
    """A manifest; nothing more is looked at when a table is planned."""
    (folder / f"{name}.zarr").mkdir(parents=True)
    write_manifest(folder / f"{name}.json", kind="dataset", summary={"bands": ["B02"]})
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


def scores(level: float, *, patches: int = 4, psnr: tuple[float, ...] | None = None) -> Any:
    """Scores of a run whose network has the same PSNR everywhere, or `psnr` by patch."""
    values = {}
    for method, extra in {"network": level, "copy": 1.0, "mean": 2.0, "fill": 3.0}.items():
        for region in ("all", "cloudy", "clear"):
            for metric in table.METRICS:
                values[method, region, metric] = (extra,) * patches
    if psnr:
        values["network", "cloudy", "psnr"] = psnr
    return table.Scores(tuple(f"p{n}" for n in range(patches)), BLOCKS[:patches], values)


def row(name: str, *levels: float, first_seed: int = 0) -> Any:
    runs = {seed: scores(level) for seed, level in enumerate(levels, first_seed)}
    return table.Row(name, runs, None, {"parameters": 1_500_000, "samples": 3200, "cpu_s": [60.0], "wall_s": [30.0], "code": ["x"]})


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(25, 0.4, 5)
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    interval = table.to_interval(values.tolist())
    assert (interval.mean, interval.low, interval.high) == pytest.approx((values.mean(), low, high))
    assert interval.n == 5


def test_the_interval_covers_the_truth_19_times_out_of_20() -> None:
    generator = np.random.default_rng(1)
    intervals = [table.to_interval(generator.normal(0, 1, 3).tolist()) for _ in range(2000)]
    assert sum(interval.low < 0 < interval.high for interval in intervals) / 2000 == pytest.approx(0.95, abs=0.015)


def test_what_all_seeds_share_cancels_in_a_paired_difference() -> None:
    difference = table.compare_rows(row("ours", 20.0, 25.0, 30.0), row("theirs", 19.5, 24.4, 29.6))
    psnr = difference.metrics["psnr"]
    assert psnr.mean == pytest.approx(0.5)
    assert psnr.high - psnr.low < 0.6  # although the seeds are five apart
    assert difference.verdict == "ahead"
    assert table.compare_rows(row("theirs", 19.5, 24.4, 29.6), row("ours", 20.0, 25.0, 30.0)).verdict == "behind"


def test_only_seeds_of_both_are_compared() -> None:
    difference = table.compare_rows(row("ours", 20.0, 21.0, 22.0), row("theirs", 20.0, 21.5, first_seed=1))
    assert difference.metrics["psnr"].n == 2
    assert difference.metrics["psnr"].mean == pytest.approx(0.75)
    assert table.compare_rows(row("ours", 20.0), row("theirs", 20.0, first_seed=7)).verdict == "no seed in common"


def test_an_interval_that_holds_zero_resolves_nothing() -> None:
    assert table.compare_rows(row("ours", 20.0, 21.0, 19.0), row("theirs", 19.9, 21.2, 19.0)).verdict == "not resolved"


def test_with_one_seed_ground_blocks_are_drawn_and_the_verdict_says_so() -> None:
    ours = table.Row("ours", {0: scores(0, psnr=(24.0, 26.0, 25.0, 27.0))}, None, {})
    theirs = table.Row("theirs", {0: scores(0, psnr=(22.0, 24.0, 22.0, 23.0))}, None, {})
    difference = table.compare_rows(ours, theirs)
    psnr = difference.metrics["psnr"]
    assert psnr.mean == pytest.approx(2.75)
    assert psnr.low == pytest.approx(2.0, abs=0.05)  # both patches of block a, drawn three times
    assert psnr.high == pytest.approx(4.0, abs=0.05)
    assert difference.verdict == "ahead on this ground, one seed"


def test_baselines_come_from_any_run_and_floors_from_their_file() -> None:
    rows = table.add_baselines([row("afsst-s", 24.0, 26.0)], {"nearest clear date": {"psnr": 27.5, "ssim": 0.9}})
    means = {line.name: line.fixed for line in rows if line.fixed}
    assert list(means) == ["copy", "mean", "fill", "nearest clear date"]
    assert means["fill"]["cloudy", "psnr"] == 3.0
    assert means["nearest clear date"]["cloudy", "psnr"] == 27.5
    assert math.isnan(means["nearest clear date"]["all", "psnr"])
    assert table.compare_rows(rows[0], rows[-1]).metrics["psnr"].mean == pytest.approx(-2.5)


def test_patches_without_a_score_do_not_count() -> None:
    means = scores(0, psnr=(20.0, math.nan, 30.0, math.inf)).means("network")
    assert means["cloudy", "psnr"] == 25.0


def test_the_written_table_names_every_row_and_has_no_nan() -> None:
    rows = table.add_baselines([row("afsst-s", 24.0, 26.0), row("unet", 23.0, 25.5), row("concat")], {"floor": {"psnr": 22.0}})
    text = table.write_table("demo", rows, "afsst-s")
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:8]}) == 1
    assert "nan" not in text
    assert [line[1].strip() for line in lines[2:8]] == ["afsst-s", "unet", "copy", "mean", "fill", "floor"]  # concat has no run yet
    assert "24.25 ± 15.88" in text  # 12.706 sqrt(2) 1.25 / sqrt(2): two seeds say little
    json.dumps(table.to_json(rows, "afsst-s"), allow_nan=False)


def test_scores_are_read_as_evaluate_writes_them(tmp_path: Path) -> None:
    lines = ["id,block,method,region,mae,psnr,ssim,sam_deg"]
    for patch, block, psnr in (("p", "a", 20.0), ("q", "a", math.nan)):
        lines += [f"{patch},{block},{method},{region},0.1,{psnr},0.5,3" for method in ("network", "copy") for region in ("all", "cloudy")]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    read = table.read_scores(tmp_path / "scores.csv")
    assert read.patches == ("p", "q")
    assert read.blocks == ("a", "a")
    assert read.values["network", "cloudy", "psnr"][0] == 20.0
    assert math.isnan(read.values["copy", "all", "psnr"][1])


def test_datasets_are_compared_only_where_the_test_patches_are_the_same() -> None:
    real, zeroed = [row("afsst-s", 25.0, 26.0)], [row("afsst-s", 22.0, 23.5)]
    assert table.compare_datasets(real, zeroed)[0].metrics["psnr"].mean == pytest.approx(2.75)
    other = [table.Row("afsst-s", {0: scores(20.0, patches=3), 1: scores(20.0, patches=3)}, None, {})]
    assert table.compare_datasets(real, other) == []


def test_the_first_seed_of_every_network_comes_before_the_second_of_any(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "--only", "afsst-s,unet", "--seeds", "2").jobs
    assert [(job.variant, job.settings.seed) for job in jobs] == [("afsst-s", 0), ("unet", 0), ("afsst-s", 1), ("unet", 1)]
    assert len({job.folder for job in jobs}) == 4


def test_all_networks_see_as_many_samples_in_tokens_of_one_size(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "--form", "full", "--seeds", "1", "--stem-px", "2", "--steps", "90", "--settings", '{"lr": 0.002}').jobs
    assert [job.variant for job in jobs] == list(plans.VARIANTS)
    assert {(job.settings.steps, job.settings.batch_size, job.settings.crop_px, job.settings.lr) for job in jobs} == {(90, 16, 128, 0.002)}
    assert {job.settings.network.stem_px for job in jobs} == {2}
    without = {job.variant: job.settings for job in jobs}
    assert not without["without-sar"].network.use_sar
    assert without["no-weighting"].loss.cloud_emphasis == 0
    assert without["learned-weighting"].loss.weighting == "learned"


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
    words = (
        f"real={real}",
        f"zeroed={zeroed}",
        str(tmp_path / "out"),
        "--score",
        f"shuffled={shuffled}",
        "--only",
        "afsst-s",
        "--seeds",
        "1",
    )
    first, second = plans.make_plan(parse(*words)).jobs
    assert first.folder == tmp_path / "out/real/afsst-s/seed-0"
    assert [place.relative_to(first.folder).as_posix() for place in map(first.scores, (first.dataset, *first.scored))] == [
        "scores.csv",
        "on-shuffled/scores.csv",
    ]
    assert second.scored == ()
    with pytest.raises(ConfigError, match="same name"):
        plans.make_plan(parse(str(real), str(zeroed), str(tmp_path / "out")))


def test_floors_beside_a_dataset_are_taken(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "floors.json").write_text('{"nearest": {"psnr": 28.0}}')
    assert plan(tmp_path).floors == {"dataset": {"nearest": {"psnr": 28.0}}}


def test_a_finished_run_is_good_for_its_settings_data_and_code_alone(tmp_path: Path) -> None:
    job = plan(tmp_path, "--only", "afsst-s", "--seeds", "1").jobs[0]
    training = {"settings": job.settings.model_dump(mode="json"), "dataset": job.dataset.sha256, "source": None, "code": "1"}
    identity = {"training": training, "scoring": {"datasets": {"dataset": job.dataset.sha256}, "code": "1"}}
    record = {"identity": json.loads(json.dumps(identity)), "finished": True}
    assert not quality.is_finished(job, record, identity, keep=False), "its scores are not there"
    job.folder.mkdir(parents=True)
    (job.folder / "scores.csv").touch()
    assert quality.is_finished(job, record, identity, keep=False)
    assert not quality.is_finished(job, record | {"finished": False}, identity, keep=True)
    other_code = identity | {"training": training | {"code": "2"}}
    assert not quality.is_finished(job, record, other_code, keep=False)
    assert quality.is_finished(job, record, other_code, keep=True)
    assert not quality.is_finished(job, record, identity | {"training": training | {"dataset": "other"}}, keep=True)
    assert not quality.is_finished(job, record, identity | {"scoring": identity["scoring"] | {"code": "2"}}, keep=False)
    elsewhere = job.dataset._replace(name="elsewhere")
    assert quality.find_unscored(job._replace(scored=(elsewhere,)), record, identity, keep=False) == [elsewhere]
    assert quality.is_of(job, record)
    assert not quality.is_of(job._replace(settings=job.settings.model_copy(update={"steps": 1})), record)
