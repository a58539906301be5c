"""What small networks with random weights need, to behave as trained ones do."""

from __future__ import annotations

import torch


def spread_scales(model: torch.nn.Module) -> None:
    """Draws the scales of batch normalisation. timm begins a block's last ones at zero, so that it does nothing."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
