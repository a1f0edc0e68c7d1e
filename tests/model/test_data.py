"""Laws of the border between disk and network: units, weights, and a feed that can be entered anywhere."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from series_samples import GAPS, make_series, write_series
from task_samples import BANDS, average, make_sharpening, write_fusion, write_sharpening

from sereno.model import data
from sereno.model.batches import Signature
from sereno.model.config import AfsstSettings, SfiinSettings, TrainSettings
from sereno.model.data import PatchFeed, SplitArrays, open_split, read_facts, read_records
from sereno.pipeline.errors import ConfigError, MissingError, StoreError, TrainingError
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, PatchRecord
from sereno.pipeline.store import remove, store_of, write_manifest

SUMMARY = {"bands": ["B02", "B03"], "sar_bands": ["VV", "VH"], "training_mean": [0.1, 0.2], "training_std": [0.05, 0.06]}
FACTS = Signature(("B02", "B03"), ("VV", "VH"), (0.1, 0.2), (0.05, 0.06))
DEPTHS = {"sar": 2, "cloudy": 2, "clear": 2, "mask": len(MASK_CHANNELS)}
DTYPES = {"sar": "int16", "cloudy": "uint16", "clear": "uint16", "mask": "uint8"}


def numbered(count: int, size: int = 16) -> dict[str, np.ndarray]:
    """Patches that say who they are: every clear value is `1000 * patch + 32 * row + col`, with 1 more in the second band."""
    arrays = {name: np.zeros((count, DEPTHS[name], size, size), DTYPES[name]) for name in PATCH_ARRAYS}
    place = np.arange(size)[:, None] * 32 + np.arange(size)
    arrays["clear"][:] = 1000 * np.arange(count)[:, None, None, None] + place + np.array([0, 1])[None, :, None, None]
    for name in ("valid_input", "valid_target", "valid_sar"):
        arrays["mask"][:, MASK_CHANNELS.index(name)] = 255
    return arrays


def write_dataset(folder: Path, counts: dict[str, int], shard: int = 4) -> Path:
    manifest = folder / "dataset.json"
    root = zarr.create_group(store_of(manifest), zarr_format=3)
    records = []
    for split, count in counts.items():
        group = root.create_group(split)
        for name, values in numbered(count).items():
            shape = values.shape[1:]
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1, *shape), shards=(shard, *shape))
            array[:] = values
        records += [record_of(split, position) for position in range(count)]
    with (store_of(manifest) / "patches.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record.model_dump(), "bounds_m": json.dumps(record.bounds_m)} for record in records)
    write_manifest(manifest, kind="dataset", summary=SUMMARY)
    return manifest


def record_of(split: str, position: int) -> PatchRecord:
    where = {"block": f"EPSG:32632/{position}/0", "crs": "EPSG:32632", "bounds_m": (0.0, 0.0, 160.0, 160.0), "row": 16 * position, "col": 0}
    shares = {"valid_share": 1.0, "cloud_input_share": 0.25, "cloud_target_share": 0.0, "sar_gap_days": -0.5, "clear_gap_days": 5.0}
    return PatchRecord(id=f"west/p/{split}-{position}", area="west", pair="p", split=split, position=position, **where, **shares)


def feed_of(count: int, *, shard: int = 4, **changes: int) -> PatchFeed:
    arrays = {name: zarr.create_array({}, data=values, chunks=(shard, *values.shape[1:])) for name, values in numbered(count).items()}
    settings = TrainSettings(crop_px=16, batch_size=2, crops_per_patch=3).model_copy(update=changes)
    return PatchFeed(SplitArrays(**arrays), settings, FACTS)


def test_a_dataset_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, {"train": 5, "val": 0, "test": 2})
    assert read_facts(manifest) == FACTS
    assert [open_split(manifest, split).n_patches for split in ("train", "val", "test")] == [5, 0, 2]
    assert np.array_equal(open_split(manifest, "train").read(1, 4)["clear"], numbered(5)["clear"][1:4])
    assert read_records(manifest, "test") == [record_of("test", 0), record_of("test", 1)]
    assert len(read_records(manifest)) == 7


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        open_split(tmp_path / "dataset.json", "train")
    manifest = write_dataset(tmp_path, {"train": 2})
    with pytest.raises(MissingError, match="no complete split 'val'"):
        open_split(manifest, "val")
    remove(store_of(manifest) / "train" / "sar")
    with pytest.raises(MissingError, match="no complete split 'train'"):
        open_split(manifest, "train")
    (store_of(manifest) / "patches.csv").write_text("id,area\nx,y\n")
    with pytest.raises(ConfigError, match=r"patches\.csv, row 2"):
        read_records(manifest)
    (store_of(manifest) / "patches.csv").unlink()
    with pytest.raises(MissingError, match=r"patches\.csv"):
        read_records(manifest)
    write_manifest(manifest, kind="patches", summary={})
    with pytest.raises(StoreError, match="expected a 'dataset'"):
        open_split(manifest, "train")
    write_manifest(manifest, kind="dataset", summary={"bands": []})
    with pytest.raises(StoreError, match="training_mean"):
        read_facts(manifest)


def find_shard(manifest: Path, name: str) -> Path:
    return store_of(manifest) / "train" / name / "c/1/0/0/0"


def test_a_shard_that_is_gone_or_cut_short_is_never_read_as_zeros(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, {"train": 8, "val": 1})
    shard = find_shard(manifest, "mask")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"train/mask/c/1/0/0/0 is missing or cut short: delete .*dataset\.json and run"):
        open_split(manifest, "train")
    shard.unlink()
    with pytest.raises(StoreError, match=r"train/mask/c/1/0/0/0 is missing"):
        open_split(manifest, "train")
    assert open_split(manifest, "val").n_patches == 1


@pytest.mark.parametrize("place", [20, -3])
def test_a_flipped_byte_is_named_with_its_patches(tmp_path: Path, place: int) -> None:
    manifest = write_dataset(tmp_path, {"train": 8})
    shard = find_shard(manifest, "clear")
    content = bytearray(shard.read_bytes())
    content[place] ^= 255
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"dataset\.zarr/train/clear: patch 4 or one of the 4 .*sereno verify"):
        open_split(manifest, "train").read(4, 8)


def patches_of(feed: PatchFeed, batches: range) -> list[int]:
    return [patch for number in batches for patch in feed.draw(number).patches]


def test_an_epoch_takes_every_patch_as_often_as_asked_and_epochs_differ() -> None:
    feed = feed_of(8)
    first, second = (patches_of(feed, range(start, start + 12)) for start in (0, 12))
    assert Counter(first) == Counter(second) == dict.fromkeys(range(8), 3)
    assert first != second


@pytest.mark.parametrize("count", [7, 8, 13])
def test_crops_of_one_patch_lie_half_a_pool_apart(count: int) -> None:
    order = patches_of(feed_of(count, batch_size=1), range(3 * count))
    for patch in range(count):
        places = [number for number, taken in enumerate(order) if taken == patch]
        assert min(b - a for a, b in itertools.pairwise(places)) > count // 2


def test_crops_never_repeat_within_an_epoch() -> None:
    feed = feed_of(4, crop_px=8, crops_per_patch=2)
    seen = {tuple(target.flatten().tolist()) for number in range(4) for target in feed.draw(number).batch.target}
    assert len(seen) == 8


def test_the_feed_can_be_entered_anywhere() -> None:
    feed = feed_of(6, crop_px=8)
    straight = list(itertools.islice(feed.stream(), 12))
    entered = list(itertools.islice(feed_of(6, crop_px=8).stream(7), 5))
    for a, b in zip(straight[7:], entered, strict=True):
        assert a.patches == b.patches
        assert all(torch.equal(x, y) for x, y in zip(a.batch[:-1], b.batch[:-1], strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(world: int) -> None:
    feed = feed_of(6, crop_px=8, batch_size=6)
    for number in (0, 4):
        whole = feed.draw(number)
        shares = [next(feed_of(6, crop_px=8, batch_size=6).stream(number, (rank, world))) for rank in range(world)]
        assert sum((share.patches for share in shares), ()) == whole.patches
        joined = (torch.cat(parts) for parts in zip(*(share.batch[:-1] for share in shares), strict=True))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(joined, whole.batch[:-1], strict=True))
        assert feed.find_patches(number) == sorted(set(whole.patches))


def test_a_batch_is_cut_in_order() -> None:
    batch = feed_of(6, crop_px=8, batch_size=6).draw(0).batch
    parts = batch.cut(3)
    assert [len(part.optical) for part in parts] == [2, 2, 2]
    assert all(
        torch.equal(torch.cat(tensors), whole)
        for tensors, whole in zip(zip(*(part[:-1] for part in parts), strict=True), batch[:-1], strict=True)
    )


def test_another_seed_gives_another_order() -> None:
    assert patches_of(feed_of(8), range(12)) != patches_of(feed_of(8, seed=1), range(12))


def test_crops_are_cut_from_their_patch_in_one_of_eight_ways() -> None:
    feed, whole = feed_of(3, crop_px=8, crops_per_patch=60), numbered(3)["clear"].astype(np.int64)
    ways = set()
    for number in range(90):
        draw = feed.draw(number)
        for patch, target in zip(draw.patches, draw.batch.target, strict=True):
            values = (target * 10000).round().long().numpy()
            assert (values[1] == values[0] + 1).all(), "bands stay together"
            top, left = divmod(int(values[0].min()) - 1000 * patch, 32)
            window = whole[patch, 0, top : top + 8, left : left + 8]
            symmetries = [np.rot90(turned, n) for n in range(4) for turned in (window, window.T)]
            ways |= {n for n, symmetry in enumerate(symmetries) if np.array_equal(values[0], symmetry)}
            assert any(np.array_equal(values[0], symmetry) for symmetry in symmetries)
    assert ways == set(range(8))


def test_patches_beyond_memory_are_taken_pool_by_pool_and_each_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL_BYTES", 8 * (2 * 2 + 2 * 2 + 2 * 2 + 7) * 256)
    feed = feed_of(24, shard=4)
    reads: list[tuple[int, int]] = []
    read = SplitArrays.read
    monkeypatch.setattr(SplitArrays, "read", lambda self, start, stop: reads.append((start, stop)) or read(self, start, stop))
    taken = patches_of(feed, range(36))
    assert Counter(taken) == dict.fromkeys(range(24), 3)
    assert sorted(reads) == [(start, start + 4) for start in range(0, 24, 4)]
    assert all(len({patch // 4 for patch in taken[pool : pool + 24]}) == 2 for pool in (0, 24, 48))


def test_the_last_shard_may_be_short() -> None:
    assert Counter(patches_of(feed_of(6, shard=4), range(9))) == dict.fromkeys(range(6), 3)


def test_an_empty_split_and_a_crop_larger_than_its_patch_are_refused() -> None:
    with pytest.raises(TrainingError, match="training split is empty"):
        feed_of(0, shard=1)
    with pytest.raises(TrainingError, match="'crop_px' 32 is larger than the patches \\(16 px\\)"):
        feed_of(2, crop_px=32)


def make_coarse_feed(ratio: int, crop_px: int) -> PatchFeed:
    arrays = make_sharpening(3, np.random.default_rng(0), ratio=ratio, size_px=32)
    arrays["ms"][:] = average(arrays["pan"].astype(float), ratio).round()
    facts = Signature(BANDS, (), (0.2,) * 4, (0.1,) * 4, "pansharpening", ratio, ("PAN",), (0.2,), (0.1,))
    settings = TrainSettings(network=SfiinSettings(name="sfiin"), crop_px=crop_px, batch_size=2, crops_per_patch=3)
    return PatchFeed(SplitArrays(arrays), settings, facts)


@pytest.mark.parametrize("ratio", [2, 4])
def test_coarse_and_fine_crops_are_of_the_same_ground_turned_alike(ratio: int) -> None:
    feed, places = make_coarse_feed(ratio, 16), set()
    for number in range(9):
        _, crop = feed._cut(number)
        assert crop["pan"].shape[-2:] == (16, 16)
        assert crop["ms"].shape[-2:] == crop["mask"].shape[-2:] == (16 // ratio, 16 // ratio)
        assert np.abs(average(crop["pan"].astype(float), ratio) - crop["ms"]).max() <= 0.5, "an average is rounded to whole numbers"
        places.add(int(crop["ms"][0, 0, 0]))
    assert len(places) > 4


def test_a_crop_is_made_coarser_in_whole_pixels_or_refused() -> None:
    with pytest.raises(TrainingError, match="'crop_px' 24 must be a multiple of 16 for the task pansharpening at ratio 4"):
        make_coarse_feed(4, 24)


def test_a_dataset_says_its_task_and_facts_that_lack_are_named(tmp_path: Path) -> None:
    manifest = write_sharpening(tmp_path, {"train": 2, "val": 0, "test": 1}, size_px=32)
    facts = read_facts(manifest)
    assert facts[:2] + facts[4:7] == (BANDS, (), "pansharpening", 4, ("PAN",))
    assert len(facts.mean) == len(facts.std) == 4
    assert len(facts.guide_mean) == len(facts.guide_std) == 1
    assert {name: array.shape[1:] for name, array in open_split(manifest, "test").items()} == {
        "pan": (1, 32, 32),
        "ms": (4, 8, 8),
        "mask": (3, 8, 8),
    }
    write_manifest(manifest, kind="dataset", summary={"task": "pansharpening", "channels": {"ms": []}, "ratio": 4})
    with pytest.raises(StoreError, match=r"its summary lacks \['statistics', 'channels of pan', 'statistics of ms', 'statistics of pan'\]"):
        read_facts(manifest)
    write_manifest(manifest, kind="dataset", summary={"task": "painting"})
    with pytest.raises(StoreError, match="is for the task 'painting', known here: cloud-removal, pansharpening"):
        open_split(manifest, "test")


def test_a_fault_while_reading_ahead_is_raised_where_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_of(4)
    monkeypatch.setattr(feed, "draw", lambda number, _: (_ for _ in ()).throw(StoreError(f"shard of {number}")))
    with pytest.raises(StoreError, match="shard of 0"):
        next(feed.stream())


def test_a_series_reads_back_with_its_dates_and_their_days(tmp_path: Path) -> None:
    manifest = write_series(tmp_path, {"train": 3, "val": 0})
    assert read_facts(manifest).series
    arrays = open_split(manifest, "train")
    assert arrays["days"].tolist() == [[GAPS["before"], GAPS["after"]]] * 3
    assert np.array_equal(arrays.read(1, 3)["around"], make_series(3, np.random.default_rng(0))["around"][1:])


def test_without_a_series_there_are_neither_dates_nor_days(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, {"train": 2})
    assert not read_facts(manifest).series
    assert list(open_split(manifest, "train")) == list(PATCH_ARRAYS)


def test_days_of_fusion_are_read_and_a_record_without_them_says_so(tmp_path: Path) -> None:
    manifest = write_fusion(tmp_path, {"train": 2, "val": 1, "test": 1})
    assert "days" not in open_split(manifest, "train")
    table = store_of(manifest) / "patches.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:1]:
        row["gaps_days"] = json.dumps({"1": -16.0, "2": 0.0, "3": 8.0})
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PatchRecord.model_fields))
        writer.writeheader()
        writer.writerows(rows)
    days = open_split(manifest, "train")["days"]
    assert days[0].tolist() == [-16, 0, 8]
    assert np.isnan(days[1]).all()


def test_dates_are_cropped_and_turned_with_their_patch_and_days_stay_whole() -> None:
    arrays = make_series(3, np.random.default_rng(1))
    arrays["around"][:] = arrays["clear"][:, None] + np.array([1, 2], np.uint16)[None, :, None, None, None]
    arrays["around_clear"][:] = (arrays["clear"][:, :1] % 128 + 128).astype(np.uint8)
    days = np.array([[-1, 2], [-3, 4], [-5, 6]], np.float32)
    facts = Signature(("B02", "B03", "B04"), ("VV", "VH"), (0.1,) * 3, (0.05,) * 3, series=True)
    settings = TrainSettings(network=AfsstSettings(base="dates"), crop_px=16, batch_size=6, crops_per_patch=8)
    feed = PatchFeed(SplitArrays(**arrays, days=days), settings, facts)
    for number in range(4):
        draw = feed.draw(number)
        batch = draw.batch
        stored = (batch.dates.images * 10_000).round() - (batch.target * 10_000).round()[:, None]
        assert stored[:, 0].eq(1).all()
        assert stored[:, 1].eq(2).all()
        expected = (batch.target[:, :1] * 10_000).round() % 128 + 128
        torch.testing.assert_close(batch.dates.clear[:, 0] * 255, expected)
        assert batch.dates.days.tolist() == days[list(draw.patches)].tolist()
