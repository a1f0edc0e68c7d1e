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

from sereno.pipeline.align import align_job, align_pair, find_cloud, is_field_wanted
from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.pairs import GridRecord, Lock, Pair, SceneRecord
from sereno.pipeline.scene import geobox_of, to_scene
from sereno.pipeline.shiftfield import ShiftField
from sereno.pipeline.store import open_dataset, read_manifest, save_dataset, verify_store

SIZE, MARGIN, SHIFT = 256, 16, (3, -2)
GRID = GeoBox((SIZE, SIZE), Affine(10, 0, 498_400, 0, -10, 5_006_400), "EPSG:32632")
BANDS = ("B02", "B03", "B04", "B08")
GAOFEN_BANDS = ("B1", "B2", "B3", "B4")
PAIR = Pair(id="p1", sar="s", cloudy="c", clear="t", sar_gap_days=0.5, clear_gap_days=-5)
SERIES = Pair.model_validate(PAIR.model_dump() | {"before": "b", "after": "a", "before_gap_days": -15, "after_gap_days": 10})
Array = npt.NDArray[Any]


def find_parcels(seed: int) -> Array:
    """Which parcel each pixel of the grid with twice its margin lies in."""
    corners = np.random.default_rng(seed).uniform(0, SIZE + 4 * MARGIN, (200, 2))
    places = np.stack(np.mgrid[: SIZE + 4 * MARGIN, : SIZE + 4 * MARGIN], axis=-1)
    parcels: Array = cKDTree(corners).query(places)[1]
    return parcels


def make_optical(item: str = "T", bands: tuple[str, ...] = BANDS, **changes: Any) -> xr.Dataset:
    """Content of the ground moved by `shift`; `scl` None leaves classes out."""
    rows, cols = (slice(2 * MARGIN - step, 2 * MARGIN - step + SIZE) for step in changes.pop("shift", (0, 0)))
    inner = find_parcels(changes.pop("seed", 1))[rows, cols]
    stored = np.random.default_rng(2).integers(300, 3500, (len(bands), 200)).astype(np.uint16)[:, inner]
    valid = np.ones(stored.shape[1:], bool)
    valid[:5] = False
    provenance = {"item": item, "sensor": changes.pop("sensor", "sentinel2-l2a"), "refused": changes.pop("refused", None)}
    scl = changes.pop("scl", np.full(valid.shape, 4, np.uint8))
    return to_scene(stored, valid, bands=bands, geobox=changes.pop("geobox", GRID), provenance=provenance, scl=scl)


def make_sar(shift: tuple[int, int] = (0, 0), seed: int = 1, item: str = "S", sensor: str = "sentinel1-rtc") -> xr.Dataset:
    """Content of the ground moved by `shift`, on the grid with its margin, in nearly noise-free centi-dB."""
    rows, cols = (slice(MARGIN - step, MARGIN - step + SIZE + 2 * MARGIN) for step in shift)
    levels = np.random.default_rng(3).integers(-2000, -500, (2, 200))
    stored = levels[:, find_parcels(seed)[rows, cols]] + np.random.default_rng(4).integers(-5, 6, (2, SIZE + 2 * MARGIN, SIZE + 2 * MARGIN))
    valid = np.ones(stored.shape[1:], bool)
    provenance = {"item": item, "sensor": sensor}
    return to_scene(stored.astype(np.int16), valid, bands=("VV", "VH"), geobox=GRID.pad(MARGIN), provenance=provenance)


def write_lock(folder: Path, outline: dict[str, Any] | None = None, pair: Pair = PAIR) -> Path:
    def record(name: str, sensor: str) -> SceneRecord:
        shared = {"sensor": sensor, "time": "2021-06-03T10:20:00Z"}
        item = shared | {"item": name.upper(), "collection": "c", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46), "assets": {}}
        return SceneRecord.model_validate(shared | {"id": name, "items": [item]})

    scenes = {"s": record("s", "sentinel1-rtc")} | {name: record(name, "sentinel2-l2a") for name in "ctba"}
    lock = Lock(area="west", catalogue=".", grid=GridRecord.from_geobox(GRID), scenes=scenes, pairs=(pair,), refused=(), outline=outline)
    path = folder / "lock.json"
    path.write_text(lock.to_json())
    return path


def align(folder: Path, sar: xr.Dataset, cloudy: xr.Dataset | None = None, clear: xr.Dataset | None = None, **lock: Any) -> Path:
    settings = lock.pop("settings", AlignSettings())
    scenes = {"s": sar, "c": make_optical("C") if cloudy is None else cloudy, "t": make_optical() if clear is None else clear}
    for name, scene in scenes.items():
        save_dataset(scene, folder / f"{name}.json", kind="scene", summary={})
    manifests = (folder / "s.json", folder / "c.json", folder / "t.json")
    align_pair((write_lock(folder, **lock), "p1"), manifests, folder / "pair.json", settings)
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


def make_gaofen(item: str = "T", **changes: Any) -> xr.Dataset:
    return make_optical(item, GAOFEN_BANDS, sensor="gaofen-pms", scl=None, **changes)


def test_the_cloudy_image_of_gaofen_is_brought_onto_the_clear_one_in_one_interpolation(tmp_path: Path) -> None:
    pair = open_dataset(align(tmp_path, make_sar(SHIFT, sensor="gaofen3"), make_gaofen("C", shift=(-4, 5)), make_gaofen()), kind="pair")
    found = pair.attrs["provenance"]
    assert (found["registration_cloudy"]["verdict"], found["refused"]) == ("applied", None)
    assert (found["registration_cloudy"]["dy_px"], found["registration_cloudy"]["dx_px"]) == pytest.approx((-4, 5), abs=0.05)
    assert found["registration_cloudy"]["shift_m"] == pytest.approx((50, 40), abs=0.5)
    assert set(found["registration_cloudy"]) == set(found["registration"])
    assert (found["registration"]["dy_px"], found["registration"]["dx_px"]) == pytest.approx(SHIFT, abs=0.15)
    inside = np.s_[:, 10:-10, 10:-10]
    differences = np.abs(pair["cloudy"].values[inside].astype(float) - pair["clear"].values[inside])
    assert np.median(differences) < 30  # of 300 to 3500: a twentieth of a pixel of blur at the borders
    assert not pair["valid_cloudy"].values[:4].any()
    assert not pair["valid_cloudy"].values[:, -4:].any()


def test_images_of_the_sentinels_are_not_registered_to_the_clear_one(tmp_path: Path) -> None:
    moved = make_optical("C", shift=(-4, 5))
    pair = open_dataset(align(tmp_path, make_sar(), moved), kind="pair")
    assert pair.attrs["provenance"]["registration_cloudy"] is None
    assert np.array_equal(pair["cloudy"].values, moved["data"].values)


@pytest.mark.parametrize("asked", [None, True])
def test_an_input_that_is_made_of_the_target_is_never_registered_to_it(asked: bool | None) -> None:
    settings, simulated = AlignSettings(register_cloudy=asked), PAIR.model_copy(update={"sky": 1, "cloudy": "t"})
    assert is_field_wanted(make_gaofen(), "cloudy", PAIR, settings)
    assert not is_field_wanted(make_gaofen(), "cloudy", simulated, settings)


def test_registering_can_be_asked_for_and_classes_move_with_the_image(tmp_path: Path) -> None:
    classes = np.add.outer(np.arange(SIZE) % 4, np.zeros(SIZE)).astype(np.uint8) + np.uint8(4)
    cloudy = make_optical("C", shift=(-4, 5), scl=classes)
    pair = open_dataset(align(tmp_path, make_sar(), cloudy, settings=AlignSettings(register_cloudy=True)), kind="pair")
    assert pair.attrs["provenance"]["registration_cloudy"]["verdict"] == "applied"
    assert np.array_equal(pair["scl_cloudy"].values[10:-10, 10:-10], classes[6:-14, 10:-10])
    assert not pair["scl_cloudy"].values[:4].any()


def test_a_cloudy_sentinel_image_whose_registration_is_refused_stays_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloudy = make_optical("C", seed=9)
    manifest = align(tmp_path, make_sar(), cloudy, settings=AlignSettings(register_cloudy=True))
    assert np.array_equal(open_dataset(manifest)["cloudy"].values, cloudy["data"].values)
    summary = read_manifest(manifest)["summary"]
    assert (summary["registration_cloudy"]["verdict"], summary["refused"]) == ("refused", None)
    assert "the cloudy image stays where its geocoding puts it" in caplog.text


@pytest.mark.parametrize("lost", ["sar", "cloudy"])
def test_a_pair_of_gaofen_is_given_up_where_one_image_is_not_found_on_the_other(tmp_path: Path, lost: str) -> None:
    sar, cloudy = make_sar(sensor="gaofen3", seed=9 if lost == "sar" else 1), make_gaofen("C", seed=9 if lost == "cloudy" else 1)
    manifest = align(tmp_path, sar, cloudy, make_gaofen())
    pair, summary = open_dataset(manifest), read_manifest(manifest)["summary"]
    registration = summary["registration" if lost == "sar" else "registration_cloudy"]
    assert registration["verdict"] == "refused"
    assert registration["reason"] in summary["refused"]
    assert ("SAR: " if lost == "sar" else "the cloudy scene: ") in summary["refused"]
    assert not any(pair[f"valid_{role}"].values.any() for role in ("sar", "cloudy", "clear"))


def test_sar_of_sentinel_1_over_gaofen_is_given_up_too_for_then_the_ground_is_misplaced(tmp_path: Path) -> None:
    summary = read_manifest(align(tmp_path, make_sar(seed=9), make_gaofen("C"), make_gaofen()))["summary"]
    assert summary["refused"].endswith(f"SAR: {summary['registration']['reason']}")


def test_sar_of_sentinel_1_over_gaofen_is_given_up_too_where_the_cloudy_image_is_not_found(tmp_path: Path) -> None:
    summary = read_manifest(align(tmp_path, make_sar(), make_gaofen("C", seed=9), make_gaofen()))["summary"]
    assert summary["registration"]["verdict"] == "applied"
    assert summary["refused"].endswith(f"the cloudy scene: {summary['registration_cloudy']['reason']}")


def test_who_asks_for_no_field_of_the_cloudy_image_loses_no_pair_for_want_of_it(tmp_path: Path) -> None:
    scenes = make_sar(sensor="gaofen3"), make_gaofen("C", seed=9), make_gaofen()
    summary = read_manifest(align(tmp_path, *scenes, settings=AlignSettings(register_cloudy=False)))["summary"]
    assert (summary["registration_cloudy"], summary["refused"]) == (None, None)


def test_bodies_of_cloud_are_told_by_classes_else_by_haze_else_not_at_all() -> None:
    scl = np.full(GRID.shape, 4, np.uint8)
    scl[:40], scl[40:60], scl[150:158, 150:158] = 9, 3, 8
    assert np.array_equal(find_cloud(make_optical(scl=scl)), np.add.outer(np.arange(SIZE) < 40, np.zeros(SIZE)) > 0)
    hazy = make_gaofen()
    hazy["data"][:] = np.array([600, 800, 1000, 3000], np.uint16)[:, None, None]
    hazy["data"][:, 40:100, 40:100] = 6000
    assert find_cloud(hazy).sum() == pytest.approx(60 * 60, rel=0.05)
    assert not find_cloud(hazy.sel(band=["B3", "B4"])).any()


def test_clouds_are_let_in_where_they_would_leave_too_little_ground(tmp_path: Path) -> None:
    scl = np.full(GRID.shape, 9, np.uint8)  # all cloud, say the classes, though the ground is seen
    clear = make_optical()
    pair = align(tmp_path, make_sar(), make_optical("C", shift=(-4, 5), scl=scl), clear, settings=AlignSettings(register_cloudy=True))
    found = read_manifest(pair)["summary"]["registration_cloudy"]
    assert (found["verdict"], found["reason"][:15]) == ("applied", "clouds let in: ")
    assert (found["dy_px"], found["dx_px"]) == pytest.approx((-4, 5), abs=0.05)


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


def test_a_search_too_narrow_for_the_pixels_is_refused_with_the_least_that_works(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.align\.search_m is 20, 2\.0 pixels of 10 m, .*: set it to 50 or more"):
        align(tmp_path, make_sar(), settings=AlignSettings(search_m=20))
    assert not (tmp_path / "pair.json").exists()
    least = read_manifest(align(tmp_path, make_sar(), settings=AlignSettings(search_m=50)))["summary"]
    assert least["registration"]["verdict"] == "applied"


def align_series(folder: Path, settings: AlignSettings | None = None, **scenes: xr.Dataset) -> Path:
    """A pair with dates around it; scenes by role, those that are not given lie on the ground with values of their own."""
    made = {
        "sar": make_sar(),
        "cloudy": make_optical("C"),
        "clear": make_optical(),
        "before": make_optical("B"),
        "after": make_optical("A"),
    }
    folder.mkdir(exist_ok=True)
    for role, scene in (made | scenes).items():
        save_dataset(scene, folder / f"{role}.json", kind="scene", summary={})
    manifests = [folder / f"{role}.json" for role in SERIES.roles]
    align_job((write_lock(folder, pair=SERIES), "p1"), manifests, folder / "pair.json", settings or AlignSettings())
    return folder / "pair.json"


def test_dates_around_a_pair_pass_unchanged_beside_what_the_pair_is_without_them(tmp_path: Path) -> None:
    before, after = make_optical("B", seed=1, scl=np.full(GRID.shape, 5, np.uint8)), make_optical("A")
    after["data"][:, 5:] += np.uint16(7)
    manifest = align_series(tmp_path / "series", before=before, after=after)
    series, plain = open_dataset(manifest), open_dataset(align(tmp_path, make_sar()))
    for name in plain.data_vars:
        np.testing.assert_array_equal(series[name].values, plain[name].values)
    for role, scene in (("before", before), ("after", after)):
        assert np.array_equal(series[role].values, scene["data"].values)
        assert np.array_equal(series[f"valid_{role}"].values, scene["valid"].values)
        assert np.array_equal(series[f"scl_{role}"].values, scene["scl"].values)
    facts, summary = series.attrs["provenance"], read_manifest(manifest)["summary"]
    assert [facts[role]["item"] for role in SERIES.roles] == ["S", "C", "T", "B", "A"]
    assert (facts["registration_before"], facts["registration_after"]) == (None, None)
    assert set(summary["valid_share"]) == {"sar", "cloudy", "clear", "before", "after"}
    assert not {"before", "after", "registration_before"} & set(plain.attrs["provenance"])


def test_dates_around_a_pair_are_registered_to_its_target_where_the_cloudy_image_is(tmp_path: Path) -> None:
    shifts = {"cloudy": (-4, 5), "before": (3, 2), "after": (0, -6)}
    items = {"cloudy": "C", "before": "B", "after": "A"}
    moved = {role: make_optical(items[role], shift=shift) for role, shift in shifts.items()}
    pair = open_dataset(align_series(tmp_path, AlignSettings(register_cloudy=True), **moved))
    for role, shift in shifts.items():
        found = pair.attrs["provenance"][f"registration_{role}"]
        assert (found["verdict"], found["dy_px"], found["dx_px"]) == ("applied", *(pytest.approx(step, abs=0.05) for step in shift))
        inside = np.s_[:, 10:-10, 10:-10]
        assert np.median(np.abs(pair[role].values[inside].astype(float) - pair["clear"].values[inside])) < 30


def test_a_pair_with_a_refused_scene_around_it_is_not_used_and_says_why(tmp_path: Path) -> None:
    lost = make_optical("A", refused="2.0% of the ground is valid").drop_vars("scl")
    lost["valid"][:] = False
    manifest = align_series(tmp_path, after=lost)
    pair = open_dataset(manifest)
    assert read_manifest(manifest)["summary"]["refused"] == "the after scene: 2.0% of the ground is valid"
    assert not any(pair[f"valid_{role}"].values.any() for role in SERIES.roles)
    assert not pair["scl_after"].values.any()


def test_a_date_of_gaofen_that_is_not_found_on_the_target_gives_the_pair_up(tmp_path: Path) -> None:
    scenes = {"cloudy": make_gaofen("C"), "clear": make_gaofen(), "before": make_gaofen("B", seed=9), "after": make_gaofen("A")}
    summary = read_manifest(align_series(tmp_path, sar=make_sar(sensor="gaofen3"), **scenes))["summary"]
    assert summary["refused"].endswith(f"the before scene: {summary['registration_before']['reason']}")
    assert summary["registration_after"]["verdict"] == "applied"


def test_dates_of_another_product_or_other_bands_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="before is of product 'sen12mscr-s2', clear of 'sentinel2-l2a'"):
        align_series(tmp_path, before=make_optical("B", sensor="sen12mscr-s2"))
    with pytest.raises(DataError, match="after has bands"):
        align_series(tmp_path, after=make_optical("A", bands=BANDS[:3]))
    with pytest.raises(DataError, match="holds item 'X', but the after scene of p1 is 'A'"):
        align_series(tmp_path, after=make_optical("X"))


def test_a_series_wants_five_scenes_and_a_pair_three(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="p1 has the scenes s, c, t, b, a, but 3 manifests are given"):
        align_job((write_lock(tmp_path, pair=SERIES), "p1"), [tmp_path / "x.json"] * 3, tmp_path / "pair.json", AlignSettings())
