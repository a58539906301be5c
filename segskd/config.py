"""Recipe: everything that a run depends on. A YAML file and a validated object, one to one."""

from __future__ import annotations

import re
import reprlib
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

from segskd.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "fp16"]
SubsetRule = Literal["random", "balanced", "diverse", "hardest", "hand"]
StoreKind = Literal["auto", "memory", "disk", "recompute"]
MAX_SIDE = 16384
MOST = 10**9
"""Of whatever is counted: more was mistyped, and is too much for a page."""
SHORT = reprlib.Repr()
"""Writes a value out in a few words, however much there is of it."""
SHORT.maxlevel = 1


def parse_size(value: object) -> Size:
    """(height, width) from "192x256" or a pair. Raises ValueError for anything else."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)[xX×](\d+)", value.strip())
        if not match:
            raise ValueError(f"{SHORT.repr(value)} is no size: write HEIGHTxWIDTH, such as 192x256")
        value = (int(match[1]), int(match[2]))
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{SHORT.repr(value)} is no size: write HEIGHTxWIDTH, such as 192x256")
    if not all(type(side) is int for side in value):
        raise ValueError(f"{SHORT.repr(value)} is no size: both sides must be whole numbers")
    height, width = value
    if not (32 <= height <= MAX_SIDE and 32 <= width <= MAX_SIDE):
        raise ValueError(f"size {height}x{width} must lie between 32x32 and {MAX_SIDE}x{MAX_SIDE}")
    return height, width


SizeField = Annotated[Size, BeforeValidator(parse_size), PlainSerializer(lambda size: f"{size[0]}x{size[1]}")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataPart(_Part):
    """What the run sees."""

    card: str = Field(description="name of a card in datasets/, or the path of one")
    folder: str | None = Field(default=None, description="where datasets lie; SEGSKD_DATA, else datasets/")
    size: SizeField = Field(default=(192, 256), description="height and width that images are resized to")
    views: int | None = Field(default=None, ge=1, le=1000, description="augmentations an image; 4, or what fits")
    unlabelled: str | None = Field(default=None, description="folder of further training images, without masks")


class SubsetPart(_Part):
    """Which training images."""

    fraction: float | None = Field(default=None, description="share of the training images, (0, 1]")
    count: int | None = Field(
        default=None, ge=0, le=MOST, description="number of training images, instead of a fraction"
    )
    rule: SubsetRule = Field(default="random", description="how they are chosen")
    names: tuple[str, ...] | None = Field(default=None, description="the images themselves, with rule hand")
    labels: float | None = Field(
        default=None, ge=0, le=1, description="share of the training images whose labels are used; all of the chosen"
    )

    @model_validator(mode="after")
    def _one_of(self) -> SubsetPart:
        if self.fraction is not None and self.count is not None:
            raise ValueError("give a fraction or a count, not both")
        return self

    @model_validator(mode="after")
    def _names_by_hand(self) -> SubsetPart:
        if (self.names is not None) != (self.rule == "hand"):
            raise ValueError("rule hand takes names (--names FILE), and no other rule does")
        if self.names is None:
            return self
        if self.fraction is not None or self.count is not None:
            raise ValueError("rule hand takes names, and neither a fraction nor a count")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"'{twice}' is named more than once")
        if len(self.names) < 2:
            raise ValueError(f"{len(self.names)} images are named, and training needs at least 2")
        return self


class OptimisationPart(_Part):
    """Adam and OneCycle, new in each phase (SKD, arXiv 1911.06786)."""

    epochs: int | None = Field(
        default=None, ge=1, le=MOST, description="epochs a stage; chosen by the number of images"
    )
    batch: int = Field(default=8, ge=1, le=MOST, description="images a step")
    lr: float | None = Field(default=None, gt=0, description="peak of OneCycle; 0.01, and 0.001 for a teacher")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty")
    patience: int | None = Field(
        default=None,
        ge=0,
        le=MOST,
        description="epochs without 1 % less loss that cut a stage short, 0: never; off (equal stages are skipped)",
    )


class StorePart(_Part):
    """Where the feature store keeps its features."""

    kind: StoreKind = Field(default="auto", description="memory, disk, or recompute in every step")
    budget_gib: float | None = Field(
        default=None, ge=0, le=1e6, description="memory for features; half of what is free"
    )
    bits: Literal[8] | None = Field(default=None, description="8 takes a byte a value; as features are computed")

    @field_validator("bits", mode="before")
    @classmethod
    def _as_typed(cls, value: object) -> object:
        return 8 if value == "8" else value

    @model_validator(mode="after")
    def _keeps_something(self) -> StorePart:
        if self.bits and self.kind == "recompute":
            raise ValueError("what is recomputed in every step is not kept: leave 'bits' out")
        return self


class BeginPart(_Part):
    """Training again from a stage of another run: its earlier stages stay as that run left them."""

    run: str = Field(description="folder or name of a run by the same method")
    stage: str = Field(description="the first stage that is trained again")


class PrunePart(_Part):
    """A student made narrower: another run's, without its least channels, repaired stage by stage."""

    run: str = Field(description="folder or name of the run whose student is pruned")
    ratio: float = Field(gt=0, lt=1, description="share of every layer's channels that is taken away, (0, 1)")


class Recipe(_Part):
    """A run's whole cause. With every default filled in it is the run's recipe.yaml."""

    kind: Literal["distill", "teach"] = "distill"
    data: DataPart
    subset: SubsetPart = SubsetPart()
    teacher: str | None = Field(default=None, description="folder, run or hub id of the teacher")
    trust_teacher: bool = Field(
        default=False, description="whether the teacher is taken as it is, without a look at its answers first"
    )
    student: str = Field(default="unet:resnet10", description="ARCH:ENCODER of the network to train")
    weights: str | None = Field(default=None, description="pretrained weights of the encoder, such as imagenet")
    init: Literal["random", "teacher"] = Field(
        default="teacher", description="the student's first weights: the teacher's where shapes agree, or drawn"
    )
    method: str = Field(default="stagewise", description="which list of phases")
    options: dict[str, Annotated[float, Field(allow_inf_nan=True)]] = Field(  # the method says what it takes
        default={}, description="the method's own options, such as temperature"
    )
    snapshots: int = Field(default=0, ge=0, le=100, description="copies of a teacher to keep while it is trained")
    begin: BeginPart | None = Field(default=None, description="a run whose student goes on from one of its stages")
    prune: PrunePart | None = Field(default=None, description="a run whose student is pruned and repaired")
    optimisation: OptimisationPart = OptimisationPart()
    select: Literal["last", "best"] = Field(default="last", description="which epoch's weights a phase keeps")
    select_on: Literal["holdout", "val"] = Field(default="holdout", description="what 'best' is measured on")
    store: StorePart = StorePart()
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="least time between saves inside a phase")
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int | None = Field(default=None, ge=1, le=MOST, description="CPU threads; all cores")
    devices: int = Field(default=1, ge=1, le=MOST, description="processes on each machine, one a device")
    nodes: int = Field(default=1, ge=1, le=MOST, description="machines")
    sync_batchnorm: bool = Field(default=False, description="whether batch normalisation sees all GPUs' images")

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Recipe:
        if self.kind == "distill" and not self.teacher and self.method != "supervised":
            raise ValueError(f"method {self.method} needs a teacher: name a folder, a run or a hub id with --teacher")
        if self.kind == "teach" and self.teacher:
            raise ValueError("a teacher is trained without a teacher")
        if self.kind == "teach" and self.data.unlabelled:
            raise ValueError("a teacher learns from labels alone: leave 'unlabelled' out")
        if self.store.bits and (self.kind == "teach" or self.method == "supervised"):
            raise ValueError("labels alone need no features, so none are kept: leave the store's 'bits' out")
        if self.kind == "teach" and self.optimisation.patience:
            raise ValueError("a teacher learns from labels, for all of its epochs: leave 'patience' out")
        if self.kind == "distill" and self.snapshots:
            raise ValueError("snapshots are kept of a teacher while it is trained: leave 'snapshots' out")
        return self

    @model_validator(mode="after")
    def _begins_stage_by_stage(self) -> Recipe:
        if self.begin and (self.kind != "distill" or self.method != "stagewise"):
            raise ValueError("only a run by method stagewise can begin from a stage of another: leave 'begin' out")
        return self

    @model_validator(mode="after")
    def _repairs_stage_by_stage(self) -> Recipe:
        if self.prune and (self.kind != "distill" or self.method != "stagewise"):
            raise ValueError("a pruned student is repaired by method stagewise: leave 'prune' out")
        return self

    @property
    def network(self) -> str:
        """The student in words, such as unet:resnet10, or unet:resnet10 pruned by 30 %."""
        return self.student + (f" pruned by {100 * self.prune.ratio:g} %" if self.prune else "")


def make_recipe(content: object) -> Recipe:
    """A recipe from plain data. Raises UserError that names the field."""
    if not isinstance(content, dict):
        raise UserError("recipe: there is nothing in it that could be one; a run's recipe.yaml is one")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"recipe: {first_problem(error)}") from error


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from its YAML file. Raises UserError."""
    return make_recipe(read_yaml(Path(path).expanduser()))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML; `load_recipe` gives the same object back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, part by part; None changes nothing."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            kept = result.get(key)
            if kept is None or isinstance(kept, dict):  # anything else is left for validation to name
                result[key] = merged(kept or {}, value)
        elif value is not None:
            result[key] = value
    return result


def read_yaml(path: Path) -> object:
    """A YAML file's content. Raises UserError when it is not there or is not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def first_problem(error: ValidationError) -> str:
    """One line from pydantic's report: where, what, and how many more there are; a field too many comes first."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where + ': ' if where else ''}{in_plain_words(problems[0]['msg'])}{more}"


def in_plain_words(message: str) -> str:
    """A validator's message without its manners: what must be, and no more."""
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
    """A kind of value as people who write YAML call it."""
    words = {"integer": "a whole number", "number": "a number", "string": "text", "dictionary": "fields with values"}
    return f"must be {words.get(found[1], 'true or false' if found[1] == 'boolean' else 'a list')}"
