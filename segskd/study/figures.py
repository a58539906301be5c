"""Figures of a study's cells, their mean and standard deviation over the seeds, and the time that is left."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
"""Plain data of one cell, or of a row of cells that differ in their seeds alone."""
AXES = ("fraction", "method", "student", "rule", "labels", "init", "rate")
FROM_RESULT = (
    "miou",
    "teacher_miou",
    "percent_of_teacher",
    "image_passes",
    "training_flops",
    "seconds",
    "cpu_seconds",
    "gpu_seconds",
    "device",
)
AVERAGED = ("training_flops", "seconds", "cpu_seconds", "gpu_seconds")
NO_FIGURES: Facts = dict.fromkeys(FROM_RESULT)


def run_figures(result: dict[str, Any]) -> Facts:
    """Figures of a finished run from its result.json, None for those that it doesn't have.

    `miou` is from 0 to 1, and times are in seconds. `image_passes` counts an image each time that it is trained on, in
    all phases. A value that is no number, since somebody has edited the file, is None, too.
    """
    figures = {key: result.get(key) for key in FROM_RESULT}
    return figures | {key: None for key in FROM_RESULT if key != "device" and not _is_figure(figures[key])}


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def rows_of(cells: Sequence[Facts]) -> list[Facts]:
    """One row for all cells that differ in their seeds alone, in the order of the cells.

    In a row, `cells` is the number of cells and `seeds` that of finished ones. Means are None without a finished cell,
    and sample standard deviations (n - 1) are None with fewer than two.
    """
    groups: dict[tuple[Any, ...], list[Facts]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[axis] for axis in AXES), []).append(cell)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Facts]) -> Facts:
    finished = [cell for cell in group if cell["state"] == "finished"]
    row = {axis: group[0][axis] for axis in AXES}
    row |= {"images": group[0]["images"], "seeds": len(finished), "cells": len(group)}
    for figure, name in (("miou", "miou"), ("percent_of_teacher", "percent")):
        values = _known(finished, figure)
        row[f"{name}_mean"] = _mean(values)
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    row["image_passes"] = next(iter(_known(finished, "image_passes")), None)
    return row | {figure: _mean(_known(finished, figure)) for figure in AVERAGED}


def _known(cells: Sequence[Facts], figure: str) -> list[float]:
    return [cell[figure] for cell in cells if cell[figure] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


class Durations:
    """Wall seconds of finished cells by method, from which the remaining time follows.

    All cells have the same number of image passes, but a pass takes longer with some methods.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, method: str, seconds: float) -> None:
        self._seconds.setdefault(method, []).append(seconds)

    def left(self, cells: Sequence[tuple[str, float]], jobs: int) -> str:
        """The time that is left, in words, or "" when no cell has finished.

        `cells` has for each remaining cell its method and the seconds for which it has run; `jobs` cells run at once. A
        method of which no cell has finished is taken to last as long as the mean of all others.
        """
        known = [seconds for some in self._seconds.values() for seconds in some]
        if not known or not cells:
            return ""
        mean = {method: statistics.fmean(seconds) for method, seconds in self._seconds.items()}
        usual = statistics.fmean(known)
        waits = [max(0.0, mean.get(method, usual) - spent) for method, spent in cells]
        return f"about {_duration_text(max(sum(waits) / jobs, max(waits)))} left"


def _duration_text(seconds: float) -> str:
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
