"""Adam that goes through weights in the order in which they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(torch.optim.Adam):
    """PyTorch's fused Adam (Kingma & Ba, arXiv 1412.6980) for weights in any memory format.

    On the CPU its kernel walks through memory, whatever the strides say: gradients and moments that lie otherwise than
    their weights meet the wrong ones, and gradients that are not contiguous, as those of channels-last weights, are
    copied first (PyTorch 2.15). So it is given views of weights, gradients and moments in which all are contiguous.
    The weights must stay where they lie as long as it is in use.
    What `state_dict` gives and `load_state_dict` takes has the weights' own shapes.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Raises ValueError for weights with gaps between their values."""
        self._weights = list(weights)
        self._orders = [_order(weight) for weight in self._weights]
        lying = [weight.detach().permute(order) for weight, order in zip(self._weights, self._orders, strict=True)]
        if not all(view.is_contiguous() for view in lying):
            raise ValueError("weights with gaps between their values can't be trained")
        self._lying = [nn.Parameter(view) for view in lying]
        super().__init__(self._lying, lr=lr, weight_decay=weight_decay, fused=True)

    def take_gradients(self) -> None:
        """Has the next step go by the gradients that the weights have now."""
        for weight, order, lying in zip(self._weights, self._orders, self._lying, strict=True):
            lying.grad = None if weight.grad is None else weight.grad.permute(order).contiguous()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets the gradients go, or makes them zero."""
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
        """The same state with its moments' axes in another order."""
        groups = [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]
        moments = {
            place: {name: turn(value, self._orders[place]) if name in MOMENTS else value for name, value in own.items()}
            for place, own in state["state"].items()
        }
        return {**state, "state": moments, "param_groups": groups}


def _order(weight: Tensor) -> list[int]:
    """The axes of a tensor from that with the longest way between neighbours to that with the shortest."""
    return sorted(range(weight.dim()), key=lambda axis: -weight.stride()[axis])


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
