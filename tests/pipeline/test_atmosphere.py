from datetime import UTC, datetime

import numpy as np
import pytest

from sereno.pipeline.atmosphere import Sky, SkySettings, Sun, apply_sky, classify_scene, compute_sun, make_sky, shadow_offset_px
from sereno.pipeline.noise import Image

CLOUDY = SkySettings(cover=0.4, blob_px=30, haze=0.6, cirrus=0.3, base_m=1000)
SHAPE = (400, 400)


def _flat_sky(**parts: float) -> Sky:
    values = {"thick": 0.0, "top": 1.0, "haze": 0.0, "cirrus": 0.0, "shadow": 0.0} | parts
    return Sky(**{name: np.full((20, 20), value, np.float32) for name, value in values.items()})


def _field(value: float) -> Image:
    return np.full((20, 20), value, np.float32)


def test_sun_stands_near_the_zenith_at_the_equator_at_noon_of_the_equinox() -> None:
    assert compute_sun(datetime(2021, 3, 21, 12, tzinfo=UTC), 0, 0).elevation_deg > 88


def test_sun_stands_south_of_europe_at_noon_and_east_in_the_morning() -> None:
    noon = compute_sun(datetime(2021, 6, 21, 11, 20, tzinfo=UTC), 10, 45.5)
    assert abs(noon.azimuth_deg - 180) < 2
    assert abs(noon.elevation_deg - (90 - 45.5 + 23.45)) < 0.2  # culmination: 90 - latitude + declination
    assert 60 < compute_sun(datetime(2021, 6, 21, 6, 0, tzinfo=UTC), 10, 45.5).azimuth_deg < 110


def test_shadows_point_away_from_the_sun() -> None:
    assert shadow_offset_px(10, np.radians(180)) == (-10, 0)  # sun in the south, shadow to the north: fewer rows
    assert shadow_offset_px(10, np.radians(90)) == (0, -10)  # sun in the east, shadow to the west


def test_shadow_lies_where_height_and_sun_put_it() -> None:
    sun = Sun(150.0, 45.0)
    sky = make_sky(np.random.default_rng(3), SHAPE, settings=CLOUDY, sun=sun)
    rows, columns = shadow_offset_px(100, np.radians(150))  # 1000 m at 45 degrees: 100 px
    inner = sky.thick[150:350, 150:350]
    moved = sky.shadow[150 + rows : 350 + rows, 150 + columns : 350 + columns]
    assert np.corrcoef(inner.ravel(), moved.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("cover", [0.005, 0.4, 0.985])
def test_thick_cloud_covers_the_share_that_was_asked_for(cover: float) -> None:
    sky = make_sky(np.random.default_rng(4), (600, 600), settings=CLOUDY._replace(cover=cover, blob_px=10), sun=Sun(150, 60))
    assert abs((sky.thick > 0.5).mean() - cover) < 0.05


def test_cloud_tops_are_textured() -> None:
    sky = make_sky(np.random.default_rng(5), SHAPE, settings=CLOUDY, sun=Sun(150, 60))
    assert sky.top[sky.thick > 0.9].std() > 0.02


def test_thin_cloud_brightens_blue_more_than_short_wave_infrared() -> None:
    hazy = _flat_sky(haze=0.5)
    blue = apply_sky(_field(0.05), hazy, band=1, wavelength_nm=492) - 0.05
    swir = apply_sky(_field(0.05), hazy, band=11, wavelength_nm=2202) - 0.05
    assert np.all(blue > 10 * np.abs(swir))


def test_thick_cloud_hides_the_ground_and_a_clear_sky_changes_nothing() -> None:
    cloud = _flat_sky(thick=1.0)
    dark, bright = (apply_sky(_field(value), cloud, band=3, wavelength_nm=665) for value in (0.02, 0.4))
    assert np.array_equal(dark, bright)
    assert np.array_equal(apply_sky(_field(0.2), _flat_sky(), band=3, wavelength_nm=665), _field(0.2))


def test_shadow_takes_more_near_infrared_than_blue() -> None:
    shade = _flat_sky(shadow=1.0)
    assert np.all(apply_sky(_field(0.3), shade, band=7, wavelength_nm=833) < apply_sky(_field(0.3), shade, band=1, wavelength_nm=492))


@pytest.mark.parametrize(
    ("ground", "parts", "expected"),
    [
        ({"B03": 0.06, "B04": 0.04, "B08": 0.40}, {}, 4),
        ({"B03": 0.12, "B04": 0.16, "B08": 0.22}, {}, 5),
        ({"B03": 0.06, "B04": 0.04, "B08": 0.02}, {}, 6),
        ({"B03": 0.06, "B04": 0.04, "B08": 0.40}, {"thick": 1.0}, 9),
        ({"B03": 0.06, "B04": 0.04, "B08": 0.40}, {"cirrus": 0.3}, 10),
        ({"B03": 0.06, "B04": 0.04, "B08": 0.40}, {"shadow": 1.0}, 3),
        ({"B03": 0.06, "B04": 0.04, "B08": 0.40}, {"haze": 0.05}, 4),  # thin cloud that the product misses
    ],
)
def test_classes_are_those_of_l2a(ground: dict[str, float], parts: dict[str, float], expected: int) -> None:
    clear = {name: _field(value) for name, value in ground.items()}
    classes = classify_scene(np.random.default_rng(6), clear, _flat_sky(**parts), np.ones((20, 20), bool))
    assert classes.shape == (10, 10)
    assert np.mean(classes == expected) > 0.9


def test_outside_the_swath_there_is_no_class() -> None:
    valid = np.ones((20, 20), bool)
    valid[:, :5] = False
    clear = {"B03": _field(0.06), "B04": _field(0.04), "B08": _field(0.4)}
    classes = classify_scene(np.random.default_rng(7), clear, _flat_sky(), valid)
    assert np.all(classes[:, :3] == 0)
    assert np.all(classes[:, 3:] > 0)
