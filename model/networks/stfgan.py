"""STFGAN-style, from notes and the layers of a public re-implementation, written anew; not the authors' code.

Two stages of generators and critics that make a fine image of a date from coarse images of three and fine ones of the two around it
(IEEE TGRS 2021, 9159647). Known from notes: SRGAN's residual blocks, 16 on the coarse images and 8 on the fine, concatenation, all bands
at once, a factor of 4 per stage, fine images made coarser for the first. From the re-implementation: kernels, widths, the critic. Ours:
what the generator adds to, what is normalised, and that the second stage is trained on what the first gives, as it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import STAGE_RATIO, StfganSettings
from sereno.model.layers import BandScale, ChannelNorm, start_near_zero
from sereno.model.temporal import predict_by_change

SLOPE: Final = 0.2
"""Of the critic's rectifiers below zero."""
CRITIC_LAYERS: Final = ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))
"""Width as a multiple of the first layer's, and stride, of the critic's layers after it."""
CRITIC_HEAD: Final = 16
"""Width of the layer before the score, as a multiple of the first layer's."""


class Stfgan(nn.Module):
    """Fine images of the middle date: coarse (B, 3, C, h, w), fine (B, 2, C, r h, r w) -> (B, C, r h, r w), r = 4 or 16; reflectance.

    The first of two stages works on fine images averaged to a quarter of their rows and columns; the second takes those averages as its
    coarse images of the outer dates and the first stage's answer as that of the middle. In the public re-implementation the second is
    trained on the true middle image made coarser, which nobody has when it is used.
    """

    def __init__(self, settings: StfganSettings, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: reflectance of clear training pixels, per band; they are stored with the weights."""
        super().__init__()
        self.joint = settings.joint
        self.ratio = settings.ratio
        self.scale = _make_scale(settings, mean, std)
        smaller = [STAGE_RATIO**left for left in reversed(range(settings.stages))]
        reaches = [settings.reach_px and max(1, settings.reach_px // ratio) for ratio in smaller]
        self.generators = nn.ModuleList(Generator(len(mean), settings, reach_px=reach) for reach in reaches)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The fine image of the middle date."""
        return self.forward_stages(coarse, fine)[0]

    def forward_stages(self, coarse: Tensor, fine: Tensor) -> list[Tensor]:
        """The fine image of the middle date, then with two stages the first one's answer (B, C, 4 h, 4 w)."""
        if len(self.generators) == 1:
            return [self._generate(0, coarse, fine)]
        between = coarsen(fine)
        first = self._generate(0, coarse, between)
        middle = first if self.joint else first.detach()
        return [self._generate(1, torch.stack([between[:, 0], middle, between[:, 1]], dim=1), fine), first]

    def _generate(self, stage: int, coarse: Tensor, fine: Tensor) -> Tensor:
        image: Tensor = self.scale.restore(self.generators[stage](self.scale(coarse), self.scale(fine)))
        return image


class Generator(nn.Module):
    """One stage: coarse (B, 3, C, h, w), fine (B, 2, C, 4 h, 4 w) -> (B, C, 4 h, 4 w), in and out in deviations.

    2,366,086 parameters with 6 bands, as counted in the re-implementation. Ours with `base: change`: the answer is added to the fine
    dates moved by the change of the coarse ones, and no hyperbolic tangent bounds it; with `norm: channel` each pixel is normalised over
    its channels, which takes as many parameters as a batch norm, so that an image depends on no other of its batch.
    """

    def __init__(self, bands: int, settings: StfganSettings, *, reach_px: int | None = None) -> None:
        """`reach_px`: as in the settings, but in pixels of its own answer."""
        super().__init__()
        width, norm = settings.width, settings.norm
        self.base, self.reach_px = settings.base, reach_px
        self.coarse = _Features(3 * bands, width, settings.coarse_blocks, norm)
        self.enlarge = nn.Sequential(*(layer for _ in range(2) for layer in _double(width)))
        self.fine = _Features(2 * bands, width, settings.fine_blocks, norm)
        last = nn.Conv2d(2 * width, bands, 9, padding=4)
        self.merge = last if settings.base == "none" else start_near_zero(last)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The fine image of the middle date."""
        enlarged = self.enlarge(self.coarse(coarse.flatten(1, 2)))
        merged: Tensor = self.merge(torch.cat([enlarged, self.fine(fine.flatten(1, 2))], dim=1))
        if self.base == "none":
            return torch.tanh(merged.float())
        with torch.autocast(fine.device.type, enabled=False):  # the base is shown: bf16 would round it to one part in 256
            return predict_by_change(coarse, fine, delta=torch.inf, reach_px=self.reach_px) + merged.float()


class Discriminator(nn.Module):
    """How true images look: (B, C, H, W) in reflectance -> (B,) scores, float32, unbounded; any size.

    5,217,153 parameters with 6 bands, as counted in the re-implementation; it sees no condition. A gradient penalty needs `norm: channel`
    (see `sereno.model.adversarial`).
    """

    def __init__(self, settings: StfganSettings, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` as in `Stfgan`."""
        super().__init__()
        width = settings.width
        self.scale = _make_scale(settings, mean, std)
        layers: list[nn.Module] = [nn.Conv2d(len(mean), width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        before = width
        for multiple, stride in CRITIC_LAYERS:
            layers += [
                nn.Conv2d(before, multiple * width, 3, stride, padding=1),
                _make_norm(multiple * width, settings.norm),
                nn.LeakyReLU(SLOPE),
            ]
            before = multiple * width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(before, CRITIC_HEAD * width), nn.LeakyReLU(SLOPE), nn.Linear(CRITIC_HEAD * width, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores."""
        scores: Tensor = self.head(self.layers(self.scale(image)).mean(dim=(2, 3)))
        return scores.squeeze(1).float()


class _Features(nn.Module):
    """9x9, residual blocks, 3x3 and a way around: (B, C, H, W) -> (B, width, H, W)."""

    def __init__(self, images: int, width: int, blocks: int, norm: str) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(images, width, 9, padding=4), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(*_convolve(width, norm), nn.ReLU(), *_convolve(width, norm)) for _ in range(blocks))
        self.merge = nn.Sequential(*_convolve(width, norm))

    def forward(self, images: Tensor) -> Tensor:
        shallow: Tensor = self.embed(images)
        features = shallow
        for block in self.blocks:
            features = features + block(features)
        merged: Tensor = shallow + self.merge(features)
        return merged


def coarsen(fine: Tensor) -> Tensor:
    """Means of squares of fine pixels: (B, T, C, 4 h, 4 w) -> (B, T, C, h, w)."""
    pooled = F.avg_pool2d(fine.flatten(0, 1), STAGE_RATIO)
    return pooled.reshape(*fine.shape[:3], *pooled.shape[2:])


def _make_scale(settings: StfganSettings, mean: Sequence[float], std: Sequence[float]) -> BandScale:
    """Deviations, or with `base: none` the range -1..1 of a hyperbolic tangent for reflectance 0..1, as in the re-implementation."""
    half = [0.5] * len(mean)
    return BandScale(half, half) if settings.base == "none" else BandScale(mean, std)


def _convolve(width: int, norm: str) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(width, width, 3, padding=1), _make_norm(width, norm)


def _make_norm(width: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else ChannelNorm(width)


def _double(width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """To twice the rows and columns by sub-pixel convolution (Shi et al. 2016)."""
    return nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()
