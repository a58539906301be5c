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

from segskd.runs import Event

PLAIN_SECONDS = 10.0


class PlainLines:
    """One line for each event that says something new; a running phase at most every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_at = time.monotonic()
        self._stage = ""

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line:
            with suppress(OSError):  # a full disk or a closed terminal must not end a run
                print(line, file=self._stream, flush=True)

    def _line(self, event: Event) -> str | None:
        kind = event["kind"]
        if kind == "step":
            now = time.monotonic()
            if now - self._told_at < PLAIN_SECONDS:
                return None
            self._told_at = now
            return f"  {event['phase']}: epoch {event['epoch']}, step {event['step']}, loss {event['loss']:.4g}"
        if kind == "phase_start":
            self._told_at = time.monotonic()
        if kind == "preparing":
            return self._prepared(event)
        return describe_event(event)

    def _prepared(self, event: Event) -> str | None:
        """Each stage of preparing once, when it begins and is not over at once."""
        if event["stage"] == self._stage or event["done"] == event["total"]:
            return None
        self._stage = event["stage"]
        return f"{event['stage']} …"


class Bars:
    """Two bars: the run and its current phase, with epoch, loss and time left."""

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
        self._run: TaskID | None = None
        self._phase: TaskID | None = None
        self._side: TaskID | None = None
        self._before = 0

    def __call__(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler:
            handler(event)
        line = describe_event(event)
        if line:
            self.progress.console.print(line, highlight=False, markup=False)

    def _on_start(self, event: Event) -> None:
        total = sum(phase["steps"] for phase in event["phases"])
        self._run = self.progress.add_task("run", total=total, note="", start=False)

    def _on_phase_start(self, event: Event) -> None:
        self._clear_side()
        if self._phase is not None:
            self.progress.remove_task(self._phase)
        title = f"{event['number']}/{event['phases']} {event['phase']}"
        self._phase = self.progress.add_task(title, total=event["steps"], note="")
        self._before = event["steps_before"]
        if self._run is not None and not self.progress.tasks[0].started:
            self.progress.update(self._run, completed=self._before)
            self.progress.start_task(self._run)

    def _on_step(self, event: Event) -> None:
        self._clear_side()
        note = f"epoch {event['epoch']} loss {event['loss']:.4g}"
        if self._phase is not None:
            self.progress.update(self._phase, completed=event["step"], note=note)
        if self._run is not None:
            self.progress.update(self._run, completed=self._before + event["step"])

    def _on_filling(self, event: Event) -> None:
        self._on_side("storing features", event)

    def _on_evaluating(self, event: Event) -> None:
        self._on_side(f"evaluating the {event['model']}", event)

    def _on_preparing(self, event: Event) -> None:
        self._on_side(event["stage"], event)

    def _on_side(self, title: str, event: Event) -> None:
        if self._side is None:
            self._side = self.progress.add_task(title, total=event["total"], note="")
        self.progress.update(self._side, description=title, completed=event["done"], total=event["total"])
        if event["done"] == event["total"]:
            self._clear_side()

    def _clear_side(self) -> None:
        if self._side is not None:
            self.progress.remove_task(self._side)
            self._side = None


@contextmanager
def watching(console: Console) -> Iterator[Any]:
    """A listener for a run's events: bars where `console` is a terminal, else plain lines."""
    if console.is_terminal:
        bars = Bars(console)
        with bars.progress:
            yield bars
    else:
        yield PlainLines(sys.stderr)


class LogFile(PlainLines):
    """A listener that adds plain lines to the run's log.txt.

    It adds nothing when standard error, where the same lines go, is that file already.
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
    """An event in one line; None for those that are only figures."""
    kind = event["kind"]
    if kind in ("warning", "error", "store", "diagnosis"):
        return f"{kind + ': ' if kind in ('warning', 'error') else ''}{event['message']}"
    if kind == "evaluation":
        return f"{event['model']}: mIoU {event['miou']:.4f} on {event['split']} ({event['images']} images)"
    if kind == "phase_end":
        trained = "nothing to learn, " if event.get("epochs") == 0 else ""
        return (
            f"{event['phase']}: {trained}loss {event['loss']:.4g}, graft mIoU {event['graft_miou']:.4f}, "
            f"{event['seconds']:.1f} s"
        )
    if kind == "placed":
        cost = event["step_seconds"]
        parts = [
            f"{', '.join(stages)} ({1e3 * sum(cost[name] for name in stages):.0f} ms)" for stages in event["stages"]
        ]
        return f"{event['phase']}: stages by process, with what a step takes: {'; '.join(parts)}"
    if kind == "skipped":
        return f"{event['phase']}: the loss stands still, from epoch {event['after']} on to {event['to']}"
    if kind == "epoch" and "val_miou" in event:
        return f"epoch {event['epoch']}/{event['epochs']}: loss {event['loss']:.4g}, mIoU {event['val_miou']:.4f}"
    if kind in ("resumed", "paused", "stopped"):
        return f"{kind} {'after ' + event['after'] if 'after' in event else 'in ' + str(event['phase'])}"
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
    """What `data check` found: share of each class by split, then every problem in a line."""
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
    """A share in percent, a dash for none."""
    return "–" if share is None else f"{100 * share:.1f}"


_FIGURES: dict[str, Any] = {
    "mIoU %": lambda model: percent(model["miou"]),
    "pixel accuracy %": lambda model: percent(model["pixel_accuracy"]),
    "parameters M": lambda model: f"{model['parameters'] / 1e6:.2f}",
    "GMACs": lambda model: f"{model['gmacs']:.2f}",
    "weights MB": lambda model: f"{model['bytes'] / 1e6:.1f}",
    "latency ms (batch 1)": lambda model: f"{model['latency_ms']:.1f}",
}
