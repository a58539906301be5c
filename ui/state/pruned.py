"""Pruned students on the Export tab: those that a run has, and how to start another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segskd.distill.running.branch import optimisation_before
from segskd.distill.running.pruning import RECOVERY, plan_pruned
from segskd.errors import UserError
from segskd.runs import Run

from ..jobs import Jobs
from .catalogue import Row

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
FIELDS = ("name", "state", "doing", "share", "miou", "percent_of_teacher", "bytes", "pruned")


def pruned_students(row: Row, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The pruned students of a run, the least pruned first, for the page.

    `seconds` are estimates for training another one, with half of the run's epochs and with all of them. Returns None
    for a run that can't be pruned: a teacher, a student without a teacher, a pruned student.
    """
    if row.state != "finished" or row.kind != "distill" or row.teacher is None or row.pruned:
        return None
    mine = sorted((one for one in rows if one.pruned_from == row.name), key=lambda one: one.pruned or 0)
    return {
        "ratios": RATIOS,
        "seconds": row.seconds and [row.seconds / RECOVERY, row.seconds],
        "runs": [{name: getattr(one, name) for name in FIELDS} for one in mine],
    }


def begin_pruned(jobs: Jobs, run: Run, ratio: object, whole: bool = False) -> str:
    """Queues a run that prunes the student of `run` by `ratio` and trains the rest. Returns its name.

    It trains half of the epochs of `run`, or all with `whole`. A stopped run goes on. Raises UserError if `run` can't
    be pruned, or if the pruned run is training or finished.
    """
    if ratio not in RATIOS:
        raise UserError(f"{ratio!r} is not one of the shares that can be pruned here")
    recipe, folder = plan_pruned(run, float(str(ratio)), optimisation_before(run).epochs if whole else None)
    if (folder / "recipe.yaml").exists():
        jobs.resume(folder.name)
    else:
        jobs.submit(recipe, folder.name)
    return folder.name
