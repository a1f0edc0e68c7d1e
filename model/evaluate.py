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
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sereno.model.batches import store_optical
from sereno.model.checkpoint import Loaded, check_question, choose_device, hash_file, load_checkpoint
from sereno.model.config import EvaluateSettings
from sereno.model.data import SplitArrays, open_split, read_facts, read_records
from sereno.model.metrics import COUNTS, average_scores, bootstrap_difference
from sereno.model.scoring import Case, Scoring
from sereno.model.tasks import TASKS
from sereno.pipeline.errors import MissingError, StoreError, TrainingError
from sereno.pipeline.patches import PatchRecord
from sereno.pipeline.store import staged, write_json, write_text

logger = logging.getLogger(__name__)

FORMAT: Final = "sereno-evaluation/1"
COVER_EDGES_PCT: Final = (0, 20, 40, 60, 80, 100)
"""Bins of the input's cloud cover in percent, lower edge included, the last one with both."""
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
    """(B, method, region, columns of the task's scoring) float64."""


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
    check_question(loaded, facts, where=dataset)
    if hash_file(dataset) != loaded.meta.dataset_sha256:
        logger.warning(
            "%s was trained on another dataset than %s: ground of this split may have been among its training", checkpoint, dataset
        )
    arrays, records = open_split(dataset, settings.split), read_records(dataset, settings.split)
    check_split(records, arrays, settings, where=dataset)
    scoring = TASKS[facts.task].scoring.fit(arrays)
    chosen = choose_examples([record.cloud_input_share for record in records], settings.examples)
    scores, pictures = [], []
    for part in score_split(arrays, loaded, settings):
        scores.append(part.scores)
        pictures += [_cut_example(part, place, scoring) for place in chosen if 0 <= place - part.first < len(part.scores)]
    table = torch.cat(scores)
    names = _name_axes(loaded, scoring)
    _write_examples(output.with_name("examples.npz"), pictures, [records[place] for place in sorted(chosen)], names)
    summary = summarise(table, records, settings, scoring=scoring) | {"checkpoint": loaded.meta.model_dump(mode="json")}
    write_json(output.with_name("summary.json"), summary)
    write_text(output, to_csv(table, records, scoring))
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
        tensors = {name: torch.from_numpy(array).to(loaded.training_mean.device) for name, array in stored.items()}
        network = partial(_ask_network, loaded, start)
        case = Case(tensors, loaded.meta.signature, loaded.settings, network, settings.cloud_threshold)
        judged = TASKS[loaded.meta.task].scoring.judge(case)
        yield Scored(start, stored, {name: answer.cpu() for name, answer in judged.answers.items()}, judged.scores.cpu())


def _ask_network(loaded: Loaded, start: int, *inputs: Tensor) -> Tensor:
    """What the network makes of the patches from `start` on, float32."""
    answer: Tensor = loaded.network(*inputs).float()
    if not answer.isfinite().all():
        raise TrainingError(f"the network gives values that are no numbers for patches {start} and following: train again")
    return answer


def to_csv(table: Tensor, records: Sequence[PatchRecord], scoring: Scoring) -> str:
    """The scores as text, one row per patch, method and region; `nan` where a region has nothing to score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEYS, "method", "region", *COUNTS, *scoring.metrics])
    for record, patch in zip(records, table.tolist(), strict=True):
        keys = [getattr(record, key) for key in KEYS]
        for method, regions in zip(scoring.methods, patch, strict=True):
            for region, values in zip(scoring.regions, regions, strict=True):
                metrics, counts = values[: len(scoring.metrics)], values[len(scoring.metrics) :]
                writer.writerow([*keys, method, region, *map(int, counts), *(f"{value:.6g}" for value in metrics)])
    return text.getvalue()


def summarise(table: Tensor, records: Sequence[PatchRecord], settings: EvaluateSettings, *, scoring: Scoring) -> dict[str, Any]:
    """Averages over patches, of all and by cloud cover, and the network against each baseline."""
    cover_pct = torch.tensor([100 * record.cloud_input_share for record in records], dtype=torch.float64)
    bins = []
    for low, high in itertools.pairwise(COVER_EDGES_PCT):
        inside = (cover_pct >= low) & ((cover_pct < high) | (high == COVER_EDGES_PCT[-1]))
        bins.append({"cover_pct": [low, high], "patches": int(inside.sum()), "scores": _summarise_patches(table[inside], scoring)})
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "split": settings.split,
        "settings": settings.model_dump(mode="json"),
        "patches": len(records),
        "blocks": len({record.block for record in records}),
        "methods": dict(scoring.methods),
        "regions": dict(scoring.regions),
        "metrics": list(scoring.metrics),
        "scores": _summarise_patches(table, scoring),
        "by_cover": bins,
        "network_minus": compare_baselines(table, [record.block for record in records], scoring),
    }


def _summarise_patches(table: Tensor, scoring: Scoring) -> dict[str, Any]:
    """By method and region: averages of each metric over the patches, and sums of the counts."""
    return {
        method: {
            region: {metric: _to_plain(average_scores(table[:, m, r, k])._asdict()) for k, metric in enumerate(scoring.metrics)}
            | {count: int(table[:, m, r, len(scoring.metrics) + k].sum()) for k, count in enumerate(COUNTS)}
            for r, region in enumerate(scoring.regions)
        }
        for m, method in enumerate(scoring.methods)
    }


def compare_baselines(table: Tensor, blocks: Sequence[str], scoring: Scoring) -> dict[str, Any]:
    """Paired differences, network minus baseline, in the region that matters, with 95 % bootstrap intervals.

    `by_patch` draws patches as if they were independent. Patches of one ground block on several dates are not, so `by_block` draws
    blocks with all their patches; with few blocks trust neither interval's last digit.
    """
    region, metrics = scoring.compared
    scores = table[:, :, list(scoring.regions).index(region)]
    units = {"by_patch": [str(place) for place in range(len(blocks))], "by_block": list(blocks)}
    note = "95 % intervals; by_patch takes patches as independent, which those that share ground are not; by_block draws ground blocks"
    compared: dict[str, Any] = {"region": region, "note": note}
    for place, method in enumerate(scoring.baselines, 1):
        difference = scores[:, 0] - scores[:, place]
        compared[method] = {
            metric: {unit: _draw_interval(difference[:, scoring.metrics.index(metric)], groups) for unit, groups in units.items()}
            for metric in metrics
        }
    return compared


def _draw_interval(difference: Tensor, groups: Sequence[str]) -> dict[str, float | int | None]:
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    return _to_plain(bootstrap_difference(difference, groups, generator=generator)._asdict())


def _to_plain(values: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """Numbers as JSON has them: None where there is none."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _cut_example(part: Scored, place: int, scoring: Scoring) -> dict[str, Array]:
    """One patch as stored integers, with some methods' answers and all scores."""
    inside = place - part.first
    arrays = {name: array[inside] for name, array in part.stored.items()}
    stored = {name: store_optical(part.answers[method][inside]) for name, method in scoring.shown.items()}
    return arrays | stored | {"scores": part.scores[inside].numpy()}


def _name_axes(loaded: Loaded, scoring: Scoring) -> dict[str, list[str]]:
    """Names along the axes of the example patches."""
    guide = loaded.meta.signature.guide_bands
    return {
        "bands": list(loaded.bands),
        "sar_bands": list(loaded.sar_bands),
        "methods": list(scoring.methods),
        "regions": list(scoring.regions),
        "columns": list(scoring.columns),
        **({"guide_bands": list(guide)} if guide else {}),
    }


def _write_examples(
    path: Path, pictures: Sequence[dict[str, Array]], records: Sequence[PatchRecord], axes: Mapping[str, Sequence[str]]
) -> None:
    """Write the example patches: their arrays as stored, the answers that the task's scoring shows alike, `scores`, and names.

    `scores` is (patch, method, region, column) with the names in `methods`, `regions` and `columns`.
    """
    names = {"id": [record.id for record in records], **axes}
    arrays: dict[str, Any] = {name: np.array(values, dtype=np.str_) for name, values in names.items()}
    arrays["cloud_input_share"] = np.array([record.cloud_input_share for record in records])
    arrays |= {key: np.stack([picture[key] for picture in pictures]) for key in (pictures[0] if pictures else ())}
    with staged(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
