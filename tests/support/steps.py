"""The data steps for tests: a small world, the way from its catalogue to patches, and what that leaves, ready to be compared.

Enters: an address. Leaves: manifests and ledgers as plain values. The verbs are called as functions: a process each would cost seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from sereno.pipeline.align import align_pair
from sereno.pipeline.config import AlignSettings, IngestSettings, MaskSettings, PatchSettings, QuerySettings, SimulateSettings
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.ledger import Entry, read_ledgers
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.pairs import Lock
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.query import query_pairs
from sereno.pipeline.simulate import simulate_world

Json = dict[str, Any]

AREA: Final = "tiny"
WEST_M: Final = 498_400.0
SOUTH_M: Final = 5_040_000.0
PATCH: Final = PatchSettings(size_px=64, buffer_px=16)
JOB_ATTEMPTS: Final = 4
"""How often a job is tried: `retries` of profiles/default, and the first time."""


class Square(NamedTuple):
    """One area of a world."""

    name: str = AREA
    """Its name."""
    size_px: int = 480
    """Side, pixels of 10 m."""
    dialect: str = "earth-search"
    """Style of its items."""
    epsg: int = 32632
    """EPSG code of its zone."""

    @property
    def area(self) -> Json:
        """The ground as the query step wants it."""
        side = 10.0 * self.size_px
        return {"epsg": self.epsg, "bounds_m": (WEST_M, SOUTH_M, WEST_M + side, SOUTH_M + side)}


def make_world(folder: Path, *squares: Square, cloudy_dates: int = 1) -> Path:
    """The folder of a simulated world."""
    areas = {s.name: {"epsg": s.epsg, "west_m": WEST_M, "south_m": SOUTH_M, "size_px": s.size_px, "dialect": s.dialect} for s in squares}
    simulate_world(folder / "world.json", SimulateSettings.model_validate({"seed": 3, "cloudy_dates": cloudy_dates, "areas": areas}))
    return folder


def drop_checksums(folder: Path) -> None:
    """Let the items of a world state no checksums and sizes, like those of most catalogues."""
    for path in folder.glob("items/*/*.json"):
        item = json.loads(path.read_text())
        for asset in item.get("assets", {}).values():
            for key in ("file:size", "file:checksum"):
                asset.pop(key, None)
        path.write_text(json.dumps(item))


def to_query(catalogue: str, *squares: Square, **changes: Any) -> QuerySettings:
    """Settings of a search for the squares."""
    return QuerySettings.model_validate({"catalogue": catalogue, "areas": {s.name: s.area for s in squares}, **changes})


def run_query(folder: Path, settings: QuerySettings, area: str = AREA) -> Path:
    """The lock of `area`, written below `folder`."""
    output = folder / "query" / f"{area}.json"
    insist(lambda: query_pairs(area, output, settings))
    return output


def run_ingest(folder: Path, lock: Path, settings: IngestSettings) -> None:
    """Every scene of `lock`, written below `folder`."""
    for name in Lock.read(lock).scenes:
        insist(lambda name=name: ingest_scene(lock, name, folder / "ingest" / lock.stem / f"{name}.json", settings))  # type: ignore[misc]


def run_rest(folder: Path, lock: Path) -> None:
    """Every pair of `lock`, aligned, masked and cut into patches."""
    for pair in Lock.read(lock).pairs:
        sar, cloudy, clear = (folder / "ingest" / lock.stem / f"{name}.json" for name in (pair.sar, pair.cloudy, pair.clear))
        aligned, masked, patched = (folder / step / lock.stem / f"{pair.id}.json" for step in ("align", "mask", "patch"))
        align_pair((lock, pair.id), (sar, cloudy, clear), aligned, AlignSettings())
        mask_pair(aligned, masked, MaskSettings())
        patch_pair(aligned, masked, patched, PATCH)


def insist(job: Callable[[], None]) -> int:
    """Run a job as the workflow does: again if a server failed; the number of failures."""
    for failures in range(JOB_ATTEMPTS - 1):
        try:
            job()
        except CatalogueError:
            continue
        return failures
    job()
    return JOB_ATTEMPTS - 1


def read_outcome(folder: Path, address: str) -> dict[str, Json]:
    """Every lock and manifest below `folder` by relative path, with checksums of all stores.

    Left out is what differs between two servers of one catalogue: the address and the time of the search.
    """
    paths = [path for path in sorted(folder.rglob("*.json")) if ".zarr" not in str(path)]
    found = {str(path.relative_to(folder)): json.loads(path.read_text().replace(address, "SERVER")) for path in paths}
    return {name: {**value, "searched": None} if "searched" in value else value for name, value in found.items()}


def read_entries(folder: Path) -> list[Entry]:
    """All lines of the ledgers below `folder`."""
    return read_ledgers(sorted(folder.rglob("*.ledger.csv")))


def has_written(folder: Path) -> bool:
    """Whether anything lies below `folder`, be it a leftover."""
    return any(path.is_file() for path in folder.rglob("*"))
