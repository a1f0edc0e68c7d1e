"""What the simulated ground is made of: parcels with crops, forest, villages, roads, a river, a lake, relief.

Enters: a seeded Generator and a shape at 10 m. Leaves: a `Ground`, and from it the surface reflectance of any day.
Every kind of cover has its own spectrum and its own backscatter; one says nothing about the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.bands import SENTINEL2_BANDS
from sereno.pipeline.noise import Image, make_noise, smooth_step

PIXEL_M: Final = 10.0
"""Sampling of the ground in metres."""

# Reflectance in the order of L2A_BANDS: B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12. Round values in the range of the
# spectra shown by Baret (1995, "Surface reflectance and its variation") and of the USGS library (Kokaly et al. 2017).
GREEN_LEAVES: Final = (0.020, 0.025, 0.055, 0.030, 0.095, 0.300, 0.390, 0.420, 0.440, 0.430, 0.200, 0.095)
DRY_LEAVES: Final = (0.080, 0.105, 0.155, 0.205, 0.235, 0.265, 0.285, 0.310, 0.325, 0.320, 0.380, 0.290)
BARE: Final = {
    "soil": (0.070, 0.085, 0.115, 0.150, 0.175, 0.195, 0.210, 0.225, 0.240, 0.240, 0.310, 0.280),
    "litter": (0.030, 0.035, 0.045, 0.055, 0.070, 0.090, 0.100, 0.110, 0.120, 0.120, 0.140, 0.100),
    "river": (0.045, 0.050, 0.062, 0.045, 0.038, 0.022, 0.020, 0.017, 0.015, 0.012, 0.006, 0.004),
    "lake": (0.025, 0.025, 0.022, 0.012, 0.009, 0.005, 0.0045, 0.004, 0.0035, 0.003, 0.0015, 0.001),
    "asphalt": (0.090, 0.100, 0.115, 0.125, 0.130, 0.135, 0.140, 0.145, 0.150, 0.150, 0.170, 0.165),
    "tile": (0.070, 0.080, 0.120, 0.220, 0.250, 0.270, 0.285, 0.300, 0.310, 0.310, 0.380, 0.350),
    "metal": (0.300, 0.330, 0.360, 0.380, 0.385, 0.390, 0.390, 0.400, 0.400, 0.390, 0.370, 0.340),
}
"""Spectra of what lies below or without leaves."""
LEAF_GROUPS: Final = (0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3)
"""Which of a kind's four leaf factors (visible, red edge, near infrared, short-wave infrared) scales each band."""
SENESCENCE_DAYS: Final = 25.0
"""Time for which dry leaves stand before the harvest."""
TURN_DAYS: Final = 7.0
"""Time scale of greening and of drying."""


RIPPLE: Final = 0.04
"""Height of one ripple in the spectra of cubes, share of reflectance."""
RIPPLES: Final = 3
"""Ripples of each unit."""
RIPPLE_NM: Final = (70.0, 300.0)
"""Shortest and longest of them, nanometres."""


class Kind(NamedTuple):
    """One kind of cover."""

    name: str
    """Its name."""
    weight: float
    """How often parcels have it, relative to the others; 0 for what is not a parcel."""
    bare: str
    """What lies under the leaves, a key of `BARE`."""
    leaves: tuple[float, float, float, float]
    """Factors on `GREEN_LEAVES` in the visible, red edge, near infrared and short-wave infrared."""
    season: tuple[float, float, float]
    """Day of the year of half greening and of half drying, and the largest share of ground covered by leaves."""
    rows: float
    """Strength of the texture inside a parcel."""
    backscatter_db: tuple[float, float]
    """Mean gamma0 in VV and VH, dB; set without regard to the reflectance."""


KINDS: Final = (
    Kind("wheat", 1.3, "soil", (0.9, 0.9, 0.85, 0.9), (80, 176, 0.92), 0.5, (-13.0, -20.5)),
    Kind("barley", 0.9, "soil", (1.1, 1.0, 0.80, 1.0), (75, 150, 0.88), 0.5, (-6.4, -18.4)),
    Kind("maize", 1.3, "soil", (1.0, 0.9, 0.95, 0.9), (178, 265, 0.95), 1.0, (-16.2, -22.8)),
    Kind("beet", 0.9, "soil", (1.2, 1.2, 1.15, 0.8), (142, 290, 0.95), 0.7, (-15.4, -17.6)),
    Kind("rapeseed", 0.8, "soil", (2.2, 1.3, 0.90, 1.1), (70, 168, 0.90), 0.3, (-12.4, -15.4)),
    Kind("soy", 0.9, "soil", (1.1, 1.1, 1.20, 1.0), (166, 260, 0.95), 1.0, (-6.0, -15.8)),
    Kind("alfalfa", 0.9, "soil", (0.8, 1.0, 1.10, 0.9), (65, 320, 0.95), 0.3, (-9.0, -22.0)),
    Kind("rice", 0.7, "river", (1.0, 1.0, 0.90, 0.6), (184, 255, 0.90), 0.6, (-9.8, -17.2)),
    Kind("fallow", 0.6, "soil", (1.2, 1.0, 0.70, 1.3), (120, 230, 0.22), 0.6, (-11.2, -24.2)),
    Kind("vineyard", 0.6, "soil", (1.0, 0.9, 0.85, 1.1), (125, 290, 0.45), 1.2, (-14.0, -12.6)),
    Kind("meadow", 0.9, "soil", (1.3, 1.1, 0.80, 1.2), (90, 315, 0.78), 0.4, (-7.2, -13.4)),
    Kind("broadleaf", 0, "litter", (0.7, 0.9, 1.00, 0.7), (115, 300, 0.98), 0.8, (-10.6, -19.2)),
    Kind("conifer", 0, "litter", (0.6, 0.55, 0.55, 0.45), (-200, 600, 0.95), 0.8, (-8.0, -20.8)),
    Kind("river", 0, "river", (1, 1, 1, 1), (0, 1, 0), 0, (-19.5, -26.5)),
    Kind("lake", 0, "lake", (1, 1, 1, 1), (0, 1, 0), 0, (-21.5, -28.0)),
    Kind("road", 0, "asphalt", (1, 1, 1, 1), (0, 1, 0), 0.1, (-17.0, -25.0)),
    Kind("tile roof", 0, "tile", (1, 1, 1, 1), (0, 1, 0), 0.1, (-8.0, -16.0)),
    Kind("metal roof", 0, "metal", (1, 1, 1, 1), (0, 1, 0), 0.1, (-9.0, -17.0)),
    Kind("garden", 0, "soil", (1.1, 1.0, 0.9, 1.0), (90, 310, 0.65), 0.8, (-10.0, -16.5)),
)
"""All kinds of cover. Backscatter lies within what C band shows over farmland (Ulaby & Dobson 1989); which crop has which value was
chosen so that neither polarisation correlates with any band (|r| < 0.2 over the crops in June): who knows one learns nothing of the
other but through the table."""
KIND_INDEX: Final = {kind.name: index for index, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Units:
    """Everything that is the same over one parcel, forest or lake; arrays (unit,)."""

    kind: npt.NDArray[np.uint8]
    """Index into `KINDS`."""
    vigour: npt.NDArray[np.float32]
    """Factor on the leaf cover, about 1."""
    delay_days: npt.NDArray[np.float32]
    """How much later than its kind it greens and dries."""
    soil: npt.NDArray[np.float32]
    """Brightness factor of the bare ground, about 1."""
    roughness_db: npt.NDArray[np.float32]
    """Departure of its backscatter from the mean of its kind, dB."""


@dataclass(frozen=True)
class Ground:
    """A piece of ground at 10 m; arrays (y, x)."""

    units: Units
    """The parcels and other areas that the ground consists of."""
    unit: npt.NDArray[np.int32]
    """Index into `units`."""
    texture: Image
    """Fine structure inside units: zero mean, unit variance."""
    wall: Image
    """Strength of double bounce between wall and street, 0..1."""
    height_m: Image
    """Height above the sea in metres."""


def compute_spectra(units: Units, day_of_year: float) -> tuple[Image, Image]:
    """Mean reflectance and its change per unit of texture on that day, both (unit, 12 bands).

    Leaves come and go along logistic curves (Zhang et al. 2003, eq. 1); bare ground, green and dry leaves mix linearly.
    """
    rise, fall, peak = np.array([kind.season for kind in KINDS], np.float32)[units.kind].T
    leaves = np.array([kind.leaves for kind in KINDS], np.float32)[units.kind]
    bare = np.array([BARE[kind.bare] for kind in KINDS], np.float32)[units.kind] * units.soil[:, None]
    day = day_of_year - units.delay_days
    green = np.minimum(peak * units.vigour, 0.98) * _rise_at(day - rise) * (1 - _rise_at(day - fall))
    dry = peak * _rise_at(day - fall) * (1 - _rise_at(day - fall - SENESCENCE_DAYS))
    leaf = np.array(GREEN_LEAVES, np.float32) * leaves[:, LEAF_GROUPS]
    straw = np.array(DRY_LEAVES, np.float32)
    mean = green[:, None] * leaf + dry[:, None] * straw + (1 - green - dry)[:, None] * bare
    rows = np.array([kind.rows for kind in KINDS], np.float32)[units.kind]
    contrast = rows[:, None] * (0.15 * (green * (1 - green))[:, None] * (leaf - bare) + 0.05 * mean)
    return mean.astype(np.float32), contrast.astype(np.float32)


def _rise_at(days: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return 1 / (1 + np.exp(-np.clip(days / TURN_DAYS, -30, 30)))


def compute_cube(rng: np.random.Generator, ground: Ground, wavelengths_nm: Sequence[float], *, day: float) -> Image:
    """Reflectance of `ground` at wavelengths between those of Sentinel-2, (band, y, x) float32.

    Between the twelve bands spectra go straight, and every unit has ripples of its own, seven to thirty bands of 10 nm long: pigments and
    minerals differ in more than twelve numbers.
    """
    known = [band.wavelength_nm for band in SENTINEL2_BANDS if band.name != "B10"]
    mean, contrast = compute_spectra(ground.units, day)
    n_units = len(mean)
    lengths, phases = rng.uniform(*RIPPLE_NM, (RIPPLES, n_units)), rng.uniform(0, 2 * np.pi, (RIPPLES, n_units))
    cube = np.empty((len(wavelengths_nm), *ground.unit.shape), np.float32)
    for image, wavelength in zip(cube, wavelengths_nm, strict=True):
        right = int(np.clip(np.searchsorted(known, wavelength), 1, len(known) - 1))
        share = np.float32((wavelength - known[right - 1]) / (known[right] - known[right - 1]))
        ripple = 1 + RIPPLE * np.sin(2 * np.pi * wavelength / lengths + phases).sum(axis=0, dtype=np.float32)
        of_unit, of_texture = (((1 - share) * part[:, right - 1] + share * part[:, right]) * ripple for part in (mean, contrast))
        image[...] = of_unit[ground.unit] + of_texture[ground.unit] * ground.texture
    return cube


def compute_shading(height_m: Image, azimuth_deg: float, elevation_deg: float) -> Image:
    """Light on the slopes as a factor on reflectance, 1 on flat ground, (y, x).

    Cosine law softened by half, since L2A takes out part of it (Teillet et al. 1982, the C correction).
    """
    down, right = np.gradient(height_m, PIXEL_M)
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    tilt = right * np.sin(azimuth) - down * np.cos(azimuth)
    factor: Image = np.clip(1 - 0.5 * tilt / np.tan(elevation), 0.5, 1.5).astype(np.float32)
    return factor


def make_ground(rng: np.random.Generator, shape: tuple[int, int]) -> Ground:
    """A new piece of ground of `shape` (rows, columns) at 10 m; smaller than 200 pixels it has no room for everything."""
    rows, columns = shape
    y, x = np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None, :]
    bend_y, bend_x = (make_noise(rng, shape, scale_px=45, roughness=2) for _ in range(2))
    y, x = y + 7 * bend_y, x + 7 * bend_x
    river, lake = _make_water(rng, (y, x), shape)
    district, distance = _make_districts(rng, (y, x), shape)
    unit, along = _make_parcels(rng, (y, x), district)
    kinds = _draw_crops(rng, int(unit.max()) + 1)
    layers = _Layers(unit, kinds)
    forest = make_noise(rng, shape, scale_px=110, roughness=1.3)
    layers.lay((np.abs(river) < 18 + 12 * bend_x) & (forest < 0.8), district, ["meadow"])
    layers.lay(forest > 1.05, district, ["broadleaf", "conifer", "broadleaf"])
    wall = _lay_villages(rng, layers, shape)
    layers.lay(np.abs(river) < 5 + 1.5 * bend_y, None, ["river"])
    layers.lay(distance < 1.2, None, ["road"])
    layers.lay(lake < 1, None, ["lake"])
    wall[~np.isin(layers.kinds[layers.unit], [KIND_INDEX["tile roof"], KIND_INDEX["metal roof"]])] = 0
    fine = make_noise(rng, shape, scale_px=2.5, roughness=1.5)
    tilled = layers.unit < len(kinds)
    texture = fine * np.where(tilled, np.float32(0.7), np.float32(1)) + np.where(tilled, np.sin(along), 0)
    return Ground(_draw_units(rng, layers.kinds), layers.unit, texture.astype(np.float32), wall, _make_relief(rng, shape, river, lake))


@dataclass
class _Layers:
    """The map of units while it grows, layer upon layer."""

    unit: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]

    def lay(self, where: npt.NDArray[np.bool_], district: npt.NDArray[np.int32] | None, names: list[str]) -> None:
        """Cover `where` with one new unit per district (one in all without districts), of the named kinds in turn."""
        count = 1 if district is None else int(district.max()) + 1
        first = len(self.kinds)
        kinds = [KIND_INDEX[names[index % len(names)]] for index in range(count)]
        self.kinds = np.concatenate([self.kinds, np.array(kinds, np.uint8)])
        self.unit[where] = first if district is None else first + district[where]


Plane = tuple[Image, Image]
"""Two coordinates or two components, y and x, each (y, x)."""


def _make_water(rng: np.random.Generator, place: Plane, shape: tuple[int, int]) -> Plane:
    """Signed distance to the river's centre line in pixels, and distance to the lake's centre in lake radii."""
    rows, columns = shape
    bend = make_noise(rng, shape, scale_px=60, roughness=3)
    angle = rng.uniform(-0.5, 0.5)
    level = (place[1] - columns * rng.uniform(0.3, 0.7)) * np.cos(angle) + (place[0] - rows / 2) * np.sin(angle) + 45 * bend
    slope = np.hypot(*np.gradient(level))
    radius = min(0.09 * min(shape), 120.0)
    centre = rows * rng.uniform(0.3, 0.7), columns * (0.25 if rng.random() < 0.5 else 0.75)
    shore = 1 + 0.25 * make_noise(rng, shape, scale_px=40, roughness=2)
    lake = np.hypot((place[0] - centre[0]) * 1.3, place[1] - centre[1]) / (radius * np.clip(shore, 0.4, 1.8))
    return (level / np.maximum(slope, 0.3)).astype(np.float32), lake.astype(np.float32)


def _make_districts(rng: np.random.Generator, place: Plane, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int32], Image]:
    """Districts of about 3 x 3 km that share one direction of farming, and the distance in pixels to their borders."""
    rows, columns = shape
    count = max(3, rows * columns // 100_000)
    seeds = rng.random((count, 2)) * (rows, columns)
    nearest = np.full(shape, np.inf, np.float32)
    second = np.full(shape, np.inf, np.float32)
    district = np.zeros(shape, np.int32)
    for index, (row, column) in enumerate(seeds.astype(np.float32)):
        distance = np.hypot(place[0] - row, place[1] - column)
        closer = distance < nearest
        np.minimum(second, np.maximum(distance, nearest), out=second)
        np.minimum(nearest, distance, out=nearest)
        district[closer] = index
    gap = second - nearest
    return district, gap / np.maximum(np.hypot(*np.gradient(gap)), 0.2)


def _make_parcels(
    rng: np.random.Generator, place: Plane, district: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """Parcel index and phase of the rows in radians, (y, x): strips along the district's direction, cut at random places.

    Widths and places come from a table of random numbers looked up by strip, the way of Perlin (1985).
    """
    count = int(district.max()) + 1
    table = rng.random(4096).astype(np.float32)
    angle = rng.uniform(0, np.pi, count).astype(np.float32)
    height = rng.uniform(22, 40, count).astype(np.float32)[district]
    cosine, sine = np.cos(angle)[district], np.sin(angle)[district]
    along = cosine * place[1] + sine * place[0]
    across = cosine * place[0] - sine * place[1]
    strip = np.floor(across / height).astype(np.int32)
    entry = (district * 977 + strip * 131) % 4096
    width = 24 + 40 * table[entry]
    cut = np.floor((along + 60 * table[(entry + 1) % 4096]) / width).astype(np.int32)
    reach = int(max(np.abs(strip).max(), np.abs(cut).max())) + 1
    code = (district * (2 * reach) + strip + reach) * (2 * reach) + cut + reach
    present = np.zeros(int(code.max()) + 1, bool)
    present[code] = True
    index = np.cumsum(present, dtype=np.int32) - 1
    period = rng.uniform(4, 7, count).astype(np.float32)[district]
    return index[code], across * (2 * np.pi / period)


def _draw_crops(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    weights = np.array([kind.weight for kind in KINDS])
    return rng.choice(len(KINDS), size=count, p=weights / weights.sum()).astype(np.uint8)


def _draw_units(rng: np.random.Generator, kinds: npt.NDArray[np.uint8]) -> Units:
    count = len(kinds)
    return Units(
        kind=kinds,
        vigour=np.clip(rng.normal(1, 0.12, count), 0.6, 1.4).astype(np.float32),
        delay_days=np.clip(rng.normal(0, 3, count), -7, 7).astype(np.float32),
        soil=np.clip(rng.normal(1, 0.1, count), 0.7, 1.3).astype(np.float32),
        roughness_db=rng.normal(0, 0.4, count).astype(np.float32),
    )


def _lay_villages(rng: np.random.Generator, layers: _Layers, shape: tuple[int, int]) -> Image:
    """Lay houses, gardens and streets over `layers`; the strength of double bounce at the walls, (y, x)."""
    wall = np.zeros(shape, np.float32)
    names = (["garden"], ["road"], ["tile roof"], ["metal roof"])
    for _ in range(max(1, shape[0] * shape[1] // 320_000)):
        radius = rng.uniform(22, 48)
        corner = (rng.uniform(0.1, 0.9, 2) * shape - 1.4 * radius).astype(int).clip(0)
        window = tuple(slice(first, min(first + int(2.8 * radius), end)) for first, end in zip(corner, shape, strict=True))
        masks, strength = _make_village(rng, radius, (window[0].stop - corner[0], window[1].stop - corner[1]))
        for mask, name in zip(masks, names, strict=True):
            where = np.zeros(shape, bool)
            where[window] = mask
            layers.lay(where, None, name)
        wall[window] = np.maximum(wall[window], strength)
    return wall


def _make_village(rng: np.random.Generator, radius: float, shape: tuple[int, int]) -> tuple[list[npt.NDArray[np.bool_]], Image]:
    """Where one village is at all, where its streets, tile roofs and metal roofs are, and its walls' strength, each of `shape`."""
    y, x = np.arange(shape[0])[:, None] - 1.4 * radius, np.arange(shape[1])[None, :] - 1.4 * radius
    angle = rng.uniform(-0.6, 0.6)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.hypot(u, v) < radius * (1 + 0.3 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6)))
    lot = rng.random((64, 64))[np.floor(v / 6).astype(int) % 64, np.floor(u / 5).astype(int) % 64]
    house = inside & (v % 6 >= 2) & (v % 6 < 5) & (u % 5 < 3) & (lot < 0.8)
    strength = np.where(house & (u % 5 < 1), 0.3 + 0.7 * ((lot * 7) % 1), 0).astype(np.float32)
    return [inside, inside & (v % 12 < 1.5), house & (lot < 0.66), house & (lot >= 0.66)], strength


def _make_relief(rng: np.random.Generator, shape: tuple[int, int], river: Image, lake: Image) -> Image:
    """Height in metres: hills, a valley along the river, and a lake that lies level."""
    hills = 90 * make_noise(rng, shape, scale_px=40, roughness=2.5) + 3 * make_noise(rng, shape, scale_px=25, roughness=2)
    valley = 1 - np.exp(-((river / 160) ** 2))
    height: Image = 210 + (0.25 + 0.75 * valley) * hills + 30 * valley
    level = float(np.median(height[lake < 1])) if (lake < 1).any() else 210.0
    flat = smooth_step(2 * (1.6 - lake))
    return height * (1 - flat) + np.float32(level) * flat
