"""The page: the run strip, and the tabs below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from segskd.data.cards import list_cards
from segskd.errors import UserError

from . import endpoints
from .components import asset
from .context import Context
from .handlers import QUIET, existing_run
from .page import TITLES, Page, TabName
from .state.catalogue import Catalogue
from .state.exports import Exports
from .state.follow import Followers
from .state.picker import read_choice
from .strip import build as build_strip
from .tabs import compare, data, distill, export, runs, start, watch

SHADE = '<button type="button" id="shade" title="Light or dark" aria-label="light or dark">◐</button>'
CACHE_SECONDS = (3600, 24 * 3600)


def build(context: Context) -> gr.Blocks:
    """The whole page. See docs/architecture.md."""
    blocks: gr.Blocks
    with gr.Blocks(title="SegSKD", analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS) as blocks:
        run = gr.Textbox("", visible="hidden", elem_id="looked-at")
        choice = gr.JSON(None, visible="hidden", elem_id="chosen")
        cloned = gr.Textbox("", visible="hidden", elem_id="cloned")
        followers, exports = Followers(context), Exports(context.runs, context.data)
        catalogue = Catalogue(context.jobs, followers)
        builders: dict[TabName, Callable[[Context, Page], None]] = {
            "start": lambda context, page: start.build(context, page, followers, catalogue),
            "data": data.build,
            "distill": distill.build,
            "watch": lambda context, page: watch.build(context, page, followers),
            "compare": compare.build,
            "runs": lambda context, page: runs.build(context, page, followers, catalogue, exports),
            "export": lambda context, page: export.build(context, page, catalogue, exports),
        }
        with gr.Row(elem_id="head"):
            gr.HTML('<h1 id="brand">SegSKD</h1>', js_on_load=None, padding=False)
            strip_place = gr.Column(elem_id="strip-place")
            gr.HTML(
                html_template=SHADE,
                js_on_load="element.querySelector('button').addEventListener('click', window.segskdShade)",
                apply_default_css=False,
                padding=False,
            )
        with gr.Tabs(elem_id="tabs", selected="start") as tabs:
            page = Page(tabs, run, choice, cloned)
            for name, title in TITLES.items():
                with gr.Tab(title, id=name, elem_id=f"tab-{name}") as tab:
                    builders[name](context, page)
                script = f"() => window.segskdLink({{ tab: '{name}' }})"
                tab.select(None, None, None, js=script, api_visibility="private")
        with strip_place:
            build_strip(context, page, followers)
        _deep_links(blocks, context, page)
        endpoints.build(context)
    return blocks


def _deep_links(blocks: gr.Blocks, context: Context, page: Page) -> None:
    """Opens the run of ?run=NAME and the tab of ?tab=NAME. Keeps the address up to date and stores the choice."""

    def opened(run: str | None, tab: str | None, choice: dict[str, Any] | None) -> tuple[object, object, object]:
        return (
            existing_run(context, run),
            gr.Tabs(selected=tab) if tab in TITLES else gr.skip(),
            _valid_choice(context, choice),
        )

    remembered, places = [page.run, page.cloned, page.choice], [page.run, page.tabs, page.choice]
    loading = blocks.load(opened, remembered, places, js="() => window.segskdOpened()", **QUIET)
    loading.then(None, None, None, js="() => window.segskdLoaded()", api_visibility="private")
    page.run.change(None, page.run, None, js="(run) => window.segskdLink({ run })", api_visibility="private")
    page.choice.change(None, page.choice, None, js="(choice) => window.segskdKeep(choice)", api_visibility="private")


def _valid_choice(context: Context, choice: dict[str, Any] | None) -> dict[str, Any] | None:
    """A choice that the browser stored; None if this server no longer has its dataset."""
    try:
        found = read_choice(choice)
    except UserError:
        return None
    here = any(entry.place == found.card and entry.card for entry in list_cards(context.data))
    return found.as_dict() if choice and here else None


HEAD = f"<script>{asset('page.js')}</script>"


def theme() -> gr.themes.Base:
    """System fonts instead of web fonts, since the page loads nothing from other servers."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    base = gr.themes.Default(
        primary_hue=gr.themes.colors.teal, neutral_hue=gr.themes.colors.slate, font=sans, font_mono=mono
    )
    # Gradio's own shades are too pale. These have a contrast of at least 4.5:1 in both modes.
    return base.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_500",
    )
