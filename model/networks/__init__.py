"""One file per network, in which `restore` reads like the figure.

Another network also takes its settings in `model/config.py`, its name in `SERVED_BY` there, and a row in the registry below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from sereno.model.networks.afsst import Afsst
from sereno.model.networks.custom import load_network
from sereno.model.networks.s2transformer import S2Snapshot, S2Transformer
from sereno.model.networks.sfiin import Sfiin
from sereno.model.networks.stfgan import Stfgan
from sereno.model.networks.stfnet import Stfnet
from sereno.model.networks.unet import Unet

NetworkFactory = Callable[..., nn.Module]
"""How every network is made: its settings, then by name what its task says (`Task.name_arguments`) -> a network with fresh weights.

For cloud removal that is `sar_bands` (a number), `mean` and `std` (per optical band, in reflectance); called with optical (B, C, H, W), SAR
(B, S, H, W) and cloud (B, 1, H, W) the network gives the cleared image (B, C, H, W), all scaled as in `Batch`. One that looks at a series
(`needs_series`) is called with three more, the fields of `Dates`. One that has intermediate images also has `forward_stages`, which gives
the cleared image and then those."""

NETWORKS: Final[dict[str, NetworkFactory]] = {
    "afsst": Afsst,
    "custom": load_network,
    "s2transformer": S2Transformer,
    "unet": Unet,
    "sfiin": Sfiin,
    "stfgan": Stfgan,
    "stfnet": Stfnet,
    "s2snapshot": S2Snapshot,
}
"""Networks by the name they have in the config."""
