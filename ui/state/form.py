"""The Distill tab's form: turns the values of its fields into a recipe and a command, and a recipe into values.

The recipe's schema says which fields there are and what they mean.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from segskd.config import SCHEMA, Recipe, problems
from segskd.errors import UserError, in_labels
from segskd.schema import RecipeField

from .choice import Choice

# Fields that `Choice` holds. They are set on the Data tab.
DATA_FIELDS = {field.name for field in SCHEMA if field.place == "data" or field.name == "seed"}
FIELDS = {field.name: field for field in SCHEMA if field.display and field.name not in DATA_FIELDS}
# Fields that a teacher shares with the student for which it is trained; and its own fields, by their names on the page.
SHARED = tuple(field.name for field in FIELDS.values() if field.display and field.display.shared)
TEACHER_FIELDS = {
    "student": "teach_encoder",
    **{name: f"teach_{name}" for name in ("weights", "epochs", "lr", "snapshots")},
}


class FieldError(UserError):
    """A wrong value in a field of the page. `problems` has the messages of all wrong fields, this one first."""

    def __init__(self, field: str, message: str, others: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.message = in_labels(message)
        self.problems = {field: self.message, **(others or {})}

    @classmethod
    def of(cls, error: UserError, field: str) -> FieldError:
        """The error at the field that caused it, or at `field` if no field of the page did."""
        return cls(page_field(error.about) or field, error.template)


class Form:
    """The values of the page's fields, by their short names. None or "" means the recipe's default.

    Numbers come from the page as they were typed, some as text. Only `recipe` checks them.
    """

    def __init__(self, choice: Choice | None = None, **values: Any) -> None:
        if unknown := values.keys() - FIELDS.keys():
            raise TypeError(f"no such fields: {', '.join(sorted(unknown))}")
        self.choice = choice or Choice()
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    def replaced(self, **values: Any) -> Form:
        """The same form with other values."""
        return Form(self.choice, **{**self._values, **values})

    def recipe(self) -> Recipe:
        """The recipe that the form describes. Raises FieldError with every wrong field."""
        content = self.choice.recipe_parts()
        if is_filled(self["count"]):
            content["subset"].pop("fraction", None)
        for name, field in FIELDS.items():
            if is_filled(value := self[name]):
                field.set_in(content, _recipe_value(field, value))
        return checked_recipe(content)

    def command(self, run: str) -> str:
        """The shell command that starts the same run. `run` is a name, or a path for another folder."""
        return command(self.recipe(), run)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Form:
        """The form that describes that recipe. Raises FieldError for a recipe that no form can describe."""
        if recipe.kind != "distill":
            raise FieldError("load", "this recipe trains a teacher: load one that distills a student")
        content = recipe.model_dump(mode="json")
        subset = recipe.subset
        share = 1.0 if subset.fraction is None else subset.fraction
        choice = Choice(recipe.data.card, share, subset.rule, recipe.seed, subset.names)
        form = cls(choice, **{name: _field_value(field.value_in(content)) for name, field in FIELDS.items()})
        # No fraction and a fraction of 1 mean the same images.
        _refuse(SCHEMA.differences(content, form.recipe().model_dump(mode="json")) - {"subset.fraction"})
        return form


@dataclass(frozen=True)
class TeachForm:
    """The fields of a teacher that is trained first, on all training images."""

    encoder: str = "resnet34"
    epochs: float | str | None = None
    lr: float | str | None = None
    weights: str | None = None
    snapshots: float | str | None = None

    def recipe(self, student: Form) -> Recipe:
        """A teacher for that student: same data, size, seed and machine. Raises FieldError."""
        content: dict[str, Any] = {
            "kind": "teach",
            "data": {"card": student.choice.card},
            "student": self.encoder if self.encoder and ":" in self.encoder else f"unet:{self.encoder or ''}",
            "weights": self.weights or None,
            "method": "supervised",
            "optimisation": {"epochs": as_whole(self.epochs), "lr": as_whole(self.lr)},
            "seed": student.choice.seed,
            "snapshots": as_whole(self.snapshots) or 0,
        }
        for name in SHARED:
            if is_filled(value := student[name]):
                FIELDS[name].set_in(content, _recipe_value(FIELDS[name], value))
        try:
            return checked_recipe(content)
        except FieldError as error:
            found = {TEACHER_FIELDS.get(field, field): message for field, message in error.problems.items()}
            first = next(iter(found))
            raise FieldError(first, found[first], found) from error

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> tuple[TeachForm, Form]:
        """The forms that describe a teacher's recipe. Raises FieldError for one that they can't describe."""
        content = recipe.model_dump(mode="json")
        part = recipe.optimisation
        form = cls(recipe.student.removeprefix("unet:"), part.epochs, part.lr, recipe.weights, recipe.snapshots)
        shared = {name: FIELDS[name].value_in(content) for name in SHARED}
        student = Form(Choice(card=recipe.data.card, seed=recipe.seed), **shared)
        made = form.recipe(student).model_dump(mode="json")
        _refuse(SCHEMA.differences(content, made) - {"init"})  # a teacher has no use for it
        return form, student


def checked_recipe(content: dict[str, Any]) -> Recipe:
    """A recipe from plain data. Raises FieldError with every problem at its field."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        found: dict[str, str] = {}
        for path, message in problems(error).items():
            found.setdefault(page_field(path) or "form", in_labels(message))
        first = next(iter(found))
        raise FieldError(first, found[first], found) from error


def page_field(path: str) -> str:
    """The page's field for a path in a recipe, such as "data.size"; "" if there is none."""
    field = SCHEMA.field_at(path.split("."))
    if field is None or not field.display:
        return ""
    return "data" if field.place == "data" else field.name


def command(recipe: Recipe, run: str) -> str:
    """The shell command that trains that recipe.

    If flags can't express the recipe, for instance names picked by hand, the command names the recipe's file.
    """
    content = recipe.model_dump(mode="json")
    words = ["python", "-m", "segskd", recipe.kind]
    if recipe.kind == "teach":
        arch, _, encoder = recipe.student.partition(":")
        words += ["--arch", arch, "--encoder", encoder]
    elif any(_has_no_flag(field, field.value_in(content)) for field in SCHEMA):
        return shlex.join([*words, "--recipe", f"{Path(run).name}.yaml", "--run", run])
    for field in SCHEMA:
        if field.display and recipe.kind in field.display.commands:
            words += _words(field, field.value_in(content))
    return shlex.join([*words, "--out" if recipe.kind == "teach" else "--run", run])


def _words(field: RecipeField, value: Any) -> list[str]:
    """A field as words of a command. Advanced fields with their default value are left out."""
    if isinstance(value, dict):
        return [word for name, part in value.items() for word in (field.flag, name, repr(part))]
    if value is None or (value == field.default and field.place not in ("form", "data")):
        return []
    return [field.flag] if value is True else [field.flag, str(value)]


def _has_no_flag(field: RecipeField, value: Any) -> bool:
    """Whether a recipe for `distill` has a value of this field that no flag can set."""
    if value == field.default or field.path == ("kind",):
        return False
    has_flag = field.display is not None and "distill" in field.display.commands
    return not has_flag or isinstance(value, list) or value is None or value is False


def _refuse(paths: set[str]) -> None:
    """Raises FieldError if a recipe has values at these paths for which the form has no field."""
    if "prune" in paths:
        raise FieldError("load", "start a pruned run on the Export tab, from the run that is to be pruned")
    if paths:
        raise FieldError("load", f"this form has no field for the recipe's {', '.join(sorted(paths))}")


def is_filled(value: object) -> bool:
    """Whether a field is not empty."""
    return bool(value.strip()) if isinstance(value, str) else value is not None


def as_text(value: object) -> str:
    """A number as the text of a field; "" for None."""
    return "" if value is None else str(as_whole(value))


def as_whole(value: Any) -> Any:
    """8 for 8.0, since the page may send whole numbers so; text without spaces around it, None for an empty one."""
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _recipe_value(field: RecipeField, value: Any) -> Any:
    """The recipe's value for a value of the page's field."""
    if get_origin(field.kind) is not dict:
        return as_whole(value)
    try:
        return read_options(value)
    except UserError as error:
        raise FieldError(field.name, str(error)) from error


def _field_value(value: Any) -> Any:
    """The page's value for a recipe's value."""
    return write_options(value) if isinstance(value, dict) else value


def read_options(text: str) -> dict[str, float]:
    """A method's options from text such as "temperature 2, soft 0.5". Raises UserError."""
    options: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\w+)\s*[ =:]\s*(\S+)", part)
        try:
            options[found[1] if found else ""] = float(found[2] if found else "")
        except ValueError:
            raise UserError(f"'{part}' is not an option: write a name and a number, such as temperature 2") from None
    return options


def write_options(options: Mapping[str, float]) -> str:
    """Options as text, which `read_options` reads."""
    return ", ".join(f"{name} {as_whole(value)!r}" for name, value in options.items())
