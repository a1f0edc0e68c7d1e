"""The plan of `quality.py`: which networks, how large, and every run that follows from the command line.

A line of VARIANTS is all that another ablation takes; a function and a line of PEERS in `peers.py` all that another peer does.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from peers import PEERS

from sereno.model.config import ModelSettings, TrainSettings, needs_series
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.store import read_json, read_manifest

REFERENCE: Final = "afsst-s"
"""The variant that all others are compared with."""
ADVERSARIAL: Final = {"objective": "wgan-gp", "weight": 3e-4, "warmup_steps": 50, "width": 16}
"""A penalised critic's gradient has length 1 per image, that of the mean absolute error 1 / 443 on 12 bands of 128 px: so weighed the
critic pulls about an eighth as hard. Its warm-up is that of the learning rate."""
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "afsst-s": {},
    "afsst-m": {"network": {"size": "M"}},
    "afsst-spa": {"network": {"optical_attention": "spatial"}},
    "parallel": {"network": {"optical_attention": "parallel"}},
    "without-msfem": {"network": {"sar_features": "convolution"}},
    "concat": {"network": {"fusion": "concat"}},
    "global-fusion": {"network": {"fusion": "global"}},
    "without-sar": {"network": {"use_sar": False}},
    "without-sar-deep": {"network": {"use_sar": False, "blocks": 5}},  # as many parameters as with SAR
    "cloudy-base": {"network": {"base": "cloudy"}},
    "no-weighting": {"loss": {"cloud_emphasis": 0.0}},
    "learned-weighting": {"loss": {"weighting": "learned"}},
    "sfi": {"network": {"fusion": "sfi"}},
    "frequency-loss": {"loss": {"amplitude": 0.1, "phase": 0.1}},  # the weights of SFIIN
    "adversarial": {"adversarial": ADVERSARIAL},
    "dates": {"network": {"base": "dates"}},
    "temporal": {"network": {"base": "dates"}, "loss": {"temporal": 0.5}},  # beside dates
    "s2transformer": {"network": {"name": "s2transformer", "blocks": 3}},
    "unet": {"network": {"name": "unet"}},
}
"""Every variant as the settings in which it differs from the common ones, as under `model.runs` of a config."""
VALIDATIONS: Final = 4
"""Per run; the best weights are scored."""
CROP_CORE_S: Final = {1: 1.4, 2: 0.14, 4: 0.04}
"""CPU time of one training crop of 128 px by pixels per token's side, measured with AFSST S."""
RUN_CORE_S: Final = 50
"""CPU time of a run apart from its training steps, measured."""


OWN_RATES: Final = {"tcrnet": 1e-4, "glfcr": 1e-4, "ecrformer": 4e-4, "ecrformer-light": 4e-4}
"""Learning rate of a peer's own code where it is another than ours and known: the full form trains with both."""


class Form(NamedTuple):
    """How large a table is."""

    variants: tuple[str, ...]
    """Names in VARIANTS."""
    seeds: int
    """Runs of each."""
    steps: int
    """Optimiser steps."""
    batch_size: int
    """Crops per step."""
    crop_px: int
    """Side of a crop."""
    stem_px: int
    """Side of the square of pixels that is one token, in the networks that have tokens."""


FORMS: Final = {
    "small": Form(("afsst-s", "afsst-spa", "concat", "without-sar", "without-msfem", "unet"), 3, 800, 4, 128, 2),
    "full": Form(tuple(VARIANTS), 5, 10_000, 16, 128, 1),
}
"""For two cores, and for a GPU."""


class Dataset(NamedTuple):
    """What is trained or scored on."""

    name: str
    """In folders and headings."""
    path: Path
    """Its manifest."""
    sha256: str
    """Of the manifest, which lists the checksums of all else."""
    series: bool = False
    """Whether the clear images before and after each cloudy one are there."""


class Job(NamedTuple):
    """One run: a variant and a seed on a dataset."""

    dataset: Dataset
    """Trained and scored on."""
    scored: tuple[Dataset, ...]
    """Also scored on."""
    variant: str
    """Its name."""
    settings: TrainSettings
    """Of the run, the seed among them."""
    output: Path
    """Where all runs lie."""

    @property
    def name(self) -> str:
        """In lines of progress."""
        return f"{self.dataset.name}/{self.variant}/seed-{self.settings.seed}"

    @property
    def folder(self) -> Path:
        """Where everything about it lies."""
        return self.output / self.name

    def scores(self, dataset: Dataset) -> Path:
        """The folder of its scores on `dataset`."""
        return self.folder / f"on-{dataset.name}" if dataset in self.scored else self.folder

    def summary(self, dataset: Dataset) -> Path:
        """Their means; written last, so that all is there where it is."""
        return self.scores(dataset) / "summary.json"

    @property
    def record(self) -> Path:
        """What is known of the run."""
        return self.folder / "run.json"


class Plan(NamedTuple):
    """The whole table."""

    jobs: tuple[Job, ...]
    """In the order in which they are begun."""
    datasets: tuple[Dataset, ...]
    """Trained on."""
    scored: tuple[Dataset, ...]
    """Only scored on."""
    floors: dict[str, dict[str, dict[str, float]]]
    """Scores on cloudy pixels of what needs no training: by dataset, name and metric."""
    output: Path
    """Folder."""
    skipped: tuple[str, ...] = ()
    """Lines that say what is not run, and why."""


def make_plan(arguments: argparse.Namespace) -> Plan:
    """What is to be run.

    Raises:
        ConfigError: a name is unknown or given twice, or a setting is wrong.
        MissingError, StoreError: a dataset or a folder is not there, or no dataset.
    """
    datasets = tuple(open_dataset(text) for text in arguments.datasets)
    scored = tuple(open_dataset(text) for text in arguments.score)
    names = [dataset.name for dataset in (*datasets, *scored)]
    if len({*names}) < len(names):
        raise ConfigError(f"two datasets have the same name, seen {names}: give them names, as in sar=a/dataset.json")
    output = arguments.output.resolve()
    form = make_form(arguments)
    runs = choose_variants(form, arguments)
    settings = {name: make_settings(form, arguments.settings, name, changes) for name, changes in runs.items()}
    jobs = [
        Job(
            dataset,
            tuple(other for other in scored if dataset is datasets[0] and has_what_it_needs(other, settings[name])),
            name,
            settings[name].model_copy(update={"seed": seed}),
            output,
        )
        for seed in range(form.seeds)
        for dataset in datasets
        for name in runs
        if has_what_it_needs(dataset, settings[name])
    ]
    skipped = tuple(
        f"{name} is skipped on {dataset.name}: it looks at clear dates before and after the cloudy one, which this dataset does not hold; "
        "query with `pipeline.query.series: true` and pack anew"
        for dataset in (*datasets, *scored)
        for name in runs
        if not has_what_it_needs(dataset, settings[name])
    )
    return Plan(tuple(jobs), datasets, scored, read_floors(arguments.floors, (*datasets, *scored)), output, skipped)


def has_what_it_needs(dataset: Dataset, settings: TrainSettings) -> bool:
    """Whether a network that looks at a series finds one there."""
    return dataset.series or not needs_series(settings.network)


def open_dataset(text: str) -> Dataset:
    """`NAME=PATH` or `PATH` as a dataset; without a name it has that of its manifest.

    Raises:
        MissingError, StoreError: there is no dataset.
    """
    name, path = _split_name(text)
    summary = read_manifest(path, kind="dataset")["summary"]
    return Dataset(name or path.stem, path, hashlib.sha256(path.read_bytes()).hexdigest(), "around" in summary.get("channels", ()))


def _split_name(text: str) -> tuple[str, Path]:
    """`NAME=PATH` or `PATH` as name, empty if there is none, and whole path."""
    name, _, path = text.partition("=")
    if not path or "/" in name:  # a path may hold the sign too
        name, path = "", text
    return name, Path(path).expanduser().resolve()


def make_form(arguments: argparse.Namespace) -> Form:
    """The form that is asked for, with what the command line says otherwise."""
    changes = {key: value for key in Form._fields if (value := getattr(arguments, key, None)) is not None}
    return FORMS[arguments.form]._replace(**changes)


def choose_variants(form: Form, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings by name: the form's variants, those of `--variants` and the peers; with `--only` just those that it names.

    Raises:
        ConfigError: a name is unknown.
        MissingError: a peer's folder is not there.
    """
    added = read_json(Path(arguments.variants)) if arguments.variants else {}
    peers = {name: changes for text in arguments.peer for name, changes in make_peer(text, full=arguments.form == "full").items()}
    known = VARIANTS | added | peers
    if arguments.only is None:
        return {name: known[name] for name in (*form.variants, *added, *peers)}
    unknown = [name for name in arguments.only.split(",") if name not in known]
    if unknown:
        raise ConfigError(f"--only: no network is called {', '.join(unknown)}; known are {', '.join(known)}")
    return {name: known[name] for name in arguments.only.split(",")}


def make_peer(text: str, *, full: bool) -> dict[str, dict[str, Any]]:
    """`NAME=FOLDER` as variants: with our learning rate, and in the full form also with its authors'.

    Raises:
        ConfigError: no such peer is known.
        MissingError: the folder is not there.
    """
    name, folder = _split_name(text)
    if name not in PEERS:
        raise ConfigError(f"--peer: expected NAME=FOLDER with a name of {', '.join(PEERS)}, seen {text!r}")
    if not folder.is_dir():
        raise MissingError(f"--peer {name}: {folder} is no folder; put its source there")
    source = f"benchmarks/peers.py:{PEERS[name].__name__}"
    changes = {"network": {"name": "custom", "source": source, "options": {"folder": str(folder)}}}
    return {name: changes} | ({f"{name}-own-rate": changes | {"lr": OWN_RATES[name]}} if full and name in OWN_RATES else {})


def make_settings(form: Form, common: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> TrainSettings:
    """Settings of a variant: the form's, then `common` for all, then its own `changes`.

    Raises:
        ConfigError: one of them is no setting of training.
    """
    train: dict[str, Any] = {
        "steps": form.steps,
        "batch_size": form.batch_size,
        "crop_px": form.crop_px,
        "warmup_steps": min(50, form.steps // 10),
        "validate_every": -(-form.steps // VALIDATIONS),
        "save_every": -(-form.steps // 20),
        "pictures": 0,
        **common,
    }
    tokens = {"stem_px": form.stem_px}
    train["network"] = tokens | train.get("network", {})
    if changes.get("network", {}).get("name") not in (None, "custom"):  # another network has nothing of the common one's
        changes = {**changes, "network": tokens | changes["network"]}
    base = load_settings(TrainSettings, train, where="--settings")
    return load_settings(ModelSettings, {"train": base.model_dump(), "runs": {name: changes}}, where=name).run_settings(name)


def read_floors(texts: Sequence[str], datasets: Sequence[Dataset]) -> dict[str, dict[str, dict[str, float]]]:
    """Floors by dataset: of a `floors.json` beside it, and from `[DATASET=]FILE`; without a name those are the first dataset's.

    Raises:
        ConfigError: there is no such dataset.
        MissingError, StoreError: a file is not there, or no JSON.
    """
    beside = {dataset.name: dataset.path.with_name("floors.json") for dataset in datasets}
    floors = {name: dict(read_json(path)) for name, path in beside.items() if path.is_file()}
    for name, path in map(_split_name, texts):
        if name and name not in beside:
            raise ConfigError(f"--floors: no dataset is called {name!r}; there are {', '.join(beside)}")
        floors.setdefault(name or datasets[0].name, {}).update(read_json(path))
    return floors


def describe_plan(plan: Plan) -> str:
    """How many runs there are, and what that comes to on a CPU."""
    crops = sum(job.settings.steps * job.settings.batch_size for job in plan.jobs)
    seconds = sum(guess_core_s(job.settings) for job in plan.jobs)
    names = ", ".join(dict.fromkeys(job.variant for job in plan.jobs))
    made = f"{len(plan.jobs)} runs ({names}), {crops:,} crops; on a CPU about {seconds / 3600:.1f} core-hours if all cost what AFSST S does"
    return "\n".join([made, *plan.skipped])


def guess_core_s(settings: TrainSettings) -> float:
    """Core-seconds of a run on a CPU, if its network costs what AFSST S does."""
    crops = settings.steps * settings.batch_size * (settings.crop_px / 128) ** 2
    return crops * CROP_CORE_S[getattr(settings.network, "stem_px", 1)] + RUN_CORE_S
