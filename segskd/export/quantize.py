"""INT8: weights are quantized per channel, activations by the ranges that calibration images show.

ONNX files are quantized by onnxruntime's static quantization (QDQ, unsigned activations, signed weights, ranges from
minimum to maximum). Layers whose quantization changes too many masks stay in float: first the last and the first layer
are tried, then each layer is quantized alone and measured.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from segskd.export.formats import AGREEMENT, INT8_LIMITS

Image = npt.NDArray[Any]
CALIBRATION_IMAGES = 64
MEASURED_IMAGES = 24
SPARE = 0.0005
"""Agreement that is required beyond AGREEMENT, since the certificate compares other images."""
BALANCE = 0.96
"""The least mIoU of the INT8 masks against the float masks: rare classes hardly count in AGREEMENT, but in mIoU."""
RAREST = 5e-4
"""The least share of the pixels that a class must have to count in that mIoU."""


@dataclass(frozen=True)
class Quantized:
    """What quantization did: it calibrated on `images` images and left the layers `floats` in float.

    On calibration images, `agreement` is the share of pixels whose class is the float network's, and `balance` is the
    mIoU of the masks with the float network's masks as the truth.
    """

    images: int
    agreement: float
    balance: float
    floats: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: first agreement up to what is required, then balance."""
        return min(self.agreement, AGREEMENT + SPARE), self.balance


class Quantizer(Protocol):
    """Quantizes one ONNX file for one runtime."""

    def __init__(self, source: Path, images: Sequence[Image], scratch: Path) -> None: ...

    def __call__(self, floats: Collection[str], target: Path) -> None:
        """Writes `target`. All layers are quantized but those named in `floats`."""

    @staticmethod
    def classes(file: Path, images: Sequence[Image]) -> list[Image]:
        """The class of every pixel of each input (1, …), by the runtime that opens `file`."""


def quantize(source: Path, target: Path, images: Sequence[Image], quantizer: type[Quantizer]) -> Quantized:
    """Writes an INT8 file of the ONNX file `source`, calibrated on `images`, inputs (1, …) of the network.

    More and more layers stay in float until AGREEMENT and BALANCE are reached: none, the last one, the last and the
    first, then the most sensitive ones, twice as many each time, as long as the file keeps its limit of size. If they
    are never reached, the best file is kept, and the certificate decides whether it will do.
    """
    images = images[:CALIBRATION_IMAGES]
    measured = images[:: max(1, len(images) // MEASURED_IMAGES)][:MEASURED_IMAGES]
    with tempfile.TemporaryDirectory(prefix="segskd-int8-") as scratch:
        make = quantizer(source, images, Path(scratch))
        truth = OnnxQuantizer.classes(source, measured)
        best: Quantized | None = None
        small = False
        for floats in OnnxQuantizer(source, images, Path(scratch)).candidates(measured, truth):
            make(floats, target)
            fits = _bytes(target) <= (INT8_LIMITS.size or 1) * _bytes(source)
            if small and not fits:
                break
            small = small or fits
            masks = quantizer.classes(target, measured)
            made = Quantized(len(images), agreeing(masks, truth), balanced(masks, truth), floats)
            best = made if best is None or made.rank > best.rank else best
            if made.agreement >= AGREEMENT + SPARE and made.balance >= BALANCE:
                break
        assert best is not None
        if best.floats != floats:
            make(best.floats, target)
        return best


class OnnxQuantizer:
    """Quantizes one ONNX file for onnxruntime. The ranges of activations are measured once and kept in `scratch`."""

    def __init__(self, source: Path, images: Sequence[Image], scratch: Path) -> None:
        self.source = source
        self.images = images
        self.scratch = scratch
        self.layers = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]

    def __call__(self, floats: Collection[str], target: Path) -> None:
        """Writes `target`. All layers are quantized but those named in `floats`."""
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

    @staticmethod
    def classes(file: Path, images: Sequence[Image]) -> list[Image]:
        """The class of every pixel of each input (1, …), by onnxruntime on the CPU."""
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return [session.run(["logits"], {"image": image})[0].argmax(1) for image in images]

    def candidates(self, images: Sequence[Image], truth: Sequence[Image]) -> Iterator[list[str]]:
        """Yields layers to leave in float, more each time and all in the end. Layers are measured when needed."""
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
        """The layers in the order of how much the masks change when that layer alone is quantized, most first."""
        cost = {}
        for layer in self.layers:
            file = self.scratch / "one-layer.onnx"
            self([other for other in self.layers if other != layer], file)
            cost[layer] = balanced(self.classes(file, images), truth)
        return sorted(self.layers, key=lambda layer: cost[layer])


def agreeing(ours: Sequence[Image], theirs: Sequence[Image]) -> float:
    """The share of pixels that have the same class in both lists of masks, as a mean over the images."""
    return float(np.mean([(a == b).mean() for a, b in zip(ours, theirs, strict=True)]))


def balanced(ours: Sequence[Image], theirs: Sequence[Image]) -> float:
    """mIoU of `ours` with `theirs` as the truth, over all images. Classes rarer than RAREST in `theirs` don't count."""
    classes = 1 + max(int(mask.max()) for mask in (*ours, *theirs))
    pairs = sum(np.bincount((b * classes + a).ravel(), minlength=classes**2) for a, b in zip(ours, theirs, strict=True))
    confusion = np.asarray(pairs).reshape(classes, classes)
    both, known = confusion.diagonal(), confusion.sum(1)
    counted = known >= max(1, RAREST * known.sum())
    return float((both / np.maximum(1, confusion.sum(0) + known - both))[counted].mean())


def _bytes(file: Path) -> int:
    """Bytes of the file and, if there is one, of the file of weights beside it."""
    return sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.exists())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences onnxruntime's advice to pre-process the file first: that fails on these files and gains nothing."""
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
