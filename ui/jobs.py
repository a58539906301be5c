"""The queue of runs, and the workers that train them: `segskd resume RUN`, which goes on when the server ends.

Files below the runs' folder hold the queue and each run's worker, so a restarted server finds them.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import filelock
import psutil

from segskd.config import Recipe
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.files import write_whole, writing
from segskd.runs import RUN_NAME, Run, list_runs
from segskd.supervisor import ProcessRecord, folder_variables, segskd, start

JobState = Literal["waiting", "starting", "running", "finished", "paused", "interrupted", "failed", "new", "damaged"]
TICK_SECONDS = 0.5
GRACE_SECONDS = 15.0
WORKER = "worker.json"
QUEUE = ".queue.json"


class Jobs:
    """Queues runs, and starts and stops their workers: one worker at a time on each device."""

    def __init__(self, runs: Path, data: Path) -> None:
        self.runs = runs
        self._data = data
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)

    def start(self) -> None:
        """Begins to start the runs of the queue."""
        with writing(self.runs):
            self.runs.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def close(self) -> None:
        """Starts no more workers. Running workers go on."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- changes ------------------------------------------------------------------------------------

    def submit(self, recipe: Recipe, name: str) -> Run:
        """Makes a new run of that name and puts it at the end of the queue.

        Raises UserError if it can't be a name, or if there is a run of that name. When two tabs ask for a name at once,
        one of them gets it.
        """
        check_name(name)
        with self._queue() as waiting:
            run = Run.create(self.runs / name, recipe)
            waiting.append(name)
        return run

    def resume(self, name: str) -> None:
        """Puts a run that was stopped, failed or never began at the end of the queue.

        Raises UserError when the run is running or finished.
        """
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

        A worker that was asked to stop at its next step gets SIGTERM after GRACE_SECONDS, and is killed after as many
        more. Raises UserError when the run is neither in the queue nor running.
        """
        run = Run.open(self.runs / check_name(name))
        with self._queue() as waiting:
            if name in waiting:
                waiting.remove(name)
                return
        if not self._is_busy(run):
            raise UserError(f"run {name} is not running")
        worker = self.worker(name)
        if worker and not run.is_alive():  # still starting: a run that begins deletes older requests to stop
            worker.send(signal.SIGTERM)
            return
        run.request_stop(after_epoch)
        if worker and not after_epoch:
            threading.Thread(target=worker.end, args=(GRACE_SECONDS,), name=f"stop {name}", daemon=True).start()

    # -- state --------------------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """Names of the runs in the queue, the next one first."""
        return self._read_queue()

    def state(self, name: str) -> JobState:
        """The state of a run. It may be in the queue, or its worker may have just begun."""
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

    def unfinished_teacher(self, name: str) -> str | None:
        """The run that trains this run's teacher, if it is not finished; else None."""
        try:
            teacher = Run(self.runs / name).recipe.teacher
        except UserError:  # its worker will report what is wrong with it
            return None
        place = Path(teacher or "")
        if place.parent != self.runs or not (place / "recipe.yaml").is_file():
            return None
        return None if (place / "result.json").is_file() else place.name

    def busy(self) -> list[str]:
        """Names of the runs that have a worker."""
        return [run.name for run in list_runs(self.runs) if self._is_busy(run)]

    def worker(self, name: str) -> ProcessRecord | None:
        """The process that was last started for a run, even if it has ended."""
        return ProcessRecord.read(self.runs / name / WORKER)

    def memory(self, name: str) -> int | None:
        """Bytes of main memory that a run's worker holds, None when the run has no worker."""
        worker = self.worker(name)
        process = worker.process() if worker else None
        with suppress(psutil.Error):
            return int(process.memory_info().rss) if process else None
        return None

    # -- the queue ----------------------------------------------------------------------------------

    @contextmanager
    def _queue(self) -> Iterator[list[str]]:
        """The queue, to be changed. A lock keeps other threads and other servers from changing it meanwhile."""
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
        while not self._closed.wait(TICK_SECONDS):
            if self._read_queue():
                with suppress(UserError, FileNotFoundError):  # a full disk or a deleted run; the next round tries again
                    self._start_next()

    def _start_next(self) -> None:
        """Starts the first waiting run whose device is free and whose teacher is finished."""
        with self._queue() as waiting:
            taken = {_device(Run(self.runs / name)) for name in self.busy()}
            for name in list(waiting):
                run = Run(self.runs / name)
                if not (run.path / "recipe.yaml").is_file():
                    waiting.remove(name)
                elif _device(run) not in taken and not self.unfinished_teacher(name):
                    waiting.remove(name)
                    self._start_worker(run)
                    return

    def _is_busy(self, run: Run) -> bool:
        worker = self.worker(run.name)
        return bool(worker and worker.process()) or run.is_alive()

    def _start_worker(self, run: Run) -> None:
        command, environment = segskd("resume", str(run.path)), folder_variables(self.runs, self._data)
        worker = start(command, "lasting", log=run.path / "log.txt", environment=environment, low_priority=True)
        worker.let_go()
        run.write(WORKER, worker.record.as_json())


def check_name(name: str) -> str:
    """The name as it is. Raises UserError when it can't be a run's."""
    if not RUN_NAME.fullmatch(name):
        raise UserError(
            "a run's name has letters, digits, '.', '-' and '_', at most 100, and begins with a letter or digit"
        )
    return name


def _ended(run: Run, worker: ProcessRecord) -> bool:
    """Whether this worker has written its last event. Its process may take another second to end."""
    progress = run.progress()
    return progress.ended is not None and (progress.updated or 0) > worker.born


def _device(run: Run) -> str:
    try:
        return choose_device(run.recipe.device)
    except UserError:  # the worker will report what is wrong with it
        return "cpu"
