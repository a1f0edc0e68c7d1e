"""Laws of the loss: what counts, what does not, and how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sereno.model.config import LossSettings
from sereno.model.losses import CHARBONNIER, FAINT, TERMS, compute_loss, measure_amounts, name_parts
from sereno.model.weighting import weigh_pixels

Array = npt.NDArray[np.float64]

NONE = {"pixel": 0.0, "spatial": 0.0, "spectral": 0.0}
PARTS = tuple(dict.fromkeys(term.part for term in TERMS.values()))
ALL = LossSettings(**dict.fromkeys((*PARTS, "stages"), 1.0))


class Truth(NamedTuple):
    target: Tensor
    weight: Tensor
    cloud: Tensor
    optical: Tensor
    valid_input: Tensor


def only(part: str, **more: Any) -> LossSettings:
    return LossSettings(**{**NONE, part: 1.0, **more})


def make(seed: int = 0, *, count: int = 2, bands: int = 4, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Truth]:
    """A prediction and what it is compared with, in float64; part of target and input are not to be trusted."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target, optical = torch.rand(3, count, bands, *size, generator=generator, dtype=torch.float64)
    weight, cloud, observed = torch.rand(3, count, 1, *size, generator=generator, dtype=torch.float64)
    valid = (observed > 0.2).double()
    cloud = torch.where(valid > 0, cloud, 1.0)
    return prediction.requires_grad_(), Truth(target, weight * (weight > 0.3), cloud, optical * valid, valid)


def trusted(truth: Truth) -> Truth:
    """The same, but all of it is observed and the target clear."""
    ones = torch.ones_like(truth.weight)
    return truth._replace(weight=ones, valid_input=ones)


def part_of(prediction: Tensor, truth: Truth, part: str, **more: Any) -> float:
    return compute_loss(prediction, truth, only(part, **more))[part].item()


def test_total_is_the_weighted_sum_of_its_parts() -> None:
    prediction, truth = make()
    weights = {part: place + 0.5 for place, part in enumerate(PARTS)}
    loss = compute_loss(prediction, truth, LossSettings(**weights))
    torch.testing.assert_close(loss["total"], sum((weights[part] * loss[part] for part in PARTS), torch.zeros(())))


def test_every_part_of_the_settings_is_there_in_order_and_no_other() -> None:
    prediction, truth = make()
    names = list(LossSettings.model_fields)
    assert names[: names.index("weighting")] == [*PARTS, "stages", "temporal"]
    assert name_parts(ALL) == ("total", *PARTS, "stages")
    assert name_parts(LossSettings()) == ("total", "pixel", "spatial", "spectral")
    for chosen in (ALL, LossSettings(), LossSettings(sam=1, spatial=0), only("phase")):
        assert tuple(compute_loss(prediction, truth, chosen)) == name_parts(chosen)


def mean_of(values: Array, weight: Array) -> float:
    """Weighted mean over pixels of the mean over bands, in plain loops over images, rows and columns."""
    total = amount = 0.0
    for image, row, column in np.ndindex(values.shape[0], *values.shape[2:]):
        total += weight[image, 0, row, column] * values[image, :, row, column].mean()
        amount += weight[image, 0, row, column]
    return total / amount


def naive_neighbours(p: Array, t: Array, w: Array, _: Truth) -> float:
    e = p - t
    down = mean_of(np.abs(e[:, :, 1:] - e[:, :, :-1]), np.minimum(w[:, :, 1:], w[:, :, :-1]))
    across = mean_of(np.abs(e[..., 1:] - e[..., :-1]), np.minimum(w[..., 1:], w[..., :-1]))
    return (down + across) / 2


def naive_sam(p: Array, t: Array, w: Array, _: Truth) -> float:
    cosine = (p * t).sum(1) / np.sqrt((p**2).sum(1) * (t**2).sum(1))
    return mean_of(np.arccos(cosine)[:, None], w)


def naive_carl(p: Array, t: Array, _: Array, truth: Truth) -> float:
    trust, cloud, cloudy, valid = (tensor.numpy() for tensor in (truth.weight, truth.cloud, truth.optical, truth.valid_input))
    to_target, to_input = np.abs(p - t).mean(1, keepdims=True), np.abs(p - cloudy).mean(1, keepdims=True)
    adaptive = cloud * trust * to_target + (1 - cloud) * valid * to_input
    return adaptive.sum() / (cloud * trust + (1 - cloud) * valid).sum() + mean_of(np.abs(p - t), trust)


def naive_amplitude(p: Array, t: Array, _: Array, truth: Truth) -> float:
    trust = truth.weight.numpy()
    ours, true = (np.abs(np.fft.fft2(image * trust, norm="ortho")) for image in (p, t))
    seen = sum(math.sqrt((image**2).mean()) for image in trust)
    return np.abs(ours - true).mean((1, 2, 3)).sum() / seen


def naive_phase(p: Array, t: Array, _: Array, truth: Truth) -> float:
    ours, true = (np.fft.fft2(image * truth.weight.numpy(), norm="ortho") for image in (p, t))
    return (np.abs(true) * (1 - np.cos(np.angle(ours) - np.angle(true)))).sum() / np.abs(true).sum()


NAIVE: dict[str, Callable[[Array, Array, Array, Truth], float]] = {
    "pixel": lambda p, t, w, _: mean_of(np.abs(p - t), w),
    "charbonnier": lambda p, t, w, _: mean_of(np.sqrt((p - t) ** 2 + CHARBONNIER**2) - CHARBONNIER, w),
    "squared": lambda p, t, w, _: mean_of((p - t) ** 2, w),
    "spatial": naive_neighbours,
    "spectral": lambda p, t, w, _: mean_of(np.abs(np.diff(p, axis=1) - np.diff(t, axis=1)), w),
    "sam": naive_sam,
    "carl": naive_carl,
    "amplitude": naive_amplitude,
    "phase": naive_phase,
}
"""Each part once more, after its formula."""


@pytest.mark.parametrize("size", [(6, 7), (5, 8), (1, 4)])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_its_formula(part: str, size: tuple[int, int]) -> None:
    prediction, truth = make(size=size)
    weight = weigh_pixels(truth, LossSettings())
    if part == "spatial" and 1 in size:  # one row has no neighbours below; the other half is still there
        truth = truth._replace(**{name: tensor.expand(-1, -1, 2, -1) for name, tensor in truth._asdict().items()})
        prediction, weight = prediction.expand(-1, -1, 2, -1), weight.expand(-1, -1, 2, -1)
    naive = NAIVE[part](prediction.detach().numpy(), truth.target.numpy(), weight.numpy(), truth)
    assert part_of(prediction, truth, part) == pytest.approx(naive, rel=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_only_an_equal_image_costs_nothing(part: str) -> None:
    _, truth = make()
    truth = trusted(truth)._replace(optical=truth.target)
    assert part_of(truth.target, truth, part) == pytest.approx(0, abs=1e-12)
    assert part_of(truth.target.roll(1, 3).roll(1, 1), truth, part) > 0.01


@pytest.mark.parametrize("part", PARTS)
def test_nothing_under_a_cloud_of_the_target_moves_anything(part: str) -> None:
    prediction, truth = make()
    hidden = (truth.weight == 0).expand_as(prediction)
    results = []
    for value in (None, 50.0, float("nan")):
        target = truth.target if value is None else torch.where(hidden, value, truth.target)
        loss = compute_loss(prediction, truth._replace(target=target), only(part))["total"]
        results.append((loss, *torch.autograd.grad(loss, prediction)))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
    if part != "carl":
        assert not results[0][1][hidden].any()


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("part", PARTS)
def test_without_any_trust_loss_and_gradient_are_zero(part: str, value: float) -> None:
    prediction, truth = make()
    zeros = torch.zeros_like(truth.weight)
    nothing = truth._replace(target=torch.full_like(truth.target, value), weight=zeros, valid_input=zeros)
    loss = compute_loss(prediction, nothing, only(part))["total"]
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_finite_at_dark_equal_and_opposite_images(part: str) -> None:
    _, truth = make()
    dark = truth.target * (truth.cloud > 0.5)
    for target in (truth.target, dark, torch.zeros_like(dark)):
        for image in (target, torch.zeros_like(target), -target, torch.full_like(target, 0.3)):
            leaf = image.float().requires_grad_()
            loss = compute_loss(leaf, truth._replace(target=target), only(part))["total"]
            loss.backward()
            assert loss.isfinite()
            assert (leaf.grad.abs() < 1 / FAINT).all(), "finite, and not as large as makes no difference"


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_those_of_finite_differences(part: str) -> None:
    prediction, truth = make(count=1, bands=3, size=(3, 4))
    assert torch.autograd.gradcheck(lambda image: compute_loss(image, truth, only(part))["total"], prediction)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 4)), emphasis=st.floats(0, 5))
def test_the_losses_of_the_pieces_of_a_batch_add_up(seed: int, cuts: set[int], emphasis: float) -> None:
    prediction, truth = make(seed, count=5)
    stages = [prediction, prediction + 0.1, prediction.square()]
    chosen = ALL.model_copy(update={"cloud_emphasis": emphasis})
    whole = compute_loss(stages, truth, chosen)
    ends = [0, *sorted(cuts), 5]
    pieces = [slice(start, stop) for start, stop in pairwise(ends)]
    inputs = [Truth(*(tensor[piece] for tensor in truth)) for piece in pieces]
    measured = [measure_amounts(each, chosen, weigh_pixels(each, chosen)) for each in inputs]
    amounts = {name: torch.stack([each[name] for each in measured]).sum() for name in measured[0]}
    losses = [
        compute_loss([stage[piece] for stage in stages], each, chosen, amounts=amounts) for piece, each in zip(pieces, inputs, strict=True)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(each[name] for each in losses), value)
    summed = torch.stack([each["total"] for each in losses]).sum()
    ours, theirs = (torch.autograd.grad(total, prediction, retain_graph=True)[0] for total in (summed, whole["total"]))
    torch.testing.assert_close(ours, theirs)


def test_amounts_are_scalars_that_know_nothing_of_the_prediction() -> None:
    _, truth = make()
    amounts = measure_amounts(truth, ALL, weigh_pixels(truth, ALL))
    assert set(amounts) == set(TERMS)
    assert all(amount.shape == () and amount > 0 and not amount.requires_grad for amount in amounts.values())
    assert set(measure_amounts(truth, only("carl"), truth.weight)) == {"carl_adaptive", "carl_target"}


def test_stages_are_the_mean_loss_of_the_intermediate_images() -> None:
    prediction, truth = make()
    chosen = LossSettings(sam=0.3, stages=0.5)
    alone = LossSettings(sam=0.3)
    others = [prediction + 0.1, prediction - 0.2]
    final, first, second = (compute_loss(image, truth, alone)["total"] for image in (prediction, *others))
    loss = compute_loss([prediction, *others], truth, chosen)
    torch.testing.assert_close(loss["stages"], (first + second) / 2)
    torch.testing.assert_close(loss["total"], final + 0.5 * loss["stages"])
    assert compute_loss(prediction, truth, chosen)["stages"] == 0, "a network without intermediate images"
    torch.testing.assert_close(compute_loss([prediction, *others], truth, alone)["total"], final)


def test_without_emphasis_the_pixel_part_is_the_masked_mean() -> None:
    prediction, truth = make()
    hard = truth._replace(weight=(truth.weight > 0).double())
    error = (prediction - truth.target).abs()[hard.weight.expand_as(prediction) > 0].mean()
    torch.testing.assert_close(compute_loss(prediction, hard, LossSettings(cloud_emphasis=0))["pixel"], error)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), emphasis=st.floats(0.1, 8))
def test_pixels_count_more_the_cloudier_the_input_and_one_on_average(seed: int, emphasis: float) -> None:
    """Read off the gradient: how much an error costs at each pixel against the masked mean."""
    prediction, truth = make(seed, size=(8, 8))
    hard = truth._replace(weight=(truth.weight > 0).double())
    pulls = []
    for chosen in (only("pixel", cloud_emphasis=emphasis), only("pixel", cloud_emphasis=0.0)):
        (gradient,) = torch.autograd.grad(compute_loss(prediction, hard, chosen)["total"], prediction)
        pulls.append(gradient.abs().sum(1, keepdim=True)[hard.weight > 0])
    share = pulls[0] / pulls[1]
    assert share.mean().item() == pytest.approx(1, rel=1e-9)
    order = hard.cloud[hard.weight > 0].argsort()
    assert (share[order].diff() >= 0).all()
    cloudiest, clearest = hard.cloud[hard.weight > 0].max(), hard.cloud[hard.weight > 0].min()
    assert (share.max() / share.min()).item() == pytest.approx(((1 + emphasis * cloudiest) / (1 + emphasis * clearest)).item())


@pytest.mark.parametrize("part", ["pixel", "charbonnier", "spatial", "spectral", "sam"])
def test_a_given_weight_takes_the_place_of_the_static_one(part: str) -> None:
    prediction, truth = make()
    weight = weigh_pixels(truth, LossSettings(cloud_emphasis=7))
    given_weight = compute_loss(prediction, truth, only(part), weight=weight)["total"]
    torch.testing.assert_close(given_weight, compute_loss(prediction, truth, only(part, cloud_emphasis=7.0))["total"])
    assert abs(given_weight.item() - part_of(prediction, truth, part)) > 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_size_of_the_weights_does_not_matter_only_their_ratio(seed: int, scale: float) -> None:
    prediction, truth = make(seed)
    chosen = LossSettings(charbonnier=1, sam=1, amplitude=1)
    scaled = truth._replace(weight=truth.weight * scale)
    first, second = (compute_loss(prediction, each, chosen)["total"] for each in (truth, scaled))
    torch.testing.assert_close(first, second)


def test_a_constant_error_has_no_spatial_and_no_spectral_part() -> None:
    _, truth = make()
    loss = compute_loss(truth.target + 0.1, truth, LossSettings())
    assert loss["pixel"].item() == pytest.approx(0.1)
    assert loss["spatial"].item() < 1e-12
    assert loss["spectral"].item() < 1e-12


def test_a_single_band_has_no_spectral_part() -> None:
    prediction, truth = make(bands=1)
    assert part_of(prediction, truth, "spectral") == 0


@pytest.mark.parametrize(("error", "expected"), [(1e-6, 1e-12 / (2 * CHARBONNIER)), (0.5, 0.5 - CHARBONNIER)])
def test_charbonnier_is_quadratic_near_zero_and_absolute_far_off(error: float, expected: float) -> None:
    _, truth = make()
    assert part_of(truth.target + error, truth, "charbonnier") == pytest.approx(expected, rel=1e-2)


def test_the_angle_is_that_between_the_spectra_however_bright() -> None:
    target = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    one = torch.ones(1, 1, 1, 1)
    truth = Truth(target, one, one, target, one)
    for degrees in (0.01, 45.0, 90.0, 179.0):
        for brightness in (0.01, 3.0):
            angle = math.radians(degrees)
            image = brightness * torch.tensor([math.cos(angle), math.sin(angle)]).reshape(1, 2, 1, 1)
            assert part_of(image, truth, "sam") == pytest.approx(angle, rel=1e-5)


def test_the_angle_of_a_batch_is_the_mean_over_its_images() -> None:
    """Not the angle of spectra that run on from one image into the next."""
    prediction, truth = make()
    truth = trusted(truth)
    both = part_of(prediction, truth, "sam", cloud_emphasis=0.0)
    each = [part_of(prediction[n : n + 1], Truth(*(t[n : n + 1] for t in truth)), "sam", cloud_emphasis=0.0) for n in (0, 1)]
    assert both == pytest.approx(sum(each) / 2)


def test_a_target_without_any_light_has_no_angle() -> None:
    prediction, truth = make()
    truth = trusted(truth)
    dark = truth._replace(target=truth.target * (truth.cloud > 0.5))
    lit = truth._replace(weight=(truth.cloud > 0.5).double())
    assert part_of(prediction, dark, "sam") == pytest.approx(part_of(prediction, lit, "sam"))


def test_clear_input_is_to_be_kept_and_cloudy_input_replaced() -> None:
    """The clear term compares with the input, not with the prediction itself."""
    _, truth = make()
    truth = trusted(truth)
    clear, cloudy = (truth._replace(cloud=torch.full_like(truth.cloud, value)) for value in (0.0, 1.0))
    gap = (truth.optical - truth.target).abs().mean().item()
    assert part_of(truth.target, clear, "carl") == pytest.approx(gap), "equals the target, but changed what was clear"
    assert part_of(truth.optical, clear, "carl") == pytest.approx(gap), "kept what was clear, but is not the target"
    assert part_of(truth.target, cloudy, "carl") == 0
    assert part_of(truth.optical, cloudy, "carl") == pytest.approx(2 * gap)


def test_clear_input_is_not_followed_where_it_was_not_observed() -> None:
    prediction, truth = make()
    hidden = truth.valid_input == 0
    changed = truth._replace(optical=torch.where(hidden, 9.0, truth.optical), cloud=torch.where(hidden, 0.5, truth.cloud))
    again = changed._replace(optical=torch.where(hidden, -9.0, truth.optical))
    assert part_of(prediction, changed, "carl") == part_of(prediction, again, "carl")


def wave(phase: float, *, amplitude: float = 0.1) -> Tensor:
    """Two waves across an image of 16 px, without a mean."""
    columns = 2 * math.pi * 2 * torch.arange(16, dtype=torch.float64) / 16
    return (amplitude * torch.cos(columns + phase)).expand(1, 1, 16, 16)


def waves(phase: float) -> Truth:
    ones = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    return Truth(wave(phase), ones, ones, wave(phase), ones)


@pytest.mark.parametrize("start", [0.0, math.pi - 0.05, -math.pi + 0.05, 3.0])
def test_phases_lie_on_a_circle(start: float) -> None:
    """A whole turn changes nothing, and either side of the cut at pi is as near as anywhere else."""
    for step in (0.1, -0.1, 0.1 + 2 * math.pi, math.pi):
        assert part_of(wave(start + step), waves(start), "phase") == pytest.approx(1 - math.cos(step), abs=1e-9)


def test_phase_does_not_see_the_amplitude_nor_amplitude_the_phase() -> None:
    assert part_of(wave(0.3, amplitude=0.4), waves(0.3), "phase") == pytest.approx(0, abs=1e-12)
    assert part_of(wave(0.9), waves(0.3), "amplitude") == pytest.approx(0, abs=1e-12)
    _, truth = make()
    truth = trusted(truth)
    moved = [part_of(truth.target.roll(step, 3), truth, "phase") for step in (1, -1)]
    assert moved[0] == pytest.approx(moved[1])
    assert part_of(truth.target.roll((2, 3), (2, 3)), truth, "amplitude") == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("part", ["spatial", "amplitude", "phase"])
def test_rows_and_columns_are_alike(part: str) -> None:
    prediction, truth = make()
    turned = Truth(*(tensor.transpose(2, 3) for tensor in truth))
    assert part_of(prediction.transpose(2, 3), turned, part) == pytest.approx(part_of(prediction, truth, part))


def test_noise_costs_as_much_amplitude_whatever_share_of_it_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(2, 3, 64, 64, generator=generator)
    zeros, ones = torch.zeros_like(noise), torch.ones(2, 1, 64, 64)
    seen = (torch.rand(2, 1, 64, 64, generator=generator) < 0.1).float()
    whole, tenth = (part_of(noise, Truth(zeros, trust, ones, zeros, ones), "amplitude") for trust in (ones, seen))
    rayleigh = 0.02 * math.sqrt(math.pi) / 2  # mean length of a complex normal number of variance 0.02^2
    assert whole == pytest.approx(rayleigh, rel=0.03)
    assert tenth == pytest.approx(rayleigh, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_compared_in_full(dtype: torch.dtype) -> None:
    prediction, truth = make()
    truth = Truth(*(tensor.float() for tensor in truth))
    coarse = prediction.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = compute_loss([coarse, coarse + 1], truth, ALL)
    full = compute_loss([coarse.float(), (coarse + 1).float()], truth, ALL)
    for name, value in loss.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[name])
    loss["total"].backward()
    assert coarse.grad.isfinite().all()


def test_no_value_is_looked_at_on_the_way() -> None:
    """Tensors without values take the same way: nothing waits for a GPU, and a compiler sees one graph."""
    prediction, truth = make()
    empty = Truth(*(tensor.to("meta") for tensor in truth))
    losses = compute_loss([prediction.to("meta"), prediction.to("meta")], empty, ALL)
    assert all(loss.shape == () and loss.is_meta for loss in losses.values())
