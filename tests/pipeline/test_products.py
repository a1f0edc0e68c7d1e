"""Simulated products are whole, the same each time, and wrong by what they are told to be."""

import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.errors import DataError
from sereno.pipeline.rpc import to_ground, to_image

SIZE = 60
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
FLIGHT = products.Pass(datetime(2020, 6, 3, 3, 10, tzinfo=UTC), 1234567)


def make_ground() -> products.Ground:
    y, x = np.mgrid[:SIZE, :SIZE]
    return products.Ground(BOX, (800 + 40 * np.sin(x / 9) * np.cos(y / 7)).astype(np.float32))


def write_all(folder: Path) -> list[Path]:
    ground = make_ground()
    power = {band: np.full((SIZE, SIZE), 0.1, np.float32) for band in ("VV", "VH")}
    radars = [products.Radar(level=level) for level in ("L1A", "L1B", "L2")]
    written = [products.write_gaofen3(folder, ground, power, FLIGHT, radar=r, speckle=np.random.default_rng(1)) for r in radars]
    reflectance = np.full((8, SIZE, SIZE), 0.2, np.float32)
    return [
        *written,
        products.write_gaofen6_pms(folder, ground, reflectance[:4], FLIGHT),
        products.write_gaofen6_wfv(folder, ground, reflectance, FLIGHT),
    ]


def test_products_hold_all_their_files(tmp_path: Path) -> None:
    suffixes = [sorted(path.name.replace(product.name, "") for path in product.iterdir()) for product in write_all(tmp_path)]
    assert [len(names) for names in suffixes] == [6, 6, 3, 6, 7]
    assert suffixes[3] == ["-MUX.rpb", "-MUX.tiff", "-MUX.xml", "-PAN.rpb", "-PAN.tiff", "-PAN.xml"]
    assert suffixes[4] == ["-1.rpb", "-1.tiff", "-2.rpb", "-2.tiff", "-3.rpb", "-3.tiff", ".xml"]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    packed = [[products.pack_product(product) for product in write_all(tmp_path / name)] for name in ("a", "b")]
    for one, other in zip(*packed, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()


def test_an_archive_holds_the_folder_and_replaces_it(tmp_path: Path) -> None:
    product = write_all(tmp_path)[-1]
    sizes = read_contents(product, lambda _: False).sizes
    archive = products.pack_product(product)
    assert not product.exists()
    with tarfile.open(archive) as packed:
        assert {entry.name: entry.size for entry in packed} == {f"{product.name}/{name}": size for name, size in sizes.items()}


def test_coefficients_describe_the_view_to_a_hundredth_of_a_pixel() -> None:
    view, generator = products.make_view(make_ground(), 5.0, -1.4), np.random.default_rng(2)
    rows, columns, heights = (generator.uniform(low, high, 50) for low, high in ((0, 140), (0, 140), (500, 1100)))
    longitudes, latitudes = transform(str(BOX.crs), "EPSG:4326", *view.to_ground(rows, columns, heights))
    seen = to_image(products.make_rpc(view), np.array(longitudes), np.array(latitudes), heights)
    np.testing.assert_allclose(seen, (rows, columns), atol=0.01)


def test_rows_and_columns_lead_to_ground_and_back() -> None:
    view = products.make_view(make_ground(), 5.0, -1.4)
    rows, columns = np.array([3.0, 70.0]), np.array([5.0, 99.0])
    np.testing.assert_allclose(view.to_image(*view.to_ground(rows, columns, 820.0), 820.0), (rows, columns), atol=1e-6)


def test_coefficients_err_by_what_they_are_told() -> None:
    view = products.make_view(make_ground(), 5.0, -1.4)
    pixel = (np.array([60.0]), np.array([60.0]), 800.0)
    right, wrong = (
        np.array(transform("EPSG:4326", str(BOX.crs), *to_ground(products.make_rpc(view, error), *pixel)))
        for error in ((0.0, 0.0), (35.0, -60.0))
    )
    np.testing.assert_allclose((wrong - right).ravel(), [35, -60], atol=0.2)


def test_high_ground_leans_towards_the_radar() -> None:
    heights = np.full((SIZE, SIZE), 500, np.float32)
    ground = products.Ground(BOX, heights)
    view = products.make_view(ground, 10.0, -1.4)
    x, y = BOX.transform * (30.0, 30.0)
    low, high = (view.to_image(np.array([x]), np.array([y]), height) for height in (500.0, 600.0))
    assert high[0] == pytest.approx(low[0])
    assert high[1] - low[1] == pytest.approx(-14.0)  # 100 m x 1.4 / 10 m


def test_polarisations_of_no_mode_are_refused(tmp_path: Path) -> None:
    power = {band: np.full((SIZE, SIZE), 0.1, np.float32) for band in ("HH", "VV")}
    with pytest.raises(DataError, match="HH, VV"):
        products.write_gaofen3(tmp_path, make_ground(), power, FLIGHT, radar=products.Radar())
