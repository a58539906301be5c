"""The Distill tab's form: what its fields hold, as a recipe and as a command, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from segskd.config import Recipe, in_plain_words
from segskd.errors import UserError

from .choice import Choice
from .command import command
from .places import PLACES, at, differences, field_at, given, put, read_options, whole, write_options

# What a teacher that is trained first shares with its student, and its own fields.
SHARED = (
    *("folder", "size", "views", "batch", "weight_decay", "select", "select_on"),
    *("checkpoint_seconds", "device", "precision", "threads", "devices"),
)
OF_TEACHER = {
    "student": "teach_encoder",
    **{field: f"teach_{field}" for field in ("weights", "epochs", "lr", "snapshots")},
}


class FieldError(UserError):
    """Something that a field can't hold. `problems` has them all by field, this one first."""

    def __init__(self, field: str, message: str, others: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.problems = {field: message, **(others or {})}


@dataclass(frozen=True)
class Form:
    """What the fields of the page hold; None or "" leaves it to the recipe's default.

    Numbers come from the page as they were typed, some as text, so any may be wrong until `recipe` has looked.
    """

    choice: Choice = field(default_factory=Choice)
    folder: str | None = None
    size: str | None = None
    views: float | str | None = None
    count: float | str | None = None
    labels: float | str | None = None
    unlabelled: str | None = None
    teacher: str | None = None
    trust_teacher: bool | None = None
    student: str | None = None
    weights: str | None = None
    init: str | None = None
    method: str | None = None
    options: str | None = None
    epochs: float | str | None = None
    batch: float | str | None = None
    lr: float | str | None = None
    weight_decay: float | str | None = None
    patience: float | str | None = None
    select: str | None = None
    select_on: str | None = None
    store: str | None = None
    budget: float | str | None = None
    store_bits: float | str | None = None
    checkpoint_seconds: float | str | None = None
    device: str | None = None
    precision: str | None = None
    threads: float | str | None = None
    devices: float | str | None = None

    def recipe(self) -> Recipe:
        """The recipe that the form asks for. Raises FieldError with every field that can't be."""
        content = self.choice.recipe_parts()
        if given(self.count):
            content["subset"].pop("fraction", None)
        for name, place in PLACES.items():
            if given(value := getattr(self, name)):
                put(content, place, self._options() if name == "options" else whole(value))
        return checked(content)

    def _options(self) -> dict[str, float]:
        try:
            return read_options(self.options or "")
        except UserError as error:
            raise FieldError("options", str(error)) from error

    def command(self, run: str) -> str:
        """The line that starts the same run, quoted for a shell; `run` is a name, or a path for another folder."""
        return command(self.recipe(), run)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Form:
        """The form that asks for that recipe. Raises FieldError for a recipe that no form can ask for."""
        if recipe.kind != "distill":
            raise FieldError("load", "this recipe trains a teacher: load one that distills a student")
        content = recipe.model_dump(mode="json")
        subset = content["subset"]
        names = subset.get("names")
        choice = Choice(
            card=content["data"]["card"],
            fraction=1.0 if subset["fraction"] is None else subset["fraction"],
            rule=subset["rule"],
            seed=recipe.seed,
            names=None if names is None else tuple(names),
        )
        fields = {field: at(content, place) for field, place in PLACES.items()}
        form = cls(choice, **fields | {"options": write_options(recipe.options)})
        # No fraction and a fraction of 1 are the same images.
        _refuse(differences(content, form.recipe().model_dump(mode="json")) - {"subset.fraction"})
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
            "optimisation": {"epochs": whole(self.epochs), "lr": whole(self.lr)},
            "seed": student.choice.seed,
            "snapshots": whole(self.snapshots) or 0,
        }
        for name in SHARED:
            if given(value := getattr(student, name)):
                put(content, PLACES[name], whole(value))
        try:
            return checked(content)
        except FieldError as error:
            problems = {OF_TEACHER.get(field, field): message for field, message in error.problems.items()}
            first = OF_TEACHER.get(error.field, error.field)
            raise FieldError(first, problems[first], problems) from error

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> tuple[TeachForm, Form]:
        """The forms that ask for a teacher's recipe. Raises FieldError for one that they can't ask for."""
        content = recipe.model_dump(mode="json")
        part = recipe.optimisation
        form = cls(recipe.student.removeprefix("unet:"), part.epochs, part.lr, recipe.weights, recipe.snapshots)
        shared = {field: at(content, PLACES[field]) for field in SHARED}
        student = Form(Choice(card=recipe.data.card, seed=recipe.seed), **shared)
        _refuse(differences(content, form.recipe(student).model_dump(mode="json")) - {"init"})  # it has no use here
        return form, student


def checked(content: dict[str, Any]) -> Recipe:
    """A recipe from plain data. Raises FieldError with every problem beside its field."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for found in error.errors():
            message = in_plain_words(found["msg"])
            problems.setdefault(field_at(tuple(map(str, found["loc"])), message), message)
        first = next(iter(problems))
        raise FieldError(first, problems[first], problems) from error


def _refuse(places: set[str]) -> None:
    """Raises FieldError when a recipe says something in these places that the form has no field for."""
    if any(place.partition(".")[0] == "prune" for place in places):
        raise FieldError("load", "a pruned run is begun on Export, from the run that it prunes")
    if places:
        raise FieldError("load", f"this form has no field for the recipe's {', '.join(sorted(places))}")
