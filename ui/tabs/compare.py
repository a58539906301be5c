"""The Compare tab: teacher and student on the same images, one zoom and one cursor for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from typing_extensions import TypedDict

from segskd.errors import UserError, in_labels
from segskd.evaluate.sidebyside import NATIVE_SIDE

from ..components import Notice, notice, script_view
from ..context import Context
from ..handlers import QUIET, open_run
from ..page import Page
from ..state.comparing import Comparisons, NotOpen

# One script in several files, in this order.
SCRIPTS = (
    "viewer.js",
    "compare-parts.js",
    "compare-tables.js",
    "compare-stages.js",
    "compare-page.js",
    "compare-paint.js",
    "compare-images.js",
    "compare.js",
)
# A link with an image but without a tab opens this tab once, since Gradio draws a tab only when it is opened. The
# script reads the first address of the page, because the present one may already name a tab.
LINKED = """() => {
  const query = new URL(performance.getEntriesByType("navigation")[0].name).searchParams;
  const first = !window.segskdCompareLinked;
  window.segskdCompareLinked = true;
  return first && query.get("image") && !query.get("tab") ? "compare" : "";
}"""
OWN = (
    "Upload a photograph and see the masks of both networks. There is no truth to compare them with. It is resized to "
    f"the run's size. Its own resolution (up to {NATIVE_SIDE:,} pixels a side) suits networks that were trained on "
    "pieces of large images."
)
CompareQuery = TypedDict(
    "CompareQuery",
    {
        "run": str | None,
        "image": str | None,
        "images": list[str],
        "upload": str | None,
        "class": str | None,
        "stage": str,
        "epochs": Any,
        "again": bool,
        "begin": bool,
    },
    total=False,
)
Answer = dict[str, Any]


def build(context: Context, page: Page) -> None:
    """Adds the tab's components to the page."""
    comparisons = Comparisons(context)
    with gr.Column(elem_id="compare"):
        view = script_view("compare-view", SCRIPTS, _server_functions(comparisons), value={"run": "", "upload": None})
        with gr.Row(elem_id="compare-upload", equal_height=True):
            own = gr.UploadButton("Try your own image", elem_id="compare-own", type="filepath", scale=0, min_width=240)
            native = gr.Checkbox(
                label="At its own resolution, by tiles",
                elem_id="compare-native",
                container=False,
                scale=0,
                min_width=260,
            )
            problem = Notice(OWN, "hint")

    def upload(path: str | None, run: str, whole: bool) -> tuple[Any, Any]:
        if not path:
            return gr.skip(), gr.skip()
        try:
            return {"run": run, "upload": comparisons.upload(run, Path(path), whole)}, notice(OWN, "hint")
        except UserError as error:
            return gr.skip(), notice(in_labels(error))

    def linked(tab: str) -> Any:
        return page.go("compare") if tab == "compare" else gr.skip()

    def toggled(path: str | None, run: str, whole: bool, shown: dict[str, Any]) -> tuple[Any, Any]:
        """Shows the uploaded image again, if it is shown now."""
        return upload(path, run, whole) if shown.get("upload") and shown["run"] == run else (gr.skip(), gr.skip())

    # One picture at a time, since a large one takes seconds and memory. The last request is the one that is shown.
    last: dict[str, Any] = {
        "outputs": [view, problem],
        "api_visibility": "private",
        "trigger_mode": "always_last",
        "concurrency_id": "compare-own",
        "show_progress_on": problem,
        "concurrency_limit": 1,
    }
    own.upload(upload, [own, page.run, native], **last)
    native.input(toggled, [own, page.run, native, view], **last)
    view.look(open_run(context), None, [page.run, page.tabs], **QUIET)
    page.run.change(None, page.run, view, js="(run) => ({ run, upload: null })", **QUIET)
    page.run.change(linked, page.run, page.tabs, js=LINKED, **QUIET)


def _server_functions(comparisons: Comparisons) -> list[Callable[[CompareQuery], Answer]]:
    """The functions that the tab's script calls. An answer may be a "problem"."""

    def compare_runs(query: CompareQuery) -> Answer:
        return {"runs": comparisons.runs(), "relatives": comparisons.relatives(query.get("run"))}

    def compare_open(query: CompareQuery) -> Answer:
        return comparisons.state(query.get("run"), bool(query.get("again")))

    def compare_frame(query: CompareQuery) -> Answer:
        if query.get("upload"):
            return _answer_or_problem(lambda: comparisons.uploaded(str(query["upload"])))
        return _answer_or_problem(lambda: comparisons.frame(query.get("run"), str(query.get("image"))))

    def compare_stages(query: CompareQuery) -> Answer:
        return _answer_or_problem(lambda: comparisons.stages(query.get("run"), str(query.get("image"))))

    def compare_gaps(query: CompareQuery) -> Answer:
        return _answer_or_problem(lambda: {"images": comparisons.gaps(query.get("run"), query.get("class"))})

    def compare_thumbnails(query: CompareQuery) -> Answer:
        return _answer_or_problem(
            lambda: {"pictures": comparisons.thumbnails(query.get("run"), query.get("images", []))}
        )

    def compare_shares(query: CompareQuery) -> Answer:
        return _answer_or_problem(lambda: comparisons.shares(query.get("run"), bool(query.get("begin"))))

    def compare_stop(query: CompareQuery) -> Answer:
        return _answer_or_problem(lambda: comparisons.stop_shares(query.get("run")))

    def compare_retrain(query: CompareQuery) -> Answer:
        branch = (query.get("run"), str(query.get("stage")), query.get("epochs"))
        return _answer_or_problem(lambda: {"run": comparisons.retrain(*branch)})

    return [
        compare_runs,
        compare_open,
        compare_frame,
        compare_stages,
        compare_gaps,
        compare_thumbnails,
        compare_shares,
        compare_stop,
        compare_retrain,
    ]


def _answer_or_problem(find: Callable[[], Answer]) -> Answer:
    try:
        return find()
    except NotOpen:
        return {"closed": True}
    except UserError as error:
        return {"problem": in_labels(error)}
