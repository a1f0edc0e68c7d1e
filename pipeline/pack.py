"""Join all patches into one sharded dataset whose splits share no ground, with a checksum per shard and a data card.

Patch stores enter; `dataset.zarr` with one group per split, `dataset.md` and the manifest leave.

A shard is written whole, once, by this one process: two writers of one shard lose data without an error (zarr-python issue 3682).
Patches are shuffled here, once, so that reading shards from front to end is already reading in random order.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from odc.geo.crs import CRS
from rich.console import Console
from rich.progress import track

from sereno.pipeline.config import PackSettings, SplitSettings, TaskName, load_settings
from sereno.pipeline.datacard import count_registrations, count_skies, count_things, describe_dataset, join_radiometry, list_calibrations
from sereno.pipeline.errors import DataError, StoreError
from sereno.pipeline.imagers import IMAGERS
from sereno.pipeline.patches import SPLITS, PatchRecord, Split
from sereno.pipeline.samples import CLEAR_UNITS, DATED_BY, MASK_UNITS, MEASURED, NAMED_DIMS, list_roles, name_dims, select_specs
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS
from sereno.pipeline.splits import Leakage, assign_splits, check_leakage, group_blocks
from sereno.pipeline.statistics import Sums, find_usable, fit_usable, sum_pixels
from sereno.pipeline.store import codec_for, open_dataset, read_manifest, staged, store_of, write_manifest, write_text

logger = logging.getLogger(__name__)

FORMAT: Final = "sereno-dataset/1"
HISTOGRAM_BINS: Final = 10
"""Bins of the cloud cover of inputs, from 0 to 1."""
SCALED_UNITS: Final = {SAR_UNITS: "dB", OPTICAL_UNITS: "1", MASK_UNITS: "1", CLEAR_UNITS: "1"}
"""Units after scaling by those at rest; CF writes `1` for a number without unit."""
QUOTED_REASONS: Final = 3
"""So many different reasons are quoted where no pair is left."""
REASON_CHARS: Final = 280
"""A quoted reason is cut to so many characters."""

SURFACE: Final = "reflectance of the surface"
TOP: Final = "reflectance at the top of the atmosphere"
LEVELS: Final[Mapping[str, str]] = {
    "sentinel2-l2a": SURFACE,
    "sentinel2-l1c": TOP,
    "sen12mscr-s2": TOP,
    "gaofen-pms": TOP,
    "gaofen-wfv": TOP,
    "gaofen-wfv4": TOP,
    **dict.fromkeys(IMAGERS, SURFACE),
}
"""What the images of a sensor show, by sensor: numbers that must not be learnt from together."""

Array = npt.NDArray[Any]


class Source(NamedTuple):
    """The patches of one pair, or group."""

    manifest: Path
    """Its manifest."""
    summary: dict[str, Any]
    """The manifest's summary."""
    provenance: dict[str, Any]
    """Where its scenes come from and what was done to them."""
    facts: dict[str, Any]
    """What all must agree in: `task`, `ratio`, names along each dim (`bands`), `size_px`, `resolution_m`, `layout`, `block_px`."""
    records: tuple[PatchRecord, ...]
    """One per patch, in stored order."""


class Entry(NamedTuple):
    """One patch on its way from a patch store to its place in the dataset."""

    record: PatchRecord
    """With its split and position."""
    source: int
    """Which source it lies in."""
    row: int
    """Its place there."""


class Shard(NamedTuple):
    """One shard to be written: patches `start` to `stop` of one array of one split."""

    split: Split
    """Group."""
    name: str
    """Array."""
    start: int
    """First patch."""
    stop: int
    """Patch after the last."""


Entries = Mapping[Split, Sequence[Entry]]


def pack_patches(patches: Sequence[Path], output: Path, settings: PackSettings) -> None:
    """Write the dataset of all `patches` (manifests): the store, the data card `NAME.md`, and last the manifest.

    Pairs of which no patch was kept are left out, and listed with the reason in the summary under `left_out` and in the card.

    The result depends on the patches and the settings alone, not on the order in which the stores are named.

    Raises:
        DataError: the stores do not fit each other, are of several processing levels, no patch is left, splits share ground, or no
            training target pixel is usable.
        MissingError: a patch store or the split list does not exist.
        StoreError: a patch store is damaged, or the dataset cannot be written or does not read back as it was written.
    """
    started = time.monotonic()
    logger.info("pack: joining %d patch stores", len(patches))
    sources = _read_sources(patches)
    entries = _arrange_patches(sources, settings)
    records = [entry.record for split in SPLITS for entry in entries[split]]
    buffer_m = min(source.summary["buffer_m"] for source in sources) if settings.split.method == "blocks" else 0.0
    leakage = check_leakage(records, buffer_m=buffer_m)
    with staged(store_of(output)) as partial:
        create_arrays(partial, {split: len(entries[split]) for split in SPLITS}, sources[0].facts, settings)
        _fill_shards(partial, entries, sources, settings.shard_patches)
        (partial / "patches.csv").write_text(to_csv(records))
        (partial / "provenance.json").write_text(json.dumps([_to_provenance(s) for s in sources], indent=1, sort_keys=True) + "\n")
        statistics = measure_training(partial, sources[0].facts["task"], settings.shard_patches)
        output.unlink(missing_ok=True)
    summary = _summarise(sources, records, settings.split, leakage) | _state_statistics(statistics)
    write_text(output.with_suffix(".md"), describe_dataset(store_of(output).name, summary))
    write_manifest(output, kind="dataset", summary=summary)
    counts = ", ".join(f"{summary['counts'][split]} {split}" for split in SPLITS)
    logger.info("pack: %s patches in %s, %.1f s", counts, output, time.monotonic() - started)


def _read_sources(manifests: Sequence[Path]) -> list[Source]:
    """The patch stores, complete and alike, in the order of area and pair."""
    sources = sorted((_read_source(manifest) for manifest in manifests), key=lambda s: (s.summary["area"], s.summary["pair"]))
    for first, second in pairwise(sources):
        if (first.summary["area"], first.summary["pair"]) == (second.summary["area"], second.summary["pair"]):
            raise DataError(f"{first.manifest} and {second.manifest} hold patches of the same pair: name each pair once")
        _check_alike(first, second)
    if not any(source.records for source in sources):
        raise DataError(f"not one patch was kept in {count_things(len(sources), 'patch store')}: {_explain_nothing(sources)}")
    for roles in _list_roles(sources[0]):
        _check_levels([source for source in sources if source.records], roles)
    return sources


def _list_roles(source: Source) -> tuple[tuple[str, ...], ...]:
    """Scenes that its pair or group is made of; all sources have the same."""
    return list_roles(source.facts["task"], source.facts.get("dates", ()))


def _check_alike(first: Source, second: Source) -> None:
    """Whether two stores can be packed together.

    Raises:
        DataError: they cannot.
    """
    if first.facts["task"] == second.facts["task"] and ("dates" in first.facts) != ("dates" in second.facts):
        series, plain = (first, second) if "dates" in first.facts else (second, first)
        raise DataError(
            f"{series.manifest} holds the dates before and after its pair, {plain.manifest} does not: a dataset has them for all pairs or "
            "none; pack them apart, or query all areas with the same pipeline.query.series"
        )
    for fact, value in first.facts.items():
        if value != second.facts[fact]:
            raise DataError(
                f"{first.manifest} has {fact} {value}, {second.manifest} has {second.facts[fact]}: "
                "a dataset needs one; pack them apart, or patch both with the same settings"
            )


def _check_levels(sources: Sequence[Source], roles: tuple[str, ...]) -> None:
    """Whether the images of `roles` are all of one processing level.

    Raises:
        DataError: they are not.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for source in sources:
        for role in roles:
            scene = source.provenance.get(role, {})
            found[describe_level(scene)].append(f"{scene.get('item')} of area {source.summary['area']}")
    found.pop("", None)
    if len(found) > 1:
        groups = "; ".join(f"{level}: {len(items)}, for example {items[0]}" for level, items in sorted(found.items()))
        raise DataError(
            f"{' and '.join(roles)} images are of {len(found)} processing levels, which must not be mixed in one dataset ({groups}): make "
            "a dataset of each, with areas and collections (or folders of products) of one level in pipeline.query"
        )


def describe_level(scene: Mapping[str, Any]) -> str:
    """What the values of an image are, by its provenance; empty if its sensor has only one level, or is not known."""
    sensor = str(scene.get("sensor"))
    if sensor == "gaofen3":
        return f"Gaofen-3 level {str(scene.get('properties', {}).get('processing_level', 'not stated')).removeprefix('L')}"
    return LEVELS.get(sensor, "")


def _explain_nothing(sources: Sequence[Source]) -> str:
    """Why no source has a patch: reasons of pairs and of windows, those most frequent first, and the remedy."""
    refused = Counter(source.summary["pair_refused"] for source in sources if source.summary.get("pair_refused"))
    parts = []
    if refused:
        reasons = [f"{count} x {shorten(reason, REASON_CHARS)}" for reason, count in refused.most_common(QUOTED_REASONS)]
        further = len(refused) - len(reasons)
        more = f"; and {count_things(further, 'other reason')}" if further else ""
        parts.append(
            f"{count_things(refused.total(), 'pair')} not to be used: {'; '.join(reasons)}{more} (manifests of `align` give them in full)"
        )
    rest = [source for source in sources if not source.summary.get("pair_refused")]
    if rest:
        causes = ", ".join(f"{count_things(count, 'window')} by patch.{name}" for name, count in _count_refusals(rest).most_common())
        parts.append(f"{causes or 'no window fits a grid'}: loosen the limits of `patch`")
    return "; ".join(parts)


def _read_source(manifest: Path) -> Source:
    summary = read_manifest(manifest, kind="patches")["summary"]
    records = tuple(load_settings(PatchRecord, value, where=str(manifest)) for value in summary["patches"])
    return Source(manifest, summary, open_dataset(manifest, kind="patches").attrs["provenance"], _read_facts(summary), records)


def _read_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What patch stores must agree in, the task first; those that state none are of cloud removal."""
    task: TaskName = summary.get("task", "cloud-removal")
    facts = {"task": task, "ratio": summary.get("ratio", 1), **name_dims(task, summary)}
    return facts | {fact: summary[fact] for fact in ("size_px", "resolution_m", "layout", "block_px")}


def _arrange_patches(sources: Sequence[Source], settings: PackSettings) -> dict[Split, list[Entry]]:
    """Every patch with its split and its position, shuffled within the split."""
    splits = assign_splits(group_blocks(record for source in sources for record in source.records), settings.split)
    found = [Entry(record, place, row) for place, source in enumerate(sources) for row, record in enumerate(source.records)]
    arranged: dict[Split, list[Entry]] = {}
    for number, split in enumerate(SPLITS):
        members = sorted((entry for entry in found if splits[entry.record.block] == split), key=lambda entry: entry.record.id)
        order = np.random.default_rng((settings.seed, number)).permutation(len(members))
        arranged[split] = [
            entry._replace(record=entry.record.model_copy(update={"split": split, "position": position}))
            for position, entry in enumerate(members[i] for i in order)
        ]
    return arranged


def create_arrays(store: Path, counts: Mapping[Split, int], facts: Mapping[str, Any], settings: PackSettings) -> None:
    """Write groups and empty arrays for `counts` patches: chunk = one patch with all its bands, shard = `shard_patches` patches."""
    task, size = facts["task"], facts["size_px"]
    specs = select_specs(task, facts)
    attributes = {
        "format": FORMAT,
        **{f"{dim}s": facts[f"{dim}s"] for dim in NAMED_DIMS if f"{dim}s" in facts},
        **{fact: facts[fact] for fact in ("size_px", "resolution_m")},
        "units": {spec.name: spec.units for spec in specs},
        "scales": {spec.name: spec.scale for spec in specs},
    }
    root = zarr.create_group(store, zarr_format=3, attributes=attributes)
    for split in SPLITS:
        group = root.create_group(split, attributes=attributes)
        count = counts[split]
        for spec in specs:
            side = size // facts["ratio"] if spec.is_coarse else size
            patch, dtype = (*(len(facts[f"{dim}s"]) for dim in spec.dims), side, side), np.dtype(spec.dtype)
            group.create_array(
                spec.name,
                shape=(count, *patch),
                chunks=(1, *patch),
                shards=(_shard_length(count, settings.shard_patches), *patch),
                dtype=dtype,
                compressors=codec_for(dtype, settings.codec),
                fill_value=0,
                dimension_names=spec.all_dims,
                attributes={"scale_factor": spec.scale, "units": SCALED_UNITS[spec.units]},
                config={"write_empty_chunks": True},  # so that a chunk that is not there is a loss, never black ground
            )


def _shard_length(count: int, shard_patches: int) -> int:
    return max(1, min(count, shard_patches))


def _fill_shards(store: Path, entries: Entries, sources: Sequence[Source], shard_patches: int) -> None:
    """Write every shard whole, then read all of them back and compare; one shard is in memory at a time.

    Raises:
        StoreError: a patch does not read back as it was written.
    """
    names = [spec.name for spec in select_specs(sources[0].facts["task"], sources[0].facts)]
    inputs = [_open_arrays(store_of(source.manifest), names) for source in sources]
    shards = [shard for split in SPLITS for name in names for shard in _list_shards(split, name, len(entries[split]), shard_patches)]
    written: dict[Shard, list[int]] = {}
    outputs = {split: _open_arrays(store, names, split, mode="r+") for split in SPLITS}
    for shard in _watch(shards, "pack"):
        block = np.stack([inputs[entry.source][shard.name][entry.row] for entry in entries[shard.split][shard.start : shard.stop]])
        outputs[shard.split][shard.name][shard.start : shard.stop] = block
        written[shard] = _sum_patches(block)
    stored = {split: _open_arrays(store, names, split) for split in SPLITS}
    for shard in _watch(shards, "check"):
        found = _sum_patches(stored[shard.split][shard.name][shard.start : shard.stop])
        for entry, sums in zip(entries[shard.split][shard.start : shard.stop], zip(written[shard], found, strict=True), strict=True):
            if sums[0] != sums[1]:
                raise StoreError(
                    f"{store}: {shard.split}/{shard.name}[{entry.record.position}] does not read back as patch {entry.record.id}; "
                    "the disk may be failing, run again"
                )


def _open_arrays(store: Path, names: Iterable[str], group: str = "", mode: Literal["r", "r+"] = "r") -> dict[str, Any]:
    """The zarr arrays `names` in `group` of a store; nothing is read yet."""
    return {name: zarr.open_array(store, path=f"{group}/{name}", mode=mode) for name in names}


def _list_shards(split: Split, name: str, count: int, shard_patches: int) -> list[Shard]:
    length = _shard_length(count, shard_patches)
    return [Shard(split, name, start, min(start + length, count)) for start in range(0, count, length)]


def _watch(shards: Sequence[Shard], what: str) -> Iterable[Shard]:
    return track(shards, description=what, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _sum_patches(block: Array) -> list[int]:
    """CRC-32 of each patch of a block (patch, channel, row, col)."""
    return [zlib.crc32(patch.tobytes()) for patch in block]


def measure_training(store: Path, task: TaskName, shard_patches: int) -> dict[str, Sums]:
    """Sums over valid, unclouded pixels of training, by the arrays that `MEASURED` names.

    Raises:
        DataError: there is no such pixel.
    """
    arrays = _open_arrays(store, [*MEASURED[task], "mask"], "train")
    found: dict[str, Sums] = {}
    for shard in _list_shards("train", "mask", arrays["mask"].shape[0], shard_patches):
        usable = find_usable(arrays["mask"][shard.start : shard.stop], task)
        for name in MEASURED[task]:
            values = arrays[name][shard.start : shard.stop]
            sums = sum_pixels(values, fit_usable(usable, values.shape[-2:]))
            found[name] = found[name] + sums if name in found else sums
    if not found or not all(sums.count for sums in found.values()):
        what = "target pixel: lower patch.max_target_cloud, or add clear targets" if task == "cloud-removal" else "pixel: add clear scenes"
        raise DataError(f"no training patch has a valid, unclouded {what}")
    return found


def _state_statistics(statistics: Mapping[str, Sums]) -> dict[str, Any]:
    """What the manifest says of them; of targets of cloud removal also in the words it has always had."""
    stated: dict[str, Any] = {"statistics": {name: {"mean": sums.mean, "std": sums.std} for name, sums in statistics.items()}}
    clear = statistics.get("clear")
    return stated | ({} if clear is None else {"training_mean": clear.mean, "training_std": clear.std})


def to_csv(records: Sequence[PatchRecord]) -> str:
    """One line per patch in stored order; bounds as a JSON list, None as nothing; gaps of dates as JSON, if there are some."""
    text = io.StringIO()
    names = [name for name in PatchRecord.model_fields if name != "gaps_days" or any(record.gaps_days for record in records)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        gaps = {"gaps_days": json.dumps(record.gaps_days, sort_keys=True)} if record.gaps_days else {}
        writer.writerow({**record.model_dump(), "bounds_m": json.dumps(record.bounds_m), **gaps})
    return text.getvalue()


def _to_provenance(source: Source) -> dict[str, Any]:
    """What is known of a pair; its list of delivered windows is left out, since every patch is in `patches.csv`."""
    return {
        key: {inner: value for inner, value in part.items() if inner != "windows"} if isinstance(part, dict) else part
        for key, part in source.provenance.items()
    }


def _summarise(sources: Sequence[Source], records: Sequence[PatchRecord], settings: SplitSettings, leakage: Leakage) -> dict[str, Any]:
    """The manifest's summary, without rows per patch, so that it stays small for any number of patches."""
    facts, used = sources[0].facts, [source for source in sources if source.records]
    task = facts["task"]
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    blocks = Counter(split for _, split in {(record.block, record.split) for record in records})
    how: dict[str, Any] = {"method": settings.method, "blocks": {split: blocks[split] for split in SPLITS}}
    if settings.method == "blocks":
        how |= {"seed": settings.seed, "validation": settings.validation, "test": settings.test}
    if settings.file is not None and settings.method == "list":
        how["file"] = settings.file.name
    return {
        "task": task,
        "ratio": facts["ratio"],
        "channels": {spec.name: facts[f"{spec.dims[-1]}s"] for spec in select_specs(task, facts)},
        **{f"{dim}s": facts[f"{dim}s"] for dim in NAMED_DIMS if f"{dim}s" in facts},
        "size_px": facts["size_px"],
        "resolution_m": facts["resolution_m"],
        "layout": facts["layout"],
        "counts": {split: sum(record.split == split for record in records) for split in SPLITS},
        "splits": how,
        "leakage": leakage._asdict(),
        "areas": _summarise_areas(used),
        "scenes": _summarise_scenes(used),
        "skies": count_skies([source.provenance for source in used]),
        "registration": count_registrations([source.provenance for source in used]),
        "gaofen": list_calibrations([source.provenance for source in used]),
        **join_radiometry([source.provenance for source in used]),
        "left_out": [_explain_absence(source) for source in sources if not source.records],
        "refused": dict(sorted(_count_refusals(sources).items())),
        "cloud_share": {"edges": [round(float(edge), 3) for edge in edges]}
        | {split: np.histogram([r.cloud_input_share for r in records if r.split == split], edges)[0].tolist() for split in SPLITS},
    }


def _count_refusals(sources: Sequence[Source]) -> Counter[str]:
    """Refused windows by the setting that refused them."""
    return Counter(entry["setting"] for source in sources for entry in source.summary["refused"])


def _explain_absence(source: Source) -> dict[str, str]:
    """Area, pair and reason of a pair without a patch."""
    [(setting, count)] = _count_refusals([source]).most_common(1) or [("", 0)]
    windows = f"{count} of {len(source.summary['refused'])} windows were refused by patch.{setting}" if count else "no window fits its grid"
    return {"area": source.summary["area"], "pair": source.summary["pair"], "reason": source.summary.get("pair_refused") or windows}


def _summarise_areas(sources: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """Per area: patches, pairs, CRS, first and last input (or what stands for it), and west, south, east, north in degrees."""
    grouped: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources:
        grouped[source.summary["area"]].append(source)
    return {area: _summarise_area(members) for area, members in grouped.items()}


def _summarise_area(sources: Sequence[Source]) -> dict[str, Any]:
    records = [record for source in sources for record in source.records]
    times = sorted(source.provenance[DATED_BY[source.facts["task"]]]["time"] for source in sources)
    return {
        "patches": len(records),
        "pairs": [source.summary["pair"] for source in sources],
        "crs": sorted({record.crs for record in records}),
        "first": times[0],
        "last": times[-1],
        "bbox": _enclose_patches(records),
    }


def _enclose_patches(records: Sequence[PatchRecord]) -> list[float]:
    """West, south, east, north in degrees around all patches."""
    corners = []
    for crs in sorted({record.crs for record in records}):
        bounds = np.array([record.bounds_m for record in records if record.crs == crs])
        (left, bottom), (right, top) = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        corners.append(CRS(crs).transformer_to_crs(CRS("EPSG:4326"))(np.array([left, left, right, right]), np.array([bottom, top] * 2)))
    lonlat = np.concatenate(corners, axis=1)
    return [round(float(value), 5) for value in (*lonlat.min(axis=1), *lonlat.max(axis=1))]


def _summarise_scenes(sources: Sequence[Source]) -> dict[str, dict[str, list[str]]]:
    """Per role of the task: sensors, collections, processing baselines, the offsets that were removed, and what the values are."""
    facts = {"sensors": "sensor", "collections": "collection", "baselines": "processing_baseline", "offsets": "offset"}
    return {
        role: {name: sorted({str(source.provenance[role].get(key)) for source in sources}) for name, key in facts.items()}
        | {"levels": sorted({describe_level(source.provenance[role]) or "-" for source in sources})}
        for roles in _list_roles(sources[0])
        for role in roles
    }
