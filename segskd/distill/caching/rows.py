"""How the rows of one feature lie in memory or on disk, a row a sample: as they come, or in 8 bits a value."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from segskd.files import writing

Room = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes an uninitialised tensor where rows are to lie."""
Parts = tuple[Tensor, ...]
"""What is read of some rows, from which `Kept.opened` makes them."""
LEVELS = 255


class Kept(Protocol):
    """The rows of all samples."""

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """Keeps the rows of the samples with these numbers, int64 (n,)."""

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """What the rows are made of; `take` draws the wanted ones out of a tensor of all."""

    def opened(self, parts: Parts) -> Tensor:
        """The rows, (n, h, w, c) or (n, h, w), on the device where `parts` lie."""

    @property
    def bytes(self) -> int:
        """What all rows occupy."""


class AsTheyCome:
    """Rows in the precision in which they were computed."""

    def __init__(self, room: Room, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._rows = room(shape, dtype)

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """See Kept.write."""
        self._rows.index_copy_(0, numbers, rows.cpu())

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """See Kept.read."""
        return (take(self._rows),)

    def opened(self, parts: Parts) -> Tensor:
        """See Kept.opened."""
        return parts[0]

    @property
    def bytes(self) -> int:
        return _bytes(self._rows)


class InEightBits:
    """Rows (h, w, c) in 256 steps from the least to the greatest value of each channel of each sample.

    That is uniform affine quantisation (Jacob et al., arXiv 1712.05877, eq. 1): what a ReLU has set to zero stays
    zero, and no value is off by more than half a step, but for the rounding of its own precision.
    """

    def __init__(self, room: Room, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._codes = room(shape, torch.uint8)
        self._ranges = torch.empty(2, shape[0], 1, 1, shape[-1])  # least value and step
        self._dtype = dtype

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """See Kept.write."""
        values = rows.float()
        least, most = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        step = (most - least) / LEVELS
        codes = ((values - least) / step.clamp(min=torch.finfo(step.dtype).tiny)).round_()
        self._codes.index_copy_(0, numbers, codes.to(torch.uint8).cpu())
        for kept, found in zip(self._ranges, (least, step), strict=True):
            kept.index_copy_(0, numbers, found.cpu())

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """See Kept.read."""
        return (take(self._codes), *map(take, self._ranges))

    def opened(self, parts: Parts) -> Tensor:
        """See Kept.opened."""
        codes, least, step = parts
        return torch.addcmul(least, codes.float(), step).to(self._dtype)

    @property
    def bytes(self) -> int:
        return _bytes(self._codes) + _bytes(self._ranges)


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in memory, in huge pages where Linux has them to give: rows are drawn from all over it."""
    if sys.platform != "linux":
        return torch.empty(shape, dtype=dtype)
    block = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=dtype).view(shape)


def on_disk(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor mapped from a new file. Raises UserError when the disk has no room for it."""
    size = prod(shape)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        _reserve(file, size * dtype.itemsize)
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(shape)


def _reserve(file: Path, size: int) -> None:
    """A file of `size` bytes with its blocks taken: a full disk shows now, not as a bus error in the middle."""
    with open(file, "wb") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            handle.truncate(size)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
