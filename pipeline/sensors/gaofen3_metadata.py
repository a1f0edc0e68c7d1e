"""What Gaofen-3 products say of themselves: their names, `*.meta.xml` and `*.incidence.xml`.

Names and XML text enter, records of numbers leave. Values that a product does not have are written as the text `NULL`; they become None
here, and what cannot be done without them is refused.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen_xml import ABSENT, find_number, find_text, parse_xml, read_number, read_text, to_number

Float = npt.NDArray[np.float64]

NAME: Final = re.compile(
    r"^(?P<satellite>GF3[BC]?)_(?P<station>[A-Z]{3})_(?P<mode>[A-Z]+)_(?P<orbit>\d{6})_(?P<longitude>[EW]\d+(?:\.\d+)?)_"
    r"(?P<latitude>[NS]\d+(?:\.\d+)?)_(?P<day>\d{8})_(?P<level>L1A|L1B|L2)_(?P<tag>[A-Z]+)_(?P<serial>L[12]\d+)"
)
"""Name of a product and of each of its files. Stations differ and are not listed."""
MODES: Final = {
    "SL": (1.0, 10.0),
    "UFS": (3.0, 30.0),
    "FSI": (5.0, 50.0),
    "FSII": (10.0, 100.0),
    "SS": (25.0, 130.0),
    "QPSI": (8.0, 30.0),
    "QPSII": (25.0, 40.0),
    "NSC": (50.0, 300.0),
    "WSC": (100.0, 500.0),
    "GLO": (500.0, 650.0),
    "WAV": (10.0, 5.0),
    "EXT": (25.0, 130.0),
}
"""Imaging modes: nominal resolution in metres and swath in kilometres (An Introduction to the Chinese High-Resolution Earth Observation
System, Journal of Remote Sensing 2022, 9769536, table 4)."""
TAGS: Final = {
    "AHV": ("HH", "HV", "VH", "VV"),
    "DH": ("HH",),
    "DV": ("VV",),
    "HHHV": ("HH", "HV"),
    "HVHH": ("HH", "HV"),
    "VVVH": ("VV", "VH"),
    "VHVV": ("VV", "VH"),
    "HHVV": ("HH", "VV"),
    "VVHH": ("HH", "VV"),
    "HH": ("HH",),
    "VV": ("VV",),
    "HV": ("HV",),
    "VH": ("VH",),
}
"""What the polarisation tag of a name means. `DH` and `DV` (received by both halves of the antenna) also stand in names of single files."""
POLARISATIONS: Final = ("HH", "HV", "VH", "VV")
"""In the order of the metadata."""
META: Final = ".meta.xml"
INCIDENCE: Final = ".incidence.xml"
DIVISORS: Final = {"complex": 32_767.0, "detected": 65_535.0}
"""Digital numbers are amplitude times this over QualifyValue: 2^15-1 for I and Q in int16, 2^16-1 for uint16 (as SNAP's reader and
published tools have it; the provider's pages state only the first). Twice as much would be 6.02 dB."""
CORNERS: Final = ("topLeft", "topRight", "bottomRight", "bottomLeft")
"""Corners of the image in the metadata."""


class Name(NamedTuple):
    """What a product's name says."""

    product: str
    """The name itself, up to its serial number."""
    satellite: str
    """`GF3`, `GF3B`, `GF3C`."""
    mode: str
    """One of MODES."""
    level: str
    """`L1A`, `L1B` or `L2`."""
    polarisations: tuple[str, ...]
    """By its tag."""
    tag: str
    """The tag itself."""


class Corner(NamedTuple):
    """One corner of the image on the ground."""

    longitude_deg: float
    """East."""
    latitude_deg: float
    """North."""


class Metadata(NamedTuple):
    """What `*.meta.xml` says."""

    satellite: str
    """For example `GF3`."""
    orbit: int
    """Number of the orbit."""
    direction: str
    """`ascending` or `descending`."""
    mode: str
    """Imaging mode."""
    look: str
    """`R` or `L`: the side that the antenna looks to."""
    polarisations: tuple[str, ...]
    """What the product holds, as its tag says."""
    height_m: float
    """Mean height of the ground above the ellipsoid; 0 if not stated."""
    level: str
    """`L1A`, `L1B` or `L2`."""
    generated: str
    """When it was processed, UTC as written."""
    start: str
    """First line, UTC, ISO 8601 with `Z`."""
    end: str
    """Last line, likewise."""
    corners: tuple[Corner, Corner, Corner, Corner]
    """Top left, top right, bottom right, bottom left of the image."""
    qualify: dict[str, float | None]
    """QualifyValue by polarisation; None where it is absent."""
    calibration_db: dict[str, float | None]
    """CalibrationConst by polarisation; None where it is absent."""
    saturation_pct: dict[str, float | None]
    """Saturated echoes by polarisation; None where not stated."""
    incidence_deg: tuple[float, float] | None
    """At near and far range; None if not stated."""
    dem: str
    """Which DEM was used; `0` means none."""


def parse_name(name: str) -> Name:
    """What the name of a product or of one of its files says.

    Raises:
        DataError: it is none of Gaofen-3, or names a mode or a polarisation that is not known.
    """
    found = NAME.match(name)
    if found is None:
        raise DataError(f"{name} is not the name of a Gaofen-3 product: give the folder or archive the name it was delivered under")
    if found["mode"] not in MODES:
        raise DataError(
            f"{name}: mode {found['mode']} is not known, expected one of {', '.join(MODES)}: take the product out of the folder"
        )
    if found["tag"] not in TAGS:
        raise DataError(f"{name}: polarisation {found['tag']} is not known, expected one of {', '.join(TAGS)}")
    return Name(found[0], found["satellite"], found["mode"], found["level"], TAGS[found["tag"]], found["tag"])


def parse_metadata(text: str | bytes, *, where: str) -> Metadata:
    """What `*.meta.xml` says; `where` names the file in messages.

    Raises:
        DataError: it is not XML, or lacks something that reading needs.
    """
    root = parse_xml(text, where=where)
    need = partial(read_text, root, where=where)
    tag = need("productinfo/productPolar").replace(",", "").replace("/", "")
    if tag not in TAGS:
        raise DataError(f"{where}: productPolar {tag} is not known, expected one of {', '.join(TAGS)}")
    near, far = (find_number(root, f"processinfo/incidenceAngle{end}Range", where=where) for end in ("Near", "Far"))
    need_number = partial(read_number, root, where=where)
    corners = [Corner(*(need_number(f"imageinfo/corner/{end}/{axis}") for axis in ("longitude", "latitude"))) for end in CORNERS]
    height = find_number(root, "sensor/waveParams/wave/averageAltitude", where=where)
    return Metadata(
        satellite=need("satellite"),
        orbit=int(need_number("orbitID")),
        direction="descending" if need("Direction").upper().startswith("DE") else "ascending",
        mode=need("sensor/imagingMode"),
        look=need("sensor/lookDirection"),
        polarisations=TAGS[tag],
        height_m=find_number(root, "processinfo/DEM", where=where) or 0.0 if height is None else height,
        level="L" + need("productinfo/productLevel").upper().removeprefix("LEVEL").removeprefix("L"),
        generated=find_text(root, "productinfo/productGentime"),
        start=_to_time(need("imageinfo/imagingTime/start"), where),
        end=_to_time(need("imageinfo/imagingTime/end"), where),
        corners=(corners[0], corners[1], corners[2], corners[3]),
        qualify=_read_by_polarisation(root, "imageinfo/QualifyValue", where),
        calibration_db=_read_by_polarisation(root, "processinfo/CalibrationConst", where),
        saturation_pct=_read_by_polarisation(root, "imageinfo/echoSaturation", where),
        incidence_deg=None if near is None or far is None else (near, far),
        dem=find_text(root, "processinfo/DEMModel"),
    )


def parse_incidence(text: str | bytes, *, where: str) -> Float:
    """Incidence angles in degrees, one per column of the image, from `*.incidence.xml`.

    Raises:
        DataError: it is not XML, holds no angles, or not as many as it states.
    """
    root = parse_xml(text, where=where)
    angles = np.array([to_number(node.text, "incidenceValue", where=where) for node in root.iter("incidenceValue")])
    stated = next((node.text for node in root.iter("numberofIncidenceValue")), None)
    if not angles.size or (stated is not None and int(to_number(stated, "numberofIncidenceValue", where=where)) != angles.size):
        raise DataError(f"{where}: holds {angles.size} incidence angles, states {stated}; the file is damaged, fetch the product again")
    if angles.min() < 0 or angles.max() >= 90:
        raise DataError(f"{where}: incidence angles reach from {angles.min():g} to {angles.max():g} degrees, expected within 0..90")
    return angles


def compute_scale(metadata: Metadata, polarisation: str, divisor: float, *, where: str) -> float:
    """Sigma0 of a squared digital number of 1: (QualifyValue / divisor)^2 / 10^(CalibrationConst / 10).

    sigma0 in dB is 10 log10(DN^2 (QualifyValue / divisor)^2) - CalibrationConst, with DN^2 = I^2 + Q^2 for level 1A.

    Raises:
        DataError: the metadata state no QualifyValue or CalibrationConst of the polarisation. Without them nothing can be calibrated.
    """
    quality, constant = metadata.qualify[polarisation], metadata.calibration_db[polarisation]
    for name, value in (("QualifyValue", quality), ("CalibrationConst", constant)):
        if value is None:
            raise DataError(
                f"{where}: {name}/{polarisation} is {ABSENT} or missing, so {polarisation} cannot be calibrated: fetch the product again, "
                f"or take {polarisation} out of pipeline.query.polarisations"
            )
    assert quality is not None  # checked above
    assert constant is not None
    if quality <= 0:
        raise DataError(
            f"{where}: QualifyValue/{polarisation} is {quality:g}, expected above 0; the file is damaged, fetch the product again"
        )
    return (quality / divisor) ** 2 / 10 ** (constant / 10)


def _read_by_polarisation(root: ET.Element, path: str, where: str) -> dict[str, float | None]:
    """A number per polarisation: of children with its name, never of the element's own text, which is only white space."""
    return {polarisation: find_number(root, f"{path}/{polarisation}", where=where) for polarisation in POLARISATIONS}


def _to_time(text: str, where: str) -> str:
    """UTC as ISO 8601 with `Z`. Gaofen-3 states UTC, other than the optical satellites: its dawn-dusk orbit agrees."""
    expected = DataError(f"{where}: imagingTime is {text!r}, expected like 2021-01-07 09:54:49.286464; fetch the product again")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", text):
        raise expected
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise expected from None
    return text.replace(" ", "T") + "Z"
