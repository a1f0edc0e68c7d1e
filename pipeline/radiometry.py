"""Stored values from product values: pure conversions.

Digital numbers and backscatter enter, the units at rest of `sereno.pipeline.scene` leave, with the number of values that had to
be clamped. Nothing here touches a file.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes, label, minimum_filter1d

from sereno.pipeline.scene import CENTI_DB, MAX_REFLECTANCE, REFLECTANCE_SCALE

FLOOR_DB: Final = -50.0
"""Weakest stored backscatter, dB: far below the noise of Sentinel-1 (noise-equivalent sigma0 about -22 dB, ESA product specification)."""
BORDER_PX: Final = (50, 500)
"""Lines and pixels along the edges of a Sentinel-1 image in which processors before IPF 2.9 leave values that are no measurement: a wide
cut, since how far they reach differs (described by ESA, Masking "No-value" Pixels on GRD Products, MPC-0243)."""


def to_stored_reflectance(dn: npt.NDArray[Any], valid: npt.NDArray[np.bool_], *, offset_dn: int) -> tuple[npt.NDArray[np.uint16], int]:
    """Digital numbers of any shape as uint16 reflectance x 10000, and how many valid values had to be clamped.

    `dn` is integer of at least 16 bits, in units of 1e-4 reflectance; `valid` has its shape. What would come out below 0 becomes 0, what
    would come out above MAX_REFLECTANCE becomes that: the numbers are limited before the shift, so that nothing can wrap.
    """
    lowest, highest = max(0, -offset_dn), min(MAX_REFLECTANCE - offset_dn, np.iinfo(dn.dtype).max)
    limited = np.clip(dn, lowest, highest)
    n_clamped = int(np.count_nonzero((limited != dn) & valid))
    stored = limited.astype(np.uint16, copy=False)
    stored += np.uint16(offset_dn % 2**16)  # modulo, since a negative number cannot be added to unsigned ones
    return stored, n_clamped


def to_reflectance(stored: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Stored values as reflectance, float32, 1 = all light reflected."""
    return stored.astype(np.float32) / np.float32(REFLECTANCE_SCALE)


def power_to_centi_db(power: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int16], int]:
    """Linear backscatter of any shape as int16 centi-dB, and how many valid values were raised to FLOOR_DB.

    `valid` has the shape of `power` or broadcasts to it. Values that are not valid (0, negative, NaN) become 0.
    """
    decibel = np.log10(power, where=valid & (power > 0), out=np.full(power.shape, FLOOR_DB / 10, power.dtype))
    decibel *= 10
    return decibel_to_centi_db(decibel, valid)


def decibel_to_centi_db(decibel: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int16], int]:
    """Backscatter in dB of any shape as int16 centi-dB, and how many valid values were clamped to FLOOR_DB or the top of int16.

    `valid` has the shape of `decibel` or broadcasts to it. Values that are not valid become 0.
    """
    scaled = np.where(valid, decibel, 0.0)  # from here on in place: a whole scene in floating point is large
    scaled *= CENTI_DB
    stored = np.rint(scaled)
    np.clip(stored, FLOOR_DB * CENTI_DB, np.iinfo(np.int16).max, out=stored)
    scaled -= stored
    n_clamped = int(np.count_nonzero(np.abs(scaled, out=scaled) > 1))
    return stored.astype(np.int16), n_clamped


def centi_db_to_power(stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Stored backscatter as linear power, float32."""
    power: npt.NDArray[np.float32] = np.float32(10.0) ** (stored.astype(np.float32) / np.float32(10 * CENTI_DB))
    return power


def calibrate_power(
    dn: npt.NDArray[Any], gain: npt.NDArray[np.float64], noise: npt.NDArray[np.float64] | None
) -> tuple[npt.NDArray[np.float32], int]:
    """Backscatter max(DN^2 - noise, 0) / gain^2 of digital numbers above zero, and how many of them were below the noise.

    `dn`, `gain` and `noise` (squared digital numbers; None subtracts nothing) have one shape. Where the digital number is 0 so is the
    backscatter. Source: ESA, Sentinel-1 product specification S1-RS-MDA-52-7441; noise floored at zero as there.
    """
    squared = dn.astype(np.float64) ** 2
    known = squared > 0
    difference = squared if noise is None else squared - noise
    n_floored = int(np.count_nonzero(known & (difference <= 0)))
    return np.where(known, np.maximum(difference, 0) / gain**2, 0).astype(np.float32), n_floored


def mask_border(
    known: npt.NDArray[np.bool_], *, border_px: tuple[int, int] = BORDER_PX, edges: tuple[bool, bool, bool, bool] = (True,) * 4
) -> npt.NDArray[np.bool_]:
    """Which of the `known` pixels (y, x; those with a digital number above zero) lie well inside the image: the same shape.

    The image is the largest connected part of what is known, holes filled. From its outline, and from those sides of the array that are
    edges of the file (`edges`: top, bottom, left, right), `border_px` lines and pixels are taken away.
    """
    parts, n_parts = label(known)
    if n_parts == 0:
        return np.zeros_like(known)
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    inside = binary_fill_holes(parts == largest)
    lines, pixels = border_px
    for axis, width in ((0, lines), (1, pixels)):
        inside = minimum_filter1d(inside.astype(np.uint8), 2 * width + 1, axis=axis, mode="constant", cval=1) > 0
    top, bottom, left, right = edges
    inside[: lines if top else 0] = False
    inside[len(inside) - (lines if bottom else 0) :] = False
    inside[:, : pixels if left else 0] = False
    inside[:, inside.shape[1] - (pixels if right else 0) :] = False
    well: npt.NDArray[np.bool_] = known & inside
    return well
