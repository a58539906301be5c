"""The Watch tab: a run as it trains, stage by stage, with its masks, curves and log."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..components import asset
from ..context import Context
from ..page import TITLES, Page
from ..server_functions import checked_functions
from ..state.follow import Followers
from ..state.watching import Watching, WatchQuery

SCRIPTS = ("watch-parts.js", "rail.js", "watch-charts.js", "watch-previews.js", "watch.js")
TEMPLATE = asset("watch.html")


def build(context: Context, page: Page, followers: Followers | None = None) -> None:
    """Puts the tab's components where it is called."""
    watching = Watching(context, followers)

    def watch_page(asked: WatchQuery) -> dict[str, Any]:
        return watching.page(asked)

    def watch_curves(asked: WatchQuery) -> dict[str, Any]:
        return watching.curves(asked)

    def watch_previews(asked: WatchQuery) -> dict[str, Any]:
        return watching.previews(asked)

    def watch_log(asked: WatchQuery) -> dict[str, Any]:
        return watching.log(asked)

    def watch_retry(asked: WatchQuery) -> dict[str, Any]:
        return watching.retry(asked)

    view = gr.HTML(
        {"run": ""},
        html_template=TEMPLATE,
        js_on_load="\n".join(asset(name) for name in SCRIPTS),
        server_functions=checked_functions(watch_page, watch_curves, watch_previews, watch_log, watch_retry),
        apply_default_css=False,
        padding=False,
        elem_id="watch",
    )
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.run.change(lambda name: {"run": name}, page.run, view, **quiet)
    view.choose(_chosen, None, page.run, **quiet)
    view.go(_gone, page.run, [page.run, page.tabs], **quiet)
    view.again(_again, None, [page.cloned, page.tabs], **quiet)

    def distill_from(chosen: dict[str, Any] | None, event: gr.EventData) -> tuple[Any, Any]:
        return watching.choice_for(_chosen(event), chosen), page.go("distill")

    view.distill(distill_from, page.choice, [page.choice, page.tabs], **quiet)


def _chosen(event: gr.EventData) -> str:
    """The run that somebody chose; "" follows whatever trains. Everything that uses it checks the name."""
    return str(event._data.get("run") or "")


def _gone(looked_at: str, event: gr.EventData) -> tuple[str, Any]:
    """Opens another tab, and looks at the run whose button was pressed."""
    tab = event._data.get("tab")
    run = str(event._data.get("run") or looked_at)
    return run, Page.go(tab) if tab in TITLES else gr.skip()


def _again(event: gr.EventData) -> tuple[str, Any]:
    """Fills the Distill tab's form with the run's recipe."""
    return _chosen(event), Page.go("distill")
