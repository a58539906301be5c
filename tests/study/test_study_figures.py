"""Means, deviations and shares worked out by hand; the table and the curve that show them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import cv2
import pytest

from segskd.study.curve import COLORS, draw_curve, write_curve
from segskd.study.figures import Durations, rows_of, run_figures
from segskd.study.table import ROW_COLUMNS, as_csv, line_names, markdown

TEACHER = 0.6


def cell(method: str, fraction: float, seed: int, miou: float | None, **changes: Any) -> dict[str, Any]:
    """Of 100 training images."""
    figures = {
        "miou": miou,
        "percent_of_teacher": miou and 100 * miou / TEACHER,
        "teacher_miou": miou and TEACHER,
        "seconds": 100.0 + 20 * seed,
        "training_flops": 2.5e12,
        "cpu_seconds": 150.0,
        "gpu_seconds": None,
        "image_passes": 33000,
        "device": "none",
    }
    axes = {"method": method, "student": "unet:resnet10", "fraction": fraction, "rule": "random", "labels": None}
    axes |= {"init": None, "rate": None}
    state = "waiting" if miou is None else "finished"
    images = round(100 * fraction)
    if miou is None:
        figures = dict.fromkeys(figures)
    return {"name": f"{method}-{fraction}-{seed}", **axes, "seed": seed, "images": images, "state": state} | (
        figures | {"error": None} | changes
    )


def read(cells: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """As `read_study` gives it."""
    done = sum(one["state"] == "finished" for one in cells)
    return {
        "title": "Bands",
        "dataset": "bands",
        "size": [64, 96],
        "init": "random",
        "teacher": "/runs/bands-r34",
        "teacher_miou": TEACHER,
        "training_images": 100,
        "passes": 3000,
        "epochs": None,
        "tflops": None,
        "cells": cells,
        "rows": rows_of(cells),
        "done": done,
        "failed": 0,
        "total": len(cells),
    } | changes


CELLS = [
    *(cell("stagewise", 0.1, seed, miou) for seed, miou in enumerate((0.50, 0.52, 0.57))),
    *(cell("supervised", 0.1, seed, miou) for seed, miou in enumerate((0.30, None, 0.34))),
    cell("stagewise", 1.0, 0, 0.57),
    cell("supervised", 1.0, 0, 0.58),
]


def test_mean_and_sample_deviation_over_the_seeds() -> None:
    few, lacking, all_of_them, _ = rows_of(CELLS)
    # 0.50, 0.52, 0.57: mean 0.53, squares 0.0009 + 0.0001 + 0.0016 over n - 1 = 2
    assert few["miou_mean"] == pytest.approx(0.53)
    assert few["miou_std"] == pytest.approx(0.0013**0.5)
    assert few["percent_mean"] == pytest.approx(265 / 3)
    assert few["percent_std"] == pytest.approx(0.0013**0.5 / 0.006)
    assert (few["seeds"], few["cells"], few["images"], few["seconds"]) == (3, 3, 10, 120.0)
    assert (few["training_flops"], few["gpu_seconds"], few["image_passes"]) == (2.5e12, None, 33000)
    assert (lacking["seeds"], lacking["cells"]) == (2, 3)
    assert lacking["miou_mean"] == pytest.approx(0.32)
    assert lacking["miou_std"] == pytest.approx(0.0008**0.5)
    assert (all_of_them["miou_mean"], all_of_them["miou_std"], all_of_them["percent_std"]) == (0.57, None, None)


def test_rows_without_a_finished_cell_have_no_figures() -> None:
    (row,) = rows_of([cell("stagewise", 0.1, 0, None)])
    assert (row["seeds"], row["miou_mean"], row["seconds"], row["image_passes"]) == (0, None, None, None)


def test_figures_are_those_of_the_result_and_none_else() -> None:
    result = {"miou": 0.5, "teacher_miou": 0.6, "image_passes": 252, "seconds": 4.0, "student": {}}
    figures = run_figures(result)
    assert (figures["image_passes"], figures["miou"], figures["training_flops"]) == (252, 0.5, None)
    assert "student" not in figures


def test_the_table_in_markdown() -> None:
    lines = markdown(read(CELLS)).splitlines()
    assert lines[0] == (
        "**Bands**: bands at 64x96, teacher bands-r34 (mIoU 0.600), student unet:resnet10, "
        "images chosen by rule random, 3 000 image passes a stage, first weights random."
    )
    assert lines[2].startswith("| images | method | seeds | mIoU | % of teacher | image passes | training TFLOPs |")
    assert lines[4:8] == [
        "| 10 (10 %) | **stagewise** | 3 | **0.530 ± 0.036** | **88.3 ± 6.0** | 33 000 | 2.5 | 120 | 150 | – |",
        "| 10 (10 %) | supervised | 2 | 0.320 ± 0.028 | 53.3 ± 4.7 | 33 000 | 2.5 | 120 | 150 | – |",
        "| 100 (100 %) | stagewise | 1 | 0.570 | 95.0 | 33 000 | 2.5 | 100 | 150 | – |",
        "| 100 (100 %) | **supervised** | 1 | **0.580** | **96.7** | 33 000 | 2.5 | 100 | 150 | – |",
    ]
    assert lines[-1] == "7 of 8 cells are finished."


def test_the_table_names_the_axes_that_vary() -> None:
    cells = [cell("stagewise", 0.1, 0, 0.5), cell("stagewise", 0.1, 0, 0.4, rule="hardest", labels=0.05)]
    lines = markdown(read(cells, passes=None, epochs=40)).splitlines()
    assert "rule" not in lines[0]
    assert "40 epochs a stage" in lines[0]
    assert "8.5 training TFLOPs a cell" in markdown(read(cells, passes=None, tflops=8.5)).splitlines()[0]
    assert lines[2].startswith("| images | method | images chosen | labels | seeds |")
    assert lines[5].startswith("| 10 (10 %) | stagewise | hardest | 5 % | 1 | 0.400 |")


def test_no_labels_are_called_none() -> None:
    lines = markdown(read([cell("stagewise", 1.0, 0, 0.5, labels=share) for share in (0.1, 0.0)])).splitlines()
    assert lines[4].startswith("| 100 (100 %) | **stagewise** | 10 % | 1 |")
    assert lines[5].startswith("| 100 (100 %) | stagewise | none | 1 |")
    rows = rows_of([cell("stagewise", 1.0, 0, 0.5, labels=share) for share in (None, 0.1, 0.0)])
    assert line_names(rows) == ["all labels", "labels of 10 %", "no labels"]
    assert ", labels of none of the images, " in markdown(read([cell("stagewise", 1.0, 0, 0.5, labels=0.0)]))


def test_the_table_in_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(rows_of(CELLS), ROW_COLUMNS))))
    assert [(row["method"], row["fraction"], row["seeds"]) for row in rows[:2]] == [
        ("stagewise", "0.1", "3"),
        ("supervised", "0.1", "2"),
    ]
    assert float(rows[0]["miou_std"]) == pytest.approx(0.0013**0.5)
    assert rows[2]["miou_std"] == ""


def test_the_curve_has_a_line_a_method_a_band_and_the_teacher() -> None:
    cells = [
        cell(m, f, s, 0.3 + f / 5 + s / 50) for m in ("stagewise", "supervised") for f in (0.1, 0.4) for s in (0, 1)
    ]
    axes = draw_curve(read(cells)).axes[0]
    lines = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert list(lines) == ["stagewise", "supervised", "teacher (60.0 %)"]
    assert list(lines["stagewise"].get_xdata()) == [10.0, 40.0]
    assert list(lines["stagewise"].get_ydata()) == pytest.approx([33.0, 39.0])
    assert [lines[name].get_color() for name in ("stagewise", "supervised")] == list(COLORS[:2])
    band = next(one for one in axes.collections if len(one.get_paths()) == 1)
    # seeds 0.32 and 0.34, 0.38 and 0.40: a deviation of 0.02 / √2
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((33 - 2**0.5, 39 + 2**0.5))
    assert axes.get_xlabel() == "training images (% of 100)"


def test_a_curve_of_one_fraction_has_its_points_side_by_side() -> None:
    cells = [cell("stagewise", 0.1, seed, 0.5, rule=rule) for rule in ("random", "diverse") for seed in (0, 1)]
    axes = draw_curve(read(cells)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["random", "diverse"]
    assert axes.get_xlabel().startswith("10 training images (10 %)")


def test_the_curves_files(tmp_path: Path) -> None:
    write_curve(read(CELLS, done=0), tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_curve(read(CELLS), tmp_path)
    image = cv2.imread(str(tmp_path / "curve.png"))
    assert image is not None
    assert image.shape == (880, 1400, 3)
    svg = (tmp_path / "curve.svg").read_text()
    assert re.search(r"<text[^>]*>supervised</text>", svg)
    write_curve(read(CELLS), tmp_path)
    assert (tmp_path / "curve.svg").read_text() == svg


def test_what_is_left_comes_from_the_same_method() -> None:
    durations = Durations()
    assert durations.left([("stagewise", 0.0)], 1) == ""
    durations.add("stagewise", 20.0)
    durations.add("stagewise", 40.0)
    durations.add("supervised", 90.0)
    # 30 - 10 for the one begun, 90, and 50, the mean of all three, for a method of which nothing is known
    cells = [("stagewise", 10.0), ("supervised", 0.0), ("hinton", 0.0)]
    assert durations.left(cells, 1) == "about 3 min left"
    assert durations.left(cells, 2) == "about 90 s left"
    assert durations.left(cells[:1], 1) == "about 20 s left"
    assert durations.left([("stagewise", 50.0)], 1) == "about 0 s left"
