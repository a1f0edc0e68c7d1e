import numpy as np
import pytest
from scipy import ndimage

from sereno.pipeline.ground import KIND_INDEX, KINDS, make_ground
from sereno.pipeline.radar import Displacement, add_speckle, compute_backscatter, displace_image, draw_displacement, make_swath


def _blob(row: float, column: float) -> np.ndarray:
    y, x = np.mgrid[:101, :121]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / 18)[None].astype(np.float32)


@pytest.mark.parametrize(
    "displacement", [Displacement(2.3, -3.6, ((0, 0), (0, 0))), Displacement(-1.4, 0.7, ((0.004, -0.002), (0.003, 0.001)))]
)
def test_content_at_a_true_place_appears_where_the_displacement_says(displacement: Displacement) -> None:
    place, centre = np.array([30.0, 80.0]), np.array([50.0, 60.0])
    moved = displace_image(_blob(*place), displacement, (50.0, 60.0))[0]
    expected = place + (displacement.dy_px, displacement.dx_px) + np.array(displacement.affine) @ (place - centre)
    assert np.allclose(ndimage.center_of_mass(moved), expected, atol=0.02)


def test_no_displacement_changes_nothing() -> None:
    image = _blob(40, 50)
    assert np.allclose(displace_image(image, Displacement(0, 0, ((0, 0), (0, 0))), (50.0, 60.0)), image, atol=1e-6)


def test_drawn_shifts_stay_within_the_limit() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_displacement(rng, 4.0) for _ in range(200)]
    lengths = np.array([np.hypot(d.dy_px, d.dx_px) for d in drawn])
    assert 0.99 < lengths.min()
    assert lengths.max() <= 4.001
    assert np.abs([d.affine for d in drawn]).max() < 6e-4
    assert draw_displacement(rng, 0.0) == Displacement(0, 0, ((0, 0), (0, 0)))


@pytest.mark.parametrize("looks", [1.0, 4.4])
def test_speckle_keeps_the_mean_and_has_variance_one_over_looks(looks: float) -> None:
    seen = add_speckle(np.random.default_rng(1), np.full((2, 300, 300), 0.05, np.float32), looks)
    assert seen.dtype == np.float32
    assert np.isclose(seen.mean(), 0.05, rtol=0.01)
    assert np.isclose(seen.var() / seen.mean() ** 2, 1 / looks, rtol=0.03)


def test_backscatter_of_a_kind_is_what_its_table_says_and_walls_are_brightest() -> None:
    ground = make_ground(np.random.default_rng(5), (420, 420))
    power = compute_backscatter(ground)
    kind = ground.units.kind[ground.unit]
    for name in ("wheat", "maize", "lake"):
        inside = ndimage.binary_erosion(kind == KIND_INDEX[name], iterations=2)
        measured = 10 * np.log10(power[:, inside].mean(axis=1))
        assert np.allclose(measured, KINDS[KIND_INDEX[name]].backscatter_db, atol=2.5 if name == "lake" else 1.2)
    assert power[0][ground.wall > 0.5].mean() > 3 * power[0][ground.wall == 0].mean()


def test_swath_has_slanted_edges_that_enter_the_image() -> None:
    swath = make_swath((100, 200), left_px=20, right_px=30, slant=0.2)
    assert swath[0].sum() == 180 - 10  # 30 - 0.2 * 99 = 10.2 at the top right
    assert swath[99, 169]
    assert not swath[99, 170]
    assert swath[99, 1]
