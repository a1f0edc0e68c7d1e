"""How digital numbers of Gaofen-6, and of the optical Gaofen-1 and 2, become reflectance at the top of the atmosphere.

The metadata of a product and the settings enter, factors and offsets by band leave. Gains change every year and are in no product: a table
has those of Gaofen-6, the settings may give others.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen6_metadata import Metadata
from sereno.pipeline.sun import compute_distance

SOURCE: Final = "CRESDA's yearly bulletin as public readers repeat it"
"""Where the table of gains comes from: the bulletins themselves could not be opened."""
ONE_SOURCE: Final = f"{SOURCE}, in one of them only"
DISPUTED: Final = f"{SOURCE}, two of three: the third has 0.0534, which looks like a copy of 2019"


class Gains(NamedTuple):
    """Gains of one year, W m-2 sr-1 um-1 per digital number; there are no offsets."""

    bands: tuple[float, ...]
    """In the order of the file."""
    source: str
    """Where they come from."""


GAINS: Final[dict[str, dict[int, Gains]]] = {
    "GF6-WFV": {
        2018: Gains((0.0667, 0.0517, 0.0485, 0.0298, 0.0530, 0.0450, 0.0814, 0.0559), SOURCE),
        2019: Gains((0.0705, 0.0567, 0.0516, 0.0322, 0.0532, 0.0453, 0.0786, 0.0585), SOURCE),
        2020: Gains((0.0675, 0.0552, 0.0513, 0.0314, 0.0519, 0.0454, 0.0718, 0.0596), SOURCE),
        2021: Gains((0.0633, 0.0532, 0.0508, 0.0325, 0.0523, 0.0463, 0.0670, 0.0591), ONE_SOURCE),
        2022: Gains((0.0631, 0.0469, 0.0443, 0.0297, 0.0503, 0.0439, 0.0775, 0.0505), ONE_SOURCE),
    },
    "GF6-PMS": {
        2018: Gains((0.0825, 0.0663, 0.0513, 0.0298), SOURCE),
        2019: Gains((0.0847, 0.0653, 0.0491, 0.0289), SOURCE),
        2020: Gains((0.0820, 0.0645, 0.0489, 0.0286), SOURCE),
        2021: Gains((0.0821, 0.0671, 0.0518, 0.0310), ONE_SOURCE),
        2022: Gains((0.0892, 0.0666, 0.0517, 0.0320), ONE_SOURCE),
    },
    "GF6-PMS-PAN": {
        2018: Gains((0.0505,), SOURCE),
        2019: Gains((0.0534,), SOURCE),
        2020: Gains((0.0537,), DISPUTED),
        2021: Gains((0.0577,), ONE_SOURCE),
        2022: Gains((0.0569,), ONE_SOURCE),
    },
}
"""By instrument and year. Between two years they differ by up to 15 %, so that of the acquisition counts."""
ESUN: Final[dict[str, tuple[float, ...]]] = {
    "GF6-WFV": (1952.16, 1847.43, 1554.76, 1074.06, 1412.00, 1267.39, 1792.64, 1736.92),
    "GF6-PMS": (1945.5, 1832.38, 1558.18, 1090.77),
    "GF6-PMS-PAN": (1497.79,),
}
"""Solar irradiance at one astronomical unit, W m-2 um-1, as a public reader has it; other spectra differ by up to 2 %."""


class Calibration(NamedTuple):
    """How digital numbers become reflectance."""

    factors: tuple[float, ...]
    """Reflectance per digital number, by band."""
    offsets: tuple[float, ...]
    """Reflectance at digital number 0, by band."""
    facts: dict[str, Any]
    """Where it comes from, for the provenance."""
    warnings: tuple[str, ...]
    """What a user should know."""


def compute_reflectance_factor(gain: float, esun: float, zenith_deg: float, distance_au: float) -> float:
    """Reflectance at the top of the atmosphere per digital number: pi gain d^2 / (ESUN cos(zenith)) (Chander et al. 2009, equation 2)."""
    return math.pi * gain * distance_au**2 / (esun * math.cos(math.radians(zenith_deg)))


def find_gains(instrument: str, year: int) -> tuple[int, Gains]:
    """The year of the table of `instrument` that is nearest to `year`, the earlier of two, and its gains."""
    years = GAINS[instrument]
    nearest = min(years, key=lambda known: (abs(known - year), known))
    return nearest, years[nearest]


def find_calibration(metadata: Metadata, settings: IngestSettings, *, where: str) -> Calibration:
    """How the digital numbers of a product become reflectance: by the settings, else by the table of its year.

    A year that the table does not have takes the nearest one's gains, with a warning.

    Raises:
        DataError: there are no gains for the instrument, or not one per band, or the sun was not above the horizon.
    """
    instrument = f"{metadata.satellite}-{metadata.sensor}"
    own, year, notes = settings.gaofen.calibration.get(instrument), metadata.clock.time.year, []
    if own is not None:
        gains, offsets, esun = own.gains, own.offsets or (0.0,) * len(own.gains), own.esun
        used, source = None, "pipeline.ingest.gaofen.calibration"
    elif instrument in GAINS:
        used, (gains, source) = find_gains(instrument, year)
        offsets, esun = (0.0,) * len(gains), ESUN[instrument]
        if used != year:
            notes.append(
                f"{where}: gains of {year} are not known, those of {used} are taken, which may be wrong by 15 %: set "
                f"pipeline.ingest.gaofen.calibration.{instrument} from the provider's bulletin"
            )
    else:
        raise DataError(
            f"{where}: gains of {instrument} are not in the table (it has {', '.join(GAINS)}): set "
            f"pipeline.ingest.gaofen.calibration.{instrument} with gains and esun from the provider's bulletin of {year}"
        )
    if len(gains) != metadata.n_bands:
        raise DataError(
            f"{where}: {len(gains)} gains for {metadata.n_bands} bands; correct pipeline.ingest.gaofen.calibration.{instrument}"
        )
    if not 0 <= metadata.sun_zenith_deg < 90:
        raise DataError(
            f"{where}: the sun stood at a zenith of {metadata.sun_zenith_deg:.1f} degrees, without light there is no reflectance"
        )
    distance = compute_distance(metadata.clock.time)
    factors = [compute_reflectance_factor(gain, sun, metadata.sun_zenith_deg, distance) for gain, sun in zip(gains, esun, strict=True)]
    lowest = [factor / gain * offset for factor, gain, offset in zip(factors, gains, offsets, strict=True)]
    facts = {"calib_source": source, "calib_year": used, "gains": list(gains), "esun": list(esun), "sun_distance_au": round(distance, 5)}
    return Calibration(tuple(factors), tuple(lowest), facts, tuple(notes))
