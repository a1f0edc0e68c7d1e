"""What a training sample of each task is made of, and how its arrays lie in patch stores and in the packed dataset.

A task's name enters; the arrays of one of its samples leave. `patches` says what a record of one holds, `scene` what the images are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from sereno.pipeline.config import TaskName
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import MASK_CHANNELS
from sereno.pipeline.scene import CENTI_DB, OPTICAL_UNITS, REFLECTANCE_SCALE, SAR_UNITS

MASK_UNITS: Final = "probability or validity x 255"
"""Units of stored masks."""
CLEAR_UNITS: Final = "probability x 255"
"""Units of stored probabilities that ground is seen."""

PLACE: Final = ("row", "col")
"""Dims of pixels in a patch."""
COARSE_PLACE: Final = ("row_coarse", "col_coarse")
"""The same of coarse arrays, which lie beside fine ones in one store."""
NAMED_DIMS: Final = ("band", "sar_band", "pan_band", "date", "mask_channel")
"""Dims whose places have names, in the order in which stores list them."""


class ArraySpec(NamedTuple):
    """One array of a sample."""

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
    is_optional: bool = False
    """Whether some stores have it and some do not; `select_specs` tells. The manifest of a dataset lists what it has under `channels`."""

    @property
    def all_dims(self) -> tuple[str, ...]:
        """Names of its dims in patch stores and in the dataset."""
        return ("patch", *self.dims, *(COARSE_PLACE if self.is_coarse else PLACE))


OPTICAL: Final = ("uint16", OPTICAL_UNITS, 1 / REFLECTANCE_SCALE)
SAR: Final = ("int16", SAR_UNITS, 1 / CENTI_DB)
MASK: Final = ("uint8", MASK_UNITS, 1 / 255)

SAMPLES: Final[Mapping[TaskName, tuple[ArraySpec, ...]]] = {
    "cloud-removal": (
        ArraySpec("sar", ("sar_band",), *SAR),
        ArraySpec("cloudy", ("band",), *OPTICAL),
        ArraySpec("clear", ("band",), *OPTICAL),
        ArraySpec("around", ("date", "band"), *OPTICAL, is_optional=True),
        ArraySpec("around_clear", ("date",), "uint8", CLEAR_UNITS, 1 / 255, is_optional=True),
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
et al. 1997) are made where a network is fed. Fusion holds three dates, of which the middle one is the target. Pairs of cloud removal with
the clear scenes before and after them (`AROUND`) hold these as dates: `around`, and as `around_clear` the probability that a pixel of a
date is valid and neither cloud nor shadow, 0 where it is not valid or nobody knows whether there is cloud."""
MASK_CHANNELS_OF: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "cloud-removal": MASK_CHANNELS,
    "pansharpening": ("cloud", "shadow", "valid"),
    "spatiotemporal-fusion": ("cloud", "shadow", "valid"),
    "snapshot-reconstruction": ("valid",),
}
"""Channels of `mask`; all are stored times 255, validity as 0 or 255."""
ROLES_OF: Final[Mapping[TaskName, tuple[tuple[str, ...], ...]]] = {
    "cloud-removal": (("sar",), ("cloudy", "clear")),
    "pansharpening": (("ms",), ("pan",)),
    "spatiotemporal-fusion": (("fine-1", "fine-2", "fine-3"), ("coarse-1", "coarse-2", "coarse-3")),
    "snapshot-reconstruction": (("cube",),),
}
"""Scenes that a sample is made of, by role; those that stand together must be of one processing level."""
SKIES_OF: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "cloud-removal": ("cloudy", "clear"),
    "pansharpening": ("ms",),
    "spatiotemporal-fusion": ("fine-1", "fine-2", "fine-3"),
    "snapshot-reconstruction": (),
}
"""Images whose clouds are looked for, by role; those of one task lie on one grid."""
DATED_BY: Final[Mapping[TaskName, str]] = {
    "cloud-removal": "cloudy",
    "pansharpening": "ms",
    "spatiotemporal-fusion": "fine-2",
    "snapshot-reconstruction": "cube",
}
"""The role whose time is that of a sample."""
MEASURED: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "cloud-removal": ("clear",),
    "pansharpening": ("pan", "ms"),
    "spatiotemporal-fusion": ("fine", "coarse"),
    "snapshot-reconstruction": ("cube",),
}
"""Arrays whose mean and spread over usable pixels of training the manifest states."""
JUDGED_BY: Final[Mapping[TaskName, tuple[tuple[str, ...], str]]] = {
    "cloud-removal": (("cloud_target", "shadow_target"), "valid_target"),
    "pansharpening": (("cloud", "shadow"), "valid"),
    "spatiotemporal-fusion": (("cloud", "shadow"), "valid"),
    "snapshot-reconstruction": ((), "valid"),
}
"""Channels of `mask` that say which pixels of those arrays count: none of the first may be covered, and the other must say valid."""


def select_specs(task: TaskName, names: Mapping[str, object]) -> tuple[ArraySpec, ...]:
    """The task's arrays that a store holds whose dims have `names`, by their plural (`bands`): optional ones only where all are named."""
    return tuple(spec for spec in SAMPLES[task] if not spec.is_optional or all(f"{dim}s" in names for dim in spec.dims))


def list_skies(task: TaskName, roles: Collection[str]) -> tuple[str, ...]:
    """Images whose clouds are looked for in a pair or group of those `roles`: those of `SKIES_OF`, and dates around a pair."""
    return (*SKIES_OF[task], *(role for role in AROUND if task == "cloud-removal" and role in roles))


def list_roles(task: TaskName, roles: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """`ROLES_OF` of a pair or group of those `roles`: dates around a pair stand together with its input and target."""
    return tuple((*group, *(role for role in AROUND if "clear" in group and role in roles)) for group in ROLES_OF[task])


def name_dims(task: TaskName, names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names along every named dim of the task's arrays by the dim's plural (`bands`), in the order of `NAMED_DIMS`.

    `names` has those of bands and dates, likewise; without dates of a series the task's arrays are those without it.
    """
    known = {**names, "mask_channels": MASK_CHANNELS_OF[task]}
    used = {dim for spec in select_specs(task, known) for dim in spec.dims}
    return {f"{dim}s": list(known[f"{dim}s"]) for dim in NAMED_DIMS if dim in used}
