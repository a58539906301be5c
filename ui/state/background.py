"""Work that takes too long for one answer of the server. Each task has a thread of its own and a key."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from segskd.callbacks import OnActivity
from segskd.errors import Stopped, UserError, in_labels

TaskState = Literal["working", "done", "failed", "stopped"]
MOST_STORED = 50

log = logging.getLogger(__name__)


@dataclass
class Task:
    """One piece of work: how far it is and, at the end, its result or its error."""

    key: str
    state: TaskState = "working"
    stage: str = ""
    done: int = 0
    total: int | None = None
    problem: str | None = None
    result: Any = None
    began: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def report(self, stage: str, done: int, total: int | None) -> None:
        """The work calls this as it goes on. Raises Stopped if the task was asked to stop."""
        if self._stop.is_set():
            raise Stopped(self.key)
        self.stage, self.done, self.total = stage, done, total

    def stop(self) -> None:
        """Asks the work to stop at its next report."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Waits for its end for at most so many seconds. Returns whether it is over."""
        return self._over.wait(seconds)

    def run(self, work: Callable[[OnActivity], Any]) -> None:
        """Does the work in the calling thread."""
        try:
            self.result = work(self.report)
            self.state = "done"
        except Stopped:
            self.state = "stopped"
        except UserError as error:
            self.state, self.problem = "failed", in_labels(error)
        except Exception as error:  # a bug: the page says so, and the server's output shows where
            log.exception("%s failed", self.key)
            self.state, self.problem = "failed", f"an error in SegSKD: {type(error).__name__}: {error}"
        finally:
            self._over.set()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return {
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "problem": self.problem,
            "seconds": round(time.monotonic() - self.began, 1),
            "result": self.result if isinstance(self.result, dict) else None,
        }


class Tasks:
    """The tasks of this server, by key. There is one task of a key at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._lock = threading.Lock()

    def start(self, key: str, work: Callable[[OnActivity], Any]) -> Task:
        """The task of that key, if it is working; else a new one that does `work`."""
        with self._lock:
            task = self._tasks.get(key)
            if task is not None and task.state == "working":
                return task
            task = Task(key)
            self._tasks.pop(key, None)
            self._tasks[key] = task
            self._forget_old()
        threading.Thread(target=task.run, args=(work,), name=key, daemon=True).start()
        return task

    def get(self, key: str) -> Task | None:
        """The last task of that key, None if there was none."""
        return self._tasks.get(key)

    def _forget_old(self) -> None:
        over = [key for key, task in self._tasks.items() if task.state != "working"]
        for key in over[: max(0, len(self._tasks) - MOST_STORED)]:
            del self._tasks[key]
