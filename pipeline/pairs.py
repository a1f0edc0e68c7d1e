"""The lock: which scenes exist for an area, which of them form pairs (for other tasks: groups), and why the others were refused.

`query` writes it, every later step reads it; with it a dataset is rebuilt without a search. Plain JSON, no raster library needed.
"""

from __future__ import annotations

from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, model_validator

from sereno.pipeline.config import Name, Settings, TaskName, parse_settings
from sereno.pipeline.errors import MissingError

if TYPE_CHECKING:  # the Snakefile imports this file: the grid library alone would cost it half a second
    from odc.geo.geobox import GeoBox

Sensor = Literal[
    "sentinel2-l2a",
    "sentinel2-l1c",
    "sentinel1-rtc",
    "sentinel1-grd",
    "sentinel1-safe",
    "sen12mscr-s2",
    "sen12mscr-s1",
    "gaofen3",
    "gaofen-pms",
    "gaofen-wfv",
    "gaofen-wfv4",
    "landsat-oli",
    "landsat-tm",
    "modis-09a1",
    "modis-43a4",
    "cube",
    "dem",
]
"""`gaofen-wfv` is that of Gaofen-6 with eight bands, `gaofen-wfv4` that of Gaofen-1 with four. Landsat and MODIS: see `imagers`."""
Role = Literal["sar", "cloudy", "clear"]
AROUND: Final = ("before", "after")
"""Roles of the clear scenes around the others in a series, and names of their dates, in order of time."""
OffsetSource = Literal["flag", "metadata", "declared", "baseline"]
"""What may tell whether values carry the reflectance offset: the provider's flag that it is removed, the product's own metadata file,
`raster:bands` of the catalogue, the processing baseline."""
Status = Literal["used", "partly", "duplicate", "refused", "missing", "unreadable"]
"""What became of an item or an asset; `partly`: some of its pixels cannot be read and are masked."""


def is_sar(sensor: str) -> bool:
    """Whether a sensor is a radar."""
    return sensor.startswith("sentinel1") or sensor in ("gaofen3", "sen12mscr-s1")


def is_gaofen(sensor: str) -> bool:
    """Whether a sensor is one of Gaofen's, radar and cameras alike: their coefficients err by tens to hundreds of metres."""
    return sensor.startswith("gaofen")


def needs_heights(sensor: str) -> bool:
    """Whether scenes of a sensor are placed on the ground with heights when they are read."""
    return is_gaofen(sensor) or sensor in ("sentinel1-grd", "sentinel1-safe")


def _is_none(value: object) -> bool:
    return value is None


class GridRecord(Settings):
    """A grid as plain numbers; `to_geobox` makes the value that the code works with."""

    crs: str
    """For example `EPSG:32632`."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients a, b, c, d, e, f: x = a*col + b*row + c, y = d*col + e*row + f, in metres."""
    shape: tuple[int, int]
    """Rows, columns."""

    @classmethod
    def from_geobox(cls, geobox: GeoBox) -> Self:
        """`geobox` as plain numbers."""
        affine = geobox.transform
        coefficients = (affine.a, affine.b, affine.c, affine.d, affine.e, affine.f)
        return cls(crs=str(geobox.crs), transform=coefficients, shape=(geobox.shape.y, geobox.shape.x))

    def to_geobox(self) -> GeoBox:
        """The grid as one value."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        return GeoBox(self.shape, Affine(*self.transform), self.crs)


class AssetRecord(Settings):
    """One file of an item, or one band of it."""

    href: str
    """Address; relative to the catalogue where the catalogue is local."""
    index: Annotated[int, Field(ge=1)] = 1
    """Band of the file, from 1."""
    checksum: str | None = None
    """Checksum of the whole file as the catalogue states it: a multihash in hexadecimal digits, or bare MD5; None if not stated."""
    etag: str | None = None
    """ETag that the file's server gave when the lock was written; None if it gave none or was not asked."""
    size_bytes: int | None = None
    """Size of the file; None if not known."""


class ItemRecord(Settings):
    """One catalogue item in one form, whatever the dialect it was written in."""

    item: str
    """Id of the item in its catalogue, or the folder of the product."""
    collection: str
    """Collection the item belongs to."""
    sensor: Sensor
    """Decides who reads it: `sereno.pipeline.sensors`."""
    time: str
    """Acquisition, UTC, ISO 8601 with `Z`."""
    crs: str
    """CRS of the assets, for example `EPSG:32632`; empty if the catalogue does not say."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees; west is greater than east where the item crosses 180 degrees."""
    assets: dict[str, AssetRecord]
    """Files by band name (`B02`, `VV`, `SCL`), and what describes them: `MTD` (product metadata of Sentinel-2), `annotation-VV`,
    `calibration-VV`, `noise-VV` (Sentinel-1 GRD). A delivery in windows has one file for all its bands per window, by the window's name."""
    cloud_cover_pct: float | None = None
    """Cloud cover of the whole item as the catalogue states it; None for SAR or if it is not stated."""
    processing_baseline: str | None = None
    """Processing baseline of Sentinel-2, for example `05.09`; None if not stated."""
    declared_offset: float | None = None
    """Reflectance offset stated by `raster:bands`, for example -0.1; None if not stated."""
    offset_applied: bool | None = None
    """Whether the provider says that the offset has already been removed (`earthsearch:boa_offset_applied`)."""
    offset_sources: tuple[OffsetSource, ...] = ("flag", "declared", "baseline")
    """Whom to believe about the offset, the most trusted first."""
    sun_azimuth_deg: float | None = None
    """Azimuth of the sun, degrees clockwise from north."""
    sun_elevation_deg: float | None = None
    """Elevation of the sun, degrees."""
    properties: dict[str, str] = Field(default_factory=dict)
    """Further facts worth keeping (platform, tile, orbit, datatake, product name, time of processing), as text."""


class SceneRecord(Settings):
    """One acquisition: an item, or several items of one overflight that together cover the area (slices, tiles, zones)."""

    id: str
    """File-safe name, unique in the lock."""
    sensor: Sensor
    """That of all its items."""
    time: str
    """Acquisition of the first item, UTC, ISO 8601 with `Z`."""
    items: Annotated[tuple[ItemRecord, ...], Field(min_length=1)]
    """In the order in which they are laid down: where they overlap the first one that is valid stays."""
    catalogue: str = ""
    """Where its assets are found; empty means the catalogue of the lock."""
    cloud_cover_pct: float | None = None
    """Cloud cover of the area, percent of its valid ground; None for SAR or if nothing tells."""
    cover_source: Literal["scl", "catalogue"] | None = None
    """Whether the cover was measured over the area in an overview of SCL, or is the catalogue's word for the whole items."""
    bands: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Optical bands to read, in this order; empty means those of `pipeline.ingest.bands`."""
    zoom: Annotated[int, Field(ge=1)] = Field(default=1, exclude_if=lambda zoom: zoom == 1)
    """Pixels of the lock's grid along each side of one pixel of this scene."""
    averaged: bool = Field(default=False, exclude_if=not_)
    """Whether its own pixels are those of the lock's grid, or finer: it is read there and averaged. Else it is read on its coarse grid."""
    clear_share: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, exclude_if=_is_none)
    """An averaged scene of another sensor than the fine ones: clouds of its own stay out of the means, and a coarse pixel is valid where
    this share of it is known and clear. None: where all of it is known, clouds or not."""

    @property
    def item(self) -> str:
        """Ids of its items, joined."""
        return "+".join(item.item for item in self.items)


class Pair(Settings):
    """One SAR, one cloudy and one clear scene of the same ground; in a series also the clear scenes before and after them."""

    id: str
    """File-safe name, unique in the lock."""
    sar: str
    """Scene id of the SAR scene."""
    cloudy: str
    """Scene id of the cloudy optical scene: the input."""
    clear: str
    """Scene id of the clear optical scene: the target."""
    sar_gap_days: float
    """Time of SAR minus time of the cloudy scene, in days."""
    clear_gap_days: float
    """Time of the clear scene minus time of the cloudy scene, in days."""
    sky: Annotated[int, Field(ge=1)] | None = None
    """Number of the simulated sky that is laid over the clear scene to make the input, which then is `cloudy` too; None: it is real."""
    before: str | None = Field(default=None, exclude_if=_is_none)
    """Scene id of the last clear scene earlier than both input and target; None: not asked for, so that there is no `after` either."""
    after: str | None = Field(default=None, exclude_if=_is_none)
    """Scene id of the first clear scene later than both; likewise."""
    before_gap_days: float | None = Field(default=None, exclude_if=_is_none)
    """Time of the scene before minus time of the cloudy scene, in days: below zero."""
    after_gap_days: float | None = Field(default=None, exclude_if=_is_none)
    """Time of the scene after minus time of the cloudy scene, in days: above zero."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.sky is None) == (self.cloudy == self.clear):
            seen = f"'sky' is {self.sky}, 'cloudy' {self.cloudy!r}, 'clear' {self.clear!r}"
            raise ValueError(f"a pair has a 'sky' if its input is its target, and else none ({seen})")
        stated = (self.before, self.after, self.before_gap_days, self.after_gap_days)
        if None in stated and any(value is not None for value in stated):
            raise ValueError("a pair has 'before' and 'after' with the gaps of both, or none of the four")
        if self.before is not None and len({self.before, self.after, self.cloudy, self.clear}) < len({self.cloudy, self.clear}) + 2:
            raise ValueError(f"'before' {self.before!r} and 'after' {self.after!r} must be two scenes beside input and target")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """What its scenes are, in their order: `sar`, `cloudy`, `clear`, and in a series `before`, `after`."""
        return ("sar", "cloudy", "clear", *(() if self.before is None else AROUND))

    @property
    def scene_ids(self) -> tuple[str, ...]:
        """Ids of its scenes in the order of their roles."""
        return tuple(getattr(self, role) for role in self.roles)


class Group(Settings):
    """The scenes that a sample of another task than cloud removal is made of."""

    id: Name
    """File-safe name, unique in the lock."""
    scenes: Annotated[dict[str, str], Field(min_length=1)]
    """Scene id by role: `ms` and `pan`; `fine-1` to `fine-3` and `coarse-1` to `coarse-3`; `cube`."""
    gaps_days: dict[str, float] = Field(default_factory=dict)
    """Time of a role's scene minus that of the first one, in days; of roles that were taken together nothing is said."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in the order of their names."""
        return tuple(sorted(self.scenes))

    @property
    def scene_ids(self) -> tuple[str, ...]:
        """Ids of its scenes in the order of the names of their roles."""
        return tuple(self.scenes[role] for role in self.roles)


class Refusal(Settings):
    """A candidate that was not used, and why."""

    item: str
    """Id of the item; a refused scene of several items has a line for each."""
    role: Role
    """What it was a candidate for."""
    reason: str
    """Words with the value seen and the limit."""
    status: Status = "refused"
    """`duplicate` for another processing of a used acquisition, `missing` if it lacks an asset, `unreadable` if one cannot be read."""
    cause: str | None = None
    """In one word, the name of a `Cause` of `acquisitions` in small letters; None if not stated, as in older locks."""


class Lock(Settings):
    """Everything that the later steps need to know of one area."""

    format: Literal["sereno-lock/2"] = "sereno-lock/2"
    area: str
    """Name of the area."""
    catalogue: str
    """Where the scenes were found: name of a preset, URL or folder; opened again at ingest."""
    searched: str | None = None
    """When the catalogue was searched, UTC; None for a folder, whose state is known by its checksums."""
    grid: GridRecord
    """The common grid of all pairs of this area."""
    outline: dict[str, Any] | None = None
    """GeoJSON geometry in the grid's CRS outside which no pixel is used; None means the whole grid."""
    scenes: dict[str, SceneRecord]
    """Used scenes by id."""
    dem: SceneRecord | None = None
    """Elevation models that cover the area together, asset `dem` each; None if none were asked for."""
    pairs: tuple[Pair, ...]
    """In order of the time of the cloudy scene; none for other tasks than cloud removal."""
    task: TaskName = Field(default="cloud-removal", exclude_if=lambda task: task == "cloud-removal")
    """What the scenes were chosen for."""
    groups: tuple[Group, ...] = Field(default=(), exclude_if=not_)
    """What stands for pairs in other tasks, in order of time."""
    refused: tuple[Refusal, ...]
    """Every candidate that was not used."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The lock at `path`.

        Raises:
            MissingError: there is no such file.
            ConfigError: it is not JSON, or not a lock of this format.
        """
        if not path.is_file():
            raise MissingError(f"lock {path} does not exist: run `sereno query` first")
        return parse_settings(cls, path.read_text(), where=f"lock {path} (delete it and run `sereno query` again)")

    def scene(self, scene_id: str) -> SceneRecord:
        """The scene with that id.

        Raises:
            MissingError: the lock has none.
        """
        if scene_id not in self.scenes:
            raise MissingError(f"scene {scene_id!r} is not in the lock of area {self.area!r}; it has {sorted(self.scenes)}")
        return self.scenes[scene_id]

    @property
    def jobs(self) -> tuple[Pair | Group, ...]:
        """Its pairs, or for other tasks its groups: each is aligned, masked and cut by one job per step."""
        return self.pairs or self.groups

    def pair(self, pair_id: str) -> Pair:
        """The pair with that id.

        Raises:
            MissingError: the lock has none.
        """
        return _find_named(self.pairs, pair_id, f"pair {pair_id!r} is not in the lock of area {self.area!r}")

    def job(self, job_id: str) -> Pair | Group:
        """The pair or group with that id.

        Raises:
            MissingError: the lock has none.
        """
        return _find_named(self.jobs, job_id, f"{'group' if self.groups else 'pair'} {job_id!r} is not in the lock of area {self.area!r}")


J = TypeVar("J", bound=Pair | Group)


def _find_named(jobs: tuple[J, ...], name: str, fault: str) -> J:
    for job in jobs:
        if job.id == name:
            return job
    raise MissingError(f"{fault}; it has {[job.id for job in jobs]}")
