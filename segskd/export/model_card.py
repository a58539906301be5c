"""The page that goes into every package: what the network is, its figures, what was proved, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from segskd.data.cards import Card
from segskd.export.certificate import Certificate
from segskd.export.formats import FORMATS, ORDERS


def model_card(card: Card, result: dict[str, Any], proof: Certificate) -> str:
    """Markdown. `result` is the run's result.json."""
    student, teacher = result["student"], result["teacher"]
    height, width = result["size"]
    kept = (
        f" It keeps {result['percent_of_teacher']:.1f} % of its teacher's mIoU." if result["percent_of_teacher"] else ""
    )
    kind = FORMATS[proof.format]  # type: ignore[index]
    return f"""# {proof.run}

A segmentation network ({student["network"]}) for {len(card.classes)} classes of {_plain(card.title)}, trained on
{result["images"]} images at {height}x{width} with SegSKD.{kept}

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

The file was opened in a fresh process by its own runtime, through this `predict.py`, and compared with the checkpoint:

{_proofs(proof)}

`certificate.json` holds all of it, `recipe.yaml` is the whole cause of the network, `result.json` its figures.
"""


def _input(proof: Certificate, card: Card) -> str:
    shape = f"{card.channels}), {ORDERS[card.channels]}"
    white = "the largest value of the file's type, 255 or 65535" if card.white is None else f"`white`, {card.white}"
    resize = "resize the image to `size` (`resize` says how)" + (
        ", the only one that it takes" if proof.only_size else ""
    )
    if proof.input == "uint8":
        return f"{resize}, and put in `image`, uint8, (1, height, width, {shape}; out come `logits` and `mask`."
    return (
        f"{resize}, divide by {white}, subtract `mean`, divide by `std`, pad with zeros at the bottom and right to "
        f"multiples of `size_multiple`, and put in float32, (1, {card.channels}, height, width), "
        f"{ORDERS[card.channels]}; out come logits."
    )


def _narrow(proof: Certificate, student: dict[str, Any]) -> str:
    if proof.format != "safetensors" or not student.get("pruning_ratio"):
        return ""
    return (
        f" It has {100 * student['pruning_ratio']:g} % fewer channels than `config.json` says, so "
        "`segmentation_models_pytorch.from_pretrained` refuses it: `narrow.load(folder)` of `narrow.py` builds it."
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
    where = f"one image of {height}x{width}, {_threads(own['threads'])}, median of {own['repeats']} turns"
    yield "latency", f"{own['export_ms']:.1f} ms ({where})"
    if own["no_teacher"]:
        yield "the teacher was not timed", _plain(own["no_teacher"])
    for who in ("teacher", "student"):
        if ratio := own[f"than_{who}"]:
            low, middle, high = ratio
            yield f"faster than the {who} in eager PyTorch", f"{middle:.1f} × (quartiles {low:.1f} to {high:.1f})"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _figures(networks: list[dict[str, Any]]) -> str:
    """A table with a column for each network, the student first."""
    heads = [f"{who}{network['network']}" for who, network in zip(("", "its teacher, "), networks, strict=False)]
    return _table([["", *heads], *([title, *map(text, networks)] for title, text in _ROWS.items())])


def _table(rows: list[list[str]]) -> str:
    """Markdown, the first row being the head."""
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
    """A title or class name without what Markdown would take for markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))
