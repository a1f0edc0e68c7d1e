"""Means over whole blocks of pixels, with which every image of ours is made coarser.

An image (y, x) enters, one with fewer pixels leaves; where it lies and what it shows is known to others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def average_blocks(image: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Means over blocks of `factor` x `factor` pixels, (y, x) -> (y / factor, x / factor): float32 of float32, else float64.

    Raises:
        ValueError: the image is not made of whole blocks.
    """
    if any(size % factor for size in image.shape):
        raise ValueError(f"an image of {image.shape} pixels is not made of whole blocks of {factor} x {factor}")
    kind = np.float32 if image.dtype == np.float32 else np.float64
    total = np.zeros((image.shape[0] // factor, image.shape[1] // factor), kind)
    for row in range(factor):
        for column in range(factor):
            total += image[row::factor, column::factor]
    return total / kind(factor**2)
