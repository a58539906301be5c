"""Structured pruning: removes whole channels from a student, and adapts its adapters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segskd.config import Size
from segskd.devices import out_of_memory
from segskd.errors import UserError
from segskd.models.adapters import Adapters, probe_adapters, with_identities
from segskd.models.build import input_channels
from segskd.models.cut import takes
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, meta_copy
from segskd.standalone.narrow import PRUNED, narrow

ROUND_TO = 8
"""Numbers of channels are rounded up to multiples of it, since convolutions compute these fastest."""
LEAST = 16
"""The least number of channels that a layer keeps. The last layers before the head have no more, and need them."""
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
TRACED: Size = (64, 64)
PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def prune(student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, ratio: float, size: Size) -> Adapters:
    """Removes about the share `ratio` of each layer's channels from the student, in place. All outputs stay.

    Layers whose channels must match (residuals, skips) lose the same channels: those of the smallest norm over all
    weights that read or write them (DepGraph, arXiv 2301.12900). Returns the adapters for the narrower features at the
    padded `size`. Each begins with the weights of the old adapter, or of the identity, for the channels that stay.
    Raises UserError for a network whose channels can't be followed from layer to layer.
    """
    names = [name for name in student.names if name != HEAD and name in teacher.names]
    whole = copy.deepcopy(student.model)
    height, width = TRACED if takes(student.model, TRACED) else size
    image = torch.ones(1, input_channels(whole), height, width, device=next(whole.parameters()).device)
    try:
        _check_followed(whole, image)
        everywhere = with_identities(adapters, student, names, size)
        _prune(student, everywhere, ratio, image)
        _check(student.model, whole, ratio, image)
        needed = probe_adapters(student, teacher, names, size)
    except Exception as error:  # a network that lost the wrong channels can raise any error
        raise out_of_memory(error) or UserError(
            f"the channels of this {type(whole).__name__} can't be pruned: {_error_text(error)}"
        ) from error
    return Adapters({key: everywhere[key] for key in needed})


def _prune(student: StagedNetwork, adapters: Adapters, ratio: float, image: Tensor) -> None:
    with_features = _WithFeatures(student, adapters)
    outputs = [*adapters.modules(), *student.stages[HEAD].modules()]
    gradients = [parameter.requires_grad for parameter in with_features.parameters()]
    training = student.model.training
    with_features.eval().requires_grad_(True)  # torch-pruning follows layers through the graph of gradients
    ratios = {layer: 1 - _width_after(layer, ratio) / _width(layer) for layer in _layers(student.model)}
    try:
        with torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                with_features,
                image,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio_dict=ratios,
                ignored_layers=[layer for layer in outputs if isinstance(layer, nn.Conv2d)],
                round_to=ROUND_TO,
            )
            # Depthwise layers come last: starting from one, torch-pruning would mix the channels of all layers that it
            # reads.
            pruner.DG.module2node = dict(sorted(pruner.DG.module2node.items(), key=lambda item: _depthwise(item[0])))
            pruner.step()
    except Exception as error:  # operations that torch-pruning doesn't know can raise any error
        raise out_of_memory(error) or RuntimeError(
            f"torch-pruning can't follow its layers ({_error_text(error)})"
        ) from error
    if unused := set(_layers(student.model)) - pruner.DG.module2node.keys():
        _narrow_unused(unused, student.model, image)
    with_features.requires_grad_(all(gradients))
    student.model.train(training)


def _check_followed(model: nn.Module, image: Tensor) -> None:
    """Raises RuntimeError for products of features: following their channels would take torch-pruning all memory."""
    products = _Products()  # type: ignore[no-untyped-call]
    with torch.no_grad(), products:
        meta_copy(model).eval()(image.to("meta"))
    if products.any:
        raise RuntimeError(
            "it multiplies features with each other (attention), and channels can't be followed through such products: "
            "take a convolutional student, or export this one in INT8"
        )


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices batched matrix products. They multiply features with features, or rarely with a parameter."""

    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any |= func.overloadpacket in PRODUCTS or "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


def _narrow_unused(unused: Iterable[nn.Module], model: nn.Module, image: Tensor) -> None:
    """Narrows layers whose outputs aren't used, such as MobileNet's after the last feature of a PSPNet."""

    def fit(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        width = given[0].shape[1]
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > width:
            layer.weight, layer.in_channels = nn.Parameter(layer.weight[:, :width].detach().clone()), width

    watched = [layer.register_forward_pre_hook(fit) for layer in unused]
    with torch.no_grad():
        model(image)
    for handle in watched:
        handle.remove()


def _error_text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check(model: nn.Module, whole: nn.Module, ratio: float, image: Tensor) -> None:
    """Raises RuntimeError where a layer lost more than `ratio`, or saving and loading would change the model."""
    wanted = {name: _width_after(layer, ratio) for name, layer in whole.named_modules() if isinstance(layer, LAYERS)}
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and _width(layer) < wanted[name]:
            raise RuntimeError(f"{name} would be left with {_width(layer)} channels instead of {wanted[name]}")
    weights = model.state_dict()
    narrow(whole, weights, ratio)
    whole.load_state_dict(weights)
    cast(Any, model).config[PRUNED] = ratio
    training = model.training
    with torch.no_grad():
        if not torch.allclose(model.eval()(image), whole.eval()(image), rtol=1e-3, atol=1e-4):
            raise RuntimeError("it would predict other masks after saving and loading")
    model.train(training)


def _layers(model: nn.Module) -> list[Layer]:
    return [layer for layer in model.modules() if isinstance(layer, LAYERS)]


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _width(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _width_after(layer: Layer, ratio: float) -> int:
    """The outputs that a layer keeps: a multiple of ROUND_TO and at least LEAST, unless it has fewer anyway."""
    width = _width(layer)
    return min(width, max(LEAST, math.ceil(round(width * (1 - ratio), 6) / ROUND_TO) * ROUND_TO))


class _WithFeatures(nn.Module):
    """Maps images (N, C, H, W) to the projections of all features by their adapters, and to the logits."""

    def __init__(self, network: StagedNetwork, adapters: Adapters) -> None:
        super().__init__()
        self.model = network.model
        self.adapters = adapters
        self._network = [network]

    def forward(self, image: Tensor) -> list[Tensor]:
        """The projected features and the logits."""
        features = self._network[0].run({IMAGE: image}, (image.shape[-2], image.shape[-1]))
        return [self.adapters.adapt(name, feature) for name, feature in features.items()]
