"""A scene is interpolated once, from the image that the sensor saw, whatever field is taken out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.geometry import resample_sar
from sereno.pipeline.plates import make_lattice, place_plates, place_scene
from sereno.pipeline.radiometry import power_to_centi_db, to_reflectance
from sereno.pipeline.scene import Plate, geobox_of, to_scene, with_plates
from sereno.pipeline.shiftfield import N_TERMS, ShiftField, make_shift
from sereno.pipeline.store import open_dataset, save_dataset

GRID = GeoBox((90, 70), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32650")
Array = Any
STEP = 100
"""Stored units per row or column of an image whose values are its own positions."""


def find_flat(rows: Array, cols: Array) -> tuple[Array, Array]:
    """A geocoding: the image is turned by 12 degrees and a little finer along columns."""
    sine, cosine = np.sin(np.radians(12)), np.cos(np.radians(12))
    return 60 + cosine * rows + sine * cols, 70 + 1.04 * (cosine * cols - sine * rows)


def draw_relief() -> Array:
    y, x = np.mgrid[:90, :70]
    return np.stack([np.zeros((90, 70)), 4 * np.sin(x / 7) * np.cos(y / 9)]).astype(np.float32)


def make_plate(values: Array, relief: Array | None = None, **changes: Any) -> Plate:
    """A plate of all rows and columns of `values`, all of them valid, in optical units."""
    bands = tuple(f"B{number + 1}" for number in range(len(values)))
    valid = np.ones(values.shape[1:], bool)
    return Plate(bands, values, valid, make_lattice(find_flat, (90, 70)), relief, (1.0, 1.0))._replace(**changes)


def make_ramps() -> Array:
    """Rows and columns as values."""
    return (1000 + STEP * np.mgrid[:200, :220]).astype(np.uint16)


def to_positions(reflectance: Array) -> Array:
    return (reflectance * 1e4 - 1000) / STEP


def make_optical(*plates: Plate) -> xr.Dataset:
    """A scene whose gridded data are what its plates give without a field."""
    bands = tuple(dict.fromkeys(band for plate in plates for band in plate.bands))
    values, valid = place_plates(plates, bands, source=GRID, target=GRID)
    data = np.rint(values * 1e4).astype(np.uint16)
    return with_plates(to_scene(data, valid, bands=bands, geobox=GRID, provenance={}), plates)


def make_field(degree: Any, largest_px: float = 3.0) -> ShiftField:
    start, rng = make_shift(GRID.shape), np.random.default_rng(5)
    dy, dx = (tuple(float(value) for value in rng.uniform(-largest_px, largest_px, N_TERMS[degree])) for _ in range(2))
    return ShiftField(degree, dy, dx, start.centre, start.scale_px)


@pytest.mark.parametrize("degree", ["shift", "affine", "quadratic"])
@pytest.mark.parametrize("has_relief", [False, True])
def test_a_field_is_composed_with_the_geocoding_within_a_hundredth_of_a_pixel(degree: Any, has_relief: bool) -> None:
    relief, field = draw_relief() if has_relief else None, make_field(degree)
    values, valid = place_scene(make_optical(make_plate(make_ramps(), relief)), GRID, field)
    rows, cols = np.mgrid[:90, :70].astype(float)
    dy, dx = field.evaluate(rows, cols)
    expected = np.stack(find_flat(rows + dy, cols + dx)) + (0 if relief is None else relief)  # relief stays where the ground is
    assert valid.all()
    np.testing.assert_allclose(to_positions(values), expected, atol=0.01)


def test_without_a_field_a_scene_is_what_its_data_say() -> None:
    scene = make_optical(make_plate(np.random.default_rng(1).integers(0, 60_000, (3, 200, 220)).astype(np.uint16), draw_relief()))
    for field in (None, make_shift(GRID.shape)):
        values, valid = place_scene(scene, GRID, field)
        np.testing.assert_array_equal(np.rint(values * 1e4), scene["data"].values)
        np.testing.assert_array_equal(valid, scene["valid"].values)


def test_a_part_of_the_grid_is_placed_as_the_whole() -> None:
    scene, part = make_optical(make_plate(make_ramps(), draw_relief())), GRID[20:60, 15:50]
    whole, inner = make_shift(GRID.shape, 2.3, -1.7), make_shift(part.shape, 2.3, -1.7)
    np.testing.assert_allclose(place_scene(scene, part, inner)[0], place_scene(scene, GRID, whole)[0][:, 20:60, 15:50], atol=1e-6)


def test_beyond_the_edge_of_the_grid_the_image_goes_on() -> None:
    scene = make_optical(make_plate(make_ramps(), draw_relief()))
    values, valid = place_scene(scene, GRID, make_shift(GRID.shape, 30, -25))  # 300 m at 10 m: what the search for Gaofen may find
    rows, cols = np.mgrid[:90, :70].astype(float)
    assert valid.all()
    np.testing.assert_allclose(to_positions(values), np.stack(find_flat(rows + 30, cols - 25)) + draw_relief(), atol=0.01)


def test_interpolating_once_keeps_the_variance_of_speckle_that_one_interpolation_keeps() -> None:
    power = np.random.default_rng(2).gamma(1, 1, (1, 200, 220)).astype(np.float32)
    stored, _ = power_to_centi_db(power, np.ones(power.shape, bool))
    plate = make_plate(stored)._replace(bands=("HH",))
    once, valid = place_plates((plate,), ("HH",), source=GRID, target=GRID)
    data, _ = power_to_centi_db(once, valid)
    gridded = to_scene(data, valid, bands=("HH",), geobox=GRID, provenance={})
    field = make_shift(GRID.shape, 0.5, 0.5)
    rows, cols = np.mgrid[:90, :70] + 0.5
    parts = [place - np.floor(place) for place in find_flat(rows, cols)]
    predicted = np.mean(np.prod([(1 - part) ** 2 + part**2 for part in parts], axis=0))  # of the four weights squared: 0.44 of 1
    inner = (0, slice(2, -2), slice(2, -2))
    kept = place_scene(with_plates(gridded, (plate,)), GRID, field)[0][inner].var()
    twice = place_scene(gridded, GRID, field)[0][inner].var()
    assert kept == pytest.approx(predicted, rel=0.06)
    assert twice < 0.6 * predicted


def test_layers_are_laid_in_their_order_and_a_pixel_takes_all_bands_of_one_image() -> None:
    left, right = make_ramps(), make_ramps() + 7
    seen = np.ones((200, 220), bool)
    seen[:, 110:] = False
    scene = make_optical(make_plate(left, valid=seen), make_plate(right, layer=1))
    values, valid = place_scene(scene, GRID, make_shift(GRID.shape, 1.5, 2.5))
    rows, cols = find_flat(*(np.mgrid[:90, :70] + np.array([1.5, 2.5])[:, None, None]))
    offset = to_positions(values) - np.stack([rows, cols])
    assert valid.all()
    np.testing.assert_allclose(offset[:, cols < 109], 0, atol=0.01)
    np.testing.assert_allclose(offset[:, cols > 109.01], 0.07, atol=0.01)


def test_images_of_one_layer_count_where_all_of_them_are_valid() -> None:
    seen = np.ones((200, 220), bool)
    seen[:100] = False
    colour, pan = make_plate(make_ramps()), make_plate(make_ramps()[:1], valid=seen, bands=("PAN",))
    other = make_plate(np.full((3, 200, 220), 5000, np.uint16), bands=("B1", "B2", "PAN"), layer=1)
    values, valid = place_scene(make_optical(colour, pan, other), GRID)
    rows, _ = find_flat(*np.mgrid[:90, :70])
    assert valid.all()
    np.testing.assert_allclose(values[:, rows < 100], 0.5)
    np.testing.assert_allclose(values[0, rows > 100.01], values[2, rows > 100.01])
    assert not place_plates((colour,), ("B1", "B2", "PAN"), source=GRID, target=GRID)[1].any(), "a band is missing"


def test_where_a_position_is_not_known_nothing_is() -> None:
    relief = draw_relief()
    relief[:, 40:50, 30:35] = np.nan
    values, valid = place_scene(make_optical(make_plate(make_ramps(), relief)), GRID, make_shift(GRID.shape, 3.2, 1.1))
    np.testing.assert_array_equal(~valid, np.isnan(relief[0]))
    assert (values[:, ~valid] == 0).all()


def test_beside_the_image_nothing_is_known() -> None:
    _, valid = place_scene(make_optical(make_plate(make_ramps()[:, :100])), GRID)
    rows, _ = find_flat(*np.mgrid[:90, :70])
    np.testing.assert_array_equal(valid, rows <= 99)


def test_a_finer_image_is_averaged_as_it_is_interpolated() -> None:
    image = np.random.default_rng(3).integers(0, 20_000, (1, 400, 440)).astype(np.uint16)
    fine = make_plate(image, lattice=2 * make_lattice(find_flat, (90, 70)) + 0.5)
    sampled, averaged = (place_scene(make_optical(fine._replace(ratio=(ratio, ratio))), GRID)[0] for ratio in (1.0, 2.0))
    assert averaged.mean() == pytest.approx(sampled.mean(), rel=0.02)
    assert averaged.std() < 0.6 * sampled.std()


def test_a_coarser_grid_gets_means_and_not_single_pixels_of_an_image() -> None:
    noise = np.random.default_rng(6).integers(9200, 10_800, (1, 200, 220)).astype(np.uint16)
    scene, part = make_optical(make_plate(noise)), GRID[:88, :68]
    values, valid = place_scene(scene, part.zoom_out(4))
    fine = scene["data"].values[:, :88, :68] / 1e4
    assert valid.all()
    np.testing.assert_allclose(values, fine.reshape(1, 22, 4, 17, 4).mean(axis=(2, 4)), rtol=0.02)


def test_a_scene_comes_back_from_its_store_with_its_plates_and_the_same_bytes(tmp_path: Path) -> None:
    relief = draw_relief()
    relief[:, 3, 4] = np.nan
    scene = make_optical(make_plate(make_ramps(), relief), make_plate(make_ramps()[:1], bands=("PAN",)))
    for name in ("one", "two"):
        save_dataset(scene, tmp_path / name / "s.json", kind="scene", summary={})
    opened, field = open_dataset(tmp_path / "one" / "s.json", kind="scene"), make_field("affine")
    assert geobox_of(opened) == GRID
    for ours, theirs in zip(place_scene(opened, GRID, field), place_scene(scene, GRID, field), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    one, two = (sorted(file for file in (tmp_path / name).rglob("*") if file.is_file()) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_a_scene_without_plates_is_cropped_untouched_or_interpolated_once() -> None:
    data = np.random.default_rng(4).integers(0, 9000, (2, 90, 70)).astype(np.uint16)
    scene = to_scene(data, np.ones((90, 70), bool), bands=("B02", "B03"), geobox=GRID, provenance={})
    values, valid = place_scene(scene, GRID[10:50, 20:60])
    np.testing.assert_array_equal(values, to_reflectance(data[:, 10:50, 20:60]))
    assert valid.all()
    field = make_field("affine")
    expected = resample_sar(to_reflectance(data), np.ones((90, 70), bool), source=GRID, target=GRID, field=field)
    np.testing.assert_array_equal(place_scene(scene, GRID, field)[0], expected[0])
