"""Speckle filters: linear power and its validity in, smoother power out.

Each works on power, since speckle multiplies it, and leaves pixels that are not valid out of every window sum: they neither darken their
neighbours nor become valid. The window's statistics are those of the valid pixels in it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import convolve, uniform_filter

from sereno.pipeline.config import SpeckleSettings
from sereno.pipeline.scene import Bool2d

Float = npt.NDArray[np.float64]
Power = npt.NDArray[np.float32]

SQUARES: Final = 3
"""The window of the refined filter is divided into so many squares along each side (Lee 1981: nine sub-windows)."""
STRIP_ROWS: Final = 1024
"""Rows that are filtered at a time, so that the sums of a whole scene never stand in memory."""
DIRECTIONS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns of a step across the edges that the refined filter knows: upright, level and the two diagonals."""
TINY: Final = 1e-9
"""Smallest denominator, so that empty windows divide by something."""


class Moments(NamedTuple):
    """What a window holds."""

    mean: Float
    """Mean power of its valid pixels; 0 where there are none."""
    variance: Float
    """Their variance."""


def reduce_speckle(power: npt.NDArray[np.floating[Any]], valid: Bool2d, settings: SpeckleSettings) -> Power:
    """Filtered power: (y, x) or (band, y, x) -> the same shape, float32; where `valid` (y, x) is False it is 0.

    With `method: none` valid power is returned as it is. Each band is filtered on its own.
    """
    if power.ndim == 3:
        return np.stack([reduce_speckle(band, valid, settings) for band in power])
    filtered, halo = np.zeros(power.shape, np.float32), settings.window_px
    for first in range(0, len(power), STRIP_ROWS):
        last, top = min(first + STRIP_ROWS, len(power)), max(first - halo, 0)
        known = valid[top : last + halo]
        strip = _filter(np.where(known, power[top : last + halo], 0.0).astype(np.float64), known, settings)
        filtered[first:last] = np.where(valid[first:last], strip[first - top : last - top], 0.0)
    return filtered


def _filter(power: Float, valid: Bool2d, settings: SpeckleSettings) -> Float:
    window_px, looks = settings.window_px, settings.looks
    if settings.method == "none":
        return power
    if settings.method == "boxcar":
        return _measure(power, valid, window_px).mean
    if settings.method == "lee":
        return _shrink(power, _measure(power, valid, window_px), 1 / looks)
    if settings.method == "refined-lee":
        return _shrink(power, _measure_along_edges(power, valid, window_px), 1 / looks)
    return _estimate_gamma_map(power, _measure(power, valid, window_px), looks)


def describe_filter(settings: SpeckleSettings) -> str | None:
    """The filter in words for provenance; None if there is none."""
    if settings.method == "none":
        return None
    looks = "" if settings.method == "boxcar" else f", {settings.looks:g} looks"
    return f"{settings.method}, window {settings.window_px} px{looks}, in power"


def _measure(power: Float, valid: Bool2d, window_px: int) -> Moments:
    """Mean and variance of the valid pixels in a square window; pixels beyond the edge count as not valid."""
    share, first, second = (_average(layer, window_px) for layer in (valid.astype(np.float64), power, power**2))
    return _to_moments(share, first, second)


def _average(layer: Float, window_px: int) -> Float:
    averaged: Float = uniform_filter(layer, window_px, mode="constant")
    return averaged


def _to_moments(share: Float, first: Float, second: Float) -> Moments:
    share = np.maximum(share, TINY)
    mean = first / share
    return Moments(mean, np.maximum(second / share - mean**2, 0.0))


def _shrink(power: Float, moments: Moments, speckle: float) -> Float:
    """Power drawn to its mean, m + k (I - m) with k = (1 - Cu^2 / C^2) / (1 + Cu^2) (Lee 1980); `speckle` is Cu^2."""
    mean, variance = moments
    signal = np.maximum((variance - mean**2 * speckle) / (1 + speckle), 0.0)
    shrunk: Float = mean + (power - mean) * np.minimum(signal / np.maximum(variance, TINY * np.maximum(mean, TINY) ** 2), 1.0)
    return shrunk


def _measure_along_edges(power: Float, valid: Bool2d, window_px: int) -> Moments:
    """Mean and variance of the half window that lies on the pixel's own side of the strongest edge (Lee 1981).

    The means of nine squares of the window are compared across four directions, three on either side (Prewitt's masks); of the two halves
    the one whose squares are nearer to the middle one is taken.
    """
    side = window_px // SQUARES | 1  # odd, so that a square has a middle: 3 for a window of 7, as Lee has it
    squares = _measure(power, valid, side).mean
    step, halves = (window_px - side) // 2, _half_windows(window_px)
    means = {(r, c): _shift(squares, r * step, c * step) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    best, chosen = np.full(power.shape, -1.0), np.zeros(power.shape, np.intp)
    for number, (rows, columns) in enumerate(DIRECTIONS):
        ahead = [place for place in means if rows * place[0] + columns * place[1] > 0]
        after, before = (sum(means[sign * r, sign * c] for r, c in ahead) / SQUARES for sign in (1, -1))
        edge = np.abs(after - before)
        nearer = np.abs(before - squares) < np.abs(after - squares)
        stronger = edge > best
        best = np.where(stronger, edge, best)
        chosen = np.where(stronger, 2 * number + nearer, chosen)
    layers = (valid.astype(np.float64), power, power**2)
    share, first, second = (np.zeros(power.shape) for _ in layers)
    for number, half in enumerate(halves):
        here = chosen == number
        if here.any():
            for total, layer in zip((share, first, second), layers, strict=True):
                total[here] = convolve(layer, half, mode="constant")[here]
    return _to_moments(share, first, second)


def _half_windows(window_px: int) -> list[Float]:
    """Kernels of the two halves for each direction of `_measure_along_edges`: towards positive offsets, then towards negative ones."""
    rows, columns = np.indices((window_px, window_px)) - window_px // 2
    sides = [down * rows + across * columns for down, across in DIRECTIONS]
    halves = [(sign * side >= 0).astype(np.float64) for side in sides for sign in (1, -1)]
    # scipy convolves, so the kernel is turned by half a turn.
    return [half[::-1, ::-1] / half.size for half in halves]


def _shift(layer: Float, rows: int, columns: int) -> Float:
    """The value at (y + rows, x + columns) for each pixel, repeated from the edge beyond it."""
    height, width = layer.shape
    y, x = np.clip(np.arange(height) + rows, 0, height - 1), np.clip(np.arange(width) + columns, 0, width - 1)
    return layer[np.ix_(y, x)]


def _estimate_gamma_map(power: Float, moments: Moments, looks: float) -> Float:
    """The most probable backscatter if it and its speckle are gamma distributed (Lopes et al. 1993).

    With alpha = (1 + Cu^2) / (C^2 - Cu^2) it is the positive root of alpha x^2 + (L + 1 - alpha) m x - L m I = 0. Windows no rougher than
    speckle (C <= Cu) give their mean, those rougher than sqrt(2) Cu hold a target and stay as they are.
    """
    mean, variance = moments
    safe_mean = np.maximum(mean, TINY)
    rough, speckle = variance / safe_mean**2, 1 / looks
    alpha = (1 + speckle) / np.maximum(rough - speckle, TINY)
    linear = (alpha - looks - 1) * mean
    root = (linear + np.sqrt(linear**2 + 4 * alpha * looks * mean * power)) / (2 * alpha)
    estimated: Float = np.where(rough <= speckle, mean, np.where(rough >= 2 * speckle, power, root))
    return estimated
