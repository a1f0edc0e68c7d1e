"""From a catalogue on disk to the lock of an area: grid, footprints, pairs, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from elevations import EAST, GRID, WEST, write_catalogue
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from real_files import find_samples

from sereno.pipeline import products
from sereno.pipeline.areas import to_ground
from sereno.pipeline.bands import L2A_BANDS
from sereno.pipeline.config import Area, QuerySettings, TaskName
from sereno.pipeline.errors import CatalogueError, ConfigError, MissingError
from sereno.pipeline.items import to_item_record
from sereno.pipeline.ledger import read_ledger
from sereno.pipeline.pairs import Lock
from sereno.pipeline.query import query_pairs
from sereno.pipeline.sensors.sentinel1_safe import Listing
from sereno.pipeline.server import running_server
from sereno.pipeline.views import Terrain

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
    assert lock.grid.to_geobox() == to_ground(Area.model_validate(AREA), 10).geobox


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
    assert refused["broken"][1].startswith("has no B04, which other items have; ")
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
        (
            {"start": "2020-01-01", "end": "2020-02-01"},
            r"among 0 optical and 0 SAR items in \[9\.\d+, .*from 2020-01-01 to 2020-02-01: widen .* longitude comes before latitude",
        ),
    ],
)
def test_no_pair_is_one_line_with_counts_reason_and_remedy(url: str, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MissingError, match=words) as caught:
        query_pairs("west", tmp_path / "west.json", to_settings(url, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "west.json").exists()


def test_every_refusal_is_logged_where_no_ledger_can_be_kept(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with pytest.raises(MissingError):
        query_pairs("west", tmp_path / "west.json", to_settings(url, max_gap_sar_days=0.1))
    lines = [record.getMessage() for record in caplog.records if " as " in record.getMessage()]
    assert sorted(line.split(": ")[2] for line in lines) == sorted(item["id"] for items in WORLD.values() for item in items)
    assert any("duplicate as cloudy: cloudy-13-old: duplicate of cloudy-13" in line for line in lines)


def test_names_that_nothing_answers_to_are_warned_of(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = to_settings(url, sar_collections=["sentinel-1-foo", "sentinel-1-rtc"], exclude=["clear-33", "silent-24"])
    query_pairs("west", tmp_path / "west.json", settings)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "pipeline.query.sar_collections: the catalogue has no 'sentinel-1-foo', it is passed over",
        "pipeline.query.exclude: no item found is called 'clear-33'",
    ]


def test_faults_of_the_settings_are_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"area 'north' is not in pipeline\.query\.areas, which has west"):
        query_pairs("north", tmp_path / "x.json", to_settings(url))
    with pytest.raises(CatalogueError, match="has none of the collections sentinel-2-l1c; it has sentinel-1-rtc, sentinel-2-l2a"):
        query_pairs("west", tmp_path / "x.json", to_settings(url, optical_collections=["sentinel-2-l1c"]))
    with pytest.raises(MissingError, match=r"neither a preset .*, a URL nor a folder"):
        query_pairs("west", tmp_path / "x.json", to_settings(tmp_path / "none"))


def test_the_ledger_names_every_item_once(lock_file: Path) -> None:
    lock, entries = Lock.read(lock_file), read_ledger(lock_file.with_name("west.ledger.csv"))
    items = sorted(item["id"] for items in WORLD.values() for item in items)
    whole = {entry.item: entry for entry in entries if not entry.asset}
    assert sorted(entry.item for entry in entries if not entry.asset) == items
    assert {item: entry.scene for item, entry in whole.items() if entry.status == "used"} == {s.item: s.id for s in lock.scenes.values()}
    assert {item: (entry.status, entry.reason) for item, entry in whole.items() if entry.status != "used"} == {
        line.item: (line.status, line.reason) for line in lock.refused
    }
    assert whole["cloudy-13-old"].status == "duplicate"
    searches = [entry.reason for entry in entries if entry.asset == "search"]
    assert [words.split(",")[0] for words in searches] == ["optical search: 9 items in 1 pages", "sar search: 4 items in 1 pages"]


def write_scl(folder: Path, item: str, left: int, right: int) -> None:
    """A classification of the area's ground: one class on its left half, another on its right."""
    classes = np.full((1, 250, 500), left, np.uint8)
    classes[:, :, 250:] = right
    path = folder / "sentinel-2-l2a" / item / "SCL.tif"
    path.parent.mkdir(parents=True)
    place = {"crs": "EPSG:32632", "transform": Affine(20, 0, 500_000, 0, -20, 5_005_000)}
    with rasterio.open(path, "w", driver="GTiff", width=500, height=250, count=1, dtype="uint8", **place) as file:
        file.write(classes)


def test_cloud_cover_is_that_of_the_area_and_the_catalogues_word_stays_where_it_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [
        optical_item("half", 8, 0.0),  # the catalogue is wrong about all of them: it speaks of whole tiles
        optical_item("free", 9, 90.0),
        optical_item("lost", 10, 3.0),
        optical_item("empty", 10, 3.0, platform="sentinel-2b"),
        optical_item("far", 28, 42.0),
    ]
    folder = write_world(tmp_path / "world", {"sentinel-2-l2a": items, "sentinel-1-rtc": [sar_item("sar", 8)]})
    for item, classes in {"half": (4, 9), "free": (4, 5), "empty": (0, 4), "far": (9, 9)}.items():
        write_scl(folder, item, *classes)
    query_pairs("west", tmp_path / "west.json", to_settings(folder, cover_from="scl", max_gap_clear_days=5))
    lock = Lock.read(tmp_path / "west.json")
    assert [(pair.cloudy, pair.clear) for pair in lock.pairs] == [("half", "free")]
    assert {key: (s.cloud_cover_pct, s.cover_source) for key, s in lock.scenes.items()} == {
        "half": (pytest.approx(50, abs=1), "scl"),
        "free": (0, "scl"),
        "sar": (None, None),
    }
    reasons = {line.item: line.reason for line in lock.refused}
    assert reasons["empty"] == "has data on 50.8% of the area by SCL, needed 60.0%"  # 32 of 63 places across
    assert reasons["far"].startswith("needs a clear scene within 5 days")
    lines = {entry.item: (entry.status, entry.reason) for entry in read_ledger(tmp_path / "west.ledger.csv") if entry.asset == "SCL"}
    assert "far" not in lines  # no partner, so not measured
    assert lines["half"] == ("used", "")
    assert lines["lost"][0] == "missing"
    assert [(record.levelname, record.getMessage()) for record in caplog.records if "classification" in record.getMessage()] == [
        (
            "WARNING",
            "lost: a scene classification cannot be read: the catalogue's cloud cover is taken, and masks by SCL will not know its clouds",
        )
    ]
    assert lines["lost"][1].endswith("; the catalogue's cloud cover is taken")


def test_a_missing_key_is_said_before_anything_is_read(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, hrefs: list[str]) -> None:
        raise ConfigError(f"no key for {len(hrefs)} files")

    monkeypatch.setattr("sereno.pipeline.scouting.check_credentials", refuse)
    with pytest.raises(ConfigError, match=r"no key for \d files; or set pipeline\.query\.cover_from to catalogue"):
        query_pairs("west", tmp_path / "west.json", to_settings(url, cover_from="scl"))


SLICES = [f"S1A_IW_GRDH_1SDV_20210608T05{start}_20210608T05{end}_038335_0475BF_rtc" for start, end in (("0000", "0025"), ("0025", "0050"))]


def tile_item(name: str, day: int, cover: float, box: tuple[float, float, float, float], epsg: int) -> dict[str, Any]:
    """A Sentinel-2 tile over a box in degrees."""
    item = optical_item(name, day, cover, **{"proj:code": f"EPSG:{epsg}", "grid:code": f"MGRS-{epsg % 100}T{name[-2:].upper()}"})
    outline = shapely.box(*box)
    return {**item, "geometry": json.loads(shapely.to_geojson(outline)), "bbox": list(box)}


def test_an_area_across_two_zones_is_one_grid_with_the_items_of_both(tmp_path: Path) -> None:
    area = (11.9, 45.0, 12.1, 45.1)
    tiles = {"qr": ((11.0, 44.5, 12.0, 45.5), 32632), "ul": ((12.0, 44.5, 13.0, 45.5), 32633)}
    optical = [tile_item(f"{day}-{key}", day, cover, *tile) for day, cover in ((8, 50), (13, 1)) for key, tile in tiles.items()]
    slices = [
        {**sar_item(name, 8), "geometry": item["geometry"], "bbox": item["bbox"]} for name, item in zip(SLICES, optical, strict=False)
    ]
    folder = write_world(tmp_path / "world", {"sentinel-2-l2a": optical, "sentinel-1-rtc": slices})
    settings = to_settings(folder, areas={"border": {"bbox": area}}, min_overlap=0.99)
    query_pairs("border", tmp_path / "border.json", settings)
    lock = Lock.read(tmp_path / "border.json")
    [pair] = lock.pairs
    assert lock.grid.crs == "EPSG:32633"
    assert [item.item for item in lock.scenes[pair.cloudy].items] == ["8-ul", "8-qr"]  # those of the grid's zone first
    assert [item.item for item in lock.scenes[pair.clear].items] == ["13-ul", "13-qr"]
    assert sorted(item.item for item in lock.scenes[pair.sar].items) == SLICES
    assert pair.cloudy == "8-ul.2-items"
    assert not lock.refused
    # Either tile alone covers half.
    half = write_world(tmp_path / "half", {"sentinel-2-l2a": optical[::2], "sentinel-1-rtc": slices})
    with pytest.raises(MissingError, match=r"covers (49|50)\.\d% of the area, needed 99\.0%"):
        query_pairs("border", tmp_path / "none.json", settings.model_copy(update={"catalogue": str(half)}))


def test_an_area_across_180_degrees_is_one_grid_with_the_items_of_both_sides(tmp_path: Path) -> None:
    east, west = (179.0, -18.0, 180.0, -16.0), (-180.0, -18.0, -179.0, -16.0)
    optical = [
        tile_item("8-kk", 8, 50, east, 32760),
        tile_item("8-aa", 8, 50, west, 32701),
        tile_item("13-kk", 13, 1, east, 32760),
    ]
    whole = sar_item("sar", 8)
    whole["geometry"] = {"type": "MultiPolygon", "coordinates": [one["geometry"]["coordinates"] for one in optical[:2]]}
    whole["bbox"] = [179.0, -18.0, -179.0, -16.0]
    beyond = {**optical[2], "geometry": json.loads(shapely.to_geojson(shapely.box(179, -18, 181, -16)))}  # as some catalogues write it
    folder = write_world(tmp_path / "world", {"sentinel-2-l2a": [*optical[:2], beyond], "sentinel-1-rtc": [whole]})
    settings = to_settings(folder, areas={"fiji": {"bbox": (179.9, -17.0, -179.9, -16.9)}}, min_overlap=0.99)
    query_pairs("fiji", tmp_path / "fiji.json", settings)
    lock = Lock.read(tmp_path / "fiji.json")
    [pair] = lock.pairs
    assert sorted(item.item for item in lock.scenes[pair.cloudy].items) == ["8-aa", "8-kk"]
    assert (pair.clear, pair.sar) == ("13-kk", "sar")
    assert lock.grid.shape[1] * 10 == pytest.approx(21_300, rel=0.03)
    assert not lock.refused


@pytest.mark.parametrize(("wanted", "paired"), [(("VV",), True), (("VH", "VV"), False)])
def test_the_lock_holds_the_wanted_polarisations_alone(wanted: tuple[str, ...], paired: bool, tmp_path: Path) -> None:
    names = [f"S1A_IW_GRDH_1S{kind}_{SLICES[n][17:]}" for n, kind in enumerate(("DV", "SV"))]
    dual, single = (sar_item(name, 8) for name in names)
    left, right = shapely.box(8.9, 45.1, 9.06, 45.2), shapely.box(9.06, 45.1, 9.2, 45.2)
    for item, part in ((dual, left), (single, right)):
        item["geometry"], item["bbox"] = json.loads(shapely.to_geojson(part)), list(part.bounds)
    del single["assets"]["vh"]
    world = {"sentinel-2-l2a": WORLD["sentinel-2-l2a"], "sentinel-1-rtc": [dual, single, sar_item("sar-13", 13)]}
    query_pairs("west", tmp_path / "west.json", to_settings(write_world(tmp_path / "world", world), polarisations=wanted))
    lock = Lock.read(tmp_path / "west.json")
    items = [item for scene in lock.scenes.values() if scene.sensor == "sentinel1-rtc" for item in scene.items]
    assert ({"sar-13", *names} if paired else {"sar-13"}) <= {item.item for item in items}
    assert {tuple(sorted(item.assets)) for item in items} == {tuple(sorted(wanted))}
    assert {item.properties["polarisations"] for item in items} == {" ".join(wanted)}
    refused = {line.item: line.reason for line in lock.refused}
    assert refused.get(names[1]) == (None if paired else "has no VH, needed VH, VV; it has VV")


def test_the_grid_has_the_pixels_of_the_settings(tmp_path: Path, lock_file: Path) -> None:
    query_pairs("west", tmp_path / "west.json", to_settings(Lock.read(lock_file).catalogue, resolution_m=20))
    grid = Lock.read(tmp_path / "west.json").grid
    assert (grid.shape, grid.transform) == ((250, 500), (20, 0, 500_000, 0, -20, 5_005_000))


def test_an_outline_goes_into_the_lock_in_metres(tmp_path: Path, lock_file: Path) -> None:
    left = to_footprint(0.5)
    query_pairs("west", tmp_path / "west.json", to_settings(Lock.read(lock_file).catalogue, areas={"west": {"geojson": left}}))
    lock = Lock.read(tmp_path / "west.json")
    assert lock.outline is not None
    bounds = shapely.from_geojson(json.dumps(lock.outline)).bounds
    assert bounds == pytest.approx((499_000, 4_999_000, 505_000, 5_006_000), abs=1)
    assert lock.grid.to_geobox().boundingbox.bbox == pytest.approx(bounds, abs=10)


def test_sar_may_come_from_another_catalogue(tmp_path: Path, lock_file: Path) -> None:
    optical = write_world(tmp_path / "optical", {"sentinel-2-l2a": WORLD["sentinel-2-l2a"]})
    sar = write_world(tmp_path / "sar", {"sentinel-1-rtc": WORLD["sentinel-1-rtc"]})
    query_pairs("west", tmp_path / "west.json", to_settings(optical, sar_catalogue=str(sar)))
    lock, one = Lock.read(tmp_path / "west.json"), Lock.read(lock_file)
    assert lock.pairs == one.pairs
    assert {key: scene.catalogue for key, scene in lock.scenes.items()} == {
        key: str(sar) if scene.sensor == "sentinel1-rtc" else "" for key, scene in one.scenes.items()
    }


def test_sar_may_come_from_a_folder_of_products(tmp_path: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{**item, "collection": "sentinel-1-rtc"} for item in WORLD["sentinel-1-rtc"]]
    changes = [{"sensor": "sentinel1-safe", "item": f"{item['id']}.SAFE"} for item in items]
    records = [to_item_record(item).model_copy(update=change) for item, change in zip(items, changes, strict=True)]
    found = [(record, item["geometry"]) for record, item in zip(records, items, strict=True)]
    listing = Listing(found, [("S1A_torn.zip", "its copy may be unfinished")])
    monkeypatch.setattr("sereno.pipeline.sensors.sentinel1_safe.list_products", lambda _: listing)
    folder = Lock.read(lock_file).catalogue
    (tmp_path / "products").mkdir()
    settings = to_settings(folder, sar_catalogue=str(tmp_path / "products"), start="2021-06-01", end="2021-06-20")
    query_pairs("west", tmp_path / "west.json", settings)
    lock = Lock.read(tmp_path / "west.json")
    assert [pair.sar for pair in lock.pairs] == ["sar-8.SAFE", "sar-13.SAFE"]
    assert lock.scenes["sar-8.SAFE"].catalogue == str(tmp_path / "products")
    refused = {line.item: line.reason for line in lock.refused}
    assert "sar-28.SAFE" not in refused  # outside start..end, as in a search
    assert refused["S1A_torn.zip"] == "its copy may be unfinished"
    with pytest.raises(MissingError, match="neither a preset"):
        query_pairs("west", tmp_path / "west.json", to_settings(folder, sar_catalogue=str(tmp_path / "absent")))


def test_used_files_on_a_server_are_noted_with_size_and_etag(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world")
    for name in ("vv.tif", "vh.tif"):
        path = folder / "sentinel-1-rtc" / "sar-8" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    with running_server(folder) as address:
        for output in ("first", "second"):
            query_pairs("west", tmp_path / f"{output}.json", to_settings(address))
        query_pairs("west", tmp_path / "bare.json", to_settings(address, probe=False))
    lock, again, bare = (Lock.read(tmp_path / f"{name}.json") for name in ("first", "second", "bare"))
    assets = lock.scenes["sar-8"].items[0].assets
    assert {name: (asset.size_bytes, bool(asset.etag)) for name, asset in assets.items()} == {"VV": (6, True), "VH": (6, True)}
    assert bare.scenes["sar-8"].items[0].assets["VV"].etag is None
    lost = [entry for entry in read_ledger(tmp_path / "first.ledger.csv") if entry.reason.startswith("size and ETag are not known")]
    assert {(entry.item, entry.asset) for entry in lost} >= {("sar-13", "VV"), ("cloudy-8", "B04")}
    assert lost[0].reason.endswith("HTTP 404")
    assert lock.searched is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(lock.searched)) < timedelta(minutes=5)
    assert lock.model_copy(update={"searched": None}) == again.model_copy(update={"searched": None})


def test_a_run_from_a_lock_makes_no_request(
    lock_file: Path, tmp_path: Path, socket_disabled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sereno.pipeline.scouting.open_catalogue", None)
    query_pairs("west", tmp_path / "west.json", QuerySettings(source="lock", catalogue=str(lock_file.parent)))
    assert (tmp_path / "west.json").read_bytes() == lock_file.read_bytes()
    entries, searched = (read_ledger(path.with_name("west.ledger.csv")) for path in (tmp_path / "west.json", lock_file))
    assert entries == [entry for entry in searched if entry.asset != "search"]


CLOUDLESS = {"id": "p", "sar": "sar-8", "cloudy": "clear-3", "clear": "clear-3", "sar_gap_days": 0, "clear_gap_days": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"area": "east"}, "is of area 'east', expected 'west'"),
        ({"format": "sereno-lock/1"}, "frozen lock .*west.json .*'format'"),
        ({"scenes": {}}, "damaged: 2 pairs, scenes lost: clear-18, clear-3, cloudy-13, cloudy-8, sar-13, sar-8"),
        ({"pairs": []}, "damaged: 0 pairs"),
        ({"grid": None}, "'grid'"),
        ({"pairs": [CLOUDLESS]}, "a pair has a 'sky' if its input is its target"),
        ({"pairs": [CLOUDLESS | {"cloudy": "cloudy-8", "sky": 1}]}, "a pair has a 'sky' if its input is its target"),
    ],
)
def test_a_frozen_lock_that_does_not_fit_is_refused(lock_file: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "west.json").write_text(json.dumps({**json.loads(lock_file.read_text()), **change}))
    with pytest.raises(ConfigError, match=words) as caught:
        query_pairs("west", tmp_path / "out" / "west.json", QuerySettings(source="lock", catalogue=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "west.json").exists()


def test_a_frozen_lock_that_is_torn_or_absent_is_refused(lock_file: Path, tmp_path: Path) -> None:
    settings = QuerySettings(source="lock", catalogue=str(tmp_path))
    with pytest.raises(MissingError, match=r"there is no lock .*west\.json"):
        query_pairs("west", tmp_path / "x.json", settings)
    for content in (lock_file.read_bytes()[:-100], b"\xff\xfe\x00"):
        (tmp_path / "west.json").write_bytes(content)
        with pytest.raises(ConfigError, match="frozen lock"):
            query_pairs("west", tmp_path / "x.json", settings)


def test_a_dataset_folder_is_left_to_its_reader(lock_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str, int]] = []
    monkeypatch.setattr(
        "sereno.pipeline.sensors.sen12mscr.list_pairs",
        lambda folder, area, skies: asked.append((folder, area, skies)) or Lock.read(lock_file),
    )
    query_pairs("roi", tmp_path / "roi.json", QuerySettings(source="sen12mscr", catalogue="some/folder"))
    query_pairs("roi", tmp_path / "roi.json", QuerySettings(source="sen12mscr", catalogue="some/folder", inputs="simulated", skies=3))
    assert asked == [(Path("some/folder"), "roi", 0), (Path("some/folder"), "roi", 3)]
    assert (tmp_path / "roi.json").read_text() == lock_file.read_text()


@pytest.mark.real
def test_real_items_of_one_tile_are_searched_and_judged(tmp_path: Path) -> None:
    items = json.loads((find_samples() / "stac/odc_stac/site2-2020_jun_jul-35MNM.geojson").read_text())["features"]
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


GAOFEN_AREA = {"epsg": 32650, "bounds_m": (500_500, 4_499_000, 501_000, 4_499_500)}


def write_gaofen(folder: Path) -> dict[str, str]:
    """A clear and a cloudy PMS product and a Gaofen-3 one of the same ground, days apart; their names."""
    geobox = GeoBox((200, 200), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
    ground = Terrain(geobox, np.full((200, 200), 100, np.float32))
    reflectance = np.full((4, 200, 200), 0.2, np.float32)
    power = {band: np.full((200, 200), 0.1, np.float32) for band in ("HH", "HV", "VH", "VV")}

    def to_pass(day: int, serial: int) -> products.Pass:
        return products.Pass(datetime(2020, 6, day, 3, 10, tzinfo=UTC), serial)

    written = {
        "cloudy": products.write_gaofen6_pms(folder, ground, reflectance, to_pass(3, 1)._replace(cloud_pct=40), has_pan=False),
        "clear": products.write_gaofen6_pms(folder, ground, reflectance, to_pass(7, 2)._replace(cloud_pct=1), has_pan=False),
        "sar": products.pack_product(products.write_gaofen3(folder, ground, power, to_pass(4, 3), radar=products.Radar())),
    }
    return {role: path.name.removesuffix(".tar.gz") for role, path in written.items()}


def query_gaofen(folder: Path, output: Path, **changes: Any) -> Lock:
    settings = {"source": "gaofen", "areas": {"west": GAOFEN_AREA}, "polarisations": ("HH", "HV"), **changes}
    query_pairs("west", output, to_settings(folder, **settings))
    return Lock.read(output)


def test_gaofen_products_of_a_folder_form_pairs(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    lock = query_gaofen(tmp_path / "products", tmp_path / "west.json")
    (pair,) = lock.pairs
    assert {role: getattr(pair, role) for role in names} == names
    assert (lock.searched, lock.refused) == (None, ())
    assert {"HH", "HV"} < set(lock.scenes[names["sar"]].items[0].assets)
    assert not {"VV", "rpc-VV", "VH", "rpc-VH"} & set(lock.scenes[names["sar"]].items[0].assets)
    assert (pair.sar_gap_days, pair.clear_gap_days) == (pytest.approx(1, abs=1e-3), pytest.approx(4))


def test_a_gaofen_product_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    bad = tmp_path / "products" / names["cloudy"].replace("0000000001", "0000000009")
    bad.mkdir()
    (refusal,) = query_gaofen(tmp_path / "products", tmp_path / "west.json").refused
    assert (refusal.item, refusal.role) == (bad.name, "cloudy")
    assert "holds no metadata" in refusal.reason


def test_gaofen_products_that_do_not_overlap_the_area_are_refused_with_their_names(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    far = {"west": {"epsg": 32650, "bounds_m": (600_000, 4_400_000, 601_000, 4_401_000)}}
    with pytest.raises(MissingError, match="covers none of the area") as caught:
        query_gaofen(tmp_path / "products", tmp_path / "west.json", areas=far)
    assert any(name in str(caught.value) for name in names.values())
    assert "correct the area" in str(caught.value)
    assert "min_overlap" not in str(caught.value), "no limit would let in what lies elsewhere"


def test_sar_products_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    (tmp_path / "radar").mkdir()
    archive = f"{names['sar']}.tar.gz"
    (tmp_path / "products" / archive).rename(tmp_path / "radar" / archive)
    lock = query_gaofen(tmp_path / "products", tmp_path / "west.json", sar_catalogue=str(tmp_path / "radar"))
    assert lock.pairs[0].sar == names["sar"]
    assert lock.scenes[names["sar"]].catalogue == str(tmp_path / "radar")


def test_a_table_names_the_pairs_whatever_the_cover(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    table = tmp_path / "pairs.csv"
    table.write_text(f"sar,cloudy,clear\n{names['sar']}.tar.gz,{names['clear']},{names['cloudy']}\nGF3_none,{names['cloudy']},x\n")
    lock = query_gaofen(tmp_path / "products", tmp_path / "west.json", table=str(table))
    (pair,) = lock.pairs
    assert (pair.cloudy, pair.clear) == (names["clear"], names["cloudy"])
    assert any("GF3_none" in refusal.reason for refusal in lock.refused)


def test_elevation_models_are_frozen_in_the_lock_and_stand_in_the_ledger(tmp_path: Path) -> None:
    folder, models = write_world(tmp_path / "world"), write_catalogue(tmp_path / "models")
    settings = to_settings(folder, dem_catalogue=str(models), areas={"west": {"epsg": 32632, "bounds_m": GRID.boundingbox.bbox}})
    query_pairs("west", tmp_path / "west.json", settings, dem_margin_m=500)
    lock = Lock.read(tmp_path / "west.json")
    assert lock.dem is not None
    assert ([item.item for item in lock.dem.items], lock.dem.catalogue) == ([WEST, EAST], str(models))
    assert lock.searched is None
    assert [entry.item for entry in read_ledger(tmp_path / "west.ledger.csv") if entry.scene == "dem"] == [WEST, EAST]
    query_pairs("west", tmp_path / "again.json", settings, dem_margin_m=500)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "west.json").read_bytes()
    frozen = QuerySettings(source="lock", catalogue=str(tmp_path), dem_catalogue=str(models))
    query_pairs("west", tmp_path / "frozen" / "west.json", frozen)
    assert Lock.read(tmp_path / "frozen" / "west.json") == lock
    plain = lock.model_copy(update={"dem": None})
    (tmp_path / "west.json").write_text(plain.to_json())
    with pytest.raises(ConfigError, match=r"the frozen lock of area 'west' .* names no elevation models"):
        query_pairs("west", tmp_path / "frozen" / "west.json", frozen)


def test_clear_products_of_gaofen_take_simulated_skies_where_no_cloudy_one_is_wanted(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    lock = query_gaofen(tmp_path / "products", tmp_path / "west.json", inputs="simulated", skies=2, max_gap_sar_days=5)
    assert [(pair.cloudy, pair.clear, pair.sky) for pair in lock.pairs] == [(names["clear"], names["clear"], sky) for sky in (1, 2)]
    assert [(entry.item, entry.role) for entry in lock.refused] == [(names["cloudy"], "cloudy")]
    assert set(lock.scenes) == {names["clear"], names["sar"]}
    entries = read_ledger(tmp_path / "west.ledger.csv")
    assert sorted(entry.status for entry in entries if entry.item) == ["refused", "used", "used"]


def test_a_table_may_leave_the_cloudy_product_out(tmp_path: Path) -> None:
    names = write_gaofen(tmp_path / "products")
    table = tmp_path / "pairs.csv"
    table.write_text(f"sar,clear\n{names['sar']},{names['clear']}\n")
    (pair,) = query_gaofen(tmp_path / "products", tmp_path / "west.json", table=str(table), inputs="either").pairs
    assert (pair.cloudy, pair.clear, pair.sky) == (names["clear"], names["clear"], 1)
    with pytest.raises(ConfigError, match=r"no column cloudy .*set pipeline\.query\.inputs to either"):
        query_gaofen(tmp_path / "products", tmp_path / "west.json", table=str(table))


def test_where_only_clear_scenes_lie_the_way_out_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"set pipeline\.query\.inputs to simulated"):
        query_pairs("west", tmp_path / "x.json", to_settings(url, cloudy_cover_pct=(99, 100)))
    query_pairs("west", tmp_path / "x.json", to_settings(url, cloudy_cover_pct=(99, 100), inputs="either", max_gap_sar_days=6))
    pairs = Lock.read(tmp_path / "x.json").pairs
    assert pairs
    assert all(pair.sky == 1 and pair.cloudy == pair.clear for pair in pairs)


def test_no_group_is_one_line_with_reason_and_remedy(url: str, tmp_path: Path) -> None:
    with pytest.raises(
        MissingError, match=r"no group for pansharpening among \d+ optical items; .*raise pipeline.query.clear_cover_pct"
    ) as caught:
        query_pairs("west", tmp_path / "west.json", to_settings(url, clear_cover_pct=0), task="pansharpening")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"coarse_collections": ["modis-09A1-061"]}, "pansharpening", "'query.coarse_collections' is for spatiotemporal-fusion"),
        ({"coarse_collections": ["modis-09A1-061"]}, "cloud-removal", "'query.coarse_collections' is for spatiotemporal-fusion"),
        ({"series": True}, "pansharpening", "'query.series' is for pairs of task cloud-removal"),
        ({"source": "cubes"}, "cloud-removal", "'query.source' cubes does not fit 'task' cloud-removal"),
    ],
)
def test_a_search_that_does_not_serve_the_task_is_refused_by_the_verb_too(
    changes: dict[str, Any], task: TaskName, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        query_pairs("west", tmp_path / "west.json", to_settings("nowhere", **changes), task=task)
    assert "\n" not in str(caught.value)


def test_products_of_gaofen_without_a_panchromatic_image_are_refused_by_name(tmp_path: Path) -> None:
    names, area = write_gaofen(tmp_path / "products"), {"epsg": 32650, "bounds_m": (500_504, 4_499_000, 501_000, 4_499_496)}
    settings = to_settings(tmp_path / "products", source="gaofen", areas={"west": area}, resolution_m=2, clear_cover_pct=60)
    with pytest.raises(MissingError, match=f"2 refused for one cause, .* {names['cloudy']} holds no panchromatic image with coefficients"):
        query_pairs("west", tmp_path / "west.json", settings, task="pansharpening")


def test_a_series_names_its_scenes_in_lock_and_ledger_and_comes_back_from_a_frozen_lock(lock_file: Path, tmp_path: Path) -> None:
    world = {**WORLD, "sentinel-2-l2a": [*WORLD["sentinel-2-l2a"], optical_item("clear-28", 28, 2.0)]}
    settings = to_settings(write_world(tmp_path / "world", world), series=True)
    query_pairs("west", tmp_path / "locks" / "west.json", settings)
    lock = Lock.read(tmp_path / "locks" / "west.json")
    assert [pair.scene_ids for pair in lock.pairs] == [
        ("sar-8", "cloudy-8", "clear-18", "clear-3", "clear-28"),
        ("sar-13", "cloudy-13", "clear-18", "clear-3", "clear-28"),
    ]
    assert [(pair.before_gap_days, pair.after_gap_days) for pair in lock.pairs] == [(-5, 20), (-10, 15)]
    assert set(lock.scenes) == {name for pair in lock.pairs for name in pair.scene_ids}
    entries = read_ledger(tmp_path / "locks" / "west.ledger.csv")
    assert {entry.scene for entry in entries if entry.status == "used" and entry.scene} == set(lock.scenes)
    frozen = QuerySettings(source="lock", catalogue=str(tmp_path / "locks"), series=True)
    query_pairs("west", tmp_path / "again" / "west.json", frozen)
    assert (tmp_path / "again" / "west.json").read_bytes() == (tmp_path / "locks" / "west.json").read_bytes()
    plain = frozen.model_copy(update={"catalogue": str(lock_file.parent)})
    with pytest.raises(ConfigError, match=r"has pairs without scenes before and after them, which pipeline\.query\.series asks") as caught:
        query_pairs("west", tmp_path / "again" / "west.json", plain)
    assert "\n" not in str(caught.value)


def test_where_no_target_has_clear_scenes_around_it_the_advice_is_to_search_longer(url: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        query_pairs("west", tmp_path / "west.json", to_settings(url, series=True))
    words = "needs a clear scene before and one after input and target clear-"
    assert words in str(caught.value)
    assert "or leave pipeline.query.series out" in str(caught.value)
