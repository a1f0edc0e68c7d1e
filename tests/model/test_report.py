"""The page: complete, self-contained, honest about baselines that win, plain about what is missing."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

from sereno.model.clearing import describe_result
from sereno.model.config import EvaluateSettings, PredictSettings, ReportSettings, TrainSettings
from sereno.model.curves import describe_training
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.gallery import choose_stretch, describe_examples, describe_progress, describe_scenes
from sereno.model.page import Block, Section, render_page
from sereno.model.pictures import to_png
from sereno.model.predict import predict_scene
from sereno.model.refusals import describe_losses
from sereno.model.report import write_report
from sereno.model.results import Results, name_picture, read_results
from sereno.model.shifts import describe_pairs
from sereno.model.train import train_network
from sereno.pipeline.config import PackSettings, PatchSettings, load_settings
from sereno.pipeline.errors import MissingError, StoreError
from sereno.pipeline.ledger import Entry, write_ledger
from sereno.pipeline.pack import pack_patches
from sereno.pipeline.pairs import GridRecord, Lock
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS, with_grid
from sereno.pipeline.store import save_dataset, write_json, write_manifest, write_text

SIDE = 160
BANDS = ("B02", "B03", "B04", "B08")
GRID = GridRecord(crs="EPSG:32632", transform=(10, 0, 498_400, 0, -10, 5_041_600), shape=(SIDE, SIDE))
NASTY = "<b>98 % cloud & more</b>"
SECTIONS = ("result", "scenes", "scores", "examples", "training", "pairs", "ledger", "left-out", "making")


def make_scene(name: str, moment: str) -> dict[str, Any]:
    shared = {"time": moment, "sensor": "sentinel1-rtc" if name[0] == "s" else "sentinel2-l2a"}
    item = shared | {"item": f"ITEM-{name}", "collection": "c", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46), "assets": {}}
    return shared | {"id": name, "items": [item], "cloud_cover_pct": None if name[0] == "s" else 40.0}


def make_lock() -> Lock:
    dates = {"o1": "2021-06-08", "o2": "2021-06-13", "c1": "2021-06-03", "s1": "2021-06-08", "s2": "2021-06-12"}
    scenes = {name: make_scene(name, f"{day}T10:20:00Z") for name, day in dates.items()}
    pairs = [
        {"id": f"p{n}", "sar": f"s{n}", "cloudy": f"o{n}", "clear": "c1", "sar_gap_days": 0.3 - n, "clear_gap_days": -5.0 * n}
        for n in (1, 2)
    ]
    values = {"area": "west", "catalogue": "here", "grid": GRID.model_dump(), "scenes": scenes, "pairs": pairs}
    return load_settings(Lock, values | {"refused": [{"item": "OVERCAST", "role": "cloudy", "reason": NASTY}]}, where="test")


def make_registration(*, verdict: str) -> dict[str, Any]:
    windows = [
        {"row": 20.0 * n, "col": 30.0, "dy": 1.3, "dx": -2.0, "peak": 0.4, "residual_px": 0.1 * n, "inlier": n != 3} for n in range(1, 5)
    ]
    shift = (1.25, -2.0) if verdict == "applied" else (0.0, 0.0)
    return {
        "dy_px": shift[0], "dx_px": shift[1], "sigma_px": 0.04, "n_laid": 9, "n_windows": 6, "n_good": 4, "n_inlier": 3,
        "inlier_ratio": 0.75, "rms_px": 0.3, "median_peak": 0.4, "verdict": verdict,
        "reason": "windows disagree: 3 of 4", "windows": windows,
        "shift_m": [10 * shift[1], -10 * shift[0]], "status": "ok" if verdict == "applied" else "inconsistent", "pixel_m": 10.0,
        "field": {"degree": "shift", "dy": [shift[0]], "dx": [shift[1]], "centre": [47.5, 47.5], "scale_px": 48.0},
        "mean_shift_px": 2.36, "max_shift_px": 2.36, "held_out_px": 0.31, "false_alarms": 1.2e-9, "descriptor": "self-similarity",
    }  # fmt: skip


def make_ground(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Parcels (band, y, x) uint16 and the probability of cloud (y, x) uint8."""
    parcels = rng.uniform(300, 3000, (len(BANDS), 8, 8)).repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    cloud = np.where(np.sin(7 * x + rng.uniform(0, 6)) * np.sin(6 * y + 1) > 0.1, 255, 0)
    return (parcels + rng.normal(0, 30, parcels.shape)).clip(1, 9000).astype(np.uint16), cloud.astype(np.uint8)


def write_pair(folder: Path, number: int, lock: Lock) -> None:
    rng = np.random.default_rng(number)
    truth, cloud = make_ground(rng)
    pair = lock.pairs[number - 1]
    cloudy = np.where(cloud > 0, 7000, truth).astype(np.uint16)
    there = np.ones((SIDE, SIDE), bool)
    there[:, -10:] = False
    roles = {
        role: {"item": f"ITEM-{getattr(pair, role)}", "time": lock.scene(getattr(pair, role)).time} for role in ("sar", "cloudy", "clear")
    }
    registration = make_registration(verdict="applied" if number == 1 else "refused")
    facts = {"area": "west", "pair": pair.model_dump(mode="json")}
    shared = {"sensor": "x", "collection": "c", "processing_baseline": None, "offset": 0}
    provenance = facts | {role: values | shared for role, values in roles.items()} | {"registration": registration}
    sar = (truth[:2].astype(np.int32) // 2 - 2200).astype(np.int16)
    variables = {
        "sar": (("sar_band", "y", "x"), sar, {"units": SAR_UNITS}),
        "cloudy": (("band", "y", "x"), np.where(there, cloudy, 0).astype(np.uint16), {"units": OPTICAL_UNITS}),
        "clear": (("band", "y", "x"), truth + np.uint16(50), {"units": OPTICAL_UNITS}),
        "valid_sar": (("y", "x"), np.ones_like(there)),
        "valid_cloudy": (("y", "x"), there),
        "valid_clear": (("y", "x"), np.ones_like(there)),
    }
    names = {"band": list(BANDS), "sar_band": ["VV", "VH"]}
    dataset = with_grid(xr.Dataset(variables, coords=names, attrs={"provenance": provenance}), GRID.to_geobox())
    save_dataset(dataset, folder / f"align/west/{pair.id}.json", kind="pair", summary=facts | {"registration": registration})
    nothing = np.zeros_like(cloud)
    masks = {"cloud_cloudy": cloud, "shadow_cloudy": nothing, "cloud_clear": nothing, "shadow_clear": nothing}
    masks |= {f"known_{role}": np.ones_like(nothing, bool) for role in ("cloudy", "clear")}
    masked = xr.Dataset(
        {name: (("y", "x"), mask) for name, mask in masks.items()}, attrs={"provenance": provenance | {"masks": {"method": "scl"}}}
    )
    save_dataset(with_grid(masked, GRID.to_geobox()), folder / f"mask/west/{pair.id}.json", kind="mask", summary={})
    write_truth(folder / f"simulate/truth/ITEM-o{number}.tif", truth)


def write_truth(path: Path, truth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": len(truth), "height": SIDE, "width": SIDE, "nodata": 65535}
    with rasterio.open(path, "w", **profile, crs=GRID.crs, transform=rasterio.Affine(*GRID.transform)) as file:
        file.write(truth)
        file.descriptions = BANDS


def write_world(folder: Path) -> None:
    optical = [{"item": f"ITEM-o{n}", "truth": f"truth/ITEM-o{n}.tif"} for n in (1, 2)]
    sar = [{"item": f"ITEM-s{n}", "displacement": {"dy_px": 1.25, "dx_px": -1.9}} for n in (1, 2)]
    write_json(folder / "simulate/world.json", {"areas": {"west": {"grid": GRID.model_dump(mode="json"), "optical": optical, "sar": sar}}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny results tree, made by the real steps from the pair onwards."""
    folder = tmp_path_factory.mktemp("results")
    lock = make_lock()
    write_text(folder / "query/west.json", lock.to_json())
    write_world(folder)
    write_ledger(folder / "query/west.ledger.csv", [Entry("query", "west", "", "OVERCAST", "", "refused", NASTY)])
    write_ledger(folder / "ingest/west/o1.ledger.csv", [Entry("ingest", "west", "o1", "ITEM-o1", "B11", "partly", "truncated at byte 17")])
    lost = {"lost": [{"asset": "B11", "reason": "truncated at byte 17"}], "warnings": ["no baseline stated"]}
    write_manifest(folder / "ingest/west/o1.json", kind="scene", summary=lost)
    cut = PatchSettings(size_px=32, block_patches=1, buffer_px=8)
    for number in (1, 2):
        write_pair(folder, number, lock)
        pair, masks = (folder / step / f"west/p{number}.json" for step in ("align", "mask"))
        patch_pair(pair, masks, folder / f"patch/west/p{number}.json", cut)
    dataset = folder / "pack/dataset.json"
    pack_patches([folder / f"patch/west/p{number}.json" for number in (1, 2)], dataset, PackSettings(shard_patches=8))
    for run, use_sar in (("afsst", True), ("no-sar", False)):
        network = {"width": 8, "head_dim": 8, "levels": 1, "blocks": 1, "use_sar": use_sar}
        values = {"network": network, "steps": 2, "batch_size": 2, "crop_px": 16, "warmup_steps": 1, "validate_every": 1, "device": "cpu"}
        checkpoint = folder / f"train/{run}/checkpoint.safetensors"
        train_network(dataset, checkpoint, load_settings(TrainSettings, values, where="test"))
        evaluate_checkpoint(dataset, checkpoint, folder / f"evaluate/{run}/scores.csv", EvaluateSettings(examples=2, device="cpu"))
        inputs = folder / "align/west/p1.json", folder / "mask/west/p1.json"
        cleared = PredictSettings(tile_px=64, overlap_px=16, device="cpu")
        predict_scene(checkpoint, inputs, folder / f"predict/{run}/west/p1.tif", cleared)
    return folder


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_page(finished, tmp_path_factory.mktemp("page"))


def make_page(results: Path, folder: Path, **options: Any) -> str:
    write_report(results, folder / "index.html", ReportSettings(title="A <title> & more"), **options)
    return (folder / "index.html").read_text()


Describe = Callable[[Results], list[Block]]


@pytest.fixture
def change(finished: Path, tmp_path: Path) -> Callable[..., str]:
    """One section, made from a copy of the results in which something was changed."""

    def make(edit: Callable[[Path], object], describe: Describe, *, runs: tuple[str, ...] = ("afsst", "no-sar")) -> str:
        shutil.copytree(finished, tmp_path / "results")
        edit(tmp_path / "results")
        return render_page("t", [Section("only", "Only", describe(read_results(tmp_path / "results", runs)))])

    return make


def show_scenes(results: Results) -> list[Block]:
    return describe_scenes(results, choose_stretch(results), picture_px=64)


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def set_differences(summary: Any, **chosen: tuple[float, float, float]) -> None:
    """Every baseline clearly beaten in every metric, but for those chosen as BASELINE_METRIC=(mean, low, high)."""
    for baseline in ("copy", "mean", "fill"):
        for metric in ("psnr", "ssim"):
            mean, low, high = chosen.get(f"{baseline}_{metric}", (3.0, 2.0, 4.0))
            summary["network_minus"][baseline][metric]["by_block"] = {"mean": mean, "low": low, "high": high, "n": 5, "n_groups": 4}


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.findall(r"https?://", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page))
    assert "<script" not in page
    assert set(re.findall(r'src="(data:image/png;base64,)?', page)) == {"data:image/png;base64,"}
    assert len(page) < 8e6


def test_every_section_is_there_and_complete(page: str) -> None:
    assert re.findall(r'<section id="([\w-]+)">', page) == list(SECTIONS)
    assert 'class="missing"' not in page


def test_equal_results_give_equal_bytes(finished: Path, page: str, tmp_path: Path) -> None:
    assert make_page(finished, tmp_path) == page


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "<title>A &lt;title&gt; &amp; more</title>" in page
    assert "&lt;b&gt;98 % cloud &amp; more&lt;/b&gt;" in section(page, "left-out")
    assert NASTY not in page


def test_scores_on_the_page_are_those_of_the_summary(finished: Path, page: str) -> None:
    summary = json.loads((finished / "evaluate/afsst/summary.json").read_text())
    for method in ("network", "copy", "mean", "fill"):
        assert f"{summary['scores'][method]['cloudy']['psnr']['mean']:.2f}" in section(page, "scores")
    counts = json.loads((finished / "pack/dataset.json").read_text())["summary"]["counts"]
    assert ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test")) in section(page, "result")


def test_baselines_that_win_are_named_in_the_first_sentences(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "evaluate/afsst/summary.json", lambda s: set_differences(s, fill_psnr=(-1.25, -2.0, -0.5)))

    said = change(edit, describe_result, runs=("afsst",))
    assert "It is behind the smooth fill by 1.25 dB PSNR" in said
    assert said.index("is behind") < said.index("It beats")
    assert 'class="bad"' in said


def test_a_network_that_wins_everywhere_is_said_to(change: Callable[..., str]) -> None:
    said = change(lambda folder: edit_json(folder / "evaluate/afsst/summary.json", set_differences), describe_result, runs=("afsst",))
    assert "It beats the copy of the cloudy image by 3.00 dB PSNR and 3.0000 SSIM" in said
    assert "behind" not in said
    assert "not clearly" not in said
    assert 'class="good"' in said


@pytest.mark.parametrize("interval", [(0.5, -0.1, 1.0), (0.5, None, None)])
def test_a_lead_within_its_interval_is_not_called_a_win(change: Callable[..., str], interval: tuple[Any, ...]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "evaluate/afsst/summary.json", lambda s: set_differences(s, mean_ssim=interval))

    said = change(edit, describe_result, runs=("afsst",))
    assert "It is ahead of the training mean by 0.5000 SSIM, but not clearly" in said
    assert "the training mean by 3.00 dB PSNR and" not in said
    assert 'class="good"' not in said


def test_scores_on_training_ground_are_not_called_held_out(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "evaluate/afsst/summary.json", lambda summary: summary.update(split="train"))

    said = change(edit, describe_result, runs=("afsst",))
    assert "held-out ground" not in said
    assert "memory and not skill" in said


def test_runs_are_compared_patch_by_patch(finished: Path, page: str) -> None:
    tables = {}
    for run in ("afsst", "no-sar"):
        with (finished / f"evaluate/{run}/scores.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if (row["method"], row["region"]) == ("network", "cloudy")]
        tables[run] = np.array([float(row["psnr"]) for row in rows])
    difference = np.nanmean(tables["afsst"] - tables["no-sar"])
    assert f">{difference:+.2f}<" in section(page, "result")


def test_only_the_runs_asked_for_are_shown(finished: Path, tmp_path: Path) -> None:
    page = make_page(finished, tmp_path, runs=("no-sar",))
    for name in ("result", "scenes", "scores", "examples", "training"):
        assert "afsst" not in section(page, name), name
        assert "no-sar" in section(page, name), name
    assert "run against run" not in page


def test_a_run_trained_on_another_dataset_is_pointed_out(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "evaluate/no-sar/summary.json", lambda summary: summary["checkpoint"].update(dataset_sha256="0" * 64))

    assert "no-sar: trained on another version of the dataset" in change(edit, describe_result)


def test_a_scene_left_over_from_an_earlier_training_is_pointed_out(page: str, change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "predict/no-sar/west/p1.json", lambda record: record["checkpoint"].update(weights_sha256="0" * 64))

    assert "no-sar: cleared with other weights than those that are scored" in change(edit, show_scenes)
    assert "other weights" not in page


def test_the_copy_is_compared_with_the_truth_on_cloudy_pixels(finished: Path, page: str) -> None:
    with rasterio.open(finished / "simulate/truth/ITEM-o1.tif") as file:
        truth = file.read().astype(float) / 10_000
    _, cloud = make_ground(np.random.default_rng(1))
    region = cloud > 0
    region[:, -10:] = False
    psnr = -10 * np.log10(np.mean((0.7 - truth[:, region]) ** 2))
    said = section(page, "scenes")
    assert f">{psnr:.2f}<" in said
    assert "simulated without clouds" in said
    assert "predict/afsst/west/p1.tif" in said


def test_without_a_simulated_world_the_clear_scene_stands_for_the_truth_with_its_date(change: Callable[..., str]) -> None:
    said = change(lambda folder: shutil.rmtree(folder / "simulate"), show_scenes)
    assert "2021-06-03, -5.0 days: another day" in said
    assert "against the truth" not in said


def test_without_a_simulated_world_no_true_shift_is_shown(change: Callable[..., str]) -> None:
    said = change(lambda folder: shutil.rmtree(folder / "simulate"), describe_pairs)
    assert "data is not simulated" in said
    assert "true dy" not in said


def test_shifts_are_shown_beside_the_true_ones(page: str) -> None:
    said = section(page, "pairs")
    assert ">+1.25<" in said
    assert ">0.100<" in said, "what is left: dx is -2.0, truly -1.9"
    assert ">2.274<" in said, "what is left of the refused one: all of it"
    assert "SAR lay 22.7 to 22.7 m from the clear image before registration and lies 1.0 to 22.7 m from it after." in said


def read_table(page: str, heading: str) -> list[dict[str, str]]:
    """Rows of the first table that has that heading, by their headings."""
    table = next(table for table in re.findall(r"<table.*?</table>", page, re.DOTALL) if f">{heading}<" in table)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_each_error_stands_under_its_heading(page: str) -> None:
    first, second = read_table(section(page, "pairs"), "off before, m")
    assert (first["off before, m"], first["off after, m"], first["off after, px"]) == ("22.7", "1.0", "0.100")
    assert (second["off before, m"], second["off after, m"], second["off after, px"]) == ("22.7", "22.7", "2.274")
    assert (first["true dy, px"], first["true dx, px"]) == ("+1.25", "-1.90")


def err(folder: Path) -> None:
    """Products that all err, as those of Gaofen do, and a cloudy image that was registered too."""

    def state(world: Any) -> None:
        facts = world["areas"]["west"]
        facts["optical"].append({"item": "ITEM-c1", "truth": None, "error_m": [20.0, 0.0]})
        for scene, error in zip(
            (*facts["optical"], *facts["sar"]), ([50.0, 40.0], [20.0, 0.0], [20.0, 0.0], [0.0, -10.0], [0.0, -10.0]), strict=True
        ):
            scene.pop("displacement", None)
            scene["error_m"] = error

    edit_json(folder / "simulate/world.json", state)
    moved = make_registration(verdict="applied") | {"dy_px": -4.0, "dx_px": 3.1}
    edit_json(folder / "align/west/p1.json", lambda manifest: manifest["summary"].update(registration_cloudy=moved))


def test_the_cloudy_image_has_its_own_line_with_its_error_before_and_after(change: Callable[..., str]) -> None:
    said = change(err, describe_pairs)
    assert "The cloudy image lay 50.0 to 50.0 m from the clear image before registration and lies 1.0 to 1.0 m from it after." in said
    assert ">cloudy<" in said
    assert ">0.100<" in said


def test_the_truth_is_laid_where_the_clear_scene_lies(finished: Path, change: Callable[..., str]) -> None:
    """A pair that lies 20 m too far east is compared with the truth as it looks there."""
    with rasterio.open(finished / "simulate/truth/ITEM-o1.tif") as file:
        truth = file.read().astype(float) / 10_000
    _, cloud = make_ground(np.random.default_rng(1))
    region = cloud > 0
    region[:, -10:], region[:, :2] = False, False
    psnr = -10 * np.log10(np.mean((0.7 - np.roll(truth, 2, axis=2)[:, region]) ** 2))
    assert f">{psnr:.2f}<" in change(err, show_scenes)


def test_what_was_left_out_is_listed_with_its_reason(page: str) -> None:
    said = section(page, "left-out")
    for words in ("OVERCAST", "B11: truncated at byte 17", "no baseline stated", "patch.min_valid 0.9", "windows disagree: 3 of 4"):
        assert words in said, words


def refuse_pair(folder: Path) -> None:
    """Pair p1 as `align` and `patch` leave it when a scene of it was refused."""
    why = "the clear scene: 0.0% of the ground is valid"
    unmeasured = make_registration(verdict="refused") | {"n_laid": 0, "reason": why}
    edit_json(folder / "align/west/p1.json", lambda manifest: manifest["summary"].update(refused=why, registration=unmeasured))
    edit_json(folder / "patch/west/p1.json", lambda manifest: manifest["summary"].update(patches=[], pair_refused=why))


def test_a_pair_that_is_not_used_is_shown_as_such_and_not_as_a_refused_shift(change: Callable[..., str]) -> None:
    said = change(refuse_pair, lambda results: [*describe_pairs(results), *describe_losses(results)])
    assert ">not used<" in said
    assert "A scene of these pairs was refused" in said
    assert said.count("the clear scene: 0.0% of the ground is valid") == 1
    assert ">west p1<" not in said, "no shift of it was measured, so none was refused"
    assert ">west p2<" in said


def give_up_pair(folder: Path) -> None:
    """Pair p1 as `align` and `patch` leave it when no field was found for it on a coarser grid, where no window was laid on its own."""
    beyond = "on pixels of 20 m: shifts of up to (5.93, 0.28) px are beyond 4.0, too near the end of the search range"
    why = f"placed by coefficients: SAR: {beyond}"
    unfound = make_registration(verdict="refused") | {"n_laid": 0, "status": "out_of_range", "reason": beyond, "windows": []}
    edit_json(folder / "align/west/p1.json", lambda manifest: manifest["summary"].update(refused=why, registration=unfound))
    edit_json(folder / "patch/west/p1.json", lambda manifest: manifest["summary"].update(patches=[], pair_refused=why))
    empty = [{"id": "w", "reason": "x", "setting": "min_valid", "value": 0.0, "limit": 0.9}]
    edit_json(folder / "patch/west/p1.json", lambda manifest: manifest["summary"].update(refused=7 * empty))


def test_a_registration_that_cost_its_pair_is_listed_and_its_windows_are_no_faults_of_their_own(change: Callable[..., str]) -> None:
    said = change(give_up_pair, lambda results: [*describe_pairs(results), *describe_losses(results)])
    assert {row["pair"]: row["reason"] for row in read_table(said[said.index("Refused registrations") :], "reason")}["west p1"].startswith(
        "on pixels of 20 m: shifts of up to (5.93, 0.28) px are beyond 4.0"
    )
    assert "None of" not in said
    assert "Windows of pairs that are not used at all (1) are not counted." in said
    assert "0.000 to" not in said, "no share of a pair that holds nothing"


def test_without_truth_what_was_measured_is_said_in_a_sentence_per_kind(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        shutil.rmtree(folder / "simulate")
        moved = make_registration(verdict="applied") | {"mean_shift_px": 11.28, "sigma_px": 0.1, "pixel_m": 8.0}
        for name, cloudy in (("p1", moved), ("p2", moved | {"mean_shift_px": 7.0, "sigma_px": 0.08})):
            edit_json(
                folder / f"align/west/{name}.json", lambda manifest, found=cloudy: manifest["summary"].update(registration_cloudy=found)
            )

    said = change(edit, describe_pairs)
    after = "by the field that was taken out; predicted error after, as a standard deviation per axis: at most"
    assert f"The cloudy image lay 56.0 to 90.2 m from the clear image, {after} 0.10 px (0.8 m)." in said
    assert f"SAR lay 23.6 to 23.6 m from the clear image, {after} 0.04 px (0.4 m). 1 of 2 fields was not found." in said


def test_without_truth_and_without_a_field_that_is_said(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        shutil.rmtree(folder / "simulate")
        unfound = make_registration(verdict="refused")
        edit_json(folder / "align/west/p1.json", lambda manifest: manifest["summary"].update(registration=unfound))

    assert "SAR was never laid onto the clear image: none of 2 fields was found." in change(edit, describe_pairs)


def test_a_long_list_is_cut_and_says_where_the_rest_is(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        edit_json(folder / "query/west.json", lambda lock: lock.update(refused=70 * lock["refused"]))

    said = change(edit, describe_losses)
    assert "The first 60 of 70 are shown; the locks in query/ list all." in said
    assert said.count("OVERCAST") == 60
    assert "the manifests in ingest/" not in said


def test_what_is_needed_to_make_it_again_is_there(finished: Path, page: str) -> None:
    import hashlib

    said = section(page, "making")
    assert hashlib.sha256((finished / "pack/dataset.json").read_bytes()).hexdigest() in said
    for words in ("B02, B03, B04, B08", "VV, VH", "train.network.use_sar", "torch", OPTICAL_UNITS, SAR_UNITS):
        assert words in said, words
    assert re.search(r"train\.network\.use_sar</td><td[^>]*><strong>true</strong>", said), "settings in which runs differ are marked"


def test_an_empty_folder_gives_a_page_that_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page = make_page(tmp_path / "results", tmp_path)
    for name, step in zip(SECTIONS[:6], ("evaluate", "predict", "evaluate", "evaluate", "train", "query"), strict=True):
        assert f"run <code>sereno {step}</code>" in section(page, name), name
    for step in ("query", "ingest", "patch", "align"):
        assert f"run <code>sereno {step}</code>" in section(page, "left-out"), step


@pytest.mark.parametrize("step", ["query", "ingest", "align", "mask", "patch", "pack", "train", "evaluate", "predict"])
def test_a_missing_step_leaves_a_page_that_says_so(finished: Path, tmp_path: Path, step: str) -> None:
    shutil.copytree(finished, tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / step)
    page = make_page(tmp_path / "results", tmp_path, runs=("afsst", "no-sar"))
    assert re.findall(r'<section id="([\w-]+)">', page) == list(SECTIONS)
    assert f"run <code>sereno {step}</code>" in page


def find_captions(said: str) -> list[str]:
    return [words.strip() for words in re.findall(r"<figcaption>([^<]*)", said)]


def test_the_same_patches_are_shown_at_the_first_the_middle_and_the_last_validation(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        for run, steps in {"afsst": (0, 50, 100, 150, 200), "no-sar": (0, 200)}.items():
            shutil.rmtree(folder / f"train/{run}/pictures", ignore_errors=True)
            (folder / f"train/{run}/pictures").mkdir()
            for step in steps:
                name_picture(folder / "train" / run, step).write_bytes(to_png(np.full((40, 40, 3), step, np.uint8)))

    said = change(edit, describe_progress)
    assert find_captions(said) == ["after 0 steps", "after 100 steps", "after 200 steps", "after 0 steps", "after 200 steps"]
    assert said.count("Validation patches while ") == 2


def test_training_draws_the_pictures_that_the_page_shows(page: str) -> None:
    captions = find_captions(section(page, "training"))
    assert captions[-3:] == ["after 0 steps", "after 1 steps", "after 2 steps"]
    assert "Parts of the loss, afsst" in captions


def test_old_results_without_pictures_and_without_parts_are_still_shown(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        for run in ("afsst", "no-sar"):
            shutil.rmtree(folder / f"train/{run}/pictures", ignore_errors=True)
            write_text(folder / f"train/{run}/history.csv", "step,lr,total,val_loss,val_psnr_db\n0,,,0.5,20\n5,0.1,0.25,0.125,21\n")

    said = change(edit, lambda results: describe_training(results) + describe_progress(results))
    assert find_captions(said) == ["Loss", "Validation"]


def test_no_example_patch_is_no_fault(change: Callable[..., str]) -> None:
    def edit(folder: Path) -> None:
        for path in folder.glob("evaluate/*/examples.npz"):
            path.unlink()

    assert "set <code>evaluate.examples</code> above 0" in change(edit, lambda results: describe_examples(results, choose_stretch(results)))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no/such") as caught:
        write_report(Path("no/such"), tmp_path / "index.html", ReportSettings())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index.html").exists()


def test_a_damaged_result_keeps_the_old_page(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("old")
    write_text(tmp_path / "results/evaluate/afsst/scores.csv", "id\n")
    write_text(tmp_path / "results/evaluate/afsst/summary.json", "{")
    with pytest.raises(StoreError, match=r"summary\.json"):
        make_page(tmp_path / "results", tmp_path)
    assert (tmp_path / "index.html").read_text() == "old"
