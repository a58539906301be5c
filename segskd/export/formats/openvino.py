"""OpenVINO's intermediate representation. openvino and, for INT8, nncf are extras."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segskd.export.formats import ExportInput, ExportLimits, Format

if TYPE_CHECKING:
    from segskd.export.quantize import Image, Quantized


def write(given: ExportInput, folder: Path) -> Quantized | None:
    """Writes the network's graph by way of ONNX. Raises UserError for an operator that ONNX doesn't know."""
    from segskd.export.formats.onnx import write_onnx
    from segskd.export.graph import as_graph
    from segskd.export.quantize import quantize

    target = folder / FORMAT.files[0]
    with tempfile.TemporaryDirectory(prefix="segskd-", dir=folder.parent) as scratch:
        onnx_file = Path(scratch) / "model.onnx"
        write_onnx(as_graph(given.model, given.card, given.spec.pixels), onnx_file, given.info, given.only)
        if given.spec.int8:
            return quantize(onnx_file, target, given.calibration(), OpenvinoQuantizer)
        write_openvino(onnx_file, target)
    return None


def write_openvino(onnx_file: Path, target: Path) -> None:
    """Converts an ONNX file into `target` (.xml); the weights lie beside it in .bin."""
    openvino = _openvino()
    openvino.save_model(openvino.Core().read_model(onnx_file), target, compress_to_fp16=False)


class OpenvinoQuantizer:
    """Quantizes one ONNX file for OpenVINO by NNCF, calibrated on `images`, inputs (1, …) of the network."""

    def __init__(self, source: Path, images: Sequence[Image], scratch: Path | None = None) -> None:
        self.openvino, self.nncf = _openvino(), _nncf()
        self.source = source
        self.images = images

    def __call__(self, floats: Collection[str], target: Path) -> None:
        """Writes `target`. All layers are quantized but those named in `floats`."""
        model = self.openvino.Core().read_model(self.source)
        known = {operation.get_friendly_name() for operation in model.get_ops()}
        # OpenVINO splits a convolution with a bias in two, and gives its name to the addition.
        split = [f"{name}/WithoutBiases" for name in floats]
        ignored = [name if name in known else layer for name, layer in zip(split, floats, strict=True)]
        with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress, and stdout is for results
            quantized = self.nncf.quantize(
                model,
                self.nncf.Dataset(self.images),
                subset_size=len(self.images),
                ignored_scope=self.nncf.IgnoredScope(names=ignored),
            )
        self.openvino.save_model(quantized, target, compress_to_fp16=False)

    @staticmethod
    def classes(file: Path, images: Sequence[Image]) -> list[Image]:
        """The class of every pixel of each input (1, …), by OpenVINO on the CPU."""
        compiled = _openvino().Core().compile_model(file, "CPU")
        return [compiled(image)["logits"].argmax(1) for image in images]


def network(folder: Path, threads: int = 0) -> Any:
    """Opens the network in `folder`."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    settings |= json.loads((folder / "card.json").read_text())["runtime_settings"]
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    return lambda image: compiled(image, share_inputs=True, share_outputs=True)["logits"]


def _openvino() -> Any:
    """The library. `Spec.versions` has checked that it is installed."""
    import openvino

    return openvino


def _nncf() -> Any:
    """The library, without its telemetry."""
    os.environ.setdefault("NNCF_CI", "ON")
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


FORMAT = Format(
    title="OpenVINO, the fastest on Intel's and AMD's processors",
    files=("model.xml", "model.bin"),
    packages=("openvino",),
    limits=ExportLimits(agreement=0.9999, difference=1e-3),
    write=write,
    network=network,
    place=4,
    quantizes=True,
    int8_packages=("nncf",),
    # OpenVINO computes in bf16 by default where the processor can. Its masks would then differ from the checkpoint's.
    float_settings={"INFERENCE_PRECISION_HINT": "f32"},
    hub_library="openvino",
)
