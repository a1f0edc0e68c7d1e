"""An image lies where its coefficients or its projection put it, and what is not known does not spread as a number."""

from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from scipy.ndimage import gaussian_filter

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.geometry import Positions, compose_positions
from sereno.pipeline.plates import place_plates
from sereno.pipeline.rpc import fit_rpc
from sereno.pipeline.scene import LATTICE_STEP_PX, Plate
from sereno.pipeline.sensors.orthorectification import (
    Ground,
    Placement,
    Relief,
    average_looks,
    count_looks,
    find_cut,
    find_positions,
    locate,
    to_footprint,
    to_relief,
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


WHOLE = (slice(0, 40), slice(0, 50))


def sample(image: Any, placement: Placement, relief: Relief = FLAT, grid: GeoBox = GRID) -> Any:
    """The image on the grid through a plate, NaN where not valid."""
    ground = Ground(grid, (slice(0, grid.shape.y), slice(0, grid.shape.x)), 0, relief)
    known = np.isfinite(image[0])
    stored = np.where(known, np.rint(image * 1e4), 0).astype(np.uint16)
    plate = Plate(("B1",), stored, known, *find_positions(placement, ground), (1.0, 1.0))
    values, valid = place_plates((plate,), ("B1",), source=grid, target=grid)
    return np.where(valid, values, np.nan)


def make_heights(rise_m: float = 50 / LEAN) -> Any:
    heights = np.full((40, 50), 100.0)
    heights[:, 30:] += rise_m
    return heights


def test_a_pixel_of_the_grid_takes_the_image_pixel_under_it() -> None:
    image = make_image()
    np.testing.assert_allclose(sample(image, make_placement())[0], image[0, 7:47, 7:57], atol=2e-3)


def test_height_moves_what_is_seen() -> None:
    image = make_image()
    seen = sample(image, make_placement(), FLAT._replace(constant_m=100 + 50 / LEAN))
    np.testing.assert_allclose(seen[0], image[0, 7:47, 12:62], atol=2e-3)


def test_every_pixel_is_taken_at_its_own_height() -> None:
    image = make_image()
    seen = sample(image, make_placement(), Relief(make_heights(), 100.0, "", ()))
    np.testing.assert_allclose(seen[0, :, :30], image[0, 7:47, 7:37], atol=2e-3)
    np.testing.assert_allclose(seen[0, :, 30:], image[0, 7:47, 42:62], atol=2e-3)


def make_radar(spacing_m: float = 5.0) -> Placement:
    """An image in slant range from 800 km: its columns are bent over the ground, and more so with height."""
    rows, columns, heights = (
        axis.ravel() for axis in np.meshgrid(*[np.linspace(-500, 5500, 15)] * 2, np.linspace(-500, 4500, 7), indexing="ij")
    )
    north, far = 4_500_000 - rows * spacing_m, 600_000 + columns * spacing_m
    x = 480_000 + np.sqrt(far**2 - (600_000.0 - heights) ** 2 + 600_000.0**2) - np.sqrt(far.min() ** 2)
    longitudes, latitudes = (np.array(axis) for axis in transform("EPSG:32650", "EPSG:4326", x, north))
    return Placement(fit_rpc((rows, columns), (longitudes, latitudes, heights)))


def test_positions_between_the_lattice_are_those_of_the_coefficients() -> None:
    grid = GeoBox((600, 700), Affine(10, 0, 485_000, 0, -10, 4_495_000), "EPSG:32650")
    placement, rng = make_radar(), np.random.default_rng(4)
    heights = gaussian_filter(rng.normal(0, 1, (600, 700)), 6)
    heights = 1500 + 1400 * heights / np.abs(heights).max()
    whole = (slice(0, 600), slice(0, 700))
    lattice, relief = find_positions(placement, Ground(grid, whole, 0, Relief(heights, 1500.0, "", ())))
    assert relief is not None
    rows, columns = rng.integers(0, 600, 500), rng.integers(0, 700, 500)
    exact = locate(placement, grid, (rows + 0.5, columns + 0.5), heights[rows, columns])
    places = Positions(rows.astype(float), columns.astype(float))
    flat = compose_positions(Positions(*lattice), places, step_px=LATTICE_STEP_PX, first_px=-LATTICE_STEP_PX)
    assert np.ptp(exact[1] - flat.cols) > 100, "relief matters here"
    for axis in (0, 1):
        np.testing.assert_allclose(flat[axis] + relief[axis, rows, columns], exact[axis], atol=1e-3)


def test_where_no_height_is_known_nothing_is_known() -> None:
    heights = make_heights(0)
    heights[10, 20] = np.nan
    seen = sample(make_image(), make_placement(), Relief(heights, 100.0, "", ()))
    assert np.argwhere(np.isnan(seen[0])).tolist() == [[10, 20]]


def test_what_is_not_known_stays_unknown_and_the_rest_untouched() -> None:
    image = make_image()
    image[0, 20, 30] = np.nan
    seen = sample(image, make_placement())
    unknown = np.isnan(seen[0])
    assert unknown[13, 23]
    assert unknown.sum() <= 9
    np.testing.assert_allclose(seen[0][~unknown], image[0, 7:47, 7:57][~unknown], atol=2e-3)


def test_beyond_the_image_nothing_is_known() -> None:
    seen = sample(make_image(30), make_placement())
    assert np.isfinite(seen[0, :22, :22]).all()
    assert np.isnan(seen[0, 24:]).all()
    assert np.isnan(seen[0, :, 24:]).all()


def test_a_projected_image_is_read_by_its_projection() -> None:
    image = make_image()
    placement = Placement(None, GRID.transform * Affine.translation(-7, -7), str(GRID.crs))
    np.testing.assert_allclose(sample(image, placement)[0], image[0, 7:47, 7:57], atol=1e-4)


def test_blocks_are_averaged_where_all_of_them_is_known() -> None:
    values = np.arange(2 * 7 * 9, dtype=np.uint16).reshape(2, 7, 9)
    known = np.ones((7, 9), bool)
    known[3, 4] = False
    averaged, whole = average_looks(values, known, (3, 2))
    assert averaged.shape == (2, 2, 4)
    assert averaged[1, 1, 3] == values[1, 3:6, 6:8].mean()
    assert np.argwhere(~whole).tolist() == [[1, 2]]


@pytest.mark.parametrize("looks", [(2, 2), (3, 1)])
def test_crops_and_averages_stay_in_place(looks: tuple[int, int]) -> None:
    for placement in (make_placement(), Placement(None, GRID.transform * Affine.translation(-7, -7), str(GRID.crs))):
        whole = locate(placement, GRID, (np.array([3.0, 20.0]), np.array([5.0, 33.0])), 100.0)
        part = locate(placement.crop(4, 6).average(looks), GRID, (np.array([3.0, 20.0]), np.array([5.0, 33.0])), 100.0)
        for axis, first, n in zip((0, 1), (4, 6), looks, strict=True):
            np.testing.assert_allclose((part[axis] + 0.5) * n - 0.5, whole[axis] - first, atol=1e-6)


def test_only_the_part_under_the_grid_is_cut() -> None:
    cut = find_cut(make_placement(5.0), (4000, 4000), Ground(GRID, WHOLE, 0, FLAT))
    assert cut is not None
    np.testing.assert_allclose(cut.steps, (2, 2), rtol=1e-3)
    assert count_looks(cut.steps) == (2, 2)
    (top, bottom), (left, right) = cut.window.toranges()
    assert (top, left) == (0, 0)
    assert 87 <= bottom <= 100
    assert 107 <= right <= 120


def test_the_margin_is_cut_too() -> None:
    placement = make_placement(columns_off=30)
    cuts = [find_cut(placement, (400, 400), Ground(GRID, WHOLE, margin_px, FLAT)) for margin_px in (0, 16)]
    spans = [cut.window.toranges() for cut in cuts if cut is not None]
    np.testing.assert_allclose(np.array(spans[1]) - np.array(spans[0]), [[-16, 16], [-16, 16]], atol=1)


def test_an_image_beside_the_grid_gives_no_cut() -> None:
    assert find_cut(make_placement(columns_off=-200), (150, 150), Ground(GRID, WHOLE, 0, FLAT)) is None


def test_a_stated_height_is_used_without_a_dem_and_can_be_replaced() -> None:
    stated = to_relief(None, IngestSettings(), 321.0)
    own = to_relief(None, IngestSettings(gaofen={"height_m": 12.0}), 321.0)  # type: ignore[arg-type]
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
    seen = sample(make_image(), placement, grid=wide)
    assert np.isfinite(seen[0, :, 10:50]).all()
    assert np.isnan(seen[0, :, 160:]).all()
