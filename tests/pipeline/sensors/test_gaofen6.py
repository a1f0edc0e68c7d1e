"""Optical Gaofen products become items or are refused by name; their scenes are the reflectance of the ground, in its place."""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from rasters import write_raster
from real_files import find_samples
from scipy.ndimage import center_of_mass, gaussian_filter

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.plates import place_scene
from sereno.pipeline.scene import plates_of
from sereno.pipeline.sensors import gaofen6
from sereno.pipeline.sensors.gaofen6 import find_flaws, read_scene, to_item
from sereno.pipeline.sensors.gaofen6_calibration import ESUN, GAINS
from sereno.pipeline.sensors.gaofen6_metadata import parse_metadata
from sereno.pipeline.shiftfield import make_shift
from sereno.pipeline.signing import Resolver
from sereno.pipeline.views import Terrain

SIZE = 240
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
AREA = BOX[60:180, 60:180]
INNER = (slice(60, 180), slice(60, 180))
FLIGHT = products.Pass(datetime(2020, 6, 3, 3, 10, tzinfo=UTC), 1420312367)
Spoil = Callable[[Path], None]


def make_ground(relief_m: float = 150.0) -> Terrain:
    y, x = np.mgrid[:SIZE, :SIZE]
    return Terrain(BOX, (300 + relief_m * np.sin(x / 27) * np.cos(y / 31)).astype(np.float32))


def make_reflectance(n_bands: int) -> Any:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([0.15 + 0.08 * np.sin(x / 13 + number) * np.cos(y / 17) for number in range(n_bands)]).astype(np.float32)


def write(
    folder: Path, sensor: str = "PMS", flight: products.Pass = FLIGHT, relief_m: float = 150.0, values: Any = None, *, has_pan: bool = False
) -> Path:
    if sensor == "WFV":
        return products.write_gaofen6_wfv(folder, make_ground(relief_m), make_reflectance(8) if values is None else values, flight)
    layers = make_reflectance(4) if values is None else values
    return products.write_gaofen6_pms(folder, make_ground(relief_m), layers, flight, has_pan=has_pan)


def write_dem(path: Path) -> str:
    return str(write_raster(path, make_ground().heights_m, BOX))


def make_item(product: Path) -> ItemRecord:
    return to_item(product.name, read_contents(product, gaofen6.is_text))[0]


def read(product: Path, **settings: Any) -> Reading:
    item = make_item(product)
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    return read_scene(record, AREA, IngestSettings(attempts=1, **settings), Resolver(str(product.parent)))


def spoil_text(pattern: str, old: str, new: str) -> Spoil:
    def spoil(product: Path) -> None:
        path = next(product.glob(pattern))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return spoil


def drop(pattern: str) -> Spoil:
    return lambda product: [path.unlink() for path in product.glob(pattern)][0]  # noqa: RUF015


def change_image(path: Path, change: Callable[[Any], None]) -> None:
    """Change the digital numbers of an image in place; GDAL deletes the coefficients of a file that it writes over."""
    with rasterio.open(path, "r+") as file:
        values = file.read()
        change(values)
        file.write(values)


@pytest.mark.parametrize(("sensor", "n_bands"), [("PMS", 4), ("WFV", 8)])
def test_reflectance_is_that_of_the_ground_in_hills(tmp_path: Path, sensor: str, n_bands: int) -> None:
    scene = read(write(tmp_path, sensor), dem=write_dem(tmp_path / "dem.tif")).scene
    assert scene["valid"].values.all()
    assert scene["band"].values.tolist() == [f"B{number + 1}" for number in range(n_bands)]
    assert np.abs(scene["data"].values / 1e4 - make_reflectance(n_bands)[:, *INNER]).max() < 1.5e-3
    facts = scene.attrs["provenance"]["items"][0]
    assert (facts["geocoding"], facts["calib_year"], facts["clock_ahead_h"]) == ("rpc+dem", 2020, 8)
    assert scene.attrs["provenance"]["time"] == "2020-06-03T03:10:00Z"


@pytest.mark.parametrize("error_m", [(0.0, 0.0), (-32.0, 56.0)])
@pytest.mark.parametrize("sensor", ["PMS", "WFV"])
def test_a_planted_target_lands_where_its_coefficients_say(tmp_path: Path, sensor: str, error_m: tuple[float, float]) -> None:
    target = np.zeros((SIZE, SIZE), np.float32)
    target[117, 123] = 20.0
    values = np.repeat((0.02 + gaussian_filter(target, 3))[None], 8 if sensor == "WFV" else 4, axis=0)
    dem = write_dem(tmp_path / "dem.tif")
    scene = read(write(tmp_path, sensor, FLIGHT._replace(error_m=error_m), values=values), dem=dem).scene
    seen = scene["data"].values[1] / 1e4
    row, column = center_of_mass(np.where(seen > 0.05, seen - 0.02, 0))
    # The relief at the wrong place differs from that under the target: 0.18 m per metre, some metres here.
    assert np.hypot(row - (57 - error_m[1] / 10), column - (63 + error_m[0] / 10)) < 0.6


def test_tiles_of_wfv_are_laid_side_by_side_without_a_seam(tmp_path: Path) -> None:
    product = write(tmp_path, "WFV", relief_m=0)
    assert len(list(product.glob("*-[123].tiff"))) == 3
    assert read(product).scene["valid"].values.all()


def test_a_damaged_tile_of_wfv_loses_the_product_by_name(tmp_path: Path) -> None:
    product = write(tmp_path, "WFV", relief_m=0)
    next(product.glob("*-2.tiff")).write_bytes(b"damaged")
    scene = read(product, check="none").scene
    assert not scene["valid"].values.any()
    (lost,) = scene.attrs["provenance"]["lost"]
    assert (lost["item"], "-2.tiff" in lost["reason"]) == (product.name, True), lost


@pytest.mark.parametrize("sensor", ["PMS", "WFV"])
def test_a_scene_placed_without_a_field_is_its_data(tmp_path: Path, sensor: str) -> None:
    scene = read(write(tmp_path, sensor), dem=write_dem(tmp_path / "dem.tif")).scene
    values, valid = place_scene(scene, AREA)
    np.testing.assert_array_equal(np.rint(values * 1e4), scene["data"].values)
    np.testing.assert_array_equal(valid, scene["valid"].values)
    assert scene.attrs["provenance"]["n_plates"] == {"PMS": 1, "WFV": 3}[sensor]


@pytest.mark.parametrize("sensor", ["PMS", "WFV"])
def test_an_error_of_the_orbit_is_taken_out_up_to_the_edge_in_hills_too(tmp_path: Path, sensor: str) -> None:
    error_m = (140.0, -120.0)
    scene = read(write(tmp_path, sensor, FLIGHT._replace(error_m=error_m)), dem=write_dem(tmp_path / "dem.tif")).scene
    values, valid = place_scene(scene, AREA, make_shift(AREA.shape, -error_m[1] / 10, error_m[0] / 10))
    assert valid.all(), "ground beyond the area was kept"
    assert np.abs(values - make_reflectance(len(values))[:, *INNER]).max() < 1.5e-3


def test_pan_is_a_band_where_it_is_asked_for(tmp_path: Path) -> None:
    product = write(tmp_path, has_pan=True)
    settings: Any = {"dem": write_dem(tmp_path / "dem.tif")}
    scene, colours, alone = (read(product, bands=bands, **settings).scene for bands in (("B1", "PAN", "B4"), ("B1", "B4"), ("PAN",)))
    assert read(product, **settings).scene["band"].values.tolist() == ["B1", "B2", "B3", "B4"]
    np.testing.assert_array_equal(scene["data"].values[[0, 2]], colours["data"].values)
    np.testing.assert_array_equal(scene["data"].values[1], alone["data"].values[0])
    expected = np.tensordot(products.PAN_SHARES, make_reflectance(4), 1)[INNER]
    assert scene["valid"].values.all()
    np.testing.assert_allclose(scene["data"].values[1] / 1e4, expected, rtol=0.02)
    facts = scene.attrs["provenance"]["items"][0]
    colour, pan = (plate.values.shape for plate in plates_of(scene))
    assert pan[2] <= 1.5 * colour[2], "four times as fine, it is averaged to about the grid before it is kept"
    assert (facts["pan"]["gains"], facts["pan"]["calib_year"], len(facts["gains"])) == ([0.0537], 2020, 4)
    assert "two of three" in facts["pan"]["calib_source"]


def test_a_product_without_pan_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"take PAN out of pipeline\.ingest\.bands"):
        read(write(tmp_path), bands=("B1", "PAN"))
    with pytest.raises(MissingError, match="has no band PAN"):
        read(write(tmp_path, "WFV"), bands=("PAN",))


def test_chosen_bands_come_in_the_chosen_order(tmp_path: Path) -> None:
    product = write(tmp_path, relief_m=0)
    all_bands, chosen = read(product).scene, read(product, bands=("B4", "B2")).scene
    np.testing.assert_array_equal(chosen["data"].values, all_bands["data"].values[[3, 1]])
    with pytest.raises(MissingError, match="has no band B8"):
        read(product, bands=("B8",))


def test_an_archive_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = read(write(tmp_path / "folder", "WFV")).scene
    archive = read(products.pack_product(write(tmp_path / "archive", "WFV"))).scene
    np.testing.assert_array_equal(folder["data"].values, archive["data"].values)


def test_an_item_says_what_the_product_says(tmp_path: Path) -> None:
    product = products.write_gaofen6_pms(tmp_path, make_ground(), make_reflectance(4), FLIGHT._replace(cloud_pct=17))
    item, footprint = to_item(product.name, read_contents(product, gaofen6.is_text))
    assert (item.item, item.sensor, item.time) == (product.name, "gaofen-pms", "2020-06-03T03:10:00Z")
    assert (item.cloud_cover_pct, item.properties["processing_level"], item.properties["platform"]) == (17, "LEVEL1A", "gf6")
    assert set(item.assets) == {"MTD", "image-1", "rpc-1", "PAN", "rpc-PAN"}
    ring = np.array(footprint["coordinates"][0])
    assert item.bbox == (*ring.min(axis=0), *ring.max(axis=0))


@pytest.mark.parametrize(
    ("flight", "words"),
    [
        (FLIGHT._replace(time=FLIGHT.time + timedelta(days=10)), r"another scene, taken 2020-06-13T03:10:00Z .* one 2020-06-03T03:10:00Z"),
        (FLIGHT, None),
    ],
)
def test_a_panchromatic_image_of_another_date_is_refused(tmp_path: Path, flight: products.Pass, words: str | None) -> None:
    product, other = write(tmp_path / "a", has_pan=True), write(tmp_path / "b", flight=flight, has_pan=True)
    for path in other.glob("*-PAN.*"):
        shutil.copy(path, product / path.name.replace(other.name, product.name))
    if words is None:
        assert "PAN" in make_item(product).assets
    else:
        with pytest.raises(DataError, match=words):
            make_item(product)


def test_a_panchromatic_image_of_another_place_is_refused(tmp_path: Path) -> None:
    product = write(tmp_path, has_pan=True)
    text = next(product.glob("*-PAN.xml"))
    text.write_text(
        re.sub(r"(<(?:Top|Bottom)(?:Left|Right)Latitude>)(\d+)", lambda found: f"{found[1]}{int(found[2]) - 2}", text.read_text())
    )
    with pytest.raises(DataError, match="put the images of one product into its folder"):
        make_item(product)


def test_files_that_belong_to_nothing_are_passed_over(tmp_path: Path) -> None:
    product = write(tmp_path)
    whole = make_item(product)
    for name in ("order.xml", f"{product.name}-MUX.rpb.aux.xml", f"{product.name}-MUX_thumb.jpg", f"{product.name}-MUX.jpg"):
        (product / name).write_text("<x/>")
    assert make_item(product) == whole


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("*.tiff"), "has no image MUX"),
        (drop("*.rpb"), r"has no coefficients \(.rpb\) of image MUX"),
        (drop("*.xml"), "holds no metadata"),
        (spoil_text("*.xml", "LEVEL1A", "LEVEL2A"), "is of LEVEL2A, only LEVEL1A"),
        (spoil_text("*.xml", "<TopLeftLatitude>", "<TopLeftLatitude>N"), "TopLeftLatitude is 'N.*expected a number"),
        (spoil_text("*.xml", "<CloudPercent>0", "<CloudPercent>nan"), "CloudPercent is .*expected a finite number"),
        (spoil_text("*.xml", "<SensorID>PMS</SensorID>", "<SensorID />"), "lacks SensorID"),
        (spoil_text("*.xml", "<CenterTime>2020-06", "<CenterTime>soon"), "CenterTime is"),
        (spoil_text("*.xml", "</ProductMetaData>", ""), "not valid XML"),
    ],
)
def test_products_that_cannot_be_used_are_refused_by_name(tmp_path: Path, spoil: Spoil, words: str) -> None:
    product = write(tmp_path)
    spoil(product)
    with pytest.raises(DataError, match=words) as caught:
        make_item(product)
    assert product.name in str(caught.value)


def test_a_missing_tile_is_named(tmp_path: Path) -> None:
    product = write(tmp_path, "WFV")
    drop("*-3.tiff")(product)
    with pytest.raises(DataError, match="has no image 3"):
        make_item(product)


def test_a_year_that_is_not_known_takes_the_nearest_and_says_so(tmp_path: Path) -> None:
    product = write(tmp_path, flight=FLIGHT._replace(time=datetime(2025, 6, 3, 3, 10, tzinfo=UTC)))
    provenance = read(product).scene.attrs["provenance"]
    assert provenance["items"][0]["calib_year"] == 2022
    assert any("gains of 2025 are not known, those of 2022 are taken" in words for words in provenance["warnings"])


def test_own_gains_replace_the_table(tmp_path: Path) -> None:
    product = write(tmp_path)
    own = {"GF6-PMS": {"gains": [2 * gain for gain in GAINS["GF6-PMS"][2020].bands], "esun": ESUN["GF6-PMS"]}}
    table, doubled = read(product).scene, read(product, gaofen={"calibration": own}).scene
    np.testing.assert_allclose(doubled["data"].values, 2.0 * table["data"].values, atol=3)  # both are rounded in plate and scene
    facts = doubled.attrs["provenance"]["items"][0]
    assert (facts["calib_source"], facts["calib_year"]) == ("pipeline.ingest.gaofen.calibration", None)


def test_an_instrument_without_gains_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    product = write(tmp_path)
    spoil_text("*.xml", "<SatelliteID>GF6<", "<SatelliteID>GF2<")(product)
    assert "set pipeline.ingest.gaofen.calibration.GF2-PMS" in read(product).scene.attrs["provenance"]["refused"]


def test_beijing_time_is_told_by_the_sun(tmp_path: Path) -> None:
    utc = tmp_path / "utc"
    product = write(utc)
    stated = f"{FLIGHT.time + timedelta(hours=8):%Y-%m-%d %H:%M:%S}"
    spoil_text("*.xml", stated, f"{FLIGHT.time:%Y-%m-%d %H:%M:%S}")(product)
    assert make_item(product).time == make_item(write(tmp_path / "beijing")).time == "2020-06-03T03:10:00Z"
    spoil_text("*.xml", "<SolarZenith>", "<SolarZenith>7")(product)
    metadata = parse_metadata(next(product.glob("*.xml")).read_text(), where="PRODUCT")
    assert "neither as Beijing's" in metadata.clock.warning


def test_a_sun_below_the_horizon_is_refused(tmp_path: Path) -> None:
    product = write(tmp_path)
    spoil_text("*.xml", "<SolarZenith>2", "<SolarZenith>92")(product)
    assert "without light there is no reflectance" in read(product).scene.attrs["provenance"]["refused"]


def test_dropped_and_repeated_lines_are_found_and_not_used(tmp_path: Path) -> None:
    product = write(tmp_path, relief_m=0)

    def spoil(values: Any) -> None:
        values[2, 150] = 0
        values[1, 170] = values[1, 169]

    change_image(next(product.glob("*.tiff")), spoil)
    scene = read(product, check="none").scene
    assert 0.9 < scene["valid"].values.mean() < 1
    provenance = scene.attrs["provenance"]
    assert provenance["items"][0]["n_dropped_rows"] == 2
    assert any("2 rows of its bands were dropped or repeated" in words for words in provenance["warnings"])


def make_noise(shape: tuple[int, ...] = (2, 60, 80)) -> Any:
    return np.random.default_rng(3).integers(200, 900, shape).astype(np.uint16)


def test_an_image_without_flaws_has_none() -> None:
    flaws = find_flaws(make_noise(), None)
    assert flaws.known.all()
    assert (flaws.saturated.any(), flaws.n_dropped) == (False, 0)


def test_rows_beyond_the_image_are_not_dropped_ones() -> None:
    dn = make_noise()
    dn[:, :5] = dn[:, -4:] = 0
    flaws = find_flaws(dn, None)
    assert flaws.n_dropped == 0
    assert not flaws.known[:5].any()
    assert flaws.known[5:-4].all()


@pytest.mark.parametrize(("top", "largest"), [(1023, None), (4095, None), (1000, 1000)])
def test_saturated_pixels_are_flagged_and_stay_in_use(top: int, largest: int | None) -> None:
    dn = make_noise()
    dn[1, 10:30, 20:70] = top  # a cloud
    flaws = find_flaws(dn, largest)
    assert flaws.known.all()
    assert flaws.n_dropped == 0
    assert flaws.saturated[10:30, 20:70].all()
    assert flaws.saturated.sum() == 20 * 50


def test_smooth_ground_is_not_taken_for_repeated_rows() -> None:
    dn = np.full((1, 60, 80), 300, np.uint16)
    dn[0, :, 40:] = 500
    assert find_flaws(dn, None).known.all()


@pytest.mark.real
def test_lines_that_a_real_receiver_dropped_are_found() -> None:
    (path,) = (find_samples() / "gaofen").rglob("GF1_WFV3*.jpg")
    browse = np.moveaxis(np.asarray(Image.open(path).convert("RGB")), 2, 0).astype(np.uint16)
    browse[browse < 8] = 0  # what the compression made of 0
    flaws = find_flaws(browse, None)
    assert 90 < flaws.n_dropped < 130  # in three bands; seen by eye: rows 1106 to 1131, 1260 to 1283, with gaps
    assert not flaws.known[1120:1130].any()
    assert flaws.known[200:1000].mean() > 0.95


def test_many_saturated_pixels_are_said(tmp_path: Path) -> None:
    values = make_reflectance(4)
    values[:, :, 100:160] = 3.0  # more than 12 bits hold
    provenance = read(write(tmp_path, relief_m=0, values=values)).scene.attrs["provenance"]
    assert provenance["items"][0]["n_saturated"] > 1000
    assert any("of its pixels are saturated" in words for words in provenance["warnings"])


def test_an_image_with_other_bands_than_stated_loses_the_item(tmp_path: Path) -> None:
    product = write(tmp_path)
    spoil_text("*.xml", "<Bands>1,2,3,4<", "<Bands>1,2,3<")(product)
    own = {"GF6-PMS": {"gains": [0.1] * 3, "esun": [1500.0] * 3}}
    assert "has 4 bands, the metadata state 3" in read(product, gaofen={"calibration": own}).scene.attrs["provenance"]["refused"]
