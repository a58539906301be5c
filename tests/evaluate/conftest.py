"""A network whose answers are known, and images for it: all figures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segskd.data.cards import Card
from segskd.data.dataset import Pair

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
IGNORE = 255


class ColourNetwork(nn.Module):
    """Answers class `answers[c]` where the image has colour c, and keeps the sizes of what it was given.

    Logits are minus the squared distance from each colour. With `surplus` there is one more output, which
    is above all others everywhere.
    """

    def __init__(self, answers: Sequence[int] = (0, 1, 2), surplus: bool = False) -> None:
        super().__init__()
        self.answers = list(answers)
        self.surplus = surplus
        self.segmentation_head = nn.Sequential(nn.Conv2d(3, 3 + surplus, 1))
        self.config = {"encoder_name": "colours"}
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(tuple(image.shape))
        distances = [(image - torch.tensor(c)[:, None, None] / 255).square().sum(1) for c in COLORS]
        logits = torch.full((len(image), 3, *image.shape[-2:]), -100.0)
        for distance, answer in zip(distances, self.answers, strict=True):
            logits[:, answer] = torch.maximum(logits[:, answer], -distance)
        return torch.cat([logits, torch.ones_like(logits[:, :1])], 1) if self.surplus else logits


@pytest.fixture
def network() -> type[ColourNetwork]:
    return ColourNetwork


@pytest.fixture
def make_card() -> Callable[..., Card]:
    """A card of three classes, red, green and blue, whose normalisation only divides by 255."""

    def make(**changes: Any) -> Card:
        content = {
            "name": "colours",
            "title": "three colours",
            "folder": "colours",
            "classes": [
                {"name": name, "color": list(color)}
                for name, color in zip(("red", "green", "blue"), COLORS, strict=True)
            ],
            "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        }
        return Card.model_validate({**content, **changes})

    return make


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[[str, Any, Any], Pair]:
    """Writes an image that shows the classes `seen`, and the mask `truth`."""

    def make(name: str, seen: Any, truth: Any) -> Pair:
        pair = Pair(name, tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png")
        for path, values in ((pair.image, np.array(COLORS)[np.array(seen)]), (pair.mask, np.array(truth))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(path)
        return pair

    return make
