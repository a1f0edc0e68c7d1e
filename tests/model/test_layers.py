"""Laws of the building blocks, against naive versions, known physics and symmetry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from random_networks import draw_parameters
from torch import Tensor

from sereno.model.layers import (
    EDGE_EPS,
    SMALLEST_STD,
    BandScale,
    ChannelNorm,
    ConcatFusion,
    FeedForward,
    FusionGate,
    MultiscaleSar,
    PixelFusion,
    PixelLinear,
    SobelEdges,
    double,
    halve,
    pad_to_multiple,
    smooth_fill,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_sobel_of_a_step_is_half_the_step_beside_it_and_nothing_elsewhere() -> None:
    image = torch.zeros(1, 1, 6, 8)
    image[..., 4:] = 2.0
    edges = SobelEdges(1)(image)[0, 0]
    torch.testing.assert_close(edges[:, 3:5], torch.full((6, 2), 1.0))
    torch.testing.assert_close(edges[:, :3], torch.full((6, 3), math.sqrt(EDGE_EPS)))
    torch.testing.assert_close(edges, SobelEdges(1)(image.transpose(2, 3))[0, 0].T)


def test_edges_are_the_same_when_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, image = SobelEdges(3), torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = edges(image)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(edges(image), expected)


def test_sobel_of_a_constant_is_nothing_even_at_the_border_and_its_gradient_is_finite() -> None:
    image = torch.full((1, 3, 5, 5), 7.0, requires_grad=True)
    edges = SobelEdges(3)(image)
    torch.testing.assert_close(edges, torch.full_like(edges, math.sqrt(EDGE_EPS)))
    edges.sum().backward()
    assert torch.isfinite(image.grad).all()


def test_sobel_keeps_channels_apart_and_alpha_scales_its_own() -> None:
    layer, image = SobelEdges(2), torch.randn(1, 2, 6, 6)
    before = layer(image)
    with torch.no_grad():
        layer.alpha[1] = 3.0
    after = layer(image)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1], 3 * before[:, 1], atol=1e-3, rtol=1e-3)
    after.sum().backward()
    assert (layer.alpha.grad.abs() > 0).all()


@pytest.mark.parametrize("stem_px", [1, 2, 4])
def test_sar_features_have_the_size_of_the_tokens(stem_px: int) -> None:
    assert MultiscaleSar(2, 8, stem_px)(torch.rand(2, 2, 16, 24)).shape == (2, 8, 16 // stem_px, 24 // stem_px)


@pytest.mark.parametrize("kind", [FusionGate, PixelFusion])
def test_fusion_weights_lie_between_zero_and_one_and_depend_on_the_input(kind: type[FusionGate]) -> None:
    gate = draw_parameters(kind(8))
    optical, sar, cloud = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.rand(2, 1, 4, 4)
    weight = gate.weigh(optical, sar, cloud)
    assert weight.shape == ((2, 8, 4, 4) if kind is PixelFusion else (2, 8, 1, 1))
    assert ((weight > 0) & (weight < 1)).all()
    assert not torch.allclose(weight, gate.weigh(optical + 1, sar, cloud))
    assert torch.allclose(weight, gate.weigh(optical, sar, 1 - cloud)) == (kind is FusionGate)
    assert not torch.allclose(weight[0], weight[1])


def test_fusion_per_pixel_with_equal_weights_is_fusion_without_weights() -> None:
    fusion, plain = draw_parameters(PixelFusion(8)), ConcatFusion(8)
    with torch.no_grad():
        for tensor in (*fusion.pixel.parameters(), *fusion.channel[2].parameters()):
            tensor.zero_()
    plain.load_state_dict({name: value for name, value in fusion.state_dict().items() if name.startswith(("mix", "merge"))})
    optical, sar, cloud = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(fusion(optical, sar, cloud), plain(optical, sar, cloud), atol=1e-5, rtol=1e-5)


def test_layers_on_pixels_equal_convolutions_and_norms_of_torch() -> None:
    features = torch.randn(2, 6, 5, 7)
    linear, norm = PixelLinear(6, 4), draw_parameters(ChannelNorm(6))
    torch.testing.assert_close(linear(features), F.conv2d(features, linear.weight[:, :, None, None], linear.bias))
    expected = F.layer_norm(features.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(features), expected)
    assert FeedForward(6, 2)(features).shape == features.shape


def test_halving_and_doubling_undo_each_others_size() -> None:
    assert double(16, 8)(halve(8, 16)(torch.randn(1, 8, 12, 20))).shape == (1, 8, 12, 20)


def ramp(rows: int, columns: int) -> Tensor:
    down, across = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    return torch.stack([down, across, down + across])[None]


@pytest.mark.parametrize("size", [(64, 64), (50, 77), (1, 9), (1, 1)])
def test_fill_keeps_what_it_is_told_to_keep(size: tuple[int, int]) -> None:
    image, keep = torch.rand(2, 3, *size), (torch.rand(2, 1, *size) > 0.5).float()
    filled = smooth_fill(image, keep, torch.rand(3))
    assert filled.shape == image.shape
    assert torch.equal(filled * keep, image * keep)


def test_fill_never_sees_what_it_replaces() -> None:
    image, keep = torch.rand(1, 3, 40, 40), (torch.rand(1, 1, 40, 40) > 0.5).float()
    other = torch.where(keep > 0, image, torch.full_like(image, 9.0))
    torch.testing.assert_close(smooth_fill(image, keep, torch.zeros(3)), smooth_fill(other, keep, torch.zeros(3)))


def test_fill_of_a_constant_is_that_constant() -> None:
    image, keep = torch.full((1, 2, 64, 64), 0.3), torch.ones(1, 1, 64, 64)
    keep[..., 10:50, 5:60] = 0
    torch.testing.assert_close(smooth_fill(image, keep, torch.tensor([0.3, 0.3])), image)


def test_fill_leans_to_the_prior_the_more_the_larger_the_hole() -> None:
    image, drawn = torch.full((1, 1, 64, 64), 0.3), []
    for side in (4, 16, 32, 64):
        keep = torch.ones(1, 1, 64, 64)
        keep[..., 32 - side // 2 : 32 + side // 2, 32 - side // 2 : 32 + side // 2] = 0
        drawn.append(smooth_fill(image, keep, torch.tensor([0.9]))[0, 0, 32, 32].item())
    assert drawn == sorted(drawn)
    assert drawn[0] == pytest.approx(0.3, abs=0.01)
    assert drawn[1] < 0.35
    assert drawn[-1] == pytest.approx(0.9)


def test_fill_of_a_hole_in_a_ramp_stays_near_the_ramp_and_shows_no_blocks() -> None:
    image, keep = ramp(128, 128), torch.ones(1, 1, 128, 128)
    keep[..., 48:80, 48:80] = 0
    filled = smooth_fill(image, keep, image.mean(dim=(0, 2, 3)))
    inside = filled[..., 48:80, 48:80] - image[..., 48:80, 48:80]
    assert inside.abs().max() < 0.1
    steps = filled.diff(dim=3).abs()
    assert steps[..., 48:79].max() < 0.05


def test_fill_where_nothing_is_clear_is_the_prior() -> None:
    image, nothing = torch.rand(1, 2, 33, 20), torch.zeros(1, 1, 33, 20)
    prior = torch.tensor([0.1, 0.4])
    torch.testing.assert_close(smooth_fill(image, nothing, prior), prior[None, :, None, None].expand(1, 2, 33, 20))


def test_fill_between_keeping_and_replacing_is_a_blend() -> None:
    image = torch.full((1, 1, 32, 32), 0.2)
    keep = torch.ones(1, 1, 32, 32)
    image[..., 16, 16], keep[..., 16, 16] = 1.0, 0.75
    value = smooth_fill(image, keep, torch.tensor([0.2]))[0, 0, 16, 16].item()
    assert 0.75 * 1.0 + 0.25 * 0.2 <= value < 1.0


def test_images_of_a_batch_are_filled_apart() -> None:
    image, keep = torch.rand(3, 2, 24, 40), (torch.rand(3, 1, 24, 40) > 0.7).float()
    prior = torch.rand(2)
    alone = torch.cat([smooth_fill(image[n : n + 1], keep[n : n + 1], prior) for n in range(3)])
    torch.testing.assert_close(smooth_fill(image, keep, prior), alone)


def test_bands_are_scaled_and_restored_and_one_that_never_varies_stays_finite() -> None:
    scale, image = BandScale([0.2, 0.5], [0.1, 0.0]), torch.rand(3, 2, 2, 4, 5)
    assert scale(image)[0, 0, 0, 0, 0].item() == pytest.approx((image[0, 0, 0, 0, 0].item() - 0.2) / 0.1, rel=1e-4)
    assert scale.std[1].item() == pytest.approx(SMALLEST_STD)
    torch.testing.assert_close(scale.restore(scale(image)), image)


@pytest.mark.parametrize(("size", "padded"), [((8, 16), (8, 16)), ((13, 9), (16, 16)), ((1, 3), (8, 8))])
def test_padding_adds_right_and_below_what_was_there(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    wider = pad_to_multiple(image, 8)
    assert wider.shape[2:] == padded
    assert torch.equal(wider[..., : size[0], : size[1]], image)
    assert torch.isin(wider, image).all()
