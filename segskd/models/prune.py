"""Structured pruning: whole channels are taken away from a student, and its adapters keep up with it."""

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
from segskd.models.adapters import Adapters, at_every_feature, probe_adapters
from segskd.models.build import input_channels
from segskd.models.cut import takes
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, ghost
from segskd.standalone.narrow import PRUNED, narrow

ROUND_TO = 8
"""Numbers of channels are multiples of it, rounded up: kernels are made for them, and narrow layers need theirs."""
LEAST = 16
"""No layer is left with fewer channels: the last ones before the head have no more, and would lose most."""
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
TRACED: Size = (64, 64)
PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def prune(student: StagedNetwork, teacher: StagedNetwork, adapters: Adapters, ratio: float, size: Size) -> Adapters:
    """Takes about `ratio` of the channels of every layer away from the student, in place; its outputs stay.

    Layers that must agree (residuals, skips) lose the same channels: those of the least norm over all that read or
    write them (DepGraph, arXiv 2301.12900). Returns the adapters of the narrower features at the padded `size`; each
    begins as what the old adapter, or the identity where features agreed, made of the channels that stay.
    Raises UserError for a network whose layers can't be followed.
    """
    names = [name for name in student.names if name != HEAD and name in teacher.names]
    whole = copy.deepcopy(student.model)
    height, width = TRACED if takes(student.model, TRACED) else size
    image = torch.ones(1, input_channels(whole), height, width, device=next(whole.parameters()).device)
    try:
        _check_followed(whole, image)
        everywhere = at_every_feature(adapters, student, names, size)
        _prune(student, everywhere, ratio, image)
        _check(student.model, whole, ratio, image)
        needed = probe_adapters(student, teacher, names, size)
    except Exception as error:  # a network that lost the wrong channels ends in any error
        raise out_of_memory(error) or UserError(
            f"the channels of this {type(whole).__name__} can't be pruned: {_told(error)}"
        ) from error
    return Adapters({key: everywhere[key] for key in needed})


def _prune(student: StagedNetwork, adapters: Adapters, ratio: float, image: Tensor) -> None:
    tapped = _Tapped(student, adapters)
    outputs = [*adapters.modules(), *student.stages[HEAD].modules()]
    gradients = [parameter.requires_grad for parameter in tapped.parameters()]
    training = student.model.training
    tapped.eval().requires_grad_(True)  # layers are followed along the functions of the gradients
    kept = {layer: 1 - _kept(layer, ratio) / _width(layer) for layer in _layers(student.model)}
    try:
        with torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                tapped,
                image,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio_dict=kept,
                ignored_layers=[layer for layer in outputs if isinstance(layer, nn.Conv2d)],
                round_to=ROUND_TO,
            )
            # Begun at a depthwise layer that reads several others, it would take each one's channels as they come.
            pruner.DG.module2node = dict(sorted(pruner.DG.module2node.items(), key=lambda item: _depthwise(item[0])))
            pruner.step()
    except Exception as error:  # operations that it doesn't know end in any error
        raise out_of_memory(error) or RuntimeError(f"torch-pruning can't follow its layers ({_told(error)})") from error
    if idle := set(_layers(student.model)) - pruner.DG.module2node.keys():
        _fit(idle, student.model, image)
    tapped.requires_grad_(all(gradients))
    student.model.train(training)


def _check_followed(model: nn.Module, image: Tensor) -> None:
    """Raises RuntimeError for products of features: torch-pruning would take all memory in following their channels."""
    products = _Products()  # type: ignore[no-untyped-call]
    with torch.no_grad(), products:
        ghost(model).eval()(image.to("meta"))
    if products.found:
        raise RuntimeError(
            "it multiplies features with each other (attention), through which channels can't be followed: take a "
            "student of convolutions, or export this one in 8 bits"
        )


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees batched products of matrices: those of features with features, and the rare ones with a parameter."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func.overloadpacket in PRODUCTS or "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


def _fit(idle: Iterable[nn.Module], model: nn.Module, image: Tensor) -> None:
    """Has layers that run for nothing, such as MobileNet's behind the last feature of a PSPNet, take what is left."""

    def fit(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        width = given[0].shape[1]
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > width:
            layer.weight, layer.in_channels = nn.Parameter(layer.weight[:, :width].detach().clone()), width

    watched = [layer.register_forward_pre_hook(fit) for layer in idle]
    with torch.no_grad():
        model(image)
    for handle in watched:
        handle.remove()


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check(model: nn.Module, whole: nn.Module, ratio: float, image: Tensor) -> None:
    """Raises RuntimeError where layers lost more than `ratio`, or the model can't be made of the `whole` one again."""
    wanted = {name: _kept(layer, ratio) for name, layer in whole.named_modules() if isinstance(layer, LAYERS)}
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and _width(layer) < wanted[name]:
            raise RuntimeError(f"{name} would have {_width(layer)} channels in place of {wanted[name]}")
    weights = model.state_dict()
    narrow(whole, weights, ratio)
    whole.load_state_dict(weights)
    cast(Any, model).config[PRUNED] = ratio
    training = model.training
    with torch.no_grad():
        if not torch.allclose(model.eval()(image), whole.eval()(image), rtol=1e-3, atol=1e-4):
            raise RuntimeError("saved and built again, it would give other masks")
    model.train(training)


def _layers(model: nn.Module) -> list[Layer]:
    return [layer for layer in model.modules() if isinstance(layer, LAYERS)]


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _width(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _kept(layer: Layer, ratio: float) -> int:
    """A layer's outputs less at most `ratio` of them: a multiple of ROUND_TO, and at least LEAST where it has them."""
    width = _width(layer)
    return min(width, max(LEAST, math.ceil(round(width * (1 - ratio), 6) / ROUND_TO) * ROUND_TO))


class _Tapped(nn.Module):
    """(N, C, H, W) to the features behind their adapters' projections, and the logits."""

    def __init__(self, network: StagedNetwork, adapters: Adapters) -> None:
        super().__init__()
        self.model = network.model
        self.adapters = adapters
        self._network = [network]

    def forward(self, image: Tensor) -> list[Tensor]:
        """All that leaves the network."""
        features = self._network[0].run({IMAGE: image}, (image.shape[-2], image.shape[-1]))
        return [self.adapters.adapt(name, feature) for name, feature in features.items()]
