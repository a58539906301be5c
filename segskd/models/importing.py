"""Networks from outside: a file of weights and the network that it is for, made a folder that all commands take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segskd.errors import UserError
from segskd.models.build import ARCHITECTURES, STUDENT_LAYERS, create, digest, load, save
from segskd.models.state_files import read_state, without_prefix
from segskd.models.torchvision_models import (
    AUXILIARY,
    TORCHVISION,
    SummedHead,
    TorchvisionModel,
    torchvision_network,
)

SHOWN = 3
"""Keys of each kind that a message names."""
COUNTED = "num_batches_tracked"
"""A key that older files of batch normalisation lack, and that nothing in eval mode looks at."""
PROBES = (2, 3)
"""Numbers of outputs, or of channels, whose networks differ in the weights that depend on them alone."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Asked:
    """The network that a file of weights is for; what is None is told by the weights."""

    arch: str
    encoder: str | None = None
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        known = (*ARCHITECTURES, *TORCHVISION)
        if self.arch not in known:
            raise UserError(f"--arch {self.arch}: there is no such network; known are {', '.join(known)}")
        if self.arch in TORCHVISION and self.encoder:
            raise UserError(f"--arch {self.arch} has its encoder in its name: leave --encoder out")
        if self.arch not in TORCHVISION and not self.encoder:
            raise UserError(f"--arch {self.arch} has many encoders: name the one it was trained with by --encoder")

    @property
    def name(self) -> str:
        """As a recipe would name it."""
        return f"{self.arch}:{self.encoder}" if self.encoder else self.arch

    def network(self) -> nn.Module:
        """A new one with the names that files have. Raises UserError when there is none."""
        classes, channels = self.classes or PROBES[0], self.channels or 3
        if self.encoder is None:
            return torchvision_network(self.arch, classes, channels)
        return create(self.arch, self.encoder, classes, channels=channels)

    def shapes(self) -> Shapes:
        """The shapes of its weights by name, without computing or keeping any."""
        try:
            with torch.device("meta"):
                network = self.network()
        except UserError:  # some networks look at values while they are built
            network = self.network()
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Mends:
    """What is changed in a network so that it fits this house's images and cards."""

    bgr: bool = False
    """It was trained on BGR images: its first layer's channels are turned round."""
    outputs: tuple[int, ...] = ()
    """For each class of the card the output that stands for it, from 0."""

    def apply(self, model: nn.Module) -> None:
        """Raises UserError for a network that they can't be done to."""
        if self.bgr:
            _take_rgb(model)
        if self.outputs:
            _take_outputs(model, self.outputs)


@dataclass(frozen=True)
class Imported:
    """A network, and the keys of the file that are no part of it."""

    model: nn.Module
    left_out: list[str] = field(default_factory=list)


def read_network(path: Path, asked: Asked) -> Imported:
    """The network of a file of weights, in fp32 and eval mode.

    Raises UserError when the file can't be read, and when its weights are not those of the network: then missing,
    unexpected and differing ones are named, and another network that they do fit, where one is found.
    """
    state = read_state(path)
    told = _told(asked, state)
    weights, left_out = _named(state, told)
    if numbers := _other_numbers(weights, told):
        raise UserError(f"{path} doesn't fit {asked.name}: {numbers}")
    if problem := _problem(weights, told):
        raise UserError(f"{path} doesn't fit {asked.name}: {problem}{_better(state, asked)}")
    network = told.network()
    network.load_state_dict({**_counters(network), **weights})
    model = TorchvisionModel(asked.arch, network) if asked.arch in TORCHVISION else network
    return Imported(model.float().eval(), left_out)


def import_model(place: str, asked: Asked | None, mends: Mends, out: Path) -> Imported:
    """Writes a network as a folder: one from a file of weights, or one that is a folder, run or hub id, mended.

    Raises UserError when `out` holds something, for what `read_network` refuses, and when nothing is to be done.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name another --out, so that nothing is lost")
    file = Path(place).expanduser()
    if file.is_file():
        if asked is None:
            raise UserError(needs_network(file))
        imported = read_network(file, asked)
    elif asked is not None:
        raise UserError(f"{place} is no file of weights: leave --arch, --encoder, --classes and --channels out")
    elif mends == Mends():
        raise UserError(f"{place} needs no import: take it as it is, or say what to mend, by --bgr or --outputs")
    else:
        imported = Imported(load(place))
    mends.apply(imported.model)
    save(imported.model, out)
    return imported


def import_teacher(file: Path, asked: Asked, folder: Path) -> Path:
    """A file of weights as a folder below `folder`, named by the file and its weights; one made before is kept.

    Raises UserError as `read_network` does.
    """
    model = read_network(file, asked).model
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-.") or "teacher"
    place = folder / f"{stem}-{digest(model)[:8]}"
    if not (place / "config.json").is_file():
        save(model, place)
    return place


def needs_network(file: Path) -> str:
    """What to tell somebody who gave a file of weights and no more."""
    return (
        f"{file} is a file, which doesn't say what network its weights are for: add --arch and --encoder, "
        "such as --arch unet --encoder resnet34"
    )


def _told(asked: Asked, state: Mapping[str, Tensor]) -> Asked:
    """With the outputs and channels that the weights tell, where they were not given."""
    base = Asked(asked.arch, asked.encoder, PROBES[0], 3)
    found: dict[str, Any] = {}
    for what, dimension in (("classes", 0), ("channels", 1)):
        if getattr(asked, what) is None:
            found[what] = _size(state, base, what, dimension)
    return Asked(**{**vars(asked), **found})


def _size(state: Mapping[str, Tensor], base: Asked, what: str, dimension: int) -> int:
    """The size in that dimension of the first weight that depends on `what`; the base's own where it is not there."""
    own = base.shapes()
    varied = Asked(**{**vars(base), what: getattr(base, what) + 1}).shapes()
    weights, _ = _named(state, base)
    keys = (key for key in own if own[key] != varied[key] and key in weights and weights[key].ndim == len(own[key]))
    key = next(keys, None)
    return int(getattr(base, what)) if key is None else int(weights[key].shape[dimension])


def _named(state: Mapping[str, Tensor], asked: Asked) -> tuple[dict[str, Tensor], list[str]]:
    weights, left_out = without_prefix(state, asked.shapes())
    if asked.arch in TORCHVISION:
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(AUXILIARY)}
    return weights, left_out


def _problem(weights: Mapping[str, Tensor], asked: Asked) -> str:
    """How the weights differ from the network's in names and shapes, "" where they don't."""
    own = asked.shapes()
    missing = [key for key in own if key not in weights and not key.endswith(COUNTED)]
    unexpected = [key for key in weights if key not in own]
    wrong = [key for key in own if key in weights and tuple(weights[key].shape) != own[key]]
    parts = [f"{word} {_few(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if wrong:
        shapes = [f"{key} ({_by(weights[key].shape)} in the file, {_by(own[key])} in the network)" for key in wrong]
        parts.append(f"of another shape {_few(shapes)}")
    return "; ".join(parts)


def _other_numbers(weights: Mapping[str, Tensor], asked: Asked) -> str:
    """Where other numbers of outputs or channels are all that differs: what to ask for instead; else ""."""
    told = _told(Asked(asked.arch, asked.encoder), weights)
    if told == asked or _problem(weights, told):
        return ""
    own, parts = asked.shapes(), []
    for dimension, what, word in ((0, "classes", "outputs"), (1, "channels", "input channels")):
        theirs, ours = getattr(told, what), getattr(asked, what)
        if theirs != ours:
            shapes = ((key, tuple(weights[key].shape)) for key in own if own[key] != tuple(weights[key].shape))
            key = next(key for key, shape in shapes if shape[dimension] == theirs)
            parts.append(f"{key} has {theirs} {word} in the file and {ours} were asked: --{what} {theirs}")
    return "; ".join(parts)


def _better(state: Mapping[str, Tensor], asked: Asked) -> str:
    """The network of the same family that the weights fit, in words; "" where none is known."""
    for other in _relatives(asked):
        try:
            told = _told(other, state)
            fits = not _problem(_named(state, told)[0], told)
        except UserError:  # a decoder that has no such encoder
            continue
        if fits:
            flags = f"--arch {other.arch}" + (f" --encoder {other.encoder}" if other.encoder else "")
            return f". They are those of {other.name}: {flags}"
    return ""


def _relatives(asked: Asked) -> Iterator[Asked]:
    """Networks that somebody may have meant: the same decoder with encoders of the same family, then others."""
    others = [Asked(arch) for arch in TORCHVISION if arch != asked.arch]
    if asked.encoder is None:
        yield from others
        return
    family = _family(asked.encoder)
    encoders = [*smp.encoders.get_encoder_names(), *STUDENT_LAYERS]
    alike = [name for name in encoders if _family(name) == family and name != asked.encoder]
    other = asked.encoder.removeprefix("tu-") if asked.encoder.startswith("tu-") else f"tu-{asked.encoder}"
    yield from (Asked(asked.arch, name) for name in [*alike, other])
    yield from (Asked(arch, asked.encoder) for arch in ARCHITECTURES if arch != asked.arch)
    yield from others


def _family(encoder: str) -> str:
    return re.split(r"\d", encoder)[0]


def _few(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _counters(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in network.state_dict().items() if key.endswith(COUNTED)}


def _take_rgb(model: nn.Module) -> None:
    first = next((layer for layer in cast(Any, model).encoder.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError("--bgr turns the three channels of a network's first convolution round, and this one has none")
    first.weight.data = first.weight.data.flip(1)


def _take_outputs(model: nn.Module, outputs: Sequence[int]) -> None:
    last = cast(Any, model).segmentation_head[0]
    count = int(last.out_channels)
    if len(set(outputs)) < len(outputs) or not all(0 <= output < count for output in outputs):
        raise UserError(f"--outputs names each output once, from 0 to {count - 1}: the network has {count}")
    if len(outputs) < 2:
        raise UserError("--outputs names the output of every class, and there are two classes at least")
    for layer in (last.low, last.high) if isinstance(last, SummedHead) else (last,):
        layer.weight.data = layer.weight.data[list(outputs)]
        layer.bias.data = layer.bias.data[list(outputs)]
        layer.out_channels = len(outputs)
    last.out_channels = len(outputs)
    cast(Any, model).config["classes"] = len(outputs)
