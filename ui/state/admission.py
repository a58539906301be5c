"""Recipes from files, from other runs and from scripts. They may use only this server's datasets, teachers and runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from segskd.config import FIRST_WEIGHTS, Recipe
from segskd.data.cards import CARDS_FOLDER, list_cards, load_card
from segskd.errors import UserError
from segskd.models.first_weights import is_file
from segskd.run_admin import SOURCE_RUNS
from segskd.runs import RUN_NAME

from ..context import Context
from .form import FIELDS, SHARED, FieldError, Form, TeachForm
from .outline import errors_beside
from .teachers import check_hub_id, find_teacher, list_teachers

FILES_BY_COMMAND = "only the command line takes a file of weights: give a name such as imagenet"


def form_values(context: Context, recipe: Recipe) -> dict[str, Any]:
    """Values of the page's fields that give that recipe, and of "choice".

    If the teacher is not on this server, its field stays empty. Raises FieldError for anything else that is missing.
    """
    recipe = _on_this_server(context, recipe)
    if recipe.kind == "teach":
        teach, form = TeachForm.from_recipe(recipe)
        own = {f"teach_{name}": value for name, value in asdict(teach).items()}
        source = {"teacher_from": "train", **own, "teach_weights": teach.weights or ""}
        if teach.weights and is_file(teach.weights):
            raise FieldError("load", FILES_BY_COMMAND)
        fields: tuple[str, ...] = SHARED
    else:
        form = Form.from_recipe(recipe)
        source = _source(context, recipe.teacher)
        fields = tuple(name for name in FIELDS if name != "teacher")
    values = {name: form[name] for name in fields if name != "folder"}
    return {**values, **source, "seed": form.choice.seed, "choice": form.choice.as_dict()}


def _source(context: Context, teacher: str | None) -> dict[str, Any]:
    """Values of the page's teacher fields for a recipe's teacher."""
    if teacher is None:
        return {"teacher_from": "none", "known": None, "hub": ""}
    if found := find_teacher(list_teachers(context), teacher):
        return {"teacher_from": "known", "known": found.key, "hub": ""}
    try:
        return {"teacher_from": "hub", "known": None, "hub": check_hub_id(teacher)}
    except UserError:
        return {"teacher_from": "known", "known": None, "hub": ""}


def _on_this_server(context: Context, recipe: Recipe) -> Recipe:
    """The recipe with this server's data folder. Raises FieldError if this server doesn't have its dataset."""
    with errors_beside("data"):
        check_card(context, recipe.data.card)
        load_card(recipe.data.card)
    with errors_beside("unlabelled"):
        check_unlabelled(context, recipe.data.unlabelled)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": str(context.data)})})


def admit(context: Context, recipe: Recipe) -> Recipe:
    """The recipe with this server's dataset, teacher and source run. Raises FieldError if one of them is missing.

    A teacher may be named by its run, by its folder in the server's list, or by a hub id.
    """
    recipe = _on_this_server(context, recipe)
    changes: dict[str, Any] = {"init": first_weights(context, recipe.init, recipe.weights)}
    if recipe.teacher is not None:
        changes["teacher"] = teacher_place(context, recipe.teacher)
    for key in SOURCE_RUNS:
        if part := getattr(recipe, key):
            with errors_beside(key):
                changes[key] = part.model_copy(update={"run": str(context.run(Path(part.run).name).path)})
    return recipe.model_copy(update=changes)


def teacher_place(context: Context, text: str) -> str:
    """The place of a recipe's teacher: a folder of this server's list, or a hub id. Raises FieldError."""
    if found := find_teacher(list_teachers(context), text):
        return str(found.place)
    with errors_beside("teacher"):
        try:
            return check_hub_id(text)
        except UserError as error:
            raise UserError("the recipe's teacher is not on this server: choose or upload it here") from error


def first_weights(context: Context, init: str | None, weights: str | None) -> str | None:
    """A recipe's `init`, of a run of this server its folder.

    Raises FieldError for other folders and for files of weights: the page reads none that a visitor may name.
    """
    if weights and is_file(weights):
        raise FieldError("weights", FILES_BY_COMMAND)
    if init is None or init in FIRST_WEIGHTS:
        return init
    name = Path(init).name if Path(init).parent == context.runs else init
    if not (RUN_NAME.fullmatch(name) and (context.runs / name / "recipe.yaml").is_file()):
        raise FieldError("init", f"there is no run {init} on this server: name one, or choose teacher or random")
    return str(context.runs / name)


def check_unlabelled(context: Context, folder: str | None) -> None:
    """Raises UserError for a folder that is not one of `unlabelled_folders`."""
    if folder and Path(folder) not in unlabelled_folders(context):
        raise UserError(
            "images without labels must be in a folder directly below this server's data folder that no dataset uses"
        )


def unlabelled_folders(context: Context) -> list[Path]:
    """The folders directly below this server's data folder that no dataset uses, sorted by name."""
    if not context.data.is_dir():
        return []
    roots = [entry.card.root(context.data) for entry in list_cards(context.data) if entry.card]
    datasets = {folder for root in roots for folder in (root, *root.parents)}
    found = (path for path in context.data.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in found if path not in datasets)


def check_card(context: Context, card: str) -> None:
    """Raises UserError for the path of a card that is not directly below this server's data folder."""
    path = Path(card)
    if (len(path.parts) > 1 or path.suffix in (".yaml", ".yml")) and path.parent not in (context.data, CARDS_FOLDER):
        raise UserError("this dataset is not on this server: add it on Data, and name it by its card's name")
