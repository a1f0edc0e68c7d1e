"""A network from a file that the config names: train, score and use your own, or a paper's, beside ours."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sereno.model.config import CustomSettings
from sereno.model.faults import is_compiling_fault, is_shortage
from sereno.pipeline.errors import ConfigError, MissingError, SerenoError


def load_network(settings: CustomSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network that the function named in `source` makes; its file is run as code.

    The function is called as a `NetworkFactory` is, but with `options` in the stead of the settings:
    `function(sar_bands=..., mean=..., std=..., **options)`. What the network answers when it is called is checked each time, since an
    answer of one band would be compared with every band of the target without a word; what `forward_stages` gives is not.

    Raises:
        MissingError: the file is not there.
        ConfigError: it cannot be imported, it has no such function, the function does not take the options, fails or gives no network,
            or the network (when it is called) fails, or answers anything but an image like its optical input.
    """
    file, name = find_file(settings), settings.function
    where = f"{file}:{name}"
    with _name_faults(where):
        module = _import_file(file)
    make = getattr(module, name, None)
    if not callable(make):
        raise ConfigError(f"network.source: {file} has no function '{name}'")
    arguments = {"sar_bands": sar_bands, "mean": tuple(mean), "std": tuple(std), **settings.options}
    _check_arguments(make, arguments, where=where)
    with _name_faults(where):
        network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network.source: {where} gave a {type(network).__name__}, expected a torch.nn.Module")
    network.register_forward_hook(_AnswerCheck(where))
    _guard_calls(network, where)
    return network


@contextlib.contextmanager
def _name_faults(where: str) -> Iterator[None]:
    """Turn what code of the file raises into one line with the place; our own errors, and what `faults` explains, pass unchanged.

    Raises:
        ConfigError: names the error and, if it is one of the file, the line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SerenoError) or is_shortage(error) or is_compiling_fault(error):
            raise
        file = where.rpartition(":")[0]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        said = f": {str(error).splitlines()[0]}" if str(error) else ""
        place = f" (line {lines[-1]})" if lines else ""
        raise ConfigError(f"network.source: {where} raised {type(error).__name__}{said}{place}") from error


def _guard_calls(network: nn.Module, where: str) -> None:
    """Let faults of `forward` and `forward_stages` be named; the class is derived, so that a copy of the network is guarded as well."""
    if isinstance(network, torch.jit.ScriptModule):
        return
    kind = type(network)
    methods = {name: _guard(getattr(kind, name), where) for name in ("forward", "forward_stages") if hasattr(kind, name)}
    network.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **methods})


def _guard(method: Callable[..., Any], where: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(*given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # the compiler has its own words, and cannot follow this
            return method(*given, **named)
        with _name_faults(where):
            return method(*given, **named)

    return guarded


def find_file(settings: CustomSettings) -> Path:
    """The file that `source` names.

    Raises:
        MissingError: it is not there.
    """
    file = Path(settings.file).expanduser()
    if not file.is_file():
        raise MissingError(f"network.source: {file} does not exist (relative paths are seen from {Path.cwd()})")
    return file


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sereno_custom_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ConfigError(f"network.source: {file} cannot be imported ({type(error).__name__}: {error})") from error
    return module


def _check_arguments(make: Callable[..., Any], arguments: dict[str, Any], *, where: str) -> None:
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"network.source: {where} cannot be called with {', '.join(arguments)} ({error}): it is given sar_bands, mean and std, "
            "and what stands in 'network.options'"
        ) from None


class _AnswerCheck:
    """A hook that refuses an answer that is no image of the optical input's shape, or in training one that teaches nothing."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...], answer: Any) -> None:
        if inputs and not (isinstance(answer, Tensor) and answer.shape == inputs[0].shape):
            seen = tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise ConfigError(f"network.source: the network of {self._where} answers {seen}, expected an image {tuple(inputs[0].shape)}")
        if inputs and network.training and torch.is_grad_enabled() and not answer.requires_grad:
            raise ConfigError(
                f"network.source: the network of {self._where} answers an image that does not require grad, so that it learns nothing: "
                "compute it from its weights, without detach() or no_grad()"
            )
