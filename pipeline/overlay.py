"""Made-up clouds laid over a clear image, for those who have no cloudy one: thick and thin cloud, cirrus, and their shadows.

Enters: reflectance at the top of the atmosphere in any bands up to 2.2 um, the sun, a seeded Generator. Leaves: the image as it would look
under these clouds, and the truth: how much of each pixel's light they hide, and how much sunlight they keep from it. Beside a real cloudy
image the edges of clouds and shadows are smoother and rounder.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.atmosphere import CIRRUS, CLOUD_TOP, HAZE, HAZE_EXPONENT, SHADE_BLUE, SHADE_NIR, Sky, SkySettings, Sun, make_sky
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.errors import DataError
from sereno.pipeline.noise import Image

WORLD_PIXEL_M: Final = 10.0
"""Pixels that `make_sky` counts the height of clouds in, metres."""
MAX_WAVELENGTH_NM: Final = 2300.0
"""Colours of clouds are known up to here."""
RED_NM: Final = 660.0
"""Where the truth is stated: red lies in the middle of what cloud detectors look at."""
KNOWN_NM: Final = tuple(band.wavelength_nm for band in SENTINEL2_BANDS if band.name in L2A_BANDS and band.name != "B09")
"""Wavelengths at which the colours of clouds are taken; between them they change in straight lines. B09 lies in a band of water vapour."""


class Air(NamedTuple):
    """What clean air between ground and satellite does to one band."""

    through: float
    """Share of the ground's light that it lets through."""
    path: float
    """Reflectance that it adds."""


class Overlay(NamedTuple):
    """An image under made-up clouds, and what is true of it."""

    image: npt.NDArray[np.float32]
    """(band, y, x) reflectance at the top of the atmosphere."""
    cloud: Image
    """(y, x) share of the light at RED_NM that does not come from the ground, 0..1."""
    shadow: Image
    """(y, x) share of direct sunlight that clouds keep from the ground, 0..1, under clouds too."""


def draw_clouds(rng: np.random.Generator, shape: tuple[int, int], *, settings: SkySettings, sun: Sun, pixel_m: float) -> Sky:
    """A new sky over `shape` pixels of `pixel_m` metres, with shadows as far from their clouds as height and sun make them.

    `settings.blob_px` counts in pixels of the image.

    Raises:
        DataError: the sun is not above the horizon, or a pixel has no size.
    """
    if not 0 < sun.elevation_deg <= 90:
        raise DataError(f"the sun is {sun.elevation_deg} degrees above the horizon: clouds are laid over images with the sun at 0 to 90")
    if not pixel_m > 0:
        raise DataError(f"pixels of {pixel_m} m have no size: clouds are laid over images with pixels of known size")
    return make_sky(rng, shape, settings=settings._replace(base_m=settings.base_m * WORLD_PIXEL_M / pixel_m), sun=sun)


def lay_clouds(reflectance: npt.NDArray[np.floating[Any]], sky: Sky, *, wavelengths_nm: tuple[float, ...], sun: Sun) -> Overlay:
    """`reflectance` (band, y, x), clear and at the top of the atmosphere, as it looks under `sky` (y, x).

    The light of clean air stays where it is: what it adds is taken off, shadow, haze, cirrus and thick cloud change what comes from the
    ground, each layer by the law of the simulated world (`atmosphere.apply_sky`), and the air is put back. So a shadow keeps the blue of
    the air, which is what makes real ones hard to tell from water. Small droplets scatter less with wavelength (Angstrom 1929); thick
    cloud is grey and darker where ice and water absorb. Clouds lie below the air; light between clouds and ground is left out.

    Raises:
        DataError: bands and wavelengths, or image and sky, do not fit, or a wavelength has no known colour of cloud.
    """
    if reflectance.ndim != 3 or len(reflectance) != len(wavelengths_nm) or reflectance.shape[1:] != sky.thick.shape:
        raise DataError(
            f"an image of shape {reflectance.shape} cannot be laid under a sky of shape {sky.thick.shape} in {len(wavelengths_nm)} bands: "
            "give (band, y, x), a wavelength for each band, and a sky of the same (y, x)"
        )
    unknown = [length for length in wavelengths_nm if not KNOWN_NM[0] - 50 < length < MAX_WAVELENGTH_NM]
    if unknown:
        raise DataError(f"wavelengths {unknown} nm: colours of clouds are known from {KNOWN_NM[0] - 50:.0f} to {MAX_WAVELENGTH_NM:.0f} nm")
    image = np.stack([_cover_band(band, sky, length, sun) for band, length in zip(reflectance, wavelengths_nm, strict=True)])
    through = (1 - sky.thick) * np.exp(-_thin(sky.haze, RED_NM) - sky.cirrus)
    return Overlay(image, (1 - through).astype(np.float32), sky.shadow)


def _cover_band(band: npt.NDArray[np.floating[Any]], sky: Sky, wavelength_nm: float, sun: Sun) -> Image:
    """One band (y, x) under the sky. A pixel that is darker than clean air is taken for black ground under less air."""
    air = compute_air(wavelength_nm, sun.elevation_deg)
    path = np.minimum(band, np.float32(air.path)).astype(np.float32)
    seen = (band - path) * (1 - np.float32(1 - _find_shade(wavelength_nm)) * sky.shadow)
    through = np.exp(-_thin(sky.haze, wavelength_nm))
    gain = np.float32(air.through)
    seen = seen * through + gain * np.float32(_find_colour(HAZE, wavelength_nm)) * (1 - through)
    through = np.exp(-sky.cirrus * np.float32(1.0 if wavelength_nm < 1000 else 0.6))
    seen = seen * through + gain * np.float32(_find_colour(CIRRUS, wavelength_nm)) * (1 - through)
    seen = seen * (1 - sky.thick) + gain * np.float32(_find_colour(CLOUD_TOP, wavelength_nm)) * sky.top * sky.thick
    result: Image = (seen + path).astype(np.float32)
    return result


def compute_air(wavelength_nm: float, elevation_deg: float) -> Air:
    """What clean air does, seen from above under a sun at `elevation_deg`.

    Scattering by molecules only, and once (optical thickness: Hansen and Travis 1974, eq. 2.30); half of what is scattered goes on forward.
    """
    micron = wavelength_nm / 1000
    thickness = 0.008569 * micron**-4 * (1 + 0.0113 * micron**-2 + 0.00013 * micron**-4)
    sine = float(np.sin(np.radians(elevation_deg)))
    path = thickness * 0.75 * (1 + sine**2) / (4 * sine)
    return Air(float(np.exp(-thickness / 2 * (1 + 1 / sine))), path)


def _thin(haze: Image, wavelength_nm: float) -> Image:
    """Optical thickness of haze at a wavelength, from that at 490 nm."""
    thickness: Image = haze * np.float32((490 / wavelength_nm) ** HAZE_EXPONENT)
    return thickness


def _find_shade(wavelength_nm: float) -> float:
    """Light left in a full shadow."""
    blue = float(np.clip((840 - wavelength_nm) / (840 - 490), 0, 1))
    return SHADE_NIR + (SHADE_BLUE - SHADE_NIR) * blue


def _find_colour(colour: tuple[float, ...], wavelength_nm: float) -> float:
    """`colour`, given for L2A_BANDS, at any wavelength."""
    known = [value for name, value in zip(L2A_BANDS, colour, strict=True) if name != "B09"]
    return float(np.interp(wavelength_nm, KNOWN_NM, known))
