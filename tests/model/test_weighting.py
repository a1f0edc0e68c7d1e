"""Laws of the weights: clouds of the target count nothing, clouds of the input more, dark water no more than other clear ground."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sereno.model.config import LossSettings
from sereno.model.weighting import MaskEncoder, compute_encoding_loss, weigh_pixels

GROUND = {"water": (0.04, 0.03, 0.02, 0.01), "field": (0.05, 0.08, 0.06, 0.35), "soil": (0.12, 0.16, 0.20, 0.26)}
"""Reflectance in blue, green, red and near infrared."""
CLOUD = (0.62, 0.60, 0.60, 0.63)


class Given(NamedTuple):
    optical: Tensor
    target: Tensor
    weight: Tensor
    cloud: Tensor
    valid_input: Tensor


def make(seed: int = 0, *, count: int = 2) -> Given:
    generator = torch.Generator().manual_seed(seed)
    optical, target = torch.rand(2, count, 4, 6, 7, generator=generator)
    weight, cloud, observed = torch.rand(3, count, 1, 6, 7, generator=generator)
    return Given(optical, target, weight * (weight > 0.3), cloud, (observed > 0.2).float())


def learned(**more: float) -> LossSettings:
    return LossSettings(weighting="learned", **more)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), emphasis=st.floats(0, 8))
def test_static_weights_rise_with_the_cloud_of_the_input(seed: int, emphasis: float) -> None:
    batch = make(seed)._replace(weight=torch.ones(2, 1, 6, 7))
    weight = weigh_pixels(batch, LossSettings(cloud_emphasis=emphasis))
    assert weight.min() >= 1, "clear sky weighs 1"
    assert weight.max() <= 1 + emphasis
    assert (weight.flatten()[batch.cloud.flatten().argsort()].diff() >= 0).all()


@pytest.mark.parametrize("clearness", [None, 0.0, 0.5, 1.0])
def test_clouds_of_the_target_weigh_nothing_and_trust_scales_the_rest(clearness: float | None) -> None:
    batch = make()
    clear = None if clearness is None else torch.full_like(batch.cloud, clearness)
    weight, full = (weigh_pixels(each, learned(), clear) for each in (batch, batch._replace(weight=torch.ones_like(batch.weight))))
    assert not weight[batch.weight == 0].any()
    torch.testing.assert_close(weight, batch.weight * full)


def test_weights_of_a_piece_are_those_of_the_whole() -> None:
    """So that what is summed over the pieces of a batch is what the whole would give."""
    batch = make(count=3)
    for clearness in (None, 1 - batch.cloud):
        whole = weigh_pixels(batch, learned(), clearness)
        last = weigh_pixels(Given(*(tensor[2:] for tensor in batch)), learned(), None if clearness is None else clearness[2:])
        assert torch.equal(whole[2:], last)


def test_without_emphasis_weights_are_the_trust() -> None:
    batch = make()
    assert torch.equal(weigh_pixels(batch, LossSettings(cloud_emphasis=0)), batch.weight)
    assert torch.equal(
        weigh_pixels(batch, learned(), torch.ones_like(batch.cloud))[batch.valid_input > 0], batch.weight[batch.valid_input > 0]
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), largest=st.floats(1.5, 20))
def test_learned_weights_are_the_inverse_of_clearness_between_one_and_the_largest(seed: int, largest: float) -> None:
    batch = make(seed)._replace(weight=torch.ones(2, 1, 6, 7), valid_input=torch.ones(2, 1, 6, 7))
    clearness = batch.cloud
    weight = weigh_pixels(batch, learned(max_weight=largest), clearness)
    torch.testing.assert_close(weight, (1 / (clearness + 1e-9)).clamp(1, largest))


def test_what_was_not_observed_weighs_like_the_thickest_cloud() -> None:
    batch = make()._replace(weight=torch.ones(2, 1, 6, 7))
    weight = weigh_pixels(batch, learned(max_weight=7), torch.ones_like(batch.cloud))
    torch.testing.assert_close(weight, torch.where(batch.valid_input > 0, 1.0, 7.0))


def test_no_gradient_flows_into_the_encoder_through_the_weights() -> None:
    batch = make()
    clearness = torch.full_like(batch.cloud, 0.5, requires_grad=True)
    assert not weigh_pixels(batch, learned(), clearness).requires_grad


def test_the_encoder_is_small_bounded_and_the_same_for_the_same_seed() -> None:
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        encoder = MaskEncoder(4)
        outputs.append(encoder(make().optical * 10))
    assert sum(parameter.numel() for parameter in MaskEncoder(13).parameters()) < 5000
    assert outputs[0].shape == (2, 1, 6, 7)
    assert 0 <= outputs[0].min() <= outputs[0].max() <= 1
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_encoder_answers_in_full_precision_under_autocast() -> None:
    batch = make()
    encoder = MaskEncoder(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clearness, loss = encoder(batch.optical), compute_encoding_loss(encoder, batch)
    assert clearness.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(clearness, encoder(batch.optical), rtol=0.02, atol=0.02)


def test_encoding_loss_is_cross_entropy_over_observed_pixels() -> None:
    batch, encoder = make(), MaskEncoder(4)
    clearness, clear = encoder(batch.optical).double(), 1 - batch.cloud.double()
    entropy = -(clear * clearness.log() + (1 - clear) * (1 - clearness).log())
    loss = compute_encoding_loss(encoder, batch)
    assert loss.item() == pytest.approx(entropy[batch.valid_input > 0].mean().item(), rel=1e-5)
    hidden = batch._replace(cloud=torch.where(batch.valid_input > 0, batch.cloud, 0.123))
    assert torch.equal(compute_encoding_loss(encoder, hidden), loss)


def test_encoding_loss_is_zero_where_nothing_was_observed() -> None:
    batch, encoder = make(), MaskEncoder(4)
    loss = compute_encoding_loss(encoder, batch._replace(valid_input=torch.zeros_like(batch.cloud)))
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in encoder.parameters())


def scenes(seed: int) -> tuple[Given, Tensor]:
    """Eight scenes of water, field and soil in squares, half of them under clouds of any thickness; and where water is."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (8, 4, 4), generator=generator).repeat_interleave(6, 1).repeat_interleave(6, 2)
    covered = torch.randint(2, (8, 1, 3, 3), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    thickness = covered * (0.6 + 0.4 * torch.rand(8, 1, 1, 1, generator=generator))
    ground = torch.tensor(list(GROUND.values()))[kind].permute(0, 3, 1, 2) + 0.003 * torch.randn(8, 4, 24, 24, generator=generator)
    optical = thickness * torch.tensor(CLOUD)[:, None, None] + (1 - thickness) * ground
    ones = torch.ones(8, 1, 24, 24)
    return Given(optical, ground, ones, covered.float(), ones), kind.unsqueeze(1) == 0


def test_dark_clear_water_does_not_weigh_like_a_cloud() -> None:
    """The trap of regressing (1 - p) X: even a perfect encoder of that gives water the largest weight."""
    torch.manual_seed(0)
    encoder = MaskEncoder(4)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for step in range(150):
        loss = compute_encoding_loss(encoder, scenes(step)[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch, water = scenes(1000)
    weight = weigh_pixels(batch, learned(), encoder(batch.optical))
    cloudy = batch.cloud > 0
    assert weight[water & ~cloudy].mean() < 1.2
    assert weight[~cloudy].mean() < 1.2
    assert weight[cloudy].mean() > 6
    trap = weigh_pixels(batch, learned(), ((1 - batch.cloud) * batch.target).mean(1, keepdim=True))
    assert trap[water & ~cloudy].mean() > 9
