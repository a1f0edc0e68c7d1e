"""A network from a file that the config names: train, score and use your own, or a paper's, beside ours."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from sereno.model.config import CustomSettings
from sereno.pipeline.errors import ConfigError, MissingError


def load_network(settings: CustomSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network that the function named in `source` makes; its file is run as code.

    The function is called as a `NetworkFactory` is, but with `options` in the stead of the settings:
    `function(sar_bands=..., mean=..., std=..., **options)`. What the network answers when it is called is checked each time, since an
    answer of one band would be compared with every band of the target without a word; what `forward_stages` gives is not.

    Raises:
        MissingError: the file is not there.
        ConfigError: it cannot be imported, it has no such function, the function does not take the options or gives no network, or
            the network (when it is called) answers anything but an image like its optical input.
    """
    file, name = find_file(settings), settings.function
    make = getattr(_import_file(file), name, None)
    if not callable(make):
        raise ConfigError(f"network.source: {file} has no function '{name}'")
    arguments = {"sar_bands": sar_bands, "mean": tuple(mean), "std": tuple(std), **settings.options}
    _check_arguments(make, arguments, where=f"{file}:{name}")
    network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network.source: {file}:{name} gave a {type(network).__name__}, expected a torch.nn.Module")
    network.register_forward_hook(_AnswerCheck(f"{file}:{name}"))
    return network


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
    """A hook that refuses an answer that is no image of the optical input's shape."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __call__(self, _network: nn.Module, inputs: tuple[Tensor, ...], answer: object) -> None:
        if inputs and not (isinstance(answer, Tensor) and answer.shape == inputs[0].shape):
            seen = tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise ConfigError(f"network.source: the network of {self._where} answers {seen}, expected an image {tuple(inputs[0].shape)}")
