"""Simulated clouds laid over a clear image, for those who have no cloudy one: thick and thin cloud, cirrus, and their shadows.

Enters: reflectance in any bands up to 2.2 um, the sun, a seeded Generator. Leaves: the image as it would look under these clouds, and the
truth: how much of each pixel's picture they hide, and how much sunlight they keep from it. Colours are those of real clouds at the top of
the atmosphere, compared in benchmarks/results/masks.md; beside real ones, edges of clouds and shadows are smoother and rounder.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import gaussian_filter, uniform_filter

from sereno.pipeline.atmosphere import SkySettings, Sun, shadow_offset_px
from sereno.pipeline.bands import SENTINEL2_BANDS
from sereno.pipeline.errors import DataError
from sereno.pipeline.noise import Image, make_noise, smooth_step

WORLD_PIXEL_M: Final = 10.0
"""Pixel of the simulated world, metres."""
MAX_WAVELENGTH_NM: Final = 2300.0
"""Colours of clouds are known up to here."""
MIN_WAVELENGTH_NM: Final = 390.0
"""And from here."""
RED_NM: Final = 660.0
"""Where the truth is stated: red lies in the middle of what cloud detectors look at."""
CLOUD: Final = (0.71, 0.71, 0.69, 0.73, 0.71, 0.77, 0.85, 0.77, 0.89, 0.15, 0.002, 0.76, 0.60)
"""Reflectance of thick low cloud seen through the gases above it, not through scattering air, in the order of SENTINEL2_BANDS. Measured on
the cumulus of the SEN12MS-CR triplet and the overcast of Slovenia, 2015-08-20, less what clean air adds and what shines through from
the ground: ozone takes some of the visible, vapour of B05, B06, B08, most of B09 and all of B10."""
ICE: Final = (0.71, 0.71, 0.69, 0.73, 0.71, 0.77, 0.85, 0.79, 0.89, 0.60, 0.50, 0.50, 0.45)
"""The same of thick ice cloud above the vapour, darker where ice absorbs."""
WET_NM: Final = {945.1: 25.0, 1373.5: 40.0}
"""Middle and half width of the bands of water vapour, B09 and B10: their colours say nothing of other wavelengths, nor those of them."""
SHADE_NM: Final = (490.0, 704.0, 740.0, 783.0, 865.0, 1610.0, 2200.0)
"""Wavelengths at which the light left in a full shadow is known, ..."""
SHADE: Final = (0.48, 0.38, 0.36, 0.35, 0.34, 0.26, 0.22)
"""... and the share of it: measured from red edge to SWIR in shadows over two sites in Flanders (Sentinel-2 L2A, class 3 against the
nearest clear date, eleven dates), drawn on into the blue, where more of the sky still shines."""
REFLECTING: Final = 0.075
"""Share of light that a cloud of optical thickness 1 turns back, (1 - g) / 2 with g = 0.85 for droplets (two streams: Bohren 1987)."""
HIDING: Final = 0.55
"""Fall of the ground's picture with optical thickness: what droplets scatter by less than a few degrees still belongs to it. The veil over
Slovenia of 2015-07-31 left 0.3 of it and added 0.09 of grey."""
SHADING: Final = 0.35
"""Fall of the sunlight that reaches the ground as a beam, likewise, more of it being scattered on forward."""
BRIGHTEST: Final = 0.97
"""No cloud turns back more than this."""
CLOUD_ROUGHNESS: Final = 0.9
"""Exponent of `make_noise` for clouds: power falls with the wave number to 3.2; that of liquid water in clouds to 2.7 (Davis 1996)."""
VEIL_ROUGHNESS: Final = 1.3
"""The same of thin cloud, which is smoother."""
EDGE: Final = 0.4
"""Clouds begin so many standard deviations outside the line that encloses `SkySettings.cover` of the ground."""
ROOM_PX: Final = 64
"""Clouds are drawn on a plane that continues across its edges: it is so much longer, so that the two sides of an image differ."""
QUANTILE_STEP: Final = 3
"""Every so many rows and columns are looked at to find the line that encloses the cover."""
GROWTH: Final = 15.0
"""Optical thickness of clouds one standard deviation inside where they begin, ..."""
STEEPNESS: Final = 1.7
"""... and the power with which it grows from there."""
VEIL_BEGIN, VEIL_RISE = -0.6, 0.35
"""Thin cloud begins where its field is so many standard deviations from the mean, and grows by this share of its most with each."""
ICE_BEGIN, ICE_RISE = -0.3, 0.4
"""The same of cirrus."""
STREAK_PX: Final = 60
"""Width of the streaks of cirrus, pixels, whatever the size of a pixel ..."""
STREAK_STRETCH: Final = (1.0, 4.0)
"""... and by how much longer they are along y and x."""
SLOPE_PX: Final = 2.0
"""Tops of clouds are compared with those so far towards the sun."""
RELIEF: Final = 0.15
"""Sides of clouds towards the sun are at most so much brighter."""
PENUMBRA: Final = 0.0093
"""Width of the edge of a shadow over the way from the cloud: the diameter of the sun, radians."""
GLOW_M: Final = 400.0
"""Side of the ground around whose mean light shines through clouds, metres."""


class Air(NamedTuple):
    """What clean air between ground and satellite does to one band."""

    through: float
    """Share of the ground's light that it lets through."""
    path: float
    """Reflectance that it adds."""


class Clouds(NamedTuple):
    """What hangs over an image; arrays (y, x)."""

    water: Image
    """Optical thickness of clouds of droplets, thin and thick."""
    ice: Image
    """Optical thickness of cirrus."""
    relief: Image
    """Brightness of clouds of droplets by the slope of their tops, about 1."""
    shadow: Image
    """Share of direct sunlight that they keep from the ground, 0..1, under clouds too."""


class Overlay(NamedTuple):
    """An image under simulated clouds, and what is true of it."""

    image: npt.NDArray[np.float32]
    """(band, y, x) reflectance of the kind that entered."""
    cloud: Image
    """(y, x) share of the ground's picture at RED_NM that is lost, 0..1."""
    shadow: Image
    """(y, x) share of direct sunlight that clouds keep from the ground, 0..1, under clouds too."""


def draw_clouds(rng: np.random.Generator, shape: tuple[int, int], *, settings: SkySettings, sun: Sun, pixel_m: float) -> Clouds:
    """New clouds over `shape` pixels of `pixel_m` metres, with shadows as far from them as height and sun make them.

    Optical thickness is a power of a fractal field, so that clouds are ragged and fade at their edges as real ones do;
    `settings.cover` of the ground lies under cloud that hides four fifths of it and more, and thin cloud of up to `settings.haze` besides.
    `settings.blob_px` counts in pixels of the image. Clouds outside the image cast shadows into it.

    Raises:
        DataError: the sun is not above the horizon, or a pixel has no size.
    """
    if not 0 < sun.elevation_deg <= 90:
        raise DataError(f"the sun is {sun.elevation_deg} degrees above the horizon: clouds are laid over images with the sun at 0 to 90")
    if not pixel_m > 0:
        raise DataError(f"pixels of {pixel_m} m have no size: clouds are laid over images with pixels of known size")
    way_px = settings.base_m / pixel_m / math.sin(math.radians(sun.elevation_deg))
    step = shadow_offset_px(way_px * math.cos(math.radians(sun.elevation_deg)), math.radians(sun.azimuth_deg))
    # The plane also holds the clouds towards the sun that shade the image from outside.
    rows, columns = (fft.next_fast_len(side + abs(move) + ROOM_PX) for side, move in zip(shape, step, strict=True))
    water, ice = _draw_water(rng, (rows, columns), settings), _draw_ice(rng, (rows, columns), settings)
    tops = _turn_back(water)
    slope = tops - np.roll(tops, shadow_offset_px(-SLOPE_PX, math.radians(sun.azimuth_deg)), axis=(0, 1))
    relief = 1 + np.clip(slope, -RELIEF, RELIEF)
    shadow = np.roll(1 - np.exp(np.float32(-SHADING) * (water + ice)), step, axis=(0, 1))
    shadow = gaussian_filter(shadow, max(way_px * PENUMBRA / 4, 0.5))
    image = tuple(slice(max(move, 0), max(move, 0) + side) for move, side in zip(step, shape, strict=True))
    return Clouds(*(part[image].astype(np.float32) for part in (water, ice, relief, shadow)))


def _draw_water(rng: np.random.Generator, plane: tuple[int, int], settings: SkySettings) -> Image:
    """Optical thickness of clouds of droplets over a `plane` of rows and columns: thick ones, and thin cloud besides."""
    field = make_noise(rng, plane, scale_px=settings.blob_px, roughness=CLOUD_ROUGHNESS)
    begin = float(np.quantile(field[::QUANTILE_STEP, ::QUANTILE_STEP], 1 - np.clip(settings.cover, 0.001, 0.999))) - EDGE
    depth = np.maximum(field - np.float32(begin if settings.cover else np.inf), 0)
    veil = make_noise(rng, plane, scale_px=settings.blob_px, roughness=VEIL_ROUGHNESS)
    thin = np.float32(settings.haze) * smooth_step(VEIL_RISE * (veil - VEIL_BEGIN))
    water: Image = np.float32(GROWTH) * depth ** np.float32(STEEPNESS) + thin
    return water


def _draw_ice(rng: np.random.Generator, plane: tuple[int, int], settings: SkySettings) -> Image:
    """Optical thickness of streaks of cirrus over a `plane` of rows and columns."""
    streaks = make_noise(rng, plane, scale_px=STREAK_PX, roughness=VEIL_ROUGHNESS, stretch=STREAK_STRETCH)
    ice: Image = np.float32(settings.cirrus) * smooth_step(ICE_RISE * (streaks - ICE_BEGIN))
    return ice


def lay_clouds(
    reflectance: npt.NDArray[np.floating[Any]],
    clouds: Clouds,
    *,
    wavelengths_nm: tuple[float, ...],
    sun: Sun | None,
    pixel_m: float = WORLD_PIXEL_M,
) -> Overlay:
    """`reflectance` (band, y, x), clear, as it looks under `clouds` (y, x); at the top of the atmosphere, or without `sun` at the surface.

    The light of clean air stays where it is: what it adds is taken off, shadow and clouds change what comes from the ground, and the air
    is put back. So a shadow keeps the blue of the air, which is what makes real ones hard to tell from water. Reflectance of the surface
    has no such light. A cloud that turns back the share r of the light, x / (1 + x) for x REFLECTING times its optical thickness, has the
    colour C r, and of the ground G one sees (1 - r)^2 G / (1 - r G) (Bohren 1987; two layers, Stokes 1862), the less of it as a picture
    and the more as the mean light around the thicker the cloud: so thick clouds are brighter in NIR over plants. Clouds lie below the air.
    Pixels that are 0 in all bands count as empty.

    Raises:
        DataError: bands and wavelengths, or image and clouds, do not fit, or a wavelength has no known colour of cloud.
    """
    if reflectance.ndim != 3 or len(reflectance) != len(wavelengths_nm) or reflectance.shape[1:] != clouds.water.shape:
        raise DataError(
            f"an image of shape {reflectance.shape} cannot be laid under clouds of shape {clouds.water.shape} in {len(wavelengths_nm)} "
            "bands: give (band, y, x), a wavelength for each band, and clouds of the same (y, x)"
        )
    unknown = [length for length in wavelengths_nm if not MIN_WAVELENGTH_NM < length < MAX_WAVELENGTH_NM]
    if unknown:
        raise DataError(f"wavelengths {unknown} nm: colours of clouds are known from {MIN_WAVELENGTH_NM:.0f} to {MAX_WAVELENGTH_NM:.0f} nm")
    side = max(round(GLOW_M / pixel_m), 1)
    known = np.maximum(uniform_filter(reflectance.any(axis=0).astype(np.float32), side), np.float32(1e-3))
    image = np.empty(reflectance.shape, np.float32)
    for place, length in enumerate(wavelengths_nm):
        air = Air(1.0, 0.0) if sun is None else compute_air(length, sun.elevation_deg)
        path = np.minimum(reflectance[place], np.float32(air.path))  # a pixel darker than clean air is black ground under less of it
        ground = (reflectance[place] - path).astype(np.float32) / np.float32(air.through)
        around = uniform_filter(ground, side) / known
        image[place] = np.float32(air.through) * _cover_band(ground, around, clouds, wavelength_nm=length) + path
    lost = 1 - np.exp(np.float32(-HIDING) * (clouds.water + clouds.ice))
    return Overlay(image, lost.astype(np.float32), clouds.shadow)


def _cover_band(ground: Image, around: Image, clouds: Clouds, *, wavelength_nm: float) -> Image:
    """One band (y, x) of the ground seen through clouds without air; `around` is its mean near each pixel, taken as lit."""
    seen = ground * (1 - np.float32(1 - _find_shade(wavelength_nm)) * clouds.shadow)
    mean = np.minimum(around, np.float32(BRIGHTEST))
    for thickness, colour, relief in ((clouds.water, CLOUD, clouds.relief), (clouds.ice, ICE, np.float32(1))):
        turned, picture = np.minimum(_turn_back(thickness) * relief, np.float32(BRIGHTEST)), np.exp(np.float32(-HIDING) * thickness)
        below = seen * picture + mean * (1 - picture)
        seen = np.float32(_find_colour(colour, wavelength_nm)) * turned + (1 - turned) ** 2 * below / (1 - turned * mean)
    result: Image = seen.astype(np.float32)
    return result


def _turn_back(thickness: Image) -> Image:
    """Share of light that a cloud of that optical thickness turns back."""
    weak = np.float32(REFLECTING) * thickness
    share: Image = weak / (1 + weak)
    return share


def compute_air(wavelength_nm: float, elevation_deg: float) -> Air:
    """What clean air does, seen from above under a sun at `elevation_deg`.

    Scattering by molecules only, and once (optical thickness: Hansen and Travis 1974, eq. 2.30); half of what is scattered goes on forward.
    """
    micron = wavelength_nm / 1000
    thickness = 0.008569 * micron**-4 * (1 + 0.0113 * micron**-2 + 0.00013 * micron**-4)
    sine = float(np.sin(np.radians(elevation_deg)))
    path = thickness * 0.75 * (1 + sine**2) / (4 * sine)
    return Air(float(np.exp(-thickness / 2 * (1 + 1 / sine))), path)


def _find_shade(wavelength_nm: float) -> float:
    """Light left in a full shadow."""
    return float(np.interp(wavelength_nm, SHADE_NM, SHADE))


def _find_colour(colour: tuple[float, ...], wavelength_nm: float) -> float:
    """`colour`, given for SENTINEL2_BANDS, at any wavelength: that of a band of vapour inside it, else in straight lines past those."""
    known = {band.wavelength_nm: value for band, value in zip(SENTINEL2_BANDS, colour, strict=True)}
    for middle, half in WET_NM.items():
        if abs(wavelength_nm - middle) < half:
            return known[middle]
    dry = [length for length in known if length not in WET_NM]
    return float(np.interp(wavelength_nm, dry, [known[length] for length in dry]))
