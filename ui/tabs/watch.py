"""The Watch tab: a run as it trains, stage by stage, with its masks, curves and log."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..components import asset, script_view
from ..context import Context
from ..handlers import QUIET, open_run
from ..page import Page
from ..state.follow import Followers
from ..state.watching import Watching, WatchQuery

SCRIPTS = ("watch-parts.js", "rail.js", "watch-charts.js", "watch-previews.js", "watch.js")
TEMPLATE = asset("watch.html")


def build(context: Context, page: Page, followers: Followers | None = None) -> None:
    """Adds the tab's components to the page."""
    watching = Watching(context, followers)

    def watch_page(query: WatchQuery) -> dict[str, Any]:
        return watching.page(query)

    def watch_curves(query: WatchQuery) -> dict[str, Any]:
        return watching.curves(query)

    def watch_previews(query: WatchQuery) -> dict[str, Any]:
        return watching.previews(query)

    def watch_log(query: WatchQuery) -> dict[str, Any]:
        return watching.log(query)

    def watch_retry(query: WatchQuery) -> dict[str, Any]:
        return watching.retry(query)

    functions = (watch_page, watch_curves, watch_previews, watch_log, watch_retry)
    view = script_view("watch", SCRIPTS, functions, value={"run": ""}, template=TEMPLATE)
    page.run.change(lambda name: {"run": name}, page.run, view, **QUIET)
    view.choose(_chosen, None, page.run, **QUIET)
    view.go(open_run(context), None, [page.run, page.tabs], **QUIET)
    view.again(_clone, None, [page.cloned, page.tabs], **QUIET)

    def distill_from(chosen: dict[str, Any] | None, event: gr.EventData) -> tuple[Any, Any]:
        return watching.choice_for(_chosen(event), chosen), page.go("distill")

    view.distill(distill_from, page.choice, [page.choice, page.tabs], **QUIET)


def _chosen(event: gr.EventData) -> str:
    """The run that a person chose. "" stands for the run that trains. Whatever uses the name checks it."""
    return str(event._data.get("run") or "")


def _clone(event: gr.EventData) -> tuple[str, Any]:
    """Opens the Distill tab with the run's recipe in its form."""
    return _chosen(event), Page.go("distill")
