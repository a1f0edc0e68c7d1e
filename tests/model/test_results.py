"""The results tree as one record: what is there is read, what is not is nothing, what is damaged is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from sereno.model.results import find_error, find_true_shift, find_truth, list_cleared, read_examples, read_results
from sereno.pipeline.errors import StoreError
from sereno.pipeline.pairs import GridRecord, Lock, Pair, SceneRecord
from sereno.pipeline.store import write_json, write_manifest, write_text

MOMENT = "2021-06-08T10:20:00Z"


def make_item(name: str, kind: str) -> dict[str, Any]:
    stated = {"item": f"ITEM-{name}", "collection": "x", "sensor": kind, "time": MOMENT}
    return stated | {"crs": "EPSG:32632", "bbox": (0, 0, 1, 1), "assets": {}}


def make_lock(area: str = "west") -> Lock:
    kinds = {"s": "sentinel1-rtc", "o": "sentinel2-l2a", "c": "sentinel2-l2a"}
    scenes = {
        name: SceneRecord.model_validate({"id": name, "items": [make_item(name, kind)], "sensor": kind, "time": MOMENT})
        for name, kind in kinds.items()
    }
    grid = GridRecord(crs="EPSG:32632", transform=(20, 0, 500_000, 0, -20, 5_000_000), shape=(8, 8))
    pair = Pair(id="p", sar="s", cloudy="o", clear="c", sar_gap_days=0.3, clear_gap_days=-5)
    return Lock(area=area, catalogue="x", grid=grid, scenes=scenes, pairs=(pair,), refused=())


def write_lock(folder: Path) -> None:
    write_text(folder / "query/west.json", make_lock().to_json())


def write_store(folder: Path, path: str, kind: str, summary: dict[str, Any]) -> None:
    write_manifest(folder / path, kind=kind, summary=summary)


def test_an_empty_folder_is_read_as_nothing(tmp_path: Path) -> None:
    found = read_results(tmp_path, ())
    assert (found.locks, found.aligned, found.patched, found.scenes, found.records, found.runs) == ({}, {}, {}, {}, [], ())
    assert found.dataset is None
    assert found.world is None
    assert list_cleared(found) == []
    assert find_error(found, "any") is None
    assert find_truth(found, "any") is None


def test_only_what_the_lock_names_is_read(tmp_path: Path) -> None:
    write_lock(tmp_path)
    write_store(tmp_path, "align/west/p.json", "pair", {"who": "ours"})
    write_store(tmp_path, "align/west/old.json", "pair", {"who": "left over"})
    write_store(tmp_path, "ingest/west/s.json", "scene", {"lost": []})
    found = read_results(tmp_path, ())
    assert found.aligned == {("west", "p"): {"who": "ours"}}
    assert found.scenes == {("west", "s"): {"lost": []}}
    assert found.patched == {}


def test_runs_without_names_are_those_with_scores(tmp_path: Path) -> None:
    for run in ("b", "a"):
        write_text(tmp_path / f"evaluate/{run}/scores.csv", "id,psnr\nx,1.5\n")
    write_text(tmp_path / "train/c/history.csv", "step\n1\n")
    assert [run.name for run in read_results(tmp_path, ()).runs] == ["a", "b"]
    named = read_results(tmp_path, ("c", "a")).runs
    assert [run.name for run in named] == ["c", "a"]
    assert named[0].history == [{"step": "1"}]
    assert named[0].summary is None
    assert named[1].scores == [{"id": "x", "psnr": "1.5"}]
    assert read_examples(named[1]) == {}


def test_a_cleared_scene_needs_its_image_its_record_and_its_pair(tmp_path: Path) -> None:
    write_lock(tmp_path)
    write_text(tmp_path / "evaluate/a/scores.csv", "id\n")
    write_json(tmp_path / "predict/a/west/p.json", {})
    assert list_cleared(read_results(tmp_path, ())) == []
    (tmp_path / "predict/a/west/p.tif").touch()
    write_json(tmp_path / "predict/a/west/old.json", {})
    (tmp_path / "predict/a/west/old.tif").touch()
    write_store(tmp_path, "align/west/old.json", "pair", {"who": "left over from an earlier lock"})
    assert list_cleared(read_results(tmp_path, ())) == []
    write_store(tmp_path, "align/west/p.json", "pair", {})
    assert list_cleared(read_results(tmp_path, ())) == [("west", "p")]
    write_store(tmp_path, "align/west/p.json", "pair", {"refused": "given up since"})
    assert list_cleared(read_results(tmp_path, ())) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "evaluate/a/scores.csv", "id\n")
    write_text(tmp_path / "evaluate/a/summary.json", '{"half": ')
    with pytest.raises(StoreError, match=r"summary\.json"):
        read_results(tmp_path, ())


def test_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_lock(tmp_path)
    write_store(tmp_path, "align/west/p.json", "mask", {})
    with pytest.raises(StoreError, match="'mask'"):
        read_results(tmp_path, ())


def test_truth_and_true_shifts_are_found_by_item_in_pixels_of_the_grid(tmp_path: Path) -> None:
    write_lock(tmp_path)
    world = {
        "areas": {
            "west": {
                "grid": {"transform": [10, 0, 0, 0, -10, 0]},
                "optical": [{"item": "ITEM-o", "truth": "truth/ITEM-o.tif"}, {"item": "ITEM-c", "truth": None}],
                "sar": [{"item": "ITEM-s", "displacement": {"dy_px": 3.0, "dx_px": -1.0}}],
            }
        }
    }
    write_json(tmp_path / "simulate/world.json", world)
    found = read_results(tmp_path, ())
    assert find_true_shift(found, ("west", "p"), "sar") == (1.5, -0.5)  # a grid of 20 m has half as many pixels
    assert find_true_shift(found, ("west", "p"), "cloudy") is None
    assert find_truth(found, "ITEM-o") is None
    (tmp_path / "simulate/truth").mkdir()
    (tmp_path / "simulate/truth/ITEM-o.tif").touch()
    assert find_truth(found, "ITEM-o") == tmp_path / "simulate/truth/ITEM-o.tif"
    assert find_truth(found, "ITEM-c") is None


def test_products_that_all_err_are_off_by_the_difference_of_their_errors(tmp_path: Path) -> None:
    write_lock(tmp_path)
    errors = {"ITEM-o": [30.0, 10.0], "ITEM-c": [-10.0, 50.0], "ITEM-s": [-10.0, -30.0]}
    facts = [{"item": item, "error_m": error, "truth": None} for item, error in errors.items()]
    area = {"grid": {"transform": [8, 0, 0, 0, -8, 0]}, "optical": facts[:2], "sar": facts[2:]}
    write_json(tmp_path / "simulate/world.json", {"areas": {"west": area}})
    found = read_results(tmp_path, ())
    assert find_error(found, "ITEM-c") == (-10, 50)
    assert find_true_shift(found, ("west", "p"), "sar") == (4, 0)  # 80 m too far south, on a grid of 20 m
    assert find_true_shift(found, ("west", "p"), "cloudy") == (2, 2)


def test_the_checksum_is_that_of_the_manifest(tmp_path: Path) -> None:
    import hashlib

    write_store(tmp_path, "pack/dataset.json", "dataset", {"counts": {}})
    assert json.loads((tmp_path / "pack/dataset.json").read_text())["kind"] == "dataset"
    found = read_results(tmp_path, ())
    assert found.dataset == {"counts": {}}
    assert found.dataset_sha256 == hashlib.sha256((tmp_path / "pack/dataset.json").read_bytes()).hexdigest()
