"""Losses against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from segskd.distill.planning.losses import (
    CACHED,
    attention_loss,
    channelwise_loss,
    feature_loss,
    flow_loss,
    label_loss,
    real_or_not,
    soft_loss,
)


def test_feature_loss_is_the_mean_of_squares() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 4.0]]]])
    assert feature_loss(student, teacher).item() == pytest.approx((0 + 4 + 9 + 0) / 4)


def test_feature_loss_is_reckoned_in_fp32() -> None:
    student = torch.full((1, 1, 1, 1), 256.0, dtype=torch.bfloat16)
    teacher = torch.full((1, 1, 1, 1), 258.0, dtype=torch.bfloat16)
    loss = feature_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == 4.0


def test_feature_loss_of_more_values_than_are_copied_at_once() -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 5, 97, 101).to(torch.bfloat16).to(memory_format=torch.channels_last)
    assert student.numel() > CACHED
    teacher = torch.randn(student.shape).to(torch.bfloat16)
    expected = (student - teacher).double().square().mean().item()
    assert feature_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_loss_and_its_gradient_are_those_of_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, 5, 7, dtype=torch.float64).to(dtype).requires_grad_()
    teacher = torch.randn(2, 3, 5, 7).to(dtype)
    loss = feature_loss(student, teacher) * 3
    loss.backward()  # type: ignore[no-untyped-call]
    exact = student.detach().double().requires_grad_()
    expected = torch.nn.functional.mse_loss(exact, teacher.double()) * 3
    expected.backward()  # type: ignore[no-untyped-call]
    part = torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(expected.item(), rel=part)
    assert student.grad is not None
    assert exact.grad is not None
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=2 * part, atol=0.0)


def test_label_loss_leaves_ignored_pixels_out() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 1] = math.log(3)  # class 1 has probability 3/4 at the second pixel
    mask = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert label_loss(logits, mask, 255).item() == pytest.approx(expected)


@pytest.mark.parametrize("ignore_index", [1, 255])
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]
)
def test_label_loss_and_its_gradient_are_those_of_pytorch(
    ignore_index: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 7).to(dtype, memory_format=layout).requires_grad_()
    mask = torch.randint(4, (2, 5, 7)).to(torch.uint8)
    mask[:, 0] = ignore_index
    loss = 3 * label_loss(logits, mask, ignore_index)
    loss.backward()  # type: ignore[no-untyped-call]
    exact = logits.detach().double().requires_grad_()
    expected = 3 * torch.nn.functional.cross_entropy(exact, mask.long(), ignore_index=ignore_index)
    expected.backward()  # type: ignore[no-untyped-call]
    part = torch.finfo(dtype).eps
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    assert exact.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * part, atol=1e-8)


def test_label_loss_without_a_gradient_is_the_same() -> None:
    logits, mask = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 1]]])
    with torch.no_grad():
        loss = label_loss(logits, mask, 255)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, mask).item())


def test_label_loss_of_nothing_but_ignored_pixels_is_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = label_loss(logits, torch.full((1, 2, 2), 11, dtype=torch.uint8), 11)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_soft_loss_is_the_divergence_of_softened_logits_times_the_temperature_squared() -> None:
    teacher = torch.zeros(1, 2, 1, 1)
    teacher[0, 1] = 2 * math.log(3)  # at temperature 2 the teacher says 1/4 and 3/4, the student 1/2 and 1/2
    expected = 4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert soft_loss(torch.zeros(1, 2, 1, 1), teacher, temperature=2.0).item() == pytest.approx(expected)


def test_soft_loss_is_the_mean_over_pixels() -> None:
    student, teacher = torch.randn(2, 3, 2, 5, dtype=torch.float64), torch.randn(2, 3, 2, 5, dtype=torch.float64)
    p, q = (torch.softmax(logits / 3, 1).numpy() for logits in (teacher, student))
    expected = 9 * (p * np.log(p / q)).sum(1).mean()
    assert soft_loss(student, teacher, temperature=3.0).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_where_a_feature_is_strong() -> None:
    student = torch.tensor([[[[3.0, 4.0]]]])  # squares 9 and 16
    teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # squares summed over channels: 1 and 1
    expected = 2 - 2 * (9 + 16) / (math.hypot(9, 16) * math.sqrt(2))  # |a - b|^2 of two vectors of length 1
    assert attention_loss(student, teacher).item() == pytest.approx(expected)


def test_the_larger_attention_map_is_averaged_down() -> None:
    student = torch.tensor([[[[1.0, 3.0, 2.0, 2.0]]]])  # squares 1 9 4 4, in pairs 5 and 4
    teacher = torch.tensor([[[[2.0, 0.0]]]])  # squares 4 and 0: all in the first place
    expected = 2 - 2 * 5 / math.hypot(5, 4)
    assert attention_loss(student, teacher).item() == pytest.approx(expected)


def test_flow_is_the_product_of_two_features_over_all_positions() -> None:
    first = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    second = torch.tensor([[[[3.0, 1.0]]]])
    nothing = [torch.zeros_like(first), torch.zeros_like(second)]
    # G = [(1*3 + 2*1) / 2, (0*3 + 1*1) / 2]
    assert flow_loss(first, second, *nothing).item() == pytest.approx((2.5**2 + 0.5**2) / 2)


def test_the_larger_feature_of_a_flow_is_pooled_by_its_maxima() -> None:
    first = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    second = torch.tensor([[[[3.0]]]])
    nothing = [torch.zeros_like(first), torch.zeros_like(second)]
    assert flow_loss(first, second, *nothing).item() == pytest.approx(((2 * 3) ** 2 + (1 * 3) ** 2) / 2)


def test_channelwise_loss_compares_where_each_channel_looks() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    p, q = (torch.softmax(feature.flatten(2) / 4, 2).numpy() for feature in (teacher, student))
    expected = 16 * np.mean([[(p[n, c] * np.log(p[n, c] / q[n, c])).sum() for c in range(4)] for n in range(2)])
    assert channelwise_loss(student, teacher, temperature=4.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_discriminators_scores_are_told_by_binary_cross_entropy() -> None:
    scores = torch.tensor([[0.0, math.log(3)]])  # the teacher's with probability 1/2 and 3/4
    assert real_or_not(scores, real=True).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert real_or_not(scores, real=False).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize("loss", [partial(soft_loss, temperature=4.0), attention_loss])
def test_losses_are_reckoned_in_fp32_under_autocast(loss: Callable[..., torch.Tensor]) -> None:
    student, teacher = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(student, teacher)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, loss(student, teacher))


def test_flows_are_reckoned_in_fp32_under_autocast() -> None:
    features = [torch.randn(1, 4, 8, 8) for _ in range(4)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = flow_loss(*features)
    assert torch.equal(mixed, flow_loss(*features))
