"""Sharpening a multispectral image by a panchromatic one without learning, and pairs whose sharp truth is known, by Wald's protocol.

Images are reflectance in torch, multispectral (B, C, h, w) and panchromatic (B, 1, r h, r w), r whole; a coarse pixel covers exactly r x r
fine ones. Every image of a batch is treated alone. A value that is not finite makes its whole image so: cut such pixels away before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.pipeline.errors import DataError

TYPICAL_MS_GAIN: Final = 0.3
"""Contrast that a multispectral band keeps at its Nyquist frequency where the sensor's own is not known (Vivone et al. 2015)."""
TYPICAL_PAN_GAIN: Final = 0.15
"""The same for a panchromatic band (ibid.)."""
SENTINEL2_GAINS: Final = {
    "B01": 0.32,
    "B02": 0.26,
    "B03": 0.28,
    "B04": 0.24,
    "B05": 0.38,
    "B06": 0.34,
    "B07": 0.34,
    "B08": 0.26,
    "B8A": 0.33,
    "B09": 0.26,
    "B11": 0.22,
    "B12": 0.23,
}
"""Contrast at the Nyquist frequency of each band of Sentinel-2 (ESA's data quality report, as given by Ulfarsson et al. 2019)."""
BLUR_REACH: Final = 4.0
"""Standard deviations after which the blur is cut off."""
DIM: Final = 1e-4
"""Reflectance; a darker intensity is divided by as if it were this."""


class WaldPair(NamedTuple):
    """An image and its panchromatic one at a coarser scale, where the truth is known."""

    ms: Tensor
    """(B, C, h / r, w / r) what is to be sharpened."""
    pan: Tensor
    """(B, G, h, w) what sharpens it."""
    target: Tensor
    """(B, C, h, w) the image as it was observed."""


def find_ratio(ms: Tensor, pan: Tensor) -> int:
    """How many pixels of `pan` (B, G, H, W) lie side by side in one of `ms` (B, C, h, w), at least 1.

    Raises:
        DataError: the sizes are not in one whole ratio, or the batches differ.
    """
    (rows, columns), (fine_rows, fine_columns) = ms.shape[2:], pan.shape[2:]
    ratio = max(1, fine_rows // max(1, rows))
    if (rows * ratio, columns * ratio) != (fine_rows, fine_columns) or not rows or not columns or len(ms) != len(pan):
        seen = f"{len(ms)} of {rows} x {columns} and {len(pan)} of {fine_rows} x {fine_columns} px"
        raise DataError(f"multispectral and panchromatic images are {seen}, expected one whole ratio: cut both to the same ground")
    return ratio


def enlarge(ms: Tensor, ratio: int) -> Tensor:
    """Bicubic enlargement: (B, C, h, w) -> (B, C, r h, r w) (Keys 1981, with torch's a = -3/4).

    With a = -1/2, as in MATLAB, a slope would come out without ripples, but bands of Sentinel-2 0.3 dB further from the truth.
    """
    return ms if ratio == 1 else F.interpolate(ms, scale_factor=float(ratio), mode="bicubic")


def sharpen_brovey(ms: Tensor, pan: Tensor) -> Tensor:
    """Every band times panchromatic over intensity: (B, C, h, w), (B, G, r h, r w) -> (B, C, r h, r w) (Gillespie et al. 1987).

    The intensity is the mean of the bands; the panchromatic image is brought to its mean, and by its blurred self to its standard
    deviation (Vivone et al. 2015). Several guiding bands are combined into what is nearest to the intensity.

    Raises:
        DataError: as `find_ratio`.
    """
    ratio, pan = find_ratio(ms, pan), _find_pan(ms, pan).mean(dim=1, keepdim=True)
    base = enlarge(ms, ratio)
    intensity = base.mean(dim=1, keepdim=True)
    blurred = enlarge(degrade(pan, ratio, [TYPICAL_MS_GAIN]), ratio)
    scale = (_mean(_centre(intensity).square()) / _mean(_centre(blurred).square()).clamp_min(DIM**2)).sqrt()
    return base * (_centre(pan) * scale + _mean(intensity)) / intensity.clamp_min(DIM)


def sharpen_gsa(ms: Tensor, pan: Tensor) -> Tensor:
    """Adaptive Gram-Schmidt sharpening: (B, C, h, w), (B, G, r h, r w) -> (B, C, r h, r w) (Aiazzi et al. 2007).

    The intensity is the linear combination of the bands that is nearest to the blurred panchromatic image at the coarse scale; what the
    panchromatic image has beyond it is added to every band times `cov(band, intensity) / var(intensity)`. Several guiding bands are
    combined first (see `synthesise_pan`), which gives each band an intensity of its own.

    Raises:
        DataError: as `find_ratio`.
    """
    ratio, pan = find_ratio(ms, pan), _find_pan(ms, pan)
    base = enlarge(ms, ratio)
    weights = _fit_bands(ms, degrade(pan, ratio, [TYPICAL_MS_GAIN] * pan.shape[1]))
    intensity = _combine(_centre(base), weights)
    gains = _mean(_centre(base) * intensity) / _mean(intensity.square()).clamp_min(DIM**4)
    return base + (gains * (_centre(pan) - intensity)).to(ms.dtype)


def synthesise_pan(ms: Tensor, guide: Tensor) -> Tensor:
    """For each band the combination of the guiding ones that is nearest to it: (B, C, h, w), (B, G, r h, r w) -> (B, C, r h, r w).

    Fitted at the coarse scale, with a constant (the synthesised band of Selva et al. 2015), for sensors with several sharp bands, as
    Sentinel-2.

    Raises:
        DataError: as `find_ratio`.
    """
    seen = degrade(guide, find_ratio(ms, guide), [TYPICAL_MS_GAIN] * guide.shape[1])
    return (_combine(guide - _mean(seen), _fit_bands(seen, ms)) + _mean(ms)).to(ms.dtype)


def _find_pan(ms: Tensor, pan: Tensor) -> Tensor:
    """One panchromatic band for all, or one for each of `ms`."""
    return pan if pan.shape[1] == 1 else synthesise_pan(ms, pan)


def _fit_bands(bands: Tensor, wanted: Tensor) -> Tensor:
    """Weights of the centred bands whose sum is nearest to each wanted one: (B, C, h, w), (B, K, h, w) -> (B, C, K) float64."""
    seen, aim = (_centre(image.double()).flatten(2) for image in (bands, wanted))
    weights: Tensor = torch.linalg.pinv(seen @ seen.mT, hermitian=True) @ (seen @ aim.mT)
    return weights


def _combine(bands: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the bands: (B, C, H, W), (B, C, K) -> (B, K, H, W) float64."""
    return torch.einsum("bchw,bck->bkhw", bands.double(), weights)


def _mean(image: Tensor) -> Tensor:
    """Mean of each band: (B, C, H, W) -> (B, C, 1, 1)."""
    return image.mean((2, 3), keepdim=True)


def _centre(image: Tensor) -> Tensor:
    return image - _mean(image)


def degrade(image: Tensor, ratio: int, gains: Sequence[float]) -> Tensor:
    """`image` as a sensor with pixels `ratio` times as large sees it: (B, C, H, W) -> (B, C, H / r, W / r).

    Blurred per band by the Gaussian that leaves of a wave at the new Nyquist frequency the share `gains` (one per band, 0..1), then taken
    at the middle of every r x r pixels (Wald et al. 1997; Aiazzi et al. 2006). Beyond the edge there is nothing: taps are scaled to sum
    to 1 over what is inside. Of a mask of 0 and 1 it gives the share that was seen.

    Raises:
        DataError: H or W is no multiple of `ratio`.
    """
    channels, rows, columns = image.shape[1:]
    if rows % ratio or columns % ratio:
        raise DataError(f"an image of {rows} x {columns} px cannot be reduced {ratio} times: cut it to a multiple of {ratio}")
    if ratio == 1:
        return image
    taps = _spread_taps(gains, ratio).to(image)
    down = _reduce_rows(image, taps.reshape(channels, 1, -1, 1), ratio)
    return _reduce_rows(down.mT, taps.reshape(channels, 1, -1, 1), ratio).mT


def _reduce_rows(image: Tensor, taps: Tensor, ratio: int) -> Tensor:
    """Weighted means down the columns, one for every `ratio` rows: (B, C, H, W), (C, 1, K, 1) -> (B, C, H / r, W)."""
    reach = ((taps.shape[2] - ratio) // 2, 0)
    inside = F.conv2d(torch.ones_like(image[:1, :, :, :1]), taps, stride=(ratio, 1), padding=reach, groups=len(taps))
    return F.conv2d(image, taps, stride=(ratio, 1), padding=reach, groups=len(taps)) / inside


def _spread_taps(gains: Sequence[float], ratio: int) -> Tensor:
    """Weights of the fine pixels around the middle of a coarse one: (C, K) with sums 1; K is even where `ratio` is."""
    log_gains = torch.tensor(gains, dtype=torch.float64).log()
    sigma_px = ratio * (-2 * log_gains).sqrt() / math.pi  # a Gaussian's spectrum is exp(-2 (pi sigma f)^2), here f = 1 / (2 ratio)
    count = ratio + 2 * math.ceil(max(0.0, BLUR_REACH * sigma_px.max().item() - ratio / 2))
    offset = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    weights = torch.exp(-offset.square() / (2 * sigma_px.square()[:, None]))
    return weights / weights.sum(dim=1, keepdim=True)


def make_wald_pair(ms: Tensor, pan: Tensor, *, gains: Sequence[float], pan_gains: Sequence[float]) -> WaldPair:
    """Both images at a scale coarser by their own ratio, with the observed one as truth: (B, C, h, w), (B, G, r h, r w) -> pair.

    `gains` and `pan_gains` are as in `degrade` (Wald et al. 1997).

    Raises:
        DataError: as `find_ratio`, or h or w is no multiple of r.
    """
    ratio = find_ratio(ms, pan)
    return WaldPair(degrade(ms, ratio, gains), degrade(pan, ratio, pan_gains), ms)
