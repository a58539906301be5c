"""The fields of a recipe with all that its model says about them. Flags, forms, previews and messages use it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segskd.errors import mark

PagePlace = Literal["form", "advanced", "data", "none"]
Command = Literal["teach", "distill"]


@dataclass(frozen=True)
class Display:
    """How a field of a recipe is shown to people. Pydantic's Field holds its meaning, bounds and default.

    `label` is its title on the page, `empty` what an empty value means. `name` is its short name, by default the last
    part of its path. `flag` is by default the name with dashes. `commands` are the commands that have the flag.
    `flag_type` is the type that the flag takes, if it is not the field's own. `place` says where the page shows the
    field: in the Distill form, among the advanced fields there, on the Data tab, or nowhere. With `shared` a teacher
    that is trained first gets the student's value. `suggestions` are usual values of a field that also takes others.
    """

    label: str
    empty: str = ""
    name: str = ""
    flag: str = ""
    commands: tuple[Command, ...] = ("teach", "distill")
    flag_type: Any = None
    place: PagePlace = "advanced"
    shared: bool = False
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeField:
    """One field of a recipe. `default` is its default as plain data."""

    path: tuple[str, ...]
    info: FieldInfo
    display: Display | None
    default: Any

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def name(self) -> str:
        """The short name, which forms use."""
        return (self.display and self.display.name) or self.path[-1]

    @property
    def flag(self) -> str:
        """The flag, its dashes included."""
        return (self.display and self.display.flag) or f"--{self.name.replace('_', '-')}"

    @property
    def label(self) -> str:
        return self.display.label if self.display else self.dotted

    @property
    def place(self) -> PagePlace:
        return self.display.place if self.display else "none"

    @property
    def description(self) -> str:
        return self.info.description or ""

    @property
    def empty(self) -> str:
        """What an empty value means; "" if it means the default."""
        return self.display.empty if self.display else ""

    @property
    def help(self) -> str:
        """The line below the field's label on the page."""
        return f"{self.description}; {self.empty}" if self.empty else self.description

    @property
    def flag_help(self) -> str:
        """A sentence for the command line. It ends with what holds without the flag."""
        default = f"{self.default:g}" if isinstance(self.default, float) else self.default
        standard = self.empty or ("" if default in (None, "", {}, "-") or default is False else str(default))
        return f"{self.description[:1].upper()}{self.description[1:]}{f' ({standard})' if standard else ''}."

    @property
    def kind(self) -> Any:
        """The type of its values, without "or None"."""
        annotation = self.info.annotation
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        return annotation

    @property
    def choices(self) -> list[str]:
        """The values of a field with a fixed list of them; an empty list for other fields."""
        literal = get_origin(self.info.annotation) is Literal
        return [str(value) for value in get_args(self.info.annotation)] if literal else []

    def value_in(self, content: Any) -> Any:
        """The field's value in plain data, None where there is none."""
        for part in self.path:
            content = content.get(part) if isinstance(content, Mapping) else None
        return content

    def set_in(self, content: dict[str, Any], value: Any) -> None:
        """Sets the field's value in plain data."""
        for part in self.path[:-1]:
            content = content.setdefault(part, {})
        content[self.path[-1]] = value


class Schema:
    """The fields of a recipe's model, in their order. `example` is the smallest content that makes a recipe."""

    def __init__(self, model: type[BaseModel], example: Mapping[str, Any]) -> None:
        self.defaults = model.model_validate(example).model_dump(mode="json")
        self.fields = list(_fields(model, (), self.defaults))
        self._by_name = {field.name: field for field in self.fields if field.display}

    def __iter__(self) -> Iterator[RecipeField]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> RecipeField:
        return self._by_name[name]

    def field_at(self, path: Sequence[str]) -> RecipeField | None:
        """The field at a path or above it; None if there is none."""
        return next((field for field in self.fields if tuple(path[: len(field.path)]) == field.path), None)

    def named(self, dotted: str) -> str:
        """The mark for a field's name in a message. Whoever shows the message writes a flag or a label instead."""
        field = next(field for field in self.fields if field.dotted == dotted)
        return mark(field.flag if field.display else dotted, field.label)

    def differences(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
        """Paths, such as "data.size", whose values differ between two recipes as plain data."""
        return {field.dotted for field in self.fields if field.value_in(one) != field.value_in(other)}


def _fields(model: type[BaseModel], above: tuple[str, ...], defaults: Mapping[str, Any]) -> Iterator[RecipeField]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, (*above, name), defaults[name])
        else:
            display = next((one for one in info.metadata if isinstance(one, Display)), None)
            yield RecipeField((*above, name), info, display, defaults[name])
