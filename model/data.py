"""The packed dataset as training sees it: its arrays, its records, and the endless stream of crops.

Stored samples (see `sereno.pipeline.samples`) enter; batches of their task leave, made by `sereno.model.batches`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor

from sereno.model.batches import CROPS, DAYS, AnyBatch, Signature
from sereno.model.config import TrainSettings
from sereno.model.tasks import CLOUD_REMOVAL, TASKS, Task
from sereno.pipeline.config import TaskName, load_settings
from sereno.pipeline.errors import MissingError, StoreError, TrainingError
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import PatchRecord, Split
from sereno.pipeline.samples import SAMPLES
from sereno.pipeline.store import read_manifest, store_of

POOL_BYTES: Final = 2 << 30
"""Decoded patches that are kept in memory at a time; a split that fits is decoded once."""
PREFETCH: Final = 2
"""Batches prepared ahead of the one in use."""
WHOLE: Final = (0, 1)
"""The share of a batch that is all of it: part 0 of 1."""
CPU: Final = torch.device("cpu")
DATES_OF: Final[Mapping[TaskName, tuple[str, ...]]] = {"cloud-removal": AROUND, "spatiotemporal-fusion": ("1", "2", "3")}
"""Dates whose days records may state (`PatchRecord.gaps_days`), in order of time."""

Array = npt.NDArray[Any]


class SplitArrays(dict[str, Any]):
    """The arrays of one split by the names of `SAMPLES`, decoded only where they are indexed (zarr arrays, or NumPy arrays in memory).

    Where the records state the days of dates these are there as well, under the name `DAYS`: (patch, date) float32, NaN for one not known.
    """

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return int(next(iter(self.values())).shape[0])

    def read(self, start: int, stop: int) -> SplitArrays:
        """Patches `start` to `stop` (exclusive) decoded into memory.

        Raises:
            StoreError: what is stored cannot be decoded.
        """
        return self.change(lambda array: _decode(array, start, stop))

    def change(self, function: Callable[[Any], Any]) -> SplitArrays:
        """What `function` makes of each array, by the same names."""
        return SplitArrays({name: function(array) for name, array in self.items()})


def _decode(array: Any, start: int, stop: int) -> Array:
    try:
        return np.asarray(array[start:stop])
    except (RuntimeError, ValueError) as error:  # codecs raise the first, checksums the second
        where = str(array.store_path).removeprefix("file://")
        reason = f"patch {start} or one of the {stop - start} from there on is damaged ({error})"
        raise StoreError(f"{where}: {reason}; `sereno verify` names the file: delete the manifest and run `sereno pack` again") from error


def read_facts(manifest: Path) -> Signature:
    """What the dataset is of, and its training statistics, from its manifest.

    Raises:
        MissingError: there is no manifest.
        StoreError: it describes something else, is for a task that is not known, or lacks a fact.
    """
    summary = read_manifest(manifest, kind="dataset")["summary"]
    task = _find_task(summary, manifest)
    keys = ("bands", "sar_bands", "training_mean", "training_std") if task.subject is None else ("channels", "statistics", "ratio")
    missing = [key for key in keys if key not in summary]
    missing += [f"{key} of {name}" for key in keys[:2] for name in (task.subject, task.guide) if name and name not in summary.get(key, ())]
    if missing:
        raise StoreError(f"{manifest}: its summary lacks {missing}; run `sereno pack` again")
    if task.subject is not None:
        return _read_subject(summary, task)
    bands, sar_bands, mean, std = (tuple(summary[key]) for key in keys)
    return Signature(bands, sar_bands, mean, std, series="around" in summary.get("channels", ()))


def _read_subject(summary: Mapping[str, Any], task: Task) -> Signature:
    """Facts of a task whose manifest lists channels and statistics by array."""
    channels, statistics = summary["channels"], summary["statistics"]
    (bands, mean, std), guide = (
        (tuple(channels[name]), tuple(statistics[name]["mean"]), tuple(statistics[name]["std"])) if name else ((), (), ())
        for name in (task.subject, task.guide)
    )
    return Signature(bands, (), mean, std, task.name, int(summary["ratio"]), *guide)


def _find_task(summary: Mapping[str, Any], manifest: Path) -> Task:
    """The task of a dataset; one that does not say it is for cloud removal."""
    name = summary.get("task", CLOUD_REMOVAL.name)
    if name not in TASKS:
        raise StoreError(f"{manifest} is for the task {name!r}, known here: {', '.join(TASKS)}; run `sereno pack` again")
    return TASKS[name]


def open_split(manifest: Path, split: Split) -> SplitArrays:
    """The arrays of one split, opened for reading on demand; an empty split has zero patches.

    Raises:
        MissingError: there is no manifest, so the dataset is unfinished, or the split is not in it.
        StoreError: the manifest is of another kind, a file of the split is missing or cut short, or the arrays do not fit each other.
    """
    described, store = read_manifest(manifest, kind="dataset"), store_of(manifest)
    files, task = described["files"], _find_task(described["summary"], manifest)
    try:
        group = zarr.open_group(store, path=split, mode="r")
        arrays = SplitArrays({spec.name: group[spec.name] for spec in SAMPLES[task.name] if not spec.is_optional or spec.name in group})
    except (FileNotFoundError, KeyError) as error:
        raise MissingError(f"{store} has no complete split {split!r} ({error}): run `sereno pack` again") from None
    for name in (name for name in files if name.startswith(f"{split}/")):  # zarr reads zeros where a file is missing
        if not (store / name).is_file() or (store / name).stat().st_size != files[name]["bytes"]:
            raise StoreError(f"{store / name} is missing or cut short: delete {manifest} and run `sereno pack` again")
    if (days := _read_days(manifest, split, task.name)) is not None:
        arrays[DAYS] = days
    if len({array.shape[0] for array in arrays.values()}) != 1:
        raise StoreError(f"{store}/{split}: arrays hold {[a.shape[0] for a in arrays.values()]} patches; run `sereno pack` again")
    return arrays


def _read_days(manifest: Path, split: Split, task: TaskName) -> Array | None:
    """Days of the dates of each patch of a split (patch, date); None where no record states any."""
    table, names = store_of(manifest) / "patches.csv", DATES_OF.get(task, ())
    if not names or not table.is_file() or "gaps_days" not in _read_header(table):
        return None
    rows = [[record.gaps_days.get(name, np.nan) for name in names] for record in read_records(manifest, split)]
    days = np.array(rows, np.float32).reshape(-1, len(names))
    return days if np.isfinite(days).any() else None


def _read_header(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return next(csv.reader(file), [])


def read_records(manifest: Path, split: Split | None = None) -> list[PatchRecord]:
    """The records of a dataset in stored order, of one split or of all.

    Raises:
        MissingError: the store has no `patches.csv`.
        ConfigError: a row is no patch record.
    """
    path = store_of(manifest) / "patches.csv"
    if not path.is_file():
        raise MissingError(f"{path} does not exist: run `sereno pack` again")
    with path.open(newline="") as file:
        rows = [load_settings(PatchRecord, _parse_row(row), where=f"{path}, row {n}") for n, row in enumerate(csv.DictReader(file), 2)]
    return [row for row in rows if split is None or row.split == split]


def _parse_row(row: dict[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {key: value for key, value in row.items() if value != ""}
    return parsed | {key: json.loads(parsed[key]) for key in ("bounds_m", "gaps_days") if key in parsed}


class Draw(NamedTuple):
    """One training batch, or a share of it, and where it came from."""

    batch: AnyBatch
    """The crops, on the feed's device."""
    patches: tuple[int, ...]
    """Places of their patches in the split, one per crop."""


class PatchFeed:
    """The training batches of a split: batch number n is a pure function of the split, the settings and n.

    So a killed run goes on exactly by asking for the next number. An epoch takes `crops_per_patch` crops of every patch. Patches are
    decoded shard by shard into a pool and stay there until all their crops are taken, in as many passes over the pool; consecutive
    crops of one patch lie at least half a pool apart. Every crop has its own generator, seeded by (seed, crop number).
    """

    def __init__(self, arrays: SplitArrays, settings: TrainSettings, signature: Signature, *, device: torch.device = CPU) -> None:
        """`device`: where batches are made and stay.

        Raises:
            TrainingError: there are no patches, or `crop_px` does not fit them or the task.
        """
        if not arrays.n_patches:
            raise TrainingError("the training split is empty: loosen the limits of `patch` or lower the shares in `pack.split`")
        self._coarse = frozenset(spec.name for spec in SAMPLES[signature.task] if spec.is_coarse)
        self._extent = next(array.shape[-2:] for name, array in arrays.items() if name not in self._coarse)
        _check_crop(settings.crop_px, min(self._extent), signature)
        self._arrays, self._settings, self._signature, self._device = arrays, settings, signature, device
        self._make = TASKS[signature.task].make_batch
        self._pools = _Pools(arrays)

    @property
    def epoch_crops(self) -> int:
        """Crops in an epoch."""
        return self._arrays.n_patches * self._settings.crops_per_patch

    def stream(self, start: int = 0, share: tuple[int, int] = WHOLE) -> Generator[Draw, None, None]:
        """Batches number `start`, `start + 1`, ... without end, prepared in a background thread; of each the `share` that `draw` gives."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as executor:
            ahead = [executor.submit(self.draw, start + n, share) for n in range(PREFETCH)]
            try:
                while True:
                    ready = ahead.pop(0).result()
                    start += 1
                    ahead.append(executor.submit(self.draw, start + PREFETCH - 1, share))
                    yield ready
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def draw(self, number: int, share: tuple[int, int] = WHOLE) -> Draw:
        """Batch `number`, counted from 0, on the feed's device; with `share` (n, count) only part n of `count` equal parts, in order."""
        crops = [self._cut(crop) for crop in self._crops_of(number, share)]
        stacked = {name: self._ship(np.stack([arrays[name] for _, arrays in crops])) for name in self._arrays}
        stacked[CROPS] = np.asarray(self._crops_of(number, share))
        batch = self._make(stacked, self._signature, self._settings)
        return Draw(batch.to(self._device), tuple(place for place, _ in crops))

    def find_patches(self, number: int) -> list[int]:
        """Places of the patches in batch `number`, each once, rising."""
        return sorted({self._place_of(crop) for crop in self._crops_of(number, WHOLE)})

    def _crops_of(self, number: int, share: tuple[int, int]) -> range:
        size = self._settings.batch_size
        part = size // share[1]
        first = number * size + share[0] * part
        return range(first, first + part)

    def _ship(self, stored: Array) -> Array | Tensor:
        """To a GPU travel the stored integers, half the bytes of the batch that is made of them there."""
        return torch.from_numpy(stored).to(self._device) if self._device.type == "cuda" else stored

    def _place_of(self, crop: int) -> int:
        epoch, position = divmod(crop, self.epoch_crops)
        return int(self._pools.order(self._settings.seed, epoch, self._settings.crops_per_patch)[position])

    def _cut(self, crop: int) -> tuple[int, SplitArrays]:
        """Crop number `crop` of the whole training, turned and mirrored at random, and its patch."""
        place = self._place_of(crop)
        generator = np.random.default_rng((self._settings.seed, 1, crop))
        patch = self._pools.patch(place)
        size, ratio = self._settings.crop_px, self._signature.ratio
        top, left = (ratio * int(generator.integers((extent - size) // ratio + 1)) for extent in self._extent)
        turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
        window = np.array([top, left, size])
        parts = {name: window // ratio if name in self._coarse else window for name in patch}
        return place, SplitArrays(
            {name: array if name == DAYS else _turn(_cut_square(array, *parts[name]), turns, mirrored) for name, array in patch.items()}
        )


def _check_crop(crop_px: int, size: int, signature: Signature) -> None:
    """Refuse a crop that is larger than its patch, or cannot be made as coarse as the task makes it."""
    if crop_px > size:
        raise TrainingError(f"'crop_px' {crop_px} is larger than the patches ({size} px): lower it or cut larger patches")
    step_px = signature.ratio ** TASKS[signature.task].reductions
    if crop_px % step_px:
        raise TrainingError(f"'crop_px' {crop_px} must be a multiple of {step_px} for the task {signature.task} at ratio {signature.ratio}")


def _cut_square(image: Array, top: int, left: int, size: int) -> Array:
    """Rows and columns of `image` (..., H, W) from `top` and `left` on."""
    return image[..., top : top + size, left : left + size]


def _turn(image: Array, turns: int, mirrored: bool) -> Array:
    """`image` (..., H, W) turned by quarter turns and mirrored: one of the eight symmetries of the square."""
    turned = np.rot90(image, turns, axes=(-2, -1))
    return turned[..., ::-1] if mirrored else turned


class _Pools:
    """Runs of shards that are in memory together, the order in which they are visited, and the shards decoded now."""

    def __init__(self, arrays: SplitArrays) -> None:
        self._arrays = arrays
        self._shard = _shard_length(next(iter(arrays.values())))
        patch_bytes = sum(int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in arrays.values())
        self._capacity = max(1, POOL_BYTES // (patch_bytes * self._shard))
        self._order: tuple[tuple[int, int, int], Array] | None = None
        self._decoded: dict[int, SplitArrays] = {}

    def order(self, seed: int, epoch: int, passes: int) -> Array:
        """Places of the patches in the order in which crops are taken in `epoch`: (count * passes,) int64."""
        key, known = (seed, epoch, passes), self._order
        if known is None or known[0] != key:
            generator = np.random.default_rng((seed, 0, epoch))
            shards = generator.permutation(-(-self._arrays.n_patches // self._shard))
            pools = [shards[first : first + self._capacity] for first in range(0, len(shards), self._capacity)]
            known = key, np.concatenate([_spread_passes(self._places(pool), passes, generator) for pool in pools])
            self._order = known  # set in one go: the feed's thread and the main one both ask
        return known[1]

    def patch(self, place: int) -> SplitArrays:
        """The decoded patch at `place`; its shard is decoded if it is not in memory, in the stead of the oldest."""
        shard, inside = divmod(place, self._shard)
        if shard not in self._decoded:
            while len(self._decoded) >= self._capacity:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[shard] = self._arrays.read(shard * self._shard, min((shard + 1) * self._shard, self._arrays.n_patches))
        return self._decoded[shard].change(lambda array: array[inside])

    def _places(self, shards: Array) -> Array:
        ends = (shards + 1) * self._shard
        return np.concatenate([np.arange(end - self._shard, min(end, self._arrays.n_patches)) for end in ends])


def _spread_passes(places: Array, passes: int, generator: np.random.Generator) -> Array:
    """`places` once per pass, each half of them shuffled within itself: the same place returns after more than half a pass."""
    halves = np.array_split(generator.permutation(places), 2)
    return np.concatenate([generator.permutation(half) for _ in range(passes) for half in halves])


def _shard_length(array: Any) -> int:
    """Patches per shard of a zarr array, or per chunk where it has no shards."""
    return int((getattr(array, "shards", None) or getattr(array, "chunks", None) or array.shape)[0])
