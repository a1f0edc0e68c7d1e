"""What Gaofen-6 sees of the simulated ground from above the atmosphere, and how far off its coefficients lie.

Enters: a `Ground`, the sun, a seeded Generator. Leaves: reflectance at the top of the atmosphere in the camera's bands, with and without
clouds, on the grid of the ground; `products` makes images of it.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from scipy.ndimage import map_coordinates

from sereno.pipeline.atmosphere import SkySettings, Sun
from sereno.pipeline.bands import GAOFEN_BANDS, GAOFEN_PMS_BANDS, L2A_BANDS, SENTINEL2_BANDS, OpticalBand
from sereno.pipeline.ground import PIXEL_M, Ground, compute_shading, compute_spectra
from sereno.pipeline.noise import Image, blur_image, draw_sensor_noise
from sereno.pipeline.overlay import Overlay, compute_air, draw_clouds, lay_clouds
from sereno.pipeline.sun import compute_sun

CAMERA_BANDS: Final = {"PMS": GAOFEN_PMS_BANDS, "WFV": GAOFEN_BANDS}
"""Bands of each camera."""
WAVELENGTHS_NM: Final = tuple(band.wavelength_nm for band in SENTINEL2_BANDS if band.name in L2A_BANDS)
"""Where the spectra of the ground are known."""


class Scenery(NamedTuple):
    """The ground on one day, without clouds."""

    bands: tuple[OpticalBand, ...]
    """Bands of the camera."""
    sun: Sun
    """Where the sun stands."""
    reflectance: Image
    """(band, y, x) at the top of the atmosphere."""


def draw_error(rng: np.random.Generator, limits_m: tuple[float, float]) -> tuple[float, float]:
    """East and north by which coefficients err: a distance within `limits_m`, in any direction, to a tenth of a metre."""
    length, angle = rng.uniform(*limits_m), rng.uniform(0, 2 * math.pi)
    return round(length * math.sin(angle), 1), round(length * math.cos(angle), 1)


def make_scenery(ground: Ground, camera: str, moment: datetime, place: tuple[float, float]) -> Scenery:
    """The ground seen through clean air by `camera` (`PMS` or `WFV`) at `moment` (UTC); `place` is its longitude and latitude."""
    zenith, azimuth = compute_sun(moment, *place)
    sun, bands = Sun(azimuth, 90 - zenith), CAMERA_BANDS[camera]
    lengths = tuple(band.wavelength_nm for band in bands)
    mean, contrast = (_take_bands(part, lengths) for part in compute_spectra(ground.units, moment.timetuple().tm_yday))
    shading = compute_shading(ground.height_m, sun.azimuth_deg, sun.elevation_deg)
    layers = []
    for index, length in enumerate(lengths):
        air = compute_air(length, sun.elevation_deg)
        surface = (mean[ground.unit, index] + contrast[ground.unit, index] * ground.texture) * shading
        layers.append(np.float32(air.path) + np.float32(air.through) * blur_image(surface))
    return Scenery(bands, sun, np.stack(layers))


def _take_bands(spectra: Image, wavelengths_nm: tuple[float, ...]) -> Image:
    """Spectra (unit, 12) of L2A_BANDS at other wavelengths, (unit, n); between known ones they change in straight lines."""
    weights = np.stack([np.interp(wavelengths_nm, WAVELENGTHS_NM, row) for row in np.eye(len(WAVELENGTHS_NM))])
    taken: Image = (spectra @ weights).astype(np.float32)
    return taken


def cover_scenery(rng: np.random.Generator, scenery: Scenery, settings: SkySettings) -> Overlay:
    """The scenery under a new sky, with the noise of the camera, and the truth about the sky."""
    shape = (scenery.reflectance.shape[1], scenery.reflectance.shape[2])
    sky = draw_clouds(rng, shape, settings=settings, sun=scenery.sun, pixel_m=PIXEL_M)
    lengths = tuple(band.wavelength_nm for band in scenery.bands)
    overlay = lay_clouds(scenery.reflectance, sky, wavelengths_nm=lengths, sun=scenery.sun)
    return overlay._replace(image=overlay.image + draw_sensor_noise(rng, overlay.image))


def sample_layers(layers: npt.NDArray[Any], source: GeoBox, target: GeoBox) -> Image:
    """`layers` (n, y, x) on `source` at the centres of `target`, of the same CRS and inside it: (n, row, column), bilinear."""
    affine = ~source.transform * target.transform
    rows = affine.e * (np.arange(target.shape.y) + 0.5) + affine.f - 0.5
    columns = affine.a * (np.arange(target.shape.x) + 0.5) + affine.c - 0.5
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([map_coordinates(layer.astype(np.float32, copy=False), places, np.float32, order=1) for layer in layers])
