"""Laws of the metrics: independent oracles, and the known faults of copied metrics as things that cannot happen here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import (
    error_relative_global_dimensionless_synthesis,
    peak_signal_noise_ratio,
    spectral_angle_mapper,
)

from sereno.model import metrics

FRAME = metrics.SSIM_WINDOW_PX // 2


def make_images(batch: int = 3, bands: int = 4, side: int = 40, *, noise: float = 0.08) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, a target with structure, and the full region."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.stack([torch.sin(rows / (2 + k)) * torch.cos(columns / (3 + k)) for k in range(bands)])
    target = 0.3 + 0.15 * waves + 0.05 * torch.rand(batch, bands, side, side, generator=generator)
    prediction = target + noise * torch.randn(target.shape, generator=generator)
    return prediction, target, torch.ones(batch, side, side, dtype=torch.bool)


def score_images(prediction: Tensor, target: Tensor, region: Tensor, *, usable: Tensor | None = None) -> dict[str, Tensor]:
    """Scores over a region, with SSIM windows that see every pixel unless `usable` says which."""
    everything = torch.ones_like(region)
    return metrics.average_maps(metrics.compute_error_maps(prediction, target, everything if usable is None else usable), region)


def test_ssim_equals_scikit_image_on_a_full_region() -> None:
    prediction, target, region = make_images()
    ours = score_images(prediction, target, region)["ssim"]
    for image in range(3):
        oracle = np.mean(
            [
                structural_similarity(
                    target[image, band].double().numpy(),
                    prediction[image, band].double().numpy(),
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                    data_range=1,
                )
                for band in range(4)
            ]
        )
        assert ours[image].item() == pytest.approx(oracle, abs=1e-5)


def test_ssim_over_a_region_is_the_mean_of_the_oracles_map_there() -> None:
    prediction, target, region = make_images(batch=1, bands=1)
    region[:, :, 20:] = False
    _, oracle = structural_similarity(
        target[0, 0].double().numpy(),
        prediction[0, 0].double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    scores = score_images(prediction, target, region)
    assert scores["ssim"].item() == pytest.approx(oracle[FRAME:-FRAME, FRAME:20].mean(), abs=1e-5)
    assert scores["n_ssim_pixels"].item() == (40 - 2 * FRAME) * (20 - FRAME)


def test_psnr_sam_and_ergas_equal_torchmetrics() -> None:
    prediction, target, region = make_images()
    scores = score_images(prediction, target, region)
    psnr = peak_signal_noise_ratio(prediction, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    sam = spectral_angle_mapper(prediction, target, reduction="none").mean((1, 2)).rad2deg()
    ergas = error_relative_global_dimensionless_synthesis(prediction, target, ratio=1, reduction="none")
    torch.testing.assert_close(scores["psnr"].float(), psnr, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores["sam_deg"].float(), sam, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores["ergas"].float(), ergas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metrics.masked_psnr(prediction, target, region), scores["psnr"])


def test_ergas_of_an_image_sharpened_four_times_is_torchmetrics_at_that_ratio() -> None:
    prediction, target, region = make_images()
    maps = metrics.compute_error_maps(prediction, target, region)
    oracle = error_relative_global_dimensionless_synthesis(prediction, target, ratio=4, reduction="none")
    scores = metrics.average_maps(maps, region, ratio=4)
    torch.testing.assert_close(scores["ergas"].float(), oracle, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores["sam_deg"], metrics.average_maps(maps, region)["sam_deg"])


def test_a_known_offset_gives_the_scores_worked_out_by_hand() -> None:
    target = torch.full((1, 2, 16, 16), 0.2)
    prediction = target + torch.tensor([0.1, -0.05]).view(1, 2, 1, 1)
    scores = score_images(prediction, target, torch.ones(1, 16, 16, dtype=torch.bool))
    mse = (0.1**2 + 0.05**2) / 2
    assert scores["mae"].item() == pytest.approx(0.075)
    assert scores["rmse"].item() == pytest.approx(math.sqrt(mse))
    assert scores["psnr"].item() == pytest.approx(-10 * math.log10(mse))
    assert scores["ergas"].item() == pytest.approx(100 * math.sqrt((0.5**2 + 0.25**2) / 2))
    assert scores["sam_deg"].item() == pytest.approx(45 - math.degrees(math.atan2(0.15, 0.3)))


def test_two_images_at_once_score_as_one_by_one() -> None:
    prediction, target, region = make_images(batch=2)
    region[0, :9] = False
    together = score_images(prediction, target, region)
    for image in range(2):
        alone = score_images(prediction[image : image + 1], target[image : image + 1], region[image : image + 1])
        for name in (*metrics.METRICS, *metrics.COUNTS):
            torch.testing.assert_close(together[name][image : image + 1], alone[name], rtol=1e-6, atol=1e-9)


def test_an_off_centre_ssim_window_would_be_seen() -> None:
    prediction, target, region = make_images()
    prediction = prediction * torch.linspace(0.5, 1.5, 40)  # errors that differ from left to right
    flipped = score_images(prediction.flip(-1), target.flip(-1), region.flip(-1))["ssim"]
    torch.testing.assert_close(score_images(prediction, target, region)["ssim"], flipped, rtol=1e-6, atol=1e-6)
    taps = metrics.gaussian_taps()
    assert taps == taps[::-1]
    assert sum(taps) == pytest.approx(1)
    wrong = torch.exp(-((torch.arange(11) - 11 / 2) ** 2) / (2 * 1.5**2))  # the half-pixel fault of copied code
    assert not torch.allclose(torch.tensor(taps, dtype=torch.float32), wrong / wrong.sum(), atol=0.01)


def test_pixels_outside_the_region_and_not_usable_change_nothing() -> None:
    prediction, target, region = make_images()
    region[:, 10:20, 5:30] = False
    before = score_images(prediction, target, region, usable=region)
    prediction = torch.where(region[:, None], prediction, float("nan"))
    target = torch.where(region[:, None], target, 1e30)
    after = score_images(prediction, target, region, usable=region)
    for name in metrics.METRICS:
        assert torch.equal(before[name], after[name]), name


def test_an_empty_region_is_nan_in_its_row_alone_and_counted_in_the_average() -> None:
    prediction, target, region = make_images()
    region[1] = False
    scores = score_images(prediction, target, region)
    for name in metrics.METRICS:
        assert scores[name].isnan().tolist() == [False, True, False], name
        average = metrics.average_scores(scores[name])
        assert (average.n, average.n_nan, average.n_infinite) == (2, 1, 0)
        assert average.mean == pytest.approx(scores[name][[0, 2]].mean().item())
    assert scores["n_pixels"].tolist() == [1600, 0, 1600]
    assert math.isnan(metrics.average_scores(scores["mae"][1:2]).mean)


def test_nan_in_the_prediction_is_not_dropped() -> None:
    prediction, target, region = make_images()
    prediction[0, 0, 20, 20] = float("nan")
    scores = score_images(prediction, target, region)
    for name in metrics.METRICS:
        assert scores[name].isnan().tolist() == [True, False, False], name


def test_zero_spectra_have_no_angle_and_are_counted() -> None:
    prediction, target, region = make_images(batch=1)
    clean, _ = metrics.compute_angle_map(prediction, target)
    target[..., :2, :] = 0
    prediction[..., 3, :] = 0
    scores = score_images(prediction, target, region)
    assert scores["n_zero_vectors"].item() == 3 * 40
    kept = torch.ones(40, dtype=torch.bool)
    kept[[0, 1, 3]] = False
    assert scores["sam_deg"].item() == pytest.approx(clean[0, kept].mean().item())


def test_equal_spectra_make_no_angle_and_opposite_ones_half_a_turn() -> None:
    _, target, region = make_images(batch=1)
    assert score_images(3 * target, target, region)["sam_deg"].item() < 1e-5
    assert score_images(-target, target, region)["sam_deg"].item() == pytest.approx(180, abs=1e-5)


def test_an_exact_copy_is_infinite_in_psnr_and_left_out_of_the_mean_by_name() -> None:
    _, target, region = make_images(batch=2)
    prediction = target.clone()
    prediction[1] += 0.1
    scores = score_images(prediction, target, region)
    assert scores["ssim"][0].item() == pytest.approx(1, abs=1e-6)
    average = metrics.average_scores(scores["psnr"])
    assert (average.n, average.n_infinite) == (1, 1)
    assert average.mean == pytest.approx(20, abs=1e-3)


def test_an_image_smaller_than_the_ssim_window_has_no_ssim_but_the_rest() -> None:
    prediction, target, region = make_images(side=9)
    scores = score_images(prediction, target, region)
    assert scores["ssim"].isnan().all()
    assert scores["n_ssim_pixels"].tolist() == [0, 0, 0]
    assert scores["mae"].isfinite().all()


def test_bootstrap_interval_holds_the_mean_and_repeats_with_its_seed() -> None:
    generator = torch.Generator().manual_seed(3)
    difference = 1 + 0.5 * torch.randn(60, generator=generator)
    names = [str(k) for k in range(60)]
    one = metrics.bootstrap_difference(difference, names, generator=torch.Generator().manual_seed(0))
    two = metrics.bootstrap_difference(difference, names, generator=torch.Generator().manual_seed(0))
    assert one == two
    spread = 1.96 * difference.std().item() / math.sqrt(60)  # normal theory
    assert one.low == pytest.approx(one.mean - spread, abs=0.25 * spread)
    assert one.high == pytest.approx(one.mean + spread, abs=0.25 * spread)


def test_images_of_shared_ground_widen_the_interval() -> None:
    block = torch.randn(6, generator=torch.Generator().manual_seed(4)).repeat_interleave(10)
    by_image = metrics.bootstrap_difference(block, [str(k) for k in range(60)], generator=torch.Generator().manual_seed(0))
    by_block = metrics.bootstrap_difference(block, [str(k // 10) for k in range(60)], generator=torch.Generator().manual_seed(0))
    assert by_block.n_groups == 6
    assert by_block.high - by_block.low > 2 * (by_image.high - by_image.low)


def test_one_block_gives_no_interval_and_nan_differences_are_left_out() -> None:
    difference = torch.tensor([1.0, float("nan"), 3.0])
    interval = metrics.bootstrap_difference(difference, ["a", "a", "a"], generator=torch.Generator().manual_seed(0))
    assert (interval.mean, interval.n, interval.n_groups) == (2.0, 2, 1)
    assert math.isnan(interval.low)
    nothing = metrics.bootstrap_difference(difference[1:2], ["a"], generator=torch.Generator().manual_seed(0))
    assert math.isnan(nothing.mean)
    assert nothing.n == 0
