"""Make a small world with known truth: products of satellites as real files, a catalogue, and what lies under the clouds.

Enters: settings with a seed. Leaves, beside `world.json`: `assets/`, `items/`, `catalog.json` (a static STAC catalogue), `truth/`, and for
areas of Gaofen `products/`: whole products of Gaofen-6 and 3, as folders and archives, placed wrong by their own coefficients.
The same seed gives the same bytes; `world.json` comes last and lists them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

from sereno.pipeline import stac
from sereno.pipeline.atmosphere import Sky, SkySettings, Sun, apply_sky, classify_scene, compute_sun, make_sky
from sereno.pipeline.averages import average_blocks
from sereno.pipeline.bands import L2A_BANDS, SAR_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import SimulatedArea, SimulateSettings
from sereno.pipeline.errors import ConfigError, StoreError
from sereno.pipeline.ground import KIND_INDEX, PIXEL_M, Ground, compute_cube, compute_shading, compute_spectra, make_ground
from sereno.pipeline.imagers import LANDSAT, LANDSAT_QA, MODIS, MODIS_STATE
from sereno.pipeline.noise import Image, blur_image, draw_sensor_noise
from sereno.pipeline.overflights import Scenery, cover_scenery, draw_error, make_scenery, sample_layers
from sereno.pipeline.overlay import Overlay
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.products import (
    OPTICAL_GSD_M,
    Pass,
    Radar,
    pack_product,
    write_gaofen3,
    write_gaofen6_pms,
    write_gaofen6_wfv,
)
from sereno.pipeline.radar import add_speckle, compute_backscatter, displace_image, draw_displacement, make_swath
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE
from sereno.pipeline.store import staged, write_json
from sereno.pipeline.twins import (
    CLOUD_BIT,
    LEFT_CLOUDY,
    RESPONSE,
    SEEN_AS,
    Composite,
    Footprints,
    find_composite,
    lay_footprints,
    see_coarse,
    to_numbers,
    to_qa_pixel,
    to_state,
    to_tile,
)
from sereno.pipeline.views import HEADING_DEG, Terrain
from sereno.pipeline.world import (
    MARGIN_PX,
    SAR_MARGIN_PX,
    Flight,
    Role,
    Visit,
    draw_sky,
    make_rng,
    name_landsat,
    name_modis,
    name_optical,
    name_sar,
    plan_flights,
    plan_landsat_visits,
    plan_visits,
)

logger = logging.getLogger(__name__)

FORMAT: Final = "sereno-world/1"
TRUTH_NODATA: Final = 65535
OVERVIEWS: Final = 3
"""Smaller copies in each file, each with half the pixels along a side of the one before: classes of 20 m are there at 160 m too."""
CAMERAS: Final = {"gaofen-pms": "PMS", "gaofen-wfv": "WFV"}
"""Cameras of Gaofen-6 by the setting `satellites`."""
GRID_PIXEL_M: Final = {"PMS": OPTICAL_GSD_M["MUX"], "WFV": OPTICAL_GSD_M["WFV"]}
"""Pixel of the truth for each camera: its own."""
PAN_MAX_PX: Final = 300
"""Products of areas up to this side hold the panchromatic image too, which takes sixteen times the pixels of the others."""
CUBE: Final = "cube"
"""The setting `satellites` of an area that is a hyperspectral cube."""
TWINS: Final = "landsat-modis"
"""The setting `satellites` of an area that Landsat and MODIS see."""
LANDSAT_PX: Final = 3
"""Pixels of the ground along each side of one of Landsat."""
FEW_CLOUDS_PX: Final = 50
"""Least size of clouds over Landsat, pixels of 10 m: QA_PIXEL flags 90 m around each, of many small ones most of the ground."""
LEFT_CLOUD: Final[Mapping[Role, float]] = {"clear": 0.004, "cloudy": 0.3, "overcast": 0.9}
"""Share of cloud left in a composite of the days around such a visit: a period without a clear day has none to choose."""
WAVELENGTHS_NM: Final = {band.name: band.wavelength_nm for band in SENTINEL2_BANDS}
"""Central wavelengths of Sentinel-2."""
CUBE_WAVELENGTHS_NM: Final = tuple(float(450 + 10 * band) for band in range(28))
"""Bands of cubes: 28, as usual in snapshot imaging, from blue to the red edge."""
FIRST_SERIAL: Final = 1_420_000_000
"""Products of Gaofen are numbered from here, a hundred numbers for each area ..."""
SAR_SERIAL: Final = 50
"""... of which these and later ones are for SAR."""
CLOUDY_FROM: Final = 0.5
"""Cloud cover is stated as the share of ground of whose light a cloud hides this much."""


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
    folders: Mapping[str, Path]
    """Where it is written, by part of the world: the parts that such an area has, no others."""

    @property
    def assets(self) -> Path:
        """Folder of the files that items of the catalogue name."""
        return self.folders["assets"]

    @property
    def truth(self) -> Path:
        """Folder of what cloudy images hide."""
        return self.folders["truth"]

    @property
    def products(self) -> Path:
        """Folder of whole products."""
        return self.folders["products"]

    @property
    def cubes(self) -> Path:
        """Folder of hyperspectral cubes."""
        return self.folders["cubes"]

    @property
    def terrain(self) -> Terrain:
        """The relief of the ground and where it lies, margin and all; the simulated sea is level with the ellipsoid."""
        return Terrain(self.grid.pad(self.margin_px), self.ground.height_m)

    def rng(self, *purpose: object) -> np.random.Generator:
        """A Generator for one purpose in this area, whatever else is drawn."""
        return make_rng(self.settings.seed, self.name, *purpose)

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
    and the SHA-256 of every file. Scenes of Gaofen have `path` and instead of a displacement `error_m`: east and north by which their
    coefficients place everything off, optical ones too. Their truth is reflectance at the top of the atmosphere.

    Raises:
        ConfigError: no area is named.
        StoreError: the files cannot be written, or another job wrote into the same folder meanwhile.
    """
    if not settings.areas:
        raise ConfigError("simulate: 'areas' is empty; name at least one area with epsg, west_m and south_m")
    begin = time.perf_counter()
    logger.info("simulate: %d areas, %d cloudy dates each, seed %d", len(settings.areas), settings.cloudy_dates, settings.seed)
    root = output.parent
    output.unlink(missing_ok=True)
    items: list[dict[str, Any]] = []
    areas: dict[str, Any] = {}
    parts = _list_parts({area.satellites for area in settings.areas.values()})
    with contextlib.ExitStack() as stack:
        folders = {part: stack.enter_context(staged(root / part)) for part in parts}
        for number, (name, area) in enumerate(sorted(settings.areas.items())):  # equal settings, whatever their order
            site = _open_site((name, number, area), settings, folders)
            areas[name], new = WRITERS.get(area.satellites, _write_area)(site)
            items += new
            logger.info("simulate: %s, area %d of %d, %.1f s", name, number + 1, len(settings.areas), time.perf_counter() - begin)
    _check_complete(root, items, areas)  # here so that the fault is named, and below since it may come while files are read
    files = _hash_files(root, parts)
    if items:  # a world of cubes has none
        _write_catalogue(root, [_state_files(root, item, files) for item in items])
    files |= _hash_files(root, ("items", "catalog.json"))
    _check_complete(root, items, areas)
    write_json(output, {"format": FORMAT, "seed": settings.seed, "areas": areas, "files": files})
    logger.info("simulate: %d items, %d files in %.1f s", len(items), len(files), time.perf_counter() - begin)


def _list_parts(satellites: set[str]) -> list[str]:
    """Folders of a world that holds areas of these `satellites`."""
    scenes = [*(["assets"] if satellites - {CUBE} else []), *(["truth"] if satellites - {CUBE, TWINS} else [])]
    return [*scenes, *(["products"] if satellites & set(CAMERAS) else []), *(["cubes"] if CUBE in satellites else [])]


def _open_site(area: tuple[str, int, SimulatedArea], settings: SimulateSettings, folders: Mapping[str, Path]) -> _Site:
    name, number, square = area
    size = square.size_px
    corner = Affine(PIXEL_M, 0, square.west_m, 0, -PIXEL_M, square.south_m + PIXEL_M * size)
    margin = max(SAR_MARGIN_PX) + math.ceil(settings.max_shift_px) + 2
    shape = (size + 2 * margin, size + 2 * margin)
    ground = make_ground(make_rng(settings.seed, name, "ground"), shape)
    ground = replace(ground, height_m=ground.height_m * np.float32(square.relief))
    grid = GeoBox((size, size), corner, f"EPSG:{square.epsg}")
    own = {part: folders[part] for part in _list_parts({square.satellites})}
    return _Site(name, number, square, settings, ground, grid, margin, own)


def _write_area(site: _Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write all products of Sentinel of one area; what `world.json` says of it, and its items."""
    visits = plan_visits(site.settings.cloudy_dates, first_baseline=site.number)
    optical = [_write_optical(site, visit) for visit in visits]
    cloudy = [fact for fact, _ in optical if fact["role"] == "cloudy"]
    partners = [(fact["item"], datetime.fromisoformat(fact["time"])) for fact in cloudy]
    first = datetime.fromisoformat(optical[0][0]["time"])
    sar = [_write_sar(site, flight) for flight in plan_flights(first, partners)]
    dem = _write_dem(site, first, MARGIN_PX)
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
    moment = visit.time_at(site.settings.first_day, site.number)
    sun = compute_sun(moment, *stac.to_middle(site.grid))
    geobox = site.grid.pad(MARGIN_PX)
    product = stac.Product(
        name_optical(stac.to_grid_code(geobox), moment, visit.baseline, site.area.dialect), site.name, moment, geobox, site.area.dialect
    )
    rng = site.rng(product.item, "sky")
    shape = (geobox.shape.y, geobox.shape.x)
    sky = make_sky(rng, shape, settings=draw_sky(rng, visit.role, site.area.size_px), sun=sun)
    edge = 0.09 * shape[1] if visit.wedge else 0.0
    valid = make_swath(shape, left_px=0, right_px=edge, slant=0.09)
    spectra = compute_spectra(site.ground.units, moment.timetuple().tm_yday)
    shading = compute_shading(site.ground.height_m, sun.azimuth_deg, sun.elevation_deg)
    return _View(site, visit, product, sun, sky, valid, spectra, shading)


def _write_band(view: _View, band: int, folder: Path) -> Image:
    """Write one band as the satellite delivers it; its cloud-free reflectance at 10 m, (y, x)."""
    site, facts = view.site, SENTINEL2_BANDS[[b.name for b in SENTINEL2_BANDS].index(L2A_BANDS[band])]
    mean, contrast = (np.ascontiguousarray(part[:, band]) for part in view.spectra)
    ground = mean[site.ground.unit] + contrast[site.ground.unit] * site.ground.texture
    clear: Image = site.crop(blur_image(ground * view.shading), (MARGIN_PX,) * 4)
    factor = facts.gsd_m // 10
    seen = average_blocks(apply_sky(clear, view.sky, band=band, wavelength_nm=facts.wavelength_nm), factor)
    rng = site.rng(view.product.item, facts.name)
    seen += draw_sensor_noise(rng, seen)
    offset = stac.BOA_OFFSET if stac.has_offset(view.visit.baseline) else 0
    number = np.clip(np.rint(seen * REFLECTANCE_SCALE) + offset, 1, MAX_REFLECTANCE).astype(np.uint16)
    number[average_blocks(view.valid, factor) < 1] = 0
    geobox = view.product.geobox.zoom_out(factor)
    _write_cog(folder / f"{facts.name}.tif", number[None], geobox, nodata=0, names=(facts.name,))
    return clear


def _write_truth(view: _View, clear: dict[str, Image]) -> dict[str, str]:
    """Write what lies under the clouds and where they are, on the grid of the area; the names of the files."""
    inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    reflectance = np.stack([clear[name][inner] for name in L2A_BANDS])
    covers = np.stack([part[inner] for part in (view.sky.cloud, view.sky.shadow)])
    return _write_truth_images(view.site, view.product.item, (reflectance, covers), view.site.grid, L2A_BANDS)


def _write_truth_images(site: _Site, item: str, images: tuple[Image, Image], grid: GeoBox, names: tuple[str, ...]) -> dict[str, str]:
    """Write reflectance (band, y, x), and the shares 0..1 that clouds and shadows hide (2, y, x), on `grid`; the names of the files."""
    reflectance, covers = images
    values = np.clip(np.rint(reflectance * REFLECTANCE_SCALE), 0, MAX_REFLECTANCE).astype(np.uint16)
    _write_cog(site.truth / f"{item}.tif", values, grid, nodata=TRUTH_NODATA, names=names)
    masks = np.rint(np.clip(covers, 0, 1) * 255).astype(np.uint8)
    _write_cog(site.truth / f"{item}_cloud.tif", masks, grid, nodata=None, names=("cloud", "shadow"))
    return {"truth": f"truth/{item}.tif", "cloud": f"truth/{item}_cloud.tif"}


def _write_sar(site: _Site, flight: Flight) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one Sentinel-1 product: displaced, speckled, zero outside the swath although another nodata value is declared."""
    name = name_sar(flight)
    rng = site.rng(name)
    displacement = draw_displacement(rng, site.settings.max_shift_px)
    ascending = flight.direction == "ascending"
    power = compute_backscatter(site.ground, looks_right_deg=100 if ascending else 260)
    centre = ((site.ground.unit.shape[0] - 1) / 2, (site.ground.unit.shape[1] - 1) / 2)
    seen = add_speckle(rng, site.crop(displace_image(power, displacement, centre), SAR_MARGIN_PX), site.settings.looks)
    swath = make_swath(seen.shape[1:], left_px=44, right_px=70, slant=0.03)
    seen = np.where(swath if ascending else swath[:, ::-1], seen, np.float32(0))
    above, _, left, _ = SAR_MARGIN_PX
    corner = site.grid.transform * Affine.translation(-left, -above)
    product = stac.Product(name, site.name, flight.time, GeoBox(seen.shape[1:], corner, site.grid.crs), site.area.dialect)
    for index, band in enumerate(SAR_BANDS):
        path = site.assets / site.name / name / f"{band.lower()}.tif"
        _write_cog(path, seen[index][None], product.geobox, nodata=stac.SAR_NODATA, names=(band,))
    item = stac.to_sar_item(product, stac.SarFacts(flight.direction, flight.track))
    fact = {"item": name, "collection": item["collection"], "time": flight.time.isoformat(), "partner": flight.partner}
    return fact | {"displacement": displacement._asdict()}, item


def _write_dem(site: _Site, moment: datetime, margin_px: int) -> dict[str, Any]:
    """Write the heights of the area and so many pixels around it; its item."""
    product = stac.Product(f"DEM_{site.name}", site.name, moment, site.grid.pad(margin_px), site.area.dialect)
    height = site.crop(site.ground.height_m, (margin_px,) * 4).round(1)
    _write_cog(site.assets / site.name / product.item / "dem.tif", height[None], product.geobox, nodata=None, names=("height",))
    return stac.to_dem_item(product)


def _write_gaofen_area(site: _Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write all products of Gaofen of one area; what `world.json` says of it, and the item of its heights."""
    pixel_m = GRID_PIXEL_M[CAMERAS[site.area.satellites]]
    grid = site.grid.zoom_to(resolution=pixel_m)
    visits = [visit for visit in plan_visits(site.settings.cloudy_dates) if visit.role != "overcast"]
    optical = [_write_gaofen6(site, visit, index, grid) for index, visit in enumerate(visits)]
    partners = [(fact["item"], datetime.fromisoformat(fact["time"])) for fact in optical if fact["role"] == "cloudy"]
    first = datetime.fromisoformat(optical[0]["time"])
    flights = [flight for flight in plan_flights(first, partners) if flight.partner is not None]
    power = compute_backscatter(site.ground, looks_right_deg=90 + HEADING_DEG)
    dem = _write_dem(site, first, site.margin_px)
    facts = {
        "grid": GridRecord.from_geobox(grid).model_dump(mode="json"),
        "satellites": site.area.satellites,
        "optical": optical,
        "sar": [_write_gaofen3(site, flight, index, power) for index, flight in enumerate(flights)],
        "dem": dem["id"],
    }
    return facts, [dem]


def _plan_pass(site: _Site, moment: datetime, number: int) -> Pass:
    """One overflight; metadata state whole seconds."""
    error_m = draw_error(site.rng("gaofen error", number), site.settings.rpc_error_m)
    return Pass(moment.replace(microsecond=0), FIRST_SERIAL + 100 * site.number + number, error_m)


def _write_gaofen6(site: _Site, visit: Visit, number: int, grid: GeoBox) -> dict[str, Any]:
    """Write one product of Gaofen-6, and its truth on `grid` if it is cloudy; what `world.json` says of it."""
    flight = _plan_pass(site, visit.time_at(site.settings.first_day, site.number), number)
    camera, rng = CAMERAS[site.area.satellites], site.rng("gaofen sky", number)
    scenery = make_scenery(site.ground, camera, flight.time, stac.to_middle(site.grid))
    seen = cover_scenery(rng, scenery, draw_sky(rng, visit.role, site.area.size_px))
    cover = round(100 * float((seen.cloud >= CLOUDY_FROM).mean()), 1)
    flight = flight._replace(cloud_pct=cover)
    if camera == "WFV":
        product = write_gaofen6_wfv(site.products, site.terrain, seen.image, flight)
    else:
        has_pan = site.area.size_px <= PAN_MAX_PX
        product = write_gaofen6_pms(site.products, site.terrain, seen.image, flight, has_pan=has_pan)
    fact = _describe_product(site, product, flight) | {"role": visit.role, "cloud_cover_pct": cover}
    truth = _write_gaofen_truth(site, product.name, (scenery, seen), grid) if visit.role == "cloudy" else {"truth": None, "cloud": None}
    return fact | truth


def _describe_product(site: _Site, product: Path, flight: Pass) -> dict[str, Any]:
    """Pack every second product; what `world.json` says of any."""
    packed = pack_product(product) if flight.serial % 2 else product
    path = f"products/{packed.relative_to(site.products).as_posix()}"
    return {"item": product.name, "path": path, "time": flight.time.isoformat(), "error_m": list(flight.error_m)}


def _write_gaofen_truth(site: _Site, item: str, images: tuple[Scenery, Overlay], grid: GeoBox) -> dict[str, str]:
    """Write what lies under the clouds and where they are, on `grid`, where it truly is; the names of the files."""
    (scenery, seen), source = images, site.terrain.geobox
    sampled = tuple(sample_layers(layers, source, grid) for layers in (scenery.reflectance, np.stack([seen.cloud, seen.shadow])))
    return _write_truth_images(site, item, (sampled[0], sampled[1]), grid, tuple(band.name for band in scenery.bands))


def _write_gaofen3(site: _Site, flight: Flight, number: int, power: Image) -> dict[str, Any]:
    """Write one product of Gaofen-3; what `world.json` says of it. Its HH and HV are the ground's VV and VH."""
    over = _plan_pass(site, flight.time, SAR_SERIAL + number)
    radar = Radar(level=site.settings.radar_level)
    speckle = site.rng("gaofen speckle", number)
    gamma0 = {"HH": power[0], "HV": power[1]}
    product = write_gaofen3(site.products, site.terrain, gamma0, over, radar=radar, speckle=speckle)
    return _describe_product(site, product, over) | {"partner": flight.partner}


def _write_twin_area(site: _Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write all products of Landsat and MODIS of one area; what `world.json` says of it, and its items."""
    visits = plan_landsat_visits(site.settings.cloudy_dates)
    fine = [_write_landsat(site, visit) for visit in visits]
    composites = {find_composite(visit.time_at(site.settings.first_day, site.number)): visit.role for visit in visits}
    footprints = lay_footprints(site.grid.pad(site.margin_px))
    coarse = [_write_modis(site, footprints, composite, LEFT_CLOUD[role]) for composite, role in composites.items()]
    facts = {
        "grid": GridRecord.from_geobox(site.grid.zoom_out(LANDSAT_PX)).model_dump(mode="json"),
        "satellites": TWINS,
        "dialect": site.area.dialect,
        "optical": [fact for fact, _ in fine],
        "sar": [],
        "coarse": [fact for fact, _ in coarse],
        "response": dict(RESPONSE),
    }
    return facts, [item for _, item in (*fine, *coarse)]


def _write_landsat(site: _Site, visit: Visit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one Landsat product, the first of a few rows of its path: its pixels have their centres at multiples of 30 m."""
    moment = visit.time_at(site.settings.first_day, site.number)
    path_row, wide = (193 + site.number, 28), site.grid.pad(MARGIN_PX)
    product = stac.Product(name_landsat(moment, path_row), site.name, moment, wide.zoom_out(LANDSAT_PX), site.area.dialect)
    sun, rng = compute_sun(moment, *stac.to_middle(site.grid)), site.rng(product.item, "sky")
    settings = draw_sky(rng, visit.role, site.area.size_px)
    settings = settings._replace(blob_px=max(settings.blob_px, FEW_CLOUDS_PX))
    sky = make_sky(rng, (wide.shape.y, wide.shape.x), settings=settings, sun=sun)
    coarse_sky = Sky(*(average_blocks(getattr(sky, part), LANDSAT_PX) for part in ("thick", "top", "haze", "cirrus", "shadow")))
    valid = np.ones(tuple(product.geobox.shape), bool)
    folder = site.assets / site.name / product.item
    for band, own in SEEN_AS.items():
        clear = site.crop(_see_ground(site, own, moment.timetuple().tm_yday, sun), (MARGIN_PX,) * 4)
        seen = average_blocks(apply_sky(clear, sky, band=L2A_BANDS.index(own), wavelength_nm=WAVELENGTHS_NM[own]), LANDSAT_PX)
        seen += draw_sensor_noise(site.rng(product.item, band), seen)
        name = LANDSAT.bands[band][1]
        _write_cog(folder / f"{name}.tif", to_numbers(seen, LANDSAT, valid)[None], product.geobox, nodata=LANDSAT.fill, names=(name,))
    is_water = np.isin(site.ground.units.kind[site.ground.unit], [KIND_INDEX["river"], KIND_INDEX["lake"]])
    water = average_blocks(site.crop(is_water, (MARGIN_PX,) * 4), LANDSAT_PX) > 0.5
    bits = to_qa_pixel(coarse_sky, water, valid)
    _write_cog(folder / "QA_PIXEL.tif", bits[None], product.geobox, nodata=LANDSAT_QA.fill, names=("QA_PIXEL",), classes=True)
    cover = round(100 * float((bits & CLOUD_BIT > 0).mean()), 2)
    sun_facts = (round(sun.azimuth_deg, 4), round(sun.elevation_deg, 4))
    item = stac.to_landsat_item(product, stac.LandsatFacts(cover, *sun_facts, path_row))
    fact = {"item": product.item, "collection": item["collection"], "time": moment.isoformat(), "role": visit.role}
    return fact | {"cloud_cover_pct": cover, "truth": None, "cloud": None}, item


def _see_ground(site: _Site, band: str, day: float, sun: Sun) -> Image:
    """Cloud-free reflectance of the ground, margin and all, in a band of Sentinel-2 on that day of the year, (y, x)."""
    mean, contrast = (part[:, L2A_BANDS.index(band)] for part in compute_spectra(site.ground.units, day))
    shading = compute_shading(site.ground.height_m, sun.azimuth_deg, sun.elevation_deg)
    ground: Image = (mean[site.ground.unit] + contrast[site.ground.unit] * site.ground.texture) * shading
    return ground


def _write_modis(site: _Site, footprints: Footprints, composite: Composite, left: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one composite of MODIS with that share of cloud left in it."""
    tile, geobox = to_tile(footprints.geobox), footprints.geobox
    product = stac.Product(name_modis(composite.start, tile), site.name, composite.middle, geobox, site.area.dialect)
    sun, rng = compute_sun(composite.middle.replace(hour=10, minute=30), *stac.to_middle(site.grid)), site.rng(product.item)
    settings = SkySettings(left, blob_px=90, haze=0.0, cirrus=0.0, base_m=900)
    sky = make_sky(rng, footprints.place.shape, settings=settings, sun=sun)
    cloud = footprints.average(sky.thick)
    folder = site.assets / site.name / product.item
    for band, own in SEEN_AS.items():
        ground = footprints.average(_see_ground(site, own, composite.middle.timetuple().tm_yday, sun))
        numbers = to_numbers(see_coarse(rng, ground, cloud, band), MODIS, footprints.is_whole)
        key = MODIS.bands[band][0]
        _write_cog(folder / f"{key}.tif", numbers[None], geobox, nodata=MODIS.fill, names=(key,))
    state = to_state(cloud, footprints.is_whole)
    _write_cog(folder / f"{MODIS_STATE.key}.tif", state[None], geobox, nodata=None, names=(MODIS_STATE.key,), classes=True)
    item = stac.to_modis_item(product, stac.ModisFacts(composite.start, composite.end, tile))
    cover = round(100 * float((cloud >= LEFT_CLOUDY)[footprints.is_whole].mean()), 2)
    fact = {"item": product.item, "collection": item["collection"], "period": [composite.start.isoformat(), composite.end.isoformat()]}
    return fact | {"cloud_cover_pct": cover}, item


def _write_cube_area(site: _Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write a hyperspectral cube of the ground; what `world.json` says of it. It is no item of the catalogue."""
    day = site.settings.first_day.timetuple().tm_yday
    cube = compute_cube(site.rng("cube"), site.ground, CUBE_WAVELENGTHS_NM, day=day)
    stored = np.rint(site.crop(cube, (0, 0, 0, 0)).clip(0, 1) * np.iinfo(np.uint16).max).astype(np.uint16)
    folder = _make_folder(site.cubes)
    np.save(folder / f"{site.name}.npy", np.ascontiguousarray(np.moveaxis(stored, 0, -1)))
    (folder / f"{site.name}.wavelengths.txt").write_text("".join(f"{wavelength:g}\n" for wavelength in CUBE_WAVELENGTHS_NM))
    grid = GridRecord.from_geobox(site.grid).model_dump(mode="json")
    return {"grid": grid, "satellites": CUBE, "optical": [], "sar": [], "cube": f"cubes/{site.name}.npy"}, []


def _make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


WRITERS: Final[Mapping[str, Callable[[_Site], tuple[dict[str, Any], list[dict[str, Any]]]]]] = {
    **dict.fromkeys(CAMERAS, _write_gaofen_area),
    CUBE: _write_cube_area,
    TWINS: _write_twin_area,
}
"""Who writes an area, by its `satellites`; that of Sentinel is not named."""


def _write_cog(
    path: Path, image: npt.NDArray[Any], geobox: GeoBox, *, nodata: float | None, names: tuple[str, ...], classes: bool = False
) -> None:
    """Write `image` (band, y, x) as a cloud-optimised GeoTIFF; nothing in it depends on the moment of writing.

    Smaller copies are means; of bytes and other `classes`, which have none, single pixels.

    NOTE: GDAL builds it in memory, and Python writes the bytes: on a full disk GDAL's COG driver leaves a file that is cut short and
    reports nothing, or an error without a name (measured with GDAL 3.10).
    """
    resampling = Resampling.nearest if classes or image.dtype == np.uint8 else Resampling.average
    options = {"compress": "DEFLATE", "level": 1, "predictor": "YES", "overview_resampling": resampling.name, "overview_count": OVERVIEWS}
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
    with MemoryFile() as memory:
        with memory.open(**profile, **options) as file:
            file.write(image)
            for index, name in enumerate(names, start=1):
                file.set_band_description(index, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(memory.getbuffer())


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


def _state_files(root: Path, item: dict[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """`item` with size and checksum of each of its files."""
    names = {key: asset["href"].removeprefix(stac.TO_ROOT) for key, asset in item["assets"].items()}
    facts = {key: stac.FileFacts((root / name).stat().st_size, hashes[name]) for key, name in names.items()}
    return stac.with_files(item, facts)


def _check_complete(root: Path, items: list[dict[str, Any]], areas: Mapping[str, Any]) -> None:
    """Refuse a world that lacks a file: two jobs at once in one folder remove each other's unfinished work."""
    wanted = [root / asset["href"].removeprefix(stac.TO_ROOT) for item in items for asset in item["assets"].values()]
    wanted += [root / scene["path"] for facts in areas.values() for scene in (*facts["optical"], *facts["sar"]) if "path" in scene]
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise StoreError(f"{missing[0]} and {len(missing) - 1} more files are gone: is another job writing to {root}? Run again, alone")


def _hash_files(root: Path, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file in those parts of `root`, by relative path."""
    paths = [path for part in parts for path in ([root / part] if (root / part).is_file() else sorted((root / part).rglob("*")))]
    hashes = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as stream:
                hashes[path.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
