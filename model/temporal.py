"""Three dates of one place: what changes between them say of the middle one, what lies between the outer ones, and what must agree.

Reflectance enters and leaves. Coarse images (B, 3, C, h, w) are of all three dates, fine ones (B, 2, C, H, W) of the first and the last; a
coarse pixel is the mean of the fine pixels under it. Losses are differentiable.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.layers import smooth_fill

NO_CHANGE: Final = 1e-6
"""Reflectance; added to changes that weights are in inverse proportion to, so that two that are much smaller count alike."""
NO_AMOUNT: Final = 1e-8
"""Smallest amount that a loss or a weighted sum is divided by."""
NO_GAP_DAYS: Final = 1e-3
"""Days; a date that is nearer than this to the middle one, a minute and a half, counts as so far away."""


class Dates(NamedTuple):
    """Clear images before and after the date of a cloudy one."""

    images: Tensor
    """(B, 2, C, H, W) reflectance; what is not clear may hold anything finite."""
    clear: Tensor
    """(B, 2, 1, H, W) trust, 0..1: 0 where a pixel is not observed, or cloudy."""
    days: Tensor
    """(B, 2) days from the cloudy image, the first below and the second above 0."""

    def keep(self, place: int) -> Dates:
        """The same with nothing clear but the date before (0) or the one after (1)."""
        shown = torch.arange(2, device=self.clear.device)[:, None, None, None] == place
        return self._replace(clear=self.clear * shown)


class Between(NamedTuple):
    """An image of the date between two others."""

    image: Tensor
    """(B, C, H, W) reflectance, 0 where neither is clear."""
    known: Tensor
    """(B, 1, H, W) trust, 0..1: that of the clearer of the two."""


class Changes(NamedTuple):
    """Changes of the fine image as a network predicts them, each (B, C, H, W) in reflectance."""

    early: Tensor
    """From the first date to the middle one, F12."""
    late: Tensor
    """From the middle date to the last one, F23."""
    span_early: Tensor
    """From the first date to the last one, F13, made of the coarse change by what made `early`."""
    span_late: Tensor
    """The same, by what made `late`."""


class Middle(NamedTuple):
    """Two predictions of the fine image of the middle date, each (B, C, H, W) in reflectance."""

    early: Tensor
    """From the first date on."""
    late: Tensor
    """From the last date back."""


def lay_on_grid(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    """Coarse images on the fine grid, bilinear between the centres of their pixels: (B, T, C, h, w) -> (B, T, C, *size)."""
    if coarse.shape[-2:] == size:
        return coarse
    laid = F.interpolate(coarse.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    return laid.reshape(*coarse.shape[:3], *size)


def predict_middle(early: Tensor, late: Tensor, fine: Tensor) -> Middle:
    """The middle date from both sides, F1 + F12 and F3 - F23: changes (B, C, H, W) twice, fine (B, 2, C, H, W).

    The figure of StfNet (Liu et al. 2019) draws a plus on F3; with F23 = F3 - F2 it must be a minus.
    """
    return Middle(fine[:, 0] + early, fine[:, 1] - late)


def combine_middle(middle: Middle, coarse: Tensor, *, delta: float = 0.2, reach_px: int | None = None) -> Tensor:
    """The middle date from both its predictions: (B, C, H, W) twice, coarse on the same grid (B, 3, C, H, W) -> (B, C, H, W).

    The prediction across the smaller change weighs more: with v the coarse changes before and after, `alpha = (1 / v12) / (1 / v12 +
    1 / v23)`, and it is taken alone where the changes differ by more than `delta`, reflectance (the rule of StfNet, Liu et al. 2019, as
    told by StfMLP). Ours: v is the mean absolute change per band, which opposite changes do not cancel, over the image or over the square
    of `reach_px` pixels to each side.
    """
    steps = coarse.diff(dim=1).abs()
    sizes = steps.mean(dim=(-2, -1), keepdim=True) if reach_px is None else average_around(steps, reach_px)
    before, after = (sizes + NO_CHANGE).unbind(1)
    share = after / (before + after)
    share = torch.where(after - before > delta, 1.0, torch.where(before - after > delta, 0.0, share))
    return share * middle.early + (1 - share) * middle.late


def average_around(images: Tensor, reach_px: int) -> Tensor:
    """Means over squares, cut off at the borders: (B, T, C, H, W) -> the same; first along columns, then along rows."""
    side = 2 * reach_px + 1
    columns = F.avg_pool2d(images.flatten(0, 1), (side, 1), stride=1, padding=(reach_px, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, side), stride=1, padding=(0, reach_px), count_include_pad=False).reshape(images.shape)


def predict_by_change(coarse: Tensor, fine: Tensor, *, delta: float = 0.2, reach_px: int | None = None) -> Tensor:
    """The fine dates moved by the change of the coarse ones: (B, 3, C, h, w), (B, 2, C, H, W) -> (B, C, H, W).

    Exact where the fine image changes as much as its surroundings; what networks add to with `base: change`.
    """
    laid = lay_on_grid(coarse, (fine.shape[-2], fine.shape[-1]))
    early, late = laid.diff(dim=1).unbind(1)
    return combine_middle(predict_middle(early, late, fine), laid, delta=delta, reach_px=reach_px)


def interpolate_dates(dates: Dates) -> Between:
    """What lies between the dates: on the straight line in time where both are clear, that of the clear one where only one is.

    Where both are clear in part they weigh by their trust as well.
    """
    apart = dates.days.abs().clamp_min(NO_GAP_DAYS)
    share = apart.flip(1) / apart.sum(dim=1, keepdim=True)
    weight = share[:, :, None, None, None] * dates.clear
    image = (torch.where(weight > 0, dates.images, 0.0) * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(NO_AMOUNT)
    return Between(image, dates.clear.amax(dim=1))


@torch.no_grad()
def fill_from_dates(optical: Tensor, cloud: Tensor, dates: Dates, prior: Tensor) -> Tensor:
    """`optical` with its clouds filled from the dates around it: (B, C, H, W), cloud (B, 1, H, W), prior (C,) -> (B, C, H, W).

    A pixel that is cloud with probability p keeps 1 - p of itself; the rest is `interpolate_dates` as far as that is trusted, and beyond
    that the smooth fill (`smooth_fill`, whose `prior` this is) of all that is known then.
    """
    between = interpolate_dates(dates)
    own, lent = 1 - cloud, cloud * between.known
    known = own + lent
    return smooth_fill((own * optical + lent * between.image) / known.clamp_min(NO_AMOUNT), known, prior)


def measure_trust(trust: Tensor) -> Tensor:
    """What the losses below are divided by, a scalar to be summed over all pieces of a batch; `trust` (B, 1, H, W) is 0..1."""
    return trust.sum()


def compute_span_loss(changes: Changes, fine: Tensor, trust: Tensor, *, amount: Tensor | None = None) -> Tensor:
    """Squared errors of the two predictions of F13, a scalar: L_R of StfNet (Liu et al. 2019), which never sees the middle fine image.

    `trust` (B, 1, H, W) is 0..1, 0 where either of `fine` (B, 2, C, H, W) is not to be trusted, whatever is stored there; `amount` is
    `measure_trust` of the whole batch if this is a piece of it. Mean over bands and trusted pixels, sum over the two predictions.
    """
    true = fine[:, 1] - fine[:, 0]
    early, late = (_average_squares(span - true, trust, amount) for span in (changes.span_early, changes.span_late))
    return early + late


def compute_consistency_loss(middle: Middle, trust: Tensor, *, amount: Tensor | None = None) -> Tensor:
    """Squared difference of two predictions of one date, a scalar; `trust`, `amount` and mean as in `compute_span_loss`.

    With `predict_middle` it is `|F12 + F23 - F13|^2`, L_T of StfNet (Liu et al. 2019). Of a cloudy date between two clear ones any two
    predictions will do, one from each side. A single prediction agrees with itself: F12 and F23 must not be taken from one image.
    """
    return _average_squares(middle.early - middle.late, trust, amount)


def compute_side_loss(middle: Middle, trust: Tensor, *, amount: Tensor | None = None) -> Tensor:
    """Absolute difference of two predictions of one date, a scalar; `trust`, `amount` and mean as in `compute_span_loss`.

    With d12 = X - Y1 of the prediction from the date before and d23 = Y3 - X of the one from the date after this is
    `|d12 + d23 - (Y3 - Y1)|`, L_T of StfNet (Liu et al. 2019) for a cloudy date between two clear ones. Ours: not squared, so that it is
    in the units of the loss beside which it stands.
    """
    return _average_trusted(_hide_untrusted(middle.early - middle.late, trust).abs(), trust, amount)


def _average_squares(error: Tensor, trust: Tensor, amount: Tensor | None) -> Tensor:
    return _average_trusted(_hide_untrusted(error, trust).square(), trust, amount)


def _hide_untrusted(error: Tensor, trust: Tensor) -> Tensor:
    """The error, at least in float32, 0 where nothing is trusted: what stands there may not be a number."""
    return torch.where(trust > 0, error.to(torch.promote_types(error.dtype, torch.float32)), 0.0)


def _average_trusted(sizes: Tensor, trust: Tensor, amount: Tensor | None) -> Tensor:
    """Trusted mean over pixels of the mean over bands: (B, C, H, W), (B, 1, H, W) -> scalar."""
    return (sizes.mean(dim=1, keepdim=True) * trust).sum() / (measure_trust(trust) if amount is None else amount).clamp_min(NO_AMOUNT)
