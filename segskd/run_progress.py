"""How far a run is, by its events. The console, the page, the queue and scripts all take it from here."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from segskd.events import (
    DoneEvent,
    EpochEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    PausedEvent,
    PhaseEndEvent,
    PhaseStartEvent,
    ProgressEvent,
    ResumedEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
    StoreEvent,
    WarningEvent,
)

PhaseState = Literal["done", "training", "filling", "to come"]
Activity = Literal["beginning", "filling", "training", "scoring", "measuring"]
Ended = Literal["finished", "paused", "stopped", "failed"]
Point = tuple[float, float]
MOST_WARNINGS = 20
MOST_POINTS = 300


@dataclass
class LossCurve:
    """Points (x, y) in rising x, at most `limit` of them. `limit` is an even number.

    When there are too many points, neighbours are merged: the new y is the mean of both, the new x is the later one.
    Every point then stands for the same number of measurements. Only the last one may stand for fewer.
    """

    limit: int = MOST_POINTS
    _points: list[Point] = field(default_factory=list)
    _pending: list[Point] = field(default_factory=list)
    _per_point: int = 1

    def add(self, x: float, y: float) -> None:
        """Adds one measurement."""
        self._pending.append((x, y))
        if len(self._pending) == self._per_point:
            self._points.append(_merged(self._pending))
            self._pending = []
        if len(self._points) == self.limit:
            self._points = [_merged(self._points[i : i + 2]) for i in range(0, self.limit, 2)]
            self._per_point *= 2

    def cut(self, x: float) -> None:
        """Removes the points beyond x, which a resumed run measures again."""
        self._points = [point for point in self._points if point[0] <= x]
        self._pending = [point for point in self._pending if point[0] <= x]

    def copy(self) -> LossCurve:
        """A copy of the curve, which later points don't change."""
        return replace(self, _points=list(self._points), _pending=list(self._pending))

    @property
    def points(self) -> list[Point]:
        """The curve as it is now."""
        return [*self._points, _merged(self._pending)] if self._pending else list(self._points)


@dataclass
class PhaseProgress:
    """One phase of a run and how far it is. The x of its curves is the step in the phase."""

    name: str
    epochs: int
    steps: int
    state: PhaseState = "to come"
    epoch: int = 0
    step: int = 0
    loss: float | None = None
    graft_miou: float | None = None
    seconds: float = 0.0
    version: int = 0
    """Rises with every change of the curves."""
    losses: LossCurve = field(default_factory=LossCurve)
    """(step, loss of that step)."""
    epoch_losses: LossCurve = field(default_factory=LossCurve)
    """(step at the end of an epoch, mean loss of the epoch)."""
    scores: LossCurve = field(default_factory=LossCurve)
    """(step, mIoU on validation) of a network that is trained as a whole, measured from time to time."""

    @property
    def steps_an_epoch(self) -> int:
        return self.steps // max(1, self.epochs)

    @property
    def share(self) -> float:
        """How much of it is trained, 0 to 1."""
        return 1.0 if self.state == "done" else min(1.0, self.step / max(1, self.steps))

    def cut(self, step: float) -> None:
        """Removes the curves' points beyond a step."""
        for curve in (self.losses, self.epoch_losses, self.scores):
            curve.cut(step)
        self.version += 1

    def copy(self) -> PhaseProgress:
        """A copy of the phase and its curves, which later events don't change."""
        curves = {name: getattr(self, name).copy() for name in ("losses", "epoch_losses", "scores")}
        return replace(self, **curves)

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the curves."""
        names = ("name", "epochs", "steps", "state", "epoch", "step", "version", "loss", "graft_miou")
        figures = {name: getattr(self, name) for name in names}
        return {**figures, "share": round(self.share, 4), "seconds": round(self.seconds, 1)}


class RunProgress:
    """What a run's events say so far. `apply` adds one event."""

    def __init__(self) -> None:
        self.phases: list[PhaseProgress] = []
        self.activity: Activity = "beginning"
        """What its worker does now, by the written events."""
        self.side_work: ProgressEvent | None = None
        """Work other than training that goes on now. Only listeners know it, since the file doesn't hold it."""
        self.begun = False
        """Whether a phase has begun, in this attempt or before."""
        self.ended: Ended | None = None
        """How the last attempt ended. None while it goes on, and if its worker died without an event."""
        self.error: ErrorEvent | None = None
        """The error that ended the last attempt, None if no error did."""
        self.warnings: list[str] = []
        """The last warnings, without repetitions."""
        self.images: int | None = None
        self.store: str | None = None
        """Where features are kept: memory, disk, or recompute."""
        self.teacher_miou: float | None = None
        self.miou: float | None = None
        self.updated: float | None = None
        """Time of the last event: seconds since 1970."""
        self._resumed: ResumedEvent | None = None
        self._phase_began: tuple[str, float, float] | None = None
        """The phase that trains: its name, the time at which it began, and the seconds that earlier attempts took."""
        self._pace: tuple[float, int, float, int] | None = None
        """Time and step of the first and of the last step that was timed without a break."""

    def apply(self, event: Event) -> None:
        """Adds one event."""
        if isinstance(event, ProgressEvent):
            self.side_work = event if event.done < event.total else None
            return
        self._apply(event)
        self.updated = event.time

    def copy(self) -> RunProgress:
        """A copy, which later events don't change."""
        made = copy.copy(self)
        made.phases = [phase.copy() for phase in self.phases]
        return made

    # -- figures ------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """Number, from 1, of the phase that trains, trained last, or comes next. 0 while no phase is known."""
        begun = [number for number, phase in enumerate(self.phases, start=1) if phase.state != "to come"]
        return begun[-1] if begun else min(1, len(self.phases))

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def share(self) -> float:
        """How much of all steps is done, 0 to 1."""
        return sum(phase.share * phase.steps for phase in self.phases) / self.steps if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """How long phases have trained so far."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def phases_done(self) -> int:
        return sum(phase.state == "done" for phase in self.phases)

    @property
    def latest(self) -> PhaseProgress | None:
        """The phase that trains or was trained last, None before the first phase."""
        phase = self.phases[self.stage - 1] if self.phases else None
        return phase if phase and phase.state != "to come" else None

    def current(self) -> PhaseProgress | None:
        """The phase that trains or is being prepared."""
        return next((phase for phase in self.phases if phase.state in ("training", "filling")), None)

    def seconds_left(self) -> float | None:
        """Estimated from the time that steps of this run took. None while no step was timed."""
        done = [phase for phase in self.phases if phase.state == "done" and phase.seconds > 0]
        steps = sum(phase.steps_an_epoch * phase.epoch for phase in done)
        before = sum(phase.seconds for phase in done) / steps if steps else None
        now = self._seconds_a_step()
        usual, here = (before if before is not None else now), (now if now is not None else before)
        if usual is None or here is None:
            return None
        current = self.current()
        rest = (current.steps - current.step) * here if current else 0.0
        return rest + usual * sum(phase.steps for phase in self.phases if phase.state == "to come")

    def doing(self, has_teacher: bool) -> str:
        """What the worker of a run does, as part of a sentence: "training encoder.1, epoch 3 of 75"."""
        if not self.phases or self.activity == "beginning":
            measuring = has_teacher and self.phases and self.teacher_miou is None
            return "measuring the teacher on the validation images" if measuring else "preparing the data"
        phase = self.phases[self.stage - 1]
        if self.activity == "filling":
            coming = self.phases[min(self.stage, len(self.phases) - 1)] if phase.state == "done" else phase
            return f"storing what {coming.name} will be trained on"
        if self.activity == "training":
            return f"training {phase.name}, epoch {phase.epoch} of {phase.epochs}"
        if self.activity == "scoring":
            return f"measuring the mIoU after {phase.name}"
        return "measuring the trained network: mIoU and latency"

    def _seconds_a_step(self) -> float | None:
        if self._pace is None or self._pace[3] <= self._pace[1]:
            return None
        first, from_step, last, to_step = self._pace
        return (last - first) / (to_step - from_step)

    # -- events, by kind ----------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        match event:
            case StartEvent():
                self._on_start(event)
            case ResumedEvent():
                self._resumed, self.begun = event, True
                self._clear_ending()
            case PhaseStartEvent():
                self._on_phase_start(event)
            case StepEvent():
                self._on_step(event)
            case EpochEvent():
                self._on_epoch(event)
            case PhaseEndEvent():
                self._on_phase_end(event)
            case EvaluationEvent(model="teacher"):
                self.teacher_miou = event.miou
            case EvaluationEvent():
                self.miou = event.miou
            case StoreEvent():
                self.store = event.kind_of_store
            case WarningEvent() if event.message not in self.warnings:
                self.warnings = [*self.warnings, event.message][-MOST_WARNINGS:]
            case ErrorEvent():
                self.error, self.ended = event, "failed"
            case StoppedEvent():
                self.ended = "stopped"
            case PausedEvent():
                self.ended = "paused"
            case DoneEvent():
                self.error, self.ended = None, "finished"

    def _clear_ending(self) -> None:
        self.error = self.ended = self.side_work = None

    def _on_start(self, event: StartEvent) -> None:
        """An attempt begins. If it resumes the run, finished phases stay finished."""
        if [phase.phase for phase in event.phases] != [phase.name for phase in self.phases]:
            self.phases = [PhaseProgress(phase.phase, phase.epochs, phase.steps) for phase in event.phases]
        self._clear_ending()
        self.images, self.activity = event.images, "beginning"
        self._resumed = self._pace = None

    def _on_phase_start(self, event: PhaseStartEvent) -> None:
        """A phase begins, or goes on from its checkpoint. What came after the checkpoint is removed."""
        self._clear_ending()
        self.begun, self.activity, self._pace = True, "filling", None
        resumed, self._resumed = self._resumed, None
        phase = self._phase(event.phase)
        if phase is None:
            return
        place = [other.name for other in self.phases].index(phase.name)
        self.phases[place + 1 :] = [
            PhaseProgress(later.name, later.epochs, later.steps, version=later.version + 1)
            for later in self.phases[place + 1 :]
        ]
        for earlier in self.phases[:place]:
            earlier.state = "done"
        same = event.steps == phase.steps
        phase.state, phase.epochs, phase.steps, phase.graft_miou = "filling", event.epochs, event.steps, None
        phase.epoch = phase.step = 0
        if resumed and resumed.phase == phase.name:
            phase.epoch, phase.step = resumed.epoch, resumed.epoch * phase.steps_an_epoch + resumed.step
        phase.cut(phase.step if same else 0)
        phase.seconds = phase.seconds if phase.step else 0.0
        self._phase_began = (phase.name, event.time, phase.seconds)

    def _on_step(self, event: StepEvent) -> None:
        if phase := self._phase(event.phase):
            self._measure(phase, event, event.step, phase.losses)
            first = self._pace or (event.time, phase.step)
            self._pace = (first[0], first[1], event.time, phase.step)

    def _on_epoch(self, event: EpochEvent) -> None:
        if phase := self._phase(event.phase):
            self._measure(phase, event, event.epoch * phase.steps_an_epoch, phase.epoch_losses)
            if self._pace:
                self._pace = (*self._pace[:2], event.time, phase.step)
            if event.val_miou is not None:
                phase.scores.add(phase.step, event.val_miou)
            if phase.step >= phase.steps:
                self.activity = "scoring"

    def _measure(self, phase: PhaseProgress, event: StepEvent | EpochEvent, step: int, curve: LossCurve) -> None:
        phase.step, phase.epoch, phase.state = step, event.epoch, "training"
        self.activity, self.side_work = "training", None
        if self._phase_began is None or self._phase_began[0] != phase.name:  # the event of its beginning is missing
            self._phase_began = (phase.name, event.time, phase.seconds)
        phase.seconds = self._phase_began[2] + max(0.0, event.time - self._phase_began[1])
        phase.loss = event.loss if math.isfinite(event.loss) else None
        if phase.loss is not None:
            curve.add(step, phase.loss)
            phase.version += 1

    def _on_phase_end(self, event: PhaseEndEvent) -> None:
        phase = self._phase(event.phase)
        if phase is None:
            return
        phase.state, phase.step = "done", phase.steps
        phase.epoch = phase.epochs if event.epochs is None else event.epochs
        phase.graft_miou, phase.seconds = event.graft_miou, event.seconds
        phase.loss = event.loss if math.isfinite(event.loss) else None
        self._pace, self.side_work = None, None
        self.activity = "measuring" if phase is self.phases[-1] else "filling"

    def _phase(self, name: str) -> PhaseProgress | None:
        return next((phase for phase in self.phases if phase.name == name), None)


def _merged(points: list[Point]) -> Point:
    return points[-1][0], sum(y for _, y in points) / len(points)
