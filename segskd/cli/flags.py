"""Flags that several commands share, and what they change in a recipe.

Flags for a recipe's fields are made from its schema. Only the other flags are written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import tyro

from segskd.config import SCHEMA
from segskd.errors import UserError
from segskd.schema import Command, RecipeField

JsonFlag = Annotated[
    bool, tyro.conf.arg(name="json", help="Print one JSON object as the last line of standard output.")
]


@dataclass(frozen=True)
class RecipeFlags:
    """Flags for a recipe's fields; one that is not given is None."""

    images: float | None = field(default=None, kw_only=True)
    """The same as --fraction: the share of the training images that is used."""


def _flags(command: Command) -> type[RecipeFlags]:
    """A dataclass with a field for each flag that a command has for a recipe's fields."""
    fields = [_flag(one) for one in SCHEMA if one.display and command in one.display.commands]
    return make_dataclass("RecipeFlags", fields, bases=(RecipeFlags,), frozen=True, kw_only=True)


def _flag(one: RecipeField) -> tuple[str, Any, Any]:
    help_text = tyro.conf.arg(name=one.flag.removeprefix("--"), help=one.flag_help, help_behavior_hint="")
    if get_origin(one.kind) is dict:
        pairs = tyro.conf.UseAppendAction[tuple[tuple[str, float], ...]]
        return one.name, Annotated[pairs, help_text], ()
    taken = (one.display and one.display.flag_type) or one.kind
    return one.name, Annotated[taken | None, help_text], None


if TYPE_CHECKING:
    TeachFlags = RecipeFlags
    DistillFlags = RecipeFlags
else:
    TeachFlags, DistillFlags = _flags("teach"), _flags("distill")
NO_TEACH_FLAGS, NO_DISTILL_FLAGS = TeachFlags(), DistillFlags()


@dataclass(frozen=True)
class TeacherFlags:
    """The network of a teacher that is given as a file of weights."""

    arch: str | None = None
    """Of a teacher that is a file of weights (.pth, .pt, .ckpt, .safetensors): unet …, or torchvision's
    deeplabv3_resnet50, deeplabv3_resnet101, deeplabv3_mobilenet_v3_large, fcn_resnet50, fcn_resnet101 or
    lraspp_mobilenet_v3_large."""
    encoder: str | None = None
    """Encoder of such a teacher, such as resnet34; torchvision's have theirs in their names."""
    classes: int | None = None
    """Outputs of such a teacher (taken from its weights)."""


NO_TEACHER_FLAGS = TeacherFlags()


def teacher_place(teacher: str | None, flags: TeacherFlags) -> str | None:
    """The teacher's place. A file of weights is first imported into a folder among the runs.

    Raises UserError if the flags don't say which network a file is for, or if they are given without a file.
    """
    file = Path(teacher).expanduser() if teacher else None
    named = (flags.arch, flags.encoder, flags.classes) != (None, None, None)
    if file is None or not file.is_file():
        if named:
            given = f"{teacher} is not a file" if teacher else "there is no --teacher"
            raise UserError(f"--arch, --encoder and --classes are for a teacher that is a file of weights, but {given}")
        return teacher
    from segskd.models.importing import NetworkSpec, import_teacher, needs_network
    from segskd.runs import IMPORTED, runs_folder

    if flags.arch is None:
        raise UserError(needs_network(file))
    network = NetworkSpec(flags.arch, flags.encoder, flags.classes)
    return str(import_teacher(file, network, runs_folder() / IMPORTED))


def recipe_changes(flags: RecipeFlags) -> dict[str, Any]:
    """The given flags as parts of a recipe. Raises UserError for a file of names that can't be read.

    Every part is there, so that a recipe laid under them may have left any of them empty.
    """
    changes: dict[str, Any] = {one.path[0]: {} for one in SCHEMA if len(one.path) > 1}
    for one in SCHEMA:
        value = getattr(flags, one.name, None) if one.display else None
        if isinstance(value, tuple):
            value = dict(value)
        elif isinstance(value, Path):
            value = _read(one.name, value)
        if value is not None:
            one.set_in(changes, value)
    if (fraction := _fraction(flags)) is not None:
        changes["subset"]["fraction"] = fraction
    if "names" in changes["subset"]:
        changes["subset"].setdefault("rule", "hand")
    return changes


def given_fields(changes: dict[str, Any]) -> set[str]:
    """The paths, such as "data.size", of the fields that `recipe_changes` has values for."""
    return {one.dotted for one in SCHEMA if one.value_in(changes) is not None}


def replaced_in_subset(changes: dict[str, Any]) -> set[str]:
    """Fields of a recipe's subset that the flags given with the recipe replace."""
    given = changes["subset"]
    replaced = {
        "fraction": "count" in given or "names" in given,
        "count": "fraction" in given or "names" in given,
        "names": given.get("rule", "hand") != "hand",
    }
    return {name for name, is_replaced in replaced.items() if is_replaced}


def _read(name: str, path: Path) -> str | list[str]:
    """The names in a file of names; for a folder its absolute path."""
    from segskd.data.subset import read_names

    return read_names(path) if name == "names" else str(path.expanduser().resolve())


def _fraction(flags: RecipeFlags) -> float | None:
    fraction: float | None = getattr(flags, "fraction", None)
    if None not in (fraction, flags.images) and fraction != flags.images:
        raise UserError("--fraction and --images are the same: give one of them")
    return flags.images if fraction is None else fraction
