"""Laws of scoring: exact answers are best, baselines are what they say, and a score without meaning is not given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from series_samples import make_series
from task_samples import BANDS, draw_ground, make_fusion, make_sharpening, make_snapshot, to_stored
from torch import Tensor

from sereno.model.batches import Signature, make_fusion_batch, make_sharpening_batch, make_snapshot_batch
from sereno.model.config import S2SnapshotSettings, TrainSettings
from sereno.model.indices import WITHOUT_TRUTH
from sereno.model.scoring import Case, Judged, Scoring, mark_changed
from sereno.model.sharpening import enlarge
from sereno.model.tasks import CLOUD_REMOVAL, FUSION, PANSHARPENING, SNAPSHOT, TASKS, Task
from sereno.pipeline.patches import PATCH_ARRAYS

MAKERS = {"pansharpening": make_sharpening, "spatiotemporal-fusion": make_fusion, "snapshot-reconstruction": make_snapshot}
RATIOS = {"pansharpening": 2, "spatiotemporal-fusion": 4, "snapshot-reconstruction": 1}
SETTINGS = TrainSettings(network=S2SnapshotSettings(name="s2snapshot"))


def make_case(task: Task, network: Any, **kind: Any) -> Case:
    ratio = RATIOS[task.name]
    ratios = {"ratio": ratio} if ratio > 1 else {}
    arrays = MAKERS[task.name](2, np.random.default_rng(0), **ratios, **kind)
    facts = Signature(BANDS, (), (0.2,) * 4, (0.1,) * 4, task.name, ratio, ("PAN",), (0.2,), (0.1,))
    return Case({name: torch.from_numpy(array) for name, array in arrays.items()}, facts, SETTINGS, network, 0.5)


def judge(task: Task, network: Any, **kind: Any) -> Judged:
    judged = task.scoring.judge(make_case(task, network, **kind))
    assert judged.scores.shape == (2, len(task.scoring.methods), len(task.scoring.regions), len(task.scoring.columns))
    assert tuple(judged.answers) == tuple(task.scoring.methods)
    return judged


def take(scoring: Scoring, judged: Judged, method: str, region: str, column: str) -> list[float]:
    place = list(scoring.methods).index(method), list(scoring.regions).index(region), scoring.columns.index(column)
    values: list[float] = judged.scores[:, *place].tolist()
    return values


def answer_bicubic(ms: Tensor, _pan: Tensor) -> Tensor:
    return enlarge(ms, 2)


def test_every_task_names_its_network_first_and_compares_what_it_scores() -> None:
    for task in TASKS.values():
        scoring = task.scoring
        assert next(iter(scoring.methods)) == "network"
        assert set(scoring.shown.values()) <= set(scoring.methods)
        region, metrics = scoring.compared
        assert region in scoring.regions
        assert set(metrics) <= set(scoring.metrics)
        assert len(scoring.columns) == len(set(scoring.columns))


@pytest.mark.parametrize(
    ("task", "make"), [(PANSHARPENING, make_sharpening_batch), (FUSION, make_fusion_batch), (SNAPSHOT, make_snapshot_batch)]
)
def test_the_true_image_scores_best_and_is_never_beaten(task: Task, make: Any) -> None:
    case = make_case(task, None, size_px=64)
    truth = make(case.stored, case.signature, SETTINGS).target
    judged = task.scoring.judge(
        case._replace(network=lambda first, *_: truth if task is not PANSHARPENING or first.shape[-1] == 16 else enlarge(first, 2))
    )
    region = task.scoring.compared[0]
    assert take(task.scoring, judged, "network", region, "rmse") == [0, 0]
    assert all(math.isinf(value) for value in take(task.scoring, judged, "network", region, "psnr"))
    for baseline in task.scoring.baselines:
        assert min(take(task.scoring, judged, baseline, region, "rmse")) > 0


def test_a_network_that_does_as_a_baseline_scores_as_that() -> None:
    judged = judge(PANSHARPENING, answer_bicubic, size_px=64)
    assert torch.equal(judged.scores[:, 0].nan_to_num(-9), judged.scores[:, 1].nan_to_num(-9))
    assert torch.equal(judged.answers["network"], judged.answers["bicubic"])
    assert judged.answers["network"].shape == (2, 4, 64, 64)


def test_a_score_is_given_by_the_protocol_that_has_it_alone() -> None:
    judged = judge(PANSHARPENING, answer_bicubic, size_px=64)
    for metric in PANSHARPENING.scoring.metrics:
        for region in ("reduced", "full"):
            known = [not math.isnan(value) for value in take(PANSHARPENING.scoring, judged, "gsa", region, metric)]
            assert known == [(metric in WITHOUT_TRUTH) == (region == "full")] * 2, (metric, region)
    assert take(PANSHARPENING.scoring, judged, "gsa", "full", "n_pixels") == [64 * 64] * 2
    assert take(PANSHARPENING.scoring, judged, "gsa", "reduced", "n_pixels") == [32 * 32] * 2


def test_injected_detail_beats_enlarging_where_the_bands_share_it() -> None:
    """All bands of this ground are the panchromatic one times a number."""
    case = make_case(PANSHARPENING, answer_bicubic, size_px=64)
    pan = case.stored["pan"].float()
    mean = pan.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
    ms = (mean * torch.tensor([0.5, 0.8, 1.0, 1.2]).reshape(-1, 1, 1)).round().to(torch.uint16)
    judged = PANSHARPENING.scoring.judge(case._replace(stored={**case.stored, "ms": ms}))
    enlarged, brovey, gsa = (take(PANSHARPENING.scoring, judged, name, "reduced", "psnr") for name in ("bicubic", "brovey", "gsa"))
    assert min(gsa[n] - enlarged[n] for n in range(2)) > 3
    assert min(brovey[n] - enlarged[n] for n in range(2)) > 3


def test_several_guides_are_combined() -> None:
    case = make_case(PANSHARPENING, answer_bicubic, size_px=64)
    stored = {**case.stored, "pan": case.stored["pan"].expand(-1, 3, -1, -1).contiguous()}
    facts = case.signature._replace(guide_bands=("B02", "B03", "B04"), guide_mean=(0.2,) * 3, guide_std=(0.1,) * 3)
    scores = PANSHARPENING.scoring.judge(case._replace(stored=stored, signature=facts)).scores
    assert scores[..., PANSHARPENING.scoring.columns.index("qnr")][:, :, 1].isfinite().all()


def test_the_guide_without_a_truth_is_what_several_ones_can_say_of_each_band_however_they_are_mixed() -> None:
    """Guides a, b, c and guides a + b, 2 b, c span the same; their means do not look alike."""
    case = make_case(PANSHARPENING, answer_bicubic, size_px=64)
    first, second, third = torch.from_numpy(to_stored(draw_ground(2, 3, 64, np.random.default_rng(5)))).int().unbind(1)
    facts, found = case.signature._replace(guide_bands=("B02", "B03", "B04"), guide_mean=(0.2,) * 3, guide_std=(0.1,) * 3), []
    for guides in ((first, second, third), (first + second, 2 * second, third)):
        stored = {**case.stored, "pan": torch.stack(guides, dim=1).to(torch.uint16)}
        judged = PANSHARPENING.scoring.judge(case._replace(stored=stored, signature=facts))
        found.append(take(PANSHARPENING.scoring, judged, "network", "full", "d_s"))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert min(found[0]) > 0.001


def test_land_that_changed_is_a_region_of_its_own_in_fusion() -> None:
    judged = judge(FUSION, lambda _coarse, fine: fine.mean(dim=1))
    everything, changed = (take(FUSION.scoring, judged, "linear", region, "n_pixels") for region in ("all", "changed"))
    assert everything == [32 * 32] * 2
    assert all(0 < count < 32 * 32 for count in changed)
    assert np.allclose(
        take(FUSION.scoring, judged, "network", "changed", "rmse"), take(FUSION.scoring, judged, "linear", "changed", "rmse"), rtol=1e-5
    )


def test_land_changed_where_the_mean_over_bands_is_off_the_mean_of_the_outer_dates() -> None:
    outer = torch.stack([torch.full((1, 2, 1, 4), 0.1), torch.full((1, 2, 1, 4), 0.3)], dim=1)
    middle = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.2, 0.23, 0.25, 0.15]])[None, :, None]
    assert mark_changed(outer, middle).tolist() == [[[False, False, True, True]]]


@pytest.mark.parametrize("task", [FUSION, SNAPSHOT])
def test_ergas_is_divided_by_the_ratio_of_coarse_pixels_to_fine_ones(task: Task) -> None:
    """Answers of which every band is the mean of the truth, half as large again: an error of half the mean."""
    case = make_case(task, None)
    make = make_fusion_batch if task is FUSION else make_snapshot_batch
    batch = make(case.stored, case.signature, SETTINGS)
    judged = task.scoring.judge(case._replace(network=lambda *_: batch.target + batch.target.mean((2, 3), keepdim=True) / 2))
    assert take(task.scoring, judged, "network", "all", "ergas") == pytest.approx([50 / RATIOS[task.name]] * 2, rel=1e-3)


def test_ergas_of_sharpening_is_divided_by_the_ratio() -> None:
    """The same, by Wald's protocol."""
    case = make_case(PANSHARPENING, None, size_px=64)
    target = make_sharpening_batch(case.stored, case.signature, SETTINGS).target
    shifted = target + target.mean((2, 3), keepdim=True) / 2
    judged = PANSHARPENING.scoring.judge(case._replace(network=lambda ms, _: shifted if ms.shape[-1] == 16 else enlarge(ms, 2)))
    assert take(PANSHARPENING.scoring, judged, "network", "reduced", "ergas") == pytest.approx([50 / 2] * 2, rel=1e-3)


def test_gap_tv_is_its_own_baseline_of_snapshots_and_better_than_the_first_estimate() -> None:
    judged = judge(SNAPSHOT, lambda estimate, *_: estimate)
    gap_tv, first = (take(SNAPSHOT.scoring, judged, name, "all", "psnr") for name in ("gap-tv", "first"))
    assert min(one - other for one, other in zip(gap_tv, first, strict=True)) > 1


def make_dated_case(*, keep: tuple[str, ...] | None = None, days: tuple[float, float] = (-15.0, 5.0)) -> Case:
    arrays = {**make_series(2, np.random.default_rng(0)), "days": np.array([days] * 2, np.float32)}
    arrays = {name: values for name, values in arrays.items() if keep is None or name in keep}
    facts = Signature(("B02", "B03", "B04"), ("VV", "VH"), (0.15, 0.12, 0.17), (0.1,) * 3)
    stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Case(stored, facts, TrainSettings(), lambda optical, *_: optical, 0.5)


def test_in_a_series_the_line_in_time_is_a_baseline_and_finds_even_change_by_the_real_days() -> None:
    scoring = CLOUD_REMOVAL.scoring
    judged = scoring.judge(make_dated_case())
    assert tuple(judged.answers) == tuple(scoring.methods)
    assert max(take(scoring, judged, "dates", "cloudy", "mae")) < 1e-4
    assert min(take(scoring, judged, "fill", "cloudy", "mae")) > 0.01
    even = scoring.judge(make_dated_case(days=(-10.0, 10.0)))
    assert min(take(scoring, even, "dates", "cloudy", "mae")) > 0.01, "land is three quarters of the way, not half"


def test_baselines_that_a_dataset_cannot_have_are_left_out() -> None:
    case = make_dated_case(keep=PATCH_ARRAYS)
    fitted = CLOUD_REMOVAL.scoring.fit(case.stored)
    assert tuple(fitted.methods) == ("network", "copy", "mean", "fill") == tuple(fitted.judge(case).answers)
    assert tuple(fitted.shown) == ("prediction", "fill")
    assert CLOUD_REMOVAL.scoring.fit(make_dated_case().stored) == CLOUD_REMOVAL.scoring
    assert all(task.scoring.fit(()) == task.scoring for task in TASKS.values() if task is not CLOUD_REMOVAL)


def test_fusion_takes_the_real_days_and_even_ones_only_where_they_are_missing() -> None:
    even = make_case(FUSION, None)._replace(network=lambda _, fine: fine.mean(dim=1))
    uneven = even._replace(stored={**even.stored, "days": torch.tensor([[-16.0, 0.0, 8.0], [np.nan] * 3])})
    linear, nearest = ([FUSION.scoring.judge(case).answers[name] for case in (even, uneven)] for name in ("linear", "nearest"))
    fine = make_fusion_batch(even.stored, even.signature, SETTINGS).inputs[1]
    torch.testing.assert_close(linear[0], fine.mean(dim=1))
    torch.testing.assert_close(linear[1][0], fine[0, 0] / 3 + 2 * fine[0, 1] / 3)
    torch.testing.assert_close(linear[1][1], linear[0][1])
    assert torch.equal(nearest[1][0], fine[0, 1])
    assert torch.equal(nearest[1][1], nearest[0][1])
