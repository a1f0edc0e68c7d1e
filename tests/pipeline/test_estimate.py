"""A plan from locks: bytes follow the ground, unknown sizes are said, patches are an upper limit."""

import math
from typing import Any

import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from sereno.pipeline.areas import to_bboxes
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.config import IngestSettings, PackSettings, PatchSettings, PlanSettings
from sereno.pipeline.estimate import FULL_SHARE, HEADER_BYTES, TILE_PX, describe_plans, estimate_area, sum_plans
from sereno.pipeline.pairs import AssetRecord, GridRecord, Group, ItemRecord, Lock, Pair, SceneRecord

TILE_M = 109_800
CORNER = (600_000, 5_100_000)
GSD = {band.name: band.gsd_m for band in SENTINEL2_BANDS} | {"SCL": 20, "VV": 10, "VH": 10}


def make_grid(side_px: int, left_m: float = 30_000, down_m: float = 30_000, epsg: int = 32632) -> GeoBox:
    """A square inside the tile."""
    return GeoBox((side_px, side_px), Affine(10, 0, CORNER[0] + left_m, 0, -10, CORNER[1] - down_m), f"EPSG:{epsg}")


def make_item(name: str, sensor: str, size: int | None, bbox: tuple[float, float, float, float]) -> ItemRecord:
    names = ("VV", "VH") if sensor == "sentinel1-rtc" else (*L2A_BANDS, "SCL")
    assets = {band: AssetRecord(href=f"https://example.org/{name}/{band}.tif", size_bytes=size) for band in names}
    facts: dict[str, Any] = {"item": name, "collection": "c", "sensor": sensor, "time": "2021-06-03T10:20:00Z", "crs": "EPSG:32632"}
    return ItemRecord.model_validate(facts | {"bbox": bbox, "assets": assets})


def tile_bbox() -> tuple[float, float, float, float]:
    [box] = to_bboxes(GeoBox((TILE_M // 60, TILE_M // 60), Affine(60, 0, CORNER[0], 0, -60, CORNER[1]), "EPSG:32632"))
    return box


def make_lock(grid: GeoBox, *, size: int | None = 100_000_000, catalogue: str = "https://example.org/stac", tiles: int = 1) -> Lock:
    sensors = {"s": "sentinel1-rtc", "o": "sentinel2-l2a", "c": "sentinel2-l2a"}
    scenes = {
        name: SceneRecord.model_validate(
            {"id": name, "sensor": sensor, "time": "2021-06-03T10:20:00Z"}
            | {"items": [make_item(f"{name}{n}", sensor, size, tile_bbox()) for n in range(tiles)]}
        )
        for name, sensor in sensors.items()
    }
    pair = Pair(id="p", sar="s", cloudy="o", clear="c", sar_gap_days=0.1, clear_gap_days=5)
    return Lock(area="west", catalogue=catalogue, grid=GridRecord.from_geobox(grid), scenes=scenes, pairs=(pair,), refused=())


def test_counts_are_those_of_the_lock() -> None:
    plan = estimate_area(make_lock(make_grid(1024), tiles=2), PlanSettings())
    assert (plan.scenes, plan.items, plan.pairs) == (3, 6, 1)
    assert plan.fetch.assets == 2 * (2 + 13 + 13)
    assert plan.fetch.unstated == 0


def test_elevation_models_count_where_a_scene_needs_them() -> None:
    asset = {"dem": AssetRecord(href="https://example.org/dem.tif", size_bytes=40_000_000)}
    facts: dict[str, Any] = {"sensor": "dem", "time": "2021-04-22T00:00:00Z"}
    item = ItemRecord.model_validate({**facts, "item": "d", "collection": "c", "crs": "EPSG:4326", "bbox": tile_bbox(), "assets": asset})
    lock = make_lock(make_grid(1024)).model_copy(update={"dem": SceneRecord.model_validate({**facts, "id": "dem", "items": [item]})})
    sar = lock.scenes["s"].model_copy(update={"sensor": "sentinel1-grd"})
    needed = lock.model_copy(update={"scenes": {**lock.scenes, "s": sar}})
    plain, more = (estimate_area(one, PlanSettings()).fetch for one in (lock, needed))
    assert (more.assets - plain.assets, more.unstated) == (1, 0)
    assert 0 < more.bytes - plain.bytes < 40_000_000 * FULL_SHARE
    wide = PlanSettings.model_validate({"dem": {"margin_m": 20_000}})
    assert estimate_area(needed, wide).fetch.bytes > more.bytes
    assert estimate_area(needed, PlanSettings(ingest=IngestSettings(dem="heights.tif"))).fetch == plain


def test_an_area_as_large_as_the_file_needs_its_full_resolution() -> None:
    grid = make_grid(TILE_M // 10, 0, 0)
    plan = estimate_area(make_lock(grid), PlanSettings())
    assert plan.fetch.bytes == pytest.approx(plan.fetch.assets * (FULL_SHARE * 1e8 + HEADER_BYTES), rel=0.02)


def test_bytes_follow_the_ground_and_the_tiles_around_it() -> None:
    settings = PlanSettings(ingest=IngestSettings(bands=("B04",)))
    fetched = estimate_area(make_lock(make_grid(2000)), settings).fetch.bytes
    ten, twenty = ((20_000 + TILE_PX * gsd) ** 2 / TILE_M**2 for gsd in (10, 20))
    sar = min(1, ((20_320 + TILE_PX * 10) / TILE_M) ** 2 / 0.73)
    expected = 1e8 * FULL_SHARE * (2 * ten + 2 * twenty + 2 * sar) + 6 * HEADER_BYTES
    # The tile's box in degrees is a little larger than the tile, which stands askew in it.
    assert fetched == pytest.approx(expected, rel=0.06)
    assert fetched < expected


def test_left_out_bands_are_not_fetched() -> None:
    few, all_bands = (
        estimate_area(make_lock(make_grid(1024)), PlanSettings(ingest=IngestSettings(bands=bands))) for bands in (("B02", "B03"), ())
    )
    assert (few.fetch.assets, all_bands.fetch.assets) == (2 + 2 * 3, 2 + 2 * 13)
    assert few.disk.scenes < all_bands.disk.scenes
    assert few.disk.dataset < all_bands.disk.dataset


def test_what_no_catalogue_states_is_typical_and_said() -> None:
    plan = estimate_area(make_lock(make_grid(TILE_M // 10, 0, 0), size=None), PlanSettings())
    assert plan.fetch.unstated == plan.fetch.assets == 28
    # One whole Sentinel-2 L2A item of Earth Search holds 1.0 GB in these bands, three quarters of it at full resolution.
    assert plan.fetch.bytes / 1e9 == pytest.approx(2 * 0.75 * (4 * 0.158 + 6 * 0.0555 + 2 * 0.0065) + 2 * 0.75 * 0.36 / 0.73, rel=0.2)
    text = "\n".join(describe_plans([plan]))
    assert "28 of 28 files state no size" in text
    assert "~" in text
    assert "28 of 28" not in "\n".join(describe_plans([estimate_area(make_lock(make_grid(1024)), PlanSettings())]))


def test_files_in_a_folder_need_no_request() -> None:
    lock = make_lock(make_grid(1024), catalogue="results/simulate")
    items = {
        name: scene.model_copy(
            update={
                "items": tuple(
                    item.model_copy(update={"assets": {key: AssetRecord(href=f"{key}.tif", size_bytes=9) for key in item.assets}})
                    for item in scene.items
                )
            }
        )
        for name, scene in lock.scenes.items()
    }
    assert estimate_area(lock.model_copy(update={"scenes": items}), PlanSettings()).fetch.requests == 0
    assert estimate_area(make_lock(make_grid(1024)), PlanSettings()).fetch.requests > 28


def test_patches_are_the_windows_of_every_pair_and_disk_follows_them() -> None:
    grid = GeoBox((1680, 1680), Affine(10, 0, 498_400, 0, -10, 5_056_800), "EPSG:32632")
    plan = estimate_area(make_lock(grid), PlanSettings())
    assert plan.patches == 36  # three by three blocks of two by two
    half = estimate_area(make_lock(grid), PlanSettings(patch=PatchSettings(size_px=128, block_patches=4)))
    assert (half.patches, half.disk.dataset) == (144, pytest.approx(plan.disk.dataset))
    dense = estimate_area(make_lock(grid), PlanSettings(pack=PackSettings(codec="zstd")))
    assert dense.disk.dataset < plan.disk.dataset == plan.disk.patches == dense.disk.patches


def test_an_area_across_180_degrees_costs_what_it_costs_elsewhere() -> None:
    """One square of ground at the seam, seen in an item that crosses it too, and the same three degrees further west."""
    costs, seams = [], []
    for shift in (0, -3):
        boxes = (179.0 + shift, -17.5, (-179.0 if shift == 0 else 181.0 + shift), -16.5)
        middle = 179.99 + shift
        left = 500_000 + (middle - 177) * 106_400  # zone 60 has its middle at 177 E
        grid = GeoBox((1000, 1000), Affine(10, 0, round(left, -1), 0, -10, 8_120_000), "EPSG:32760")
        lock = make_lock(grid)
        scenes = {
            name: scene.model_copy(update={"items": (scene.items[0].model_copy(update={"bbox": boxes}),)})
            for name, scene in lock.scenes.items()
        }
        costs.append(estimate_area(lock.model_copy(update={"scenes": scenes}), PlanSettings()).fetch.bytes)
        seams.append(len(to_bboxes(grid)))
    assert seams == [2, 1]
    assert costs[0] == pytest.approx(costs[1], rel=0.02)  # meridians lean more at the edge of the zone
    assert costs[0] > 28 * HEADER_BYTES


@settings(max_examples=25, deadline=None)
@given(left=st.integers(-200, 300), down=st.integers(-200, 300), side=st.integers(64, 4000), size=st.none() | st.integers(1, 10**9))
def test_no_plan_is_negative_or_fetches_more_than_all_files(left: int, down: int, side: int, size: int | None) -> None:
    plan = estimate_area(make_lock(make_grid(side, 1000 * left, 1000 * down), size=size), PlanSettings())
    assert plan.fetch.bytes >= 0
    assert all(part >= 0 and math.isfinite(part) for part in plan.disk)
    if size is not None:
        assert plan.fetch.bytes <= 28 * size


def test_the_sum_is_that_of_the_areas_and_is_shown_where_there_are_several() -> None:
    one, two = (estimate_area(make_lock(make_grid(side)), PlanSettings()) for side in (1024, 2048))
    total = sum_plans([one, two])
    assert total.fetch.bytes == one.fetch.bytes + two.fetch.bytes
    assert (total.scenes, total.patches) == (6, one.patches + two.patches)
    assert sum(total.disk) == pytest.approx(sum(one.disk) + sum(two.disk))
    assert [line.split()[0] for line in describe_plans([one, two])[:4]] == ["area", "west", "west", "total"]
    assert "total" not in "\n".join(describe_plans([one]))


GAOFEN: dict[str, tuple[str, ...]] = {
    "gaofen3": ("HH", "rpc-HH", "HV", "rpc-HV", "incidence"),
    "gaofen-pms": ("image-1", "rpc-1", "PAN", "rpc-PAN"),
    "gaofen-wfv": ("image-1", "rpc-1", "image-2", "rpc-2", "image-3", "rpc-3"),
}


def make_gaofen_lock(optical: str = "gaofen-pms", ending: str = ".tar.gz") -> Lock:
    """A pair of Gaofen of 1000 x 1000 pixels of 8 m; images have 500 MB, coefficients 4 kB."""
    scenes = {}
    for name, sensor in (("s", "gaofen3"), ("o", optical), ("c", optical)):
        assets = {
            key: {"href": f"{name}{ending}/{key}.tiff", "size_bytes": 4000 if key.startswith(("rpc", "inc", "MTD")) else 500_000_000}
            for key in (*GAOFEN[sensor], "MTD")
        }
        facts = {"sensor": sensor, "time": "2021-06-03T10:20:00Z"}
        item = facts | {"item": name, "collection": "c", "crs": "", "bbox": tile_bbox(), "assets": assets}
        scenes[name] = SceneRecord.model_validate(facts | {"id": name, "items": [item]})
    grid = GeoBox((1000, 1000), Affine(8, 0, 630_000, 0, -8, 5_070_000), "EPSG:32632")
    pair = Pair(id="p", sar="s", cloudy="o", clear="c", sar_gap_days=0.1, clear_gap_days=5)
    return Lock(area="a", catalogue="products", grid=GridRecord.from_geobox(grid), scenes=scenes, pairs=(pair,), refused=())


def test_images_of_gaofen_are_read_whole_and_pan_only_if_asked_for() -> None:
    plan, with_pan = (
        estimate_area(make_gaofen_lock(), PlanSettings(ingest=IngestSettings(bands=bands)))
        for bands in ((), ("B1", "B2", "B3", "B4", "PAN"))
    )
    assert (plan.fetch.assets, plan.fetch.unstated, plan.fetch.requests) == (6 + 2 * 3, 0, 0)
    assert plan.fetch.bytes == pytest.approx(4 * 500e6, rel=1e-3)
    assert with_pan.fetch.bytes == pytest.approx(6 * 500e6, rel=1e-3)


@pytest.mark.parametrize(("ending", "unpacked"), [(".tar.gz", 1e9), (".zip", 1e9), ("", 0)])
def test_archives_need_room_for_the_largest_scene_that_they_unpack_to(ending: str, unpacked: float) -> None:
    plan = estimate_area(make_gaofen_lock(ending=ending), PlanSettings())
    assert plan.unpacked == pytest.approx(unpacked, rel=1e-3)
    assert sum_plans([plan, plan]).unpacked == plan.unpacked  # one after the other
    assert any("TMPDIR" in line for line in describe_plans([plan])) == bool(unpacked)


def test_disk_follows_bands_and_images_that_are_kept() -> None:
    pms, wfv = (estimate_area(make_gaofen_lock(optical), PlanSettings()).disk for optical in ("gaofen-pms", "gaofen-wfv"))
    values = 0.69 * 2 * 1e6  # stored bytes of a band
    sar = 2 * 0.71 * 2 * 1e6
    assert pms.pairs == pytest.approx(2 * 4 * values + sar, rel=0.15)
    assert wfv.pairs - pms.pairs == pytest.approx(2 * 4 * values, rel=0.01)
    # Beside data: images askew to the grid, those of WFV at twice its pixel, and two numbers of relief for each of them (tile).
    kept, relief = 1.4, 2 * 4 * 0.8 * 1e6
    expected = 2 * (4 * values * (1 + kept) + relief) + sar * (1.032**2 + kept * 1.5**2) + relief
    assert pms.scenes == pytest.approx(expected, rel=0.03)
    expected = 2 * (8 * values * (1 + kept / 4) + 3 * relief) + sar * (1.032**2 + kept * 1.5**2) + relief
    assert wfv.scenes == pytest.approx(expected, rel=0.03)


def test_every_sky_of_one_scene_is_a_pair_and_the_scene_is_fetched_once() -> None:
    lock = make_lock(make_grid(1680))
    clear = lock.pairs[0].clear
    skies = tuple(lock.pairs[0].model_copy(update={"id": f"p-sky{sky}", "cloudy": clear, "sky": sky}) for sky in (1, 2, 3))
    real = lock.model_copy(update={"scenes": {name: scene for name, scene in lock.scenes.items() if name != lock.pairs[0].cloudy}})
    plans = [estimate_area(real.model_copy(update={"pairs": skies[:count]}), PlanSettings()) for count in (1, 3)]
    assert [plan.pairs for plan in plans] == [1, 3]
    assert plans[1].patches == 3 * plans[0].patches
    assert plans[0].fetch == plans[1].fetch


def test_a_group_counts_its_bands_on_their_own_pixels() -> None:
    whole = make_lock(make_grid(1024))
    fine = whole.scenes["o"].model_copy(update={"id": "pan", "bands": ("B02", "B03", "B04", "B08")})
    coarse = whole.scenes["o"].model_copy(update={"id": "ms", "bands": ("B05", "B11"), "zoom": 2})
    group = Group(id="g", scenes={"pan": "pan", "ms": "ms"})
    facts = {"task": "pansharpening", "pairs": (), "groups": (group,), "scenes": {"pan": fine, "ms": coarse}}
    plan = estimate_area(whole.model_copy(update=facts), PlanSettings())
    assert (plan.scenes, plan.pairs, plan.fetch.assets) == (2, 1, (4 + 1) + (2 + 1))
    assert plan.patches == estimate_area(whole, PlanSettings()).patches
    alone = estimate_area(
        whole.model_copy(update=facts | {"scenes": {"pan": fine, "ms": coarse.model_copy(update={"zoom": 1})}}), PlanSettings()
    )
    assert plan.disk.scenes < alone.disk.scenes
    assert plan.disk.dataset < alone.disk.dataset


def test_a_series_costs_its_scenes_in_every_store() -> None:
    plain = make_lock(make_grid(1680))
    around = {name: plain.scenes["c"].model_copy(update={"id": name}) for name in ("b", "a")}
    fields = {"before": "b", "after": "a", "before_gap_days": -5.0, "after_gap_days": 9.0}
    series = plain.model_copy(update={"scenes": plain.scenes | around, "pairs": (plain.pairs[0].model_copy(update=fields),)})
    one, two = (estimate_area(lock, PlanSettings()) for lock in (plain, series))
    assert (one.scenes, two.scenes, two.fetch.assets - one.fetch.assets) == (3, 5, 2 * 13)
    assert (one.pairs, one.patches) == (two.pairs, two.patches)
    assert two.disk.masks == 2 * one.disk.masks
    optical = (one.disk.pairs - estimate_area(plain.model_copy(update={"pairs": ()}), PlanSettings()).disk.pairs) / 2
    assert optical < two.disk.pairs - one.disk.pairs < 2 * optical + 1e-6, "two optical images more beside SAR and two"
    assert 1.5 < two.disk.dataset / one.disk.dataset < 2
