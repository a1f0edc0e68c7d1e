"""Samples of real data on their way into a packed dataset, on which training, evaluation and `quality.py` run as on any other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from sereno.pipeline.clouds import FULL
from sereno.pipeline.config import PackSettings
from sereno.pipeline.pack import create_arrays, measure_training, to_csv
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, SPLITS, PatchRecord, Split
from sereno.pipeline.splits import check_leakage
from sereno.pipeline.store import staged, store_of, write_manifest

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

ORDER_SEED: Final = 2
"""Seed of the order in which patches are stored."""


class Sample(NamedTuple):
    """One patch on its way into a dataset."""

    record: PatchRecord
    """Where it comes from, with its split."""
    sar: Array
    """(sar_band, row, col) int16 centi-dB."""
    cloudy: Array
    """(band, row, col) uint16 reflectance x 10000."""
    clear: Array
    """(band, row, col) uint16 reflectance x 10000."""
    mask: Array
    """(mask_channel, row, col) uint8, MASK_CHANNELS."""


class Facts(NamedTuple):
    """What all patches of a dataset share."""

    bands: tuple[str, ...]
    """Optical bands in stored order."""
    sar_bands: tuple[str, ...]
    """Polarisations in stored order."""
    size_px: int
    """Side of a patch."""
    resolution_m: float
    """Pixel size."""


def save_samples(
    samples: Sequence[Sample], output: Path, *, facts: Facts, notes: Mapping[str, Any], apart: Sequence[Split] = SPLITS
) -> None:
    """Write a packed dataset: the contract of `sereno.pipeline.patches`, `notes` added to the manifest's summary.

    The splits named in `apart` are proven to share no ground; what a split left out of it shares is for `notes` to say.

    Raises:
        DataError: two of those splits share ground, or no training target pixel is usable.
    """
    arranged = arrange_samples(samples)
    records = [sample.record for split in SPLITS for sample in arranged[split]]
    leakage = check_leakage([record for record in records if record.split in apart], buffer_m=0)
    settings = PackSettings()
    counts = {split: len(arranged[split]) for split in SPLITS}
    with staged(store_of(output)) as partial:
        packed = facts._asdict() | {"task": "cloud-removal", "ratio": 1, "mask_channels": list(MASK_CHANNELS)}
        create_arrays(partial, counts, packed, settings)
        for split in SPLITS:
            for name in PATCH_ARRAYS if arranged[split] else ():
                values = np.stack([getattr(sample, name) for sample in arranged[split]])
                zarr.open_array(partial, path=f"{split}/{name}", mode="r+")[:] = values
        (partial / "patches.csv").write_text(to_csv(records))
        clear = measure_training(partial, "cloud-removal", settings.shard_patches)["clear"]
        output.unlink(missing_ok=True)
    edges = np.linspace(0, 1, 11)
    cover = {split: np.histogram([s.record.cloud_input_share for s in arranged[split]], edges)[0].tolist() for split in SPLITS}
    summary = facts._asdict() | {
        "mask_channels": list(MASK_CHANNELS),
        "counts": counts,
        "leakage": leakage._asdict() | {"compared": list(apart)},
        "cloud_share": {"edges": edges.round(3).tolist()} | cover,
        "training_mean": clear.mean,
        "training_std": clear.std,
    }
    write_manifest(output, kind="dataset", summary=summary | dict(notes))
    logger.info("%s: %s", output, ", ".join(f"{count} {split}" for split, count in counts.items()))


def arrange_samples(samples: Sequence[Sample]) -> dict[Split, list[Sample]]:
    """The samples by split, shuffled within it, each with its position."""
    arranged: dict[Split, list[Sample]] = {}
    for number, split in enumerate(SPLITS):
        members = sorted((sample for sample in samples if sample.record.split == split), key=lambda sample: sample.record.id)
        order = np.random.default_rng((ORDER_SEED, number)).permutation(len(members))
        placed = [members[place] for place in order]
        arranged[split] = [s._replace(record=s.record.model_copy(update={"position": p})) for p, s in enumerate(placed)]
    return arranged


def stack_mask(channels: Mapping[str, Array], shape: tuple[int, int]) -> Array:
    """The mask of a patch, (7, row, col) uint8: `channels` by name, validity full and probabilities zero where not given."""
    assert set(channels) <= set(MASK_CHANNELS)
    missing = {name: np.full(shape, FULL * name.startswith("valid"), np.uint8) for name in MASK_CHANNELS}
    return np.stack([np.asarray((missing | dict(channels))[name], np.uint8) for name in MASK_CHANNELS])
