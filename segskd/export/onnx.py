"""ONNX: one file that says all that it takes to use it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from segskd.config import Size
from segskd.errors import UserError
from segskd.export.graph import FromPixels, PoolingByProducts
from segskd.export.tracing import example, free_axes

PART = re.compile(r"(encoder|decoder|segmentation_head)\..*")
OPERATOR = re.compile(r"aten[.:]+\w+(?:\.\w+)?|OpOverload\(op='([\w.]+)'")


def write_onnx(graph: nn.Module, target: Path, about: Mapping[str, Any], only: Size | None = None) -> None:
    """Writes `graph` (in eval mode) with dynamic batch, height and width, checked by onnx's own checker.

    Of a network that takes one size alone, `only` is that of the images, and the file's.

    Input `image`, output `logits`, and `mask` where pixels go in. `about` goes into the metadata, each value as JSON.
    Raises UserError that names an operator that ONNX, or its exporter, doesn't know.
    """
    outputs = ["logits", "mask"] if isinstance(graph, FromPixels) else ["logits"]
    try:
        with warnings.catch_warnings(), torch.no_grad(), PoolingByProducts():
            warnings.simplefilter("ignore")  # of the exporter about its own libraries
            program = torch.onnx.export(
                graph,
                (example(graph, only),),
                input_names=["image"],
                output_names=outputs,
                dynamic_shapes=(free_axes(graph, only),),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this network can't be written as ONNX: {_cause(error)}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export made nothing")
    for node in program.model.graph.all_nodes():
        if node.op_type == "Conv" and (weights := node.inputs[1]) is not None:
            node.name = _layer(str(weights.name))
        node.metadata_props.clear()  # stack traces with paths of this machine
    program.model.metadata_props.update(_as_json(about))
    program.save(target, external_data=False)
    onnx.checker.check_model(target, full_check=True)


def metadata(file: Path) -> dict[str, Any]:
    """What `write_onnx` was told of the network."""
    model = onnx.load(file, load_external_data=False)
    own = [entry for entry in model.metadata_props if not entry.key.startswith("onnx.")]  # those are onnxruntime's
    return {entry.key: json.loads(entry.value) for entry in own}


def add_metadata(file: Path, about: Mapping[str, Any]) -> None:
    """Gives a file this metadata, in place of what it has under the same names."""
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | _as_json(about))
    onnx.save(model, file)


def _layer(weights: str) -> str:
    """The module whose weights these are, such as encoder.layer1.0.conv1."""
    found = PART.search(weights)
    return (found[0] if found else weights).removesuffix(".weight")


def _as_json(about: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in about.items()}


def _cause(error: BaseException) -> str:
    """The operator by its name where one is to blame, else the exporter's own words."""
    for one in _chain(error):
        if found := OPERATOR.search(str(one)):
            return f"there is no ONNX operator for {found[1] or found[0]}"
    last = list(_chain(error))[-1]
    return " ".join(str(last).split())[:300]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
