"""Names and metadata of Gaofen-3 are read in full, `NULL` is no number, and the calibration gives the worked numbers."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from real_files import find_samples

from sereno.pipeline import products
from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors.gaofen3_metadata import (
    DIVISORS,
    MODES,
    TAGS,
    compute_scale,
    parse_incidence,
    parse_metadata,
    parse_name,
)
from sereno.pipeline.views import Terrain


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The metadata of a simulated product of HH and HV."""
    ground = Terrain(GeoBox((40, 40), Affine(10, 0, 5e5, 0, -10, 45e5), "EPSG:32650"), np.full((40, 40), 120, np.float32))
    power = {band: np.full((40, 40), 0.1, np.float32) for band in ("HH", "HV")}
    flight = products.Pass(datetime(2021, 1, 7, 9, 54, 53, tzinfo=UTC), 5379609)
    product = products.write_gaofen3(tmp_path, ground, power, flight, radar=products.Radar())
    return next(product.glob("*.meta.xml")).read_text()


@pytest.mark.parametrize(
    ("name", "satellite", "mode", "level", "polarisations"),
    [
        ("GF3_SAY_FSI_023228_W65.3_S18.7_20210107_L2_HHHV_L20005379609", "GF3", "FSI", "L2", ("HH", "HV")),
        ("GF3_MYN_UFS_029108_W43.3_S22.7_20220219_L2_DH_L20006303810", "GF3", "UFS", "L2", ("HH",)),
        ("GF3_SAY_QPSI_016460_E118.3_N41.7_20190925_L1A_AHV_L10004266581", "GF3", "QPSI", "L1A", ("HH", "HV", "VH", "VV")),
        ("GF3_SAY_NSC_015430_E113.7_N29.0_20190716_L1A_HHHV_L10004118271.meta.xml", "GF3", "NSC", "L1A", ("HH", "HV")),
        ("GF3B_KRN_SL_015331_E1_N0.5_20230101_L1B_HH_L10001234567.tiff", "GF3B", "SL", "L1B", ("HH",)),
        ("GF3C_KAS_UFS_015331_E1_N0.5_20230101_L1A_DV_L10001234567.tiff", "GF3C", "UFS", "L1A", ("VV",)),
    ],
)
def test_names_say_what_a_product_is(name: str, satellite: str, mode: str, level: str, polarisations: tuple[str, ...]) -> None:
    found = parse_name(name)
    assert (found.satellite, found.mode, found.level, found.polarisations) == (satellite, mode, level, polarisations)
    assert found.product == name.removesuffix(".meta.xml").removesuffix(".tiff")


MODE_TABLE = {
    "SL": (1, 10), "UFS": (3, 30), "FSI": (5, 50), "FSII": (10, 100), "SS": (25, 130), "QPSI": (8, 30), "QPSII": (25, 40),
    "NSC": (50, 300), "WSC": (100, 500), "GLO": (500, 650), "WAV": (10, 5), "EXT": (25, 130),
}  # fmt: skip
"""Resolution in metres and swath in kilometres, typed again from table 4 of the paper that MODES names; of EXT the low incidence."""
TAG_TABLE = {
    "AHV": "HH HV VH VV", "DH": "HH", "DV": "VV", "HHHV": "HH HV", "HVHH": "HH HV", "VVVH": "VV VH", "VHVV": "VV VH",
    "HH": "HH", "VV": "VV",
}  # fmt: skip
"""What polarMode means, as SNAP's reader has it; the order in a product does not matter."""


def test_the_modes_are_those_of_the_published_table() -> None:
    assert {mode: tuple(values) for mode, values in MODES.items()} == MODE_TABLE


@pytest.mark.parametrize("level", ["L1A", "L1B", "L2"])
@pytest.mark.parametrize("satellite", ["GF3", "GF3B", "GF3C"])
@pytest.mark.parametrize("mode", MODE_TABLE)
def test_every_mode_of_every_satellite_is_read_from_a_name(satellite: str, mode: str, level: str) -> None:
    found = parse_name(f"{satellite}_QZX_{mode}_000001_E118.3_N41_20190925_{level}_HHHV_L{1 + (level == 'L2')}0000000001")
    assert (found.satellite, found.mode, found.level, found.tag) == (satellite, mode, level, "HHHV")


@pytest.mark.parametrize(("tag", "polarisations"), TAG_TABLE.items())
def test_every_polarisation_is_read_from_names_and_metadata(text: str, tag: str, polarisations: str) -> None:
    expected = sorted(polarisations.split())
    assert sorted(parse_name(f"GF3_KAS_FSI_000001_E118.3_N41.7_20190925_L1A_{tag}_L10000000001").polarisations) == expected
    found = parse_metadata(text.replace("<productPolar>HHHV<", f"<productPolar>{tag}<"), where="P")
    assert sorted(found.polarisations) == expected


@pytest.mark.parametrize("tag", sorted(set(TAGS) - set(TAG_TABLE)))
def test_further_tags_name_their_polarisations(tag: str) -> None:
    assert set(TAGS[tag]) == {tag[:2], tag[2:]} - {""}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GF3_SAY_XYZ_023228_W65.3_S18.7_20210107_L2_HHHV_L20005379609", "mode XYZ is not known"),
        ("GF3_SAY_FSI_023228_W65.3_S18.7_20210107_L2_RHLH_L20005379609", "polarisation RHLH is not known"),
        ("GF3_SAY_FSI_scene", "not the name of a Gaofen-3 product"),
    ],
)
def test_names_that_are_not_known_are_refused(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_name(name)
    assert name in str(caught.value)


def test_metadata_of_a_simulated_product(text: str) -> None:
    found = parse_metadata(text, where="P")
    assert (found.satellite, found.mode, found.level, found.polarisations) == ("GF3", "FSI", "L1A", ("HH", "HV"))
    assert found.start == "2021-01-07T09:54:49.000000Z"
    assert found.qualify == {"HH": 997.1, "HV": 466.6, "VH": None, "VV": None}
    assert found.height_m == pytest.approx(120)


@pytest.mark.real
def test_a_real_product_is_read_in_full() -> None:
    (path,) = (find_samples() / "gaofen").rglob("GF3*.meta.xml")
    found = parse_metadata(path.read_bytes(), where=path.name)
    assert (found.satellite, found.orbit, found.direction, found.mode, found.look) == ("GF3", 23228, "descending", "FSI", "R")
    assert (found.polarisations, found.height_m, found.level) == (("HH", "HV"), 2929.585693, "L2")
    assert (found.generated, found.dem) == ("2021-01-08 13:49:16", "0")
    assert (found.start, found.end) == ("2021-01-07T09:54:49.286464Z", "2021-01-07T09:54:58.238015Z")
    assert found.corners[2] == (-65.153227, -19.075238)
    assert found.qualify == {"HH": 997.1026, "HV": 466.574951, "VH": None, "VV": None}
    assert found.calibration_db == {"HH": 24.46, "HV": 24.53, "VH": None, "VV": None}
    assert found.saturation_pct["HH"] == 0.004138
    assert found.incidence_deg == (35.280714, 38.456128)
    with pytest.raises(DataError, match="QualifyValue/VV is NULL"):
        compute_scale(found, "VV", DIVISORS["detected"], where=path.name)


@pytest.mark.parametrize(("kind", "squared", "expected_db"), [("complex", 3000**2 + 4000**2, 18.671), ("detected", 5000**2, 12.650)])
def test_calibration_gives_the_worked_numbers(text: str, kind: str, squared: float, expected_db: float) -> None:
    # QualifyValue 1000, CalibrationConst 25: 10 log10(25e6 (1000/32767)^2) - 25 = 18.671 dB; with 65535 it is 6.02 dB less.
    spoilt = text.replace("<HH>997.1</HH>", "<HH>1000</HH>").replace("<HH>24.5</HH>", "<HH>25</HH>")
    scale = compute_scale(parse_metadata(spoilt, where="P"), "HH", DIVISORS[kind], where="P")
    assert 10 * np.log10(squared * scale) == pytest.approx(expected_db, abs=1e-3)


@pytest.mark.parametrize(("old", "name"), [("<HH>997.1</HH>", "QualifyValue/HH"), ("<HH>24.5</HH>", "CalibrationConst/HH")])
@pytest.mark.parametrize("new", ["<HH>NULL</HH>", "<HH></HH>", ""])
def test_without_calibration_nothing_is_calibrated(text: str, old: str, new: str, name: str) -> None:
    assert old in text
    found = parse_metadata(text.replace(old, new), where="PRODUCT")
    with pytest.raises(DataError, match=name) as caught:
        compute_scale(found, "HH", DIVISORS["complex"], where="PRODUCT")
    assert "PRODUCT" in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_scale_that_cannot_be_is_refused(text: str, value: str) -> None:
    found = parse_metadata(text.replace("<HH>997.1<", f"<HH>{value}<"), where="PRODUCT")
    with pytest.raises(DataError, match=r"QualifyValue/HH is .*expected above 0"):
        compute_scale(found, "HH", DIVISORS["complex"], where="PRODUCT")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<productPolar>HHHV<", "<productPolar>XY<", "productPolar XY is not known"),
        ("<start>2021-01-07 ", "<start>7.1.2021 ", "imagingTime is"),
        ("<start>2021-01-07 09", "<start>2021-13-07 09", "imagingTime is"),
        ("<HH>997.1<", "<HH>many<", "expected a number"),
        ("<incidenceAngleNearRange>", "<incidenceAngleNearRange>C", "incidenceAngleNearRange is 'C34.*expected a number"),
        ("<orbitID>379609<", "<orbitID>none<", "orbitID is 'none', expected a number"),
        ("<latitude>", "<latitude>N", "latitude is 'N.*expected a number"),
        (
            "<averageAltitude>",
            "<averageAltitude>inf</averageAltitude><averageAltitude>",
            "averageAltitude is 'inf', expected a finite number",
        ),
        ("<satellite>GF3</satellite>", "<satellite>NULL</satellite>", "lacks satellite"),
        ("</product>", "", "not valid XML"),
    ],
)
def test_damaged_metadata_are_refused_by_name(text: str, old: str, new: str, words: str) -> None:
    assert old in text
    with pytest.raises(DataError, match=words) as caught:
        parse_metadata(text.replace(old, new), where="PRODUCT")
    assert "PRODUCT" in str(caught.value)


def write_incidence(*angles: float, stated: int | None = None) -> str:
    values = "".join(f"<incidenceValue>{angle}</incidenceValue>" for angle in angles)
    return f"<incidence><numberofIncidenceValue>{stated or len(angles)}</numberofIncidenceValue>{values}</incidence>"


def test_incidence_is_one_angle_per_column() -> None:
    np.testing.assert_array_equal(parse_incidence(write_incidence(34.5, 34.75, 35), where="P"), [34.5, 34.75, 35])


@pytest.mark.parametrize("text", [write_incidence(1, 2, stated=3), "<incidence/>", write_incidence(20, 95), "<incidence>"])
def test_damaged_incidence_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="PRODUCT"):
        parse_incidence(text, where="PRODUCT")
