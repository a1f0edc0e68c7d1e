"""One file per network, in which `restore` reads like the figure.

Another network also takes its settings in `model/config.py`, a row in the registry below, and its name in a task of `model/tasks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from torch import nn

from sereno.model.networks.afsst import Afsst
from sereno.model.networks.custom import load_network
from sereno.model.networks.s2transformer import S2Transformer
from sereno.model.networks.unet import Unet


class NetworkFactory(Protocol):
    """How every network is made."""

    def __call__(self, settings: Any, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """A network with fresh weights; `settings` are its own, `mean` and `std` are per optical band, in reflectance.

        Called with optical (B, C, H, W), SAR (B, S, H, W) and cloud (B, 1, H, W) it gives the cleared image (B, C, H, W), all scaled as
        in `Batch`. One that has intermediate images also has `forward_stages`, which gives the cleared image and then those.
        """
        ...


NETWORKS: Final[dict[str, NetworkFactory]] = {"afsst": Afsst, "custom": load_network, "s2transformer": S2Transformer, "unet": Unet}
"""Networks by the name they have in the config."""
