"""Which scenes form pairs: for each cloudy scene, or each clear one under a simulated sky, the nearest partners within the limits.

In a series a pair also has the clear scenes before and after it.

Enters: candidates, which are scene records with the ground that they cover. Leaves: triplets, and for every candidate that is not used the
reason with the value seen and the limit. Pure, and independent of the order in which candidates come.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sereno.pipeline.acquisitions import Candidate, Cause, Refused, refuse, refuse_item
from sereno.pipeline.areas import Ground, compute_common_share
from sereno.pipeline.bands import POLARISATIONS, SCL
from sereno.pipeline.config import QuerySettings
from sereno.pipeline.pairs import AROUND, ItemRecord, Pair, Role, is_gaofen, is_sar

DAY_S: Final = 86_400.0
"""Seconds of a day."""
SHARE_ERROR: Final = 1e-6
"""Shares of ground are exact to this much: footprints are cut and joined in floating point."""
SERIES_GAP: Final = 2
"""A scene before or after a pair may be so many times `max_gap_clear_days` from its input: one step to the target, one beyond it."""
SOURCES: Final = {"scl": "of the area by SCL", "catalogue": "by the catalogue", None: ""}
"""How the source of a cloud cover is called in a reason."""


class Triplet(NamedTuple):
    """Three scenes that fit together."""

    cloudy: Candidate
    """The input."""
    clear: Candidate
    """The target, nearest in time."""
    sar: Candidate
    """The SAR scene, nearest in time."""
    sky: int | None = None
    """Number of the simulated sky where `cloudy` is the clear scene itself; None: the cloudy scene is real."""
    around: tuple[Candidate, ...] = ()
    """In a series the clear scenes before and after; else none."""

    @property
    def scenes(self) -> tuple[Candidate, Candidate, Candidate]:
        """Its three scenes; under a simulated sky two of them are one."""
        return self.cloudy, self.clear, self.sar

    @property
    def used(self) -> set[str]:
        """Ids of all its scenes."""
        return {one.scene.id for one in (*self.scenes, *self.around)}

    @property
    def gap_days(self) -> float:
        """Both time gaps together, days."""
        return abs(measure_gap_days(self.cloudy, self.clear)) + abs(measure_gap_days(self.cloudy, self.sar))


class Roles(NamedTuple):
    """Candidates by role, each in order of time; a scene can be both cloudy and clear."""

    cloudy: list[Candidate]
    """Inputs."""
    clear: list[Candidate]
    """Targets."""
    sar: list[Candidate]
    """SAR scenes."""


def find_fault(record: ItemRecord, settings: QuerySettings) -> Refused | None:
    """Why the settings refuse an item whatever its partners may be, or None: named in `exclude`, polarisation, direction, track."""
    if record.item in settings.exclude:
        return refuse_item(record, "named in pipeline.query.exclude", Cause.EXCLUDED, clear_cover_pct=settings.clear_cover_pct)
    if not is_sar(record.sensor):
        return None
    lacking = [name for name in settings.polarisations if name not in record.assets]
    if lacking:
        held = ", ".join(name for name in POLARISATIONS if name in record.assets) or "none"
        incomplete = record.properties.get("incomplete", "")
        reason = f"has no {' and no '.join(lacking)}, needed {', '.join(settings.polarisations)}; it has {held}"
        reason += f" ({incomplete})" if incomplete else ""
        return Refused((record.item,), "sar", reason, Cause.POLARISATION, "missing")
    state, orbit = record.properties.get("orbit_state", ""), record.properties.get("relative_orbit", "")
    if settings.orbit_state and state.lower() != settings.orbit_state:
        return Refused((record.item,), "sar", f"orbit state {state or 'not stated'}, needed {settings.orbit_state}", Cause.ORBIT)
    if settings.relative_orbits and orbit not in [str(wanted) for wanted in settings.relative_orbits]:
        wanted = ", ".join(map(str, settings.relative_orbits))
        return Refused((record.item,), "sar", f"relative orbit {orbit or 'not stated'}, needed {wanted}", Cause.ORBIT)
    return None


def select_polarisations(record: ItemRecord, settings: QuerySettings) -> ItemRecord:
    """A SAR item with the wanted polarisations alone, and what describes them; its facts name them in the order in which they are stored.

    So items of one overflight that hold more or less than that (SDV beside SSV) agree.
    """
    if not is_sar(record.sensor):
        return record
    wanted = tuple(dict.fromkeys(settings.polarisations))
    unwanted = set(POLARISATIONS) - set(wanted)
    assets = {name: asset for name, asset in record.assets.items() if name.rpartition("-")[2] not in unwanted}
    return record.model_copy(update={"assets": assets, "properties": {**record.properties, "polarisations": " ".join(wanted)}})


def find_lacking_bands(record: ItemRecord, held: frozenset[str], settings: QuerySettings) -> Refused | None:
    """Why an optical item is refused that lacks bands, or None: those of the settings, else those `held` by items of its product.

    It is refused here, since ingest would refuse the scene, and its pair with it. SCL may be missing.
    """
    lacking = sorted((frozenset(settings.bands) or held) - record.assets.keys() - {SCL})
    if not lacking or is_sar(record.sensor) or is_gaofen(record.sensor):  # all bands of Gaofen lie in one file
        return None
    why = (
        "needed by pipeline.query.bands"
        if settings.bands
        else "which other items have; if it is not needed, name those that are in pipeline.query.bands"
    )
    return Refused((record.item,), "cloudy", f"has no {', '.join(lacking)}, {why}", Cause.ITEM, "missing")


def select_hopeful(optical: Sequence[Candidate], sar: Sequence[Candidate], settings: QuerySettings) -> list[Candidate]:
    """The optical scenes that can still become part of a pair whatever their cloud cover is: only those are worth measuring.

    A real input needs SAR and another optical scene of its product within the limits of time; a target needs such an input. What may lie
    under a simulated sky needs SAR alone. A scene before or after a pair needs an input as near as that.
    """
    inputs = [one for one in optical if any(_is_near(one, other, settings.max_gap_sar_days) for other in sar)]
    if settings.inputs == "simulated" and not settings.series:
        return inputs
    ids, limit = {one.scene.id for one in inputs}, settings.max_gap_clear_days * (SERIES_GAP if settings.series else 1)

    def has_partner(one: Candidate) -> bool:
        others = optical if one.scene.id in ids else inputs
        return any(other.scene.sensor == one.scene.sensor and other is not one and _is_near(one, other, limit) for other in others)

    return [one for one in optical if has_partner(one) or (settings.inputs != "found" and one.scene.id in ids)]


def _is_near(one: Candidate, other: Candidate, limit_days: float) -> bool:
    return abs(measure_gap_days(one, other)) <= limit_days


def choose_triplets(
    optical: Iterable[Candidate], sar: Iterable[Candidate], *, ground: Ground, settings: QuerySettings
) -> tuple[list[Triplet], list[Refused]]:
    """What forms pairs by the settings' `inputs`, in order of time; and all that is not used.

    With `either`, skies are simulated only where no real cloudy scene forms a pair; the refusals then still say why none did.
    """
    if settings.inputs == "simulated":
        return choose_simulated(optical, sar, ground=ground, settings=settings)
    optical, sar = list(optical), list(sar)
    chosen, refused = choose_found(optical, sar, ground=ground, settings=settings)
    if chosen or settings.inputs == "found":
        return chosen, refused
    chosen, others = choose_simulated(optical, sar, ground=ground, settings=settings)
    others = [one for one in others if one.role != "cloudy"]  # of a scene that is too cloudy to be clear the first search has said why
    told = {item for one in others for item in one.items} | _list_items(chosen)
    return chosen, [*(one for one in refused if not told & set(one.items)), *others]


def choose_simulated(
    optical: Iterable[Candidate], sar: Iterable[Candidate], *, ground: Ground, settings: QuerySettings
) -> tuple[list[Triplet], list[Refused]]:
    """For each clear scene `skies` triplets with the nearest SAR scene, input and target alike; and all that is not used.

    SAR must lie within the limit of time and share `min_overlap` of the ground. With `max_pairs` every scene gets its first sky before any
    gets its second, those with the smallest gaps to SAR first.
    """
    clear, refused = _keep_clear(optical, settings)
    radar = _in_order(sar)
    found = [_find_radar(one, radar, clear, ground=ground, settings=settings) for one in clear]
    skies = [one._replace(sky=sky) for one in found if isinstance(one, Triplet) for sky in range(1, settings.skies + 1)]
    ranked = sorted(skies, key=lambda one: (one.sky, one.gap_days, one.clear.moment, one.clear.scene.id))
    kept = {(one.clear.scene.id, one.sky) for one in ranked[: settings.max_pairs]}
    chosen = [one for one in skies if (one.clear.scene.id, one.sky) in kept]
    used = {name for triplet in chosen for name in triplet.used}
    reason = f"its gap to SAR is not among the {settings.max_pairs} smallest, max_pairs {settings.max_pairs}"
    beyond = [refuse(one.clear, "clear", reason, Cause.MAX_PAIRS) for one in ranked if one.sky == 1 and one.clear.scene.id not in used]
    idle = [
        refuse(one, "sar", _explain_idle(one, clear, settings.max_gap_sar_days, "clear"), Cause.UNUSED)
        for one in radar
        if one.scene.id not in used
    ]
    return chosen, [*refused, *(one for one in found if isinstance(one, Refused)), *beyond, *idle]


def _keep_clear(optical: Iterable[Candidate], settings: QuerySettings) -> tuple[list[Candidate], list[Refused]]:
    """The scenes that a simulated sky may be laid over, in order of time, and the refusals of the others."""
    roles, unknown = _split_by_cover(optical, (), settings.model_copy(update={"cloudy_cover_pct": (0.0, 100.0)}))
    clear = {one.scene.id for one in roles.clear}
    needed = f"needed at most {settings.clear_cover_pct:g} % to lay a simulated sky over it"
    cloudy = [
        refuse(one, "cloudy", f"{_describe_cover(one)}, {needed}", Cause.CLEAR_COVER) for one in roles.cloudy if one.scene.id not in clear
    ]
    return roles.clear, [*unknown, *cloudy]


def _find_radar(
    clear: Candidate, sar: list[Candidate], targets: list[Candidate], *, ground: Ground, settings: QuerySettings
) -> Triplet | Refused:
    """A clear scene as its own input with the nearest SAR scene that shares enough ground, or why there is none.

    In a series the scenes before and after it are others of the `targets`.
    """
    near = _sort_by_gap(clear, (one for one in sar if _is_near(clear, one, settings.max_gap_sar_days)))
    if not near:
        return _refuse_alone(clear, sar, f"SAR scene within {settings.max_gap_sar_days:g} days", Cause.SAR_GAP, role="clear")
    series = _add_series([Triplet(clear, clear, one) for one in near], targets, settings)
    return series if isinstance(series, Refused) else _choose_by_ground(series, ground, settings.min_overlap)


def _add_series(triplets: list[Triplet], clear: list[Candidate], settings: QuerySettings) -> list[Triplet] | Refused:
    """Those of an input's triplets that have scenes before and after them, with these, or why none has; all if no series is asked for."""
    if not settings.series:
        return triplets
    limit_days = settings.max_gap_clear_days * SERIES_GAP
    found = [(triplet, _find_around(triplet, clear, limit_days)) for triplet in triplets]
    whole = [triplet._replace(around=around) for triplet, around in found if len(around) == len(AROUND)]
    return whole or _refuse_unframed(found, limit_days)


def _find_around(triplet: Triplet, clear: list[Candidate], limit_days: float) -> tuple[Candidate, ...]:
    """The last scene of the target's product among `clear`, in order of time, that is earlier than input and target, and the first later.

    One that is not there within the limit is left out.
    """
    first, last = sorted((triplet.cloudy.moment, triplet.clear.moment))
    near = [one for one in clear if one.scene.sensor == triplet.clear.scene.sensor and _is_near(triplet.cloudy, one, limit_days)]
    return (*[one for one in near if one.moment < first][-1:], *[one for one in near if one.moment > last][:1])


def _refuse_unframed(found: list[tuple[Triplet, tuple[Candidate, ...]]], limit_days: float) -> Refused:
    """The refusal of an input none of whose triplets has clear scenes before and after it; the reason tells of the nearest target."""
    nearest, around = found[0]
    is_real = nearest.cloudy is not nearest.clear
    lacking = "before and none after" if not around else "after" if around[0].moment < nearest.cloudy.moment else "before"
    others = "; no other target has both either" if len({triplet.clear.scene.id for triplet, _ in found}) > 1 else ""
    what = f"input and target {nearest.clear.scene.item}" if is_real else "it"
    reason = f"needs a clear scene before and one after {what}, each within {limit_days:g} days: there is none {lacking}{others}"
    return refuse(nearest.cloudy, "cloudy" if is_real else "clear", reason, Cause.SERIES)


def _list_items(triplets: Iterable[Triplet]) -> set[str]:
    return {item.item for triplet in triplets for one in (*triplet.scenes, *triplet.around) for item in one.scene.items}


def choose_found(
    optical: Iterable[Candidate], sar: Iterable[Candidate], *, ground: Ground, settings: QuerySettings
) -> tuple[list[Triplet], list[Refused]]:
    """For each cloudy scene the nearest clear and SAR scene within the limits, in order of time; and all that is not used.

    The nearest are those with the smallest gaps together among those that share `min_overlap` of the ground with it, all three: only there
    can patches be. With `max_pairs` the triplets with the smallest gaps stay. Equal gaps go to the earlier scene.
    """
    roles, refused = _split_by_cover(optical, sar, settings)
    found = [_find_partners(one, roles, ground, settings) for one in roles.cloudy]
    chosen, beyond = _keep_smallest([result for result in found if isinstance(result, Triplet)], settings.max_pairs)
    alone = [result for result in found if isinstance(result, Refused)]
    return chosen, [*refused, *alone, *beyond, *_refuse_unused(chosen, roles, settings)]


def _split_by_cover(optical: Iterable[Candidate], sar: Iterable[Candidate], settings: QuerySettings) -> tuple[Roles, list[Refused]]:
    """The candidates by role, optical ones by their cloud cover, and the refusals of those that are neither input nor target."""
    (low, high), most = settings.cloudy_cover_pct, settings.clear_cover_pct
    cloudy, clear, refused = [], [], []
    for one in _in_order(optical):
        cover = one.scene.cloud_cover_pct
        if cover is None:
            refused.append(
                refuse(one, "cloudy", "nothing tells its cloud cover: neither the catalogue nor an SCL that can be read", Cause.COVER)
            )
            continue
        if low <= cover <= high:
            cloudy.append(one)
        if cover <= most:
            clear.append(one)
        elif not low <= cover <= high:
            reason = f"{_describe_cover(one)}, needed {low:g} to {high:g} % as input or at most {most:g} % as target"
            refused.append(refuse(one, "cloudy", reason, Cause.COVER))
    return Roles(cloudy, clear, _in_order(sar)), refused


def _describe_cover(one: Candidate) -> str:
    """The cloud cover of a scene that has one, and who says so."""
    return f"cloud cover {one.scene.cloud_cover_pct:.1f} % {SOURCES[one.scene.cover_source]}".rstrip()


def _in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (candidate.moment, candidate.scene.id))


def measure_gap_days(one: Candidate, other: Candidate) -> float:
    """Time of `other` minus time of `one`, days."""
    return (other.moment - one.moment).total_seconds() / DAY_S


def _find_partners(cloudy: Candidate, roles: Roles, ground: Ground, settings: QuerySettings) -> Triplet | Refused:
    """The triplet of a cloudy scene with the nearest clear scene of its product and the nearest SAR scene, or why there is none."""
    clear = [one for one in roles.clear if one.scene.sensor == cloudy.scene.sensor and one.scene.id != cloudy.scene.id]
    near_clear = [one for one in clear if _is_near(cloudy, one, settings.max_gap_clear_days)]
    if not near_clear:
        return _refuse_alone(cloudy, clear, f"clear scene within {settings.max_gap_clear_days:g} days", Cause.CLEAR_GAP)
    near_sar = [one for one in roles.sar if _is_near(cloudy, one, settings.max_gap_sar_days)]
    if not near_sar:
        return _refuse_alone(cloudy, roles.sar, f"SAR scene within {settings.max_gap_sar_days:g} days", Cause.SAR_GAP)
    pairs = itertools.product(_sort_by_gap(cloudy, near_clear), _sort_by_gap(cloudy, near_sar))
    triplets = sorted((Triplet(cloudy, *pair) for pair in pairs), key=lambda triplet: triplet.gap_days)
    series = _add_series(triplets, roles.clear, settings)
    return series if isinstance(series, Refused) else _choose_by_ground(series, ground, settings.min_overlap)


def _choose_by_ground(triplets: list[Triplet], ground: Ground, min_overlap: float) -> Triplet | Refused:
    """The first triplet whose scenes share enough ground, or why there is none."""
    best, most = triplets[0], -1.0
    for triplet in triplets:
        share = compute_common_share((part.covered for part in triplet.scenes), ground)
        if share >= min_overlap - SHARE_ERROR:
            return triplet
        best, most = (triplet, share) if share > most + SHARE_ERROR else (best, most)
    is_real = best.cloudy is not best.clear
    partners = f"{f'the clear scene {best.clear.scene.item} and ' if is_real else ''}the SAR scene {best.sar.scene.item}"
    reason = (
        f"shares {most:.1%} of the area with {partners}, "
        f"needed {min_overlap:.1%} of the {'three' if is_real else 'two'}; no others within the limits of time share more"
    )
    return refuse(best.cloudy, "cloudy" if is_real else "clear", reason, Cause.OVERLAP)


def _refuse_alone(one: Candidate, others: list[Candidate], needed: str, cause: Cause, *, role: Role = "cloudy") -> Refused:
    """The refusal of an input that has no partner; a clear scene that was to be its own input has the role `clear`."""
    nearest = next(iter(_sort_by_gap(one, others)), None)
    seen = (
        "there is none" if nearest is None else f"the nearest, {nearest.scene.item}, is {abs(measure_gap_days(one, nearest)):.2f} days away"
    )
    return refuse(one, role, f"needs a {needed}: {seen}", cause)


def _sort_by_gap(one: Candidate, others: Iterable[Candidate]) -> list[Candidate]:
    return sorted(others, key=lambda other: abs(measure_gap_days(one, other)))


def _keep_smallest(triplets: list[Triplet], count: int | None) -> tuple[list[Triplet], list[Refused]]:
    ranked = sorted(triplets, key=lambda triplet: (triplet.gap_days, triplet.cloudy.moment, triplet.cloudy.scene.id))
    kept = {triplet.cloudy.scene.id for triplet in ranked[:count]}
    refused = [
        refuse(t.cloudy, "cloudy", f"rank {rank} by time gaps ({t.gap_days:.2f} days in all), max_pairs {count}", Cause.MAX_PAIRS)
        for rank, t in enumerate(ranked, 1)
        if t.cloudy.scene.id not in kept
    ]
    return [triplet for triplet in triplets if triplet.cloudy.scene.id in kept], refused


def _refuse_unused(chosen: list[Triplet], roles: Roles, settings: QuerySettings) -> list[Refused]:
    """Clear and SAR scenes that no pair uses."""
    used = {name for triplet in chosen for name in triplet.used}
    judged = {one.scene.id for one in roles.cloudy}  # a scene that is both has its line as an input
    kinds: tuple[tuple[Role, list[Candidate], float], ...]
    kinds = (("clear", roles.clear, settings.max_gap_clear_days), ("sar", roles.sar, settings.max_gap_sar_days))
    return [
        refuse(one, role, _explain_idle(one, roles.cloudy, limit, "cloudy"), Cause.UNUSED)
        for role, others, limit in kinds
        for one in others
        if one.scene.id not in used | judged
    ]


def _explain_idle(one: Candidate, inputs: list[Candidate], limit: float, kind: str) -> str:
    """Why no input, scenes of one `kind`, took a partner."""
    gap = min((abs(measure_gap_days(other, one)) for other in inputs), default=None)
    if gap is None:
        return f"no pair needs it: there is no {kind} scene"
    if gap > limit:
        return f"no pair needs it: the nearest {kind} scene is {gap:.2f} days away, allowed {limit:g}"
    return f"no pair needs it: each {kind} scene within {limit:g} days took another one or was refused"


def to_pairs(triplets: Iterable[Triplet]) -> tuple[Pair, ...]:
    """The triplets as pairs named by the day of the input: `20210603`; the skies of one clear scene are `20210603-sky1`, `-sky2`, ...

    Further scenes of the same day are `20210603-2`, `-3`, ..., and so are their skies.
    """
    days: Counter[str] = Counter()
    names: dict[tuple[str, ...], str] = {}
    pairs = []
    for triplet in triplets:
        key, day = tuple(part.scene.id for part in triplet.scenes), f"{triplet.cloudy.moment:%Y%m%d}"
        if triplet.sky is None or key not in names:
            days[day] += 1
            names[key] = day if days[day] == 1 else f"{day}-{days[day]}"
        pairs.append(
            Pair(
                id=names[key] if triplet.sky is None else f"{names[key]}-sky{triplet.sky}",
                sar=triplet.sar.scene.id,
                cloudy=triplet.cloudy.scene.id,
                clear=triplet.clear.scene.id,
                sar_gap_days=round(measure_gap_days(triplet.cloudy, triplet.sar), 6),
                clear_gap_days=round(measure_gap_days(triplet.cloudy, triplet.clear), 6),
                sky=triplet.sky,
                **_name_around(triplet),
            )
        )
    return tuple(pairs)


def _name_around(triplet: Triplet) -> dict[str, Any]:
    """The fields of a pair that a series fills."""
    named = {role: one.scene.id for role, one in zip(AROUND, triplet.around, strict=False)}
    gaps = {f"{role}_gap_days": round(measure_gap_days(triplet.cloudy, one), 6) for role, one in zip(AROUND, triplet.around, strict=False)}
    return {**named, **gaps}
