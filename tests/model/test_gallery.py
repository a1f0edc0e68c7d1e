"""Scenes against their truth: read on one grid, compared as the metrics do, told apart by split."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from sereno.model.gallery import NODATA, compare_images, mark_split, read_image
from sereno.model.metrics import average_maps, compute_error_maps
from sereno.pipeline.pairs import GridRecord

GRID = GridRecord(crs="EPSG:32632", transform=(10, 0, 500_000, 0, -10, 5_000_000), shape=(12, 16))


def write_image(path: Path, image: np.ndarray, *, left: float = 500_000, top: float = 5_000_000, names: tuple[str, ...]) -> Path:
    profile = {"driver": "GTiff", "dtype": "uint16", "count": len(image), "height": image.shape[1], "width": image.shape[2]}
    grid = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, left, 0, -10, top), "nodata": NODATA}
    with rasterio.open(path, "w", **profile, **grid) as file:
        file.write(image)
        file.descriptions = names
    return path


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def test_bands_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    image = numbered((3, 12, 16))
    path = write_image(tmp_path / "a.tif", image, names=("B02", "B03", "B04"))
    assert np.array_equal(read_image(path, ("B04", "B02"), GRID), image[[2, 0]])


def test_a_larger_image_is_cut_to_the_grid_and_a_smaller_one_filled_with_nodata(tmp_path: Path) -> None:
    large = numbered((1, 20, 24))
    path = write_image(tmp_path / "large.tif", large, left=500_000 - 30, top=5_000_000 + 40, names=("B02",))
    assert np.array_equal(read_image(path, ("B02",), GRID), large[:, 4:16, 3:19])
    small = numbered((1, 6, 16))
    path = write_image(tmp_path / "small.tif", small, names=("B02",))
    laid = read_image(path, ("B02",), GRID)
    assert np.array_equal(laid[:, :6], small)
    assert (laid[:, 6:] == NODATA).all()


def test_errors_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(3)
    ours, true = rng.integers(0, 9000, (2, 4, 16, 16)).astype(np.uint16)
    region = rng.random((16, 16)) < 0.4
    tensors = (torch.from_numpy(image[None].astype(np.float32) / 10_000) for image in (ours, true))
    expected = average_maps(compute_error_maps(*tensors, torch.ones(1, 16, 16, dtype=torch.bool)), torch.from_numpy(region[None]))
    psnr, mae = compare_images(ours, true, region)
    assert psnr == pytest.approx(expected["psnr"].item(), abs=1e-4)
    assert mae == pytest.approx(expected["mae"].item(), abs=1e-6)


def test_pixels_outside_the_region_change_nothing() -> None:
    true = np.full((2, 4, 4), 1000, np.uint16)
    ours = true + 100
    region = np.zeros((4, 4), bool)
    region[1, 1] = True
    ours[:, 0, 0] = 60_000
    psnr, mae = compare_images(ours, true, region)
    assert (psnr, mae) == (pytest.approx(40.0), pytest.approx(0.01))  # an error of 0.01: 20 log10(1 / 0.01)


def test_an_exact_copy_is_infinitely_good_and_an_empty_region_is_no_number() -> None:
    image = numbered((1, 4, 4))
    assert compare_images(image, image, np.ones((4, 4), bool)) == (np.inf, 0.0)
    assert np.isnan(compare_images(image, image, np.zeros((4, 4), bool))).all()


def test_only_patches_of_that_area_and_split_are_marked() -> None:
    def record(area: str, split: str, row: int, col: int) -> dict[str, str]:
        left, top = 500_000 + 10 * col, 5_000_000 - 10 * row
        return {"area": area, "split": split, "bounds_m": json.dumps([left, top - 40, left + 40, top])}

    records = [record("west", "test", 0, 4), record("west", "train", 4, 4), record("east", "test", 8, 8)]
    expected = np.zeros(GRID.shape, bool)
    expected[0:4, 4:8] = True
    assert np.array_equal(mark_split(records, "west", GRID), expected)
    assert not mark_split(records, "north", GRID).any()


def test_a_patch_that_reaches_beyond_the_grid_marks_what_lies_in_it() -> None:
    bounds = json.dumps([500_000 - 20, 5_000_000 - 20, 500_000 + 20, 5_000_000 + 20])
    marked = mark_split([{"area": "west", "split": "test", "bounds_m": bounds}], "west", GRID)
    assert marked.sum() == 4
    assert marked[:2, :2].all()
