"""The plan of a simulated world: which satellite passes when, under which sky, and what its product is called.

Enters: settings and names. Leaves: planned visits and flights; nothing is drawn or written here but random numbers for the sky.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal, NamedTuple

import numpy as np

from sereno.pipeline.atmosphere import SkySettings
from sereno.pipeline.stac import Dialect, has_offset

MARGIN_PX: Final = 24
"""Optical products are larger than their area by this much on each side; a multiple of 6, so that 60 m pixels fit."""
SAR_MARGIN_PX: Final = (48, 40, 30, 54)
"""The same for SAR products: above, below, left, right."""
REVISIT_DAYS: Final = 5
"""Time between optical scenes: that of Sentinel-2 with two satellites."""
LANDSAT_REVISIT_DAYS: Final = 8
"""That of Landsat with two satellites."""
OVERPASS: Final = timedelta(hours=10, minutes=20, milliseconds=24)
"""UTC time of day of the optical scenes."""
AREA_DELAY: Final = timedelta(seconds=7)
"""Time from one area to the next, so that no two products of a world share a name."""
BASELINES: Final = ("03.00", "05.00", "03.01", "05.09", "02.14", "04.00")
"""Processing baselines in turn, old and reprocessed products mixed, so that the date of acquisition never tells the offset."""

Role = Literal["clear", "cloudy", "overcast"]
Direction = Literal["ascending", "descending"]

SAR_PASSES: Final[tuple[tuple[timedelta, Direction, int], ...]] = (
    (timedelta(hours=6, minutes=41), "ascending", 15),
    (timedelta(hours=-28, minutes=-54), "descending", 66),
    (timedelta(hours=19, minutes=5), "descending", 139),
)
"""Time from the optical scene, direction and track of the SAR scenes, in turn."""
SAR_TOO_EARLY: Final = timedelta(days=-4, hours=6, minutes=41)
"""Time from the first optical scene of one SAR scene that no cloudy scene is near enough to."""


class Visit(NamedTuple):
    """One optical acquisition that is planned."""

    role: Role
    """What it will be good for; an overcast scene is there to be refused."""
    day: int
    """Days after the first one."""
    baseline: str
    """Processing baseline of its product."""
    wedge: bool
    """Whether it lies at the edge of the swath, so that a wedge of it is without data."""

    def time_at(self, first_day: date, area_number: int) -> datetime:
        """Moment of acquisition over an area, UTC."""
        return datetime.combine(first_day, time(), UTC) + timedelta(days=self.day) + OVERPASS + area_number * AREA_DELAY


class Flight(NamedTuple):
    """One SAR acquisition that is planned."""

    time: datetime
    """Moment of acquisition, UTC."""
    direction: Direction
    """Direction of flight."""
    track: int
    """Relative orbit."""
    partner: str | None
    """Item of the cloudy scene it goes with; None for a scene that is there to be refused."""


def make_rng(*key: object) -> np.random.Generator:
    """A Generator that depends on every part of `key` and on nothing else."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


def plan_visits(cloudy_dates: int, *, first_baseline: int = 0) -> list[Visit]:
    """The optical acquisitions of an area: every cloudy one within ten days of a clear one, then one too cloudy to use."""
    roles: list[Role] = []
    while roles.count("cloudy") < cloudy_dates:
        roles.append("clear" if len(roles) % 3 == 0 else "cloudy")
    roles.append("overcast")
    wedge = min(2, len(roles) - 2)
    return [
        Visit(role, REVISIT_DAYS * index, BASELINES[(index + first_baseline) % len(BASELINES)], index == wedge)
        for index, role in enumerate(roles)
    ]


def plan_landsat_visits(cloudy_dates: int) -> list[Visit]:
    """The Landsat acquisitions of an area: clear and cloudy ones in turn, a clear one first and last."""
    roles: list[Role] = ["clear"]
    for _ in range(cloudy_dates):
        roles += ["cloudy", "clear"]
    return [Visit(role, LANDSAT_REVISIT_DAYS * index, "", wedge=False) for index, role in enumerate(roles)]


def plan_flights(first: datetime, cloudy: list[tuple[str, datetime]]) -> list[Flight]:
    """The SAR acquisitions of an area: one too early for any, then one for each cloudy scene (item, time)."""
    flights = [Flight(first + SAR_TOO_EARLY, "ascending", 15, None)]
    for index, (item, moment) in enumerate(cloudy):
        gap, direction, track = SAR_PASSES[index % len(SAR_PASSES)]
        flights.append(Flight(moment + gap, direction, track, item))
    return flights


def draw_sky(rng: np.random.Generator, role: Role, size_px: int) -> SkySettings:
    """How cloudy a scene of that role is; clouds of half a kilometre to four."""
    if role == "clear":
        return SkySettings(cover=0.005, blob_px=8, haze=0.0, cirrus=0.0, base_m=900)
    blob = min(rng.uniform(45, 80), 0.1 * size_px)
    cover = rng.uniform(0.28, 0.42) if role == "cloudy" else 0.985
    return SkySettings(cover, blob, rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.35), rng.uniform(700, 2000))


def name_optical(grid_code: str, moment: datetime, baseline: str, dialect: Dialect) -> str:
    """Id of a Sentinel-2 L2A item, in the manner of its catalogue; Planetary Computer adds when the product was made."""
    stamp = f"{moment:%Y%m%dT%H%M%S}"
    if dialect == "earth-search":
        return f"S2A_T{grid_code}_{stamp}_L2A"
    made = "20230512T034501" if has_offset(baseline) else f"{moment + timedelta(hours=3):%Y%m%dT%H%M%S}"
    return f"S2A_MSIL2A_{stamp}_R022_T{grid_code}_{made}"


def name_landsat(moment: datetime, path_row: tuple[int, int]) -> str:
    """Id of a Landsat 9 item in both catalogues."""
    return f"LC09_L2SP_{path_row[0]:03d}{path_row[1]:03d}_{moment:%Y%m%d}_02_T1"


def name_modis(start: datetime, tile: tuple[int, int]) -> str:
    """Id of a composite of MODIS on Terra that begins on that day; made nine days after its end, at noon."""
    return f"MOD09A1.A{start:%Y%j}.h{tile[0]:02d}v{tile[1]:02d}.061.{start + timedelta(days=17, hours=12):%Y%j%H%M%S}"


def name_sar(flight: Flight) -> str:
    """Id of a Sentinel-1 RTC item: start, end, absolute orbit and data take."""
    begin, end = (f"{flight.time + timedelta(seconds=seconds):%Y%m%dT%H%M%S}" for seconds in (-12, 13))
    orbit = 38_000 + int((flight.time - datetime(2021, 5, 20, tzinfo=UTC)) / timedelta(days=1) * 14.6)
    return f"S1A_IW_GRDH_1SDV_{begin}_{end}_{orbit:06d}_{0x47000 + orbit % 4096:06X}_rtc"
