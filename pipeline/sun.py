"""Where the sun stands: its zenith, azimuth and distance at a time and place, and which clock a stated time was read from.

Times and places enter, degrees and astronomical units leave. Products state the sun's zenith beside a time whose clock they do not name:
the clock under which the two agree is the right one.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

BEIJING_H: Final = 8
"""Hours by which China's clock is ahead of UTC."""
AGREEMENT_DEG: Final = 1.5
"""A clock is believed if the sun under it stands this near to where the product says."""
J2000: Final = datetime(2000, 1, 1, 12, tzinfo=UTC)
"""The epoch that the sun's position is counted from."""


class Clock(NamedTuple):
    """What a stated time means."""

    time: datetime
    """UTC."""
    ahead_h: int
    """Hours by which the product's clock is ahead of UTC."""
    difference_deg: float | None
    """Stated minus computed zenith of the sun, degrees; None if none is stated."""
    warning: str
    """What a user should look at; empty if nothing."""


def compute_sun(time: datetime, longitude_deg: float, latitude_deg: float) -> tuple[float, float]:
    """Zenith and azimuth (clockwise from north) of the sun in degrees at a UTC time, without refraction.

    Right to 0.02 degrees between 1950 and 2050. Source: The Astronomical Almanac, low-precision formulas for the sun.
    """
    days = (time - J2000).total_seconds() / 86_400
    anomaly = math.radians(357.528 + 0.9856003 * days)
    longitude = math.radians(280.460 + 0.9856474 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    obliquity = math.radians(23.439 - 4e-7 * days)
    right_ascension = math.atan2(math.cos(obliquity) * math.sin(longitude), math.cos(longitude))
    declination = math.asin(math.sin(obliquity) * math.sin(longitude))
    sidereal_deg = 280.46062 + 360.98564737 * days + longitude_deg
    hour_angle, latitude = math.radians(sidereal_deg) - right_ascension, math.radians(latitude_deg)
    east = -math.cos(declination) * math.sin(hour_angle)
    north = math.sin(declination) * math.cos(latitude) - math.cos(declination) * math.sin(latitude) * math.cos(hour_angle)
    up = math.sin(declination) * math.sin(latitude) + math.cos(declination) * math.cos(latitude) * math.cos(hour_angle)
    return math.degrees(math.acos(max(-1.0, min(1.0, up)))), math.degrees(math.atan2(east, north)) % 360


def compute_distance(time: datetime) -> float:
    """Distance of the sun in astronomical units: 1 - 0.01672 cos(0.9856 degrees (day of year - 4)); right to 0.0003.

    Source: the form in which Landsat's and CRESDA's conversions to reflectance use it (Chander et al. 2009, section 2.3, gives the table).
    """
    return 1 - 0.01672 * math.cos(math.radians(0.9856 * (time.timetuple().tm_yday - 4)))


def decide_clock(stated: datetime, place: tuple[float, float], zenith_deg: float | None, *, where: str) -> Clock:
    """What the time `stated` (without a zone) at `place` (longitude, latitude) means, by the zenith that the product states beside it.

    Tried are Beijing's clock and UTC. If neither agrees, or no zenith is stated, it is taken as Beijing's, and a warning names `where`.
    """
    moments = {ahead: stated.replace(tzinfo=UTC) - timedelta(hours=ahead) for ahead in (BEIJING_H, 0)}
    if zenith_deg is None:
        words = f"{where} states no solar zenith, so its time {stated} is taken as Beijing's (UTC+8)"
        return Clock(moments[BEIJING_H], BEIJING_H, None, words)
    misses = {ahead: zenith_deg - compute_sun(moment, *place)[0] for ahead, moment in moments.items()}
    ahead = min(misses, key=lambda key: abs(misses[key]))
    if abs(misses[ahead]) <= AGREEMENT_DEG:
        return Clock(moments[ahead], ahead, misses[ahead], "")
    words = (
        f"{where} states a solar zenith of {zenith_deg:.2f} degrees, which its time {stated} gives neither as Beijing's "
        f"({misses[BEIJING_H]:+.1f}) nor as UTC ({misses[0]:+.1f}): taken as Beijing's, compare it with the archive's page"
    )
    return Clock(moments[BEIJING_H], BEIJING_H, misses[BEIJING_H], words)
