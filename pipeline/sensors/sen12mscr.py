"""SEN12MS-CR: a folder of 256 px windows in; one lock per ROI, and its scenes mosaicked from the windows, out.

Optical images are Sentinel-2 L1C of 2018, thirteen bands of top-of-atmosphere reflectance x 10000 without an offset; SAR is Sentinel-1
in dB (Ebel et al. 2021, IEEE TGRS 59(7); Schmitt et al. 2019 state sigma0, so it is not the gamma0 of the other sensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from sereno.pipeline.bands import L1C_BANDS, SAR_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.layouts import KINDS, Roi, find_sen12mscr_rois
from sereno.pipeline.ledger import Entry
from sereno.pipeline.mosaic import Part, Reading, lay_items, to_reading
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, Pair, Refusal, SceneRecord, Sensor
from sereno.pipeline.radiometry import decibel_to_centi_db, to_stored_reflectance
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.sensors.access import Access, read_pixels
from sereno.pipeline.sensors.assets import Asset, LossError, select_assets
from sereno.pipeline.signing import Resolver

SEASON_TIMES: Final = {
    "winter": "2018-01-01T00:00:00Z",
    "spring": "2018-04-01T00:00:00Z",
    "summer": "2018-07-01T00:00:00Z",
    "fall": "2018-10-01T00:00:00Z",
}
"""Nominal times: the files carry none, and the dataset states only the season, of 2018."""
SENSORS: Final[Mapping[str, Sensor]] = {"s1": "sen12mscr-s1", "s2_cloudy": "sen12mscr-s2", "s2": "sen12mscr-s2"}
COLLECTION: Final = "sen12mscr"
STEP_SNAP_M: Final = 1e-3
"""Windows fit one grid only if their pixel sizes are equal to this, metres."""
WINDOW_SNAP_PX: Final = 0.01
"""Windows fit one grid if their corners lie within this many pixels of it; their origins are not round numbers of metres."""


class Footprint(NamedTuple):
    """Where a window file lies."""

    crs: str
    """Its CRS, for example `EPSG:32650`."""
    transform: Affine
    """From pixels to metres."""
    shape: tuple[int, int]
    """Rows, columns."""


class Joined(NamedTuple):
    """Windows joined on one grid."""

    values: npt.NDArray[Any]
    """(band, y, x), 0 where no window lies."""
    filled: Bool2d
    """(y, x), True where a window was read."""
    windows: list[dict[str, Any]]
    """Name, row and column of every window that was read."""
    lost: tuple[tuple[str, str], ...]
    """Windows, or windows with tiles, that could not be read, with the reason."""
    entries: tuple[Entry, ...]
    """Per window what became of it."""
    n_differing: int
    """Pixels on which two windows do not agree; the window with the smaller number stays."""


def list_pairs(folder: Path, area: str, *, skies: int = 0) -> Lock:
    """The lock of one ROI: three scenes made of all its windows, one pair, and the windows refused.

    Times are nominal (SEASON_TIMES), so both gaps are 0. With `skies` above 0 so many pairs have the clear scene under simulated skies as
    their input, and the cloudy scene is not used.

    Raises:
        MissingError: the folder, or the ROI in it, is not there.
        DataError: the windows of the ROI do not lie on one pixel grid.
    """
    rois = find_sen12mscr_rois(folder)
    if area not in rois or not rois[area].windows:
        known = ", ".join(name for name, roi in list(rois.items())[:5] if roi.windows)
        raise MissingError(f"{folder} holds no complete window of ROI {area!r}; it begins with {known}")
    roi, places = _read_places(folder, rois[area])
    geobox = _join_places(area, places)
    scenes = {f"{area}.{kind}": _describe_scene(roi, kind, geobox) for kind in KINDS if not skies or kind != "s2_cloudy"}
    pairs = tuple(_describe_pair(area, sky) for sky in ([None] if not skies else range(1, skies + 1)))
    refused = tuple(Refusal(item=f"{area}/{name}", role="cloudy", reason=reason) for name, reason in roi.refused)
    grid = GridRecord.from_geobox(geobox)
    return Lock(area=area, catalogue=str(folder), grid=grid, scenes=scenes, pairs=pairs, refused=refused)


def _describe_pair(area: str, sky: int | None) -> Pair:
    clear = f"{area}.s2"
    name, cloudy = (area, f"{area}.s2_cloudy") if sky is None else (f"{area}-sky{sky}", clear)
    return Pair(id=name, sar=f"{area}.s1", cloudy=cloudy, clear=clear, sar_gap_days=0, clear_gap_days=0, sky=sky)


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """One image of a ROI, mosaicked from its windows on `geobox`: reflectance x 10000 of L1C, or VV and VH in centi-dB.

    Optical pixels are valid unless all thirteen bands are 0, SAR pixels if both polarisations are finite. `settings.bands` chooses
    optical bands.

    Raises:
        MissingError: a band is wanted that L1C does not have.
        DataError: a window has another number of bands, or does not lie on the grid.
    """
    is_sar = record.sensor == "sen12mscr-s1"
    bands = SAR_BANDS if is_sar else settings.bands or L1C_BANDS
    unknown = [] if is_sar else [band for band in bands if band not in L1C_BANDS]
    if unknown:
        raise MissingError(
            f"{record.item}: L1C has no band {', '.join(unknown)}; correct pipeline.ingest.bands, known are {', '.join(L1C_BANDS)}"
        )
    mosaic = lay_items(record.items, geobox, partial(_read_item, bands=bands, settings=settings, resolver=resolver))
    reading = to_reading(record, mosaic, geobox, bands=bands, settings=settings)
    facts = reading.scene.attrs["provenance"]
    facts["windows"] = facts["items"][0].pop("windows", [])
    return reading


def _read_item(
    item: ItemRecord, geobox: GeoBox, wanted: Bool2d, *, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    is_sar = item.sensor == "sen12mscr-s1"
    joined = _join_windows(select_assets(item, tuple(item.assets), resolver, settings), geobox, SAR_BANDS if is_sar else L1C_BANDS)
    data: npt.NDArray[Any]
    if is_sar:
        valid = joined.filled & np.isfinite(joined.values).all(axis=0)
        data, n_clamped = decibel_to_centi_db(joined.values, np.broadcast_to(valid, joined.values.shape))
    else:
        valid = joined.filled & joined.values.any(axis=0)
        chosen = joined.values[[L1C_BANDS.index(band) for band in bands]]
        data, n_clamped = to_stored_reflectance(chosen, np.broadcast_to(valid, chosen.shape), offset_dn=0)
    facts = {
        "offset": 0,
        "offset_reason": "the dataset predates the offset of processing baseline 04.00",
        "offset_check": None,
        "calibration": "dB of the dataset (sigma0, not terrain corrected to gamma0)"
        if is_sar
        else "top-of-atmosphere reflectance = DN / 10000",
        "n_clamped": n_clamped,
        "windows": joined.windows,
    }
    warnings = (f"{joined.n_differing} pixels differ between overlapping windows",) if joined.n_differing else ()
    whole = (slice(0, geobox.shape.y), slice(0, geobox.shape.x))
    return Part(whole, data, valid & wanted, facts, joined.entries, warnings=warnings, lost=joined.lost)


def _read_places(folder: Path, roi: Roi) -> tuple[Roi, dict[str, Footprint]]:
    """The ROI without the windows of which a file cannot be opened, and where each remaining file lies."""
    places: dict[str, Footprint] = {}
    windows, refused = [], list(roi.refused)
    for window in roi.windows:
        paths = [getattr(window, kind) for kind in KINDS]
        try:
            found = {path: _read_place(folder, roi.area, path) for path in paths}
        except LossError as loss:
            refused.append((window.name, loss.words))
            continue
        places |= found
        windows.append(window)
    if not windows:
        raise DataError(f"ROI {roi.area}: none of its {len(roi.windows)} windows can be opened, the first because: {refused[-1][1]}")
    return replace(roi, windows=tuple(windows), refused=tuple(refused)), places


def _read_place(folder: Path, area: str, path: str) -> Footprint:
    asset = Asset(area, Path(path).stem, AssetRecord(href=path), Resolver(str(folder)))
    try:
        with Access(asset) as access:
            source = access.source
            return Footprint(str(source.crs), source.transform, source.shape)
    except LossError as loss:
        raise LossError(loss.status, f"{path} cannot be opened: {loss.words}") from None


def _join_places(area: str, places: dict[str, Footprint]) -> GeoBox:
    """The smallest grid that holds every window.

    Raises:
        DataError: windows differ in CRS or pixel size, or lie between each other's pixels.
    """
    first_path, first = next(iter(places.items()))
    corners = []
    for path, place in places.items():
        row, column = _find_corner(place.transform, first.transform)
        same_step = max(abs(place.transform.a - first.transform.a), abs(place.transform.e - first.transform.e)) < STEP_SNAP_M
        if place.crs != first.crs or not same_step or max(abs(row - round(row)), abs(column - round(column))) > WINDOW_SNAP_PX:
            raise DataError(
                f"ROI {area}: window {path} ({_in_words(place)}) does not lie on the pixel grid of {first_path} ({_in_words(first)}): "
                "move its files out of the folder"
            )
        corners.append((round(row), round(column), round(row) + place.shape[0], round(column) + place.shape[1]))
    top, left = min(corner[0] for corner in corners), min(corner[1] for corner in corners)
    bottom, right = max(corner[2] for corner in corners), max(corner[3] for corner in corners)
    return GeoBox((bottom - top, right - left), first.transform * Affine.translation(left, top), first.crs)


def _find_corner(transform: Affine, grid: Affine) -> tuple[float, float]:
    """Row and column in `grid` of the first corner of a window with `transform`."""
    column, row = ~grid * (transform.c, transform.f)
    return row, column


def _in_words(place: Footprint) -> str:
    return f"{place.crs}, origin {place.transform.c:.3f} {place.transform.f:.3f}, step {place.transform.a:g} m"


def _describe_scene(roi: Roi, kind: str, geobox: GeoBox) -> SceneRecord:
    west, south, east, north = transform_bounds(str(geobox.crs), "EPSG:4326", *geobox.boundingbox)
    item = ItemRecord(
        item=f"{roi.area}/{kind}",
        collection=COLLECTION,
        sensor=SENSORS[kind],
        time=SEASON_TIMES[roi.area.split("_")[1]],
        crs=str(geobox.crs),
        bbox=(west, south, east, north),
        assets={window.name: AssetRecord(href=getattr(window, kind)) for window in roi.windows},
        properties={"time": "nominal: the season of the ROI"},
    )
    return SceneRecord(id=f"{roi.area}.{kind}", sensor=item.sensor, time=item.time, items=(item,))


def _join_windows(assets: dict[str, Asset], geobox: GeoBox, bands: tuple[str, ...]) -> Joined:
    dtype = np.float32 if bands == SAR_BANDS else np.uint16
    values, filled = np.zeros((len(bands), *geobox.shape), dtype), np.zeros(tuple(geobox.shape), bool)
    windows: list[dict[str, Any]] = []
    lost: list[tuple[str, str]] = []
    entries: list[Entry] = []
    n_differing = 0
    for name, asset in assets.items():
        access = Access(asset)
        try:
            with access:
                _check_window(asset, access.source, (bands, np.dtype(dtype)))
                place = _place_in(asset, access.source, geobox)
                window = Window(0, 0, access.source.width, access.source.height)
                pixels = read_pixels(access, window, tuple(range(1, len(bands) + 1)))
        except LossError as loss:  # one broken window must not cost the ROI
            lost.append((name, loss.words))
            entries.append(access.to_entry(loss.status, loss.words))
            continue
        lost += [(name, reason) for reason in pixels.lost]
        entries.append(access.to_entry("partly" if pixels.lost else "used", pixels.lost[0] if pixels.lost else ""))
        there, known = values[:, *place], filled[place]
        both = known & pixels.readable
        n_differing += int(np.count_nonzero(both & ~_are_equal(there, pixels.values)))
        np.copyto(there, pixels.values, where=pixels.readable & ~known)
        known |= pixels.readable
        windows.append({"name": name, "row": place[0].start, "col": place[1].start})
    return Joined(values, filled, windows, tuple(lost), tuple(entries), n_differing)


def _are_equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Bool2d:
    """Pixels (y, x) on which all bands agree; NaN agrees with NaN."""
    equal = one == other
    if one.dtype.kind == "f":
        equal |= np.isnan(one) & np.isnan(other)
    agree: Bool2d = equal.all(axis=0)
    return agree


def _check_window(asset: Asset, source: DatasetReader, expected: tuple[tuple[str, ...], np.dtype[Any]]) -> None:
    bands, dtype = expected
    if source.count != len(bands) or not np.can_cast(source.dtypes[0], dtype):
        raise DataError(
            f"{asset.place} holds {source.count} bands of {source.dtypes[0]}, expected {len(bands)} of {dtype}: {', '.join(bands)}"
        )


def _place_in(asset: Asset, source: DatasetReader, geobox: GeoBox) -> tuple[slice, slice]:
    """Rows and columns of `geobox` that the window fills.

    Raises:
        DataError: it reaches beyond the grid, for example because the files changed after the lock was written.
    """
    first_row, first_column = (round(number) for number in _find_corner(source.transform, geobox.transform))
    inside = 0 <= first_row <= geobox.shape.y - source.height and 0 <= first_column <= geobox.shape.x - source.width
    if str(source.crs) != str(geobox.crs) or not inside:
        raise DataError(f"{asset.place} lies outside the grid of its ROI in the lock: run the query step again")
    return slice(first_row, first_row + source.height), slice(first_column, first_column + source.width)
