"""Laws of the baselines of spatiotemporal fusion: cases the answer to which is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.fusion import Series, Similarity, predict_changed, predict_linear, predict_nearest, predict_starfm

BASELINES = (predict_nearest, predict_linear, predict_changed, predict_starfm)
RATIO = 8


def draw_ground(seed: int = 0, *, size: int = 32) -> Tensor:
    """Patchy ground of three kinds with a little texture: (2, 1, 2, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (2, 1, 1, size // 4, size // 4), generator=generator)
    levels = torch.tensor([0.1, 0.25, 0.4])[kinds].repeat_interleave(4, -1).repeat_interleave(4, -2)
    return levels.expand(-1, -1, 2, -1, -1) + 0.01 * torch.rand(2, 1, 2, size, size, generator=generator)


def observe(dates: Tensor, *, days: tuple[float, ...] = (0.0, 10.0, 30.0), clear: Tensor | None = None) -> Series:
    """What is seen of `dates` (B, 3, C, H, W): all of it coarse, the first and the last fine."""
    coarse = F.avg_pool2d(dates.flatten(0, 1), RATIO).unflatten(0, dates.shape[:2])
    seen = torch.ones_like(dates[:, ::2, :1]) if clear is None else clear
    return Series(coarse, dates[:, ::2].clone(), seen, torch.tensor(days).expand(len(dates), 3))


def levels_of(*values: float) -> Tensor:
    return torch.tensor(values)[None, :, None, None, None]


def test_where_nothing_changes_in_time_every_baseline_gives_the_ground() -> None:
    ground = draw_ground()
    for predict in BASELINES:
        image, valid = predict(observe(ground.expand(-1, 3, -1, -1, -1)))
        torch.testing.assert_close(image, ground[:, 0], atol=0.02, rtol=0)  # similar neighbours have textures of their own
        assert valid.all()
    torch.testing.assert_close(predict_linear(observe(ground.expand(-1, 3, -1, -1, -1))).image, ground[:, 0])


def test_a_change_of_everything_alike_is_known_to_what_looks_at_coarse_images() -> None:
    """Up by 0.2 at the middle date and back to 0.05: no straight line in time."""
    dates = draw_ground() + levels_of(0.0, 0.2, 0.05)
    series = observe(dates)
    torch.testing.assert_close(predict_changed(series).image, dates[:, 1])
    torch.testing.assert_close(predict_starfm(series).image, dates[:, 1], atol=0.02, rtol=0)
    assert (predict_linear(series).image - dates[:, 1]).abs().min() > 0.15


def test_a_change_linear_in_time_is_followed_by_the_straight_line() -> None:
    ground = draw_ground()
    dates = ground * levels_of(1.0, 1.2, 1.6)  # days 0, 10, 30
    torch.testing.assert_close(predict_linear(observe(dates)).image, dates[:, 1])


def test_the_nearest_clear_date_is_taken_and_the_first_of_two_as_near() -> None:
    dates = draw_ground().expand(-1, 3, -1, -1, -1) + levels_of(0.0, 0.1, 0.3)
    clear = torch.ones(2, 2, 1, 32, 32)
    clear[:, 0, :, :4] = 0
    image = predict_nearest(observe(dates, clear=clear)).image
    assert torch.equal(image[:, :, :4], dates[:, 2, :, :4])
    assert torch.equal(image[:, :, 4:], dates[:, 0, :, 4:])
    assert torch.equal(predict_nearest(observe(dates, days=(0.0, 20.0, 30.0))).image, dates[:, 2])
    assert torch.equal(predict_nearest(observe(dates, days=(0.0, 15.0, 30.0))).image, dates[:, 0])


def test_clouds_are_never_shown_and_what_no_date_saw_is_not_valid() -> None:
    dates = draw_ground().expand(-1, 3, -1, -1, -1) + levels_of(0.0, 0.1, 0.3)
    clear = torch.ones(2, 2, 1, 32, 32)
    clear[:, 0, :, :6], clear[:, 1, :, 3:10] = 0, 0
    plain = observe(dates, clear=clear)
    spoilt = plain._replace(fine=torch.where(clear > 0, plain.fine, 9.0))
    for predict in BASELINES:
        image, valid = predict(spoilt)
        torch.testing.assert_close(image, predict(plain).image)
        assert torch.equal(valid, (clear > 0).any(dim=1))
        assert (image[:, :, 3:6] == 0).all()
        assert image.max() < 0.8


def make_mixture() -> tuple[Tensor, Tensor]:
    """Dates (1, 3, 1, 24, 48) and where ground is mixed: dark left, bright right, fine stripes of both between; the bright grows."""
    bright = torch.zeros(24, 48)
    bright[:, 32:] = 1
    bright[:, 16:32:2] = 1
    mixed = torch.zeros(24, 48, dtype=torch.bool)
    mixed[4:-4, 18:30] = True
    dates = torch.stack([0.1 + 0.2 * bright + 0.15 * bright * grown for grown in (0.0, 1.0, 1.0)])
    return dates[None, :, None], mixed


def test_in_a_mixed_coarse_pixel_what_did_not_change_is_known_from_purer_ones() -> None:
    """The point of Gao et al. 2006: one kind of ground changes, which a coarse pixel of two kinds cannot say.

    The first date alone is clear, or the last would give the answer away. Of the kind that changes the purer pixels change more than the
    mixed one, so the paper's own filter leaves them out: it is no better than without neighbours, and no worse.
    """
    dates, mixed = make_mixture()
    clear = torch.ones(1, 2, 1, 24, 48)
    clear[:, 1] = 0
    series, dark = observe(dates, clear=clear), dates[0, 0, 0] < 0.2
    near = Similarity(reach_px=20, step_px=2)
    plain, weighted = (
        (image[0, 0] - dates[0, 1, 0]).abs() for image in (predict_changed(series).image, predict_starfm(series, near).image)
    )
    assert plain[mixed].min() > 0.05
    assert weighted[mixed & dark].max() < 0.01
    assert weighted[mixed & ~dark].max() < plain[mixed & ~dark].max() + 0.005


def test_neighbours_of_another_kind_have_no_say() -> None:
    """Two kinds side by side; the sum of weights is over the pixel's own kind, so a change of texture of the other moves nothing."""
    dates, _ = make_mixture()
    series = observe(dates)
    moved = series._replace(fine=torch.where(series.fine > 0.25, series.fine + 0.004, series.fine))
    one, other = predict_starfm(series).image, predict_starfm(moved).image
    dark = dates[:, 0] < 0.2
    torch.testing.assert_close(one[dark], other[dark], atol=2e-4, rtol=0)
    assert (one - other).abs()[~dark].mean() > 0.001


def test_starfm_is_the_weighted_mean_of_the_paper() -> None:
    """A row of five pixels as bright as each other, coarse ones of the same size, of the first date alone; asked is the one in the middle.

    Coarse ones are off by S, then change by T. The first pixel is worse in S, the last in T, so neither has a say; those beside the
    middle do, at a distance of 1 with a reach of 2: D = 1.5. W = 1 / (S T D), each of S and T more by the root of 2 times 0.002.
    """
    off, changes = torch.tensor([0.08, 0.01, 0.03, 0.02, 0.01]), torch.tensor([0.01, 0.04, 0.1, -0.05, 0.3])
    fine = torch.full((1, 2, 1, 1, 5), 0.2)
    coarse = torch.stack([0.2 - off, 0.2 - off + changes, torch.full((5,), 0.2)])[None, :, None, None]
    clear = torch.tensor([1.0, 0.0])[None, :, None, None, None].expand(1, 2, 1, 1, 5)
    image = predict_starfm(Series(coarse, fine, clear, torch.tensor([[0.0, 8.0, 16.0]])), Similarity(reach_px=2, step_px=1)).image
    more = 0.002 * 2**0.5
    weights = [1 / ((s + more) * (t + more) * d) for s, t, d in ((0.01, 0.04, 1.5), (0.03, 0.1, 1), (0.02, 0.05, 1.5))]
    expected = sum(weight * (0.2 + change) for weight, change in zip(weights, (0.04, 0.1, -0.05), strict=True)) / sum(weights)
    assert image[0, 0, 0, 2].item() == pytest.approx(expected, rel=1e-4)


def test_images_of_a_batch_are_predicted_apart() -> None:
    dates = torch.cat([draw_ground(seed) for seed in (0, 1)]) + levels_of(0.0, 0.1, 0.3)
    series = observe(dates)
    for predict in BASELINES:
        alone = torch.cat([predict(Series(*(part[n : n + 1] for part in series))).image for n in range(len(dates))])
        torch.testing.assert_close(predict(series).image, alone)
