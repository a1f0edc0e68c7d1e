"""Networks side by side: trained on one dataset for as many samples, scored by one evaluator, several seeds, one table with intervals.

    python benchmarks/quality.py results/pack/dataset.json results/quality

trains every variant and seed that the form names, `--jobs` at a time, seed 0 of all variants first, and writes `table.md` and
`table.json` anew after every run. Whatever stops it, the same command goes on: finished runs stay, an interrupted one resumes. A run is
`python -m sereno.model train` and then `evaluate`, with its log beside it.

Peers are read from folders that you name; ours and theirs see the same crops of the same seed, and our loss:

    python benchmarks/quality.py ... --form full --peer uncrtaints=~/UnCRtainTS --peer tcrnet=~/TCRNet

Several datasets (`NAME=DATASET.json`) get a table each, for example the same patches with SAR as it is, zeroed, and shuffled between
patches; `--score NAME=DATASET.json` only scores on that dataset what the first one trained.

Networks that look at the clear dates around a cloudy one are skipped on datasets without them, which the plan and the table say.

The small form is for two cores: six networks x three seeds x 800 steps of four crops of 128 px, four pixels to a token, at about 0.14
core-seconds per crop: 8,100 core-seconds; validation, scoring and start-up add about 50 per run, 900 in all: 75 minutes on two cores.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from quality_plan import FORMS, PEERS, REFERENCE, VARIANTS, Dataset, Job, Plan, describe_plan, make_plan
from quality_table import Row, compare_datasets, read_means, to_fixed, to_json, write_differences, write_table

from sereno.model.config import CustomSettings
from sereno.pipeline.errors import SerenoError, StoreError
from sereno.pipeline.store import read_json, write_json, write_text

ROOT: Final = Path(__file__).resolve().parent.parent
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
FINGERPRINT: Final = (
    "from sereno.pipeline.fingerprint import fingerprint as f; print(f('sereno.model.train') + ' ' + f('sereno.model.evaluate'))"
)
"""Prints what the code of training and scoring is: run anew for each run, since code may change while a table is made."""
COUNT: Final = (
    "import sys, torch; from pathlib import Path; from sereno.model.checkpoint import load_checkpoint as load; "
    "print(sum(p.numel() for p in load(Path(sys.argv[1]), torch.device('cpu')).network.parameters() if p.requires_grad))"
)
"""Prints the trained parameters of a checkpoint; a process of its own, since peers' modules may bear the same names."""


class RunError(Exception):
    """One run cannot be made, the message says why; the table goes on without it."""


class Bench:
    """What the runs that are made at the same time share."""

    def __init__(self, jobs: int, lock: IO[str], *, keep: bool) -> None:
        """`jobs` at a time, while `lock` is held; `keep` takes finished runs of other code as they are."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.jobs, self.lock, self.keep, self.threads = jobs, lock, keep, max(1, cores // jobs)
        self.stopping = threading.Event()
        self.processes: set[subprocess.Popen[bytes]] = set()

    def call(self, command: Sequence[str], log: IO[bytes]) -> float:
        """Run `command` with all its words in `log`; the CPU seconds it took.

        It inherits the lock, so that no other table begins while it lives, even if this process is killed.

        Raises:
            RunError: it failed, or was stopped.
        """
        threads = str(self.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, pass_fds=[self.lock.fileno()], start_new_session=True
        )
        self.processes.add(process)
        if self.stopping.is_set():  # asked for in between
            process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.processes.discard(process)
        if self.stopping.is_set():
            raise RunError("stopped")
        if process.returncode:
            raise RunError(f"{' '.join(command[1:4])} ended with {process.returncode}: {_last_line(Path(log.name))}")
        return usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """Ask all processes to end; training then saves what it needs to go on."""
        self.stopping.set()
        for process in tuple(self.processes):
            process.terminate()


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else 'no word'} (all of it in {path})"


def run_job(job: Job, bench: Bench) -> bool:
    """Make one run; whether anything had to be done.

    Raises:
        RunError: it cannot be made, or was stopped.
    """
    record = read_record(job)
    identity = identify_job(job, record, keep=bench.keep)
    if record and record["identity"]["training"] != identity["training"]:
        shutil.rmtree(job.folder)
        record = {}
    missing = find_unscored(job, record, identity)
    if not missing:
        return False
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("ab") as log:
        if not record.get("trained"):
            record = train_job(job, identity, bench, log)
        for dataset in missing:
            bench.call(write_scoring(job, dataset), log)
    commands = [write_training(job), *(write_scoring(job, dataset) for dataset in (job.dataset, *job.scored))]
    shown = [" ".join(command[1:]) for command in commands]
    write_json(job.record, record | {"identity": identity, "finished": True, "commands": shown})
    return True


def train_job(job: Job, identity: Mapping[str, Any], bench: Bench, log: IO[bytes]) -> dict[str, Any]:
    """Train, and give the record of it; what training needs to go on is then deleted, being several times as large as the weights.

    Raises:
        RunError: as `Bench.call`.
    """
    begun = any(job.folder.glob("state*.pt"))
    write_json(job.record, {"identity": identity})
    seconds = bench.call(write_training(job), log)
    parameters = int(_ask(COUNT, str(job.folder / "checkpoint.safetensors")))
    record = {"identity": identity, "trained": True, "parameters": parameters, "cpu_s": None if begun else seconds}
    write_json(job.record, record)
    for leftover in (*job.folder.glob("state*.pt"), job.folder / "last.safetensors"):
        leftover.unlink(missing_ok=True)
    return record


def write_training(job: Job) -> list[str]:
    """The command that trains."""
    places = [str(job.dataset.path), str(job.folder / "checkpoint.safetensors")]
    return [*VERB, "train", *places, "--settings", job.settings.to_json()]


def write_scoring(job: Job, dataset: Dataset) -> list[str]:
    """The command that scores on `dataset`."""
    places = [str(dataset.path), str(job.folder / "checkpoint.safetensors"), str(job.scores(dataset) / "scores.csv")]
    return [*VERB, "evaluate", *places, "--settings", json.dumps({"examples": 0, "device": job.settings.device})]


def identify_job(job: Job, record: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """All that decides what comes out of training and of scoring: what is finished is good for nothing else.

    With `keep` the code of what `record` has finished is taken for today's.
    """
    network = job.settings.network
    source = ROOT / network.source.rpartition(":")[0] if isinstance(network, CustomSettings) else None
    training, scoring = _ask(FINGERPRINT).split()
    if keep and record.get("trained"):
        training = record["identity"]["training"]["code"]
    if keep and record.get("finished"):
        scoring = record["identity"]["scoring"]["code"]
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
        raise RunError(f"python -c {program[:40]!r}... ended with {answer.returncode}: {answer.stderr.strip()[-300:]}")
    return answer.stdout.split("\n")[-2]


def read_record(job: Job) -> dict[str, Any]:
    """What is known of the run; empty if it was never begun."""
    return dict(read_json(job.record)) if job.record.is_file() else {}


def find_unscored(job: Job, record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[Dataset]:
    """Datasets on which the run that `record` describes is not yet scored by the code of `identity`."""
    scoring = record["identity"]["scoring"] if record.get("finished") else {"datasets": {}, "code": None}
    known = scoring["datasets"] if scoring["code"] == identity["scoring"]["code"] else {}
    return [each for each in (job.dataset, *job.scored) if known.get(each.name) != each.sha256 or not job.summary(each).is_file()]


def is_of(job: Job, record: Mapping[str, Any]) -> bool:
    """Whether `record` is that of a finished run with the job's settings and dataset, whatever the code was."""
    if not record.get("finished"):
        return False
    training: Mapping[str, Any] = record["identity"]["training"]
    return bool(training["settings"] == job.settings.model_dump(mode="json") and training["dataset"] == job.dataset.sha256)


def run_plan(plan: Plan, bench: Bench) -> dict[str, str]:
    """Make all runs, write the tables anew after each, and say how it goes; why runs failed, by name.

    Raises:
        KeyboardInterrupt: the user, or SIGTERM, asked to stop; the runs at work have saved and ended.
    """
    failed: dict[str, str] = {}
    started, made = time.monotonic(), 0
    with ThreadPoolExecutor(bench.jobs) as executor:
        futures = {executor.submit(run_job, job, bench): job for job in plan.jobs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                job = futures[future]
                try:
                    made += future.result()
                    words = f"{read_means(job.summary(job.dataset))['network']['cloudy', 'psnr']:.2f} dB on cloudy pixels"
                except (RunError, SerenoError, OSError) as error:
                    failed[job.name], words = str(error), f"FAILED: {error}"
                write_tables(plan, bench, failed)
                gone_s, left = time.monotonic() - started, len(plan.jobs) - number
                forecast = f", about {_clock(gone_s * left / made)} left" if made and left else ""
                print(f"[{number}/{len(plan.jobs)}] {job.name}: {words}; {_clock(gone_s)} gone{forecast}", flush=True)
        except KeyboardInterrupt:
            bench.stop()
            executor.shutdown(cancel_futures=True)
            raise
    return failed


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def write_tables(plan: Plan, bench: Bench, failed: Mapping[str, str]) -> None:
    """Write `table.md` and `table.json` of the runs that are finished."""
    first = plan.datasets[0]
    tables = {dataset.name: collect_rows(plan, dataset, dataset) for dataset in plan.datasets}
    tables |= {dataset.name: collect_rows(plan, first, dataset) for dataset in plan.scored}
    titles = {dataset.name: f"{dataset.name}: trained on {first.name}" for dataset in plan.scored}
    texts = [write_table(titles.get(name, name), rows, REFERENCE) for name, rows in tables.items()]
    for name in list(tables)[1:]:
        if differences := compare_datasets(tables[first.name], tables[name]):
            headings = f"{first.name} minus {name}", f"on {first.name} it is, by PSNR"
            texts.append(f"## {first.name} against {name}: the same test patches\n\n{write_differences(headings, differences)}")
    runs = {job.name: record for job in plan.jobs if is_of(job, record := read_record(job))}
    write_text(plan.output / "table.md", "\n".join([*texts, describe_table(plan, runs, failed)]))
    shown = {name: to_json(rows, REFERENCE) for name, rows in tables.items()}
    write_json(plan.output / "table.json", {"tables": shown, "failed": dict(failed), "runs": runs, **describe_making(plan, bench)})


def collect_rows(plan: Plan, trained: Dataset, scored: Dataset) -> list[Row]:
    """A row per variant that was trained on one dataset and scored on another, with the seeds that are finished; baselines and floors."""
    rows: dict[str, Row] = {}
    fixed: dict[str, Row] = {}
    for job in plan.jobs:
        if job.dataset is not trained:
            continue
        row = rows.setdefault(job.variant, Row(job.variant, {}, None, {"cpu_s": [], "code": []}))
        record = read_record(job)
        if is_of(job, record) and job.summary(scored).is_file():
            means = read_means(job.summary(scored))
            row.runs[job.settings.seed] = means.pop("network")
            row.facts.update(parameters=record["parameters"], samples=job.settings.steps * job.settings.batch_size)
            row.facts["cpu_s"] += [record["cpu_s"]] if record["cpu_s"] else []
            row.facts["code"] = sorted({*row.facts["code"], _code_of(record)})
            fixed = fixed or {name: Row(name, {}, of, {}) for name, of in means.items()}
    floors = [to_fixed(name, scores) for name, scores in plan.floors.get(scored.name, {}).items()]
    return [*rows.values(), *fixed.values(), *floors]


def _code_of(record: Mapping[str, Any]) -> str:
    """Fingerprints of the code that trained and of the code that scored."""
    return f"{record['identity']['training']['code']} {record['identity']['scoring']['code']}"


def describe_table(plan: Plan, runs: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> str:
    """What the numbers are, what is missing, and why."""
    lines = [
        f"{len(runs)} of {len(plan.jobs)} runs. A run is one number: the mean over the test patches. ± is a 95 % Student interval over",
        "seeds, differences being paired by seed, each for itself; it says how far training by chance scatters, not how far other ground",
        "would differ. All networks see the same crops of a seed; loss and learning rate are one for all, unless the name says otherwise.",
        "CPU time is that of trainings which nothing interrupted.",
    ]
    if len({_code_of(record) for record in runs.values()}) > 1:
        lines += ["", "NOTE: the code of training or scoring changed between these runs: they do not compare exactly."]
    lines += ["", *(f"- {line}" for line in plan.skipped)] if plan.skipped else []
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in failed.items())] if failed else []
    return "\n".join(lines) + "\n"


def describe_making(plan: Plan, bench: Bench) -> dict[str, Any]:
    """How the table was made: command, datasets, versions and machine."""
    return {
        "command": sys.argv,
        "datasets": {dataset.name: {"path": str(dataset.path), "sha256": dataset.sha256} for dataset in (*plan.datasets, *plan.scored)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("sereno", "torch", "numpy")}},
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
        with open_lock(plan.output) as lock:
            failed = run_plan(plan, Bench(arguments.jobs, lock, keep=arguments.keep))
    except SerenoError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: what is finished stays; the same command goes on", file=sys.stderr)
        return 130
    print((plan.output / "table.md").read_text())
    return 1 if failed else 0


def open_lock(output: Path) -> IO[str]:
    """The lock of the folder, held until it and all that inherited it are closed.

    Raises:
        StoreError: another holds it.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = (output / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreError(f"{output}: another table is being made there, or a process of an earlier one is still at work; wait") from None
    return lock


if __name__ == "__main__":
    sys.exit(main())
