"""Gaofen-3, all modes: a product as an item, and its scene of calibrated backscatter on the area's grid.

Level 1A (I and Q) and 1B (detected) are placed by rational polynomial coefficients and a DEM, or one height; level 2 lies in a projection
of its own. Values are averaged as power to about the grid's pixel and calibrated to gamma0 on the ellipsoid; the scene is interpolated from
them and keeps them as its plates. They are not terrain flattened: coefficients do not tell the local incidence.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from rasterio.windows import Window

from sereno.pipeline.archives import Contents
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.ledger import Entry
from sereno.pipeline.mosaic import Part, Reading, find_place, lay_items, lose_incomplete, lose_item, to_entry, widen_place
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.plates import place_plates
from sereno.pipeline.radiometry import FLOOR_DB
from sereno.pipeline.rpc import parse_rpc
from sereno.pipeline.scene import Bool2d, Plate
from sereno.pipeline.sensors.access import Access, read_pixels
from sereno.pipeline.sensors.assets import LossError
from sereno.pipeline.sensors.gaofen3_metadata import (
    DIVISORS,
    INCIDENCE,
    META,
    NAME,
    TAGS,
    Metadata,
    Name,
    compute_scale,
    parse_incidence,
    parse_metadata,
    parse_name,
)
from sereno.pipeline.sensors.gaofen_xml import ABSENT
from sereno.pipeline.sensors.heights import read_ellipsoidal_heights
from sereno.pipeline.sensors.orthorectification import (
    Ground,
    Layers,
    Placement,
    Relief,
    count_looks,
    find_cut,
    find_positions,
    open_image,
    open_product,
    to_footprint,
    to_placement,
    to_relief,
)
from sereno.pipeline.sensors.sentinel1 import describe_power, list_polarisations, to_sar_reading, to_stored_power
from sereno.pipeline.signing import Resolver

Float = npt.NDArray[np.float64]

IMAGE_SUFFIXES: Final = (".tiff", ".tif")
RPC_SUFFIXES: Final = (".rpc", ".rpb")
CALIBRATION: Final = (
    f"gamma0 = sigma0 / cos(incidence) on the ellipsoid, not terrain flattened; sigma0 of QualifyValue and CalibrationConst; "
    f"10 log10(power), not below {FLOOR_DB:g} dB"
)
"""What the stored values mean."""
STRIP_ROWS: Final = 1024
"""About so many rows of an image are read at a time."""
FILLED_PX: Final = 3
"""Least side of a square of zeros that is no measurement: where I and Q scatter by one digit both round to 0 on one pixel in seven, and on
a whole square once in thirty million."""
FILLING_PX: Final = FILLED_PX - 1
"""How far around a pixel its square may reach."""
KNOWN_SHARE: Final = 0.5
"""An averaged pixel is known if more than this share of what is averaged is."""


def is_text(name: str) -> bool:
    """Whether listing a product needs the content of the file `name`."""
    return name.lower().endswith(META)


def find_metadata(names: list[str]) -> str | None:
    """The metadata file among the files of a product, by its name; None if it is no product of Gaofen-3."""
    return next((name for name in sorted(names) if is_text(name) and PurePosixPath(name).name.startswith("GF3")), None)


def to_item(root: str, contents: Contents) -> tuple[ItemRecord, dict[str, Any]]:
    """The product in folder or archive `root` as an item with addresses that begin with it, and its footprint as GeoJSON.

    Polarisations without an image, without coefficients (level 1) or with a `NULL` calibration are left out; `properties["incomplete"]`
    says why.

    Raises:
        DataError: the mode is not known, the metadata are damaged, or no polarisation can be used.
    """
    meta = find_metadata(list(contents.sizes))
    if meta is None:
        raise DataError(f"{root} holds no *{META} of Gaofen-3: its copy may be unfinished, fetch it again")
    name = parse_name(PurePosixPath(meta).name)
    metadata = parse_metadata(contents.texts[meta], where=PurePosixPath(meta).name)
    assets = {"MTD": _to_asset(root, meta, contents)}
    incidence = next((path for path in sorted(contents.sizes) if path.lower().endswith(INCIDENCE)), None)
    if incidence is not None:
        assets["incidence"] = _to_asset(root, incidence, contents)
    faults = {}
    for band in name.polarisations:
        found = _find_files(name, band, contents)
        fault = _find_fault(name, band, found, metadata)
        if fault:
            faults[band] = fault
            continue
        assets |= {key: _to_asset(root, path, contents) for key, path in found.items()}
    if len(faults) == len(name.polarisations):
        raise DataError(f"{name.product} {'; '.join(dict.fromkeys(faults.values()))}: fetch the product again")
    bbox, footprint = to_footprint(metadata.corners)
    record = ItemRecord(
        item=name.product,
        collection="gaofen-3",
        sensor="gaofen3",
        time=metadata.start,
        crs="",
        bbox=bbox,
        assets=assets,
        properties=_to_facts(name, metadata, faults),
    )
    return record, footprint


def _to_asset(root: str, path: str, contents: Contents) -> AssetRecord:
    return AssetRecord(href=f"{root}/{path}", size_bytes=contents.sizes[path])


def _find_files(name: Name, band: str, contents: Contents) -> dict[str, str]:
    """Paths of the image and the coefficients of one polarisation, by asset name; the tag `DH` stands for HH in names of files too."""
    tags = [band, *(tag for tag in (name.tag,) if TAGS[tag] == (band,))]
    found: dict[str, str] = {}
    for path in sorted(contents.sizes):
        matched = NAME.match(PurePosixPath(path).name)
        if matched is None or matched["tag"] not in tags or matched["level"] != name.level:
            continue
        suffix = PurePosixPath(path).name[len(matched[0]) :].lower()
        if suffix in IMAGE_SUFFIXES:
            found[band] = path
        elif suffix in RPC_SUFFIXES:
            found[f"rpc-{band}"] = path
    return found


def _find_fault(name: Name, band: str, found: dict[str, str], metadata: Metadata) -> str:
    if band not in found:
        return f"has no image of {band}"
    if name.level != "L2" and f"rpc-{band}" not in found:
        return f"has no .rpc or .rpb of {band}, without which a level 1 image cannot be placed"
    for key, values in (("QualifyValue", metadata.qualify), ("CalibrationConst", metadata.calibration_db)):
        if values[band] is None:
            return f"{key}/{band} is {ABSENT}, so {band} cannot be calibrated"
    return ""


def _to_facts(name: Name, metadata: Metadata, faults: dict[str, str]) -> dict[str, str]:
    held = [band for band in name.polarisations if band not in faults]
    facts = {
        "platform": name.satellite.lower(),
        "mode": name.mode,
        "processing_level": name.level,
        "polarisations": " ".join(held),
        "orbit_state": metadata.direction,
        "absolute_orbit": str(metadata.orbit),
        "look": metadata.look,
        "generated": metadata.generated,
        "stop": metadata.end,
        "incomplete": "; ".join(faults.values()),
    }
    return {key: value for key, value in facts.items() if value}


class Product(NamedTuple):
    """A product while it is read."""

    item: ItemRecord
    """What the lock says of it."""
    files: dict[str, Path]
    """Its files by the name of the asset."""
    metadata: Metadata
    """What it says of itself."""


class Band(NamedTuple):
    """One polarisation in the geometry of its image."""

    name: str
    """Of the polarisation."""
    power: Layers
    """(row, col) gamma0 of the averaged part under the area, NaN where not known; empty if the image does not reach it."""
    placement: Placement
    """How ground is found in that part."""
    ratio: tuple[float, float]
    """Its rows and columns per pixel of the grid."""
    facts: dict[str, Any]
    """How it was made."""
    warnings: tuple[str, ...]
    """What a user should know."""
    lost: tuple[str, ...]
    """Tiles that cannot be read."""
    entry: Entry
    """Its line of the ledger."""


class Averaged(NamedTuple):
    """The part of an image under the area after its looks were averaged."""

    placement: Placement
    """How ground is found in it."""
    shape: tuple[int, int]
    """Its rows and columns."""
    window: Window
    """Rows and columns of the file before."""
    looks: tuple[int, int]
    """Rows and columns of the file in one of its pixels."""
    width: int
    """Columns of the whole file."""


class Incidence(NamedTuple):
    """Angles between the line of sight and the normal of the ellipsoid."""

    angles_deg: Float
    """Of a shape that broadcasts to (row, col) of the averaged part."""
    source: str
    """Where they come from, for the provenance."""
    warnings: tuple[str, ...]
    """What a user should know."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene in int16 centi-dB on `geobox` plus a margin: the polarisations that its items hold.

    Peak memory: the averaged parts of the images under the area in float32, a strip of an image as it is, and three times the scene.
    Measured with two polarisations of one look at 5 m on 1712 x 1712 pixels of 10 m with a DEM: 2.2 CPU-s, 0.42 GB beyond what a start
    takes, and 23 MB on disk, of which 8 MB are the gridded values, 9 MB the image and 5 MB what relief adds to its positions.

    Raises:
        MissingError: no item holds a polarisation, or the DEM of the settings is not there.
        DataError: that DEM has no height in the area, or the digital numbers are of a type that is not known.
        StoreError: there is no room to unpack an archive.
    """
    bands = list_polarisations(record)
    grid = geobox.pad(settings.margin_px)
    mosaic = lay_items(record.items, grid, partial(_read_item, bands=bands, settings=settings, resolver=resolver))
    return to_sar_reading(record, mosaic, grid, bands=bands, settings=settings)


def _read_item(
    item: ItemRecord, grid: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    names = ("MTD", *bands)
    incomplete = lose_incomplete(item, names, n_bands=len(bands), dtype=np.float32)
    if incomplete is not None:
        return incomplete
    place = widen_place(find_place(wanted), settings.margin_px, wanted.shape)
    extra = tuple(name for name in ("incidence", *(f"rpc-{band}" for band in bands)) if name in item.assets)
    heights = None if settings.dem is None else read_ellipsoidal_heights(grid[place], settings, where=f"item {item.item}")
    try:
        with open_product(item, (*names, *extra), resolver) as files:
            metadata = parse_metadata(files["MTD"].read_bytes(), where=f"item {item.item}, MTD")
            relief = to_relief(heights, settings, metadata.height_m)
            ground = Ground(grid, place, 0, relief)  # the grid has its margin already
            layers = [_read_band(Product(item, files, metadata), band, ground, settings) for band in bands]
    except (DataError, MissingError, LossError) as error:
        return lose_item(item, str(error), n_bands=len(bands), dtype=np.float32, asset=bands[0])
    plates, n_clamped = _to_plates(layers, ground, settings)
    power, inside = place_plates(plates, bands, source=grid, target=grid[place])
    facts = {
        **describe_power(CALIBRATION),
        "mode": metadata.mode,
        "processing_level": metadata.level,
        "saturation_pct": {band: metadata.saturation_pct[band] for band in bands},
        "n_clamped": n_clamped,
        **layers[0].facts,
    }
    notes = tuple(dict.fromkeys(warning for layer in layers for warning in layer.warnings))
    entries = (*(to_entry(item, name, "used") for name in ("MTD", *extra)), *(layer.entry for layer in layers))
    lost = tuple((layer.name, reason) for layer in layers for reason in layer.lost)
    return Part(place, power, wanted[place] & inside, facts, entries, warnings=notes, lost=lost, plates=plates)


def _to_plates(layers: list[Band], ground: Ground, settings: IngestSettings) -> tuple[tuple[Plate, ...], int]:
    """The polarisations as stored plates, those that lie on each other together, and how many values were clamped."""
    plates, total = [], 0
    rest = [layer for layer in layers if layer.power.size]
    while rest:
        first, like = rest[0], [layer for layer in rest if _lie_together(layer, rest[0])]
        rest = [layer for layer in rest if not _lie_together(layer, first)]
        power = np.stack([layer.power for layer in like])
        valid: Bool2d = np.asarray(np.isfinite(power).all(axis=0))
        stored, n_clamped = to_stored_power(power, valid, settings.speckle)
        total += n_clamped
        positions = find_positions(first.placement, ground)
        plates.append(Plate(tuple(layer.name for layer in like), stored, valid, *positions, first.ratio))
    return tuple(plates), total


def _lie_together(one: Band, other: Band) -> bool:
    """Whether two polarisations were cut and placed alike, as those of one product usually are."""
    return one.placement == other.placement and one.power.shape == other.power.shape


def _read_band(product: Product, band: str, ground: Ground, settings: IngestSettings) -> Band:
    """One polarisation: the part of its image under the area, averaged as power and calibrated.

    Raises:
        DataError: it cannot be calibrated or placed.
        LossError: it cannot be read.
    """
    (item, files, metadata), relief = product, ground.relief
    where = f"item {item.item}, {band}"
    coefficients = None
    if metadata.level != "L2" and f"rpc-{band}" in files:
        coefficients = parse_rpc(files[f"rpc-{band}"].read_bytes(), where=f"{where}, coefficients")
    with open_image(item, band, files[band], settings) as access:
        placement = to_placement(access, coefficients, where=where)
        divisor, reason = _choose_divisor(access, settings, where)
        scale = compute_scale(metadata, band, divisor, where=f"item {item.item}, MTD")
        size = (access.source.height, access.source.width)
        cut = find_cut(placement, size, ground)
        facts = _describe(placement, relief, metadata, (divisor, reason))
        if cut is None:
            entry = access.to_entry("used", "the image does not reach the area")
            return Band(band, np.empty((0, 0), np.float32), placement, (1.0, 1.0), facts, (), (), entry)
        looks = count_looks(cut.steps)
        power, lost = read_power(access, cut.window, looks)
        entry = access.to_entry("partly", f"{len(lost)} tiles cannot be read") if lost else access.to_entry("used")
    part = placement.crop(cut.window.row_off, cut.window.col_off).average(looks)
    rows, columns = power.shape
    incidence = _find_incidence(product, Averaged(part, (rows, columns), cut.window, looks, size[1]), where)
    angles = incidence.angles_deg
    gamma: Layers = np.asarray(power * scale / np.cos(np.radians(angles)), np.float32)
    ratio = (cut.steps[0] / looks[0], cut.steps[1] / looks[1])
    facts |= {
        "looks": list(looks),
        "incidence_deg": [round(float(a), 3) for a in (angles.min(), angles.max())],
        "incidence_from": incidence.source,
    }
    relief_notes = relief.warnings if coefficients is not None else ()
    return Band(band, gamma, part, ratio, facts, (*relief_notes, *incidence.warnings, *_warn_of_level(metadata, item)), lost, entry)


def _describe(placement: Placement, relief: Relief, metadata: Metadata, divisor: tuple[float, str]) -> dict[str, Any]:
    """How the image is placed and calibrated, for the provenance."""
    facts = {"gf3:scale_divisor": divisor[0], "gf3:scale_divisor_reason": divisor[1]}
    if placement.rpc is None:
        height = f"{metadata.height_m:.1f} m above the ellipsoid everywhere, by the provider (DEMModel {metadata.dem or 'not stated'})"
        return {**facts, "geocoding": "provider's projection", "terrain_corrected": False, "heights": height}
    geocoding = "rpc" if relief.heights_m is None else "rpc+dem"
    return {**facts, "geocoding": geocoding, "terrain_corrected": relief.heights_m is not None, "heights": relief.words}


def _warn_of_level(metadata: Metadata, item: ItemRecord) -> tuple[str, ...]:
    if metadata.level != "L2":
        return ()
    return (f"item {item.item}: level 2 was projected by its provider at one height ({metadata.height_m:.0f} m), relief is not corrected",)


def _choose_divisor(access: Access, settings: IngestSettings, where: str) -> tuple[float, str]:
    """What the digital numbers are divided by, and why: by their type, unless the settings say otherwise.

    Raises:
        DataError: they are of a type that Gaofen-3 does not have.
    """
    kind = _kind_of(access)
    if settings.gaofen.scale_divisor is not None:
        return settings.gaofen.scale_divisor, "pipeline.ingest.gaofen.scale_divisor"
    if kind not in DIVISORS:
        raise DataError(
            f"{where}: the image holds {access.source.count} bands of {access.source.dtypes[0]}, expected two of int16 (I and Q) or one of "
            "uint16 (detected): set pipeline.ingest.gaofen.scale_divisor if the provider states one"
        )
    return DIVISORS[kind], f"{kind}: {access.source.count} band of {access.source.dtypes[0]}"


def _kind_of(access: Access) -> str:
    """`complex` for I and Q, `detected` for amplitudes of 16 bits, else the type itself."""
    dtype, count = access.source.dtypes[0], access.source.count
    if dtype.startswith("complex") or (count == 2 and dtype == "int16"):
        return "complex"
    return "detected" if count == 1 and dtype == "uint16" else str(dtype)


def read_power(access: Access, window: Window, looks: tuple[int, int]) -> tuple[Layers, tuple[str, ...]]:
    """Mean squared digital number of blocks of `looks` rows and columns of `window`, float32, and what cannot be read.

    NaN where half of a block or more is not known: it is what `find_filling` says, the file's nodata value, or unreadable; other zeros are
    a power that was measured as nothing. Rows and columns that fill no block are left out. Read strip by strip, so that an image of I and Q
    never stands in memory.

    Raises:
        CatalogueError: it cannot be read now.
    """
    rows, columns = int(window.height) // looks[0], int(window.width) // looks[1]
    lost: list[str] = []
    power = np.full((rows, columns), np.nan, np.float32)
    step = max(1, STRIP_ROWS // looks[0])
    for first in range(0, rows, step):
        last = min(first + step, rows)
        top = int(window.row_off) + first * looks[0]
        strip = Window(int(window.col_off), top, columns * looks[1], (last - first) * looks[0])
        squared, known, unreadable = _read_strip(access, strip)
        lost += unreadable
        blocks = (last - first, looks[0], columns, looks[1])
        share = known.reshape(blocks).mean(axis=(1, 3), dtype=np.float32)
        total = np.where(known, squared, 0).reshape(blocks).mean(axis=(1, 3), dtype=np.float32)
        np.divide(total, share, out=power[first:last], where=share > KNOWN_SHARE)
    return power, tuple(dict.fromkeys(lost))  # strips overlap


def _read_strip(access: Access, strip: Window) -> tuple[Layers, Bool2d, tuple[str, ...]]:
    """Squared digital numbers of the rows and columns of `strip`, which of them are known, and what cannot be read."""
    size, wanted = (access.source.height, access.source.width), strip.toslices()
    spans = [(max(0, part.start - FILLING_PX), min(n_px, part.stop + FILLING_PX)) for part, n_px in zip(wanted, size, strict=True)]
    pixels = read_pixels(access, Window.from_slices(*spans), tuple(access.source.indexes))
    squared = _square(pixels.values)
    known = pixels.readable & np.isfinite(squared)
    nodata = access.source.nodata
    if nodata is not None and nodata != 0:
        known &= ~(pixels.values == nodata).all(axis=0)
    here = tuple(slice(part.start - first, part.stop - first) for part, (first, _) in zip(wanted, spans, strict=True))
    # Nothing lies beyond the image, so that squares there are of zeros.
    beyond = [(first - part.start + FILLING_PX, part.stop + FILLING_PX - last) for part, (first, last) in zip(wanted, spans, strict=True)]
    filling = find_filling(np.pad(squared == 0, beyond, constant_values=True))
    return squared[here], known[here] & ~filling, pixels.lost


def find_filling(is_zero: Bool2d) -> Bool2d:
    """Which zeros of an image fill it where nothing was seen: those in a square of FILLED_PX zeros a side, FILLING_PX off the edges.

    A lone zero is a measurement: I and Q of weak backscatter are small whole numbers, and now and then both are 0. Borders stay as they are
    to the pixel, whatever their slope, since squares fit into every step of one.
    """
    core = _slide(is_zero, np.logical_and)
    return _slide(core, np.logical_or)


def _slide(image: Bool2d, join: np.ufunc) -> Bool2d:
    """The pixels of all squares of FILLED_PX a side, joined: (y, x) -> (y - FILLED_PX + 1, x - FILLED_PX + 1)."""
    for axis in (0, 1):
        length = image.shape[axis] - FILLED_PX + 1
        image = join.reduce([image[(slice(None),) * axis + (slice(first, first + length),)] for first in range(FILLED_PX)])
    return image


def _square(values: npt.NDArray[Any]) -> Layers:
    """Squared digital numbers (band, y, x) -> (y, x): of I and Q together."""
    if values.dtype.kind == "c":
        return np.asarray(np.abs(values[0]) ** 2, np.float32)
    squared: Layers = (values.astype(np.float32) ** 2).sum(axis=0)
    return squared


def _find_incidence(product: Product, part: Averaged, where: str) -> Incidence:
    """Incidence of the averaged part of an image.

    Level 1 has a table with one angle per column. Level 2 has none: there it is the plane through the angles at near and far range,
    which lie on the sides of the swath that the direction of flight and of looking tell.

    Raises:
        DataError: the table is damaged, or there is neither a table nor angles in the metadata.
    """
    files, metadata = product.files, product.metadata
    if "incidence" in files and part.placement.rpc is not None:
        angles = parse_incidence(files["incidence"].read_bytes(), where=f"{where}, incidence")
        if angles.size != part.width:
            raise DataError(f"{where}: the table of incidence has {angles.size} angles for {part.width} columns; fetch the product again")
        used = angles[int(part.window.col_off) :][: part.shape[1] * part.looks[1]]
        return Incidence(used.reshape(part.shape[1], part.looks[1]).mean(axis=1)[None], "incidence.xml, one angle per column", ())
    if metadata.incidence_deg is None:
        raise DataError(f"{where}: neither incidence.xml nor incidence angles in the metadata, so gamma0 cannot be made; fetch it again")
    near, far = metadata.incidence_deg
    if part.placement.rpc is None:
        return Incidence(_fit_plane(metadata, (near, far), part), "plane through near and far range at the corners of the swath", ())
    columns = int(part.window.col_off) + (np.arange(part.shape[1]) + 0.5) * part.looks[1]
    words = f"{where}: has no incidence.xml, its incidence is taken as linear between {near:.2f} and {far:.2f} degrees"
    return Incidence((near + (far - near) * columns / part.width)[None], "linear in columns between near and far range", (words,))


def _fit_plane(metadata: Metadata, incidence_deg: tuple[float, float], part: Averaged) -> Float:
    """Angles (row, col) of the plane through those at near and far range, at the corners of the swath."""
    corners, affine, (near, far) = np.array(metadata.corners), part.placement.transform, incidence_deg
    x, y = (np.array(axis) for axis in transform("EPSG:4326", part.placement.crs, corners[:, 0], corners[:, 1]))
    is_left = (metadata.direction == "descending") == (metadata.look == "L")  # then near range lies on the left of the image
    stated = np.array([near, far, far, near] if is_left else [far, near, near, far])
    terms = np.stack([np.ones(4), x - x.mean(), y - y.mean()], axis=1)
    plane = np.linalg.lstsq(terms, stated, rcond=None)[0]
    rows, columns = np.meshgrid(*(np.arange(n) + 0.5 for n in part.shape), indexing="ij")
    east = affine.a * columns + affine.b * rows + affine.c - x.mean()
    north = affine.d * columns + affine.e * rows + affine.f - y.mean()
    angles: Float = np.clip(plane[0] + plane[1] * east + plane[2] * north, min(near, far), max(near, far))
    return angles
