"""A network from a file that the config names: train, score and use your own, or a paper's, beside ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sereno.model.config import CustomSettings
from sereno.pipeline.errors import ConfigError, MissingError


def load_network(settings: CustomSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network that the function named in `source` makes; its file is run as code.

    The function is called as `NetworkFactory` says, with `options` in the stead of the settings:
    `function(sar_bands=..., mean=..., std=..., **options)`.

    Raises:
        MissingError: the file is not there.
        ConfigError: it has no such function, or the function gives no network.
    """
    path, name = settings.source.rsplit(":", 1)
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingError(f"network.source: {file} does not exist (relative paths are seen from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"sereno_custom_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        raise ConfigError(f"network.source: {file} has no function '{name}'")
    network = make(sar_bands=sar_bands, mean=mean, std=std, **settings.options)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network.source: {file}:{name} gave a {type(network).__name__}, expected a torch.nn.Module")
    return network
