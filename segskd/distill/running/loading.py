"""The networks that a recipe names, loaded and checked: its teachers, its student, the adapters between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm

from segskd.callbacks import OnActivity
from segskd.config import FIRST_WEIGHTS, Recipe, Size
from segskd.data.cache import cache_folder
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.transforms import padded_size
from segskd.distill.caching.contents import STUDENT
from segskd.distill.planning.images import Subset
from segskd.distill.planning.methods import SNAPSHOT_METHODS
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.running.pruning import narrow_weights
from segskd.distill.training.module import adapted_stages
from segskd.errors import UserError, about_field
from segskd.evaluate.diagnosis import Diagnosis, diagnose
from segskd.evaluate.metrics import check_fits
from segskd.models.adapters import Adapters, probe_adapters
from segskd.models.build import create, load, parse_spec, snapshot_folders
from segskd.models.cut import check_size, cut, kinds
from segskd.models.first_weights import is_file, load_encoder, load_network
from segskd.models.stages import HEAD, StagedNetwork, copy_matching, feature_shapes, freeze
from segskd.runs import runs_folder
from segskd.standalone.narrow import narrow

CHECKING_TEACHER = "looking at the teacher's answers"


def teacher_places(recipe: Recipe) -> dict[str, str | Path]:
    """Where the teacher lies, and before it the snapshots of its training if the method uses them, by their names.

    Raises UserError when the method uses snapshots and the teacher has none.
    """
    if recipe.teacher is None:
        return {}
    if recipe.method not in SNAPSHOT_METHODS:
        return {TEACHER: recipe.teacher}
    snapshots = snapshot_folders(recipe.teacher)
    if not snapshots:
        raise UserError(
            f"method {recipe.method} learns from snapshots of the teacher's training, and {recipe.teacher} has "
            "none: train one with 'teach --snapshots 2'",
            "teacher",
        )
    return {**snapshots, TEACHER: recipe.teacher}


def load_teachers(recipe: Recipe, card: Card) -> dict[str, StagedNetwork]:
    """The teachers at `teacher_places`, in eval mode. Raises UserError for one that doesn't fit card or size."""
    size = padded_size(recipe.data.size)
    with about_field("teacher"):
        teachers = {name: _teacher(recipe, card, place) for name, place in teacher_places(recipe).items()}
        for network in teachers.values():
            check_size(network, size, f"teacher {recipe.teacher}")
    return teachers


def _teacher(recipe: Recipe, card: Card, place: str | Path) -> StagedNetwork:
    model = load(place)
    check_fits(model, card, f"teacher {place}")
    network = cut(_on_device(model, recipe))
    freeze([model])
    return network


def make_student(recipe: Recipe, card: Card, folder: Path) -> StagedNetwork:
    """The recipe's student with the random weights of its seed; a pruned run's is as narrow as the one in `folder`.

    Raises UserError for a network that doesn't exist or doesn't take images of the recipe's size.
    """
    torch.manual_seed(recipe.seed)
    weights = None if recipe.weights and is_file(recipe.weights) else recipe.weights
    model = create(*parse_spec(recipe.student), classes=len(card.classes), weights=weights, channels=card.channels)
    if recipe.prune and (narrower := narrow_weights(recipe, folder)):
        narrow(model, narrower, recipe.prune.ratio)
    if recipe.sync_batchnorm:
        model = convert_sync_batchnorm(model)
    student = cut(_on_device(model, recipe))
    check_size(student, padded_size(recipe.data.size), f"student {recipe.student}")
    return student


def give_first_weights(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, folder: Path
) -> tuple[str, ...]:
    """Gives the student the weights that its recipe names, and says in sentences what they are.

    The recipe's `init` must be settled. A run in `folder` that has saved a state, or that begins with another run's
    student, has its weights from there. Raises UserError for weights that don't fit.
    """
    if (folder / "state.pt").exists() or recipe.begin or recipe.prune:
        return ()
    told = []
    if recipe.weights and is_file(recipe.weights):
        fit = load_encoder(student.model, recipe.weights, recipe.partial_weights)
        told.append(f"first weights of the encoder from {Path(recipe.weights).name}: {fit}")
    elif recipe.weights:
        told.append(f"first weights of the encoder: {recipe.weights}")
    if recipe.init == "teacher" and teacher:
        share = copy_matching(student, teacher)
        told.append(f"first weights from the teacher: {100 * share:.0f} % of the student's values")
    elif recipe.init and recipe.init not in FIRST_WEIGHTS:
        fit = load_network(student.model, recipe.init, recipe.partial_weights)
        told.append(f"first weights from {Path(recipe.init).name}: {fit}")
    return tuple(told)


def _on_device(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    return model.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def make_adapters(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, phases: Sequence[Phase]
) -> Adapters:
    """The adapters that the phases need to compare features of different shapes; none without a teacher."""
    if teacher is None:
        return Adapters()
    wanted = adapted_stages(phases)
    compared = [name for name in student.names if name in wanted]
    adapters = probe_adapters(student, teacher, compared, padded_size(recipe.data.size))
    return adapters.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def diagnose_teacher(
    recipe: Recipe, card: Card, subset: Subset, teacher: StagedNetwork | None, report: OnActivity | None
) -> Diagnosis | None:
    """Compares the teacher's masks of a few images with their labels; None without a teacher, or for a trusted one.

    Raises UserError when something is wrong with the teacher.
    """
    if teacher is None or recipe.trust_teacher:
        return None
    if report:
        report(CHECKING_TEACHER, 0, 1)
    labelled = [Pair(one.name, one.image, one.mask) for one in subset.train if one.mask is not None]
    diagnosis = diagnose(
        teacher.model, card, labelled, subset.val, recipe.data.size, recipe.device, cache_folder(runs_folder())
    )
    if report:
        report(CHECKING_TEACHER, 1, 1)
    return diagnosis


def check_stage_inputs(phases: Sequence[Phase], student: StagedNetwork, teacher: StagedNetwork, size: Size) -> None:
    """Raises UserError when a phase feeds stages with the teacher's features, and these have other shapes."""
    fed = next((phase for phase in phases if phase.fed_by != STUDENT), None)
    if fed is None:
        return
    if "pyramid" in kinds(student):
        raise UserError(
            f"phase '{fed.name}' feeds each stage by itself, and the encoder of {type(student.model).__name__} can't "
            "be cut into such: take another student, or another method"
        )
    ours, theirs = feature_shapes(student, size), feature_shapes(teacher, size)
    for name in student.names:
        if name not in theirs:
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's features, and {name} has no partner "
                "among the teacher's stages: take another student, or another method"
            )
        if name != HEAD and ours[name] != theirs[name]:
            shapes = " and ".join("x".join(map(str, shape)) for shape in (ours[name], theirs[name]))
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's features, and those of {name} "
                f"differ ({shapes}): take a student of the teacher's widths, or another method"
            )
