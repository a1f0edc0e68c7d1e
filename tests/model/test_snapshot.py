"""Laws of the snapshot camera, of the ways back from its picture, and of mask-aware learning."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from sereno.model.config import S2SnapshotSettings
from sereno.model.snapshot import (
    ESTIMATES,
    Camera,
    GapTv,
    approach_picture,
    check_cube,
    check_measurement,
    compute_mask_aware_loss,
    compute_signal_loss,
    denoise_bands,
    derive_camera,
    estimate_first,
    estimate_open,
    make_camera,
    measure_cube,
    project_back,
    reconstruct_gap_tv,
    weigh_signal,
)
from sereno.pipeline.errors import DataError

BANDS, SIZE = 6, 24


def draw_camera(bands: int = BANDS, *, size: tuple[int, int] = (SIZE, SIZE + 4), shift_px: int = 2) -> Camera:
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    return make_camera(mask, bands, shift_px=shift_px)


def draw_fields(bands: int = BANDS, *, size: int = 48) -> Tensor:
    """Squares of five kinds, each with a smooth spectrum: (2, bands, size, size)."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(5, (2, size // 8, size // 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    waves = torch.linspace(0, 1, bands) * torch.linspace(0.3, 1.1, 5)[:, None] + torch.rand(5, 1, generator=generator)
    return (0.5 + 0.4 * torch.sin(2 * math.pi * waves))[kinds].permute(0, 3, 1, 2)


def compute_psnr(image: Tensor, truth: Tensor) -> float:
    return (-10 * torch.log10((image - truth).square().mean())).item()


def total_variation(image: Tensor) -> Tensor:
    """Isotropic, of forward differences that are 0 at the last row and column."""
    down, across = torch.zeros_like(image), torch.zeros_like(image)
    down[:, :, :-1], across[..., :-1] = image.diff(dim=2), image.diff(dim=3)
    return (down.square() + across.square()).sqrt().sum()


@pytest.mark.parametrize("shift_px", [0, 1, 2, 3])
def test_the_picture_is_the_sum_of_masked_and_shifted_bands(shift_px: int) -> None:
    """Once more with loops over bands, rows and columns."""
    camera, cube = draw_camera(3, size=(4, 5), shift_px=shift_px), torch.rand(2, 3, 4, 5)
    expected = torch.zeros(2, 4, 5 + 2 * shift_px)
    for band in range(3):
        for row in range(4):
            for column in range(5):
                expected[:, row, column + shift_px * band] += camera.mask[row, column] * cube[:, band, row, column] * 2 / 3
    torch.testing.assert_close(measure_cube(camera, cube), expected)
    assert camera.detector == (4, 5 + 2 * shift_px)


def test_the_adjoint_is_the_adjoint() -> None:
    camera = draw_camera()
    generator = torch.Generator().manual_seed(1)
    cube = torch.randn(3, BANDS, *camera.mask.shape, generator=generator, dtype=torch.float64)
    picture = torch.randn(3, *camera.detector, generator=generator, dtype=torch.float64)
    one, other = (measure_cube(camera, cube) * picture).sum(), (cube * project_back(camera, picture)).sum()
    torch.testing.assert_close(one, other)


def test_one_band_through_an_open_aperture_is_seen_as_it_is() -> None:
    camera = Camera(torch.ones(4, 5), (0,), 1.0)
    cube = torch.rand(1, 1, 4, 5)
    assert torch.equal(measure_cube(camera, cube)[:, None], cube)
    torch.testing.assert_close(estimate_first(camera, measure_cube(camera, cube)), cube)


def test_the_first_estimate_has_the_picture_and_is_the_smallest_that_has() -> None:
    camera, cube = draw_camera(), torch.rand(2, BANDS, SIZE, SIZE + 4)
    picture = measure_cube(camera, cube)
    first = estimate_first(camera, picture)
    torch.testing.assert_close(measure_cube(camera, first), picture)
    assert (first * (1 - camera.mask)).abs().max() == 0
    unseen = cube - estimate_first(camera, picture)  # what no picture shows: at right angles to the estimate
    assert (first * unseen).sum().abs() < 1e-3 * first.square().sum()


def test_the_open_estimate_of_a_grey_scene_is_the_scene_in_the_middle_of_the_bands() -> None:
    camera = draw_camera()
    cube = torch.full((1, BANDS, SIZE, SIZE + 4), 0.3)
    image = estimate_open(camera, measure_cube(camera, cube))
    seen = (image - 0.3).abs() < 1e-5
    assert torch.equal(~seen, image == 0)
    assert seen.float().mean() > 0.9


def test_denoising_a_step_lowers_each_half_by_its_border_over_its_area() -> None:
    """Two halves of n columns: total variation per row falls by the step, so each half moves by weight / n towards the other."""
    step = torch.zeros(1, 2, 6, 16)
    step[..., 8:] = 1.0
    smooth = denoise_bands(step, 0.4, steps=2000)
    torch.testing.assert_close(smooth[..., :8], torch.full((1, 2, 6, 8), 0.05), atol=1e-3, rtol=0)
    torch.testing.assert_close(smooth[..., 8:], torch.full((1, 2, 6, 8), 0.95), atol=1e-3, rtol=0)


def test_denoising_is_as_good_as_that_of_scikit_image() -> None:
    noisy = draw_fields(1)[:1] + 0.1 * torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(3))

    def judge(image: Tensor) -> float:
        return ((image - noisy).square().sum() / 2 + 0.1 * total_variation(image)).item()

    theirs = torch.from_numpy(denoise_tv_chambolle(noisy[0, 0].numpy(), weight=0.1, eps=1e-7, max_num_iter=2000))[None, None]
    assert judge(denoise_bands(noisy, 0.1, steps=200)) < 1.002 * judge(theirs)


def test_bands_and_images_are_denoised_apart() -> None:
    cube = torch.rand(2, 3, 9, 10)
    alone = torch.stack([torch.cat([denoise_bands(band[None, None], 0.1, steps=20)[0] for band in image]) for image in cube])
    torch.testing.assert_close(denoise_bands(cube, 0.1, steps=20), alone)


def test_gap_tv_fits_the_picture_and_beats_both_estimates_by_far() -> None:
    cube = draw_fields(12)
    camera = draw_camera(12, size=(48, 48))
    picture = measure_cube(camera, cube)
    scores = [compute_psnr(image, cube) for image in (estimate_first(camera, picture), estimate_open(camera, picture))]
    rebuilt = reconstruct_gap_tv(camera, picture)
    assert compute_psnr(rebuilt, cube) > max(scores) + 5
    assert (measure_cube(camera, rebuilt) - picture).abs().mean() < 1e-3
    assert compute_psnr(reconstruct_gap_tv(camera, picture, GapTv(rounds=5)), cube) < compute_psnr(rebuilt, cube)


def test_every_base_of_the_settings_is_an_estimate_and_more_work_is_better() -> None:
    cube, camera = draw_fields(12), draw_camera(12, size=(48, 48))
    names = S2SnapshotSettings.model_json_schema()["properties"]["base"]["enum"]
    scores = {name: compute_psnr(ESTIMATES[name](camera, measure_cube(camera, cube)), cube) for name in names}
    assert scores.keys() == ESTIMATES.keys()
    assert scores["gap-tv-full"] > scores["gap-tv"] > scores["open"] + 4 > scores["first"] + 4


def test_the_nearest_cube_with_the_picture_has_it_and_is_never_farther_from_the_truth() -> None:
    generator = torch.Generator().manual_seed(9)
    camera, cube = draw_camera(), torch.rand(2, BANDS, SIZE, SIZE + 4, generator=generator)
    picture, guess = measure_cube(camera, cube), cube + 0.1 * torch.randn(cube.shape, generator=generator)
    near = approach_picture(camera, guess, picture)
    torch.testing.assert_close(measure_cube(camera, near), picture, rtol=0, atol=1e-5)
    assert ((near - cube).square().sum((1, 2, 3)) < (guess - cube).square().sum((1, 2, 3))).all()
    assert ((near - guess) * (near - cube)).sum().abs() < 1e-2, "the step is at right angles to what is left"
    torch.testing.assert_close(approach_picture(camera, guess, picture, share=0.25), guess + 0.25 * (near - guess))


@pytest.mark.parametrize("shift_px", [0, 1, 3])
def test_a_camera_follows_from_mask_bands_and_columns_and_may_have_a_mask_for_each_cube(shift_px: int) -> None:
    generator = torch.Generator().manual_seed(9)
    cube, masks = torch.rand(2, BANDS, 8, 9, generator=generator), torch.rand(2, 1, 8, 9, generator=generator)
    camera = derive_camera(masks, BANDS, 9 + shift_px * (BANDS - 1))
    alone = [make_camera(mask[0], BANDS, shift_px=shift_px) for mask in masks]
    assert camera.shifts_px == alone[0].shifts_px
    assert camera.detector == alone[0].detector
    picture = measure_cube(camera, cube)
    for own, one, seen in zip(alone, cube.split(1), picture.split(1), strict=True):
        torch.testing.assert_close(measure_cube(own, one), seen)
    for estimate in (estimate_first, estimate_open, reconstruct_gap_tv):
        each = torch.cat([estimate(own, seen) for own, seen in zip(alone, picture.split(1), strict=True)])
        torch.testing.assert_close(estimate(camera, picture), each)


@pytest.mark.parametrize(("bands", "columns"), [(BANDS, 8), (BANDS, 9 + BANDS), (1, 10)])
def test_columns_that_no_even_shift_gives_are_refused(bands: int, columns: int) -> None:
    with pytest.raises(DataError, match=rf"{columns} columns, but a mask of 9 columns and {bands} bands"):
        derive_camera(torch.ones(8, 9), bands, columns)


def test_a_detector_pixel_that_no_light_reaches_does_no_harm() -> None:
    mask = (torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    mask[:, :3] = 0
    camera = make_camera(mask, 2)
    noisy = measure_cube(camera, torch.rand(1, 2, 8, 8)) + 0.1
    for image in (estimate_first(camera, noisy), estimate_open(camera, noisy), reconstruct_gap_tv(camera, noisy)):
        assert image.isfinite().all()
        assert image.abs().max() < 20


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(3, 4, 5), "two axes"),
        (torch.zeros(4, 5), "lets through"),
        (torch.full((4, 5), -1.0), "lets through"),
        (torch.tensor([[1.0, math.nan]]), "lets through"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line(mask: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=rf"^aperture\.npy: .*{words}") as caught:
        make_camera(mask, 3, where="aperture.npy")
    assert "\n" not in str(caught.value)


def test_sizes_that_do_not_fit_are_refused_with_both_of_them() -> None:
    camera = draw_camera(3, size=(4, 5))
    check_cube(camera, torch.rand(2, 3, 4, 5))
    check_measurement(camera, torch.rand(4, 9))
    with pytest.raises(DataError, match=r"5 x 5 pixels.*4 x 5 pixels"):
        check_cube(camera, torch.rand(3, 5, 5))
    with pytest.raises(DataError, match=r"4 bands.*for 3"):
        check_cube(camera, torch.rand(4, 4, 5))
    with pytest.raises(DataError, match=r"4 x 5 pixels, .*4 x 9 pixels"):
        check_measurement(camera, torch.rand(4, 5))


def test_the_weaker_the_encoded_signal_the_more_a_voxel_weighs_and_the_mean_is_one() -> None:
    signal = torch.rand(3, BANDS, 8, 9, generator=torch.Generator().manual_seed(4)) * 1.2
    weight = weigh_signal(signal, max_weight=10.0)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.ones(3))
    order = signal[0].flatten().argsort()
    assert (weight[0].flatten()[order].diff() <= 0).all()
    assert (weight[signal >= 1] == 0).all()
    assert weight[0].max() / weight[0][signal[0] > 0.5].max() > 5
    assert not weigh_signal(signal.requires_grad_()).requires_grad


def test_mask_aware_losses_are_their_formulas() -> None:
    image, cube, signal = torch.rand(3, 2, BANDS, 8, 9)
    mask = (torch.rand(2, 1, 8, 9) > 0.5).float()
    torch.testing.assert_close(compute_signal_loss(signal, cube, mask), (signal - mask * cube).abs().mean())
    assert compute_signal_loss(mask * cube, cube, mask) == 0
    torch.testing.assert_close(compute_mask_aware_loss(image, cube, signal), (weigh_signal(signal) * (image - cube).abs()).mean())
    assert compute_mask_aware_loss(cube, cube, signal) == 0
    nothing = weigh_signal(torch.ones(1, 1, 2, 2))  # nowhere weak: no weight at all
    assert (nothing == 0).all()
