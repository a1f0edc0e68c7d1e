"""`sereno evaluate`: score a network patch by patch, always beside the baselines that need no weights.

A dataset and a checkpoint enter. `scores.csv` leaves with one row per patch, method and region; `summary.json` with averages that say
what they are of; `examples.npz` with some patches as pictures for the report.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sereno.model.checkpoint import Loaded, check_bands, choose_device, hash_file, load_checkpoint
from sereno.model.config import EvaluateSettings
from sereno.model.data import Batch, SplitArrays, open_split, read_facts, read_records, to_batch
from sereno.model.layers import smooth_fill
from sereno.model.metrics import COUNTS, METRICS, average_maps, average_scores, bootstrap_difference, compute_error_maps
from sereno.pipeline.errors import MissingError, StoreError, TrainingError
from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE
from sereno.pipeline.store import staged, write_json, write_text

logger = logging.getLogger(__name__)

FORMAT: Final = "sereno-evaluation/1"
METHODS: Final = {
    "network": "the trained network",
    "copy": "the cloudy image as it is, not clipped",
    "mean": "the training mean of each band everywhere",
    "fill": "the cloudy image with its clouds filled smoothly from what is clear around them, the training mean where nothing is clear",
}
"""What is scored, in words."""
BASELINES: Final = tuple(name for name in METHODS if name != "network")
REGIONS: Final = {
    "all": "pixels valid in input and target, clouds of the target included (the convention of published scores)",
    "cloudy": "valid pixels whose input is cloud or shadow and whose target is clear",
    "clear": "valid pixels whose input and target are clear",
}
"""Where it is scored, in words."""
COVER_EDGES_PCT: Final = (0, 20, 40, 60, 80, 100)
"""Bins of the input's cloud cover in percent, lower edge included, the last one with both."""
COMPARED: Final = ("psnr", "ssim")
"""Metrics in which the network is compared with each baseline, on cloudy pixels."""
BOOTSTRAP_SEED: Final = 0
KEYS: Final = ("id", "split", "area", "pair", "block", "cloud_input_share", "sar_gap_days", "clear_gap_days")
"""Columns of the table that say which patch a row is about."""

Array = npt.NDArray[Any]


class Scored(NamedTuple):
    """Some neighbouring patches of a split, with every method's answer and scores."""

    first: int
    """Place of the first one in its split."""
    stored: SplitArrays
    """The patches as they are stored."""
    answers: dict[str, Tensor]
    """Reflectance (B, C, H, W) by method, on the CPU."""
    scores: Tensor
    """(B, method, region, METRICS then COUNTS) float64."""


def evaluate_checkpoint(dataset: Path, checkpoint: Path, output: Path, settings: EvaluateSettings) -> None:
    """Write the scores of `checkpoint` on a split of `dataset` to `output`, with `summary.json` and `examples.npz` beside it.

    Raises:
        MissingError: an input is not there, or the split is empty.
        DataError: bands of dataset and checkpoint differ.
        TrainingError: the checkpoint is unusable or gives values that are no numbers.
        StoreError: the dataset is damaged.
    """
    logger.info("evaluate: scoring %s on the %s split of %s", checkpoint, settings.split, dataset)
    loaded = load_checkpoint(checkpoint, choose_device(settings.device))
    facts = read_facts(dataset)
    check_bands(loaded, facts.bands, facts.sar_bands, where=dataset)
    if hash_file(dataset) != loaded.meta.dataset_sha256:
        logger.warning(
            "%s was trained on another dataset than %s: ground of this split may have been among its training", checkpoint, dataset
        )
    arrays, records = open_split(dataset, settings.split), read_records(dataset, settings.split)
    check_split(records, arrays, settings, where=dataset)
    chosen = choose_examples([record.cloud_input_share for record in records], settings.examples)
    scores, pictures = [], []
    for part in score_split(arrays, loaded, settings):
        scores.append(part.scores)
        pictures += [_cut_example(part, place) for place in chosen if 0 <= place - part.first < len(part.scores)]
    table = torch.cat(scores)
    _write_examples(output.with_name("examples.npz"), pictures, [records[place] for place in sorted(chosen)], loaded)
    write_json(output.with_name("summary.json"), summarise(table, records, settings) | {"checkpoint": loaded.meta.model_dump(mode="json")})
    write_text(output, to_csv(table, records))
    logger.info("evaluate: wrote %d rows for %d patches to %s", table[..., 0].numel(), len(records), output)


def check_split(records: Sequence[PatchRecord], arrays: SplitArrays, settings: EvaluateSettings, *, where: Path) -> None:
    """Refuse an empty split, or a table that does not fit its arrays.

    Raises:
        MissingError: names the split, its size and the settings that decide it.
        StoreError: the number of records is not that of the patches.
    """
    if len(records) != arrays.n_patches:
        raise StoreError(f"{where}: {settings.split} has {arrays.n_patches} patches but {len(records)} records; run `sereno pack` again")
    if not records:
        raise MissingError(
            f"{where}: the split '{settings.split}' has 0 patches: raise its share in `pack.split` or score another (`evaluate.split`)"
        )


def choose_examples(cover: Sequence[float], count: int) -> list[int]:
    """Places of at most `count` patches whose cloud covers lie closest to evenly spaced ones, in order of place."""
    left = sorted(range(len(cover)), key=lambda place: (cover[place], place))
    chosen: list[int] = []
    for level in np.linspace(min(cover), max(cover), min(count, len(cover))):
        nearest = min(left, key=lambda place: (abs(cover[place] - level), place))
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen)


@torch.inference_mode()
def score_split(arrays: SplitArrays, loaded: Loaded, settings: EvaluateSettings) -> Iterator[Scored]:
    """Score the patches of a split in stored order, `batch_size` at a time.

    Raises:
        TrainingError: the network gives values that are no numbers.
    """
    starts = range(0, arrays.n_patches, settings.batch_size)
    for start in track(starts, "evaluate", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        stored = arrays.read(start, min(start + settings.batch_size, arrays.n_patches))
        batch = to_batch(*stored, loaded.settings.sar_range, loaded.sar_bands).to(loaded.training_mean.device)
        answers = answer_batch(batch, loaded)
        if not answers["network"].isfinite().all():
            raise TrainingError(f"the network gives values that are no numbers for patches {start} and following: train again")
        regions = mark_regions(torch.from_numpy(stored.mask), settings.cloud_threshold).to(batch.target.device)
        scores = torch.stack([score_regions(answer, batch.target, regions) for answer in answers.values()], dim=1)
        yield Scored(start, stored, {name: answer.cpu() for name, answer in answers.items()}, scores.cpu())


def answer_batch(batch: Batch, loaded: Loaded) -> dict[str, Tensor]:
    """What each of METHODS makes of a batch: reflectance (B, C, H, W) by name."""
    return {
        "network": loaded.network(batch.optical, batch.sar, batch.cloud).float(),
        "copy": batch.optical,
        "mean": loaded.training_mean[:, None, None].expand_as(batch.optical),
        "fill": smooth_fill(batch.optical, 1 - batch.cloud, loaded.training_mean),
    }


def mark_regions(mask: Tensor, threshold: float) -> Tensor:
    """Where each of REGIONS is: stored mask (B, 7, H, W) uint8, probability from which a pixel is cloudy -> (B, 3, H, W) bool."""
    channel = dict(zip(MASK_CHANNELS, mask.unbind(1), strict=True))
    valid = (channel["valid_input"] > 0) & (channel["valid_target"] > 0)
    cloudy, target_cloudy = (
        torch.maximum(channel[f"cloud_{image}"], channel[f"shadow_{image}"]) >= threshold * 255 for image in ("input", "target")
    )
    clear_target = valid & ~target_cloudy
    return torch.stack([valid, clear_target & cloudy, clear_target & ~cloudy], dim=1)


def score_regions(answer: Tensor, target: Tensor, regions: Tensor) -> Tensor:
    """Score one method: (B, C, H, W), (B, C, H, W), (B, region, H, W) bool -> (B, region, METRICS then COUNTS) float64.

    SSIM windows see all valid pixels around a pixel, whichever region those belong to.
    """
    maps = compute_error_maps(answer, target, regions[:, 0])
    scores = [average_maps(maps, region) for region in regions.unbind(1)]
    return torch.stack([torch.stack([score[name] for name in (*METRICS, *COUNTS)], dim=-1) for score in scores], dim=1)


def to_csv(table: Tensor, records: Sequence[PatchRecord]) -> str:
    """The scores as text, one row per patch, method and region; `nan` where a region has nothing to score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEYS, "method", "region", *COUNTS, *METRICS])
    for record, patch in zip(records, table.tolist(), strict=True):
        keys = [getattr(record, key) for key in KEYS]
        for method, regions in zip(METHODS, patch, strict=True):
            for region, values in zip(REGIONS, regions, strict=True):
                metrics, counts = values[: len(METRICS)], values[len(METRICS) :]
                writer.writerow([*keys, method, region, *map(int, counts), *(f"{value:.6g}" for value in metrics)])
    return text.getvalue()


def summarise(table: Tensor, records: Sequence[PatchRecord], settings: EvaluateSettings) -> dict[str, Any]:
    """Averages over patches, of all and by cloud cover, and the network against each baseline."""
    cover_pct = torch.tensor([100 * record.cloud_input_share for record in records], dtype=torch.float64)
    bins = []
    for low, high in itertools.pairwise(COVER_EDGES_PCT):
        inside = (cover_pct >= low) & ((cover_pct < high) | (high == COVER_EDGES_PCT[-1]))
        bins.append({"cover_pct": [low, high], "patches": int(inside.sum()), "scores": _summarise_patches(table[inside])})
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "split": settings.split,
        "settings": settings.model_dump(mode="json"),
        "patches": len(records),
        "blocks": len({record.block for record in records}),
        "methods": METHODS,
        "regions": REGIONS,
        "metrics": list(METRICS),
        "scores": _summarise_patches(table),
        "by_cover": bins,
        "network_minus": compare_baselines(table, [record.block for record in records]),
    }


def _summarise_patches(table: Tensor) -> dict[str, Any]:
    """By method and region: averages of each metric over the patches, and sums of the counts."""
    return {
        method: {
            region: {metric: _to_plain(average_scores(table[:, m, r, k])._asdict()) for k, metric in enumerate(METRICS)}
            | {count: int(table[:, m, r, len(METRICS) + k].sum()) for k, count in enumerate(COUNTS)}
            for r, region in enumerate(REGIONS)
        }
        for m, method in enumerate(METHODS)
    }


def compare_baselines(table: Tensor, blocks: Sequence[str]) -> dict[str, Any]:
    """Paired differences, network minus baseline, on cloudy pixels, with 95 % bootstrap intervals.

    `by_patch` draws patches as if they were independent. Patches of one ground block on several dates are not, so `by_block` draws
    blocks with all their patches; with few blocks trust neither interval's last digit.
    """
    cloudy = table[:, :, list(REGIONS).index("cloudy")]
    units = {"by_patch": [str(place) for place in range(len(blocks))], "by_block": list(blocks)}
    note = "95 % intervals; by_patch takes patches as independent, which those that share ground are not; by_block draws ground blocks"
    compared: dict[str, Any] = {"region": "cloudy", "note": note}
    for place, method in enumerate(METHODS):
        if method in BASELINES:
            difference = cloudy[:, 0] - cloudy[:, place]
            compared[method] = {
                metric: {unit: _draw_interval(difference[:, METRICS.index(metric)], groups) for unit, groups in units.items()}
                for metric in COMPARED
            }
    return compared


def _draw_interval(difference: Tensor, groups: Sequence[str]) -> dict[str, float | int | None]:
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    return _to_plain(bootstrap_difference(difference, groups, generator=generator)._asdict())


def _to_plain(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """Numbers as JSON has them: None where there is none."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _cut_example(part: Scored, place: int) -> dict[str, Array]:
    """One patch as stored integers, with two methods' answers and all scores."""
    inside = place - part.first
    arrays = {name: array[inside] for name, array in part.stored._asdict().items()}
    answers = {"prediction": part.answers["network"], "fill": part.answers["fill"]}
    stored = {name: _to_stored(answer[inside]) for name, answer in answers.items()}
    return arrays | stored | {"scores": part.scores[inside].numpy()}


def _to_stored(reflectance: Tensor) -> Array:
    return (reflectance * REFLECTANCE_SCALE).round().clamp(0, MAX_REFLECTANCE).numpy().astype(np.uint16)


def _write_examples(path: Path, pictures: Sequence[dict[str, Array]], records: Sequence[PatchRecord], loaded: Loaded) -> None:
    """Write the example patches: `sar`, `cloudy`, `clear`, `mask` as stored, `prediction` and `fill` alike, `scores`, and names.

    `scores` is (patch, method, region, column) with the names in `methods`, `regions` and `columns`.
    """
    names = {
        "id": [record.id for record in records],
        "bands": list(loaded.bands),
        "sar_bands": list(loaded.sar_bands),
        "methods": list(METHODS),
        "regions": list(REGIONS),
        "columns": [*METRICS, *COUNTS],
    }
    arrays: dict[str, Any] = {name: np.array(values, dtype=np.str_) for name, values in names.items()}
    arrays["cloud_input_share"] = np.array([record.cloud_input_share for record in records])
    arrays |= {key: np.stack([picture[key] for picture in pictures]) for key in (pictures[0] if pictures else ())}
    with staged(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
