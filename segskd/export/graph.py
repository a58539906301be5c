"""What is exported: the network as it is, or with the pre-processing inside, so that pixels go in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segskd.data.cards import Card
from segskd.data.transforms import SIZE_MULTIPLE
from segskd.models.build import output_classes

SCALE = 255.0
"""Of pixels in 8 bits; mean and std of a card are those of pixels divided by it, as in albumentations' Normalize."""


class Logits(nn.Module):
    """(N, channels, h, w) float32, normalised, sides a multiple of 32, to logits (N, C, h, w) without a surplus."""

    def __init__(self, model: nn.Module, card: Card) -> None:
        super().__init__()
        self.model = model
        self.classes = len(card.classes)
        self.surplus = output_classes(model) > self.classes

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.model(image)
        return logits[:, : self.classes] if self.surplus else logits


class FromPixels(nn.Module):
    """(N, h, w, channels) uint8, sides of any length, to logits (N, C, h, w) and classes uint8 (N, h, w)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, card: Card) -> None:
        super().__init__()
        self.logits = Logits(model, card)
        self.register_buffer("mean", SCALE * torch.tensor(card.mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", SCALE * torch.tensor(card.std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        height, width = image.shape[1:3]
        pixels = (image.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        padded = F.pad(pixels, (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE))
        logits = self.logits(padded)[..., :height, :width]
        return logits, logits.argmax(1).to(torch.uint8)


class PoolingByProducts(TorchFunctionMode):
    """Inside, adaptive average pooling to several places is a product of matrices.

    ONNX knows no such pooling, and the exporter's way round it holds at the size of its example alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch.overrides."""
        given = kwargs or {}
        if func is F.adaptive_avg_pool2d:
            x, size = args[0], args[1] if len(args) > 1 else given["output_size"]
        elif func is F.interpolate and given.get("mode") == "area":  # another name for it
            x, size = args[0], args[1] if len(args) > 1 else given.get("size")
        else:
            return func(*args, **given)
        return func(*args, **given) if size in (None, 1, (1, 1)) else _pooled(x, size)


def _pooled(x: Tensor, size: int | tuple[int | None, int | None]) -> Tensor:
    """(N, C, h, w) to (N, C, rows, columns): a product with each axis's means."""
    for axis, count in zip((-2, -1), (size, size) if isinstance(size, int) else size, strict=True):
        if count is not None:
            x = (x.transpose(axis, -1) @ _means(x.shape[axis], count).to(x)).transpose(axis, -1)
    return x


def _means(length: int, count: int) -> Tensor:
    """(length, count): in each column a mean over the places that adaptive pooling takes together, others 0."""
    place, part = torch.arange(length).unsqueeze(1), torch.arange(count)
    begin, end = part * length // count, ((part + 1) * length + count - 1) // count
    return ((place >= begin) & (place < end)) / (end - begin)
