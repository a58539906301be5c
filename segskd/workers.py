"""Work that is split among several workers, each of which prints a line for every piece that it has done.

A process pool of the standard library would import the caller's main program again in each process (the browser
interface, somebody's notebook), and leave its processes behind when the caller is killed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack

from segskd.supervisor import Worker, module, start

MOST_PROCESSES = 8


def processes_for(pieces: int, least: int) -> int:
    """How many processes so many pieces are worth, if each is to get at least `least` of them; 1: this one alone."""
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, pieces // least))


def split_among(count: int, program: str, arguments: Sequence[str], told: Callable[[], None]) -> None:
    """Runs `python -m PROGRAM ARGUMENTS… PART COUNT` for each PART below `count`, all at once.

    `told` is called for every piece, from several threads. Raises OSError when a worker reports one, RuntimeError when
    a worker fails in another way. Then the other workers are killed, too.
    """
    with ThreadPoolExecutor(count) as threads, ExitStack() as stack:
        commands = [module(program, *arguments, str(part), str(count)) for part in range(count)]
        workers = [stack.enter_context(start(command, "part", output="piped")) for command in commands]
        for done in as_completed([threads.submit(_listen, worker, told) for worker in workers]):
            done.result()


def report_piece(error: int = 0) -> None:
    """Tells the caller that a piece is done, or with which errno it failed; ends this process if nobody listens."""
    try:
        print(error, flush=True)
    except BrokenPipeError:
        os._exit(1)


def ignore_interrupts() -> None:
    """Leaves Ctrl-C to the caller, which kills this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _listen(worker: Worker, told: Callable[[], None]) -> None:
    for line in worker.output:
        if error := int(line):
            raise OSError(error, os.strerror(error))
        told()
    if status := worker.wait():
        raise RuntimeError(f"a worker that does its part ended with status {status}: {worker.error_text()[-500:]}")
