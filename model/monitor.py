"""What a run shows while it trains: the history, curves for TensorBoard, pictures of the same few patches, and how far it is.

The engine hands in numbers, and a function that answers patches; `history.csv`, `pictures/step-000150.png` and `tensorboard/` leave.
Nothing here can change the weights. The engine uses it so:

    with Monitor(folder, settings, columns, read_watched(validation, facts, settings)) as monitor:
        monitor.start(step, rows)  # after the state was restored; 0 and [] clear what an earlier run left
        ...
        monitor.record({"step": step, "lr": rate, "total": loss})  # where a row is due; the state keeps `monitor.rows`
        monitor.record({"step": step, "val_loss": loss})  # the same step again is added to that row
        monitor.draw(step, answer)  # at each validation
        monitor.advance(step, loss)  # after each step
        monitor.save()  # history.csv

With several processes all but the first are given `active=False`: they keep the rows and do nothing else.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sereno.model.batches import AnyBatch, Signature
from sereno.model.colours import Colours, Levels, choose_colours, measure_levels, to_colours
from sereno.model.config import TrainSettings
from sereno.model.data import SplitArrays
from sereno.model.pictures import (
    Picture,
    join_pictures,
    shrink_picture,
    to_png,
    to_sar_composite,
)
from sereno.model.results import find_pictures, name_picture
from sereno.model.tasks import TASKS
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.patches import MASK_CHANNELS
from sereno.pipeline.scene import REFLECTANCE_SCALE
from sereno.pipeline.store import remove, staged, write_text

logger = logging.getLogger(__name__)

LOG_EVERY_S: Final = 20.0
"""Seconds between lines in the log where there is no bar."""
PICTURE_PX: Final = 128
"""Longest side of one patch in a picture."""

CURVES: Final = "events.out.tfevents.*"
"""Names of the files that TensorBoard's writer makes."""

Row = dict[str, Any]
"""Numbers by column; a column without a number is left out or None."""


class Watched(NamedTuple):
    """The validation patches that are drawn at each validation."""

    stored: SplitArrays
    """As they are stored, in memory."""
    batch: AnyBatch
    """The same as the network takes them, on the CPU."""
    facts: Signature
    """What they are of."""
    colours: Colours
    """Bands that are shown as red, green and blue."""
    levels: Levels
    """Stretch of all optical pictures; from the clear targets, so it is the same at each validation."""


def read_watched(validation: SplitArrays, facts: Signature, settings: TrainSettings) -> Watched | None:
    """So many patches as `pictures` asks for, spread evenly over the split; None if there are none."""
    places = spread_places(validation.n_patches, settings.pictures)
    if not places:
        return None
    parts = [validation.read(place, place + 1) for place in places]
    stored = SplitArrays({name: np.concatenate([part[name] for part in parts]) for name in validation})
    batch = TASKS[facts.task].make_batch(stored, facts, settings)
    targets, colours = zip(_to_images(batch.target), _to_images(batch.valid_target)[:, 0] > 0, strict=True), choose_colours(facts.bands)
    return Watched(stored, batch, facts, colours, measure_levels(targets, colours))


def _to_images(reflectance: Tensor) -> npt.NDArray[np.float32]:
    """Reflectance as it is stored, but not rounded."""
    images: npt.NDArray[np.float32] = reflectance.numpy() * np.float32(REFLECTANCE_SCALE)
    return images


def spread_places(available: int, wanted: int) -> list[int]:
    """At most `wanted` different places of 0..available - 1, evenly spread, rising."""
    count = min(available, wanted)
    return [(2 * number + 1) * available // (2 * count) for number in range(count)]


def draw_watched(watched: Watched, answer: Callable[[AnyBatch], Tensor]) -> Picture:
    """A row per patch: input, SAR if there is some, the network's answer, target. `answer` is given one patch at a time, on the CPU."""
    rows = []
    for place, alone in enumerate(watched.batch.cut(watched.stored.n_patches)):
        answered = answer(alone).detach().float().cpu()
        seen = [(alone.optical, alone.valid_input), (answered, torch.ones_like(alone.weight)), (alone.target, alone.valid_target)]
        shown = [to_colours(_to_images(image)[0], valid[0, 0].numpy() > 0, watched.colours, watched.levels) for image, valid in seen]
        if watched.facts.sar_bands:
            valid_sar = watched.stored["mask"][place, MASK_CHANNELS.index("valid_sar")] > 0
            shown.insert(1, to_sar_composite(watched.stored["sar"][place], valid_sar, sar_bands=watched.facts.sar_bands))
        rows.append([shrink_picture(picture, PICTURE_PX) for picture in shown])
    return join_pictures(rows)


class Monitor:
    """Everything a run shows while it trains; used as the module's first lines say."""

    def __init__(
        self, folder: Path, settings: TrainSettings, columns: Sequence[str], watched: Watched | None = None, *, active: bool = True
    ) -> None:
        """`folder`: where checkpoint and history lie. `columns`: of the history, `step` first. `active` false shows and writes nothing."""
        self.rows: list[Row] = []
        """Of the history so far; part of the state that a killed run goes on from."""
        self._folder, self._settings, self._columns = folder, settings, tuple(columns)
        self._watched, self._active = watched, active
        self._curves: Any = None  # a SummaryWriter, imported only if it is used
        self._clock = _Clock(settings)
        self._bar = _make_bar(disable=not (active and sys.stderr.isatty()))
        self._task = self._bar.add_task("train", total=settings.steps, loss="", speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._curves is not None:
            self._curves.close()

    def start(self, step: int, rows: Sequence[Row]) -> None:
        """Begin after `step` with the rows that were known then; what was shown of later steps is taken back.

        Raises:
            ConfigError: `tensorboard` is set, but not installed.
        """
        self.rows = [dict(row) for row in rows if row["step"] <= step]
        self._clock.start()
        self._bar.update(self._task, completed=step)
        if not self._active:
            return
        for path in self._find_outdated(step):
            remove(path)
        if self._settings.tensorboard:
            self._curves = _open_curves(self._folder / "tensorboard", step)

    def _find_outdated(self, step: int) -> list[Path]:
        """Files of the kinds that this run writes itself, and that show steps it will take again; all others may be somebody's."""
        drawn = find_pictures(self._folder) if self._settings.pictures else {}
        curves = (self._folder / "tensorboard").glob(CURVES) if self._settings.tensorboard and step == 0 else ()
        return [path for at, path in drawn.items() if step == 0 or at > step] + [path for path in curves if path.is_file()]

    def record(self, row: Mapping[str, Any]) -> None:
        """Enter a row into the history, or into its last row if that is of the same step. Rows come in the order of their steps."""
        unknown = row.keys() - set(self._columns)
        assert not unknown, f"{unknown} are no columns of the history"
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1] |= row
        else:
            self.rows.append(dict(row))
        if self._curves is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._curves.add_scalar(_to_tag(name), value, row["step"])
            self._curves.flush()  # before the state that holds this row is saved: it is not handed in again

    def draw(self, step: int, answer: Callable[[AnyBatch], Tensor]) -> None:
        """Draw the watched patches: `answer` clears a batch of one, (1, C, H, W); its device is its own business.

        Raises:
            StoreError: the picture cannot be written, for example because the disk is full.
        """
        if self._watched is None or not self._active:
            return
        picture = draw_watched(self._watched, answer)
        with staged(name_picture(self._folder, step)) as partial:
            partial.write_bytes(to_png(picture))
        if self._curves is not None:
            self._curves.add_image("patches", picture, step, dataformats="HWC")
            self._curves.flush()

    def advance(self, step: int, loss: float) -> None:
        """Move the bar, or write a line every so often; `loss` is that of the last batch."""
        speed = self._clock.tick(step)
        if not self._active:
            return
        self._bar.update(self._task, completed=step, loss=f"{loss:.5f}", speed=speed.in_words())
        if self._bar.disable and self._clock.is_line_due():
            left = f", {speed.left_s / 60:.0f} min left" if speed.left_s is not None else ""
            logger.info("step %d of %d, loss %.5f, %s%s", step, self._settings.steps, loss, speed.in_words(), left)

    def save(self) -> None:
        """Write `history.csv`, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        if self._active:
            write_text(self._folder / "history.csv", to_csv(self.rows, self._columns))


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The history as text; empty where a row has no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Speed(NamedTuple):
    """How fast a run is."""

    samples_per_s: float | None
    """Crops per second since the run began or went on; None before the second step."""
    left_s: float | None
    """Seconds that the remaining steps take at that pace; None likewise."""

    def in_words(self) -> str:
        """For the bar and the log."""
        return "speed not yet known" if self.samples_per_s is None else f"{self.samples_per_s:.1f} samples/s"


class _Clock:
    """Steps against seconds; the first step is not counted, since it compiles, allocates and decodes the first patches."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self.start()

    def start(self) -> None:
        self._first: tuple[int, float] | None = None
        self._now_s = self._logged_s = time.monotonic()

    def tick(self, step: int) -> Speed:
        self._now_s = time.monotonic()
        if self._first is None:
            self._first = step, self._now_s
        taken, seconds = step - self._first[0], self._now_s - self._first[1]
        if taken <= 0 or seconds <= 0:
            return Speed(None, None)
        return Speed(self._settings.batch_size * taken / seconds, (self._settings.steps - step) * seconds / taken)

    def is_line_due(self) -> bool:
        due = self._now_s - self._logged_s >= LOG_EVERY_S
        if due:
            self._logged_s = self._now_s
        return due


def _make_bar(*, disable: bool) -> Progress:
    said = (TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"))
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), *said, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)


def _open_curves(folder: Path, step: int) -> Any:
    """A writer of TensorBoard's files that goes on after `step`: what older files say of later steps no longer counts."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"'tensorboard' is set, but TensorBoard is not installed ({error}): run `pip install 'sereno[tensorboard]'`, or set it to false"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _to_tag(column: str) -> str:
    """Name of a curve: TensorBoard draws what stands before the slash under one heading."""
    return f"validation/{column.removeprefix('val_')}" if column.startswith("val_") else f"training/{column}"
