"""Laws of mean and spread over usable pixels."""

import numpy as np
import pytest

from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.statistics import Sums, find_usable, fit_usable, sum_pixels


def test_sums_of_parts_are_the_sums_of_all() -> None:
    rng = np.random.default_rng(1)
    values, usable = rng.integers(0, 65_535, (7, 3, 8, 8)).astype(np.uint16), rng.random((7, 8, 8)) < 0.6
    whole = sum_pixels(values, usable)
    assert sum_pixels(values[:2], usable[:2]) + sum_pixels(values[2:], usable[2:]) == whole
    for band in range(3):
        chosen = values[:, band][usable] / 10_000
        assert (whole.mean[band], whole.std[band]) == pytest.approx((chosen.mean(), chosen.std()), rel=1e-9)


def test_dates_are_pixels_like_any_other() -> None:
    values = np.arange(2 * 3 * 2 * 4 * 4).reshape(2, 3, 2, 4, 4).astype(np.uint16)
    found = sum_pixels(values, np.ones((2, 3, 4, 4), bool))
    assert found == Sums(
        96, tuple(int(values[:, :, b].sum()) for b in range(2)), tuple(int((values[:, :, b] ** 2.0).sum()) for b in range(2))
    )


def test_a_pixel_counts_where_it_is_valid_and_neither_cloud_nor_shadow_is_likely() -> None:
    mask = np.zeros((1, 3, 2, 2), np.uint8)
    cloud, shadow, valid = mask[0]
    valid[:] = 255
    cloud[0, 0], shadow[0, 1], valid[1, 0] = 128, 200, 0
    cloud[1, 1] = 127
    np.testing.assert_array_equal(find_usable(mask, "pansharpening")[0], [[False, False], [False, True]])


def test_targets_alone_are_judged_for_cloud_removal() -> None:
    names = MASK_CHANNELS_OF["cloud-removal"]
    mask = np.zeros((1, len(names), 1, 2), np.uint8)
    mask[0, names.index("valid_target")] = 255
    mask[0, names.index("cloud_input")] = 255
    mask[0, names.index("shadow_target"), 0, 1] = 255
    np.testing.assert_array_equal(find_usable(mask, "cloud-removal")[0], [[True, False]])


def test_a_coarse_pixel_is_usable_where_all_in_it_are_and_a_fine_one_where_the_coarse_is() -> None:
    fine = np.ones((1, 4, 4), bool)
    fine[0, 3, 0] = False
    coarse = fit_usable(fine, (2, 2))
    np.testing.assert_array_equal(coarse[0], [[True, True], [False, True]])
    np.testing.assert_array_equal(fit_usable(coarse, (4, 4))[0, 2:, :2], np.zeros((2, 2), bool))
    assert fit_usable(coarse, (4, 4)).sum() == 12
