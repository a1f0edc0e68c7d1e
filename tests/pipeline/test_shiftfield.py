"""A field is found among votes of which many are wrong, and knows how sure it is."""

import json
from typing import Any

import numpy as np
import pytest

from sereno.pipeline.shiftfield import (
    N_TERMS,
    ShiftField,
    Votes,
    count_false_alarms,
    fit_field,
    join_fields,
    make_shift,
    spread_lattice,
)

SHAPE = (900, 1200)
TRUE = {
    "shift": ShiftField("shift", (2.0,), (-3.0,), (449.5, 599.5), 600.0),
    "affine": ShiftField("affine", (2.0, 1.5, -0.7), (-3.0, 0.4, 2.0), (449.5, 599.5), 600.0),
    "quadratic": ShiftField("quadratic", (2.0, 1.5, -0.7, 0.8, -0.5, 0.3), (-3.0, 0.4, 2.0, -0.6, 0.2, 0.9), (449.5, 599.5), 600.0),
}
DEGREES = pytest.mark.parametrize("degree", list(TRUE))


def draw_votes(field: ShiftField, *, wrong: float = 0.0, noise_px: float = 0.0, side: int = 9, seed: int = 0) -> Votes:
    rng = np.random.default_rng(seed)
    rows, cols = (axis.ravel() for axis in np.meshgrid(*(np.linspace(60, length - 60, side) for length in SHAPE), indexing="ij"))
    dy, dx = (shift + rng.normal(0, noise_px, shift.shape) for shift in field.evaluate(rows, cols))
    bad = rng.random(rows.size) < wrong
    dy[bad], dx[bad] = rng.uniform(-10, 10, (2, bad.sum()))
    return Votes(rows, cols, dy, dx, rng.uniform(0.05, 0.2, rows.size), 1.0)


def measure(found: ShiftField, true: ShiftField) -> float:
    places = spread_lattice(SHAPE)
    return float(np.abs(np.stack(found.evaluate(*places)) - np.stack(true.evaluate(*places))).max())


@DEGREES
def test_exact_votes_give_the_field_exactly_and_it_survives_its_record(degree: Any) -> None:
    found = fit_field(draw_votes(TRUE[degree]), degree, SHAPE)
    assert found is not None
    assert measure(found.field, TRUE[degree]) < 1e-9
    assert found.inlier.all()
    assert measure(ShiftField.from_record(json.loads(json.dumps(found.field.to_record()))), TRUE[degree]) < 1e-4


@DEGREES
def test_field_is_found_though_two_votes_in_five_are_wrong(degree: Any) -> None:
    found = fit_field(draw_votes(TRUE[degree], wrong=0.4, noise_px=0.2), degree, SHAPE)
    assert found is not None
    assert measure(found.field, TRUE[degree]) < 0.5
    assert 0.5 < found.inlier.mean() < 0.75


@DEGREES
def test_predicted_uncertainty_is_what_repeated_measurement_shows(degree: Any) -> None:
    places = spread_lattice(SHAPE)
    errors, sigmas = [], []
    for seed in range(40):
        found = fit_field(draw_votes(TRUE[degree], noise_px=0.15, seed=seed), degree, SHAPE)
        assert found is not None
        errors.append(np.stack(found.field.evaluate(*places)) - np.stack(TRUE[degree].evaluate(*places)))
        sigmas.append(found.predict_sigma(*places))
    seen, predicted = np.std(errors, axis=(0, 1)), np.mean(sigmas, axis=0)
    assert predicted.mean() == pytest.approx(seen.mean(), rel=0.2)


def test_uncertainty_grows_away_from_the_votes_and_with_their_overlap() -> None:
    votes = draw_votes(TRUE["affine"], noise_px=0.2)
    left = votes.cols < 500
    half = Votes(*(array[left] for array in votes[:5]), 1.0)  # type: ignore[arg-type, misc]
    found, doubled = (fit_field(some, "affine", SHAPE) for some in (half, half._replace(overlap=2.0)))
    assert found is not None
    assert doubled is not None
    near, far = found.predict_sigma([450, 450], [250, 1150])
    assert far > 3 * near
    assert doubled.predict_sigma(450, 250)[0] == pytest.approx(near * np.sqrt(2), rel=0.1)


def test_votes_too_few_in_a_line_or_without_witnesses_give_no_field_or_no_certainty() -> None:
    votes = draw_votes(TRUE["affine"], noise_px=0.1)
    assert fit_field(Votes(*(array[:2] for array in votes[:5]), 1.0), "affine", SHAPE) is None  # type: ignore[arg-type, misc]
    assert fit_field(votes._replace(rows=np.full_like(votes.rows, 300.0)), "affine", SHAPE) is None
    lonely = fit_field(votes._replace(overlap=40.0), "affine", SHAPE)
    assert lonely is not None
    assert np.isinf(lonely.predict_sigma(450, 600)).all()


def test_held_out_votes_favour_the_field_that_is_true() -> None:
    for true, field in TRUE.items():
        votes = draw_votes(field, noise_px=0.2, seed=3)
        held_out = {degree: fit.held_out_px for degree in N_TERMS if (fit := fit_field(votes, degree, SHAPE)) is not None}
        simplest = next(degree for degree in N_TERMS if held_out[degree] <= 1.02 * min(held_out.values()))
        assert simplest == true


def test_votes_at_random_agree_as_often_as_was_expected() -> None:
    # Among votes that point anywhere, a group of four is nothing special; half of all votes never happens.
    for seed in range(20):
        votes = draw_votes(TRUE["shift"], wrong=1.0, side=6, seed=seed)
        for degree in ("shift", "affine"):
            found = fit_field(votes, degree, SHAPE)
            assert found is None or count_false_alarms(votes, found, 10) > 1e-3
    sound = fit_field(draw_votes(TRUE["affine"], wrong=0.5, noise_px=0.3, side=6), "affine", SHAPE)
    assert sound is not None
    assert count_false_alarms(draw_votes(TRUE["affine"], wrong=0.5, noise_px=0.3, side=6), sound, 10) < 1e-3


def test_a_field_without_values_moves_nothing() -> None:
    assert make_shift(SHAPE).is_zero
    assert not make_shift(SHAPE, 0.0, 0.1).is_zero
    dy, dx = make_shift(SHAPE, 1.0, -2.0).evaluate(np.arange(3)[:, None], np.arange(2))
    assert (dy.tolist(), dx.tolist()) == ([[1, 1]] * 3, [[-2, -2]] * 3)


def test_two_fields_joined_move_as_one_after_the_other() -> None:
    first, second = TRUE["affine"], make_shift(SHAPE, 1.5, -0.5)
    rows, cols = np.array([10.0, 400.0]), np.array([700.0, 20.0])
    left = second.evaluate(rows, cols)
    before = first.evaluate(rows + left[0], cols + left[1])
    joined = join_fields(first, second)
    assert joined.degree == "affine"
    assert np.stack(joined.evaluate(rows, cols)) == pytest.approx(np.add(left, before), abs=1e-9)
    bent = join_fields(second, TRUE["quadratic"])
    assert np.stack(bent.evaluate(rows, cols)) == pytest.approx(
        np.add(second.evaluate(0, 0), 0)[:, None] + TRUE["quadratic"].evaluate(rows, cols)
    )
    assert join_fields(make_shift(SHAPE), make_shift(SHAPE)).is_zero
