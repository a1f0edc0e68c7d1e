"""The data card of a dataset: what it holds, where it comes from, what is simulated, how it was split, what to beware of, in Markdown.

The provenance of every pair enters, and what is counted of them for the manifest leaves; the manifest's summary enters, and text leaves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sereno.pipeline.config import TaskName
from sereno.pipeline.pairs import AROUND, is_gaofen
from sereno.pipeline.patches import SPLITS
from sereno.pipeline.samples import SAMPLES, list_roles, select_specs

Json = Mapping[str, Any]

REGISTERED: Final = {"sar": "registration", "cloudy": "registration_cloudy"}
"""Where the provenance of a pair says how an image was laid onto the clear one, by its role."""
SCENE_FACTS: Final = {
    "sensors": "sensor",
    "collections": "collection",
    "baselines": "processing baseline",
    "offsets": "offset removed (stored units)",
    "levels": "level",
}
"""What the summary says of the scenes of a role, and its heading."""
FIT: Final = ("gain", "offset", "scatter")
"""What is told of how two sensors differ."""
UNKNOWN: Final = ("None", "-")
"""What stands for a fact that no scene states."""


class Words(NamedTuple):
    """What the card of a task says in words of its own."""

    content: str
    """What a patch holds."""
    job: str
    """What patches are cut from, singular."""
    processing: Callable[[Json], str]
    """What was done to the images, from the scenes of the summary."""
    limits: Callable[[Json, Json], Sequence[str]]
    """What to beware of, one line each, from the scenes and skies of the summary."""
    array: str
    """Array that stands for the dataset in the example."""
    stored: str
    """Array that the example opens at rest."""
    moment: str
    """Which times the table of areas holds."""
    units: str = "reflectance"
    """Of the arrays, once they are scaled."""
    measured: str = "patches"
    """Whose reflectance the statistics are of."""
    moved: str = "moved"
    """Heading of the number of images that were moved."""
    unmoved: str = ""
    """What is said of images that nothing has to move."""
    around: str = ""
    """What is said of a patch whose pair has other dates around it; empty where dates are part of every sample."""


SHARED_GROUND: Final = (
    "Patches of one ground block on different dates show the same ground: they always share a split, but are not independent samples."
)
OFFSETS: Final = "Offsets of the products are removed; negative reflectance is set to 0 and counted."
KEPT: Final = "Scene ids, offsets, shifts with their verdict, and mask settings"


def count_skies(provenances: Sequence[Json]) -> dict[str, Any]:
    """How many inputs of the pairs are their targets under a simulated sky, and what was drawn for them."""
    drawn = [provenance["overlay"] for provenance in provenances if provenance.get("overlay")]
    covers = [sky["cover"] for sky in drawn]
    return {
        "pairs": len(provenances),
        "simulated": len(drawn),
        "seeds": sorted({sky["seed"] for sky in drawn}),
        "skies": max((sky["sky"] for sky in drawn), default=0),
        "cover": [round(min(covers), 3), round(max(covers), 3)] if covers else [],
    }


def count_registrations(provenances: Sequence[Json]) -> dict[str, dict[str, Any]]:
    """Per role (SAR, cloudy, or those of groups): images moved, left and not asked about; the largest shift and predicted error, metres."""
    if any("task" in provenance for provenance in provenances):  # groups, which state them by role
        roles = sorted({role for provenance in provenances for role in provenance["registration"]})
        return {role: _count_moved([provenance["registration"].get(role) for provenance in provenances]) for role in roles}
    series = {role: f"registration_{role}" for role in AROUND if any(role in provenance for provenance in provenances)}
    return {role: _count_moved([provenance.get(key) for provenance in provenances]) for role, key in (REGISTERED | series).items()}


def _count_moved(records: Sequence[Json | None]) -> dict[str, Any]:
    asked = [record for record in records if record is not None]
    moved = [record for record in asked if record["verdict"] == "applied"]
    shifts = [record["max_shift_px"] * record["pixel_m"] for record in moved]
    errors = [record["sigma_px"] * record["pixel_m"] for record in moved if record["sigma_px"] is not None]
    return {
        "applied": len(moved),
        "refused": len(asked) - len(moved),
        "not_asked": len(records) - len(asked),
        "max_shift_m": round(max(shifts), 1) if shifts else None,
        "max_error_m": round(max(errors), 2) if errors else None,
    }


def list_calibrations(provenances: Sequence[Json]) -> list[dict[str, Any]]:
    """How products of Gaofen were calibrated and at which heights they were placed; equal ones once, with their number."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for provenance in provenances:
        for role in (role for roles in list_roles(provenance.get("task", "cloud-removal"), provenance) for role in roles):
            scene = provenance.get(role, {})
            if is_gaofen(str(scene.get("sensor"))):
                for fact in (fact for fact in scene.get("items", ()) if fact.get("share", 1)):
                    key = (str(scene["sensor"]), _describe_calibration(fact), str(fact.get("heights", "not stated")))
                    found.setdefault(key, set()).add(str(fact.get("item")))
    return [
        {"sensor": sensor, "calibration": calibration, "heights": heights, "products": len(found[sensor, calibration, heights])}
        for sensor, calibration, heights in sorted(found)
    ]


def join_radiometry(provenances: Sequence[Json]) -> dict[str, Any]:
    """How coarse images of another sensor differ from averaged fine ones, under `radiometry` by band: medians of all series.

    Nothing where no coarse image is of another sensor.
    """
    measured = [provenance["radiometry"] for provenance in provenances if provenance.get("radiometry")]
    bands = list(dict.fromkeys(band for fits in measured for band in fits))
    joined = {
        band: {name: round(statistics.median(fits[band][name] for fits in measured if band in fits), 5) for name in FIT}
        | {"series": sum(band in fits for fits in measured)}
        for band in bands
    }
    return {"radiometry": joined} if joined else {}


def _describe_calibration(fact: Json) -> str:
    """The divisor of radar, or the gains of a camera, and why these."""
    if "gf3:scale_divisor" in fact:
        return f"digital numbers / {fact['gf3:scale_divisor']:g} ({fact.get('gf3:scale_divisor_reason')})"
    year = fact.get("calib_year")
    return f"gains{'' if year is None else f' of {year}'} ({fact.get('calib_source')})"


def describe_dataset(name: str, summary: Json) -> str:
    """The data card in Markdown, from the name of the store and the manifest's summary."""
    areas, scenes, skies, words = summary["areas"], summary["scenes"], summary["skies"], WORDS[summary["task"]]
    times = sorted(time for area in areas.values() for time in (area["first"], area["last"]))
    sections = [
        f"# {name}",
        _describe_content(summary, times),
        _describe_skies(skies),
        "## Splits\n\n" + _describe_splits(summary),
        "## Where and when\n\n" + _describe_areas(areas, words.moment),
        "## Sensors\n\n" + _describe_scenes(scenes),
        _describe_registration(summary["registration"], words),
        _describe_gaofen(summary["gaofen"]),
        _describe_radiometry(summary.get("radiometry", {})),
        "## Arrays\n\n" + _describe_arrays(summary),
        f"## Reflectance of training {words.measured}\n\n" + _describe_bands(summary),
        "## Cloud cover of the inputs\n\n" + _describe_cover(summary["cloud_share"]),
        _describe_series(summary, words),
        "## Processing\n\n" + words.processing(scenes),
        "## Windows that were refused\n\n" + _describe_refusals(summary["refused"]),
        "## Pairs without a patch\n\n" + _describe_absences(summary["left_out"]),
        "## Licence of the data\n\n" + _describe_licence(scenes, times),
        "## Known limits\n\n" + "\n".join(f"- {line}" for line in words.limits(scenes, skies)),
        "## Open it\n\n" + _describe_opening(name, summary["task"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def count_things(count: int, thing: str) -> str:
    """A number and what is counted, in the plural where it should be."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _describe_content(summary: Json, times: Sequence[str]) -> str:
    areas, size, words = summary["areas"], summary["size_px"], WORDS[summary["task"]]
    around = words.around if "dates" in summary else ""
    return (
        f"{sum(summary['counts'].values())} {words.content} of {size} x {size} pixels of "
        f"{summary['resolution_m']:g} m,{around} from {count_things(sum(len(area['pairs']) for area in areas.values()), words.job)} of "
        f"{count_things(len(areas), 'area')}, {times[0]} to {times[-1]}."
    )


def _describe_skies(skies: Json) -> str:
    """What is simulated of the inputs; nothing where all are real."""
    if not skies["simulated"]:
        return ""
    seeds, (low, high) = ", ".join(map(str, skies["seeds"])), skies["cover"]
    return (
        f"**Simulated clouds**: {skies['simulated']} of {count_things(skies['pairs'], 'pair')} have as input no image of a cloudy day but "
        f"the target itself under simulated clouds (seed {seeds}; skies of one target: {skies['skies']}; dense cloud over {low:.0%} to "
        f"{high:.0%} of the ground). What was drawn for each is in `provenance.json` under `overlay`."
    )


def _describe_series(summary: Json, words: Words) -> str:
    """What the dates around pairs are, where there are some."""
    if not words.around or "dates" not in summary:
        return ""
    return (
        "## Dates around each pair\n\n`around` holds the last clear scene before both input and target and the first one after them, of "
        "the same product, laid onto the target as the input is. A clear scene may hold some clouds: `around_clear` is 255 where a pixel "
        "of a date is certain to show the ground, 0 where it is covered or not valid, or nobody knows. `gaps_days` in `patches.csv` has "
        "the days from the input to each."
    )


def list_limits(scenes: Json, skies: Json) -> list[str]:
    """What to beware of, one sentence or two for each."""
    n_real, limits = skies["pairs"] - skies["simulated"], []
    if skies["simulated"]:
        limits += [
            "Under simulated clouds nothing but cloud and shadow tells input from target: no season, no change of the ground, no error of "
            "registration. Scores on such pairs say nothing of these.",
            "Simulated clouds lack what real ones have: detectors that saturate, light from the sides of clouds, parallax between bands. "
            "Their masks are true, but clouds and shadows that the target already had lie under them too.",
        ]
    if n_real:
        which = " of pairs with real clouds" if skies["simulated"] else ""
        limits.append(
            f"Clear targets{which} were taken on other days than the inputs: what changed between them is change of the ground, not cloud."
        )
    masked = "" if not skies["simulated"] else " of real images" if n_real else " of targets"
    limits.append(f"Cloud and shadow masks{masked} are estimates; thin cloud in a target may go unnoticed.")
    limits.append("SAR and input were taken on other days too; `sar_gap_days` and `clear_gap_days` in `patches.csv` say how many.")
    if any(sensor.startswith("sen12mscr") for sensor in _list_sensors(scenes)):
        limits.append("SEN12MS-CR states no times: what stands for them is the season of the ROI, and its gaps of 0 days mean nothing.")
    limits.append(SHARED_GROUND)
    return limits


def _list_sensors(scenes: Json) -> list[str]:
    return sorted({sensor for facts in scenes.values() for sensor in facts["sensors"]})


def _describe_processing(scenes: Json) -> str:
    moved = "SAR is moved by the measured shift where that was certain, and left where its geocoding puts it where not."
    if any(is_gaofen(sensor) for sensor in _list_sensors(scenes)):
        moved = (
            "In pairs with Gaofen, SAR and a real cloudy image are moved onto the clear one by the measured field of shifts, in the "
            "interpolation that geocodes them; a pair in which one cannot be placed is left out (a cloudy image may be exempt, see "
            "Registration). In other pairs SAR is moved where the shift was certain, and left where its geocoding puts it where not."
        )
    return (
        f"{OFFSETS} SAR is backscatter in hundredths of a decibel on the optical grid. {moved} {KEPT} of every pair are in "
        "`provenance.json` in the store."
    )


def _describe_registration(registration: Json, words: Words) -> str:
    """What was moved; nothing for tasks in which nothing is compared."""
    if not registration:
        return ""
    rows = [
        (
            role,
            *(facts[name] for name in ("applied", "refused", "not_asked")),
            *("-" if facts[name] is None else facts[name] for name in ("max_shift_m", "max_error_m")),
        )
        for role, facts in registration.items()
    ]
    head = (
        "image",
        words.moved,
        "left, the field was refused",
        "not asked for",
        "largest shift, m",
        "largest predicted error, m",
    )
    return f"## Registration\n\nOf the pairs that gave patches{words.unmoved}. Errors are standard deviations.\n\n" + _to_table(head, rows)


def _describe_gaofen(calibrations: Sequence[Json]) -> str:
    if not calibrations:
        return ""
    rows = [(entry["sensor"], entry["products"], entry["calibration"], entry["heights"]) for entry in calibrations]
    return "## Gaofen\n\n" + _to_table(("sensor", "products", "calibration", "heights of the ground"), rows)


def _describe_radiometry(radiometry: Mapping[str, Json]) -> str:
    if not radiometry:
        return ""
    rows = [(band, *(f"{fit[name]:.4f}" for name in FIT), fit["series"]) for band, fit in radiometry.items()]
    words = (
        "Coarse reflectance as a straight line over averaged fine reflectance, where both are clear: medians of all series. The difference "
        "is left in the images, for a network to learn."
    )
    return f"## Coarse images against fine ones\n\n{words}\n\n" + _to_table(("band", *FIT, "series"), rows)


def _describe_splits(summary: Json) -> str:
    how, leakage, counts = summary["splits"], summary["leakage"], summary["counts"]
    rows = [(split, counts[split], how["blocks"][split]) for split in SPLITS]
    drawn = {
        "blocks": f"Whole ground blocks were drawn at random (seed {how.get('seed')}).",
        "list": f"Areas are assigned by the list `{how.get('file')}`, compared exactly.",
        "none": "Everything is for training: scores on this dataset show memory, not skill.",
    }[how["method"]]
    if leakage["min_distance_m"] is None:
        proof = "There is only one split, so nothing can leak between splits."
    else:
        proof = (
            f"Measured over {leakage['footprints']} footprints: no ground is shared; the nearest patches of different splits are "
            f"{leakage['min_distance_m']:.1f} m apart ({leakage['required_m']:.1f} m required), "
            f"and {leakage['shared_blocks']} blocks are in two splits."
        )
    return "\n\n".join([_to_table(("split", "patches", "blocks"), rows), drawn, proof])


def _describe_areas(areas: Json, moment: str) -> str:
    rows = [
        (name, area["patches"], len(area["pairs"]), " ".join(area["crs"]), area["bbox"], area["first"], area["last"])
        for name, area in areas.items()
    ]
    head = ("area", "patches", "pairs", "CRS", "west, south, east, north (degrees)", f"first {moment}", f"last {moment}")
    return _to_table(head, rows)


def _describe_scenes(scenes: Json) -> str:
    told = [name for name in SCENE_FACTS if any(value not in UNKNOWN for facts in scenes.values() for value in facts[name])]
    rows = [
        (role, *(", ".join("-" if value in UNKNOWN else value for value in facts[name]) for name in told)) for role, facts in scenes.items()
    ]
    return _to_table(("role", *(SCENE_FACTS[name] for name in told)), rows)


def _describe_arrays(summary: Json) -> str:
    rows = [
        (spec.name, ", ".join(spec.all_dims), spec.units, ", ".join(summary["channels"][spec.name]))
        for spec in select_specs(summary["task"], summary)
    ]
    return _to_table(("array", "dims", "stored as", "channels"), rows) + (
        "\n\nIn the mask 255 is certain cloud or shadow, and usable where it says valid. Pixels that are not valid hold 0. "
        "`patches.csv` in the store lists every patch in stored order: place, time gaps, shares."
    )


def _describe_bands(summary: Json) -> str:
    found = summary["statistics"]
    rows = [
        (*((name,) if len(found) > 1 else ()), band, f"{mean:.4f}", f"{std:.4f}")
        for name, values in found.items()
        for band, mean, std in zip(summary["channels"][name], values["mean"], values["std"], strict=True)
    ]
    head = (*(("array",) if len(found) > 1 else ()), "band", "mean", "standard deviation")
    return "Over valid, unclouded pixels.\n\n" + _to_table(head, rows)


def _describe_cover(cover: Json) -> str:
    bins = zip(cover["edges"], cover["edges"][1:], *(cover[split] for split in SPLITS), strict=False)
    return _to_table(("share of cloud and shadow", *SPLITS), [(f"{low:.1f} to {high:.1f}", *numbers) for low, high, *numbers in bins])


def _describe_refusals(refused: Mapping[str, int]) -> str:
    if not refused:
        return "None."
    return _to_table(("refused by", "windows"), [(f"`patch.{name}`", count) for name, count in refused.items()])


def _describe_absences(left_out: Sequence[Mapping[str, str]]) -> str:
    if not left_out:
        return "None."
    return _to_table(("area", "pair", "reason"), [(entry["area"], entry["pair"], entry["reason"]) for entry in left_out])


def _describe_licence(scenes: Json, times: Sequence[str]) -> str:
    sensors = _list_sensors(scenes)
    if not all(sensor.startswith(("sentinel", "sen12mscr")) for sensor in sensors):
        return f"That of the products it was made from: {', '.join(sensors)}."
    years = f"{times[0][:4]}" if times[0][:4] == times[-1][:4] else f"{times[0][:4]}-{times[-1][:4]}"
    return f"Contains modified Copernicus Sentinel data {years}, unless the catalogue it was made from is a simulated world."


def _describe_opening(name: str, task: TaskName) -> str:
    words = WORDS[task]
    spec = next(spec for spec in SAMPLES[task] if spec.name == words.array)
    return f"""\
```python
import xarray as xr, zarr
train = xr.open_zarr("{name}", group="train", consolidated=False)  # {words.units}, scaled
picture = train["{spec.name}"][0].values  # ({", ".join(spec.all_dims[1:])})
stored = zarr.open_group("{name}", mode="r")["train"]["{words.stored}"][0]  # the integers at rest
```"""


def _to_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


WORDS: Final[Mapping[TaskName, Words]] = {
    "cloud-removal": Words(
        "co-registered SAR, cloudy and clear patches",
        "scene pair",
        _describe_processing,
        list_limits,
        "clear",
        "cloudy",
        "input",
        units="reflectance and decibel",
        measured="targets",
        moved="moved onto the clear one",
        unmoved="; an input made of its target lies right by itself",
        around=" each with the clear dates before and after it,",
    ),
    "pansharpening": Words(
        "patches of fine guide bands (`pan`) and coarse multispectral bands (`ms`) of one product",
        "product",
        lambda _: (
            f"""\
{OFFSETS} The guide is moved by the shift that was measured against the coarse
bands, where that was certain. {KEPT} of every product are in
`provenance.json` in the store."""
        ),
        lambda *_: (
            "Images are as they were taken: pairs of reduced resolution are made by averaging when a network is fed (Wald et al. 1997).",
            "Cloud and shadow masks are estimates, on the coarse grid.",
            SHARED_GROUND,
        ),
        "ms",
        "ms",
        "product",
    ),
    "spatiotemporal-fusion": Words(
        "series of three dates, fine and coarse",
        "date triplet",
        lambda _: (
            f"""\
{OFFSETS} The date in the middle is the target. {KEPT} of every
series are in `provenance.json` in the store."""
        ),
        lambda *_: (
            "Coarse images that are averages of the fine ones know no other sensor's errors: `scenes` in the manifest says what they are.",
            "Cloud and shadow masks are estimates.",
            SHARED_GROUND,
        ),
        "fine",
        "fine",
        "target",
    ),
    "snapshot-reconstruction": Words(
        "patches of hyperspectral cubes",
        "cube",
        lambda _: f"{OFFSETS} Measurements are simulated when a network is fed.",
        lambda *_: ("Cubes are taken as they are: where their pixels lie on the ground is not checked.",),
        "cube",
        "cube",
        "cube",
    ),
}
