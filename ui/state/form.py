"""The Distill tab's form: what its fields hold, as a recipe and as a command, and back.

Which fields there are, and what each of them means, is said by the recipe's schema.
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

# What `Choice` holds; the Data tab chooses it.
DATA_FIELDS = {field.name for field in SCHEMA if field.place == "data" or field.name == "seed"}
FIELDS = {field.name: field for field in SCHEMA if field.display and field.name not in DATA_FIELDS}
# What a teacher that is trained first shares with its student, and the page's names of its own fields.
SHARED = tuple(field.name for field in FIELDS.values() if field.display and field.display.shared)
TEACHER_FIELDS = {
    "student": "teach_encoder",
    **{name: f"teach_{name}" for name in ("weights", "epochs", "lr", "snapshots")},
}


class FieldError(UserError):
    """Something that a field of the page can't hold. `problems` has them all by field, this one first."""

    def __init__(self, field: str, message: str, others: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.message = in_labels(message)
        self.problems = {field: self.message, **(others or {})}

    @classmethod
    def of(cls, error: UserError, field: str) -> FieldError:
        """The error beside the field that it is about; beside `field` where it is about none of the page."""
        return cls(page_field(error.about) or field, error.template)


class Form:
    """What the fields of the page hold, by their short names; None or "" leaves a field to the recipe's default.

    Numbers come from the page as they were typed, some as text, so any may be wrong until `recipe` has looked.
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
        """The recipe that the form asks for. Raises FieldError with every field that can't be."""
        content = self.choice.recipe_parts()
        if is_filled(self["count"]):
            content["subset"].pop("fraction", None)
        for name, field in FIELDS.items():
            if is_filled(value := self[name]):
                field.set_in(content, _recipe_value(field, value))
        return checked_recipe(content)

    def command(self, run: str) -> str:
        """The line that starts the same run, quoted for a shell; `run` is a name, or a path for another folder."""
        return command(self.recipe(), run)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Form:
        """The form that asks for that recipe. Raises FieldError for a recipe that no form can ask for."""
        if recipe.kind != "distill":
            raise FieldError("load", "this recipe trains a teacher: load one that distills a student")
        content = recipe.model_dump(mode="json")
        subset = recipe.subset
        share = 1.0 if subset.fraction is None else subset.fraction
        choice = Choice(recipe.data.card, share, subset.rule, recipe.seed, subset.names)
        form = cls(choice, **{name: _field_value(field.value_in(content)) for name, field in FIELDS.items()})
        # No fraction and a fraction of 1 are the same images.
        _refuse(SCHEMA.differences(content, form.recipe().model_dump(mode="json")) - {"subset.fraction"})
        return form


@dataclass(frozen=True)
class TeachForm:
    """What is asked of a teacher that is to be trained first, on all training images."""

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
        """The forms that ask for a teacher's recipe. Raises FieldError for one that they can't ask for."""
        content = recipe.model_dump(mode="json")
        part = recipe.optimisation
        form = cls(recipe.student.removeprefix("unet:"), part.epochs, part.lr, recipe.weights, recipe.snapshots)
        shared = {name: FIELDS[name].value_in(content) for name in SHARED}
        student = Form(Choice(card=recipe.data.card, seed=recipe.seed), **shared)
        made = form.recipe(student).model_dump(mode="json")
        _refuse(SCHEMA.differences(content, made) - {"init"})  # it has no use here
        return form, student


def checked_recipe(content: dict[str, Any]) -> Recipe:
    """A recipe from plain data. Raises FieldError with every problem beside its field."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        found: dict[str, str] = {}
        for path, message in problems(error).items():
            found.setdefault(page_field(path) or "form", in_labels(message))
        first = next(iter(found))
        raise FieldError(first, found[first], found) from error


def page_field(path: str) -> str:
    """The page's field for a path in a recipe, such as "data.size"; "" when it has none."""
    field = SCHEMA.field_at(path.split("."))
    if field is None or not field.display:
        return ""
    return "data" if field.place == "data" else field.name


def command(recipe: Recipe, run: str) -> str:
    """The line that starts that recipe, quoted for a shell.

    What flags can't say, such as names picked by hand, is left to the recipe's file beside it.
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
    """A field as words of a command: what stands in the form itself always, all else where it is no default."""
    if isinstance(value, dict):
        return [word for name, part in value.items() for word in (field.flag, name, repr(part))]
    if value is None or (value == field.default and field.place not in ("form", "data")):
        return []
    return [field.flag] if value is True else [field.flag, str(value)]


def _has_no_flag(field: RecipeField, value: Any) -> bool:
    """Whether a recipe that distills has a value here that no flag can give it."""
    if value == field.default or field.path == ("kind",):
        return False
    has_flag = field.display is not None and "distill" in field.display.commands
    return not has_flag or isinstance(value, list) or value is None or value is False


def _refuse(paths: set[str]) -> None:
    """Raises FieldError when a recipe says something in these places that the form has no field for."""
    if "prune" in paths:
        raise FieldError("load", "a pruned run is begun on Export, from the run that it prunes")
    if paths:
        raise FieldError("load", f"this form has no field for the recipe's {', '.join(sorted(paths))}")


def is_filled(value: object) -> bool:
    """Whether a field says anything."""
    return bool(value.strip()) if isinstance(value, str) else value is not None


def as_text(value: object) -> str:
    """A number for a field that may be empty."""
    return "" if value is None else str(as_whole(value))


def as_whole(value: Any) -> Any:
    """8 for 8.0, which is how a page sends whole numbers now and then; text without its edges, None for none."""
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _recipe_value(field: RecipeField, value: Any) -> Any:
    """A field's value as a recipe has it."""
    if get_origin(field.kind) is not dict:
        return as_whole(value)
    try:
        return read_options(value)
    except UserError as error:
        raise FieldError(field.name, str(error)) from error


def _field_value(value: Any) -> Any:
    """A recipe's value as a field has it."""
    return write_options(value) if isinstance(value, dict) else value


def read_options(text: str) -> dict[str, float]:
    """A method's options as they are typed: "temperature 2, soft 0.5". Raises UserError."""
    options: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\w+)\s*[ =:]\s*(\S+)", part)
        try:
            options[found[1] if found else ""] = float(found[2] if found else "")
        except ValueError:
            raise UserError(f"'{part}' is no option: write a name and a number, such as temperature 2") from None
    return options


def write_options(options: Mapping[str, float]) -> str:
    """The same as text; `read_options` gives the options back."""
    return ", ".join(f"{name} {as_whole(value)!r}" for name, value in options.items())
