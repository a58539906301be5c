"""The networks that a recipe names: its teachers, its student, and the adapters between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm

from segskd.callbacks import OnActivity
from segskd.config import Recipe
from segskd.data.cache import cache_folder
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.transforms import padded_size
from segskd.distill.planning.images import Subset
from segskd.distill.planning.methods import FROM_SNAPSHOTS
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.running.pruning import narrow_weights
from segskd.distill.training.module import adapted_stages
from segskd.errors import UserError
from segskd.evaluate.diagnosis import Diagnosis, diagnose
from segskd.evaluate.metrics import check_fits
from segskd.models.adapters import Adapters, probe_adapters
from segskd.models.build import create, load, parse_spec, snapshot_folders
from segskd.models.cut import cut
from segskd.models.stages import StagedNetwork, freeze
from segskd.runs import runs_folder
from segskd.standalone.narrow import narrow

LOOKING = "looking at the teacher's answers"


def load_teachers(recipe: Recipe, card: Card) -> dict[str, StagedNetwork]:
    """The teacher by the owner of its features, and before it the snapshots that the method learns from, if it does."""
    if recipe.teacher is None:
        return {}
    places: dict[str, str | Path] = {TEACHER: recipe.teacher}
    if recipe.method in FROM_SNAPSHOTS:
        places = {**snapshot_folders(recipe.teacher), TEACHER: recipe.teacher}
        if len(places) == 1:
            raise UserError(
                f"method {recipe.method} learns from snapshots of the teacher's training, and {recipe.teacher} has "
                "none: train one with 'teach --snapshots 2'"
            )
    return {owner: _teacher(recipe, card, place) for owner, place in places.items()}


def _teacher(recipe: Recipe, card: Card, place: str | Path) -> StagedNetwork:
    model = load(place)
    check_fits(model, card, f"teacher {place}")
    network = cut(_on_device(model, recipe))
    freeze([model])
    return network


def make_student(recipe: Recipe, card: Card, folder: Path) -> StagedNetwork:
    """The recipe's student with the first weights of its seed; a pruned run's is as narrow as that in `folder`."""
    torch.manual_seed(recipe.seed)
    model = create(
        *parse_spec(recipe.student), classes=len(card.classes), weights=recipe.weights, channels=card.channels
    )
    if recipe.prune and (narrower := narrow_weights(recipe, folder)):
        narrow(model, narrower, recipe.prune.ratio)
    if recipe.sync_batchnorm:
        model = convert_sync_batchnorm(model)
    return cut(_on_device(model, recipe))


def _on_device(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    return model.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def make_adapters(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, phases: Sequence[Phase]
) -> Adapters:
    """Those that the phases need to compare features of different shapes; none without a teacher."""
    if teacher is None:
        return Adapters()
    wanted = adapted_stages(phases)
    compared = [name for name in student.names if name in wanted]
    adapters = probe_adapters(student, teacher, compared, padded_size(recipe.data.size))
    return adapters.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def diagnosed(
    recipe: Recipe, card: Card, subset: Subset, teacher: StagedNetwork | None, report: OnActivity | None
) -> Diagnosis | None:
    """What the teacher makes of a few images with labels; None where there is none, or where it is trusted.

    Raises UserError when something is wrong with it.
    """
    if teacher is None or recipe.trust_teacher:
        return None
    if report:
        report(LOOKING, 0, 1)
    labelled = [Pair(one.name, one.image, one.mask) for one in subset.train if one.mask is not None]
    found = diagnose(
        teacher.model, card, labelled, subset.val, recipe.data.size, recipe.device, cache_folder(runs_folder())
    )
    if report:
        report(LOOKING, 1, 1)
    return found
