"""Whether a pass of a network fits the memory, asked before it: a system that runs out of it kills without a word."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segskd.config import named
from segskd.devices import free_memory
from segskd.errors import OutOfMemory
from segskd.models.stages import ghost

SMALL = 2**21
"""Pixels of a pass that nobody asks about: some 0.8 GB with a ResNet-34 U-Net."""
GIB = 2**30


class PassMemory:
    """The main memory that a network's passes need, against what is free."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._ask = device.type != "cuda"  # CUDA refuses what it hasn't, and that is told
        self._fits = 0

    def require(self, shape: torch.Size, tiled: bool) -> None:
        """Raises UserError when a pass over (N, C, H, W) in fp32 would not fit what is free now."""
        images, _, height, width = shape
        if not self._ask or images * height * width <= SMALL:
            return
        needed = pass_bytes(self._model, shape)
        if needed <= self._fits:
            return
        if needed > (free := free_memory()):
            mend = "take a smaller --tile" if tiled else "predict by tiles, such as --tile 512x512"
            raise OutOfMemory(
                f"a pass over {images} image{'s' * (images > 1)} of {height}x{width} needs about "
                f"{needed / GIB:.1f} GiB of memory and {free / GIB:.1f} are free: {mend}, or take a smaller "
                f"{named('data.size')}"
            )
        self._fits = needed


def pass_bytes(model: nn.Module, shape: torch.Size) -> int:
    """The most bytes that tensors hold at once, parameters aside, in a forward pass over (N, C, H, W) in eval mode.

    Found on tensors without storage; scratch memory inside of an operation is not seen.
    """
    live = _Live()
    phantom = ghost(model).eval()
    with torch.inference_mode(), live:
        phantom(torch.empty(shape, device="meta"))
    return live.peak


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Bytes of the storages that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: WeakKeyDictionary[torch.UntypedStorage, int] = WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._held.values()))
        return out
