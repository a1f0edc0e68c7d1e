"""A folder of Gaofen products is listed with what can be used, and with a reason for all that cannot."""

import io
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import products
from sereno.pipeline.errors import MissingError
from sereno.pipeline.sensors.gaofen_folder import list_products

SIZE = 40
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
GROUND = products.Ground(BOX, np.full((SIZE, SIZE), 300, np.float32))
TIME = datetime(2020, 6, 3, 3, 10, tzinfo=UTC)


def write_sar(folder: Path, serial: int = 1, level: str = "L1A") -> Path:
    power = {band: np.full((SIZE, SIZE), 0.1, np.float32) for band in ("HH", "HV")}
    flight = products.Pass(TIME + timedelta(hours=serial), serial)
    return products.write_gaofen3(folder, GROUND, power, flight, radar=products.Radar(level=level))


def write_optical(folder: Path, serial: int = 1) -> Path:
    flight = products.Pass(TIME + timedelta(days=serial), serial)
    return products.write_gaofen6_pms(folder, GROUND, np.full((4, SIZE, SIZE), 0.2, np.float32), flight, has_pan=False)


def test_folders_and_archives_at_any_depth_are_listed(tmp_path: Path) -> None:
    names = [write_sar(tmp_path).name, write_optical(tmp_path / "optical" / "2020").name]
    names.append(products.pack_product(write_optical(tmp_path / "optical", 2)).name.removesuffix(".tar.gz"))
    listing = list_products(tmp_path)
    assert sorted(item.item for item, _ in listing.items) == sorted(names)
    assert listing.refused == []
    for item, _ in listing.items:
        for asset in item.assets.values():
            place = tmp_path / asset.href.split(".tar.gz")[0]
            assert place.exists() or place.with_name(f"{place.name}.tar.gz").exists()


def test_other_folders_and_files_are_passed_over(tmp_path: Path) -> None:
    write_sar(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "S1A_IW.zip").write_text("x")
    assert len(list_products(tmp_path).items) == 1
    assert list_products(tmp_path).refused == []


def test_an_archive_beside_its_folder_and_a_copy_elsewhere_are_refused(tmp_path: Path) -> None:
    packed = products.pack_product(write_sar(tmp_path))
    write_sar(tmp_path)
    write_sar(tmp_path / "z")
    listing = list_products(tmp_path)
    assert len(listing.items) == 1
    reasons = dict(listing.refused)
    assert "beside it is the same product" in reasons[packed.name]
    assert "is there twice" in reasons[packed.name.removesuffix(".tar.gz")]


def test_unsafe_and_unfinished_archives_are_refused_and_the_others_stay(tmp_path: Path) -> None:
    good = write_sar(tmp_path, 1)
    cut = products.pack_product(write_sar(tmp_path, 2))
    cut.write_bytes(cut.read_bytes()[:-2000])
    evil = tmp_path / cut.name.replace("000002", "000009")
    with tarfile.open(evil, "w:gz") as archive:
        entry = tarfile.TarInfo("../GF3.meta.xml")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / good.name.replace("000001", "000003")).mkdir()
    listing = list_products(tmp_path)
    assert [item.item for item, _ in listing.items] == [good.name]
    reasons = sorted(listing.refused)
    assert len(reasons) == 3
    assert "cut off or damaged" in str(reasons)
    assert "leads out of the archive" in str(reasons)
    assert "holds no metadata" in str(reasons)


def test_levels_are_not_mixed(tmp_path: Path) -> None:
    kept = [write_sar(tmp_path, serial).name for serial in (1, 2)]
    other = write_sar(tmp_path, 3, level="L2").name
    optical = write_optical(tmp_path).name
    listing = list_products(tmp_path)
    assert sorted(item.item for item, _ in listing.items) == sorted([*kept, optical])
    assert listing.refused == [
        (other, "is of level L2, most others are L1A: levels are not mixed in one dataset, put it into a folder of its own")
    ]


def test_loose_files_of_several_products_are_refused(tmp_path: Path) -> None:
    first, second = write_sar(tmp_path, 1), write_sar(tmp_path, 2)
    for path in second.iterdir():
        path.rename(first / path.name)
    second.rmdir()
    ((_, reason),) = list_products(tmp_path).refused
    assert "holds 2 products" in reason


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        list_products(tmp_path / "none")
