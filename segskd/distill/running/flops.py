"""The arithmetic of a run's training, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segskd.config import Recipe
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key, Keys, phase_inputs, reach
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.settle import changed
from segskd.distill.running.prepare import prepare
from segskd.distill.training.job import Job
from segskd.distill.training.networks import MetaNetworks
from segskd.models.build import input_channels
from segskd.models.stages import IMAGE, StagedNetwork, shape_copy

PAIR = 2
"""Images that are counted at once; batch normalisation can refuse a single one."""
LONG = 1000
"""So many epochs a stage have as many views as any run."""
COUNTED = (10, 20)
"""Epochs a stage at which operations are counted; they give those of any other number."""


def training_flops(job: Job, epochs: Sequence[int] | None = None) -> int:
    """Floating-point operations of all training steps and of filling the feature store.

    Convolutions and matrix products count, forwards and backwards; a multiplication with its addition is two.
    Validation and grafts don't count. `epochs` are those that each phase was trained for,
    by default all of its own.
    """
    trained = [phase.epochs for phase in job.phases] if epochs is None else epochs
    counter = _Counter(job)
    total, held = 0, frozenset[Key]()
    samples = len(job.subset.train) * job.views
    files = frozenset({IMAGE_KEY, MASK_KEY})
    for phase, wanted, count in zip(job.phases, job.plan.contents.train, trained, strict=True):
        passes = count * len(job.images_of(phase))
        total += passes * counter.step(phase)
        recomputed = job.plan.store.kind == "recompute"
        if job.placed(phase):  # what several processes compute each for itself counts once
            fed = frozenset[Key]().union(*job.plan.contents.placed)
            total += (passes if recomputed else samples) * counter.filling(files, fed)
        if recomputed or phase.fresh:
            total += passes * counter.filling(files, phase_inputs(phase, job.student) if phase.fresh else wanted)
        else:
            total += samples * counter.filling(held | files, wanted)
            held = wanted
    return total


def epochs_within(recipe: Recipe, folder: Path, flops: float) -> int:
    """The most epochs a stage that take at most so many operations, and at least one.

    With the same views operations grow linearly with epochs, so two counts are enough. Methods that divide epochs in
    whole numbers follow the line except for rounding. Where the recipe names no views, few epochs may have fewer, and
    the answer is searched between those for the fewest and the most views. `folder` is where the run will lie. Raises
    UserError as `prepare` does.
    """

    def job(epochs: int, views: int | None = None) -> Job:
        return prepare(changed(recipe, {"optimisation": {"epochs": epochs}, "data": {"views": views}}), folder)

    def on_a_line(views: int) -> int:
        few, many = (training_flops(job(epochs, views)) for epochs in COUNTED)
        each = (many - few) / (COUNTED[1] - COUNTED[0])
        return max(1, int((flops - few) / each + COUNTED[0]))

    found = {on_a_line(views) for views in {job(1).views, job(LONG).views}}
    least, most = min(found), max(found)
    while least < most:
        middle = -(-(least + most) // 2)
        least, most = (middle, most) if training_flops(job(middle)) <= flops else (least, middle - 1)
    return least


def image_passes(job: Job, epochs: Sequence[int]) -> int:
    """How many images all steps together had, given the epochs that each phase was trained for.

    It is the same for every method, unless phases end early.
    """
    return sum(count * len(job.images_of(phase)) for phase, count in zip(job.phases, epochs, strict=True))


class _Counter:
    """Counts the operations of a job for one image."""

    def __init__(self, job: Job) -> None:
        self._on_meta = MetaNetworks(job.networks, job.card, job.size, norms=False)
        self._networks = job.networks.by_name
        self._stages = {
            name: self._forward(network.on(shape_copy(network.model))) for name, network in job.networks.by_name.items()
        }

    def step(self, phase: Phase) -> int:
        """Of one training step: forwards and backwards through the stages that the phase runs."""
        module, batch = self._on_meta.module(phase), self._on_meta.batch(phase, PAIR)
        with FlopCounterMode(display=False) as counted, torch.enable_grad():
            losses = module(batch)
            (losses["loss"] + losses["adversarial"]).backward()
        return int(counted.get_total_flops()) // PAIR

    def filling(self, known: Keys, wanted: Keys) -> int:
        """Of computing the wanted tensors from the known ones, without gradients."""
        computed = reach(known, wanted, self._networks) - known
        runs = {(key.network, self._networks[key.network].stages[key.name].together[0]) for key in computed}
        return sum(self._stages[network][name] for network, name in runs)

    def _forward(self, network: StagedNetwork) -> dict[str, int]:
        """Of every stage's forward pass by itself."""
        features: dict[str, Tensor] = {
            IMAGE: torch.empty(PAIR, input_channels(network.model), *self._on_meta.size, device="meta")
        }
        counts: dict[str, int] = {}
        for place, name in enumerate(network.names):
            with FlopCounterMode(display=False) as counted, torch.no_grad():
                features |= network.run(features, self._on_meta.size, place, place)
            counts[name] = int(counted.get_total_flops()) // PAIR
        return counts
