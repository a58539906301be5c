"""INT8: weights per channel, activations with the ranges that calibration images show.

As ONNX by onnxruntime's static quantization (QDQ, activations unsigned, weights signed, ranges from minimum to
maximum), as OpenVINO by NNCF. Layers that cost too much agreement with the float network stay in float: the outermost
ones are tried first, then each is quantized alone and measured.
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

from segskd.export.formats import AGREEMENT, INT8_LIMITS
from segskd.export.openvino import library

Image = npt.NDArray[Any]
Quantize = Callable[[Collection[str], Path], None]
CALIBRATION_IMAGES = 64
MEASURED_IMAGES = 24
SPARE = 0.0005
"""Sought beyond AGREEMENT, as the certificate looks at other images."""
BALANCE = 0.96
"""Sought of the masks' mIoU against the float network's: rare classes weigh little in AGREEMENT and much in mIoU."""
RAREST = 5e-4
"""Of the pixels; classes that are rarer have too few for an IoU."""


@dataclass(frozen=True)
class Quantized:
    """What was done: `floats` are the layers left in float.

    `agreement` is the share of pixels of one class with the float network on the calibration images, `balance` the
    mIoU of the masks against the float network's; `images` calibrated.
    """

    images: int
    agreement: float
    balance: float
    floats: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: agreement as far as it is sought, then balance."""
        return min(self.agreement, AGREEMENT + SPARE), self.balance


def quantize(source: Path, target: Path, images: Sequence[Image], to_openvino: bool) -> Quantized:
    """Writes an INT8 file of the ONNX file `source`, calibrated on `images`, inputs (1, …) of the network.

    Layers stay in float until AGREEMENT and BALANCE are reached: none, the last one, the last and the first, then the
    most sensitive, twice as many each time, as long as the file keeps within the limit of its size. Where they never
    are, the file is the one that came nearest: the certificate judges.
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
        best: Quantized | None = None
        small = False
        for floats in own.candidates(measured, truth):
            make(floats, target)
            fits = _bytes(target) <= (INT8_LIMITS.size or 1) * _bytes(source)
            if small and not fits:
                break
            small = small or fits
            masks = answer(target, measured)
            made = Quantized(len(images), agreeing(masks, truth), balanced(masks, truth), floats)
            best = made if best is None or made.rank > best.rank else best
            if made.agreement >= AGREEMENT + SPARE and made.balance >= BALANCE:
                break
        assert best is not None
        if best.floats != floats:
            make(best.floats, target)
        return best


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

    def candidates(self, images: Sequence[Image], truth: Sequence[Image]) -> Iterator[list[str]]:
        """Layers to leave in float, more each time, in the end all; measured no sooner than they are asked for."""
        last, first = self.layers[-1], self.layers[0]
        yield []
        yield [last]
        yield [last, first]
        order = self.by_sensitivity(images, truth)
        count = 4
        while count < len(order):
            yield order[:count]
            count *= 2
        yield order

    def by_sensitivity(self, images: Sequence[Image], truth: Sequence[Image]) -> list[str]:
        """The layers, those first that change the masks most when they alone are quantized."""
        cost = {}
        for layer in self.layers:
            alone = self.scratch / "alone.onnx"
            self([other for other in self.layers if other != layer], alone)
            cost[layer] = balanced(onnx_classes(alone, images), truth)
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


def balanced(ours: Sequence[Image], theirs: Sequence[Image]) -> float:
    """mIoU of our masks with theirs as the truth, over all images, over the classes that are not too rare in theirs."""
    classes = 1 + max(int(mask.max()) for mask in (*ours, *theirs))
    pairs = sum(np.bincount((b * classes + a).ravel(), minlength=classes**2) for a, b in zip(ours, theirs, strict=True))
    confusion = np.asarray(pairs).reshape(classes, classes)
    both, known = confusion.diagonal(), confusion.sum(1)
    counted = known >= max(1, RAREST * known.sum())
    return float((both / np.maximum(1, confusion.sum(0) + known - both))[counted].mean())


def _bytes(file: Path) -> int:
    """Of the file, and of its weights where they lie beside it."""
    return sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.exists())


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
