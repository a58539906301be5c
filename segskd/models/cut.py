"""Finds a network's stages by recording, on "meta" tensors, what its encoder and decoder do at two sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from segskd.config import Size, named
from segskd.errors import UserError
from segskd.models.build import input_channels
from segskd.models.recording import OTHER_MODELS, Call, Recording, Value, record
from segskd.models.stages import (
    CURRENT,
    HEAD,
    IMAGE,
    ChainStage,
    ChainStep,
    DecoderStage,
    FeatureRef,
    PyramidStage,
    SideRef,
    Stage,
    StagedNetwork,
    UnusedTensor,
    features_of,
    meta_copy,
    shape_copy,
)

SIZES: tuple[Size, Size] = ((256, 320), (384, 448))
"""The (height, width) of the two recordings. All sides of all levels of a pyramid differ, so a side tells its level."""
FALLBACK_SIDES = (224, 256, 288, 384, 448, 512)
"""Sides to try for a network that doesn't take SIZES. Some transformers take only multiples of a side, or only a square
of that side."""
CutKind = Literal["exact", "pyramid", "one stage"]


class _NoChain(Exception):
    """The recorded calls don't form a chain in which each call takes the result of the one before."""


class _Level(NamedTuple):
    """One of an encoder's features. `name` is its stage, "image", or "" if it has no channels; `divisor` is its
    stride."""

    name: str
    channels: int
    divisor: int


@dataclass(frozen=True)
class _Recorded:
    """The recordings of a network's encoder and decoder at one size."""

    size: Size
    encoder: Recording
    decoder: Recording
    levels: tuple[_Level, ...]

    @property
    def with_tokens(self) -> bool:
        return isinstance(self.encoder.output, tuple)


def cut(model: nn.Module) -> StagedNetwork:
    """Cuts a network with an encoder, a decoder and a segmentation head into stages.

    If each feature of the encoder is computed from the one before it, encoder.0 … encoder.n are consecutive blocks.
    Otherwise they are the levels of the encoder's pyramid, each with the parameters that influence its feature and no
    earlier one. If the decoder's calls form a chain, a new stage decoder.0 … decoder.n begins wherever the size
    changes; otherwise the whole decoder is decoder.0. The head is the last stage. A feature without channels is no
    stage. Raises UserError for a network that can't be cut.
    """
    parts = [getattr(model, name, None) for name in ("encoder", "decoder", "segmentation_head")]
    if not all(isinstance(part, nn.Module) for part in parts):
        raise UserError(f"{type(model).__name__} has no encoder, decoder and segmentation head, so it has no stages")
    if getattr(model, "classification_head", None) is not None:
        raise UserError("a network with a classification head (aux_params) can't be cut: save it without")
    recorded = _record_twice(shape_copy(model))
    encoder = _chained_encoder(recorded, model) or _pyramid(recorded[0], meta_copy(model).eval(), model)
    decoder = _chained_decoder(recorded, model) or [_whole_decoder(recorded[0], model)]
    head = ChainStage(HEAD, [decoder[-1].name], [ChainStep("segmentation_head")], model)
    return StagedNetwork(model, [*encoder, *decoder, head])


def kinds(network: StagedNetwork) -> tuple[CutKind, CutKind]:
    """How encoder and decoder were cut: into "exact" blocks, or else as a "pyramid" and as "one stage"."""
    stages = list(network.stages.values())
    whole = any(isinstance(stage, DecoderStage) for stage in stages)
    return ("pyramid" if isinstance(stages[0], PyramidStage) else "exact"), ("one stage" if whole else "exact")


def check_size(network: StagedNetwork, size: Size, who: str) -> None:
    """Raises UserError when the network doesn't take images of that padded size. The message names the nearest that it
    takes."""
    on_meta = network.on(shape_copy(network.model))
    problem = _problem(on_meta, size)
    if problem is None:
        return
    near = sorted(_sizes_near(size), key=lambda other: abs(other[0] - size[0]) + abs(other[1] - size[1]))
    taken = next((other for other in near if _problem(on_meta, other) is None), None)
    mend = f"take {named('data.size')} {taken[0]}x{taken[1]}" if taken else "take another network"
    raise UserError(f"{who} doesn't take images of {size[0]}x{size[1]} ({problem}): {mend}")


def takes(model: nn.Module, size: Size) -> bool:
    """Whether the network takes images of that padded size."""
    return _problem(shape_copy(model), size) is None


def _sizes_near(size: Size) -> list[Size]:
    """Similar sizes whose sides are multiples of 32, and squares."""
    sides = [sorted({max(32, side + 32 * steps) for steps in range(-2, 3)}) for side in size]
    squares = [(side, side) for side in range(64, 1025, 32)]
    return [(height, width) for height in sides[0] for width in sides[1]] + squares


def _problem(on_meta: nn.Module | StagedNetwork, size: Size) -> str | None:
    """Why the network or its stages don't take images of that size, in one line; None if they do."""
    model = on_meta.model if isinstance(on_meta, StagedNetwork) else on_meta
    image = torch.empty(2, input_channels(model), *size, device="meta")
    try:
        with torch.no_grad():
            made = model(image)
            made = on_meta.logits(image) if isinstance(on_meta, StagedNetwork) else made
    except Exception as error:  # networks raise many kinds of error for a size that they don't take
        return _first_line(error)
    sides = tuple(made.shape[-2:])
    return None if sides == size else f"its masks would be {sides[0]}x{sides[1]}"


# -- recording ------------------------------------------------------------------------------------------


def _record_twice(on_meta: nn.Module) -> tuple[_Recorded, _Recorded]:
    """Records the network at two sizes and with two numbers of images, or at one size if it takes no other."""
    refusal: Exception | None = None
    multiples = (((side, 2 * side), (2 * side, 3 * side)) for side in FALLBACK_SIDES)
    squares = (((side, side), (side, side)) for side in FALLBACK_SIDES)
    for sizes in (SIZES, *multiples, *squares):
        try:
            return _record(on_meta, sizes[0], 2), _record(on_meta, sizes[1], 3)
        except Exception as error:  # networks raise many kinds of error for a size that they don't take
            refusal = refusal or error
    raise UserError(
        f"{type(on_meta).__name__} can't be cut into stages: {_first_line(refusal) if refusal else refusal}"
    ) from refusal


def _record(on_meta: nn.Module, size: Size, images: int) -> _Recorded:
    image = torch.empty(images, input_channels(on_meta), *size, device="meta")
    encoder = record(cast(Any, on_meta).encoder, image)
    encoded = encoder.output
    given = encoded if isinstance(encoded, tuple) else (encoded,)
    decoder = record(cast(Any, on_meta).decoder, *given)
    return _Recorded(size, encoder, decoder, _levels(encoder, features_of(encoded), size))


def _levels(encoder: Recording, features: Sequence[Tensor], size: Size) -> tuple[_Level, ...]:
    levels: list[_Level] = []
    values = encoder.result[0] if isinstance(encoder.output, tuple) else encoder.result
    count = 0
    for value, feature in zip(values, features, strict=True):
        name = IMAGE if value == encoder.given[0] else f"encoder.{count}" if feature.shape[1] else ""
        count += name not in (IMAGE, "")
        levels.append(_Level(name, feature.shape[1], size[0] // feature.shape[-2]))
    return tuple(levels)


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


# -- encoders -------------------------------------------------------------------------------------------


def _chained_encoder(recorded: tuple[_Recorded, _Recorded], model: nn.Module) -> list[Stage] | None:
    """The encoder's consecutive blocks; None if a feature isn't computed from the one before it alone."""
    first = recorded[0]
    if first.with_tokens:
        return None
    try:
        ends = [[value for value, level in _stage_features(seen)] for seen in recorded]
        chains = [
            _segments(seen.encoder, seen.encoder.given[0], ends, set())
            for seen, ends in zip(recorded, ends, strict=True)
        ]
        stages: list[Stage] = []
        names = [level.name for _, level in _stage_features(first)]
        for name, ours, theirs in zip(names, *chains, strict=True):
            source = stages[-1].name if stages else IMAGE
            steps = _steps(ours, theirs, {}, recorded, "encoder", model)
            stages.append(ChainStage(name, [source], steps, model))
        return stages
    except _NoChain:
        return None


def _stage_features(seen: _Recorded) -> list[tuple[Value, _Level]]:
    """The encoder's outputs that are features of stages, with their levels."""
    pairs = zip(seen.encoder.result, seen.levels, strict=True)
    return [(value, level) for value, level in pairs if level.name not in (IMAGE, "")]


def _segments(seen: Recording, start: Value, ends: Sequence[Value], beside: set[Value]) -> list[list[Call]]:
    """Splits a chain of calls that begins with `start` into the parts that end with each of `ends`.

    Apart from the result of the call before, calls may take the values `beside` as input. Raises _NoChain if one takes
    anything else.
    """
    needed, current = seen.needed(ends), start
    segments: list[list[Call]] = [[] for _ in ends]
    place = 0
    for call in seen.calls:
        if call.result not in needed:
            continue
        if place == len(ends) or current not in call.inputs or not call.inputs - {current} <= beside:
            raise _NoChain
        segments[place].append(call)
        current = call.result
        place += current == ends[place]
    if place < len(ends) or seen.overwritten & needed:
        raise _NoChain
    return segments


def _pyramid(seen: _Recorded, on_meta: nn.Module, model: nn.Module) -> list[Stage]:
    """Stages that are the levels of an encoder's pyramid."""
    levels = {level.name: place for place, level in enumerate(seen.levels) if level.name not in (IMAGE, "")}
    owners = _owners(on_meta, seen.size, levels)
    own = _parts_of(on_meta, "encoder", owners)
    return [PyramidStage(levels, name, own.get(name, []), model) for name in levels]


def _owners(on_meta: nn.Module, size: Size, levels: Mapping[str, int]) -> dict[str, str]:
    """The first stage whose feature each parameter of the encoder influences, by the parameter's path."""
    encoder = cast(Any, on_meta).encoder.requires_grad_(True)
    named = dict(encoder.named_parameters(prefix="encoder"))
    with torch.enable_grad():
        features = features_of(encoder(torch.empty(1, input_channels(on_meta), *size, device="meta")))
        owners: dict[str, str] = {}
        for name, level in levels.items():
            gradients = torch.autograd.grad(
                features[level].sum(), list(named.values()), allow_unused=True, retain_graph=True
            )
            reached = [path for path, gradient in zip(named, gradients, strict=True) if gradient is not None]
            owners |= {path: name for path in reached if path not in owners}
    return owners


def _parts_of(root: nn.Module, path: str, owners: Mapping[str, str]) -> dict[str, list[str]]:
    """The paths of each stage's modules and single parameters, from the `owners` of all parameters.

    A path is that of the largest module whose parameters all belong to one stage. A module without parameters belongs
    to the same stage as the module before it, or to the first stage.
    """
    own: dict[str, list[str]] = {}
    last = next(iter(owners.values()))

    def walk(module: nn.Module, path: str) -> None:
        nonlocal last
        kinds = {owners.get(f"{path}.{name}", "") for name, _ in module.named_parameters()}
        if len(kinds) < 2:
            last = next(iter(kinds), last) or last
            if kinds != {""}:  # its parameters influence a feature
                own.setdefault(last, []).append(path)
            return
        for name, _ in module.named_parameters(recurse=False):
            if f"{path}.{name}" in owners:
                own.setdefault(owners[f"{path}.{name}"], []).append(f"{path}.{name}")
        for name, child in module.named_children():
            walk(child, f"{path}.{name}")

    walk(root.get_submodule(path), path)
    return own


# -- decoders -------------------------------------------------------------------------------------------


def _chained_decoder(recorded: tuple[_Recorded, _Recorded], model: nn.Module) -> list[Stage] | None:
    """The decoder's consecutive blocks, a new one wherever the size changes; None if its calls form no chain."""
    if recorded[0].with_tokens:
        return None
    try:
        chains = []
        for seen in recorded:
            features = dict(zip(seen.decoder.given[0], seen.levels, strict=True))
            start = [value for value, level in features.items() if level.channels][-1]
            (calls,) = _segments(seen.decoder, start, [seen.decoder.result], set(features) - {start})
            chains.append(_grouped(calls, start, seen.decoder.shapes))
        stages: list[Stage] = []
        names = dict(zip(recorded[0].decoder.given[0], recorded[0].levels, strict=True))
        for number, (ours, theirs) in enumerate(zip(*chains, strict=True)):
            steps = _steps(ours, theirs, names, recorded, "decoder", model)
            before = stages[-1].name if stages else [level.name for level in recorded[0].levels if level.name][-1]
            beside = dict.fromkeys(feature.name for step in steps for feature in _features_in((step.args, step.kwargs)))
            stages.append(ChainStage(f"decoder.{number}", [before, *beside], steps, model))
        return stages
    except (_NoChain, ValueError):  # zip raises ValueError if the numbers of groups differ
        return None


def _grouped(calls: Sequence[Call], start: Value, shapes: Mapping[Value, tuple[int, ...]]) -> list[list[Call]]:
    """Groups the calls; a group ends with the call that changes the size. Calls after the last change join its
    group."""
    groups: list[list[Call]] = [[]]
    sides = shapes[start][-2:]
    for call in calls:
        if groups[-1] and shapes[groups[-1][-1].result][-2:] != sides:
            sides = shapes[groups[-1][-1].result][-2:]
            groups.append([])
        groups[-1].append(call)
    if len(groups) > 1 and shapes[groups[-1][-1].result][-2:] == sides:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _whole_decoder(seen: _Recorded, model: nn.Module) -> DecoderStage:
    """The whole decoder as one stage, whose sources are the features that it uses."""
    values = seen.decoder.given[0]
    tokens = [isinstance(value, Value) for value in seen.decoder.given[1]] if seen.with_tokens else None
    needed = seen.decoder.needed([seen.decoder.result])
    calls = [call for call in seen.decoder.calls if call.result in needed]
    if seen.decoder.overwritten or any(OTHER_MODELS in call.inputs for call in calls):
        needed |= set(values)  # calls that weren't recorded may use any of them
    features = [
        FeatureRef(level.name) if level.channels and value in needed else UnusedTensor(level.channels, level.divisor)
        for value, level in zip(values, seen.levels, strict=True)
    ]
    sources = [feature.name for feature in reversed(features) if isinstance(feature, FeatureRef)]
    if tokens and any(tokens):
        sources.append(IMAGE)
    return DecoderStage("decoder.0", sources, features, tokens, model)


# -- steps ----------------------------------------------------------------------------------------------


def _steps(
    ours: Sequence[Call],
    theirs: Sequence[Call],
    features: Mapping[Value, _Level],
    recorded: tuple[_Recorded, _Recorded],
    part: str,
    model: nn.Module,
) -> list[ChainStep]:
    """Turns calls that were recorded at two sizes into steps for any size.

    Raises _NoChain if they depend on the size in another way than through sides of features.
    """
    if len(ours) != len(theirs):
        raise _NoChain
    steps = []
    for call, other in zip(ours, theirs, strict=True):
        if call.target != other.target:
            raise _NoChain
        target = f"{part}.{call.target}" if isinstance(call.target, str) else call.target
        if isinstance(target, str) and isinstance(model.get_submodule(target), nn.Identity):
            continue
        beside = [features[value] for value in call.inputs if value in features]
        merge = _Merge(features, beside, recorded)
        kwargs = merge(sorted(call.kwargs.items()), sorted(other.kwargs.items()))
        steps.append(ChainStep(target, merge(tuple(call.args), tuple(other.args)), kwargs))
    return steps


class _Merge:
    """Turns a call's arguments at two sizes into arguments for any size."""

    def __init__(
        self, features: Mapping[Value, _Level], beside: Sequence[_Level], recorded: tuple[_Recorded, _Recorded]
    ) -> None:
        self._features = features
        self._beside = beside
        self._sizes = recorded[0].size, recorded[1].size
        self._levels = recorded[0].levels

    def __call__(self, ours: Any, theirs: Any) -> Any:
        """Raises _NoChain if the two differ in anything but sides of the image or of a feature."""
        if isinstance(ours, Value) and isinstance(theirs, Value):
            return self._tensor(ours)
        if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)) and len(ours) == len(theirs):
            return tuple(self(one, other) for one, other in zip(ours, theirs, strict=True))
        if isinstance(ours, (torch.device, dict)) or type(ours) is not type(theirs):
            raise _NoChain
        if ours == theirs:
            return ours
        return self._side(ours, theirs)

    def _tensor(self, value: Value) -> FeatureRef | UnusedTensor:
        if value == OTHER_MODELS:
            raise _NoChain
        level = self._features.get(value)
        if level is None or value == self._start:
            return CURRENT
        return FeatureRef(level.name) if level.channels else UnusedTensor(0, level.divisor)

    @property
    def _start(self) -> Value | None:
        """The feature with which a decoder begins. In the first step it is the current tensor."""
        return next((value for value, level in reversed(list(self._features.items())) if level.channels), None)

    def _side(self, ours: object, theirs: object) -> SideRef:
        """The side, of a skip's feature or of the image, that has these lengths at the two sizes."""
        whole = _Level(IMAGE, 0, 1)
        blanks = [_Level(IMAGE, 0, level.divisor) for level in self._levels]
        for level in (*(one for one in self._beside if one.name), whole, *blanks):
            for axis in (0, 1):
                if (ours, theirs) == tuple(size[axis] // level.divisor for size in self._sizes):
                    divisor = level.divisor if level.name == IMAGE else 1
                    return SideRef(level.name, axis, divisor)
        raise _NoChain


def _features_in(content: Any) -> list[FeatureRef]:
    if isinstance(content, FeatureRef):
        return [] if content == CURRENT else [content]
    if isinstance(content, (tuple, list)):
        return [feature for part in content for feature in _features_in(part)]
    return []
