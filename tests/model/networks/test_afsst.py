"""Laws of the network as a whole."""

from __future__ import annotations

import importlib.util
import itertools
import random
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from sereno.model.batches import Batch
from sereno.model.config import AfsstSettings, LossSettings
from sereno.model.layers import smooth_fill
from sereno.model.losses import compute_loss
from sereno.model.networks.afsst import Afsst
from sereno.model.tasks import describe_network

SMALL = AfsstSettings(width=8, head_dim=4, levels=2, blocks=2, window_px=4)
CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "optical_attention": ("spectral", "spatial", "parallel"),
    "sar_features": ("msfem", "convolution"),
    "msfem_alpha": ("channel", "scalar", "fixed"),
    "fusion": ("pixel", "global", "concat", "sfi"),
    "use_sar": (True, False),
    "base": ("filled", "cloudy"),
    "size": ("S", "M", "L"),
}


def draw_variants(count: int) -> list[dict[str, Any]]:
    """Every choice changed alone, and `count` out of all combinations."""
    alone = [{name: value} for name, values in CHOICES.items() for value in values[1:]]
    combined = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    return [{}, *alone, *random.Random(0).sample(combined, count)]


VARIANTS: Final = draw_variants(8)


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


def make_variant(changes: dict[str, Any], *, bands: int = 5, sar_bands: int = 2) -> Afsst:
    """The blocks are those of the size, the width is tiny."""
    settings = AfsstSettings(width=8, head_dim=4, levels=2, window_px=4)
    return make(settings.model_copy(update=changes), bands=bands, sar_bands=sar_bands)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_takes_the_bands_of_all_sensors_and_starts_at_its_base(changes: dict[str, Any]) -> None:
    for (bands, sar_bands), size in zip([(13, 2), (12, 2), (4, 1), (8, 2)], [(17, 9), (8, 8), (5, 13), (1, 3)], strict=True):
        network = make_variant(changes, bands=bands, sar_bands=sar_bands).eval()
        optical, sar, cloud = images(bands=bands, sar_bands=sar_bands, size=size)
        expected = optical if network.base == "cloudy" else smooth_fill(optical, 1 - cloud, network.mean)
        with torch.no_grad():
            difference = (network(optical, sar, cloud) - expected).abs().max()
        assert 0 < difference < 0.03


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_in_every_variant_all_parameters_get_a_gradient_and_images_stay_apart(changes: dict[str, Any]) -> None:
    network, inputs = make_variant(changes), images()
    if changes.get("use_sar", True) and changes.get("fusion", "pixel") in ("pixel", "global"):
        for gate in network.fuse:
            nn.init.ones_(gate.channel[0].bias)  # so narrow a gate may have nothing but dead rectifiers
    together = network(*inputs)
    alone = torch.cat([network(*(part[number : number + 1] for part in inputs)) for number in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    together.square().mean().backward()
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize(("alpha", "count"), [("channel", 8), ("scalar", 1), ("fixed", 0)])
def test_the_factor_of_the_edges_is_learnt_unless_it_is_fixed(alpha: str, count: int) -> None:
    network = make(SMALL.model_copy(update={"msfem_alpha": alpha}))
    network(*images()).square().mean().backward()
    factor = network.embed_sar.edges.alpha
    assert (factor == 1).all()
    assert (0 if factor.grad is None else int((factor.grad != 0).sum())) == count


@pytest.mark.parametrize("fusion", ["pixel", "global"])
def test_betas_of_every_level_are_shares_that_depend_on_the_image(fusion: str) -> None:
    """TFusion of the notes: betas are functions of the input, not free scalars."""
    network, seen = make(SMALL.model_copy(update={"fusion": fusion})).eval(), []
    for gate in network.fuse:
        gate.register_forward_pre_hook(lambda gate, inputs: seen.append(gate.weigh(*inputs)))
    optical, sar, cloud = images()
    network(optical, sar, cloud)
    network(optical.flip(0), 1 - sar, cloud)
    assert len(seen) == 4
    for betas, others in zip(seen[:2], seen[2:], strict=True):
        assert ((betas > 0) & (betas < 1)).all()
        assert not torch.allclose(betas, others, atol=1e-6)
        assert not torch.allclose(betas[0], betas[1], atol=1e-6)


def test_parallel_attention_sees_the_mask() -> None:
    network = randomise(make(SMALL.model_copy(update={"optical_attention": "parallel", "fusion": "concat"}))).eval()
    plain = randomise(make(SMALL.model_copy(update={"fusion": "concat"}))).eval()
    seen, sar, cloud = images(bands=11)
    assert not torch.allclose(network.restore(seen, sar, cloud)[0], network.restore(seen, sar, 1 - cloud)[0], atol=1e-4)
    assert torch.equal(plain.restore(seen, sar, cloud)[0], plain.restore(seen, sar, 1 - cloud)[0])


def count_by_hand(width: int, blocks: int, bands: int = 13, sar_bands: int = 2) -> int:
    """Parameters of the layout of the notes (three levels, expansion 2), layer by layer."""
    total = (2 * bands + 1) * width * 9 + width + width * bands * 9 + bands  # embedding of input, filled input and cloud; last convolution
    total += (sar_bands * width * 9 + width) + width + (width**2 + width) + (9 * width**2 + width) + (25 * width + width)  # MSFEM
    for level, c in enumerate((width, 2 * width, 4 * width)):
        heads, rest = c // 32, 4 * c + (2 * c**2 + 2 * c) + (18 * c + 2 * c) + (2 * c**2 + c)  # two norms, LeFF
        spectral = 3 * c**2 + heads + (c**2 + c) + 18 * c + rest
        spatial = (3 * c**2 + 3 * c) + (c**2 + c) + 225 * heads + rest
        fusion = (c**2 + c // 2) + (c**2 + 2 * c) + (2 * c**2 + 2 * c) + (2 * c**2 + c) + (9 * c**2 + c)
        total += blocks * (spectral + spatial) + fusion
        if level < 2:  # the decoder's blocks, two halvings, one doubling, one joining
            total += blocks * spectral + 2 * (2 * c * c * 16) + (2 * c * c * 4 + c) + (2 * c * c + c)
    return total


@pytest.mark.parametrize(
    ("size", "width", "blocks", "expected"), [("S", 32, 2, 1_542_975), ("M", 32, 6, 3_176_067), ("L", 64, 3, 7_635_987)]
)
def test_size_is_that_of_the_notes(size: str, width: int, blocks: int, expected: int) -> None:
    """The notes have about 1.45 M at width 32 and expansion 2, to which our fusion adds 0.09 M; M and L are ours."""
    network = Afsst(AfsstSettings(size=size), sar_bands=2, mean=[0.2] * 13, std=[0.1] * 13)
    assert sum(parameter.numel() for parameter in network.parameters()) == count_by_hand(width, blocks) == expected


def count_interaction(c: int) -> int:
    """Parameters of one fusion in space and in the frequency domain, layer by layer."""
    frequency = 2 * (c**2 + c) + 2 * ((2 * c**2 + c) + (c**2 + c)) + (c**2 + c) + (2 * c**2 + c)  # two streams, two mixings, out, gate
    interaction = (9 * c * c // 2 + c // 2) + (9 * c * c // 2 + c) + (c**2 + c // 2) + (c**2 + 2 * c) + (18 * c**2 + c)
    return (c**2 + c) + (18 * c**2 + c) + frequency + interaction


def test_the_fusion_in_frequencies_is_counted() -> None:
    settings = AfsstSettings(fusion="sfi")
    filled = (13 * 32 * 9 + 32) + 16 * (32 * 64 + 64 * 128)  # its embedding and two halvings
    gates = sum((c**2 + c // 2) + (c**2 + 2 * c) + (2 * c**2 + 2 * c) + (2 * c**2 + c) + (9 * c**2 + c) for c in (32, 64, 128))
    expected = count_by_hand(32, 2) - gates + filled + sum(map(count_interaction, (32, 64, 128)))
    assert describe_network(settings, bands=13).parameters == expected == 2_658_671


def note_frequencies(network: Afsst, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What the frequency branch of every level says."""
    said: list[Tensor] = []
    hooks = [fusion.frequency.register_forward_hook(lambda *given: said.append(given[2])) for fusion in network.fuse]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return said


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", ["cloudy", "filled", "dates"])
def test_nothing_under_a_certain_cloud_reaches_the_frequencies(base: str, precision: torch.dtype) -> None:
    """A transform would spread it over the whole image; what is clear, and half-clear, does reach them."""
    network = randomise(make(SMALL.model_copy(update={"fusion": "sfi", "base": base}))).eval()
    optical, sar, cloud = images(size=(19, 26))
    cloud[:, :, :5, :7] = 0.5
    brighter = torch.where(cloud == 1, optical * 3 + 5, optical)
    around, clear = torch.rand(2, 2, 5, 19, 26), torch.rand(2, 2, 1, 19, 26).round()
    dates = (around, clear, torch.tensor([[-5.0, 10.0]] * 2)) if base == "dates" else ()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        before, after = (note_frequencies(network, (image, sar, cloud, *dates)) for image in (optical, brighter))
        assert len(before) == 2
        assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
        assert not torch.equal(network(optical, sar, cloud, *dates), network(brighter, sar, cloud, *dates)), "the optical stream sees it"
        for changed in ((torch.where(cloud == 0.5, 0.9, optical), sar), (optical, 1 - sar)):
            seen = note_frequencies(network, (*changed, cloud, *dates))
            assert not any(torch.equal(first, second) for first, second in zip(before, seen, strict=True))


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("clouds", [0.0, 1.0])
def test_gradients_through_frequencies_are_finite_where_there_is_nothing_to_see(level: float, clouds: float) -> None:
    network = make(SMALL.model_copy(update={"fusion": "sfi"}))
    optical, sar, cloud = (torch.full((1, channels, 9, 13), value) for channels, value in ((5, level), (2, level), (1, clouds)))
    network(optical, sar, cloud).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_sar_moves_the_output_unless_it_is_switched_off() -> None:
    optical, sar, cloud = images()
    with_sar, without = make().eval(), make(SMALL.model_copy(update={"use_sar": False})).eval()
    assert not torch.allclose(with_sar(optical, sar, cloud), with_sar(optical, 1 - sar, cloud), atol=1e-5)
    assert torch.equal(without(optical, sar, cloud), without(optical, 1 - sar, cloud))
    assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in with_sar.parameters())


@pytest.mark.parametrize("fusion", ["pixel", "sfi"])
def test_memory_layout_changes_nothing(fusion: str) -> None:
    network, inputs = make(SMALL.model_copy(update={"fusion": fusion})).eval(), images()
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
    {"fusion": "sfi", "levels": 3},
    {"fusion": "sfi", "base": "cloudy", "stem_px": 2},
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
