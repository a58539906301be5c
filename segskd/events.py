"""The events of a run: a closed set of types, and the file events.jsonl that holds them.

This module alone writes and reads events.jsonl. A line is one JSON object: time, kind, then the fields of that kind.
A reader leaves out lines that it can't use: kinds of another version, lines cut short, fields of another type. It
ignores fields that it doesn't know.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from segskd.errors import ErrorRecord
from segskd.files import writing

EVENTS = "events.jsonl"
Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True, kw_only=True)
class _Event:
    """What all events have. Values are checked when a line is read, not when an event is made."""

    # The default time is not a valid one, so a line without a time is left out.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(validate_default=True)

    time: Annotated[float, Field(allow_inf_nan=False)] = math.nan
    """Seconds since 1970, set when the event is recorded or given to listeners."""


# -- events that are written ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """One phase of a run that begins. `steps` counts those of all its epochs."""

    phase: str
    epochs: Count
    steps: Count


@dataclass(frozen=True, kw_only=True)
class StartEvent(_Event):
    """A worker begins a run or goes on with it. Holds the plan of its phases."""

    kind: Literal["start"] = "start"
    phases: tuple[PlannedPhase, ...]
    images: Count
    batch: Count


@dataclass(frozen=True, kw_only=True)
class DiagnosisEvent(_Event):
    """The result of trying the teacher on a few images. mIoUs lie between 0 and 1."""

    kind: Literal["diagnosis"] = "diagnosis"
    message: str
    miou: float
    constant: float
    frequency: float
    images: Count
    split: str


@dataclass(frozen=True, kw_only=True)
class StoreEvent(_Event):
    """Where features are kept: memory, disk, or recompute."""

    kind: Literal["store"] = "store"
    kind_of_store: str
    message: str


@dataclass(frozen=True, kw_only=True)
class WeightsEvent(_Event):
    """What the network's first weights are, beside random ones."""

    kind: Literal["weights"] = "weights"
    message: str


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(_Event):
    """The scores of a whole network on a split, between 0 and 1; None for classes that no mask shows."""

    kind: Literal["evaluation"] = "evaluation"
    model: Literal["teacher", "student"]
    split: str
    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    absent_classes: list[str]
    images: Count


@dataclass(frozen=True, kw_only=True)
class PhaseStartEvent(_Event):
    """A phase begins, or goes on after a resume. `steps_before` counts the steps of all phases before it."""

    kind: Literal["phase_start"] = "phase_start"
    phase: str
    number: Count
    phases: Count
    epochs: Count
    steps: Count
    steps_before: Count


@dataclass(frozen=True, kw_only=True)
class PlacedEvent(_Event):
    """Which stages each process trains, and the seconds that a step of each stage takes."""

    kind: Literal["placed"] = "placed"
    phase: str
    stages: list[list[str]]
    step_seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StepEvent(_Event):
    """One step of training. `step` counts from the beginning of the phase; the first epoch is 1."""

    kind: Literal["step"] = "step"
    phase: str
    epoch: Count
    step: Count
    loss: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class EpochEvent(_Event):
    """An epoch is over. `loss` is its mean. `choice` is the figure that `select: best` compares; lower is better."""

    kind: Literal["epoch"] = "epoch"
    phase: str
    epoch: Count
    epochs: Count
    loss: float
    choice: float | None = None
    val_miou: float | None = None


@dataclass(frozen=True, kw_only=True)
class SkippedEvent(_Event):
    """The loss no longer falls: training goes from epoch `after` straight to epoch `to`."""

    kind: Literal["skipped"] = "skipped"
    phase: str
    epochs: Count
    after: Count
    to: Count


@dataclass(frozen=True, kw_only=True)
class GraftEvent(_Event):
    """The scores of the graft after a phase, between 0 and 1."""

    kind: Literal["graft"] = "graft"
    phase: str
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True, kw_only=True)
class PhaseEndEvent(_Event):
    """A phase is over. `epochs` counts those that were trained, `seconds` includes earlier attempts."""

    kind: Literal["phase_end"] = "phase_end"
    phase: str
    epochs: Count | None = None
    loss: float
    seconds: float
    cpu_seconds: float | None = None
    graft_miou: float
    store_bytes: Count = 0


@dataclass(frozen=True, kw_only=True)
class ResumedEvent(_Event):
    """A run goes on from its last checkpoint: after `epoch` epochs and `step` steps of the next epoch."""

    kind: Literal["resumed"] = "resumed"
    phase: str
    epoch: Count
    step: Count


@dataclass(frozen=True, kw_only=True)
class PausedEvent(_Event):
    """The worker stopped after the phase that `--until` names."""

    kind: Literal["paused"] = "paused"
    after: str


@dataclass(frozen=True, kw_only=True)
class StoppedEvent(_Event):
    """The worker stopped because somebody asked it to."""

    kind: Literal["stopped"] = "stopped"
    phase: str
    epoch: Count | None = None


@dataclass(frozen=True, kw_only=True)
class WarningEvent(_Event):
    """Something that a person should know. The run goes on."""

    kind: Literal["warning"] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(_Event):
    """The error that ended the worker. `error` is the name of the exception's class.

    `about` is the dotted path of the recipe's field that caused it. `template` is the message with marks for fields,
    which each reader replaces by flags or labels.
    """

    kind: Literal["error"] = "error"
    message: str
    error: str = ""
    about: str | None = None
    template: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorEvent:
        """The event of an exception."""
        record = ErrorRecord.of(error)
        return cls(
            message=record.message,
            error=record.error,
            about=record.about or None,
            template=record.template or None,
        )

    @property
    def record(self) -> ErrorRecord:
        """The same without its time, for the command line and the page."""
        return ErrorRecord(self.message, self.error, self.about or "", self.template or "")


@dataclass(frozen=True, kw_only=True)
class DoneEvent(_Event):
    """The run is finished. `seconds` are those of its training."""

    kind: Literal["done"] = "done"
    miou: float
    seconds: float


# -- events that listeners get and that are never written ----------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ProgressBase(_Event):
    """Work other than training: `done` of `total` parts of it are over."""

    done: Count
    total: Count


@dataclass(frozen=True, kw_only=True)
class PreparingEvent(_ProgressBase):
    """Something is drawn, downloaded or computed before the run can begin."""

    kind: Literal["preparing"] = "preparing"
    stage: str

    @property
    def title(self) -> str:
        return self.stage


@dataclass(frozen=True, kw_only=True)
class FillingEvent(_ProgressBase):
    """Features of images are being stored."""

    kind: Literal["filling"] = "filling"

    @property
    def title(self) -> str:
        return "storing features"


@dataclass(frozen=True, kw_only=True)
class EvaluatingEvent(_ProgressBase):
    """A whole network is being measured on the validation images."""

    kind: Literal["evaluating"] = "evaluating"
    model: Literal["teacher", "student"]

    @property
    def title(self) -> str:
        return f"evaluating the {self.model}"


WrittenEvent = (
    StartEvent
    | DiagnosisEvent
    | StoreEvent
    | WeightsEvent
    | EvaluationEvent
    | PhaseStartEvent
    | PlacedEvent
    | StepEvent
    | EpochEvent
    | SkippedEvent
    | GraftEvent
    | PhaseEndEvent
    | ResumedEvent
    | PausedEvent
    | StoppedEvent
    | WarningEvent
    | ErrorEvent
    | DoneEvent
)
ProgressEvent = PreparingEvent | FillingEvent | EvaluatingEvent
Event = WrittenEvent | ProgressEvent
EventType = TypeVar("EventType", bound=Event)
_LINE: TypeAdapter[WrittenEvent] = TypeAdapter(Annotated[WrittenEvent, Field(discriminator="kind")])


# -- the file ------------------------------------------------------------------------------------------


def stamped(event: EventType) -> EventType:
    """The event with the present time."""
    return replace(event, time=round(time.time(), 3))


def append_event(path: Path, event: WrittenEvent) -> None:
    """Adds a line to an events.jsonl, on a new line if the last one was cut short. Raises UserError if it can't."""
    fields = {name: value for name, value in vars(event).items() if value is not None}
    with writing(path), open(path, "ab+") as file:
        if not _ends_with_newline(file):
            file.write(b"\n")
        file.write(json.dumps(fields, default=vars).encode() + b"\n")


class EventReader:
    """Reads an events.jsonl from where it stopped last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0

    def read(self) -> tuple[bool, list[WrittenEvent]]:
        """(whether to forget earlier events, since the file was replaced or is shorter now; the new events).

        A line that has no end yet is read later.
        """
        restarted = False
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if self._offset and (status.st_ino != self._inode or status.st_size < self._offset):
                    self._offset, restarted = 0, True
                self._inode = status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            restarted, self._offset = self._offset > 0, 0
            return restarted, []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return restarted, [event for line in whole.splitlines() if (event := _parsed(line))]


def _parsed(line: bytes) -> WrittenEvent | None:
    try:
        return _LINE.validate_json(line)
    except ValidationError:
        return None


def _ends_with_newline(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
