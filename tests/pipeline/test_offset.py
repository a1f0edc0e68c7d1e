"""The offset is decided by what the item says, contradictions are named, and the darkest pixels are asked."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.errors import DataError
from sereno.pipeline.items import to_item_record
from sereno.pipeline.offset import (
    HISTOGRAM_CLASSES,
    MIN_DARK_PX,
    OFFSET_DN,
    decide_offset,
    describe_check,
    find_contradictions,
    judge_offset,
    read_offset,
)
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.presets import PRESETS
from sereno.pipeline.radiometry import to_stored_reflectance
from sereno.pipeline.scene import MAX_REFLECTANCE

SAMPLES = os.environ.get("SERENO_SAMPLES")
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
ALL = PRESETS["earth-search"].offset_sources


def item(**facts: object) -> ItemRecord:
    known = {"item": "S2A_X", "collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632"}
    return ItemRecord(**{**known, "bbox": (8, 45, 9, 46), "assets": {}, "offset_sources": ALL, **facts})


@pytest.mark.parametrize(
    ("facts", "metadata", "offset_dn", "word"),
    [
        ({"declared_offset": -0.1, "processing_baseline": "02.14"}, None, -1000, "declared by the catalogue: -0.1"),
        ({"declared_offset": 0.0, "processing_baseline": "05.09"}, None, 0, "declared by the catalogue: 0"),
        ({"declared_offset": -1000.0}, None, -1000, "too large for reflectance"),
        # Earth Search: the flag overrules what it lists and what the untouched metadata file says.
        ({"declared_offset": -0.1, "offset_applied": True, "processing_baseline": "05.09"}, -1000, 0, "overrules the declared -0.1"),
        ({"offset_applied": True, "processing_baseline": "04.00"}, -1000, 0, "already removed"),
        ({"declared_offset": -0.1, "offset_applied": False}, None, -1000, "declared"),
        ({"offset_applied": False, "processing_baseline": "04.00"}, None, -1000, "baseline 04.00 (04.00 or later)"),
        # The metadata file goes before what catalogues copy from it.
        ({"declared_offset": 0.0, "processing_baseline": "05.09"}, -1000, -1000, "product metadata: -1000"),
        ({"declared_offset": -0.1, "processing_baseline": "02.14"}, 0, 0, "product metadata: 0"),
        # The date decides nothing: old scenes are processed anew.
        ({"processing_baseline": "04.00", "time": "2018-01-01T00:00:00Z"}, None, -1000, "04.00 or later"),
        ({"processing_baseline": "05.00", "time": "2015-08-01T00:00:00Z"}, None, -1000, "04.00 or later"),
        ({"processing_baseline": "03.01", "time": "2023-01-01T00:00:00Z"}, None, 0, "before 04.00"),
    ],
)
def test_the_offset_follows_the_items_word_and_never_the_date(
    facts: dict[str, object], metadata: int | None, offset_dn: int, word: str
) -> None:
    decided, reason = decide_offset(item(**facts), metadata)
    assert decided == offset_dn
    assert word in reason


@given(st.permutations(["flag", "metadata", "declared", "baseline"]), st.integers(1, 4))
def test_the_most_trusted_source_that_speaks_decides(order: list[str], count: int) -> None:
    said = {"flag": 0, "metadata": -300, "declared": -200, "baseline": -1000}
    record = item(offset_sources=tuple(order[:count]), offset_applied=True, declared_offset=-0.02, processing_baseline="05.09")
    assert decide_offset(record, -300)[0] == said[order[0]]


def test_a_source_that_is_not_believed_decides_nothing() -> None:
    record = item(offset_applied=True, declared_offset=0.0, processing_baseline="05.09", offset_sources=("baseline",))
    assert decide_offset(record, 0)[0] == OFFSET_DN


@pytest.mark.parametrize("baseline", [None, "", "unknown"])
def test_an_item_that_says_nothing_is_refused_by_name(baseline: str | None) -> None:
    with pytest.raises(DataError, match=r"item S2A_X: cannot tell.*metadata file not read.*baseline"):
        decide_offset(item(processing_baseline=baseline))


@pytest.mark.parametrize(
    ("facts", "metadata", "words"),
    [
        ({"declared_offset": -0.1, "processing_baseline": "05.09"}, -1000, []),
        ({"declared_offset": -0.1, "processing_baseline": "05.09", "offset_applied": True}, -1000, []),  # Earth Search as it should be
        ({"declared_offset": 0.0, "processing_baseline": "02.14", "offset_applied": False}, 0, []),
        ({"declared_offset": 0.0, "processing_baseline": "05.09"}, None, ["baseline 05.09 (04.00 or later), which means -1000"]),
        ({"declared_offset": -0.1, "processing_baseline": "02.14"}, 0, ["catalogue: -0.1, which means -1000"]),
        (
            {"declared_offset": 0.0, "processing_baseline": "03.01"},
            -1000,
            ["catalogue: 0, which means 0", "(before 04.00), which means 0"],
        ),
        ({"processing_baseline": "02.14", "offset_applied": True}, None, ["the product never had one: processing baseline 02.14"]),
    ],
)
def test_sources_that_contradict_each_other_are_named(facts: dict[str, object], metadata: int | None, words: list[str]) -> None:
    found = find_contradictions(item(**facts), metadata)
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert line.startswith("item S2A_X: ")
        assert word in line


# Product metadata.


def metadata(level: str = "2A", *, baseline: str = "05.09", offsets: str = "", scale: str = "10000", head: str = "") -> str:
    name, kind = {"2A": ("BOA_QUANTIFICATION_VALUE", "BOA"), "1C": ("QUANTIFICATION_VALUE", "RADIO")}[level]
    listed = "".join(f'<{kind}_ADD_OFFSET band_id="{band}">{value}</{kind}_ADD_OFFSET>' for band, value in enumerate(offsets.split()))
    return (
        f'<?xml version="1.0"?>{head}<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/a.xsd"><n1:General_Info>'
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><{name} unit='none'>{scale}</{name}>{listed}"
        f"<AOT_QUANTIFICATION_VALUE>1000.0</AOT_QUANTIFICATION_VALUE></n1:General_Info></n1:Level-{level}_User_Product>"
    )


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_metadata_state_one_offset_for_all_bands_or_none(level: str) -> None:
    assert read_offset(metadata(level, offsets="-1000 " * 13), where="MTD") == -1000
    assert read_offset(metadata(level, offsets="0 0 0").encode(), where="MTD") == 0
    assert read_offset(metadata(level, baseline="03.01"), where="MTD") == 0


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (metadata(offsets="-1000 -1000 0"), r"different offsets, by band id: .*'2': 0"),
        (metadata(scale="1000", offsets="-1000"), r"its scale is \['1000'\], expected 10000"),
        (metadata().replace("BOA_QUANTIFICATION_VALUE", "X"), r"its scale is \[\], expected 10000"),
        (metadata(scale="ten"), r"its scale is 'ten', expected a number"),
        (metadata(), r"lists no BOA_ADD_OFFSET although its baseline is 05.09"),
        (metadata(head="<!DOCTYPE x SYSTEM 'file:///etc/passwd'>"), r"MTD: it has a document type \(x\)"),
        (metadata(head=ENTITIES, offsets="&b;"), r"MTD: it has a document type \(x\)"),
        (metadata(head=ENTITIES).replace('version="1.0"', 'version="1.0" encoding="utf-16"').encode("utf-16"), r"it has a document type"),
        (metadata()[:200], r"not valid XML"),
        ("<Level-2A_Tile_ID/>", r"its root is 'Level-2A_Tile_ID'"),
        ("<a>" + " " * 2**24 + "</a>", r"bytes are too many"),
    ],
)
def test_metadata_that_cannot_be_believed_are_refused_in_one_line(text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_offset(text, where="MTD")
    assert str(caught.value).startswith("MTD: ")
    assert "\n" not in str(caught.value)


# Pixels.


def ground(seed: int = 0) -> np.ndarray:
    """Reflectance x 10000 of mixed ground with dark water, (6, 100, 100)."""
    level = np.array([400, 600, 500, 3000, 2000, 1000])[:, None, None]
    return (level * np.random.default_rng(seed).uniform(0.4, 1.6, (6, 100, 100))).astype(np.int32)


@pytest.mark.parametrize(("error_dn", "verdict"), [(0, "plausible"), (1000, "left in"), (-1000, "removed twice")])
def test_dark_pixels_tell_a_missing_and_a_doubled_shift(error_dn: int, verdict: str) -> None:
    stored = np.clip(ground() + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
    check = judge_offset(stored, np.ones((100, 100), bool), BANDS)
    assert check.verdict == verdict
    fault = describe_check(check)
    assert (fault is None) == (verdict == "plausible")
    assert fault is None or verdict in fault


@pytest.mark.parametrize(
    ("applied", "is_shifted", "verdict"),
    [
        (True, True, "plausible"),
        (False, True, "removed twice"),  # Element84/earth-search issues 66 and 71
        (True, False, "left in"),
        (False, False, "plausible"),
    ],
)
def test_pixels_tell_a_flag_that_is_wrong(applied: bool, is_shifted: bool, verdict: str) -> None:
    dn = ground().astype(np.uint16) + np.uint16(0 if is_shifted else 1000)
    offset_dn, _ = decide_offset(item(offset_applied=applied, declared_offset=-0.1, processing_baseline="05.09"), -1000)
    stored, _ = to_stored_reflectance(dn, np.ones(dn.shape, bool), offset_dn=offset_dn)
    assert judge_offset(stored, np.ones((100, 100), bool), BANDS).verdict == verdict


@pytest.mark.parametrize(("error_dn", "verdict"), [(0, "plausible"), (1000, "left in"), (-1000, "removed twice")])
def test_the_cirrus_band_tells_what_haze_hides_in_visible_bands(error_dn: int, verdict: str) -> None:
    cirrus = np.random.default_rng(1).normal(15, 10, (1, 100, 100)).astype(np.int32)  # the noise goes below zero
    toa = np.concatenate([ground() + 1100, cirrus])
    stored = np.clip(toa + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
    check = judge_offset(stored, np.ones((100, 100), bool), (*BANDS, "B10"))
    assert check.verdict == verdict
    fault = describe_check(check)
    assert verdict == "plausible" or verdict in str(fault)
    assert (verdict == "removed twice") == ("100% of the clear ground is zero in the cirrus band B10" in str(fault))


INFRARED = ("B05", "B06", "B07", "B8A", "B11", "B12")


def test_without_visible_bands_most_of_the_ground_at_zero_everywhere_is_told_and_less_is_left_open() -> None:
    level = np.random.default_rng(3).normal(1800, 300, (6, 100, 100))
    usable = np.ones((100, 100), bool)
    for error_dn, verdict in ((1000, "left in"), (0, "left in"), (-1000, "not left in"), (-2000, "removed twice")):
        stored = np.clip(level + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
        check = judge_offset(stored, usable, INFRARED)
        assert check.verdict == verdict
        assert check.zero_share == pytest.approx((stored == 0).mean(axis=(1, 2)).min(), abs=1e-4)
        fault = str(describe_check(check))
        assert verdict in fault or verdict == "not left in"
        assert ("of the clear ground is zero in every band" in fault) == (verdict == "removed twice")
    water = np.random.default_rng(4).normal(30, 60, (6, 100, 100))  # its noise about zero is no fault
    assert judge_offset(np.clip(water, 0, None).astype(np.uint16), usable, INFRARED).verdict == "not left in"


def test_a_single_visible_band_or_the_cirrus_band_tells_both_halves() -> None:
    stored = ground().astype(np.uint16)
    for bands in (("B04", *INFRARED[1:]), ("B10", *INFRARED[1:])):
        assert judge_offset(stored, np.ones((100, 100), bool), bands).verdict == "plausible"


def test_the_numbers_of_a_check_are_those_of_the_darkest_band() -> None:
    stored = ground().astype(np.uint16)
    usable = np.zeros((100, 100), bool)
    usable[:50] = True
    check = judge_offset(stored, usable, BANDS)
    blue = stored[0, :50].ravel()
    assert (check.darkest_band, check.pixels, check.zero_share) == ("B02", 5000, 0.0)
    assert check.dark_reflectance == pytest.approx(np.percentile(blue, 1) / 10000, abs=5e-5)
    edges = [*range(0, 100 * HISTOGRAM_CLASSES + 1, 100), 10**5]
    assert list(check.histogram) == np.histogram(blue, edges)[0].tolist()
    assert json.loads(json.dumps(check._asdict()))["histogram"] == list(check.histogram)


def test_cloud_and_what_is_not_valid_are_not_asked() -> None:
    stored = (ground() + 1000).astype(np.uint16)
    stored[:, 50:] = 0
    usable = np.zeros((100, 100), bool)
    usable[:50] = True
    assert judge_offset(stored, usable, BANDS).verdict == "left in"


def test_dark_pixels_give_no_verdict_where_too_little_ground_is_clear() -> None:
    check = judge_offset((ground() + 1000).astype(np.uint16), np.eye(100, dtype=bool), BANDS)
    assert check == ("too few pixels", 100, None, None, None, None, None, ())
    assert describe_check(check) is None


def test_large_scenes_are_looked_at_in_part() -> None:
    check = judge_offset(np.full((1, 1000, 1500), 500, np.uint16), np.ones((1000, 1500), bool), ("B04",))
    assert 300_000 < check.pixels <= 500_000
    assert check.histogram[5] == check.pixels


def test_digital_numbers_below_the_offset_stay_valid_and_are_counted() -> None:
    dn = (ground() + 1000).astype(np.uint16)
    dn[3:, :2] = np.arange(1, 201).reshape(2, 100) * 5  # 5 .. 1000, in shadow
    stored, n_clamped = to_stored_reflectance(dn, np.ones(dn.shape, bool), offset_dn=OFFSET_DN)
    assert n_clamped == 3 * 199  # 1000 becomes 0 by itself
    assert (stored[3:, :2] == 0).all()
    check = judge_offset(stored, np.ones((100, 100), bool), BANDS)
    assert (check.verdict, check.pixels) == ("plausible", 10_000)  # zeros are ground: all of it is looked at


# Real products.

real = pytest.mark.real
needs_samples = pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")


@real
@needs_samples
@pytest.mark.parametrize(
    ("pattern", "offset_dn"),
    [("stac/stactools_sentinel2/*_N0400_*/MTD_MSIL2A.xml", -1000), ("s2/ukis_pysat/*_N0209_*_MTD.xml", 0)],
)
def test_real_metadata_state_the_offset_of_their_baseline(pattern: str, offset_dn: int) -> None:
    (path,) = Path(str(SAMPLES)).glob(pattern)
    assert read_offset(path.read_bytes(), where=path.name) == offset_dn


@real
@needs_samples
@pytest.mark.parametrize(("baseline", "offset_dn"), [("0214", 0), ("0400", -1000)])
def test_what_stactools_lists_agrees_with_metadata_and_baseline(baseline: str, offset_dn: int) -> None:
    (path,) = Path(str(SAMPLES)).glob(f"stac/stactools_sentinel2/*_N{baseline}_*/expected_output.json")
    record = to_item_record(json.loads(path.read_text()))
    files = list(path.parent.glob("MTD_MSIL2A.xml"))
    stated = read_offset(files[0].read_bytes(), where="MTD") if files else None
    for sources in (("metadata", "declared"), ("declared",), ("baseline",)):
        assert decide_offset(record.model_copy(update={"offset_sources": sources}), stated)[0] == offset_dn
    assert find_contradictions(record, stated) == ()


MOUNTAINS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CLEAR = {
    "s2/sen2r/S2A2A_20170703_022_Barbellino_BOA_10.tif": MOUNTAINS,
    "s2/sen2r/S2A2A_20190723_022_Barbellino_BOA_10.tif": MOUNTAINS,
    "s2/sen2r/S2A1C_20170703_022_Barbellino_TOA_10.tif": (*MOUNTAINS[:9], "B09", *MOUNTAINS[9:]),
    "s2/sen2r/S2A1C_20190723_022_Barbellino_TOA_10.tif": (*MOUNTAINS[:9], "B09", *MOUNTAINS[9:]),
    "sen12mscr/glfcr/s2_cloudfree/ROIs1970_fall_139_p839.tif": L1C_BANDS,
}
"""Real images without cloud, from before baseline 04.00, and their bands."""


@real
@needs_samples
@pytest.mark.parametrize(("error_dn", "verdict"), [(0, "plausible"), (1000, "left in"), (-1000, "removed twice")])
@pytest.mark.parametrize("name", CLEAR)
def test_a_shift_of_real_images_is_told_and_a_right_one_is_not(name: str, error_dn: int, verdict: str) -> None:
    with rasterio.open(Path(str(SAMPLES)) / name) as file:
        values = file.read()
    usable = (values != 65535).all(axis=0)
    stored = np.clip(values.astype(np.int32) + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
    assert judge_offset(stored, usable, CLEAR[name]).verdict == verdict


@real
@needs_samples
@pytest.mark.parametrize("site", ["00002806639B424A", "000028085BF08E7E"])
def test_infrared_bands_of_real_fields_tell_a_shift_left_in_and_not_one_removed_twice(site: str) -> None:
    (path,) = (Path(str(SAMPLES)) / "worldcereal" / site).glob("S2_L2A_20m_*.nc")
    with xr.open_dataset(path, mask_and_scale=False) as file:
        values, classes = np.stack([file[band].values for band in INFRARED]), file["SCL"].values
    usable = np.isin(classes, (2, 4, 5, 6)) & (values > 0).all(axis=0) & (values < 65535).all(axis=0)
    dates = np.flatnonzero(usable.sum(axis=(1, 2)) >= MIN_DARK_PX)
    verdicts: dict[int, list[str]] = {1000: [], 0: [], -1000: []}
    for date, error_dn in itertools.product(dates, verdicts):
        stored = np.clip(values[:, date].astype(np.int32) + error_dn, 0, MAX_REFLECTANCE).astype(np.uint16)
        check = judge_offset(stored, usable[date], INFRARED)
        verdicts[error_dn].append(check.verdict)
        assert (check.zero_share or 0) <= 0.007
    assert set(verdicts[1000]) == {"left in"}
    assert verdicts[0].count("not left in") >= len(dates) - 2  # bright fields alone
    assert set(verdicts[-1000]) == {"not left in"}
