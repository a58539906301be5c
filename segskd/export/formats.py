"""What a network can be exported as: the files of each format, and what they must prove. Imports no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from segskd.errors import UserError

FormatName = Literal["safetensors", "onnx", "pt2", "openvino"]
AGREEMENT = 0.99
"""Of pixels, between a network in float and in INT8."""


@dataclass(frozen=True)
class Limits:
    """Beyond these an export fails; None sets no limit.

    `agreement` is the least share of pixels whose class stays, `difference` the largest |Δ| of a logit as a share
    of the largest logit, `points` the most points of mIoU that may be lost, `size` the most bytes as a share of
    the network's in float.
    """

    agreement: float
    difference: float | None = None
    points: float | None = None
    size: float | None = None


ORDERS = {1: "grey", 3: "RGB", 4: "RGB and a fourth band"}
"""Of an image's channels, by their number."""
INT8_LIMITS = Limits(agreement=AGREEMENT, points=0.5, size=0.3)


OPENVINO_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""By default OpenVINO computes in bf16 where the processor does; the masks then differ from the checkpoint's."""


@dataclass(frozen=True)
class Format:
    """A kind of file: `files` hold the network, `packages` open it, `limits` are those of a certificate in float."""

    title: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    limits: Limits
    quantizes: bool = False
    """Whether it comes as INT8, too, and with the pre-processing inside."""


FORMATS: dict[FormatName, Format] = {
    "safetensors": Format(
        "weights and JSON for segmentation_models_pytorch",
        ("model.safetensors", "config.json"),
        ("segmentation-models-pytorch", "torch"),
        Limits(agreement=1.0, difference=0.0),
    ),
    "onnx": Format(
        "ONNX, for onnxruntime and most other runtimes",
        ("model.onnx",),
        ("onnxruntime",),
        Limits(agreement=0.9999, difference=1e-3),
        quantizes=True,
    ),
    "pt2": Format(
        "PyTorch's graph, for torch.export.load",
        ("model.pt2",),
        ("torch",),
        Limits(agreement=0.9999, difference=1e-5),
    ),
    "openvino": Format(
        "OpenVINO, the fastest on Intel's and AMD's processors",
        ("model.xml", "model.bin"),
        ("openvino",),
        Limits(agreement=0.9999, difference=1e-3),
        quantizes=True,
    ),
}


@dataclass(frozen=True)
class Spec:
    """What to export: a format, whether as INT8, and whether `pixels` (uint8) go in instead of normalised values."""

    format: FormatName = "safetensors"
    int8: bool = False
    pixels: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for what a format has not."""
        if (self.int8 or self.pixels) and not FORMATS[self.format].quantizes:
            able = " or ".join(name for name, one in FORMATS.items() if one.quantizes)
            what = "INT8" if self.int8 else "pre-processing inside the file"
            raise UserError(f"{self.format} knows no {what}: take --format {able}")

    @property
    def name(self) -> str:
        """The folder of the export, such as onnx-int8-pixels."""
        return "-".join([self.format, *(["int8"] if self.int8 else []), *(["pixels"] if self.pixels else [])])

    def flags(self) -> list[str]:
        """The same for the command line."""
        return ["--format", self.format, *(["--int8"] if self.int8 else []), *(["--pixels"] if self.pixels else [])]

    @property
    def limits(self) -> Limits:
        return INT8_LIMITS if self.int8 else FORMATS[self.format].limits

    @property
    def settings(self) -> dict[str, str]:
        """What OpenVINO is told: in float to compute in float, as the processor does best in INT8."""
        return OPENVINO_EXACT if self.format == "openvino" and not self.int8 else {}

    def versions(self) -> dict[str, str]:
        """Of the packages that make and open it. Raises UserError with the command that installs a missing one."""
        found = {}
        quantizer = ("nncf",) if self.int8 and self.format == "openvino" else ()
        for package in (*FORMATS[self.format].packages, *quantizer):
            try:
                found[package] = version(package)
            except PackageNotFoundError as error:
                raise UserError(f"{package} is not installed: pip install {package}") from error
        return found


def all_specs() -> list[Spec]:
    """Everything that can be exported, the plainest of each format first."""
    plain = [Spec(name) for name in FORMATS]
    more = [(int8, pixels) for int8 in (False, True) for pixels in (False, True)]
    able = [name for name, one in FORMATS.items() if one.quantizes]
    return [*plain, *(Spec(name, *one) for name in able for one in more if any(one))]


def network_bytes(spec: Spec, folder: Path) -> int:
    """What the network's own files weigh."""
    return sum((folder / name).stat().st_size for name in FORMATS[spec.format].files)
