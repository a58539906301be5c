"""Decides before training where the feature store fits and how many views it holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from segskd.config import Size, StorePart
from segskd.devices import free_memory
from segskd.distill.caching.inputs import DATA, MASK_KEY, STUDENT, Key, Keys
from segskd.distill.caching.store import Kind
from segskd.models.stages import IMAGE, StagedNetwork, feature_shapes

GIB = 2**30
DEFAULT_VIEWS = 4
ADAM_COPIES = 4
RANGE = 8
"""Bytes of the range of a channel that is kept in 8 bits."""
Shapes = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Contents:
    """One store to be: its samples a view, and the keys that it holds phase by phase."""

    images: int
    phases: Sequence[Keys]
    viewed: bool


@dataclass(frozen=True)
class Room:
    """Bytes that the store may take."""

    memory: int
    disk: int


@dataclass(frozen=True)
class Choice:
    """What was decided, and the bytes that the store takes at its largest."""

    kind: Kind
    views: int
    bytes: int


class Sizes:
    """Bytes of one sample's tensors."""

    def __init__(
        self, networks: Mapping[str, StagedNetwork], size: Size, dtype: torch.dtype, bits: int | None = None
    ) -> None:
        """`networks` by the owner of their features, which are kept in 8 `bits` a value or else as `dtype`."""
        self._shapes: dict[str, Shapes] = {owner: feature_shapes(network, size) for owner, network in networks.items()}
        self._shapes[DATA] = {IMAGE: self._shapes[STUDENT][IMAGE]}
        self._mask = prod(size)
        self._itemsize = dtype.itemsize
        self._bits = bits

    def of(self, key: Key) -> int:
        if key == MASK_KEY:
            return self._mask
        channels, height, width = self._shapes[key.owner][key.name]
        if self._bits and key.owner != DATA:
            return channels * (height * width + RANGE)
        return channels * height * width * self._itemsize

    def most(self, content: Contents, views: int) -> int:
        """The most bytes held at once: when a store advances, old and new tensors lie side by side."""
        empty: Keys = frozenset()
        steps = zip([empty, *content.phases], content.phases, strict=False)
        a_sample = max(sum(self.of(key) for key in before | after) for before, after in steps)
        return a_sample * content.images * (views if content.viewed else 1)


def room(part: StorePart, folder: Path) -> Room:
    """The stated budget, else half of the free memory; and half of the free disk."""
    memory = free_memory() / 2 if part.budget_gib is None else part.budget_gib * GIB
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Room(int(memory), shutil.disk_usage(place).free // 2)


def choose_views(sizes: Sizes, contents: Sequence[Contents], available: Room) -> int:
    """DEFAULT_VIEWS where memory or disk takes them, else 1."""
    needed = sum(sizes.most(content, DEFAULT_VIEWS) for content in contents)
    return DEFAULT_VIEWS if needed <= max(available.memory, available.disk) else 1


def choose_store(sizes: Sizes, contents: Sequence[Contents], views: int, part: StorePart, available: Room) -> Choice:
    """Memory, else memory-mapped disk, else recomputing; or what the recipe asks for."""
    needed = sum(sizes.most(content, views) for content in contents)
    if part.kind != "auto":
        kind: Kind = part.kind
    elif needed <= available.memory:
        kind = "memory"
    else:
        kind = "disk" if needed <= available.disk else "recompute"
    return Choice(kind, views, needed)
