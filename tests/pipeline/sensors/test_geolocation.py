"""Ground is found in the image where geometry puts it, at any height, also where control points sit on mountains."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safe_product
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from rasters import write_raster
from safe_product import EPSG, Image, place_of

from sereno.pipeline import safe
from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.geolocation import (
    Geolocation,
    compute_positions,
    compute_surface,
    fit_geolocation,
    locate,
)
from sereno.pipeline.sensors.heights import read_heights

SAMPLES = os.environ.get("SERENO_SAMPLES")
real = pytest.mark.real
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")

LINES, PIXELS = (axis.ravel() for axis in np.meshgrid(np.linspace(5, 290, 12), np.linspace(5, 390, 15)))
"""Places between the control points."""


def fit(image: Image = Image(), *, with_range: bool = True) -> Geolocation:  # noqa: B008
    annotation = safe.parse_annotation(safe_product.to_annotation(image), where="t")
    return fit_geolocation(annotation.grid, annotation.ground_range if with_range else None, EPSG)


def to_places(height: float) -> Any:
    return np.stack(place_of(LINES, PIXELS, height), axis=1)


@pytest.mark.parametrize("hill_m", [0.0, 1000.0], ids=["flat points", "points on mountains"])
@pytest.mark.parametrize("height", [0.0, 250.0, 2000.0])
def test_ground_of_any_height_is_found_where_geometry_puts_it(hill_m: float, height: float) -> None:
    lines, pixels = locate(fit(Image(hill_m=hill_m)), to_places(height), np.full(LINES.size, height))
    np.testing.assert_allclose(lines, LINES, atol=0.01)
    np.testing.assert_allclose(pixels, PIXELS, atol=0.05)


def test_control_points_alone_tell_the_height_effect_only_if_they_have_heights() -> None:
    places, heights = to_places(500.0), np.full(LINES.size, 500.0)
    with_heights = locate(fit(Image(hill_m=1000.0), with_range=False), places, heights)[1]
    flat = locate(fit(with_range=False), places, heights)[1]
    np.testing.assert_allclose(with_heights, PIXELS, atol=0.6)
    assert np.abs(flat - PIXELS).min() > 50  # 500 m over tan(incidence) in pixels of 10 m: about 80


def test_what_is_left_at_the_points_is_reported() -> None:
    annotation = safe.parse_annotation(safe_product.to_annotation(Image()), where="t")
    noise = np.random.default_rng(0).normal(0, 2, annotation.grid.lines.size)
    moved = annotation.grid._replace(lines=annotation.grid.lines + noise)
    exact, disturbed = (fit_geolocation(grid, annotation.ground_range, EPSG).residual_px for grid in (annotation.grid, moved))
    assert max(exact) < 0.01
    assert disturbed[0] == pytest.approx(2, rel=0.15)
    assert disturbed[1] < 0.01


def test_too_few_points_are_refused() -> None:
    grid = safe.parse_annotation(safe_product.to_annotation(Image()), where="t").grid
    few = safe.GeolocationGrid(*(None if column is None else column[:30] for column in grid))
    with pytest.raises(DataError, match="30 ground control points are too few"):
        fit_geolocation(few, None, EPSG)


def make_grid(rows: int = 100, columns: int = 90) -> GeoBox:
    x, y = place_of(np.float64(50), np.float64(100))
    return GeoBox((rows, columns), Affine(10, 0, float(x), 0, -10, float(y) + 1500), EPSG)


def test_positions_of_a_grid_are_those_of_its_pixel_centres() -> None:
    fitted, grid = fit(), make_grid()
    positions = compute_positions(fitted, grid)
    x, y = (axis.ravel() for axis in np.meshgrid(*(grid.coords[name].values for name in ("x", "y"))))
    lines, pixels = locate(fitted, np.stack([x, y], axis=1), np.zeros(x.size))
    np.testing.assert_allclose(positions.lines.ravel(), lines, atol=1e-3)
    np.testing.assert_allclose(positions.pixels.ravel(), pixels, atol=1e-3)


def test_heights_move_positions_towards_the_sensor() -> None:
    fitted, grid = fit(Image(hill_m=1000.0)), make_grid()
    heights = np.random.default_rng(2).uniform(0, 1500, grid.shape)
    positions = compute_positions(fitted, grid, heights)
    x, y = (axis.ravel() for axis in np.meshgrid(*(grid.coords[name].values for name in ("x", "y"))))
    lines, pixels = locate(fitted, np.stack([x, y], axis=1), heights.ravel())
    np.testing.assert_allclose(positions.lines.ravel(), lines, atol=0.01)
    np.testing.assert_allclose(positions.pixels.ravel(), pixels, atol=0.05)
    assert (positions.pixels < compute_positions(fitted, grid, np.zeros(grid.shape)).pixels).all()


def test_the_surface_goes_through_the_points_and_stays_within_their_heights() -> None:
    fitted = fit(Image(hill_m=1000.0))
    np.testing.assert_allclose(compute_surface(fitted, fitted.places), fitted.heights_m, atol=1e-6)
    around = fitted.places.mean(axis=0) + np.random.default_rng(0).uniform(-5000, 5000, (500, 2))
    heights = compute_surface(fitted, around)
    assert 0 <= heights.min()
    assert heights.max() <= 1000 + 1e-6


def real_annotations() -> list[tuple[str, safe.Annotation]]:
    folder = Path(str(SAMPLES)) / "s1"
    roots = [str(next((folder / "sarsen_rome").glob("*.SAFE")))]
    roots += [f"{path}/{safe.root_of(path)}" for path in sorted((folder / "pyrosar").glob("*.zip"))]
    found = []
    for root in roots:
        part = safe.parse_manifest(safe.read_file(f"{root}/manifest.safe"), where="m").parts["annotation", "VV"]
        found.append((root, safe.parse_annotation(safe.read_file(f"{root}/{part.path}"), where="a")))
    return found


def zone_of(grid: safe.GeolocationGrid) -> str:
    south = grid.latitudes_deg.mean() < 0
    return f"EPSG:32{7 if south else 6}{int((grid.longitudes_deg.mean() + 180) // 6) + 1:02d}"


@real
@needs_samples
def test_real_control_points_left_out_are_found_within_a_pixel() -> None:
    for root, annotation in real_annotations():
        grid, crs = annotation.grid, zone_of(annotation.grid)
        for left_out in range(3, 210, 13):
            kept = np.arange(210) != left_out
            rest = safe.GeolocationGrid(*(None if column is None else column[kept] for column in grid))
            fitted = fit_geolocation(rest, annotation.ground_range, crs)
            place = transform("EPSG:4326", crs, grid.longitudes_deg[[left_out]], grid.latitudes_deg[[left_out]])
            line, pixel = locate(fitted, np.stack(place, axis=1), grid.heights_m[[left_out]])
            assert abs(line[0] - grid.lines[left_out]) < 0.01, root
            # The points themselves were computed with the nearest of the polynomials between which images are interpolated.
            assert abs(pixel[0] - grid.pixels[left_out]) < 1, root


@real
@needs_samples
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_the_control_points_of_a_real_reduced_file_are_met() -> None:
    (path,) = (Path(str(SAMPLES)) / "s1" / "riotilerpds").rglob("iw-vv.tiff")
    with rasterio.open(path) as file:
        points = file.gcps[0]
    grid = safe.GeolocationGrid(*(np.array([getattr(p, key) for p in points]) for key in ("row", "col", "x", "y", "z")))
    fitted = fit_geolocation(grid, None, "EPSG:32643")
    assert max(fitted.residual_px) < 0.01  # of a pixel of 200 m


@real
@pytest.mark.slow
@needs_samples
def test_the_fit_agrees_with_sarsens_orbit_within_a_fifth_of_a_pixel(tmp_path: Path) -> None:
    """sarsen's range-Doppler geocoding of an image whose values are its own coordinates, against the fit, on the same DEM."""
    sarsen = pytest.importorskip("sarsen")
    root, annotation = real_annotations()[0]
    folder, crs = Path(root), "EPSG:32633"
    dem = str(folder.parent / "Rome-30m-DEM.tif")
    (x,), (y,) = transform("EPSG:4326", crs, [12.5], [42.0])
    grid = GeoBox((200, 200), Affine(10, 0, round(x) - 1000, 0, -10, round(y) + 1000), crs)
    heights = read_heights(dem, grid)
    positions = compute_positions(fit_geolocation(annotation.grid, annotation.ground_range, crs), grid, heights)
    write_raster(tmp_path / "dem.tif", heights, grid)
    for axis, expected in enumerate(positions):
        product = write_coordinates(tmp_path / str(axis), folder, annotation.shape, axis, positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sarsen.terrain_correction(
                sarsen.Sentinel1SarProduct(str(product), "IW/VV"),
                dem_urlpath=str(tmp_path / "dem.tif"),
                output_urlpath=str(tmp_path / "out.tif"),
                interp_method="linear",
            )
        with rasterio.open(tmp_path / "out.tif") as file:
            found = file.read(1) if file.transform.e < 0 else file.read(1)[::-1]
        assert np.abs(found - expected).max() < 0.2


def write_coordinates(target: Path, folder: Path, shape: tuple[int, int], axis: int, positions: Any) -> Path:
    """A copy of the real product whose beta0 is the line (axis 0) or the pixel (axis 1) around `positions`; sparse, with NaN elsewhere."""
    product = target / folder.name
    for file in folder.rglob("*"):
        if file.suffix in (".xml", ".safe"):
            (product / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (product / file.relative_to(folder)).write_bytes(file.read_bytes())
    (measurement,) = (folder / "measurement").iterdir()
    (product / "measurement").mkdir()
    calibration = next((folder / "annotation" / "calibration").glob("calibration*")).read_bytes()
    table = safe.parse_calibration(calibration, "betaNought", where="b")
    spans = [(int(values.min()) - 30, int(values.max()) + 30) for values in positions]
    lines, pixels = (np.arange(*span, dtype=float) for span in spans)
    wanted = np.meshgrid(lines, pixels, indexing="ij")[axis]
    amplitude = np.sqrt(wanted) * safe.sample_vectors(table, lines, pixels)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": shape[0], "width": shape[1], "nodata": np.nan}
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(product / "measurement" / measurement.name, "w", **profile, tiled=True, SPARSE_OK=True) as file,
    ):
        file.write(amplitude.astype(np.float32), 1, window=rasterio.windows.Window.from_slices(*spans))
    return product
