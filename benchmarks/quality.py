"""Networks side by side: trained on one dataset for as many samples, scored by one evaluator, several seeds, one table with intervals.

    python benchmarks/quality.py results/pack/dataset.json results/quality

trains every variant and seed that the form names, `--jobs` at a time, seed 0 of all variants first, and writes `table.md` and
`table.json` anew after every run. Whatever stops it, the same command goes on: finished runs stay, an interrupted one resumes. A run is
`python -m sereno.model train` and then `evaluate`, with its log beside it.

Peers are read from folders that you name; ours and theirs see the same crops of the same seed, and our loss:

    python benchmarks/quality.py ... --form full --peer uncrtaints=~/UnCRtainTS --peer tcrnet=~/TCRNet

Several datasets (`NAME=DATASET.json`) get a table each, for example the same patches with SAR as it is, zeroed, and shuffled between
patches; `--score NAME=DATASET.json` only scores on that dataset what the first one trained.

The small form is for two cores: six networks x three seeds x 800 steps of four crops of 128 px, four pixels to a token, at about 0.14
core-seconds per crop: 8,100 core-seconds; validation, scoring and start-up add about 50 per run, 900 in all: 75 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from quality_plan import FORMS, PEERS, REFERENCE, VARIANTS, Dataset, Job, Plan, describe_plan, make_plan
from quality_table import Row, Scores, add_baselines, compare_datasets, read_scores, to_json, write_dataset_table, write_table

from sereno.model.config import CustomSettings
from sereno.pipeline.errors import SerenoError
from sereno.pipeline.store import read_json, write_json, write_text

ROOT: Final = Path(__file__).resolve().parent.parent
COSTS: Final = ("cpu_s", "wall_s")
"""What training took, in seconds; None where it was killed in between, so that nobody counted."""
SIZES: Final = {
    "seeds": "runs of each network",
    "steps": "optimiser steps",
    "batch-size": "crops per step",
    "crop-px": "side of a crop",
    "stem-px": "side of the square of pixels that is one token",
}
"""What may be said otherwise than the form does."""
VERB: Final = (sys.executable, "-m", "sereno.model")
"""How our commands begin."""
STATES: Final = ("state.pt", "state.previous.pt", "last.safetensors")
"""What training keeps to go on from."""
POLL_S: Final = 1.0
"""How often one looks whether a left-over process has ended."""
FINGERPRINT: Final = (
    "from sereno.pipeline.fingerprint import fingerprint as f; print(f('sereno.model.train') + ' ' + f('sereno.model.evaluate'))"
)
"""Prints what the code of training and scoring is: run anew for each run, since code may change while a table is made."""
COUNT: Final = (
    "import sys, torch; from pathlib import Path; from sereno.model.checkpoint import load_checkpoint as load; "
    "print(sum(p.numel() for p in load(Path(sys.argv[1]), torch.device('cpu')).network.parameters() if p.requires_grad))"
)
"""Prints the trained parameters of a checkpoint; a process of its own, since peers' modules may bear the same names."""


class JobFailed(Exception):  # noqa: N818 - it is no error of ours: the table goes on
    """One run cannot be made; the message says why."""


class Stopped(Exception):  # noqa: N818 - likewise
    """The table was asked to stop."""


class Bench:
    """What the runs that are made at the same time share."""

    def __init__(self, jobs: int, *, keep: bool) -> None:
        """`jobs` at a time; `keep` takes finished runs of other code as they are."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.jobs, self.keep, self.threads = jobs, keep, max(1, cores // jobs)
        self.stopping = threading.Event()
        self.processes: set[subprocess.Popen[bytes]] = set()

    def call(self, command: Sequence[str], log: IO[bytes], held: IO[str], *, output: IO[bytes] | None = None) -> float:
        """Run `command` with its words in `log` and its output there too, or in `output`; the CPU seconds it took.

        It inherits `held`: the lock of its folder lasts as long as it lives, even if this process is killed.

        Raises:
            JobFailed: it failed.
            Stopped: it was stopped.
        """
        threads = str(self.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output or log, stderr=log, pass_fds=(held.fileno(),), start_new_session=True
        )
        self.processes.add(process)
        if self.stopping.is_set():  # asked for in between
            process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.processes.discard(process)
        if self.stopping.is_set():
            raise Stopped
        if process.returncode:
            raise JobFailed(f"{' '.join(command[1:4])} ended with {process.returncode}: {_last_line(Path(log.name))}")
        return usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """Ask all processes to end; training then saves what it needs to go on."""
        self.stopping.set()
        for process in tuple(self.processes):
            process.terminate()

    @contextlib.contextmanager
    def hold(self, folder: Path) -> Iterator[IO[str]]:
        """Keep others out of `folder`; wait for a process of an earlier table that still works there.

        Raises:
            Stopped: while waiting.
        """
        folder.mkdir(parents=True, exist_ok=True)
        waiting = False
        with (folder / ".job").open("a") as file:
            while not _lock(file):
                if not waiting:
                    print(f"waiting for a process of an earlier table that is still at work in {folder}", flush=True)
                waiting = True
                if self.stopping.wait(POLL_S):
                    raise Stopped
            yield file


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else 'no word'} (all of it in {path})"


def run_job(job: Job, bench: Bench) -> str:
    """Make one run, or find it finished; in words, what was done.

    Raises:
        JobFailed: it cannot be made.
        Stopped: the table was asked to stop.
    """
    with bench.hold(job.folder) as held:
        identity, record = identify_job(job), read_record(job)
        if is_finished(job, record, identity, keep=bench.keep):
            return "was there"
        if record and not is_same_training(record, identity, keep=bench.keep):
            _empty(job.folder)
            record = {}
        missing = find_unscored(job, record, identity, keep=bench.keep)
        with (job.folder / "log.txt").open("ab") as log:
            if not record.get("trained"):
                record = train_job(job, identity, bench, (log, held))
            for dataset in missing:
                bench.call(write_scoring(job, dataset), log, held)
        commands = [write_training(job), *(write_scoring(job, dataset) for dataset in (job.dataset, *job.scored))]
        shown = [" ".join(command[1:]) for command in commands]
        identity["training"] = record["identity"]["training"]  # with `keep` its code may be another
        write_json(_record_of(job), record | {"identity": identity, "finished": True, "commands": shown})
        return "done" if record["cpu_s"] else "done, going on from what was there"


def train_job(job: Job, identity: Mapping[str, Any], bench: Bench, files: tuple[IO[bytes], IO[str]]) -> dict[str, Any]:
    """Train, and give the record of it; what training needs to go on is then deleted, being several times as large as the weights.

    Raises:
        JobFailed, Stopped: as `Bench.call`.
    """
    states = [job.folder / name for name in STATES]
    fresh = not any(state.exists() for state in states)
    write_json(_record_of(job), {"identity": identity})
    started = time.monotonic()
    seconds = bench.call(write_training(job), *files)
    costs = (seconds, time.monotonic() - started) if fresh else (None, None)
    parameters = int(_ask(COUNT, str(job.folder / "checkpoint.safetensors")))
    record = {"identity": identity, "trained": True, "parameters": parameters, **dict(zip(COSTS, costs, strict=True))}
    write_json(_record_of(job), record)
    for state in states:
        state.unlink(missing_ok=True)
    return record


def write_training(job: Job) -> list[str]:
    """The command that trains."""
    places = [str(job.dataset.path), str(job.folder / "checkpoint.safetensors")]
    return [*VERB, "train", *places, "--settings", job.settings.to_json()]


def write_scoring(job: Job, dataset: Dataset) -> list[str]:
    """The command that scores on `dataset`."""
    places = [str(dataset.path), str(job.folder / "checkpoint.safetensors"), str(job.scores(dataset))]
    return [*VERB, "evaluate", *places, "--settings", json.dumps({"examples": 0, "device": job.settings.device})]


def identify_job(job: Job) -> dict[str, Any]:
    """All that decides what comes out of training and of scoring: what is finished is good for nothing else."""
    network = job.settings.network
    source = ROOT / network.source.rpartition(":")[0] if isinstance(network, CustomSettings) else None
    training, scoring = _ask(FINGERPRINT).split()
    return {
        "training": {
            "settings": job.settings.model_dump(mode="json"),
            "dataset": job.dataset.sha256,
            "source": hashlib.sha256(source.read_bytes()).hexdigest() if source and source.is_file() else None,
            "code": training,
        },
        "scoring": {"datasets": {dataset.name: dataset.sha256 for dataset in (job.dataset, *job.scored)}, "code": scoring},
    }


def _ask(program: str, *arguments: str) -> str:
    """What a few words of Python print."""
    answer = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise JobFailed(f"python -c {program[:40]!r}... ended with {answer.returncode}: {answer.stderr.strip()[-300:]}")
    return answer.stdout.split("\n")[-2]


def _record_of(job: Job) -> Path:
    return job.folder / "run.json"


def read_record(job: Job) -> dict[str, Any]:
    """What is known of the run; empty if it was never begun."""
    path = _record_of(job)
    return dict(read_json(path)) if path.is_file() else {}


def is_finished(job: Job, record: Mapping[str, Any], identity: Mapping[str, Any], *, keep: bool) -> bool:
    """Whether the run that `record` describes is the one of `identity`, and all of it is there; `keep` lets the code differ."""
    return is_same_training(record, identity, keep=keep) and not find_unscored(job, record, identity, keep=keep)


def is_same_training(record: Mapping[str, Any], identity: Mapping[str, Any], *, keep: bool) -> bool:
    """Whether it was begun with the same settings, data and, without `keep`, code."""
    ours, theirs = identity["training"], record.get("identity", {}).get("training", {})
    return bool(ours == theirs | ({"code": ours["code"]} if keep else {}))


def find_unscored(job: Job, record: Mapping[str, Any], identity: Mapping[str, Any], *, keep: bool) -> list[Dataset]:
    """Datasets on which it is not yet scored with, unless `keep`, this code."""
    scoring = record["identity"]["scoring"] if record.get("finished") else {"datasets": {}, "code": None}
    same = keep or scoring["code"] == identity["scoring"]["code"]
    known = scoring["datasets"] if same else {}
    return [each for each in (job.dataset, *job.scored) if known.get(each.name) != each.sha256 or not job.scores(each).is_file()]


def is_of(job: Job, record: Mapping[str, Any]) -> bool:
    """Whether `record` is that of a finished run with the job's settings and dataset, whatever the code was."""
    if not record.get("finished"):
        return False
    training: Mapping[str, Any] = record["identity"]["training"]
    return bool(training["settings"] == job.settings.model_dump(mode="json") and training["dataset"] == job.dataset.sha256)


def _empty(folder: Path) -> None:
    """Remove what an outdated run left, but not the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".job":
            path.unlink()


def run_plan(plan: Plan, bench: Bench) -> dict[str, str]:
    """Make all runs, write the tables anew after each, and say how it goes; why runs failed, by name.

    Raises:
        KeyboardInterrupt: the user, or SIGTERM, asked to stop; the runs at work have saved and ended.
    """
    failed: dict[str, str] = {}
    started, made, found = time.monotonic(), 0, 0
    with ThreadPoolExecutor(bench.jobs) as executor:
        futures = {executor.submit(run_job, job, bench): job for job in plan.jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    done = future.result()
                except (JobFailed, SerenoError, OSError) as error:
                    failed[job.name], done = str(error), f"FAILED: {error}"
                made, found = (made, found + 1) if done == "was there" else (made + 1, found)
                write_tables(plan, bench, failed)
                print(_describe_progress(job, done, (found, made, len(plan.jobs)), time.monotonic() - started), flush=True)
        except KeyboardInterrupt:
            bench.stop()
            executor.shutdown(cancel_futures=True)
            raise
    return failed


def _describe_progress(job: Job, done: str, counts: tuple[int, int, int], gone_s: float) -> str:
    found, made, total = counts
    line = f"[{found + made}/{total}] {job.name}: {done}"
    record = read_record(job)
    if record.get("finished"):
        means = _read(job.scores(job.dataset)).means("network")
        line += f", {means['cloudy', 'psnr']:.2f} dB on cloudy pixels"
        line += f", {record['cpu_s'] / 60:.1f} CPU min" if record.get("cpu_s") else ""
    left = total - found - made
    forecast = f", about {_clock(gone_s * left / made)} left" if made and left else ""
    return f"{line}; {_clock(gone_s)} gone{forecast}"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


_cache: dict[tuple[Path, int], Scores] = {}


def _read(path: Path) -> Scores:
    """Scores, read once as long as they do not change."""
    key = path, path.stat().st_mtime_ns
    if key not in _cache:
        _cache[key] = read_scores(path)
    return _cache[key]


def write_tables(plan: Plan, bench: Bench, failed: Mapping[str, str]) -> None:
    """Write `table.md` and `table.json` of the runs that are finished."""
    sections: dict[str, list[Row]] = {}
    for dataset in plan.datasets:
        sections[dataset.name] = collect_rows(plan, dataset, dataset)
    for dataset in plan.scored:
        sections[dataset.name] = collect_rows(plan, plan.datasets[0], dataset)
    first = plan.datasets[0].name
    crossed = {name: compare_datasets(sections[first], rows) for name, rows in sections.items() if name != first}
    full = {name: add_baselines(rows, plan.floors.get(name, {})) for name, rows in sections.items()}
    titles = {dataset.name: f"{dataset.name}: trained on {first}" for dataset in plan.scored}
    texts = [write_table(titles.get(name, name), rows, REFERENCE) for name, rows in full.items()]
    texts += [write_dataset_table(first, name, differences) for name, differences in crossed.items() if differences]
    write_text(plan.output / "table.md", "\n".join([*texts, describe_table(plan, sections, failed)]))
    tables = {name: to_json(rows, REFERENCE) for name, rows in full.items()}
    write_json(plan.output / "table.json", {"tables": tables, "failed": dict(failed), **describe_making(plan, bench)})


def collect_rows(plan: Plan, trained: Dataset, scored: Dataset) -> list[Row]:
    """A row per variant that was trained on one dataset and scored on another, with the seeds that are finished."""
    rows: dict[str, Row] = {}
    for job in plan.jobs:
        if job.dataset is trained:
            row = rows.setdefault(job.variant, Row(job.variant, {}, None, {"cpu_s": [], "wall_s": [], "code": []}))
            record = read_record(job)
            if is_of(job, record) and job.scores(scored).is_file():
                row.runs[job.settings.seed] = _read(job.scores(scored))
                row.facts.update(parameters=record["parameters"], samples=job.settings.steps * job.settings.batch_size)
                for key in COSTS:
                    row.facts[key] += [record[key]] if record[key] else []
                row.facts["code"] = sorted({*row.facts["code"], " ".join(part["code"] for part in record["identity"].values())})
    return list(rows.values())


def describe_table(plan: Plan, sections: Mapping[str, Sequence[Row]], failed: Mapping[str, str]) -> str:
    """What the numbers are, what is missing, and why."""
    done = sum(len(row.runs) for dataset in plan.datasets for row in sections[dataset.name])
    lines = [
        f"{done} of {len(plan.jobs)} runs. A run is one number: the mean over the test patches. ± and [ ] are 95 % Student intervals over",
        "seeds, paired by seed (with one seed: from drawing ground blocks), each for itself; they say how far training by chance scatters,",
        "not how far other ground would differ. All networks see the same crops of a seed; loss and learning rate are one for all, unless",
        "the name says otherwise. CPU time is that of trainings which nothing interrupted.",
    ]
    if len({code for rows in sections.values() for row in rows for code in row.facts["code"]}) > 1:
        lines += ["", "NOTE: the code of training or scoring changed between these runs: they do not compare exactly."]
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in failed.items())] if failed else []
    return "\n".join(lines) + "\n"


def describe_making(plan: Plan, bench: Bench) -> dict[str, Any]:
    """How the table was made: command, datasets, settings and versions."""
    settings = {job.variant: job.settings.model_copy(update={"seed": 0}).model_dump(mode="json") for job in plan.jobs}
    packages = {name: version(name) for name in ("sereno", "torch", "numpy")}
    return {
        "command": sys.argv,
        "reference": REFERENCE,
        "datasets": {dataset.name: {"path": str(dataset.path), "sha256": dataset.sha256} for dataset in (*plan.datasets, *plan.scored)},
        "settings": settings,
        "runs": {job.name: record for job in plan.jobs if is_of(job, record := read_record(job))},
        "versions": {"python": platform.python_version(), **packages},
        "machine": {"system": platform.platform(), "threads": bench.threads, "at a time": bench.jobs},
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="[NAME=]DATASET.json", help="manifests of packed datasets, a table each")
    parser.add_argument("output", type=Path, help="folder for runs and tables")
    parser.add_argument("--form", choices=FORMS, default="small", help="how large the table is; the next five say otherwise")
    for name, meaning in SIZES.items():
        parser.add_argument(f"--{name}", type=_to_count, help=meaning)
    parser.add_argument("--only", metavar="A,B", help=f"only these networks, of {', '.join(VARIANTS)}, those of --variants and the peers")
    parser.add_argument("--variants", metavar="FILE", help="JSON with more networks: settings by name, as under model.runs of a config")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="settings of training for all networks")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help=f"a peer's source; known: {', '.join(PEERS)}")
    parser.add_argument("--score", action="append", default=[], metavar="NAME=DATASET.json", help="only score on this dataset")
    parser.add_argument(
        "--floors", action="append", default=[], metavar="[NAME=]FILE", help="JSON: {name: {psnr, ...}}; else floors.json beside it"
    )
    parser.add_argument("--jobs", type=_to_count, default=2, help="runs at a time; they share the cores evenly")
    parser.add_argument("--keep", action="store_true", help="take finished runs as they are though the code has changed since")
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    return parser.parse_args()


def _to_count(text: str) -> int:
    """A number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, seen {text!r}")
    return int(text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Make the table; the exit code."""
    arguments = parse_arguments()
    try:
        plan = make_plan(arguments)
        print(describe_plan(plan), flush=True)
        if arguments.plan:
            print("\n".join(job.name for job in plan.jobs))
            return 0
        signal.signal(signal.SIGTERM, _interrupt)
        bench = Bench(arguments.jobs, keep=arguments.keep)
        failed = run_plan(plan, bench)
    except SerenoError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: what is finished stays; the same command goes on", file=sys.stderr)
        return 130
    print((plan.output / "table.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
