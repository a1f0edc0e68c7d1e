"""Items become acquisitions: repeats of one are resolved, and the items of one overflight are laid together.

Enters: item records with the part of the area that each covers. Leaves: scenes, and for every item that is in none the reason. Pure, and
independent of the order in which items come.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple

import shapely
from shapely.geometry.base import BaseGeometry as Geometry

from sereno.pipeline.areas import Ground, compute_share
from sereno.pipeline.pairs import ItemRecord, Refusal, Role, SceneRecord, Status, is_sar

SENTINEL1_NAME: Final = re.compile(
    r"(?P<acquisition>(?P<platform>S1[A-Z])_.._...._...._\d{8}T\d{6}_\d{8}T\d{6}_(?P<take>\d{6}_[0-9A-F]{6}))(_[0-9A-F]{4})?(?=$|[_.])"
)
"""Name of a Sentinel-1 product; the last four characters are a checksum that changes with each processing. Catalogues put `_rtc`, `_COG`
or `.SAFE` behind it."""
SENTINEL2_NAME: Final = re.compile(r"S2[A-Z]_MSIL\d[AC]_(?P<take>\d{8}T\d{6})_.*_T(?P<tile>\d\d[A-Z]{3})(?=_|$)")
"""Name of a Sentinel-2 product: it begins with the moment at which its datatake began, the same for all tiles."""
SENTINEL2_TAKE: Final = re.compile(r"GS2[A-Z]_(?P<take>\d{8}T\d{6})_")
"""Id of a Sentinel-2 datatake, as far as processing does not change it."""
SENSED: Final = re.compile(r"_S(\d{8}T\d{6})(_|$)")
"""Start of sensing in the name of a Sentinel-2 datastrip: it tells apart the two halves of a tile in which a datatake was split."""
TAKE_STEP_S: Final = 120.0
"""Items of one platform whose names tell no datatake belong to one overflight if they follow each other within this time: slices and tiles
do within half a minute, the next orbit comes after an hour and a half."""
MIN_GAIN: Final = 1e-3
"""An item that adds less than this share of the area to those laid before it is not read: ground that overlaps is not needed twice."""
SHARE_DIGITS: Final = 4
"""Shares that are equal to so many digits are equal: what rounding leaves must not decide an order."""
UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
"""What must not stand in the name of a file."""


class Cause(Enum):
    """Why a candidate was refused; the value says what to change for more pairs."""

    ITEM = "choose other collections, or items that have what is needed"
    EXCLUDED = "take items out of pipeline.query.exclude"
    ELSEWHERE = "correct the area in pipeline.query.areas (longitude comes before latitude), or the folder or catalogue that is searched"
    OVERLAP = "lower pipeline.query.min_overlap or make the area smaller"
    DUPLICATE = "lengthen start..end: these are the same acquisitions again"
    POLARISATION = "change pipeline.query.polarisations to what the items hold"
    ORBIT = "widen pipeline.query.relative_orbits or orbit_state"
    COVER = "widen pipeline.query.cloudy_cover_pct or raise clear_cover_pct"
    CLEAR_COVER = "raise pipeline.query.clear_cover_pct"
    CLEAR_GAP = "raise pipeline.query.max_gap_clear_days or clear_cover_pct"
    SERIES = "lengthen start..end, raise pipeline.query.max_gap_clear_days or clear_cover_pct, or leave pipeline.query.series out"
    SAR_GAP = "raise pipeline.query.max_gap_sar_days"
    COARSE_GAP = "raise pipeline.query.max_gap_coarse_days, lengthen start..end, or name more of pipeline.query.coarse_collections"
    UNUSED = "widen pipeline.query.cloudy_cover_pct or lengthen start..end"
    MAX_PAIRS = "raise pipeline.query.max_pairs"


class Refused(NamedTuple):
    """One decision against a candidate, with all its items."""

    items: tuple[str, ...]
    """Ids of the items."""
    role: Role
    """What it was a candidate for."""
    reason: str
    """Words with the value seen and the limit."""
    cause: Cause
    """For the advice if nothing is left."""
    status: Status = "refused"
    """What became of the items."""


class Found(NamedTuple):
    """An item that can be read."""

    record: ItemRecord
    """The item in our form."""
    part: Geometry
    """The ground of the area that its footprint covers, in the grid's CRS."""


class Candidate(NamedTuple):
    """A scene that may become part of a pair."""

    scene: SceneRecord
    """One acquisition."""
    covered: Geometry
    """The ground of the area that the footprints of its items cover together, in the grid's CRS."""

    @property
    def moment(self) -> datetime:
        """Time of acquisition."""
        return datetime.fromisoformat(self.scene.time)


def refuse(candidate: Candidate, role: Role, reason: str, cause: Cause) -> Refused:
    """The refusal of a candidate."""
    return Refused(tuple(item.item for item in candidate.scene.items), role, reason, cause)


def refuse_item(record: ItemRecord, reason: str, cause: Cause, *, clear_cover_pct: float) -> Refused:
    """The refusal of a single item, in the role that its own cloud cover gives it."""
    return Refused((record.item,), role_of(record.sensor, record.cloud_cover_pct, clear_cover_pct), reason, cause)


def to_refusals(refused: Iterable[Refused]) -> tuple[Refusal, ...]:
    """The refusals as the lock lists them: one per item, in order of role, item and reason."""
    lines = [
        Refusal(item=item, role=one.role, reason=one.reason, status=one.status, cause=one.cause.name.lower())
        for one in refused
        for item in one.items
    ]
    return tuple(sorted(lines, key=lambda line: (line.role, line.item, line.reason)))


def role_of(sensor: str, cover_pct: float | None, clear_cover_pct: float) -> Role:
    """What a scene of that sensor and cloud cover would have been: SAR, clear target or cloudy input."""
    if is_sar(sensor):
        return "sar"
    return "clear" if cover_pct is not None and cover_pct <= clear_cover_pct else "cloudy"


def drop_duplicates(found: Sequence[Found], collections: Sequence[str]) -> tuple[list[Found], list[tuple[Found, str]]]:
    """One item per acquisition and tile, and the others with the reason.

    The same acquisition is: for Sentinel-1 the same product name up to the checksum; for Sentinel-2 the same platform, tile and start of
    sensing of the datastrip, so that the two halves of a split datastrip both stay. Of several processings the product level whose
    collection comes first in `collections` wins; then the highest baseline, the latest processing time, the first collection, the last id.
    """
    places = {name: place for place, name in enumerate(collections)}
    levels: dict[str, int] = {}
    for one in found:
        place = places.get(one.record.collection, len(places))
        levels[one.record.sensor] = min(place, levels.get(one.record.sensor, place))

    def to_rank(one: Found) -> tuple[Any, ...]:
        item = one.record
        place = places.get(item.collection, len(places))
        return -levels[item.sensor], item.processing_baseline or "", item.properties.get("generated", "")[:19], -place, item.item

    kept, dropped = [], []
    for group in _group(found, _acquisition_of).values():
        *older, newest = sorted(group, key=to_rank)
        kept.append(newest)
        dropped += [(one, f"duplicate of {newest.record.item}, {_compare(one.record, newest.record)}") for one in older]
    return kept, dropped


def _group(found: Iterable[Found], to_key: Callable[[ItemRecord], tuple[str, ...]]) -> dict[tuple[str, ...], list[Found]]:
    groups: dict[tuple[str, ...], list[Found]] = {}
    for one in found:
        groups.setdefault(to_key(one.record), []).append(one)
    return groups


def _compare(old: ItemRecord, new: ItemRecord) -> str:
    for what, one, other in (
        ("product", old.sensor, new.sensor),
        ("baseline", old.processing_baseline, new.processing_baseline),
        ("processed", old.properties.get("generated"), new.properties.get("generated")),
        ("collection", old.collection, new.collection),
    ):
        if one != other:
            return f"{what} {one or 'not stated'} against {other or 'not stated'}"
    return "equal processing"


def _mission_of(item: ItemRecord) -> str:
    return item.sensor.partition("-")[0]


def _acquisition_of(item: ItemRecord) -> tuple[str, ...]:
    """What two processings of one acquisition have in common."""
    mission, name = _mission_of(item), SENTINEL1_NAME.match(item.item)
    if name:
        return mission, name["acquisition"]
    sensed = SENSED.search(item.properties.get("datastrip", ""))
    tile = item.properties.get("tile") or _find_in_names(SENTINEL2_NAME, item, "tile")
    if mission == "sentinel2" and not tile:  # nothing tells two tiles of one moment apart
        tile = item.item
    return mission, item.properties.get("platform", ""), tile, sensed[1] if sensed else item.time[:19]


def _find_in_names(pattern: re.Pattern[str], item: ItemRecord, group: str) -> str:
    """What `group` of the pattern matches in the item's id or in the name of its product or datatake; empty if none does."""
    names = (item.properties.get("product", ""), item.properties.get("datatake", ""), item.item)
    return next((match[group] for match in map(pattern.search, names) if match), "")


def assemble_scenes(
    found: Sequence[Found], ground: Ground, *, min_overlap: float, clear_cover_pct: float
) -> tuple[list[Candidate], list[Refused]]:
    """The scenes that the items of each overflight make together, and the items that are in none.

    Slices of one Sentinel-1 datatake, and tiles and halves of one Sentinel-2 datatake, become one scene. They are laid down in this order:
    those in the grid's CRS first, which need no warping, then the larger share of the area, then the id; an item that adds less than
    MIN_GAIN of the area to those before it is refused. `min_overlap` is asked of all of them together. No item is in two scenes.
    """
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for group in _split_overflights(found):
        laid, covered, idle = _lay_items(group, ground)
        cause = Cause.OVERLAP if laid else Cause.ELSEWHERE
        refused += [refuse_item(one.record, reason, cause, clear_cover_pct=clear_cover_pct) for one, reason in idle]
        if not laid:
            continue
        candidate, overlap = Candidate(_to_scene_record(laid), covered), compute_share(covered, ground)
        if overlap >= min_overlap:
            candidates.append(candidate)
            continue
        role = role_of(candidate.scene.sensor, candidate.scene.cloud_cover_pct, clear_cover_pct)
        together = " together" if len(laid) > 1 else ""
        reason = f"covers {overlap:.1%} of the area{together}, needed {min_overlap:.1%}"
        refused.append(refuse(candidate, role, reason, Cause.OVERLAP))
    return candidates, refused


def _split_overflights(found: Sequence[Found]) -> list[list[Found]]:
    """The items of each overflight by themselves: one datatake of one sensor; where no name tells it, what follows each other closely."""
    flights: list[list[Found]] = []
    for key, group in sorted(_group(found, _flight_of).items()):
        last: datetime | None = None
        for one in sorted(group, key=lambda one: (one.record.time, one.record.item)):
            moment = datetime.fromisoformat(one.record.time)
            if last is None or (not key[-1] and (moment - last).total_seconds() > TAKE_STEP_S):
                flights.append([])
            flights[-1].append(one)
            last = moment
    return flights


def _flight_of(item: ItemRecord) -> tuple[str, ...]:
    """Sensor, platform and name of the datatake; the name is empty if nothing tells it."""
    name = SENTINEL1_NAME.match(item.item)
    if name:
        return item.sensor, name["platform"], name["take"]
    take = _find_in_names(SENTINEL2_TAKE, item, "take") or _find_in_names(SENTINEL2_NAME, item, "take")
    return item.sensor, item.properties.get("platform", ""), take or item.properties.get("datatake", "")


class Laid(NamedTuple):
    """An item in its place."""

    found: Found
    """The item."""
    gain: float
    """Share of the area that it adds to those laid before it, 0..1."""


def _lay_items(group: Sequence[Found], ground: Ground) -> tuple[list[Laid], Geometry, list[tuple[Found, str]]]:
    """The items that cover the area together, the ground that they cover, and the items not needed, with the reason."""

    def to_rank(one: Found) -> tuple[Any, ...]:
        return one.record.crs != str(ground.geobox.crs), -round(compute_share(one.part, ground), SHARE_DIGITS), one.record.item

    laid: list[Laid] = []
    idle: list[tuple[Found, str]] = []
    covered: Geometry = shapely.Polygon()
    for one in sorted(group, key=to_rank):
        whole = shapely.union(covered, one.part)
        gain = max(0.0, compute_share(whole, ground) - compute_share(covered, ground))
        if gain >= MIN_GAIN or (not one.part.is_empty and any(_is_other_half(one.record, other.found.record) for other in laid)):
            laid.append(Laid(one, gain))
            covered = whole
        else:
            others = ", ".join(other.found.record.item for other in laid)
            idle.append((one, f"adds {gain:.1%} of the area to {others}" if laid else "covers none of the area"))
    return laid, covered, idle


def _is_other_half(one: ItemRecord, other: ItemRecord) -> bool:
    """Whether the two are one tile of two datastrips: some catalogues state the whole tile as the footprint of both halves."""
    tile, strips = one.properties.get("tile"), [item.properties.get("datastrip") for item in (one, other)]
    return bool(tile and all(strips)) and tile == other.properties.get("tile") and strips[0] != strips[1]


def _to_scene_record(laid: Sequence[Laid]) -> SceneRecord:
    items = tuple(one.found.record for one in laid)
    name = UNSAFE.sub("-", items[0].item).lstrip("._-") or "item"
    cover = _average_cover(laid)
    return SceneRecord(
        id=name if len(items) == 1 else f"{name}.{len(items)}-items",
        sensor=items[0].sensor,
        time=items[0].time,
        items=items,
        cloud_cover_pct=cover,
        cover_source=None if cover is None else "catalogue",
    )


def _average_cover(laid: Sequence[Laid]) -> float | None:
    """The items' own cloud cover, weighted by the share that each adds; None if one states none."""
    covers = [one.found.record.cloud_cover_pct for one in laid]
    if len(covers) == 1:
        return covers[0]
    weights = [one.gain + MIN_GAIN for one in laid]  # a half whose footprint tells nothing still counts a little
    known = [cover * weight for cover, weight in zip(covers, weights, strict=True) if cover is not None]
    return round(sum(known) / sum(weights), 4) if len(known) == len(covers) else None


def give_unique_ids(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with ids completed by the collection where two would bear the same one, and then by a number."""
    counts = Counter(candidate.scene.id for candidate in candidates)
    named = []
    used: Counter[str] = Counter()
    for candidate in candidates:
        scene = candidate.scene
        name = scene.id if counts[scene.id] == 1 else f"{scene.id}.{UNSAFE.sub('-', scene.items[0].collection)}"
        used[name] += 1
        name = name if used[name] == 1 else f"{name}.{used[name]}"
        named.append(candidate._replace(scene=scene.model_copy(update={"id": name})))
    return named
