"""Progress bars on standard error, where that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape

ERR = Console(stderr=True, markup=False)


@contextlib.contextmanager
def bar(title: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """One progress bar, if `shown` and if standard error is a terminal."""
    with stage_bars(shown) as report:
        yield lambda done, total: report(title, done, total)


@contextlib.contextmanager
def stage_bars(shown: bool = True) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for each stage that is reported, if `shown` and if standard error is a terminal."""
    from rich.progress import Progress

    tasks: dict[str, Any] = {}
    with Progress(console=ERR, disable=not (shown and ERR.is_terminal)) as progress:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(escape(stage), total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report
