"""Stages: consecutive blocks of a network, which one after another are the network's own forward, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from segskd.config import Size
from segskd.models.build import input_channels

IMAGE = "image"
HEAD = "head"
ALONE: dict[type, type] = {nn.SyncBatchNorm: nn.BatchNorm2d, SyncBatchNormAct: BatchNormAct2d}
"""What batch normalisation over several processes is over one."""
Features = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Feature:
    """In a step's arguments: the feature of that name, or what the step before has given."""

    name: str


CURRENT = Feature("")


@dataclass(frozen=True)
class Extent:
    """In a step's arguments: a side of the feature of that name, or of the image, divided and rounded down."""

    name: str
    axis: int
    divisor: int = 1


@dataclass(frozen=True)
class Blank:
    """In a step's arguments: a tensor that nobody looks into, of the image's sides divided and rounded down."""

    channels: int
    divisor: int


@dataclass(frozen=True)
class Step:
    """A call of the network's module at that path, or of a function."""

    target: str | Callable[..., Any]
    args: Any = (CURRENT,)
    kwargs: Any = ()
    """Pairs of a name and a value."""


class Stage(nn.Module):
    """A consecutive block of a network. Its modules are the network's own, not copies.

    `sources` name what it takes in, earlier features or "image": first what flows on, then what comes in from the side.
    """

    def __init__(self, name: str, sources: Sequence[str]) -> None:
        super().__init__()
        self.name = name
        self.sources = tuple(sources)
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor, skips: Features, size: Size) -> Tensor:
        """The stage's feature (N, c, h, w), from the first of its sources.

        `skips` holds the others by name; `size` is (height, width) of the network's input.
        """
        raise NotImplementedError

    @property
    def together(self) -> tuple[str, ...]:
        """The stages whose features all come of one computation with this one's."""
        return (self.name,)

    def features(self, known: Features, size: Size) -> dict[str, Tensor]:
        """The features of all stages in `together`."""
        return {self.name: self(known[self.sources[0]], known, size)}

    def on(self, model: nn.Module, names: Mapping[str, str]) -> Stage:
        """The same stage of another network of the same build, with stages renamed as `names` says."""
        raise NotImplementedError


class ChainStage(Stage):
    """Modules and functions that follow one another."""

    def __init__(self, name: str, sources: Sequence[str], steps: Sequence[Step], model: nn.Module) -> None:
        super().__init__(name, sources)
        self.steps = tuple(steps)
        self.blocks.extend(model.get_submodule(step.target) for step in steps if isinstance(step.target, str))

    def forward(self, x: Tensor, skips: Features, size: Size) -> Tensor:
        """See Stage.forward."""
        modules = iter(self.blocks)
        for step in self.steps:
            call = next(modules) if isinstance(step.target, str) else step.target
            if step.args == (CURRENT,) and not step.kwargs:
                x = call(x)
            else:
                filled = [_filled(part, x, skips, size) for part in (step.args, step.kwargs)]
                x = call(*filled[0], **dict(filled[1]))
        return x

    def on(self, model: nn.Module, names: Mapping[str, str]) -> ChainStage:
        """See Stage.on."""
        steps = [Step(s.target, _renamed(s.args, names), _renamed(s.kwargs, names)) for s in self.steps]
        return ChainStage(names.get(self.name, self.name), _renamed(self.sources, names), steps, model)


class PyramidStage(Stage):
    """A level of an encoder that can't be cut: one pass over the image gives the features of all its levels."""

    def __init__(self, levels: Mapping[str, int], name: str, own: Sequence[str], model: nn.Module) -> None:
        """`levels` are the places, by stage, of the features among the encoder's outputs. `own` are the paths of the
        modules and parameters that belong to this stage alone."""
        super().__init__(name, (IMAGE,))
        self._levels = dict(levels)
        self._own = tuple(own)
        self._encoder = (cast(Any, model).encoder,)  # not its own, so no submodule
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.blocks.extend(model.get_submodule(path) for path in own if path not in parameters)
        self.loose = nn.ParameterList([parameters[path] for path in own if path in parameters])

    def forward(self, x: Tensor, skips: Features, size: Size) -> Tensor:
        """See Stage.forward."""
        return self.features({IMAGE: x}, size)[self.name]

    @property
    def together(self) -> tuple[str, ...]:
        """See Stage.together."""
        return tuple(self._levels)

    def features(self, known: Features, size: Size) -> dict[str, Tensor]:
        """See Stage.features."""
        features = features_of(self._encoder[0](known[IMAGE]))
        return {name: features[level] for name, level in self._levels.items()}

    def on(self, model: nn.Module, names: Mapping[str, str]) -> PyramidStage:
        """See Stage.on."""
        levels = {names.get(name, name): level for name, level in self._levels.items()}
        return PyramidStage(levels, names.get(self.name, self.name), self._own, model)


class DecoderStage(Stage):
    """A decoder that can't be cut: it takes all features of the encoder at once.

    `features` stand for what the encoder would give it; `with_tokens` says that it also takes an encoder's tokens,
    which are no features and are computed from the image.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[str],
        features: Sequence[Feature | Blank],
        tokens: Sequence[bool] | None,
        model: nn.Module,
    ) -> None:
        """`tokens` say for each feature whether the encoder gives tokens with it; None: the decoder takes none."""
        super().__init__(name, sources)
        self._features = tuple(features)
        self._tokens = tokens
        self._encoder = (cast(Any, model).encoder,)
        self.blocks.append(cast(Any, model).decoder)

    def forward(self, x: Tensor, skips: Features, size: Size) -> Tensor:
        """See Stage.forward."""
        features = [_filled(feature, x, skips, size) for feature in self._features]
        if self._tokens is None:
            return cast(Tensor, self.blocks[0](features))
        tokens = self._encoder[0](skips[IMAGE])[1] if any(self._tokens) else [None] * len(features)
        return cast(Tensor, self.blocks[0](features, tokens))

    def on(self, model: nn.Module, names: Mapping[str, str]) -> DecoderStage:
        """See Stage.on."""
        sources, features = _renamed(self.sources, names), _renamed(self._features, names)
        return DecoderStage(names.get(self.name, self.name), sources, features, self._tokens, model)


class StagedNetwork:
    """A network and its stages in order."""

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self.model = model
        self.stages = {stage.name: stage for stage in stages}
        self.names = list(self.stages)

    def index(self, name: str) -> int:
        """Place of a stage in the order."""
        return self.names.index(name)

    def sources(self, index: int) -> list[str]:
        """What stage `index` takes in: earlier features, or "image"."""
        return list(self.stages[self.names[index]].sources)

    def run(self, features: Features, size: Size, first: int = 0, last: int | None = None) -> dict[str, Tensor]:
        """The features of stages `first` to `last` (by default all), given every feature that these take in.

        Where a stage takes in the image `features` must hold "image" (N, C, H, W).
        """
        wanted = self.names[first : None if last is None else last + 1]
        known, made = dict(features), dict[str, Tensor]()
        for name in wanted:
            if name not in made:
                found = self.stages[name].features(known, size)
                made |= {one: feature for one, feature in found.items() if one in wanted}
                known |= made
        return {name: made[name] for name in wanted}

    def logits(self, image: Tensor) -> Tensor:
        """The network's own forward through its stages: (N, C, H, W) to (N, classes, H, W)."""
        height, width = image.shape[-2:]
        return self.run({IMAGE: image}, (height, width))[HEAD]

    def on(self, model: nn.Module) -> StagedNetwork:
        """The stages of another network of the same build: a copy, or a ghost."""
        return StagedNetwork(model, [stage.on(model, {}) for stage in self.stages.values()])

    def renamed(self, names: Mapping[str, str]) -> StagedNetwork:
        """The same network with some of its stages called otherwise."""
        return StagedNetwork(self.model, [stage.on(self.model, names) for stage in self.stages.values()])


def features_of(encoded: Any) -> Sequence[Tensor]:
    """The features among what an encoder gives: all of it, or its first part where tokens come with them."""
    return cast(Sequence[Tensor], encoded[0] if isinstance(encoded, tuple) else encoded)


def freeze(modules: Iterable[nn.Module]) -> None:
    """No gradients, and normalisation statistics that stand still."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()


def set_trained(network: StagedNetwork, trained: Iterable[str]) -> None:
    """Freezes all but the trained stages, which get gradients and moving statistics."""
    freeze([network.model, *network.stages.values()])
    for name in trained:
        network.stages[name].requires_grad_(True)
        network.stages[name].train()


def copy_matching(student: StagedNetwork, teacher: StagedNetwork) -> float:
    """Gives each student stage the teacher's weights and statistics of the same stage, name and shape.

    Of a deeper teacher stage these are its first blocks. Returns the share of the student's values that were
    copied, between 0 and 1.
    """
    copied = total = 0
    for name, stage in student.stages.items():
        theirs = teacher.stages[name].state_dict() if name in teacher.stages else {}
        for key, own in stage.state_dict().items():
            total += own.numel()
            if key in theirs and theirs[key].shape == own.shape:
                own.copy_(theirs[key])
                copied += own.numel()
    return copied / total


def ghost(model: Module) -> Module:
    """A copy without storage, for asking after shapes and sizes; its batch normalisation asks no other process."""
    values: dict[int, Tensor] = {id(t): t.to("meta") for t in model.buffers()}
    values |= {id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) for t in model.parameters()}
    made = copy.deepcopy(model, values)  # the values themselves are not copied
    for layer in made.modules():
        layer.__class__ = ALONE.get(type(layer), type(layer))
    return made


def shape_ghost(model: Module) -> Module:
    """A ghost in evaluation that tells shapes alone: its batch normalisation, slow without storage, does nothing."""
    made = ghost(model).eval()
    for layer in made.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    return made


def feature_shapes(network: StagedNetwork, size: Size) -> dict[str, tuple[int, int, int]]:
    """(c, h, w) of every feature at an input of `size`, the image included, without computing anything."""
    image = torch.empty(1, input_channels(network.model), *size, device="meta")
    with torch.no_grad():
        features = {IMAGE: image, **network.on(shape_ghost(network.model)).run({IMAGE: image}, size)}
    return {name: cast(tuple[int, int, int], tuple(feature.shape[1:])) for name, feature in features.items()}


def _filled(content: Any, x: Tensor, skips: Features, size: Size) -> Any:
    """A step's arguments with what stands for something replaced by it."""
    if isinstance(content, Feature):
        return x if content == CURRENT else skips[content.name]
    if isinstance(content, Extent):
        sides = size if content.name == IMAGE else skips[content.name].shape[-2:]
        return sides[content.axis] // content.divisor
    if isinstance(content, Blank):
        return _blank(content, x, size)
    if isinstance(content, (tuple, list)):
        return [_filled(part, x, skips, size) for part in content]
    return content


def _blank(content: Blank, x: Tensor, size: Size) -> Tensor:
    shape = (len(x), content.channels, *(side // content.divisor for side in size))
    return x.new_empty(shape) if content.channels == 0 else x.new_empty(()).expand(shape)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    """Names of stages, and what refers to them, renamed in nested sequences."""
    if isinstance(content, str):
        return names.get(content, content)
    if isinstance(content, Feature):
        return Feature(names.get(content.name, content.name))
    if isinstance(content, Extent):
        return Extent(names.get(content.name, content.name), content.axis, content.divisor)
    if isinstance(content, (tuple, list)):
        return type(content)(_renamed(part, names) for part in content)
    return content
