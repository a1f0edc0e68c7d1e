"""What the other steps have left in the results folder, as one record for the report.

The folder enters; `Results` leaves, with None or nothing where a step has not run. Scenes and pictures stay on disk.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sereno.pipeline.ledger import Entry, ledger_of, read_ledgers
from sereno.pipeline.pairs import Lock
from sereno.pipeline.store import read_json, read_manifest, store_of

Array = npt.NDArray[Any]
Json = dict[str, Any]
Key = tuple[str, str]
"""Area and pair id."""
CLEARING: Final = "cloud-removal"
"""The task of results that do not say what they are for."""
PICTURE_NAME: Final = re.compile(r"step-(\d+)\.png")
"""Pictures of validation patches; the number is the step after which they were taken."""


@dataclass(frozen=True)
class RunResults:
    """What is there of one training run."""

    name: str
    """Its name."""
    history: list[dict[str, str]]
    """Rows of `history.csv`; empty if there is none."""
    summary: Json | None
    """`summary.json` of the evaluation; None if there is none."""
    scores: list[dict[str, str]]
    """Rows of `scores.csv`; empty if there are none."""
    examples: Path | None
    """`examples.npz`; None if there is none."""
    predictions: dict[Key, Path]
    """Records of the predicted images whose pair or group is in a lock and was not given up since."""
    pictures: dict[int, Path]
    """Pictures of the same validation patches, by step, rising."""


@dataclass(frozen=True)
class Results:
    """What the other steps have left."""

    folder: Path
    """The results folder."""
    locks: dict[str, Lock]
    """By area."""
    aligned: dict[Key, Json]
    """Summaries of the pairs, or groups, that are there."""
    patched: dict[Key, Json]
    """Summaries of the patch stores that are there."""
    scenes: dict[Key, Json]
    """Summaries of the ingested scenes that are there, by area and scene id."""
    masked: dict[Key, Json]
    """Summaries of the masks that are there."""
    ledger: list[Entry]
    """What became of items and assets; entries of the search and of every scene in a lock."""
    dataset: Json | None
    """Summary of the packed dataset; None if there is none."""
    dataset_sha256: str
    """SHA-256 of its manifest; empty if there is none."""
    records: list[dict[str, str]]
    """Rows of `patches.csv`; empty if there is no dataset."""
    runs: tuple[RunResults, ...]
    """The runs to show."""
    world: Json | None
    """`world.json` of the simulation; None if the data is real."""

    @property
    def task(self) -> str:
        """What the dataset is for; without one the locks say it, or the runs."""
        said = [self.dataset.get("task", CLEARING)] if self.dataset is not None else [lock.task for lock in self.locks.values()]
        said += [task_of(run) for run in self.runs if run.summary is not None]
        return str(said[0]) if said else CLEARING

    def manifest(self, step: str, key: Key) -> Path:
        """Where `step` writes what belongs to `key`."""
        return self.folder / step / key[0] / f"{key[1]}.json"

    def refusal(self, key: Key) -> str | None:
        """Why a pair is not used at all; None if it is, or is not aligned yet."""
        return (self.aligned.get(key) or {}).get("refused")


def read_results(folder: Path, runs: tuple[str, ...]) -> Results:
    """What is there in the results folder.

    Raises:
        StoreError, ConfigError, DataError: a file that is there is damaged or of another kind.
    """
    locks = {lock.area: lock for lock in map(Lock.read, sorted(folder.glob("query/*.json")))}
    jobs = [(area, job.id) for area, lock in locks.items() for job in lock.jobs]
    scenes = [(area, scene) for area, lock in locks.items() for scene in sorted(lock.scenes)]
    kinds = {area: "group" if lock.groups else "pair" for area, lock in locks.items()}
    aligned = {key: found for key in jobs for found in _read_summaries(folder / "align", [key], kinds[key[0]]).values()}
    usable = [key for key in jobs if not aligned.get(key, {}).get("refused")]
    dataset, world = folder / "pack/dataset.json", folder / "simulate/world.json"
    named = runs or tuple(path.parent.name for path in sorted(folder.glob("evaluate/*/scores.csv")))
    return Results(
        folder=folder,
        locks=locks,
        aligned=aligned,
        patched=_read_summaries(folder / "patch", jobs, "patches"),
        scenes=_read_summaries(folder / "ingest", scenes, "scene"),
        masked=_read_summaries(folder / "mask", jobs, "mask"),
        ledger=_read_ledgers(folder, locks, scenes),
        dataset=read_manifest(dataset, kind="dataset")["summary"] if dataset.is_file() else None,
        dataset_sha256=hashlib.sha256(dataset.read_bytes()).hexdigest() if dataset.is_file() else "",
        records=_read_table(store_of(dataset) / "patches.csv") if dataset.is_file() else [],
        runs=tuple(_read_run(folder, name, usable) for name in named),
        world=read_json(world) if world.is_file() else None,
    )


def _read_summaries(folder: Path, keys: Iterable[Key], kind: str) -> dict[Key, Json]:
    paths = {(area, name): folder / area / f"{name}.json" for area, name in keys}
    return {key: read_manifest(path, kind=kind)["summary"] for key, path in paths.items() if path.is_file()}


def _read_ledgers(folder: Path, areas: Iterable[str], scenes: Iterable[Key]) -> list[Entry]:
    manifests = [folder / f"query/{area}.json" for area in areas] + [folder / f"ingest/{area}/{scene}.json" for area, scene in scenes]
    return read_ledgers(path for path in map(ledger_of, manifests) if path.is_file())


def _read_run(folder: Path, name: str, pairs: Iterable[Key]) -> RunResults:
    evaluated = folder / "evaluate" / name
    summary, examples = evaluated / "summary.json", evaluated / "examples.npz"
    predictions = {(area, pair): folder / "predict" / name / area / f"{pair}.json" for area, pair in pairs}
    return RunResults(
        name=name,
        history=_read_table(folder / "train" / name / "history.csv"),
        summary=read_json(summary) if summary.is_file() else None,
        scores=_read_table(evaluated / "scores.csv"),
        examples=examples if examples.is_file() else None,
        predictions={key: path for key, path in predictions.items() if path.is_file() and path.with_suffix(".tif").is_file()},
        pictures=find_pictures(folder / "train" / name),
    )


def task_of(run: RunResults) -> str:
    """What a run that was evaluated is for."""
    return str((run.summary or {}).get("checkpoint", {}).get("task", CLEARING))


def network_of(run: RunResults) -> str:
    """Name of the network of a run; empty where nothing says it."""
    return str((run.summary or {}).get("checkpoint", {}).get("settings", {}).get("network", {}).get("name", ""))


def name_picture(folder: Path, step: int) -> Path:
    """Where training puts the picture of its validation patches after `step`; `folder` is that of the run."""
    return folder / f"pictures/step-{step:06d}.png"


def find_pictures(folder: Path) -> dict[int, Path]:
    """The pictures of validation patches in the folder of a run, by step, rising."""
    matches = [(PICTURE_NAME.fullmatch(path.name), path) for path in (folder / "pictures").glob("*.png")]
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def list_cleared(results: Results) -> list[Key]:
    """Pairs with a cleared scene whose pair is still there, in order."""
    return sorted({key for run in results.runs for key in run.predictions if results.manifest("align", key).is_file()})


def is_stale(run: RunResults, key: Key) -> bool:
    """Whether an image was made with other weights than those that were scored, as one left over from an earlier training is."""
    cleared = read_json(run.predictions[key])["checkpoint"]["weights_sha256"]
    return run.summary is not None and run.summary["checkpoint"]["weights_sha256"] != cleared


def find_truth(results: Results, item: str) -> Path | None:
    """The simulated image without clouds of an optical item, if there is one."""
    for area in (results.world or {}).get("areas", {}).values():
        for scene in area["optical"]:
            if scene["item"] == item and scene["truth"]:
                path = results.folder / "simulate" / scene["truth"]
                return path if path.is_file() else None
    return None


def find_error(results: Results, item: str) -> tuple[float, float] | None:
    """East and north, metres, by which coefficients place a simulated Gaofen product off; None of anything else."""
    for area in (results.world or {}).get("areas", {}).values():
        for scene in (*area["optical"], *area["sar"]):
            if scene["item"] == item and "error_m" in scene:
                return scene["error_m"][0], scene["error_m"][1]
    return None


def find_true_shift(results: Results, key: Key, role: str) -> tuple[float, float] | None:
    """True shift (rows, columns) of a simulated scene of a pair against its clear one, in pixels of the area's grid; None if not known."""
    lock = results.locks[key[0]]
    pair, pixel_m = lock.pair(key[1]), lock.grid.transform[0]
    item, clear = (lock.scene(scene).item for scene in (getattr(pair, role), pair.clear))
    errors = find_error(results, item), find_error(results, clear)
    if errors[0] is not None and errors[1] is not None:
        east, north = (ours - theirs for ours, theirs in zip(errors[0], errors[1], strict=True))
        return -north / pixel_m, east / pixel_m
    for facts in (results.world or {}).get("areas", {}).values():
        for scene in facts["sar"]:
            if scene["item"] == item and "displacement" in scene:
                ratio = facts["grid"]["transform"][0] / pixel_m
                return scene["displacement"]["dy_px"] * ratio, scene["displacement"]["dx_px"] * ratio
    return None


def read_examples(run: RunResults) -> dict[str, Array]:
    """The arrays of `examples.npz`; empty if there is no example."""
    if run.examples is None:
        return {}
    with np.load(run.examples) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays if len(arrays["id"]) else {}
