"""Simulated products are whole, the same each time, and wrong by what they are told to be."""

import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.errors import DataError
from sereno.pipeline.views import Terrain

SIZE = 60
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
FLIGHT = products.Pass(datetime(2020, 6, 3, 3, 10, tzinfo=UTC), 1234567)


def make_ground() -> Terrain:
    y, x = np.mgrid[:SIZE, :SIZE]
    return Terrain(BOX, (800 + 40 * np.sin(x / 9) * np.cos(y / 7)).astype(np.float32))


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


def test_polarisations_of_no_mode_are_refused(tmp_path: Path) -> None:
    power = {band: np.full((SIZE, SIZE), 0.1, np.float32) for band in ("HH", "VV")}
    with pytest.raises(DataError, match="HH, VV"):
        products.write_gaofen3(tmp_path, make_ground(), power, FLIGHT, radar=products.Radar())
