"""Figures of a study: those of each cell, and their mean and standard deviation over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
"""Plain data about one cell, or about a row of cells that differ in their seeds alone."""
AXES = ("fraction", "method", "student", "rule", "labels")
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
    """Figures of a finished run: `miou` from 0 to 1, times in seconds; None for those that it has not got.

    `image_passes` counts an image each time that it is trained on, in all phases together. What is no figure,
    because somebody wrote into the file, is none.
    """
    figures = {key: result.get(key) for key in FROM_RESULT}
    return figures | {key: None for key in FROM_RESULT if key != "device" and not _is_figure(figures[key])}


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def rows_of(cells: Sequence[Facts]) -> list[Facts]:
    """A row for all cells that differ in their seeds alone, in the order of the cells.

    `seeds` counts the finished cells among `cells`; means are None without any, sample standard deviations
    (n - 1) None with fewer than two.
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
