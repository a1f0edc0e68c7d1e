"""Laws of batches: units, weights, and that nothing that was not observed moves anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from series_samples import make_series
from task_samples import BANDS, make_fusion, make_sharpening, make_snapshot

from sereno.model.apertures import make_aperture
from sereno.model.batches import (
    Batch,
    Signature,
    Stored,
    make_clearing_batch,
    make_fusion_batch,
    make_sharpening_batch,
    make_snapshot_batch,
    prepare_fusion,
    read_dates,
    read_days,
    scale_optical,
    scale_sar,
    store_optical,
    to_batch,
)
from sereno.model.config import AfsstSettings, S2SnapshotSettings, SarRange, TrainSettings
from sereno.model.sharpening import SENTINEL2_GAINS
from sereno.model.snapshot import make_camera, measure_cube
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import MAX_REFLECTANCE

DEPTHS = {"sar": 2, "cloudy": 2, "clear": 2, "mask": len(MASK_CHANNELS)}
DTYPES = {"sar": "int16", "cloudy": "uint16", "clear": "uint16", "mask": "uint8"}
SHARPENING = Signature(BANDS, (), (0.2,) * 4, (0.1,) * 4, "pansharpening", 4, ("PAN",), (0.2,), (0.1,))
CHANNELS = MASK_CHANNELS_OF["pansharpening"]


def stored(**channels: int) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {name: np.zeros((1, DEPTHS[name], 1, 1), DTYPES[name]) for name in PATCH_ARRAYS}
    for name in ("valid_input", "valid_target", "valid_sar"):
        arrays["mask"][:, MASK_CHANNELS.index(name)] = 255
    for name, value in channels.items():
        arrays["mask"][:, MASK_CHANNELS.index(name)] = value
    arrays["cloudy"][:] = 4321
    arrays["sar"][:] = -1250
    return arrays


def batch_of(**channels: int) -> Batch:
    return to_batch(**stored(**channels), sar_range=SarRange(), sar_bands=("VV", "VH"))


def test_optical_is_reflectance_and_sar_is_decibel_scaled_over_its_range() -> None:
    batch = batch_of()
    assert batch.optical[0, 0].item() == pytest.approx(0.4321)
    assert batch.sar[0, :, 0, 0].tolist() == pytest.approx([12.5 / 25, 20 / 32.5])
    assert {tensor.dtype for tensor in batch[:-1]} == {torch.float32}


def test_what_is_stored_of_reflectance_is_read_back_and_no_answer_wraps_or_becomes_nodata() -> None:
    values = np.arange(65_535, dtype=np.uint16)
    np.testing.assert_array_equal(store_optical(scale_optical(values)), values)
    assert store_optical(torch.tensor([-0.1, 7.0])).tolist() == [0, MAX_REFLECTANCE]


def test_sar_is_clipped_and_zero_where_it_is_not_valid() -> None:
    values = np.array([-9000, 500, -1000], np.int16).reshape(1, 1, 1, 3)
    valid = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    assert scale_sar(values, valid, SarRange(), ("VV",))[0, 0, 0].tolist() == [0.0, 1.0, 0.0]


def test_a_dataset_without_sar_gives_empty_sar() -> None:
    assert scale_sar(np.zeros((2, 0, 3, 3), np.int16), torch.ones(2, 1, 3, 3), SarRange(), ()).shape == (2, 0, 3, 3)


def test_cloud_is_the_worst_of_cloud_shadow_and_invalid() -> None:
    assert batch_of(cloud_input=51, shadow_input=102).cloud.item() == pytest.approx(0.4)
    assert batch_of(cloud_input=51, valid_input=0).cloud.item() == 1
    assert batch_of().cloud.item() == 0


def test_weight_falls_with_cloud_of_the_target_and_ends_hard_above_a_half() -> None:
    assert batch_of().weight.item() == 1
    assert batch_of(cloud_target=51, shadow_target=102).weight.item() == pytest.approx(0.6)
    assert batch_of(shadow_target=127).weight.item() > 0.5
    assert batch_of(shadow_target=128).weight.item() == 0
    assert batch_of(valid_target=0).weight.item() == 0


def test_cloud_of_the_input_leaves_the_trust_in_the_target_alone() -> None:
    assert batch_of(cloud_input=255, valid_input=0).weight.item() == 1


def test_tensors_and_arrays_give_the_same_batch() -> None:
    arrays = stored(cloud_input=100)
    tensors = {name: torch.from_numpy(values.astype(np.int32)) for name, values in arrays.items()}
    first, second = (to_batch(**each, sar_range=SarRange(), sar_bands=("VV", "VH")) for each in (arrays, tensors))
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], second[:-1], strict=True))


def sharpen_batch(stored: Stored) -> Any:
    return make_sharpening_batch(stored, SHARPENING, TrainSettings())


def test_the_target_of_sharpening_is_the_image_as_it_was_taken() -> None:
    arrays = make_sharpening(2, np.random.default_rng(0))
    batch = sharpen_batch(arrays)
    assert torch.equal((batch.target * 10_000).round(), torch.from_numpy(arrays["ms"].astype(np.float32)))
    assert [tuple(image.shape) for image in batch.inputs] == [(2, 4, 4, 4), (2, 1, 16, 16)]
    assert batch.optical.shape == batch.target.shape
    assert batch.weight.eq(1).all()
    assert batch.focus.all()


def test_ground_of_one_grey_stays_so_at_every_scale() -> None:
    arrays = make_sharpening(1, np.random.default_rng(0))
    for name in ("pan", "ms"):
        arrays[name][:] = 3210
    batch = sharpen_batch(arrays)
    for image in (*batch.inputs, batch.optical, batch.target):
        assert torch.allclose(image, torch.tensor(0.321), atol=1e-6)


@pytest.mark.parametrize(("guide", "gain"), [("PAN", 0.15), ("B02", SENTINEL2_GAINS["B02"])])
def test_the_sharp_band_keeps_its_own_contrast_at_the_frequency_that_coarse_pixels_can_just_tell(guide: str, gain: float) -> None:
    """Stripes as wide as a coarse pixel; 0.15 is the middle of what Aiazzi et al. 2006 and Vivone et al. 2015 give for panchromatic."""
    arrays = make_sharpening(1, np.random.default_rng(0), size_px=128)
    stripes = np.cos(np.pi * (np.arange(128) - 1.5) / 4)
    arrays["pan"] = np.broadcast_to(np.round(4000 + 3000 * stripes), (1, 1, 128, 128)).astype(np.uint16)
    pan = make_sharpening_batch(arrays, SHARPENING._replace(guide_bands=(guide,)), TrainSettings()).inputs[1]
    seen = pan[0, 0, 16, 8:24]
    assert ((seen[::2] - seen[1::2]) / 0.6).tolist() == pytest.approx([gain] * 8, abs=0.01)


def test_what_is_not_valid_moves_nothing_and_untrusts_what_saw_it() -> None:
    """The pixel at 9, 9 is under coarse pixel 2, 2; the blur of ratio 4 reaches 8 pixels around the middle of each."""
    arrays = make_sharpening(1, np.random.default_rng(0), size_px=128)
    arrays["mask"][:, CHANNELS.index("valid"), 9, 9] = 0
    first = sharpen_batch(arrays)
    arrays["ms"][:, :, 9, 9] = 9999
    arrays["pan"][:, :, 36:40, 36:40] = 1
    second = sharpen_batch(arrays)
    for ours, theirs in zip((*first.inputs, *first[1:]), (*second.inputs, *second[1:]), strict=True):
        assert torch.equal(ours, theirs)
    trusted = first.weight[0, 0] > 0
    assert not trusted[4:12, 4:12].any()
    assert trusted[20:].all()
    assert trusted[:, 20:].all()


def test_clouds_are_not_compared() -> None:
    arrays = make_sharpening(1, np.random.default_rng(0))
    arrays["mask"][:, CHANNELS.index("cloud"), 3, 3] = 255
    arrays["mask"][:, CHANNELS.index("shadow"), 3, 4] = 51
    weight = sharpen_batch(arrays).weight[0, 0]
    assert weight[3, 3] == 0
    assert weight[3, 4].item() == pytest.approx(0.8)
    assert weight.sum().item() == pytest.approx(weight.numel() - 1.2)


def test_fusion_asks_for_the_middle_date_where_all_three_are_clear() -> None:
    arrays = make_fusion(1, np.random.default_rng(0))
    for date, place in enumerate((2, 3, 4)):
        arrays["mask"][:, date, 0, place, place] = 255
    arrays["mask"][:, 0, 2, 9, 9] = 0
    batch = make_fusion_batch(arrays, Signature(BANDS, (), (), (), "spatiotemporal-fusion", 4), TrainSettings())
    assert [tuple(image.shape) for image in batch.inputs] == [(1, 3, 4, 8, 8), (1, 2, 4, 32, 32)]
    fine = torch.from_numpy(arrays["fine"].astype(np.float32)) / 10_000
    assert torch.equal(batch.target, fine[:, 1])
    assert torch.equal(batch.inputs[1][:, 1], fine[:, 2])
    hidden = {tuple(place) for place in (batch.weight[0, 0] == 0).nonzero().tolist()}
    assert hidden == {(2, 2), (3, 3), (4, 4), (9, 9)}
    assert batch.inputs[1][0, 0, :, 9, 9].eq(0).all()


def test_a_missing_coarse_pixel_is_the_mean_of_other_dates_and_nothing_is_said_under_that_of_the_middle() -> None:
    arrays = make_fusion(1, np.random.default_rng(0))
    arrays["mask"][:, :, :2], arrays["mask"][:, :, 2] = 0, 255
    whole = torch.from_numpy(arrays["coarse"].astype(np.float32)) / 10_000
    arrays["coarse"][:, 1, :, 2, 3] = 0
    arrays["coarse"][:, :, :, 5, 5] = 0
    arrays["mask"][:, :, 2, 20:24, 20:24] = 0
    prepared = prepare_fusion(arrays, Signature(BANDS, (), (), (), "spatiotemporal-fusion", 4), TrainSettings())
    filled = prepared.inputs[0]
    torch.testing.assert_close(filled[:, 1, :, 2, 3], (whole[:, 0, :, 2, 3] + whole[:, 2, :, 2, 3]) / 2)
    assert filled[:, :, :, 5, 5].eq(0).all()
    assert torch.equal(filled[:, :, :, 0], whole[:, :, :, 0])
    expected = torch.ones(1, 32, 32, dtype=torch.bool)
    expected[:, 8:12, 12:16] = expected[:, 20:24, 20:24] = False
    assert torch.equal(prepared.usable, expected)


def test_a_snapshot_is_estimated_from_one_picture_through_the_same_aperture_each_time() -> None:
    arrays, facts = make_snapshot(2, np.random.default_rng(0)), Signature(BANDS, (), (), (), "snapshot-reconstruction")
    settings = TrainSettings(network=S2SnapshotSettings(name="s2snapshot", base="first"))
    batch = make_snapshot_batch(arrays, facts, settings)
    estimate, aperture, picture = batch.inputs
    torch.testing.assert_close(picture, measure_cube(make_camera(make_aperture(32, 32), 4), batch.target))
    assert estimate.shape == batch.target.shape == (2, 4, 32, 32)
    assert torch.equal(aperture[0, 0], make_aperture(32, 32))
    assert 0.45 < aperture.mean().item() < 0.55
    assert estimate[:, :, aperture[0, 0] == 0].abs().max() == 0, "the first estimate is dark behind closed apertures"
    open_half = aperture[0, 0] > 0
    assert (estimate - batch.target)[:, :, open_half].abs().mean() < batch.target.mean()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sample_is_cut_in_order(count: int) -> None:
    batch = sharpen_batch(make_sharpening(4, np.random.default_rng(0)))
    parts = batch.cut(count)
    assert [len(part.target) for part in parts] == [4 // count] * count
    for place, whole in enumerate(batch.inputs):
        assert torch.equal(torch.cat([part.inputs[place] for part in parts]), whole)
    for name in ("target", "weight", "optical", "cloud", "valid_input", "focus"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


SERIES = Signature(("B02", "B03", "B04"), ("VV", "VH"), (0.2,) * 3, (0.1,) * 3, series=True)
FROM_DATES = TrainSettings(network=AfsstSettings(base="dates"))


def series() -> dict[str, Any]:
    return {**make_series(4, np.random.default_rng(0)), "days": np.array([[-15, 5], [-1, 2], [-3, 3], [-9, 4]], np.float32)}


def test_dates_are_reflectance_trust_and_days_and_what_is_rather_cloudy_is_not_trusted() -> None:
    arrays = series()
    arrays["around_clear"][0, 0, 0, :3] = 127, 128, 204
    dates = read_dates(arrays)
    assert dates.images.shape == (4, 2, 3, 24, 24)
    assert dates.clear.shape == (4, 2, 1, 24, 24)
    assert dates.clear[0, 0, 0, 0, :4].tolist() == pytest.approx([0, 128 / 255, 0.8, 1])
    assert dates.images[0, 0, :, 0, 0].eq(0).all(), "what is not trusted is not shown"
    assert dates.images[1, 1, 2, 3, 4].item() == pytest.approx(arrays["around"][1, 1, 2, 3, 4] / 10_000)
    assert dates.days.tolist() == arrays["days"].tolist()


def test_days_that_are_not_known_are_even_for_that_sample_alone() -> None:
    arrays = series()
    arrays["days"][2, 0] = np.nan
    days = read_dates(arrays).days.tolist()
    assert days == [[-15, 5], [-1, 2], [-1, 1], [-9, 4]]
    del arrays["days"]
    assert read_dates(arrays).days.tolist() == [[-1, 1]] * 4
    assert read_days({}, torch.zeros(2, 1), even=(-1.0, 0.0, 1.0)).tolist() == [[-1, 0, 1]] * 2


def test_only_a_network_that_looks_at_dates_is_given_them() -> None:
    arrays = series()
    batch = make_clearing_batch(arrays, SERIES, FROM_DATES)
    assert [tuple(one.shape[:2]) for one in batch.inputs] == [(4, 3), (4, 2), (4, 1), (4, 2), (4, 2), (4, 2)]
    plain = make_clearing_batch(arrays, SERIES, TrainSettings())
    assert plain.dates is None
    assert len(plain.inputs) == 3
    bare = make_clearing_batch({name: arrays[name] for name in PATCH_ARRAYS}, SERIES, TrainSettings())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain[:-1], bare[:-1], strict=True))


def test_dates_are_cut_and_moved_with_their_batch() -> None:
    batch = make_clearing_batch(series(), SERIES, FROM_DATES)
    parts = batch.cut(2)
    for place, whole in enumerate(batch.inputs):
        assert torch.equal(torch.cat([part.inputs[place] for part in parts]), whole)
    assert {tensor.device.type for tensor in batch.to(torch.device("meta")).inputs} == {"meta"}
    assert [len(part.inputs) for part in make_clearing_batch(series(), SERIES, TrainSettings()).cut(4)] == [3] * 4
