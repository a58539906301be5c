"""PyTorch's exported program, .pt2: it takes any batch and needs no Python code of the network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segskd.errors import UserError
from segskd.export.formats import ExportInput, ExportLimits, Format

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from segskd.config import Size


def write(given: ExportInput, folder: Path) -> None:
    """Writes the network's graph. Raises UserError that names what torch.export can't take."""
    from segskd.export.graph import Logits

    write_pt2(Logits(given.model, given.card).eval(), folder / FORMAT.files[0], given.only)


def write_pt2(graph: nn.Module, target: Path, only: Size | None = None) -> None:
    """Writes `graph`, which must be in eval mode, for any number of images of any size.

    `only` is the (height, width) of images where the network takes no other. Raises UserError that names what
    torch.export can't take.
    """
    import torch
    from torch.export import Dim

    from segskd.export.graph import example_input, free_axes

    free = dict.fromkeys(free_axes(graph, only), Dim.DYNAMIC)
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (example_input(graph, only),), dynamic_shapes=(free,))
    except Exception as error:  # of many types, private ones among them
        raise UserError(f"torch.export can't take this network: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # stack traces hold paths of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns about its own storage
        torch.export.save(program, target)


def network(folder: Path, threads: int = 0) -> Any:
    """Opens the network in `folder`."""
    import torch

    model = torch.export.load(folder / "model.pt2").module()
    torch.set_num_threads(threads or torch.get_num_threads())
    with torch.no_grad():
        model.to(memory_format=torch.channels_last)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = (
                model(torch.from_numpy(image).to(memory_format=torch.channels_last)).contiguous().numpy()
            )
        return logits

    return run


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


FORMAT = Format(
    title="PyTorch's graph, for torch.export.load",
    files=("model.pt2",),
    packages=("torch",),
    limits=ExportLimits(agreement=0.9999, difference=1e-5),
    write=write,
    network=network,
    place=3,
    hub_library="pytorch",
)
