"""Laws of the loss: what counts, what does not, and how much."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sereno.model.config import LossSettings
from sereno.model.losses import compute_loss


class Truth(NamedTuple):
    target: Tensor
    weight: Tensor
    cloud: Tensor


def make(seed: int = 0, bands: int = 4) -> tuple[Tensor, Truth]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, 2, bands, 6, 7, generator=generator)
    weight, cloud = torch.rand(2, 2, 1, 6, 7, generator=generator)
    return prediction.requires_grad_(), Truth(target, weight * (weight > 0.3), cloud)


def test_total_is_the_weighted_sum_of_its_parts() -> None:
    prediction, truth = make()
    loss = compute_loss(prediction, truth, LossSettings(pixel=2, spatial=0.5, spectral=3))
    torch.testing.assert_close(loss["total"], 2 * loss["pixel"] + 0.5 * loss["spatial"] + 3 * loss["spectral"])


def test_without_emphasis_the_pixel_part_is_the_masked_mean() -> None:
    prediction, truth = make()
    hard = truth._replace(weight=(truth.weight > 0).float())
    error = (prediction - truth.target).abs()[hard.weight.expand_as(prediction) > 0].mean()
    torch.testing.assert_close(compute_loss(prediction, hard, LossSettings(cloud_emphasis=0))["pixel"], error)


def test_emphasis_weighs_cloudy_pixels_once_more_per_lambda() -> None:
    truth = Truth(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2))
    prediction = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    for emphasis in (0.0, 1.0, 3.0):
        pixel = compute_loss(prediction, truth, LossSettings(cloud_emphasis=emphasis))["pixel"]
        assert pixel.item() == pytest.approx((1 + emphasis) / (2 + emphasis))


def test_nothing_under_a_cloud_of_the_target_moves_anything() -> None:
    prediction, truth = make()
    hidden = (truth.weight == 0).expand_as(prediction)
    changed = truth._replace(target=torch.where(hidden, torch.full_like(prediction, 50.0), truth.target))
    first, second = (compute_loss(prediction, each, LossSettings()) for each in (truth, changed))
    for part in first:
        assert torch.equal(first[part], second[part])
    second["total"].backward()
    assert not prediction.grad[hidden].any()


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_without_any_weight_loss_and_gradient_are_zero(value: float) -> None:
    prediction, truth = make()
    nothing = Truth(torch.full_like(truth.target, value), torch.zeros_like(truth.weight), truth.cloud)
    loss = compute_loss(prediction, nothing, LossSettings())["total"]
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_a_constant_error_has_no_spatial_and_no_spectral_part() -> None:
    _, truth = make()
    loss = compute_loss(truth.target + 0.1, truth, LossSettings())
    assert loss["pixel"].item() == pytest.approx(0.1, abs=1e-6)
    assert loss["spatial"].item() < 1e-6
    assert loss["spectral"].item() < 1e-6


def test_a_single_band_has_no_spectral_part() -> None:
    prediction, truth = make(bands=1)
    assert compute_loss(prediction, truth, LossSettings())["spectral"].item() == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_size_of_the_weights_does_not_matter_only_their_ratio(seed: int, scale: float) -> None:
    prediction, truth = make(seed)
    scaled = truth._replace(weight=truth.weight * scale)
    first, second = (compute_loss(prediction, each, LossSettings())["total"] for each in (truth, scaled))
    torch.testing.assert_close(first, second)
