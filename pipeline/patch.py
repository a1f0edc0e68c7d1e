"""Cut a masked pair or group into the windows worth keeping, with the reason for every window that is not.

A pair, or the group of another task, and its masks enter; a small store of patches leaves, together with one record per patch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline import clearing_samples, cube_samples, fusion_samples, sharpening_samples
from sereno.pipeline.config import PatchSettings, TaskName
from sereno.pipeline.errors import DataError
from sereno.pipeline.groups import open_job, ratio_of, task_of, to_coarse_grid
from sereno.pipeline.material import Limit, Material, check_windows, cut_mask, cut_patches, measure_clear, measure_unsure
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import PatchRecord
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.splits import Window, block_windows, guaranteed_distance_m
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)


class PatchSteps(NamedTuple):
    """How patches of one task are made."""

    list_material: Callable[[xr.Dataset, xr.Dataset], Material]
    """From a pair or group and its masks."""
    measure_window: Callable[[npt.NDArray[np.uint8], PatchSettings], tuple[Limit, ...]]
    """From the mask of a window."""


STEPS_OF: Final[Mapping[TaskName, PatchSteps]] = {
    "cloud-removal": PatchSteps(clearing_samples.list_material, clearing_samples.measure_window),
    "pansharpening": PatchSteps(sharpening_samples.list_material, measure_clear),
    "spatiotemporal-fusion": PatchSteps(fusion_samples.list_material, measure_clear),
    "snapshot-reconstruction": PatchSteps(cube_samples.list_material, measure_clear),
}
"""One row per task."""


def patch_pair(pair: Path, masks: Path, output: Path, settings: PatchSettings) -> None:
    """Write the patches of one pair, or group, as a store of kind `patches`; a pair of which nothing is kept gives an empty store.

    The summary lists `patches` (records), `refused` (every candidate window with its reason), `pair_refused` (why the whole pair is not
    used, None if it is), names along dims (`bands`, `sar_bands`), `size_px`, `resolution_m`, `layout`, `block_px` and `buffer_m`, the
    distance that windows of different blocks are sure to keep.

    Raises:
        DataError: the masks are those of another pair or grid, or the delivered windows do not fit the settings.
        MissingError: the pair or its masks do not exist.
        StoreError: one of them is damaged, or the output cannot be written.
    """
    started = time.monotonic()
    opened, found = open_job(pair), open_dataset(masks, kind="mask")
    geobox, provenance, task = geobox_of(opened), opened.attrs["provenance"], task_of(opened)
    made_for = found.attrs["provenance"]
    if not _is_grid_of(geobox_of(found), opened) or any(made_for[key] != provenance[key] for key in ("area", "pair")):
        raise DataError(f"{masks} was not made from {pair}: run `sereno mask` on this pair")
    material = STEPS_OF[task].list_material(opened, found)
    windows = _list_windows(opened, geobox, settings)
    check_windows(windows, settings.size_px, material.ratio)
    logger.info("patch %s: %d candidate windows of %d px", pair.stem, len(windows), settings.size_px)
    measured = [(window, STEPS_OF[task].measure_window(cut_mask(material, window, settings.size_px), settings)) for window in windows]
    failed = [(window, next((limit for limit in limits if not limit.is_met), None)) for window, limits in measured]
    refused = [
        _describe_refusal(window, limit, measure_unsure(material, window, settings.size_px))
        for window, limit in failed
        if limit is not None
    ]
    kept = [(window, limits) for window, limits in measured if all(limit.is_met for limit in limits)]
    place = (geobox, settings.size_px)
    records = [_to_record(window, limits, provenance, place=place, gaps_days=material.gaps_days) for window, limits in kept]
    names = {**material.names, "mask_channels": MASK_CHANNELS_OF[task]}
    patches = xr.Dataset(
        cut_patches(material, [window for window, _ in kept], settings.size_px),
        coords={plural.removesuffix("s"): list(values) for plural, values in names.items()},
        attrs={"provenance": {**provenance, "masks": made_for["masks"]}},
    )
    summary = (
        _describe_cut(geobox, settings)
        | _describe_material(material)
        | {
            "area": provenance["area"],
            "pair": provenance["pair"]["id"],
            "patches": [record.model_dump(mode="json", exclude={"split", "position"}) for record in records],
            "refused": refused,
            "pair_refused": provenance.get("refused") or _find_unknown_image(made_for["masks"]),
        }
    )
    save_dataset(patches, output, kind="patches", summary=summary, chunks={"patch": 1})
    why = f" ({summary['pair_refused']})" if summary["pair_refused"] else ""
    logger.info("patch %s: %d kept, %d refused%s, %.1f s", pair.stem, len(kept), len(refused), why, time.monotonic() - started)


def _is_grid_of(grid: GeoBox, job: xr.Dataset) -> bool:
    """Whether masks on `grid` can be those of a pair or group: on its grid, or that of its coarse images."""
    whole = geobox_of(job)
    return grid in (whole, to_coarse_grid(whole, ratio_of(job)))


def _describe_material(material: Material) -> dict[str, Any]:
    """Names along dims; and task and ratio, which for cloud removal go without saying."""
    names = {plural: list(values) for plural, values in material.names.items()}
    return names if material.task == "cloud-removal" else {"task": material.task, "ratio": material.ratio, **names}


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
    """Why of an image of the pair no cloud is known, if that is so; dates around a pair say by `around_clear` that nothing is."""
    return next((why for role, why in masks.get("unknown", {}).items() if why and role not in AROUND), None)


def _list_windows(pair: xr.Dataset, geobox: GeoBox, settings: PatchSettings) -> list[Window]:
    if settings.layout == "blocks":
        return block_windows(geobox, settings)
    provenance = pair.attrs["provenance"]
    delivered = provenance.get("cloudy", {}).get("windows")
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


def _to_record(
    window: Window, limits: Sequence[Limit], provenance: dict[str, Any], *, place: tuple[GeoBox, int], gaps_days: Mapping[str, float]
) -> PatchRecord:
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
        cloud_input_share=shares.get("min_input_cloud", shares["max_target_cloud"]),
        cloud_target_share=shares["max_target_cloud"],
        sar_gap_days=pair.get("sar_gap_days", 0.0),
        clear_gap_days=pair.get("clear_gap_days", 0.0),
        gaps_days=dict(gaps_days),
    )
