"""The XML of optical Gaofen products is read, or refused by name; their clock is told by the sun."""

from datetime import UTC, datetime

import pytest
from real_files import find_samples

from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen6_metadata import NAME, parse_metadata

CORNERS = ("TopLeft", "TopRight", "BottomRight", "BottomLeft")


def write_metadata(**changes: str) -> str:
    """The XML of a product with the least that is needed."""
    values = {"SatelliteID": "GF1", "SensorID": "WFV3", "ProductLevel": "LEVEL1A", "Bands": "1,2", "CenterTime": "2014-07-01 11:00:00"}
    values |= {f"{end}Latitude": "40" for end in CORNERS} | {f"{end}Longitude": "117" for end in CORNERS} | changes
    return f"<ProductMetaData>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in values.items())}</ProductMetaData>"


def test_what_is_stated_is_read() -> None:
    found = parse_metadata(write_metadata(SolarZenith="30", ValidPixelBits="12", CloudPercent="7"), where="P")
    assert (found.satellite, found.sensor, found.level, found.n_bands) == ("GF1", "WFV3", "LEVEL1A", 2)
    assert (found.sun_zenith_deg, found.bits, found.cloud_pct, found.sun_azimuth_deg) == (30, 12, 7, None)
    assert found.corners == ((117, 40),) * 4


def test_a_sun_that_is_not_stated_is_computed() -> None:
    """11:00 in Beijing is 10:44 of the sun at 117 degrees: a few degrees below its height at noon, 40 - 23.1 = 16.9 degrees off zenith."""
    found = parse_metadata(write_metadata(), where="P")
    assert found.clock.time == datetime(2014, 7, 1, 3, tzinfo=UTC)
    assert 17 < found.sun_zenith_deg < 28


@pytest.mark.parametrize("empty", ["", "NULL", " "])
def test_empty_elements_are_missing(empty: str) -> None:
    assert parse_metadata(write_metadata(ValidPixelBits=empty), where="P").bits is None
    with pytest.raises(DataError, match="PRODUCT: lacks SensorID"):
        parse_metadata(write_metadata(SensorID=empty), where="PRODUCT")


@pytest.mark.parametrize("name", ["order.xml", "GF6_PMS_E117.4_N41.0_20230426_L1A1420312367-MUX_thumb.jpg"])
def test_names_of_other_files_do_not_match(name: str) -> None:
    assert NAME.match(name) is None


@pytest.mark.real
def test_real_metadata_of_gaofen_1_and_2_are_read() -> None:
    seen = {}
    for path in sorted((find_samples() / "gaofen").rglob("GF[12]_*.xml")):
        found = parse_metadata(path.read_bytes(), where=path.name)
        seen[path.name.split("_")[0] + found.sensor + str(found.n_bands)] = found
        assert found.clock.ahead_h == 8
        assert not found.clock.warning
    assert seen["GF1WFV34"].clock.time == datetime(2020, 5, 23, 5, 3, 8, tzinfo=UTC)
    assert (seen["GF1WFV34"].cloud_pct, seen["GF1WFV34"].sun_zenith_deg) == (38, 13.7242)
    assert seen["GF2PMS14"].clock.time.day == 10
    assert seen["GF2PMS11"].n_bands == 1
