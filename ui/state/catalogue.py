"""The list of this server's runs: what each run is, how far it is, and its figures."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from segskd.config import Recipe
from segskd.data.cards import load_card
from segskd.distill.planning.settle import default_epochs
from segskd.errors import UserError, in_labels
from segskd.events import EVENTS
from segskd.run_admin import note
from segskd.runs import RUN_NAME, Run, list_runs

from ..jobs import Jobs, JobState
from .file_stamp import Stamp, stamp
from .follow import Followers

COSTS = ("bytes", "gmacs", "latency_ms")
CACHED_FILES = ("recipe.yaml", "result.json")
STOPPED = "It was stopped; Resume goes on from its last checkpoint."
DIED = "Its worker died without a message; Resume goes on from its last checkpoint."


@dataclass(frozen=True)
class Row:
    """One run. Figures are None until the run is finished; mIoU as a share, latency in milliseconds."""

    name: str
    state: JobState
    kind: str = ""
    dataset: str = ""
    student: str = ""
    teacher: str | None = None
    method: str = ""
    size: str = ""
    seed: int | None = None
    epochs: int | None = None
    """Epochs of each stage, if the recipe names them or the run is finished."""
    images: int | None = None
    miou: FiniteFloat | None = None
    teacher_miou: FiniteFloat | None = None
    percent_of_teacher: FiniteFloat | None = None
    parameters: int | None = None
    gmacs: FiniteFloat | None = None
    bytes: int | None = None
    latency_ms: FiniteFloat | None = None
    teacher_cost: dict[str, FiniteFloat] | None = None
    """bytes, gmacs and latency_ms of its teacher."""
    seconds: FiniteFloat | None = None
    changed: float = 0.0
    note: str = ""
    begun_from: str | None = None
    pruned_from: str | None = None
    pruned: FiniteFloat | None = None
    """Share of the channels that were removed."""
    problem: str | None = None
    """What is wrong with its files."""
    doing: str = ""
    """What a run that trains does now."""
    share: float | None = None
    """How much of its training is over. None for a run that has not begun or is finished."""
    ended: str = ""
    """Why an unfinished run does not train."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return asdict(self)


_ROW = TypeAdapter(Row)


class Catalogue:
    """Reads the runs' directories. A run is read again only if its files have changed.

    Without followers the rows don't say how far a run is.
    """

    def __init__(self, jobs: Jobs, followers: Followers | None = None) -> None:
        self._jobs = jobs
        self._followers = followers
        self._cache: dict[str, tuple[tuple[Stamp | None, ...], Row]] = {}
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """All runs, the last changed first. Folders whose names can't be those of runs are left out."""
        names = [run.name for run in list_runs(self._jobs.runs) if RUN_NAME.fullmatch(run.name)]
        with self._lock:
            self._cache = {name: cached for name, cached in self._cache.items() if name in names}
        rows = [row for name in names if (row := self.row(name)) is not None]
        return sorted(rows, key=lambda row: -row.changed)

    def row(self, name: str) -> Row | None:
        """One run as it is now, None if it was deleted."""
        run = Run(self._jobs.runs / name)
        stamps = tuple(stamp(run.path / file) for file in CACHED_FILES)
        if stamps[0] is None:
            return None
        with self._lock:
            cached = self._cache.get(name)
            if cached is None or cached[0] != stamps:
                cached = self._cache[name] = (stamps, _read(run))
        times = [seen[0] for seen in (*stamps, stamp(run.path / EVENTS)) if seen]
        row = replace(cached[1], changed=max(times) / 1e9, note=note(run))
        try:
            return row if row.problem else self._with_state(row)
        except UserError:  # deleted while it was read
            return None

    def finished_students(self) -> list[Row]:
        """Distilled runs that have a result and a teacher, the newest first."""
        return [row for row in self.rows() if row.state == "finished" and row.kind == "distill" and row.teacher]

    def _with_state(self, row: Row) -> Row:
        if self._followers is None:
            return replace(row, state=self._jobs.state(row.name))
        state = self._followers.state(row.name)
        if state in ("finished", "new", "waiting"):
            return replace(row, state=state)
        view = self._followers.get(row.name)
        progress = view.progress
        ended = {
            "failed": progress.error.record.in_labels if progress.error else "",
            "interrupted": STOPPED if progress.ended else DIED,
            "paused": f"It paused where it was asked to. Resume goes on with stage {progress.stage + 1}.",
        }
        doing = view.doing if state in ("starting", "running") else ""
        return replace(row, state=state, doing=doing, share=progress.share, ended=ended.get(state, ""))


def _read(run: Run) -> Row:
    try:
        recipe, result = run.recipe, run.read_json("result.json") or {}
        return _row(run, recipe, result)
    except UserError as error:
        return Row(run.name, "damaged", problem=in_labels(error))
    except OSError as error:
        return Row(run.name, "damaged", problem=f"can't read {error.filename or run.path}: {error.strerror}")
    except (AttributeError, KeyError, TypeError, ValidationError):  # JSON, but not what a run writes
        return Row(run.name, "damaged", problem=f"{run.path / 'result.json'} is damaged: delete it and resume the run")


def _row(run: Run, recipe: Recipe, result: dict[str, Any]) -> Row:
    student, teacher = result.get("student") or {}, result.get("teacher") or {}
    figures = {name: result.get(name) for name in ("images", "miou", "teacher_miou", "percent_of_teacher", "seconds")}
    return _ROW.validate_python(
        {
            "name": run.name,
            "state": "new",
            "kind": recipe.kind,
            "dataset": result.get("dataset") or _card_name(recipe.data.card),
            "student": recipe.network,
            "teacher": _teacher_name(recipe.teacher),
            "method": "teach" if recipe.kind == "teach" else recipe.method,
            "size": f"{recipe.data.size[0]}×{recipe.data.size[1]}",
            "seed": recipe.seed,
            "epochs": recipe.optimisation.epochs
            or (default_epochs(images) if (images := result.get("images")) else None),
            **figures,
            **{name: student.get(name) for name in ("parameters", *COSTS)},
            "teacher_cost": {name: teacher[name] for name in COSTS} if teacher else None,
            "begun_from": _begun_from(recipe),
            "pruned_from": _pruned_from(run, recipe),
            "pruned": recipe.prune.ratio if recipe.prune else None,
        }
    )


def _teacher_name(place: str | None) -> str | None:
    """The run's name for a run's student/ folder, else the last part of a folder or hub id."""
    if place is None:
        return None
    path = Path(place)
    return path.parent.name if path.name == "student" and path.is_absolute() else path.name


def _pruned_from(run: Run, recipe: Recipe) -> str | None:
    """The run below the same folder whose student was pruned. None for a branch, which has `begun_from`."""
    if recipe.prune is None or recipe.begin is not None:
        return None
    source = Path(recipe.prune.run)
    return source.name if source.parent == run.path.parent.resolve() else None


def _begun_from(recipe: Recipe) -> str | None:
    return f"{Path(recipe.begin.run).name}, {recipe.begin.stage}" if recipe.begin else None


def _card_name(place: str) -> str:
    try:
        return load_card(place).name
    except UserError:
        return Path(place).stem
