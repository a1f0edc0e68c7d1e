"""Laws of validation: a mean over patches, of those that have what is measured, however the patches are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sereno.model import validation
from sereno.model.batches import Signature
from sereno.model.config import TrainSettings
from sereno.model.data import SplitArrays
from sereno.model.ranks import Ranks
from sereno.model.run import Run, Score
from sereno.model.validation import VALIDATION_BATCH, score_weights
from sereno.pipeline.errors import TrainingError
from sereno.pipeline.patches import MASK_CHANNELS

SIDE = 16
FACTS = Signature(("B02", "B03"), ("VV", "VH"), (0.1, 0.1), (0.1, 0.1))


class Echo(nn.Module):
    """Answers its input, brighter by a number that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, optical: Tensor, _sar: Tensor, _cloud: Tensor) -> Tensor:
        return optical + self.shift


def make_run() -> Run:
    return Run(Echo(), TrainSettings(), device=torch.device("cpu"), bands=2)


def make_split(errors: list[float], *, cloudy: list[bool] | None = None, usable: list[bool] | None = None) -> SplitArrays:
    """Patches of one grey, each input brighter than its target by an error of its own."""
    count = len(errors)
    clear = np.full((count, 2, SIDE, SIDE), 2000, np.uint16)
    brighter = (10_000 * np.array(errors)).round().astype(np.uint16)
    mask = np.zeros((count, len(MASK_CHANNELS), SIDE, SIDE), np.uint8)
    mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_sar")]] = 255
    mask[:, MASK_CHANNELS.index("valid_target")] = 255 * np.array(usable or [True] * count)[:, None, None]
    mask[:, MASK_CHANNELS.index("cloud_input")] = 255 * np.array(cloudy or [True] * count)[:, None, None]
    cloudy = clear + brighter[:, None, None, None]
    return SplitArrays(sar=np.full((count, 2, SIDE, SIDE), -1200, np.int16), cloudy=cloudy, clear=clear, mask=mask)


def score(split: SplitArrays, ranks: Ranks | None = None) -> Score:
    return score_weights(make_run(), split, signature=FACTS, ranks=ranks or Ranks(device="cpu"))


def test_a_score_is_the_mean_over_patches_whatever_batch_they_are_in() -> None:
    """Five patches make a batch of four and one of one; a constant error e has loss e and a PSNR of -20 log10(e)."""
    errors = [0.01, 0.02, 0.03, 0.04, 0.4]
    assert len(errors) == VALIDATION_BATCH + 1
    found = score(make_split(errors))
    assert found.loss == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.psnr_db == pytest.approx(np.mean(-20 * np.log10(errors)), rel=1e-4)


def test_patches_count_only_where_they_have_a_target_and_clouds() -> None:
    found = score(make_split([0.1, 0.2, 0.3], cloudy=[True, False, True], usable=[True, True, False]))
    assert found.loss == pytest.approx(0.15, rel=1e-4)
    assert found.psnr_db == pytest.approx(20, rel=1e-4)
    assert score(make_split([0.1], cloudy=[False])).psnr_db is None
    with pytest.raises(TrainingError, match=r"no validation patch has a clear target pixel: loosen 'patch\.max_target_cloud'"):
        score(make_split([0.1], usable=[False]))


def test_the_averaged_weights_are_scored_and_not_the_newest() -> None:
    run = make_run()
    with torch.no_grad():
        run.network.shift.fill_(9.0)
    run.average["shift"].fill_(-0.1)
    assert score_weights(run, make_split([0.3]), signature=FACTS, ranks=Ranks(device="cpu")).loss == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize("count", [1, 8, 9, 13])
def test_each_patch_is_scored_by_one_process(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What three processes add up is what one finds alone."""
    split, sums = make_split([0.01 * (1 + number) for number in range(count)]), []

    def note(found: dict[str, Any], _: Ranks) -> dict[str, Any]:
        sums.append(found)
        return found | {"losses": found["losses"] or 1}

    monkeypatch.setattr(validation, "sum_numbers", note)
    score(split)
    for rank in range(3):
        score(split, Ranks(rank, 3, "cpu"))
    alone, *shares = sums
    assert {name: sum(share[name] for share in shares) for name in alone} == pytest.approx(alone)
