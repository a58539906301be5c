"""torchvision's segmentation networks in the form of the others: encoder, decoder and segmentation head.

Their forward is torchvision's own `model(x)["out"]`, bit for bit in eval mode, at sides that are multiples of the
encoder's stride. They are teachers only: exports are made of segmentation_models_pytorch's networks.
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
"""A second head, for torchvision's training alone."""
PROBED = 256
"""Side of an image that tells the strides apart."""


class TorchvisionModel(nn.Module):
    """One of TORCHVISION with weights: float (N, channels, H, W) to logits (N, classes, H, W).

    `network` is torchvision's own; its modules become this one's.
    """

    def __init__(self, arch: str, network: nn.Module) -> None:
        super().__init__()
        parts = cast(Any, network)
        self.encoder = TappedEncoder(parts.backbone)
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
        """Raises RuntimeError for sides that are no multiples of the stride, where torchvision scales unevenly."""
        stride, (height, width) = self.encoder.strides[-1], image.shape[-2:]
        if height % stride or width % stride:
            raise RuntimeError(f"images of {height}x{width} don't fit: both sides must be multiples of {stride}")
        return cast(Tensor, self.segmentation_head(self.decoder(self.encoder(image))))


class TappedEncoder(nn.Module):
    """torchvision's backbone, giving [image, feature, feature, …] with the coarsest last.

    A feature leaves after the last block of each resolution, dilation counting as resolution that was traded for it,
    and wherever torchvision's own head takes a feature.
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
        """Place in the list of the feature that torchvision calls so, such as "low"."""
        at = next(block for block, name in self._returned.items() if name == returned)
        return 1 + self._features.index(at)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, channels, H, W) to the list of features."""
        features, x = [image], image
        for name, block in self.blocks.items():
            x = block(x)
            if name in self._features:
                features.append(x)
        return features


class LastFeature(nn.Module):
    """A classifier without its last layer, which sees the coarsest feature alone."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The list of features to (N, c, h, w)."""
        return cast(Tensor, self.blocks(features[-1]))


class LiteDecoder(nn.Module):
    """Lite R-ASPP but for its two last convolutions: the fine feature and the pooled coarse one, side by side."""

    def __init__(self, head: LRASPPHead, low: int, high: int) -> None:
        super().__init__()
        self.cbr, self.scale = head.cbr, head.scale
        self._low, self._high = low, high

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The list of features to (N, channels of both, h, w) at the fine one's size."""
        low, high = features[self._low], features[self._high]
        coarse = self.cbr(high) * self.scale(high)
        coarse = nn.functional.interpolate(coarse, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([low, coarse], 1)


class SummedHead(nn.Module):
    """Lite R-ASPP's two last convolutions, whose logits are summed."""

    def __init__(self, head: LRASPPHead) -> None:
        super().__init__()
        self.low, self.high = head.low_classifier, head.high_classifier
        self.out_channels = self.low.out_channels

    def forward(self, both: Tensor) -> Tensor:
        """(N, channels of both, h, w) to (N, classes, h, w)."""
        low, coarse = torch.split(both, [self.low.in_channels, self.high.in_channels], dim=1)
        return cast(Tensor, self.low(low) + self.high(coarse))


def torchvision_network(arch: str, classes: int, channels: int = 3) -> nn.Module:
    """torchvision's own network with random weights and no auxiliary head; nothing is downloaded."""
    network: nn.Module = getattr(segmentation, arch)(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=False
    )
    if channels != 3:
        _take_channels(cast(Any, network).backbone, channels)
    return network


def load(folder: Path) -> TorchvisionModel:
    """The network that config.json and model.safetensors describe, in eval mode.

    Raises RuntimeError, KeyError or AttributeError where they describe none.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["arch"] not in TORCHVISION:
        raise KeyError(f"there is no network {config['arch']}: known are {', '.join(TORCHVISION)}")
    network = torchvision_network(config["arch"], config["classes"], config["in_channels"])
    model = TorchvisionModel(config["arch"], network)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return model.eval()


def _take_channels(backbone: nn.Module, channels: int) -> None:
    """Puts a first convolution of another number of channels in the place of the first."""
    name, first = next((name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d))
    arguments = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
    made = nn.Conv2d(channels, first.out_channels, **arguments, bias=first.bias is not None)
    parent, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(parent), own, made)


def _resolutions(blocks: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """(stride, largest dilation so far) after each block, without computing anything."""
    found, dilation = [], 1
    with torch.no_grad():
        x: Tensor | None = None
        for block in blocks:
            on_meta = copy.deepcopy(block).to("meta").eval()
            if x is None:
                x = torch.empty(1, _first(on_meta).in_channels, PROBED, PROBED, device="meta")
            x = on_meta(x)
            dilation = max([dilation, *(c.dilation[0] for c in on_meta.modules() if isinstance(c, nn.Conv2d))])
            found.append((PROBED // x.shape[-1], dilation))
    return found


def _first(block: nn.Module) -> nn.Conv2d:
    return next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
