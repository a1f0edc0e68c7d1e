"""Settings of the data steps: one frozen record per step, the single source of defaults, checks and messages.

Unknown keys are refused with the nearest known name. Only pydantic is imported here, since the Snakefile reads this file.
"""

from __future__ import annotations

import difflib
import json
import types
from datetime import UTC, date, datetime, time
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sereno.pipeline.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that may stand in a file name: letters, digits, dot, hyphen and underscore."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share between 0 and 1."""
TaskName = Literal["cloud-removal", "pansharpening", "spatiotemporal-fusion", "snapshot-reconstruction"]
"""What can be asked of a dataset; `sereno.pipeline.samples` says what a sample of each is made of."""


class Settings(BaseModel):
    """Base of every settings record: frozen, unknown keys and infinite numbers refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """The record as compact JSON with sorted keys: equal settings give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


SERIES_CLOUDY_DATES: Final = 5
"""Cloudy dates of a simulated world from which on it has three clear ones, the fewest that a series can have."""
FUSION_RATIO: Final = 16
"""Fine pixels along each side of a coarse one for fusion where nothing is stated: that of Landsat and MODIS, 30 and 480 m."""
WHOLE: Final = 1e-6
"""A number this near to a whole one is whole."""
S = TypeVar("S", bound=BaseModel)
ARM: Final = "name="
"""How the tag of one arm of a union begins that is told apart by the arms' `name`."""


def load_settings(kind: type[S], values: object, *, where: str) -> S:
    """`values` (a mapping) as a checked record of `kind`; `where` names the source in messages.

    Raises:
        ConfigError: one line that names every faulty key, the value seen, and for an unknown key the nearest known one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = [_describe_fault(kind, fault) for fault in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "; ".join(faults)) from None


def parse_settings(kind: type[S], text: str, *, where: str = "--settings") -> S:
    """JSON `text` as a checked record of `kind`.

    Raises:
        ConfigError: the text is not JSON, or `load_settings` refuses it.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); seen {text[:80]!r}") from None
    return load_settings(kind, values, where=where)


def _describe_fault(kind: type[BaseModel], fault: Any) -> str:
    path = [part for part in fault["loc"] if not str(part).startswith("function-")]
    key = ".".join(str(part) for part in path if not str(part).startswith(ARM))
    if fault["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
        hint = f", did you mean '{near[0]}'?" if near else f"; known here: {', '.join(sorted(known))}"
        return f"unknown key '{key}'{hint}"
    whole = fault["type"] == "missing" or isinstance(fault["input"], dict | BaseModel)  # too long to show, and named by its key anyway
    seen = "" if whole else f" (seen {str(fault['input'])[:60]!r})"
    name = "" if fault["type"] == "value_error" and not key else f"'{key or 'config'}': "
    return f"{name}{fault['msg'].removeprefix('Value error, ')}{seen}"


def _known_keys(kind: type[BaseModel], path: list[Any]) -> list[str]:
    """Field names of the record that `path` leads to, seen from `kind`."""
    current: Any = kind
    for part in path:
        if _is_record(current):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif str(part).startswith(ARM):
            current = next((arm for arm in _arms_of(current) if _is_record(arm) and _tag_of(arm) == part), None)
            continue
        else:  # a key of a mapping or a place in a list
            current = get_args(current)[-1] if get_args(current) else None
        if len(_arms_of(current)) == 1:
            current = _arms_of(current)[0]
    return list(current.model_fields) if _is_record(current) else []


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _arms_of(kind: Any) -> list[Any]:
    """The types that `kind` joins, itself if it joins none."""
    if get_origin(kind) is Annotated:
        return _arms_of(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [arm for member in get_args(kind) if member is not type(None) for arm in _arms_of(member)]
    return [kind]


def _tag_of(record: type[BaseModel]) -> str:
    return ARM + str(get_args(record.model_fields["name"].annotation)[0])


class Area(Settings):
    """Ground to work on, stated in one of five ways."""

    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees (EPSG:4326). West may be greater than east: then the box crosses 180 degrees."""
    bounds_m: tuple[float, float, float, float] | None = None
    """Left, bottom, right, top in metres of `epsg`; taken as they are."""
    mgrs: Annotated[str, Field(pattern=r"^\d{1,2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V]$")] | None = None
    """A 100 km square such as `32TNR`: the ground of the Sentinel-2 tile of that name (109.8 km wide), in its own zone."""
    geojson: dict[str, Any] | None = None
    """A GeoJSON polygon, multipolygon, feature or collection in degrees; ground outside it is not used."""
    file: Path | None = None
    """A file with such GeoJSON."""
    epsg: int | None = None
    """EPSG code of a projected CRS in metres; needed with `bounds_m`, else the UTM zone of the area's centre."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("bbox", "bounds_m", "mgrs", "geojson", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none of them"
            raise ValueError(f"give one of 'bbox' (degrees), 'bounds_m' with 'epsg' (metres), 'mgrs', 'geojson' and 'file', not {seen}")
        if self.bounds_m is not None and self.epsg is None:
            raise ValueError("'bounds_m' needs 'epsg'")
        left, bottom, right, top = self.bbox or self.bounds_m or (0, 0, 1, 1)
        if bottom >= top or (self.bounds_m and left >= right) or left == right:
            raise ValueError("bounds must be ordered west < east and south < north")
        if self.bbox and not (-180 <= left <= 180 and -180 <= right <= 180 and -90 <= bottom and top <= 90):
            raise ValueError("bbox must lie within -180..180 and -90..90 degrees")
        return self


class SimulatedArea(Settings):
    """One square of simulated ground."""

    epsg: int
    """EPSG code of its UTM zone."""
    west_m: float
    """Left edge in metres of that zone."""
    south_m: float
    """Lower edge in metres of that zone."""
    size_px: Annotated[int, Field(ge=240, multiple_of=6)] = 1680
    """Side in pixels of 10 m, without the margin that the products have around it."""
    dialect: Literal["earth-search", "planetary-computer"] = "earth-search"
    """Style of the STAC items."""
    satellites: Literal["sentinel", "gaofen-pms", "gaofen-wfv", "cube", "landsat-modis"] = "sentinel"
    """`sentinel`: Sentinel-2 and 1 in the catalogue. `landsat-modis`: Landsat 9 and 8-day composites of MODIS in the catalogue. `cube`: one
    hyperspectral cube, in the folder `cubes`. Else products of Gaofen-6 with that camera and of Gaofen-3, in the folder `products`; the
    catalogue then holds the elevation model alone."""
    relief: Annotated[float, Field(ge=0, le=2)] = 1
    """Heights of the ground are multiplied by this; 0 makes it level, 1 gives hills of some hundred metres."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.satellites.startswith("gaofen") and self.size_px % 24:
            raise ValueError(f"'size_px' {self.size_px} must be a multiple of 24 for Gaofen, so that pixels of 8 and 16 m fit")
        if self.satellites == "landsat-modis" and self.size_px % 48:
            raise ValueError(f"'size_px' {self.size_px} must be a multiple of 48 for Landsat and MODIS, so that pixels of 480 m fit")
        return self


class SimulateSettings(Settings):
    """A small world with known truth."""

    seed: Annotated[int, Field(ge=0)] = 7
    """Same seed, same bytes."""
    areas: dict[Name, SimulatedArea] = Field(default_factory=dict)
    """The ground squares, by name."""
    cloudy_dates: Annotated[int, Field(ge=1, le=6)] = 3
    """Number of cloudy dates per area, each with a SAR scene."""
    first_day: date = date(2021, 6, 3)
    """Day of the first optical scene; the others follow every five days."""
    max_shift_px: Annotated[float, Field(ge=0)] = 4.0
    """Largest shift of a simulated Sentinel-1 scene in pixels of 10 m."""
    looks: Annotated[float, Field(gt=0)] = 4.4
    """Equivalent number of looks of the speckle (Sentinel-1 IW GRDH: about 4.4); Gaofen-3 has one."""
    rpc_error_m: tuple[float, float] = (20.0, 120.0)
    """Least and largest distance by which the coefficients of a Gaofen product place everything off, in any direction, metres."""
    radar_level: Literal["L1A", "L1B", "L2"] = "L1A"
    """Processing level of the products of Gaofen-3, one for all areas since a dataset holds one: I and Q with coefficients, amplitudes with
    coefficients, or amplitudes in a projection of the provider, who knows one height, so that hills lean and stay leaning."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.rpc_error_m
        if not 0 <= low <= high <= 400:  # the ground goes on for 500 m and more around an area
            raise ValueError("'rpc_error_m' must be two ordered distances between 0 and 400 m")
        return self


Inputs = Literal["found", "simulated", "either"]
"""Where the cloudy image of a pair comes from."""


class QuerySettings(Settings):
    """Which scenes are searched and how they become pairs."""

    source: Literal["stac", "sen12mscr", "gaofen", "cubes", "lock"] = "stac"
    """Where scenes come from: a STAC API, a folder laid out like SEN12MS-CR, a folder of Gaofen products, a folder of hyperspectral cubes,
    or a folder of frozen locks (no search at all)."""
    catalogue: str = "results/simulate"
    """Name of a preset (`earth-search`, `planetary-computer`, `cdse`), URL of a STAC API, or the folder of a simulated world, of a dataset,
    of Gaofen products or of locks named `AREA.json`."""
    sar_catalogue: str | None = None
    """Where SAR is searched if not in `catalogue`: the same, or a folder of Sentinel-1 GRD products (`.SAFE` or `.zip`)."""
    areas: dict[Name, Area] = Field(default_factory=dict)
    """Areas by name. With `source: sen12mscr`, `cubes` and `lock` leave it empty: the folder says which there are."""
    start: date | datetime | None = None
    """First moment of the optical search, UTC."""
    end: date | datetime | None = None
    """Last moment of the optical search, UTC; a bare day means all of it."""
    optical_collections: tuple[str, ...] = ()
    """Collections searched for optical scenes, the preferred one first; those the catalogue lacks are passed over. Empty: the preset's."""
    sar_collections: tuple[str, ...] = ()
    """Collections searched for SAR scenes, likewise."""
    bands: tuple[str, ...] = ()
    """Optical bands that an item must hold. Empty: all that other items of its product hold, since a scene that lacks a band is no part of
    a pair. Where `ingest.bands` keeps fewer, name those here too: then an item is not refused for want of another one."""
    polarisations: Annotated[tuple[Literal["VV", "VH", "HH", "HV"], ...], Field(min_length=1)] = ("VV", "VH")
    """What a SAR scene must hold, in the order in which it is stored."""
    orbit_state: Literal["ascending", "descending"] | None = None
    """Direction of flight of the SAR scenes; None means both."""
    relative_orbits: tuple[int, ...] = ()
    """Tracks of the SAR scenes; empty means all."""
    cover_from: Literal["scl", "catalogue"] = "scl"
    """`scl`: cloud cover is measured over the area in a small overview of SCL, before anything else is read. `catalogue`: its word for the
    whole tile is taken. Products of Gaofen have no SCL: what they state of the whole image is taken in any case."""
    cover_pixel_m: Annotated[float, Field(gt=0)] = 160.0
    """Largest pixel of that overview."""
    cloudy_cover_pct: tuple[float, float] = (10.0, 95.0)
    """Smallest and largest cloud cover of an input scene, percent."""
    clear_cover_pct: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Largest cloud cover of a target scene, percent."""
    max_gap_sar_days: Annotated[float, Field(gt=0)] = 3.0
    """Largest time between the cloudy scene and the SAR scene."""
    max_gap_clear_days: Annotated[float, Field(gt=0)] = 20.0
    """Largest time between the cloudy scene and the clear scene."""
    min_overlap: Share = 0.6
    """Smallest share of the area that the three scenes of a pair have in common by their footprints, the items of each taken together."""
    resolution_m: Annotated[float, Field(gt=0)] = 10.0
    """Pixel size of the common grid; for tasks with fine and coarse images that of the fine ones."""
    coarse_m: Annotated[float, Field(gt=0)] | None = None
    """Pixel of coarse images, a whole multiple of `resolution_m`. None: their product's own, or for fusion 480 m of MODIS, else 16 pixels
    of the grid."""
    origin_m: Annotated[float, Field(ge=0)] = Field(default=0.0, exclude_if=not_)
    """For tasks with fine and coarse images: edges of coarse pixels are multiples of `coarse_m` plus this. 15 for Landsat, whose pixels
    have their centres, not their edges, at multiples of 30 m: then none of them is interpolated."""
    coarse_catalogue: str | None = Field(default=None, exclude_if=lambda address: address is None)
    """Where coarse images for fusion are searched if not in `catalogue`."""
    coarse_collections: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Collections of coarse images for fusion, for example `modis-09A1-061`. Empty: they are averages of the fine ones."""
    max_gap_coarse_days: Annotated[float, Field(ge=0)] = Field(default=1.0, exclude_if=lambda days: days == 1)
    """Largest time between a fine image and its coarse one. To a composite of several days it is counted from the period that it states, 0
    inside; of several such the one whose middle is nearest is taken."""
    coarse_clear_share: Share = Field(default=0.75, exclude_if=lambda share: share == 0.75)
    """A coarse pixel of another sensor counts where so much of it is clear by that sensor's own quality bits: what the rest hides then
    changes its mean by a quarter of the contrast inside it at most."""
    exclude: tuple[str, ...] = ()
    """Ids of items that are left out, for example because a file of theirs is damaged; the lock lists them as refused."""
    table: Path | None = None
    """With `source: gaofen`, a CSV table with the columns `sar`, `cloudy` and `clear` that names the products of each pair. None:
    they are paired by overlap, time and cloud cover. Unless `inputs` is `found`, `cloudy` may be empty."""
    inputs: Inputs = "found"
    """`found`: real cloudy scenes. `simulated`: every clear scene is target and input in one, and `align` lays clouds over the input.
    `either`: as found where an area has a real pair, else simulated; with a `table`, row by row: simulated where `cloudy` is empty."""
    skies: Annotated[int, Field(ge=1)] = 1
    """With simulated inputs, so many pairs of every clear scene, each under a sky of its own. `max_pairs` counts each of them."""
    dem_catalogue: str | None = None
    """Where elevation models are searched: a preset, the URL of a STAC API, or the folder of a simulated world. The step `dem` then joins
    them to one image per area, which takes the place of `ingest.dem`. None: no search."""
    dem_collection: str = "cop-dem-glo-30"
    """Collection of the elevation models."""
    series: bool = Field(default=False, exclude_if=not_)
    """Each pair also names the clear scenes before and after it: the last one earlier and the first one later than both its input and its
    target, at most twice `max_gap_clear_days` from the input. A target that lacks one of them gives way to another. For cloud removal."""
    max_pairs: Annotated[int, Field(ge=1)] | None = None
    """At most so many pairs per area, the smallest time gaps first; none means all."""
    max_requests: Annotated[int, Field(ge=1)] = 2000
    """At most so many requests to the catalogue per area, retries included: providers ban those who ask without end."""
    probe: bool = True
    """Ask the servers of used assets without a stated checksum for size and ETag, and note them in the lock."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.cloudy_cover_pct
        if not 0 <= low <= high <= 100:
            raise ValueError("'cloudy_cover_pct' must be two ordered percentages")
        first, last = self.period
        if first and last and first > last:
            raise ValueError("'start' lies after 'end'")
        if self.table is not None and self.source != "gaofen":
            raise ValueError("'table' needs 'source: gaofen'")
        if self.dem_catalogue is not None and self.source == "sen12mscr":
            raise ValueError("'dem_catalogue' is for scenes that are placed by heights, which those of 'source: sen12mscr' are not")
        if self.series and (self.source not in ("stac", "gaofen", "lock") or self.table is not None):
            seen = f"'source: {self.source}' has no dates" if self.table is None else "a row of 'table' names no other dates"
            raise ValueError(f"'series' cannot be had: {seen}; leave it out, or search scenes of several dates (stac, gaofen)")
        if self.source in ("stac", "gaofen") and not self.areas:
            raise ValueError("'areas' is empty: name at least one area with its bbox")
        if self.coarse_catalogue is not None and not self.coarse_collections:
            raise ValueError("'coarse_catalogue' needs 'coarse_collections': name what is searched there")
        ratio = (self.coarse_m or self.resolution_m) / self.resolution_m
        if abs(ratio - round(ratio)) > WHOLE or ratio < 1 - WHOLE:
            raise ValueError(
                f"'coarse_m' {self.coarse_m:g} must be a whole multiple of 'resolution_m' {self.resolution_m:g}, it is {ratio:.4g} times"
            )
        return self

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """First and last moment of the optical search, UTC; a bare day as the end means all of it, None that there is no limit."""
        return _to_moment(self.start, time.min), _to_moment(self.end, time.max)

    @property
    def fusion_ratio(self) -> int | None:
        """Fine pixels along each side of a coarse one for fusion; None where a lock decides, or the pixel of a product."""
        if self.source == "lock" or (self.coarse_m is None and self.coarse_collections):
            return None
        return FUSION_RATIO if self.coarse_m is None else round(self.coarse_m / self.resolution_m)

    def for_area(self, name: str) -> Self:
        """These settings with that one area alone, so that another area's change does not touch it."""
        return self.model_copy(update={"areas": {key: area for key, area in self.areas.items() if key == name}})


def _to_moment(value: date | None, at: time) -> datetime | None:
    """A moment in UTC, which is meant where no time zone is stated; of a bare day the one `at` that time."""
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else datetime.combine(value, at)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


class SpeckleSettings(Settings):
    """How speckle is reduced; in power, and never across pixels that are not valid."""

    method: Literal["none", "boxcar", "lee", "refined-lee", "gamma-map"] = "none"
    """The filter; `none` leaves it to the network."""
    window_px: Annotated[int, Field(ge=3, le=31)] = 7
    """Side of its window, odd."""
    looks: Annotated[float, Field(gt=0)] = 4.4
    """Equivalent number of looks (Sentinel-1 IW GRDH: about 4.4)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window_px % 2 == 0:
            raise ValueError("'window_px' must be odd")
        return self


class BandCalibration(Settings):
    """Calibration of one optical instrument, one number per band in the order of the file."""

    gains: Annotated[tuple[float, ...], Field(min_length=1)]
    """Radiance per digital number, W m-2 sr-1 um-1."""
    offsets: tuple[float, ...] = ()
    """Radiance at digital number 0; empty means 0 for all bands."""
    esun: Annotated[tuple[float, ...], Field(min_length=1)]
    """Solar irradiance outside the atmosphere at one astronomical unit, W m-2 um-1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        counts = {len(self.gains), len(self.esun), len(self.offsets) or len(self.gains)}
        if len(counts) != 1:
            raise ValueError("'gains', 'offsets' and 'esun' must have one number per band each")
        return self


class GaofenSettings(Settings):
    """What the products of Gaofen leave open."""

    height_m: float | None = None
    """Height of the ground above the ellipsoid where no `dem` is given; none takes what the product states."""
    scale_divisor: Annotated[float, Field(gt=0)] | None = None
    """Divisor of the digital numbers of Gaofen-3; none takes 32767 for I and Q, 65535 for detected images."""
    calibration: dict[str, BandCalibration] = Field(default_factory=dict)
    """Gains by satellite and instrument (`GF6-WFV`, `GF6-PMS`, `GF6-PMS-PAN`, `GF1-WFV3`), in place of the table of Gaofen-6."""


class IngestSettings(Settings):
    """How an acquisition becomes a calibrated scene."""

    bands: tuple[str, ...] = ()
    """Optical bands to keep, in this order; empty means all of the product but `PAN`, which Gaofen's PMS has beside the others."""
    margin_px: Annotated[int, Field(ge=0)] = 16
    """Pixels kept around the area in SAR scenes, and in the images that Gaofen's optical scenes are made of, so that shifting them leaves
    no gap: what `align.search_m` spans (300 m are 38 pixels of 8 m)."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """How often one asset is tried before it counts as unreadable."""
    min_valid: Share = 0.05
    """A scene with less valid ground than this share is not used: its pairs give no patches, and the ledger says why."""
    check: Literal["checksum", "size", "none"] = "checksum"
    """Whether assets are still those of the lock: local files by checksum, remote ones by ETag and size; `size`: by size alone."""
    dem: str | None = None
    """Heights above the ellipsoid, a GeoTIFF: with it Sentinel-1 products from a folder are terrain corrected (needs the extra `sar`), and
    GRD items of a catalogue are placed at these heights, not flattened; Gaofen products are orthorectified on them."""
    geoid: str | None = None
    """Heights of the geoid above the ellipsoid, a GeoTIFF (for example PROJ's us_nga_egm08_25.tif): added to a `dem` (or what the step
    `dem` found) whose heights are above the sea, as those of Copernicus DEM are."""
    gaofen: GaofenSettings = GaofenSettings()
    """What the products of Gaofen leave open."""
    cube_scale: Annotated[float, Field(gt=0)] | None = None
    """Number of a hyperspectral cube that is reflectance 1. None: 1 for floats, the largest number of their type for integers."""
    speckle: SpeckleSettings = SpeckleSettings()
    """Speckle filter."""
    readers: Annotated[int, Field(ge=1)] = 4
    """Assets read at the same time: over HTTP most of the time is waiting. Read one after the other in any case: tables of ground range
    data, polarisations of local products with a DEM (each takes much memory), delivered data sets."""
    scheduler: str = "threads"
    """`threads`: in this process. Else the address of a dask scheduler (`tcp://host:8786`) whose workers
    read (needs the extra `cluster`). What is read one after the other is read in this process."""


DescriptorName = Literal["orientations", "self-similarity"]
"""`orientations`: histograms of gradient orientation (Dalal & Triggs 2005). `self-similarity`: how like patches are to their neighbours
(MIND, Heinrich et al. 2012)."""
FieldDegree = Literal["shift", "affine", "quadratic"]
"""How freely a shift may change over a scene: not at all, linearly, or with squares of place."""


class OverlaySettings(Settings):
    """Simulated clouds; every sky draws its own numbers from these ranges."""

    seed: Annotated[int, Field(ge=0)] = 3
    """Same seed, same skies."""
    cover: tuple[Share, Share] = (0.1, 0.6)
    """Share of the ground under cloud that hides four fifths of it and more."""
    cloud_m: tuple[float, float] = (400.0, 1600.0)
    """Size of the clouds, metres."""
    haze: tuple[float, float] = (0.0, 2.0)
    """Largest optical thickness of thin cloud."""
    cirrus: tuple[float, float] = (0.0, 0.8)
    """Largest optical thickness of cirrus."""
    base_m: tuple[float, float] = (700.0, 2500.0)
    """Height of the clouds, metres: with the sun's place it says where shadows fall."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("cover", "cloud_m", "haze", "cirrus", "base_m"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name in ("cloud_m", "base_m") and low == 0):
                raise ValueError(f"'{name}' must be two ordered numbers, least first, above zero for sizes and heights")
        return self


class AlignSettings(Settings):
    """How SAR, and where needed the cloudy image, is laid onto the clear one."""

    search_m: Annotated[float, Field(gt=0)] = 100.0
    """How far an image may lie from the clear one, metres; fields that use more than 80 % of it are refused. RPC without control points err
    by tens of metres: 300 for Gaofen. At least 5 pixels; beyond 12 the search goes from coarse to fine. Where `ingest.margin_px` reaches
    less far, a strip along the edge may be lost."""
    field: FieldDegree = "affine"
    """The most a shift may change over the scene; a simpler field is taken where it explains the windows as well."""
    descriptor: DescriptorName = "self-similarity"
    """What is compared. Half the error of `orientations` on simulated ground, level on real (benchmarks/results/registration.md)."""
    window_px: Annotated[int, Field(ge=32)] = 128
    """Side of a matching window; made smaller for scenes too small for it."""
    step_px: Annotated[int, Field(ge=8)] = 96
    """Distance between windows."""
    min_inlier_ratio: Share = 0.65
    """Smallest share of good windows that agree with the field. Real fields that windows were surer of had 0.75 and more; at half, two
    descriptors gave fields 1.4 px apart (hand-aligned pairs over hills)."""
    max_rms_px: Annotated[float, Field(gt=0)] = 0.75
    """Largest scatter of the agreeing windows around the field."""
    min_peak: Share = 0.12
    """Smallest median correlation peak."""
    max_sigma_px: Annotated[float, Field(gt=0)] = 0.5
    """Largest predicted uncertainty of the field, anywhere in the scene."""
    register_cloudy: bool | None = None
    """Whether the cloudy image is registered to the clear one as well. None: where rational polynomial coefficients placed them (Gaofen),
    whose errors of tens of metres differ from date to date; Sentinel-2 is trusted. A pair with Gaofen in it is not used where a field
    that was asked for is refused: nothing else says where its images lie."""
    overlay: OverlaySettings = OverlaySettings()
    """Clouds that are laid over clear images where the input is simulated (`query.inputs`)."""


CloudMethod = Literal["scl", "threshold", "haze", "s2cloudless", "omnicloudmask"]
"""`scl`: the scene classification of L2A. `threshold`: spectral rules on top-of-atmosphere reflectance with cirrus. `haze`: rules on
visible and near infrared at the top of the atmosphere alone, for Gaofen; experimental (benchmarks/results/masks.md). `s2cloudless`: a
pixel classifier for L1C (extra `s2cloudless`, share-alike licence). `omnicloudmask`: a network on red, green and NIR of any level (extra
`omnicloudmask`; loads weights at first use)."""


class MaskSettings(Settings):
    """How clouds and shadows are found."""

    method: CloudMethod | Literal["auto"] = "scl"
    """Decides. `auto`: the best that a pair and the machine have, without a download: `scl` where both images have a classification, else
    `omnicloudmask` where its package and weights are there, else `haze` on Gaofen, else `threshold` where its bands are there."""
    second: CloudMethod | None = None
    """A second method whose agreement with the first is reported; it decides nothing. Not asked where `auto` takes it as the first."""
    weights: Path | None = None
    """Folder with the weights of `omnicloudmask`, for machines without network; none means its own cache or a download."""
    dilate_px: Annotated[int, Field(ge=0)] = 3
    """Clouds and shadows grow by this radius."""
    feather_px: Annotated[float, Field(ge=0)] = 3.0
    """Width over which the probability falls from 1 to 0 outside a cloud."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.second == self.method:
            raise ValueError("'second' must differ from 'method'")
        return self


class PatchSettings(Settings):
    """How pairs are cut into windows."""

    size_px: Annotated[int, Field(ge=32, multiple_of=8)] = 256
    """Side of a patch."""
    layout: Literal["blocks", "source"] = "blocks"
    """`blocks`: windows inside ground blocks. `source`: the windows in which the product was delivered (SEN12MS-CR)."""
    block_patches: Annotated[int, Field(ge=1)] = 2
    """A ground block holds this many patches along each side."""
    buffer_px: Annotated[int, Field(ge=0, multiple_of=2)] = 48
    """Ground left unused between neighbouring blocks, so that no two splits touch."""
    min_valid: Share = 0.9
    """A window needs this share of pixels valid in SAR, input and target alike."""
    max_target_cloud: Share = 0.1
    """A window whose target holds more cloud and shadow than this is refused."""
    min_input_cloud: Share = 0.0
    """A window whose input holds less cloud and shadow than this is refused."""


class SplitSettings(Settings):
    """Which ground is for training, validation and test."""

    method: Literal["blocks", "list", "none"] = "blocks"
    """`blocks`: ground blocks drawn at random. `list`: area names per split from `file`, compared exactly.
    `none`: everything is for training, for a check that a network can learn one patch by heart."""
    validation: Share = 0.12
    """Share of the blocks for validation."""
    test: Share = 0.22
    """Share of the blocks for test."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the draw."""
    file: Path | None = None
    """JSON with the lists `train`, `val` and `test`; needed with `list`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("'validation' and 'test' leave nothing for training")
        if self.method == "list" and self.file is None:
            raise ValueError("'method: list' needs 'file'")
        return self


class PackSettings(Settings):
    """How patches become a dataset."""

    split: SplitSettings = SplitSettings()
    """The splits."""
    shard_patches: Annotated[int, Field(ge=1)] = 64
    """Patches per shard."""
    codec: Literal["lz4", "zstd"] = "lz4"
    """`lz4` for training from a local disk, `zstd` for archive and object stores; both with bitshuffle."""
    seed: Annotated[int, Field(ge=0)] = 2
    """Seed of the order in which patches are stored."""


class DemSettings(Settings):
    """How elevation models that `query` found become one image per area (`query.dem_catalogue`)."""

    margin_m: Annotated[float, Field(ge=0)] = 2000.0
    """Ground around the area of which heights are kept: high ground beside the area leans into it."""
    pixel_m: Annotated[float, Field(gt=0)] = 30.0
    """Pixel of that image."""
    missing: Literal["unknown", "sea"] = "unknown"
    """What ground is that no elevation model covers. `unknown`: nothing is placed there. `sea`: it lies at height 0 above the geoid, since
    Copernicus DEM has no tiles of open sea; some countries are left out of it as well."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """How often one elevation model is tried before it counts as unreadable."""


def check_query(query: QuerySettings, task: TaskName) -> None:
    """Refuse a search that does not serve the task.

    Raises:
        ConfigError: names the setting, its value and the task.
    """
    for name, fault in (("source", query.source == "sen12mscr"), ("table", query.table is not None)):
        if task != "cloud-removal" and fault:
            raise ConfigError(f"'query.{name}' {getattr(query, name)} has pairs for cloud removal, but 'task' is {task}")
    if query.series and task != "cloud-removal":
        raise ConfigError(f"'query.series' is for pairs of task cloud-removal, but 'task' is {task}")
    if query.coarse_collections and task != "spatiotemporal-fusion":
        raise ConfigError(f"'query.coarse_collections' is for spatiotemporal-fusion, but 'task' is {task}: leave it out")
    if query.source != "lock" and (query.source == "cubes") != (task == "snapshot-reconstruction"):
        raise ConfigError(f"'query.source' {query.source} does not fit 'task' {task}: cubes are for snapshot-reconstruction")


class PlanSettings(Settings):
    """What an estimate from locks depends on: the settings of four later steps."""

    dem: DemSettings = DemSettings()
    """How much of the elevation models is read."""
    ingest: IngestSettings = IngestSettings()
    """Which bands are read."""
    patch: PatchSettings = PatchSettings()
    """How many windows there are."""
    pack: PackSettings = PackSettings()
    """How they are stored."""


class PipelineSettings(Settings):
    """The data steps, one section each."""

    task: TaskName = "cloud-removal"
    """What the dataset is for: it decides which scenes are searched, and what a sample is made of."""
    simulate: SimulateSettings | None = None
    """Make a simulated world first; leave the section out for real data."""
    query: QuerySettings
    """Search scenes and pair them."""
    dem: DemSettings = DemSettings()
    """Join elevation models."""
    ingest: IngestSettings = IngestSettings()
    """Read and calibrate scenes."""
    align: AlignSettings = AlignSettings()
    """Lay SAR, and where needed the cloudy image, onto the clear one."""
    mask: MaskSettings = MaskSettings()
    """Find clouds and shadows."""
    patch: PatchSettings = PatchSettings()
    """Cut pairs into windows."""
    pack: PackSettings = PackSettings()
    """Join patches into a dataset."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unasked = ", ".join(sorted(set(self.ingest.bands) - set(self.query.bands))) or "all bands, which its empty list means"
        if self.query.bands and not (self.ingest.bands and set(self.ingest.bands) <= set(self.query.bands)):
            raise ValueError(f"'query.bands' must name what 'ingest.bands' keeps: also {unasked}")
        check_query(self.query, self.task)
        if self.query.series and self.simulate is not None and self.simulate.cloudy_dates < SERIES_CLOUDY_DATES:
            seen = f"three clear dates, which a simulated world has from 'simulate.cloudy_dates' {SERIES_CLOUDY_DATES} on"
            raise ValueError(f"'query.series' needs {seen} (seen {self.simulate.cloudy_dates})")
        if self.ingest.dem is not None and self.query.dem_catalogue is not None:
            raise ValueError("'query.dem_catalogue' and 'ingest.dem' both say where heights come from: leave one of them out")
        return self

    @property
    def plan(self) -> PlanSettings:
        """What an estimate from locks depends on."""
        return PlanSettings(dem=self.dem, ingest=self.ingest, patch=self.patch, pack=self.pack)
