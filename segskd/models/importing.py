"""Imports networks: turns a file of weights into a folder that all commands can read."""

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
"""The number of keys of each kind that a message names."""
COUNTED = "num_batches_tracked"
"""A buffer of batch normalisation that older files lack and that isn't used in eval mode."""
PROBE_CLASSES = 2
"""The number of outputs of a network whose shapes are looked at before the real number is known."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class NetworkSpec:
    """The network that a file's weights belong to. Fields that are None follow from the weights."""

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
        """The name of the network in a recipe."""
        return f"{self.arch}:{self.encoder}" if self.encoder else self.arch

    def network(self) -> nn.Module:
        """A new network, whose weights are named as in files. Raises UserError when there is no such network."""
        classes, channels = self.classes or PROBE_CLASSES, self.channels or 3
        if self.encoder is None:
            return torchvision_network(self.arch, classes, channels)
        return create(self.arch, self.encoder, classes, channels=channels)

    def shapes(self) -> Shapes:
        """The shapes of the network's weights by name."""
        try:
            with torch.device("meta"):
                network = self.network()
        except UserError:  # some networks can't be built on "meta", where tensors have no values
            network = self.network()
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Adjustments:
    """Changes to a network so that it fits SegSKD's images and a card's classes."""

    bgr: bool = False
    """The network was trained on BGR images: the input channels of its first convolution are reversed."""
    outputs: tuple[int, ...] = ()
    """The output, counted from 0, of each class of the card, or () to leave the outputs as they are."""

    def apply(self, model: nn.Module) -> None:
        """Changes the network in place. Raises UserError for a network that can't be changed so."""
        if self.bgr:
            _take_rgb(model)
        if self.outputs:
            _take_outputs(model, self.outputs)


@dataclass(frozen=True)
class Imported:
    """A network, and the keys of the file that don't belong to it."""

    model: nn.Module
    left_out: list[str] = field(default_factory=list)


def read_network(path: Path, spec: NetworkSpec) -> Imported:
    """The network `spec` with the weights of a file, in fp32 and eval mode.

    Raises UserError when the file can't be read, and when its weights don't fit the network. The message then names
    missing, unexpected and differing weights, and a network that they do fit, if one is found.
    """
    state = read_state(path)
    complete = _complete(spec, state)
    weights, left_out = _network_weights(state, complete)
    if numbers := _other_numbers(weights, complete):
        raise UserError(f"{path} doesn't fit {spec.name}: {numbers}")
    if problem := _problem(weights, complete):
        raise UserError(f"{path} doesn't fit {spec.name}: {problem}{_suggestion(state, spec)}")
    network = complete.network()
    network.load_state_dict({**_counters(network), **weights})
    model = TorchvisionModel(spec.arch, network) if spec.arch in TORCHVISION else network
    return Imported(model.float().eval(), left_out)


def import_model(place: str, spec: NetworkSpec | None, adjustments: Adjustments, out: Path) -> Imported:
    """Writes a network into the folder `out`, after `adjustments`.

    `place` is a file of weights for the network `spec`, or else a folder, a run or a hub id, for which `spec` must be
    None. Raises UserError when `out` isn't empty, when there is nothing to do, and as `read_network` does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: name another --out")
    file = Path(place).expanduser()
    if file.is_file():
        if spec is None:
            raise UserError(needs_network(file))
        imported = read_network(file, spec)
    elif spec is not None:
        raise UserError(f"{place} is no file of weights: leave --arch, --encoder, --classes and --channels out")
    elif adjustments == Adjustments():
        raise UserError(f"{place} needs no import: take it as it is, or add --bgr or --outputs")
    else:
        imported = Imported(load(place))
    adjustments.apply(imported.model)
    save(imported.model, out)
    return imported


def import_teacher(file: Path, spec: NetworkSpec, folder: Path) -> Path:
    """Writes the network of a file of weights into a folder below `folder` and returns that folder.

    The folder is named by the file and its weights. If it exists, it is used as it is. Raises UserError as
    `read_network` does.
    """
    model = read_network(file, spec).model
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-.") or "teacher"
    place = folder / f"{stem}-{digest(model)[:8]}"
    if not (place / "config.json").is_file():
        save(model, place)
    return place


def needs_network(file: Path) -> str:
    """The message for a user who gave a file of weights and didn't say for which network it is."""
    return (
        f"{file} is a file that doesn't say which network its weights are for: add --arch and --encoder, "
        "such as --arch unet --encoder resnet34"
    )


def _complete(spec: NetworkSpec, state: Mapping[str, Tensor]) -> NetworkSpec:
    """The network with the numbers of classes and channels that follow from the weights, where these are None."""
    base = NetworkSpec(spec.arch, spec.encoder, PROBE_CLASSES, 3)
    sizes: dict[str, Any] = {}
    for what, dimension in (("classes", 0), ("channels", 1)):
        if getattr(spec, what) is None:
            sizes[what] = _size(state, base, what, dimension)
    return NetworkSpec(**{**vars(spec), **sizes})


def _size(state: Mapping[str, Tensor], base: NetworkSpec, what: str, dimension: int) -> int:
    """The size, in `dimension`, of the first weight that depends on the field `what`. If the file has none, it is the
    number in `base`."""
    own = base.shapes()
    varied = NetworkSpec(**{**vars(base), what: getattr(base, what) + 1}).shapes()
    weights, _ = _network_weights(state, base)
    keys = (key for key in own if own[key] != varied[key] and key in weights and weights[key].ndim == len(own[key]))
    key = next(keys, None)
    return int(getattr(base, what)) if key is None else int(weights[key].shape[dimension])


def _network_weights(state: Mapping[str, Tensor], spec: NetworkSpec) -> tuple[dict[str, Tensor], list[str]]:
    weights, left_out = without_prefix(state, spec.shapes())
    if spec.arch in TORCHVISION:
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(AUXILIARY)}
    return weights, left_out


def _problem(weights: Mapping[str, Tensor], spec: NetworkSpec) -> str:
    """How the weights differ from the network's in names and shapes, or ""."""
    own = spec.shapes()
    missing = [key for key in own if key not in weights and not key.endswith(COUNTED)]
    unexpected = [key for key in weights if key not in own]
    wrong = [key for key in own if key in weights and tuple(weights[key].shape) != own[key]]
    parts = [f"{word} {_first_few(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if wrong:
        shapes = [
            f"{key} ({_shape_text(weights[key].shape)} in the file, {_shape_text(own[key])} in the network)"
            for key in wrong
        ]
        parts.append(f"of another shape {_first_few(shapes)}")
    return "; ".join(parts)


def _other_numbers(weights: Mapping[str, Tensor], spec: NetworkSpec) -> str:
    """The right numbers of classes and channels, if nothing else differs, else ""."""
    complete = _complete(NetworkSpec(spec.arch, spec.encoder), weights)
    if complete == spec or _problem(weights, complete):
        return ""
    own, parts = spec.shapes(), []
    for dimension, what, word in ((0, "classes", "outputs"), (1, "channels", "input channels")):
        theirs, ours = getattr(complete, what), getattr(spec, what)
        if theirs != ours:
            shapes = ((key, tuple(weights[key].shape)) for key in own if own[key] != tuple(weights[key].shape))
            key = next(key for key, shape in shapes if shape[dimension] == theirs)
            parts.append(f"{key} has {theirs} {word} in the file, but {ours} are asked for: take --{what} {theirs}")
    return "; ".join(parts)


def _suggestion(state: Mapping[str, Tensor], spec: NetworkSpec) -> str:
    """Names a related network that the weights fit, or returns ""."""
    for other in _relatives(spec):
        try:
            complete = _complete(other, state)
            fits = not _problem(_network_weights(state, complete)[0], complete)
        except UserError:  # the decoder can't be built with that encoder
            continue
        if fits:
            flags = f"--arch {other.arch}" + (f" --encoder {other.encoder}" if other.encoder else "")
            return f". These are weights of {other.name}: take {flags}"
    return ""


def _relatives(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    """Yields networks that the user may have meant: first the same decoder with encoders of the same family."""
    others = [NetworkSpec(arch) for arch in TORCHVISION if arch != spec.arch]
    if spec.encoder is None:
        yield from others
        return
    family = _family(spec.encoder)
    encoders = [*smp.encoders.get_encoder_names(), *STUDENT_LAYERS]
    alike = [name for name in encoders if _family(name) == family and name != spec.encoder]
    other = spec.encoder.removeprefix("tu-") if spec.encoder.startswith("tu-") else f"tu-{spec.encoder}"
    yield from (NetworkSpec(spec.arch, name) for name in [*alike, other])
    yield from (NetworkSpec(arch, spec.encoder) for arch in ARCHITECTURES if arch != spec.arch)
    yield from others


def _family(encoder: str) -> str:
    return re.split(r"\d", encoder)[0]


def _first_few(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _counters(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in network.state_dict().items() if key.endswith(COUNTED)}


def _take_rgb(model: nn.Module) -> None:
    first = next((layer for layer in cast(Any, model).encoder.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError(
            "--bgr reverses the three input channels of the first convolution, and this network has no such convolution"
        )
    first.weight.data = first.weight.data.flip(1)


def _take_outputs(model: nn.Module, outputs: Sequence[int]) -> None:
    last = cast(Any, model).segmentation_head[0]
    count = int(last.out_channels)
    if len(set(outputs)) < len(outputs) or not all(0 <= output < count for output in outputs):
        raise UserError(f"--outputs may name each output from 0 to {count - 1} once: the network has {count}")
    if len(outputs) < 2:
        raise UserError("--outputs must name the output of each class, and there are at least two classes")
    for layer in (last.low, last.high) if isinstance(last, SummedHead) else (last,):
        layer.weight.data = layer.weight.data[list(outputs)]
        layer.bias.data = layer.bias.data[list(outputs)]
        layer.out_channels = len(outputs)
    last.out_channels = len(outputs)
    cast(Any, model).config["classes"] = len(outputs)
