"""Exports of runs. A worker, `segskd export RUN`, makes them; the page reads them from the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segskd.callbacks import OnActivity
from segskd.errors import UserError
from segskd.export.certificate import Package, find_package
from segskd.export.formats import FORMATS, Spec, all_specs
from segskd.runs import Run
from segskd.supervisor import folder_variables, last_line, segskd, start

from .background import Task, Tasks

LONGEST_SECONDS = 1800.0
BAD_INPUT = 2
WORKING = "packing, then comparing the file with the checkpoint"


class Exports:
    """Starts exports, one at a time for each run."""

    def __init__(self, runs: Path, data: Path) -> None:
        self._tasks = Tasks()
        self._specs: dict[str, Spec] = {}  # by run, of its last task
        self._environment = folder_variables(runs, data)

    def start(self, run: Run, spec: Spec) -> Task:
        """Starts an export, or returns the task of the same export if it is being made.

        Raises UserError if the run isn't finished, if another export of it is being made, or if a package that the
        format needs is not installed.
        """
        if run.status() != "finished":
            raise UserError(f"run {run.name} is {run.status()}: only a finished run can be exported")
        spec.versions()
        task, before = self.task(run), self._specs.get(run.name)
        if task and task.state == "working" and before and before != spec:
            raise UserError(f"run {run.name} is being exported as {before.name}: wait until that is finished")
        self._specs[run.name] = spec
        return self._tasks.start(run.name, lambda report: self._make(run, spec, report))

    def task(self, run: Run) -> Task | None:
        """The task of the run's last export, None if this server made none."""
        return self._tasks.get(run.name)

    def page_status(self, run: Run, spec: Spec) -> dict[str, Any] | None:
        """The run's last export for the page: one that is being made, or a finished one of this `spec`."""
        task, made = self.task(run), self._specs.get(run.name)
        if task is None or made is None or (task.state != "working" and made != spec):
            return None
        return {**task.as_dict(), "name": made.name}

    def check_idle(self, run: Run) -> None:
        """Raises UserError while the run is being exported: its folder must stay where it is."""
        task = self.task(run)
        if task and task.state == "working":
            raise UserError(f"run {run.name} is being exported: wait until that is finished")

    def _make(self, run: Run, spec: Spec, report: OnActivity) -> None:
        command = segskd("export", str(run.path), *spec.flags(), "--json")
        with start(command, "lasting", environment=self._environment, low_priority=True) as worker:
            try:
                status = worker.wait(LONGEST_SECONDS, lambda: report(WORKING, 0, None))
            except TimeoutError as error:
                minutes = f"{LONGEST_SECONDS / 60:.0f} minutes"
                raise UserError(f"the export took longer than {minutes} and was ended") from error
            _check_ending(status, worker.error_text())


def has_export(run: Run) -> bool:
    """Whether the run has an export of any kind."""
    return any(exported(run, spec) for spec in all_specs())


def formats() -> list[dict[str, Any]]:
    """The formats for the page."""
    return [{"name": name, "title": one.title, "quantizes": one.quantizes} for name, one in FORMATS.items()]


def exported(run: Run, spec: Spec) -> Package | None:
    """The run's export, if its certificate is valid and its file exists; else None."""
    found = find_package(run, spec)
    if found is None or not found.certificate.holds:
        return None
    in_folder = Path(found.certificate.file).name == found.certificate.file
    return found if in_folder and found.path.is_file() else None


def as_dict(made: Package) -> dict[str, Any]:
    """Plain data for the page."""
    return {"file": made.path.name, "bytes": made.certificate.bytes, "certificate": made.certificate.as_dict()}


def _check_ending(status: int, error_text: str) -> None:
    """Raises UserError when the command refused the user's files or was killed, RuntimeError for any other failure."""
    if status == 0:
        return
    if status == BAD_INPUT and (last := last_line(error_text)):
        raise UserError(last)
    if status < 0:
        raise UserError(f"the export's process was killed by signal {-status}: free some memory, and try again")
    raise RuntimeError(f"the export ended with status {status}: {error_text.strip()[-500:]}")
