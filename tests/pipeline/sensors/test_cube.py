"""Hyperspectral cubes: one cube in three formats is one scene, and what is wrong with a file is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from scipy.io import savemat

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.scene import bands_of, geobox_of
from sereno.pipeline.sensors.cube import APART_M, NOWHERE, PLACES, Cube, find_scale, list_cube, open_cube, read_scene
from sereno.pipeline.signing import Resolver

WAVELENGTHS = (450.0, 550.0, 650.5)
BANDS = ("450nm", "550nm", "650.5nm")
CUBE = np.random.default_rng(1).integers(0, 10_000, (3, 6, 5)).astype(np.uint16)


def write_sidecar(path: Path, text: str = "450\n550\n650.5\n") -> None:
    path.with_name(f"{path.stem}.wavelengths.txt").write_text(text)


def write_npy(path: Path) -> None:
    np.save(path, np.moveaxis(CUBE, 0, -1))
    write_sidecar(path)


def write_mat(path: Path) -> None:
    savemat(path, {"cube": np.moveaxis(CUBE, 0, -1), "wavelengths": np.array(WAVELENGTHS) / 1000})


def write_image(path: Path, crs: str | None = "EPSG:32632", descriptions: tuple[str, ...] = ("450 nm", "550", "650.5nm")) -> None:
    place = {"crs": crs, "transform": Affine(30, 0, 600_000, 0, -30, 5_000_000)} if crs else {}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint16", count=3, height=6, width=5, **place) as file:
        file.write(CUBE)
        for band, words in enumerate(descriptions, 1):
            file.set_band_description(band, words)


@pytest.mark.parametrize(("name", "write"), [("a.npy", write_npy), ("a.mat", write_mat), ("a.tif", write_image)])
def test_one_cube_in_three_formats_is_one_scene(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    cube = open_cube(tmp_path / name)
    np.testing.assert_array_equal(cube.values, CUBE)
    assert (cube.wavelengths_nm, cube.bands) == (WAVELENGTHS, BANDS)
    lock = list_cube(tmp_path, "a")
    assert (lock.task, lock.groups[0].scenes) == ("snapshot-reconstruction", {"cube": "a"})
    scene, entries = read_scene(lock.scene("a"), lock.grid.to_geobox(), IngestSettings(cube_scale=10_000), Resolver(str(tmp_path)))
    np.testing.assert_array_equal(scene["data"].values, CUBE)
    assert (bands_of(scene), scene["valid"].values.all()) == (BANDS, True)
    assert [entry.status for entry in entries] == ["used", "used"]
    assert scene.attrs["provenance"]["items"][0]["wavelengths_nm"] == list(WAVELENGTHS)


def test_an_image_keeps_its_place_and_the_others_lie_far_apart(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    write_npy(tmp_path / "b.npy")
    with pytest.warns(NotGeoreferencedWarning):
        write_image(tmp_path / "c.tif", crs=None)
    grids = {name: list_cube(tmp_path, name).grid.to_geobox() for name in "abc"}  # without a warning
    assert (grids["a"].crs.epsg, grids["a"].transform.a, grids["a"].transform.c) == (32632, 30, 600_000)
    assert (grids["b"].crs.epsg, grids["b"].transform.a, grids["b"].transform.c) == (3395, 1, 20_000)
    assert (grids["c"].crs.epsg, grids["c"].transform.a, grids["c"].transform.c) == (3395, 1, 40_000)
    assert grids["b"].boundingbox.bottom == 0


def test_cubes_that_lie_nowhere_fill_their_ground_and_are_refused_beyond_it(tmp_path: Path) -> None:
    last = APART_M * (PLACES - 1) + APART_M // 2
    assert last < Transformer.from_crs("EPSG:4326", NOWHERE, always_xy=True).transform(180, 0)[0]
    for name, columns in (("fits", APART_M // 2), ("wide", APART_M // 2 + 1)):
        np.save(tmp_path / f"{name}.npy", np.zeros((1, columns, 3), np.uint16))
        write_sidecar(tmp_path / f"{name}.npy")
    assert list_cube(tmp_path, "fits").grid.to_geobox().boundingbox.right == APART_M // 2
    with pytest.raises(DataError, match=r"wide.npy states no place and has 10001 columns, .* \(expected 10000 at most\): cut it"):
        list_cube(tmp_path, "wide")


def test_a_folder_with_more_cubes_than_there_is_room_for_is_refused_but_for_those_with_a_place(tmp_path: Path) -> None:
    for number in range(PLACES - 1):
        (tmp_path / f"{number:04d}.npy").touch()
    write_npy(tmp_path / "last.npy")
    write_npy(tmp_path / "more.npy")
    write_image(tmp_path / "placed.tif")
    west, _, east, _ = list_cube(tmp_path, "last").scenes["last"].items[0].bbox
    assert 179 < west < east < 180
    with pytest.raises(DataError, match=r"more.npy states no place and is number 1001 of its folder, which has room for 1000"):
        list_cube(tmp_path, "more")
    assert list_cube(tmp_path, "placed").grid.crs == "EPSG:32632"


def test_bands_may_be_chosen_and_what_is_not_finite_is_not_valid(tmp_path: Path) -> None:
    values: npt.NDArray[Any] = np.moveaxis(CUBE, 0, -1) / 10_000
    values[1, 2, 0] = np.nan
    values[3, 3, 2] = -0.5
    np.save(tmp_path / "a.npy", values)
    write_sidecar(tmp_path / "a.npy")
    lock = list_cube(tmp_path, "a")
    settings = IngestSettings(bands=("650.5nm", "450nm"))
    scene, _ = read_scene(lock.scene("a"), lock.grid.to_geobox(), settings, Resolver(str(tmp_path)))
    assert bands_of(scene) == settings.bands
    assert np.argwhere(~scene["valid"].values).tolist() == [[1, 2]]
    assert (scene["data"].values[0, 3, 3], scene.attrs["provenance"]["n_clamped"]) == (0, 1)
    assert geobox_of(scene) == lock.grid.to_geobox()
    with pytest.raises(MissingError, match=r"has no band 700nm; .* known are 450nm, 550nm, 650\.5nm"):
        read_scene(lock.scene("a"), lock.grid.to_geobox(), IngestSettings(bands=("700nm",)), Resolver(str(tmp_path)))


def test_integers_reach_from_0_to_1_unless_a_scale_is_given() -> None:
    assert [find_scale(np.dtype(name)) for name in ("uint8", "uint16", "float32")] == [255, 65535, 1]


def test_a_cube_that_has_changed_since_the_lock_is_not_used(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy")
    lock = list_cube(tmp_path, "a")
    np.save(tmp_path / "a.npy", np.moveaxis(CUBE, 0, -1) + np.uint16(1))
    scene, entries = read_scene(lock.scene("a"), lock.grid.to_geobox(), IngestSettings(), Resolver(str(tmp_path)))
    assert not scene["valid"].values.any()
    assert "checksum differs from the lock" in entries[0].reason


def save_bare(path: Path) -> None:
    np.save(path, CUBE)


def save_many(path: Path) -> None:
    savemat(path, {"a": CUBE, "b": CUBE})


def save_words(path: Path) -> None:
    np.save(path, CUBE)
    write_sidecar(path, "blue green red")


def save_fewer(path: Path) -> None:
    np.save(path, CUBE)
    write_sidecar(path, "450 550")


def save_text(path: Path) -> None:
    path.write_text("no cube")


def save_unnamed(path: Path) -> None:
    write_image(path, descriptions=("450", "green", "650"))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.npy", save_bare, r"states no wavelengths: write a\.wavelengths\.txt beside it"),
        ("a.tif", save_unnamed, "states no wavelengths"),
        ("a.mat", save_many, r"holds 2 arrays of three dims \(a, b\), expected one"),
        ("a.npy", save_words, "must hold numbers alone"),
        ("a.npy", save_fewer, r"shape \(3, 6, 5\), and 2 wavelengths are stated"),
        ("a.npy", save_text, "is no array that can be read"),
        ("a.mat", save_text, "is no MATLAB file that can be read"),
        ("a.tif", save_text, "is no image that can be read"),
    ],
)
def test_what_is_wrong_with_a_cube_is_one_line_with_its_name(tmp_path: Path, name: str, write: Any, words: str) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=words) as caught:
        list_cube(tmp_path, "a")
    assert "\n" not in str(caught.value)
    assert "/a." in str(caught.value)


def test_a_cube_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy")
    with pytest.raises(MissingError, match="holds no cube 'b'; it has a"):
        list_cube(tmp_path, "b")
    assert Cube(CUBE, WAVELENGTHS, None).bands == BANDS
