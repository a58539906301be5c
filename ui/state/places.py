"""Places in a recipe and the page's fields for them: defaults, words of help, values as they are typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from segskd.config import Recipe
from segskd.errors import UserError

# The page's field for each place in a recipe.
PLACES: dict[str, tuple[str, ...]] = {
    "folder": ("data", "folder"),
    "size": ("data", "size"),
    "views": ("data", "views"),
    "count": ("subset", "count"),
    "labels": ("subset", "labels"),
    "unlabelled": ("data", "unlabelled"),
    "teacher": ("teacher",),
    "trust_teacher": ("trust_teacher",),
    "student": ("student",),
    "weights": ("weights",),
    "init": ("init",),
    "method": ("method",),
    "options": ("options",),
    "epochs": ("optimisation", "epochs"),
    "batch": ("optimisation", "batch"),
    "lr": ("optimisation", "lr"),
    "weight_decay": ("optimisation", "weight_decay"),
    "patience": ("optimisation", "patience"),
    "select": ("select",),
    "select_on": ("select_on",),
    "store": ("store", "kind"),
    "budget": ("store", "budget_gib"),
    "store_bits": ("store", "bits"),
    "checkpoint_seconds": ("checkpoint_seconds",),
    "device": ("device",),
    "precision": ("precision",),
    "threads": ("threads",),
    "devices": ("devices",),
}
# Places that the Data tab chooses, and the field beside which their problems stand.
CHOSEN: dict[tuple[str, ...], str] = {
    ("data", "card"): "data",
    ("subset", "fraction"): "data",
    ("subset", "rule"): "data",
    ("subset", "names"): "data",
    ("seed",): "seed",
}
# Flags that the core's messages name and that are fields here; the longer ones first.
FLAGGED = ("store-budget", "store-bits", "select-on", "size", "batch", "views", "fraction", "count", "images", "labels",
           "unlabelled", "select", "trust-teacher", "store", "devices", "device", "precision", "threads", "teacher",
           "names")  # fmt: skip
UNDESCRIBED = {
    "seed": "of subset, views, first weights and order",
    "device": "where to train; auto takes a GPU where there is one",
    "precision": "arithmetic; auto takes bf16 where the hardware multiplies it",
}


def field_at(place: tuple[str, ...], message: str = "") -> str:
    """The page's field for a place in a recipe: "form" when it has none."""
    fields_by_place = {**{at: field for field, at in PLACES.items()}, **CHOSEN}
    for length in range(len(place), 0, -1):
        if place[:length] in fields_by_place:
            return fields_by_place[place[:length]]
    if place[:1] in (("data",), ("subset",)):
        return "data"
    return "teacher" if "teacher" in message else "form"


def help_text(field: str) -> str:
    """What the recipe says of a field, for the line below its title."""
    place = PLACES.get(field, (field,))
    model: Any = Recipe
    for part in place[:-1]:
        model = model.model_fields[part].annotation
    described: str | None = model.model_fields[place[-1]].description
    return described or UNDESCRIBED[field]


def options(field: str) -> list[str]:
    """The values that a field may have, for fields with a fixed list."""
    model: Any = Recipe
    *parts, last = PLACES[field]
    for part in parts:
        model = model.model_fields[part].annotation
    return [str(value) for value in get_args(model.model_fields[last].annotation)]


def default(field: str) -> Any:
    """The value that a recipe has where nothing is said."""
    return at(defaults(), PLACES[field])


def in_page_words(message: str) -> str:
    """The core's message with the names of fields instead of the command line's flags."""
    return re.sub(rf"--({'|'.join(FLAGGED)})\b", lambda flag: flag[1].replace("-", " "), message)


def given(value: object) -> bool:
    """Whether a field says anything."""
    return bool(value.strip()) if isinstance(value, str) else value is not None


def if_empty(field: str) -> str:
    """What stands for an empty field, by the recipe's own words after a semicolon; "" when there are none."""
    return help_text(field).partition("; ")[2]


def as_text(value: object) -> str:
    """A number for a field that may be empty."""
    return "" if value is None else str(whole(value))


def defaults() -> dict[str, Any]:
    """A recipe that says nothing but its data."""
    return Recipe.model_validate({"kind": "teach", "data": {"card": "-"}}).model_dump(mode="json")


def whole(value: Any) -> Any:
    """8 for 8.0, which is how a page sends whole numbers now and then; text without its edges, None for none."""
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    return ", ".join(f"{name} {whole(value)!r}" for name, value in options.items())


def put(content: dict[str, Any], place: Sequence[str], value: Any) -> None:
    """Sets the value at a place."""
    *parts, last = place
    for part in parts:
        content = content.setdefault(part, {})
    content[last] = value


def at(content: Any, place: Sequence[str]) -> Any:
    """The value at a place, None where there is none."""
    for part in place:
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> set[str]:
    """Places, such as "data.size", whose values differ."""
    found: set[str] = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{above}{key}.")
        elif a != b:
            found.add(f"{above}{key}")
    return found
