"""Laws of the processes that share a batch, seen from one of them; `test_train.py` runs two."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sereno.model import ranks
from sereno.model.config import TrainSettings
from sereno.model.ranks import Ranks, catch_signals, choose_local_device, join_ranks, sum_gradients, sum_numbers, sum_over_ranks
from sereno.pipeline.errors import ConfigError, TrainingError

PAIR = TrainSettings(batch_size=4, processes=2, device="cpu")


def pretend_to_be(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """What torchrun tells its processes, without any others."""
    for key, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}.items():
        monkeypatch.setenv(key, str(value))


def double(tensor: torch.Tensor) -> None:
    """As if the other process had the same."""
    tensor.mul_(2)


def test_alone_nothing_is_joined_and_nothing_added() -> None:
    with join_ranks(TrainSettings(device="cpu")) as alone:
        assert alone == Ranks(0, 1, "cpu")
        assert alone.is_first
    values = {"a": torch.tensor(1.5)}
    assert sum_over_ranks(values, alone) == values
    assert sum_numbers({"a": 0.1}, alone) == {"a": 0.1}
    layer = nn.Linear(2, 2)
    assert sum_gradients(layer.parameters(), torch.ones(3), alone).tolist() == [1, 1, 1]
    assert layer.weight.grad is None


def test_as_many_processes_must_run_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"'train\.processes' is 2, but 1 run: start them with `torchrun --standalone --nproc-per-node 2 -m"
    ):
        join_ranks(PAIR).__enter__()
    pretend_to_be(monkeypatch, 0, 4)
    with pytest.raises(ConfigError, match=r"'train\.processes' is 2, but 4 run: set 'train\.processes' to 4"):
        join_ranks(PAIR).__enter__()


def test_each_process_has_a_gpu_of_its_own_or_all_have_the_cpu() -> None:
    assert [choose_local_device("auto", local, 2, gpus=2) for local in (0, 1)] == ["cuda:0", "cuda:1"]
    assert choose_local_device("cuda", 3, 4, gpus=8) == "cuda:3"
    assert choose_local_device("auto", 1, 2, gpus=0) == choose_local_device("cpu", 1, 2, gpus=8) == "cpu"
    for name in ("auto", "cuda"):
        with pytest.raises(ConfigError, match=r"4 processes on a machine with 2 GPUs: start at most 2, or set 'train\.device' to cpu"):
            choose_local_device(name, 0, 4, gpus=2)
    with pytest.raises(ConfigError, match="device 'cuda:1' cannot serve 2 processes"):
        choose_local_device("cuda:1", 0, 2, gpus=2)


def test_only_the_first_process_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "init_process_group", lambda backend: backend == "gloo" or pytest.fail("a CPU needs gloo"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    ours = logging.getLogger("sereno.model.train")
    before = ours.getEffectiveLevel()
    pretend_to_be(monkeypatch, 1, 2)
    with join_ranks(PAIR) as second:
        assert (second, second.is_first, ours.isEnabledFor(logging.WARNING)) == (Ranks(1, 2, "cpu"), False, False)
    assert ours.getEffectiveLevel() == before


def test_values_and_gradients_are_summed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", double)
    pair = Ranks(0, 2, "cpu")
    assert sum_over_ranks({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, pair) == {"a": 2, "b": 4}
    assert sum_numbers({"a": 1 / 3}, pair) == {"a": 2 / 3}
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 2, bias=False))
    layers.to(memory_format=torch.channels_last)
    layers[0].bias.requires_grad_(False)
    layers[0](torch.rand(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))).sum().backward()
    before = layers[0].weight.grad.clone()
    assert sum_gradients(layers.parameters(), torch.tensor([1.0, 5.0]), pair).tolist() == [2, 10]
    assert torch.equal(layers[0].weight.grad, 2 * before)
    assert layers[0].bias.grad is None, "what is not learnt needs none"
    assert torch.equal(layers[1].weight.grad, torch.zeros(2, 2)), "another process may have one"


def test_a_process_that_is_gone_ends_the_others_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("Connection closed by peer\nand much more")

    monkeypatch.setattr(dist, "all_reduce", fail)
    with pytest.raises(TrainingError, match=r"another process of this run is gone.*\(Connection closed by peer\)$"):
        sum_numbers({"a": 1.0}, Ranks(0, 2, "cpu"))


@pytest.fixture
def usual_handlers() -> Iterator[None]:
    """Those of a shell's child; a runner may have started the tests with Ctrl-C ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in ranks.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize("number", ranks.SIGNALS)
def test_the_first_signal_is_noted_and_a_second_one_kills(number: signal.Signals) -> None:
    with catch_signals() as request:
        assert request.number is None
        os.kill(os.getpid(), number)
        assert request.number == number
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) is signal.default_int_handler


@pytest.mark.usefixtures("usual_handlers")
def test_under_torchrun_which_repeats_signals_a_second_one_is_noted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_be(monkeypatch, 0, 2)
    with catch_signals() as request:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert request.number == signal.SIGTERM


@pytest.mark.usefixtures("usual_handlers")
def test_an_ignored_signal_stays_ignored_and_other_threads_catch_none() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with catch_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.number is None
    seen = []

    def look() -> None:
        with catch_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
