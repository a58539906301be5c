"""Decides before training where the feature store fits, how many views it holds, and whether a step fits at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from segskd.config import Size, StorePart
from segskd.devices import free_device_memory, free_memory
from segskd.distill.needs import DATA, MASK_KEY, STUDENT, Key, Keys
from segskd.distill.phase import Phase
from segskd.distill.shadow import Shadow
from segskd.distill.store import Kind
from segskd.errors import NoRoom
from segskd.models.stages import IMAGE, StagedNetwork, tap_shapes

GIB = 2**30
DEFAULT_VIEWS = 4
ADAM_COPIES = 4
RANGE = 8
"""Bytes of the range of a channel that is kept in 8 bits."""
Shapes = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Holding:
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
        """`networks` by the owner of their taps, which are kept in 8 `bits` a value or else as `dtype`."""
        self._shapes: dict[str, Shapes] = {owner: tap_shapes(network, size) for owner, network in networks.items()}
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

    def most(self, holding: Holding, views: int) -> int:
        """The most bytes held at once: when a store advances, old and new tensors lie side by side."""
        empty: Keys = frozenset()
        steps = zip([empty, *holding.phases], holding.phases, strict=False)
        a_sample = max(sum(self.of(key) for key in before | after) for before, after in steps)
        return a_sample * holding.images * (views if holding.viewed else 1)


def room(part: StorePart, folder: Path) -> Room:
    """The stated budget, else half of the free memory; and half of the free disk."""
    memory = free_memory() / 2 if part.budget_gib is None else part.budget_gib * GIB
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Room(int(memory), shutil.disk_usage(place).free // 2)


def choose_views(sizes: Sizes, holdings: Sequence[Holding], available: Room) -> int:
    """DEFAULT_VIEWS where memory or disk takes them, else 1."""
    needed = sum(sizes.most(holding, DEFAULT_VIEWS) for holding in holdings)
    return DEFAULT_VIEWS if needed <= max(available.memory, available.disk) else 1


def choose_store(sizes: Sizes, holdings: Sequence[Holding], views: int, part: StorePart, available: Room) -> Choice:
    """Memory, else memory-mapped disk, else recomputing; or what the recipe asks for."""
    needed = sum(sizes.most(holding, views) for holding in holdings)
    if part.kind != "auto":
        kind: Kind = part.kind
    elif needed <= available.memory:
        kind = "memory"
    else:
        kind = "disk" if needed <= available.disk else "recompute"
    return Choice(kind, views, needed)


def check_step_fits(shadow: Shadow, phases: Sequence[Phase], batch: int, reserved: int, device: torch.device) -> None:
    """Raises NoRoom when the largest training step needs more memory than is free beside `reserved` bytes."""
    needed = reserved + max(step_bytes(shadow, phase, batch) for phase in phases)
    if needed > (free := free_device_memory(device)):
        height, width = shadow.size
        raise NoRoom(
            f"--size {height}x{width} with --batch {batch} needs about {needed / GIB:.1f} GiB of memory and "
            f"{free / GIB:.1f} GiB are free: make --size, --batch or --store-budget smaller",
            needed,
            free,
        )


def step_bytes(shadow: Shadow, phase: Phase, batch: int) -> int:
    """Bytes of a training step of so many images, counted on tensors without storage, in fp32.

    The batch, what is kept for the backward pass, and weights, gradients and Adam's two moments of what is trained.
    """
    if batch == 1:  # batch normalisation refuses a single value a channel, which the smallest taps of an image are
        return 2 * step_bytes(shadow, phase, 2) - step_bytes(shadow, phase, 3)
    module, given = shadow.module(phase), shadow.batch(phase, batch)
    keep = list(given.tensors.values())
    seen = {_place(tensor): _bytes(tensor) for tensor in keep}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[_place(tensor)] = _bytes(tensor)
        keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(given)
    return sum(seen.values()) + ADAM_COPIES * sum(_bytes(tensor) for tensor in module.trained_parameters())


def _place(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
