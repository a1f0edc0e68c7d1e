"""Laws of lessons: exact answers cost nothing, pieces add up, and what a paper never looks at moves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from series_samples import make_series
from task_samples import BANDS, make_fusion, make_snapshot
from torch import Tensor, nn

from sereno.model.batches import AnyBatch, Batch, Sample, Signature, make_clearing_batch, make_fusion_batch, make_snapshot_batch
from sereno.model.config import TrainSettings
from sereno.model.lessons import (
    BY_SIDES,
    BY_SIGNAL,
    BY_SPAN,
    IN_STAGES,
    PLAIN,
    Piece,
    Sides,
    ask_sides,
    choose_answer,
    coarsen_sample,
    find_lesson,
)
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

SIDED = set_up(
    {"name": "afsst", "width": 8, "head_dim": 4, "levels": 1, "blocks": 1, "window_px": 4, "base": "dates"},
    loss={"temporal": 0.5, "spatial": 0, "spectral": 0},
)
DATED = Signature(("B02", "B03", "B04"), ("VV", "VH"), (0.2,) * 3, (0.1,) * 3, series=True)


def make_batch(settings: TrainSettings) -> AnyBatch:
    generator = np.random.default_rng(0)
    if settings is SIDED:
        arrays = make_series(4, generator)
        arrays["around_clear"][:, 0, 20:] = 0
        return make_clearing_batch(arrays, DATED, settings)
    if settings is SNAPSHOT:
        facts = Signature(BANDS, (), *STATISTICS, "snapshot-reconstruction")
        return make_snapshot_batch(make_snapshot(4, generator, size_px=16), facts, settings)
    arrays = make_fusion(4, generator, ratio=16)
    arrays["mask"][:, 0, 2, :3] = 0
    return make_fusion_batch(arrays, Signature(BANDS, (), *STATISTICS, "spatiotemporal-fusion", 16), settings)


def make_network(settings: TrainSettings) -> Any:
    if settings is SIDED:
        return create_network(TASKS["cloud-removal"], settings.network, DATED)
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
    assert [find_lesson(settings) for settings in (GAN, NET, SNAPSHOT, SIDED)] == [IN_STAGES, BY_SPAN, BY_SIGNAL, BY_SIDES]
    others = [TrainSettings(), set_up({"name": "stfgan", "stages": 1}), set_up({"name": "stfnet", "learning": "middle"})]
    assert [find_lesson(settings) for settings in others] == [PLAIN] * 3
    network = make_network(others[2])
    assert choose_answer(network, others[2]) is network


@pytest.mark.parametrize("settings", [GAN, NET, SNAPSHOT, SIDED], ids=["stfgan", "stfnet", "s2snapshot", "sides"])
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


@pytest.mark.parametrize("share", [0.0, 3.0])
def test_changes_that_do_not_add_up_cost_as_much_as_is_asked(share: float) -> None:
    """Both spans are off by 0.2 and the two middle images by 0.1: means of squares."""
    settings, batch = set_up({"name": "stfnet", "width": 4, "consistency": share}), make_batch(NET)
    span = batch.inputs[1][:, 1] - batch.inputs[1][:, 0]
    losses = learn(settings, Changes(0.3 * span, 0.7 * span + 0.1, span + 0.2, span + 0.2), to_piece(batch, settings))
    assert losses["consistency"].item() == pytest.approx(0.01, rel=1e-4)
    assert losses["total"].item() - losses["span"].item() == pytest.approx(0.01 * share, rel=1e-3, abs=1e-8)
    assert losses["span"].item() == pytest.approx(2 * 0.04, rel=1e-4)


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


def test_errors_are_weighed_from_the_first_step_after_those_of_encoding() -> None:
    batch = make_batch(SNAPSHOT)
    blurred = Encoded(batch.target + 0.1, batch.target * batch.inputs[1])
    aware = [learn(SNAPSHOT, blurred, to_piece(batch, SNAPSHOT, step=step))["aware"].item() for step in (4, 5)]
    assert aware == pytest.approx([0, 0.1], rel=1e-3), "'encoding_steps' is 5, so steps 0 to 4 encode"


def test_what_is_not_trusted_takes_no_part_in_the_mean_of_the_weights() -> None:
    """A signal of 0.5 weighs 1 / 0.5 - 1 = 1, and half of the pixels, not trusted, weigh 0: with a mean of 1, 2 and 0."""
    batch = make_batch(SNAPSHOT)
    assert isinstance(batch, Sample)
    weight = batch.weight.clone()
    weight[..., :8] = 0
    hidden = batch._replace(weight=weight)
    encoded = Encoded(batch.target + 0.1, torch.full_like(batch.target, 0.5))
    losses = learn(SNAPSHOT, encoded, to_piece(hidden, SNAPSHOT, step=9))
    assert losses["aware"].item() == pytest.approx((2 * 0.1 + 0) / 2, rel=1e-4)


def test_what_the_head_sees_where_the_cube_is_not_trusted_moves_nothing() -> None:
    batch = make_batch(SNAPSHOT)
    assert isinstance(batch, Sample)
    weight = batch.weight.clone()
    weight[..., :7] = 0
    hidden = batch._replace(weight=weight)
    seen = Encoded(batch.target + 0.1, batch.target * batch.inputs[1])
    astray = Encoded(torch.where(weight > 0, seen.image, torch.nan), torch.where(weight > 0, seen.signal, torch.nan))
    losses, again = (learn(SNAPSHOT, encoded, to_piece(hidden, SNAPSHOT, step=9)) for encoded in (seen, astray))
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def make_dated() -> Batch:
    batch = make_batch(SIDED)
    assert isinstance(batch, Batch)
    return batch


def test_answers_that_are_the_target_from_both_sides_cost_nothing() -> None:
    batch = make_dated()
    losses = learn(SIDED, Sides(*[batch.target] * 3), to_piece(batch, SIDED))
    assert all(loss == 0 for loss in losses.values())


def test_sides_that_disagree_cost_where_it_is_cloudy_and_both_dates_are_clear_whatever_the_target_says() -> None:
    batch = make_dated()
    astray = batch.target.clone()
    astray[:, :, :20, 12:] += 0.1
    losses = learn(SIDED, Sides(batch.target, astray, batch.target), to_piece(batch, SIDED))
    assert losses["consistency"].item() == pytest.approx(0.1, rel=1e-4)
    assert losses["total"].item() == pytest.approx(0.5 * (losses["sides"] + 0.1).item(), rel=1e-4), "both answers together are right"
    blind = batch._replace(target=torch.rand_like(batch.target), weight=torch.zeros_like(batch.weight))
    again = learn(SIDED, Sides(blind.target, astray, batch.target), to_piece(blind, SIDED))
    assert again["consistency"] == losses["consistency"]
    unseen = batch.target.clone()
    unseen[:, :, 20:], unseen[..., :12] = torch.nan, 9.0
    kept = learn(SIDED, Sides(batch.target, unseen, batch.target), to_piece(batch, SIDED))
    assert kept["consistency"] == 0, "the date before is not clear below, and the input is clear at the left"


def test_each_side_alone_is_compared_with_the_target_as_well() -> None:
    batch = make_dated()
    one, both = batch.target + 0.1, Sides(batch.target, batch.target + 0.1, batch.target + 0.1)
    assert learn(SIDED, both, to_piece(batch, SIDED))["sides"].item() == pytest.approx(0.1, rel=1e-4)
    assert learn(SIDED, both._replace(after=batch.target), to_piece(batch, SIDED))["sides"].item() == pytest.approx(0.05, rel=1e-4)
    assert learn(SIDED, Sides(one, one, one), to_piece(batch, SIDED))["consistency"] == 0


class Spy(nn.Module):
    """Notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls.append(inputs)
        return inputs[0]


def test_a_network_is_asked_with_both_dates_and_with_each_alone() -> None:
    batch, spy = make_dated(), Spy()
    ask_sides(spy)(*batch.inputs)
    both, before, after = (call[4] for call in spy.calls)
    assert torch.equal(both, batch.inputs[4])
    assert torch.equal(before[:, 0], both[:, 0])
    assert torch.equal(after[:, 1], both[:, 1])
    assert before[:, 1].eq(0).all()
    assert after[:, 0].eq(0).all()
    assert all(torch.equal(call[place], batch.inputs[place]) for call in spy.calls for place in (0, 1, 2, 3, 5))


def test_every_weight_learns_from_the_agreement_of_both_sides() -> None:
    batch, network = make_dated(), make_network(SIDED)
    answer = choose_answer(network, SIDED)(*batch.inputs)
    learn(SIDED, answer, to_piece(batch, SIDED))["consistency"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert sum(parameter.grad.abs().sum() > 0 for parameter in network.parameters()) > len(list(network.parameters())) // 2
