"""Runs that others begin from: found, and checked to be what both need."""

from __future__ import annotations

from typing import Any

from segskd.config import Recipe
from segskd.data.cards import Card, data_folder, load_card
from segskd.distill.planning.plan import default_epochs
from segskd.errors import UserError
from segskd.models.build import digest
from segskd.models.stages import StagedNetwork
from segskd.runs import Run, find_run
from segskd.subset_file import read_subset_names

AS_BEFORE = ("student", "subset", "select", "select_on")
"""Parts of a recipe that a run shares with the one it begins from."""


def base_run(place: str) -> Run:
    """The run at `place`. Raises UserError when there is none, or when it is being trained."""
    try:
        run = find_run(place)
    except UserError as error:
        raise UserError(f"the run to begin from is gone: {error}") from error
    if run.is_alive():
        raise UserError(f"run {run.name} is being trained: wait until it has finished, or stop it first")
    return run


def epochs_before(run: Run) -> int:
    """Epochs a stage that the run had, also where its recipe leaves them to be chosen by the number of images."""
    chosen = read_subset_names(run)
    return run.recipe.optimisation.epochs or default_epochs(len(chosen[0]) if chosen else 1)


def check_shared(run: Run, recipe: Recipe, card: Card) -> None:
    """Raises UserError when `recipe` asks for another student, subset or dataset than the run had."""
    before = run.recipe
    changed = [part for part in AS_BEFORE if getattr(before, part) != getattr(recipe, part)]
    changed += ["data.card"] if load_card(before.data.card, data_folder(before.data.folder)) != card else []
    changed += ["data.unlabelled"] if before.data.unlabelled != recipe.data.unlabelled else []
    if changed:
        raise UserError(f"{changed[0]} differs from that of run {run.name}, which this one begins from: leave it so")


def check_teacher(run: Run, state: dict[str, Any], teacher: StagedNetwork) -> None:
    """Raises UserError when `teacher` is not the one that the run was distilled from."""
    if state["teacher_digest"] != digest(teacher.model):
        raise UserError(f"the teacher is not the one that run {run.name} was distilled from: name that one")
