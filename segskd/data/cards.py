"""Cards: a YAML file for each dataset, which says where images and masks lie and what the masks' values mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from segskd.config import first_problem, read_yaml
from segskd.errors import DataError, UserError
from segskd.folders import CARDS_FOLDER as CARDS_FOLDER
from segskd.folders import data_folder as data_folder

PROJECT_CARDS = ("camvid", "cityscapes", "oxford_pets", "pascal_voc", "scenes")
"""The cards that come with SegSKD; others in the same folder are the user's own."""
UNKNOWN = -1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OTHER = 1 << 16
"""The place in `Card.value_table` of all values that a 16-bit file can't hold."""

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"'{path}' must lie below the dataset's folder")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]
"""A relative path that stays below the folder it starts from."""


class ClassEntry(_Strict):
    """One class: its name and its colour, RGB 0-255. Its index is its place in the card's list."""

    name: str
    color: Colour


class Split(_Strict):
    """Where one split's files lie.

    `images` and `masks` are paths below the card's folder. Each contains `{name}` once, which stands for the part that
    an image and its mask have in common and may contain slashes. A `*` stands for any text within one folder or file
    name, and `.*` at the end for any suffix. `names` is a text file with the names of the split, one in each line,
    alone or as the first column. `left_out` are names whose files can't be used. `share` is for datasets without
    splits: it keeps the part [from, to) of all names in an order drawn by hash.
    """

    images: InsidePath
    masks: InsidePath
    names: InsidePath | None = None
    left_out: tuple[str, ...] = ()
    share: tuple[float, float] | None = None
    count: int | None = Field(default=None, ge=1, description="images the split has when it is complete")

    @model_validator(mode="after")
    def _one_placeholder(self) -> Split:
        for pattern in (self.images, self.masks):
            if pattern.count("{name}") != 1:
                raise ValueError(f"'{pattern}' must contain {{name}} once")
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share {list(self.share)} must rise from at least 0 to at most 1")
        return self


class Archive(_Strict):
    """One file to download. Its checksum is compared, then it is unpacked below the card's folder.

    Only what lies below the path `member` in the archive is unpacked, without that path. `into` is the folder below
    the card's folder that receives it.
    """

    url: str
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    member: InsidePath = ""
    into: InsidePath = ""

    @model_validator(mode="after")
    def _checksum(self) -> Archive:
        if not (self.md5 or self.sha256):
            raise ValueError(f"{self.url} needs an md5 or a sha256")
        return self


class Card(_Strict):
    """A dataset: its classes, what its mask values mean, and where its files lie.

    A decoded mask holds 0 … C-1 for the C classes in order, and `ignore_index` for pixels that don't count. Mask files
    hold these values themselves, unless `values` maps the files' values to them, or `mask_format` is `color` and the
    files hold the classes' colours.

    Images have `channels`: 1, 3 (RGB) or 4 (RGB and one more, or any four bands). `white` is the pixel value that
    becomes 1.0, by default the largest that the file's type holds, 255 or 65535; brighter pixels count as white. `mean`
    and `std` have one value a channel, for pixels from 0 to 1. By default they are ImageNet's, and the mean of its
    three values for a grey or a fourth channel.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    folder: InsidePath
    classes: tuple[ClassEntry, ...] = Field(min_length=2, max_length=254)
    splits: dict[Literal["train", "val", "test"], Split]
    ignore_index: int = Field(default=255, ge=0, le=255)
    ignore_colors: tuple[Colour, ...] = ()
    mask_format: Literal["index", "color"] = "index"
    values: dict[int, int] | None = None
    channels: Literal[1, 3, 4] = 3
    white: int | None = Field(default=None, ge=1, le=65535)
    mean: tuple[float, ...] = Field(default_factory=lambda known: _for_channels(IMAGENET_MEAN, known))
    std: tuple[float, ...] = Field(default_factory=lambda known: _for_channels(IMAGENET_STD, known))
    licence: str = ""
    homepage: str = ""
    generator: Literal["scenes"] | None = None
    archives: tuple[Archive, ...] = ()
    fetch_help: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if "train" not in self.splits:
            raise ValueError("a card needs a train split")
        if self.ignore_index < len(self.classes):
            raise ValueError(f"ignore_index {self.ignore_index} is the index of a class")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, and channels is {self.channels}: give one each")
        allowed = {*range(len(self.classes)), self.ignore_index}
        wrong = sorted(set((self.values or {}).values()) - allowed)
        if wrong:
            raise ValueError(f"values map to {wrong}, which are neither classes nor ignore_index")
        names = [entry.name for entry in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("two classes have the same name")
        colors = [entry.color for entry in self.classes] + list(self.ignore_colors)
        if self.mask_format == "color" and len(set(colors)) != len(colors):
            raise ValueError("two classes have the same colour, so colour masks can't be told apart")
        return self

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal. pydantic would also compare the cached tables, and fail on their arrays."""
        return isinstance(other, Card) and self.model_dump() == other.model_dump()

    @property
    def class_names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def palette(self) -> list[Colour]:
        """RGB of each class, in order."""
        return [entry.color for entry in self.classes]

    @cached_property
    def value_table(self) -> npt.NDArray[np.int16]:
        """Class index int16 (65537,) of each file value 0-65535, UNKNOWN for those without one. OTHER is all other
        values."""
        table = np.full(OTHER + 1, UNKNOWN, dtype=np.int16)
        identity = {value: value for value in (*range(len(self.classes)), self.ignore_index)}
        for value, index in (self.values or identity).items():
            if 0 <= value < OTHER:
                table[value] = index
        return table

    @cached_property
    def colour_table(self) -> npt.NDArray[np.int16]:
        """Class index int16 (2^24,) of each packed RGB colour, UNKNOWN for those without one."""
        table = np.full(1 << 24, UNKNOWN, dtype=np.int16)
        table[packed_rgb(np.array(self.ignore_colors, dtype=np.intp).reshape(-1, 3))] = self.ignore_index
        table[packed_rgb(np.array(self.palette))] = range(len(self.classes))
        return table

    def root(self, data: Path) -> Path:
        """The dataset's own folder; `data` is the folder where datasets lie."""
        return data / self.folder

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UserError(f"card '{self.name}' has no split '{name}'; it has {', '.join(self.splits)}")
        return self.splits[name]


def _for_channels(rgb: tuple[float, float, float], known: dict[str, Any]) -> tuple[float, ...]:
    """One value for each channel of a card: those of RGB, and their mean for a grey or a fourth channel."""
    grey = round(sum(rgb) / 3, 4)
    return {1: (grey,), 4: (*rgb, grey)}.get(known.get("channels", 3), rgb)


def packed_rgb(rgb: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """RGB colours (..., 3) as numbers below 2^24 (...)."""
    wide = rgb.astype(np.intp)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def card_place(name_or_path: str) -> str:
    """The argument, made absolute if it is a card's path, so that it is valid in any working folder."""
    return str(Path(name_or_path).expanduser().resolve()) if _is_path(name_or_path) else name_or_path


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml")) or os.sep in name_or_path


@dataclass(frozen=True)
class CardEntry:
    """A card in a list: `place` is what `load_card` takes, and `own` says that it is the user's and not SegSKD's.

    A card that can't be read has no `card`, but a `problem` of one line.
    """

    card: Card | None
    place: str
    own: bool
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.card.name if self.card else Path(self.place).stem


def list_cards(data: Path) -> list[CardEntry]:
    """The cards that come with SegSKD, then the user's: every `data/*.yaml` that is a card, sorted by file name."""
    entries = [_entry(CARDS_FOLDER / f"{name}.yaml", name, own=False) for name in PROJECT_CARDS]
    own = sorted(path for path in data.glob("*.yaml") if not path.name.startswith("."))
    return entries + [
        _entry(path, str(path), own=True) for path in own if not _is_projects(path) and _may_be_card(path)
    ]


def load_card(name_or_path: str | Path, data: Path | None = None) -> Card:
    """A card by its name or by its file's path. A name is looked up in the project's cards, then in `data`.

    `data` is by default the folder that SEGSKD_DATA names. Raises UserError when there is no such card, or when it is
    not valid.
    """
    given, folder = str(name_or_path), data_folder(data)
    named = [folder / f"{given}.yaml" for folder in (CARDS_FOLDER, folder)]
    places = [Path(given).expanduser()] if _is_path(given) else named
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        known = ", ".join(entry.name for entry in list_cards(folder))
        raise DataError(f"no card '{given}': name one of {known}, or the path of a card (a YAML file)")
    return _read_card(path)


def _read_card(path: Path) -> Card:
    try:
        return Card.model_validate(read_yaml(path))
    except ValidationError as error:
        raise DataError(f"card {path}: {first_problem(error)}") from error


def _entry(path: Path, place: str, own: bool) -> CardEntry:
    try:
        return CardEntry(_read_card(path), place, own)
    except UserError as error:
        return CardEntry(None, place, own, str(error))


def _is_projects(path: Path) -> bool:
    return path.parent.resolve() == CARDS_FOLDER and path.stem in PROJECT_CARDS


def _may_be_card(path: Path) -> bool:
    """Whether a YAML file is meant as a card and not as a recipe, for instance. True for one that can't be read."""
    try:
        content = read_yaml(path)
    except UserError:
        return True
    return isinstance(content, dict) and not {"classes", "splits"}.isdisjoint(content)
