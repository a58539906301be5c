"""The studies of this server: how far each is, its table, its curve, and its files."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path

from segskd.errors import UserError
from segskd.runs import STUDY, Run
from segskd.study.figures import Facts
from segskd.study.folder import CELLS, CURVE_PNG, CURVE_SVG, PROGRESS, ROWS, TABLE, StudyFolder
from segskd.study.reader import read_study
from segskd.study.table import best_rows, line_names, shared, varying

from ..context import Context
from ..jobs import Jobs
from .file_stamp import stamp
from .follow import Followers

FILES = (TABLE, ROWS, CELLS, CURVE_PNG, CURVE_SVG)
"""Files of a study that can be downloaded."""
FURTHER = ("student", "rule", "labels", "init", "rate")
"""Axes that the table shows only if they vary."""
FIGURES = (
    *("fraction", "images", "method", *FURTHER, "seeds", "cells"),
    *("miou_mean", "miou_std", "percent_mean", "percent_std"),
    *("image_passes", "training_flops", "seconds", "cpu_seconds", "gpu_seconds"),
)


class Studies:
    """Reads the studies below the runs' folder. A study is read again only if its files have changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cache: dict[str, _StudyOnPage] = {}
        self._lock = threading.Lock()

    def answer(self, seen: Mapping[str, str] | None = None) -> Facts:
        """The studies for the page: {"names", "studies", "now"}.

        `names` holds all studies, the last started first. `studies` holds the results of `study_for_page`, each with a
        `tag`, without those whose tag the page has `seen`. `now` says what each running cell does.
        """
        cached = self._read()
        new = [one.page_data for one in cached if (seen or {}).get(one.name) != one.page_data["tag"]]
        now = [{"study": one.name, **cell} for one in cached for cell in one.now()]
        return {"names": [one.name for one in cached], "studies": new, "now": now}

    def file(self, study: object, name: object) -> Path:
        """The path of one of a study's FILES. Both arguments come from the page, so paths are refused.

        Raises UserError if there is no such study, or for anything but one of these files in its folder.
        """
        folder = next((folder for folder in self._folders() if folder.name == study), None)
        if folder is None:
            raise UserError(f"{study!r} is not the name of a study")
        if name not in FILES:
            raise UserError(f"{name!r} is not one of a study's files: {', '.join(FILES)}")
        path = folder / str(name)
        if path.is_symlink() or not path.is_file():
            raise UserError(f"study {folder.name} has no {name} yet")
        return path

    def content(self, study: object, name: object) -> bytes:
        """The content of that file. Raises UserError as `file` does."""
        try:
            return self.file(study, name).read_bytes()
        except OSError as error:
            raise UserError(f"can't read {name} of study {study}: {error.strerror}") from error

    def check_unneeded(self, run: Run) -> None:
        """Raises UserError if the run is the teacher of a study, since a study finds its teacher by its folder."""
        place = run.path.resolve()
        for one in self._read():
            if one.teacher and (one.teacher == place or place in one.teacher.parents):
                raise UserError(
                    f"run {run.name} is the teacher of study {one.name}, which could not find it any more: "
                    "delete the study's folder first"
                )

    def _folders(self) -> list[Path]:
        """The folders of all studies, the last started first."""
        found = [path.parent for path in self._context.runs.glob(f"[!.]*/{STUDY}")]
        times = {folder: seen[0] for folder in found if (seen := stamp(folder / STUDY))}
        return sorted(times, key=times.__getitem__, reverse=True)

    def _read(self) -> list[_StudyOnPage]:
        folders = self._folders()
        with self._lock:
            names = {folder.name for folder in folders}
            self._cache = {name: cached for name, cached in self._cache.items() if name in names}
            for folder in folders:
                self._read_anew(folder)
            return [self._cache[folder.name] for folder in folders]

    def _read_anew(self, folder: Path) -> None:
        """Reads a study if one of its files has changed."""
        stamps = _stamps(folder)
        cached = self._cache.get(folder.name)
        if cached is None or cached.stamps != stamps:
            self._cache[folder.name] = _StudyOnPage(self._context, folder, stamps)


class _StudyOnPage:
    """One study as it was last read, and its data for the page."""

    def __init__(self, context: Context, folder: Path, stamps: tuple[object, ...]) -> None:
        self.name, self.stamps = folder.name, stamps
        self.teacher: Path | None = None
        self._followers = Followers(Context(context.data, folder, Jobs(folder, context.data)))
        self._working: list[str] = []
        facts = self._read(folder)
        tag = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
        self.page_data: Facts = {**facts, "tag": tag}

    def _read(self, folder: Path) -> Facts:
        try:
            read = read_study(folder)
        except (UserError, OSError) as error:
            return {"name": folder.name, "problem": _error_text(folder, error)}
        self.teacher = Path(read["teacher"]).resolve() if read["teacher"] else None
        found = study_for_page(read)
        self._working = found["working"]
        return found

    def now(self) -> list[Facts]:
        """For each running cell: what it does, and how much of its training is over."""
        return [fact for name in self._working if (fact := self._doing(name))]

    def _doing(self, name: str) -> Facts | None:
        try:
            view = self._followers.get(name)
        except UserError:  # its process has only just begun
            return None
        return {"cell": name, "doing": view.doing, "share": round(view.progress.share, 3)}


def study_for_page(read: Facts) -> Facts:
    """A study for the page, from the result of `read_study`. `line` in a row is the name of its line in the curve."""
    rows, folder = read["rows"], Path(read["folder"])
    best = best_rows(rows)
    state = _state(read)
    return {
        "name": folder.name,
        "title": read["title"],
        "problem": None,
        "shared": shared(read),
        "state": state,
        "done": read["done"],
        "total": read["total"],
        "working": [cell["name"] for cell in read["cells"] if cell["state"] == "running"],
        "failed": [
            {"name": cell["name"], "error": str(cell["error"] or "")}
            for cell in read["cells"]
            if cell["state"] == "failed"
        ],
        "teacher_miou": read["teacher_miou"],
        "training_images": read["training_images"],
        "varying": [axis for axis in FURTHER if varying(rows, axis)],
        "rows": [
            {key: row[key] for key in FIGURES}
            | {"line": line, "best": any(row is one for one in best), "mious": _single(read["cells"], row)}
            for row, line in zip(rows, line_names(rows), strict=True)
        ],
        "files": [name for name in FILES if (folder / name).is_file() and not (folder / name).is_symlink()],
        "open": shlex.join(["python", "-m", "segskd", "ui", "--runs", str(folder)]),
        "go_on": _command(folder) if state in ("stopped", "failed") else None,
    }


def _state(read: Facts) -> str:
    if read["running"] or any(cell["state"] == "running" for cell in read["cells"]):
        return "running"
    if read["done"] == read["total"]:
        return "finished"
    return "failed" if read["done"] + read["failed"] == read["total"] else "stopped"


def _command(folder: Path) -> str:
    words = ["python", "-m", "segskd", "study", "--config", str(folder / STUDY), "--out", str(folder)]
    return shlex.join(words)


def _single(cells: list[Facts], row: Facts) -> list[float]:
    """The mIoU of each finished seed of a row."""
    axes = ("fraction", "method", *FURTHER)
    own = [cell for cell in cells if all(cell[axis] == row[axis] for axis in axes)]
    return [cell["miou"] for cell in own if cell["state"] == "finished"]


def _stamps(folder: Path) -> tuple[object, ...]:
    """Changes whenever reading the study would give something else."""
    cells: list[object] = []
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for name in below:
            result = stamp(folder / name / "result.json")
            cells.append((name, result or (stamp(folder / name / "recipe.yaml"), Run(folder / name).is_alive())))
        alive = StudyFolder(folder).is_alive()
    except OSError:  # deleted just now; `read_study` reports it
        alive = False
    return (alive, *(stamp(folder / name) for name in (STUDY, PROGRESS, *FILES)), *cells)


def _error_text(folder: Path, error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else f"can't read {error.filename or folder}: {error.strerror}"
