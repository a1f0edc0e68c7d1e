"""Make a small world with known truth: Sentinel-2 and Sentinel-1 products as real files, a catalogue, and what lies under the clouds.

Enters: settings with a seed. Leaves, beside `world.json`: `assets/`, `items/`, `catalog.json` (a static STAC catalogue) and `truth/`.
The same seed gives the same bytes; `world.json` comes last and lists them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from sereno.pipeline import stac
from sereno.pipeline.atmosphere import Sky, SkySettings, Sun, apply_sky, classify_scene, compute_sun, make_sky
from sereno.pipeline.bands import L2A_BANDS, SAR_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import SimulatedArea, SimulateSettings
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.ground import PIXEL_M, Ground, compute_shading, compute_spectra, make_ground
from sereno.pipeline.noise import Image, average_blocks, blur_image
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.radar import add_speckle, compute_backscatter, displace_image, draw_displacement, make_swath
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE
from sereno.pipeline.store import staged, write_json

logger = logging.getLogger(__name__)

FORMAT: Final = "sereno-world/1"
MARGIN_PX: Final = 24
"""Optical products are larger than their area by this much on each side; a multiple of 6, so that 60 m pixels fit."""
SAR_MARGIN_PX: Final = (48, 40, 30, 54)
"""The same for SAR products: above, below, left, right."""
REVISIT_DAYS: Final = 5
"""Time between optical scenes: that of Sentinel-2 with two satellites."""
BASELINES: Final = ("03.00", "05.00", "03.01", "05.09", "02.14", "04.00")
"""Processing baselines in turn, old and reprocessed products mixed, so that the date of acquisition never tells the offset."""
SAR_PASSES: Final = (
    (timedelta(hours=6, minutes=41), "ascending", 15),
    (timedelta(hours=-28, minutes=-54), "descending", 66),
    (timedelta(hours=19, minutes=5), "descending", 139),
)
"""Time from the optical scene, direction and track of the SAR scenes, in turn."""
SAR_TOO_EARLY: Final = timedelta(days=-4, hours=6, minutes=41)
"""Time from the first optical scene of one SAR scene that no cloudy scene is near enough to."""
SENSOR_NOISE: Final = (0.0012, 0.004)
"""Standard deviation of the optical noise: reflectance, and share of the signal (signal-to-noise of MSI: Drusch et al. 2012)."""
TRUTH_NODATA: Final = 65535

Role = Literal["clear", "cloudy", "overcast"]


class Visit(NamedTuple):
    """One optical acquisition that is planned."""

    role: Role
    """What it will be good for; an overcast scene is there to be refused."""
    day: int
    """Days after the first one."""
    baseline: str
    """Processing baseline of its product."""


@dataclass(frozen=True)
class _Site:
    """One area while it is being made."""

    name: str
    number: int
    area: SimulatedArea
    settings: SimulateSettings
    ground: Ground
    grid: GeoBox
    margin_px: int
    assets: Path
    truth: Path

    def rng(self, *purpose: object) -> np.random.Generator:
        """A Generator for one purpose in this area, whatever else is drawn."""
        return _make_rng(self.settings.seed, self.name, *purpose)

    def place(self) -> tuple[float, float]:
        """Longitude and latitude of the middle of the area."""
        longitude, latitude = self.grid.geographic_extent.centroid.coords[0]
        return longitude, latitude

    def crop(self, image: npt.NDArray[Any], pad_px: tuple[int, int, int, int]) -> npt.NDArray[Any]:
        """The part of a ground image (..., y, x) that reaches so far beyond the area: above, below, left, right."""
        above, below, left, right = (self.margin_px - pad for pad in pad_px)
        rows, columns = image.shape[-2:]
        return image[..., above : rows - below, left : columns - right]


@dataclass(frozen=True)
class _View:
    """One optical acquisition while it is being made; images on the grid of the product."""

    site: _Site
    visit: Visit
    product: stac.Product
    sun: Sun
    sky: Sky
    valid: npt.NDArray[np.bool_]
    spectra: tuple[Image, Image]
    shading: Image


def simulate_world(output: Path, settings: SimulateSettings) -> None:
    """Write a world described by `settings` beside `output`, and then `output` itself (`world.json`).

    `output` holds: per area the grid, the optical scenes (item, role, cloud cover, baseline, truth files), the SAR scenes (item, partner,
    displacement: content at true (row, col) of the area appears at (row + dy_px, col + dx_px) + affine @ ((row, col) - centre)),
    and the SHA-256 of every file.

    Raises:
        ConfigError: no area is named.
        StoreError: the files cannot be written.
    """
    if not settings.areas:
        raise ConfigError("simulate: 'areas' is empty; name at least one area with epsg, west_m and south_m")
    begin = time.perf_counter()
    logger.info("simulate: %d areas, %d cloudy dates each, seed %d", len(settings.areas), settings.cloudy_dates, settings.seed)
    root = output.parent
    output.unlink(missing_ok=True)
    items: list[dict[str, Any]] = []
    areas: dict[str, Any] = {}
    with staged(root / "assets") as assets, staged(root / "truth") as truth:
        for number, (name, area) in enumerate(settings.areas.items()):
            site = _open_site((name, number, area), settings, (assets, truth))
            areas[name], new = _write_area(site)
            items += new
    _write_catalogue(root, items)
    files = _hash_files(root, ("assets", "truth", "items", "catalog.json"))
    write_json(output, {"format": FORMAT, "seed": settings.seed, "areas": areas, "files": files})
    logger.info("simulate: %d items, %d files in %.1f s", len(items), len(files), time.perf_counter() - begin)


def _make_rng(*key: object) -> np.random.Generator:
    """A Generator that depends on every part of `key` and on nothing else."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


def _open_site(area: tuple[str, int, SimulatedArea], settings: SimulateSettings, folders: tuple[Path, Path]) -> _Site:
    name, number, square = area
    size = square.size_px
    corner = Affine(PIXEL_M, 0, square.west_m, 0, -PIXEL_M, square.south_m + PIXEL_M * size)
    margin = max(SAR_MARGIN_PX) + math.ceil(settings.max_shift_px) + 2
    shape = (size + 2 * margin, size + 2 * margin)
    ground = make_ground(_make_rng(settings.seed, name, "ground"), shape)
    return _Site(name, number, square, settings, ground, GeoBox((size, size), corner, f"EPSG:{square.epsg}"), margin, *folders)


def plan_visits(cloudy_dates: int, *, first_baseline: int = 0) -> list[Visit]:
    """The optical acquisitions of an area: every cloudy one within ten days of a clear one, then one too cloudy to use."""
    roles: list[Role] = []
    while roles.count("cloudy") < cloudy_dates:
        roles.append("clear" if len(roles) % 3 == 0 else "cloudy")
    roles.append("overcast")
    return [Visit(role, REVISIT_DAYS * i, BASELINES[(i + first_baseline) % len(BASELINES)]) for i, role in enumerate(roles)]


def _write_area(site: _Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write all products of one area; what `world.json` says of it, and its items."""
    visits = plan_visits(site.settings.cloudy_dates, first_baseline=site.number)
    optical = [_write_optical(site, visit) for visit in visits]
    cloudy = [fact for fact, _ in optical if fact["role"] == "cloudy"]
    first = datetime.combine(site.settings.first_day, datetime.min.time(), UTC) + timedelta(hours=10, minutes=20)
    sar = [_write_sar(site, None, (first + SAR_TOO_EARLY, "ascending", 15))]
    for index, fact in enumerate(cloudy):
        gap, direction, track = SAR_PASSES[index % len(SAR_PASSES)]
        moment = datetime.fromisoformat(fact["time"]) + gap
        sar.append(_write_sar(site, fact["item"], (moment, direction, track)))
    dem = _write_dem(site, first)
    facts = {
        "grid": GridRecord.from_geobox(site.grid).model_dump(mode="json"),
        "dialect": site.area.dialect,
        "optical": [fact for fact, _ in optical],
        "sar": [fact for fact, _ in sar],
        "dem": dem["id"],
    }
    return facts, [item for _, item in (*optical, *sar)] + [dem]


def _write_optical(site: _Site, visit: Visit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one Sentinel-2 product, and its truth if it is cloudy."""
    view = _open_view(site, visit)
    folder = site.assets / site.name / view.product.item
    with ThreadPoolExecutor(2) as pool:
        clear = dict(zip(L2A_BANDS, pool.map(lambda band: _write_band(view, band, folder), range(len(L2A_BANDS))), strict=True))
    classes = classify_scene(site.rng(view.product.item, SCL), clear, view.sky, view.valid)
    _write_cog(folder / f"{SCL}.tif", classes[None], view.product.geobox.zoom_out(2), nodata=0, names=(SCL,))
    seen = classes > 0
    cover = round(100 * float(np.isin(classes[seen], (8, 9, 10)).mean()), 4)
    facts = stac.OpticalFacts(
        baseline=visit.baseline,
        cloud_cover_pct=cover,
        nodata_pct=round(100 * float((~view.valid).mean()), 4),
        sun_azimuth_deg=round(view.sun.azimuth_deg, 4),
        sun_elevation_deg=round(view.sun.elevation_deg, 4),
    )
    truth = _write_truth(view, clear) if visit.role == "cloudy" else {"truth": None, "cloud": None}
    item = stac.to_optical_item(view.product, facts)
    fact = {"item": view.product.item, "collection": item["collection"], "time": view.product.time.isoformat(), "role": visit.role}
    return fact | {"cloud_cover_pct": cover, "processing_baseline": visit.baseline} | truth, item


def _open_view(site: _Site, visit: Visit) -> _View:
    moment = datetime.combine(site.settings.first_day, datetime.min.time(), UTC)
    moment += timedelta(days=visit.day, hours=10, minutes=20, seconds=7 * site.number, milliseconds=24)
    sun = compute_sun(moment, *site.place())
    geobox = site.grid.pad(MARGIN_PX)
    product = stac.Product(_name_optical(geobox, site, visit, moment), site.name, moment, geobox, site.area.dialect)
    rng = site.rng(product.item, "sky")
    shape = (geobox.shape.y, geobox.shape.x)
    sky = make_sky(rng, shape, settings=_draw_sky(rng, visit.role, site.area.size_px), sun=sun)
    edge = 0.09 * shape[1] if visit.role == "cloudy" and visit.day == 2 * REVISIT_DAYS else 0.0
    valid = make_swath(shape, left_px=0, right_px=edge, slant=0.09)
    spectra = compute_spectra(site.ground.units, moment.timetuple().tm_yday)
    shading = compute_shading(site.ground.height_m, sun.azimuth_deg, sun.elevation_deg)
    return _View(site, visit, product, sun, sky, valid, spectra, shading)


def _name_optical(geobox: GeoBox, site: _Site, visit: Visit, moment: datetime) -> str:
    tile, stamp = stac.to_grid_code(geobox), f"{moment:%Y%m%dT%H%M%S}"
    if site.area.dialect == "earth-search":
        return f"S2A_T{tile}_{stamp}_L2A"
    made = "20230512T034501" if stac.has_offset(visit.baseline) else f"{moment + timedelta(hours=3):%Y%m%dT%H%M%S}"
    return f"S2A_MSIL2A_{stamp}_R022_T{tile}_{made}"


def _draw_sky(rng: np.random.Generator, role: Role, size_px: int) -> SkySettings:
    """How cloudy a scene of that role is; clouds of half a kilometre to four."""
    if role == "clear":
        return SkySettings(cover=0.005, blob_px=8, haze=0.0, cirrus=0.0, base_m=900)
    blob = min(rng.uniform(45, 80), 0.1 * size_px)
    cover = rng.uniform(0.28, 0.42) if role == "cloudy" else 0.985
    return SkySettings(cover, blob, rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.35), rng.uniform(700, 2000))


def _write_band(view: _View, band: int, folder: Path) -> Image:
    """Write one band as the satellite delivers it; its cloud-free reflectance at 10 m, (y, x)."""
    site, facts = view.site, SENTINEL2_BANDS[[b.name for b in SENTINEL2_BANDS].index(L2A_BANDS[band])]
    mean, contrast = (np.ascontiguousarray(part[:, band]) for part in view.spectra)
    ground = mean[site.ground.unit] + contrast[site.ground.unit] * site.ground.texture
    clear: Image = site.crop(blur_image(ground * view.shading), (MARGIN_PX,) * 4)
    factor = facts.gsd_m // 10
    seen = average_blocks(apply_sky(clear, view.sky, band=band, wavelength_nm=facts.wavelength_nm), factor)
    rng = site.rng(view.product.item, facts.name)
    seen += (SENSOR_NOISE[0] + SENSOR_NOISE[1] * seen) * rng.standard_normal(seen.shape, dtype=np.float32)
    offset = stac.BOA_OFFSET if stac.has_offset(view.visit.baseline) else 0
    number = np.clip(np.rint(seen * REFLECTANCE_SCALE) + offset, 1, MAX_REFLECTANCE).astype(np.uint16)
    number[average_blocks(view.valid, factor) < 1] = 0
    geobox = view.product.geobox.zoom_out(factor)
    _write_cog(folder / f"{facts.name}.tif", number[None], geobox, nodata=0, names=(facts.name,))
    return clear


def _write_truth(view: _View, clear: dict[str, Image]) -> dict[str, str]:
    """Write what lies under the clouds and where they are, on the grid of the area; the names of the files."""
    inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    values = np.stack([np.clip(np.rint(clear[name][inner] * REFLECTANCE_SCALE), 0, MAX_REFLECTANCE) for name in L2A_BANDS])
    item, grid = view.product.item, view.site.grid
    _write_cog(view.site.truth / f"{item}.tif", values.astype(np.uint16), grid, nodata=TRUTH_NODATA, names=L2A_BANDS)
    masks = np.stack([np.rint(np.clip(part[inner], 0, 1) * 255) for part in (view.sky.cloud, view.sky.shadow)]).astype(np.uint8)
    _write_cog(view.site.truth / f"{item}_cloud.tif", masks, grid, nodata=None, names=("cloud", "shadow"))
    return {"truth": f"truth/{item}.tif", "cloud": f"truth/{item}_cloud.tif"}


def _write_sar(site: _Site, partner: str | None, flight: tuple[datetime, Any, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one Sentinel-1 product: displaced, speckled, zero outside the swath although another nodata value is declared."""
    moment, direction, track = flight
    moment += timedelta(seconds=7 * site.number)
    orbit = 38_000 + int((moment.date() - datetime(2021, 5, 20, tzinfo=UTC).date()).days * 14.6)
    span = "_".join(f"{moment + timedelta(seconds=s):%Y%m%dT%H%M%S}" for s in (-12, 13))
    name = f"S1A_IW_GRDH_1SDV_{span}_{orbit:06d}_{0x47000 + orbit % 4096:06X}_rtc"
    rng = site.rng(name)
    displacement = draw_displacement(rng, site.settings.max_shift_px)
    power = compute_backscatter(site.ground, looks_right_deg=100 if direction == "ascending" else 260)
    centre = ((site.ground.unit.shape[0] - 1) / 2, (site.ground.unit.shape[1] - 1) / 2)
    seen = site.crop(displace_image(power, displacement, centre), SAR_MARGIN_PX)
    seen = add_speckle(rng, seen, site.settings.looks)
    swath = make_swath(seen.shape[1:], left_px=44, right_px=70, slant=0.03)
    seen = np.where(swath if direction == "ascending" else swath[:, ::-1], seen, np.float32(0))
    above, below, left, right = SAR_MARGIN_PX
    grid = site.grid.pad(max(SAR_MARGIN_PX))
    geobox = grid[
        max(SAR_MARGIN_PX) - above : grid.shape.y - max(SAR_MARGIN_PX) + below,
        max(SAR_MARGIN_PX) - left : grid.shape.x - max(SAR_MARGIN_PX) + right,
    ]
    product = stac.Product(name, site.name, moment, geobox, site.area.dialect)
    for index, band in enumerate(SAR_BANDS):
        path = site.assets / site.name / name / f"{band.lower()}.tif"
        _write_cog(path, seen[index][None], geobox, nodata=stac.SAR_NODATA, names=(band,))
    item = stac.to_sar_item(product, stac.SarFacts(direction, track))
    fact = {"item": name, "collection": item["collection"], "time": moment.isoformat(), "partner": partner}
    return fact | {"displacement": displacement._asdict()}, item


def _write_dem(site: _Site, moment: datetime) -> dict[str, Any]:
    product = stac.Product(f"DEM_{site.name}", site.name, moment, site.grid.pad(MARGIN_PX), site.area.dialect)
    height = site.crop(site.ground.height_m, (MARGIN_PX,) * 4).round(1)
    _write_cog(site.assets / site.name / product.item / "dem.tif", height[None], product.geobox, nodata=None, names=("height",))
    return stac.to_dem_item(product)


def _write_cog(path: Path, image: npt.NDArray[Any], geobox: GeoBox, *, nodata: float | None, names: tuple[str, ...]) -> None:
    """Write `image` (band, y, x) as a cloud-optimised GeoTIFF; nothing in it depends on the moment of writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resampling = Resampling.nearest if image.dtype == np.uint8 else Resampling.average
    profile = {
        "driver": "COG",
        "dtype": image.dtype.name,
        "count": image.shape[0],
        "height": image.shape[1],
        "width": image.shape[2],
        "crs": str(geobox.crs),
        "transform": geobox.transform,
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile, compress="DEFLATE", level=1, predictor="YES", overview_resampling=resampling.name) as file:
        file.write(image)
        for index, name in enumerate(names, start=1):
            file.set_band_description(index, name)


def _write_catalogue(root: Path, items: list[dict[str, Any]]) -> None:
    """Write the items, their collections and the root of the static catalogue."""
    names = sorted({item["collection"] for item in items})
    with staged(root / "items") as folder:
        for name in names:
            members = [item for item in items if item["collection"] == name]
            write_json(folder / name / "collection.json", stac.to_collection(name, members))
            for item in members:
                write_json(folder / name / f"{item['id']}.json", item)
    write_json(root / "catalog.json", stac.to_catalog(names))


def _hash_files(root: Path, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file in those parts of `root`, by relative path."""
    paths = [path for part in parts for path in ([root / part] if (root / part).is_file() else sorted((root / part).rglob("*")))]
    hashes = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as stream:
                hashes[path.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
