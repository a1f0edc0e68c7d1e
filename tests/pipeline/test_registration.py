"""The field of shifts of SAR relative to optical is found to a fraction of a pixel, or refused."""

import json
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from real_files import find_samples
from registration_scenes import Ground, draw_clouds, draw_field, measure_error, to_decibel
from scipy import ndimage

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.geometry import Positions, displace_pixels, sample_power
from sereno.pipeline.registration import (
    Layer,
    Registration,
    check_search,
    choose_factor,
    estimate_field,
    refine_field,
    settle_field,
    shrink_layer,
)
from sereno.pipeline.shiftfield import ShiftField, make_shift

SIDE, SMALL = 512, 192
"""Sides of scenes, pixels: one for fields, which a wide search begins on a coarser grid, and one for what is only refused."""
DESCRIPTORS = ("orientations", "self-similarity")
Array = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@cache
def ground(seed: int = 1, side: int = SIDE) -> Ground:
    return Ground(seed, side)


@cache
def optical_of(seed: int = 1, side: int = SIDE) -> Array:
    return ground(seed, side).draw_optical()


@cache
def still_sar(seed: int = 1, side: int = SIDE) -> Array:
    return ground(seed, side).draw_sar()


@cache
def moved_sar(degree: Any, looks: float = 4.0) -> Array:
    return ground().draw_sar(draw_field(degree, SIDE, seed=3), looks=looks)


def estimate(optical: Array, sar: Array, valid: Bool | None = None, **settings: Any) -> Registration:
    usable = np.ones(optical.shape[1:], bool) if valid is None else valid
    whole = np.ones(sar.shape[1:], bool)
    return estimate_field(Layer(optical, usable), Layer(sar, whole, "sar"), AlignSettings(**settings), pixel_m=10.0)


@pytest.mark.parametrize(
    ("descriptor", "degree", "looks", "limit_px"),
    [
        ("self-similarity", "shift", 4, 0.35),
        ("self-similarity", "affine", 4, 0.40),
        ("self-similarity", "quadratic", 4, 0.40),
        ("self-similarity", "affine", 1, 0.50),
        ("orientations", "affine", 4, 0.40),
        ("orientations", "affine", 1, 0.50),
    ],
)
def test_field_is_found_though_contrasts_are_independent(descriptor: str, degree: Any, looks: float, limit_px: float) -> None:
    true, sar = draw_field(degree, SIDE, seed=3), moved_sar(degree, looks)
    found = estimate(optical_of(), sar, descriptor=descriptor, field="quadratic" if degree == "quadratic" else "affine")
    assert (found.verdict, found.status, found.field.degree) == ("applied", "ok", degree)
    assert measure_error(found.field, true, SIDE) <= limit_px
    assert found.sigma_px is not None
    assert found.sigma_px <= 0.25


def test_field_is_found_under_thirty_percent_of_masked_clouds() -> None:
    true, clouds = draw_field("affine", SIDE, seed=3), draw_clouds(SIDE, 0.3, seed=1)
    covered = np.where(clouds, np.random.default_rng(2).normal(0.6, 0.05, clouds.shape), optical_of()).astype(np.float32)
    found = estimate(covered, moved_sar("affine"), ~clouds)
    assert found.verdict == "applied"
    assert measure_error(found.field, true, SIDE) <= 0.6


def test_no_shift_is_found_where_there_is_none() -> None:
    found = estimate(optical_of(), still_sar())
    assert found.verdict == "applied"
    assert found.shift_px == pytest.approx((0, 0), abs=0.1)


def test_content_moved_to_higher_columns_gives_a_positive_column_shift_and_corrected_sar_none() -> None:
    power = np.roll(10 ** (still_sar() / 10), 3, axis=2)
    found = estimate(optical_of(), to_decibel(power))
    assert found.shift_px == pytest.approx((0, 3), abs=0.2)
    corrected, valid = sample_power(power, np.ones(power.shape[1:], bool), displace_pixels(power.shape[1:], found.field))
    again = estimate(optical_of(), np.where(valid, to_decibel(corrected), np.nan))
    assert again.verdict == "applied"
    assert np.hypot(*again.shift_px) <= 0.1


@cache
def nulls() -> dict[str, tuple[Array, Array]]:
    """Twenty pairs of images with nothing in common, or with too little."""
    rng, shape = np.random.default_rng(6), (SMALL, SMALL)
    grounds = [(optical_of(seed, SMALL), still_sar(seed, SMALL)) for seed in (1, 2, 3)]
    flat = np.full((3, *shape), 0.03, np.float32)
    water = flat + rng.normal(0, 0.001, flat.shape).astype(np.float32)
    speckle = to_decibel(rng.gamma(4, 0.25, (2, *shape)).astype(np.float32)) - 15
    cloud = np.repeat(ndimage.gaussian_filter(rng.normal(0, 1, (1, *shape)), (0, 6, 6)), 3, axis=0).astype(np.float32) + 0.6
    found = {"water": (water, speckle), "water under structure": (water, grounds[0][1]), "constant": (flat, np.full_like(speckle, -10))}
    found |= {"cloud": (cloud, grounds[0][1]), "cloud over speckle": (cloud, speckle)}
    for number, (optical, sar) in enumerate(grounds):
        found |= {f"mirrored {number}": (optical, sar[:, :, ::-1]), f"upside down {number}": (optical, sar[:, ::-1])}
        found |= {f"turned {number}": (optical, np.rot90(sar, axes=(1, 2))), f"other ground {number}": (optical, grounds[number - 1][1])}
        found |= {f"far away {number}": (optical, np.roll(sar, (97, 61), axis=(1, 2)))}
    return found


def test_none_of_twenty_pairs_with_nothing_in_common_is_accepted() -> None:
    assert len(nulls()) == 20
    for name, (optical, sar) in nulls().items():
        found = estimate(optical, np.ascontiguousarray(sar), field="quadratic")
        assert (found.verdict, found.field.is_zero, bool(found.reason)) == ("refused", True, True), (name, found.reason)
        assert found.status != "ok"


def test_the_least_search_is_the_narrowest_that_finds_equal_ground() -> None:
    fixed = Layer(optical_of(side=SMALL), np.ones((SMALL, SMALL), bool))
    for search_m, verdict in ((40.0, "refused"), (50.0, "applied")):
        assert estimate_field(fixed, fixed, AlignSettings(search_m=search_m), pixel_m=10.0).verdict == verdict
    check_search(AlignSettings(search_m=50.0), pixel_m=10.0)
    with pytest.raises(ConfigError, match="set it to 50 or more"):
        check_search(AlignSettings(search_m=49.0), pixel_m=10.0)


@pytest.mark.parametrize("shift", [(14.0, 0.0), (0.0, -9.5), (30.0, 30.0)])
def test_a_shift_beyond_the_search_or_at_its_end_is_refused(shift: tuple[float, float]) -> None:
    sar = ground(side=SMALL).draw_sar(make_shift((SMALL, SMALL), *shift))
    assert estimate(optical_of(side=SMALL), sar).verdict == "refused"


def test_a_match_at_the_end_of_the_search_is_named_as_such() -> None:
    found = estimate(optical_of(), np.roll(still_sar(), 11, axis=1))
    assert (found.status, "search_m" in found.reason) == ("out_of_range", True)


def test_a_wide_search_goes_from_coarse_to_fine_and_is_as_exact() -> None:
    true = ShiftField("affine", (24.0, 1.5, -1.0), (-17.0, 0.5, 1.0), *_origin(SIDE))
    sar = ground().draw_sar(true)
    found = estimate(optical_of(), sar, search_m=400.0)
    assert (found.verdict, found.coarse_factor) == ("applied", 2)
    assert measure_error(found.field, true, SIDE) <= 0.15
    refused = estimate(optical_of(), np.ascontiguousarray(sar[:, ::-1]), search_m=400.0)
    assert (refused.verdict, refused.reason.startswith("on pixels of 20 m: ")) == ("refused", True)


def test_a_wide_search_between_many_clouds_begins_where_enough_ground_is_left() -> None:
    true = ShiftField("shift", (14.0,), (-9.0,), *_origin(SIDE))
    clouds = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(SIDE, SIDE)), 14) > 0.003
    found = estimate(optical_of(), np.roll(still_sar(), (14, -9), axis=(1, 2)), ~clouds, search_m=300.0)
    assert 0.3 < clouds.mean() < 0.6
    assert (found.verdict, found.coarse_factor) == ("applied", 1)
    assert measure_error(found.field, true, SIDE) <= 0.3


def _origin(side: int) -> tuple[tuple[float, float], float]:
    start = make_shift((side, side))
    return start.centre, start.scale_px


def test_the_search_begins_on_a_grid_as_coarse_as_it_is_wide_and_the_scene_is_large() -> None:
    assert [choose_factor(search, (1024, 2000)) for search in (5, 12, 13, 40, 400)] == [1, 1, 2, 4, 4]
    assert choose_factor(40, (200, 200)) == 1


def test_a_coarse_field_is_the_same_field_on_the_finer_grid() -> None:
    coarse = ShiftField("affine", (1.0, 0.5, 0.0), (-2.0, 0.0, 0.25), *_origin(100))
    fine = refine_field(coarse, 4)
    # The centre of coarse pixel 30 lies between fine pixels 121 and 122.
    there, here = coarse.evaluate(30, 60), fine.evaluate(30 * 4 + 1.5, 60 * 4 + 1.5)
    assert np.array(here) == pytest.approx(4 * np.array(there))


def test_coarser_pixels_are_means_of_power_and_know_what_is_missing() -> None:
    decibel = np.zeros((1, 8, 8), np.float32)
    decibel[:, :, ::2] = -20
    valid = np.ones((8, 8), bool)
    valid[:4, :2], valid[4:, 4:6] = False, False
    valid[4, 4] = True
    sar = shrink_layer(Layer(decibel, valid, "sar"), 4)
    assert sar.values[0, 0, 1] == pytest.approx(10 * np.log10(0.505), abs=1e-4)
    assert sar.valid.tolist() == [[False, True], [True, False]]
    optical = shrink_layer(Layer(np.where(valid, 0.2, 50.0)[None].astype(np.float32), valid), 2)
    assert optical.values[0][optical.valid] == pytest.approx(0.2)


def test_small_scene_is_measured_with_smaller_windows_that_overlap() -> None:
    corner = np.s_[:, :256, :256]
    found = estimate(optical_of()[corner], moved_sar("shift")[corner])
    assert (found.verdict, found.n_windows, found.field.degree) == ("applied", 49, "shift")
    assert np.hypot(*np.subtract(found.shift_px, draw_field("shift", SIDE, seed=3).evaluate(0, 0))) <= 0.15


def test_all_cloud_and_a_tiny_scene_leave_everything_where_it_is_without_an_exception() -> None:
    optical, sar = optical_of(), still_sar()
    tried = [
        estimate(optical, sar, np.zeros(optical.shape[1:], bool)),
        estimate(optical[:, :40, :40], sar[:, :40, :40]),
        estimate(np.full_like(optical, np.nan), sar),
        estimate(optical, np.full_like(sar, -np.inf)),
    ]
    for found in tried:
        assert (found.verdict, found.status, found.field.is_zero, found.n_windows) == ("refused", "no_ground", True, 0)


def test_nan_infinite_and_zero_pixels_are_left_out_and_move_nothing() -> None:
    holed, sar = optical_of().copy(), moved_sar("shift").copy()
    sar[:, :40] = -np.inf
    sar[0, 100:140, 200:230] = np.nan
    holed[1, 300:330, 50:90] = np.nan
    holed[:, :, -20:] = 0
    found = estimate(holed, sar)
    assert found.verdict == "applied"
    assert found.shift_px == pytest.approx(estimate(optical_of(), moved_sar("shift")).shift_px, abs=0.1)


def test_values_of_invalid_pixels_do_not_matter() -> None:
    valid = np.ones((SIDE, SIDE), bool)
    valid[50:150, 80:200] = False
    garbage = np.where(valid, optical_of(), np.random.default_rng(4).uniform(0, 50, valid.shape)).astype(np.float32)
    assert estimate(garbage, still_sar(), valid) == estimate(optical_of(), still_sar(), valid)


def test_equal_input_gives_equal_output_and_the_record_is_plain_json() -> None:
    first, second = (estimate(optical_of(), moved_sar("affine")) for _ in range(2))
    assert first == second
    assert first.field.degree == "affine"
    record = json.loads(json.dumps(first.to_record()))
    assert (record["dy_px"], record["dx_px"]) == pytest.approx(first.shift_px, abs=1e-4)
    assert measure_error(ShiftField.from_record(record["field"]), first.field, SIDE) < 1e-4
    assert len(record["windows"]) == first.n_good
    assert sum(window["inlier"] for window in record["windows"]) == first.n_inlier
    assert set(record["windows"][0]) == {"row", "col", "dy", "dx", "peak", "residual_px", "inlier"}
    assert record["mean_shift_px"] <= record["max_shift_px"] < 10


def test_a_lucky_affine_is_not_taken_where_a_shift_explains_as_much() -> None:
    found = estimate(optical_of(), np.roll(still_sar(), 2, axis=1), field="quadratic")
    assert (found.verdict, found.field.degree) == ("applied", "shift")


@pytest.mark.parametrize(
    ("setting", "limit", "status", "words"),
    [
        ("min_peak", 0.9, "low_texture", "median correlation"),
        ("max_rms_px", 0.01, "inconsistent", "windows scatter"),
        ("max_sigma_px", 0.001, "inconsistent", "uncertainty"),
        ("search_m", 40.0, "out_of_range", "search"),
    ],
)
def test_each_gate_can_refuse_and_says_so(setting: str, limit: float, status: str, words: str) -> None:
    found = estimate(optical_of(), moved_sar("affine"), **{setting: limit})
    assert (found.verdict, found.status) == ("refused", status), found.reason
    assert words in found.reason


def estimate_dates(clear: Array, cloudy: Array, cloud: Bool | None = None, **settings: Any) -> Registration:
    usable = np.ones(clear.shape[1:], bool)
    layers = Layer(clear[1:], usable), Layer(cloudy[1:], usable if cloud is None else ~cloud)
    return estimate_field(*layers, AlignSettings(**settings), pixel_m=10.0)


@cache
def date_of(degree: Any = None, season: int = 1) -> Array:
    return ground().draw_date(None if degree is None else draw_field(degree, SIDE, seed=7), season=season)


@pytest.mark.parametrize(("season", "share", "limit_px"), [(1, 0.0, 0.05), (2, 0.0, 0.05), (2, 0.3, 0.15), (2, 0.5, 0.15)])
def test_two_dates_are_laid_onto_each_other_though_fields_changed_and_clouds_hide_much(season: int, share: float, limit_px: float) -> None:
    cloudy = date_of("affine", season)
    clouds = draw_clouds(SIDE, share, seed=2) if share else np.zeros((SIDE, SIDE), bool)
    covered = np.where(clouds, np.random.default_rng(2).normal(0.6, 0.05, clouds.shape), cloudy).astype(np.float32)
    found = estimate_dates(date_of(), covered, clouds)
    assert (found.verdict, found.field.degree) == ("applied", "affine")
    assert measure_error(found.field, draw_field("affine", SIDE, seed=7), SIDE) <= limit_px


def test_clouds_that_no_mask_keeps_out_cost_accuracy_or_the_field_but_give_no_wrong_one() -> None:
    verdicts = []
    for share in (0.3, 0.5, 0.7, 0.9):
        clouds = ndimage.gaussian_filter(draw_clouds(SIDE, share, seed=2).astype(np.float32), 3)
        billows = 0.6 + 0.1 * ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 6, clouds.shape), 4)
        found = estimate_dates(date_of(), (date_of("affine", 2) * (1 - clouds) + clouds * billows).astype(np.float32))
        verdicts.append(found.verdict)
        assert found.verdict == "refused" or measure_error(found.field, draw_field("affine", SIDE, seed=7), SIDE) <= 0.5
    assert (verdicts[0], verdicts[-1]) == ("applied", "refused")


def test_none_of_twenty_pairs_of_dates_with_nothing_in_common_is_accepted_however_wide_the_search() -> None:
    clear, cloudy = (date_of(season=season)[:, :SMALL, :SMALL] for season in (1, 2))
    others = [np.rot90(cloudy, quarter, axes=(1, 2)) for quarter in (1, 2, 3)] + [cloudy[:, ::-1], cloudy[:, :, ::-1]]
    others += [np.roll(cloudy, far, axis=(1, 2)) for far in ((96, 0), (0, 96), (96, 96), (70, -80))]
    others.append(ground(2, SMALL).draw_date(season=2))
    for number, other in enumerate(others):
        for search_m in (100.0, 300.0):
            found = estimate_dates(clear, np.ascontiguousarray(other), search_m=search_m, field="quadratic")
            assert found.verdict == "refused", (number, search_m, found.reason)


def test_two_dates_farther_apart_than_the_search_are_refused_and_the_reason_says_what_helps() -> None:
    found = estimate_dates(date_of(), np.roll(date_of(season=2), 14, axis=2))
    assert (found.verdict, found.field.is_zero) == ("refused", True)
    assert "widen pipeline.align.search_m" in found.reason
    assert estimate_dates(date_of(), np.roll(date_of(season=2), 14, axis=2), search_m=300.0).shift_px == pytest.approx((0, 14), abs=0.1)


def place_bent(true: tuple[float, float], bend: float) -> Any:
    """Gives SAR that lies `true` pixels off and is bent by hills as long as it does, with a field taken out."""
    power, whole = 10 ** (still_sar() / 10), np.ones((SIDE, SIDE), bool)
    hills = ndimage.gaussian_filter(np.random.default_rng(8).normal(0, 1, (SIDE, SIDE)), 24, mode="wrap")
    hills *= bend / np.abs(hills).max()

    def place(field: ShiftField) -> Layer:
        rows, cols = np.mgrid[:SIDE, :SIDE].astype(float)
        dy, dx = (value - axis for value, axis in zip(true, field.evaluate(rows, cols), strict=True))
        moved, valid = sample_power(power, whole, Positions(rows - dy - hills * np.hypot(dy, dx), cols - dx))
        return Layer(to_decibel(np.where(valid, moved, np.nan)), valid, "sar")

    return place


def test_an_image_of_hills_is_placed_again_until_its_relief_lies_right() -> None:
    fixed, true, settings = Layer(optical_of(), np.ones((SIDE, SIDE), bool)), (19.0, -12.0), AlignSettings(search_m=300.0)
    place = place_bent(true, bend=0.5)
    once = estimate_field(fixed, place(make_shift((SIDE, SIDE))), settings, pixel_m=10.0)
    settled = settle_field(fixed, place, settings, pixel_m=10.0)
    assert (settled.verdict, settled.search_px) == ("applied", 30.0)
    assert measure_error(settled.field, make_shift((SIDE, SIDE), *true), SIDE) <= 0.15
    assert once.verdict == "refused"
    at_windows = [np.subtract((window.dy, window.dx), true) for window in settled.windows if window.inlier]
    assert np.abs(np.median(at_windows, axis=0)).max() <= 0.15


def test_every_placing_goes_on_from_all_that_was_found_before() -> None:
    fixed, true, placed = Layer(optical_of(), np.ones((SIDE, SIDE), bool)), (19.0, -12.0), []
    place = place_bent(true, bend=0.9)

    def count(field: ShiftField) -> Layer:
        placed.append(field)
        return place(field)

    settled = settle_field(fixed, count, AlignSettings(search_m=300.0), pixel_m=10.0)
    assert len(placed) >= 3, "a bend that one more placing takes out tests nothing"
    assert settled.verdict == "applied"
    assert measure_error(settled.field, make_shift((SIDE, SIDE), *true), SIDE) <= 0.15
    errors = [measure_error(field, make_shift((SIDE, SIDE), *true), SIDE) for field in placed]
    assert errors == sorted(errors, reverse=True)


def test_placing_again_believes_no_more_than_measuring_once() -> None:
    fixed = Layer(optical_of(), np.ones((SIDE, SIDE), bool))
    for wrong in (np.s_[:, ::-1], np.s_[:, :, ::-1]):
        sar = np.ascontiguousarray(still_sar()[wrong])

        def place(field: ShiftField, sar: Array = sar) -> Layer:
            values, valid = sample_power(10 ** (sar / 10), np.ones((SIDE, SIDE), bool), displace_pixels((SIDE, SIDE), field))
            return Layer(to_decibel(np.where(valid, values, np.nan)), valid, "sar")

        found = settle_field(fixed, place, AlignSettings(search_m=300.0), pixel_m=10.0)
        assert (found.verdict, found.field.is_zero) == ("refused", True)
    beyond = settle_field(fixed, place_bent((26.0, 0.0), bend=0.0), AlignSettings(search_m=300.0), pixel_m=10.0)
    assert beyond.verdict == "refused", "0.8 of 30 px is 24"


@pytest.mark.real
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_real_dates_of_slovenia_lie_as_far_apart_as_is_known_and_cloudy_ones_are_refused(descriptor: str) -> None:
    dates = np.load(find_samples() / "s2" / "eolearn" / "REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)[:, [1, 2, 3, 7]]
    overcast, veiled, september, august, july = (estimate_dates(dates[2], date, descriptor=descriptor) for date in dates)
    assert (september.verdict, august.verdict, july.verdict) == ("applied",) * 3
    assert september.shift_px == pytest.approx((0, 0), abs=0.01)
    assert july.shift_px == pytest.approx((1.0, 0.45), abs=0.1)
    assert august.shift_px == pytest.approx((0.5, 0.45), abs=0.1)
    assert (overcast.verdict, veiled.verdict) == ("refused", "refused")
    back = estimate_dates(dates[4], dates[2], descriptor=descriptor)
    assert np.add(back.shift_px, july.shift_px) == pytest.approx((0, 0), abs=0.1)


@cache
def triplet() -> tuple[Array, Array]:
    base, name = find_samples() / "sen12mscr" / "glfcr", "ROIs1970_fall_139_p839.tif"
    with rasterio.open(base / "s2_cloudfree" / name) as clear, rasterio.open(base / "s1" / name) as sar:
        return clear.read((3, 4, 8)).astype(np.float32) / 10_000, sar.read().astype(np.float32)


ADDED = [(3.0, 0.0), (0.0, -3.0), (2.5, -1.3), (-1.7, -3.4), (5.2, 4.1), (-5.4, 0.7)]
ADDED += [(float(dy), float(dx)) for dy, dx in np.random.default_rng(0).uniform(-5.5, 5.5, (6, 2)).round(2)]


@pytest.mark.real
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_twelve_shifts_added_to_real_sar_are_recovered(descriptor: str) -> None:
    # Natural peaks are 1 to 2 px broad and the true shift is unknown, so only the difference to no added shift can be judged.
    optical, sar = triplet()
    before = estimate(optical, sar, descriptor=descriptor)
    assert before.verdict == "applied"
    for shift in ADDED:
        moved = np.stack([ndimage.shift(band, shift, order=1, cval=np.nan) for band in 10 ** (sar / 10)])
        after = estimate(optical, to_decibel(moved), descriptor=descriptor)
        assert after.verdict == "applied", (shift, after.reason)
        assert np.subtract(after.shift_px, before.shift_px) == pytest.approx(shift, abs=0.15), shift


@pytest.mark.real
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_real_sar_turned_mirrored_or_with_its_quarters_swapped_is_refused(descriptor: str) -> None:
    optical, sar = triplet()
    others = [np.rot90(sar, quarter, axes=(1, 2)) for quarter in (1, 2, 3)]
    others += [sar[:, ::-1], sar[:, :, ::-1], sar.transpose(0, 2, 1), np.rot90(sar, axes=(1, 2))[:, ::-1]]
    others += [np.roll(sar, far, axis=(1, 2)) for far in ((128, 0), (0, 128), (128, 128), (64, 0), (0, 64))]
    verdicts = [estimate(optical, np.ascontiguousarray(other), descriptor=descriptor).verdict for other in others]
    assert verdicts == ["refused"] * 12
