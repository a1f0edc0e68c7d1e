"""From the catalogue to patches where scenes are laid together from pieces in two UTM zones: across their border, and across 180 degrees.

The ground is a formula of longitude and latitude, so every pixel has a truth and every bilinear interpolation a bound. What bounds alone
would hide is looked for by itself: a hole beside the joint, and a step across it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from affine import Affine
from formula_world import (
    BAND_M,
    BASELINES,
    CLOUD_CLASS,
    CLOUDY_FROM,
    TEXTURE_M,
    FormulaWorld,
    compute_opacity,
    write_world,
)
from odc.geo.geobox import GeoBox
from steps import PATCH, read_entries, run_ingest, run_query, run_rest

from sereno.pipeline.config import IngestSettings, QuerySettings
from sereno.pipeline.geometry import WARP_TOLERANCE_PX
from sereno.pipeline.pairs import Lock
from sereno.pipeline.radiometry import centi_db_to_power
from sereno.pipeline.scene import geobox_of
from sereno.pipeline.store import open_dataset, read_manifest

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

WORLDS = (
    FormulaWorld("zones", (12.0, 45.3), (32632, 32633), "west", "earth-search"),
    FormulaWorld("dateline", (180.0, 66.2), (32660, 32601), "east", "planetary-computer", ("split", "beyond", "wrapped")),
)
INGEST = IngestSettings(bands=tuple(BAND_M))
REACH_M = 90.0
"""So far from an end of the data a pixel of 60 m, turned against the grid, may have a neighbour without data: its diagonal."""
CELL_M = 45.0
"""The centre of a pixel of 60 m lies at most so far from what it shows."""
ROUNDED_DN = 0.5
CENTI_DB_SHARE = np.log(10) / 10 * 0.005
"""Rounding to hundredths of a decibel, as a share of the power."""


@dataclass(frozen=True)
class Way:
    """A world and what became of it."""

    world: FormulaWorld
    """The truth."""
    catalogue: Path
    """Folder of its products."""
    output: Path
    """Folder with the results of all steps."""

    @property
    def lock(self) -> Lock:
        return Lock.read(self.output / "query" / f"{self.world.name}.json")

    @cached_property
    def pair(self) -> xr.Dataset:
        return open_dataset(self.find("align"), kind="pair").load()

    @cached_property
    def grid(self) -> GeoBox:
        return geobox_of(self.pair)

    @cached_property
    def place(self) -> tuple[Float, Float]:
        return self.world.locate(self.grid)

    def find(self, step: str) -> Path:
        return self.output / step / self.world.name / f"{self.lock.pairs[0].id}.json"

    def measure(self, name: str) -> Float:
        """How far inside the ground of a tile or slice each pixel of the grid lies, metres."""
        return self.world.measure_inside((self.world.list_tiles("clear") | self.world.list_slices())[name], self.grid)

    @cached_property
    def is_home(self) -> Bool:
        """Where the tile in the grid's own zone has all of its bands: it is laid first, so the joint is where this ends."""
        tile, whole = self.world.list_tiles("clear")[self.world.home], np.ones(self.grid.shape, bool)
        for step in {size_m // 10 for size_m in BAND_M.values()}:
            whole &= self.repeat(lambda grid: self.world.measure_inside(tile, grid) > 0, step)
        return whole

    def repeat(self, compute: Callable[[GeoBox], npt.NDArray[Any]], step: int) -> npt.NDArray[Any]:
        """What is computed at the centres of pixels `step` times as large, repeated onto the grid; tiles begin at multiples of 60 m."""
        bounds = self.grid.boundingbox
        left, right, bottom, top = (round(edge // 60) for edge in (bounds.left, bounds.right + 59, bounds.bottom, bounds.top + 59))
        around = GeoBox(((top - bottom) * 6, (right - left) * 6), Affine(10, 0, left * 60, 0, -10, top * 60), self.grid.crs)
        wide = compute(around.zoom_out(step)).repeat(step, axis=0).repeat(step, axis=1)
        row, column = round(top * 6 - bounds.top / 10), round(bounds.left / 10 - left * 6)
        return wide[row:, column:][: self.grid.shape.y, : self.grid.shape.x]


def go(world: FormulaWorld, catalogue: Path, output: Path) -> Way:
    area = {"catalogue": str(catalogue), "areas": {world.name: {"bbox": world.bbox}}}
    lock = run_query(output, QuerySettings.model_validate(area), world.name)
    run_ingest(output, lock, INGEST)
    run_rest(output, lock)
    return Way(world, catalogue, output)


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: world.name)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Way:
    folder = tmp_path_factory.mktemp(request.param.name)
    return go(request.param, write_world(folder / "world", request.param), folder / "out")


def test_footprints_across_180_degrees_are_written_in_all_ways(way: Way) -> None:
    found = set()
    for path in way.catalogue.glob("items/*/S*.json"):
        footprint = json.loads(path.read_text())["geometry"]
        longitudes = np.array(footprint["coordinates"][0])[..., 0].ravel()
        if footprint["type"] == "MultiPolygon":
            found.add("split")
        elif np.ptp(longitudes) > 180:
            found.add("wrapped")
        elif np.abs(longitudes).max() > 180:
            found.add("beyond")
    assert found == set(way.world.styles)


def test_each_acquisition_is_one_scene_of_two_pieces_on_one_grid(way: Way) -> None:
    world, lock = way.world, way.lock
    home, away = (f"EPSG:{world.epsg[zone == 'east']}" for zone in (world.home, world.away))
    pair = lock.pairs[0]
    expected = {pair.sar: world.list_slices(), pair.cloudy: world.list_tiles("cloudy"), pair.clear: world.list_tiles("clear")}
    assert len(lock.pairs) == 1
    assert lock.scenes.keys() == expected.keys()
    for name, pieces in expected.items():
        assert [item.crs for item in lock.scene(name).items] == [home, away]
        assert [item.item for item in lock.scene(name).items] == [piece.item for piece in pieces.values()][:2]
    assert str(way.grid.crs) == home
    assert way.place[0].min() < -2000  # on both sides of where the zones meet
    assert way.place[0].max() > 2000


def test_cloud_cover_is_that_of_the_whole_area(way: Way) -> None:
    scene = way.lock.scene(way.lock.pairs[0].cloudy)
    truth = 100 * np.mean((compute_opacity(way.place) >= CLOUDY_FROM)[way.pair["valid_cloudy"].values])
    assert scene.cover_source == "scl"
    assert scene.cloud_cover_pct == pytest.approx(truth, abs=1.0)


def test_a_tile_that_adds_nothing_is_refused_as_such(way: Way) -> None:
    idle = {role: way.world.list_tiles(role)["idle"].item for role in ("clear", "cloudy")}
    home = {role: way.world.list_tiles(role)[way.world.home].item for role in idle}
    seen = {(line.item, line.status, line.reason) for line in way.lock.refused}
    assert seen == {(idle[role], "refused", f"adds 0.0% of the area to {home[role]}") for role in idle}


def test_the_ledger_has_every_piece_as_used(way: Way) -> None:
    entries = [entry for entry in read_entries(way.output) if entry.status != "refused"]
    pieces = {item.item for scene in way.lock.scenes.values() for item in scene.items}
    assert {entry.status for entry in entries} == {"used"}
    for step in ("query", "ingest"):
        assert {entry.item for entry in entries if entry.step == step and not entry.asset} == pieces
    assert {entry.reason for entry in entries if entry.step == "ingest"} == {""}


def test_each_tile_has_its_own_offset_and_dark_pixels_agree(way: Way) -> None:
    for role, baselines in BASELINES.items():
        facts = way.pair.attrs["provenance"][role]
        assert facts["offset_reason"] == "differs: see items"
        assert facts["warnings"] == facts["lost"] == []
        for item, zone in zip(facts["items"], (way.world.home, way.world.away), strict=True):
            assert item["offset"] == (-1000 if baselines[zone] == "05.00" else 0)
            assert item["offset_check"]["verdict"] == "plausible"
            assert item["share"] > 0.3


@pytest.mark.parametrize("role", ["clear", "cloudy"])
def test_no_hole_is_left_where_a_tile_has_data(way: Way, role: str) -> None:
    valid, inside = way.pair[f"valid_{role}"].values, np.maximum(*(way.measure(zone) for zone in (way.world.home, way.world.away)))
    assert valid[inside > REACH_M].all()
    assert not valid[inside < -CELL_M].any()
    assert (inside < -CELL_M).any()  # the other tile ends in a wedge as well
    assert valid[way.is_home].all()


def bend_of(truth: Float) -> float:
    """Bound of the second derivatives of `truth`, per square metre, a tenth added for their being differences."""
    down, across = np.gradient(truth, 10.0)
    return 1.1 * float(np.sqrt(sum(np.square(part) for part in (*np.gradient(down, 10.0), *np.gradient(across, 10.0)))).max())


def slope_of(truth: Float) -> float:
    """Bound of the first derivative of `truth`, per metre, likewise."""
    return 1.1 * float(np.hypot(*np.gradient(truth, 10.0)).max())


def bound_bilinear(truth: Float, pixel_m: float) -> float:
    """The largest error of one bilinear interpolation from pixels of that size, its coordinates as exact as they are asked to be."""
    return pixel_m**2 / 4 * bend_of(truth) + WARP_TOLERANCE_PX * pixel_m * slope_of(truth)


@pytest.mark.parametrize("role", ["clear", "cloudy"])
@pytest.mark.parametrize("band", BAND_M)
def test_reflectance_is_true_on_both_sides_of_the_joint(way: Way, role: str, band: str) -> None:
    data, step = way.pair[role].sel(band=band).values.astype(float), BAND_M[band] // 10
    truth = way.world.compute_reflectance(band, role, way.place)
    repeated = way.repeat(lambda grid: way.world.compute_reflectance(band, role, way.world.locate(grid)), step)
    away = way.pair[f"valid_{role}"].values & ~way.is_home
    copied, warped = np.abs(data - repeated)[way.is_home], np.abs(data - truth)[away]
    assert copied.max() <= ROUNDED_DN + 1e-6
    assert warped.max() <= 2 * ROUNDED_DN + bound_bilinear(truth, BAND_M[band])


@pytest.mark.parametrize("band", ["B02", "B03", "B04", "B08"])
def test_there_is_no_step_at_the_joint(way: Way, band: str) -> None:
    error = way.pair["clear"].sel(band=band).values - way.world.compute_reflectance(band, "clear", way.place)
    valid, home = way.pair["valid_clear"].values, way.is_home
    at_joint = (home[:, 1:] != home[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    sign = np.where(home[:, 1:], 1, -1)  # from the other tile to that of the grid's zone
    steps = (np.diff(error, axis=1) * sign)[at_joint]
    assert steps.size >= way.grid.shape.y  # each row has a joint
    assert abs(steps.mean()) < 0.1  # a number cut off instead of rounded would be half of one


@pytest.mark.parametrize("role", ["clear", "cloudy"])
def test_classes_are_those_of_the_ground(way: Way, role: str) -> None:
    opacity = compute_opacity(way.place) if role == "cloudy" else np.zeros(way.grid.shape)
    valid, margin = way.pair[f"valid_{role}"].values, 15.0 * slope_of(opacity)  # half the diagonal of a pixel of 20 m
    sure = valid & (np.abs(opacity - CLOUDY_FROM) > margin)
    is_cloud = way.pair[f"scl_{role}"].values == CLOUD_CLASS
    assert np.array_equal(is_cloud[sure], opacity[sure] >= CLOUDY_FROM)
    assert sure.mean() > 0.6
    assert (way.pair[f"scl_{role}"].values[valid] > 0).all()


def read_power(way: Way, band: str) -> Float:
    return centi_db_to_power(way.pair["sar"].sel(sar_band=band).values).astype(float)


def test_smooth_backscatter_is_true_in_both_slices_and_across_their_joint(way: Way) -> None:
    power, truth = read_power(way, "VV"), way.world.compute_power("VV", way.place)
    assert way.pair["valid_sar"].values.all()
    assert way.pair.attrs["provenance"]["registration"]["shift_m"] == [0, 0]  # smooth ground has no edges, and SAR is in its place
    once, error = bound_bilinear(truth, 10), np.abs(power - truth)
    rounding = 2 * CENTI_DB_SHARE * truth + 1e-6
    north = way.measure("north") > 20  # the other slice was brought onto this one's grid before
    assert (error <= once + rounding)[north].all()
    assert (error <= 2 * once + rounding)[~north].all()
    assert 0.3 < north.mean() < 0.7


def test_backscatter_is_averaged_as_power_in_both_slices(way: Way) -> None:
    side = round(4 * TEXTURE_M / 10)
    power, truth = (average(values, side) for values in (read_power(way, "VH"), way.world.compute_power("VH", way.place)))
    fine = way.world.compute_power("VH", way.place)
    as_decibel = average(np.sqrt(fine * np.roll(fine, 1, axis=1)), side) / truth  # halfway between two pixels, had decibel been averaged
    assert np.abs(power / truth - 1).max() < 0.01
    assert as_decibel.max() < 0.95


def average(image: Float, side: int) -> Float:
    rows, columns = (size // side for size in image.shape)
    return image[: rows * side, : columns * side].reshape(rows, side, columns, side).mean(axis=(1, 3))


def test_patches_come_from_both_sides_and_across_the_joint(way: Way) -> None:
    patches, records = (
        open_dataset(way.find("patch"), kind="patches"),
        read_manifest(way.find("patch"), kind="patches")["summary"]["patches"],
    )
    shares = []
    for number, record in enumerate(records):
        window = (..., slice(record["row"], record["row"] + PATCH.size_px), slice(record["col"], record["col"] + PATCH.size_px))
        shares.append(way.is_home[window].mean())
        for name in ("sar", "cloudy", "clear"):
            assert np.array_equal(patches[name][number].values, way.pair[name].values[window])
    assert shares.count(1) >= 4
    assert shares.count(0) >= 4
    assert any(0.2 < share < 0.8 for share in shares)


def test_a_second_run_writes_the_same_bytes(way: Way, tmp_path: Path) -> None:
    again = go(way.world, way.catalogue, tmp_path / "out")
    first, second = hash_files(way.output), hash_files(again.output)
    assert first == second
    assert len(first) > 20
    costless = [[entry._replace(seconds=0) for entry in read_entries(one.output)] for one in (way, again)]
    assert costless[0] == costless[1]


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of everything below `folder` but the ledgers, which hold seconds."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".ledger.csv")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
