"""Made-up clouds over clear images: nothing where there is no sky, the world's law where there is no air, the truth that goes with it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sereno.pipeline.atmosphere import Sky, SkySettings, Sun, apply_sky
from sereno.pipeline.bands import GAOFEN_BANDS, L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.clouds import Sun as SunAbove
from sereno.pipeline.clouds import Visible, find_by_haze
from sereno.pipeline.errors import DataError
from sereno.pipeline.overlay import compute_air, draw_clouds, lay_clouds

SUN = Sun(150.0, 50.0)
SHAPE = (90, 80)
WFV = tuple(band.wavelength_nm for band in GAOFEN_BANDS)
BROKEN = SkySettings(cover=0.35, blob_px=12, haze=0.6, cirrus=0.2, base_m=300)


def make_image(bands: int = 8) -> npt.NDArray[np.float32]:
    """Brighter everywhere than clean air alone."""
    return np.random.default_rng(1).uniform(0.15, 0.4, (bands, *SHAPE)).astype(np.float32)


def make_sky_of(**parts: float) -> Sky:
    """The same sky everywhere: what is not given is nothing, tops are of brightness 1."""
    values = {"thick": 0.0, "top": 1.0, "haze": 0.0, "cirrus": 0.0, "shadow": 0.0} | parts
    return Sky(**{name: np.full(SHAPE, value, np.float32) for name, value in values.items()})


def lay(image: npt.NDArray[Any], sky: Sky, wavelengths: tuple[float, ...] = WFV) -> Any:
    return lay_clouds(image, sky, wavelengths_nm=wavelengths, sun=SUN)


def draw(seed: int = 0, pixel_m: float = 8.0) -> Sky:
    return draw_clouds(np.random.default_rng(seed), SHAPE, settings=BROKEN, sun=SUN, pixel_m=pixel_m)


def test_air_scatters_what_is_known_of_molecules() -> None:
    # Hansen and Travis 1974: optical thickness 0.0973 at 550 nm; under a sun in the zenith 3/8 of it comes back.
    air = compute_air(550, 90)
    assert -np.log(air.through) == pytest.approx(0.0973, rel=0.005)
    assert air.path == pytest.approx(0.375 * 0.0973, rel=0.005)


def test_without_clouds_the_image_stays_what_it_is() -> None:
    image = make_image()
    image[:, 3, 4] = 0.001  # darker than clean air
    found = lay(image, make_sky_of())
    assert found.image == pytest.approx(image, abs=1e-6)
    assert not found.cloud.any()
    assert not found.shadow.any()


def test_where_air_scatters_nothing_it_is_the_law_of_the_simulated_world() -> None:
    name = "B12"  # 2202 nm: molecules add 0.0001
    length = next(band.wavelength_nm for band in SENTINEL2_BANDS if band.name == name)
    image, sky = make_image(1), draw()
    expected = apply_sky(image[0], sky, band=L2A_BANDS.index(name), wavelength_nm=length)
    assert lay(image, sky, (length,)).image[0] == pytest.approx(expected, abs=5e-4)


def test_thick_cloud_hides_the_ground_and_is_nearly_white() -> None:
    sky = make_sky_of(thick=1.0)
    first, second = lay(make_image(), sky), lay(make_image()[::-1], sky)
    assert first.image == pytest.approx(second.image, abs=1e-6)
    mean = first.image.mean(axis=(1, 2))
    assert 0.6 < mean.min() < mean.max() < 0.85
    assert (first.cloud == 1).all()


def test_thin_cloud_hides_blue_more_than_near_infrared() -> None:
    ground = np.full((8, *SHAPE), 0.15, np.float32)
    lost = [lay(ground + np.float32(level), make_sky_of(haze=0.5)).image[:, 0, 0] for level in (0.0, 0.1)]
    contrast = (lost[1] - lost[0]) / 0.1
    blue, nir = WFV.index(488.2), WFV.index(826.1)
    assert contrast[blue] == pytest.approx(np.exp(-0.5 * (490 / 488.2) ** 1.6), abs=1e-4)
    assert contrast[nir] == pytest.approx(np.exp(-0.5 * (490 / 826.1) ** 1.6), abs=1e-4)


def test_shadow_takes_light_of_the_ground_and_none_of_the_air() -> None:
    image = make_image()
    found = lay(image, make_sky_of(shadow=1.0))
    for place, length in enumerate(WFV):
        path = compute_air(length, SUN.elevation_deg).path
        left = (found.image[place] - path) / (image[place] - path)
        assert left == pytest.approx(np.full(SHAPE, left[0, 0]), abs=1e-4)
        assert 0.2 < left[0, 0] < 0.5
    assert not found.cloud.any()
    assert (found.shadow == 1).all()


def test_the_truth_is_the_share_of_red_light_that_is_lost() -> None:
    sky = draw()
    dark, bright = (lay(np.full((1, *SHAPE), level, np.float32), sky, (660.0,)).image[0] for level in (0.2, 0.3))
    lit = 1 - (1 - 0.22 - 0.23 * (840 - 660) / 350) * sky.shadow
    assert 1 - (bright - dark) / 0.1 / lit == pytest.approx(lay(make_image(), sky).cloud, abs=1e-4)


def test_shadows_lie_as_far_away_as_the_size_of_pixels_says() -> None:
    """Half the pixel, twice the shift: shadow correlates with cloud moved by height over tangent, away from the sun."""
    for pixel_m in (8.0, 16.0):
        sky = draw(pixel_m=pixel_m)
        distance = BROKEN.base_m / pixel_m / np.tan(np.radians(SUN.elevation_deg))
        row, column = round(distance * np.cos(np.radians(150))), round(-distance * np.sin(np.radians(150)))
        inner = (slice(40, -5), slice(5, -40))
        moved = np.roll(sky.thick, (row, column), axis=(0, 1))
        assert (
            np.corrcoef(moved[: SHAPE[0] - 40, : SHAPE[1] - 40].ravel(), sky.shadow[: SHAPE[0] - 40, : SHAPE[1] - 40].ravel())[0, 1] > 0.95
        )
        assert np.corrcoef(sky.thick[inner].ravel(), sky.shadow[inner].ravel())[0, 1] < 0.6


def test_equal_seeds_give_equal_images_and_others_others() -> None:
    first, again, other = (lay(make_image(), draw(seed)) for seed in (3, 3, 4))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert (first.cloud != other.cloud).any()


def test_thick_made_up_clouds_are_clouds_to_the_rules() -> None:
    forest = np.array([0.10, 0.08, 0.05, 0.30], np.float32)[:, None, None] * np.ones((1, *SHAPE), np.float32)
    sky = draw()
    found = find_by_haze(Visible(*lay(forest, sky, WFV[:4]).image), sun=SunAbove(*SUN), pixel_m=8.0)
    assert found.cloud[sky.thick > 0.8].mean() > 0.99


@pytest.mark.parametrize(
    ("shape", "wavelengths", "message"),
    [((3, 5, 5), (490.0,) * 3, "sky of shape"), ((2, *SHAPE), (490.0,), "1 bands"), ((1, *SHAPE), (10_000.0,), "10000")],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], wavelengths: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        lay(np.zeros(shape, np.float32), make_sky_of(), wavelengths)


def test_a_sun_below_the_horizon_is_refused() -> None:
    with pytest.raises(DataError, match=r"-3\.0 degrees"):
        draw_clouds(np.random.default_rng(0), SHAPE, settings=BROKEN, sun=Sun(0, -3.0), pixel_m=8)
    with pytest.raises(DataError, match="have no size"):
        draw_clouds(np.random.default_rng(0), SHAPE, settings=BROKEN, sun=SUN, pixel_m=0)
