"""Works out which values of a dataset's masks are classes, and which colours these have."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from segskd.callbacks import OnProgress
from segskd.data.cards import ClassEntry, Colour, packed_rgb
from segskd.data.dataset import read_unchanged
from segskd.data.labels import Labels
from segskd.data.palette import MOST, distinct_colours, voc_colours
from segskd.errors import UserError

IGNORE = 255
IGNORED = {255, 65535}
"""The largest numbers of 8 and of 16 bits. They mark ignored pixels, or the single class beside 0."""
MOST_16 = 65535
# The pale border around every object, in the colour map of PASCAL VOC.
VOC_BORDER: Colour = (224, 224, 192)
_THREADS = 4
_PHOTOGRAPHS = (
    f"these look like photographs: a mask has at most {MOST} values or colours, one for each class, and no blurred "
    "edges; save masks as PNG, never as JPEG"
)


@dataclass(frozen=True)
class FileValues:
    """The values of one mask file: its numbers, and its colours as packed RGB.

    Either is None where the file has none or too many. A palette PNG has both, and the colours of its `palette`. A grey
    picture that was saved as RGB has both, too.
    """

    path: Path
    numbers: frozenset[int] | None
    colours: frozenset[int] | None
    palette: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """The fields of a `Card` that say what the masks' values mean."""

    classes: tuple[ClassEntry, ...]
    mask_format: Literal["index", "color"] = "index"
    values: dict[int, int] | None = None
    ignore_colors: tuple[Colour, ...] = ()


def read_all_values(masks: Sequence[Path], report: OnProgress | None = None) -> list[FileValues]:
    """The values of each mask. Masks that can't be read are skipped; `data check` reports them.

    `report` is called with the number of masks that are read and of all masks. Raises UserError, with the problem of
    the first mask, when none can be read.
    """
    readable: list[FileValues] = []
    problem: UserError | None = None
    with ThreadPoolExecutor(_THREADS) as threads:
        for done, values in enumerate(threads.map(_read_or_error, masks), start=1):
            if isinstance(values, UserError):
                problem = problem or values
            else:
                readable.append(values)
            if report:
                report(done, len(masks))
    if not readable:
        raise UserError(f"no mask can be used: {problem}") from problem
    return readable


def read_values(path: Path) -> FileValues:
    """The values of one mask. Raises UserError when it can't be read, or is a JPEG, whose values are never exact."""
    raw = read_unchanged(path)
    if not np.issubdtype(raw.dtype, np.integer):
        raise UserError(f"mask {path} holds fractions: save it as an 8-bit PNG")
    with Image.open(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise UserError(f"mask {path} is a JPEG, which changes the values of its pixels: save masks as PNG")
        if raw.ndim == 3 and image.mode == "P":
            return _palette_values(path, image)
    if raw.ndim == 2:
        return FileValues(path, _few({int(value) for value in np.unique(raw)}), None)
    if raw.dtype != np.uint8:
        raise UserError(f"mask {path} holds colours of more than 8 bits: save it as an 8-bit PNG")
    rgb = cv2.cvtColor(raw[..., :3], cv2.COLOR_BGR2RGB)
    colours = {int(colour) for colour in np.unique(packed_rgb(rgb))}
    grey = all(colour % 0x010101 == 0 for colour in colours)
    numbers = _few({colour & 255 for colour in colours}) if grey else None
    return FileValues(path, numbers, _few(colours))


def work_out(files: Sequence[FileValues], labels: Labels | None, voc: bool) -> Meaning:
    """The classes of the masks, named by `labels` or else by their numbers.

    With `voc`, classes without a colour get PASCAL VOC's. Raises UserError for pictures that are no masks, for masks
    that hold a single class, and for labels that don't match the masks.
    """
    numbered = [file for file in files if file.numbers is not None]
    coloured = [file for file in files if file.colours is not None]
    if not numbered and not coloured:
        raise UserError(f"{files[0].path}: {_PHOTOGRAPHS}")
    if labels is not None and labels.colours is not None and coloured:
        return _of_labelmap(coloured, labels, labels.colours)
    if len(coloured) > len(numbered) or (coloured and _palettes_differ(numbered)):
        return _of_colours(coloured, labels, voc)
    return _of_numbers(numbered, labels, voc)


def renamed(meaning: Meaning, labels: Labels) -> Meaning:
    """The same classes with the names of `labels`. Raises UserError when the numbers of names and classes differ."""
    if len(labels.names) != len(meaning.classes):
        raise UserError(f"{labels.source}: {len(labels.names)} names for {len(meaning.classes)} classes; give one each")
    pairs = zip(labels.names, meaning.classes, strict=True)
    return replace(meaning, classes=tuple(ClassEntry(name=name, color=entry.color) for name, entry in pairs))


# -- one file -----------------------------------------------------------------------------------------


def _read_or_error(path: Path) -> FileValues | UserError:
    try:
        return read_values(path)
    except UserError as error:
        return error


def _palette_values(path: Path, image: Image.Image) -> FileValues:
    flat = image.getpalette("RGB") or []
    palette = tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))
    numbers = {int(value) for value in np.unique(np.asarray(image))}
    colours = {_packed(palette[number]) for number in numbers if number < len(palette)}
    return FileValues(path, _few(numbers), _few(colours), palette)


def _few(values: set[int]) -> frozenset[int] | None:
    """The values, or None if they are more than a mask's classes and one value for ignored pixels."""
    return frozenset(values) if len(values) <= MOST + 1 else None


# -- numbers ------------------------------------------------------------------------------------------


def _of_numbers(files: Sequence[FileValues], labels: Labels | None, voc: bool) -> Meaning:
    seen = {number for file in files for number in file.numbers or () if 0 <= number <= MOST_16}
    numbers = _class_numbers(seen, len(labels.names) if labels else None)
    if len(numbers) > MOST:
        raise UserError(f"{files[0].path}: {_PHOTOGRAPHS}")
    if len(numbers) < 2:
        held = f"nothing but {numbers[0]}" if numbers else "no number of a class"
        raise UserError(f"the masks hold {held}, and a dataset needs two classes: check whether these are the masks")
    names = labels.names if labels else [f"class {number}" for number in numbers]
    made = [voc_colours(256)[number] for number in numbers] if voc else distinct_colours(len(numbers))
    colours = _own_colours(files, numbers, labels) or made
    values = None if numbers == list(range(len(numbers))) else {number: i for i, number in enumerate(numbers)}
    if values is not None and IGNORE not in values:
        values[IGNORE] = IGNORE
    if MOST_16 in seen and MOST_16 not in numbers:
        values = {**(values or {number: number for number in (*numbers, IGNORE)}), MOST_16: IGNORE}
    return Meaning(_entries(names, colours), values=values)


def _class_numbers(seen: set[int], named: int | None) -> list[int]:
    """The number of each class in the files: those that occur, or 0 … n-1 if there are n names for more classes."""
    classes = sorted(seen - IGNORED)
    if classes == [0] and len(seen) == 2 and named in (None, 2):
        return sorted(seen)
    if named is None or (named == len(classes) and classes[-1] >= named):
        return classes
    return list(range(named))


def _own_colours(files: Sequence[FileValues], numbers: Sequence[int], labels: Labels | None) -> list[Colour] | None:
    """The labels' colours, or else those of the files' palette if it has another colour for each class."""
    if labels is not None and labels.colours is not None and len(labels.colours) == len(numbers):
        return list(labels.colours)
    palette = max((file.palette for file in files), key=len, default=())
    if len(palette) <= max(numbers):
        return None
    colours = [palette[number] for number in numbers]
    grey_ramp = all(colour == (number, number, number) for number, colour in zip(numbers, colours, strict=True))
    return None if grey_ramp or len(set(colours)) < len(colours) else colours


def _palettes_differ(files: Sequence[FileValues]) -> bool:
    """Whether two files have different colours for the same number."""
    known: dict[int, Colour] = {}
    for file in files:
        for number in file.numbers or ():
            if number < len(file.palette) and known.setdefault(number, file.palette[number]) != file.palette[number]:
                return True
    return False


# -- colours ------------------------------------------------------------------------------------------


def _of_labelmap(files: Sequence[FileValues], labels: Labels, colours: Sequence[Colour]) -> Meaning:
    if len(set(colours)) < len(colours):
        raise UserError(f"{labels.source}: two classes have the same colour, so a mask can't distinguish them")
    border = VOC_BORDER not in colours and any(_packed(VOC_BORDER) in (file.colours or ()) for file in files)
    return Meaning(_entries(labels.names, colours), "color", ignore_colors=(VOC_BORDER,) if border else ())


def _of_colours(files: Sequence[FileValues], labels: Labels | None, voc: bool) -> Meaning:
    packed = {colour for file in files for colour in file.colours or ()}
    order = {_packed(colour): number for number, colour in enumerate(voc_colours(MOST))}
    border = voc and _packed(VOC_BORDER) in packed
    seen = sorted(packed - {_packed(VOC_BORDER)} if border else packed)
    if voc and set(seen) <= order.keys():
        seen.sort(key=order.__getitem__)
        names = [f"class {order[colour]}" for colour in seen]
    else:
        names = [f"class {number}" for number in range(len(seen))]
    if len(seen) > MOST:
        raise UserError(f"{files[0].path} and others: {_PHOTOGRAPHS}")
    if len(seen) < 2:
        raise UserError("the masks hold one colour, and a dataset needs two classes: check whether these are the masks")
    if labels is not None and voc and set(seen) <= {_packed(colour) for colour in voc_colours(len(labels.names))}:
        names, seen = list(labels.names), [_packed(colour) for colour in voc_colours(len(labels.names))]
    colours = [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in seen]
    meaning = Meaning(_entries(names, colours), "color", ignore_colors=(VOC_BORDER,) if border else ())
    return renamed(meaning, labels) if labels is not None else meaning


def _entries(names: Sequence[str], colours: Sequence[Colour]) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(name=name, color=colour) for name, colour in zip(names, colours, strict=True))


def _packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]
