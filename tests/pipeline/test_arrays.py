"""Laws of reading arrays of other programs: one array in every format is the same, and a bad file is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from scipy.io import savemat

from sereno.pipeline.arrays import UNNAMED, read_arrays
from sereno.pipeline.errors import DataError, MissingError

MASK = np.random.default_rng(3).integers(0, 256, (20, 30)).astype(np.uint8)


def write_image(path: Path, driver: str) -> None:
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "w", driver, 30, 20, 1, dtype="uint8") as file:
        file.write(MASK, 1)


@pytest.mark.parametrize(
    ("name", "write", "key"),
    [
        ("a.npy", lambda path: np.save(path, MASK), UNNAMED),
        ("a.mat", lambda path: savemat(path, {"mask": MASK}), "mask"),
        ("a.MAT", lambda path: savemat(path, {"mask": MASK}, do_compression=True), "mask"),
        ("a.mat", lambda path: savemat(path, {"mask": MASK}, format="4"), "mask"),
        ("a.tif", lambda path: write_image(path, "GTiff"), UNNAMED),
        ("a.png", lambda path: write_image(path, "PNG"), UNNAMED),
    ],
)
def test_one_array_in_every_format_is_the_same(tmp_path: Path, name: str, write: Any, key: str) -> None:
    write(tmp_path / name)
    arrays = read_arrays(tmp_path / name)
    assert arrays.keys() == {key}
    np.testing.assert_array_equal(arrays[key].squeeze(), MASK)
    assert arrays[key].dtype == np.uint8


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy is no array that can be read \(Object arrays.*numpy\.save"):
        read_arrays(tmp_path / "a.npy", what="mask")


@pytest.mark.parametrize("lead", [0, 512])
def test_a_file_of_matlab_7_3_is_named_as_such(tmp_path: Path, lead: int) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(lead)[:lead] + b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(DataError, match=r"^mask .*a\.mat is of MATLAB 7\.3, which is not read: save it with `save -v7`, or as \.npy$"):
        read_arrays(path, what="mask")


@pytest.mark.parametrize("name", ["a.npy", "a.mat", "packed.mat", "a.png", "a.tif"])
def test_a_file_cut_short_or_changed_anywhere_is_one_line_or_still_an_array(tmp_path: Path, name: str) -> None:
    path, generator = tmp_path / name, np.random.default_rng(5)
    if path.suffix == ".npy":
        np.save(path, MASK)
    elif path.suffix == ".mat":
        savemat(path, {"mask": MASK, "note": "words"}, do_compression=name.startswith("packed"))
    else:
        write_image(path, {".png": "PNG", ".tif": "GTiff"}[path.suffix])
    whole = path.read_bytes()
    cuts = [whole[: int(end)] for end in generator.integers(0, len(whole), 60)]
    flips = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in map(int, generator.integers(0, min(len(whole), 400), 60))]
    said = [message for content in [*cuts, *flips] if (message := try_reading(path, content))]
    assert len(said) >= 40
    assert all(message.startswith(f"mask {path} is ") and "\n" not in message for message in said)


def try_reading(path: Path, content: bytes) -> str:
    """What is said of a file with that content; empty if it can be read."""
    path.write_bytes(content)
    try:
        read_arrays(path, what="mask")
    except DataError as error:
        return str(error)
    return ""


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"^aperture .*a\.npy does not exist: correct its path"):
        read_arrays(tmp_path / "a.npy", what="aperture")
