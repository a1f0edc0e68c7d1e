"""Laws of trained networks at rest: what was saved is what is loaded, and nothing else is taken for it."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sereno.model import checkpoint
from sereno.model.checkpoint import (
    CheckpointMeta,
    check_bands,
    choose_device,
    hash_weights,
    identify_run,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from sereno.model.config import AfsstSettings, TrainSettings
from sereno.model.tasks import CLOUD_REMOVAL, Signature, create_network
from sereno.pipeline.errors import ConfigError, DataError, MissingError, StoreError, TrainingError

CPU = torch.device("cpu")
SETTINGS = TrainSettings(network=AfsstSettings(width=8, head_dim=4, levels=2, blocks=1, window_px=4), steps=7)
META = CheckpointMeta(
    settings=SETTINGS,
    bands=("B02", "B03", "B04"),
    sar_bands=("VV", "VH"),
    training_mean=(0.1, 0.2, 0.3),
    training_std=(0.05, 0.06, 0.07),
    dataset_sha256="0" * 64,
    step=5,
    best_loss=0.01,
    best_psnr_db=28.5,
)


def make_network(seed: int = 1) -> torch.nn.Module:
    signature = Signature(META.bands, META.sar_bands, META.training_mean, META.training_std)
    return create_network(CLOUD_REMOVAL, SETTINGS.network, signature, seed=seed).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint.safetensors"
    save_checkpoint(path, make_network().state_dict(), META)
    return path


def test_a_checkpoint_gives_back_the_network_and_what_it_says_of_itself(saved: Path) -> None:
    loaded = load_checkpoint(saved, CPU)
    inputs = torch.rand(1, 3, 9, 12), torch.rand(1, 2, 9, 12), torch.rand(1, 1, 9, 12)
    assert torch.equal(loaded.network(*inputs), make_network()(*inputs))
    assert not loaded.network.training
    assert (loaded.settings, loaded.bands, loaded.sar_bands) == (SETTINGS, META.bands, META.sar_bands)
    assert loaded.training_mean.tolist() == pytest.approx(META.training_mean)
    assert loaded.meta.model_copy(update={"weights_sha256": ""}) == META


def test_equal_content_gives_equal_bytes(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again", make_network().state_dict(), META)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    save_checkpoint(tmp_path / "other", make_network(seed=2).state_dict(), META)
    assert (tmp_path / "other").read_bytes() != saved.read_bytes()


def test_no_leftover_lies_beside_a_checkpoint(saved: Path) -> None:
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_changed_weight_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    saved.write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors.*SHA-256 differs.*sereno train"):
        load_checkpoint(saved, CPU)


@pytest.mark.parametrize("keep", [0, 5, 400, -20])
def test_a_checkpoint_cut_short_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged.*sereno train"):
        load_checkpoint(saved, CPU)


def test_weights_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="no checkpoint of ours"):
        load_checkpoint(path, CPU)
    save_checkpoint(path, {"weight": torch.ones(3)}, META)
    with pytest.raises(TrainingError, match="does not fit this version of the network"):
        load_checkpoint(path, CPU)
    save_checkpoint(path, make_network().state_dict(), META.model_copy(update={"task": "unheard-of"}))
    with pytest.raises(TrainingError, match=r"'unheard-of', known here: \['cloud-removal'\]"):
        load_checkpoint(path, CPU)


def test_a_missing_checkpoint_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing\.safetensors does not exist: run `sereno train`"):
        load_checkpoint(tmp_path / "nothing.safetensors", CPU)


def test_any_tool_can_read_the_weights(saved: Path) -> None:
    assert hash_weights(load_file(saved)) == load_checkpoint(saved, CPU).meta.weights_sha256


def test_bands_must_be_those_of_training_in_their_order(saved: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(saved, CPU)
    check_bands(loaded, ["B02", "B03", "B04"], ["VV", "VH"], where=tmp_path)
    with pytest.raises(DataError, match=r"\['B03', 'B02', 'B04'\].*trained with \['B02', 'B03', 'B04'\]"):
        check_bands(loaded, ["B03", "B02", "B04"], ["VV", "VH"], where=tmp_path)
    with pytest.raises(DataError, match=r"SAR \[\]"):
        check_bands(loaded, ["B02", "B03", "B04"], [], where=tmp_path)


def test_a_network_without_sar_takes_any_sar(tmp_path: Path) -> None:
    blind = SETTINGS.model_copy(update={"network": SETTINGS.network.model_copy(update={"use_sar": False})})
    loaded = checkpoint.Loaded(torch.nn.Identity(), blind, META.bands, META.sar_bands, torch.zeros(3), META)
    check_bands(loaded, META.bands, [], where=tmp_path)


def test_state_comes_back_for_the_same_settings_data_and_code_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, identity = tmp_path / "state.pt", identify_run(SETTINGS, "a" * 64, "code")
    assert load_state(path, identity=identity) is None
    save_state(path, {"step": 3, "weights": {"w": torch.ones(2)}, "rows": [{"val": None}]}, identity=identity)
    state = load_state(path, identity=identity)
    assert state is not None
    assert (state["step"], state["rows"], state["weights"]["w"].tolist()) == (3, [{"val": None}], [1.0, 1.0])
    assert not caplog.records
    others = ((SETTINGS, "b" * 64, "code"), (SETTINGS.model_copy(update={"lr": 1e-5}), "a" * 64, "code"), (SETTINGS, "a" * 64, "changed"))
    for other in others:
        assert load_state(path, identity=identify_run(*other)) is None
        assert "belongs to other settings, another dataset or other code" in caplog.records[-1].message


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 broken"])
def test_a_damaged_state_is_left_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_state(path, identity="x") is None
    assert "starting anew" in caplog.text


@pytest.mark.parametrize("largest_file", [0, 1000])
def test_a_disk_that_takes_no_more_ends_in_one_line_and_keeps_the_last_state(tmp_path: Path, largest_file: int) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3}, identity="x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        with pytest.raises(StoreError, match="free space"):
            save_state(path, {"weights": torch.rand(10_000)}, identity="x")
        with pytest.raises(StoreError, match="free space"):
            save_checkpoint(tmp_path / "c.safetensors", make_network().state_dict(), META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(path, identity="x") == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_no_code_runs_when_a_state_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"identity": "x", "state": {"step": Path("harmless here, a call elsewhere")}}, path)
    assert load_state(path, identity="x") is None


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here.*set 'device' to auto or cpu"):
            choose_device(name)
