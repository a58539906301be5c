"""Asking a teacher about a dataset's images, in a process of its own so that the page goes on answering."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.devices import choose_device, out_of_memory
from segskd.errors import UserError
from segskd.evaluate.image_statistics import ImageStatistics, image_statistics
from segskd.evaluate.metrics import check_fits
from segskd.models.build import describe, load

from .background import Report

NICENESS = 10
LISTEN_SECONDS = 0.3
WAKING, ASKING = "waking the teacher", "asking the teacher"


@dataclass(frozen=True)
class Question:
    """Which teacher is asked about which images, at which size; what it says is kept in `cache`."""

    teacher: Path
    card: Card
    pairs: list[Pair]
    size: Size
    cache: Path


def image_statistics_in_worker(question: Question, report: Report) -> ImageStatistics:
    """The teacher's image_statistics, made by a process of low priority.

    Raises UserError for a teacher that can't be asked, Stopped when the report does; the process is then gone.
    """
    context = multiprocessing.get_context("spawn")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, mouth), daemon=True)
    report(WAKING, 0, None)
    process.start()
    mouth.close()
    try:
        return _listen(ear, len(question.pairs), report)
    except EOFError as error:
        process.join()
        if process.exitcode == -9:
            raise UserError("the system ended the process that asked the teacher: memory ran out") from error
        raise RuntimeError(f"the process that asked the teacher ended with status {process.exitcode}") from error
    finally:
        process.kill()
        process.join()
        ear.close()


def _listen(ear: Connection, total: int, report: Report) -> ImageStatistics:
    """What comes out of the process in the end. Raises EOFError when it ends without a word."""
    progress: tuple[str, int, int | None] = (WAKING, 0, None)
    while True:
        report(*progress)
        if not ear.poll(LISTEN_SECONDS):
            continue
        kind, content = ear.recv()
        if kind == "done":
            answer: ImageStatistics = content
            return answer
        if kind == "problem":
            raise UserError(content)
        progress = (ASKING, content, total)


def _answer(question: Question, mouth: Any) -> None:
    """In the process: loads the teacher, asks it, and says what came of it."""
    with suppress(AttributeError, OSError):  # Windows knows no nice
        os.nice(NICENESS)
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
            lambda done, total: mouth.send(("progress", done)),
        )
        mouth.send(("done", found))
    except UserError as error:
        mouth.send(("problem", str(error)))
    except Exception as error:
        full = out_of_memory(error)
        if full is None:
            raise
        mouth.send(("problem", str(full)))
