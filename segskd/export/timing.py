"""Latency of teacher, student and export, taken in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from segskd.config import Size
from segskd.export.reopen import Array, ReopeningProcess
from segskd.models.build import input_channels

REPEATS = 30
WARM_UP = 3
LONGEST_SECONDS = 120.0
LEAST_REPEATS = 5
PAUSE_SECONDS = 0.05
"""In which the threads of the one before fall asleep: onnxruntime's spin on after an answer, longer than 0.01 s."""
CALLS = 3
"""One after another in each turn, the last of which counts: the first finds its weights out of the caches."""


@dataclass(frozen=True)
class Latency:
    """Of one image at `size`, with `threads` threads, the network at work: median of `repeats` turns, milliseconds.

    Teacher and student compute in eager PyTorch, fp32, channels last. The ratios are those of the same turn:
    (first quartile, median, third quartile) of how many times faster the export is.
    """

    size: Size
    threads: int
    repeats: int
    teacher_ms: float | None
    student_ms: float
    export_ms: float
    than_teacher: tuple[float, float, float] | None
    than_student: tuple[float, float, float]
    no_teacher: str | None = None
    """Why the teacher was not timed, where the run has one."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure(
    teacher: nn.Module | None, student: nn.Module, fresh: ReopeningProcess, given: Array, size: Size
) -> Latency:
    """Times the three on one image; `given` (1, …) is the export's input of the padded `size`."""
    image = torch.zeros(1, input_channels(student), *size).to(memory_format=torch.channels_last)
    eager = [model for model in (student, teacher) if model is not None]
    takers: list[Callable[[], float]] = [lambda model=model: _eager(model, image) for model in eager]  # type: ignore[misc]
    takers.append(lambda: fresh.logits(given)[1])
    turns: list[list[float]] = []
    begun = time.monotonic()
    with torch.inference_mode():
        while len(turns) < WARM_UP + REPEATS:
            turns.append([_after_a_pause(take) for take in takers])
            if time.monotonic() - begun > LONGEST_SECONDS and len(turns) >= WARM_UP + LEAST_REPEATS:
                break
    return _latency(turns[WARM_UP:], size, teacher is not None)


def _latency(turns: list[list[float]], size: Size, with_teacher: bool) -> Latency:
    columns = list(zip(*turns, strict=True))
    student, export = columns[0], columns[-1]
    teacher = columns[1] if with_teacher else None
    return Latency(
        size=size,
        threads=torch.get_num_threads(),
        repeats=len(turns),
        teacher_ms=1e3 * statistics.median(teacher) if teacher else None,
        student_ms=1e3 * statistics.median(student),
        export_ms=1e3 * statistics.median(export),
        than_teacher=_ratios(teacher, export) if teacher else None,
        than_student=_ratios(student, export),
    )


def _ratios(slow: tuple[float, ...], fast: tuple[float, ...]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(slow, fast, strict=True)], n=4)
    return low, middle, high


def _after_a_pause(take: Callable[[], float]) -> float:
    time.sleep(PAUSE_SECONDS)
    return [take() for _ in range(CALLS)][-1]


def _eager(model: nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    model(image)
    return time.perf_counter() - start
