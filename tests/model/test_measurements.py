"""Laws of real pictures: the cube of a picture is what evaluate says of the same cube, however the picture is stored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from scipy.io import savemat
from task_samples import make_snapshot

from sereno.model.apertures import see_cubes
from sereno.model.batches import Signature, make_snapshot_batch
from sereno.model.checkpoint import CheckpointMeta, Loaded, load_checkpoint, save_checkpoint
from sereno.model.config import PredictSettings, TrainSettings
from sereno.model.measurements import Developing, open_measurement
from sereno.model.predict import predict_measurement
from sereno.model.snapshot import make_camera, measure_cube
from sereno.model.tasks import SNAPSHOT, create_network
from sereno.pipeline.errors import DataError, MissingError, TrainingError

WAVELENGTHS = ("450nm", "500nm", "550nm", "600nm")
SIGNATURE = Signature(WAVELENGTHS, (), (0.25,) * 4, (0.1,) * 4, "snapshot-reconstruction")
NETWORK = {"name": "s2snapshot", "width": 16, "head_dim": 8, "stages": 1, "blocks": 2, "expansion": 1, "consistency": 0.75, "base": "open"}
MASK = (np.random.default_rng(4).random((32, 32)) * 0.9 + 0.1).astype(np.float32)


def write_checkpoint(folder: Path, *, camera: dict[str, Any] | None = None, task: str = "snapshot-reconstruction") -> Path:
    """A checkpoint of an untrained network whose answers differ from its estimate, with the aperture `MASK` unless `camera` says else."""
    from sereno.model.apertures import load_aperture

    np.save(folder / "mask.npy", MASK)
    chosen = {"file": str(folder / "mask.npy")} if camera is None else camera
    settings = load_aperture(TrainSettings.model_validate({"network": NETWORK, "crop_px": 16, "aperture": chosen}))
    network = create_network(SNAPSHOT, settings.network, SIGNATURE)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(8)
        for weights in network.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.05)
    meta = CheckpointMeta(
        settings=settings,
        bands=WAVELENGTHS,
        sar_bands=(),
        training_mean=SIGNATURE.mean,
        training_std=SIGNATURE.std,
        task="snapshot-reconstruction",
        dataset_sha256="0",
        step=1,
    )
    save_checkpoint(folder / "c.safetensors", network.state_dict(), meta)
    return folder / "c.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    write_checkpoint(folder)
    return folder


def load(folder: Path) -> Loaded:
    return load_checkpoint(folder / "c.safetensors", torch.device("cpu"))


def draw_stored() -> dict[str, Any]:
    return make_snapshot(1, np.random.default_rng(6))


def see(folder: Path, stored: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The picture of a cube, as a user's camera would give it."""
    cube = torch.from_numpy(stored["cube"].astype(np.float32) / 10_000)
    return measure_cube(make_camera(torch.from_numpy(MASK), 4), cube)[0].numpy()


def read(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as file:
        values: np.ndarray[Any, Any] = file.read()
    return values


@pytest.mark.parametrize("name", ["y.npy", "y.mat"])
@pytest.mark.parametrize("own_mask", [True, False])
def test_the_cube_of_a_measured_picture_is_what_evaluate_answers_for_that_cube(
    folder: Path, tmp_path: Path, name: str, own_mask: bool
) -> None:
    stored, loaded, output = draw_stored(), load(folder), tmp_path / "cube.tif"
    picture = see(folder, stored)
    np.save(tmp_path / "y.npy", picture)
    savemat(tmp_path / "y.mat", {"meas": picture, "note": "a"})
    aperture = folder / "mask.npy" if own_mask else None
    predict_measurement(folder / "c.safetensors", tmp_path / name, output, PredictSettings(), aperture=aperture)
    batch = make_snapshot_batch(stored, SIGNATURE, loaded.settings)
    with torch.inference_mode():
        expected = loaded.network(*batch.inputs)[0].numpy()
    assert np.abs(expected - batch.optical[0].numpy()).max() > 0.01, "the network does something"
    np.testing.assert_allclose(read(output), expected, rtol=0, atol=2e-5)
    record = json.loads(output.with_suffix(".json").read_text())
    assert (record["shape"], record["bands"], record["tiles"]["run"]) == ([32, 32], list(WAVELENGTHS), 1)
    misfit = measure_cube(make_camera(torch.from_numpy(MASK), 4), torch.from_numpy(expected)[None])[0].numpy() - picture
    assert record["misfit"] == pytest.approx(np.sqrt((misfit**2).sum() / (picture**2).sum()), rel=1e-3)
    assert record["aperture"]["sha256"] == loaded.settings.aperture.pattern.sha256  # type: ignore[union-attr]
    assert "values" not in record["checkpoint"]["settings"]["aperture"]["pattern"]


def test_equal_pictures_give_equal_bytes_and_the_cube_says_its_wavelengths(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", see(folder, draw_stored()))
    for name in ("a", "b"):
        predict_measurement(folder / "c.safetensors", tmp_path / "y.npy", tmp_path / f"{name}.tif", PredictSettings())
    for suffix in ("tif", "json"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.descriptions, file.dtypes[0], file.crs) == (WAVELENGTHS, "float32", None)


def test_integers_and_scales_are_the_same_light(folder: Path, tmp_path: Path) -> None:
    picture, loaded = see(folder, draw_stored()), load(folder)
    counts = np.rint(picture * 4000 + 100).astype(np.uint16)
    np.save(tmp_path / "y.npy", counts)
    settings = PredictSettings(measurement_scale=4100, measurement_black=100)
    scaled = open_measurement(tmp_path / "y.npy", loaded, settings).seen.picture[0].numpy()
    np.testing.assert_allclose(scaled, picture, rtol=0, atol=0.6 / 4000)
    np.save(tmp_path / "y.npy", picture * 37)
    relative = open_measurement(tmp_path / "y.npy", loaded, PredictSettings(measurement_scale="training"))
    flat = measure_cube(make_camera(torch.from_numpy(MASK), 4), torch.full((1, 4, 32, 32), 0.25))
    assert relative.seen.picture.mean().item() == pytest.approx(flat.mean().item(), rel=1e-5)
    np.save(tmp_path / "y.npy", np.rint(picture / picture.max() * 255).astype(np.uint8))
    assert open_measurement(tmp_path / "y.npy", loaded, PredictSettings()).seen.picture.max().item() == pytest.approx(1)


def test_a_picture_far_brighter_than_training_is_warned_of(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = see(folder, draw_stored())
    for factor, warnings in ((1, 0), (100, 1), (0.01, 1)):
        np.save(tmp_path / "y.npy", picture * factor)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            open_measurement(tmp_path / "y.npy", load(folder), PredictSettings())
        assert len(caplog.messages) == warnings
    assert "times as bright as training cubes" in caplog.text
    assert "measurement_scale" in caplog.text


def test_tiles_of_a_network_that_returns_its_estimate_give_the_estimate_of_the_whole_picture(folder: Path, tmp_path: Path) -> None:
    """An estimate of each tile alone would miss the light that other tiles sent there."""
    cube = torch.rand(1, 4, 70, 90, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(70, 90, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "y.npy", measure_cube(make_camera(mask, 4), cube)[0].numpy())
    np.save(tmp_path / "m.npy", mask.numpy())
    shapes = []

    def give_back(estimate: torch.Tensor, aperture: torch.Tensor) -> torch.Tensor:
        shapes.append((estimate.shape[2:], aperture.shape[2:]))
        return estimate

    loaded = load(folder)._replace(network=give_back)  # type: ignore[arg-type]
    settings = PredictSettings(tile_px=32, overlap_px=8)
    measured = open_measurement(tmp_path / "y.npy", loaded, settings, aperture=tmp_path / "m.npy")
    walk = Developing(measured, loaded, settings)
    image = np.concatenate([part.image for part in walk.walk()], axis=1)
    from sereno.model.snapshot import approach_picture, estimate_open

    whole = approach_picture(measured.seen.camera, estimate_open(*measured.seen), measured.seen.picture, share=0.75)
    np.testing.assert_allclose(image, whole[0].numpy(), rtol=0, atol=1e-6)
    assert walk.tiles_run == len(shapes) == walk.rows.n_tiles * walk.columns.n_tiles > 4
    assert all(ours == theirs for ours, theirs in shapes)


def test_without_any_mask_it_is_the_one_that_we_made_up(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, camera={"shift_px": 1})
    loaded = load_checkpoint(checkpoint, torch.device("cpu"))
    cube = torch.rand(1, 4, 24, 40, generator=torch.Generator().manual_seed(2))
    seen = see_cubes(cube, loaded.settings)
    np.save(tmp_path / "y.npy", seen.picture[0].numpy())
    measured = open_measurement(tmp_path / "y.npy", loaded, PredictSettings())
    assert torch.equal(measured.seen.camera.mask, seen.camera.mask)
    torch.testing.assert_close(measured.seen.picture, seen.picture)
    np.save(tmp_path / "y.npy", np.ones((24, 3)))
    with pytest.raises(DataError, match=r"has 3 columns, but 4 bands shifted by 1 columns each spread over 4 or more"):
        open_measurement(tmp_path / "y.npy", loaded, PredictSettings())


@pytest.mark.parametrize(
    ("picture", "how", "words"),
    [
        (np.ones((32, 32)), {}, r"y\.npy: 32 x 32 pixels, but a mask of 32 x 32 pixels and shifts up to 6 columns give 32 x 38 pixels"),
        (np.ones((31, 38)), {}, r"31 x 38 pixels, but a mask of 32 x 32 pixels"),
        (np.ones((2, 32, 38)), {}, r"holds an array of shape \(2, 32, 38\), expected one image of rows x columns"),
        (np.full((32, 38), np.inf), {}, "expected finite real numbers"),
        (np.ones((32, 38)), {"measurement_black": 2}, "'predict.measurement_black' 2 is not below white, 1"),
        (np.ones((32, 38)), {"measurement_black": 2, "measurement_scale": "training"}, "-1 above black on average"),
    ],
)
def test_what_is_wrong_with_a_picture_is_one_line(folder: Path, tmp_path: Path, picture: Any, how: dict[str, Any], words: str) -> None:
    np.save(tmp_path / "y.npy", picture)
    with pytest.raises(DataError, match=words) as caught:
        open_measurement(tmp_path / "y.npy", load(folder), PredictSettings.model_validate(how))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_task_and_a_picture_that_is_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    with pytest.raises(MissingError, match=r"measurement .*none\.npy does not exist"):
        open_measurement(tmp_path / "none.npy", loaded, PredictSettings())
    other = loaded._replace(meta=loaded.meta.model_copy(update={"task": "pansharpening"}))
    with pytest.raises(DataError, match=r"is a picture of a snapshot camera, but the checkpoint was trained for pansharpening"):
        open_measurement(tmp_path / "y.npy", other, PredictSettings())


def test_no_numbers_from_the_network_end_in_an_error_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", see(folder, draw_stored()))
    loaded = load(folder)._replace(network=lambda estimate, _: estimate / 0)  # type: ignore[arg-type]
    walk = Developing(open_measurement(tmp_path / "y.npy", loaded, PredictSettings()), loaded, PredictSettings())
    with pytest.raises(TrainingError, match="no numbers"):
        list(walk.walk())
