"""Pairs stages of student and teacher, whose features are compared, by the strides of these features."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from segskd.config import Size
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, feature_shapes

OWN = "own."
"""The prefix of the names of those stages of a teacher that are in no pair."""
PARTS = ("encoder.", "decoder.")
OCTAVE_COST = 0.3
"""How much the value of a pair falls for each factor of two between the strides of its features."""


class _Match(NamedTuple):
    """The value of pairs of two sequences, and the pairs as places in both."""

    value: float
    pairs: tuple[tuple[int, int], ...]


def paired(teacher: StagedNetwork, student: StagedNetwork, size: Size) -> StagedNetwork:
    """The teacher, whose stages are renamed as the student's stages that they are paired with.

    Encoder and decoder are paired separately, and pairs keep the order of the stages. As many stages as possible are
    paired whose features have the same stride at an input of `size`; then stages with similar strides are, whose
    features an adapter resizes. The two heads are a pair. A student's stage without parameters, such as VGG's last
    pooling, is in no pair. Stages of the teacher that are in no pair are renamed "own.encoder.0" and so on.
    """
    names = {HEAD: HEAD}
    for part in PARTS:
        ours = [name for name in student.names if name.startswith(part) and list(student.stages[name].parameters())]
        theirs = [name for name in teacher.names if name.startswith(part)]
        strides = [_octaves(network, size, names) for network, names in ((student, ours), (teacher, theirs))]
        names |= {theirs[place]: ours[own] for own, place in match(*strides)}
    return teacher.renamed({name: names.get(name, OWN + name) for name in teacher.names})


def match(ours: Sequence[float], theirs: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """The best pairs of places in two rising or falling sequences of strides, which are given as binary logarithms.

    Pairs keep the order, and no place is in two pairs. A pair has the value 1 minus OCTAVE_COST times the difference of
    its strides, and is left out if that isn't above 0. The pairs with the largest sum of values are taken, and of equal
    ones the deepest.
    """
    best = {(i, j): _Match(0.0, ()) for i in range(len(ours) + 1) for j in range(len(theirs) + 1)}
    for i, own in enumerate(ours, 1):
        for j, other in enumerate(theirs, 1):
            value = 1 - OCTAVE_COST * abs(own - other)
            before = best[i - 1, j - 1]
            together = _Match(round(before.value + value, 6), (*before.pairs, (i - 1, j - 1)))
            skipped = max(best[i - 1, j], best[i, j - 1])
            best[i, j] = max(together, skipped) if value > 0 else skipped
    return best[len(ours), len(theirs)].pairs


def shared(student: Sequence[str], teacher: Sequence[str] | None) -> tuple[str, ...]:
    """The student's stages that the teacher, as `paired` renamed it, has too; all of them if there is no teacher."""
    return tuple(name for name in student if teacher is None or name in teacher)


def unpaired_inputs(name: str, teacher: StagedNetwork, compared: Collection[str]) -> list[str]:
    """The teacher's own features, and "image", that its stages after stage `name` need in a graft.

    These are features of stages that are not among `compared`. The student has no feature that could replace them.
    """
    return sorted(inputs_after(name, teacher) - set(compared))


def inputs_after(name: str, teacher: StagedNetwork) -> set[str]:
    """The features of stages up to `name`, and "image", that the teacher's stages after `name` take as input."""
    last = teacher.index(name)
    sources = {source for place in range(last + 1, len(teacher.names)) for source in teacher.sources(place)}
    return {source for source in sources if source == IMAGE or teacher.index(source) <= last}


def _octaves(network: StagedNetwork, size: Size, names: Sequence[str]) -> list[float]:
    """The binary logarithms of the strides of the named stages' features, at an input of `size`."""
    shapes = feature_shapes(network, size)
    height = shapes[IMAGE][1]
    return [round(math.log2(height / shapes[name][1]), 3) for name in names]
