"""What Gaofen-6, and the optical Gaofen-1 and 2, say of their products: the names of files, and the XML beside an image.

XML text enters, a record of numbers leaves. Times are Beijing's, which is decided by where the sun stands.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen_xml import find_number, find_text, parse_xml, read_number, read_text
from sereno.pipeline.sensors.orthorectification import to_footprint
from sereno.pipeline.sun import Clock, compute_sun, decide_clock

NAME: Final = re.compile(
    r"^(?P<satellite>GF1[BCD]?|GF2|GF6)_(?P<sensor>PMS[12]?|WFV[1-4]?)_(?P<longitude>[EW][\d.]+)_(?P<latitude>[NS][\d.]+)_(?P<day>\d{8})_"
    r"(?P<serial>L\d[A-Z]?\d+)(?:-(?P<part>MUX|MSS[12]?|PAN[12]?|[1-9]))?(?P<suffix>\.(?:tiff?|xml|rpb|rpc))$",
    re.IGNORECASE,
)
"""Name of a file of a product: what belongs to it and is not listed here (`order.xml`, `.rpb.aux.xml`, `_thumb.jpg`) does not match."""


class Metadata(NamedTuple):
    """What the XML beside an image says."""

    satellite: str
    """For example `GF6`."""
    sensor: str
    """For example `WFV`, `PMS1`."""
    level: str
    """For example `LEVEL1A`."""
    n_bands: int
    """Bands of the image."""
    clock: Clock
    """When its centre was taken."""
    corners: tuple[tuple[float, float], ...]
    """Longitude and latitude of top left, top right, bottom right, bottom left."""
    sun_zenith_deg: float
    """Of the sun at the centre: as stated, else computed."""
    sun_azimuth_deg: float | None
    """Likewise; None if not stated."""
    cloud_pct: float | None
    """Cloud cover of the whole image as stated."""
    orbit: str
    """Number of the orbit."""
    bits: int | None
    """Valid bits of a pixel; None if not stated, as usual."""


def parse_metadata(text: str | bytes, *, where: str) -> Metadata:
    """What the XML of a product says; empty elements count as missing.

    Raises:
        DataError: it is not XML, or lacks something that reading needs.
    """
    root = parse_xml(text, where=where)
    need, number = partial(read_text, root, where=where), partial(find_number, root, where=where)
    need_number = partial(read_number, root, where=where)
    ends = ("TopLeft", "TopRight", "BottomRight", "BottomLeft")
    corners = tuple((need_number(f"{end}Longitude"), need_number(f"{end}Latitude")) for end in ends)
    longitude, latitude = np.mean(to_footprint(corners)[1]["coordinates"][0][:4], axis=0)
    centre = (float(longitude), float(latitude))
    stated = number("SolarZenith")
    clock = decide_clock(_parse_time(root, where), centre, stated, where=where)
    bits = number("ValidPixelBits")
    return Metadata(
        satellite=need("SatelliteID").upper(),
        sensor=need("SensorID").upper(),
        level=need("ProductLevel").upper(),
        n_bands=len(need("Bands").split(",")),
        clock=clock,
        corners=corners,
        sun_zenith_deg=compute_sun(clock.time, *centre)[0] if stated is None else stated,
        sun_azimuth_deg=number("SolarAzimuth"),
        cloud_pct=number("CloudPercent"),
        orbit=find_text(root, "OrbitID"),
        bits=None if bits is None else int(bits),
    )


def _parse_time(root: ET.Element, where: str) -> datetime:
    text = find_text(root, "CenterTime") or find_text(root, "StartTime")
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise DataError(f"{where}: CenterTime is {text!r}, expected like 2020-05-23 13:03:08; fetch the product again") from None
