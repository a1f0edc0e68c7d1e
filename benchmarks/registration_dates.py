"""How well two dates of one optical sensor, and products placed by wrong coefficients, are laid onto each other: error, refusals, nulls.

python benchmarks/registration_dates.py --scenes 3 --products 5 --samples FOLDER

Simulated ground gives the truth; products of Gaofen are written with a known error and read by their readers. Prints the tables of
benchmarks/results/registration.md. One thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import ndimage

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".mypy"), str(ROOT / "benchmarks")]  # the links in .mypy lay the folders out as they are installed

from registration_scenes import DATE_BANDS_NM, Ground, draw_field, measure_error  # noqa: E402 - found only now

from sereno.pipeline import products  # noqa: E402
from sereno.pipeline.align import find_cloud, measure_field, to_layer, without_cloud  # noqa: E402
from sereno.pipeline.archives import read_contents  # noqa: E402
from sereno.pipeline.atmosphere import SkySettings, Sun  # noqa: E402
from sereno.pipeline.config import AlignSettings, IngestSettings  # noqa: E402
from sereno.pipeline.overlay import draw_clouds, lay_clouds  # noqa: E402
from sereno.pipeline.pairs import SceneRecord  # noqa: E402
from sereno.pipeline.registration import Layer, Registration, estimate_field  # noqa: E402
from sereno.pipeline.scene import to_scene  # noqa: E402
from sereno.pipeline.sensors import gaofen3, gaofen6  # noqa: E402
from sereno.pipeline.shiftfield import ShiftField, make_shift  # noqa: E402
from sereno.pipeline.signing import Resolver  # noqa: E402
from sereno.pipeline.views import Terrain  # noqa: E402

SIDE: Final = 512
"""Side of two dates, pixels."""
PIXEL_M: Final = 8.0
"""Their pixel: that of Gaofen-6 PMS."""
BANDS: Final = ("B1", "B2", "B3", "B4")
"""Blue, green, red, near infrared."""
SHARES: Final = (0.0, 0.3, 0.6, 0.8)
"""Cover of thick cloud."""
SUN: Final = Sun(150.0, 50.0)
"""Where the sun stands."""
BENDS_PX: Final = (0.5, 2.0)
"""How far affine parts of the field reach at the edge, twice their largest: coefficients are bent little, whole orbits of others more."""
CLOUD_M: Final = 600.0
"""Size of clouds."""
SEEN: Final = 0.5
"""Where more of the ground is hidden than this, the true mask says cloud."""
GROUND_PX: Final = 600
"""Side of the ground under products ..."""
EDGE_PX: Final = 44
"""... and what of it lies around the area."""
CLEAR_ERROR_M: Final = 30.0
"""Largest error of the coefficients of the clear product, to the east and to the north ..."""
ERROR_M: Final = 200.0
"""... and of the others."""
HILLS_M: Final = (0.0, 80.0, 300.0)
"""Heights of hills; they are 800 m wide."""
SEARCH_M: Final = 300.0
"""How far is searched for products."""

Array = npt.NDArray[np.float32]
Answer = Callable[[xr.Dataset, xr.Dataset, npt.NDArray[np.bool_]], Registration]
"""From the clear and the cloudy scene and where cloud truly is."""


class Product(NamedTuple):
    """What is written and read back."""

    name: str
    """`clear`, `cloudy` or `sar`."""
    error_m: tuple[float, float]
    """East and north error of its coefficients."""


class Reading(NamedTuple):
    """A product as it is read back."""

    product: Product
    """What was written."""
    scene: xr.Dataset
    """On the grid of `make_area`."""


def ask_masked(clear: xr.Dataset, cloudy: xr.Dataset, cloud: npt.NDArray[np.bool_]) -> Registration:
    """The field with the true cloud kept out."""
    layer = to_layer(cloudy)
    return estimate_field(without_cloud(clear), layer._replace(valid=layer.valid & ~cloud), AlignSettings(), pixel_m=PIXEL_M)


def ask_bare(clear: xr.Dataset, cloudy: xr.Dataset, _cloud: npt.NDArray[np.bool_]) -> Registration:
    """The field with all cloud let in."""
    return estimate_field(without_cloud(clear), to_layer(cloudy), AlignSettings(), pixel_m=PIXEL_M)


def ask_align(clear: xr.Dataset, cloudy: xr.Dataset, _cloud: npt.NDArray[np.bool_]) -> Registration:
    """The field as `align` finds it: cloud found by haze, let in where it leaves too little ground."""
    return measure_field(without_cloud(clear), cloudy, make_grid(cloudy.sizes["y"]), AlignSettings())


ANSWERS: Final[dict[str, Answer]] = {"true cloud kept out": ask_masked, "cloud let in": ask_bare, "as align does": ask_align}
"""Ways to treat clouds."""


def make_grid(side: int) -> GeoBox:
    """A square grid."""
    return GeoBox((side, side), Affine(PIXEL_M, 0, 500_000, 0, -PIXEL_M, 4_500_000), "EPSG:32650")


def make_scene(image: Array) -> xr.Dataset:
    """An image (4, y, x) as a scene of Gaofen without classes."""
    stored = np.clip(np.rint(image * 1e4), 1, 65_534).astype(np.uint16)
    valid = np.ones(image.shape[1:], bool)
    return to_scene(stored, valid, bands=BANDS, geobox=make_grid(image.shape[1]), provenance={"sensor": "gaofen-pms"})


def cover(image: Array, share: float, seed: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The image under clouds, and where they hide most of the ground."""
    if share == 0:
        return image, np.zeros(image.shape[1:], bool)
    settings = SkySettings(cover=share, blob_px=CLOUD_M / PIXEL_M, haze=0.5, cirrus=0.2, base_m=1200.0)
    clouds = draw_clouds(np.random.default_rng(seed), (image.shape[1], image.shape[2]), settings=settings, sun=SUN, pixel_m=PIXEL_M)
    laid = lay_clouds(image, clouds, wavelengths_nm=DATE_BANDS_NM, sun=SUN, pixel_m=PIXEL_M)
    return laid.image, laid.cloud > SEEN


def run_dates(n_scenes: int, bend_px: float) -> None:
    """Print errors of two dates with a changed season under clouds, and how many nulls are accepted."""
    errors: dict[tuple[str, float], list[float]] = {}
    nulls: dict[str, list[bool]] = {}
    covers: dict[float, list[tuple[float, float]]] = {}
    for seed in range(1, n_scenes + 1):
        ground, true = Ground(seed, SIDE), draw_field("affine", SIDE, seed=7 * seed, bend_px=bend_px)
        clear, later = make_scene(ground.draw_date()), ground.draw_date(true, season=2)
        for share in SHARES:
            image, cloud = cover(later, share, seed)
            cloudy = make_scene(image)
            covers.setdefault(share, []).append((float(cloud.mean()), float(find_cloud(cloudy).mean())))
            for name, ask in ANSWERS.items():
                found = ask(clear, cloudy, cloud)
                if found.verdict == "applied":
                    errors.setdefault((name, share), []).append(measure_error(found.field, true, SIDE))
                turned = make_scene(np.ascontiguousarray(image[:, :, ::-1]))
                nulls.setdefault(name, []).append(ask(clear, turned, cloud[:, ::-1]).verdict == "applied")
    print(f"affine parts of up to {bend_px / 2:g} px at the edge")
    print(
        f"| clouds | {' | '.join(show_cover(covers[share]) for share in SHARES)} | nulls accepted |\n" + "| --- " * (len(SHARES) + 2) + "|"
    )
    for name in ANSWERS:
        cells = [show_errors(errors.get((name, share), []), n_scenes) for share in SHARES]
        print(f"| {name} | {' | '.join(cells)} | {sum(nulls[name])} of {len(nulls[name])} |")


def show_cover(covers: list[tuple[float, float]]) -> str:
    """Mean share of true cloud and of what is found."""
    true, found = (statistics.mean(values) for values in zip(*covers, strict=True))
    return f"{true:.0%} cloud ({found:.0%} found)"


def show_errors(errors: list[float], count: int, scale: float = 1.0, digits: int = 2) -> str:
    """Median and largest error, and how many were accepted."""
    accepted = f"{len(errors)} of {count}"
    if not errors:
        return f"- ({accepted})"
    return f"{scale * statistics.median(errors):.{digits}f} / {scale * max(errors):.{digits}f} ({accepted})"


def run_products(n_scenes: int) -> None:
    """Print how far SAR and cloudy products lie from the clear one before and after, on ground with hills, and nulls."""
    print("| hills | image | before, m | after, m: median / largest (accepted) | nulls accepted |\n" + "| --- " * 5 + "|")
    for hills_m in HILLS_M:
        with tempfile.TemporaryDirectory() as folder:
            sets = [write_set(Path(folder) / str(seed), seed, hills_m) for seed in range(1, n_scenes + 1)]
            for number, name in enumerate(("sar", "cloudy"), start=1):
                show_products(hills_m, name, [(scenes[0], scenes[number]) for scenes in sets])


def show_products(hills_m: float, name: str, pairs: list[tuple[Reading, Reading]]) -> None:
    """Print the row of the image `name` on ground with hills, from pairs of the clear product and that one."""
    grid, settings = make_area(), AlignSettings(search_m=SEARCH_M)
    before, after, accepted, count = [], [], 0, 0
    for number, ((fixed, clear), (moved, scene)) in enumerate(pairs):
        true = to_field(fixed.error_m, moved.error_m, tuple(grid.shape))
        found = measure_field(without_cloud(clear), scene, grid, settings)
        before.append(PIXEL_M * float(np.hypot(*true.evaluate(0, 0))))
        if found.verdict == "applied":
            after.append(PIXEL_M * measure_error(found.field, true, grid.shape[0]))
        for step in (1, 2):
            other = pairs[(number + step) % len(pairs)][1].scene
            count += 1
            accepted += measure_field(without_cloud(clear), other, grid, settings).verdict == "applied"
    start = f"{statistics.median(before):.0f} / {max(before):.0f}"
    print(f"| {hills_m:.0f} m | {name} | {start} | {show_errors(after, len(pairs), digits=1)} | {accepted} of {count} |", flush=True)


def to_field(fixed_m: tuple[float, float], moved_m: tuple[float, float], shape: tuple[int, ...]) -> ShiftField:
    """The true field between products whose coefficients err by so much to the east and north."""
    return make_shift(shape, -(moved_m[1] - fixed_m[1]) / PIXEL_M, (moved_m[0] - fixed_m[0]) / PIXEL_M)


def make_area() -> GeoBox:
    """The grid on which products are read."""
    return make_grid(GROUND_PX)[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]


def write_set(folder: Path, seed: int, hills_m: float) -> list[Reading]:
    """A clear, a SAR and a cloudy product over one ground, as they are read."""
    rng = np.random.default_rng(seed + 50)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (GROUND_PX, GROUND_PX)), 40, mode="wrap")
    relief = Terrain(make_grid(GROUND_PX), (300 + hills_m * noise / np.abs(noise).max()).astype(np.float32))
    limits = {"clear": CLEAR_ERROR_M, "cloudy": ERROR_M, "sar": ERROR_M}
    errors = {name: (float(rng.uniform(-limit, limit)), float(rng.uniform(-limit, limit))) for name, limit in limits.items()}
    view, scenes = Ground(seed, GROUND_PX), []
    for name in ("clear", "sar", "cloudy"):
        product = Product(name, errors[name])
        (folder / name).mkdir(parents=True)
        scenes.append(Reading(product, read_product(write_product(folder / name, relief, view, product), relief)))
    return scenes


def write_product(folder: Path, relief: Terrain, view: Ground, product: Product) -> Path:
    """The folder of one product."""
    flight = products.Pass(datetime(2020, 6, 3, 3, 10, tzinfo=UTC), 1000, product.error_m)
    if product.name == "sar":
        power = dict(zip(("HH", "HV"), view.draw_power(looks=1e6), strict=True))
        return products.write_gaofen3(folder, relief, power, flight, radar=products.Radar(), speckle=np.random.default_rng(1))
    image = view.draw_date() if product.name == "clear" else cover(view.draw_date(season=2), 0.35, 5)[0]
    return products.write_gaofen6_pms(folder, relief, image, flight, has_pan=False)


def read_product(product: Path, relief: Terrain) -> xr.Dataset:
    """The scene of a product, terrain corrected."""
    dem = product.parent / "dem.tif"
    shape: dict[str, Any] = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": GROUND_PX, "width": GROUND_PX}
    with rasterio.open(dem, "w", **shape, crs=str(relief.geobox.crs), transform=relief.geobox.transform) as file:
        file.write(relief.heights_m, 1)
    sensor = gaofen3 if product.name.startswith("GF3") else gaofen6
    item = sensor.to_item(product.name, read_contents(product, sensor.is_text))[0]
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    settings = IngestSettings(attempts=1, dem=str(dem))
    return sensor.read_scene(record, make_area(), settings, Resolver(str(product.parent))).scene


def run_samples(folder: Path) -> None:
    """Print what is found between real dates: those of Slovenia, and the cloudy and the clear image of SEN12MS-CR with shifts added."""
    dates = np.load(folder / "s2/eolearn/REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)[:, [2, 3, 7]]
    for name, date in zip(("08-20, overcast", "07-31, veiled", "09-09", "08-30", "07-11"), dates, strict=True):
        print(f"Slovenia 2015-{name}: {show_found(ask(dates[2], date))}")
    clear, cloudy = (read_tile(folder / "sen12mscr/glfcr" / part) for part in ("s2_cloudfree", "s2_cloudy"))
    for search_m in (100.0, 300.0):
        print(f"SEN12MS-CR, 64 % cloud, search {search_m:.0f} m: {show_found(ask(clear, cloudy, search_m))}")
        for shift in ((3.0, 0.0), (2.5, -1.3), (-5.4, 0.7)):
            moved = np.stack([ndimage.shift(band, shift, order=1, cval=np.nan) for band in cloudy])
            print(f"  moved by {shift}: {show_found(ask(clear, moved, search_m))}")


def ask(clear: Array, cloudy: Array, search_m: float = 100.0) -> Registration:
    """The field between two real images of 10 m, clouds let in."""
    everywhere = np.ones(clear.shape[1:], bool)
    return estimate_field(Layer(clear, everywhere), Layer(cloudy, everywhere), AlignSettings(search_m=search_m), pixel_m=10.0)


def show_found(found: Registration) -> str:
    """Verdict and shift in words."""
    dy, dx = found.shift_px
    return f"({dy:+.2f}, {dx:+.2f}) px, {found.reason}" if found.verdict == "applied" else f"refused, {found.reason}"


def read_tile(folder: Path) -> Array:
    """Green, red and near infrared of a tile."""
    with rasterio.open(folder / "ROIs1970_fall_139_p839.tif") as file:
        return file.read((3, 4, 8)).astype(np.float32) / np.float32(10_000)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=3, help="simulated grounds seen at two dates")
    parser.add_argument("--products", type=int, default=5, help="sets of Gaofen products per kind of ground; at least 3")
    parser.add_argument("--samples", type=Path, help="folder of real files")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # one line per product on what its metadata do not say
    if chosen.scenes:
        for bend_px in BENDS_PX:
            run_dates(chosen.scenes, bend_px)
            print()
    if chosen.products:
        print()
        run_products(chosen.products)
    if chosen.samples is not None:
        print()
        run_samples(chosen.samples)


if __name__ == "__main__":
    main()
