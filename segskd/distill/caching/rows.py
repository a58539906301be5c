"""The rows of one feature in memory or on disk, one row a sample: in their own precision, or in 8 bits a value."""

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

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes an uninitialised tensor for the rows."""
Parts = tuple[Tensor, ...]
"""Tensors that are read of some rows, and from which `Rows.decoded` makes these rows."""
LEVELS = 255


class Rows(Protocol):
    """The rows of all samples."""

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """Stores the rows of the samples with these numbers, int64 (n,)."""

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """The parts of some rows; `take` selects these rows from a tensor of all rows."""

    def decoded(self, parts: Parts) -> Tensor:
        """The rows (n, h, w, c) or (n, h, w), on the device of `parts`."""

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""


class UnchangedRows:
    """Rows in the precision in which they were computed."""

    def __init__(self, allocate: Allocate, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._rows = allocate(shape, dtype)

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """See Rows.write."""
        self._rows.index_copy_(0, numbers, rows.cpu())

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """See Rows.read."""
        return (take(self._rows),)

    def decoded(self, parts: Parts) -> Tensor:
        """See Rows.decoded."""
        return parts[0]

    @property
    def bytes(self) -> int:
        return _bytes(self._rows)


class EightBitRows:
    """Rows (h, w, c) in 256 steps from the least to the greatest value of each channel of each sample.

    This is uniform affine quantisation (Jacob et al., arXiv 1712.05877, eq. 1). Zeros of a ReLU stay zero. No value
    changes by more than half a step, apart from the rounding of its own precision.
    """

    def __init__(self, allocate: Allocate, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._codes = allocate(shape, torch.uint8)
        self._ranges = torch.empty(2, shape[0], 1, 1, shape[-1])  # least value and step
        self._dtype = dtype

    def write(self, numbers: Tensor, rows: Tensor) -> None:
        """See Rows.write."""
        values = rows.float()
        least, most = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        step = (most - least) / LEVELS
        codes = ((values - least) / step.clamp(min=torch.finfo(step.dtype).tiny)).round_()
        self._codes.index_copy_(0, numbers, codes.to(torch.uint8).cpu())
        for all_values, values_now in zip(self._ranges, (least, step), strict=True):
            all_values.index_copy_(0, numbers, values_now.cpu())

    def read(self, take: Callable[[Tensor], Tensor]) -> Parts:
        """See Rows.read."""
        return (take(self._codes), *map(take, self._ranges))

    def decoded(self, parts: Parts) -> Tensor:
        """See Rows.decoded."""
        codes, least, step = parts
        return torch.addcmul(least, codes.float(), step).to(self._dtype)

    @property
    def bytes(self) -> int:
        return _bytes(self._codes) + _bytes(self._ranges)


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in memory. On Linux it asks for huge pages, because rows are read in random order."""
    if sys.platform != "linux":
        return torch.empty(shape, dtype=dtype)
    block = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
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
    """A file of `size` bytes whose blocks are allocated, so that a full disk is noticed now and not in training."""
    with open(file, "wb") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            handle.truncate(size)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
