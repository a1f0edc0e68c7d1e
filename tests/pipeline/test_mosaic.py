"""Items laid together: the first valid pixel stays, shares add up, and zones and the 180th meridian leave no seam."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from rasters import write_raster

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.geometry import WARP_TOLERANCE_PX
from sereno.pipeline.mosaic import DIFFERS, Part, find_place, lay_items, lose_item, to_entry, to_reading, widen_place
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord, Sensor
from sereno.pipeline.scene import Plate, geobox_of, plates_of
from sereno.pipeline.sensors import sentinel1, sentinel2
from sereno.pipeline.signing import Resolver

GRID = GeoBox((40, 50), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
Array = npt.NDArray[Any]


def make_record(name: str, sensor: Sensor = "sentinel2-l2a", **facts: Any) -> ItemRecord:
    known = {"collection": "c", "time": "2021-06-03T10:00:00Z", "crs": "", "bbox": (8, 45, 9, 46), "assets": {}}
    return ItemRecord(item=name, sensor=sensor, **{**known, **facts})


def make_scene(*items: ItemRecord) -> SceneRecord:
    return SceneRecord(id="s", sensor=items[0].sensor, time=items[0].time, items=items)


def make_reader(valid: dict[str, Array], offsets: dict[str, int] | None = None) -> Callable[[ItemRecord, GeoBox, Array], Part]:
    """Items whose every pixel says who it is from: band 0 holds the item's number, band 1 the pixel's."""
    numbers = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)

    def read(item: ItemRecord, geobox: GeoBox, wanted: Array) -> Part:
        place = find_place(wanted)
        values = np.stack([np.full((40, 50), int(item.item[1:]), np.uint16), numbers])[:, *place]
        facts = {"offset": (offsets or {}).get(item.item, 0), "offset_reason": "r", "calibration": "c", "n_clamped": 1}
        return Part(place, values, (valid[item.item] & wanted)[place], facts, (to_entry(item, "B02", "used"),), values[1].astype(np.uint8))

    return read


def test_the_first_valid_pixel_stays_and_shares_add_up() -> None:
    rng = np.random.default_rng(0)
    valid = {f"i{number}": rng.random((40, 50)) < 0.5 for number in range(1, 5)}
    mosaic = lay_items([make_record(name) for name in valid], GRID, make_reader(valid))
    expected = np.zeros((40, 50), int)
    for name, mask in valid.items():
        expected[(expected == 0) & mask] = int(name[1:])
    np.testing.assert_array_equal(mosaic.valid, expected > 0)
    np.testing.assert_array_equal(mosaic.values[0][mosaic.valid], expected[mosaic.valid])
    numbers = np.arange(2000).reshape(40, 50)
    np.testing.assert_array_equal(mosaic.values[1][mosaic.valid], numbers[mosaic.valid])
    assert mosaic.classes is not None
    np.testing.assert_array_equal(mosaic.classes[mosaic.valid], numbers[mosaic.valid] % 256)
    for number, item in enumerate(mosaic.items, 1):
        assert item["share"] == pytest.approx((expected == number).mean())


def make_plate(number: int, layer: int = 0) -> Plate:
    values = np.full((2, 3, 4), number, np.uint16)
    return Plate(("B02", "B03"), values, np.ones((3, 4), bool), np.zeros((2, 2, 2)), None, (1.0, 1.0), layer)


@pytest.mark.parametrize("min_valid", [0.0, 1.0])
def test_plates_of_items_follow_each_other_and_a_refused_scene_has_none(min_valid: float) -> None:
    half = np.zeros((40, 50), bool)
    half[:20] = True
    read_known = make_reader({"i1": half, "i2": half})

    def read(item: ItemRecord, geobox: GeoBox, wanted: Array) -> Part:
        number = int(item.item[1:])
        return read_known(item, geobox, wanted)._replace(plates=(make_plate(number), make_plate(10 * number, layer=1)))

    items = make_record("i1"), make_record("i2")
    mosaic = lay_items(items, GRID, read)
    assert [(plate.values[0, 0, 0], plate.layer) for plate in mosaic.plates] == [(1, 0), (10, 1), (2, 2), (20, 3)]
    settings = IngestSettings(min_valid=min_valid)
    scene = to_reading(make_scene(*items), mosaic, GRID, bands=("B02", "B03"), settings=settings).scene
    expected = 0 if min_valid else 4
    assert (len(plates_of(scene)), scene.attrs["provenance"]["n_plates"]) == (expected, expected)


def test_a_place_grows_to_the_edges_of_the_grid_at_most() -> None:
    assert widen_place((slice(0, 5), slice(20, 45)), 8, (40, 50)) == (slice(0, 13), slice(12, 50))


@pytest.mark.parametrize("without", ["i1", "i2", "i3"])
def test_ground_of_an_item_without_classes_has_class_zero(without: str) -> None:
    """Even if another item has a class there: its ground is not what was laid."""
    rng = np.random.default_rng(1)
    valid = {f"i{number}": rng.random((40, 50)) < 0.5 for number in range(1, 4)}
    read_known = make_reader(valid)

    def read(item: ItemRecord, geobox: GeoBox, wanted: Array) -> Part:
        part = read_known(item, geobox, wanted)
        return part._replace(classes=None if item.item == without else np.full(part.valid.shape, 9, np.uint8))

    mosaic = lay_items([make_record(name) for name in valid], GRID, read)
    assert mosaic.classes is not None
    expected = np.where(mosaic.values[0] == int(without[1:]), 0, 9)
    np.testing.assert_array_equal(mosaic.classes[mosaic.valid], expected[mosaic.valid])


def test_an_item_is_read_only_where_ground_is_missing_and_one_that_adds_nothing_not_at_all() -> None:
    left, corner = np.zeros((40, 50), bool), np.ones((40, 50), bool)
    left[:, :30] = True
    seen = []

    def read(item: ItemRecord, geobox: GeoBox, wanted: Array) -> Part:
        seen.append((item.item, find_place(wanted)))
        return make_reader({"i1": left, "i2": corner, "i3": corner})(item, geobox, wanted)

    mosaic = lay_items([make_record(name) for name in ("i1", "i2", "i3")], GRID, read)
    assert seen == [("i1", (slice(0, 40), slice(0, 50))), ("i2", (slice(0, 40), slice(30, 50)))]
    last = mosaic.entries[-1]
    assert (last.item, last.asset, last.status, last.reason) == ("i3", "", "duplicate", "the area is covered by i1, i2 already")


def test_what_the_items_do_not_agree_on_is_said_per_item() -> None:
    half = np.zeros((40, 50), bool)
    half[:20] = True
    items = make_record("i1", processing_baseline="03.00"), make_record("i2", processing_baseline="04.00")
    for offsets, offset, reason in (({"i2": -1000}, None, DIFFERS), ({}, 0, "r")):
        mosaic = lay_items(items, GRID, make_reader({"i1": half, "i2": ~half}, offsets))
        reading = to_reading(make_scene(*items), mosaic, GRID, bands=("B02", "B03"), settings=IngestSettings())
        facts = reading.scene.attrs["provenance"]
        assert (facts["item"], facts["offset"], facts["offset_reason"], facts["processing_baseline"]) == ("i1+i2", offset, reason, None)
        assert [item["offset"] for item in facts["items"]] == [0, offsets.get("i2", 0)]
        assert [item["share"] for item in facts["items"]] == [0.5, 0.5]
        assert (facts["n_clamped"], facts["valid_share"], facts["refused"]) == (2, 1.0, None)


def test_a_lost_item_leaves_the_ground_to_the_next_one_and_a_scene_of_lost_ones_is_refused() -> None:
    whole = np.ones((40, 50), bool)

    def read(item: ItemRecord, geobox: GeoBox, wanted: Array) -> Part:
        if item.item != "i2":
            return lose_item(item, "gone", n_bands=2, dtype=np.uint16, asset="B03")
        return make_reader({"i2": whole})(item, geobox, wanted)

    lost, good = make_record("i1"), make_record("i2")
    mosaic = lay_items((lost, good), GRID, read)
    assert mosaic.valid.all()
    assert mosaic.lost == ({"item": "i1", "asset": "B03", "reason": "gone"},)
    assert [(entry.item, entry.asset, entry.status) for entry in mosaic.entries] == [
        ("i1", "B03", "missing"),
        ("i1", "", "missing"),
        ("i2", "B02", "used"),
        ("i2", "", "used"),
    ]
    mosaic = lay_items((lost,), GRID, read)
    reading = to_reading(make_scene(lost), mosaic, GRID, bands=("B02", "B03"), settings=IngestSettings(min_valid=0))
    assert reading.scene.attrs["provenance"]["refused"].endswith("the first: item i1, B03: gone")


# Two zones meet, and there is a smooth pattern on the ground: what is read must be that pattern, whoever it comes from.
PLACES = {
    "two zones": ("EPSG:32632", "EPSG:32633", 12.0, 47.0),
    "two zones south": ("EPSG:32718", "EPSG:32719", -72.0, -33.0),
    "180 degrees": ("EPSG:32660", "EPSG:32601", 180.0, 66.0),
    "180 degrees, grid in the east": ("EPSG:32701", "EPSG:32760", 180.0, -17.0),
}
SIZE_PX = 120


def pattern(longitude: Array, latitude: Array, centre: tuple[float, float]) -> Array:
    """A smooth function of the ground, the same on both sides of the 180th meridian: waves of about 600 m around 3000."""
    east = (longitude - centre[0] + 180) % 360 - 180
    east_m, north_m = east * 111_320 * np.cos(np.radians(centre[1])), (latitude - centre[1]) * 111_320
    return 3000 + 1000 * np.sin(east_m / 600) * np.cos(north_m / 700) + 0.1 * east_m


def centres(geobox: GeoBox) -> tuple[Array, Array]:
    columns, rows = np.meshgrid(np.arange(geobox.shape.x) + 0.5, np.arange(geobox.shape.y) + 0.5)
    affine = geobox.transform
    return affine.c + affine.a * columns, affine.f + affine.e * rows


def render(geobox: GeoBox, centre: tuple[float, float]) -> Array:
    x, y = centres(geobox)
    longitude, latitude = transform(geobox.crs.to_wkt(), "EPSG:4326", x.ravel(), y.ravel())
    return pattern(np.array(longitude), np.array(latitude), centre).reshape(x.shape)


def around(crs: str, centre: tuple[float, float], size_m: float, step: float = 10) -> GeoBox:
    """A square grid in `crs` around a point, its corner on a multiple of 60 m."""
    (x,), (y,) = transform("EPSG:4326", crs, [centre[0]], [centre[1]])
    left, top = (round((number + sign * size_m / 2) / 60) * 60 for number, sign in ((x, -1), (y, 1)))
    side = round(size_m / step)
    return GeoBox((side, side), Affine(step, 0, left, 0, -step, top), crs)


def write(path: Path, geobox: GeoBox, values: Array) -> AssetRecord:
    return AssetRecord(href=str(write_raster(path, values, geobox)))


def make_tile(folder: Path, name: str, crs: str, where: tuple[str, float, float]) -> ItemRecord:
    """The half of the ground on one side of the meridian and 200 m of the other, in the zone `crs`, offset and all."""
    side, longitude, latitude = where
    assets = {}
    for band, step in (("B02", 10), ("B05", 20), ("SCL", 20)):
        geobox = around(crs, (longitude, latitude), 3000, step)
        values = render(geobox, (longitude, latitude))
        x, y = centres(geobox)
        degrees, _ = transform(crs, "EPSG:4326", x.ravel(), y.ravel())
        east_m = (((np.array(degrees) - longitude + 180) % 360 - 180) * 111_320 * np.cos(np.radians(latitude))).reshape(x.shape)
        seen = east_m < 200 if side == "west" else east_m > -200
        stored = np.where(seen, np.rint(values + 1000), 0).astype(np.uint16) if band != "SCL" else np.where(seen, 4, 0).astype(np.uint8)
        assets[band] = write(folder / f"{name}-{band}.tif", geobox, stored)
    return make_record(name, crs=crs, assets=assets, processing_baseline="05.09")


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("first", [0, 1])
def test_an_area_across_zones_or_the_180th_meridian_is_one_seamless_grid(tmp_path: Path, place: str, first: int) -> None:
    own, other, longitude, latitude = PLACES[place]
    sides = {own: "west", other: "east"} if "east" not in place else {own: "east", other: "west"}
    items = [make_tile(tmp_path, f"T{crs[-2:]}", crs, (sides[crs], longitude, latitude)) for crs in (own, other)]
    area = around(own, (longitude, latitude), SIZE_PX * 10)
    settings = IngestSettings(bands=("B02", "B05"), attempts=1)
    scene = sentinel2.read_scene(make_scene(*(items[::-1] if first else items)), area, settings, Resolver("/")).scene
    assert geobox_of(scene) == area
    assert scene["valid"].values.all(), "a hole"
    assert (scene["scl"].values == 4).all()
    shares = [item["share"] for item in scene.attrs["provenance"]["items"]]
    assert min(shares) > 0.2
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    expected = render(area, (longitude, latitude))
    # The steepest slope is 1000 / 600 m per metre. A pixel of 20 m is repeated: up to 7 m off its centre. Interpolation between pixels of
    # 10 m adds step^2 / 8 times the curvature; the rest is rounding.
    slope, curvature = 1000 / 600 + 0.1, 1000 * (1 / 600**2 + 1 / 700**2)
    assert np.abs(scene["data"].sel(band="B02") - expected).max() < 1 + 10**2 / 4 * curvature + 0.05 * slope
    assert np.abs(scene["data"].sel(band="B05") - expected).max() < 1 + 20**2 / 4 * curvature + 7.5 * slope


def test_classes_of_the_next_zone_are_those_of_the_nearest_pixel(tmp_path: Path) -> None:
    """Classes are names: between water (6) and thin cirrus (10) nothing is cloud (8). A board of the two must stay one of the two.

    At each centre it is the class of the pixel in which that centre lies, unless an edge is nearer than the warp is exact.
    """
    own, other, longitude, latitude = PLACES["two zones"]
    item = make_tile(tmp_path, "T33", other, ("east", longitude, latitude))
    area, board = around(own, (longitude, latitude), 300), around(other, (longitude, latitude), 3000, 20)
    classes = np.where(np.indices(board.shape).sum(axis=0) % 2, 6, 10).astype(np.uint8)
    item.assets["SCL"] = write(tmp_path / "T33-SCL.tif", board, classes)
    settings = IngestSettings(bands=("B02",), attempts=1, min_valid=0.01)
    scene = sentinel2.read_scene(make_scene(item), area, settings, Resolver("/")).scene
    x, y = centres(area)
    there_x, there_y = (np.array(values) for values in transform(own, other, x.ravel(), y.ravel()))
    columns, rows = (there_x - board.transform.c) / 20, (board.transform.f - there_y) / 20
    expected = classes[rows.astype(int), columns.astype(int)].reshape(x.shape)
    from_edge = np.minimum(*(np.abs(places - np.rint(places)) for places in (rows, columns))).reshape(x.shape)
    sure = from_edge > WARP_TOLERANCE_PX / 2 + 1e-6
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(scene["scl"].values[sure], expected[sure])
    assert set(np.unique(scene["scl"])) == {6, 10}


@pytest.mark.parametrize("place", list(PLACES))
def test_sar_slices_of_two_zones_are_one_seamless_scene_in_power(tmp_path: Path, place: str) -> None:
    own, other, longitude, latitude = PLACES[place]
    items = []
    for crs, keep in ((own, slice(0, 170)), (other, slice(130, 300))):  # an upper and a lower slice
        geobox = around(crs, (longitude, latitude), 3000)
        values = (render(geobox, (longitude, latitude)) / 10_000).astype(np.float32)
        kept = np.zeros(values.shape, bool)
        kept[keep] = True
        asset = write(tmp_path / f"{crs[-5:]}.tif", geobox, np.where(kept, values, 0))
        items.append(make_record(f"S{crs[-2:]}", "sentinel1-rtc", crs=crs, assets={"VV": asset}))
    area = around(own, (longitude, latitude), SIZE_PX * 10)
    scene = sentinel1.read_scene(make_scene(*items), area, IngestSettings(margin_px=4, attempts=1), Resolver("/")).scene
    assert geobox_of(scene) == area.pad(4)
    assert scene["valid"].values.all()
    expected = 10 * np.log10(render(area.pad(4), (longitude, latitude)) / 10_000)
    assert np.abs(scene["data"].sel(sar_band="VV") / 100 - expected).max() < 0.005 + 0.01
    assert min(item["share"] for item in scene.attrs["provenance"]["items"]) > 0.2


def test_sar_slices_of_one_native_grid_stay_on_it(tmp_path: Path) -> None:
    power = np.random.default_rng(3).gamma(4.4, 0.02, (100, 100)).astype(np.float32)
    items = []
    for name, rows in (("S1", slice(0, 60)), ("S2", slice(40, 100))):
        kept = np.zeros(power.shape, np.float32)
        kept[rows] = power[rows] if name == "S1" else power[rows] * 2
        geobox = GeoBox((100, 100), Affine(10, 0, 500_003, 0, -10, 5_000_004), "EPSG:32632")
        items.append(make_record(name, "sentinel1-rtc", crs="EPSG:32632", assets={"VH": write(tmp_path / f"{name}.tif", geobox, kept)}))
    area = GeoBox((80, 60), Affine(10, 0, 500_200, 0, -10, 4_999_900), "EPSG:32632")
    scene = sentinel1.read_scene(make_scene(*items), area, IngestSettings(margin_px=2, attempts=1), Resolver("/")).scene
    own = geobox_of(scene)
    row, column = round((5_000_004 - own.transform.f) / 10), round((own.transform.c - 500_003) / 10)
    expected = np.where(np.arange(100) < 60, 1, 2)[:, None] * power
    seen = scene["data"].values[0] / 100
    np.testing.assert_allclose(seen, 10 * np.log10(expected[row : row + own.shape.y, column : column + own.shape.x]), atol=0.0051)
    assert tuple(scene["sar_band"].values) == ("VH",)
