"""Heights of the ground: from a GeoTIFF of the user, or of the step `dem`, to metres above the ellipsoid on a grid.

A grid and the settings enter; heights leave, with words on where they come from. Files state the surface that their heights are above in
many ways, or not at all: what they say is told, and nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError

DATUM_TAG: Final = "VERTICAL_DATUM"
"""Tag of a joined file of heights: the surface above which they are."""
SOURCE_TAG: Final = "HEIGHTS_FROM"
"""Tag of a joined file of heights: the collection and the items that it was joined from."""


class Heights(NamedTuple):
    """Heights of the ground above the ellipsoid."""

    values_m: npt.NDArray[np.float32]
    """(y, x) on the grid, NaN where not known."""
    words: str
    """Where they come from, for the provenance: no path of this machine."""
    warnings: tuple[str, ...]
    """What a user should know."""


class Surface(NamedTuple):
    """What a file of heights says of itself."""

    name: str
    """What it was joined from, else the name of the file."""
    datum: str | None
    """Name of the surface above which its heights are; None if it does not say."""
    is_joined: bool
    """Whether the step `dem` wrote it."""

    @property
    def is_ellipsoid(self) -> bool:
        """Whether it says that its heights are above the ellipsoid."""
        return self.datum is not None and "ellipsoid" in self.datum.lower()


def read_ellipsoidal_heights(grid: GeoBox, settings: IngestSettings, *, where: str) -> Heights:
    """Heights above the ellipsoid at the pixels of `grid`, of the DEM in the settings and the geoid, where there is one: for every reader.

    The geoid is added unless the DEM says that its heights are above the ellipsoid. `where` names the item in messages.

    Raises:
        MissingError: the DEM or the geoid is not there, or cannot be read.
        DataError: one of them has no CRS, or no height in the area.
    """
    dem, geoid = settings.dem, settings.geoid
    assert dem is not None  # the caller has looked
    surface = describe_surface(dem, f"{where}: pipeline.ingest.dem {dem}")
    heights = read_heights(dem, grid, name=f"{where}: {'the joined' if surface.is_joined else 'pipeline.ingest.dem'} {dem}")
    words, warnings = surface.name, []
    if geoid is not None and not surface.is_ellipsoid:
        heights = heights + read_heights(geoid, grid, name=f"{where}: pipeline.ingest.geoid {geoid}, which is added to {dem},")
        words = f"{surface.name}, the geoid {Path(geoid).name} added"
    elif surface.is_ellipsoid:
        words = f"{surface.name}, above the ellipsoid"
    elif surface.datum is None:
        words = f"{surface.name}, taken as above the ellipsoid"
    else:
        words = warn_of_datum(surface)
        warnings.append(f"{words}; set pipeline.ingest.geoid")
    unknown = float(np.isnan(heights).mean())
    if unknown:
        remedy = "see its ledger, or set pipeline.dem.missing" if surface.is_joined else "give a pipeline.ingest.dem that covers it"
        warnings.append(f"{where}: {surface.name} has no height on {unknown:.1%} of the ground, which is not used: {remedy}")
    return Heights(heights, words, tuple(warnings))


def read_heights(dem: str, geobox: GeoBox, *, name: str = "") -> npt.NDArray[np.float32]:
    """Heights of the GeoTIFF `dem` at the pixels of `geobox`, metres, bilinear; NaN where it has none: (y, x). `name` is for messages.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: it has no CRS, or no height in the area.
    """
    name = name or f"pipeline.ingest.dem {dem}"
    try:
        with rasterio.open(dem) as source:
            if source.crs is None:
                raise DataError(f"{name} has no CRS: give heights as a georeferenced GeoTIFF")
            # Only the horizontal part: with the vertical one GDAL would look for a geoid that is seldom installed.
            with WarpedVRT(
                source,
                src_crs=horizontal_of(source.crs),
                crs=str(geobox.crs),
                transform=geobox.transform,
                height=geobox.shape.y,
                width=geobox.shape.x,
                resampling=Resampling.bilinear,
                dtype="float32",
                nodata=np.nan,
            ) as warped:
                heights: npt.NDArray[np.float32] = warped.read(1)
    except RasterioIOError as error:
        raise MissingError(f"{name} cannot be opened or read: {error}; name a whole GeoTIFF of heights") from error
    if not np.isfinite(heights).any():
        raise DataError(f"{name} holds no height in the area: give one that covers it and a few kilometres around")
    return heights


def describe_surface(dem: str, name: str = "") -> Surface:
    """What the file of heights `dem` says of itself; `name` is for messages.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: it has no CRS.
    """
    name = name or f"pipeline.ingest.dem {dem}"
    try:
        with rasterio.open(dem) as source:
            crs, tags = source.crs, source.tags()
    except RasterioIOError as error:
        raise MissingError(f"{name} cannot be opened or read: {error}; name a whole GeoTIFF of heights") from error
    if crs is None:
        raise DataError(f"{name} has no CRS: give heights as a georeferenced GeoTIFF")
    joined = tags.get(SOURCE_TAG)
    return Surface(joined or Path(dem).name, find_datum(crs) or tags.get(DATUM_TAG), joined is not None)


def find_datum(crs: object) -> str | None:
    """Name of the surface that heights in `crs` are above: `ellipsoid` where it has three axes; None if it tells nothing of heights."""
    stated = pyproj.CRS.from_user_input(crs)
    vertical = next((part for part in stated.sub_crs_list if part.is_vertical), None)
    if vertical is None:
        return "ellipsoid" if len(stated.axis_info) == 3 else None
    return str(vertical.name)


def warn_of_datum(surface: Surface) -> str:
    """What a user should know of heights that are not above the ellipsoid."""
    return (
        f"heights of {surface.name} are above {surface.datum}, expected above the ellipsoid: ground is displaced by up to 1.8 m per metre "
        "between the two"
    )


def horizontal_of(crs: object) -> str:
    """The horizontal part of `crs` as WKT."""
    parts = pyproj.CRS.from_user_input(crs).sub_crs_list
    return str((parts[0] if parts else pyproj.CRS.from_user_input(crs)).to_wkt())
