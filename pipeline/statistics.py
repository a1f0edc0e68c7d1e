"""Mean and spread of what networks learn from, over pixels that are usable, exact to the last digit.

Arrays of patches and of their mask enter; sums leave, and what they make. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sereno.pipeline.config import TaskName
from sereno.pipeline.patches import CLOUDY_FROM
from sereno.pipeline.samples import JUDGED_BY, MASK_CHANNELS_OF
from sereno.pipeline.scene import REFLECTANCE_SCALE

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sums:
    """What is known of some pixels of each band; whole numbers, so that no order of adding them matters."""

    count: int
    """Pixels of a band."""
    total: tuple[int, ...]
    """Sum of the stored values, by band."""
    squares: tuple[int, ...]
    """Sum of their squares, by band."""

    def __add__(self, other: Sums) -> Sums:
        """Both together."""
        pairs = ((self.total, other.total), (self.squares, other.squares))
        return Sums(self.count + other.count, *(tuple(a + b for a, b in zip(*both, strict=True)) for both in pairs))

    @property
    def mean(self) -> list[float]:
        """Mean reflectance by band, 1.0 = 100 %."""
        return [value / (self.count * REFLECTANCE_SCALE) for value in self.total]

    @property
    def std(self) -> list[float]:
        """Standard deviation of reflectance by band."""
        scale = self.count * REFLECTANCE_SCALE
        return [math.sqrt(self.count * square - value**2) / scale for square, value in zip(self.squares, self.total, strict=True)]


def find_usable(mask: Array, task: TaskName) -> npt.NDArray[np.bool_]:
    """Which pixels of patches are valid and not covered: mask (patch, ..., channel, row, col) uint8 -> (patch, ..., row, col)."""
    channels = dict(zip(MASK_CHANNELS_OF[task], np.moveaxis(mask, -3, 0), strict=True))
    covers, valid = JUDGED_BY[task]
    rules = [channels[valid] > 0, *(channels[name] < CLOUDY_FROM for name in covers)]
    return np.asarray(np.logical_and.reduce(rules), bool)


def fit_usable(usable: npt.NDArray[np.bool_], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """`usable` (..., row, col) on pixels so many times finer, or coarser, that it has `shape` (row, col).

    A coarse pixel is usable where all fine ones in it are.
    """
    rows, columns = usable.shape[-2:]
    if rows < shape[0]:
        return usable.repeat(shape[0] // rows, axis=-2).repeat(shape[1] // columns, axis=-1)
    blocks = usable.reshape(*usable.shape[:-2], shape[0], rows // shape[0], shape[1], columns // shape[1])
    return np.asarray(blocks.all(axis=(-3, -1)))


def sum_pixels(values: Array, usable: npt.NDArray[np.bool_]) -> Sums:
    """Sums over the `usable` pixels (patch, ..., row, col) of stored reflectance (patch, ..., band, row, col) uint16."""
    total, squares = [], []
    for band in np.moveaxis(values, -3, 0):
        chosen = band[usable].astype(np.uint64)
        total.append(int(chosen.sum()))
        squares.append(int((chosen * chosen).sum()))
    return Sums(int(usable.sum()), tuple(total), tuple(squares))
