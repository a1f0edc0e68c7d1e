from datetime import UTC, datetime

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.atmosphere import SkySettings
from sereno.pipeline.bands import GAOFEN_BANDS
from sereno.pipeline.ground import Ground, make_ground
from sereno.pipeline.overflights import Scenery, cover_scenery, draw_error, make_scenery, sample_layers
from sereno.pipeline.overlay import compute_air
from sereno.pipeline.world import make_rng

NOON = datetime(2021, 6, 8, 10, 20, tzinfo=UTC)
PLACE = (9.0, 45.5)
CLEAR = SkySettings(cover=0.001, blob_px=8, haze=0.0, cirrus=0.0, base_m=900)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return make_ground(make_rng(5, "overflights"), (240, 240))


@pytest.fixture(scope="module")
def scenery(ground: Ground) -> Scenery:
    return make_scenery(ground, "WFV", NOON, PLACE)


def test_an_error_has_its_length_and_any_direction() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array([draw_error(rng, (20.0, 120.0)) for _ in range(300)])
    lengths, angles = np.hypot(*drawn.T), np.arctan2(*drawn.T)
    assert lengths.min() > 19.9
    assert lengths.max() < 120.1
    assert np.histogram(angles, 4, (-np.pi, np.pi))[0].min() > 50
    assert draw_error(rng, (0.0, 0.0)) == (0.0, 0.0)


def test_air_adds_to_blue_what_it_keeps_from_no_red(scenery: Scenery) -> None:
    names = [band.common_name for band in scenery.bands]
    lowest = {name: float(scenery.reflectance[index].min()) for index, name in enumerate(names)}
    air = {band.common_name: compute_air(band.wavelength_nm, scenery.sun.elevation_deg).path for band in GAOFEN_BANDS}
    assert all(lowest[name] > air[name] for name in names)
    assert lowest["coastal"] > lowest["blue"] > lowest["green"]
    assert 0.05 < air["blue"] < 0.12  # clean air under a high sun


def test_leaves_are_bright_in_near_infrared_and_dark_in_red(scenery: Scenery) -> None:
    median = {band.common_name: float(np.median(layer)) for band, layer in zip(scenery.bands, scenery.reflectance, strict=True)}
    assert median["nir"] > 2 * median["red"]
    assert median["red"] < median["rededge1"] < median["rededge2"] < median["nir"]


def test_pms_sees_the_first_bands_of_wfv(ground: Ground, scenery: Scenery) -> None:
    assert np.array_equal(make_scenery(ground, "PMS", NOON, PLACE).reflectance, scenery.reflectance[:4])


def test_crops_differ_between_spring_and_summer(ground: Ground) -> None:
    april, july = (make_scenery(ground, "PMS", datetime(2021, month, 8, 10, 20, tzinfo=UTC), PLACE) for month in (4, 7))
    assert np.abs(april.reflectance[3] - july.reflectance[3]).mean() > 0.03


def test_under_an_open_sky_only_noise_is_added(scenery: Scenery) -> None:
    seen = cover_scenery(np.random.default_rng(2), scenery, CLEAR)
    free = (seen.cloud < 0.001) & (seen.shadow < 0.001)
    assert free.mean() > 0.5
    error = (seen.image - scenery.reflectance)[:, free]
    assert abs(error.mean()) < 1e-4
    assert 0.001 < error.std() < 0.004


def test_clouds_hide_what_the_truth_says_they_hide(scenery: Scenery) -> None:
    settings = SkySettings(cover=0.4, blob_px=20, haze=0.4, cirrus=0.1, base_m=900)
    seen = cover_scenery(np.random.default_rng(3), scenery, settings)
    assert 0.2 < (seen.cloud > 0.5).mean() < 0.8
    changed = np.abs(seen.image - scenery.reflectance)[0]
    assert np.quantile(changed[seen.cloud > 0.99], 0.05) > 0.1
    assert np.median(changed[(seen.cloud < 0.01) & (seen.shadow < 0.01)]) < 0.003


def test_a_plane_is_sampled_exactly_where_it_lies() -> None:
    source = GeoBox((60, 60), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32632")
    target = GeoBox((30, 25), Affine(8, 0, 500_080, 0, -8, 4_499_920), "EPSG:32632")
    east, north = (axis.values for axis in (source.coordinates["x"], source.coordinates["y"]))
    layers = np.stack([np.broadcast_to(east - 500_000, (60, 60)), np.broadcast_to(4_500_000 - north[:, None], (60, 60))])
    sampled = sample_layers(layers, source, target)
    assert np.allclose(sampled[0], target.coordinates["x"].values - 500_000, atol=1e-3)
    assert np.allclose(sampled[1], 4_500_000 - target.coordinates["y"].values[:, None], atol=1e-3)
