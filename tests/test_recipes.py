"""The recipes for public catalogues: Snakemake plans them without network, and their searches form pairs from replayed answers.

Marked `real`: answers recorded from the catalogues themselves. The others are built in the same shape.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import shapely
import yaml
from listening import listening
from real_files import find_samples
from shapely.geometry import shape

from sereno.model.config import load_config
from sereno.pipeline import http
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.config import Area, QuerySettings
from sereno.pipeline.errors import MissingError
from sereno.pipeline.ledger import ledger_of, read_ledger
from sereno.pipeline.pairs import Lock
from sereno.pipeline.presets import PRESETS
from sereno.pipeline.query import query_pairs

ROOT = Path(__file__).parent.parent
RECIPES = ("earth-search", "planetary-computer", "cdse")
Item = dict[str, Any]


def load_query(name: str) -> QuerySettings:
    path = ROOT / "recipes" / f"{name}.yaml"
    return load_config(yaml.safe_load(path.read_text()), where=path.name).pipeline.query


# Plans.


def plan(name: str, folder: Path) -> tuple[dict[str, str], str]:
    """How many jobs of each rule Snakemake plans for a recipe, and all that it says."""
    recipe = ROOT / "recipes" / f"{name}.yaml"
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile"), "-d", str(folder), "--configfile", str(recipe)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    surroundings = os.environ | nowhere | {"XDG_CACHE_HOME": str(folder / "cache")}
    run = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=120)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    return dict(re.findall(r"^(\w+)\s+(\d+)$", said[said.index("Job stats:") :], flags=re.MULTILINE)), said


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_without_network(name: str, tmp_path: Path) -> None:
    planned, said = plan(name, tmp_path)
    assert planned["query_area"] == "1"
    assert {"pack_patches", "train_run", "evaluate_run", "write_report"} <= planned.keys()
    assert f"results/{name}/query/my-area.json" in said


def test_the_demo_of_gaofen_is_planned_from_its_world_to_the_report(tmp_path: Path) -> None:
    planned, said = plan("gaofen-demo", tmp_path)
    assert {"simulate_world", "query_area", "pack_patches", "train_run", "evaluate_run", "write_report"} <= planned.keys()
    assert "results/gaofen-demo/simulate/world.json" in said


@pytest.mark.parametrize("name", ["pansharpening", "spatiotemporal-fusion", "snapshot-reconstruction", "landsat-modis"])
def test_the_demo_of_a_task_is_planned_from_its_world_to_the_report(name: str, tmp_path: Path) -> None:
    planned, said = plan(name, tmp_path)
    assert {"simulate_world", "query_area", "pack_patches", "train_run", "evaluate_run", "write_report"} <= planned.keys()
    assert f"results/{name}/simulate/world.json" in said


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_marks_what_to_change(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    changed = [line.split(":")[0].strip() for line in text.splitlines() if "# change" in line]
    assert changed == ["results", "my-area", "start", "end"]
    assert len(text.splitlines()) <= 25


# Searches against replayed answers.


@contextmanager
def replaying(answers: dict[str, list[Item]]) -> Iterator[tuple[str, list[str]]]:
    """A server with one STAC API per key of `answers` that gives all items of the collections asked for; and the paths asked."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        base = f"http://{handler.headers['Host']}/{handler.path.split('/')[1]}"
        status, said = answer(base, answers.get(handler.path.split("/")[1].partition("?")[0]), handler.path)
        content = json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with listening(respond) as address:
        yield address, asked


def answer(base: str, items: list[Item] | None, path: str) -> tuple[int, Any]:
    """What a STAC API with `items` says: two pages per search, with an item repeated as Planetary Computer does."""
    query = parse_qs(urlsplit(path).query)
    if items is None or "/token" in path:
        return 404, {}
    if "/search" in path:
        wanted = [item for item in items if item["collection"] in query["collections"][0].split(",")]
        half = len(wanted) // 2 + 1
        if "token" in query:
            return 200, {"type": "FeatureCollection", "features": wanted[half - 1 :], "links": []}
        onward = {"rel": "next", "href": f"{base}/search?token=2&collections={query['collections'][0]}"}
        return 200, {"type": "FeatureCollection", "features": wanted[:half], "links": [onward]}
    if path.endswith("/collections"):
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]}}
        plain = {"type": "Collection", "stac_version": "1.0.0", "description": "d", "license": "other", "links": [], "extent": extent}
        return 200, {"collections": [{**plain, "id": name} for name in sorted({item["collection"] for item in items})], "links": []}
    links = [{"rel": "search", "href": f"{base}/search"}, {"rel": "data", "href": f"{base}/collections"}, {"rel": "self", "href": base}]
    conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "collections", "item-search")]
    return 200, {"type": "Catalog", "id": "a", "stac_version": "1.0.0", "description": "d", "conformsTo": conforms, "links": links}


Replay = Callable[[str, dict[str, list[Item]], dict[str, Any]], Lock]


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replay:
    """Runs the query of a recipe against replayed answers, with its catalogues at this machine."""
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)

    def run(name: str, answers: dict[str, list[Item]], place: dict[str, Any]) -> Lock:
        # The recipe's own settings, but for the ground, the dates, and what would read files.
        settings = load_query(name).model_copy(update={"cover_from": "catalogue", "probe": False, **place})
        with replaying(answers) as (base, asked):
            for preset in answers:
                known = PRESETS[preset]._replace(url=f"{base}/{preset}", signed_by=f"{base}/{preset}/token")
                monkeypatch.setitem(PRESETS, preset, known)  # type: ignore[misc]
            query_pairs("my-area", tmp_path / "my-area.json", settings)
        assert not any("token" in path and "search" not in path for path in asked)  # nothing is signed before it is read
        text = (tmp_path / "my-area.json").read_text()
        assert "sig=" not in text
        return Lock.read(tmp_path / "my-area.json")

    return run


def to_optical(name: str, day: int, cover: float, catalogue: str) -> Item:
    """An item in the dialect of `catalogue`."""
    plain: dict[str, Any] = {"datetime": f"2024-05-{day:02}T10:06:01Z", "platform": "sentinel-2a", "eo:cloud_cover": cover}
    if catalogue == "earth-search":
        host = "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com"
        collection, facts = "sentinel-2-c1-l2a", {"proj:code": "EPSG:32632", "s2:processing_baseline": "05.10", "view:sun_elevation": 60.0}
        keys = {band.common_name: {"raster:bands": [{"offset": -0.1}]} for band in SENTINEL2_BANDS if band.name in L2A_BANDS} | {"scl": {}}
    elif catalogue == "planetary-computer":
        host = "https://sentinel2l2a01.blob.core.windows.net"
        collection, facts = "sentinel-2-l2a", {"proj:epsg": 32632, "s2:processing_baseline": "05.10", "s2:mean_solar_zenith": 30.0}
        keys = {key: {} for key in (*L2A_BANDS, "SCL")}
    else:
        host, collection = "s3://eodata", "sentinel-2-l2a"
        facts = {"proj:code": "EPSG:32632", "processing:version": "05.10", "product:type": "S2MSI2A"}
        sizes = {band.name: band.gsd_m for band in SENTINEL2_BANDS if band.name in L2A_BANDS}
        keys = {f"{key}_{size}m": {"bands": [{"name": key, "raster:offset": -0.1}]} for key, size in sizes.items()} | {"SCL_20m": {}}
    assets = {key: {"href": f"{host}/{name}/{key}.tif", "type": "image/tiff", **more} for key, more in keys.items()}
    return to_item(name, collection, {**plain, **facts, "grid:code": "MGRS-32TPR"}, assets)


def to_sar(name: str, day: int, kind: str) -> Item:
    """Sentinel-1: RTC as Planetary Computer has it, GRD as CDSE."""
    facts = {
        "datetime": f"2024-05-{day:02}T05:18:30Z",
        "platform": "SENTINEL-1A",
        "sat:orbit_state": "descending",
        "sat:relative_orbit": 95,
    }
    if kind == "rtc":
        host = "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc"
        assets = {key: {"href": f"{host}/{name}/iw-{key}.rtc.tiff"} for key in ("vv", "vh")}
        return to_item(name, "sentinel-1-rtc", {**facts, "proj:epsg": 32632, "sar:polarizations": ["VV", "VH"]}, assets)
    assets = {key: {"href": f"s3://eodata/Sentinel-1/{name}/{key}.tiff", "type": "image/tiff"} for key in ("vv", "vh")}
    for file in ("calibration", "noise", "product"):
        assets |= {f"{file}-{key}": {"href": f"s3://eodata/Sentinel-1/{name}/{file}-{key}.xml"} for key in ("vv", "vh")}
    return to_item(name, "sentinel-1-grd", {**facts, "product:type": "IW_GRDH_1S", "sar:polarizations": ["VV", "VH"]}, assets)


def to_item(name: str, collection: str, properties: dict[str, Any], assets: dict[str, Any]) -> Item:
    ring = [[10, 45], [12, 45], [12, 46], [10, 46], [10, 45]]
    plain = {"type": "Feature", "stac_version": "1.0.0", "bbox": [10, 45, 12, 46], "links": []}
    outline = {"type": "Polygon", "coordinates": [ring]}
    return {**plain, "id": name, "collection": collection, "geometry": outline, "properties": properties, "assets": assets}


def to_series(catalogue: str) -> list[Item]:
    covers = {4: 40.0, 9: 97.0, 14: 1.0, 19: 55.0}
    return [to_optical(f"S2A_MSIL2A_202405{day:02}T100601_N0510_R022_T32TPR_x", day, cover, catalogue) for day, cover in covers.items()]


def to_sar_series(kind: str) -> list[Item]:
    names = {day: f"S1A_IW_GRDH_1SDV_202405{day:02}T051817_202405{day:02}T051842_053{day:03}_067DF2" for day in (5, 17)}
    return [to_sar(name if kind == "grd" else f"{name}_rtc", day, kind) for day, name in names.items()]


@pytest.mark.parametrize("name", RECIPES)
def test_the_search_of_a_recipe_forms_pairs(name: str, replay: Replay, tmp_path: Path) -> None:
    answers = {name: to_series(name)}
    sar = load_query(name).sar_catalogue or name
    answers[sar] = [*answers.get(sar, []), *to_sar_series("grd" if name == "cdse" else "rtc")]
    lock = replay(name, answers, {})
    assert [(pair.sar_gap_days > 0, round(pair.clear_gap_days)) for pair in lock.pairs] == [(True, 10), (False, -5)]
    assert {lock.scene(pair.sar).catalogue or lock.catalogue for pair in lock.pairs} == {sar}
    hrefs = [asset.href for scene in lock.scenes.values() for item in scene.items for asset in item.assets.values()]
    schemes = {urlsplit(href).scheme for href in hrefs}
    assert schemes == ({"s3"} if name == "cdse" else {"https"})
    assert any("97.0" in refused.reason or "97" in refused.reason for refused in lock.refused)
    retries = [entry for entry in read_ledger(ledger_of(tmp_path / "my-area.json")) if "search" in entry.reason]
    assert len(retries) == 2


def test_a_catalogue_without_a_pair_says_what_to_widen(replay: Replay) -> None:
    answers = {"planetary-computer": [*to_series("planetary-computer")[1:2], *to_sar_series("rtc")]}
    with pytest.raises(MissingError, match=r"no pair among 1 optical and 2 SAR items"):
        replay("planetary-computer", answers, {})


# Answers of the catalogues themselves.


@pytest.fixture(scope="module")
def samples() -> Path:
    return find_samples() / "stac"


def move_sar(samples: Path, optical: list[Item]) -> list[Item]:
    """The real RTC items of Planetary Computer, brought to the ground of the optical ones and to half a day after each cloudy one.

    No recorded answers of both sensors are of the same place.
    """
    recorded: list[Item] = json.loads((samples / "stac_geoparquet/data/sentinel-1-rtc-pc.json").read_text())
    moved = []
    for number, over in enumerate(item for item in optical if 10 <= item["properties"]["eo:cloud_cover"] <= 95):
        item = copy.deepcopy(recorded[number % len(recorded)])
        moment = datetime.fromisoformat(over["properties"]["datetime"]) + timedelta(hours=12)
        stamp = f"{moment:%Y%m%dT%H%M%S}"
        item["id"] = f"S1A_IW_GRDH_1SDV_{stamp}_{stamp}_{53000 + number:06}_067DF2_rtc"
        item["geometry"], item["bbox"] = over["geometry"], over["bbox"]
        own = {"datetime": moment.isoformat(), "start_datetime": moment.isoformat(), "end_datetime": moment.isoformat()}
        item["properties"] |= {**own, "s1:datatake_id": str(number), "sat:absolute_orbit": 53000 + number}
        moved.append(item)
    return moved


def place_in(items: list[Item]) -> dict[str, Any]:
    """Settings of a small area that every item covers, and of the time of all."""
    common = shapely.intersection_all([shapely.buffer(shape(item["geometry"]), -0.02) for item in items])
    point = common.representative_point()
    days = sorted(item["properties"]["datetime"][:10] for item in items)
    area = Area(bbox=(point.x - 0.01, point.y - 0.01, point.x + 0.01, point.y + 0.01))
    first, last = (datetime.fromisoformat(day).date() for day in (days[0], days[-1]))
    return {"areas": {"my-area": area}, "start": first, "end": last}


@pytest.mark.real
def test_real_items_of_earth_search_form_pairs(samples: Path, replay: Replay) -> None:
    optical = json.loads((samples / "rustac/server/data/sentinel-2/item-collection.json").read_text())["features"]
    lock = replay("earth-search", {"earth-search": optical, "planetary-computer": move_sar(samples, optical)}, place_in(optical))
    assert lock.pairs
    assert lock.catalogue == "earth-search"
    assert {lock.scene(pair.sar).catalogue for pair in lock.pairs} == {"planetary-computer"}
    for pair in lock.pairs:
        (cloudy,) = lock.scene(pair.cloudy).items
        assert cloudy.collection == "sentinel-2-c1-l2a"
        assert cloudy.declared_offset == -0.1
        assert cloudy.assets["B04"].checksum
        assert cloudy.assets["MTD"].href.endswith("product_metadata.xml")
        assert set(lock.scene(pair.sar).items[0].assets) == {"VV", "VH"}


@pytest.mark.real
def test_real_items_of_planetary_computer_form_pairs(samples: Path, replay: Replay) -> None:
    optical = json.loads((samples / "odc_stac/site2-2020_jun_jul-35MNM.geojson").read_text())["features"]
    lock = replay("planetary-computer", {"planetary-computer": [*optical, *move_sar(samples, optical)]}, place_in(optical))
    assert lock.pairs
    for pair in lock.pairs:
        (cloudy,) = lock.scene(pair.cloudy).items
        assert (cloudy.collection, cloudy.processing_baseline) == ("sentinel-2-l2a", "02.12")
        assert cloudy.offset_sources == PRESETS["planetary-computer"].offset_sources
        assert all(".blob.core.windows.net/" in asset.href for asset in cloudy.assets.values())
