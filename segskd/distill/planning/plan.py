"""From a recipe to its phases: the method asked with its options, and what is filled in where the recipe is silent."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError, validate_call

from segskd.config import Recipe, first_problem, named
from segskd.distill.planning.methods import METHODS, answers
from segskd.distill.planning.phase import TEACHER, Phase, Setting
from segskd.errors import UserError
from segskd.models.pairing import shared

LEAST_EPOCHS = 40
PASSES = 3000
STUDENT_LR = 1e-2
TEACHER_LR = 1e-3


def plan(
    recipe: Recipe,
    teacher_stages: Sequence[str] | None,
    student_stages: Sequence[str],
    images: int,
    labelled: int | None = None,
    teachers: Sequence[str] = (TEACHER,),
) -> list[Phase]:
    """The phases of the recipe's method.

    `labelled` of the `images` have labels (all of them); a phase that learns from labels alone sees these as often
    as it would have seen all. Where none has, the teacher's own answers stand in for labels. `teachers` are the
    owners of the teachers' features, the earliest first. `teacher_stages` have the names of the student's stages that
    they are paired with; they are None without a teacher. Raises UserError when method, options, teacher and student
    don't go together.
    """
    with_labels = images if labelled is None else labelled
    epochs = recipe.optimisation.epochs or default_epochs(images)
    setting = Setting(tuple(student_stages), epochs, tuple(teachers), shared(student_stages, teacher_stages))
    phases = _taught(recipe, setting) if recipe.kind == "teach" else _asked(recipe, setting)
    if not with_labels:
        phases = [_without_labels(phase, recipe) for phase in phases]
    if recipe.kind == "teach":
        return phases
    return [_as_often(phase, images, with_labels) for phase in phases]


def _asked(recipe: Recipe, setting: Setting) -> list[Phase]:
    if recipe.method not in METHODS:
        raise UserError(f"no method '{recipe.method}': name one of {', '.join(METHODS)}", "method")
    method = METHODS[recipe.method]
    known = [name for name in inspect.signature(method).parameters if name != "to"]
    unknown = sorted(recipe.options.keys() - set(known))
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"method {recipe.method} has no option '{unknown[0]}': {has}", "options")
    try:
        return validate_call(method)(setting, **recipe.options)
    except ValidationError as error:
        raise UserError(f"option of method {recipe.method}: {first_problem(error)}", "options") from error


def _taught(recipe: Recipe, setting: Setting) -> list[Phase]:
    """A teacher on labels; its snapshots are spread evenly over its epochs, the last one before the end."""
    epochs, wanted = setting.epochs, recipe.snapshots
    if wanted >= epochs:
        asked = f"{named('snapshots')} {wanted}"
        raise UserError(f"{asked} need at least {wanted + 1} epochs, and there are {epochs}", "snapshots")
    marks = tuple(epochs * (place + 1) // (wanted + 1) for place in range(wanted))
    return [Phase("supervised", setting.stages, epochs, labels=1.0, snapshots=marks)]


def _without_labels(phase: Phase, recipe: Recipe) -> Phase:
    """The phase with the teacher's answers in place of labels."""
    if not phase.labels:
        return phase
    if recipe.kind == "teach" or recipe.method == "supervised":
        labels = named("subset.labels")
        raise UserError(f"{labels} 0: without a teacher there is nothing but labels to learn from", "subset.labels")
    return replace(phase, labels=0.0, compared=(*phase.compared, answers(phase.labels)))


def _as_often(phase: Phase, images: int, labelled: int) -> Phase:
    """As many image passes for a phase that sees the labelled images alone as for one that sees all."""
    if not phase.on_labels_alone or labelled == images:
        return phase
    return replace(phase, epochs=max(1, round(phase.epochs * images / labelled)))


def default_lr(recipe: Recipe) -> float:
    """Peak learning rate when the recipe names none: the SKD paper's, a tenth of it for a teacher's whole network."""
    return TEACHER_LR if recipe.kind == "teach" else STUDENT_LR


def default_epochs(images: int) -> int:
    """Epochs a stage when the recipe names none: about PASSES image passes, and at least LEAST_EPOCHS epochs."""
    return max(LEAST_EPOCHS, -(-PASSES // images))
