"""A folder of Gaofen products is listed with what can be used, and with a reason for all that cannot."""

import io
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import products
from sereno.pipeline.errors import MissingError
from sereno.pipeline.sensors.gaofen_folder import list_products
from sereno.pipeline.views import Terrain

SIZE = 40
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
GROUND = Terrain(BOX, np.full((SIZE, SIZE), 300, np.float32))
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


def test_of_as_many_products_of_two_levels_the_lower_level_is_kept(tmp_path: Path) -> None:
    levels = ("L2", "L1A", "L1B")
    names = {level: write_sar(tmp_path, serial, level=level).name for serial, level in enumerate(levels, 1)}
    listing = list_products(tmp_path)
    assert [item.item for item, _ in listing.items] == [names["L1A"]]
    assert sorted(name for name, _ in listing.refused) == sorted([names["L1B"], names["L2"]])


def test_loose_files_of_several_products_are_told_apart(tmp_path: Path) -> None:
    written = [write_sar(tmp_path, 1), write_sar(tmp_path, 2), write_optical(tmp_path, 1), write_optical(tmp_path, 2)]
    apart = {item.item: item.assets for item, _ in list_products(tmp_path).items}
    names = [product.name for product in written]
    for product in written:
        for path in product.iterdir():
            path.rename(tmp_path / path.name)
        product.rmdir()
    listing = list_products(tmp_path)
    assert listing.refused == []
    assert [item.item for item, _ in listing.items] == sorted(names)
    for item, _ in listing.items:
        assert item.assets.keys() == apart[item.item].keys()
        assert all((tmp_path / asset.href).is_file() for asset in item.assets.values())
        assert all(item.item.split("_")[-1] in asset.href for asset in item.assets.values())


def test_several_products_in_one_archive_are_told_apart(tmp_path: Path) -> None:
    first, second = write_optical(tmp_path, 1), write_optical(tmp_path, 2)
    names = sorted([first.name, second.name])
    for path in second.iterdir():
        path.rename(first / path.name)
    second.rmdir()
    products.pack_product(first)
    assert [item.item for item, _ in list_products(tmp_path).items] == names


def test_metadata_without_images_and_images_without_metadata_are_named(tmp_path: Path) -> None:
    image, text = write_optical(tmp_path, 1), write_sar(tmp_path, 2)
    (image / f"{image.name}-MUX.xml").unlink()
    for path in text.glob("*.tiff"):
        path.unlink()
    reasons = dict(list_products(tmp_path).refused)
    assert reasons[image.name].startswith("holds no metadata (.xml)")
    assert reasons[text.name].startswith("has no image of HH; has no image of HV")


def test_an_archive_under_another_name_is_not_lost(tmp_path: Path) -> None:
    write_sar(tmp_path)
    products.pack_product(write_optical(tmp_path)).rename(tmp_path / "delivery.tgz")
    ((name, reason),) = list_products(tmp_path).refused
    assert name == "delivery.tgz"
    assert "give it the name it was delivered under" in reason


def test_names_in_small_letters_and_endings_in_capitals_are_read(tmp_path: Path) -> None:
    sar, optical = write_sar(tmp_path), write_optical(tmp_path)
    names = [sar.name, optical.name]
    for path in [*sar.iterdir(), *optical.iterdir()]:
        path.rename(path.with_name(path.name.replace(".meta.xml", ".META.XML").replace(".incidence", ".INCIDENCE")))
    for path in [*sar.iterdir(), *optical.iterdir()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    packed = products.pack_product(sar)
    packed.rename(packed.with_name(packed.name.lower()))
    items = {item.item: item for item, _ in list_products(tmp_path).items}
    assert sorted(items) == sorted(names)
    assert {"HH", "rpc-HH", "HV", "rpc-HV", "incidence", "MTD"} == items[names[0]].assets.keys()
    assert {"image-1", "rpc-1", "MTD"} == items[names[1]].assets.keys()


def test_archives_of_the_other_kind_are_not_opened(tmp_path: Path) -> None:
    sar, optical = write_sar(tmp_path), products.pack_product(write_optical(tmp_path))
    optical.write_bytes(b"damaged")
    listing = list_products(tmp_path, "sar")
    assert ([item.item for item, _ in listing.items], listing.refused) == ([sar.name], [])
    ((name, _),) = list_products(tmp_path, "optical").refused
    assert name == optical.name.removesuffix(".tar.gz")


def test_both_kinds_together_are_all(tmp_path: Path) -> None:
    write_sar(tmp_path)
    write_sar(tmp_path, 2, level="L2")
    write_optical(tmp_path)
    (tmp_path / "GF3_KAS_empty").mkdir()
    (tmp_path / "GF6_empty").mkdir()
    both = list_products(tmp_path)
    kinds: list[Literal["sar", "optical"]] = ["optical", "sar"]
    parts = [list_products(tmp_path, kind) for kind in kinds]
    assert both.items == sorted((entry for part in parts for entry in part.items), key=lambda entry: entry[0].item)
    assert sorted(both.refused) == sorted(entry for part in parts for entry in part.refused)


def test_satellites_and_cameras_lie_together(tmp_path: Path) -> None:
    write_sar(tmp_path)
    pms = write_optical(tmp_path)
    products.write_gaofen6_wfv(tmp_path, GROUND, np.full((8, SIZE, SIZE), 0.2, np.float32), products.Pass(TIME, 9))
    for path in pms.iterdir():
        text = path.read_bytes().replace(b">GF6<", b">GF1B<") if path.suffix == ".xml" else path.read_bytes()
        path.with_name(path.name.replace("GF6", "GF1B")).write_bytes(text)
        path.unlink()
    sensors = [(item.sensor, item.properties["platform"]) for item, _ in list_products(tmp_path).items]
    assert sensors == [("gaofen-pms", "gf1b"), ("gaofen3", "gf3"), ("gaofen-wfv", "gf6")]


def test_a_folder_without_products_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MissingError, match=r"nothing named like a Gaofen product.*GF6_PMS"):
        list_products(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        list_products(tmp_path / "none")
