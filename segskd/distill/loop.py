"""One phase's optimiser and schedule, and the stores that feed it."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from segskd.distill.job import Job
from segskd.distill.module import PhaseModule
from segskd.distill.needs import phase_needs
from segskd.distill.plan import default_lr
from segskd.distill.store import FeatureStore
from segskd.errors import UserError
from segskd.runs import Run


class Loop:
    """One phase's module, optimiser and schedule."""

    def __init__(self, job: Job, module: PhaseModule) -> None:
        phase = module.phase
        self.phase = phase
        self.module = module
        self.steps = job.steps_an_epoch(phase)
        self.loss = math.nan
        part = job.recipe.optimisation
        self._ranks = job.ranks
        self.needs = phase_needs(phase, job.student)
        self._ignored = job.card.ignore_index
        rate = part.lr or default_lr(job.recipe)
        self._optimiser = torch.optim.Adam(
            module.trained_parameters(), lr=rate, weight_decay=part.weight_decay, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=rate, total_steps=phase.epochs * self.steps
        )
        wrapped, optimiser = self._ranks.fabric.setup(module, self._optimiser)
        self.wrapped: nn.Module = wrapped
        self._stepper: Any = optimiser

    @property
    def rate(self) -> float:
        return float(self._optimiser.param_groups[0]["lr"])

    def step(self, store: FeatureStore, numbers: Tensor) -> float:
        """One step of the optimiser; the student's loss, over all processes. Raises UserError when that is no number.

        Processes with more images in the step, or more labelled pixels, weigh as much more.
        """
        ranks, images, share = self._ranks, len(numbers), 1.0
        batch = store.batch(numbers, self.needs)
        if ranks.count > 1:
            labelled = int((batch.mask != self._ignored).sum()) if self.phase.labels else 0
            all_images, all_labelled = ranks.total(images, labelled)
            share = images * ranks.count / all_images
            batch.counted = all_labelled * images / all_images
        found = self.wrapped(batch)
        loss = found["loss"] + found["duel"]
        self.loss = ranks.total(float(found["loss"].detach()) * share)[0] / ranks.count
        if not math.isfinite(self.loss):
            message = f"the loss of {self.phase.name} became {self.loss}: use a smaller --lr, or --precision 32"
            raise ranks.refuse(UserError(message))
        ranks.fabric.backward(loss * share)
        self._stepper.step()
        self._stepper.zero_grad()
        self._schedule.step()
        return self.loss

    def weights(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.module.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        return {
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "critics": self.module.critics.state_dict(),
        }

    def skip_to(self, epoch: int) -> None:
        """Goes on at the rate with which that epoch begins."""
        self._schedule.last_epoch = epoch * self.steps - 1
        self._schedule.step()

    def restore(self, state: dict[str, Any]) -> None:
        if state:
            self._restore_optimiser(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
            self.module.critics.load_state_dict(state.get("critics", {}))

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        groups = [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]
        self._optimiser.load_state_dict({**state, "param_groups": groups})
        for parameter, moments in self._optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):  # fused Adam walks through memory: each must lie as its weights do
                moments[name] = torch.empty_like(parameter).copy_(moments[name])


class Stores:
    """The feature stores of this process's part of the training, held-out and validation images."""

    def __init__(self, job: Job, run: Run) -> None:
        folder = run.path / "store" / str(job.ranks.number)
        own = job.ranks.part
        views = job.recipe.data.views or 1
        self._holdings = job.holdings
        self._folder = folder
        self.train = job.feature_store(own(job.subset.train), views, folder / "train")
        self.holdout = job.feature_store(own(job.subset.holdout), 1, folder / "holdout")
        self.val = job.feature_store(own(job.subset.val), 1, folder / "val")

    @property
    def bytes(self) -> int:
        return sum(store.bytes for store in (self.train, self.holdout, self.val))

    def advance(self, phase: int, progress: Callable[[int, int], None]) -> None:
        self.train.advance(self._holdings.train[phase], progress)
        self.holdout.advance(self._holdings.holdout[phase], progress)
        self.val.advance(self._holdings.val[phase], progress)

    def close(self) -> None:
        for store in (self.train, self.holdout, self.val):
            store.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # others' parts may still lie in it
            self._folder.parent.rmdir()
