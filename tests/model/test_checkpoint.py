"""Laws of trained networks at rest: what was saved is what is loaded, and nothing else is taken for it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sereno.model import checkpoint
from sereno.model.batches import Signature
from sereno.model.checkpoint import (
    CheckpointMeta,
    check_bands,
    check_question,
    choose_device,
    describe_differences,
    hash_weights,
    identify_run,
    load_checkpoint,
    load_start,
    load_state,
    previous_of,
    save_checkpoint,
    save_state,
)
from sereno.model.config import AfsstSettings, ApertureSettings, CustomSettings, SarRange, TrainSettings, UnetSettings
from sereno.model.tasks import CLOUD_REMOVAL, create_network
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
    said = "is damaged.*sereno train" if abs(keep) > 5 else "is no checkpoint of sereno"
    with pytest.raises(TrainingError, match=rf"checkpoint\.safetensors {said}") as caught:
        load_checkpoint(saved, CPU)
    assert ("delete" in str(caught.value)) == (abs(keep) > 5), "only what says that it is ours may be deleted"


def test_a_training_state_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"step": 3}, identity={})
    with pytest.raises(
        TrainingError, match=r"state\.pt is a training state.*: take checkpoint\.safetensors or last\.safetensors beside it$"
    ):
        load_checkpoint(tmp_path / "state.pt", CPU)


def test_a_checkpoint_of_another_version_is_not_called_damaged(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"sereno-checkpoint/1", b"sereno-checkpoint/9"))
    with pytest.raises(TrainingError, match="use the version of sereno that wrote it") as caught:
        load_checkpoint(saved, CPU)
    assert "damaged" not in str(caught.value)


def test_weights_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="no checkpoint of sereno: name one"):
        load_checkpoint(path, CPU)
    save_checkpoint(path, {"weight": torch.ones(3)}, META)
    with pytest.raises(TrainingError, match="does not fit this version of the network"):
        load_checkpoint(path, CPU)
    save_checkpoint(path, make_network().state_dict(), META.model_copy(update={"task": "unheard-of"}))
    with pytest.raises(TrainingError, match=r"'task': Input should be 'cloud-removal'.*seen 'unheard-of'"):
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


def test_a_network_that_looks_at_dates_needs_data_with_dates(tmp_path: Path) -> None:
    dated = SETTINGS.model_copy(update={"network": SETTINGS.network.model_copy(update={"base": "dates"})})
    meta = META.model_copy(update={"settings": dated})
    assert meta.signature.series
    assert not META.signature.series
    network = create_network(CLOUD_REMOVAL, dated.network, meta.signature)
    save_checkpoint(tmp_path / "c.safetensors", network.state_dict(), meta)
    loaded = load_checkpoint(tmp_path / "c.safetensors", CPU)
    check_question(loaded, meta.signature, where=tmp_path)
    with pytest.raises(DataError, match=r"d\.json has no clear images before and after .*`pipeline\.query\.series: true`"):
        check_question(loaded, META.signature, where=Path("d.json"))


def test_data_with_dates_serve_a_network_that_does_not_look_at_them(saved: Path) -> None:
    check_question(load_checkpoint(saved, CPU), META.signature._replace(series=True), where=saved)


def test_a_network_without_sar_takes_any_sar(tmp_path: Path) -> None:
    blind = SETTINGS.model_copy(update={"network": SETTINGS.network.model_copy(update={"use_sar": False})})
    loaded = checkpoint.Loaded(torch.nn.Identity(), blind, META.bands, META.sar_bands, torch.zeros(3), META)
    check_bands(loaded, META.bands, [], where=tmp_path)


def test_a_state_comes_back_for_the_same_run_and_another_run_is_told_what_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, identity = tmp_path / "state.pt", identify_run(SETTINGS, "a" * 64, "code")
    assert load_state(path, identity=identity) is None
    save_state(path, {"step": 3, "weights": {"w": torch.ones(2)}, "rows": [{"val": None}]}, identity=identity)
    state = load_state(path, identity=identity)
    assert state is not None
    assert (state["step"], state["rows"], state["weights"]["w"].tolist()) == (3, [{"val": None}], [1.0, 1.0])
    assert not caplog.records
    wider = SETTINGS.network.model_copy(update={"width": 16})
    others = {
        (SETTINGS, "b" * 64, "code"): "the dataset has changed",
        (SETTINGS.model_copy(update={"lr": 1e-5}), "a" * 64, "code"): "'train.lr' was 0.001 and is 1e-05",
        (SETTINGS.model_copy(update={"network": wider}), "a" * 64, "code"): "'train.network.width' was 8 and is 16",
        (SETTINGS, "a" * 64, "changed"): "the code has changed",
        (SETTINGS.model_copy(update={"lr": 1e-5}), "b" * 64, "changed"): "and is 1e-05; the dataset has changed; the code has changed",
    }
    for other, words in others.items():
        assert load_state(path, identity=identify_run(*other)) is None
        assert "starting anew" in caplog.records[-1].message
        assert caplog.records[-1].message.endswith(words)


def test_how_a_run_is_done_does_not_make_it_another() -> None:
    changes = {"device": "cuda:1", "processes": 2, "accumulate": 2, "save_every": 3, "compile": True, "pictures": 0, "tensorboard": True}
    assert identify_run(SETTINGS, "a", "b") == identify_run(SETTINGS.model_copy(update=changes), "a", "b")
    whole = SETTINGS.model_copy(update={"aperture": ApertureSettings()})  # left out where it is none, as it was before there were any
    for name in TrainSettings.model_fields.keys() - {*checkpoint.OPERATIONAL}:
        assert any(key.split(".")[1] == name for key in identify_run(whole, "a", "b") if key.startswith("train.")), name


def test_files_that_settings_name_belong_to_the_run_by_their_content(tmp_path: Path) -> None:
    source, start = tmp_path / "net.py", tmp_path / "start.safetensors"
    settings = TrainSettings(network=CustomSettings(name="custom", source=f"{source}:make"), start_from=str(start))
    source.write_text("first")
    with pytest.raises(MissingError, match=r"train\.start_from: .*start\.safetensors does not exist"):
        identify_run(settings, "a", "b")
    start.write_text("first")
    before = identify_run(settings, "a", "b")
    source.write_text("second")
    assert describe_differences(before, identify_run(settings, "a", "b")) == "the file of 'network.source' has changed"
    start.write_text("second")
    assert "the weights in 'start_from' has changed" in describe_differences(before, identify_run(settings, "a", "b"))


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut short": lambda content: content[:-100],
    "half": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :],
    "flipped at the end": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "foreign": lambda _: b"nonsense",
    "of an older version": lambda content: content.partition(b"\n")[2],
}


@pytest.mark.parametrize("harm", HARMS)
def test_in_the_stead_of_a_damaged_state_the_one_before_it_is_taken_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    path = tmp_path / "state.pt"
    for step in (3, 4, 5):
        save_state(path, {"step": step, "weights": torch.rand(100)}, identity={})
    path.write_bytes(HARMS[harm](path.read_bytes()))
    state = load_state(path, identity={})
    assert state is not None
    assert state["step"] == 4
    assert "state.pt cannot be read" in caplog.text
    assert "going on from the state before it" in caplog.text
    assert "state.previous.pt" in caplog.text
    save_state(path, {"step": 5}, identity={})  # and it outlives the next one, which replaces the damaged file
    assert (path.with_name("state.damaged.pt").exists(), previous_of(path).exists()) == (True, True)
    path.unlink()
    assert (load_state(path, identity={}) or {})["step"] == 4


def test_with_no_sound_state_a_run_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.pt"
    for place in (path, previous_of(path)):
        place.write_bytes(b"PK\x03\x04 broken")
    assert load_state(path, identity={}) is None
    assert caplog.text.count("cannot be read") == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.damaged.pt", "state.previous.damaged.pt"]


@pytest.mark.parametrize("largest_file", [0, 1000])
def test_a_disk_that_takes_no_more_ends_in_one_line_and_keeps_the_last_state(tmp_path: Path, largest_file: int) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3}, identity={})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        with pytest.raises(StoreError, match="free space"):
            save_state(path, {"weights": torch.rand(10_000)}, identity={})
        with pytest.raises(StoreError, match="free space"):
            save_checkpoint(tmp_path / "c.safetensors", make_network().state_dict(), META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(path, identity={}) == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_no_code_runs_when_a_state_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": Path("harmless here, a call elsewhere")}, identity={})
    assert load_state(path, identity={}) is None


FACTS = Signature(META.bands, META.sar_bands, META.training_mean, META.training_std)


def test_training_may_start_from_a_checkpoint_of_the_same_network_and_bands_only(saved: Path, tmp_path: Path) -> None:
    weights = load_start(saved, SETTINGS, FACTS, where=tmp_path)
    assert hash_weights(weights) == hash_weights(make_network().state_dict())
    with pytest.raises(DataError, match=r"has bands \['B02'\].*but the checkpoint was trained with \['B02', 'B03', 'B04'\]"):
        load_start(saved, SETTINGS, FACTS._replace(bands=("B02",)), where=tmp_path)
    with pytest.raises(DataError, match=r"SAR \['VV'\]"):
        load_start(saved, SETTINGS, FACTS._replace(sar_bands=("VV",)), where=tmp_path)
    wider = SETTINGS.model_copy(update={"network": SETTINGS.network.model_copy(update={"width": 16})})
    with pytest.raises(ConfigError, match=r"'train.start_from' .*checkpoint\.safetensors .*'train.network.width' was 8 and is 16"):
        load_start(saved, wider, FACTS, where=tmp_path)
    other = SETTINGS.model_copy(update={"network": UnetSettings(name="unet", width=8, levels=2)})
    with pytest.raises(ConfigError, match=r"""'train.network.name' was "afsst" and is "unet".*and \d+ more"""):
        load_start(saved, other, FACTS, where=tmp_path)
    louder = SETTINGS.model_copy(update={"sar_range": SarRange(vv_db=(-30, 0))})
    with pytest.raises(ConfigError, match="sar_range"):
        load_start(saved, louder, FACTS, where=tmp_path)
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(TrainingError, match="is damaged"):
        load_start(saved, SETTINGS, FACTS, where=tmp_path)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here.*set 'device' to auto or cpu"):
            choose_device(name)
