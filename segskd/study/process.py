"""The process of a cell: `segskd distill`, or `segskd resume` where its run has begun."""

from __future__ import annotations

import signal
import time

from segskd.config import Recipe, dump_recipe
from segskd.files import write_whole, writing
from segskd.runs import Run
from segskd.supervisor import last_line, segskd, start

LOG = "log.txt"
STOPPED = 130


class CellProcess:
    """A cell that is trained by a worker. Ctrl-C in the terminal does not reach the worker, only the study."""

    def __init__(self, run: Run, recipe: Recipe, threads: int | None, gpu: str | None = None) -> None:
        """Starts the worker.

        `threads` is its share of the cores when other cells are trained at the same time, None when it is the only
        one. `gpu` is the GPU that it is to use, as CUDA_VISIBLE_DEVICES names it, None where it may use all of them.
        Raises UserError when the run's folder can't be written.
        """
        self.run = run
        self.started = time.monotonic()
        self._recipe = run.path.with_name(f".{run.name}.yaml")
        self._asked = False
        with writing(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        write_whole(self._recipe, dump_recipe(recipe).encode())
        begun = (run.path / "recipe.yaml").is_file()
        words = ["resume"] if begun else ["distill", "--recipe", str(self._recipe), "--run"]
        shared = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        shared |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        command = segskd(*words, str(run.path))
        self._worker = start(command, "lasting", output="logged", log=run.path / LOG, environment=shared)

    def is_over(self) -> bool:
        return self._worker.is_over()

    def stop(self) -> None:
        """Asks the process to stop at its next safe point."""
        self._asked = True
        self._worker.ask_to_stop()

    def give_up(self) -> None:
        """Kills it with all processes of its run; the state that it saved last stays."""
        self._worker.kill()

    def failure(self) -> str | None:
        """When it is over: its last words if it failed, None if it finished or was stopped."""
        self._recipe.unlink(missing_ok=True)
        with self._worker:
            status, said = self._worker.wait(), self._worker.error_text()
        if (self.run.path / "result.json").is_file() or status == STOPPED or self._asked:
            return None
        if status < 0:
            return f"killed by signal {-status}{' (out of memory, perhaps)' if -status == signal.SIGKILL else ''}"
        return last_line(said) or f"ended with status {status} and without a word"


class AdoptedCell:
    """A cell that another process trains already, such as one that went on when its study was killed."""

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
        """Waits for it no longer. It is not killed, since this study has not started it."""
        self._given_up = True

    def failure(self) -> str | None:
        """Always None: a cell that left no result is tried again."""
        return None
