"""Attention among channels, attention inside windows, and the transformer block around them.

Features enter and leave as (B, C, H, W), read as tokens (B, H, W, C) inside (see `sereno.model.layers`). All code is written from the
cited equations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.layers import ChannelNorm, FeedForward, PixelLinear, to_features, to_tokens

NORM_EPS: Final = 1e-6
"""Smallest norm that queries and keys are divided by."""


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with norm before and residual around: (B, C, H, W) -> (B, C, H, W).

    SpeTB of the notes with attention among channels, SpaTB with attention inside windows.
    """

    def __init__(self, width: int, attend: nn.Module, expansion: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.attend = attend
        self.norm_mix = ChannelNorm(width)
        self.mix = FeedForward(width, expansion)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Refined features; `clear` (B, 1, H, W), 1 where the sky is clear, is for attention that takes a mask."""
        seen = self.norm(features)
        attended: Tensor = features + (self.attend(seen, clear) if isinstance(self.attend, ParallelAttention) else self.attend(seen))
        refined: Tensor = attended + self.mix(self.norm_mix(attended))
        return refined


class TransformerStage(nn.Module):
    """Blocks one after the other: (B, C, H, W), clear sky (B, 1, H, W) or None -> (B, C, H, W)."""

    def __init__(self, width: int, attentions: Iterable[nn.Module], expansion: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, attend, expansion) for attend in attentions)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Refined features."""
        for block in self.blocks:
            features = block(features, clear)
        return features


class ParallelAttention(nn.Module):
    """Attend in windows and among channels side by side: (B, C, H, W), clear sky (B, 1, H, W) or None -> (B, C, H, W).

    `W_r [WMSA x ; SpeMSA x]` (S2-Transformer, parallel-concat).
    """

    def __init__(self, width: int, head_dim: int, window_px: int, *, shifted: bool) -> None:
        super().__init__()
        self.spatial = WindowAttention(width, head_dim, window_px, shifted=shifted)
        self.spectral = SpectralAttention(width, head_dim)
        self.join = PixelLinear(2 * width, width, bias=False)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Attended features, without the residual."""
        joined: Tensor = self.join(torch.cat([self.spatial(features), self.spectral(features)], dim=1))
        return joined


class SpectralAttention(nn.Module):
    """Attend among channels, each channel being one token as long as the image: (B, C, H, W) -> (B, C, H, W).

    Per head with d channels and N pixels: `A = softmax(s K Q^T)` in R^(d x d) with L2-normalised rows of K and Q and a learnable
    temperature s, output `W A V + PE(V)` (Cai et al. 2022, MST, eq. 5-7; Zamir et al. 2022, Restormer). PE is depthwise 3x3, GELU,
    depthwise 3x3. The norms are divided out of the small d x d product, and A is folded into W, so no copy of Q, K or A V is made.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.temperature = nn.Parameter(torch.ones(width // head_dim, 1, 1))
        self.project = nn.Linear(width, width)
        self.positional = _PositionalBranch(width)

    def forward(self, features: Tensor) -> Tensor:
        """Attended features, without the residual."""
        batch, width, height, columns = features.shape
        query, key, value = self.qkv(to_tokens(features)).reshape(batch, height * columns, 3, width).unbind(2)
        weights = self._attend(query, key)
        heads = self.project.weight.reshape(width, -1, self.head_dim)
        folded = torch.einsum("ohd,bhde->bohe", heads, weights).reshape(batch, width, width)
        mixed = torch.baddbmm(self.project.bias.expand(batch, 1, width), value, folded.transpose(1, 2))
        attended = to_features(mixed.reshape(batch, height, columns, width))
        branched: Tensor = attended + self.positional(to_features(value.reshape(batch, height, columns, width)))
        return branched

    def _attend(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention among the channels of each head: (B, N, C), (B, N, C) -> (B, heads, d, d), rows summing to one."""
        query_heads = query.reshape(*query.shape[:2], -1, self.head_dim).transpose(1, 2)
        key_heads = key.reshape(*key.shape[:2], -1, self.head_dim).transpose(1, 2)
        gram = key_heads.transpose(2, 3) @ query_heads
        query_norm = torch.linalg.vector_norm(query_heads, dim=2, keepdim=True).clamp_min(NORM_EPS)
        key_norm = torch.linalg.vector_norm(key_heads, dim=2).unsqueeze(3).clamp_min(NORM_EPS)
        return torch.softmax(self.temperature * gram / (key_norm * query_norm), dim=3)


class _PositionalBranch(nn.Module):
    """What neighbours add to a channel: depthwise 3x3, GELU, depthwise 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        branch: Tensor = self.second(F.gelu(self.first(value)))
        return branch


class WindowAttention(nn.Module):
    """Attend among the pixels of each window: (B, C, H, W) -> (B, C, H, W); H and W are multiples of `window_px`.

    `softmax(Q K^T / sqrt(d) + R) V` with a learnable relative position bias R; with `shifted` the windows lie half a window further
    and pixels from opposite borders do not see each other (Liu et al. 2021, Swin, section 3.2).
    """

    relative: Tensor

    def __init__(self, width: int, head_dim: int, window_px: int, *, shifted: bool) -> None:
        super().__init__()
        self.head_dim, self.window_px = head_dim, window_px
        self.shift = window_px // 2 if shifted else 0
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(width // head_dim, (2 * window_px - 1) ** 2))
        self.register_buffer("relative", relative_index(window_px), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Attended features, without the residual."""
        tokens = to_tokens(features)
        batch, height, columns, width = tokens.shape
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
        side, rows, cols = self.window_px, height // self.window_px, columns // self.window_px
        windows = self.qkv(tokens).reshape(batch, rows, side, cols, side, 3, width // self.head_dim, self.head_dim)
        query, key, value = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, rows * cols, -1, side * side, self.head_dim)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias_of(rows, cols))
        attended = attended.reshape(batch, rows, cols, -1, side, side, self.head_dim).permute(0, 1, 4, 2, 5, 3, 6)
        mixed: Tensor = self.project(attended.reshape(batch, height, columns, width))
        return to_features(mixed.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else mixed)

    def _bias_of(self, rows: int, cols: int) -> Tensor:
        """What is added to the logits: (windows or 1, heads, M*M, M*M)."""
        bias = self.bias[:, self.relative].unsqueeze(0)
        if not self.shift:
            return bias
        return bias + shift_mask((rows, cols), self.window_px, self.shift, bias).unsqueeze(1)


def relative_index(window_px: int) -> Tensor:
    """Place in the bias table of each pair of pixels of a window: (M*M, M*M) int64 in 0..(2M-1)^2-1."""
    axis = torch.arange(window_px)
    row, col = (part.reshape(-1) for part in torch.meshgrid(axis, axis, indexing="ij"))
    span = 2 * window_px - 1
    return (row[:, None] - row[None, :] + window_px - 1) * span + (col[:, None] - col[None, :] + window_px - 1)


def shift_mask(grid: tuple[int, int], window_px: int, shift: int, like: Tensor) -> Tensor:
    """Minus infinity between pixels that only the roll made neighbours: (windows, M*M, M*M), of `like`'s dtype and device."""
    sides = []
    for count in grid:
        rolled = torch.zeros(count * window_px, device=like.device, dtype=torch.int64)
        rolled[-shift:] = 1
        sides.append(rolled.reshape(count, window_px))
    label = sides[0][:, None, :, None] * 2 + sides[1][None, :, None, :]
    label = label.reshape(grid[0] * grid[1], window_px * window_px)
    apart = label[:, :, None] != label[:, None, :]
    return torch.zeros(apart.shape, device=like.device, dtype=like.dtype).masked_fill(apart, float("-inf"))
