"""Laws of evaluation: every patch, method and region has its row, baselines are what they say, nothing missing is hidden."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import zarr
from series_samples import BANDS as SERIES_BANDS
from series_samples import write_series

from sereno.model import metrics
from sereno.model.batches import Signature, scale_optical
from sereno.model.checkpoint import CheckpointMeta, hash_file, save_checkpoint
from sereno.model.config import AfsstSettings, EvaluateSettings, TrainSettings
from sereno.model.evaluate import choose_examples, evaluate_checkpoint
from sereno.model.scoring import CLEARING, REGIONS, mark_regions, score_regions
from sereno.model.tasks import CLOUD_REMOVAL, create_network
from sereno.pipeline.errors import DataError, MissingError, TrainingError
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, SPLITS, PatchRecord
from sereno.pipeline.store import store_of, write_manifest

METHODS = list(CLEARING.fit(PATCH_ARRAYS).methods)
BANDS, SAR = ("B02", "B03", "B04"), ("VV", "VH")
MEAN, STD = (0.08, 0.1, 0.12), (0.03, 0.03, 0.05)
COVERS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)  # the second is wide enough to reach beyond the frame without SSIM
SIDE = 48
CPU = EvaluateSettings(device="cpu", examples=3)
TINY = TrainSettings(network=AfsstSettings(width=8, head_dim=8, levels=1, blocks=1, window_px=8))


def make_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Six patches whose left part is cloudy, over smooth ground."""
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    clear = np.stack([[1000 + 200 * np.sin(rows / (6 + n) + k) + 4 * columns for k in range(3)] for n in range(len(COVERS))])
    cloudy = clear + generator.normal(0, 20, clear.shape)
    mask = np.zeros((len(COVERS), len(MASK_CHANNELS), SIDE, SIDE), np.uint8)
    for name in ("valid_input", "valid_target", "valid_sar"):
        mask[:, MASK_CHANNELS.index(name)] = 255
    for place, cover in enumerate(COVERS):
        width = round(cover * SIDE)
        cloudy[place, :, :, :width] = 6000
        mask[place, MASK_CHANNELS.index("cloud_input"), :, :width] = 255
    mask[3, MASK_CHANNELS.index("cloud_target"), :5] = 255
    mask[4, MASK_CHANNELS.index("valid_target"), :, :4] = 0
    sar = generator.integers(-2000, -500, (len(COVERS), 2, SIDE, SIDE))
    return {"sar": sar.astype(np.int16), "cloudy": cloudy.astype(np.uint16), "clear": clear.astype(np.uint16), "mask": mask}


def save_dataset_of(arrays: dict[str, np.ndarray[Any, Any]], folder: Path, *, bands: tuple[str, ...] = BANDS) -> Path:
    """A packed dataset whose patches are all for test; the manifest."""
    manifest = folder / "dataset.json"
    store = store_of(manifest)
    for split in SPLITS:
        group = zarr.open_group(store, path=split, mode="w")
        for name in PATCH_ARRAYS:
            group.create_array(name, data=arrays[name] if split == "test" else arrays[name][:0], chunks=(1, *arrays[name].shape[1:]))
    records = [make_record(place, cover) for place, cover in enumerate(COVERS)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(PatchRecord.model_fields))
    writer.writeheader()
    writer.writerows({**record.model_dump(), "bounds_m": json.dumps(record.bounds_m)} for record in records)
    (store / "patches.csv").write_text(text.getvalue())
    summary = {"bands": list(bands), "sar_bands": list(SAR), "training_mean": MEAN, "training_std": STD}
    write_manifest(manifest, kind="dataset", summary=summary)
    return manifest


def make_record(place: int, cover: float) -> PatchRecord:
    return PatchRecord(
        id=f"west/p1/r0-c{place}",
        area="west",
        pair="p1",
        block=f"EPSG:32632/{place // 2}/0",
        crs="EPSG:32632",
        bounds_m=(0, 0, 480, 480),
        row=0,
        col=place,
        valid_share=1,
        cloud_input_share=cover,
        cloud_target_share=0,
        sar_gap_days=0.5,
        clear_gap_days=-5,
        split="test",
        position=place,
    )


def save_network(folder: Path, *, broken: bool = False, dataset_sha256: str = "0") -> Path:
    """A network that was never trained."""
    network = create_network(CLOUD_REMOVAL, TINY.network, Signature(BANDS, SAR, MEAN, STD), seed=1)
    weights = network.state_dict()
    if broken:
        weights = {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value for name, value in weights.items()}
    facts = {"bands": BANDS, "sar_bands": SAR, "training_mean": MEAN, "training_std": STD, "dataset_sha256": dataset_sha256}
    meta = CheckpointMeta(settings=TINY, **facts, step=0)
    save_checkpoint(folder / "checkpoint.safetensors", weights, meta)
    return folder / "checkpoint.safetensors"


def run(folder: Path, how: EvaluateSettings = CPU, *, name: str = "out") -> tuple[list[dict[str, str]], dict[str, Any], Path]:
    """Rows, summary and the folder of an evaluation of the six patches."""
    dataset, checkpoint = save_dataset_of(make_arrays(), folder), save_network(folder)
    evaluate_checkpoint(dataset, checkpoint, folder / name / "scores.csv", how)
    with (folder / name / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / name / "summary.json").read_text()), folder / name


def pick(rows: list[dict[str, str]], method: str, region: str, column: str) -> list[float]:
    return [float(row[column]) for row in rows if (row["method"], row["region"]) == (method, region)]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], dict[str, Any], Path]:
    return run(tmp_path_factory.mktemp("evaluate"))


def test_there_is_one_row_per_patch_method_and_region(result: Any) -> None:
    rows, _, _ = result
    keys = [(row["id"], row["method"], row["region"]) for row in rows]
    assert keys == [(f"west/p1/r0-c{n}", method, region) for n in range(6) for method in METHODS for region in REGIONS]
    assert [float(row["cloud_input_share"]) for row in rows[::12]] == list(COVERS)


def test_copy_and_mean_score_what_numpy_says(result: Any) -> None:
    rows, _, _ = result
    arrays = make_arrays()
    clear, cloudy = arrays["clear"] / 1e4, arrays["cloudy"] / 1e4
    copy, mean = pick(rows, "copy", "all", "mae"), pick(rows, "mean", "all", "psnr")
    for place in (0, 2, 5):  # all their pixels are valid
        assert copy[place] == pytest.approx(np.abs(cloudy[place] - clear[place]).mean(), rel=1e-4)
        mse = np.square(np.array(MEAN)[:, None, None] - clear[place]).mean()
        assert mean[place] == pytest.approx(-10 * math.log10(mse), rel=1e-4)


def test_filling_beats_copying_under_clouds_and_equals_it_on_clear_pixels(result: Any) -> None:
    rows, _, _ = result
    assert all(f > c + 5 for f, c in zip(pick(rows, "fill", "cloudy", "psnr")[1:], pick(rows, "copy", "cloudy", "psnr")[1:], strict=True))
    assert pick(rows, "fill", "clear", "psnr")[:5] == pick(rows, "copy", "clear", "psnr")[:5]


def test_where_nothing_is_clear_the_fill_is_the_training_mean(result: Any) -> None:
    rows, _, _ = result
    assert pick(rows, "fill", "all", "mae")[5] == pytest.approx(pick(rows, "mean", "all", "mae")[5], rel=1e-3)


def test_regions_hold_the_pixels_that_their_words_say(result: Any) -> None:
    rows, _, _ = result
    everything, cloudy, clear = (pick(rows, "copy", region, "n_pixels") for region in REGIONS)
    assert everything == [SIDE * SIDE] * 4 + [SIDE * (SIDE - 4), SIDE * SIDE]  # clouds of the target count, invalid pixels do not
    assert cloudy[3] == (SIDE - 5) * SIDE / 2
    assert clear[3] == (SIDE - 5) * SIDE / 2
    assert cloudy[4] == SIDE * (36 - 4)
    mask = torch.zeros(1, len(MASK_CHANNELS), 1, 3, dtype=torch.uint8)
    mask[0, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_target")]] = 255
    mask[0, MASK_CHANNELS.index("shadow_input"), 0] = torch.tensor([127, 128, 255])
    assert mark_regions(mask, 0.5)[0, :, 0].tolist() == [[True] * 3, [False, True, True], [True, False, False]]


def test_a_patch_without_clouds_is_nan_on_cloudy_pixels_and_counted(result: Any) -> None:
    rows, summary, _ = result
    values = pick(rows, "network", "cloudy", "psnr")
    assert [math.isnan(value) for value in values] == [True] + [False] * 5
    average = summary["scores"]["network"]["cloudy"]["psnr"]
    assert (average["n"], average["n_nan"]) == (5, 1)
    assert average["mean"] == pytest.approx(np.mean(values[1:]), rel=1e-4)
    assert average["median"] == pytest.approx(np.median(values[1:]), rel=1e-4)


def test_bins_of_cloud_cover_hold_every_patch_once(result: Any) -> None:
    _, summary, _ = result
    assert [part["patches"] for part in summary["by_cover"]] == [2, 1, 1, 1, 1]
    assert summary["by_cover"][0]["scores"]["network"]["cloudy"]["psnr"]["n_nan"] == 1
    assert (summary["patches"], summary["blocks"]) == (6, 3)


def test_the_network_is_compared_with_each_baseline_patch_by_patch(result: Any) -> None:
    rows, summary, _ = result
    compared = summary["network_minus"]
    for baseline in ("copy", "mean", "fill"):
        ours, theirs = pick(rows, "network", "cloudy", "ssim"), pick(rows, baseline, "cloudy", "ssim")
        interval = compared[baseline]["ssim"]["by_patch"]
        assert interval["mean"] == pytest.approx(np.nanmean(np.array(ours) - np.array(theirs)), rel=1e-3, abs=1e-5)
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert (interval["n"], interval["n_groups"], compared[baseline]["ssim"]["by_block"]["n_groups"]) == (5, 5, 3)
    assert compared["copy"]["psnr"]["by_patch"]["low"] > 0  # it starts from the filled image


def test_the_summary_is_strict_json_and_says_what_was_scored(result: Any) -> None:
    _, summary, folder = result
    assert "NaN" not in (folder / "summary.json").read_text()
    assert "Infinity" not in (folder / "summary.json").read_text()
    assert summary["checkpoint"]["bands"] == list(BANDS)
    assert summary["split"] == "test"


def test_examples_are_stored_integers_of_patches_spread_over_cloud_cover(result: Any) -> None:
    rows, _, folder = result
    arrays = make_arrays()
    with np.load(folder / "examples.npz") as examples:
        assert examples["cloud_input_share"].tolist() == [0.0, 0.5, 1.0]
        assert examples["id"].tolist() == ["west/p1/r0-c0", "west/p1/r0-c3", "west/p1/r0-c5"]
        for name in PATCH_ARRAYS:
            assert np.array_equal(examples[name], arrays[name][[0, 3, 5]])
            assert examples[name].dtype == arrays[name].dtype
        assert examples["prediction"].dtype == examples["fill"].dtype == np.uint16
        assert examples["prediction"].shape == (3, 3, SIDE, SIDE)
        place = examples["methods"].tolist().index("copy"), examples["regions"].tolist().index("all")
        mae = examples["scores"][:, *place, examples["columns"].tolist().index("mae")]
        assert mae == pytest.approx(np.array(pick(rows, "copy", "all", "mae"))[[0, 3, 5]], rel=1e-4)


def test_no_examples_are_kept_when_none_are_asked_for(tmp_path: Path) -> None:
    _, _, folder = run(tmp_path, CPU.model_copy(update={"examples": 0}))
    with np.load(folder / "examples.npz") as examples:
        assert len(examples["id"]) == 0


def test_equal_input_gives_equal_bytes_and_the_batch_size_changes_no_score(tmp_path: Path, result: Any) -> None:
    rows, _, folder = result
    _, _, again = run(tmp_path, name="again")
    for name in ("scores.csv", "summary.json", "examples.npz"):
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    others, _, _ = run(tmp_path, CPU.model_copy(update={"batch_size": 1}), name="one")
    for method in METHODS:
        for metric in metrics.METRICS:
            assert pick(rows, method, "all", metric) == pytest.approx(pick(others, method, "all", metric), rel=2e-3, abs=1e-5)


def test_example_places_are_distinct_and_reach_from_least_to_most_cloud() -> None:
    cover = [0.9, 0.1, 0.1, 0.1, 0.5, 1.0, 0.1]
    assert choose_examples(cover, 3) == [1, 4, 5]
    assert choose_examples(cover, 99) == list(range(7))
    assert choose_examples(cover, 0) == []


def test_an_empty_split_is_named_with_its_size_and_setting(tmp_path: Path) -> None:
    dataset, checkpoint = save_dataset_of(make_arrays(), tmp_path), save_network(tmp_path)
    with pytest.raises(MissingError, match=r"'val' has 0 patches.*pack\.split"):
        evaluate_checkpoint(dataset, checkpoint, tmp_path / "scores.csv", EvaluateSettings(split="val", device="cpu"))
    assert not (tmp_path / "scores.csv").exists()


def test_other_bands_than_the_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    dataset, checkpoint = save_dataset_of(make_arrays(), tmp_path, bands=("B02", "B03", "B08")), save_network(tmp_path)
    with pytest.raises(DataError, match=r"B08.*B04"):
        evaluate_checkpoint(dataset, checkpoint, tmp_path / "scores.csv", CPU)


def test_a_checkpoint_of_another_dataset_is_scored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = save_dataset_of(make_arrays(), tmp_path)
    for sha256, warned in (("0", True), (hash_file(dataset), False)):
        caplog.clear()
        evaluate_checkpoint(dataset, save_network(tmp_path, dataset_sha256=sha256), tmp_path / "out" / "scores.csv", CPU)
        assert ("may have been among its training" in caplog.text) is warned


def test_a_network_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    dataset, checkpoint = save_dataset_of(make_arrays(), tmp_path), save_network(tmp_path, broken=True)
    with pytest.raises(TrainingError, match="no numbers"):
        evaluate_checkpoint(dataset, checkpoint, tmp_path / "scores.csv", CPU)
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.real
@pytest.mark.skipif("SERENO_SAMPLES" not in os.environ, reason="SERENO_SAMPLES is not set to the folder of real samples")
def test_copying_the_cloudy_sample_of_sen12mscr_scores_as_published() -> None:
    folder = Path(os.environ["SERENO_SAMPLES"]) / "sen12mscr" / "glfcr"
    images = {}
    for role in ("s2_cloudy", "s2_cloudfree"):
        with rasterio.open(folder / role / "ROIs1970_fall_139_p839.tif") as image:
            images[role] = scale_optical(image.read()[None])
    mask = torch.zeros(1, len(MASK_CHANNELS), 256, 256, dtype=torch.uint8)
    mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_target")]] = 255
    scores = score_regions(images["s2_cloudy"], images["s2_cloudfree"], mark_regions(mask, 0.5))[0, 0]
    named = dict(zip((*metrics.METRICS, *metrics.COUNTS), scores.tolist(), strict=True))
    assert images["s2_cloudy"].shape[1] == 13
    assert round(named["psnr"], 2) == 15.96
    assert round(named["mae"], 4) == 0.1087
    assert round(named["sam_deg"], 2) == 15.27


def test_a_series_is_scored_beside_the_line_between_its_dates(tmp_path: Path) -> None:
    dataset, how = write_series(tmp_path, {"train": 0, "val": 0, "test": 3}), CPU.model_copy(update={"examples": 2})
    dated = TINY.model_copy(update={"network": TINY.network.model_copy(update={"base": "dates"})})
    facts = {"bands": SERIES_BANDS, "sar_bands": SAR, "training_mean": MEAN, "training_std": STD, "dataset_sha256": hash_file(dataset)}
    for name, settings in (("plain", TINY), ("dated", dated)):
        meta = CheckpointMeta(settings=settings, **facts, step=0)
        save_checkpoint(tmp_path / name, create_network(CLOUD_REMOVAL, settings.network, meta.signature, seed=1).state_dict(), meta)
        evaluate_checkpoint(dataset, tmp_path / name, tmp_path / f"{name}-out/scores.csv", how)
        summary = json.loads((tmp_path / f"{name}-out/summary.json").read_text())
        assert set(summary["methods"]) == set(CLEARING.methods) == set(summary["scores"])
        assert "dates" in summary["network_minus"]
        examples = np.load(tmp_path / f"{name}-out/examples.npz")
        assert examples["methods"].tolist() == list(CLEARING.methods)
        assert np.abs(examples["dates"].astype(int) - examples["clear"]).max() <= 1
        assert examples["around"].shape[:3] == (2, 2, 3)
        with (tmp_path / f"{name}-out/scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert max(pick(rows, "dates", "cloudy", "mae")) < 1e-4
        worst = max(pick(rows, "network", "cloudy", "mae"))
        assert (worst < 0.02) == (name == "dated"), "an untrained network is about its base"
