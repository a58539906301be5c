"""Measures time and memory of runs with different numbers of images, views, sizes and processes.

    python benchmarks/scaling.py --teacher FOLDER [--data DIR] [--counts 22 88 352] [--budget 0.5] [--processes 1 2]

Each line is a run of `segskd distill` with the same epochs a stage and the same budget for the store. `training` is the
run's own time, with the evaluation after each stage. `memory` is the peak of its processes' memory without files that
are mapped into memory, which the system can release. A straight line through the first two figures of a series predicts
the others; the last column says how far they are from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
PAUSE = 0.02


@dataclass(frozen=True)
class Options:
    """What to time."""

    teacher: str
    """Folder of a teacher."""
    dataset: str = "camvid"
    """Name of a card, or the path of one."""
    data: str | None = None
    """Where datasets lie."""
    student: str = "unet:resnet10"
    """ARCH:ENCODER."""
    counts: tuple[int, ...] = (22, 88, 352)
    """Numbers of training images: a series at --size, one view."""
    views: tuple[int, ...] = (1, 2, 4)
    """Views an image: a series with the first number of images."""
    sizes: tuple[str, ...] = ("96x128", "192x256", "288x384")
    """Heights x widths: a series with the first number of images, one view."""
    processes: tuple[int, ...] = ()
    """Processes (--devices): a series with the second number of images, one view."""
    size: str = "96x128"
    """Height x width of the other series."""
    epochs: int = 2
    """Epochs a stage."""
    batch: int = 8
    """Images a step."""
    budget: float = 0.25
    """GiB for the store's features in memory; what is more lies on disk."""
    json: bool = False
    """Print one line of JSON instead of tables."""


@dataclass(frozen=True)
class Line:
    """One run: its series, the setting that varies, and the time and memory that it took."""

    series: str
    setting: str
    amount: float
    training: float
    memory: float
    store: float
    kind: str


def main(options: Options) -> None:
    """Runs all series and prints them."""
    few = options.counts[0]
    lines = [_run(options, "images", str(count), count, count=count) for count in options.counts]
    lines += [_run(options, "views", str(views), views, count=few, views=views) for views in options.views]
    lines += [_run(options, "size", size, _pixels(size), count=few, size=size) for size in options.sizes]
    middle = options.counts[min(1, len(options.counts) - 1)]
    lines += [_run(options, "processes", str(n), n, count=middle, devices=n) for n in options.processes]
    if options.json:
        print(json.dumps([vars(line) for line in lines]))
    else:
        print("\n\n".join(_table(series, lines) for series in dict.fromkeys(line.series for line in lines)))


def _pixels(size: str) -> int:
    height, width = map(int, size.split("x"))
    return height * width


def _run(
    options: Options,
    series: str,
    setting: str,
    amount: float,
    *,
    count: int,
    views: int = 1,
    size: str | None = None,
    devices: int = 1,
) -> Line:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        flags: dict[str, Any] = {
            "dataset": options.dataset,
            "data": options.data,
            "teacher": options.teacher,
            "student": options.student,
            "size": size or options.size,
            "count": count,
            "views": views,
            "epochs": options.epochs,
            "batch": options.batch,
            "store-budget": options.budget,
            "init": "random",
            "devices": devices,
            "run": folder,
        }
        words = [word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value))]
        command = [sys.executable, "-m", "segskd", "distill", *words, "--json"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment()
        ) as process:
            memory = _most_memory(process)
            assert process.stdout
            out = process.stdout.read()
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
        result = json.loads(out.splitlines()[-1])
    store = result["store"]
    print(f"{series} {setting}: {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return Line(series, setting, amount, result["seconds"], memory / MIB, store["bytes"] / MIB, store["kind"])


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


def _most_memory(process: subprocess.Popen[str]) -> int:
    """The peak, in bytes, of the anonymous memory of a process and its children, measured every 20 ms."""
    most = 0
    first = psutil.Process(process.pid)
    while process.poll() is None:
        held = 0
        try:
            for one in (first, *first.children(recursive=True)):
                memory = one.memory_info()
                held += memory.rss - getattr(memory, "shared", 0)
        except psutil.NoSuchProcess:
            pass
        most = max(most, held)
        time.sleep(PAUSE)
    return most


def _table(series: str, lines: Sequence[Line]) -> str:
    rows = [line for line in lines if line.series == series]
    shown = [
        f"| {series} | training s | memory MiB | store MiB | store | against the line |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for place, line in enumerate(rows):
        off = (
            "" if place < 2 or series == "processes" else f"{100 * (line.training / _predicted(rows, line) - 1):+.0f} %"
        )
        figures = f"{line.training:.1f} | {line.memory:.0f} | {line.store:.0f} | {line.kind}"
        shown.append(f"| {line.setting} | {figures} | {off} |")
    return "\n".join(shown)


def _predicted(rows: Sequence[Line], line: Line) -> float:
    """The training seconds that the straight line through the first two rows predicts."""
    first, second = rows[:2]
    slope = (second.training - first.training) / (second.amount - first.amount)
    return first.training + slope * (line.amount - first.amount)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
