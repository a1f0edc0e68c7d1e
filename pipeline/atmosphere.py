"""What stands between the simulated ground and the satellite: sun, clouds, haze, cirrus, shadows, and their classification.

Enters: a seeded Generator, reflectance, the sun. Leaves: observed reflectance and the scene classes of L2A.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from sereno.pipeline.averages import average_blocks
from sereno.pipeline.noise import Image, blur_image, make_noise, smooth_step

CLOUD_TOP: Final = (0.72, 0.72, 0.72, 0.72, 0.73, 0.74, 0.74, 0.74, 0.74, 0.45, 0.48, 0.36)
"""Reflectance of a thick cloud in the order of L2A_BANDS: white, dark in the water-vapour band B09 and where ice and water absorb."""
HAZE: Final = (0.30, 0.28, 0.26, 0.24, 0.23, 0.23, 0.22, 0.22, 0.22, 0.18, 0.14, 0.10)
"""Reflectance that thin cloud tends to as it gets thicker."""
CIRRUS: Final = (0.45, 0.45, 0.45, 0.45, 0.45, 0.45, 0.45, 0.45, 0.45, 0.40, 0.22, 0.20)
"""Reflectance that cirrus tends to as it gets thicker; ice crystals are large, so that it is grey until the short-wave infrared."""
HAZE_EXPONENT: Final = 1.6
"""Fall of the optical thickness of small droplets and haze with wavelength (Angstrom 1929)."""
HAZE_SEEN: Final = 1.4
"""What thin cloud of optical thickness 1 counts in the classification: one that adds 0.05 in the blue is found, a thinner one missed."""
SHADE_BLUE: Final = 0.45
"""Light left in a full shadow at 490 nm: the blue sky still shines there."""
SHADE_NIR: Final = 0.22
"""Light left in a full shadow at 840 nm."""


class Sun(NamedTuple):
    """Where the sun stands."""

    azimuth_deg: float
    """Degrees clockwise from north."""
    elevation_deg: float
    """Degrees above the horizon."""


@dataclass(frozen=True)
class Sky:
    """Everything above the ground in one scene; arrays (y, x) in 0..1 unless said otherwise."""

    thick: Image
    """Opacity of thick clouds."""
    top: Image
    """Brightness of the cloud tops, about 1."""
    haze: Image
    """Optical thickness of thin cloud at 490 nm, 0 upwards."""
    cirrus: Image
    """Optical thickness of cirrus, 0 upwards."""
    shadow: Image
    """Share of direct sunlight that clouds keep from the ground."""

    @property
    def cloud(self) -> Image:
        """Share of the red light that does not come from the ground."""
        haze = self.haze * np.float32((490 / 665) ** HAZE_EXPONENT)
        cloud: Image = 1 - (1 - self.thick) * np.exp(-haze - self.cirrus)
        return cloud


class SkySettings(NamedTuple):
    """How cloudy a sky is."""

    cover: float
    """Share of the ground under thick cloud."""
    blob_px: float
    """Size of the clouds in pixels of 10 m."""
    haze: float
    """Largest optical thickness of thin cloud at 490 nm."""
    cirrus: float
    """Largest optical thickness of cirrus."""
    base_m: float
    """Height of the clouds, metres: with the sun's place it says where shadows fall."""


def compute_sun(time: datetime, longitude_deg: float, latitude_deg: float) -> Sun:
    """Place of the sun at a UTC time; declination after Cooper (1969), no equation of time, good to about four degrees."""
    day = time.timetuple().tm_yday
    declination = np.radians(23.45 * np.sin(2 * np.pi * (284 + day) / 365))
    hour = np.radians(15 * (time.hour + time.minute / 60 - 12) + longitude_deg)
    latitude = np.radians(latitude_deg)
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    return Sun(float(np.degrees(np.arctan2(east, north)) % 360), float(np.degrees(np.arcsin(sine))))


def make_sky(rng: np.random.Generator, shape: tuple[int, int], *, settings: SkySettings, sun: Sun) -> Sky:
    """A new sky over `shape`: fractal clouds with textured tops, haze, streaks of cirrus, and the shadows that they cast.

    Clouds are drawn on a plane that continues across its edges, so that shadows of clouds outside the image fall into it.
    """
    plane = (fft.next_fast_len(shape[0] + 64), fft.next_fast_len(shape[1] + 64))
    shapes = make_noise(rng, plane, scale_px=settings.blob_px, roughness=1.45)
    billows = make_noise(rng, plane, scale_px=12, roughness=1.1)
    edge = np.quantile(shapes[::7, ::7], 1 - np.clip(settings.cover, 0.001, 0.999))
    depth = shapes + np.float32(0.12) * billows - np.float32(edge)
    thick = smooth_step(depth / 0.22 + 0.5) * np.float32(0.98)
    lit = _roll(depth, -2.0, sun)
    top = np.clip(0.86 + 0.16 * np.tanh(1.5 * depth) + 0.9 * np.clip(depth - lit, -0.25, 0.25) + 0.03 * billows, 0.5, 1.25)
    veil = make_noise(rng, plane, scale_px=settings.blob_px * 0.8, roughness=1.6)
    haze = settings.haze * smooth_step(0.5 * (veil - 0.2)) + 0.4 * settings.haze * smooth_step(depth / 0.8 + 0.9)
    streaks = make_noise(rng, plane, scale_px=60, roughness=1.3, stretch=(1.0, 4.0))
    cirrus = settings.cirrus * smooth_step(0.6 * (streaks - 0.7))
    shadow = blur_image(_roll(thick, settings.base_m / 10 / np.tan(np.radians(sun.elevation_deg)), sun))
    rows, columns = shape
    parts = (thick, top, haze, cirrus, shadow)
    return Sky(*(part[:rows, :columns].astype(np.float32) for part in parts))


def _roll(plane: npt.NDArray[Any], distance_px: float, sun: Sun) -> npt.NDArray[Any]:
    """`plane` moved by whole pixels away from the sun: north-up rows run south, so that a southern sun moves content up."""
    azimuth = np.radians(sun.azimuth_deg)
    return np.roll(plane, shadow_offset_px(distance_px, azimuth), axis=(0, 1))


def shadow_offset_px(distance_px: float, azimuth_rad: float) -> tuple[int, int]:
    """Rows and columns by which something `distance_px` long points away from a sun at `azimuth_rad`."""
    return round(distance_px * float(np.cos(azimuth_rad))), round(-distance_px * float(np.sin(azimuth_rad)))


def apply_sky(reflectance: Image, sky: Sky, *, band: int, wavelength_nm: float) -> Image:
    """What the satellite sees of `reflectance` (y, x) in the L2A band at place `band`: shadow, haze, cirrus, thick cloud on top.

    Each layer lets exp(-thickness) of the light below through and adds the rest of its own colour.
    """
    blue = np.clip((840 - wavelength_nm) / (840 - 490), 0, 1)
    left = SHADE_NIR + (SHADE_BLUE - SHADE_NIR) * blue
    seen = reflectance * (1 - np.float32(1 - left) * sky.shadow)
    through = np.exp(-sky.haze * np.float32((490 / wavelength_nm) ** HAZE_EXPONENT))
    seen = seen * through + np.float32(HAZE[band]) * (1 - through)
    through = np.exp(-sky.cirrus * np.float32(1.0 if wavelength_nm < 1000 else 0.6))
    seen = seen * through + np.float32(CIRRUS[band]) * (1 - through)
    seen = seen * (1 - sky.thick) + np.float32(CLOUD_TOP[band]) * sky.top * sky.thick
    result: Image = seen.astype(np.float32, copy=False)
    return result


def classify_scene(rng: np.random.Generator, clear: dict[str, Image], sky: Sky, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Scene classes of L2A at 20 m, imperfect in the known ways: some thin cloud is missed, some bright roofs count as cloud.

    `clear` holds cloud-free reflectance at 10 m of B03, B04 and B08; `valid` (y, x) at 10 m is False outside the swath.
    Codes: 0 nodata, 2 dark, 3 shadow, 4 vegetation, 5 bare, 6 water, 7 unclassified, 8 and 9 cloud, 10 cirrus.
    """
    green, red, nir = (average_blocks(clear[name], 2) for name in ("B03", "B04", "B08"))
    thick, haze, cirrus, shadow = (average_blocks(part, 2) for part in (sky.thick, sky.haze, sky.cirrus, sky.shadow))
    doubt = np.float32(0.08) * make_noise(rng, green.shape, scale_px=6, roughness=1.3)
    cloud = thick + np.float32(HAZE_SEEN) * haze + doubt * (thick + haze > 0.05)
    classes = np.full(green.shape, 5, np.uint8)
    classes[nir - red > 0.35 * (nir + red)] = 4
    classes[(nir < 0.06) & (green < 0.05)] = 2
    classes[(green > nir) & (nir < 0.12)] = 6
    classes[(shadow + doubt > 0.5) & (classes != 6)] = 3
    classes[cirrus + np.minimum(doubt, 0.4 * cirrus) > 0.12] = 10
    classes[cloud > 0.22] = 7
    classes[cloud > 0.34] = 8
    classes[cloud > 0.62] = 9
    classes[(green > 0.19) & (cloud < 0.22)] = 8
    classes[average_blocks(valid, 2) < 1] = 0
    return classes
