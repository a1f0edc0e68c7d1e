"""Optical sensors beside Sentinel-2 and Gaofen whose catalogues serve surface reflectance: one row of a table each.

Enters: the name of a product, or numbers of its quality band. Leaves: which asset holds which of our bands, how numbers become reflectance,
and classes as Sentinel-2's scene classification numbers them, which all later steps know. A further collection is one more row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, SCL
from sereno.pipeline.pairs import ItemRecord, Sensor

QA: Final = "QA"
"""Our name of the asset with the quality bits of a pixel, which stands where Sentinel-2 has its scene classification."""
CLASSIFICATIONS: Final = (SCL, QA)
"""Assets that say what a pixel shows; an item has one of them at most."""
NODATA, SHADOW, CLEAR, WATER, DILATED, CLOUD, CIRRUS, SNOW = 0, 3, 5, 6, 8, 9, 10, 11
"""Classes in the numbers of the scene classification (ESA, Sentinel-2 L2A product definition): CLEAR is its `not vegetated` and stands for
clear land of any kind, DILATED its `cloud of medium probability`."""
COVERED: Final = (SHADOW, DILATED, CLOUD, CIRRUS)
"""Classes through which the ground is not seen as it is."""
SCALE_ERROR: Final = 1e-6
"""Stated scales and offsets are equal to ours up to this share: they are written in decimals."""


class Flag(NamedTuple):
    """One meaning of some neighbouring bits."""

    shift: int
    """First bit, from 0."""
    width: int
    """Number of bits."""
    values: tuple[int, ...]
    """Values of these bits that have the meaning."""
    scene_class: int
    """The meaning."""


class Quality(NamedTuple):
    """A band of quality bits."""

    key: str
    """Key of its asset, in small letters."""
    flags: tuple[Flag, ...]
    """Of those that hold the first decides; where none does the ground is clear."""
    fill: int
    """What stands where nothing was seen."""


class Imager(NamedTuple):
    """One product."""

    name: str
    """For people."""
    pattern: str
    """What ids of its items look like."""
    bands: Mapping[str, tuple[str, ...]]
    """Names of assets, or of the band inside, by our name: those of Sentinel-2's bands that see the same. All of one item are alike."""
    synonyms: Mapping[str, str]
    """Further names of ours for a band: the near infrared of Landsat and MODIS is as narrow as B8A, and stands for B08 as well."""
    scale: float
    """Reflectance of one digital number ..."""
    offset: float
    """... and what is added to it."""
    fill: int
    """Digital number of missing pixels, whatever the file declares."""
    valid_range: tuple[int, int]
    """Smallest and largest number that is data."""
    pixel_m: float
    """Side of a pixel."""
    quality: Quality | None
    """None: the product has no clouds, since what they hid was filled from other days."""
    coarse_m: float | None = None
    """Pixel of the coarse grid that it fills by default; None if it is no coarse sensor by trade."""

    @property
    def band_names(self) -> tuple[str, ...]:
        """Our names of its bands, each band once."""
        return tuple(self.bands)

    def names_of(self, band: str) -> tuple[str, ...]:
        """What catalogues call one of our bands; nothing if it has no such band."""
        return self.bands.get(self.synonyms.get(band, band), ())


LANDSAT_QA: Final = Quality(
    "qa_pixel",
    (
        Flag(0, 1, (1,), NODATA),
        Flag(3, 1, (1,), CLOUD),
        Flag(2, 1, (1,), CIRRUS),
        Flag(1, 1, (1,), DILATED),
        Flag(4, 1, (1,), SHADOW),
        Flag(5, 1, (1,), SNOW),
        Flag(7, 1, (1,), WATER),
    ),
    1,
)
"""QA_PIXEL of Collection 2 (USGS 2022, LSDS-1619, Landsat 8-9 Collection 2 Level 2 Science Product Guide, table of the pixel quality band).
Bit 2 says nothing before Landsat 8."""
MODIS_STATE: Final = Quality(
    "sur_refl_state_500m",
    (
        Flag(0, 2, (1, 2), CLOUD),
        Flag(10, 1, (1,), CLOUD),
        Flag(8, 2, (2, 3), CIRRUS),
        Flag(2, 1, (1,), SHADOW),
        Flag(12, 1, (1,), SNOW),
        Flag(3, 3, (0, 3, 4, 5, 6, 7), WATER),
    ),
    65_535,
)
"""State of 500 m pixels (Vermote et al. 2015, MOD09 User's Guide 1.4, table 13): cloudy and mixed alike are cloud, and so is what the
product's own test finds; cirrus counts from `average` on. Pixels next to a cloud (bit 13) count as clear: the composite has chosen them."""
LANDSAT: Final = Imager(
    name="Landsat 8/9 Collection 2 Level-2",
    pattern=r"^L[CO]0[89]_L2S[PR]_",
    bands={
        "B01": ("coastal", "SR_B1"),
        "B02": ("blue", "SR_B2"),
        "B03": ("green", "SR_B3"),
        "B04": ("red", "SR_B4"),
        "B08": ("nir08", "SR_B5"),
        "B11": ("swir16", "SR_B6"),
        "B12": ("swir22", "SR_B7"),
    },
    synonyms={"B8A": "B08"},
    scale=2.75e-5,
    offset=-0.2,
    fill=0,
    valid_range=(1, 65_455),
    pixel_m=30.0,
    quality=LANDSAT_QA,
)
MODIS: Final = Imager(
    name="MODIS 09A1 (8 days)",
    pattern=r"^M[OY]D09A1\.",
    bands={
        "B02": ("sur_refl_b03",),
        "B03": ("sur_refl_b04",),
        "B04": ("sur_refl_b01",),
        "B08": ("sur_refl_b02",),
        "B11": ("sur_refl_b06",),
        "B12": ("sur_refl_b07",),
    },
    synonyms={"B8A": "B08"},
    scale=1e-4,
    offset=0.0,
    fill=-28_672,
    valid_range=(-100, 16_000),
    pixel_m=463.3127165,
    quality=MODIS_STATE,
    coarse_m=480.0,
)
IMAGERS: Final[Mapping[Sensor, Imager]] = {
    "landsat-oli": LANDSAT,
    "landsat-tm": LANDSAT._replace(
        name="Landsat 4/5/7 Collection 2 Level-2",
        pattern=r"^(LT0[45]|LE07)_L2S[PR]_",
        bands={
            "B02": ("blue", "SR_B1"),
            "B03": ("green", "SR_B2"),
            "B04": ("red", "SR_B3"),
            "B08": ("nir08", "SR_B4"),
            "B11": ("swir16", "SR_B5"),
            "B12": ("swir22", "SR_B7"),
        },
    ),
    "modis-09a1": MODIS,
    "modis-43a4": MODIS._replace(
        name="MODIS 43A4 (daily)",
        pattern=r"^MCD43A4\.",
        bands={name: (f"Nadir_Reflectance_Band{int(keys[0][-2:])}",) for name, keys in MODIS.bands.items()},
        fill=32_767,
        valid_range=(0, 32_766),
        quality=None,
    ),
}
"""By sensor. Landsat: USGS 2022, LSDS-1619 and LSDS-1618 (scale and offset are the same for all of Collection 2), assets as Planetary
Computer and Earth Search name them. MODIS: Vermote et al. 2015 and Schaaf et al. 2002 (MCD43), assets as Planetary Computer names them."""
SENTINEL2_PIXEL_M: Final = 10.0
"""Finest pixel of Sentinel-2."""
COLLECTIONS: Final = ((re.compile("modis", re.IGNORECASE), MODIS),)
"""What collections are called whose pixel decides the coarse grid before anything is found."""


def find_imager(item: str) -> Sensor | None:
    """The sensor of an item by its id; None if no row of the table knows such ids."""
    return next((sensor for sensor, imager in IMAGERS.items() if re.match(imager.pattern, item)), None)


def find_classification(item: ItemRecord) -> str | None:
    """Name of the asset that says what a pixel of `item` shows; None if it has none."""
    return next((name for name in CLASSIFICATIONS if name in item.assets), None)


def has_classification(sensor: Sensor) -> bool:
    """Whether items of an optical sensor should say what a pixel shows: those of composites filled from other days never do."""
    return sensor not in IMAGERS or IMAGERS[sensor].quality is not None


def select_bands(sensor: Sensor) -> tuple[str, ...]:
    """All our names of the bands of an optical sensor with reflectance of the ground, synonyms among them; nothing for other sensors."""
    if sensor in IMAGERS:
        return (*IMAGERS[sensor].bands, *IMAGERS[sensor].synonyms)
    return {"sentinel2-l2a": L2A_BANDS, "sentinel2-l1c": L1C_BANDS}.get(sensor, ())


def find_coarse_m(collections: tuple[str, ...]) -> float | None:
    """Pixel of the coarse grid that goes with the first of the collections that a coarse sensor by trade fills; None without one."""
    found = (imager.coarse_m for name in collections for pattern, imager in COLLECTIONS if pattern.search(name))
    return next(found, None)


def pixel_of(sensor: Sensor) -> float:
    """Side of a sensor's own pixel in metres; that of Sentinel-2 for sensors without a row."""
    return IMAGERS[sensor].pixel_m if sensor in IMAGERS else SENTINEL2_PIXEL_M


def find_contradiction(imager: Imager, stated: Mapping[str, Any]) -> str:
    """What `raster:bands` of an asset (`scale`, `offset`) says against the table, in words; empty if it agrees or says nothing."""
    known = {"scale": imager.scale, "offset": imager.offset}
    wrong = [
        f"{key} {stated[key]:g} where it is {value:g}"
        for key, value in known.items()
        if stated.get(key) is not None and not math.isclose(stated[key], value, rel_tol=SCALE_ERROR, abs_tol=SCALE_ERROR * imager.scale)
    ]
    return " and ".join(wrong)


def to_classes(quality: Quality, bits: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scene classes of the numbers of a quality band, of any shape."""
    classes = np.full(bits.shape, CLEAR, np.uint8)
    for flag in reversed(quality.flags):  # so that the first one has the last word
        classes[np.isin((bits >> flag.shift) & ((1 << flag.width) - 1), flag.values)] = flag.scene_class
    classes[bits == quality.fill] = NODATA
    return classes


def is_covered(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where classes say cloud or shadow."""
    covered: npt.NDArray[np.bool_] = np.isin(classes, COVERED)
    return covered
