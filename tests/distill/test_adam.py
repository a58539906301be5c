"""Adam on weights in any memory format, against PyTorch's own that goes by strides."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from segskd.distill.training.adam import Adam

SHAPES = ((8, 6, 3, 3), (8, 1, 3, 3), (8, 6, 1, 1), (1, 6, 3, 3), (5, 4, 3), (7, 5), (9,))
FORMATS = (torch.channels_last, torch.contiguous_format)
RATE, DECAY = 0.1, 0.01


def laid(tensor: Tensor, form: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor


def weights(form: torch.memory_format) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(laid(torch.randn(shape, generator=generator), form)) for shape in SHAPES]


def gradients(step: int, form: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [laid(torch.randn(shape, generator=generator), form) for shape in SHAPES]


def walk(optimiser: Adam, trained: list[nn.Parameter], steps: range, form: torch.memory_format) -> None:
    for step in steps:
        for weight, gradient in zip(trained, gradients(step, form), strict=True):
            weight.grad = gradient
        optimiser.take_gradients()
        optimiser.step()
        optimiser.zero_grad()
        assert all(weight.grad is None for weight in trained)


def by_strides(steps: int) -> list[nn.Parameter]:
    """The same steps by PyTorch's loop over tensors."""
    trained = weights(torch.contiguous_format)
    optimiser = torch.optim.Adam(trained, lr=RATE, weight_decay=DECAY, foreach=False)
    for step in range(steps):
        for weight, gradient in zip(trained, gradients(step, torch.contiguous_format), strict=True):
            weight.grad = gradient
        optimiser.step()
    return trained


def same(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lie", FORMATS)
@pytest.mark.parametrize("come", FORMATS)
def test_steps_are_those_of_adam_however_weights_and_gradients_lie(
    lie: torch.memory_format, come: torch.memory_format
) -> None:
    trained = weights(lie)
    strides = [weight.stride() for weight in trained]
    walk(Adam(trained, RATE, DECAY), trained, range(4), come)
    same(trained, by_strides(4))
    assert [weight.stride() for weight in trained] == strides


@pytest.mark.parametrize("later", FORMATS)
def test_goes_on_from_its_state_with_weights_that_lie_another_way(later: torch.memory_format) -> None:
    before = weights(torch.channels_last)
    optimiser = Adam(before, RATE, DECAY)
    walk(optimiser, before, range(2), torch.channels_last)
    state = copy.deepcopy(optimiser.state_dict())
    shapes = [tuple(state["state"][place]["exp_avg"].shape) for place in range(len(SHAPES))]
    assert shapes == list(SHAPES)
    trained = [nn.Parameter(laid(weight.detach().clone(), later)) for weight in before]
    other = Adam(trained, RATE, DECAY)
    other.load_state_dict(state)
    walk(other, trained, range(2, 4), later)
    same(trained, by_strides(4))


def test_goes_on_from_the_state_of_an_adam_that_is_not_fused() -> None:
    trained = weights(torch.channels_last)
    optimiser = torch.optim.Adam(trained, lr=RATE, weight_decay=DECAY, foreach=False)
    for step in range(2):
        for weight, gradient in zip(trained, gradients(step, torch.channels_last), strict=True):
            weight.grad = gradient
        optimiser.step()
    other = Adam(trained, RATE, DECAY)
    other.load_state_dict(optimiser.state_dict())
    walk(other, trained, range(2, 4), torch.channels_last)
    same(trained, by_strides(4))


def test_gradients_are_not_copied() -> None:
    (weight,) = trained = weights(torch.channels_last)[:1]
    optimiser = Adam(trained, RATE, DECAY)
    weight.grad = gradients(0, torch.channels_last)[0]
    optimiser.take_gradients()
    (seen,) = optimiser.param_groups[0]["params"]
    assert seen.grad.data_ptr() == weight.grad.data_ptr()
    assert seen.data_ptr() == weight.data_ptr()


def test_what_has_no_gradient_stands_still() -> None:
    trained = weights(torch.channels_last)
    first = [weight.detach().clone() for weight in trained]
    optimiser = Adam(trained, RATE, DECAY)
    trained[0].grad = gradients(0, torch.channels_last)[0]
    optimiser.take_gradients()
    optimiser.step()
    moved = [not torch.equal(weight, before) for weight, before in zip(trained, first, strict=True)]
    assert moved == [True] + [False] * (len(SHAPES) - 1)


def test_zero_grad_can_leave_zeros() -> None:
    (weight,) = trained = weights(torch.channels_last)[:1]
    optimiser = Adam(trained, RATE, DECAY)
    weight.grad = gradients(0, torch.contiguous_format)[0]
    optimiser.take_gradients()
    optimiser.zero_grad(set_to_none=False)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_weights_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="gaps"):
        Adam([nn.Parameter(torch.zeros(4, 6)[:, :3])], RATE, DECAY)
