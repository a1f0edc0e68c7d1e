"""Laws of the indices: scikit-image and plain quaternions as oracles, hand values, and what must leave them alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from sereno.model import indices
from sereno.model.sharpening import degrade, enlarge, sharpen_gsa

FEW = 1e-12


def make_images(bands: int = 4, *, side: int = 64, noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, a target, and a mask in which all is usable."""
    generator = torch.Generator().manual_seed(bands)
    target = 0.1 + 0.4 * torch.rand(2, bands, side, side, generator=generator, dtype=torch.float64)
    prediction = target + noise * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return prediction, target, torch.ones(2, side, side, dtype=torch.bool)


def test_q_is_scikit_images_ssim_without_stabilisers_in_the_middle_of_each_block() -> None:
    prediction, target, usable = make_images(bands=3, side=38)
    ours = indices.compute_q(prediction, target, usable, block_px=9)
    for image in range(2):
        maps = []
        for band in range(3):
            one, other = prediction[image, band].numpy(), target[image, band].numpy()
            stabilisers = {"K1": 0, "K2": 0, "data_range": 1, "use_sample_covariance": False}
            maps.append(structural_similarity(one, other, win_size=9, full=True, **stabilisers)[1][4:36:9, 4:36:9])
        assert ours[image].item() == pytest.approx(np.mean(maps), abs=1e-9)


def test_q_of_a_line_is_worked_out_by_hand() -> None:
    _, target, usable = make_images(bands=1, side=32)
    assert indices.compute_q(2 * target, target, usable) == pytest.approx([0.8 * 0.8] * 2, abs=FEW)  # 2 k / (1 + k^2), twice
    mirrored = 2 * target.mean((2, 3), keepdim=True) - target
    assert indices.compute_q(mirrored, target, usable) == pytest.approx([-1] * 2, abs=FEW)


@pytest.mark.parametrize("compute", [indices.compute_q, indices.compute_q2n])
@pytest.mark.parametrize("bands", [1, 3, 4, 8])
def test_equal_images_are_perfect_and_worse_ones_are_worse(compute: object, bands: int) -> None:
    assert callable(compute)
    prediction, target, usable = make_images(bands)
    assert compute(target, target, usable) == pytest.approx([1, 1], abs=FEW)
    steps = [compute(target + share * (prediction - target), target, usable)[0].item() for share in (0.0, 0.5, 1.0, 2.0)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 0.9


@pytest.mark.parametrize("side", [32, 31])
def test_constant_blocks_are_compared_by_their_means_alone(side: int) -> None:
    flat, usable = torch.full((1, 1, side, side), 0.1), torch.ones(1, side, side, dtype=torch.bool)
    assert indices.compute_q(3 * flat, flat, usable, block_px=side).item() == pytest.approx(0.6, abs=1e-6)
    assert indices.compute_q(0 * flat, 0 * flat, usable, block_px=side).item() == 1
    assert indices.compute_q2n(flat, flat, usable, block_px=side).item() == pytest.approx(1)
    textured = flat + 0.05 * torch.rand(flat.shape, generator=torch.Generator().manual_seed(0))
    assert indices.compute_q(textured, flat, usable, block_px=side).item() == pytest.approx(0, abs=1e-3)


HAMILTON = {
    ("i", "j"): (1, "k"),
    ("j", "k"): (1, "i"),
    ("k", "i"): (1, "j"),
    ("j", "i"): (-1, "k"),
    ("k", "j"): (-1, "i"),
    ("i", "k"): (-1, "j"),
}
UNITS = ("1", "i", "j", "k")


def multiply_quaternions(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By Hamilton's rules, (4, N) each."""
    product = np.zeros_like(first)
    for one, a in zip(UNITS, first, strict=True):
        for other, b in zip(UNITS, second, strict=True):
            if "1" in (one, other):
                sign, unit = 1, one if other == "1" else other
            else:
                sign, unit = (-1, "1") if one == other else HAMILTON[one, other]
            product[UNITS.index(unit)] += sign * a * b
    return product


def test_q4_is_the_formula_in_quaternions() -> None:
    prediction, target, usable = make_images(4, side=32)
    ours = indices.compute_q2n(prediction, target, usable)
    for image in range(2):
        seen, true = (a[image].reshape(4, -1).numpy() for a in (prediction, target))
        mean, std = true.mean(1, keepdims=True), true.std(1, ddof=1, keepdims=True)
        one, other = (true - mean) / std + 1, (seen - mean) / std + 1
        mean_one, mean_other = one.mean(1, keepdims=True), other.mean(1, keepdims=True)
        conjugate = np.array([1, -1, -1, -1])[:, None]
        covariance = np.linalg.norm(multiply_quaternions(one - mean_one, conjugate * (other - mean_other)).mean(1))
        variances = [((q - m) ** 2).sum(0).mean() for q, m in ((one, mean_one), (other, mean_other))]
        lengths = [np.linalg.norm(m) for m in (mean_one, mean_other)]
        expected = 2 * covariance / sum(variances) * 2 * lengths[0] * lengths[1] / (lengths[0] ** 2 + lengths[1] ** 2)
        assert ours[image].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
def test_lengths_multiply_as_they_do_in_every_algebra_up_to_the_octonions(bands: int) -> None:
    """Hurwitz: no other signs of the units do this."""
    generator = torch.Generator().manual_seed(bands)
    one, other = (torch.randn(100, bands, generator=generator, dtype=torch.float64) for _ in range(2))
    product = indices._multiply_conjugate(one[:, :, None] * other[:, None])
    torch.testing.assert_close(product.norm(dim=1), one.norm(dim=1) * other.norm(dim=1))
    torch.testing.assert_close(product[:, 0], (one * other).sum(1))


def test_q2n_sees_bands_change_places_though_every_band_has_the_same_values() -> None:
    """The covariance is of spectra: a band compared with another band's texture is not what was asked for."""
    _, target, usable = make_images(4)
    assert indices.compute_q2n(target[:, [1, 0, 2, 3]], target, usable).max() < 0.8


def test_q2n_does_not_depend_on_units_or_offsets_of_a_band() -> None:
    prediction, target, usable = make_images(8)
    scale, offset = torch.linspace(0.5, 3, 8).view(1, 8, 1, 1), torch.linspace(1, -1, 8).view(1, 8, 1, 1)
    moved = indices.compute_q2n(prediction * scale + offset, target * scale + offset, usable)
    torch.testing.assert_close(moved, indices.compute_q2n(prediction, target, usable))


@pytest.mark.parametrize("compute", [indices.compute_q, indices.compute_q2n])
def test_blocks_with_unusable_pixels_and_the_rest_at_the_edge_count_nothing(compute: object) -> None:
    assert callable(compute)
    prediction, target, usable = make_images(side=64)
    first_block = compute(prediction[..., :32, :32], target[..., :32, :32], usable[..., :32, :32])
    hidden = usable.clone()
    hidden[:, 40, 5] = hidden[:, :, 60] = False
    spoiled = torch.where(hidden[:, None], prediction, float("nan"))
    torch.testing.assert_close(compute(spoiled, target, hidden), first_block)
    wider = [torch.nn.functional.pad(image, (0, 9, 0, 31), value=7.0) for image in (prediction, target)]
    torch.testing.assert_close(compute(*wider, torch.ones(2, 95, 73, dtype=torch.bool)), compute(prediction, target, usable))
    assert compute(prediction, target, torch.zeros_like(usable)).isnan().all()
    assert compute(prediction[..., :20], target[..., :20], usable[..., :20]).isnan().all()
    prediction[0, 0, 50, 50] = float("nan")
    assert compute(prediction, target, usable).isnan().tolist() == [True, False]


def repeat(image: Tensor, ratio: int) -> Tensor:
    return image.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pixels_that_are_only_repeated_distort_nothing(ratio: int) -> None:
    """Blocks of both scales then hold the same values, each as often."""
    _, ms, _ = make_images(4, side=32)
    pan = ms.mean(1, keepdim=True)
    usable = torch.ones(2, 32 * ratio, 32 * ratio, dtype=torch.bool)
    spectral = indices.compute_spectral_distortion(repeat(ms, ratio), ms, usable)
    spatial = indices.compute_spatial_distortion(repeat(ms, ratio), repeat(pan, ratio), ms, pan, usable)
    assert spectral == pytest.approx([0, 0], abs=FEW)
    assert spatial == pytest.approx([0, 0], abs=FEW)
    assert indices.compute_qnr(spectral, spatial) == pytest.approx([1, 1], abs=FEW)


def test_distortions_are_the_differences_of_q_worked_out_by_hand() -> None:
    """Sharp bands b and 2 b have Q 0.64; b and b have 1; with three bands one of three pairs changed by 0.36 and two by nothing."""
    _, ms, _ = make_images(1, side=16)
    usable = torch.ones(2, 32, 32, dtype=torch.bool)
    before, after = torch.cat([ms, ms, 2 * ms], 1), torch.cat([ms, 2 * ms, 2 * ms], 1)
    spectral = indices.compute_spectral_distortion(repeat(after, 2), before, usable)
    assert spectral == pytest.approx([(0.36 + 0 + 0.36) / 3] * 2, abs=FEW)
    spatial = indices.compute_spatial_distortion(repeat(after, 2), repeat(ms, 2), before, ms, usable)
    assert spatial == pytest.approx([0.36 / 3] * 2, abs=FEW)
    assert indices.compute_qnr(spectral, spatial) == pytest.approx([(1 - 0.24) * (1 - 0.12)] * 2, abs=FEW)


def test_distortions_leave_unusable_ground_out_at_both_scales() -> None:
    _, ms, _ = make_images(3, side=32)
    sharp, pan = repeat(ms, 2), repeat(ms[:, :1], 2)
    usable = torch.ones(2, 64, 64, dtype=torch.bool)
    usable[:, 40:, 40:] = False
    sharp[:, :, 40:, 40:] = pan[:, :, 40:, 40:] = 9.0
    assert indices.compute_spectral_distortion(sharp, ms, usable) == pytest.approx([0, 0], abs=FEW)
    assert indices.compute_spatial_distortion(sharp, pan, ms, ms[:, :1], usable) == pytest.approx([0, 0], abs=FEW)
    assert indices.compute_spectral_distortion(sharp[:, :1], ms[:, :1], usable).isnan().all()


def test_without_a_truth_an_image_that_was_only_enlarged_ranks_above_one_that_is_nearer_to_it() -> None:
    """Why these indices are no verdict: fields of four kinds, seen by four bands and by their mean."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(4, (1, 64, 64), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    spectra = 0.05 + 0.4 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
    truth = spectra[kinds].permute(0, 3, 1, 2) + 0.01 * torch.randn(1, 4, 256, 256, generator=generator, dtype=torch.float64)
    pan, usable = truth.mean(1, keepdim=True), torch.ones(1, 256, 256, dtype=torch.bool)
    ms, seen = (degrade(image, 4, [0.3] * image.shape[1]) for image in (truth, pan))
    near, qnr = [], []
    for image in (enlarge(ms, 4), sharpen_gsa(ms, pan)):
        spectral = indices.compute_spectral_distortion(image, ms, usable)
        qnr.append(indices.compute_qnr(spectral, indices.compute_spatial_distortion(image, pan, ms, seen, usable)).item())
        near.append(indices.compute_q2n(image, truth, usable).item())
    assert near[1] > near[0] + 0.1
    assert qnr[0] > qnr[1] + 0.1
