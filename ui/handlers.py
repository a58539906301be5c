"""What event handlers of several tabs do: answer a script, and open a run in a tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from segskd.errors import UserError, in_labels

from .context import Context
from .page import TITLES, Page

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def problem_of(change: Callable[[], object]) -> dict[str, str | None]:
    """Makes a change. The answer for the script: {"problem": the message of a UserError, or None}."""
    try:
        change()
    except UserError as error:
        return {"problem": in_labels(error)}
    return {"problem": None}


def existing_run(context: Context, name: object) -> str:
    """The name, if this server has a run of that name, else ""."""
    try:
        return context.run(name).name
    except UserError:
        return ""


def open_run(context: Context) -> Callable[[gr.EventData], tuple[Any, Any]]:
    """A handler for an event {"tab", "run"}, which gives values for `page.run` and `page.tabs`.

    An event without a run, or without a tab, leaves the one that is open.
    """

    def values(event: gr.EventData) -> tuple[Any, Any]:
        tab, name = event._data.get("tab"), event._data.get("run")
        run = existing_run(context, name) if name else gr.skip()
        return run, Page.go(tab) if tab in TITLES else gr.skip()

    return values
