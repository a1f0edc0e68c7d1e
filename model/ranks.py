"""The processes that share a batch: how they find each other, add up, and stop together.

torchrun starts them and tells each its rank through the environment; without it there is one, and nothing here does anything. Each
keeps all weights. Before the optimiser's step the gradients are summed, so that all take the same step. That is data parallelism
without the wrapper of torch: a few million weights are summed in one go in less time than a wrapper saves by beginning earlier, any
number of pieces of a batch needs no special case, and parameters without a gradient are no fault.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sereno.model.config import TrainSettings
from sereno.model.flow import LAUNCHER
from sereno.pipeline.errors import ConfigError, TrainingError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""What asks a run to stop: Ctrl-C, and what torchrun, schedulers and shutting down send."""


class Ranks(NamedTuple):
    """A process among those of its run."""

    rank: int = 0
    """Its number, from 0; only the first logs and writes."""
    world: int = 1
    """How many there are."""
    device: str = "auto"
    """Name of the device it works on."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0


@contextlib.contextmanager
def join_ranks(settings: TrainSettings) -> Iterator[Ranks]:
    """The place of this process among the processes of the run, as torchrun gave it; while it lasts, all but the first log errors alone.

    Raises:
        ConfigError: there are not as many processes as `processes` says, or more than GPUs.
        TrainingError: the others cannot be reached.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != settings.processes:
        remedy = f"start them with `{LAUNCHER.format(settings.processes)} train ...`" if world == 1 else f"set 'train.processes' to {world}"
        raise ConfigError(f"'train.processes' is {settings.processes}, but {world} run: {remedy}")
    if world == 1:
        yield Ranks(device=settings.device)
        return
    rank, local, here = (int(os.environ[key]) for key in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = choose_local_device(settings.device, local, here, gpus=torch.cuda.device_count())
    if device != "cpu":
        torch.cuda.set_device(device)
    with _explain_loss():
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
    ours = logging.getLogger("sereno")
    level = ours.level
    try:
        if rank:
            ours.setLevel(logging.ERROR)
        yield Ranks(rank, world, device)
    finally:
        ours.setLevel(level)
        dist.destroy_process_group()


def choose_local_device(name: str, local: int, here: int, *, gpus: int) -> str:
    """Device of process `local` of the `here` on this machine, where there are `gpus`: a GPU each, or the CPU for all.

    Raises:
        ConfigError: there are more processes than GPUs, or `name` is one single GPU.
    """
    if name == "cpu" or (name == "auto" and not gpus):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise ConfigError(f"device '{name}' cannot serve {here} processes: set 'train.device' to auto, cuda or cpu")
    if here > gpus:
        raise ConfigError(f"{here} processes on a machine with {gpus} GPUs: start at most {gpus}, or set 'train.device' to cpu")
    return f"cuda:{local}"


def sum_over_ranks(values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The scalars `values` (all of one type, on one device), each summed over all processes, which all call this at the same point.

    Raises:
        TrainingError: another process is gone.
    """
    if ranks.world == 1:
        return dict(values)
    total = torch.stack(list(values.values()))
    with _explain_loss():
        dist.all_reduce(total)
    return dict(zip(values, total.unbind(), strict=True))


def sum_numbers(values: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """As `sum_over_ranks`, but plain numbers, in float64."""
    if ranks.world == 1:
        return dict(values)
    tensors = {name: torch.tensor(value, dtype=torch.float64, device=ranks.device) for name, value in values.items()}
    return {name: float(total) for name, total in sum_over_ranks(tensors, ranks).items()}


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], values: Tensor, ranks: Ranks) -> Tensor:
    """Sum the gradients of `parameters` over all processes, in place, and with them `values` (N,), which is returned.

    Where this process has no gradient another may have one, so that after this all have one.

    Raises:
        TrainingError: another process is gone.
    """
    if ranks.world == 1:
        return values
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learnt:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([values, *(_grad_of(parameter).reshape(-1) for parameter in learnt)])
    with _explain_loss():
        dist.all_reduce(flat)
    summed, *pieces = torch.split(flat, [len(values), *(parameter.numel() for parameter in learnt)])
    for parameter, piece in zip(learnt, pieces, strict=True):
        _grad_of(parameter).copy_(piece.view_as(parameter))
    return summed


def _grad_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@contextlib.contextmanager
def _explain_loss() -> Iterator[None]:
    """Turn what torch says when a process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"another process of this run is gone, see what it said; start all of them again ({reason})") from error


class StopRequest:
    """Whether a signal has asked to stop."""

    number: int | None = None
    """The first signal that came; None while there was none."""


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """While it lasts, the first `SIGINT` or `SIGTERM` only leaves a note, and a second one kills at once.

    Under torchrun a second one is noted as well, since a Ctrl-C reaches its processes twice, and torchrun kills those that do not end.
    A signal that is ignored stays so; outside the main thread nothing is caught, as Python has it.
    """
    request, patient = StopRequest(), "WORLD_SIZE" in os.environ

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = request.number or number
        if not patient:
            signal.signal(number, signal.SIG_DFL)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS if in_main and signal.getsignal(number) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, note)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
