"""What a recipe leaves open is filled in here, and nowhere else: after that no part of the program has a default.

Some answers depend on this machine, some on the number of images, and the number of views on the room for features.
So there is a function for each of these moments, in the order in which `running.prepare` calls them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from segskd.config import Recipe, make_recipe, merged
from segskd.data.cards import card_place, data_folder
from segskd.devices import choose_device, choose_precision, started_by_others
from segskd.models.build import model_folder

LEAST_EPOCHS = 40
PASSES = 3000
STUDENT_LR = 1e-2
TEACHER_LR = 1e-3
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
    """The recipe with its epochs, learning rate and first weights, for a run that trains on so many images."""
    part = recipe.optimisation
    taught = recipe.teacher is not None and recipe.method != "supervised"
    filled = {
        "optimisation": {"epochs": part.epochs or default_epochs(images), "lr": part.lr or default_lr(recipe)},
        "init": recipe.init if taught else "random",
    }
    return changed(recipe, filled)


def with_places(recipe: Recipe, base: dict[str, Any]) -> Recipe:
    """The recipe with absolute paths, which hold in any folder.

    `base` is the part that names the run which this one begins from, or {}. Raises UserError for a teacher that isn't
    there.
    """
    unlabelled = recipe.data.unlabelled and str(Path(recipe.data.unlabelled).expanduser().resolve())
    teacher = recipe.teacher and model_folder(recipe.teacher)
    data = {"card": card_place(recipe.data.card), "folder": str(data_folder(recipe.data.folder))}
    places = {
        "data": {**data, "unlabelled": unlabelled},
        "teacher": str(teacher.resolve()) if teacher else recipe.teacher,
    }
    return changed(recipe, {**places, **base})


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


def default_lr(recipe: Recipe) -> float:
    """Peak learning rate when the recipe names none: the SKD paper's, a tenth of it for a teacher's whole network."""
    return TEACHER_LR if recipe.kind == "teach" else STUDENT_LR


def default_epochs(images: int) -> int:
    """Epochs a stage when the recipe names none: about PASSES image passes, and at least LEAST_EPOCHS epochs."""
    return max(LEAST_EPOCHS, -(-PASSES // images))
