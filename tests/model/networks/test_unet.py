"""Laws of the yardstick: a fair one, as large as ours and starting at the same place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sereno.model.batches import Batch
from sereno.model.config import AfsstSettings, LossSettings, UnetSettings
from sereno.model.layers import smooth_fill
from sereno.model.losses import compute_loss
from sereno.model.networks.afsst import Afsst
from sereno.model.networks.unet import Unet

SMALL = UnetSettings(name="unet", width=8, levels=3)


def make(settings: UnetSettings = SMALL, *, bands: int = 5, sar_bands: int = 2) -> Unet:
    torch.manual_seed(0)
    return Unet(settings, sar_bands=sar_bands, mean=[0.2] * bands, std=[0.1] * bands)


def images(*, bands: int = 5, sar_bands: int = 2, size: tuple[int, int] = (16, 24)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    optical, sar, cloud = (torch.rand((2, channels, *size), generator=generator) for channels in (bands, sar_bands, 1))
    return optical, sar, (cloud > 0.5).float()


@pytest.mark.parametrize("stem_px", [1, 2, 4])
@pytest.mark.parametrize(("bands", "sar_bands", "size"), [(13, 2, (16, 16)), (4, 1, (33, 50)), (8, 2, (5, 7)), (1, 0, (1, 1))])
def test_any_number_of_bands_and_any_size_is_taken(stem_px: int, bands: int, sar_bands: int, size: tuple[int, int]) -> None:
    settings = SMALL.model_copy(update={"stem_px": stem_px, "use_sar": sar_bands > 0})
    inputs = images(bands=bands, sar_bands=sar_bands, size=size)
    assert make(settings, bands=bands, sar_bands=sar_bands)(*inputs).shape == inputs[0].shape


@pytest.mark.parametrize("stem_px", [1, 2])
def test_it_is_about_as_large_as_afsst_s(stem_px: int) -> None:
    """Counted with 13 optical and 2 SAR bands, as everywhere."""
    values = {"sar_bands": 2, "mean": [0.2] * 13, "std": [0.1] * 13}
    unet, afsst = Unet(UnetSettings(name="unet", stem_px=stem_px), **values), Afsst(AfsstSettings(size="S", stem_px=stem_px), **values)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (unet, afsst)]
    assert counts[0] == pytest.approx(counts[1], rel=0.15), counts


@pytest.mark.parametrize("base", ["cloudy", "filled"])
def test_training_starts_at_the_base(base: str) -> None:
    network, (optical, sar, cloud) = make(SMALL.model_copy(update={"base": base})), images()
    expected = optical if base == "cloudy" else smooth_fill(optical, 1 - cloud, network.mean)
    assert 0 < (network(optical, sar, cloud) - expected).abs().max() < 0.02


def test_sar_moves_the_output_unless_it_is_switched_off() -> None:
    optical, sar, cloud = images()
    with_sar, without = make(), make(SMALL.model_copy(update={"use_sar": False}))
    assert not torch.allclose(with_sar(optical, sar, cloud), with_sar(optical, 1 - sar, cloud), atol=1e-5)
    assert torch.equal(without(optical, sar, cloud), without(optical, 1 - sar, cloud))


def test_every_parameter_gets_a_gradient() -> None:
    network, inputs = make(), images()
    ones = torch.ones_like(inputs[2])
    batch = Batch(*inputs, torch.zeros_like(inputs[0]), ones, ones, ones)
    compute_loss(network(*inputs), batch, LossSettings())["total"].backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_a_pixel_is_felt_as_far_as_the_deepest_level_sees_and_no_farther() -> None:
    """At three levels the deepest one has 4 px to a token: far pixels are seen, but not those a whole image away."""
    network = make()
    optical, sar, cloud = (image[:1] for image in images(size=(16, 256)))
    cloud = torch.zeros_like(cloud)
    changed = optical.clone()
    changed[..., :8, :8] += 1
    moved = (network(changed, sar, cloud) - network(optical, sar, cloud) - (changed - optical)).abs().amax((0, 1, 2))
    assert moved[8:24].min() > 0
    assert moved[160:].max() == 0
