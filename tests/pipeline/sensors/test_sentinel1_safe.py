"""Products of a folder are listed with what they are, or refused with what is wrong; their scenes are those of the ground."""

import os
import sys
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
from safe_product import EPSG, NAME, Image, place_of, see_smoothly

from sereno.pipeline import safe
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.sensors.sentinel1_safe import list_products, read_product, read_scene
from sereno.pipeline.signing import Resolver

SAMPLES = os.environ.get("SERENO_SAMPLES")
real = pytest.mark.real
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")
SETTINGS = IngestSettings(margin_px=4, attempts=1)


def to_scene(*items: ItemRecord) -> SceneRecord:
    return SceneRecord(id="s", sensor="sentinel1-safe", time=items[0].time, items=items)


def make_area() -> GeoBox:
    x, y = place_of(np.float64(60), np.float64(100))
    return GeoBox((150, 120), Affine(10, 0, float(x) + 3.7, 0, -10, float(y) + 1501.3), EPSG)


def spoil_manifest(root: Path, old: str, new: str) -> None:
    path = root / "manifest.safe"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_product_is_listed_with_what_its_manifest_says(tmp_path: Path) -> None:
    safe_product.write_product(tmp_path)
    ((record, footprint),) = list_products(tmp_path).items
    assert (record.item, record.sensor, record.crs) == (NAME, "sentinel1-safe", "")
    assert record.time == "2021-06-03T05:00:00.000000Z"
    facts = record.properties
    assert (facts["platform"], facts["orbit_state"], facts["relative_orbit"], facts["absolute_orbit"]) == (
        "sentinel-1a", "ascending", "103", "38000",
    )  # fmt: skip
    assert (facts["mode"], facts["polarisations"], facts["slice"], facts["slices"], facts["ipf"]) == ("IW", "VV VH", "3", "9", "003.40")
    names = {f"{kind}{band}" for kind in ("", "annotation-", "calibration-", "noise-") for band in ("VV", "VH")}
    assert set(record.assets) == names | {"manifest"}
    assert all(asset.href.startswith(f"{NAME}.SAFE/") for asset in record.assets.values())
    assert record.assets["VV"].size_bytes == (tmp_path / record.assets["VV"].href).stat().st_size
    west, south, east, north = record.bbox
    ring = np.array(footprint["coordinates"][0])
    assert footprint["type"] == "Polygon"
    assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([west, south], [east, north])
    assert ring[0].tolist() == ring[-1].tolist()


def test_an_archive_is_listed_and_read_like_its_folder(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path / "folder")
    archive = safe_product.pack_product(root)
    (tmp_path / "zip").mkdir()
    archive.rename(tmp_path / "zip" / archive.name)
    records = [list_products(tmp_path / name).items[0][0] for name in ("folder", "zip")]
    assert records[1].model_copy(update={"assets": records[0].assets}) == records[0]
    assert records[1].assets["VV"].href.startswith(f"{NAME}.zip/{NAME}.SAFE/measurement/")
    scenes = [
        read_scene(to_scene(record), make_area(), SETTINGS, Resolver(str(tmp_path / name))).scene
        for record, name in zip(records, ("folder", "zip"), strict=True)
    ]
    assert scenes[0]["valid"].values.all()
    np.testing.assert_array_equal(scenes[0]["data"].values, scenes[1]["data"].values)


def test_without_a_dem_a_product_is_read_as_ground_range(tmp_path: Path) -> None:
    safe_product.write_product(tmp_path)
    scene = read_scene(to_scene(list_products(tmp_path).items[0][0]), make_area(), SETTINGS, Resolver(str(tmp_path))).scene
    x, y = np.meshgrid(scene["x"].values, scene["y"].values)
    assert np.abs(scene["data"].sel(sar_band="VV").values / 100 - 10 * np.log10(see_smoothly(x, y))).max() < 0.2
    assert scene.attrs["provenance"]["items"][0]["geocoding"] == "gcp"


def test_an_archive_beside_its_folder_is_refused(tmp_path: Path) -> None:
    safe_product.pack_product(safe_product.write_product(tmp_path))
    listing = list_products(tmp_path)
    assert [record.item for record, _ in listing.items] == [NAME]
    assert listing.refused == [(f"{NAME}.zip", f"{NAME}.SAFE beside it is the same product, unpacked")]


def cut_measurements(root: Path) -> None:
    for path in (root / "measurement").iterdir():
        path.write_bytes(path.read_bytes()[:-100])


def drop_measurements(root: Path) -> None:
    for path in (root / "measurement").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_measurements, "the manifest states"),
        (drop_measurements, "is missing"),
        (lambda root: (root / "manifest.safe").unlink(), "holds no manifest"),
        (lambda root: (root / "manifest.safe").write_text("<xfdu"), "not valid XML"),
        (lambda root: spoil_manifest(root, ">GRD<", ">SLC<"), "of type SLC, only GRD"),
        (lambda root: spoil_manifest(root, "<s1:pass>ASCENDING</s1:pass>", ""), "lacks pass"),
    ],
)
def test_products_that_cannot_be_used_are_refused_and_the_others_stay(tmp_path: Path, spoil: Any, words: str) -> None:
    good = safe_product.write_product(tmp_path)
    bad = tmp_path / good.name.replace("1234", "5678")
    good.rename(bad)
    spoil(bad)
    safe_product.write_product(tmp_path)
    listing = list_products(tmp_path)
    assert [record.item for record, _ in listing.items] == [NAME]
    ((name, reason),) = listing.refused
    assert name == bad.name
    assert words in reason


def test_an_unfinished_archive_is_refused(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path / "made")
    archive = safe_product.pack_product(root)
    (tmp_path / archive.name).write_bytes(archive.read_bytes()[:10_000])
    ((_, reason),) = list_products(tmp_path).refused
    assert "may be unfinished" in reason


def test_a_polarisation_that_is_not_whole_is_left_out_and_said(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    next((root / "measurement").glob("*-vh-*")).unlink()
    record, _ = read_product(root)
    assert record.properties["polarisations"] == "VV"
    assert "VH" not in record.assets
    assert "-vh-" in record.properties["incomplete"]


def test_other_files_of_the_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "S2A_MSIL1C.SAFE").mkdir()
    (tmp_path / "readme.txt").touch()
    assert list_products(tmp_path) == ([], [])
    with pytest.raises(MissingError, match="does not exist"):
        list_products(tmp_path / "absent")


def test_a_footprint_across_180_degrees_goes_on_beyond_it(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    text = (root / "manifest.safe").read_text()
    start, end = (text.index(mark) for mark in ("<gml:coordinates>", "</gml:coordinates>"))
    (root / "manifest.safe").write_text(text[:start] + "<gml:coordinates>50,179 50,-178 51,-178 51,179" + text[end:])
    record, footprint = read_product(root)
    assert record.bbox == (179, 50, -178, 51)
    assert {x for x, _ in footprint["coordinates"][0]} == {179, 182}


def test_two_slices_make_one_scene(tmp_path: Path) -> None:
    """The same image twice, the first without its southern half."""
    half = Image(nodata=(slice(0, 130), slice(0, 400)))
    for name, image in (("a", half), ("b", Image())):
        safe_product.write_product(tmp_path / name, image=image)
    items = [list_products(tmp_path / name).items[0][0] for name in ("a", "b")]
    moved = [
        item.model_copy(update={"item": f"{item.item}-{name}", "assets": {
            key: asset.model_copy(update={"href": f"{name}/{asset.href}"}) for key, asset in item.assets.items()
        }})
        for name, item in zip(("a", "b"), items, strict=True)
    ]  # fmt: skip
    reading = read_scene(to_scene(*moved), make_area(), SETTINGS, Resolver(str(tmp_path)))
    assert reading.scene["valid"].values.all()
    shares = [item["share"] for item in reading.scene.attrs["provenance"]["items"]]
    assert 0.3 < shares[0] < 0.7
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_terrain_correction_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safe_product.write_product(tmp_path)
    monkeypatch.setitem(sys.modules, "sarsen", None)
    settings = SETTINGS.model_copy(update={"dem": "dem.tif"})
    with pytest.raises(MissingError, match=r"pip install 'sereno\[sar\]'"):
        read_scene(to_scene(list_products(tmp_path).items[0][0]), make_area(), settings, Resolver(str(tmp_path)))


@real
@needs_samples
def test_real_products_that_are_not_whole_are_refused_with_the_reason() -> None:
    rome = list_products(Path(str(SAMPLES)) / "s1" / "sarsen_rome")
    assert not rome.items
    assert "has 434506 bytes, the manifest states 872345960" in rome.refused[0][1]
    archives = list_products(Path(str(SAMPLES)) / "s1" / "pyrosar")
    assert [reason.count("is missing") for _, reason in archives.refused] == [2, 2]


@real
@pytest.mark.slow
@needs_samples
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # the image that is made here
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_sarsen_on_nearly_flat_ground_gives_the_ellipsoids_gamma0(tmp_path: Path, packed: bool) -> None:
    """Annotation and DEM of Rome are real; the image is made: gamma0 of 0.1 everywhere, plus the noise of the tables."""
    pytest.importorskip("sarsen")
    folder = next((Path(str(SAMPLES)) / "s1" / "sarsen_rome").glob("*.SAFE"))
    root = write_even_product(tmp_path, folder)
    if packed:
        safe_product.pack_product(root)
        root.rename(tmp_path / "aside")
    record, _ = list_products(tmp_path).items[0]
    (x,), (y,) = transform("EPSG:4326", "EPSG:32633", [12.5], [42.0])
    area = GeoBox((100, 100), Affine(10, 0, round(x) - 500, 0, -10, round(y) + 500), "EPSG:32633")
    settings = SETTINGS.model_copy(update={"dem": str(folder.parent / "Rome-30m-DEM.tif")})
    scene = read_scene(to_scene(record), area, settings, Resolver(str(tmp_path))).scene
    level_db = scene["data"].values[0][scene["valid"].values] / 100
    facts = scene.attrs["provenance"]
    assert scene["valid"].values.mean() > 0.95
    assert np.median(level_db) == pytest.approx(-10, abs=0.3)
    assert 0.1 < level_db.std() < 3  # slopes of some degrees are brightened and darkened
    assert "terrain flattened by sarsen" in facts["calibration"]
    assert any("EGM96" in warning for warning in facts["warnings"])


def write_even_product(target: Path, folder: Path) -> Path:
    """The real product of `folder` with VV only and an image of even gamma0 where Rome's DEM lies, nodata elsewhere."""
    root = target / folder.name
    manifest = (folder / "manifest.safe").read_text().replace("<s1sarl1:transmitterReceiverPolarisation>VH", "<s1sarl1:none>VH")
    manifest = manifest.replace("VH</s1sarl1:transmitterReceiverPolarisation>", "VH</s1sarl1:none>")
    product = safe.parse_manifest(manifest, where="m")
    for kind in ("annotation", "calibration", "noise"):
        path = product.parts[kind, "VV"].path  # type: ignore[index]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes((folder / path).read_bytes())
    texts = {kind: (root / product.parts[kind, "VV"].path).read_bytes() for kind in ("calibration", "noise", "annotation")}  # type: ignore[index]
    lines, pixels = np.arange(7700.0, 8500), np.arange(21700.0, 22600)
    gain = safe.sample_vectors(safe.parse_calibration(texts["calibration"], "gamma", where="c"), lines, pixels)
    noise = safe.sample_noise(safe.parse_noise(texts["noise"], where="n"), lines, pixels)
    height, width = safe.parse_annotation(texts["annotation"], where="a").shape
    part = product.parts["measurement", "VV"]
    (root / part.path).parent.mkdir()
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": height, "width": width}
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(root / part.path, "w", **profile, tiled=True, SPARSE_OK=True, compress="deflate") as file,
    ):
        window = rasterio.windows.Window.from_slices((7700, 8500), (21700, 22600))
        file.write(np.rint(np.sqrt(0.1 * gain**2 + noise)).astype(np.uint16), 1, window=window)
    (root / "manifest.safe").write_text(
        manifest.replace(f'size="{part.size_bytes}"', f'size="{(root / part.path).stat().st_size}"').replace(part.md5, "")
    )
    return root
