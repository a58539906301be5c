"""How the page's components and handlers are joined."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from ui.context import Context


def test_proposals_are_made_one_after_the_other(context: Context, built: Callable[[Context], gr.Blocks]) -> None:
    """The tab is opened and Data's choice arrives at once: two answers, the later laid over what was chosen between."""
    proposing = [function for function in built(context).fns.values() if function.name == "_adopted"]
    assert [(len(function.targets), function.trigger_mode) for function in proposing] == [(1, "always_last")]
