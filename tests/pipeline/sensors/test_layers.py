"""Pixels are copied where grids fit, warped where not, and a file that cannot be used gives none."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import transform
from rasters import EXPECTED, GRID, GROUND, NORTH, RULE, UTM32, WEST, known, numbered, to_asset, write

from sereno.pipeline.sensors.layers import Rule, find_own_grid, match_grid, read_layer

NEAREST = Rule(known, Resampling.nearest)


def centres(geobox: GeoBox) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    affine = geobox.transform
    return affine.c + affine.a * (np.arange(geobox.shape.x) + 0.5), affine.f + affine.e * (np.arange(geobox.shape.y) + 0.5)


@pytest.mark.parametrize(("step", "skip"), [(10, 7), (20, 3), (60, 4), (60, 5)])
def test_each_pixel_is_the_one_of_the_file_under_its_centre(tmp_path: Path, step: int, skip: int) -> None:
    values = numbered(40, 50)
    asset = write(tmp_path / "a.tif", values, step)
    geobox = GeoBox((60, 71), Affine(10, 0, WEST + 10 * skip, 0, -10, NORTH - 10 * skip), UTM32)
    layer = read_layer(asset, geobox, RULE)
    x, y = centres(geobox)
    column, row = ((x - WEST) // step).astype(int), ((NORTH - y) // step).astype(int)
    inside = (row[:, None] < 40) & (column[None, :] < 50)
    expected = np.where(inside, values[np.minimum(row, 39)][:, np.minimum(column, 49)], 0)
    np.testing.assert_array_equal(layer.values, expected)
    np.testing.assert_array_equal(layer.has_data, inside)


def test_an_area_beyond_the_footprint_has_no_data_on_any_side(tmp_path: Path) -> None:
    asset = write(tmp_path / "a.tif", numbered(4, 4), 10)
    layer = read_layer(asset, GeoBox((8, 8), Affine(10, 0, WEST - 20, 0, -10, NORTH + 20), UTM32), RULE)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(layer.has_data, expected)
    far = read_layer(asset, GeoBox((8, 8), Affine(10, 0, WEST + 9000, 0, -10, NORTH), UTM32), RULE)
    assert not far.has_data.any()


@pytest.mark.parametrize("nodata", [None, 65535])
def test_nodata_is_what_the_file_declares_or_zero(tmp_path: Path, nodata: int | None) -> None:
    values = np.array([[0, 1], [65535, 7]], np.uint16)
    asset = write(tmp_path / "a.tif", values, 10, nodata=nodata)
    layer = read_layer(asset, GeoBox((2, 2), Affine(10, 0, WEST, 0, -10, NORTH), UTM32), RULE)
    np.testing.assert_array_equal(layer.has_data, values != (nodata or 0))


def test_a_grid_between_the_pixels_or_rotated_or_of_another_zone_needs_interpolation() -> None:
    file = Affine(10, 0, WEST, 0, -10, NORTH)
    assert match_grid(UTM32, file, GeoBox((4, 4), file * Affine.translation(2, 3), UTM32)) is not None
    for other in (file * Affine.translation(0.5, 0), file * Affine.rotation(1), file * Affine.scale(2)):
        assert match_grid(UTM32, file, GeoBox((4, 4), other, UTM32)) is None
    for other_crs in ("EPSG:32633", "EPSG:32733", "EPSG:32532", "EPSG:3035"):
        assert match_grid(UTM32, file, GeoBox((4, 4), file, other_crs)) is None


@pytest.mark.parametrize(("file_crs", "area_crs", "northing_m"), [("EPSG:32732", UTM32, 1e7), (UTM32, "EPSG:32732", -1e7)])
@pytest.mark.parametrize("step", [10, 20, 60])
def test_on_the_equator_pixels_of_the_other_half_of_a_zone_are_copied(
    tmp_path: Path, step: int, file_crs: str, area_crs: str, northing_m: float
) -> None:
    values = numbered(40, 50)
    top = 10 * step  # metres north of the equator, where the file begins
    origin = (WEST, top + (1e7 if file_crs == "EPSG:32732" else 0))
    asset = write(tmp_path / "a.tif", values, step, crs=file_crs, origin=origin)
    area = GeoBox((60, 71), Affine(10, 0, WEST + 50, 0, -10, origin[1] - northing_m - 70), area_crs)
    twin = GeoBox(area.shape, Affine(10, 0, WEST + 50, 0, -10, origin[1] - 70), file_crs)
    layer, expected = read_layer(asset, area, RULE), read_layer(asset, twin, RULE)
    np.testing.assert_array_equal(layer.values, expected.values)
    np.testing.assert_array_equal(layer.has_data, expected.has_data)


def test_warping_puts_a_plane_where_it_belongs_in_the_neighbouring_zone(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:200, 0:200]
    plane = (1000 + 10 * columns + 5 * rows).astype(np.uint16)
    origin = (700_000.0, 5_000_000.0)
    asset = write(tmp_path / "a.tif", plane, 10, origin=origin)
    (x,), (y,) = transform(UTM32, "EPSG:32633", [701_000], [4_999_000])
    geobox = GeoBox((60, 60), Affine(10, 0, round(x), 0, -10, round(y)), "EPSG:32633")
    layer = read_layer(asset, geobox, RULE)
    assert layer.has_data.all()
    centre_x, centre_y = centres(geobox)
    back_x, back_y = transform("EPSG:32633", UTM32, np.repeat(centre_x[None], 60, 0).ravel(), np.repeat(centre_y[:, None], 60, 1).ravel())
    column, row = (np.array(back_x) - origin[0]) / 10 - 0.5, (origin[1] - np.array(back_y)) / 10 - 0.5
    expected = (1000 + 10 * column + 5 * row).reshape(60, 60)
    assert np.abs(layer.values - expected).max() < 0.5 + 0.05  # rounded to integers; a hundredth of a pixel is 0.1 here


def test_nodata_does_not_bleed_into_warped_pixels(tmp_path: Path) -> None:
    values = np.full((50, 50), 4000, np.uint16)
    values[:, 25:] = 0
    asset = write(tmp_path / "a.tif", values, 10)
    layer = read_layer(asset, GeoBox((40, 40), Affine(10, 0, WEST + 53, 0, -10, NORTH - 53), UTM32), RULE)
    assert np.unique(layer.values[layer.has_data]).tolist() == [4000]
    assert 0 < layer.has_data.mean() < 1


def test_classes_are_never_mixed_by_warping(tmp_path: Path) -> None:
    classes = np.random.default_rng(1).choice(np.array([3, 4, 9], np.uint8), (50, 50))
    asset = write(tmp_path / "a.tif", classes, 10)
    layer = read_layer(asset, GeoBox((30, 30), Affine(10, 0, WEST + 53, 0, -10, NORTH - 53), UTM32), NEAREST)
    assert set(np.unique(layer.values[layer.has_data])) == {3, 4, 9}


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.7, 0.0), (4.2, 8.9)])
def test_a_files_own_grid_covers_the_area_and_its_margin_without_resampling(tmp_path: Path, shift: tuple[float, float]) -> None:
    asset = write(tmp_path / "a.tif", np.ones((100, 100), np.float32), 10, origin=(WEST + shift[0], NORTH + shift[1]))
    area = GeoBox((20, 30), Affine(10, 0, WEST + 200, 0, -10, NORTH - 300), UTM32)
    own = find_own_grid(asset, area, 4)
    wanted, box = area.pad(4).boundingbox, own.boundingbox
    assert box.left <= wanted.left
    assert box.right >= wanted.right
    assert box.bottom <= wanted.bottom
    assert box.top >= wanted.top
    assert max(own.shape.y - 28, own.shape.x - 38) <= 1
    assert match_grid(UTM32, rasterio.open(asset.record.href).transform, own) is not None


@pytest.mark.parametrize(("file_crs", "area_crs", "equator_m"), [("EPSG:32732", UTM32, 0.0), (UTM32, "EPSG:32732", 1e7)])
def test_a_file_of_the_other_half_of_a_zone_has_its_own_grid_in_the_areas(
    tmp_path: Path, file_crs: str, area_crs: str, equator_m: float
) -> None:
    asset = write(tmp_path / "a.tif", numbered(100, 100), 10, crs=file_crs, origin=(WEST + 3, 500 + 1e7 - equator_m))
    own = find_own_grid(asset, GeoBox((20, 30), Affine(10, 0, WEST + 200, 0, -10, 100 + equator_m), area_crs), 4)
    assert own is not None
    assert (own.crs, own.transform.c, own.transform.f) == (area_crs, WEST + 153, equator_m + 140)
    np.testing.assert_array_equal(read_layer(asset, own, RULE).values, numbered(100, 100)[36:64, 15:54])


def test_a_file_of_another_zone_or_step_has_no_grid_to_stay_on(tmp_path: Path) -> None:
    area = GeoBox((20, 30), Affine(10, 0, WEST, 0, -10, NORTH), UTM32)
    other_zone = write(tmp_path / "a.tif", np.ones((9, 9), np.float32), 10, crs="EPSG:32633")
    other_step = write(tmp_path / "b.tif", np.ones((9, 9), np.float32), 20)
    assert find_own_grid(other_zone, area, 4) is None
    assert find_own_grid(other_step, area, 4) is None


def test_a_file_without_crs_is_lost_since_its_place_is_unknown(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "dtype": "uint16", "width": 320, "height": 320, "count": 1}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH)) as file:
        file.write(GROUND, 1)
    asset = to_asset(str(tmp_path / "a.tif"))
    assert read_layer(asset, GRID, RULE).lost == ("the file has no CRS, so its place on the ground is unknown",)
    assert find_own_grid(asset, GRID, 4) is None


def test_the_wanted_band_of_a_file_is_read_and_one_it_lacks_is_named(tmp_path: Path) -> None:
    stack = np.stack([GROUND, GROUND // 2])
    profile = {"driver": "GTiff", "dtype": "uint16", "width": 320, "height": 320, "count": 2, "crs": UTM32}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH)) as file:
        file.write(stack)
    second = read_layer(to_asset(str(tmp_path / "a.tif"), index=2), GRID, RULE)
    np.testing.assert_array_equal(second.values, EXPECTED // 2)
    third = read_layer(to_asset(str(tmp_path / "a.tif"), index=3), GRID, RULE)
    assert third.lost == ("the file has 2 bands, band 3 is wanted",)


@pytest.mark.parametrize("step", [10, 20, 60])
def test_a_given_array_is_filled_and_nothing_of_it_is_left_over(tmp_path: Path, step: int) -> None:
    asset = write(tmp_path / "a.tif", numbered(40, 50), step)
    for geobox in (
        GeoBox((60, 71), Affine(10, 0, WEST + 20, 0, -10, NORTH - 70), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST - 20, 0, -10, NORTH + 70), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST + 90_000, 0, -10, NORTH), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST + 23, 0, -10, NORTH - 77), UTM32),
    ):
        out = np.full((60, 71), 7777, np.uint16)
        filled, fresh = read_layer(asset, geobox, RULE, out), read_layer(asset, geobox, RULE)
        assert filled.values is out
        np.testing.assert_array_equal(out, fresh.values)
        np.testing.assert_array_equal(filled.has_data, fresh.has_data)
    lost = read_layer(to_asset(str(tmp_path / "gone.tif")), geobox, RULE, np.full((60, 71), 7777, np.uint16))
    assert not lost.values.any()
