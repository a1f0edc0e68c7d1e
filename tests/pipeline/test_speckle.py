"""Filters smooth speckle, keep the mean, keep edges better than a box does, and never look at pixels that are not valid."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sereno.pipeline.config import SpeckleSettings
from sereno.pipeline.speckle import describe_filter, reduce_speckle

FILTERS = ("boxcar", "lee", "refined-lee", "gamma-map")
ADAPTIVE = FILTERS[1:]
LOOKS = 4.4
EDGE = 0.05, 0.5
"""Power on the two sides of a step: 10 dB."""


def make_speckle(level: npt.NDArray[Any] | float, shape: tuple[int, int] = (200, 200), seed: int = 0) -> npt.NDArray[np.float64]:
    """`level` times gamma noise of mean 1."""
    return level * np.random.default_rng(seed).gamma(LOOKS, 1 / LOOKS, shape)


def make_step(across: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.where(across < 0, *EDGE)


def count_looks(power: npt.NDArray[Any]) -> float:
    inner = power[10:-10, 10:-10].astype(float)
    return float(inner.mean() ** 2 / inner.var())


def whole(power: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.ones(power.shape[-2:], bool)


@pytest.mark.parametrize("method", FILTERS)
def test_the_mean_of_even_ground_is_kept_and_its_looks_rise(method: str) -> None:
    power = make_speckle(0.1)
    filtered = reduce_speckle(power, whole(power), SpeckleSettings(method=method))
    inner = (slice(10, -10), slice(10, -10))
    assert filtered[inner].mean() == pytest.approx(power[inner].mean(), rel=0.02)
    assert count_looks(power) == pytest.approx(LOOKS, rel=0.05)
    assert count_looks(filtered) > 12 * LOOKS


def test_a_boxcar_multiplies_the_looks_by_its_pixels() -> None:
    power = make_speckle(0.1, (400, 400))
    filtered = reduce_speckle(power, whole(power), SpeckleSettings(method="boxcar", window_px=5))
    assert count_looks(filtered) == pytest.approx(LOOKS * 25, rel=0.1)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_fewer_looks_in_the_settings_mean_more_speckle_to_take_off(method: str) -> None:
    power = make_speckle(0.1)
    left = [count_looks(reduce_speckle(power, whole(power), SpeckleSettings(method=method, looks=looks))) for looks in (2, LOOKS, 50)]
    assert left[0] > left[1] > 5 * left[2] > 5 * LOOKS


@pytest.mark.parametrize("direction", [(0, 1), (1, 0), (1, 1), (1, -1), (-2, 1)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_edges_of_any_direction_are_kept_better_than_by_a_boxcar(method: str, direction: tuple[int, int]) -> None:
    rows, columns = np.indices((160, 160)) - 80
    across = (direction[0] * rows + direction[1] * columns) / np.hypot(*direction)
    truth = make_step(across)
    power, near = make_speckle(truth, truth.shape), np.abs(across) < 3

    def measure_error(name: str) -> float:
        filtered = reduce_speckle(power, whole(power), SpeckleSettings(method=name))
        return float(np.sqrt(np.mean(np.log(filtered / truth)[near] ** 2)))

    assert measure_error(method) < 0.75 * measure_error("boxcar")


def test_the_refined_filter_smooths_beside_an_edge_where_the_plain_one_leaves_speckle() -> None:
    truth = make_step(np.indices((160, 160))[1] - 80)
    power, beside = make_speckle(truth, truth.shape), (slice(10, -10), slice(77, 79))
    left = {name: reduce_speckle(power, whole(power), SpeckleSettings(method=name))[beside] for name in ("lee", "refined-lee")}
    assert left["refined-lee"].std() < 0.7 * left["lee"].std()


@pytest.mark.parametrize("method", FILTERS)
def test_what_lies_under_the_mask_changes_nothing_and_stays_invalid(method: str) -> None:
    power, valid = make_speckle(0.1), whole(np.empty((200, 200)))
    valid[50:90, 60:140] = False
    settings = SpeckleSettings(method=method)
    filled = {value: reduce_speckle(np.where(valid, power, value), valid, settings) for value in (0.0, 1e4, np.nan)}
    for result in filled.values():
        np.testing.assert_array_equal(result, filled[0.0])
        assert (result[~valid] == 0).all()
    ring = np.zeros_like(valid)
    ring[47:93, 57:143] = True
    assert filled[0.0][ring & valid].mean() == pytest.approx(0.1, rel=0.1)  # a window sum over zeros would give about half


@pytest.mark.parametrize("method", FILTERS)
def test_a_lone_valid_pixel_keeps_its_value(method: str) -> None:
    power, valid = make_speckle(0.1, (31, 31)), np.zeros((31, 31), bool)
    valid[15, 15] = True
    filtered = reduce_speckle(power, valid, SpeckleSettings(method=method))
    assert filtered[15, 15] == pytest.approx(power[15, 15], rel=1e-5)
    assert np.count_nonzero(filtered) == 1


@pytest.mark.parametrize("method", ["lee", "refined-lee", "gamma-map"])
def test_a_bright_point_stands_out_more_than_after_a_boxcar(method: str) -> None:
    power = make_speckle(0.1)
    power[100, 100] = 100.0
    after = {name: reduce_speckle(power, whole(power), SpeckleSettings(method=name))[100, 100] for name in (method, "boxcar")}
    assert after[method] > 10 * after["boxcar"]


@pytest.mark.parametrize("method", FILTERS)
def test_filters_are_of_power_so_a_scale_goes_through_them(method: str) -> None:
    power, settings = make_speckle(0.1), SpeckleSettings(method=method)
    once, scaled = (reduce_speckle(power * factor, whole(power), settings) for factor in (1.0, 64.0))
    np.testing.assert_allclose(scaled, 64 * once, rtol=1e-5)


@pytest.mark.parametrize("method", FILTERS)
def test_strips_leave_no_seam(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    power, settings = make_speckle(make_step(np.indices((200, 200))[0] - 101)), SpeckleSettings(method=method)
    valid = np.random.default_rng(4).random(power.shape) > 0.1
    whole_scene = reduce_speckle(power, valid, settings)
    monkeypatch.setattr("sereno.pipeline.speckle.STRIP_ROWS", 33)
    np.testing.assert_allclose(reduce_speckle(power, valid, settings), whole_scene, rtol=1e-5)


def test_bands_are_filtered_apart() -> None:
    power, settings = np.stack([make_speckle(0.1, seed=1), make_speckle(0.02, seed=2)]), SpeckleSettings(method="lee")
    together = reduce_speckle(power, whole(power), settings)
    np.testing.assert_array_equal(together, [reduce_speckle(band, whole(power), settings) for band in power])


def test_no_filter_leaves_valid_power_as_it_is_and_says_nothing() -> None:
    power = make_speckle(0.1).astype(np.float32)
    np.testing.assert_array_equal(reduce_speckle(power, whole(power), SpeckleSettings()), power)
    assert describe_filter(SpeckleSettings()) is None


def test_a_filter_is_described_with_what_it_was_given() -> None:
    assert describe_filter(SpeckleSettings(method="refined-lee", window_px=9, looks=3.5)) == "refined-lee, window 9 px, 3.5 looks, in power"
