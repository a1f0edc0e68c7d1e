"""The table of catalogues: complete, consistent, and in agreement with recorded answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest
from real_files import find_samples

from sereno.pipeline.pairs import OffsetSource
from sereno.pipeline.presets import PRESETS, S3_KEYS, find_preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_to_search_and_whom_to_believe(name: str) -> None:
    preset = PRESETS[name]
    assert preset.optical_collections
    assert preset.sar_collections
    assert set(preset.offset_sources) <= set(get_args(OffsetSource))
    assert preset.offset_sources[-1] == "baseline"  # the last resort: every product has one
    assert bool(preset.needs) == bool(preset.advice)
    assert not any("KEY" in option or "SECRET" in option for option in preset.gdal)  # keys stay in the environment
    for address in (preset.url, preset.signed_by, *preset.public_buckets.values()):
        assert not address or (urlsplit(address).scheme == "https" and not address.endswith("/"))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("cdse", "cdse"),
        ("https://planetarycomputer.microsoft.com/api/stac/v1/", "planetary-computer"),
        ("https://earth-search.aws.element84.com/v1", "earth-search"),
        ("https://stac.example.org", "local"),
        ("results/simulate", "local"),
        ("", "local"),
    ],
)
def test_a_preset_is_found_by_name_or_host(address: str, name: str) -> None:
    assert find_preset(address) is PRESETS[name]


def test_terrain_corrected_sar_comes_before_ground_range() -> None:
    for preset in PRESETS.values():
        order = ["rtc" in name for name in preset.sar_collections]
        assert order == sorted(order, reverse=True)


def test_only_the_buckets_whose_readers_pay_are_told_so() -> None:
    charged = {name for name, preset in PRESETS.items() if "AWS_REQUEST_PAYER" in preset.gdal}
    assert charged == {name for name, preset in PRESETS.items() if preset.charges} == {"earth-search"}
    assert "sentinel-s1-l1c" not in PRESETS["earth-search"].public_buckets
    assert PRESETS["earth-search"].needs == PRESETS["cdse"].needs == S3_KEYS


@pytest.fixture
def samples() -> Path:
    return find_samples() / "stac"


@pytest.mark.real
def test_earth_search_has_the_collections_of_its_preset(samples: Path) -> None:
    recorded = json.loads((samples / "recorded" / "01_earthsearch_GET.json").read_text())
    assert find_preset(recorded["request"]["uri"]) is PRESETS["earth-search"]
    preset, known = PRESETS["earth-search"], {collection["id"] for collection in recorded["response"]["collections"]}
    assert {*preset.optical_collections, *preset.sar_collections} <= known


@pytest.mark.real
def test_earth_search_s_own_files_are_public_and_on_the_web(samples: Path) -> None:
    items = json.loads((samples / "rustac/server/data/sentinel-2/item-collection.json").read_text())["features"]
    roots = tuple(PRESETS["earth-search"].public_buckets.values())
    assert all(asset["href"].startswith(roots) for item in items for asset in item["assets"].values())
    assert {item["properties"]["storage:requester_pays"] for item in items} == {False}


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "collection"),
    [
        ("stac_geoparquet/data/sentinel-2-l2a-pc.json", "sentinel-2-l2a"),
        ("stac_geoparquet/data/sentinel-1-rtc-pc.json", "sentinel-1-rtc"),
        ("recorded/13_planetarycomputer_GET.json", "sentinel-1-grd"),
    ],
)
def test_planetary_computer_s_files_lie_where_signatures_are_given(samples: Path, path: str, collection: str) -> None:
    content = json.loads((samples / path).read_text())
    items = content if isinstance(content, list) else content["response"]["features"]
    preset = PRESETS["planetary-computer"]
    assert {item["collection"] for item in items} == {collection}
    assert collection in {*preset.optical_collections, *preset.sar_collections}
    data = [asset["href"] for item in items for name, asset in item["assets"].items() if name not in ("tilejson", "rendered_preview")]
    assert all(urlsplit(href).netloc.endswith(".blob.core.windows.net") for href in data)
