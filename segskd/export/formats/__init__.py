"""The formats that a network can be exported as. Each module of this package is one format.

A module that defines FORMAT (see `Format`) adds a format by its own name: the command line, the page, packages and
their README then have it. Importing this package loads no runtime, so a format's module imports its libraries inside
its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

from segskd.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from segskd.config import Size
    from segskd.data.cards import Card
    from segskd.export.quantize import Quantized

DEFAULT = "safetensors"
AGREEMENT = 0.99
"""The least share of pixels that must have the same class in float and in INT8."""


@dataclass(frozen=True)
class ExportLimits:
    """The limits that an export must keep. A limit of None is not checked.

    `agreement` is the least share of pixels that keep their class. `difference` is the largest change of a logit, as
    a share of the largest logit. `points` is the largest loss of mIoU in percentage points. `size` is the largest
    number of bytes, as a share of the network's bytes in float.
    """

    agreement: float
    difference: float | None = None
    points: float | None = None
    size: float | None = None


INT8_LIMITS = ExportLimits(agreement=AGREEMENT, points=0.5, size=0.3)


@dataclass(frozen=True)
class ExportInput:
    """What a format writes its files from.

    `model` is the network, which `checkpoint` holds as SegSKD stores it. `info` is the content of card.json.
    `calibration` gives inputs (1, …) of the network for INT8. `only` is the (height, width) of images where the
    network takes no other size.
    """

    spec: Spec
    model: nn.Module
    card: Card
    info: Mapping[str, Any]
    checkpoint: Path
    calibration: Callable[[], Sequence[npt.NDArray[Any]]]
    only: Size | None = None


@dataclass(frozen=True)
class Format:
    """A kind of file that holds a network.

    `files` hold the network. `packages` open it; pip knows them by these names. A file in float must keep `limits`.
    """

    title: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    limits: ExportLimits
    write: Callable[[ExportInput, Path], Quantized | None]
    """Writes `files` into a folder and returns what was quantized. Raises UserError for a network it can't take."""
    network: Callable[[Path, int], Any]
    """Opens the network in a folder with so many threads (0: all), and returns a function from its input to logits
    float32 (1, C, h, w). The body of this function is copied into the package's predict.py, so it may use only
    `folder`, `threads`, `json`, `np`, and what it imports itself."""
    place: int
    """Formats are listed by rising place."""
    traced: bool = True
    """Whether the file holds the network's graph. Otherwise it holds weights, and its runtime builds the network."""
    quantizes: bool = False
    """Whether it can hold INT8 weights, and the pre-processing."""
    int8_packages: tuple[str, ...] = ()
    """Further packages that are needed to write INT8."""
    float_settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the runtime for a network in float."""
    hub_library: str = ""
    """The library by which the Hugging Face hub sorts the network."""


@dataclass(frozen=True)
class Spec:
    """What to export: a format, whether in INT8, and whether it takes `pixels` (uint8) or normalised values."""

    format: str = DEFAULT
    int8: bool = False
    pixels: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for an unknown format, and for what the format can't hold."""
        if self.format not in FORMATS:
            raise UserError(f"there is no format '{self.format}': take --format {' or '.join(FORMATS)}")
        if (self.int8 or self.pixels) and not self.kind.quantizes:
            able = " or ".join(name for name, kind in FORMATS.items() if kind.quantizes)
            what = "INT8" if self.int8 else "pre-processing inside the file"
            raise UserError(f"{self.format} has no {what}: take --format {able}")

    @property
    def kind(self) -> Format:
        return FORMATS[self.format]

    @property
    def name(self) -> str:
        """The folder of the export, such as onnx-int8-pixels."""
        return "-".join([self.format, *(["int8"] if self.int8 else []), *(["pixels"] if self.pixels else [])])

    def flags(self) -> list[str]:
        """The flags of `segskd export` that ask for this."""
        return ["--format", self.format, *(["--int8"] if self.int8 else []), *(["--pixels"] if self.pixels else [])]

    @property
    def limits(self) -> ExportLimits:
        return INT8_LIMITS if self.int8 else self.kind.limits

    @property
    def settings(self) -> dict[str, str]:
        """Settings of the runtime. An INT8 network runs with the runtime's own."""
        return {} if self.int8 else dict(self.kind.float_settings)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that write and open the files.

        Raises UserError with the command that installs a missing one.
        """
        versions = {}
        for package in (*self.kind.packages, *(self.kind.int8_packages if self.int8 else ())):
            try:
                versions[package] = version(package)
            except PackageNotFoundError as error:
                raise UserError(f"{package} is not installed: pip install {package}") from error
        return versions


def all_specs() -> list[Spec]:
    """Everything that can be exported. The plain exports of all formats come first."""
    plain = [Spec(name) for name in FORMATS]
    variants = [(False, True), (True, False), (True, True)]  # (int8, pixels)
    able = [name for name, kind in FORMATS.items() if kind.quantizes]
    return [*plain, *(Spec(name, int8, pixels) for name in able for int8, pixels in variants)]


def network_bytes(spec: Spec, folder: Path) -> int:
    """Bytes of the network's own files in `folder`."""
    return sum((folder / name).stat().st_size for name in spec.kind.files)


def _registered() -> dict[str, Format]:
    """The format of each module of this package, by the module's name."""
    names = [module.name for module in iter_modules(__path__)]
    formats: dict[str, Format] = {name: import_module(f"{__name__}.{name}").FORMAT for name in names}
    return dict(sorted(formats.items(), key=lambda item: item[1].place))


FORMATS = _registered()
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]
