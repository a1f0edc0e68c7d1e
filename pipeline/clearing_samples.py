"""Samples of cloud removal: SAR, cloudy input and clear target of a pair, the mask of both images, and dates around them if it has some.

A pair and its masks enter; what patches are cut from leaves, and what a window is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from sereno.pipeline.config import PatchSettings
from sereno.pipeline.material import Array, Limit, Material, read_values
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import CLOUDY_FROM, MASK_CHANNELS
from sereno.pipeline.scene import bands_of, find_unknown

MASK_SOURCES: Final = {
    "cloud_input": "cloud_cloudy",
    "shadow_input": "shadow_cloudy",
    "valid_input": "valid_cloudy",
    "cloud_target": "cloud_clear",
    "shadow_target": "shadow_clear",
    "valid_target": "valid_clear",
    "valid_sar": "valid_sar",
}
"""Where each channel of a patch's mask comes from: the `valid_*` from the pair, less ground whose clouds are not known, the others from
the masks."""
IMAGES: Final = ("cloudy", "clear")
"""Images that have masks: input and target."""


def list_material(pair: xr.Dataset, masks: xr.Dataset) -> Material:
    """What patches of a pair are cut from.

    Raises:
        DataError: the masks do not say where clouds are known.
    """
    unknown = {role: find_unknown(pair, masks, role) for role in IMAGES}
    stacked = np.empty((len(MASK_CHANNELS), pair.sizes["y"], pair.sizes["x"]), np.uint8)
    for channel, name in zip(stacked, MASK_CHANNELS, strict=True):
        source = MASK_SOURCES[name]
        channel[:] = np.where(pair[source].values, 255, 0) if source.startswith("valid_") else masks[source].values
        if source.removeprefix("valid_") in unknown:
            channel[unknown[source.removeprefix("valid_")]] = 0
    arrays: dict[str, Callable[[], Array]] = {name: partial(read_values, pair, name) for name in ("sar", "cloudy", "clear")}
    names: dict[str, Sequence[str]] = {"bands": bands_of(pair), "sar_bands": bands_of(pair, "sar_band")}
    gaps: dict[str, float] = {}
    if AROUND[0] in pair:
        arrays |= {"around": partial(_stack, pair), "around_clear": partial(measure_around, pair, masks)}
        names["dates"] = AROUND
        gaps = {date: pair.attrs["provenance"]["pair"][f"{date}_gap_days"] for date in AROUND}
    return Material("cloud-removal", arrays, stacked, names, 1, np.logical_or(*unknown.values()), gaps)


def _stack(pair: xr.Dataset) -> Array:
    """Images of the dates around a pair, (date, band, y, x)."""
    return np.stack([read_values(pair, role) for role in AROUND])


def measure_around(pair: xr.Dataset, masks: xr.Dataset) -> npt.NDArray[np.uint8]:
    """Probability x 255 that a pixel of the dates around a pair shows the ground, (date, y, x): neither cloud nor shadow.

    0 where it is not valid or nobody knows whether there is cloud.

    Raises:
        DataError: the masks do not say where clouds are known.
    """
    clear = np.empty((len(AROUND), pair.sizes["y"], pair.sizes["x"]), np.uint8)
    for date, role in zip(clear, AROUND, strict=True):
        seen = pair[f"valid_{role}"].values & ~find_unknown(pair, masks, role)
        date[:] = np.where(seen, 255 - np.maximum(masks[f"cloud_{role}"].values, masks[f"shadow_{role}"].values), 0)
    return clear


def measure_window(mask: npt.NDArray[np.uint8], settings: PatchSettings) -> tuple[Limit, ...]:
    """Validity, cloud of the target and cloud of the input of one window, mask (channel, row, col), against the settings."""
    channels = dict(zip(MASK_CHANNELS, mask, strict=True))
    valid = float(np.mean((channels["valid_input"] > 0) & (channels["valid_target"] > 0) & (channels["valid_sar"] > 0)))
    target, cloudy = (
        float(np.mean(np.maximum(channels[f"cloud_{image}"], channels[f"shadow_{image}"]) >= CLOUDY_FROM)) for image in ("target", "input")
    )
    low, top, least = settings.min_valid, settings.max_target_cloud, settings.min_input_cloud
    return (
        Limit("min_valid", "share valid in SAR, input and target", valid, low, valid >= low),
        Limit("max_target_cloud", "share of cloud and shadow in the target", target, top, target <= top),
        Limit("min_input_cloud", "share of cloud and shadow in the input", cloudy, least, cloudy >= least),
    )
