"""Networks whose every parameter is drawn, so that no law holds only because something begins at zero."""

from __future__ import annotations

import torch
from torch import nn


def draw_parameters(module: nn.Module) -> nn.Module:
    """`module` with all its parameters drawn from a normal distribution of deviation 0.3 by torch's own generator."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module
