"""Prunes and exports each student in PAIRS of `architectures.py`, and prints the results.

    python benchmarks/students.py --write docs/architectures.md

Each student is trained for two steps a stage by its first teacher in PAIRS, and exported as ONNX, OpenVINO and
PyTorch's exported program. Then half of its channels are pruned, the rest is repaired, and it is exported as ONNX. A
cell says how much faster than the checkpoint the export is, or why there is none.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
from architectures import PAIRS, check_table, replace_table, table, train_pair

from segskd.distill.running.pruning import plan_pruned
from segskd.distill.running.session import train_pruned
from segskd.errors import UserError
from segskd.export.formats import Spec, all_specs
from segskd.export.package import package
from segskd.models.build import load
from segskd.runs import Run

SPECS = tuple(spec for spec in all_specs() if spec.format != "safetensors" and not spec.pixels and not spec.int8)
HEADER = ("student", "parameters", *(spec.name for spec in SPECS), "half of the channels", "pruned, onnx")
SHARE = 0.5


def students() -> dict[str, str]:
    """Each student with its first teacher in PAIRS."""
    by_student: dict[str, str] = {}
    for teacher, student in PAIRS:
        by_student.setdefault(student, teacher)
    return by_student


def row(student: str, teacher: str, folder: Path) -> list[str]:
    """The table's row for a student."""
    train_pair(teacher, student, folder)
    run = Run.open(folder / "run")
    cells = [student, f"{parameters(run) / 1e6:.2f} M", *(exported(run, spec) for spec in SPECS)]
    try:
        narrow = train_pruned(*plan_pruned(run, SHARE, 1))
    except UserError as error:
        return [*cells, f"none: {str(error).rpartition(' pruned: ')[2]}", ""]
    return [*cells, f"{parameters(narrow) / 1e6:.2f} M", exported(narrow, Spec("onnx"))]


def exported(run: Run, spec: Spec) -> str:
    """The share of equal pixels and the speed of an export against its checkpoint, or the error of the export."""
    try:
        own = package(run, spec).certificate
    except UserError as error:
        return str(error).partition(". It is kept in ")[0]
    faster = (own.latency or {}).get("than_student")
    return f"{100 * (1 - own.share_differing):.4g} %" + (f", {faster[1]:.1f}×" if faster else "")


def parameters(run: Run) -> int:
    """The number of parameters of a run's student."""
    return sum(parameter.numel() for parameter in load(run.model_folder).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=students(), help="print the row of one student")
    parser.add_argument("--write", type=Path, help="the Markdown file whose table is replaced")
    given = parser.parse_args()
    if given.only and given.write:
        parser.error("--write takes the rows of all students: leave --only out")
    if given.write:
        check_table(given.write, HEADER)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for student, teacher in students().items():
        if given.only not in (None, student):
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(student, teacher, Path(folder)))
        print(f"{time.perf_counter() - began:.0f} s: {' | '.join(rows[-1])}", flush=True)
    print(table(HEADER, rows))
    if given.write:
        replace_table(given.write, table(HEADER, rows))


if __name__ == "__main__":
    main()
