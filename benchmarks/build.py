"""How fast scenes are read from cloud-optimised files and written to Zarr: ours, odc-stac, stackstac, WarpedVRT, and the bare decoder.

python benchmarks/build.py [--size 3840] [--rounds 5] [--threads 2] [--only "same grid"]

A Sentinel-2 tile of twelve bands (10, 20, 60 m, DEFLATE with predictor, as the catalogues have it) is made on the local disk. Every way
reads the same ground to arrays of 10 m (`same grid`, pixels repeated), the same ground on the grid of the next UTM zone (`next zone`,
bilinear), and reads and writes it to a Zarr store (`to Zarr`). Rounds are interleaved in one process; the figure is native megapixels
per core-second: what the decoder has to decode, over CPU time of all threads. `bare decode` reads the native pixels and does nothing
else, so it is the limit of the first and the third. Ours also decides the offset, keeps validity apart, checks the pixels and, in the
third, writes checksums; the peers do not.
Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pystac
import rasterio
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from scipy import ndimage

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".mypy")]  # the links there lay the folders out as they are installed

from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS  # noqa: E402 - found only now
from sereno.pipeline.config import IngestSettings  # noqa: E402
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord  # noqa: E402
from sereno.pipeline.sensors.sentinel2 import read_scene  # noqa: E402
from sereno.pipeline.signing import Resolver  # noqa: E402
from sereno.pipeline.store import PIPELINE, SCENE_CODEC, TILE, codec_for, save_dataset  # noqa: E402

GSD_M: Final = {band.name: band.gsd_m for band in SENTINEL2_BANDS if band.name in L2A_BANDS}
"""Native pixel of each band."""
ORIGIN: Final = (399_960.0, 5_100_000.0)
"""Upper left corner of the tile in EPSG:32632."""
RIM_PX: Final = 60
"""Pixels of 10 m along the edges of the tile that are not read, so that a grid of the next zone lies inside; divisible by all samplings."""
LIMITS: Final = {"same grid": ("bare decode", 0.6), "to Zarr": ("bare decode", 0.6)}
"""What ours is held to, as a share of the named figure."""
WARP_GAIN: Final = 5.0
"""Reading on the same grid is held to this many times the speed of the warp path."""

Stack = npt.NDArray[np.uint16]


class Bench(NamedTuple):
    """What every way is given."""

    folder: Path
    """Where the files lie, `B02.tif` and so on."""
    item: pystac.Item
    """The tile as a STAC item."""
    geobox: GeoBox
    """The wanted grid."""
    threads: int
    """Threads that may be used."""
    resampling: str
    """`nearest` where pixels are only repeated, else `bilinear`."""


def make_tile(folder: Path, size_px: int, seed: int = 0) -> None:
    """Write the twelve bands of a tile of `size_px` pixels of 10 m: textured ground of the compressibility of real scenes."""
    rng = np.random.default_rng(seed)
    for band, gsd_m in GSD_M.items():
        side = size_px * 10 // gsd_m
        ground = ndimage.gaussian_filter(rng.standard_normal((side, side), np.float32), 6)
        values = 1800 + 4000 * ground + 60 * rng.standard_normal((side, side), np.float32)
        profile = {
            "driver": "COG",
            "dtype": "uint16",
            "count": 1,
            "width": side,
            "height": side,
            "crs": "EPSG:32632",
            "transform": Affine(gsd_m, 0, ORIGIN[0], 0, -gsd_m, ORIGIN[1]),
            "nodata": 0,
        }
        with rasterio.open(folder / f"{band}.tif", "w", **profile, compress="DEFLATE", predictor=2, blocksize=1024) as file:
            file.write(np.clip(values, 1, 10_000).astype(np.uint16), 1)


def make_item(folder: Path, size_px: int) -> pystac.Item:
    """The tile as peers want it: with projection and raster extensions, so that they need not open files to plan."""
    left, top = ORIGIN
    bounds = (left, top - 10 * size_px, left + 10 * size_px, top)
    west, south, east, north = transform_bounds("EPSG:32632", "EPSG:4326", *bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": "tile",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {"datetime": "2024-06-01T10:00:00Z", "proj:epsg": 32632},
        "links": [],
        "assets": {},
    }
    for band, gsd_m in GSD_M.items():
        side = size_px * 10 // gsd_m
        item["assets"][band] = {
            "href": str(folder / f"{band}.tif"),
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "proj:shape": [side, side],
            "proj:transform": [gsd_m, 0, left, 0, -gsd_m, top],
            "raster:bands": [{"nodata": 0, "data_type": "uint16"}],
        }
    return pystac.Item.from_dict(item)


def read_bare(bench: Bench) -> Stack:
    """Native pixels of every band under the grid, decoded and dropped."""

    def read(band: str) -> int:
        with rasterio.open(bench.folder / f"{band}.tif") as source:
            box = bench.geobox.boundingbox
            window = source.window(box.left, box.bottom, box.right, box.top).round_offsets().round_lengths()
            return int(source.read(1, window=window).size)

    with ThreadPoolExecutor(bench.threads) as pool:
        list(pool.map(read, GSD_M))
    return np.empty(0, np.uint16)


def read_warped(bench: Bench) -> Stack:
    """WarpedVRT per band, read into one preallocated array."""
    stack = np.empty((len(GSD_M), *bench.geobox.shape), np.uint16)
    rows, columns = bench.geobox.shape

    def read(numbered: tuple[int, str]) -> None:
        number, band = numbered
        grid = {"crs": str(bench.geobox.crs), "transform": bench.geobox.transform, "width": columns, "height": rows}
        grid |= {"resampling": Resampling[bench.resampling]}
        with (
            rasterio.open(bench.folder / f"{band}.tif") as source,
            WarpedVRT(source, **grid) as vrt,
        ):
            vrt.read(1, out=stack[number], window=Window(0, 0, columns, rows))

    with ThreadPoolExecutor(bench.threads) as pool:
        list(pool.map(read, enumerate(GSD_M)))
    return stack


def load_odc(bench: Bench) -> xr.Dataset:
    """odc-stac without dask, its own thread pool: its fastest way on one machine."""
    import odc.stac

    loaded: xr.Dataset = odc.stac.load(
        [bench.item], bands=list(GSD_M), geobox=bench.geobox, resampling=bench.resampling, pool=bench.threads
    )
    return loaded


def load_stackstac(bench: Bench) -> xr.DataArray:
    """The lazy stack of stackstac, chunks of 2048 px."""
    import stackstac

    box = bench.geobox.boundingbox
    stack: xr.DataArray = stackstac.stack(
        [bench.item],
        assets=list(GSD_M),
        epsg=bench.geobox.crs.epsg,
        resolution=10,
        bounds=(box.left, box.bottom, box.right, box.top),
        dtype=np.dtype("uint16"),
        fill_value=np.uint16(0),
        rescale=False,
        resampling=Resampling[bench.resampling],
        chunksize=2048,
    )
    return stack.squeeze("time")


def read_odc(bench: Bench) -> Stack:
    """All bands of odc-stac as one array."""
    loaded = load_odc(bench)
    return np.stack([loaded[band].values[0] for band in GSD_M])


def read_stackstac(bench: Bench) -> Stack:
    """All bands of stackstac as one array."""
    values: Stack = load_stackstac(bench).compute(scheduler="threads", num_workers=bench.threads).values
    return values


def read_ours(bench: Bench) -> Stack:
    """Our reader, as `sereno ingest` calls it."""
    values: Stack = load_ours(bench)["data"].values
    return values


def load_ours(bench: Bench) -> xr.Dataset:
    """A scene of ours; the offset of its baseline is none, so that values can be compared with the peers'."""
    item = ItemRecord(
        item="tile",
        collection="sentinel-2-l2a",
        sensor="sentinel2-l2a",
        time="2024-06-01T10:00:00Z",
        crs="EPSG:32632",
        bbox=(8, 45, 9, 46),
        assets={band: AssetRecord(href=f"{band}.tif") for band in GSD_M},
        processing_baseline="03.01",
    )
    record = SceneRecord(id="tile", sensor=item.sensor, time=item.time, items=(item,))
    return read_scene(record, bench.geobox, IngestSettings(readers=bench.threads), Resolver(str(bench.folder))).scene


def write_ours(bench: Bench, output: Path) -> None:
    """Our reader and our store, checksums and all."""
    save_dataset(load_ours(bench), output / "scene.json", kind="scene", summary={})


def write_array(stack: Stack, output: Path) -> None:
    """A (band, y, x) stack as a Zarr array with the codec and the chunks of our stores, coded by the same library."""
    codec = codec_for(np.dtype("uint16"), *SCENE_CODEC)
    with zarr.config.set(PIPELINE):
        array = zarr.create_array(output / "stack.zarr", shape=stack.shape, chunks=(1, TILE, TILE), dtype="uint16", compressors=codec)
        array[:] = stack


def write_warped(bench: Bench, output: Path) -> None:
    """WarpedVRT to Zarr."""
    write_array(read_warped(bench), output)


def write_odc(bench: Bench, output: Path) -> None:
    """odc-stac to Zarr."""
    write_array(read_odc(bench), output)


def write_stackstac(bench: Bench, output: Path) -> None:
    """From stackstac to Zarr."""
    write_array(read_stackstac(bench), output)


READERS: Final[dict[str, Callable[[Bench], Stack]]] = {
    "bare decode": read_bare,
    "ours": read_ours,
    "WarpedVRT": read_warped,
    "odc-stac": read_odc,
    "stackstac": read_stackstac,
}
WRITERS: Final[dict[str, Callable[[Bench, Path], None]]] = {
    "ours": write_ours,
    "WarpedVRT": write_warped,
    "odc-stac": write_odc,
    "stackstac": write_stackstac,
}


class Case(NamedTuple):
    """One thing that every way does."""

    name: str
    """What it is called in the table."""
    bench: Bench
    """On which ground."""
    ways: dict[str, Callable[[], object]]
    """The ways by name."""


def make_cases(folder: Path, size_px: int, threads: int) -> list[Case]:
    """The three cases on one tile."""
    item, side = make_item(folder, size_px), size_px - 2 * RIM_PX
    inner = GeoBox((side, side), Affine(10, 0, ORIGIN[0] + 10 * RIM_PX, 0, -10, ORIGIN[1] - 10 * RIM_PX), "EPSG:32632")
    west, south, east, north = transform_bounds("EPSG:32632", "EPSG:32633", *inner.boundingbox)
    left, top = round((west + east) / 20) * 10 - 5 * side, round((south + north) / 20) * 10 + 5 * side
    tilted = GeoBox((side, side), Affine(10, 0, left, 0, -10, top), "EPSG:32633")
    same, other = Bench(folder, item, inner, threads, "nearest"), Bench(folder, item, tilted, threads, "bilinear")

    def write(writer: Callable[[Bench, Path], None]) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                writer(same, Path(name))

        return run

    def read(reader: Callable[[Bench], Stack], bench: Bench) -> Callable[[], Stack]:
        return lambda: reader(bench)

    return [
        Case("same grid", same, {name: read(reader, same) for name, reader in READERS.items()}),
        Case("next zone", other, {name: read(reader, other) for name, reader in READERS.items() if name != "bare decode"}),
        Case("to Zarr", same, {"bare decode": read(read_bare, same)} | {name: write(writer) for name, writer in WRITERS.items()}),
    ]


def check_equal(case: Case) -> None:
    """Stop if ours reads other pixels than the peers where no interpolation is needed.

    Raises:
        SystemExit: with the name of the peer.
    """
    ours = read_ours(case.bench)
    for name in ("WarpedVRT", "odc-stac", "stackstac"):
        if not np.array_equal(READERS[name](case.bench), ours):
            raise SystemExit(f"{name} reads other values than ours: the comparison is void")


def measure(case: Case, rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of every way, rounds interleaved, after one that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in case.ways}
    for number in range(rounds + 1):
        for name, run in case.ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: (statistics.median(cpu for cpu, _ in seen), statistics.median(wall for _, wall in seen)) for name, seen in times.items()}


def print_table(results: dict[str, dict[str, tuple[float, float]]], megapixels: float) -> None:
    """One line per case and way, then ours against those limits whose cases were run."""
    print(f"{'case':<10} {'way':<12} {'Mpx/core-s':>10} {'wall s':>7} {'of bare':>8} {'ours/way':>9}")
    for case, ways in results.items():
        bare = ways.get("bare decode", (float("nan"),))[0]
        for name, (cpu, wall) in ways.items():
            print(f"{case:<10} {name:<12} {megapixels / cpu:10.1f} {wall:7.2f} {bare / cpu:8.2f} {cpu / ways['ours'][0]:9.2f}")
    for case, (other, share) in LIMITS.items():
        if case not in results:
            continue
        seen = results[case][other][0] / results[case]["ours"][0]
        print(f"{case}: ours is {seen:.2f} of {other}, at least {share} wanted")
    if {"next zone", "same grid"} <= results.keys():
        gain = results["next zone"]["ours"][0] / results["same grid"]["ours"][0]
        print(f"same grid against the warp path: {gain:.1f} times, at least {WARP_GAIN:g} wanted")


def main() -> None:
    """Make the tile, check that all read the same, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=3840, help="side of the tile in pixels of 10 m; a multiple of 6")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the medians are shown")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of every way")
    parser.add_argument("--only", choices=("same grid", "next zone", "to Zarr"), action="append", help="cases to run; all if not given")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # those of the peers
    with tempfile.TemporaryDirectory() as name, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        folder = Path(name)
        make_tile(folder, options.size)
        cases = make_cases(folder, options.size, options.threads)
        check_equal(cases[0])
        results = {case.name: measure(case, options.rounds) for case in cases if case.name in (options.only or [case.name])}
    side = options.size - 2 * RIM_PX
    print_table(results, sum((side * 10 // gsd_m) ** 2 for gsd_m in GSD_M.values()) / 1e6)


if __name__ == "__main__":
    main()
