"""What a group holds, and how one image of it is looked at."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.errors import StoreError
from sereno.pipeline.groups import average_scene, open_job, ratio_of, shrink_valid, task_of, to_coarse_grid, to_group, view_image
from sereno.pipeline.scene import bands_of, geobox_of, to_scene
from sereno.pipeline.store import save_dataset

GRID = GeoBox((16, 24), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
COARSE = to_coarse_grid(GRID, 2)
PROVENANCE = {"task": "pansharpening", "ratio": 2, "area": "west", "pair": {"id": "g"}}


def make_group() -> xr.Dataset:
    rng = np.random.default_rng(1)

    def make_scene(grid: GeoBox, bands: tuple[str, ...]) -> xr.Dataset:
        data = rng.integers(1, 9000, (len(bands), *grid.shape)).astype(np.uint16)
        scl = rng.integers(0, 11, grid.shape).astype(np.uint8)
        return to_scene(data, rng.random(grid.shape) < 0.9, bands=bands, geobox=grid, provenance={}, scl=scl)

    scenes = {"ms": make_scene(COARSE, ("B05", "B11")), "pan": make_scene(GRID, ("B02", "B03", "B04"))}
    return to_group(scenes, GRID, dict(PROVENANCE))


def test_a_group_reads_back_with_its_grids_names_and_task(tmp_path: Path) -> None:
    group = make_group()
    save_dataset(group, tmp_path / "g.json", kind="group", summary={})
    found = open_job(tmp_path / "g.json")
    xr.testing.assert_identical(found[list(group.data_vars)].compute().drop_attrs(), group[list(group.data_vars)].drop_attrs())
    assert (task_of(found), ratio_of(found), geobox_of(found)) == ("pansharpening", 2, GRID)
    assert (bands_of(found), bands_of(found, "pan_band")) == (("B05", "B11"), ("B02", "B03", "B04"))
    assert found["ms"].dims == ("band", "y_coarse", "x_coarse")


def test_an_image_is_looked_at_on_its_own_grid() -> None:
    group = make_group()
    ms, pan = view_image(group, "ms"), view_image(group, "pan")
    assert (geobox_of(ms), geobox_of(pan)) == (COARSE, GRID)
    assert (bands_of(ms), bands_of(pan)) == (("B05", "B11"), ("B02", "B03", "B04"))
    np.testing.assert_array_equal(ms["ms"].values, group["ms"].values)
    np.testing.assert_array_equal(ms["scl_ms"].values, group["scl_ms"].values)
    assert ms["valid_ms"].dims == pan["valid_pan"].dims == ("y", "x")


def test_a_coarse_pixel_covers_its_fine_ones() -> None:
    assert COARSE.shape == (8, 12)
    assert COARSE.boundingbox == GRID.boundingbox
    valid = np.ones((4, 6), bool)
    valid[3, 0] = False
    np.testing.assert_array_equal(shrink_valid(valid, 2), [[True, True, True], [False, True, True]])


def test_what_is_neither_pair_nor_group_is_refused(tmp_path: Path) -> None:
    save_dataset(make_group(), tmp_path / "m.json", kind="mask", summary={})
    with pytest.raises(StoreError, match="describes a 'mask', expected a 'pair' or a 'group'"):
        open_job(tmp_path / "m.json")


def test_an_averaged_scene_is_the_mean_where_all_of_a_pixel_is_valid() -> None:
    data = np.arange(2 * 4 * 6).reshape(2, 4, 6).astype(np.uint16)
    valid = np.ones((4, 6), bool)
    valid[0, 5] = False
    grid = GeoBox((4, 6), GRID.transform, GRID.crs)
    found = average_scene(to_scene(data, valid, bands=("B02", "B03"), geobox=grid, provenance={"item": "i"}), 2)
    np.testing.assert_array_equal(found["data"].values[0], [[4, 6, 0], [16, 18, 20]])  # means of 3.5, 5.5, ... are rounded to even
    assert not found["valid"].values[0, 2]
    assert found.attrs["provenance"] == {"item": "i", "averaged": 2}
    assert geobox_of(found) == to_coarse_grid(grid, 2)


def test_means_of_another_sensor_leave_out_what_its_classes_cover() -> None:
    """Each block of 4 x 4 holds 1000 where clear and 9000 where cloud or not valid; its index says how many of the sixteen are clear."""
    clear = np.stack([np.arange(16) < count for count in range(17)]).reshape(17, 4, 4)
    values = np.where(clear, 1000, 9000).astype(np.uint16).transpose(1, 0, 2).reshape(1, 4, 68)
    bad = ~clear.transpose(1, 0, 2).reshape(4, 68)
    by_class = bad & (np.arange(68) % 2 == 0)
    scl = np.where(by_class, 9, 5).astype(np.uint8)
    grid = GeoBox((4, 68), GRID.transform, GRID.crs)
    scene = to_scene(values, ~(bad & ~by_class), bands=("B04",), geobox=grid, provenance={"item": "x"}, scl=scl)
    coarse = average_scene(scene, 4, 0.75)
    np.testing.assert_array_equal(coarse["valid"].values[0], np.arange(17) >= 12)
    assert set(coarse["data"].values[0, 0, 12:]) == {1000}
    assert (coarse.attrs["provenance"]["averaged"], coarse.attrs["provenance"]["clear_share"]) == (4, 0.75)
    assert geobox_of(coarse) == to_coarse_grid(grid, 4)
    np.testing.assert_array_equal(average_scene(scene, 4)["valid"].values[0][:16], False)


def test_a_share_of_nothing_is_never_enough() -> None:
    empty = to_scene(np.ones((1, 4, 4), np.uint16), np.zeros((4, 4), bool), bands=("B04",), geobox=GRID[:4, :4], provenance={})
    assert not average_scene(empty, 4, 0.0)["valid"].values.any()
