"""Images without masks: a folder of pictures that only the teacher can say anything about."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from segskd.data.dataset import IMAGE_SUFFIXES, Pair
from segskd.errors import UserError

PREFIX = "unlabelled/"
UNLABELLED = "# without labels"
"""The line above the names of images without labels, in a run's subset.txt."""


class Example(NamedTuple):
    """A training image, with its mask where that may be used."""

    name: str
    image: Path
    mask: Path | None


def example(pair: Pair, labelled: bool = True) -> Example:
    """A pair as a training image, its mask left out where it has no label."""
    return Example(pair.name, pair.image, pair.mask if labelled else None)


def list_unlabelled(folder: Path) -> list[Example]:
    """Every image below a folder, sorted by name; names begin with "unlabelled/" and keep their suffix.

    Raises UserError when there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"--unlabelled {folder} is no folder: name one that holds images")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise UserError(f"--unlabelled {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    found = [Example(PREFIX + path.relative_to(folder).as_posix(), path, None) for path in shown]
    return sorted(found, key=lambda one: one.name)
