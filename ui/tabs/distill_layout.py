"""The layout of the Distill tab, and the server functions of its scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from typing_extensions import TypedDict

from ..components import Notice, asset
from ..context import Context
from ..server_functions import checked_functions
from ..state.preflights import Preflights
from ..state.teachers import list_teachers
from .distill_fields import Fields, other_fields, student_fields, teacher_fields

BEGIN, QUEUE = "Start", "Queue"


class PreflightQuery(TypedDict):
    """The pre-flight that a script asks for, by its key."""

    key: str | None


class Layout:
    """The tab's components."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.preflights = Preflights(context)
        self.fields = Fields()
        self._lay_out()

    def busy(self) -> list[str]:
        """Runs that train, then those that wait."""
        return [*self.context.jobs.busy(), *self.context.jobs.waiting()]

    def verb(self) -> str:
        """The button's word: «Start», or «Queue» while a run trains or waits."""
        return QUEUE if self.busy() else BEGIN

    def _lay_out(self) -> None:
        self.pulse = gr.HTML(
            {},
            html_template="",
            js_on_load=asset("distill-pulse.js"),
            server_functions=checked_functions(self._pulse_function()),
        )
        # The source of the teacher that a person chose. A source that the page proposed is not stored here.
        self.chosen_source = gr.Textbox("", visible="hidden", elem_id="distill-insisted")
        # The time at which the tab was last opened, or at which the choice on Data last changed. One component holds
        # both, so that proposals are made one after the other. Otherwise a second one could replace what somebody
        # chose after the first.
        self.look_time = gr.Textbox("", visible="hidden")
        self.uploaded = gr.State({})
        with gr.Row(elem_id="distill-columns"):
            with gr.Column(scale=3, min_width=300, elem_id="distill-form"):
                self._lay_out_form()
            with gr.Column(scale=2, min_width=300, elem_id="distill-side"):
                self._lay_out_side()

    def _lay_out_form(self) -> None:
        fields = self.fields
        with gr.Column(elem_classes="part"):
            gr.Markdown("### Data")
            with fields.noticed("data"), gr.Row(equal_height=True):
                self.data = gr.HTML(
                    {}, html_template='<p class="data-line">{{value.text}}</p>', js_on_load=None, elem_id="distill-data"
                )
                self.to_data = gr.Button("Choose data", size="sm", scale=0, min_width=130, elem_id="distill-to-data")
        with gr.Column(elem_classes="part"):
            gr.Markdown("### Teacher")
            self.teacher = teacher_fields(fields)
        with gr.Column(elem_classes="part"):
            gr.Markdown("### Student")
            student_fields(fields)
        with gr.Accordion("Advanced", open=False, elem_id="distill-advanced") as self.advanced:
            other_fields(fields, "advanced")

    def _lay_out_side(self) -> None:
        fields = self.fields
        with gr.Column(elem_classes="part"):
            fields.put("name", gr.Textbox, value="", label="Name of the run", max_lines=1, max_length=100)
            with gr.Row():
                self.begin = gr.Button(BEGIN, variant="primary", size="lg", elem_id="distill-start")
            self.unchecked = gr.Button("Start without the check", size="sm", visible=False, elem_id="distill-unchecked")
            fields.notices["form"] = Notice(elem_id="distill-notice")
            self.preflight = self._panel("distill-preflight", [self._state_function(), self._cancel_function()])
        with gr.Column(elem_classes="part"):
            self.plan = self._panel("distill-plan")
        with gr.Accordion("The same as a command and as a recipe", open=False, elem_id="distill-same"):
            self.same = self._panel("distill-recipe")
            with fields.noticed("load"):
                self.load = gr.UploadButton(
                    "Load a recipe …", file_types=[".yaml", ".yml"], size="sm", elem_id="distill-load"
                )

    def _panel(self, name: str, functions: list[Callable[..., Any]] | None = None) -> Any:
        return gr.HTML(
            {},
            html_template='<div class="panel"></div>',
            js_on_load=asset(f"{name}.js"),
            server_functions=checked_functions(*functions) if functions else None,
            elem_id=f"{name}-panel",
        )

    # -- server functions ------------------------------------------------------------------------------

    def _pulse_function(self) -> Callable[..., Any]:
        def distill_pulse(_: dict[str, Any]) -> dict[str, Any]:
            """A value that changes when the list of teachers does, or when training begins or ends."""
            teachers = [(teacher.key, teacher.state) for teacher in list_teachers(self.context)]
            return {"now": [teachers, bool(self.busy())]}

        return distill_pulse

    def _state_function(self) -> Callable[..., Any]:
        def preflight_state(query: PreflightQuery) -> dict[str, Any]:
            return self.preflights.state(str(query["key"]))

        return preflight_state

    def _cancel_function(self) -> Callable[..., Any]:
        def preflight_cancel(query: PreflightQuery) -> dict[str, Any]:
            self.preflights.cancel(str(query["key"]))
            return self.preflights.state(str(query["key"]))

        return preflight_cancel
