"""Building blocks of the networks: norms, scales, feed-forward layers, SAR edges, fusion gates, smooth filling.

Features enter and leave as (B, C, H, W). Inside they are read as tokens (B, H, W, C), which in channels-last memory is the same
bytes, so that 1x1 convolutions are matrix products and nothing is copied. All code is written from the cited equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

SOBEL: Final = ((-0.125, 0.0, 0.125), (-0.25, 0.0, 0.25), (-0.125, 0.0, 0.125))
"""Horizontal derivative per pixel (Sobel and Feldman 1968, over 8); its transpose is the vertical one."""
EDGE_EPS: Final = 1e-6
"""Added under the root of the edge magnitude: the derivative of a root at zero is infinite."""
BINOMIAL: Final = (0.125, 0.375, 0.375, 0.125)
"""Cubic B-spline halving filter, separable."""
SMALLEST_STD: Final = 1e-4
"""Reflectance; a band that never varies is scaled by this."""
NEAR_ZERO: Final = 1e-2
"""Factor on the first weights of a last layer, so that training starts at what the network adds to."""


def to_tokens(features: Tensor) -> Tensor:
    """Features as tokens: (B, C, H, W) -> (B, H, W, C), a view."""
    return features.permute(0, 2, 3, 1)


def to_features(tokens: Tensor) -> Tensor:
    """Tokens as features: (B, H, W, C) -> (B, C, H, W), a view."""
    return tokens.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Normalise each pixel over its channels: (B, C, H, W) -> (B, C, H, W) (Ba et al. 2016)."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        return to_features(super().forward(to_tokens(features)))


class PixelLinear(nn.Linear):
    """Mix the channels of each pixel: (B, C, H, W) -> (B, C', H, W); a 1x1 convolution written as a matrix product."""

    def forward(self, features: Tensor) -> Tensor:
        """Mixed features."""
        return to_features(super().forward(to_tokens(features)))


class FeedForward(nn.Module):
    """Mix channels and near neighbours: (B, C, H, W) -> (B, C, H, W).

    1x1, GELU, depthwise 3x3, GELU, 1x1: LeFF of Uformer (Wang et al. 2022), used in MST (Cai et al. 2022) as well.
    """

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.expand = PixelLinear(width, hidden)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = PixelLinear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        """Mixed features, without the residual."""
        mixed: Tensor = self.contract(F.gelu(self.near(F.gelu(self.expand(features)))))
        return mixed


class SobelEdges(nn.Module):
    """Edge strength of each channel: (B, C, H, W) -> (B, C, H, W), at least sqrt(EDGE_EPS).

    `sqrt((a Kx * B)^2 + (a Ky * B)^2 + eps)` with fixed Sobel kernels and a learnable factor a, 1 at first (the device of EDCNN, Liang
    et al. 2020). Borders are replicated, so a constant has no edge anywhere.
    """

    kernel: Tensor

    def __init__(self, width: int, alpha: str = "channel") -> None:
        """`alpha`: the factor is learnt per `channel`, as one `scalar`, or `fixed`."""
        super().__init__()
        horizontal = torch.tensor(SOBEL)
        self.register_buffer("kernel", torch.stack([horizontal, horizontal.T]).unsqueeze(1), persistent=False)
        self.alpha = nn.Parameter(torch.ones(width if alpha == "channel" else 1), requires_grad=alpha != "fixed")

    def forward(self, features: Tensor) -> Tensor:
        """Edge strengths."""
        width = features.shape[1]
        padded = _repeat_edges(features)
        across = F.conv2d(padded, self.kernel[:1].expand(width, 1, 3, 3), groups=width)
        down = F.conv2d(padded, self.kernel[1:].expand(width, 1, 3, 3), groups=width)
        squared = self.alpha.square()[None, :, None, None] * (across.square() + down.square())
        return (squared + EDGE_EPS).sqrt()


def _repeat_edges(image: Tensor) -> Tensor:
    """`image` with its outermost pixels repeated once: (B, C, H, W) -> (B, C, H + 2, W + 2)."""
    if not torch.compiler.is_compiling():
        return F.pad(image, (1, 1, 1, 1), mode="replicate")
    # HACK: torch's compiler mistakes the strides of the gradient of padded channels-last images, pytorch/pytorch#179442
    wider = torch.cat([image[..., :1], image, image[..., -1:]], dim=3)
    return torch.cat([wider[..., :1, :], wider, wider[..., -1:, :]], dim=2)


class MultiscaleSar(nn.Module):
    """Features of SAR with its edges at three kernel sizes: (B, S, H, W) -> (B, C, H/stem, W/stem).

    `B = conv(S)`, `E = B + edges(B)`, `B + W1 E + sigmoid(W3 * E) + DW5(W1 E)`: MSFEM as the notes describe it, but for three choices of
    ours. B itself passes as well, and edges are derivatives per pixel, an eighth of the plain Sobel sums, since speckle has edges
    everywhere (neither was shown to matter). The convolution has no batch norm after it: SAR comes scaled already, and an image's features
    then depend on nothing but the image, however a batch is shared among processes. (A norm over channels instead loses the level of
    backscatter, and with it most of what SAR tells.)
    """

    def __init__(self, bands: int, width: int, stem_px: int, alpha: str = "channel") -> None:
        super().__init__()
        self.embed = embed_pixels(bands, width, stem_px)
        self.edges = SobelEdges(width, alpha)
        self.point = PixelLinear(width, width)
        self.gate = nn.Conv2d(width, width, 3, padding=1)
        self.wide = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def forward(self, sar: Tensor) -> Tensor:
        """SAR features."""
        embedded = self.embed(sar)
        edged = embedded + self.edges(embedded)
        point = self.point(edged)
        features: Tensor = embedded + point + torch.sigmoid(self.gate(edged)) + self.wide(point)
        return features


class FusionGate(nn.Module):
    """Merge the streams: optical (B, C, H, W), SAR (B, C, H, W), cloud (unused) -> (B, C, H, W).

    TFusion of the notes: a small network makes the pair of weights of each channel from the means of both streams, a softmax over the
    two modalities makes them sum to one, `F = O + conv(b_O O + b_S S)`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(2 * width, width // 2), nn.ReLU(), nn.Linear(width // 2, 2 * width))
        self.merge = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        """Merged features."""
        merged: Tensor = optical + self.merge(sar + self.weigh(optical, sar, cloud) * (optical - sar))
        return merged

    def weigh(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:  # noqa: ARG002 - for a kind that sees it
        """Weight of optical, that of SAR being one less it: (B, C, 1, 1) in (0, 1).

        A softmax over two is the sigmoid of their difference.
        """
        return torch.sigmoid(self._compare_means(optical, sar))

    def _compare_means(self, optical: Tensor, sar: Tensor) -> Tensor:
        """What speaks for optical in each channel of the whole image: (B, C, 1, 1)."""
        means = torch.cat([optical.mean(dim=(2, 3)), sar.mean(dim=(2, 3))], dim=1)
        optical_logit, sar_logit = self.channel(means).chunk(2, dim=1)
        logit: Tensor = (optical_logit - sar_logit)[:, :, None, None]
        return logit


class PixelFusion(FusionGate):
    """Merge the streams pixel by pixel: optical (B, C, H, W), SAR (B, C, H, W), cloud (B, 1, H, W) -> (B, C, H, W).

    Ours: to the logits of `FusionGate` those of every pixel and channel are added, which also see the cloud probability, since a
    global weight cannot prefer SAR under clouds alone; and the weighted streams are mixed instead of added, `F = O + conv(W [2 b_O O ;
    2 b_S S])`, since the channels of two streams need not mean the same. Equal weights make it `ConcatFusion`.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.pixel = PixelLinear(2 * width + 1, width)
        self.mix = PixelLinear(2 * width, width)

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        """Merged features."""
        weight = self.weigh(optical, sar, cloud)
        mixed = _mix_stack(self.mix, 2 * weight * optical, 2 * (1 - weight) * sar)
        merged: Tensor = optical + self.merge(mixed)
        return merged

    def weigh(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        """Weight of optical, that of SAR being one less it: (B, C, H, W) in (0, 1)."""
        return torch.sigmoid(self._compare_means(optical, sar) + _mix_stack(self.pixel, optical, sar, cloud))


def _mix_stack(mix: nn.Linear, *images: Tensor) -> Tensor:
    """`mix` of the stacked images, without stacking them: each (B, C_i, H, W) -> (B, C', H, W)."""
    weights = torch.split(mix.weight, [image.shape[1] for image in images], dim=1)
    mixed = F.linear(to_tokens(images[0]), weights[0], mix.bias)
    for image, weight in zip(images[1:], weights[1:], strict=True):
        mixed = mixed + F.linear(to_tokens(image), weight)
    return to_features(mixed)


class ConcatFusion(nn.Module):
    """Merge the streams without weights: optical (B, C, H, W), SAR (B, C, H, W), cloud (unused) -> (B, C, H, W).

    `F = O + conv(W [O ; S])`, the ablation without TFusion.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = PixelLinear(2 * width, width)
        self.merge = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:  # noqa: ARG002 - called as the gate is
        """Merged features."""
        merged: Tensor = optical + self.merge(self.mix(torch.cat([optical, sar], dim=1)))
        return merged


class BandScale(nn.Module):
    """Images in standard deviations of their bands, and back; `mean` and `std` (C,) are stored with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).clamp_min(SMALLEST_STD)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Deviations from the mean: (..., C, H, W) -> (..., C, H, W)."""
        return (image - self.mean) / self.std

    def restore(self, deviations: Tensor) -> Tensor:
        """What `forward` was given, in float32: (..., C, H, W) -> (..., C, H, W)."""
        return deviations.float() * self.std + self.mean


def pad_to_multiple(image: Tensor, step_px: int) -> Tensor:
    """`image` reflected at the right and below to a multiple of `step_px`: (B, C, H, W) -> (B, C, H', W'), channels last.

    It is replicated instead where it is too small to be reflected.
    """
    missing = [-extent % step_px for extent in image.shape[2:]]
    mode = "reflect" if all(gap < extent for gap, extent in zip(missing, image.shape[2:], strict=True)) else "replicate"
    if not image.shape[1]:  # a dataset without SAR: torch reflects no empty image
        mode = "constant"
    return F.pad(image, (0, missing[1], 0, missing[0]), mode=mode).contiguous(memory_format=torch.channels_last)


def embed_pixels(bands: int, width: int, stem_px: int) -> nn.Conv2d:
    """The first convolution: 3x3, or for tokens of `stem_px` pixels one strided convolution that overlaps by a pixel all round."""
    return nn.Conv2d(bands, width, stem_px + 2, stride=stem_px, padding=1)


def start_near_zero(last: nn.Conv2d) -> nn.Conv2d:
    """The last convolution of a network that adds to something, with weights so small that training starts there."""
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(NEAR_ZERO)
        last.bias.zero_()
    return last


def halve(width: int, wider: int) -> nn.Conv2d:
    """To half the rows and columns and `wider` channels: 4x4, stride 2."""
    return nn.Conv2d(width, wider, 4, stride=2, padding=1, bias=False)


def double(width: int, narrower: int) -> nn.ConvTranspose2d:
    """To twice the rows and columns and `narrower` channels: transposed 2x2, stride 2."""
    return nn.ConvTranspose2d(width, narrower, 2, stride=2)


@torch.no_grad()
def smooth_fill(image: Tensor, keep: Tensor, prior: Tensor) -> Tensor:
    """`image` with its unwanted pixels filled smoothly from the wanted ones: (B, C, H, W), (B, 1, H, W), (C,) -> (B, C, H, W).

    `keep` is 1 where a pixel stays exactly as it is, 0 where it is replaced, between them a blend. `prior`, per-band values in the units of
    `image`, is what is expected of ground of which nothing is seen.

    Pull-push (Gortler et al. 1996, section 3.4; Grossman and Dally 1998): weighted averages are pulled up a pyramid, then pushed down
    bilinearly to where nothing was. Ours: halving is by a cubic B-spline, so that no blocks show, and weights are averaged, not summed,
    so that what is known of half a surrounding counts half, and what no scale knows for sure leans to the prior: for patchy ground
    that is the better estimate (measured on simulated fields under clouds: 1.6 dB).
    """
    filled = _pull_push(image, keep, prior.to(image)[None, :, None, None])
    return keep * image + (1 - keep) * filled


def _pull_push(known: Tensor, weight: Tensor, fallback: Tensor) -> Tensor:
    """`known` wherever `weight` is one, elsewhere what coarser levels know."""
    rows, columns = known.shape[2:]
    if rows == 1 and columns == 1:
        return known * weight + fallback * (1 - weight)
    amount = _halve_smoothly(weight)
    coarse = _halve_smoothly(known * weight) / amount.clamp_min(torch.finfo(known.dtype).tiny)
    pushed = _pull_push(coarse, amount, fallback)
    finer = F.interpolate(pushed, scale_factor=2.0, mode="bilinear", align_corners=False)[:, :, :rows, :columns]
    return weight * known + (1 - weight) * finer


def _halve_smoothly(values: Tensor) -> Tensor:
    """Every second value of `values` after a cubic B-spline: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)).

    Outside lies zero: nothing is known there.
    """
    channels, rows, columns = values.shape[1:]
    taps = values.new_tensor(BINOMIAL)
    padded = F.pad(values, (1, 1 + columns % 2, 1, 1 + rows % 2))
    down = F.conv2d(padded, taps.reshape(1, 1, 4, 1).expand(channels, 1, 4, 1), stride=(2, 1), groups=channels)
    return F.conv2d(down, taps.reshape(1, 1, 1, 4).expand(channels, 1, 1, 4), stride=(1, 2), groups=channels)
