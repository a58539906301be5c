"""Finds a network's stages: from what its encoder and its decoder do at two sizes, on tensors without storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from segskd.config import Size, named
from segskd.errors import UserError
from segskd.models.build import input_channels
from segskd.models.recording import FOREIGN, Call, Recording, Value, record
from segskd.models.stages import (
    CURRENT,
    HEAD,
    IMAGE,
    Blank,
    ChainStage,
    DecoderStage,
    Extent,
    Feature,
    PyramidStage,
    Stage,
    StagedNetwork,
    Step,
    features_of,
    ghost,
    shape_ghost,
)

SIZES: tuple[Size, Size] = ((256, 320), (384, 448))
"""What networks are watched at. No side of a level of one is a side of another level."""
ONLY_SIDES = (224, 256, 288, 384, 448, 512)
"""Of images of which some transformers take multiples, or one square alone."""
Kind = Literal["exact", "pyramid", "one stage"]


class _NoChain(Exception):
    """What was recorded is more than calls that follow one another."""


class _Level(NamedTuple):
    """An encoder's feature: the stage that gives it, or "image", or "" where it has no channels; and its scale."""

    name: str
    channels: int
    divisor: int


@dataclass(frozen=True)
class _Watched:
    """What the network's two parts do at one size."""

    size: Size
    encoder: Recording
    decoder: Recording
    levels: tuple[_Level, ...]

    @property
    def with_tokens(self) -> bool:
        return isinstance(self.encoder.output, tuple)


def cut(model: nn.Module) -> StagedNetwork:
    """The stages of a network that has an encoder, a decoder and a segmentation head.

    Where the encoder's features follow one another, encoder.0 … encoder.n are consecutive blocks; elsewhere they are
    the levels of its pyramid, each with those parameters that reach its feature and no earlier one. A decoder whose
    blocks follow one another is decoder.0 … decoder.n, a new one wherever the size changes, any other is decoder.0
    alone. Last comes the head. A feature with no channels is no stage.
    Raises UserError for a network whose stages can't be told.
    """
    parts = [getattr(model, name, None) for name in ("encoder", "decoder", "segmentation_head")]
    if not all(isinstance(part, nn.Module) for part in parts):
        raise UserError(f"{type(model).__name__} has no encoder, decoder and segmentation head, so it has no stages")
    if getattr(model, "classification_head", None) is not None:
        raise UserError("a network with a classification head (aux_params) can't be cut: save it without")
    on_meta = ghost(model).eval()
    watched = _watch_twice(on_meta)
    encoder = _chained_encoder(watched, model) or _pyramid(watched[0], on_meta, model)
    decoder = _chained_decoder(watched, model) or [_whole_decoder(watched[0], model)]
    head = ChainStage(HEAD, [decoder[-1].name], [Step("segmentation_head")], model)
    return StagedNetwork(model, [*encoder, *decoder, head])


def kinds(network: StagedNetwork) -> tuple[Kind, Kind]:
    """How the encoder and the decoder were cut: "exact", else a "pyramid" and "one stage"."""
    stages = list(network.stages.values())
    whole = any(isinstance(stage, DecoderStage) for stage in stages)
    return ("pyramid" if isinstance(stages[0], PyramidStage) else "exact"), ("one stage" if whole else "exact")


def check_size(network: StagedNetwork, size: Size, who: str) -> None:
    """Raises UserError when the network doesn't take images of that padded size; it names the nearest one it takes."""
    on_meta = network.on(shape_ghost(network.model))
    problem = _refusal(on_meta, size)
    if problem is None:
        return
    near = sorted(_sizes_near(size), key=lambda other: abs(other[0] - size[0]) + abs(other[1] - size[1]))
    taken = next((other for other in near if _refusal(on_meta, other) is None), None)
    mend = f"take {named('data.size')} {taken[0]}x{taken[1]}" if taken else "take another network"
    raise UserError(f"{who} doesn't take images of {size[0]}x{size[1]} ({problem}): {mend}")


def takes(model: nn.Module, size: Size) -> bool:
    """Whether the network takes images of that padded size."""
    return _refusal(shape_ghost(model), size) is None


def _sizes_near(size: Size) -> list[Size]:
    """Other sizes whose sides are multiples of 32 and differ little, and squares."""
    sides = [sorted({max(32, side + 32 * steps) for steps in range(-2, 3)}) for side in size]
    squares = [(side, side) for side in range(64, 1025, 32)]
    return [(height, width) for height in sides[0] for width in sides[1]] + squares


def _refusal(on_meta: nn.Module | StagedNetwork, size: Size) -> str | None:
    """What the network, and its stages, say to images of that size, in one line; None when they take them."""
    model = on_meta.model if isinstance(on_meta, StagedNetwork) else on_meta
    image = torch.empty(2, input_channels(model), *size, device="meta")
    try:
        with torch.no_grad():
            made = model(image)
            made = on_meta.logits(image) if isinstance(on_meta, StagedNetwork) else made
    except Exception as error:  # networks say in all ways that they don't take a size
        return _first_line(error)
    sides = tuple(made.shape[-2:])
    return None if sides == size else f"its masks would be {sides[0]}x{sides[1]}"


# -- watching -------------------------------------------------------------------------------------------


def _watch_twice(on_meta: nn.Module) -> tuple[_Watched, _Watched]:
    """At two sizes and with two numbers of images; at the same size only where the network takes no other."""
    said: Exception | None = None
    multiples = (((side, 2 * side), (2 * side, 3 * side)) for side in ONLY_SIDES)
    squares = (((side, side), (side, side)) for side in ONLY_SIDES)
    for sizes in (SIZES, *multiples, *squares):
        try:
            return _watch(on_meta, sizes[0], 2), _watch(on_meta, sizes[1], 3)
        except Exception as error:  # networks say in all ways that they don't take a size
            said = said or error
    raise UserError(
        f"the stages of {type(on_meta).__name__} can't be told: {_first_line(said) if said else said}"
    ) from said


def _watch(on_meta: nn.Module, size: Size, images: int) -> _Watched:
    image = torch.empty(images, input_channels(on_meta), *size, device="meta")
    encoder = record(cast(Any, on_meta).encoder, image)
    encoded = encoder.output
    given = encoded if isinstance(encoded, tuple) else (encoded,)
    decoder = record(cast(Any, on_meta).decoder, *given)
    return _Watched(size, encoder, decoder, _levels(encoder, features_of(encoded), size))


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


def _chained_encoder(watched: tuple[_Watched, _Watched], model: nn.Module) -> list[Stage] | None:
    """Consecutive blocks, or None where a feature doesn't come of the one before it alone."""
    first = watched[0]
    if first.with_tokens:
        return None
    try:
        ends = [[value for value, level in _tapped(seen)] for seen in watched]
        chains = [
            _segments(seen.encoder, seen.encoder.given[0], ends, set())
            for seen, ends in zip(watched, ends, strict=True)
        ]
        stages: list[Stage] = []
        names = [level.name for _, level in _tapped(first)]
        for name, ours, theirs in zip(names, *chains, strict=True):
            source = stages[-1].name if stages else IMAGE
            steps = _steps(ours, theirs, {}, watched, "encoder", model)
            stages.append(ChainStage(name, [source], steps, model))
        return stages
    except _NoChain:
        return None


def _tapped(seen: _Watched) -> list[tuple[Value, _Level]]:
    """The features that are stages' features."""
    pairs = zip(seen.encoder.result, seen.levels, strict=True)
    return [(value, level) for value, level in pairs if level.name not in (IMAGE, "")]


def _segments(seen: Recording, start: Value, ends: Sequence[Value], beside: set[Value]) -> list[list[Call]]:
    """The calls up to each of the ends, each taking in what the one before it has given.

    From the side they may take `beside`. Raises _NoChain where anything else goes in.
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


def _pyramid(seen: _Watched, on_meta: nn.Module, model: nn.Module) -> list[Stage]:
    """The levels of an encoder as stages."""
    levels = {level.name: place for place, level in enumerate(seen.levels) if level.name not in (IMAGE, "")}
    owners = _owners(on_meta, seen.size, levels)
    own = _parts_of(on_meta, "encoder", owners)
    return [PyramidStage(levels, name, own.get(name, []), model) for name in levels]


def _owners(on_meta: nn.Module, size: Size, levels: Mapping[str, int]) -> dict[str, str]:
    """By the path of each parameter of the encoder, the first stage whose feature it reaches."""
    encoder = cast(Any, on_meta).encoder.requires_grad_(True)
    named = dict(encoder.named_parameters(prefix="encoder"))
    with torch.enable_grad():
        features = features_of(encoder(torch.empty(1, input_channels(on_meta), *size, device="meta")))
        owners: dict[str, str] = {}
        for name, level in levels.items():
            found = torch.autograd.grad(
                features[level].sum(), list(named.values()), allow_unused=True, retain_graph=True
            )
            reached = [path for path, gradient in zip(named, found, strict=True) if gradient is not None]
            owners |= {path: name for path in reached if path not in owners}
    return owners


def _parts_of(root: nn.Module, path: str, owners: Mapping[str, str]) -> dict[str, list[str]]:
    """By stage the paths of the largest modules whose parameters are all its own, and of single parameters.

    A module without parameters belongs with the one before it, and to the first stage where there is none.
    """
    own: dict[str, list[str]] = {}
    last = next(iter(owners.values()))

    def walk(module: nn.Module, path: str) -> None:
        nonlocal last
        kinds = {owners.get(f"{path}.{name}", "") for name, _ in module.named_parameters()}
        if len(kinds) < 2:
            last = next(iter(kinds), last) or last
            if kinds != {""}:  # reaches no feature
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


def _chained_decoder(watched: tuple[_Watched, _Watched], model: nn.Module) -> list[Stage] | None:
    """Consecutive blocks, a new one wherever the size changes; None where they don't follow one another."""
    if watched[0].with_tokens:
        return None
    try:
        chains = []
        for seen in watched:
            features = dict(zip(seen.decoder.given[0], seen.levels, strict=True))
            start = [value for value, level in features.items() if level.channels][-1]
            (calls,) = _segments(seen.decoder, start, [seen.decoder.result], set(features) - {start})
            chains.append(_grouped(calls, start, seen.decoder.shapes))
        stages: list[Stage] = []
        names = dict(zip(watched[0].decoder.given[0], watched[0].levels, strict=True))
        for number, (ours, theirs) in enumerate(zip(*chains, strict=True)):
            steps = _steps(ours, theirs, names, watched, "decoder", model)
            before = stages[-1].name if stages else [level.name for level in watched[0].levels if level.name][-1]
            beside = dict.fromkeys(feature.name for step in steps for feature in _features_in((step.args, step.kwargs)))
            stages.append(ChainStage(f"decoder.{number}", [before, *beside], steps, model))
        return stages
    except (_NoChain, ValueError):  # of zip: other groups at another size
        return None


def _grouped(calls: Sequence[Call], start: Value, shapes: Mapping[Value, tuple[int, ...]]) -> list[list[Call]]:
    """The calls in groups that end where the size has changed; those behind the last change belong to its group."""
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


def _whole_decoder(seen: _Watched, model: nn.Module) -> DecoderStage:
    """The decoder as it is, with those of the encoder's features that it looks at."""
    values = seen.decoder.given[0]
    tokens = [isinstance(value, Value) for value in seen.decoder.given[1]] if seen.with_tokens else None
    needed = seen.decoder.needed([seen.decoder.result])
    calls = [call for call in seen.decoder.calls if call.result in needed]
    if seen.decoder.overwritten or any(FOREIGN in call.inputs for call in calls):
        needed |= set(values)  # what goes ways that were not seen may come from any of them
    features = [
        Feature(level.name) if level.channels and value in needed else Blank(level.channels, level.divisor)
        for value, level in zip(values, seen.levels, strict=True)
    ]
    sources = [feature.name for feature in reversed(features) if isinstance(feature, Feature)]
    if tokens and any(tokens):
        sources.append(IMAGE)
    return DecoderStage("decoder.0", sources, features, tokens, model)


# -- steps ----------------------------------------------------------------------------------------------


def _steps(
    ours: Sequence[Call],
    theirs: Sequence[Call],
    features: Mapping[Value, _Level],
    watched: tuple[_Watched, _Watched],
    part: str,
    model: nn.Module,
) -> list[Step]:
    """Calls recorded at two sizes as steps that hold at any. Raises _NoChain where they depend on the size."""
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
        merge = _Merge(features, beside, watched)
        kwargs = merge(sorted(call.kwargs.items()), sorted(other.kwargs.items()))
        steps.append(Step(target, merge(tuple(call.args), tuple(other.args)), kwargs))
    return steps


class _Merge:
    """Arguments of a call at two sizes as one that holds at any."""

    def __init__(
        self, features: Mapping[Value, _Level], beside: Sequence[_Level], watched: tuple[_Watched, _Watched]
    ) -> None:
        self._features = features
        self._beside = beside
        self._sizes = watched[0].size, watched[1].size
        self._levels = watched[0].levels

    def __call__(self, ours: Any, theirs: Any) -> Any:
        """Raises _NoChain where the two differ in anything but a side of the image or of a feature."""
        if isinstance(ours, Value) and isinstance(theirs, Value):
            return self._tensor(ours)
        if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)) and len(ours) == len(theirs):
            return tuple(self(one, other) for one, other in zip(ours, theirs, strict=True))
        if isinstance(ours, (torch.device, dict)) or type(ours) is not type(theirs):
            raise _NoChain
        if ours == theirs:
            return ours
        return self._side(ours, theirs)

    def _tensor(self, value: Value) -> Feature | Blank:
        if value == FOREIGN:
            raise _NoChain
        level = self._features.get(value)
        if level is None or value == self._start:
            return CURRENT
        return Feature(level.name) if level.channels else Blank(0, level.divisor)

    @property
    def _start(self) -> Value | None:
        """The feature with which a decoder begins, which is the first step's current tensor."""
        return next((value for value, level in reversed(list(self._features.items())) if level.channels), None)

    def _side(self, ours: object, theirs: object) -> Extent:
        """What has these two lengths at the two sizes: a side of a feature from a skip, or a side of the image."""
        whole = _Level(IMAGE, 0, 1)
        blanks = [_Level(IMAGE, 0, level.divisor) for level in self._levels]
        for level in (*(one for one in self._beside if one.name), whole, *blanks):
            for axis in (0, 1):
                if (ours, theirs) == tuple(size[axis] // level.divisor for size in self._sizes):
                    divisor = level.divisor if level.name == IMAGE else 1
                    return Extent(level.name, axis, divisor)
        raise _NoChain


def _features_in(content: Any) -> list[Feature]:
    if isinstance(content, Feature):
        return [] if content == CURRENT else [content]
    if isinstance(content, (tuple, list)):
        return [feature for part in content for feature in _features_in(part)]
    return []
