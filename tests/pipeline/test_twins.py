"""What the simulated Landsat and MODIS see: numbers that turn back, bits, footprints against pyproj."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.atmosphere import Sky
from sereno.pipeline.imagers import (
    CIRRUS,
    CLEAR,
    CLOUD,
    DILATED,
    LANDSAT,
    LANDSAT_QA,
    MODIS,
    MODIS_STATE,
    NODATA,
    SHADOW,
    WATER,
    to_classes,
)
from sereno.pipeline.twins import (
    RESPONSE,
    find_composite,
    lay_footprints,
    see_coarse,
    to_numbers,
    to_qa_pixel,
    to_state,
    to_tile,
)

GROUND = GeoBox((300, 300), Affine(10, 0, 499_215, 0, -10, 5_054_415), "EPSG:32632")


@pytest.mark.parametrize("imager", [LANDSAT, MODIS])
def test_numbers_turn_back_into_reflectance(imager: object) -> None:
    assert imager in (LANDSAT, MODIS)
    product = LANDSAT if imager is LANDSAT else MODIS
    reflectance = np.random.default_rng(1).uniform(0, 1, (20, 20)).astype(np.float32)
    valid = reflectance < 0.9
    numbers = to_numbers(reflectance, product, valid)
    assert np.abs(numbers[valid] * product.scale + product.offset - reflectance[valid]).max() <= 0.5001 * product.scale + 1e-7
    assert (numbers[~valid] == product.fill).all()


def to_sky(**parts: tuple[slice, slice]) -> Sky:
    zeros = {name: np.zeros((30, 30), np.float32) for name in ("thick", "top", "haze", "cirrus", "shadow")}
    for name, place in parts.items():
        zeros[name][place] = 1
    return Sky(**zeros)


def test_qa_pixel_says_what_the_sky_holds() -> None:
    sky = to_sky(thick=np.s_[5:10, 5:10], cirrus=np.s_[20:25, 0:5], shadow=np.s_[5:10, 20:25])
    water, valid = np.zeros((30, 30), bool), np.ones((30, 30), bool)
    water[28:], valid[:, 29] = True, False
    classes = to_classes(LANDSAT_QA, to_qa_pixel(sky, water, valid))
    found = [classes[place] for place in ((7, 7), (7, 12), (22, 2), (7, 22), (29, 3), (15, 15), (3, 29))]
    assert found == [CLOUD, DILATED, CLOUD, SHADOW, WATER, CLEAR, NODATA]  # cirrus as thick as that is cloud
    thin = to_sky()
    thin.cirrus[:] = 0.3
    assert to_classes(LANDSAT_QA, to_qa_pixel(thin, water, valid))[15, 15] == CIRRUS


def test_footprints_are_pixels_of_the_tile_grid() -> None:
    found = lay_footprints(GROUND)
    pixel_m, tile_m = 463.3127165, 1_111_950.519667
    assert found.geobox.transform.a == pytest.approx(pixel_m, abs=1e-6)
    column, row = (found.geobox.transform.c + 18 * tile_m) / pixel_m, (9 * tile_m - found.geobox.transform.f) / pixel_m
    assert (column - round(column), row - round(row)) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert to_tile(found.geobox) == (18, 4)
    transformer = pyproj.Transformer.from_crs("EPSG:32632", "+proj=sinu +R=6371007.181 +units=m", always_xy=True)
    for y, x in ((0, 0), (150, 20), (299, 299)):
        east, north = transformer.transform(*(GROUND.transform * (x + 0.5, y + 0.5)))
        place = ~found.geobox.transform * (east, north)
        assert found.place[y, x] == int(place[1]) * found.geobox.shape.x + int(place[0])


def test_a_footprint_is_the_mean_of_its_ground_and_whole_inside() -> None:
    found = lay_footprints(GROUND)
    image = np.random.default_rng(2).random(GROUND.shape).astype(np.float32)
    means = found.average(image)
    row, column = (int(number[0]) for number in np.nonzero(found.is_whole))
    own = found.place == row * found.geobox.shape.x + column
    assert means[row, column] == pytest.approx(image[own].mean(), rel=1e-5)
    assert found.is_whole.any()
    assert not found.is_whole.all()  # those along the edges reach beyond the ground
    assert 0.97 < own.sum() * 100 / 463.3127165**2 < 1.03


def test_the_coarse_sensor_answers_by_its_gain_and_clouds_by_their_bits() -> None:
    ground = np.full((40, 40), 0.3, np.float32)
    cloud = np.zeros((40, 40), np.float32)
    cloud[:5] = 1
    seen = see_coarse(np.random.default_rng(3), ground, cloud, "B02")
    assert seen[10:].mean() / 0.3 == pytest.approx(RESPONSE["B02"], abs=1e-3)
    assert seen[:5].min() > 0.5
    valid = np.ones((40, 40), bool)
    valid[:, 0] = False
    classes = to_classes(MODIS_STATE, to_state(cloud, valid))
    assert (classes[0, 5], classes[20, 5], classes[20, 0]) == (CLOUD, CLEAR, NODATA)


def test_composites_begin_with_the_year() -> None:
    found = find_composite(datetime(2022, 2, 5, 10, tzinfo=UTC))
    assert f"{found.start:%Y-%m-%dT%H:%M:%S} {found.end:%Y-%m-%dT%H:%M:%S}" == "2022-02-02T00:00:00 2022-02-09T23:59:59"  # MOD09A1.A2022033
    assert find_composite(datetime(2021, 12, 31, tzinfo=UTC)).end == datetime(2021, 12, 31, 23, 59, 59, tzinfo=UTC)
