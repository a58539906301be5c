"""From a recipe to its phases: its method called with its options, and what missing labels change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError, validate_call

from segskd.config import Recipe, first_problem, named
from segskd.distill.planning.methods import METHODS, options_of, soft_labels
from segskd.distill.planning.phase import TEACHER, Phase, Setting
from segskd.distill.planning.settle import filled_in
from segskd.errors import UserError
from segskd.models.pairing import shared


def plan_phases(
    recipe: Recipe,
    teacher_stages: Sequence[str] | None,
    student_stages: Sequence[str],
    images: int,
    labelled: int | None = None,
    teachers: Sequence[str] = (TEACHER,),
) -> list[Phase]:
    """The phases of the recipe's method. The recipe's epochs must be settled (`settle.for_images`).

    `labelled` of the `images` have labels, by default all. A phase that learns from labels alone sees only these, as
    often in all as it would have seen every image. Where no image has labels, soft labels of the teacher replace them.
    `teachers` are the names of the teachers, the earliest snapshot first. `teacher_stages` are the names of the
    teacher's stages after pairing; None without a teacher. Raises UserError when method, options, teacher and student
    don't go together.
    """
    with_labels = images if labelled is None else labelled
    epochs = filled_in(recipe.optimisation.epochs)
    setting = Setting(tuple(student_stages), epochs, tuple(teachers), shared(student_stages, teacher_stages))
    phases = _teaching(recipe, setting) if recipe.kind == "teach" else _by_method(recipe, setting)
    if not with_labels:
        phases = [_without_labels(phase, recipe) for phase in phases]
    if recipe.kind == "teach":
        return phases
    return [_as_often(phase, images, with_labels) for phase in phases]


def _by_method(recipe: Recipe, setting: Setting) -> list[Phase]:
    if recipe.method not in METHODS:
        raise UserError(f"no method '{recipe.method}': name one of {', '.join(METHODS)}", "method")
    method = METHODS[recipe.method]
    known = options_of(recipe.method)
    unknown = sorted(recipe.options.keys() - known.keys())
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"method {recipe.method} has no option '{unknown[0]}': {has}", "options")
    try:
        return validate_call(method)(setting, **recipe.options)
    except ValidationError as error:
        raise UserError(f"option of method {recipe.method}: {first_problem(error)}", "options") from error


def _teaching(recipe: Recipe, setting: Setting) -> list[Phase]:
    """A teacher's only phase, on labels; its snapshots are spread evenly over its epochs, none at the end."""
    epochs, wanted = setting.epochs, recipe.snapshots
    if wanted >= epochs:
        asked = f"{named('snapshots')} {wanted}"
        raise UserError(f"{asked} need at least {wanted + 1} epochs, and there are {epochs}", "snapshots")
    marks = tuple(epochs * (place + 1) // (wanted + 1) for place in range(wanted))
    return [Phase("supervised", setting.stages, epochs, labels=1.0, snapshots=marks)]


def _without_labels(phase: Phase, recipe: Recipe) -> Phase:
    """The phase with the teacher's soft labels in place of labels."""
    if not phase.labels:
        return phase
    if recipe.kind == "teach" or recipe.method == "supervised":
        labels = named("subset.labels")
        raise UserError(f"{labels} 0: without a teacher there are only labels to learn from", "subset.labels")
    return replace(phase, labels=0.0, compared=(*phase.compared, soft_labels(phase.labels)))


def _as_often(phase: Phase, images: int, labelled: int) -> Phase:
    """The phase with more epochs if it sees only labelled images, so that it has as many image passes as others."""
    if not phase.on_labels_alone or labelled == images:
        return phase
    return replace(phase, epochs=max(1, round(phase.epochs * images / labelled)))
