"""The Export tab: the student as a file, with a certificate of its results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from typing_extensions import TypedDict

from segskd.errors import UserError, in_labels
from segskd.export.formats import FORMATS, Spec
from segskd.runs import Run

from ..components import Notice, notice, script_view, served_file
from ..context import Context
from ..handlers import QUIET, existing_run, open_run, problem_of
from ..page import Page
from ..state.catalogue import Catalogue, Row
from ..state.exports import Exports, as_dict, exported, formats
from ..state.pruned import begin_pruned, pruned_students

SCRIPTS = ("watch-parts.js", "poll.js", "export-prune.js", "export.js")


class ExportQuery(TypedDict, total=False):
    """What the tab's script sends."""

    run: str | None
    format: str
    int8: bool
    pixels: bool
    ratio: float
    whole: bool


def build(context: Context, page: Page, catalogue: Catalogue, exports: Exports) -> None:
    """Adds the tab's components to the page."""

    def export_state(query: ExportQuery) -> dict[str, Any]:
        rows = catalogue.rows()
        choices = _choices(rows)
        name = query.get("run") or (choices[0] if choices else None)
        row = next((row for row in rows if row.name == name), None)
        if row is None:
            return {"runs": choices, "run": None}
        run = Run(context.runs / row.name)
        spec = _spec(query)
        made = exported(run, spec)
        return {
            "runs": choices,
            "run": row.as_dict(),
            "formats": formats(),
            "pruning": pruned_students(row, rows),
            "task": exports.page_status(run, spec),
            "export": as_dict(made) if made else None,
        }

    def export_start(query: ExportQuery) -> dict[str, Any]:
        return problem_of(lambda: exports.start(context.run(query.get("run")), _spec(query)))

    def export_prune(query: ExportQuery) -> dict[str, Any]:
        whole = query.get("whole") is True
        return problem_of(lambda: begin_pruned(context.jobs, context.run(query.get("run")), query.get("ratio"), whole))

    def chosen(event: gr.EventData) -> str:
        return existing_run(context, event._data.get("run"))

    def offer(event: gr.EventData) -> tuple[Any, Any]:
        try:
            return notice(), _offered(context.run(event._data.get("run")), _spec(event._data), save)
        except UserError as error:
            return notice(in_labels(error)), gr.DownloadButton(visible=False)

    with gr.Column(elem_id="export"):
        view = script_view("export-view", SCRIPTS, [export_state, export_start, export_prune])
        problem = Notice()
        save = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="export-save")
    page.run.change(lambda name: {"run": name}, page.run, view, **QUIET)
    view.choose(chosen, None, page.run, **QUIET)
    view.offer(offer, None, [problem, save], **QUIET)
    view.follow(open_run(context), None, [page.run, page.tabs], **QUIET)
    view.go(lambda: page.go("distill"), None, page.tabs, **QUIET)


def _spec(query: Mapping[str, Any]) -> Spec:
    """The export that a script wants. Raises UserError for one that doesn't exist."""
    name = query.get("format", "safetensors")
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"there is no format {str(name)!r}")
    return Spec(name, query.get("int8") is True, query.get("pixels") is True)


def _choices(rows: list[Row]) -> list[str]:
    """Names of the finished runs: first students, then teachers, the newest of each first."""
    done = [row for row in rows if row.state == "finished"]
    return [row.name for row in sorted(done, key=lambda row: row.kind != "distill")]


def _offered(run: Run, spec: Spec, button: gr.DownloadButton) -> Any:
    """The button that downloads the run's export. It is hidden while there is none."""
    made = exported(run, spec)
    if made is None:
        return gr.DownloadButton(visible=False)
    place = served_file(button, made.path.name, lambda target: _linked(made.path, target))
    size = made.certificate.bytes / 1e6
    return gr.DownloadButton(f"Download {made.path.name} ({size:.1f} MB)", value=place, visible=True)


def _linked(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
