"""Exports of a run: made by the command line in a process of its own, read back from the run's directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from segskd.errors import UserError
from segskd.export.certificate import Package, find_package
from segskd.export.formats import FORMATS, Spec, all_specs
from segskd.runs import Run
from ui.processes import NICENESS, ROOT, child_environment
from ui.state.background import Report, Task, Tasks

LISTEN_SECONDS = 0.3
PATIENCE_SECONDS = 1800.0
WORKING = "packing, then comparing the file with the checkpoint"


class Exports:
    """Starts exports, one at a time for each run."""

    def __init__(self, runs: Path, data: Path) -> None:
        self._tasks = Tasks()
        self._specs: dict[str, Spec] = {}  # what each run's last task makes
        self._environment = child_environment(runs, data)

    def start(self, run: Run, spec: Spec) -> Task:
        """Begins an export, or joins the same one that is being made.

        Raises UserError when the run isn't finished, when another export of it is being made, and when a package
        of the format is missing here.
        """
        if run.status() != "finished":
            raise UserError(f"run {run.name} is {run.status()}: only a finished run can be exported")
        spec.versions()
        task, before = self.task(run), self._specs.get(run.name)
        if task and task.state == "working" and before and before != spec:
            raise UserError(f"run {run.name} is being exported as {before.name}: wait for the end of that")
        self._specs[run.name] = spec
        return self._tasks.start(run.name, lambda report: self._make(run, spec, report))

    def task(self, run: Run) -> Task | None:
        """What the run's last export is doing, None when this server made none."""
        return self._tasks.get(run.name)

    def told(self, run: Run, spec: Spec) -> dict[str, Any] | None:
        """What the page shows of the run's last export: its work whatever is looked at, its end where it was asked."""
        task, made = self.task(run), self._specs.get(run.name)
        if task is None or made is None or (task.state != "working" and made != spec):
            return None
        return {**task.as_dict(), "name": made.name}

    def check_idle(self, run: Run) -> None:
        """Raises UserError while the run is being exported: its folder must stay where it is."""
        task = self.task(run)
        if task and task.state == "working":
            raise UserError(f"run {run.name} is being exported: wait for the end of that")

    def _make(self, run: Run, spec: Spec, report: Report) -> None:
        command = [sys.executable, "-m", "segskd", "export", str(run.path), *spec.flags(), "--json"]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,  # it goes on when the server ends
            )
            with suppress(psutil.Error):  # it may be over already
                psutil.Process(process.pid).nice(NICENESS)
            _wait(process, report)
            said.seek(0)
            _judge(process.returncode, said.read().strip())


def any_exported(run: Run) -> bool:
    """Whether the run has an export of any kind."""
    return any(exported(run, spec) for spec in all_specs())


def formats() -> list[dict[str, Any]]:
    """What the page offers."""
    return [{"name": name, "title": one.title, "quantizes": one.quantizes} for name, one in FORMATS.items()]


def exported(run: Run, spec: Spec) -> Package | None:
    """The run's export whose certificate holds and whose file is there; None for anything that proves less."""
    found = find_package(run, spec)
    if found is None or not found.certificate.holds:
        return None
    inside = Path(found.certificate.file).name == found.certificate.file
    return found if inside and found.path.is_file() else None


def as_dict(made: Package) -> dict[str, Any]:
    """Plain data for the page."""
    return {"file": made.path.name, "bytes": made.certificate.bytes, "certificate": made.certificate.as_dict()}


def _wait(process: subprocess.Popen[bytes], report: Report) -> None:
    """Until it is over. Raises UserError when that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        report(WORKING, 0, None)
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise UserError(f"the export took longer than {PATIENCE_SECONDS / 60:.0f} minutes and was ended")
        with suppress(subprocess.TimeoutExpired):
            process.wait(LISTEN_SECONDS)


def _judge(status: int, said: str) -> None:
    """Raises UserError with what the command said of the user's files, RuntimeError for anything else."""
    if status == 0:
        return
    last = said.splitlines()[-1] if said else ""
    if status == 2 and last:
        raise UserError(last.removeprefix("segskd: "))
    if status < 0:
        raise UserError(f"the export's process was ended by signal {-status}: see that memory is free, and try again")
    raise RuntimeError(f"the export ended with status {status}: {said[-500:]}")
