"""One file per network; `forward` reads like the figure. The registry below is all that adding a network changes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from torch import nn

from sereno.model.config import NetworkSettings
from sereno.model.networks.afsst import Afsst


class NetworkFactory(Protocol):
    """How every network is made."""

    def __call__(self, settings: NetworkSettings, *, sar_bands: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """A network with fresh weights; `mean` and `std` are per optical band, in reflectance.

        Called with optical (B, C, H, W), SAR (B, S, H, W) and cloud (B, 1, H, W) it gives the cleared image (B, C, H, W), all scaled as
        in `Batch`.
        """
        ...


NETWORKS: Final[dict[str, NetworkFactory]] = {"afsst": Afsst}
"""Networks by the name they have in the config."""
