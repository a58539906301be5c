"""Loads pruned networks: networks of segmentation_models_pytorch with fewer channels than their config says.

Packages of pruned networks contain this file, so it imports nothing of SegSKD.
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
"""The key in config.json of the share of channels that was pruned. It isn't an argument of the network."""


def load(folder: Path) -> nn.Module:
    """The pruned network that config.json and model.safetensors in `folder` describe, in eval mode.

    Raises RuntimeError when the weights aren't those of the config's network with fewer channels.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ratio, name = config.pop(PRUNED), config.pop("_model_class")
    model: nn.Module = getattr(smp, name)(**{**config, "encoder_weights": None})
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    narrow(model, weights, ratio)
    model.load_state_dict(weights)
    return model.eval()


def narrow(model: nn.Module, weights: Mapping[str, Tensor], ratio: float) -> None:
    """Gives each convolution, linear and normalisation layer the numbers of channels of its tensors in `weights`.

    The values of the changed layers are undefined afterwards, so `weights` must be loaded next, strictly. `ratio`, the
    share of channels that was pruned, is added to the model's config. Raises RuntimeError for a layer that can't be
    changed.
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
    """Sets the layer's numbers of channels to those of its new weight.

    The weight is (out, in / groups, …), or (in, out / groups, …) for a transposed convolution.
    """
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
