"""A job: a recipe with all that it names, loaded, checked and planned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from segskd.config import Recipe, Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.samples import Samples
from segskd.data.transforms import ViewMaker, padded_size
from segskd.data.unlabelled import Example
from segskd.distill.caching.budget import StorePlace
from segskd.distill.caching.contents import StoreContents, compared_by
from segskd.distill.caching.store import FeatureComputer, FeatureStore
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.settle import filled_in
from segskd.distill.training.discriminators import discriminators_of
from segskd.distill.training.module import PhaseModule, steps_an_epoch
from segskd.distill.training.networks import MetaNetworks, Networks
from segskd.distill.training.ranks import Ranks
from segskd.evaluate.diagnosis import Diagnosis
from segskd.models.stages import StagedNetwork

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """What a run trains in which order, and where it keeps features meanwhile.

    `phases` are the run's; `method_phases` all those of its method, of which a branch carries out the last ones.
    """

    phases: list[Phase]
    method_phases: list[Phase]
    store: StorePlace
    contents: StoreContents


@dataclass(frozen=True)
class Job:
    """A recipe with every default filled in, and all that it names, loaded and checked.

    `first_weights` says in sentences what a new run's network begins with, beside random weights.
    """

    recipe: Recipe
    card: Card
    subset: Subset
    networks: Networks
    plan: Plan
    ranks: Ranks
    diagnosis: Diagnosis | None = None
    first_weights: tuple[str, ...] = ()

    @property
    def student(self) -> StagedNetwork:
        return self.networks.student

    @property
    def teacher(self) -> StagedNetwork | None:
        """The teacher itself, which is scored and grafted."""
        return self.networks.teacher

    @property
    def phases(self) -> list[Phase]:
        return self.plan.phases

    @property
    def views(self) -> int:
        """Views of each training image."""
        return filled_in(self.recipe.data.views)

    @property
    def size(self) -> Size:
        """(height, width) of the tensors, padding included."""
        return padded_size(self.recipe.data.size)

    @property
    def batch(self) -> int:
        return min(self.recipe.optimisation.batch, len(self.subset.train))

    @property
    def chunk(self) -> int:
        """Images that this process holds at once: its part of a batch, rounded up."""
        return -(-self.batch // self.ranks.count)

    @property
    def store_bits(self) -> int | None:
        """Bits of a stored value; None where features keep their own precision, or are not stored."""
        return None if self.plan.store.kind == "recompute" else self.recipe.store.bits

    def compared(self, phase: Phase) -> set[str]:
        """Stages compared with the teacher's by the end of the phase, in this run or the one that it begins from."""
        return compared_by(phase, self.plan.method_phases)

    def images_of(self, phase: Phase) -> list[int]:
        """Places of the training images that the phase learns from."""
        return self.subset.labelled if phase.on_labels_alone else list(range(len(self.subset.train)))

    def placed(self, phase: Phase) -> bool:
        """Whether the processes divide the phase's stages among them, and not its images."""
        return phase.placed_on(self.ranks.count)

    def own_images_of(self, phase: Phase) -> list[int]:
        """Places of the same images among those that this process holds, as far as it holds them."""
        ranks = self.ranks
        if self.placed(phase):
            return self.images_of(phase)
        return [place // ranks.count for place in self.images_of(phase) if place % ranks.count == ranks.number]

    def steps_an_epoch(self, phase: Phase) -> int:
        """Steps in an epoch of a phase. With several processes each has at least two images in each step."""
        images, count = len(self.images_of(phase)), self.ranks.count
        steps = steps_an_epoch(images, self.batch)
        return steps if count == 1 or self.placed(phase) else min(steps, images // count // 2)

    def steps(self, phase: Phase) -> int:
        """Steps in a phase."""
        return self.steps_an_epoch(phase) * phase.epochs

    def steps_before(self, phase: int) -> int:
        """Steps of all phases before the one at place `phase`."""
        return sum(self.steps(done) for done in self.phases[:phase])

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module."""
        discriminators = discriminators_of(self.networks.discriminators, phase)
        return PhaseModule(phase, self.student, self.networks.adapters, self.card, self.size, discriminators)

    @cached_property
    def on_meta(self) -> MetaNetworks:
        """The networks without storage."""
        return MetaNetworks(self.networks, self.card, self.size)

    def feature_computer(self) -> FeatureComputer:
        """What stores compute features with."""
        device, dtype = self.ranks.fabric.device, DTYPES[self.recipe.precision]
        mixed = dtype != torch.float32
        return FeatureComputer(
            self.networks.by_name,
            self.size,
            device,
            dtype,
            lambda: torch.autocast(device.type, dtype) if mixed else nullcontext(),
        )

    def feature_store(self, pairs: Sequence[Pair | Example], views: int, folder: Path) -> FeatureStore:
        """A store of `views` views of the pairs."""
        samples = self._samples(pairs, views)
        return FeatureStore(samples, self.feature_computer(), self.plan.store.kind, folder, self.chunk, self.store_bits)

    def fresh_store(self, pairs: Sequence[Pair | Example], phase: Phase, folder: Path) -> FeatureStore:
        """A store that keeps nothing, with another view of the pairs for every epoch of the phase."""
        samples = self._samples(pairs, phase.epochs)
        return FeatureStore(samples, self.feature_computer(), "recompute", folder, self.chunk)

    def _samples(self, pairs: Sequence[Pair | Example], views: int) -> Samples:
        return Samples(pairs, views, ViewMaker(self.card, self.recipe.data.size, self.recipe.seed), self.card)
