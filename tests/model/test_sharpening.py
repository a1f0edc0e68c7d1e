"""Laws of the classical methods and of Wald's protocol: closed forms in which they are exact, and scipy as an independent blur."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
import torch
from real_files import find_samples
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sereno.model.sharpening import (
    SENTINEL2_GAINS,
    TYPICAL_MS_GAIN,
    degrade,
    enlarge,
    find_ratio,
    make_wald_pair,
    sharpen_brovey,
    sharpen_gsa,
    synthesise_pan,
)
from sereno.pipeline.bands import L1C_BANDS, SENTINEL2_BANDS
from sereno.pipeline.errors import DataError

RATIOS = [2, 3, 4]


def make_ground(*shape: int, seed: int = 0) -> Tensor:
    """Reflectance of ground with sharp borders, float64."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.rand(*shape[:-2], shape[-2] // 4, shape[-1] // 4, generator=generator, dtype=torch.float64)
    return 0.1 + 0.3 * fields.repeat_interleave(4, -2).repeat_interleave(4, -1)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("gain", [0.1, 0.15, 0.3])
def test_a_wave_at_the_new_nyquist_frequency_keeps_its_gain(ratio: int, gain: float) -> None:
    """Crests in the middle of coarse pixels come out as high as the gain says, so that both blur and phase are right."""
    columns = torch.arange(16 * ratio, dtype=torch.float64)
    wave = torch.cos(math.pi * (columns - (ratio - 1) / 2) / ratio).expand(1, 1, 8 * ratio, -1)
    for image in (wave, wave.mT):
        down = degrade(image, ratio, [gain])
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
        seen = (down if image is wave else down.mT)[0, 0, 4, 4:-4] * signs[4:-4]
        torch.testing.assert_close(seen, torch.full_like(seen, gain), atol=2e-3, rtol=0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ramp_stays_where_it_is(ratio: int) -> None:
    """A coarse pixel has the value in the middle of its ground, and enlarging gives it back there on average (it makes ripples)."""
    rows, columns = torch.meshgrid(*(torch.arange(24.0 * ratio, dtype=torch.float64),) * 2, indexing="ij")
    ramp = (rows + 3 * columns)[None, None]
    down = degrade(ramp, ratio, [TYPICAL_MS_GAIN])
    middle = ratio * torch.arange(24, dtype=torch.float64) + (ratio - 1) / 2
    inside = slice(6, -6)
    torch.testing.assert_close(down[0, 0, inside, inside], (middle[:, None] + 3 * middle)[inside, inside])
    means = torch.nn.functional.avg_pool2d(enlarge(down, ratio), ratio)
    torch.testing.assert_close(means[..., inside, inside], down[..., inside, inside])


def test_the_blur_of_every_band_is_scipys() -> None:
    image, gains = make_ground(1, 3, 36, 48), [0.15, 0.3, 0.4]
    down = degrade(image, 3, gains)[0].numpy()
    for band, gain in enumerate(gains):
        sigma = 3 * math.sqrt(-2 * math.log(gain)) / math.pi
        blurred, inside = (gaussian_filter(a, sigma, mode="constant", radius=40) for a in (image[0, band].numpy(), np.ones((36, 48))))
        np.testing.assert_allclose(down[band], (blurred / inside)[1::3, 1::3], atol=2e-4)


def test_a_constant_stays_constant_to_the_edge_and_a_mask_tells_what_was_seen() -> None:
    torch.testing.assert_close(degrade(torch.full((2, 2, 8, 12), 0.3), 4, [0.2, 0.3]), torch.full((2, 2, 2, 3), 0.3))
    usable = torch.ones(1, 1, 32, 32)
    usable[..., :16] = 0
    seen = degrade(usable, 4, [0.3])[0, 0, 4]
    assert seen[[0, -1]].tolist() == pytest.approx([0, 1])
    torch.testing.assert_close(seen, 1 - seen.flip(0))


@pytest.mark.parametrize("ratio", RATIOS)
def test_gsa_is_exact_where_every_band_is_a_line_of_the_pan(ratio: int) -> None:
    """truth = a + k P: the intensity is P enlarged from below, the gain is k, and nothing but one number per band can be lost."""
    pan = make_ground(2, 1, 12 * ratio, 12 * ratio)
    slope, offset = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in ([0.5, 1.5, -0.7], [0.1, 0.0, 0.6]))
    truth = offset + slope * pan
    sharp = sharpen_gsa(degrade(truth, ratio, [TYPICAL_MS_GAIN] * 3), pan)
    lost = sharp - truth
    assert (lost - lost.mean((2, 3), keepdim=True)).abs().max() < 1e-9
    assert lost.abs().max() < 0.02


@pytest.mark.parametrize("ratio", RATIOS)
def test_brovey_is_exact_where_every_band_is_a_multiple_of_the_pan_however_the_pan_is_calibrated(ratio: int) -> None:
    ground = make_ground(2, 1, 12 * ratio, 12 * ratio)
    truth = ground * torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    ms = degrade(truth, ratio, [TYPICAL_MS_GAIN] * 3)
    sharp = sharpen_brovey(ms, ground)
    torch.testing.assert_close(sharpen_brovey(ms, 3 * ground + 0.7), sharp)
    share = sharp / truth
    assert (share - 1).abs().max() < 0.1
    assert (share.amax(1) - share.amin(1)).abs().max() < 1e-9


def test_brovey_keeps_the_colours_of_the_enlarged_image() -> None:
    ms, pan = make_ground(1, 4, 16, 16), make_ground(1, 1, 32, 32, seed=1)
    sharp, base = sharpen_brovey(ms, pan), enlarge(ms, 2)
    torch.testing.assert_close(sharp / sharp.norm(dim=1, keepdim=True), base / base.norm(dim=1, keepdim=True))


def test_several_guiding_bands_are_combined_into_each_band_exactly_where_it_is_made_of_them() -> None:
    guide = make_ground(2, 3, 32, 32)
    mixing = torch.tensor([[0.5, 0.2, -0.3], [1.0, 0.0, 0.4]], dtype=torch.float64)
    truth = 0.2 + torch.einsum("cg,bghw->bchw", mixing, guide)
    ms = degrade(truth, 2, [TYPICAL_MS_GAIN] * 2)
    torch.testing.assert_close(synthesise_pan(ms, guide), truth)
    error = [(image - truth).square().mean().item() for image in (enlarge(ms, 2), sharpen_brovey(ms, guide), sharpen_gsa(ms, guide))]
    assert error[1] < 0.8 * error[0]
    assert error[2] < 0.1 * error[0]


@pytest.mark.parametrize("guides", [1, 3])
@pytest.mark.parametrize("sharpen", [sharpen_brovey, sharpen_gsa])
def test_images_of_a_batch_are_sharpened_apart_and_keep_their_type(sharpen: object, guides: int) -> None:
    assert callable(sharpen)
    ms, pan = make_ground(3, 4, 16, 20).float(), make_ground(3, guides, 48, 60, seed=1).float()
    together = sharpen(ms, pan)
    assert together.dtype == torch.float32
    assert together.shape == (3, 4, 48, 60)
    torch.testing.assert_close(together, torch.cat([sharpen(ms[n : n + 1], pan[n : n + 1]) for n in range(3)]))


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("sharpen", [sharpen_brovey, sharpen_gsa])
def test_flat_ground_stays_flat(sharpen: object, level: float) -> None:
    assert callable(sharpen)
    ms, pan = torch.full((1, 4, 8, 8), level), torch.full((1, 1, 32, 32), 0.2)
    torch.testing.assert_close(sharpen(ms, pan), torch.full((1, 4, 32, 32), level))


def test_a_value_that_is_not_finite_spoils_its_own_image_and_no_other() -> None:
    ms, pan = make_ground(2, 4, 16, 16), make_ground(2, 1, 32, 32)
    pan[0, 0, 3, 3] = math.nan
    sharp = sharpen_gsa(ms, pan)
    assert sharp[0].isnan().all()
    assert sharp[1].isfinite().all()


def test_a_wald_pair_is_coarser_by_the_ratio_and_its_truth_is_what_was_observed() -> None:
    ms, pan = make_ground(2, 4, 16, 24), make_ground(2, 1, 64, 96, seed=1)
    pair = make_wald_pair(ms, pan, gains=[0.34, 0.32, 0.3, 0.22], pan_gains=[0.15])
    assert [image.shape for image in pair] == [(2, 4, 4, 6), (2, 1, 16, 24), (2, 4, 16, 24)]
    assert torch.equal(pair.target, ms)
    torch.testing.assert_close(pair.ms[:, 3:], degrade(ms[:, 3:], 4, [0.22]))
    torch.testing.assert_close(pair.pan, degrade(pan, 4, [0.15]))


@pytest.mark.parametrize(("ms", "pan"), [((1, 4, 8, 8), (1, 1, 20, 20)), ((1, 4, 8, 8), (1, 1, 16, 24)), ((2, 4, 8, 8), (1, 1, 16, 16))])
def test_images_that_do_not_cover_the_same_ground_are_refused_with_their_sizes(ms: tuple[int, ...], pan: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=f"{ms[2]} x {ms[3]} and {pan[0]} of {pan[2]} x {pan[3]} px.*same ground"):
        find_ratio(torch.zeros(ms), torch.zeros(pan))
    with pytest.raises(DataError, match="cut it to a multiple of 3"):
        degrade(torch.zeros(1, 1, 9, 10), 3, [0.3])


def test_ratio_one_changes_nothing() -> None:
    image = make_ground(1, 2, 8, 8)
    assert find_ratio(image, image) == 1
    assert torch.equal(enlarge(image, 1), image)
    assert torch.equal(degrade(image, 1, [0.3, 0.3]), image)


def test_gains_are_of_known_bands() -> None:
    assert set(SENTINEL2_GAINS) <= {band.name for band in SENTINEL2_BANDS}
    assert all(0.1 < gain < 0.5 for gain in SENTINEL2_GAINS.values())


@pytest.mark.real
def test_real_bands_of_10_m_bring_real_bands_of_20_m_nearer_to_the_truth() -> None:
    """Means over 2 x 2 px undo what SEN12MS-CR did to the 20 m bands; these are then the truth, their own 40 m the input."""
    path = find_samples() / "sen12mscr/glfcr/s2_cloudfree/ROIs1970_fall_139_p839.tif"
    with rasterio.open(path) as file:
        scene = torch.from_numpy(file.read().astype(np.float64) / 10_000)[None]
    sharp_bands, coarse_bands = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
    guide, coarse = (scene[:, [L1C_BANDS.index(name) for name in names]] for names in (sharp_bands, coarse_bands))
    ms = torch.nn.functional.avg_pool2d(coarse, 2)
    gains, pan_gains = ([SENTINEL2_GAINS[name] for name in names] for names in (coarse_bands, sharp_bands))
    pair = make_wald_pair(ms, guide, gains=gains, pan_gains=pan_gains)
    sharpened = (enlarge(pair.ms, 2), sharpen_brovey(pair.ms, pair.pan), sharpen_gsa(pair.ms, pair.pan))
    psnr = [-10 * (image - pair.target).square().mean().log10().item() for image in sharpened]
    assert psnr[1] > psnr[0] + 1
    assert psnr[2] > psnr[1] + 1
