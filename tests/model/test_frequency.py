"""Laws of the spatial-frequency block and of its parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sereno.model.frequency import (
    FAINT,
    DomainInteraction,
    FrequencyBranch,
    InvertibleBlock,
    InvertibleMixing,
    SpatialFrequencyBlock,
    SpatialFrequencyFusion,
    SpeckledFrequencyBranch,
    _take_phase,
)


def make_streams(width: int = 8, *, size: tuple[int, int] = (12, 10), count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, width, *size, generator=generator), torch.randn(count, width, *size, generator=generator)


def enliven(module: nn.Module) -> nn.Module:
    """Weights far from those that training starts at."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("width", [4, 16])
def test_the_invertible_block_is_undone_by_its_inverse(width: int, trained: bool) -> None:
    torch.manual_seed(0)
    block = InvertibleBlock(width)
    if trained:
        enliven(block)
    block, features = (block.double(), make_streams(width)[0].double()) if trained else (block, make_streams(width)[0])
    mixed, near = block(features), 1e-9 if trained else 1e-5
    assert (mixed - features).abs().mean() > 0.1
    torch.testing.assert_close(block.invert(mixed), features, atol=near, rtol=near)
    torch.testing.assert_close(block(block.invert(features)), features, atol=near, rtol=near)


def test_channels_are_first_mixed_by_a_rotation_and_its_matrix_can_always_be_inverted() -> None:
    torch.manual_seed(0)
    mixing = InvertibleMixing(16)
    matrix = mixing.build_matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16), atol=1e-5, rtol=0)
    enliven(mixing)
    determinant = torch.linalg.slogdet(mixing.build_matrix())[1]
    torch.testing.assert_close(determinant, mixing.log_scale.sum(), atol=1e-4, rtol=1e-4)


def test_as_many_numbers_of_the_mixing_do_nothing_as_it_says() -> None:
    torch.manual_seed(0)
    mixing, (features, _) = InvertibleMixing(16), make_streams(16)
    mixing(features).square().sum().backward()
    enliven(mixing)
    (mixing(features) * features).sum().backward()
    dead = sum(int((parameter.grad == 0).sum()) for parameter in mixing.parameters() if parameter.grad is not None)
    assert dead == 16 * 16 + 16


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (1, 1)])
@pytest.mark.parametrize("spatial", ["invertible", "convolution"])
def test_any_size_is_taken(spatial: str, size: tuple[int, int]) -> None:
    block = SpatialFrequencyBlock(8, spatial)
    assert [stream.shape for stream in block(*make_streams(size=size))] == [(2, 8, *size)] * 2


def pass_through(branch: FrequencyBranch, *, amplitude_of: int, phase_of: int) -> FrequencyBranch:
    """The branch with weights that take amplitude and phase each from one of its streams, and nothing else."""
    eye, zero = torch.eye(8), torch.zeros(8, 8)
    with torch.no_grad():
        for mix, stream in ((branch.amplitude, amplitude_of), (branch.phase, phase_of)):
            mix[0].weight.copy_(torch.cat([eye, zero] if stream == 0 else [zero, eye], dim=1))
            mix[0].bias.fill_(10.0)  # so that the rectifier passes phases of either sign
            mix[2].weight.copy_(eye)
            mix[2].bias.fill_(-10.0)
        for layer in (branch.embed, branch.embed_guide, branch.last):
            layer.weight.copy_(eye)
            layer.bias.zero_()
    return branch


@pytest.mark.parametrize("size", [(12, 10), (7, 9), (5, 8)])
def test_a_branch_that_takes_both_from_one_stream_gives_it_back(size: tuple[int, int]) -> None:
    features, guide = (stream.abs() + 0.1 for stream in make_streams(size=size))
    for stream, expected in ((0, features), (1, guide)):
        branch = pass_through(FrequencyBranch(8), amplitude_of=stream, phase_of=stream)
        torch.testing.assert_close(branch(features, guide), expected, atol=2e-4, rtol=1e-3)


def test_what_a_branch_gives_is_an_absolute_value() -> None:
    features, guide = make_streams()
    branch = pass_through(FrequencyBranch(8), amplitude_of=0, phase_of=0)
    torch.testing.assert_close(branch(features, guide), features.abs(), atol=2e-4, rtol=1e-3)


def test_phase_carries_structure() -> None:
    """The amplitude of noise with the phase of an image still shows the image (Oppenheim and Lim 1981)."""
    picture = torch.zeros(1, 8, 32, 32)
    picture[:, :, 8:20, 10:26] = 1
    noise = torch.rand(1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    shown = pass_through(FrequencyBranch(8), amplitude_of=1, phase_of=0)(picture, noise)
    edges = [image.diff(dim=3).abs()[0, 0].flatten() for image in (shown, picture, noise)]
    likeness = [torch.corrcoef(torch.stack([edges[0], other]))[0, 1].item() for other in edges[1:]]
    assert likeness[0] > 0.25
    assert abs(likeness[1]) < 0.1


def test_every_pixel_is_felt_everywhere_through_frequencies_and_near_by_in_space() -> None:
    torch.manual_seed(0)
    features, guide = make_streams(size=(9, 32), count=1)
    changed = features.clone()
    changed[..., 0] += 1
    branch, block = FrequencyBranch(8), InvertibleBlock(8)
    assert (branch(features, guide) - branch(changed, guide)).abs()[..., 20:].max() > 1e-4
    assert (block(features) - block(changed)).abs()[..., 20:].max() == 0


def test_gradients_are_finite_where_nothing_is() -> None:
    """Zeros have neither amplitude nor phase nor contrast, and roots and arguments have no derivative there."""
    torch.manual_seed(0)
    for level in (0.0, 1e-30, 0.3):
        features, guide = (torch.full((1, 8, 6, 7), level, requires_grad=True) for _ in range(2))
        block = SpatialFrequencyBlock(8)
        with torch.no_grad():
            for layer in (block.frequency.embed, block.frequency.embed_guide):
                layer.bias.zero_()
        block(features, guide)[0].sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())
        assert features.grad is not None
        assert features.grad.isfinite().all()


def test_faint_frequencies_have_a_phase_but_pass_no_gradient_to_it() -> None:
    spectrum = torch.tensor([1j, -1.0, 1e-9 * 1j, 0.0], requires_grad=True)
    phase = _take_phase(spectrum)
    assert phase.tolist() == pytest.approx([math.pi / 2, math.pi, math.pi / 2, 0])
    phase.sum().backward()
    assert spectrum.grad is not None
    assert spectrum.grad.abs().tolist() == pytest.approx([1, 1, 0, 0])
    assert FAINT > 1e-9


@pytest.mark.parametrize("spatial", ["invertible", "convolution"])
def test_images_of_a_batch_stay_apart(spatial: str) -> None:
    torch.manual_seed(0)
    block, streams = SpatialFrequencyBlock(8, spatial), make_streams(count=3)
    alone = [block(*(stream[n : n + 1] for stream in streams)) for n in range(3)]
    for stream, pieces in zip(block(*streams), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(stream, torch.cat(pieces), atol=1e-5, rtol=1e-4)


def test_branches_that_agree_are_only_weighed() -> None:
    """With no difference the mask is the same everywhere, so that the sum of both is a multiple of either."""
    torch.manual_seed(0)
    interaction = DomainInteraction(8)
    flat = torch.full((1, 8, 9, 9), 0.4)
    joined = interaction(flat, flat)[..., 2:-2, 2:-2]
    assert (joined - joined.mean((2, 3), keepdim=True)).abs().max() < 1e-6


def test_the_spatial_branch_is_filled_up_by_the_mask_and_weighed_by_contrast_and_mean() -> None:
    """s = 1, f a checkerboard of 1 and 3 (mean 2, deviation 1), mask 1/2: `r = 1 + f / 2`, times the sigmoid of 2 + 1."""
    interaction = DomainInteraction(2)
    frequency = (1.0 + 2 * ((torch.arange(6)[:, None] + torch.arange(6)) % 2)).expand(1, 2, 6, 6)
    with torch.no_grad():
        for parameter in interaction.parameters():
            parameter.zero_()
        interaction.weigh[0].weight[0, 2] = 1  # sees the first channel of f
        interaction.weigh[2].weight.fill_(1)
        interaction.merge.weight[:, :2, 1, 1] = torch.eye(2)  # gives r
    expected = (1 + frequency / 2) / (1 + math.exp(-3))
    torch.testing.assert_close(interaction(torch.ones(1, 2, 6, 6), frequency), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transforms_are_taken_in_full_precision_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block, streams = SpatialFrequencyBlock(8), make_streams(size=(7, 9))
    full = block(*streams)[0]
    with torch.autocast("cpu", dtype=dtype):
        half = block(*streams)[0]
    half.float().sum().backward()
    assert (half.float() - full).abs().mean() < 0.05


def shut(branch: SpeckledFrequencyBranch, share: float) -> SpeckledFrequencyBranch:
    """The branch with a gate that is open so far whatever it sees."""
    with torch.no_grad():
        branch.gate.weight.zero_()
        branch.gate.bias.fill_(math.log(share / (1 - share)) if share else -math.inf)
    return branch


def test_a_shut_gate_keeps_speckle_out_and_the_phase_is_that_of_the_features() -> None:
    torch.manual_seed(0)
    features, guide = make_streams(size=(9, 12))
    branch = SpeckledFrequencyBranch(8)
    assert not torch.allclose(branch(features, guide), branch(features, guide.flip(0)), atol=1e-4)
    shut(branch, 0.0)
    assert torch.equal(branch(features, guide), branch(features, guide.flip(0)))
    amplitudes, phases = torch.rand(2, 2, 8, 9, 7), torch.rand(2, 2, 8, 9, 7)
    assert torch.equal(branch.mix_spectra(amplitudes, phases)[1], phases[0])


def test_an_open_gate_turns_the_phase_as_far_as_it_is_open() -> None:
    torch.manual_seed(0)
    branch = SpeckledFrequencyBranch(8)
    amplitudes, phases = torch.rand(2, 2, 8, 9, 7), torch.rand(2, 2, 8, 9, 7)
    turns = [shut(branch, share).mix_spectra(amplitudes, phases)[1] - phases[0] for share in (0.25, 0.75)]
    assert turns[0].abs().mean() > 0.01
    torch.testing.assert_close(turns[1], 3 * turns[0], atol=1e-5, rtol=1e-4)


def test_the_gate_opens_frequency_by_frequency() -> None:
    """A guide that is strong in one frequency is let in there, if the gate says so, and nowhere else."""
    torch.manual_seed(0)
    branch = SpeckledFrequencyBranch(8)
    with torch.no_grad():
        branch.gate.weight.copy_(torch.cat([torch.zeros(8, 8), 100 * torch.eye(8)], dim=1))
        branch.gate.bias.fill_(-100.0)
    amplitudes, phases = torch.zeros(2, 1, 8, 9, 7), torch.rand(2, 1, 8, 9, 7)
    amplitudes[1, :, :, 4, 2] = 9.0
    turned = (branch.mix_spectra(amplitudes, phases)[1] != phases[0]).any(dim=1)[0]
    assert turned[4, 2]
    assert turned.sum() == 1


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_streams_of_any_size_are_merged_with_finite_gradients(size: tuple[int, int], dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    fusion, (optical, sar), (filled, _) = SpatialFrequencyFusion(8), make_streams(size=size), make_streams(size=size, count=2)
    full = fusion(optical, sar, filled)
    assert full.shape == optical.shape
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        merged = fusion(*(stream.to(memory_format=torch.channels_last) for stream in (optical, sar, filled)))
    merged.float().square().sum().backward()
    assert (merged.float() - full).abs().mean() < (0.05 if dtype else 1e-6)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in fusion.parameters())


def test_the_frequencies_of_a_fusion_see_the_filled_image_and_space_sees_the_optical_stream() -> None:
    torch.manual_seed(0)
    fusion, (optical, sar), (filled, _) = SpatialFrequencyFusion(8), make_streams(), make_streams(count=2)
    said: list[Tensor] = []
    fusion.frequency.register_forward_hook(lambda *given: said.append(given[2]))
    merged = [fusion(*streams) for streams in ((optical, sar, filled), (optical + 1, sar, filled), (optical, sar, filled.flip(0)))]
    assert torch.equal(said[0], said[1])
    assert not torch.allclose(said[0], said[2], atol=1e-4)
    assert all(not torch.allclose(merged[0], other, atol=1e-4) for other in merged[1:])
