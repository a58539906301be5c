"""Methods: functions from (teacher's stages, student's stages, recipe) to a list of phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from segskd.config import Recipe
from segskd.errors import UserError
from segskd.models.stages import HEAD

LEAST_EPOCHS = 40
PASSES = 3000
STUDENT_LR = 1e-2
TEACHER_LR = 1e-3


@dataclass(frozen=True)
class Phase:
    """One complete unit of training, with an optimiser and a schedule of its own.

    `trained` stages move; all others stand still, normalisation statistics included. `taps` gives the
    weight of the mean squared error between the student's tap and the teacher's, by stage; `labels` the
    weight of the cross-entropy of the logits. The first trained stage is fed by the frozen ones before it.
    """

    name: str
    trained: tuple[str, ...]
    epochs: int
    taps: Mapping[str, float] = field(default_factory=dict)
    labels: float = 0.0


Method = Callable[[Sequence[str], int], list[Phase]]


def stagewise(stages: Sequence[str], epochs: int) -> list[Phase]:
    """SKD (arXiv 1911.06786): each stage on the teacher's tap alone, then the head on labels."""
    blocks = [Phase(name, (name,), epochs, taps={name: 1.0}) for name in stages if name != HEAD]
    return [*blocks, Phase(HEAD, (HEAD,), epochs, labels=1.0)]


def supervised(stages: Sequence[str], epochs: int) -> list[Phase]:
    """No teacher: every stage on labels, for as many image passes as `stagewise` gives to all its phases."""
    return [Phase("supervised", tuple(stages), epochs * len(stages), labels=1.0)]


METHODS: dict[str, Method] = {"stagewise": stagewise, "supervised": supervised}


def plan(
    recipe: Recipe, teacher_stages: Sequence[str] | None, student_stages: Sequence[str], images: int
) -> list[Phase]:
    """The phases of the recipe's method. Raises UserError when method, teacher and student don't go together."""
    if recipe.method not in METHODS:
        raise UserError(f"no method '{recipe.method}': name one of {', '.join(METHODS)}")
    epochs = recipe.optimisation.epochs or default_epochs(images)
    if recipe.kind == "teach":
        return [Phase("supervised", tuple(student_stages), epochs, labels=1.0)]
    phases = METHODS[recipe.method](student_stages, epochs)
    compared = {name for phase in phases for name in phase.taps}
    missing = sorted(compared - set(teacher_stages or ()))
    if missing:
        raise UserError(
            f"the teacher has no stage {', '.join(missing)}, which {recipe.method} compares: "
            "teacher and student need the same number of encoder and decoder blocks"
        )
    return phases


def default_lr(recipe: Recipe) -> float:
    """Peak learning rate when the recipe names none: the SKD paper's, a tenth of it for a teacher's whole network."""
    return TEACHER_LR if recipe.kind == "teach" else STUDENT_LR


def default_epochs(images: int) -> int:
    """Epochs a stage when the recipe names none: about PASSES image passes, and at least LEAST_EPOCHS epochs."""
    return max(LEAST_EPOCHS, -(-PASSES // images))
