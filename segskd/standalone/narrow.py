"""Pruned networks on disk: a network of segmentation_models_pytorch with fewer channels than its config says.

Goes into packages beside predict.py as it is, so it knows nothing of SegSKD.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

PRUNED = "pruning_ratio"
"""What config.json says of a pruned network beside the network's own arguments: the share of channels taken away."""


def load(folder: Path) -> nn.Module:
    """The network that config.json and model.safetensors of a pruned network describe, in eval mode.

    Raises RuntimeError where the weights are not those of the config's network with other numbers of channels.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ratio, name = config.pop(PRUNED), config.pop("_model_class")
    model: nn.Module = getattr(smp, name)(**{**config, "encoder_weights": None})
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    narrow(model, weights, ratio)
    model.load_state_dict(weights)
    return model.eval()


def narrow(model: nn.Module, weights: Mapping[str, Tensor], ratio: float) -> None:
    """Gives every convolution, linear and normalisation layer as many channels as its tensors in `weights` have.

    What stands in the changed layers is no longer defined: load `weights` next, strictly. The model's config notes
    `ratio`, the share of channels that was taken away.
    """
    cast(Any, model).config[PRUNED] = ratio
    for name, layer in model.named_modules():
        own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        given = {key: weights[f"{name}.{key}"] for key in own if f"{name}.{key}" in weights}
        if all(own[key].shape == tensor.shape for key, tensor in given.items()):
            continue
        if "weight" not in given:
            raise RuntimeError(f"a {type(layer).__name__} can't be given other channels")
        for key, tensor in given.items():
            empty = torch.empty_like(tensor)
            setattr(layer, key, nn.Parameter(empty) if isinstance(own[key], nn.Parameter) else empty)
        _count(layer, given["weight"])


def _count(layer: nn.Module, weight: Tensor) -> None:
    """Makes the layer's own numbers those of its new weight: (out, in / groups, …), or (in, …) of a transposed one."""
    if isinstance(layer, nn.Conv2d):
        depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
        layer.groups = weight.shape[0] if depthwise else layer.groups
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.ConvTranspose2d):
        depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
        layer.groups = weight.shape[0] if depthwise else layer.groups
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    else:
        raise RuntimeError(f"a {type(layer).__name__} can't be given other channels")
