"""Recipe: everything that a run depends on, as a YAML file or as a validated object.

A field is written down here and nowhere else. `Field` holds its meaning, bounds and default. `Display` holds its
label, its flag and what an empty value means. Flags, forms, previews and messages are made from both.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from segskd.errors import UserError, in_flags
from segskd.schema import Display, Schema

Size = tuple[int, int]
"""(height, width) in pixels."""

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "fp16"]
SubsetRule = Literal["random", "balanced", "diverse", "hardest", "hand"]
StoreKind = Literal["auto", "memory", "disk", "recompute"]
MAX_SIDE = 16384
STAGE_BY_STAGE = ("stagewise", "stagewise_finetuned")
"""Methods that train one stage after the other, so that a run can begin with another run's first stages."""
ENDING_TOGETHER = ("stagewise_finetuned",)
"""Those of them that end with a phase of all stages, unless their option `joint` is 0."""
FIRST_WEIGHTS = ("teacher", "random")
"""Values of `init` that name no folder, run or file."""
HIGHEST_RATE = 100.0
"""A higher learning rate is a typing error."""
MOST = 10**9
"""The largest count that a field takes. A larger one is a typing error, and too much for a page."""
SHORT = reprlib.Repr()
"""Writes any value in a few words, however long it is."""
SHORT.maxlevel = 1


def parse_size(value: object) -> Size:
    """(height, width) from "192x256" or a pair. Raises ValueError for anything else."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)[xX×](\d+)", value.strip())
        if not match:
            raise ValueError(f"{SHORT.repr(value)} is not a size: write HEIGHTxWIDTH, such as 192x256")
        value = (int(match[1]), int(match[2]))
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{SHORT.repr(value)} is not a size: write HEIGHTxWIDTH, such as 192x256")
    if not all(type(side) is int for side in value):
        raise ValueError(f"{SHORT.repr(value)} is not a size: both sides must be whole numbers")
    height, width = value
    if not (32 <= height <= MAX_SIDE and 32 <= width <= MAX_SIDE):
        raise ValueError(f"size {height}x{width} must lie between 32x32 and {MAX_SIDE}x{MAX_SIDE}")
    return height, width


SizeField = Annotated[Size, BeforeValidator(parse_size), PlainSerializer(lambda size: f"{size[0]}x{size[1]}")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Refused(ValueError):
    """An error of a validator that names its field itself, since pydantic would name the part that holds the field."""

    def __init__(self, message: str, about: str) -> None:
        super().__init__(message)
        self.about = about


class DataPart(_Part):
    """What the run sees."""

    card: Annotated[str, Display("Dataset", name="dataset", place="data")] = Field(
        description="a card's name, or the path of a card"
    )
    folder: Annotated[
        str | None,
        Display("Folder of datasets", "SEGSKD_DATA, else datasets/", flag="--data", place="none", shared=True),
    ] = Field(default=None, description="where datasets lie")
    size: Annotated[SizeField, Display("Size", flag_type=str, place="form", shared=True)] = Field(
        default=(192, 256), description="HEIGHTxWIDTH that images are resized to"
    )
    views: Annotated[int | None, Display("Views", "4, more of few images, 1 where no store has room", shared=True)] = (
        Field(default=None, ge=1, le=1000, description="augmentations of each image")
    )
    unlabelled: Annotated[str | None, Display("Images without labels", flag_type=Path)] = Field(
        default=None, description="folder of more images, without masks; the student learns the teacher's answers"
    )


class SubsetPart(_Part):
    """Which training images."""

    fraction: Annotated[float | None, Display("Share of the images", "all of them", place="data")] = Field(
        default=None, description="share of the training images, above 0 and at most 1"
    )
    count: Annotated[int | None, Display("Number of images")] = Field(
        default=None, ge=0, le=MOST, description="number of training images, instead of a fraction"
    )
    rule: Annotated[SubsetRule, Display("Rule", place="data")] = Field(
        default="random",
        description="how they are chosen: at random; rare classes first; most diverse or hardest for the teacher; "
        "or named by hand",
    )
    names: Annotated[tuple[str, ...] | None, Display("Names of the images", flag_type=Path, place="data")] = Field(
        default=None,
        description="the images' names, for rule hand; the flag takes a file of names, one a line",
    )
    labels: Annotated[float | None, Display("Share with labels", "all of the chosen")] = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the training images whose labels are used; 0: none are used",
    )

    @model_validator(mode="after")
    def _fraction_or_count(self) -> SubsetPart:
        if self.fraction is not None and self.count is not None:
            raise Refused("give a fraction or a count, not both", "subset.count")
        return self

    @model_validator(mode="after")
    def _names_for_hand(self) -> SubsetPart:
        if (self.names is not None) != (self.rule == "hand"):
            raise Refused(f"rule hand needs names ({named('subset.names')}), no other rule takes any", "subset.names")
        if self.names is None:
            return self
        if self.fraction is not None or self.count is not None:
            raise Refused("rule hand takes names, not a fraction or a count", "subset.names")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise Refused(f"'{twice}' is named more than once", "subset.names")
        if len(self.names) < 2:
            raise Refused(f"{len(self.names)} images are named, but training needs at least 2", "subset.names")
        return self


class OptimisationPart(_Part):
    """Adam and OneCycle, new in each phase (SKD, arXiv 1911.06786)."""

    epochs: Annotated[int | None, Display("Epochs a stage", "chosen by the number of images", place="form")] = Field(
        default=None, ge=1, le=MOST, description="epochs a stage"
    )
    batch: Annotated[int, Display("Batch", shared=True)] = Field(default=8, ge=1, le=MOST, description="images a step")
    lr: Annotated[float | None, Display("Learning rate", "0.01 for a stage by itself, 0.001 for a whole network")] = (
        Field(default=None, gt=0, le=HIGHEST_RATE, description="peak of the learning rate")
    )
    joint_lr: Annotated[
        float | None,
        Display("Learning rate of stages together", "the learning rate, or else 0.001", commands=("distill",)),
    ] = Field(
        default=None,
        gt=0,
        le=HIGHEST_RATE,
        description="peak of the learning rate in phases in which several stages train on one another's features",
    )
    weight_decay: Annotated[float, Display("Weight decay", shared=True)] = Field(
        default=0.0, ge=0, description="L2 penalty"
    )
    patience: Annotated[int | None, Display("Patience", "0, but stages that equal the teacher's are left out")] = Field(
        default=None,
        ge=0,
        le=MOST,
        description="a stage without labels ends early when its loss fell by less than 1 % in this many epochs; "
        "0: never",
    )


class StorePart(_Part):
    """Where features are stored."""

    kind: Annotated[StoreKind, Display("Feature store", name="store")] = Field(
        default="auto", description="memory or disk; or recompute: features are computed again in every step"
    )
    budget_gib: Annotated[
        float | None, Display("Memory for the store (GiB)", "half of what is free", name="store_budget")
    ] = Field(default=None, ge=0, le=1e6, description="GiB of memory for features")
    bits: Annotated[
        Literal[8] | None, Display("Bits of a stored value", "as features are computed", name="store_bits")
    ] = Field(default=None, description="8: one byte for each value of a feature")

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_as_number(cls, value: object) -> object:
        return 8 if value == "8" else value

    @model_validator(mode="after")
    def _stored_if_bits(self) -> StorePart:
        if self.bits and self.kind == "recompute":
            path = "store.bits"
            raise Refused(f"features that are recomputed in every step are not stored: leave {named(path)} out", path)
        return self


class BeginPart(_Part):
    """A run that trains another run's student again from a stage on. The stages before it stay as they are."""

    run: str = Field(description="folder or name of a run by the same method")
    stage: str = Field(description="the first stage that is trained again")


class PrunePart(_Part):
    """A run that removes the least important channels of another run's student, and then trains each stage again."""

    run: str = Field(description="folder or name of the run whose student is pruned")
    ratio: float = Field(gt=0, lt=1, description="share of every layer's channels that is removed, above 0 and below 1")


class Recipe(_Part):
    """Everything that determines a run. A run's recipe.yaml has every default filled in."""

    kind: Literal["distill", "teach"] = "distill"
    data: DataPart
    subset: SubsetPart = SubsetPart()
    teacher: Annotated[str | None, Display("Teacher", commands=("distill",), place="form")] = Field(
        default=None,
        description="a folder with config.json and weights, a run, a hub id, or a file of weights with its network",
    )
    trust_teacher: Annotated[bool, Display("Trust teacher", commands=("distill",))] = Field(
        default=False, description="use the teacher without first checking its masks on a few labelled images"
    )
    student: Annotated[str, Display("Student", commands=("distill",), place="form")] = Field(
        default="unet:resnet10", description="ARCH:ENCODER of the network to train"
    )
    weights: Annotated[str | None, Display("Pretrained weights", "none")] = Field(
        default=None,
        description="pretrained weights of the encoder: a file of timm, torchvision or segmentation_models_pytorch, or "
        "the name of weights to download from a hub, such as imagenet",
    )
    init: Annotated[
        str | None,
        Display(
            "First weights",
            "teacher, or random where there is no teacher or the encoder has pretrained weights",
            commands=("distill",),
            suggestions=FIRST_WEIGHTS,
        ),
    ] = Field(
        default=None,
        description="the student's first weights: teacher (the teacher's where shapes agree), random, or a folder, run "
        "or file with weights of this network",
    )
    partial_weights: Annotated[bool, Display("Take weights that fit in part")] = Field(
        default=False, description="take first weights from a file even if fewer than half of the network's values fit"
    )
    method: Annotated[str, Display("Method", commands=("distill",), place="form")] = Field(
        default="stagewise",
        description="how the student learns; 'segskd methods' lists what there is",
    )
    options: Annotated[
        dict[str, Annotated[float, Field(allow_inf_nan=True)]],  # the method says what it takes
        Display("Options of the method", flag="--option", commands=("distill",)),
    ] = Field(default={}, description="an option of the method and its value, such as temperature 2")
    snapshots: Annotated[int, Display("Snapshots", commands=("teach",), place="none")] = Field(
        default=0, ge=0, le=100, description="copies of the teacher kept during training, for method multi_teacher_gan"
    )
    begin: BeginPart | None = Field(default=None, description="a run whose student is trained again from a stage on")
    prune: PrunePart | None = Field(default=None, description="a run whose student is pruned and then trained again")
    optimisation: OptimisationPart = OptimisationPart()
    select: Annotated[Literal["last", "best"], Display("Weights that a stage keeps", shared=True)] = Field(
        default="last", description="which epoch's weights a phase keeps"
    )
    select_on: Annotated[Literal["holdout", "val"], Display("«best» is measured on", shared=True)] = Field(
        default="holdout", description="what «best» is measured on: holdout, a fifth of the subset; or val"
    )
    store: StorePart = StorePart()
    checkpoint_seconds: Annotated[float, Display("Seconds between saves", shared=True)] = Field(
        default=30.0, ge=0, description="shortest time between two saves in a phase"
    )
    seed: Annotated[int, Display("Seed", place="form", shared=True)] = Field(
        default=0, ge=0, lt=2**31, description="decides the subset, the views, the first weights and the order"
    )
    device: Annotated[Device, Display("Device", shared=True)] = Field(
        default="auto", description="where to train; auto takes a GPU if there is one"
    )
    precision: Annotated[Precision, Display("Precision", shared=True)] = Field(
        default="auto", description="arithmetic; auto takes bf16 if the hardware supports it"
    )
    threads: Annotated[int | None, Display("Threads", "all cores, divided among the processes", shared=True)] = Field(
        default=None, ge=1, le=MOST, description="CPU threads"
    )
    devices: Annotated[int, Display("Processes", "1, or as torchrun or SLURM started them", shared=True)] = Field(
        default=1, ge=1, le=MOST, description="processes on each machine; each has a GPU or a share of the cores"
    )
    nodes: Annotated[int, Display("Machines", "1, or as torchrun or SLURM started them", shared=True)] = Field(
        default=1, ge=1, le=MOST, description="number of machines"
    )
    sync_batchnorm: Annotated[bool, Display("Batch normalisation over all GPUs", shared=True)] = Field(
        default=False, description="batch normalisation over a step's images on all GPUs, not on each GPU alone"
    )

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Recipe:
        if self.kind == "distill" and not self.teacher and self.method != "supervised":
            needed = f"method {self.method} needs a teacher: name a folder, a run or a hub id with {named('teacher')}"
            raise Refused(needed, "teacher")
        if self.kind == "teach" and self.teacher:
            raise Refused("a teacher is trained without a teacher", "teacher")
        if self.kind == "teach" and self.init not in (None, *FIRST_WEIGHTS):
            raise Refused(f"a teacher begins with {named('weights')} or at random: leave {named('init')} out", "init")
        if self.kind == "teach" and self.data.unlabelled:
            path = "data.unlabelled"
            raise Refused(f"a teacher learns from labels alone: leave {named(path)} out", path)
        if self.store.bits and (self.kind == "teach" or self.method == "supervised"):
            path = "store.bits"
            raise Refused(f"training on labels alone stores no features: leave {named(path)} out", path)
        if self.kind == "teach" and self.optimisation.joint_lr:
            path = "optimisation.joint_lr"
            raise Refused(f"a teacher has one learning rate: give it with {named('optimisation.lr')}", path)
        if self.kind == "teach" and self.optimisation.patience:
            path = "optimisation.patience"
            raise Refused(f"a teacher trains for all of its epochs: leave {named(path)} out", path)
        if self.kind == "distill" and self.snapshots:
            path = "snapshots"
            raise Refused(f"only the training of a teacher keeps snapshots: leave {named(path)} out", path)
        return self

    @model_validator(mode="after")
    def _begins_stage_by_stage(self) -> Recipe:
        if self.begin and (self.kind != "distill" or self.method not in STAGE_BY_STAGE):
            methods = " or ".join(STAGE_BY_STAGE)
            raise Refused(
                f"only a run by method {methods} can begin from a stage of another run: leave 'begin' out", "begin"
            )
        return self

    @model_validator(mode="after")
    def _repairs_stage_by_stage(self) -> Recipe:
        if self.prune and (self.kind != "distill" or self.method not in STAGE_BY_STAGE):
            methods = " or ".join(STAGE_BY_STAGE)
            raise Refused(f"only method {methods} can train a pruned student: leave 'prune' out", "prune")
        return self

    @property
    def network(self) -> str:
        """The student in words, such as unet:resnet10, or unet:resnet10 pruned by 30 %."""
        return self.student + (f" pruned by {100 * self.prune.ratio:g} %" if self.prune else "")


SCHEMA = Schema(Recipe, {"kind": "teach", "data": {"card": "-"}})
"""Every field of a recipe."""
named = SCHEMA.named
"""The name of a field, by its path, for a message of a UserError."""


def make_recipe(content: object, by_flag: Collection[str] = ()) -> Recipe:
    """A recipe from plain data. Raises UserError that names the field.

    `by_flag` are the paths of the fields that flags have given. The message names these by their flags.
    """
    if not isinstance(content, dict):
        raise UserError("recipe: it has no fields; a run's recipe.yaml is an example of a recipe")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        about = next(iter(problems(error)))
        text = f"{named(about)} {problems(error)[about]}" if about in by_flag else f"recipe: {_first_problem(error)}"
        raise UserError(text, about) from error


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from its YAML file. Raises UserError."""
    return make_recipe(read_yaml(Path(path).expanduser()))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML; `load_recipe` gives the same object back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, in its parts, too. A value of None changes nothing."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            part = result.get(key)
            if part is None or isinstance(part, dict):  # anything else is an error, which validation reports
                result[key] = merged(part or {}, value)
        elif value is not None:
            result[key] = value
    return result


def overridden(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`merged`, where a new learning rate also replaces the one of stages together, unless that is given, too."""
    result, rates = merged(base, changes), changes.get("optimisation")
    if isinstance(rates, dict) and rates.get("lr") is not None and rates.get("joint_lr") is None:
        result["optimisation"] = {**result["optimisation"], "joint_lr": None}
    return result


def read_yaml(path: Path) -> object:
    """A YAML file's content. Raises UserError when it is not there or is not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def problems(error: ValidationError) -> dict[str, str]:
    """The first problem of each field, by the field's path. In the messages marks stand for fields' names."""
    found: dict[str, str] = {}
    for problem in sorted(error.errors(), key=_is_known_field):
        cause = problem.get("ctx", {}).get("error")
        about = cause.about if isinstance(cause, Refused) else ".".join(map(str, problem["loc"]))
        found.setdefault(about, in_plain_words(problem["msg"]))
    return found


def first_problem(error: ValidationError) -> str:
    """One line from pydantic's report: where, what, and how many more problems there are. Unknown fields come first."""
    return in_flags(_first_problem(error))


def _first_problem(error: ValidationError) -> str:
    """What `first_problem` gives, with marks for fields' names."""
    first, *others = sorted(error.errors(), key=_is_known_field)
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return f"{where + ': ' if where else ''}{in_plain_words(first['msg'])}{more}"


def _is_known_field(problem: ErrorDetails) -> bool:
    return problem["type"] != "extra_forbidden"


def in_plain_words(message: str) -> str:
    """A message of pydantic's in plain words: what the value must be."""
    message = re.sub(r"^(Value|Assertion) error, ", "", message)
    message = re.sub(r"^Input should be (a valid )?", "must be ", message)
    message = re.sub(
        r"^must be (integer|number|string|dictionary|tuple|list|boolean)\b.*?(?=,|$)", _plain_kind, message
    )
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    message = message.replace("Extra inputs are not permitted", "there is no such field")
    message = message.replace("Field required", "is missing")
    return re.sub(r", (unable to parse|got a number) .*$", "", message)


def _plain_kind(found: re.Match[str]) -> str:
    """The name of a kind of value for people who write YAML."""
    words = {"integer": "a whole number", "number": "a number", "string": "text", "dictionary": "fields with values"}
    return f"must be {words.get(found[1], 'true or false' if found[1] == 'boolean' else 'a list')}"
