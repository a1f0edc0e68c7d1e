"""Rational polynomial coefficients: from the text of a `.rpb`, `.rpc` or `_rpc.txt` to image coordinates of ground, and back.

Text or ground points enter, `rasterio.rpc.RPC` records and pixel coordinates leave. Rows and columns count from 0 at the centre of the
first pixel, as the coefficients do; GDAL counts its corner and adds a half itself. Heights are metres above the WGS84 ellipsoid.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.rpc import RPC

from sereno.pipeline.errors import DataError

Float = npt.NDArray[np.float64]

TERMS: Final = 20
"""Coefficients of one polynomial: all products of longitude, latitude and height up to the third degree (NGA, RPC00B)."""
MAX_TEXT_BYTES: Final = 2**20
"""Largest text that is parsed; real ones have 3 kB."""
ITERATIONS: Final = 30
"""At most so many steps from pixels back to ground; four are enough for smooth coefficients."""
TOLERANCE_PX: Final = 1e-6
"""Ground is found when its pixel lies this near."""
RPB_KEYS: Final = {
    "line_off": "lineOffset",
    "samp_off": "sampOffset",
    "lat_off": "latOffset",
    "long_off": "longOffset",
    "height_off": "heightOffset",
    "line_scale": "lineScale",
    "samp_scale": "sampScale",
    "lat_scale": "latScale",
    "long_scale": "longScale",
    "height_scale": "heightScale",
    "line_num_coeff": "lineNumCoef",
    "line_den_coeff": "lineDenCoef",
    "samp_num_coeff": "sampNumCoef",
    "samp_den_coeff": "sampDenCoef",
}
"""What `.rpb` files call the fields of `rasterio.rpc.RPC`."""
OPTIONAL_KEYS: Final = {"err_bias": "errBias", "err_rand": "errRand"}
"""The same for fields that some producers leave out."""
RPB_ENTRY: Final = re.compile(r"(\w+)\s*=\s*(\([^)]*\)|\"[^\"]*\"|[^;\n]*?)\s*(?:;|$)", re.MULTILINE)
"""`key = value;`, the value a number, a quoted word or a list in parentheses."""
TXT_ENTRY: Final = re.compile(r"^\s*([A-Za-z]+(?:_[A-Za-z]+)*)(?:_(\d+))?\s*:\s*(\S+)", re.MULTILINE)
"""`LINE_OFF: value unit` or `LINE_NUM_COEFF_1: value`."""


def parse_rpc(text: str | bytes, *, where: str) -> RPC:
    """The coefficients in either of the two grammars, told apart by what the text holds; `where` names the file in messages.

    `key = value;` with lists in parentheses is what `.rpb` files hold, and the `.rpc` files of Gaofen-3 too (GDAL reads it only under
    `.rpb`); `KEY: value` is what `_rpc.txt` files hold.

    Raises:
        DataError: a key is missing, a list has not 20 numbers, a number is none, or a scale is not above zero.
    """
    content = text.decode("latin-1") if isinstance(text, bytes) else text
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"{where}: {len(content)} bytes are too many for rational polynomial coefficients; fetch the product again")
    entries = _read_rpb(content) if RPB_KEYS["line_num_coeff"] in content else _read_txt(content)
    values: dict[str, Any] = {name: _to_numbers(entries, name, where) for name in RPB_KEYS}
    values |= {name: _to_numbers(entries, name, where) for name in OPTIONAL_KEYS if name in entries}
    for name, number in values.items():
        if name.endswith("_scale") and number <= 0:
            raise DataError(f"{where}: {name} is {number}, expected above 0; the file is damaged, fetch the product again")
    return RPC(**values)


def _read_rpb(text: str) -> dict[str, list[str]]:
    found = {key.lower(): value for key, value in RPB_ENTRY.findall(text)}
    names = {**RPB_KEYS, **OPTIONAL_KEYS}
    return {name: found[key.lower()].strip("() \n\t\r").split(",") for name, key in names.items() if key.lower() in found}


def _read_txt(text: str) -> dict[str, list[str]]:
    found: dict[str, dict[int, str]] = {}
    for key, number, value in TXT_ENTRY.findall(text):
        found.setdefault(key.lower(), {})[int(number or 0)] = value
    return {key: [values[number] for number in sorted(values)] for key, values in found.items()}


def _to_numbers(entries: dict[str, list[str]], name: str, where: str) -> float | list[float]:
    is_list = name.endswith("_coeff")
    if name not in entries:
        raise DataError(f"{where}: lacks {RPB_KEYS[name]} ({name.upper()}), so the image cannot be placed; fetch the product again")
    words = [word.strip() for word in entries[name]]
    if len(words) != (TERMS if is_list else 1):
        raise DataError(f"{where}: {name} holds {len(words)} numbers, expected {TERMS if is_list else 1}; the file is damaged")
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{where}: {name} holds something else than numbers ({error}); the file is damaged") from None
    if not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{where}: {name} holds a number that is not finite; the file is damaged")
    return numbers if is_list else numbers[0]


def format_rpb(rpc: RPC, *, comment: str = "XXX") -> str:
    """`rpc` as the text of a `.rpb` file; reading it gives the same numbers."""
    lines = [f'satId = "{comment}";', f'bandId = "{comment}";', 'SpecId = "RPC00B";', "BEGIN_GROUP = IMAGE"]
    lines += [f"\terrBias = {rpc.err_bias or 0.0!r};", f"\terrRand = {rpc.err_rand or 0.0!r};"]
    for name, key in RPB_KEYS.items():
        value = getattr(rpc, name)
        if name.endswith("_coeff"):
            lines.append(f"\t{key} = (\n" + ",\n".join(f"\t\t\t{float(number):+.17e}" for number in value) + ");")
        else:
            lines.append(f"\t{key} = {float(value)!r};")
    return "\n".join([*lines, "END_GROUP = IMAGE", "END;", ""])


def crop_rpc(rpc: RPC, *, row: float, column: float) -> RPC:
    """The coefficients of the part of an image that begins at `row` and `column`."""
    return _change(rpc, line_off=rpc.line_off - row, samp_off=rpc.samp_off - column)


def multilook_rpc(rpc: RPC, looks: tuple[int, int]) -> RPC:
    """The coefficients of an image of which blocks of `looks` (rows, columns) have been averaged.

    The centre of a block lies at (index + 0.5) * looks - 0.5 of the image.
    """
    rows, columns = looks
    return _change(
        rpc,
        line_off=(rpc.line_off + 0.5) / rows - 0.5,
        line_scale=rpc.line_scale / rows,
        samp_off=(rpc.samp_off + 0.5) / columns - 0.5,
        samp_scale=rpc.samp_scale / columns,
    )


def shift_ground(rpc: RPC, *, longitude_deg: float, latitude_deg: float) -> RPC:
    """Coefficients that place everything so many degrees further east and north: an error of the orbit, for simulated products."""
    return _change(rpc, long_off=rpc.long_off + longitude_deg, lat_off=rpc.lat_off + latitude_deg)


def _change(rpc: RPC, **changes: float) -> RPC:
    names = (*RPB_KEYS, *OPTIONAL_KEYS)
    return RPC(**{name: changes.get(name, getattr(rpc, name)) for name in names})


def to_image(rpc: RPC, longitudes_deg: Float, latitudes_deg: Float, heights_m: Float | float) -> tuple[Float, Float]:
    """Rows and columns of places on the ground (arrays of one shape, or that broadcast).

    Source: NGA STDI-0002, RPC00B: row and column are quotients of cubic polynomials of normalised longitude, latitude and height.
    """
    east = longitudes_deg - rpc.long_off
    east = np.where(np.abs(east) > 180, east - np.copysign(360, east), east)  # an image across 180 degrees
    terms = _make_terms(
        east / rpc.long_scale,
        (latitudes_deg - rpc.lat_off) / rpc.lat_scale,
        (np.asarray(heights_m, np.float64) - rpc.height_off) / rpc.height_scale,
    )
    line, line_den, samp, samp_den = (
        np.tensordot(np.asarray(coefficients), terms, axes=1)
        for coefficients in (rpc.line_num_coeff, rpc.line_den_coeff, rpc.samp_num_coeff, rpc.samp_den_coeff)
    )
    rows: Float = line / line_den * rpc.line_scale + rpc.line_off
    columns: Float = samp / samp_den * rpc.samp_scale + rpc.samp_off
    return rows, columns


def to_ground(rpc: RPC, rows: Float, columns: Float, heights_m: Float | float) -> tuple[Float, Float]:
    """Longitudes and latitudes of image coordinates at given heights (arrays of one shape, or that broadcast).

    Newton's method from the centre of the image, with derivatives by differences.

    Raises:
        DataError: it does not converge: the coefficients do not describe an image.
    """
    shape = np.broadcast_shapes(np.shape(rows), np.shape(columns), np.shape(heights_m))
    longitudes, latitudes = np.full(shape, float(rpc.long_off)), np.full(shape, float(rpc.lat_off))
    steps = (rpc.long_scale * 1e-5, rpc.lat_scale * 1e-5)
    for _ in range(ITERATIONS):
        seen = to_image(rpc, longitudes, latitudes, heights_m)
        miss_row, miss_column = rows - seen[0], columns - seen[1]
        if max(np.abs(miss_row).max(initial=0), np.abs(miss_column).max(initial=0)) < TOLERANCE_PX:
            return longitudes, latitudes
        east = to_image(rpc, longitudes + steps[0], latitudes, heights_m)
        north = to_image(rpc, longitudes, latitudes + steps[1], heights_m)
        a, c = ((moved - here) / steps[0] for moved, here in zip(east, seen, strict=True))
        b, d = ((moved - here) / steps[1] for moved, here in zip(north, seen, strict=True))
        determinant = a * d - b * c
        if not np.isfinite(determinant).all() or (determinant == 0).any():
            break
        longitudes = longitudes + (d * miss_row - b * miss_column) / determinant
        latitudes = latitudes + (a * miss_column - c * miss_row) / determinant
    raise DataError("the rational polynomial coefficients lead from no ground to the pixels of the image; fetch the product again")


def _make_terms(x: Float, y: Float, z: Float) -> Float:
    """The 20 products of normalised longitude x, latitude y and height z in the order of RPC00B: (20, ...)."""
    x, y, z = np.broadcast_arrays(x, y, z)
    one = np.ones_like(x)
    linear = [one, x, y, z]
    quadratic = [x * y, x * z, y * z, x * x, y * y, z * z]
    cubic = [x * y * z, x**3, x * y * y, x * z * z, x * x * y, y**3, y * z * z, x * x * z, y * y * z, z**3]
    return np.stack([*linear, *quadratic, *cubic])


def fit_rpc(image: tuple[Float, Float], ground: tuple[Float, Float, Float]) -> RPC:
    """Coefficients with denominators of 1 through points: `image` rows and columns (n,), `ground` longitudes, latitudes, heights (n,).

    By least squares; exact where the image is a cubic polynomial of the ground. At least 20 points at several heights.
    """
    ranges = [_scale(np.asarray(axis)) for axis in (*image, *ground)]
    rows, columns, *places = ((axis - off) / scale for axis, (off, scale) in zip((*image, *ground), ranges, strict=True))
    terms = _make_terms(places[0], places[1], places[2]).T
    line, samp = (np.linalg.lstsq(terms, axis, rcond=None)[0] for axis in (rows, columns))
    one = [1.0, *[0.0] * (TERMS - 1)]
    names = ("line", "samp", "long", "lat", "height")
    scales = {f"{name}_{kind}": pair[i] for name, pair in zip(names, ranges, strict=True) for i, kind in enumerate(("off", "scale"))}
    return RPC(
        **scales, line_num_coeff=list(line), line_den_coeff=one, samp_num_coeff=list(samp), samp_den_coeff=one, err_bias=0, err_rand=0
    )


def _scale(axis: Float) -> tuple[float, float]:
    """Middle and half the extent of an axis."""
    low, high = float(axis.min()), float(axis.max())
    return (low + high) / 2, max((high - low) / 2, 1e-9)
