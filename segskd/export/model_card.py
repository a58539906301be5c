"""What a package says of its network: card.json for programs, README.md for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn

from segskd.config import Recipe, Size
from segskd.data.cards import Card
from segskd.data.transforms import RESIZE_FILTER, SIZE_MULTIPLE
from segskd.errors import plural
from segskd.export.certificate import LEAST_SIDE, Certificate
from segskd.export.formats import FORMATS, Spec
from segskd.models.build import describe, digest

PACKAGES = ("segskd", "torch", "segmentation-models-pytorch")
CHANNEL_ORDERS = {1: "grey", 3: "RGB", 4: "RGB and a fourth band"}
"""The order of an image's channels, by their number."""


def package_info(
    spec: Spec, model: nn.Module, card: Card, recipe: Recipe, result: dict[str, Any], only: Size | None
) -> dict[str, Any]:
    """The content of card.json and of a file's metadata: the classes, and how an image becomes the network's input.

    `only` is the (height, width) of images where the file takes no other.
    """
    config: dict[str, Any] = cast(Any, model).config
    return {
        "name": card.name,
        "title": card.title,
        "licence": card.licence,
        "classes": [{"name": entry.name, "color": list(entry.color)} for entry in card.classes],
        "ignore_index": card.ignore_index,
        "input": "uint8" if spec.pixels else "float32",
        "layout": "NHWC" if spec.pixels else "NCHW",
        "channels": card.channels,
        "channel_order": CHANNEL_ORDERS[card.channels],
        "white": card.white,
        "mean": list(card.mean),
        "std": list(card.std),
        "size": list(recipe.data.size),
        "only_size": list(only) if only else None,
        "size_multiple": 1 if spec.pixels else SIZE_MULTIPLE,
        "least_side": LEAST_SIDE,
        "resize": RESIZE_FILTER,
        "output": "logits, classes on axis 1" + ("; mask, the class of each pixel" if spec.pixels else ""),
        "network": describe(model),
        "encoder": config.get("encoder_name"),
        "precision": "int8" if spec.int8 else "float32",
        "weights_sha256": digest(model),
        "miou_of_checkpoint": result["miou"],
        "runtime_settings": spec.settings,
        "versions": result["versions"] | spec.versions(),
    }


def model_card(card: Card, result: dict[str, Any], proof: Certificate) -> str:
    """The package's README.md. `result` is the content of the run's result.json."""
    student, teacher = result["student"], result["teacher"]
    height, width = result["size"]
    share_kept = (
        f" It keeps {result['percent_of_teacher']:.1f} % of its teacher's mIoU." if result["percent_of_teacher"] else ""
    )
    kind = FORMATS[proof.format]
    return f"""# {proof.run}

A segmentation network ({student["network"]}) for {len(card.classes)} classes of {_plain(card.title)}, trained on
{result["images"]} images at {height}x{width} with SegSKD.{share_kept}

{_figures([student, teacher] if teacher else [student])}

Classes, in the order of the mask's values: {", ".join(_plain(name) for name in card.class_names)}.
{_licence(card)}
## How to run it

The network is {" and ".join(f"`{name}`" for name in kind.files)}: {kind.title}.{_narrow(proof, student)}
`predict.py` needs that runtime, NumPy, Pillow and the `bands.py` beside it, and nothing else:

```
pip install numpy pillow {" ".join(kind.packages)}
python predict.py image.png
```

It writes `image_mask.png`. To do the same in your own program: {_input(proof, card)} `card.json` holds all
these figures, the classes and their colours (RGB).

## What was proved

A new process opened the file by its own runtime, through this `predict.py`. Its outputs were compared with the
checkpoint's:

{_proofs(proof)}

`certificate.json` holds all of this, `recipe.yaml` all settings of the training, and `result.json` its figures.
"""


def _input(proof: Certificate, card: Card) -> str:
    shape = f"{card.channels}), {CHANNEL_ORDERS[card.channels]}"
    white = "the largest value of the file's type, 255 or 65535" if card.white is None else f"`white`, {card.white}"
    resize = "resize the image to `size` (`resize` says how)" + (
        ", which is the only size that it takes" if proof.only_size else ""
    )
    if proof.input == "uint8":
        given = f"{resize}, and give it as `image`, uint8, (1, height, width, {shape}."
        return f"{given} The outputs are `logits` and `mask`."
    return (
        f"{resize}, divide by {white}, subtract `mean`, divide by `std`, pad with zeros at the bottom and right to "
        f"multiples of `size_multiple`, and give it as float32, (1, {card.channels}, height, width), "
        f"{CHANNEL_ORDERS[card.channels]}. The output is `logits`."
    )


def _narrow(proof: Certificate, student: dict[str, Any]) -> str:
    if FORMATS[proof.format].traced or not student.get("pruning_ratio"):
        return ""
    return (
        f" It has {100 * student['pruning_ratio']:g} % fewer channels than `config.json` says, so "
        "`segmentation_models_pytorch.from_pretrained` refuses it. `narrow.load(folder)` of `narrow.py` loads it."
    )


def _proofs(proof: Certificate) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in proof.sizes)
    rows = {
        "pixels of another class": f"{proof.pixels_differing} of {proof.pixels} ({100 * proof.share_differing:.3g} %)",
        "images": f"{proof.images} of the validation split, a few of them also at other sizes ({sizes})"
        if len(proof.sizes) > 1
        else f"{proof.images} of the validation split ({sizes})",
        "difference of logits": f"{proof.max_logit_difference:.2g} at most, {proof.mean_logit_difference:.2g} on "
        f"average (largest logit {proof.largest_logit:.3g})",
        "mIoU on these images": f"{100 * proof.miou_before:.2f} % before, {100 * proof.miou_after:.2f} % after",
        "size of the network": f"{proof.model_bytes / 1e6:.1f} MB",
        **dict(_latency_rows(proof)),
    }
    if own := proof.quantization:
        rows["INT8"] = f"calibrated on {own['images']} training images; in float: {', '.join(own['floats']) or 'none'}"
    return _table([["", "measured"], *([name, text] for name, text in rows.items())])


def _latency_rows(proof: Certificate) -> Iterator[tuple[str, str]]:
    if not (own := proof.latency):
        return
    height, width = own["size"]
    where = f"one image of {height}x{width}, {plural(own['threads'], 'thread')}, median of {own['repeats']} turns"
    yield "latency", f"{own['export_ms']:.1f} ms ({where})"
    if own["no_teacher"]:
        yield "the teacher was not timed", _plain(own["no_teacher"])
    for who in ("teacher", "student"):
        if ratio := own[f"than_{who}"]:
            low, middle, high = ratio
            yield f"faster than the {who} in eager PyTorch", f"{middle:.1f} × (quartiles {low:.1f} to {high:.1f})"


def _figures(networks: list[dict[str, Any]]) -> str:
    """A Markdown table with a column for each network. The student comes first."""
    heads = [f"{who}{network['network']}" for who, network in zip(("", "its teacher, "), networks, strict=False)]
    return _table([["", *heads], *([title, *map(text, networks)] for title, text in _ROWS.items())])


def _table(rows: list[list[str]]) -> str:
    """A Markdown table whose first row is the heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mIoU on the validation images": lambda network: f"{100 * network['miou']:.1f} %",
    "pixel accuracy": lambda network: f"{100 * network['pixel_accuracy']:.1f} %",
    "parameters": lambda network: f"{network['parameters'] / 1e6:.2f} M",
    "multiply-accumulates an image": lambda network: f"{network['gmacs']:.2f} G",
}


def _licence(card: Card) -> str:
    return f"\nThe data's licence: {_plain(card.licence)}\n" if card.licence else ""


def _plain(text: str) -> str:
    """A title or class name, with the characters escaped that mean something in Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))
