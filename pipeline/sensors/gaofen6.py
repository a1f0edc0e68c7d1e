"""Gaofen-6 PMS and WFV, and the optical Gaofen-1 and 2 in the same format: a product in, reflectance at the top of the atmosphere out.

Level 1A images are placed by rational polynomial coefficients and a DEM, or one height; the three tiles of Gaofen-6 WFV are laid side by
side, and scenes keep all images as their plates. What was dropped, repeated or saturated on the way is looked for in the pixels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sereno.pipeline.archives import Contents
from sereno.pipeline.bands import PAN, select_gaofen_bands
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.ledger import Entry
from sereno.pipeline.mosaic import Part, Reading, find_place, lay_items, lose_incomplete, lose_item, to_entry, to_reading, widen_place
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord, Sensor
from sereno.pipeline.plates import place_plates
from sereno.pipeline.rpc import parse_rpc
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE, Bool2d, Plate
from sereno.pipeline.sensors.access import read_pixels
from sereno.pipeline.sensors.assets import LossError
from sereno.pipeline.sensors.gaofen6_calibration import Calibration, find_calibration
from sereno.pipeline.sensors.gaofen6_metadata import NAME, Metadata, parse_metadata
from sereno.pipeline.sensors.heights import read_ellipsoidal_heights
from sereno.pipeline.sensors.orthorectification import (
    Ground,
    Layers,
    average_looks,
    count_looks,
    find_cut,
    find_positions,
    open_image,
    open_product,
    to_footprint,
    to_placement,
    to_relief,
)
from sereno.pipeline.signing import Resolver

WFV_TILES: Final = {"GF6": ("1", "2", "3")}
"""Parts of a WFV image by satellite; the others have one, without a number."""
LEVEL: Final = "LEVEL1A"
"""The processing level that can be read."""
SATURATED_DN: Final = tuple(2**bits - 1 for bits in (10, 11, 12, 14, 16))
"""Largest digital numbers of the depths that products come in: what has one of them, and is the largest, is saturated."""
SATURATED_SHARE: Final = 0.01
"""From this share of saturated pixels a warning is given."""
REPEATED_SHARE: Final = 0.995
"""A row that equals the one above in more than this share of its pixels was not measured but repeated, if it is not smooth."""
TEXTURE_SHARE: Final = 0.25
"""A row is smooth if less than this share of its pixels differ from their neighbours in it."""
MIN_JUDGED_PX: Final = 16
"""From so few pixels nothing is said about a row."""
TOGETHER_S: Final = 60.0
"""Seconds between the centres of images that were taken together; both cameras look at one place within one or two."""
DROPPED_SHARE: Final = 0.5
"""A row of which more than this share holds no value, inside the image, was dropped."""


def find_metadata(names: list[str]) -> str | None:
    """The metadata of the multispectral image among the files of a product; None if it is no optical product of Gaofen."""
    for path in sorted(names):
        found = NAME.match(PurePosixPath(path).name)
        if found and found["suffix"].lower() == ".xml" and not (found["part"] or "").upper().startswith(PAN):
            return path
    return None


def is_text(name: str) -> bool:
    """Whether listing a product needs the content of the file `name`."""
    found = NAME.match(PurePosixPath(name).name)
    return found is not None and found["suffix"].lower() == ".xml"


def to_item(root: str, contents: Contents) -> tuple[ItemRecord, dict[str, Any]]:
    """The product in folder or archive `root` as an item with addresses that begin with it, and its footprint as GeoJSON.

    Its images are the assets `image-1` (to `image-3` for the tiles of Gaofen-6 WFV), its coefficients `rpc-1` and so on; `PAN` and
    `rpc-PAN` where there is a panchromatic image.

    Raises:
        DataError: an image or its coefficients are missing, the level is not 1A, or the metadata are damaged.
    """
    meta = find_metadata(list(contents.sizes))
    if meta is None:
        raise DataError(f"{root} holds no metadata of an optical Gaofen product: its copy may be unfinished, fetch it again")
    named = NAME.match(PurePosixPath(meta).name)
    assert named is not None  # find_metadata has matched it
    product = PurePosixPath(meta).name.split("-")[0].removesuffix(PurePosixPath(meta).suffix)
    metadata = parse_metadata(contents.texts[meta], where=PurePosixPath(meta).name)
    if metadata.level != LEVEL:
        raise DataError(f"{product} is of {metadata.level}, only {LEVEL} can be read: order it as level 1A")
    files = _list_files(product, contents)
    part = (named["part"] or "").upper()
    is_wfv = named["sensor"].upper().startswith("WFV")
    parts = WFV_TILES.get(named["satellite"].upper(), ("",)) if is_wfv else (part,)
    assets = {"MTD": AssetRecord(href=f"{root}/{meta}", size_bytes=contents.sizes[meta])}
    for number, name in enumerate(parts, 1):
        for kind, key in (("image", f"image-{number}"), ("rpc", f"rpc-{number}")):
            path = files.get((name, kind))
            if path is None:
                what = f"image {name}".strip() if kind == "image" else f"coefficients (.rpb) of image {name}".strip()
                raise DataError(f"{product} has no {what}: its copy may be unfinished, fetch it again")
            assets[key] = AssetRecord(href=f"{root}/{path}", size_bytes=contents.sizes[path])
    pan = next((name for name, kind in files if name.startswith(PAN) and kind == "image"), None)
    if pan is not None and (pan, "rpc") in files:
        if (pan, "text") in files:
            _check_together(product, metadata, parse_metadata(contents.texts[files[pan, "text"]], where=f"{product}-{pan}.xml"))
        paths = {PAN: files[pan, "image"], _name_rpc(PAN): files[pan, "rpc"]}
        assets |= {key: AssetRecord(href=f"{root}/{path}", size_bytes=contents.sizes[path]) for key, path in paths.items()}
    return _to_record(product, metadata, assets, is_wfv=is_wfv), to_footprint(metadata.corners)[1]


def _check_together(product: str, metadata: Metadata, pan: Metadata) -> None:
    """Refuse a panchromatic image that was not taken together with the multispectral one.

    Raises:
        DataError: says when and where both were taken.
    """
    ours, other = (to_footprint(one.corners)[0] for one in (metadata, pan))
    is_same_place = ours[0] < other[2] and other[0] < ours[2] and ours[1] < other[3] and other[1] < ours[3]
    if not is_same_place or abs((metadata.clock.time - pan.clock.time).total_seconds()) > TOGETHER_S:
        seen = [f"{one.clock.time:%Y-%m-%dT%H:%M:%SZ} over {box}" for one, box in ((pan, other), (metadata, ours))]
        raise DataError(
            f"{product} holds a panchromatic image of another scene, taken {seen[0]} (west, south, east, north), the multispectral one "
            f"{seen[1]}: put the images of one product into its folder"
        )


def _list_files(product: str, contents: Contents) -> dict[tuple[str, str], str]:
    """Paths of images and coefficients of a product, by part (`MUX`, `1`, empty) and kind (`image`, `rpc`)."""
    files = {}
    for path in sorted(contents.sizes):
        found = NAME.match(PurePosixPath(path).name)
        if found and PurePosixPath(path).name.startswith(product):
            suffix = found["suffix"].lower()
            kind = "image" if suffix.startswith(".tif") else "rpc" if suffix in (".rpb", ".rpc") else "text"
            files[(found["part"] or "").upper(), kind] = path
    return files


def _to_record(product: str, metadata: Metadata, assets: dict[str, AssetRecord], *, is_wfv: bool) -> ItemRecord:
    sensor: Sensor = "gaofen-pms" if not is_wfv else "gaofen-wfv" if metadata.satellite in WFV_TILES else "gaofen-wfv4"
    facts = {
        "platform": metadata.satellite.lower(),
        "instrument": metadata.sensor,
        "tile": metadata.sensor,  # cameras that look side by side at one moment are no duplicates of each other
        "processing_level": metadata.level,
        "absolute_orbit": metadata.orbit,
        "clock_ahead_h": str(metadata.clock.ahead_h),
    }
    return ItemRecord(
        item=product,
        collection=f"gaofen-{metadata.satellite.lower().removeprefix('gf')}",
        sensor=sensor,
        time=f"{metadata.clock.time:%Y-%m-%dT%H:%M:%SZ}",
        crs="",
        bbox=to_footprint(metadata.corners)[0],
        assets=assets,
        cloud_cover_pct=metadata.cloud_pct,
        sun_azimuth_deg=metadata.sun_azimuth_deg,
        sun_elevation_deg=90 - metadata.sun_zenith_deg,
        properties={key: value for key, value in facts.items() if value},
    )


class Flaws(NamedTuple):
    """What an image holds that was not measured."""

    known: Bool2d
    """(row, column) True where every band holds a measured value."""
    saturated: Bool2d
    """(row, column) True where a band is saturated; such pixels stay in use, since clouds are."""
    n_dropped: int
    """Rows that were dropped or repeated, in any band."""


def find_flaws(dn: npt.NDArray[Any], largest: int | None) -> Flaws:
    """What of digital numbers (band, row, column) was measured. `largest` is the number at which they saturate; None looks for it."""
    top = int(dn.max(initial=0))
    limit = largest if largest is not None else top if top in SATURATED_DN else None
    known: Bool2d = np.asarray((dn > 0).all(axis=0))
    saturated = np.zeros(known.shape, bool)
    n_rows = 0
    for band in dn:
        full = np.zeros(known.shape, bool) if limit is None else band >= limit
        bad = _is_dropped(band) | _is_repeated(band, full)
        known[bad] = False
        saturated |= full
        n_rows += int(np.count_nonzero(bad))
    return Flaws(known, saturated & known, n_rows)


def _is_dropped(band: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows hold 0 in more than half of their pixels, although rows above and below them do not."""
    dropped: npt.NDArray[np.bool_] = (band == 0).mean(axis=1) > DROPPED_SHARE
    inside: npt.NDArray[np.bool_] = np.maximum.accumulate(~dropped) & np.maximum.accumulate(~dropped[::-1])[::-1]
    return dropped & inside


def _is_repeated(band: npt.NDArray[Any], full: Bool2d) -> npt.NDArray[np.bool_]:
    """Which rows equal the row above although they vary along themselves, judged by pixels that are neither 0 nor saturated (`full`)."""
    free = (band > 0) & ~full
    both = free[1:] & free[:-1]
    counts = both.sum(axis=1)
    same = ((band[1:] == band[:-1]) & both).sum(axis=1)
    varied = ((band[1:, 1:] != band[1:, :-1]) & both[:, 1:]).sum(axis=1)
    repeated = np.zeros(len(band), bool)
    repeated[1:] = (same > REPEATED_SHARE * counts) & (varied > TEXTURE_SHARE * counts) & (counts >= MIN_JUDGED_PX)
    return repeated


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene on `geobox`: reflectance at the top of the atmosphere of `settings.bands` (all of the multispectral image if empty).

    `PAN` is a band too where a product has it, averaged to about the grid's pixel; it has to be asked for. Peak memory: one image (or tile)
    as it is under the area, its averaged part in float32 twice, and the scene in float32 twice.

    Raises:
        MissingError: a band is wanted that the product does not have, or the DEM of the settings is not there.
        DataError: that DEM has no height in the area.
        StoreError: there is no room to unpack an archive.
    """
    known = select_gaofen_bands(record.sensor)
    bands = settings.bands or known
    unknown = [band for band in bands if band not in (*known, *((PAN,) if record.sensor == "gaofen-pms" else ()))]
    if unknown:
        raise MissingError(
            f"{record.item}: {record.sensor} has no band {', '.join(unknown)}; correct pipeline.ingest.bands, known are {', '.join(known)}"
        )
    if PAN in bands and not any(PAN in item.assets for item in record.items):
        raise MissingError(f"{record.item}: holds no panchromatic image with coefficients (.rpb); take {PAN} out of pipeline.ingest.bands")
    mosaic = lay_items(record.items, geobox, partial(_read_item, bands=bands, settings=settings, resolver=resolver))
    return to_reading(record, mosaic, geobox, bands=bands, settings=settings)


class Sheet(NamedTuple):
    """One image or tile in its own geometry."""

    name: str
    """Of the asset."""
    plate: Plate | None
    """What it shows of the wanted bands under the area; None if it does not reach there."""
    n_dropped: int
    """Rows under the area that were dropped or repeated, in any band."""
    n_saturated: int
    """Pixels under the area with a saturated band."""
    n_known: int
    """Pixels under the area that were measured."""
    n_clamped: int
    """Values of the plate that had to be clamped."""
    lost: tuple[str, ...]
    """Tiles that cannot be read."""
    entry: Entry
    """Its line of the ledger."""


class Wanted(NamedTuple):
    """What is wanted of one image, and how it is calibrated."""

    name: str
    """Of the asset."""
    bands: tuple[str, ...]
    """Their names."""
    indices: tuple[int, ...]
    """Their places in the file, from 0."""
    layer: int
    """Which tile it is."""
    metadata: Metadata
    """Of the image: for the panchromatic one those of the product with its instrument and its one band."""
    calibration: Calibration
    """From its digital numbers to reflectance."""


def _read_item(
    item: ItemRecord, grid: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    images = _list_images(item, bands)
    names = ("MTD", *images, *(_name_rpc(name) for name in images))
    incomplete = lose_incomplete(item, names, n_bands=len(bands), dtype=np.uint16)
    if incomplete is not None:
        return incomplete
    place = widen_place(find_place(wanted), settings.margin_px, wanted.shape)
    heights = None if settings.dem is None else read_ellipsoidal_heights(grid[place], settings, where=f"item {item.item}")
    try:
        with open_product(item, names, resolver) as files:
            metadata = parse_metadata(files["MTD"].read_bytes(), where=f"item {item.item}, MTD")
            plan = [_plan_image(item, name, bands, metadata, settings) for name in images]
            first = _name_rpc(images[0])
            stated = parse_rpc(files[first].read_bytes(), where=f"item {item.item}, {first}").height_off
            relief = to_relief(heights, settings, float(stated))
            ground = Ground(grid, place, settings.margin_px, relief)
            sheets = [_read_sheet(item, image, files, ground, settings) for image in plan]
    except (DataError, MissingError, LossError) as error:
        return lose_item(item, str(error), n_bands=len(bands), dtype=np.uint16, asset=images[0])
    calibrations = [image.calibration for image in plan]
    plates = tuple(sheet.plate for sheet in sheets if sheet.plate is not None)
    reflectance, inside = place_plates(plates, bands, source=grid, target=grid[place])
    data = np.rint(reflectance * REFLECTANCE_SCALE).astype(np.uint16)
    geocoding = {"geocoding": "rpc" if relief.heights_m is None else "rpc+dem", "heights": relief.words}
    facts = _describe(metadata, _join_calibrations(calibrations), sheets) | geocoding
    warnings = [*relief.warnings, *(words for one in calibrations for words in one.warnings), *_warn_of_flaws(item, sheets)]
    warnings += [metadata.clock.warning] if metadata.clock.warning else []
    lost = tuple((sheet.name, reason) for sheet in sheets for reason in sheet.lost)
    entries = (*(to_entry(item, name, "used") for name in names if name not in images), *(sheet.entry for sheet in sheets))
    return Part(place, data, wanted[place] & inside, facts, entries, warnings=tuple(dict.fromkeys(warnings)), lost=lost, plates=plates)


def _list_images(item: ItemRecord, bands: tuple[str, ...]) -> tuple[str, ...]:
    """Assets that show the bands: the image or its tiles, and the panchromatic one where it is asked for."""
    tiles = tuple(sorted(name for name in item.assets if name.startswith("image-"))) or ("image-1",)
    return (*(tiles if set(bands) != {PAN} else ()), *((PAN,) if PAN in bands else ()))


def _name_rpc(image: str) -> str:
    """The asset that holds the coefficients of an image."""
    return f"rpc-{PAN}" if image == PAN else image.replace("image", "rpc")


def _plan_image(item: ItemRecord, name: str, bands: tuple[str, ...], metadata: Metadata, settings: IngestSettings) -> Wanted:
    if name == PAN:
        metadata = metadata._replace(sensor=f"{metadata.sensor}-{PAN}", n_bands=1)
    calibration = find_calibration(metadata, settings, where=f"item {item.item}")
    if name == PAN:
        return Wanted(name, (PAN,), (0,), 0, metadata, calibration)
    all_bands = select_gaofen_bands(item.sensor)
    chosen = tuple(band for band in bands if band != PAN)
    indices = tuple(all_bands.index(band) for band in chosen)
    return Wanted(name, chosen, indices, int(name.removeprefix("image-")) - 1, metadata, calibration)


def _read_sheet(item: ItemRecord, wanted: Wanted, files: dict[str, Path], ground: Ground, settings: IngestSettings) -> Sheet:
    """The part of one image or tile under the area, calibrated.

    Raises:
        DataError: it has not the bands that the metadata state, or cannot be placed.
        LossError: it cannot be read.
    """
    name, metadata, where = wanted.name, wanted.metadata, f"item {item.item}, {wanted.name}"
    coefficients = parse_rpc(files[_name_rpc(name)].read_bytes(), where=f"{where}, coefficients")
    with open_image(item, name, files[name], settings) as access:
        if access.source.count != metadata.n_bands:
            raise DataError(f"{where}: the image has {access.source.count} bands, the metadata state {metadata.n_bands}; fetch it again")
        placement = to_placement(access, coefficients, where=where)
        cut = find_cut(placement, (access.source.height, access.source.width), ground)
        if cut is None:
            return Sheet(name, None, 0, 0, 0, 0, (), access.to_entry("used", "the image does not reach the area"))
        pixels = read_pixels(access, cut.window, tuple(access.source.indexes))
        entry = access.to_entry("partly", f"{len(pixels.lost)} tiles cannot be read") if pixels.lost else access.to_entry("used")
    flaws = find_flaws(pixels.values, None if metadata.bits is None else 2**metadata.bits - 1)
    looks = count_looks(cut.steps)
    dn, valid = average_looks(pixels.values[list(wanted.indices)], flaws.known & pixels.readable, looks)
    values, n_clamped = _to_stored(dn, valid, wanted.calibration, wanted.indices)
    part = placement.crop(cut.window.row_off, cut.window.col_off).average(looks)
    ratio = (cut.steps[0] / looks[0], cut.steps[1] / looks[1])
    plate = Plate(wanted.bands, values, valid, *find_positions(part, ground), ratio, wanted.layer)
    n_saturated, n_known = (int(np.count_nonzero(layer)) for layer in (flaws.saturated, flaws.known))
    return Sheet(name, plate, flaws.n_dropped, n_saturated, n_known, n_clamped, pixels.lost, entry)


def _to_stored(dn: Layers, valid: Bool2d, calibration: Calibration, indices: tuple[int, ...]) -> tuple[npt.NDArray[np.uint16], int]:
    """Reflectance x 10000 of the bands at `indices`, uint16, 0 where not valid; and how many valid values had to be clamped."""
    data, n_clamped = np.zeros(dn.shape, np.uint16), 0
    for target, values, index in zip(data, dn, indices, strict=True):
        scaled = np.rint((np.where(valid, values, 0) * calibration.factors[index] + calibration.offsets[index]) * REFLECTANCE_SCALE)
        n_clamped += int(np.count_nonzero(valid & ((scaled < 0) | (scaled > MAX_REFLECTANCE))))
        target[...] = np.where(valid, np.clip(scaled, 0, MAX_REFLECTANCE), 0).astype(np.uint16)
    return data, n_clamped


def _join_calibrations(calibrations: list[Calibration]) -> Calibration:
    """That of the first image; where the last one is panchromatic and another, with its facts under `pan`."""
    first, last = calibrations[0], calibrations[-1]
    return first if last == first else first._replace(facts={**first.facts, "pan": last.facts})


def _describe(metadata: Metadata, calibration: Calibration, sheets: list[Sheet]) -> dict[str, Any]:
    """The facts of an item, for the provenance; saturated and clamped values are counted in its images, in the parts under the area."""
    return {
        "offset": 0,
        "offset_reason": "gains have none" if not any(calibration.offsets) else "radiance at digital number 0 is part of the gains",
        "offset_check": None,
        "calibration": f"top-of-atmosphere reflectance = pi L d^2 / (ESUN cos zenith), gains: {calibration.facts['calib_source']}",
        "processing_level": metadata.level,
        **calibration.facts,
        "sun_zenith_deg": metadata.sun_zenith_deg,
        "clock_ahead_h": metadata.clock.ahead_h,
        "clock_difference_deg": None if metadata.clock.difference_deg is None else round(metadata.clock.difference_deg, 3),
        "n_clamped": sum(sheet.n_clamped for sheet in sheets),
        "n_saturated": sum(sheet.n_saturated for sheet in sheets),
        "n_dropped_rows": sum(sheet.n_dropped for sheet in sheets),
    }


def _warn_of_flaws(item: ItemRecord, sheets: list[Sheet]) -> list[str]:
    n_dropped = sum(sheet.n_dropped for sheet in sheets)
    saturated = sum(sheet.n_saturated for sheet in sheets) / max(1, sum(sheet.n_known for sheet in sheets))
    words = []
    if n_dropped:
        words.append(f"item {item.item}: {n_dropped} rows of its bands were dropped or repeated by the receiver, their pixels are not used")
    if saturated > SATURATED_SHARE:
        words.append(f"item {item.item}: {saturated:.1%} of its pixels are saturated, their reflectance is a lower bound")
    return words
