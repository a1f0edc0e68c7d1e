"""Laws of the objectives: cases with a closed form, and what moves what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sereno.model.adversarial import (
    OBJECTIVES,
    Contest,
    check_critic,
    compute_critic_loss,
    compute_fooling_loss,
    compute_gradient_penalty,
    create_critics,
    restrain_critic,
    show_trusted,
    weigh_critic,
)
from sereno.model.config import AdversarialSettings, StfganSettings, TrainSettings
from sereno.model.layers import ChannelNorm
from sereno.model.networks.stfgan import Discriminator, Stfgan
from sereno.pipeline.errors import ConfigError

BANDS = 2
NAMES = tuple(OBJECTIVES)


class Linear(nn.Module):
    """A score that is a weighted sum of all pixels: its gradient is the weights, wherever it is taken."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, image: Tensor) -> Tensor:
        return torch.einsum("bchw,chw->b", image, self.weight)


class Bowl(nn.Module):
    """Half the squared length of the image times a factor: its gradient is the factor times the image."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image.square().sum(dim=(1, 2, 3)) / 2


def settings_of(objective: str, **more: float) -> AdversarialSettings:
    return AdversarialSettings.model_validate({"objective": objective, **more})


def draw(count: int = 4, seed: int = 0) -> Contest:
    real, made = torch.rand(2, count, BANDS, 5, 6, generator=torch.Generator().manual_seed(seed))
    return Contest(real, made, count)


def draw_weight(length: float) -> Tensor:
    weight = torch.randn(BANDS, 5, 6, generator=torch.Generator().manual_seed(3))
    return weight * length / weight.norm()


def small_critic(norm: str = "channel") -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(StfganSettings(name="stfgan", width=4, norm=norm), mean=[0.4] * BANDS, std=[0.3] * BANDS)


def test_objectives_are_those_of_the_settings() -> None:
    for name in NAMES:
        assert settings_of(name).objective == name
    choices = AdversarialSettings.model_json_schema()["properties"]["objective"]["enum"]
    assert tuple(choices) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_their_formulas(name: str) -> None:
    critic, contest = Linear(draw_weight(2.0)), draw()
    real, made = critic(contest.real), critic(contest.made)
    loss = compute_critic_loss(critic, contest, settings_of(name, penalty=3.0), shares=torch.rand(4))
    expected = {
        "wgan-clip": made.mean() - real.mean(),
        "wgan-gp": made.mean() - real.mean() + 3.0 * (2.0 - 1.0) ** 2,
        "lsgan": ((real - 1).square().mean() + made.square().mean()) / 2,
    }
    torch.testing.assert_close(loss.total, expected[name])
    torch.testing.assert_close(loss.margin, real.mean() - made.mean())
    fooling = compute_fooling_loss(critic, contest.made, settings_of(name))
    torch.testing.assert_close(fooling, ((made - 1).square() / 2).mean() if name == "lsgan" else -made.mean())


@pytest.mark.parametrize("length", [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_known_whatever_the_images(length: float) -> None:
    for count in (1, 4, 7):
        penalty = compute_gradient_penalty(Linear(draw_weight(length)), draw(count, seed=count), torch.rand(count))
        assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_the_penalty_is_taken_between_the_images_and_is_a_mean_over_the_batch() -> None:
    contest, shares = draw(), torch.tensor([0.0, 0.25, 0.5, 1.0])
    share = shares[:, None, None, None]
    between = share * contest.real + (1 - share) * contest.made
    expected = (0.7 * between.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(compute_gradient_penalty(Bowl(0.7), contest, shares), expected)


def test_the_penalty_trains_the_critic_towards_gradients_of_length_one() -> None:
    critic, contest = Linear(draw_weight(3.0)), draw()
    optimiser = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(60):
        loss = compute_gradient_penalty(critic, contest, torch.rand(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert critic.weight.norm().item() == pytest.approx(1, abs=1e-3)


def test_a_critic_without_any_gradient_has_a_finite_one_of_the_penalty() -> None:
    critic = Linear(torch.zeros(BANDS, 5, 6))
    penalty = compute_gradient_penalty(critic, draw(), torch.rand(4))
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-4)
    assert critic.weight.grad is not None
    assert critic.weight.grad.isfinite().all()


def test_under_bf16_the_penalty_is_the_same_to_the_last_bit() -> None:
    critic, shares = small_critic(), torch.rand(3)
    real, made = torch.rand(2, 3, BANDS, 16, 16)
    plain = compute_gradient_penalty(critic, Contest(real, made, 3), shares)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = compute_gradient_penalty(critic, Contest(real, made, 3), shares)
        loss = compute_critic_loss(critic, Contest(real, made, 3), settings_of("wgan-gp"), shares=shares)
    assert torch.equal(plain, coarse)
    assert loss.total.dtype == torch.float32
    assert torch.equal(loss.penalty, plain)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_a_batch_add_up_to_the_whole(name: str) -> None:
    contest, shares, settings = draw(), torch.rand(4), settings_of(name)
    critic = Bowl(0.7)
    whole = compute_critic_loss(critic, contest, settings, shares=shares)
    cuts = (slice(0, 1), slice(1, 4))
    pieces = [compute_critic_loss(critic, Contest(contest.real[cut], contest.made[cut], 4), settings, shares=shares[cut]) for cut in cuts]
    for field in whole._fields:
        torch.testing.assert_close(sum(getattr(piece, field) for piece in pieces), getattr(whole, field))
    fooled = sum(compute_fooling_loss(critic, contest.made[cut], settings, images=4) for cut in cuts)
    torch.testing.assert_close(fooled, compute_fooling_loss(critic, contest.made, settings))


@pytest.mark.parametrize("name", NAMES)
def test_the_two_sides_train_apart(name: str) -> None:
    critic, contest = small_critic(), draw()
    made = contest.made.clone().requires_grad_()
    compute_critic_loss(critic, contest._replace(made=made), settings_of(name), shares=torch.rand(4)).total.backward()
    assert made.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())
    critic.zero_grad(set_to_none=True)
    compute_fooling_loss(critic, made, settings_of(name)).backward()
    assert made.grad is not None
    assert made.grad.any()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_only_a_clipped_critic_is_changed_after_its_step(name: str) -> None:
    critic = small_critic()
    before = {key: value.clone() for key, value in critic.state_dict().items()}
    restrain_critic(critic, settings_of(name, clip=0.02))
    norms = {f"layers.{place}." for place, layer in enumerate(critic.layers) if isinstance(layer, ChannelNorm)}
    assert len(norms) == 7
    for key, value in critic.state_dict().items():
        free = name != "wgan-clip" or key.startswith((*norms, "scale."))
        assert torch.equal(value, before[key] if free else before[key].clamp(-0.02, 0.02))


@pytest.mark.parametrize("norm", ["channel", "batch"])
def test_a_clipped_critic_of_stfgan_still_learns(norm: str) -> None:
    """With the scales of its norms clipped as well its scores would not move: margins of 1e-7."""
    critic, settings = small_critic(norm), settings_of("wgan-clip", clip=0.05)
    optimiser, generator = torch.optim.RMSprop(critic.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    margins = []
    for _ in range(40):
        real = 0.4 + 0.3 * torch.randn(4, BANDS, 16, 16, generator=generator)
        loss = compute_critic_loss(critic, Contest(real, real[:, :, :1].expand_as(real), 4), settings, shares=torch.rand(4))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        restrain_critic(critic, settings)
        margins.append(loss.margin.item())
    assert sum(margins[-5:]) / 5 > 1e-2


def test_a_penalty_and_batch_norms_are_refused_in_one_line() -> None:
    check_critic(small_critic(), settings_of("wgan-gp"))
    check_critic(small_critic("batch"), settings_of("lsgan"))
    with pytest.raises(ConfigError, match=r"batch norms.*'network.norm'") as caught:
        check_critic(small_critic("batch"), settings_of("wgan-gp"))
    assert "\n" not in str(caught.value)


def test_the_critic_has_no_say_during_the_warm_up() -> None:
    settings = settings_of("lsgan", weight=0.01, warmup_steps=5)
    assert [weigh_critic(settings, step) for step in (0, 4, 5, 6)] == [0, 0, 0.01, 0.01]


def test_what_is_not_trusted_tells_nothing() -> None:
    contest, trust = draw(), torch.ones(4, 1, 5, 6)
    trust[:, :, 2:4] = 0
    spoilt = torch.where(trust > 0, contest.made, torch.nan)
    assert torch.equal(show_trusted(spoilt, trust), show_trusted(contest.made, trust))
    made = contest.made.clone().requires_grad_()
    compute_fooling_loss(small_critic(), show_trusted(made, trust), settings_of("lsgan")).backward()
    assert made.grad is not None
    assert not made.grad[:, :, 2:4].any()


@pytest.mark.parametrize("name", NAMES)
def test_under_bf16_both_sides_of_stfgan_get_gradients_near_those_of_fp32(name: str) -> None:
    torch.manual_seed(0)
    network_settings = StfganSettings(name="stfgan", width=8, coarse_blocks=1, fine_blocks=1, stages=1)
    network, critic = (kind(network_settings, mean=[0.4] * BANDS, std=[0.3] * BANDS) for kind in (Stfgan, Discriminator))
    coarse, fine, target = torch.rand(2, 3, BANDS, 4, 4), torch.rand(2, 2, BANDS, 16, 16), torch.rand(2, BANDS, 16, 16)
    settings, gradients = settings_of(name), []
    for enabled in (False, True):
        network.zero_grad()
        critic.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            made = network(coarse, fine)
            fooling = compute_fooling_loss(critic, made, settings)
            judged = compute_critic_loss(critic, Contest(target, made, 2), settings, shares=torch.tensor([0.3, 0.6])).total
        assert fooling.dtype == judged.dtype == torch.float32
        (fooling + judged).backward()
        gradients.append([torch.cat([parameter.grad.flatten() for parameter in side.parameters()]) for side in (network, critic)])
    for exact, rounded in zip(*gradients, strict=True):
        assert torch.cosine_similarity(exact, rounded, dim=0) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_a_critic_learns_to_tell_apart_and_a_network_to_fool_it(name: str) -> None:
    """Real images have a texture; what is made starts flat and gets one."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    settings = settings_of(name, clip=0.1)
    critic = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(0, 2), nn.Unflatten(0, (-1, 8))
    )
    judge = nn.Sequential(critic, nn.Flatten(), nn.Linear(8, 1), nn.Flatten(0))
    maker = nn.Conv2d(1, 1, 1)
    nn.init.constant_(maker.weight, 0.1)
    steps = torch.optim.RMSprop(judge.parameters(), lr=5e-3), torch.optim.RMSprop(maker.parameters(), lr=5e-3)
    roughness = []
    for number in range(200):
        real = torch.randn(16, 1, 8, 8, generator=generator)
        made = maker(torch.randn(16, 1, 8, 8, generator=generator))
        loss = compute_critic_loss(judge, Contest(real, made, 16), settings, shares=torch.rand(16, generator=generator)).total
        steps[0].zero_grad()
        loss.backward()
        steps[0].step()
        restrain_critic(judge, settings)
        if number >= 50:
            fooling = compute_fooling_loss(judge, made, settings)
            steps[1].zero_grad()
            fooling.backward()
            steps[1].step()
        roughness.append(made.std().item())
    assert math.isclose(roughness[0], 0.1, rel_tol=0.1)
    assert roughness[-1] > 0.4


def make_critics(**settings: object) -> nn.ModuleList:
    return create_critics(TrainSettings.model_validate(settings), (0.1,) * 3, (0.1,) * 3)


def test_critics_are_as_many_as_stages_and_depend_on_the_seed_alone() -> None:
    gan = {"network": {"name": "stfgan", "width": 4}, "adversarial": {"width": 8}}
    first, again, other = (make_critics(**gan, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 2
    states = [critics.state_dict() for critics in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    (single,) = make_critics(adversarial={"width": 8})
    assert single(torch.rand(2, 3, 16, 16)).shape == (2,)
    with pytest.raises(ConfigError, match=r"set 'network\.norm' to channel"):
        make_critics(network={"name": "stfgan", "width": 4, "norm": "batch"}, adversarial={"objective": "wgan-gp"})
