"""What training minimises: differences from the clear target, weighted by the cloud masks of input and target."""

from __future__ import annotations

from typing import Final, Protocol

import torch
from torch import Tensor

from sereno.model.config import LossSettings

NO_WEIGHT: Final = 1e-8
"""Smallest sum of weights that is divided by; below it nothing is trusted and the loss is zero."""


class Supervision(Protocol):
    """The part of a batch that the loss looks at."""

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


def compute_loss(prediction: Tensor, batch: Supervision, settings: LossSettings) -> dict[str, Tensor]:
    """The parts `pixel`, `spatial`, `spectral` and their weighted sum `total`, each a scalar.

    Every pixel weighs `w = weight (1 + lambda cloud)`; each part is divided by its sum of weights over the batch, so that lambda does
    not change the size of the steps. Two neighbours weigh as much as the lesser of them, so nothing under a cloud of the target
    moves anything. With no weight at all, loss and gradient are zero. The parts are those of SSR-NET (Zhang et al. 2021): mean absolute
    differences of values, of neighbouring pixels, and of neighbouring bands (zero for a single band).
    """
    weight = batch.weight * (1 + settings.cloud_emphasis * batch.cloud)
    error = torch.where(batch.weight > 0, prediction - batch.target, 0.0)
    pixel = _average(error, weight)
    spatial = (_average(error.diff(dim=3), _lesser(weight, 3)) + _average(error.diff(dim=2), _lesser(weight, 2))) / 2
    spectral = _average(error.diff(dim=1), weight) if error.shape[1] > 1 else error.new_zeros(())
    total = settings.pixel * pixel + settings.spatial * spatial + settings.spectral * spectral
    return {"pixel": pixel, "spatial": spatial, "spectral": spectral, "total": total}


def _average(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of absolute values: (B, C, H, W), (B, 1, H, W) -> scalar."""
    return (error.abs().mean(dim=1, keepdim=True) * weight).sum() / weight.sum().clamp_min(NO_WEIGHT)


def _lesser(weight: Tensor, dim: int) -> Tensor:
    """Weight of each pair of neighbours along `dim`: one less than `weight` has there."""
    count = weight.shape[dim] - 1
    return torch.minimum(weight.narrow(dim, 0, count), weight.narrow(dim, 1, count))
