"""What the networks are fed: batches of tensors made from stored integers, and the endless stream of training crops.

Stored patches (see `sereno.pipeline.patches`) enter; `Batch` leaves. All changes of unit between disk and network are made here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor

from sereno.model.config import SarRange, TrainSettings
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import MissingError, StoreError, TrainingError
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, PatchRecord, Split
from sereno.pipeline.scene import CENTI_DB, REFLECTANCE_SCALE
from sereno.pipeline.store import read_manifest, store_of

MAX_TARGET_CLOUD: Final = 0.5
"""Target pixels that are cloud or shadow with more than this probability have no weight at all."""
POOL_BYTES: Final = 2 << 30
"""Decoded patches that are kept in memory at a time; a split that fits is decoded once."""
PREFETCH: Final = 2
"""Batches prepared ahead of the one in use."""
WHOLE: Final = (0, 1)
"""The share of a batch that is all of it: part 0 of 1."""
CPU: Final = torch.device("cpu")

Array = npt.NDArray[Any]


class Batch(NamedTuple):
    """Patches as the networks and the loss take them; all float32, B patches of H x W pixels."""

    optical: Tensor
    """(B, C, H, W) cloudy reflectance, 1.0 = 100 %; may exceed 1 over clouds. Invalid pixels are 0."""
    sar: Tensor
    """(B, S, H, W) backscatter in dB scaled to 0..1 over `SarRange`. Invalid pixels are 0."""
    cloud: Tensor
    """(B, 1, H, W) probability 0..1 that the input pixel is cloud, shadow or invalid."""
    target: Tensor
    """(B, C, H, W) clear reflectance. Invalid pixels are 0."""
    weight: Tensor
    """(B, 1, H, W) trust in the target, 0..1: 0 where it is invalid or cloudy."""
    valid_input: Tensor
    """(B, 1, H, W) 1 where the input was observed, else 0."""
    valid_target: Tensor
    """(B, 1, H, W) 1 where the target was observed, else 0."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def cut(self, count: int) -> list[Batch]:
        """The batch in `count` parts of as many patches each, which must divide it."""
        return [Batch(*parts) for parts in zip(*(tensor.chunk(count) for tensor in self), strict=True)]


def scale_optical(stored: Array | Tensor) -> Tensor:
    """Reflectance, float32, 1.0 = 100 %, from stored integers of any shape."""
    return _to_float(stored) / REFLECTANCE_SCALE


def scale_sar(stored: Array | Tensor, valid: Tensor, sar_range: SarRange, sar_bands: Sequence[str]) -> Tensor:
    """Backscatter in 0..1 from stored centi-dB: (B, S, H, W), valid (B, 1, H, W) -> (B, S, H, W); 0 where not valid.

    Cross-polarised bands (VH, HV) are scaled over `vh_db`, all others over `vv_db`, clipped at both ends.
    """
    ranges = [sar_range.vh_db if band.upper() in ("VH", "HV") else sar_range.vv_db for band in sar_bands]
    decibel = _to_float(stored) / CENTI_DB
    low, high = (decibel.new_tensor(ends).reshape(-1, 1, 1) for ends in zip(*ranges, strict=True)) if ranges else (decibel, decibel)
    return ((decibel - low) / (high - low)).clamp(0, 1) * valid


def to_batch(  # the four stored arrays and the two things that give SAR its meaning
    sar: Array | Tensor,
    cloudy: Array | Tensor,
    clear: Array | Tensor,
    mask: Array | Tensor,
    sar_range: SarRange,
    sar_bands: Sequence[str],
) -> Batch:
    """A batch from stored patches: sar (B, S, H, W), cloudy and clear (B, C, H, W), mask (B, 7, H, W) in `MASK_CHANNELS`."""
    channels = dict(zip(MASK_CHANNELS, torch.split(_to_float(mask) / 255, 1, dim=1), strict=True))
    target_cloud = torch.maximum(channels["cloud_target"], channels["shadow_target"])
    trusted = torch.where(target_cloud > MAX_TARGET_CLOUD, 0.0, 1 - target_cloud)
    return Batch(
        optical=scale_optical(cloudy) * channels["valid_input"],
        sar=scale_sar(sar, channels["valid_sar"], sar_range, sar_bands),
        cloud=torch.maximum(torch.maximum(channels["cloud_input"], channels["shadow_input"]), 1 - channels["valid_input"]),
        target=scale_optical(clear) * channels["valid_target"],
        weight=channels["valid_target"] * trusted,
        valid_input=channels["valid_input"],
        valid_target=channels["valid_target"],
    )


def _to_float(stored: Array | Tensor) -> Tensor:
    if isinstance(stored, Tensor):
        return stored.to(torch.float32)
    return torch.from_numpy(stored.astype(np.float32))


class SplitArrays(NamedTuple):
    """The four arrays of one split, decoded only where they are indexed (zarr arrays, or NumPy arrays in memory)."""

    sar: Any
    """(patch, sar_band, row, col) int16 centi-dB."""
    cloudy: Any
    """(patch, band, row, col) uint16 reflectance x 10000."""
    clear: Any
    """(patch, band, row, col) uint16 reflectance x 10000."""
    mask: Any
    """(patch, channel, row, col) uint8, channels as `MASK_CHANNELS`."""

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return int(self.sar.shape[0])

    def read(self, start: int, stop: int) -> SplitArrays:
        """Patches `start` to `stop` (exclusive) decoded into memory.

        Raises:
            StoreError: what is stored cannot be decoded.
        """
        return SplitArrays(*(_decode(array, start, stop) for array in self))


def _decode(array: Any, start: int, stop: int) -> Array:
    try:
        return np.asarray(array[start:stop])
    except (RuntimeError, ValueError) as error:  # codecs raise the first, checksums the second
        where = str(array.store_path).removeprefix("file://")
        reason = f"patch {start} or one of the {stop - start} from there on is damaged ({error})"
        raise StoreError(f"{where}: {reason}; `sereno verify` names the file: delete the manifest and run `sereno pack` again") from error


class DatasetFacts(NamedTuple):
    """What training needs to know of a dataset beside its arrays."""

    bands: tuple[str, ...]
    """Optical bands in stored order."""
    sar_bands: tuple[str, ...]
    """SAR polarisations in stored order."""
    mean: tuple[float, ...]
    """Mean reflectance of clear training targets, per band."""
    std: tuple[float, ...]
    """Standard deviation of the same."""


def read_facts(manifest: Path) -> DatasetFacts:
    """Bands and training statistics from the dataset manifest.

    Raises:
        MissingError: there is no manifest.
        StoreError: it describes something else, or lacks a fact.
    """
    summary = read_manifest(manifest, kind="dataset")["summary"]
    keys = ("bands", "sar_bands", "training_mean", "training_std")
    missing = [key for key in keys if key not in summary]
    if missing:
        raise StoreError(f"{manifest}: its summary lacks {missing}; run `sereno pack` again")
    return DatasetFacts(*(tuple(summary[key]) for key in keys))


def open_split(manifest: Path, split: Split) -> SplitArrays:
    """The arrays of one split, opened for reading on demand; an empty split has zero patches.

    Raises:
        MissingError: there is no manifest, so the dataset is unfinished, or the split is not in it.
        StoreError: the manifest is of another kind, a file of the split is missing or cut short, or the arrays do not fit each other.
    """
    files, store = read_manifest(manifest, kind="dataset")["files"], store_of(manifest)
    try:
        group = zarr.open_group(store, path=split, mode="r")
        arrays = SplitArrays(*(group[name] for name in PATCH_ARRAYS))
    except (FileNotFoundError, KeyError) as error:
        raise MissingError(f"{store} has no complete split {split!r} ({error}): run `sereno pack` again") from None
    for name in (name for name in files if name.startswith(f"{split}/")):  # zarr reads zeros where a file is missing
        if not (store / name).is_file() or (store / name).stat().st_size != files[name]["bytes"]:
            raise StoreError(f"{store / name} is missing or cut short: delete {manifest} and run `sereno pack` again")
    if len({array.shape[0] for array in arrays}) != 1:
        raise StoreError(f"{store}/{split}: arrays hold {[a.shape[0] for a in arrays]} patches; run `sereno pack` again")
    return arrays


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
    if "bounds_m" in parsed:
        parsed["bounds_m"] = json.loads(parsed["bounds_m"])
    return parsed


class Draw(NamedTuple):
    """One training batch, or a share of it, and where it came from."""

    batch: Batch
    """The crops, on the feed's device."""
    patches: tuple[int, ...]
    """Places of their patches in the split, one per crop."""


class PatchFeed:
    """The training batches of a split: batch number n is a pure function of the split, the settings and n.

    So a killed run goes on exactly by asking for the next number. An epoch takes `crops_per_patch` crops of every patch. Patches are
    decoded shard by shard into a pool and stay there until all their crops are taken, in as many passes over the pool; consecutive
    crops of one patch lie at least half a pool apart. Every crop has its own generator, seeded by (seed, crop number).
    """

    def __init__(self, arrays: SplitArrays, settings: TrainSettings, sar_bands: Sequence[str], *, device: torch.device = CPU) -> None:
        """`device`: where batches are made and stay."""
        if not arrays.n_patches:
            raise TrainingError("the training split is empty: loosen the limits of `patch` or lower the shares in `pack.split`")
        size = min(arrays.sar.shape[2:])
        if settings.crop_px > size:
            raise TrainingError(f"'crop_px' {settings.crop_px} is larger than the patches ({size} px): lower it or cut larger patches")
        self._arrays, self._settings, self._sar_bands, self._device = arrays, settings, tuple(sar_bands), device
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
        stacked = SplitArrays(*(self._ship(np.stack(parts)) for parts in zip(*(arrays for _, arrays in crops), strict=True)))
        batch = to_batch(*stacked, self._settings.sar_range, self._sar_bands)
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
        rows, columns = patch.sar.shape[1:]
        size = self._settings.crop_px
        top, left = (int(generator.integers(extent - size + 1)) for extent in (rows, columns))
        turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
        return place, SplitArrays(*(_turn(array[:, top : top + size, left : left + size], turns, mirrored) for array in patch))


def _turn(image: Array, turns: int, mirrored: bool) -> Array:
    """`image` (C, H, W) turned by quarter turns and mirrored: one of the eight symmetries of the square."""
    turned = np.rot90(image, turns, axes=(1, 2))
    return turned[:, :, ::-1] if mirrored else turned


class _Pools:
    """Runs of shards that are in memory together, the order in which they are visited, and the shards decoded now."""

    def __init__(self, arrays: SplitArrays) -> None:
        self._arrays = arrays
        self._shard = _shard_length(arrays.sar)
        patch_bytes = sum(int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in arrays)
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
        return SplitArrays(*(array[inside] for array in self._decoded[shard]))

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
