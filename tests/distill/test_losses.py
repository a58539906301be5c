"""Losses against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from segskd.distill.losses import label_loss, tap_loss


def test_tap_loss_is_the_mean_of_squares() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 4.0]]]])
    assert tap_loss(student, teacher).item() == pytest.approx((0 + 4 + 9 + 0) / 4)


def test_tap_loss_is_reckoned_in_fp32() -> None:
    student = torch.full((1, 1, 1, 1), 256.0, dtype=torch.bfloat16)
    teacher = torch.full((1, 1, 1, 1), 258.0, dtype=torch.bfloat16)
    loss = tap_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == 4.0


def test_label_loss_leaves_ignored_pixels_out() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 1] = math.log(3)  # class 1 has probability 3/4 at the second pixel
    mask = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert label_loss(logits, mask, 255).item() == pytest.approx(expected)


def test_label_loss_of_nothing_but_ignored_pixels_is_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = label_loss(logits, torch.full((1, 2, 2), 11, dtype=torch.uint8), 11)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
