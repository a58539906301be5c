"""What a run's training costs in arithmetic, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segskd.config import Recipe, make_recipe, merged
from segskd.distill.caching.inputs import IMAGE_KEY, MASK_KEY, Key, Keys, reach
from segskd.distill.planning.phase import Phase
from segskd.distill.running.prepare import prepare
from segskd.distill.training.job import Job
from segskd.models.build import input_channels
from segskd.models.stages import IMAGE, StagedNetwork, meta_copy

PAIR = 2
"""Images that are counted at once: a single one can be too little for batch normalisation."""
COUNTED = (10, 20)
"""Epochs a stage at which operations are counted, to tell those of any other number."""


def training_flops(job: Job, epochs: Sequence[int] | None = None) -> int:
    """Floating-point operations of all training steps and of filling the feature store; two a multiplication with sum.

    Validation and grafts are left out. Convolutions and products of matrices are counted, forwards and backwards.
    `epochs` are those that each phase was trained for, if not all of its own.
    """
    trained = [phase.epochs for phase in job.phases] if epochs is None else epochs
    counter = _Counter(job)
    total, held = 0, frozenset[Key]()
    samples = len(job.subset.train) * (job.recipe.data.views or 1)
    files = frozenset({IMAGE_KEY, MASK_KEY})
    for phase, wanted, count in zip(job.phases, job.contents.train, trained, strict=True):
        passes = count * len(job.images_of(phase))
        total += passes * counter.step(phase)
        recomputed = job.store.kind == "recompute"
        if job.placed(phase):  # what several processes all compute on the way to their own stages' features counts once
            fed = frozenset[Key]().union(*job.contents.placed)
            total += (passes if recomputed else samples) * counter.filling(files, fed)
        if recomputed:
            total += passes * counter.filling(files, wanted)
        else:
            total += samples * counter.filling(held | files, wanted)
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


def image_passes(job: Job, epochs: Sequence[int]) -> int:
    """How often an image takes part in a step, by the epochs that each phase was trained for.

    Every method gets the same number of them, unless phases end early.
    """
    return sum(count * len(job.images_of(phase)) for phase, count in zip(job.phases, epochs, strict=True))


class _Counter:
    """Operations an image, of one job."""

    def __init__(self, job: Job) -> None:
        self._on_meta = job.on_meta
        self._networks = job.by_owner
        self._stages = {
            owner: self._forward(network.on(meta_copy(network.model).eval())) for owner, network in job.by_owner.items()
        }

    def step(self, phase: Phase) -> int:
        """Of one step of the optimiser: forwards and backwards through what the phase runs."""
        module, batch = self._on_meta.module(phase), self._on_meta.batch(phase, PAIR)
        with FlopCounterMode(display=False) as counted, torch.enable_grad():
            found = module(batch)
            (found["loss"] + found["duel"]).backward()
        return int(counted.get_total_flops()) // PAIR

    def filling(self, known: Keys, wanted: Keys) -> int:
        """Of computing the wanted tensors from the known ones, without gradients."""
        computed = reach(known, wanted, self._networks) - known
        once = {(key.owner, self._networks[key.owner].stages[key.name].together[0]) for key in computed}
        return sum(self._stages[owner][name] for owner, name in once)

    def _forward(self, network: StagedNetwork) -> dict[str, int]:
        """Of every stage by itself."""
        features: dict[str, Tensor] = {
            IMAGE: torch.empty(PAIR, input_channels(network.model), *self._on_meta.size, device="meta")
        }
        counts: dict[str, int] = {}
        for place, name in enumerate(network.names):
            with FlopCounterMode(display=False) as counted, torch.no_grad():
                features |= network.run(features, self._on_meta.size, place, place)
            counts[name] = int(counted.get_total_flops()) // PAIR
        return counts
