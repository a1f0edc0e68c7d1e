"""Files on web servers are asked for size and ETag once, and what they do not tell is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from listening import listening

from sereno.pipeline import http
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.probes import TRIES, probe_scenes
from sereno.pipeline.signing import Resolver


@contextmanager
def serving(statuses: list[int]) -> Iterator[tuple[str, list[str]]]:
    """A server whose answers have these statuses, one after the other, then 200; and the requests that it saw."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(f"{handler.command} {handler.path}")
        handler.send_response(statuses[len(asked) - 1] if len(asked) <= len(statuses) else 200)
        handler.send_header("Content-Length", "123")
        handler.send_header("ETag", f'"{handler.path}"')
        handler.end_headers()

    with listening(respond) as address:
        yield address, asked


def to_scene(name: str, **assets: AssetRecord) -> SceneRecord:
    plain = {"collection": "c", "sensor": "sentinel2-l2a", "time": "2021-06-03T10:00:00Z", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46)}
    item = ItemRecord.model_validate({**plain, "item": f"{name}-item", "assets": assets})
    return SceneRecord(id=name, sensor=item.sensor, time=item.time, items=(item,))


def probe(scene: SceneRecord, address: str) -> tuple[dict[str, AssetRecord], list[Entry]]:
    """The assets of a scene after the probe, and the lines of the ledger."""
    scenes, notes = probe_scenes({scene.id: scene}, {scene.id: Resolver(address)}, pause=lambda _: None)
    return scenes[scene.id].items[0].assets, notes


def test_size_and_etag_are_what_the_server_says() -> None:
    with serving([]) as (address, asked):
        assets, notes = probe(to_scene("s", B04=AssetRecord(href="b04.tif"), B08=AssetRecord(href="b08.tif", size_bytes=7)), address)
    assert {name: (asset.etag, asset.size_bytes) for name, asset in assets.items()} == {
        "B04": ('"/b04.tif"', 123),
        "B08": ('"/b08.tif"', 123),
    }
    assert sorted(asked) == ["HEAD /b04.tif", "HEAD /b08.tif"]
    assert not notes


def test_a_file_with_several_bands_is_asked_for_once() -> None:
    with serving([]) as (address, asked):
        assets, _ = probe(to_scene("s", **{f"B0{index}": AssetRecord(href="all.tif", index=index) for index in (2, 3, 4)}), address)
    assert asked == ["HEAD /all.tif"]
    assert {asset.size_bytes for asset in assets.values()} == {123}


def test_files_with_a_checksum_in_buckets_in_folders_and_of_other_scenes_are_not_asked_for() -> None:
    scene = to_scene(
        "s", B02=AssetRecord(href="b02.tif", checksum="d41d8cd98f00b204e9800998ecf8427e"), B03=AssetRecord(href="s3://b/b03.tif")
    )
    local = to_scene("local", B04=AssetRecord(href="/folder/b04.tif"))
    other = to_scene("other", B04=AssetRecord(href="b04.tif"))
    scenes = {one.id: one for one in (scene, local, other)}
    with serving([]) as (address, asked):
        assert probe_scenes(scenes, {"s": Resolver(address), "local": Resolver("/folder")}) == (scenes, [])
    assert not asked


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([404], "the server answers HTTP 404"),
        ([403, 403], "the server answers HTTP 403"),
        ([503] * 9, "no more allowed: the rest is not asked"),
    ],
)
def test_a_file_that_does_not_tell_is_noted_and_stays_as_it_was(statuses: list[int], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)
    scene = to_scene("s", B04=AssetRecord(href="b04.tif", size_bytes=7))
    with serving(statuses) as (address, asked):
        assets, [note] = probe(scene, address)
    assert assets["B04"] == AssetRecord(href="b04.tif", size_bytes=7)
    assert len(asked) <= TRIES
    assert (note.scene, note.item, note.asset, note.status) == ("s", "s-item", "B04", "used")
    assert note.reason.startswith("size and ETag are not known: ")
    assert note.reason.endswith(words)


def test_a_refused_signature_is_renewed_once() -> None:
    with serving([403]) as (address, asked):
        assets, notes = probe(to_scene("s", B04=AssetRecord(href="b04.tif")), address)
    assert asked == ["HEAD /b04.tif"] * 2
    assert assets["B04"].size_bytes == 123
    assert not notes
