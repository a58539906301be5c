"""What a recipe leaves open is filled in here, and nowhere else: after that no part of the program has a default.

Some answers depend on this machine, some on the number of images, and the number of views on the room for features.
So there is a function for each of these moments, in the order in which `running.prepare` calls them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from segskd.config import FIRST_WEIGHTS, Recipe, make_recipe, merged
from segskd.data.cards import card_place, data_folder
from segskd.devices import choose_device, choose_precision, started_by_others
from segskd.distill.planning.phase import Phase
from segskd.models.build import model_folder

LEAST_EPOCHS = 40
PASSES = 3000
STAGE_LR = 1e-2
"""Peak of the learning rate of a stage that is trained by itself: the SKD paper's."""
NETWORK_LR = 1e-3
"""Peak of the learning rate where several stages train on one another's features, as in a whole network."""
Value = TypeVar("Value")


def for_this_machine(recipe: Recipe) -> Recipe:
    """The recipe with its device, precision, processes and threads. Raises UserError for a device that isn't here."""
    device = choose_device(recipe.device)
    outside = started_by_others()  # then the threads are this process's own already
    devices, nodes = outside or (recipe.devices, recipe.nodes)
    machine = {
        "device": device,
        "precision": choose_precision(recipe.precision, device),
        "threads": recipe.threads or max(1, torch.get_num_threads() // (1 if outside else devices)),
        "devices": devices,
        "nodes": nodes,
    }
    return changed(recipe, machine)


def for_images(recipe: Recipe, images: int) -> Recipe:
    """The recipe with its epochs, learning rates and first weights, for a run that trains on so many images."""
    part = recipe.optimisation
    rates = {"lr": part.lr or STAGE_LR, "joint_lr": part.joint_lr or part.lr or NETWORK_LR}
    if recipe.kind == "teach":
        rates = {"lr": part.lr or NETWORK_LR}
    filled = {
        "optimisation": {"epochs": part.epochs or default_epochs(images), **rates},
        "init": first_weights(recipe),
    }
    return changed(recipe, filled)


def first_weights(recipe: Recipe) -> str:
    """The recipe's `init`. A student begins with its teacher's weights, unless it has pretrained ones."""
    if recipe.init is None:
        return "teacher" if recipe.teacher and not recipe.weights else "random"
    return "random" if recipe.init == "teacher" and recipe.teacher is None else recipe.init


def peak_rate(recipe: Recipe, phase: Phase) -> float:
    """The peak of a phase's learning rate. The recipe's rates must be settled (`for_images`)."""
    part = recipe.optimisation
    return filled_in(part.lr if phase.alone or recipe.kind == "teach" else part.joint_lr)


def with_places(recipe: Recipe, base: dict[str, Any]) -> Recipe:
    """The recipe with absolute paths, which hold in any folder.

    `base` is the part that names the run which this one begins from, or {}. Raises UserError for a teacher that isn't
    there.
    """
    unlabelled = recipe.data.unlabelled and str(Path(recipe.data.unlabelled).expanduser().resolve())
    teacher = recipe.teacher and model_folder(recipe.teacher)
    own = {"init": _place(recipe.init), "weights": _file(recipe.weights)}
    data = {"card": card_place(recipe.data.card), "folder": str(data_folder(recipe.data.folder))}
    places = {
        "data": {**data, "unlabelled": unlabelled},
        "teacher": str(teacher.resolve()) if teacher else recipe.teacher,
        **own,
    }
    return changed(recipe, {**places, **base})


def _place(weights: str | None) -> str | None:
    """The absolute path of first weights that lie here; any other value as it is."""
    path = Path(weights).expanduser() if weights and weights not in FIRST_WEIGHTS else None
    return str(path.resolve()) if path and path.exists() else weights


def _file(weights: str | None) -> str | None:
    """The absolute path of a file of weights that lies here; any other value, such as imagenet, as it is."""
    path = Path(weights).expanduser() if weights else None
    return str(path.resolve()) if path and path.is_file() else weights


def with_views(recipe: Recipe, views: int) -> Recipe:
    """The recipe with its number of views an image."""
    return changed(recipe, {"data": {"views": views}})


def filled_in(value: Value | None) -> Value:
    """A value of a recipe that has its defaults filled in."""
    assert value is not None, "this recipe has not been settled"
    return value


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with `changes` laid over it, part by part; None changes nothing. Raises UserError."""
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))


def default_epochs(images: int) -> int:
    """Epochs a stage when the recipe names none: about PASSES image passes, and at least LEAST_EPOCHS epochs."""
    return max(LEAST_EPOCHS, -(-PASSES // images))
