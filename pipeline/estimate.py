"""What a run will fetch, make and keep, reckoned from its locks before anything is fetched.

Locks and settings enter; a plan per area leaves, and lines to print. Sizes that no catalogue states are taken from typical ones, and the
plan says how many. Pure: no file is opened, no server is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from odc.geo.geobox import GeoBox

from sereno.pipeline.archives import is_archive
from sereno.pipeline.areas import to_bboxes
from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, PAN, POLARISATIONS, SAR_BANDS, select_gaofen_bands
from sereno.pipeline.config import PlanSettings
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.imagers import CLASSIFICATIONS, IMAGERS
from sereno.pipeline.items import NATIVE_M
from sereno.pipeline.ledger import to_lines, to_size
from sereno.pipeline.pairs import AssetRecord, Group, ItemRecord, Lock, Pair, SceneRecord, Sensor, is_gaofen, is_sar, needs_heights
from sereno.pipeline.patches import MASK_CHANNELS
from sereno.pipeline.polygons import Bbox
from sereno.pipeline.presets import PRESETS
from sereno.pipeline.samples import SKIES_OF, list_skies
from sereno.pipeline.splits import block_windows

SAR_GSD_M: Final = 10
"""Pixel of Sentinel-1 RTC and GRD images (IW, high resolution)."""
OPTICAL_GSD_M: Final = 10
"""Finest pixel of Sentinel-2."""
TILE_PX: Final = 512
"""Side of a tile inside the files: GDAL's default for cloud-optimised ones. Tiles are fetched whole: a window costs one more each way."""
FULL_SHARE: Final = 0.75
"""Share of a file that is its full resolution; the rest are overviews, of a quarter, a sixteenth and so on of its pixels."""
HEADER_BYTES: Final = 32_768
"""Fetched when a file is opened."""
DOCUMENT_BYTES: Final = 1_000_000
"""Typical annotation, calibration or noise file of Sentinel-1: 0.3 to 1.7 MB in three products of 2015 to 2021."""
TYPICAL_BYTES_PX: Final[Mapping[int, float]] = {10: 1.31, 20: 1.85, 60: 1.94}
"""Bytes per pixel of a whole file with its overviews, by pixel size in metres: medians of ten Sentinel-2 items of Earth Search."""
TYPICAL_SCL_BYTES_PX: Final = 0.03
"""The same for the scene classification."""
IMAGER_BYTES_PX: Final = 1.85
"""The same for Landsat and MODIS: that of 20 m, since both hold two bytes a pixel (assumed, not measured)."""
TYPICAL_SAR_BYTES_PX: Final = 3.0
"""The same for Sentinel-1 RTC (float32), its black corners counted as pixels: median of four items of Planetary Computer."""
DEM_GSD_M: Final = 30
"""Pixel of Copernicus DEM along a meridian."""
TYPICAL_DEM_BYTES_PX: Final = 3.0
"""The same for elevation models: float32, of which compression leaves about three quarters (assumed, not measured)."""
SLICE_FILL: Final = 0.73
"""Share of its bounding box that a Sentinel-1 slice of 250 by 170 km fills, 10 degrees off north; black corners cost next to nothing."""
OPTICAL_STORED: Final[Mapping[str, Mapping[int, float]]] = {"lz4": {10: 0.69, 20: 0.41, 60: 0.08}, "zstd": {10: 0.65, 20: 0.22, 60: 0.04}}
"""Stored bytes per byte of optical integers, by codec and native pixel in metres: a real cloudy and a real clear scene of 13 bands,
averaged, each band repeated from its native pixel to 10 m as ours are."""
SAR_STORED: Final = {"lz4": 0.71, "zstd": 0.70}
"""The same for SAR in hundredths of a decibel, of the same place."""
MASK_STORED: Final = 0.1
"""The same for validity, classes and cloud probability, which hold large uniform areas: feathered masks of simulated scenes; any codec."""
PLATE_GSD_M: Final[Mapping[str, float]] = {"gaofen-pms": 8.0, "gaofen-wfv": 16.0, "gaofen-wfv4": 16.0}
"""Pixels of the optical cameras of Gaofen-1 and 6, of which the image is kept beside the gridded scene."""
PLATE_RATIO: Final = 1.5
"""Rows and columns of a kept SAR image per pixel of the grid: it is averaged to between one and two, whose mean square is that of 1.5."""
PLATE_ASKEW: Final = 1.4
"""Pixels of the box in a kept image that holds a square of ground, per pixel of that square: (sine + cosine)^2 of some 12 degrees by which
tracks are turned against north."""
RELIEF_STORED: Final = 0.8
"""Stored bytes per byte of a displacement by relief (float32): measured in a simulated scene with hills."""
MASK_LAYERS: Final = 2
"""Layers of the mask of an image: cloud and shadow."""
CUBE_BANDS: Final = 31
"""Bands that a hyperspectral cube is taken to have: 400 to 700 nm in steps of 10, as most public ones."""
STORE_CODEC: Final = "lz4"
"""Codec of every store but the dataset, whose codec is a setting."""
METRES_PER_DEGREE: Final = 111_320.0
"""Along a meridian; along a parallel times the cosine of the latitude."""
HEAD: Final = ("area", "scenes", "items", "assets", "to fetch", "requests", "pairs", "patches", "disk")
"""Columns of a printed plan."""
PATCHES_NOTE: Final = "patches are the most there can be: windows under clouds in the target, or outside of the images, are left out"
"""Why fewer patches come out."""


class Fetch(NamedTuple):
    """What reading one asset, or many, costs."""

    assets: int
    """Number of assets."""
    bytes: float
    """Bytes to fetch, estimated."""
    unstated: int
    """Assets whose size no catalogue states, so that a typical one is taken."""
    requests: int
    """Requests to a server; 0 where files lie in a folder."""


NOTHING: Final = Fetch(0, 0.0, 0, 0)
"""Nothing is read."""


class Disk(NamedTuple):
    """Bytes on disk after the run, estimated."""

    scenes: float
    """Calibrated scenes."""
    pairs: float
    """Aligned pairs."""
    masks: float
    """Cloud and shadow probabilities."""
    patches: float
    """Patches of each pair."""
    dataset: float
    """The packed dataset."""


class AreaPlan(NamedTuple):
    """One area, or the sum of several."""

    area: str
    """Its name, or `total`."""
    scenes: int
    """Acquisitions that are read."""
    items: int
    """Catalogue items they are laid of."""
    fetch: Fetch
    """What reading them costs."""
    pairs: int
    """Triplets of SAR, input and target, or groups of another task."""
    patches: int
    """Patches if every window of every pair is kept: the most there can be."""
    disk: Disk
    """What is left on disk, with that many patches."""
    unpacked: float
    """Bytes of the scene that unpacks to most, which stand in the folder for temporary files while it is read; 0 without archives."""


def estimate_area(lock: Lock, settings: PlanSettings) -> AreaPlan:
    """The plan of one lock."""
    geobox = lock.grid.to_geobox()
    read = [*lock.scenes.values(), *_find_dem(lock, settings)]
    fetches = [_estimate_asset(part, geobox, settings) for scene in read for part in _list_parts(lock, scene, settings)]
    patches = sum(_count_windows(lock.scene(_find_input(job)), geobox, settings) for job in lock.jobs)
    items = sum(len(scene.items) for scene in lock.scenes.values())
    disk = _estimate_disk(lock, geobox, patches, settings)
    unpacked = max((_measure_unpacked(scene, settings) for scene in lock.scenes.values()), default=0.0)
    return AreaPlan(lock.area, len(lock.scenes), items, _sum_fetches(fetches), len(lock.jobs), patches, disk, unpacked)


def _find_input(job: Pair | Group) -> str:
    """The scene whose delivered windows become patches."""
    return job.cloudy if isinstance(job, Pair) else job.scene_ids[0]


def sum_plans(plans: Sequence[AreaPlan]) -> AreaPlan:
    """All areas together; there must be one."""
    scenes, items, pairs, patches = (sum(column) for column in zip(*((p.scenes, p.items, p.pairs, p.patches) for p in plans), strict=True))
    disk = Disk(*(sum(column) for column in zip(*(plan.disk for plan in plans), strict=True)))
    unpacked = max(plan.unpacked for plan in plans)
    return AreaPlan("total", scenes, items, _sum_fetches([plan.fetch for plan in plans]), pairs, patches, disk, unpacked)


def _sum_fetches(parts: Sequence[Fetch]) -> Fetch:
    return Fetch(*(sum(column) for column in zip(NOTHING, *parts, strict=True)))


class _Part(NamedTuple):
    """One asset as it will be read."""

    name: str
    """Band, or what the file describes."""
    asset: AssetRecord
    """Where it is and how large."""
    item: ItemRecord
    """The item it belongs to."""
    is_remote: bool
    """Whether a server gives it."""


def _find_dem(lock: Lock, settings: PlanSettings) -> list[SceneRecord]:
    """The elevation models of the lock, if a scene needs them."""
    asked = settings.ingest.dem is None and any(needs_heights(scene.sensor) for scene in lock.scenes.values())
    return [lock.dem] if lock.dem is not None and asked else []


def _list_parts(lock: Lock, scene: SceneRecord, settings: PlanSettings) -> list[_Part]:
    """The assets of a scene that will be read: bands that are kept, and what describes them."""
    catalogue = scene.catalogue or lock.catalogue
    bands = _select_bands(scene, settings)
    left_out = {*L1C_BANDS, PAN, f"rpc-{PAN}"} - {*bands, *((f"rpc-{PAN}",) if PAN in bands else ())}
    return [
        _Part(name, asset, item, "://" in catalogue or "://" in asset.href or catalogue in PRESETS)
        for item in scene.items
        for name, asset in item.assets.items()
        if name not in left_out
    ]


def _select_bands(scene: SceneRecord, settings: PlanSettings) -> tuple[str, ...]:
    if scene.bands:
        return scene.bands
    if scene.sensor.startswith("gaofen-"):
        return settings.ingest.bands or select_gaofen_bands(scene.sensor)
    if scene.sensor in IMAGERS:
        return settings.ingest.bands or IMAGERS[scene.sensor].band_names
    return settings.ingest.bands or (L1C_BANDS if scene.sensor in ("sentinel2-l1c", "sen12mscr-s2") else L2A_BANDS)


def _measure_unpacked(scene: SceneRecord, settings: PlanSettings) -> float:
    """Bytes that a scene takes in the folder for temporary files while it is read: its largest item, if that lies in an archive."""
    bands = _select_bands(scene, settings)
    sizes = [
        sum(asset.size_bytes or 0 for name, asset in item.assets.items() if _is_packed(asset) and (PAN not in name or PAN in bands))
        for item in scene.items
    ]
    return float(max(sizes))


def _is_packed(asset: AssetRecord) -> bool:
    return any(is_archive(Path(part)) for part in PurePosixPath(asset.href).parts[:-1]) and "://" not in asset.href


def _estimate_asset(part: _Part, geobox: GeoBox, settings: PlanSettings) -> Fetch:
    """What reading one asset costs: whole tiles around the area, at full resolution."""
    gsd_m = None if is_gaofen(part.item.sensor) else _gsd_of(part.name, part.item.sensor)  # whose files are not cut into tiles
    stated = part.asset.size_bytes
    if gsd_m is None:  # a document, or a window of a delivered dataset: read whole
        return Fetch(1, stated or DOCUMENT_BYTES, int(stated is None), int(part.is_remote))
    margin_m = settings.dem.margin_m if part.item.sensor == "dem" else 0.0
    margin_m += settings.ingest.margin_px * measure_pixel(geobox) if is_sar(part.item.sensor) else 0.0
    width_m, height_m = _measure(part.item.bbox)
    tile_m = TILE_PX * gsd_m
    wanted = _measure_overlap(_enclose(geobox), part.item.bbox, margin_m)
    wide_m, high_m = (min(whole, side + tile_m) if all(wanted) else 0.0 for whole, side in zip((width_m, height_m), wanted, strict=True))
    fill = SLICE_FILL if is_sar(part.item.sensor) else 1.0
    share = min(1.0, wide_m * high_m / (width_m * height_m * fill))
    whole = stated or width_m * height_m / gsd_m**2 * _assume_bytes_px(part.name, gsd_m)
    rows = math.ceil(high_m / tile_m)  # the tiles of a row lie side by side in the file, so one request fetches them
    return Fetch(1, min(whole, HEADER_BYTES + whole * FULL_SHARE * share), int(stated is None), (1 + rows) * int(part.is_remote))


def _gsd_of(name: str, sensor: Sensor) -> int | None:
    """Pixel of a band in metres; None for what is no band of an image that is larger than the area."""
    if sensor in IMAGERS:
        return round(IMAGERS[sensor].pixel_m)
    return DEM_GSD_M if name == "dem" else SAR_GSD_M if name in POLARISATIONS else NATIVE_M.get(name)


def _assume_bytes_px(name: str, gsd_m: int) -> float:
    if name == "dem":
        return TYPICAL_DEM_BYTES_PX
    if name in POLARISATIONS:
        return TYPICAL_SAR_BYTES_PX
    return TYPICAL_SCL_BYTES_PX if name in CLASSIFICATIONS else TYPICAL_BYTES_PX.get(gsd_m, IMAGER_BYTES_PX)


def _measure(box: Bbox) -> tuple[float, float]:
    """Width and height in metres of a box in degrees; west may be greater than east."""
    west, south, east, north = box
    metres = METRES_PER_DEGREE * math.cos(math.radians((south + north) / 2))
    return ((east - west) % 360 or 360.0) * metres, (north - south) * METRES_PER_DEGREE


def _enclose(geobox: GeoBox) -> Bbox:
    """West, south, east, north in degrees; west is greater than east where the grid crosses 180 degrees."""
    boxes = to_bboxes(geobox)
    return boxes[0][0], boxes[0][1], boxes[-1][2], boxes[0][3]


def _measure_overlap(wanted: Bbox, there: Bbox, margin_m: float) -> tuple[float, float]:
    """Width and height in metres of the ground, grown by a margin, that two boxes in degrees share; 0 if they share none."""
    margin = margin_m / METRES_PER_DEGREE
    metres = METRES_PER_DEGREE * math.cos(math.radians((wanted[1] + wanted[3]) / 2))
    wide = margin_m / metres
    west, east = there[0], there[0] + ((there[2] - there[0]) % 360 or 360.0)
    begins = (wanted[0] - west + 180) % 360 - 180 + west  # the turn of the globe that lies nearest
    width = min(east, begins + (wanted[2] - wanted[0]) % 360 + wide) - max(west, begins - wide)
    height = min(there[3], wanted[3] + margin) - max(there[1], wanted[1] - margin)
    return (width * metres, height * METRES_PER_DEGREE) if width > 0 and height > 0 else (0.0, 0.0)


def _count_windows(cloudy: SceneRecord, geobox: GeoBox, settings: PlanSettings) -> int:
    """Windows of one pair: those of the ground blocks, or those that were delivered."""
    if settings.patch.layout == "blocks":
        return len(block_windows(geobox, settings.patch))
    return sum(len(item.assets) for item in cloudy.items)


def _estimate_disk(lock: Lock, geobox: GeoBox, patches: int, settings: PlanSettings) -> Disk:
    rows, columns = geobox.shape.y, geobox.shape.x
    margin = 2 * settings.ingest.margin_px
    pixels, sar_pixels = rows * columns, (rows + margin) * (columns + margin)
    scenes = pairs = 0.0
    for scene in lock.scenes.values():
        scenes += _estimate_sar(scene, sar_pixels) if is_sar(scene.sensor) else _estimate_optical(scene, pixels, settings)
        scenes += _estimate_plates(scene, measure_pixel(geobox), pixels, settings)
    for job in lock.jobs:
        for scene in map(lock.scene, job.scene_ids):
            pairs += _estimate_sar(scene, pixels) if is_sar(scene.sensor) else _estimate_optical(scene, pixels, settings)
    skies = [len(list_skies(lock.task, job.roles)) for job in lock.jobs]
    masks = sum(skies) * MASK_LAYERS * pixels * MASK_STORED
    if not lock.jobs:
        return Disk(scenes, pairs, masks, 0.0, 0.0)
    images = [lock.scene(name) for name in lock.jobs[0].scene_ids]
    layers = len(MASK_CHANNELS) + skies[0] - len(SKIES_OF[lock.task])  # of dates around a pair one each: where they are clear
    loose, packed = (patches * _estimate_patch(images, layers, settings, codec) for codec in (STORE_CODEC, settings.pack.codec))
    return Disk(scenes, pairs, masks, loose, packed)


def _estimate_optical(scene: SceneRecord, pixels: int, settings: PlanSettings) -> float:
    """An optical scene on a grid of so many pixels: two bytes a band, and validity and classes."""
    return pixels / scene.zoom**2 * (_estimate_depth(scene, settings, STORE_CODEC) + 2 * MASK_STORED)


def _estimate_depth(scene: SceneRecord, settings: PlanSettings, codec: str) -> float:
    """Stored bytes of one pixel of all bands; those of a delivered dataset were interpolated to 10 m and pack like bands of 10 m."""
    if scene.sensor == "cube":  # nothing tells its bands; its file holds two bytes and more for each pixel
        return 2 * CUBE_BANDS * OPTICAL_STORED[codec][OPTICAL_GSD_M]
    is_even = scene.sensor == "sen12mscr-s2" or scene.sensor in IMAGERS  # no band is coarser than others: none repeats its pixels
    native = [OPTICAL_GSD_M if is_even else _gsd_of(name, scene.sensor) or OPTICAL_GSD_M for name in _select_bands(scene, settings)]
    return sum(2 * OPTICAL_STORED[codec][gsd_m] for gsd_m in native)


def _estimate_plates(scene: SceneRecord, resolution_m: float, pixels: int, settings: PlanSettings) -> float:
    """The images that a scene of Gaofen was geocoded from, as they are kept beside it, and how far relief moves their pixels."""
    if not is_gaofen(scene.sensor):
        return 0.0
    sheets = max(1, *(sum(name.startswith("image-") for name in item.assets) for item in scene.items))  # tiles of WFV, each with relief
    relief = sheets * 2 * 4 * RELIEF_STORED
    if is_sar(scene.sensor):
        return pixels * (PLATE_ASKEW * PLATE_RATIO**2 * _depth_of_sar(scene, STORE_CODEC) + relief)
    ratio = resolution_m / PLATE_GSD_M[scene.sensor]
    return pixels * (PLATE_ASKEW * ratio**2 * _estimate_depth(scene, settings, STORE_CODEC) + relief)


def _depth_of_sar(scene: SceneRecord, codec: str) -> float:
    """Stored bytes of one pixel of all polarisations that a scene holds."""
    held = [name for name in POLARISATIONS if any(name in item.assets for item in scene.items)]
    return 2 * (len(held) or len(SAR_BANDS)) * SAR_STORED[codec]


def _estimate_sar(scene: SceneRecord, pixels: int) -> float:
    """A SAR scene of so many pixels: two bytes a polarisation, and validity."""
    return pixels * (_depth_of_sar(scene, STORE_CODEC) + MASK_STORED)


def _estimate_patch(images: Sequence[SceneRecord], layers: int, settings: PlanSettings, codec: str) -> float:
    """One patch with all images of a pair or group, and so many `layers` of masks."""
    values = sum(
        _depth_of_sar(image, codec) if is_sar(image.sensor) else _estimate_depth(image, settings, codec) / image.zoom**2 for image in images
    )
    return settings.patch.size_px**2 * (values + layers * MASK_STORED)


def describe_plans(plans: Sequence[AreaPlan]) -> list[str]:
    """A plan in lines: a table with one row per area and their sum, and what the numbers rest on."""
    total = sum_plans(plans)
    rows = [HEAD, *(_to_row(plan) for plan in (*plans, *([total] if len(plans) > 1 else [])))]
    lines = to_lines(rows, n_words=1)
    parts = ", ".join(f"{name} {to_size(size)}" for name, size in total.disk._asdict().items())
    return [*lines, "", f"disk: {parts}", *_explain_archives(total), _explain_sizes(total.fetch), PATCHES_NOTE]


def _explain_archives(total: AreaPlan) -> list[str]:
    if not total.unpacked:
        return []
    return [
        f"temporary: scenes in archives are unpacked while they are read, up to {to_size(total.unpacked)} for each job that runs at once, "
        "in the folder for temporary files (environment variable TMPDIR)"
    ]


def _explain_sizes(fetch: Fetch) -> str:
    if not fetch.unstated:
        return f"to fetch: from the stated sizes of {fetch.assets} files, whole tiles of {TILE_PX} pixels around each area"
    return (
        f"to fetch: {fetch.unstated} of {fetch.assets} files state no size, so typical ones are taken (Sentinel-2 "
        f"{TYPICAL_BYTES_PX[10]} to {TYPICAL_BYTES_PX[60]} bytes a pixel, Sentinel-1 RTC {TYPICAL_SAR_BYTES_PX}); expect half to twice that"
    )


def _to_row(plan: AreaPlan) -> tuple[str, ...]:
    fetch = plan.fetch
    about = "~" if fetch.unstated else ""
    counts = (str(plan.scenes), str(plan.items), str(fetch.assets), f"{about}{to_size(fetch.bytes)}", str(fetch.requests or "none"))
    return (plan.area, *counts, str(plan.pairs), str(plan.patches), to_size(sum(plan.disk)))
