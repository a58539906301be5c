"""INT8: weights per channel, activations with the ranges that calibration images show.

As ONNX by onnxruntime's static quantization (QDQ, activations unsigned, weights signed, ranges from minimum to
maximum), as OpenVINO by NNCF. Layers that cost too much agreement stay in float: each is quantized alone and measured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from segskd.export.formats import AGREEMENT
from segskd.export.openvino import library

Image = npt.NDArray[Any]
Quantize = Callable[[Collection[str], Path], None]
CALIBRATION_IMAGES = 64
MEASURED_IMAGES = 8
SPARE = 0.0005
"""Sought beyond AGREEMENT, as the certificate looks at other images."""


@dataclass(frozen=True)
class Quantized:
    """What was done: `floats` are the layers left in float, `agreement` that on `images` calibration images."""

    images: int
    agreement: float
    floats: list[str] = field(default_factory=list)


def quantize(source: Path, target: Path, images: Sequence[Image], to_openvino: bool) -> Quantized:
    """Writes an INT8 file of the ONNX file `source`, calibrated on `images`, inputs (1, …) of the network.

    Layers stay in float, the most sensitive first, twice as many each time, until AGREEMENT is reached. The
    file is written also where it never is: the certificate then refuses it.
    """
    images = images[:CALIBRATION_IMAGES]
    measured = images[:: max(1, len(images) // MEASURED_IMAGES)][:MEASURED_IMAGES]
    with tempfile.TemporaryDirectory(prefix="segskd-int8-") as scratch:
        own = OnnxQuantizer(source, images, Path(scratch))
        make: Quantize = own
        if to_openvino:
            make = OpenvinoQuantizer(source, images)
        answer = openvino_classes if to_openvino else onnx_classes
        truth = onnx_classes(source, measured)
        order: list[str] | None = None
        floats: list[str] = []
        while True:
            make(floats, target)
            agreement = agreeing(answer(target, measured), truth)
            if agreement >= AGREEMENT + SPARE or len(floats) == len(own.layers):
                return Quantized(len(images), agreement, floats)
            order = order or own.by_sensitivity(measured, truth)
            floats = order[: max(1, 2 * len(floats))]


class OnnxQuantizer:
    """Quantizes one ONNX file again and again, with ranges that are measured once."""

    def __init__(self, source: Path, images: Sequence[Image], scratch: Path) -> None:
        self.source = source
        self.images = images
        self.scratch = scratch
        self.layers = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]

    def __call__(self, floats: Collection[str], target: Path) -> None:
        """Writes `target`, all quantized but the layers `floats`."""
        with _quiet():
            quantize_static(
                self.source,
                target,
                _Reader(self.images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(floats),
                calibration_cache_path=self.scratch / "ranges.json",
            )

    def by_sensitivity(self, images: Sequence[Image], truth: Sequence[Image]) -> list[str]:
        """The layers, those first that change most classes when they alone are quantized."""
        cost = {}
        for layer in self.layers:
            alone = self.scratch / "alone.onnx"
            self([other for other in self.layers if other != layer], alone)
            cost[layer] = agreeing(onnx_classes(alone, images), truth)
        return sorted(self.layers, key=lambda layer: cost[layer])


class OpenvinoQuantizer:
    """Quantizes one network for OpenVINO."""

    def __init__(self, source: Path, images: Sequence[Image]) -> None:
        self.openvino, self.nncf = library(), _nncf()
        self.source = source
        self.images = images

    def __call__(self, floats: Collection[str], target: Path) -> None:
        """Writes `target`, all quantized but the layers `floats`."""
        model = self.openvino.Core().read_model(self.source)
        known = {operation.get_friendly_name() for operation in model.get_ops()}
        # OpenVINO makes two of a convolution with a bias; the addition keeps the name.
        apart = [f"{name}/WithoutBiases" for name in floats]
        ignored = [name if name in known else layer for name, layer in zip(apart, floats, strict=True)]
        with contextlib.redirect_stdout(sys.stderr):  # its progress is no answer of a command
            made = self.nncf.quantize(
                model,
                self.nncf.Dataset(self.images),
                subset_size=len(self.images),
                ignored_scope=self.nncf.IgnoredScope(names=ignored),
            )
        self.openvino.save_model(made, target, compress_to_fp16=False)


def onnx_classes(file: Path, images: Sequence[Image]) -> list[Image]:
    """The class of every pixel of each image."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [session.run(["logits"], {"image": image})[0].argmax(1) for image in images]


def openvino_classes(file: Path, images: Sequence[Image]) -> list[Image]:
    """The class of every pixel of each image."""
    compiled = library().Core().compile_model(file, "CPU")
    return [compiled(image)["logits"].argmax(1) for image in images]


def agreeing(ours: Sequence[Image], theirs: Sequence[Image]) -> float:
    """Share of pixels of one class in both."""
    return float(np.mean([(a == b).mean() for a, b in zip(ours, theirs, strict=True)]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to pre-process, which fails on these files and gains nothing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Sequence[Image]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, Image] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image}


def _nncf() -> Any:
    """The package, without its telemetry."""
    os.environ.setdefault("NNCF_CI", "ON")
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf
