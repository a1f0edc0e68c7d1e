"""What torch says where memory does not suffice, or of a network that it cannot compile, in one line with what to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sereno.model.config import TrainSettings
from sereno.pipeline.errors import ConfigError, TrainingError


@contextlib.contextmanager
def explain_faults(memory: str) -> Iterator[None]:
    """Turn what torch raises while it lasts into one line with the remedy; what is neither of these faults passes unchanged.

    Raises:
        TrainingError: `memory`, if memory did not suffice.
        ConfigError: the network cannot be compiled.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if is_shortage(error):
            raise TrainingError(memory) from error
        if is_compiling_fault(error):
            raise ConfigError(f"'train.compile': torch cannot compile the network ({reason}); set it to false") from error
        raise


def is_shortage(error: Exception) -> bool:
    """Whether `error` says that memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error).partition("\n")[0]


def is_compiling_fault(error: Exception) -> bool:
    """Whether `error` is of torch's compiler."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def describe_memory(settings: TrainSettings) -> str:
    """What to try where memory does not suffice: a finer cut of each batch, else a smaller batch, else smaller crops."""
    share = settings.batch_size // settings.processes
    crops = share // settings.accumulate
    found = f"out of memory with {crops} crops of {settings.crop_px} px at a time"
    if crops == 1:
        return f"{found}: lower 'train.crop_px' or take a smaller network"
    finer = next(count for count in range(2 * settings.accumulate, share + 1) if share % count == 0)
    smaller = crops // 2 * settings.accumulate * settings.processes
    return f"{found}: set 'train.accumulate' to {finer} (same result) or 'train.batch_size' to {smaller}"
