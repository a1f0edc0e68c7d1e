"""Ground range data come out as the backscatter of the ground they lie on, and what is not measured is not valid."""

import contextlib
import pickle
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safe_product
from affine import Affine
from listening import listening
from odc.geo.geobox import GeoBox
from safe_product import EPSG, Image, place_of, see_smoothly

from sereno.pipeline import http
from sereno.pipeline.config import IngestSettings, SpeckleSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.mosaic import Reading
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.plates import place_scene
from sereno.pipeline.radiometry import power_to_centi_db
from sereno.pipeline.scene import geobox_of, plates_of
from sereno.pipeline.sensors.sentinel1_grd import read_scene
from sereno.pipeline.shiftfield import make_shift
from sereno.pipeline.signing import Resolver

SETTINGS = IngestSettings(margin_px=4, attempts=1)
OLD = Image(ipf="002.70", shape=(300, 1400))
PREFIXES = {"": "measurement", "annotation-": "annotation", "calibration-": "annotation/calibration", "noise-": "annotation/calibration"}


def make_scene(root: Path, image: Image = Image()) -> SceneRecord:  # noqa: B008
    """A catalogue item of the product, addresses relative to the folder it lies in."""
    assets = {}
    for band in image.bands:
        for prefix, folder in PREFIXES.items():
            kind = prefix if folder.endswith("calibration") else ""
            (path,) = (root / folder).glob(f"{kind}s1a-iw-grd-{band.lower()}-*")
            assets[f"{prefix}{band}"] = AssetRecord(href=str(path.relative_to(root.parent)))
    facts: dict[str, Any] = {"item": "S1A_X", "collection": "sentinel-1-grd", "sensor": "sentinel1-grd", "time": "2021-06-03T05:00:00Z"}
    record = ItemRecord(**facts, crs="", bbox=(10, 45, 11, 46), assets=assets)
    return SceneRecord(id="s", sensor="sentinel1-grd", time=record.time, items=(record,))


def make_area(line: float = 60, pixel: float = 100, *, shape: tuple[int, int] = (150, 120), step_m: float = 10.0) -> GeoBox:
    """An area whose lower left corner is seen at that line and pixel, not on the image's own lattice."""
    x, y = place_of(np.float64(line), np.float64(pixel))
    return GeoBox(shape, Affine(step_m, 0, float(x) + 3.7, 0, -step_m, float(y) + shape[0] * step_m + 1.3), EPSG)


def read(folder: Path, scene: SceneRecord, area: GeoBox, settings: IngestSettings = SETTINGS) -> Reading:
    return read_scene(scene, area, settings, Resolver(str(folder)))


def change(scene: SceneRecord, **assets: AssetRecord | None) -> SceneRecord:
    """The scene with other assets; None takes one away."""
    item = scene.items[0]
    names = {name.replace("_", "-"): asset for name, asset in assets.items()}
    kept = {name: asset for name, asset in (item.assets | names).items() if asset is not None}
    return scene.model_copy(update={"items": (item.model_copy(update={"assets": kept}),)})


def ground_db(scene: Any) -> Any:
    x, y = np.meshgrid(scene["x"].values, scene["y"].values)
    return 10 * np.log10(see_smoothly(x, y))


@pytest.mark.parametrize("image", [Image(), OLD], ids=["ipf 3.40", "ipf 2.70"])
def test_backscatter_is_that_of_the_ground_in_both_polarisations(tmp_path: Path, image: Image) -> None:
    scene = read(
        tmp_path, make_scene(safe_product.write_product(tmp_path, image=image)), make_area(pixel=100 if image != OLD else 600)
    ).scene
    assert scene["valid"].values.all()
    for band, weaker_db in (("VV", 0), ("VH", 10)):
        error = scene["data"].sel(sar_band=band).values / 100 + weaker_db - ground_db(scene)
        assert abs(error.mean()) < 0.01
        assert np.abs(error).max() < 0.3  # of whole digital numbers near the noise


def test_the_scene_is_the_area_with_its_margin(tmp_path: Path) -> None:
    area = make_area()
    scene = read(tmp_path, make_scene(safe_product.write_product(tmp_path)), area).scene
    np.testing.assert_allclose(scene["x"].values, area.pad(4).coords["x"].values)
    np.testing.assert_allclose(scene["y"].values, area.pad(4).coords["y"].values)


def test_what_was_decided_is_recorded(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"speckle": SpeckleSettings(method="lee")})
    reading = read(tmp_path, make_scene(safe_product.write_product(tmp_path, image=Image(hill_m=300))), make_area(), settings)
    facts = reading.scene.attrs["provenance"]
    (item,) = facts["items"]
    assert "ellipsoid gamma0" in facts["calibration"]
    assert "not terrain flattened" in facts["calibration"]
    assert item["geocoding"] == "gcp"
    assert item["noise_subtracted"]
    assert max(item["geocoding_residual_px"]) < 0.01
    (warning,) = facts["warnings"]
    assert "relief is not corrected" in warning
    assert "0 to 300 m" in warning
    assert facts["speckle"].startswith("lee, window 7 px")
    assert {entry.asset for entry in reading.entries} == {
        *("VV", "VH", "annotation-VV", "calibration-VV", "calibration-VH", "noise-VV", "noise-VH", "")
    }


def test_with_a_dem_ground_on_a_hill_is_where_it_belongs(tmp_path: Path) -> None:
    """All ground 400 m high: without its height it is displaced by 400 m / tan(incidence), more than 60 pixels."""

    def see_high(x: Any, y: Any) -> Any:  # what is seen at a pixel lies nearer to the sensor than flat ground would
        squared = (x - safe_product.TRACK_X) ** 2 + safe_product.ALTITUDE**2
        return see_smoothly(safe_product.TRACK_X + np.sqrt(squared - (safe_product.ALTITUDE - 400.0) ** 2), y)

    image = Image(shape=(300, 400))
    root = safe_product.write_product(tmp_path, see_high, image)
    x, y = place_of(np.float64(60), np.float64(100), 400.0)
    area = GeoBox((150, 120), Affine(10, 0, float(x), 0, -10, float(y) + 1500), EPSG)
    dem = area.pad(20)
    with rasterio.open(
        tmp_path / "dem.tif", "w", driver="GTiff", dtype="float32", count=1, width=dem.shape.x, height=dem.shape.y, crs=EPSG,
        transform=dem.transform,
    ) as file:  # fmt: skip
        file.write(np.full(dem.shape, 400, np.float32), 1)
    settings = SETTINGS.model_copy(update={"dem": str(tmp_path / "dem.tif")})
    scene = read(tmp_path, make_scene(root), area, settings).scene
    assert scene["valid"].values.all()
    assert np.abs(scene["data"].sel(sar_band="VV").values / 100 - ground_db(scene)).max() < 0.2
    assert scene.attrs["provenance"]["items"][0]["geocoding"] == "gcp+dem"
    assert not scene.attrs["provenance"]["warnings"]
    flat = read(tmp_path, make_scene(root), area).scene
    assert np.abs(flat["data"].sel(sar_band="VV").values / 100 - ground_db(flat)).max() > 3


@pytest.mark.parametrize("step_m", [10.0, 45.0])
@pytest.mark.parametrize("method", ["none", "lee"])
def test_a_scene_placed_without_a_field_is_its_data(tmp_path: Path, step_m: float, method: Any) -> None:
    settings = SETTINGS.model_copy(update={"speckle": SpeckleSettings(method=method)})
    area = make_area(shape=(150, 120) if step_m == 10 else (30, 25), step_m=step_m)
    scene = read(tmp_path, make_scene(safe_product.write_product(tmp_path)), area, settings).scene
    power, valid = place_scene(scene, geobox_of(scene))
    assert scene.attrs["provenance"]["n_plates"] == 1
    np.testing.assert_array_equal(power_to_centi_db(power, valid)[0], scene["data"].values)
    np.testing.assert_array_equal(valid, scene["valid"].values)


def test_a_field_is_taken_out_from_the_image_itself(tmp_path: Path) -> None:
    scene = read(tmp_path, make_scene(safe_product.write_product(tmp_path)), make_area()).scene
    power, valid = place_scene(scene, make_area(), make_shift(make_area().shape, 1.6, -2.3))
    x, y = np.meshgrid(*(make_area().coords[axis].values for axis in ("x", "y")))
    assert valid.all()
    assert np.abs(10 * np.log10(power[0] / see_smoothly(x - 23, y - 16))).max() < 0.2


def test_hills_are_kept_apart_from_the_lattice_of_the_plate(tmp_path: Path) -> None:
    area = make_area()
    rows, columns = np.mgrid[: area.shape.y + 40, : area.shape.x + 40]
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": len(rows), "width": rows.shape[1], "crs": EPSG}
    with rasterio.open(tmp_path / "dem.tif", "w", **profile, transform=area.pad(20).transform) as file:
        file.write((100 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.float32), 1)
    settings = SETTINGS.model_copy(update={"dem": str(tmp_path / "dem.tif")})
    root = safe_product.write_product(tmp_path)
    hills, flat = (read(tmp_path, make_scene(root), area, chosen).scene for chosen in (settings, SETTINGS))
    (one,), (other,) = plates_of(hills), plates_of(flat)
    assert one.relief is not None
    assert other.relief is None
    assert 5 < np.abs(one.relief[1]).max() < 30  # 100 m / tan(incidence) / 10 m
    assert np.abs(one.relief[0]).max() < 0.5
    power, valid = place_scene(hills, geobox_of(hills))
    np.testing.assert_array_equal(power_to_centi_db(power, valid)[0], hills["data"].values)


def test_coarse_pixels_hold_means_of_power(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = safe_product.write_product(tmp_path, lambda x, _: rng.gamma(4.4, 0.1 / 4.4, x.shape))
    fine, coarse = (
        read(tmp_path, make_scene(root), make_area(shape=shape, step_m=step_m)).scene
        for step_m, shape in ((10.0, (150, 120)), (60.0, (25, 20)))
    )
    means, scatter = zip(
        *((power.mean(), power.std()) for power in (10 ** (scene["data"].values[0] / 1000) for scene in (fine, coarse))), strict=True
    )
    assert means == pytest.approx([0.1, 0.1], rel=0.05)
    assert scatter[1] < 0.5 * scatter[0]


def test_a_dem_that_is_not_there_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"dem": str(tmp_path / "absent.tif")})
    with pytest.raises(MissingError, match=r"dem .*absent\.tif cannot be opened or read"):
        read(tmp_path, make_scene(safe_product.write_product(tmp_path)), make_area(), settings)


def test_control_points_of_the_file_serve_without_annotation(tmp_path: Path) -> None:
    scene = change(make_scene(safe_product.write_product(tmp_path)), annotation_VV=None, annotation_VH=None)
    found = read(tmp_path, scene, make_area()).scene
    assert np.abs(found["data"].sel(sar_band="VV").values / 100 - ground_db(found)).max() < 0.2


def test_nodata_is_invalid_with_every_pixel_that_it_enters(tmp_path: Path) -> None:
    hole = Image(nodata=(slice(100, 120), slice(150, 200)))
    area = make_area()
    scene = read(tmp_path, make_scene(safe_product.write_product(tmp_path, image=hole)), area).scene
    invalid = ~scene["valid"].values
    _, y = place_of(np.array([100.0, 119.0]), np.array([150.0, 199.0]))
    rows = [int((area.pad(4).transform.f - value) // 10) for value in y]
    assert 1000 < invalid.sum() < 3000  # 20 lines of 10 m by 50 pixels of 20 m on the ground, and a rim
    assert invalid[rows[1] + 1 : rows[0] - 1].any(axis=1).all()
    assert not invalid[: rows[1] - 2].any()
    error = np.abs(scene["data"].sel(sar_band="VV").values / 100 - ground_db(scene))
    assert error[~invalid].max() < 0.2  # nothing is darkened beside the hole


def test_ground_beyond_the_image_is_invalid(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    half = read(tmp_path, make_scene(root), make_area(line=220)).scene["valid"].values
    assert 0.3 < half.mean() < 0.7
    assert half[-1].all()
    assert not half[0].any()
    away = read(tmp_path, make_scene(root), make_area(line=5000)).scene
    assert not away["valid"].values.any()
    assert away.attrs["provenance"]["refused"]


def test_the_border_is_cut_for_old_processors_only(tmp_path: Path) -> None:
    area, shares = make_area(line=-20, pixel=40, shape=(150, 300)), []
    for image in (OLD, Image(shape=OLD.shape)):
        folder = tmp_path / image.ipf
        folder.mkdir()
        shares.append(
            read(folder, make_scene(safe_product.write_product(folder, image=image)), area, IngestSettings(margin_px=0)).scene["valid"]
        )
    old, new = (share.values for share in shares)
    assert new[:-30].all()
    assert not old[:, :150].any()  # 500 pixels of 10 m in ground range from the near edge
    assert not old[-68:].any()  # 20 lines before the image, 50 of it
    assert not (old & ~new).any()


@pytest.mark.parametrize("noise", ["in other units", "not stated"])
def test_the_border_of_an_old_product_is_cut_also_where_its_noise_is_of_no_use(tmp_path: Path, noise: str) -> None:
    """The oldest products have both: noise tables in arbitrary units, or none, and the widest borders."""
    root = safe_product.write_product(tmp_path, image=OLD)
    scene = make_scene(root)
    if noise == "not stated":
        scene = change(scene, noise_VV=None, noise_VH=None)
    for path in (root / "annotation" / "calibration").glob("noise-*"):
        path.write_text(safe_product.to_noise(OLD._replace(noise=9e6)))
    valid = read(tmp_path, scene, make_area(line=100, pixel=450, shape=(60, 300)), IngestSettings(margin_px=0)).scene["valid"].values
    assert not valid[:, :40].any()  # of the 500 pixels at the near edge 50 lie in the area
    assert valid[:, 60:].all()


def test_noise_that_is_stronger_than_the_signal_is_floored_and_counted(tmp_path: Path) -> None:
    """Noise of the tables twice that of the image: at some pixels nothing is left."""
    root = safe_product.write_product(tmp_path, lambda x, _: np.full(x.shape, 1e-4))
    for path in (root / "annotation" / "calibration").glob("noise-*"):
        path.write_text(safe_product.to_noise(Image(noise=1800.0)))
    reading = read(tmp_path, make_scene(root), make_area())
    scene = reading.scene
    assert scene["valid"].values.all()
    assert (scene["data"].values == -5000).all()
    assert scene.attrs["provenance"]["items"][0]["n_below_noise"] > 2 * 100 * 100


def test_noise_tables_in_other_units_are_left_out_and_said(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    for path in (root / "annotation" / "calibration").glob("noise-*"):
        path.write_text(safe_product.to_noise(Image(noise=9e6)))
    facts = read(tmp_path, make_scene(root), make_area()).scene.attrs["provenance"]
    assert not facts["items"][0]["noise_subtracted"]
    assert any("thermal noise is left in" in warning for warning in facts["warnings"])


def test_without_a_noise_table_noise_is_left_in_and_said(tmp_path: Path) -> None:
    scene = change(make_scene(safe_product.write_product(tmp_path)), noise_VV=None)
    found = read(tmp_path, scene, make_area()).scene
    assert "states no noise table of VV" in found.attrs["provenance"]["warnings"][1]
    assert ((found["data"].sel(sar_band="VV").values / 100 - ground_db(found)) > 0).all()


@pytest.mark.parametrize("name", ["calibration-VV", "VH"])
def test_an_item_without_a_needed_asset_is_refused_and_says_why(tmp_path: Path, name: str) -> None:
    scene = make_scene(safe_product.write_product(tmp_path))
    gone = change(scene, **{name.replace("-", "_"): AssetRecord(href="absent.xml")})
    reading = read(tmp_path, gone, make_area())
    facts = reading.scene.attrs["provenance"]
    assert facts["refused"]
    assert [loss["asset"] for loss in facts["lost"]] == [name]
    assert {entry.status for entry in reading.entries if entry.asset in (name, "")} == {"missing"}


def test_a_damaged_table_costs_the_item_and_not_the_run(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    path = next((root / "annotation" / "calibration").glob("calibration-*-vv-*"))
    path.write_text(path.read_text()[:500])
    facts = read(tmp_path, make_scene(root), make_area()).scene.attrs["provenance"]
    assert "not valid XML" in facts["lost"][0]["reason"]


def test_scenes_of_one_polarisation_are_read_as_what_they_are(tmp_path: Path) -> None:
    image = Image(bands=("HH",))
    scene = read(tmp_path, make_scene(safe_product.write_product(tmp_path, image=image), image), make_area()).scene
    assert list(scene["sar_band"].values) == ["HH"]
    assert np.abs(scene["data"].values[0] / 100 - ground_db(scene)).max() < 0.2


def test_reading_in_squares_changes_nothing_but_the_bytes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, area = make_scene(safe_product.write_product(tmp_path)), make_area(line=40)
    whole = read(tmp_path, scene, area)
    monkeypatch.setattr("sereno.pipeline.sensors.sentinel1_grd.SQUARE_PX", 50)
    squares = read(tmp_path, scene, area)
    np.testing.assert_array_equal(whole.scene["valid"].values, squares.scene["valid"].values)
    difference = np.abs(whole.scene["data"].values.astype(int) - squares.scene["data"].values)
    assert difference.max() <= 1  # centi-dB: the last digits of coordinates differ
    read_bytes = [sum(entry.bytes_read for entry in reading.entries) for reading in (whole, squares)]
    assert read_bytes[1] > read_bytes[0]


@pytest.mark.parametrize("choice", [("threads", 3), ("tcp://10.0.0.1:8786", 7)])
def test_polarisations_are_read_by_as_many_readers_as_the_settings_say_where_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: tuple[str, int]
) -> None:
    asked = []

    def run(tasks: Any, scheduler: str, workers: int) -> Any:
        asked.append((len(tasks), scheduler, workers))
        return pickle.loads(pickle.dumps([task() for task in pickle.loads(pickle.dumps(tasks))]))

    scene, area = make_scene(safe_product.write_product(tmp_path)), make_area()
    expected = read(tmp_path, scene, area).scene
    monkeypatch.setattr("sereno.pipeline.sensors.sentinel1_grd.run_tasks", run)
    settings = SETTINGS.model_copy(update={"scheduler": choice[0], "readers": choice[1]})
    np.testing.assert_array_equal(read(tmp_path, scene, area, settings).scene["data"].values, expected["data"].values)
    assert asked == [(2, *choice)]


def test_one_reader_gives_what_several_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sereno.pipeline.sensors.sentinel1_grd.SQUARE_PX", 50)
    scene, area = make_scene(safe_product.write_product(tmp_path)), make_area()
    one, four = (read(tmp_path, scene, area, SETTINGS.model_copy(update={"readers": readers})) for readers in (1, 4))
    np.testing.assert_array_equal(one.scene["data"].values, four.scene["data"].values)
    assert one.scene.attrs["provenance"] == four.scene.attrs["provenance"]


def serving(folder: Path, *refused: str, busy: str = "//") -> AbstractContextManager[str]:
    """A server of the files below `folder`, whole files only, which GDAL reads as well; it does not know addresses that hold `refused`, and
    answers 503 to the first request for one that holds `busy`."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        path = folder / handler.path.lstrip("/")
        if busy in handler.path and not asked:
            asked.append(handler.path)
            handler.send_error(503)
            return
        if any(part in handler.path for part in refused) or not path.is_file():
            handler.send_error(404)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(path.stat().st_size))
        handler.end_headers()
        if handler.command == "GET":
            with contextlib.suppress(ConnectionError):  # GDAL hangs up when it has what it wants
                handler.wfile.write(path.read_bytes())

    return listening(respond)


def test_an_item_of_a_server_gives_what_its_files_give(tmp_path: Path) -> None:
    scene = make_scene(safe_product.write_product(tmp_path))
    with serving(tmp_path) as url:
        local, remote = (read_scene(scene, make_area(), SETTINGS, Resolver(place)).scene for place in (str(tmp_path), url))
    np.testing.assert_array_equal(local["data"].values, remote["data"].values)
    assert local.attrs["provenance"] == remote.attrs["provenance"]


@pytest.mark.parametrize("busy", ["calibration-s1a-iw-grd-vv", "annotation/s1a-iw-grd-vv"])
def test_tables_cost_bytes_seconds_and_tries_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    monkeypatch.setattr(http, "compute_pause", lambda *_: 0.0)
    scene = make_scene(safe_product.write_product(tmp_path))
    with serving(tmp_path, busy=busy) as url:
        entries = read_scene(scene, make_area(), SETTINGS, Resolver(url)).entries
    tables = [entry for entry in entries if "-" in entry.asset]
    assert len(tables) == 5
    for entry in tables:
        path = tmp_path / scene.items[0].assets[entry.asset].href
        assert (entry.status, entry.bytes_read, entry.retries) == ("used", path.stat().st_size, int(busy in str(path)))
        assert entry.seconds > 0


def test_an_item_that_a_damaged_table_costs_tells_what_reading_its_tables_took(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    (path,) = (root / "annotation" / "calibration").glob("calibration-*-vh-*")
    path.write_text(path.read_text()[:500])
    entries = {entry.asset: entry for entry in read(tmp_path, make_scene(root), make_area()).entries}
    assert (entries["calibration-VH"].status, entries["calibration-VH"].bytes_read) == ("unreadable", 500)
    assert entries["calibration-VV"].status == "used"
    assert entries["calibration-VV"].bytes_read > 500


def test_a_table_that_a_server_has_lost_is_a_loss(tmp_path: Path) -> None:
    scene = make_scene(safe_product.write_product(tmp_path))
    with serving(tmp_path, "noise-") as url:
        facts = read_scene(scene, make_area(), SETTINGS, Resolver(url)).scene.attrs["provenance"]
    assert "HTTP 404" in facts["lost"][0]["reason"]
