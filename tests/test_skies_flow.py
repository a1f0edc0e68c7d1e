"""Clear scenes alone become a dataset: from a simulated world to packed patches, with inputs under simulated skies whose truth is known."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sereno.pipeline.align import align_pair
from sereno.pipeline.config import AlignSettings, IngestSettings, MaskSettings, PackSettings, PatchSettings, QuerySettings, SimulateSettings
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.pack import pack_patches
from sereno.pipeline.pairs import Lock
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.query import query_pairs
from sereno.pipeline.simulate import simulate_world
from sereno.pipeline.store import open_dataset, read_manifest, verify_store

LEFT, BOTTOM, SIZE = 498_400.0, 5_040_000.0, 432
QUERY = {
    "areas": {"tiny": {"epsg": 32632, "bounds_m": [LEFT, BOTTOM, LEFT + 10 * SIZE, BOTTOM + 10 * SIZE]}},
    "inputs": "simulated",
    "skies": 2,
    "max_pairs": 2,
    "max_gap_sar_days": 6,
    "bands": ("B02", "B03", "B04", "B08"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the verbs one after the other, two skies of the clear scene nearest to a SAR scene."""
    folder = tmp_path_factory.mktemp("skies")
    world: dict[str, Any] = {
        "seed": 3,
        "cloudy_dates": 1,
        "areas": {"tiny": {"epsg": 32632, "west_m": LEFT, "south_m": BOTTOM, "size_px": SIZE}},
    }
    simulate_world(folder / "simulate/world.json", SimulateSettings.model_validate(world))
    lock = folder / "query/tiny.json"
    query_pairs("tiny", lock, QuerySettings.model_validate({**QUERY, "catalogue": str(folder / "simulate")}))
    content = Lock.read(lock)
    for scene in content.scenes:
        ingest_scene(lock, scene, folder / f"ingest/{scene}.json", IngestSettings(bands=QUERY["bands"]))
    for pair in content.pairs:
        scenes = [folder / f"ingest/{name}.json" for name in (pair.sar, pair.cloudy, pair.clear)]
        align_pair((lock, pair.id), (scenes[0], scenes[1], scenes[2]), folder / f"align/{pair.id}.json", AlignSettings())
        mask_pair(folder / f"align/{pair.id}.json", folder / f"mask/{pair.id}.json", MaskSettings())
        arguments = (folder / f"align/{pair.id}.json", folder / f"mask/{pair.id}.json", folder / f"patch/{pair.id}.json")
        patch_pair(*arguments, PatchSettings(size_px=64, buffer_px=16))
    pack_patches([folder / f"patch/{pair.id}.json" for pair in content.pairs], folder / "pack/dataset.json", PackSettings(shard_patches=8))
    return folder


def names_of(results: Path) -> list[str]:
    return [pair.id for pair in Lock.read(results / "query/tiny.json").pairs]


def test_one_scene_is_input_and_target_of_two_pairs(results: Path) -> None:
    lock = Lock.read(results / "query/tiny.json")
    assert len(lock.pairs) == 2
    assert all(pair.cloudy == pair.clear and pair.id.endswith(f"-sky{pair.sky}") for pair in lock.pairs)
    assert not [scene for scene in lock.scenes.values() if (scene.cloud_cover_pct or 0) > 5]


def test_inputs_differ_in_their_skies_and_targets_do_not(results: Path) -> None:
    pairs = [open_dataset(results / f"align/{name}.json") for name in names_of(results)]
    for pair in pairs:
        lost = pair["cloud_truth"].values
        assert 0.02 < (lost > 128).mean() < 0.98
        assert pair.attrs["provenance"]["overlay"]["sun"] == "stated"
    np.testing.assert_array_equal(pairs[0]["clear"], pairs[1]["clear"])
    np.testing.assert_array_equal(pairs[0]["sar"], pairs[1]["sar"])
    assert (pairs[0]["cloud_truth"].values != pairs[1]["cloud_truth"].values).mean() > 0.3


def test_masks_of_the_input_hold_the_truth_and_what_lies_under_it(results: Path) -> None:
    for name in names_of(results):
        pair, masks = (open_dataset(results / f"{step}/{name}.json") for step in ("align", "mask"))
        cloud = masks["cloud_cloudy"].values
        valid = pair["valid_cloudy"].values
        assert (cloud[valid & (pair["cloud_truth"].values > 70)] >= 128).all()
        assert (cloud >= masks["cloud_clear"].values)[valid].all()
        assert read_manifest(results / f"mask/{name}.json", kind="mask")["summary"]["simulated"] == "known"


def test_patches_of_all_skies_of_one_ground_share_a_split(results: Path) -> None:
    summary = read_manifest(results / "pack/dataset.json", kind="dataset")["summary"]
    assert sum(summary["counts"].values()) > 20
    assert summary["leakage"]["shared_blocks"] == 0
    with (results / "pack/dataset.zarr/patches.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["pair"] for row in rows} == set(names_of(results))
    places: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row["block"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in places.values())
    verify_store(results / "pack/dataset.json")


def test_the_same_sky_is_laid_again_byte_for_byte(results: Path, tmp_path: Path) -> None:
    lock, name = results / "query/tiny.json", names_of(results)[1]
    pair = Lock.read(lock).pair(name)
    scenes = [results / f"ingest/{scene}.json" for scene in (pair.sar, pair.cloudy, pair.clear)]
    align_pair((lock, name), (scenes[0], scenes[1], scenes[2]), tmp_path / f"{name}.json", AlignSettings())
    assert (tmp_path / f"{name}.json").read_bytes() == (results / f"align/{name}.json").read_bytes()
