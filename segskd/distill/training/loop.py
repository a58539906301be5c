"""One phase's optimiser and schedule, and the stores that its batches come from."""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from segskd.config import named
from segskd.distill.caching.contents import Keys, phase_inputs
from segskd.distill.caching.store import Batch, FeatureStore
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.settle import peak_rate
from segskd.distill.training.adam import Adam
from segskd.distill.training.job import Job
from segskd.distill.training.module import PhaseModule
from segskd.errors import UserError
from segskd.runs import Run


class Loop:
    """One phase's module, optimiser and schedule."""

    def __init__(self, job: Job, module: PhaseModule, fabric: Fabric | None = None, phase: Phase | None = None) -> None:
        """`fabric` is by default that of all processes; `phase` is given where the module trains a part of it."""
        self.phase = phase = phase or module.phase
        self.module = module
        self.steps = job.steps_an_epoch(phase)
        self.loss = self.rate = math.nan
        """Of the last step."""
        part = job.recipe.optimisation
        self._ranks = job.ranks
        self.inputs = phase_inputs(module.phase, job.student)
        self.evaluated_on = phase_inputs(phase, job.student)
        self._ignored = job.card.ignore_index
        rate = peak_rate(job.recipe, phase)
        self._by_lr = phase.alone or job.recipe.kind == "teach"
        self._optimiser = Adam(module.trained_parameters(), lr=rate, weight_decay=part.weight_decay)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=rate, total_steps=phase.epochs * self.steps
        )
        self._fabric = fabric or self._ranks.fabric
        wrapped, optimiser = self._fabric.setup(module, self._optimiser)
        self.wrapped: nn.Module = wrapped
        self._stepper: Any = optimiser

    def step(self, batch: Batch) -> float:
        """Does one step of the optimiser, and returns the student's loss over all processes.

        Raises UserError when the loss is not finite.
        """
        share = self._share(batch)
        self.module.done = self._schedule.last_epoch / self._schedule.total_steps
        losses = self.wrapped(batch)
        loss = losses["loss"] + losses["adversarial"]
        self.loss = self._of_all(float(losses["loss"].detach()) * share)
        if not math.isfinite(self.loss):
            field = "optimisation.lr" if self._by_lr else "optimisation.joint_lr"
            mend = f"use a smaller {named(field)}, or {named('precision')} 32"
            message = f"the loss of {self.phase.name} became {self.loss}: {mend}"
            raise self._ranks.refuse(UserError(message, field))
        self._fabric.backward(loss * share)
        self._optimiser.take_gradients()
        self.rate = float(self._optimiser.param_groups[0]["lr"])
        self._stepper.step()
        self._stepper.zero_grad()
        self._schedule.step()
        return self.loss

    def _share(self, batch: Batch) -> float:
        """The weight of this process's loss, in proportion to its images in the step; counts labelled pixels, too."""
        ranks, images = self._ranks, len(batch)
        if ranks.count == 1:
            return 1.0
        labelled = int((batch.mask != self._ignored).sum()) if self.phase.labels else 0
        all_images, all_labelled = ranks.total(images, labelled)
        batch.counted = all_labelled * images / all_images
        return images * ranks.count / all_images

    def _of_all(self, loss: float) -> float:
        """The loss of all processes."""
        return self._ranks.total(loss)[0] / self._ranks.count

    def bring_together(self) -> None:
        """Makes the student the same in every process: until now each had running statistics of its own."""
        self._ranks.average(self.module.stages)

    def evaluated(self, batch: Batch) -> Tensor:
        """The student's loss on a batch of this process's part of the held-out images."""
        self.module.done = 1.0  # so that losses of different epochs can be compared
        loss: Tensor = self.wrapped(batch)["loss"]
        return loss

    def weights(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.module.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        # States of older versions call discriminators critics.
        self.module.load_state_dict({re.sub(r"^critics\.", "discriminators.", name): w for name, w in weights.items()})

    def state(self) -> dict[str, Any]:
        return {
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "discriminators": self.module.discriminators.state_dict(),
        }

    def skip_to(self, epoch: int) -> None:
        """Sets the schedule to the beginning of that epoch."""
        self._schedule.last_epoch = epoch * self.steps - 1
        self._schedule.step()

    def restore(self, state: dict[str, Any]) -> None:
        if state:
            self._optimiser.load_state_dict(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
            self.module.discriminators.load_state_dict(state.get("discriminators", state.get("critics", {})))


class Stores:
    """The feature stores of this process's part of the training, held-out and validation images."""

    def __init__(self, job: Job, run: Run) -> None:
        folder = run.path / "store" / str(job.ranks.number)
        own = job.ranks.part
        self._job = job
        self._folder = folder
        self.train = job.feature_store(own(job.subset.train), job.views, folder / "train")
        self.holdout = job.feature_store(own(job.subset.holdout), 1, folder / "holdout")
        self.val = job.feature_store(own(job.subset.val), 1, folder / "val")
        self.all_train = job.feature_store(job.subset.train, job.views, folder / "all_train")
        """All processes' training images: the inputs of the stages that this process trains alone."""
        self._fresh: dict[str, FeatureStore] = {}

    @property
    def bytes(self) -> int:
        return sum(store.bytes for store in self._all)

    @property
    def _all(self) -> tuple[FeatureStore, ...]:
        return self.train, self.holdout, self.val, self.all_train

    def advance(self, place: int, progress: Callable[[int, int], None], own_inputs: Keys | None = None) -> None:
        """Fills the stores for the phase at `place`; `own_inputs` are those of stages that it trains alone."""
        contents = self._job.plan.contents
        self.train.advance(contents.train[place], progress)
        self.holdout.advance(contents.holdout[place], progress)
        self.val.advance(contents.val[place], progress)
        self.all_train.advance(own_inputs or frozenset(), progress)

    def training(self, phase: Phase) -> FeatureStore:
        """The store that the phase's batches come from."""
        if phase.fresh:
            if phase.name not in self._fresh:
                own = self._job.ranks.part(self._job.subset.train)
                self._fresh[phase.name] = self._job.fresh_store(own, phase, self._folder / "fresh")
            return self._fresh[phase.name]
        return self.all_train if self._job.placed(phase) else self.train

    def close(self) -> None:
        for store in self._all:
            store.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # other processes may still use it
            self._folder.parent.rmdir()
