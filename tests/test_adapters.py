"""Laws of the adapters of real sample data: nothing of the target reaches what is compared with it, and splits share no ground."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import volkov
import worldcereal
import zarr
from samples import Facts, Sample, save_samples, stack_mask

from sereno.model.data import open_split, read_facts, read_records
from sereno.pipeline.atmosphere import Sun
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.patches import MASK_CHANNELS, SPLITS, PatchRecord
from sereno.pipeline.store import read_manifest, store_of, verify_store

SITE = "site"


@pytest.fixture(scope="session")
def samples() -> Path:
    folder = os.environ.get("SERENO_SAMPLES")
    if not folder:
        pytest.skip("SERENO_SAMPLES is not set: no real files")
    return Path(folder)


def make_series(scl: list[int], *, days: list[int], site: str = SITE, left: float = 0.0) -> Any:
    """A site of 12 x 12 px; the value of every optical pixel is 100 times its date, counted from 10."""
    times = np.datetime64("2018-01-01T10:00:00", "s") + np.array(days) * np.timedelta64(86400, "s")
    dates = np.arange(10, 10 + len(days), dtype=np.uint16)[:, None, None, None]
    shape = (len(days), 12, 12)
    return worldcereal.Series(
        site=site,
        times=times,
        optical=np.broadcast_to(100 * dates, (len(days), 6, 12, 12)).astype(np.uint16),
        scl=np.broadcast_to(np.array(scl, np.uint8)[:, None, None], shape).copy(),
        sar_times=times + np.timedelta64(3600, "s"),
        sar=np.broadcast_to(-dates.astype(np.int16), (len(days), 2, 12, 12)).copy(),
        valid_sar=np.ones(shape, bool),
        crs="EPSG:32631",
        bounds_m=(left, 0.0, left + 240, 240.0),
        n_repeated=0,
    )


def make_sample(number: int, split: str) -> Sample:
    left = 10_000.0 * SPLITS.index(split)  # type: ignore[arg-type]
    record = PatchRecord(
        id=f"a/{split}/{number}",
        area="a",
        pair=split,
        block=split,
        crs="EPSG:32631",
        bounds_m=(left, 0, left + 80, 80),
        row=0,
        col=0,
        valid_share=1,
        cloud_input_share=0.5,
        cloud_target_share=0,
        sar_gap_days=0,
        clear_gap_days=0,
        split=split,  # type: ignore[arg-type]
    )
    generator = np.random.default_rng(number)
    clear, cloudy = generator.integers(1, 5000, (2, 3, 8, 8)).astype(np.uint16)
    sar = np.full((1, 8, 8), -100 * number, np.int16)
    return Sample(record, sar, cloudy, clear, stack_mask({}, (8, 8)))


def save(samples: list[Any], output: Path, **given: Any) -> Path:
    save_samples(samples, output, facts=Facts(("B02", "B03", "B04"), ("VH",), 8, 10.0), notes={"why": "test"}, **given)
    return output


MANY = [(split, count) for split, count in zip(SPLITS, (5, 2, 3), strict=True)]


def test_what_is_saved_is_a_packed_dataset_that_reads_back(tmp_path: Path) -> None:
    given = {s.record.id: s for split, count in MANY for s in (make_sample(n, split) for n in range(count))}
    output = save(list(given.values()), tmp_path / "dataset.json")
    verify_store(output)
    assert read_facts(output).bands == ("B02", "B03", "B04")
    clear = np.stack([given[f"a/train/{n}"].clear for n in range(5)]) / 10_000
    assert read_facts(output).mean == pytest.approx(clear.mean(axis=(0, 2, 3)))
    for split, count in MANY:
        arrays, records = open_split(output, split), read_records(output, split)
        assert [record.position for record in records] == list(range(count)) == list(range(arrays.n_patches))
        for place, record in enumerate(records):
            for name, array in arrays.items():
                assert np.array_equal(array[place], getattr(given[record.id], name))


def test_ground_in_two_splits_is_refused_unless_it_is_said(tmp_path: Path) -> None:
    train, val = make_sample(0, "train"), make_sample(0, "val")
    val = val._replace(record=val.record.model_copy(update={"bounds_m": train.record.bounds_m}))
    with pytest.raises(DataError, match="share ground"):
        save([train, val, make_sample(0, "test")], tmp_path / "a.json")
    save([train, val, make_sample(0, "test")], tmp_path / "b.json", apart=("train", "test"))


def test_a_class_that_says_neither_is_cloud_on_a_cloudy_date_and_ground_on_a_clear_one() -> None:
    cloudy, clear = np.full((2, 20, 20), 4, np.uint8)
    cloudy[:], cloudy[:5], clear[:5] = 9, 7, 7
    masks = worldcereal.mask_dates(np.stack([cloudy, clear, np.full((20, 20), 7, np.uint8), np.full((20, 20), 11, np.uint8)]))
    assert masks.usable.all(axis=(1, 2)).tolist() == [False, True, False, False]
    assert not masks.usable[[0, 2, 3]].any()


def test_a_cloud_grows_by_one_pixel_and_nothing_observed_is_nothing_usable() -> None:
    scl = np.full((1, 9, 9), 4, np.uint8)
    scl[0, 4, 4], scl[0, 0, 0], scl[0, 8, 8] = 9, 0, 3
    masks = worldcereal.mask_dates(scl)
    assert (masks.cloud > 0).sum() == 5
    assert (masks.shadow > 0).sum() == 3
    assert not masks.usable[0, 0, 0]
    assert masks.usable.sum() == 81 - 5 - 3 - 1


def test_every_cloudy_date_meets_the_nearest_clear_one_within_ten_days() -> None:
    verdicts = ["clear", "cloudy", "odd", "cloudy", "clear", "doubtful", "cloudy"]
    assert worldcereal.pair_dates(np.array([0.0, 4, 5, 7, 9, 12, 20]), verdicts) == [(1, 0), (3, 4)]
    assert worldcereal.pair_dates(np.array([0.0, 1]), ["cloudy", "cloudy"]) == []


def test_training_and_validation_of_a_site_share_no_date() -> None:
    pairs = [(n, n + step) for n in range(0, 60, 3) for step in (1, 2)]
    splits = worldcereal.split_in_time(pairs)
    dates = {
        split: {date for pair, given in zip(pairs, splits, strict=True) if given == split for date in pair} for split in ("train", "val")
    }
    assert max(dates["train"]) < min(dates["val"])
    assert splits.count("val") == pytest.approx(0.2 * len(pairs), abs=2)


def test_a_date_too_bright_for_its_season_is_odd_and_a_season_is_not() -> None:
    days = np.arange(0.0, 200, 10)
    levels = 1000 + 3 * days
    assert not worldcereal.find_odd_levels(levels, days).any()
    levels[7] *= 1.3
    assert np.flatnonzero(worldcereal.find_odd_levels(levels, days)).tolist() == [7]


def test_a_straight_line_in_time_is_restored_and_the_nearer_end_copied() -> None:
    days = np.array([0.0, 4, 10])
    images = np.broadcast_to((100 + 7 * days)[:, None, None, None], (3, 2, 5, 5))
    usable = np.ones((3, 5, 5), bool)
    usable[1, 0] = False  # there the line is drawn from day 0
    usable[2, 1] = False  # there nothing comes after
    near = worldcereal.find_neighbours(images, usable, days, 5.0)
    line = worldcereal.interpolate_between(near)
    assert line[:, 0] == pytest.approx(135)
    assert line[:, 2:] == pytest.approx(135)
    assert line[:, 1] == pytest.approx(128)
    assert worldcereal.copy_nearest(near)[0, :3, 0].tolist() == [100, 128, 128]


def test_a_pixel_that_is_never_clear_is_refused() -> None:
    with pytest.raises(DataError, match="never clear"):
        worldcereal.find_neighbours(np.ones((1, 1, 2, 2)), np.zeros((1, 2, 2), bool), np.array([0.0]), 1.0)


def test_no_floor_sees_its_target() -> None:
    series = make_series([4, 9, 4, 4], days=[0, 3, 5, 9])
    choice = worldcereal.choose_pairs(series)
    assert choice.pairs == [(1, 2)]
    before = worldcereal.answer_without_network(choice, (1, 2))
    series.optical[2] = 9999
    after = worldcereal.answer_without_network(choice, (1, 2))
    assert {name: float(answer.mean()) for name, answer in before.items()} == pytest.approx(
        {"copy_nearest": 1000, "interpolate": 1000 + 300 * 3 / 9, "site_mean": 1150}
    )
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_patch_is_the_cloudy_date_its_target_and_the_nearest_sar() -> None:
    series = make_series([4, 9, 4, 4], days=[0, 3, 5, 9])
    sample = worldcereal.cut_sample(worldcereal.choose_pairs(series), (1, 2), "test")
    assert (sample.cloudy.mean(), sample.clear.mean(), sample.sar.mean()) == (1100, 1200, -11)
    assert (sample.record.clear_gap_days, sample.record.cloud_input_share, sample.record.cloud_target_share) == (2, 1, 0)
    assert sample.record.id == "site/2018-01-04-to-2018-01-06/r0-c0"
    assert dict(zip(MASK_CHANNELS, sample.mask.mean(axis=(1, 2)).tolist(), strict=True)) == {
        name: 0 if name in ("shadow_input", "cloud_target", "shadow_target") else 255 for name in MASK_CHANNELS
    }


def test_sites_without_a_pair_and_folders_without_two_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cloudy date has a clear one"):
        worldcereal.choose_pairs(make_series([4, 4], days=[0, 3]))
    with pytest.raises(MissingError, match="at least two are needed"):
        worldcereal.pack_worldcereal(tmp_path, tmp_path / "dataset.json", None)
    with pytest.raises(MissingError, match=r"index\.tsv does not exist"):
        volkov.pack_volkov(tmp_path, tmp_path / "dataset.json", "real")


def test_rectangles_that_touch_through_others_are_one_group() -> None:
    boxes = [(0, 0, 1, 1), (5, 5, 6, 6), (2, 0, 3, 1), (1, 1, 2, 2), (9, 9, 10, 10)]
    assert volkov.group_touching(boxes) == [0, 1, 0, 0, 2]


def test_clouds_hide_the_ground_where_the_mask_says_so_and_nowhere_else() -> None:
    ground = np.random.default_rng(0).uniform(0.05, 0.3, (3, 200, 200)).astype(np.float32)
    clear = volkov.to_stored(ground)
    cover = volkov.cover_picture(ground, np.random.default_rng(3), sun=Sun(180, 40))
    changed = abs(cover.cloudy.astype(int) - clear).max(axis=0)
    untouched = (cover.cloud == 0) & (cover.shadow == 0)
    certain = cover.cloud == 255
    assert untouched.any()
    assert certain.any()
    assert ((cover.cloud > 0) & (cover.cloud < 255)).any()
    assert changed[untouched].max() < 60  # what is below half a step of the mask: 0.002 of opacity
    assert np.median(changed[certain]) > 1000


def test_shuffled_sar_is_anothers_of_the_same_split_and_nothing_else_changes() -> None:
    samples = [make_sample(n, split) for n, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 4)]
    for change in (volkov.shuffle_sar, volkov.zero_sar):
        changed = change(samples)
        assert all(a.record == b.record for a, b in zip(samples, changed, strict=True))
        assert all(
            np.array_equal(getattr(a, k), getattr(b, k)) for a, b in zip(samples, changed, strict=True) for k in ("cloudy", "clear", "mask")
        )
    givers = [int(sample.sar.mean()) // -100 for sample in volkov.shuffle_sar(samples)]
    assert sorted(givers) == list(range(len(samples)))
    assert all(giver != place and samples[giver].record.split == samples[place].record.split for place, giver in enumerate(givers))
    assert {int(value) for sample in volkov.zero_sar(samples) for value in sample.sar.flat} == {-2500}
    with pytest.raises(DataError, match="holds one patch"):
        volkov.shuffle_sar(samples[:7])


def test_a_fault_of_the_data_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["adapters.py", "volkov", str(tmp_path), str(tmp_path / "dataset.json")])
    assert adapters.main() == MissingError.exit_code
    assert capsys.readouterr().err.splitlines() == [
        f"adapters: error: {tmp_path}/index.tsv does not exist: name the folder that holds it beside `opt` and `sar`"
    ]


@pytest.mark.real
@pytest.mark.parametrize("place", [0, 1])
def test_real_series_are_split_by_site_and_time_beats_the_training_mean(samples: Path, tmp_path: Path, place: int) -> None:
    pytest.importorskip("h5netcdf", reason="h5netcdf is not installed: no real series")
    folder = samples / "worldcereal"
    sites = sorted(path.name for path in folder.iterdir())
    for name in ("first", "second"):
        worldcereal.pack_worldcereal(folder, tmp_path / name / "dataset.json", sites[place])
    output = tmp_path / "first" / "dataset.json"
    verify_store(output)
    assert output.read_bytes() == (tmp_path / "second" / "dataset.json").read_bytes()
    records = read_records(output)
    assert {record.area for record in records if record.split == "test"} == {sites[place]}
    assert {record.area for record in records if record.split != "test"} == {sites[1 - place]}
    assert all(abs(record.clear_gap_days) <= 10 and record.cloud_input_share >= 0.1 for record in records)
    dates = {split: {day for r in records if r.split == split for day in r.pair.split("-to-")} for split in ("train", "val")}
    assert max(dates["train"]) < min(dates["val"])
    floors = json.loads((output.with_name("floors.json")).read_text())
    assert {scores["n"] for scores in floors.values()} == {sum(record.split == "test" for record in records)}
    order = ["training_mean", "site_mean", "copy_nearest", "interpolate"]
    assert sorted(floors, key=lambda name: floors[name]["psnr"]) == order
    assert 27 < floors["interpolate"]["psnr"] < 32


@pytest.mark.real
def test_real_pairs_differ_in_nothing_but_sar(samples: Path, tmp_path: Path) -> None:
    given, folder = samples / "volkov_s1s2_512", tmp_path / "pairs"
    folder.mkdir()
    for kind in ("opt", "sar"):
        (folder / kind).symlink_to(given / kind)
    (folder / "index.tsv").write_text("\n".join((given / "index.tsv").read_text().splitlines()[:5]) + "\n")
    for sar in ("real", "zero", "shuffled"):
        volkov.pack_volkov(folder, tmp_path / sar / "dataset.json", sar)
    files = {sar: read_manifest(tmp_path / sar / "dataset.json")["files"] for sar in ("real", "zero", "shuffled")}
    for sar in ("zero", "shuffled"):
        assert {name for name in files["real"] if files["real"][name] != files[sar][name]} == {
            name for name in files["real"] if "/sar/c" in name
        }
    stored = zarr.open_group(store_of(tmp_path / "real" / "dataset.json"), mode="r")["train"]
    assert stored["sar"][:].min() >= -2500
    assert stored["sar"][:].max() <= 0
    assert 500 < stored["clear"][:].mean() < 3000
    with (store_of(tmp_path / "real" / "dataset.json") / "patches.csv").open() as file:
        splits = {(row["pair"], row["split"]) for row in csv.DictReader(file)}
    assert len(splits) == 4
    assert {split for _, split in splits} == set(SPLITS)
