"""Which tensors each phase reads, and which the stores therefore hold in it: all known before training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from segskd.config import Recipe
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import TEACHER, Phase, part_of
from segskd.models.pairing import inputs_after, unpaired_inputs
from segskd.models.stages import HEAD, IMAGE, StagedNetwork

DATA, STUDENT = "data", "student"


class Key(NamedTuple):
    """A tensor that each sample has: its image, its mask, or a feature of a network.

    `network` is "student", "teacher", the name of a snapshot, or "data" for image and mask.
    """

    network: str
    name: str


IMAGE_KEY = Key(DATA, IMAGE)
MASK_KEY = Key(DATA, "mask")
Keys = frozenset[Key]


@dataclass(frozen=True)
class Span:
    """The places of the first and the last stage of the student that run while a phase trains."""

    first: int
    last: int


def span(phase: Phase, student: StagedNetwork) -> Span:
    """From the first trained stage to the last one that a loss looks at."""
    trained = [student.index(name) for name in phase.trained]
    looked_at = [student.index(name) for name in phase.features] + [student.index(HEAD)] * bool(phase.labels)
    return Span(min(trained), max(trained + looked_at))


def feature_key(network: str, name: str) -> Key:
    """The key of a network's feature; the image is the same for all networks."""
    return IMAGE_KEY if name == IMAGE else Key(network, name)


def entering(student: StagedNetwork, first: int, last: int) -> set[Key]:
    """Keys of the features of stages before `first` that stages `first` to `last` read."""
    sources = {name for index in range(first, last + 1) for name in student.sources(index)}
    return {feature_key(STUDENT, name) for name in sources if name == IMAGE or student.index(name) < first}


def phase_inputs(phase: Phase, student: StagedNetwork) -> Keys:
    """The tensors that a training batch of the phase holds."""
    part = span(phase, student)
    if phase.fed_by == STUDENT:
        inputs = entering(student, part.first, part.last)
    else:
        fed = {source for name in phase.trained for source in student.sources(student.index(name))}
        inputs = {feature_key(phase.fed_by, name) for name in fed}
    inputs |= {Key(comparison.teacher, name) for comparison in phase.compared for name in comparison.stages}
    return frozenset(inputs | ({MASK_KEY} if phase.labels else set()))


def graft_inputs(
    phase: Phase, student: StagedNetwork, teacher: StagedNetwork | None, compared: Collection[str]
) -> Keys:
    """The tensors that a graft after the phase starts from, with the masks that it is scored on.

    `compared` are the stages that have been compared with the teacher's by then; see `pairing.unpaired_inputs`.
    """
    part = span(phase, student)
    inputs = entering(student, part.first, len(student.names) - 1) | {MASK_KEY}
    if teacher is None or HEAD in phase.trained:
        return frozenset(inputs)
    last = last_trained(phase, student)
    inputs |= {feature_key(TEACHER, name) for name in unpaired_inputs(last, teacher, compared)}
    own = inputs_after(last, teacher) & set(compared)
    return frozenset(inputs | {feature_key(STUDENT, name) for name in own if student.index(name) < part.first})


def last_trained(phase: Phase, student: StagedNetwork) -> str:
    """The last stage that the phase trains; a graft continues behind it with the teacher's stages."""
    return max(phase.trained, key=student.index)


def reach(known: Keys, wanted: Keys, networks: Mapping[str, StagedNetwork]) -> Keys:
    """All tensors that exist once `wanted` has been computed from `known`, with all features on the way."""
    reached = set(known)
    waiting = sorted(wanted)
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            network = networks[key.network]
            waiting += [feature_key(key.network, name) for name in network.sources(network.index(key.name))]
    return frozenset(reached)


def read_of(known: Keys, wanted: Keys, networks: Mapping[str, StagedNetwork]) -> Keys:
    """The part of `known` that the computation of `wanted` reads."""
    computed = reach(known, wanted, networks) - known
    sources = ((key.network, networks[key.network].sources(networks[key.network].index(key.name))) for key in computed)
    return known & {feature_key(network, name) for network, names in sources for name in names}


class Planner:
    """Works out which tensors a store holds in each phase, given which tensors each phase needs.

    In phase p a store holds the tensors that p needs, and those from which later phases can compute theirs once p is
    over. A feature of a stage that is frozen by then is held itself. Of any other stage its inputs are held.
    """

    def __init__(self, phases: Sequence[Phase], networks: Mapping[str, StagedNetwork]) -> None:
        """`networks` are the student and every teacher, by the names in `Key`."""
        self._networks = networks
        self._firsts = [span(phase, networks[STUDENT]).first for phase in phases]

    def contents(self, inputs: Sequence[Keys]) -> list[Keys]:
        """The tensors that are held during each phase."""
        reached = self._reached(inputs)
        held: list[Keys] = []
        later: Iterable[Key] = ()
        for place in reversed(range(len(inputs))):
            now: set[Key] = set(inputs[place])
            for key in later:
                now |= self._origin(key, self._firsts[place], reached[place])
            held.append(frozenset(now))
            later = now
        return held[::-1]

    def _reached(self, inputs: Sequence[Keys]) -> list[dict[str, int]]:
        """For each phase the place of the last stage of each teacher that it or an earlier phase needs."""
        furthest: dict[str, int] = {}
        reached = []
        for keys in inputs:
            furthest = dict(furthest)
            for key in keys:
                if key.network not in (DATA, STUDENT):
                    place = self._networks[key.network].index(key.name)
                    furthest[key.network] = max(furthest.get(key.network, -1), place)
            reached.append(furthest)
        return reached

    def _origin(self, key: Key, first: int, reached: Mapping[str, int]) -> set[Key]:
        """The held tensors from which `key` is computed after a phase whose first trained stage is at place `first`."""
        if key.network == DATA:
            return {key}
        network = self._networks[key.network]
        place = network.index(key.name)
        if place < first if key.network == STUDENT else place <= reached.get(key.network, -1):
            return {key}
        sources = (feature_key(key.network, name) for name in network.sources(place))
        return set().union(*(self._origin(source, first, reached) for source in sources))


@dataclass(frozen=True)
class PlannedStore:
    """One store to be: how many images it has, which tensors it holds in each phase, and whether in every view."""

    images: int
    phases: Sequence[Keys]
    viewed: bool


@dataclass(frozen=True)
class StoreContents:
    """Which tensors the stores of the training, held-out and validation images hold, phase by phase."""

    train: list[Keys]
    holdout: list[Keys]
    val: list[Keys]
    placed: Sequence[Keys] = ()
    """The inputs of each stage that one of several processes trains alone; that process holds them of all images."""

    def planned_stores(self, subset: Subset) -> list[PlannedStore]:
        """The stores with their numbers of images, from which their bytes are computed."""
        return [
            PlannedStore(len(subset.train), self.train, viewed=True),
            PlannedStore(len(subset.holdout), self.holdout, viewed=False),
            PlannedStore(len(subset.val), self.val, viewed=False),
            *(PlannedStore(len(subset.train), [keys], viewed=True) for keys in self.placed),
        ]


def plan_contents(
    recipe: Recipe,
    networks: Mapping[str, StagedNetwork],
    phases: Sequence[Phase],
    method_phases: Sequence[Phase],
    ahead: bool = True,
    processes: int = 1,
) -> StoreContents:
    """The contents of the stores in the `phases` of a run; `method_phases` are all those of its method.

    `networks` by the names in `Key`. A store that keeps nothing need not look `ahead` to later phases. With several
    `processes` a phase may give each of them some stages, whose inputs they then hold of all images.
    """
    student = networks[STUDENT]
    look = Planner(phases, networks).contents if ahead else list
    needed = [phase_inputs(phase, student) for phase in phases]
    grafts = [
        graft_inputs(phase, student, networks.get(TEACHER), compared_by(phase, method_phases)) for phase in phases
    ]
    either = [one | graft for one, graft in zip(needed, grafts, strict=True)]
    placed = [phase for phase in phases if phase.placed_on(processes)]
    fed = [phase_inputs(part_of(phase, (name,)), student) for phase in placed for name in phase.trained]
    elsewhere = [phase.fresh or phase in placed for phase in phases]
    own = [frozenset() if other else one for other, one in zip(elsewhere, needed, strict=True)]
    select_on_val = recipe.select == "best" and recipe.select_on == "val"
    return StoreContents(look(own), look(either), look(either if select_on_val else grafts), fed)


def compared_by(phase: Phase, method_phases: Sequence[Phase]) -> set[str]:
    """Stages that have been compared with the teacher's by the end of a phase, given all phases of its method."""
    names = [one.name for one in method_phases]
    return {stage for one in method_phases[: names.index(phase.name) + 1] for stage in one.features}
