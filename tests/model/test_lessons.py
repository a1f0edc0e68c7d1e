"""Laws of lessons: exact answers cost nothing, pieces add up, and what a paper never looks at moves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from task_samples import BANDS, make_fusion, make_snapshot
from torch import Tensor

from sereno.model.batches import AnyBatch, Sample, Signature, make_fusion_batch, make_snapshot_batch
from sereno.model.config import TrainSettings
from sereno.model.lessons import BY_SIGNAL, BY_SPAN, IN_STAGES, PLAIN, Piece, choose_answer, coarsen_sample, find_lesson
from sereno.model.networks.s2transformer import Encoded
from sereno.model.networks.stfnet import Stfnet
from sereno.model.tasks import TASKS, create_network
from sereno.model.temporal import Changes
from sereno.pipeline.config import TaskName

STATISTICS: Any = ((0.2,) * 4, (0.1,) * 4)


def set_up(network: dict[str, Any], **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({"network": network, "batch_size": 4, **more})


GAN = set_up({"name": "stfgan", "width": 4, "coarse_blocks": 1, "fine_blocks": 1})
NET = set_up({"name": "stfnet", "width": 4})
SNAPSHOT = set_up({"name": "s2snapshot", "width": 8, "head_dim": 4, "stages": 1, "blocks": 1, "window_px": 4, "encoding_steps": 5})


def make_batch(settings: TrainSettings) -> AnyBatch:
    generator = np.random.default_rng(0)
    if settings is SNAPSHOT:
        facts = Signature(BANDS, (), *STATISTICS, "snapshot-reconstruction")
        return make_snapshot_batch(make_snapshot(4, generator, size_px=16), facts, settings)
    arrays = make_fusion(4, generator, ratio=16)
    arrays["mask"][:, 0, 2, :3] = 0
    return make_fusion_batch(arrays, Signature(BANDS, (), *STATISTICS, "spatiotemporal-fusion", 16), settings)


def make_network(settings: TrainSettings) -> Any:
    task: TaskName = "snapshot-reconstruction" if settings is SNAPSHOT else "spatiotemporal-fusion"
    return create_network(TASKS[task], settings.network, Signature(BANDS, (), *STATISTICS, task, 16))


def to_piece(batch: AnyBatch, settings: TrainSettings, whole: AnyBatch | None = None, *, step: int = 0) -> Piece:
    amounts = find_lesson(settings).measure(whole or batch, settings, (whole or batch).weight)
    return Piece(batch, batch.weight, amounts, settings, step)


def learn(settings: TrainSettings, answer: Any, piece: Piece) -> dict[str, Tensor]:
    lesson = find_lesson(settings)
    losses = lesson.compute(answer, piece).losses
    assert set(lesson.name_parts(settings)) == losses.keys()
    assert lesson.name_parts(settings)[0] == "total"
    return losses


def test_each_network_has_its_lesson() -> None:
    assert [find_lesson(settings) for settings in (GAN, NET, SNAPSHOT)] == [IN_STAGES, BY_SPAN, BY_SIGNAL]
    others = [TrainSettings(), set_up({"name": "stfgan", "stages": 1}), set_up({"name": "stfnet", "learning": "middle"})]
    assert [find_lesson(settings) for settings in others] == [PLAIN] * 3
    network = make_network(others[2])
    assert choose_answer(network, others[2]) is network


@pytest.mark.parametrize("settings", [GAN, NET, SNAPSHOT], ids=["stfgan", "stfnet", "s2snapshot"])
@pytest.mark.parametrize("step", [0, 9])
def test_the_losses_of_pieces_add_up_to_that_of_the_batch(settings: TrainSettings, step: int) -> None:
    batch, answer = make_batch(settings), choose_answer(make_network(settings).eval(), settings)
    with torch.no_grad():
        whole = learn(settings, answer(*batch.inputs), to_piece(batch, settings, step=step))
        pieces = [learn(settings, answer(*part.inputs), to_piece(part, settings, batch, step=step)) for part in batch.cut(2)]
    for name, loss in whole.items():
        assert sum(piece[name].item() for piece in pieces) == pytest.approx(loss.item(), rel=1e-4), name


def test_exact_images_of_both_stages_cost_nothing() -> None:
    batch = make_batch(GAN)
    first = coarsen_sample(batch)
    exact = learn(GAN, [batch.target, first.target], to_piece(batch, GAN))
    assert exact["total"] == exact["first"] == 0
    off = learn(GAN, [batch.target, first.target + 0.1], to_piece(batch, GAN))
    assert off["first"].item() == pytest.approx(0.01, rel=1e-4)
    assert off["total"].item() == pytest.approx(0.01, rel=1e-4)


def test_an_average_over_what_is_not_trusted_is_not_trusted() -> None:
    batch = make_batch(GAN)
    coarse = coarsen_sample(batch)
    assert coarse.target.shape == (4, 4, 8, 8)
    assert coarse.weight[:, :, 0].eq(0).all(), "three of its four rows are not valid"
    assert coarse.weight[:, :, 1:].eq(1).all()
    assert torch.allclose(coarse.target[:, :, 5, 5], batch.target[:, :, 20:24, 20:24].mean((2, 3)))


def test_critics_are_shown_what_each_stage_made() -> None:
    batch = make_batch(GAN)
    shown = IN_STAGES.compute([batch.target + 1, coarsen_sample(batch).target + 2], to_piece(batch, GAN)).shown
    assert [round((pair.made - pair.real).mean().item()) for pair in shown] == [1, 2]
    assert [pair.trust.shape[-1] for pair in shown] == [32, 8]


def test_changes_that_add_up_cost_nothing_and_the_middle_image_moves_nothing() -> None:
    batch = make_batch(NET)
    assert isinstance(batch, Sample)
    span = batch.inputs[1][:, 1] - batch.inputs[1][:, 0]
    exact = Changes(0.3 * span, 0.7 * span, span, span)
    assert all(loss.item() < 1e-12 for loss in learn(NET, exact, to_piece(batch, NET)).values())
    astray = exact._replace(late=0.7 * span + 0.1)
    losses = learn(NET, astray, to_piece(batch, NET))
    assert losses["consistency"].item() == pytest.approx(0.01, rel=1e-4)
    blind = batch._replace(target=torch.rand_like(batch.target), optical=torch.rand_like(batch.target))
    again = learn(NET, astray, to_piece(blind, NET))
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_every_weight_of_stfnet_learns_from_the_span() -> None:
    batch, network = make_batch(NET), make_network(NET)
    assert isinstance(network, Stfnet)
    learn(NET, choose_answer(network, NET)(*batch.inputs), to_piece(batch, NET))["total"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_the_head_learns_the_signal_first_and_then_weighs_errors_as_well() -> None:
    batch = make_batch(SNAPSHOT)
    exact = Encoded(batch.target, batch.target * batch.inputs[1])
    for step in (0, 9):
        assert learn(SNAPSHOT, exact, to_piece(batch, SNAPSHOT, step=step))["total"].item() == pytest.approx(0, abs=1e-9)
    blurred = Encoded(batch.target + 0.1, exact.signal)
    before, after = (learn(SNAPSHOT, blurred, to_piece(batch, SNAPSHOT, step=step)) for step in (0, 9))
    assert before["total"].item() == pytest.approx(0.1, rel=1e-4)
    assert after["total"].item() == pytest.approx(0.2, rel=1e-3), "weights have mean 1"
