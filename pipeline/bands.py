"""The bands this project knows: names, native ground sampling distance, wavelength, and the names catalogues give them.

Pure tables; nothing here touches a file.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sereno.pipeline.errors import MissingError


class OpticalBand(NamedTuple):
    """One Sentinel-2 MSI band."""

    name: str
    """Name in the product, for example `B04`."""
    gsd_m: int
    """Native ground sampling distance in metres."""
    wavelength_nm: float
    """Central wavelength of Sentinel-2A in nanometres (ESA, Sentinel-2 MSI user guide)."""
    common_name: str
    """Key of the asset in Earth Search, which differs from the product's name."""


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


def rgb_indices(bands: tuple[str, ...]) -> tuple[int, int, int]:
    """Positions of red, green and blue (B04, B03, B02) in `bands`.

    Raises:
        MissingError: one of the three is not among them.
    """
    missing = [name for name in ("B04", "B03", "B02") if name not in bands]
    if missing:
        raise MissingError(f"bands {missing} are needed for a true-colour picture, but only {list(bands)} are there")
    return bands.index("B04"), bands.index("B03"), bands.index("B02")
