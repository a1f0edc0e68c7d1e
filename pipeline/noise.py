"""Smooth random fields and small image filters from which the simulated world is made.

Enters: a seeded Generator and a shape. Leaves: float32 arrays (y, x); fields wrap around at their edges.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import fft

Image = npt.NDArray[np.float32]
"""One band, (y, x)."""

SENSOR_NOISE: Final = (0.0012, 0.004)
"""Standard deviation of the noise of optical sensors: reflectance, and share of the signal (signal-to-noise of MSI: Drusch et al. 2012)."""


def make_noise(
    rng: np.random.Generator, shape: tuple[int, int], *, scale_px: float, roughness: float = 1.5, stretch: tuple[float, float] = (1.0, 1.0)
) -> Image:
    """A Gaussian field of zero mean and unit variance, (y, x), that continues across opposite edges.

    `scale_px` is the length beyond which values no longer resemble each other; `roughness` is the exponent of the spectral
    amplitude (1 rough and fractal, 4 smooth); `stretch` lengthens the field along y and x.
    Spectrum of the Matérn family (Whittle 1954, "On stationary processes in the plane"), drawn directly in the Fourier plane.
    """
    rows, columns = shape
    ky = fft.fftfreq(rows).astype(np.float32)[:, None] * (2 * np.pi * scale_px * stretch[0])
    kx = fft.rfftfreq(columns).astype(np.float32)[None, :] * (2 * np.pi * scale_px * stretch[1])
    amplitude = (1 + ky**2 + kx**2) ** np.float32(-roughness)
    amplitude[0, 0] = 0
    spectrum = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field: Image = fft.irfft2(spectrum * amplitude, s=shape)
    return field / max(float(field.std()), 1e-12)


def draw_sensor_noise(rng: np.random.Generator, image: Image) -> Image:
    """Noise of an optical sensor, of the shape of `image` in reflectance."""
    return (SENSOR_NOISE[0] + SENSOR_NOISE[1] * image) * rng.standard_normal(image.shape, dtype=np.float32)


def blur_image(image: npt.NDArray[Any]) -> Image:
    """`image` (..., y, x) smoothed with weights 1, 2, 1 along both axes: a point spread of about 0.7 px, edges repeated."""
    result = image.astype(np.float32, copy=False)
    for axis in (-1, -2):
        moved = np.moveaxis(result, axis, -1)
        smooth = moved * np.float32(0.5)
        smooth[..., 1:] += np.float32(0.25) * moved[..., :-1]
        smooth[..., :-1] += np.float32(0.25) * moved[..., 1:]
        smooth[..., 0] += np.float32(0.25) * moved[..., 0]
        smooth[..., -1] += np.float32(0.25) * moved[..., -1]
        result = np.moveaxis(smooth, -1, axis)
    return result


def smooth_step(value: npt.NDArray[Any]) -> Image:
    """0 below 0, 1 above 1, and a smooth rise (3 t^2 - 2 t^3) between them."""
    t = np.clip(value, 0, 1).astype(np.float32, copy=False)
    rise: Image = t * t * (3 - 2 * t)
    return rise
