"""Laws of attention, against its equations written naively, and symmetry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.attention import SpectralAttention, WindowAttention, shift_mask


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_parameters(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


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
    layer = random_parameters(SpectralAttention(12, 4))
    features = torch.randn(2, 12, 6, 10)
    torch.testing.assert_close(layer(features), attend_naively(layer, features), atol=1e-5, rtol=1e-5)


def test_spectral_attention_does_not_care_where_pixels_lie() -> None:
    layer = random_parameters(SpectralAttention(8, 4))
    nn.init.zeros_(layer.positional.second.weight)  # its positional branch does care
    features = torch.randn(2, 8, 6, 6)
    order = torch.randperm(36)
    shuffled = features.flatten(2)[:, :, order].reshape(features.shape)
    expected = layer(features).flatten(2)[:, :, order].reshape(features.shape)
    torch.testing.assert_close(layer(shuffled), expected, atol=1e-5, rtol=1e-5)


def test_positional_branch_makes_spectral_attention_see_neighbours() -> None:
    layer = random_parameters(SpectralAttention(8, 4))
    features = torch.randn(1, 8, 6, 6)
    assert not torch.allclose(layer(features.flip(3)), layer(features).flip(3), atol=1e-3)


def attend_window_naively(layer: WindowAttention, features: Tensor) -> Tensor:
    """Each pixel on its own: softmax over the pixels of its window, windows laid `shift` pixels further."""
    side, shift, depth = layer.window_px, layer.shift, layer.head_dim
    query, key, value = F.linear(features.permute(0, 2, 3, 1), layer.qkv.weight, layer.qkv.bias).chunk(3, dim=3)
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
    layer = random_parameters(WindowAttention(8, 4, 4, shifted=shifted))
    features = torch.randn(2, 8, 8, 12)
    torch.testing.assert_close(layer(features), attend_window_naively(layer, features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_pixel_outside_the_window_changes_nothing(shifted: bool) -> None:
    layer = random_parameters(WindowAttention(8, 4, 4, shifted=shifted))
    features = torch.randn(1, 8, 16, 16)
    changed = features.clone()
    changed[:, :, 0, 0] += 5
    moved = (layer(changed) - layer(features)).abs().amax(dim=1)[0] > 1e-6
    side = 2 if shifted else 4
    assert moved[:side, :side].all()
    assert not moved[side:].any()
    assert not moved[:, side:].any()


def test_shift_mask_leaves_every_pixel_itself() -> None:
    mask = shift_mask((2, 3), 4, 2, torch.zeros(1))
    assert (mask.diagonal(dim1=1, dim2=2) == 0).all()
    assert torch.equal(mask, mask.transpose(1, 2))
