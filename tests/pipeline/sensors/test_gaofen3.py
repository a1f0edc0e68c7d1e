"""Products of Gaofen-3 become items or are refused by name; their scenes are the backscatter of the ground, in its place."""

from collections.abc import Callable
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
from rasters import write_raster
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.plates import place_scene
from sereno.pipeline.radiometry import power_to_centi_db
from sereno.pipeline.rpc import crop_rpc, format_rpb, parse_rpc
from sereno.pipeline.scene import geobox_of, plates_of
from sereno.pipeline.sensors import gaofen3
from sereno.pipeline.sensors.gaofen3 import read_scene, to_item
from sereno.pipeline.sensors.orthorectification import open_image
from sereno.pipeline.shiftfield import make_shift
from sereno.pipeline.signing import Resolver
from sereno.pipeline.views import Terrain

SIZE = 240
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
AREA = BOX[60:180, 60:180]
MARGIN = 4
INNER = (slice(60 - MARGIN, 180 + MARGIN), slice(60 - MARGIN, 180 + MARGIN))
FLIGHT = products.Pass(datetime(2020, 6, 3, 22, 10, tzinfo=UTC), 4266581)
HILLS_M = 100.0


def make_ground(relief_m: float = HILLS_M) -> Terrain:
    y, x = np.mgrid[:SIZE, :SIZE]
    return Terrain(BOX, (300 + relief_m * np.sin(x / 27) * np.cos(y / 31)).astype(np.float32))


def make_power(*bands: str) -> dict[str, Any]:
    y, x = np.mgrid[:SIZE, :SIZE]
    return {band: (0.1 + 0.05 * np.sin(x / 9 + number) * np.cos(y / 11)).astype(np.float32) for number, band in enumerate(bands)}


def write_dem(path: Path, ground: Terrain) -> str:
    return str(write_raster(path, ground.heights_m, BOX))


def make_item(product: Path) -> ItemRecord:
    return to_item(product.name, read_contents(product, gaofen3.is_text))[0]


def read(product: Path, **settings: Any) -> Reading:
    item = make_item(product)
    record = SceneRecord(id="s", sensor="gaofen3", time=item.time, items=(item,))
    return read_scene(record, AREA, IngestSettings(**{"margin_px": MARGIN, "attempts": 1} | settings), Resolver(str(product.parent)))


def write(folder: Path, *bands: str, level: str = "L1A", ground: Terrain | None = None) -> Path:
    return products.write_gaofen3(
        folder, ground or make_ground(), make_power(*(bands or ("HH", "HV"))), FLIGHT, radar=products.Radar(level=level)
    )


@pytest.mark.parametrize(("level", "limit_db"), [("L1A", 0.1), ("L1B", 0.1)])
def test_backscatter_is_that_of_the_ground_in_hills(tmp_path: Path, level: str, limit_db: float) -> None:
    scene = read(write(tmp_path, level=level), dem=write_dem(tmp_path / "dem.tif", make_ground())).scene
    assert scene["valid"].values.all()
    for band, power in make_power("HH", "HV").items():
        assert np.abs(scene["data"].sel(sar_band=band).values / 100 - 10 * np.log10(power[INNER])).max() < limit_db
    facts = scene.attrs["provenance"]["items"][0]
    divisor = {"L1A": 32767, "L1B": 65535}[level]
    assert (facts["gf3:scale_divisor"], facts["geocoding"], facts["terrain_corrected"]) == (divisor, "rpc+dem", True)
    assert facts["heights"].endswith("taken as above the ellipsoid")


def test_without_a_dem_flat_ground_is_right_and_hills_are_not(tmp_path: Path) -> None:
    flat, hills = (read(write(tmp_path / name, ground=make_ground(height))).scene for name, height in (("flat", 0), ("hills", HILLS_M)))
    truth = 10 * np.log10(make_power("HH")["HH"][INNER])
    errors = [np.abs(scene["data"].values[0] / 100 - truth).max() for scene in (flat, hills)]
    assert errors[0] < 0.1
    assert errors[1] > 1
    provenance = hills.attrs["provenance"]
    assert provenance["items"][0]["heights"].startswith("302.7 m above the ellipsoid")
    assert any("relief is not corrected" in words for words in provenance["warnings"])


def test_level_2_is_read_in_its_own_projection(tmp_path: Path) -> None:
    scene = read(write(tmp_path, level="L2", ground=make_ground(0))).scene
    assert scene["valid"].values.all()
    assert np.abs(scene["data"].values[0] / 100 - 10 * np.log10(make_power("HH")["HH"][INNER])).max() < 0.1
    facts = scene.attrs["provenance"]["items"][0]
    assert (facts["geocoding"], facts["terrain_corrected"], facts["gf3:scale_divisor"]) == ("provider's projection", False, 65535)
    assert facts["incidence_from"].startswith("plane")


@pytest.mark.parametrize("error_m", [(0.0, 0.0), (40.0, -25.0)])
def test_a_planted_target_lands_where_its_coefficients_say(tmp_path: Path, error_m: tuple[float, float]) -> None:
    target = np.zeros((SIZE, SIZE), np.float32)
    target[117, 123] = 500.0
    power = {"HH": (0.01 + gaussian_filter(target, 2)).astype(np.float32)}
    ground = make_ground()
    product = products.write_gaofen3(tmp_path, ground, power, FLIGHT._replace(error_m=error_m), radar=products.Radar())
    # At constant height the coefficients are wrong by error_m alone; the relief under the target has the height that is given.
    scene = read(product, dem=None, gaofen={"height_m": float(ground.heights_m[117, 123])}).scene
    seen = 10 ** (scene["data"].values[0] / 1000.0)
    row, column = center_of_mass(np.where(seen > 0.5, seen, 0))
    expected = (117 - 60 + MARGIN - error_m[1] / 10, 123 - 60 + MARGIN + error_m[0] / 10)
    assert np.hypot(row - expected[0], column - expected[1]) < 0.6


def test_speckle_of_one_look_is_averaged_as_power(tmp_path: Path) -> None:
    power = {"HH": np.full((SIZE, SIZE), 0.2, np.float32)}
    product = products.write_gaofen3(
        tmp_path, make_ground(0), power, FLIGHT, radar=products.Radar(), speckle=np.random.default_rng(5)
    )  # fmt: skip
    scene = read(product).scene
    linear = 10 ** (scene["data"].values[0] / 1000.0)
    assert linear.mean() == pytest.approx(0.2, rel=0.01)
    assert scene.attrs["provenance"]["items"][0]["looks"] == [2, 2]
    assert 4 < linear.mean() ** 2 / linear.var() < 16  # four looks, and what the interpolation averages


def plant_zeros(product: Path, is_zero: npt.NDArray[np.bool_]) -> None:
    for path in product.glob("*.tiff"):
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            file = rasterio.open(path, "r+")
        with file:
            rows, columns = is_zero.shape
            values = np.maximum(file.read()[:, :rows, :columns], 1)
            file.write(np.where(is_zero, 0, values).astype(values.dtype), window=Window(0, 0, columns, rows))


def make_zeros(shape: tuple[int, int]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """A border of zeros whose edge runs aslant, below rows and columns that a file may be filled with; and few zeros together within."""
    rows, columns = np.indices(shape)
    border = (columns < 6 + rows // 4) | (rows < 2) | (columns >= shape[1] - 9 - rows // 3)
    few = np.zeros(shape, bool)
    few[5::11, 40:150:7] = True
    few[5::33, 41:150:7] = few[6::33, 40:150:7] = True  # four together, and on an edge of strips
    few[6::33, 41:150:7] = True
    few &= ~border
    few[20, 6 + 20 // 4] = True  # at the border itself
    return border, few


@pytest.mark.parametrize("level", ["L1A", "L1B"])
def test_zeros_together_are_no_data_to_the_pixel_and_few_are_no_power(tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product = write(tmp_path, "HH", level=level)
    border, few = make_zeros((120, 200))
    plant_zeros(product, border | few)
    item = make_item(product)
    path = tmp_path / item.assets["HH"].href
    for strip_rows in (1024, 13):
        monkeypatch.setattr(gaofen3, "STRIP_ROWS", strip_rows)
        with open_image(item, "HH", path, IngestSettings(attempts=1, check="none")) as access:
            power, lost = gaofen3.read_power(access, Window(0, 0, 200, 120), (1, 1))
            part, _ = gaofen3.read_power(access, Window(31, 17, 90, 80), (1, 1))
        assert lost == ()
        np.testing.assert_array_equal(np.isnan(power), border)
        np.testing.assert_array_equal(power == 0, few)
        np.testing.assert_array_equal(part, power[17:97, 31:121])


def test_lone_zeros_leave_no_holes_in_a_scene_and_count_in_its_mean(tmp_path: Path) -> None:
    product = write(tmp_path, "HH", ground=make_ground(0))
    whole = read(product).scene
    size = whole.attrs["provenance"]["items"][0]["looks"]
    assert size == [2, 2]
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(next(product.glob("*.tiff"))) as file:
        is_zero = np.zeros(file.shape, bool)
    is_zero[::2, ::2] = True  # one of the four looks
    plant_zeros(product, is_zero)
    scene = read(product, check="none").scene
    assert scene["valid"].values.all()
    difference = (scene["data"].values[0].astype(int) - whole["data"].values[0]) / 100
    assert np.median(difference) == pytest.approx(10 * np.log10(3 / 4), abs=0.1)


def test_a_scene_placed_without_a_field_is_its_data_and_one_of_level_2_too(tmp_path: Path) -> None:
    for level in ("L1A", "L2"):
        scene = read(write(tmp_path, level=level), dem=write_dem(tmp_path / "dem.tif", make_ground())).scene
        power, valid = place_scene(scene, geobox_of(scene))
        np.testing.assert_array_equal(power_to_centi_db(power, valid)[0], scene["data"].values)
        np.testing.assert_array_equal(valid, scene["valid"].values)
        assert scene.attrs["provenance"]["n_plates"] == 1, "both polarisations lie on each other"


def test_an_error_of_the_orbit_is_taken_out_in_hills_too(tmp_path: Path) -> None:
    """A field moves the image over the ground; heights stay. Moving the geocoded scene would move its relief too."""
    error_m = (80.0, -60.0)
    product = products.write_gaofen3(tmp_path, make_ground(), make_power("HH"), FLIGHT._replace(error_m=error_m), radar=products.Radar())
    scene = read(product, dem=write_dem(tmp_path / "dem.tif", make_ground()), margin_px=12).scene
    field = make_shift(AREA.shape, -error_m[1] / 10, error_m[0] / 10)
    truth = 10 * np.log10(make_power("HH")["HH"][60:180, 60:180])
    once, valid = place_scene(scene, AREA, field)
    assert valid.all()
    assert np.abs(10 * np.log10(once[0]) - truth).max() < 0.1
    moved, _ = place_scene(scene.drop_vars("plate_0"), AREA, field)
    assert np.abs(10 * np.log10(moved[0]) - truth).max() > 0.3


def test_polarisations_with_coefficients_of_their_own_are_plates_of_their_own(tmp_path: Path) -> None:
    product = write(tmp_path)
    path = next(product.glob("*_HV_*.rpc"))
    path.write_text(
        format_rpb(crop_rpc(parse_rpc(path.read_text(), where=""), row=4.5, column=-6))
    )  # a whole number of rows would be cut off
    dem = write_dem(tmp_path / "dem.tif", make_ground())
    moved, whole = read(product, dem=dem).scene, read(write(tmp_path / "whole"), dem=dem).scene
    assert [plate.bands for plate in plates_of(moved)] == [("HH",), ("HV",)]
    np.testing.assert_array_equal(moved["data"].values[0], whole["data"].values[0])
    assert np.abs(moved["data"].values[1].astype(int) - whole["data"].values[1]).max() > 50


def test_speckle_is_reduced_in_the_plates(tmp_path: Path) -> None:
    power = {"HH": np.full((SIZE, SIZE), 0.2, np.float32)}
    product = products.write_gaofen3(
        tmp_path, make_ground(0), power, FLIGHT, radar=products.Radar(), speckle=np.random.default_rng(5)
    )  # fmt: skip
    rough, smooth = read(product).scene, read(product, speckle={"method": "boxcar", "window_px": 5}).scene
    for scene in (rough, smooth):
        power_placed, valid = place_scene(scene, geobox_of(scene))
        np.testing.assert_array_equal(power_to_centi_db(power_placed, valid)[0], scene["data"].values)
    shares = [scene["data"].values.std() for scene in (smooth, rough)]
    assert shares[0] < 0.5 * shares[1]
    assert smooth.attrs["provenance"]["speckle"].startswith("boxcar")


def test_frames_that_follow_each_other_join_under_a_field(tmp_path: Path) -> None:
    lower = make_power("HH")["HH"].copy()
    upper = lower.copy()
    lower[:110], upper[130:] = 0, 0  # what a frame does not see
    items = []
    for power in (upper, lower):
        flight = FLIGHT._replace(serial=FLIGHT.serial + len(items))
        product = products.write_gaofen3(tmp_path, make_ground(0), {"HH": power}, flight, radar=products.Radar())
        items.append(make_item(product))
    record = SceneRecord(id="s", sensor="gaofen3", time=items[0].time, items=tuple(items))
    scene = read_scene(record, AREA, IngestSettings(margin_px=12, attempts=1), Resolver(str(tmp_path))).scene
    assert [plate.layer for plate in plates_of(scene)] == [0, 1]
    assert all(0.3 < item["share"] < 0.7 for item in scene.attrs["provenance"]["items"])
    for dy in (0.0, 7.5, -7.5):
        power, valid = place_scene(scene, AREA, make_shift(AREA.shape, dy, 0))
        truth = map_coordinates(make_power("HH")["HH"], np.mgrid[60:180, 60:180] + np.array([dy, 0])[:, None, None], order=1)
        assert valid.all()
        edge = np.abs(np.arange(120) + 60 + dy - 130) < 2  # there the simulated upper frame fades out
        assert np.abs(10 * np.log10(power[0] / truth))[~edge].max() < 0.1


def test_the_divisor_can_be_set_and_is_recorded(tmp_path: Path) -> None:
    product = write(tmp_path, level="L1B")
    ours, theirs = read(product).scene, read(product, gaofen={"scale_divisor": 32767}).scene
    difference = (theirs["data"].values.astype(int) - ours["data"].values).mean() / 100
    assert difference == pytest.approx(20 * np.log10(65535 / 32767), abs=0.01)
    facts = theirs.attrs["provenance"]["items"][0]
    assert (facts["gf3:scale_divisor"], facts["gf3:scale_divisor_reason"]) == (32767, "pipeline.ingest.gaofen.scale_divisor")


def test_an_archive_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = read(write(tmp_path / "folder")).scene
    archive = read(products.pack_product(write(tmp_path / "archive"))).scene
    np.testing.assert_array_equal(folder["data"].values, archive["data"].values)


def test_quad_polarisation_is_found_under_its_tag(tmp_path: Path) -> None:
    item = make_item(write(tmp_path, "HH", "HV", "VH", "VV"))
    assert {"HH", "HV", "VH", "VV", "rpc-HH", "rpc-HV", "rpc-VH", "rpc-VV", "MTD", "incidence"} == set(item.assets)
    assert item.properties["polarisations"] == "HH HV VH VV"


def rename_dual_receive(product: Path) -> Path:
    """A single-polarisation product under the names that ultra-fine stripmap has."""
    for path in product.iterdir():
        path.rename(path.with_name(path.name.replace("_HH_", "_DH_")))
        if path.name.endswith(".meta.xml"):
            meta = path.with_name(path.name.replace("_HH_", "_DH_"))
            meta.write_text(meta.read_text().replace(">HH<", ">DH<"))
    return product.rename(product.with_name(product.name.replace("_HH_", "_DH_")))


def test_dual_receive_products_hold_hh(tmp_path: Path) -> None:
    product = rename_dual_receive(write(tmp_path, "HH"))
    item = make_item(product)
    assert item.properties["polarisations"] == "HH"
    assert item.assets["HH"].href.endswith("_DH_L10004266581.tiff")


def test_a_polarisation_without_calibration_is_left_out_and_said(tmp_path: Path) -> None:
    product = write(tmp_path)
    meta = next(product.glob("*.meta.xml"))
    meta.write_text(meta.read_text().replace("<HV>466.6</HV>", "<HV>NULL</HV>"))
    item = make_item(product)
    assert "HV" not in item.assets
    assert item.properties["polarisations"] == "HH"
    assert "QualifyValue/HV is NULL" in item.properties["incomplete"]


def drop(pattern: str) -> Callable[[Path], None]:
    def spoil(product: Path) -> None:
        for path in product.glob(pattern):
            path.unlink()

    return spoil


def spoil_meta(old: str, new: str) -> Callable[[Path], None]:
    def spoil(product: Path) -> None:
        path = next(product.glob("*.meta.xml"))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("*.rpc"), "has no .rpc or .rpb of HH"),
        (drop("*.tiff"), "has no image of HH"),
        (drop("*.meta.xml"), r"holds no \*.meta.xml"),
        (spoil_meta("<HH>997.1</HH>", "<HH>NULL</HH>"), "QualifyValue/HH is NULL"),
        (spoil_meta("</product>", ""), "not valid XML"),
    ],
)
def test_products_that_cannot_be_used_are_refused_by_name(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    product = write(tmp_path, "HH")
    spoil(product)
    with pytest.raises(DataError, match=words) as caught:
        make_item(product)
    assert product.name in str(caught.value)


def test_a_dem_beside_the_area_is_refused_with_the_product_and_what_helps(tmp_path: Path) -> None:
    far = GeoBox((9, 9), BOX.transform * Affine.translation(9000, 0), BOX.crs)
    path = write_raster(tmp_path / "far.tif", np.zeros((9, 9), np.float32), far)
    with pytest.raises(
        DataError, match=r"item GF3_\S+: pipeline\.ingest\.dem \S+far\.tif holds no height in the area: give one that covers it"
    ):
        read(write(tmp_path), dem=str(path))
    product = tmp_path / make_item_name(tmp_path)
    with pytest.raises(MissingError, match=r"item GF3_\S+: pipeline\.ingest\.dem \S+none\.tif cannot be opened"):
        read(product, dem=str(tmp_path / "none.tif"))
    dem = write_dem(tmp_path / "dem.tif", make_ground())
    with pytest.raises(MissingError, match=r"item GF3_\S+: pipeline\.ingest\.geoid \S+none\.tif, which is added to \S+dem\.tif, cannot be"):
        read(product, dem=dem, geoid=str(tmp_path / "none.tif"))


def make_item_name(folder: Path) -> str:
    return next(path.name for path in folder.iterdir() if path.is_dir())


def test_ground_without_a_height_is_not_used_and_said(tmp_path: Path) -> None:
    ground = make_ground()
    heights = ground.heights_m.copy()
    heights[:, :100] = -9999
    write_raster(tmp_path / "dem.tif", heights, BOX, nodata=-9999)
    scene = read(write(tmp_path, ground=ground), dem=str(tmp_path / "dem.tif")).scene
    valid = scene["valid"].values
    assert not valid[:, :42].any()
    assert valid[:, 46:].all()
    (words,) = (words for words in scene.attrs["provenance"]["warnings"] if "has no height on" in words)
    assert words.startswith("item GF3_")
    assert words.endswith("which is not used: give a pipeline.ingest.dem that covers it")


def test_a_geoid_is_added_to_heights_above_the_sea(tmp_path: Path) -> None:
    ground, geoid = make_ground(), make_ground(0)
    over_sea = Terrain(BOX, ground.heights_m - 300)
    dem, undulation = write_dem(tmp_path / "dem.tif", over_sea), write_dem(tmp_path / "geoid.tif", geoid)
    scene = read(write(tmp_path, ground=ground), dem=dem, geoid=undulation).scene
    assert np.abs(scene["data"].values[0] / 100 - 10 * np.log10(make_power("HH")["HH"][INNER])).max() < 0.1
    assert "the geoid geoid.tif added" in scene.attrs["provenance"]["items"][0]["heights"]


def test_a_table_of_incidence_of_another_image_loses_the_item(tmp_path: Path) -> None:
    product = write(tmp_path)
    path = next(product.glob("*.incidence.xml"))
    path.write_text("<i><numberofIncidenceValue>1</numberofIncidenceValue><incidenceValue>30</incidenceValue></i>")
    facts = read(product).scene.attrs["provenance"]
    assert "1 angles for" in facts["refused"]


def test_without_a_table_incidence_is_linear_and_said(tmp_path: Path) -> None:
    product = write(tmp_path, ground=make_ground(0))
    whole = read(product).scene
    next(product.glob("*.incidence.xml")).unlink()
    without = read(product).scene
    assert np.abs(whole["data"].values.astype(int) - without["data"].values).max() <= 1
    assert any("has no incidence.xml" in words for words in without.attrs["provenance"]["warnings"])


def test_images_of_another_type_are_not_calibrated(tmp_path: Path) -> None:
    product = write(tmp_path, "HH", level="L1B")
    path = next(product.glob("*.tiff"))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as file:
        values = file.read().astype(np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": values.shape[1], "width": values.shape[2]}
    other = tmp_path / "other.tiff"  # GDAL deletes the coefficients of a file that it writes over
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(other, "w", **profile) as file:
        file.write(values)
    other.replace(path)
    assert "expected two of int16" in read(product).scene.attrs["provenance"]["refused"]


def test_an_area_beside_the_image_is_refused_with_its_share(tmp_path: Path) -> None:
    product = write(tmp_path)
    item = make_item(product)
    record = SceneRecord(id="s", sensor="gaofen3", time=item.time, items=(item,))
    elsewhere = GeoBox((50, 50), Affine(10, 0, 600_000, 0, -10, 4_500_000), "EPSG:32650")
    reading = read_scene(record, elsewhere, IngestSettings(margin_px=0), Resolver(str(tmp_path)))
    assert not reading.scene["valid"].values.any()
    assert reading.scene.attrs["provenance"]["refused"].startswith("0.0% of the ground is valid")


def test_a_false_geotransform_of_level_1_is_passed_over(tmp_path: Path) -> None:
    product = write(tmp_path, "HH")
    before = read(product).scene
    path = next(product.glob("*.tiff"))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        file = rasterio.open(path, "r+")
    with file:
        file.transform, file.crs = Affine(5, 0, 0, 0, -5, 0), "EPSG:32650"
    assert path.with_suffix(".rpc").is_file()
    after = read(product, check="none").scene
    np.testing.assert_array_equal(after["data"].values, before["data"].values)
