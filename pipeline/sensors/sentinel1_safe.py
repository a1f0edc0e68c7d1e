"""Sentinel-1 products on a disk, `.SAFE` folders or `.zip`: what a folder holds, and scenes of them.

With a DEM (pipeline.ingest.dem) they are terrain corrected and radiometrically flattened by sarsen (Small 2011), which is given what this
package has calibrated: thermal noise off, the border of old processors cut, only the part under the area. Without one they are read as
`sentinel1_grd` reads items of a catalogue.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning

from sereno.pipeline import safe
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.mosaic import Part, Reading, find_place, lay_items, lose_incomplete
from sereno.pipeline.pairs import AssetRecord, ItemRecord, SceneRecord
from sereno.pipeline.radiometry import FLOOR_DB
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.sensors.geolocation import compute_positions
from sereno.pipeline.sensors.ground_range import (
    Backscatter,
    ItemFiles,
    NamedLossError,
    Tables,
    View,
    lose_part,
    name_losses,
    read_image,
    read_location,
    read_tables,
    read_text,
    to_asset,
    to_part,
)
from sereno.pipeline.sensors.heights import read_ellipsoidal_heights
from sereno.pipeline.sensors.sentinel1 import describe_power, list_polarisations, to_sar_reading
from sereno.pipeline.sensors.sentinel1_grd import read_item
from sereno.pipeline.signing import Resolver

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

COLLECTION: Final = "sentinel-1-grd"
"""Collection of every product: the name that catalogues have for it."""
CALIBRATION: Final = f"gamma0 terrain flattened by sarsen on the DEM of the settings; 10 log10(power), not below {FLOOR_DB:g} dB"
"""What the stored values mean with a DEM."""
REQUIRED: Final[tuple[safe.FileKind, ...]] = ("measurement", "annotation", "calibration", "noise")
"""What a polarisation needs."""
DEM_MARGIN_PX: Final = 32
"""Ground simulated around the area: what lies beside it may fall onto its image pixels."""
RELIEF_PX: Final = 64
"""Image pixels read around the area with a DEM, for the interpolation and what the fitted geolocation errs."""
DEM: Final = "dem.tif"
"""Name of the temporary DEM beside the temporary product."""
TILE_PX: Final = 512
"""Side of a tile of the temporary image."""


class Listing(NamedTuple):
    """What a folder holds."""

    items: list[tuple[ItemRecord, dict[str, Any]]]
    """Usable products in the order of their names, each with its footprint as GeoJSON in degrees."""
    refused: list[tuple[str, str]]
    """Names of the others, and why they cannot be used."""


def list_products(folder: Path) -> Listing:
    """The Sentinel-1 products directly in `folder`; nothing but their metadata is read.

    A product that is damaged, not a GRD, or of which a copy is not finished is refused with its reason; so is an archive that lies beside
    its own unpacked folder.

    Raises:
        MissingError: there is no such folder.
    """
    if not folder.is_dir():
        raise MissingError(f"folder {folder} does not exist: correct pipeline.query.sar_catalogue")
    paths = sorted(path for path in folder.iterdir() if path.name.startswith("S1") and path.suffix in (".SAFE", ".zip"))
    listing = Listing([], [])
    for path in paths:
        if path.suffix == ".zip" and path.with_suffix(".SAFE") in paths:
            listing.refused.append((path.name, f"{path.stem}.SAFE beside it is the same product, unpacked"))
            continue
        try:
            listing.items.append(read_product(path))
        except (DataError, MissingError) as error:
            logger.warning("%s is refused: %s", path, error)
            listing.refused.append((path.name, str(error)))
    return listing


def read_product(path: Path) -> tuple[ItemRecord, dict[str, Any]]:
    """The product at `path` as an item with addresses relative to its folder, and its footprint.

    Polarisations with a file that is missing or of another size than the manifest states are left out; `properties["incomplete"]` says why.

    Raises:
        DataError: the product is damaged or unfinished, or is not a GRD.
    """
    members = safe.list_members(path)
    root = f"{path.name}/{safe.root_of(path)}" if path.suffix == ".zip" else path.name
    if "manifest.safe" not in members:
        raise DataError(f"{path} holds no manifest.safe: its copy may be unfinished, fetch it again")
    product = safe.parse_manifest(safe.read_file(str(path.parent / root / "manifest.safe")), where=str(path / "manifest.safe"))
    if product.product_type != "GRD":
        raise DataError(f"{path.name} is of type {product.product_type}, only GRD can be read")
    faults = {band: fault for band in product.polarisations if (fault := _find_fault(product, band, members))}
    if len(faults) == len(product.polarisations):
        raise DataError(f"{path.name}: {'; '.join(faults.values())}: its copy may be unfinished, fetch it again")
    assets = {"manifest": AssetRecord(href=f"{root}/manifest.safe")}
    for band in product.polarisations:
        if band not in faults:
            for kind in REQUIRED:
                part = product.parts[kind, band]
                name = band if kind == "measurement" else f"{kind}-{band}"
                assets[name] = AssetRecord(href=f"{root}/{part.path}", checksum=part.md5 or None, size_bytes=part.size_bytes)
    longitudes, latitudes = zip(*product.footprint, strict=True)
    wide = max(longitudes) - min(longitudes) > 180  # then it crosses 180 degrees
    edges = [longitude + 360 if wide and longitude < 0 else longitude for longitude in longitudes]
    record = ItemRecord(
        item=path.stem,
        collection=COLLECTION,
        sensor="sentinel1-safe",
        time=product.start,
        crs="",
        bbox=(min(edges), min(latitudes), max(edges) - 360 if wide else max(edges), max(latitudes)),
        assets=assets,
        properties=_to_facts(product, faults),
    )
    return record, _to_footprint(product.footprint)


def _find_fault(product: safe.Product, band: str, members: dict[str, int]) -> str:
    for kind in REQUIRED:
        part = product.parts.get((kind, band))
        if part is None:
            return f"the manifest names no {kind} of {band}"
        if part.path not in members:
            return f"{part.path} is missing"
        if members[part.path] != part.size_bytes:
            return f"{part.path} has {members[part.path]} bytes, the manifest states {part.size_bytes}"
    return ""


def _to_facts(product: safe.Product, faults: dict[str, str]) -> dict[str, str]:
    facts = {
        "platform": product.platform,
        "orbit_state": product.orbit_state,
        "relative_orbit": product.relative_orbit,
        "absolute_orbit": product.absolute_orbit,
        "mode": product.mode,
        "polarisations": " ".join(band for band in product.polarisations if band not in faults),
        "slice": product.slice_number,
        "slices": product.total_slices,
        "ipf": product.ipf,
        "stop": product.stop,
        "incomplete": "; ".join(faults.values()),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}


def _to_footprint(corners: tuple[tuple[float, float], ...]) -> dict[str, Any]:
    """A GeoJSON polygon; one across 180 degrees goes on beyond it."""
    wide = max(x for x, _ in corners) - min(x for x, _ in corners) > 180
    ring = [[x + 360 if wide and x < 0 else x, y] for x, y in (*corners, corners[0])]
    return {"type": "Polygon", "coordinates": [ring]}


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene in int16 centi-dB on `geobox` plus a margin: the polarisations that its products hold.

    Raises:
        MissingError: no product holds a polarisation; with a DEM also if it is not there or the extra `sar` is not installed.
        DataError: the DEM has no height in the area.
    """
    bands = list_polarisations(record)
    grid = geobox.pad(settings.margin_px)
    reader = read_item
    if settings.dem is not None:
        _import_sarsen()
        reader = correct_terrain
    mosaic = lay_items(record.items, grid, partial(reader, bands=bands, settings=settings, resolver=resolver))
    return to_sar_reading(record, mosaic, grid, bands=bands, settings=settings)


def _import_sarsen() -> ModuleType:
    try:
        import sarsen
        import xarray_sentinel  # noqa: F401 -- sarsen opens products through it
    except ImportError as error:
        raise MissingError(
            f"pipeline.ingest.dem asks for terrain correction, which needs the extra sar ({error}): "
            "pip install 'sereno[sar]', or leave dem out to read without it"
        ) from None
    module: ModuleType = sarsen
    return module


def correct_terrain(
    item: ItemRecord, grid: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    """What one product gives to `grid`, flattened gamma0 in float32, where pixels are still `wanted` (y, x).

    Not valid are pixels without a height, and those whose place in the image holds no known value or is lit by no ground of the DEM.

    Raises:
        MissingError: the DEM is not there.
        DataError: it has no height in the area.
    """
    place = find_place(wanted)
    names = ("manifest", *bands, *(f"{kind}-{band}" for band in bands for kind in ("annotation", "calibration")))
    if lost_part := lose_incomplete(item, names, n_bands=len(bands), dtype=np.float32):
        return lost_part
    ground, files = grid[place].pad(DEM_MARGIN_PX), ItemFiles(item, settings, resolver)
    relief = read_ellipsoidal_heights(ground, settings, where=f"item {item.item}")
    heights = relief.values_m
    try:
        tables = [read_tables(files, band, "betaNought") for band in bands]
        layers = {band: _correct_band(files, band, table, grid=ground, heights=heights) for band, table in zip(bands, tables, strict=True)}
    except NamedLossError as loss:
        return lose_part(files, loss, len(bands))
    inner = (slice(DEM_MARGIN_PX, -DEM_MARGIN_PX), slice(DEM_MARGIN_PX, -DEM_MARGIN_PX))
    layers = {name: band._replace(power=band.power[inner], valid=band.valid[inner]) for name, band in layers.items()}
    part = to_part(layers, tables, place, wanted[place] & np.isfinite(heights)[inner])
    facts = {
        **describe_power(CALIBRATION),
        "geocoding": "range-doppler",
        "heights": relief.words,
        **part.facts,
    }
    return part._replace(facts=facts, entries=(*files.entries.values(), *part.entries), warnings=relief.warnings + part.warnings)


def _correct_band(files: ItemFiles, band: str, tables: Tables, *, grid: GeoBox, heights: npt.NDArray[np.float32]) -> Backscatter:
    """Flattened gamma0 of one polarisation on `grid` with its heights (y, x), NaN where not known; `tables` are those of beta0."""
    location = read_location(files, band, str(grid.crs))
    known = np.where(np.isfinite(heights), heights, np.nanmedian(heights))
    positions = compute_positions(location.geolocation, grid, known)
    with name_losses(band):
        view = read_image(to_asset(files, band), tables, positions, location.shape, margin_px=RELIEF_PX)
    if view.frame is None:
        return view.band
    if view.frame.scale != (1.0, 1.0):
        raise NamedLossError(band, "refused", "the image is a reduced copy, which sarsen cannot place: give the whole product")
    with tempfile.TemporaryDirectory(prefix="sereno-") as name:
        with name_losses("manifest"):
            product = _write_product(Path(name), files, band, view, tables)
        _write_raster(Path(name) / DEM, known, grid)
        flattened = _run_sarsen(product, f"{files.item.properties.get('mode', 'IW')}/{band}")
    valid = np.isfinite(flattened) & (flattened >= 0)
    return view.band._replace(power=np.where(valid, flattened, 0).astype(np.float32), valid=valid)


def _write_product(folder: Path, files: ItemFiles, band: str, view: View, tables: Tables) -> Path:
    """A product of one polarisation that holds only the part of the image that was read, as floating-point amplitude with noise taken off.

    sarsen makes beta0 of it by the same table that is multiplied in here; tiles that are not written are read back as NaN.
    """
    assert view.frame is not None  # checked by the caller
    item, (window, (height, width), _) = files.item, view.frame
    root = item.assets["manifest"].href.removesuffix("manifest.safe")
    product = folder / Path(root).name
    for name in ("manifest", f"annotation-{band}", f"calibration-{band}"):
        path = product / item.assets[name].href.removeprefix(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_text(files, name))
    path = product / item.assets[band].href.removeprefix(root)
    path.parent.mkdir()
    rows, columns = window.toranges()
    gain = safe.sample_vectors(tables.gain, np.arange(*rows, dtype=np.float64), np.arange(*columns, dtype=np.float64))
    amplitude = np.where(view.band.valid, np.sqrt(view.band.power) * gain, np.nan).astype(np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": height, "width": width, "nodata": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # its place is in the annotation
        with rasterio.open(path, "w", **profile, tiled=True, blockxsize=TILE_PX, blockysize=TILE_PX, SPARSE_OK=True) as file:
            file.write(amplitude, 1, window=window)
    return product


def _write_raster(path: Path, values: npt.NDArray[np.float32], grid: GeoBox) -> None:
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": grid.shape.y, "width": grid.shape.x}
    with rasterio.open(path, "w", **profile, crs=str(grid.crs), transform=grid.transform) as file:
        file.write(values, 1)


def _run_sarsen(product: Path, group: str) -> npt.NDArray[np.float32]:
    """Gamma0 of `product` flattened on the DEM beside it, on the grid of that: (y, x), NaN or infinite where it has none."""
    sarsen, output = _import_sarsen(), product.with_name("gamma0.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of xarray and dask, about how sarsen calls them
        image = sarsen.Sentinel1SarProduct(str(product), group)
        sarsen.terrain_correction(
            image,
            dem_urlpath=str(product.with_name(DEM)),
            output_urlpath=str(output),
            correct_radiometry="gamma_bilinear",
            interp_method="linear",
        )
    with rasterio.open(output) as file:
        values: npt.NDArray[np.float32] = file.read(1)
        return values if file.transform.e < 0 else values[::-1]  # sarsen turns its DEM upside down
