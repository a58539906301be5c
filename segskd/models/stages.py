"""Stages: consecutive blocks of a network. Run in order, they compute the network's own forward pass, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from segskd.config import Size
from segskd.models.build import input_channels

IMAGE = "image"
HEAD = "head"
SINGLE_PROCESS_NORMS: dict[type, type] = {nn.SyncBatchNorm: nn.BatchNorm2d, SyncBatchNormAct: BatchNormAct2d}
"""The class for one process of each class of batch normalisation over several processes."""
Features = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class FeatureRef:
    """Stands in a step's arguments for the feature of that name, or for the result of the step before if it is ""."""

    name: str


CURRENT = FeatureRef("")


@dataclass(frozen=True)
class SideRef:
    """Stands in a step's arguments for a side of the named feature or of "image", divided and rounded down."""

    name: str
    axis: int
    divisor: int = 1


@dataclass(frozen=True)
class UnusedTensor:
    """Stands in a step's arguments for a tensor whose values aren't used. Its sides are the image's, divided."""

    channels: int
    divisor: int


@dataclass(frozen=True)
class ChainStep:
    """One call of a stage: of the network's module at a path, or of a function."""

    target: str | Callable[..., Any]
    args: Any = (CURRENT,)
    kwargs: Any = ()
    """Pairs of a name and a value."""


class Stage(nn.Module):
    """A consecutive block of a network. Its modules are the network's own, not copies.

    `sources` names its inputs, which are earlier features or "image". The first is the main input, the others are
    skips.
    """

    def __init__(self, name: str, sources: Sequence[str]) -> None:
        super().__init__()
        self.name = name
        self.sources = tuple(sources)
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor, skips: Features, size: Size) -> Tensor:
        """The stage's feature (N, c, h, w), computed from its main input `x`.

        `skips` holds the stage's other sources by name. `size` is the (height, width) of the network's input.
        """
        raise NotImplementedError

    @property
    def together(self) -> tuple[str, ...]:
        """The stages whose features are computed together with this one's."""
        return (self.name,)

    def features(self, known: Features, size: Size) -> dict[str, Tensor]:
        """The features of all stages in `together`, by name; `known` holds their sources."""
        return {self.name: self(known[self.sources[0]], known, size)}

    def on(self, model: nn.Module, names: Mapping[str, str]) -> Stage:
        """The same stage of another network of the same structure. `names` maps old names of stages to new ones."""
        raise NotImplementedError


class ChainStage(Stage):
    """A stage of modules and functions that follow one another."""

    def __init__(self, name: str, sources: Sequence[str], steps: Sequence[ChainStep], model: nn.Module) -> None:
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
        steps = [ChainStep(s.target, _renamed(s.args, names), _renamed(s.kwargs, names)) for s in self.steps]
        return ChainStage(names.get(self.name, self.name), _renamed(self.sources, names), steps, model)


class PyramidStage(Stage):
    """A level of an encoder that can't be cut into blocks: one pass over the image computes the features of all
    levels."""

    def __init__(self, levels: Mapping[str, int], name: str, own: Sequence[str], model: nn.Module) -> None:
        """`levels` are the places of all stages' features among the encoder's outputs, by stage.

        `own` are the paths of modules and parameters that belong to this stage alone.
        """
        super().__init__(name, (IMAGE,))
        self._levels = dict(levels)
        self._own = tuple(own)
        self._encoder = (cast(Any, model).encoder,)  # in a tuple, so that it isn't a submodule of this stage
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
    """A decoder that can't be cut into blocks, since it takes all features of the encoder at once.

    `features` stand for the encoder's outputs. Some decoders also take tokens of the encoder, which are no features of
    a stage and are computed from the image.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[str],
        features: Sequence[FeatureRef | UnusedTensor],
        tokens: Sequence[bool] | None,
        model: nn.Module,
    ) -> None:
        """`tokens` says for each feature whether the encoder returns tokens with it; None if the decoder takes no
        tokens."""
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
    """A network and its stages, in order."""

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self.model = model
        self.stages = {stage.name: stage for stage in stages}
        self.names = list(self.stages)
        self.shapes: dict[Any, dict[str, tuple[int, int, int]]] = {}
        """What `feature_shapes` has found, by the size of the input and the shapes of all weights."""

    def index(self, name: str) -> int:
        """The place of a stage in the order, from 0."""
        return self.names.index(name)

    def sources(self, index: int) -> list[str]:
        """The inputs of stage `index`: earlier features, or "image"."""
        return list(self.stages[self.names[index]].sources)

    def run(self, features: Features, size: Size, first: int = 0, last: int | None = None) -> dict[str, Tensor]:
        """The features of stages `first` to `last` (by default all) by name.

        `features` must hold all their inputs, "image" (N, C, H, W) among them if a stage takes it. `size` is the
        (height, width) of the network's input.
        """
        wanted = self.names[first : None if last is None else last + 1]
        known, made = dict(features), dict[str, Tensor]()
        for name in wanted:
            if name not in made:
                features_together = self.stages[name].features(known, size)
                made |= {one: feature for one, feature in features_together.items() if one in wanted}
                known |= made
        return {name: made[name] for name in wanted}

    def logits(self, image: Tensor) -> Tensor:
        """Runs all stages: images (N, C, H, W) to logits (N, classes, H, W), as the network's own forward does."""
        height, width = image.shape[-2:]
        return self.run({IMAGE: image}, (height, width))[HEAD]

    def on(self, model: nn.Module) -> StagedNetwork:
        """The same stages of another network of the same structure, such as a copy."""
        return StagedNetwork(model, [stage.on(model, {}) for stage in self.stages.values()])

    def renamed(self, names: Mapping[str, str]) -> StagedNetwork:
        """The same network with stages renamed; `names` maps old names to new ones."""
        return StagedNetwork(self.model, [stage.on(self.model, names) for stage in self.stages.values()])


def features_of(encoded: Any) -> Sequence[Tensor]:
    """The features among an encoder's outputs: all of them, or the first part if there are tokens, too."""
    return cast(Sequence[Tensor], encoded[0] if isinstance(encoded, tuple) else encoded)


def freeze(modules: Iterable[nn.Module]) -> None:
    """Stops gradients of the modules, and puts them into eval mode, so that normalisation statistics stay as they
    are."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()


def set_trained(network: StagedNetwork, trained: Iterable[str]) -> None:
    """Freezes all stages but the trained ones, which get gradients and are put into training mode."""
    freeze([network.model, *network.stages.values()])
    for name in trained:
        network.stages[name].requires_grad_(True)
        network.stages[name].train()


def copy_matching(student: StagedNetwork, teacher: StagedNetwork) -> float:
    """Copies to each student stage the teacher's weights and statistics that have the same stage, name and shape.

    If the teacher's stage has more blocks, its first ones are copied. Returns the share of the student's values that
    were copied, between 0 and 1.
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


def meta_copy(model: Module) -> Module:
    """A copy on "meta", which computes shapes without values. Its batch normalisation needs no other process."""
    values: dict[int, Tensor] = {id(t): t.to("meta") for t in model.buffers()}
    values |= {id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) for t in model.parameters()}
    made = copy.deepcopy(model, values)  # the values themselves are not copied
    for layer in made.modules():
        layer.__class__ = SINGLE_PROCESS_NORMS.get(type(layer), type(layer))
    return made


def shape_copy(model: Module) -> Module:
    """A copy on "meta" in evaluation. Its batch normalisation is left out: it keeps shapes, and is slow on "meta"."""
    made = meta_copy(model).eval()
    _replace_norms(made, lambda norm, x: torch.empty_like(x))
    return made


def scale_only(on_meta: nn.Module) -> None:
    """Leaves of every batch normalisation its scale alone: shapes stay, gradients flow, and "meta" is faster."""
    _replace_norms(on_meta, lambda norm, x: x * norm.weight.view(-1, *[1] * (x.ndim - 2)) if norm.affine else x)


def _replace_norms(module: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]


def feature_shapes(network: StagedNetwork, size: Size) -> dict[str, tuple[int, int, int]]:
    """The shape (c, h, w) of every feature and of "image", by name, at an input of `size`. It computes no values."""
    key = (size, *(weight.shape for weight in network.model.parameters()))  # pruning changes them
    if key not in network.shapes:
        image = torch.empty(1, input_channels(network.model), *size, device="meta")
        with torch.no_grad():
            features = {IMAGE: image, **network.on(shape_copy(network.model)).run({IMAGE: image}, size)}
        network.shapes[key] = {
            name: cast(tuple[int, int, int], tuple(feature.shape[1:])) for name, feature in features.items()
        }
    return dict(network.shapes[key])


def _filled(content: Any, x: Tensor, skips: Features, size: Size) -> Any:
    """A step's arguments, with real tensors and numbers in place of what stands for them."""
    if isinstance(content, FeatureRef):
        return x if content == CURRENT else skips[content.name]
    if isinstance(content, SideRef):
        sides = size if content.name == IMAGE else skips[content.name].shape[-2:]
        return sides[content.axis] // content.divisor
    if isinstance(content, UnusedTensor):
        return _unused_tensor(content, x, size)
    if isinstance(content, (tuple, list)):
        return [_filled(part, x, skips, size) for part in content]
    return content


def _unused_tensor(content: UnusedTensor, x: Tensor, size: Size) -> Tensor:
    shape = (len(x), content.channels, *(side // content.divisor for side in size))
    return x.new_empty(shape) if content.channels == 0 else x.new_empty(()).expand(shape)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    """Copies nested sequences, and renames the stages in them."""
    if isinstance(content, str):
        return names.get(content, content)
    if isinstance(content, FeatureRef):
        return FeatureRef(names.get(content.name, content.name))
    if isinstance(content, SideRef):
        return SideRef(names.get(content.name, content.name), content.axis, content.divisor)
    if isinstance(content, (tuple, list)):
        return type(content)(_renamed(part, names) for part in content)
    return content
