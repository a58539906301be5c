"""Reads a study's folder into plain data for the page, the table and the curve, also while the study runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from segskd.data.subset import subset_size
from segskd.errors import UserError
from segskd.runs import STUDY
from segskd.study.figures import NO_FIGURES, Facts, rows_of
from segskd.study.folder import CURVE_PNG, CURVE_SVG, TABLE, StudyFolder, StudyProgress
from segskd.study.grid import Cell, Study

CellState = Literal["waiting", "running", "finished", "interrupted", "failed"]


def read_study(folder: Path) -> dict[str, Any]:
    """A study as plain data.

    `cells` has a dictionary for each cell in the order of the grid, with its `state`, the `error` if it failed, and
    figures that are None until it is finished. `rows` has a dictionary for all cells that differ in their seeds alone
    (see `rows_of`). `table`, `curve` and `curve_svg` are paths, or None if the file doesn't exist. Raises UserError
    when the folder holds no study, or a damaged one.
    """
    if not (folder / STUDY).is_file():
        raise UserError(f"no study at {folder}: begin one with 'python -m segskd study --config FILE'")
    place = StudyFolder(folder)
    study, progress, running = place.study(), place.progress(), place.is_alive()
    cells = [_cell(place, study, cell, progress, running) for cell in study.cells()]
    states = [cell["state"] for cell in cells]
    recipe = study.recipe_of(study.cells()[0], 1)
    return {
        "name": study.name,
        "title": study.title or study.name,
        "folder": str(folder),
        "problem": None,
        "dataset": Path(recipe.data.card).name.removesuffix(".yaml"),
        "size": list(recipe.data.size),
        "init": recipe.init,
        "teacher": recipe.teacher,
        "teacher_miou": next((cell["teacher_miou"] for cell in cells if cell["teacher_miou"]), None),
        "training_images": progress.images or None,
        "passes": study.passes,
        "epochs": study.epochs,
        "tflops": study.tflops,
        "cells": cells,
        "rows": rows_of(cells),
        "done": states.count("finished"),
        "failed": states.count("failed"),
        "total": len(cells),
        "running": running,
        **{key: _file(folder / name) for key, name in _FILES.items()},
    }


def list_studies(runs: Path) -> list[dict[str, Any]]:
    """All studies below the folder `runs` as `read_study` returns them, the one that was started last first.

    A damaged one has only `name`, `folder` and `problem`, which says in one line what is wrong.
    """
    written: dict[Path, float] = {}
    for path in runs.glob(f"*/{STUDY}"):
        with suppress(OSError):  # deleted or renamed in the meantime
            written[path.parent] = path.stat().st_mtime
    return [_readable(folder) for folder in sorted(written, key=written.__getitem__, reverse=True)]


def _readable(folder: Path) -> dict[str, Any]:
    try:
        return read_study(folder)
    except UserError as error:
        return {"name": folder.name, "folder": str(folder), "problem": str(error)}


def _cell(place: StudyFolder, study: Study, cell: Cell, progress: StudyProgress, running: bool) -> Facts:
    images = _images(progress.images, cell.fraction)
    facts = {"name": cell.name, **asdict(cell), "images": images, "state": "finished", "error": None}
    if figures := place.figures(cell):
        return facts | figures
    state = _state(place, cell, progress, running)
    return facts | NO_FIGURES | {"state": state, "error": progress.failed.get(cell.name) if state == "failed" else None}


def _state(place: StudyFolder, cell: Cell, progress: StudyProgress, running: bool) -> CellState:
    """Of a cell without a result."""
    run = place.run(cell)
    if (running and cell.name in progress.working) or run.is_alive():
        return "running"
    if cell.name in progress.failed:
        return "failed"
    return "interrupted" if (run.path / "recipe.yaml").exists() else "waiting"


def _images(total: int, fraction: float) -> int | None:
    with suppress(UserError):
        return subset_size(total, fraction, None)
    return None


def _file(path: Path) -> str | None:
    return str(path) if path.is_file() else None


_FILES = {"table": TABLE, "curve": CURVE_PNG, "curve_svg": CURVE_SVG}
