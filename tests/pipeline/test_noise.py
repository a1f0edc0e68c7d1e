import numpy as np
import pytest

from sereno.pipeline.noise import blur_image, draw_sensor_noise, make_noise, smooth_step


def test_noise_has_zero_mean_and_unit_variance_and_is_float32() -> None:
    field = make_noise(np.random.default_rng(1), (120, 90), scale_px=5)
    assert field.shape == (120, 90)
    assert field.dtype == np.float32
    assert abs(field.mean()) < 1e-4
    assert abs(field.std() - 1) < 1e-4


def test_noise_continues_across_opposite_edges() -> None:
    field = make_noise(np.random.default_rng(2), (128, 128), scale_px=10, roughness=3)
    inside = np.abs(np.diff(field, axis=1)).mean()
    assert np.abs(field[:, 0] - field[:, -1]).mean() < 1.5 * inside


def test_same_generator_state_gives_the_same_field() -> None:
    first, second = (make_noise(np.random.default_rng(3), (64, 64), scale_px=4) for _ in range(2))
    assert np.array_equal(first, second)


def test_stretched_noise_varies_more_slowly_along_the_stretched_axis() -> None:
    field = make_noise(np.random.default_rng(4), (256, 256), scale_px=6, stretch=(1, 5))
    assert np.abs(np.diff(field, axis=0)).mean() > 1.5 * np.abs(np.diff(field, axis=1)).mean()


def test_blur_spreads_a_point_with_binomial_weights_and_keeps_flat_ground() -> None:
    point = np.zeros((7, 7), np.float32)
    point[3, 3] = 16
    expected = np.outer([1, 2, 1], [1, 2, 1])
    assert np.array_equal(blur_image(point)[2:5, 2:5], expected)
    assert np.allclose(blur_image(np.full((2, 5, 4), 0.3, np.float32)), 0.3)


def test_smooth_step_is_zero_half_and_one_where_it_must() -> None:
    assert np.allclose(smooth_step(np.array([-1, 0, 0.5, 1, 2])), [0, 0, 0.5, 1, 1])


def test_noise_of_a_sensor_grows_with_the_signal() -> None:
    for level, deviation in ((0.0, 0.0012), (0.5, 0.0032)):
        drawn = draw_sensor_noise(np.random.default_rng(1), np.full((200, 200), level, np.float32))
        assert drawn.dtype == np.float32
        assert drawn.std() == pytest.approx(deviation, rel=0.02)
