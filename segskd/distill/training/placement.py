"""Stages that don't read each other's features, shared out among processes: each process trains its own, on all images.

Blakeney et al. (arXiv 2012.03096) train the blocks of a network in parallel in this way. No gradients are exchanged,
and batch normalisation sees the whole batch, as in one process.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segskd.devices import synchronise
from segskd.distill.caching.store import Batch
from segskd.distill.planning.phase import Phase, part_of
from segskd.distill.training.job import Job
from segskd.distill.training.loop import Loop
from segskd.distill.training.module import PhaseModule

Placement = list[list[str]]
"""The stages of each process."""
TIMED_STEPS = 3


def place(costs: Mapping[str, float], processes: int) -> Placement:
    """Gives each stage to a process: the costliest first, always to the process with the least to do (Graham, 1969).

    `costs` by stage, in any unit. The stages of each process are in the order of `costs`.
    """
    loads = [0.0] * processes
    parts: Placement = [[] for _ in loads]
    for name in sorted(costs, key=lambda name: -costs[name]):
        least = loads.index(min(loads))
        loads[least] += costs[name]
        parts[least].append(name)
    order = list(costs)
    return [sorted(part, key=order.index) for part in parts]


def step_seconds(job: Job, phase: Phase) -> dict[str, float]:
    """The median seconds of each stage's forward and backward pass on this process's device; nothing is trained."""
    networks = job.feature_computer()
    copied = job.student.on(copy.deepcopy(job.student.model))
    spare = replace(job, networks=replace(job.networks, student=copied))
    generator = torch.Generator().manual_seed(0)
    seconds = {}
    for name in phase.trained:
        part = part_of(phase, (name,))
        module = spare.module(part)
        module.start_training()
        batch = Batch(
            {
                key: _random(shape, networks.dtype, generator).to(networks.device)
                for key, shape in job.on_meta.batch(part, job.batch).tensors.items()
            }
        )
        times = []
        for _ in range(1 + TIMED_STEPS):  # the first step is slower
            synchronise(networks.device)
            started = time.perf_counter()
            with networks.autocast():
                loss = module(batch)["loss"]
            loss.backward()
            synchronise(networks.device)
            times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times[1:])
    return seconds


def _random(like: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Noise in the shape of a feature, or a mask of the first class."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.randn(like.shape, generator=generator).to(dtype).to(memory_format=torch.channels_last)


class PlacedLoop(Loop):
    """The loop of a phase of which this process trains some stages; figures and state are those of the whole phase."""

    def __init__(self, job: Job, phase: Phase, placement: Placement) -> None:
        self._whole: PhaseModule = job.module(phase)
        self._whole.start_training()
        order = {id(parameter): place for place, parameter in enumerate(self._whole.trained_parameters())}
        self._count = len(order)
        self._parts = [part_of(phase, stages) for stages in placement]
        module = job.module(self._parts[job.ranks.number])
        module.start_training()
        super().__init__(job, module, job.ranks.own, phase)
        self._places = [order[id(parameter)] for parameter in module.trained_parameters()]
        """The places of this process's parameters among all that the phase trains."""
        self._job = job

    def _share(self, batch: Batch) -> float:
        return 1.0

    def _of_all(self, loss: float) -> float:
        return self._ranks.total(loss)[0]

    def bring_together(self) -> None:
        """Gives every process the stages of all others."""
        for source, part in enumerate(self._parts):
            module = self._job.module(part)
            stages = [self._job.student.stages[name] for name in part.trained]
            self._ranks.spread([tensor for one in (*stages, *module.adapters) for tensor in _values(one)], source)

    def evaluated(self, batch: Batch) -> Tensor:
        """See Loop.evaluated: the loss of all stages, which every process has after `bring_together`."""
        with self._job.feature_computer().autocast():
            loss: Tensor = self._whole(batch)["loss"]
        return loss

    def weights(self) -> dict[str, Tensor]:
        """See Loop.weights."""
        return copy.deepcopy(self._whole.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """See Loop.load_weights."""
        self._whole.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        """The state that one process training all stages would have, so that any number of processes can resume."""
        state = super().state()
        moments: dict[int, Any] = {}
        for part in self._ranks.gather(_on_cpu(self._places, state["optimiser"]["state"])):
            moments |= part
        return {**state, "optimiser": _regrouped(state["optimiser"], moments, self._count)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores this process's part of a state."""
        if state:
            moments = state["optimiser"]["state"]
            own = {number: moments[place] for number, place in enumerate(self._places) if place in moments}
            state = {**state, "optimiser": _regrouped(state["optimiser"], own, len(self._places))}
        super().restore(state)


def _values(module: torch.nn.Module) -> Sequence[Tensor]:
    return list(module.state_dict().values())


def _on_cpu(places: Sequence[int], moments: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {places[number]: {name: value.cpu() for name, value in own.items()} for number, own in moments.items()}


def _regrouped(state: Mapping[str, Any], moments: Mapping[int, Any], parameters: int) -> dict[str, Any]:
    groups = [{**group, "params": list(range(parameters))} for group in state["param_groups"]]
    return {"state": dict(sorted(moments.items())), "param_groups": groups}
