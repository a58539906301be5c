"""Which tensors each phase needs, and which must be kept for later phases: all known before training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from segskd.distill.planning.phase import TEACHER, Phase
from segskd.models.pairing import inputs_after, unpaired_inputs
from segskd.models.stages import HEAD, IMAGE, StagedNetwork

DATA, STUDENT = "data", "student"


class Key(NamedTuple):
    """A tensor of each sample: its image, its mask, or a feature of the student, of a teacher or of a snapshot."""

    owner: str
    name: str


IMAGE_KEY = Key(DATA, IMAGE)
MASK_KEY = Key(DATA, "mask")
Keys = frozenset[Key]


@dataclass(frozen=True)
class Span:
    """The student's stages that run while a phase trains, as places in its order; earlier ones are frozen."""

    first: int
    last: int


def span(phase: Phase, student: StagedNetwork) -> Span:
    """From the first trained stage to the last one that a loss looks at."""
    trained = [student.index(name) for name in phase.trained]
    looked_at = [student.index(name) for name in phase.features] + [student.index(HEAD)] * bool(phase.labels)
    return Span(min(trained), max(trained + looked_at))


def feature_key(owner: str, name: str) -> Key:
    """The key of a network's feature; a network's image is the sample's."""
    return IMAGE_KEY if name == IMAGE else Key(owner, name)


def entering(student: StagedNetwork, first: int, last: int) -> set[Key]:
    """Features of stages before `first` that stages `first` to `last` take in."""
    sources = {name for index in range(first, last + 1) for name in student.sources(index)}
    return {feature_key("student", name) for name in sources if name == IMAGE or student.index(name) < first}


def phase_inputs(phase: Phase, student: StagedNetwork) -> Keys:
    """What a training batch of the phase holds."""
    part = span(phase, student)
    if phase.fed_by == STUDENT:
        needs = entering(student, part.first, part.last)
    else:
        fed = {source for name in phase.trained for source in student.sources(student.index(name))}
        needs = {feature_key(phase.fed_by, name) for name in fed}
    needs |= {Key(comparison.teacher, name) for comparison in phase.compared for name in comparison.stages}
    return frozenset(needs | ({MASK_KEY} if phase.labels else set()))


def graft_inputs(
    phase: Phase, student: StagedNetwork, teacher: StagedNetwork | None, compared: Collection[str]
) -> Keys:
    """What it takes to go on from the phase's frozen prefix to a mask, and to score it.

    `compared` are the stages that this phase or one before it has measured against the teacher; see `unpaired_inputs`.
    """
    part = span(phase, student)
    needs = entering(student, part.first, len(student.names) - 1) | {MASK_KEY}
    if teacher is None or HEAD in phase.trained:
        return frozenset(needs)
    last = last_trained(phase, student)
    needs |= {feature_key(TEACHER, name) for name in unpaired_inputs(last, teacher, compared)}
    own = inputs_after(last, teacher) & set(compared)
    return frozenset(needs | {feature_key(STUDENT, name) for name in own if student.index(name) < part.first})


def last_trained(phase: Phase, student: StagedNetwork) -> str:
    """The phase's last stage, behind which a graft goes on with the teacher's."""
    return max(phase.trained, key=student.index)


def reach(known: Keys, wanted: Keys, networks: Mapping[str, StagedNetwork]) -> Keys:
    """What is there when `wanted` has been computed from `known`: both, and all features on the way."""
    reached = set(known)
    waiting = sorted(wanted)
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            network = networks[key.owner]
            waiting += [feature_key(key.owner, name) for name in network.sources(network.index(key.name))]
    return frozenset(reached)


def read_of(known: Keys, wanted: Keys, networks: Mapping[str, StagedNetwork]) -> Keys:
    """What of `known` the computation of `wanted` looks at."""
    run = reach(known, wanted, networks) - known
    sources = ((key.owner, networks[key.owner].sources(networks[key.owner].index(key.name))) for key in run)
    return known & {feature_key(owner, name) for owner, names in sources for name in names}


class Planner:
    """Works out what a store holds in each phase, given what each phase needs.

    A store in phase p holds what p needs and what later needs can be computed from once p is over: features of
    stages that are frozen by then stay as they are, others are replaced by what goes into them.
    """

    def __init__(self, phases: Sequence[Phase], networks: Mapping[str, StagedNetwork]) -> None:
        """`networks` by the owner of their features: the student, and every teacher."""
        self._networks = networks
        self._firsts = [span(phase, networks[STUDENT]).first for phase in phases]

    def contents(self, needs: Sequence[Keys]) -> list[Keys]:
        """What is held during each phase."""
        reached = self._reached(needs)
        held: list[Keys] = []
        later: Iterable[Key] = ()
        for place in reversed(range(len(needs))):
            kept: set[Key] = set(needs[place])
            for key in later:
                kept |= self._origin(key, self._firsts[place], reached[place])
            held.append(frozenset(kept))
            later = kept
        return held[::-1]

    def _reached(self, needs: Sequence[Keys]) -> list[dict[str, int]]:
        """The last stage of each teacher that any need has asked for, up to each phase."""
        reach: dict[str, int] = {}
        reached = []
        for keys in needs:
            reach = dict(reach)
            for key in keys:
                if key.owner not in (DATA, STUDENT):
                    place = self._networks[key.owner].index(key.name)
                    reach[key.owner] = max(reach.get(key.owner, -1), place)
            reached.append(reach)
        return reached

    def _origin(self, key: Key, first: int, reached: Mapping[str, int]) -> set[Key]:
        """The held tensors from which `key` is made after a phase that begins at stage `first`."""
        if key.owner == DATA:
            return {key}
        network = self._networks[key.owner]
        place = network.index(key.name)
        if place < first if key.owner == STUDENT else place <= reached.get(key.owner, -1):
            return {key}
        sources = (feature_key(key.owner, name) for name in network.sources(place))
        return set().union(*(self._origin(source, first, reached) for source in sources))
