"""Pairs: which stage of the teacher each stage of the student is compared with, by the strides of their features."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from segskd.config import Size
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, feature_shapes

OWN = "own."
"""Before the name of a teacher's stage that no stage of the student is compared with."""
PARTS = ("encoder.", "decoder.")
OCTAVE_COST = 0.3
"""What a pair is worth less for every factor of two between the strides of its features."""


class _Match(NamedTuple):
    """How much the pairs of two sequences are worth, and the pairs, as places in both."""

    worth: float
    pairs: tuple[tuple[int, int], ...]


def paired(teacher: StagedNetwork, student: StagedNetwork, size: Size) -> StagedNetwork:
    """The teacher, its stages called as those of the student that are compared with them.

    Encoder and decoder are paired each by itself, in their order: as many stages as possible whose features have the
    same stride at an input of `size`, then those with strides near to each other, whose features an adapter resizes.
    The head is the head's partner; a stage that has nothing to train (VGG's last, a pooling) has none. What the student
    has no partner for is called "own.encoder.0" and so on.
    """
    names = {HEAD: HEAD}
    for part in PARTS:
        ours = [name for name in student.names if name.startswith(part) and list(student.stages[name].parameters())]
        theirs = [name for name in teacher.names if name.startswith(part)]
        strides = [_octaves(network, size, names) for network, names in ((student, ours), (teacher, theirs))]
        names |= {theirs[place]: ours[own] for own, place in match(*strides)}
    return teacher.renamed({name: names.get(name, OWN + name) for name in teacher.names})


def match(ours: Sequence[float], theirs: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Pairs of places in two rising or falling sequences of strides, in octaves; neither place comes twice.

    Of all that keep the order, those that are worth most, each 1 less OCTAVE_COST an octave; of equal ones, the
    deepest. Those worth nothing are no pairs.
    """
    best = {(i, j): _Match(0.0, ()) for i in range(len(ours) + 1) for j in range(len(theirs) + 1)}
    for i, own in enumerate(ours, 1):
        for j, other in enumerate(theirs, 1):
            worth = 1 - OCTAVE_COST * abs(own - other)
            before = best[i - 1, j - 1]
            together = _Match(round(before.worth + worth, 6), (*before.pairs, (i - 1, j - 1)))
            skipped = max(best[i - 1, j], best[i, j - 1])
            best[i, j] = max(together, skipped) if worth > 0 else skipped
    return best[len(ours), len(theirs)].pairs


def shared(student: Sequence[str], teacher: Sequence[str] | None) -> tuple[str, ...]:
    """Those of the student's stages that have a partner in a paired teacher; all of them where there is no teacher."""
    return tuple(name for name in student if teacher is None or name in teacher)


def lent(name: str, teacher: StagedNetwork, compared: Collection[str]) -> list[str]:
    """Features of its own, or "image", that the teacher's stages behind the one called `name` take in a graft.

    They are those of stages whose features nobody has compared with the student's: the student has none that would mean
    anything to the teacher.
    """
    return sorted(taken_in(name, teacher) - set(compared))


def taken_in(name: str, teacher: StagedNetwork) -> set[str]:
    """The features up to the stage called `name`, and "image", that the teacher's stages behind it take in."""
    last = teacher.index(name)
    sources = {source for place in range(last + 1, len(teacher.names)) for source in teacher.sources(place)}
    return {source for source in sources if source == IMAGE or teacher.index(source) <= last}


def _octaves(network: StagedNetwork, size: Size, names: Sequence[str]) -> list[float]:
    """Binary logarithms of the strides of features."""
    shapes = feature_shapes(network, size)
    height = shapes[IMAGE][1]
    return [round(math.log2(height / shapes[name][1]), 3) for name in names]
