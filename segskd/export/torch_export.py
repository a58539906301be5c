"""PyTorch's own file of a graph, .pt2: any batch and size, no Python code of the network needed."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from segskd.config import Size
from segskd.data.transforms import SIZE_MULTIPLE
from segskd.errors import UserError
from segskd.export.graph import FromPixels
from segskd.models.build import input_channels
from segskd.models.cut import takes

EXAMPLES: tuple[Size, ...] = tuple((side, side + SIZE_MULTIPLE) for side in (96, 128, 160, 192, 224, 256))


def write_pt2(graph: nn.Module, target: Path) -> None:
    """Writes `graph` (in eval mode) with dynamic batch, height and width.

    Raises UserError that names what torch.export can't take.
    """
    free = dict.fromkeys(free_axes(graph), Dim.DYNAMIC)
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (example(graph),), dynamic_shapes=(free,))
    except Exception as error:  # of many types, private ones among them
        raise UserError(f"torch.export can't take this network: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with paths of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library about its own storage
        torch.export.save(program, target)


def example(graph: nn.Module) -> Tensor:
    """An input of two images. No two sides are equal and none is 1, so that none is taken for fixed.

    It is the smallest of a few that the network takes: a file holds for sides down to the shortest that could be its.
    """
    channels = input_channels(graph)
    network = graph.logits if isinstance(graph, FromPixels) else graph
    height, width = next((size for size in EXAMPLES if takes(network, size)), EXAMPLES[0])
    if isinstance(graph, FromPixels):
        return torch.zeros(2, height - 26, width - 18, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, height, width)


def free_axes(graph: nn.Module) -> dict[int, str]:
    """The axes of the input whose length the file leaves open."""
    return dict(
        zip((0, 1, 2) if isinstance(graph, FromPixels) else (0, 2, 3), ("batch", "height", "width"), strict=True)
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
