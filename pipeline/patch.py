"""Cut a masked pair into the windows worth keeping, with the reason for every window that is not.

A pair and its masks enter; a small store of patches leaves, together with one record per patch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import PatchSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.patches import CLOUDY_FROM, MASK_CHANNELS, PatchRecord
from sereno.pipeline.scene import Bool2d, bands_of, find_unknown, geobox_of
from sereno.pipeline.splits import Window, block_windows, guaranteed_distance_m
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)

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

ROLES: Final = ("cloudy", "clear")
"""Images that have masks: input and target."""

Mask = npt.NDArray[np.uint8]


class Limit(NamedTuple):
    """One measured share of a window against one setting."""

    setting: str
    """Name in `PatchSettings`."""
    what: str
    """The share in words."""
    value: float
    """Share found in the window."""
    limit: float
    """Value of the setting."""
    is_met: bool
    """Whether the window passes."""

    def describe(self) -> str:
        """The reason in words, with the value seen and the limit."""
        side = "below" if self.setting.startswith("min") else "above"
        return f"{self.what} is {self.value:.4f}, {side} patch.{self.setting} {self.limit:g}"


def patch_pair(pair: Path, masks: Path, output: Path, settings: PatchSettings) -> None:
    """Write the patches of one pair as a store of kind `patches`; a pair of which nothing is kept gives an empty store.

    The summary lists `patches` (records), `refused` (every candidate window with its reason), `pair_refused` (why the whole pair is not
    used, None if it is), `bands`, `sar_bands`, `size_px`, `resolution_m`, `layout`, `block_px` and `buffer_m`, the distance that windows of
    different blocks are sure to keep.

    Raises:
        DataError: the masks are those of another pair or grid, or the delivered windows do not fit the settings.
        MissingError: the pair or its masks do not exist.
        StoreError: one of them is damaged, or the output cannot be written.
    """
    started = time.monotonic()
    opened, found = open_dataset(pair, kind="pair"), open_dataset(masks, kind="mask")
    geobox, provenance = geobox_of(opened), opened.attrs["provenance"]
    made_for = found.attrs["provenance"]
    if geobox_of(found) != geobox or any(made_for[key] != provenance[key] for key in ("area", "pair")):
        raise DataError(f"{masks} was not made from {pair}: run `sereno mask` on this pair")
    unknown = {role: find_unknown(opened, found, role) for role in ROLES}
    windows = _list_windows(opened, geobox, settings)
    logger.info("patch %s: %d candidate windows of %d px", pair.stem, len(windows), settings.size_px)
    mask = _stack_mask(opened, found, unknown)
    measured = [(window, _measure(_cut(mask, window, settings.size_px), settings)) for window in windows]
    failed = [(window, next((limit for limit in limits if not limit.is_met), None)) for window, limits in measured]
    unsure = np.logical_or(*unknown.values())
    refused = [
        _describe_refusal(window, limit, float(_cut(unsure, window, settings.size_px).mean()))
        for window, limit in failed
        if limit is not None
    ]
    kept = [(window, limits) for window, limits in measured if all(limit.is_met for limit in limits)]
    records = [_to_record(window, limits, provenance, (geobox, settings.size_px)) for window, limits in kept]
    patches = _to_patches(opened, mask, [window for window, _ in kept], settings.size_px)
    patches.attrs["provenance"] = {**provenance, "masks": made_for["masks"]}
    summary = _describe_cut(geobox, settings) | {
        "area": provenance["area"],
        "pair": provenance["pair"]["id"],
        "bands": list(bands_of(opened)),
        "sar_bands": list(bands_of(opened, "sar_band")),
        "patches": [record.model_dump(mode="json", exclude={"split", "position"}) for record in records],
        "refused": refused,
        "pair_refused": provenance.get("refused") or _find_unknown_image(made_for["masks"]),
    }
    save_dataset(patches, output, kind="patches", summary=summary, chunks={"patch": 1})
    why = f" ({summary['pair_refused']})" if summary["pair_refused"] else ""
    logger.info("patch %s: %d kept, %d refused%s, %.1f s", pair.stem, len(kept), len(refused), why, time.monotonic() - started)


def _describe_cut(geobox: GeoBox, settings: PatchSettings) -> dict[str, Any]:
    """What patches must agree in before they are packed together, and the distance between blocks."""
    in_blocks = settings.layout == "blocks"
    return {
        "size_px": settings.size_px,
        "resolution_m": float(geobox.transform.a),
        "layout": settings.layout,
        "block_px": settings.block_patches * settings.size_px + settings.buffer_px if in_blocks else None,
        "buffer_m": guaranteed_distance_m(geobox, settings) if in_blocks else 0.0,
    }


def _describe_refusal(window: Window, limit: Limit, unknown: float) -> dict[str, Any]:
    """The reason and its numbers; `unknown` is the share of the window of which nobody knows whether there is cloud."""
    not_known = f"; of {unknown:.4f} it is not known whether there is cloud" if unknown and limit.setting == "min_valid" else ""
    value = {"setting": limit.setting, "value": round(limit.value, 6), "limit": limit.limit}
    return {"id": window.name, "reason": limit.describe() + not_known, **value}


def _find_unknown_image(masks: Mapping[str, Any]) -> str | None:
    """Why of an image of the pair no cloud is known, if that is so."""
    return next(filter(None, masks.get("unknown", {}).values()), None)


def _list_windows(pair: xr.Dataset, geobox: GeoBox, settings: PatchSettings) -> list[Window]:
    if settings.layout == "blocks":
        return block_windows(geobox, settings)
    provenance = pair.attrs["provenance"]
    delivered = provenance["cloudy"].get("windows")
    if not delivered and provenance.get("refused"):
        return []
    if not delivered:
        raise DataError(
            f"pair {provenance['pair']['id']} was not delivered in windows, but patch.layout is 'source': set it to 'blocks' in the config"
        )
    windows = [Window(entry["name"], provenance["area"], entry["row"], entry["col"]) for entry in delivered]
    for window in windows:
        ends = window.row + settings.size_px, window.col + settings.size_px
        if min(window.row, window.col) < 0 or ends[0] > geobox.shape.y or ends[1] > geobox.shape.x:
            raise DataError(
                f"delivered window {window.name} of pair {provenance['pair']['id']} begins at row {window.row}, column {window.col}; with "
                f"patch.size_px {settings.size_px} it leaves the grid of {tuple(geobox.shape)}: set size_px to the size that was delivered"
            )
    return windows


def _stack_mask(pair: xr.Dataset, masks: xr.Dataset, unknown: Mapping[str, Bool2d]) -> Mask:
    """All channels of the whole pair, (channel, y, x) uint8; validity becomes 0 or 255, and 0 where clouds are not known."""
    rows, columns = pair.sizes["y"], pair.sizes["x"]
    stacked = np.empty((len(MASK_CHANNELS), rows, columns), np.uint8)
    for channel, name in zip(stacked, MASK_CHANNELS, strict=True):
        source = MASK_SOURCES[name]
        channel[:] = np.where(pair[source].values, 255, 0) if source.startswith("valid_") else masks[source].values
        if source.removeprefix("valid_") in unknown:
            channel[unknown[source.removeprefix("valid_")]] = 0
    return stacked


def _cut(array: npt.NDArray[Any], window: Window, size: int) -> npt.NDArray[Any]:
    return array[..., window.row : window.row + size, window.col : window.col + size]


def _measure(mask: Mask, settings: PatchSettings) -> tuple[Limit, Limit, Limit]:
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


def _to_record(window: Window, limits: Sequence[Limit], provenance: dict[str, Any], place: tuple[GeoBox, int]) -> PatchRecord:
    geobox, size = place
    bounds = geobox[window.row : window.row + size, window.col : window.col + size].boundingbox
    shares = {limit.setting: round(limit.value, 6) for limit in limits}
    area, pair = provenance["area"], provenance["pair"]
    return PatchRecord(
        id=f"{area}/{pair['id']}/{window.name}",
        area=area,
        pair=pair["id"],
        block=window.block,
        crs=str(geobox.crs),
        bounds_m=(bounds.left, bounds.bottom, bounds.right, bounds.top),
        row=window.row,
        col=window.col,
        valid_share=shares["min_valid"],
        cloud_input_share=shares["min_input_cloud"],
        cloud_target_share=shares["max_target_cloud"],
        sar_gap_days=pair["sar_gap_days"],
        clear_gap_days=pair["clear_gap_days"],
    )


def _to_patches(pair: xr.Dataset, mask: Mask, windows: Sequence[Window], size: int) -> xr.Dataset:
    """The kept windows as one dataset; each array of the pair is read once and released before the next."""
    variables: dict[str, Any] = {}
    for name, dim in (("sar", "sar_band"), ("cloudy", "band"), ("clear", "band"), ("mask", "mask_channel")):
        whole = mask if name == "mask" else pair[name].values
        cut = np.empty((len(windows), whole.shape[0], size, size), whole.dtype)
        for place, window in enumerate(windows):
            cut[place] = _cut(whole, window, size)
        attributes = {"units": "probability or validity x 255"} if name == "mask" else {"units": pair[name].attrs["units"]}
        variables[name] = (("patch", dim, "row", "col"), cut, attributes)
    coords = {"sar_band": list(bands_of(pair, "sar_band")), "band": list(bands_of(pair)), "mask_channel": list(MASK_CHANNELS)}
    return xr.Dataset(variables, coords=coords)
