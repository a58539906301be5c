"""What a network is traced with on its way into a file, and which sides of an image the file leaves open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.transforms import SIZE_MULTIPLE, padded_size
from segskd.export.graph import FromPixels
from segskd.models.build import input_channels
from segskd.models.cut import takes

EXAMPLES: tuple[Size, ...] = tuple((side, side + SIZE_MULTIPLE) for side in (96, 128, 160, 192, 224, 256))
PIXELS_LESS = (26, 18)
"""What images that are not yet padded lack to an example."""


def only_size(model: nn.Module, size: Size) -> Size | None:
    """`size`, where the network takes none of a few others, so that a file made of its graph is for that one alone.

    None: such a file takes any.
    """
    return None if _smallest(model) else size


def example(graph: nn.Module, only: Size | None = None) -> Tensor:
    """An input of two images, of the size `only` or, by default, the smallest of a few that the network takes.

    Of the latter no two sides are equal and none is 1, so that none is taken for fixed; a file holds for sides down to
    the shortest that could be its.
    """
    channels = input_channels(graph)
    pixels = isinstance(graph, FromPixels)
    if only:
        height, width = only if pixels else padded_size(only)
    else:
        height, width = _smallest(graph.logits if isinstance(graph, FromPixels) else graph) or EXAMPLES[0]
        height, width = (height - PIXELS_LESS[0], width - PIXELS_LESS[1]) if pixels else (height, width)
    if pixels:
        return torch.zeros(2, height, width, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, height, width)


def free_axes(graph: nn.Module, only: Size | None = None) -> dict[int, str]:
    """The axes of the input whose length the file leaves open: the batch's, and the sides' unless there is one size."""
    axes = (0, 1, 2) if isinstance(graph, FromPixels) else (0, 2, 3)
    named = dict(zip(axes, ("batch", "height", "width"), strict=True))
    return {0: named[0]} if only else named


def _smallest(model: nn.Module) -> Size | None:
    return next((size for size in EXAMPLES if takes(model, size)), None)
