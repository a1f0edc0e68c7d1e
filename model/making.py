"""How the results were made, for the report: software, checksums, bands, units and settings.

Results enter; blocks of the page leave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from sereno.model.page import NOTHING, Block, Cell, Heading, Table, Text
from sereno.model.results import Json, Results
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS

PACKAGES: Final = ("sereno", "torch", "numpy", "xarray", "zarr", "rasterio", "odc-geo", "scipy", "snakemake", "matplotlib")
"""Software whose versions are named."""


def describe_making(results: Results) -> list[Block]:
    """Software, checksums, bands, units and settings: what somebody needs to make the page again."""
    blocks: list[Block] = [Heading("Software"), _to_fact_table({name: version(name) for name in PACKAGES})]
    facts = {"optical values": OPTICAL_UNITS, "SAR values": SAR_UNITS, "scores": "reflectance, 1 = 100 %; dB with peak 1; degrees; percent"}
    if results.dataset is not None:
        facts |= {"optical bands": ", ".join(results.dataset["bands"]), "SAR bands": ", ".join(results.dataset.get("sar_bands", ()))}
        facts |= {"pixel size": f"{results.dataset['resolution_m']:g} m", "SHA-256 of pack/dataset.json": results.dataset_sha256}
    blocks += [Heading("Data"), _to_fact_table(facts)]
    summaries = {run.name: run.summary for run in results.runs if run.summary is not None}
    if not summaries:
        return [*blocks, Text("No run has been evaluated, so there are no settings to list.", "missing")]
    columns = {name: _describe_settings(summary) for name, summary in summaries.items()}
    keys = list(dict.fromkeys(key for settings in columns.values() for key in settings))
    rows = [[Cell(key), *(_mark_difference(key, name, columns) for name in columns)] for key in keys]
    return [*blocks, Heading("Settings of the runs"), Table(("setting", *columns), rows, n_words=1 + len(columns))]


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
