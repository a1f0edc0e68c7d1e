"""What a training sample of each task is made of, and how its arrays lie in patch stores and in the packed dataset.

A task's name enters; the arrays of one of its samples leave. `patches` says what a record of one holds, `scene` what the images are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from sereno.pipeline.scene import CENTI_DB, OPTICAL_UNITS, REFLECTANCE_SCALE, SAR_UNITS

TaskName = Literal["cloud-removal", "pansharpening", "spatiotemporal-fusion", "snapshot-reconstruction"]
"""What can be asked of a dataset."""
MASK_UNITS: Final = "probability or validity x 255"
"""Units of stored masks."""


class ArraySpec(NamedTuple):
    """One array of a sample; all have the dims `patch`, `dims`, `row`, `col`."""

    name: str
    """Its name in the stores."""
    dims: tuple[str, ...]
    """Dims between `patch` and `row`: `band`, or `date` and `band`."""
    dtype: str
    """Integers at rest."""
    units: str
    """Units at rest."""
    scale: float
    """Integer times this is reflectance, decibel, probability or validity."""
    is_coarse: bool = False
    """Whether its pixels are those of the coarse grid: `ratio` of the dataset's pixels along each side."""


OPTICAL: Final = ("uint16", OPTICAL_UNITS, 1 / REFLECTANCE_SCALE)
SAR: Final = ("int16", SAR_UNITS, 1 / CENTI_DB)
MASK: Final = ("uint8", MASK_UNITS, 1 / 255)

SAMPLES: Final[Mapping[TaskName, tuple[ArraySpec, ...]]] = {
    "cloud-removal": (
        ArraySpec("sar", ("sar_band",), *SAR),
        ArraySpec("cloudy", ("band",), *OPTICAL),
        ArraySpec("clear", ("band",), *OPTICAL),
        ArraySpec("mask", ("mask_channel",), *MASK),
    ),
    "pansharpening": (
        ArraySpec("pan", ("pan_band",), *OPTICAL),
        ArraySpec("ms", ("band",), *OPTICAL, is_coarse=True),
        ArraySpec("mask", ("mask_channel",), *MASK, is_coarse=True),
    ),
    "spatiotemporal-fusion": (
        ArraySpec("fine", ("date", "band"), *OPTICAL),
        ArraySpec("coarse", ("date", "band"), *OPTICAL, is_coarse=True),
        ArraySpec("mask", ("date", "mask_channel"), *MASK),
    ),
    "snapshot-reconstruction": (
        ArraySpec("cube", ("band",), *OPTICAL),
        ArraySpec("mask", ("mask_channel",), *MASK),
    ),
}
"""Arrays by task, in the order in which they are stored. Pan-sharpening holds images as they were taken: pairs of reduced resolution (Wald
et al. 1997) are made where a network is fed. Fusion holds three dates, of which the middle one is the target."""
MASK_CHANNELS_OF: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "cloud-removal": ("cloud_input", "shadow_input", "valid_input", "cloud_target", "shadow_target", "valid_target", "valid_sar"),
    "pansharpening": ("cloud", "shadow", "valid"),
    "spatiotemporal-fusion": ("cloud", "shadow", "valid"),
    "snapshot-reconstruction": ("valid",),
}
"""Channels of `mask`; all are stored times 255, validity as 0 or 255."""
