"""How each network learns from a batch: what of it is called, what its answer is compared with, and what a critic is shown.

An answer and a piece of a batch enter, losses leave; like those of `losses` they are sums divided by amounts of the whole batch, so that
those of the pieces add up. Most networks learn by `PLAIN`; another is another function, a `Lesson`, and a line of `find_lesson`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.batches import AnyBatch, Batch, Sample
from sereno.model.config import STAGE_RATIO, S2SnapshotSettings, StfganSettings, StfnetSettings, TrainSettings
from sereno.model.losses import compute_loss, measure_amounts, name_parts
from sereno.model.snapshot import compute_mask_aware_loss, compute_signal_loss
from sereno.model.temporal import (
    Dates,
    Middle,
    compute_consistency_loss,
    compute_side_loss,
    compute_span_loss,
    measure_trust,
    predict_middle,
)

FIRST: Final = "first_"
"""What the amounts of the first stage's image are called by, before the name of the term."""


class Piece(NamedTuple):
    """Some crops of a batch, and what their losses depend on beside an answer."""

    batch: AnyBatch
    """The crops."""
    weight: Tensor
    """(B, 1, H, W) of `weigh_pixels`."""
    amounts: Mapping[str, Tensor]
    """What losses are divided by, of the whole batch."""
    settings: TrainSettings
    """Settings of the run."""
    step: int
    """Steps taken before this one."""


class Shown(NamedTuple):
    """A made image and the true one, for a critic."""

    made: Tensor
    """(B, C, H, W) of the network."""
    real: Tensor
    """(B, C, H, W) the target."""
    trust: Tensor
    """(B, 1, H, W) trust in the target."""


class Learnt(NamedTuple):
    """What came of an answer."""

    losses: dict[str, Tensor]
    """Scalars by part, `total` among them."""
    shown: tuple[Shown, ...]
    """For each critic, what it is to tell apart."""


class Lesson(NamedTuple):
    """A way to learn."""

    method: str
    """Method of the network that is called with the inputs."""
    name_parts: Callable[[TrainSettings], tuple[str, ...]]
    """Keys of the losses, `total` first."""
    measure: Callable[[AnyBatch, TrainSettings, Tensor], dict[str, Tensor]]
    """What losses are divided by, of a batch and its weight."""
    compute: Callable[[Any, Piece], Learnt]
    """Losses of an answer."""


def find_lesson(settings: TrainSettings) -> Lesson:
    """How the network of these settings learns."""
    network = settings.network
    if isinstance(network, StfganSettings) and network.stages > 1:
        return IN_STAGES
    if isinstance(network, StfnetSettings) and network.learning == "span":
        return BY_SPAN
    if isinstance(network, S2SnapshotSettings) and network.encoding:
        return BY_SIGNAL
    return BY_SIDES if settings.loss.temporal > 0 else PLAIN


def choose_answer(network: nn.Module, settings: TrainSettings) -> Any:
    """What of the network is called while it learns: its lesson's method; where `loss.stages` counts one that gives intermediate images.

    Where `loss.temporal` counts it is called three times.
    """
    lesson = find_lesson(settings)
    if lesson is BY_SIDES:
        return ask_sides(network)
    if lesson is PLAIN:
        return network.forward_stages if settings.loss.stages > 0 and hasattr(network, "forward_stages") else network
    return getattr(network, lesson.method)


def _name_plainly(settings: TrainSettings) -> tuple[str, ...]:
    return name_parts(settings.loss)


def _measure_plainly(batch: AnyBatch, settings: TrainSettings, weight: Tensor) -> dict[str, Tensor]:
    return measure_amounts(batch, settings.loss, weight)


def _compare(answer: Any, piece: Piece) -> Learnt:
    """The image, and intermediate ones if there are any, with the target."""
    losses = compute_loss(answer, piece.batch, piece.settings.loss, weight=piece.weight, amounts=piece.amounts)
    image = answer if isinstance(answer, Tensor) else answer[0]
    return Learnt(losses, (Shown(image, piece.batch.target, piece.batch.weight),))


PLAIN: Final = Lesson("forward", _name_plainly, _measure_plainly, _compare)
"""The answer is compared with the target."""


def coarsen_sample(batch: AnyBatch) -> Sample:
    """What the first of two stages of STFGAN is compared with: the target averaged, trusted where all of it is.

    A target whose pixels are not trusted may hold anything, so the average over them is not trusted either.
    """
    trust = -F.max_pool2d(-batch.weight, STAGE_RATIO)
    target, optical = (F.avg_pool2d(image, STAGE_RATIO) for image in (batch.target, batch.optical))
    return Sample(batch.inputs, target, trust, optical)


def _name_stages(settings: TrainSettings) -> tuple[str, ...]:
    return (*name_parts(settings.loss), "first")


def _measure_stages(batch: AnyBatch, settings: TrainSettings, weight: Tensor) -> dict[str, Tensor]:
    coarse = coarsen_sample(batch)
    first = measure_amounts(coarse, settings.loss, coarse.weight)
    return measure_amounts(batch, settings.loss, weight) | {f"{FIRST}{name}": amount for name, amount in first.items()}


def _compare_stages(answer: list[Tensor], piece: Piece) -> Learnt:
    """Both stages' images, each with the target at its scale; `first` is the loss of the first stage, a part of `total`."""
    final, first = answer
    coarse, loss = coarsen_sample(piece.batch), piece.settings.loss
    amounts = {name.removeprefix(FIRST): amount for name, amount in piece.amounts.items() if name.startswith(FIRST)}
    losses = compute_loss(final, piece.batch, loss, weight=piece.weight, amounts=piece.amounts)
    losses["first"] = compute_loss(first, coarse, loss, weight=coarse.weight, amounts=amounts)["total"]
    losses["total"] = losses["total"] + losses["first"]
    return Learnt(losses, (Shown(final, piece.batch.target, piece.batch.weight), Shown(first, coarse.target, coarse.weight)))


IN_STAGES: Final = Lesson("forward_stages", _name_stages, _measure_stages, _compare_stages)
"""STFGAN with two stages: each generator learns from its own image, the second from what the first makes."""


def _name_spans(_settings: TrainSettings) -> tuple[str, ...]:
    return "total", "span", "consistency"


def _measure_spans(batch: AnyBatch, _settings: TrainSettings, _weight: Tensor) -> dict[str, Tensor]:
    return {"span": measure_trust(batch.weight)}


def _compare_spans(changes: Any, piece: Piece) -> Learnt:
    """L_R + lambda L_T of StfNet (Liu et al. 2019): the middle fine image is never looked at, a critic excepted."""
    network, batch = piece.settings.network, piece.batch
    assert isinstance(network, StfnetSettings)
    fine = batch.inputs[1]
    middle = predict_middle(changes.early, changes.late, fine)
    span = compute_span_loss(changes, fine, batch.weight, amount=piece.amounts["span"])
    consistency = compute_consistency_loss(middle, batch.weight, amount=piece.amounts["span"])
    losses = {"total": span + network.consistency * consistency, "span": span, "consistency": consistency}
    return Learnt(losses, (Shown((middle.early + middle.late) / 2, batch.target, batch.weight),))


BY_SPAN: Final = Lesson("forward_changes", _name_spans, _measure_spans, _compare_spans)
"""StfNet, self-supervised over the span from the first date to the last."""


def _name_signals(settings: TrainSettings) -> tuple[str, ...]:
    return (*name_parts(settings.loss), "encoding", "aware")


def _compare_signals(encoded: Any, piece: Piece) -> Learnt:
    """Mask-encoding pretraining, then mask-aware training (S2-Transformer, Wang et al. 2025, as reading notes tell it).

    In the first `encoding_steps` the head learns the encoded signal (`encoding`) beside the cube; afterwards it also weighs the errors of
    the cube (`aware`). The notes freeze the head then; ours goes on learning, since the cube's features go on changing. What is not
    trusted moves neither: its error is 0, and its signal counts as one so strong that it has no weight.
    """
    network, batch = piece.settings.network, piece.batch
    assert isinstance(network, S2SnapshotSettings)
    losses = compute_loss(encoded.image, batch, piece.settings.loss, weight=piece.weight, amounts=piece.amounts)
    share = len(batch.target) / piece.settings.batch_size
    trusted = batch.weight > 0
    image, cube, signal = (torch.where(trusted, one, 0.0) for one in (encoded.image, batch.target, encoded.signal))
    losses["encoding"] = share * compute_signal_loss(signal, cube, batch.inputs[1])
    losses["aware"] = torch.zeros_like(losses["encoding"])
    if piece.step >= network.encoding_steps:
        losses["aware"] = share * compute_mask_aware_loss(image, cube, torch.where(trusted, signal, 1.0))
    losses["total"] = losses["total"] + losses["encoding"] + network.emphasis * losses["aware"]
    return Learnt(losses, (Shown(encoded.image, batch.target, batch.weight),))


BY_SIGNAL: Final = Lesson("forward_encoded", _name_signals, _measure_plainly, _compare_signals)
"""The S2-Transformer on snapshots, with its head for the encoded signal."""


class Sides(NamedTuple):
    """What a network for cloud removal answers, each (B, C, H, W)."""

    both: Tensor
    """From the dates before and after."""
    before: Tensor
    """From the date before alone: nothing of the other is clear."""
    after: Tensor
    """From the date after alone."""


def ask_sides(network: nn.Module) -> Callable[..., Sides]:
    """What calls `network` three times, with both dates and with each alone: it needs three times the time and the memory of one call."""

    def ask(optical: Tensor, sar: Tensor, cloud: Tensor, *dates: Tensor) -> Sides:
        around = Dates(*dates)
        return Sides(*(network(optical, sar, cloud, *shown) for shown in (around, around.keep(0), around.keep(1))))

    return ask


def _name_sides(settings: TrainSettings) -> tuple[str, ...]:
    return (*name_parts(settings.loss), "sides", "consistency")


def _measure_sides(batch: AnyBatch, settings: TrainSettings, weight: Tensor) -> dict[str, Tensor]:
    return measure_amounts(batch, settings.loss, weight) | {"consistency": measure_trust(_trust_sides(batch))}


def _trust_sides(batch: AnyBatch) -> Tensor:
    """How far both sides are worth comparing, (B, 1, H, W): under clouds, where both dates are clear; the target has no say."""
    assert isinstance(batch, Batch)
    assert batch.dates is not None
    return batch.cloud * batch.dates.clear.prod(dim=1)


def _compare_sides(answer: Sides, piece: Piece) -> Learnt:
    """Temporal consistency of a cloudy date between two clear ones, after L_T of StfNet (Liu et al. 2019).

    With Y1, Y3 the clear dates, X1 and X3 the answers from either alone, d12 = X1 - Y1 and d23 = Y3 - X3 must add up to Y3 - Y1
    (`consistency`). Ours: the network is one and is shown one date at a time, where theirs are two; absolute differences, under clouds,
    since elsewhere both answers are the input; and the answers from either date alone are compared with the target as well (`sides`, the
    mean of both), since any two images that are alike would satisfy the constraint. `loss.temporal` weighs both parts. A step asks the
    network three times: three times the time and memory of its layers.
    """
    batch, settings = piece.batch, piece.settings.loss
    losses, *alone = (compute_loss(image, batch, settings, weight=piece.weight, amounts=piece.amounts) for image in answer)
    losses["sides"] = torch.stack([side["total"] for side in alone]).mean()
    middle = Middle(answer.before, answer.after)
    losses["consistency"] = compute_side_loss(middle, _trust_sides(batch), amount=piece.amounts["consistency"])
    losses["total"] = losses["total"] + settings.temporal * (losses["sides"] + losses["consistency"])
    return Learnt(losses, (Shown(answer.both, batch.target, batch.weight),))


BY_SIDES: Final = Lesson("forward", _name_sides, _measure_sides, _compare_sides)
"""Cloud removal from a series, with `loss.temporal`."""
