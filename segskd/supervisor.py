"""Worker processes: how each one is started, is asked to stop, is killed, and what it said in the end.

A worker is a command in a process of its own: a run that the page started, a cell of a study, a pre-flight, an export,
a teacher that is asked about images, a part of the sample scenes. It works in the folder of the process that starts
it, so a relative path means the same to both, and it imports the same SegSKD.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import psutil

from segskd.files import writing

NICENESS = 10
LISTEN_SECONDS = 0.3
Life = Literal["lasting", "bound", "part"]
"""How a worker's life hangs on its caller's.

lasting: it has a process group of its own, and goes on when its caller ends.
bound: it has a process group of its own, and is killed when its caller ends.
part: it is in its caller's process group, and is killed with it.
"""
Output = Literal["dropped", "kept", "logged", "piped"]
"""Where a worker's standard output goes: nowhere, to `Worker.printed`, to where its errors go, or to a pipe.

With "piped" its standard input is a pipe, too; otherwise it is empty.
"""


@dataclass(frozen=True)
class ProcessRecord:
    """A process as it can be written down: its number, and when it was born, in seconds since 1970.

    The system gives a number to another process later; both together name one process alone.
    """

    pid: int
    born: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """The process that has this number now."""
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def read(cls, path: Path) -> ProcessRecord | None:
        """What `as_json` gave, from a file; None when there is no such file, or it is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(content["pid"]), float(content["born"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def process(self) -> psutil.Process | None:
        """The process while it lives."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process while it lives, and to its whole group if it leads one."""
        if self.process() is not None:
            _send(self.pid, number)

    def end(self, seconds: float) -> None:
        """Waits for a process that was asked to stop; sends SIGTERM after `seconds`, and SIGKILL after as many more."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.process() is None:
                    return
                time.sleep(LISTEN_SECONDS)
            self.send(number)


class Worker:
    """A process that was started here. Where it is a context, leaving it kills the process."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], before: int, printed: IO[bytes] | None):
        """`before` is the length that `errors` had when the process was started."""
        self.record = ProcessRecord.of(process.pid)
        self._process, self._errors, self._before, self._printed = process, errors, before, printed

    @property
    def input(self) -> IO[bytes]:
        """The pipe to its standard input, where its output is "piped"."""
        return cast(IO[bytes], self._process.stdin)

    @property
    def output(self) -> IO[bytes]:
        """The pipe from its standard output, where that is "piped"."""
        return cast(IO[bytes], self._process.stdout)

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float = math.inf, meanwhile: Callable[[], None] | None = None) -> int:
        """Its exit status when it is over; one below zero is the signal that killed it.

        `meanwhile` is called every LISTEN_SECONDS; what it raises ends the waiting, not the worker. Raises TimeoutError
        when that takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if meanwhile is not None:
                meanwhile()
            if time.monotonic() > deadline:
                raise TimeoutError
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(LISTEN_SECONDS, seconds))
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """Sends SIGTERM, at which a run saves its state and ends."""
        if not self.is_over():
            _send(self.record.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and the processes of its group at once."""
        if not self.is_over():
            _send(self.record.pid, signal.SIGKILL)
        self._process.wait()

    def let_go(self) -> None:
        """Awaits its end in the background, so that no dead process is left behind in the system's table."""
        self._errors.close()
        threading.Thread(target=self._process.wait, name=f"await {self.record.pid}", daemon=True).start()

    def error_text(self) -> str:
        """What it has written to standard error, and to standard output where that is "logged"."""
        return _text(self._errors, self._before)

    def output_text(self) -> str:
        """What it has written to standard output where that is "kept"."""
        return _text(cast(IO[bytes], self._printed), 0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in (self._errors, self._printed, self._process.stdout, self._process.stdin):
            with suppress(BrokenPipeError):  # it has not read all of its input
                if file is not None:
                    file.close()


_BOUND: weakref.WeakSet[Worker] = weakref.WeakSet()
_ENDING = threading.Event()


@atexit.register
def _kill_bound() -> None:
    _ENDING.set()
    for worker in list(_BOUND):
        worker.kill()


def start(
    command: Sequence[str],
    life: Life,
    *,
    output: Output = "dropped",
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    low_priority: bool = False,
) -> Worker:
    """Starts a worker.

    `log` is a file to which its standard error is added; without one it is kept for `Worker.said`. `environment` is
    laid over this process's. Low priority leaves the cores to whoever else wants them, such as the page.
    Raises UserError when the log can't be written.
    """
    errors, printed = _appending(log) if log else _scratch(), _scratch() if output == "kept" else None
    before = errors.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        list(command),
        env={**os.environ, **_same_code(), **(environment or {})},
        stdin=subprocess.PIPE if output == "piped" else subprocess.DEVNULL,
        stdout={"dropped": subprocess.DEVNULL, "kept": printed, "logged": errors, "piped": subprocess.PIPE}[output],
        stderr=errors,
        start_new_session=life != "part",
    )
    worker = Worker(process, errors, before, printed)
    if life == "bound":
        _BOUND.add(worker)
        if _ENDING.is_set():
            worker.kill()
    if low_priority:
        with suppress(psutil.Error):  # it may be over already
            psutil.Process(process.pid).nice(max(NICENESS, psutil.Process().nice()))
    return worker


def segskd(*words: str) -> list[str]:
    """The command `segskd WORDS…` as this Python runs it."""
    return module("segskd", *words)


def module(name: str, *words: str) -> list[str]:
    """A module's program as this Python runs it."""
    return [sys.executable, "-m", name, *words]


def folder_variables(runs: Path, data: Path) -> dict[str, str]:
    """The environment that tells a worker where runs and datasets lie."""
    return {"SEGSKD_RUNS": str(runs), "SEGSKD_DATA": str(data)}


def last_line(said: str) -> str:
    """The last line that says anything, without the command's name; "" when there is none."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("segskd: ") if lines else ""


def json_result(printed: str) -> Any:
    """What a command with --json printed last. Raises ValueError when that is no JSON."""
    return json.loads(printed.strip().rpartition("\n")[2])


def _send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, and to its whole group if it leads one."""
    with suppress(ProcessLookupError, PermissionError):  # it has just ended, or is another user's
        (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, number)


def _same_code() -> dict[str, str]:
    """Environment with which `python -m` finds this SegSKD, and nothing that merely lies in the working folder."""
    own = str(Path(__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = {str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("purelib", "platlib")}
    paths = [path for path in (*({own} - installed), *given) if path]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _appending(path: Path) -> IO[bytes]:
    with writing(path):
        return open(path, "ab+")


def _scratch() -> IO[bytes]:
    return cast(IO[bytes], tempfile.TemporaryFile())


def _text(file: IO[bytes], start: int) -> str:
    """A worker's file from a place on, read without moving the place at which the worker writes."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size - start, start).decode(errors="replace")
