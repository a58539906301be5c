"""Where things lie: the cards and studies that come with SegSKD, and the datasets and runs of who uses it."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
CLONE = None if (_PACKAGE / "cards").is_dir() else _PACKAGE.parent
"""The clone of the repository that this code lies in. None where it was installed from a wheel."""
CARDS_FOLDER = CLONE / "datasets" if CLONE else _PACKAGE / "cards"
"""The cards that come with SegSKD. In a clone, cards of the user may lie there, too."""
STUDIES_FOLDER = CLONE / "studies" if CLONE else _PACKAGE / "studies"
"""The studies that come with SegSKD."""


def home() -> Path:
    """The folder in which datasets/ and checkpoints/ lie unless the user names others: the clone or the current one."""
    return CLONE or Path.cwd()


def data_folder(given: str | Path | None = None) -> Path:
    """Where datasets lie: what was given, else SEGSKD_DATA, else datasets/. It need not exist."""
    return Path(given or os.environ.get("SEGSKD_DATA") or home() / "datasets").expanduser().resolve()


def runs_folder() -> Path:
    """Where runs lie: SEGSKD_RUNS, else checkpoints/. It need not exist."""
    return Path(os.environ.get("SEGSKD_RUNS") or home() / "checkpoints").expanduser().resolve()
