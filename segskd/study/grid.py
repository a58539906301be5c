"""The config of a study: what all runs of a grid share, and what varies. It is a YAML file and a validated object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segskd.config import FIRST_WEIGHTS, HIGHEST_RATE, MOST, Recipe, first_problem, make_recipe, merged, read_yaml
from segskd.data.cards import card_place, data_folder
from segskd.errors import UserError
from segskd.folders import STUDIES_FOLDER
from segskd.runs import RUN_NAME, runs_folder

Rule = Literal["random", "balanced", "diverse", "hardest"]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=HIGHEST_RATE)]
SomeOrNone = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# Fields of a recipe that the axes set, so that the shared recipe must not.
SET_BY_AXES = {
    "method": "methods",
    "student": "students",
    "seed": "seeds",
    "subset": "fractions, rules and labels",
}
NOT_STUDIED = ("kind", "begin", "prune")


@dataclass(frozen=True)
class Cell:
    """One run of a study. Its name depends on its own fields alone, so that a larger grid finds its cells again."""

    method: str
    student: str
    fraction: float
    rule: Rule
    labels: float | None
    seed: int
    init: str | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """The name of the run's directory, such as stagewise-resnet10-10pc-diverse-s0."""
        arch, _, encoder = self.student.partition(":")
        network = encoder if arch == "unet" else f"{arch}-{encoder}"
        parts = [self.method, network, f"{100 * self.fraction:g}pc"]
        parts += [self.rule] if self.rule != "random" else []
        parts += [f"labels{100 * self.labels:g}pc"] if self.labels is not None else []
        parts += [f"from-{Path(self.init).name}"] if self.init is not None else []
        parts += [f"rate{self.rate:g}"] if self.rate is not None else []
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join([*parts, f"s{self.seed}"]))


class Study(BaseModel):
    """A grid of runs with the same budget: image passes or epochs a stage, or training operations a run."""

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
    inits: tuple[str | None, ...] = Field(
        default=(None,), min_length=1, description="first weights: teacher, random, or a place; null: the recipe's"
    )
    rates: tuple[Rate | None, ...] = Field(
        default=(None,), min_length=1, description="peaks of the learning rate in all phases; null: the recipe's"
    )
    seeds: dict[float, tuple[Seed, ...]] = Field(description="by fraction; a list counts for every fraction")
    passes: int | None = Field(default=None, ge=1, le=MOST, description="image passes a stage, the same for every cell")
    epochs: int | None = Field(default=None, ge=1, le=MOST, description="epochs a stage, instead of image passes")
    tflops: float | None = Field(
        default=None, gt=0, description="training operations of a cell in 10^12, instead of passes"
    )

    @model_validator(mode="before")
    @classmethod
    def _seeds_of_each_fraction(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("fractions"), (list, tuple)):
            return content  # validation reports it
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

    @field_validator("methods", "students", "fractions", "rules", "labels", "inits", "rates")
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
        if self.inits != (None,) and self.recipe.get("init") is not None:
            raise ValueError("recipe.init is set by the study's inits: leave it out of the recipe")
        rates = {"lr", "joint_lr"} & (optimisation or {}).keys() if isinstance(optimisation, dict) else set()
        if self.rates != (None,) and rates:
            raise ValueError(f"recipe.optimisation.{min(rates)} is set by the study's rates: leave it out")
        if named := [key for key in NOT_STUDIED if key in self.recipe]:
            raise ValueError(f"recipe.{named[0]}: a study's cells are distilled from the beginning: leave it out")
        if self.recipe.get("select", "last") != "last":
            raise ValueError("recipe.select: a study's cells all train for their whole budget: leave it out")
        if isinstance(optimisation, dict) and optimisation.get("patience"):
            raise ValueError("recipe.optimisation.patience: a study's cells train for their whole budget: leave it out")
        return self

    def cells(self) -> list[Cell]:
        """The cells in the order in which they are run: fraction after fraction, with all methods of a cell in a
        row."""
        return [
            Cell(method, student, fraction, rule, labels, seed, init, rate)
            for fraction in self.fractions
            for seed in self.seeds[fraction]
            for rule in self.rules
            for labels in self.labels
            for init in self.inits
            for rate in self.rates
            for student in self.students
            for method in self.methods
        ]

    def epochs_a_stage(self, images: int) -> int:
        """Epochs a stage within the budget of passes or epochs. The runner computes those of a budget in `tflops`."""
        return self.epochs or max(1, round((self.passes or 0) / images))

    def recipe_of(self, cell: Cell, epochs: int, threads: int | None = None) -> Recipe:
        """The cell's recipe. Raises UserError, which names the field, when it is not valid."""
        subset = {"fraction": cell.fraction, "rule": cell.rule}
        axes = {"method": cell.method, "student": cell.student, "seed": cell.seed, "init": cell.init}
        changes = {**axes, "subset": subset | ({} if cell.labels is None else {"labels": cell.labels})}
        rates = {"lr": cell.rate, "joint_lr": cell.rate}
        budget = {
            "optimisation": {"epochs": epochs, "patience": 0, **rates},
            "threads": self.recipe.get("threads") or threads,
        }
        return make_recipe(merged(self.recipe, changes | budget))


def make_study(content: object, where: str) -> Study:
    """A study from plain data. Each cell's recipe is checked. Raises UserError, whose message begins with `where`."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: it holds no study; see studies/scenes.yaml for one")
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
    """A study from its YAML file. `changes` override its recipe, and all paths are made absolute.

    A name without a suffix is one of the studies that come with SegSKD, unless a file here has that name.

    A teacher is a run's name, a hub id, or a path. Paths of teacher, card and data are relative to the file's folder.
    Raises UserError when the file can't be read or isn't valid.
    """
    path = _study_file(Path(name_or_path).expanduser())
    content = read_yaml(path)
    if isinstance(content, dict) and isinstance(content.get("recipe"), dict):
        recipe = _with_absolute_paths(content["recipe"], path.resolve().parent)
        content = {**content, "recipe": merged(recipe, changes or {})}
        if isinstance(content.get("inits"), list):
            content["inits"] = [_init_place(init, path.resolve().parent) for init in content["inits"]]
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
    """The study as YAML, which `load_study` reads."""
    return yaml.safe_dump(study.model_dump(), sort_keys=False, allow_unicode=True)


def teacher_place(given: str, beside: Path) -> str:
    """The absolute path of a run's name or of a path relative to `beside`. Anything else, such as a hub id, is
    unchanged."""
    for path in (runs_folder() / given, beside / Path(given).expanduser()):
        if path.exists():
            return str(path.resolve())
    return given


def _init_place(init: Any, beside: Path) -> Any:
    """The absolute path of a place in `init`; anything else is unchanged."""
    is_place = isinstance(init, str) and init not in FIRST_WEIGHTS
    return teacher_place(init, beside) if is_place else init


def check_same(before: Study, now: Study, folder: Path) -> None:
    """Raises UserError when something that all cells share has changed since the study began. Its axes may differ."""
    old, new = _shared(before), _shared(now)
    for field in [*old, *new]:
        if old.get(field) != new.get(field):
            was, is_now = (_value_text(shared.get(field)) for shared in (old, new))
            raise UserError(
                f"study {folder.name} was begun with {field} {was}, and now it would be {is_now}: "
                "change it back, or take another --out"
            )


def _shared(study: Study) -> dict[str, Any]:
    """What all cells share, by dotted field, with defaults filled in."""
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


def _value_text(value: object) -> str:
    return "unset" if value is None else str(value)


def _check_once(values: Iterable[Any]) -> None:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given more than once")


def _with_absolute_paths(recipe: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The recipe with absolute paths of teacher, card and data folder; they are relative to `beside`."""
    recipe = dict(recipe)
    if isinstance(recipe.get("teacher"), str):
        recipe["teacher"] = teacher_place(recipe["teacher"], beside)
    if "init" in recipe:
        recipe["init"] = _init_place(recipe["init"], beside)
    if isinstance(recipe.get("weights"), str) and (file := beside / Path(recipe["weights"]).expanduser()).is_file():
        recipe["weights"] = str(file.resolve())
    if isinstance(recipe.get("data"), dict):
        data = recipe["data"] = dict(recipe["data"])
        if isinstance(data.get("card"), str):
            own = beside / Path(data["card"]).expanduser()
            data["card"] = str(own.resolve()) if own.is_file() else card_place(data["card"])
        if isinstance(data.get("folder"), str):
            data["folder"] = str((beside / Path(data["folder"]).expanduser()).resolve())
    return recipe
