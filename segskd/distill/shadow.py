"""A phase without storage: what it would compute and keep, counted before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.cards import Card
from segskd.distill.critics import critics_of
from segskd.distill.module import PhaseModule
from segskd.distill.needs import DATA, MASK_KEY, STUDENT, Key, phase_needs
from segskd.distill.phase import Phase
from segskd.distill.store import Batch
from segskd.models.adapters import Adapters
from segskd.models.stages import StagedNetwork, ghost, tap_shapes

Shapes = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Shadow:
    """The networks of a run by the owner of their taps, its adapters and discriminators, at a padded size."""

    networks: Mapping[str, StagedNetwork]
    adapters: Adapters
    critics: nn.ModuleDict
    card: Card
    size: Size

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module on the meta device, in training; the next call may train others of its stages."""
        student, adapters, critics = self._ghosts
        module = PhaseModule(phase, student, adapters, self.card, self.size, critics_of(critics, phase))
        module.start_training()
        return module

    def batch(self, phase: Phase, images: int) -> Batch:
        """What a training batch of so many images holds, in fp32."""
        return Batch({key: self._empty(key, images) for key in phase_needs(phase, self.networks[STUDENT])})

    @cached_property
    def _ghosts(self) -> tuple[StagedNetwork, Adapters, nn.ModuleDict]:
        return self.networks[STUDENT].on(ghost(self.networks[STUDENT].model)), ghost(self.adapters), ghost(self.critics)

    @cached_property
    def _shapes(self) -> dict[str, Shapes]:
        shapes = {owner: tap_shapes(network, self.size) for owner, network in self.networks.items()}
        return {**shapes, DATA: shapes[STUDENT]}

    def _empty(self, key: Key, images: int) -> Tensor:
        if key == MASK_KEY:
            return torch.empty(images, *self.size, dtype=torch.uint8, device="meta")
        return torch.empty(images, *self._shapes[key.owner][key.name], device="meta")
