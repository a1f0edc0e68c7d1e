"""The step `mask`: a pair's input and target each get their probabilities, and a method that cannot work says what to change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.scene import geobox_of, with_grid
from sereno.pipeline.store import open_dataset, read_manifest, save_dataset

GRID = GeoBox((40, 50), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
CLOUD, SHADOW, EDGE = (slice(5, 15), slice(5, 15)), (slice(20, 30), slice(20, 30)), (slice(0, 40), slice(46, 50))


def save_pair(folder: Path, bands: tuple[str, ...], *, with_scl: bool) -> Path:
    """A pair whose input has a cloud and a shadow, whose target is clear, and whose right edge is not valid in the input."""
    spectrum = {"B02": 800, "B03": 700, "B04": 500, "B08": 3000, "B10": 10, "B11": 1300}
    clear = np.stack([np.full(tuple(GRID.shape), spectrum.get(band, 1000), np.uint16) for band in bands])
    cloudy = clear.copy()
    cloudy[:, *CLOUD] = np.array([10 if band == "B10" else 5500 for band in bands], np.uint16)[:, None, None]
    cloudy[:, *SHADOW] = np.array([{"B08": 1200, "B10": 10, "B11": 500, "B03": 500}.get(band, 300) for band in bands], np.uint16)[
        :, None, None
    ]
    scl = np.full(tuple(GRID.shape), 4, np.uint8)
    variables: dict[str, Any] = {"clear": (("band", "y", "x"), clear), "cloudy": (("band", "y", "x"), cloudy)}
    valid = np.ones(tuple(GRID.shape), bool)
    valid[EDGE] = False
    variables |= {"valid_clear": (("y", "x"), np.ones_like(valid)), "valid_cloudy": (("y", "x"), valid)}
    if with_scl:
        classes = scl.copy()
        classes[CLOUD], classes[SHADOW], classes[EDGE] = 9, 3, 9
        variables |= {"scl_clear": (("y", "x"), scl), "scl_cloudy": (("y", "x"), classes)}
    pair = xr.Dataset(variables, coords={"band": list(bands)}, attrs={"provenance": {"area": "west", "cloudy": {}, "clear": {}}})
    save_dataset(with_grid(pair, GRID), folder / "pair.json", kind="pair", summary={})
    return folder / "pair.json"


@pytest.mark.parametrize(("method", "bands"), [("scl", L2A_BANDS), ("threshold", L1C_BANDS)])
def test_input_and_target_get_their_own_masks(tmp_path: Path, method: Any, bands: tuple[str, ...]) -> None:
    pair = save_pair(tmp_path, bands, with_scl=method == "scl")
    mask_pair(pair, tmp_path / "mask.json", MaskSettings(method=method, dilate_px=0, feather_px=0))
    masks = open_dataset(tmp_path / "mask.json", kind="mask")
    expected = {name: np.zeros(tuple(GRID.shape), np.uint8) for name in ("cloud_cloudy", "shadow_cloudy", "cloud_clear", "shadow_clear")}
    expected["cloud_cloudy"][CLOUD] = expected["shadow_cloudy"][SHADOW] = 255
    assert set(masks.data_vars) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(masks[name], values)
        assert masks[name].dtype == np.uint8
    assert geobox_of(masks) == GRID


def test_clouds_grow_and_fade_as_set_but_not_into_invalid_ground(tmp_path: Path) -> None:
    mask_pair(save_pair(tmp_path, L2A_BANDS, with_scl=True), tmp_path / "mask.json", MaskSettings(dilate_px=2, feather_px=2))
    cloud = open_dataset(tmp_path / "mask.json")["cloud_cloudy"].values
    assert cloud[10, 14:20].tolist() == [255, 255, 255, 128, 0, 0]
    assert not cloud[:, 40:].any()


def test_the_summary_names_method_version_and_covered_shares(tmp_path: Path) -> None:
    mask_pair(save_pair(tmp_path, L2A_BANDS, with_scl=True), tmp_path / "mask.json", MaskSettings(dilate_px=0, feather_px=0))
    summary = read_manifest(tmp_path / "mask.json", kind="mask")["summary"]
    assert (summary["method"], summary["dilate_px"]) == ("scl", 0)
    assert summary["cloud_cloudy_share"] == pytest.approx(100 / (40 * 46), abs=1e-6)
    assert summary["cloud_clear_share"] == 0.0
    facts = open_dataset(tmp_path / "mask.json").attrs["provenance"]["masks"]
    assert facts == {"method": "scl", "version": 1, "dilate_px": 0, "feather_px": 0}


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    for name in ("a", "b"):
        mask_pair(pair, tmp_path / name / "mask.json", MaskSettings())
    assert (tmp_path / "a" / "mask.json").read_bytes() == (tmp_path / "b" / "mask.json").read_bytes()


def test_a_pair_without_classes_names_the_setting_to_change(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L1C_BANDS, with_scl=False)
    with pytest.raises(DataError, match=r"cloudy image has no scene classification.*set pipeline.mask.method to 'threshold'"):
        mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="scl"))
    assert not (tmp_path / "mask.json").exists()


def test_a_pair_without_cirrus_names_the_setting_to_change(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    with pytest.raises(DataError, match=r"no band B10.*set pipeline.mask.method to 'scl'"):
        mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="threshold"))
