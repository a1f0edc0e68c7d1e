"""Laws of `benchmarks/peers.py`: a peer sees what its own code expects, and reading it leaves no trace."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import peers
import pytest
import torch
from torch import Tensor, nn

from sereno.model.networks.s2transformer import S2Transformer  # noqa: F401 - a package called `model` must survive the peers' own
from sereno.pipeline.errors import DataError, MissingError

FILES = {
    "tcrnet": "Model_TCRNet.py",
    "uncrtaints": "model/src/backbones/uncrtaints.py",
    "hpncr": "model/hpn.py",
    "glfcr": "codes/net_CR_RDN.py",
    "ecrformer": "models/ecrformer_model.py",
    "ecrformer-light": "models/ecrformer_model.py",
}
TCRNET = """
import torch
from timm.models.layers import DropPath, to_2tuple, trunc_normal_

class TCRNet(torch.nn.Module):
    def __init__(self, dim, sar_bands, *others):
        super().__init__()
        self.dim = dim
        self.embedding = torch.nn.Conv2d(13, dim, 3)
        self.mapping = torch.nn.Conv2d(dim, 13, 3)

    def forward(self, x, sar):
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0 and x.is_contiguous()
        return x + 10 * sar[:, :1] + torch.zeros(x.shape).cuda() + torch.sqrt(0 * x)
"""
UNCRTAINTS = """
import torch
from src.learning import weight_init
S2_BANDS = 13

class UNCRTAINTS(torch.nn.Module):
    def __init__(self, channels, out_conv, **others):
        super().__init__()
        assert out_conv == [S2_BANDS] and channels == S2_BANDS + 2 and weight_init.here

    def forward(self, x):
        assert x.shape[1] == 1  # one date
        return torch.cat([x[:, :, :S2_BANDS] + 10 * x[:, :, S2_BANDS:S2_BANDS + 1], x], dim=2)
"""
ECRFORMER = """
import torch

class ECRformerModel(torch.nn.Module):
    def __init__(self, in_chans, out_chans, num_layers, num_blocks, features_start, **others):
        super().__init__()
        self.sar_bands, self.width = in_chans[0], features_start
        assert in_chans == [2, out_chans] and num_layers == len(num_blocks) == 4

    def forward(self, x):
        return x[:, self.sar_bands:] + 10 * x[:, :1], "side branch"
"""
SOURCES = {"tcrnet": TCRNET, "uncrtaints": UNCRTAINTS, "ecrformer": ECRFORMER, "ecrformer-light": ECRFORMER}


def write_peer(folder: Path, name: str, source: str | None = None) -> Path:
    """A checkout with the one file that is read, laid out as the real repository is."""
    path = folder / FILES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source or SOURCES[name])
    if name == "uncrtaints":
        (folder / "model/src/learning").mkdir()
        (folder / "model/src/learning/weight_init.py").write_text("here = True")
    return folder


def make(name: str, folder: Path, *, bands: int = 13, sar_bands: int = 2) -> nn.Module:
    return peers.PEERS[name](sar_bands=sar_bands, mean=[0.1] * bands, std=[0.1] * bands, folder=str(folder))


def make_images(bands: int = 13, size: tuple[int, int] = (30, 41)) -> tuple[Tensor, Tensor, Tensor]:
    """Optical reflectance, some of it outside 0..1, SAR in 0..1 and cloud."""
    generator = torch.Generator().manual_seed(0)
    optical, sar, cloud = (torch.rand(2, channels, *size, generator=generator) for channels in (bands, 2, 1))
    return 1.5 * optical - 0.25, sar, cloud


@pytest.mark.parametrize("bands", [13, 4])
@pytest.mark.parametrize("name", SOURCES)
def test_a_peer_sees_clamped_optical_and_sar_in_its_own_order_and_size(tmp_path: Path, name: str, bands: int) -> None:
    optical, sar, cloud = make_images(bands)
    cleared = make(name, write_peer(tmp_path, name), bands=bands)(optical, sar, cloud)
    assert torch.allclose(cleared, optical.clamp(0, 1) + 10 * sar[:, :1], atol=1e-5)  # 1e-6 under TCRNet's root


def test_first_and_last_layers_are_made_for_the_bands_at_hand(tmp_path: Path) -> None:
    network = make("tcrnet", write_peer(tmp_path, "tcrnet"), bands=4).network
    assert (network.embedding.in_channels, network.mapping.out_channels) == (4, 4)


def test_the_light_form_is_the_narrower_one(tmp_path: Path) -> None:
    folder = write_peer(tmp_path, "ecrformer")
    assert make("ecrformer-light", folder).network.width < make("ecrformer", folder).network.width


@pytest.mark.parametrize(("size", "seen"), [((30, 41), (48, 48)), ((48, 48), (48, 48)), ((5, 3), (32, 32)), ((49, 7), (64, 64))])
def test_images_are_enlarged_to_what_a_network_can_take_and_cut_again(size: tuple[int, int], seen: tuple[int, int]) -> None:
    class Echo(nn.Module):
        def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
            assert optical.shape[2:] == sar.shape[2:] == seen
            return optical

    optical, sar, cloud = make_images(3, size)
    cleared = peers.Peer(Echo(), step_px=16, least_px=32, square=True)(optical, sar, cloud)
    assert torch.equal(cleared, optical.clamp(0, 1))


def test_reading_a_peer_leaves_no_trace(tmp_path: Path) -> None:
    folder = write_peer(tmp_path, "uncrtaints")
    before, path = dict(sys.modules), list(sys.path)
    make("uncrtaints", folder)
    assert sys.modules == before
    assert sys.path == path
    assert not list(folder.rglob("__pycache__"))
    assert importlib.import_module("sereno.model.networks.s2transformer") is before["sereno.model.networks.s2transformer"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_the_peer_gives_one_line_that_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match=r"does not exist; the folder must be a checkout of https://github.com/") as caught:
        make(name, tmp_path / "absent")
    assert str(tmp_path / "absent" / FILES[name]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    folder = write_peer(tmp_path, "tcrnet", "import no_such_package")
    with pytest.raises(MissingError, match="imports 'no_such_package', which is not installed: pip install no_such_package"):
        make("tcrnet", folder)


def test_tcrnet_refuses_one_sar_band(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs two SAR bands, the dataset has 1"):
        make("tcrnet", write_peer(tmp_path, "tcrnet"), sar_bands=1)


def test_every_peer_can_be_named_as_a_custom_network() -> None:
    assert set(peers.PEERS) == set(FILES)
    assert all(getattr(peers, function.__name__) is function for function in peers.PEERS.values())
