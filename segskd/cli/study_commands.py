"""`study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from segskd.bars import ERR
from segskd.cli.flags import JsonFlag
from segskd.cli.output import show
from segskd.config import Device
from segskd.errors import Failed


def study(
    config: str,
    out: Path | None = None,
    teacher: str | None = None,
    data: Path | None = None,
    device: Device | None = None,
    precision: Literal["auto", "32", "bf16", "fp16"] | None = None,
    jobs: int = 1,
    json: JsonFlag = False,
) -> None:
    """Train a grid of runs and write its table and its curve; the same command goes on after a stop.

    Args:
        config: A study that comes with SegSKD, such as scenes, or a YAML file; flags override its recipe.
        out: Folder of the study (checkpoints/NAME).
        teacher: A folder with config.json and weights, a run, or a hub id.
        data: Where datasets lie (SEGSKD_DATA, else datasets/).
        device: Where to train (auto).
        precision: Arithmetic: auto takes bf16 if the hardware supports it.
        jobs: Runs at the same time; they share the CPU's threads.
        json: Print one JSON object as the last line of standard output.
    """
    from segskd.console import PlainLines
    from segskd.events import PreparingEvent
    from segskd.runs import runs_folder
    from segskd.study.grid import load_study, teacher_place
    from segskd.study.runner import carry_out

    changes = {
        "teacher": teacher and teacher_place(teacher, Path.cwd()),
        "data": {"folder": data and str(data.expanduser().resolve())},
        "device": device,
        "precision": precision,
    }
    grid = load_study(config, changes)
    folder = (out.expanduser() if out else runs_folder() / grid.name).resolve()
    lines = PlainLines(sys.stderr)

    def report(stage: str, done: int, total: int | None) -> None:
        lines(PreparingEvent(stage=stage, done=done, total=total or done))

    read = carry_out(grid, folder, _print, jobs, report)
    show(Path(read["table"]).read_text(encoding="utf-8"), _json_answer(read), json)
    _print("\n".join(read[file] for file in ("table", "curve", "curve_svg") if read[file]))
    if failed := [cell["name"] for cell in read["cells"] if cell["state"] == "failed"]:
        raise Failed(
            f"{len(failed)} of {read['total']} cells failed: {', '.join(failed)}; the same command tries again"
        )


def _print(line: str) -> None:
    ERR.print(line, highlight=False, soft_wrap=True)


def _json_answer(read: dict[str, Any]) -> dict[str, Any]:
    folder = Path(read["folder"])
    files = {"csv": str(folder / "table.csv"), "cells_csv": str(folder / "cells.csv")}
    return {"study": read["folder"], **{key: value for key, value in read.items() if key != "folder"}, **files}


COMMANDS = (study,)
