"""Laws of attention, against its equations written naively, and symmetry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from random_networks import draw_parameters
from torch import Tensor, nn

from sereno.model.attention import (
    MASKED,
    MaskEmbedding,
    ParallelAttention,
    SequentialAttention,
    SpectralAttention,
    TransformerBlock,
    TransformerStage,
    WindowAttention,
    cut_windows,
    join_windows,
    shift_mask,
)
from sereno.model.layers import FeedForward


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attend_naively(layer: SpectralAttention, features: Tensor) -> Tensor:
    width, tokens = features.shape[1], features.flatten(2)
    query, key, value = (layer.qkv.weight @ tokens).split(width, dim=1)
    heads = []
    for head in range(width // layer.head_dim):
        part = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        logits = F.normalize(key[:, part], dim=2) @ F.normalize(query[:, part], dim=2).transpose(1, 2)
        heads.append((layer.temperature[head] * logits).softmax(dim=2) @ value[:, part])
    mixed = layer.project.weight @ torch.cat(heads, dim=1) + layer.project.bias[:, None]
    return mixed.reshape(features.shape) + layer.positional(value.reshape(features.shape))


def test_spectral_attention_equals_its_equation() -> None:
    layer = draw_parameters(SpectralAttention(12, 4))
    features = torch.randn(2, 12, 6, 10)
    torch.testing.assert_close(layer(features), attend_naively(layer, features), atol=1e-5, rtol=1e-5)


def test_spectral_attention_does_not_care_where_pixels_lie() -> None:
    layer = draw_parameters(SpectralAttention(8, 4))
    nn.init.zeros_(layer.positional.second.weight)  # its positional branch does care
    features = torch.randn(2, 8, 6, 6)
    order = torch.randperm(36)
    shuffled = features.flatten(2)[:, :, order].reshape(features.shape)
    expected = layer(features).flatten(2)[:, :, order].reshape(features.shape)
    torch.testing.assert_close(layer(shuffled), expected, atol=1e-5, rtol=1e-5)


def test_positional_branch_makes_spectral_attention_see_neighbours() -> None:
    layer = draw_parameters(SpectralAttention(8, 4))
    features = torch.randn(1, 8, 6, 6)
    assert not torch.allclose(layer(features.flip(3)), layer(features).flip(3), atol=1e-3)


def attend_window_naively(layer: WindowAttention, features: Tensor, factors: tuple[Tensor | float, ...] = (1.0, 1.0, 1.0)) -> Tensor:
    """Each pixel on its own: softmax over the pixels of its window, windows laid `shift` pixels further.

    `factors` (B, H, W, C) multiply queries, keys and values.
    """
    side, shift, depth = layer.window_px, layer.shift, layer.head_dim
    parts = F.linear(features.permute(0, 2, 3, 1), layer.qkv.weight, layer.qkv.bias).chunk(3, dim=3)
    query, key, value = (part * factor for part, factor in zip(parts, factors, strict=True))
    _, height, columns, width = query.shape
    out = torch.zeros_like(query)
    for row in range(height):
        for col in range(columns):
            near = [
                (r, c)
                for r in range(height)
                for c in range(columns)
                if (r - shift) // side == (row - shift) // side and (c - shift) // side == (col - shift) // side
            ]
            rows, cols = torch.tensor(near).T
            place = (row - rows + side - 1) * (2 * side - 1) + (col - cols + side - 1)
            for head in range(width // depth):
                part = slice(head * depth, (head + 1) * depth)
                logits = (key[:, rows, cols, part] @ query[:, row, col, part, None])[..., 0] / math.sqrt(depth)
                weights = (logits + layer.bias[head, place]).softmax(dim=1)
                out[:, row, col, part] = (weights[..., None] * value[:, rows, cols, part]).sum(dim=1)
    return F.linear(out, layer.project.weight, layer.project.bias).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_equals_its_equation(shifted: bool) -> None:
    layer = draw_parameters(WindowAttention(8, 4, 4, shifted=shifted))
    features = torch.randn(2, 8, 8, 12)
    torch.testing.assert_close(layer(features), attend_window_naively(layer, features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_pixel_outside_the_window_changes_nothing(shifted: bool) -> None:
    layer = draw_parameters(WindowAttention(8, 4, 4, shifted=shifted))
    features = torch.randn(1, 8, 16, 16)
    changed = features.clone()
    changed[:, :, 0, 0] += 5
    moved = (layer(changed) - layer(features)).abs().amax(dim=1)[0] > 1e-6
    side = 2 if shifted else 4
    assert moved[:side, :side].all()
    assert not moved[side:].any()
    assert not moved[:, side:].any()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("mask_to", list(MASKED))
def test_the_mask_multiplies_what_it_is_told_to(mask_to: str, shifted: bool) -> None:
    layer = draw_parameters(WindowAttention(8, 4, 4, shifted=shifted, mask_to=mask_to))
    features, clear = torch.randn(2, 8, 8, 12), torch.rand(2, 1, 8, 12)
    factor = 1.0 if mask_to == "none" else layer.embed_mask(clear).permute(0, 2, 3, 1)
    factors = tuple(factor if part in mask_to.split("-") else 1.0 for part in ("query", "key", "value"))
    torch.testing.assert_close(layer(features, clear), attend_window_naively(layer, features, factors), atol=1e-5, rtol=1e-5)
    assert torch.equal(layer(features, clear), layer(features, 1 - clear)) == (mask_to == "none")


def test_embedded_mask_is_a_sigmoid_of_two_convolutions_and_knows_no_row() -> None:
    layer, clear = draw_parameters(MaskEmbedding(6)), torch.rand(2, 1, 7, 9)
    embedded = layer(clear)
    torch.testing.assert_close(embedded, torch.sigmoid(layer.near(layer.point(clear))))
    changed = clear.clone()
    changed[..., 8] = 1 - changed[..., 8]
    torch.testing.assert_close(layer(changed)[..., :7], embedded[..., :7])  # a softmax over the width would move all of the row


def test_spectral_windows_are_images_of_their_own() -> None:
    layer, whole = draw_parameters(SpectralAttention(8, 4, window_px=4)), SpectralAttention(8, 4)
    nn.init.zeros_(layer.positional.second.weight)  # its positional branch sees beyond the windows
    whole.load_state_dict(layer.state_dict())
    features = torch.randn(2, 8, 8, 12)
    attended = layer(features)
    for row in range(0, 8, 4):
        for col in range(0, 12, 4):
            part = (..., slice(row, row + 4), slice(col, col + 4))
            torch.testing.assert_close(attended[part], whole(features[part]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attended, whole(features), atol=1e-3)


def test_cut_windows_join_again_and_each_is_a_square() -> None:
    tokens = torch.arange(2 * 8 * 12, dtype=torch.float32).reshape(2, 8, 12, 1)
    windows = cut_windows(tokens, 4)
    assert torch.equal(windows[1, :, 0].reshape(4, 4), tokens[0, :4, 4:8, 0])
    assert torch.equal(join_windows(windows, tokens.shape), tokens)


def make_pair() -> tuple[WindowAttention, SpectralAttention]:
    return WindowAttention(8, 4, 4, shifted=True, mask_to="query-key"), SpectralAttention(8, 4)


@pytest.mark.parametrize("concat", [True, False])
def test_parallel_attention_equals_its_equation(concat: bool) -> None:
    layer = draw_parameters(ParallelAttention(8, *make_pair(), concat=concat))
    features, clear = torch.randn(2, 8, 8, 12), torch.rand(2, 1, 8, 12)
    factor = layer.spatial.embed_mask(clear).permute(0, 2, 3, 1)
    near = attend_window_naively(layer.spatial, layer.norm_spatial(features), (factor, factor, 1.0))
    among = attend_naively(layer.spectral, layer.norm_spectral(features))
    joined = F.conv2d(torch.cat([near, among], dim=1), layer.join.weight[:, :, None, None]) if concat else near + among
    torch.testing.assert_close(layer(features, clear), joined, atol=1e-4, rtol=1e-4)


def test_sequential_attention_is_two_residual_steps() -> None:
    layer = draw_parameters(SequentialAttention(8, *make_pair()))
    features, clear = torch.randn(2, 8, 8, 12), torch.rand(2, 1, 8, 12)
    halfway = features + layer.first(layer.norm_first(features), clear)
    expected = halfway + layer.second(layer.norm_second(halfway), clear)
    torch.testing.assert_close(features + layer(features, clear), expected, atol=1e-5, rtol=1e-5)


def test_a_block_has_one_norm_for_each_attention_and_one_for_the_rest() -> None:
    for attend, norms in [(SpectralAttention(8, 4), 2), (ParallelAttention(8, *make_pair()), 3), (SequentialAttention(8, *make_pair()), 3)]:
        block = TransformerBlock(8, attend, FeedForward(8, 2))
        assert sum(isinstance(module, nn.LayerNorm) for module in block.modules()) == norms


def test_a_stage_is_its_blocks_one_after_the_other() -> None:
    stage = draw_parameters(TransformerStage(8, [SpectralAttention(8, 4), WindowAttention(8, 4, 4, shifted=True)], 2))
    features = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(stage(features), stage.blocks[1](stage.blocks[0](features)))


def test_dropped_residuals_are_those_of_whole_images_and_keep_the_mean() -> None:
    block = TransformerBlock(8, _Scaled(1.0), _Scaled(0.0), drop=0.25).train()
    image = torch.randn(1, 8, 2, 2)
    changes = block(image.repeat(4000, 1, 1, 1)) - image
    dropped = changes.abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.22 < dropped.float().mean() < 0.28
    whole = block.norm(image)[0]
    torch.testing.assert_close(changes[~dropped], (whole / 0.75).expand_as(changes[~dropped]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.eval()(image) - image, whole[None], atol=1e-5, rtol=1e-5)


def test_a_block_that_is_dropped_for_sure_does_nothing_in_training() -> None:
    block, features = TransformerBlock(8, _Scaled(1.0), _Scaled(1.0), drop=1.0), torch.randn(2, 8, 2, 2)
    assert torch.equal(block.train()(features), features)
    assert not torch.equal(block.eval()(features), features)


class _Scaled(nn.Module):
    """Stands where an attention or a feed-forward layer would."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:  # noqa: ARG002 - called as attention is
        return self.factor * features


def test_shift_mask_leaves_every_pixel_itself() -> None:
    mask = shift_mask((2, 3), 4, 2, torch.zeros(1))
    assert (mask.diagonal(dim1=1, dim2=2) == 0).all()
    assert torch.equal(mask, mask.transpose(1, 2))
