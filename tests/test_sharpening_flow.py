"""Pan-sharpening from a simulated world to the dataset, step by step: Sentinel-2 at ratio 2, Gaofen-6 PMS at ratio 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from data_steps import run_steps

from sereno.pipeline.align import align_job
from sereno.pipeline.config import PipelineSettings
from sereno.pipeline.errors import ConfigError, DataError
from sereno.pipeline.pairs import Lock
from sereno.pipeline.products import PAN_SHARES, PAN_SLIP_M
from sereno.pipeline.query import query_pairs
from sereno.pipeline.store import open_dataset, read_manifest, store_of, verify_store

SENTINEL = {
    "task": "pansharpening",
    "simulate": {"cloudy_dates": 3, "areas": {"a": {"epsg": 32632, "west_m": 498400, "south_m": 5040000, "size_px": 240}}},
    "query": {"areas": {"a": {"epsg": 32632, "bounds_m": [498400, 5040000, 500800, 5042400]}}, "clear_cover_pct": 60},
    "patch": {"size_px": 32, "buffer_px": 8},
}
GAOFEN = {
    "task": "pansharpening",
    "simulate": {
        "cloudy_dates": 1,
        "areas": {"a": {"epsg": 32632, "west_m": 499200, "south_m": 5040000, "size_px": 240, "satellites": "gaofen-pms"}},
    },
    "query": {
        "source": "gaofen",
        "resolution_m": 2,
        "areas": {"a": {"epsg": 32632, "bounds_m": [499200, 5040000, 501600, 5042400]}},
        "clear_cover_pct": 60,
    },
    "ingest": {"margin_px": 40, "check": "size"},
    "align": {"search_m": 50},
    "mask": {"method": "haze"},
    "patch": {"size_px": 128, "buffer_px": 48},
}


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lock, Path]:
    folder = tmp_path_factory.mktemp("sentinel")
    return folder, *run_steps(folder, SENTINEL, "simulate")


def test_bands_of_10_m_guide_those_of_20_m(sentinel: tuple[Path, Lock, Path]) -> None:
    _, lock, dataset = sentinel
    assert (lock.task, lock.pairs, len(lock.scenes)) == ("pansharpening", (), 2 * len(lock.groups))
    summary = read_manifest(dataset, kind="dataset")["summary"]
    assert (summary["task"], summary["ratio"], summary["resolution_m"]) == ("pansharpening", 2, 10.0)
    assert summary["channels"]["pan"] == ["B02", "B03", "B04", "B08"]
    assert summary["channels"]["ms"] == ["B05", "B06", "B07", "B8A", "B11", "B12"]
    assert summary["channels"]["mask"] == ["cloud", "shadow", "valid"]
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    count = summary["counts"]["train"]
    shapes = {name: train[name].shape for name in ("pan", "ms", "mask")}
    assert shapes == {"pan": (count, 4, 32, 32), "ms": (count, 6, 16, 16), "mask": (count, 3, 16, 16)}
    assert train["ms"].metadata.dimension_names == ("patch", "band", "row_coarse", "col_coarse")
    assert verify_store(dataset) > 9


def test_coarse_bands_are_those_of_the_product_to_the_last_bit(sentinel: tuple[Path, Lock, Path]) -> None:
    folder, lock, _ = sentinel
    group = lock.groups[0]
    ms = open_dataset(folder / f"ingest/{group.scenes['ms']}.json", kind="scene")
    aligned = open_dataset(folder / f"align/{group.id}.json", kind="group")
    np.testing.assert_array_equal(aligned["ms"].values, ms["data"].values)
    assert ms["data"].shape == (6, 120, 120)
    record = aligned.attrs["provenance"]["registration"]["pan"]
    assert record["verdict"] == "refused" or abs(record["dy_px"]) + abs(record["dx_px"]) < 0.1


def test_statistics_are_those_of_the_stored_clear_pixels(sentinel: tuple[Path, Lock, Path]) -> None:
    dataset = sentinel[2]
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    mask = train["mask"][:]
    usable = (mask[:, 2] > 0) & (mask[:, :2].max(axis=1) < 128)
    stated = read_manifest(dataset)["summary"]["statistics"]
    assert stated["ms"]["mean"] == pytest.approx([train["ms"][:, band][usable].mean() / 10_000 for band in range(6)], rel=1e-9)
    fine = usable.repeat(2, axis=1).repeat(2, axis=2)
    assert stated["pan"]["std"] == pytest.approx([train["pan"][:, band][fine].std() / 10_000 for band in range(4)], rel=1e-9)


def test_the_guide_looks_like_the_coarse_bands_of_its_ground(sentinel: tuple[Path, Lock, Path]) -> None:
    train: Any = zarr.open_group(store_of(sentinel[2]), path="train", mode="r")
    near_infrared = train["pan"][:, 3].astype(float).reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.corrcoef(near_infrared.ravel(), train["ms"][:, 3].ravel())[0, 1] > 0.95


def test_images_of_two_products_are_one_line(sentinel: tuple[Path, Lock, Path], tmp_path: Path) -> None:
    folder, lock, _ = sentinel
    first, second = lock.groups[:2]
    content = json.loads((folder / "query/a.json").read_text())
    content["groups"][0]["scenes"]["pan"] = second.scenes["pan"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    manifests = [folder / f"ingest/{scene}.json" for scene in (first.scenes["ms"], second.scenes["pan"])]
    with pytest.raises(DataError, match="both must be images of one product") as caught:
        align_job((tmp_path / "a.json", first.id), manifests, tmp_path / "g.json", PipelineSettings.model_validate(SENTINEL).align)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"holds item .* run `sereno ingest` for it again"):
        align_job((folder / "query/a.json", first.id), manifests, tmp_path / "g.json", PipelineSettings.model_validate(SENTINEL).align)
    with pytest.raises(ConfigError, match="1 manifests are given"):
        align_job((folder / "query/a.json", first.id), manifests[:1], tmp_path / "g.json", PipelineSettings.model_validate(SENTINEL).align)


def test_a_lock_of_one_task_is_no_lock_of_another(sentinel: tuple[Path, Lock, Path], tmp_path: Path) -> None:
    query = PipelineSettings.model_validate({"query": {"source": "lock", "catalogue": str(sentinel[0] / "query")}}).query
    with pytest.raises(ConfigError, match=r"is for pansharpening, but pipeline\.task is cloud-removal"):
        query_pairs("a", tmp_path / "a.json", query)
    query_pairs("a", tmp_path / "a.json", query, task="pansharpening")
    assert (tmp_path / "a.json").read_bytes() == (sentinel[0] / "query/a.json").read_bytes()


def test_the_panchromatic_image_of_gaofen_guides_at_ratio_4(tmp_path: Path) -> None:
    lock, dataset = run_steps(tmp_path, GAOFEN, "simulate/products")
    summary = read_manifest(dataset, kind="dataset")["summary"]
    assert (summary["ratio"], summary["channels"]["pan"], summary["channels"]["ms"]) == (4, ["PAN"], ["B1", "B2", "B3", "B4"])
    train: Any = zarr.open_group(store_of(dataset), path="train", mode="r")
    assert (train["pan"].shape[1:], train["ms"].shape[1:]) == ((1, 128, 128), (4, 32, 32))
    pan = train["pan"][:, 0].astype(float).reshape(-1, 32, 4, 32, 4).mean(axis=(2, 4))
    colours = np.einsum("b,nbyx->nyx", PAN_SHARES, train["ms"][:].astype(float))
    assert np.corrcoef(pan.ravel(), colours.ravel())[0, 1] > 0.95
    found = [read_manifest(tmp_path / f"align/{group.id}.json")["summary"]["registration"]["pan"] for group in lock.groups]
    assert [one["verdict"] for one in found] == ["applied"] * len(found)
    shifts_m = [(8 * one["dx_px"], -8 * one["dy_px"]) for one in found]
    np.testing.assert_allclose(shifts_m, [PAN_SLIP_M] * len(found), atol=0.8, err_msg="east and north, a tenth of a pixel")
