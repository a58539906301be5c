"""The teacher's diagnosis: whether a network knows a card's classes, and if not, why.

It is scored on a few labelled images as a run would show them to it, and as other trainings show them: channels in BGR
order, other normalisations, outputs in another order. What fits much better says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from segskd.config import Size, named
from segskd.data.cache import Arrays, kept
from segskd.data.cards import IMAGENET_MEAN, IMAGENET_STD, Card
from segskd.data.dataset import Pair, hash_order
from segskd.errors import UserError
from segskd.evaluate.metrics import ConfusionMatrix, score
from segskd.evaluate.predict import Predictor, predict_pairs
from segskd.models.build import digest

Array = npt.NDArray[Any]

MOST_IMAGES, FEWEST_IMAGES = 24, 8
MOST_PIXELS = MOST_IMAGES * 192 * 256
"""Of all images together, so that larger ones take no longer, down to the fewest images."""
COMPARED_IMAGES = 6
"""Images on which other ways of showing them are compared."""
BATCH = 4
NEAR_CHANCE = 0.05
"""Share of the way from guessing to perfection that tells nothing."""
EXPLAINED = 0.1
"""The same of an explanation that is worth telling."""
BETTER = (0.05, 0.2)
"""An explanation's mIoU exceeds that of images as they are by so much, and by such a share of it."""
REORDERED = (0.05, 0.25)
"""The same of outputs in another order, of which the best is sought among very many."""
OWN = 0.01
"""IoU by which an output must fit another class better than its own to stand for that one."""
NAMED = 3
"""Outputs of a wrong order that are named."""


@dataclass(frozen=True)
class Shown:
    """A way of showing images to a network: normalised after 0 … 255 became 0 … 1."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __str__(self) -> str:
        return f"{'BGR' if self.bgr else 'RGB'} with {self.name}"


class Answers:
    """A network's pixels of a few images by class; `counts` (C, C) has truth in rows and outputs in columns."""

    def __init__(self, shown: Shown, counts: Tensor) -> None:
        self.shown = shown
        self.counts = counts
        self.miou = _miou(counts)
        fit = _ious(counts) + OWN * torch.eye(len(counts), dtype=torch.float64)
        self.order = [int(output) for output in linear_sum_assignment(-fit.numpy())[1]]
        """For each class the output that fits it best, no output twice."""
        self.miou_in_order = _miou(counts[:, self.order])


@dataclass(frozen=True)
class Diagnosis:
    """How a teacher does on a few images, as a run shows them; all but their number between 0 and 1.

    `constant` and `frequency` are the mIoU of the best constant answer and of answers drawn by the classes' shares.
    """

    miou: float
    constant: float
    frequency: float
    images: int
    split: str

    @property
    def chance(self) -> float:
        """The mIoU that needs no look at the images."""
        return max(self.constant, self.frequency)

    def skill(self, miou: float) -> float:
        """How far an mIoU lies between chance, 0, and perfection, 1."""
        return (miou - self.chance) / (1 - self.chance)

    def __str__(self) -> str:
        return (
            f"teacher on {self.images} {self.split} images: mIoU {self.miou:.2f}, chance {self.chance:.2f}; "
            "its channels, the card's normalisation and the order of its outputs fit best"
        )


def diagnose(
    model: nn.Module,
    card: Card,
    train: Sequence[Pair],
    val: Sequence[Pair],
    size: Size,
    device: torch.device | str,
    folder: Path,
) -> Diagnosis:
    """Scores a network on a few of the labelled images `train`, or of `val` where these are fewer than 8.

    What it answers is kept in `folder` until its weights, the card, the size or one of these images changes.
    Raises UserError when it does hardly better than guessing, or when other channels, another normalisation or another
    order of its outputs fit much better; the message says which, and how to mend it.
    """
    split, pairs = ("training", train) if len(train) >= FEWEST_IMAGES else ("validation", val)
    pairs = _sample(pairs, size)

    plain = Shown("the card's mean and std", tuple(card.mean), tuple(card.std))
    ways = [plain, *_otherwise(plain)]

    def ask() -> Arrays:
        def counted(shown: Shown, some: Sequence[Pair]) -> Array:
            return _counts(model, card, some, size, device, shown).numpy()

        compared = np.stack([counted(shown, pairs[:COMPARED_IMAGES]) for shown in ways])
        return {"compared": compared, "further": counted(plain, pairs[COMPARED_IMAGES:])}

    about = [digest(model), card.model_dump_json(), f"{size[0]}x{size[1]}", *map(str, ways)]
    files = [file for pair in pairs for file in (pair.image, pair.mask)]
    told = kept(folder, "diagnosis", about, files, ask)
    as_is, *others = [Answers(way, torch.tensor(c)) for way, c in zip(ways, told["compared"], strict=True)]
    counts = as_is.counts + torch.tensor(told["further"])
    found = Diagnosis(score(counts, card, len(pairs)).miou, *chance(counts), len(pairs), split)
    problem = _explained(found, as_is, others, card) or _guessing(found)
    if problem:
        raise UserError(f"the teacher {problem}; {named('trust_teacher')} skips this check", "trust_teacher")
    return found


def chance(counts: Tensor) -> tuple[float, float]:
    """The mIoU of the best constant answer, and of answers drawn by the classes' shares, from counts (C, C).

    A constant answer has IoU p at its class of share p and 0 at the others that are there. Drawn answers agree with the
    truth on p² of all pixels, and cover 2p - p² together with it.
    """
    shares = counts.sum(1).double() / counts.sum()
    shares = shares[shares > 0]
    return float(shares.max() / len(shares)), float((shares / (2 - shares)).mean())


class _Reversed(Predictor):
    """Shows images with their channels in the other order."""

    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images.flip(1))


def _sample(pairs: Sequence[Pair], size: Size) -> list[Pair]:
    count = max(FEWEST_IMAGES, min(MOST_IMAGES, MOST_PIXELS // (size[0] * size[1])))
    by_name = {pair.name: pair for pair in pairs}
    return [by_name[name] for name in hash_order(list(by_name), "diagnosis")[:count]]


def _counts(
    model: nn.Module, card: Card, pairs: Sequence[Pair], size: Size, device: torch.device | str, shown: Shown
) -> Tensor:
    """(C, C) int64, see Answers."""
    normalised = card.model_copy(update={"mean": shown.mean, "std": shown.std})
    predictor = (_Reversed if shown.bgr else Predictor)(model, normalised, size, device)
    matrix = ConfusionMatrix(card, predictor.device)
    for _, logits, masks in predict_pairs(predictor, pairs, BATCH):
        matrix.update(logits.argmax(1), masks)
    return matrix.counts


def _otherwise(as_is: Shown) -> list[Shown]:
    """Other ways of showing images: normalised otherwise, BGR, and both."""
    normalised = [shown for shown in _normalisations(len(as_is.mean)) if not _alike(shown, as_is)]
    both = [as_is, *normalised] if len(as_is.mean) == 3 else []
    return [*normalised, *(replace(shown, bgr=True) for shown in both)]


def _normalisations(channels: int) -> list[Shown]:
    """What trainings use; ImageNet's has three channels."""
    plain = (
        ("values from 0 to 1", 0.0, 1.0),
        ("values from -1 to 1", 0.5, 0.5),
        ("values from 0 to 255", 0.0, 1 / 255),
    )
    found = [Shown(name, (mean,) * channels, (std,) * channels) for name, mean, std in plain]
    return [*found, Shown("ImageNet's mean and std", IMAGENET_MEAN, IMAGENET_STD)] if channels == 3 else found


def _alike(one: Shown, other: Shown) -> bool:
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(math.isclose(a, b, rel_tol=0.05, abs_tol=0.001) for a, b in pairs)


def _explained(found: Diagnosis, as_is: Answers, others: Sequence[Answers], card: Card) -> str:
    """What fits much better than images and outputs as they are, and how to mend it; "" for nothing.

    Another order of the outputs explains what no other way of showing the images does; both together may be needed.
    """
    shown = max((as_is, *others), key=lambda answers: answers.miou)
    ordered = max((as_is, *others), key=lambda answers: answers.miou_in_order)
    if _much_better(ordered.miou_in_order, shown.miou, REORDERED) and found.skill(ordered.miou_in_order) > EXPLAINED:
        best, miou, mends = ordered, ordered.miou_in_order, [_order_mended(ordered.order, card)]
    elif _much_better(shown.miou, as_is.miou, BETTER) and found.skill(shown.miou) > EXPLAINED:
        best, miou, mends = shown, shown.miou, []
    else:
        return ""
    fits = f"fits images in {best.shown} better" if best is not as_is else "has its outputs in another order"
    if best is not as_is and mends:
        fits += " and has its outputs in another order"
    mends += _shown_mended(best.shown, as_is.shown)
    return f"{fits}: mIoU {miou:.2f} so, {as_is.miou:.2f} as it is: {'; '.join(mends)}"


def _much_better(miou: float, other: float, by: tuple[float, float]) -> bool:
    return miou > other + max(by[0], by[1] * other)


def _order_mended(order: Sequence[int], card: Card) -> str:
    moved = [(output, name) for output, name in zip(order, card.class_names, strict=True)]
    wrong = [f"output {out} is '{name}'" for at, (out, name) in enumerate(moved) if out != at]
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    outputs = " ".join(map(str, order))
    return (
        f"{', '.join(wrong[:NAMED])}{more}, counted from 0: put the card's classes into the network's order, or make a "
        f"teacher whose outputs are in the card's by 'python -m segskd import TEACHER --outputs {outputs} --out DIR'"
    )


def _shown_mended(shown: Shown, as_is: Shown) -> list[str]:
    mends = []
    if shown.bgr:
        mends.append("'python -m segskd import TEACHER --bgr --out DIR' makes a teacher of it that takes RGB")
    if (shown.mean, shown.std) != (as_is.mean, as_is.std):
        mean, std = ([round(value, 6) for value in values] for values in (shown.mean, shown.std))
        mends.append(f"write mean: {mean} and std: {std} into the card, or into a copy of it")
    return mends


def _guessing(found: Diagnosis) -> str:
    """That it knows nothing of the classes; "" where it does."""
    if found.skill(found.miou) >= NEAR_CHANCE:
        return ""
    return (
        f"is hardly better than guessing on {found.images} {found.split} images: mIoU {found.miou:.3f}, where the best "
        f"constant answer has {found.constant:.3f} and answers drawn by the classes' shares {found.frequency:.3f}, and "
        "no other channels, normalisation or order of its outputs explains it: name a teacher that was trained on "
        "these classes"
    )


def _ious(counts: Tensor) -> Tensor:
    """IoU of each class with each output, 0 where neither has a pixel: (C, C), float64."""
    counts = counts.double()
    return counts / (counts.sum(1, keepdim=True) + counts.sum(0, keepdim=True) - counts).clamp(min=1)


def _miou(counts: Tensor) -> float:
    """The mean over classes that truth or answers have, 0 where there are none."""
    present = counts.sum(0) + counts.sum(1) > 0
    return float(_ious(counts).diagonal()[present].mean()) if present.any() else 0.0
