"""Draws a study's data-efficiency curve: mIoU against the share of the images, with one line for each method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from segskd.files import write_whole
from segskd.study.figures import AXES, Facts
from segskd.study.folder import CURVE_PNG, CURVE_SVG
from segskd.study.table import line_names, varying

# Okabe & Ito (2008), which colour-blind people can distinguish, without yellow, which is hard to see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#333333", "#DDDDDD"
DPI = 200
LOGARITHMIC = 20.0
"""The axis is logarithmic when the largest fraction is more than this many times the smallest."""
MOST_TICKS = 8
BESIDE = 0.12
"""How far the points of single seeds are from that of their mean, as a share of the distance of two means."""
# The SVG holds text as text, and the same study gives the same bytes.
SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "segskd"}
Line = tuple[str, list[Facts]]


def write_curve(read: dict[str, Any], folder: Path) -> None:
    """Writes curve.png and curve.svg from what `read_study` returns, once a cell is finished.

    Raises UserError when the disk is full or can't be written.
    """
    if not read["done"]:
        return
    figure = draw_curve(read)
    for name, options in ((CURVE_PNG, {"dpi": DPI}), (CURVE_SVG, {"metadata": {"Date": None}})):
        picture = io.BytesIO()
        with mpl.rc_context(SVG):
            figure.savefig(picture, format=Path(name).suffix[1:], **options)
        write_whole(folder / name, picture.getvalue())


def draw_curve(read: dict[str, Any]) -> Figure:
    """One line for each method (and student, rule and share of labels, if these vary), with mIoU in percent.

    A point of several seeds has a bar of one standard deviation to both sides, and a band connects such points. For a
    study of a single fraction, the points are drawn side by side instead.
    """
    lines = _lines(read["rows"])
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    by_share = varying(read["rows"], "fraction")
    if by_share:
        _draw_lines(axes, lines)
        _share_axis(axes, sorted({row["fraction"] for row in read["rows"]}), read["training_images"])
    else:
        _draw_points(axes, lines, read)
    if read["teacher_miou"]:
        percent = 100 * read["teacher_miou"]
        axes.axhline(percent, color=INK, linewidth=1.2, dashes=(6, 4), zorder=1, label=f"teacher ({percent:.1f} %)")
    axes.set_ylabel("mIoU on the validation images (%)")
    axes.set_title(read["title"], fontsize=11, loc="left")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.08)
    if handles := axes.get_legend_handles_labels()[0]:
        loc: Any = "outside right upper" if by_share else "outside lower right"
        figure.legend(handles=handles, loc=loc, frameon=False, fontsize=9)
    return figure


def _lines(rows: Sequence[Facts]) -> list[Line]:
    """The rows with figures by the name of their line, sorted by the fraction of the images."""
    lines: dict[str, list[Facts]] = {}
    for row, name in sorted(zip(rows, line_names(rows), strict=True), key=lambda named: float(named[0]["fraction"])):
        lines.setdefault(name, [])
        if row["miou_mean"] is not None:
            lines[name].append(row)
    return list(lines.items())


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for number, (name, rows) in enumerate(lines):
        if not rows:
            continue
        look = _look(number)
        share = [100 * row["fraction"] for row in rows]
        mean = [100 * row["miou_mean"] for row in rows]
        spread = [100 * (math.nan if row["miou_std"] is None else row["miou_std"]) for row in rows]
        low = [middle - half for middle, half in zip(mean, spread, strict=True)]
        high = [middle + half for middle, half in zip(mean, spread, strict=True)]
        axes.fill_between(share, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.errorbar(share, mean, yerr=spread, fmt="none", ecolor=look["color"], elinewidth=1.2, capsize=3, zorder=2)
        axes.plot(share, mean, label=name, linewidth=1.8, markersize=6, zorder=3, **look)


def _draw_points(axes: Axes, lines: Sequence[Line], read: dict[str, Any]) -> None:
    for number, (_, rows) in enumerate(lines):
        look = _look(number)
        for row in rows:
            seeds = [100 * cell["miou"] for cell in read["cells"] if _belongs(cell, row)]
            beside = [number + BESIDE] * len(seeds)
            axes.plot(beside, seeds, linestyle="", marker="o", color=look["color"], fillstyle="none", markersize=4)
            half = 100 * (math.nan if row["miou_std"] is None else row["miou_std"])
            axes.errorbar([number], [100 * row["miou_mean"]], yerr=[half], capsize=4, markersize=7, **look)
    axes.set_xticks(range(len(lines)), [name.replace(", ", "\n") for name, _ in lines])
    axes.set_xlim(-0.6, len(lines) - 0.4)
    row = read["rows"][0]
    axes.set_xlabel(f"{row['images']} training images ({100 * row['fraction']:g} %); small circles: single seeds")


def _share_axis(axes: Axes, fractions: Sequence[float], images: int | None) -> None:
    percents = [100 * fraction for fraction in fractions]
    if fractions[-1] / fractions[0] > LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
    if len(percents) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(percents))
        axes.set_xticks(percents, [f"{percent:g}" for percent in percents])
    axes.set_xlabel("training images (%)" if images is None else f"training images (% of {images})")


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and style of a line. Lines of the same colour have different styles."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STYLES[number // len(COLORS) % len(STYLES)],
    }


def _belongs(cell: Facts, row: Facts) -> bool:
    return cell["miou"] is not None and all(cell[axis] == row[axis] for axis in AXES)
