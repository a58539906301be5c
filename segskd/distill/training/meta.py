"""A phase without storage: what it would compute and keep, counted before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.cards import Card
from segskd.devices import free_device_memory
from segskd.distill.caching.budget import ADAM_COPIES, GIB
from segskd.distill.caching.inputs import DATA, MASK_KEY, STUDENT, Key, phase_inputs
from segskd.distill.caching.store import Batch
from segskd.distill.planning.phase import Phase
from segskd.distill.training.discriminators import discriminators_of
from segskd.distill.training.module import PhaseModule
from segskd.errors import NoRoom
from segskd.models.adapters import Adapters
from segskd.models.stages import StagedNetwork, feature_shapes, meta_copy

Shapes = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class MetaNetworks:
    """The networks of a run by the owner of their features, its adapters and discriminators, at a padded size."""

    networks: Mapping[str, StagedNetwork]
    adapters: Adapters
    discriminators: nn.ModuleDict
    card: Card
    size: Size

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module on the meta device, in training; the next call may train others of its stages."""
        student, adapters, discriminators = self._ghosts
        module = PhaseModule(phase, student, adapters, self.card, self.size, discriminators_of(discriminators, phase))
        module.start_training()
        return module

    def batch(self, phase: Phase, images: int) -> Batch:
        """What a training batch of so many images holds, in fp32."""
        return Batch({key: self._empty(key, images) for key in phase_inputs(phase, self.networks[STUDENT])})

    @cached_property
    def _ghosts(self) -> tuple[StagedNetwork, Adapters, nn.ModuleDict]:
        return (
            self.networks[STUDENT].on(meta_copy(self.networks[STUDENT].model)),
            meta_copy(self.adapters),
            meta_copy(self.discriminators),
        )

    @cached_property
    def _shapes(self) -> dict[str, Shapes]:
        shapes = {owner: feature_shapes(network, self.size) for owner, network in self.networks.items()}
        return {**shapes, DATA: shapes[STUDENT]}

    def _empty(self, key: Key, images: int) -> Tensor:
        if key == MASK_KEY:
            return torch.empty(images, *self.size, dtype=torch.uint8, device="meta")
        return torch.empty(images, *self._shapes[key.owner][key.name], device="meta")


def check_step_fits(
    on_meta: MetaNetworks, phases: Sequence[Phase], batch: int, reserved: int, device: torch.device
) -> None:
    """Raises NoRoom when the largest training step needs more memory than is free beside `reserved` bytes."""
    needed = reserved + max(step_bytes(on_meta, phase, batch) for phase in phases)
    if needed > (free := free_device_memory(device)):
        height, width = on_meta.size
        raise NoRoom(
            f"--size {height}x{width} with --batch {batch} needs about {needed / GIB:.1f} GiB of memory and "
            f"{free / GIB:.1f} GiB are free: make --size, --batch or --store-budget smaller",
            needed,
            free,
        )


def step_bytes(on_meta: MetaNetworks, phase: Phase, batch: int) -> int:
    """Bytes of a training step of so many images, counted on tensors without storage, in fp32.

    The batch, what is kept for the backward pass, and weights, gradients and Adam's two moments of what is trained.
    """
    if batch == 1:  # batch normalisation refuses a single value a channel, which the smallest features of an image are
        return 2 * step_bytes(on_meta, phase, 2) - step_bytes(on_meta, phase, 3)
    module, given = on_meta.module(phase), on_meta.batch(phase, batch)
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
