"""Cuts a network into its stages: run one after another they are the network's own forward, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.models._features import FeatureListNet
from torch import Tensor, nn

from segskd.config import Size
from segskd.errors import UserError
from segskd.models.build import input_channels

IMAGE = "image"
HEAD = "head"
ALONE: dict[type, type] = {nn.SyncBatchNorm: nn.BatchNorm2d, SyncBatchNormAct: BatchNormAct2d}
"""What batch normalisation over several processes is over one."""
Taps = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


class Stage(nn.Module):
    """A consecutive block of a network. Its modules are the network's own, not copies.

    `skip` names the earlier stage whose tap comes in from the side, if one does.
    """

    def __init__(self, name: str, modules: Iterable[nn.Module], skip: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.skip = skip
        self.blocks = nn.ModuleList(modules)

    def forward(self, x: Tensor, skips: Taps, size: Size) -> Tensor:
        """The stage's tap (N, c, h, w), from the tap before it.

        `skips` holds earlier taps by stage name; `size` is (height, width) of the network's input.
        """
        for block in self.blocks:
            x = block(x)
        return x


class UnetDecoderStage(Stage):
    """A U-Net decoder block: upsamples to its skip's size, or to the input's where there is no skip."""

    def forward(self, x: Tensor, skips: Taps, size: Size) -> Tensor:
        """See Stage.forward."""
        *before, block = self.blocks
        for module in before:
            x = module(x)
        skip = None if self.skip is None else skips[self.skip]
        height, width = size if skip is None else skip.shape[-2:]
        return cast(Tensor, block(x, height, width, skip_connection=skip))


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
        """What stage `index` takes in: the tap before it ("image" for the first), and its skip."""
        before = self.names[index - 1] if index else IMAGE
        skip = self.stages[self.names[index]].skip
        return [before] if skip is None else [before, skip]

    def run(self, taps: Taps, size: Size, first: int = 0, last: int | None = None) -> dict[str, Tensor]:
        """The taps of stages `first` to `last` (by default all), given every tap that these take in.

        At `first` 0 `taps` must hold "image" (N, C, H, W).
        """
        end = len(self.names) if last is None else last + 1
        known = dict(taps)
        for index in range(first, end):
            stage = self.stages[self.names[index]]
            known[stage.name] = stage(known[self.sources(index)[0]], known, size)
        return {name: known[name] for name in self.names[first:end]}

    def logits(self, image: Tensor) -> Tensor:
        """The network's own forward through its stages: (N, C, H, W) to (N, classes, H, W)."""
        height, width = image.shape[-2:]
        return self.run({IMAGE: image}, (height, width))[HEAD]


def freeze(modules: Iterable[nn.Module]) -> None:
    """No gradients, and normalisation statistics that stand still."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()


def set_trained(network: StagedNetwork, trained: Iterable[str]) -> None:
    """Freezes every stage but the trained ones, which get gradients and moving statistics."""
    freeze(network.stages.values())
    for name in trained:
        network.stages[name].requires_grad_(True)
        network.stages[name].train()


def cut(model: nn.Module) -> StagedNetwork:
    """The stages of a U-Net: encoder.0 … encoder.n, decoder.0 … decoder.n, head.

    Raises UserError for a network whose stages can't be told.
    """
    if not isinstance(model, smp.Unet):
        raise UserError(f"stages of {type(model).__name__} can't be cut: take a U-Net (unet:ENCODER)")
    if model.classification_head is not None:
        raise UserError("a network with a classification head (aux_params) can't be cut: save it without")
    encoder = [Stage(f"encoder.{i}", modules) for i, modules in enumerate(_encoder_blocks(model.encoder))]
    decoder = _unet_decoder(cast(Any, model.decoder), len(encoder))
    return StagedNetwork(model, [*encoder, *decoder, Stage(HEAD, [cast(nn.Module, model.segmentation_head)])])


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
    made = copy.deepcopy(model).to("meta")
    for layer in made.modules():
        layer.__class__ = ALONE.get(type(layer), type(layer))
    return made


def tap_shapes(network: StagedNetwork, size: Size) -> dict[str, tuple[int, int, int]]:
    """(c, h, w) of every tap at an input of `size`, the image included, without computing anything."""
    image = torch.empty(1, input_channels(network.model), *size, device="meta")
    shadow = cut(ghost(network.model).eval())
    with torch.no_grad():
        taps = {IMAGE: image, **shadow.run({IMAGE: image}, size)}
    return {name: cast(tuple[int, int, int], tuple(tap.shape[1:])) for name, tap in taps.items()}


def _encoder_blocks(encoder: Any) -> list[list[nn.Module]]:
    if isinstance(encoder, ResNetEncoder):
        return _resnet_blocks(encoder)
    if isinstance(encoder, TimmUniversalEncoder) and isinstance(encoder.model, FeatureListNet):
        blocks = _timm_blocks(encoder.model)
        if not encoder._is_transformer_style and not encoder._is_channel_last and not encoder._is_vgg_style:
            return blocks
    raise UserError(
        f"stages of the encoder {type(encoder).__name__} can't be cut: take a ResNet (resnet34, tu-resnet18 …)"
    )


def _resnet_blocks(encoder: ResNetEncoder) -> list[list[nn.Module]]:
    layers: list[list[nn.Module]] = [
        [encoder.conv1, encoder.bn1, encoder.relu],
        [encoder.maxpool, encoder.layer1],
        [encoder.layer2],
        [encoder.layer3],
        [encoder.layer4],
    ]
    return layers[: encoder._depth]


def _timm_blocks(model: FeatureListNet) -> list[list[nn.Module]]:
    """timm keeps an encoder's modules in order and names those after which a feature leaves."""
    blocks: list[list[nn.Module]] = [[]]
    for name, module in model.items():
        blocks[-1].append(module)
        if name in model.return_layers:
            blocks.append([])
    return blocks[:-1]


def _unet_decoder(decoder: Any, depth: int) -> list[Stage]:
    stages: list[Stage] = []
    for i, block in enumerate(decoder.blocks):
        skip = f"encoder.{depth - 2 - i}" if i <= depth - 2 else None
        center = [] if i or isinstance(decoder.center, nn.Identity) else [decoder.center]
        stages.append(UnetDecoderStage(f"decoder.{i}", [*center, block], skip))
    return stages
