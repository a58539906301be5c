"""What commands print: figures on standard output, all else on standard error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from segskd.events import Event

WIDE = 200
"""Columns where the output is no terminal: a table read by a program or a log is not cut."""
ERR = Console(stderr=True, markup=False)


def show(shown: Any, content: dict[str, Any], as_json: bool) -> None:
    """A person's view; with --json that goes to standard error and the object to standard output."""
    console = ERR if as_json else Console(markup=False)
    if not console.is_terminal:
        console = Console(file=console.file, markup=False, width=WIDE)
    console.print(shown, highlight=False, soft_wrap=isinstance(shown, str))
    if as_json:
        print(json.dumps(content), flush=True)


def print_result(result: dict[str, Any], json: bool) -> None:
    from segskd.console import result_table

    if "student" not in result:
        text = f"stopped after {result['after']}; 'python -m segskd resume {Path(result['run']).name}' goes on"
        return show(text, result, json)
    share = result["percent_of_teacher"]
    kept = f", {share:.1f} % of the teacher" if share else ""
    show(result_table(result), result, json)
    ERR.print(f"{result['run']}: {result['seconds']:.0f} s of training{kept}", highlight=False, soft_wrap=True)
    return None


@contextlib.contextmanager
def listeners(folder: Path) -> Iterator[list[Callable[[Event], None]]]:
    from segskd.console import LogFile, watching
    from segskd.distill.training.ranks import is_first

    if not is_first():  # the first of several processes tells of all
        yield []
        return
    with watching(ERR) as watcher:
        yield [watcher, LogFile(folder)]


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One progress bar on a terminal, nothing elsewhere."""
    with stage_bars() as report:
        yield lambda done, total: report(title, done, total)


@contextlib.contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for each stage that is reported."""
    from rich.progress import Progress

    tasks: dict[str, Any] = {}
    with Progress(console=ERR, disable=not ERR.is_terminal) as progress:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(escape(stage), total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report
