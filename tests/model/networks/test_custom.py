"""Laws of networks from a file of one's own: used like ours, and every fault of the file in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from sereno.model.checkpoint import load_checkpoint
from sereno.model.config import CustomSettings, EvaluateSettings, LossSettings, TrainSettings
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.networks.custom import load_network
from sereno.model.run import Run
from sereno.model.train import train_network
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import ConfigError, MissingError, SerenoError
from sereno.pipeline.patches import MASK_CHANNELS, PatchRecord
from sereno.pipeline.store import store_of, write_manifest

COLUMNS = [name for name in PatchRecord.model_fields if name != "gaps_days"]  # a dataset without a series
SOURCE = '''"""A network of one layer, after Nobody (1999)."""

from __future__ import annotations

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, bands: int, sar_bands: int, mean: tuple[float, ...], kernel: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.mix = nn.Conv2d(bands + sar_bands + 1, bands, kernel, padding=kernel // 2)

    def forward(self, optical, sar, cloud):
        return self.mean[:, None, None] + self.mix(torch.cat([optical, sar, cloud], dim=1))


def make(*, sar_bands, mean, std, kernel=1):
    return Small(len(mean), sar_bands, mean, kernel)


def make_list(**_):
    return [nn.Identity()]


def make_grey(**_):
    class Grey(nn.Module):
        def forward(self, optical, sar, cloud):
            return optical[:, :1]
    return Grey()


def make_pair(**_):
    class Pair(nn.Module):
        def forward(self, optical, sar, cloud):
            return optical, cloud
    return Pair()


def make_fault(**_):
    raise ValueError("no good\\nat all")


def make_faulty(sar_bands, mean, std, detach=False):
    class Faulty(Small):
        def forward(self, optical, sar, cloud):
            if detach:
                return super().forward(optical, sar, cloud).detach()
            raise KeyError("sought")
    return Faulty(len(mean), sar_bands, mean, 1)


no_function = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "peers/small.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def load(source: object, **options: Any) -> nn.Module:
    settings = CustomSettings(name="custom", source=str(source), options=options)
    return load_network(settings, sar_bands=2, mean=[0.1, 0.2, 0.3], std=[0.1] * 3)


def images(bands: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand((2, channels, 8, 8), generator=generator) for channels in (bands, 2, 1))


def test_the_function_is_given_bands_statistics_and_options(file: Path) -> None:
    network = load(f"{file}:make", kernel=3)
    assert network.mix.weight.shape == (3, 3 + 2 + 1, 3, 3)
    assert network.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network(*images()).shape == (2, 3, 8, 8)


def test_two_files_of_one_name_do_not_meet(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "small.py"
    other.write_text(SOURCE.replace("kernel=1", "kernel=5"))
    assert [load(f"{path}:make").mix.weight.shape[-1] for path in (file, other, file)] == [1, 5, 1]


FAULTS = {
    "no such file": ("nonesuch.py:make", {}, MissingError, r"nonesuch\.py does not exist \(relative paths are seen from "),
    "no such function": ("{file}:mkae", {}, ConfigError, r"small\.py has no function 'mkae'"),
    "no function": ("{file}:no_function", {}, ConfigError, "has no function 'no_function'"),
    "wrong type": ("{file}:make_list", {}, ConfigError, r"small\.py:make_list gave a list, expected a torch\.nn\.Module"),
    "fault of the function": ("{file}:make_fault", {}, ConfigError, r"small\.py:make_fault raised ValueError: no good \(line \d+\)$"),
    "unknown option": ("{file}:make", {"kernal": 3}, ConfigError, "small.py:make cannot be called with .*'kernal'.*'network.options'"),
}


@pytest.mark.parametrize(("source", "options", "kind", "words"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_said_in_one_line(file: Path, source: str, options: dict[str, Any], kind: type[SerenoError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        load(source.format(file=file), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["def make(:\n", "import nonesuch_package\n"])
def test_a_file_that_cannot_be_imported_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"small\.py cannot be imported \((SyntaxError|ModuleNotFoundError): "):
        load(f"{file}:make")


def test_a_fault_while_the_file_is_imported_is_said_with_its_line(file: Path) -> None:
    file.write_text("\n\nraise ValueError('broken')\n")
    with pytest.raises(ConfigError, match=r"small\.py:make raised ValueError: broken \(line 3\)$") as caught:
        load(f"{file}:make")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_fault_of_the_network_is_said_with_its_line_and_a_lack_of_memory_stays_one(file: Path) -> None:
    line = 1 + SOURCE.split("\n").index('            raise KeyError("sought")')
    with pytest.raises(ConfigError, match=rf"small\.py:make_faulty raised KeyError: 'sought' \(line {line}\)$"):
        copy.deepcopy(load(f"{file}:make_faulty"))(*images())
    file.write_text(SOURCE.replace('KeyError("sought")', 'torch.OutOfMemoryError("CUDA out of memory")'))
    with pytest.raises(torch.OutOfMemoryError):
        load(f"{file}:make_faulty")(*images())


def test_an_answer_without_a_gradient_is_refused_in_training_only(file: Path) -> None:
    network = load(f"{file}:make_faulty", detach=True)
    assert network.eval()(*images()).shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match="does not require grad, so that it learns nothing"):
        network.train()(*images())


@pytest.mark.parametrize(("name", "seen"), [("make_grey", r"\(2, 1, 8, 8\)"), ("make_pair", "a tuple")])
def test_an_answer_of_another_shape_is_refused_before_it_is_compared(file: Path, name: str, seen: str) -> None:
    network = load(f"{file}:{name}")
    with pytest.raises(ConfigError, match=rf"small\.py:{name} answers {seen}, expected an image \(2, 3, 8, 8\)"):
        network(*images())


def test_an_answer_of_another_shape_is_refused_in_training_too(file: Path) -> None:
    network = load(f"{file}:make_grey")
    network.register_parameter("learnt", nn.Parameter(torch.ones(1)))
    with pytest.raises(ConfigError, match=r"answers \(2, 1, 8, 8\)"):
        Run(network, TrainSettings(), device=torch.device("cpu"), bands=3).answer(*images())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    manifest, generator = tmp_path / "data/dataset.json", np.random.default_rng(0)
    root, rows = zarr.create_group(store_of(manifest), zarr_format=3), []
    for split, count in {"train": 4, "val": 1, "test": 2}.items():
        clear = generator.integers(500, 3000, (count, 3, 24, 24)).astype(np.uint16)
        mask = np.zeros((count, len(MASK_CHANNELS), 24, 24), np.uint8)
        mask[:, [MASK_CHANNELS.index(name) for name in ("valid_input", "valid_target", "valid_sar")]] = 255
        mask[:, 0, :, 12:] = 255
        sar = np.full((count, 2, 24, 24), -1200, np.int16)
        values = {"sar": sar, "cloudy": np.where(mask[:, :1] > 0, 8000, clear).astype(np.uint16), "clear": clear, "mask": mask}
        for name, array in values.items():
            root.require_group(split).create_array(name, shape=array.shape, dtype=array.dtype, chunks=(1, *array.shape[1:]))[:] = array
        rows += [to_row(split, position) for position in range(count)]
    lines = [list(COLUMNS), *rows]
    (store_of(manifest) / "patches.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    statistics = {"training_mean": [0.17] * 3, "training_std": [0.07] * 3}
    write_manifest(manifest, kind="dataset", summary={"bands": ["B02", "B03", "B04"], "sar_bands": ["VV", "VH"], **statistics})
    return manifest


def to_row(split: str, position: int) -> list[str]:
    values = {"id": f"west/p/{split}{position}", "area": "west", "pair": "p", "block": f"b{position}", "crs": "EPSG:32632"}
    values |= {"bounds_m": '"[0, 0, 240, 240]"', "row": "0", "col": "0", "split": split, "position": str(position)}
    return [values.get(name, "0.5") for name in COLUMNS]


def test_it_is_trained_saved_and_scored_like_ours(file: Path, dataset: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoint.safetensors"
    network = {"name": "custom", "source": f"{file}:make", "options": {"kernel": 3}}
    values = {"network": network, "steps": 2, "batch_size": 2, "crop_px": 16, "warmup_steps": 0, "validate_every": 1, "device": "cpu"}
    train_network(dataset, checkpoint, load_settings(TrainSettings, values, where="test"))
    loaded = load_checkpoint(checkpoint, torch.device("cpu"))
    assert isinstance(loaded.settings.network, CustomSettings)
    assert not torch.equal(loaded.network.mix.weight, load(f"{file}:make", kernel=3).mix.weight)
    evaluate_checkpoint(dataset, checkpoint, tmp_path / "scores/scores.csv", EvaluateSettings(batch_size=2, examples=1, device="cpu"))
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    assert summary["scores"]["network"]["cloudy"]["psnr"]["mean"] > 0
    assert summary["checkpoint"]["settings"]["network"]["source"] == f"{file}:make"
    file.unlink()
    with pytest.raises(MissingError, match=r"small\.py does not exist"):
        load_checkpoint(checkpoint, torch.device("cpu"))


def test_its_settings_go_with_every_loss() -> None:
    settings = CustomSettings(name="custom", source="x.py:make")
    assert TrainSettings(network=settings, loss=LossSettings(stages=0.5)).loss.stages == 0.5
