"""Trained networks at rest: one safetensors file that says everything about itself, and the state a killed run goes on from.

Weights are safetensors, so that no code runs on loading. The metadata is one JSON text: what the network is, which bands it was made
for, and what it was trained on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sereno.model.batches import Signature
from sereno.model.config import CustomSettings, TrainSettings, needs_sar, needs_series
from sereno.model.networks.custom import find_file
from sereno.model.tasks import CLOUD_REMOVAL, TASKS, create_network
from sereno.pipeline.config import Settings, TaskName, parse_settings
from sereno.pipeline.errors import ConfigError, DataError, MissingError, TrainingError
from sereno.pipeline.store import staged

logger = logging.getLogger(__name__)

METADATA_KEY: Final = "sereno"
"""Key of our JSON text in the safetensors metadata."""
OPENING: Final = f'{{"__metadata__":{{"{METADATA_KEY}":'.encode()
"""How the header of a checkpoint begins: safetensors writes metadata first."""
STATE_KIND: Final = b"sereno-state/"
"""How a saved state begins."""
OPERATIONAL: Final = (
    "device", "processes", "accumulate", "compile", "save_every", "pictures", "tensorboard", "divergence", "start_from"
)  # fmt: skip
"""Settings that say how a run is done, not what comes out; of `start_from` the content counts, not the path."""
MOST_NAMED: Final = 4
"""Differences between two runs that are named one by one."""

Identity = Mapping[str, str]
"""What a saved state is good for, as `identify_run` makes it."""


class CheckpointMeta(Settings):
    """What a checkpoint says about itself."""

    format: Literal["sereno-checkpoint/1"] = "sereno-checkpoint/1"
    task: TaskName = CLOUD_REMOVAL.name
    """A task of `sereno.model.tasks`."""
    settings: TrainSettings
    """Settings of the run."""
    bands: tuple[str, ...]
    """Optical bands in the order in which the network takes and gives them."""
    sar_bands: tuple[str, ...]
    """SAR polarisations in the order in which the network takes them."""
    training_mean: tuple[float, ...]
    """Mean reflectance of clear training targets, per band."""
    training_std: tuple[float, ...]
    """Standard deviation of the same."""
    ratio: int = 1
    """Pixels of the fine grid along each side of a coarse pixel; 1 where nothing is coarse."""
    guide_bands: tuple[str, ...] = ()
    """Bands of the sharp image that guides, in the order in which the network takes them; empty where none does."""
    guide_mean: tuple[float, ...] = ()
    """Mean reflectance of the guide in training, per band."""
    guide_std: tuple[float, ...] = ()
    """Standard deviation of the same."""
    dataset_sha256: str
    """SHA-256 of the dataset manifest."""
    step: int
    """Optimiser steps after which these weights were taken."""
    best_loss: float | None = None
    """Validation loss of these weights; None if there was no validation."""
    best_psnr_db: float | None = None
    """Validation PSNR of cloudy pixels; None likewise, or if no validation pixel is cloudy."""
    weights_sha256: str = ""
    """SHA-256 of names, shapes and values of the weights; filled in on saving, compared on loading."""
    sereno: str = version("sereno")
    """Version that wrote it."""

    @property
    def signature(self) -> Signature:
        """What the network is made for."""
        statistics = self.training_mean, self.training_std
        made_for = Signature(self.bands, self.sar_bands, *statistics, self.task, self.ratio, series=needs_series(self.settings.network))
        return made_for._replace(guide_bands=self.guide_bands, guide_mean=self.guide_mean, guide_std=self.guide_std)


class Loaded(NamedTuple):
    """A checkpoint ready for use."""

    network: nn.Module
    """In evaluation mode, on the device asked for; called with the inputs of its task."""
    settings: TrainSettings
    """Settings of the run, with the scaling of SAR that the network expects."""
    bands: tuple[str, ...]
    """Optical bands in the order in which the network takes and gives them."""
    sar_bands: tuple[str, ...]
    """SAR polarisations in the order in which the network takes them."""
    training_mean: Tensor
    """(C,) float32 mean reflectance of clear training targets, on the device."""
    meta: CheckpointMeta
    """Everything the file says about itself."""


def save_checkpoint(path: Path, weights: Mapping[str, Tensor], meta: CheckpointMeta) -> None:
    """Write `weights` (a network's state dict) and `meta` to `path`, whole or not at all; equal content gives equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    described = meta.model_copy(update={"weights_sha256": hash_weights(tensors)})
    with staged(path) as partial, partial.open("wb") as file:  # safetensors' own writer makes a file that only its owner may read
        file.write(save(tensors, metadata={METADATA_KEY: described.to_json()}))


def load_checkpoint(path: Path, device: torch.device) -> Loaded:
    """The network in `path`, ready for use on `device`.

    Raises:
        MissingError: there is no such file.
        TrainingError: it is no checkpoint of ours, of another version, damaged, or changed after it was written.
    """
    meta, tensors = _read(path)
    if hash_weights(tensors) != meta.weights_sha256:
        raise TrainingError(
            f"{path} is damaged: its weights are not those that were written (SHA-256 differs); delete it and run `sereno train` again"
        )
    network = create_network(TASKS[meta.task], meta.settings.network, meta.signature)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise TrainingError(f"{path} does not fit this version of the network ({error}); run `sereno train` again") from None
    mean = torch.tensor(meta.training_mean, dtype=torch.float32, device=device)
    return Loaded(network.to(device).eval(), meta.settings, meta.bands, meta.sar_bands, mean, meta)


def check_question(loaded: Loaded, signature: Signature, *, where: Path) -> None:
    """Refuse data of another task, ratio or bands than the network was made for; `where` names the data.

    Raises:
        DataError: names both.
    """
    made_for = loaded.meta.signature
    ours, theirs = ((one.task, one.ratio, one.guide_bands) for one in (signature, made_for))
    if ours != theirs:
        (task, ratio, guide), (its_task, its_ratio, its_guide) = ours, theirs
        raise DataError(
            f"{where} is for the task {task} at ratio {ratio} with guide {list(guide)}, but the checkpoint was trained for {its_task} at "
            f"ratio {its_ratio} with guide {list(its_guide)}: take a checkpoint of the same, or train on this dataset"
        )
    check_bands(loaded, signature.bands, signature.sar_bands, where=where)
    check_dates(loaded, has_dates=signature.series, where=where)


def check_dates(loaded: Loaded, *, has_dates: bool, where: Path) -> None:
    """Refuse data without the dates around the input if the network looks at them; `where` names the data.

    Raises:
        DataError: says how to have them.
    """
    if needs_series(loaded.settings.network) and not has_dates:
        raise DataError(
            f"{where} has no clear images before and after the cloudy one, which the network of the checkpoint looks at (base dates): make "
            "it with `pipeline.query.series: true`, or take a checkpoint trained without"
        )


def check_bands(loaded: Loaded, bands: Sequence[str], sar_bands: Sequence[str], *, where: Path) -> None:
    """Refuse data whose bands are not those that the network was made for; `where` names the data. Unused SAR may be any.

    Raises:
        DataError: names both.
    """
    sar_differs = needs_sar(loaded.settings.network) and tuple(sar_bands) != loaded.sar_bands
    if tuple(bands) != loaded.bands or sar_differs:
        raise DataError(
            f"{where} has bands {list(bands)} and SAR {list(sar_bands)}, but the checkpoint was trained with {list(loaded.bands)} and "
            f"{list(loaded.sar_bands)}: ingest the same bands (`ingest.bands`) or train on these"
        )


def _read(path: Path) -> tuple[CheckpointMeta, dict[str, Tensor]]:
    if not path.is_file():
        raise MissingError(f"checkpoint {path} does not exist: run `sereno train` first")
    _check_kind(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()[METADATA_KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
        meta = parse_settings(CheckpointMeta, text, where=str(path))
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it and run `sereno train` again") from None
    except ConfigError as error:
        raise TrainingError(
            f"{path} does not say of itself what this version expects ({error}): use the version of sereno that wrote it, or run "
            "`sereno train` again"
        ) from None
    return meta, tensors


def _check_kind(path: Path) -> None:
    """Refuse a file that does not say that it is a checkpoint of ours; one that is cut short after saying so passes."""
    with path.open("rb") as file:
        head = file.read(len(OPENING) + 8)  # eight bytes of length, then the header
    if head.startswith(STATE_KIND):
        raise TrainingError(
            f"{path} is a training state, from which only its own run goes on: take checkpoint.safetensors or last.safetensors beside it"
        )
    if head[8:] == OPENING:
        return
    try:
        with safe_open(path, framework="pt") as opened:
            is_ours = METADATA_KEY in (opened.metadata() or {})
    except SafetensorError:
        is_ours = False
    if not is_ours:
        raise TrainingError(f"{path} is no checkpoint of sereno: name one that `sereno train` wrote")


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of the file at `path`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_state(path: Path, state: Mapping[str, Any], *, identity: Identity) -> None:
    """Write what training needs to go on, whole or not at all; the one before it stays beside it as `state.previous.pt`.

    `identity` says for which settings, data and code it is good. A first line holds the SHA-256 of the rest, since torch compares none.

    Raises:
        StoreError: it cannot be written, for example because the disk is full.
    """
    content = io.BytesIO()  # NOTE: torch hides a full disk behind an error of its own, so it writes to memory
    torch.save({"identity": dict(identity), "state": dict(state)}, content)
    with staged(path) as partial:
        with partial.open("wb") as file:
            file.write(_seal(content.getbuffer()))
            file.write(content.getbuffer())
        if path.is_file():
            path.replace(previous_of(path))


def load_state(path: Path, *, identity: Identity) -> dict[str, Any] | None:
    """What training needs to go on, or None if nothing is saved for this `identity`; the log says why.

    A damaged file is put aside as `state.damaged.pt` (the one before it as `state.previous.damaged.pt`) and the one before it is taken.
    """
    for candidate in (path, previous_of(path)):
        if not candidate.is_file():
            continue
        try:
            content = _read_state(candidate)
        except (DataError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            aside = candidate.with_name(f"{candidate.stem}.damaged{candidate.suffix}")
            logger.warning("the saved state %s cannot be read (%s); it is now %s", candidate, _in_one_line(error), aside.name)
            with contextlib.suppress(FileNotFoundError):  # another process of this run may have put it aside already
                candidate.replace(aside)
            continue
        if differences := describe_differences(content["identity"], identity):
            logger.warning("starting anew: the saved state %s is of another run: %s", candidate, differences)
            return None
        if candidate != path:
            logger.warning("going on from the state before it, %s", candidate)
        state: dict[str, Any] = content["state"]
        return state
    return None


def previous_of(path: Path) -> Path:
    """Where the state before the one at `path` lies."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _seal(content: bytes | memoryview) -> bytes:
    return STATE_KIND + f"2 {hashlib.sha256(content).hexdigest()}\n".encode()


def _read_state(path: Path) -> dict[str, Any]:
    seal, _, content = path.read_bytes().partition(b"\n")
    if seal + b"\n" != _seal(content):
        raise DataError("cut short, changed, or no state of ours")
    read: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {"identity": dict(read["identity"]), "state": dict(read["state"])}


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def identify_run(settings: TrainSettings, dataset_sha256: str, code: str) -> dict[str, str]:
    """What a saved state is good for: every setting that can change a result, the data, the code, and the files that settings name.

    Raises:
        MissingError: such a file is not there.
    """
    values = settings.model_dump(mode="json", exclude=set(OPERATIONAL))
    identity = {**_flatten(values, "train"), "the dataset": dataset_sha256, "the code": code}
    if settings.start_from is not None:
        start = Path(settings.start_from).expanduser()
        if not start.is_file():
            raise MissingError(f"train.start_from: {start} does not exist (relative paths are seen from {Path.cwd()})")
        identity["the weights in 'start_from'"] = hash_file(start)
    if isinstance(settings.network, CustomSettings):
        identity["the file of 'network.source'"] = hash_file(find_file(settings.network))
    return identity


def _flatten(values: Mapping[str, Any], path: str) -> dict[str, str]:
    """Nested settings as texts by dotted key."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{path}.{key}") if isinstance(value, Mapping) else {f"{path}.{key}": json.dumps(value)}
    return flat


def describe_differences(saved: Identity, wanted: Identity) -> str:
    """In words, what two runs differ in: settings with both values, the rest by name; empty if in nothing."""
    different = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
    named = [
        f"'{key}' was {saved.get(key, 'not there')} and is {wanted.get(key, 'no more')}"
        if key.startswith("train.")
        else f"{key} has changed"
        for key in different
    ]
    more = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    return "; ".join(named[:MOST_NAMED] + more)


def load_start(path: Path, settings: TrainSettings, facts: Signature, *, where: Path) -> dict[str, Tensor]:
    """The weights that `start_from` names, checked to fit the network of `settings` and the bands of the dataset `where`.

    Raises:
        MissingError, TrainingError: as `load_checkpoint`.
        DataError: they were trained on other bands.
        ConfigError: they are of another network, or of other scaling of SAR; names what differs.
    """
    loaded = load_checkpoint(path, torch.device("cpu"))
    check_question(loaded, facts, where=where)
    theirs, ours = (_flatten(run.model_dump(mode="json", include={"network", "sar_range"}), "train") for run in (loaded.settings, settings))
    if differences := describe_differences(theirs, ours):
        raise ConfigError(f"'train.start_from' {path} is another network: {differences}; set these alike, or start without it")
    return loaded.network.state_dict()


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU where there is one. On a CPU no more threads are used than the process may run on.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device '{name}' cannot be used here ({str(error).splitlines()[0]}): set 'device' to auto or cpu") from None
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(torch.get_num_threads(), allowed))
    return device
