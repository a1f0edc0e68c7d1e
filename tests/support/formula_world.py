"""A small world for tests whose ground is a formula of longitude and latitude, delivered in pieces that lie in two UTM zones.

Enters: where the two zones meet. Leaves: a folder with a static STAC catalogue and its files, and the truth on any grid. Every optical
acquisition comes as two tiles of different processing baselines, one in each zone; the SAR acquisition as two slices, likewise.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from sereno.pipeline import stac
from sereno.pipeline.bands import SAR_BANDS, SCL
from sereno.pipeline.store import write_json
from sereno.pipeline.world import Flight, name_optical, name_sar

Float = npt.NDArray[np.float64]
Json = dict[str, Any]
Place = tuple[Float, Float]
"""Metres east and north of where the zones meet, along the parallel and the meridian."""

DEGREE_M: Final = 111_320.0
"""Length of a degree of latitude: a unit for the formulas, nothing depends on its exactness."""
BAND_M: Final = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10, "B11": 20}
"""Bands that are delivered, with their pixel, metres: one at least of each size."""
GROUND: Final = {"B01": 600.0, "B02": 700.0, "B03": 900.0, "B04": 1000.0, "B08": 2500.0, "B11": 1800.0}
"""Mean reflectance of each band x 10000."""
WAVES: Final = ((1700.0, 20.0, 0.12), (900.0, 110.0, 0.1), (500.0, 65.0, 0.06), (320.0, 150.0, 0.04))
"""Ground: length in metres, direction in degrees, amplitude as a share of the mean."""
CLOUD: Final = 5500.0
"""Reflectance of a thick cloud x 10000."""
CLOUDY_FROM: Final = 0.2
"""Opacity from which a pixel is classified as cloud."""
CLEAR_CLASS: Final = 4
CLOUD_CLASS: Final = 9
TEXTURE_M: Final = 70.0
"""Period of what VH shows: too short to survive interpolation, so that only its mean does."""
EXTENT_M: Final = {"west": (-3300.0, 400.0), "east": (-400.0, 3300.0)}
"""The tiles from west to east: they overlap by 800 m at most, less where one ends in a wedge of nodata."""
HALF_HEIGHT_M: Final = 2400.0
SLICE_M: Final = {"north": (-300.0, HALF_HEIGHT_M), "south": (-HALF_HEIGHT_M, 300.0)}
"""The slices from south to north."""
FIRST: Final = datetime(2021, 6, 3, 10, 10, 31, tzinfo=UTC)
DAYS: Final = {"clear": 0, "cloudy": 5}
"""First moment of the first optical acquisition, and the days from then to each of them."""
FLIGHT: Final = Flight(FIRST + timedelta(DAYS["cloudy"], hours=7), "ascending", 15, None)
SLICE_STEP: Final = timedelta(seconds=25)
"""From one slice to the next."""
BASELINES: Final = {"clear": {"west": "05.00", "east": "03.01"}, "cloudy": {"west": "03.01", "east": "05.00"}}
"""One tile of each scene carries the offset, the other does not."""
IDLE_BASELINE: Final = "03.01"
IDLE_CODE: Final = "32TQQ"
"""Baseline and square of a third tile, whose ground the first one has; no tile that is used bears that name."""
SAR_OFFSET_M: Final = (3.0, 4.0)
"""Grids of SAR lie so far from whole multiples of their pixel."""
Style = Literal["split", "beyond", "wrapped"]
"""How a footprint across 180 degrees is written: cut in two there, with longitudes beyond 180, or jumping to -180 and back."""


class Edge(NamedTuple):
    """A straight end of what a file shows: data only where `east * u + north * v < metres`."""

    east: float
    """Component of the vector across the edge, outwards."""
    north: float
    """Its other component."""
    metres: float
    """The limit."""

    def measure(self, place: Place) -> Float:
        """How far inside a place lies, metres; negative beyond the edge."""
        length = math.hypot(self.east, self.north)
        return (self.metres - self.east * place[0] - self.north * place[1]) / length


class Piece(NamedTuple):
    """A tile or a slice."""

    item: str
    """Its item."""
    geobox: GeoBox
    """Its grid at 10 m."""
    edges: tuple[Edge, ...] = ()
    """Where it ends inside its file."""
    has_offset: bool = False
    """Whether its numbers are reflectance x 10000 + 1000."""


@dataclass(frozen=True)
class FormulaWorld:
    """Where the two zones meet, and in which of them the area lies."""

    name: str
    """Name of the area."""
    meeting_deg: tuple[float, float]
    """Longitude of the zones' border, latitude of the area's middle."""
    epsg: tuple[int, int]
    """EPSG codes of the western and of the eastern zone."""
    home: Literal["west", "east"]
    """The zone of the area's grid: most of the area lies there."""
    dialect: stac.Dialect
    """Style of the items."""
    styles: tuple[Style, ...] = ()
    """How footprints across 180 degrees are written, in turn; needed where there are any."""

    @property
    def away(self) -> Literal["west", "east"]:
        """The other zone."""
        return "east" if self.home == "west" else "west"

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """The area in degrees; west is greater than east across 180 degrees."""
        shift = -200.0 if self.home == "west" else 200.0
        west, east = (self.to_degrees(shift + metres, 0.0)[0] for metres in (-2500.0, 2500.0))
        south, north = (self.to_degrees(0.0, metres)[1] for metres in (-1900.0, 1900.0))
        return wrap(west), south, wrap(east), north

    def to_degrees(self, east_m: float, north_m: float) -> tuple[float, float]:
        """Longitude, perhaps beyond 180, and latitude of a place."""
        longitude, latitude = self.meeting_deg
        return longitude + east_m / DEGREE_M / math.cos(math.radians(latitude)), latitude + north_m / DEGREE_M

    def locate(self, geobox: GeoBox) -> Place:
        """The centres of all pixels of a grid, (y, x) each."""
        longitudes, latitudes = project_centres(geobox, "EPSG:4326")
        longitude, latitude = self.meeting_deg
        around = (longitudes - longitude + 180) % 360 - 180
        return around * DEGREE_M * math.cos(math.radians(latitude)), (latitudes - latitude) * DEGREE_M

    def make_grid(self, zone: Literal["west", "east"], u: tuple[float, float], v: tuple[float, float]) -> GeoBox:
        """The grid of 10 m in a zone around so much ground, its edges on multiples of 60 m."""
        epsg = self.epsg[zone == "east"]
        longitudes, latitudes = zip(*(self.to_degrees(east, north) for east in u for north in v), strict=True)
        x, y = transform("EPSG:4326", f"EPSG:{epsg}", [wrap(longitude) for longitude in longitudes], latitudes)
        left, right, bottom, top = (round(edge / 60) for edge in (min(x), max(x), min(y), max(y)))
        return GeoBox(((top - bottom) * 6, (right - left) * 6), Affine(10, 0, left * 60, 0, -10, top * 60), f"EPSG:{epsg}")

    def list_tiles(self, role: str) -> dict[str, Piece]:
        """The tiles of an optical acquisition: in the grid's own zone, in the other, and one with nothing new."""
        sign = 1.0 if self.home == "west" else -1.0
        edges = {self.home: (Edge(sign, -0.08, 150.0),), self.away: (Edge(sign, 1.0, 3300.0),)}
        tiles = {}
        for zone in (self.home, self.away):
            geobox = self.make_grid(zone, EXTENT_M[zone], (-HALF_HEIGHT_M, HALF_HEIGHT_M))
            name = name_optical(stac.to_grid_code(geobox), FIRST + timedelta(DAYS[role]), BASELINES[role][zone], self.dialect)
            tiles[zone] = Piece(name, geobox, edges[zone], stac.has_offset(BASELINES[role][zone]))
        inner = self.make_grid(self.home, (-sign * 1500 - 600, -sign * 1500 + 600), (-600.0, 600.0))
        name = name_optical(IDLE_CODE, FIRST + timedelta(DAYS[role]), IDLE_BASELINE, self.dialect)
        return tiles | {"idle": Piece(name, inner)}

    def list_slices(self) -> dict[str, Piece]:
        """The slices of the SAR acquisition: the northern one in the grid's own zone, the southern one in the other."""
        slices = {}
        for number, (name, zone) in enumerate((("north", self.home), ("south", self.away))):
            geobox = self.make_grid(zone, (-3300.0, 3300.0), SLICE_M[name])
            moved = GeoBox(geobox.shape, Affine.translation(*SAR_OFFSET_M) * geobox.transform, geobox.crs)
            begin = FLIGHT.time + number * SLICE_STEP
            stamps = [f"{moment:%Y%m%dT%H%M%S}" for moment in (begin - SLICE_STEP / 2, begin + SLICE_STEP / 2)]
            item = "_".join(["S1A_IW_GRDH_1SDV", *stamps, *name_sar(FLIGHT).split("_")[6:]])  # orbit and datatake are those of both
            slices[name] = Piece(item, moved, (Edge(0.05, -1.0, 100.0),) if name == "north" else ())
        return slices

    def compute_reflectance(self, band: str, role: str, place: Place) -> Float:
        """Reflectance x 10000 without offset."""
        ground = GROUND[band] * (1 + compute_relief(place))
        opacity = compute_opacity(place) if role == "cloudy" else 0.0
        return ground * (1 - opacity) + CLOUD * opacity

    def compute_power(self, band: str, place: Place) -> Float:
        """Backscatter in power: VV smooth, VH a texture of 20 dB from crest to trough."""
        smooth = 1 + 2 * compute_relief(place)
        if band == "VV":
            return 0.1 * smooth
        phase = 2 * np.pi / TEXTURE_M
        return 0.02 * smooth * 10 ** (np.sin(phase * place[0]) * np.sin(phase * place[1]))

    def measure_inside(self, piece: Piece, geobox: GeoBox) -> Float:
        """How far inside the ground of a piece the pixels of a grid lie, (y, x) metres; negative outside."""
        x, y = project_centres(geobox, str(piece.geobox.crs))
        bounds, place = piece.geobox.boundingbox, self.locate(geobox)
        ends = [x - bounds.left, bounds.right - x, y - bounds.bottom, bounds.top - y, *(edge.measure(place) for edge in piece.edges)]
        distance: Float = np.minimum.reduce(ends)
        return distance


@functools.lru_cache(maxsize=64)
def project_centres(geobox: GeoBox, crs: str) -> tuple[Float, Float]:
    """The centres of all pixels of a grid in another CRS, x and y, (y, x) each."""
    affine, (rows, columns) = geobox.transform, geobox.shape
    x, y = np.meshgrid(affine.c + affine.a * (np.arange(columns) + 0.5), affine.f + affine.e * (np.arange(rows) + 0.5))
    there_x, there_y = transform(str(geobox.crs), crs, x.ravel(), y.ravel())
    return np.reshape(there_x, x.shape), np.reshape(there_y, x.shape)


def wrap(longitude_deg: float) -> float:
    """The longitude within -180..180."""
    return (longitude_deg + 180) % 360 - 180


def compute_relief(place: Place) -> Float:
    """What all bands and VV show, as a share of their mean: a sum of waves, within -0.32..0.32."""
    relief = np.zeros_like(place[0])
    for length, direction, amplitude in WAVES:
        east, north = math.cos(math.radians(direction)), math.sin(math.radians(direction))
        relief += amplitude * np.sin(2 * np.pi * (east * place[0] + north * place[1]) / length + length)
    return relief


def compute_opacity(place: Place) -> Float:
    """Of the clouds, 0..1, with soft edges."""
    swell = np.sin(2 * np.pi * place[0] / 1900 + 1) + np.sin(2 * np.pi * place[1] / 1700)
    return 1 / (1 + np.exp(-4 * (swell - 0.7)))


def write_world(folder: Path, world: FormulaWorld) -> Path:
    """Write the products of a world and a catalogue of them; the folder."""
    tiles = {(role, zone): tile for role in DAYS for zone, tile in world.list_tiles(role).items()}
    items = [_write_tile(folder, world, tile, (role, BASELINES[role].get(zone, IDLE_BASELINE))) for (role, zone), tile in tiles.items()]
    slices = [_write_slice(folder, world, piece, number) for number, piece in enumerate(world.list_slices().values())]
    turns = itertools.cycle(world.styles)
    styled = [_restyle(item, next(turns)) if _jumps(item) else item for item in (*items, *slices)]
    names = sorted({item["collection"] for item in styled})
    for name in names:
        members = [item for item in styled if item["collection"] == name]
        write_json(folder / "items" / name / "collection.json", stac.to_collection(name, members))
        for item in members:
            write_json(folder / "items" / name / f"{item['id']}.json", item)
    write_json(folder / "catalog.json", stac.to_catalog(names))
    return folder


def _write_tile(folder: Path, world: FormulaWorld, tile: Piece, what: tuple[str, str]) -> Json:
    """Write one tile of an optical acquisition; its item."""
    role, baseline = what
    moment = FIRST + timedelta(DAYS[role])
    product = stac.Product(tile.item, world.name, moment + timedelta(seconds=15), tile.geobox, world.dialect)
    item = stac.to_optical_item(product, stac.OpticalFacts(baseline, 40.0 if role == "cloudy" else 0.0, 0.0, 150.0, 55.0))
    item["properties"]["s2:datatake_id"] = f"GS2A_{moment:%Y%m%dT%H%M%S}_031066_N{baseline}"
    key, prefix = ("grid:code", "MGRS-") if world.dialect == "earth-search" else ("s2:mgrs_tile", "")
    item["properties"][key] = prefix + tile.item.partition("_T")[2][:5]
    files = {}
    for key, asset in item["assets"].items():
        band = asset["title"].partition(" ")[0]
        if band not in (*BAND_M, SCL):
            continue
        grid = tile.geobox.zoom_out(BAND_M.get(band, 20) // 10)
        place, inside = world.locate(grid), world.measure_inside(tile, grid) > 0
        if band == SCL:
            values = np.where(compute_opacity(place) >= CLOUDY_FROM, CLOUD_CLASS, CLEAR_CLASS) if role == "cloudy" else CLEAR_CLASS
        else:
            values = np.rint(world.compute_reflectance(band, role, place)) + stac.BOA_OFFSET * tile.has_offset
        image = np.where(inside, values, 0).astype(np.uint8 if band == SCL else np.uint16)
        files[key] = _write_cog(folder / asset["href"].removeprefix(stac.TO_ROOT), image, grid, nodata=0)
    return stac.with_files(item | {"assets": {key: item["assets"][key] for key in files}}, files)


def _write_slice(folder: Path, world: FormulaWorld, piece: Piece, number: int) -> Json:
    """Write one slice of the SAR acquisition, zero beyond its edges although another nodata value is declared; its item."""
    product = stac.Product(piece.item, world.name, FLIGHT.time + number * SLICE_STEP, piece.geobox, world.dialect)
    item = stac.to_sar_item(product, stac.SarFacts("ascending", 15))
    place, inside = world.locate(piece.geobox), world.measure_inside(piece, piece.geobox) > 0
    files = {}
    for band in SAR_BANDS:
        power = np.where(inside, world.compute_power(band, place), 0).astype(np.float32)
        path = folder / item["assets"][band.lower()]["href"].removeprefix(stac.TO_ROOT)
        files[band.lower()] = _write_cog(path, power, piece.geobox, nodata=stac.SAR_NODATA)
    return stac.with_files(item, files)


def _write_cog(path: Path, image: npt.NDArray[Any], geobox: GeoBox, *, nodata: float) -> stac.FileFacts:
    profile = {"driver": "COG", "count": 1, "dtype": image.dtype.name, "height": image.shape[0], "width": image.shape[1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile, crs=str(geobox.crs), transform=geobox.transform, nodata=nodata, compress="DEFLATE") as file:
        file.write(image, 1)
    return stac.FileFacts(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def _jumps(item: Json) -> bool:
    """Whether its footprint goes from 180 degrees to -180."""
    longitudes = [place[0] for place in item["geometry"]["coordinates"][0]]
    return max(longitudes) - min(longitudes) > 180


def _restyle(item: Json, style: Style) -> Json:
    """The item, whose footprint jumps from 180 degrees to -180, with the footprint in the style of another catalogue."""
    if style == "wrapped":  # the box goes round the globe then
        return item
    ring = [[x + 360 if x < 0 else x, y] for x, y in item["geometry"]["coordinates"][0]]
    whole = shapely.Polygon(ring)
    west, south, east, north = whole.bounds
    if style == "beyond":
        return item | {"geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west, south, east, north]}
    halves = [whole & shapely.box(0, -90, 180, 90), shapely.transform(whole & shapely.box(180, -90, 540, 90), lambda xy: xy - [360, 0])]
    return item | {"geometry": json.loads(shapely.to_geojson(shapely.MultiPolygon(halves))), "bbox": [west, south, east - 360, north]}
