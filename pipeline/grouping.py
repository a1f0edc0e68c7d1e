"""Which scenes form the groups of tasks other than cloud removal, and on which grid: one row per task.

Enters: clear optical candidates and the settings of the search. Leaves: groups, the scenes that they name, and for every candidate that is
not used the reason. Pure, and independent of the order in which candidates come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.acquisitions import Candidate, Cause, Refused, refuse
from sereno.pipeline.areas import Ground, to_ground
from sereno.pipeline.bands import GAOFEN_BANDS, SENTINEL2_BANDS
from sereno.pipeline.config import WHOLE, Area, QuerySettings, TaskName
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.pairs import Group, SceneRecord, Sensor

DAY_S: Final = 86_400.0
"""Seconds of a day."""
PAN: Final = "PAN"
"""Panchromatic band and asset of Gaofen's PMS."""


class Camera(NamedTuple):
    """What of one product is fine and what is coarse."""

    guide: tuple[str, ...]
    """Fine bands, which guide."""
    coarse: tuple[str, ...]
    """Coarse bands, which are sharpened."""


MSI: Final = Camera(
    tuple(band.name for band in SENTINEL2_BANDS if band.gsd_m == 10), tuple(band.name for band in SENTINEL2_BANDS if band.gsd_m == 20)
)
CAMERAS: Final[Mapping[Sensor, Camera]] = {
    "sentinel2-l2a": MSI,
    "sentinel2-l1c": MSI,
    "gaofen-pms": Camera((PAN,), tuple(band.name for band in GAOFEN_BANDS[:4])),
}
"""Products that hold fine and coarse bands: 10 and 20 m of Sentinel-2, 2 and 8 m of Gaofen-6 PMS."""
MS_PIXEL_M: Final = {"gaofen": 8.0}
"""Pixel of multispectral bands by `query.source`; where it is not named that of Sentinel-2, `MSI_PIXEL_M`."""
MSI_PIXEL_M: Final = 20.0
FUSION_RATIO: Final = 16
"""Fine pixels along each side of a coarse one: that of Landsat and MODIS, 30 and 480 m."""


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
    own_m = MS_PIXEL_M.get(settings.source, MSI_PIXEL_M) if task == "pansharpening" else FUSION_RATIO * settings.resolution_m
    coarse_m = settings.coarse_m or own_m
    ratio = coarse_m / settings.resolution_m
    if abs(ratio - round(ratio)) > WHOLE or round(ratio) < 2:
        raise ConfigError(
            f"task {task}: coarse pixels of {coarse_m:g} m are {ratio:.4g} pixels of the grid along each side, not a whole number of 2 or "
            f"more: set pipeline.query.resolution_m (seen {settings.resolution_m:g}) to a whole part of {coarse_m:g}"
        )
    return round(ratio)


def to_fine_ground(area: Area, settings: QuerySettings, ratio: int) -> Ground:
    """The fine grid of an area, whose edges are edges of coarse pixels too.

    Raises:
        ConfigError: as `to_ground`, or bounds in metres are not on whole coarse pixels of the CRS.
    """
    coarse_m = settings.resolution_m * ratio
    ground = to_ground(area, coarse_m)
    box = ground.geobox
    edges = {"left": box.transform.c / coarse_m, "top": box.transform.f / coarse_m}
    off = [name for name, place in edges.items() if abs(place - round(place)) > WHOLE]
    if off:
        raise ConfigError(
            f"bounds_m {area.bounds_m}: {' and '.join(off)} must be multiples of {coarse_m:g} m, or coarse pixels would be interpolated"
        )
    fine = GeoBox((box.shape.y * ratio, box.shape.x * ratio), box.transform * Affine.scale(1 / ratio), box.crs)
    return ground._replace(geobox=fine)


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
    limit = timedelta(days=settings.max_gap_clear_days)
    found = [series for sensor in sorted({one.scene.sensor for one in clear}) for series in _list_series(clear, sensor, limit)]
    ranked = sorted(found, key=lambda series: (series[2].moment - series[0].moment, series[1].moment, series[1].scene.id))
    kept = sorted(ranked[: settings.max_pairs], key=lambda series: (series[1].moment, series[1].scene.id))
    days: Counter[str] = Counter()
    scenes: dict[str, SceneRecord] = {}
    groups = []
    for series in kept:
        roles: dict[str, str] = {}
        for number, one in enumerate(series, 1):
            coarse = one.scene.model_copy(update={"id": f"{one.scene.id}-coarse", "zoom": ratio, "averaged": True})
            scenes |= {one.scene.id: one.scene, coarse.id: coarse}
            roles |= {f"fine-{number}": one.scene.id, f"coarse-{number}": coarse.id}
        gaps = {f"fine-{number}": round((one.moment - series[0].moment).total_seconds() / DAY_S, 6) for number, one in enumerate(series, 1)}
        groups.append(Group(id=_name_group(series[1], days), scenes=roles, gaps_days=gaps))
    return Grouped(tuple(groups), scenes, [*refused, *_refuse_alone(clear, scenes, limit, settings.max_pairs)])


Series = tuple[Candidate, Candidate, Candidate]


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


Grouper = Callable[[Sequence[Candidate], QuerySettings], Grouped]
GROUPERS: Final[Mapping[TaskName, Grouper]] = {
    "pansharpening": group_products,
    "spatiotemporal-fusion": group_series,
}
"""Who forms the groups of a task."""


def find_grouper(task: TaskName) -> Grouper:
    """Who forms the groups of `task`.

    Raises:
        ConfigError: nobody does yet.
    """
    if task not in GROUPERS:
        raise ConfigError(f"pipeline.task {task}: scenes cannot be searched for it yet; known are cloud-removal, {', '.join(GROUPERS)}")
    return GROUPERS[task]
