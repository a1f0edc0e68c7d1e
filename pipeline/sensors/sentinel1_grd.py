"""Sentinel-1 GRD: digital numbers in ground range in, calibrated gamma0 on the area's grid out, geocoded without terrain correction.

Values are calibrated from the product's own tables, with thermal noise taken off and the border of old processors cut, and interpolated in
power at the place that the geolocation grid gives to each pixel of the area; the scene keeps the image as its plate. Relief is known only
as well as the heights are: those of the DEM in the settings, or else the coarse surface of the grid. Ellipsoid gamma0 joins RTC data in
flat ground, not on slopes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.geometry import Positions as Places
from sereno.pipeline.geometry import compose_positions
from sereno.pipeline.mosaic import Part, Place, Reading, find_place, lay_items, lose_incomplete, widen_place
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.plates import make_lattice, place_plates
from sereno.pipeline.radiometry import FLOOR_DB
from sereno.pipeline.safe import Float
from sereno.pipeline.scene import LATTICE_STEP_PX, Bool2d, Plate
from sereno.pipeline.scheduler import run_tasks
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.geolocation import (
    Geolocation,
    Positions,
    compute_positions,
    compute_surface,
    locate,
)
from sereno.pipeline.sensors.ground_range import (
    KERNEL_PX,
    Backscatter,
    ItemFiles,
    Location,
    NamedLossError,
    Tables,
    lose_part,
    name_losses,
    read_image,
    read_location,
    read_tables,
    to_asset,
    to_part,
)
from sereno.pipeline.sensors.heights import read_ellipsoidal_heights
from sereno.pipeline.sensors.orthorectification import average_looks, count_looks
from sereno.pipeline.sensors.sentinel1 import describe_power, list_polarisations, to_sar_reading, to_stored_power
from sereno.pipeline.signing import Resolver

CALIBRATION: Final = f"ellipsoid gamma0 of the product's tables, not terrain flattened; 10 log10(power), not below {FLOOR_DB:g} dB"
"""What the stored values mean."""
SQUARE_PX: Final = 2048
"""Side of the squares in which an area is read: pixels of the grid."""


class Ground(NamedTuple):
    """The ground that is read."""

    grid: GeoBox
    """Of the whole scene."""
    place: Place
    """Rows and columns of it that are wanted."""
    heights_m: npt.NDArray[np.float32] | None
    """(y, x) of these above the ellipsoid, NaN where not known; None takes the surface through the control points."""


class Corner(NamedTuple):
    """Where a part of an averaged image begins, and how it was averaged."""

    first: tuple[int, int]
    """Its first row and column in the averaged image."""
    looks: tuple[int, int]
    """Rows and columns of the file that were averaged."""
    scale: tuple[float, float]
    """Lines and pixels of the annotation per row and column of the file."""


class Sheet(NamedTuple):
    """One polarisation under the ground that is read."""

    band: Backscatter
    """(row, column), averaged to about the pixels of the grid."""
    corner: Corner | None
    """Where it begins; None if the image does not reach the ground."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene in int16 centi-dB on `geobox` plus a margin: the polarisations that its items hold.

    The area is read in squares of `SQUARE_PX`. Peak memory: the image under the area in float32 twice, which has 1.4 times the pixels of
    the area since it is turned against it, the scene in float32 twice, and for each reader 0.45 GB for a square while it is read.

    Raises:
        MissingError: no item holds a polarisation, or the DEM of the settings is not there.
        DataError: that DEM has no height in the area.
        CatalogueError: an asset cannot be read now, or must not be read.
    """
    bands = list_polarisations(record)
    grid = geobox.pad(settings.margin_px)
    mosaic = lay_items(record.items, grid, partial(read_item, bands=bands, settings=settings, resolver=resolver))
    return to_sar_reading(record, mosaic, grid, bands=bands, settings=settings)


def read_item(
    item: ItemRecord, grid: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    """What one item gives to `grid`, power in float32, where pixels are still `wanted` (y, x).

    Raises:
        MissingError: the DEM of the settings is not there.
        DataError: that DEM has no height in the area.
        CatalogueError: an asset cannot be read now, or must not be read.
    """
    needed = (*bands, *(f"calibration-{band}" for band in bands))
    if lost_part := lose_incomplete(item, needed, n_bands=len(bands), dtype=np.float32):
        return lost_part
    place, files = widen_place(find_place(wanted), settings.margin_px, wanted.shape), ItemFiles(item, settings, resolver)
    heights = None if settings.dem is None else read_ellipsoidal_heights(grid[place], settings, where=f"item {item.item}")
    ground = Ground(grid, place, None if heights is None else heights.values_m)
    try:
        tables = [read_tables(files, band) for band in bands]
        location = read_location(files, bands[0], str(grid.crs))
        sheets, geocoding = read_sheets([to_asset(files, band) for band in bands], tables, location, ground, settings)
    except NamedLossError as loss:
        return lose_part(files, loss, len(bands))
    plates, n_clamped = _to_plates(dict(zip(bands, sheets, strict=True)), geocoding, settings)
    power, inside = place_plates(plates, bands, source=grid, target=grid[place])
    layers = {band: sheets[index].band._replace(power=power[index], valid=inside) for index, band in enumerate(bands)}
    part = to_part(layers, tables, place, wanted[place])
    warnings = (warn_of_relief(location.geolocation),) if heights is None else heights.warnings
    facts = {
        **describe_power(CALIBRATION),
        "geocoding": "gcp" if heights is None else "gcp+dem",
        "heights": "of the control points" if heights is None else heights.words,
        "geocoding_residual_px": list(location.geolocation.residual_px),
        **part.facts,
        "n_clamped": n_clamped,
    }
    entries = (*files.entries.values(), *part.entries)
    return part._replace(facts=facts, entries=entries, warnings=warnings + part.warnings, plates=plates)


def warn_of_relief(geolocation: Geolocation) -> str:
    """What a user should know of a scene that is geocoded without a DEM."""
    low, high = (round(float(edge)) for edge in (geolocation.heights_m.min(), geolocation.heights_m.max()))
    return (
        f"relief is not corrected: ground is displaced by 1/tan(incidence), 1.0 to 1.8 m, per metre of height above the surface through "
        f"the control points ({low} to {high} m in the image); set pipeline.ingest.dem"
    )


class Geocoding(NamedTuple):
    """Where the ground of a scene lies in an image, in lines and pixels of its annotation."""

    lattice: Float
    """(2, rows, cols) as in a plate."""
    relief: npt.NDArray[np.float32] | None
    """(2, y, x) likewise."""

    @property
    def steps(self) -> tuple[float, float]:
        """Lines and pixels per pixel of the grid."""
        down, across = (np.diff(self.lattice, axis=axis) / LATTICE_STEP_PX for axis in (1, 2))
        lines, pixels = (float(np.median(np.hypot(down[axis, :, :-1], across[axis, :-1]))) for axis in (0, 1))
        return lines, pixels


def read_sheets(
    assets: Sequence[Asset], tables: Sequence[Tables], location: Location, ground: Ground, settings: IngestSettings
) -> tuple[list[Sheet], Geocoding]:
    """Each polarisation under `ground`, and where that lies in it.

    Squares follow each other, the polarisations of one are read at the same time by the readers of the settings.

    Raises:
        NamedLossError: a file is lost.
        CatalogueError: a file cannot be read now.
    """
    geocoding = _find_geocoding(location.geolocation, ground)
    area, pieces = ground.grid[ground.place], []
    for square in split_grid((area.shape.y, area.shape.x)):
        heights = None if ground.heights_m is None else ground.heights_m[square]
        positions = compute_positions(location.geolocation, area[square], heights)
        _note_relief(geocoding, positions, (ground.place[0].start + square[0].start, ground.place[1].start + square[1].start))
        tasks = [
            partial(_read_square, asset, table, positions, location.shape, steps=geocoding.steps)
            for asset, table in zip(assets, tables, strict=True)
        ]
        pieces.append(run_tasks(tasks, settings.scheduler, settings.readers))
    return [_join_pieces([square[index] for square in pieces]) for index in range(len(assets))], geocoding


def _find_geocoding(geolocation: Geolocation, ground: Ground) -> Geocoding:
    """The lattice on the surface through the control points; relief is not known yet, and there is none without heights."""
    affine = ground.grid.transform

    def locate_centres(rows: Float, columns: Float) -> tuple[Float, Float]:
        x, y = columns.ravel() + 0.5, rows.ravel() + 0.5
        places = np.stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f], axis=1)
        lines, pixels = locate(geolocation, places, compute_surface(geolocation, places))
        return lines.reshape(rows.shape), pixels.reshape(rows.shape)

    shape = tuple(ground.grid.shape)
    return Geocoding(make_lattice(locate_centres, shape), None if ground.heights_m is None else np.full((2, *shape), np.nan, np.float32))


def _note_relief(geocoding: Geocoding, positions: Positions, first: tuple[int, int]) -> None:
    """Write how far relief moves the pixels of a square, which begins at row and column `first` of the grid, into `geocoding`."""
    if geocoding.relief is None:
        return
    square = tuple(slice(start, start + size) for start, size in zip(first, positions.lines.shape, strict=True))
    places = Places(*np.meshgrid(*(np.arange(axis.start, axis.stop, dtype=float) for axis in square), indexing="ij"))
    flat = compose_positions(Places(*geocoding.lattice), places, step_px=LATTICE_STEP_PX, first_px=-LATTICE_STEP_PX)
    for layer, raised, level in zip(geocoding.relief, positions, flat, strict=True):
        layer[square] = raised - level


def _read_square(asset: Asset, tables: Tables, positions: Positions, shape: tuple[int, int] | None, *, steps: tuple[float, float]) -> Sheet:
    """One polarisation under `positions`; `shape` is that of the image which they count in, `steps` what of it goes into a pixel."""
    with name_losses(asset.name):
        band, frame = read_image(asset, tables, positions, shape, margin_px=KERNEL_PX + math.ceil(max(steps)))
    if frame is None:
        return Sheet(band, None)
    down, across = (step / scale for step, scale in zip(steps, frame.scale, strict=True))
    looks, (rows, columns) = count_looks((down, across)), frame.window.toranges()
    first = (-(-rows[0] // looks[0]), -(-columns[0] // looks[1]))  # blocks begin at the same rows and columns for all squares
    part = (slice(first[0] * looks[0] - rows[0], None), slice(first[1] * looks[1] - columns[0], None))
    power, valid = average_looks(band.power[None, *part], band.valid[part], looks)
    return Sheet(band._replace(power=power[0], valid=valid), Corner(first, looks, frame.scale))


def _join_pieces(pieces: Sequence[Sheet]) -> Sheet:
    """What was read of the squares as one image; their costs added up."""
    total = _add_costs([piece.band for piece in pieces])
    seen = [(piece.band, piece.corner) for piece in pieces if piece.corner is not None]
    if not seen:
        return Sheet(total._replace(power=np.zeros((0, 0), np.float32), valid=np.zeros((0, 0), bool)), None)
    firsts, shapes = np.array([corner.first for _, corner in seen]), np.array([band.power.shape for band, _ in seen])
    (top, left), (bottom, right) = firsts.min(axis=0).tolist(), (firsts + shapes).max(axis=0).tolist()
    power, valid = np.zeros((bottom - top, right - left), np.float32), np.zeros((bottom - top, right - left), bool)
    for (band, _), (row, column), (height, width) in zip(seen, (firsts - (top, left)).tolist(), shapes.tolist(), strict=True):
        place = (slice(row, row + height), slice(column, column + width))
        np.copyto(power[place], band.power, where=band.valid)
        valid[place] |= band.valid
    return Sheet(total._replace(power=power, valid=valid), seen[0][1]._replace(first=(top, left)))


def _add_costs(bands: Sequence[Backscatter]) -> Backscatter:
    """The first of the parts of a polarisation with what all of them have cost and lost."""
    entries = [band.entry for band in bands]
    worst = next((entry for entry in reversed(entries) if entry.status != "used"), entries[0])
    entry = worst._replace(
        retries=sum(entry.retries for entry in entries),
        bytes_read=sum(entry.bytes_read for entry in entries),
        seconds=sum(entry.seconds for entry in entries),
    )
    lost = tuple(dict.fromkeys(reason for band in bands for reason in band.lost))
    return bands[0]._replace(n_floored=sum(band.n_floored for band in bands), lost=lost, entry=entry)


def _to_plates(sheets: dict[str, Sheet], geocoding: Geocoding, settings: IngestSettings) -> tuple[tuple[Plate, ...], int]:
    """The polarisations as stored plates, those that lie on each other together, and how many values were clamped."""
    alike: dict[tuple[Corner, tuple[int, ...]], list[str]] = {}
    for name, sheet in sheets.items():
        if sheet.corner is not None:
            alike.setdefault((sheet.corner, sheet.band.power.shape), []).append(name)
    plates, total = [], 0
    for (corner, _), names in alike.items():
        power = np.stack([sheets[name].band.power for name in names])
        valid: Bool2d = np.logical_and.reduce([sheets[name].band.valid for name in names])
        stored, n_clamped = to_stored_power(power, valid, settings.speckle)
        total += n_clamped
        per_row = np.array(corner.scale) * np.array(corner.looks)
        lattice = (geocoding.lattice + 0.5) / per_row[:, None, None] - 0.5 - np.array(corner.first)[:, None, None]
        relief = None if geocoding.relief is None else (geocoding.relief / per_row[:, None, None]).astype(np.float32)
        down, across = (float(step / n) for step, n in zip(geocoding.steps, per_row, strict=True))
        plates.append(Plate(tuple(names), stored, valid, lattice, relief, (down, across)))
    return tuple(plates), total


def split_grid(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Squares of `SQUARE_PX` that cover a grid, those at its end smaller."""
    rows, columns = ([slice(first, min(first + SQUARE_PX, size)) for first in range(0, size, SQUARE_PX)] for size in shape)
    return [(row, column) for row in rows for column in columns]
