"""`sereno report`: one self-contained page with pictures, maps, curves and tables.

The results tree of the other steps enters; one HTML file leaves, with every picture inside it. What is missing is named on the page,
with the step that would make it. What a section says stands in the module that it is imported from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sereno.model.accounts import describe_accounts
from sereno.model.alignment import describe_fields
from sereno.model.clearing import describe_result, describe_scores
from sereno.model.config import ReportSettings
from sereno.model.curves import describe_training
from sereno.model.examples import describe_patches
from sereno.model.findings import describe_tables, describe_verdicts
from sereno.model.gallery import choose_stretch, describe_examples, describe_progress, describe_scenes
from sereno.model.holdout import describe_dataset
from sereno.model.making import describe_making
from sereno.model.members import describe_groups
from sereno.model.page import Section, render_page
from sereno.model.predicted import describe_images
from sereno.model.refusals import describe_losses
from sereno.model.results import CLEARING, Results, read_results
from sereno.model.shifts import describe_pairs
from sereno.pipeline.errors import MissingError
from sereno.pipeline.store import write_text

logger = logging.getLogger(__name__)


def write_report(results: Path, output: Path, settings: ReportSettings, *, runs: tuple[str, ...] = ()) -> None:
    """Write the page about `results` to `output`; `runs` names the runs to show, none named means all that have scores.

    Raises:
        MissingError: there is no such folder.
        StoreError: a file that is there is damaged, or the page cannot be written.
    """
    if not results.is_dir():
        raise MissingError(f"results folder {results} does not exist: run the workflow first, or name the folder that it wrote to")
    started = time.monotonic()
    logger.info("report: reading %s", results)
    found = read_results(results, runs)
    page = render_page(settings.title, PAGES[found.task](found, settings))
    write_text(output, page)
    logger.info("report: wrote %s, %.1f MB in %.1f s", output, len(page) / 1e6, time.monotonic() - started)


Compose = Callable[[Results, ReportSettings], list[Section]]
"""Gives the sections of a page."""


def _compose_clearing(found: Results, settings: ReportSettings) -> list[Section]:
    """The page of cloud removal."""
    stretch = choose_stretch(found)
    return [
        Section("result", "Result", describe_result(found)),
        Section("scenes", "Cleared scenes", describe_scenes(found, stretch, picture_px=settings.scene_picture_px)),
        Section("scores", "Scores", describe_scores(found)),
        Section("examples", "Example patches", describe_examples(found, stretch)),
        Section("training", "Training", describe_training(found) + describe_progress(found)),
        Section("pairs", "Pairs and shifts", describe_pairs(found) + describe_fields(found, stretch)),
        *_compose_end(found),
    ]


def _compose_groups(found: Results, settings: ReportSettings) -> list[Section]:
    """The page of a task whose samples are made of groups; what differs from task to task stands in tables of the modules."""
    return [
        Section("result", "Result", describe_verdicts(found) + describe_dataset(found)),
        Section("images", "Whole images", describe_images(found, picture_px=settings.scene_picture_px)),
        Section("scores", "Scores", describe_tables(found)),
        Section("examples", "Example patches", describe_patches(found)),
        Section("training", "Training", describe_training(found) + describe_progress(found)),
        Section("groups", "Groups and their scenes", describe_groups(found)),
        *_compose_end(found),
    ]


def _compose_end(found: Results) -> list[Section]:
    """What every page ends with."""
    return [
        Section("ledger", "Ledger", describe_accounts(found)),
        Section("left-out", "What was left out", describe_losses(found)),
        Section("making", "How it was made", describe_making(found)),
    ]


PAGES: Final[Mapping[str, Compose]] = {
    CLEARING: _compose_clearing,
    "pansharpening": _compose_groups,
    "spatiotemporal-fusion": _compose_groups,
    "snapshot-reconstruction": _compose_groups,
}
"""What writes the page, by task."""
