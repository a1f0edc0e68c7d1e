import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates

from sereno.pipeline import simulate
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings, SimulatedArea, SimulateSettings
from sereno.pipeline.errors import ConfigError, StoreError
from sereno.pipeline.ground import make_ground
from sereno.pipeline.pairs import GridRecord, SceneRecord
from sereno.pipeline.radar import compute_backscatter
from sereno.pipeline.sensors import gaofen3, gaofen6
from sereno.pipeline.sensors.gaofen_folder import list_products
from sereno.pipeline.signing import Resolver
from sereno.pipeline.simulate import simulate_world
from sereno.pipeline.views import HEADING_DEG
from sereno.pipeline.world import make_rng

AREAS = {
    "west": SimulatedArea(epsg=32632, west_m=498400, south_m=5040000, size_px=240, dialect="earth-search"),
    "east": SimulatedArea(epsg=32633, west_m=442400, south_m=5040000, size_px=240, dialect="planetary-computer"),
}
SETTINGS = SimulateSettings(areas=AREAS, cloudy_dates=2, looks=400)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("simulate") / "world.json"
    simulate_world(output, SETTINGS)
    return output.parent, json.loads(output.read_text())


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _scene(world: tuple[Path, dict[str, Any]], area: str, role: str, index: int = 0) -> tuple[dict[str, Any], Path]:
    root, content = world
    fact = [f for f in content["areas"][area]["optical"] if f["role"] == role][index]
    return fact, root / "assets" / area / fact["item"]


def test_world_lists_every_file_with_its_checksum(world: tuple[Path, dict[str, Any]]) -> None:
    root, content = world
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {"world.json"}
    assert present == set(content["files"])
    for name, digest in content["files"].items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest


def test_same_seed_gives_the_same_bytes_after_a_killed_job_and_another_seed_others(
    world: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, content = world
    (tmp_path / ".assets.partial" / "west").mkdir(parents=True)
    (tmp_path / ".assets.partial" / "west" / "left.tif").write_bytes(b"half")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "stale.tif").write_bytes(b"stale")
    simulate_world(tmp_path / "world.json", SETTINGS)
    assert json.loads((tmp_path / "world.json").read_text()) == content
    assert not list(tmp_path.glob(".*"))
    simulate_world(tmp_path / "world.json", SETTINGS.model_copy(update={"seed": 8, "areas": {"west": AREAS["west"]}}))
    assert json.loads((tmp_path / "world.json").read_text())["files"] != content["files"]


FILL_DISK = """
import resource, sys
from pathlib import Path
from sereno.pipeline.config import SimulateSettings, parse_settings
from sereno.pipeline.errors import StoreError
from sereno.pipeline.simulate import simulate_world
from sereno.pipeline.views import HEADING_DEG
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    simulate_world(Path(sys.argv[1]), parse_settings(SimulateSettings, sys.argv[2]))
except StoreError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("missing", [1, 5000])
def test_a_product_that_the_disk_refuses_gives_one_line_and_is_never_cut_short(
    world: tuple[Path, dict[str, Any]], tmp_path: Path, missing: int
) -> None:
    root, content = world
    room = max((root / name).stat().st_size for name in content["files"]) - missing
    command = [sys.executable, "-c", FILL_DISK, tmp_path / "world.json", SETTINGS.to_json(), str(room)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 6, run.stderr
    assert run.stdout.count("\n") == 1
    assert "File too large; free space or choose another folder" in run.stdout
    assert not list(tmp_path.rglob("*.tif"))
    assert not (tmp_path / "world.json").exists()


def test_the_order_in_which_areas_are_named_changes_no_byte(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    turned = SETTINGS.model_copy(update={"areas": dict(reversed(AREAS.items()))})
    simulate_world(tmp_path / "world.json", turned)
    assert json.loads((tmp_path / "world.json").read_text()) == world[1]


def test_catalogue_is_read_by_pystac_and_every_asset_is_there(world: tuple[Path, dict[str, Any]]) -> None:
    root, content = world
    items = list(pystac.Catalog.from_file(str(root / "catalog.json")).get_items(recursive=True))
    expected = {fact["item"] for area in content["areas"].values() for fact in (*area["optical"], *area["sar"])}
    assert expected < {item.id for item in items}
    for item in items:
        for asset in item.assets.values():
            path = Path(asset.get_absolute_href() or "")
            with rasterio.open(path) as file:
                assert [file.height, file.width] == asset.extra_fields["proj:shape"]
                assert list(file.transform)[:6] == asset.extra_fields["proj:transform"]
            assert asset.extra_fields["file:size"] == path.stat().st_size
            assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_classes_have_smaller_copies_down_to_160_m_without_new_classes(world: tuple[Path, dict[str, Any]]) -> None:
    _, folder = _scene(world, "west", "cloudy")
    with rasterio.open(folder / "SCL.tif") as file:
        assert file.overviews(1) == [2, 4, 8]
        whole, small = file.read(1), file.read(1, out_shape=(file.height // 8, file.width // 8))
    assert set(small.ravel()) <= set(whole.ravel())
    shares = [float(np.isin(image[image > 0], (8, 9, 10)).mean()) for image in (whole, small)]
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_products_are_cloud_optimised_with_their_crs_and_nodata(world: tuple[Path, dict[str, Any]]) -> None:
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    _, folder = _scene(world, "west", "clear")
    for band in SENTINEL2_BANDS:
        if band.name in L2A_BANDS:
            with rasterio.open(folder / f"{band.name}.tif") as file:
                assert (file.crs.to_epsg(), file.nodata, file.dtypes[0], file.res[0]) == (32632, 0, "uint16", band.gsd_m)
                assert file.bounds.left == 498400 - 240
    assert cogeo.cog_validate(folder / "B02.tif", quiet=True)[0]


@pytest.mark.parametrize("area", ["west", "east"])
@pytest.mark.parametrize("index", [0, 1])
def test_where_the_sky_is_clear_the_product_shows_the_truth(world: tuple[Path, dict[str, Any]], area: str, index: int) -> None:
    fact, folder = _scene(world, area, "cloudy", index)
    root = world[0]
    offset = 1000 if float(fact["processing_baseline"]) >= 4 else 0
    cloud, shadow = _read(root / fact["cloud"])
    truth = _read(root / fact["truth"]).astype(float)
    seen = (cloud == 0) & (shadow == 0)
    for name in ("B02", "B08"):
        number = _read(folder / f"{name}.tif")[0, 24:-24, 24:-24].astype(float)
        error = (number - offset - truth[L2A_BANDS.index(name)])[seen & (number > 0)]
        assert error.size > 50
        assert abs(error.mean()) < 8
        assert error.std() < 40
        assert np.all(number[(cloud > 250) & (number > 0)] - offset > 3000)


def test_one_cloudy_scene_has_a_wedge_without_data_in_every_band(world: tuple[Path, dict[str, Any]]) -> None:
    _, folder = _scene(world, "west", "cloudy", 1)
    shares = [float((_read(folder / f"{name}.tif") == 0).mean()) for name in (*L2A_BANDS, "SCL")]
    assert min(shares) > 0.02
    assert max(shares) < 0.15
    _, whole = _scene(world, "west", "cloudy", 0)
    assert all((_read(whole / f"{name}.tif") > 0).all() for name in L2A_BANDS)


def test_dark_water_is_valid_and_reaches_below_the_offset(world: tuple[Path, dict[str, Any]]) -> None:
    scenes = [_scene(world, area, "clear") for area in AREAS]
    _, folder = next(scene for scene in scenes if float(scene[0]["processing_baseline"]) >= 4)
    number = _read(folder / "B12.tif")
    assert 0 < number.min() < 1000


def test_stated_cloud_cover_follows_the_role(world: tuple[Path, dict[str, Any]]) -> None:
    for area in AREAS:
        assert _scene(world, area, "clear")[0]["cloud_cover_pct"] < 3
        assert 15 < _scene(world, area, "cloudy")[0]["cloud_cover_pct"] < 75
        assert _scene(world, area, "overcast")[0]["cloud_cover_pct"] > 95


def test_sar_has_zeros_outside_its_swath_although_another_nodata_value_is_declared(world: tuple[Path, dict[str, Any]]) -> None:
    root, content = world
    for fact in content["areas"]["west"]["sar"]:
        with rasterio.open(root / "assets" / "west" / fact["item"] / "vv.tif") as file:
            assert file.nodata == -32768
            values = file.read(1)
            assert file.bounds.left < 498400
        assert (values == 0).any()
        assert not (values == -32768).any()


def test_sar_lies_where_world_says_it_lies(world: tuple[Path, dict[str, Any]]) -> None:
    root, content = world
    ground = make_ground(make_rng(SETTINGS.seed, "west", "ground"), (240 + 2 * 60,) * 2)
    for fact in content["areas"]["west"]["sar"]:
        moved = fact["displacement"]
        power = compute_backscatter(ground, looks_right_deg=100 if fact["time"][11:13] == "17" else 260)[0]
        with rasterio.open(root / "assets" / "west" / fact["item"] / "vv.tif") as file:
            grid = GridRecord.model_validate(content["areas"]["west"]["grid"]).to_geobox()
            assert isinstance(grid, GeoBox)
            row, column = (round(v) for v in file.index(498405, grid.boundingbox.top - 5))
            seen = file.read(1)[row + 60 : row + 180, column + 60 : column + 180]
        errors = {}
        for dy in np.arange(-4, 5):
            for dx in np.arange(-4, 5):
                errors[dy, dx] = np.mean((seen - power[120 - dy : 240 - dy, 120 - dx : 240 - dx]) ** 2)
        best = min(errors, key=errors.__getitem__)
        assert np.hypot(best[0] - moved["dy_px"], best[1] - moved["dx_px"]) < 0.8


def test_partners_are_near_in_time_and_one_sar_scene_has_none(world: tuple[Path, dict[str, Any]]) -> None:
    content = world[1]
    for area in content["areas"].values():
        times = {fact["item"]: np.datetime64(fact["time"][:19]) for fact in area["optical"]}
        gaps = [abs(np.datetime64(f["time"][:19]) - times[f["partner"]]) for f in area["sar"] if f["partner"]]
        assert len(gaps) == 2
        assert max(gaps) <= np.timedelta64(36, "h")
        assert sum(fact["partner"] is None for fact in area["sar"]) == 1


def test_a_world_without_areas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="areas"):
        simulate_world(tmp_path / "world.json", SimulateSettings())


def test_a_world_whose_files_another_job_removed_is_not_declared_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = simulate._write_catalogue

    def write_and_lose(root: Path, items: list[dict[str, Any]]) -> None:
        write(root, items)
        next(root.glob("assets/*/*/B02.tif")).unlink()

    monkeypatch.setattr(simulate, "_write_catalogue", write_and_lose)
    with pytest.raises(StoreError, match="another job"):
        simulate_world(tmp_path / "world.json", SETTINGS.model_copy(update={"areas": {"west": AREAS["west"]}, "cloudy_dates": 1}))
    assert not (tmp_path / "world.json").exists()


GAOFEN = SimulateSettings(
    areas={
        "pms": SimulatedArea(epsg=32632, west_m=499200, south_m=5040000, size_px=240, satellites="gaofen-pms"),
        "wfv": SimulatedArea(epsg=32632, west_m=599200, south_m=5040000, size_px=240, satellites="gaofen-wfv"),
    },
    cloudy_dates=1,
)


@pytest.fixture(scope="module")
def gaofen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("gaofen") / "world.json"
    simulate_world(output, GAOFEN)
    return output.parent, json.loads(output.read_text())


def test_products_of_gaofen_are_found_with_what_the_world_says_of_them(gaofen: tuple[Path, dict[str, Any]]) -> None:
    root, content = gaofen
    listing = list_products(root / "products")
    assert not listing.refused
    items = {item.item: item for item, _ in listing.items}
    facts = {fact["item"]: fact for area in content["areas"].values() for fact in (*area["optical"], *area["sar"])}
    assert items.keys() == facts.keys()
    assert len(items) == 2 * 3  # a clear date, a cloudy one and its SAR, twice
    for name, fact in facts.items():
        assert np.datetime64(items[name].time[:19]) - np.datetime64(fact["time"][:19]) in (np.timedelta64(0), np.timedelta64(-4, "s"))
        assert items[name].cloud_cover_pct == fact.get("cloud_cover_pct")
        assert 20 <= np.hypot(*fact["error_m"]) <= 120
    assert {(root / fact["path"]).is_dir() for fact in facts.values()} == {True, False}
    assert len({tuple(fact["error_m"]) for fact in facts.values()}) == len(facts)


def test_a_world_of_gaofen_lists_every_file_and_is_the_same_each_time(gaofen: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, content = gaofen
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {"world.json"}
    assert present == set(content["files"])
    simulate_world(tmp_path / "world.json", GAOFEN)
    assert json.loads((tmp_path / "world.json").read_text()) == content


def test_areas_of_gaofen_change_no_byte_of_those_of_sentinel(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first = min(AREAS)  # areas are made in the order of their names, and each is told by its number which baselines it has
    both = SETTINGS.model_copy(update={"areas": {first: AREAS[first], "zulu": GAOFEN.areas["wfv"]}})
    simulate_world(tmp_path / "world.json", both)
    content, expected = json.loads((tmp_path / "world.json").read_text()), world[1]
    assert content["areas"][first] == expected["areas"][first]
    truths = tuple(f"truth/{fact['item']}" for fact in expected["areas"][first]["optical"])
    shared = {name: digest for name, digest in expected["files"].items() if name.startswith((f"assets/{first}/", *truths))}
    assert len(shared) > 20
    assert shared == {name: content["files"][name] for name in shared}


@pytest.mark.parametrize("area", ["pms", "wfv"])
def test_a_product_of_gaofen_shows_the_truth_where_it_says_it_lies(
    gaofen: tuple[Path, dict[str, Any]], area: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read with the world's heights, on the grid moved by the product's own error, the open ground is the truth."""
    root, content = gaofen
    monkeypatch.chdir(root)  # as the workflow does it: the folder of the products is named from where it runs
    facts = content["areas"][area]
    fact = next(fact for fact in facts["optical"] if fact["role"] == "cloudy")
    item = next(item for item, _ in list_products(Path("products")).items if item.item == fact["item"])
    grid = GridRecord.model_validate(facts["grid"]).to_geobox()
    moved = GeoBox(grid.shape, Affine.translation(*fact["error_m"]) * grid.transform, grid.crs)
    settings = IngestSettings(dem=str(root / f"assets/{area}/{facts['dem']}/dem.tif"), check="none")
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    scene = gaofen6.read_scene(record, moved, settings, Resolver("products")).scene
    cloud, shadow = _read(root / fact["cloud"])
    truth = _read(root / fact["truth"]).astype(float)
    seen = scene["valid"].values & (cloud < 10) & (shadow < 10)
    assert seen.sum() > 200
    error = (scene["data"].values.astype(float) - truth)[:, seen]
    assert abs(error.mean()) < 40  # haze of up to 4 % lies over it
    assert error.std() < 80
    assert scene["data"].values[:, cloud > 250].mean() > 4000


def test_small_areas_have_a_panchromatic_image_and_the_grid_of_their_camera(gaofen: tuple[Path, dict[str, Any]]) -> None:
    root, content = gaofen
    assert len(list((root / "products").rglob("*-PAN.tiff"))) == 1  # of two products one is packed
    assert [content["areas"][area]["grid"]["transform"][0] for area in ("pms", "wfv")] == [8, 16]


@pytest.fixture(scope="module", params=["L1B", "L2"])
def leveled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], SimulateSettings]:
    settings = SimulateSettings(areas={"wfv": GAOFEN.areas["wfv"]}, cloudy_dates=1, radar_level=request.param)
    output = tmp_path_factory.mktemp(request.param) / "world.json"
    simulate_world(output, settings)
    return output.parent, json.loads(output.read_text()), settings


def _read_radar(root: Path, facts: dict[str, Any], level: str) -> np.ndarray:
    """HH in decibels, of one look a little smoothed, on the grid of the area moved by the product's own error."""
    [fact] = facts["sar"]
    grid = GridRecord.model_validate(facts["grid"]).to_geobox().zoom_to(resolution=10)
    moved = GeoBox(grid.shape, Affine.translation(*fact["error_m"]) * grid.transform, grid.crs)
    [item] = [item for item, _ in list_products(Path("products")).items if item.item == fact["item"]]
    assert item.properties["processing_level"] == level
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    settings = IngestSettings(dem=str(root / f"assets/wfv/{facts['dem']}/dem.tif"), check="none", margin_px=0)
    scene = gaofen3.read_scene(record, moved, settings, Resolver("products")).scene
    return gaussian_filter(scene["data"].values[0].astype(float) / 100, 1.5)


def test_radar_of_another_level_leans_as_its_level_does(
    leveled: tuple[Path, dict[str, Any], SimulateSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DEM takes the lean of level 1 away. At level 2 ground stays displaced by its height over the provider's, times cot(incidence)."""
    root, content, made = leveled
    monkeypatch.chdir(root)
    seen = _read_radar(root, content["areas"]["wfv"], made.radar_level)

    site = simulate._open_site(("wfv", 0, made.areas["wfv"]), made, dict.fromkeys(("assets", "truth", "products"), root))
    power = compute_backscatter(site.ground, looks_right_deg=90 + HEADING_DEG)[0]
    truth = gaussian_filter(10 * np.log10(site.crop(power, (0,) * 4)), 1.5)
    over = site.crop(site.ground.height_m, (0,) * 4) - site.ground.height_m.mean()
    lean_px = -over / math.tan(math.radians(35)) / 10
    heading = math.radians(HEADING_DEG)
    rows, columns = np.mgrid[: truth.shape[0], : truth.shape[1]]

    def agree(share: float) -> float:
        """Correlation of the truth and the image where the truth is expected, displaced by that share of the whole lean."""
        places = np.stack([rows + share * lean_px * math.sin(heading), columns + share * lean_px * math.cos(heading)])
        inside = ((places >= 20) & (places < 220)).all(axis=0)
        return float(np.corrcoef(map_coordinates(seen, places, order=1)[inside], truth[inside])[0, 1])

    found = {share: agree(share) for share in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)}
    assert np.abs(lean_px).max() > 5
    assert max(found, key=found.__getitem__) == (1.0 if made.radar_level == "L2" else 0.0), found
    assert max(found.values()) > 0.85, found


def test_relief_of_zero_is_level_ground_and_half_of_it_half_as_high(tmp_path: Path) -> None:
    heights = []
    for relief in (1.0, 0.5, 0.0):
        area = GAOFEN.areas["wfv"].model_copy(update={"relief": relief})
        settings = SimulateSettings(areas={"a": area}, cloudy_dates=1)
        folders = dict.fromkeys(("assets", "truth", "products"), tmp_path)
        heights.append(simulate._open_site(("a", 0, area), settings, folders).ground.height_m)
    np.testing.assert_array_equal(heights[1], heights[0] / 2)
    assert np.ptp(heights[0]) > 50
    assert not heights[2].any()


def test_a_world_of_another_level_is_whole_and_the_same_each_time(
    leveled: tuple[Path, dict[str, Any], SimulateSettings], tmp_path: Path
) -> None:
    root, content, settings = leveled
    assert not list_products(root / "products").refused
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {"world.json"}
    assert present == set(content["files"])
    simulate_world(tmp_path / "world.json", settings)
    assert json.loads((tmp_path / "world.json").read_text()) == content


def test_a_side_that_pixels_of_gaofen_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 24"):
        SimulatedArea(epsg=32632, west_m=0, south_m=0, size_px=246, satellites="gaofen-pms")


def test_a_world_of_cubes_holds_arrays_with_their_wavelengths_and_no_catalogue(tmp_path: Path) -> None:
    area = SimulatedArea(epsg=32632, west_m=498400, south_m=5040000, size_px=240, satellites="cube")
    settings = SimulateSettings(areas={"a": area, "b": area})
    simulate_world(tmp_path / "one/world.json", settings)
    simulate_world(tmp_path / "two/world.json", settings)
    world = json.loads((tmp_path / "one/world.json").read_text())
    assert (tmp_path / "two/world.json").read_text() == (tmp_path / "one/world.json").read_text()
    assert sorted(world["files"]) == [f"cubes/{name}{suffix}" for name in "ab" for suffix in (".npy", ".wavelengths.txt")]
    first, second = (np.load(tmp_path / f"one/{world['areas'][name]['cube']}") for name in "ab")
    assert (first.shape, first.dtype) == ((240, 240, 28), np.uint16)
    assert 0.01 < first.mean() / 65_535 < 0.4
    assert not np.array_equal(first, second)
    wavelengths = [float(line) for line in (tmp_path / "one/cubes/a.wavelengths.txt").read_text().split()]
    assert (wavelengths[0], wavelengths[-1], len(wavelengths)) == (450, 720, 28)


def test_a_world_of_landsat_and_modis_is_whole_readable_and_the_same_each_time(tmp_path: Path) -> None:
    area = {"epsg": 32632, "west_m": 499_215, "south_m": 5_040_015, "size_px": 240, "satellites": "landsat-modis"}
    settings = SimulateSettings.model_validate({"cloudy_dates": 1, "areas": {"a": area}})
    for name in ("one", "two"):
        simulate_world(tmp_path / name / "world.json", settings)
    first, second = (json.loads((tmp_path / name / "world.json").read_text()) for name in ("one", "two"))
    assert first == second
    facts = first["areas"]["a"]
    assert [scene["role"] for scene in facts["optical"]] == ["clear", "cloudy", "clear"]
    assert (len(facts["coarse"]), facts["response"]["B02"]) == (3, 1.06)
    assert facts["optical"][1]["cloud_cover_pct"] > 20
    assert facts["optical"][0]["cloud_cover_pct"] < 5
    catalogue = pystac.Catalog.from_file(str(tmp_path / "one/catalog.json"))
    items = list(catalogue.get_items(recursive=True))
    assert {item.collection_id for item in items} == {"landsat-c2-l2", "modis-09A1-061"}
    for item in items:
        for asset in item.get_assets().values():
            with rasterio.open(asset.get_absolute_href()) as file:
                assert file.count == 1
                if item.collection_id == "modis-09A1-061":
                    assert file.crs.to_dict()["proj"] == "sinu"


def test_a_side_that_coarse_pixels_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'size_px' 246 must be a multiple of 48 for Landsat and MODIS"):
        SimulatedArea(epsg=32632, west_m=0, south_m=0, size_px=246, satellites="landsat-modis")


@pytest.mark.parametrize(
    ("satellites", "parts"),
    [
        ("sentinel", {"assets", "truth"}),
        ("gaofen-wfv", {"assets", "truth", "products"}),
        ("landsat-modis", {"assets"}),
        ("cube", {"cubes"}),
    ],
)
def test_an_area_has_no_other_folders_than_those_of_its_kind(satellites: Any, parts: set[str], tmp_path: Path) -> None:
    area = SimulatedArea(epsg=32632, west_m=499200, south_m=5040000, size_px=240, satellites=satellites)
    folders = {part: tmp_path / part for part in ("assets", "truth", "products", "cubes")}
    site = simulate._open_site(("a", 0, area), SimulateSettings(areas={"a": area}), folders)
    for part in folders:
        if part in parts:
            assert getattr(site, part) == tmp_path / part
        else:
            with pytest.raises(KeyError, match=part):
                getattr(site, part)
