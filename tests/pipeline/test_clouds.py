"""Clouds and shadows: grown by the stated radius, found by absolute thresholds, cast away from the sun."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.clouds import (
    SHADOW_REACH_M,
    THRESHOLD_BANDS,
    CloudShadow,
    Sun,
    Visible,
    cast_shadow,
    compare_masks,
    compare_with_truth,
    describe_cover,
    find_by_haze,
    find_by_thresholds,
    find_in_scl,
    find_shadow,
    grow_probability,
    to_probability,
)
from sereno.pipeline.sensors.gaofen6_calibration import ESUN, GAINS, compute_reflectance_factor

SAMPLES = os.environ.get("SERENO_SAMPLES")
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")

SPECTRA = {
    "forest": (0.08, 0.07, 0.05, 0.30, 0.001, 0.13),
    "bare ground": (0.13, 0.14, 0.16, 0.24, 0.002, 0.32),
    "sand": (0.26, 0.30, 0.36, 0.42, 0.003, 0.58),
    "water": (0.09, 0.07, 0.04, 0.02, 0.001, 0.01),
    "snow": (0.75, 0.74, 0.73, 0.70, 0.004, 0.08),
    "thick cloud": (0.55, 0.53, 0.54, 0.62, 0.002, 0.45),
    "cirrus over forest": (0.12, 0.11, 0.09, 0.32, 0.02, 0.16),
    "shaded forest": (0.07, 0.05, 0.03, 0.12, 0.001, 0.05),
}
"""Typical reflectance at the top of the atmosphere in THRESHOLD_BANDS."""


def paint(size: int = 60, **patches: tuple[slice, slice]) -> dict[str, npt.NDArray[np.float32]]:
    """Forest with patches of other ground; keys are names of SPECTRA with `_` for spaces."""
    image = np.empty((len(THRESHOLD_BANDS), size, size), np.float32)
    image[:] = np.array(SPECTRA["forest"])[:, None, None]
    for name, place in patches.items():
        image[:, *place] = np.array(SPECTRA[name.replace("_", " ")])[:, None, None]
    return dict(zip(THRESHOLD_BANDS, image, strict=True))


def find(image: dict[str, Any], sun: Sun | None = None) -> CloudShadow:
    return find_by_thresholds(image, sun=sun, pixel_m=10.0)


def test_classes_of_scl_are_split_into_cloud_and_shadow() -> None:
    found = find_in_scl(np.arange(12, dtype=np.uint8)[None])
    assert np.flatnonzero(found.cloud).tolist() == [8, 9, 10]
    assert np.flatnonzero(found.shadow).tolist() == [3]


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_growing_without_feather_is_dilation_with_a_disk(radius: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((30, 40)) > 0.97
    rows, columns = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    disk = rows**2 + columns**2 <= radius**2
    expected = ndimage.binary_dilation(mask, disk) if mask.any() else mask
    np.testing.assert_array_equal(to_probability(mask, dilate_px=radius, feather_px=0) == 255, expected)


def test_the_probability_falls_in_a_straight_line_over_the_feather() -> None:
    mask = np.zeros((1, 20), bool)
    mask[0, 0] = True
    stored = to_probability(mask, dilate_px=3, feather_px=4.0)
    assert stored[0].tolist() == [255] * 4 + [191, 128, 64] + [0] * 13


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_probability_depends_on_the_mask_within_its_reach_alone(seed: int) -> None:
    mask = np.random.default_rng(seed).random((60, 60)) > 0.995
    whole = to_probability(mask, dilate_px=3, feather_px=3.0)
    part = to_probability(mask[10:50, 10:50], dilate_px=3, feather_px=3.0)
    np.testing.assert_array_equal(part[6:-6, 6:-6], whole[16:44, 16:44])


def test_an_image_without_clouds_has_probability_zero() -> None:
    assert not to_probability(np.zeros((5, 5), bool), dilate_px=3, feather_px=3.0).any()


@given(st.integers(0, 4), st.just(0.0) | st.floats(0.1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_growing_probabilities_of_zero_and_one_is_growing_a_mask(radius: int, feather: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((25, 31)) > 0.97
    mask[0, 0] = False
    almost = mask * np.float32(1)
    almost[0, 0] = np.float32(1e-6)  # one value between 0 and 1, so that the way for probabilities is taken
    expected = to_probability(mask, dilate_px=radius, feather_px=feather).astype(int)
    found = grow_probability(almost, dilate_px=radius, feather_px=feather)
    assert abs(found.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(grow_probability(mask * np.float32(1), dilate_px=radius, feather_px=feather), expected)


@given(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.5]), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_grown_probability_is_the_largest_that_a_neighbour_hands_on(radius: int, feather: float, seed: int) -> None:
    probability = np.random.default_rng(seed).random((9, 12)).astype(np.float32)
    rows, columns = np.indices(probability.shape)
    expected = probability.copy()
    for (row, column), value in np.ndenumerate(probability):
        if value >= 0.5:
            beyond = np.maximum(np.hypot(rows - row, columns - column) - radius, 0)
            share = np.maximum(1 - beyond / feather, 0) if feather else beyond == 0
            expected = np.maximum(expected, value * share)
    np.testing.assert_allclose(grow_probability(probability, dilate_px=radius, feather_px=feather), expected * 255, atol=0.501)


def test_doubt_that_is_less_than_half_is_kept_and_not_handed_on() -> None:
    probability = np.full((5, 5), 0.1, np.float32)
    probability[2, 2] = 0.4
    grown = grow_probability(probability, dilate_px=2, feather_px=2.0)
    np.testing.assert_array_equal(grown, np.rint(probability * 255))


def test_agreement_counts_valid_pixels_once_each() -> None:
    first = np.array([[1, 1, 1, 0, 0, 1]], bool)
    second = np.array([[1, 1, 0, 1, 0, 0]], bool)
    valid = np.array([[1, 1, 1, 1, 1, 0]], bool)
    found = compare_masks(first, second, valid)
    assert (found.both, found.only_first, found.only_second, found.neither, found.iou) == (0.4, 0.2, 0.2, 0.2, 0.5)


def test_where_no_cloud_or_no_valid_pixel_is_there_is_no_overlap_to_state() -> None:
    nothing, everything = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert compare_masks(nothing, nothing, everything) == (0.0, 0.0, 0.0, 1.0, None)
    assert compare_masks(everything, everything, nothing) == (0.0, 0.0, 0.0, 0.0, None)


def test_cover_counts_probable_pixels_among_the_valid_ones() -> None:
    probability = np.array([[255, 128, 127, 0, 255]], np.uint8)
    assert describe_cover(probability, np.array([[True, True, True, True, False]])) == 0.5
    assert describe_cover(probability, np.zeros((1, 5), bool)) == 0.0


@pytest.mark.parametrize("ground", ["forest", "bare_ground", "sand", "water", "snow"])
def test_clear_ground_is_neither_cloud_nor_shadow(ground: str) -> None:
    found = find(paint(**{ground: (slice(10, 40), slice(10, 40))}))
    assert not found.cloud.any()
    assert not found.shadow.any()


@pytest.mark.parametrize("cover", ["thick_cloud", "cirrus_over_forest"])
def test_thick_cloud_and_cirrus_are_found_where_they_are(cover: str) -> None:
    place = (slice(10, 40), slice(10, 40))
    expected = np.zeros((60, 60), bool)
    expected[place] = True
    assert (find(paint(**{cover: place})).cloud != expected).mean() < 0.01


def test_specks_of_two_pixels_are_no_cloud() -> None:
    assert not find(paint(thick_cloud=(slice(10, 12), slice(10, 12)))).cloud.any()


def test_dark_ground_is_shadow_only_near_a_cloud_and_water_never_is() -> None:
    shade, lake = (slice(30, 40), slice(30, 40)), (slice(45, 55), slice(30, 40))
    alone = find(paint(shaded_forest=shade))
    near = find(paint(shaded_forest=shade, water=lake, thick_cloud=(slice(5, 20), slice(5, 20))))
    assert not alone.shadow.any()
    assert near.shadow[shade].all()
    assert not near.shadow[lake].any()
    assert not (near.shadow & near.cloud).any()


@pytest.mark.parametrize(("azimuth_deg", "row", "column"), [(180, -1, 0), (90, 0, -1), (0, 1, 0), (135, -1, -1)])
def test_shadows_lie_away_from_the_sun(azimuth_deg: float, row: int, column: int) -> None:
    cloud = np.zeros((201, 201), bool)
    cloud[98:103, 98:103] = True
    shaded = cast_shadow(cloud, Sun(azimuth_deg, 80.0), 10.0)
    rows, columns = np.nonzero(shaded & ~cloud)
    assert np.sign(round(float(np.mean(rows)) - 100)) == row
    assert np.sign(round(float(np.mean(columns)) - 100)) == column
    # 4 km of cloud height under a sun 80 degrees high: 70.5 pixels, and the half-width of the cloud and of the growth
    assert abs(np.hypot(rows - 100, columns - 100).max() - (70.5 + 4 * np.hypot(row, column))) < 2


def test_with_the_sun_known_dark_ground_on_its_side_of_the_cloud_is_no_shadow() -> None:
    image = paint(thick_cloud=(slice(25, 35), slice(25, 35)), shaded_forest=(slice(5, 20), slice(25, 35)))
    assert find(image, Sun(180, 60)).shadow.any()
    assert not find(image, Sun(0, 60)).shadow.any()


def test_shadows_belong_to_clouds_whoever_found_them() -> None:
    image = paint(shaded_forest=(slice(30, 40), slice(30, 40)))
    cloud = np.zeros((60, 60), bool)
    cloud[5:20, 5:20] = True
    assert find_shadow(image, cloud, sun=None, pixel_m=10.0)[32:38, 32:38].all()
    assert not find_shadow(image, np.zeros_like(cloud), sun=None, pixel_m=10.0).any()


def cut(image: dict[str, Any], place: tuple[slice, slice]) -> dict[str, Any]:
    return {name: band[place] for name, band in image.items()}


def test_a_verdict_does_not_depend_on_the_crop() -> None:
    rng = np.random.default_rng(2)
    image = paint(size=420, thick_cloud=(slice(190, 240), slice(200, 230)), shaded_forest=(slice(180, 300), slice(150, 180)))
    image = {name: (band * rng.uniform(0.85, 1.15, band.shape)).astype(np.float32) for name, band in image.items()}
    reach = round(SHADOW_REACH_M / 10) + 4
    whole = find(image)
    part = find(cut(image, (slice(20, 400), slice(15, 410))))
    inner = (slice(20 + reach, 400 - reach), slice(15 + reach, 410 - reach))
    np.testing.assert_array_equal(part.cloud[reach:-reach, reach:-reach], whole.cloud[inner])
    np.testing.assert_array_equal(part.shadow[reach:-reach, reach:-reach], whole.shadow[inner])
    assert whole.shadow[inner].any()


def read_triplet(kind: str) -> dict[str, Any]:
    with rasterio.open(Path(str(SAMPLES)) / "sen12mscr" / "glfcr" / kind / "ROIs1970_fall_139_p839.tif") as file:
        return dict(zip(L1C_BANDS, file.read().astype(np.float32) / 10_000, strict=True))


@pytest.mark.real
@needs_samples
def test_the_real_triplet_is_cloudy_where_the_eye_sees_cloud() -> None:
    found = find(read_triplet("s2_cloudy"))
    assert found.cloud[90:120, 120:170].all()  # the thick cloud in the middle
    assert found.cloud[150:170, 170:220].mean() < 0.2  # green fields below it
    assert found.cloud[200:215, 100:150].mean() < 0.05
    assert found.shadow[10:30, 100:130].mean() > 0.4  # the dark patch between clouds at the top
    assert 0.55 < found.cloud.mean() < 0.75
    assert 0.01 < found.shadow.mean() < 0.08


@pytest.mark.real
@needs_samples
def test_the_real_clear_image_is_clear() -> None:
    found = find(read_triplet("s2_cloudfree"))
    assert found.cloud.mean() < 0.003
    assert not found.shadow.any()


@pytest.mark.real
@needs_samples
def test_real_scenes_of_slovenia_are_told_apart() -> None:
    scenes = np.load(Path(str(SAMPLES)) / "s2" / "eolearn" / "REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)
    covers = [float(find(dict(zip(L1C_BANDS, scene, strict=True))).cloud.mean()) for scene in scenes]
    assert covers[0] > 0.95  # thick cloud
    assert covers[1] > 0.2  # a thin veil, of which these rules miss most
    assert max(covers[2:]) == 0.0


def find_in_visible(image: dict[str, Any], sun: Sun | None = None) -> CloudShadow:
    return find_by_haze(Visible(*(image[name] for name in ("B02", "B03", "B04", "B08"))), sun=sun, pixel_m=10.0)


@pytest.mark.parametrize("ground", ["forest", "bare_ground", "sand", "water"])
def test_clear_ground_is_neither_cloud_nor_shadow_in_four_bands(ground: str) -> None:
    found = find_in_visible(paint(**{ground: (slice(10, 40), slice(10, 40))}))
    assert not found.cloud.any()
    assert not found.shadow.any()


def test_thick_cloud_is_found_in_four_bands_and_snow_cannot_be_told_from_it() -> None:
    place = (slice(10, 40), slice(10, 40))
    for cover in ("thick_cloud", "snow"):  # snow: the known price of having no SWIR
        found = find_in_visible(paint(**{cover: place})).cloud
        assert found[place].mean() > 0.99
        assert found.sum() == found[place].sum()


def test_bright_turbid_water_is_no_cloud_in_four_bands() -> None:
    image = paint()
    for name, value in {"B02": 0.2, "B03": 0.2, "B04": 0.17, "B08": 0.09}.items():
        image[name][10:40, 10:40] = value
    assert not find_in_visible(image).cloud.any()


def test_shadow_in_four_bands_lies_away_from_the_sun_and_is_not_water() -> None:
    shade, lake = (slice(5, 20), slice(25, 35)), (slice(5, 20), slice(40, 50))
    image = paint(thick_cloud=(slice(25, 35), slice(25, 50)), shaded_forest=shade, water=lake)
    south = find_in_visible(image, Sun(180, 60)).shadow
    assert south[shade].all()
    assert not south[lake].any()
    assert not find_in_visible(image, Sun(0, 60)).shadow.any()
    assert not find_in_visible(paint(shaded_forest=shade)).shadow.any()


def test_shaded_soil_under_clear_air_is_shadow_in_four_bands() -> None:
    image = paint(thick_cloud=(slice(25, 35), slice(25, 35)))
    # Soil with a quarter of the light left and molecular scattering on top (0.06, 0.035, 0.02, 0.01): greener than it is near infrared.
    for name, value in {"B02": 0.09, "B03": 0.075, "B04": 0.065, "B08": 0.06}.items():
        image[name][5:20, 25:35] = value
    assert find_in_visible(image, Sun(180, 60)).shadow[5:20, 25:35].all()


@pytest.mark.parametrize(("instrument", "year"), [(name, year) for name in ("GF6-PMS", "GF6-WFV") for year in GAINS[name]])
def test_cloud_that_saturates_every_band_of_twelve_bits_is_cloud_still(instrument: str, year: int) -> None:
    """Bands saturate at different reflectance, which gives cloud a colour that it has not."""
    gains, esun = GAINS[instrument][year].bands[:4], ESUN[instrument][:4]
    for zenith_deg in (15, 65):
        factors = [compute_reflectance_factor(gain, sun, zenith_deg, 1.0) for gain, sun in zip(gains, esun, strict=True)]
        full = Visible(*(np.full((9, 9), 4095 * factor, np.float32) for factor in factors))
        assert find_by_haze(full, sun=None, pixel_m=8).cloud.all()


def test_what_is_found_of_the_truth_is_counted_by_kind_and_of_nothing_is_none() -> None:
    def mark(*columns: int) -> Any:
        row = np.zeros((1, 8), bool)
        row[0, list(columns)] = True
        return row

    # Thick cloud in 0 and 1, thin in 2 and 3, shadow in 4; 7 is not known.
    found = compare_with_truth(CloudShadow(mark(0, 1, 2, 5, 7), mark(6)), CloudShadow(mark(0, 1, 2, 3), mark(4)), mark(0, 1), ~mark(7))
    assert found == (1.0, 0.5, 0.5, 0.0, 0.5)
    nothing = compare_with_truth(*[CloudShadow(mark(), mark())] * 2, mark(), mark(1, 2))
    assert nothing == (None, None, 0.0, None, 0.0)
