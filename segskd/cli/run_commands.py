"""`teach`, `distill`, `resume`, `stop`, `runs`, `demo`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional

from segskd.bars import ERR
from segskd.cli.flags import (
    NO_DISTILL_FLAGS,
    NO_TEACH_FLAGS,
    NO_TEACHER_FLAGS,
    DistillFlags,
    JsonFlag,
    TeacherFlags,
    TeachFlags,
    given_fields,
    recipe_changes,
    replaced_in_subset,
    teacher_place,
)
from segskd.cli.output import print_result, show
from segskd.errors import UserError

if TYPE_CHECKING:
    from segskd.config import Recipe


def teach(
    out: Path,
    arch: str = "unet",
    encoder: str = "resnet34",
    *,
    settings: OmitArgPrefixes[TeachFlags] = NO_TEACH_FLAGS,
    json: JsonFlag = False,
) -> None:
    """Train a teacher on labels; segmentation_models_pytorch.from_pretrained reads its folder.

    Args:
        out: The run's directory.
        arch: Decoder.
        encoder: Encoder.
    """
    from segskd.config import make_recipe, merged

    base: dict[str, Any] = {"kind": "teach", "student": f"{arch}:{encoder}", "method": "supervised"}
    changes = recipe_changes(settings)
    _run(make_recipe(merged(base, changes), given_fields(changes)), out, None, json)


def distill(
    recipe: Path | None = None,
    begin_run: str | None = None,
    begin_stage: str | None = None,
    run: str | None = None,
    until: str | None = None,
    *,
    file: OmitArgPrefixes[TeacherFlags] = NO_TEACHER_FLAGS,
    settings: OmitArgPrefixes[DistillFlags] = NO_DISTILL_FLAGS,
    json: JsonFlag = False,
) -> None:
    """Distill a student from a teacher, or train a recipe; flags override the recipe.

    Args:
        recipe: A recipe (YAML), such as a run's recipe.yaml.
        begin_run: Begin with the student, images and settings of this run, instead of a dataset and a teacher.
        begin_stage: The first of its stages that is trained again; the stages before it stay as they are.
        run: Name below checkpoints/, or a path.
        until: Stop after this stage; `resume` goes on.
    """
    made = recipe_from_flags(recipe, file, settings, _begin(begin_run, begin_stage))
    _run(made, run, until, json)


def recipe_from_flags(
    recipe: Path | None, file: TeacherFlags, flags: DistillFlags, begin: dict[str, str] | None = None
) -> Recipe:
    """The recipe of a file, of the run to begin from, or the default one, with the fields that flags give."""
    from segskd.api import network_place
    from segskd.config import make_recipe, overridden, read_yaml

    changes = recipe_changes(flags)
    changes["teacher"] = teacher_place(changes.get("teacher"), file)
    changes |= {name: network_place(name, changes.get(name)) for name in ("teacher", "init")}
    if recipe and begin:
        raise UserError("--begin-run uses that run's recipe: leave --recipe out")
    epochs = changes["optimisation"].get("epochs")
    base = _branch(begin, epochs) if begin else read_yaml(recipe) if recipe else {"data": {"card": "scenes"}}
    if not isinstance(base, dict):
        raise UserError(f"{recipe} is not a recipe: a run's recipe.yaml is an example of one")
    if isinstance(base.get("subset"), dict):
        for part in replaced_in_subset(changes):
            base["subset"].pop(part, None)
    if changes.get("method") not in (None, base.get("method")):
        base.pop("options", None)  # they belong to the recipe's method
    if recipe is None and begin is None and "card" not in changes["data"]:
        raise UserError("name what to train on with --dataset (see 'python -m segskd data list') or --recipe")
    made = make_recipe(overridden(base, changes), given_fields(changes))
    if changes["init"] == "teacher" and made.teacher is None:
        raise UserError("--init teacher: there is no teacher; name one with --teacher, or leave --init out", "init")
    return made


def _begin(run: str | None, stage: str | None) -> dict[str, str] | None:
    if run is None and stage is None:
        return None
    if run is None or stage is None:
        raise UserError("--begin-run names a run and --begin-stage its first stage to train again: give both")
    return {"run": run, "stage": stage}


def _branch(begin: dict[str, str], epochs: int | None) -> dict[str, Any]:
    from segskd.distill.running.branch import branch_recipe
    from segskd.runs import find_run

    return branch_recipe(find_run(begin["run"]), begin["stage"], epochs).model_dump(mode="json")


def resume(
    run: Positional[str],
    until: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    json: JsonFlag = False,
) -> None:
    """Go on with a run that was stopped, paused or killed.

    Args:
        run: Name below checkpoints/, or a path.
        until: Stop after this stage; `resume` goes on.
        devices: Processes on each machine (as the run began).
        nodes: Machines (as the run began).
    """
    from segskd import api
    from segskd.distill.training.ranks import is_first
    from segskd.runs import find_run

    found = find_run(run)
    if found.read_json("result.json") is not None and is_first():
        ERR.print(f"run {found.name} is finished", highlight=False)
    made = api.resume(found, until=until, devices=devices, nodes=nodes, progress=True)
    if is_first():
        print_result(made.result or {"run": str(made.path), "after": until}, json)


def stop(run: Positional[str], json: JsonFlag = False) -> None:
    """Ask a run to stop at its next step; it can be resumed."""
    from segskd.runs import find_run

    found = find_run(run)
    alive = found.is_alive()
    if not alive:
        raise UserError(f"run {found.name} is not running")
    found.request_stop()
    show(f"asked {found.name} to stop", {"run": str(found.path), "asked": True}, json)


def runs(json: JsonFlag = False) -> None:
    """List the runs below checkpoints/, the newest first."""
    from segskd.runs import list_runs

    table = Table()
    for title in ("run", "state", "data", "student", "method", "mIoU %", "% of teacher"):
        table.add_column(title, overflow="fold")
    rows = [run.summary() for run in list_runs()]
    for row in rows:
        shares = [row["miou"] and 100 * row["miou"], row["percent_of_teacher"]]
        cells = [str(row[key] or "–") for key in ("run", "state", "dataset", "student", "method")]
        table.add_row(*cells, *("–" if share is None else f"{share:.1f}" for share in shares))
    show(table, {"runs": rows}, json)


def demo(out: Path | None = None, data: Path | None = None, quick: bool = False, json: JsonFlag = False) -> None:
    """Train a teacher on the built-in scenes, distill a student from a tenth of them, and show both.

    Args:
        out: Folder below which both runs and the comparison are written (checkpoints/).
        data: Where datasets lie.
        quick: Train on eight small images for one epoch a phase; takes seconds, and the masks are not good.
        json: Print JSON.
    """
    from segskd.api import event_listeners
    from segskd.demo import QUICK, WHOLE, run_demo
    from segskd.runs import runs_folder

    result = run_demo(out or runs_folder(), data, partial(event_listeners, progress=True), QUICK if quick else WHOLE)
    print_result(result, json)
    ERR.print(f"side by side: {result['picture']}", highlight=False, soft_wrap=True)


def _run(recipe: Recipe, run: str | Path | None, until: str | None, json: bool) -> None:
    from segskd import api
    from segskd.distill.training.ranks import is_first

    made = api.distill(recipe, run, until=until, progress=True)
    if is_first():
        print_result(made.result or {"run": str(made.path), "after": until}, json)


COMMANDS = (teach, distill, resume, stop, runs, demo)
