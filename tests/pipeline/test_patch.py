"""Cutting a masked pair into patches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import PatchSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS, with_grid
from sereno.pipeline.store import open_dataset, read_manifest, save_dataset, store_of, verify_store

SETTINGS = PatchSettings(size_px=32, block_patches=2, buffer_px=16)
SIDE = 240
GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 498_400, 0, -10, 5_040_000), "EPSG:32632")
BANDS = ("B02", "B03", "B04")
PAIR = {"id": "p1", "sar": "s", "cloudy": "c", "clear": "t", "sar_gap_days": -0.5, "clear_gap_days": 5.0}


def make_pair(grid: GeoBox = GRID, windows: list[dict[str, Any]] | None = None) -> xr.Dataset:
    """Self-identifying data: every value says its band, row and column (uint16 wraps, which is as good)."""
    rows, cols = grid.shape
    place = np.arange(rows)[:, None] * 256 + np.arange(cols)
    optical = np.stack([place + 7 * n for n in range(len(BANDS))]).astype(np.uint16)
    valid = np.ones((rows, cols), bool)
    variables = {
        "sar": (("sar_band", "y", "x"), np.stack([-place, -place - 1]).astype(np.int16), {"units": SAR_UNITS}),
        "cloudy": (("band", "y", "x"), optical, {"units": OPTICAL_UNITS}),
        "clear": (("band", "y", "x"), optical + np.uint16(1000), {"units": OPTICAL_UNITS}),
        **{f"valid_{role}": (("y", "x"), valid.copy()) for role in ("sar", "cloudy", "clear")},
    }
    provenance = {
        "pair": PAIR,
        "area": "west",
        "cloudy": {"item": "c", "sensor": "sentinel2-l2a", **({"windows": windows} if windows else {})},
    }
    coords = {"band": list(BANDS), "sar_band": ["VV", "VH"]}
    return with_grid(xr.Dataset(variables, coords=coords, attrs={"provenance": provenance}), grid)


def make_masks(grid: GeoBox = GRID) -> xr.Dataset:
    names = ("cloud_cloudy", "shadow_cloudy", "cloud_clear", "shadow_clear")
    variables = {name: (("y", "x"), np.zeros(grid.shape, np.uint8)) for name in names}
    variables |= {f"known_{role}": (("y", "x"), np.ones(grid.shape, bool)) for role in ("cloudy", "clear")}
    return with_grid(xr.Dataset(variables, attrs={"provenance": {"area": "west", "pair": PAIR, "masks": {"method": "scl"}}}), grid)


def run_patch(tmp_path: Path, pair: xr.Dataset, masks: xr.Dataset, settings: PatchSettings = SETTINGS) -> Path:
    save_dataset(pair, tmp_path / "pair.json", kind="pair", summary={})
    save_dataset(masks, tmp_path / "mask.json", kind="mask", summary={})
    patch_pair(tmp_path / "pair.json", tmp_path / "mask.json", tmp_path / "patch.json", settings)
    return tmp_path / "patch.json"


def test_every_pixel_of_every_patch_is_the_pairs_pixel(tmp_path: Path) -> None:
    pair, masks = make_pair(), make_masks()
    masks["cloud_cloudy"][:] = np.arange(SIDE, dtype=np.uint8)[:, None]
    manifest = run_patch(tmp_path, pair, masks)
    patches, summary = open_dataset(manifest, kind="patches"), read_manifest(manifest)["summary"]
    records = [PatchRecord.model_validate(value) for value in summary["patches"]]
    assert len(records) == patches.sizes["patch"] == 36
    for place, record in enumerate(records):
        window = {"y": slice(record.row, record.row + 32), "x": slice(record.col, record.col + 32)}
        for name in ("sar", "cloudy", "clear"):
            np.testing.assert_array_equal(patches[name][place].values, pair[name].isel(window).values)
        np.testing.assert_array_equal(patches["mask"][place, 0].values, masks["cloud_cloudy"].isel(window).values)
    assert (patches["mask"].sel(mask_channel=["valid_input", "valid_target", "valid_sar"]) == 255).all()
    assert tuple(patches["band"].values) == BANDS
    assert tuple(patches["mask_channel"].values) == MASK_CHANNELS
    assert verify_store(manifest) > 36 * 4


def refuse_pair(pair: xr.Dataset) -> xr.Dataset:
    """What `align` makes of a pair with a scene that was refused."""
    pair.attrs["provenance"] = pair.attrs["provenance"] | {"refused": "the sar scene: 2.0% of the ground is valid"}
    for role in ("sar", "cloudy", "clear"):
        pair[f"valid_{role}"][:] = False
    return pair


def test_a_refused_pair_gives_no_patch_and_says_why(tmp_path: Path) -> None:
    summary = read_manifest(run_patch(tmp_path, refuse_pair(make_pair()), make_masks()))["summary"]
    assert summary["patches"] == []
    assert summary["pair_refused"] == "the sar scene: 2.0% of the ground is valid"
    assert {entry["setting"] for entry in summary["refused"]} == {"min_valid"}
    assert len(summary["refused"]) == 36


def test_a_refused_pair_needs_no_delivered_windows(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"layout": "source"})
    assert read_manifest(run_patch(tmp_path, refuse_pair(make_pair()), make_masks(), settings))["summary"]["refused"] == []


def test_a_chunk_is_one_patch_with_all_its_bands(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(store_of(run_patch(tmp_path, make_pair(), make_masks())), mode="r")
    assert {name: group[name].chunks for name in ("sar", "cloudy", "mask")} == {  # type: ignore[union-attr]
        "sar": (1, 2, 32, 32),
        "cloudy": (1, 3, 32, 32),
        "mask": (1, 7, 32, 32),
    }


def test_records_say_where_a_patch_lies_and_in_which_block(tmp_path: Path) -> None:
    summary = read_manifest(run_patch(tmp_path, make_pair(), make_masks()))["summary"]
    first = summary["patches"][0]
    # 498400 m and 5040000 m are whole multiples of the block of 800 m; half the buffer of 160 m is left free at its edge.
    assert first["id"] == "west/p1/r8-c8"
    assert first["bounds_m"] == [498_480, 5_040_000 - 80 - 320, 498_480 + 320, 5_040_000 - 80]
    assert first["block"] == f"EPSG:32632/{498_400 // 800}/{5_040_000 // 800 - 1}"
    assert (first["sar_gap_days"], first["clear_gap_days"]) == (-0.5, 5.0)
    assert {key: summary[key] for key in ("area", "pair", "size_px", "resolution_m", "layout", "block_px", "buffer_m")} == {
        "area": "west",
        "pair": "p1",
        "size_px": 32,
        "resolution_m": 10.0,
        "layout": "blocks",
        "block_px": 80,
        "buffer_m": 160.0,
    }


def test_shares_count_every_pixel_and_probability_from_one_half(tmp_path: Path) -> None:
    pair, masks = make_pair(), make_masks()
    rows, cols = slice(8, 40), slice(8, 40)  # the first window: 1024 pixels
    masks["cloud_cloudy"][rows, cols][:8] = 128  # 256 pixels at 0.502
    masks["shadow_cloudy"][rows, cols][4:16] = 255  # 256 of them not yet cloud
    masks["cloud_cloudy"][rows, cols][16:] = 127  # 0.498 counts as clear
    masks["shadow_clear"][rows, cols][0, :16] = 200  # 16 pixels
    for role, at in (("sar", 0), ("cloudy", 1), ("clear", 2)):
        pair[f"valid_{role}"][rows, cols][at, :4] = False  # 4 pixels each
    record = read_manifest(run_patch(tmp_path, pair, masks))["summary"]["patches"][0]
    assert record["cloud_input_share"] == 512 / 1024
    assert record["cloud_target_share"] == 16 / 1024
    assert record["valid_share"] == pytest.approx(1 - 12 / 1024, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "settings", "setting", "reason"),
    [
        ("valid_sar", {}, "min_valid", "share valid in SAR, input and target is 0.5000, below patch.min_valid 0.9"),
        ("cloud_clear", {}, "max_target_cloud", "share of cloud and shadow in the target is 0.5000, above patch.max_target_cloud 0.1"),
        (
            "cloud_cloudy",
            {"min_input_cloud": 0.6},
            "min_input_cloud",
            "share of cloud and shadow in the input is 0.5000, below patch.min_input_cloud 0.6",
        ),
    ],
)
def test_a_refused_window_says_why_with_value_and_limit(
    tmp_path: Path, change: str, settings: dict[str, float], setting: str, reason: str
) -> None:
    pair, masks = make_pair(), make_masks()
    masks["cloud_cloudy"][:] = 255
    if change == "valid_sar":
        pair[change][8:24, 8:40] = False
    else:
        masks[change][8:40, 8:40] = 0
        masks[change][8:24, 8:40] = 255
    summary = read_manifest(run_patch(tmp_path, pair, masks, SETTINGS.model_copy(update=settings)))["summary"]
    (refused,) = summary["refused"]
    assert (refused["id"], refused["setting"], refused["value"], refused["reason"]) == ("r8-c8", setting, 0.5, reason)
    assert len(summary["patches"]) == 35


@pytest.mark.parametrize(("role", "channel"), [("cloudy", "valid_input"), ("clear", "valid_target")])
def test_ground_whose_clouds_are_not_known_is_not_usable(tmp_path: Path, role: str, channel: str) -> None:
    masks = make_masks()
    masks[f"known_{role}"][8:24, 8:40] = False  # half of the first window
    masks[f"known_{role}"][8:10, 40:72] = False  # a sixteenth of the second
    manifest = run_patch(tmp_path, make_pair(), masks)
    patches, summary = open_dataset(manifest), read_manifest(manifest)["summary"]
    (refused,) = summary["refused"]
    assert (refused["id"], refused["setting"], refused["value"]) == ("r8-c8", "min_valid", 0.5)
    assert refused["reason"] == (
        "share valid in SAR, input and target is 0.5000, below patch.min_valid 0.9; of 0.5000 it is not known whether there is cloud"
    )
    assert summary["patches"][0]["valid_share"] == 1 - 1 / 16
    usable = patches["mask"].sel(mask_channel=channel).values[0] > 0
    np.testing.assert_array_equal(usable, np.arange(32)[:, None].repeat(32, axis=1) >= 2)
    assert summary["pair_refused"] is None


def test_a_pair_with_an_image_of_which_nothing_is_known_is_refused_with_the_reason(tmp_path: Path) -> None:
    masks = make_masks()
    masks["known_clear"][:] = False
    masks.attrs["provenance"]["masks"]["unknown"] = {"cloudy": None, "clear": "no classes: do this"}
    summary = read_manifest(run_patch(tmp_path, make_pair(), masks))["summary"]
    assert summary["patches"] == []
    assert summary["pair_refused"] == "no classes: do this"
    assert summary["refused"][0]["reason"].endswith("; of 1.0000 it is not known whether there is cloud")


def test_masks_that_do_not_say_what_is_known_are_to_be_made_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"do not say where clouds of the cloudy image are known.*run `sereno mask` again"):
        run_patch(tmp_path, make_pair(), make_masks().drop_vars("known_cloudy"))


def test_a_pair_of_which_nothing_is_kept_gives_an_empty_store(tmp_path: Path) -> None:
    masks = make_masks()
    masks["cloud_clear"][:] = 255
    manifest = run_patch(tmp_path, make_pair(), masks)
    summary = read_manifest(manifest, kind="patches")["summary"]
    assert summary["patches"] == []
    assert len(summary["refused"]) == 36
    assert open_dataset(manifest)["cloudy"].shape == (0, 3, 32, 32)


def test_delivered_windows_are_taken_as_they_came(tmp_path: Path) -> None:
    windows = [{"name": "p839", "row": 0, "col": 16}, {"name": "p840", "row": 100, "col": 208}]
    source = SETTINGS.model_copy(update={"layout": "source"})
    manifest = run_patch(tmp_path, make_pair(windows=windows), make_masks(), source)
    summary = read_manifest(manifest)["summary"]
    assert [(r["id"], r["block"], r["row"], r["col"]) for r in summary["patches"]] == [
        ("west/p1/p839", "west", 0, 16),
        ("west/p1/p840", "west", 100, 208),
    ]
    assert (summary["buffer_m"], summary["block_px"]) == (0.0, None)


@pytest.mark.parametrize(
    ("windows", "words"),
    [(None, "not delivered in windows"), ([{"name": "p1", "row": 0, "col": 216}], "window p1 of pair p1 .*size_px 32")],
)
def test_delivered_windows_that_do_not_fit_are_refused(tmp_path: Path, windows: list[dict[str, Any]] | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        run_patch(tmp_path, make_pair(windows=windows), make_masks(), SETTINGS.model_copy(update={"layout": "source"}))


def test_masks_of_another_grid_or_pair_are_refused(tmp_path: Path) -> None:
    other = GeoBox(GRID.shape, Affine(10, 0, 498_410, 0, -10, 5_040_000), "EPSG:32632")
    with pytest.raises(DataError, match=r"mask\.json was not made from .*pair\.json"):
        run_patch(tmp_path, make_pair(), make_masks(other))
    swapped = make_masks()
    swapped.attrs["provenance"]["pair"] = {**PAIR, "id": "p2"}
    with pytest.raises(DataError, match="was not made from"):
        run_patch(tmp_path, make_pair(), swapped)


def test_a_missing_pair_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"pair\.json"):
        patch_pair(tmp_path / "pair.json", tmp_path / "mask.json", tmp_path / "patch.json", SETTINGS)


def test_the_same_pair_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        texts.append(run_patch(tmp_path / run, make_pair(), make_masks()).read_bytes())
    assert texts[0] == texts[1]


def make_series() -> tuple[xr.Dataset, xr.Dataset]:
    """The pair with a date before and one after, and its masks."""
    pair, masks = make_pair(), make_masks()
    gaps = {"before": "b", "after": "a", "before_gap_days": -5.0, "after_gap_days": 20.0}
    for dataset in (pair, masks):
        dataset.attrs["provenance"] = dataset.attrs["provenance"] | {"pair": PAIR | gaps}
    optical = pair["cloudy"].values
    for step, role in enumerate(("before", "after"), 1):
        pair[role] = (("band", "y", "x"), optical + np.uint16(step), {"units": OPTICAL_UNITS})
        pair[f"valid_{role}"] = pair["valid_clear"].copy()
        masks[f"cloud_{role}"] = (("y", "x"), np.broadcast_to(np.arange(SIDE, dtype=np.uint8), (SIDE, SIDE)).copy())
        masks[f"shadow_{role}"] = masks["shadow_clear"].copy()
        masks[f"known_{role}"] = masks["known_clear"].copy()
    return pair, masks


def test_patches_of_a_series_hold_the_dates_around_them_and_the_days_to_each(tmp_path: Path) -> None:
    pair, masks = make_series()
    manifest = run_patch(tmp_path, pair, masks)
    patches, summary = open_dataset(manifest, kind="patches"), read_manifest(manifest)["summary"]
    assert (patches["around"].dims, patches["around_clear"].dims) == (
        ("patch", "date", "band", "row", "col"),
        ("patch", "date", "row", "col"),
    )
    assert (summary["dates"], patches["date"].values.tolist()) == (["before", "after"], ["before", "after"])
    for place, record in enumerate(summary["patches"]):
        window = {"y": slice(record["row"], record["row"] + 32), "x": slice(record["col"], record["col"] + 32)}
        for date in ("before", "after"):
            found = patches.sel(date=date)
            np.testing.assert_array_equal(found["around"][place].values, pair[date].isel(window).values)
            np.testing.assert_array_equal(found["around_clear"][place].values, 255 - masks[f"cloud_{date}"].isel(window).values)
        assert record["gaps_days"] == {"before": -5.0, "after": 20.0}


def test_a_series_adds_to_a_patch_store_and_changes_nothing_else(tmp_path: Path) -> None:
    plain, series = (run_patch(tmp_path / name, *made) for name, made in (("p", (make_pair(), make_masks())), ("s", make_series())))
    one, two = open_dataset(plain), open_dataset(series)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], two[name])
    summaries = [read_manifest(manifest)["summary"] for manifest in (plain, series)]
    assert set(summaries[1]) - set(summaries[0]) == {"dates"}
    assert [record | {"gaps_days": {}} for record in summaries[1]["patches"]] == [
        record | {"gaps_days": {}} for record in summaries[0]["patches"]
    ]
    assert all("gaps_days" not in record for record in summaries[0]["patches"])


def test_a_covered_or_unknown_date_around_a_pair_refuses_no_window(tmp_path: Path) -> None:
    pair, masks = make_series()
    masks["cloud_before"][:], masks["known_after"][:] = 255, False
    masks.attrs["provenance"]["masks"] = {
        "method": "scl",
        "unknown": {"cloudy": None, "clear": None, "before": None, "after": "no classes"},
    }
    manifest = run_patch(tmp_path, pair, masks)
    summary = read_manifest(manifest)["summary"]
    assert (len(summary["patches"]), summary["refused"], summary["pair_refused"]) == (36, [], None)
    assert not open_dataset(manifest)["around_clear"].values.any()
