"""What can be asked of a network: what goes in, what comes out, and which networks do it.

One task so far; another is another row of `TASKS`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import nn

from sereno.model.config import SIZES, AfsstSettings, CustomSettings, NetworkSettings, S2TransformerSettings, UnetSettings
from sereno.model.networks import NETWORKS
from sereno.model.networks.custom import find_file
from sereno.pipeline.errors import ConfigError


class Task(NamedTuple):
    """A kind of question."""

    name: str
    """Its name in checkpoints and messages."""
    inputs: tuple[str, ...]
    """Fields of `Batch` that the network is called with, in this order."""
    output: str
    """Field of `Batch` that the network's answer is compared with, and whose shape it has."""
    networks: tuple[str, ...]
    """Names of the networks that serve it."""


CLOUD_REMOVAL: Final = Task("cloud-removal", ("optical", "sar", "cloud"), "target", ("afsst", "custom", "s2transformer", "unet"))
"""A clear optical image from a cloudy one, SAR of about the same day, and the cloud probability."""
TASKS: Final = {task.name: task for task in (CLOUD_REMOVAL,)}
"""Tasks by name."""


class Signature(NamedTuple):
    """What a network is made for, apart from its settings."""

    bands: Sequence[str]
    """Optical bands, in and out."""
    sar_bands: Sequence[str]
    """SAR polarisations; may be empty for a network without SAR."""
    mean: Sequence[float]
    """Mean reflectance of clear training pixels, per optical band."""
    std: Sequence[float]
    """Standard deviation of the same."""


def check_task(task: Task, settings: NetworkSettings, signature: Signature) -> None:
    """Refuse a network that does not serve the task, or cannot with these bands.

    Raises:
        ConfigError: names the network, the task and what would fit.
    """
    if settings.name not in task.networks or settings.name not in NETWORKS:
        pairs = ", ".join(f"{known.name}: {'/'.join(known.networks)}" for known in TASKS.values())
        raise ConfigError(f"network '{settings.name}' does not serve the task '{task.name}'; allowed are {pairs}")
    if not signature.bands:
        raise ConfigError(f"task '{task.name}' needs optical bands, but the dataset has none")
    if settings.use_sar and not signature.sar_bands:
        raise ConfigError(f"network '{settings.name}' uses SAR, but the dataset has no SAR bands: set 'network.use_sar' to false")
    if not len(signature.bands) == len(signature.mean) == len(signature.std):
        counts = f"{len(signature.mean)} means and {len(signature.std)} deviations"
        raise ConfigError(f"task '{task.name}': {len(signature.bands)} optical bands, but {counts}; run `sereno pack` again")


def create_network(task: Task, settings: NetworkSettings, signature: Signature, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on `seed` alone; called as its task's inputs say.

    Raises:
        ConfigError: `check_task` refuses it.
    """
    check_task(task, settings, signature)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[settings.name](
            settings, sar_bands=len(signature.sar_bands), mean=tuple(signature.mean), std=tuple(signature.std)
        )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's overloads leave it out
    return network


class Description(NamedTuple):
    """What somebody who is about to use a network wants to know."""

    name: str
    """Its name in the config."""
    parameters: int
    """Numbers that are learnt."""
    tasks: tuple[Task, ...]
    """What it can be asked."""
    settings: NetworkSettings
    """Its settings, defaults included."""
    provenance: str
    """Where it comes from and what of it is ours: the first lines of its file."""


PRESETS: Final[tuple[NetworkSettings, ...]] = (
    *(AfsstSettings.model_validate({"size": size}) for size in SIZES),
    S2TransformerSettings(name="s2transformer"),
    UnetSettings(name="unet"),
)
"""Our networks as they are without further settings."""


def describe_network(settings: NetworkSettings, *, bands: int = 13, sar_bands: int = 2) -> Description:
    """What a network is, counted with so many bands, of which unused SAR counts nothing; by default those of Sentinel-2 and Sentinel-1.

    Raises:
        ConfigError, MissingError: as `create_network`.
    """
    optical, sar = ([str(number) for number in range(count)] for count in (bands, sar_bands))
    network = create_network(CLOUD_REMOVAL, settings, Signature(optical, sar, (1.0,) * bands, (1.0,) * bands))
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if isinstance(settings, CustomSettings):
        words = ast.get_docstring(ast.parse(find_file(settings).read_text()))
    else:
        words = sys.modules[type(network).__module__].__doc__
    tasks = tuple(task for task in TASKS.values() if settings.name in task.networks)
    return Description(settings.name, parameters, tasks, settings, (words or "Its file does not say.").strip())
