"""Step `mask`: cloud and shadow probability of a pair's input and target, each on its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from sereno.pipeline.clouds import CLOUDY, compare_masks, describe_cover, grow_probability
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.detectors import Detection, Image, detect_clouds
from sereno.pipeline.scene import Bool2d, geobox_of, with_grid
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)

Stored = npt.NDArray[np.uint8]

IMAGES: Final = ("cloudy", "clear")
"""Input and target of a pair."""


def mask_pair(pair: Path, output: Path, settings: MaskSettings) -> None:
    """Write the masks of the pair at `pair` as a store of kind `mask` with manifest `output`.

    Variables `cloud_cloudy`, `shadow_cloudy`, `cloud_clear`, `shadow_clear` (y, x) are uint8 probability x 255, 0 where the image is not
    valid; `known_cloudy`, `known_clear` (y, x) are True where it is valid and the method could decide. An image without a valid pixel is
    not looked at. Summary and provenance say which method of which version with which weights made them, with `settings.second` how far
    the other agrees, and under `unknown` why of an image nothing is known, None if something is; the summary also holds the shares of
    the valid pixels that are known, and of the known ones that are probably covered.

    Raises:
        MissingError: the pair is not there or unfinished, or what a method needs is not installed.
        DataError: the pair is of a product that lacks what a method needs.
        CatalogueError: the weights of a method cannot be fetched now.
        StoreError: the pair is damaged, or the masks cannot be written.
    """
    started = time.monotonic()
    dataset = open_dataset(pair, kind="pair")
    logger.info("mask %s: finding clouds by %s", pair.stem, settings.method)
    variables: dict[str, Any] = {}
    shares: dict[str, float] = {}
    facts: dict[str, Any] = {**settings.model_dump(mode="json", exclude={"weights"}), **_describe_method("", None)}
    facts["unknown"] = {}
    for role in IMAGES:
        valid = dataset[f"valid_{role}"].values
        first, second = _find_clouds(dataset, role, settings, where=str(pair)) if valid.any() else (None, None)
        known = valid & _find_known(first, valid)
        facts |= _describe_method("", first) if first else {}
        facts["unknown"][role] = first.unknown if first and not known.any() else None
        if settings.second is not None:
            facts |= _describe_method("second_", second) if second else {}
            facts["agreement"] = {**facts.get("agreement", {}), role: _compare(first, second, known, settings)}
        for kind, stored in _to_stored(first, valid, settings).items():
            variables[f"{kind}_{role}"] = (("y", "x"), stored)
            shares[f"{kind}_{role}_share"] = describe_cover(stored, known)
        variables[f"known_{role}"] = (("y", "x"), known)
        shares[f"known_{role}_share"] = round(float(known.sum() / max(valid.sum(), 1)), 6)
    masks = xr.Dataset(variables, attrs={"provenance": {**dataset.attrs["provenance"], "masks": facts}})
    save_dataset(with_grid(masks, geobox_of(dataset)), output, kind="mask", summary={**facts, **shares})
    _log_end(pair.stem, shares, facts, time.monotonic() - started)


def _find_clouds(dataset: xr.Dataset, role: str, settings: MaskSettings, *, where: str) -> tuple[Detection, Detection | None]:
    """What the method that decides says of one image, and what the second one says, if there is one."""
    first = detect_clouds(Image(dataset, role, where), settings.method, settings)
    if settings.second is None:
        return first, None
    return first, detect_clouds(Image(dataset, role, where, "pipeline.mask.second"), settings.second, settings)


def _find_known(found: Detection | None, valid: Bool2d) -> Bool2d:
    """Where a method could decide, (y, x); nowhere where it did not look."""
    everywhere = np.full(valid.shape, found is not None)
    return everywhere if found is None or found.known is None else found.known


def _describe_method(prefix: str, found: Detection | None) -> dict[str, Any]:
    """Version and weights of a method; None where no image had a valid pixel for it to look at."""
    return {f"{prefix}version": found.version if found else None, f"{prefix}weights": found.weights if found else {}}


def _compare(first: Detection | None, second: Detection | None, known: Bool2d, settings: MaskSettings) -> dict[str, Any]:
    """How far the two methods say the same of one image where both could decide (the first: `known`), before anything is grown."""
    in_first, in_second = (found.cloud >= CLOUDY if found else np.zeros_like(known) for found in (first, second))
    both = known & _find_known(second, known)
    return {"method": settings.method, "second": settings.second, **compare_masks(in_first, in_second, both)._asdict()}


def _to_stored(found: Detection | None, valid: Bool2d, settings: MaskSettings) -> dict[str, Stored]:
    """Cloud and shadow of one image as they are stored, (y, x) uint8 each; nothing where `found` is None."""
    stored = {}
    for kind in ("cloud", "shadow"):
        probability = np.where(valid, getattr(found, kind), 0) if found else np.zeros(valid.shape, np.float32)
        grown = grow_probability(probability, dilate_px=settings.dilate_px, feather_px=settings.feather_px)
        grown[~valid] = 0
        stored[kind] = grown
    return stored


def _log_end(name: str, shares: Mapping[str, float], facts: Mapping[str, Any], seconds: float) -> None:
    covers = ", ".join(f"{key.removesuffix('_share').replace('_', ' of ')} {share:.1%}" for key, share in shares.items())
    compared = "".join(
        f", {facts['second']} agrees on {found['both'] + found['neither']:.1%} of {role}"
        for role, found in facts.get("agreement", {}).items()
    )
    for reason in filter(None, facts["unknown"].values()):
        logger.warning("mask %s: %s", name, reason)
    logger.info("mask %s: %s%s, %.1f s", name, covers, compared, seconds)
