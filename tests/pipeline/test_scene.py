"""Scenes and pairs as datasets."""

from typing import Any

import numpy as np
import pytest
import rasterio.crs
import rioxarray  # noqa: F401 - an independent reader of the grid
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from sereno.pipeline.errors import DataError
from sereno.pipeline.scene import (
    MAX_REFLECTANCE,
    OPTICAL_UNITS,
    SAR_UNITS,
    Plate,
    bands_of,
    geobox_of,
    plates_of,
    to_scene,
    with_grid,
    with_plates,
)

GRID = GeoBox((4, 6), Affine(10, 0, 498_400, 0, -10, 5_040_000), "EPSG:32632")
DATA = np.arange(48, dtype=np.uint16).reshape(2, 4, 6) + 1
VALID = np.ones((4, 6), bool)


def test_a_scene_knows_its_grid_units_bands_and_provenance() -> None:
    scl = np.full((4, 6), 4, np.uint8)
    scene = to_scene(DATA, VALID, bands=("B02", "B03"), geobox=GRID, provenance={"item": "i"}, scl=scl)
    assert geobox_of(scene) == GRID
    assert bands_of(scene) == ("B02", "B03")
    assert scene["data"].dims == ("band", "y", "x")
    assert scene["data"].attrs["units"] == OPTICAL_UNITS
    assert scene.attrs["provenance"] == {"item": "i"}
    np.testing.assert_array_equal(scene["scl"], scl)


def test_sar_has_its_own_dim_and_units() -> None:
    scene = to_scene(-DATA.astype(np.int16), VALID, bands=("VV", "VH"), geobox=GRID, provenance={})
    assert scene["data"].dims == ("sar_band", "y", "x")
    assert bands_of(scene, "sar_band") == ("VV", "VH")
    assert scene["data"].attrs["units"] == SAR_UNITS
    assert "scl" not in scene


def test_what_is_not_valid_is_zero_and_nothing_else_changes() -> None:
    valid = VALID.copy()
    valid[1, 2] = False
    scene = to_scene(DATA, valid, bands=("B02", "B03"), geobox=GRID, provenance={})
    np.testing.assert_array_equal(scene["data"].values, np.where(valid, DATA, 0))
    assert DATA[0, 1, 2] != 0, "the input is left as it was"
    assert scene["data"].dtype == np.uint16


@pytest.mark.parametrize(
    ("data", "valid", "scl", "words"),
    [
        (DATA[:1], VALID, None, r"data is \(1, 4, 6\)"),
        (DATA, VALID[:2], None, r"valid is \(2, 6\)"),
        (DATA, VALID, np.zeros((2, 6), np.uint8), "scene of bands"),
        (DATA.astype(np.float32), VALID, None, "not float32"),
        (DATA.astype(np.int32), VALID, None, "not int32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(data: np.ndarray, valid: np.ndarray, scl: np.ndarray | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_scene(data, valid, bands=("B02", "B03"), geobox=GRID, provenance={}, scl=scl)


def make_plate(**changes: Any) -> Plate:
    values, valid = np.arange(70, dtype=np.uint16).reshape(2, 5, 7), np.ones((5, 7), bool)
    valid[1, 2] = False
    relief = np.linspace(0, 1, 48, dtype=np.float32).reshape(2, 4, 6)
    return Plate(("B02", "B03"), values, valid, np.arange(24.0).reshape(2, 3, 4), relief, (1.25, 0.8))._replace(**changes)


def test_a_scene_keeps_the_images_it_was_made_of() -> None:
    scene = to_scene(DATA, VALID, bands=("B02", "B03"), geobox=GRID, provenance={})
    given = (make_plate(), make_plate(bands=("B03",), values=make_plate().values[:1], relief=None, layer=1))
    kept = with_plates(scene, given)
    assert geobox_of(kept) == GRID
    assert bands_of(kept) == ("B02", "B03")
    for found, plate in zip(plates_of(kept), given, strict=True):
        assert (found.bands, found.ratio, found.layer) == (plate.bands, plate.ratio, plate.layer)
        np.testing.assert_array_equal(found.values, np.where(plate.valid, plate.values, 0))
        assert found.values.dtype == np.uint16
        for name in ("valid", "lattice", "relief"):
            np.testing.assert_array_equal(getattr(found, name), getattr(plate, name))
    assert plates_of(scene) == ()


def test_plates_of_sar_have_polarisations() -> None:
    scene = to_scene(-DATA.astype(np.int16), VALID, bands=("HH", "HV"), geobox=GRID, provenance={})
    (found,) = plates_of(with_plates(scene, (make_plate(bands=("HH", "HV"), values=-make_plate().values.astype(np.int16)),)))
    assert (found.bands, found.values.dtype) == (("HH", "HV"), np.int16)


def test_other_programs_find_the_crs_and_the_pixels() -> None:
    scene = to_scene(DATA, VALID, bands=("B02", "B03"), geobox=GRID, provenance={})
    assert scene["data"].rio.crs == rasterio.crs.CRS.from_epsg(32632)
    assert scene["data"].rio.transform() == GRID.transform
    assert scene.attrs["proj:code"] == "EPSG:32632"
    assert scene.attrs["spatial:bbox"] == [498_400, 5_040_000 - 40, 498_460, 5_040_000]
    assert scene["x"].values[0] == 498_405, "coordinates are pixel centres"
    assert scene["y"].values[0] == 5_040_000 - 5


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 50),
    cols=st.integers(1, 50),
    west=st.floats(-1e6, 1e6),
    north=st.floats(-1e7, 1e7),
    pixel=st.sampled_from([0.5, 1.0, 10.0, 20.0, 60.0]),
    zone=st.sampled_from([32601, 32632, 32760]),
)
def test_any_grid_comes_back_from_a_dataset(rows: int, cols: int, west: float, north: float, pixel: float, zone: int) -> None:
    grid = GeoBox((rows, cols), Affine(pixel, 0, west, 0, -pixel, north), f"EPSG:{zone}")
    assert geobox_of(with_grid(xr.Dataset({"v": (("y", "x"), np.zeros((rows, cols)))}), grid)) == grid


def test_a_dataset_without_a_grid_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="spatial:shape"):
        geobox_of(xr.Dataset())


def test_the_largest_reflectance_leaves_room_for_nodata() -> None:
    assert MAX_REFLECTANCE == np.iinfo(np.uint16).max - 1
