"""Two views of one simulated ground: what registration is tested and timed on, with the truth known everywhere.

Parcels, roads, a river and villages are continuous functions of place, so a view can be drawn under any field of shifts without being
interpolated. Reflectance and backscatter of a parcel are drawn independently of each other: contrasts agree only by chance. There are no
walls that shine towards the radar, whose images lie truly beside their edges.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from sereno.pipeline.config import FieldDegree
from sereno.pipeline.shiftfield import N_TERMS, ShiftField, make_shift

PARCEL_PX: Final = 20.0
"""Mean side of a parcel."""
MARGIN_PX: Final = 48
"""Ground beyond the scene, for whatever a field brings in."""
TEXTURE_DB: Final = 1.0
"""Standard deviation of backscatter within parcels; blotches of some pixels."""
FRACTIONS: Final = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
"""Where a pixel is sampled, in pixels from its corner."""

COVERS: Final = np.array([(0.03, 0.06, 0.035, 0.38), (0.09, 0.12, 0.16, 0.24), (0.05, 0.06, 0.07, 0.10)])
"""Reflectance of leaves, of dry and of wet soil: blue, green, red, near infrared."""
AIR: Final = (0.065, 0.04, 0.022, 0.008)
"""Reflectance that clean air adds to these bands."""
DATE_BANDS_NM: Final = (490.0, 555.0, 660.0, 830.0)
"""Their wavelengths."""
CAMERA_NOISE: Final = 0.003
"""Standard deviation of reflectance as it is measured."""

Array = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Places = npt.NDArray[np.float64]


class Kind(NamedTuple):
    """How a thing that is not a parcel looks."""

    reflectance: tuple[float, float, float]
    """Green, red, near infrared."""
    backscatter_db: tuple[float, float]
    """VV, VH."""


ROAD: Final = Kind((0.12, 0.13, 0.16), (-17, -24))
RIVER: Final = Kind((0.05, 0.04, 0.02), (-22, -28))
HOUSE: Final = Kind((0.18, 0.20, 0.24), (-3, -10))


class Ground:
    """A square of simulated ground."""

    def __init__(self, seed: int, side: int) -> None:
        """Draw ground of `side` pixels."""
        rng = np.random.default_rng(seed)
        whole = side + 2 * MARGIN_PX
        count = int((whole / PARCEL_PX) ** 2)
        self.side = side
        self.sampled: dict[ShiftField, list[tuple[Places, Places, npt.NDArray[np.intp]]]] = {}
        self.parcels = cKDTree(rng.uniform(-MARGIN_PX, side + MARGIN_PX, (count, 2)))
        self.reflectance = rng.uniform(0.03, 0.35, (count, 3))
        self.backscatter_db = rng.uniform(-18, -6, (count, 2))
        self.roads = [(*rng.uniform(0, side, 2), rng.uniform(0, np.pi)) for _ in range(max(4, side // 100))]
        self.bends = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.3, 0.7) * side, rng.uniform(0.04, 0.1) * side
        self.houses = rng.uniform(0, side, (max(3, side // 128), 1, 2)) + rng.normal(0, 12, (1, 25, 2)) + rng.normal(0, 6, (1, 25, 2))
        self.texture = ndimage.gaussian_filter(rng.normal(0, 1, (whole, whole)), 3)
        self.texture *= TEXTURE_DB / self.texture.std()

    def draw(self, table: npt.NDArray[np.float64], kinds: tuple[tuple[float, ...], ...], field: ShiftField) -> Array:
        """One value per parcel and kind as an image (band, y, x), content moved by `field`, each pixel the mean of four samples."""
        image = np.zeros((table.shape[1], self.side, self.side))
        for rows, cols, parcel in self._sample(field):
            values = table[parcel]
            for row, col, angle in self.roads:
                values[np.abs((rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)) < 0.8] = kinds[0]
            (first, second), middle, swing = self.bends
            course = middle + swing * (np.sin(rows / self.side * 7 + first) + 0.5 * np.sin(rows / self.side * 17 + second))
            values[np.abs(cols - course) < 4] = kinds[1]
            for row, col in self.houses.reshape(-1, 2):
                near = tuple(slice(max(0, int(place) - MARGIN_PX), max(0, int(place) + MARGIN_PX)) for place in (row, col))
                values[near][(np.abs(rows[near] - row) < 1.2) & (np.abs(cols[near] - col) < 1.5)] = kinds[2]
            image += values.transpose(2, 0, 1) / len(FRACTIONS)
        return image.astype(np.float32)

    def _sample(self, field: ShiftField) -> list[tuple[Places, Places, npt.NDArray[np.intp]]]:
        """Rows and columns of the ground that the four samples of each pixel see, and its parcels; kept, since seeking takes long."""
        if field not in self.sampled:
            pixels = np.arange(self.side) - 0.5
            grids = (np.meshgrid(pixels + down, pixels + right, indexing="ij") for down, right in FRACTIONS)
            seen = [invert_field(field, *grid) for grid in grids]
            self.sampled[field] = [(*places, self.parcels.query(np.stack(places, axis=-1))[1]) for places in seen]
        return self.sampled[field]

    def draw_optical(self) -> Array:
        """Green, red and near-infrared reflectance, (3, y, x)."""
        kinds = ROAD.reflectance, RIVER.reflectance, HOUSE.reflectance
        return self.draw(self.reflectance, kinds, make_shift((self.side, self.side)))

    def draw_date(self, field: ShiftField | None = None, *, season: int = 1) -> Array:
        """Blue, green, red and near-infrared reflectance at the top of the atmosphere, (4, y, x), content moved by `field`.

        What grows on a parcel is drawn anew for every season.
        """
        rng = np.random.default_rng(season)
        table = rng.dirichlet((0.7, 0.7, 0.7), len(self.reflectance)) @ COVERS * rng.uniform(0.8, 1.2, (len(self.reflectance), 1))
        kinds = tuple((0.8 * kind.reflectance[0], *kind.reflectance) for kind in (ROAD, RIVER, HOUSE))
        image = self.draw(table, kinds, make_shift((self.side, self.side)) if field is None else field)
        drawn: Array = (image + np.array(AIR)[:, None, None] + rng.normal(0, CAMERA_NOISE, image.shape)).astype(np.float32)
        return drawn

    def draw_power(self, field: ShiftField | None = None, *, looks: float = 4.0, seed: int = 5) -> Array:
        """VV and VH as linear power with speckle, (2, y, x), content moved by `field`."""
        kinds = tuple(tuple(10 ** (value / 10) for value in kind.backscatter_db) for kind in (ROAD, RIVER, HOUSE))
        field = make_shift((self.side, self.side)) if field is None else field
        power = self.draw(10 ** (self.backscatter_db / 10), kinds, field)
        rows, cols = invert_field(field, *np.mgrid[: self.side, : self.side].astype(float))
        texture = ndimage.map_coordinates(self.texture, [rows + MARGIN_PX, cols + MARGIN_PX], order=1, mode="nearest")
        speckle = np.random.default_rng(seed).gamma(looks, 1 / looks, power.shape)
        drawn: Array = (power * 10 ** (texture / 10) * speckle).astype(np.float32)
        return drawn

    def draw_sar(self, field: ShiftField | None = None, *, looks: float = 4.0, seed: int = 5) -> Array:
        """The same in dB."""
        return to_decibel(self.draw_power(field, looks=looks, seed=seed))


def to_decibel(power: Array) -> Array:
    """Linear power as dB, -inf where there is none."""
    with np.errstate(divide="ignore"):
        decibel: Array = 10 * np.log10(power)
    return decibel


def invert_field(
    field: ShiftField, rows: npt.NDArray[np.float64], cols: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where the content found at (rows, cols) belongs: four rounds leave 1e-6 px for fields that change by a hundredth per pixel."""
    dy, dx = field.evaluate(rows, cols)
    for _ in range(4):
        dy, dx = field.evaluate(rows - dy, cols - dx)
    return rows - dy, cols - dx


def draw_field(degree: FieldDegree, side: int, *, seed: int, shift_px: float = 5.0, bend_px: float = 2.0) -> ShiftField:
    """A shift of up to `shift_px` per axis in the middle, and further terms of up to `bend_px` at the edge of the scene."""
    rng = np.random.default_rng(seed)
    limits = np.array([shift_px, *[bend_px / 2] * (N_TERMS[degree] - 1)])
    dy, dx = (tuple(float(value) for value in rng.uniform(-limits, limits)) for _ in range(2))
    start = make_shift((side, side))
    return ShiftField(degree, dy, dx, start.centre, start.scale_px)


def measure_error(found: ShiftField, true: ShiftField, side: int) -> float:
    """Root mean square distance of two fields over the whole scene, pixels."""
    places = np.mgrid[0 : side - 1 : 33j, 0 : side - 1 : 33j]
    difference = np.stack(found.evaluate(*places)) - np.stack(true.evaluate(*places))
    return float(np.sqrt((difference**2).sum(axis=0).mean()))


def draw_clouds(side: int, share: float, *, seed: int) -> Bool:
    """Where clouds are, (y, x): blobs over so much of the scene."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (side, side)), 18, mode="wrap")
    clouds: Bool = noise > np.quantile(noise, 1 - share)
    return clouds
