"""What every network for cloud removal does around its figure: a base to add to, values of one size, edges, tokens.

Ours: the notes let the network add to the cloudy input (`base: cloudy`). With `base: filled` it sees and adds to the input whose clouds
are filled smoothly, with `base: dates` to one whose clouds are filled from the clear images around its date; bands are centred and scaled
by their training mean and standard deviation, and compressed by asinh, since a cloud is many deviations bright; with `stem_px` above 1
several pixels make one token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.config import ClearingSettings
from sereno.model.layers import SMALLEST_STD, pad_to_multiple, smooth_fill, start_near_zero
from sereno.model.temporal import Dates, fill_from_dates

SAR_CENTRE: Final = 0.5
"""Middle of scaled backscatter."""
SAR_SPREAD: Final = 0.2
"""About the standard deviation of scaled backscatter over land."""


class ClearingNetwork(nn.Module, ABC):
    """Clear an image: optical (B, C, H, W), SAR (B, S, H, W), cloud (B, 1, H, W) -> (B, C, H, W), all reflectance and SAR as in `Batch`.

    Any number of bands and any size is taken: edges are reflected up to a multiple of `step_px` and cut off again. A network fills in
    `restore`. With `base: dates` it is called with three more, the fields of `Dates`; without they are not looked at.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ClearingSettings, *, step_px: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """`step_px`: what height and width must be a multiple of. `mean`, `std`: of clear training pixels, stored with the weights."""
        super().__init__()
        self.base, self.stem_px, self.step_px = settings.base, settings.stem_px, step_px
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).clamp_min(SMALLEST_STD))

    @abstractmethod
    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:
        """What the base lacks, in standard deviations: each (B, C * stem_px^2, H / stem_px, W / stem_px), the final one first.

        `images` (B, `count_images(...)`, H, W) are the normalised input, the normalised base where that differs, with `base: dates` the
        trust in either date, and last the cloud probability; `sar` (B, S, H, W) is centred and scaled; `cloud` (B, 1, H, W) is as in
        `Batch`. All are padded.
        """

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor, *dates: Tensor) -> Tensor:
        """The cleared image."""
        return self.forward_stages(optical, sar, cloud, *dates)[0]

    def forward_stages(self, optical: Tensor, sar: Tensor, cloud: Tensor, *dates: Tensor) -> list[Tensor]:
        """The cleared image, then the intermediate ones of a network that has them."""
        with torch.autocast(optical.device.type, enabled=False):  # the base is shown: bf16 would round it to one part in 256
            base, *known = self._find_base(optical, cloud, dates)
        seen = [self._normalise(optical)] if base is optical else [self._normalise(optical), self._normalise(base)]
        images = self._pad(torch.cat([*seen, *known, cloud], dim=1))
        changes = self.restore(images, self._pad((sar - SAR_CENTRE) / SAR_SPREAD), self._pad(cloud))
        return [base + self.std[:, None, None] * self._cut(change.float(), optical) for change in changes]

    def _find_base(self, optical: Tensor, cloud: Tensor, dates: Sequence[Tensor]) -> list[Tensor]:
        """What is added to, (B, C, H, W), then with `base: dates` the trust in either date, (B, 2, H, W)."""
        if self.base == "dates":
            around = Dates(*dates)
            return [fill_from_dates(optical, cloud, around, self.mean), around.clear[:, :, 0]]
        return [smooth_fill(optical, 1 - cloud, self.mean) if self.base == "filled" else optical]

    def _normalise(self, image: Tensor) -> Tensor:
        return torch.asinh((image - self.mean[:, None, None]) / self.std[:, None, None])

    def _pad(self, image: Tensor) -> Tensor:
        """`image` at a size that the network divides."""
        return pad_to_multiple(image, self.step_px)

    def _cut(self, change: Tensor, like: Tensor) -> Tensor:
        """Pixels from tokens, without the padding."""
        return F.pixel_shuffle(change, self.stem_px)[:, :, : like.shape[2], : like.shape[3]]


def count_images(bands: int, settings: ClearingSettings) -> int:
    """Channels of the images that `restore` is given."""
    return {"cloudy": bands, "filled": 2 * bands, "dates": 2 * bands + 2}[settings.base] + 1


def make_last(width: int, bands: int, stem_px: int) -> nn.Conv2d:
    """The last convolution, 3x3 to `stem_px`^2 pixels per token, with weights so small that training starts at the base."""
    return start_near_zero(nn.Conv2d(width, bands * stem_px**2, 3, padding=1))
