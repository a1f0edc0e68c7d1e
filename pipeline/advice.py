"""Why a search led to nothing, and what to change, in one line.

What was found, and why it was refused, enters; words leave. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline.acquisitions import Cause, Refused
from sereno.pipeline.areas import Ground, to_bboxes
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.pairs import ItemRecord

Kind = Literal["optical", "sar", "coarse"]
NAMES: Final[Mapping[Kind, str]] = {"optical": "optical", "sar": "SAR", "coarse": "coarse"}
"""The kinds in words."""
Read = tuple[ItemRecord, dict[str, Any] | None]
"""An item in our form, and the GeoJSON geometry of its footprint."""


class Aim(NamedTuple):
    """What was searched for."""

    what: str
    """In words, singular."""
    ground: Ground
    """Where."""
    settings: QuerySettings
    """How."""


def describe_failure(area: str, aim: Aim, listed: Mapping[Kind, Sequence[Read | Refused]], refused: Sequence[Refused]) -> str:
    """One line: what was found, why it was refused, what to widen."""
    counts = " and ".join(f"{len(listed[kind])} {word}" for kind, word in NAMES.items() if kind in listed)
    found = f"area {area!r}: no {aim.what} among {counts} items"
    if not refused:
        boxes = " and ".join(str([round(edge, 4) for edge in box]) for box in to_bboxes(aim.ground.geobox))
        start, end = (f"{moment:%Y-%m-%d}" if moment else "ever" for moment in aim.settings.period)
        return (
            f"{found} in {boxes} (west, south, east, north) from {start} to {end}: widen the area or start..end, and see that longitude "
            "comes before latitude"
        )
    # What was merely not needed follows from the other refusals; of two causes as frequent, a missing partner was nearer to a pair.
    decisive = _select_decisive(refused, listed)
    causes: Counter[Cause] = Counter(entry.cause for entry in decisive)
    partner = (Cause.CLEAR_GAP, Cause.SAR_GAP, Cause.SERIES, Cause.COARSE_GAP)
    cause = max(causes, key=lambda cause: (cause is not Cause.UNUSED, causes[cause], cause in partner))
    example = next(f"{'+'.join(entry.items)}: {entry.reason}" for entry in decisive if entry.cause is cause)
    if cause in (Cause.OVERLAP, Cause.ELSEWHERE):
        example += _tell_places(aim.ground, listed)
    is_clear_left = (
        "sar" in listed
        and aim.settings.inputs == "found"
        and any(entry.role == "clear" and entry.cause is Cause.UNUSED for entry in refused)
    )
    way_out = "; or set pipeline.query.inputs to simulated: clouds are then laid over the clear scenes" if is_clear_left else ""
    advice = cause.value
    if "sar" not in listed and cause is Cause.CLEAR_GAP:
        advice = f"lengthen start..end, or {advice}"
    if aim.settings.table is not None and cause is Cause.UNUSED:
        advice = "write the names of the products into pipeline.query.table as they were delivered"
    return f"{found}; {causes[cause]} refused for one cause, for example {example}; {advice}{way_out}"


def _select_decisive(refused: Sequence[Refused], listed: Mapping[Kind, Sequence[Read | Refused]]) -> Sequence[Refused]:
    """The refusals that say why there is no pair: those of SAR if none of it could be used whatever its partners, else all.

    Without any SAR each optical scene is refused for want of it, which hides why there is none; likewise coarse images of a group. Then
    those decide that lack a coarse image, for want of which others have no neighbours in time, then those that lack these: that other dates
    are cloudy is usual.
    """
    if "sar" not in listed:
        coarse = {name for entry in listed.get("coarse", ()) for name in (entry.items if isinstance(entry, Refused) else (entry[0].item,))}
        own = [entry for entry in refused if coarse.issuperset(entry.items) and entry.cause is not Cause.UNUSED]
        if coarse and {name for entry in own for name in entry.items} == coarse:
            return own
        lacking = ([entry for entry in refused if entry.cause is cause] for cause in (Cause.COARSE_GAP, Cause.CLEAR_GAP))
        return next(filter(None, lacking), refused)
    n_sar = len(listed["sar"])
    partners = (Cause.UNUSED, Cause.SAR_GAP, Cause.CLEAR_GAP, Cause.MAX_PAIRS)
    own = [entry for entry in refused if entry.role == "sar" and entry.cause not in partners]
    return own if n_sar and len({item for entry in own for item in entry.items}) == n_sar else refused


def _tell_places(ground: Ground, listed: Mapping[Kind, Sequence[Read | Refused]]) -> str:
    """Where the area and what was found lie, in words, for a message: longitude and latitude may be exchanged, or the area forgotten."""
    area = " and ".join(str([round(edge, 3) for edge in box]) for box in to_bboxes(ground.geobox))
    words = [f" (west, south, east, north of the area: {area}"]
    for kind, found in listed.items():
        boxes = [entry[0].bbox for entry in found if not isinstance(entry, Refused)]
        if boxes:
            west, south, east, north = zip(*boxes, strict=True)
            words.append(f"{kind}: {[round(edge, 3) for edge in (min(west), min(south), max(east), max(north))]}")
    return ", ".join(words) + ")"
