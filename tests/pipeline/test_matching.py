"""Windows are found where they are, from usable pixels alone."""

import numpy as np
import numpy.typing as npt
import pytest

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.descriptors import Features
from sereno.pipeline.matching import correlate_masked, find_peak, is_at_edge, lay_windows, match_again, match_windows, to_votes
from sereno.pipeline.shiftfield import make_shift

Array = npt.NDArray[np.float32]


def draw_features(rng: np.random.Generator, side: int, share: float = 0.8) -> Features:
    usable = (rng.random((side, side)) < share).astype(np.float32)
    return Features((rng.random((3, side, side)) * usable).astype(np.float32), usable)


def test_correlation_equals_the_sum_written_out_over_usable_pixels() -> None:
    rng = np.random.default_rng(0)
    small, large = (draw_features(rng, side) for side in (12, 18))
    surface = correlate_masked(small, large)
    means = [features.values.sum(axis=(1, 2)) / features.usable.sum() for features in (small, large)]
    for row, col in ((0, 0), (3, 5), (6, 6)):
        part = np.s_[row : row + 12, col : col + 12]
        both = (small.usable * large.usable[part]) > 0
        left = (small.values - means[0][:, None, None])[:, both]
        right = (large.values[:, *part] - means[1][:, None, None])[:, both]
        assert surface[row, col] == pytest.approx((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()), abs=1e-4)


def test_top_of_a_quadric_is_found_exactly_and_one_at_the_edge_is_not_taken() -> None:
    rows, cols = np.mgrid[:21, :21].astype(np.float32)
    surface = np.exp(-((rows - 12.3) ** 2 + (cols - 7.8) ** 2) / 400)
    surface[(np.abs(rows - 12) > 3) | (np.abs(cols - 8) > 3)] = 0
    found = find_peak(surface)
    assert found is not None
    assert found[:2] == pytest.approx((12.3, 7.8), abs=0.01)
    assert not is_at_edge(surface)
    moved = np.roll(surface, 8, axis=0)
    assert is_at_edge(moved)
    assert find_peak(moved) is None


def test_a_second_peak_of_equal_height_makes_a_window_useless() -> None:
    surface = np.random.default_rng(1).normal(0, 0.01, (25, 25)).astype(np.float32)
    for row, col in ((6, 6), (18, 18)):
        surface[row - 1 : row + 2, col - 1 : col + 2] += 0.3
        surface[row, col] += 0.2
    assert find_peak(surface) is None
    surface[18, 18] = 0.3
    assert find_peak(surface) is not None


def test_windows_cover_the_scene_from_edge_to_edge() -> None:
    settings = AlignSettings()
    large, small = (lay_windows(shape, 10, settings) for shape in ((1680, 900), (256, 256)))
    assert large is not None
    assert small is not None
    assert (large.tops[0], large.tops[-1] + large.side) == (0, 1680)
    assert (large.lefts[0], large.lefts[-1] + large.side) == (0, 900)
    assert (small.side, len(small.tops)) == (96, 7)
    assert small.overlap == pytest.approx(49 * 96**2 / 256**2)
    assert lay_windows((80, 4000), 10, settings) is None


def test_matches_lie_around_the_first_guess_and_are_shifts_from_nothing() -> None:
    rng = np.random.default_rng(2)
    world = rng.random((3, 400, 400)).astype(np.float32)
    ones = np.ones((256, 256), np.float32)
    optical, sar = (Features(world[:, first[0] : first[0] + 256, first[1] : first[1] + 256], ones) for first in ((60, 60), (43, 80)))
    layout = lay_windows((256, 256), 8, AlignSettings())
    assert layout is not None
    found = match_windows(optical, sar, layout, make_shift((256, 256), 15.4, -21.0))
    assert len(found.good) > 30
    assert {(round(match.dy), round(match.dx)) for match in found.good} == {(17, -20)}
    assert len(match_windows(optical, sar, layout, make_shift((256, 256))).good) < 5
    # Asked again where a field lies a pixel off, every window says the same once more.
    again = match_again(found.windows, make_shift((256, 256), 16.2, -20.7))
    assert {(round(match.dy), round(match.dx)) for match in again} == {(17, -20)}
    assert len(again) >= len(found.good)
    assert to_votes(again, 2.0).weights.max() <= 1.0001


def test_a_window_stands_for_the_middle_of_its_usable_ground() -> None:
    rng = np.random.default_rng(3)
    features = draw_features(rng, 256, share=1.0)
    half = Features(features.values.copy(), features.usable.copy())
    half.values[:, :, :128], half.usable[:, :128] = 0, 0
    layout = lay_windows((256, 256), 8, AlignSettings())
    assert layout is not None
    found = match_windows(half, features, layout, make_shift((256, 256)))
    assert found.n_laid == 49
    assert 0 < len(found.windows) < 49
    assert min(window.col for window in found.windows) > 128
