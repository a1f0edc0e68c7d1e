"""Blocks that work on an image and on its spectrum side by side: the spatial-frequency block of SFIIN and what it is made of.

Two streams of features (B, C, H, W) of the same size enter, that of the image to be mended and that of a guide whose detail is trusted;
both leave, refined, or one, merged. From a description of the authors' public code (Zhou et al. 2022, ECCV), written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.layers import PixelLinear

SLOPE: Final = 0.1
"""Of every rectifier below zero (their code)."""
GROWTH: Final = 8
"""Channels that each part of a dense block adds (their code)."""
FIRST_SCALE: Final = 0.1
"""Factor on the first weights of a dense block, so that a coupling begins near the identity (their code)."""
STRETCH: Final = 0.8
"""Largest logarithm of what a coupling multiplies by (their code)."""
FAINT: Final = 1e-6
"""Fourier amplitude of features below which a phase is noise: its gradient, which grows as 1 / amplitude, is then zero."""
UNDER_ROOT: Final = 1e-12
"""Added under the root of a standard deviation: the derivative of a root at zero is infinite."""


class SpatialFrequencyBlock(nn.Module):
    """Mend features by those of a guide: (B, C, H, W), (B, C, H, W) -> (B, C, H, W), (B, C, H, W).

    The guide passes a 3x3 convolution; a spatial branch and one in the frequency domain see both streams, their interaction is added to the
    features. `spatial` names the first branch: `invertible` as in the authors' code, `convolution` a 3x3 one as in the notes.
    """

    def __init__(self, width: int, spatial: str = "invertible") -> None:
        super().__init__()
        self.refine_guide = nn.Conv2d(width, width, 3, padding=1)
        self.present_guide = PixelLinear(width, width)
        self.spatial = _make_spatial(width, spatial)
        self.frequency = FrequencyBranch(width)
        self.interact = DomainInteraction(width)

    def forward(self, features: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Refined features and guide."""
        guide = self.refine_guide(guide)
        shown = self.present_guide(guide)
        near = self.spatial(torch.cat([features, shown], dim=1))
        return features + self.interact(near, self.frequency(features, shown)), guide


class SpatialFrequencyFusion(nn.Module):
    """Merge streams in space and in the frequency domain: optical, SAR, filled, each (B, C, H, W) -> (B, C, H, W).

    The paper's are both branches, their interaction and the residual (Zhou et al. 2022), with optical in the place of the multispectral
    image and SAR in that of the panchromatic one; the spatial branch is the one 3x3 convolution of the notes. Ours, for clouds: the
    frequency branch sees `filled`, features of the image whose clouds are filled smoothly, instead of the optical stream, since a transform
    spreads what a cloud looks like over all frequencies; SAR passes the gate of `SpeckledFrequencyBranch`, and is refined by the blocks of
    its own stream instead of a convolution here.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.present = PixelLinear(width, width)
        self.spatial = _make_spatial(width, "convolution")
        self.frequency = SpeckledFrequencyBranch(width)
        self.interact = DomainInteraction(width)

    def forward(self, optical: Tensor, sar: Tensor, filled: Tensor) -> Tensor:
        """Merged features."""
        shown = self.present(sar)
        near = self.spatial(torch.cat([optical, shown], dim=1))
        merged: Tensor = optical + self.interact(near, self.frequency(filled, shown))
        return merged


def _make_spatial(width: int, kind: str) -> nn.Module:
    """The spatial branch: (B, 2C, H, W) -> (B, C, H, W)."""
    if kind == "convolution":
        return nn.Conv2d(2 * width, width, 3, padding=1)
    return nn.Sequential(InvertibleBlock(2 * width), PixelLinear(2 * width, width))


class FrequencyBranch(nn.Module):
    """Mix amplitudes with amplitudes and phases with phases: features (B, C, H, W), guide (B, C, H, W) -> (B, C, H, W).

    With U and V the transforms of both after a 1x1 convolution, `A = g_a([|U| ; |V|])`, `P = g_p([arg U ; arg V])` and the output is a 1x1
    convolution of `|irfft(A exp(iP))|`. Every output pixel sees the whole image. Ours: amplitudes are those of norm `ortho`, in the units
    of the features, so that weights learnt on crops suit whole images; and no constant is added against zeros (see `FAINT`).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.embed_guide = PixelLinear(width, width), PixelLinear(width, width)
        self.amplitude, self.phase = _mix_twice(width), _mix_twice(width)
        self.last = PixelLinear(width, width)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # its compiler fails on complex numbers in channels-last order
    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Features that know the whole image."""
        images = (self.embed(features), self.embed_guide(guide))
        with torch.autocast(features.device.type, enabled=False):  # half precision has no transform of every size
            spectra = [torch.fft.rfft2(image.to(torch.promote_types(image.dtype, torch.float32)), norm="ortho") for image in images]
            amplitude, phase = self.mix_spectra([spectrum.abs() for spectrum in spectra], [_take_phase(spectrum) for spectrum in spectra])
            mixed = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
            image = torch.fft.irfft2(mixed, s=features.shape[2:], norm="ortho").abs()
        known: Tensor = self.last(image.to(features.dtype))
        return known

    def mix_spectra(self, amplitudes: Sequence[Tensor], phases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Amplitude and phase of the output, of those of both streams: each (B, C, H, W // 2 + 1)."""
        return self.amplitude(torch.cat(list(amplitudes), dim=1)), self.phase(torch.cat(list(phases), dim=1))


class SpeckledFrequencyBranch(FrequencyBranch):
    """A frequency branch whose guide is speckled: features (B, C, H, W), guide (B, C, H, W) -> (B, C, H, W).

    Ours, after the notes' advice for SAR, whose amplitude is speckled: a 1x1 gate G in (0, 1) sees both amplitudes and says frequency by
    frequency how much the guide counts, `A = g_a([|U| ; G |V|])`; and its phase is never taken over, it may only turn that of the
    features, `P = arg U + G g_p([arg U ; arg V])`. Where the gate is shut, the guide has no say at all.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gate = PixelLinear(2 * width, width)

    def mix_spectra(self, amplitudes: Sequence[Tensor], phases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Amplitude and phase of the output, of those of both streams: each (B, C, H, W // 2 + 1)."""
        (ours, guide), (turned, _) = amplitudes, phases
        share = torch.sigmoid(self.gate(torch.cat([ours, guide], dim=1).log1p()))  # amplitudes span decades, the mean's above all
        amplitude, turn = super().mix_spectra((ours, share * guide), phases)
        return amplitude, turned + share * turn


def _mix_twice(width: int) -> nn.Sequential:
    """Two 1x1 convolutions: (B, 2C, H, W) -> (B, C, H, W)."""
    return nn.Sequential(PixelLinear(2 * width, width), nn.LeakyReLU(SLOPE), PixelLinear(width, width))


def _take_phase(spectrum: Tensor) -> Tensor:
    """Phase in (-pi, pi], without a gradient where there is next to no amplitude."""
    faint = spectrum.abs() < FAINT
    return torch.where(faint, spectrum.detach().angle(), torch.where(faint, torch.ones_like(spectrum), spectrum).angle())


class DomainInteraction(nn.Module):
    """Join the branches: spatial (B, C, H, W), frequency (B, C, H, W) -> (B, C, H, W).

    Where the branches differ, a mask lets the frequency branch fill up the spatial one, `r = s + M f`; then both are weighed channel by
    channel by their contrast and mean, and merged by a 3x3 convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.differ = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(width // 2, width, 3, padding=1), nn.Sigmoid()
        )
        self.weigh = nn.Sequential(
            PixelLinear(2 * width, width // 2), nn.LeakyReLU(SLOPE), PixelLinear(width // 2, 2 * width), nn.Sigmoid()
        )
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, spatial: Tensor, frequency: Tensor) -> Tensor:
        """Joined features, without the residual."""
        both = torch.cat([spatial + self.differ(spatial - frequency) * frequency, frequency], dim=1)
        seen = both.to(torch.promote_types(both.dtype, torch.float32))  # in fp16 what stands under the root would be zero
        mean = seen.mean(dim=(2, 3), keepdim=True)
        contrast = ((seen - mean).square().mean(dim=(2, 3), keepdim=True) + UNDER_ROOT).sqrt()
        merged: Tensor = self.merge(both * self.weigh(contrast + mean))
        return merged


class InvertibleBlock(nn.Module):
    """Mix channels and neighbours without losing anything: (B, C, H, W) -> (B, C, H, W), C even.

    An invertible mixing of channels, then an affine coupling of both halves (Dinh et al. 2017; Kingma and Dhariwal 2018, Glow):
    `y1 = x1 + F(x2)`, `y2 = x2 exp(s(y1)) + G(y1)` with `s = 0.8 (2 sigmoid(H) - 1)`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = InvertibleMixing(width)
        self.shift_first, self.shift_second, self.stretch = (_DenseBlock(width // 2) for _ in range(3))

    def forward(self, features: Tensor) -> Tensor:
        """Mixed features."""
        first, second = self.mix(features).chunk(2, dim=1)
        first = first + self.shift_first(second)
        second = second * self._find_factor(first) + self.shift_second(first)
        return torch.cat([first, second], dim=1)

    def invert(self, mixed: Tensor) -> Tensor:
        """The features that `forward` made `mixed` of."""
        first, second = mixed.chunk(2, dim=1)
        second = (second - self.shift_second(first)) / self._find_factor(first)
        first = first - self.shift_first(second)
        return self.mix.invert(torch.cat([first, second], dim=1))

    def _find_factor(self, first: Tensor) -> Tensor:
        return torch.exp(STRETCH * (2 * torch.sigmoid(self.stretch(first)) - 1))


class InvertibleMixing(nn.Module):
    """Mix channels by a matrix that has an inverse: (B, C, H, W) -> (B, C, H, W).

    `W = P L (U + diag(s))` (Kingma and Dhariwal 2018, section 3.2), at first a random rotation; P and the signs of s stay as they are.
    As in the authors' code L and U are stored as squares, of which one half never counts: C^2 + C of the parameters do nothing.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(width, width))[0]
        order, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("order", order)
        self.register_buffer("sign", upper.diag().sign())
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper)
        self.log_scale = nn.Parameter(upper.diag().abs().log())

    def forward(self, features: Tensor) -> Tensor:
        """Mixed features."""
        return torch.einsum("ij,bjhw->bihw", self.build_matrix(), features)

    def invert(self, mixed: Tensor) -> Tensor:
        """The features that `forward` made `mixed` of."""
        return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.build_matrix()), mixed)

    def build_matrix(self) -> Tensor:
        """W, (C, C)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.sign), device=self.sign.device, dtype=self.lower.dtype)
        return self.order @ lower @ (self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp()))


class _DenseBlock(nn.Module):
    """A 3x3 convolution that sees its input and two refinements of it: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _ResidualPair(width, GROWTH), _ResidualPair(GROWTH, GROWTH)
        self.last = nn.Conv2d(width + 2 * GROWTH, width, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=FIRST_SCALE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        first = F.leaky_relu(self.first(features), SLOPE)
        second = F.leaky_relu(self.second(first), SLOPE)
        seen: Tensor = self.last(torch.cat([features, first, second], dim=1))
        return seen


class _ResidualPair(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, wider, 1)
        self.near = nn.Sequential(
            nn.Conv2d(width, wider, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(wider, wider, 3, padding=1), nn.LeakyReLU(SLOPE)
        )

    def forward(self, features: Tensor) -> Tensor:
        refined: Tensor = self.around(features) + self.near(features)
        return refined
