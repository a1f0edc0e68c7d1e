"""What a place looks like whatever sensor saw it: a few numbers per pixel that ignore contrast and its sign.

Grey values of SAR and optical do not correlate, but borders of parcels, roads and shores lie at the same place. Images with their validity
enter; descriptors of one length per pixel leave, zero where they would have seen a pixel that is not usable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sereno.pipeline.config import DescriptorName

N_BINS: Final = 9
"""Unsigned orientations over 180 degrees (Dalal & Triggs 2005, section 6.3)."""
GRADIENT_SIGMA_PX: Final = 1.5
"""Scale of the Gaussian derivative; smaller ones follow speckle."""
CELL_SIGMA_PX: Final = 1.0
"""Gaussian weight of the neighbourhood whose votes enter a histogram."""
NORM_FLOOR: Final = 1.5
"""Histograms weaker than this share of the median length are not raised to unit length: speckle on flat ground stays quiet.
Measured on simulated scenes of one look: error 0.13 px, against 0.55 px with a floor of 1."""
EDGE_PX: Final = 6
"""Invalid ground grows by this: the reach of the orientations' filters, 3 sigma and a pixel or two."""
SMOOTH_SIGMA_PX: Final = 1.0
"""Patches are compared after so much smoothing, against speckle."""
PATCH_SIGMA_PX: Final = 1.0
"""Gaussian weight of the patches that are compared with each other."""
NEIGHBOURS: Final = ((0, 3), (2, 2), (3, 0), (2, -2), (0, -3), (-2, -2), (-3, 0), (-2, 2))
"""Rows and columns to the patches that each patch is compared with."""
VARIANCE_FLOOR: Final = 1.0
"""Local variance is not taken smaller than this share of its median: flat ground stays flat."""
SIMILARITY_EDGE_PX: Final = 9
"""Invalid ground grows by this for self-similarity: 3 sigma of both filters and the distance of the neighbours."""
TINY: Final = 1e-30
"""Keeps divisions finite where there is no structure at all."""

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class Features(NamedTuple):
    """Descriptors of one image."""

    values: Float
    """(K, y, x), at most 1 per pixel and number, 0 where not usable."""
    usable: Float
    """(y, x), 1 where the descriptor saw valid ground only, else 0."""


def describe_orientations(image: Float, valid: Bool) -> Features:
    """Which way edges run around each pixel: (band, y, x), (y, x) -> (N_BINS, y, x), blind to contrast and its sign.

    Per pixel the band with the strongest gradient votes with its magnitude for the two orientation bins next to it; votes are gathered over
    a Gaussian cell and scaled to unit length: the histograms of oriented gradients of Dalal & Triggs (2005, sections 6.2-6.4), whose cells
    have a grid, while ours lie around every pixel.
    """
    filled = _fill_invalid(image, valid)
    usable = _shrink(valid, EDGE_PX)
    magnitude, bins = _pick_gradient(filled, usable)
    values = np.empty((N_BINS, *valid.shape), np.float32)
    for index in range(N_BINS):
        distance = np.abs((bins - index + N_BINS / 2) % N_BINS - N_BINS / 2)
        votes = magnitude * np.maximum(1 - distance, 0)
        values[index] = ndimage.gaussian_filter(votes, CELL_SIGMA_PX, truncate=3)
    length = np.sqrt(np.einsum("kyx,kyx->yx", values, values))
    floor = NORM_FLOOR * _find_level(length, usable)
    values *= usable / np.maximum(length, max(floor, TINY))
    return Features(values, usable.astype(np.float32))


def _pick_gradient(image: Float, usable: Bool) -> tuple[Float, Float]:
    """Magnitude and orientation (in bins, 0..N_BINS) of the strongest band, each band measured against its own median."""
    best = np.zeros(usable.shape, np.float32)
    bins = np.zeros(usable.shape, np.float32)
    for band in image:
        rows = ndimage.gaussian_filter(band, GRADIENT_SIGMA_PX, order=(1, 0), truncate=3)
        cols = ndimage.gaussian_filter(band, GRADIENT_SIGMA_PX, order=(0, 1), truncate=3)
        magnitude = np.hypot(rows, cols)
        magnitude /= _find_level(magnitude, usable) or 1.0
        stronger = magnitude > best
        best = np.where(stronger, magnitude, best)
        bins = np.where(stronger, np.arctan2(rows, cols) * np.float32(N_BINS / np.pi) % N_BINS, bins)
    return best, bins


def describe_self_similarity(image: Float, valid: Bool) -> Features:
    """How like each pixel's patch is to patches around it: (band, y, x), (y, x) -> (neighbours, y, x), blind to contrast and its sign.

    exp(-D / V) with D the squared difference of two patches and V its mean over all neighbours, scaled so that the largest is 1: the
    modality independent neighbourhood descriptor of Heinrich et al. (2012, equations 4-6). Bands share D, each measured against its own
    noise, and V has a floor, so that speckle on flat ground does not become structure.
    """
    usable = _shrink(valid, SIMILARITY_EDGE_PX)
    distances = np.zeros((len(NEIGHBOURS), *valid.shape), np.float32)
    for band in _fill_invalid(image, valid):
        smooth = ndimage.gaussian_filter(band, SMOOTH_SIGMA_PX, truncate=3)
        ours = np.stack([_compare_patches(smooth, offset) for offset in NEIGHBOURS])
        distances += ours / (_find_level(ours.mean(axis=0), usable) or 1.0)
    variance = distances.mean(axis=0)
    variance = np.maximum(variance, max(VARIANCE_FLOOR * _find_level(variance, usable), TINY))
    values = np.exp(-distances / variance)
    values *= usable / np.maximum(values.max(axis=0), TINY)
    return Features(values.astype(np.float32), usable.astype(np.float32))


def _compare_patches(image: Float, offset: tuple[int, int]) -> Float:
    """Gaussian-weighted squared difference of the patches at each pixel and at `offset` from it, (y, x)."""
    moved = ndimage.shift(image, (-offset[0], -offset[1]), order=0, mode="nearest")
    difference: Float = ndimage.gaussian_filter((image - moved) ** 2, PATCH_SIGMA_PX, truncate=3)
    return difference


def _fill_invalid(image: Float, valid: Bool) -> Float:
    """`image` with each band's median where it is not valid, so that filters stay finite; those pixels are masked later."""
    levels = np.median(image[:, valid], axis=1) if valid.any() else np.zeros(len(image))
    filled: Float = np.where(valid, image, levels[:, None, None]).astype(np.float32)
    return filled


def _shrink(valid: Bool, reach_px: int) -> Bool:
    """Pixels that have no invalid one within `reach_px` rows and columns."""
    shrunk: Bool = ndimage.minimum_filter(valid.astype(np.uint8), size=2 * reach_px + 1, mode="nearest").astype(bool)
    return shrunk


def _find_level(values: Float, usable: Bool) -> float:
    """Median over usable pixels, 0 without one."""
    return float(np.median(values[usable])) if usable.any() else 0.0


DESCRIPTORS: Final[dict[DescriptorName, Callable[[Float, Bool], Features]]] = {
    "orientations": describe_orientations,
    "self-similarity": describe_self_similarity,
}
"""By the name used in settings."""
