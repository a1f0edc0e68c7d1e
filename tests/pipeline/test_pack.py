"""Joining patches into one dataset."""

import csv
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

from sereno.pipeline import pack
from sereno.pipeline.config import PackSettings, SplitSettings
from sereno.pipeline.errors import DataError, MissingError, StoreError
from sereno.pipeline.pack import pack_patches
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, SPLITS, PatchRecord
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS
from sereno.pipeline.store import read_manifest, save_dataset, store_of, verify_store

SIZE = 16
BANDS = ["B02", "B03", "B04"]
SETTINGS = PackSettings(shard_patches=4, split=SplitSettings(validation=0.2, test=0.2))
DTYPES = {"sar": np.int16, "cloudy": np.uint16, "clear": np.uint16, "mask": np.uint8}
DEPTHS = {"sar": 2, "cloudy": 3, "clear": 3, "mask": 7}


def make_patch(name: str, array: str) -> npt.NDArray[Any]:
    """Self-identifying data: noise drawn from the patch's id, so that no two patches are alike anywhere."""
    generator = np.random.default_rng(zlib.crc32(f"{name}:{array}".encode()))
    limits = np.iinfo(DTYPES[array])
    values = generator.integers(limits.min, limits.max, (DEPTHS[array], SIZE, SIZE), dtype=DTYPES[array], endpoint=True)
    if array == "mask":
        for channel in ("valid_input", "valid_target", "valid_sar"):
            values[MASK_CHANNELS.index(channel)] = np.where(values[MASK_CHANNELS.index(channel)] > 20, 255, 0)
    return values


def make_records(area: str, pair: str, count: int) -> list[PatchRecord]:
    """`count` patches in a row, two per block; areas lie in different zones."""
    crs = {"west": "EPSG:32632", "east": "EPSG:32633"}[area]
    records = []
    for n in range(count):
        left = 400_000 + (n // 2) * 480 + (n % 2) * 160
        records.append(
            PatchRecord(
                id=f"{area}/{pair}/r0-c{n}",
                area=area,
                pair=pair,
                block=f"{crs}/{n // 2}/0",
                crs=crs,
                bounds_m=(left, 5_000_000, left + 160, 5_000_160),
                row=0,
                col=n,
                valid_share=0.99,
                cloud_input_share=n / count,
                cloud_target_share=0.01,
                sar_gap_days=-0.5,
                clear_gap_days=5.0,
            )
        )
    return records


def write_patches(manifest: Path, records: list[PatchRecord], scenes: Mapping[str, Any] | None = None, **facts: Any) -> Path:
    area, pair = (records[0].area, records[0].pair) if records else ("west", "empty")
    stacks = {
        name: np.array([make_patch(r.id, name) for r in records], DTYPES[name]).reshape(-1, DEPTHS[name], SIZE, SIZE)
        for name in PATCH_ARRAYS
    }
    dims = {"sar": "sar_band", "cloudy": "band", "clear": "band", "mask": "mask_channel"}
    variables = {name: (("patch", dims[name], "row", "col"), stacks[name]) for name in PATCH_ARRAYS}
    scene = {"item": "i", "collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "offset": 1000}
    provenance = {"pair": {"id": pair}, "area": area, "cloudy": {**scene, "windows": [1, 2]}, "clear": scene}
    provenance["sar"] = {**scene, "sensor": "sentinel1-rtc", "offset": None}
    provenance |= {role: {**scene, **changes} for role, changes in (scenes or {}).items()}
    summary = {
        "area": area,
        "pair": pair,
        "bands": BANDS,
        "sar_bands": ["VV", "VH"],
        "size_px": SIZE,
        "resolution_m": 10.0,
        "layout": "blocks",
        "block_px": 48,
        "buffer_m": 160.0,
        **facts,
        "patches": [r.model_dump(mode="json", exclude={"split", "position"}) for r in records],
        "refused": [{"id": "r9-c9", "setting": "min_valid", "value": 0.1, "limit": 0.9, "reason": "..."}],
    }
    dataset = xr.Dataset(variables, coords={"band": summary["bands"]}, attrs={"provenance": provenance})
    save_dataset(dataset, manifest, kind="patches", summary=summary, chunks={"patch": 1})
    return manifest


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("patches")
    layout = [("west", "p1", 20), ("west", "p2", 13), ("east", "p1", 12)]
    return [write_patches(folder / f"{area}-{pair}.json", make_records(area, pair, count)) for area, pair, count in layout]


@pytest.fixture(scope="module")
def packed(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pack") / "dataset.json"
    pack_patches(sources, output, SETTINGS)
    return output


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with (store_of(manifest) / "patches.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def iterate_stored(manifest: Path) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    group: Any = zarr.open_group(store_of(manifest), mode="r")
    for row in read_rows(manifest):
        yield row, {name: group[row["split"]][name][int(row["position"])] for name in PATCH_ARRAYS}


def test_every_value_of_every_shard_equals_its_source(packed: Path) -> None:
    seen = set()
    for row, arrays in iterate_stored(packed):
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, make_patch(row["id"], name), err_msg=f"{row['id']} {name}")
        seen.add(row["id"])
    assert len(seen) == 45
    assert sum(1 for file in (store_of(packed) / "train/cloudy/c").rglob("*") if file.is_file()) > 3, "several shards are needed for proof"
    assert verify_store(packed) > 20


def test_a_shard_holds_whole_patches_and_the_last_may_be_partial(packed: Path) -> None:
    group: Any = zarr.open_group(store_of(packed), mode="r")
    counts = read_manifest(packed)["summary"]["counts"]
    for split in SPLITS:
        for name in PATCH_ARRAYS:
            array = group[split][name]
            assert array.shape == (counts[split], DEPTHS[name], SIZE, SIZE)
            assert array.chunks == (1, DEPTHS[name], SIZE, SIZE)
            assert array.shards == (4, DEPTHS[name], SIZE, SIZE)
            assert len(list((store_of(packed) / split / name / "c").iterdir())) == math.ceil(counts[split] / 4)
    assert counts["train"] % 4, "the test needs a partial last shard"


def test_an_independent_reader_sees_reflectance_decibel_and_probability(packed: Path) -> None:
    with xr.open_zarr(store_of(packed), group="train", consolidated=False, chunks=None) as train:
        row = next(row for row in read_rows(packed) if row["split"] == "train")
        assert train["clear"].dims == ("patch", "band", "row", "col")
        np.testing.assert_allclose(train["clear"][0], make_patch(row["id"], "clear") / 10_000, rtol=1e-6)
        np.testing.assert_allclose(train["sar"][0], make_patch(row["id"], "sar") / 100, rtol=1e-6)
        np.testing.assert_allclose(train["mask"][0], make_patch(row["id"], "mask") / 255, rtol=1e-6)
        assert train.attrs["bands"] == BANDS
        assert train.attrs["units"] == {
            "sar": SAR_UNITS,
            "cloudy": OPTICAL_UNITS,
            "clear": OPTICAL_UNITS,
            "mask": "probability or validity x 255",
        }
    with xr.open_zarr(store_of(packed), group="train", consolidated=False, chunks=None, mask_and_scale=False) as train:
        assert train["clear"].dtype == np.uint16


def test_records_are_listed_in_stored_order_and_validate(packed: Path) -> None:
    rows = read_rows(packed)
    records = [
        PatchRecord.model_validate({k: v for k, v in row.items() if v != ""} | {"bounds_m": json.loads(row["bounds_m"])}) for row in rows
    ]
    for split in SPLITS:
        assert [r.position for r in records if r.split == split] == list(range(read_manifest(packed)["summary"]["counts"][split]))
    originals = {
        r.id: r for area, pair, n in [("west", "p1", 20), ("west", "p2", 13), ("east", "p1", 12)] for r in make_records(area, pair, n)
    }
    assert {r.id: r.model_copy(update={"split": None, "position": None}) for r in records} == originals


def test_patches_are_shuffled_within_their_split_and_blocks_stay_whole(packed: Path) -> None:
    rows = read_rows(packed)
    train = [row["id"] for row in rows if row["split"] == "train"]
    assert train != sorted(train)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["block"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert read_manifest(packed)["summary"]["leakage"]["min_distance_m"] == 160.0


def test_training_statistics_are_those_of_valid_unclouded_target_pixels(packed: Path) -> None:
    values: list[list[float]] = [[] for _ in BANDS]
    for row, arrays in iterate_stored(packed):
        if row["split"] == "train":
            mask = dict(zip(MASK_CHANNELS, arrays["mask"], strict=True))
            usable = (mask["valid_target"] == 255) & (mask["cloud_target"] / 255 < 0.5) & (mask["shadow_target"] / 255 < 0.5)
            for band in range(len(BANDS)):
                values[band].extend(arrays["clear"][band][usable] / 10_000)
    summary = read_manifest(packed)["summary"]
    np.testing.assert_allclose(summary["training_mean"], [np.mean(v) for v in values], rtol=1e-9)
    np.testing.assert_allclose(summary["training_std"], [np.std(v) for v in values], rtol=1e-9)


def test_the_summary_counts_what_is_stored(packed: Path) -> None:
    summary, rows = read_manifest(packed, kind="dataset")["summary"], read_rows(packed)
    assert summary["counts"] == {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    assert {area: facts["pairs"] for area, facts in summary["areas"].items()} == {"east": ["p1"], "west": ["p1", "p2"]}
    assert summary["refused"] == {"min_valid": 3}
    assert sum(sum(summary["cloud_share"][split]) for split in SPLITS) == 45
    assert summary["scenes"]["sar"]["sensors"] == ["sentinel1-rtc"]
    west, south, east, north = summary["areas"]["west"]["bbox"]
    assert 7 < west < east < 8
    assert 45 < south < north < 46
    provenance = json.loads((store_of(packed) / "provenance.json").read_text())
    assert [entry["pair"]["id"] for entry in provenance] == ["p1", "p1", "p2"]
    assert "windows" not in provenance[0]["cloudy"]


def test_the_data_card_tells_what_one_must_know(packed: Path) -> None:
    card = packed.with_suffix(".md").read_text()
    for words in (
        "45 co-registered",
        "from 3 scene pairs of 2 areas",
        "nearest patches of different splits are 160.0 m apart",
        "Contains modified Copernicus Sentinel data 2021",
        "| `patch.min_valid` | 3 |",
        "reflectance x 10000",
        'xr.open_zarr("dataset.zarr"',
        "B02, B03, B04",
    ):
        assert words in card
    code = card.split("```python\n")[1].split("```")[0]
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=packed.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def read_all(output: Path) -> dict[str, bytes]:
    return {str(file.relative_to(output.parent)): file.read_bytes() for file in sorted(output.parent.rglob("*")) if file.is_file()}


def test_the_order_of_the_inputs_changes_no_byte(packed: Path, sources: list[Path], tmp_path: Path) -> None:
    pack_patches(sources[::-1], tmp_path / "dataset.json", SETTINGS)
    assert read_all(tmp_path / "dataset.json") == read_all(packed)


def test_packing_again_over_a_result_gives_the_same_bytes_and_takes_no_leftover(packed: Path, sources: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "dataset.json"
    half = tmp_path / ".dataset.zarr.partial" / "train" / "cloudy" / "c"
    half.mkdir(parents=True)
    (half / "99").write_bytes(b"left by a killed job")
    store_of(output).mkdir()
    (store_of(output) / "stale").write_bytes(b"renamed, but never described")
    pack_patches(sources, output, SETTINGS)
    assert read_all(output) == read_all(packed)


def test_the_seed_changes_the_order_and_nothing_else(packed: Path, sources: list[Path], tmp_path: Path) -> None:
    pack_patches(sources, tmp_path / "dataset.json", SETTINGS.model_copy(update={"seed": 9}))
    first, second = read_rows(packed), read_rows(tmp_path / "dataset.json")
    assert [row["id"] for row in first] != [row["id"] for row in second]
    assert {(row["id"], row["split"]) for row in first} == {(row["id"], row["split"]) for row in second}


@pytest.mark.parametrize(("codec", "shard"), [("zstd", 3), ("lz4", 64)])
def test_codec_and_shard_length_change_no_value(sources: list[Path], tmp_path: Path, codec: str, shard: int) -> None:
    output = tmp_path / "dataset.json"
    pack_patches(sources[2:], output, PackSettings.model_validate({**SETTINGS.model_dump(), "codec": codec, "shard_patches": shard}))
    for row, arrays in iterate_stored(output):
        assert all(np.array_equal(array, make_patch(row["id"], name)) for name, array in arrays.items())


def test_without_splits_the_others_are_empty_but_there(sources: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "dataset.json"
    pack_patches(sources[2:], output, PackSettings(split=SplitSettings(method="none")))
    assert read_manifest(output)["summary"]["counts"] == {"train": 12, "val": 0, "test": 0}
    with xr.open_zarr(store_of(output), group="val", consolidated=False, chunks=None) as val:
        assert val["sar"].shape == (0, 2, SIZE, SIZE)
    assert "nothing can leak" in output.with_suffix(".md").read_text()


def test_listed_areas_go_where_the_list_says(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "lists.json").write_text(json.dumps({"train": ["west"], "val": [], "test": ["east"]}))
    settings = PackSettings(split=SplitSettings(method="list", file=tmp_path / "lists.json"))
    pack_patches(sources, tmp_path / "dataset.json", settings)
    assert {(row["area"], row["split"]) for row in read_rows(tmp_path / "dataset.json")} == {("west", "train"), ("east", "test")}
    assert read_manifest(tmp_path / "dataset.json")["summary"]["splits"]["file"] == "lists.json"


@pytest.mark.parametrize(
    "facts", [{"bands": ["B02", "B03", "B08"]}, {"sar_bands": ["VV", "HH"]}, {"size_px": 8}, {"resolution_m": 20.0}, {"block_px": 64}]
)
def test_stores_that_do_not_fit_are_both_named(sources: list[Path], tmp_path: Path, facts: dict[str, Any]) -> None:
    other = write_patches(tmp_path / "other.json", make_records("west", "p3", 4), **facts)
    with pytest.raises(DataError, match=rf"west-p2\.json has {next(iter(facts))} .*other\.json has "):
        pack_patches([*sources, other], tmp_path / "dataset.json", SETTINGS)
    assert not store_of(tmp_path / "dataset.json").exists()


def test_a_pair_named_twice_is_refused(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same pair"):
        pack_patches([*sources, sources[0]], tmp_path / "dataset.json", SETTINGS)


def test_no_patch_at_all_is_refused_with_the_reasons(tmp_path: Path) -> None:
    empty = write_patches(tmp_path / "empty.json", [])
    with pytest.raises(DataError, match=r"not one patch was kept in 1 patch store: 1 window by patch\.min_valid: loosen"):
        pack_patches([empty], tmp_path / "dataset.json", SETTINGS)


def test_an_empty_store_beside_others_is_fine(sources: list[Path], tmp_path: Path) -> None:
    pack_patches([sources[2], write_patches(tmp_path / "empty.json", [])], tmp_path / "dataset.json", SETTINGS)
    assert len(read_rows(tmp_path / "dataset.json")) == 12
    summary = read_manifest(tmp_path / "dataset.json")["summary"]
    assert summary["left_out"] == [{"area": "west", "pair": "empty", "reason": "1 of 1 windows were refused by patch.min_valid"}]
    assert list(summary["areas"]) == ["east"], "what has no patch adds nothing to the dataset"


def test_a_refused_pair_is_left_out_with_its_reason(sources: list[Path], tmp_path: Path) -> None:
    why = "the clear scene: 0.0% of the ground is valid"
    refused = write_patches(tmp_path / "refused.json", [], pair_refused=why)
    pack_patches([*sources, refused], tmp_path / "dataset.json", SETTINGS)
    assert read_manifest(tmp_path / "dataset.json")["summary"]["left_out"] == [{"area": "west", "pair": "empty", "reason": why}]
    assert f"| west | empty | {why} |" in (tmp_path / "dataset.md").read_text()
    with pytest.raises(DataError, match=f"not one patch was kept in 1 patch store: 1 pair not to be used: 1 x {why} .manifests of `align`"):
        pack_patches([refused], tmp_path / "alone.json", SETTINGS)


def test_where_nothing_is_left_three_reasons_are_quoted_with_their_number_and_shortened(tmp_path: Path) -> None:
    reasons = ["a", "b " * 400, "a", "c", "d", "e"]
    paths = [write_patches(tmp_path / f"{n}.json", [], pair_refused=why, pair=f"p{n}") for n, why in enumerate(reasons)]
    paths.append(write_patches(tmp_path / "windows.json", [], pair="p9"))
    with pytest.raises(DataError) as caught:
        pack_patches(paths, tmp_path / "dataset.json", SETTINGS)
    words = str(caught.value)
    assert "in 7 patch stores: 6 pairs not to be used: 2 x a; 1 x b b " in words
    assert "; 1 x c; and 2 other reasons (manifests" in words
    assert words.endswith("; 1 window by patch.min_valid: loosen the limits of `patch`")
    assert len(words) < 600


def test_a_missing_or_damaged_patch_store_is_named(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.json"):
        pack_patches([*sources, tmp_path / "nowhere.json"], tmp_path / "dataset.json", SETTINGS)
    damaged = write_patches(tmp_path / "damaged.json", make_records("west", "p3", 4))
    (store_of(damaged) / "cloudy/c/1/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"is missing|has changed"):
        pack_patches([*sources, damaged], tmp_path / "dataset.json", SETTINGS)


def test_a_patch_that_does_not_read_back_is_named_and_the_old_result_stays(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "dataset.json"
    pack_patches(sources[2:], output, SETTINGS)
    before = read_all(output)
    calls: list[int] = []

    def sum_wrongly(block: npt.NDArray[Any]) -> list[int]:
        calls.append(len(block))
        return [zlib.crc32(patch.tobytes()) + (len(calls) == 20) for patch in block]

    monkeypatch.setattr(pack, "_sum_patches", sum_wrongly)
    with pytest.raises(StoreError, match=r"does not read back as patch"):
        pack_patches(sources, output, SETTINGS)
    assert read_all(output) == before


FILL_DISK = """
import resource, sys
from pathlib import Path
from sereno.pipeline.config import PackSettings, SplitSettings
from sereno.pipeline.errors import StoreError
from sereno.pipeline.pack import pack_patches
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    pack_patches([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), PackSettings(shard_patches=4))
except StoreError as error:
    print(error)
    sys.exit(6)
"""


def test_a_write_that_the_disk_refuses_gives_one_line_and_leaves_the_old_result(sources: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "dataset.json"
    pack_patches(sources[2:], output, SETTINGS)
    before = read_all(output)
    run = subprocess.run([sys.executable, "-c", FILL_DISK, output, *sources], capture_output=True, text=True, check=False)
    assert run.returncode == 6, run.stderr
    assert run.stdout.count("\n") == 1
    assert "cannot write" in run.stdout
    assert "free space" in run.stdout
    assert read_all(output) == before


def test_the_manifest_of_100_000_patches_stays_below_a_megabyte(packed: Path) -> None:
    manifest = read_manifest(packed)
    shards = math.ceil(100_000 / 64) * len(PATCH_ARRAYS)
    entry = len(json.dumps({"train/cloudy/c/1000/0/0/0": {"bytes": 100_000_000, "sha256": "0" * 64}}, indent=1)) + 6
    assert shards * entry + len(json.dumps(manifest["summary"], indent=1)) < 1_000_000


def to_gaofen(sensor: str, level: str) -> dict[str, Any]:
    return {"item": f"{sensor}-{level}", "sensor": sensor, "properties": {"processing_level": level}}


L1A, L2 = to_gaofen("gaofen3", "L1A"), to_gaofen("gaofen3", "L2")
PMS, L2A = to_gaofen("gaofen-pms", "LEVEL1A"), {"item": "S2-L2A", "sensor": "sentinel2-l2a"}
LEVELS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"sar": L1A}, {"sar": L2}, r"sar images are of 2 .*level 1A: 1, for example gaofen3-L1A of area west.*level 2: 1, .* of area east"),
    ({"clear": PMS}, {"clear": L2A}, r"top of the atmosphere: 1, .*west; reflectance of the surface: 3, .*i of area east"),
    ({"clear": PMS, "cloudy": PMS}, {"clear": L2A, "cloudy": L2A}, r"top .*: 2, .*west; .* surface: 2, .*S2-L2A of area east"),
    ({"clear": PMS, "cloudy": L2A}, {"clear": PMS, "cloudy": L2A}, "cloudy and clear images are of 2 processing levels"),
]


@pytest.mark.parametrize(("west", "east", "words"), LEVELS)
def test_levels_are_not_mixed_across_areas(tmp_path: Path, west: dict[str, Any], east: dict[str, Any], words: str) -> None:
    paths = [
        write_patches(tmp_path / f"{area}.json", make_records(area, "p1", 4), scenes=scenes)
        for area, scenes in (("west", west), ("east", east))
    ]
    with pytest.raises(DataError, match=words) as caught:
        pack_patches(paths, tmp_path / "dataset.json", SETTINGS)
    assert "make a dataset of each" in str(caught.value)
    assert not (tmp_path / "dataset.json").exists()


def test_a_pair_without_patches_does_not_count_as_a_level(tmp_path: Path) -> None:
    paths = [write_patches(tmp_path / "a.json", make_records("west", "p1", 20), scenes={"sar": L1A})]
    paths.append(write_patches(tmp_path / "b.json", [], scenes={"sar": L2}))
    pack_patches(paths, tmp_path / "dataset.json", SETTINGS)
    assert "Gaofen-3 level 1A |" in (tmp_path / "dataset.md").read_text()


def test_top_of_the_atmosphere_of_two_satellites_may_lie_together(tmp_path: Path) -> None:
    l1c = {"item": "S2-L1C", "sensor": "sentinel2-l1c"}
    scenes = {"west": {"clear": PMS, "cloudy": PMS}, "east": {"clear": l1c, "cloudy": l1c}}
    paths = [write_patches(tmp_path / f"{area}.json", make_records(area, "p1", 20), scenes=changes) for area, changes in scenes.items()]
    pack_patches(paths, tmp_path / "dataset.json", SETTINGS)
    assert "gaofen-pms, sentinel2-l1c" in (tmp_path / "dataset.md").read_text()


def test_stores_of_two_tasks_are_refused(sources: list[Path], tmp_path: Path) -> None:
    facts = {"task": "pansharpening", "ratio": 2, "pan_bands": ["B08"]}
    other = write_patches(tmp_path / "other.json", make_records("west", "p3", 2), **facts)
    with pytest.raises(DataError, match=r"has task cloud-removal, .*other\.json has pansharpening: a dataset needs one"):
        pack_patches([sources[0], other], tmp_path / "dataset.json", SETTINGS)


def write_series(manifest: Path, area: str, count: int) -> Path:
    """Patches with dates around them, which say which patch and date they are of."""
    gaps = {"before": -5.0, "after": 20.0}
    records = [record.model_copy(update={"gaps_days": gaps}) for record in make_records(area, "p1", count)]
    write_patches(manifest, records, dates=["before", "after"])
    patches, summary = xr.open_zarr(store_of(manifest), consolidated=False, mask_and_scale=False).load(), read_manifest(manifest)["summary"]
    patches.attrs["provenance"] |= {role: patches.attrs["provenance"]["clear"] | {"sensor": f"sensor-{role}"} for role in gaps}
    marks = np.arange(2 * count).reshape(count, 2)
    around = np.broadcast_to(marks[..., None, None, None] + 100, (count, 2, 3, SIZE, SIZE)).astype(np.uint16)
    clear = np.broadcast_to(marks[..., None, None] + 1, (count, 2, SIZE, SIZE)).astype(np.uint8)
    added = {"around": (("patch", "date", "band", "row", "col"), around), "around_clear": (("patch", "date", "row", "col"), clear)}
    save_dataset(patches.assign(added), manifest, kind="patches", summary=summary, chunks={"patch": 1})
    return manifest


def test_a_dataset_of_series_holds_their_dates_and_the_days_to_each(tmp_path: Path) -> None:
    output = tmp_path / "dataset.json"
    pack_patches([write_series(tmp_path / "west.json", "west", 20)], output, SETTINGS)
    summary, rows = read_manifest(output)["summary"], read_rows(output)
    assert list(summary["channels"]) == ["around", "around_clear", "clear", "cloudy", "mask", "sar"]
    assert (summary["channels"]["around"], summary["channels"]["around_clear"]) == (BANDS, ["before", "after"])
    assert summary["scenes"]["before"]["sensors"] == ["sensor-before"]
    group: Any = zarr.open_group(store_of(output), mode="r")
    for row in rows:
        arrays = {name: group[row["split"]][name][int(row["position"])] for name in (*PATCH_ARRAYS, "around", "around_clear")}
        number = int(row["col"])
        assert (arrays["around"] == np.array([100 + 2 * number, 101 + 2 * number])[:, None, None, None]).all()
        assert (arrays["around_clear"] == np.array([1 + 2 * number, 2 + 2 * number])[:, None, None]).all()
        assert all(np.array_equal(arrays[name], make_patch(row["id"], name)) for name in PATCH_ARRAYS)
        assert json.loads(row["gaps_days"]) == {"before": -5.0, "after": 20.0}
    with xr.open_zarr(store_of(output), group="train", consolidated=False, chunks=None) as train:
        assert (train["around_clear"].dims, train["around"].dims) == (
            ("patch", "date", "row", "col"),
            ("patch", "date", "band", "row", "col"),
        )
        assert float(train["around_clear"].max()) <= 1
    card = output.with_suffix(".md").read_text()
    assert "| around_clear | patch, date, row, col | probability x 255 | before, after |" in card
    assert "each with the clear dates before and after it, from 1 scene pair" in card
    assert "## Dates around each pair" in card


def test_a_dataset_without_series_says_nothing_of_them(packed: Path) -> None:
    assert list(read_manifest(packed)["summary"]["channels"]) == ["clear", "cloudy", "mask", "sar"]
    assert "gaps_days" not in read_rows(packed)[0]
    assert "around" not in packed.with_suffix(".md").read_text()
    assert "date" not in zarr.open_group(store_of(packed), mode="r")["train"].attrs["units"]  # type: ignore[operator]


@pytest.mark.parametrize("series_first", [True, False])
def test_pairs_with_and_without_series_are_not_packed_together(sources: list[Path], tmp_path: Path, series_first: bool) -> None:
    area, plain = ("east", sources[0]) if series_first else ("west", sources[2])
    series = write_series(tmp_path / "series.json", area, 4)
    with pytest.raises(DataError) as caught:
        pack_patches([series, plain], tmp_path / "dataset.json", SETTINGS)
    assert str(caught.value).startswith(f"{series} holds the dates before and after its pair, {plain} does not: a dataset has them for all")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dataset.json").exists()
