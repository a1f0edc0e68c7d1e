"""What a C-band radar sees of the simulated ground: gamma0 in VV and VH, laid down slightly wrong, and speckled.

Enters: a `Ground` and a seeded Generator. Leaves: linear power (VV VH, y, x) float32 and the displacement that was put in.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sereno.pipeline.ground import KINDS, PIXEL_M, Ground
from sereno.pipeline.noise import Image, blur_image

NOISE_FLOOR_DB: Final = -29.0
"""Noise-equivalent gamma0 that is left after its subtraction; Sentinel-1 is specified at -22 dB (Torres et al. 2012)."""
WALL_POWER: Final = (2.2, 0.35)
"""Gamma0 in VV and VH, linear, that the strongest wall adds: corner reflection keeps most of the polarisation."""
TEXTURE_DB: Final = 0.35
"""Variation of backscatter per unit of texture."""
SLOPE_DB: Final = 6.0
"""What terrain flattening leaves: dB per unit of slope towards the radar."""
AFFINE_ERROR: Final = 1e-4
"""Standard deviation of the affine coefficients: 0.08 px at 840 px from the centre."""


class Displacement(NamedTuple):
    """Where a radar image is wrong: content at true (row, col) appears at (row, col) + shift + affine @ ((row, col) - centre)."""

    dy_px: float
    """Shift along the rows at the centre, pixels of 10 m; positive: content lies too far down."""
    dx_px: float
    """Shift along the columns at the centre, pixels of 10 m; positive: content lies too far right."""
    affine: tuple[tuple[float, float], tuple[float, float]]
    """Change of (dy, dx) per pixel of (row, col) away from the centre."""


def draw_displacement(rng: np.random.Generator, max_shift_px: float) -> Displacement:
    """A sub-pixel shift of a quarter to the whole of `max_shift_px`, in any direction, with a small affine part."""
    length, angle = max_shift_px * rng.uniform(0.25, 1), rng.uniform(0, 2 * np.pi)
    spread = AFFINE_ERROR if max_shift_px > 0 else 0.0
    (a, b), (c, d) = rng.normal(0, spread, (2, 2)).round(7).tolist()
    return Displacement(round(float(length * np.sin(angle)), 4), round(float(length * np.cos(angle)), 4), ((a, b), (c, d)))


def compute_backscatter(ground: Ground, *, looks_right_deg: float = 100.0) -> Image:
    """Gamma0 of the ground without speckle, (VV VH, y, x), linear power.

    `looks_right_deg` is the azimuth in which the radar looks: about 100 degrees ascending, 260 descending.
    """
    down, right = np.gradient(ground.height_m, PIXEL_M)
    azimuth = np.radians(looks_right_deg)
    facing = right * np.sin(azimuth) - down * np.cos(azimuth)
    fine_db = TEXTURE_DB * ground.texture + SLOPE_DB * np.clip(facing, -0.5, 0.5)
    factor = np.power(10, fine_db / 10, dtype=np.float32)
    mean_db = np.array([kind.backscatter_db for kind in KINDS])[ground.units.kind] + ground.units.roughness_db[:, None]
    mean = np.power(10, mean_db / 10).astype(np.float32)
    floor = np.float32(10 ** (NOISE_FLOOR_DB / 10))
    channels = [np.take(mean[:, k], ground.unit) * factor + np.float32(WALL_POWER[k]) * ground.wall + floor for k in range(2)]
    return blur_image(np.stack(channels))


def displace_image(power: Image, displacement: Displacement, centre: tuple[float, float]) -> Image:
    """`power` (..., y, x) with its content moved by `displacement`; `centre` is (row, col) of the point where the shift is exact.

    Bilinear on power: its kernel is symmetric about the place asked for, so that it adds no shift of its own.
    """
    forward = np.eye(2) + np.array(displacement.affine)
    backward = np.linalg.inv(forward)
    middle = np.array(centre)
    offset = middle - backward @ (middle + np.array([displacement.dy_px, displacement.dx_px]))
    moved = [ndimage.affine_transform(band, backward, offset, order=1, mode="nearest") for band in power]
    return np.stack(moved).astype(np.float32, copy=False)


def add_speckle(rng: np.random.Generator, power: Image, looks: float) -> Image:
    """`power` times gamma-distributed speckle of mean 1 and variance 1 / `looks` (Goodman 1976), linear power.

    The last bits of the mantissa are dropped, 0.001 dB at most: they are noise that no compression can shorten.
    """
    speckle = rng.standard_gamma(np.float32(looks), power.shape, dtype=np.float32) / np.float32(looks)
    rough = (power * speckle).astype(np.float32)
    return (rough.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)


def make_swath(shape: tuple[int, int], *, left_px: float, right_px: float, slant: float) -> npt.NDArray[np.bool_]:
    """True inside the imaged swath, (y, x): a strip with slanted edges that enter `shape` by so many pixels at the top row."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return (x >= left_px - slant * y) & (x < shape[1] - right_px + slant * (shape[0] - 1 - y))
