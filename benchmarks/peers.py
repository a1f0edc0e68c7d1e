"""Networks of others, made from source folders that the user names, so that they are timed and trained beside ours.

Nothing of theirs is kept here. Each `make_*` reads a checkout and gives a network that is called as ours are, with optical reflectance
in 0..1, SAR in 0..1 and the cloud probability, which none of them looks at. In a run's settings:
`network: {name: custom, source: "benchmarks/peers.py:make_uncrtaints", options: {folder: ../UnCRtainTS}}`.
They are trained by our engine, with our loss. Constructors are those of the papers' 13 + 2 bands; first and last layers are made for
the bands at hand. Packages that their files import for pictures, or for three small functions (timm), are not needed: stand-ins are.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.attention import shift_mask
from sereno.pipeline.errors import DataError, MissingError

PAPER_BANDS: Final = 13
"""Optical bands of the papers: all of Sentinel-2 L1C."""
GLFCR_WINDOW_PX: Final = 8
"""Side of an attention window of GLF-CR, in its features of half the size."""
GLFCR_APART: Final = -100.0
"""What GLF-CR adds to the logits of pixels that do not see each other; its gates need it finite."""
HPNCR_LEAST_PX: Final = 128
"""HPN-CR reflects its features by up to a window; smaller images would be narrower than that."""


class Source(NamedTuple):
    """Where a peer's network is defined, and what its file needs to be read."""

    name: str
    """The peer."""
    address: str
    """Its repository."""
    file: str
    """The file with the network, seen from the repository's folder."""
    root: str = "."
    """The folder that its imports are relative to."""
    changes: Mapping[str, str] = types.MappingProxyType({})
    """What is read otherwise than it stands there."""


UNCRTAINTS: Final = Source("UnCRtainTS", "https://github.com/PatrickTUM/UnCRtainTS", "model/src/backbones/uncrtaints.py", "model")
"""Ebel et al. 2023; one date, as in its experiments on SEN12MS-CR."""
ECRFORMER: Final = Source("ECRformer", "https://github.com/zzaiyan/ECRformer", "models/ecrformer_model.py")
"""Its full and its light form."""
HPNCR: Final = Source("HPN-CR", "https://github.com/G-pz/HPN-CR", "model/hpn.py")
"""Gu et al. 2025."""
TCRNET: Final = Source(
    "TCRNet",
    "https://github.com/MinghuaWang123/TCRNet",
    "Model_TCRNet.py",
    # On any device, and with a derivative where there is no edge at all: a root has none at zero.
    changes={"torch.zeros(x.shape).cuda()": "torch.zeros_like(x)", ".cuda()": "", "torch.sqrt(": "torch.sqrt(1e-12 + "},
)
"""Wang et al.; the design next to ours."""
GLFCR: Final = Source("GLF-CR", "https://github.com/xufangchn/GLF-CR", "codes/net_CR_RDN.py", "codes")
"""Xu et al. 2022."""
GLFCR_FILTER: Final = Source(GLFCR.name, GLFCR.address, "codes/submodules.py", "codes")
"""Its dynamic filter in Python, which the authors offer where their CUDA code cannot be built."""


class Peer(nn.Module):
    """A peer's network called like ours: optical (B, C, H, W), SAR (B, S, H, W), cloud (unused) -> (B, C, H, W).

    Optical values are clamped to 0..1 as in all five loaders. Images are reflected up to a size that the network can take (replicated
    where they are too small to be reflected) and cut again.
    """

    def __init__(self, network: nn.Module, *, step_px: int = 1, least_px: int = 1, square: bool = False) -> None:
        """`step_px`: what height and width must be a multiple of; `least_px`: their least; `square`: they must be equal."""
        super().__init__()
        self.network, self.step_px, self.least_px, self.square = network, step_px, least_px, square

    def forward(self, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:  # noqa: ARG002 - peers know no clouds
        """The cleared image."""
        size = [-(-max(extent, self.least_px) // self.step_px) * self.step_px for extent in optical.shape[2:]]
        size = [max(size)] * 2 if self.square else size
        cleared = self.call(_enlarge(optical.clamp(0, 1), size), _enlarge(sar, size))
        return cleared[:, :, : optical.shape[2], : optical.shape[3]].to(optical.dtype)

    def call(self, optical: Tensor, sar: Tensor) -> Tensor:
        """What the peer itself gives."""
        cleared: Tensor = self.network(optical, sar)
        return cleared


class _UncrtaintsPeer(Peer):
    def call(self, optical: Tensor, sar: Tensor) -> Tensor:
        """One date; its own input has optical first, then SAR."""
        cleared: Tensor = self.network(torch.cat([optical, sar], dim=1).unsqueeze(1))[:, 0, : optical.shape[1]]
        return cleared


class _EcrformerPeer(Peer):
    def call(self, optical: Tensor, sar: Tensor) -> Tensor:
        """SAR first; the images of its side branches, for its own loss, are left."""
        cleared: Tensor = self.network(torch.cat([sar, optical], dim=1))[0]
        return cleared


class _GlfcrPeer(Peer):
    def call(self, optical: Tensor, sar: Tensor) -> Tensor:
        """The size of the images is built into its windows; they are made for another when it comes."""
        size = (optical.shape[2] // 2, optical.shape[3] // 2)
        for block in _window_blocks(self.network):
            if tuple(block.input_resolution) != size:
                block.input_resolution = size
                block.attn_mask = _mask_windows(size, block.shift_size, optical) if block.shift_size else None
        return super().call(optical, sar)


class _DynamicFilter(nn.Module):
    """A filter of its own at every pixel and channel: (B, C, H, W), (B, C k^2, H, W) -> (B, C, H, W)."""

    def __init__(self, convolve: Callable[[Tensor, Tensor, int], Tensor], size: int) -> None:
        super().__init__()
        self.convolve, self.size = convolve, size

    def forward(self, features: Tensor, kernels: Tensor) -> Tensor:
        return self.convolve(features, kernels, self.size)


def make_uncrtaints(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """UnCRtainTS for one date, about 0.5 million parameters, without its variances: our losses have no use for them."""
    module = _load(UNCRTAINTS, folder)
    bands = module.S2_BANDS = len(mean)
    widths: dict[str, Any] = {"encoder_widths": [128], "decoder_widths": [128] * 5, "out_conv": [bands]}
    return _UncrtaintsPeer(module.UNCRTAINTS(bands + sar_bands, **widths, out_nonlin_mean=True, covmode=None, is_mono=True))


def make_ecrformer(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """ECRformer, its full form of 11.4 million parameters."""
    return _make_ecrformer((sar_bands, len(mean)), folder, blocks=[2, 3, 2, 2], width=48, refining=4)


def make_ecrformer_light(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """ECRformer, its light form of 3.8 million parameters."""
    return _make_ecrformer((sar_bands, len(mean)), folder, blocks=[2, 2, 1, 1], width=32, refining=2)


def _make_ecrformer(bands: tuple[int, int], folder: str, *, blocks: list[int], width: int, refining: int) -> nn.Module:
    """ECRformer for SAR and optical `bands`; blocks per level, width and refining blocks are those of its two config files."""
    shape: dict[str, Any] = {"num_layers": len(blocks), "num_blocks": blocks, "features_start": width, "num_refine": refining}
    kinds: dict[str, Any] = {"bottle_neck": "tsa", "cbam": "1ca2+1sa2", "block_type": ["ecrformer"] * 2, "pos_encoding": None}
    module = _load(ECRFORMER, folder)
    return _EcrformerPeer(module.ECRformerModel(in_chans=list(bands), out_chans=bands[1], **shape, **kinds), step_px=8)


def make_hpncr(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """HPN-CR, 3.7 million parameters; its images must be square."""
    module, bands = _load(HPNCR, folder), len(mean)
    network = module.hpn_cr()
    first = network.patch_embed_9.proj.out_channels
    network.patch_embed_9 = module.PatchEmbed(patch_size=2, in_chans=bands, embed_dim=first, kernel_size=3)
    network.residual1 = module.ResidualBlock(sar_bands, network.residual1.conv1.out_channels)
    network.final = nn.Conv2d(network.final.in_channels, bands, 3, padding=1)
    nn.init.normal_(network.final.weight, 0, 0.2)  # as theirs
    return Peer(network, step_px=8, least_px=HPNCR_LEAST_PX, square=True)


def make_tcrnet(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """TCRNet, 1.1 million parameters.

    Raises:
        DataError: fewer than two SAR bands, of which its edges are made.
    """
    if sar_bands < 2:
        raise DataError(f"TCRNet needs two SAR bands, the dataset has {sar_bands}")
    network, bands = _load(TCRNET, folder).TCRNet(32, sar_bands, 2, [2, 2, 2]), len(mean)
    if bands != PAPER_BANDS:
        network.embedding = nn.Conv2d(bands, network.dim, 3, padding=1, bias=False)
        network.mapping = nn.Conv2d(network.dim, bands, 3, padding=1, bias=False)
    return Peer(network, step_px=4)


def make_glfcr(*, sar_bands: int, mean: Sequence[float], std: Sequence[float], folder: str) -> nn.Module:  # noqa: ARG001
    """GLF-CR, 14.8 million parameters, its CUDA operation replaced by the authors' own Python."""
    network, bands = _load(GLFCR, folder).RDN_residual_CR(128), len(mean)
    convolve = _load(GLFCR_FILTER, folder).kernel2d_conv
    network.DFR = nn.ModuleList(_DynamicFilter(convolve, 5) for _ in range(network.D))
    network.SFENet1 = nn.Conv2d(4 * bands, network.G0, 5, padding=2)
    network.SFENet1_SAR = nn.Conv2d(4 * sar_bands, network.G0, 5, padding=2)
    network.UPNet[2] = nn.Conv2d(network.UPNet[2].in_channels, bands, 3, padding=1)
    for block in _window_blocks(network):
        mask = block.attn_mask
        del block.attn_mask
        block.register_buffer("attn_mask", mask, persistent=False)  # it follows from the size and is no weight
    return _GlfcrPeer(network, step_px=2 * GLFCR_WINDOW_PX, least_px=4 * GLFCR_WINDOW_PX)


PEERS: Final[dict[str, Callable[..., nn.Module]]] = {
    "uncrtaints": make_uncrtaints,
    "tcrnet": make_tcrnet,
    "hpncr": make_hpncr,
    "glfcr": make_glfcr,
    "ecrformer": make_ecrformer,
    "ecrformer-light": make_ecrformer_light,
}
"""What makes each peer, by its name on the command line."""


def _enlarge(image: Tensor, size: Sequence[int]) -> Tensor:
    """`image` with rows and columns after its last ones, in plain memory order, as the peers' `view`s need it."""
    missing = [wanted - extent for wanted, extent in zip(size, image.shape[2:], strict=True)]
    if not any(missing):
        return image.contiguous()
    mode = "reflect" if all(gap < extent for gap, extent in zip(missing, image.shape[2:], strict=True)) else "replicate"
    return F.pad(image, (0, missing[1], 0, missing[0]), mode=mode)


def _window_blocks(network: nn.Module) -> Iterator[Any]:
    """The parts of GLF-CR that know the size of the images."""
    return (part for part in network.modules() if hasattr(part, "input_resolution"))


def _mask_windows(size: tuple[int, int], shift: int, like: Tensor) -> Tensor:
    """The mask that GLF-CR would have made for images of this size: (windows, M*M, M*M)."""
    grid = (size[0] // GLFCR_WINDOW_PX, size[1] // GLFCR_WINDOW_PX)
    return shift_mask(grid, GLFCR_WINDOW_PX, shift, like).clamp_min(GLFCR_APART)


class _ChangedSource(importlib.abc.SourceLoader):
    """Reads one file with some of its text changed; leaves no bytecode beside it."""

    def __init__(self, path: Path, changes: Mapping[str, str]) -> None:
        self.path, self.changes = path, changes

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 - one file only
        return str(self.path)

    def get_data(self, path: str) -> bytes:
        text = Path(path).read_text("utf-8")
        for old, new in self.changes.items():
            text = text.replace(old, new)
        return text.encode()


def _load(source: Source, folder: str) -> Any:
    """The module with the peer's network; nothing of it stays in `sys.modules` or on `sys.path`.

    Raises:
        MissingError: the folder has no such file, or a package is not installed.
    """
    path = Path(folder).expanduser() / source.file
    if not path.is_file():
        raise MissingError(f"{source.name}: {path} does not exist; the folder must be a checkout of {source.address}")
    spec = importlib.util.spec_from_loader(f"peer_{path.stem}", _ChangedSource(path, source.changes))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _importing_from(Path(folder).expanduser() / source.root):
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as err:
            raise MissingError(f"{source.name}: {path} imports '{err.name}', which is not installed: pip install {err.name}") from err
    return module


@contextlib.contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Imports find the files of `root` and the stand-ins first; afterwards all is as it was, since peers' modules share names."""
    before, path, writing = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    taken = {name.partition(".")[0] for name in _stand_ins()} | {part.stem for part in root.iterdir()}
    for name in list(sys.modules):
        if name.partition(".")[0] in taken and not name.startswith("sereno"):
            del sys.modules[name]
    sys.modules.update(_stand_ins())
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writing
        for name in [name for name in sys.modules if name.partition(".")[0] in taken]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def _stand_ins() -> dict[str, types.ModuleType]:
    """Small modules in the stead of what the peers' files import but their networks do not need."""
    small = {"DropPath": _DropPath, "to_2tuple": _to_pair, "trunc_normal_": nn.init.trunc_normal_}
    contents: dict[str, dict[str, Any]] = {
        "timm": {},
        "timm.layers": small,
        "timm.models": {},
        "timm.models.layers": small,
        "cv2": {},
        "matplotlib": {},
        "matplotlib.pyplot": {},
        "FAC": {},
        "FAC.kernelconv2d": {"KernelConv2D": types.SimpleNamespace(KernelConv2D=nn.Identity)},
        "utils": {},
        "utils.get_featuremaps": {"save_feature_to_img": None},
    }
    modules = {name: types.ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
        module.__path__ = []  # a package, so that what is below it is looked for
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules


class _DropPath(nn.Module):
    """Leave a residual branch out, sample by sample, with the given chance, while training (Huang et al. 2016)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return branch
        keep = 1 - self.drop_prob
        return branch * branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(keep).div_(keep)


def _to_pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)
