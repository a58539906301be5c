"""A job: everything that a recipe names, loaded and checked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from segskd.config import Recipe, Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.samples import Samples
from segskd.data.transforms import ViewMaker, padded_size
from segskd.data.unlabelled import Example
from segskd.distill.caching.budget import Choice
from segskd.distill.caching.contents import StoreContents, compared_by
from segskd.distill.caching.inputs import STUDENT
from segskd.distill.caching.store import FeatureStore, Networks
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.training.discriminators import discriminators_of
from segskd.distill.training.meta import MetaNetworks
from segskd.distill.training.module import PhaseModule, steps_an_epoch
from segskd.distill.training.ranks import Ranks
from segskd.evaluate.diagnosis import Diagnosis
from segskd.models.adapters import Adapters
from segskd.models.stages import StagedNetwork

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A recipe with every default filled in, and all it names."""

    recipe: Recipe
    card: Card
    subset: Subset
    student: StagedNetwork
    teachers: dict[str, StagedNetwork]
    adapters: Adapters
    discriminators: nn.ModuleDict
    phases: list[Phase]
    planned: list[Phase]
    store: Choice
    contents: StoreContents
    ranks: Ranks
    diagnosis: Diagnosis | None = None

    @property
    def teacher(self) -> StagedNetwork | None:
        """The teacher itself, which is scored and grafted."""
        return self.teachers.get(TEACHER)

    @property
    def by_owner(self) -> dict[str, StagedNetwork]:
        """All networks by the owner of their features."""
        return {STUDENT: self.student, **self.teachers}

    @property
    def size(self) -> Size:
        """(height, width) of the tensors, padding included."""
        return padded_size(self.recipe.data.size)

    @property
    def batch(self) -> int:
        return min(self.recipe.optimisation.batch, len(self.subset.train))

    @property
    def chunk(self) -> int:
        """Images that this process holds at once: its part of a batch."""
        return -(-self.batch // self.ranks.count)

    @property
    def store_bits(self) -> int | None:
        """Bits in which the values of features are kept; None where they are kept as they come, or not at all."""
        return None if self.store.kind == "recompute" else self.recipe.store.bits

    def compared(self, phase: Phase) -> set[str]:
        """Stages that the method has compared with the teacher's by the end of the phase, an earlier run's included."""
        return compared_by(phase, self.planned)

    def images_of(self, phase: Phase) -> list[int]:
        """Places of the training images that the phase learns from."""
        return self.subset.labelled if phase.on_labels_alone else list(range(len(self.subset.train)))

    def placed(self, phase: Phase) -> bool:
        """Whether this job's processes share the phase's stages, not its images."""
        return phase.placed_on(self.ranks.count)

    def own_images_of(self, phase: Phase) -> list[int]:
        """The same of this process: places among the training images that it holds."""
        ranks = self.ranks
        if self.placed(phase):
            return self.images_of(phase)
        return [place // ranks.count for place in self.images_of(phase) if place % ranks.count == ranks.number]

    def steps_an_epoch(self, phase: Phase) -> int:
        """Steps of the optimiser in an epoch of a phase; of several processes each has at least two images in each."""
        images, count = len(self.images_of(phase)), self.ranks.count
        steps = steps_an_epoch(images, self.batch)
        return steps if count == 1 or self.placed(phase) else min(steps, images // count // 2)

    def steps(self, phase: Phase) -> int:
        """Steps of the optimiser in a phase."""
        return self.steps_an_epoch(phase) * phase.epochs

    def steps_before(self, phase: int) -> int:
        """Steps of all phases before the one at that place."""
        return sum(self.steps(done) for done in self.phases[:phase])

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module."""
        discriminators = discriminators_of(self.discriminators, phase)
        return PhaseModule(phase, self.student, self.adapters, self.card, self.size, discriminators)

    @cached_property
    def on_meta(self) -> MetaNetworks:
        """The same without storage."""
        return MetaNetworks(self.by_owner, self.adapters, self.discriminators, self.card, self.size)

    def networks(self) -> Networks:
        """The networks as stores use them."""
        device, dtype = self.ranks.fabric.device, DTYPES[self.recipe.precision]
        mixed = dtype != torch.float32
        return Networks(
            self.by_owner,
            self.size,
            device,
            dtype,
            lambda: torch.autocast(device.type, dtype) if mixed else nullcontext(),
        )

    def feature_store(self, pairs: Sequence[Pair | Example], views: int, folder: Path) -> FeatureStore:
        """A store of `views` views of the pairs."""
        make_view = ViewMaker(self.card, self.recipe.data.size, self.recipe.seed)
        samples = Samples(pairs, views, make_view, self.card)
        return FeatureStore(samples, self.networks(), self.store.kind, folder, self.chunk, self.store_bits)
