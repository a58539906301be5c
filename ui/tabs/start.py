"""The Start tab: the demo, this machine, and the last runs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from segskd.errors import UserError, in_labels

from ..components import Notice, notice, script_view
from ..context import Context
from ..handlers import QUIET, open_run
from ..page import Page
from ..state.catalogue import Catalogue
from ..state.follow import Followers
from ..state.guide import Guide
from ..state.machine import machine

LAST = 5
SCRIPTS = ("watch-parts.js", "poll.js", "start.js")
WELCOME = """
## Make a segmentation network small enough for its device

A small network learns from your large one, **stage by stage**: encoder blocks, then decoder blocks, then the head
on labels. It needs only a fraction of the images, and you see its masks after every stage.
"""
DEMO = """
### See it work
Trains a teacher and a student on built-in street scenes in about two minutes. Nothing is downloaded.
"""
OWN = """
### Use your own images
Choose your images and a subset of them, then your large network as the teacher.
"""


def build(context: Context, page: Page, followers: Followers, catalogue: Catalogue) -> None:
    """Adds the tab's components to the page."""
    guide = Guide(context.jobs, context.data, followers.get)

    def start_state(_: dict[str, Any]) -> dict[str, Any]:
        rows = [row.as_dict() for row in catalogue.rows()[:LAST]]
        return {"guide": guide.as_dict(), "machine": machine(context.runs), "runs": rows}

    def demo() -> tuple[Any, Any, Any]:
        try:
            return notice(), guide.start(), page.go("compare" if guide.finished else "watch")
        except UserError as error:
            return notice(in_labels(error)), gr.skip(), gr.skip()

    with gr.Column(elem_id="start"):
        gr.Markdown(WELCOME, elem_id="welcome")
        with gr.Row(elem_id="ways", equal_height=True):
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(DEMO)
                demo_button = gr.Button("Run the two-minute demo", variant="primary", elem_id="demo-button")
                problem = Notice()
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(OWN)
                with gr.Row():
                    data_button = gr.Button("Choose the data", size="md", min_width=180)
                    distill_button = gr.Button("Choose teacher and student", size="md", min_width=180)
        view = script_view("start-view", SCRIPTS, [start_state])
    demo_button.click(demo, None, [problem, page.run, page.tabs], **QUIET)
    data_button.click(lambda: page.go("data"), None, page.tabs, **QUIET)
    distill_button.click(lambda: page.go("distill"), None, page.tabs, **QUIET)
    view.look(open_run(context), None, [page.run, page.tabs], **QUIET)
