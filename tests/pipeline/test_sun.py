"""The sun stands where it is known to stand, and tells Beijing's clock from UTC."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import pytest
from real_files import find_samples

from sereno.pipeline.sun import AGREEMENT_DEG, compute_distance, compute_sun, decide_clock


@pytest.mark.parametrize(
    ("time", "place", "zenith_deg"),
    [
        # Solstices and equinox: at noon the zenith is latitude minus declination (23.44, -23.44, 0).
        (datetime(2020, 6, 20, 12, 1, 45, tzinfo=UTC), (0.0, 23.44), 0.0),  # equation of time -1 min 45 s
        (datetime(2020, 6, 20, 12, 1, 45, tzinfo=UTC), (0.0, 60.0), 36.56),
        (datetime(2020, 12, 21, 11, 58, tzinfo=UTC), (0.0, 50.0), 73.44),
        (datetime(2020, 3, 20, 12, 7, 20, tzinfo=UTC), (0.0, 0.0), 0.0),
    ],
)
def test_at_noon_the_zenith_is_latitude_minus_declination(time: datetime, place: tuple[float, float], zenith_deg: float) -> None:
    assert compute_sun(time, *place)[0] == pytest.approx(zenith_deg, abs=0.2)


def test_the_sun_rises_in_the_east_and_stands_south_at_noon() -> None:
    assert compute_sun(datetime(2020, 3, 20, 6, 30, tzinfo=UTC), 0.0, 40.0)[1] == pytest.approx(90, abs=10)
    assert compute_sun(datetime(2020, 3, 20, 12, 7, 20, tzinfo=UTC), 0.0, 40.0)[1] == pytest.approx(180, abs=0.5)
    assert compute_sun(datetime(2020, 3, 20, 17, 30, tzinfo=UTC), 0.0, 40.0)[1] == pytest.approx(270, abs=10)


def test_the_sun_is_nearest_in_january() -> None:
    nearest, farthest = (compute_distance(datetime(2020, month, 4, tzinfo=UTC)) for month in (1, 7))
    assert nearest == pytest.approx(0.98328, abs=3e-4)
    assert farthest == pytest.approx(1.01672, abs=3e-4)


@pytest.mark.parametrize("ahead_h", [0, 8])
def test_the_clock_is_told_by_the_zenith(ahead_h: int) -> None:
    utc = datetime(2021, 7, 3, 3, 12, 5, tzinfo=UTC)
    zenith, _ = compute_sun(utc, 117.4, 41.0)
    stated = datetime(2021, 7, 3, 3 + ahead_h, 12, 5)
    clock = decide_clock(stated, (117.4, 41.0), zenith + 0.3, where="P")
    assert (clock.time, clock.ahead_h, clock.warning) == (utc, ahead_h, "")
    assert clock.difference_deg == pytest.approx(0.3)


@pytest.mark.parametrize(("zenith_deg", "words"), [(None, "states no solar zenith"), (1.0, "neither as Beijing's")])
def test_without_agreement_beijing_is_assumed_and_said(zenith_deg: float | None, words: str) -> None:
    clock = decide_clock(datetime(2021, 1, 3, 11, 12), (117.4, 41.0), zenith_deg, where="PRODUCT")
    assert clock.time == datetime(2021, 1, 3, 3, 12, tzinfo=UTC)
    assert words in clock.warning
    assert "PRODUCT" in clock.warning


@pytest.mark.real
def test_real_products_state_beijing_time() -> None:
    found = sorted((find_samples() / "gaofen").rglob("GF[126]_*.xml"))
    assert found
    for path in found:
        root = ET.parse(path).getroot()
        corners = [f"{side}{end}" for side in ("Top", "Bottom") for end in ("Left", "Right")]
        longitude, latitude = (sum(float(root.findtext(f"{c}{axis}") or "") for c in corners) / 4 for axis in ("Longitude", "Latitude"))
        stated = datetime.fromisoformat(root.findtext("CenterTime") or "")
        clock = decide_clock(stated, (longitude, latitude), float(root.findtext("SolarZenith") or ""), where=path.name)
        assert (clock.ahead_h, clock.warning) == (8, "")
        assert clock.difference_deg is not None
        assert abs(clock.difference_deg) < AGREEMENT_DEG / 5
