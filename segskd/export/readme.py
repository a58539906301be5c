"""The page that goes into every package: what it is, its figures, and how to use it without SegSKD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segskd.data.cards import Card

USE = """import json

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch

card = json.load(open("card.json"))
height, width = card["size"]
model = smp.from_pretrained(".").eval()

image = cv2.cvtColor(cv2.imread("image.png"), cv2.COLOR_BGR2RGB)
smaller = height < image.shape[0] or width < image.shape[1]
shrunk = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
pixels = torch.tensor((shrunk / 255 - card["mean"]) / card["std"]).float().permute(2, 0, 1)[None]
multiple = card["size_multiple"]
padded = torch.nn.functional.pad(pixels, (0, -width % multiple, 0, -height % multiple))
with torch.inference_mode():
    logits = model(padded)[:, : len(card["classes"]), :height, :width]
mask = logits.argmax(1)[0].numpy().astype(np.uint8)  # (height, width), values are places in card["classes"]

cv2.imwrite("mask.png", mask)
"""


def readme(card: Card, result: dict[str, Any], name: str) -> str:
    """Markdown. `result` is the run's result.json."""
    student, teacher = result["student"], result["teacher"]
    height, width = result["size"]
    kept = f" It keeps {result['percent_of_teacher']:.1f} % of its teacher's mIoU." if teacher else ""
    return f"""# {name}

A segmentation network ({student["network"]}) for {len(card.classes)} classes of {_plain(card.title)}, trained on
{result["images"]} images at {height}x{width} with SegSKD.{kept}

{_figures([student, teacher] if teacher else [student])}

Classes, in the order of the mask's values: {", ".join(_plain(name) for name in card.class_names)}.

## Use

`config.json` and `model.safetensors` load with `segmentation_models_pytorch`; `card.json` holds the classes, their
colours (RGB) and what is done to an image before the network sees it. In this folder, with an `image.png` in it:

```python
{USE}```

`recipe.yaml` is the whole cause of the network, `result.json` all its figures.
"""


def _figures(networks: list[dict[str, Any]]) -> str:
    """A table with a column for each network, the student first."""
    heads = [f"{who}{network['network']}" for who, network in zip(("", "its teacher, "), networks, strict=False)]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    lines += [[title, *(text(network) for network in networks)] for title, text in _ROWS.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mIoU on the validation images": lambda network: f"{100 * network['miou']:.1f} %",
    "pixel accuracy": lambda network: f"{100 * network['pixel_accuracy']:.1f} %",
    "parameters": lambda network: f"{network['parameters'] / 1e6:.2f} M",
    "multiply-accumulates an image": lambda network: f"{network['gmacs']:.2f} G",
}


def _plain(text: str) -> str:
    """A title or class name without what Markdown would take for markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))
