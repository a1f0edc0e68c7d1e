"""S2-Transformer in cloud mode, from notes and published structure; the mask is the clear-sky confidence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sereno.model.config import S2TransformerSettings
from sereno.model.networks.clearing import ClearingNetwork


class S2Transformer(ClearingNetwork):
    """Being written."""

    def __init__(self, settings: S2TransformerSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(settings, step_px=settings.window_px * settings.stem_px, mean=mean, std=std)
        raise NotImplementedError(sar_bands)

    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:
        """What the base lacks."""
        raise NotImplementedError
