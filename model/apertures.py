"""Cameras with real coded apertures: masks and pictures from files, and what of a mask a cube is seen through.

A file enters as a `Pattern`, which settings and so checkpoints keep. In training each crop is seen through a random piece of the mask,
with the noise of its detector; elsewhere as if it lay under the mask's upper left corner, without noise.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sereno.model.config import ApertureSettings, Pattern, TrainSettings
from sereno.model.snapshot import Camera, make_camera, measure_cube
from sereno.pipeline.arrays import read_arrays
from sereno.pipeline.errors import ConfigError, DataError

APERTURE_SEED: Final = 0
"""Of the aperture that we made up."""
MADE_UP_PX: Final = 64
"""Side of the square that repeats in it, so that tiles of any multiple of it see what crops of this size saw."""
LEVELS: Final = 65_535
"""Steps from closed to open in which a pattern is kept: finer than any camera tells apart."""
PIECES: Final = 3
"""What tells the random numbers of pieces and noise from those of crops, which are seeded by (seed, 1, crop)."""
MASK_NAMES: Final = ("mask", "aperture")
"""Variables of a `.mat` file that are the aperture if it holds several images."""
PICTURE_NAMES: Final = ("meas", "measurement", "y")
"""The same of a measurement."""

Array = npt.NDArray[Any]


class Seen(NamedTuple):
    """Cubes and what a camera saw of them."""

    camera: Camera
    """The camera; its mask is (H, W), or (B, 1, H, W) where each cube was seen through another piece."""
    picture: Tensor
    """(B, H, W') what its detector measured."""


def see_cubes(cube: Tensor, settings: TrainSettings, crops: Sequence[int] | None = None) -> Seen:
    """What the camera of `settings` sees of cubes (B, C, H, W); `crops` are their numbers in training, None elsewhere.

    Raises:
        DataError: its aperture is smaller than they are.
    """
    aperture, size = settings.aperture or ApertureSettings(), (cube.shape[-2], cube.shape[-1])
    whole = open_pattern(aperture.pattern) if aperture.pattern else make_aperture(*size)
    _check_extent(whole, size, aperture)
    camera = make_camera(whole[: size[0], : size[1]].to(cube), cube.shape[1], shift_px=aperture.shift_px)
    if crops is None:
        return Seen(camera, measure_cube(camera, cube))
    generators = [np.random.default_rng((settings.seed, PIECES, crop)) for crop in crops]
    if aperture.pattern:
        pieces = [_cut_piece(whole, size, generator) for generator in generators]
        camera = camera._replace(mask=torch.stack(pieces)[:, None].to(cube))
    return Seen(camera, _add_noise(measure_cube(camera, cube), aperture, generators))


def make_aperture(rows: int, columns: int) -> Tensor:
    """The aperture that we made up, (rows, columns) of 0 and 1: the same whenever it is asked for, half of it open."""
    square = torch.randint(2, (MADE_UP_PX, MADE_UP_PX), generator=torch.Generator().manual_seed(APERTURE_SEED)).float()
    return square.repeat(-(-rows // MADE_UP_PX), -(-columns // MADE_UP_PX))[:rows, :columns]


def _cut_piece(mask: Tensor, size: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """A random piece of a mask, of `size`."""
    top, left = (int(generator.integers(whole - part + 1)) for whole, part in zip(mask.shape, size, strict=True))
    return mask[top : top + size[0], left : left + size[1]]


def _add_noise(picture: Tensor, aperture: ApertureSettings, generators: Sequence[np.random.Generator]) -> Tensor:
    """Pictures (B, H, W') with shot and read noise, each by its generator; shot noise is normal with the variance of Poisson's."""
    if aperture.electrons is None and not aperture.read_noise:
        return picture
    drawn = torch.stack([torch.from_numpy(generator.standard_normal(picture.shape[1:], np.float32)) for generator in generators])
    shot = picture.clamp_min(0) / aperture.electrons if aperture.electrons else torch.zeros_like(picture)
    return picture + (shot + aperture.read_noise**2).sqrt() * drawn.to(picture)


def _check_extent(mask: Tensor, size: tuple[int, int], aperture: ApertureSettings) -> None:
    if any(part > whole for part, whole in zip(size, mask.shape, strict=True)):
        raise DataError(
            f"images of {size[0]} x {size[1]} pixels do not fit under the aperture {aperture.file}, which has {mask.shape[0]} x "
            f"{mask.shape[1]}: lower 'train.crop_px', 'patch.size_px' or 'predict.tile_px', or take a larger mask"
        )


def load_aperture(settings: TrainSettings) -> TrainSettings:
    """`settings` with the values of the aperture's file in them, and of its path the name alone; as they are if they name none.

    Raises:
        MissingError: there is no such file.
        ConfigError: it is smaller than the crops.
        DataError: it is no mask.
    """
    aperture = settings.aperture
    if aperture is None or aperture.file is None or aperture.pattern is not None:
        return settings
    path = Path(aperture.file).expanduser()
    pattern = read_pattern(path)
    if min(pattern.shape) < settings.crop_px:
        raise ConfigError(
            f"'train.aperture.file' {path} has {pattern.shape[0]} x {pattern.shape[1]} pixels, but crops have {settings.crop_px} x "
            f"{settings.crop_px}: lower 'train.crop_px' or take a larger mask"
        )
    return settings.model_copy(update={"aperture": aperture.model_copy(update={"file": path.name, "pattern": pattern})})


def read_pattern(path: Path) -> Pattern:
    """The coded aperture in a file.

    Raises:
        MissingError: there is no such file.
        DataError: it is no image of shares of light.
    """
    stored = read_picture(path, what="aperture", names=MASK_NAMES)
    is_share = stored.dtype.kind == "f" or stored.max() <= 1
    shares = stored.astype(np.float64) / (1 if is_share else np.iinfo(stored.dtype).max)
    make_camera(torch.from_numpy(shares), 1, where=f"aperture {path}")
    if shares.max() > 1:
        raise DataError(
            f"aperture {path}: values up to {shares.max():g}, but a mask lets through shares of light from 0 up to 1: divide them"
        )
    levels = np.rint(shares * LEVELS).astype("<u2")
    values = base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()
    rows, columns = levels.shape
    return Pattern(shape=(rows, columns), values=values, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@functools.lru_cache(maxsize=4)
def open_pattern(pattern: Pattern) -> Tensor:
    """The shares of light of a pattern, (H, W) float32."""
    levels = np.frombuffer(zlib.decompress(base64.b64decode(pattern.values)), "<u2").reshape(pattern.shape)
    return torch.from_numpy((levels / LEVELS).astype(np.float32))


def read_picture(path: Path, *, what: str, names: Sequence[str]) -> Array:
    """The one image of two axes in a file, in the file's type; of several in a `.mat` the first that bears one of `names`.

    Raises:
        MissingError: there is no such file.
        DataError: it holds none, more than one, or what are no finite real numbers.
    """
    arrays = read_arrays(path, what=what)
    images = {name: squeezed for name, array in arrays.items() if (squeezed := _drop_axis(array)).ndim == 2 and min(squeezed.shape) > 1}
    chosen = next((images[name] for known in names for name in images if name.lower() == known), None)
    if chosen is None and len(images) == 1:
        (chosen,) = images.values()
    if chosen is None:
        held = ", ".join(f"{name or 'an array'} of shape {array.shape}" for name, array in arrays.items()) or "nothing"
        raise DataError(f"{what} {path} holds {held}, expected one image of rows x columns: save it alone, or under the name '{names[0]}'")
    if chosen.dtype.kind not in "uifb" or not np.isfinite(chosen).all():
        raise DataError(f"{what} {path} holds {chosen.dtype} values, expected finite real numbers at every pixel: mend or replace them")
    return chosen.astype(np.uint8) if chosen.dtype.kind == "b" else chosen


def _drop_axis(array: Array) -> Array:
    """An image of one band without its band."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array
