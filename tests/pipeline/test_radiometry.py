"""Conversions are exact, never wrap, and count what they clamp; the border of an image is no measurement."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sereno.pipeline.radiometry import (
    calibrate_power,
    centi_db_to_power,
    decibel_to_centi_db,
    mask_border,
    power_to_centi_db,
    to_reflectance,
    to_stored_reflectance,
)
from sereno.pipeline.scene import MAX_REFLECTANCE

SAMPLES = os.environ.get("SERENO_SAMPLES")


@given(hnp.arrays(np.uint16, 20), st.sampled_from((-1000, 0, 500)))
def test_removing_an_offset_equals_exact_integers_clamped_and_counted(dn: np.ndarray, offset_dn: int) -> None:
    stored, n_clamped = to_stored_reflectance(dn, np.ones(20, bool), offset_dn=offset_dn)
    exact = [int(number) + offset_dn for number in dn]
    assert stored.tolist() == [min(max(number, 0), MAX_REFLECTANCE) for number in exact]
    assert n_clamped == sum(not 0 <= number <= MAX_REFLECTANCE for number in exact)


def test_clamped_values_are_counted_only_where_valid() -> None:
    stored, n_clamped = to_stored_reflectance(
        np.array([0, 999, 1000, 1001], np.uint16), np.array([False, True, True, True]), offset_dn=-1000
    )
    assert stored.tolist() == [0, 0, 0, 1]
    assert n_clamped == 1


def test_known_powers_have_their_decibels() -> None:
    power = np.array([1.0, 0.1, 0.5, 1e-9, 0.0, -1.0, np.nan], np.float32)
    valid = power > 0
    stored, n_clamped = power_to_centi_db(power, valid)
    assert stored.tolist() == [0, -1000, -301, -5000, 0, 0, 0]
    assert n_clamped == 1


@given(hnp.arrays(np.int16, 20, elements=st.integers(-4000, 3000)))
def test_stored_backscatter_survives_the_way_to_power_and_back(stored: np.ndarray) -> None:
    again, n_clamped = power_to_centi_db(centi_db_to_power(stored), np.ones(20, bool))
    assert again.tolist() == stored.tolist()
    assert n_clamped == 0


def test_decibels_beyond_the_store_are_clamped_and_counted() -> None:
    stored, n_clamped = decibel_to_centi_db(np.array([-60.0, -49.999, 400.0, np.nan], np.float32), np.array([True, True, True, False]))
    assert stored.tolist() == [-5000, -5000, 32767, 0]
    assert n_clamped == 2


def test_calibration_equals_exact_numbers_and_counts_what_lies_below_the_noise() -> None:
    dn = np.array([[0, 3, 100, 65535]], np.uint16)
    gain, noise = np.array([[500.0, 500.0, 400.0, 474.0]]), np.array([[900.0, 900.0, 1234.5, 0.0]])
    power, n_floored = calibrate_power(dn, gain, noise)
    assert power[0].tolist() == pytest.approx([0, 0, (100**2 - 1234.5) / 400**2, 65535**2 / 474**2])
    assert n_floored == 1  # nodata is not counted


def test_without_noise_nothing_is_subtracted() -> None:
    power, n_floored = calibrate_power(np.array([[1, 20]], np.uint16), np.full((1, 2), 10.0), None)
    assert power[0].tolist() == pytest.approx([0.01, 4.0])
    assert n_floored == 0


def image_with_border() -> np.ndarray:
    """An image of 60 x 80 with a black rim of 10, specks of border noise in the rim, and a pixel of value 0 inside."""
    known = np.zeros((60, 80), bool)
    known[10:50, 10:70] = True
    known[2:4, 5:9] = True
    known[30, 40] = False
    return known


def test_border_noise_is_cut_and_a_zero_inside_the_image_is_not_taken_for_border() -> None:
    expected = np.zeros((60, 80), bool)
    expected[13:47, 15:65] = True
    expected[30, 40] = False
    np.testing.assert_array_equal(mask_border(image_with_border(), border_px=(3, 5)), expected)


def test_only_edges_of_the_file_are_cut_where_the_image_reaches_the_side_of_a_window() -> None:
    cut = mask_border(np.ones((20, 30), bool), border_px=(3, 5), edges=(True, False, False, True))
    expected = np.zeros((20, 30), bool)
    expected[3:, :25] = True
    np.testing.assert_array_equal(cut, expected)


def test_a_window_without_data_has_no_image() -> None:
    assert not mask_border(np.zeros((5, 5), bool)).any()


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_the_black_border_of_a_real_scene_is_cut_and_its_sea_and_lakes_stay() -> None:
    (path,) = (Path(str(SAMPLES)) / "s1" / "riotilerpds").rglob("iw-vh.tiff")
    with rasterio.open(path) as file:
        known = file.read(1) > 0
    kept = mask_border(known, border_px=(3, 25))  # a twentieth of the image's resolution
    assert not known[:, -20:].any()  # the border is at its right
    assert not kept[:, -45:].any()
    assert not kept[:3].any()
    np.testing.assert_array_equal(kept[50:-50, 100:-100], known[50:-50, 100:-100])


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
def test_digital_numbers_of_a_real_product_give_its_published_reflectance() -> None:
    folder = Path(str(SAMPLES)) / "s2" / "ukis_pysat"
    name = "S2B_MSIL1C_20200406T101559_N0209_R065_T32UPC_20200406T130159"
    with rasterio.open(folder / f"{name}.tif") as product, rasterio.open(folder / f"{name}_toa.tif") as answer:
        dn, published = product.read(), answer.read()
    stored, n_clamped = to_stored_reflectance(dn, np.ones(dn.shape, bool), offset_dn=0)
    assert n_clamped == 0
    np.testing.assert_array_equal(to_reflectance(stored), published)
