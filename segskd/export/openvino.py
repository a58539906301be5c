"""OpenVINO's intermediate representation, the fastest on Intel's and AMD's processors. An extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_openvino(onnx_file: Path, target: Path) -> None:
    """Converts an ONNX file; the weights lie beside `target` in .bin."""
    openvino = library()
    openvino.save_model(openvino.Core().read_model(onnx_file), target, compress_to_fp16=False)


def library() -> Any:
    """The package, an extra: whoever exports has asked `Spec.versions` whether it is here."""
    import openvino

    return openvino
