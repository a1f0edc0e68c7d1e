"""Arrays in files that other programs wrote: `.npy`, MATLAB's `.mat`, and images.

A path enters; arrays by name leave, as they lie in the file. What cannot be read is one line that says what helps.
"""

from __future__ import annotations

import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from sereno.pipeline.errors import DataError, MissingError

Arrays = dict[str, npt.NDArray[Any]]
UNNAMED: Final = ""
"""Name of the one array of a file that names none."""
HDF5: Final = b"\x89HDF\r\n\x1a\n"
"""How files of MATLAB 7.3 go on after their text, and all other HDF5 files begin."""
DAMAGES: Final = (
    *(ValueError, TypeError, KeyError, IndexError, EOFError, OSError, MemoryError, OverflowError, SyntaxError),
    *(struct.error, zlib.error, tokenize.TokenError, MatReadError),
)
"""What NumPy and SciPy raise for files that are cut short or changed."""


def read_arrays(path: Path, *, what: str = "file") -> Arrays:
    """The arrays in a file by name; images are (band, y, x). `what` says in messages what it should be.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be read.
    """
    if not path.is_file():
        raise MissingError(f"{what} {path} does not exist: correct its path")
    return READERS.get(path.suffix.lower(), read_image)(path, what)


def read_npy(path: Path, what: str) -> Arrays:
    """The array of a `.npy` file.

    Raises:
        DataError: it holds none, or Python objects, which are never loaded.
    """
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGES as error:
        raise DataError(f"{what} {path} is no array that can be read ({_in_one_line(error)}): write it again with numpy.save") from None
    return {UNNAMED: values}


def read_mat(path: Path, what: str) -> Arrays:
    """The arrays of a `.mat` file up to version 7, numbers or not.

    Raises:
        DataError: it is of version 7.3, or damaged, or something else.
    """
    too_new = f"{what} {path} is of MATLAB 7.3, which is not read: save it with `save -v7`, or as .npy"
    if _is_hdf5(path):
        raise DataError(too_new)
    try:
        content: Mapping[str, Any] = loadmat(path)
    except NotImplementedError:  # what SciPy raises where the header says so
        raise DataError(too_new) from None
    except DAMAGES as error:
        raise DataError(
            f"{what} {path} is no MATLAB file that can be read ({_in_one_line(error)}): copy it again, or save it as .npy"
        ) from None
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def read_image(path: Path, what: str) -> Arrays:
    """The bands of an image.

    Raises:
        DataError: it is no image that can be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pictures of a camera lie nowhere
            with rasterio.open(path) as source:
                return {UNNAMED: source.read()}
    except RasterioIOError as error:
        raise DataError(
            f"{what} {path} is no image that can be read ({_in_one_line(error)}): give .mat, .npy, GeoTIFF or PNG, and copy it again if it "
            "is one"
        ) from None


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512 + len(HDF5))
    return HDF5 in (head[: len(HDF5)], head[512:])


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


READERS: Final[Mapping[str, Callable[[Path, str], Arrays]]] = {".npy": read_npy, ".mat": read_mat}
"""By suffix; everything else is an image."""
