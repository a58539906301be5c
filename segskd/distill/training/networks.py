"""The networks of a run, and their copies without storage, on which the memory of a step is counted beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from segskd.config import Recipe, Size, named
from segskd.data.cards import Card
from segskd.devices import free_device_memory, free_memory
from segskd.distill.caching.budget import ADAM_COPIES, GIB, StorePlace
from segskd.distill.caching.contents import DATA, MASK_KEY, STUDENT, Key, phase_inputs
from segskd.distill.caching.store import Batch
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import TEACHER, Phase, part_of
from segskd.distill.training.discriminators import discriminators_of
from segskd.distill.training.module import PhaseModule
from segskd.errors import NoRoom
from segskd.models.adapters import Adapters
from segskd.models.stages import StagedNetwork, feature_shapes, meta_copy, scale_only

Shapes = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Networks:
    """The networks of a run. Its teachers are the teacher itself and, before it, snapshots of its training."""

    student: StagedNetwork
    teachers: dict[str, StagedNetwork]
    adapters: Adapters
    discriminators: nn.ModuleDict

    @property
    def teacher(self) -> StagedNetwork | None:
        """The teacher itself."""
        return self.teachers.get(TEACHER)

    @property
    def by_name(self) -> dict[str, StagedNetwork]:
        """The student and the teachers by the names that `contents.Key` gives them."""
        return {STUDENT: self.student, **self.teachers}


@dataclass(frozen=True)
class MetaNetworks:
    """A run's networks without storage, at a padded size."""

    networks: Networks
    card: Card
    size: Size
    norms: bool = True
    """Without norms batch normalisation does not normalise; see `scale_only`. The matrix products stay the same."""

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module without storage, in training mode. The next call sets which stages are trained anew."""
        student, adapters, discriminators = self._ghosts
        module = PhaseModule(phase, student, adapters, self.card, self.size, discriminators_of(discriminators, phase))
        module.start_training()
        return module

    def batch(self, phase: Phase, images: int) -> Batch:
        """A training batch of so many images, in fp32."""
        return Batch({key: self._empty(key, images) for key in phase_inputs(phase, self.networks.student)})

    @cached_property
    def _ghosts(self) -> tuple[StagedNetwork, Adapters, nn.ModuleDict]:
        student = meta_copy(self.networks.student.model)
        if not self.norms:
            scale_only(student)
        return (
            self.networks.student.on(student),
            meta_copy(self.networks.adapters),
            meta_copy(self.networks.discriminators),
        )

    @cached_property
    def _shapes(self) -> dict[str, Shapes]:
        shapes = {name: feature_shapes(network, self.size) for name, network in self.networks.by_name.items()}
        return {**shapes, DATA: shapes[STUDENT]}

    def _empty(self, key: Key, images: int) -> Tensor:
        if key == MASK_KEY:
            return torch.empty(images, *self.size, dtype=torch.uint8, device="meta")
        return torch.empty(images, *self._shapes[key.network][key.name], device="meta")


def check_memory(
    recipe: Recipe, subset: Subset, on_meta: MetaNetworks, phases: Sequence[Phase], store: StorePlace, processes: int
) -> None:
    """Raises NoRoom when the store in memory, or a step of a phase beside it, needs more memory than is free."""
    device = torch.device(recipe.device)
    batch = min(recipe.optimisation.batch, len(subset.train))
    in_memory = store.bytes if store.kind == "memory" else 0
    if in_memory > (free := free_memory()):
        raise NoRoom(
            f"the feature store needs {in_memory / 2**30:.1f} GiB of memory: take {named('store.kind')} disk, or fewer "
            f"{named('data.views')}",
            in_memory,
            free,
            "store.kind",
        )
    in_memory *= device.type != "cuda"
    split = [phase for phase in phases if not phase.placed_on(processes)]
    placed = [part_of(phase, (name,)) for phase in phases if phase.placed_on(processes) for name in phase.trained]
    for some, images in ((split, -(-batch // processes)), (placed, batch)):
        if some:
            check_step_fits(on_meta, some, images, in_memory, device)


def check_step_fits(
    on_meta: MetaNetworks, phases: Sequence[Phase], batch: int, reserved: int, device: torch.device
) -> None:
    """Raises NoRoom when the largest training step and `reserved` bytes need more memory than is free."""
    needed = reserved + max(step_bytes(on_meta, phase, batch) for phase in phases)
    if needed > (free := free_device_memory(device)):
        height, width = on_meta.size
        size, images, budget = named("data.size"), named("optimisation.batch"), named("store.budget_gib")
        raise NoRoom(
            f"{size} {height}x{width} with {images} {batch} needs about {needed / GIB:.1f} GiB of memory and "
            f"{free / GIB:.1f} GiB are free: make {size}, {images} or {budget} smaller",
            needed,
            free,
            "optimisation.batch",
        )


def step_bytes(on_meta: MetaNetworks, phase: Phase, batch: int) -> int:
    """Bytes of a training step of so many images in fp32, counted on tensors without storage.

    They are the batch, the tensors kept for the backward pass, and weights, gradients and Adam's two moments of the
    trained stages.
    """
    if batch == 1:  # batch normalisation refuses one value a channel, which deep features of one small image are
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
