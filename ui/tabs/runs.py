"""The Runs tab: every run of this server with its figures and actions; and the studies."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import gradio as gr
from typing_extensions import TypedDict

from segskd import run_admin
from segskd.errors import UserError, in_labels
from segskd.runs import Run

from ..components import Notice, notice, script_view, served_file
from ..context import Context
from ..handlers import QUIET, existing_run, open_run, problem_of
from ..page import Page
from ..state.catalogue import Catalogue
from ..state.exports import Exports
from ..state.follow import Followers
from ..state.run_zip import write_zip
from ..state.studies import Studies

SCRIPTS = (
    *("watch-parts.js", "poll.js", "runs-plots.js", "runs-panel.js"),
    *("runs-studies-curve.js", "runs-studies-table.js", "runs-studies.js", "runs.js"),
)
MOST_CURVES = 12


class RunsQuery(TypedDict, total=False):
    """What the tab's script sends."""

    run: str | None
    runs: list[str]
    name: str
    note: str
    study: str
    file: str
    seen: dict[str, str]


def build(context: Context, page: Page, followers: Followers, catalogue: Catalogue, exports: Exports) -> None:
    """Adds the tab's components to the page."""
    studies = Studies(context)

    def deletable(name: object) -> Run:
        """A run whose folder may be renamed or deleted. Raises UserError for others."""
        run = _unused_run(context, exports, name)
        studies.check_unneeded(run)
        return run

    def runs_rows(_: RunsQuery) -> list[dict[str, Any]]:
        return [row.as_dict() for row in catalogue.rows()]

    def runs_curves(query: RunsQuery) -> list[dict[str, Any]]:
        names = [name for name in query.get("runs", [])[:MOST_CURVES] if existing_run(context, name)]
        return [_curve(followers, name) for name in names]

    def runs_rename(query: RunsQuery) -> dict[str, Any]:
        return problem_of(lambda: run_admin.rename(deletable(query.get("run")), query.get("name", "")))

    def runs_note(query: RunsQuery) -> dict[str, Any]:
        return problem_of(lambda: run_admin.write_note(context.run(query.get("run")), query.get("note", "")))

    def runs_delete(query: RunsQuery) -> dict[str, Any]:
        return problem_of(lambda: run_admin.delete(deletable(query.get("run"))))

    def runs_resume(query: RunsQuery) -> dict[str, Any]:
        return problem_of(lambda: context.jobs.resume(context.run(query.get("run")).name))

    def runs_stop(query: RunsQuery) -> dict[str, Any]:
        return problem_of(lambda: context.jobs.stop(context.run(query.get("run")).name))

    def runs_studies(query: RunsQuery) -> dict[str, Any]:
        return studies.answer(query.get("seen"))

    def runs_file(query: RunsQuery) -> dict[str, str | None]:
        try:
            content = studies.content(query.get("study"), query.get("file"))
        except UserError as error:
            return {"problem": in_labels(error)}
        return {"problem": None, "base64": b64encode(content).decode()}

    def moved(looked_at: str, event: gr.EventData) -> Any:
        """If the open run was renamed, it stays open. If it was deleted, none is open."""
        return existing_run(context, event._data.get("after")) if looked_at == event._data.get("before") else gr.skip()

    def clone(event: gr.EventData) -> tuple[Any, Any, Any]:
        try:
            return notice(), context.run(event._data.get("run")).name, page.go("distill")
        except UserError as error:
            return notice(in_labels(error)), gr.skip(), gr.skip()

    def pack(event: gr.EventData) -> tuple[Any, Any]:
        try:
            run = context.run(event._data.get("run"))
            file = served_file(download, f"{run.name}.zip", lambda target: write_zip(run, target))
        except UserError as error:
            return notice(in_labels(error)), gr.skip()
        return notice(), gr.DownloadButton(Path(file).parent.name, value=file)  # the script waits for the new label

    with gr.Column(elem_id="runs"):
        problem = Notice()
        download = gr.DownloadButton("", visible="hidden", elem_id="runs-save")
        changes = (runs_rename, runs_note, runs_delete, runs_resume, runs_stop)
        view = script_view("runs-view", SCRIPTS, [runs_rows, runs_curves, *changes, runs_studies, runs_file])
    view.look(open_run(context), None, [page.run, page.tabs], **QUIET)
    view.moved(moved, page.run, page.run, **QUIET)
    view.clone(clone, None, [problem, page.cloned, page.tabs], **QUIET)
    packed = view.pack(pack, None, [problem, download], **QUIET)
    packed.then(None, None, None, js="() => window.segskdPacked?.()", api_visibility="private")


def _unused_run(context: Context, exports: Exports, name: object) -> Run:
    """A run that doesn't wait, start or get exported. Raises UserError for others."""
    run = context.run(name)
    state = context.jobs.state(run.name)
    if state == "waiting":
        raise UserError(f"run {run.name} is in the queue: take it out first")
    if state == "starting":
        raise UserError(f"run {run.name} is starting: wait a moment, or stop it")
    exports.check_idle(run)
    return run


def _curve(followers: Followers, name: str) -> dict[str, Any]:
    """A run's figures by phase, for plots of several runs."""
    view = followers.get(name)
    phases = [
        {"phase": phase.name, "loss": phase.loss, "graft_miou": phase.graft_miou}
        for phase in view.phases
        if phase.state == "done"
    ]
    return {"name": view.name, "teacher_miou": view.teacher_miou, "phases": phases}
