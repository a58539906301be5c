"""Work split among processes of this Python, each of which prints a line for every piece that it has done.

A process pool of the standard library would import the caller's main program again in each process (the browser
interface, somebody's notebook), and leave its processes behind when the caller is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack

MOST_PROCESSES = 8


def processes_for(pieces: int, least: int) -> int:
    """How many processes are worth while for so many pieces when each should get at least `least`; 1 for none."""
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, pieces // least))


def split_among(count: int, module: str, arguments: Sequence[str], told: Callable[[], None]) -> None:
    """Runs `python -m MODULE ARGUMENTS… PART COUNT` for each PART below `count`, all at once.

    `told` is called for every piece, from several threads. Raises OSError when a process reports one,
    RuntimeError when one ends otherwise; the others are ended then, too.
    """
    with ThreadPoolExecutor(count) as threads, ExitStack() as stack:
        workers = [_start(stack, module, [*arguments, str(part), str(count)]) for part in range(count)]
        for done in as_completed([threads.submit(_listen, worker, told) for worker in workers]):
            done.result()


def report_piece(error: int = 0) -> None:
    """Tells the caller of a piece, or with which errno it failed; ends this process when nobody listens."""
    try:
        print(error, flush=True)
    except BrokenPipeError:
        os._exit(1)


def ignore_interrupts() -> None:
    """Leaves Ctrl-C to the caller, which ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start(stack: ExitStack, module: str, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *arguments]
    worker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(worker.kill)
    return worker


def _listen(worker: subprocess.Popen[str], told: Callable[[], None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        if error := int(line):
            raise OSError(error, os.strerror(error))
        told()
    if status := worker.wait():
        raise RuntimeError(f"a process that does its part ended with status {status}")
