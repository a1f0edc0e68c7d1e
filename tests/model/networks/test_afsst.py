"""Laws of the network as a whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sereno.model.config import AfsstSettings, LossSettings
from sereno.model.data import Batch
from sereno.model.layers import smooth_fill
from sereno.model.losses import compute_loss
from sereno.model.networks.afsst import Afsst

SMALL = AfsstSettings(width=8, head_dim=4, levels=2, blocks=2, window_px=4)


def make(settings: AfsstSettings = SMALL, *, bands: int = 5, sar_bands: int = 2) -> Afsst:
    torch.manual_seed(0)
    return Afsst(settings, sar_bands=sar_bands, mean=[0.2] * bands, std=[0.1] * bands)


def images(*, bands: int = 5, sar_bands: int = 2, size: tuple[int, int] = (16, 24), count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((count, bands, *size), (count, sar_bands, *size), (count, 1, *size))
    optical, sar, cloud = (torch.rand(shape, generator=generator) for shape in shapes)
    return optical, sar, (cloud > 0.5).float()


def batch_of(inputs: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Batch:
    ones = torch.ones_like(inputs[2])
    return Batch(*inputs, target, ones, ones, ones)


@pytest.mark.parametrize("stem_px", [1, 2, 4])
@pytest.mark.parametrize(("bands", "sar_bands", "size"), [(1, 1, (16, 16)), (13, 2, (33, 50)), (4, 3, (5, 7)), (5, 2, (1, 1))])
def test_any_number_of_bands_and_any_size_is_taken(stem_px: int, bands: int, sar_bands: int, size: tuple[int, int]) -> None:
    network = make(SMALL.model_copy(update={"stem_px": stem_px}), bands=bands, sar_bands=sar_bands).eval()
    inputs = images(bands=bands, sar_bands=sar_bands, size=size)
    assert network(*inputs).shape == inputs[0].shape


@pytest.mark.parametrize("base", ["cloudy", "filled"])
def test_training_starts_at_the_base(base: str) -> None:
    network = make(SMALL.model_copy(update={"base": base})).eval()
    optical, sar, cloud = images()
    expected = optical if base == "cloudy" else smooth_fill(optical, 1 - cloud, network.mean)
    assert (network(optical, sar, cloud) - expected).abs().max() < 0.02


def test_size_is_that_of_the_notes() -> None:
    network = Afsst(AfsstSettings(width=32, head_dim=32), sar_bands=2, mean=[0.2] * 13, std=[0.1] * 13)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert abs(count - 1.45e6) < 0.1e6, "reading notes, section 1.3: about 1.45 M at width 32 and expansion 2"


def test_sar_moves_the_output_unless_it_is_switched_off() -> None:
    optical, sar, cloud = images()
    with_sar, without = make().eval(), make(SMALL.model_copy(update={"use_sar": False})).eval()
    assert not torch.allclose(with_sar(optical, sar, cloud), with_sar(optical, 1 - sar, cloud), atol=1e-5)
    assert torch.equal(without(optical, sar, cloud), without(optical, 1 - sar, cloud))
    assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in with_sar.parameters())


def test_every_parameter_gets_a_gradient() -> None:
    network, inputs = make(), images()
    compute_loss(network(*inputs), batch_of(inputs, torch.zeros_like(inputs[0])), LossSettings())["total"].backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    network, (optical, sar, cloud) = make().eval(), images(count=3)
    alone = torch.cat([network(optical[n : n + 1], sar[n : n + 1], cloud[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(network(optical, sar, cloud), alone, atol=1e-5, rtol=1e-4)


def test_memory_layout_changes_nothing() -> None:
    network, inputs = make().eval(), images()
    plain = network(*inputs)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(*inputs), plain, atol=1e-5, rtol=1e-4)


def load_naive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("naive", Path(__file__).parent.parent / "naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise(network: Afsst) -> Afsst:
    """Weights under which no part is zero or one, the output is of the input's size, and betas differ."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 or "bias" in name else 0.03))
    return network


NAIVE = [
    {},
    {"stem_px": 2},
    {"optical_attention": "spatial"},
    {"optical_attention": "spatial", "stem_px": 2},
    {"optical_attention": "parallel"},
    {"fusion": "global", "msfem_alpha": "scalar"},
    {"fusion": "concat", "sar_features": "convolution", "base": "cloudy"},
    {"use_sar": False, "levels": 3, "blocks": 3},
]


@pytest.mark.parametrize("changes", NAIVE, ids=str)
def test_the_whole_network_and_its_gradients_equal_the_naive_reference(changes: dict[str, object]) -> None:
    network = randomise(make(SMALL.model_copy(update=changes)))
    inputs = images(size=(19, 26))
    fast, naive = network(*inputs), load_naive().naive_forward(network, *inputs)
    assert fast.std() > 0.1
    torch.testing.assert_close(fast, naive, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    pairs = zip(torch.autograd.grad(fast.square().mean(), trained), torch.autograd.grad(naive.square().mean(), trained), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item() + 1e-9, rtol=1e-3)


def test_training_statistics_travel_with_the_weights() -> None:
    assert {"mean", "std"} <= make().state_dict().keys()


def test_one_batch_is_learnt_by_heart() -> None:
    """SAR shows classes, the spectra of which stand in the clear image: what a cloud hides can be read off SAR."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(3, (2, 4, 6), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    target = torch.rand(3, 5, generator=generator)[classes].permute(0, 3, 1, 2) * 0.5
    sar = torch.rand(3, 2, generator=generator)[classes].permute(0, 3, 1, 2)
    cloud = torch.zeros(2, 1, 16, 24)
    cloud[0, :, :, :14] = cloud[1, :, 6:] = 1
    batch = batch_of((torch.where(cloud > 0, 0.9, target), sar, cloud), target)
    network = make(SMALL.model_copy(update={"width": 16}))
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(90):
        loss = compute_loss(network(batch.optical, batch.sar, batch.cloud), batch, LossSettings())["total"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]
