"""Runs a cell in a process: `python -m segskd distill`, or `resume` if its run has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from segskd.config import Recipe, dump_recipe
from segskd.files import write_whole, writing
from segskd.runs import Run

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "segskd")
LOG = "log.txt"
STOPPED = 130
# Beside other processes, waiting threads must not spin for long. They must not sleep at once either: waking them costs
# time.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


class CellProcess:
    """A cell that runs in a process of its own, which the terminal's Ctrl-C doesn't reach."""

    def __init__(self, run: Run, recipe: Recipe, threads: int | None, gpu: str | None = None) -> None:
        """Starts the process. `threads` is its number of threads if other cells run beside it, None if it is alone.

        `gpu` is the GPU that it must use, as CUDA_VISIBLE_DEVICES names it, or None to leave that as it is.
        """
        self.run = run
        self.started = time.monotonic()
        self._recipe = run.path.with_name(f".{run.name}.yaml")
        self._asked = False
        with writing(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        write_whole(self._recipe, dump_recipe(recipe).encode())
        begun = (run.path / "recipe.yaml").is_file()
        words = ["resume", str(run.path)] if begun else ["distill", "--recipe", str(self._recipe), "--run"]
        shared = {**PATIENCE, "OMP_NUM_THREADS": str(threads)} if threads else {}
        shared |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        with writing(run.path), open(run.path / LOG, "ab") as log:
            self._before = log.tell()
            self._process = subprocess.Popen(
                [*COMMAND, *words, *([] if begun else [str(run.path)])],
                cwd=ROOT,
                env={**os.environ, **shared},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks the process to stop at its next safe point."""
        self._asked = True
        with suppress(OSError):
            self._process.send_signal(signal.SIGTERM)

    def give_up(self) -> None:
        """Kills the process. The state that it saved last remains."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the whole group: a run may have several processes

    def failure(self) -> str | None:
        """The error of a process that failed, None if it finished or was stopped. It waits for its end."""
        self._recipe.unlink(missing_ok=True)
        status = self._process.wait()
        if (self.run.path / "result.json").is_file() or status == STOPPED or self._asked:
            return None
        if status < 0:
            return f"killed by signal {-status}{' (out of memory, perhaps)' if -status == signal.SIGKILL else ''}"
        with open(self.run.path / LOG, "rb") as log:
            log.seek(self._before)
            said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return said[-1].strip().removeprefix("segskd: ") if said else f"ended with status {status} and printed nothing"


class AdoptedCell:
    """A cell that another process runs already, such as one that a killed study has left."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = time.monotonic()
        self._given_up = False

    def is_over(self) -> bool:
        return self._given_up or not self.run.is_alive()

    def stop(self) -> None:
        """Asks the run to stop at its next safe point."""
        self.run.request_stop()

    def give_up(self) -> None:
        """Stops waiting for it. This study must not kill a process that it didn't start."""
        self._given_up = True

    def failure(self) -> str | None:
        """None: a cell without a result is run again."""
        return None
