"""Why a run failed or stopped, in plain words, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import psutil

from segskd.errors import ErrorRecord

from .follow import RunView

FailureKind = Literal[
    "memory", "disk", "teacher", "data", "loss", "device", "setting", "killed", "restarted", "damaged", "bug"
]
BUG_LINES = 30
MESSAGE_PREFIX = "segskd: "
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Failure:
    """A message for a person: what happened, what to do, and which buttons help."""

    kind: FailureKind
    title: str
    mend: str
    said: str = ""
    """The core's own message."""
    retry: bool = True
    halve: bool = False
    """Whether half the batch may help."""
    lines: tuple[str, ...] = ()
    """The last lines of the log, if nothing else explains the failure."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return asdict(self)


MEMORY = Failure(
    "memory",
    "Memory ran out.",
    "Try again with half the batch; finished stages stay. Or close other programs and try again as it is.",
    halve=True,
)
KILLED = Failure(
    "killed",
    "The system or a person killed its process. Most often the reason is that memory ran out.",
    "It goes on from the last checkpoint. If it happens again, try half the batch.",
    halve=True,
)
RESTARTED = Failure(
    "restarted", "This machine was restarted while the run trained.", "It goes on from the last checkpoint."
)
NOT_AS_SET_UP = Failure(
    "setting",
    "The run can't go on as it is set up.",
    "Change what its message names; then try again, or begin a new run.",
)
STORE = Failure(
    "memory",
    "The feature store is larger than the free memory.",
    "Close other programs and try again, or begin a new run whose store lies on disk, or with fewer views.",
)
DEVICE = Failure(
    "device", "The run needs a device that this machine doesn't have.", "Make it available, then try again."
)
DIVERGED = Failure(
    "loss",
    "Training diverged: the loss is not a number any more.",
    "Begin a new run with a smaller learning rate, or with precision 32. The same run would fail again.",
    retry=False,
)
# By the recipe's field that caused the error, then by the error's class.
BY_FIELD: dict[str, Failure] = {
    "store.kind": STORE,
    "teacher": Failure(
        "teacher", "The teacher is missing, has changed, or doesn't fit the data.", "Put it back, then try again."
    ),
    "trust_teacher": Failure(
        "teacher",
        "The teacher doesn't fit the data.",
        "Correct it as the line below says, and begin a new run. With «Trust teacher» it is used as it is.",
        retry=False,
    ),
    "optimisation.lr": DIVERGED,
    "optimisation.joint_lr": DIVERGED,
    "device": DEVICE,
    "precision": DEVICE,
}
BY_CLASS: dict[str, Failure] = {
    "OutOfMemory": MEMORY,
    "NoRoom": MEMORY,
    "DiskError": Failure(
        "disk",
        "The disk is full or can't be written.",
        "Free some space, or make the run's folder writable, then try again: it goes on from the last checkpoint.",
    ),
    "DataError": Failure(
        "data", "The data are missing or have changed.", "Put the files back or correct them, then try again."
    ),
}


def diagnose(view: RunView, log: Sequence[str] = (), worker_began: bool = False) -> Failure | None:
    """Why the run does not train; None if it does, or if somebody stopped it.

    `log` holds the last lines of its log. `worker_began` says whether a worker was started for it.
    """
    if view.state == "damaged":
        mend = "Correct or delete its folder. Other runs are not affected."
        return Failure("damaged", "The run's files are damaged or missing.", mend, view.problem, retry=False)
    error = view.progress.error
    if view.state == "failed" and error:
        return _of_record(error.record) if error.record.expected else _bug(error.message, log)
    if view.state == "interrupted" and not view.progress.ended:
        return _without_event(view, log)
    if view.state == "new" and worker_began:
        return _without_event(view, log)
    return None


def _of_record(error: ErrorRecord) -> Failure:
    """Of an error that a person can put right. One of an older version, which names no field, counts as a setting."""
    known = BY_FIELD.get(error.about) or BY_CLASS.get(error.error) or NOT_AS_SET_UP
    return replace(known, said=error.in_labels)


def _bug(message: str, log: Sequence[str]) -> Failure:
    return Failure(
        "bug",
        "This is an error in SegSKD, not yours.",
        "It goes on from the last checkpoint; if it fails again, report it with the log.",
        message,
        lines=tuple(_last_traceback(log)),
    )


def _without_event(view: RunView, log: Sequence[str]) -> Failure:
    """Of a worker that ended without an event. Its log or the machine's start tells why."""
    last = log[-1] if log else ""
    if last.startswith(MESSAGE_PREFIX):
        return replace(NOT_AS_SET_UP, said=last.removeprefix(MESSAGE_PREFIX))
    if TRACEBACK in log:
        return _bug(last, log)
    if view.progress.updated is not None and view.progress.updated < psutil.boot_time():
        return RESTARTED
    return KILLED


def _last_traceback(log: Sequence[str]) -> list[str]:
    starts = [number for number, line in enumerate(log) if line.startswith(TRACEBACK)]
    return list(log[starts[-1] :] if starts else log)[-BUG_LINES:]
