"""What a fine image of a date can be had for without a network: the baselines of spatiotemporal fusion.

A series enters, a fine image of its middle date leaves with what of it is usable. Vectorised over images, dates and bands.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.temporal import Dates, interpolate_dates, lay_on_grid, predict_by_change

FINE_UNCERTAINTY: Final = 0.002
"""Reflectance: of a fine pixel (Gao et al. 2006 give 0.002 for the visible bands of Landsat)."""
COARSE_UNCERTAINTY: Final = 0.002
"""Reflectance: of a coarse pixel, by the same."""
SMALLEST: Final = 1e-12
"""Smallest sum of weights that is divided by."""


class Series(NamedTuple):
    """Three dates of one place; reflectance."""

    coarse: Tensor
    """(B, 3, C, h, w) coarse images of all dates."""
    fine: Tensor
    """(B, 2, C, H, W) fine images of the first and the last date; what is not clear may hold anything finite."""
    clear: Tensor
    """(B, 2, 1, H, W) 1 where the fine image is usable, else 0."""
    days: Tensor
    """(B, 3) days of the dates, rising."""


class Estimate(NamedTuple):
    """A fine image of the middle date."""

    image: Tensor
    """(B, C, H, W) reflectance, 0 where nothing is known."""
    valid: Tensor
    """(B, 1, H, W) True where it is usable."""


class Similarity(NamedTuple):
    """Which neighbours STARFM asks, and how far."""

    reach_px: int = 24
    """Fine pixels to each side (Gao et al. 2006: half of 1500 m at 30 m, so 25)."""
    step_px: int = 4
    """Distance of the neighbours that are asked: all of them would cost its square as much."""
    classes: int = 4
    """Kinds of ground to tell apart: similar is what differs by at most 2 standard deviations of the image over this (Gao et al. 2006)."""


def predict_nearest(series: Series) -> Estimate:
    """Each pixel of the nearest date on which it is clear, the first of two that are as near."""
    before, after = series.days.diff(dim=1).unbind(1)
    apart = torch.stack([before, after], dim=1)[:, :, None, None, None]
    lateness = torch.where(series.clear > 0, apart, torch.inf)
    late = lateness[:, 1] < lateness[:, 0]
    return _hide_unknown(torch.where(late, series.fine[:, 1], series.fine[:, 0]), series.clear)


def predict_linear(series: Series) -> Estimate:
    """On the straight line in time between both dates where both are clear, the clear one where only one is."""
    outer_days = series.days[:, ::2] - series.days[:, 1:2]
    between = interpolate_dates(Dates(series.fine, (series.clear > 0).to(series.fine.dtype), outer_days))
    return Estimate(between.image, between.known > 0)


def predict_changed(series: Series) -> Estimate:
    """The fine dates moved by the change of the coarse ones (`predict_by_change`), from one date where the other is not clear."""
    laid = lay_on_grid(series.coarse, _size_of(series))
    first, last = (series.clear > 0).unbind(1)
    moved = series.fine + laid[:, 1:2] - laid[:, ::2]
    both = predict_by_change(laid, series.fine)
    image = torch.where(first & last, both, torch.where(first, moved[:, 0], moved[:, 1]))
    return _hide_unknown(image, series.clear)


def predict_starfm(series: Series, similarity: Similarity | None = None) -> Estimate:
    """Each pixel from similar ones around it, moved by the change of their coarse pixels (after STARFM, Gao et al. 2006).

    `L(x, t2) = sum W (M(x_i, t2) + L(x_i, t_k) - M(x_i, t_k))` over neighbours i and both dates k, L fine and M coarse, W proportional to
    the inverse of S T D: how far the fine pixel is from the coarse one, S = |L - M|, how far the coarse one changes, T = |M(t2) - M(t_k)|,
    and how far away it is, D = 1 + d / A (equations 2 to 9). Neighbours count if they are similar to the pixel, and no worse than it in S
    and T (so of a mixed coarse pixel the kind of ground that changes is not learnt from purer ones, which change more).

    Ours: the uncertainties are added to S and T, which keeps weights finite where the paper has special cases; neighbours stand on a
    lattice; the coarse images are interpolated. A pixel takes part of a date only where it is clear there.
    """
    similarity = similarity or Similarity()
    laid = lay_on_grid(series.coarse, _size_of(series))
    now, then = laid[:, 1:2], laid[:, ::2]
    seen = (series.clear > 0).to(series.fine.dtype)
    fine = torch.where(seen > 0, series.fine, 0.0)
    apart, changed = (fine - then).abs(), (now - then).abs()
    centre = torch.stack([fine, apart, changed], dim=0)
    around = torch.cat([centre, torch.stack([now + fine - then, seen.expand_as(fine)], dim=0)], dim=0)
    return _hide_unknown(_average_similar(centre, around, _tolerate(fine, seen, similarity), similarity), series.clear)


def _tolerate(fine: Tensor, seen: Tensor, similarity: Similarity) -> Tensor:
    """How far two similar pixels may differ, per image, date and band: (B, 2, C, H, W), (B, 2, 1, H, W) -> (B, 2, C, 1, 1)."""
    count = seen.sum(dim=(-2, -1), keepdim=True).clamp_min(1)
    mean = (fine * seen).sum(dim=(-2, -1), keepdim=True) / count
    variance = ((fine - mean).square() * seen).sum(dim=(-2, -1), keepdim=True) / count
    return 2 * variance.sqrt() / similarity.classes + FINE_UNCERTAINTY


def _average_similar(centre: Tensor, around: Tensor, tolerance: Tensor, similarity: Similarity) -> Tensor:
    """Weighted mean over similar neighbours of both dates: (B, C, H, W).

    `centre` (3, B, 2, C, H, W) are fine reflectance, S and T; `around` (5, B, 2, C, H, W) the same, then what each pixel predicts and
    whether it is clear.
    """
    reach, step = similarity.reach_px // similarity.step_px * similarity.step_px, similarity.step_px
    height, width = centre.shape[-2:]
    padded = F.pad(around, (reach, reach, reach, reach))  # outside nothing is clear
    unsure = (COARSE_UNCERTAINTY**2 + FINE_UNCERTAINTY**2) ** 0.5, COARSE_UNCERTAINTY * 2**0.5
    total, amount = torch.zeros_like(centre[0, :, 0]), torch.zeros_like(centre[0, :, 0])
    for down, across in itertools.product(range(-reach, reach + 1, step), repeat=2):
        fine, apart, changed, predicted, seen = padded[..., reach + down :, reach + across :][..., :height, :width]
        alike = (fine - centre[0]).abs() <= tolerance
        good = (apart <= centre[1] + unsure[0]) & (changed <= centre[2] + unsure[1])
        distance = 1 + (down**2 + across**2) ** 0.5 / max(1, reach)
        weight = seen * around[4] * alike * good / ((apart + unsure[0]) * (changed + unsure[1]) * distance)
        total += (weight * predicted).sum(dim=1)
        amount += weight.sum(dim=1)
    return total / amount.clamp_min(SMALLEST)


def _size_of(series: Series) -> tuple[int, int]:
    return series.fine.shape[-2], series.fine.shape[-1]


def _hide_unknown(image: Tensor, clear: Tensor) -> Estimate:
    """`image` where either date was clear."""
    valid = (clear > 0).any(dim=1)
    return Estimate(torch.where(valid, image, 0.0), valid)
