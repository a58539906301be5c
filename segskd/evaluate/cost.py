"""What a network costs: parameters, multiply-accumulates, bytes on disk, latency."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segskd.config import Size
from segskd.devices import synchronise
from segskd.models.build import input_channels

WARM_UP = 2


def parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def gmacs(model: nn.Module, size: Size) -> float:
    """Multiply-accumulates of one forward pass (1, C, H, W), in 10^9: half of the FLOPs that PyTorch counts."""
    on_meta = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        on_meta(torch.empty(1, input_channels(model), *size, device="meta"))
    return counter.get_total_flops() / 2e9


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, which is the size of a safetensors file without its header."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def latencies(models: Sequence[nn.Module], size: Size, device: torch.device, repeats: int = 10) -> list[float]:
    """Median milliseconds of a forward pass (1, C, H, W) of each network in eager fp32.

    The networks take turns, so that a busy machine slows all of them equally.
    """
    images = [
        torch.randn(1, input_channels(model), *size, device=device).to(memory_format=torch.channels_last)
        for model in models
    ]
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(WARM_UP + repeats):
            for model, image, own in zip(models, images, times, strict=True):
                elapsed = _timed(model, image)
                if turn >= WARM_UP:
                    own.append(elapsed * 1e3)
    return [statistics.median(own) for own in times]


def cost(model: nn.Module, size: Size, latency_ms: float) -> dict[str, Any]:
    """All figures of a network as plain data for JSON. `latency_ms` is measured by `latencies`."""
    return {
        "parameters": parameters(model),
        "gmacs": gmacs(model, size),
        "bytes": weight_bytes(model),
        "latency_ms": latency_ms,
    }


def _timed(model: nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    model(image)
    synchronise(image.device)
    return time.perf_counter() - start
