"""Laws of the generators and critics of STFGAN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import StfganSettings
from sereno.model.networks.stfgan import Discriminator, Generator, Stfgan, coarsen
from sereno.model.temporal import predict_by_change

SMALL: dict[str, Any] = {"name": "stfgan", "width": 8, "coarse_blocks": 2, "fine_blocks": 1, "reach_px": None}
BANDS = 3


def make(**changes: object) -> Stfgan:
    torch.manual_seed(0)
    return Stfgan(StfganSettings(**SMALL | changes), mean=[0.2] * BANDS, std=[0.1] * BANDS)


def make_critic(**changes: object) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(StfganSettings(**SMALL | changes), mean=[0.2] * BANDS, std=[0.1] * BANDS)


def draw(ratio: int = 16, *, side: int = 2, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, BANDS, side, side + 1, generator=generator) * 0.4
    return coarse, torch.rand(count, 2, BANDS, side * ratio, (side + 1) * ratio, generator=generator) * 0.4


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("norm", ["channel", "batch"])
@pytest.mark.parametrize("base", ["change", "none"])
def test_size_is_the_one_counted_in_the_re_implementation(norm: str, base: str) -> None:
    settings = StfganSettings(name="stfgan", norm=norm, base=base)
    assert count_parameters(Generator(6, settings)) == 2_366_086
    assert count_parameters(Discriminator(settings, mean=[0.2] * 6, std=[0.1] * 6)) == 5_217_153
    assert count_parameters(Stfgan(settings, mean=[0.2] * 6, std=[0.1] * 6)) == 2 * 2_366_086


@pytest.mark.parametrize(("stages", "ratio"), [(1, 4), (2, 16)])
@pytest.mark.parametrize("base", ["change", "none"])
def test_pixels_become_four_times_as_small_per_stage(stages: int, ratio: int, base: str) -> None:
    network, (coarse, fine) = make(stages=stages, base=base).eval(), draw(ratio)
    images = network.forward_stages(coarse, fine)
    assert network.ratio == ratio
    assert [image.shape[2:] for image in images] == [fine.shape[3:], *([(8, 12)] if stages == 2 else [])]
    assert torch.equal(network(coarse, fine), images[0])


def test_without_a_base_reflectance_lies_between_0_and_1() -> None:
    network, (coarse, fine) = make(base="none"), draw()
    with torch.no_grad():
        network.generators[1].merge.weight.mul_(100)
    image = network(coarse, fine)
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.1


def test_training_starts_at_the_fine_dates_moved_by_the_change_of_the_coarse_ones() -> None:
    network, (coarse, fine) = make().eval(), draw()
    image, first = network.forward_stages(coarse, fine)
    between = coarsen(fine)
    torch.testing.assert_close(first, predict_by_change(coarse, between), atol=0.02, rtol=0)
    middle = torch.stack([between[:, 0], first, between[:, 1]], dim=1)
    torch.testing.assert_close(image, predict_by_change(middle, fine), atol=0.02, rtol=0)
    assert not torch.equal(image, predict_by_change(middle, fine))


@pytest.mark.parametrize(("reach", "stages", "expected"), [(32, 2, [8, 32]), (2, 2, [1, 2]), (None, 2, [None, None]), (32, 1, [32])])
def test_a_reach_in_fine_pixels_is_as_long_on_the_grid_of_each_stage(reach: int | None, stages: int, expected: list[int | None]) -> None:
    assert [generator.reach_px for generator in make(reach_px=reach, stages=stages).generators] == expected


def test_within_its_reach_the_date_across_the_smaller_change_is_taken() -> None:
    """Land at the left changes by 0.2 before the middle date, at the right after it: F3 = 0.5 and F1 = 0.1 stay as they are.

    Over the whole image both changes are as large: the means of 0.3 and 0.5, of 0.1 and 0.3.
    """
    coarse = torch.full((1, 3, BANDS, 4, 16), 0.2)
    coarse[:, 1:, ..., :8] += 0.2
    coarse[:, 2, ..., 8:] += 0.2
    fine = torch.tensor([0.1, 0.5])[None, :, None, None, None].expand(1, 2, BANDS, 16, 64)
    for reach, expected in ((4, [0.5, 0.1]), (None, [0.4, 0.2])):
        network = make(stages=1, reach_px=reach)
        with torch.no_grad():
            network.generators[0].merge.weight.zero_()
            network.generators[0].merge.bias.zero_()
        image = network(coarse, fine)
        assert [image[0, 0, 8, column].item() for column in (8, 56)] == pytest.approx(expected, abs=1e-3)


def test_the_second_stage_sees_what_the_first_gives_in_training_as_in_use() -> None:
    network, (coarse, fine) = make(), draw()
    seen = []
    network.generators[1].register_forward_pre_hook(lambda _, inputs: seen.append(network.scale.restore(inputs[0])[:, 1]))
    for mode in (True, False):
        first = network.train(mode).forward_stages(coarse, fine)[1]
        torch.testing.assert_close(seen[-1], first)


@pytest.mark.parametrize("joint", [False, True])
def test_the_loss_of_the_second_stage_trains_the_first_only_if_asked(joint: bool) -> None:
    network, (coarse, fine) = make(joint=joint), draw()
    network(coarse, fine).square().mean().backward()
    first, second = (any(parameter.grad is not None for parameter in stage.parameters()) for stage in network.generators)
    assert second
    assert first == joint


@pytest.mark.parametrize("changes", [{}, {"base": "none"}, {"norm": "batch"}, {"stages": 1}], ids=str)
def test_every_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    network = make(joint=True, **changes)
    images = network.forward_stages(*draw(network.ratio))
    sum(image.square().mean() for image in images).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    critic = make_critic(**changes)
    critic(draw()[1][:, 0]).square().mean().backward()
    assert [name for name, parameter in critic.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_images_of_a_batch_stay_apart_unless_the_batch_is_normalised() -> None:
    (coarse, fine) = draw()
    for norm, apart in [("channel", True), ("batch", False)]:
        network, critic = make(norm=norm, base="none"), make_critic(norm=norm)
        together, alone = network(coarse, fine), torch.cat([network(coarse[n : n + 1], fine[n : n + 1]) for n in range(2)])
        assert torch.allclose(together, alone, atol=1e-5) == apart
        scores = torch.cat([critic(fine[n : n + 1, 0]) for n in range(2)])
        assert torch.allclose(critic(fine[:, 0]), scores, atol=1e-5) == apart


@pytest.mark.parametrize("size", [(64, 48), (5, 7), (1, 1)])
def test_the_critic_gives_one_score_per_image_of_any_size(size: tuple[int, int]) -> None:
    scores = make_critic()(torch.rand(3, BANDS, *size))
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32


def test_coarsening_takes_means() -> None:
    fine = torch.rand(2, 2, 3, 8, 12)
    torch.testing.assert_close(coarsen(fine)[1, 1, 2, 0, 1], fine[1, 1, 2, :4, 4:8].mean())


def test_under_bf16_an_image_keeps_what_the_base_knows() -> None:
    network, (coarse, fine) = make().eval(), draw()
    plain = network(coarse, fine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarser = network(coarse, fine)
    assert coarser.dtype == torch.float32
    torch.testing.assert_close(coarser, plain, atol=2e-4, rtol=0)


def draw_growth(count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse and fine images, and the middle one: bright ground alone changes, which a coarse pixel cannot say."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.randint(2, (count, 1, 1, 8, 8), generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    growth = torch.rand(count, 3, 1, 1, 1, generator=generator) * 0.2
    dates = (0.1 + (0.2 + growth) * kinds).expand(-1, -1, BANDS, -1, -1)
    return F.avg_pool2d(dates.flatten(0, 1), 4).unflatten(0, (count, 3)), dates[:, ::2], dates[:, 1]


@pytest.mark.parametrize(("base", "lr"), [("change", 3e-3), ("none", 1e-3)])
def test_one_batch_is_learnt(base: str, lr: float) -> None:
    coarse, fine, target = draw_growth()
    network = make(stages=1, base=base, width=16)
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=lr), []
    for _ in range(100):
        loss = (network(coarse, fine) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < (0.4 if base == "change" else 0.1) * losses[0]
