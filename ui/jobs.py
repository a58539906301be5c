"""Worker processes and their queue. A run is trained by `python -m segskd resume RUN`, detached from this process.

The queue and what was started are files below the runs' folder, so a restarted server finds them again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

from segskd.config import Recipe
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.files import write_whole, writing
from segskd.runs import RUN_NAME, Run, list_runs
from ui.processes import NICENESS, ROOT, child_environment

JobState = Literal["waiting", "starting", "running", "finished", "paused", "interrupted", "failed", "new", "damaged"]
TICK_SECONDS = 0.5
GRACE_SECONDS = 15.0
WORKER = "worker.json"
QUEUE = ".queue.json"


@dataclass(frozen=True)
class Worker:
    """A process that was started for a run; `born` tells it from a later process of the same number."""

    pid: int
    born: float

    def process(self) -> psutil.Process | None:
        """The process while it lives."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class Jobs:
    """Starts, queues and stops workers: one a device at a time."""

    def __init__(self, runs: Path, data: Path) -> None:
        self.runs = runs
        self._data = data
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)

    def start(self) -> None:
        """Begins to work through the queue."""
        with writing(self.runs):
            self.runs.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def close(self) -> None:
        """Stops starting workers; those that run go on."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- what a person asks for ---------------------------------------------------------------------

    def submit(self, recipe: Recipe, name: str) -> Run:
        """A new run of that name, put at the end of the queue.

        Raises UserError when the name is none, or is taken: of two tabs that ask at once, one gets it.
        """
        check_name(name)
        with self._queue() as waiting:
            run = Run.create(self.runs / name, recipe)
            waiting.append(name)
        return run

    def resume(self, name: str) -> None:
        """Puts a run that stopped, failed or never began at the end of the queue. Raises UserError when it works."""
        run = Run.open(self.runs / check_name(name))
        with self._queue() as waiting:
            if name in waiting:
                return
            if self.state(name) in ("starting", "running"):
                raise UserError(f"run {name} is running")
            if (run.path / "result.json").exists():
                raise UserError(f"run {name} is finished")
            waiting.append(name)

    def stop(self, name: str, after_epoch: bool = False) -> None:
        """Takes a run out of the queue, or asks its worker to stop at its next step or after this epoch.

        A worker that does not stop at once is sent SIGTERM, then killed with its process group, each after
        GRACE_SECONDS. Raises UserError when the run neither waits nor runs.
        """
        run = Run.open(self.runs / check_name(name))
        with self._queue() as waiting:
            if name in waiting:
                waiting.remove(name)
                return
        if not self._is_busy(run):
            raise UserError(f"run {name} is not running")
        if not run.is_alive():  # still starting: a worker forgets what was asked before it began
            self._urge(run, signal.SIGTERM)
            return
        run.request_stop(after_epoch)
        if not after_epoch:
            threading.Thread(target=self._insist, args=(run,), name=f"stop {name}", daemon=True).start()

    # -- what a reader sees -------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """Names of the runs in the queue, the next one first."""
        return self._read_queue()

    def state(self, name: str) -> JobState:
        """What a run is doing, the queue and a worker that has only just begun included."""
        run = Run(self.runs / name)
        if name in self._read_queue():
            return "waiting"
        if run.is_alive():
            return "running"
        worker = self.worker(name)
        if worker and worker.process() and not _ended(run, worker):
            return "starting"
        if not (run.path / "recipe.yaml").is_file():
            return "damaged"
        return run.status()

    def awaited(self, name: str) -> str | None:
        """The run that is to be this one's teacher and has not finished, None when there is nothing to wait for."""
        try:
            teacher = Run(self.runs / name).recipe.teacher
        except UserError:  # its worker will say what is wrong with it
            return None
        place = Path(teacher or "")
        if place.parent != self.runs or not (place / "recipe.yaml").is_file():
            return None
        return None if (place / "result.json").is_file() else place.name

    def busy(self) -> list[str]:
        """Names of the runs that have a worker."""
        return [run.name for run in list_runs(self.runs) if self._is_busy(run)]

    def worker(self, name: str) -> Worker | None:
        """The process that was last started for a run, whether it lives or not."""
        try:
            content = json.loads((self.runs / name / WORKER).read_text(encoding="utf-8"))
            return Worker(int(content["pid"]), float(content["born"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def memory(self, name: str) -> int | None:
        """Bytes of main memory that a run's worker holds, None when it has none."""
        worker = self.worker(name)
        process = worker.process() if worker else None
        with suppress(psutil.Error):
            return int(process.memory_info().rss) if process else None
        return None

    # -- the queue ----------------------------------------------------------------------------------

    @contextmanager
    def _queue(self) -> Iterator[list[str]]:
        """The queue for changing: nobody else changes it meanwhile, another server included."""
        with writing(self.runs), filelock.FileLock(self.runs / ".queue.lock"):
            waiting = self._read_queue()
            before = list(waiting)
            yield waiting
            if waiting != before:
                write_whole(self.runs / QUEUE, json.dumps(waiting).encode())

    def _read_queue(self) -> list[str]:
        try:
            content = json.loads((self.runs / QUEUE).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or written by hand
            return []
        names = content if isinstance(content, list) else []
        return [name for name in names if isinstance(name, str) and RUN_NAME.fullmatch(name)]

    def _work(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            if self._read_queue():
                with suppress(UserError):  # a full disk: tried again at the next tick
                    self._start_next()

    def _start_next(self) -> None:
        """Starts the first waiting run whose device is free and whose teacher is finished."""
        with self._queue() as waiting:
            taken = {_device(Run(self.runs / name)) for name in self.busy()}
            for name in list(waiting):
                run = Run(self.runs / name)
                if not (run.path / "recipe.yaml").is_file():
                    waiting.remove(name)
                elif _device(run) not in taken and not self.awaited(name):
                    waiting.remove(name)
                    self._spawn(run)
                    return

    def _is_busy(self, run: Run) -> bool:
        worker = self.worker(run.name)
        return bool(worker and worker.process()) or run.is_alive()

    # -- processes ----------------------------------------------------------------------------------

    def _spawn(self, run: Run) -> None:
        with open(run.path / "log.txt", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "segskd", "resume", str(run.path)],
                cwd=ROOT,
                env=child_environment(self.runs, self._data),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=child.wait, name=f"reap {run.name}", daemon=True).start()
        with suppress(psutil.Error):
            process = psutil.Process(child.pid)
            content: dict[str, Any] = {"pid": child.pid, "born": process.create_time()}
            run.write(WORKER, json.dumps(content).encode())
            process.nice(max(NICENESS, psutil.Process().nice()))

    def _insist(self, run: Run) -> None:
        for urge in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline:
                if not self._is_busy(run):
                    return
                time.sleep(TICK_SECONDS)
            self._urge(run, urge)

    def _urge(self, run: Run, urge: signal.Signals) -> None:
        """Sends a signal to the worker's process group, if this interface started it."""
        worker = self.worker(run.name)
        if worker and worker.process():
            with suppress(OSError):
                os.killpg(worker.pid, urge)


def check_name(name: str) -> str:
    """The name as it is. Raises UserError when it can't be a run's."""
    if not RUN_NAME.fullmatch(name):
        raise UserError(
            "a run's name has letters, digits, '.', '-' and '_' only, begins with a letter or digit, "
            "and is at most 100 characters long"
        )
    return name


def _ended(run: Run, worker: Worker) -> bool:
    """Whether this worker has said its last word; its process may take another second to go."""
    progress = run.progress()
    return progress.ended is not None and (progress.updated or 0) > worker.born


def _device(run: Run) -> str:
    try:
        return choose_device(run.recipe.device)
    except UserError:  # the worker will say what is wrong with it
        return "cpu"
