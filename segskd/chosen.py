"""A run's subset.txt: the names of the training images that it has chosen, and of those held out of them."""

from __future__ import annotations

from collections.abc import Sequence

from segskd.data.dataset import Pair
from segskd.errors import UserError
from segskd.runs import Run

HELD_OUT = "# held out for choosing"


def chosen_text(train: Sequence[Pair], holdout: Sequence[Pair]) -> str:
    """The file's content; `chosen_names` reads it."""
    lines = [pair.name for pair in train]
    if holdout:
        lines += [HELD_OUT, *(pair.name for pair in holdout)]
    return "\n".join(lines) + "\n"


def chosen_names(run: Run) -> tuple[list[str], list[str]] | None:
    """(training, held out); None when the run was cut off before it had any, so that they are drawn again."""
    path = run.path / "subset.txt"
    if not path.exists() and not (run.path / "state.pt").exists():
        return None
    try:
        train, _, held = path.read_text(encoding="utf-8").partition(HELD_OUT)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; start the run anew under another name") from error
    return train.split("\n")[:-1], [name for name in held.split("\n") if name]
