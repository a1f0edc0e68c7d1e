"""A scene laid from its items: where they overlap the first one that is valid stays, and each item's share is known.

Enters: the items of a scene and a function that reads one of them on the scene's grid, its values already calibrated. Leaves: one array,
its validity, what is known of every item, and the ledger's lines. Items are read one after the other, each only over ground that is
still missing, so that memory holds the scene and one item more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import ItemRecord, SceneRecord, Status
from sereno.pipeline.scene import Bool2d, Plate, to_scene, with_plates

Place = tuple[slice, slice]
"""Rows and columns of the scene's grid."""

DIFFERS: Final = "differs: see items"
"""Stands where the items of a scene do not agree."""
UNDECIDED: Final = {"offset": None, "offset_reason": None, "offset_check": None, "calibration": None, "n_clamped": 0}
"""Facts of an item of which nothing was read."""


class Part(NamedTuple):
    """What one item gives."""

    place: Place
    """Where on the scene's grid it lies."""
    values: npt.NDArray[Any]
    """(band, y, x) on `place`, calibrated, in the dtype of the scene's values."""
    valid: Bool2d
    """(y, x) on `place`, True where every band is known; only wanted pixels."""
    facts: dict[str, Any]
    """What was decided for this item: `offset`, `offset_reason`, `offset_check`, `calibration`, and `n_clamped` of its valid values."""
    entries: tuple[Entry, ...] = ()
    """One per asset; step, area and scene are filled in later."""
    classes: npt.NDArray[np.uint8] | None = None
    """(y, x) scene classes on `place`, 0 where not known; None if the product has none."""
    warnings: tuple[str, ...] = ()
    """What a user should look at."""
    lost: tuple[tuple[str, str], ...] = ()
    """Asset and reason of everything that cannot be read."""
    plates: tuple[Plate, ...] = ()
    """The images that `values` were interpolated from, their positions those of the scene's whole grid; none if it has a grid itself."""


class Mosaic(NamedTuple):
    """A scene laid together."""

    values: npt.NDArray[Any]
    """(band, y, x); 0 where not valid."""
    valid: Bool2d
    """(y, x)."""
    classes: npt.NDArray[np.uint8] | None
    """(y, x), 0 on the ground of items that have none; None if no item has classes."""
    items: tuple[dict[str, Any], ...]
    """Per item its id, collection, time, baseline, the facts of its part, and `share`, the part of the grid that it laid down."""
    entries: tuple[Entry, ...]
    """Lines of the ledger: one per asset, and one per item with an empty asset."""
    warnings: tuple[str, ...]
    """Of all items."""
    lost: tuple[dict[str, str], ...]
    """`item`, `asset` and `reason` of everything that cannot be read."""
    plates: tuple[Plate, ...] = ()
    """Of all items; their layers follow each other as the items do."""


class Reading(NamedTuple):
    """A scene that was read."""

    scene: xr.Dataset
    """As `sereno.pipeline.scene` defines it, with provenance."""
    entries: tuple[Entry, ...]
    """Lines of the ledger; step, area and scene id are filled in by the verb."""


PartReader = Callable[[ItemRecord, GeoBox, Bool2d], Part]
"""Reads one item on the grid; the mask (y, x) says which pixels are still wanted."""


def to_entry(item: ItemRecord, asset: str, status: Status, reason: str = "") -> Entry:
    """A line of the ledger for an asset of `item`, or for the item as a whole if `asset` is empty."""
    return Entry("ingest", "", "", item.item, asset, status, reason)


def lose_item(item: ItemRecord, reason: str, *, n_bands: int, dtype: npt.DTypeLike, asset: str = "") -> Part:
    """The part of an item of which nothing can be used, for example because `asset` is missing."""
    entries = (to_entry(item, asset, "missing", reason),) if asset else ()
    empty = (slice(0, 0), slice(0, 0))
    return Part(empty, np.zeros((n_bands, 0, 0), dtype), np.zeros((0, 0), bool), dict(UNDECIDED), entries, lost=((asset, reason),))


def lose_incomplete(item: ItemRecord, names: Sequence[str], *, n_bands: int, dtype: npt.DTypeLike) -> Part | None:
    """The part of an item that lacks one of the assets `names`; None if it has them all."""
    missing = next((name for name in names if name not in item.assets), None)
    if missing is None:
        return None
    return lose_item(item, describe_absence(item), n_bands=n_bands, dtype=dtype, asset=missing)


def describe_absence(item: ItemRecord) -> str:
    """Why an asset is missing that `item` does not state, in words."""
    return f"the item states no such asset (it has {', '.join(sorted(item.assets))})"


def find_place(wanted: Bool2d) -> Place:
    """The smallest rows and columns that hold all pixels `wanted` (y, x); at least one is, or the item would not be read."""
    rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def widen_place(place: Place, margin_px: int, shape: tuple[int, ...]) -> Place:
    """`place` and `margin_px` around it, as far as a grid of `shape` reaches: next to another item's ground a displaced one goes on."""
    rows, columns = (slice(max(0, axis.start - margin_px), min(n, axis.stop + margin_px)) for axis, n in zip(place, shape, strict=True))
    return rows, columns


def lay_items(items: Sequence[ItemRecord], geobox: GeoBox, read_part: PartReader) -> Mosaic:
    """The items of a scene on one grid, in their order.

    Peak memory: the scene (bands x rows x columns) and what `read_part` holds for one item. An item whose ground is all known already is
    not read; the ledger calls it a duplicate.
    """
    canvas: Part | None = None
    facts: list[dict[str, Any]] = []
    entries: list[Entry] = []
    warnings: list[str] = []
    lost: list[dict[str, str]] = []
    plates: tuple[Plate, ...] = ()
    for item in items:
        wanted = np.ones(tuple(geobox.shape), bool) if canvas is None else ~canvas.valid
        if not wanted.any():
            names = ", ".join(str(fact["item"]) for fact in facts if fact["share"])
            entries.append(to_entry(item, "", "duplicate", f"the area is covered by {names} already"))
            facts.append(_describe(item, {}, 0.0))
            continue
        part = read_part(item, geobox, wanted)
        canvas, n_laid = _lay(canvas, part, geobox)
        entries += [*part.entries, _judge(item, part, n_laid)]
        facts.append(_describe(item, part.facts, n_laid / wanted.size))
        warnings += part.warnings
        lost += [{"item": item.item, "asset": asset, "reason": reason} for asset, reason in part.lost]
        n_layers = max((plate.layer + 1 for plate in plates), default=0)
        plates += tuple(plate._replace(layer=n_layers + plate.layer) for plate in part.plates)
    assert canvas is not None  # a scene has items, and the first is always read
    return Mosaic(canvas.values, canvas.valid, canvas.classes, tuple(facts), tuple(entries), tuple(warnings), tuple(lost), plates)


def _lay(canvas: Part | None, part: Part, geobox: GeoBox) -> tuple[Part, int]:
    """The canvas with what `part` adds to it, and how many pixels that is."""
    if canvas is None and part.valid.shape == geobox.shape:  # the first item's arrays become the scene's: no copy
        return part, int(np.count_nonzero(part.valid))
    if canvas is None:
        values = np.zeros((len(part.values), *geobox.shape), part.values.dtype)
        canvas = part._replace(values=values, valid=np.zeros(values.shape[1:], bool), classes=None)
    fresh = part.valid & ~canvas.valid[part.place]
    for band, values in enumerate(part.values):
        np.copyto(canvas.values[band][part.place], values, where=fresh)
    if part.classes is not None or canvas.classes is not None:
        classes = np.zeros(canvas.valid.shape, np.uint8) if canvas.classes is None else canvas.classes
        np.copyto(classes[part.place], 0 if part.classes is None else part.classes, where=fresh)  # 0: no other item's class stays there
        canvas = canvas._replace(classes=classes)
    canvas.valid[part.place] |= fresh
    return canvas, int(np.count_nonzero(fresh))


def _describe(item: ItemRecord, facts: Mapping[str, Any], share: float) -> dict[str, Any]:
    known = {"item": item.item, "collection": item.collection, "time": item.time, "processing_baseline": item.processing_baseline}
    return {**known, **UNDECIDED, **facts, "share": round(share, 6)}


def _judge(item: ItemRecord, part: Part, n_laid: int) -> Entry:
    """The line of the ledger for the item as a whole."""
    worst = [entry for entry in part.entries if entry.status in ("missing", "unreadable", "refused")]
    if n_laid:
        reason = f"{part.lost[0][0]}: {part.lost[0][1]}" if part.lost else ""
        return to_entry(item, "", "partly" if part.lost else "used", reason)
    if part.lost:
        asset, reason = part.lost[0]
        return to_entry(item, "", worst[0].status if worst else "refused", f"{asset}: {reason}" if asset else reason)
    return to_entry(item, "", "refused", "holds no valid ground of the area that is not known from others")


def to_reading(record: SceneRecord, mosaic: Mosaic, geobox: GeoBox, *, bands: tuple[str, ...], settings: IngestSettings) -> Reading:
    """The scene of a mosaic, its values in stored units, with its provenance.

    With less than `settings.min_valid` of valid ground, or with an asset of every item missing, the scene is refused: all of it is
    invalid, and `provenance["refused"]` says why.
    """
    share = float(mosaic.valid.mean())
    refused = _find_refusal(mosaic, share, settings)
    first = record.items[0]
    provenance = {
        "item": record.item,
        "collection": _agree([item.collection for item in record.items]),
        "sensor": record.sensor,
        "time": record.time,
        "processing_baseline": _agree([item.processing_baseline for item in record.items]),
        "sun_azimuth_deg": first.sun_azimuth_deg,
        "sun_elevation_deg": first.sun_elevation_deg,
        "properties": dict(first.properties),
        **_join_facts(mosaic.items),
        "n_clamped": sum(fact["n_clamped"] for fact in mosaic.items),
        "valid_share": round(share, 6),
        "warnings": list(mosaic.warnings),
        "lost": list(mosaic.lost),
        "refused": refused,
        "n_plates": 0 if refused else len(mosaic.plates),
        "items": [{key: value for key, value in fact.items() if key != "n_clamped"} for fact in mosaic.items],
    }
    valid = np.zeros_like(mosaic.valid) if refused else mosaic.valid
    scene = to_scene(mosaic.values, valid, bands=bands, geobox=geobox, provenance=provenance, scl=mosaic.classes)
    return Reading(scene if refused else with_plates(scene, mosaic.plates), mosaic.entries)


def _find_refusal(mosaic: Mosaic, share: float, settings: IngestSettings) -> str | None:
    if share >= settings.min_valid and share > 0:
        return None
    first = mosaic.lost[0] if mosaic.lost else None
    lost = f"; {len(mosaic.lost)} losses, the first: item {first['item']}, {first['asset']}: {first['reason']}" if first else ""
    return f"{share:.1%} of the ground is valid, pipeline.ingest.min_valid wants {settings.min_valid:.1%}{lost}"


def _agree(values: Sequence[Any]) -> Any:
    """What all values are, or None if they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _join_facts(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Offset, its reason and the calibration, if all items that laid something down agree on them."""
    laid = [item for item in items if item["share"]] or list(items)
    offset, reasons = _agree([item["offset"] for item in laid]), [item["offset_reason"] for item in laid]
    same = all(item["offset"] == laid[0]["offset"] for item in laid)
    reason = reasons[0] if len(set(reasons)) == 1 else f"{len(set(reasons))} reasons: see items"
    calibrations = {item["calibration"] for item in laid}
    return {
        "offset": offset,
        "offset_reason": reason if same else DIFFERS,
        "calibration": calibrations.pop() if len(calibrations) == 1 else DIFFERS,
    }
