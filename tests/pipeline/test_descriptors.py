"""Descriptors see where borders lie and not what lies on either side."""

import numpy as np
import numpy.typing as npt
import pytest

from sereno.pipeline.descriptors import DESCRIPTORS, N_BINS, describe_orientations

Image = npt.NDArray[np.float32]
NAMES = pytest.mark.parametrize("name", list(DESCRIPTORS))


def draw_steps(seed: int = 0, bands: int = 2) -> Image:
    levels = np.random.default_rng(seed).uniform(0, 1, (bands, 6, 6))
    return levels.repeat(12, axis=1).repeat(12, axis=2).astype(np.float32)


@NAMES
def test_contrast_and_its_sign_do_not_matter(name: str) -> None:
    image = draw_steps(bands=1)
    valid = np.ones(image.shape[1:], bool)
    ours, theirs = (DESCRIPTORS[name](view.astype(np.float32), valid).values for view in (image, 7 - 3 * image))
    assert ours == pytest.approx(theirs, abs=2e-3)


@NAMES
def test_values_are_bounded_and_nothing_is_said_about_invalid_ground(name: str) -> None:
    image = draw_steps()
    valid = np.ones(image.shape[1:], bool)
    valid[20:30, 40:45] = False
    found = DESCRIPTORS[name](image, valid)
    assert found.values.shape[1:] == found.usable.shape == valid.shape
    assert (found.values.min(), found.values.max()) == (0, pytest.approx(1, abs=0.01))
    assert not found.usable[14:36, 34:51].any()
    assert found.usable[60:, :20].all()
    assert not found.values[:, found.usable == 0].any()


@NAMES
def test_invalid_pixels_move_nothing(name: str) -> None:
    image = draw_steps()
    valid = np.ones(image.shape[1:], bool)
    valid[10:20, 10:50] = False
    other = np.where(valid, image, 1e6).astype(np.float32)
    ours, theirs = (DESCRIPTORS[name](view, valid) for view in (image, other))
    assert np.array_equal(ours.values, theirs.values)
    assert np.array_equal(ours.usable, theirs.usable)


@NAMES
def test_an_image_without_structure_or_without_valid_ground_is_described_by_constants(name: str) -> None:
    flat, valid = np.full((2, 40, 40), 0.3, np.float32), np.ones((40, 40), bool)
    found = DESCRIPTORS[name](flat, valid)
    assert found.values.std(axis=(1, 2)).max() == 0
    nothing = DESCRIPTORS[name](flat, ~valid)
    assert not nothing.usable.any()
    assert np.isfinite(nothing.values).all()


@NAMES
def test_descriptors_move_with_the_ground(name: str) -> None:
    # Levels are medians over the scene, so nothing new may come in at the edge.
    image = np.pad(draw_steps(), ((0, 0), (12, 12), (12, 12)), constant_values=0.5)
    valid = np.ones(image.shape[1:], bool)
    ours, theirs = (DESCRIPTORS[name](view, valid).values for view in (image, np.roll(image, (3, -2), axis=(1, 2))))
    inner = np.s_[:, 12:-12, 12:-12]
    assert np.roll(ours, (3, -2), axis=(1, 2))[inner] == pytest.approx(theirs[inner], abs=0.02)


@pytest.mark.parametrize(("angle_deg", "bin_number"), [(0, 0), (40, 2), (100, 5)])
def test_an_edge_votes_for_its_own_orientation(angle_deg: float, bin_number: int) -> None:
    rows, cols = np.mgrid[:60, :60] - 30.0
    angle = np.radians(angle_deg)
    image = (1 / (1 + np.exp(-(cols * np.cos(angle) + rows * np.sin(angle)) * 2)))[None].astype(np.float32)
    found = describe_orientations(image, np.ones(rows.shape, bool)).values[:, 30, 30]
    assert len(found) == N_BINS
    assert found.argmax() == bin_number
