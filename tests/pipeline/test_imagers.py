"""The table of imagers: bits against the documents' own numbers, names, contradictions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sereno.pipeline.clouds import SCL_CLOUD, SCL_NODATA, SCL_SHADOW
from sereno.pipeline.imagers import (
    CIRRUS,
    CLEAR,
    CLOUD,
    COVERED,
    DILATED,
    IMAGERS,
    LANDSAT,
    LANDSAT_QA,
    MODIS,
    MODIS_STATE,
    NODATA,
    SHADOW,
    SNOW,
    WATER,
    find_coarse_m,
    find_contradiction,
    find_imager,
    select_bands,
    to_classes,
)
from sereno.pipeline.sensors.imager import is_number


@pytest.mark.parametrize(
    ("bits", "scene_class"),
    [
        (1, NODATA),
        (21_824, CLEAR),  # clear, low confidences: the number of most pixels
        (21_952, WATER),
        (22_280, CLOUD),
        (21_826, DILATED),
        (23_888, SHADOW),
        (30_048, SNOW),
        (54_596, CIRRUS),
        (54_852, CIRRUS),
        (55_052, CLOUD),  # cloud with cirrus above it
    ],
)
def test_numbers_of_qa_pixel_mean_what_the_guide_lists(bits: int, scene_class: int) -> None:
    """USGS 2022, LSDS-1619, table of pixel values."""
    assert to_classes(LANDSAT_QA, np.array([bits], np.uint16))[0] == scene_class


@pytest.mark.parametrize(
    ("bits", "scene_class"),
    [
        (0b0000_0000_0100_1000, CLEAR),
        (0b0000_0000_0100_1001, CLOUD),
        (0b0000_0000_0100_1010, CLOUD),  # mixed
        (0b0000_0000_0100_1011, CLEAR),  # not set, assumed clear
        (0b0000_0000_0100_1100, SHADOW),
        (0b0000_0001_0100_1000, CLEAR),  # little cirrus
        (0b0000_0010_0100_1000, CIRRUS),
        (0b0000_0100_0100_1000, CLOUD),  # the product's own test
        (0b0001_0000_0100_1000, SNOW),
        (0b0010_0000_0100_1000, CLEAR),  # next to a cloud
        (0b0000_0000_0101_1000, WATER),
        (0b0000_0000_0101_0000, CLEAR),  # a shore
        (65_535, NODATA),
    ],
)
def test_bits_of_the_state_of_modis_mean_what_the_guide_lists(bits: int, scene_class: int) -> None:
    """Vermote et al. 2015, table 13."""
    assert to_classes(MODIS_STATE, np.array([bits], np.uint16))[0] == scene_class


def test_classes_are_those_that_the_later_steps_know() -> None:
    assert set(COVERED) == {*SCL_CLOUD, *SCL_SHADOW}
    assert NODATA == SCL_NODATA
    assert {CLEAR, WATER, SNOW}.isdisjoint(COVERED)


@pytest.mark.parametrize(
    ("item", "sensor"),
    [
        ("LC09_L2SP_010065_20220129_02_T1", "landsat-oli"),
        ("LC08_L2SR_084024_20160111_20201016_02_T1_SR", "landsat-oli"),
        ("LE07_L2SP_021030_20100109_02_T1", "landsat-tm"),
        ("MOD09A1.A2022033.h19v10.061.2022042043514", "modis-09a1"),
        ("MYD09A1.A2022025.h09v08.061.2022035070021", "modis-09a1"),
        ("MCD43A4.A2022032.h14v10.061.2022041051831", "modis-43a4"),
        ("LC08_L1TP_010065_20220129_02_T1", None),
        ("MOD11A1.A2022030.h10v05.061.2022031094827", None),
        ("LM05_L1GS_001001_19850524_02_T2", None),
    ],
)
def test_ids_of_the_catalogues_name_their_product(item: str, sensor: str | None) -> None:
    assert find_imager(item) == sensor


def test_no_id_fits_two_rows_and_every_band_has_a_name_of_its_own() -> None:
    for imager in IMAGERS.values():
        names = [name for keys in imager.bands.values() for name in keys]
        assert len(names) == len(set(names))
        assert set(imager.synonyms.values()) <= set(imager.bands)
        assert not imager.valid_range[0] <= imager.fill <= imager.valid_range[1]
    ids = ["LC09_L2SP_x", "LE07_L2SP_x", "MOD09A1.x", "MCD43A4.x"]
    assert [sum(bool(re.match(imager.pattern, name)) for imager in IMAGERS.values()) for name in ids] == [1, 1, 1, 1]


def test_all_of_them_see_the_six_bands_of_fusion() -> None:
    common = set.intersection(*(set(select_bands(sensor)) for sensor in IMAGERS))
    assert common == {"B02", "B03", "B04", "B08", "B8A", "B11", "B12"}
    assert select_bands("sentinel1-rtc") == ()


def test_bands_of_43a4_bear_the_numbers_of_09a1() -> None:
    assert IMAGERS["modis-43a4"].bands["B08"] == ("Nadir_Reflectance_Band2",)
    assert IMAGERS["modis-43a4"].bands["B02"] == ("Nadir_Reflectance_Band3",)


def test_modis_09a1_is_valid_from_a_little_below_zero() -> None:
    """-100 to 16000, of Vermote et al. 2015, MOD09 User's Guide 1.4: dark water may come out below zero."""
    numbers = np.array([-28_672, -101, -100, -1, 0, 16_000, 16_001], np.int16)
    assert is_number(numbers, None, imager=IMAGERS["modis-09a1"]).tolist() == [False, False, True, True, True, True, False]


def test_a_stated_scale_or_offset_that_contradicts_the_table_is_named() -> None:
    assert find_contradiction(LANDSAT, {"scale": 2.75e-05, "offset": -0.2}) == ""
    assert find_contradiction(LANDSAT, {}) == ""
    assert find_contradiction(MODIS, {"scale": 0.0001, "offset": None}) == ""
    assert (
        find_contradiction(LANDSAT, {"scale": 0.0001, "offset": 0.0}) == "scale 0.0001 where it is 2.75e-05 and offset 0 where it is -0.2"
    )


def test_the_pixel_of_modis_decides_the_coarse_grid() -> None:
    assert find_coarse_m(("modis-09A1-061",)) == 480
    assert find_coarse_m(("landsat-c2-l2",)) is None
