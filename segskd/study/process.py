"""The process of a cell: `python -m segskd distill`, or `resume` where its run has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from segskd.config import Recipe, dump_recipe
from segskd.files import write_whole, writing
from segskd.folders import CLONE
from segskd.runs import Run

COMMAND = (sys.executable, "-m", "segskd")
LOG = "log.txt"
STOPPED = 130
# Beside others, threads that wait must not spin; yet not sleep at once, or waking them would cost more than it saves.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


class CellProcess:
    """A cell that is worked on in a process of its own, which the terminal's Ctrl-C does not reach."""

    def __init__(self, run: Run, recipe: Recipe, threads: int | None, gpu: str | None = None) -> None:
        """Starts it; `threads` is its share of the cores when others run beside it, None when it is alone.

        `gpu` is the one that it is to use, as CUDA_VISIBLE_DEVICES names it, None where it has no choice.
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
                cwd=CLONE,
                env={**os.environ, **shared},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks it to stop at its next safe point."""
        self._asked = True
        with suppress(OSError):
            self._process.send_signal(signal.SIGTERM)

    def give_up(self) -> None:
        """Kills it: what it saved last stays."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with the others of its run, where it has some

    def failure(self) -> str | None:
        """When it is over: its last word if it failed, None if it finished or was stopped."""
        self._recipe.unlink(missing_ok=True)
        status = self._process.wait()
        if (self.run.path / "result.json").is_file() or status == STOPPED or self._asked:
            return None
        if status < 0:
            return f"killed by signal {-status}{' (out of memory, perhaps)' if -status == signal.SIGKILL else ''}"
        with open(self.run.path / LOG, "rb") as log:
            log.seek(self._before)
            said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return said[-1].strip().removeprefix("segskd: ") if said else f"ended with status {status} and without a word"


class AdoptedCell:
    """A cell that another process works on already, such as one that outlived a study which was killed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = time.monotonic()
        self._given_up = False

    def is_over(self) -> bool:
        return self._given_up or not self.run.is_alive()

    def stop(self) -> None:
        """Asks it to stop at its next safe point."""
        self.run.request_stop()

    def give_up(self) -> None:
        """Awaits it no longer: it is not this study's to kill."""
        self._given_up = True

    def failure(self) -> str | None:
        """What went wrong with it: None, for it is tried again where it left no result."""
        return None
