"""StfNet-style, from the figure and notes, written anew; not the authors' code, and the layers are those of a public re-implementation.

Two streams predict the change of the fine image before and after the middle date from the change of the coarse one and the nearer fine
image (Liu, Deng, Chanussot, Hong and Zhao 2019, IEEE TGRS 57(9)). Theirs: the streams, training over the whole span without the middle fine
image, the constraint that both changes add up to it, and the combination by inverse change. Ours: `base: change`, scaling by the spread of
each band, measures of change that do not cancel, and `proportional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from sereno.model.config import StfnetSettings
from sereno.model.layers import BandScale, start_near_zero
from sereno.model.temporal import Changes, average_around, combine_middle, lay_on_grid, predict_middle

SMALLEST_CHANGE: Final = 1e-3
"""Deviations of a band; changes are divided by at least this where answers are to be in proportion to them."""


class Stfnet(nn.Module):
    """Fine images of the middle date: coarse (B, 3, C, h, w), fine (B, 2, C, H, W) -> (B, C, H, W); reflectance.

    `forward_changes` is for training: `compute_span_loss` of its answer plus a weight times `compute_consistency_loss` of
    `predict_middle` is the paper's loss, which never sees the middle fine image. 92,716 parameters with 6 bands, 36,866 per band with
    `bands_apart`.

    NOTE: by that loss it comes to no better middle image than `base: change` has at the start, where all series are of the same dates
    (`recipes/spatiotemporal-fusion.yaml`; RMSE of validation after 300 steps). Each side's own prediction does improve, from 0.0159 and
    0.0172 to 0.0140 and 0.0152, but the errors from which they start are opposite (correlation -0.6) and cancel when both are combined, to
    0.0064: what the span tells of its two parts is how they are alike, and a correction in proportion to the change before and after
    drops out of the combination by inverse change. Left are the errors of two networks, 0.0121. They were also never shown a change as
    small as half the span; with `proportional` it is 0.0128, 0.0135 and 0.0086. Without a base both end at 0.0122. Checkpoints are
    chosen by the middle image of validation, so that with a base the start is what is kept. Where series differ in how much changed when,
    the span does teach the middle (tests/model/networks/test_stfnet.py).
    """

    def __init__(self, settings: StfnetSettings, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: reflectance of clear training pixels, per band; they are stored with the weights."""
        super().__init__()
        self.delta, self.reach_px, self.base = settings.delta, settings.reach_px, settings.base
        self.proportional, self.apart = settings.proportional, settings.bands_apart
        self.scale = BandScale(mean, std)
        self.early, self.late = (_make_stream(len(mean), settings) for _ in range(2))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The fine image of the middle date."""
        laid = lay_on_grid(coarse, (fine.shape[-2], fine.shape[-1]))
        early, late = (self._predict(stream, step, fine[:, place]) for place, (stream, step) in enumerate(self._pair(laid)))
        return combine_middle(predict_middle(early, late, fine), laid, delta=self.delta, reach_px=self.reach_px)

    def forward_changes(self, coarse: Tensor, fine: Tensor) -> Changes:
        """Changes across both parts and, by each stream, across the whole."""
        laid = lay_on_grid(coarse, (fine.shape[-2], fine.shape[-1]))
        span = laid[:, 2] - laid[:, 0]
        (early, step_early), (late, step_late) = self._pair(laid)
        return Changes(
            self._predict(early, step_early, fine[:, 0]),
            self._predict(late, step_late, fine[:, 1]),
            self._predict(early, span, fine[:, 0]),
            self._predict(late, span, fine[:, 1]),
        )

    def _pair(self, laid: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Each stream with the coarse change it is for."""
        return list(zip((self.early, self.late), laid.diff(dim=1).unbind(1), strict=True))

    def _predict(self, stream: nn.Module, step: Tensor, fine: Tensor) -> Tensor:
        """Change of the fine image, in reflectance: coarse change and fine image (B, C, H, W) -> (B, C, H, W)."""
        change = step / self.scale.std
        size = self._measure(change) if self.proportional else torch.ones_like(change)
        seen = torch.stack([change / size, self.scale(fine)], dim=2).flatten(1, 2)  # the two images of a band side by side
        answer: Tensor = stream(seen).float() * size * self.scale.std
        return answer if self.base == "none" else step + answer

    def _measure(self, change: Tensor) -> Tensor:
        """How much changes around each pixel, in deviations, never 0: (B, C, H, W) -> the same, or (B, C, 1, 1) of the whole image."""
        sizes = change.abs() if self.apart else change.abs().mean(dim=1, keepdim=True).expand_as(change)
        around = sizes.mean(dim=(2, 3), keepdim=True) if self.reach_px is None else average_around(sizes[:, None], self.reach_px)[:, 0]
        return around + SMALLEST_CHANGE


def _make_stream(bands: int, settings: StfnetSettings) -> nn.Sequential:
    """9x9, ReLU, 5x5, ReLU, 5x5: (B, 2 C, H, W) -> (B, C, H, W), in deviations; with `bands_apart` as many networks as bands."""
    groups = bands if settings.bands_apart else 1
    wide, narrow = settings.width * groups, settings.width // 2 * groups
    last = nn.Conv2d(narrow, bands, 5, padding=2, groups=groups)
    return nn.Sequential(
        nn.Conv2d(2 * bands, wide, 9, padding=4, groups=groups),
        nn.ReLU(),
        nn.Conv2d(wide, narrow, 5, padding=2, groups=groups),
        nn.ReLU(),
        last if settings.base == "none" else start_near_zero(last),
    )
