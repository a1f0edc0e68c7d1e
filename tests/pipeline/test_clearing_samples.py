"""The mask of a pair's patches: where each channel comes from."""

import numpy as np
import pytest
import xarray as xr

from sereno.pipeline.clearing_samples import list_material, measure_window
from sereno.pipeline.config import PatchSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.patches import MASK_CHANNELS

SHAPE = (4, 4)


def make_pair() -> xr.Dataset:
    images = {name: (("band", "y", "x"), np.full((2, *SHAPE), n, np.uint16)) for n, name in enumerate(("cloudy", "clear"))}
    valid = {f"valid_{role}": (("y", "x"), np.ones(SHAPE, bool)) for role in ("sar", "cloudy", "clear")}
    sar = {"sar": (("sar_band", "y", "x"), np.zeros((2, *SHAPE), np.int16))}
    return xr.Dataset({**images, **valid, **sar}, coords={"band": ["B02", "B03"], "sar_band": ["VV", "VH"]})


def make_masks() -> xr.Dataset:
    layers = {
        f"{kind}_{role}": (("y", "x"), np.full(SHAPE, 10 * n + m, np.uint8))
        for n, kind in enumerate(("cloud", "shadow"))
        for m, role in enumerate(("cloudy", "clear"))
    }
    return xr.Dataset({**layers, **{f"known_{role}": (("y", "x"), np.ones(SHAPE, bool)) for role in ("cloudy", "clear")}})


def test_every_channel_comes_from_its_image_and_unknown_ground_is_not_valid() -> None:
    masks = make_masks()
    masks["known_clear"][0, 0] = False
    material = list_material(make_pair(), masks)
    channels = dict(zip(MASK_CHANNELS, material.mask, strict=True))
    found = {name: int(channels[name][1, 1]) for name in MASK_CHANNELS if not name.startswith("valid")}
    assert found == {"cloud_input": 0, "cloud_target": 1, "shadow_input": 10, "shadow_target": 11}
    assert channels["valid_target"][0, 0] == 0
    assert channels["valid_input"].min() == channels["valid_sar"].min() == 255
    assert material.unsure.sum() == 1
    assert material.names == {"bands": ("B02", "B03"), "sar_bands": ("VV", "VH")}
    assert {name: int(read().max()) for name, read in material.arrays.items()} == {"sar": 0, "cloudy": 0, "clear": 1}


def test_a_window_is_judged_by_validity_and_by_the_cloud_of_each_image() -> None:
    mask = np.zeros((len(MASK_CHANNELS), *SHAPE), np.uint8)
    channels = dict(zip(MASK_CHANNELS, mask, strict=True))
    for name in ("valid_input", "valid_target", "valid_sar"):
        channels[name][:] = 255
    channels["valid_sar"][0], channels["cloud_input"][1], channels["shadow_target"][2, :2] = 0, 255, 128
    limits = measure_window(mask, PatchSettings())
    assert {limit.setting: limit.value for limit in limits} == {"min_valid": 0.75, "max_target_cloud": 0.125, "min_input_cloud": 0.25}


def add_dates(pair: xr.Dataset, masks: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The same with a date before and one after."""
    optical = {role: (("band", "y", "x"), np.full((2, *SHAPE), n, np.uint16)) for n, role in enumerate(("before", "after"), 7)}
    valid = {f"valid_{role}": (("y", "x"), np.ones(SHAPE, bool)) for role in ("before", "after")}
    pair = pair.assign({**optical, **valid}).assign_attrs(provenance={"pair": {"before_gap_days": -5.0, "after_gap_days": 20.0}})
    layers = {f"{kind}_{role}": (("y", "x"), np.zeros(SHAPE, np.uint8)) for kind in ("cloud", "shadow") for role in ("before", "after")}
    return pair, masks.assign({**layers, **{f"known_{role}": (("y", "x"), np.ones(SHAPE, bool)) for role in ("before", "after")}})


def test_dates_around_a_pair_are_seen_where_they_are_valid_known_and_neither_cloud_nor_shadow() -> None:
    pair, masks = add_dates(make_pair(), make_masks())
    pair["valid_before"][0, 0] = False
    masks["known_before"][0, 0] = False
    masks["known_after"][0, 1] = False
    masks["cloud_before"][1, 0], masks["shadow_before"][1, 1], masks["shadow_after"][1, 2] = 255, 100, 40
    masks["cloud_after"][1, 2] = 90
    material = list_material(pair, masks)
    expected = np.full((2, *SHAPE), 255)
    expected[0, 0, 0], expected[0, 1, 0], expected[0, 1, 1], expected[1, 0, 1], expected[1, 1, 2] = 0, 0, 155, 0, 165
    seen = material.arrays["around_clear"]()
    np.testing.assert_array_equal(seen, expected)
    assert seen.dtype == np.uint8
    around = material.arrays["around"]()
    assert (around.shape, around.dtype) == ((2, 2, *SHAPE), np.uint16)
    assert [int(date.max()) for date in around] == [int(date.min()) for date in around] == [7, 8]
    assert material.names["dates"] == ("before", "after")
    assert material.gaps_days == {"before": -5.0, "after": 20.0}


def test_dates_around_a_pair_decide_nothing_about_its_mask() -> None:
    plain = list_material(make_pair(), make_masks())
    pair, masks = add_dates(make_pair(), make_masks())
    masks["known_before"][:] = False
    pair["valid_after"][:] = False
    series = list_material(pair, masks)
    np.testing.assert_array_equal(series.mask, plain.mask)
    assert not series.unsure.any()
    assert (plain.gaps_days, set(series.arrays) - set(plain.arrays)) == ({}, {"around", "around_clear"})


def test_masks_that_do_not_know_the_dates_are_to_be_made_again() -> None:
    pair, masks = add_dates(make_pair(), make_masks())
    with pytest.raises(DataError, match=r"clouds of the after image are known: run `sereno mask` again"):
        list_material(pair, masks.drop_vars("known_after")).arrays["around_clear"]()
