"""Reads files that name a dataset's classes, such as labelmap.txt, label_colors.txt and classes.txt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segskd.data.cards import Colour
from segskd.data.palette import MOST, voc_colours
from segskd.data.unpack import fit_for_text
from segskd.errors import UserError

# labelme writes this name for pixels without a label before the first class.
_NOT_A_CLASS = "__ignore__"


@dataclass(frozen=True)
class Labels:
    """Names of the classes in order, their colours if the source has them, and the source as messages name it."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    source: str


def find_labels(folders: Sequence[Path]) -> Labels | None:
    """The classes from the first file that names classes, in the first of the folders that has such a file.

    None where there is no such file. Raises UserError for a file that can't be understood.
    """
    for folder in folders:
        files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
        for name, parse in _PARSERS.items():
            if name in files:
                return parse(files[name])
    return None


def given_labels(names: Sequence[str], source: str = "the given names") -> Labels:
    """Labels without colours. Raises UserError for names that a card can't have."""
    return _checked(Labels(tuple(names), None, source))


def _checked(labels: Labels) -> Labels:
    names = labels.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{labels.source}: '{twice[0]}' is named twice; each class needs another name")
    if not 2 <= len(names) <= MOST:
        raise UserError(f"{labels.source}: {len(names)} classes; a dataset has 2 to {MOST}")
    for name in names:
        if not name.strip() or not fit_for_text(name):
            raise UserError(f"{labels.source}: {name!r} is no name for a class")
    return labels


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: save it as UTF-8") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _names_file(path: Path) -> Labels:
    """Reads one name from each line."""
    return given_labels([line for line in _lines(path) if line != _NOT_A_CLASS], str(path))


def _labelmap(path: Path) -> Labels:
    """Reads CVAT's and Datumaro's `name:r,g,b:parts:actions`. Classes without a colour get PASCAL VOC's, in order."""
    entries = [_matched(path, line, r"(?P<name>.*?):(?P<rgb>\d+,\d+,\d+)?:.*", "name:r,g,b::") for line in _lines(path)]
    colours = [rgb if rgb else voc for (_, rgb), voc in zip(entries, voc_colours(len(entries)), strict=True)]
    return _checked(Labels(tuple(name for name, _ in entries), tuple(colours), str(path)))


def _label_colors(path: Path) -> Labels:
    """Reads CamVid's and Datumaro's `r g b name`."""
    entries = [_matched(path, line, r"(?P<rgb>\d+\s+\d+\s+\d+)\s+(?P<name>.+)", "r g b name") for line in _lines(path)]
    return _checked(Labels(tuple(name for name, _ in entries), tuple(rgb for _, rgb in entries if rgb), str(path)))


def _matched(path: Path, line: str, pattern: str, form: str) -> tuple[str, Colour | None]:
    match = re.fullmatch(pattern, line)
    rgb = [int(channel) for channel in re.findall(r"\d+", match["rgb"] or "")] if match else []
    if match is None or any(channel > 255 for channel in rgb):
        raise UserError(f"{path}: the line {line[:60]!r} is not of the form '{form}'; mend it")
    return match["name"].strip(), (rgb[0], rgb[1], rgb[2]) if rgb else None


_PARSERS: dict[str, Callable[[Path], Labels]] = {
    "labelmap.txt": _labelmap,
    "label_colors.txt": _label_colors,
    "classes.txt": _names_file,
    "labels.txt": _names_file,
    "class_names.txt": _names_file,
}
