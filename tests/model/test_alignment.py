"""What was measured of every field stands on the page, and its picture shows the ground that can be judged."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.model.alignment import CROP_PX, FIELD_COLUMNS, choose_crop, describe_fields
from sereno.model.page import Shots, Table
from sereno.model.pictures import Stretch
from sereno.model.results import Results
from sereno.pipeline.registration import start_registration
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS, with_grid
from sereno.pipeline.shiftfield import make_shift
from sereno.pipeline.store import save_dataset

GRID = GeoBox((90, 80), Affine(10, 0, 498_400, 0, -10, 5_000_000), "EPSG:32632")


def save_pair(
    folder: Path, registration: dict[str, Any], cloudy: dict[str, Any] | None = None, refused: str | None = None
) -> dict[str, Any]:
    levels = np.random.default_rng(0).integers(300, 3000, (3, *GRID.shape)).astype(np.uint16)
    variables: dict[str, Any] = {
        "sar": (("sar_band", "y", "x"), np.full((2, *GRID.shape), -1200, np.int16), {"units": SAR_UNITS}),
        "clear": (("band", "y", "x"), levels, {"units": OPTICAL_UNITS}),
        "cloudy": (("band", "y", "x"), levels, {"units": OPTICAL_UNITS}),
    }
    variables |= {f"valid_{role}": (("y", "x"), np.ones(GRID.shape, bool)) for role in ("sar", "clear", "cloudy")}
    names = {"band": ["B02", "B03", "B04"], "sar_band": ["VV", "VH"]}
    summary = {"registration": registration, "registration_cloudy": cloudy, "refused": refused}
    dataset = xr.Dataset(variables, coords=names, attrs={"provenance": summary})
    save_dataset(with_grid(dataset, GRID), folder / "align/west/p1.json", kind="pair", summary=summary)
    return summary


def make_results(folder: Path, aligned: dict[tuple[str, str], Any]) -> Results:
    """Results with aligned pairs and nothing else."""
    values: dict[str, Any] = dict.fromkeys(Results.__dataclass_fields__, None)
    return Results(**values | {"folder": folder, "aligned": aligned})


def test_a_registration_as_it_is_recorded_becomes_a_row_and_a_picture(tmp_path: Path) -> None:
    registration = start_registration(GRID.shape, "only 3 windows", pixel_m=10.0).to_record()
    summary = save_pair(tmp_path, registration)
    blocks = describe_fields(make_results(tmp_path, {("west", "p1"): summary}), Stretch(0.0, 0.3))
    table = next(block for block in blocks if isinstance(block, Table))
    assert [len(row) for row in table.rows] == [len(FIELD_COLUMNS)]
    assert [cell.words for cell in table.rows[0][:5]] == ["west", "p1", "SAR", "no ground", "shift"]
    shots = next(block for block in blocks if isinstance(block, Shots))
    assert [shot.uri[:22] for shot in shots.shots] == ["data:image/png;base64,"]
    assert "refused" in shots.shots[0].note


def measure(shift_px: float) -> dict[str, Any]:
    field = make_shift(GRID.shape, shift_px, 0.0)
    start = start_registration(GRID.shape, "81 of 81 agree", pixel_m=8.0)
    return dataclasses.replace(start, field=field, verdict="applied", status="ok", n_laid=81, sigma_px=0.25).to_record()


def test_both_images_that_were_laid_onto_the_clear_one_have_a_row_in_metres_and_pixels_and_a_picture(tmp_path: Path) -> None:
    summary = save_pair(tmp_path, measure(2.0), measure(-3.5))
    blocks = describe_fields(make_results(tmp_path, {("west", "p1"): summary}), Stretch(0.0, 0.3))
    table = next(block for block in blocks if isinstance(block, Table))
    rows = [dict(zip(FIELD_COLUMNS, (cell.words for cell in row), strict=True)) for row in table.rows]
    assert [(row["image"], row["mean shift, m"], row["mean shift, px"]) for row in rows] == [
        ("SAR", "16.0", "2.00"),
        ("cloudy", "28.0", "3.50"),
    ]
    assert (rows[0]["σ, px"], rows[0]["σ, m"]) == ("0.250", "2.00")
    shots = next(block for block in blocks if isinstance(block, Shots))
    assert [shot.note for shot in shots.shots] == ["field applied; VV in grey", "field applied; clear and cloudy"]


def test_a_pair_that_was_given_up_for_want_of_a_field_has_its_rows_but_no_picture(tmp_path: Path) -> None:
    summary = save_pair(tmp_path, measure(2.0), measure(0.0) | {"verdict": "refused", "status": "low_texture"}, "the cloudy scene: ...")
    why = "the clear scene: ..."
    unread = {"registration": start_registration(GRID.shape, why, pixel_m=8.0).to_record(), "refused": why}
    results = make_results(tmp_path, {("west", "p1"): summary, ("west", "p2"): unread})
    blocks = describe_fields(results, Stretch(0.0, 0.3))
    table = next(block for block in blocks if isinstance(block, Table))
    assert [[cell.words for cell in row[1:4]] for row in table.rows] == [["p1", "SAR", "ok"], ["p1", "cloudy", "low texture"]]
    assert not [block for block in blocks if isinstance(block, Shots)]


def test_without_pairs_nothing_is_said(tmp_path: Path) -> None:
    assert describe_fields(make_results(tmp_path, {}), Stretch(0.0, 0.3)) == []


@pytest.mark.parametrize(("empty", "expected"), [(np.s_[:, :], 480), (np.s_[:, :640], 640), (np.s_[:0], 480)])
def test_the_crop_lies_on_usable_ground_near_the_middle(empty: Any, expected: int) -> None:
    usable = np.ones((CROP_PX, 4 * CROP_PX), bool)
    usable[empty] = False
    rows, columns = choose_crop(usable, CROP_PX)
    assert (rows.start, rows.stop - rows.start, columns.start) == (0, CROP_PX, expected)
