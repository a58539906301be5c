"""Writes the tables of a study: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segskd.errors import plural
from segskd.files import write_whole
from segskd.study.figures import AVERAGED, AXES, FROM_RESULT, Facts
from segskd.study.folder import CELLS, ROWS, TABLE

NONE = "–"
Column = tuple[str, Callable[[Facts], str]]
ROW_COLUMNS = (
    *AXES,
    "images",
    "cells",
    "seeds",
    *("miou_mean", "miou_std", "percent_mean", "percent_std"),
    *("image_passes", *AVERAGED),
)
CELL_COLUMNS = ("name", *AXES, "seed", "images", "state", *FROM_RESULT, "error")


def write_tables(read: dict[str, Any], folder: Path) -> None:
    """Writes table.md, table.csv and cells.csv from what `read_study` returns.

    Raises UserError when the disk is full or can't be written.
    """
    write_whole(folder / TABLE, markdown(read).encode())
    write_whole(folder / ROWS, as_csv(read["rows"], ROW_COLUMNS).encode())
    write_whole(folder / CELLS, as_csv(read["cells"], CELL_COLUMNS).encode())


def markdown(read: dict[str, Any]) -> str:
    """A line of what all cells share, the table with the best mean of each fraction in bold, and notes."""
    rows = read["rows"]
    best = best_rows(rows)
    columns = _columns(rows, best)
    lines = [f"**{read['title']}**: {shared(read)}.", ""]
    lines += [f"| {' | '.join(title for title, _ in columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(write(row) for _, write in columns)} |" for row in rows]
    return "\n".join([*lines, "", *_notes(read)]) + "\n"


def as_csv(facts: Sequence[Facts], columns: Sequence[str]) -> str:
    """CSV with a heading and one line for each of `facts`. Fields that are None are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return text.getvalue()


def varying(rows: Sequence[Facts], axis: str) -> bool:
    """Whether an axis has several values in these rows."""
    return len({row[axis] for row in rows}) > 1


def best_rows(rows: Sequence[Facts]) -> list[Facts]:
    """The row with the highest mean mIoU of each fraction that has several rows."""
    best = []
    for fraction in dict.fromkeys(row["fraction"] for row in rows):
        rivals = [row for row in rows if row["fraction"] == fraction and row["miou_mean"] is not None]
        if len(rivals) > 1:
            best.append(max(rivals, key=lambda row: float(row["miou_mean"])))
    return best


def line_names(rows: Sequence[Facts]) -> list[str]:
    """A name for each row that differs from those of other rows of its fraction: its method, and other axes that
    vary."""
    named = [axis for axis in AXES if axis not in ("fraction", "method") and varying(rows, axis)]
    by_method = varying(rows, "method") or not named
    axes = [*(["method"] if by_method else []), *named]
    return [", ".join(_axis_text(axis, row[axis]) for axis in axes) for row in rows]


def shared(read: dict[str, Any]) -> str:
    """One line that says what all cells share."""
    rows = read["rows"]
    height, width = read["size"]
    parts = [f"{read['dataset']} at {height}x{width}"]
    if read["teacher"]:
        scored = f" (mIoU {read['teacher_miou']:.3f})" if read["teacher_miou"] else ""
        parts.append(f"teacher {Path(read['teacher']).name}{scored}")
    one = rows[0]
    parts += [] if varying(rows, "student") else [f"student {one['student']}"]
    parts += [] if varying(rows, "rule") else [f"images chosen by rule {one['rule']}"]
    if not varying(rows, "labels") and one["labels"] is not None:
        parts.append(f"labels of {_labels(one['labels'])} of the images")
    budget = (
        f"{_number(read['passes'])} image passes a stage"
        if read["passes"]
        else f"{plural(read['epochs'], 'epoch')} a stage"
    )
    if read["tflops"]:
        budget = f"{_number(read['tflops'])} training TFLOPs a cell"
    parts.append(budget)
    parts += [] if varying(rows, "init") else [f"first weights {_init(one['init'] or read['init'])}"]
    parts += [] if varying(rows, "rate") or one["rate"] is None else [f"peak rate {one['rate']:g}"]
    return ", ".join(parts)


def _axis_text(axis: str, value: Any) -> str:
    if axis == "student":
        return str(value).removeprefix("unet:")
    if axis in ("method", "rule"):
        return str(value)
    if axis == "init":
        return f"from {_init(value)}"
    if axis == "rate":
        return f"rate {_rate(value)}"
    if value is None:
        return "all labels"
    return f"labels of {100 * value:g} %" if value else "no labels"


def _init(init: str | None) -> str:
    return "the default" if init is None else Path(init).name


def _rate(rate: float | None) -> str:
    return "by default" if rate is None else f"{rate:g}"


def _labels(share: float | None) -> str:
    if share is None:
        return "all"
    return f"{100 * share:g} %" if share else "none"


def _columns(rows: Sequence[Facts], best: Sequence[Facts]) -> list[Column]:
    def bold(row: Facts, text: str) -> str:
        return f"**{text}**" if any(row is one for one in best) else text

    axes: dict[str, Column] = {
        "student": ("student", lambda row: row["student"]),
        "rule": ("images chosen", lambda row: row["rule"]),
        "labels": ("labels", lambda row: _labels(row["labels"])),
        "init": ("first weights", lambda row: _init(row["init"])),
        "rate": ("peak rate", lambda row: _rate(row["rate"])),
    }
    return [
        ("images", lambda row: f"{_number(row['images'])} ({100 * row['fraction']:g} %)"),
        ("method", lambda row: bold(row, row["method"])),
        *(column for axis, column in axes.items() if varying(rows, axis)),
        ("seeds", lambda row: str(row["seeds"])),
        ("mIoU", lambda row: bold(row, _spread(row["miou_mean"], row["miou_std"], 3))),
        ("% of teacher", lambda row: bold(row, _spread(row["percent_mean"], row["percent_std"], 1))),
        ("image passes", lambda row: _number(row["image_passes"])),
        ("training TFLOPs", lambda row: _number(_tera(row["training_flops"]))),
        ("wall s", lambda row: _number(row["seconds"])),
        ("CPU s", lambda row: _number(row["cpu_seconds"])),
        ("GPU s", lambda row: _number(row["gpu_seconds"])),
    ]


def _notes(read: dict[str, Any]) -> list[str]:
    notes = ["Mean ± sample standard deviation over the seeds; the last epoch's weights, nothing chosen on a split."]
    if read["done"] < read["total"]:
        failed = f", {read['failed']} failed" if read["failed"] else ""
        notes.append(f"{read['done']} of {read['total']} cells are finished{failed}.")
    return notes


def _spread(mean: float | None, deviation: float | None, digits: int) -> str:
    if mean is None:
        return NONE
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _tera(count: float | None) -> float | None:
    return None if count is None else count / 1e12


def _number(value: float | None) -> str:
    """A whole number with spaces between thousands, or a small fraction with three significant digits."""
    if value is None:
        return NONE
    return f"{value:.3g}" if 0 < abs(value) < 10 and value != int(value) else f"{value:,.0f}".replace(",", " ")
