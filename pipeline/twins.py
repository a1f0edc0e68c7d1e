"""Two sensors over one ground, fine and coarse: what Landsat 8/9 and MODIS would see of it, in their own numbers and quality bits.

Enters: reflectance of the simulated ground at 10 m, its sky, and where its pixels lie. Leaves: digital numbers and bits as products hold
them, which `imagers` turns back. The coarse sensor answers otherwise than the fine one by gains that are known, so that it can be tested
whether they are measured. Its footprint is its pixel: no spread beyond, no view angle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from scipy.ndimage import maximum_filter

from sereno.pipeline.atmosphere import Sky
from sereno.pipeline.imagers import LANDSAT, MODIS, MODIS_STATE, Imager
from sereno.pipeline.noise import Image

Bits = npt.NDArray[np.uint16]

SEEN_AS: Final[Mapping[str, str]] = {"B02": "B02", "B03": "B03", "B04": "B04", "B08": "B8A", "B11": "B11", "B12": "B12"}
"""Band of Sentinel-2 whose spectrum of the ground stands for what both sensors see in a band."""
RESPONSE: Final[Mapping[str, float]] = {"B02": 1.06, "B03": 0.97, "B04": 1.04, "B08": 0.95, "B11": 1.03, "B12": 0.93}
"""Reflectance of the coarse sensor over that of the fine one: a few percent, as two real ones differ by their filters."""
COARSE_NOISE: Final = 0.002
"""Noise of the coarse sensor, reflectance: what is left of angle and aerosol in a composite."""
CLOUD_TOP: Final = 0.55
"""Reflectance of clouds that stay in a composite."""
LEFT_CLOUDY: Final = 0.1
"""Share of a coarse pixel under cloud from which on its bits say cloudy."""
SEEN_CLOUD, SEEN_CIRRUS, SEEN_SHADOW = 0.5, 0.1, 0.3
"""Opacity of cloud, optical thickness of cirrus and share of sunlight lost from which on QA_PIXEL flags them; chosen, USGS states none."""
DILATED_PX: Final = 7
"""Window of pixels of 30 m over which QA_PIXEL flags a cloud's surroundings."""

CONFIDENCES: Final = 0b0101_0101 << 8
"""Low confidence of cloud, shadow, snow and cirrus, as QA_PIXEL states it everywhere (USGS 2022, LSDS-1619)."""
HIGH_CLOUD, HIGH_SHADOW, HIGH_CIRRUS = 0b10 << 8, 0b10 << 10, 0b10 << 14
"""What makes each of them high."""
FILL_BIT, DILATED_BIT, CIRRUS_BIT, CLOUD_BIT, SHADOW_BIT, CLEAR_BIT, WATER_BIT = 1, 2, 4, 8, 16, 64, 128
"""Bits of QA_PIXEL."""
LAND_STATE, CLOUDY_STATE, LOW_AEROSOL = 1 << 3, 1, 1 << 6
"""Bits of the state of MODIS (Vermote et al. 2015, table 13)."""

SPHERE_M: Final = 6_371_007.181
"""Radius of the sphere of MODIS's sinusoidal projection, metres (MODLAND tile grid)."""
SINUSOIDAL: Final = CRS(f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={SPHERE_M} +units=m +no_defs")
"""That projection."""
TILE_M: Final = 1_111_950.5197665554
"""Side of a MODIS tile: a 36th of the sphere's circumference."""
TILE_PX: Final = 2400
"""Pixels along its side."""
TILES: Final = (18, 9)
"""Tiles from the left edge of the grid to its middle, and from the upper edge."""
WHOLE_SHARE: Final = 0.98
"""A coarse pixel is whole from so many of the ground's pixels on: how many have their centres in it differs by an edge of them."""
COMPOSITE_DAYS: Final = 8
"""Days of a composite; the first of a year begins on its first day."""


class Composite(NamedTuple):
    """One period of the coarse sensor."""

    start: datetime
    """First moment, UTC."""
    end: datetime
    """Last second."""

    @property
    def middle(self) -> datetime:
        """When its ground is taken."""
        return self.start + (self.end - self.start) / 2


def find_composite(moment: datetime) -> Composite:
    """The composite whose days hold `moment`."""
    new_year = datetime(moment.year, 1, 1, tzinfo=UTC)
    start = new_year + timedelta(days=(moment - new_year).days // COMPOSITE_DAYS * COMPOSITE_DAYS)
    end = min(start + timedelta(days=COMPOSITE_DAYS), datetime(moment.year + 1, 1, 1, tzinfo=UTC))
    return Composite(start, end - timedelta(seconds=1))


def to_numbers(reflectance: Image, imager: Imager, valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Reflectance (y, x) as the digital numbers of a product; its fill value where not valid."""
    exact = np.rint((reflectance.astype(np.float64) - imager.offset) / imager.scale)
    numbers = np.where(valid, np.clip(exact, *imager.valid_range), imager.fill)
    return numbers.astype(np.uint16 if imager is LANDSAT else np.int16)


def to_qa_pixel(sky: Sky, water: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]) -> Bits:
    """QA_PIXEL of a sky at 30 m, all (y, x): cloud, what lies close to it, cirrus, shadow, else clear; fill where not valid."""
    cloud = sky.cloud >= SEEN_CLOUD
    near = (maximum_filter(cloud, DILATED_PX) > 0) & ~cloud
    cirrus = (sky.cirrus >= SEEN_CIRRUS) & ~cloud
    shadow = (sky.shadow >= SEEN_SHADOW) & ~cloud & ~near
    bits = np.full(cloud.shape, CONFIDENCES, np.uint16)
    marks = ((cloud, CLOUD_BIT | HIGH_CLOUD), (near, DILATED_BIT), (cirrus, CIRRUS_BIT | HIGH_CIRRUS), (shadow, SHADOW_BIT | HIGH_SHADOW))
    for where, mark in (*marks, (~(cloud | near | cirrus | shadow), CLEAR_BIT), (water, WATER_BIT)):
        bits[where] |= np.uint16(mark)
    bits[~valid] = FILL_BIT
    return bits


class Footprints(NamedTuple):
    """The pixels of the coarse sensor over a piece of ground."""

    geobox: GeoBox
    """Those pixels, a part of its own grid."""
    place: npt.NDArray[np.int64]
    """(y, x) of the ground: which of them each point lies in, row by row."""
    is_whole: npt.NDArray[np.bool_]
    """(row, col): whether the ground reaches all over the pixel."""

    def average(self, image: npt.NDArray[Any]) -> Image:
        """Means of `image` (y, x) over the pixels, (row, col); 0 where there is no ground."""
        shape = tuple(self.geobox.shape)
        counts = np.bincount(self.place.ravel(), minlength=shape[0] * shape[1])
        sums = np.bincount(self.place.ravel(), weights=image.ravel(), minlength=counts.size)
        means: Image = (sums / np.maximum(counts, 1)).reshape(shape).astype(np.float32)
        return means


def lay_footprints(ground: GeoBox) -> Footprints:
    """The coarse pixels that points of `ground` lie in."""
    rows, columns = ground.shape
    affine = ground.transform  # of a simulated area, which is north-up
    x, y = np.meshgrid(affine.c + affine.a * (np.arange(columns) + 0.5), affine.f + affine.e * (np.arange(rows) + 0.5))
    assert ground.crs is not None  # simulated areas have one
    east, north = ground.crs.transformer_to_crs(SINUSOIDAL)(x.ravel(), y.ravel())
    pixel_m = TILE_M / TILE_PX
    column = np.floor((np.asarray(east) + TILES[0] * TILE_M) / pixel_m).astype(np.int64)
    row = np.floor((TILES[1] * TILE_M - np.asarray(north)) / pixel_m).astype(np.int64)
    left, top = int(column.min()), int(row.min())
    shape = (int(row.max()) - top + 1, int(column.max()) - left + 1)
    corner = Affine(pixel_m, 0, left * pixel_m - TILES[0] * TILE_M, 0, -pixel_m, TILES[1] * TILE_M - top * pixel_m)
    index = ((row - top) * shape[1] + column - left).reshape(rows, columns)
    counts = np.bincount(index.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    whole = math.floor((pixel_m / abs(ground.transform.a)) ** 2 * WHOLE_SHARE)
    return Footprints(GeoBox(shape, corner, SINUSOIDAL), index, counts >= whole)


def to_tile(geobox: GeoBox) -> tuple[int, int]:
    """Horizontal and vertical number of the MODIS tile that the middle of `geobox` lies in."""
    bounds = geobox.boundingbox
    x, y = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
    return math.floor(x / TILE_M + TILES[0]), math.floor(TILES[1] - y / TILE_M)


def see_coarse(rng: np.random.Generator, ground: Image, cloud: Image, band: str) -> Image:
    """What the coarse sensor sees in a band of averaged reflectance and the share of cloud, both (row, col)."""
    seen = ground * np.float32(RESPONSE[band]) * (1 - cloud) + np.float32(CLOUD_TOP) * cloud
    noise = COARSE_NOISE * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.maximum(seen + noise, np.float32(MODIS.valid_range[0] * MODIS.scale)).astype(np.float32)


def to_state(cloud: Image, valid: npt.NDArray[np.bool_]) -> Bits:
    """State of 500 m pixels from the share of cloud in each, (row, col)."""
    state = np.where(cloud >= LEFT_CLOUDY, LAND_STATE | LOW_AEROSOL | CLOUDY_STATE, LAND_STATE | LOW_AEROSOL).astype(np.uint16)
    return np.where(valid, state, np.uint16(MODIS_STATE.fill))
