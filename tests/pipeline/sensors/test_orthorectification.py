"""An image lies where its coefficients or its projection put it, and what is not known does not spread as a number."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.rpc import fit_rpc
from sereno.pipeline.sensors.orthorectification import (
    DEM_MARGIN_PX,
    Placement,
    Relief,
    count_looks,
    find_cut,
    locate,
    read_relief,
    to_footprint,
    warp_layers,
)

GRID = GeoBox((40, 50), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
FLAT = Relief(None, 100.0, "", ())
LEAN = 1.2
"""Metres along columns per metre of height."""


def make_placement(spacing_m: float = 10.0, columns_off: float = 7.0) -> Placement:
    """An image that lies like the grid, `columns_off` of its pixels to the west and to the north, leaning with height above 100 m."""
    rows, columns, heights = (axis.ravel() for axis in np.meshgrid(*[np.linspace(0, 100, 9)] * 2, np.linspace(-400, 600, 5), indexing="ij"))
    x = 500_000 + (columns + 0.5 - columns_off) * spacing_m - LEAN * (heights - 100)
    y = 4_500_000 - (rows + 0.5 - columns_off) * spacing_m
    longitudes, latitudes = (np.array(axis) for axis in transform(str(GRID.crs), "EPSG:4326", x, y))
    return Placement(fit_rpc((rows, columns), (longitudes, latitudes, heights)))


def make_image(n: int = 70) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).uniform(1, 2, (1, n, n)).astype(np.float32)


def test_a_pixel_of_the_grid_takes_the_image_pixel_under_it() -> None:
    image = make_image()
    warped = warp_layers(image, make_placement(), GRID, FLAT, steps=(1.0, 1.0))
    np.testing.assert_allclose(warped[0], image[0, 7:47, 7:57], atol=2e-3)


def test_height_moves_what_is_seen() -> None:
    image = make_image()
    warped = warp_layers(image, make_placement(), GRID, FLAT._replace(constant_m=100 + 50 / LEAN), steps=(1.0, 1.0))
    np.testing.assert_allclose(warped[0], image[0, 7:47, 12:62], atol=2e-3)


def test_every_pixel_is_taken_at_its_own_height() -> None:
    image = make_image()
    heights = np.full((40 + 2 * DEM_MARGIN_PX, 50 + 2 * DEM_MARGIN_PX), 100.0)
    heights[:, 30 + DEM_MARGIN_PX :] += 50 / LEAN
    warped = warp_layers(image, make_placement(), GRID, Relief(heights, 100.0, "", ()), steps=(1.0, 1.0))
    np.testing.assert_allclose(warped[0, :, :30], image[0, 7:47, 7:37], atol=2e-3)
    np.testing.assert_allclose(warped[0, :, 30:], image[0, 7:47, 42:62], atol=2e-3)


def test_where_no_height_is_known_nothing_is_known() -> None:
    heights = np.full((40 + 2 * DEM_MARGIN_PX, 50 + 2 * DEM_MARGIN_PX), 100.0)
    heights[10 + DEM_MARGIN_PX, 20 + DEM_MARGIN_PX] = np.nan
    warped = warp_layers(make_image(), make_placement(), GRID, Relief(heights, 100.0, "", ()), steps=(1.0, 1.0))
    assert np.argwhere(np.isnan(warped[0])).tolist() == [[10, 20]]


def test_what_is_not_known_stays_unknown_and_the_rest_untouched() -> None:
    image = make_image()
    image[0, 20, 30] = np.nan
    warped = warp_layers(image, make_placement(), GRID, FLAT, steps=(1.0, 1.0))
    unknown = np.isnan(warped[0])
    assert unknown[13, 23]
    assert unknown.sum() <= 9
    np.testing.assert_allclose(warped[0][~unknown], image[0, 7:47, 7:57][~unknown], atol=2e-3)


def test_beyond_the_image_nothing_is_known() -> None:
    warped = warp_layers(make_image(30), make_placement(), GRID, FLAT, steps=(1.0, 1.0))
    assert np.isfinite(warped[0, :22, :22]).all()
    assert np.isnan(warped[0, 24:]).all()
    assert np.isnan(warped[0, :, 24:]).all()


def test_a_projected_image_is_read_by_its_projection() -> None:
    image = make_image()
    placement = Placement(None, GRID.transform * Affine.translation(-7, -7), str(GRID.crs))
    warped = warp_layers(image, placement, GRID, FLAT, steps=(1.0, 1.0))
    np.testing.assert_allclose(warped[0], image[0, 7:47, 7:57], atol=1e-5)


@pytest.mark.parametrize("looks", [(2, 2), (3, 1)])
def test_crops_and_averages_stay_in_place(looks: tuple[int, int]) -> None:
    for placement in (make_placement(), Placement(None, GRID.transform * Affine.translation(-7, -7), str(GRID.crs))):
        whole = locate(placement, GRID, (np.array([3.0, 20.0]), np.array([5.0, 33.0])), 100.0)
        part = locate(placement.crop(4, 6).average(looks), GRID, (np.array([3.0, 20.0]), np.array([5.0, 33.0])), 100.0)
        for axis, first, n in zip((0, 1), (4, 6), looks, strict=True):
            np.testing.assert_allclose((part[axis] + 0.5) * n - 0.5, whole[axis] - first, atol=1e-6)


def test_only_the_part_under_the_grid_is_cut() -> None:
    cut = find_cut(make_placement(5.0), (4000, 4000), GRID, FLAT)
    assert cut is not None
    np.testing.assert_allclose(cut.steps, (2, 2), rtol=1e-3)
    assert count_looks(cut.steps) == (2, 2)
    (top, bottom), (left, right) = cut.window.toranges()
    assert (top, left) == (0, 0)
    assert 87 <= bottom <= 100
    assert 107 <= right <= 120


def test_an_image_beside_the_grid_gives_no_cut() -> None:
    assert find_cut(make_placement(columns_off=-200), (150, 150), GRID, FLAT) is None


def test_a_stated_height_is_used_without_a_dem_and_can_be_replaced() -> None:
    stated = read_relief(GRID, IngestSettings(), 321.0)
    own = read_relief(GRID, IngestSettings(gaofen={"height_m": 12.0}), 321.0)  # type: ignore[arg-type]
    assert (stated.constant_m, own.constant_m) == (321.0, 12.0)
    assert "stated by the product" in stated.warnings[0]
    assert "height_m" in own.warnings[0]


def test_a_footprint_across_180_degrees_goes_on_beyond_it() -> None:
    bbox, footprint = to_footprint([(179.5, 10.0), (-179.8, 10.1), (-179.9, 9.5), (179.4, 9.4)])
    assert bbox == pytest.approx((179.4, 9.4, -179.8, 10.1))
    np.testing.assert_allclose(footprint["coordinates"][0], [[179.5, 10], [180.2, 10.1], [180.1, 9.5], [179.4, 9.4], [179.5, 10]])


def test_ground_far_beside_an_image_is_not_led_back_into_it() -> None:
    placement = make_placement()
    assert placement.rpc is not None
    numerator = list(placement.rpc.samp_num_coeff)
    numerator[11] = -0.05  # the cube of longitude: outside of the image it wins, and columns fall again
    placement.rpc.samp_num_coeff = numerator
    wide = GeoBox((40, 1200), GRID.transform, GRID.crs)
    warped = warp_layers(make_image(), placement, wide, FLAT, steps=(1.0, 1.0))
    assert np.isfinite(warped[0, :, 10:50]).all()
    assert np.isnan(warped[0, :, 160:]).all()
