"""Sentinel-1 GRD: digital numbers in ground range in, calibrated gamma0 on the area's grid out, geocoded without terrain correction.

Values are calibrated from the product's own tables, with thermal noise taken off and the border of old processors cut, and interpolated in
power at the place that the geolocation grid gives to each pixel of the area. Relief is known only as well as the heights are: those of the
DEM in the settings, or else the coarse surface of the grid. Ellipsoid gamma0 joins RTC data in flat ground, not on slopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.mosaic import Part, Reading, find_place, lay_items, lose_incomplete
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.radiometry import FLOOR_DB
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.scheduler import run_tasks
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.geolocation import Geolocation, Positions, compute_positions, read_ellipsoidal_heights
from sereno.pipeline.sensors.ground_range import (
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
    sample_power,
    to_asset,
    to_part,
)
from sereno.pipeline.sensors.sentinel1 import describe_power, list_polarisations, to_sar_reading
from sereno.pipeline.signing import Resolver

CALIBRATION: Final = f"ellipsoid gamma0 of the product's tables, not terrain flattened; 10 log10(power), not below {FLOOR_DB:g} dB"
"""What the stored values mean."""
SQUARE_PX: Final = 2048
"""Side of the squares in which an area is read: pixels of the grid."""


class Terrain(NamedTuple):
    """The ground that is read."""

    grid: GeoBox
    """Its pixels."""
    heights_m: npt.NDArray[np.float32] | None
    """(y, x) above the ellipsoid, NaN where not known; None takes the surface through the control points."""


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The scene in int16 centi-dB on `geobox` plus a margin: the polarisations that its items hold.

    The area is read in squares of `SQUARE_PX`. Peak memory, measured without a DEM and with one reader: the scene in float32 and 0.45 GB
    for a square while it is read, 3.4 times the scene when it becomes centi-dB. A second reader takes at most as much again for the square.

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
    place, files = find_place(wanted), ItemFiles(item, settings, resolver)
    heights = None if settings.dem is None else read_ellipsoidal_heights(grid[place], settings, where=f"item {item.item}")
    terrain = Terrain(grid[place], None if heights is None else heights.values_m)
    try:
        tables = [read_tables(files, band) for band in bands]
        location = read_location(files, bands[0], str(grid.crs))
        layers = read_layers([to_asset(files, band) for band in bands], tables, location, terrain, settings)
    except NamedLossError as loss:
        return lose_part(files, loss, len(bands))
    part = to_part(dict(zip(bands, layers, strict=True)), tables, place, wanted[place])
    warnings = (warn_of_relief(location.geolocation),) if heights is None else heights.warnings
    facts = {
        **describe_power(CALIBRATION),
        "geocoding": "gcp" if heights is None else "gcp+dem",
        "heights": "of the control points" if heights is None else heights.words,
        "geocoding_residual_px": list(location.geolocation.residual_px),
        **part.facts,
    }
    return part._replace(facts=facts, entries=(*files.entries.values(), *part.entries), warnings=warnings + part.warnings)


def warn_of_relief(geolocation: Geolocation) -> str:
    """What a user should know of a scene that is geocoded without a DEM."""
    low, high = (round(float(edge)) for edge in (geolocation.heights_m.min(), geolocation.heights_m.max()))
    return (
        f"relief is not corrected: ground is displaced by 1/tan(incidence), 1.0 to 1.8 m, per metre of height above the surface through "
        f"the control points ({low} to {high} m in the image); set pipeline.ingest.dem"
    )


def read_layers(
    assets: Sequence[Asset], tables: Sequence[Tables], location: Location, terrain: Terrain, settings: IngestSettings
) -> list[Backscatter]:
    """Each polarisation on the grid of `terrain`; not valid where its heights are not known.

    Squares follow each other, the polarisations of one are read at the same time by the readers of the settings.

    Raises:
        NamedLossError: a file is lost.
        CatalogueError: a file cannot be read now.
    """
    layers: list[Backscatter | None] = [None] * len(assets)
    size = (terrain.grid.shape.y, terrain.grid.shape.x)
    for square in split_grid(size):
        heights = None if terrain.heights_m is None else terrain.heights_m[square]
        positions = compute_positions(location.geolocation, terrain.grid[square], heights)
        tasks = [partial(_read_square, asset, table, positions, location.shape) for asset, table in zip(assets, tables, strict=True)]
        bands = run_tasks(tasks, settings.scheduler, settings.readers)
        layers = [_lay_square(layer, band, square, size) for layer, band in zip(layers, bands, strict=True)]
    return [layer for layer in layers if layer is not None]


def _read_square(asset: Asset, tables: Tables, positions: Positions, shape: tuple[int, int] | None) -> Backscatter:
    """One polarisation at `positions`; `shape` is that of the image which they count in."""
    with name_losses(asset.name):
        band, frame, rows, columns = read_image(asset, tables, positions, shape)
    if frame is None:
        return band
    power, inside = sample_power(band.power, band.valid, (rows - frame.window.row_off, columns - frame.window.col_off))
    return band._replace(power=power, valid=inside)


def split_grid(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Squares of `SQUARE_PX` that cover a grid, those at its end smaller."""
    rows, columns = ([slice(first, min(first + SQUARE_PX, size)) for first in range(0, size, SQUARE_PX)] for size in shape)
    return [(row, column) for row in rows for column in columns]


def _lay_square(canvas: Backscatter | None, band: Backscatter, square: tuple[slice, slice], shape: tuple[int, int]) -> Backscatter:
    """`canvas` with what was read of one square; its costs added up."""
    if canvas is None:
        canvas = Backscatter(
            np.zeros(shape, np.float32), np.zeros(shape, bool), 0, (), band.entry._replace(retries=0, bytes_read=0, seconds=0.0)
        )
    canvas.power[square], canvas.valid[square] = band.power, band.valid
    one, two = canvas.entry, band.entry
    entry = (two if two.status != "used" else one)._replace(
        retries=one.retries + two.retries, bytes_read=one.bytes_read + two.bytes_read, seconds=one.seconds + two.seconds
    )
    lost = tuple(dict.fromkeys((*canvas.lost, *band.lost)))
    return canvas._replace(n_floored=canvas.n_floored + band.n_floored, lost=lost, entry=entry)
