"""What the tabs share on the page: the tabs themselves, the open run, and the chosen data."""

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

    `run` holds the name of the run that Watch, Compare and Export show, or "". `choice` holds the choice of the Data
    tab, as `ui.state.choice.Choice.as_dict` gives it, or None. `cloned` holds the name of the run whose recipe shall
    fill the form of the Distill tab. Tabs listen to their `change`. All are hidden components in the browser, so they
    outlive the server. Their values are checked like any other input.
    """

    tabs: gr.Tabs
    run: gr.Textbox
    choice: gr.JSON
    cloned: gr.Textbox

    @staticmethod
    def go(tab: TabName) -> Any:
        """The value for `tabs` that opens a tab."""
        return gr.Tabs(selected=tab)
