"""A plain U-Net (Ronneberger et al. 2015) over optical, SAR and cloud stacked together: the yardstick, with nothing of the notes in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import UnetSettings
from sereno.model.layers import double, embed_pixels, halve
from sereno.model.networks.clearing import ClearingNetwork, count_images, make_last

SLOPE = 0.1
"""Of the rectifier below zero."""


class Unet(ClearingNetwork):
    """Clear an image with convolutions alone, as `ClearingNetwork` says.

    The pair of 3x3 convolutions of a level has a way around it (He et al. 2016); the width doubles per level.
    """

    def __init__(self, settings: UnetSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(settings, step_px=settings.stem_px * 2 ** (settings.levels - 1), mean=mean, std=std)
        widths = [settings.width * 2**level for level in range(settings.levels)]
        self.use_sar = settings.use_sar
        images = count_images(len(mean), settings) + (sar_bands if settings.use_sar else 0)
        self.embed = embed_pixels(images, settings.width, settings.stem_px)
        self.encode = nn.ModuleList(_Residual(width) for width in widths)
        self.down = nn.ModuleList(halve(width, wider) for width, wider in itertools.pairwise(widths))
        self.up = nn.ModuleList(double(wider, width) for width, wider in itertools.pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.decode = nn.ModuleList(_Residual(width) for width in widths[:-1])
        self.last = make_last(settings.width, len(mean), settings.stem_px)

    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:  # noqa: ARG002 - the cloud is among the images
        """What the base lacks, in standard deviations."""
        stream, levels = self.embed(torch.cat([images, sar], dim=1) if self.use_sar else images), []
        for level, encode in enumerate(self.encode):
            stream = encode(self.down[level - 1](stream) if level else stream)
            levels.append(stream)
        for level in reversed(range(len(levels) - 1)):
            stream = self.decode[level](self.join[level](torch.cat([self.up[level](stream), levels[level]], dim=1)))
        return [self.last(stream)]


class _Residual(nn.Module):
    """Two 3x3 convolutions around which the features pass: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        refined: Tensor = features + self.second(F.leaky_relu(self.first(F.leaky_relu(features, SLOPE)), SLOPE))
        return refined
