"""Elevation models are found whatever their dates, and what they do not cover is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from affine import Affine
from elevations import COLLECTION, EAST, GRID, WEST, make_item, write_catalogue
from odc.geo.geobox import GeoBox
from real_files import find_samples

from sereno.pipeline.areas import Ground
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.elevation import Elevations, find_elevations, to_dem_grid
from sereno.pipeline.errors import MissingError, PermanentError
from sereno.pipeline.items import to_dem_record
from sereno.pipeline.server import running_server


def find(catalogue: Path | str, *, grid: GeoBox = GRID, margin_m: float = 500, **changes: Any) -> Elevations:
    areas = {"west": {"bbox": [9, 45, 9.1, 45.2]}}
    settings = QuerySettings.model_validate({"areas": areas, "dem_catalogue": str(catalogue), **changes})
    return find_elevations("west", Ground(grid, None), settings, margin_m=margin_m)


def test_both_tiles_that_meet_in_the_area_are_found_and_stated_with_the_surface_of_their_collection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = write_catalogue(tmp_path / "world")
    found = find(folder)
    record = found.record
    assert (record.id, record.sensor, record.catalogue, found.is_local) == ("dem", "dem", str(folder), True)
    assert [item.item for item in record.items] == [WEST, EAST]
    assert record.items[0].assets["dem"].href == f"assets/{WEST}.tif"
    assert record.items[0].properties == {"vertical_datum": "EGM2008 height"}
    assert "cover 100.0% of it, 100.0% with the margin" in caplog.text
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert find(folder).record == record


def test_of_files_on_a_server_size_and_etag_are_noted(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path / "world")
    with running_server(folder) as address:
        found = find(address)
    asset = found.record.items[1].assets["dem"]
    assert asset.size_bytes == (folder / "assets" / f"{EAST}.tif").stat().st_size
    assert (bool(asset.etag), found.is_local) == (True, False)


def test_a_tile_that_is_missing_is_told_with_its_share_and_what_helps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find(write_catalogue(tmp_path / "world", (WEST,)))
    assert [item.item for item in found.record.items] == [WEST]
    assert "cover 52.4% of it, 51.8% with the margin around it" in caplog.text  # 9.02 degrees is 1573 m east of the area's left edge
    assert "set pipeline.dem.missing to sea" in caplog.text


def test_ground_without_any_elevation_model_is_refused_in_one_line(tmp_path: Path) -> None:
    far = GeoBox((20, 20), Affine(10, 0, 600_000, 0, -10, 5_500_000), "EPSG:32632")
    with pytest.raises(
        MissingError, match=r"area 'west': no elevation model in \[10\.\d+, 49\.\d+, .* name another pipeline\.query\.dem_cata"
    ):
        find(write_catalogue(tmp_path / "world"), grid=far)


def test_a_collection_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(
        PermanentError, match=r"none of the collections nasadem; it has cop-dem-glo-30: .* pipeline\.query\.dem_collection$"
    ):
        find(write_catalogue(tmp_path / "world"), dem_collection="nasadem")


def test_an_item_without_a_file_of_heights_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_catalogue(tmp_path / "world")
    path = folder / COLLECTION / f"{EAST}.json"
    item = json.loads(path.read_text())
    del item["assets"]["data"]
    path.write_text(json.dumps(item))
    found = find(folder)
    assert [entry.item for entry in found.notes if entry.status == "missing"] == [EAST]
    assert (
        f"elevation model {EAST} is not used: none of its assets is a file of heights: tilejson; expected data, dem, elevation"
        in caplog.text
    )


@pytest.mark.parametrize("key", ["data", "dem", "Elevation", "N45_00_E009_00"])
def test_the_file_is_found_under_any_of_its_names(key: str) -> None:
    item = make_item(WEST, 9.0)
    item["assets"][key] = item["assets"].pop("data")
    assert to_dem_record(item).assets["dem"].href.endswith(f"{WEST}.tif")


def test_the_surface_that_an_item_states_is_believed_before_its_collection() -> None:
    item = make_item(WEST, 9.0)
    item["properties"]["vertical_datum"] = "ellipsoid"
    assert to_dem_record(item).properties == {"vertical_datum": "ellipsoid"}
    assert to_dem_record({**make_item(WEST, 9.0), "collection": "nasadem"}).properties == {"vertical_datum": "EGM96 height"}
    assert to_dem_record({**make_item(WEST, 9.0), "collection": "heights"}).properties == {}


@pytest.mark.parametrize("margin_m", [0, 95, 2000])
def test_the_grid_holds_the_area_and_its_margin_on_a_lattice_of_whole_pixels(margin_m: float) -> None:
    grid = to_dem_grid(GRID, margin_m, 30)
    inner, outer = GRID.boundingbox, grid.boundingbox
    assert all(edge % 30 == 0 for edge in outer)
    assert all(0 <= gap - margin_m < 30 for gap in (inner.left - outer.left, outer.right - inner.right, outer.top - inner.top))


@pytest.mark.real
def test_real_items_of_copernicus_dem_become_records() -> None:
    items = json.loads((find_samples() / "stac/stac_geoparquet/data/cop-dem-glo-30-pc.json").read_text())
    records = [to_dem_record(item) for item in items]
    assert [record.item for record in records] == [item["id"] for item in items]
    assert {record.crs for record in records} == {"EPSG:4326"}
    assert all(record.assets["dem"].href.endswith(f"{record.item}.tif") for record in records)
    assert all(record.properties == {"vertical_datum": "EGM2008 height"} for record in records)
    assert records[0].bbox[0] == pytest.approx(180 - 0.00138889)
