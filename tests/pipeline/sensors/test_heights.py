"""Heights are those of their file, above the ellipsoid where that can be told; what is not known is said with the remedy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasters import write_raster
from safe_product import EPSG

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.sensors.heights import describe_surface, read_ellipsoidal_heights, read_heights

GRID = GeoBox((100, 90), Affine(10, 0, 300_000, 0, -10, 4_650_000), EPSG)


def write_dem(path: Path, values: Any, grid: GeoBox, crs: str = "") -> Path:
    return write_raster(path, values.astype(np.float32), GeoBox(grid.shape, grid.transform, crs or grid.crs), nodata=-9999)


def test_heights_are_interpolated_and_holes_stay_holes(tmp_path: Path) -> None:
    plane = np.add.outer(np.arange(140.0), 2 * np.arange(130.0))
    plane[60:70, 60:70] = -9999
    heights = read_heights(str(write_dem(tmp_path / "dem.tif", plane, GRID.pad(20))), GRID)
    np.testing.assert_allclose(heights[0, :5], [60, 62, 64, 66, 68], atol=1e-3)
    assert np.isnan(heights[40:50, 40:50]).all()
    assert np.isnan(heights).sum() < 150


def test_a_dem_that_is_not_there_or_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"absent\.tif cannot be opened or read"):
        read_heights(str(tmp_path / "absent.tif"), GRID)
    far = GeoBox((20, 20), Affine(10, 0, 0, 0, -10, 0), EPSG)
    with pytest.raises(DataError, match="holds no height in the area"):
        read_heights(str(write_dem(tmp_path / "far.tif", np.zeros((20, 20)), far)), GRID)


@pytest.mark.parametrize(("crs", "datum"), [("EPSG:4326", None), ("EPSG:4979", "ellipsoid"), ("EPSG:9707", "EGM96 height")])
def test_the_datum_of_heights_is_told_if_the_file_states_it(tmp_path: Path, crs: str, datum: str | None) -> None:
    grid = GeoBox((10, 10), Affine(0.001, 0, 12, 0, -0.001, 42), "EPSG:4326")
    assert describe_surface(str(write_dem(tmp_path / "dem.tif", np.zeros((10, 10)), grid, crs))).datum == datum


@pytest.mark.parametrize(
    ("crs", "geoid_m", "height", "words"),
    [
        ("EPSG:4326", None, 100, "dem.tif, taken as above the ellipsoid"),
        ("EPSG:4326", 40, 140, "dem.tif, the geoid geoid.tif added"),
        ("EPSG:9707", 40, 140, "dem.tif, the geoid geoid.tif added"),
        ("EPSG:4979", 40, 100, "dem.tif, above the ellipsoid"),
    ],
)
def test_the_geoid_is_added_unless_heights_are_above_the_ellipsoid(
    tmp_path: Path, crs: str, geoid_m: float | None, height: float, words: str
) -> None:
    around = GeoBox((40, 40), Affine(0.001, 0, 12, 0, -0.001, 42), "EPSG:4326")
    dem = write_dem(tmp_path / "dem.tif", np.full((40, 40), 100.0), around, crs)
    settings = IngestSettings(dem=str(dem))
    if geoid_m is not None:
        geoid = write_dem(tmp_path / "geoid.tif", np.full((40, 40), geoid_m), around)
        settings = settings.model_copy(update={"geoid": str(geoid)})
    heights = read_ellipsoidal_heights(around[10:30, 10:30], settings, where="item X")
    np.testing.assert_allclose(heights.values_m, height)
    assert heights.words == words
    assert not heights.warnings


def test_heights_above_the_sea_without_a_geoid_and_ground_without_a_height_are_told_with_the_remedy(tmp_path: Path) -> None:
    around = GeoBox((40, 40), Affine(0.001, 0, 12, 0, -0.001, 42), "EPSG:4326")
    dem = write_dem(tmp_path / "dem.tif", np.zeros((40, 40)), around, "EPSG:9707")
    found = read_ellipsoidal_heights(around.pad(10)[:, 10:50], IngestSettings(dem=str(dem)), where="item X")
    assert found.words.startswith("heights of dem.tif are above EGM96 height")
    assert found.warnings[0].endswith("set pipeline.ingest.geoid")
    assert found.warnings[1] == (
        "item X: dem.tif has no height on 33.3% of the ground, which is not used: give a pipeline.ingest.dem that covers it"
    )
