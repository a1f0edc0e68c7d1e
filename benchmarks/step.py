"""What one training step costs: forward and backward of our networks and of peers, interleaved rounds in one process, medians.

python benchmarks/step.py --rounds 9 --peer uncrtaints=../UnCRtainTS --peer glfcr=../GLF-CR

Needs torch, numpy and pydantic (some peers also einops); `sereno` need not be installed. The optimiser and the data are left out; the
loss is the mean absolute difference.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".mypy"), str(ROOT / "benchmarks")]  # the links in .mypy lay the folders out as they are installed

from peers import PEERS  # noqa: E402 - found only now

from sereno.model.config import AfsstSettings, S2TransformerSettings, UnetSettings  # noqa: E402
from sereno.model.networks import NETWORKS  # noqa: E402
from sereno.pipeline.errors import SerenoError  # noqa: E402

TRAINING_TO_FORWARD: Final = 3
"""A training step has about three times the floating-point operations of its forward pass: backward makes two products of each."""
DEVICE_PEAKS: Final = {"H200": (4.8, 989.0, 67.0), "H100": (3.35, 989.0, 67.0), "A100": (2.0, 312.0, 19.5)}
"""TB/s, TFLOP/s in bf16 and in fp32, all dense, of the SXM forms (NVIDIA's data sheets)."""
INTERRUPTED: Final = 130
"""Exit code of a run that was stopped before its first round was over."""
VARIANTS: Final = ("naive", "fast", "bf16", "compiled", "compiled-bf16", "graphs-bf16")
"""Ways to run our network: written out plainly, as trained, in bf16 arithmetic, compiled, both, and with CUDA graphs on top."""
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From optical, SAR and cloud to the cleared image."""


class Batch(NamedTuple):
    """What a step is given."""

    inputs: tuple[Tensor, Tensor, Tensor]
    """Optical (B, C, H, W), SAR (B, S, H, W), cloud (B, 1, H, W)."""
    target: Tensor
    """Clear image (B, C, H, W)."""


@dataclass
class Contestant:
    """One network, run in one way."""

    name: str
    """Its row in the table."""
    network: nn.Module
    """Its weights."""
    forward: Step
    """How it is called."""
    half: bool = False
    """True runs it under bf16 autocast."""
    gflop: float = 0.0
    """Of the forward pass, per sample."""
    gigabytes: float = 0.0
    """Read and written by all operations of a step, per sample, were every one to go to memory."""
    peak_mb: float | None = None
    """Most memory that a step took beyond what stood before it; none where it cannot be measured."""
    wall_s: list[float] = field(default_factory=list)
    """Of a step, per round."""
    cpu_s: list[float] = field(default_factory=list)
    """Of a step in all threads, per round."""


class _TrafficCounter(TorchDispatchMode):
    """Counts the bytes that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not is_view:
            self.bytes += sum(part.numel() * part.element_size() for part in _tensors((args, kwargs, out)))
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def main() -> int:
    """Print the table."""
    options = _read_options()
    torch.set_num_threads(options.threads)
    batch = _make_batch(options)
    try:
        contestants = [*_make_ours(options), *_make_peers(options)]
    except SerenoError as err:
        print(f"step: error: {err}", file=sys.stderr)
        return err.exit_code
    contestants = [contestant for contestant in contestants if _warm_up(contestant, batch, options)]
    for contestant in contestants:
        contestant.gflop, contestant.gigabytes = _count(contestant, batch)
        contestant.peak_mb = _measure_memory(contestant, batch)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run_rounds(contestants, batch, options.rounds)
    except KeyboardInterrupt:
        print("\ninterrupted: the table has the rounds until now", file=sys.stderr)
    if not all(contestant.wall_s for contestant in contestants):
        return INTERRUPTED
    _print_table(contestants, options)
    return 0


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--crop", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images per step")
    parser.add_argument("--bands", type=int, default=13, help="optical bands")
    parser.add_argument("--sar-bands", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each network, taken in turn")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with one, networks are compared by CPU time")
    parser.add_argument("--variants", nargs="*", default=["naive", "fast", "bf16"], choices=VARIANTS, help="of AFSST of --size")
    parser.add_argument("--size", default="S", choices=["S", "M", "L"])
    parser.add_argument("--settings", type=json.loads, default={}, help="""of AFSST, e.g. '{"base": "cloudy", "fusion": "global"}'""")
    parser.add_argument("--also", nargs="*", default=[], choices=["S", "M", "L", "s2transformer", "unet"], help="more of ours, as trained")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help=f"a checkout of {', '.join(PEERS)}")
    parser.add_argument("--compile-limit-s", type=int, default=600, help="give up on compiling after so long")
    parser.add_argument("--peaks", type=float, nargs=3, metavar=("TBS", "BF16", "FP32"), help="of the GPU: TB/s, TFLOP/s")
    options = parser.parse_args()
    for peer in options.peer:
        if peer.partition("=")[0] not in PEERS or not peer.partition("=")[2]:
            parser.error(f"--peer {peer}: expected NAME=FOLDER, with NAME one of {', '.join(PEERS)}")
    return options


def _run_rounds(contestants: list[Contestant], batch: Batch, rounds: int) -> None:
    """One step of each contestant in turn, again and again."""
    for number in range(rounds):
        for contestant in contestants:
            wall_s, cpu_s = _time_step(contestant, batch)
            contestant.wall_s.append(wall_s)
            contestant.cpu_s.append(cpu_s)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def _make_batch(options: argparse.Namespace) -> Batch:
    """Values as in training, half of the image under cloud; the cost does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, 1, options.crop, options.crop)
    sizes = (options.bands, options.sar_bands, 1, options.bands)
    parts = [torch.rand(shape[0], channels, *shape[2:], generator=generator).to(options.device) for channels in sizes]
    return Batch((parts[0], parts[1], parts[2].round()), parts[3])


def _make_ours(options: argparse.Namespace) -> Iterator[Contestant]:
    """AFSST in all wanted variants, of equal weights, then the other networks as trained."""
    plain = _make_network(options.size, options).to(options.device)
    for variant in options.variants:
        network = copy.deepcopy(plain)
        name = f"AFSST {options.size} {variant}"
        if variant == "naive":
            yield Contestant(name, network, _load_naive(network))
            continue
        network = network.to(memory_format=torch.channels_last)
        forward: Any = network
        if variant.startswith("compiled"):
            forward = torch.compile(network)
        elif variant.startswith("graphs"):
            forward = torch.compile(network, mode="reduce-overhead")
        yield Contestant(name, network, forward, half=variant.endswith("bf16"))
    for name in options.also:
        network = _make_network(name, options).to(options.device, memory_format=torch.channels_last)
        yield Contestant(f"AFSST {name}" if len(name) == 1 else name, network, network)


def _make_network(name: str, options: argparse.Namespace) -> nn.Module:
    """One of our networks with fresh weights."""
    torch.manual_seed(0)
    settings: Any
    if name == "s2transformer":
        settings = S2TransformerSettings(name="s2transformer")
    elif name == "unet":
        settings = UnetSettings(name="unet")
    else:
        settings = AfsstSettings.model_validate({"size": name, **options.settings})
    spectrum = [0.1] * options.bands
    return NETWORKS[settings.name](settings, sar_bands=options.sar_bands, mean=spectrum, std=spectrum)


def _load_naive(network: nn.Module) -> Step:
    """The network as its equations read, which the tests hold it against."""
    spec = importlib.util.spec_from_file_location("naive", ROOT / "tests" / "model" / "naive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def forward(optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
        cleared: Tensor = module.naive_forward(network, optical, sar, cloud)
        return cleared

    return forward


def _make_peers(options: argparse.Namespace) -> Iterator[Contestant]:
    """The peers that the user names, in the memory order that their own code trains in."""
    spectrum = [0.1] * options.bands
    for peer in options.peer:
        name, _, folder = peer.partition("=")
        torch.manual_seed(0)
        network = PEERS[name](sar_bands=options.sar_bands, mean=spectrum, std=spectrum, folder=folder).to(options.device)
        yield Contestant(name, network, network)


def _take_step(contestant: Contestant, batch: Batch) -> None:
    """Forward and backward; gradients are left in the weights."""
    contestant.network.zero_grad(set_to_none=True)
    with torch.autocast(batch.target.device.type, torch.bfloat16, enabled=contestant.half):
        cleared = contestant.forward(*batch.inputs)
    (cleared.float() - batch.target).abs().mean().backward()


def _warm_up(contestant: Contestant, batch: Batch, options: argparse.Namespace) -> bool:
    """Whether the contestant can run: compiling may fail, or take longer than is allowed."""
    seconds = time.perf_counter()
    with _time_limit(options.compile_limit_s):
        for _ in range(2):
            _take_step(contestant, batch)
        print(f"{contestant.name}: ready after {time.perf_counter() - seconds:.0f} s", file=sys.stderr, flush=True)
        return True
    print(f"{contestant.name}: gave up after {time.perf_counter() - seconds:.0f} s (--compile-limit-s)", file=sys.stderr)
    return False


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Leave the block when the time is up, whatever it was doing."""

    class TimeUpError(BaseException):
        """Not an Exception, so that nothing on the way takes it for its own."""

    def stop(signum: int, frame: object) -> None:  # noqa: ARG001
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except TimeUpError:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _count(contestant: Contestant, batch: Batch) -> tuple[float, float]:
    """GFLOP of a forward pass and GB of a step run operation by operation, both per sample."""
    uncompiled = getattr(contestant.forward, "_orig_mod", contestant.forward)
    samples = len(batch.target)
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # fused kernels are not all counted
        uncompiled(*batch.inputs)
    plain = Contestant(contestant.name, contestant.network, uncompiled, half=contestant.half)
    with _TrafficCounter() as traffic:
        _take_step(plain, batch)
    return flops.get_total_flops() / samples / 1e9, traffic.bytes / samples / 1e9


def _measure_memory(contestant: Contestant, batch: Batch) -> float | None:
    """MB that a step takes at most: of the allocator on a GPU, on a CPU growth of resident memory."""
    contestant.network.zero_grad(set_to_none=True)
    if batch.target.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _take_step(contestant, batch)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with contextlib.suppress(OSError, AttributeError):  # Linux with glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        before = _read_status("VmRSS")
        _take_step(contestant, batch)
        return (_read_status("VmHWM") - before) / 1e3
    return None


def _read_status(key: str) -> float:
    """KB that the kernel names for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(key)))


def _time_step(contestant: Contestant, batch: Batch) -> tuple[float, float]:
    """Seconds of a step: of the clock, and of all its threads."""
    _synchronise(batch)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    _take_step(contestant, batch)
    _synchronise(batch)
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _synchronise(batch: Batch) -> None:
    if batch.target.is_cuda:
        torch.cuda.synchronize()


def _print_table(contestants: list[Contestant], options: argparse.Namespace) -> None:
    """The measurement's surroundings, then one row per contestant."""
    on_gpu = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else _name_cpu()
    print(f"`python benchmarks/step.py {' '.join(sys.argv[1:])}`\n")
    load = "" if on_gpu else f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    rounds = min(len(one.wall_s) for one in contestants)
    size = f"batch {options.batch} of {options.bands} + {options.sar_bands} bands, {options.crop} px, {rounds} rounds"
    print(f"{device}, {options.threads} threads{load}, torch {torch.__version__}; {size}. Medians; times per sample, forward and backward.")
    clock = "wall" if on_gpu or options.threads > 1 else "CPU"
    memory = "allocator's peak" if on_gpu else "peak growth of resident memory"
    print(f"Memory is the {memory} in a step. Ratios are medians over rounds of {clock} time: how many times as fast as ...\n")
    rivals = [one for one in contestants if one.name.endswith("naive") or one.name in PEERS]
    peaks = _find_peaks(device, options) if on_gpu else None
    heads = ["network", "parameters, M", "GFLOP forward", "samples/s", "CPU-s", "spread", "memory, MB", *(one.name for one in rivals)]
    heads += ["of bandwidth", "of compute"] if peaks else []
    rows = [_make_row(one, rivals, options, peaks) for one in contestants]
    widths = [max(len(line[column]) for line in (heads, *rows)) for column in range(len(heads))]
    for line in (heads, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    if peaks:
        print("\nShare of bandwidth: bytes that all operations would move one by one, over the time; fused kernels move fewer.")


def _make_row(one: Contestant, rivals: list[Contestant], options: argparse.Namespace, peaks: tuple[float, ...] | None) -> list[str]:
    """The cells of one contestant."""
    batch, wall_s = options.batch, statistics.median(one.wall_s)
    is_cpu_clock = options.device == "cpu" and options.threads == 1
    times = one.cpu_s if is_cpu_clock else one.wall_s
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    cells = [one.name, f"{sum(part.numel() for part in one.network.parameters()) / 1e6:.2f}", f"{one.gflop:.1f}"]
    cells += [f"{batch / wall_s:.3g}", f"{statistics.median(one.cpu_s) / batch:.3f}", f"{(high - low) / statistics.median(times):.0%}"]
    cells.append("-" if one.peak_mb is None else f"{one.peak_mb:.0f}")
    for rival in rivals:
        theirs = rival.cpu_s if is_cpu_clock else rival.wall_s
        cells.append(f"{statistics.median(other / own for other, own in zip(theirs, times, strict=False)):.2f}")
    if peaks:
        per_s = batch / wall_s
        cells.append(f"{one.gigabytes * per_s / 1e3 / peaks[0]:.0%}")
        cells.append(f"{TRAINING_TO_FORWARD * one.gflop * per_s / 1e3 / peaks[1 if one.half else 2]:.0%}")
    return cells


def _find_peaks(device: str, options: argparse.Namespace) -> tuple[float, ...] | None:
    """TB/s, TFLOP/s in bf16 and in fp32 of the GPU, if known."""
    if options.peaks:
        return tuple(options.peaks)
    return next((peaks for name, peaks in DEVICE_PEAKS.items() if name in device), None)


def _name_cpu() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
