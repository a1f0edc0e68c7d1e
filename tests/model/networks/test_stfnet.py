"""Laws of StfNet: what its streams see, and that they learn the middle date without having seen it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.config import StfnetSettings
from sereno.model.networks.stfnet import Stfnet
from sereno.model.temporal import (
    combine_middle,
    compute_consistency_loss,
    compute_span_loss,
    lay_on_grid,
    predict_by_change,
    predict_middle,
)

BANDS = 3


def make(*, bands: int = BANDS, **changes: Any) -> Stfnet:
    torch.manual_seed(0)
    return Stfnet(StfnetSettings(name="stfnet", **changes), mean=[0.2] * bands, std=[0.1] * bands)


def draw(count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, BANDS, 3, 4, generator=generator) * 0.4, torch.rand(count, 2, BANDS, 24, 32, generator=generator) * 0.4


def count_parameters(network: Stfnet) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_size_is_the_one_counted_in_the_re_implementation() -> None:
    assert count_parameters(make(bands=6)) == 92_716
    assert count_parameters(make(bands=1)) == 36_866
    assert count_parameters(make(bands=6, bands_apart=True)) == 6 * 36_866


@pytest.mark.parametrize("changes", [{}, {"base": "none"}, {"bands_apart": True}, {"reach_px": 4}, {"proportional": True}], ids=str)
def test_the_answer_is_the_combination_of_its_changes_and_all_parameters_learn(changes: dict[str, Any]) -> None:
    network, (coarse, fine) = make(**changes), draw()
    found = network.forward_changes(coarse, fine)
    laid = lay_on_grid(coarse, (24, 32))
    expected = combine_middle(predict_middle(found.early, found.late, fine), laid, reach_px=changes.get("reach_px"))
    torch.testing.assert_close(network(coarse, fine), expected)
    trust = torch.ones(2, 1, 24, 32)
    (compute_span_loss(found, fine, trust) + compute_consistency_loss(predict_middle(found.early, found.late, fine), trust)).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_training_starts_at_the_fine_dates_moved_by_the_change_of_the_coarse_ones() -> None:
    coarse, fine = draw()
    torch.testing.assert_close(make()(coarse, fine), predict_by_change(coarse, fine), atol=0.01, rtol=0)


@pytest.mark.parametrize("reach_px", [None, 4])
@pytest.mark.parametrize("base", ["change", "none"])
def test_half_the_change_is_answered_by_half_only_where_that_is_asked_for(base: str, reach_px: int | None) -> None:
    coarse, fine = draw()
    halved = coarse[:, :1] + (coarse - coarse[:, :1]) / 2
    for proportional in (True, False):
        network = make(base=base, reach_px=reach_px, proportional=proportional)
        whole, half = (network.forward_changes(images, fine) for images in (coarse, halved))
        error = max((one / 2 - other).abs().max().item() for one, other in zip(whole, half, strict=True))
        assert (error < 1e-4) == proportional


def test_in_proportion_bands_apart_still_see_nothing_of_each_other() -> None:
    network, (coarse, fine) = make(bands_apart=True, proportional=True, base="none"), draw()
    one = network.forward_changes(coarse, fine).early
    coarse[:, 1, 0] += 0.1
    other = network.forward_changes(coarse, fine).early
    assert torch.equal(one[:, 1:], other[:, 1:])
    assert not torch.equal(one[:, 0], other[:, 0])


def test_each_stream_sees_its_change_and_its_fine_date_alone() -> None:
    network, (coarse, fine) = make(), draw()
    found = network.forward_changes(coarse, fine)
    for place, same in [(0, ("late",)), (1, ()), (2, ("early",))]:
        moved = coarse.clone()
        moved[:, place] += torch.rand_like(moved[:, place])
        other = network.forward_changes(moved, fine)
        assert tuple(name for name in ("early", "late") if torch.equal(getattr(found, name), getattr(other, name))) == same
    moved = fine.clone()
    moved[:, 0] += torch.rand_like(moved[:, 0])
    other = network.forward_changes(coarse, moved)
    assert torch.equal(found.late, other.late)
    assert not torch.equal(found.early, other.early)


@pytest.mark.parametrize(("place", "same"), [(0, ("late", "span_late")), (1, ("early", "span_early"))])
def test_each_stream_spans_both_dates_from_its_own_fine_date(place: int, same: tuple[str, ...]) -> None:
    network, (coarse, fine) = make(), draw()
    found = network.forward_changes(coarse, fine)
    moved = fine.clone()
    moved[:, place] += torch.rand(moved[:, place].shape, generator=torch.Generator().manual_seed(3))
    other = network.forward_changes(coarse, moved)
    assert tuple(name for name in sorted(found._fields) if torch.equal(getattr(found, name), getattr(other, name))) == tuple(sorted(same))


@pytest.mark.parametrize(("delta", "share"), [(0.1, 1.0), (0.3, 0.75)])
def test_the_smaller_change_is_taken_alone_where_they_differ_by_more_than_delta(delta: float, share: float) -> None:
    """Coarse changes of 0.1 and 0.3: 0.2 apart, shares as 1 / 0.1 to 1 / 0.3."""
    network, (_, fine) = make(delta=delta), draw()
    coarse = torch.tensor([0.1, 0.2, 0.5])[None, :, None, None, None].expand(2, 3, BANDS, 3, 4)
    found = network.forward_changes(coarse, fine)
    expected = share * (fine[:, 0] + found.early) + (1 - share) * (fine[:, 1] - found.late)
    torch.testing.assert_close(network(coarse, fine), expected, atol=1e-4, rtol=0)


def test_bands_apart_see_nothing_of_each_other() -> None:
    for apart in (False, True):
        network, (coarse, fine) = make(bands_apart=apart, base="none"), draw()
        one = network.forward_changes(coarse, fine).early
        fine[:, :, 0] += 0.3
        other = network.forward_changes(coarse, fine).early
        assert torch.equal(one[:, 1:], other[:, 1:]) == apart
        assert not torch.equal(one[:, 0], other[:, 0])


def draw_growth(count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse and fine images, and the middle one: bright ground alone changes, to and fro, which a coarse pixel cannot say."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.randint(2, (count, 1, 1, 8, 8), generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    growth = torch.rand(count, 3, 1, 1, 1, generator=generator) * 0.2
    dates = (0.1 + (0.2 + growth) * kinds).expand(-1, -1, BANDS, -1, -1)
    return F.avg_pool2d(dates.flatten(0, 1), 4).unflatten(0, (count, 3)), dates[:, ::2], dates[:, 1]


@pytest.mark.parametrize("base", ["change", "none"])
def test_the_middle_date_is_learnt_without_ever_being_seen(base: str) -> None:
    coarse, fine, target = draw_growth()
    network, trust = make(base=base), torch.ones(12, 1, 16, 16)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(80):
        found = network.forward_changes(coarse, fine)
        loss = compute_span_loss(found, fine, trust) + compute_consistency_loss(predict_middle(found.early, found.late, fine), trust)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    errors = [(image - target).square().mean().sqrt() for image in (network(coarse, fine), predict_by_change(coarse, fine))]
    assert errors[0] < 0.7 * errors[1]
