"""The step `mask`: a pair's input and target each get their probabilities, and a method that cannot work says what to change."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import mask
from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS
from sereno.pipeline.clouds import VERSION
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.detectors import Detection
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
    assert set(masks.data_vars) == {*expected, "known_cloudy", "known_clear"}
    for name, values in expected.items():
        np.testing.assert_array_equal(masks[name], values)
        assert masks[name].dtype == np.uint8
    dataset = open_dataset(pair)
    for role in ("cloudy", "clear"):
        np.testing.assert_array_equal(masks[f"known_{role}"], dataset[f"valid_{role}"])
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
    assert facts == {"method": "scl", "version": str(VERSION), "weights": {}, "second": None, "dilate_px": 0, "feather_px": 0} | {
        "unknown": {"cloudy": None, "clear": None}
    }
    assert facts.items() <= summary.items()


def test_the_agreement_of_two_methods_is_stated_and_decides_nothing(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L1C_BANDS, with_scl=True)
    mask_pair(pair, tmp_path / "one.json", MaskSettings(method="scl"))
    mask_pair(pair, tmp_path / "two.json", MaskSettings(method="scl", second="threshold"))
    alone, compared = open_dataset(tmp_path / "one.json"), open_dataset(tmp_path / "two.json")
    for name in alone.data_vars:
        np.testing.assert_array_equal(alone[name], compared[name])
    summary = read_manifest(tmp_path / "two.json")["summary"]
    share = 100 / (40 * 46)  # the cloud, which both find; shadow is not compared, and the invalid edge does not count
    assert summary["agreement"] == {
        "cloudy": facts_of_agreement(both=share, neither=1 - share, iou=1.0),
        "clear": facts_of_agreement(both=0.0, neither=1.0, iou=None),
    }
    assert compared.attrs["provenance"]["masks"]["agreement"] == summary["agreement"]
    assert (summary["second"], summary["second_version"], summary["second_weights"]) == ("threshold", str(VERSION), {})
    assert "agreement" not in read_manifest(tmp_path / "one.json")["summary"]


def facts_of_agreement(**shares: Any) -> dict[str, Any]:
    expected = {"only_first": 0.0, "only_second": 0.0} | shares
    return {"method": "scl", "second": "threshold"} | {key: value and pytest.approx(value, abs=1e-6) for key, value in expected.items()}


def test_what_auto_came_to_is_what_decides_and_stands_in_the_record_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    for with_scl, method in ((True, "scl"), (False, "threshold")):
        pair = save_pair(tmp_path, L1C_BANDS, with_scl=with_scl)
        mask_pair(pair, tmp_path / "named.json", MaskSettings(method=method))
        mask_pair(pair, tmp_path / "auto.json", MaskSettings(method="auto", second="threshold"))
        named, auto = open_dataset(tmp_path / "named.json"), open_dataset(tmp_path / "auto.json")
        for name in named.data_vars:
            np.testing.assert_array_equal(named[name], auto[name])
        facts = auto.attrs["provenance"]["masks"]
        assert (facts["method"], facts["asked"]) == (method, "auto")
        assert facts["second"] == (None if method == "threshold" else "threshold")
        assert ("agreement" in facts) == (method == "scl")
        assert facts.items() <= read_manifest(tmp_path / "auto.json")["summary"].items()
        assert f"finding clouds by {method} ({facts['why']})" in caplog.text
    assert facts["why"].startswith("the cloudy image has no scene classification; omnicloudmask is not installed")


def test_a_second_method_that_cannot_work_is_named_by_its_setting(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    with pytest.raises(DataError, match=r"no band B10.*pipeline.mask.second"):
        mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="scl", second="threshold"))
    assert not (tmp_path / "mask.json").exists()


@pytest.mark.parametrize("method", ["auto", "scl", "threshold", "haze", "s2cloudless", "omnicloudmask"])
def test_a_pair_with_a_refused_scene_gets_empty_masks(tmp_path: Path, method: Any) -> None:
    path = save_pair(tmp_path, ("B03", "B04"), with_scl=False)
    refused = open_dataset(path).load()
    for role in ("cloudy", "clear"):
        refused[f"valid_{role}"][:] = False
    save_dataset(refused, tmp_path / "refused.json", kind="pair", summary={})
    second = "scl" if method != "scl" else "threshold"
    mask_pair(tmp_path / "refused.json", tmp_path / "mask.json", MaskSettings(method=method, second=second))
    masks = open_dataset(tmp_path / "mask.json", kind="mask")
    assert len(masks.data_vars) == 6
    assert not any(variable.values.any() for variable in masks.data_vars.values())
    summary = read_manifest(tmp_path / "mask.json")["summary"]
    assert (summary["method"], summary["version"], summary["cloud_cloudy_share"]) == (method, None, 0.0)
    assert summary["unknown"] == {"cloudy": None, "clear": None}  # the pair says itself why it is not to be used
    assert summary["agreement"]["cloudy"] == {"method": method, "second": second} | {
        "both": 0.0,
        "only_first": 0.0,
        "only_second": 0.0,
        "neither": 0.0,
        "iou": None,
    }


def test_probabilities_are_kept_and_cloudy_ones_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = np.full(tuple(GRID.shape), 0.2, np.float32)
    cloud[10, 10] = 0.8
    cloud[EDGE] = 1.0
    shadow = np.zeros_like(cloud)
    monkeypatch.setattr(mask, "detect_clouds", lambda *_: Detection(cloud, shadow, "1.2; shadow by threshold 1", {"model.txt": "ab" * 32}))
    mask_pair(save_pair(tmp_path, L1C_BANDS, with_scl=False), tmp_path / "mask.json", MaskSettings(dilate_px=1, feather_px=2.0))
    masks = open_dataset(tmp_path / "mask.json")
    assert masks["cloud_cloudy"].values[10, 7:13].tolist() == [51, 102, 204, 204, 204, 102]
    assert masks["cloud_cloudy"].values[10, 43:].tolist() == [51, 51, 51, 0, 0, 0, 0]  # what is not valid hands nothing on
    assert masks.attrs["provenance"]["masks"]["version"] == "1.2; shadow by threshold 1"
    assert masks.attrs["provenance"]["masks"]["weights"] == {"model.txt": "ab" * 32}


def test_where_weights_lie_leaves_no_trace_in_the_result(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    for name in ("a", "b"):
        mask_pair(pair, tmp_path / name / "mask.json", MaskSettings(weights=tmp_path / name))
    assert (tmp_path / "a" / "mask.json").read_bytes() == (tmp_path / "b" / "mask.json").read_bytes()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    for name in ("a", "b"):
        mask_pair(pair, tmp_path / name / "mask.json", MaskSettings())
    assert (tmp_path / "a" / "mask.json").read_bytes() == (tmp_path / "b" / "mask.json").read_bytes()


def test_a_product_that_never_has_classes_names_the_setting_to_change(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L1C_BANDS, with_scl=False)
    with pytest.raises(DataError, match=r"cloudy image has no scene classification.*set pipeline.mask.method to 'threshold'"):
        mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="scl"))
    assert not (tmp_path / "mask.json").exists()


def lose_classes(pair: Path, role: str, place: tuple[slice, slice] | None) -> Path:
    """The pair as of L2A products whose classes of one image are lost: at `place`, or altogether without a variable."""
    changed = open_dataset(pair).load()
    for facts in (changed.attrs["provenance"][name] for name in ("cloudy", "clear")):
        facts["sensor"] = "sentinel2-l2a"
    if place is None:
        changed = changed.drop_vars(f"scl_{role}")
    else:
        changed[f"scl_{role}"].values[place] = 0
    save_dataset(changed, pair.with_name("lost.json"), kind="pair", summary={})
    return pair.with_name("lost.json")


@pytest.mark.parametrize("role", ["cloudy", "clear"])
def test_valid_pixels_of_class_zero_are_not_known_and_count_in_no_share(tmp_path: Path, role: str) -> None:
    rows = slice(0, 10)  # half of the cloud
    pair = lose_classes(save_pair(tmp_path, L2A_BANDS, with_scl=True), role, (rows, slice(0, 50)))
    mask_pair(pair, tmp_path / "mask.json", MaskSettings(dilate_px=0, feather_px=0))
    masks, summary = open_dataset(tmp_path / "mask.json"), read_manifest(tmp_path / "mask.json")["summary"]
    for name in ("cloudy", "clear"):
        known = open_dataset(pair)[f"valid_{name}"].values.copy()
        known[rows] &= name != role
        np.testing.assert_array_equal(masks[f"known_{name}"], known)
        assert masks[f"known_{name}"].dtype == bool
        assert summary[f"known_{name}_share"] == (0.75 if name == role else 1.0)
    assert summary["cloud_cloudy_share"] == pytest.approx(50 / (30 * 46) if role == "cloudy" else 100 / (40 * 46), abs=1e-6)
    assert summary["unknown"] == {"cloudy": None, "clear": None}


@pytest.mark.parametrize("place", [None, (slice(None), slice(None))])
@pytest.mark.parametrize("second", [None, "threshold"])
def test_an_image_whose_classes_are_all_lost_is_unknown_with_the_reason_and_the_remedy(tmp_path: Path, place: Any, second: Any) -> None:
    pair = lose_classes(save_pair(tmp_path, L1C_BANDS, with_scl=True), "clear", place)
    mask_pair(pair, tmp_path / "mask.json", MaskSettings(dilate_px=0, feather_px=0, second=second))
    masks, summary = open_dataset(tmp_path / "mask.json"), read_manifest(tmp_path / "mask.json")["summary"]
    assert not masks["known_clear"].values.any()
    assert masks["known_cloudy"].values[:, :46].all()
    assert (summary["known_clear_share"], summary["cloud_clear_share"]) == (0.0, 0.0)
    assert summary["unknown"]["cloudy"] is None
    assert summary["unknown"]["clear"] == (
        "the clear image has no scene classification, so its clouds are not known: set pipeline.mask.method to 'omnicloudmask'"
    )
    assert masks.attrs["provenance"]["masks"]["unknown"] == summary["unknown"]
    if second:  # compared is only what both know
        assert summary["agreement"]["clear"]["neither"] == 0.0


def test_a_pair_without_cirrus_names_the_setting_to_change(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    with pytest.raises(DataError, match=r"no band B10.*keep all bands in pipeline.ingest.bands, or set pipeline.mask.method to another"):
        mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="threshold"))


def save_simulated(folder: Path, bands: tuple[str, ...], *, with_scl: bool) -> Path:
    """The same pair said to lie under a simulated sky: the cloud hides all, a veil to the right of it a third; the target has a roof."""
    pair = open_dataset(save_pair(folder, bands, with_scl=with_scl)).load()
    lost, shaded = np.zeros(tuple(GRID.shape), np.uint8), np.zeros(tuple(GRID.shape), np.uint8)
    lost[CLOUD], lost[VEIL], shaded[SHADOW] = 255, 85, 230
    pair = pair.assign(cloud_truth=(("y", "x"), lost), shadow_truth=(("y", "x"), shaded))
    if with_scl:
        pair["scl_clear"][ROOF] = 8
    for role in ("cloudy", "clear"):
        pair[role][:, *ROOF] = 5500
        if "B10" in bands:
            pair[role][bands.index("B10"), *ROOF] = 10
    save_dataset(with_grid(pair, GRID), folder / "simulated.json", kind="pair", summary={})
    return folder / "simulated.json"


VEIL, ROOF = (slice(5, 15), slice(15, 25)), (slice(32, 37), slice(5, 10))


@pytest.mark.parametrize(("method", "bands"), [("scl", L2A_BANDS), ("threshold", L1C_BANDS)])
def test_a_simulated_input_is_masked_by_its_truth_ungrown_and_by_what_lies_under_it(
    tmp_path: Path, method: Any, bands: tuple[str, ...]
) -> None:
    pair = save_simulated(tmp_path, bands, with_scl=method == "scl")
    mask_pair(pair, tmp_path / "mask.json", MaskSettings(method=method, dilate_px=2, feather_px=0))
    masks = open_dataset(tmp_path / "mask.json", kind="mask")
    cloud, below = masks["cloud_cloudy"].values, masks["cloud_clear"].values
    assert (below[ROOF] == 255).all()
    assert below[32, 10] == 255  # grown as ever
    expected = below.copy()
    expected[CLOUD], expected[VEIL] = 255, 170  # a third lost: cloud with a probability of two thirds
    expected[~open_dataset(pair)["valid_cloudy"].values] = 0
    np.testing.assert_array_equal(cloud, expected)
    assert (masks["shadow_cloudy"].values[SHADOW] == 255).all()
    np.testing.assert_array_equal(masks["known_cloudy"], open_dataset(pair)["valid_cloudy"])


def test_what_lies_under_a_simulated_sky_is_not_known_where_the_clear_image_is_not(tmp_path: Path) -> None:
    lost = (slice(0, 10), slice(0, 50))
    pair = lose_classes(save_simulated(tmp_path, L2A_BANDS, with_scl=True), "clear", lost)
    mask_pair(pair, tmp_path / "mask.json", MaskSettings())
    masks, expected = open_dataset(tmp_path / "mask.json", kind="mask"), open_dataset(pair)["valid_cloudy"].values.copy()
    assert expected[lost].any()
    expected[lost] = False
    np.testing.assert_array_equal(masks["known_cloudy"], expected)


def test_how_much_of_the_truth_a_method_finds_is_stated_but_not_of_classes_made_of_it(tmp_path: Path) -> None:
    pair = save_simulated(tmp_path, L1C_BANDS, with_scl=True)
    mask_pair(pair, tmp_path / "mask.json", MaskSettings(method="threshold", second="scl"))
    summary = read_manifest(tmp_path / "mask.json")["summary"]
    assert summary["simulated"] == "known"
    assert set(summary["truth"]) == {"threshold"}
    found = summary["truth"]["threshold"]
    assert (found["thick"], found["thin"], found["shadow"], found["clear_as_shadow"]) == (1.0, 0.0, 1.0, 0.0)
    assert found["clear_as_cloud"] == pytest.approx(25 / (40 * 46 - 300), abs=1e-6)  # the roof
    assert open_dataset(tmp_path / "mask.json").attrs["provenance"]["masks"]["truth"] == summary["truth"]


def test_dates_around_a_pair_get_masks_of_their_own_and_change_none_of_the_others(tmp_path: Path) -> None:
    plain_pair = save_pair(tmp_path, L2A_BANDS, with_scl=True)
    dataset = open_dataset(plain_pair).load()
    classes = np.full(tuple(GRID.shape), 4, np.uint8)
    classes[CLOUD], classes[SHADOW] = 3, 8
    extra: dict[str, Any] = {}
    for role, own in (("before", classes), ("after", np.full_like(classes, 0))):
        extra |= {role: dataset["clear"], f"valid_{role}": dataset["valid_cloudy"], f"scl_{role}": (("y", "x"), own)}
    save_dataset(dataset.assign(extra), tmp_path / "series.json", kind="pair", summary={})
    settings = MaskSettings(dilate_px=0, feather_px=0)
    mask_pair(plain_pair, tmp_path / "plain-mask.json", settings)
    mask_pair(tmp_path / "series.json", tmp_path / "mask.json", settings)
    plain, masks = open_dataset(tmp_path / "plain-mask.json"), open_dataset(tmp_path / "mask.json")
    for name in plain.data_vars:
        np.testing.assert_array_equal(masks[name], plain[name])
    assert set(masks.data_vars) - set(plain.data_vars) == {
        f"{kind}_{role}" for kind in ("cloud", "shadow", "known") for role in ("before", "after")
    }
    assert (masks["cloud_before"].values[SHADOW] == 255).all()
    assert (masks["shadow_before"].values[CLOUD] == 255).all()
    np.testing.assert_array_equal(masks["known_before"], dataset["valid_cloudy"])
    assert not masks["known_after"].values.any(), "classes of nothing tell nothing"
    assert "after" in masks.attrs["provenance"]["masks"]["unknown"]
