"""Checks before a pass whether the memory is enough: an operating system that runs out of memory kills silently."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segskd.config import named
from segskd.devices import free_memory
from segskd.errors import OutOfMemory, plural
from segskd.models.stages import meta_copy

SMALL = 2**21
"""Pixels up to which a pass isn't checked: about 0.8 GB with a ResNet-34 U-Net."""
GIB = 2**30


class PassMemory:
    """Compares the main memory that a network's passes need with what is free."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._checks = device.type != "cuda"  # CUDA raises an error of its own
        self._fits = 0

    def require(self, shape: torch.Size, tiled: bool) -> None:
        """Raises UserError when a pass over (N, C, H, W) in fp32 needs more than what is free. `tiled` is for the
        advice."""
        images, _, height, width = shape
        if not self._checks or images * height * width <= SMALL:
            return
        needed = pass_bytes(self._model, shape)
        if needed <= self._fits:
            return
        if needed > (free := free_memory()):
            mend = "take a smaller --tile" if tiled else "predict by tiles, such as --tile 512x512"
            raise OutOfMemory(
                f"a pass over {plural(images, 'image')} of {height}x{width} needs about "
                f"{needed / GIB:.1f} GiB of memory and {free / GIB:.1f} are free: {mend}, or take a smaller "
                f"{named('data.size')}"
            )
        self._fits = needed


def pass_bytes(model: nn.Module, shape: torch.Size) -> int:
    """The peak of the bytes of all tensors except parameters in a forward pass over (N, C, H, W) in eval mode.

    It is computed on tensors without storage. Temporary memory within an operation is not counted.
    """
    live = _LiveBytes()
    on_meta = meta_copy(model).eval()
    with torch.inference_mode(), live:
        on_meta(torch.empty(shape, device="meta"))
    return live.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the class has no types
    """Counts the bytes of storages that operations have made and that still exist, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes: WeakKeyDictionary[torch.UntypedStorage, int] = WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._bytes[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._bytes.values()))
        return out
