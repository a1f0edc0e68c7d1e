"""Conversions are exact, never wrap, count what they clamp; the offset is decided by what the item says."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import SceneRecord
from sereno.pipeline.radiometry import (
    centi_db_to_power,
    decibel_to_centi_db,
    decide_offset,
    find_shift_fault,
    power_to_centi_db,
    to_reflectance,
    to_stored_reflectance,
)
from sereno.pipeline.scene import MAX_REFLECTANCE

SAMPLES = os.environ.get("SERENO_SAMPLES")
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


def item(**facts: object) -> SceneRecord:
    known = {"id": "a", "item": "S2A_X", "collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632"}
    return SceneRecord(**{**known, "bbox": (8, 45, 9, 46), "assets": {}, **facts})


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


@pytest.mark.parametrize(
    ("facts", "offset_dn"),
    [
        ({"declared_offset": -0.1, "processing_baseline": "02.14"}, -1000),
        ({"declared_offset": 0.0, "processing_baseline": "05.09"}, 0),
        ({"declared_offset": -0.1, "offset_applied": True, "processing_baseline": "05.09"}, 0),
        ({"declared_offset": -0.1, "offset_applied": False}, -1000),
        ({"offset_applied": True, "processing_baseline": "04.00"}, 0),
        ({"offset_applied": False, "processing_baseline": "04.00"}, -1000),
        ({"processing_baseline": "04.00", "time": "2018-01-01T00:00:00Z"}, -1000),
        ({"processing_baseline": "03.01", "time": "2023-01-01T00:00:00Z"}, 0),
    ],
)
def test_the_offset_follows_the_items_word_and_never_the_date(facts: dict[str, object], offset_dn: int) -> None:
    assert decide_offset(item(**facts))[0] == offset_dn


@pytest.mark.parametrize("baseline", [None, "", "unknown"])
def test_an_item_that_says_nothing_is_refused_by_name(baseline: str | None) -> None:
    with pytest.raises(DataError, match="item S2A_X: cannot tell"):
        decide_offset(item(processing_baseline=baseline))


def ground(seed: int = 0) -> np.ndarray:
    """Reflectance x 10000 of mixed ground with dark water, (6, 100, 100)."""
    level = np.array([400, 600, 500, 3000, 2000, 1000])[:, None, None]
    return (level * np.random.default_rng(seed).uniform(0.4, 1.6, (6, 100, 100))).astype(np.int32)


@pytest.mark.parametrize(("error_dn", "word"), [(0, None), (1000, "left in"), (-1000, "removed twice")])
def test_dark_pixels_tell_a_missing_and_a_doubled_shift(error_dn: int, word: str | None) -> None:
    stored = np.clip(ground() + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
    fault = find_shift_fault(stored, np.ones((100, 100), bool), BANDS)
    assert (fault is None) == (word is None)
    assert word is None or word in str(fault)


def test_dark_pixels_give_no_verdict_where_too_little_ground_is_clear() -> None:
    assert find_shift_fault((ground() + 1000).astype(np.uint16), np.eye(100, dtype=bool), BANDS) is None


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
def test_digital_numbers_of_a_real_product_give_its_published_reflectance() -> None:
    folder = Path(str(SAMPLES)) / "s2" / "ukis_pysat"
    name = "S2B_MSIL1C_20200406T101559_N0209_R065_T32UPC_20200406T130159"
    with rasterio.open(folder / f"{name}.tif") as product, rasterio.open(folder / f"{name}_toa.tif") as answer:
        dn, published = product.read(), answer.read()
    offset_dn, _ = decide_offset(item(processing_baseline="02.09"))
    stored, n_clamped = to_stored_reflectance(dn, np.ones(dn.shape, bool), offset_dn=offset_dn)
    assert n_clamped == 0
    np.testing.assert_array_equal(to_reflectance(stored), published)
