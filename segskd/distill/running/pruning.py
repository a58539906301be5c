"""Pruned runs: another run's student made narrower, then repaired stage by stage against the same teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segskd.config import PrunePart, Recipe, Size
from segskd.data.cards import Card
from segskd.distill.planning.settle import changed, filled_in
from segskd.distill.running.branch import (
    BaseRun,
    Branch,
    base_run,
    check_shared,
    check_teacher,
    optimisation_before,
)
from segskd.errors import UserError
from segskd.models.adapters import Adapters
from segskd.models.build import load
from segskd.models.prune import prune
from segskd.models.stages import StagedNetwork
from segskd.runs import Run, default_name, free_name, list_runs

RECOVERY = 2
"""A stage is repaired for its epochs of training divided by this."""


def prune_recipe(run: Run, ratio: float, epochs: int | None = None) -> Recipe:
    """The recipe of a run that prunes a finished run's student and repairs it on the same images.

    Each stage is trained against its feature, then the head on labels, for `epochs` each (half of what the run had).
    Raises UserError when the run isn't finished, has no teacher, or is pruned itself.
    """
    recipe = run.recipe
    if run.status() != "finished":
        raise UserError(f"run {run.name} is {run.status()}: only a finished run's student can be pruned")
    if recipe.kind != "distill" or recipe.teacher is None:
        raise UserError(f"run {run.name} has no teacher, against which a pruned network could be repaired")
    if recipe.prune:
        name = Path(recipe.prune.run).name
        raise UserError(f"run {run.name} is pruned already: prune {name}, which it came from, at another ratio")
    stagewise: dict[str, Any] = {
        "method": "stagewise",
        "options": {},
        "begin": None,
        "weights": None,
        "sync_batchnorm": False,
    }
    before = optimisation_before(run)
    shorter = epochs or max(1, filled_in(before.epochs) // RECOVERY)
    repaired = {"epochs": shorter, "lr": before.lr, "joint_lr": before.joint_lr}
    prune_part = {"run": str(run.path.resolve()), "ratio": ratio}
    return changed(recipe.model_copy(update=stagewise), {"prune": prune_part, "optimisation": repaired})


def pruned_runs(run: Run) -> list[Run]:
    """The runs beside `run` that prune its student, the newest first; damaged ones and branches left out."""
    runs = []
    for other in list_runs(run.path.parent):
        try:
            pruned, begun = other.recipe.prune, other.recipe.begin
        except UserError:
            continue
        if pruned and not begun and Path(pruned.run) == run.path.resolve():
            runs.append(other)
    return runs


def plan_pruned(run: Run, ratio: float, epochs: int | None = None) -> tuple[Recipe, Path]:
    """The recipe that prunes a run, and the folder of the pruned run beside it, which may exist already."""
    recipe = prune_recipe(run, ratio, epochs)
    for known in pruned_runs(run):
        if _figures(known.recipe) == _figures(recipe):
            return recipe, known.path
    beside = run.path.parent
    return recipe, beside / free_name(default_name(recipe, recipe.data.card), beside)


def _figures(recipe: Recipe) -> list[object]:
    """What a pruned run's figures depend on. Its batch may have been halved, and the machine be another one."""
    part = recipe.optimisation
    rates = (part.lr, part.joint_lr or part.lr)
    return [recipe.prune, part.epochs, rates, part.weight_decay, recipe.data.size, recipe.seed, recipe.select]


class Pruning(BaseRun):
    """The run whose student a pruned run begins with: a finished student with its adapters and its images."""

    def __init__(self, part: PrunePart) -> None:
        super().__init__(part.run)
        self.ratio = part.ratio

    @property
    def recipe_part(self) -> dict[str, Any]:
        """See BaseRun."""
        return {"prune": {"run": self.path}}

    def hand_over(self, student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, size: Size) -> Adapters:
        """See BaseRun: gives `student` the other run's weights, and takes channels away."""
        state = self.run.load_state()
        if state is None:
            raise UserError(f"run {self.run.name} has no state.pt, which holds its adapters: prune another run")
        if state["teacher_digest"]:
            check_teacher(self.run, state, teacher)
        try:
            student.model.load_state_dict(load(self.run.model_folder).state_dict())
            # Where a method compared only some stages, or none, the adapters of the others keep their random weights.
            surplus = adapters.load_state_dict(state["adapters"], strict=False).unexpected_keys
            if surplus:
                raise RuntimeError(f"adapters of {surplus}")
        except RuntimeError as error:
            raise UserError(f"the student of run {self.run.name} is not the network that its recipe names") from error
        pruned = prune(student, teacher, adapters, self.ratio, size)
        student.model.to(memory_format=torch.channels_last)  # torch-pruning makes weights in the other order
        return pruned


def base_of(recipe: Recipe, card: Card, folder: Path) -> BaseRun | None:
    """The run that the recipe's run begins from. None where it has none, or `folder` holds a state of its own by now.

    A branch of a pruned run begins from that run, not from the one that was pruned. Raises UserError when there is no
    such run, or the recipe asks for another student, subset or dataset.
    """
    if (folder / "state.pt").exists() or not (recipe.begin or recipe.prune):
        return None
    base: BaseRun
    if recipe.begin:
        base = Branch(recipe.begin)
    else:
        assert recipe.prune
        base = Pruning(recipe.prune)
    check_shared(base.run, recipe, card)
    return base


def narrow_weights(recipe: Recipe, folder: Path) -> Mapping[str, Tensor] | None:
    """Weights as narrow as a pruned recipe's student is after its first checkpoint; None before it is pruned.

    They come from the run in `folder`, or else from the run that a branch begins with.
    """
    if recipe.prune is None:
        return None
    state = Run(folder).load_state()
    if state is not None:
        return dict(state["student"])
    return load(base_run(recipe.begin.run).model_folder).state_dict() if recipe.begin else None
