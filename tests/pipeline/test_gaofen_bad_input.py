"""What users get wrong with Gaofen products is said in one line that names the product, the fault and the remedy."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import products
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.pairs import Lock
from sereno.pipeline.query import query_pairs
from sereno.pipeline.views import Terrain

SIZE = 60
TIME = datetime(2020, 6, 3, 3, 10, tzinfo=UTC)
AREA = {"epsg": 32650, "bounds_m": [500_160, 4_499_520, 500_480, 4_499_840]}
Spoil = Callable[[Path], None]


def make_ground(east_m: float = 0) -> Terrain:
    box = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000 + east_m, 0, -10, 4_500_000), "EPSG:32650")
    return Terrain(box, np.full((SIZE, SIZE), 300, np.float32))


def write_sar(folder: Path, serial: int = 1, *, level: str = "L1A", east_m: float = 0) -> Path:
    power = {band: np.full((SIZE, SIZE), 0.1, np.float32) for band in ("HH", "HV")}
    radar = products.Radar(gsd_m=8, level=level)
    return products.write_gaofen3(folder, make_ground(east_m), power, products.Pass(TIME, serial), radar=radar)


def write_optical(folder: Path, serial: int, *, cloud_pct: float = 0) -> Path:
    flight = products.Pass(TIME + timedelta(days=serial), serial, cloud_pct=cloud_pct)
    values = np.full((4, SIZE, SIZE), 0.2, np.float32)
    return products.write_gaofen6_pms(folder, make_ground(), values, flight, has_pan=False)


def write_folder(folder: Path) -> Path:
    """A folder with what makes one pair."""
    write_sar(folder)
    write_optical(folder, 2, cloud_pct=30)
    write_optical(folder, 3)
    return folder


def query(folder: Path, **changes: Any) -> Lock:
    settings = {"source": "gaofen", "catalogue": str(folder), "areas": {"a": AREA}, "resolution_m": 8, "polarisations": ["HH", "HV"]}
    output = folder.parent / "lock" / "a.json"
    query_pairs("a", output, QuerySettings.model_validate({**settings, "max_gap_sar_days": 10, **changes}))
    return Lock.read(output)


def edit(pattern: str, old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        text = path.read_text()
        assert re.search(old, text)
        path.write_text(re.sub(old, new, text))

    return spoil


def drop(pattern: str) -> Spoil:
    def spoil(folder: Path) -> None:
        paths = list(folder.glob(pattern))
        assert paths
        for path in paths:
            path.unlink()

    return spoil


def rename_mode(folder: Path) -> None:
    (product,) = folder.glob("GF3*")
    for path in product.iterdir():
        path.rename(path.with_name(path.name.replace("FSI", "XYZ")))
    product.rename(product.with_name(product.name.replace("FSI", "XYZ")))


def move_sar(folder: Path) -> None:
    drop("GF3*/*")(folder)
    next(folder.glob("GF3*")).rmdir()
    write_sar(folder, east_m=90_000)


def cut_archive(folder: Path) -> None:
    packed = products.pack_product(next(folder.glob("GF3*")))
    packed.write_bytes(packed.read_bytes()[:-3000])


SAR = "GF3_KAS_(FSI|XYZ)_000001_E11[78].*_L1A_HHHV_L10000000001"
CLOUDY = "GF6_PMS_E117.*_20200605_L1A0000000002"
CASES = {
    "as it is": (lambda _: None, None),
    "no coefficients of SAR": (drop("GF3*/*.rpc"), f"{SAR}: has no .rpc or .rpb of HH, .*fetch the product again"),
    "no coefficients of an image": (drop("GF6*02/*.rpb"), rf"{CLOUDY}: has no coefficients \(.rpb\) of image MUX.*fetch it again"),
    "no calibration": (edit("GF3*/*.meta.xml", ">997.1<", ">NULL<"), f"{SAR}: has no HH, needed HH, HV.*QualifyValue/HH is NULL"),
    "another mode": (rename_mode, f"{SAR}.*: mode XYZ is not known, expected one of SL, .*take the product out"),
    "SAR elsewhere": (move_sar, f"{SAR}: covers none of the area .*optical: .*117.*sar: .*118.*; correct the area in .* or the folder"),
    "another level": (edit("GF6*02/*.xml", "LEVEL1A", "LEVEL2A"), f"{CLOUDY}: is of LEVEL2A, only LEVEL1A can be read: order it"),
    "a number that is none": (edit("GF3*/*.meta.xml", "<orbitID>1", "<orbitID>x"), f"{SAR}.meta.xml: orbitID is 'x', expected a number"),
    "damaged metadata": (edit("GF6*02/*.xml", "</Product.*", ""), f"{CLOUDY}.*: not valid XML"),
    "a cut archive": (cut_archive, f"{SAR}: .*tar.gz: the archive is cut off or damaged .*fetch it again"),
}  # fmt: skip
"""What is spoilt in a folder that makes one pair, and the words of the one line."""


@pytest.mark.parametrize("case", CASES)
def test_a_folder_without_a_pair_says_why_in_one_line(tmp_path: Path, case: str) -> None:
    folder = write_folder(tmp_path / "products")
    spoil, words = CASES[case]
    spoil(folder)
    if words is None:
        assert len(query(folder).pairs) == 1
        return
    with pytest.raises(MissingError, match=words) as caught:
        query(folder)
    assert "\n" not in str(caught.value)


def test_a_wrong_area_is_told_where_the_products_lie(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "products")
    with pytest.raises(MissingError, match=r"area: \[9\.998, .*optical: \[11[67]\.\d+, 40\.\d+, .*sar: \[11[67]\.\d+, 40\."):
        query(folder, areas={"a": {"bbox": [10, 50, 10.1, 50.1]}})


def test_other_levels_of_sar_are_refused_by_name_and_the_rest_is_paired(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "products")
    others = [write_sar(folder, 7, level="L1B").name, write_sar(folder, 8, level="L2").name]
    lock = query(folder)
    assert len(lock.pairs) == 1
    assert [(one.item, one.role) for one in lock.refused] == [(name, "sar") for name in sorted(others)]
    assert all("levels are not mixed in one dataset, put it into a folder of its own" in one.reason for one in lock.refused)


def test_pairs_are_never_of_two_cameras(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "products")
    drop("GF6*03/*")(folder)
    values = np.full((8, SIZE, SIZE), 0.2, np.float32)
    products.write_gaofen6_wfv(folder, make_ground(), values, products.Pass(TIME + timedelta(days=3), 3))
    with pytest.raises(MissingError, match="needs a clear scene"):
        query(folder)


def test_names_in_the_table_that_no_product_has_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "products")
    sar, cloudy, clear = sorted(path.name for path in folder.iterdir())
    table = tmp_path / "pairs.csv"
    table.write_text(f"sar,cloudy,clear\n{sar},{cloudy},{clear}\n{sar},GF6_typo,{clear}\n")
    assert len(query(folder, table=str(table)).pairs) == 1
    assert "pipeline.query.table: no product found is called 'GF6_typo', its row is passed over" in caplog.messages
    table.write_text(f"sar,cloudy,clear\n{sar},GF6_typo,{clear}\n")
    with pytest.raises(MissingError, match=r"no row of the table names it; write the names .* pipeline\.query\.table"):
        query(folder, table=str(table))


@pytest.mark.parametrize(("resolution_m", "is_warned"), [(8, False), (4, True), (10, False), (16, False)])
def test_a_grid_much_finer_than_the_images_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resolution_m: int, is_warned: bool
) -> None:
    query(write_folder(tmp_path / "products"), resolution_m=resolution_m)
    words = f"pipeline.query.resolution_m is {resolution_m} m, but 2 images have pixels of 8 m (GF6_PMS"
    assert any(words in message for message in caplog.messages) == is_warned
