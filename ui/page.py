"""What the tabs share on the page: the tabs themselves, the run that is looked at, and the data that are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

TabName = Literal["start", "data", "distill", "watch", "compare", "runs", "export"]
TITLES: dict[TabName, str] = {
    "start": "Start",
    "data": "Data",
    "distill": "Distill",
    "watch": "Watch",
    "compare": "Compare",
    "runs": "Runs",
    "export": "Export",
}


@dataclass(frozen=True)
class Page:
    """Components that belong to no single tab.

    `run` holds the name of the run that Watch, Compare and Export look at, or "". `choice` holds what the
    Data tab has chosen, as `ui.state.choice.Choice.as_dict` gives it, or None. `cloned` holds the name of the
    run whose recipe the Distill tab shall fill its form with. A tab that needs to know listens to their
    `change`. All live in the browser, hidden, so that they outlive the server; what comes
    from them is no more trusted than any other input.
    """

    tabs: gr.Tabs
    run: gr.Textbox
    choice: gr.JSON
    cloned: gr.Textbox

    @staticmethod
    def go(tab: TabName) -> Any:
        """The value for `tabs` that opens a tab."""
        return gr.Tabs(selected=tab)
