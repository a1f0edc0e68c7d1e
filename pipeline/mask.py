"""Step `mask`: cloud and shadow probability of a pair's input and target, each on its own."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Final

import xarray as xr

from sereno.pipeline.clouds import (
    THRESHOLD_BANDS,
    VERSION,
    CloudShadow,
    Sun,
    describe_cover,
    find_by_thresholds,
    find_in_scl,
    to_probability,
)
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.scene import bands_of, geobox_of, with_grid
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)

IMAGES: Final = ("cloudy", "clear")
"""Input and target of a pair."""


def mask_pair(pair: Path, output: Path, settings: MaskSettings) -> None:
    """Write the masks of the pair at `pair` as a store of kind `mask` with manifest `output`.

    Variables `cloud_cloudy`, `shadow_cloudy`, `cloud_clear`, `shadow_clear` (y, x) are uint8 probability x 255, 0 where the image is not
    valid. The summary holds the shares of the valid pixels that are probably covered.

    Raises:
        MissingError: the pair is not there or unfinished.
        DataError: the pair lacks what `settings.method` needs.
        StoreError: the pair is damaged, or the masks cannot be written.
    """
    started = time.monotonic()
    dataset = open_dataset(pair, kind="pair")
    logger.info("mask %s: finding clouds by %s", pair.stem, settings.method)
    variables: dict[str, Any] = {}
    shares: dict[str, float] = {}
    for image in IMAGES:
        valid = dataset[f"valid_{image}"].values
        found = find_covered(dataset, image, settings, where=str(pair))
        for kind, binary in found._asdict().items():
            probability = to_probability(binary & valid, dilate_px=settings.dilate_px, feather_px=settings.feather_px)
            probability[~valid] = 0
            variables[f"{kind}_{image}"] = (("y", "x"), probability)
            shares[f"{kind}_{image}_share"] = describe_cover(probability, valid)
    facts = {"version": VERSION, **settings.model_dump(mode="json")}
    masks = xr.Dataset(variables, attrs={"provenance": {**dataset.attrs["provenance"], "masks": facts}})
    save_dataset(with_grid(masks, geobox_of(dataset)), output, kind="mask", summary={**facts, **shares})
    covers = ", ".join(f"{name.removesuffix('_share').replace('_', ' of ')} {share:.1%}" for name, share in shares.items())
    logger.info("mask %s: %s, %.1f s", pair.stem, covers, time.monotonic() - started)


def find_covered(dataset: xr.Dataset, image: str, settings: MaskSettings, *, where: str) -> CloudShadow:
    """Cloud and shadow of one image of a pair by the method of `settings`; `where` names the pair in messages.

    Raises:
        DataError: the image lacks the scene classification or the bands that the method needs.
    """
    if settings.method == "scl":
        if f"scl_{image}" not in dataset:
            raise DataError(
                f"{where}: the {image} image has no scene classification, which method 'scl' needs: "
                "set pipeline.mask.method to 'threshold' for L1C products"
            )
        return find_in_scl(dataset[f"scl_{image}"].values)
    bands = bands_of(dataset)
    missing = [name for name in THRESHOLD_BANDS if name not in bands]
    if missing:
        raise DataError(
            f"{where}: the {image} image has no band {', '.join(missing)}, which method 'threshold' needs: "
            "set pipeline.mask.method to 'scl' for L2A products, or keep all bands in pipeline.ingest.bands"
        )
    reflectance = {name: to_reflectance(dataset[image].sel(band=name).values) for name in THRESHOLD_BANDS}
    pixel_m = abs(float(geobox_of(dataset).resolution.y))
    return find_by_thresholds(reflectance, sun=_sun_of(dataset, image), pixel_m=pixel_m)


def _sun_of(dataset: xr.Dataset, image: str) -> Sun | None:
    facts = dataset.attrs["provenance"].get(image, {})
    azimuth, elevation = facts.get("sun_azimuth_deg"), facts.get("sun_elevation_deg")
    return None if azimuth is None or elevation is None else Sun(azimuth, elevation)
