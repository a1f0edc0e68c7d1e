"""Windows of fine and coarse images show the same ground, and are judged by all their pixels."""

import numpy as np
import pytest

from sereno.pipeline.config import PatchSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.material import Material, check_windows, cut_mask, cut_patches, measure_clear, measure_unsure
from sereno.pipeline.splits import Window

RATIO, SIDE = 4, 64
FINE = np.stack([np.add.outer(np.arange(SIDE) * 256, np.arange(SIDE))]).astype(np.uint16)
COARSE = FINE[:, ::RATIO, ::RATIO]
MASK = np.zeros((3, SIDE // RATIO, SIDE // RATIO), np.uint8)
WINDOWS = [Window("a", "b", 8, 16), Window("c", "b", 32, 0)]


def make_material() -> Material:
    unsure = np.zeros(MASK.shape[1:], bool)
    unsure[2, 4] = True
    arrays = {"pan": lambda: FINE, "ms": lambda: COARSE}
    return Material("pansharpening", arrays, MASK, {"bands": ["B1"], "pan_bands": ["PAN"]}, RATIO, unsure)


def test_coarse_windows_lie_on_the_same_ground_as_fine_ones() -> None:
    found = cut_patches(make_material(), WINDOWS, 32)
    (pan_dims, pan, _), (ms_dims, ms, _), (_, mask, units) = (found[name] for name in ("pan", "ms", "mask"))
    assert (pan.shape, ms.shape, mask.shape) == ((2, 1, 32, 32), (2, 1, 8, 8), (2, 3, 8, 8))
    np.testing.assert_array_equal(pan[..., ::RATIO, ::RATIO], ms)
    assert (pan_dims, ms_dims) == (("patch", "pan_band", "row", "col"), ("patch", "band", "row_coarse", "col_coarse"))
    assert units == {"units": "probability or validity x 255"}


def test_what_is_unsure_is_measured_on_the_grid_of_the_mask() -> None:
    material = make_material()
    assert measure_unsure(material, WINDOWS[0], 32) == 1 / 64
    assert measure_unsure(material, WINDOWS[1], 32) == 0
    assert cut_mask(material, WINDOWS[0], 32).shape == (3, 8, 8)


def test_windows_that_cut_a_coarse_pixel_are_refused_with_the_remedy() -> None:
    check_windows(WINDOWS, 32, RATIO)
    with pytest.raises(DataError, match=r"1 windows of 32 px, the first d, .* multiple of 4 and buffer_px to one of 8"):
        check_windows([*WINDOWS, Window("d", "b", 6, 0)], 32, RATIO)
    with pytest.raises(DataError, match="multiple of 16"):
        check_windows(WINDOWS, 40, 16)


def test_one_date_under_cloud_or_without_data_spoils_a_pixel_of_all() -> None:
    mask = np.zeros((3, 3, 4, 4), np.uint8)
    mask[:, 2] = 255
    mask[0, 0, 0, 0], mask[2, 1, 0, 1], mask[1, 2, 3] = 128, 255, 0
    valid, covered = measure_clear(mask, PatchSettings(min_valid=0.7, max_target_cloud=0.1))
    assert (valid.value, valid.is_met) == (0.75, True)
    assert (covered.value, covered.is_met) == (0.125, False)
    assert covered.describe() == "share of cloud and shadow is 0.1250, above patch.max_target_cloud 0.1"


def test_a_cube_has_no_clouds_to_be_judged_by() -> None:
    valid, covered = measure_clear(np.full((1, 4, 4), 255, np.uint8), PatchSettings())
    assert (valid.value, covered.value) == (1.0, 0.0)
