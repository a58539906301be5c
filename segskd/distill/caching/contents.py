"""What the stores of a run's three sets of images hold in each of its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segskd.config import Recipe
from segskd.distill.caching.budget import Contents
from segskd.distill.caching.inputs import STUDENT, Keys, Planner, graft_inputs, phase_inputs
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import TEACHER, Phase, part_of
from segskd.models.stages import StagedNetwork


@dataclass(frozen=True)
class StoreContents:
    """What each store holds in each phase."""

    train: list[Keys]
    holdout: list[Keys]
    val: list[Keys]
    placed: Sequence[Keys] = ()
    """What each stage is fed that is placed on one of several processes, which holds it of all images."""

    def to_be(self, subset: Subset) -> list[Contents]:
        """The same with numbers of samples, for reckoning bytes."""
        return [
            Contents(len(subset.train), self.train, viewed=True),
            Contents(len(subset.holdout), self.holdout, viewed=False),
            Contents(len(subset.val), self.val, viewed=False),
            *(Contents(len(subset.train), [keys], viewed=True) for keys in self.placed),
        ]


def plan_contents(
    recipe: Recipe,
    networks: Mapping[str, StagedNetwork],
    phases: Sequence[Phase],
    planned: Sequence[Phase],
    ahead: bool = True,
    processes: int = 1,
) -> StoreContents:
    """For the `phases` of a run; `planned` are all those of its method, which a branch has a part of.

    `networks` by the owner of their features. A store that keeps nothing need not look `ahead` to later phases. Stages
    that learn apart are placed on several `processes`, whose stores of all images then hold what each is fed.
    """
    student = networks[STUDENT]
    look = Planner(phases, networks).contents if ahead else list
    needed = [phase_inputs(phase, student) for phase in phases]
    grafts = [graft_inputs(phase, student, networks.get(TEACHER), compared_by(phase, planned)) for phase in phases]
    both = [needs | graft for needs, graft in zip(needed, grafts, strict=True)]
    placed = [phase for phase in phases if phase.placed_on(processes)]
    fed = [phase_inputs(part_of(phase, (name,)), student) for phase in placed for name in phase.trained]
    own = [frozenset() if phase in placed else needs for phase, needs in zip(phases, needed, strict=True)]
    on_val = recipe.select == "best" and recipe.select_on == "val"
    train, chosen_on, shown = (look(needs) for needs in (own, both, grafts))
    return StoreContents(train, chosen_on, chosen_on if on_val else shown, fed)


def compared_by(phase: Phase, planned: Sequence[Phase]) -> set[str]:
    """Stages that have been compared with the teacher's by the end of a phase."""
    names = [known.name for known in planned]
    return {stage for known in planned[: names.index(phase.name) + 1] for stage in known.features}
