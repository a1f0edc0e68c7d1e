"""Step `mask`: cloud and shadow probability of a pair's input and target, and of the dates around it, or of a group's images."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from sereno.pipeline.clouds import CLOUDY, FULL, CloudShadow, compare_masks, compare_with_truth, describe_cover, grow_probability
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.detectors import Detection, Image, choose_method, detect_clouds
from sereno.pipeline.groups import open_job, task_of, view_image
from sereno.pipeline.samples import list_skies
from sereno.pipeline.scene import Bool2d, geobox_of, with_grid
from sereno.pipeline.skies import Truth, read_truth
from sereno.pipeline.store import save_dataset

logger = logging.getLogger(__name__)

Stored = npt.NDArray[np.uint8]


class Judged(NamedTuple):
    """One image with its masks."""

    layers: dict[str, Stored]
    """`cloud` and `shadow` as they are stored, (y, x) each."""
    known: Bool2d
    """(y, x), True where they are known."""
    first: Detection | None
    """What the method that decides says; None where it did not look."""
    second: Detection | None
    """What the other says; None without one, too."""


def mask_pair(pair: Path, output: Path, settings: MaskSettings) -> None:
    """Write the masks of the pair, or group, at `pair` as a store of kind `mask` with manifest `output`.

    Variables `cloud_cloudy`, `shadow_cloudy`, `cloud_clear`, `shadow_clear` (y, x) are uint8 probability x 255, 0 where the image is not
    valid; `known_cloudy`, `known_clear` (y, x) are True where it is valid and the method could decide. A pair in a series has
    those of `before` and `after` too. Those of a group bear the roles that `SKIES_OF` names, and lie on the grid of these images. An image
    without a valid pixel is not looked at. Summary and provenance say which method of which version with which weights made them, under
    `asked` and `why` how `auto` came to it, with `settings.second` how far the other agrees, and under `unknown` why of an image nothing is
    known, None if something is; the summary also holds the shares of the valid pixels that are known, and of the known ones that are
    probably covered.

    Where the input lies under a simulated sky its masks are the truth, not grown, joined with what the method finds in the clear image
    that is under it; `simulated` is then `known`, and `truth` holds how much of it each method finds in the input. The classification of
    such an input is made of the truth, so that `scl` is not asked.

    Raises:
        MissingError: the pair is not there or unfinished, or what a method needs is not installed.
        DataError: the pair is of a product that lacks what a method needs.
        CatalogueError: the weights of a method cannot be fetched now.
        StoreError: the pair is damaged, or the masks cannot be written.
    """
    started = time.monotonic()
    dataset = open_job(pair)
    images = {role: view_image(dataset, role) for role in list_skies(task_of(dataset), [str(name) for name in dataset.data_vars])}
    grid = geobox_of(next(iter(images.values()), dataset))
    settings, asked = resolve_method(images, settings, where=str(pair))
    why, roles = f" ({asked['why']})" if asked else "", ", ".join(images) or "nothing: it has no sky"
    logger.info("mask %s: finding clouds by %s%s in %s", pair.stem, settings.method, why, roles)
    judged = {role: _judge_image(image, role, settings, where=str(pair)) for role, image in images.items()}
    facts, truth = asked | _describe_images(judged, settings), read_truth(dataset)
    if truth is not None:
        facts |= {"simulated": "known", "truth": _score_methods(truth, judged["cloudy"], settings)}
        judged["cloudy"] = _join_truth(truth, judged, dataset["valid_cloudy"].values)
    variables: dict[str, Any] = {}
    shares: dict[str, float] = {}
    for role, image in judged.items():
        for kind, stored in image.layers.items():
            variables[f"{kind}_{role}"] = (("y", "x"), stored)
            shares[f"{kind}_{role}_share"] = describe_cover(stored, image.known)
        variables[f"known_{role}"] = (("y", "x"), image.known)
        n_valid = int(images[role][f"valid_{role}"].values.sum())
        shares[f"known_{role}_share"] = round(float(image.known.sum() / max(n_valid, 1)), 6)
    masks = xr.Dataset(variables, attrs={"provenance": {**dataset.attrs["provenance"], "masks": facts}})
    save_dataset(with_grid(masks, grid), output, kind="mask", summary={**facts, **shares})
    _log_end(pair.stem, shares, facts, time.monotonic() - started)


def resolve_method(views: Mapping[str, xr.Dataset], settings: MaskSettings, *, where: str) -> tuple[MaskSettings, dict[str, Any]]:
    """Settings with a method in place of `auto`, the best for all with a valid pixel, and under `asked` and `why` how it came about.

    Settings that name a method stay as they are, and so do those of a pair without a valid pixel: there is nothing to find.

    Raises:
        DataError: no method can mask the pair.
    """
    images = [Image(view, role, where) for role, view in views.items() if view[f"valid_{role}"].values.any()]
    if settings.method != "auto" or not images:
        return settings, {}
    method, why = choose_method(images, settings)
    second = None if settings.second == method else settings.second
    return settings.model_copy(update={"method": method, "second": second}), {"asked": "auto", "why": why}


def _judge_image(dataset: xr.Dataset, role: str, settings: MaskSettings, *, where: str) -> Judged:
    """What the methods say of one image; of one without a valid pixel they say nothing."""
    valid = dataset[f"valid_{role}"].values
    first, second = _find_clouds(dataset, role, settings, where=where) if valid.any() else (None, None)
    return Judged(_to_stored(first, valid, settings), valid & _find_known(first, valid), first, second)


def _describe_images(judged: Mapping[str, Judged], settings: MaskSettings) -> dict[str, Any]:
    """Which methods of which version were asked, how far they agree, and why of an image nothing is known."""
    facts: dict[str, Any] = {**settings.model_dump(mode="json", exclude={"weights"}), **_describe_method("", None), "unknown": {}}
    agreement = {}
    for role, image in judged.items():
        facts |= _describe_method("", image.first) if image.first else {}
        facts["unknown"][role] = image.first.unknown if image.first and not image.known.any() else None
        if settings.second is not None:
            facts |= _describe_method("second_", image.second) if image.second else {}
            agreement[role] = _compare(image.first, image.second, image.known, settings)
    return facts | ({"agreement": agreement} if agreement else {})


def _score_methods(truth: Truth, image: Judged, settings: MaskSettings) -> dict[str, Any]:
    """By method, how much of the truth it finds in the image before anything is grown; without `scl`, which is made of the truth."""
    true = CloudShadow(truth.cloud >= CLOUDY, truth.shadow >= CLOUDY)
    asked = ((settings.method, image.first), (settings.second, image.second))
    scores = {}
    for method, found in asked:
        if found is not None and method not in (None, "scl"):
            seen = CloudShadow(found.cloud >= CLOUDY, found.shadow >= CLOUDY)
            scores[str(method)] = compare_with_truth(seen, true, truth.thick, _find_known(found, image.known) & image.known)._asdict()
    return scores


def _join_truth(truth: Truth, judged: Mapping[str, Judged], valid: Bool2d) -> Judged:
    """The masks of an input under a simulated sky: the truth, which needs no growing, and what was found in the clear image below."""
    below = judged["clear"]
    layers = {
        kind: np.maximum(np.where(valid, np.rint(getattr(truth, kind) * FULL), 0).astype(np.uint8), stored)
        for kind, stored in below.layers.items()
    }
    return judged["cloudy"]._replace(layers=layers, known=valid & below.known)


def _find_clouds(dataset: xr.Dataset, role: str, settings: MaskSettings, *, where: str) -> tuple[Detection, Detection | None]:
    """What the method that decides says of one image, and what the second one says, if there is one."""
    assert settings.method != "auto"  # it has been resolved
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
    logger.info("mask %s: %s%s, %.1f s", name, covers or "done", compared, seconds)
