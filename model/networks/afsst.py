"""AFSST-style, reconstructed from notes; not the authors' code; hyper-parameters are ours.

An optical stream of spectral transformer blocks and a SAR stream of window transformer blocks, merged at every level by weights that
the features themselves decide. The notes give the two streams, the Sobel edges of SAR with a learnable factor, the fusion
weights made by a small network, and the three losses; widths, depths and the decoder follow the sibling TCRNet and are our reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import NetworkSettings
from sereno.model.layers import (
    ChannelNorm,
    FeedForward,
    FusionGate,
    MultiscaleSar,
    PixelLinear,
    SpectralAttention,
    WindowAttention,
    double,
    embed_pixels,
    halve,
    smooth_fill,
)

MAX_WIDENING = 4
"""The deepest levels are at most so many times as wide as the first."""
NEAR_ZERO = 1e-2
"""Factor on the first weights of the last convolution, so that training starts at the base."""


class Afsst(nn.Module):
    """Clear an image: optical (B, C, H, W), SAR (B, S, H, W), cloud (B, 1, H, W) -> (B, C, H, W), all reflectance and SAR as in `Batch`.

    Ours, beside the sizes: the cloud probability is one more optical channel and steers the fusion; bands are centred and scaled by
    their training mean and standard deviation, and compressed by asinh, since a cloud is many deviations bright; with `base: filled`
    the network sees and adds to the input whose clouds are filled smoothly, with `base: cloudy` it adds to the input as in the notes;
    with `stem_px` above 1 several pixels make one token. Any number of bands and any size is taken: edges are reflected and cut off.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: NetworkSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: reflectance of clear training pixels, per band; they are stored with the weights."""
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).clamp_min(1e-4))
        widths = [settings.width * min(2**level, MAX_WIDENING) for level in range(settings.levels)]
        images = 2 if settings.base == "filled" else 1
        self.embed = embed_pixels(images * len(mean) + 1, settings.width, settings.stem_px)
        self.optical = nn.ModuleList(_spectral_stage(width, settings) for width in widths)
        self.optical_down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths))
        if settings.use_sar:
            self.embed_sar = MultiscaleSar(sar_bands, settings.width, settings.stem_px)
            self.sar = nn.ModuleList(_spatial_stage(width, settings) for width in widths)
            self.sar_down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths))
            self.fuse = nn.ModuleList(FusionGate(width) for width in widths)
        self.up = nn.ModuleList(double(wider, width) for width, wider in itertools.pairwise(widths))
        self.join = nn.ModuleList(PixelLinear(2 * width, width) for width in widths[:-1])
        self.decode = nn.ModuleList(_spectral_stage(width, settings) for width in widths[:-1])
        self.restore = _restoring_convolution(settings.width, len(mean), settings.stem_px)

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        """The cleared image."""
        filled = self.settings.base == "filled"
        base = smooth_fill(optical, 1 - cloud, self.mean) if filled else optical
        images = torch.cat([self._normalise(optical), self._normalise(base), cloud] if filled else [self._normalise(optical), cloud], dim=1)
        features = self._restore(self._pad(images), self._pad(sar), self._pad(cloud))
        change = F.pixel_shuffle(features, self.settings.stem_px)[:, :, : optical.shape[2], : optical.shape[3]]
        return base + self.std[:, None, None] * change

    def _restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        """What the base lacks, in standard deviations; the figure of the notes, read from left to right."""
        stream, levels = self.embed(images), []
        echo = self.embed_sar(sar) if self.settings.use_sar else None
        cloud = F.avg_pool2d(cloud, self.settings.stem_px)
        for level, block in enumerate(self.optical):
            if level:
                stream, cloud = self.optical_down[level - 1](stream), F.avg_pool2d(cloud, 2)
            stream = block(stream)
            if echo is not None:
                echo = self.sar[level](self.sar_down[level - 1](echo) if level else echo)
                stream = self.fuse[level](stream, echo, cloud)
            levels.append(stream)
        for level in reversed(range(len(levels) - 1)):
            stream = self.join[level](torch.cat([self.up[level](stream), levels[level]], dim=1))
            stream = self.decode[level](stream)
        restored: Tensor = self.restore(stream)
        return restored

    def _normalise(self, image: Tensor) -> Tensor:
        return torch.asinh((image - self.mean[:, None, None]) / self.std[:, None, None])

    def _pad(self, image: Tensor) -> Tensor:
        """`image` reflected to a size that windows and halvings divide (replicated where it is too small to be reflected)."""
        step = self.settings.window_px * self.settings.stem_px * 2 ** (self.settings.levels - 1)
        missing = [-extent % step for extent in image.shape[2:]]
        mode = "reflect" if all(gap < extent for gap, extent in zip(missing, image.shape[2:], strict=True)) else "replicate"
        return F.pad(image, (0, missing[1], 0, missing[0]), mode=mode).contiguous(memory_format=torch.channels_last)


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with norm before and residual around: (B, C, H, W) -> (B, C, H, W).

    SpeTB of the notes with attention among channels, SpaTB with attention inside windows.
    """

    def __init__(self, width: int, attend: SpectralAttention | WindowAttention, expansion: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.attend = attend
        self.norm_mix = ChannelNorm(width)
        self.mix = FeedForward(width, expansion)

    def forward(self, features: Tensor) -> Tensor:
        """Refined features."""
        attended: Tensor = features + self.attend(self.norm(features))
        refined: Tensor = attended + self.mix(self.norm_mix(attended))
        return refined


def _spectral_stage(width: int, settings: NetworkSettings) -> nn.Sequential:
    attentions = (SpectralAttention(width, settings.head_dim) for _ in range(settings.blocks))
    return nn.Sequential(*(TransformerBlock(width, attend, settings.expansion) for attend in attentions))


def _spatial_stage(width: int, settings: NetworkSettings) -> nn.Sequential:
    shifts = (bool(number % 2) for number in range(settings.blocks))
    attentions = (WindowAttention(width, settings.head_dim, settings.window_px, shifted=shifted) for shifted in shifts)
    return nn.Sequential(*(TransformerBlock(width, attend, settings.expansion) for attend in attentions))


def _restoring_convolution(width: int, bands: int, stem_px: int) -> nn.Conv2d:
    last = nn.Conv2d(width, bands * stem_px**2, 3, padding=1)
    with torch.no_grad():
        last.weight.mul_(NEAR_ZERO)
        last.bias.zero_()  # type: ignore[union-attr]
    return last
