"""`preflight`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from tyro.conf import OmitArgPrefixes, UseAppendAction

from segskd.bars import ERR, stage_bars
from segskd.cli.flags import (
    NO_DATA_FLAGS,
    NO_TEACHER_FLAGS,
    NO_TRAIN_FLAGS,
    DataFlags,
    Json,
    TeacherFlags,
    TrainFlags,
    teacher_place,
)
from segskd.cli.output import show
from segskd.cli.run_commands import asked_recipe

if TYPE_CHECKING:
    from segskd.distill.running.preflight import Preflight


def preflight(
    recipe: Path | None = None,
    teacher: str | None = None,
    student: str | None = None,
    init: Literal["random", "teacher"] | None = None,
    method: str | None = None,
    option: UseAppendAction[tuple[tuple[str, float], ...]] = (),
    *,
    file: OmitArgPrefixes[TeacherFlags] = NO_TEACHER_FLAGS,
    data: OmitArgPrefixes[DataFlags] = NO_DATA_FLAGS,
    train: OmitArgPrefixes[TrainFlags] = NO_TRAIN_FLAGS,
    json: Json = False,
) -> None:
    """Say what a run will take in time, memory and disk, and whether it fits, from a batch through each phase.

    Args:
        recipe: A recipe (YAML); flags given beside it override it.
        teacher: A folder with config.json and weights, a run, a hub id, or a file of weights with --arch and --encoder.
        student: ARCH:ENCODER of the student (unet:resnet10).
        init: The student's first weights: the teacher's where stage, name and shape agree, or random (teacher).
        method: stagewise (by default), simultaneous, fitnets, hinton, supervised, blockwise, attention, fsp,
            channelwise, hdkd, dearkd or multi_teacher_gan.
        option: An option of the method and its value, such as temperature 2; may be given again for another.
    """
    from segskd.distill.running.preflight import preflight as fly
    from segskd.runs import runs_folder

    flags: dict[str, object] = {"student": student, "init": init, "method": method, "options": dict(option)}
    flags |= {"teacher": teacher_place(teacher, file), "trust_teacher": file.trust_teacher}
    made = asked_recipe(recipe, flags, data, train)
    with stage_bars() as report:
        found = fly(made, runs_folder() / "preflight", report)
    show(_table(found), found.as_dict(), json)
    if found.problem:
        ERR.print(found.problem, highlight=False, soft_wrap=True)


def _table(found: Preflight) -> Table:
    table = Table("", "needed", "free", title=f"on {found.device} ({found.precision})")
    table.add_row("memory GiB", _gib(found.memory_bytes), _gib(found.free_memory))
    table.add_row("disk GiB", _gib(found.disk_bytes), _gib(found.free_disk))
    table.add_row("images a step", str(found.batch), f"{found.largest_batch} would fit")
    if found.store:
        table.add_row("feature store GiB", f"{_gib(found.store_bytes)} in {found.views} views ({found.store})", "")
    table.add_section()
    for phase in found.phases:
        table.add_row(phase["phase"], f"{phase['seconds']:.1f} s", "")
    if found.seconds is not None:
        table.add_row("in all, with evaluations", f"{found.seconds:.0f} s", "")
    return table


def _gib(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f}"


COMMANDS = (preflight,)
