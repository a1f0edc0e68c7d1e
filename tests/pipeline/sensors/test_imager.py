"""Items of Landsat and MODIS become reflectance on the wanted grid, their bits classes, their holes invalid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasters import write_raster

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.groups import average_scene
from sereno.pipeline.imagers import CLEAR, CLOUD, IMAGERS, NODATA, QA
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord, Sensor
from sereno.pipeline.sensors.imager import read_scene
from sereno.pipeline.signing import Resolver
from sereno.pipeline.twins import TILE_M, TILE_PX, lay_footprints

LANDSAT_GRID = GeoBox((32, 48), Affine(30, 0, 499_215, 0, -30, 5_054_415), "EPSG:32632")
CLEAR_BITS, CLOUD_BITS, FILL_BITS = 21_824, 22_280, 1


def make_item(folder: Path, sensor: Sensor, arrays: dict[str, npt.NDArray[Any]], grid: GeoBox, **options: Any) -> ItemRecord:
    assets = {name: AssetRecord(href=str(write_raster(folder / f"{name}.tif", array, grid, **options))) for name, array in arrays.items()}
    known = {"item": "X", "collection": "c", "sensor": sensor, "time": "2021-06-03T10:00:00Z", "crs": "", "bbox": (8, 45, 9, 46)}
    return ItemRecord.model_validate({**known, "assets": assets})


def read(item: ItemRecord, grid: GeoBox, *bands: str, averaged: bool = False) -> Reading:
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,), averaged=averaged)
    return read_scene(record, grid, IngestSettings(attempts=1, bands=bands), Resolver("/"))


def make_landsat(folder: Path, **changes: Any) -> ItemRecord:
    red = np.random.default_rng(1).integers(8_000, 40_000, LANDSAT_GRID.shape).astype(np.uint16)
    red[0, 0], red[1, 1], red[3, 3] = 0, 7_000, 65_500
    bits = np.full(LANDSAT_GRID.shape, CLEAR_BITS, np.uint16)
    bits[2, 2], bits[5, 5] = FILL_BITS, CLOUD_BITS
    return make_item(folder, "landsat-oli", {"B04": red, QA: bits, **changes}, LANDSAT_GRID)


def test_numbers_of_landsat_become_reflectance_pixel_by_pixel(tmp_path: Path) -> None:
    item = make_landsat(tmp_path)
    scene = read(item, LANDSAT_GRID, "B04").scene
    with rasterio.open(item.assets["B04"].href) as file:
        dn = file.read(1).astype(float)
    expected = np.rint((dn * 0.0000275 - 0.2) * 10_000).clip(0)  # USGS 2022, LSDS-1619
    valid = scene["valid"].values
    np.testing.assert_array_equal(scene["data"].values[0][valid], expected[valid])
    assert [bool(valid[n, n]) for n in range(6)] == [False, True, False, False, True, True]  # fill, negative, fill by bits, out of range
    assert (scene["scl"].values[5, 5], scene["scl"].values[4, 4], scene["scl"].values[2, 2]) == (CLOUD, CLEAR, NODATA)
    facts = scene.attrs["provenance"]
    assert (facts["n_clamped"], facts["offset"]) == (1, -2000)
    assert facts["calibration"] == "surface reflectance = DN x 2.75e-05 + -0.2"


def test_a_synonym_reads_the_same_band(tmp_path: Path) -> None:
    item = make_landsat(tmp_path, B08=np.full(LANDSAT_GRID.shape, 20_000, np.uint16))
    item = item.model_copy(update={"assets": {**item.assets, "B8A": item.assets["B08"]}})
    assert (read(item, LANDSAT_GRID, "B8A").scene["data"].values == 3500).sum() > 1000


def test_a_band_that_the_product_does_not_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError, match=r"Landsat 8/9 Collection 2 Level-2 has no band B05; correct pipeline\.ingest\.bands, known are B01"
    ):
        read(make_landsat(tmp_path), LANDSAT_GRID, "B05")


def test_lost_bits_leave_the_bands_and_say_so(tmp_path: Path) -> None:
    item = make_landsat(tmp_path)
    item = item.model_copy(update={"assets": {"B04": item.assets["B04"]}})
    scene = read(item, LANDSAT_GRID, "B04").scene
    assert scene["valid"].values[2, 2]
    assert (scene["scl"].values == NODATA).all()
    assert "QA is lost" in scene.attrs["provenance"]["warnings"][0]


def test_what_is_averaged_is_the_area_weighted_mean_of_clear_pixels_of_modis(tmp_path: Path) -> None:
    """Against an independent reckoning: shares of area of each sinusoidal pixel in a coarse one, counted at points 10 m apart."""
    fine = GeoBox((96, 96), LANDSAT_GRID.transform, LANDSAT_GRID.crs)
    modis = lay_footprints(fine.pad(16)).geobox
    rng = np.random.default_rng(4)
    numbers = rng.integers(100, 6000, modis.shape).astype(np.int16)
    state = np.where(rng.random(modis.shape) < 0.2, 0b1001001, 0b1001000).astype(np.uint16)
    numbers[0, :] = IMAGERS["modis-09a1"].fill
    item = make_item(tmp_path, "modis-09a1", {"B04": numbers, QA: state}, modis)
    coarse = average_scene(read(item, fine, "B04", averaged=True).scene, 16, 0.75)
    points = lay_footprints(fine.zoom_to(resolution=10))
    place = points.place.reshape(6, 48, 6, 48).transpose(0, 2, 1, 3).reshape(6, 6, -1)
    inner = ~modis.transform * points.geobox.transform * (0.5, 0.5)  # the points' pixels are a part of the file's
    shift = int(inner[1]) * modis.shape.x + int(inner[0])
    rows, columns = np.divmod(place, points.geobox.shape.x)
    index = (rows * modis.shape.x + columns) + shift
    known = ((numbers != IMAGERS["modis-09a1"].fill) & (state & 3 == 0)).ravel()[index]
    share = known.mean(axis=-1)
    means = (numbers.ravel()[index] * known).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    clearly = np.abs(share - 0.75) > 0.03
    np.testing.assert_array_equal(coarse["valid"].values[clearly], (share > 0.75)[clearly])
    both = coarse["valid"].values & clearly
    assert both.sum() > 12
    assert np.abs(coarse["data"].values[0][both] - means[both]).max() < 80  # points 30 m apart err by some percent of 6000 at borders
    assert np.abs(coarse["data"].values[0][both] - means[both]).mean() < 20


def test_a_fine_image_of_another_grid_is_interpolated_and_an_averaged_one_never(tmp_path: Path) -> None:
    item = make_landsat(tmp_path, B03=np.tile(np.arange(48, dtype=np.uint16) * 500 + 8000, (32, 1)))
    beside = GeoBox((20, 20), LANDSAT_GRID.transform * Affine.translation(10.5, 5.5), LANDSAT_GRID.crs)
    stored = np.rint(((np.arange(48) * 500 + 8000) * 2.75e-5 - 0.2) * 10_000)
    between = read(item, beside, "B03").scene["data"].values[0, 10]
    nearest = read(item, beside, "B03", averaged=True).scene["data"].values[0, 10]
    assert set(nearest) <= set(stored)
    np.testing.assert_allclose(between, (stored[10:30] + stored[11:31]) / 2, atol=1.5)


def test_the_tile_grid_of_modis_has_2400_pixels() -> None:
    assert TILE_M / TILE_PX == pytest.approx(463.3127165, abs=1e-6)
