"""The Data tab: choose or add a dataset, see what it holds, and pick the images that the student learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from typing_extensions import TypedDict

from segskd.data.cache import cache_folder
from segskd.errors import UserError, in_labels

from ..components import Notice, asset, notice
from ..context import Context
from ..handlers import QUIET
from ..page import Page
from ..server_functions import checked_functions
from ..state.background import Task, Tasks
from ..state.dataset_report import Json
from ..state.datasets import Datasets
from ..state.picker import Picker, read_choice
from ..state.teachers import list_teachers
from ..state.thumbnails import Thumbnails

SCRIPTS = ("data-parts.js", "data-gallery.js", "data-overview.js", "data-subset.js", "data.js")
TEMPLATE = '<div class="sets"></div>@children<div class="view"></div>'
LAYOUTS = {
    "Images and masks": """\
images/      a.jpg  b.jpg
masks/       a.png  b.png

or train/images, train/masks,
   val/images, val/masks""",
    "PASCAL VOC": """\
JPEGImages/         a.jpg
SegmentationClass/  a.png
ImageSets/Segmentation/
             train.txt  val.txt""",
    "CVAT «Segmentation mask»": """\
labelmap.txt
JPEGImages/         a.jpg
SegmentationClass/  a.png
ImageSets/Segmentation/""",
    "Cityscapes": """\
leftImg8bit/train/CITY/
             X_leftImg8bit.png
gtFine/train/CITY/
             X_gtFine_labelIds.png""",
}


class DataQuery(TypedDict, total=False):
    """What the tab's script sends."""

    place: str | None
    choice: Any
    teacher: str | None
    adding: str | None
    what: str
    indices: list[int]
    masks: bool


def build(context: Context, page: Page) -> None:
    """Adds the tab's components to the page."""
    tasks = Tasks()
    datasets = Datasets(context.data, cache_folder(context.runs), tasks)
    picker = Picker(datasets, lambda: list_teachers(context))
    view = gr.HTML(
        {"choice": None},
        html_template=TEMPLATE,
        js_on_load="\n".join(asset(name) for name in SCRIPTS),
        server_functions=checked_functions(*_server_functions(datasets, picker)),
        elem_id="data",
    )
    with view, gr.Accordion("Add a dataset", open=False, elem_id="data-add") as accordion:
        _add_form(datasets, view, accordion)
    _join_choice(view, page)


def _server_functions(datasets: Datasets, picker: Picker) -> list[Callable[[DataQuery], Json]]:
    """The functions that the tab's script calls. They answer with plain data, or with a message under "error"."""
    thumbnails = Thumbnails()

    def data_list(query: DataQuery) -> Json:
        return _answer(lambda: {"tiles": datasets.tiles()})

    def data_open(query: DataQuery) -> Json:
        place = query.get("place")
        return _answer(
            lambda: {
                **datasets.overview(place),
                "teachers": [{"key": teacher.key, "label": teacher.label} for teacher in picker.teachers(str(place))],
            }
        )

    def data_select(query: DataQuery) -> Json:
        return _answer(lambda: picker.select(read_choice(query.get("choice"))))

    def data_thumbnails(query: DataQuery) -> Json:
        def pictures() -> Json:
            opened = datasets.open(query.get("place"))
            pairs = opened.pairs()
            wanted = [index for index in query.get("indices", []) if 0 <= index < len(pairs)]
            urls = thumbnails.page(
                opened.version, opened.card, [pairs[index] for index in wanted], bool(query.get("masks"))
            )
            return {"version": opened.version, "urls": list(zip(wanted, urls, strict=False))}

        return _answer(pictures)

    def data_do(query: DataQuery) -> Json:
        def begin() -> Json:
            place, what = str(query.get("place")), query.get("what")
            if what == "fetch":
                datasets.fetch(place)
            elif what == "ask":
                picker.ask(place, query.get("teacher"))
            elif what == "stop":
                for task in _tasks(datasets, picker, query).values():
                    task.stop()
            return {}

        return _answer(begin)

    def data_poll(query: DataQuery) -> Json:
        return _answer(lambda: {name: task.as_dict() for name, task in _tasks(datasets, picker, query).items()})

    return [data_list, data_open, data_select, data_thumbnails, data_do, data_poll]


def _tasks(datasets: Datasets, picker: Picker, query: DataQuery) -> dict[str, Task]:
    """The tasks of the dataset that a page shows, by kind."""
    place, teacher = str(query.get("place")), query.get("teacher")
    found = {
        "fetch": datasets.tasks.get(f"fetch {place}"),
        "add": datasets.tasks.get(f"add {query.get('adding')}"),
        "read": datasets.reading_task(place),
        "ask": picker.asking(place, teacher) if teacher else None,
    }
    return {name: task for name, task in found.items() if task is not None}


def _answer(give: Callable[[], Json]) -> Json:
    try:
        return give()
    except UserError as error:
        return {"error": in_labels(error)}


def _add_form(datasets: Datasets, view: gr.HTML, opened: gr.Accordion) -> None:
    """The fields that make a dataset of a folder on the server or of an uploaded zip."""
    gr.HTML(_layouts(), js_on_load=None, elem_id="data-layouts")
    with gr.Row():
        with gr.Column(min_width=280):
            archive = gr.File(label="A zip from your computer", type="filepath", height=170, elem_id="data-zip")
        with gr.Column(min_width=280):
            folder = gr.Dropdown(
                label="… or a folder on the server",
                info=f"Folders below {datasets.data} that are not a dataset yet.",
                choices=list(datasets.folders()),
                value=None,
                elem_id="data-folder",
            )
            again = gr.Button("Look again", size="sm", elem_id="data-folders-again")
    with gr.Row():
        name = gr.Textbox(
            label="Name", placeholder="taken from the zip or folder", max_lines=1, min_width=280, elem_id="data-name"
        )
        classes = gr.Textbox(
            label="Names of the classes, in order",
            placeholder="taken from labelmap.txt or classes.txt, else class 0, class 1 …",
            max_lines=1,
            min_width=280,
            elem_id="data-classes",
        )
    problem = Notice(elem_id="data-add-notice")
    add = gr.Button("Add this dataset", variant="primary", elem_id="data-add-button")

    def folders() -> Any:
        return gr.Dropdown(choices=list(datasets.folders()))

    def begin(archive: str | None, folder: str | None, name: str, classes: str) -> tuple[Any, Any]:
        try:
            if archive and folder:
                raise UserError("there is a zip and a folder: remove one of them")
            if not (archive or folder):
                raise UserError("choose a folder, or upload a zip")
            task = (
                datasets.add_archive(Path(archive), name, classes)
                if archive
                else datasets.add_folder(folder, name, classes)
            )
        except UserError as error:
            return notice(in_labels(error)), gr.skip()
        return notice(), {"adding": task.key.removeprefix("add ")}

    add.click(begin, [archive, folder, name, classes], [problem, view], **QUIET)
    again.click(folders, None, folder, **QUIET)
    opened.expand(folders, None, folder, **QUIET)


def _layouts() -> str:
    """The layouts of folders that are recognised, as small trees."""
    trees = "".join(
        f"<figure><figcaption>{name}</figcaption><pre>{tree}</pre></figure>" for name, tree in LAYOUTS.items()
    )
    title = "Each image needs a mask. These layouts are recognised (in a zip one folder may be around them):"
    return f'<p>{title}</p><div class="trees">{trees}</div>'


def _join_choice(view: gr.HTML, page: Page) -> None:
    """Joins the tab with the page's choice: a change of one changes the other."""

    def choose(event: gr.EventData) -> Any:
        try:
            return read_choice(event._data).as_dict()
        except UserError:  # the script shows what is wrong, and the last valid choice stays
            return gr.skip()

    def distill(event: gr.EventData) -> tuple[Any, Any]:
        return choose(event), page.go("distill")

    def show(content: dict[str, Any] | None) -> Json:
        return {"choice": content}

    view.choose(choose, None, page.choice, **QUIET)
    view.distill(distill, None, [page.choice, page.tabs], **QUIET)
    page.choice.change(show, page.choice, view, **QUIET)
