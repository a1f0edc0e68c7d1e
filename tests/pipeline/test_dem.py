"""Elevation models become one image of heights: without a seam, without guesses, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from elevations import (
    COLLECTION,
    EAST,
    GRID,
    MEET_DEG,
    PLACES,
    SIZE,
    STEP_DEG,
    WEST,
    compute_expected,
    make_lock,
    write_catalogue,
    write_tile,
)
from faulty import answer, running_faulty
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasters import read_tile_offsets, write_raster
from real_files import find_samples

from sereno.pipeline import http
from sereno.pipeline.areas import Ground
from sereno.pipeline.config import DemSettings, IngestSettings, QuerySettings
from sereno.pipeline.dem import Tile, join_elevations, join_tiles, warp_tile
from sereno.pipeline.elevation import find_elevations, to_dem_grid
from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError
from sereno.pipeline.ledger import read_ledger
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.sensors import assets
from sereno.pipeline.sensors.heights import describe_surface, read_ellipsoidal_heights
from sereno.pipeline.server import running_server

SETTINGS = DemSettings(margin_m=500, pixel_m=30, attempts=2)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(assets, "BACKOFF_S", 0.005)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


def search(catalogue: Path | str) -> SceneRecord:
    settings = QuerySettings.model_validate({"areas": {"west": {"bbox": [9, 45, 9.1, 45.2]}}, "dem_catalogue": str(catalogue)})
    return find_elevations("west", Ground(GRID, None), settings, margin_m=500).record


def join(folder: Path, record: SceneRecord, settings: DemSettings = SETTINGS) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Heights (y, x) and the manifest."""
    output = folder / "dem" / "west.json"
    join_elevations(make_lock(folder / "query" / "west.json", record), output, settings)
    with rasterio.open(output.with_suffix(".tif")) as file:
        return file.read(1), json.loads(output.read_text())


def test_two_tiles_that_meet_give_the_plane_they_were_cut_from_without_a_seam(tmp_path: Path) -> None:
    heights, facts = join(tmp_path, search(write_catalogue(tmp_path / "world")))
    grid = to_dem_grid(GRID, 500, 30)
    assert heights.shape == grid.shape
    np.testing.assert_allclose(heights, compute_expected(grid), atol=2e-3)  # one pixel holds 0.4 m of the plane
    assert facts["items"] == [WEST, EAST]
    assert facts["shares"] == {"known": 1.0, "known_of_area": 1.0, "sea": 0.0}
    assert (facts["collection"], facts["datum"], facts["lost"]) == (COLLECTION, "EGM2008 height", [])


def test_the_image_says_above_what_its_heights_are_and_names_no_path(tmp_path: Path) -> None:
    join(tmp_path, search(write_catalogue(tmp_path / "world")))
    surface = describe_surface(str(tmp_path / "dem/west.tif"))
    assert (surface.datum, surface.is_joined) == ("EGM2008 height", True)
    assert surface.name == f"{COLLECTION}: {WEST}, {EAST}"
    with rasterio.open(tmp_path / "dem/west.tif") as file:
        assert (file.dtypes[0], file.units[0], np.isnan(file.nodata)) == ("float32", "metre", True)
        assert file.crs == rasterio.CRS.from_user_input("EPSG:32632+3855")
    found = read_ellipsoidal_heights(GRID, IngestSettings(dem=str(tmp_path / "dem/west.tif")), where="item X")
    np.testing.assert_allclose(found.values_m, compute_expected(GRID), atol=5e-3)
    assert str(tmp_path) not in found.words
    assert found.warnings == (f"{found.words}; set pipeline.ingest.geoid",)


def test_heights_that_an_item_states_above_the_ellipsoid_stay_so_and_get_no_geoid(tmp_path: Path) -> None:
    """The files of the tiles have a horizontal CRS alone: only the tag of the image can tell."""
    record = search(write_catalogue(tmp_path / "world"))
    items = tuple(item.model_copy(update={"properties": {"vertical_datum": "ellipsoid"}}) for item in record.items)
    join(tmp_path, record.model_copy(update={"items": items}))
    surface = describe_surface(str(tmp_path / "dem/west.tif"))
    assert (surface.datum, surface.is_ellipsoid, surface.is_joined) == ("ellipsoid", True, True)
    geoid = write_raster(tmp_path / "geoid.tif", np.full((300, 400), 40, np.float32), GRID.pad(50))
    settings = IngestSettings(dem=str(tmp_path / "dem/west.tif"), geoid=str(geoid))
    found = read_ellipsoidal_heights(GRID, settings, where="item X")
    np.testing.assert_allclose(found.values_m, compute_expected(GRID), atol=5e-3)
    assert found.warnings == ()


def test_the_same_models_give_the_same_bytes(tmp_path: Path) -> None:
    record = search(write_catalogue(tmp_path / "world"))
    for name in ("one", "two"):
        join(tmp_path / name, record)
    for name in ("west.tif", "west.json"):
        assert (tmp_path / "one/dem" / name).read_bytes() == (tmp_path / "two/dem" / name).read_bytes()


def test_a_hole_stays_a_hole_and_no_neighbour_fills_it(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    with rasterio.open(folder / "assets" / f"{WEST}.tif", "r+") as file:
        heights = file.read(1)
        heights[130:160, 100:120] = file.nodata = -32767
        file.write(heights, 1)
    found, facts = join(tmp_path, search(folder))
    grid = to_dem_grid(GRID, 500, 30)
    known, expected = np.isfinite(found), compute_expected(grid)
    assert 0 < (~known).mean() < 0.1
    np.testing.assert_allclose(found[known], expected[known], atol=2e-3)
    assert facts["shares"]["known"] == pytest.approx(known.mean(), abs=1e-6)


@pytest.mark.parametrize(("missing", "height"), [("unknown", np.nan), ("sea", 0.0)])
def test_ground_without_a_model_is_unknown_unless_the_settings_call_it_sea(tmp_path: Path, missing: str, height: float) -> None:
    settings = SETTINGS.model_copy(update={"missing": missing})
    found, facts = join(tmp_path, search(write_catalogue(tmp_path / "world", (WEST,))), settings)
    grid = to_dem_grid(GRID, 500, 30)
    (x,), (y,) = ([edge] for edge in Transformer.from_crs(4326, 32632, always_xy=True).transform(MEET_DEG, 45.16))
    column = int((~grid.transform * (x, y))[0])
    np.testing.assert_array_equal(found[:, column + 3 :], height)
    np.testing.assert_allclose(found[:, : column - 3], compute_expected(grid)[:, : column - 3], atol=2e-3)
    assert facts["shares"]["sea"] == pytest.approx(0.48 if missing == "sea" else 0, abs=0.02)
    assert len(facts["warnings"]) == (missing == "unknown")


def test_what_is_lost_is_never_sea(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    record = search(folder)
    (folder / "assets" / f"{EAST}.tif").unlink()
    found, facts = join(tmp_path, record, SETTINGS.model_copy(update={"missing": "sea"}))
    assert np.isnan(found[:, -20:]).all()
    assert facts["shares"]["sea"] == 0
    assert facts["lost"] == [f"{EAST}: there is no such file"]
    entries = {entry.item: (entry.step, entry.scene, entry.status) for entry in read_ledger(tmp_path / "dem/west.ledger.csv")}
    assert entries == {WEST: ("dem", "dem", "used"), EAST: ("dem", "dem", "missing")}


@pytest.mark.parametrize("missing", ["unknown", "sea"])
def test_a_damaged_block_is_unknown_and_neither_zero_nor_sea(tmp_path: Path, missing: str) -> None:
    folder = write_catalogue(tmp_path / "world")
    path = folder / "assets" / f"{WEST}.tif"
    write_tile(path, PLACES[WEST], compress="deflate")
    record, offsets = search(folder), read_tile_offsets(path)
    with path.open("r+b") as stream:
        stream.seek(offsets[2 * 3 + 1])  # blocks of 64 in 144 columns: three to a row; the middle one of the third row
        stream.write(b"\xff" * 40)
    found, facts = join(tmp_path, record, SETTINGS.model_copy(update={"missing": missing}))
    grid = to_dem_grid(GRID, 500, 30)
    known, expected = np.isfinite(found), compute_expected(grid)
    assert 0.05 < (~known).mean() < 0.4
    np.testing.assert_allclose(found[known], expected[known], atol=2e-3)
    assert facts["shares"]["sea"] == 0
    assert len(facts["lost"]) == 1
    assert facts["lost"][0].startswith(f"{WEST}: rows 128-187, columns 64-127: "), "of row 188 and below nothing is needed"
    statuses = {entry.item: entry.status for entry in read_ledger(tmp_path / "dem/west.ledger.csv")}
    assert statuses == {WEST: "partly", EAST: "used"}


def test_a_server_that_is_down_for_a_moment_leaves_no_trace_and_one_that_stays_down_fails_the_job(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    with running_server(folder) as inner, running_faulty(inner) as server:
        record = search(server.url)
        fault = server.add(f"{EAST}.tif", answer(503), times=1)
        found, _ = join(tmp_path / "one", record)
        np.testing.assert_allclose(found, compute_expected(to_dem_grid(GRID, 500, 30)), atol=2e-3)
        assert fault.hits == 1
    with running_server(folder) as inner, running_faulty(inner) as server:
        record = search(server.url)
        server.add(f"{EAST}.tif", answer(503))
        with pytest.raises(CatalogueError, match=rf"{EAST}.*HTTP 503"):
            join(tmp_path / "two", record)
        assert not list((tmp_path / "two/dem").glob("*"))


def test_no_height_at_all_is_refused(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    record = search(folder)
    for name in (WEST, EAST):
        (folder / "assets" / f"{name}.tif").write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"none of 2 elevation models of {COLLECTION} has a height in the area \({WEST}: "):
        join(tmp_path, record)
    assert not (tmp_path / "dem/west.json").exists()


def test_models_above_different_surfaces_are_not_joined(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    write_tile(folder / "assets" / f"{EAST}.tif", MEET_DEG, crs="EPSG:9707")
    with pytest.raises(DataError, match=f"{WEST} above EGM2008 height, {EAST} above EGM96 height"):
        join(tmp_path, search(folder))


def test_a_lock_without_elevation_models_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"names no elevation models: set pipeline\.query\.dem_catalogue"):
        join_elevations(make_lock(tmp_path / "west.json", None), tmp_path / "out.json", SETTINGS)
    with pytest.raises(ConfigError, match=r"out\.tif is to be the manifest"):
        join_elevations(tmp_path / "west.json", tmp_path / "out.tif", SETTINGS)


def test_pixels_of_the_same_grid_are_copied_to_the_last_bit() -> None:
    values = np.random.default_rng(0).normal(500, 300, (40, 50)).astype(np.float32)
    grid = GeoBox((40, 50), Affine(30, 0, 499_980, 0, -30, 5_001_990), "EPSG:32632")
    np.testing.assert_array_equal(warp_tile(Tile(values, grid.transform, "EPSG:32632"), grid[3:30, 5:40]), values[3:30, 5:40])


def test_tiles_of_another_spacing_meet_without_a_gap() -> None:
    """Copernicus DEM changes its spacing in longitude at 50 degrees north and at other latitudes."""
    north = Tile(np.full((60, 80), 7, np.float32), Affine(1.5 * STEP_DEG, 0, 9, 0, -STEP_DEG, 50 + 60 * STEP_DEG), "EPSG:4326")
    south = Tile(np.full((60, 120), 7, np.float32), Affine(STEP_DEG, 0, 9, 0, -STEP_DEG, 50), "EPSG:4326")
    tiles = join_tiles([north, south])
    assert len(tiles) == 2
    grid = GeoBox((80, 60), Affine(30, 0, 500_300, 0, -30, 5_539_900), "EPSG:32632")
    known = [np.isfinite(warp_tile(tile, grid)) for tile in tiles]
    assert all(0.2 < part.mean() < 0.8 for part in known)
    assert (known[0] | known[1]).all()


def test_heights_go_on_across_180_degrees(tmp_path: Path) -> None:
    """Tiles of Copernicus DEM begin half a pixel west of whole degrees, so one of them lies across the seam."""
    half = STEP_DEG / 2
    items = []
    for name, west in (("W180", -180 - half), ("E179", 180 - SIZE[1] * STEP_DEG - half)):
        columns = np.arange(SIZE[1]) + (SIZE[1] if name == "W180" else 0)
        grid = GeoBox(SIZE, Affine(STEP_DEG, 0, west, 0, -STEP_DEG, 51.2), "EPSG:4326")
        write_raster(tmp_path / f"{name}.tif", np.broadcast_to(columns, SIZE).astype(np.float32), grid)
        box = (west if west > -180 else west + 360, 51.13, west + SIZE[1] * STEP_DEG, 51.2)
        facts = {"item": name, "collection": "c", "sensor": "dem", "time": "2021-04-22T00:00:00Z", "crs": "EPSG:4326"}
        items.append(ItemRecord(**facts, bbox=box, assets={"dem": AssetRecord(href=f"{name}.tif")}))  # type: ignore[arg-type]
    record = SceneRecord(id="dem", sensor="dem", time=items[0].time, items=tuple(items), catalogue=str(tmp_path))
    (x,), (y,) = ([edge] for edge in Transformer.from_crs(4326, 32601, always_xy=True).transform(180, 51.165))
    area = GeoBox((100, 100), Affine(20, 0, round(x) - 1000, 0, -20, round(y) + 1000), "EPSG:32601")
    join_elevations(make_lock(tmp_path / "west.lock.json", record, area), tmp_path / "west.json", DemSettings(margin_m=0, pixel_m=10))
    with rasterio.open(tmp_path / "west.tif") as file:
        heights = file.read(1)
        columns, rows = np.meshgrid(np.arange(file.width) + 0.5, np.arange(file.height) + 0.5)
        longitudes, _ = Transformer.from_crs(32601, 4326, always_xy=True).transform(*(file.transform * (columns, rows)))
    expected = ((longitudes + 360) % 360 - 180) / STEP_DEG + SIZE[1]  # columns from the middle of the seam pixel on
    np.testing.assert_allclose(heights, expected, atol=2e-2)


@pytest.mark.real
def test_a_real_model_of_rome_keeps_its_heights_when_it_is_laid_anew(tmp_path: Path) -> None:
    path = find_samples() / "s1/sarsen_rome/Rome-30m-DEM.tif"
    with rasterio.open(path) as file:
        source, bounds, own = file.read(1), file.bounds, file.crs
    facts = {"item": "rome", "collection": "c", "sensor": "dem", "time": "2021-04-22T00:00:00Z", "crs": str(own)}
    item = ItemRecord(**facts, bbox=(12.3, 41.7, 12.7, 42.1), assets={"dem": AssetRecord(href=path.name)})  # type: ignore[arg-type]
    record = SceneRecord(id="dem", sensor="dem", time=item.time, items=(item,), catalogue=str(path.parent))
    middle = ((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2)
    x, y = Transformer.from_crs(own, 32633, always_xy=True).transform(*middle)
    area = GeoBox((300, 300), Affine(10, 0, round(x) - 1500, 0, -10, round(y) + 1500), "EPSG:32633")
    join_elevations(make_lock(tmp_path / "west.lock.json", record, area), tmp_path / "west.json", DemSettings(margin_m=0))
    with rasterio.open(tmp_path / "west.tif") as file, rasterio.open(path) as original:
        columns, rows = np.meshgrid(np.arange(file.width) + 0.5, np.arange(file.height) + 0.5)
        places = Transformer.from_crs(32633, own, always_xy=True).transform(*(file.transform * (columns, rows)))
        column, row = (~original.transform) * places
        nearest = source[row.astype(int), column.astype(int)]
        heights = file.read(1)
    assert np.isfinite(heights).all()
    assert np.abs(heights - nearest).mean() < 2  # metres, between bilinear and nearest in hills
