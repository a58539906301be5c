"""torchvision's segmentation networks, split into encoder, decoder and segmentation head as SegSKD needs it.

In eval mode their outputs equal torchvision's `model(x)["out"]`, bit for bit, at sides that are multiples of the
encoder's stride. They can only be teachers: exports are made of segmentation_models_pytorch's networks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.segmentation.lraspp import LRASPPHead

TORCHVISION = (
    *("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"),
    *("fcn_resnet50", "fcn_resnet101", "lraspp_mobilenet_v3_large"),
)
AUXILIARY = "aux_classifier."
"""The prefix of a second head that torchvision uses in training only."""
PROBE_SIDE = 256
"""The side of the image with which strides are measured."""


class TorchvisionModel(nn.Module):
    """One of the networks TORCHVISION: it maps images (N, channels, H, W) to logits (N, classes, H, W).

    It takes over the modules of `network`, which is torchvision's own.
    """

    def __init__(self, arch: str, network: nn.Module) -> None:
        super().__init__()
        parts = cast(Any, network)
        self.encoder = FeatureEncoder(parts.backbone)
        self.decoder: nn.Module
        last: nn.Module
        if isinstance(parts.classifier, LRASPPHead):
            places = [self.encoder.place(name) for name in ("low", "high")]
            self.decoder, last = LiteDecoder(parts.classifier, *places), SummedHead(parts.classifier)
            stride = self.encoder.strides[places[0]]
        else:
            *before, last = parts.classifier
            self.decoder, stride = LastFeature(before), self.encoder.strides[-1]
        self.segmentation_head = nn.Sequential(last, nn.Upsample(scale_factor=float(stride), mode="bilinear"))
        self.classification_head = None
        channels = next(layer.in_channels for layer in self.encoder.modules() if isinstance(layer, nn.Conv2d))
        self.config: dict[str, Any] = {"arch": arch, "classes": cast(Any, last).out_channels, "in_channels": channels}

    def forward(self, image: Tensor) -> Tensor:
        """Raises RuntimeError for sides that aren't multiples of the stride, at which the outputs would differ."""
        stride, (height, width) = self.encoder.strides[-1], image.shape[-2:]
        if height % stride or width % stride:
            raise RuntimeError(f"images of {height}x{width} don't fit: both sides must be multiples of {stride}")
        return cast(Tensor, self.segmentation_head(self.decoder(self.encoder(image))))


class FeatureEncoder(nn.Module):
    """torchvision's backbone, which returns [image, feature, feature, …] from the finest to the coarsest.

    There is a feature after the last block of each resolution, where blocks with another dilation count as another
    resolution, and wherever torchvision's own head takes a feature.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(backbone.named_children()))
        self._returned = {str(at): str(name) for at, name in cast(Any, backbone).return_layers.items()}
        steps = _resolutions(self.blocks.values())
        names = list(self.blocks)
        ends = [name for name, own, after in zip(names, steps, [*steps[1:], None], strict=True) if own != after]
        self._features = [name for name in names if name in ends or name in self._returned]
        self.strides = [1, *(steps[names.index(name)][0] for name in self._features)]

    def place(self, returned: str) -> int:
        """The place in the returned list of a feature by torchvision's name, such as "low"."""
        at = next(block for block, name in self._returned.items() if name == returned)
        return 1 + self._features.index(at)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps images (N, channels, H, W) to the list of the images and all features."""
        features, x = [image], image
        for name, block in self.blocks.items():
            x = block(x)
            if name in self._features:
                features.append(x)
        return features


class LastFeature(nn.Module):
    """A decoder that takes the coarsest feature only: torchvision's classifier without its last layer."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps the list of features to (N, c, h, w)."""
        return cast(Tensor, self.blocks(features[-1]))


class LiteDecoder(nn.Module):
    """Lite R-ASPP without its last two convolutions: it concatenates the fine feature and the pooled coarse one."""

    def __init__(self, head: LRASPPHead, low: int, high: int) -> None:
        super().__init__()
        self.cbr, self.scale = head.cbr, head.scale
        self._low, self._high = low, high

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps the list of features to (N, channels of both, h, w) in the size of the fine one."""
        low, high = features[self._low], features[self._high]
        coarse = self.cbr(high) * self.scale(high)
        coarse = nn.functional.interpolate(coarse, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([low, coarse], 1)


class SummedHead(nn.Module):
    """Lite R-ASPP's last two convolutions, whose logits are added."""

    def __init__(self, head: LRASPPHead) -> None:
        super().__init__()
        self.low, self.high = head.low_classifier, head.high_classifier
        self.out_channels = self.low.out_channels

    def forward(self, both: Tensor) -> Tensor:
        """Maps (N, channels of both, h, w) to logits (N, classes, h, w)."""
        low, coarse = torch.split(both, [self.low.in_channels, self.high.in_channels], dim=1)
        return cast(Tensor, self.low(low) + self.high(coarse))


def torchvision_network(arch: str, classes: int, channels: int = 3) -> nn.Module:
    """torchvision's own network with random weights and without its auxiliary head. It downloads nothing."""
    network: nn.Module = getattr(segmentation, arch)(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=False
    )
    if channels != 3:
        _take_channels(cast(Any, network).backbone, channels)
    return network


def load(folder: Path) -> TorchvisionModel:
    """The network that config.json and model.safetensors in `folder` describe, in eval mode.

    Raises RuntimeError, KeyError or AttributeError when they describe none.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["arch"] not in TORCHVISION:
        raise KeyError(f"there is no network {config['arch']}: known are {', '.join(TORCHVISION)}")
    network = torchvision_network(config["arch"], config["classes"], config["in_channels"])
    model = TorchvisionModel(config["arch"], network)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return model.eval()


def _take_channels(backbone: nn.Module, channels: int) -> None:
    """Replaces the first convolution by one for another number of input channels."""
    name, first = next((name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d))
    arguments = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
    made = nn.Conv2d(channels, first.out_channels, **arguments, bias=first.bias is not None)
    parent, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(parent), own, made)


def _resolutions(blocks: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """The stride and the largest dilation so far after each block. It computes no values."""
    resolutions, dilation = [], 1
    with torch.no_grad():
        x: Tensor | None = None
        for block in blocks:
            on_meta = copy.deepcopy(block).to("meta").eval()
            if x is None:
                x = torch.empty(1, _first(on_meta).in_channels, PROBE_SIDE, PROBE_SIDE, device="meta")
            x = on_meta(x)
            dilation = max([dilation, *(c.dilation[0] for c in on_meta.modules() if isinstance(c, nn.Conv2d))])
            resolutions.append((PROBE_SIDE // x.shape[-1], dilation))
    return resolutions


def _first(block: nn.Module) -> nn.Conv2d:
    return next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
