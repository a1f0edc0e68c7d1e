"""SFIIN for pan-sharpening: from a description of the authors' public code, written anew; not the authors' code.

The multispectral image, enlarged, is mended by five blocks that look at it and at the panchromatic image in space and in the frequency
domain (Zhou, Huang, Yan, Yu, Fu, Liu, Wei and Zhao 2022, ECCV, "Spatial-Frequency Domain Information Integration for Pan-Sharpening").
Theirs is all of the figure; width 8 is that of a published benchmark. Ours are the scaling of the bands, the small first weights of the
last convolution, any whole ratio, any number of guiding bands, and what `sereno.model.frequency` says of Fourier amplitudes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import SfiinSettings
from sereno.model.frequency import SLOPE, SpatialFrequencyBlock
from sereno.model.layers import BandScale, PixelLinear, start_near_zero
from sereno.model.sharpening import enlarge, find_ratio

REDUCTION = 4
"""Width over that of the hidden layer of the level correction (their code)."""


class Sfiin(nn.Module):
    """Sharpen a multispectral image: ms (B, C, h, w), pan (B, G, r h, r w) -> (B, C, r h, r w), all reflectance.

    Any whole ratio r and any size; G is 1 for a panchromatic band, more for several guiding ones. At ratio 1 it is the form that the notes
    propose for pairs of one size, as optical and SAR. With 4 bands and one guide, width 8 has 85,270 parameters, with 8 bands 85,850, the
    counts of the published benchmark; 1,360 of them never count (see `InvertibleMixing`). `spatial: convolution` is the plain form.
    """

    def __init__(
        self, settings: SfiinSettings, *, mean: Sequence[float], std: Sequence[float], pan_mean: Sequence[float], pan_std: Sequence[float]
    ) -> None:
        """`mean`, `std`: reflectance of training pixels per band, `pan_mean`, `pan_std` likewise; they are stored with the weights."""
        super().__init__()
        width, bands = settings.width, len(mean)
        self.scale, self.scale_pan = BandScale(mean, std), BandScale(pan_mean, pan_std)
        self.embed = nn.Conv2d(bands, width, 3, padding=1)
        self.embed_pan = nn.Conv2d(len(pan_mean), width, 3, padding=1)
        self.blocks = nn.ModuleList(SpatialFrequencyBlock(width, settings.spatial) for _ in range(settings.blocks))
        self.join = PixelLinear(settings.blocks * width, width)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.level = _LevelCorrection(width)
        self.last = start_near_zero(nn.Conv2d(width, bands, 3, padding=1))

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        """The sharpened image.

        Raises:
            DataError: the sizes are not in a whole ratio.
        """
        base = self.scale(enlarge(ms, find_ratio(ms, pan)))
        stream, guide, streams = self.embed(base), self.embed_pan(self.scale_pan(pan)), []
        for block in self.blocks:
            stream, guide = block(stream, guide)
            streams.append(stream)
        change = self.last(self.level(self.refine(self.join(torch.cat(streams, dim=1)))))
        return self.scale.restore(base + change.float())


class _LevelCorrection(nn.Module):
    """Add one number per channel, made of the channel's means: (B, C, H, W) -> (B, C, H, W).

    The authors call it channel attention, but it scales the means of refined features by their gate, not the features themselves.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.gate = nn.Sequential(PixelLinear(width, width // REDUCTION), nn.LeakyReLU(SLOPE), PixelLinear(width // REDUCTION, width))

    def forward(self, features: Tensor) -> Tensor:
        means = self.second(F.leaky_relu(self.first(features), SLOPE)).mean(dim=(2, 3), keepdim=True)
        corrected: Tensor = features + torch.sigmoid(self.gate(means)) * means
        return corrected
