"""Follows runs while they train: reads only what is new in their folders, however often it is asked."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segskd.config import Recipe
from segskd.errors import ErrorRecord, UserError
from segskd.runs import Event, Run
from ui.context import Context
from ui.jobs import QUEUE, WORKER, JobState
from ui.state.form import write_options
from ui.state.progress import Activity, PhaseView, Progress

AT_REST = ("finished", "failed", "paused", "interrupted", "damaged")
WORKING = ("starting", "running")
# What changes when a run at rest is begun again, moved or finished.
TELLTALES = ("recipe.yaml", "events.jsonl", "result.json", WORKER, "stop")
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class RunView:
    """What is known of a run at one moment. Shares are fractions of one, times seconds, memory bytes."""

    name: str
    state: JobState
    kind: str
    dataset: str
    student: str
    method: str
    phases: list[PhaseView]
    activity: Activity
    teacher_miou: float | None = None
    miou: float | None = None
    percent_of_teacher: float | None = None
    seconds_left: float | None = None
    seconds_so_far: float = 0.0
    images: int | None = None
    options: str = ""
    labels: str = ""
    """Which images are trained on with theirs, where these are not all."""
    warnings: tuple[str, ...] = ()
    error: ErrorRecord | None = None
    """Message and type of what ended the last attempt."""
    stopped: bool = False
    started: float | None = None
    updated: float | None = None
    last_event: str = ""
    memory: int | None = None
    place: int | None = None
    """In the queue; the next one is 1."""
    awaited: str | None = None
    """The run that is to be its teacher and has not finished."""
    result: dict[str, Any] | None = None
    problem: str = ""
    """What is wrong with its files."""
    has_teacher: bool = False

    @property
    def stage(self) -> int:
        """Number of the phase that trains, trained last, or comes next; the first is 1, and 0 means none is known."""
        begun = [number for number, phase in enumerate(self.phases, start=1) if phase.state != "to come"]
        return begun[-1] if begun else min(1, len(self.phases))

    @property
    def share(self) -> float:
        """How much of all steps is done, 0 to 1."""
        total = sum(phase.steps for phase in self.phases)
        return sum(phase.share * phase.steps for phase in self.phases) / total if total else 0.0

    @property
    def doing(self) -> str:
        """What it does, as a sentence's middle: "training encoder.1, epoch 3 of 75"."""
        if self.state == "waiting":
            if self.awaited:
                return f"waiting for its teacher {self.awaited}"
            return f"waiting, number {self.place} in the queue"
        if self.state == "starting":
            return "starting: loading the networks and reading the dataset"
        if self.state != "running":
            return {"new": "not begun"}.get(self.state, self.state)
        phase = self.phases[self.stage - 1] if self.phases else None
        if phase is None or self.activity == "beginning":
            measuring = self.has_teacher and self.phases and self.teacher_miou is None
            return "measuring the teacher on the validation images" if measuring else "preparing the data"
        if self.activity == "filling":
            coming = self.phases[min(self.stage, len(self.phases) - 1)] if phase.state == "done" else phase
            return f"storing what {coming.name} will be trained on"
        if self.activity == "training":
            return f"training {phase.name}, epoch {phase.epoch} of {phase.epochs}"
        if self.activity == "scoring":
            return f"measuring the mIoU after {phase.name}"
        return "measuring the trained network: mIoU and latency"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page, without curves; a few kilobytes."""
        names = (
            *("name", "state", "kind", "dataset", "student", "method", "teacher_miou", "miou", "percent_of_teacher"),
            *("seconds_left", "seconds_so_far", "images", "stopped", "started", "updated", "memory", "place"),
            *("awaited", "problem", "stage", "share", "doing", "has_teacher", "options", "labels"),
        )
        return {
            **{name: getattr(self, name) for name in names},
            "warnings": list(self.warnings),
            "error": self.error and self.error.in_labels,
            "phases": [phase.as_dict() for phase in self.phases],
        }


class Followers:
    """The runs of one server, each followed from the moment it was first asked for."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._followers: dict[str, _Follower] = {}
        self._lock = threading.Lock()

    def get(self, name: object) -> RunView:
        """What is known of that run now. Raises UserError when there is no such run."""
        return self._follower(name).view()

    def state(self, name: object) -> JobState:
        """What that run does, and nothing more: cheap for a list of many. Raises UserError as `get` does."""
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
    """One run: what was read of its files, and how far."""

    def __init__(self, run: Run, context: Context) -> None:
        self._run = run
        self._jobs = context.jobs
        self._lock = threading.Lock()
        self._events = EventReader(run.path / "events.jsonl")
        self._progress = Progress()
        self._phases: list[PhaseView] = []
        self._recipe = _Kept(run.path / "recipe.yaml")
        self._result = _Kept(run.path / "result.json")
        self._state: tuple[object, JobState] | None = None

    def state(self) -> JobState:
        with self._lock:
            return self._read_state()

    def view(self) -> RunView:
        with self._lock:
            state = self._read_state()
            self._read_events()
            return self._made(state)

    def _read_events(self) -> None:
        anew, events = self._events.read()
        if anew:
            self._progress = Progress()
        for event in events:
            self._progress.apply(event)
        if anew or events:
            self._phases = self._progress.snapshot()

    def _read_state(self) -> JobState:
        """A run at rest is asked again only when one of its files has changed: a list of runs must be cheap."""
        stamps = (
            _stamp(self._run.path.parent / QUEUE),
            *(_stamp(self._run.path / telltale) for telltale in TELLTALES),
        )
        if self._state and self._state[0] == stamps and self._state[1] in AT_REST:
            return self._state[1]
        state = self._jobs.state(self._run.name)
        self._state = (stamps, state)
        return state

    def _made(self, state: JobState) -> RunView:
        progress, problem = self._progress, ""
        recipe: Recipe | None = None
        result: dict[str, Any] | None = None
        try:
            recipe = self._recipe.read(lambda: self._run.recipe)
            result = self._result.read(lambda: self._run.read_json("result.json"))
        except UserError as error:
            problem = str(error)
        view = RunView(
            name=self._run.name,
            state="damaged" if recipe is None and state not in WORKING else state,
            phases=self._phases,
            activity=progress.activity,
            **_of_recipe(recipe),
            teacher_miou=progress.teacher_miou,
            miou=progress.miou,
            seconds_left=progress.seconds_left() if state == "running" else None,
            seconds_so_far=round(sum(phase.seconds for phase in self._phases), 1),
            images=progress.images,
            warnings=tuple(progress.warnings),
            error=progress.error,
            stopped=progress.stopped,
            started=progress.started,
            updated=progress.updated,
            last_event=progress.last_event,
            memory=self._jobs.memory(self._run.name) if state in WORKING else None,
            place=self._place() if state == "waiting" else None,
            awaited=self._jobs.awaited(self._run.name) if state == "waiting" else None,
            problem=problem,
        )
        return _with_result(view, result)

    def _place(self) -> int | None:
        waiting = self._jobs.waiting()
        return waiting.index(self._run.name) + 1 if self._run.name in waiting else None


class EventReader:
    """Reads an events.jsonl from where it stopped last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0

    def read(self) -> tuple[bool, list[Event]]:
        """Whether all that came before is void, because the file is another or shorter one, and the new events.

        A line that is not ended yet waits for its end; one that is no event is left out.
        """
        anew = False
        try:
            with open(self._path, "rb") as file:
                status = self._path.stat()
                if self._offset and (status.st_ino != self._inode or status.st_size < self._offset):
                    self._offset, anew = 0, True
                self._inode = status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            anew, self._offset = self._offset > 0, 0
            return anew, []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        parsed = (_parsed(line) for line in whole.splitlines())
        return anew, [event for event in parsed if event is not None]


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


class _Kept:
    """A file's content, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: Stamp | None = None
        self._content: Any = None

    def read(self, load: Any) -> Any:
        stamp = _stamp(self._path)
        if stamp is None:
            self._stamp, self._content = None, None
        elif stamp != self._stamp:
            self._content = load()
            self._stamp = stamp
        return self._content


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


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
    """What result.json says outweighs what the events said."""
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
