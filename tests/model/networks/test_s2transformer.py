"""Laws of the network as a whole; its attention has its own in `test_attention.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sereno.model.config import S2SnapshotSettings, S2TransformerSettings, TrainSettings
from sereno.model.layers import smooth_fill
from sereno.model.networks.s2transformer import S2Snapshot, S2Transformer
from sereno.model.snapshot import (
    approach_picture,
    compute_mask_aware_loss,
    compute_signal_loss,
    estimate_open,
    make_camera,
    measure_cube,
    weigh_signal,
)

SMALL: dict[str, Any] = {"name": "s2transformer", "width": 8, "head_dim": 4, "stages": 2, "blocks": 2, "window_px": 4, "expansion": 2}
ORDERS = ["parallel-concat", "parallel-sum", "spatial-spectral", "spectral-spatial", "spatial", "spectral"]
MASKS = ["query-key", "query", "key", "value", "none"]


def make(*, bands: int = 5, sar_bands: int = 2, **changes: object) -> S2Transformer:
    torch.manual_seed(0)
    return S2Transformer(S2TransformerSettings(**SMALL | changes), sar_bands=sar_bands, mean=[0.2] * bands, std=[0.1] * bands)


def enliven(network: S2Transformer) -> S2Transformer:
    """Weights under which every part shows in the output."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def images(*, bands: int = 5, sar_bands: int = 2, size: tuple[int, int] = (8, 12), count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((count, bands, *size), (count, sar_bands, *size), (count, 1, *size))
    optical, sar, cloud = (torch.rand(shape, generator=generator) for shape in shapes)
    return optical, sar, (cloud > 0.5).float()


def count_parameters(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@pytest.mark.parametrize("stem_px", [1, 2, 4])
@pytest.mark.parametrize(("bands", "sar_bands", "size"), [(13, 2, (33, 50)), (12, 2, (16, 16)), (4, 1, (5, 7)), (8, 2, (1, 1))])
def test_any_number_of_bands_and_any_size_is_taken(stem_px: int, bands: int, sar_bands: int, size: tuple[int, int]) -> None:
    network = make(bands=bands, sar_bands=sar_bands, stem_px=stem_px, pins=True).eval()
    inputs = images(bands=bands, sar_bands=sar_bands, size=size)
    assert [image.shape for image in network.forward_stages(*inputs)] == [inputs[0].shape] * 3


@pytest.mark.parametrize("base", ["cloudy", "filled"])
def test_training_starts_at_the_base_in_every_stage(base: str) -> None:
    network, (optical, sar, cloud) = make(base=base, pins=True).eval(), images()
    expected = optical if base == "cloudy" else smooth_fill(optical, 1 - cloud, network.mean)
    for image in network.forward_stages(optical, sar, cloud):
        assert 0 < (image - expected).abs().max() < 0.02


def test_size_is_the_one_counted_in_the_authors_code() -> None:
    """Their code has 2.61 M (2.26 M at ratio 2) with the mask's convolutions, 1.83 M (1.48 M) without them and the pin, at 28 bands in
    and out; embedding and last convolution take and give other bands here, between them all is equal."""
    theirs = 28 * 60 * 9 + 60 + 60 * 28 * 9 + 28
    for expansion, mask_to, pin, expected in [
        (4, "query-key", 60 * 28, 2.61e6),
        (2, "query-key", 60 * 28, 2.26e6),
        (4, "none", 0, 1.83e6),
        (2, "none", 0, 1.48e6),
    ]:
        settings = S2TransformerSettings(name="s2transformer", expansion=expansion, mask_to=mask_to)
        network = S2Transformer(settings, sar_bands=2, mean=[0.2] * 13, std=[0.1] * 13)
        inner = count_parameters(network) - count_parameters(network.embed) - count_parameters(network.last)
        assert inner + theirs + pin == pytest.approx(expected, abs=0.005e6)
        assert count_parameters(network.embed) == (2 * 13 + 1 + 2) * 60 * 9 + 60


def test_pins_are_one_matrix_and_the_only_difference() -> None:
    with_pins, without = make(pins=True).eval(), make().eval()
    assert count_parameters(with_pins) - count_parameters(without) == 8 * 5
    without.load_state_dict({name: tensor for name, tensor in with_pins.state_dict().items() if name != "pin.weight"})
    inputs = images()
    assert torch.equal(with_pins(*inputs), without(*inputs))
    assert len(without.forward_stages(*inputs)) == 1


def test_pins_and_the_weight_of_stages_need_each_other() -> None:
    TrainSettings.model_validate({"network": SMALL | {"pins": True}, "loss": {"stages": 0.5}})
    for network, stages in [(SMALL | {"pins": True}, 0.0), (SMALL, 0.5), ({"name": "afsst"}, 0.5)]:
        with pytest.raises(ValidationError, match=r"loss\.stages"):
            TrainSettings.model_validate({"network": network, "loss": {"stages": stages}})


@pytest.mark.parametrize("changes", [{"order": order} for order in ORDERS] + [{"mask_to": mask} for mask in MASKS[1:]], ids=str)
def test_every_parameter_gets_a_gradient_and_images_of_a_batch_stay_apart(changes: dict[str, object]) -> None:
    network, inputs = make(**changes), images(count=3)
    network(*inputs).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    alone = torch.cat([network(*(part[number : number + 1] for part in inputs)) for number in range(3)])
    torch.testing.assert_close(network(*inputs), alone, atol=1e-5, rtol=1e-4)


def test_with_pins_every_parameter_gets_a_gradient_from_all_images() -> None:
    network, inputs = make(pins=True), images()
    sum(image.square().mean() for image in network.forward_stages(*inputs)).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask_to", MASKS)
def test_the_mask_acts_through_spatial_attention_or_not_at_all(order: str, mask_to: str) -> None:
    network = enliven(make(order=order, mask_to=mask_to)).eval()
    seen, sar, cloud = images(bands=2 * 5 + 1)
    one, other = network.restore(seen, sar, cloud)[0], network.restore(seen, sar, 1 - cloud)[0]
    assert torch.equal(one, other) == (mask_to == "none" or order == "spectral")


def test_the_mask_is_open_where_the_sky_is_clear() -> None:
    network, (seen, sar, cloud), masks = make(stem_px=2).eval(), images(bands=2 * 5 + 1, size=(8, 16)), []
    network.stages[0].register_forward_pre_hook(lambda _, inputs: masks.append(inputs[1]))
    cloud[:] = 0
    cloud[:, :, 0, 0] = cloud[:, :, 2:4, 2:4] = 1
    network.restore(seen, sar, cloud)
    expected = torch.ones(2, 1, 4, 8)
    expected[:, :, 0, 0], expected[:, :, 1, 1] = 0.75, 0
    torch.testing.assert_close(masks[0], expected)


def test_orders_differ() -> None:
    inputs = images()
    outputs = [enliven(make(order=order)).eval()(*inputs) for order in ORDERS]
    assert all(not torch.allclose(one, other) for number, one in enumerate(outputs) for other in outputs[:number])


def test_sar_moves_the_output_unless_it_is_switched_off() -> None:
    optical, sar, cloud = images()
    with_sar, without = enliven(make()).eval(), enliven(make(use_sar=False)).eval()
    assert not torch.allclose(with_sar(optical, sar, cloud), with_sar(optical, 1 - sar, cloud), atol=1e-5)
    assert torch.equal(without(optical, sar, cloud), without(optical, 1 - sar, cloud))


def test_a_far_pixel_is_felt_through_channels_over_the_whole_image_but_not_inside_windows() -> None:
    """One block of window 4 over 24 pixels: convolutions and the positional branch reach a few pixels, whole-image attention all."""
    inputs = images(size=(4, 24), count=1)
    changed = (inputs[0].clone(), *inputs[1:])
    changed[0][..., 0] += 0.5
    moved = {}
    for windows in (False, True):
        network = enliven(make(stages=1, blocks=1, spectral_windows=windows, base="cloudy")).eval()
        moved[windows] = (network(*inputs) - network(*changed)).abs()[..., 16:].max().item()
    assert moved[True] < 1e-6
    assert moved[False] > 1e-5


def test_stochastic_depth_rises_linearly_and_acts_in_training_alone() -> None:
    dropping, plain, inputs = make(drop_path=0.3), make(), images()
    assert [block.drop for stage in dropping.stages for block in stage.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert torch.equal(dropping.eval()(*inputs), plain.eval()(*inputs))
    enliven(dropping).train()
    outputs = []
    for seed in (5, 5, 6, 7, 8):
        torch.manual_seed(seed)
        outputs.append(dropping(*inputs))
    assert torch.equal(outputs[0], outputs[1])
    assert any(not torch.equal(outputs[0], other) for other in outputs[2:])


def test_one_batch_is_learnt_by_heart() -> None:
    """Every pixel's class can be read off SAR; clouds hide half of the image."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(3, (2, 2, 3), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    target = torch.rand(3, 5, generator=generator)[classes].permute(0, 3, 1, 2) * 0.5
    sar = torch.rand(3, 2, generator=generator)[classes].permute(0, 3, 1, 2)
    cloud = torch.zeros(2, 1, 8, 12)
    cloud[0, :, :, :7] = cloud[1, :, 3:] = 1
    network, optical = make(width=16, pins=True), torch.where(cloud > 0, 0.9, target)
    optimiser, losses = torch.optim.AdamW(network.parameters(), lr=5e-3), []
    for _ in range(80):
        loss = torch.stack([(image - target).abs().mean() for image in network.forward_stages(optical, sar, cloud)]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


SNAPSHOT: dict[str, Any] = SMALL | {"name": "s2snapshot"}


def make_snapshot(*, bands: int = 4, **changes: object) -> S2Snapshot:
    torch.manual_seed(0)
    return S2Snapshot(S2SnapshotSettings(**SNAPSHOT | changes), mean=[0.4] * bands, std=[0.2] * bands)


def measurements(*, bands: int = 4, size: tuple[int, int] = (8, 12), count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates, the aperture, and the cubes."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(3, (count, -(-size[0] // 4), -(-size[1] // 4)), generator=generator).repeat_interleave(4, 1)
    cubes = torch.rand(3, bands, generator=generator)[kinds.repeat_interleave(4, 2)].permute(0, 3, 1, 2)[..., : size[0], : size[1]]
    camera = make_camera((torch.rand(size, generator=generator) > 0.5).float(), bands)
    return estimate_open(camera, measure_cube(camera, cubes)), camera.mask.expand(count, 1, -1, -1), cubes


@pytest.mark.parametrize(("expansion", "mask_to", "pins", "expected"), [(4, "query-key", True, 2_613_052), (2, "none", False, 1_480_972)])
def test_the_own_task_has_exactly_the_parameters_of_the_layers_counted(expansion: int, mask_to: str, pins: bool, expected: int) -> None:
    """28 bands: 2.61 M and 1.48 M in the authors' code; layer by layer here."""
    width, heads, hidden = 60, 6, 60 * expansion
    embedding = (width + width) + (9 * width**2 + width) if mask_to != "none" else 0
    spatial = (3 * width**2 + 3 * width) + (width**2 + width) + heads * 15**2 + embedding
    spectral = 3 * width**2 + heads + (width**2 + width) + 2 * 9 * width
    block = spatial + spectral + 2 * width**2 + 3 * 2 * width + (width * hidden + hidden) + (hidden * width + width)
    stage = 6 * block + 9 * width**2 + width
    ends = (28 * width * 9 + width) + 2 * width + (9 * width**2 + width) + (width * 28 * 9 + 28)
    settings = S2SnapshotSettings(name="s2snapshot", expansion=expansion, mask_to=mask_to, pins=pins, encoding=False)
    network = S2Snapshot(settings, mean=[0.2] * 28, std=[0.1] * 28)
    assert count_parameters(network) == 4 * stage + ends + (28 * width if pins else 0) == expected


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 3)])
def test_reconstruction_takes_any_size_and_starts_at_the_estimate(size: tuple[int, int]) -> None:
    network, (estimate, mask, _) = make_snapshot(pins=True).eval(), measurements(size=size)
    images = network.forward_stages(estimate, mask)
    assert [image.shape for image in images] == [estimate.shape] * 3
    for image in images:
        assert 0 < (image - estimate).abs().max() < 0.05
    encoded = network.forward_encoded(estimate, mask)
    assert torch.equal(encoded.image, images[0])
    assert encoded.signal.shape == estimate.shape


@pytest.mark.parametrize("changes", [{}, {"spectral_windows": True}, {"mask_to": "value"}], ids=str)
def test_the_aperture_modulates_reconstruction_and_every_parameter_gets_a_gradient(changes: dict[str, object]) -> None:
    network, (estimate, mask, cubes) = make_snapshot(**changes), measurements()
    encoded = network.forward_encoded(estimate, mask)
    (compute_signal_loss(encoded.signal, cubes, mask) + (encoded.image - cubes).abs().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []
    assert not torch.equal(network(estimate, 1 - mask), encoded.image)


def test_the_head_for_the_encoded_signal_is_the_only_difference() -> None:
    with_head, without = make_snapshot().eval(), make_snapshot(encoding=False).eval()
    without.load_state_dict({name: tensor for name, tensor in with_head.state_dict().items() if not name.startswith("encode.")})
    estimate, mask, _ = measurements()
    assert torch.equal(with_head(estimate, mask), without(estimate, mask))


def test_the_encoded_signal_is_in_the_units_of_the_cube() -> None:
    """A head that says 0.5 deviations everywhere says half of the deviation of each band."""
    std = [0.1, 0.2, 0.3, 0.4]
    network, (estimate, mask, _) = S2Snapshot(S2SnapshotSettings(**SNAPSHOT), mean=[0.4] * 4, std=std).eval(), measurements()
    assert network.encode is not None
    with torch.no_grad():
        network.encode.weight.zero_()
        network.encode.bias.fill_(0.5)
    signal = network.forward_encoded(estimate, mask).signal
    torch.testing.assert_close(signal, (torch.tensor(std) / 2)[:, None, None].expand_as(signal))


def test_mask_encoding_and_mask_aware_training_learn_one_batch_and_see_the_mask() -> None:
    network, (estimate, mask, cubes) = make_snapshot(width=16), measurements()
    start = (estimate - cubes).abs().mean()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(80):
        image, signal = network.forward_encoded(estimate, mask)
        if step < 40:
            loss = compute_signal_loss(signal, cubes, mask) + (image - cubes).abs().mean()
        else:
            loss = (image - cubes).abs().mean() + 0.5 * compute_mask_aware_loss(image, cubes, signal)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step == 39:
            encoded = signal.detach()
    assert (network(estimate, mask) - cubes).abs().mean() < 0.3 * start
    weight = weigh_signal(encoded)
    hidden = (mask == 0).expand_as(weight)
    assert weight[hidden].mean() > 2 * weight[~hidden].mean()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_answer_moves_towards_the_picture_by_the_share_that_is_set(share: float) -> None:
    network, (estimate, mask, cubes) = make_snapshot(consistency=share).eval(), measurements()
    camera = make_camera(mask[0, 0], 4)
    picture = measure_cube(camera, cubes)
    alone, together = network(estimate, mask), network(estimate, mask, picture)
    torch.testing.assert_close(together, approach_picture(camera, alone, picture, share=share))
    torch.testing.assert_close(network.forward_encoded(estimate, mask, picture).image, together)
    missed = [(measure_cube(camera, image) - picture).abs().mean().item() for image in (alone, together)]
    assert missed[1] == pytest.approx((1 - share) * missed[0], abs=1e-5)
