"""A study's folder: its config, its progress, and the runs that are its cells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segskd.errors import UserError
from segskd.files import writing
from segskd.runs import OTHER_MODELS, STUDY, Run
from segskd.study.figures import NO_FIGURES, Facts, run_figures
from segskd.study.grid import Cell, Study, check_same, dump_study, load_study

PROGRESS, RESULT = "progress.json", "result.json"
TABLE, ROWS, CELLS = "table.md", "table.csv", "cells.csv"
CURVE_PNG, CURVE_SVG = "curve.png", "curve.svg"


@dataclass
class StudyProgress:
    """What the directories of the cells don't say. It is stored in progress.json."""

    images: int = 0
    """Images of the training split."""
    working: list[str] = field(default_factory=list)
    """Names of cells that have a process. They count only while the study itself has one."""
    failed: dict[str, str] = field(default_factory=dict)
    """The error of each cell that failed, by name."""


class StudyFolder:
    """A study's folder, by default below checkpoints/. It has a lock and a stop file as a run has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.desk = Run(path)

    @classmethod
    def begin(cls, path: Path, study: Study) -> StudyFolder:
        """Creates the folder of a study, or opens it if the study has begun.

        Raises UserError when the folder is that of another study, of a run or of a model, or can't be written.
        """
        foreign = [name for name in ("recipe.yaml", *OTHER_MODELS) if (path / name).exists()]
        if foreign:
            raise UserError(f"{path} holds {foreign[0]} and is no study: name another folder with --out")
        if (path / STUDY).is_file():
            check_same(load_study(path / STUDY), study, path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @contextmanager
    def working(self, study: Study) -> Iterator[None]:
        """Holds the folder's lock and writes the config. Raises UserError when another process holds it."""
        if self.is_alive():
            raise UserError(f"study {self.path.name} is run by another process: stop that one first")
        with self.desk.working():
            self.desk.write(STUDY, dump_study(study).encode())
            yield

    def is_alive(self) -> bool:
        """Whether a process runs the study."""
        return self.desk.is_alive()

    def run(self, cell: Cell) -> Run:
        """The run of a cell, whose directory may not exist yet."""
        return Run(self.path / cell.name)

    def figures(self, cell: Cell) -> Facts | None:
        """Figures of a finished cell (see `run_figures`), None if it has no result or a damaged one."""
        result = None
        with suppress(UserError, OSError):
            result = self.run(cell).read_json(RESULT)
        known = run_figures(result) if isinstance(result, dict) else NO_FIGURES
        return known if known["miou"] is not None else None

    def drop_damaged(self, cell: Cell) -> bool:
        """Deletes a result without figures, so that resuming the run makes it anew. Returns whether there was one."""
        path = self.run(cell).path / RESULT
        damaged = path.is_file() and self.figures(cell) is None
        if damaged:
            with writing(path.parent):
                path.unlink(missing_ok=True)
        return damaged

    def study(self) -> Study:
        """The study's config. Raises UserError when it is damaged."""
        return load_study(self.path / STUDY)

    def progress(self) -> StudyProgress:
        """The progress as it was written last; empty if the file is missing or damaged."""
        with suppress(OSError, ValueError, TypeError, LookupError, OverflowError):
            content: dict[str, Any] = json.loads((self.path / PROGRESS).read_text(encoding="utf-8"))
            return StudyProgress(int(content["images"]), list(content["working"]), dict(content["failed"]))
        return StudyProgress()

    def write_progress(self, progress: StudyProgress) -> None:
        self.desk.write_json(PROGRESS, asdict(progress))
