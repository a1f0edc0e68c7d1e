"""Laws of what is said where a machine cannot do what is asked: the remedy is allowed, and helps."""

from __future__ import annotations

import re

import pytest
import torch

from sereno.model.config import TrainSettings
from sereno.model.faults import describe_memory, explain_faults
from sereno.pipeline.errors import ConfigError, TrainingError


@pytest.mark.parametrize("batch_size", [1, 2, 6, 12, 7])
@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_to_be_tried_is_allowed_and_smaller(batch_size: int, processes: int) -> None:
    settings = TrainSettings(batch_size=batch_size * processes, processes=processes)
    for _ in range(5):
        advice = describe_memory(settings)
        if "accumulate" not in advice:
            break
        finer, smaller = (int(number) for number in re.findall(r"to (\d+)", advice))
        assert TrainSettings.model_validate(settings.model_dump() | {"batch_size": smaller}).batch_size < settings.batch_size
        settings = TrainSettings.model_validate(settings.model_dump() | {"accumulate": finer})
    assert settings.accumulate == batch_size, "in the end single crops"
    assert "lower 'train.crop_px'" in describe_memory(settings)


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB."), MemoryError(), RuntimeError("can't allocate memory: 8")]
)
def test_a_lack_of_memory_is_said_in_the_words_given(fault: Exception) -> None:
    with pytest.raises(TrainingError, match=r"^take less$") as caught, explain_faults("take less"):
        raise fault
    assert caught.value.__cause__ is fault


def test_a_fault_of_torchs_compiler_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"'train\.compile': .* \(no compiler found\); set it to false"), explain_faults("take less"):
        raise torch._dynamo.exc.TorchDynamoException("no compiler found\nand much more")


def test_what_is_neither_passes_unchanged() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$") as caught, explain_faults("take less"):
        raise RuntimeError("shapes differ")
    assert caught.type is RuntimeError
