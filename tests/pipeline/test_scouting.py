"""Where scenes are searched by task, and how items of several places become candidates; what a search makes of them tests `test_query`."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sereno.pipeline.areas import Ground, to_ground
from sereno.pipeline.config import Area, QuerySettings, TaskName
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import AssetRecord, ItemRecord
from sereno.pipeline.scouting import (
    Listed,
    Search,
    Source,
    judge_kinds,
    measure_clouds,
    open_sources,
    probe_used,
    to_period,
    warn_of_unknown,
)

BOUNDS = (500_000, 5_000_000, 509_600, 5_009_600)
GROUND: Ground = to_ground(Area(bounds_m=BOUNDS, epsg=32632), 30)
RING = [[8, 44], [10, 44], [10, 46], [8, 46], [8, 44]]
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
NOTE = Entry("query", "", "", "", "", "used")


def to_settings(**changes: Any) -> QuerySettings:
    return QuerySettings.model_validate({"areas": {"a": {"bounds_m": BOUNDS, "epsg": 32632}}, "bands": BANDS, **changes})


def open_names(task: TaskName, **changes: Any) -> dict[str, str]:
    with contextlib.ExitStack() as stack:
        return {kind: source.address for kind, source in open_sources(stack, to_settings(**changes), task).items()}


def test_each_task_searches_what_it_needs_and_where_the_settings_say() -> None:
    url, other = "https://one.example", "https://other.example"
    both = {"catalogue": url, "coarse_collections": ["modis-09A1-061"]}
    assert open_names("cloud-removal", catalogue=url) == {"optical": url, "sar": url}
    assert open_names("cloud-removal", catalogue=url, sar_catalogue=other) == {"optical": url, "sar": other}
    assert open_names("pansharpening", catalogue=url, sar_catalogue=other) == {"optical": url}
    assert open_names("spatiotemporal-fusion", **both) == {"optical": url, "coarse": url}
    assert open_names("spatiotemporal-fusion", **both, coarse_catalogue=other) == {"optical": url, "coarse": other}
    with pytest.raises(ConfigError, match="coarse_collections needs STAC catalogues, but 'source' is gaofen"):
        open_names("spatiotemporal-fusion", **both, source="gaofen")


def test_one_catalogue_is_opened_once() -> None:
    with contextlib.ExitStack() as stack:
        settings = to_settings(catalogue="https://one.example", coarse_collections=["m"], coarse_catalogue="https://one.example")
        sources = open_sources(stack, settings, "spatiotemporal-fusion")
        assert sources["coarse"] is sources["optical"]


def to_item(name: str, sensor: str) -> ItemRecord:
    known = {"collection": "c", "time": "2021-06-03T10:00:00Z", "crs": "", "bbox": (8, 44, 10, 46)}
    assets = {band: AssetRecord(href=band) for band in BANDS}
    return ItemRecord.model_validate({"item": name, "sensor": sensor, "assets": assets, **known})


def list_named(*items: ItemRecord) -> Listed:
    return Listed([(item, {"type": "Polygon", "coordinates": [RING]}) for item in items], ("c",), NOTE)


def make_search(folder: Path, *, coarse_elsewhere: bool, **changes: Any) -> Search:
    fine = Source(str(folder), None)
    return Search(GROUND, {"optical": fine, "coarse": Source("elsewhere", None) if coarse_elsewhere else fine}, to_settings(**changes))


@pytest.mark.parametrize("elsewhere", [True, False])
def test_candidates_of_all_kinds_have_ids_of_their_own_and_name_another_place(tmp_path: Path, elsewhere: bool) -> None:
    search = make_search(tmp_path, coarse_elsewhere=elsewhere)
    judged = judge_kinds(search, {"optical": list_named(to_item("x", "landsat-oli")), "coarse": list_named(to_item("x", "modis-09a1"))})
    (fine,), (coarse,) = (judged[kind].candidates for kind in ("optical", "coarse"))
    assert fine.scene.id != coarse.scene.id
    assert (fine.scene.catalogue, coarse.scene.catalogue) == ("", "elsewhere" if elsewhere else "")
    assert (fine.scene.sensor, coarse.scene.sensor) == ("landsat-oli", "modis-09a1")


def test_sensors_that_share_no_band_are_refused_before_anything_is_judged(tmp_path: Path) -> None:
    listed = {"optical": list_named(to_item("x", "landsat-oli")), "coarse": list_named(to_item("y", "sentinel1-rtc"))}
    with pytest.raises(ConfigError, match="has no band in common"):
        judge_kinds(make_search(tmp_path, coarse_elsewhere=False), listed)


def test_a_product_that_never_has_classes_is_not_asked_for_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = make_search(tmp_path, coarse_elsewhere=False)
    listed = {"optical": list_named(to_item("x", "landsat-oli")), "coarse": list_named(to_item("y", "modis-43a4"))}
    judged = judge_kinds(search, listed)
    with caplog.at_level(logging.WARNING):
        assert measure_clouds(search, judged["coarse"], None, kind="coarse") == judged["coarse"]
        assert caplog.text == ""
        assert [note.status for note in measure_clouds(search, judged["optical"], None).notes] == ["missing"]
    assert "a scene classification cannot be read" in caplog.text


def test_names_that_nothing_answers_to_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = make_search(tmp_path, coarse_elsewhere=False, coarse_collections=["c", "modis-09Q1-061"], exclude=["gone"])
    warn_of_unknown(search, {"optical": list_named(to_item("x", "landsat-oli"))})
    assert "pipeline.query.coarse_collections: the catalogue has no 'modis-09Q1-061', it is passed over" in caplog.text
    assert "pipeline.query.exclude: no item found is called 'gone'" in caplog.text


def test_files_on_this_machine_are_not_asked_for(tmp_path: Path) -> None:
    search = make_search(tmp_path, coarse_elsewhere=False)
    scene = judge_kinds(search, {"optical": list_named(to_item("x", "landsat-oli"))})["optical"].candidates[0].scene
    assert probe_used(search, {"optical": [scene]}) == ({scene.id: scene}, [])


def test_a_bare_day_as_the_end_means_all_of_it() -> None:
    settings = to_settings(start="2021-06-01", end="2021-06-30")
    assert to_period(settings, timedelta(0)) == (datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 6, 30, 23, 59, 59, 999_999, UTC))
    again = QuerySettings.model_validate_json(settings.to_json())
    assert to_period(again, timedelta(days=1))[1] == datetime(2021, 7, 1, 23, 59, 59, 999_999, UTC)
    exact = to_settings(start="2021-06-01T12:00:00+02:00")
    assert to_period(exact, timedelta(0)) == (datetime(2021, 6, 1, 10, tzinfo=UTC), None)
