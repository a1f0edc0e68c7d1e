"""Laws of real apertures: what a file says is what cubes are seen through, and the same crop is always seen alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from scipy.io import savemat

from sereno.model.apertures import load_aperture, make_aperture, open_pattern, read_pattern, read_picture, see_cubes
from sereno.model.config import TrainSettings
from sereno.model.snapshot import make_camera, measure_cube
from sereno.pipeline.errors import ConfigError, DataError, MissingError

MASK = np.random.default_rng(1).random((40, 48)).astype(np.float32)
CUBE = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))


def settings_of(path: Path | None = None, **camera: Any) -> TrainSettings:
    file = {} if path is None else {"file": str(path)}
    return load_aperture(TrainSettings.model_validate({"network": {"name": "s2snapshot"}, "crop_px": 16, "aperture": file | camera}))


def write_mask(path: Path, mask: Any = MASK) -> Path:
    if path.suffix == ".npy":
        np.save(path, mask)
    elif path.suffix == ".mat":
        savemat(path, {"mask": mask})
    else:
        with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "w", "PNG", *mask.shape[::-1], 1, dtype=mask.dtype) as file:
            file.write(mask, 1)
    return path


@pytest.mark.parametrize("name", ["m.npy", "m.mat", "m.png"])
def test_a_mask_is_kept_to_one_part_in_65535_whatever_its_file(tmp_path: Path, name: str) -> None:
    stored = np.rint(MASK * 65535).astype(np.uint16) if name == "m.png" else MASK
    pattern = read_pattern(write_mask(tmp_path / name, stored))
    assert pattern.shape == MASK.shape
    np.testing.assert_allclose(open_pattern(pattern).numpy(), MASK, rtol=0, atol=0.5 / 65535 + 1e-7)


def test_a_mask_of_0_and_1_is_as_open_in_every_type(tmp_path: Path) -> None:
    binary = (MASK > 0.5).astype(np.uint8)
    for name, mask in (("a.npy", binary), ("b.npy", binary > 0), ("c.npy", binary.astype(float)), ("d.png", binary * np.uint8(255))):
        assert np.array_equal(open_pattern(read_pattern(write_mask(tmp_path / name, mask))).numpy(), binary)


def test_settings_keep_the_mask_and_forget_where_it_lay(tmp_path: Path) -> None:
    settings = settings_of(write_mask(tmp_path / "m.npy"))
    (tmp_path / "m.npy").unlink()
    assert settings.aperture is not None
    assert settings.aperture.file == "m.npy"
    again = TrainSettings.model_validate_json(settings.to_json())
    assert again == settings
    assert torch.equal(see_cubes(CUBE, again).camera.mask, torch.from_numpy(np.rint(MASK * 65535) / 65535).float()[:16, :24])
    assert str(tmp_path) not in settings.to_json()


def test_away_from_training_cubes_lie_under_the_upper_left_corner_without_noise(tmp_path: Path) -> None:
    settings = settings_of(write_mask(tmp_path / "m.npy"), shift_px=3, electrons=100, read_noise=0.1)
    seen = see_cubes(CUBE, settings)
    torch.testing.assert_close(seen.picture, measure_cube(make_camera(torch.from_numpy(MASK[:16, :24]), 3, shift_px=3), CUBE))
    assert seen.picture.shape == (2, 16, 24 + 6)


def test_in_training_each_crop_is_seen_through_a_piece_of_its_own_and_always_the_same(tmp_path: Path) -> None:
    settings = settings_of(write_mask(tmp_path / "m.npy"))
    seen, mask = see_cubes(CUBE, settings, [7, 8]), torch.from_numpy(MASK)
    places = {
        (crop, top, left)
        for crop in range(2)
        for top in range(25)
        for left in range(25)
        if (seen.camera.mask[crop, 0] - mask[top : top + 16, left : left + 24]).abs().max() < 1e-4
    }
    assert sorted(crop for crop, _, _ in places) == [0, 1]
    assert len({place[1:] for place in places}) == 2
    for alone, crop in enumerate((7, 8)):  # whoever else is in the batch
        once = see_cubes(CUBE[alone : alone + 1], settings, [crop])
        assert torch.equal(once.camera.mask[0], seen.camera.mask[alone])
        torch.testing.assert_close(once.picture[0], measure_cube(make_camera(seen.camera.mask[alone, 0], 3), CUBE[alone : alone + 1])[0])
    other = settings.model_copy(update={"seed": 1})
    assert not torch.equal(see_cubes(CUBE, other, [7, 8]).camera.mask, seen.camera.mask)


def test_noise_has_the_variance_of_shot_and_read_noise_and_is_the_same_for_the_same_crop() -> None:
    settings, cube = settings_of(electrons=400, read_noise=0.02), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    clean = see_cubes(cube, settings).picture
    noisy = torch.cat([see_cubes(cube, settings, [crop]).picture for crop in range(300)])
    variance = (noisy - clean).square().mean(dim=0)
    ratio = variance / (clean[0] / 400 + 0.02**2)
    assert ratio.mean().item() == pytest.approx(1, abs=0.01)
    assert ratio.std().item() < 0.15
    assert (noisy - clean).mean().abs() < 1e-3
    assert torch.equal(see_cubes(cube, settings, [5]).picture, noisy[5:6])


def test_the_aperture_that_we_made_up_repeats_so_that_tiles_see_what_crops_saw() -> None:
    small = make_aperture(64, 64)
    assert torch.equal(make_aperture(200, 150)[64:128, :64], small)
    assert torch.equal(make_aperture(40, 30), small[:40, :30])
    assert 0.45 < small.mean() < 0.55
    assert torch.equal(see_cubes(CUBE, TrainSettings()).camera.mask, small[:16, :24])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((3, 40, 40)), r"holds an array of shape \(3, 40, 40\), expected one image of rows x columns"),
        (np.ones(40), r"holds an array of shape \(40,\), expected one image"),
        (np.full((40, 40), np.nan), "expected finite real numbers at every pixel"),
        (np.ones((40, 40), complex), "holds complex128 values, expected finite real numbers"),
        (np.full((40, 40), 255.0), "values up to 255, but a mask lets through shares of light from 0 up to 1: divide them"),
        (np.full((40, 40), -0.5), "values from -0.5 to -0.5, but a mask lets through"),
        (np.zeros((40, 40), np.uint8), "values from 0 to 0, but a mask lets through"),
    ],
)
def test_what_is_no_mask_is_one_line(tmp_path: Path, mask: Any, words: str) -> None:
    np.save(tmp_path / "m.npy", mask)
    with pytest.raises(DataError, match=rf"^aperture .*m\.npy.*{words}") as caught:
        read_pattern(tmp_path / "m.npy")
    assert "\n" not in str(caught.value)


def test_of_several_images_in_a_matlab_file_the_one_that_is_named_so_is_taken(tmp_path: Path) -> None:
    savemat(tmp_path / "m.mat", {"mask_3d_shift": np.ones((4, 5, 6)), "Mask": MASK, "other": MASK[:9]})
    assert np.array_equal(read_picture(tmp_path / "m.mat", what="aperture", names=("mask",)), MASK)
    with pytest.raises(DataError, match=r"mask_3d_shift of shape \(4, 5, 6\), Mask of shape.*or under the name 'meas'"):
        read_picture(tmp_path / "m.mat", what="measurement", names=("meas",))


def test_a_mask_smaller_than_what_is_seen_through_it_is_refused_with_both_sizes(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.npy", MASK[:20, :20])
    with pytest.raises(ConfigError, match=r"'train\.aperture\.file' .* has 12 x 20 pixels, but crops have 16 x 16: lower 'train\.crop_px'"):
        settings_of(write_mask(tmp_path / "small.npy", MASK[:12, :20]))
    with pytest.raises(DataError, match=r"images of 16 x 24 pixels do not fit under the aperture m\.npy, which has 20 x 20"):
        see_cubes(CUBE, settings_of(tmp_path / "m.npy"))
    with pytest.raises(MissingError, match=r"aperture .*none\.npy does not exist"):
        settings_of(tmp_path / "none.npy")


def test_only_the_network_of_snapshots_has_an_aperture() -> None:
    with pytest.raises(ValueError, match=r"'aperture' is the camera of snapshots, which network 'afsst' does not see"):
        TrainSettings.model_validate({"aperture": {"shift_px": 1}})
    assert "aperture" not in TrainSettings().to_json()
