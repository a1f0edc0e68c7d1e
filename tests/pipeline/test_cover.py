"""Cloud cover over an area, measured in small images whose classes are known."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from listening import listening
from pyproj import Transformer
from rasterio.enums import Resampling

from sereno.pipeline.areas import Ground, to_ground
from sereno.pipeline.config import Area
from sereno.pipeline.cover import Cover, measure_cover, measure_covers, sample_ground
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.signing import Resolver

WEST, TOP, SIDE = 500_000, 5_010_000, 3_200
GROUND = to_ground(Area(bounds_m=(WEST, TOP - SIDE, WEST + SIDE, TOP), epsg=32632), 10)
GRASS, CLOUD, THIN, CIRRUS, SHADOW, NOTHING = 4, 9, 8, 10, 3, 0


def write_scl(
    path: Path, classes: npt.NDArray[Any], *, corner: tuple[float, float] = (WEST, TOP), epsg: int = 32632, factors: tuple[int, ...] = ()
) -> str:
    """A classification of 20 m pixels with its upper left corner at `corner`; its name."""
    shape = {"height": classes.shape[0], "width": classes.shape[1], "count": 1}
    where = {"crs": f"EPSG:{epsg}", "transform": Affine(20, 0, corner[0], 0, -20, corner[1])}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", tiled=True, blockxsize=64, blockysize=64, **shape, **where) as file:
        file.write(classes.astype(np.uint8), 1)
        if factors:
            file.build_overviews(factors, Resampling.nearest)
    return path.name


def to_scene(*hrefs: str | None) -> SceneRecord:
    """A scene of one item per classification; None stands for an item without one."""
    items = tuple(
        ItemRecord(
            item=f"item-{number}",
            collection="c",
            sensor="sentinel2-l2a",
            time="2021-06-01T10:00:00Z",
            crs="EPSG:32632",
            bbox=(9, 45, 10, 46),
            assets={} if href is None else {"SCL": AssetRecord(href=href)},
        )
        for number, href in enumerate(hrefs)
    )
    return SceneRecord(id="scene", sensor="sentinel2-l2a", time=items[0].time, items=items)


def measure(folder: Path, *hrefs: str | None, ground: Ground = GROUND, pixel_m: float = 20) -> Cover:
    return measure_cover(to_scene(*hrefs), sample_ground(ground, pixel_m), Resolver(str(folder)))


def test_cover_is_the_share_of_cloud_in_what_is_valid(tmp_path: Path) -> None:
    classes = np.random.default_rng(1).choice([NOTHING, 1, 2, SHADOW, GRASS, 5, 6, 7, THIN, CLOUD, CIRRUS, 11], (160, 160))
    cover = measure(tmp_path, write_scl(tmp_path / "scl.tif", classes))
    cloud, valid = np.isin(classes, (THIN, CLOUD, CIRRUS)).sum(), (classes != NOTHING).sum()
    assert cover.cloud_pct == round(100 * cloud / valid, 2)
    assert cover.valid_share == round(valid / classes.size, 4)
    assert [(entry.asset, entry.status, entry.step) for entry in cover.entries] == [("SCL", "used", "query")]


@pytest.mark.parametrize("only", [(THIN,), (CLOUD,), (CIRRUS,)])
def test_shadow_is_no_cloud_and_all_kinds_of_cloud_are(tmp_path: Path, only: tuple[int]) -> None:
    assert measure(tmp_path, write_scl(tmp_path / "shadow.tif", np.full((160, 160), SHADOW))).cloud_pct == 0
    assert measure(tmp_path, write_scl(tmp_path / "cloud.tif", np.full((160, 160), only[0]))).cloud_pct == 100


@pytest.mark.parametrize(("pixel_m", "seen"), [(20, GRASS), (79, 40), (80, 80), (159, 80), (160, 160), (500, 160)])
def test_the_coarsest_overview_below_the_limit_is_read(tmp_path: Path, pixel_m: float, seen: int) -> None:
    """Each level holds another class, so that the answer names the level."""
    name = write_scl(tmp_path / "scl.tif", np.full((160, 160), CLOUD), factors=(2, 4, 8))
    kept = {2: 40, 4: 80, 8: 160}
    for level, factor in enumerate(kept):
        with rasterio.open(tmp_path / name, "r+", OVERVIEW_LEVEL=level) as file:
            file.write(np.full((1, 160 // factor, 160 // factor), CLOUD if kept[factor] == seen else GRASS, np.uint8))
    if seen != GRASS:
        with rasterio.open(tmp_path / name, "r+") as file:
            file.write(np.full((1, 160, 160), GRASS, np.uint8))
    assert measure(tmp_path, name, pixel_m=pixel_m).cloud_pct == 100


@pytest.mark.parametrize(("pixel_m", "factor"), [(20, 1), (80, 4)])
def test_the_ledger_counts_the_bytes_of_the_tiles_that_were_read(tmp_path: Path, pixel_m: float, factor: int) -> None:
    """The file is not compressed: 64 x 64 bytes per tile. The area lies under 160 x 160 pixels right of and below the file's corner."""
    classes = np.random.default_rng(1).choice([GRASS, CLOUD], (512, 512))
    name = write_scl(tmp_path / "scl.tif", classes, corner=(WEST - 1000, TOP + 760), factors=(2, 4, 8))
    (entry,) = measure(tmp_path, name, pixel_m=pixel_m).entries
    columns, rows = (-(-(first + 160) // (64 * factor)) - first // (64 * factor) for first in (50, 38))
    assert entry.bytes_read == columns * rows * 64 * 64
    assert entry.seconds > 0


@pytest.mark.parametrize("corner", [(WEST, TOP), (WEST - 1000, TOP + 760), (WEST - 20, TOP + 20)])
def test_a_file_larger_than_the_area_is_read_under_the_area_alone(tmp_path: Path, corner: tuple[int, int]) -> None:
    y, x = np.mgrid[corner[1] : corner[1] - 8000 : -20, corner[0] : corner[0] + 8000 : 20]
    inside = (x >= WEST) & (x < WEST + SIDE) & (y <= TOP) & (y > TOP - SIDE)
    classes = np.where(inside, np.where(x < WEST + SIDE / 4, CLOUD, GRASS), CIRRUS)
    name = write_scl(tmp_path / "scl.tif", classes, corner=corner, factors=(2, 4, 8))
    assert measure(tmp_path, name).cloud_pct == 25
    # Overview pixels at the edge of the area may lie half outside.
    assert measure(tmp_path, name, pixel_m=160).cloud_pct == pytest.approx(25, abs=10)


def test_items_are_laid_over_each_other_in_their_order(tmp_path: Path) -> None:
    left, right = np.full((160, 160), GRASS), np.full((160, 160), CLOUD)
    left[:, 80:] = NOTHING
    names = [write_scl(tmp_path / f"{key}.tif", classes) for key, classes in (("left", left), ("right", right))]
    assert measure(tmp_path, *names)[:2] == (50, 1)
    assert measure(tmp_path, *names[::-1])[:2] == (100, 1)
    assert measure(tmp_path, names[0])[:2] == (0, 0.5)


def test_an_item_of_another_zone_is_looked_at_in_its_own_grid(tmp_path: Path) -> None:
    """The border of cloud runs along a meridian of the grid; the file in the next zone holds the same ground, turned by the convergence."""
    to_other = Transformer.from_crs(32632, 32633, always_xy=True)
    corners = to_other.transform([WEST, WEST + SIDE, WEST, WEST + SIDE], [TOP, TOP, TOP - SIDE, TOP - SIDE])
    left, top = min(corners[0]) - 400, max(corners[1]) + 400
    x, y = np.meshgrid(left + 20 * (np.arange(240) + 0.5), top - 20 * (np.arange(240) + 0.5))
    own_x, _ = to_other.transform(x, y, direction="INVERSE")
    classes = np.where(own_x < WEST + 0.3 * SIDE, CLOUD, GRASS)
    name = write_scl(tmp_path / "scl.tif", classes, corner=(left, top), epsg=32633)
    cover = measure(tmp_path, name)
    assert cover.cloud_pct == pytest.approx(30, abs=0.7)
    assert cover.valid_share == 1


def test_only_ground_inside_the_outline_counts(tmp_path: Path) -> None:
    classes = np.full((160, 160), GRASS)
    classes[:, 80:] = CLOUD
    name = write_scl(tmp_path / "scl.tif", classes)
    half = shapely.box(WEST, TOP - SIDE, WEST + SIDE / 2, TOP)
    assert measure(tmp_path, name, ground=Ground(GROUND.geobox, half))[:2] == (0, 1)
    sliver = shapely.box(WEST + SIDE - 3, TOP - 13, WEST + SIDE - 1, TOP - 11)  # between the samples
    assert measure(tmp_path, name, ground=Ground(GROUND.geobox, sliver), pixel_m=160)[:2] == (100, 1)


def test_ground_without_data_has_no_cover(tmp_path: Path) -> None:
    assert measure(tmp_path, write_scl(tmp_path / "none.tif", np.full((160, 160), NOTHING)))[:2] == (None, 0)
    assert measure(tmp_path, write_scl(tmp_path / "far.tif", np.full((160, 160), GRASS), corner=(WEST + 90_000, TOP)))[:2] == (None, 0)


@pytest.mark.parametrize(
    ("href", "status"),
    [(None, "missing"), ("absent.tif", "missing"), ("text.tif", "unreadable"), ("nowhere.tif", "unreadable")],
)
def test_a_classification_that_is_lost_costs_the_figure_and_is_named(tmp_path: Path, href: str | None, status: str) -> None:
    (tmp_path / "text.tif").write_text("no image")
    with rasterio.open(
        tmp_path / "nowhere.tif", "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8", transform=Affine(20, 0, 9, 0, -20, 9)
    ):
        pass
    good = write_scl(tmp_path / "good.tif", np.full((160, 160), CLOUD))
    cover = measure(tmp_path, good, href)
    assert cover[:2] == (None, None)
    assert [(entry.item, entry.asset, entry.status) for entry in cover.entries] == [("item-0", "SCL", "used"), ("item-1", "SCL", status)]
    assert cover.entries[1].reason


def test_scenes_measured_together_are_as_those_measured_alone(tmp_path: Path) -> None:
    names = [
        write_scl(tmp_path / f"{share}.tif", np.where(np.arange(160) < 160 * share, CLOUD, GRASS) * np.ones((160, 1)))
        for share in (0, 0.25, 0.5, 1)
    ]
    covers = measure_covers([to_scene(name) for name in names], GROUND, Resolver(str(tmp_path)), 20)
    assert [cover.cloud_pct for cover in covers] == [0, 25, 50, 100]


@pytest.fixture
def moody_server(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A server that first gives the statuses of the list, then the file asked for; its address."""
    moods: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        status = moods.pop(0) if moods else 200
        path = tmp_path / handler.path.strip("/")
        body = path.read_bytes() if status == 200 and path.is_file() else b""
        handler.send_response(status if path.is_file() else 404)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    with listening(respond) as address:
        yield address, moods


def test_what_may_heal_is_tried_again_and_then_fails_the_job(
    tmp_path: Path, moody_server: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sereno.pipeline.sensors.assets.time.sleep", lambda _: None)
    address, moods = moody_server
    scene, samples = to_scene(write_scl(tmp_path / "scl.tif", np.full((160, 160), CLOUD))), sample_ground(GROUND, 20)
    moods += [503]
    cover = measure_cover(scene, samples, Resolver(address))
    assert cover.cloud_pct == 100
    assert cover.entries[0].retries == 1
    moods += [503] * 100
    with pytest.raises(CatalogueError, match=r"item-0, SCL .* 503.*or set pipeline\.query\.cover_from to catalogue"):
        measure_cover(scene, samples, Resolver(address))
    moods.clear()
    gone = measure_cover(to_scene("gone.tif"), samples, Resolver(address))
    assert gone.entries[0].status == "missing"


def test_quality_bits_of_landsat_tell_cover_as_classes_do(tmp_path: Path) -> None:
    """Numbers of the USGS guide: clear, cloud, dilated cloud, shadow, fill."""
    bits = np.random.default_rng(1).choice([21_824, 22_280, 21_826, 23_888, 1], (160, 160)).astype(np.uint16)
    shape = {"height": 160, "width": 160, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "qa.tif", "w", driver="GTiff", **shape, transform=Affine(20, 0, WEST, 0, -20, TOP)) as file:
        file.write(bits, 1)
    scene = to_scene(None)
    item = scene.items[0].model_copy(update={"sensor": "landsat-oli", "assets": {"QA": AssetRecord(href="qa.tif")}})
    scene = scene.model_copy(update={"items": (item,)})
    cover = measure_cover(scene, sample_ground(GROUND, 20), Resolver(str(tmp_path)))
    cloud, valid = np.isin(bits, (22_280, 21_826)).sum(), (bits != 1).sum()
    assert (cover.cloud_pct, cover.valid_share) == (round(100 * cloud / valid, 2), round(valid / bits.size, 4))
    assert [entry.asset for entry in cover.entries] == ["QA"]
    without = scene.model_copy(update={"items": (item.model_copy(update={"assets": {}}),)})
    lost = measure_cover(without, sample_ground(GROUND, 20), Resolver(str(tmp_path)))
    assert [(entry.asset, entry.reason) for entry in lost.entries] == [("QA", "the item has no quality bits")]
