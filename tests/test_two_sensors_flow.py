"""Fusion of two sensors from a simulated world to the dataset: Landsat fine, MODIS coarse; and what a user may get wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from data_steps import run_steps
from pydantic import ValidationError

from sereno.pipeline.align import align_job
from sereno.pipeline.averages import average_blocks
from sereno.pipeline.config import AlignSettings, IngestSettings, PipelineSettings, QuerySettings, SimulateSettings
from sereno.pipeline.errors import ConfigError, MissingError, PermanentError, SerenoError
from sereno.pipeline.estimate import estimate_area
from sereno.pipeline.imagers import COVERED
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.ledger import ledger_of, read_ledger
from sereno.pipeline.pairs import Lock
from sereno.pipeline.query import query_pairs
from sereno.pipeline.simulate import simulate_world
from sereno.pipeline.store import open_dataset, read_manifest, store_of
from sereno.pipeline.twins import RESPONSE

BANDS = ["B03", "B04", "B8A", "B12"]
BOUNDS = [499215, 5040015, 506415, 5047215]
VALUES: dict[str, Any] = {
    "task": "spatiotemporal-fusion",
    "simulate": {
        "cloudy_dates": 2,
        "first_day": "2021-06-08",
        "areas": {"a": {"epsg": 32632, "west_m": BOUNDS[0], "south_m": BOUNDS[1], "size_px": 720, "satellites": "landsat-modis"}},
    },
    "query": {
        "areas": {"a": {"epsg": 32632, "bounds_m": BOUNDS}},
        "optical_collections": ["landsat-c2-l2"],
        "coarse_collections": ["modis-09A1-061"],
        "resolution_m": 30,
        "origin_m": 15,
        "bands": BANDS,
    },
    "ingest": {"bands": BANDS},
    "mask": {"method": "auto"},
    "patch": {"size_px": 32, "buffer_px": 32, "max_target_cloud": 0.6, "min_valid": 0.4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lock, Path]:
    folder = tmp_path_factory.mktemp("two")
    return folder, *run_steps(folder, VALUES, "simulate")


def open_group(made: tuple[Path, Lock, Path]) -> Any:
    return open_dataset(made[0] / f"align/{made[1].groups[0].id}.json", kind="group")


def test_three_clear_dates_of_landsat_have_a_composite_of_modis_each(made: tuple[Path, Lock, Path]) -> None:
    _, lock, dataset = made
    [group] = lock.groups
    assert {role: lock.scene(name).sensor for role, name in group.scenes.items()} == {
        **{f"fine-{n}": "landsat-oli" for n in (1, 2, 3)},
        **{f"coarse-{n}": "modis-09a1" for n in (1, 2, 3)},
    }
    assert all(abs(group.gaps_days[f"coarse-{n}"] - group.gaps_days[f"fine-{n}"]) <= 4 for n in (1, 2, 3))
    cloudy = [entry for entry in lock.refused if "cloud cover" in entry.reason]
    assert {entry.item[:4] for entry in cloudy} == {"LC09", "MOD0"}
    summary = read_manifest(dataset, kind="dataset")["summary"]
    assert (summary["ratio"], summary["channels"]["fine"], summary["channels"]["coarse"]) == (16, BANDS, BANDS)
    assert (summary["scenes"]["fine-2"]["sensors"], summary["scenes"]["coarse-2"]["sensors"]) == (["landsat-oli"], ["modis-09a1"])
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    assert (train["fine"].shape[1:], train["coarse"].shape[1:]) == ((3, 4, 32, 32), (3, 4, 2, 2))


def test_no_pixel_of_landsat_is_interpolated(made: tuple[Path, Lock, Path]) -> None:
    """The product reaches eight pixels beyond the area on each side."""
    folder, lock, _ = made
    scene = open_dataset(folder / f"ingest/{lock.groups[0].scenes['fine-1']}.json", kind="scene")
    item = lock.scene(lock.groups[0].scenes["fine-1"]).items[0]
    with rasterio.open(folder / "simulate" / item.assets["B03"].href) as file:
        dn = file.read(1)[8:-8, 8:-8].astype(float)
    np.testing.assert_array_equal(scene["data"].values[0], np.rint((dn * 2.75e-5 - 0.2) * 10_000).clip(0))


def test_coarse_images_lie_on_the_fine_ones(made: tuple[Path, Lock, Path]) -> None:
    """The averaged fine image is more like the coarse one where it is than one coarse pixel beside it."""
    group = open_group(made)
    fine, coarse = group["fine-1"].sel(band="B8A").values, group["coarse-1"].sel(band="B8A").values.astype(float)
    means = average_blocks(fine, 16)
    clear = average_blocks(np.isin(group["scl_fine-1"].values, COVERED), 16) == 0

    def compare(step: int, axis: int) -> float:
        moved, valid = (np.roll(image, step, axis)[2:-2, 2:-2] for image in (coarse, group["valid_coarse-1"].values))
        both = clear[2:-2, 2:-2] & valid
        return float(np.corrcoef(means[2:-2, 2:-2][both], moved[both])[0, 1])

    assert compare(0, 0) > 0.9
    assert compare(0, 0) > max(compare(step, axis) for axis in (0, 1) for step in (-1, 1)) + 0.1


def test_the_gain_between_the_sensors_is_measured_and_told(made: tuple[Path, Lock, Path]) -> None:
    group, dataset = open_group(made), made[2]
    for band, fit in group.attrs["provenance"]["radiometry"].items():
        truth = RESPONSE[{"B8A": "B08"}.get(band, band)]
        middle = float(np.median(group["fine-2"].sel(band=band).values)) / 10_000
        assert fit["gain"] + fit["offset"] / middle == pytest.approx(truth, abs=0.04), band
    assert set(read_manifest(dataset, kind="dataset")["summary"]["radiometry"]) == set(BANDS)
    assert "## Coarse images against fine ones" in dataset.with_suffix(".md").read_text()


def test_clouds_of_both_sensors_are_kept_out(made: tuple[Path, Lock, Path]) -> None:
    folder, lock, _ = made
    group, masks = open_group(made), open_dataset(folder / f"mask/{lock.groups[0].id}.json", kind="mask")
    assert masks.attrs["provenance"]["masks"]["method"] == "scl"
    for date in (1, 2, 3):
        covered = np.isin(group[f"scl_fine-{date}"].values, COVERED)
        assert ((masks[f"cloud_fine-{date}"].values >= 128) | (masks[f"shadow_fine-{date}"].values >= 128))[covered].all()
    assert any(not group[f"valid_coarse-{date}"].values.all() for date in (1, 2, 3))
    facts = [group.attrs["provenance"][f"coarse-{date}"] for date in (1, 2, 3)]
    assert {fact["clear_share"] for fact in facts} == {0.75}


def test_a_plan_of_two_sensors_counts_what_is_read(made: tuple[Path, Lock, Path]) -> None:
    settings = PipelineSettings.model_validate(VALUES | {"query": VALUES["query"] | {"catalogue": "x"}})
    plan = estimate_area(made[1], settings.plan)
    assert (plan.scenes, plan.pairs, plan.fetch.assets) == (6, 1, 6 * (len(BANDS) + 1))
    assert plan.fetch.bytes > 0


def test_the_ledger_names_every_item_of_both_searches(made: tuple[Path, Lock, Path]) -> None:
    entries = read_ledger(ledger_of(made[0] / "query/a.json"))
    assert len({entry.item for entry in entries if entry.item}) == 10
    assert {entry.reason.split(":")[0] for entry in entries if "search" in entry.reason} == {"optical search", "coarse search"}


def query(made: tuple[Path, Lock, Path], output: Path, **changes: Any) -> None:
    settings = QuerySettings.model_validate({**VALUES["query"], "catalogue": str(made[0] / "simulate"), **changes})
    query_pairs("a", output / "a.json", settings, task="spatiotemporal-fusion")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"end": "2021-06-30"}, MissingError,
         r"among 3 optical and \d coarse items; 2 refused .* no series of three clear dates .* lengthen start"),
        ({"exclude": ["MOD09A1.A2021169.h18v04.061.2021186120000"]}, MissingError,
         r"LC09_\S+20210624_02_T1: needs a clear coarse image within 1 days: the nearest, MOD09A1\.\S+, is \d+\.\d\d days away; raise"),
        ({"coarse_collections": ["modis-09Q1-061"]}, PermanentError,
         r"none of the collections modis-09Q1-061; it has landsat-c2-l2, modis-09A1-061: .* in pipeline.query.coarse_collections"),
        ({"bands": ["B03", "B05"]}, MissingError, r"has no B05, needed by pipeline.query.bands"),
        ({"resolution_m": 25, "origin_m": 0}, ConfigError, r"480 m are 19.2 pixels of the grid along each side, not a whole number"),
        ({"origin_m": 0}, ConfigError, r"left and top must be multiples of 480 m"),
    ],
)  # fmt: skip
def test_what_cannot_be_grouped_is_one_line(
    made: tuple[Path, Lock, Path], tmp_path: Path, changes: dict[str, Any], kind: type[SerenoError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        query(made, tmp_path, **changes)
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coarse_m": 100}, "'coarse_m' 100 must be a whole multiple of 'resolution_m' 30, it is 3.333 times"),
        ({"coarse_collections": [], "coarse_catalogue": "planetary-computer"}, "'coarse_catalogue' needs 'coarse_collections'"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QuerySettings.model_validate(VALUES["query"] | changes)


def test_a_scale_that_an_item_states_otherwise_refuses_it_by_name(made: tuple[Path, Lock, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made[0] / "simulate", copy)
    for path in (copy / "items/modis-09A1-061").glob("MOD*.json"):
        item = json.loads(path.read_text())
        item["assets"]["sur_refl_b04"]["raster:bands"][0]["scale"] = 0.001
        path.write_text(json.dumps(item))
    settings = QuerySettings.model_validate({**VALUES["query"], "catalogue": str(copy)})
    with pytest.raises(MissingError, match=r"its asset sur_refl_b04 states scale 0.001 where it is 0.0001 in MODIS 09A1"):
        query_pairs("a", tmp_path / "a.json", settings, task="spatiotemporal-fusion")


def test_coarse_images_may_be_averages_of_a_finer_sensor_without_its_clouds(made: tuple[Path, Lock, Path], tmp_path: Path) -> None:
    """Here Landsat stands on both sides: its coarse image is the mean of what its own bits call clear."""
    query(made, tmp_path, coarse_collections=["landsat-c2-l2"], coarse_m=240)
    lock = Lock.read(tmp_path / "a.json")
    group = lock.groups[0]
    fine, coarse = (lock.scene(group.scenes[f"{kind}-1"]) for kind in ("fine", "coarse"))
    assert (fine.item, fine.zoom, coarse.zoom, coarse.clear_share) == (coarse.item, 1, 8, 0.75)
    scenes = []
    for record in (fine, coarse):
        ingest_scene(tmp_path / "a.json", record.id, tmp_path / f"{record.id}.json", IngestSettings(bands=("B03",)))
        scenes.append(open_dataset(tmp_path / f"{record.id}.json", kind="scene"))
    clear = ~np.isin(scenes[0]["scl"].values, COVERED)
    share = average_blocks(clear, 8)
    assert (share < 0.75).any()
    np.testing.assert_array_equal(scenes[1]["valid"].values, share >= 0.75)
    means = average_blocks(scenes[0]["data"].values[0] * clear, 8) / np.maximum(share, 1e-9)
    both = scenes[1]["valid"].values
    assert np.abs(scenes[1]["data"].values[0][both] - means[both]).max() <= 0.5001


@pytest.mark.slow
def test_sentinel_2_and_modis_of_two_catalogues_form_a_series_of_ratio_48(tmp_path: Path) -> None:
    """Two worlds of one seed and place hold the same ground."""
    square = {"epsg": 32632, "west_m": 499_200, "south_m": 5_040_000, "size_px": 480}
    for name, changes in (("fine", {"cloudy_dates": 5}), ("coarse", {"cloudy_dates": 2})):
        area = square | ({"satellites": "landsat-modis"} if name == "coarse" else {})
        world = SimulateSettings.model_validate({"first_day": "2021-06-08", "areas": {"a": area}, **changes})
        simulate_world(tmp_path / name / "world.json", world)
    settings = QuerySettings.model_validate(
        {
            "catalogue": str(tmp_path / "fine"),
            "coarse_catalogue": str(tmp_path / "coarse"),
            "coarse_collections": ["modis-09A1-061"],
            "areas": {"a": {"epsg": 32632, "bounds_m": [499_200, 5_040_000, 504_000, 5_044_800]}},
            "bands": ["B04", "B8A"],
            "clear_cover_pct": 10,
        }
    )
    query_pairs("a", tmp_path / "a.json", settings, task="spatiotemporal-fusion")
    lock = Lock.read(tmp_path / "a.json")
    group, bands = lock.groups[0], IngestSettings(bands=("B04", "B8A"))
    for name in lock.scenes:
        ingest_scene(tmp_path / "a.json", name, tmp_path / f"{name}.json", bands)
    align_job(
        (tmp_path / "a.json", group.id), [tmp_path / f"{name}.json" for name in group.scene_ids], tmp_path / "g.json", AlignSettings()
    )
    found = open_dataset(tmp_path / "g.json", kind="group")
    assert {lock.scene(name).catalogue for role, name in group.scenes.items() if role.startswith("coarse")} == {str(tmp_path / "coarse")}
    assert (found.attrs["ratio"], found["fine-1"].shape, found["coarse-1"].shape) == (48, (2, 480, 480), (2, 10, 10))
    valid, clear = found["valid_coarse-1"].values, average_blocks(np.isin(found["scl_fine-1"].values, COVERED), 48) == 0
    means = average_blocks(found["fine-1"].sel(band="B8A").values, 48)
    assert np.corrcoef(means[valid & clear], found["coarse-1"].sel(band="B8A").values[valid & clear])[0, 1] > 0.9
