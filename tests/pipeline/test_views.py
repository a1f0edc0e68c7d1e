"""Simulated images lie over the ground where their coefficients say, off by what these are told to err, and high ground leans."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from sereno.pipeline.rpc import to_ground, to_image
from sereno.pipeline.views import Terrain, make_rpc, make_view, see_image

SIZE = 60
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
HILLS = np.mgrid[:SIZE, :SIZE] / np.array([7, 9])[:, None, None]
TERRAIN = Terrain(BOX, (800 + 40 * np.sin(HILLS[1]) * np.cos(HILLS[0])).astype(np.float32))


def test_coefficients_describe_the_view_to_a_hundredth_of_a_pixel() -> None:
    view, generator = make_view(TERRAIN, 5.0, -1.4), np.random.default_rng(2)
    rows, columns, heights = (generator.uniform(low, high, 50) for low, high in ((0, 140), (0, 140), (500, 1100)))
    longitudes, latitudes = transform(str(BOX.crs), "EPSG:4326", *view.to_ground(rows, columns, heights))
    seen = to_image(make_rpc(view), np.array(longitudes), np.array(latitudes), heights)
    np.testing.assert_allclose(seen, (rows, columns), atol=0.01)


def test_rows_and_columns_lead_to_ground_and_back() -> None:
    view = make_view(TERRAIN, 5.0, -1.4)
    rows, columns = np.array([3.0, 70.0]), np.array([5.0, 99.0])
    np.testing.assert_allclose(view.to_image(*view.to_ground(rows, columns, 820.0), 820.0), (rows, columns), atol=1e-6)


def test_coefficients_err_by_what_they_are_told() -> None:
    view = make_view(TERRAIN, 5.0, -1.4)
    pixel = (np.array([60.0]), np.array([60.0]), 800.0)
    right, wrong = (
        np.array(transform("EPSG:4326", str(BOX.crs), *to_ground(make_rpc(view, error), *pixel))) for error in ((0.0, 0.0), (35.0, -60.0))
    )
    np.testing.assert_allclose((wrong - right).ravel(), [35, -60], atol=0.2)


def test_high_ground_leans_towards_the_radar() -> None:
    heights = np.full((SIZE, SIZE), 500, np.float32)
    terrain = Terrain(BOX, heights)
    view = make_view(terrain, 10.0, -1.4)
    x, y = BOX.transform * (30.0, 30.0)
    low, high = (view.to_image(np.array([x]), np.array([y]), height) for height in (500.0, 600.0))
    assert high[0] == pytest.approx(low[0])
    assert high[1] - low[1] == pytest.approx(-14.0)  # 100 m x 1.4 / 10 m


def test_an_image_shows_what_lies_where_its_pixels_lead_and_nothing_beyond_the_ground() -> None:
    """A layer that holds its own easting: what a pixel shows is the place that it looks at, on the relief."""
    view = make_view(TERRAIN, 10.0, -1.4)
    easting = np.broadcast_to(BOX.transform.c + 10 * (np.arange(SIZE) + 0.5), (SIZE, SIZE)).astype(np.float32)
    rising = np.broadcast_to(TERRAIN.heights_m, (SIZE, SIZE))
    seen, heights = see_image(TERRAIN, np.stack([easting, rising]), view)
    rows, columns = np.meshgrid(*(np.arange(n, dtype=float) for n in view.size), indexing="ij")
    x, y = view.to_ground(rows, columns, heights.astype(float))
    inside = (abs(x - 500_300) < 280) & (abs(y - 4_499_700) < 280)
    assert inside.sum() > 2000
    np.testing.assert_allclose(seen[inside], x[inside], atol=0.2)  # as far as heights are found, to 0.05 m
    assert not seen[0].any()
