"""The state of runs while they train. Each call reads only what is new in their folders."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segskd.config import Recipe
from segskd.errors import UserError, in_labels
from segskd.events import EVENTS, EventReader
from segskd.run_progress import PhaseProgress, RunProgress
from segskd.runs import Run

from ..context import Context
from ..jobs import QUEUE, WORKER, JobState
from .file_stamp import Stamp, stamp
from .form import write_options

IDLE = ("finished", "failed", "paused", "interrupted", "damaged")
WORKING = ("starting", "running")
# At least one of these files changes when an idle run is started again, replaced or finished.
WATCHED_FILES = ("recipe.yaml", EVENTS, "result.json", WORKER, "stop")


@dataclass(frozen=True)
class RunView:
    """A run at one moment. Shares lie between 0 and 1, times are seconds, memory is bytes."""

    name: str
    state: JobState
    kind: str
    dataset: str
    student: str
    method: str
    progress: RunProgress
    teacher_miou: float | None = None
    miou: float | None = None
    percent_of_teacher: float | None = None
    options: str = ""
    labels: str = ""
    """Which images are used with their labels, if not all are."""
    memory: int | None = None
    place: int | None = None
    """Place in the queue; the next run has 1."""
    awaited: str | None = None
    """The unfinished run that trains its teacher."""
    result: dict[str, Any] | None = None
    problem: str = ""
    """What is wrong with its files."""
    has_teacher: bool = False

    @property
    def phases(self) -> list[PhaseProgress]:
        return self.progress.phases

    @property
    def seconds_left(self) -> float | None:
        return self.progress.seconds_left() if self.state == "running" else None

    @property
    def doing(self) -> str:
        """What it does, as part of a sentence: "training encoder.1, epoch 3 of 75"."""
        if self.state == "waiting":
            if self.awaited:
                return f"waiting for its teacher {self.awaited}"
            return f"waiting, number {self.place} in the queue"
        if self.state == "starting":
            return "starting: loading the networks and reading the dataset"
        if self.state == "running":
            return self.progress.doing(self.has_teacher)
        return {"new": "not begun"}.get(self.state, self.state)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page, without curves; a few kilobytes."""
        names = (
            *("name", "state", "kind", "dataset", "student", "method", "teacher_miou", "miou", "percent_of_teacher"),
            *("seconds_left", "memory", "place", "awaited", "problem", "doing", "has_teacher", "options", "labels"),
        )
        progress = self.progress
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(progress, name) for name in ("images", "updated", "stage", "share", "warnings")},
            "seconds_so_far": round(progress.seconds, 1),
            "error": progress.error and progress.error.record.in_labels,
            "phases": [phase.as_dict() for phase in self.phases],
        }


class Followers:
    """The runs of one server. A run is followed from its first request on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._followers: dict[str, _Follower] = {}
        self._lock = threading.Lock()

    def get(self, name: object) -> RunView:
        """The run as it is now. Raises UserError if there is no such run."""
        return self._follower(name).view()

    def state(self, name: object) -> JobState:
        """The run's state alone, which is cheap enough for long lists. Raises UserError as `get` does."""
        return self._follower(name).state()

    def _follower(self, name: object) -> _Follower:
        try:
            run = self._context.run(name)
        except UserError:
            with self._lock:
                self._followers.pop(str(name), None)
            raise
        with self._lock:
            return self._followers.setdefault(run.name, _Follower(run, self._context))


class _Follower:
    """One run: the content of its files, as far as they were read."""

    def __init__(self, run: Run, context: Context) -> None:
        self._run = run
        self._jobs = context.jobs
        self._lock = threading.Lock()
        self._events = EventReader(run.path / EVENTS)
        self._progress = RunProgress()
        self._latest = self._progress.copy()
        self._recipe = _FileContent(run.path / "recipe.yaml")
        self._result = _FileContent(run.path / "result.json")
        self._state: tuple[object, JobState] | None = None

    def state(self) -> JobState:
        with self._lock:
            return self._read_state()

    def view(self) -> RunView:
        with self._lock:
            state = self._read_state()
            self._read_events()
            return self._make_view(state)

    def _read_events(self) -> None:
        restarted, events = self._events.read()
        if restarted:
            self._progress = RunProgress()
        for event in events:
            self._progress.apply(event)
        if restarted or events:
            self._latest = self._progress.copy()

    def _read_state(self) -> JobState:
        """An idle run is read again only if one of its files has changed, so that lists of runs are cheap."""
        stamps = (
            stamp(self._run.path.parent / QUEUE),
            *(stamp(self._run.path / name) for name in WATCHED_FILES),
        )
        if self._state and self._state[0] == stamps and self._state[1] in IDLE:
            return self._state[1]
        state = self._jobs.state(self._run.name)
        self._state = (stamps, state)
        return state

    def _make_view(self, state: JobState) -> RunView:
        problem = ""
        recipe: Recipe | None = None
        result: dict[str, Any] | None = None
        try:
            recipe = self._recipe.read(lambda: self._run.recipe)
            result = self._result.read(lambda: self._run.read_json("result.json"))
        except UserError as error:
            problem = in_labels(error)
        view = RunView(
            name=self._run.name,
            state="damaged" if recipe is None and state not in WORKING else state,
            progress=self._latest,
            **_of_recipe(recipe),
            teacher_miou=self._latest.teacher_miou,
            miou=self._latest.miou,
            memory=self._jobs.memory(self._run.name) if state in WORKING else None,
            place=self._place() if state == "waiting" else None,
            awaited=self._jobs.unfinished_teacher(self._run.name) if state == "waiting" else None,
            problem=problem,
        )
        return _with_result(view, result)

    def _place(self) -> int | None:
        waiting = self._jobs.waiting()
        return waiting.index(self._run.name) + 1 if self._run.name in waiting else None


class _FileContent:
    """A file's content, which is read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: Stamp | None = None
        self._content: Any = None

    def read(self, load: Any) -> Any:
        now = stamp(self._path)
        if now is None:
            self._stamp, self._content = None, None
        elif now != self._stamp:
            self._content = load()
            self._stamp = now
        return self._content


def _of_recipe(recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None:
        return {"kind": "", "dataset": "", "student": "", "method": ""}
    return {
        "kind": recipe.kind,
        "dataset": Path(recipe.data.card).stem if recipe.data.card.endswith((".yaml", ".yml")) else recipe.data.card,
        "student": recipe.network,
        "method": "teach" if recipe.kind == "teach" else recipe.method,
        "has_teacher": recipe.teacher is not None,
        "options": write_options(recipe.options),
        "labels": _labels(recipe),
    }


def _labels(recipe: Recipe) -> str:
    share = recipe.subset.labels
    if share is not None:
        return f"{100 * share:g} % of the training images" if share else "none"
    return f"all but those in {Path(recipe.data.unlabelled).name}" if recipe.data.unlabelled else ""


def _with_result(view: RunView, result: dict[str, Any] | None) -> RunView:
    """The view with the figures of result.json, which replace those of the events."""
    if not isinstance(result, dict):
        return view
    return replace(
        view,
        result=result,
        dataset=str(result.get("dataset", view.dataset)),
        miou=result.get("miou"),
        teacher_miou=result.get("teacher_miou"),
        percent_of_teacher=result.get("percent_of_teacher"),
    )
