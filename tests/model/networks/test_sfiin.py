"""Laws of SFIIN as a whole; its blocks have theirs in `test_frequency.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sereno.model.config import SfiinSettings
from sereno.model.networks.sfiin import Sfiin
from sereno.model.sharpening import TYPICAL_MS_GAIN, degrade, enlarge
from sereno.pipeline.errors import DataError

FORMS = ["invertible", "convolution"]


def make(*, bands: int = 4, guides: int = 1, **settings: Any) -> Sfiin:
    torch.manual_seed(0)
    chosen = SfiinSettings.model_validate({"name": "sfiin"} | settings)
    return Sfiin(chosen, mean=[0.25] * bands, std=[0.1] * bands, pan_mean=[0.25] * guides, pan_std=[0.1] * guides)


def make_images(
    *, bands: int = 4, guides: int = 1, size: tuple[int, int] = (6, 8), ratio: int = 4, count: int = 2
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    fine = (size[0] * ratio, size[1] * ratio)
    return torch.rand(count, bands, *size, generator=generator), torch.rand(count, guides, *fine, generator=generator)


@pytest.mark.parametrize(
    ("settings", "bands", "count"),
    [
        ({}, 4, 85_270),
        ({}, 8, 85_850),
        ({"width": 4}, 4, 49_117),
        ({"width": 16}, 4, 201_496),
        ({"width": 32}, 13, 614_821),
        ({"width": 64}, 13, 2_138_989),
    ],
)
def test_parameters_are_as_many_as_in_the_published_benchmark_and_in_the_authors_code(settings: Any, bands: int, count: int) -> None:
    """85.3 K and 85.8 K at width 8 are printed in the benchmark of LGTEUN; the others are counted from the authors' layers."""
    assert sum(parameter.numel() for parameter in make(bands=bands, **settings).parameters()) == count


def test_the_plain_form_is_smaller_by_its_invertible_blocks() -> None:
    """3 dense blocks, a mixing and a 1x1 convolution give way to one 3x3 convolution, five times."""
    dense = 2 * (8 * 8 + 8 + 2 * (9 * 8 * 8 + 8)) + 9 * 24 * 8 + 8
    invertible, plain = 3 * dense + 2 * 16 * 16 + 16 + 16 * 8 + 8, 9 * 16 * 8 + 8
    counts = [sum(parameter.numel() for parameter in make(spatial=form).parameters()) for form in FORMS]
    assert counts[0] - counts[1] == 5 * (invertible - plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("bands", "guides", "size", "ratio"), [(4, 1, (6, 8), 4), (8, 1, (5, 7), 4), (6, 4, (9, 5), 2), (3, 1, (3, 4), 3), (13, 2, (11, 8), 1)]
)
def test_any_whole_ratio_size_and_number_of_bands_is_taken(form: str, bands: int, guides: int, size: tuple[int, int], ratio: int) -> None:
    network = make(bands=bands, guides=guides, spatial=form, blocks=2)
    ms, pan = make_images(bands=bands, guides=guides, size=size, ratio=ratio)
    assert network(ms, pan).shape == (2, bands, *pan.shape[2:])


def test_a_ratio_that_is_not_whole_is_refused() -> None:
    with pytest.raises(DataError, match="one whole ratio"):
        make()(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 20, 20))


@pytest.mark.parametrize("form", FORMS)
def test_training_starts_at_the_enlarged_image(form: str) -> None:
    ms, pan = make_images()
    assert 0 < (make(spatial=form)(ms, pan) - enlarge(ms, 4)).abs().max() < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient_and_images_of_a_batch_stay_apart(form: str) -> None:
    """But for what the last block does to its guide, which nobody sees any more, all of it counts."""
    network, (ms, pan) = make(spatial=form), make_images(count=3)
    sharp = network(ms, pan)
    (sharp - 0.5).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    alone = torch.cat([network(ms[n : n + 1], pan[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(sharp, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_pan_moves_the_image_near_by_and_far_off(form: str) -> None:
    network, (ms, pan) = make(spatial=form), make_images(size=(8, 16), count=1)
    with torch.no_grad():
        network.last.weight.mul_(100)
    changed = pan.clone()
    changed[..., :2] += 0.5
    moved = (network(ms, pan) - network(ms, changed)).abs().amax((0, 1, 2))
    assert moved[:2].max() > 1e-3
    assert moved[-8:].max() > 1e-6


@pytest.mark.parametrize("block", [0, 1, 2])
def test_what_each_block_found_is_joined(block: int) -> None:
    """Weights that look at one block alone: what comes after it moves nothing, what is in it does."""
    network, (ms, pan) = make(blocks=3), make_images(count=1)
    with torch.no_grad():
        network.last.weight.mul_(100)
        network.join.weight[:, : 8 * block] = 0
        network.join.weight[:, 8 * (block + 1) :] = 0
    sharp, moved = network(ms, pan), []
    for other in reversed(network.blocks):
        with torch.no_grad():
            other.interact.merge.bias.add_(1)
        moved.append(not torch.equal(network(ms, pan), sharp))
    assert moved == [False] * (2 - block) + [True] * (block + 1)


def test_bands_of_any_brightness_are_seen_alike() -> None:
    """Twice the reflectance with twice the mean and deviation comes out doubled."""
    ms, pan = make_images()
    one, other = make(), make()
    for scale in (other.scale, other.scale_pan):
        scale.mean.mul_(2)
        scale.std.mul_(2)
    torch.testing.assert_close(other(2 * ms, 2 * pan), 2 * one(ms, pan), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_stays_near(form: str) -> None:
    network, (ms, pan) = make(spatial=form), make_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(ms, pan)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, network(ms, pan), atol=5e-3, rtol=0)


def make_fields(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fields of nine crops: multispectral (N, 4, 8, 8), a pan that sees no near infrared (N, 1, 32, 32), truth (N, 4, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    spectra = 0.1 + 0.3 * torch.rand(9, 4, generator=torch.Generator().manual_seed(7))
    corners = 32 * torch.rand(count, 24, 2, generator=generator)
    pixels = torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0))
    crops = torch.randint(9, (count, 24), generator=generator)
    nearest = torch.cdist(pixels.expand(count, -1, -1), corners).argmin(dim=2)
    truth = spectra[crops.gather(1, nearest)].mT.reshape(count, 4, 32, 32)
    truth = truth * (1 + 0.05 * torch.randn(count, 1, 32, 32, generator=generator))
    pan = truth[:, :3].mean(dim=1, keepdim=True)
    return degrade(truth, 4, [TYPICAL_MS_GAIN] * 4), pan, truth


def measure_psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * (image - truth).square().mean().log10().item()


@pytest.mark.parametrize("form", FORMS)
def test_a_little_training_beats_enlarging_on_ground_never_seen(form: str) -> None:
    network = make(spatial=form, blocks=1)
    ms, pan, truth = make_fields(32, seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=6e-3)
    chosen = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = torch.randint(32, (4,), generator=chosen)
        loss = (network(ms[batch], pan[batch]) - truth[batch]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ms, pan, truth = make_fields(8, seed=1)
    with torch.no_grad():
        assert measure_psnr(network(ms, pan), truth) > measure_psnr(enlarge(ms, 4), truth) + 1
