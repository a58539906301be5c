"""ONNX: one file that holds the network and, as metadata, all that it takes to use it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segskd.errors import UserError
from segskd.export.formats import ExportInput, ExportLimits, Format

if TYPE_CHECKING:
    from torch import nn

    from segskd.config import Size
    from segskd.export.quantize import Quantized

PART = re.compile(r"(encoder|decoder|segmentation_head)\..*")
OPERATOR = re.compile(r"aten[.:]+\w+(?:\.\w+)?|OpOverload\(op='([\w.]+)'")


def write(given: ExportInput, folder: Path) -> Quantized | None:
    """Writes the network's graph. Raises UserError for an operator that ONNX doesn't know."""
    from segskd.export.graph import as_graph
    from segskd.export.quantize import OnnxQuantizer, quantize

    target = folder / FORMAT.files[0]
    in_float = folder / ".float.onnx" if given.spec.int8 else target
    write_onnx(as_graph(given.model, given.card, given.spec.pixels), in_float, given.info, given.only)
    if not given.spec.int8:
        return None
    quantized = quantize(in_float, target, given.calibration(), OnnxQuantizer)
    add_metadata(target, {**given.info, "quantization": asdict(quantized)})
    in_float.unlink()
    return quantized


def write_onnx(graph: nn.Module, target: Path, info: Mapping[str, Any], only: Size | None = None) -> None:
    """Writes `graph`, which must be in eval mode, for any number of images of any size; onnx's checker checks the file.

    The input is `image`. The outputs are `logits` and, where pixels go in, `mask`. Each value of `info` goes into the
    metadata as JSON. `only` is the (height, width) of images where the network takes no other. Raises UserError that
    names an operator that ONNX, or its exporter, doesn't know.
    """
    import onnx
    import torch

    from segskd.export.graph import FromPixels, PoolingByProducts, example_input, free_axes

    outputs = ["logits", "mask"] if isinstance(graph, FromPixels) else ["logits"]
    try:
        with warnings.catch_warnings(), torch.no_grad(), PoolingByProducts():
            warnings.simplefilter("ignore")  # the exporter warns about its own libraries
            program = torch.onnx.export(
                graph,
                (example_input(graph, only),),
                input_names=["image"],
                output_names=outputs,
                dynamic_shapes=(free_axes(graph, only),),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this network can't be written as ONNX: {_cause(error)}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    for node in program.model.graph.all_nodes():
        if node.op_type == "Conv" and (weights := node.inputs[1]) is not None:
            node.name = _layer(str(weights.name))
        node.metadata_props.clear()  # stack traces hold paths of this machine
    program.model.metadata_props.update(_as_json(info))
    program.save(target, external_data=False)
    onnx.checker.check_model(target, full_check=True)


def metadata(file: Path) -> dict[str, Any]:
    """The `info` that `write_onnx` put into a file."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    own = [entry for entry in model.metadata_props if not entry.key.startswith("onnx.")]  # those are onnxruntime's
    return {entry.key: json.loads(entry.value) for entry in own}


def add_metadata(file: Path, info: Mapping[str, Any]) -> None:
    """Puts `info` into a file's metadata. Values under the same names are replaced."""
    import onnx

    model = onnx.load(file)
    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | _as_json(info))
    onnx.save(model, file)


def network(folder: Path, threads: int = 0) -> Any:
    """Opens the network in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image})[0]


def _layer(weights: str) -> str:
    """The module that these weights belong to, such as encoder.layer1.0.conv1."""
    match = PART.search(weights)
    return (match[0] if match else weights).removesuffix(".weight")


def _as_json(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in info.items()}


def _cause(error: BaseException) -> str:
    """The name of the operator that can't be written, or else the exporter's own words."""
    causes = list(_chain(error))
    for cause in causes:
        if match := OPERATOR.search(str(cause)):
            return f"there is no ONNX operator for {match[1] or match[0]}"
    return " ".join(str(causes[-1]).split())[:300]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


FORMAT = Format(
    title="ONNX, for onnxruntime and most other runtimes",
    files=("model.onnx",),
    packages=("onnxruntime",),
    limits=ExportLimits(agreement=0.9999, difference=1e-3),
    write=write,
    network=network,
    place=2,
    quantizes=True,
    hub_library="onnx",
)
