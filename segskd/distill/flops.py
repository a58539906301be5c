"""What a run's training costs in arithmetic, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segskd.config import Recipe, make_recipe, merged
from segskd.distill.job import Job, prepare
from segskd.distill.module import PhaseModule
from segskd.distill.needs import DATA, IMAGE_KEY, MASK_KEY, Key, Keys, phase_needs, tap_key
from segskd.distill.phase import Phase
from segskd.distill.store import Batch
from segskd.models.stages import IMAGE, StagedNetwork, cut, ghost, tap_shapes

PAIR = 2
"""Images that are counted at once: a single one can be too little for batch normalisation."""
COUNTED = (10, 20)
"""Epochs a stage at which operations are counted, to tell those of any other number."""


def training_flops(job: Job) -> int:
    """Floating-point operations of all training steps and of filling the feature store; two a multiplication with sum.

    Validation and grafts are left out. Convolutions and products of matrices are counted, forwards and backwards.
    """
    counter = _Counter(job)
    total, held = 0, frozenset[Key]()
    samples = len(job.subset.train) * (job.recipe.data.views or 1)
    for phase, wanted in zip(job.phases, job.holdings.train, strict=True):
        passes = phase.epochs * len(job.images_of(phase))
        total += passes * counter.step(phase)
        if job.store.kind == "recompute":
            total += passes * counter.filling(frozenset({IMAGE_KEY, MASK_KEY}), wanted)
        else:
            total += samples * counter.filling(held | {IMAGE_KEY, MASK_KEY}, wanted)
            held = wanted
    return total


def epochs_within(recipe: Recipe, folder: Path, flops: float) -> int:
    """The most epochs a stage that train with at most so many operations, and at least one.

    Operations grow with epochs along a line, which two counts give; methods that share epochs out in whole numbers
    keep to it but for these. `folder` is where the run will lie. Raises UserError as `prepare` does.
    """
    few, many = (training_flops(prepare(_for(recipe, epochs), folder)) for epochs in COUNTED)
    each = (many - few) / (COUNTED[1] - COUNTED[0])
    return max(1, int((flops - few) / each + COUNTED[0]))


def _for(recipe: Recipe, epochs: int) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), {"optimisation": {"epochs": epochs}}))


def image_passes(job: Job) -> int:
    """How often an image takes part in a step: what every method gets the same number of."""
    return sum(phase.epochs * len(job.images_of(phase)) for phase in job.phases)


class _Counter:
    """Operations an image, of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shadows = {owner: cut(ghost(network.model).eval()) for owner, network in job.by_owner.items()}
        self._shapes = {owner: tap_shapes(network, job.size) for owner, network in job.by_owner.items()}
        self._stages = {owner: self._forward(shadow) for owner, shadow in self._shadows.items()}

    def step(self, phase: Phase) -> int:
        """Of one step of the optimiser: forwards and backwards through what the phase runs."""
        job, student = self._job, cut(ghost(self._job.student.model))
        real = job.module(phase)
        module = PhaseModule(phase, student, ghost(job.adapters), job.card, job.size, ghost(real.critics))
        module.start_training()
        batch = Batch({key: self._empty(key) for key in phase_needs(phase, student)})
        with FlopCounterMode(display=False) as counted, torch.enable_grad():
            module(batch)["loss"].backward()
        return int(counted.get_total_flops()) // PAIR

    def filling(self, known: Keys, wanted: Keys) -> int:
        """Of computing the wanted tensors from the known ones, without gradients."""
        reached = set(known)
        return sum(self._reach(key, reached) for key in sorted(wanted))

    def _reach(self, key: Key, reached: set[Key]) -> int:
        if key in reached:
            return 0
        reached.add(key)
        network = self._shadows[key.owner]
        sources = (tap_key(key.owner, name) for name in network.sources(network.index(key.name)))
        return self._stages[key.owner][key.name] + sum(self._reach(source, reached) for source in sources)

    def _forward(self, shadow: StagedNetwork) -> dict[str, int]:
        """Of every stage by itself."""
        taps: dict[str, Tensor] = {IMAGE: torch.empty(PAIR, 3, *self._job.size, device="meta")}
        counts: dict[str, int] = {}
        for place, name in enumerate(shadow.names):
            with FlopCounterMode(display=False) as counted, torch.no_grad():
                taps |= shadow.run(taps, self._job.size, place, place)
            counts[name] = int(counted.get_total_flops()) // PAIR
        return counts

    def _empty(self, key: Key) -> Tensor:
        if key == MASK_KEY:
            return torch.empty(PAIR, *self._job.size, dtype=torch.uint8, device="meta")
        shapes: Mapping[str, tuple[int, int, int]] = self._shapes["student" if key.owner == DATA else key.owner]
        return torch.empty(PAIR, *shapes[key.name], device="meta")
