"""What the handlers of several tabs do: answer a script, and open a run in a tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from segskd.errors import UserError, in_labels

from .context import Context
from .page import TITLES, Page

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def problem_of(change: Callable[[], object]) -> dict[str, str | None]:
    """What a script is told after a change: {"problem": the UserError's message, or None}."""
    try:
        change()
    except UserError as error:
        return {"problem": in_labels(error)}
    return {"problem": None}


def existing_run(context: Context, name: object) -> str:
    """The name of a run of this server, "" for anything else."""
    try:
        return context.run(name).name
    except UserError:
        return ""


def looked(context: Context, event: gr.EventData) -> tuple[Any, Any]:
    """Values for `page.run` and `page.tabs` after an event {"tab", "run"}; without a run the one looked at stays."""
    tab, name = event._data.get("tab"), event._data.get("run")
    run = existing_run(context, name) if name else gr.skip()
    return run, Page.go(tab) if tab in TITLES else gr.skip()
