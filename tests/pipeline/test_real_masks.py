"""Cloud masks of real images against reference masks, the scene classification and each other, with bounds on what was found once."""

import os
from pathlib import Path

import masks
import numpy as np
import pytest

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.clouds import Agreement
from sereno.pipeline.config import MaskSettings
from sereno.pipeline.detectors import Image, detect_clouds

SAMPLES = os.environ.get("SERENO_SAMPLES")
RECORD = Path(masks.__file__).parent / "results" / "masks.md"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files"),
]


@pytest.fixture(scope="module")
def rows() -> list[masks.Row]:
    pytest.importorskip("s2cloudless", reason="install the extra s2cloudless")
    samples = Path(str(SAMPLES))
    return [*masks.compare_eolearn(samples), *masks.compare_sen2r(samples), *masks.compare_triplet(samples)]


def pick(rows: list[masks.Row], image: str, first: str, second: str) -> Agreement:
    return next(row.agreement for row in rows if row[:3] == (image, first, second))


def test_s2cloudless_gives_the_probability_that_eolearn_stored() -> None:
    pytest.importorskip("s2cloudless", reason="install the extra s2cloudless")
    folder = Path(str(SAMPLES)) / "s2" / "eolearn"
    scenes = np.load(folder / "REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)
    series = np.load(folder / "TestEOPatch" / "data" / "CLP_S2C.npy")[..., 0]
    for scene, (_, place) in zip(scenes, masks.EOLEARN_DATES, strict=True):
        pair = masks.to_pair(np.rint(scene * 10_000).astype(np.uint16), L1C_BANDS)
        found = detect_clouds(Image(pair, "cloudy", "eo-learn"), "s2cloudless", MaskSettings(method="s2cloudless")).cloud
        np.testing.assert_allclose(found, series[place], atol=1e-6)


@pytest.mark.parametrize("reference", ["reference", "reference over dates"])
def test_s2cloudless_agrees_with_the_references_of_slovenia(rows: list[masks.Row], reference: str) -> None:
    for day, cloud in (("2015-08-20", 0.999), ("2015-07-31", 0.92)):
        found = pick(rows, f"Slovenia {day}", "s2cloudless", reference)
        assert found.both > cloud
        assert found.only_first < 0.001
    for day in ("2015-09-09", "2015-08-30", "2015-07-11"):
        assert pick(rows, f"Slovenia {day}", "s2cloudless", reference).neither == 1.0


@pytest.mark.parametrize("reference", ["reference", "reference over dates", "s2cloudless"])
def test_our_rules_find_thick_cloud_and_no_cloud_but_a_third_of_a_veil(rows: list[masks.Row], reference: str) -> None:
    assert pick(rows, "Slovenia 2015-08-20", "threshold", reference).both > 0.99
    veil = pick(rows, "Slovenia 2015-07-31", "threshold", reference)
    assert 0.25 < veil.both < 0.35
    assert veil.only_first < 0.001
    for day in ("2015-09-09", "2015-08-30", "2015-07-11"):
        assert pick(rows, f"Slovenia {day}", "threshold", reference).neither == 1.0


def test_our_rules_and_the_scene_classification_share_the_clouds_over_barbellino(rows: list[masks.Row]) -> None:
    cloudy = pick(rows, "Barbellino 2017-07-03", "threshold", "SCL")
    assert cloudy.iou is not None
    assert cloudy.iou > 0.5
    assert pick(rows, "Barbellino 2019-07-23", "threshold", "SCL").neither == 1.0


def test_our_rules_and_s2cloudless_share_the_thick_clouds_of_the_triplet(rows: list[masks.Row]) -> None:
    cloudy = pick(rows, "SEN12MS-CR cloudy", "threshold", "s2cloudless")
    assert cloudy.both > 0.6
    assert cloudy.only_first < 0.03  # s2cloudless adds haze, ours adds next to nothing
    assert pick(rows, "SEN12MS-CR cloudfree", "threshold", "s2cloudless").neither > 0.997


def test_four_bands_find_what_six_do(rows: list[masks.Row]) -> None:
    for image in ("Slovenia 2015-08-20", "Slovenia 2015-07-31", "SEN12MS-CR cloudy"):
        overlap = pick(rows, image, "haze", "threshold").iou
        assert overlap is not None
        assert overlap > 0.98
    for day in ("2015-09-09", "2015-08-30", "2015-07-11"):
        assert pick(rows, f"Slovenia {day}", "haze", "reference").neither == 1.0


def test_the_recorded_table_is_what_comes_out(rows: list[masks.Row]) -> None:
    assert masks.to_table(rows) in RECORD.read_text()
