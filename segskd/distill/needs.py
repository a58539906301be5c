"""Which tensors each phase needs, and which must be kept for later phases: all known before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from segskd.distill.methods import Phase
from segskd.models.stages import HEAD, IMAGE, StagedNetwork


class Key(NamedTuple):
    """A tensor of each sample: its image, its mask, or a tap of one network."""

    owner: Literal["data", "student", "teacher"]
    name: str


IMAGE_KEY = Key("data", IMAGE)
MASK_KEY = Key("data", "mask")
Keys = frozenset[Key]


@dataclass(frozen=True)
class Span:
    """The student's stages that run while a phase trains, as places in its order; earlier ones are frozen."""

    first: int
    last: int


def span(phase: Phase, student: StagedNetwork) -> Span:
    """From the first trained stage to the last one that a loss looks at."""
    trained = [student.index(name) for name in phase.trained]
    looked_at = [student.index(name) for name in phase.taps] + [student.index(HEAD)] * bool(phase.labels)
    return Span(min(trained), max(trained + looked_at))


def tap_key(owner: Literal["student", "teacher"], name: str) -> Key:
    """The key of a network's tap; a network's image is the sample's."""
    return IMAGE_KEY if name == IMAGE else Key(owner, name)


def entering(student: StagedNetwork, first: int, last: int) -> set[Key]:
    """Taps of stages before `first` that stages `first` to `last` take in."""
    sources = {name for index in range(first, last + 1) for name in student.sources(index)}
    return {tap_key("student", name) for name in sources if name == IMAGE or student.index(name) < first}


def phase_needs(phase: Phase, student: StagedNetwork) -> Keys:
    """What a training batch of the phase holds."""
    part = span(phase, student)
    needs = entering(student, part.first, part.last)
    needs |= {Key("teacher", name) for name in phase.taps}
    return frozenset(needs | ({MASK_KEY} if phase.labels else set()))


def graft_needs(phase: Phase, student: StagedNetwork) -> Keys:
    """What it takes to go on from the phase's frozen prefix to a mask, and to score it."""
    part = span(phase, student)
    return frozenset(entering(student, part.first, len(student.names) - 1) | {MASK_KEY})


class Planner:
    """Works out what a store holds in each phase, given what each phase needs.

    A store in phase p holds what p needs and what later needs can be computed from once p is over: taps of
    stages that are frozen by then stay as they are, others are replaced by what goes into them.
    """

    def __init__(self, phases: Sequence[Phase], student: StagedNetwork, teacher: StagedNetwork | None) -> None:
        self._student = student
        self._teacher = teacher
        self._firsts = [span(phase, student).first for phase in phases]

    def holdings(self, needs: Sequence[Keys]) -> list[Keys]:
        """What is held during each phase."""
        reached = self._teacher_reach(needs)
        held: list[Keys] = []
        later: Iterable[Key] = ()
        for place in reversed(range(len(needs))):
            kept: set[Key] = set(needs[place])
            for key in later:
                kept |= self._origin(key, self._firsts[place], reached[place])
            held.append(frozenset(kept))
            later = kept
        return held[::-1]

    def _teacher_reach(self, needs: Sequence[Keys]) -> list[int]:
        """The last teacher stage that any need has asked for, up to each phase."""
        reach, reached = -1, []
        for keys in needs:
            places = [self._teacher.index(k.name) for k in keys if k.owner == "teacher"] if self._teacher else []
            reach = max([reach, *places])
            reached.append(reach)
        return reached

    def _origin(self, key: Key, first: int, reached: int) -> set[Key]:
        """The held tensors from which `key` is made after a phase that begins at stage `first`."""
        if key.owner == "data":
            return {key}
        network = self._student if key.owner == "student" else self._teacher
        assert network is not None
        place = network.index(key.name)
        if place < first if key.owner == "student" else place <= reached:
            return {key}
        sources = (tap_key(key.owner, name) for name in network.sources(place))
        return set().union(*(self._origin(source, first, reached) for source in sources))
