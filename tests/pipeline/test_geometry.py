"""Resampling is linear interpolation of power, validity-aware, with the shift inside."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from scipy import ndimage

from sereno.pipeline.geometry import Positions, compose_positions, displace_pixels, measure_pixel, resample_sar, sample_power, to_metres
from sereno.pipeline.shiftfield import N_TERMS, ShiftField, make_shift

MARGIN = 16
TARGET = GeoBox((60, 50), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
SOURCE = TARGET.pad(MARGIN)
ALL_VALID = np.ones(SOURCE.shape, bool)


def draw_power(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).gamma(4, 0.25, (2, *SOURCE.shape)).astype(np.float32)


def test_same_pixels_without_shift_are_a_plain_crop() -> None:
    power = draw_power()
    values, valid = resample_sar(power, ALL_VALID, source=SOURCE, target=TARGET)
    assert np.array_equal(values, power[:, MARGIN:-MARGIN, MARGIN:-MARGIN])
    assert valid.all()


def test_content_found_further_down_and_right_is_brought_back() -> None:
    power = np.zeros((1, *SOURCE.shape), np.float32)
    power[0, MARGIN + 20 + 3, MARGIN + 30 - 2] = 1
    values, _ = resample_sar(power, ALL_VALID, source=SOURCE, target=TARGET, field=make_shift(TARGET.shape, 3, -2))
    assert np.argwhere(values[0] > 0).tolist() == [[20, 30]]


def test_linear_ramp_is_shifted_exactly() -> None:
    rows, cols = np.mgrid[: SOURCE.shape.y, : SOURCE.shape.x].astype(np.float32)
    values, _ = resample_sar(
        (1 + 2 * rows + 3 * cols)[None], ALL_VALID, source=SOURCE, target=TARGET, field=make_shift(TARGET.shape, 2.37, -3.61)
    )
    rows, cols = np.mgrid[: TARGET.shape.y, : TARGET.shape.x] + MARGIN
    assert values[0] == pytest.approx(1 + 2 * (rows + 2.37) + 3 * (cols - 3.61), rel=1e-5)


shifts = st.floats(-20, 20, allow_nan=False).map(lambda value: round(value, 3))


@settings(max_examples=25, deadline=None)
@given(shift=st.tuples(shifts, shifts), offset=st.tuples(st.integers(-30, 30), st.integers(-30, 30)))
def test_resampling_equals_bilinear_interpolation_by_scipy(shift: tuple[float, float], offset: tuple[int, int]) -> None:
    power, holes = draw_power(), np.random.default_rng(1).random(SOURCE.shape) > 0.03
    source = GeoBox(SOURCE.shape, TARGET.transform * Affine.translation(-offset[1], -offset[0]), TARGET.crs)
    values, valid = resample_sar(power, holes, source=source, target=TARGET, field=make_shift(TARGET.shape, *shift))
    rows, cols = np.mgrid[: TARGET.shape.y, : TARGET.shape.x].astype(float)
    places = np.stack([rows + offset[0] + shift[0], cols + offset[1] + shift[1]])
    expected = [ndimage.map_coordinates(band.astype(float), places, order=1, mode="grid-constant") for band in power]
    weight = ndimage.map_coordinates(holes.astype(float), places, order=1, mode="grid-constant")
    assert valid[weight > 0.9995].all()
    assert not valid[weight < 0.9985].any()
    assert np.where(valid, values, 0) == pytest.approx(np.where(valid, expected, 0), abs=0.01)
    assert values[:, weight > 0.9999] == pytest.approx(np.array(expected)[:, weight > 0.9999], abs=2e-3)


def test_power_and_not_decibel_is_averaged() -> None:
    power = np.ones((1, *SOURCE.shape), np.float32)
    power[:, :, ::2] = 0.01
    values, _ = resample_sar(power, ALL_VALID, source=SOURCE, target=TARGET, field=make_shift(TARGET.shape, 0, 0.5))
    assert 10 * np.log10(values) == pytest.approx(10 * np.log10(0.505), abs=1e-4)
    assert abs(10 * np.log10(0.505) - (-10)) > 7  # the mean of 0 dB and -20 dB would be -10 dB


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 1e30, 0.0])
def test_invalid_neighbours_do_not_bleed(rubbish: float) -> None:
    power, valid = np.ones((1, *SOURCE.shape), np.float32), ALL_VALID.copy()
    valid[30:40, 20:30] = False
    power[:, ~valid] = rubbish
    values, usable = resample_sar(power, valid, source=SOURCE, target=TARGET, field=make_shift(TARGET.shape, 0.4, 0.6))
    assert values[0, usable] == pytest.approx(1, abs=1e-5)
    assert (values[0, ~usable] == 0).all()
    assert (~usable).sum() == 11 * 11  # ten invalid pixels touch eleven interpolated ones along each side


def test_beyond_the_edge_of_sar_nothing_is_valid() -> None:
    values, valid = resample_sar(
        draw_power()[:, 16:-16, 16:-16], ALL_VALID[16:-16, 16:-16], source=TARGET, target=TARGET, field=make_shift(TARGET.shape, 1.5, 0)
    )
    assert valid[:58].all()
    assert not valid[58:].any()
    assert (values[:, ~valid] == 0).all()


def test_finer_sar_is_averaged_over_the_coarser_pixel() -> None:
    source = GeoBox((240, 200), TARGET.transform * Affine.scale(0.25), TARGET.crs)
    speckle = np.random.default_rng(2).gamma(1, 1, (1, 240, 200)).astype(np.float32)
    values, valid = resample_sar(speckle, np.ones(source.shape, bool), source=source, target=TARGET)
    assert values[0, valid].mean() == pytest.approx(1, abs=0.05)
    assert values[0, valid].std() < 0.35  # single samples would scatter by 1


def test_neighbouring_utm_zone_lands_within_a_hundredth_of_a_pixel() -> None:
    target = GeoBox((60, 50), Affine(10, 0, 700_000, 0, -10, 5_000_000), "EPSG:32632")
    (east,), (north,) = transform("EPSG:32632", "EPSG:32633", *[[place] for place in target.transform * (30.5, 20.5)])
    source = GeoBox((160, 160), Affine(10, 0, east - 804, 0, -10, north + 797), "EPSG:32633")
    rows, cols = np.mgrid[:160, :160].astype(np.float32)
    values, valid = resample_sar(np.stack([rows, cols]), np.ones((160, 160), bool), source=source, target=target)
    assert valid.all()
    assert values[:, 20, 30] == pytest.approx([79.7 - 0.5, 80.4 - 0.5], abs=0.01)


def test_rows_run_south_and_columns_east_in_metres() -> None:
    assert to_metres((2, -3), TARGET) == (-30, -20)


def make_field(degree: Any, target: GeoBox = TARGET) -> ShiftField:
    start, rng = make_shift(target.shape), np.random.default_rng(3)
    dy, dx = (tuple(float(value) for value in rng.uniform(-2.5, 2.5, N_TERMS[degree])) for _ in range(2))
    return ShiftField(degree, dy, dx, start.centre, start.scale_px)


@pytest.mark.parametrize("degree", ["affine", "quadratic"])
def test_a_field_that_changes_over_the_scene_is_taken_out_exactly_in_one_interpolation(degree: Any) -> None:
    field = make_field(degree)
    rows, cols = np.mgrid[: SOURCE.shape.y, : SOURCE.shape.x].astype(np.float32)
    values, valid = resample_sar(np.stack([rows, cols]), ALL_VALID, source=SOURCE, target=TARGET, field=field)
    expected = (
        np.mgrid[: TARGET.shape.y, : TARGET.shape.x] + MARGIN + np.stack(field.evaluate(*np.mgrid[: TARGET.shape.y, : TARGET.shape.x]))
    )
    assert valid.all()
    assert values == pytest.approx(expected, abs=1e-3)


def test_a_field_is_composed_with_the_way_into_another_zone() -> None:
    target = GeoBox((60, 50), Affine(10, 0, 700_000, 0, -10, 5_000_000), "EPSG:32632")
    (east,), (north,) = transform("EPSG:32632", "EPSG:32633", [700_250.0], [4_999_700.0])
    source = GeoBox((160, 160), Affine(10, 0, east - 800, 0, -10, north + 800), "EPSG:32633")
    field = make_field("quadratic", target)
    rows, cols = np.mgrid[:160, :160].astype(np.float32)
    values, valid = resample_sar(np.stack([rows, cols]), np.ones((160, 160), bool), source=source, target=target, field=field)
    assert valid.all()
    for row, col in ((0, 0), (20, 30), (59, 49)):
        dy, dx = (float(shift) for shift in field.evaluate(row, col))
        (x,), (y,) = transform("EPSG:32632", "EPSG:32633", *[[place] for place in target.transform * (col + dx + 0.5, row + dy + 0.5)])
        expected_col, expected_row = ~source.transform * (x, y)
        assert values[:, row, col] == pytest.approx([expected_row - 0.5, expected_col - 0.5], abs=0.002)


def test_a_field_is_composed_with_any_geocoding_that_gives_positions() -> None:
    # An image without grid: its rows run with twice the columns of the ground, as tie points or an RPC might say.
    rows, cols = np.mgrid[: TARGET.shape.y, : TARGET.shape.x].astype(float)
    known, field = Positions(2 * cols + 20, 0.5 * rows + 0.01 * cols + 15), make_field("affine")
    image = np.stack(np.mgrid[:160, :80]).astype(np.float32)
    values, valid = sample_power(image, np.ones((160, 80), bool), compose_positions(known, displace_pixels(TARGET.shape, field)))
    dy, dx = field.evaluate(rows, cols)
    assert valid.all()
    assert values[0] == pytest.approx(2 * (cols + dx) + 20, abs=1e-3)
    assert values[1] == pytest.approx(0.5 * (rows + dy) + 0.01 * (cols + dx) + 15, abs=1e-3)


def test_strips_of_a_tall_scene_join_without_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    power, field = draw_power(), make_field("quadratic")
    whole = resample_sar(power, ALL_VALID, source=SOURCE, target=TARGET, field=field)
    monkeypatch.setattr("sereno.pipeline.geometry.STRIP_ROWS", 7)
    cut = resample_sar(power, ALL_VALID, source=SOURCE, target=TARGET, field=field)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(whole, cut, strict=True))


def test_positions_known_at_every_few_pixels_are_linear_between_and_beyond_and_nan_does_not_spread_from_where_it_counts_nothing() -> None:
    rows, cols = np.meshgrid(np.arange(-16.0, 81, 16), np.arange(-16.0, 65, 16), indexing="ij")
    known = Positions(3 * rows + cols, 0.5 * cols)
    known.cols[3, 3] = np.nan  # at row 32, column 32
    places = Positions(np.array([[31.0, 0, -30, 16, 100]]), np.array([[31.0, 5, 90, 32, 0]]))
    found = compose_positions(known, places, step_px=16, first_px=-16)
    np.testing.assert_allclose(found.rows, 3 * places.rows + places.cols)
    np.testing.assert_allclose(found.cols, [[np.nan, 2.5, 45, 16, 0]])


def test_where_a_position_is_not_known_nothing_is_valid() -> None:
    rows, cols = np.mgrid[:4, :5].astype(float)
    rows[2, 3] = np.nan
    values, valid = sample_power(np.ones((1, 9, 9), np.float32), np.ones((9, 9), bool), Positions(rows, cols))
    assert np.argwhere(~valid).tolist() == [[2, 3]]
    assert values[0, 2, 3] == 0


@pytest.mark.parametrize(("width_m", "height_m", "pixel_m"), [(8, 8, 8.0), (0.7, 0.7, 0.7), (4, 9, 6.0)])
def test_a_pixel_is_as_wide_as_the_square_of_its_area(width_m: float, height_m: float, pixel_m: float) -> None:
    assert measure_pixel(GeoBox((2, 3), Affine(width_m, 0, 5, 0, -height_m, 7), "EPSG:32632")) == pixel_m
