"""What the Snakefile asks of the config and of the locks: which areas, scenes, pairs and runs there are, and what each job depends on.

Light on purpose: it is imported each time the workflow is parsed.
"""

from __future__ import annotations

import difflib
import fcntl
import functools
import json
import os
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from sereno.model.config import Config, CustomSettings, TrainSettings, load_config
from sereno.pipeline.config import Settings
from sereno.pipeline.errors import ConfigError, MissingError, StoreError, describe_fault
from sereno.pipeline.fingerprint import fingerprint
from sereno.pipeline.pairs import Lock, needs_heights

S = TypeVar("S", bound=Settings)
LAUNCHER: Final = "torchrun --standalone --nproc-per-node {} -m sereno.model"
"""The program that starts so many processes on one machine, to which the sub-command is added."""
HOW_TO_RUN: Final = {"query": ("max_requests",), "dem": ("attempts",), "ingest": ("readers", "attempts", "scheduler")}
"""Settings of a step that change how it works and not what it writes: its job gets them by `resources`, which trigger nothing."""


class Flow:
    """One checked config, seen as the jobs of the workflow."""

    def __init__(self, values: object, *, results: str) -> None:
        """Check the config `values`; `results` is the folder that everything goes to.

        Raises:
            ConfigError: one line that names every faulty key, a run that starts from one that there is not, a scheduler that is none, or
                frozen locks that lie where this flow writes its own.
            MissingError: the folder that says which areas there are is not there, or holds none; or a file that is named is not there.
        """
        self.config: Config = load_config(values)
        self.results = results
        self.held: IO[str] | None = None
        self.runs: tuple[str, ...] = tuple(self.config.model.runs)
        self._training: dict[str, TrainSettings] = {run: self.config.model.run_settings(run) for run in self.runs}
        self._measurements = self._find_measurements()
        for run in self.runs:
            self._check_start(run)
        _check_scheduler(self.config.pipeline.ingest.scheduler)
        self.areas: tuple[str, ...] = self._find_areas()
        self._check_files()

    def _find_areas(self) -> tuple[str, ...]:
        """Names of the areas; for a delivered dataset its seasons and ROIs, for cubes and frozen locks the names of their files."""
        query = self.config.pipeline.query
        if query.source == "lock":
            return self._find_frozen_areas(Path(query.catalogue))
        if query.source == "sen12mscr":
            from sereno.pipeline.layouts import find_sen12mscr_rois

            return tuple(sorted(find_sen12mscr_rois(Path(query.catalogue))))
        if query.source == "cubes":
            from sereno.pipeline.layouts import find_cubes

            world = self.config.pipeline.simulate
            return tuple(sorted(world.areas)) if world else tuple(find_cubes(Path(query.catalogue)))
        return tuple(query.areas)

    def _find_measurements(self) -> dict[str, str]:
        """Files of the real pictures that cubes are made of, by the names of the cubes; none if no folder is named."""
        folder = self.config.model.predict.measurements
        if folder is None:
            return {}
        from sereno.pipeline.layouts import find_measurements

        place = Path(folder).expanduser()
        return {name: str(place / file) for name, file in find_measurements(place).items()}

    def _find_frozen_areas(self, folder: Path) -> tuple[str, ...]:
        names = tuple(sorted(path.stem for path in folder.glob("*.json")))
        if not names:
            raise MissingError(f"pipeline.query.catalogue: there is no lock (AREA.json) in folder {folder}, which 'source: lock' needs")
        if folder.resolve() == Path(self.results, "query").resolve():
            raise ConfigError(
                f"pipeline.query.catalogue: {folder} is where the flow writes its own locks; copy them to another folder first"
            )
        return names

    def _check_files(self) -> None:
        """Refuse, before any job, a file of the user that is named and is not there; Snakemake would not say which key names it."""
        pipeline = self.config.pipeline
        named = {f"query.areas.{name}.file": area.file for name, area in pipeline.query.areas.items()}
        named |= {"query.table": pipeline.query.table, "pack.split.file": pipeline.pack.split.file}
        named |= {f"ingest.{key}": getattr(pipeline.ingest, key) for key in ("dem", "geoid")}
        named = {f"pipeline.{key}": path for key, path in named.items()}
        named |= {f"model.runs.{run} (train.aperture.file)": path for run in self.runs for path in map(Path, self.aperture_files(run))}
        for key, path in named.items():
            place = "" if path is None else self._locate(str(path))
            is_ours = place.startswith(f"{self.results}/")  # a job may write it
            if place and not is_ours and is_on_disk(place) and not Path(place).is_file():
                raise MissingError(f"{key}: there is no file {path}: correct its path, or leave the setting out")

    @property
    def world(self) -> list[str]:
        """The simulated world, if there is one."""
        return [f"{self.results}/simulate/world.json"] if self.config.pipeline.simulate else []

    @property
    def locks(self) -> list[str]:
        """The lock of every area."""
        return [f"{self.results}/query/{area}.json" for area in self.areas]

    def frozen_lock(self, area: str) -> list[str]:
        """The lock that the search of an area is replaced by, if it is."""
        query = self.config.pipeline.query
        return [self._locate(f"{query.catalogue}/{area}.json")] if query.source == "lock" else []

    def query_files(self, area: str) -> list[str]:
        """The files of the user that say where an area lies and what is paired, where there are some."""
        query = self.config.pipeline.query
        stated = query.areas.get(area)
        return [self._locate(str(path)) for path in (stated.file if stated else None, query.table) if path]

    @property
    def dem_files(self) -> list[str]:
        """The files of heights that scenes are corrected with, those that are named and lie on a disk."""
        ingest = self.config.pipeline.ingest
        return [self._locate(path) for path in (ingest.dem, ingest.geoid) if path and is_on_disk(path)]

    @property
    def may_join_dems(self) -> bool:
        """Whether locks may name elevation models: they are searched, or the locks are of another search."""
        return self.config.pipeline.query.dem_catalogue is not None or self.config.pipeline.query.source == "lock"

    @property
    def dem_margin(self) -> list[str]:
        """The option that says how far around an area elevation models are searched, if they are."""
        pipeline = self.config.pipeline
        return [] if pipeline.query.dem_catalogue is None else ["--dem-margin", str(pipeline.dem.margin_m)]

    @property
    def task(self) -> list[str]:
        """The option that says what scenes are searched for, unless it is cloud removal."""
        task = self.config.pipeline.task
        return [] if task == "cloud-removal" else ["--task", task]

    def dem_image(self, checkpoints: Any, area: str, scene: str) -> list[str]:
        """The joined elevation models, by their manifest, where the scene is placed by heights and no other file gives them."""
        if not self._joins_dem(checkpoints, area) or not needs_heights(self.lock(checkpoints, area).scene(scene).sensor):
            return []
        return [f"{self.results}/dem/{area}.json"]

    def dem_option(self, checkpoints: Any, area: str, scene: str) -> list[str]:
        """The option that names that image for a scene."""
        return [word for manifest in self.dem_image(checkpoints, area, scene) for word in ("--dem", manifest.removesuffix("json") + "tif")]

    def all_dems(self, checkpoints: Any) -> list[str]:
        """The joined elevation models of every area, by their manifests."""
        return [f"{self.results}/dem/{area}.json" for area in self.areas if self._joins_dem(checkpoints, area)]

    def _needed_dems(self, checkpoints: Any) -> list[str]:
        """Those of them that a scene is placed by."""
        scenes = ((area, scene) for area in self.areas for scene in self.lock(checkpoints, area).scenes)
        return list(dict.fromkeys(path for area, scene in scenes for path in self.dem_image(checkpoints, area, scene)))

    def _joins_dem(self, checkpoints: Any, area: str) -> bool:
        asked = self.may_join_dems and self.config.pipeline.ingest.dem is None
        return asked and self.lock(checkpoints, area).dem is not None

    def dem_record(self, checkpoints: Any, area: str) -> str:
        """The elevation models as the lock describes them."""
        lock = self.lock(checkpoints, area)
        return (lock.dem.to_json() if lock.dem else "") + lock.grid.to_json()

    def settings(self, step: str, **wildcards: str) -> str:
        """Settings of a step as JSON: only what that job uses and what may change its outputs; the rest has its default."""
        if step == "query":
            return _drop_how_to_run(step, self.config.pipeline.query.for_area(wildcards["area"])).to_json()
        if step == "train":
            return self._training[wildcards["run"]].to_json()
        if step == "predict":  # which scenes are asked for changes none of them
            return self.config.model.predict.model_copy(update={"pairs_per_area": None, "measurements": None}).to_json()
        section: Any = getattr(self.config.pipeline, step, None) or getattr(self.config.model, step)
        return str(_drop_how_to_run(step, section).to_json())

    def code(self, step: str) -> str:
        """Fingerprint of the code that the step runs."""
        package = "model" if step in {"train", "evaluate", "predict", "report"} else "pipeline"
        return fingerprint(f"sereno.{package}.{step}")

    def launch(self, run: str) -> str:
        """The program that trains a run: ours, or torchrun if several processes share each batch."""
        processes = self.processes(run)
        return "sereno" if processes == 1 else LAUNCHER.format(processes)

    def processes(self, run: str) -> int:
        """Processes that train a run, one per GPU."""
        return self._training[run].processes

    def network_files(self, run: str) -> list[str]:
        """The file of a network that is not ours."""
        network = self._training[run].network
        return [self._locate(network.file)] if isinstance(network, CustomSettings) else []

    def aperture_files(self, run: str) -> list[str]:
        """The file of the coded aperture that a run trains with, if it is not the one that we made up."""
        aperture = self._training[run].aperture
        return [self._locate(aperture.file)] if aperture and aperture.file else []

    def measurement_file(self, measurement: str) -> str:
        """The picture that a cube of this name is made of; a name that no picture bears is a file that is not there."""
        return self._measurements.get(measurement, f"{self.config.model.predict.measurements}/{measurement}")

    @property
    def all_cubes(self) -> list[str]:
        """The cubes that every run makes of real pictures."""
        return [f"{self.results}/predict/{run}/{name}.tif" for run in self.runs for name in self._measurements]

    def start_files(self, run: str) -> list[str]:
        """The checkpoint that a run starts from; if another run writes it, that one comes first."""
        start = self._training[run].start_from
        return [self._locate(start)] if start else []

    def _locate(self, path: str) -> str:
        """A path as Snakemake must see it: what lies in the results folder begins with its name, as outputs do."""
        place = os.path.expanduser(path)  # noqa: PTH111 - pathlib has no relpath that leaves a folder
        inside = os.path.relpath(place, self.results)
        return place if inside.startswith("..") else f"{self.results}/{inside}"

    def _check_start(self, run: str) -> None:
        for path in self.start_files(run):
            folder, other = Path(path).parent, Path(path).parent.name
            if folder.parent == Path(self.results, "train") and (other == run or other not in self.runs):
                known = ", ".join(name for name in self.runs if name != run) or "none"
                raise ConfigError(
                    f"model.runs.{run}: 'start_from' is {path}, but no other run bears the name '{other}'; others are: {known}"
                )

    def lock(self, checkpoints: Any, area: str) -> Lock:
        """The lock of an area, once the checkpoint has written it."""
        path = Path(checkpoints.query_area.get(area=area).output.lock)
        return _read_lock(path, path.stat().st_mtime_ns)

    def scene_record(self, checkpoints: Any, area: str, scene: str) -> str:
        """The scene as the lock describes it: a job depends on its own record, not on the whole lock."""
        lock = self.lock(checkpoints, area)
        return lock.scene(scene).to_json() + _place_of(lock) + lock.catalogue

    def pair_record(self, checkpoints: Any, area: str, pair: str) -> str:
        """The pair or group as the lock describes it."""
        lock = self.lock(checkpoints, area)
        return lock.job(pair).to_json() + _place_of(lock)

    def pair_scenes(self, checkpoints: Any, area: str, pair: str) -> list[str]:
        """Scene manifests of a pair (SAR, cloudy, clear, and in a series before and after) or group."""
        return [f"{self.results}/ingest/{area}/{scene}.json" for scene in self.lock(checkpoints, area).job(pair).scene_ids]

    def all_ledgers(self, checkpoints: Any) -> list[str]:
        """What became of the items and assets of every area and scene."""
        manifests = [*self.locks, *self.all_scenes(checkpoints), *self._needed_dems(checkpoints)]
        return [f"{manifest.removesuffix('.json')}.ledger.csv" for manifest in manifests]

    def all_scenes(self, checkpoints: Any) -> list[str]:
        """Scene manifests of every area."""
        return [f"{self.results}/ingest/{area}/{scene}.json" for area in self.areas for scene in self.lock(checkpoints, area).scenes]

    def all_pairs(self, checkpoints: Any, step: str) -> list[str]:
        """What `step` writes for every pair or group of every area."""
        return [f"{self.results}/{step}/{area}/{pair.id}.json" for area in self.areas for pair in self.lock(checkpoints, area).jobs]

    def all_runs(self, step: str, name: str) -> list[str]:
        """The file `name` that `step` writes for every run."""
        return [f"{self.results}/{step}/{run}/{name}" for run in self.runs]

    def all_predictions(self, checkpoints: Any) -> list[str]:
        """The cleared scenes that are asked for: of each area the first pairs that were not given up.

        Which those are is known once every pair is aligned; the dataset is packed after that and before any network is trained, so
        waiting for it costs no time.
        """
        limit = self.config.model.predict.pairs_per_area
        if limit == 0:
            return []
        checkpoints.pack_patches.get()
        usable = {area: [job for job in self.lock(checkpoints, area).jobs if not self._is_given_up(area, job.id)] for area in self.areas}
        chosen = [(area, job.id) for area in self.areas for job in usable[area][:limit]]
        return [f"{self.results}/predict/{run}/{area}/{pair}.tif" for run in self.runs for area, pair in chosen]

    def _is_given_up(self, area: str, pair: str) -> bool:
        """Whether `align` found that nothing of a pair can be used; a pair that it has not written is not given up."""
        path = Path(f"{self.results}/align/{area}/{pair}.json")
        return path.is_file() and _read_refusal(path, path.stat().st_mtime_ns) is not None


def is_on_disk(path: str) -> bool:
    """Whether a path names a file of this machine, not one that GDAL reads from elsewhere."""
    return "://" not in path and not path.startswith("/vsi")


def _drop_how_to_run(step: str, settings: S) -> S:
    """The settings with those of `HOW_TO_RUN` at their defaults."""
    fields = type(settings).model_fields
    return settings.model_copy(update={name: fields[name].default for name in HOW_TO_RUN.get(step, ())})


def _check_scheduler(scheduler: str) -> None:
    """Refuse, before any job, what is neither the threads of this machine nor an address."""
    if scheduler != "threads" and "://" not in scheduler:
        near = ", did you mean 'threads'?" if difflib.get_close_matches(scheduler.lower(), ["threads"]) else ""
        expected = "'threads' or an address such as tcp://host:8786"
        raise ConfigError(f"pipeline.ingest.scheduler: seen '{scheduler}', expected {expected}{near}")


def _place_of(lock: Lock) -> str:
    """The ground that a lock is about, as text."""
    return lock.grid.to_json() + (json.dumps(lock.outline, sort_keys=True) if lock.outline else "")


@functools.lru_cache(maxsize=4096)
def _read_lock(path: Path, _modified_ns: int) -> Lock:
    return Lock.read(path)


@functools.lru_cache(maxsize=4096)
def _read_refusal(path: Path, _modified_ns: int) -> str | None:
    """Why a pair was given up, by its manifest; None of a damaged one, which the job that needs it will name."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return None
    summary = content.get("summary") if isinstance(content, dict) else None
    return summary.get("refused") if isinstance(summary, dict) else None


def hold_folder(folder: Path) -> IO[str]:
    """Keep other runs out of `folder` as long as the returned file is open, that is until this process ends, however it ends.

    Snakemake's own lock survives a killed run and then asks for `--unlock`; a lock of the kernel's does not.

    Raises:
        StoreError: another run is at work there, or the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".running").open("a+")
    except OSError as error:
        raise StoreError(f"folder {folder}, for results, cannot be written: {describe_fault(error)}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read().strip()
        raise StoreError(f"process {holder} is already at work in {folder}: wait for it, or stop it") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
