"""Pruned runs: another run's student made narrower, then repaired stage by stage against the same teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segskd.config import Recipe, Size, make_recipe, merged
from segskd.data.cards import Card
from segskd.distill.planning.plan import default_lr
from segskd.distill.running.base_run import base_run, check_shared, check_teacher, epochs_before
from segskd.errors import UserError
from segskd.models.adapters import Adapters
from segskd.models.build import load
from segskd.models.prune import prune
from segskd.models.stages import StagedNetwork
from segskd.runs import Run, default_name, free_name, list_runs
from segskd.subset_file import SubsetNames, read_subset_names

RECOVERY = 2
"""How many times fewer epochs a stage is repaired for than it was trained for."""


def prune_recipe(run: Run, ratio: float, epochs: int | None = None) -> Recipe:
    """The recipe of a run that prunes a finished run's student and repairs it on the same images.

    Each stage is trained against its feature, then the head on labels, for `epochs` each (half of what the run had).
    Raises UserError when the run isn't finished, has no teacher, or is pruned itself.
    """
    recipe = run.recipe
    if run.status() != "finished":
        raise UserError(f"run {run.name} is {run.status()}: only a finished run's student can be pruned")
    if recipe.kind != "distill" or recipe.teacher is None:
        raise UserError(f"run {run.name} has no teacher, against which a pruned network could be repaired")
    if recipe.prune:
        name = Path(recipe.prune.run).name
        raise UserError(f"run {run.name} is pruned already: prune {name}, which it came from, at another ratio")
    content = recipe.model_dump(mode="json") | {"begin": None, "weights": None, "sync_batchnorm": False}
    content |= {"method": "stagewise", "options": {}}
    repaired = {
        "epochs": epochs or max(1, epochs_before(run) // RECOVERY),
        "lr": recipe.optimisation.lr or default_lr(recipe),
    }
    made = {"prune": {"run": str(run.path.resolve()), "ratio": ratio}, "optimisation": repaired}
    return make_recipe(merged(content, made))


def pruned_runs(run: Run) -> list[Run]:
    """The runs beside `run` that prune its student, the newest first; damaged ones and branches left out."""
    found = []
    for other in list_runs(run.path.parent):
        try:
            pruned, begun = other.recipe.prune, other.recipe.begin
        except UserError:
            continue
        if pruned and not begun and Path(pruned.run) == run.path.resolve():
            found.append(other)
    return found


def plan_pruned(run: Run, ratio: float, epochs: int | None = None) -> tuple[Recipe, Path]:
    """The recipe that prunes a run, and the folder beside it of the run by that recipe, which may be there already."""
    recipe = prune_recipe(run, ratio, epochs)
    for known in pruned_runs(run):
        if _figures(known.recipe) == _figures(recipe):
            return recipe, known.path
    beside = run.path.parent
    return recipe, beside / free_name(default_name(recipe, recipe.data.card), beside)


def _figures(recipe: Recipe) -> list[object]:
    """What a pruned run's figures depend on. Its batch may have been halved, and the machine be another one."""
    part = recipe.optimisation
    return [recipe.prune, part.epochs, part.lr, part.weight_decay, recipe.data.size, recipe.seed, recipe.select]


class Pruning:
    """What a pruned run begins from: a finished student with its adapters and its images."""

    def __init__(self, run: Run, ratio: float) -> None:
        self.run = run
        self.ratio = ratio

    @classmethod
    def of(cls, recipe: Recipe, card: Card, folder: Path) -> Pruning | None:
        """That of a recipe; None where it prunes nothing, or what it pruned stands in `folder` or another run by now.

        Raises UserError when there is no such run, or the recipe asks for another student, subset or dataset.
        """
        if recipe.prune is None or recipe.begin is not None or (folder / "state.pt").exists():
            return None
        run = base_run(recipe.prune.run)
        check_shared(run, recipe, card)
        return cls(run, recipe.prune.ratio)

    def names(self) -> SubsetNames | None:
        """The other run's images, training and held out."""
        return read_subset_names(self.run)

    def prune(self, student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, size: Size) -> Adapters:
        """Gives `student` the other run's weights, takes channels away, and returns the adapters of what is left.

        `adapters` are those of the whole student, their values not yet known; `size` is the padded one.
        """
        state = self.run.load_state()
        if state is None:
            raise UserError(f"run {self.run.name} has no state.pt, which holds its adapters: prune another run")
        if state["teacher_digest"]:
            check_teacher(self.run, state, teacher)
        try:
            student.model.load_state_dict(load(self.run.model_folder).state_dict())
            # A method may have compared some stages alone, or none: adapters of the others begin as drawn.
            strange = adapters.load_state_dict(state["adapters"], strict=False).unexpected_keys
            if strange:
                raise RuntimeError(f"adapters of {strange}")
        except RuntimeError as error:
            raise UserError(f"the student of run {self.run.name} is not the network that its recipe names") from error
        return prune(student, teacher, adapters, self.ratio, size)


def narrow_weights(recipe: Recipe, folder: Path) -> Mapping[str, Tensor] | None:
    """Weights as narrow as a pruned recipe's student is after its first checkpoint; None while it has yet to be pruned.

    They are those of the run in `folder`, or else of the run whose stages it begins with.
    """
    if recipe.prune is None:
        return None
    state = Run(folder).load_state()
    if state is not None:
        return dict(state["student"])
    return load(base_run(recipe.begin.run).model_folder).state_dict() if recipe.begin else None
