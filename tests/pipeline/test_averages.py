"""Means over blocks: whole ones, from the first pixel on, as exact as what enters."""

import numpy as np
import pytest
from skimage.measure import block_reduce

from sereno.pipeline.averages import average_blocks


def test_blocks_are_averaged_from_the_first_pixel_on() -> None:
    image = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = average_blocks(image, 2)
    assert found.dtype == np.float32
    assert np.array_equal(found, [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])


@pytest.mark.parametrize("factor", [1, 3, 16])
@pytest.mark.parametrize("dtype", ["uint16", "bool", "float64"])
def test_means_are_those_of_scikit_image_in_double_precision(dtype: str, factor: int) -> None:
    image = np.random.default_rng(1).integers(0, 65_535, (96, 48)).astype(dtype)
    found = average_blocks(image, factor)
    assert found.dtype == np.float64
    assert np.array_equal(found, block_reduce(image.astype(np.float64), factor, np.mean))


@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (1, 2)])
def test_what_is_not_made_of_whole_blocks_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not made of whole blocks of 2 x 2"):
        average_blocks(np.ones(shape), 2)
