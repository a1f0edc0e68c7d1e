"""Pixels are copied where grids fit, warped where not, and what cannot be read is named."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import transform

from sereno.pipeline.pairs import AssetRecord
from sereno.pipeline.sensors import assets
from sereno.pipeline.sensors.assets import Asset, Rule, match_grid, own_geobox, read_layer
from sereno.pipeline.signing import Resolver

UTM32 = "EPSG:32632"
WEST, NORTH = 500_040.0, 5_000_040.0  # multiples of 60 and not of 100: a 60 m grid need not begin where a 10 m area does


def known(values: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_]:
    return np.asarray(values != (nodata or 0))


RULE = Rule(known)
NEAREST = Rule(known, Resampling.nearest)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "BACKOFF_S", 0.0)


def to_asset(href: str, **facts: Any) -> Asset:
    return Asset("X", "B04", AssetRecord(href=href, **facts), Resolver("/"), attempts=2, check="checksum")


def write(
    path: Path, values: npt.NDArray[Any], step: float, *, crs: str = UTM32, origin: tuple[float, float] = (WEST, NORTH), **options: Any
) -> Asset:
    profile = {"driver": "GTiff", "dtype": values.dtype, "width": values.shape[1], "height": values.shape[0], "count": 1, "crs": crs}
    with rasterio.open(path, "w", **profile, transform=Affine(step, 0, origin[0], 0, -step, origin[1]), **options) as file:
        file.write(values, 1)
    return to_asset(str(path))


def numbered(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Every pixel holds its own number, so that a misplaced one shows."""
    return np.arange(1, rows * columns + 1, dtype=np.uint16).reshape(rows, columns)


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
    assert match_grid(UTM32, file, GeoBox((4, 4), file, "EPSG:32633")) is None


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


@pytest.fixture
def damaged(tmp_path: Path) -> Asset:
    values = np.random.default_rng(0).integers(1, 60_000, (64, 64), dtype=np.uint16)
    asset = write(tmp_path / "a.tif", values, 10, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    offsets = read_tile_offsets(Path(asset.record.href))
    with Path(asset.record.href).open("r+b") as stream:
        stream.seek(offsets[1 * 4 + 2])
        stream.write(b"\xff" * 40)
    return asset


def read_tile_offsets(path: Path) -> list[int]:
    """Tag 324 of a little-endian classic TIFF (TIFF 6.0, section 15)."""
    content = path.read_bytes()
    directory = int.from_bytes(content[4:8], "little")
    for entry in range(int.from_bytes(content[directory : directory + 2], "little")):
        start = directory + 2 + 12 * entry
        if int.from_bytes(content[start : start + 2], "little") == 324:
            count, place = (int.from_bytes(content[start + at : start + at + 4], "little") for at in (4, 8))
            return np.frombuffer(content, "<u4", count, place).tolist()
    raise AssertionError("no tiles")


def test_a_corrupt_tile_costs_its_own_pixels_and_is_named(damaged: Asset) -> None:
    layer = read_layer(damaged, GeoBox((60, 60), Affine(10, 0, WEST + 20, 0, -10, NORTH - 20), UTM32), RULE)
    lost = np.zeros((60, 60), bool)
    lost[16 - 2 : 32 - 2, 32 - 2 : 48 - 2] = True
    np.testing.assert_array_equal(layer.has_data, ~lost)
    assert len(layer.lost) == 1
    assert layer.lost[0].startswith("rows 16-31, columns 32-47: ")


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.7, 0.0), (4.2, 8.9)])
def test_a_files_own_grid_covers_the_area_and_its_margin_without_resampling(tmp_path: Path, shift: tuple[float, float]) -> None:
    asset = write(tmp_path / "a.tif", np.ones((100, 100), np.float32), 10, origin=(WEST + shift[0], NORTH + shift[1]))
    area = GeoBox((20, 30), Affine(10, 0, WEST + 200, 0, -10, NORTH - 300), UTM32)
    own = own_geobox(asset, area, 4)
    wanted, box = area.pad(4).boundingbox, own.boundingbox
    assert box.left <= wanted.left
    assert box.right >= wanted.right
    assert box.bottom <= wanted.bottom
    assert box.top >= wanted.top
    assert max(own.shape.y - 28, own.shape.x - 38) <= 1
    assert match_grid(UTM32, rasterio.open(asset.record.href).transform, own) is not None


def test_a_file_of_another_zone_or_step_has_no_grid_to_stay_on(tmp_path: Path) -> None:
    area = GeoBox((20, 30), Affine(10, 0, WEST, 0, -10, NORTH), UTM32)
    other_zone = write(tmp_path / "a.tif", np.ones((9, 9), np.float32), 10, crs="EPSG:32633")
    other_step = write(tmp_path / "b.tif", np.ones((9, 9), np.float32), 20)
    assert own_geobox(other_zone, area, 4) is None
    assert own_geobox(other_step, area, 4) is None
