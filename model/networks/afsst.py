"""AFSST-style, reconstructed from notes; not the authors' code; hyper-parameters are ours.

An optical stream of spectral transformer blocks and a SAR stream of window transformer blocks, merged at every level by weights that
the features themselves decide. The notes give the two streams (SpeTB, SpaTB), the Sobel edges of SAR with a learnable factor (MSFEM), the
fusion weights made by a small network (TFusion), and the three losses; widths, depths and the decoder follow the sibling TCRNet and are
our reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.attention import ParallelAttention, SpectralAttention, TransformerStage, WindowAttention
from sereno.model.config import AfsstSettings
from sereno.model.frequency import SpatialFrequencyFusion
from sereno.model.layers import (
    ConcatFusion,
    FusionGate,
    MultiscaleSar,
    PixelFusion,
    PixelLinear,
    double,
    embed_pixels,
    halve,
    smooth_fill,
)
from sereno.model.networks.clearing import ClearingNetwork, count_images, make_last

MAX_WIDENING: Final = 4
"""The deepest levels are at most so many times as wide as the first."""


class Afsst(ClearingNetwork):
    """Clear an image with a spectral and a spatial stream, as `ClearingNetwork` says.

    Ours, beside the sizes and what `ClearingNetwork` adds: the cloud probability is one more optical channel and, with `fusion: pixel`,
    steers the fusion. The ablations of the notes: `optical_attention: spatial` is AFSST-spa, `sar_features: convolution` goes without
    MSFEM, `fusion: concat` without TFusion. `optical_attention: parallel` puts the block of the S2-Transformer into the optical stream.
    `fusion: sfi` is the dual-domain interaction of SFIIN (see `SpatialFrequencyFusion`): its frequency branch sees the whole image, with
    clouds filled whatever the `base`, and SAR. Tiles of a scene then see no further than themselves.
    """

    def __init__(self, settings: AfsstSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: reflectance of clear training pixels, per band; they are stored with the weights."""
        step_px = settings.window_px * settings.stem_px * 2 ** (settings.levels - 1)
        super().__init__(settings, step_px=step_px, mean=mean, std=std)
        widths = [settings.channels * min(2**level, MAX_WIDENING) for level in range(settings.levels)]
        self.embed = embed_pixels(count_images(len(mean), settings), widths[0], settings.stem_px)
        self.optical = nn.ModuleList(_make_stage(width, settings, settings.optical_attention) for width in widths)
        self.optical_down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths))
        self.embed_sar = _embed_sar(sar_bands, settings) if settings.use_sar else None
        if settings.use_sar:
            self.sar = nn.ModuleList(_make_stage(width, settings, "spatial") for width in widths)
            self.sar_down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths))
            self.fuse = nn.ModuleList(_make_fusion(width, settings) for width in widths)
        self.embed_filled = embed_pixels(len(mean), widths[0], settings.stem_px) if _sees_filled(settings) else None
        self.filled_down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths) if _sees_filled(settings))
        self.up = nn.ModuleList(double(wider, width) for width, wider in itertools.pairwise(widths))
        self.join = nn.ModuleList(PixelLinear(2 * width, width) for width in widths[:-1])
        self.decode = nn.ModuleList(_make_stage(width, settings, settings.optical_attention) for width in widths[:-1])
        self.last = make_last(widths[0], len(mean), settings.stem_px)

    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:
        """What the base lacks, in standard deviations; the figure of the notes, read from left to right."""
        stream, levels, skies = self.embed(images), [], [F.avg_pool2d(cloud, self.stem_px)]
        echo = self.embed_sar(sar) if self.embed_sar is not None else None
        filled = self._embed_filled(images, cloud)
        for level, block in enumerate(self.optical):
            if level:
                stream = self.optical_down[level - 1](stream)
                skies.append(F.avg_pool2d(skies[-1], 2))
            stream = block(stream, 1 - skies[level])
            if echo is not None:
                echo = self.sar[level](self.sar_down[level - 1](echo) if level else echo)
                stream = self.fuse[level](stream, echo, filled[level] if filled else skies[level])
            levels.append(stream)
        for level in reversed(range(len(levels) - 1)):
            stream = self.join[level](torch.cat([self.up[level](stream), levels[level]], dim=1))
            stream = self.decode[level](stream, 1 - skies[level])
        return [self.last(stream)]

    def _embed_filled(self, images: Tensor, cloud: Tensor) -> list[Tensor]:
        """Features of the normalised input whose clouds are filled, by level: nothing under a certain cloud is in them. Empty if unused.

        They pass convolutions of their own, since every block of the optical stream spreads what clouds look like.
        """
        if self.embed_filled is None:
            return []
        features = [self.embed_filled(self._fill(images, cloud))]
        for down in self.filled_down:
            features.append(down(features[-1]))
        return features

    def _fill(self, images: Tensor, cloud: Tensor) -> Tensor:
        """The base, (B, C, H, W), which is filled already or is the cloudy input: then filled smoothly."""
        bands = len(self.mean)
        if self.base != "cloudy":
            return images[:, bands : 2 * bands]
        with torch.autocast(images.device.type, enabled=False):  # fp16 would divide zero by zero far under a cloud
            return smooth_fill(images[:, :bands].float(), 1 - cloud, torch.zeros_like(self.mean))


def _make_stage(width: int, settings: AfsstSettings, kind: str) -> TransformerStage:
    """The blocks of one level and stream; windows are shifted in every second block."""
    attentions = [_make_attention(width, settings, kind, shifted=bool(number % 2)) for number in range(settings.depth)]
    return TransformerStage(width, attentions, settings.expansion)


def _make_attention(width: int, settings: AfsstSettings, kind: str, *, shifted: bool) -> nn.Module:
    if kind == "spectral":
        return SpectralAttention(width, settings.head_dim)
    mask_to = "query-key" if kind == "parallel" else "none"
    spatial = WindowAttention(width, settings.head_dim, settings.window_px, shifted=shifted, mask_to=mask_to)
    return spatial if kind == "spatial" else ParallelAttention(width, spatial, SpectralAttention(width, settings.head_dim))


def _embed_sar(bands: int, settings: AfsstSettings) -> nn.Module:
    if settings.sar_features == "msfem":
        return MultiscaleSar(bands, settings.channels, settings.stem_px, settings.msfem_alpha)
    return embed_pixels(bands, settings.channels, settings.stem_px)


def _make_fusion(width: int, settings: AfsstSettings) -> nn.Module:
    return {"pixel": PixelFusion, "global": FusionGate, "concat": ConcatFusion, "sfi": SpatialFrequencyFusion}[settings.fusion](width)


def _sees_filled(settings: AfsstSettings) -> bool:
    """Whether the fusion sees the filled image instead of the sky."""
    return settings.use_sar and settings.fusion == "sfi"
