"""Indices of how good a sharpened image is, block by block: Q and Q2n beside the truth, D_lambda, D_s and QNR without one.

Images (B, C, H, W) of reflectance enter, one number per image leaves, float64. Blocks of 32 px lie side by side; what is left at the right
and bottom edge does not count, nor does a block with a pixel that is not usable. An image without a block has no value: NaN.

D_lambda, D_s and QNR are no verdict: they tell how little likenesses of bands changed, by which an image that was only enlarged often ranks
above sharpened ones that are nearer to the truth. Show them beside scores with a truth, as `compute_q2n` gives, or not at all.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

BLOCK_PX: Final = 32
"""Side of a block (Alparone et al. 2004; Garzelli and Nencini 2009)."""
WITHOUT_TRUTH: Final = ("d_lambda", "d_s", "qnr")
"""Scores of a sharpened image whose truth nobody knows (Alparone et al. 2008); no verdict rests on them."""
NEGLIGIBLE: Final = 1e-14
"""Variance as a share of the mean square below which a block counts as constant: it is the rounding of float64 sums."""


def compute_q(prediction: Tensor, target: Tensor, usable: Tensor, *, block_px: int = BLOCK_PX) -> Tensor:
    """Universal quality index, mean over blocks and bands: (B, C, H, W), (B, C, H, W), (B, H, W) bool -> (B,) in -1..1.

    `4 cov m1 m2 / ((v1 + v2) (m1^2 + m2^2))` (Wang and Bovik 2002); of two constant blocks only the means are compared, and
    two that are zero are alike. They slide their window by one pixel, here blocks lie side by side.
    """
    return _average(_compare_blocks(_cut(prediction, block_px), _cut(target, block_px)), _find_usable(usable, block_px))


def compute_q2n(prediction: Tensor, target: Tensor, usable: Tensor, *, block_px: int = BLOCK_PX) -> Tensor:
    """Quality index of all bands at once, mean over blocks: (B, C, H, W), (B, C, H, W), (B, H, W) bool -> (B,) in 0..1.

    A spectrum is a hypercomplex number of 2^n parts, missing bands being zero: Q4 for 4 bands (Alparone et al. 2004), Q8 for 8. The
    index is that of `compute_q` with moduli of means and of the hypercomplex covariance (Garzelli and Nencini 2009). As in the
    toolbox of Vivone et al. 2015, whose numbers are those in print, a block is first scaled per band to mean 1 and deviation 1 of the
    target: the index is therefore not symmetrical.
    """
    seen, true = _cut(prediction, block_px), _cut(target, block_px)
    sample = block_px**2 / (block_px**2 - 1)  # they divide by the deviation of a sample
    spread = torch.where(_is_constant(true), 1.0, (_vary(true) * sample).sqrt())
    ours, theirs = ((blocks - true.mean(-1, keepdim=True)) / spread[..., None] + 1 for blocks in (seen, true))
    mean_ours, mean_true = ours.mean(-1), theirs.mean(-1)
    covariance = torch.einsum("bikp,bjkp->bkij", theirs - mean_true[..., None], ours - mean_ours[..., None]) / ours.shape[-1]
    modulus = _multiply_conjugate(covariance).square().sum(-1).sqrt()
    variance = (_vary(ours) + _vary(theirs)).sum(1)
    squared = mean_ours.square().sum(1), mean_true.square().sum(1)
    level_index = 2 * (squared[0] * squared[1]).sqrt() / (squared[0] + squared[1])
    index = level_index * _divide(2 * modulus, variance, variance <= NEGLIGIBLE * (squared[0] + squared[1]))
    return _average(index[:, None], _find_usable(usable, block_px))


def compute_spectral_distortion(sharp: Tensor, ms: Tensor, usable: Tensor) -> Tensor:
    """D_lambda, how far the bands' likeness changed: sharp (B, C, r h, r w), (B, C, h, w), (B, r h, r w) bool -> (B,), 0 at best.

    Mean over pairs of bands of the absolute difference of their Q after and before (Alparone et al. 2008, with p = 1), on
    blocks of the same ground. NaN for a single band.
    """
    first, second = torch.triu_indices(sharp.shape[1], sharp.shape[1], offset=1, device=sharp.device)
    fine_px, coarse_px = _match_blocks(sharp, ms)
    after, before = (
        _average_each(_compare_blocks(blocks[:, first], blocks[:, second]), _find_usable(usable, fine_px))
        for blocks in (_cut(sharp, fine_px), _cut(ms, coarse_px))
    )
    return (after - before).abs().mean(1)


def compute_spatial_distortion(sharp: Tensor, pan: Tensor, ms: Tensor, seen_pan: Tensor, usable: Tensor) -> Tensor:
    """D_s, how far the bands' likeness to the panchromatic image changed: (B,), 0 at best.

    `sharp` (B, C, r h, r w) with `pan` (B, 1, r h, r w), `ms` (B, C, h, w) with `seen_pan` (B, 1, h, w), the panchromatic image as the
    coarse sensor sees it; `usable` (B, r h, r w) bool. Mean over bands of the absolute difference of both Q (Alparone et al. 2008,
    with q = 1), on blocks of the same ground.
    """
    fine_px, coarse_px = _match_blocks(sharp, ms)
    after, before = (
        _average_each(_compare_blocks(_cut(image, side), _cut(band, side)), _find_usable(usable, fine_px))
        for image, band, side in ((sharp, pan, fine_px), (ms, seen_pan, coarse_px))
    )
    return (after - before).abs().mean(1)


def compute_qnr(spectral_distortion: Tensor, spatial_distortion: Tensor) -> Tensor:
    """Quality without a reference, `(1 - D_lambda) (1 - D_s)`: (B,), (B,) -> (B,), 1 at best (Alparone et al. 2008)."""
    return (1 - spectral_distortion) * (1 - spatial_distortion)


def _match_blocks(fine: Tensor, coarse: Tensor) -> tuple[int, int]:
    """Sides of blocks that cover the same ground in both images, the fine one about `BLOCK_PX`."""
    ratio = fine.shape[2] // coarse.shape[2]
    side = max(2, round(BLOCK_PX / ratio))
    return side * ratio, side


def _cut(image: Tensor, side: int) -> Tensor:
    """Blocks of `image`: (B, C, H, W) -> (B, C, K, side^2) float64."""
    batch, channels, height, width = image.shape
    down, across = height // side, width // side
    whole = image[:, :, : down * side, : across * side].double()
    blocks = whole.reshape(batch, channels, down, side, across, side).transpose(3, 4)
    return blocks.reshape(batch, channels, down * across, side * side)


def _find_usable(usable: Tensor, side: int) -> Tensor:
    """Blocks all of whose pixels are usable: (B, H, W) bool -> (B, K) bool."""
    return _cut(usable[:, None], side).amin(-1)[:, 0] > 0


def _compare_blocks(first: Tensor, second: Tensor) -> Tensor:
    """Q of each block: (B, C, K, P), (B, C or 1, K, P) -> (B, C, K)."""
    mean_first, mean_second = first.mean(-1), second.mean(-1)
    covariance = ((first - mean_first[..., None]) * (second - mean_second[..., None])).mean(-1)
    variance = _vary(first) + _vary(second)
    squares = mean_first.square() + mean_second.square()
    structure = _divide(2 * covariance, variance, _is_constant(first) & _is_constant(second))
    return structure * _divide(2 * mean_first * mean_second, squares, squares == 0)


def _vary(blocks: Tensor) -> Tensor:
    """Variance of each block: (..., P) -> (...); there may be no blocks."""
    return (blocks - blocks.mean(-1, keepdim=True)).square().mean(-1)


def _is_constant(blocks: Tensor) -> Tensor:
    """Blocks without variation: (..., P) -> (...)."""
    return _vary(blocks) <= NEGLIGIBLE * blocks.square().mean(-1)


def _divide(numerator: Tensor, denominator: Tensor, nothing: Tensor) -> Tensor:
    """The quotient, 1 where there is `nothing` to compare."""
    return torch.where(nothing, 1.0, numerator / torch.where(nothing, 1.0, denominator))


def _average(index: Tensor, counted: Tensor) -> Tensor:
    """Mean over bands and counted blocks: (B, C, K), (B, K) bool -> (B,)."""
    return _average_each(index, counted).mean(1)


def _average_each(index: Tensor, counted: Tensor) -> Tensor:
    """Mean over counted blocks: (B, C, K), (B, K) bool -> (B, C), 0 / 0 = NaN where none counts."""
    return torch.where(counted[:, None], index, 0.0).sum(-1) / counted.sum(-1, keepdim=True)


def _multiply_conjugate(products: Tensor) -> Tensor:
    """Parts of `x y*` from the products of the parts of x and y: (..., C, C) -> (..., 2^n), 2^n at least C."""
    bands = products.shape[-1]
    size = 1 << (bands - 1).bit_length()
    signs = _list_signs(size)
    parts = products.new_zeros(*products.shape[:-2], size)
    for one in range(bands):
        for other in range(bands):
            parts[..., one ^ other] += (signs[one][other] if other == 0 else -signs[one][other]) * products[..., one, other]
    return parts


def _list_signs(size: int) -> list[list[int]]:
    """Signs s in `e_i e_j = s_ij e_(i xor j)` of the hypercomplex units.

    By doubling (Cayley and Dickson): `(a, b) (c, d) = (a c - d* b, d a + b c*)`, from the reals over complex numbers and quaternions on.
    """
    if size == 1:
        return [[1]]
    half = size // 2
    inner = _list_signs(half)
    conjugate = [1] + [-1] * (half - 1)
    upper = [inner[i] + [inner[j][i] for j in range(half)] for i in range(half)]
    lower = [[conjugate[j] * inner[i][j] for j in range(half)] + [-conjugate[j] * inner[j][i] for j in range(half)] for i in range(half)]
    return upper + lower
