"""The run strip above the tabs: which run trains, how far it is, and buttons that stop and resume it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from typing_extensions import TypedDict

from segskd.errors import UserError
from segskd.events import EVENTS
from segskd.runs import RUN_NAME, STUDY
from segskd.study.folder import StudyFolder

from .components import script_view
from .context import Context
from .handlers import QUIET, open_run, problem_of
from .page import Page
from .state.follow import Followers, RunView

RESUMABLE = ("interrupted", "paused", "failed", "new")
TEMPLATE = '<div class="strip" role="group" aria-label="The run that trains"></div>'
SCRIPTS = ("watch-parts.js", "poll.js", "strip.js")


class StripQuery(TypedDict, total=False):
    """What the strip's script sends."""

    run: str | None
    epoch: bool


def build(context: Context, page: Page, followers: Followers) -> None:
    """Adds the strip to the page."""

    def strip_state(_: StripQuery) -> dict[str, Any]:
        return strip(context, followers)

    def strip_stop(query: StripQuery) -> dict[str, Any]:
        return problem_of(lambda: context.jobs.stop(context.run(query.get("run")).name, bool(query.get("epoch"))))

    def strip_resume(query: StripQuery) -> dict[str, Any]:
        return problem_of(lambda: context.jobs.resume(context.run(query.get("run")).name))

    view = script_view("strip", SCRIPTS, [strip_state, strip_stop, strip_resume], template=TEMPLATE)
    view.look(open_run(context), None, [page.run, page.tabs], **QUIET)


def strip(context: Context, followers: Followers) -> dict[str, Any]:
    """What the strip shows: the run that trains, or else the next one in the queue.

    If there is neither, it shows a study that trains, or else the last run, if that can be resumed. The cells of a
    study are not in this page's list of runs.
    """
    busy = context.jobs.busy()
    waiting = context.jobs.waiting()
    if not (busy or waiting) and (study := _study(context)):
        return {"run": None, "study": study}
    names = [*busy, *waiting] or _last(context)
    view = next((view for name in names if (view := _view(followers, name))), None)
    if view is None or not (view.name in (*busy, *waiting) or view.state in RESUMABLE):
        return {"run": None}
    return {
        "run": view.name,
        "state": view.state,
        "stopping": _stopping(context, view),
        "waiting": len([other for other in waiting if other != view.name]),
        "others": len([other for other in busy if other != view.name]),
        "seconds_left": view.seconds_left,
        "memory": view.memory,
        "share": view.progress.share,
        "stages": len(view.phases),
        "stage": view.progress.stage,
        "doing": view.doing,
    }


def _study(context: Context) -> str | None:
    """The name of a study that trains."""
    folders = (path.parent for path in sorted(context.runs.glob(f"*/{STUDY}")))
    return next((folder.name for folder in folders if StudyFolder(folder).is_alive()), None)


def _view(followers: Followers, name: str) -> RunView | None:
    """The view of a run, None if there is no such run (any more)."""
    try:
        return followers.get(name)
    except UserError:
        return None


def _stopping(context: Context, view: RunView) -> Literal["now", "epoch"] | None:
    """Whether somebody has asked the run to stop, and when."""
    if view.state != "running":
        return None
    run = context.run(view.name)
    if run.stop_requested():
        return "now"
    return "epoch" if run.stop_requested(epoch_over=True) else None


def _last(context: Context) -> list[str]:
    """The name of the run that trained last, if there is one."""
    stamps = []
    for path in context.runs.glob(f"*/{EVENTS}"):
        with suppress(FileNotFoundError):  # deleted just now
            stamps.append((path.stat().st_mtime_ns, path.parent.name))
    names = [name for _, name in sorted(stamps, reverse=True) if RUN_NAME.fullmatch(name)]
    return names[:1]
