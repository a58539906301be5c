"""Pruned students on the Export tab: which there are of a run, and how another one is begun."""

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
    """What the page shows for a run that may be pruned: its pruned students, the least pruned first.

    `seconds` is what the training of another is likely to take, with half of the run's epochs and with all. None
    where there is nothing to prune: a teacher, a student without a teacher, a pruned one.
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
    """Queues the run that prunes `run` by `ratio` and repairs it; one that was stopped goes on. Returns its name.

    It is repaired for half of the epochs that `run` had, or for as many when `whole`. Raises UserError when it can't
    be pruned, or that run works or is finished already.
    """
    if ratio not in RATIOS:
        raise UserError(f"{ratio!r} is none of the shares that can be pruned here")
    recipe, folder = plan_pruned(run, float(str(ratio)), optimisation_before(run).epochs if whole else None)
    if (folder / "recipe.yaml").exists():
        jobs.resume(folder.name)
    else:
        jobs.submit(recipe, folder.name)
    return folder.name
