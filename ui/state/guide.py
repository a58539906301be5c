"""The demo in four steps. Each says what it is doing and which tab shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segskd.demo import demo_recipes
from segskd.errors import UserError
from segskd.runs import Run

from ..jobs import Jobs, JobState
from .exports import has_export
from .follow import RunView

UNFINISHED = ("interrupted", "paused", "failed", "new")
WORKING = ("running", "starting", "waiting")


@dataclass(frozen=True)
class DemoStep:
    """One step of the demo. `done` is the finished share, from 0 to 1. `doing` says what its run does now."""

    title: str
    text: str
    state: str
    run: str
    tab: str
    done: float = 0.0
    doing: str = ""
    seconds_left: float | None = None


class Guide:
    """Starts the demo and says how far it is."""

    def __init__(self, jobs: Jobs, data: Path, view: Callable[[str], RunView]) -> None:
        self._jobs = jobs
        self._data = data
        self._view = view
        self._lock = threading.Lock()
        self._teacher, self._student = (name for name, _ in demo_recipes(data, jobs.runs))

    def start(self) -> str:
        """Queues the runs of the demo that are not finished. Returns the run to show, "" for the one that trains.

        A finished demo is not repeated. Raises UserError if one of its folders holds something else.
        """
        with self._lock:  # if two pages ask at once, the second finds the runs of the first
            for name, recipe in demo_recipes(self._data, self._jobs.runs):
                state = self.state(name)
                if state is None:
                    self._jobs.submit(recipe, name)
                elif state in UNFINISHED:
                    self._jobs.resume(name)
        return self._student if self.state(self._teacher) == "finished" else ""

    @property
    def finished(self) -> bool:
        """Whether the demo's student is finished and can be compared."""
        return self.state(self._student) == "finished"

    def state(self, name: str) -> JobState | None:
        """The state of a run of the demo, None if there is no such run."""
        return self._jobs.state(name) if (self._jobs.runs / name / "recipe.yaml").is_file() else None

    def as_dict(self) -> dict[str, Any]:
        """The steps and their states, as plain data for the page."""
        states = [self.state(self._teacher), self.state(self._student)]
        ready = "ready" if states[1] == "finished" else "to come"
        exported = "finished" if ready == "ready" and has_export(Run(self._jobs.runs / self._student)) else ready
        steps = [
            self._training_step("Teach", "A large network learns the built-in scenes.", self._teacher, states[0]),
            self._training_step("Distill", "A small one learns from it, stage by stage.", self._student, states[1]),
            DemoStep("Compare", "Both masks side by side.", ready, self._student, "compare"),
            DemoStep("Export", "The small network as a file.", exported, self._student, "export"),
        ]
        return {
            "steps": [asdict(step) for step in steps],
            "begun": any(states),
            "busy": any(state in WORKING for state in states),
            "finished": ready == "ready",
        }

    def _training_step(self, title: str, text: str, run: str, state: JobState | None) -> DemoStep:
        step = DemoStep(title, text, state or "to come", run, "watch")
        try:
            view = self._view(run) if state else None
        except UserError:  # deleted just now
            view = None
        if view is None:
            return step
        error = view.progress.error.record.in_labels if view.progress.error and state == "failed" else ""
        doing = view.doing if state == "running" else error
        return replace(step, done=view.progress.share, doing=doing, seconds_left=view.seconds_left)
