"""What somebody without SegSKD must know of a network: its classes, and what is done to an image before it sees it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from segskd.config import Recipe, Size
from segskd.data.cards import Card
from segskd.data.transforms import RESIZE_FILTER, SIZE_MULTIPLE
from segskd.export.certificate import LEAST_SIDE
from segskd.export.formats import ORDERS, Spec
from segskd.models.build import describe, digest

PACKAGES = ("segskd", "torch", "segmentation-models-pytorch")


def about(
    spec: Spec, model: nn.Module, card: Card, recipe: Recipe, result: dict[str, Any], only: Size | None
) -> dict[str, Any]:
    """Plain data for card.json and a file's metadata; `only` is the size of images where the file takes no other."""
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
        "channel_order": ORDERS[card.channels],
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
