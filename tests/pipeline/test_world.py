from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from sereno.pipeline.config import SERIES_CLOUDY_DATES
from sereno.pipeline.world import (
    draw_sky,
    make_rng,
    name_landsat,
    name_modis,
    name_optical,
    name_sar,
    plan_flights,
    plan_landsat_visits,
    plan_visits,
)


@pytest.mark.parametrize("count", range(1, 7))
def test_every_cloudy_date_has_a_clear_one_within_ten_days_and_both_kinds_of_baseline_occur(count: int) -> None:
    visits = plan_visits(count)
    clear = [visit.day for visit in visits if visit.role == "clear"]
    cloudy = [visit.day for visit in visits if visit.role == "cloudy"]
    assert len(cloudy) == count
    assert all(min(abs(day - other) for other in clear) <= 10 for day in cloudy)
    assert len({float(visit.baseline) >= 4 for visit in visits}) == 2
    assert [visit.role for visit in visits if visit.wedge] == ["cloudy"]


def test_date_of_acquisition_does_not_tell_the_offset() -> None:
    offsets = [float(visit.baseline) >= 4 for visit in plan_visits(3)]
    assert offsets != sorted(offsets)
    assert offsets != sorted(offsets, reverse=True)


def test_visits_follow_each_other_every_five_days_and_areas_differ_by_seconds() -> None:
    first, second = plan_visits(1)[:2]
    start = date(2021, 6, 3)
    assert second.time_at(start, 0) - first.time_at(start, 0) == timedelta(days=5)
    assert second.time_at(start, 1) - second.time_at(start, 0) == timedelta(seconds=7)


def test_sar_flies_within_a_day_and_a_half_of_its_partner_and_once_too_early() -> None:
    first = datetime(2021, 6, 3, 10, 20, tzinfo=UTC)
    cloudy = [(f"item{day}", first + timedelta(days=day)) for day in (5, 10, 20)]
    early, *others = plan_flights(first, cloudy)
    assert early.partner is None
    assert min(abs(early.time - moment) for _, moment in cloudy) > timedelta(days=5)
    for flight, (item, moment) in zip(others, cloudy, strict=True):
        assert flight.partner == item
        assert abs(flight.time - moment) <= timedelta(days=1.5)


def test_names_are_those_of_the_catalogues() -> None:
    moment = datetime(2021, 6, 8, 10, 20, tzinfo=UTC)
    assert name_optical("32TNR", moment, "05.00", "earth-search") == "S2A_T32TNR_20210608T102000_L2A"
    assert name_optical("33TVL", moment, "03.00", "planetary-computer") == "S2A_MSIL2A_20210608T102000_R022_T33TVL_20210608T132000"
    [flight] = plan_flights(moment, [])
    assert name_sar(flight).startswith("S1A_IW_GRDH_1SDV_20210604T170048_20210604T170113_")
    assert name_sar(flight).endswith("_rtc")


def test_cloudy_skies_are_cloudier_than_clear_ones() -> None:
    clear, cloudy, overcast = (draw_sky(np.random.default_rng(0), role, 1680).cover for role in ("clear", "cloudy", "overcast"))
    assert clear < 0.02
    assert 0.25 < cloudy < 0.5
    assert overcast > 0.95


def test_generators_depend_on_every_part_of_their_key() -> None:
    assert make_rng(7, "west", "ground").random() == make_rng(7, "west", "ground").random()
    draws = {make_rng(*key).random() for key in ((7, "west", "ground"), (8, "west", "ground"), (7, "east", "ground"), (7, "west", "sky"))}
    assert len(draws) == 4


def test_a_series_needs_three_clear_dates_and_so_many_cloudy_ones() -> None:
    clear = {dates: [visit.role for visit in plan_visits(dates)].count("clear") for dates in range(1, 7)}
    assert min(dates for dates, count in clear.items() if count >= 3) == SERIES_CLOUDY_DATES


def test_landsat_sees_clear_and_cloudy_dates_in_turn_and_ends_clear() -> None:
    visits = plan_landsat_visits(2)
    assert [(visit.role, visit.day) for visit in visits] == [("clear", 0), ("cloudy", 8), ("clear", 16), ("cloudy", 24), ("clear", 32)]


def test_names_are_those_of_the_providers() -> None:
    assert name_landsat(datetime(2022, 1, 29, tzinfo=UTC), (10, 65)) == "LC09_L2SP_010065_20220129_02_T1"
    assert name_modis(datetime(2022, 2, 2, tzinfo=UTC), (19, 10)).startswith("MOD09A1.A2022033.h19v10.061.2022050")
