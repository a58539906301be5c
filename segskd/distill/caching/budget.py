"""Decides before training where the feature store fits, and how many views of each image it can hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from segskd.config import Size, StorePart
from segskd.devices import free_memory
from segskd.distill.caching.contents import DATA, MASK_KEY, STUDENT, Key, Keys, PlannedStore
from segskd.distill.caching.store import Kind
from segskd.models.stages import IMAGE, StagedNetwork, feature_shapes

GIB = 2**30
FEWEST_VIEWS = 4
"""Views of each image where memory or disk has room for them."""
SAMPLES = 1000
"""Few images get more views, up to about so many samples in all, where memory has room for them."""
ADAM_COPIES = 4
RANGE = 8
"""Bytes of the least value and the step of a channel that is kept in 8 bits."""
Shapes = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Room:
    """Bytes that the store may take in memory, and on disk."""

    memory: int
    disk: int


@dataclass(frozen=True)
class StorePlace:
    """Where the feature store keeps its tensors, and the bytes that they take at most."""

    kind: Kind
    bytes: int


class Sizes:
    """Bytes of the tensors of one sample, which is one view of one image."""

    def __init__(
        self, networks: Mapping[str, StagedNetwork], size: Size, dtype: torch.dtype, bits: int | None = None
    ) -> None:
        """`networks` by the names in `Key`; features are kept in 8 `bits` a value, or else as `dtype`."""
        self._shapes: dict[str, Shapes] = {name: feature_shapes(network, size) for name, network in networks.items()}
        self._shapes[DATA] = {IMAGE: self._shapes[STUDENT][IMAGE]}
        self._mask = prod(size)
        self._itemsize = dtype.itemsize
        self._bits = bits

    def of(self, key: Key) -> int:
        if key == MASK_KEY:
            return self._mask
        channels, height, width = self._shapes[key.network][key.name]
        if self._bits and key.network != DATA:
            return channels * (height * width + RANGE)
        return channels * height * width * self._itemsize

    def most(self, content: PlannedStore, views: int) -> int:
        """The most bytes that are held at once: while a store advances it holds old and new tensors."""
        empty: Keys = frozenset()
        steps = zip([empty, *content.phases], content.phases, strict=False)
        a_sample = max(sum(self.of(key) for key in before | after) for before, after in steps)
        return a_sample * content.images * (views if content.viewed else 1)


def room(part: StorePart, folder: Path) -> Room:
    """In memory the recipe's budget, by default half of what is free; on disk half of what is free."""
    memory = free_memory() / 2 if part.budget_gib is None else part.budget_gib * GIB
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Room(int(memory), shutil.disk_usage(place).free // 2)


def choose_views(sizes: Sizes, contents: Sequence[PlannedStore], available: Room, images: int, epochs: int) -> int:
    """The number of views of each of the training images, of which an epoch uses one; 1 where nothing has room.

    Of few images with few views deep stages learn the views by heart; docs/results.md has figures.
    """

    def needed(views: int) -> int:
        return sum(sizes.most(content, views) for content in contents)

    wanted = max(FEWEST_VIEWS, min(SAMPLES // images, epochs))
    while wanted > FEWEST_VIEWS and needed(wanted) > available.memory:
        wanted -= 1
    return wanted if needed(wanted) <= max(available.memory, available.disk) else 1


def choose_store(
    sizes: Sizes, contents: Sequence[PlannedStore], views: int, part: StorePart, available: Room
) -> StorePlace:
    """In memory, else on disk, else nowhere: then features are recomputed. Or where the recipe says."""
    needed = sum(sizes.most(content, views) for content in contents)
    if part.kind != "auto":
        kind: Kind = part.kind
    elif needed <= available.memory:
        kind = "memory"
    else:
        kind = "disk" if needed <= available.disk else "recompute"
    return StorePlace(kind, needed)
