"""Which scenes form the groups of tasks other than cloud removal, and on which grid: one row per task.

Enters: clear optical candidates and the settings of the search. Leaves: groups, the scenes that they name, and for every candidate that is
not used the reason. Pure, and independent of the order in which candidates come.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.acquisitions import Candidate, Cause, Refused, refuse
from sereno.pipeline.areas import Ground, to_ground
from sereno.pipeline.bands import GAOFEN_PMS_BANDS, PAN, SENTINEL2_BANDS
from sereno.pipeline.config import FUSION_RATIO, WHOLE, Area, QuerySettings, TaskName
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.groups import to_fine_grid
from sereno.pipeline.imagers import find_coarse_m, select_bands
from sereno.pipeline.pairing import DAY_S, SHARE_ERROR, measure_gap_days
from sereno.pipeline.pairs import Group, SceneRecord, Sensor


class Camera(NamedTuple):
    """What of one product is fine and what is coarse."""

    guide: tuple[str, ...]
    """Fine bands, which guide."""
    coarse: tuple[str, ...]
    """Coarse bands, which are sharpened."""


MSI: Final = Camera(
    tuple(band.name for band in SENTINEL2_BANDS if band.gsd_m == 10), tuple(band.name for band in SENTINEL2_BANDS if band.gsd_m == 20)
)
"""The camera of Sentinel-2: 10 and 20 m."""
CAMERAS: Final[Mapping[Sensor, Camera]] = {
    "sentinel2-l2a": MSI,
    "sentinel2-l1c": MSI,
    "gaofen-pms": Camera((PAN,), tuple(band.name for band in GAOFEN_PMS_BANDS)),
}
"""Products that hold fine and coarse bands: 10 and 20 m of Sentinel-2, 2 and 8 m of Gaofen-6 PMS."""
MS_PIXEL_M: Final = {"gaofen": 8.0}
"""Pixel of multispectral bands by `query.source`; where it is not named that of Sentinel-2, `MSI_PIXEL_M`."""
MSI_PIXEL_M: Final = 20.0
"""Pixel of the bands of Sentinel-2 that are sharpened."""
GAP_ERROR_DAYS: Final = 1e-6
"""Gaps are exact to this much."""


class Grouped(NamedTuple):
    """What the candidates of an area became."""

    groups: tuple[Group, ...]
    """In order of time."""
    scenes: dict[str, SceneRecord]
    """All that they name, by id."""
    refused: list[Refused]
    """Candidates that no group uses."""


def find_ratio(task: TaskName, settings: QuerySettings) -> int:
    """Pixels of the grid along each side of a coarse pixel.

    Raises:
        ConfigError: it is not whole, or nothing is coarser than the grid.
    """
    if task == "snapshot-reconstruction":
        return 1
    if task == "pansharpening":
        own_m = MS_PIXEL_M.get(settings.source, MSI_PIXEL_M)
    else:
        own_m = find_coarse_m(settings.coarse_collections) or FUSION_RATIO * settings.resolution_m
    coarse_m = settings.coarse_m or own_m
    ratio = coarse_m / settings.resolution_m
    if abs(ratio - round(ratio)) > WHOLE or round(ratio) < 2:
        raise ConfigError(
            f"task {task}: coarse pixels of {coarse_m:g} m are {ratio:.4g} pixels of the grid along each side, not a whole number of 2 or "
            f"more: set pipeline.query.resolution_m (seen {settings.resolution_m:g}) to a whole part of {coarse_m:g}, or coarse_m"
        )
    return round(ratio)


def to_fine_ground(area: Area, settings: QuerySettings, ratio: int) -> Ground:
    """The fine grid of an area, whose edges are edges of coarse pixels too, `origin_m` off their multiples.

    Raises:
        ConfigError: as `to_ground`, or bounds in metres are not on whole coarse pixels of the CRS.
    """
    coarse_m = settings.resolution_m * ratio
    ground = to_ground(area, coarse_m)
    box = ground.geobox
    if area.bounds_m is None:  # those that are stated are taken as they are
        box = GeoBox(box.shape, Affine.translation(settings.origin_m, settings.origin_m) * box.transform, box.crs)
    edges = {"left": (box.transform.c - settings.origin_m) / coarse_m, "top": (box.transform.f - settings.origin_m) / coarse_m}
    off = [name for name, place in edges.items() if abs(place - round(place)) > WHOLE]
    if off:
        plus = f" plus origin_m {settings.origin_m:g}" if settings.origin_m else ""
        raise ConfigError(
            f"bounds_m {area.bounds_m}: {' and '.join(off)} must be multiples of {coarse_m:g} m{plus}, or coarse pixels would be "
            "interpolated"
        )
    return ground._replace(geobox=to_fine_grid(box, ratio))


def keep_clear(candidates: Iterable[Candidate], settings: QuerySettings) -> tuple[list[Candidate], list[Refused]]:
    """Candidates that are clear enough, in order of time, and the refusals of the others."""
    clear, refused = [], []
    for one in sorted(candidates, key=lambda candidate: (candidate.moment, candidate.scene.id)):
        cover, most = one.scene.cloud_cover_pct, settings.clear_cover_pct
        if cover is None:
            refused.append(
                refuse(one, "clear", "nothing tells its cloud cover: neither the catalogue nor an SCL that can be read", Cause.COVER)
            )
        elif cover > most:
            refused.append(refuse(one, "cloudy", f"cloud cover {cover:.1f} %, needed at most {most:g} %", Cause.CLEAR_COVER))
        else:
            clear.append(one)
    return clear, refused


def group_products(candidates: Sequence[Candidate], settings: QuerySettings) -> Grouped:
    """For pan-sharpening, each clear product with fine and coarse bands as a group of two scenes, `pan` and `ms`.

    With `max_pairs` the clearest ones stay.
    """
    ratio = find_ratio("pansharpening", settings)
    clear, refused = keep_clear(candidates, settings)
    fit, unfit = _split(clear, lambda one: _find_lack(one, settings))
    kept, beyond = _keep_clearest(fit, settings.max_pairs)
    days: Counter[str] = Counter()
    groups: list[Group] = []
    scenes: dict[str, SceneRecord] = {}
    for one in kept:
        guide, coarse = _choose_bands(one, settings)
        pan = one.scene.model_copy(update={"id": f"{one.scene.id}-pan", "bands": guide})
        ms = one.scene.model_copy(update={"id": f"{one.scene.id}-ms", "bands": coarse, "zoom": ratio})
        scenes |= {scene.id: scene for scene in (pan, ms)}
        groups.append(Group(id=_name_group(one, days), scenes={"pan": pan.id, "ms": ms.id}))
    return Grouped(tuple(groups), scenes, [*refused, *unfit, *beyond])


def _split(candidates: Iterable[Candidate], find_lack: Callable[[Candidate], str]) -> tuple[list[Candidate], list[Refused]]:
    fit, unfit = [], []
    for one in candidates:
        lack = find_lack(one)
        if lack:
            unfit.append(refuse(one, "clear", lack, Cause.ITEM))
        else:
            fit.append(one)
    return fit, unfit


def _find_lack(one: Candidate, settings: QuerySettings) -> str:
    """Why a product cannot be sharpened, in words; empty if it can."""
    if one.scene.sensor not in CAMERAS:
        return f"{one.scene.sensor} has no finer bands that others could be sharpened with; those that have are {', '.join(CAMERAS)}"
    guide, coarse = _choose_bands(one, settings)
    if not guide or not coarse:
        camera = CAMERAS[one.scene.sensor]
        return f"pipeline.query.bands leaves no {'coarse' if guide else 'fine'} band of {', '.join((*camera.guide, *camera.coarse))}"
    lacking = [item.item for item in one.scene.items if PAN in guide and PAN not in item.assets]
    return f"{', '.join(lacking)} holds no panchromatic image with coefficients (.rpb) of its own" if lacking else ""


def _choose_bands(one: Candidate, settings: QuerySettings) -> Camera:
    camera = CAMERAS[one.scene.sensor]
    return Camera(*(tuple(name for name in names if not settings.bands or name in settings.bands) for names in camera))


def _keep_clearest(candidates: list[Candidate], count: int | None) -> tuple[list[Candidate], list[Refused]]:
    ranked = sorted(candidates, key=lambda one: (one.scene.cloud_cover_pct, one.moment, one.scene.id))
    kept = {one.scene.id for one in ranked[:count]}
    reason = f"its cloud cover is not among the {count} smallest, max_pairs {count}"
    beyond = [refuse(one, "clear", reason, Cause.MAX_PAIRS) for one in ranked if one.scene.id not in kept]
    return [one for one in candidates if one.scene.id in kept], beyond


def _name_group(one: Candidate, days: Counter[str]) -> str:
    """`20210603`; further ones of that day are `20210603-2`, `-3`, ..."""
    day = f"{one.moment:%Y%m%d}"
    days[day] += 1
    return day if days[day] == 1 else f"{day}-{days[day]}"


def group_series(candidates: Sequence[Candidate], settings: QuerySettings) -> Grouped:
    """For fusion, every three clear dates of one product that follow each other within `max_gap_clear_days` each as a group.

    The date in the middle is the target. Coarse images are averages of the fine ones. With `max_pairs` the shortest series stay.
    """
    ratio = find_ratio("spatiotemporal-fusion", settings)
    clear, refused = keep_clear(candidates, settings)
    limit, kept = timedelta(days=settings.max_gap_clear_days), _choose_series(clear, settings)
    days: Counter[str] = Counter()
    scenes: dict[str, SceneRecord] = {}
    groups = []
    for series in kept:
        roles: dict[str, str] = {}
        for number, one in enumerate(series, 1):
            coarse = one.scene.model_copy(update={"id": f"{one.scene.id}-coarse", "zoom": ratio, "averaged": True})
            scenes |= {one.scene.id: one.scene, coarse.id: coarse}
            roles |= {f"fine-{number}": one.scene.id, f"coarse-{number}": coarse.id}
        gaps = _list_gaps({f"fine-{number}": one for number, one in enumerate(series, 1)})
        groups.append(Group(id=_name_group(series[1], days), scenes=roles, gaps_days=gaps))
    return Grouped(tuple(groups), scenes, [*refused, *_refuse_alone(clear, scenes, limit, settings.max_pairs)])


def _list_gaps(roles: Mapping[str, Candidate]) -> dict[str, float]:
    """Days from the first fine date to the scene of each role."""
    return {role: round(measure_gap_days(roles["fine-1"], one), 6) for role, one in sorted(roles.items())}


class Dated(NamedTuple):
    """A clear fine date with its coarse image."""

    fine: Candidate
    """The fine scene."""
    coarse: Candidate
    """The coarse one nearest in time."""


def group_two_sensors(fine: Sequence[Candidate], coarse: Sequence[Candidate], settings: QuerySettings) -> Grouped:
    """For fusion of two sensors, series as `group_series` forms them, of those dates that have a coarse image of their own.

    That of a date is the nearest within `max_gap_coarse_days` that is clear by its own quality bits, where it has any, and shares
    `min_overlap` of the ground; of several dates with one coarse image, that of a composite for example, the nearest one has it. All coarse
    images are of one product: of several the one with most series, the first by name if they are level.
    """
    clear, refused = keep_clear(fine, settings)
    usable, cloudy = _drop_cloudy(coarse, settings)
    ratio, sensors = find_ratio("spatiotemporal-fusion", settings), sorted({one.scene.sensor for one in usable})
    tried = [_pair_dates(clear, [one for one in usable if one.scene.sensor == sensor], settings) for sensor in sensors]
    tried = tried or [_pair_dates(clear, [], settings)]
    dated, alone = max(tried, key=lambda found: len(_find_series(found[0], settings)))
    partners = {one.fine.scene.id: one.coarse for one in dated}
    kept = _find_series(dated, settings)
    days: Counter[str] = Counter()
    scenes: dict[str, SceneRecord] = {}
    groups = []
    for series in kept:
        roles: dict[str, Candidate] = {}
        for number, one in enumerate(series, 1):
            roles |= {f"fine-{number}": one, f"coarse-{number}": partners[one.scene.id]}
        facts = {"zoom": ratio, "averaged": True, "clear_share": settings.coarse_clear_share}
        scenes |= {
            one.scene.id: one.scene if role.startswith("fine") else one.scene.model_copy(update=facts) for role, one in roles.items()
        }
        names = {role: one.scene.id for role, one in roles.items()}
        groups.append(Group(id=_name_group(series[1], days), scenes=names, gaps_days=_list_gaps(roles)))
    limit, with_coarse = timedelta(days=settings.max_gap_clear_days), [one.fine for one in dated]
    idle = [refuse(one, "clear", "no series needs it", Cause.UNUSED) for one in usable if one.scene.id not in scenes]
    unused = [*alone, *_refuse_alone(with_coarse, scenes, limit, settings.max_pairs), *idle]
    return Grouped(tuple(groups), scenes, [*refused, *cloudy, *unused])


def _drop_cloudy(coarse: Iterable[Candidate], settings: QuerySettings) -> tuple[list[Candidate], list[Refused]]:
    """Coarse scenes that are clear enough, or of which nothing is known: then the fine image of the day tells. In order of time."""
    ordered, most = sorted(coarse, key=lambda one: (one.moment, one.scene.id)), settings.clear_cover_pct
    cloudy = [one for one in ordered if (one.scene.cloud_cover_pct or 0) > most]
    words = [f"cloud cover {one.scene.cloud_cover_pct:.1f} %, needed at most {most:g} %" for one in cloudy]
    refused = [refuse(one, "cloudy", reason, Cause.CLEAR_COVER) for one, reason in zip(cloudy, words, strict=True)]
    return [one for one in ordered if one not in cloudy], refused


def _pair_dates(clear: Sequence[Candidate], coarse: Sequence[Candidate], settings: QuerySettings) -> tuple[list[Dated], list[Refused]]:
    """The fine dates that have a coarse image of their own, and the refusals of the others."""
    best: dict[str, Dated] = {}
    alone: list[Refused] = []
    for one in clear:
        found = _find_nearest(one, coarse, settings)
        if isinstance(found, Refused):
            alone.append(found)
            continue
        key, new = found.coarse.scene.id, found
        if key in best:
            new, other = sorted((best[key], found), key=lambda dated: (abs(dated.fine.moment - dated.coarse.moment), dated.fine.moment))
            reason = f"its coarse image {new.coarse.scene.item} is nearer to the fine one of {new.fine.moment:%Y-%m-%d}"
            alone.append(refuse(other.fine, "clear", reason, Cause.COARSE_GAP))
        best[key] = new
    return sorted(best.values(), key=lambda dated: (dated.fine.moment, dated.fine.scene.id)), alone


def _find_nearest(fine: Candidate, coarse: Sequence[Candidate], settings: QuerySettings) -> Dated | Refused:
    ranked = sorted(coarse, key=lambda one: (_measure_gap(fine, one), abs(one.moment - fine.moment), one.scene.id))
    near = [one for one in ranked if _measure_gap(fine, one) <= settings.max_gap_coarse_days + GAP_ERROR_DAYS]
    chosen = next((one for one in near if _measure_common(fine, one) >= settings.min_overlap - SHARE_ERROR), None)
    if chosen is not None:
        return Dated(fine, chosen)
    seen = "there is none"
    if ranked:
        seen = f"the nearest, {ranked[0].scene.item}, is {_measure_gap(fine, ranked[0]):.2f} days away"
    if near:
        seen = f"the nearest, {near[0].scene.item}, shares {_measure_common(fine, near[0]):.1%} of the fine one's ground with it"
    reason = f"needs a clear coarse image within {settings.max_gap_coarse_days:g} days: {seen}"
    return refuse(fine, "clear", reason, Cause.COARSE_GAP)


def _measure_gap(fine: Candidate, coarse: Candidate) -> float:
    """Days between a fine image and a coarse one; to a composite of several days 0 within the period that it states."""
    period = coarse.scene.items[0].properties.get("period")
    first, last = (datetime.fromisoformat(end) for end in period.split("/")) if period else (coarse.moment, coarse.moment)
    return max((first - fine.moment).total_seconds(), (fine.moment - last).total_seconds(), 0.0) / DAY_S


def _measure_common(fine: Candidate, coarse: Candidate) -> float:
    """Share of the fine image's ground that the coarse one covers."""
    return float(fine.covered.intersection(coarse.covered).area / fine.covered.area)


def _find_series(dated: Sequence[Dated], settings: QuerySettings) -> list[Series]:
    return _choose_series([one.fine for one in dated], settings)


Series = tuple[Candidate, Candidate, Candidate]


def _choose_series(clear: Sequence[Candidate], settings: QuerySettings) -> list[Series]:
    """All series of the clear dates, or with `max_pairs` the shortest ones, in order of the date in the middle."""
    limit = timedelta(days=settings.max_gap_clear_days)
    found = [series for sensor in sorted({one.scene.sensor for one in clear}) for series in _list_series(clear, sensor, limit)]
    ranked = sorted(found, key=lambda series: (series[2].moment - series[0].moment, series[1].moment, series[1].scene.id))
    return sorted(ranked[: settings.max_pairs], key=lambda series: (series[1].moment, series[1].scene.id))


def _list_series(clear: Sequence[Candidate], sensor: str, limit: timedelta) -> list[Series]:
    """Three dates of one sensor that follow each other, in order of time."""
    own = [one for one in clear if one.scene.sensor == sensor]
    return [
        (first, middle, last)
        for first, middle, last in zip(own, own[1:], own[2:], strict=False)
        if max(middle.moment - first.moment, last.moment - middle.moment) <= limit
    ]


def _refuse_alone(clear: list[Candidate], used: Mapping[str, SceneRecord], limit: timedelta, count: int | None) -> list[Refused]:
    """Clear dates that are in no series."""
    most = f", or a shorter series was taken, max_pairs {count}" if count is not None and used else ""
    gap = f"each at most {limit / timedelta(days=1):g} days after the one before"
    reason = f"no series of three clear dates of one product holds it, {gap}{most}"
    return [refuse(one, "clear", reason, Cause.CLEAR_GAP) for one in clear if one.scene.id not in used]


def check_common_bands(fine: Iterable[Sensor], coarse: Iterable[Sensor], settings: QuerySettings) -> None:
    """Refuse a search of two sensors whose images would not have the same bands.

    Raises:
        ConfigError: a coarse product has none of the bands of a fine one, or which ones they share is left open although they differ.
    """
    named = ", ".join(settings.coarse_collections)
    for one, other in itertools.product(sorted(set(fine)), sorted(set(coarse))):
        common = [band for band in select_bands(one) if band in select_bands(other)]
        if not common:
            raise ConfigError(
                f"pipeline.query.coarse_collections {named}: {other} has no band in common with {one}, which has "
                f"{', '.join(select_bands(one)) or 'none with reflectance of the ground'}: name a collection of reflectance"
            )
        if not settings.bands and set(select_bands(one)) != set(select_bands(other)):
            raise ConfigError(
                f"pipeline.query.bands is empty, but {one} and {other} do not have the same bands: name there and in pipeline.ingest.bands "
                f"those of both: {', '.join(common)}"
            )


Grouper = Callable[[Sequence[Candidate], QuerySettings], Grouped]
GROUPERS: Final[Mapping[TaskName, Grouper]] = {
    "pansharpening": group_products,
    "spatiotemporal-fusion": group_series,
}
"""Who forms the groups of a task."""


def find_grouper(task: TaskName) -> Grouper:
    """Who forms the groups of `task`.

    Raises:
        ConfigError: no search of scenes leads to its samples.
    """
    if task not in GROUPERS:
        raise ConfigError(
            f"pipeline.task {task}: its samples come from files, no search of scenes leads to them: set pipeline.query.source to "
            f"cubes, or the task to one that scenes are searched for: cloud-removal, {', '.join(GROUPERS)}"
        )
    return GROUPERS[task]
