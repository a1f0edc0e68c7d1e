"""How the results were made, for the report: software, checksums, bands, units and settings.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from sereno.model.checkpoint import CheckpointMeta
from sereno.model.page import NOTHING, Block, Cell, Heading, Table, Text, show_count
from sereno.model.results import CLEARING, Json, Results, RunResults, network_of, task_of
from sereno.model.tasks import TASKS, create_network, describe_network
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import SerenoError
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS

BAND_KINDS: Final = {"optical": "bands", "SAR": "sar_bands", "sharp": "pan_bands"}
"""Keys of the dataset's bands, by what they are called on the page."""
PACKAGES: Final = ("sereno", "torch", "numpy", "xarray", "zarr", "rasterio", "odc-geo", "scipy", "snakemake", "matplotlib")
"""Software whose versions are named."""


def describe_making(results: Results) -> list[Block]:
    """Software, checksums, bands, units and settings: what somebody needs to make the page again."""
    blocks: list[Block] = [Heading("Software"), _to_fact_table({name: version(name) for name in PACKAGES})]
    facts = {"optical values": OPTICAL_UNITS, "SAR values": SAR_UNITS, "scores": "reflectance, 1 = 100 %; dB with peak 1; degrees; percent"}
    if results.task != CLEARING:
        del facts["SAR values"]
    if results.dataset is not None:
        facts |= {f"{kind} bands": ", ".join(results.dataset[name]) for kind, name in BAND_KINDS.items() if results.dataset.get(name)}
        facts |= {"pixel size": f"{results.dataset['resolution_m']:g} m", "SHA-256 of pack/dataset.json": results.dataset_sha256}
    blocks += [Heading("Data"), _to_fact_table(facts)]
    summaries = {run.name: run.summary for run in results.runs if run.summary is not None}
    if not summaries:
        return [*blocks, Text("No run has been evaluated, so there are no settings to list.", "missing")]
    columns = {name: _describe_settings(summary) for name, summary in summaries.items()}
    keys = list(dict.fromkeys(key for settings in columns.values() for key in settings))
    rows = [[Cell(key), *(_mark_difference(key, name, columns) for name in columns)] for key in keys]
    blocks += [block for run in results.runs for block in _describe_network(run)]
    return [*blocks, Heading("Settings of the runs"), Table(("setting", *columns), rows, n_words=1 + len(columns))]


def read_meta(run: RunResults) -> CheckpointMeta | None:
    """What the checkpoint of a run said when it was scored; None if it has no scores or they are of another version."""
    if run.summary is None:
        return None
    try:
        return load_settings(CheckpointMeta, run.summary["checkpoint"], where=f"summary of {run.name}")
    except SerenoError:
        return None


def _describe_network(run: RunResults) -> list[Block]:
    """How large the network of a run is, what of it is the paper's and what is ours, as `sereno describe` says it."""
    meta = read_meta(run)
    if meta is None or task_of(run) not in TASKS:
        return []
    heading = Heading(f"Network of {run.name}: {network_of(run)}")
    try:
        network = create_network(TASKS[meta.task], meta.settings.network, meta.signature)
        described = describe_network(meta.settings.network)
    except SerenoError as error:
        return [heading, Text(f"It cannot be made again: {error}", "missing")]
    learnt = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    said = f"{show_count(learnt)} parameters with the {len(meta.bands)} bands of this dataset."
    paragraphs = [" ".join(part.split()) for words in (described.provenance, described.docstring) for part in words.split("\n\n") if part]
    return [heading, Text(said), *(Text(paragraph, "small") for paragraph in paragraphs)]


def _to_fact_table(facts: Mapping[str, str]) -> Table:
    return Table((), [[Cell(name), Cell(words)] for name, words in facts.items()], n_words=2)


def _describe_settings(summary: Json) -> dict[str, str]:
    checkpoint = summary["checkpoint"]
    training, scoring = _flatten(checkpoint["settings"], "train"), _flatten(summary["settings"], "evaluate")
    return training | scoring | {"weights (SHA-256)": checkpoint["weights_sha256"][:16], "sereno": checkpoint["sereno"]}


def _flatten(values: Mapping[str, Any], path: str) -> dict[str, str]:
    """Settings with their whole path as key."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{path}.{key}") if isinstance(value, Mapping) else {f"{path}.{key}": json.dumps(value)}
    return flat


def _mark_difference(key: str, name: str, columns: Mapping[str, Mapping[str, str]]) -> Cell:
    """The value, bold where the runs differ."""
    return Cell(columns[name].get(key, NOTHING), is_best=len({settings.get(key) for settings in columns.values()}) > 1)
