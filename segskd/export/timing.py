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
"""A pause in which the threads of the network timed before fall asleep: onnxruntime's spin for more than 0.01 s."""
CALLS = 3
"""Calls in each turn. Only the last counts: in the first, the weights are not yet in the processor's caches."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass over one image of `size` with `threads` threads: medians of `repeats` turns.

    Teacher and student compute in eager PyTorch, fp32, channels last. `than_teacher` and `than_student` say how many
    times faster the export is, as (first quartile, median, third quartile) of the ratios within each turn.
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
    teacher: nn.Module | None, student: nn.Module, reopened: ReopeningProcess, given: Array, size: Size
) -> Latency:
    """Times the networks on one image of the padded `size`; `given` (1, …) is that image as the export takes it."""
    image = torch.zeros(1, input_channels(student), *size).to(memory_format=torch.channels_last)
    eager = [model for model in (student, teacher) if model is not None]
    timed: list[Callable[[], float]] = [lambda model=model: _eager(model, image) for model in eager]  # type: ignore[misc]
    timed.append(lambda: reopened.logits(given)[1])
    turns: list[list[float]] = []
    begun = time.monotonic()
    with torch.inference_mode():
        while len(turns) < WARM_UP + REPEATS:
            turns.append([_after_a_pause(call) for call in timed])
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


def _after_a_pause(call: Callable[[], float]) -> float:
    time.sleep(PAUSE_SECONDS)
    return [call() for _ in range(CALLS)][-1]


def _eager(model: nn.Module, image: torch.Tensor) -> float:
    start = time.perf_counter()
    model(image)
    return time.perf_counter() - start
