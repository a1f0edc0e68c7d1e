"""From a catalogue on disk to the lock of an area: grid, footprints, pairs, refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from sereno.pipeline.areas import to_geobox
from sereno.pipeline.bands import L2A_BANDS
from sereno.pipeline.config import Area, QuerySettings
from sereno.pipeline.errors import CatalogueError, ConfigError, MissingError
from sereno.pipeline.pairs import Lock
from sereno.pipeline.query import query_pairs, to_period
from sereno.pipeline.server import running_server

AREA = {"epsg": 32632, "bounds_m": (500_000, 5_000_000, 510_000, 5_005_000)}


def to_settings(folder: Path | str, **changes: Any) -> QuerySettings:
    return QuerySettings.model_validate(
        {"catalogue": str(folder), "areas": {"west": AREA}, "max_gap_sar_days": 2, "cover_from": "catalogue", **changes}
    )


def to_footprint(share: float = 1.0) -> dict[str, Any]:
    """A footprint in degrees over the left `share` of the area."""
    to_degrees = Transformer.from_crs(32632, 4326, always_xy=True).transform
    left, bottom, right, top = 499_000, 4_999_000, 511_000, 5_006_000
    right = right if share == 1 else 500_000 + share * 10_000
    box = shapely.segmentize(shapely.box(left, bottom, right, top), 500)
    outline = shapely.transform(box, lambda xy: np.stack(to_degrees(xy[:, 0], xy[:, 1]), axis=1))
    return dict(json.loads(shapely.to_geojson(outline)))


def optical_item(name: str, day: int, cover: float | None, *, share: float = 1.0, **properties: Any) -> dict[str, Any]:
    known = {
        "constellation": "sentinel-2",
        "platform": "sentinel-2a",
        "proj:code": "EPSG:32632",
        "eo:cloud_cover": cover,
        "grid:code": "MGRS-32TNR",
    }
    moment = {"datetime": f"2021-06-{day:02d}T10:00:00Z"}
    return to_item(name, {**known, **moment, **properties}, share, [*L2A_BANDS, "SCL"])


def sar_item(name: str, day: int, *, share: float = 1.0) -> dict[str, Any]:
    known = {"constellation": "sentinel-1", "platform": "sentinel-1a", "proj:code": "EPSG:32632"}
    return to_item(name, {**known, "datetime": f"2021-06-{day:02d}T05:00:00Z"}, share, ["vv", "vh"])


def to_item(name: str, properties: dict[str, Any], share: float, assets: list[str]) -> dict[str, Any]:
    footprint = to_footprint(share)
    plain = {"type": "Feature", "stac_version": "1.0.0", "id": name, "bbox": list(shapely.from_geojson(json.dumps(footprint)).bounds)}
    return {**plain, "geometry": footprint, "properties": properties, "assets": {key: {"href": f"./{name}/{key}.tif"} for key in assets}}


WORLD = {
    "sentinel-2-l2a": [
        optical_item("clear-3", 3, 1.0),
        optical_item("cloudy-8", 8, 50.0),
        optical_item("cloudy-13", 13, 30.0, **{"s2:processing_baseline": "05.00"}),
        optical_item("cloudy-13-old", 13, 30.0, **{"s2:processing_baseline": "02.14"}),
        optical_item("clear-18", 18, 2.0),
        optical_item("edge-18", 17, 2.0, share=0.3),
        optical_item("hazy-19", 19, 7.0),
        optical_item("cloudy-23", 23, 50.0),
        optical_item("silent-24", 24, None),
    ],
    "sentinel-1-rtc": [sar_item("sar-8", 8), sar_item("sar-13", 13), sar_item("sar-13-edge", 14, share=0.5), sar_item("sar-28", 28)],
}


def write_world(folder: Path, world: dict[str, list[dict[str, Any]]] = WORLD) -> Path:
    extent = {"spatial": {"bbox": [[8, 44, 10, 46]]}, "temporal": {"interval": [["2021-06-01T00:00:00Z", None]]}}
    plain = {"stac_version": "1.0.0", "description": "d"}
    for name, items in world.items():
        (folder / name).mkdir(parents=True)
        for item in items:
            (folder / name / f"{item['id']}.json").write_text(json.dumps(item))
        links = [{"rel": "item", "href": f"{item['id']}.json"} for item in items]
        collection = {**plain, "type": "Collection", "id": name, "license": "other", "extent": extent, "links": links}
        (folder / name / "collection.json").write_text(json.dumps(collection))
    links = [{"rel": "child", "href": f"{name}/collection.json"} for name in world]
    (folder / "catalog.json").write_text(json.dumps({**plain, "type": "Catalog", "id": "w", "links": links}))
    return folder


@pytest.fixture(scope="module")
def lock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    output = tmp_path_factory.mktemp("locks") / "query" / "west.json"
    query_pairs("west", output, to_settings(folder))
    return output


@pytest.fixture(scope="module")
def url(lock_file: Path) -> Iterator[str]:
    with running_server(Path(Lock.read(lock_file).catalogue)) as address:
        yield address


def test_the_lock_holds_pairs_and_the_scenes_they_use(lock_file: Path) -> None:
    lock = Lock.read(lock_file)
    assert [(pair.id, pair.cloudy, pair.clear, pair.sar) for pair in lock.pairs] == [
        ("20210608", "cloudy-8", "clear-3", "sar-8"),
        ("20210613", "cloudy-13", "clear-18", "sar-13"),
    ]
    assert [(pair.clear_gap_days, pair.sar_gap_days) for pair in lock.pairs] == [(-5, -0.208333), (5, -0.208333)]
    assert set(lock.scenes) == {"clear-3", "clear-18", "cloudy-8", "cloudy-13", "sar-8", "sar-13"}
    assert lock.scenes["cloudy-13"].items[0].processing_baseline == "05.00"
    assert lock.grid.to_geobox() == to_geobox(Area.model_validate(AREA), 10)


def test_every_other_candidate_is_listed_with_its_reason(lock_file: Path) -> None:
    refused = {entry.item: (entry.role, entry.reason) for entry in Lock.read(lock_file).refused}
    assert refused == {
        "cloudy-13-old": ("cloudy", "duplicate of cloudy-13, baseline 02.14 against 05.00"),
        "cloudy-23": ("cloudy", "needs a SAR scene within 2 days: the nearest, sar-28, is 4.79 days away"),
        "edge-18": ("clear", "covers 30.0% of the area, needed 60.0%"),
        "hazy-19": ("cloudy", "cloud cover 7.0 % by the catalogue, needed 10 to 95 % as input or at most 5 % as target"),
        "sar-13-edge": ("sar", "covers 50.0% of the area, needed 60.0%"),
        "sar-28": ("sar", "no pair needs it: the nearest cloudy scene is 4.79 days away, allowed 2"),
        "silent-24": ("cloudy", "nothing tells its cloud cover: neither the catalogue nor an SCL that can be read"),
    }


def test_the_lock_names_no_port_and_no_time_of_search(lock_file: Path, tmp_path: Path) -> None:
    text = lock_file.read_text()
    assert "127.0.0.1" not in text
    assert Lock.read(lock_file).searched is None
    hrefs = {name: asset.href for name, asset in Lock.read(lock_file).scenes["sar-8"].items[0].assets.items()}
    assert hrefs == {"VV": "sentinel-1-rtc/sar-8/vv.tif", "VH": "sentinel-1-rtc/sar-8/vh.tif"}
    # The same items in another order, asked again through another server, give the same bytes.
    folder = write_world(tmp_path / "again", {name: items[::-1] for name, items in reversed(WORLD.items())})
    query_pairs("west", tmp_path / "west.json", to_settings(folder))
    assert (tmp_path / "west.json").read_text().replace(str(folder), "X") == text.replace(Lock.read(lock_file).catalogue, "X")


def test_items_that_cannot_be_read_are_listed_and_do_not_stop_the_others(tmp_path: Path) -> None:
    broken, bare, lost = optical_item("broken", 9, 50), sar_item("bare", 9), optical_item("lost", 9, 50)
    wordy, unwanted = optical_item("wordy", 9, 50), optical_item("unwanted", 9, 50)
    wordy["properties"]["eo:cloud_cover"] = "half"
    del broken["assets"]["B04"], bare["assets"]["vh"]
    lost["geometry"] = {"type": "Polygon", "coordinates": [[[9, 45], [9, 45]]]}
    world = {"sentinel-2-l2a": [*WORLD["sentinel-2-l2a"], broken, wordy, unwanted], "sentinel-1-rtc": [*WORLD["sentinel-1-rtc"], bare]}
    query_pairs("west", tmp_path / "west.json", to_settings(write_world(tmp_path / "world", world), exclude=("unwanted",)))
    lock = Lock.read(tmp_path / "west.json")
    refused = {entry.item: (entry.role, entry.reason) for entry in lock.refused}
    assert len(lock.pairs) == 2
    assert refused["unwanted"] == ("cloudy", "named in pipeline.query.exclude")
    assert "'cloud_cover_pct'" in refused["wordy"][1]
    assert "half" in refused["wordy"][1]
    assert refused["broken"][0] == "cloudy"
    assert refused["broken"][1] == "has no B04, which other items have"
    assert refused["bare"] == ("sar", "has no VH, needed VV, VH; it has VV")


def test_the_same_id_in_two_collections_makes_two_scenes(tmp_path: Path) -> None:
    twin = optical_item("clear-3", 13, 3, platform="sentinel-2b")
    world = {"sentinel-2-c1-l2a": [twin], **WORLD}
    query_pairs("west", tmp_path / "west.json", to_settings(write_world(tmp_path / "world", world)))
    lock = Lock.read(tmp_path / "west.json")
    assert [pair.clear for pair in lock.pairs] == ["clear-3.sentinel-2-l2a", "clear-3.sentinel-2-c1-l2a"]
    assert {scene.item for key, scene in lock.scenes.items() if key.startswith("clear-3")} == {"clear-3"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"max_gap_sar_days": 0.1},
            "among 9 optical and 4 SAR items; 3 refused.*needs a SAR scene within 0.1 days.*raise .*max_gap_sar_days",
        ),
        ({"clear_cover_pct": 0}, "4 refused.*needed 10 to 95 % as input or at most 0 % as target; .* or raise clear_cover_pct"),
        (
            {"max_gap_clear_days": 1},
            "3 refused.*needs a clear scene within 1 days: the nearest, clear-3, is 5.00 days.*; raise .*max_gap_clear_days",
        ),
        (
            {"cloudy_cover_pct": (96, 100)},
            "cloud cover 50.0 % by the catalogue, needed 96 to 100 %.*; widen pipeline.query.cloudy_cover_pct",
        ),
        ({"start": "2020-01-01", "end": "2020-02-01"}, "among 0 optical and 0 SAR items: widen the area or start..end"),
    ],
)
def test_no_pair_is_one_line_with_counts_reason_and_remedy(url: str, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MissingError, match=words) as caught:
        query_pairs("west", tmp_path / "west.json", to_settings(url, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "west.json").exists()


def test_faults_of_the_settings_are_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"area 'north' is not in pipeline\.query\.areas, which has west"):
        query_pairs("north", tmp_path / "x.json", to_settings(url))
    with pytest.raises(CatalogueError, match="has none of the collections sentinel-2-l1c; it has sentinel-1-rtc, sentinel-2-l2a"):
        query_pairs("west", tmp_path / "x.json", to_settings(url, optical_collections=["sentinel-2-l1c"]))
    with pytest.raises(MissingError, match=r"neither a preset .*, a URL nor a folder"):
        query_pairs("west", tmp_path / "x.json", to_settings(tmp_path / "none"))


def test_a_dataset_folder_is_left_to_its_reader(lock_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr(
        "sereno.pipeline.sensors.sen12mscr.list_pairs", lambda folder, area: asked.append((folder, area)) or Lock.read(lock_file)
    )
    query_pairs("roi", tmp_path / "roi.json", QuerySettings(source="sen12mscr", catalogue="some/folder"))
    assert asked == [(Path("some/folder"), "roi")]
    assert (tmp_path / "roi.json").read_text() == lock_file.read_text()


def test_a_bare_day_as_the_end_means_all_of_it() -> None:
    settings = to_settings("x", start="2021-06-01", end="2021-06-30")
    assert to_period(settings, timedelta(0)) == (datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 6, 30, 23, 59, 59, tzinfo=UTC))
    again = QuerySettings.model_validate_json(settings.to_json())
    assert to_period(again, timedelta(days=1))[1] == datetime(2021, 7, 1, 23, 59, 59, tzinfo=UTC)
    exact = to_settings("x", start="2021-06-01T12:00:00+02:00")
    assert to_period(exact, timedelta(0)) == (datetime(2021, 6, 1, 10, tzinfo=UTC), None)


@pytest.mark.real
def test_real_items_of_one_tile_are_searched_and_judged(tmp_path: Path) -> None:
    samples = os.environ.get("SERENO_SAMPLES")
    if not samples:
        pytest.skip("SERENO_SAMPLES is not set to the folder of real samples")
    items = json.loads((Path(samples) / "stac/odc_stac/site2-2020_jun_jul-35MNM.geojson").read_text())["features"]
    covers = [item["properties"]["eo:cloud_cover"] for item in items]
    sar = [sar_item(f"sar-{number}", 1) for number in range(1)]
    sar[0]["properties"]["datetime"] = items[0]["properties"]["datetime"]
    sar[0]["geometry"], sar[0]["bbox"] = items[0]["geometry"], items[0]["bbox"]
    for item in items:
        item["links"] = []
    folder = write_world(tmp_path / "world", {"sentinel-2-l2a": items, "sentinel-1-rtc": sar})
    west, south, east, north = shapely.from_geojson(json.dumps(items[0]["geometry"])).bounds
    middle = ((west + east) / 2, (south + north) / 2)
    bbox = (middle[0], middle[1], middle[0] + 0.05, middle[1] + 0.05)
    settings = to_settings(folder, areas={"tile": {"bbox": bbox}}, max_gap_sar_days=60, max_gap_clear_days=60)
    query_pairs("tile", tmp_path / "tile.json", settings)
    lock = Lock.read(tmp_path / "tile.json")
    assert len(lock.pairs) == sum(10 <= cover <= 95 for cover in covers) > 0
    assert all(lock.scenes[pair.clear].cloud_cover_pct <= 5 for pair in lock.pairs)
    unused = {item["id"] for item in items} - {scene.item for scene in lock.scenes.values()}
    assert {entry.item for entry in lock.refused} == unused
    assert lock.grid.crs == "EPSG:32735"
