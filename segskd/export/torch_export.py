"""PyTorch's own file of a graph, .pt2: any batch, no Python code of the network needed."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from segskd.config import Size
from segskd.errors import UserError
from segskd.export.tracing import example, free_axes


def write_pt2(graph: nn.Module, target: Path, only: Size | None = None) -> None:
    """Writes `graph` (in eval mode) with dynamic batch, height and width; images of the size `only`, where it is given.

    Raises UserError that names what torch.export can't take.
    """
    free = dict.fromkeys(free_axes(graph, only), Dim.DYNAMIC)
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (example(graph, only),), dynamic_shapes=(free,))
    except Exception as error:  # of many types, private ones among them
        raise UserError(f"torch.export can't take this network: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with paths of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library about its own storage
        torch.export.save(program, target)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
