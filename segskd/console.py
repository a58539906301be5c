"""What a person sees of a run: progress bars on a terminal, plain lines elsewhere, and the run's log.txt."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from segskd.events import (
    DiagnosisEvent,
    EpochEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    PausedEvent,
    PhaseEndEvent,
    PhaseStartEvent,
    PlacedEvent,
    PreparingEvent,
    ResumedEvent,
    SkippedEvent,
    StepEvent,
    StoppedEvent,
    StoreEvent,
    WarningEvent,
    WeightsEvent,
)
from segskd.run_progress import RunProgress

PLAIN_SECONDS = 10.0


class PlainLines:
    """Prints a line for each event that says something new. For steps it prints one line in ten seconds at most."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._printed_at = time.monotonic()
        self._stage = ""

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line:
            with suppress(OSError):  # a full disk or a closed terminal must not end a run
                print(line, file=self._stream, flush=True)

    def _line(self, event: Event) -> str | None:
        now = time.monotonic()
        match event:
            case StepEvent():
                if now - self._printed_at < PLAIN_SECONDS:
                    return None
                self._printed_at = now
                return f"  {event.phase}: epoch {event.epoch}, step {event.step}, loss {event.loss:.4g}"
            case PhaseStartEvent():
                self._printed_at = now
            case PreparingEvent() if event.stage != self._stage and event.done != event.total:
                self._stage = event.stage  # each stage gets one line, when it begins
                return f"{event.stage} …"
        return describe_event(event)


class Bars:
    """Shows three bars: the run, its phase with epoch, loss and time left, and work other than training."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=console)
        self._so_far = RunProgress()
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        self._so_far.apply(event)
        if isinstance(event, PhaseStartEvent):  # a new bar, so that its time left is computed from its own steps
            self._remove("phase")
        self._draw()
        if line := describe_event(event):
            self.progress.console.print(line, highlight=False, markup=False)

    def _draw(self) -> None:
        so_far = self._so_far
        if phase := so_far.latest:
            self._show("run", "run", round(so_far.share * so_far.steps), so_far.steps)
            note = "" if phase.loss is None else f"epoch {phase.epoch} loss {phase.loss:.4g}"
            title = f"{so_far.stage}/{len(so_far.phases)} {phase.name}"
            self._show("phase", title, phase.step, phase.steps, note)
        if side_work := so_far.side_work:
            self._show("side_work", side_work.title, side_work.done, side_work.total)
        else:
            self._remove("side_work")

    def _show(self, bar: str, title: str, done: int, total: int, note: str = "") -> None:
        if bar not in self._tasks:
            self._tasks[bar] = self.progress.add_task(title, completed=done, total=total, note=note)
        self.progress.update(self._tasks[bar], description=title, completed=done, total=total, note=note)

    def _remove(self, bar: str) -> None:
        if bar in self._tasks:
            self.progress.remove_task(self._tasks.pop(bar))


@contextmanager
def watching(console: Console) -> Iterator[Any]:
    """A listener for a run's events. It shows bars if `console` is a terminal, else plain lines."""
    if console.is_terminal:
        bars = Bars(console)
        with bars.progress:
            yield bars
    else:
        yield PlainLines(sys.stderr)


class LogFile(PlainLines):
    """A listener that adds plain lines to the run's log.txt.

    It adds nothing if standard error is that file, since the same lines are printed there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(sys.stderr)
        self._path = folder / "log.txt"

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line:
            with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                if not _is_standard_error(file):
                    print(line, file=file)


def _is_standard_error(file: TextIO) -> bool:
    try:
        return os.path.sameopenfile(file.fileno(), sys.stderr.fileno())
    except io.UnsupportedOperation:  # a notebook's standard error is no file
        return False


def describe_event(event: Event) -> str | None:
    """An event in one line, None for an event that nobody needs to read."""
    match event:
        case WarningEvent() | ErrorEvent():
            return f"{event.kind}: {event.message}"
        case StoreEvent() | DiagnosisEvent() | WeightsEvent():
            return event.message
        case EvaluationEvent():
            return f"{event.model}: mIoU {event.miou:.4f} on {event.split} ({event.images} images)"
        case PhaseEndEvent():
            trained = "nothing to learn, " if event.epochs == 0 else ""
            graft = f"graft mIoU {event.graft_miou:.4f}"
            return f"{event.phase}: {trained}loss {event.loss:.4g}, {graft}, {event.seconds:.1f} s"
        case PlacedEvent():
            cost = event.step_seconds
            parts = (f"{', '.join(names)} ({1e3 * sum(cost[name] for name in names):.0f} ms)" for names in event.stages)
            return f"{event.phase}: stages by process, with what a step takes: {'; '.join(parts)}"
        case SkippedEvent():
            return f"{event.phase}: the loss no longer falls, so epoch {event.to} follows epoch {event.after}"
        case EpochEvent(val_miou=float(miou)):
            return f"epoch {event.epoch}/{event.epochs}: loss {event.loss:.4g}, mIoU {miou:.4f}"
        case ResumedEvent() | StoppedEvent():
            return f"{event.kind} in {event.phase}"
        case PausedEvent():
            return f"paused after {event.after}"
    return None


def result_table(result: dict[str, Any]) -> Table:
    """A run's result: teacher and student side by side, then each class."""
    table = Table(title=f"{result['dataset']} {result['split']}, {result['size'][0]}x{result['size'][1]}")
    models = {who: result[who] for who in ("teacher", "student") if result.get(who)}
    table.add_column("")
    for who, model in models.items():
        table.add_column(f"{who} {model['network']}", justify="right")
    for title, text in _FIGURES.items():
        table.add_row(title, *(text(model) for model in models.values()))
    table.add_section()
    for name in result["student"]["per_class"]:
        table.add_row(name, *(percent(model["per_class"][name]) for model in models.values()))
    return table


def check_table(report: dict[str, Any]) -> Group:
    """The result of `data check`: the share of each class by split, then a line for every problem."""
    splits = report["class_shares"]
    sizes = ", ".join(f"{size} ({count})" for size, count in report["sizes"].items())
    kinds = ", ".join(f"{kind} ({count})" for kind, count in report["kinds"].items())
    table = Table(title=f"{report['card']}: {sum(report['images'].values())} images, {sizes}, {kinds}")
    table.add_column("class")
    for split in splits:
        table.add_column(f"{split}, {report['images'][split]} images: % of pixels", justify="right")
    for name in next(iter(splits.values())):
        table.add_row(name, *(f"{100 * shares[name]:.2f}" for shares in splits.values()))
    problems = [Text(f"{problem['kind']}: {problem['text']}") for problem in report["problems"]]
    return Group(table, *(problems or [Text("no problems")]))


def percent(share: float | None) -> str:
    """A share in percent, a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


_FIGURES: dict[str, Any] = {
    "mIoU %": lambda model: percent(model["miou"]),
    "pixel accuracy %": lambda model: percent(model["pixel_accuracy"]),
    "parameters M": lambda model: f"{model['parameters'] / 1e6:.2f}",
    "GMACs": lambda model: f"{model['gmacs']:.2f}",
    "weights MB": lambda model: f"{model['bytes'] / 1e6:.1f}",
    "latency ms (batch 1)": lambda model: f"{model['latency_ms']:.1f}",
}
