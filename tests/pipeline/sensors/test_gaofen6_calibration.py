"""Digital numbers become reflectance by the published gains of the nearest year, or by those of the settings."""

from datetime import UTC, datetime

import numpy as np
import pytest

from sereno.pipeline.config import BandCalibration, GaofenSettings, IngestSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen6_calibration import ESUN, GAINS, compute_reflectance_factor, find_calibration, find_gains
from sereno.pipeline.sensors.gaofen6_metadata import Metadata
from sereno.pipeline.sun import Clock, compute_distance

PUBLISHED = {
    "GF6-WFV": """
        2018 .0667 .0517 .0485 .0298 .0530 .0450 .0814 .0559
        2019 .0705 .0567 .0516 .0322 .0532 .0453 .0786 .0585
        2020 .0675 .0552 .0513 .0314 .0519 .0454 .0718 .0596
        2021 .0633 .0532 .0508 .0325 .0523 .0463 .0670 .0591
        2022 .0631 .0469 .0443 .0297 .0503 .0439 .0775 .0505""",
    "GF6-PMS": """
        2018 .0825 .0663 .0513 .0298
        2019 .0847 .0653 .0491 .0289
        2020 .0820 .0645 .0489 .0286
        2021 .0821 .0671 .0518 .0310
        2022 .0892 .0666 .0517 .0320""",
}
"""Gains as public readers repeat the provider's bulletins (Snowy-Dove, Gaofen-Batch, ACOLITE), typed again."""
IRRADIANCE = {
    "GF6-WFV": (1952.16, 1847.43, 1554.76, 1074.06, 1412.00, 1267.39, 1792.64, 1736.92),
    "GF6-PMS": (1945.5, 1832.38, 1558.18, 1090.77),
}
"""Likewise (Gaofen-Batch)."""
OWN_SPECTRUM = {
    "GF6-WFV": (1989.4, 1862.3, 1549.5, 1059.5, 1418.5, 1265.1, 1818.4, 1730.2),
    "GF6-PMS": (1983.8, 1845.0, 1552.7, 1077.6),
}
"""Computed from spectral responses and the solar spectrum of Coddington 2023: an independent check of the order of bands."""
METADATA = Metadata(
    satellite="GF1",
    sensor="WFV3",
    level="LEVEL1A",
    n_bands=2,
    clock=Clock(datetime(2014, 7, 1, 3, tzinfo=UTC), 8, None, ""),
    corners=((117, 40),) * 4,
    sun_zenith_deg=30,
    sun_azimuth_deg=None,
    cloud_pct=None,
    orbit="",
    bits=None,
)


def test_reflectance_gives_the_worked_number() -> None:
    # DN 1000, gain 0.0675 (WFV B1 of 2020), ESUN 1952.16, zenith 30 degrees, d = 1.
    assert 1000 * compute_reflectance_factor(GAINS["GF6-WFV"][2020].bands[0], 1952.16, 30.0, 1.0) == pytest.approx(0.12543, abs=1e-5)


def test_distance_of_the_sun_counts_squared() -> None:
    near, far = (compute_reflectance_factor(0.0675, 1952.16, 30.0, distance) for distance in (0.9833, 1.0167))
    assert far / near == pytest.approx((1.0167 / 0.9833) ** 2)


def test_offsets_of_gains_are_radiance() -> None:
    """L = gain DN + offset, and reflectance = pi L d^2 / (ESUN cos zenith), computed again from the formula."""
    own = BandCalibration(gains=(0.2, 0.1), offsets=(3.0, -2.0), esun=(1900.0, 1500.0))
    settings = IngestSettings(gaofen=GaofenSettings(calibration={"GF1-WFV3": own}))
    found = find_calibration(METADATA, settings, where="P")
    distance = compute_distance(datetime(2014, 7, 1, tzinfo=UTC))
    for band, (gain, offset, esun) in enumerate(zip(own.gains, own.offsets, own.esun, strict=True)):
        expected = np.pi * (gain * 500 + offset) * distance**2 / (esun * np.cos(np.radians(30)))
        assert 500 * found.factors[band] + found.offsets[band] == pytest.approx(expected, rel=1e-9)
    assert compute_reflectance_factor(0.2, 1900, 30, distance) == pytest.approx(found.factors[0])


@pytest.mark.parametrize("instrument", PUBLISHED)
def test_gains_and_irradiance_are_the_published_ones(instrument: str) -> None:
    lines = [line.split() for line in PUBLISHED[instrument].split("\n") if line]
    expected = {int(year): tuple(map(float, gains)) for year, *gains in lines}
    assert {year: gains.bands for year, gains in GAINS[instrument].items()} == expected
    assert ESUN[instrument] == IRRADIANCE[instrument]
    np.testing.assert_allclose(ESUN[instrument], OWN_SPECTRUM[instrument], rtol=0.022)


@pytest.mark.parametrize(("year", "used"), [(2013, 2018), (2018, 2018), (2021, 2021), (2030, 2022)])
def test_gains_are_those_of_the_nearest_year(year: int, used: int) -> None:
    assert find_gains("GF6-PMS", year) == (used, GAINS["GF6-PMS"][used])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "gains of GF1-WFV3 are not in the table"),
        ({"satellite": "GF6", "sensor": "PMS"}, "4 gains for 2 bands"),
        ({"satellite": "GF6", "sensor": "PMS", "n_bands": 4, "sun_zenith_deg": 92.0}, "without light there is no reflectance"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=f"PRODUCT: .*{words}"):
        find_calibration(METADATA._replace(**changes), IngestSettings(), where="PRODUCT")  # type: ignore[arg-type]
