"""The fields of the Distill tab, each with room for a message below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from segskd.config import SCHEMA
from segskd.distill.planning.settle import NETWORK_LR
from segskd.models.build import ARCHITECTURES, parse_spec
from segskd.schema import PagePlace, RecipeField

from ..components import Notice
from ..state.form import as_text
from ..state.outline import method_sentences, parameters
from ..state.teachers import WEIGHT_SUFFIXES

STUDENTS = ("resnet10", "resnet14", "resnet20", "resnet26")
OTHER_STUDENTS = (
    *("unet:mobilenet_v2", "unet:tu-mobilenetv3_large_100", "unet:efficientnet-b0", "unet:mit_b0", "unet:resnet18"),
    *("linknet:mobilenet_v2", "fpn:mobilenet_v2", "deeplabv3plus:mobilenet_v2", "segformer:mit_b0"),
)
SIZES = ("96x128", "128x128", "192x256", "256x256", "256x512", "384x512", "512x512", "512x1024", "1024x1024")
TEACHER_ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
TEACHER_SOURCES = [
    ("On this server, or upload it", "known"),
    ("Train one first", "train"),
    ("From a hub", "hub"),
    ("None", "none"),
]
MAX_TEXT, MAX_NUMBER = 400, 20
NUMBER = {"value": "", "max_lines": 1, "max_length": MAX_NUMBER}
"""A box for a number, which may be empty."""
PLACED_ELSEWHERE = ("teacher",)
"""Fields of a recipe that have components of their own."""
NO_FOLDER = ("none", "")


class Fields:
    """Components by field, in the order of the page, and the notices below them."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.notices: dict[str, Any] = {}

    def put(self, name: str, make: Callable[..., Any], **arguments: Any) -> Any:
        """A component with its notice, and with the id distill-NAME."""
        with self.noticed(name):
            self.inputs[name] = make(elem_id=f"distill-{name.replace('_', '-')}", **arguments)
        return self.inputs[name]

    @contextmanager
    def noticed(self, name: str) -> Iterator[None]:
        """Adds the field's notice below the components that are made in this context."""
        with gr.Column(elem_classes="field", min_width=200):
            yield
            self.notices[name] = Notice()


def student_fields(fields: Fields) -> None:
    """Student, method, size, epochs and seed."""
    own = [(f"{name} U-Net · {parameters(f'unet:{name}') / 1e6:.1f} M parameters", f"unet:{name}") for name in STUDENTS]
    others = [(f"{encoder} {_title(arch)}", f"{arch}:{encoder}") for arch, encoder in map(parse_spec, OTHER_STUDENTS)]
    fields.put(
        "student",
        gr.Dropdown,
        choices=[*own, *others],
        value=SCHEMA["student"].default,
        label=SCHEMA["student"].label,
        info=f"{SCHEMA['student'].description}; any architecture and encoder may be typed",
        allow_custom_value=True,
    )
    fields.put(
        "method",
        gr.Dropdown,
        choices=list(method_sentences()),
        value=SCHEMA["method"].default,
        label=SCHEMA["method"].label,
        info=method_sentences()[SCHEMA["method"].default],
        filterable=False,
    )
    with gr.Row():
        fields.put(
            "size",
            gr.Dropdown,
            choices=list(SIZES),
            value=SCHEMA["size"].default,
            label=SCHEMA["size"].label,
            info=SCHEMA["size"].help,
            allow_custom_value=True,
        )
        fields.put(
            "epochs",
            gr.Textbox,
            **NUMBER,
            placeholder="chosen",
            label=SCHEMA["epochs"].label,
            info=f"empty: {SCHEMA['epochs'].empty}",
        )
        fields.put("seed", gr.Number, value=0, precision=None, label=SCHEMA["seed"].label, info=SCHEMA["seed"].help)
    other_fields(fields, "form")


def _title(arch: str) -> str:
    """An architecture's name for people."""
    return "U-Net" if arch == "unet" else ARCHITECTURES[arch].__name__


def teacher_fields(fields: Fields) -> dict[str, Any]:
    """The choice of the teacher's source, and the fields of each source. Returns the groups and the upload's button."""
    fields.put(
        "teacher_from",
        gr.Radio,
        choices=TEACHER_SOURCES,
        value="known",
        show_label=False,
        container=False,
        label="From",
    )
    with gr.Column(elem_classes="bare") as known, fields.noticed("teacher"):
        fields.inputs["known"] = gr.Dropdown(
            choices=[],
            value=None,
            label="Teacher",
            info="runs and models of this server; the student learns its features and masks",
            elem_id="distill-known",
            filterable=False,
        )
        upload, network = _upload()
    with gr.Column(visible=False, elem_classes="bare") as hub:
        info = "OWNER/NAME of a model that segmentation_models_pytorch saved; it is downloaded when it is first needed"
        fields.put("hub", gr.Textbox, value="", label="Hub id", info=info, max_lines=1, max_length=200)
    with gr.Column(visible=False, elem_classes="bare") as train:
        _teach_fields(fields)
        alone = gr.Button("Train the teacher alone", size="sm", elem_id="distill-teach")
    return {"groups": {"known": known, "hub": hub, "train": train}, "upload": (upload, network), "alone": alone}


def _upload() -> tuple[Any, Any]:
    """The button, and a field for the network of an uploaded file of weights."""
    with gr.Row(equal_height=True):
        network = gr.Textbox(
            label="Network of a file of weights",
            info="needed to upload a .pth, .pt, .ckpt or .safetensors file: ARCH:ENCODER",
            placeholder="unet:resnet34, or torchvision's fcn_resnet50",
            elem_id="distill-upload-network",
            max_lines=1,
            max_length=200,
            scale=4,
            min_width=220,
        )
        upload = gr.UploadButton(
            "Upload …",
            file_count="multiple",
            file_types=[".zip", ".json", *WEIGHT_SUFFIXES],
            elem_id="distill-upload",
            size="md",
            scale=1,
            min_width=150,
        )
    return upload, network


def _teach_fields(fields: Fields) -> None:
    gr.Markdown("A large network learns from the labels of **all** training images. Then the student learns from it.")
    with gr.Row():
        fields.put(
            "teach_encoder",
            gr.Dropdown,
            choices=list(TEACHER_ENCODERS),
            value="resnet34",
            label="Teacher's encoder",
            info="of a U-Net; any other, or ARCH:ENCODER, may be typed",
            allow_custom_value=True,
        )
        fields.put(
            "teach_epochs",
            gr.Textbox,
            **NUMBER,
            placeholder="chosen",
            label="Teacher's epochs",
            info="empty: chosen by the number of images",
        )
        fields.put(
            "teach_lr",
            gr.Textbox,
            **NUMBER,
            placeholder=f"{NETWORK_LR:g}",
            label="Teacher's learning rate",
            info=f"empty: {NETWORK_LR:g}, the peak of OneCycle",
        )
    with gr.Row():
        fields.put(
            "teach_weights",
            gr.Dropdown,
            choices=[("none: begin at random", ""), ("imagenet: downloaded from a hub", "imagenet")],
            value="",
            label="Teacher's first weights",
            info=SCHEMA["weights"].description,
            filterable=False,
        )
        fields.put(
            "teach_snapshots",
            gr.Textbox,
            **NUMBER,
            placeholder="none",
            label="Snapshots",
            info=SCHEMA["snapshots"].help,
        )
        fields.put("teach_name", gr.Textbox, value="", label="Name of the teacher's run", max_lines=1, max_length=100)


def other_fields(fields: Fields, place: PagePlace) -> None:
    """The schema's fields with this place that have no component yet: texts, then lists, then boxes."""
    left = [field for field in SCHEMA if field.place == place and field.name not in {*fields.inputs, *PLACED_ELSEWHERE}]
    for group in _in_twos(sorted(left, key=_widget)):
        with gr.Row():
            for field in group:
                _put(fields, field)


def _widget(field: RecipeField) -> int:
    return 2 if field.kind is bool else 1 if field.choices or field.name == "unlabelled" else 0


def _put(fields: Fields, field: RecipeField) -> None:
    """A component for a field of the recipe, chosen by the kind of its value."""
    title = {"label": field.label, "info": field.help}
    if field.name == "unlabelled":
        fields.put(field.name, gr.Dropdown, choices=[NO_FOLDER], value="", filterable=False, **title)
    elif field.choices:
        fields.put(field.name, gr.Dropdown, choices=field.choices, value=field.default, filterable=False, **title)
    elif field.display and field.display.suggestions:
        choices = [("by default", ""), *field.display.suggestions]
        fields.put(field.name, gr.Dropdown, choices=choices, value="", allow_custom_value=True, **title)
    elif field.kind is bool:
        fields.put(field.name, gr.Checkbox, value=field.default, **title)
    else:
        value = "" if isinstance(field.default, dict) else as_text(field.default)
        longest = MAX_NUMBER if field.kind in (int, float) else MAX_TEXT
        arguments = {"value": value, "placeholder": field.empty, "max_lines": 1, "max_length": longest, **title}
        fields.put(field.name, gr.Textbox, **arguments)


def _in_twos(items: list[RecipeField]) -> Iterator[list[RecipeField]]:
    for start in range(0, len(items), 2):
        yield items[start : start + 2]
