"""How much each pixel counts in the loss: nothing under clouds of the target, more under clouds of the input.

A batch enters, one weight per pixel leaves. Weights are left unscaled here: a trusted pixel of clear sky weighs 1. The loss divides by
their sum over the whole batch (`measure_amounts`), which makes their mean over the trusted pixels 1. Were they scaled here, every part
of a batch that is cut up to save memory, or shared among processes, would be scaled by another number.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import LossSettings

ENCODER_WIDTH: Final = 16
"""Channels of the mask encoder: 4.4 thousand parameters for 13 bands."""
DARK_REFLECTANCE: Final = 0.1
"""Reflectance above which the mask encoder sees ratios rather than differences: ours, the level of most land in the visible."""


class Supervision(Protocol):
    """The part of a batch that weights and loss look at."""

    @property
    def optical(self) -> Tensor:
        """(B, C, H, W) cloudy reflectance."""
        ...

    @property
    def target(self) -> Tensor:
        """(B, C, H, W) clear reflectance."""
        ...

    @property
    def weight(self) -> Tensor:
        """(B, 1, H, W) trust in the target, 0..1."""
        ...

    @property
    def cloud(self) -> Tensor:
        """(B, 1, H, W) cloud probability of the input, 0..1."""
        ...

    @property
    def valid_input(self) -> Tensor:
        """(B, 1, H, W) 1 where the input was observed, else 0."""
        ...


def weigh_pixels(batch: Supervision, settings: LossSettings, clearness: Tensor | None = None) -> Tensor:
    """Weight of each pixel, (B, 1, H, W): 0 where the target is not trusted, else trust times 1 (clear sky) or more.

    Without `clearness` (static weighting) `w = trust (1 + lambda p)`, p the cloud probability of the input. With the output of a
    `MaskEncoder`, (B, 1, H, W) in 0..1, `w = trust / g`, cut to between 1 and `max_weight` times the trust: the mask-aware weight of the
    S2-Transformer (Wang et al. 2025) as reading notes tell it. No gradient flows into `clearness`; what was not observed is not clear.
    """
    if clearness is None:
        return batch.weight * (1 + settings.cloud_emphasis * batch.cloud)
    clear = clearness.detach().float() * batch.valid_input
    return batch.weight / clear.clamp_min(1 / settings.max_weight)


class MaskEncoder(nn.Module):
    """How clear each pixel looks: optical (B, C, H, W) -> (B, 1, H, W) in 0..1. Three 3x3 convolutions and a sigmoid.

    The notes on the S2-Transformer regress the masked signal, here (1 - p) X, and weigh by its inverse: clear dark water would then weigh
    as much as a cloud. Ours regresses 1 - p itself. Weights are drawn from torch's global generator, which the caller seeds.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(bands, ENCODER_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(ENCODER_WIDTH, ENCODER_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(ENCODER_WIDTH, 1, 3, padding=1),
        )

    def forward(self, optical: Tensor) -> Tensor:
        """Clearness, float32."""
        return torch.sigmoid(self.compute_logits(optical))

    def compute_logits(self, optical: Tensor) -> Tensor:
        """Clearness before the sigmoid, float32."""
        logits: Tensor = self.layers(torch.asinh(optical / DARK_REFLECTANCE))
        return logits.float()


def compute_encoding_loss(encoder: MaskEncoder, batch: Supervision) -> Tensor:
    """Cross-entropy between the encoder's clearness and 1 - p, a scalar: mean over the observed input pixels, 0 if there are none.

    The notes take the absolute difference, which settles on the likelier of clear and cloudy; cross-entropy settles on the probability.
    """
    entropy = F.binary_cross_entropy_with_logits(encoder.compute_logits(batch.optical), 1 - batch.cloud, reduction="none")
    return (entropy * batch.valid_input).sum() / batch.valid_input.sum().clamp_min(1)
