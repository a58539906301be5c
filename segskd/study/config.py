"""Study: what a grid of runs shares and what varies in it. A YAML file and a validated object, one to one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segskd.config import MOST, Recipe, first_problem, make_recipe, merged, read_yaml
from segskd.data.cards import card_place, data_folder
from segskd.errors import UserError
from segskd.folders import STUDIES_FOLDER
from segskd.runs import RUN_NAME, runs_folder

Rule = Literal["random", "balanced", "diverse", "hardest"]
Share = Annotated[float, Field(gt=0, le=1)]
SomeOrNone = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# What the axes set, so that the shared recipe can't.
SET_BY_AXES = {
    "method": "methods",
    "student": "students",
    "seed": "seeds",
    "subset": "fractions, rules and labels",
}
NOT_STUDIED = ("kind", "begin", "prune")


@dataclass(frozen=True)
class Cell:
    """One run of a study. Its name depends on nothing but itself, so that a grid that grows keeps its cells."""

    method: str
    student: str
    fraction: float
    rule: Rule
    labels: float | None
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's directory, such as stagewise-resnet10-10pc-diverse-s0."""
        arch, _, encoder = self.student.partition(":")
        network = encoder if arch == "unet" else f"{arch}-{encoder}"
        parts = [self.method, network, f"{100 * self.fraction:g}pc"]
        parts += [self.rule] if self.rule != "random" else []
        parts += [f"labels{100 * self.labels:g}pc"] if self.labels is not None else []
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join([*parts, f"s{self.seed}"]))


class Study(BaseModel):
    """A grid of runs with one budget: image passes, epochs a stage, or arithmetic, whatever images they choose from."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: str = Field(description="name of its folder below checkpoints/")
    title: str | None = Field(default=None, description="heading of its table and its curve")
    recipe: dict[str, Any] = Field(description="what all cells share: a recipe without what the axes set")
    methods: tuple[str, ...] = Field(min_length=1)
    students: tuple[str, ...] = Field(default=("unet:resnet10",), min_length=1)
    fractions: tuple[Share, ...] = Field(min_length=1, description="shares of the training images")
    rules: tuple[Rule, ...] = Field(default=("random",), min_length=1, description="how the images are chosen")
    labels: tuple[SomeOrNone | None, ...] = Field(
        default=(None,), min_length=1, description="shares of the training images whose labels are used; null: all"
    )
    seeds: dict[float, tuple[Seed, ...]] = Field(description="by fraction; a list counts for every fraction")
    passes: int | None = Field(default=None, ge=1, le=MOST, description="image passes a stage, the same for every cell")
    epochs: int | None = Field(default=None, ge=1, le=MOST, description="epochs a stage, instead of image passes")
    tflops: float | None = Field(default=None, gt=0, description="training arithmetic of a cell, instead of passes")

    @model_validator(mode="before")
    @classmethod
    def _seeds_of_each_fraction(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("fractions"), (list, tuple)):
            return content  # left for validation to name
        seeds = content.get("seeds", [0])
        if not isinstance(seeds, (list, tuple)):
            return content
        return {**content, "seeds": {share: seeds for share in content["fractions"] if isinstance(share, (int, float))}}

    @field_validator("name")
    @classmethod
    def _a_folders_name(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name):
            raise ValueError("letters, digits, '.', '-' and '_' only, a letter or digit first, at most 100 of them")
        return name

    @field_validator("methods", "students", "fractions", "rules", "labels")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        _check_once(values)
        return values

    @model_validator(mode="after")
    def _seeds_and_fractions_agree(self) -> Study:
        for fraction, seeds in self.seeds.items():
            if fraction not in self.fractions:
                raise ValueError(f"seeds names fraction {fraction:g}, which is not among the fractions")
            _check_once(seeds)
        if missing := [fraction for fraction in self.fractions if not self.seeds.get(fraction)]:
            raise ValueError(f"seeds names none for fraction {missing[0]:g}")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Study:
        if [self.passes, self.epochs, self.tflops].count(None) != 2:
            raise ValueError("give passes (images a stage), epochs (a stage) or tflops (a cell), exactly one of them")
        return self

    @model_validator(mode="after")
    def _recipe_leaves_the_axes_alone(self) -> Study:
        for key, axes in SET_BY_AXES.items():
            if key in self.recipe:
                raise ValueError(f"recipe.{key} is set by the study's {axes}: leave it out of the recipe")
        optimisation = self.recipe.get("optimisation")
        if isinstance(optimisation, dict) and optimisation.get("epochs") is not None:
            raise ValueError("recipe.optimisation.epochs is set by the study's budget: leave it out")
        if named := [key for key in NOT_STUDIED if key in self.recipe]:
            raise ValueError(f"recipe.{named[0]}: a study's cells are distilled from the beginning: leave it out")
        if self.recipe.get("select", "last") != "last":
            raise ValueError("recipe.select: a study's cells all train for their whole budget: leave it out")
        if isinstance(optimisation, dict) and optimisation.get("patience"):
            raise ValueError("recipe.optimisation.patience: a study's cells train for their whole budget: leave it out")
        return self

    def cells(self) -> list[Cell]:
        """The grid in the order in which it is carried out: all methods side by side, fraction after fraction."""
        return [
            Cell(method, student, fraction, rule, labels, seed)
            for fraction in self.fractions
            for seed in self.seeds[fraction]
            for rule in self.rules
            for labels in self.labels
            for student in self.students
            for method in self.methods
        ]

    def epochs_a_stage(self, images: int) -> int:
        """Epochs that give a stage the study's image passes, at least one; those of `tflops` are counted as it runs."""
        return self.epochs or max(1, round((self.passes or 0) / images))

    def recipe_of(self, cell: Cell, epochs: int, threads: int | None = None) -> Recipe:
        """The cell's recipe. Raises UserError that names the field."""
        subset = {"fraction": cell.fraction, "rule": cell.rule}
        axes = {"method": cell.method, "student": cell.student, "seed": cell.seed}
        changes = {**axes, "subset": subset | ({} if cell.labels is None else {"labels": cell.labels})}
        budget = {"optimisation": {"epochs": epochs, "patience": 0}, "threads": self.recipe.get("threads") or threads}
        return make_recipe(merged(self.recipe, changes | budget))


def make_study(content: object, where: str) -> Study:
    """A study from plain data, each cell's recipe checked. Raises UserError that begins with `where`."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: there is no study in it; studies/scenes.yaml is one")
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from error
    cells = study.cells()
    twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if twice:
        raise UserError(f"{where}: two cells would have the name {twice[0]}: change a fraction or a student")
    for cell in cells:
        try:
            study.recipe_of(cell, 1)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return study


def load_study(name_or_path: str | Path, changes: dict[str, Any] | None = None) -> Study:
    """A study from its YAML file, with `changes` laid over its recipe and all places made absolute.

    A name without a suffix is one of the studies that come with SegSKD, unless a file here is called so.

    A teacher may be a run's name, a hub id, or a path that begins at the file's folder, as a card's and the
    data's may. Raises UserError.
    """
    path = _study_file(Path(name_or_path).expanduser())
    content = read_yaml(path)
    if isinstance(content, dict) and isinstance(content.get("recipe"), dict):
        placed = _placed(content["recipe"], path.resolve().parent)
        content = {**content, "recipe": merged(placed, changes or {})}
        data = content["recipe"].get("data")
        if isinstance(data, dict) and not data.get("folder"):
            data["folder"] = str(data_folder(None))
    return make_study(content, f"study {path}")


def _study_file(place: Path) -> Path:
    if place.is_file() or place.suffix or len(place.parts) > 1:
        return place
    shipped = {path.stem: path for path in sorted(STUDIES_FOLDER.glob("*.yaml"))}
    if place.name not in shipped:
        raise UserError(f"no study '{place}': name one of {', '.join(shipped)}, or the path of a study (a YAML file)")
    return shipped[place.name]


def dump_study(study: Study) -> str:
    """The study as YAML; `load_study` gives the same object back."""
    return yaml.safe_dump(study.model_dump(), sort_keys=False, allow_unicode=True)


def teacher_place(given: str, beside: Path) -> str:
    """A run's name or a path below `beside`, made absolute; anything else, such as a hub id, as it is."""
    for path in (runs_folder() / given, beside / Path(given).expanduser()):
        if path.exists():
            return str(path.resolve())
    return given


def check_same(before: Study, now: Study, folder: Path) -> None:
    """Raises UserError when what all cells share has changed since the study began; its axes may differ."""
    old, new = _shared(before), _shared(now)
    for field in [*old, *new]:
        if old.get(field) != new.get(field):
            was, is_now = (_said(shared.get(field)) for shared in (old, new))
            raise UserError(
                f"study {folder.name} was begun with {field} {was}, and now it would be {is_now}: "
                "leave that as it was, or take another --out"
            )


def _shared(study: Study) -> dict[str, Any]:
    """What all cells share by dotted field, defaults filled in."""
    recipe = make_recipe(merged(study.recipe, {"method": "supervised"})).model_dump(mode="json")
    for key in (*SET_BY_AXES, *NOT_STUDIED):
        del recipe[key]
    budget = {"passes": study.passes, "epochs": study.epochs, "tflops": study.tflops}
    return {**budget, **dict(_flat("recipe", recipe))}


def _flat(prefix: str, content: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(content, dict):
        yield prefix, content
        return
    for key, value in content.items():
        yield from _flat(f"{prefix}.{key}", value)


def _said(value: object) -> str:
    return "unset" if value is None else str(value)


def _check_once(values: Iterable[Any]) -> None:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given more than once")


def _placed(recipe: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The recipe with its teacher, card and data folder as places that hold in any folder."""
    placed = dict(recipe)
    if isinstance(placed.get("teacher"), str):
        placed["teacher"] = teacher_place(placed["teacher"], beside)
    if isinstance(placed.get("data"), dict):
        data = placed["data"] = dict(placed["data"])
        if isinstance(data.get("card"), str):
            own = beside / Path(data["card"]).expanduser()
            data["card"] = str(own.resolve()) if own.is_file() else card_place(data["card"])
        if isinstance(data.get("folder"), str):
            data["folder"] = str((beside / Path(data["folder"]).expanduser()).resolve())
    return placed
