"""A field of shifts over a grid: how far content lies from where it belongs, as a smooth function of place.

Votes of matching windows enter, some of them wrong; the field on which most of them agree leaves, with the votes that agree, its
uncertainty at any place, and what it would cost to do without one of its terms. It knows nothing of images.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from sereno.pipeline.config import FieldDegree

N_TERMS: Final[dict[FieldDegree, int]] = {"shift": 1, "affine": 3, "quadratic": 6}
"""Coefficients per axis, and so votes that fix a field, which agree with it by construction."""
INLIER_PX: Final = 1.0
"""A vote agrees with a field within this distance."""
N_DRAWS: Final = 500
"""Triples of votes tried for an affine field: with half of the votes wrong, all are bad once in 1e29."""
DRAW_SEED: Final = 20120917
"""Equal votes give equal fields."""
MAX_STRAIN: Final = 0.03
"""Largest change of the shift per pixel that a triple may ask for; errors of orbit, height and RPC stay below some 1e-3."""
MIN_TRIANGLE: Final = 0.02
"""Triples whose triangle is smaller (twice its area, in units of the squared scale) say nothing of slopes."""
BEND_FACTOR: Final = 1.5
"""Votes for a quadratic field may at first lie farther from the affine one that it grows out of."""
MAX_ROUNDS: Final = 10
"""Rounds in which votes and field may settle; two or three are usual."""
TRIM: Final = 3 * 1.4826
"""Votes farther than so many median distances do not enter the fit: three standard deviations of one axis, reckoned robustly."""
TRIM_FLOOR_PX: Final = 0.1
"""Votes nearer than this always enter."""
LATTICE: Final = 9
"""Places per side at which the uncertainty of a field is sought; corners are among them, where it is largest."""

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class ShiftField:
    """Content that belongs at (row, col) is found at (row + dy, col + dx), each a polynomial of place."""

    degree: FieldDegree
    """Which terms there are."""
    dy: tuple[float, ...]
    """Coefficients in pixels of 1, u, v, then u^2, u v, v^2, where u = (row - centre row) / scale and v = (col - centre col) / scale."""
    dx: tuple[float, ...]
    """The same for columns."""
    centre: tuple[float, float]
    """Row and column of the origin, usually the middle of the grid."""
    scale_px: float
    """Length that u and v are measured in, usually half of the longer side."""

    def evaluate(self, rows: npt.ArrayLike, cols: npt.ArrayLike) -> tuple[Float, Float]:
        """Shifts (dy, dx) in pixels at places of the grid; the arrays are broadcast against each other."""
        rows, cols = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(cols, np.float64))
        u, v = (rows - self.centre[0]) / self.scale_px, (cols - self.centre[1]) / self.scale_px
        powers = (np.ones(u.shape), u, v, u * u, u * v, v * v)
        dy, dx = np.zeros(u.shape), np.zeros(u.shape)
        for down, right, power in zip(self.dy, self.dx, powers, strict=False):
            dy += down * power
            dx += right * power
        return dy, dx

    @property
    def is_zero(self) -> bool:
        """Whether it moves nothing."""
        return not any(self.dy) and not any(self.dx)

    def to_record(self) -> dict[str, Any]:
        """The field as plain JSON values; coefficients rounded to 1e-5 px."""
        dy, dx = ([round(value, 5) for value in axis] for axis in (self.dy, self.dx))
        return {"degree": self.degree, "dy": dy, "dx": dx, "centre": list(self.centre), "scale_px": self.scale_px}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ShiftField:
        """The field of a record made by `to_record`."""
        row, col = record["centre"]
        return cls(record["degree"], tuple(record["dy"]), tuple(record["dx"]), (row, col), record["scale_px"])


def make_shift(shape: tuple[int, ...], dy: float = 0.0, dx: float = 0.0) -> ShiftField:
    """The same shift everywhere on a grid of `shape`; without values the field that moves nothing."""
    return ShiftField("shift", (dy,), (dx,), *_frame(shape))


def join_fields(first: ShiftField, second: ShiftField) -> ShiftField:
    """What to take out of an image at once instead of `first` and then, from what is left, `second`.

    Content that belongs at p is found at p + second(p) once `first` is out, and so at that place displaced by `first` before. Of two
    quadratic fields the terms of higher degree are left out, which are products of slopes of a thousandth.
    """
    degree = max(first.degree, second.degree, key=lambda name: N_TERMS[name])
    blank = dataclasses.replace(first, degree=degree, dy=(), dx=())
    spread = np.linspace(-1, 1, LATTICE) * first.scale_px
    rows, cols = (axis.ravel() for axis in np.meshgrid(first.centre[0] + spread, first.centre[1] + spread, indexing="ij"))
    left = second.evaluate(rows, cols)
    before = first.evaluate(rows + left[0], cols + left[1])
    whole = np.stack([before[0] + left[0], before[1] + left[1]], axis=1)
    dy, dx = (tuple(float(value) for value in axis) for axis in np.linalg.lstsq(_design(blank, rows, cols), whole, rcond=None)[0].T)
    return dataclasses.replace(blank, dy=dy, dx=dx)


def _frame(shape: tuple[int, ...]) -> tuple[tuple[float, float], float]:
    rows, cols = shape
    return ((rows - 1) / 2, (cols - 1) / 2), max(rows, cols, 2) / 2


class Votes(NamedTuple):
    """What n windows say, each for the place of its usable ground; arrays (n,)."""

    rows: Float
    """Place, pixels of the grid."""
    cols: Float
    """Place, pixels of the grid."""
    dy: Float
    """Shift, pixels."""
    dx: Float
    """Shift, pixels."""
    weights: Float
    """How much each counts, relative to the others."""
    overlap: float
    """Votes that share the same ground, and so count as one witness; at least 1."""


class Fit(NamedTuple):
    """A field and what stands behind it."""

    field: ShiftField
    """The field."""
    inlier: Bool
    """(n,) votes within `INLIER_PX` of it."""
    residuals_px: Float
    """(n,) distance of every vote from it."""
    held_out_px: float
    """Root mean square distance, at most `INLIER_PX` each, of votes from a field that was fitted without them."""
    covariance: Float
    """(terms, terms) of the coefficients of one axis, pixels squared; not finite where too few witnesses are left to say."""

    def predict_sigma(self, rows: npt.ArrayLike, cols: npt.ArrayLike) -> Float:
        """Standard deviation of the field per axis at places of the grid, pixels."""
        design = _design(self.field, np.atleast_1d(np.asarray(rows, float)).ravel(), np.atleast_1d(np.asarray(cols, float)).ravel())
        if not np.isfinite(self.covariance).all():
            return np.full(len(design), np.inf)
        sigma: Float = np.sqrt(np.maximum(np.einsum("nk,kl,nl->n", design, self.covariance, design), 0))
        return sigma


def spread_lattice(shape: tuple[int, ...]) -> tuple[Float, Float]:
    """Rows and columns (n,) of places spread over a grid, its corners among them."""
    rows, cols = np.meshgrid(*(np.linspace(0, length - 1, LATTICE) for length in shape), indexing="ij")
    return rows.ravel(), cols.ravel()


def fit_field(votes: Votes, degree: FieldDegree, shape: tuple[int, ...]) -> Fit | None:
    """The field of that degree on which most votes agree, over a grid of `shape`; None if votes are too few or lie in a line.

    A first guess comes from every vote in turn (shift) or from seeded triples of votes (affine; Fischler & Bolles 1981); a quadratic one
    grows out of the affine one. Then field and agreeing votes settle by weighted least squares, votes far off being trimmed.
    """
    if len(votes.rows) < N_TERMS[degree]:
        return None
    blank = ShiftField(degree, (), (), *_frame(shape))
    design = _design(blank, votes.rows, votes.cols)
    shifts = np.stack([votes.dy, votes.dx], axis=1)
    members = _seek_members(blank, design, shifts)
    for _ in range(MAX_ROUNDS):
        solved = _solve(design, shifts, votes, members)
        if solved is None:
            return None
        coefficients, trimmed = solved
        residuals = np.linalg.norm(shifts - design @ coefficients, axis=1)
        again = residuals <= INLIER_PX
        if np.array_equal(again, members) or not again.any():
            break
        members = again
    dy, dx = (tuple(float(value) for value in axis) for axis in coefficients.T)
    field = dataclasses.replace(blank, dy=dy, dx=dx)
    covariance, leverage = _spread(design, votes, trimmed, residuals)
    unseen = np.minimum(residuals / np.maximum(1 - leverage, 0.05), INLIER_PX)
    return Fit(field, residuals <= INLIER_PX, residuals, float(np.sqrt(np.average(unseen**2, weights=votes.weights))), covariance)


def _design(field: ShiftField, rows: Float, cols: Float) -> Float:
    """Powers of place, (n, terms)."""
    u, v = (rows - field.centre[0]) / field.scale_px, (cols - field.centre[1]) / field.scale_px
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)[:, : N_TERMS[field.degree]]


def _seek_members(blank: ShiftField, design: Float, shifts: Float) -> Bool:
    """Which votes belong together, by the hypothesis that most of them agree with."""
    planes = None if blank.degree == "shift" else _draw_planes(design[:, :3], shifts, MAX_STRAIN * blank.scale_px)
    if planes is None:
        distances = np.linalg.norm(shifts[:, None] - shifts[None], axis=2)
        members: Bool = distances[int((distances <= INLIER_PX).sum(axis=1).argmax())] <= INLIER_PX
        return members
    tolerance = INLIER_PX if blank.degree == "affine" else BEND_FACTOR * INLIER_PX
    distances = np.linalg.norm(shifts[None] - np.einsum("nk,hkl->hnl", design[:, :3], planes), axis=2)
    costs = np.minimum(distances / tolerance, 1) ** 2
    best: Bool = distances[int(costs.sum(axis=1).argmin())] <= tolerance
    return best


def _draw_planes(design: Float, shifts: Float, max_slope_px: float) -> Float | None:
    """Coefficients (hypotheses, 3, 2) of affine fields through triples of votes, slender and steep ones left out; None if none is left."""
    triples = _draw_triples(len(shifts))
    corners = design[triples]
    sound = np.abs(np.linalg.det(corners)) > MIN_TRIANGLE
    planes = np.linalg.solve(corners[sound], shifts[triples[sound]])
    gentle = np.abs(planes[:, 1:]).max(axis=(1, 2)) <= max_slope_px
    return planes[gentle] if gentle.any() else None


def _draw_triples(count: int) -> npt.NDArray[np.int64]:
    """Triples of different votes, (draws, 3): all of them where they are few, else seeded draws."""
    if count * (count - 1) * (count - 2) // 6 <= N_DRAWS:
        return np.array(list(itertools.combinations(range(count), 3)), np.int64).reshape(-1, 3)
    rng = np.random.default_rng(DRAW_SEED)
    return np.argsort(rng.random((N_DRAWS, count)), axis=1)[:, :3]


def _solve(design: Float, shifts: Float, votes: Votes, members: Bool) -> tuple[Float, Bool] | None:
    """Coefficients (terms, 2) by weighted least squares over `members` but those far off, and which entered; None if undetermined."""
    first = _solve_weighted(design, shifts, votes.weights, members)
    if first is None:
        return None
    distances = np.linalg.norm(shifts - design @ first, axis=1)
    kept = members & (distances <= max(TRIM * float(np.median(distances[members])), TRIM_FLOOR_PX))
    second = _solve_weighted(design, shifts, votes.weights, kept)
    return None if second is None else (second, kept)


def _solve_weighted(design: Float, shifts: Float, weights: Float, chosen: Bool) -> Float | None:
    root = np.sqrt(weights[chosen])[:, None]
    coefficients, _, rank, _ = np.linalg.lstsq(design[chosen] * root, shifts[chosen] * root, rcond=1e-6)
    return np.asarray(coefficients, np.float64) if rank == design.shape[1] else None


def _spread(design: Float, votes: Votes, chosen: Bool, residuals: Float) -> tuple[Float, Float]:
    """Covariance of one axis' coefficients (terms, terms), and how far each vote pulls the field to itself, (n,) 0..1.

    Votes that share ground are no independent witnesses: `votes.overlap` of them count as one.
    """
    weights = votes.weights[chosen] / votes.weights[chosen].mean()
    witnesses = weights.sum() ** 2 / (weights**2).sum() / votes.overlap
    inverse = np.linalg.inv(design[chosen].T @ (weights[:, None] * design[chosen]))
    terms = design.shape[1]
    leverage = np.clip(votes.overlap * np.einsum("nk,kl,nl->n", design, inverse, design), 0, 1)
    if witnesses <= terms:
        return np.full((terms, terms), np.inf), leverage
    variance = np.average(residuals[chosen] ** 2, weights=weights) / 2 * witnesses / (witnesses - terms)
    return variance * votes.overlap * inverse, leverage


def count_false_alarms(votes: Votes, fit: Fit, reach_px: float) -> float:
    """Expected number of groups that agree as well among votes that point anywhere within `reach_px` of their start.

    Binomial tail as the incomplete beta function, so that counts need not be whole, times the number of hypotheses (a contrario: Desolneux,
    Moisan & Morel 2000). Counts are divided by the overlap, since votes from the same ground agree by construction.
    """
    chance = np.pi * INLIER_PX**2 / (2 * reach_px + 1) ** 2
    support = N_TERMS[fit.field.degree]
    count, agreeing = len(votes.rows) / votes.overlap, float(fit.inlier.sum()) / votes.overlap
    hypotheses = float(len(votes.rows) * np.prod([max(count - k, 1) for k in range(1, support)]))
    if agreeing <= support:
        return hypotheses
    return hypotheses * float(special.betainc(agreeing - support, count - agreeing + 1, chance))
