"""A catalogue of elevation models for tests: two tiles in degrees that meet in the middle of an area, their heights a plane.

Enters: a folder. Leaves: a static catalogue with files, as Copernicus DEM has them: no geoid in the files, one asset `data`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from sereno.pipeline.pairs import GridRecord, ItemRecord, Lock, SceneRecord

STEP_DEG: Final = 1 / 3600
"""Pixel of the tiles."""
MEET_DEG: Final = 9.02
"""Longitude at which the two tiles meet."""
NORTH_DEG: Final = 45.2
"""Upper edge of both."""
SIZE: Final = (252, 144)
"""Rows and columns of each."""
GRID: Final = GeoBox((200, 300), Affine(10, 0, 500_000, 0, -10, 5_002_000), "EPSG:32632")
"""An area over both tiles, far from their outer edges."""
WEST, EAST = "DEM_N45_E008", "DEM_N45_E009"
COLLECTION: Final = "cop-dem-glo-30"


def compute_plane(longitudes: npt.NDArray[Any], latitudes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Heights of the plane, metres."""
    return np.asarray(200 + 1000 * (longitudes - 9) + 500 * (latitudes - 45))


def compute_expected(grid: GeoBox) -> npt.NDArray[Any]:
    """Heights of the plane at the pixels of `grid` (y, x)."""
    rows, columns = np.mgrid[: grid.shape.y, : grid.shape.x] + 0.5
    x, y = grid.transform * (columns, rows)
    return compute_plane(*Transformer.from_crs(str(grid.crs), 4326, always_xy=True).transform(x, y))


def write_tile(path: Path, west_deg: float, **options: Any) -> None:
    """One tile as a GeoTIFF with blocks of 64 pixels."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    heights = compute_plane(west_deg + columns * STEP_DEG, NORTH_DEG - rows * STEP_DEG)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": SIZE[0], "width": SIZE[1], "crs": "EPSG:4326"}
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(
        path, "w", **{**profile, **layout, **options}, transform=Affine(STEP_DEG, 0, west_deg, 0, -STEP_DEG, NORTH_DEG)
    ) as f:
        f.write(heights.astype(np.float32), 1)


def make_item(name: str, west_deg: float) -> dict[str, Any]:
    """Item of a tile, in the words of Planetary Computer."""
    east, south = west_deg + SIZE[1] * STEP_DEG, NORTH_DEG - SIZE[0] * STEP_DEG
    ring = [[west_deg, south], [east, south], [east, NORTH_DEG], [west_deg, NORTH_DEG], [west_deg, south]]
    asset = {"href": f"../assets/{name}.tif", "type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "bbox": [west_deg, south, east, NORTH_DEG],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": "2021-04-22T00:00:00Z", "platform": "TanDEM-X", "gsd": 30, "proj:epsg": 4326},
        "assets": {"data": asset, "tilejson": {"href": "https://example.com/tilejson.json", "type": "application/json"}},
        "links": [],
    }


PLACES: Final = {WEST: MEET_DEG - SIZE[1] * STEP_DEG, EAST: MEET_DEG}
"""Left edges by item, degrees."""


def write_catalogue(folder: Path, names: tuple[str, ...] = (WEST, EAST)) -> Path:
    """A catalogue with those tiles."""
    plain = {"stac_version": "1.0.0", "description": "d"}
    extent = {"spatial": {"bbox": [[8, 44, 10, 46]]}, "temporal": {"interval": [["2021-04-22T00:00:00Z", None]]}}
    for part in (COLLECTION, "assets"):
        (folder / part).mkdir(parents=True)
    for name in names:
        (folder / COLLECTION / f"{name}.json").write_text(json.dumps(make_item(name, PLACES[name])))
        write_tile(folder / "assets" / f"{name}.tif", PLACES[name])
    links = [{"rel": "item", "href": f"{name}.json"} for name in names]
    collection = {**plain, "type": "Collection", "id": COLLECTION, "license": "other", "extent": extent, "links": links}
    (folder / COLLECTION / "collection.json").write_text(json.dumps(collection))
    links = [{"rel": "child", "href": f"{COLLECTION}/collection.json"}]
    (folder / "catalog.json").write_text(json.dumps({**plain, "type": "Catalog", "id": "w", "links": links}))
    return folder


def make_lock(path: Path, dem: SceneRecord | None, grid: GeoBox = GRID) -> Path:
    """A lock of the area `west` with those elevation models and one scene that nothing reads."""
    item = ItemRecord(item="i", collection="c", sensor="gaofen3", time="2021-06-01T00:00:00Z", crs="", bbox=(9, 45, 9.1, 45.2), assets={})
    scene = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    lock = Lock(area="west", catalogue="x", grid=GridRecord.from_geobox(grid), scenes={"s": scene}, dem=dem, pairs=(), refused=())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lock.to_json())
    return path
