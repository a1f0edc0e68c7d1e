"""Cloud cover over an area, from the scene classification at overview resolution, before anything larger is fetched.

Enters: a scene with its items, the ground, and what opens addresses. Leaves: cloud cover and valid share, with a line of the ledger per
file. The classes that count as cloud are those of `clouds.SCL_CLOUD`, as in a catalogue's own figure: shadow is not cloud here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window

from sereno.pipeline.areas import Ground
from sereno.pipeline.bands import SCL
from sereno.pipeline.clouds import SCL_CLOUD, SCL_NODATA
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.imagers import IMAGERS, QA, find_classification, to_classes
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.sensors.access import Access
from sereno.pipeline.sensors.assets import Asset, LossError
from sereno.pipeline.signing import Resolver

ATTEMPTS: Final = 4
"""Tries of one file."""
READERS: Final = 8
"""Scenes measured at the same time: nearly all of it is waiting."""
COVER_DIGITS: Final = 2
"""Digits of a stated percentage."""


class Cover(NamedTuple):
    """What the classification of a scene says of an area."""

    cloud_pct: float | None
    """Cloud, percent of the valid ground; None if nothing is valid or that is not known."""
    valid_share: float | None
    """Share of the area with data, 0..1; None if that is not known."""
    entries: tuple[Entry, ...]
    """One line per item, with the reason where its classification is lost."""


class Samples(NamedTuple):
    """The places at which the area is looked at."""

    x: npt.NDArray[np.float64]
    """(place,) metres in the grid's CRS."""
    y: npt.NDArray[np.float64]
    """(place,) likewise."""
    crs: str
    """That CRS."""
    pixel_m: float
    """Distance between neighbours, metres."""


def measure_covers(scenes: Sequence[SceneRecord], ground: Ground, resolver: Resolver, pixel_m: float) -> list[Cover]:
    """The cover of each scene over the ground, in their order; several are read at the same time.

    Raises:
        CatalogueError: a file cannot be read now but perhaps later: falling back to another figure would make two runs differ.
    """
    measure = functools.partial(measure_cover, samples=sample_ground(ground, pixel_m), resolver=resolver)
    with ThreadPoolExecutor(READERS) as executor:
        return list(executor.map(measure, scenes))


def sample_ground(ground: Ground, pixel_m: float) -> Samples:
    """Places at most `pixel_m` apart all over the ground, at least one."""
    bounds = ground.geobox.boundingbox
    columns, rows = (max(1, math.ceil(size / pixel_m)) for size in (bounds.right - bounds.left, bounds.top - bounds.bottom))
    step_x, step_y = (bounds.right - bounds.left) / columns, (bounds.top - bounds.bottom) / rows
    x, y = np.meshgrid(bounds.left + (np.arange(columns) + 0.5) * step_x, bounds.top - (np.arange(rows) + 0.5) * step_y)
    x, y = x.ravel(), y.ravel()
    if ground.outline is not None:
        inside = shapely.contains_xy(ground.outline, x, y)
        if not inside.any():  # an outline thinner than a sample
            middle = shapely.point_on_surface(ground.outline)
            x, y, inside = np.array([middle.x]), np.array([middle.y]), np.array([True])
        x, y = x[inside], y[inside]
    return Samples(x, y, str(ground.geobox.crs), max(step_x, step_y))


def measure_cover(scene: SceneRecord, samples: Samples, resolver: Resolver) -> Cover:
    """Cloud cover and valid share of a scene: the classes of its items laid over each other in their order.

    If the classification of one item is lost for good, so is the figure of the whole scene.

    Raises:
        CatalogueError: a file cannot be read now, in spite of all tries.
    """
    classes = np.full(samples.x.shape, SCL_NODATA, np.uint8)
    entries = []
    for item in scene.items:
        entry, read = _read_item(item, samples, resolver)
        entries.append(entry)
        classes = classes if read is None else np.where(classes == SCL_NODATA, read, classes)
    if any(entry.status != "used" for entry in entries):
        return Cover(None, None, tuple(entries))
    valid = int(np.count_nonzero(classes != SCL_NODATA))
    cloud = int(np.count_nonzero(np.isin(classes, SCL_CLOUD)))
    cloud_pct = round(100 * cloud / valid, COVER_DIGITS) if valid else None
    return Cover(cloud_pct, round(valid / classes.size, 4), tuple(entries))


def _read_item(item: ItemRecord, samples: Samples, resolver: Resolver) -> tuple[Entry, npt.NDArray[np.uint8] | None]:
    """The line of one item's classification, and the classes (place,) unless they are lost."""
    name, quality = find_classification(item), IMAGERS[item.sensor].quality if item.sensor in IMAGERS else None
    if name is None:
        asset, words = (SCL, "scene classification") if quality is None else (QA, "quality bits")
        return Entry("query", "", "", item.item, asset, "missing", f"the item has no {words}"), None
    access = Access(Asset(item.item, name, item.assets[name], resolver, ATTEMPTS, "none"))
    try:
        with access:
            found = access.insist(lambda: _read_numbers(access, samples, SCL_NODATA if quality is None else quality.fill))
            classes = found.astype(np.uint8) if quality is None else to_classes(quality, found)
            return access.to_entry("used")._replace(step="query"), classes
    except LossError as error:
        return access.to_entry(error.status, error.words)._replace(step="query"), None
    except CatalogueError as error:
        raise CatalogueError(f"{error}; or set pipeline.query.cover_from to catalogue") from None


def _read_numbers(access: Access, samples: Samples, nothing: int) -> npt.NDArray[Any]:
    """Classes or quality bits (place,) at the samples; `nothing` outside the file and where it has no data.

    The coarsest overview is read whose pixel is no larger than the distance of the samples, under them alone. Overviews are taken as they
    are: providers make them of single pixels, since classes have no mean.
    """
    source = access.source
    if source.crs is None:
        raise LossError("unreadable", "the file has no CRS")
    own, x, y = CRS(source.crs.to_wkt()), samples.x, samples.y
    if own != CRS(samples.crs):
        x, y = CRS(samples.crs).transformer_to_crs(own)(x, y)
    inverse = ~source.transform
    columns, rows = (a * x + b * y + c for a, b, c in ((inverse.a, inverse.b, inverse.c), (inverse.d, inverse.e, inverse.f)))
    return _read_places(access, (np.floor(rows), np.floor(columns)), _choose_step(source, samples.pixel_m), nothing)


def _choose_step(source: DatasetReader, pixel_m: float) -> int:
    """Pixels of the file per pixel of the overview that is read."""
    factors: list[int] = source.overviews(1)
    return max([1, *(factor for factor in factors if factor * abs(source.transform.a) <= pixel_m)])


def _read_places(access: Access, places: tuple[npt.NDArray[Any], npt.NDArray[Any]], step: int, nothing: int) -> npt.NDArray[Any]:
    source, (rows, columns) = access.source, places
    inside = (rows >= 0) & (rows < source.height) & (columns >= 0) & (columns < source.width)
    classes = np.full(rows.shape, nothing, np.int64)
    if not inside.any():
        return classes
    (top, bottom), (left, right) = (
        (int(index[inside].min()) // step * step, min(size, (int(index[inside].max()) // step + 1) * step))
        for index, size in ((rows, source.height), (columns, source.width))
    )
    shape = (math.ceil((bottom - top) / step), math.ceil((right - left) / step))
    block = source.read(1, window=Window.from_slices((top, bottom), (left, right)), out_shape=shape)
    level = source.overviews(1).index(step) if step > 1 else None
    access.count(Window(left // step, top // step, shape[1], shape[0]), (1,), level=level)
    if source.nodata is not None:
        block = np.where(block == source.nodata, nothing, block)
    row, column = ((rows[inside] - top) // step).astype(int), ((columns[inside] - left) // step).astype(int)
    classes[inside] = block[row, column]
    return classes
