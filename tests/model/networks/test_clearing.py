"""Laws of what all clearing networks share: what they add to, what they see, and that padding is not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sereno.model.config import ClearingSettings
from sereno.model.layers import smooth_fill
from sereno.model.networks.clearing import SAR_CENTRE, SAR_SPREAD, SMALLEST_STD, ClearingNetwork, count_images, make_last
from sereno.model.temporal import Dates, fill_from_dates

MEAN, STD = (0.1, 0.2, 0.4), (0.05, 0.1, 0.02)


class Spy(ClearingNetwork):
    """Notes what it was given and lacks nothing, or what it is told to."""

    def __init__(self, *, step_px: int = 4, changes: tuple[float, ...] = (0.0,), std: tuple[float, ...] = STD, **settings: Any) -> None:
        super().__init__(ClearingSettings(**settings), step_px=step_px, mean=MEAN, std=std)
        self.changes = changes
        self.seen: tuple[Tensor, Tensor, Tensor] = (torch.empty(0),) * 3

    def restore(self, images: Tensor, sar: Tensor, cloud: Tensor) -> list[Tensor]:
        self.seen = images, sar, cloud
        batch, _, height, width = images.shape
        shape = (batch, len(MEAN) * self.stem_px**2, height // self.stem_px, width // self.stem_px)
        return [torch.full(shape, change) for change in self.changes]


def images(size: tuple[int, int] = (10, 13)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    optical, sar, cloud = (torch.rand((2, channels, *size), generator=generator) for channels in (3, 2, 1))
    return optical, sar, (cloud > 0.6).float()


def test_a_network_that_lacks_nothing_gives_its_base() -> None:
    optical, sar, cloud = images()
    assert torch.equal(Spy(base="cloudy")(optical, sar, cloud), optical)
    filled = smooth_fill(optical, 1 - cloud, torch.tensor(MEAN))
    assert torch.equal(Spy(base="filled")(optical, sar, cloud), filled)
    clear = (cloud == 0).expand_as(optical)
    torch.testing.assert_close(filled[clear], optical[clear], msg="what is clear stays as it is")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_base_is_filled_in_full_precision_whatever_the_network_works_in(dtype: torch.dtype) -> None:
    optical, sar, _ = images((40, 40))
    cloud = torch.zeros(2, 1, 40, 40)
    cloud[..., 12:] = 1  # so far under a cloud that fp16 would divide zero by zero
    expected = Spy(base="filled")(optical, sar, cloud)
    with torch.autocast("cpu", dtype):
        assert torch.equal(Spy(base="filled")(optical, sar, cloud), expected)


def test_what_is_lacking_is_counted_in_standard_deviations_of_each_band() -> None:
    optical, sar, cloud = images()
    added = Spy(base="cloudy", changes=(2.0,))(optical, sar, cloud) - optical
    torch.testing.assert_close(added, 2 * torch.tensor(STD)[:, None, None].expand_as(optical), atol=1e-6, rtol=1e-4)


def test_intermediate_images_come_after_the_final_one_and_have_the_same_base() -> None:
    optical, sar, cloud = images()
    stages = Spy(base="cloudy", changes=(1.0, 0.0, -1.0)).forward_stages(optical, sar, cloud)
    assert torch.equal(stages[0], Spy(base="cloudy", changes=(1.0,))(optical, sar, cloud))
    torch.testing.assert_close(stages[1], optical)
    torch.testing.assert_close(stages[0] + stages[2], 2 * optical)


@pytest.mark.parametrize("base", ["cloudy", "filled"])
def test_a_network_sees_as_many_channels_as_are_counted_the_last_of_them_the_cloud(base: str) -> None:
    optical, sar, cloud = images((8, 8))
    spy = Spy(base=base)
    spy(optical, sar, cloud)
    assert spy.seen[0].shape[1] == count_images(3, ClearingSettings(base=base))
    assert torch.equal(spy.seen[0][:, -1:], cloud)
    torch.testing.assert_close(spy.seen[1], (sar - SAR_CENTRE) / SAR_SPREAD)


def test_values_are_centred_scaled_and_compressed_without_turning_their_order() -> None:
    optical = torch.tensor(MEAN)[:, None, None] + torch.linspace(-1, 100, 64).reshape(8, 8) * torch.tensor(STD)[:, None, None]
    spy = Spy(base="cloudy")
    spy(optical[None], torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8))
    seen = spy.seen[0][0, :3].reshape(3, -1)
    torch.testing.assert_close(seen, torch.asinh(torch.linspace(-1, 100, 64)).expand(3, 64), atol=1e-4, rtol=1e-4)
    assert (seen.diff(dim=1) > 0).all()
    assert seen.max() < 6, "a cloud a hundred deviations bright"


def test_a_band_that_never_varies_stays_finite() -> None:
    optical, sar, cloud = images()
    spy = Spy(base="cloudy", changes=(1.0,), std=(0.0, 0.1, 0.1))
    answer = spy(optical, sar, cloud)
    assert answer.isfinite().all()
    assert (answer - optical)[:, 0].max().item() == pytest.approx(SMALLEST_STD, rel=1e-2)


@pytest.mark.parametrize("size", [(10, 13), (8, 8), (1, 1), (2, 9), (3, 64)])
@pytest.mark.parametrize("step_px", [1, 8, 16])
def test_padding_is_a_multiple_of_the_step_and_is_cut_off_again(size: tuple[int, int], step_px: int) -> None:
    optical, sar, cloud = images(size)
    spy = Spy(step_px=step_px, base="cloudy")
    assert torch.equal(spy(optical, sar, cloud), optical)
    for image in spy.seen:
        assert all(side % step_px == 0 and 0 <= side - least < step_px for side, least in zip(image.shape[2:], size, strict=True))
        assert image.is_contiguous(memory_format=torch.channels_last) or 1 in image.shape[1:]


@pytest.mark.parametrize("size", [(10, 13), (1, 1)])
def test_a_dataset_without_sar_is_padded_too(size: tuple[int, int]) -> None:
    optical, sar, cloud = images(size)
    spy = Spy(step_px=8, base="cloudy")
    assert torch.equal(spy(optical, sar[:, :0], cloud), optical)
    assert spy.seen[1].shape == (2, 0, *spy.seen[0].shape[2:])


def test_edges_are_mirrored_where_there_is_enough_to_mirror() -> None:
    optical, sar, _ = images((10, 13))
    spy = Spy(step_px=8, base="cloudy")
    spy(optical, sar, torch.zeros(2, 1, 10, 13))
    padded = spy.seen[1]
    assert torch.equal(padded[:, :, 10:], padded[:, :, 3:9].flip(2))
    assert torch.equal(padded[:, :, :, 13:], padded[:, :, :, 9:12].flip(3))


@pytest.mark.parametrize("stem_px", [1, 2, 4])
def test_a_token_is_turned_back_into_its_own_pixels(stem_px: int) -> None:
    """Pixels packed into tokens as torch packs them come out where they were."""

    class Repeat(ClearingNetwork):
        def restore(self, images: Tensor, _sar: Tensor, _cloud: Tensor) -> list[Tensor]:
            return [nn.functional.pixel_unshuffle(images[:, :3], self.stem_px)]

    network = Repeat(ClearingSettings(base="cloudy", stem_px=stem_px), step_px=8, mean=MEAN, std=STD)
    optical, sar, cloud = images()
    expected = optical + torch.tensor(STD)[:, None, None] * torch.asinh(
        (optical - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    )
    torch.testing.assert_close(network(optical, sar, cloud), expected)


def test_the_last_convolution_begins_near_zero_but_not_at_it() -> None:
    torch.manual_seed(0)
    last = make_last(16, 3, 2)
    assert last(torch.randn(1, 16, 4, 4)).shape == (1, 3 * 4, 4, 4)
    assert 0 < last.weight.abs().max() < 2e-3
    assert not last.bias.any()


def test_statistics_travel_with_the_weights() -> None:
    state = Spy().state_dict()
    torch.testing.assert_close(state["mean"], torch.tensor(MEAN))
    torch.testing.assert_close(state["std"], torch.tensor(STD))


def around(size: tuple[int, int] = (10, 13)) -> Dates:
    generator = torch.Generator().manual_seed(7)
    clear = (torch.rand(2, 2, 1, *size, generator=generator) > 0.3).float()
    return Dates(torch.rand(2, 2, 3, *size, generator=generator), clear, torch.tensor([[-15.0, 5.0], [-4.0, 6.0]]))


def test_with_dates_the_base_is_filled_from_them_and_the_network_sees_how_far_they_are_trusted() -> None:
    (optical, sar, cloud), dates = images(), around()
    spy = Spy(base="dates")
    answer = spy(optical, sar, cloud, *dates)
    assert torch.equal(answer, fill_from_dates(optical, cloud, dates, torch.tensor(MEAN)))
    assert spy.seen[0].shape[1] == count_images(3, ClearingSettings(base="dates")) == 9
    assert torch.equal(spy.seen[0][:, 6:8, :10, :13], dates.clear[:, :, 0])
    assert torch.equal(spy.seen[0][:, 8:, :10, :13], cloud)
    plain = Spy(base="filled")
    plain(optical, sar, cloud)
    assert torch.equal(spy.seen[0][:, :3], plain.seen[0][:, :3])
    hidden = dates._replace(clear=torch.zeros_like(dates.clear))
    spy(optical, sar, cloud, *hidden)
    assert torch.equal(spy.seen[0][:, 3:6], plain.seen[0][:, 3:6]), "without a clear date the base is the smooth fill"


def test_dates_are_not_looked_at_by_a_network_that_is_not_made_for_them() -> None:
    (optical, sar, cloud), dates = images(), around()
    assert torch.equal(Spy(base="filled")(optical, sar, cloud, *dates), Spy(base="filled")(optical, sar, cloud))
