"""Whole images: how tiles lie and are blended into rows, and rows written as a cloud-optimised GeoTIFF that reads back.

Answers for tiles enter, finished rows leave and are written as they come, so that memory follows an image's width and never its height.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import torch
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # what `rasterio.shutil.copy` lets through has no public name
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError
from rasterio.windows import Window
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sereno.pipeline.errors import StoreError
from sereno.pipeline.store import remove

PREDICTION_FORMAT: Final = "sereno-prediction/1"
"""Form of the records beside written images."""
BLOCK_PX: Final = 512
"""Side of a block of the written image (the default of GDAL's COG driver)."""
TRUE_COLOUR: Final = {
    "B04": ColorInterp.red,
    "B03": ColorInterp.green,
    "B02": ColorInterp.blue,
    "B3": ColorInterp.red,
    "B2": ColorInterp.green,
    "B1": ColorInterp.blue,
}
"""What makes viewers such as QGIS open the image in true colour."""
CACHE_BYTES: Final = 32 << 20
"""What GDAL may keep in memory beside two rows of blocks; its own default is a share of the machine's memory."""

Array = npt.NDArray[Any]


class Axis(NamedTuple):
    """How tiles lie along the rows or the columns of a scene."""

    extent: int
    """Pixels of the scene."""
    tile: int
    """Pixels of a tile."""
    overlap: int
    """Pixels that neighbouring tiles share."""

    @property
    def stride(self) -> int:
        """Distance of tiles: a multiple of 8, as tile and overlap are, so that attention windows lie alike in all of them."""
        return self.tile - self.overlap

    @property
    def n_tiles(self) -> int:
        """Tiles needed to cover every pixel."""
        return max(1, -(-(self.extent - self.overlap) // self.stride))

    @property
    def padded(self) -> int:
        """Pixels that the tiles cover; what lies beyond the scene is its mirror image."""
        return self.n_tiles * self.stride + self.overlap

    def window(self, number: int) -> Tensor:
        """Weights (tile,) of tile `number`: it fades out while its neighbour fades in, so that the two sum to 1 at every pixel."""
        weights = torch.ones(self.tile)
        ramp = (torch.arange(self.overlap) + 0.5) / max(self.overlap, 1)
        if number > 0:
            weights[: self.overlap] = ramp
        if number < self.n_tiles - 1:
            weights[self.tile - self.overlap :] = 1 - ramp
        return weights


class RowBlender:
    """The weighted sum of one row of tiles: the only image-wide buffer of floats, as high as a tile whatever the scene's height."""

    def __init__(self, bands: int, rows: Axis, columns: Axis, device: torch.device) -> None:
        self._rows, self._columns = rows, columns
        self.sum = torch.zeros(bands, rows.tile, columns.padded, device=device)

    def add(self, tile: Tensor, row: int, column: int) -> None:
        """Lay tile (C, tile, tile), number `column` of tile row `row`, onto the sum."""
        weights = (self._rows.window(row)[:, None] * self._columns.window(column)[None]).to(tile.device)
        left = column * self._columns.stride
        self.sum[:, :, left : left + self._columns.tile] += tile * weights

    def take(self, row: int) -> Array:
        """The finished rows after tile row `row`, (C, rows, W); what the next row of tiles adds to is carried on."""
        last = row == self._rows.n_tiles - 1
        finished = self._rows.extent - row * self._rows.stride if last else self._rows.stride
        rows: Array = self.sum[:, :finished, : self._columns.extent].cpu().numpy()
        rows = rows.copy()
        carried = self.sum[:, self._rows.stride :].clone()
        self.sum.zero_()
        self.sum[:, : self._rows.overlap] = carried
        return rows


class ImageRows(NamedTuple):
    """Some finished rows of the written image."""

    first: int
    """Number of the first one."""
    image: Array
    """(band, rows, W) in the type of the image."""


class Sheet(NamedTuple):
    """What an image is written as."""

    bands: tuple[str, ...]
    """Descriptions of its bands."""
    dtype: str
    """Their type."""
    nodata: float
    """Value of pixels without an answer."""
    scales: tuple[float, ...]
    """What the values of each band are multiplied by to be reflectance."""
    geobox: GeoBox
    """Its grid; without a CRS it lies nowhere."""
    pieces: int
    """In how many pieces its rows come."""
    band_tags: Mapping[int, Mapping[str, str]]
    """Tags of single bands, by their numbers from 1."""


def write_cog(rows: Iterable[ImageRows], sheet: Sheet, path: Path, *, tags: dict[str, str]) -> None:
    """Write an image to `path` as a COG, by way of a plain GeoTIFF, since the COG driver can only copy.

    Overviews take the nearest pixel: an average would invent provenance values and mix nodata neighbours.

    Raises:
        StoreError: it cannot be written or does not read back as it was written.
    """
    work = path.with_name(f"{path.name}.work")
    remove(work)
    work.mkdir(parents=True)
    row_of_blocks = BLOCK_PX * sheet.geobox.shape.x * len(sheet.bands) * np.dtype(sheet.dtype).itemsize
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES + 2 * row_of_blocks):
            digests = _write_rows(rows, sheet, work / "rows.tif", tags)
            options = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": BLOCK_PX, "OVERVIEW_RESAMPLING": "NEAREST"}
            rasterio.shutil.copy(work / "rows.tif", work / "cog.tif", driver="COG", BIGTIFF="IF_SAFER", NUM_THREADS="ALL_CPUS", **options)
            _check_rows(work / "cog.tif", digests)
        (work / "cog.tif").replace(path)
    except (RasterioIOError, CPLE_BaseError) as error:
        raise StoreError(f"cannot write {path} ({error}): free space or choose another folder, then run again") from error
    finally:
        remove(work)


def _write_rows(parts: Iterable[ImageRows], sheet: Sheet, path: Path, tags: dict[str, str]) -> dict[Window, int]:
    """Write the rows as they come; the windows written with the CRC-32 of their values."""
    rows, columns = sheet.geobox.shape.y, sheet.geobox.shape.x
    profile = {"driver": "GTiff", "dtype": sheet.dtype, "nodata": sheet.nodata, "count": len(sheet.bands), "height": rows, "width": columns}
    crs = sheet.geobox.crs
    grid = {"crs": CRS.from_user_input(str(crs)) if crs else None, "transform": sheet.geobox.transform}
    digests: dict[Window, int] = {}
    with rasterio.open(path, "w", BIGTIFF="IF_SAFER", **profile, **grid) as image:
        image.descriptions = sheet.bands
        image.colorinterp = [TRUE_COLOUR.get(band, ColorInterp.undefined) for band in sheet.bands]
        image.scales = sheet.scales
        image.update_tags(**tags)
        for band, said in sheet.band_tags.items():
            image.update_tags(band, **said)
        console = Console(stderr=True)
        for part in track(parts, "predict", sheet.pieces, console=console, disable=not sys.stderr.isatty()):
            window = Window(0, part.first, columns, part.image.shape[1])
            image.write(part.image, window=window)
            digests[window] = zlib.crc32(part.image.tobytes())
    return digests


def _check_rows(path: Path, digests: dict[Window, int]) -> None:
    with rasterio.open(path) as image:
        for window, digest in digests.items():
            if zlib.crc32(image.read(window=window).tobytes()) != digest:
                raise StoreError(f"{path}: rows from {window.row_off} on do not read back as written; is the disk full? Run again")
