"""The networks of the other tasks beside what needs no training: several seeds each, one table per dataset.

    python benchmarks/tasks.py OUTPUT [NAME=DATASET.json ...]

trains every network of `NETWORKS` that belongs to a recipe, on the dataset that this recipe packed, with the recipe's own settings and
seeds 0, 1 and 2, one run at a time, and writes `OUTPUT/tasks.md` and `tasks.json` anew after every run. NAME is that of the recipe; without
one, all datasets are taken that recipes have packed under `results`. Whatever stops it, the same command goes on: finished runs stay, an
interrupted one resumes. A run is `sereno train` and then `sereno evaluate`, with its log beside it.

    for recipe in pansharpening spatiotemporal-fusion; do snakemake pack --configfile recipes/$recipe.yaml; done
    python benchmarks/tasks.py results/tasks
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from quality import Bench, RunError, is_of, open_lock, read_record, run_job
from quality_plan import Job, open_dataset

from sereno.model.config import ModelSettings
from sereno.model.tasks import TASKS
from sereno.model.verdicts import is_larger_better
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import ConfigError, MissingError, SerenoError
from sereno.pipeline.store import read_json, read_manifest, write_json, write_text

ROOT: Final = Path(__file__).resolve().parent.parent
STFGAN: Final = {"name": "stfgan", "width": 16, "coarse_blocks": 4, "fine_blocks": 4}
"""Generators for two cores: a quarter of the width, fewer blocks."""
NETWORKS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "pansharpening": {"sfiin": {}, "sfiin-convolution": {"network": {"spatial": "convolution"}}},
    "pansharpening-gaofen": {"sfiin": {}},
    "spatiotemporal-fusion": {
        "stfnet": {},
        "stfnet-span": {"network": {"learning": "span"}},
        "stfnet-span-proportional": {"network": {"learning": "span", "proportional": True}},
        "stfgan": {"network": STFGAN},
        "stfgan-critic": {"network": STFGAN, "adversarial": {"weight": 1e-5}},
    },
    "landsat-modis": {"stfnet": {}},
    "snapshot-reconstruction": {"s2snapshot": {}},
}
"""By the name of a recipe, networks and the settings in which they differ from the recipe's; another line is another row of the table."""
SEEDS: Final = 3
"""Runs of each network."""
DIGITS: Final = {"psnr": 2, "sam_deg": 2, "ergas": 2, "ssim": 4, "q2n": 4}
"""Decimals of metrics; of all others 5."""
COMPARED: Final = ("", "metric", "best baseline", "difference", "seeds from .. to", "spread", "ahead by more than the spread")
"""Headings of the second table."""


class Table(NamedTuple):
    """What is known of the networks of one dataset."""

    name: str
    """Of the recipe."""
    task: str
    """What the dataset is for."""
    runs: dict[str, list[dict[str, Any]]]
    """By network, for each finished seed its record and its summary together."""


def plan_jobs(datasets: Mapping[str, Path], output: Path, seeds: int, only: Sequence[str] = ()) -> list[Job]:
    """All runs, seed by seed, so that a table that is not finished has every network.

    Raises:
        ConfigError: there is no such recipe or network, or its settings are wrong.
        MissingError, StoreError: a dataset is not there, or is none.
    """
    known = {network for networks in NETWORKS.values() for network in networks}
    unknown = [*(name for name in datasets if name not in NETWORKS), *(name for name in only if name not in known)]
    if unknown:
        raise ConfigError(f"no table has {', '.join(unknown)}: recipes are {', '.join(NETWORKS)}, networks {', '.join(sorted(known))}")
    jobs = []
    for name, path in datasets.items():
        dataset, model = open_dataset(f"{name}={path}"), read_recipe(name)
        for network in NETWORKS[name]:
            if not only or network in only:
                settings = model.run_settings(network).model_copy(update={"pictures": 0})
                jobs += [Job(dataset, (), network, settings.model_copy(update={"seed": seed}), output) for seed in range(seeds)]
    return sorted(jobs, key=lambda job: job.settings.seed)


def read_recipe(name: str) -> ModelSettings:
    """The model settings of a recipe, with the networks of the table as its runs.

    Raises:
        ConfigError: they are not valid.
    """
    given = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()).get("model", {})
    runs = {network: dict(changes) for network, changes in NETWORKS[name].items()}
    return load_settings(ModelSettings, {**given, "runs": runs}, where=f"recipes/{name}.yaml, model")


def find_datasets(texts: Sequence[str]) -> dict[str, Path]:
    """`NAME=DATASET.json` by name; of none at all, what recipes have packed under `results`.

    Raises:
        ConfigError: a text is not of that form.
        MissingError: nothing is packed.
    """
    packed = {name: ROOT / "results" / name / "pack" / "dataset.json" for name in NETWORKS}
    given = dict(text.split("=", 1) if "=" in text else (text, "") for text in texts)
    if any(not path for path in given.values()):
        raise ConfigError(f"expected NAME=DATASET.json, seen {' '.join(texts)}")
    found = {name: Path(path) for name, path in given.items()} or {name: path for name, path in packed.items() if path.is_file()}
    if not found:
        raise MissingError(f"no recipe has packed a dataset under {ROOT / 'results'}: `snakemake pack --configfile recipes/NAME.yaml`")
    return found


def collect_tables(jobs: Sequence[Job]) -> list[Table]:
    """What is finished, in the order of the table."""
    tables: dict[str, Table] = {}
    for job in jobs:
        task = read_manifest(job.dataset.path, kind="dataset")["summary"].get("task", "cloud-removal")
        table = tables.setdefault(job.dataset.name, Table(job.dataset.name, task, {}))
        runs, record = table.runs.setdefault(job.variant, []), read_record(job)
        if is_of(job, record) and job.summary(job.dataset).is_file():
            runs.append({**record, "summary": read_json(job.summary(job.dataset)), "steps": job.settings.steps, "seed": job.settings.seed})
    return list(tables.values())


def write_table(table: Table) -> str:
    """One dataset in Markdown: what everything scores, and each network less the best of what needs no training."""
    finished = {network: runs for network, runs in table.runs.items() if runs}
    if not finished:
        return f"## {table.name}\n\nNo run is finished.\n"
    summary = next(iter(finished.values()))[0]["summary"]
    region, metrics = TASKS[table.task].scoring.compared
    columns = [(region, metric) for metric in metrics] + [(other, metrics[0]) for other in summary["regions"] if other != region]
    columns = [column for column in columns if _read(summary, "network", column) is not None]
    headings = ["", *(f"{metric}, {where}" for where, metric in columns), "seeds", "parameters", "steps", "core-s"]
    rows = [_describe_network(network, runs, columns) for network, runs in finished.items()]
    rows += [
        [name, *(_show(_read(summary, name, column), column[1]) for column in columns), "", "", "", ""]
        for name in summary["scores"]
        if name != "network"
    ]
    ground = f"{summary['patches']} {summary['split']} patches of {summary['blocks']} ground blocks"
    where = "; ".join(f"{key}: {words}" for key, words in summary["regions"].items())
    compared = [_compare(network, runs, (region, metric)) for network, runs in finished.items() for metric in metrics]
    parts = [
        f"## {table.name}\n\nTask {table.task}, {ground}. {where}.\n",
        _to_markdown([headings, *rows]),
        f"\nNetwork against the best of what needs no training, {region}; positive is better:\n",
        _to_markdown([COMPARED, *compared]),
        "",
    ]
    return "\n".join(parts)


def _read(summary: Mapping[str, Any], method: str, column: tuple[str, str]) -> float | None:
    value: float | None = summary["scores"][method][column[0]][column[1]]["mean"]
    return value


def _show(value: float | None, metric: str) -> str:
    return "" if value is None else f"{value:.{DIGITS.get(metric, 5)}f}"


def _describe_network(network: str, runs: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> list[str]:
    """Means over the seeds, parameters, steps, and what training cost where nothing interrupted it."""
    cells = [network]
    for column in columns:
        values = [value for run in runs if (value := _read(run["summary"], "network", column)) is not None]
        cells.append(_show(statistics.fmean(values), column[1]) if values else "")
    seconds = [run["cpu_s"] for run in runs if run["cpu_s"]]
    cost = f"{statistics.fmean(seconds):.0f}" if seconds else "?"
    return [*cells, str(len(runs)), f"{runs[0]['parameters']:,}", str(runs[0]["steps"]), cost]


def _compare(network: str, runs: Sequence[Mapping[str, Any]], column: tuple[str, str]) -> list[str]:
    """How far a network is ahead of the best baseline by one metric: mean, least and most over the seeds."""
    metric, sign = column[1], 1 if is_larger_better(column[1]) else -1
    scores = runs[0]["summary"]["scores"]
    baselines = {name: value for name in scores if name != "network" and (value := _read(runs[0]["summary"], name, column)) is not None}
    seen = [value for run in runs if (value := _read(run["summary"], "network", column)) is not None]
    if not baselines or not seen:
        return [network, metric, "", "", "", "", "no score"]
    best = max(baselines, key=lambda name: sign * baselines[name])
    ahead = [sign * (value - baselines[best]) for value in seen]
    spread = max(ahead) - min(ahead)
    verdict = "one seed says nothing" if len(ahead) < 2 else "yes" if min(ahead) > spread else "no"
    shown = [_show(value, metric) for value in (statistics.fmean(ahead), min(ahead), max(ahead), spread)]
    return [network, metric, best, shown[0], f"{shown[1]} .. {shown[2]}", shown[3], verdict]


def _to_markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def write_tables(jobs: Sequence[Job], output: Path, failed: Mapping[str, str]) -> None:
    """Write `tasks.md` and `tasks.json` of the runs that are finished."""
    tables = collect_tables(jobs)
    done = sum(len(runs) for table in tables for runs in table.runs.values())
    head = (
        "# The networks of the other tasks\n\n"
        f"Made by `python benchmarks/tasks.py`, {done} of {len(jobs)} runs, on simulated worlds: they show that a network learns its\n"
        "task, not how good it is on real images. A run is one number, the mean over test patches on ground that no training patch\n"
        "shows; what is stated of a network is the mean over its seeds, the spread is the largest less the smallest of them.\n"
    )
    failures = [f"\n- {name} failed: {reason}" for name, reason in failed.items()]
    write_text(output / "tasks.md", "\n".join([head, *map(write_table, tables), *failures]))
    write_json(output / "tasks.json", {table.name: table.runs for table in tables})


def run_jobs(jobs: Sequence[Job], output: Path, bench: Bench) -> dict[str, str]:
    """Make all runs one after the other, with the tables written anew after each; why runs failed, by name.

    Raises:
        KeyboardInterrupt: the user, or SIGTERM, asked to stop; the run at work has saved and ended.
    """
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        try:
            words = "done" if run_job(job, bench) else "was done"
        except KeyboardInterrupt:
            bench.stop()
            for process in tuple(bench.processes):
                process.wait()
            raise
        except (RunError, SerenoError, OSError) as error:
            failed[job.name], words = str(error), f"FAILED: {error}"
        write_tables(jobs, output, failed)
        print(f"[{number}/{len(jobs)}] {job.name}: {words}", flush=True)
    return failed


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for runs and tables")
    parser.add_argument("datasets", nargs="*", metavar="NAME=DATASET.json", help="datasets by the name of the recipe that packed them")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each network")
    parser.add_argument("--only", default="", metavar="A,B", help="only these networks")
    parser.add_argument("--threads", type=int, default=1, help="of a run; more than idle cores make it many times slower")
    parser.add_argument("--keep", action="store_true", help="take finished runs as they are though the code has changed since")
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    return parser.parse_args()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Make the tables; the exit code."""
    arguments = parse_arguments()
    output = arguments.output.resolve()
    only = [name for name in arguments.only.split(",") if name]
    try:
        jobs = plan_jobs(find_datasets(arguments.datasets), output, arguments.seeds, only)
        if arguments.plan:
            print("\n".join(f"{job.name}: {json.dumps(job.settings.model_dump(mode='json')['network'])}" for job in jobs))
            return 0
        signal.signal(signal.SIGTERM, _interrupt)
        with open_lock(output) as lock:
            bench = Bench(1, lock, keep=arguments.keep)
            bench.threads = arguments.threads
            failed = run_jobs(jobs, output, bench)
    except SerenoError as error:
        print(f"tasks: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: what is finished stays; the same command goes on", file=sys.stderr)
        return 130
    print((output / "tasks.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
