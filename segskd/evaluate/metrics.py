"""Metrics from one confusion matrix over a whole split.

mIoU is a ratio of sums: pixels are counted over all images first and divided once. So every pixel weighs the same,
which it doesn't in a mean of values per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from segskd.data.cards import Card
from segskd.errors import UserError
from segskd.models.build import input_channels, output_classes


@dataclass(frozen=True)
class Score:
    """Scores of one network on one split, between 0 and 1. `absent` are classes in neither the truth nor the
    outputs."""

    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    absent: list[str]
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "per_class": self.per_class,
            "absent_classes": self.absent,
            "images": self.images,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Score:
        """The score that `as_dict` returned."""
        content = dict(content)
        return cls(absent=content.pop("absent_classes"), **content)


class ConfusionMatrix:
    """Counts pixels by true and predicted class. Pixels with the ignore index don't count."""

    def __init__(self, card: Card, device: torch.device | str = "cpu") -> None:
        self.card = card
        self.images = 0
        self._metric = MulticlassConfusionMatrix(
            num_classes=len(card.classes), ignore_index=card.ignore_index, validate_args=False
        ).to(device)

    def update(self, classes: Tensor, mask: Tensor) -> None:
        """Adds predicted classes and true masks, both integer (N, H, W)."""
        self._metric.update(classes, mask)
        self.images += len(mask)

    @property
    def counts(self) -> Tensor:
        """int64 (C, C), with a row for each true class."""
        counts: Tensor = self._metric.confmat
        return counts.cpu().long()

    def score(self, add: Callable[[Tensor], Tensor] | None = None) -> Score:
        """The scores so far. `add` sums a tensor over the processes that share the images."""
        if add is None:
            return score(self.counts, self.card, self.images)
        return score(add(self.counts), self.card, int(add(torch.tensor([self.images]))))


def score(counts: Tensor, card: Card, images: int) -> Score:
    """Scores from counts (C, C). The IoU of a class is TP / (TP + FP + FN).

    Classes that occur in neither the truth nor the prediction don't count in the mean. Raises UserError when all pixels
    are ignored.
    """
    right = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    present = union > 0
    if not present.any():
        raise UserError(f"every pixel is ignored (value {card.ignore_index}): there is nothing to evaluate on")
    iou = right / union
    return Score(
        miou=float(iou[present].mean()),
        pixel_accuracy=float(right.sum() / counts.sum()),
        per_class={n: float(v) if p else None for n, v, p in zip(card.class_names, iou, present, strict=True)},
        absent=[name for name, p in zip(card.class_names, present, strict=True) if not p],
        images=images,
    )


def check_outputs(outputs: int, card: Card, who: str) -> None:
    """Raises UserError unless a network with that many outputs fits the card's classes.

    It fits with one output for each class, with one more if the ignore index follows the classes, and with a single
    output for two classes (see `logits_of`). `who` names the network in the message.
    """
    classes = len(card.classes)
    if outputs == classes or (outputs == classes + 1 and card.ignore_index == classes):
        return
    if outputs == 1 and classes == 2:
        return
    raise UserError(
        f"{who} has {outputs} outputs, but '{card.name}' has {classes} classes: "
        "take a network trained on these classes, or mend the card"
    )


def check_channels(channels: int, card: Card, who: str) -> None:
    """Raises UserError unless the card's images have as many channels as the network takes."""
    if channels != card.channels:
        raise UserError(
            f"{who} takes {channels}-channel images, but '{card.name}' has {card.channels}: "
            "take a network trained on such images, or mend the card's channels"
        )


def check_fits(model: nn.Module, card: Card, who: str) -> None:
    """Raises UserError unless a network takes the card's images and has an output for each class."""
    check_channels(input_channels(model), card, who)
    check_outputs(output_classes(model), card, who)


def class_logits(logits: Tensor, card: Card) -> Tensor:
    """Turns a network's outputs, (N, K, H, W) with K = 1, C or C + 1, into logits of the card's classes (N, C, H,
    W)."""
    return logits_of(logits, len(card.classes))


def logits_of(logits: Tensor, classes: int) -> Tensor:
    """As `class_logits`, for a number of classes.

    A single output z, whose sigmoid is the probability of class 1, becomes (0, z), whose softmax is the same. An output
    for the ignore index, after those of the classes, is dropped.
    """
    if logits.shape[1] == 1:
        return torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits[:, :classes]
