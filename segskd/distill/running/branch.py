"""Runs that begin with another run's student: what they share, and branches. The other run is only read.

A branch trains another run's student again from one of its stages on. Pruned runs are in `pruning`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

from segskd.config import BeginPart, OptimisationPart, Recipe, Size
from segskd.data.cards import Card, data_folder, load_card
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.settle import changed, filled_in, for_images
from segskd.errors import UserError
from segskd.evaluate.grafts import trained_stages
from segskd.models.adapters import Adapters
from segskd.models.build import digest, load
from segskd.models.cut import cut
from segskd.models.stages import StagedNetwork
from segskd.runs import Run, find_run
from segskd.subset_file import read_subset_names

SHARED_PARTS = ("student", "subset", "select", "select_on")
"""Parts of a recipe that a run has in common with the run that it begins from."""


def base_run(place: str) -> Run:
    """The run at `place`. Raises UserError when there is none, or it is being trained."""
    try:
        run = find_run(place)
    except UserError as error:
        raise UserError(f"the run to begin from is gone: {error}") from error
    if run.is_alive():
        raise UserError(f"run {run.name} is being trained: wait until it has finished, or stop it first")
    return run


def optimisation_before(run: Run) -> OptimisationPart:
    """How the run was trained, its epochs and learning rate filled in even where its recipe leaves them open."""
    names = read_subset_names(run)
    return for_images(run.recipe, len(names.train) if names else 1).optimisation


def check_shared(run: Run, recipe: Recipe, card: Card) -> None:
    """Raises UserError when `recipe` asks for another student, subset or dataset than the run had."""
    before = run.recipe
    differing = [part for part in SHARED_PARTS if getattr(before, part) != getattr(recipe, part)]
    differing += ["data.card"] if load_card(before.data.card, data_folder(before.data.folder)) != card else []
    differing += ["data.unlabelled"] if before.data.unlabelled != recipe.data.unlabelled else []
    if differing:
        raise UserError(f"{differing[0]} differs from that of run {run.name}, which this one begins from: leave it so")


class BaseRun(ABC):
    """Another run, with whose student a new run begins."""

    def __init__(self, place: str) -> None:
        """Raises UserError when there is no run at `place`, or it is being trained."""
        self.run = base_run(place)

    @property
    def path(self) -> str:
        return str(self.run.path.resolve())

    @property
    @abstractmethod
    def recipe_part(self) -> dict[str, Any]:
        """The part of the new run's recipe that names this run, by a path that holds in any folder."""

    @abstractmethod
    def hand_over(self, student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, size: Size) -> Adapters:
        """Gives `student` what the run left, and returns the adapters that fit it; `size` is the padded one.

        `adapters` are new ones for the student as its recipe names it. Raises UserError when the run's networks
        are others.
        """


def check_teacher(run: Run, state: dict[str, Any], teacher: StagedNetwork) -> None:
    """Raises UserError when `teacher` is not the one that the run was distilled from."""
    if state["teacher_digest"] != digest(teacher.model):
        raise UserError(f"the teacher is not the one that run {run.name} was distilled from: name that one")


def branch_recipe(run: Run, stage: str, epochs: int | None = None) -> Recipe:
    """The recipe of a run that trains `stage` and the stages behind it again, for `epochs` each, by default as before.

    With fewer epochs than before the peak of the learning rate falls in proportion. A short schedule at the full rate
    changes what was learnt and has no time to settle again: on CamVid a student of 0.453 mIoU, trained from decoder.1
    on for a quarter of its epochs, reached 0.437 at the full rate and 0.456 at a third of it.

    Raises UserError when the run has not trained that stage, or not stage by stage.
    """
    begin = {"run": str(run.path.resolve()), "stage": stage}
    made = changed(run.recipe, {"begin": begin, "optimisation": {"epochs": epochs, **_peaks(run, epochs)}})
    _check_stage(run, run.load_state(), cut(load(run.model_folder)), stage)
    return made


def _peaks(run: Run, epochs: int | None) -> dict[str, float]:
    """The learning rates of a branch; {} leaves them as they were."""
    before = optimisation_before(run)
    if epochs is None or epochs >= filled_in(before.epochs):
        return {}
    share = epochs / filled_in(before.epochs)
    rates = {"lr": before.lr, "joint_lr": before.joint_lr}
    return {name: rate * share for name, rate in rates.items() if rate is not None}


class Branch(BaseRun):
    """The run that a branch begins from: its finished stages, its adapters and its images stay."""

    def __init__(self, begin: BeginPart) -> None:
        super().__init__(begin.run)
        self.stage = begin.stage

    @property
    def recipe_part(self) -> dict[str, Any]:
        """See BaseRun."""
        return {"begin": {"run": self.path}}

    def hand_over(self, student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, size: Size) -> Adapters:
        """See BaseRun. Raises UserError when the run has not trained the stage, or had another teacher."""
        state = self.run.load_state()
        trained = load(self.run.model_folder)
        _check_stage(self.run, state, student, self.stage)
        assert state is not None
        check_teacher(self.run, state, teacher)
        try:
            student.model.load_state_dict(trained.state_dict())
            adapters.load_state_dict(state["adapters"])
        except RuntimeError as error:
            raise UserError(f"the student of run {self.run.name} is not the network that its recipe names") from error
        return adapters


def phases_from(phases: Sequence[Phase], begin: BeginPart | None) -> list[Phase]:
    """A branch's phases: those of its method from the branch's stage on. All of them for a run that is no branch.

    A joint phase at the end trains only the branch's stages, for as many epochs a stage as it would have had.

    Raises UserError when there is no such stage.
    """
    if begin is None:
        return list(phases)
    places = {phase.name: place for place, phase in enumerate(phases) if phase.name in phase.trained}
    first = places.get(begin.stage)
    if first is None:
        raise UserError(f"there is no stage '{begin.stage}' to begin from: name one of {', '.join(places)}")
    frozen = {stage for phase in phases[:first] for stage in phase.trained}
    return [own for phase in phases[first:] if (own := _without(phase, frozen))]


def _without(phase: Phase, frozen: Set[str]) -> Phase | None:
    """The phase without training these stages; None for a joint phase of which a single stage would be left."""
    if frozen.isdisjoint(phase.trained):
        return phase
    trained = tuple(stage for stage in phase.trained if stage not in frozen)
    compared = tuple(comparison for comparison in phase.compared if frozen.isdisjoint(comparison.stages))
    epochs = max(1, round(phase.epochs * len(trained) / len(phase.trained)))
    return replace(phase, trained=trained, compared=compared, epochs=epochs) if len(trained) > 1 else None


def _check_stage(run: Run, state: dict[str, Any] | None, student: StagedNetwork, stage: str) -> None:
    trained = trained_stages(run, state, student.names)
    if stage not in trained:
        raise UserError(f"run {run.name} has not trained stage '{stage}': name one of {', '.join(trained)}")
