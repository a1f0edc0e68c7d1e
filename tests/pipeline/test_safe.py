"""Tables of Sentinel-1 products give the numbers that stand in them, linear between, whatever processor wrote them."""

import os
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safe_product
from safe_product import Image

from sereno.pipeline import safe
from sereno.pipeline.errors import DataError, MissingError

SAMPLES = os.environ.get("SERENO_SAMPLES")
real = pytest.mark.real
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")

NEW, OLD = Image(), Image(ipf="002.70")


def test_a_calibration_table_is_linear_between_its_points_and_constant_beyond() -> None:
    table = safe.parse_calibration(safe_product.to_calibration(NEW), "gamma", where="t")
    lines, pixels = np.array([-100.0, 0.0, 7.5, 299.0]), np.array([0.0, 13.0, 399.5])
    expected = safe_product.gain_at(lines[:, None], pixels)
    np.testing.assert_allclose(safe.sample_vectors(table, lines, pixels), expected, rtol=1e-9)
    beyond = safe.sample_vectors(table, np.array([-5000.0, -100.0]), pixels)
    np.testing.assert_array_equal(beyond[0], beyond[1])


@pytest.mark.parametrize(("quantity", "factor"), [("sigmaNought", 1.1), ("betaNought", 0.8), ("gamma", 1.0)])
def test_each_quantity_has_its_own_table(quantity: safe.Quantity, factor: float) -> None:
    table = safe.parse_calibration(safe_product.to_calibration(NEW), quantity, where="t")
    assert safe.sample_vectors(table, np.zeros(1), np.zeros(1))[0, 0] == pytest.approx(500 * factor)


def test_a_table_of_a_single_line_holds_everywhere() -> None:
    table = safe.Vectors(np.array([5.0]), (np.array([0.0, 10.0]),), (np.array([1.0, 2.0]),))
    np.testing.assert_allclose(safe.sample_vectors(table, np.array([0.0, 99.0]), np.array([5.0])), [[1.5], [1.5]])


@pytest.mark.parametrize("image", [NEW, OLD], ids=["since 2.9", "before 2.9"])
def test_noise_is_range_times_azimuth_since_ipf_2_9_and_one_table_before(image: Image) -> None:
    noise = safe.parse_noise(safe_product.to_noise(image), where="t")
    lines, pixels = np.array([0.0, 33.0, 299.0]), np.array([0.0, 198.0, 199.0, 199.6, 200.0, 399.0])
    expected = safe_product.noise_at(image, lines[:, None], pixels)
    assert bool(noise.azimuth_blocks) == (image is NEW)
    np.testing.assert_allclose(safe.sample_noise(noise, lines, pixels), expected, rtol=1e-9)


def test_beyond_the_blocks_the_range_table_stands_alone() -> None:
    vectors = safe.Vectors(np.array([0.0, 100.0]), (np.array([0.0, 100.0]),) * 2, (np.array([2.0, 2.0]),) * 2)
    block = safe.AzimuthBlock(10, 19, 30, 39, np.array([10.0, 19.0]), np.array([3.0, 3.0]))
    eta = safe.sample_noise(safe.Noise(vectors, (block,)), np.arange(100.0), np.arange(100.0))
    expected = np.full((100, 100), 2.0)
    expected[10:20, 30:40] = 6.0
    np.testing.assert_array_equal(eta, expected)


def test_the_annotation_leads_from_slant_range_to_the_pixel() -> None:
    annotation = safe.parse_annotation(safe_product.to_annotation(NEW), where="t")
    grid = annotation.grid
    assert annotation.shape == NEW.shape
    assert grid.lines.size == 210
    assert annotation.ground_range is not None
    assert grid.slant_ranges_m is not None
    pixels = safe.compute_ground_range(annotation.ground_range, grid.lines, grid.slant_ranges_m)
    np.testing.assert_allclose(pixels, grid.pixels, atol=1e-3)


def test_between_two_polynomials_ground_range_changes_linearly_along_track() -> None:
    conversion = safe.GroundRange(np.array([0.0, 100.0]), np.array([0.0, 0.0]), (np.array([10.0, 1.0]), np.array([30.0, 1.0])), 10.0)
    pixels = safe.compute_ground_range(conversion, np.array([-9.0, 0.0, 50.0, 100.0, 200.0]), np.full(5, 100.0))
    np.testing.assert_allclose(pixels, [11, 11, 12, 13, 13])


def test_the_manifest_says_who_when_where_and_which_files(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    product = safe.parse_manifest((root / "manifest.safe").read_bytes(), where="m")
    assert (product.platform, product.product_type, product.mode, product.polarisations) == ("sentinel-1a", "GRD", "IW", ("VV", "VH"))
    assert (product.orbit_state, product.absolute_orbit, product.relative_orbit) == ("ascending", 38000, 103)
    assert (product.slice_number, product.total_slices, product.ipf) == (3, 9, "003.40")
    assert product.start == "2021-06-03T05:00:00.000000Z"
    assert len(product.parts) == 8
    for part in product.parts.values():
        assert (root / part.path).stat().st_size == part.size_bytes


def test_a_folder_and_its_archive_hold_the_same_files(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    archive = safe_product.pack_product(root)
    assert safe.root_of(archive) == root.name
    assert safe.list_members(archive) == safe.list_members(root)
    member = f"{archive}/{root.name}/manifest.safe"
    assert safe.read_file(member) == safe.read_file(str(root / "manifest.safe"))
    assert safe.split_archive(member) == (str(archive), f"{root.name}/manifest.safe")
    assert safe.to_gdal(member) == f"/vsizip/{member}"
    assert safe.to_gdal(str(root)) == str(root)


@pytest.mark.parametrize("text", ["", "not xml", "<product/>", "<calibration><calibrationVectorList/></calibration>"])
def test_damaged_or_other_files_are_refused_by_name(text: str) -> None:
    for parse in (safe.parse_manifest, safe.parse_noise, safe.parse_annotation):
        with pytest.raises(DataError, match=r"^here: "):
            parse(text, where="here")
    with pytest.raises(DataError, match=r"^here: "):
        safe.parse_calibration(text, "gamma", where="here")


def test_a_table_with_a_value_too_few_is_refused() -> None:
    text = safe_product.to_calibration(NEW).replace("<gamma>500 ", "<gamma>", 1).replace("<gamma>490 ", "<gamma>", 1)
    with pytest.raises(DataError, match="not one value per pixel"):
        safe.parse_calibration(text, "gamma", where="t")


def test_text_among_the_numbers_is_refused() -> None:
    with pytest.raises(DataError, match="something else than numbers"):
        safe.parse_noise(safe_product.to_noise(OLD).replace("<noiseLut>900", "<noiseLut>NULL", 1), where="t")


def test_an_unfinished_archive_is_refused(tmp_path: Path) -> None:
    archive = safe_product.pack_product(safe_product.write_product(tmp_path))
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match="may be unfinished"):
        safe.list_members(archive)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "S1.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match=r"expected one \.SAFE folder"):
        safe.root_of(tmp_path / "S1.zip")


def test_missing_files_and_members_are_named(tmp_path: Path) -> None:
    root = safe_product.write_product(tmp_path)
    archive = safe_product.pack_product(root)
    for path in (root / "absent.xml", archive / root.name / "absent.xml"):
        with pytest.raises(MissingError, match=r"absent\.xml"):
            safe.read_file(str(path))


def test_a_bomb_of_entities_is_refused() -> None:
    text = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{("&" + chr(97 + n) + ";") * 10}">' for n in range(9)
    )
    with pytest.raises(DataError, match="not valid XML"):
        safe.parse_noise(text + "]><noise>&j;</noise>", where="t")


def real_products() -> list[tuple[str, str]]:
    """Root (a folder or a path into an archive) and a polarisation that it has."""
    folder = Path(str(SAMPLES)) / "s1"
    (rome,) = (folder / "sarsen_rome").glob("*.SAFE")
    archives = sorted((folder / "pyrosar").glob("*.zip"))
    return [(str(rome), "VV"), *((f"{path}/{safe.root_of(path)}", band) for path in archives for band in ("VV", "VH"))]


def interpolate_directly(nodes: list[ET.Element], name: str, line: float, pixel: float) -> float:
    """Bilinear by hand, one place, straight from the XML."""
    rows = [float(node.findtext("line") or "nan") for node in nodes]
    after = next(n for n, row in enumerate(rows) if row > line)
    values = []
    for node in (nodes[after - 1], nodes[after]):
        pixels, table = ([float(v) for v in (node.findtext(key) or "").split()] for key in ("pixel", name))
        right = next(n for n, p in enumerate(pixels) if p > pixel)
        share = (pixel - pixels[right - 1]) / (pixels[right] - pixels[right - 1])
        values.append(table[right - 1] * (1 - share) + table[right] * share)
    share = (line - rows[after - 1]) / (rows[after] - rows[after - 1])
    return values[0] * (1 - share) + values[1] * share


@real
@needs_samples
def test_real_tables_of_old_and_new_processors_equal_a_direct_computation() -> None:
    rng = np.random.default_rng(1)
    kinds = set()
    for root, band in real_products():
        product = safe.parse_manifest(safe.read_file(f"{root}/manifest.safe"), where="m")
        calibration, noise = (safe.read_file(f"{root}/{product.parts[kind, band].path}") for kind in ("calibration", "noise"))
        gains, etas = safe.parse_calibration(calibration, "gamma", where="c"), safe.parse_noise(noise, where="n")
        kinds.add(bool(etas.azimuth_blocks))
        vectors, tree = ET.fromstring(calibration).findall(".//calibrationVector"), ET.fromstring(noise)
        for line, pixel in zip(rng.uniform(0, 16000, 20), rng.uniform(0, 25000, 20), strict=True):
            at = np.array([line]), np.array([pixel])
            assert safe.sample_vectors(gains, *at)[0, 0] == pytest.approx(interpolate_directly(vectors, "gamma", line, pixel), rel=1e-9)
            assert safe.sample_noise(etas, *at)[0, 0] == pytest.approx(compute_noise_directly(tree, line, pixel), rel=1e-9)
    assert kinds == {True, False}


def compute_noise_directly(tree: ET.Element, line: float, pixel: float) -> float:
    old = tree.findall(".//noiseVector")
    if old:
        return interpolate_directly(old, "noiseLut", line, pixel)
    eta = interpolate_directly(tree.findall(".//noiseRangeVector"), "noiseRangeLut", line, pixel)
    for node in tree.iter("noiseAzimuthVector"):
        first, last = (int(node.findtext(key) or "-1") for key in ("firstRangeSample", "lastRangeSample"))
        if first - 0.5 <= pixel < last + 0.5:
            lines, table = ([float(v) for v in (node.findtext(key) or "").split()] for key in ("line", "noiseAzimuthLut"))
            return eta * float(np.interp(line, lines, table))
    raise AssertionError(f"no block at pixel {pixel}")


@real
@needs_samples
@pytest.mark.filterwarnings("ignore")
def test_a_real_calibration_equals_that_of_xarray_sentinel() -> None:
    sentinel = pytest.importorskip("xarray_sentinel")
    root, band = real_products()[0]
    product = safe.parse_manifest(safe.read_file(f"{root}/manifest.safe"), where="m")
    table = sentinel.sentinel1.open_calibration_dataset(f"{root}/{product.parts['calibration', band].path}")
    lines, pixels = np.linspace(0, 16000, 7), np.linspace(0, 26000, 9)
    theirs: npt.NDArray[np.float64] = table.gamma.interp(line=lines, pixel=pixels).values
    ours = safe.parse_calibration(safe.read_file(f"{root}/{product.parts['calibration', band].path}"), "gamma", where="c")
    np.testing.assert_allclose(safe.sample_vectors(ours, lines, pixels), theirs, rtol=1e-6)


@real
@needs_samples
def test_real_noise_lies_where_the_instrument_puts_it() -> None:
    for root, band in real_products():
        product = safe.parse_manifest(safe.read_file(f"{root}/manifest.safe"), where="m")
        gains = safe.parse_calibration(safe.read_file(f"{root}/{product.parts['calibration', band].path}"), "sigmaNought", where="c")
        noise = safe.parse_noise(safe.read_file(f"{root}/{product.parts['noise', band].path}"), where="n")
        lines, pixels = np.linspace(0, 16000, 20), np.linspace(0, 25000, 30)
        level_db = 10 * np.log10(safe.sample_noise(noise, lines, pixels) / safe.sample_vectors(gains, lines, pixels) ** 2)
        assert -35 < level_db.min()
        assert level_db.max() < -21  # ESA specifies at most -22 dB of sigma0, the tables may touch it
