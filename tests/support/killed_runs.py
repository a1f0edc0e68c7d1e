"""Runs of training that end as a kill would end them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sereno.model import train
from sereno.model.config import TrainSettings


def train_until_killed(dataset: Path, output: Path, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Leave the disk as a kill after that many steps would."""
    take = train._take_step

    def take_or_die(run: train.Run, *rest: Any) -> None:
        if run.step == after:
            raise KeyboardInterrupt
        take(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_take_step", take_or_die)
        with pytest.raises(KeyboardInterrupt):
            train.train_network(dataset, output, settings)
