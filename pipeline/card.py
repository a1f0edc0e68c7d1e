"""The data card of a dataset: what it holds, where it comes from, how it was split, what to beware of, in Markdown.

The name of a store and its manifest's summary enter; text leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sereno.pipeline.config import TaskName
from sereno.pipeline.patches import SPLITS
from sereno.pipeline.samples import SAMPLES


class Words(NamedTuple):
    """What the card says of a task."""

    content: str
    """What a patch holds."""
    jobs: str
    """What patches are cut from."""
    processing: str
    """What was done to the images."""
    limits: tuple[str, ...]
    """What to beware of; one line each."""
    array: str
    """Array that stands for the dataset in the example."""
    moment: str
    """Which times the table of areas holds."""


SHARED_GROUND: Final = (
    "Patches of one ground block on different dates show the same ground: they always share a split, but are not independent samples."
)
SEN12MSCR: Final = "SEN12MS-CR states no times: what stands for them is the season of the ROI, and its gaps of 0 days mean nothing."
OFFSETS: Final = "Offsets of the products are removed; negative reflectance is set to 0 and counted."
KEPT: Final = "Scene ids, offsets, shifts with their verdict, and mask settings"
WORDS: Final[Mapping[TaskName, Words]] = {
    "cloud-removal": Words(
        "co-registered SAR, cloudy and clear patches",
        "scene pairs",
        f"""\
{OFFSETS} SAR is backscatter in hundredths of a decibel on the
optical grid, moved by the measured shift where that was certain. {KEPT} of every
pair are in `provenance.json` in the store.""",
        (
            "Clear targets were taken on other days than the inputs: what changed between them is change of the ground, not cloud.",
            "Cloud and shadow masks are estimates; thin cloud in a target may go unnoticed.",
            "SAR and input were taken on other days too; `sar_gap_days` and `clear_gap_days` in `patches.csv` say how many.",
            SEN12MSCR,
            SHARED_GROUND,
        ),
        "clear",
        "input",
    ),
    "pansharpening": Words(
        "patches of fine guide bands (`pan`) and coarse multispectral bands (`ms`) of one product",
        "products",
        f"""\
{OFFSETS} The guide is moved by the shift that was measured against the coarse
bands, where that was certain. {KEPT} of every product are in
`provenance.json` in the store.""",
        (
            "Images are as they were taken: pairs of reduced resolution are made by averaging when a network is fed (Wald et al. 1997).",
            "Cloud and shadow masks are estimates, on the coarse grid.",
            SHARED_GROUND,
        ),
        "ms",
        "product",
    ),
    "spatiotemporal-fusion": Words(
        "series of three dates, fine and coarse",
        "series",
        f"""\
{OFFSETS} The date in the middle is the target. {KEPT} of every
series are in `provenance.json` in the store.""",
        (
            "Coarse images that are averages of the fine ones know no other sensor's errors: `scenes` in the manifest says what they are.",
            "Cloud and shadow masks are estimates.",
            SHARED_GROUND,
        ),
        "fine",
        "target",
    ),
    "snapshot-reconstruction": Words(
        "patches of hyperspectral cubes",
        "cubes",
        f"{OFFSETS} Measurements are simulated when a network is fed.",
        ("Cubes are taken as they are: where their pixels lie on the ground is not checked.",),
        "cube",
        "cube",
    ),
}


def describe_dataset(name: str, summary: Mapping[str, Any]) -> str:
    """The data card in Markdown, from the name of the store and the manifest's summary."""
    counts, areas, words = summary["counts"], summary["areas"], WORDS[summary["task"]]
    times = sorted(time for area in areas.values() for time in (area["first"], area["last"]))
    sections = [
        f"# {name}",
        f"{sum(counts.values())} {words.content} of {summary['size_px']} x {summary['size_px']} pixels of "
        f"{summary['resolution_m']:g} m, from {sum(len(area['pairs']) for area in areas.values())} {words.jobs} of {len(areas)} areas, "
        f"{times[0]} to {times[-1]}.",
        "## Splits\n\n" + _describe_splits(summary),
        "## Where and when\n\n" + _describe_areas(areas, words.moment),
        "## Sensors\n\n" + _describe_scenes(summary["scenes"]),
        "## Arrays\n\n" + _describe_arrays(summary),
        _name_statistics(summary["task"]) + _describe_bands(summary),
        "## Cloud cover of the inputs\n\n" + _describe_cover(summary["cloud_share"]),
        "## Processing\n\n" + words.processing,
        "## Windows that were refused\n\n" + _describe_refusals(summary["refused"]),
        "## Pairs without a patch\n\n" + _describe_absences(summary["left_out"]),
        "## Licence of the data\n\n" + _describe_licence(summary["scenes"], times),
        "## Known limits\n\n" + "\n".join(f"- {line}" for line in words.limits),
        "## Open it\n\n" + _describe_opening(name, summary["task"]),
    ]
    return "\n\n".join(sections) + "\n"


def _describe_splits(summary: Mapping[str, Any]) -> str:
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


def _describe_areas(areas: Mapping[str, Any], moment: str) -> str:
    rows = [
        (name, area["patches"], len(area["pairs"]), " ".join(area["crs"]), area["bbox"], area["first"], area["last"])
        for name, area in areas.items()
    ]
    head = ("area", "patches", "pairs", "CRS", "west, south, east, north (degrees)", f"first {moment}", f"last {moment}")
    return _to_table(head, rows)


def _describe_scenes(scenes: Mapping[str, Any]) -> str:
    rows = [(role, *(", ".join(values) for values in facts.values())) for role, facts in scenes.items()]
    return _to_table(("role", "sensor", "collection", "processing baseline", "offset removed (stored units)", "level"), rows)


def _describe_arrays(summary: Mapping[str, Any]) -> str:
    rows = [
        (spec.name, ", ".join(spec.all_dims), spec.units, ", ".join(summary["channels"][spec.name])) for spec in SAMPLES[summary["task"]]
    ]
    return _to_table(("array", "dims", "stored as", "channels"), rows) + (
        "\n\nIn the mask 255 is certain cloud or shadow, and usable where it says valid. Pixels that are not valid hold 0. "
        "`patches.csv` in the store lists every patch in stored order: place, time gaps, shares."
    )


def _name_statistics(task: TaskName) -> str:
    return f"## Reflectance of training {'targets' if task == 'cloud-removal' else 'patches'}\n\n"


def _describe_bands(summary: Mapping[str, Any]) -> str:
    found = summary["statistics"]
    rows = [
        (*((name,) if len(found) > 1 else ()), band, f"{mean:.4f}", f"{std:.4f}")
        for name, values in found.items()
        for band, mean, std in zip(summary["channels"][name], values["mean"], values["std"], strict=True)
    ]
    head = (*(("array",) if len(found) > 1 else ()), "band", "mean", "standard deviation")
    return "Over valid, unclouded pixels.\n\n" + _to_table(head, rows)


def _describe_cover(cover: Mapping[str, Any]) -> str:
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


def _describe_licence(scenes: Mapping[str, Any], times: Sequence[str]) -> str:
    sensors = {sensor for facts in scenes.values() for sensor in facts["sensors"]}
    if not all(sensor.startswith(("sentinel", "sen12mscr")) for sensor in sensors):
        return f"That of the products it was made from: {', '.join(sorted(sensors))}."
    years = f"{times[0][:4]}" if times[0][:4] == times[-1][:4] else f"{times[0][:4]}-{times[-1][:4]}"
    return f"Contains modified Copernicus Sentinel data {years}, unless the catalogue it was made from is a simulated world."


def _describe_opening(name: str, task: TaskName) -> str:
    spec = next(spec for spec in SAMPLES[task] if spec.name == WORDS[task].array)
    other = "cloudy" if task == "cloud-removal" else spec.name
    units = "reflectance and decibel" if task == "cloud-removal" else "reflectance"
    return f"""\
```python
import xarray as xr, zarr
train = xr.open_zarr("{name}", group="train", consolidated=False)  # {units}, scaled
picture = train["{spec.name}"][0].values  # ({", ".join(spec.all_dims[1:])})
stored = zarr.open_group("{name}", mode="r")["train"]["{other}"][0]  # the integers at rest
```"""


def _to_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
