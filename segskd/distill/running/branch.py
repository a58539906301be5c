"""Branches: a run's student trained again from one of its stages on, as a new run; the old one is only read."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from segskd.config import BeginPart, Recipe, make_recipe, merged
from segskd.data.cards import Card
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.plan import default_lr
from segskd.distill.running.base_run import base_run, check_shared, check_teacher, epochs_before
from segskd.errors import UserError
from segskd.evaluate.grafts import trained_stages
from segskd.models.adapters import Adapters
from segskd.models.build import load
from segskd.models.cut import cut
from segskd.models.stages import StagedNetwork
from segskd.runs import Run
from segskd.subset_file import SubsetNames, read_subset_names


def branch_recipe(run: Run, stage: str, epochs: int | None = None) -> Recipe:
    """The recipe of a run that trains `stage` and those after it again, for `epochs` each (as many as before).

    Where these are fewer than before, the peak of the learning rate is lower in the same measure: a short schedule
    at the whole rate shakes what was learnt and has no time to settle it. On CamVid a student of 0.453 mIoU, from
    decoder.1 on for a quarter of its epochs, came to 0.437 at the whole rate and to 0.456 at a third of it.

    Raises UserError when the run has not trained that stage, or not stage by stage.
    """
    begin = {"run": str(run.path.resolve()), "stage": stage}
    content = run.recipe.model_dump(mode="json")
    optimisation = {"epochs": epochs, "lr": _peak(run, epochs)}
    made = make_recipe(merged(content, {"begin": begin, "optimisation": optimisation}))
    _check_stage(run, run.load_state(), cut(load(run.model_folder)), stage)
    return made


def _peak(run: Run, epochs: int | None) -> float | None:
    """The learning rate of a branch; None leaves it as it was."""
    recipe, before = run.recipe, epochs_before(run)
    if epochs is None or epochs >= before:
        return None
    return (recipe.optimisation.lr or default_lr(recipe)) * epochs / before


class Beginning:
    """What a branch begins from: the finished stages of another run, its adapters and its images."""

    def __init__(self, begin: BeginPart) -> None:
        self.run = base_run(begin.run)
        self.stage = begin.stage

    @classmethod
    def of(cls, recipe: Recipe, card: Card, folder: Path) -> Beginning | None:
        """That of a recipe; None where it has none, or the branch in `folder` has a state of its own by now.

        Raises UserError when there is no such run, or the recipe asks for another student, subset or dataset.
        """
        if recipe.begin is None or (folder / "state.pt").exists():
            return None
        beginning = cls(recipe.begin)
        check_shared(beginning.run, recipe, card)
        return beginning

    @property
    def path(self) -> str:
        return str(self.run.path.resolve())

    def names(self) -> SubsetNames | None:
        """The old run's images, training and held out."""
        return read_subset_names(self.run)

    def hand_over(self, student: StagedNetwork, adapters: Adapters, teacher: StagedNetwork) -> None:
        """Gives `student` and `adapters` the weights and statistics that the old run left.

        Raises UserError when that run has not trained the stage, or the teacher is another one now.
        """
        state = self.run.load_state()
        left = load(self.run.model_folder)
        _check_stage(self.run, state, student, self.stage)
        assert state is not None
        check_teacher(self.run, state, teacher)
        try:
            student.model.load_state_dict(left.state_dict())
            adapters.load_state_dict(state["adapters"])
        except RuntimeError as error:
            raise UserError(f"the student of run {self.run.name} is not the network that its recipe names") from error


def phases_from(phases: Sequence[Phase], begin: BeginPart | None) -> list[Phase]:
    """The phases of a method from the stage on at which a branch begins; all of them where it doesn't.

    A joint phase at the end moves those stages alone, for as many epochs a stage.

    Raises UserError when there is no such stage.
    """
    if begin is None:
        return list(phases)
    places = {phase.name: place for place, phase in enumerate(phases) if phase.name in phase.trained}
    first = places.get(begin.stage)
    if first is None:
        raise UserError(f"there is no stage '{begin.stage}' to begin from: name one of {', '.join(places)}")
    still = {stage for phase in phases[:first] for stage in phase.trained}
    return [own for phase in phases[first:] if (own := _without(phase, still))]


def _without(phase: Phase, still: Set[str]) -> Phase | None:
    """The phase where these stages stand still: of a joint one what is left of it, if more than one stage is."""
    if still.isdisjoint(phase.trained):
        return phase
    trained = tuple(stage for stage in phase.trained if stage not in still)
    compared = tuple(comparison for comparison in phase.compared if still.isdisjoint(comparison.stages))
    epochs = max(1, round(phase.epochs * len(trained) / len(phase.trained)))
    return replace(phase, trained=trained, compared=compared, epochs=epochs) if len(trained) > 1 else None


def _check_stage(run: Run, state: dict[str, Any] | None, student: StagedNetwork, stage: str) -> None:
    trained = trained_stages(run, state, student.names)
    if stage not in trained:
        raise UserError(f"run {run.name} has not trained stage '{stage}': name one of {', '.join(trained)}")
