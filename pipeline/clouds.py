"""Where clouds and their shadows are: classes or reflectance in, probabilities out. Nothing here touches a file.

Three ways lead to binary masks: the scene classification of L2A, spectral rules for L1C, and rules for images that have no more than
visible and near infrared; one way leads from masks, or from probabilities that others found (`sereno.pipeline.detectors`), to what is
stored. Two methods can be compared.
Every threshold is absolute, so that a pixel's verdict depends on its surroundings within a stated reach and never on the crop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sereno.pipeline.scene import Bool2d

Float2d = npt.NDArray[np.floating[Any]]

VERSION: Final = 1
"""Raised when the same image would get another mask."""
HAZE_VERSION: Final = 1
"""The same for `find_by_haze`."""
SCL_NODATA: Final = 0
"""Class of pixels without data (ESA, Sentinel-2 L2A product definition), and of ground whose classes are lost."""
SCL_CLOUD: Final = (8, 9, 10)
"""Cloud of medium and high probability, thin cirrus (ESA, Sentinel-2 L2A product definition)."""
SCL_SHADOW: Final = (3,)
"""Cloud shadow."""
FULL: Final = 255
"""Stored probability of 1."""
CLOUDY: Final = 0.5
"""From this probability on a pixel counts as cloud, or as shadow."""

THRESHOLD_BANDS: Final = ("B02", "B03", "B04", "B08", "B10", "B11")
"""Bands that the spectral rules need: B10 makes them rules for L1C only."""
SHADOW_BANDS: Final = ("B03", "B08", "B11")
"""Those of them that the rules for shadow need."""
MIN_HAZE: Final = 0.095
"""Cloud: blue minus half of red, the haze-optimised combination (Zhang et al. 2002; Zhu and Woodcock 2012 use 0.08 on Landsat).
At the top of the atmosphere clear ground of the samples has 0.05 to 0.09, thick cloud 0.15 to 0.3."""
MIN_BRIGHTNESS: Final = 0.12
"""Cloud: mean reflectance of blue, green and red."""
MAX_WHITENESS: Final = 0.6
"""Cloud: summed deviation of blue, green and red from their mean, over the mean (Gomez-Chova et al. 2007; 0.7 in Zhu and Woodcock 2012)."""
MIN_NIR_TO_SWIR: Final = 0.75
"""Cloud: B08 over B11; bright rock, sand and roofs have less (Zhu and Woodcock 2012)."""
MIN_CIRRUS: Final = 0.012
"""Cloud whatever the rest says: B10 sees only what floats above most of the water vapour (Zhu et al. 2015 use 0.01)."""
SNOW_NDSI: Final = 0.6
"""Snow, not cloud: normalised difference of green and B11 above this ..."""
SNOW_SWIR: Final = 0.15
"""... with B11 below this: ice crystals on the ground are coarser and darker in SWIR than those of clouds."""
SHADOW_NIR: Final = 0.18
"""Shadow: B08 below this ..."""
SHADOW_SWIR: Final = 0.09
"""... and B11 below this ..."""
WATER_NDWI: Final = 0.0
"""... on ground that is not water: normalised difference of green and B08 below this (McFeeters 1996)."""
MAX_NDVI: Final = 0.5
"""Cloud by `find_by_haze`: NDVI below this; what leaves show through is not cloud enough (Gomez-Chova et al. 2007)."""
MAX_NDWI: Final = 0.3
"""Cloud by `find_by_haze`: normalised difference of green and NIR below this (McFeeters 1996) ..."""
MIN_CLOUD_NIR: Final = 0.11
"""... and NIR above this: bright water has less, clouds over water more (Zhu and Woodcock 2012, their water test in SWIR)."""
MAX_SHADOW_NIR: Final = 0.15
"""Shadow by `find_by_haze`: NIR below this, less than with SWIR at hand, so that fewer dark fields count ..."""
MAX_SHADOW_NDWI: Final = 0.2
"""... and NDWI below this: air alone adds more to green than shade leaves in NIR, so that shaded soil has more than WATER_NDWI."""
SHADOW_REACH_M: Final = 1500.0
"""Without the sun's place: a shadow lies within this distance of a cloud, metres."""
CLOUD_HEIGHT_M: Final = 4000.0
"""With the sun's place: shadows are cast from clouds up to this height, metres."""
MAX_REACH_M: Final = 10_000.0
"""A low sun casts shadows further than this; they are too soft to find."""


class Sun(NamedTuple):
    """Where the sun stands."""

    azimuth_deg: float
    """Degrees clockwise from north."""
    elevation_deg: float
    """Degrees above the horizon."""


class Visible(NamedTuple):
    """Reflectance at the top of the atmosphere, each (y, x), whatever the sensor calls its bands."""

    blue: Float2d
    """About 490 nm."""
    green: Float2d
    """About 560 nm."""
    red: Float2d
    """About 660 nm."""
    nir: Float2d
    """About 830 nm."""


class CloudShadow(NamedTuple):
    """Binary masks of one image."""

    cloud: Bool2d
    """(y, x), True = cloud."""
    shadow: Bool2d
    """(y, x), True = shadow of a cloud, not itself cloud."""


def find_in_scl(scl: npt.NDArray[np.uint8]) -> CloudShadow:
    """Cloud and shadow as the scene classification (y, x) states them."""
    return CloudShadow(np.isin(scl, SCL_CLOUD), np.isin(scl, SCL_SHADOW))


def find_by_thresholds(reflectance: Mapping[str, Float2d], *, sun: Sun | None, pixel_m: float) -> CloudShadow:
    """Cloud and shadow by spectral rules on top-of-atmosphere reflectance: THRESHOLD_BANDS, each (y, x), to masks (y, x).

    Cloud is hazy, bright, white and not snow, or seen by the cirrus band; specks thinner than three pixels are dropped. Shadow is dark in
    NIR and SWIR, not water, and lies where the sun can cast it from a cloud; where the sun is not known, within SHADOW_REACH_M of one.
    The ideas are those of Zhang et al. 2002, Zhu and Woodcock 2012 and Zhu et al. 2015; the thresholds are ours, set on the few samples
    at hand, so this is a stand-in where no classification comes with the product, not a validated detector. Unlike the masks of DSen2-CR
    (Meraner et al. 2020) no threshold is taken from the image itself. Known faults: white sand and roofs wider than 30 m; dark fields
    near clouds.
    """
    cloud = _find_cloud(reflectance)
    return CloudShadow(cloud, find_shadow(reflectance, cloud, sun=sun, pixel_m=pixel_m))


def find_shadow(reflectance: Mapping[str, Float2d], cloud: Bool2d, *, sun: Sun | None, pixel_m: float) -> Bool2d:
    """Shadow (y, x) of the clouds in `cloud` (y, x), whoever found them: dark ground where they can cast one.

    `reflectance` is that at the top of the atmosphere in SHADOW_BANDS, each (y, x).
    """
    nir, swir = reflectance["B08"], reflectance["B11"]
    dark = (nir < SHADOW_NIR) & (swir < SHADOW_SWIR) & (_divide(reflectance["B03"] - nir, reflectance["B03"] + nir) < WATER_NDWI)
    return _keep_castable(dark, cloud, sun=sun, pixel_m=pixel_m)


def _keep_castable(dark: Bool2d, cloud: Bool2d, *, sun: Sun | None, pixel_m: float) -> Bool2d:
    """What of `dark` the clouds can shade, without specks."""
    castable = _reach_around(cloud, SHADOW_REACH_M / pixel_m) if sun is None else cast_shadow(cloud, sun, pixel_m)
    shadow: Bool2d = ndimage.binary_opening(dark & castable & ~cloud, np.ones((3, 3), bool))
    return shadow


def find_by_haze(reflectance: Visible, *, sun: Sun | None, pixel_m: float) -> CloudShadow:
    """Cloud and shadow (y, x) by rules on top-of-atmosphere reflectance in visible and near infrared alone. Experimental.

    Cloud is hazy, bright and white as in `find_by_thresholds`, neither leafy nor water. Shadow is dark in NIR, not water,
    and lies where the sun can cast it from a cloud; where the sun is not known, within SHADOW_REACH_M of one. Without SWIR and
    cirrus the rules cannot tell snow, salt and the brightest roofs from cloud, nor see thin cirrus; ground that is dark anyway is shadow
    where a cloud could shade it.
    """
    visible = (reflectance.blue, reflectance.green, reflectance.red)
    green, red, nir = reflectance.green, reflectance.red, reflectance.nir
    leaves, water = _divide(nir - red, nir + red), _divide(green - nir, green + nir)
    cloud = _drop_specks(_is_hazy(*visible) & (leaves < MAX_NDVI) & (water < MAX_NDWI) & (nir > MIN_CLOUD_NIR))
    dark = (nir < MAX_SHADOW_NIR) & (water < MAX_SHADOW_NDWI)
    return CloudShadow(cloud, _keep_castable(dark, cloud, sun=sun, pixel_m=pixel_m))


def _find_cloud(reflectance: Mapping[str, Float2d]) -> Bool2d:
    green, swir = reflectance["B03"], reflectance["B11"]
    hazy = _is_hazy(reflectance["B02"], green, reflectance["B04"])
    snow = (_divide(green - swir, green + swir) > SNOW_NDSI) & (swir < SNOW_SWIR)
    bright = hazy & ~snow & (reflectance["B08"] > MIN_NIR_TO_SWIR * swir)
    return _drop_specks(bright | (reflectance["B10"] > MIN_CIRRUS))


def _is_hazy(blue: Float2d, green: Float2d, red: Float2d) -> Bool2d:
    """Where light is scattered as by cloud: much of it, of no colour, more in blue than ground of that red would."""
    mean = (blue + green + red) / 3
    whiteness = _divide(abs(blue - mean) + abs(green - mean) + abs(red - mean), mean)
    hazy: Bool2d = (blue - red / 2 > MIN_HAZE) & (mean > MIN_BRIGHTNESS) & (whiteness < MAX_WHITENESS)
    return hazy


def _drop_specks(found: Bool2d) -> Bool2d:
    """`found` without what is thinner than three pixels, its gaps closed."""
    cloud = ndimage.binary_opening(found, np.ones((3, 3), bool))
    closed: Bool2d = cloud | ndimage.binary_closing(cloud, np.ones((3, 3), bool))
    return closed


def cast_shadow(cloud: Bool2d, sun: Sun, pixel_m: float) -> Bool2d:
    """Ground (y, x) that clouds up to CLOUD_HEIGHT_M shade: the mask `cloud` drawn out away from the sun, rows running south."""
    elevation = np.deg2rad(max(sun.elevation_deg, 1.0))
    length = min(CLOUD_HEIGHT_M / np.tan(elevation), MAX_REACH_M) / pixel_m
    azimuth = np.deg2rad(sun.azimuth_deg)
    # Doubling: after n rounds the mask covers 2**n steps of one pixel; the last round only fills up to the wanted length.
    shaded, done = cloud.copy(), 1.0
    while done < length:
        step = min(done, length - done)
        shaded |= _shift(shaded, round(step * np.cos(azimuth)), round(-step * np.sin(azimuth)))
        done += step
    grown: Bool2d = ndimage.binary_dilation(shaded, np.ones((5, 5), bool))
    return grown


def _shift(mask: Bool2d, rows: int, columns: int) -> Bool2d:
    """`mask` moved down by `rows` and right by `columns`; what comes from outside is False."""
    moved = np.zeros_like(mask)
    height, width = mask.shape
    if abs(rows) < height and abs(columns) < width:
        moved[max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)] = mask[
            max(-rows, 0) : height - max(rows, 0), max(-columns, 0) : width - max(columns, 0)
        ]
    return moved


def _reach_around(mask: Bool2d, reach_px: float) -> Bool2d:
    if not mask.any():
        return mask
    near: Bool2d = ndimage.distance_transform_edt(~mask) <= reach_px
    return near


def _divide(above: Float2d, below: Float2d) -> Float2d:
    """`above / below`, 0 where `below` is not positive."""
    ratio: Float2d = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


def to_probability(mask: Bool2d, *, dilate_px: int, feather_px: float) -> npt.NDArray[np.uint8]:
    """`mask` (y, x) as probability x 255: 1 up to `dilate_px` from it, falling to 0 over the next `feather_px`, uint8.

    Distances are Euclidean between pixel centres, so growing by d is the dilation with a disk of radius d. The value of a pixel depends
    on the mask within `dilate_px + feather_px` alone.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.uint8)
    if dilate_px == 0 and feather_px == 0:
        return mask.astype(np.uint8) * np.uint8(FULL)
    beyond = np.maximum(ndimage.distance_transform_edt(~mask).astype(np.float32) - dilate_px, 0)
    probability = (beyond == 0).astype(np.float32) if feather_px == 0 else np.maximum(1 - beyond / np.float32(feather_px), 0)
    stored: npt.NDArray[np.uint8] = np.rint(probability * FULL).astype(np.uint8)
    return stored


def grow_probability(probability: Float2d, *, dilate_px: int, feather_px: float) -> npt.NDArray[np.uint8]:
    """`probability` (y, x) in 0..1 as probability x 255, uint8, with the surroundings of cloudy pixels made cloudy too.

    Pixels of at least CLOUDY hand their probability on: whole to all within `dilate_px`, falling to 0 over the next `feather_px`. A pixel
    keeps its own if nothing around it hands it a higher one, so that doubt inside a cloud and haze far from one stay what they are. For
    probabilities of 0 and 1 alone this is `to_probability`. It is a grey-scale dilation with a cone (Serra 1982) whose values multiply.
    """
    core = probability >= CLOUDY
    if np.array_equal(probability, core):
        return to_probability(core, dilate_px=dilate_px, feather_px=feather_px)
    source = np.where(core, probability, 0).astype(np.float32)
    grown = probability.astype(np.float32)
    for row, column, weight in _list_reach(dilate_px, feather_px):
        target, origin = _overlap(grown.shape, row, column)
        np.maximum(grown[target], source[origin] * np.float32(weight), out=grown[target])
    stored: npt.NDArray[np.uint8] = np.rint(grown * FULL).astype(np.uint8)
    return stored


def _list_reach(dilate_px: int, feather_px: float) -> list[tuple[int, int, float]]:
    """Steps in rows and columns, and the share of a probability that is left after each."""
    reach = math.ceil(dilate_px + feather_px)
    steps = [(row, column) for row in range(-reach, reach + 1) for column in range(-reach, reach + 1)]
    beyond = [max(math.hypot(*step) - dilate_px, 0.0) for step in steps]
    shares = [1.0 - distance / feather_px if feather_px else float(distance == 0) for distance in beyond]
    return [(*step, share) for step, share in zip(steps, shares, strict=True) if share > 0]


def _overlap(shape: tuple[int, ...], row: int, column: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where pixels lie that have a neighbour `row` below and `column` to the right inside the image, and where those neighbours lie."""

    def cut(size: int, step: int) -> slice:
        return slice(max(-step, 0), max(size - max(step, 0), 0))

    return (cut(shape[0], row), cut(shape[1], column)), (cut(shape[0], -row), cut(shape[1], -column))


class Agreement(NamedTuple):
    """How far two methods say the same of one image: shares of its valid pixels."""

    both: float
    """Cloud in both."""
    only_first: float
    """Cloud in the first alone."""
    only_second: float
    """Cloud in the second alone."""
    neither: float
    """Cloud in none."""
    iou: float | None
    """`both` over what is cloud in any: 1 = the same clouds. None if there is none."""


def compare_masks(first: Bool2d, second: Bool2d, valid: Bool2d) -> Agreement:
    """Agreement of two masks (y, x), True = cloud, over the pixels that are valid; all shares are 0 if there is none."""
    total = int(np.count_nonzero(valid))
    counts = [int(np.count_nonzero(mask & valid)) for mask in (first & second, first & ~second, second & ~first, ~first & ~second)]
    both, only_first, only_second, neither = (round(count / total, 6) if total else 0.0 for count in counts)
    any_cloud = sum(counts[:3])
    return Agreement(both, only_first, only_second, neither, round(counts[0] / any_cloud, 6) if any_cloud else None)


class Finding(NamedTuple):
    """How much of what is truly there a method finds: shares, None where there is none of it."""

    thick: float | None
    """Of the cloud through which next to nothing of the ground is seen."""
    thin: float | None
    """Of the other cloud."""
    clear_as_cloud: float | None
    """Of what is neither cloud nor shadow, called cloud."""
    shadow: float | None
    """Of the shadow."""
    clear_as_shadow: float | None
    """Of what is neither cloud nor shadow, called shadow."""


def compare_with_truth(found: CloudShadow, true: CloudShadow, thick: Bool2d, known: Bool2d) -> Finding:
    """What of the `true` clouds, those that are `thick` and the others, and shadows was `found`, over the pixels that are `known`."""
    clear = known & ~true.cloud & ~true.shadow
    asked = (
        (found.cloud, thick),
        (found.cloud, true.cloud & ~thick),
        (found.cloud, clear),
        (found.shadow, true.shadow),
        (found.shadow, clear),
    )
    counts = [(int(np.count_nonzero(mask & place & known)), int(np.count_nonzero(place & known))) for mask, place in asked]
    return Finding(*(round(count / total, 6) if total else None for count, total in counts))


def describe_cover(probability: npt.NDArray[np.uint8], valid: Bool2d) -> float:
    """Share of the valid pixels with a probability of at least one half; 0 where nothing is valid."""
    total = int(np.count_nonzero(valid))
    return round(int(np.count_nonzero((probability >= FULL * CLOUDY) & valid)) / total, 6) if total else 0.0
