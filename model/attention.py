"""Attention among channels, attention inside windows, both together, and the transformer block around them.

Features enter and leave as (B, C, H, W), read as tokens (B, H, W, C) inside (see `sereno.model.layers`). All code is written from the
cited equations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.layers import ChannelNorm, FeedForward, PixelLinear, to_features, to_tokens

NORM_EPS: Final = 1e-6
"""Smallest norm that queries and keys are divided by."""
MASKED: Final = {
    "query-key": (True, True, False),
    "query": (True, False, False),
    "key": (False, True, False),
    "value": (False, False, True),
    "none": (False, False, False),
}
"""Which of queries, keys and values are multiplied by the embedded mask, by the name of the choice."""


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with norm before and residual around: (B, C, H, W) -> (B, C, H, W).

    SpeTB of the notes with attention among channels, SpaTB with attention inside windows. Attention made of two attentions has a norm for
    each of them, and then none stands here. `drop` is the chance that a residual is left out for an image in training, by torch's own
    random numbers, the others being scaled up by as much (stochastic depth, Huang et al. 2016).
    """

    def __init__(self, width: int, attend: nn.Module, mix: nn.Module, *, drop: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.Identity() if isinstance(attend, ParallelAttention | SequentialAttention) else ChannelNorm(width)
        self.attend = attend
        self.norm_mix = ChannelNorm(width)
        self.mix = mix
        self.drop = drop

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Refined features; `clear` (B, 1, H, W), 1 where the sky is clear, is for attention that takes a mask."""
        attended: Tensor = features + self._keep(self.attend(self.norm(features), clear))
        refined: Tensor = attended + self._keep(self.mix(self.norm_mix(attended)))
        return refined

    def _keep(self, change: Tensor) -> Tensor:
        if not (self.drop and self.training):
            return change
        return change * F.dropout(change.new_ones(len(change), 1, 1, 1), self.drop)


class TransformerStage(nn.Module):
    """Blocks one after the other: (B, C, H, W), clear sky (B, 1, H, W) or None -> (B, C, H, W)."""

    def __init__(self, width: int, attentions: Iterable[nn.Module], expansion: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, attend, FeedForward(width, expansion)) for attend in attentions)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Refined features."""
        for block in self.blocks:
            features = block(features, clear)
        return features


class ParallelAttention(nn.Module):
    """Attend in two ways side by side: (B, C, H, W), clear sky (B, 1, H, W) or None -> (B, C, H, W).

    `W_r [WMSA(LN1 x) ; SpeMSA(LN2 x)]` without bias, the block of the S2-Transformer (Wang et al. 2025, parallel-concat); without
    `concat` the sum of the two instead (parallel-sum). Both attentions are called as `WindowAttention` is.
    """

    def __init__(self, width: int, spatial: nn.Module, spectral: nn.Module, *, concat: bool = True) -> None:
        super().__init__()
        self.norm_spatial, self.spatial = ChannelNorm(width), spatial
        self.norm_spectral, self.spectral = ChannelNorm(width), spectral
        self.join = PixelLinear(2 * width, width, bias=False) if concat else None

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Attended features, without the residual."""
        near: Tensor = self.spatial(self.norm_spatial(features), clear)
        among: Tensor = self.spectral(self.norm_spectral(features), clear)
        if self.join is None:
            return near + among
        joined: Tensor = self.join(torch.cat([near, among], dim=1))
        return joined


class SequentialAttention(nn.Module):
    """Attend in two ways, one after the other: (B, C, H, W), clear sky (B, 1, H, W) or None -> (B, C, H, W).

    Each has its norm and its residual: `y = first(LN1 x)`, output `y + second(LN2 (x + y))`, the residual around both being the block's.
    """

    def __init__(self, width: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.norm_first, self.first = ChannelNorm(width), first
        self.norm_second, self.second = ChannelNorm(width), second

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Attended features, without the residual."""
        change: Tensor = self.first(self.norm_first(features), clear)
        both: Tensor = change + self.second(self.norm_second(features + change), clear)
        return both


class SpectralAttention(nn.Module):
    """Attend among channels, each channel being one token as long as the image: (B, C, H, W) -> (B, C, H, W).

    Per head with d channels and N pixels: `A = softmax(s K Q^T)` in R^(d x d) with L2-normalised rows of K and Q and a learnable
    temperature s, output `W A V + PE(V)` (Cai et al. 2022, MST, eq. 5-7; Zamir et al. 2022, Restormer). PE is depthwise 3x3, GELU,
    depthwise 3x3.

    Ours is how it is computed. With `K = X W_k` and `Q = X W_q`, both the product and the norms follow from the Gram matrix of the tokens:
    `K^T Q = W_k^T (X^T X) W_q`, and the squared norms are the diagonals of its like. So queries and keys are never made, and A is
    folded into W: of matrix products as long as the image three are left of five.

    With `window_px` each window of that side attends for itself (the S2-Transformer as its notes tell it; its code takes the whole
    image); H and W are then multiples of it. Ours: those windows are never shifted, and PE sees beyond them.
    """

    def __init__(self, width: int, head_dim: int, *, window_px: int | None = None) -> None:
        super().__init__()
        self.head_dim, self.window_px = head_dim, window_px
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.temperature = nn.Parameter(torch.ones(width // head_dim, 1, 1))
        self.project = nn.Linear(width, width)
        self.positional = _PositionalBranch(width)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:  # noqa: ARG002 - called as window attention is
        """Attended features, without the residual."""
        tokens = to_tokens(features)
        to_query, to_key, to_value = self.qkv.weight.chunk(3)
        value = F.linear(tokens, to_value)
        folded = self._fold(self._cut(tokens), to_query, to_key)
        attended = torch.baddbmm(self.project.bias.expand(len(folded), 1, -1), self._cut(value), folded.transpose(1, 2))
        joined = attended.reshape(tokens.shape) if self.window_px is None else join_windows(attended, tokens.shape)
        branched: Tensor = to_features(joined) + self.positional(to_features(value))
        return branched

    def _cut(self, tokens: Tensor) -> Tensor:
        """What attends together: (B, H, W, C) -> (B or B * windows, N, C)."""
        return tokens.flatten(1, 2) if self.window_px is None else cut_windows(tokens, self.window_px)

    def _fold(self, tokens: Tensor, to_query: Tensor, to_key: Tensor) -> Tensor:
        """Attention and projection as one matrix per image: (B, N, C) -> (B, C, C)."""
        batch, _, width = tokens.shape
        with torch.autocast(tokens.device.type, enabled=False):  # sums over a whole image leave the range of fp16
            gram = _gram(tokens.to(to_key.dtype))
            keyed, queried = to_key @ gram, to_query @ gram
            key_norm, query_norm = (
                (part * weight).sum(2).clamp_min(NORM_EPS**2).sqrt() for part, weight in ((keyed, to_key), (queried, to_query))
            )
            logits = keyed.reshape(batch, -1, self.head_dim, width) @ to_query.reshape(-1, self.head_dim, width).transpose(1, 2)
            norms = key_norm.reshape(batch, -1, self.head_dim, 1) * query_norm.reshape(batch, -1, 1, self.head_dim)
            weights = torch.softmax(self.temperature * logits / norms, dim=3)
            heads = self.project.weight.reshape(width, -1, self.head_dim)
            return torch.einsum("ohd,bhde->bohe", heads, weights).reshape(batch, width, width)


def _gram(tokens: Tensor) -> Tensor:
    """Products of all channels: (B, N, C) -> (B, C, C), symmetric."""
    # NOTE: half of it takes the gradient, once for both factors, so that backward has one long product in the stead of two.
    half = tokens.transpose(1, 2) @ tokens.detach()
    return half + (half.transpose(1, 2) - half.detach())


class _PositionalBranch(nn.Module):
    """What neighbours add to a channel: depthwise 3x3, GELU, depthwise 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        branch: Tensor = self.second(F.gelu(self.first(value)))
        return branch


class MaskEmbedding(nn.Module):
    """How much each channel counts where the sky is so clear: (B, 1, H, W) -> (B, C, H, W) in (0, 1).

    `sigmoid(conv3(conv1(mask)))`, the mask embedding of the S2-Transformer (Wang et al. 2025). Their code has a softmax in the sigmoid's
    place, over the last axis, which is the image's width and so an accident, it seems: a pixel's factor would depend on its whole row.
    Nothing stands between the two convolutions, so they are applied as the one 3x3 convolution of the mask and of a plane of ones (for the
    bias of the first) that they amount to: C/2 times cheaper.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(1, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, clear: Tensor) -> Tensor:
        """Factors."""
        assert self.point.bias is not None
        point = torch.cat([self.point.weight[:, :, 0, 0], self.point.bias[:, None]], dim=1)
        kernel = torch.einsum("ocij,cm->omij", self.near.weight, point)
        planes = torch.cat([clear, torch.ones_like(clear)], dim=1)
        return torch.sigmoid(F.conv2d(planes, kernel, self.near.bias, padding=1))


class WindowAttention(nn.Module):
    """Attend among the pixels of each window: (B, C, H, W) -> (B, C, H, W); H and W are multiples of `window_px`.

    `softmax(Q K^T / sqrt(d) + R) V` with a learnable relative position bias R; with `shifted` the windows lie half a window further
    and pixels from opposite borders do not see each other (Liu et al. 2021, Swin, section 3.2). `mask_to` names what is multiplied
    elementwise by the embedded clear-sky confidence (a key of `MASKED`); only then is a mask needed.
    """

    relative: Tensor

    def __init__(self, width: int, head_dim: int, window_px: int, *, shifted: bool, mask_to: str = "none") -> None:
        super().__init__()
        self.head_dim, self.window_px = head_dim, window_px
        self.shift = window_px // 2 if shifted else 0
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(width // head_dim, (2 * window_px - 1) ** 2))
        self.masked = MASKED[mask_to]
        self.embed_mask = MaskEmbedding(width) if any(self.masked) else None
        self.register_buffer("relative", index_offsets(window_px), persistent=False)

    def forward(self, features: Tensor, clear: Tensor | None = None) -> Tensor:
        """Attended features, without the residual; `clear` (B, 1, H, W) is 1 where the sky is clear."""
        tokens = to_tokens(features)
        batch, height, columns, width = tokens.shape
        parts = self.qkv(self._cut(tokens))
        if self.embed_mask is not None:
            parts = self._modulate(parts, clear)
        heads = parts.reshape(batch, -1, self.window_px**2, 3, width // self.head_dim, self.head_dim)
        query, key, value = heads.permute(3, 0, 1, 4, 2, 5).unbind(0)
        attended = attend(query, key, value, self._bias_of(height // self.window_px, columns // self.window_px))
        joined = join_windows(self.project(attended.transpose(2, 3).reshape(-1, self.window_px**2, width)), tokens.shape)
        return to_features(joined.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else joined)

    def _cut(self, tokens: Tensor) -> Tensor:
        """Windows, half a window further if they are shifted: (B, H, W, C) -> (B * windows, M*M, C)."""
        rolled = tokens.roll((-self.shift, -self.shift), dims=(1, 2)) if self.shift else tokens
        return cut_windows(rolled, self.window_px)

    def _modulate(self, parts: Tensor, clear: Tensor | None) -> Tensor:
        """Queries, keys and values (B * windows, M*M, 3C), those of them that are masked times their factors."""
        assert self.embed_mask is not None
        assert clear is not None
        factors = self._cut(to_tokens(self.embed_mask(clear)))
        chunks = zip(parts.chunk(3, dim=2), self.masked, strict=True)
        return torch.cat([part * factors if masked else part for part, masked in chunks], dim=2)

    def _bias_of(self, rows: int, cols: int) -> Tensor:
        """What is added to the logits: (windows or 1, heads, M*M, M*M)."""
        bias = self.bias[:, self.relative].unsqueeze(0)
        if not self.shift:
            return bias
        return bias + shift_mask((rows, cols), self.window_px, self.shift, bias).unsqueeze(1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`softmax(Q K^T / sqrt(d) + bias) V`: three times (B, windows, heads, N, d), (windows or 1, heads, N, N) -> as the first."""
    if query.is_cuda:  # fused kernels take four axes
        flat_bias = bias.expand(len(query), query.shape[1], -1, -1, -1).flatten(0, 1)
        attended = F.scaled_dot_product_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), attn_mask=flat_bias)
        return attended.reshape(query.shape)
    # On a CPU torch has no fused kernel for a bias that is learnt, and what it has instead takes half as long again as this.
    scale = query.shape[-1] ** -0.5
    return torch.softmax(scale * query @ key.transpose(-2, -1) + bias, dim=-1) @ value


def cut_windows(tokens: Tensor, window_px: int) -> Tensor:
    """The windows of `tokens`: (B, H, W, C) -> (B * windows, M * M, C)."""
    batch, height, columns, width = tokens.shape
    cut = tokens.reshape(batch, height // window_px, window_px, columns // window_px, window_px, width)
    return cut.transpose(2, 3).reshape(-1, window_px * window_px, width)


def join_windows(windows: Tensor, shape: Sequence[int]) -> Tensor:
    """What `cut_windows` cut: (B * windows, M * M, C) -> `shape`, which is (B, H, W, C)."""
    batch, height, columns, width = shape
    side = math.isqrt(windows.shape[1])
    return windows.reshape(batch, height // side, columns // side, side, side, width).transpose(2, 3).reshape(batch, height, columns, width)


def index_offsets(window_px: int) -> Tensor:
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
