"""The mask of a pair's patches: where each channel comes from."""

import numpy as np
import xarray as xr

from sereno.pipeline.clearing_samples import list_material, measure_window
from sereno.pipeline.config import PatchSettings
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
