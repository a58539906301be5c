"""Commands in processes of their own, and the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from segskd.config import Recipe, dump_recipe
from segskd.runs import Run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0


def command(*words: object) -> subprocess.Popen[str]:
    """A module of Python with threads that leave each other room."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def began(made: Recipe, folder: Path) -> Path:
    path = folder / "asked.yaml"
    path.write_text(dump_recipe(made))
    return path


def workers(process: subprocess.Popen[str], run: Run) -> list[psutil.Process]:
    """The processes below `process` that work on the run, the first among them."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [one for one in below if str(run.path) in one.cmdline() and "torch.distributed.run" not in one.cmdline()]
