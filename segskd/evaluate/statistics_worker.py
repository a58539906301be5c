"""The statistics of a dataset's images, made by a worker so that its caller goes on answering."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from segskd.callbacks import OnActivity
from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.devices import choose_device, out_of_memory
from segskd.errors import UserError
from segskd.evaluate.image_statistics import ImageStatistics, image_statistics
from segskd.evaluate.metrics import check_fits
from segskd.models.build import describe, load
from segskd.supervisor import LISTEN_SECONDS, module, start

LOADING, ASKING = "loading the teacher", "the teacher looks at the images"


@dataclass(frozen=True)
class Question:
    """Which teacher is asked about which images, at which size; the answer is kept in the folder `cache`."""

    teacher: Path
    card: Card
    pairs: list[Pair]
    size: Size
    cache: Path


def image_statistics_in_worker(question: Question, report: OnActivity) -> ImageStatistics:
    """The same as `image_statistics`, made by a worker of low priority.

    `report` hears what is being done, of how many images it is done, and how many there are, None while that does not
    matter yet. Raises UserError for a teacher that can't be asked, and what `report` raises; the worker is then killed.
    """
    report(LOADING, 0, None)
    command = module("segskd.evaluate.statistics_worker")
    with start(command, "bound", output="piped", low_priority=True) as worker:
        try:
            with Connection(os.dup(worker.input.fileno()), readable=False) as to_worker:
                to_worker.send(question)
            with Connection(os.dup(worker.output.fileno()), writable=False) as from_worker:
                return _listen(from_worker, len(question.pairs), report)
        except (EOFError, BrokenPipeError) as error:
            status = worker.wait()
            if status == -9:
                raise UserError("the system ended the process that asked the teacher: memory ran out") from error
            said = worker.error_text()[-500:]
            raise RuntimeError(f"the process that asked the teacher ended with status {status}: {said}") from error


def _listen(from_worker: Connection, total: int, report: OnActivity) -> ImageStatistics:
    """The worker's answer. Raises EOFError when it ends without one."""
    progress: tuple[str, int, int | None] = (LOADING, 0, None)
    while True:
        report(*progress)
        if not from_worker.poll(LISTEN_SECONDS):
            continue
        kind, content = from_worker.recv()
        if kind == "done":
            answer: ImageStatistics = content
            return answer
        if kind == "problem":
            raise UserError(content)
        progress = (ASKING, content, total)


def _answer(question: Question, to_caller: Connection) -> None:
    """In the worker: loads the teacher, asks it, and sends what came of it."""
    try:
        model = load(question.teacher)
        check_fits(model, question.card, describe(model))
        found = image_statistics(
            model,
            question.card,
            question.pairs,
            question.size,
            choose_device("auto"),
            question.cache,
            lambda done, total: to_caller.send(("progress", done)),
        )
        to_caller.send(("done", found))
    except UserError as error:
        to_caller.send(("problem", str(error)))
    except Exception as error:
        full = out_of_memory(error)
        if full is None:
            raise
        to_caller.send(("problem", str(full)))


def _main() -> None:
    """The worker: a question comes in by its standard input, and the answer goes out by its standard output."""
    with Connection(os.dup(sys.stdout.fileno()), readable=False) as to_caller, suppress(BrokenPipeError):
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not disturb the answer
        with Connection(os.dup(sys.stdin.fileno()), writable=False) as from_caller:
            question = from_caller.recv()
        _answer(question, to_caller)


if __name__ == "__main__":
    _main()
