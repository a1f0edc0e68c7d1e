"""The bands this project knows: names, native ground sampling distance, wavelength, and the names catalogues give them.

Pure tables; nothing here touches a file.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sereno.pipeline.errors import MissingError


class OpticalBand(NamedTuple):
    """One band of an optical sensor."""

    name: str
    """Name in the product, for example `B04`."""
    gsd_m: int
    """Native ground sampling distance in metres."""
    wavelength_nm: float
    """Central wavelength in nanometres: of Sentinel-2A (ESA, Sentinel-2 MSI user guide), of Gaofen-6 as said at its table."""
    common_name: str
    """Key of the asset in Earth Search, which differs from the product's name; of Gaofen a name for people."""


SENTINEL2_BANDS: Final = (
    OpticalBand("B01", 60, 442.7, "coastal"),
    OpticalBand("B02", 10, 492.4, "blue"),
    OpticalBand("B03", 10, 559.8, "green"),
    OpticalBand("B04", 10, 664.6, "red"),
    OpticalBand("B05", 20, 704.1, "rededge1"),
    OpticalBand("B06", 20, 740.5, "rededge2"),
    OpticalBand("B07", 20, 782.8, "rededge3"),
    OpticalBand("B08", 10, 832.8, "nir"),
    OpticalBand("B8A", 20, 864.7, "nir08"),
    OpticalBand("B09", 60, 945.1, "nir09"),
    OpticalBand("B10", 60, 1373.5, "cirrus"),
    OpticalBand("B11", 20, 1613.7, "swir16"),
    OpticalBand("B12", 20, 2202.4, "swir22"),
)
"""All thirteen MSI bands in the order of the product."""

L1C_BANDS: Final = tuple(band.name for band in SENTINEL2_BANDS)
"""Top-of-atmosphere products hold all thirteen bands; SEN12MS-CR stores them in this order."""
L2A_BANDS: Final = tuple(name for name in L1C_BANDS if name != "B10")
"""Surface-reflectance products drop the cirrus band."""
SAR_BANDS: Final = ("VV", "VH")
"""Polarisations of Sentinel-1 over land, in the order in which they are stored."""
POLARISATIONS: Final = ("VV", "VH", "HH", "HV")
"""All that Sentinel-1 has, in the order in which a record of a catalogue item holds them."""
SCL: Final = "SCL"
"""Scene classification layer of L2A, 20 m."""

GAOFEN_BANDS: Final = (
    OpticalBand("B1", 16, 488.2, "blue"),
    OpticalBand("B2", 16, 557.7, "green"),
    OpticalBand("B3", 16, 659.3, "red"),
    OpticalBand("B4", 16, 826.1, "nir"),
    OpticalBand("B5", 16, 700.5, "rededge1"),
    OpticalBand("B6", 16, 748.6, "rededge2"),
    OpticalBand("B7", 16, 431.9, "coastal"),
    OpticalBand("B8", 16, 608.9, "yellow"),
)
"""Bands of Gaofen-6 WFV in the order of the file, which is not that of their wavelengths (centroids of its spectral response). PMS, and the
optical cameras of Gaofen-1 and 2, have the first four, at 2 to 8 m, within 7 nm of these."""
GAOFEN_PMS_BANDS: Final = GAOFEN_BANDS[:4]
"""Those first four."""
PAN: Final = "PAN"
"""The panchromatic band of Gaofen's PMS, as a band and as an asset; it is read only if it is asked for."""


def select_gaofen_bands(sensor: str) -> tuple[str, ...]:
    """Names of the bands that multispectral images of an optical Gaofen `sensor` hold, in the order of the file."""
    return tuple(band.name for band in (GAOFEN_BANDS if sensor == "gaofen-wfv" else GAOFEN_PMS_BANDS))


def rgb_indices(bands: tuple[str, ...]) -> tuple[int, int, int]:
    """Positions of red, green and blue (B04, B03, B02; for Gaofen B3, B2, B1) in `bands`.

    Raises:
        MissingError: one of the three is not among them.
    """
    names = ("B3", "B2", "B1") if {"B1", "B2", "B3"} <= set(bands) else ("B04", "B03", "B02")
    missing = [name for name in names if name not in bands]
    if missing:
        raise MissingError(f"bands {missing} are needed for a true-colour picture, but only {list(bands)} are there")
    red, green, blue = (bands.index(name) for name in names)
    return red, green, blue
