"""Windows of a ROI become one grid, one pair and mosaics that hold each window's own values."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.pairs import Lock
from sereno.pipeline.sensors.sen12mscr import list_pairs, read_scene
from sereno.pipeline.signing import Resolver

SAMPLES = os.environ.get("SERENO_SAMPLES")
AREA = "ROIs1970_fall_139"
ORIGIN = (701_879.9106015414, 3_710_139.5406956286)
"""Of the real ROI: the dataset's grids do not begin at round numbers."""
SETTINGS = IngestSettings(attempts=1)
FOLDERS = {"s1": "s1", "s2_cloudy": "s2_cloudy", "s2": "s2_cloudfree"}


def ground(kind: str) -> npt.NDArray[Any]:
    """What a ROI of 96 x 128 pixels shows: every pixel of every band its own number."""
    if kind == "s1":
        return np.random.default_rng(1).uniform(-30, 0, (2, 96, 128)).astype(np.float32)
    return (np.arange(13 * 96 * 128).reshape(13, 96, 128) % 60_000 + 1 + len(kind)).astype(np.uint16)


def write(path: Path, values: npt.NDArray[Any], place: tuple[float, float], crs: str = "EPSG:32650") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "width": values.shape[2],
        "height": values.shape[1],
        "count": values.shape[0],
        "crs": crs,
    }
    with rasterio.open(path, "w", **profile, transform=Affine(10, 0, ORIGIN[0] + 10 * place[1], 0, -10, ORIGIN[1] - 10 * place[0])) as file:
        file.write(values)


WINDOWS = {"p2": (0, 0), "p3": (0, 32), "p10": (32, 64)}
"""Windows of 64 pixels by row and column; the first two overlap, the last lies apart."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, name in FOLDERS.items():
        for window, (row, column) in WINDOWS.items():
            write(tmp_path / name / f"{AREA}_{window}.tif", ground(kind)[:, row : row + 64, column : column + 64], (row, column))
    return tmp_path


def read(folder: Path, lock: Lock, kind: str, settings: IngestSettings = SETTINGS) -> Any:
    return read_scene(lock.scenes[f"{AREA}.{kind}"], lock.grid.to_geobox(), settings, Resolver(str(folder))).scene


def covered() -> npt.NDArray[np.bool_]:
    mask = np.zeros((96, 128), bool)
    for row, column in WINDOWS.values():
        mask[row : row + 64, column : column + 64] = True
    return mask


def test_the_lock_of_a_roi_has_one_pair_of_three_scenes_on_the_union_of_its_windows(folder: Path) -> None:
    lock = list_pairs(folder, AREA)
    (pair,) = lock.pairs
    assert (pair.sar, pair.cloudy, pair.clear) == (f"{AREA}.s1", f"{AREA}.s2_cloudy", f"{AREA}.s2")
    assert lock.grid.shape == (96, 128)
    assert (lock.grid.crs, lock.grid.transform[2], lock.grid.transform[5]) == ("EPSG:32650", *ORIGIN)
    (record,) = lock.scenes[pair.clear].items
    assert {name: asset.href for name, asset in record.assets.items()} == {
        name: f"s2_cloudfree/{AREA}_{name}.tif" for name in ("p2", "p3", "p10")
    }
    assert record.time == "2018-10-01T00:00:00Z"
    assert 119 < record.bbox[0] < record.bbox[2] < 120  # near Huai'an
    assert Lock.model_validate(lock.model_dump(mode="json")) == lock


def test_with_skies_the_clear_scene_is_input_and_target_and_the_cloudy_one_is_not_read(folder: Path) -> None:
    lock = list_pairs(folder, AREA, skies=2)
    assert set(lock.scenes) == {f"{AREA}.s1", f"{AREA}.s2"}
    assert [(pair.id, pair.cloudy, pair.clear, pair.sky) for pair in lock.pairs] == [
        (f"{AREA}-sky{sky}", f"{AREA}.s2", f"{AREA}.s2", sky) for sky in (1, 2)
    ]


@pytest.mark.parametrize("kind", ["s2", "s2_cloudy"])
def test_optical_mosaics_hold_the_windows_own_values_as_they_are(folder: Path, kind: str) -> None:
    scene = read(folder, list_pairs(folder, AREA), kind)
    np.testing.assert_array_equal(scene["valid"], covered())
    np.testing.assert_array_equal(scene["data"], np.where(covered(), ground(kind), 0))
    facts = scene.attrs["provenance"]
    assert facts["windows"] == [{"name": name, "row": row, "col": column} for name, (row, column) in WINDOWS.items()]
    assert (facts["warnings"], facts["n_clamped"], facts["offset"]) == ([], 0, 0)


def test_sar_mosaics_are_centi_db_with_nan_invalid(folder: Path) -> None:
    values = ground("s1")[:, 32:96, 64:128].copy()
    values[1, 40, 50] = np.nan
    write(folder / "s1" / f"{AREA}_p10.tif", values, (32, 64))
    scene = read(folder, list_pairs(folder, AREA), "s1")
    expected = covered()
    expected[32 + 40, 64 + 50] = False
    np.testing.assert_array_equal(scene["valid"], expected)
    np.testing.assert_allclose(scene["data"].values[:, expected] / 100, ground("s1")[:, expected], atol=0.0051)


def test_a_pixel_is_invalid_only_where_all_thirteen_bands_are_zero(folder: Path) -> None:
    values = ground("s2")[:, 32:96, 64:128].copy()
    values[:, 40, 50] = 0
    values[:12, 40, 51] = 0
    write(folder / "s2_cloudfree" / f"{AREA}_p10.tif", values, (32, 64))
    scene = read(folder, list_pairs(folder, AREA), "s2", IngestSettings(attempts=1, bands=("B04", "B03")))
    assert scene["valid"].values[72, 114:116].tolist() == [False, True]
    assert scene["data"].values[:, 72, 115].tolist() == [0, 0]


def test_the_first_window_wins_where_overlapping_ones_differ_and_the_pixels_are_counted(folder: Path) -> None:
    changed = ground("s2")[:, 0:64, 32:96].copy()
    changed[3, 10, :20] += 1  # columns 32..51, all under the first window
    write(folder / "s2_cloudfree" / f"{AREA}_p3.tif", changed, (0, 32))
    scene = read(folder, list_pairs(folder, AREA), "s2")
    np.testing.assert_array_equal(scene["data"], np.where(covered(), ground("s2"), 0))
    assert scene.attrs["provenance"]["warnings"] == ["20 pixels differ between overlapping windows"]


@pytest.mark.parametrize(("place", "crs"), [((32.0, 64.5), "EPSG:32650"), ((32.0, 64.0), "EPSG:32651")])
def test_windows_that_share_no_grid_are_refused_by_name(folder: Path, place: tuple[float, float], crs: str) -> None:
    write(folder / "s1" / f"{AREA}_p10.tif", ground("s1")[:, :64, :64], place, crs)
    with pytest.raises(DataError, match=rf"window s1/{AREA}_p10.tif \({crs}.* does not lie on the pixel grid of s1/{AREA}_p2.tif"):
        list_pairs(folder, AREA)


def test_a_window_with_a_broken_file_is_refused_and_the_others_stay(folder: Path) -> None:
    (folder / "s2_cloudy" / f"{AREA}_p3.tif").write_bytes(b"broken")
    lock = list_pairs(folder, AREA)
    assert set(lock.scenes[f"{AREA}.s1"].items[0].assets) == {"p2", "p10"}
    (refusal,) = lock.refused
    assert refusal.item == f"{AREA}/p3"
    assert "cannot be opened" in refusal.reason


def test_a_window_that_breaks_after_the_lock_is_listed_as_lost(folder: Path) -> None:
    lock = list_pairs(folder, AREA)
    (folder / "s2_cloudfree" / f"{AREA}_p10.tif").unlink()
    facts = read(folder, lock, "s2").attrs["provenance"]
    assert [window["name"] for window in facts["windows"]] == ["p2", "p3"]
    assert [entry["asset"] for entry in facts["lost"]] == ["p10"]


def test_a_file_with_other_bands_is_refused(folder: Path) -> None:
    write(folder / "s2_cloudfree" / f"{AREA}_p10.tif", ground("s2")[:12, 32:96, 64:128], (32, 64))
    with pytest.raises(DataError, match="holds 12 bands of uint16, expected 13"):
        read(folder, list_pairs(folder, AREA), "s2")


def test_an_unknown_roi_and_an_unknown_band_are_named(folder: Path) -> None:
    with pytest.raises(MissingError, match="holds no complete window of ROI 'ROIs1970_fall_13'"):
        list_pairs(folder, "ROIs1970_fall_13")
    with pytest.raises(MissingError, match="L1C has no band B13, VV"):
        read(folder, list_pairs(folder, AREA), "s2", IngestSettings(bands=("B13", "B02", "VV")))


@pytest.mark.real
@pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
def test_the_real_triplet_is_what_rasterio_reads() -> None:
    folder = Path(str(SAMPLES)) / "sen12mscr" / "glfcr"
    lock = list_pairs(folder, AREA)
    assert lock.grid.shape == (256, 256)
    for kind, name in FOLDERS.items():
        with rasterio.open(folder / name / f"{AREA}_p839.tif") as file:
            values = file.read()
        scene = read(folder, lock, kind)
        assert scene["valid"].values.all()
        assert scene.attrs["provenance"]["windows"] == [{"name": "p839", "row": 0, "col": 0}]
        if kind == "s1":
            np.testing.assert_allclose(scene["data"] / 100, values, atol=0.0051)
        else:
            assert tuple(scene["band"].values) == L1C_BANDS
            np.testing.assert_array_equal(scene["data"], values)
