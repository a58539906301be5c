"""`preflight`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import OmitArgPrefixes

from segskd.bars import ERR, stage_bars
from segskd.cli.flags import NO_DISTILL_FLAGS, NO_TEACHER_FLAGS, DistillFlags, JsonFlag, TeacherFlags
from segskd.cli.output import show
from segskd.cli.run_commands import recipe_from_flags
from segskd.errors import ErrorRecord, UserError

if TYPE_CHECKING:
    from segskd.distill.running.preflight import Preflight


def preflight(
    recipe: Path | None = None,
    *,
    file: OmitArgPrefixes[TeacherFlags] = NO_TEACHER_FLAGS,
    settings: OmitArgPrefixes[DistillFlags] = NO_DISTILL_FLAGS,
    json: JsonFlag = False,
) -> None:
    """Measure what a run will need in time, memory and disk, and whether it fits, with one batch of each phase.

    Args:
        recipe: A recipe (YAML); flags override its fields.
    """
    from segskd.devices import out_of_memory
    from segskd.distill.running.preflight import preflight as measure
    from segskd.runs import runs_folder

    try:
        made = recipe_from_flags(recipe, file, settings)
        with stage_bars() as report:
            found = measure(made, runs_folder() / "preflight", report)
    except Exception as error:
        mendable = error if isinstance(error, UserError) else out_of_memory(error)
        if json and mendable:  # a program may want to know which field it is about
            print(dumps(ErrorRecord.of(mendable).as_dict()), flush=True)
        raise
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


def methods(json: JsonFlag = False) -> None:
    """List the methods with their options."""
    from segskd.distill.planning.methods import METHODS, options_of, summary_of

    table = Table("method", "what it does", "options, with their defaults", show_lines=True)
    content = []
    for name in METHODS:
        options = options_of(name)
        lines = [f"{option} {one.default:g}: {one.meaning}" for option, one in options.items()]
        table.add_row(name, summary_of(name), "\n".join(lines))
        plain = {option: {"default": one.default, "meaning": one.meaning} for option, one in options.items()}
        content.append({"method": name, "summary": summary_of(name), "options": plain})
    show(table, {"methods": content}, json)


COMMANDS = (preflight, methods)
