"""Laws of the verdicts on the other tasks: no baseline that wins is hidden, QNR decides nothing, tables hold what their protocol has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sereno.model.findings import (
    BASES,
    EXPLANATIONS,
    LABELS,
    REGION_WORDS,
    describe_tables,
    describe_verdicts,
    find_rival,
)
from sereno.model.page import Heading, Table, Text
from sereno.model.results import Results, RunResults, read_results
from sereno.model.snapshot import ESTIMATES
from sereno.model.tasks import TASKS
from sereno.model.verdicts import DIGITS, HEADINGS

PSNR = {"network": 25.0, "bicubic": 20.0, "brovey": 21.0, "gsa": 23.0}


def make_summary(psnr: dict[str, float], *, interval: tuple[float | None, float | None] = (-0.5, 0.5)) -> dict[str, Any]:
    """Scores of pan-sharpening; at full resolution bicubic leads. Ends of intervals are relative to the difference."""
    scoring = TASKS["pansharpening"].scoring
    reduced = {method: {"psnr": psnr[method], "ssim": psnr[method] / 50, "q2n": psnr[method] / 50} for method in psnr}
    full = {method: {"qnr": 0.99 if method == "bicubic" else 0.9} for method in psnr}
    scores = {method: {"reduced": fill(reduced[method]), "full": fill(full[method])} for method in psnr}
    compared: dict[str, Any] = {"region": "reduced", "note": "as drawn"}
    for method in psnr.keys() - {"network"}:
        compared[method] = {
            metric: {"by_block": make_interval(reduced["network"][metric] - reduced[method][metric], interval)}
            for metric in ("psnr", "ssim", "q2n")
        }
    checkpoint = {"task": "pansharpening", "settings": {"network": {"name": "sfiin"}}}
    shared = {"split": "test", "patches": 4, "blocks": 2, "methods": dict(scoring.methods), "regions": dict(scoring.regions)}
    return {**shared, "metrics": list(scoring.metrics), "scores": scores, "network_minus": compared, "checkpoint": checkpoint}


def fill(means: dict[str, float]) -> dict[str, Any]:
    return {metric: {"mean": means.get(metric), "n": int(metric in means)} for metric in TASKS["pansharpening"].scoring.metrics}


def make_interval(mean: float, ends: tuple[float | None, float | None]) -> dict[str, Any]:
    low, high = (None if end is None else mean + end * (1 if abs(mean) > 0.5 else 0.01) for end in ends)
    return {"mean": mean, "low": low, "high": high, "n": 4, "n_groups": 2}


def make_run(summary: dict[str, Any] | None, name: str = "mine") -> RunResults:
    return RunResults(name, [], summary, [], None, {}, {})


def make_results(tmp_path: Path, *runs: RunResults) -> Results:
    return replace(read_results(tmp_path, ()), runs=runs)


def judge(tmp_path: Path, summary: dict[str, Any]) -> Text:
    first = describe_verdicts(make_results(tmp_path, make_run(summary)))[0]
    assert isinstance(first, Text)
    return first


def test_a_network_that_wins_is_said_to_and_against_whom(tmp_path: Path) -> None:
    said = judge(tmp_path, make_summary(PSNR))
    assert "mine (sfiin) reaches 25.00 dB PSNR. The best baseline by it is GSA with 23.00 dB." in said.words
    assert "It beats" in said.words
    assert "GSA by 2.00 dB PSNR" in said.words
    assert "behind" not in said.words
    assert said.tone == "good"


def test_a_baseline_that_wins_is_said_first_and_turns_the_verdict(tmp_path: Path) -> None:
    said = judge(tmp_path, make_summary({**PSNR, "gsa": 26.5}))
    assert "The network is behind GSA by 1.50 dB PSNR (95 % interval -2.00 to -1.00)" in said.words
    assert said.words.index("is behind") < said.words.index("It beats")
    assert said.tone == "bad"


def test_a_baseline_that_wins_by_another_metric_alone_is_named_too(tmp_path: Path) -> None:
    summary = make_summary(PSNR)
    summary["network_minus"]["brovey"]["ssim"]["by_block"] = make_interval(-0.02, (-0.5, 0.5))
    assert "behind Brovey by 0.0200 SSIM" in judge(tmp_path, summary).words


@pytest.mark.parametrize("interval", [(-3.0, 3.0), (None, None)])
def test_a_lead_within_its_interval_is_not_called_a_win(tmp_path: Path, interval: tuple[float | None, float | None]) -> None:
    said = judge(tmp_path, make_summary(PSNR, interval=interval))
    assert "GSA by 2.00 dB PSNR" in said.words.partition("It is ahead of")[2]
    assert "but not clearly" in said.words
    assert said.tone == "plain"


def test_a_score_outside_the_verdict_that_a_baseline_wins_is_listed(tmp_path: Path) -> None:
    summary = make_summary(PSNR)
    for method, value in {"network": 2.0, "bicubic": 1.5, "brovey": 2.5, "gsa": 2.1}.items():
        summary["scores"][method]["reduced"]["sam_deg"] = {"mean": value, "n": 4}
    (listed,) = [
        block.words
        for block in describe_verdicts(make_results(tmp_path, make_run(summary)))
        if isinstance(block, Text) and block.words.startswith("Other means")
    ]
    assert "SAM reduced: bicubic 1.50° against 2.00°" in listed
    assert "QNR" not in listed


def test_no_verdict_rests_on_a_score_without_truth_and_the_page_says_what_it_is_worth(tmp_path: Path) -> None:
    summary = make_summary(PSNR)
    assert find_rival(summary) == "gsa", "bicubic leads by QNR"
    assert "QNR" not in " ".join(
        block.words for block in describe_verdicts(make_results(tmp_path, make_run(summary))) if isinstance(block, Text)
    )
    said = " ".join(block.words for block in describe_tables(make_results(tmp_path, make_run(summary))) if isinstance(block, Text))
    assert "QNR ranks bicubic" in said
    assert "never as a verdict" in said


def test_the_verdict_on_fusion_rests_on_rmse_where_less_is_better(tmp_path: Path) -> None:
    means = {"network": 0.015, "nearest": 0.05, "linear": 0.02, "change": 0.014, "starfm": 0.03}
    scores = {method: {"changed": {"rmse": {"mean": value, "n": 1}, "psnr": {"mean": -value, "n": 1}}} for method, value in means.items()}
    compared: dict[str, Any] = {"region": "changed"}
    for method in means.keys() - {"network"}:
        difference = means["network"] - means[method]
        compared[method] = {
            metric: {"by_block": make_interval(sign * difference, (-0.01, 0.01))} for metric, sign in (("psnr", -1), ("rmse", 1))
        }
    summary = make_summary(PSNR) | {"methods": dict.fromkeys(means, ""), "regions": {"changed": ""}, "metrics": ["rmse", "psnr"]}
    summary |= {"scores": scores, "network_minus": compared, "checkpoint": {"task": "spatiotemporal-fusion", "settings": {"network": {}}}}
    said = judge(tmp_path, summary)
    assert (
        "Where the land changed, on held-out ground, mine reaches 0.0150 RMSE. The best baseline by it is coarse change with 0.0140."
        in said.words
    )
    assert "The network is behind coarse change by 0.0010 RMSE" in said.words
    assert "line in time by 0.0050 RMSE" in said.words
    assert said.tone == "bad"


def test_scores_on_training_ground_are_not_called_held_out(tmp_path: Path) -> None:
    said = judge(tmp_path, make_summary(PSNR) | {"split": "train"})
    assert "memory and not skill" in said.words
    assert "held-out" not in said.words


def test_each_protocol_has_a_table_of_the_metrics_it_has_and_the_one_that_decides_is_first(tmp_path: Path) -> None:
    blocks = describe_tables(make_results(tmp_path, make_run(make_summary(PSNR))))
    assert [block.words for block in blocks if isinstance(block, Heading)] == [
        "At reduced resolution, where the truth is known", "At full resolution, where nobody knows the truth",
    ]  # fmt: skip
    reduced, full = [block for block in blocks if isinstance(block, Table)]
    assert list(reduced.head) == ["method", "PSNR, dB ↑", "SSIM ↑", "Q2n ↑"]
    assert list(full.head) == ["method", "QNR ↑"]
    assert [row[0].words for row in reduced.rows] == ["mine (sfiin)", "bicubic", "Brovey", "GSA"]
    assert [row[1].is_best for row in reduced.rows] == [True, False, False, False]


def test_runs_share_a_table_and_baselines_that_differ_are_told_apart(tmp_path: Path) -> None:
    other = make_summary({**PSNR, "network": 24.0, "gsa": 22.0})
    table = next(
        block
        for block in describe_tables(make_results(tmp_path, make_run(make_summary(PSNR)), make_run(other, "other")))
        if isinstance(block, Table)
    )
    names = [row[0].words for row in table.rows]
    assert names == ["mine (sfiin)", "other (sfiin)", "bicubic", "Brovey", "GSA", "GSA (of other (sfiin))"]


def test_runs_without_scores_of_an_older_version_or_another_task_are_said_to_be(tmp_path: Path) -> None:
    old = {key: value for key, value in make_summary(PSNR).items() if key != "network_minus"}
    strange = make_summary(PSNR) | {"checkpoint": {"task": "cloud-removal", "settings": {}}}
    runs = make_run(make_summary(PSNR), "good"), make_run(None, "bare"), make_run(old, "old"), make_run(strange, "strange")
    said = [
        block.words for block in describe_verdicts(make_results(tmp_path, *runs)) if isinstance(block, Text) and block.tone == "missing"
    ]
    assert said[0] == "bare has no scores: run `sereno evaluate`."
    assert "old (sfiin) was evaluated by an older version" in said[1]
    assert "strange is for cloud-removal, this page for pansharpening" in said[2]
    table = next(block for block in describe_tables(make_results(tmp_path, *runs)) if isinstance(block, Table))
    assert not [row for row in table.rows if "strange" in row[0].words]


def test_nothing_that_could_be_scored_is_said() -> None:
    summary = make_summary(PSNR)
    for method in PSNR:
        summary["scores"][method]["reduced"] = fill({})
    said = judge(Path("no/such"), summary)
    assert "could be scored" in said.words


def test_every_metric_method_and_region_of_every_task_has_words() -> None:
    for name, task in TASKS.items():
        if name == "cloud-removal":
            continue
        assert {*task.scoring.metrics} <= HEADINGS.keys() >= DIGITS.keys()
        assert {*task.scoring.baselines} <= LABELS.keys()
        assert {(name, region) for region in task.scoring.regions} <= REGION_WORDS.keys()
        assert name in EXPLANATIONS
    assert BASES.keys() == ESTIMATES.keys()


def test_without_scores_the_page_says_what_to_run(tmp_path: Path) -> None:
    for describe in (describe_verdicts, describe_tables):
        (block,) = describe(read_results(tmp_path, ()))
        assert isinstance(block, Text)
        assert "run `sereno evaluate`" in block.words
