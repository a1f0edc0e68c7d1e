"""What registration is measured on and against is itself right: drawn fields lie where they are said to, and all count the same way."""

from typing import Any

import numpy as np
import pytest
from registration_peers import Scene, field_of_affine, fit_through, make_ecc, make_ours, make_phase_correlation
from registration_scenes import Ground, draw_clouds, draw_field, invert_field, measure_error

from sereno.pipeline.registration import Layer
from sereno.pipeline.shiftfield import make_shift

SIDE = 160


def test_content_is_drawn_where_the_field_puts_it() -> None:
    ground = Ground(1, SIDE)
    still, moved = (ground.draw_power(make_shift((SIDE, SIDE), *shift), looks=1e9) for shift in ((0, 0), (3, -2)))
    assert moved[:, 10:-10, 10:-10] == pytest.approx(np.roll(still, (3, -2), axis=(1, 2))[:, 10:-10, 10:-10], rel=1e-3)


@pytest.mark.parametrize("degree", ["shift", "affine", "quadratic"])
def test_where_content_belongs_is_the_inverse_of_where_it_is_found(degree: Any) -> None:
    field = draw_field(degree, SIDE, seed=2, bend_px=1.0)
    rows, cols = np.mgrid[:SIDE, :SIDE].astype(float)
    home = invert_field(field, rows, cols)
    dy, dx = field.evaluate(*home)
    assert home[0] + dy == pytest.approx(rows, abs=1e-5)
    assert home[1] + dx == pytest.approx(cols, abs=1e-5)


def test_maps_and_tie_points_become_the_fields_that_they_are() -> None:
    true = draw_field("affine", SIDE, seed=5)
    places = np.random.default_rng(0).uniform(0, SIDE, (30, 2))
    shifts = np.stack(true.evaluate(places[:, 0], places[:, 1]), axis=1)
    assert measure_error(fit_through(places, shifts, (SIDE, SIDE)), true, SIDE) < 1e-6
    ends = np.column_stack([places[:, 1] + shifts[:, 1], places[:, 0] + shifts[:, 0]])
    warp = np.linalg.lstsq(np.column_stack([places[:, ::-1], np.ones(30)]), ends, rcond=None)[0].T
    assert measure_error(field_of_affine(warp, (SIDE, SIDE)), true, SIDE) < 1e-6


def test_every_method_counts_a_shift_the_same_way() -> None:
    ground, true = Ground(1, 256), make_shift((256, 256), 2.0, -1.0)
    everywhere = np.ones((256, 256), bool)
    scene = Scene(Layer(ground.draw_optical(), everywhere), Layer(ground.draw_sar(true), everywhere, "sar"))
    pytest.importorskip("cv2", reason="OpenCV comes with the extra bench")
    peers = [make_ours("self-similarity"), make_phase_correlation(gradient=True), make_ecc(gradient=True)]
    for peer in peers:
        found = peer(scene)
        assert found is not None
        assert measure_error(found, true, 256) < 0.5


def test_clouds_cover_what_was_asked_for() -> None:
    assert draw_clouds(200, 0.3, seed=1).mean() == pytest.approx(0.3, abs=0.01)
