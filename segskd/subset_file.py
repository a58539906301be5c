"""Reads and writes a run's subset.txt: the names of its training images, and of the held-out ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from segskd.data.unlabelled import UNLABELLED
from segskd.errors import UserError
from segskd.runs import Run

HELD_OUT = "# held out for choosing"


class Named(Protocol):
    """Anything that has a name, such as a pair of image and mask."""

    @property
    def name(self) -> str: ...


class SubsetNames(NamedTuple):
    """Names of training images, of held-out images, and of those training images that have no labels."""

    train: list[str]
    held_out: list[str]
    unlabelled: Sequence[str] = ()


def subset_text(train: Sequence[Named], holdout: Sequence[Named], unlabelled: Collection[str] = ()) -> str:
    """The content of subset.txt, which `read_subset_names` reads. `unlabelled` are names among `train`."""
    names = [image.name for image in train]
    lines = [name for name in names if name not in unlabelled]
    if unlabelled:
        lines += [UNLABELLED, *(name for name in names if name in unlabelled)]
    if holdout:
        lines += [HELD_OUT, *(image.name for image in holdout)]
    return "\n".join(lines) + "\n"


def read_subset_names(run: Run) -> SubsetNames | None:
    """The names in a run's subset.txt, None if the run was killed before it was written. Raises UserError."""
    path = run.path / "subset.txt"
    if not path.exists() and not (run.path / "state.pt").exists():
        return None
    try:
        train, _, held = path.read_text(encoding="utf-8").partition(HELD_OUT)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; start the run again under another name") from error
    labelled, _, without = train.partition(UNLABELLED)
    unlabelled = _names(without)
    return SubsetNames([*_names(labelled), *unlabelled], _names(held), unlabelled)


def _names(text: str) -> list[str]:
    return [name for name in text.split("\n") if name]
