"""What calibration of Gaofen depends on, with numbers so far apart that a mistake shows: incidence, side of view, gains, files gone."""

import itertools
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.config import BandCalibration, GaofenSettings, IngestSettings
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.sensors import gaofen3, gaofen6
from sereno.pipeline.sensors.gaofen3_metadata import parse_metadata
from sereno.pipeline.sensors.gaofen6_calibration import ESUN, GAINS, compute_reflectance_factor
from sereno.pipeline.sensors.orthorectification import open_image
from sereno.pipeline.signing import Resolver
from sereno.pipeline.sun import compute_distance
from sereno.pipeline.views import Terrain

SIZE = 160
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
GROUND = Terrain(BOX, np.full((SIZE, SIZE), 300, np.float32))
CORNER = BOX[20:60, 90:140]
"""In the upper right of the images, whose columns there are far from their rows."""
FLIGHT = products.Pass(datetime(2020, 6, 3, 22, 10, tzinfo=UTC), 4266581)
GAMMA0 = 0.1


def write_sar(folder: Path, level: str = "L1A") -> Path:
    radar = products.Radar(gsd_m=8, incidence_deg=(20, 60), level=level)
    return products.write_gaofen3(folder, GROUND, {"HH": np.full((SIZE, SIZE), GAMMA0, np.float32)}, FLIGHT, radar=radar)


def write_optical(folder: Path) -> Path:
    return products.write_gaofen6_pms(folder, GROUND, np.full((4, SIZE, SIZE), 0.2, np.float32), FLIGHT, has_pan=False)


def to_item(product: Path) -> ItemRecord:
    reader: Any = gaofen3 if product.name.startswith("GF3") else gaofen6
    return reader.to_item(product.name, read_contents(product, reader.is_text))[0]


def read(product: Path, item: ItemRecord, **settings: Any) -> Reading:
    reader: Any = gaofen3 if item.sensor == "gaofen3" else gaofen6
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    return reader.read_scene(record, CORNER, IngestSettings(margin_px=0, attempts=1, **settings), Resolver(str(product.parent)))


def measure_error(reading: Reading) -> npt.NDArray[np.float64]:
    """Backscatter less what was put in, dB."""
    assert reading.scene["valid"].values.all()
    return reading.scene["data"].values[0] / 100 - 10 * np.log10(GAMMA0)


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("level", ["L1A", "L1B", "L2"])
def test_incidence_is_that_of_the_place(tmp_path: Path, level: str, has_table: bool) -> None:
    product = write_sar(tmp_path, level)
    if not has_table:
        for path in product.glob("*.incidence.xml"):
            path.unlink()
    error_db = measure_error(read(product, to_item(product)))
    assert np.abs(np.median(error_db)) < 0.02  # from 20 to 60 degrees gamma0 over sigma0 rises by 2.7 dB
    assert np.abs(error_db).max() < 0.3  # amplitudes are whole numbers


@pytest.mark.parametrize(
    ("direction", "look", "is_right"), [("ASC", "R", True), ("DEC", "L", True), ("DEC", "R", False), ("ASC", "L", False)]
)
def test_near_range_lies_where_flight_and_look_tell(tmp_path: Path, direction: str, look: str, is_right: bool) -> None:
    product = write_sar(tmp_path, "L2")
    (meta,) = product.glob("*.meta.xml")
    text = re.sub("<Direction>ASC<", f"<Direction>{direction}<", meta.read_text())
    meta.write_text(re.sub("<lookDirection>R<", f"<lookDirection>{look}<", text))
    error_db = np.median(np.abs(measure_error(read(product, to_item(product)))))
    assert (error_db < 0.02) if is_right else (error_db > 0.5)


@pytest.mark.parametrize(("stated", "direction"), [("ASC", "ascending"), ("DEC", "descending"), ("Descending", "descending")])
def test_the_direction_of_flight_is_what_is_stated(tmp_path: Path, stated: str, direction: str) -> None:
    (meta,) = write_sar(tmp_path).glob("*.meta.xml")
    assert parse_metadata(meta.read_text().replace(">ASC<", f">{stated}<"), where="P").direction == direction


@pytest.mark.parametrize(("altitude", "dem", "height_m"), [("250.5", "99", 250.5), ("NULL", "99", 99), ("NULL", "NULL", 0), ("0", "99", 0)])
def test_the_height_is_the_mean_altitude_else_that_of_the_model(tmp_path: Path, altitude: str, dem: str, height_m: float) -> None:
    (meta,) = write_sar(tmp_path).glob("*.meta.xml")
    text = re.sub("<averageAltitude>[^<]*", f"<averageAltitude>{altitude}", meta.read_text())
    assert parse_metadata(re.sub("<DEM>[^<]*", f"<DEM>{dem}", text), where="P").height_m == height_m


@pytest.mark.parametrize("pattern", ["*.xml", "*.tiff", "*.rp?"])
@pytest.mark.parametrize("kind", ["sar", "optical"])
def test_a_file_that_went_after_the_search_loses_its_scene_by_name(tmp_path: Path, kind: str, pattern: str) -> None:
    product = write_sar(tmp_path) if kind == "sar" else write_optical(tmp_path)
    item, gone = to_item(product), sorted(product.glob(pattern))[0]
    gone.unlink()
    reading = read(product, item)
    assert gone.name in reading.scene.attrs["provenance"]["refused"]
    assert not reading.scene["valid"].values.any()


@pytest.mark.parametrize("kind", ["sar", "optical"])
def test_an_archive_that_went_or_broke_after_the_search_loses_its_scene_by_name(tmp_path: Path, kind: str) -> None:
    packed = products.pack_product(write_sar(tmp_path) if kind == "sar" else write_optical(tmp_path))
    reader: Any = gaofen3 if kind == "sar" else gaofen6
    item = reader.to_item(packed.name, read_contents(packed, reader.is_text))[0]
    packed.write_bytes(packed.read_bytes()[:-100])
    assert "cut off or damaged" in read(packed, item, check="none").scene.attrs["provenance"]["refused"]
    packed.unlink()
    assert packed.name in read(packed, item).scene.attrs["provenance"]["refused"]


def test_the_sun_of_an_item_is_that_of_its_metadata(tmp_path: Path) -> None:
    product = write_optical(tmp_path)
    text = next(product.glob("*.xml")).read_text()
    zenith, azimuth = (float(re.findall(f"<{tag}>(.*)</{tag}>", text)[0]) for tag in ("SolarZenith", "SolarAzimuth"))
    item = to_item(product)
    assert item.sun_elevation_deg == pytest.approx(90 - zenith)
    assert item.sun_azimuth_deg == pytest.approx(azimuth)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # their place is in their coefficients
def test_what_holds_no_value_takes_no_part_in_an_average(tmp_path: Path) -> None:
    """One of four pixels of a block that nothing fills leaves its mean as it is; two of four leave it unknown."""
    product = products.write_gaofen3(
        tmp_path, GROUND, {"HH": np.full((SIZE, SIZE), GAMMA0, np.float32)}, FLIGHT, radar=products.Radar(gsd_m=5, incidence_deg=(34, 34.1))
    )
    (path,) = product.glob("*.tiff")
    item, empty = to_item(product), np.zeros((80, 80), bool)
    for row, column in itertools.product(range(1, 80, 8), repeat=2):  # squares of 3 pixels: of four blocks one, two, two and four pixels
        empty[row : row + 3, column : column + 3] = True
    with rasterio.open(path, "r+") as file:
        top, left = (length // 4 * 2 for length in file.shape)
        values = file.read()
        values[:, top : top + 80, left : left + 80][:, empty] = 0
        file.write(values)
    with open_image(item, "HH", path, IngestSettings(attempts=1, check="none")) as access:
        window = Window(left, top, 80, 80)
        power, single = (gaofen3.read_power(access, window, looks)[0] for looks in ((2, 2), (1, 1)))
    n_empty = empty.reshape(40, 2, 40, 2).sum(axis=(1, 3))
    assert set(np.unique(n_empty)) == {0, 1, 2, 4}
    np.testing.assert_array_equal(np.isnan(power), n_empty >= 2)
    means = np.nanmean(single.reshape(40, 2, 40, 2).swapaxes(1, 2).reshape(40, 40, 4)[n_empty == 1], axis=1)
    np.testing.assert_allclose(power[n_empty == 1], means, rtol=1e-5)  # a quarter less if they were counted as 0


def test_level_2_is_warned_of(tmp_path: Path) -> None:
    product = write_sar(tmp_path, "L2")
    notes = read(product, to_item(product)).scene.attrs["provenance"]["warnings"]
    assert any(product.name in note and "level 2 was projected by its provider at one height (300 m)" in note for note in notes)


def test_offsets_of_gains_reach_the_pixels(tmp_path: Path) -> None:
    product = write_optical(tmp_path)
    gains, esun = GAINS["GF6-PMS"][2020].bands, ESUN["GF6-PMS"]
    seen = []
    for offsets in ((0.0,) * 4, (5.0, 10.0, 15.0, 20.0)):
        own = BandCalibration(gains=gains, offsets=offsets, esun=esun)
        reading = read(product, to_item(product), gaofen=GaofenSettings(calibration={"GF6-PMS": own}))
        seen.append(reading.scene["data"].values.astype(float).mean(axis=(1, 2)) / 1e4)
    sun = 90 - float(to_item(product).sun_elevation_deg or 0)
    factors = [compute_reflectance_factor(1.0, one, sun, compute_distance(FLIGHT.time)) for one in esun]
    np.testing.assert_allclose(seen[0], 0.2, atol=5e-4)
    np.testing.assert_allclose(seen[1] - seen[0], np.array(factors) * (5, 10, 15, 20), rtol=5e-3)
