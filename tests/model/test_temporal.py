"""Laws of three dates: what agrees, what is combined how, and what moves nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.layers import smooth_fill
from sereno.model.temporal import (
    Changes,
    Dates,
    Middle,
    combine_middle,
    compute_consistency_loss,
    compute_side_loss,
    compute_span_loss,
    fill_from_dates,
    interpolate_dates,
    lay_on_grid,
    measure_trust,
    predict_by_change,
    predict_middle,
)


def draw_dates(seed: int = 0, *, size: int = 16) -> Tensor:
    """Fine images of three dates, (2, 3, 4, size, size), in float64."""
    return torch.rand(2, 3, 4, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def change_exactly(dates: Tensor) -> Changes:
    early, late = dates.diff(dim=1).unbind(1)
    return Changes(early, late, early + late, early + late)


def flat_series(*levels: float) -> Tensor:
    """Coarse images of three dates, each of one value: (1, 3, 1, 8, 8)."""
    return torch.tensor(levels)[None, :, None, None, None].expand(1, 3, 1, 8, 8)


def test_with_exact_changes_both_sides_agree_on_the_middle_and_both_losses_are_zero() -> None:
    dates = draw_dates()
    changes, fine, trust = change_exactly(dates), dates[:, ::2], torch.ones(2, 1, 16, 16)
    middle = predict_middle(changes.early, changes.late, fine)
    torch.testing.assert_close(middle.early, dates[:, 1])
    torch.testing.assert_close(middle.late, dates[:, 1])
    assert compute_consistency_loss(middle, trust).item() == pytest.approx(0, abs=1e-12)
    assert compute_span_loss(changes, fine, trust).item() == pytest.approx(0, abs=1e-12)


def test_losses_are_their_formulas_and_never_see_the_middle_fine_image() -> None:
    dates, wrong = draw_dates(), draw_dates(1)
    changes = Changes(wrong[:, 0], wrong[:, 1], wrong[:, 2], wrong[:, 0] - wrong[:, 1])
    fine, trust, span = dates[:, ::2], torch.ones(2, 1, 16, 16), dates[:, 2] - dates[:, 0]
    expected = (changes.span_early - span).square().mean() + (changes.span_late - span).square().mean()
    torch.testing.assert_close(compute_span_loss(changes, fine, trust), expected)
    agreed = compute_consistency_loss(predict_middle(changes.early, changes.late, fine), trust)
    torch.testing.assert_close(agreed, (changes.early + changes.late - span).square().mean())


def test_what_is_not_trusted_moves_nothing_and_pieces_add_up_to_the_whole() -> None:
    dates, wrong = draw_dates(), draw_dates(1)
    trust = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    trust = trust * (trust > 0.4)
    spoilt = torch.where(trust[:, None] > 0, dates, torch.nan)
    changes = Changes(*(wrong.roll(step, 1)[:, 0] for step in range(3)), span_late=wrong[:, 1])
    whole = compute_span_loss(changes, dates[:, ::2], trust)
    assert compute_span_loss(changes, spoilt[:, ::2], trust) == whole
    amount = measure_trust(trust)
    parts = [
        compute_span_loss(Changes(*(image[n : n + 1] for image in changes)), dates[n : n + 1, ::2], trust[n : n + 1], amount=amount)
        for n in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    nothing = compute_consistency_loss(Middle(wrong[:, 0].requires_grad_(), wrong[:, 1]), torch.zeros_like(trust))
    nothing.backward()
    assert nothing == 0


@pytest.mark.parametrize(
    ("levels", "share"),
    [((0.2, 0.2, 0.3), 1.0), ((0.2, 0.3, 0.3), 0.0), ((0.2, 0.25, 0.40), 0.75), ((0.4, 0.3, 0.2), 0.5), ((0.3, 0.3, 0.3), 0.5)],
)
def test_the_date_across_the_smaller_change_weighs_more(levels: tuple[float, ...], share: float) -> None:
    early, late = torch.full((1, 1, 8, 8), 1.0), torch.zeros(1, 1, 8, 8)
    for reach in (None, 1):
        combined = combine_middle(Middle(early, late), flat_series(*levels), reach_px=reach)
        torch.testing.assert_close(combined, torch.full_like(combined, share), atol=1e-4, rtol=0)


def test_where_changes_differ_by_more_than_delta_the_other_side_has_no_say() -> None:
    early, late = torch.full((1, 1, 8, 8), 1.0), torch.zeros(1, 1, 8, 8)
    coarse = flat_series(0.2, 0.3, 0.55)
    assert (combine_middle(Middle(early, late), coarse, delta=0.1) == 1).all()
    assert (combine_middle(Middle(early, late), coarse.flip(1), delta=0.1) == 0).all()
    assert 0.5 < combine_middle(Middle(early, late), coarse, delta=0.2).mean() < 1


def test_opposite_changes_in_one_image_do_not_cancel() -> None:
    """|mean| of the first step is zero, its mean absolute value is not."""
    coarse = flat_series(0.3, 0.3, 0.35).clone()
    coarse[:, 1, :, :, :4] += 0.1
    coarse[:, 1, :, :, 4:] -= 0.1
    combined = combine_middle(Middle(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)), coarse)
    assert 0.4 < combined.mean() < 0.6


def test_with_a_reach_each_place_is_combined_by_its_own_change() -> None:
    coarse = flat_series(0.3, 0.3, 0.3).clone()
    coarse[:, 1:, :, :, :4] += 0.1  # left the change lies before the middle date, right after it
    coarse[:, 2:, :, :, 4:] += 0.1
    combined = combine_middle(Middle(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)), coarse, reach_px=1)
    assert combined[..., :3].max() < 1e-3
    assert combined[..., 5:].min() > 1 - 1e-3


@pytest.mark.parametrize("reach", [1, 3, 20])
def test_a_reach_is_a_square_cut_off_at_the_borders(reach: int) -> None:
    """Once more with a loop over pixels."""
    dates = draw_dates(size=9)[:1].float()
    ones, combined = torch.ones(1, 4, 9, 9), torch.empty(1, 4, 9, 9)
    steps = dates.diff(dim=1).abs()
    for row in range(9):
        for column in range(9):
            square = steps[..., max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].mean(dim=(3, 4))
            combined[..., row, column] = square[:, 1] / square.sum(dim=1)
    found = combine_middle(Middle(ones, torch.zeros_like(ones)), dates, delta=9.0, reach_px=reach)
    torch.testing.assert_close(found, combined, atol=1e-5, rtol=1e-5)
    if reach == 20:
        torch.testing.assert_close(found, combine_middle(Middle(ones, torch.zeros_like(ones)), dates, delta=9.0).expand_as(found))


def test_coarse_pixels_keep_their_places_on_the_fine_grid() -> None:
    """A plane is met exactly inside; on its own grid nothing is touched."""
    fine = (torch.arange(32.0)[:, None] + 2 * torch.arange(32.0))[None, None, None].expand(1, 3, 2, 32, 32)
    coarse = F.avg_pool2d(fine.flatten(0, 1), 4).unflatten(0, (1, 3))
    laid = lay_on_grid(coarse, (32, 32))
    torch.testing.assert_close(laid[..., 2:-2, 2:-2], fine[..., 2:-2, 2:-2])
    assert lay_on_grid(fine, (32, 32)) is fine


def test_a_change_of_everything_alike_is_followed_exactly() -> None:
    ground, levels = draw_dates()[:, :1, :, :, :], torch.tensor([0.0, 0.17, 0.05])[None, :, None, None, None]
    dates = ground + levels
    coarse = F.avg_pool2d(dates.flatten(0, 1), 8).unflatten(0, (2, 3))
    torch.testing.assert_close(predict_by_change(coarse, dates[:, ::2]), dates[:, 1])


def draw_around(*days: float, size: int = 8) -> tuple[Tensor, Dates]:
    """Ground that changes evenly in time, on the date 0 (1, 3, size, size), and on two dates around it, all of them clear."""
    generator = torch.Generator().manual_seed(3)
    level, slope = torch.rand(2, 1, 3, size, size, generator=generator)
    images = torch.stack([level + slope * day / 30 for day in days], dim=1)
    return level, Dates(images, torch.ones(1, 2, 1, size, size), torch.tensor([days]))


@pytest.mark.parametrize("days", [(-15.0, 5.0), (-2.0, 40.0), (-5.0, 5.0)])
def test_ground_that_changes_evenly_in_time_is_found_between_uneven_dates(days: tuple[float, float]) -> None:
    ground, dates = draw_around(*days)
    between = interpolate_dates(dates)
    torch.testing.assert_close(between.image, ground, atol=1e-5, rtol=1e-5)
    assert between.known.eq(1).all()


def test_where_one_date_is_clear_it_is_taken_and_where_none_is_nothing_is_known() -> None:
    _, dates = draw_around(-15.0, 5.0)
    clear = dates.clear.clone()
    clear[:, 0, :, :4], clear[:, 1, :, 2:6], clear[:, :, :, 7] = 0, 0, 0.5
    images = torch.where(clear > 0, dates.images, 1e6)
    between = interpolate_dates(dates._replace(clear=clear, images=images))
    torch.testing.assert_close(between.image[:, :, :2], dates.images[:, 1, :, :2])
    torch.testing.assert_close(between.image[:, :, 4:6], dates.images[:, 0, :, 4:6])
    assert between.known[:, :, 2:4].eq(0).all()
    assert between.image[:, :, 2:4].eq(0).all()
    torch.testing.assert_close(between.image[:, :, 7], interpolate_dates(dates).image[:, :, 7])
    assert between.known[:, :, 7].eq(0.5).all()


@pytest.mark.parametrize("days", [(0.0, 5.0), (-3.0, 0.0), (0.0, 0.0)])
def test_a_date_of_the_same_moment_gives_no_number_that_is_none(days: tuple[float, float]) -> None:
    _, dates = draw_around(*days)
    for shown in (dates, dates.keep(0), dates.keep(1)):
        assert interpolate_dates(shown).image.isfinite().all()
    if days != (0.0, 0.0):
        same = days.index(0.0)
        torch.testing.assert_close(interpolate_dates(dates).image, dates.images[:, same], atol=1e-3, rtol=0)


def test_of_a_side_alone_nothing_of_the_other_is_seen() -> None:
    _, dates = draw_around(-15.0, 5.0)
    for place in (0, 1):
        torch.testing.assert_close(interpolate_dates(dates.keep(place)).image, dates.images[:, place])
        assert interpolate_dates(dates.keep(place)).known.eq(1).all()


def test_clouds_are_filled_from_the_dates_and_what_is_clear_stays() -> None:
    ground, dates = draw_around(-15.0, 5.0, size=16)
    cloud, prior = torch.zeros(1, 1, 16, 16), torch.zeros(3)
    cloud[..., 8:], cloud[..., 4:8] = 1, 0.25
    optical = torch.where(cloud > 0.5, 5.0, ground)
    filled = fill_from_dates(optical, cloud, dates, prior)
    torch.testing.assert_close(filled, ground, atol=1e-5, rtol=1e-5)
    other = torch.rand_like(ground)
    filled = fill_from_dates(torch.where(cloud > 0.5, 5.0, other), cloud, dates, prior)
    assert torch.equal(filled[..., :4], other[..., :4])
    torch.testing.assert_close(filled[..., 4:8], 0.75 * other[..., 4:8] + 0.25 * ground[..., 4:8])


def test_where_no_date_is_clear_the_fill_is_the_smooth_one_of_all_that_is_known() -> None:
    ground, dates = draw_around(-15.0, 5.0, size=16)
    cloud, prior = torch.zeros(1, 1, 16, 16), torch.full((3,), 0.3)
    cloud[..., 8:] = 1
    nothing = dates._replace(clear=torch.zeros_like(dates.clear))
    assert torch.equal(fill_from_dates(ground, cloud, nothing, prior), smooth_fill(ground, 1 - cloud, prior))
    partly = dates.clear.clone()
    partly[..., 12:] = 0
    filled = fill_from_dates(ground, cloud, dates._replace(clear=partly), prior)
    torch.testing.assert_close(filled[..., :12], ground[..., :12], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(filled[..., 12:], smooth_fill(ground, (partly[:, 0] > 0).float(), prior)[..., 12:], atol=1e-5, rtol=1e-5)


def test_the_loss_of_both_sides_is_that_of_their_changes_and_pieces_of_it_add_up() -> None:
    made, dates = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double(), draw_dates()
    first, last = dates[:, 0, :3, :8, :8], dates[:, 2, :3, :8, :8]
    forward, backward = made.unbind(1)
    d12, d23 = forward - first, last - backward
    middle, trust = Middle(forward, backward), torch.ones(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(compute_side_loss(middle, trust), (d12 + d23 - (last - first)).abs().mean())
    assert compute_side_loss(Middle(forward, forward), trust) == 0
    trust[:, :, :3] = 0
    spoilt = Middle(forward.clone(), backward)
    spoilt.early[:, :, :3] = torch.nan
    torch.testing.assert_close(compute_side_loss(spoilt, trust), (forward - backward).abs()[:, :, 3:].mean())
    pieces = [compute_side_loss(Middle(forward[n : n + 1], backward[n : n + 1]), trust[n : n + 1], amount=trust.sum()) for n in range(2)]
    torch.testing.assert_close(sum(pieces), compute_side_loss(middle, trust))
    assert compute_side_loss(middle, torch.zeros_like(trust)) == 0
