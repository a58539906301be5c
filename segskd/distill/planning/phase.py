"""A phase: what trains, on which inputs, compared with what, and for how long. Plain values; nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from segskd.distill.planning.losses import feature_loss
from segskd.models.stages import HEAD

TEACHER = "teacher"
"""The name of the teacher itself. Snapshots of its training have names of their own; see `Setting`."""

Measure = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""A scalar from some features of the student, each (N, c, h, w), and the teacher's features of the same stages."""


def mean_square(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`losses.feature_loss` of one feature."""
    return feature_loss(student[0], teacher[0])


@dataclass(frozen=True)
class Comparison:
    """A summand of a phase's loss: the student's features of some stages, measured against a teacher's.

    With `adapted` the features first pass the stage's adapter where their shape differs from the teacher's. With a
    `discriminator` weight above 0, a discriminator learns in the same steps to tell the first of these features from
    the teacher's. The student's loss gets a term of that weight, which is small where the discriminator is wrong.
    With `fades` the weight falls in a straight line to zero while the phase goes on.
    """

    stages: tuple[str, ...]
    weight: float = 1.0
    measure: Measure = mean_square
    teacher: str = TEACHER
    adapted: bool = True
    discriminator: float = 0.0
    fades: bool = False

    @property
    def name(self) -> str:
        """The stages, such as "encoder.2" or "encoder.2>encoder.3"."""
        return ">".join(self.stages)


@dataclass(frozen=True)
class Phase:
    """One complete unit of training, with an optimiser and a schedule of its own.

    `trained` stages are trained. All others are frozen, their normalisation statistics too. With `fed_by` "student"
    the first trained stage reads the features of the frozen stages before it, and each later stage those of the
    stages that run. With "teacher" every trained stage runs by itself on the teacher's features. The loss is the
    weighted sum of `compared` and of the cross-entropy of the logits (weight `labels`). After each of the epochs in
    `snapshots` a copy of the network is saved. The peak of the learning rate depends on `alone`: whether each compared
    stage is trained by itself, or several train on one another's features. With `fresh` every epoch has new views of
    the images, whose features are computed when they are needed and not stored.
    """

    name: str
    trained: tuple[str, ...]
    epochs: int
    compared: tuple[Comparison, ...] = ()
    labels: float = 0.0
    fed_by: Literal["student", "teacher"] = "student"
    snapshots: tuple[int, ...] = ()
    alone: bool = False
    fresh: bool = False

    def placed_on(self, processes: int) -> bool:
        """Whether each process trains some of the stages on all images, instead of all stages on some of the images.

        This needs stages that don't read each other's features, and at least one stage for each process.
        """
        return self.fed_by != "student" and 1 < processes <= len(self.trained)

    @property
    def features(self) -> tuple[str, ...]:
        """Stages whose features are compared, each once."""
        return tuple(dict.fromkeys(stage for comparison in self.compared for stage in comparison.stages))

    @property
    def on_features_alone(self) -> bool:
        """Whether the loss is nothing but squared errors of features: at 0 there is nothing left to learn."""
        return not self.labels and all(c.measure is mean_square and not c.discriminator for c in self.compared)

    @property
    def on_labels_alone(self) -> bool:
        """Whether labels are all that it learns from, so that images without labels are of no use."""
        return bool(self.labels) and not self.features

    @property
    def whole(self) -> bool:
        """Whether it trains several stages, the head among them, so that its masks get better while it runs."""
        return HEAD in self.trained and len(self.trained) > 1


def part_of(phase: Phase, stages: Sequence[str]) -> Phase:
    """The phase restricted to some of its stages, for a phase whose stages are trained by themselves."""
    compared = tuple(comparison for comparison in phase.compared if set(comparison.stages) <= set(stages))
    return replace(phase, trained=tuple(stages), compared=compared, labels=phase.labels if HEAD in stages else 0.0)


@dataclass(frozen=True)
class Setting:
    """What a method plans for: the student's stages in order, epochs a stage, and the teachers' names.

    The last of `teachers` is the teacher itself; before it come snapshots of its training, the earliest first.
    `paired` are the stages whose features can be compared with a teacher's, by default all of them.
    """

    stages: tuple[str, ...]
    epochs: int
    teachers: tuple[str, ...] = (TEACHER,)
    paired: tuple[str, ...] | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """The stages whose features can be compared: the paired ones, without the head."""
        return tuple(name for name in self.stages if name != HEAD and (self.paired is None or name in self.paired))

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Stages that train together: each compared stage with those before it, and the rest with the head."""
        ends = [*(self.stages.index(name) + 1 for name in self.blocks), len(self.stages)]
        return [self.stages[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
