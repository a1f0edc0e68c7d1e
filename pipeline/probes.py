"""What web servers say of the files of a lock: size and ETag, so that a later reading knows whether they are still the same.

Enters: scene records, and what makes their addresses readable. Leaves: the records completed, and a line of the ledger for every file of
which nothing is known. A server that does not tell fails no run: what a probe (HTTP HEAD) finds is good to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import TYPE_CHECKING, Final, NamedTuple

from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.http import Budget, hide_secrets, make_session
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.signing import Resolver

if TYPE_CHECKING:
    import requests

PROBES: Final = 8
"""Servers are asked for so many files at the same time."""
TRIES: Final = 2
"""At most so many requests per file on average: what a probe tells is not worth more."""
LONGEST_PAUSE_S: Final = 2.0
"""Longest pause between two tries of a probe, seconds."""
LONGEST_FAULT: Final = 200
"""A fault is told in at most so many characters."""


class Probe(NamedTuple):
    """What a server says of a file."""

    etag: str | None
    """Its ETag; None if it states none."""
    size_bytes: int | None
    """Its size; None if it states none."""
    fault: str = ""
    """Why nothing is known."""


File = tuple[str, str]
"""A file by the catalogue of its scene and its address."""


def probe_scenes(
    scenes: Mapping[str, SceneRecord], resolvers: Mapping[str, Resolver], *, pause: Callable[[float], None] = sleep
) -> tuple[dict[str, SceneRecord], list[Entry]]:
    """The scenes with size and ETag of the files on web servers that state no checksum, and lines on the files that do not tell.

    Only scenes with a resolver under their id are asked for. `pause` waits between two tries.

    Raises:
        CatalogueError: no signature is given for an address that needs one.
    """
    asked = _list_files(scenes, resolvers)
    budget = Budget(TRIES * len(asked), "the rest is not asked")
    session = make_session(budget, pause=lambda seconds: pause(min(seconds, LONGEST_PAUSE_S)))
    with session, ThreadPoolExecutor(PROBES) as executor:
        probes = dict(zip(asked, executor.map(lambda file: _probe(session, file[1], asked[file]), asked), strict=True))
    notes = [
        Entry("query", "", name, item.item, band, "used", f"size and ETag are not known: {probe.fault}")
        for name, scene in scenes.items()
        for item in scene.items
        for band, asset in item.assets.items()
        if (probe := probes.get((scene.catalogue, asset.href))) and probe.fault
    ]
    return {name: _complete_scene(scene, probes) for name, scene in scenes.items()}, notes


def _list_files(scenes: Mapping[str, SceneRecord], resolvers: Mapping[str, Resolver]) -> dict[File, Resolver]:
    """The files to ask for, each once, with what makes its address readable."""
    return {
        (scene.catalogue, asset.href): resolvers[name]
        for name, scene in scenes.items()
        if name in resolvers
        for item in scene.items
        for asset in item.assets.values()
        if asset.checksum is None and resolvers[name].to_address(asset.href).startswith("http")
    }


def _probe(session: requests.Session, href: str, resolver: Resolver) -> Probe:
    """What the server of `href` says of it; a signature that is refused is renewed once."""
    import requests

    for renew in (False, True):
        address = resolver.to_web(href, renew=renew, method="HEAD")
        try:
            answer = session.head(address, headers={"Accept-Encoding": "identity"}, allow_redirects=True)
        except (requests.RequestException, CatalogueError) as error:
            return Probe(None, None, hide_secrets(str(error))[:LONGEST_FAULT])
        if answer.status_code not in (requests.codes.unauthorized, requests.codes.forbidden):
            break
    if answer.status_code != requests.codes.ok:
        return Probe(None, None, f"the server answers HTTP {answer.status_code}")
    size = answer.headers.get("Content-Length", "")
    return Probe(answer.headers.get("ETag"), int(size) if size.isdigit() else None)


def _complete_scene(scene: SceneRecord, probes: Mapping[File, Probe]) -> SceneRecord:
    def complete_asset(asset: AssetRecord) -> AssetRecord:
        probe = probes.get((scene.catalogue, asset.href))
        if probe is None or asset.checksum is not None:
            return asset
        return asset.model_copy(update={"etag": probe.etag, "size_bytes": probe.size_bytes or asset.size_bytes})

    def complete_item(item: ItemRecord) -> ItemRecord:
        return item.model_copy(update={"assets": {name: complete_asset(asset) for name, asset in item.assets.items()}})

    return scene.model_copy(update={"items": tuple(map(complete_item, scene.items))})
