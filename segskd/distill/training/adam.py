"""Adam that steps through weights in their order in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(torch.optim.Adam):
    """PyTorch's fused Adam (Kingma & Ba, arXiv 1412.6980) for weights in any memory format.

    On the CPU the fused kernel ignores strides (PyTorch 2.15): it pairs weights with the wrong gradients and moments if
    their memory formats differ, and it copies gradients that are not contiguous, as those of channels-last weights.
    This class therefore passes views of weights, gradients and moments that are all contiguous. The weights must stay
    at their place in memory while it is in use. States have the weights' own shapes.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Raises ValueError for weights with gaps between their values."""
        self._weights = list(weights)
        self._orders = [_order(weight) for weight in self._weights]
        views = [weight.detach().permute(order) for weight, order in zip(self._weights, self._orders, strict=True)]
        if not all(view.is_contiguous() for view in views):
            raise ValueError("weights with gaps between their values can't be trained")
        self._views = [nn.Parameter(view) for view in views]
        super().__init__(self._views, lr=lr, weight_decay=weight_decay, fused=True)

    def take_gradients(self) -> None:
        """Uses the gradients that the weights have now for the next step."""
        for weight, order, view in zip(self._weights, self._orders, self._views, strict=True):
            view.grad = None if weight.grad is None else weight.grad.permute(order).contiguous()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Deletes the gradients, or sets them to zero."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """See torch.optim.Optimizer.state_dict."""
        return self._turned(super().state_dict(), lambda feature, order: feature.permute(_inverse(order)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.Optimizer.load_state_dict."""
        super().load_state_dict(self._turned(state_dict, lambda feature, order: feature.permute(order).contiguous()))

    def _turned(self, state: dict[str, Any], turn: Callable[[Tensor, list[int]], Tensor]) -> dict[str, Any]:
        """The state with `turn` applied to its moments; groups say that Adam is fused."""
        groups = [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]
        moments = {
            place: {name: turn(value, self._orders[place]) if name in MOMENTS else value for name, value in own.items()}
            for place, own in state["state"].items()
        }
        return {**state, "state": moments, "param_groups": groups}


def _order(weight: Tensor) -> list[int]:
    """The axes of a tensor from the largest stride to the smallest."""
    return sorted(range(weight.dim()), key=lambda axis: -weight.stride()[axis])


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
