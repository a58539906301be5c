"""What a phase minimises."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def tap_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two taps (N, c, h, w), in fp32 (the tap loss of SKD, arXiv 1911.06786)."""
    return F.mse_loss(student.float(), teacher.float())


def label_loss(logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over pixels that count; 0 when none does.

    `logits` (N, C, h, w), `mask` integer (N, h, w).
    """
    target = mask.long()
    total = F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)
