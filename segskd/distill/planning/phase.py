"""A phase: what trains, what it is fed by and compared with, and for how long. Plain values; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from segskd.distill.planning.losses import feature_loss
from segskd.models.stages import HEAD

TEACHER = "teacher"
"""Who owns the features of the teacher itself. Its earlier selves are called by the names that `Setting` gives them."""

Measure = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""A scalar from some features of the student, each (N, c, h, w), and the teacher's features of the same stages."""


def mean_square(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`losses.feature_loss` of one feature."""
    return feature_loss(student[0], teacher[0])


@dataclass(frozen=True)
class Comparison:
    """A summand of a phase's loss: the student's features of some stages, measured against a teacher's.

    `adapted` features go through the stage's adapter first where their shape differs from the teacher's. With
    `discriminator`, a weight, a discriminator learns in the same steps to tell the first of these features from the
    teacher's. How well the student deceives it counts with that weight.
    """

    stages: tuple[str, ...]
    weight: float = 1.0
    measure: Measure = mean_square
    teacher: str = TEACHER
    adapted: bool = True
    discriminator: float = 0.0

    @property
    def name(self) -> str:
        """The stages, such as "encoder.2" or "encoder.2>encoder.3"."""
        return ">".join(self.stages)


@dataclass(frozen=True)
class Phase:
    """One complete unit of training, with an optimiser and a schedule of its own.

    `trained` stages move; all others stand still, normalisation statistics included. Fed by the student, the
    first trained stage takes the features of the frozen ones before it, and each further stage those of the ones that
    run; fed by the teacher, every trained stage runs alone on the teacher's features. The loss is the weighted sum of
    `compared` and of the cross-entropy of the logits (`labels`). After the epochs in `snapshots` a copy of the
    network is kept.
    """

    name: str
    trained: tuple[str, ...]
    epochs: int
    compared: tuple[Comparison, ...] = ()
    labels: float = 0.0
    fed_by: Literal["student", "teacher"] = "student"
    snapshots: tuple[int, ...] = ()

    def placed_on(self, processes: int) -> bool:
        """Whether each process trains some of the stages on all images, instead of all stages on its part of them.

        Stages can that learn apart from each other, if no process would be left without one.
        """
        return self.fed_by != "student" and 1 < processes <= len(self.trained)

    @property
    def features(self) -> tuple[str, ...]:
        """Stages whose features are looked at, each once."""
        return tuple(dict.fromkeys(stage for comparison in self.compared for stage in comparison.stages))

    @property
    def on_features_alone(self) -> bool:
        """Whether nothing counts but the squared errors of features: at zero there is nothing left to learn."""
        return not self.labels and all(c.measure is mean_square and not c.discriminator for c in self.compared)

    @property
    def on_labels_alone(self) -> bool:
        """Whether images without labels teach it nothing."""
        return bool(self.labels) and not self.features

    @property
    def whole(self) -> bool:
        """Whether it trains several stages with the head, so that its masks are worth a look on the way."""
        return HEAD in self.trained and len(self.trained) > 1


def part_of(phase: Phase, stages: Sequence[str]) -> Phase:
    """The phase for some of the stages that learn apart in it."""
    compared = tuple(comparison for comparison in phase.compared if set(comparison.stages) <= set(stages))
    return replace(phase, trained=tuple(stages), compared=compared, labels=phase.labels if HEAD in stages else 0.0)


@dataclass(frozen=True)
class Setting:
    """What a method plans for: the student's stages in order, epochs a stage, and the teachers, the earliest first.

    The last of `teachers` is the teacher itself, those before it are snapshots of its training. `paired` are those
    stages whose features can be compared with a teacher's, by default all of them.
    """

    stages: tuple[str, ...]
    epochs: int
    teachers: tuple[str, ...] = (TEACHER,)
    paired: tuple[str, ...] | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """The stages that features are compared of: those that are paired, without the head."""
        return tuple(name for name in self.stages if name != HEAD and (self.paired is None or name in self.paired))

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Stages that train together: up to each that is compared, and those behind the last one with the head."""
        ends = [*(self.stages.index(name) + 1 for name in self.blocks), len(self.stages)]
        return [self.stages[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
