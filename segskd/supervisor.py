"""Worker processes: starts them, asks them to stop, kills them, and reads what they print.

A worker is a command in a process of its own: a run that the page started, a cell of a study, a pre-flight, an export,
the statistics of images, a part of the sample scenes. It works in the folder of the process that starts it, so a
relative path means the same to both, and it imports the same SegSKD.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import site
import subprocess
import sys
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
"""What becomes of a worker when its caller ends.

lasting: it has a process group of its own, and goes on when its caller ends.
bound: it has a process group of its own, and is killed when its caller ends.
part: it is in its caller's process group, and is killed with it.
"""
Output = Literal["dropped", "kept", "logged", "piped"]
"""Where a worker's standard output goes.

dropped: nowhere. kept: `Worker.output_text` gives it. logged: to the same file as its standard error.
piped: to a pipe, and standard input is a pipe, too. Otherwise standard input is empty.
"""


@dataclass(frozen=True)
class ProcessRecord:
    """A process as a file can record it: its number, and when it began, in seconds since 1970.

    The system may give the number to another process later, but number and time together mean one process only.
    """

    pid: int
    born: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """The process with this number."""
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def read(cls, path: Path) -> ProcessRecord | None:
        """From a file that holds `as_json`; None if there is no such file, or it is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(content["pid"]), float(content["born"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def process(self) -> psutil.Process | None:
        """The process, None if it has ended."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it is alive, and to its whole group if it leads one."""
        if self.process() is not None:
            _send(self.pid, number)

    def end(self, seconds: float) -> None:
        """Waits for a process that was asked to stop. Sends SIGTERM after `seconds`, SIGKILL after `seconds` more."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.process() is None:
                    return
                time.sleep(LISTEN_SECONDS)
            self.send(number)


class Worker:
    """A process that this process started. As a context manager it kills the process at the end."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], before: int, printed: IO[bytes] | None):
        """`before` is the length of `errors` when the process was started."""
        self.record = ProcessRecord.of(process.pid)
        self._process, self._errors, self._before, self._printed = process, errors, before, printed

    @property
    def input(self) -> IO[bytes]:
        """The pipe to its standard input, if its output is "piped"."""
        return cast(IO[bytes], self._process.stdin)

    @property
    def output(self) -> IO[bytes]:
        """The pipe from its standard output, if that is "piped"."""
        return cast(IO[bytes], self._process.stdout)

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float = math.inf, meanwhile: Callable[[], None] | None = None) -> int:
        """Waits for its end. Returns its exit status; a status below zero is the signal that killed it.

        `meanwhile` is called every LISTEN_SECONDS. If it raises an error, the waiting ends, but not the worker. Raises
        TimeoutError after `seconds`.
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
        """Sends SIGTERM, at which a run saves its state and ends.

        The other processes of its group get none: a run's first process tells the others when to stop.
        """
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it and the processes of its group."""
        if not self.is_over():
            _send(self.record.pid, signal.SIGKILL)
        self._process.wait()

    def let_go(self) -> None:
        """Waits for its end in the background, so that no zombie process is left."""
        self._errors.close()
        threading.Thread(target=self._process.wait, name=f"await {self.record.pid}", daemon=True).start()

    def error_text(self) -> str:
        """What it has written to standard error, and to standard output if that is "logged"."""
        return _text(self._errors, self._before)

    def output_text(self) -> str:
        """What it has written to standard output, if that is "kept"."""
        return _text(cast(IO[bytes], self._printed), 0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in (self._errors, self._printed, self._process.stdout, self._process.stdin):
            with suppress(BrokenPipeError):  # it did not read all of its input
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

    Its standard error is appended to the file `log`; without a log, `Worker.error_text` gives it. `environment` is
    added to this process's. With low priority other processes, such as the page, get the cores first. Raises UserError
    if the log can't be written.
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
        with suppress(psutil.Error):  # it may have ended already
            psutil.Process(process.pid).nice(max(NICENESS, psutil.Process().nice()))
    return worker


def segskd(*words: str) -> list[str]:
    """The command that runs `segskd WORDS…` in this Python."""
    return module("segskd", *words)


def module(name: str, *words: str) -> list[str]:
    """The command that runs a module in this Python."""
    return [sys.executable, "-m", name, *words]


def folder_variables(runs: Path, data: Path) -> dict[str, str]:
    """Environment variables that tell a worker where runs and datasets lie."""
    return {"SEGSKD_RUNS": str(runs), "SEGSKD_DATA": str(data)}


def last_line(text: str) -> str:
    """The last line that is not empty, without the command's name; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("segskd: ") if lines else ""


def json_result(printed: str) -> Any:
    """The JSON that a command with --json printed as its last line. Raises ValueError if there is none."""
    return json.loads(printed.strip().rpartition("\n")[2])


def _send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, and to its whole group if it leads one."""
    with suppress(ProcessLookupError, PermissionError):  # it has just ended, or belongs to another user
        (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, number)


def _same_code() -> dict[str, str]:
    """Environment with which `python -m` imports this SegSKD, and no module of the working folder."""
    own = str(Path(__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = {str(Path(folder).resolve()) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    paths = [path for path in (*({own} - installed), *given) if path]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _appending(path: Path) -> IO[bytes]:
    with writing(path):
        return open(path, "ab+")


def _scratch() -> IO[bytes]:
    return cast(IO[bytes], tempfile.TemporaryFile())


def _text(file: IO[bytes], start: int) -> str:
    """A worker's file from byte `start` on. Reading doesn't move the position at which the worker writes."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size - start, start).decode(errors="replace")
