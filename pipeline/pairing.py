"""Which scenes form pairs: duplicates of one acquisition resolved, then the nearest clear and SAR scene for each cloudy one.

Enters: candidates, which are scene records with their overlap. Leaves: triplets, and for every candidate that is not used the reason with
the value seen and the limit. Pure, and independent of the order in which candidates come.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple

from sereno.pipeline.config import QuerySettings
from sereno.pipeline.pairs import ItemRecord, Pair, Refusal, Role, SceneRecord

DAY_S: Final = 86_400.0
"""Seconds of a day."""
SENTINEL1_NAME: Final = re.compile(r"(S1[A-Z]_.._...._...._\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6})(_[0-9A-F]{4})?(?=$|_rtc$)")
"""Name of a Sentinel-1 product; the last four characters are a checksum that changes with each processing."""
SENSED: Final = re.compile(r"_S(\d{8}T\d{6})(_|$)")
"""Start of sensing in the name of a Sentinel-2 datastrip: it tells apart the two halves of a tile in which a datatake was split."""


class Cause(Enum):
    """Why a candidate was refused; the value says what to change for more pairs."""

    ITEM = "choose other collections, or items that have what is needed"
    OVERLAP = "lower pipeline.query.min_overlap or make the area smaller"
    DUPLICATE = "lengthen start..end: these are the same acquisitions processed again"
    COVER = "widen pipeline.query.cloudy_cover_pct or raise clear_cover_pct"
    CLEAR_GAP = "raise pipeline.query.max_gap_clear_days or clear_cover_pct"
    SAR_GAP = "raise pipeline.query.max_gap_sar_days"
    UNUSED = "widen pipeline.query.cloudy_cover_pct or lengthen start..end"
    MAX_PAIRS = "raise pipeline.query.max_pairs"


class Refused(NamedTuple):
    """One refusal and its cause."""

    refusal: Refusal
    """What the lock lists."""
    cause: Cause
    """For the advice if nothing is left."""


class Candidate(NamedTuple):
    """A scene that may become part of a pair."""

    scene: SceneRecord
    """The item in our form."""
    overlap: float
    """Share of the area that its footprint covers, 0..1."""

    @property
    def moment(self) -> datetime:
        """Time of acquisition."""
        return datetime.fromisoformat(self.scene.time)


class Triplet(NamedTuple):
    """Three scenes that fit together."""

    cloudy: Candidate
    """The input."""
    clear: Candidate
    """The target, nearest in time."""
    sar: Candidate
    """The SAR scene, nearest in time."""

    @property
    def gap_days(self) -> float:
        """Both time gaps together, days."""
        return abs(_gap_days(self.cloudy, self.clear)) + abs(_gap_days(self.cloudy, self.sar))


def refuse(candidate: Candidate, role: Role, reason: str, cause: Cause) -> Refused:
    """The refusal of a candidate."""
    return Refused(Refusal(item=candidate.scene.item, role=role, reason=reason), cause)


def role_of(candidate: Candidate, settings: QuerySettings) -> Role:
    """What the candidate would have been: SAR, clear target or cloudy input."""
    if candidate.scene.sensor.startswith("sentinel1"):
        return "sar"
    cover = candidate.scene.cloud_cover_pct
    return "clear" if cover is not None and cover <= settings.clear_cover_pct else "cloudy"


def drop_duplicates(candidates: list[Candidate], collections: tuple[str, ...]) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """One candidate per acquisition, and the others with the reason.

    The newest processing wins: highest baseline, then latest processing time, then the collection that comes first in `collections`.
    """

    def to_rank(candidate: Candidate) -> tuple[Any, ...]:
        item = candidate.scene.items[0]
        place = collections.index(item.collection) if item.collection in collections else len(collections)
        return item.processing_baseline or "", item.properties.get("generated", ""), -place, item.item

    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(_acquisition_of(candidate.scene.items[0]), []).append(candidate)
    kept, dropped = [], []
    for group in groups.values():
        *older, newest = sorted(group, key=to_rank)
        kept.append(newest)
        dropped += [(one, f"duplicate of {newest.scene.item}, {_compare_processing(one, newest)}") for one in older]
    return kept, dropped


def _compare_processing(older: Candidate, newer: Candidate) -> str:
    old, new = older.scene.items[0], newer.scene.items[0]
    for what, one, other in (
        ("baseline", old.processing_baseline, new.processing_baseline),
        ("processed", old.properties.get("generated"), new.properties.get("generated")),
        ("collection", old.collection, new.collection),
    ):
        if one != other:
            return f"{what} {one or 'not stated'} against {other or 'not stated'}"
    return "equal processing"


def _acquisition_of(item: ItemRecord) -> tuple[str, ...]:
    """What two processings of one acquisition have in common: platform, tile and start of sensing, to the second."""
    name = SENTINEL1_NAME.match(item.item)
    if name:
        return item.sensor, name[1]
    sensed = SENSED.search(item.properties.get("datastrip", ""))
    moment = sensed[1] if sensed else item.time[:19]
    return item.sensor, item.properties.get("platform", ""), item.properties.get("tile", ""), moment


def choose_triplets(optical: Iterable[Candidate], sar: Iterable[Candidate], settings: QuerySettings) -> tuple[list[Triplet], list[Refused]]:
    """For each cloudy scene the nearest clear and the nearest SAR scene within the limits, in order of time; and all that is not used.

    With `max_pairs` the triplets with the smallest gaps stay. Equal gaps go to the earlier scene.
    """
    (cloudy, clear), refused = _split_by_cover(optical, settings)
    radar = _in_order(sar)
    found = [_find_partners(one, (clear, radar), settings) for one in cloudy]
    chosen, beyond = _keep_smallest([result for result in found if isinstance(result, Triplet)], settings.max_pairs)
    alone = [result for result in found if isinstance(result, Refused)]
    return chosen, [*refused, *alone, *beyond, *_refuse_unused(chosen, (cloudy, clear, radar), settings)]


def _split_by_cover(optical: Iterable[Candidate], settings: QuerySettings) -> tuple[tuple[list[Candidate], list[Candidate]], list[Refused]]:
    """Inputs and targets by cloud cover, in order of time; a scene can be both. And those that are neither."""
    (low, high), most = settings.cloudy_cover_pct, settings.clear_cover_pct
    cloudy, clear, refused = [], [], []
    for one in _in_order(optical):
        cover = one.scene.cloud_cover_pct
        if cover is None:
            refused.append(refuse(one, "cloudy", "the catalogue states no cloud cover", Cause.COVER))
            continue
        if low <= cover <= high:
            cloudy.append(one)
        if cover <= most:
            clear.append(one)
        elif not low <= cover <= high:
            reason = f"cloud cover {cover:.1f} %, needed {low:g} to {high:g} % as input or at most {most:g} % as target"
            refused.append(refuse(one, "cloudy", reason, Cause.COVER))
    return (cloudy, clear), refused


def _in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (candidate.moment, candidate.scene.id))


def _gap_days(cloudy: Candidate, other: Candidate) -> float:
    return (other.moment - cloudy.moment).total_seconds() / DAY_S


def _find_partners(cloudy: Candidate, others: tuple[list[Candidate], list[Candidate]], settings: QuerySettings) -> Triplet | Refused:
    """The triplet of a cloudy scene with the nearest of the clear and of the SAR scenes, or why there is none."""
    clear, sar = (_find_nearest(cloudy, candidates) for candidates in others)
    if clear is None or abs(_gap_days(cloudy, clear)) > settings.max_gap_clear_days:
        return _refuse_alone(cloudy, clear, f"clear scene within {settings.max_gap_clear_days:g} days", Cause.CLEAR_GAP)
    if sar is None or abs(_gap_days(cloudy, sar)) > settings.max_gap_sar_days:
        return _refuse_alone(cloudy, sar, f"SAR scene within {settings.max_gap_sar_days:g} days", Cause.SAR_GAP)
    return Triplet(cloudy, clear, sar)


def _refuse_alone(cloudy: Candidate, nearest: Candidate | None, needed: str, cause: Cause) -> Refused:
    seen = "there is none" if nearest is None else f"the nearest, {nearest.scene.item}, is {abs(_gap_days(cloudy, nearest)):.2f} days away"
    return refuse(cloudy, "cloudy", f"needs a {needed}: {seen}", cause)


def _find_nearest(cloudy: Candidate, candidates: list[Candidate]) -> Candidate | None:
    """The candidate nearest in time to the cloudy scene, never the scene itself."""
    others = [candidate for candidate in candidates if candidate.scene.id != cloudy.scene.id]
    return min(others, key=lambda candidate: abs(_gap_days(cloudy, candidate)), default=None)


def _keep_smallest(triplets: list[Triplet], count: int | None) -> tuple[list[Triplet], list[Refused]]:
    ranked = sorted(triplets, key=lambda triplet: (triplet.gap_days, triplet.cloudy.moment, triplet.cloudy.scene.id))
    kept = {triplet.cloudy.scene.id for triplet in ranked[:count]}
    refused = [
        refuse(t.cloudy, "cloudy", f"rank {rank} by time gaps ({t.gap_days:.2f} days in all), max_pairs {count}", Cause.MAX_PAIRS)
        for rank, t in enumerate(ranked, 1)
        if t.cloudy.scene.id not in kept
    ]
    return [triplet for triplet in triplets if triplet.cloudy.scene.id in kept], refused


def _refuse_unused(
    chosen: list[Triplet], candidates: tuple[list[Candidate], list[Candidate], list[Candidate]], settings: QuerySettings
) -> list[Refused]:
    """Clear and SAR scenes that no pair uses."""
    cloudy, clear, sar = candidates
    used = {part.scene.id for triplet in chosen for part in triplet}
    judged = {one.scene.id for one in cloudy}  # a scene that is both has its line as an input
    kinds: tuple[tuple[Role, list[Candidate], float], ...]
    kinds = (("clear", clear, settings.max_gap_clear_days), ("sar", sar, settings.max_gap_sar_days))
    refused = []
    for role, others, limit in kinds:
        for one in others:
            if one.scene.id in used | judged:
                continue
            refused.append(refuse(one, role, _explain_idle(one, cloudy, limit), Cause.UNUSED))
    return refused


def _explain_idle(one: Candidate, cloudy: list[Candidate], limit: float) -> str:
    gap = min((abs(_gap_days(other, one)) for other in cloudy), default=None)
    if gap is None:
        return "no pair needs it: there is no cloudy scene"
    if gap > limit:
        return f"no pair needs it: the nearest cloudy scene is {gap:.2f} days away, allowed {limit:g}"
    return f"no pair needs it: each cloudy scene within {limit:g} days has a nearer one or was refused"


def to_pairs(triplets: list[Triplet]) -> tuple[Pair, ...]:
    """The triplets as pairs named by the day of the cloudy scene; a further one of the same day gets `-2`, `-3`, ..."""
    pairs: list[Pair] = []
    days: Counter[str] = Counter()
    for triplet in triplets:
        day = f"{triplet.cloudy.moment:%Y%m%d}"
        days[day] += 1
        pairs.append(
            Pair(
                id=day if days[day] == 1 else f"{day}-{days[day]}",
                sar=triplet.sar.scene.id,
                cloudy=triplet.cloudy.scene.id,
                clear=triplet.clear.scene.id,
                sar_gap_days=round(_gap_days(triplet.cloudy, triplet.sar), 6),
                clear_gap_days=round(_gap_days(triplet.cloudy, triplet.clear), 6),
            )
        )
    return tuple(pairs)
