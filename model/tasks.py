"""What can be asked of a network: what goes in, what comes out, how samples become batches, how answers are scored, and who serves it.

Another task is another row of `TASKS`, with a maker in `batches`, a `Scoring` in `scoring` and its networks in `SERVED_BY` of `config`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from sereno.model.batches import (
    AnyBatch,
    Prepared,
    Signature,
    Stored,
    make_clearing_batch,
    make_fusion_batch,
    make_sharpening_batch,
    make_snapshot_batch,
    prepare_fusion,
    prepare_sharpening,
    prepare_snapshot,
)
from sereno.model.config import (
    SERVED_BY,
    SIZES,
    AfsstSettings,
    CustomSettings,
    NetworkSettings,
    S2SnapshotSettings,
    S2TransformerSettings,
    SfiinSettings,
    StfganSettings,
    StfnetSettings,
    TrainSettings,
    UnetSettings,
    explain_misfit,
    explain_ratio,
    needs_sar,
    needs_series,
)
from sereno.model.networks import NETWORKS
from sereno.model.networks.custom import find_file
from sereno.model.networks.stfgan import Discriminator, Stfgan
from sereno.model.scoring import CLEARING, FUSING, RECONSTRUCTING, SHARPENING, Scoring
from sereno.pipeline.config import TaskName
from sereno.pipeline.errors import ConfigError


class Quantity(NamedTuple):
    """What goes into a network or comes out of it."""

    name: str
    """Its name in messages; of cloud removal also the field of `Batch`."""
    shape: str
    """Its axes: batch B, band C, guide G, SAR S, row H, column W; r is the ratio of the grids."""
    units: str
    """What its values are."""


class Task(NamedTuple):
    """A kind of question."""

    name: TaskName
    """Its name in configs, manifests, checkpoints and messages."""
    inputs: tuple[Quantity, ...]
    """What the network is called with, in this order."""
    target: Quantity
    """What the network's answer is compared with, and whose shape it has."""
    subject: str | None
    """The stored array whose bands are those of the target; None where the manifest names bands without an array (cloud removal)."""
    guide: str | None
    """The stored array that guides, if one does."""
    reductions: int
    """How often an image is made coarser by the ratio on its way to the network: crops are a multiple of so high a power of it."""
    make_batch: Callable[[Stored, Signature, TrainSettings], AnyBatch]
    """Makes a batch of stored samples."""
    prepare: Callable[[Stored, Signature, TrainSettings], Prepared] | None
    """Makes inputs of stored arrays where the network is used; None for cloud removal, which `predict` treats on its own."""
    name_arguments: Callable[[Signature], dict[str, Any]]
    """What a network is made with beside its settings."""
    scoring: Scoring
    """Its metrics and baselines."""
    focus: str
    """Pixels of which a validation gives the PSNR, in words."""
    usual_bands: int
    """Bands with which networks are described: those of their papers, or of Sentinel-2."""
    around: tuple[Quantity, ...] = ()
    """What a network is called with after `inputs` if it looks at a series (`needs_series`)."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that serve it."""
        return SERVED_BY[self.name]


def _name_statistics(signature: Signature) -> dict[str, Any]:
    return {"mean": tuple(signature.mean), "std": tuple(signature.std)}


def _name_sar(signature: Signature) -> dict[str, Any]:
    return {"sar_bands": len(signature.sar_bands), **_name_statistics(signature)}


def _name_guide(signature: Signature) -> dict[str, Any]:
    return {**_name_statistics(signature), "pan_mean": tuple(signature.guide_mean), "pan_std": tuple(signature.guide_std)}


CLOUD_REMOVAL: Final = Task(
    name="cloud-removal",
    inputs=(
        Quantity("optical", "(B, C, H, W)", "reflectance"),
        Quantity("sar", "(B, S, H, W)", "backscatter in dB scaled to 0..1"),
        Quantity("cloud", "(B, 1, H, W)", "probability of cloud or shadow"),
    ),
    target=Quantity("target", "(B, C, H, W)", "reflectance"),
    subject=None,
    guide=None,
    reductions=0,
    make_batch=make_clearing_batch,
    prepare=None,
    name_arguments=_name_sar,
    scoring=CLEARING,
    focus="cloudy pixels",
    usual_bands=13,
    around=(
        Quantity("around", "(B, 2, C, H, W), clear dates before and after", "reflectance"),
        Quantity("around_clear", "(B, 2, 1, H, W)", "trust in them, 0..1"),
        Quantity("days", "(B, 2)", "days from the cloudy date, below and above 0"),
    ),
)
"""A clear optical image from a cloudy one, SAR of about the same day, and the cloud probability."""
PANSHARPENING: Final = Task(
    name="pansharpening",
    inputs=(Quantity("ms", "(B, C, H / r, W / r)", "reflectance"), Quantity("pan", "(B, G, H, W)", "reflectance")),
    target=Quantity("sharp", "(B, C, H, W)", "reflectance"),
    subject="ms",
    guide="pan",
    reductions=2,
    make_batch=make_sharpening_batch,
    prepare=prepare_sharpening,
    name_arguments=_name_guide,
    scoring=SHARPENING,
    focus="trusted pixels",
    usual_bands=4,
)
"""A multispectral image as sharp as the panchromatic image, or the sharper bands, of the same product."""
FUSION: Final = Task(
    name="spatiotemporal-fusion",
    inputs=(
        Quantity("coarse", "(B, 3, C, H / r, W / r), three dates", "reflectance"),
        Quantity("fine", "(B, 2, C, H, W), first and last date", "reflectance"),
    ),
    target=Quantity("middle", "(B, C, H, W), middle date", "reflectance"),
    subject="fine",
    guide=None,
    reductions=1,
    make_batch=make_fusion_batch,
    prepare=prepare_fusion,
    name_arguments=_name_statistics,
    scoring=FUSING,
    focus="trusted pixels",
    usual_bands=6,
)
"""A fine image of a date from coarse ones of three and fine ones of the two around it."""
SNAPSHOT: Final = Task(
    name="snapshot-reconstruction",
    inputs=(
        Quantity("estimate", "(B, C, H, W)", "light, about 0..1"),
        Quantity("aperture", "(B, 1, H, W)", "share of light let through"),
        Quantity("picture", "(B, H, W + shifts)", "light, about 0..1"),
    ),
    target=Quantity("cube", "(B, C, H, W)", "light, about 0..1"),
    subject="cube",
    guide=None,
    reductions=0,
    make_batch=make_snapshot_batch,
    prepare=prepare_snapshot,
    name_arguments=_name_statistics,
    scoring=RECONSTRUCTING,
    focus="trusted pixels",
    usual_bands=28,
)
"""All bands of a scene from one picture of it, taken through a coded aperture."""
TASKS: Final[Mapping[str, Task]] = {task.name: task for task in (CLOUD_REMOVAL, PANSHARPENING, FUSION, SNAPSHOT)}
"""Tasks by name."""


def check_task(task: Task, settings: NetworkSettings, signature: Signature) -> None:
    """Refuse a network that does not serve the task, or cannot with these bands.

    Raises:
        ConfigError: names the network, the task and what would fit.
    """
    if settings.name not in task.networks or settings.name not in NETWORKS:
        raise ConfigError(explain_misfit(settings.name, task.name))
    if not signature.bands:
        raise ConfigError(f"task '{task.name}' needs optical bands, but the dataset has none")
    if needs_sar(settings) and not signature.sar_bands:
        raise ConfigError(f"network '{settings.name}' uses SAR, but the dataset has no SAR bands: set 'network.use_sar' to false")
    if needs_series(settings) and not signature.series:
        raise ConfigError(
            f"network '{settings.name}' looks at clear images before and after the cloudy one, but the dataset has none: set "
            "`pipeline.query.series` to true and make it anew, or 'network.base' to filled"
        )
    if task.guide and not signature.guide_bands:
        raise ConfigError(f"task '{task.name}' needs a sharp image '{task.guide}', but the dataset has none; run `sereno pack` again")
    if isinstance(settings, StfganSettings) and signature.ratio != settings.ratio:
        raise ConfigError(explain_ratio(settings, signature.ratio))
    if not len(signature.bands) == len(signature.mean) == len(signature.std):
        counts = f"{len(signature.mean)} means and {len(signature.std)} deviations"
        raise ConfigError(f"task '{task.name}': {len(signature.bands)} optical bands, but {counts}; run `sereno pack` again")


def check_loss(task: Task, settings: TrainSettings) -> None:
    """Refuse parts of the loss that ask for what the task has not.

    Raises:
        ConfigError: names the setting and the task.
    """
    if task is CLOUD_REMOVAL:
        return
    for setting, is_on in (("carl", settings.loss.carl > 0), ("weighting: learned", settings.loss.weighting == "learned")):
        if is_on:
            raise ConfigError(f"'loss.{setting}' is about clouds of the input, which the task '{task.name}' has not: leave it out")


def create_network(task: Task, settings: NetworkSettings, signature: Signature, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on `seed` alone; called as its task's inputs say.

    Raises:
        ConfigError: `check_task` refuses it.
    """
    check_task(task, settings, signature)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[settings.name](settings, **task.name_arguments(signature))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's overloads leave it out
    return network


class Description(NamedTuple):
    """What somebody who is about to use a network wants to know."""

    name: str
    """Its name in the config."""
    parameters: int
    """Numbers that are learnt."""
    made_for: Signature
    """The bands with which they were counted."""
    parts: Mapping[str, int]
    """Numbers learnt by each part that has a name of its own; empty for a network of one part."""
    tasks: tuple[Task, ...]
    """What it can be asked."""
    settings: NetworkSettings
    """Its settings, defaults included."""
    provenance: str
    """Where it comes from and what of it is ours: the first lines of its file."""
    docstring: str
    """What its class says of itself: shapes, counts, what is the paper's and what is ours; may be empty."""


PRESETS: Final[tuple[NetworkSettings, ...]] = (
    *(AfsstSettings.model_validate({"size": size}) for size in SIZES),
    S2TransformerSettings(name="s2transformer"),
    UnetSettings(name="unet"),
    SfiinSettings(name="sfiin"),
    StfganSettings(name="stfgan"),
    StfnetSettings(name="stfnet"),
    S2SnapshotSettings(name="s2snapshot"),
)
"""Our networks as they are without further settings."""


def find_preset(name: str) -> NetworkSettings:
    """The network of ours called `name`, without further settings.

    Raises:
        ConfigError: there is none; names those there are.
    """
    known = {preset.name: preset for preset in reversed(PRESETS)}
    if name not in known:
        raise ConfigError(f"there is no network '{name}' of ours: take one of {', '.join(reversed(known))}; others by --settings")
    return known[name]


def describe_network(settings: NetworkSettings, *, bands: int | None = None, sar_bands: int = 2) -> Description:
    """What a network is, counted with so many bands, of which unused SAR counts nothing; by default those its task is known with.

    Raises:
        ConfigError, MissingError: as `create_network`.
    """
    tasks = tuple(task for task in TASKS.values() if settings.name in task.networks)
    signature = _imagine_signature(tasks[0], settings, bands=bands or tasks[0].usual_bands, sar_bands=sar_bands)
    network = create_network(tasks[0], settings, signature)
    if isinstance(settings, CustomSettings):
        words, own = ast.get_docstring(ast.parse(find_file(settings).read_text())), ""
    else:
        words, own = sys.modules[type(network).__module__].__doc__, inspect.getdoc(type(network)) or ""
    said = (words or "Its file does not say.").strip()
    return Description(settings.name, _count(network), signature, _count_parts(network, settings, signature), tasks, settings, said, own)


def to_text(described: Description) -> str:
    """A description as lines for people."""
    made_for = described.made_for
    kinds = [
        f"{len(made_for.bands)} optical and {len(made_for.sar_bands)} SAR" if "sar" in _name_inputs(described) else f"{len(made_for.bands)}"
    ]
    kinds += [f"{len(made_for.guide_bands)} guiding"] if made_for.guide_bands else []
    lines = [f"{described.name}: {described.parameters:,} parameters with {' and '.join(kinds)} bands"]
    lines += [f"  {name}: {count:,}" for name, count in described.parts.items()]
    for task in described.tasks:
        lines.append(f"task {task.name}: {', '.join(_name_inputs(described))} -> {task.target.name}")
        lines += [f"  {quantity.name} {quantity.shape}: {quantity.units}" for quantity in (*_list_inputs(described, task), task.target)]
        lines.append(f"  scores: {', '.join(task.scoring.metrics)}; beside: {', '.join(_name_baselines(task.scoring))}")
    said = [described.provenance, *([described.docstring] if described.docstring else [])]
    return "\n".join([*lines, f"settings: {described.settings.to_json()}", *(f"\n{words}" for words in said)])


def _name_inputs(described: Description) -> list[str]:
    return [quantity.name for quantity in _list_inputs(described, described.tasks[0])]


def _list_inputs(described: Description, task: Task) -> tuple[Quantity, ...]:
    """What the network is called with."""
    return (*task.inputs, *(task.around if needs_series(described.settings) else ()))


def _name_baselines(scoring: Scoring) -> list[str]:
    """Baselines, with a word about those that not every dataset has."""
    return [f"{name} (of a series)" if name in scoring.needed else name for name in scoring.baselines]


def _imagine_signature(task: Task, settings: NetworkSettings, *, bands: int, sar_bands: int) -> Signature:
    """A dataset of so many bands, for counting."""
    optical, sar = (tuple(str(number) for number in range(count)) for count in (bands, sar_bands))
    ratio = settings.ratio if isinstance(settings, StfganSettings) else 1
    signature = Signature(optical, sar, (1.0,) * bands, (1.0,) * bands, task.name, ratio, series=needs_series(settings))
    return signature._replace(guide_bands=("guide",), guide_mean=(1.0,), guide_std=(1.0,)) if task.guide else signature


def _count_parts(network: nn.Module, settings: NetworkSettings, signature: Signature) -> dict[str, int]:
    """Parameters of each generator and of a critic, which is needed only while training."""
    if not isinstance(network, Stfgan) or not isinstance(settings, StfganSettings):
        return {}
    critic = Discriminator(settings, **_name_statistics(signature))
    return {f"generator {n}": _count(part) for n, part in enumerate(network.generators, 1)} | {"critic (training only)": _count(critic)}


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
