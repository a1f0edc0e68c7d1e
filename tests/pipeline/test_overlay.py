"""Simulated clouds over clear images: nothing where there is none, what two streams of light say of thick ones, and the truth of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sereno.pipeline.atmosphere import SkySettings, Sun
from sereno.pipeline.bands import GAOFEN_BANDS, L1C_BANDS, SENTINEL2_BANDS
from sereno.pipeline.clouds import Sun as SunAbove
from sereno.pipeline.clouds import Visible, find_by_haze
from sereno.pipeline.errors import DataError
from sereno.pipeline.overlay import CLOUD, HIDING, REFLECTING, Clouds, compute_air, draw_clouds, lay_clouds

SUN = Sun(150.0, 50.0)
SHAPE = (90, 80)
WFV = tuple(band.wavelength_nm for band in GAOFEN_BANDS)
L1C = tuple(band.wavelength_nm for band in SENTINEL2_BANDS)
BROKEN = SkySettings(cover=0.35, blob_px=12, haze=0.6, cirrus=0.2, base_m=300)


def make_image(bands: int = 8) -> npt.NDArray[np.float32]:
    """Brighter everywhere than clean air alone."""
    return np.random.default_rng(1).uniform(0.15, 0.4, (bands, *SHAPE)).astype(np.float32)


def make_clouds(**parts: float) -> Clouds:
    """The same sky everywhere: what is not given is nothing, tops are of brightness 1."""
    values = {"water": 0.0, "ice": 0.0, "relief": 1.0, "shadow": 0.0} | parts
    return Clouds(**{name: np.full(SHAPE, value, np.float32) for name, value in values.items()})


def lay(image: npt.NDArray[Any], clouds: Clouds, wavelengths: tuple[float, ...] = WFV, sun: Sun | None = SUN) -> Any:
    return lay_clouds(image, clouds, wavelengths_nm=wavelengths, sun=sun)


def draw(seed: int = 0, pixel_m: float = 8.0, settings: SkySettings = BROKEN, shape: tuple[int, int] = SHAPE) -> Clouds:
    return draw_clouds(np.random.default_rng(seed), shape, settings=settings, sun=SUN, pixel_m=pixel_m)


def test_air_scatters_what_is_known_of_molecules() -> None:
    # Hansen and Travis 1974: optical thickness 0.0973 at 550 nm; under a sun in the zenith 3/8 of it comes back.
    air = compute_air(550, 90)
    assert -np.log(air.through) == pytest.approx(0.0973, rel=0.005)
    assert air.path == pytest.approx(0.375 * 0.0973, rel=0.005)


@pytest.mark.parametrize("sun", [SUN, None])
def test_without_clouds_the_image_stays_what_it_is(sun: Sun | None) -> None:
    image = make_image()
    image[:, 3, 4] = 0.001  # darker than clean air
    found = lay(image, make_clouds(), sun=sun)
    assert found.image == pytest.approx(image, abs=1e-6)
    assert not found.cloud.any()
    assert not found.shadow.any()


def test_an_even_cloud_over_even_ground_shines_as_two_streams_say() -> None:
    """Bohren 1987, Stokes 1862, by hand: r = x / (1 + x), then r + (1 - r)^2 G / (1 - r G), at the surface, where no air is in the way."""
    ground, length = 0.3, 865.0
    for thickness in (0.5, 5.0, 50.0):
        turned = REFLECTING * thickness / (1 + REFLECTING * thickness)
        expected = CLOUD[L1C_BANDS.index("B8A")] * turned + (1 - turned) ** 2 * ground / (1 - turned * ground)
        seen = lay(np.full((1, *SHAPE), ground, np.float32), make_clouds(water=thickness), (length,), None)
        assert seen.image == pytest.approx(np.full((1, *SHAPE), expected), abs=2e-3)


def test_thick_cloud_hides_the_ground_and_is_nearly_white_in_the_visible() -> None:
    image = make_image()
    first, second = lay(image, make_clouds(water=80.0)), lay(image[:, ::-1], make_clouds(water=80.0))
    assert first.image == pytest.approx(second.image, abs=5e-4)  # alike but for the mean of the ground around
    visible = first.image[:3].mean(axis=(1, 2))
    assert 0.5 < visible.min() < visible.max() < 0.8
    assert visible.max() / visible.min() < 1.15
    assert (first.cloud > 0.999).all()


def test_thick_low_cloud_is_dark_in_the_bands_of_vapour_and_cirrus_is_not() -> None:
    image = np.full((13, *SHAPE), 0.2, np.float32)
    image[10] = 0.001
    low, high = (lay(image, make_clouds(**{kind: 30.0}), L1C).image.mean(axis=(1, 2)) for kind in ("water", "ice"))
    places = {name: place for place, name in enumerate(L1C_BANDS)}
    assert low[places["B10"]] < 0.01
    assert high[places["B10"]] > 0.2
    assert low[places["B09"]] < 0.5 * low[places["B8A"]] < high[places["B09"]]
    assert high[places["B11"]] < low[places["B11"]]  # ice absorbs


def test_shadow_takes_light_of_the_ground_and_none_of_the_air() -> None:
    image = make_image()
    found = lay(image, make_clouds(shadow=1.0))
    for place, length in enumerate(WFV):
        path = compute_air(length, SUN.elevation_deg).path
        left = (found.image[place] - path) / (image[place] - path)
        assert left == pytest.approx(np.full(SHAPE, left[0, 0]), abs=1e-4)
        assert 0.2 < left[0, 0] < 0.5
    assert not found.cloud.any()
    assert (found.shadow == 1).all()


def test_full_shadow_leaves_the_light_of_the_sky_the_less_the_longer_the_wave() -> None:
    """Seen at the ground, where no air adds its own; what is left was measured on shadows of real clouds."""
    image = make_image(3)
    found = lay(image, make_clouds(shadow=1.0), (490.0, 865.0, 2200.0), None)
    assert (found.image / image).mean(axis=(1, 2)) == pytest.approx([0.48, 0.34, 0.22], abs=1e-4)


def test_the_truth_is_what_is_lost_of_the_contrast_of_the_ground() -> None:
    """A chequered ground under thin cloud: what is left of its contrast, but for the light that is turned back on both ways."""
    chequers = np.indices(SHAPE).sum(axis=0) % 2 * np.float32(0.1) + np.float32(0.1)
    found = lay(chequers[None], make_clouds(water=0.8), (660.0,), None)
    inner = found.image[0][30:60, 30:50]
    turned = REFLECTING * 0.8 / (1 + REFLECTING * 0.8)
    left = (inner.max() - inner.min()) / 0.1 / ((1 - turned) ** 2 / (1 - turned * 0.15))
    assert left == pytest.approx(1 - float(found.cloud[0, 0]), abs=2e-3)
    assert float(found.cloud[0, 0]) == pytest.approx(1 - np.exp(-HIDING * 0.8), abs=1e-6)


def test_as_much_of_the_ground_is_covered_as_is_asked_for() -> None:
    for cover in (0.0, 0.2, 0.7):
        clouds = draw(5, settings=SkySettings(cover, 12, 0.0, 0.0, 300.0), shape=(400, 400))
        assert float((1 - np.exp(-HIDING * clouds.water) > 0.8).mean()) == pytest.approx(cover, abs=0.06)


def test_clouds_fade_at_their_edges_over_many_pixels() -> None:
    """Real ones do: on the triplet a fifth of the ground lies under what is neither clear nor hidden."""
    lost = lay(make_image(), draw(settings=SkySettings(0.4, 40, 0.0, 0.0, 300.0))).cloud
    assert 0.08 < ((lost > 0.05) & (lost < 0.9)).mean() < 0.5


@pytest.mark.parametrize("pixel_m", [8.0, 16.0])
def test_shadows_lie_as_far_away_as_the_size_of_pixels_says(pixel_m: float) -> None:
    """Half the pixel, twice the shift: shadow correlates with cloud moved by height over tangent, away from the sun."""
    clouds = draw(pixel_m=pixel_m)
    distance = BROKEN.base_m / pixel_m / np.tan(np.radians(SUN.elevation_deg))
    row, column = round(distance * np.cos(np.radians(150))), round(-distance * np.sin(np.radians(150)))
    assert row < 0  # the sun is in the south-east: shadows fall north-westwards
    assert column < 0
    hidden = 1 - np.exp(-0.35 * (clouds.water + clouds.ice))
    moved, shadow = hidden[-row:, -column:], clouds.shadow[:row, :column]
    assert np.corrcoef(moved.ravel(), shadow.ravel())[0, 1] > 0.95
    assert np.corrcoef(hidden.ravel(), clouds.shadow.ravel())[0, 1] < 0.8


def test_clouds_outside_the_image_cast_shadows_into_it() -> None:
    """A far shadow comes from clouds that the image does not hold: it is there, and not a copy of what wraps around."""
    clouds = draw(2, settings=SkySettings(0.5, 12, 0.0, 0.0, 3000.0))
    assert 0.2 < (clouds.shadow > 0.5).mean() < 0.8


def test_equal_seeds_give_equal_images_and_others_others() -> None:
    first, again, other = (lay(make_image(), draw(seed)) for seed in (3, 3, 4))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert (first.cloud != other.cloud).any()


def test_thick_made_up_clouds_are_clouds_to_the_rules() -> None:
    forest = np.array([0.10, 0.08, 0.05, 0.30], np.float32)[:, None, None] * np.ones((1, *SHAPE), np.float32)
    covered = lay(forest, draw(), WFV[:4])
    found = find_by_haze(Visible(*covered.image), sun=SunAbove(*SUN), pixel_m=8.0)
    assert found.cloud[covered.cloud > 0.98].mean() > 0.97


@pytest.mark.parametrize(
    ("shape", "wavelengths", "message"),
    [((3, 5, 5), (490.0,) * 3, "clouds of shape"), ((2, *SHAPE), (490.0,), "1 bands"), ((1, *SHAPE), (10_000.0,), "10000")],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], wavelengths: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        lay(np.zeros(shape, np.float32), make_clouds(), wavelengths)


def test_a_sun_below_the_horizon_is_refused() -> None:
    with pytest.raises(DataError, match=r"-3\.0 degrees"):
        draw_clouds(np.random.default_rng(0), SHAPE, settings=BROKEN, sun=Sun(0, -3.0), pixel_m=8)
    with pytest.raises(DataError, match="have no size"):
        draw_clouds(np.random.default_rng(0), SHAPE, settings=BROKEN, sun=SUN, pixel_m=0)
