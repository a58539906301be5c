"""How far a run is, understood event by event. See segskd/distill/session.py and trainer.py for who writes them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from segskd.errors import ErrorRecord
from segskd.runs import Event
from ui.state.curves import Curve, Point

PhaseState = Literal["done", "training", "filling", "to come"]
Activity = Literal["beginning", "filling", "training", "scoring", "measuring"]
MOST_WARNINGS = 20


@dataclass
class PhaseView:
    """One phase of a run, as far as it has come. Losses and scores are curves over the steps of the phase."""

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
    """Rises with every point that the curves get or lose."""
    curve: list[Point] = field(default_factory=list)
    """(step, loss of that step)."""
    epoch_curve: list[Point] = field(default_factory=list)
    """(step at the end of an epoch, mean loss of the epoch)."""
    scores: list[Point] = field(default_factory=list)
    """(step, mIoU on validation), where a network that is trained whole was measured on the way."""

    @property
    def share(self) -> float:
        """How much of it is trained, 0 to 1."""
        return 1.0 if self.state == "done" else min(1.0, self.step / max(1, self.steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the curves."""
        names = ("name", "epochs", "steps", "state", "epoch", "step", "version")
        return {
            **{name: getattr(self, name) for name in names},
            "share": round(self.share, 4),
            "loss": self.loss,
            "graft_miou": self.graft_miou,
            "seconds": round(self.seconds, 1),
        }


class _Curves:
    """The growing curves of one phase."""

    def __init__(self) -> None:
        self.losses, self.epoch_losses, self.scores = Curve(), Curve(), Curve()

    def cut(self, step: float) -> None:
        for curve in (self.losses, self.epoch_losses, self.scores):
            curve.cut(step)


class Progress:
    """What a run's events say so far."""

    def __init__(self) -> None:
        self.phases: list[PhaseView] = []
        self.activity: Activity = "beginning"
        self.images: int | None = None
        self.teacher_miou: float | None = None
        self.miou: float | None = None
        self.warnings: list[str] = []
        self.error: ErrorRecord | None = None
        """Message and type of the error that ended the last attempt."""
        self.stopped = False
        """Whether the last attempt ended because somebody asked."""
        self.started: float | None = None
        self.updated: float | None = None
        self.last_event = ""
        self._curves: dict[str, _Curves] = {}
        self._resumed: tuple[str, int, int] | None = None
        self._begun: tuple[str, float, float] | None = None
        self._pace: tuple[float, int, float, int] | None = None

    def apply(self, event: Event) -> None:
        """Takes one event in. One that lacks what its kind must have is left out, like a broken line."""
        handler = getattr(self, f"_on_{event['kind']}", None)
        with suppress(KeyError, TypeError, ValueError, ArithmeticError, StopIteration):
            time = float(event["time"])
            if handler:
                handler(event)
            self.started = time if self.started is None else self.started
            self.updated, self.last_event = time, str(event["kind"])

    def snapshot(self) -> list[PhaseView]:
        """The phases with their curves, which later events leave as they are."""
        return [self._with_curves(phase) for phase in self.phases]

    def current(self) -> PhaseView | None:
        """The phase that trains or is being prepared."""
        return next((phase for phase in self.phases if phase.state in ("training", "filling")), None)

    def seconds_left(self) -> float | None:
        """By the seconds a step of this run; None while no step was timed."""
        done = [phase for phase in self.phases if phase.state == "done" and phase.seconds > 0]
        steps = sum(phase.steps // phase.epochs * phase.epoch for phase in done if phase.epochs)
        before = sum(phase.seconds for phase in done) / steps if steps else None
        now = self._seconds_a_step()
        usual, here = (before if before is not None else now), (now if now is not None else before)
        if usual is None or here is None:
            return None
        current = self.current()
        rest = (current.steps - current.step) * here if current else 0.0
        return rest + usual * sum(phase.steps for phase in self.phases if phase.state == "to come")

    def _seconds_a_step(self) -> float | None:
        if self._pace is None or self._pace[3] <= self._pace[1]:
            return None
        first, from_step, last, to_step = self._pace
        return (last - first) / (to_step - from_step)

    def _with_curves(self, phase: PhaseView) -> PhaseView:
        curves = self._curves.get(phase.name)
        if curves is None:
            return replace(phase)
        losses, means, scores = curves.losses.points, curves.epoch_losses.points, curves.scores.points
        return replace(phase, curve=losses, epoch_curve=means, scores=scores)

    # -- events, by kind ----------------------------------------------------------------------------

    def _on_start(self, event: Event) -> None:
        """Every attempt begins with it; phases that are done stay so when it resumes."""
        made = [PhaseView(str(p["phase"]), int(p["epochs"]), int(p["steps"])) for p in event["phases"]]
        if [phase.name for phase in made] != [phase.name for phase in self.phases]:
            self.phases, self._curves = made, {}
        self.images = int(event["images"])
        self.activity, self.error, self.stopped = "beginning", None, False
        self._resumed, self._pace = None, None

    def _on_resumed(self, event: Event) -> None:
        self._resumed = (str(event["phase"]), int(event["epoch"]), int(event["step"]))

    def _on_phase_start(self, event: Event) -> None:
        """Also of a phase that was begun before: what lies beyond the checkpoint is forgotten."""
        place = self._place(event)
        phase = self.phases[place]
        epochs, steps = int(event["epochs"]), int(event["steps"])
        epoch, step = 0, 0
        if self._resumed and self._resumed[0] == phase.name:
            epoch, step = self._resumed[1], self._resumed[1] * (steps // epochs) + self._resumed[2]
        self._curves.setdefault(phase.name, _Curves()).cut(step if steps == phase.steps else 0)
        for later in self.phases[place + 1 :]:
            self._curves.pop(later.name, None)
            later.state, later.epoch, later.step, later.seconds = "to come", 0, 0, 0.0
            later.loss = later.graft_miou = None
        for earlier in self.phases[:place]:
            earlier.state = "done"
        phase.state, phase.epochs, phase.steps = "filling", epochs, steps
        phase.epoch, phase.step, phase.graft_miou = epoch, step, None
        phase.seconds = phase.seconds if step else 0.0
        phase.version += 1
        self._begun, self._pace, self._resumed = (phase.name, float(event["time"]), phase.seconds), None, None
        self.activity, self.error, self.stopped = "filling", None, False

    def _on_step(self, event: Event) -> None:
        phase, time, step = self.phases[self._place(event)], float(event["time"]), int(event["step"])
        phase.step, phase.epoch = step, int(event["epoch"])
        self._measure(phase, event, "losses")
        first = self._pace or (time, step, time, step)
        self._pace = (first[0], first[1], time, step)

    def _on_epoch(self, event: Event) -> None:
        phase, time, epoch = self.phases[self._place(event)], float(event["time"]), int(event["epoch"])
        phase.epoch, phase.step = epoch, epoch * (phase.steps // phase.epochs)
        self._measure(phase, event, "epoch_losses")
        if self._pace:
            self._pace = (*self._pace[:2], time, phase.step)
        if "val_miou" in event:
            self._curves[phase.name].scores.add(phase.step, float(event["val_miou"]))
        if phase.step >= phase.steps:
            self.activity = "scoring"

    def _measure(self, phase: PhaseView, event: Event, curve: Literal["losses", "epoch_losses"]) -> None:
        phase.state, self.activity = "training", "training"
        if self._begun is None or self._begun[0] != phase.name:  # the line that said when it began is lost
            self._begun = (phase.name, float(event["time"]), phase.seconds)
        phase.seconds = self._begun[2] + max(0.0, float(event["time"]) - self._begun[1])
        loss = float(event["loss"])
        phase.loss = loss if math.isfinite(loss) else None
        if phase.loss is not None:
            curves = self._curves.setdefault(phase.name, _Curves())
            getattr(curves, curve).add(phase.step, phase.loss)
            phase.version += 1

    def _on_phase_end(self, event: Event) -> None:
        place = self._place(event)
        phase = self.phases[place]
        phase.state, phase.epoch = "done", int(event.get("epochs", phase.epochs))
        phase.step = phase.steps
        phase.graft_miou, phase.seconds = float(event["graft_miou"]), float(event["seconds"])
        phase.loss = float(event["loss"]) if math.isfinite(float(event["loss"])) else None
        self._pace = None
        self.activity = "measuring" if place == len(self.phases) - 1 else "filling"

    def _on_evaluation(self, event: Event) -> None:
        if event["model"] == "teacher":
            self.teacher_miou = float(event["miou"])
        else:
            self.miou = float(event["miou"])

    def _on_warning(self, event: Event) -> None:
        message = str(event["message"])
        if message not in self.warnings:
            self.warnings = [*self.warnings, message][-MOST_WARNINGS:]

    def _on_error(self, event: Event) -> None:
        self.error = ErrorRecord.read(event)

    def _on_stopped(self, _event: Event) -> None:
        self.stopped = True

    def _on_paused(self, _event: Event) -> None:
        self.stopped = True

    def _place(self, event: Event) -> int:
        return next(place for place, phase in enumerate(self.phases) if phase.name == event["phase"])
