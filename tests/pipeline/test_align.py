"""A pair lies on the lock's grid, with the shift of SAR taken out once or refused, and says so."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.spatial import cKDTree

from sereno.pipeline.align import align_pair
from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.pairs import GridRecord, Lock, Pair, SceneRecord
from sereno.pipeline.scene import geobox_of, to_scene
from sereno.pipeline.shiftfield import ShiftField
from sereno.pipeline.store import open_dataset, read_manifest, save_dataset, verify_store

SIZE, MARGIN, SHIFT = 256, 16, (3, -2)
GRID = GeoBox((SIZE, SIZE), Affine(10, 0, 498_400, 0, -10, 5_006_400), "EPSG:32632")
BANDS = ("B02", "B03", "B04", "B08")
PAIR = Pair(id="p1", sar="s", cloudy="c", clear="t", sar_gap_days=0.5, clear_gap_days=-5)
Array = npt.NDArray[Any]


def find_parcels(seed: int) -> Array:
    """Which parcel each pixel of the grid with twice its margin lies in."""
    corners = np.random.default_rng(seed).uniform(0, SIZE + 4 * MARGIN, (200, 2))
    places = np.stack(np.mgrid[: SIZE + 4 * MARGIN, : SIZE + 4 * MARGIN], axis=-1)
    parcels: Array = cKDTree(corners).query(places)[1]
    return parcels


def make_optical(item: str = "T", bands: tuple[str, ...] = BANDS, **changes: Any) -> xr.Dataset:
    inner = find_parcels(1)[2 * MARGIN : -2 * MARGIN, 2 * MARGIN : -2 * MARGIN]
    stored = np.random.default_rng(2).integers(300, 3500, (len(bands), 200)).astype(np.uint16)[:, inner]
    valid = np.ones(stored.shape[1:], bool)
    valid[:5] = False
    provenance = {"item": item, "sensor": changes.pop("sensor", "sentinel2-l2a"), "refused": changes.pop("refused", None)}
    scl = changes.pop("scl", np.full(valid.shape, 4, np.uint8))
    return to_scene(stored, valid, bands=bands, geobox=changes.pop("geobox", GRID), provenance=provenance, scl=scl)


def make_sar(shift: tuple[int, int] = (0, 0), seed: int = 1, item: str = "S") -> xr.Dataset:
    """Content of the ground moved by `shift`, on the grid with its margin, in nearly noise-free centi-dB."""
    rows, cols = (slice(MARGIN - step, MARGIN - step + SIZE + 2 * MARGIN) for step in shift)
    levels = np.random.default_rng(3).integers(-2000, -500, (2, 200))
    stored = levels[:, find_parcels(seed)[rows, cols]] + np.random.default_rng(4).integers(-5, 6, (2, SIZE + 2 * MARGIN, SIZE + 2 * MARGIN))
    valid = np.ones(stored.shape[1:], bool)
    provenance = {"item": item, "sensor": "sentinel1-rtc"}
    return to_scene(stored.astype(np.int16), valid, bands=("VV", "VH"), geobox=GRID.pad(MARGIN), provenance=provenance)


def write_lock(folder: Path, outline: dict[str, Any] | None = None) -> Path:
    def record(name: str, sensor: str) -> SceneRecord:
        shared = {"sensor": sensor, "time": "2021-06-03T10:20:00Z"}
        item = shared | {"item": name.upper(), "collection": "c", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46), "assets": {}}
        return SceneRecord.model_validate(shared | {"id": name, "items": [item]})

    scenes = {"s": record("s", "sentinel1-rtc"), "c": record("c", "sentinel2-l2a"), "t": record("t", "sentinel2-l2a")}
    lock = Lock(area="west", catalogue=".", grid=GridRecord.from_geobox(GRID), scenes=scenes, pairs=(PAIR,), refused=(), outline=outline)
    path = folder / "lock.json"
    path.write_text(lock.to_json())
    return path


def align(folder: Path, sar: xr.Dataset, cloudy: xr.Dataset | None = None, clear: xr.Dataset | None = None, **lock: Any) -> Path:
    scenes = {"s": sar, "c": make_optical("C") if cloudy is None else cloudy, "t": make_optical() if clear is None else clear}
    for name, scene in scenes.items():
        save_dataset(scene, folder / f"{name}.json", kind="scene", summary={})
    manifests = (folder / "s.json", folder / "c.json", folder / "t.json")
    align_pair((write_lock(folder, **lock), "p1"), manifests, folder / "pair.json", AlignSettings())
    return folder / "pair.json"


def test_shifted_sar_is_brought_back_onto_the_ground(tmp_path: Path) -> None:
    pair = open_dataset(align(tmp_path, make_sar(SHIFT)), kind="pair")
    found = pair.attrs["provenance"]["registration"]
    assert found["verdict"] == "applied"
    assert (found["dy_px"], found["dx_px"]) == pytest.approx(SHIFT, abs=0.15)
    # Two columns west are -20 m east, three rows down are -30 m north.
    assert found["shift_m"] == pytest.approx((-20, -30), abs=1.5)
    inside = np.s_[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    straight, shifted = (make_sar(shift)["data"].values[inside].astype(float) for shift in ((0, 0), SHIFT))
    aligned = pair["sar"].values
    assert np.abs(aligned - straight).mean() < 0.3 * np.abs(shifted - straight).mean()
    assert pair["valid_sar"].values.all()


def test_record_holds_what_the_report_shows_and_the_field_that_was_applied(tmp_path: Path) -> None:
    found = open_dataset(align(tmp_path, make_sar(SHIFT))).attrs["provenance"]["registration"]
    measured = {"verdict", "status", "reason", "pixel_m", "descriptor", "search_px", "coarse_factor", "valid_share", "shape", "field"}
    measured |= {"n_laid", "n_windows", "n_good", "n_inlier", "inlier_ratio", "rms_px", "held_out_px", "sigma_px", "median_peak"}
    measured |= {"median_psr", "false_alarms", "windows", "dy_px", "dx_px", "mean_shift_px", "max_shift_px", "shift_m"}
    assert set(found) == measured
    assert (found["status"], found["pixel_m"], found["search_px"], found["shape"]) == ("ok", 10.0, 10.0, [SIZE, SIZE])
    field = ShiftField.from_record(found["field"])
    assert field.evaluate(*field.centre) == pytest.approx((found["dy_px"], found["dx_px"]), abs=1e-3)


def test_refused_shift_leaves_sar_where_it_is_to_the_last_bit(tmp_path: Path) -> None:
    other = make_sar(SHIFT, seed=9)
    pair = open_dataset(align(tmp_path, other), kind="pair")
    found = pair.attrs["provenance"]["registration"]
    assert (found["verdict"], found["dy_px"], found["dx_px"], found["shift_m"]) == ("refused", 0, 0, [0, 0])
    assert np.array_equal(pair["sar"].values, other["data"].values[:, MARGIN:-MARGIN, MARGIN:-MARGIN])


def test_optical_values_validity_and_classes_pass_unchanged_on_the_lock_s_grid(tmp_path: Path) -> None:
    cloudy, clear = make_optical("C", scl=np.full(GRID.shape, 9, np.uint8)), make_optical()
    pair = open_dataset(align(tmp_path, make_sar(), cloudy, clear), kind="pair")
    assert geobox_of(pair) == GRID
    for role, scene in (("cloudy", cloudy), ("clear", clear)):
        assert np.array_equal(pair[role].values, scene["data"].values)
        assert np.array_equal(pair[f"valid_{role}"].values, scene["valid"].values)
        assert np.array_equal(pair[f"scl_{role}"].values, scene["scl"].values)
    assert pair["sar"].dtype == np.int16
    assert (pair["sar"].dims, pair["clear"].dims) == (("sar_band", "y", "x"), ("band", "y", "x"))
    assert pair["band"].values.tolist() == list(BANDS)
    assert pair["sar_band"].values.tolist() == ["VV", "VH"]


def test_pair_records_where_it_comes_from_and_what_was_measured(tmp_path: Path) -> None:
    manifest = align(tmp_path, make_sar(SHIFT))
    assert verify_store(manifest) > 0
    provenance, summary = open_dataset(manifest).attrs["provenance"], read_manifest(manifest, kind="pair")["summary"]
    assert set(provenance) == {"pair", "area", "sar", "cloudy", "clear", "registration", "registration_cloudy", "refused"}
    assert [provenance[role]["item"] for role in ("sar", "cloudy", "clear")] == ["S", "C", "T"]
    assert summary["registration"] == provenance["registration"]
    assert summary["pair"] == PAIR.model_dump(mode="json")
    assert summary["valid_share"] == {"sar": 1.0, "cloudy": pytest.approx(251 / 256, abs=1e-6), "clear": pytest.approx(251 / 256, abs=1e-6)}


def test_a_pair_with_a_refused_scene_is_written_without_a_valid_pixel_and_says_why(tmp_path: Path) -> None:
    why = "0.0% of the ground is valid: B04 is missing (404)"
    clear = make_optical(refused=why).drop_vars("scl")
    clear["valid"][:] = False
    pair, summary = (read(align(tmp_path, make_sar(SHIFT), clear=clear), kind="pair") for read in (open_dataset, read_manifest))
    found = pair.attrs["provenance"]
    assert found["refused"] == f"the clear scene: {why}"
    assert (found["registration"]["verdict"], found["registration"]["reason"]) == ("refused", found["refused"])
    assert found["registration"]["n_windows"] == 0
    assert summary["summary"]["refused"] == found["refused"]
    for role in ("sar", "cloudy", "clear"):
        assert not pair[f"valid_{role}"].values.any()
        assert not pair[role].values.any()
    assert not pair["scl_clear"].values.any()


def test_ground_outside_the_outline_is_not_valid_and_inside_nothing_changes(tmp_path: Path) -> None:
    left, _, right, top = GRID.boundingbox
    middle = left + 10 * 100 + 4  # the centre of column 100 lies outside, that of 99 inside
    corners = [[left, top], [middle, top], [middle, top - 2000], [left, top - 2000], [left, top]]
    whole = open_dataset(align(tmp_path / "whole", make_sar(SHIFT)), kind="pair")
    pair = open_dataset(align(tmp_path / "part", make_sar(SHIFT), outline={"type": "Polygon", "coordinates": [corners]}), kind="pair")
    assert right - left == 10 * SIZE
    inside = np.zeros(GRID.shape, bool)
    inside[:200, :100] = True
    for role in ("sar", "cloudy", "clear"):
        assert np.array_equal(pair[f"valid_{role}"].values, whole[f"valid_{role}"].values & inside)
        assert np.array_equal(pair[role].values, whole[role].values * inside)
    assert pair.attrs["provenance"]["registration"] == whole.attrs["provenance"]["registration"], "measured on all the ground there is"


def test_equal_scenes_give_equal_bytes(tmp_path: Path) -> None:
    manifests = [align(tmp_path / name, make_sar(SHIFT)) for name in ("one", "two")]
    first, second = (hashlib.sha256(manifest.read_bytes()).hexdigest() for manifest in manifests)
    assert first == second


def test_clouds_in_the_clear_scene_take_no_part(tmp_path: Path) -> None:
    scl = np.full(GRID.shape, 4, np.uint8)
    scl[:, 160:] = 9
    found = []
    for name, brightness in (("dark", 500), ("bright", 9000)):
        clear = make_optical(scl=scl)
        clear["data"][:, :, 160:] = np.random.default_rng(5).integers(brightness, 2 * brightness, (4, SIZE, SIZE - 160)).astype(np.uint16)
        found.append(open_dataset(align(tmp_path / name, make_sar(SHIFT), clear=clear)).attrs["provenance"]["registration"])
    assert found[0] == found[1]
    assert found[0]["verdict"] == "applied"


def test_products_of_different_level_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one processing level"):
        align(tmp_path, make_sar(), cloudy=make_optical("C", sensor="sen12mscr-s2"))
    assert not (tmp_path / "pair.json").exists()


def test_different_bands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pipeline\.ingest\.bands"):
        align(tmp_path, make_sar(), cloudy=make_optical("C", bands=BANDS[:3]))


def test_optical_scene_off_the_grid_is_refused(tmp_path: Path) -> None:
    shifted = GeoBox(GRID.shape, GRID.transform * Affine.translation(0.5, 0), GRID.crs)
    with pytest.raises(DataError, match="lock's grid"):
        align(tmp_path, make_sar(), clear=make_optical(geobox=shifted))


def test_scene_of_another_item_or_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds item 'X'"):
        align(tmp_path, make_sar(item="X"))
    with pytest.raises(DataError, match="given as the cloudy scene"):
        align(tmp_path, make_sar(), cloudy=make_sar())


def test_scenes_without_a_band_that_shows_structure_are_refused(tmp_path: Path) -> None:
    blue = ("B01", "B02")
    with pytest.raises(MissingError, match=r"pipeline\.ingest\.bands"):
        align(tmp_path, make_sar(), make_optical("C", bands=blue), make_optical(bands=blue))
