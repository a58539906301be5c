"""The losses of phases. Every sum is computed in fp32, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import is_autocast_available

EPSILON = 1e-12
CACHED = 2**17
"""A copy of so many values in fp32 fits into a core's cache."""
ON_GPU = 2**26
"""Values that are copied at once on a GPU, where launching operations costs more; `dot` takes less than 2^31."""


class _SquaredError(torch.autograd.Function):
    """Mean of squares without a copy of whole features in fp32: its memory traffic would cost more than a small stage.

    The difference has the features' own precision. It is exact for values that are near each other (Sterbenz's
    lemma). The gradient of a feature has that precision in any case.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        difference = student - teacher
        ctx.save_for_backward(difference)
        ctx.precision = student.dtype
        values = difference.permute(0, 2, 3, 1).reshape(-1)  # in the order of memory
        squares = [torch.dot(part, part) for part in map(Tensor.float, torch.split(values, _at_once(values)))]
        return torch.stack(squares).sum() / values.numel()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (difference * (gradients[0] * (2 / difference.numel()))).to(ctx.precision), None


def _at_once(values: Tensor) -> int:
    """How many of these values to copy at once."""
    return CACHED if values.device.type == "cpu" else ON_GPU


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two features (N, c, h, w), in fp32 (the feature loss of SKD, arXiv 1911.06786).

    The teacher's gets no gradient.
    """
    loss: Tensor = _SquaredError.apply(student, teacher)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """The sum of F.cross_entropy in fp32, with half the copies forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        # One plane a class: a softmax along neighbouring values of a pixel is ten times slower, even without this copy.
        planes = logits.to(torch.float32, memory_format=torch.contiguous_format)
        likelihood = F.log_softmax(planes, dim=1)
        loss = F.nll_loss(likelihood, target, ignore_index=ignore_index, reduction="sum")
        if ctx.needs_input_grad[0]:
            counts = (target != ignore_index).unsqueeze(1)
            truth = target.unsqueeze(1).masked_fill(~counts, 0)
            slope = likelihood.exp_().scatter_add_(1, truth, likelihood.new_full((1,), -1.0).expand(truth.shape))
            ctx.save_for_backward(slope.mul_(counts).to(logits.dtype).contiguous(memory_format=_layout(logits)))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None, None


def _layout(feature: Tensor) -> torch.memory_format:
    channels_last = feature.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def label_loss(logits: Tensor, mask: Tensor, ignore_index: int, counted: float | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored, in fp32; 0 when all are.

    `logits` (N, C, h, w), `mask` integer (N, h, w). The sum is divided by `counted` if given, else by their number.
    """
    target = mask.long()
    total: Tensor = _CrossEntropy.apply(logits, target, ignore_index)
    return total / ((target != ignore_index).sum().clamp(min=1) if counted is None else counted or 1.0)


def _in_fp32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss without autocast: sums of products over thousands of pixels are too large or too rough in 16 bits."""

    @wraps(loss)
    def exact(student: Tensor, *others: Tensor, **options: float) -> Tensor:
        place = student.device.type
        with torch.autocast(place, enabled=False) if is_autocast_available(place) else nullcontext():
            return loss(student.float(), *(other.float() for other in others), **options)

    return exact


@_in_fp32
def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (N, C, h, w), averaged over pixels.

    Hinton, Vinyals & Dean (arXiv 1503.02531), section 2: soft targets; the factor T^2 keeps the size
    of their gradients.
    """
    theirs = F.log_softmax(teacher / temperature, dim=1)
    ours = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


@_in_fp32
def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two attention maps, averaged over the batch: between 0 and 2.

    Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928), eq. (2) with p = 2, squared as in the authors'
    code: the map is the sum of a feature's squares over channels, over positions of unit length. Features (N, c, h, w)
    may differ in channels; where they differ in size the larger map is averaged down.
    """
    size = _smaller(student, teacher)
    ours, theirs = (_attention(feature, size) for feature in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def _smaller(one: Tensor, other: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width."""
    return min(one.shape[-2], other.shape[-2]), min(one.shape[-1], other.shape[-1])


def _attention(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return F.normalize(
        F.adaptive_avg_pool2d(feature.square().sum(1, keepdim=True), size).flatten(1), dim=1, eps=EPSILON
    )


@_in_fp32
def flow_loss(student_in: Tensor, student_out: Tensor, teacher_in: Tensor, teacher_out: Tensor) -> Tensor:
    """Mean squared error of two FSP matrices (N, c_in, c_out).

    Flow of solution procedure (Yim et al., CVPR 2017), eq. (1) and (2), with the mean over the matrix in place of
    its sum, so that weights don't depend on channels. Features (N, c, h, w) of one layer and of a later one; where
    their sizes differ the larger is pooled to the smaller by its maxima, as there.
    """
    return F.mse_loss(_flow(student_in, student_out), _flow(teacher_in, teacher_out))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """G[i, j] = sum over positions of first[i] second[j] / (h w)."""
    size = _smaller(first, second)
    one, other = (F.adaptive_max_pool2d(feature, size).flatten(2) for feature in (first, second))
    return one @ other.transpose(1, 2) / (size[0] * size[1])


@_in_fp32
def channelwise_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL of every channel's softmax over positions, averaged over channels and batch; features (N, c, h, w).

    Channel-wise distillation (Shu et al., arXiv 2011.13256), eq. (3) and (4).
    """
    theirs = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    ours = F.log_softmax(student.flatten(2) / temperature, dim=2)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean()


def real_or_not(scores: Tensor, real: bool) -> Tensor:
    """Mean binary cross-entropy of a discriminator's scores (logits, any shape) against "real" or "not real".

    Goodfellow et al. (arXiv 1406.2661), eq. (1); the student's side uses the non-saturating form (section 3).
    """
    return F.softplus(-scores.float() if real else scores.float()).mean()
