"""PyTorch's own file of a graph, .pt2: any batch and size, no Python code of the network needed."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from segskd.data.transforms import SIZE_MULTIPLE
from segskd.errors import UserError
from segskd.export.graph import FromPixels
from segskd.models.build import input_channels


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
    """An input of two images. No two sides are equal and none is 1, so that none is taken for fixed."""
    channels = input_channels(graph)
    if isinstance(graph, FromPixels):
        return torch.zeros(2, 2 * SIZE_MULTIPLE + 6, 3 * SIZE_MULTIPLE + 14, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, 3 * SIZE_MULTIPLE, 4 * SIZE_MULTIPLE)


def free_axes(graph: nn.Module) -> dict[int, str]:
    """The axes of the input whose length the file leaves open."""
    return dict(
        zip((0, 1, 2) if isinstance(graph, FromPixels) else (0, 2, 3), ("batch", "height", "width"), strict=True)
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
