"""How far a cleared image is from the true one: per image, over the pixels of a region only.

Tensors of reflectance (0..1, not clipped) and a mask come in; one value per image leaves, NaN where a region has nothing to score.
Averages over images say how many values they left out and why. Metrics copied from elsewhere carry known faults (an SSIM window half
a pixel off centre, NaN counted as 0 degrees or dropped, averages per batch): the tests hold each of them as a law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

METRICS: Final = ("mae", "rmse", "psnr", "ssim", "sam_deg", "ergas")
"""Keys of the scores: reflectance, reflectance, dB, -1..1, degrees, percent."""
COUNTS: Final = ("n_pixels", "n_ssim_pixels", "n_zero_vectors")
"""Keys of the counts: pixels of the region, those of them whose SSIM window lies inside the image, those without a spectral angle."""

PEAK: Final = 1.0
"""Largest reflectance, for PSNR and SSIM."""
SSIM_WINDOW_PX: Final = 11
"""Side of the SSIM window (Wang et al. 2004, section III.C)."""
SSIM_SIGMA_PX: Final = 1.5
"""Standard deviation of the Gaussian in that window (ibid.)."""
SSIM_K1: Final = 0.01
"""Stabiliser of the luminance term, as a share of the peak (ibid.)."""
SSIM_K2: Final = 0.03
"""Stabiliser of the contrast term, as a share of the peak (ibid.)."""
BOOTSTRAP_DRAWS: Final = 2000
"""Resamplings behind an interval."""


class ErrorMaps(NamedTuple):
    """What the scores of every region are averaged from."""

    absolute: Tensor
    """Mean absolute difference over the bands, (B, H, W)."""
    squared: Tensor
    """Squared difference, (B, C, H, W)."""
    target: Tensor
    """The true image, (B, C, H, W)."""
    ssim: Tensor
    """Mean structural similarity over the bands, (B, H, W)."""
    has_ssim: Tensor
    """Where the SSIM window lies inside the image, (H, W) bool."""
    angle_deg: Tensor
    """Angle between the spectra in degrees, (B, H, W) float64."""
    has_angle: Tensor
    """Where both spectra are more than zero in some band, (B, H, W) bool."""


class Average(NamedTuple):
    """Scores of many images in few numbers."""

    mean: float
    """Mean of the finite values; NaN if there are none."""
    median: float
    """Median of the finite values; NaN if there are none."""
    n: int
    """Finite values, which mean and median are of."""
    n_nan: int
    """Images left out because the region had nothing to score."""
    n_infinite: int
    """Images left out because the score is infinite (PSNR of an exact copy)."""


class Interval(NamedTuple):
    """A mean difference and the range its resampled values fall into."""

    mean: float
    """Mean of the differences; NaN if there are none."""
    low: float
    """2.5 % quantile of the resampled means; NaN with fewer than two groups, which say nothing about scatter."""
    high: float
    """97.5 % quantile; NaN likewise."""
    n: int
    """Images with a finite difference."""
    n_groups: int
    """Groups that were drawn as a whole."""


def compute_error_maps(prediction: Tensor, target: Tensor, usable: Tensor) -> ErrorMaps:
    """Compare pixel by pixel, once for all regions: (B, C, H, W), (B, C, H, W), (B, H, W) bool -> maps.

    Values are reflectance, 0..1 but not clipped. Pixels that are not `usable` enter no SSIM window, whatever they hold; a region must
    leave them out.
    """
    difference = prediction - target
    angle_deg, has_angle = compute_angle_map(prediction, target)
    return ErrorMaps(
        absolute=difference.abs().mean(1),
        squared=difference.square(),
        target=target,
        ssim=compute_ssim_map(prediction, target, usable),
        has_ssim=_mark_whole_windows(target),
        angle_deg=angle_deg,
        has_angle=has_angle,
    )


def average_maps(maps: ErrorMaps, region: Tensor, *, ratio: float = 1.0) -> dict[str, Tensor]:
    """Average the maps over a region, image by image: maps, (B, H, W) bool -> METRICS and COUNTS, each (B,) float64.

    Scores of a region without pixels are NaN; `sam_deg` also where no pixel has an angle, `ssim` where no window fits inside.
    ERGAS is 100 h/l sqrt(mean over bands of MSE / mean(target)^2) (Wald 2000) with the band means taken over the region; `ratio` is l/h,
    the pixel size of a coarse input over that of the target (pan-sharpening, fusion), 1 where they share a grid (cloud removal, snapshots).
    """
    squared = _average(maps.squared, region[:, None])
    level = _average(maps.target, region[:, None])
    mse = squared.mean(1)
    has_ssim, has_angle = region & maps.has_ssim, region & maps.has_angle
    return {
        "mae": _average(maps.absolute, region),
        "rmse": mse.sqrt(),
        "psnr": 10 * torch.log10(PEAK**2 / mse),
        "ssim": _average(maps.ssim, has_ssim),
        "sam_deg": _average(maps.angle_deg, has_angle),
        "ergas": 100 / ratio * (squared / level.square()).mean(1).sqrt(),
        "n_pixels": region.sum((1, 2)).double(),
        "n_ssim_pixels": has_ssim.sum((1, 2)).double(),
        "n_zero_vectors": (region & ~has_angle).sum((1, 2)).double(),
    }


def masked_psnr(prediction: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """PSNR in dB of each image over its region, peak 1: (B, C, H, W), (B, C, H, W), (B, H, W) bool -> (B,) float64, NaN if empty."""
    return 10 * torch.log10(PEAK**2 / _average((prediction - target).square(), region[:, None]).mean(1))


def _average(values: Tensor, region: Tensor) -> Tensor:
    """Mean over the last two axes where `region` is True, in float64; 0 / 0 = NaN where it nowhere is."""
    kept = torch.where(region, values, 0)
    return kept.sum((-2, -1), dtype=torch.float64) / region.sum((-2, -1), dtype=torch.float64)


def compute_angle_map(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral angle in degrees and where there is one: (B, C, H, W), (B, C, H, W) -> (B, H, W) float64, (B, H, W) bool.

    A spectrum that is zero in all bands has no angle (Kruse et al. 1993 divides by its length). The cosine is taken in float64: in
    float32 its rounding alone turns equal spectra into 0.02 degrees.
    """
    ours, true = prediction.double(), target.double()
    norms = torch.linalg.vector_norm(ours, dim=1) * torch.linalg.vector_norm(true, dim=1)
    cosine = (ours * true).sum(1) / norms
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))), norms != 0


def compute_ssim_map(prediction: Tensor, target: Tensor, usable: Tensor) -> Tensor:
    """Structural similarity, mean over bands: (B, C, H, W), (B, C, H, W), (B, H, W) bool -> (B, H, W).

    Wang et al. 2004, equation 13, population moments. Border: pixels whose window would reach outside the image have no value (NaN),
    so that nothing is padded. Moments are taken over the usable pixels of a window, weights scaled to sum to 1; where all are usable
    this is the usual SSIM. NaN too where the pixel itself is not usable.
    """
    if min(target.shape[-2:]) < SSIM_WINDOW_PX:
        return torch.full_like(target[:, 0], float("nan"))
    ours = torch.where(usable[:, None], prediction, 0)
    true = torch.where(usable[:, None], target, 0)
    total = blur_windows(usable[:, None].to(target.dtype))
    mean_ours, mean_true = blur_windows(ours) / total, blur_windows(true) / total
    variance_ours = blur_windows(ours * ours) / total - mean_ours.square()
    variance_true = blur_windows(true * true) / total - mean_true.square()
    covariance = blur_windows(ours * true) / total - mean_ours * mean_true
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    luminance = (2 * mean_ours * mean_true + c1) / (mean_ours.square() + mean_true.square() + c1)
    structure = (2 * covariance + c2) / (variance_ours + variance_true + c2)
    inside = (luminance * structure).mean(1)
    padded = torch.nn.functional.pad(inside, (SSIM_WINDOW_PX // 2,) * 4, value=float("nan"))
    return torch.where(usable, padded, float("nan"))


def _mark_whole_windows(image: Tensor) -> Tensor:
    """Where an SSIM window lies inside the image: (..., H, W) -> (H, W) bool."""
    margin = SSIM_WINDOW_PX // 2
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool, device=image.device)
    inside[margin:-margin, margin:-margin] = True
    return inside


def blur_windows(image: Tensor) -> Tensor:
    """Gaussian-weighted mean of every SSIM window that lies inside: (B, C, H, W) -> (B, C, H - 10, W - 10); H and W at least 11.

    Adding shifted slices, two at a time by the symmetry of the window: measured 8 times faster than a one-channel convolution on a CPU.
    """
    taps, centre = gaussian_taps(), SSIM_WINDOW_PX // 2
    for axis in (-1, -2):
        length = image.shape[axis] - 2 * centre
        blurred = image.narrow(axis, centre, length) * taps[centre]
        for left in range(centre):
            pair = image.narrow(axis, left, length) + image.narrow(axis, SSIM_WINDOW_PX - 1 - left, length)
            blurred.add_(pair, alpha=taps[left])
        image = blurred
    return image


def gaussian_taps() -> list[float]:
    """The 11 weights of the SSIM window along one axis, centred on the sixth, sum 1."""
    offset = torch.arange(SSIM_WINDOW_PX, dtype=torch.float64) - SSIM_WINDOW_PX // 2
    weights = torch.exp(-offset.square() / (2 * SSIM_SIGMA_PX**2))
    taps: list[float] = (weights / weights.sum()).tolist()
    return taps


def average_scores(values: Tensor) -> Average:
    """Mean and median over images: (N,) -> numbers of the finite values, with a count of each kind left out."""
    finite = values[values.isfinite()].double()
    n_nan, n_infinite = int(values.isnan().sum()), int(values.isinf().sum())
    if not len(finite):
        return Average(float("nan"), float("nan"), 0, n_nan, n_infinite)
    return Average(finite.mean().item(), finite.quantile(0.5).item(), len(finite), n_nan, n_infinite)


def bootstrap_difference(difference: Tensor, groups: Sequence[str], *, generator: torch.Generator) -> Interval:
    """Mean of paired differences with its 95 % percentile interval: (N,), N group names -> numbers (Efron 1979).

    Groups are drawn with replacement, each with all its images. One name per image draws images; images that share ground are not
    independent, so naming the ground draws blocks of it and gives the wider, honester interval.
    """
    finite = difference.isfinite()
    values = difference[finite].double()
    names = [name for name, kept in zip(groups, finite.tolist(), strict=True) if kept]
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if len(order) < 2:
        return Interval(values.mean().item(), float("nan"), float("nan"), len(values), len(order))
    member = torch.tensor([order[name] for name in names])
    total = torch.zeros(len(order), dtype=torch.float64).index_add_(0, member, values)
    size = torch.bincount(member, minlength=len(order)).double()
    drawn = torch.randint(len(order), (BOOTSTRAP_DRAWS, len(order)), generator=generator)
    means = total[drawn].sum(1) / size[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(values.mean().item(), low, high, len(values), len(order))
