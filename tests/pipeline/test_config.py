"""Settings: defaults, messages, and checks across fields."""

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import BaseModel

import sereno.model.config as model_config
import sereno.pipeline.config as pipeline_config
from sereno.pipeline.config import (
    Area,
    MaskSettings,
    PackSettings,
    PatchSettings,
    PipelineSettings,
    QuerySettings,
    Settings,
    SimulatedArea,
    SpeckleSettings,
    SplitSettings,
    load_settings,
    parse_settings,
)
from sereno.pipeline.errors import ConfigError

AREA = {"bbox": [9.0, 45.0, 9.2, 45.2]}
QUERY = {"areas": {"west": AREA}}
RECORDS = sorted(
    {
        kind
        for module in (pipeline_config, model_config)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_means(kind: type[BaseModel]) -> None:
    assert kind.__doc__
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no docstring"


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_settings_are_frozen_and_refuse_unknown_keys(kind: type[BaseModel]) -> None:
    assert kind.model_config["frozen"]
    assert kind.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"query": QUERY, "patch": {"size_pxl": 256}}, "unknown key 'patch.size_pxl', did you mean 'size_px'?"),
        ({"query": QUERY, "pach": {}}, "unknown key 'pach', did you mean 'pa"),
        ({"query": QUERY, "pack": {"split": {"seeed": 1}}}, "unknown key 'pack.split.seeed', did you mean 'seed'?"),
        ({"query": {"areas": {"west": {**AREA, "bbx": 1}}}}, "unknown key 'query.areas.west.bbx', did you mean 'bbox'?"),
        (
            {"query": QUERY, "simulate": {"areas": {"w": {"epsg": 32632, "west_m": 0, "south_m": 0, "dialekt": "x"}}}},
            "unknown key 'simulate.areas.w.dialekt', did you mean 'dialect'?",
        ),
        ({"query": QUERY, "mask": {"zzz": 1}}, "unknown key 'mask.zzz'; known here: dilate_px, feather_px, method"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(PipelineSettings, values, where="config.yaml")
    assert str(caught.value).startswith("config.yaml: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (PatchSettings, {"size_px": "wide"}, r"'size_px': .*valid integer.*\(seen 'wide'\)"),
        (PatchSettings, {"size_px": 100}, r"'size_px': .*multiple of 8.*\(seen '100'\)"),
        (PatchSettings, {"buffer_px": 3}, r"'buffer_px': .*multiple of 2"),
        (PatchSettings, {"min_valid": 1.5}, r"'min_valid': .*less than or equal to 1"),
        (PackSettings, {"codec": "gzip"}, r"'codec': .*'lz4' or 'zstd'.*\(seen 'gzip'\)"),
        (PackSettings, {"shard_patches": 0}, r"'shard_patches': .*greater than or equal to 1"),
        (PackSettings, {"seed": -1}, r"'seed': .*greater than or equal to 0"),
        (PackSettings, {"split": {"seed": -1}}, r"'split.seed': .*greater than or equal to 0"),
        (PipelineSettings, {}, r"'query': Field required$"),
        (PatchSettings, [], r"'config': .*\(seen '\[\]'\)"),
        (QuerySettings, {"areas": {"a/b": AREA}}, r"a/b"),
        (SimulatedArea, {"epsg": 32632, "west_m": 0, "south_m": 0, "size_px": 241}, r"'size_px': .*multiple of 6"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_seen(kind: type[BaseModel], values: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(kind, values, where="x")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Area, {}, "give one of 'bbox'.*not none of them"),
        (Area, {**AREA, "bounds_m": [0, 0, 1, 1]}, "give one of 'bbox'.*not bbox and bounds_m"),
        (Area, {"bounds_m": [0, 0, 1, 1]}, "'bounds_m' needs 'epsg'"),
        (Area, {"bbox": [9.0, 45.2, 9.2, 45.0]}, "ordered west < east"),
        (Area, {"bounds_m": [1, 0, 0, 1], "epsg": 32632}, "ordered west < east"),
        (SpeckleSettings, {"window_px": 8}, "'window_px' must be odd"),
        (MaskSettings, {"method": "scl", "second": "scl"}, "'second' must differ from 'method'"),
        (Area, {"bbox": [179.0, 45.0, 181.0, 45.2]}, "within -180..180"),
        (QuerySettings, {}, "'areas' is empty"),
        (QuerySettings, {**QUERY, "cloudy_cover_pct": [90, 10]}, "two ordered percentages"),
        (QuerySettings, {**QUERY, "start": "2021-07-01", "end": "2021-06-01"}, "'start' lies after 'end'"),
        (QuerySettings, {**QUERY, "start": "2021-06-02T01:00:00Z", "end": "2021-06-02T02:00:00+05:00"}, "'start' lies after 'end'"),
        (PipelineSettings, {"query": {**QUERY, "bands": ["B02"]}, "ingest": {"bands": ["B02", "B03"]}}, "'ingest.bands' keeps: also B03"),
        (PipelineSettings, {"query": {**QUERY, "bands": ["B02"]}}, "'ingest.bands' keeps: also all bands"),
        (PipelineSettings, {"query": {**QUERY, "dem_catalogue": "cdse"}, "ingest": {"dem": "a.tif"}}, "both say where heights come from"),
        (QuerySettings, {"source": "sen12mscr", "dem_catalogue": "cdse"}, "'dem_catalogue' is for scenes that are placed by heights"),
        (QuerySettings, {"source": "sen12mscr", "series": True}, "'series' cannot be had: 'source: sen12mscr' has no dates"),
        (QuerySettings, {"source": "cubes", "series": True}, "'series' cannot be had: 'source: cubes' has no dates"),
        (
            QuerySettings,
            {**QUERY, "source": "gaofen", "table": "t.csv", "series": True},
            "'series' cannot be had: a row of 'table' names no other dates",
        ),
        (SplitSettings, {"validation": 0.5, "test": 0.5}, "leave nothing for training"),
        (SplitSettings, {"method": "list"}, "needs 'file'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind: type[BaseModel], values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(kind, values, where="x")


def test_moments_are_compared_as_moments_whatever_their_time_zone() -> None:
    values = {**QUERY, "start": "2021-06-04T01:00:00+05:00", "end": "2021-06-03T22:00:00Z"}
    settings = load_settings(QuerySettings, values, where="x")
    assert settings.period == (datetime(2021, 6, 3, 20, tzinfo=UTC), datetime(2021, 6, 3, 22, tzinfo=UTC))


def test_bands_that_are_asked_for_may_be_more_than_those_kept() -> None:
    values = {"query": {**QUERY, "bands": ["B02", "B03"]}, "ingest": {"bands": ["B02"]}}
    assert load_settings(PipelineSettings, values, where="x").ingest.bands == ("B02",)


def test_a_box_across_180_degrees_is_no_fault() -> None:
    assert load_settings(Area, {"bbox": [179.0, -17.0, -179.0, -16.0]}, where="x").bbox == (179, -17, -179, -16)


@pytest.mark.parametrize(("tile", "known"), [("32TNR", True), ("1CCV", True), ("32INR", False), ("32TN", False), ("32TNW", False)])
def test_a_tile_is_named_as_mgrs_names_it(tile: str, known: bool) -> None:
    if known:
        assert load_settings(Area, {"mgrs": tile}, where="x").mgrs == tile
        return
    with pytest.raises(ConfigError, match="'mgrs'"):
        load_settings(Area, {"mgrs": tile}, where="x")


def test_a_search_may_begin_on_the_day_that_it_ends() -> None:
    day = load_settings(QuerySettings, {**QUERY, "start": "2021-06-01T12:00:00Z", "end": "2021-06-01"}, where="x")
    assert day.end == date(2021, 6, 1)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'seed': .*valid integer.*; unknown key 'codek'"):
        load_settings(PackSettings, {"codek": "lz4", "seed": "x"}, where="x")


def test_equal_settings_give_equal_text_that_reads_back() -> None:
    first = load_settings(PipelineSettings, {"query": {**QUERY, "start": date(2021, 6, 1)}, "patch": {"size_px": 128}}, where="x")
    second = load_settings(PipelineSettings, {"patch": {"size_px": 128}, "query": {"start": "2021-06-01", **QUERY}}, where="x")
    assert first.to_json() == second.to_json()
    assert parse_settings(PipelineSettings, first.to_json()) == first
    assert " " not in PatchSettings().to_json()


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--settings: not valid JSON .*seen '{size_px: 1'"):
        parse_settings(PatchSettings, "{size_px: 1")


def test_the_settings_of_one_area_do_not_depend_on_the_others() -> None:
    alone = load_settings(QuerySettings, QUERY, where="x")
    both = load_settings(QuerySettings, {"areas": {"east": {"bbox": [12, 45, 12.2, 45.2]}, "west": AREA}}, where="x")
    assert both.for_area("west").to_json() == alone.to_json()


def test_no_areas_are_needed_where_the_folder_has_them() -> None:
    assert load_settings(QuerySettings, {"source": "sen12mscr", "catalogue": "data"}, where="x").areas == {}


def test_defaults_are_those_of_the_records() -> None:
    defaults = load_settings(PipelineSettings, {"query": QUERY}, where="x")
    assert json.loads(defaults.to_json())["patch"] == json.loads(PatchSettings().to_json())
    assert defaults.simulate is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"query": {**QUERY, "resolution_m": 3, "coarse_m": 8}},
            "'coarse_m' 8 must be a whole multiple of 'resolution_m' 3, it is 2.667 times",
        ),
        (
            {"query": {"source": "sen12mscr", "catalogue": "x"}, "task": "pansharpening"},
            "'query.source' sen12mscr has pairs for cloud removal",
        ),
        (
            {"query": {**QUERY, "source": "gaofen", "table": "t.csv"}, "task": "pansharpening"},
            "'query.table' t.csv has pairs for cloud removal",
        ),
        (
            {"query": QUERY, "task": "snapshot-reconstruction"},
            "'query.source' stac does not fit 'task' snapshot-reconstruction: cubes are for",
        ),
        ({"query": {"source": "cubes", "catalogue": "x"}}, "'query.source' cubes does not fit 'task' cloud-removal"),
        (
            {"query": {**QUERY, "series": True}, "task": "pansharpening"},
            "'query.series' is for pairs of task cloud-removal, but 'task' is pansharpening",
        ),
        (
            {"query": {**QUERY, "series": True}, "simulate": {"cloudy_dates": 4}},
            "three clear dates, which a simulated world has from 'simulate.cloudy_dates' 5 on (seen 4)",
        ),
        ({"query": QUERY, "task": "sharpening"}, "'task': Input should be 'cloud-removal', 'pansharpening'"),
    ],
)
def test_what_does_not_fit_the_task_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(PipelineSettings, values, where="config")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_series_leaves_no_trace_in_settings_that_do_not_ask_for_it() -> None:
    assert "series" not in load_settings(QuerySettings, QUERY, where="x").to_json()
    asked = load_settings(PipelineSettings, {"query": {**QUERY, "series": True}, "simulate": {"cloudy_dates": 5}}, where="x")
    assert parse_settings(QuerySettings, asked.query.to_json()).series
