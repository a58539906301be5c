"""The network as it is exported: with or without the pre-processing, and the example input that it is traced with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.transforms import SIZE_MULTIPLE, padded_size
from segskd.models.build import input_channels, output_classes
from segskd.models.cut import takes

SCALE = 255.0
"""The value of white in 8 bits. A card's mean and std are those of pixels divided by it."""
EXAMPLES: tuple[Size, ...] = tuple((side, side + SIZE_MULTIPLE) for side in (96, 128, 160, 192, 224, 256))
UNPADDED = (26, 18)
"""Rows and columns by which an example of unpadded pixels is smaller than one of padded images."""


class Logits(nn.Module):
    """The network without outputs that belong to no class.

    It takes normalised images float32 (N, channels, h, w) whose sides are multiples of 32, and returns logits
    (N, C, h, w).
    """

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
    """The network with its pre-processing.

    It takes images uint8 (N, h, w, channels) with sides of any length, and returns logits (N, C, h, w) and classes
    uint8 (N, h, w).
    """

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


def as_graph(model: nn.Module, card: Card, pixels: bool) -> nn.Module:
    """The network in eval mode, with its pre-processing where `pixels` go in."""
    return (FromPixels if pixels else Logits)(model, card).eval()


def only_size(model: nn.Module, size: Size) -> Size | None:
    """`size` where a file made of the network's graph takes images of that size alone, None where it takes any.

    The network is taken for one of a single size when it takes none of EXAMPLES.
    """
    return None if _smallest_example(model) else size


def example_input(graph: nn.Module, only: Size | None = None) -> Tensor:
    """Two images to trace `graph` with, of the size `only` or else of the smallest of EXAMPLES that the network takes.

    The exporters fix an axis whose length is 1 or equals another's, so no side is 1 and height and width differ.
    """
    channels = input_channels(graph)
    pixels = isinstance(graph, FromPixels)
    if only:
        height, width = only if pixels else padded_size(only)
    else:
        height, width = _smallest_example(graph.logits if isinstance(graph, FromPixels) else graph) or EXAMPLES[0]
        height, width = (height - UNPADDED[0], width - UNPADDED[1]) if pixels else (height, width)
    if pixels:
        return torch.zeros(2, height, width, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, height, width)


def free_axes(graph: nn.Module, only: Size | None = None) -> dict[int, str]:
    """Names of those axes of the input that may have any length: the batch and, without `only`, height and width."""
    axes = (0, 1, 2) if isinstance(graph, FromPixels) else (0, 2, 3)
    named = dict(zip(axes, ("batch", "height", "width"), strict=True))
    return {0: named[0]} if only else named


def _smallest_example(model: nn.Module) -> Size | None:
    return next((size for size in EXAMPLES if takes(model, size)), None)


class PoolingByProducts(TorchFunctionMode):
    """Within this context, adaptive average pooling to several places is computed by matrix products.

    ONNX has no such pooling, and what the exporter writes instead is right for the size of its example only.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch.overrides."""
        given = kwargs or {}
        if func is F.adaptive_avg_pool2d:
            x, size = args[0], args[1] if len(args) > 1 else given["output_size"]
        elif func is F.interpolate and given.get("mode") == "area":  # PyTorch computes it by adaptive pooling
            x, size = args[0], args[1] if len(args) > 1 else given.get("size")
        else:
            return func(*args, **given)
        return func(*args, **given) if size in (None, 1, (1, 1)) else _pooled(x, size)


def _pooled(x: Tensor, size: int | tuple[int | None, int | None]) -> Tensor:
    """(N, C, h, w) to (N, C, rows, columns): x multiplied by a matrix of means along each axis."""
    for axis, count in zip((-2, -1), (size, size) if isinstance(size, int) else size, strict=True):
        if count is not None:
            x = (x.transpose(axis, -1) @ _means(x.shape[axis], count).to(x)).transpose(axis, -1)
    return x


def _means(length: int, count: int) -> Tensor:
    """A matrix (length, count) that averages: column k has equal weights at the places that output k averages."""
    place, part = torch.arange(length).unsqueeze(1), torch.arange(count)
    begin, end = part * length // count, ((part + 1) * length + count - 1) // count
    return ((place >= begin) & (place < end)) / (end - begin)
