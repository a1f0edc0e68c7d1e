"""Stored values from product values: pure conversions.

Digital numbers and backscatter enter, the units at rest of `sereno.pipeline.scene` leave, with the number of values that had to
be clamped. Nothing here touches a file.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sereno.pipeline.scene import CENTI_DB, MAX_REFLECTANCE, REFLECTANCE_SCALE

FLOOR_DB: Final = -50.0
"""Weakest stored backscatter, dB: far below the noise of Sentinel-1 (noise-equivalent sigma0 about -22 dB, ESA product specification)."""


def to_stored_reflectance(dn: npt.NDArray[Any], valid: npt.NDArray[np.bool_], *, offset_dn: int) -> tuple[npt.NDArray[np.uint16], int]:
    """Digital numbers of any shape as uint16 reflectance x 10000, and how many valid values had to be clamped.

    `dn` is integer, in units of 1e-4 reflectance; `valid` has its shape. The sum is made in int32, so that it cannot wrap; values below 0
    become 0, values above MAX_REFLECTANCE become that.
    """
    shifted = dn.astype(np.int32) + np.int32(offset_dn)
    stored = np.clip(shifted, 0, MAX_REFLECTANCE)
    n_clamped = int(np.count_nonzero((stored != shifted) & valid))
    return stored.astype(np.uint16), n_clamped


def to_reflectance(stored: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Stored values as reflectance, float32, 1 = all light reflected."""
    return stored.astype(np.float32) / np.float32(REFLECTANCE_SCALE)


def power_to_centi_db(power: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int16], int]:
    """Linear backscatter of any shape as int16 centi-dB, and how many valid values were raised to FLOOR_DB.

    `valid` has the shape of `power` or broadcasts to it. Values that are not valid (0, negative, NaN) become 0.
    """
    decibel = 10.0 * np.log10(power, where=valid & (power > 0), out=np.full(power.shape, FLOOR_DB, power.dtype))
    return decibel_to_centi_db(decibel, valid)


def decibel_to_centi_db(decibel: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int16], int]:
    """Backscatter in dB of any shape as int16 centi-dB, and how many valid values were clamped to FLOOR_DB or the top of int16.

    `valid` has the shape of `decibel` or broadcasts to it. Values that are not valid become 0.
    """
    scaled = np.where(valid, decibel, 0.0) * CENTI_DB
    stored = np.clip(np.rint(scaled), FLOOR_DB * CENTI_DB, np.iinfo(np.int16).max)
    n_clamped = int(np.count_nonzero(np.abs(stored - scaled) > 1))
    return stored.astype(np.int16), n_clamped


def centi_db_to_power(stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Stored backscatter as linear power, float32."""
    power: npt.NDArray[np.float32] = np.float32(10.0) ** (stored.astype(np.float32) / np.float32(10 * CENTI_DB))
    return power
