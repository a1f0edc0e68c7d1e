"""S2-Transformer, on its own task and in cloud mode: from notes and the published structure, written anew; not the authors' code.

A residual transformer in which every block attends in windows and among channels side by side, its window attention modulated by a
mask (Wang, Li, Zhang, Yuan and Tao 2025, IEEE TPAMI, arXiv 2209.12075). Theirs reconstructs snapshot spectral images and the mask is the
coded aperture: `S2Snapshot`. In cloud mode, `S2Transformer`, the mask is the clear-sky confidence, 1 minus the cloud probability, and SAR
is stacked upon the optical bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.attention import ParallelAttention, SequentialAttention, SpectralAttention, TransformerBlock, WindowAttention
from sereno.model.config import S2SnapshotSettings, S2TransformerSettings, SpatialSpectralSettings
from sereno.model.layers import NEAR_ZERO, BandScale, ChannelNorm, PixelLinear, embed_pixels, pad_to_multiple
from sereno.model.networks.clearing import ClearingNetwork, count_images, make_last
from sereno.model.snapshot import approach_picture, derive_camera


class _Trunk(nn.Module):
    """What both forms of the network share: the skeleton from the first convolution to the last."""

    def build(self, settings: SpatialSpectralSettings, *, images: int, bands: int, stem_px: int) -> None:
        """Make the layers for so many channels in and `bands` out."""
        width = settings.width
        self.embed = embed_pixels(images, width, stem_px)
        self.stages = nn.ModuleList(_Stage(settings, number) for number in range(settings.stages))
        self.norm = ChannelNorm(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.last = make_last(width, bands, stem_px)
        self.pin = _make_pin(width, bands * stem_px**2) if settings.pins else None

    def run(self, images: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features for the last convolution, and the pin of every stage if there are pins; `mask` (B, 1, H, W) is 1 where it is open."""
        shallow, pinned = self.embed(images), []
        stream = shallow
        for stage in self.stages:
            stream = stage(stream, mask)
            if self.pin is not None:
                pinned.append(self.pin(stream))
        return shallow + self.deep(self.norm(stream)), pinned


class S2Transformer(ClearingNetwork, _Trunk):
    """Clear an image with spatial-spectral attention that knows where the sky is clear, as `ClearingNetwork` says.

    Theirs: the skeleton (3x3, stages of blocks with a 3x3 and a residual around, norm, 3x3 onto the shallow features, 3x3, onto the
    input), the block and its sizes, windows shifted in every second block, and with `pins` one 1x1 convolution without bias, shared by
    all stages, that makes an intermediate image of each stage's features. How those were trained is not published; here `loss.stages`
    weighs them. Ours, beside what `ClearingNetwork` adds: a sigmoid in the mask's embedding (see `MaskEmbedding`), orders other than
    parallel-concat as their names say (each attention with its residual), and stochastic depth of 0 unless asked for.

    With 28 bands in and out it has the 2.61 M parameters counted in their code (modules that are used, one mask channel). With 13 bands,
    2 of SAR and base `filled` it has 2,603,797: the same 2,581,044 between the first and the last convolution, a first one that takes 29
    channels (the image, the filled image, the cloud probability, SAR) and a last one that gives 13; pins add 780.
    """

    def __init__(self, settings: S2TransformerSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: reflectance of clear training pixels, per band; they are stored with the weights."""
        super().__init__(settings, step_px=settings.window_px * settings.stem_px, mean=mean, std=std)
        self.use_sar = settings.use_sar
        images = count_images(len(mean), settings) + (sar_bands if settings.use_sar else 0)
        self.build(settings, images=images, bands=len(mean), stem_px=settings.stem_px)

    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:
        """What the base lacks, in standard deviations; with pins then the same after every stage."""
        seen = torch.cat([images, sar], dim=1) if self.use_sar else images
        features, pinned = self.run(seen, 1 - F.avg_pool2d(cloud, self.stem_px))
        return [self.last(features), *pinned]


class Encoded(NamedTuple):
    """What the S2-Transformer makes of a measurement while it learns about masks."""

    image: Tensor
    """(B, C, H, W) the cube."""
    signal: Tensor
    """(B, C, H, W) the encoded signal M F, as its head sees it."""


class S2Snapshot(_Trunk):
    """Reconstruct cubes: an estimate (B, C, H, W) and the coded aperture (B, 1, H, W) in 0..1 -> (B, C, H, W), any size.

    The picture (B, H, W') that was measured may come third: with `consistency` the answer is moved towards the cubes that have it (ours).

    The estimate is a row of `ESTIMATES` in `sereno.model.snapshot`, which the answer is added to. Skeleton, block, sizes and pins as in
    `S2Transformer`; with 28 bands and pins, without the head for the encoded signal, it has 2,613,052 parameters, the 2.61 M counted in
    their code. Theirs for the mask-aware learning is the idea of an auxiliary head; that it is one 1x1 convolution of the last features is
    our guess. Ours: bands are scaled by their mean and spread, a base better than theirs, and a sigmoid in the mask's embedding.
    """

    def __init__(self, settings: S2SnapshotSettings, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: of the training cubes, per band; they are stored with the weights."""
        super().__init__()
        self.window_px, self.consistency = settings.window_px, settings.consistency
        self.scale = BandScale(mean, std)
        self.build(settings, images=len(mean), bands=len(mean), stem_px=1)
        self.encode = PixelLinear(settings.width, len(mean)) if settings.encoding else None

    def forward(self, estimate: Tensor, mask: Tensor, picture: Tensor | None = None) -> Tensor:
        """The cube."""
        return self.forward_stages(estimate, mask, picture)[0]

    def forward_stages(self, estimate: Tensor, mask: Tensor, picture: Tensor | None = None) -> list[Tensor]:
        """The cube, then with pins an intermediate one after every stage."""
        features, pinned = self._look(estimate, mask)
        image, *others = (self._add(estimate, change) for change in (self.last(features), *pinned))
        return [self._approach(image, mask, picture), *others]

    def forward_encoded(self, estimate: Tensor, mask: Tensor, picture: Tensor | None = None) -> Encoded:
        """The cube and the encoded signal, for mask-encoding pretraining and mask-aware training; only with `encoding`."""
        assert self.encode is not None
        features, _ = self._look(estimate, mask)
        signal = self.encode(features).float()[:, :, : estimate.shape[2], : estimate.shape[3]]
        return Encoded(self._approach(self._add(estimate, self.last(features)), mask, picture), signal * self.scale.std)

    def _look(self, estimate: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.run(pad_to_multiple(self.scale(estimate), self.window_px), pad_to_multiple(mask, self.window_px))

    def _approach(self, image: Tensor, mask: Tensor, picture: Tensor | None) -> Tensor:
        if not self.consistency or picture is None:
            return image
        return approach_picture(derive_camera(mask, image.shape[1], picture.shape[-1]), image, picture, share=self.consistency)

    def _add(self, estimate: Tensor, change: Tensor) -> Tensor:
        return estimate + self.scale.std * change.float()[:, :, : estimate.shape[2], : estimate.shape[3]]


class _Stage(nn.Module):
    """Blocks and a 3x3 convolution with a residual around: (B, C, H, W), clear sky (B, 1, H, W) -> (B, C, H, W)."""

    def __init__(self, settings: SpatialSpectralSettings, number: int) -> None:
        super().__init__()
        places = range(number * settings.blocks, (number + 1) * settings.blocks)
        self.blocks = nn.ModuleList(_make_block(settings, place) for place in places)
        self.merge = nn.Conv2d(settings.width, settings.width, 3, padding=1)

    def forward(self, features: Tensor, clear: Tensor) -> Tensor:
        refined = features
        for block in self.blocks:
            refined = block(refined, clear)
        merged: Tensor = features + self.merge(refined)
        return merged


def _make_block(settings: SpatialSpectralSettings, place: int) -> TransformerBlock:
    """Block number `place` of the network."""
    width, hidden = settings.width, settings.width * settings.expansion
    mix = nn.Sequential(PixelLinear(width, hidden), nn.GELU(), PixelLinear(hidden, width))
    last = settings.stages * settings.blocks - 1
    return TransformerBlock(width, _make_attention(settings, shifted=bool(place % 2)), mix, drop=settings.drop_path * place / max(1, last))


def _make_attention(settings: SpatialSpectralSettings, *, shifted: bool) -> nn.Module:
    """The attention that `order` names."""
    width, head_dim, window_px = settings.width, settings.head_dim, settings.window_px
    spatial = WindowAttention(width, head_dim, window_px, shifted=shifted, mask_to=settings.mask_to)
    spectral = SpectralAttention(width, head_dim, window_px=window_px if settings.spectral_windows else None)
    match settings.order:
        case "spatial":
            return spatial
        case "spectral":
            return spectral
        case "spatial-spectral":
            return SequentialAttention(width, spatial, spectral)
        case "spectral-spatial":
            return SequentialAttention(width, spectral, spatial)
    return ParallelAttention(width, spatial, spectral, concat=settings.order == "parallel-concat")


def _make_pin(width: int, channels: int) -> PixelLinear:
    """From features to an image, with weights so small that its training, too, starts at the base."""
    pin = PixelLinear(width, channels, bias=False)
    with torch.no_grad():
        pin.weight.mul_(NEAR_ZERO)
    return pin
