"""Laws of what a run shows: each step once, whatever happened in between, and pictures that can be compared."""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sereno.model import monitor as module
from sereno.model.batches import Batch, Signature
from sereno.model.config import TrainSettings
from sereno.model.data import SplitArrays
from sereno.model.monitor import Monitor, Watched, read_watched, spread_places, to_csv
from sereno.model.pictures import GAP_PX
from sereno.model.results import find_pictures
from sereno.pipeline.errors import ConfigError, StoreError
from sereno.pipeline.patches import MASK_CHANNELS

COLUMNS = ("step", "lr", "total", "val_loss", "val_psnr_db")
FACTS = Signature(("B02", "B03", "B04", "B08"), ("VV", "VH"), (0.1,) * 4, (0.05,) * 4)
SETTINGS = TrainSettings(steps=10, batch_size=2, pictures=3, device="cpu")
SIDE = 16


def make_split(count: int = 5, *, sar_bands: int = 2) -> SplitArrays:
    """Patches of one grey each, brighter from patch to patch; targets are half as bright as inputs."""
    grey = (1000 * (1 + np.arange(count)))[:, None, None, None] + np.arange(SIDE)
    cloudy = np.broadcast_to(grey, (count, 4, SIDE, SIDE)).astype(np.uint16)
    mask = np.full((count, len(MASK_CHANNELS), SIDE, SIDE), 255, np.uint8)
    mask[:, [MASK_CHANNELS.index(f"{kind}_{image}") for kind in ("cloud", "shadow") for image in ("input", "target")]] = 0
    return SplitArrays(sar=np.full((count, sar_bands, SIDE, SIDE), -1200, np.int16), cloudy=cloudy, clear=cloudy // 2, mask=mask)


def watch(settings: TrainSettings = SETTINGS, facts: Signature = FACTS, count: int = 5) -> Watched | None:
    return read_watched(make_split(count, sar_bands=len(facts.sar_bands)), facts, settings)


def answer_with_input(batch: Batch) -> Tensor:
    return batch.optical


def panels(path: Path, columns: int = 4) -> np.ndarray:
    """Mean colours of the pictures in a strip: (row, column, 3)."""
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(float)
    rows = (pixels.shape[0] + GAP_PX) // (SIDE + GAP_PX)
    assert pixels.shape[1] == columns * (SIDE + GAP_PX) - GAP_PX
    starts = [[(row * (SIDE + GAP_PX), column * (SIDE + GAP_PX)) for column in range(columns)] for row in range(rows)]
    return np.array([[pixels[y : y + SIDE, x : x + SIDE].mean((0, 1)) for y, x in line] for line in starts])


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "history.csv").read_text())))


def go(folder: Path, steps: range, rows: list[dict[str, Any]], settings: TrainSettings = SETTINGS, *, shift: float = 0.0) -> Monitor:
    """Record a row and a validation at each step and draw it, as the engine would."""
    with Monitor(folder, settings, COLUMNS, watch(settings)) as monitor:
        monitor.start(steps.start - 1 if steps.start else 0, rows)
        for step in steps:
            monitor.record({"step": step, "lr": 0.1, "total": step + shift})
            monitor.record({"step": step, "val_loss": 2 * step + shift, "val_psnr_db": None})
            monitor.draw(step, lambda batch, step=step: batch.optical * (1 + step) / 10)
            monitor.advance(step, 0.5)
            monitor.save()
    return monitor


def read_curves(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    curves.Reload()
    return curves


def test_a_row_is_of_one_step_and_what_comes_later_is_added_to_it(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, SETTINGS, COLUMNS)
    monitor.start(0, [])
    monitor.record({"step": 0, "val_loss": 0.5})
    monitor.record({"step": 5, "lr": 0.1, "total": 0.25})
    monitor.record({"step": 5, "val_loss": 0.125, "val_psnr_db": None})
    monitor.save()
    assert (tmp_path / "history.csv").read_text() == "step,lr,total,val_loss,val_psnr_db\n0,,,0.5,\n5,0.1,0.25,0.125,\n"
    assert to_csv(monitor.rows, COLUMNS) == (tmp_path / "history.csv").read_text()


def test_a_number_without_a_column_is_a_fault_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="charbonnier"):
        Monitor(tmp_path, SETTINGS, COLUMNS).record({"step": 1, "charbonnier": 0.1})


def test_rows_handed_in_are_not_changed(tmp_path: Path) -> None:
    rows = [{"step": 1, "total": 0.5}]
    monitor = Monitor(tmp_path, SETTINGS, COLUMNS)
    monitor.start(1, rows)
    monitor.record({"step": 1, "val_loss": 0.5})
    assert rows == [{"step": 1, "total": 0.5}]


def test_a_run_that_went_on_shows_each_step_once(tmp_path: Path) -> None:
    """Killed after step 4 with a state of step 2: steps 3 and 4 are taken again and give other numbers here, to be told apart."""
    killed = go(tmp_path, range(5), [])
    state = [row for row in killed.rows if row["step"] <= 2]
    go(tmp_path, range(3, 6), state, shift=100)
    go(tmp_path / "whole", range(6), [])
    assert [float(row["total"]) for row in read_rows(tmp_path)] == [0, 1, 2, 103, 104, 105]
    ours, theirs = (find_pictures(folder) for folder in (tmp_path, tmp_path / "whole"))
    assert list(ours) == list(theirs) == list(range(6))
    assert all(ours[step].read_bytes() == theirs[step].read_bytes() for step in ours)
    assert len({path.read_bytes() for path in ours.values()}) == 6


def test_pictures_of_steps_that_will_be_taken_again_are_gone_at_once(tmp_path: Path) -> None:
    go(tmp_path, range(5), [])
    (tmp_path / "pictures/mine.png").touch()
    Monitor(tmp_path, SETTINGS, COLUMNS).start(2, [])
    assert list(find_pictures(tmp_path)) == [0, 1, 2]
    Monitor(tmp_path, SETTINGS, COLUMNS).start(0, [])
    assert not find_pictures(tmp_path)
    assert (tmp_path / "pictures/mine.png").exists(), "only what we drew is ours to remove"


def test_the_first_picture_survives_its_own_step(tmp_path: Path) -> None:
    go(tmp_path, range(1), [])
    assert list(find_pictures(tmp_path)) == [0]


@pytest.mark.parametrize(("available", "wanted", "places"), [(22, 4, [2, 8, 13, 19]), (2, 4, [0, 1]), (0, 4, []), (9, 0, []), (9, 1, [4])])
def test_watched_patches_are_spread_evenly(available: int, wanted: int, places: list[int]) -> None:
    assert spread_places(available, wanted) == places


def test_a_picture_shows_input_sar_answer_and_target_of_each_patch(tmp_path: Path) -> None:
    with Monitor(tmp_path, SETTINGS, COLUMNS, watch()) as monitor:
        monitor.draw(150, answer_with_input)
    shown = panels(tmp_path / "pictures/step-000150.png")
    assert shown.shape[:2] == (3, 4)
    assert np.array_equal(shown[:, 0], shown[:, 2]), "the answer was the input"
    assert (shown[:, 3] < shown[:, 0]).all(), "the target is darker, as shown with the same stretch"
    assert (np.diff(shown[:, 3, 0]) > 0).all(), "patches in the order of their places"
    assert np.ptp(shown[:, 1], axis=0).max() == 0, "SAR is the same everywhere"


def test_patches_are_answered_one_at_a_time_as_the_network_takes_them(tmp_path: Path) -> None:
    seen = []

    def answer(batch: Batch) -> Tensor:
        seen.append(batch)
        return batch.optical

    with Monitor(tmp_path, SETTINGS, COLUMNS, watch()) as monitor:
        monitor.draw(0, answer)
    assert [batch.optical.shape for batch in seen] == [(1, 4, SIDE, SIDE)] * 3
    assert [round(batch.optical[0, 0, 0, 0].item(), 4) for batch in seen] == [0.1, 0.3, 0.5]
    assert all(batch.sar.shape == (1, 2, SIDE, SIDE) for batch in seen)


def test_an_answer_that_is_no_number_is_drawn_and_does_not_stop_the_run(tmp_path: Path) -> None:
    with Monitor(tmp_path, SETTINGS, COLUMNS, watch()) as monitor:
        monitor.draw(0, lambda batch: torch.full_like(batch.optical, torch.nan))
    assert panels(tmp_path / "pictures/step-000000.png")[:, 2].max() == 0


def test_without_sar_its_column_is_left_out(tmp_path: Path) -> None:
    with Monitor(tmp_path, SETTINGS, COLUMNS, watch(facts=FACTS._replace(sar_bands=()))) as monitor:
        monitor.draw(0, answer_with_input)
    assert panels(tmp_path / "pictures/step-000000.png", columns=3).shape[:2] == (3, 3)


@pytest.mark.parametrize(("bands", "shown"), [(("B05", "B8A", "B11", "B12"), (2, 1, 0)), (("450nm", "550nm", "650nm", "700nm"), (2, 1, 0))])
def test_bands_without_a_true_colour_are_shown_in_others(tmp_path: Path, bands: tuple[str, ...], shown: tuple[int, int, int]) -> None:
    watched = watch(facts=FACTS._replace(bands=bands))
    assert watched is not None
    assert watched.colours.places == shown
    with Monitor(tmp_path, SETTINGS, COLUMNS, watched) as monitor:
        monitor.draw(0, answer_with_input)
    assert panels(tmp_path / "pictures/step-000000.png").shape[:2] == (3, 4)


@pytest.mark.parametrize(("settings", "count"), [(SETTINGS.model_copy(update={"pictures": 0}), 5), (SETTINGS, 0)])
def test_nothing_watched_draws_nothing(tmp_path: Path, settings: TrainSettings, count: int) -> None:
    with Monitor(tmp_path, settings, COLUMNS, watch(settings, count=count)) as monitor:
        monitor.draw(0, lambda _: pytest.fail("asked for an answer"))
    assert not (tmp_path / "pictures").exists()


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tensorboard": True})
    with Monitor(tmp_path, settings, COLUMNS, watch(), active=False) as monitor:
        monitor.start(0, [])
        monitor.record({"step": 1, "total": 0.5})
        monitor.draw(1, lambda _: pytest.fail("asked for an answer"))
        monitor.advance(1, 0.5)
        monitor.save()
    assert monitor.rows == [{"step": 1, "total": 0.5}]
    assert not list(tmp_path.iterdir())


def test_curves_hold_what_the_history_holds(tmp_path: Path) -> None:
    go(tmp_path, range(3), [], SETTINGS.model_copy(update={"tensorboard": True}))
    curves = read_curves(tmp_path)
    assert set(curves.Tags()["scalars"]) == {"training/lr", "training/total", "validation/loss"}
    assert [(event.step, event.value) for event in curves.Scalars("validation/loss")] == [(0, 0), (1, 2), (2, 4)]
    assert [event.step for event in curves.Images("patches")] == [0, 1, 2]
    with Image.open(io.BytesIO(curves.Images("patches")[1].encoded_image_string)) as image, Image.open(find_pictures(tmp_path)[1]) as ours:
        assert np.array_equal(np.asarray(image), np.asarray(ours))


def test_curves_of_a_run_that_was_killed_in_the_middle_of_writing_show_each_step_once(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tensorboard": True})
    killed = go(tmp_path, range(5), [], settings)
    (written,) = (tmp_path / "tensorboard").iterdir()
    written.write_bytes(written.read_bytes()[:-7])
    written.rename(written.with_name("events.out.tfevents.1.host.1.0"))  # files are read in the order of their names, which is that of time
    go(tmp_path, range(3, 6), [row for row in killed.rows if row["step"] <= 2], settings, shift=100)
    curves = read_curves(tmp_path)
    assert [(event.step, event.value) for event in curves.Scalars("training/total")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 103),
        (4, 104),
        (5, 105),
    ]
    assert [event.step for event in curves.Images("patches")] == list(range(6))


def test_a_run_that_starts_anew_shows_no_curve_of_an_earlier_one(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tensorboard": True})
    for shift in (0, 100):
        go(tmp_path, range(1, 3), [], settings, shift=shift)
    assert [event.value for event in read_curves(tmp_path).Scalars("training/total")] == [101, 102]


def test_a_fresh_run_removes_only_what_it_writes_itself(tmp_path: Path) -> None:
    names = ["tensorboard/events.out.tfevents.1.host", "tensorboard/mine.txt", "pictures/step-000005.png", "pictures/mine.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Monitor(tmp_path, SETTINGS.model_copy(update={"pictures": 0}), COLUMNS).start(0, [])
    assert all((tmp_path / name).exists() for name in names), "neither curves nor pictures were asked for"
    with Monitor(tmp_path, SETTINGS.model_copy(update={"tensorboard": True}), COLUMNS) as monitor:
        monitor.start(0, [])
    assert [(tmp_path / name).exists() for name in names] == [False, True, False, True]


def test_curves_without_the_package_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'sereno\[tensorboard\]'") as caught:
        Monitor(tmp_path, SETTINGS.model_copy(update={"tensorboard": True}), COLUMNS).start(0, [])
    assert "\n" not in str(caught.value)


def test_a_line_says_how_far_and_how_fast_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crops per step and ten seconds per step: 0.2 samples/s, a line every second step, five minutes for 30 steps."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(module, "time", clock)
    settings = SETTINGS.model_copy(update={"steps": 34})
    with caplog.at_level(logging.INFO), Monitor(tmp_path, settings, COLUMNS) as monitor:
        monitor.start(0, [])
        for step in range(1, 6):
            clock.monotonic = lambda step=step: 10.0 * step
            monitor.advance(step, 0.25)
    assert "step 4 of 34, loss 0.25000, 0.2 samples/s, 5 min left" in caplog.text
    assert len(caplog.records) == 2


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "pictures").touch()  # a file where the folder should be
    with Monitor(tmp_path, SETTINGS, COLUMNS, watch()) as monitor, pytest.raises(StoreError, match="cannot write"):
        monitor.draw(0, answer_with_input)
