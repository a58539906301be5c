"""Checks whether a teacher knows a card's classes, and if not, finds out why.

The teacher is scored on a few labelled images. They are pre-processed as a run does it, and as other training programs
do it: with channels in BGR order, or normalised differently. Its outputs are also scored in another order. If one of
these fits much better, that is what is wrong.
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
from segskd.data.cache import Arrays, cached
from segskd.data.cards import IMAGENET_MEAN, IMAGENET_STD, Card
from segskd.data.dataset import Pair, hash_order
from segskd.errors import UserError
from segskd.evaluate.metrics import ConfusionMatrix, score
from segskd.evaluate.predictor import Predictor, predict_pairs
from segskd.models.build import digest

Array = npt.NDArray[Any]

MOST_IMAGES, FEWEST_IMAGES = 24, 8
MOST_PIXELS = MOST_IMAGES * 192 * 256
"""Pixels of all images together. Larger images are fewer, so that the check takes no longer."""
COMPARED_IMAGES = 6
"""The number of images on which other pre-processing is tried."""
BATCH = 4
NEAR_CHANCE = 0.05
"""A teacher whose skill (see `Diagnosis.skill`) is lower than this is taken to guess."""
EXPLAINED = 0.1
"""An explanation must lead to more skill than this."""
BETTER = (0.05, 0.2)
"""How much an explanation must raise the mIoU, absolutely and as a share of the mIoU without it."""
REORDERED = (0.05, 0.25)
"""The same for another order of outputs. It is larger, since the best of very many orders always fits a little
better."""
OWN = 0.01
"""How much better, in IoU, an output must fit another class than its own to be assigned to that class."""
NAMED = 3
"""The number of misplaced outputs that a message names."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input. `mean` and `std` are those of pixels from 0 to 1."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __str__(self) -> str:
        return f"{'BGR' if self.bgr else 'RGB'} with {self.name}"


class PreprocessingScores:
    """Scores of a network on a few images with some pre-processing.

    `counts` (C, C) are pixels, with the true classes in rows and the outputs in columns.
    """

    def __init__(self, preprocessing: Preprocessing, counts: Tensor) -> None:
        self.preprocessing = preprocessing
        self.counts = counts
        self.miou = _miou(counts)
        fit = _ious(counts) + OWN * torch.eye(len(counts), dtype=torch.float64)
        self.order = [int(output) for output in linear_sum_assignment(-fit.numpy())[1]]
        """The output that is assigned to each class so that all fit best; no output is assigned twice."""
        self.miou_in_order = _miou(counts[:, self.order])


@dataclass(frozen=True)
class Diagnosis:
    """The mIoU of a teacher on `images` images of `split`, pre-processed as a run does it.

    `constant` is the mIoU of always predicting one class, the best one. `frequency` is the mIoU of predicting classes
    at random by their shares of the pixels. All three are between 0 and 1.
    """

    miou: float
    constant: float
    frequency: float
    images: int
    split: str

    @property
    def chance(self) -> float:
        """The mIoU that is possible without looking at the images."""
        return max(self.constant, self.frequency)

    def skill(self, miou: float) -> float:
        """Where an mIoU lies between chance, which is 0, and perfection, which is 1."""
        return (miou - self.chance) / (1 - self.chance)

    def __str__(self) -> str:
        return (
            f"teacher on {self.images} {self.split} images: mIoU {self.miou:.2f}, chance {self.chance:.2f}; "
            "no other order of channels or outputs and no other normalisation fits better"
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
    """Scores a network on a few of the labelled images `train`, or of `val` if `train` has fewer than 8.

    The scores are cached in `folder` until the network's weights, the card, the size or one of these images changes.
    Raises UserError when the network is hardly better than guessing, or when another order of channels, another
    normalisation or another order of outputs fits much better. The message says which, and how to mend it.
    """
    split, pairs = ("training", train) if len(train) >= FEWEST_IMAGES else ("validation", val)
    pairs = _sample(pairs, size)

    plain = Preprocessing("the card's mean and std", tuple(card.mean), tuple(card.std))
    ways = [plain, *_other_preprocessing(plain)]

    def compute() -> Arrays:
        def counted(preprocessing: Preprocessing, some: Sequence[Pair]) -> Array:
            return _counts(model, card, some, size, device, preprocessing).numpy()

        compared = np.stack([counted(way, pairs[:COMPARED_IMAGES]) for way in ways])
        return {"compared": compared, "further": counted(plain, pairs[COMPARED_IMAGES:])}

    inputs = [digest(model), card.model_dump_json(), f"{size[0]}x{size[1]}", *map(str, ways)]
    files = [file for pair in pairs for file in (pair.image, pair.mask)]
    counts_of = cached(folder, "diagnosis", inputs, files, compute)
    as_is, *others = [
        PreprocessingScores(way, torch.tensor(c)) for way, c in zip(ways, counts_of["compared"], strict=True)
    ]
    counts = as_is.counts + torch.tensor(counts_of["further"])
    diagnosis = Diagnosis(score(counts, card, len(pairs)).miou, *chance(counts), len(pairs), split)
    problem = _explanation(diagnosis, as_is, others, card) or _chance_problem(diagnosis)
    if problem:
        raise UserError(f"the teacher {problem}; {named('trust_teacher')} skips this check", "trust_teacher")
    return diagnosis


def chance(counts: Tensor) -> tuple[float, float]:
    """`Diagnosis.constant` and `Diagnosis.frequency` from counts (C, C).

    If one class with share p is predicted everywhere, its IoU is p and that of all other present classes is 0. If
    classes are predicted at random by their shares, then for a class with share p the prediction and the truth agree on
    p² of all pixels, and 2p - p² of all pixels are in at least one of them.
    """
    shares = counts.sum(1).double() / counts.sum()
    shares = shares[shares > 0]
    return float(shares.max() / len(shares)), float((shares / (2 - shares)).mean())


class _BgrPredictor(Predictor):
    """Gives a network the channels of images in reversed order."""

    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images.flip(1))


def _sample(pairs: Sequence[Pair], size: Size) -> list[Pair]:
    count = max(FEWEST_IMAGES, min(MOST_IMAGES, MOST_PIXELS // (size[0] * size[1])))
    by_name = {pair.name: pair for pair in pairs}
    return [by_name[name] for name in hash_order(list(by_name), "diagnosis")[:count]]


def _counts(
    model: nn.Module,
    card: Card,
    pairs: Sequence[Pair],
    size: Size,
    device: torch.device | str,
    preprocessing: Preprocessing,
) -> Tensor:
    """Counts int64 (C, C) of a `PreprocessingScores`."""
    normalised = card.model_copy(update={"mean": preprocessing.mean, "std": preprocessing.std})
    predictor = (_BgrPredictor if preprocessing.bgr else Predictor)(model, normalised, size, device)
    matrix = ConfusionMatrix(card, predictor.device)
    for _, logits, masks in predict_pairs(predictor, pairs, BATCH):
        matrix.update(logits.argmax(1), masks)
    return matrix.counts


def _other_preprocessing(as_is: Preprocessing) -> list[Preprocessing]:
    """Other pre-processing than `as_is`: other normalisations, BGR, and both."""
    normalised = [way for way in _normalisations(len(as_is.mean)) if not _same_normalisation(way, as_is)]
    both = [as_is, *normalised] if len(as_is.mean) == 3 else []
    return [*normalised, *(replace(way, bgr=True) for way in both)]


def _normalisations(channels: int) -> list[Preprocessing]:
    """Normalisations that training programs use. ImageNet's is for three channels."""
    plain = (
        ("values from 0 to 1", 0.0, 1.0),
        ("values from -1 to 1", 0.5, 0.5),
        ("values from 0 to 255", 0.0, 1 / 255),
    )
    for_any = [Preprocessing(name, (mean,) * channels, (std,) * channels) for name, mean, std in plain]
    return (
        [*for_any, Preprocessing("ImageNet's mean and std", IMAGENET_MEAN, IMAGENET_STD)] if channels == 3 else for_any
    )


def _same_normalisation(one: Preprocessing, other: Preprocessing) -> bool:
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(math.isclose(a, b, rel_tol=0.05, abs_tol=0.001) for a, b in pairs)


def _explanation(
    diagnosis: Diagnosis, as_is: PreprocessingScores, others: Sequence[PreprocessingScores], card: Card
) -> str:
    """Says what fits much better than the run's own pre-processing and order of outputs, and how to mend it, or "".

    Another order of outputs is named only if it fits much better than every pre-processing alone. It may be named
    together with one.
    """
    best_shown = max((as_is, *others), key=lambda trial: trial.miou)
    ordered = max((as_is, *others), key=lambda trial: trial.miou_in_order)
    if (
        _much_better(ordered.miou_in_order, best_shown.miou, REORDERED)
        and diagnosis.skill(ordered.miou_in_order) > EXPLAINED
    ):
        best, miou, mends = ordered, ordered.miou_in_order, [_order_advice(ordered.order, card)]
    elif _much_better(best_shown.miou, as_is.miou, BETTER) and diagnosis.skill(best_shown.miou) > EXPLAINED:
        best, miou, mends = best_shown, best_shown.miou, []
    else:
        return ""
    fits = f"fits images in {best.preprocessing} better" if best is not as_is else "has its outputs in another order"
    if best is not as_is and mends:
        fits += " and has its outputs in another order"
    mends += _preprocessing_advice(best.preprocessing, as_is.preprocessing)
    return f"{fits}: mIoU {miou:.2f} in place of {as_is.miou:.2f}: {'; '.join(mends)}"


def _much_better(miou: float, other: float, by: tuple[float, float]) -> bool:
    return miou > other + max(by[0], by[1] * other)


def _order_advice(order: Sequence[int], card: Card) -> str:
    moved = [(output, name) for output, name in zip(order, card.class_names, strict=True)]
    wrong = [f"output {out} is '{name}'" for at, (out, name) in enumerate(moved) if out != at]
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    outputs = " ".join(map(str, order))
    return (
        f"{', '.join(wrong[:NAMED])}{more}, counted from 0: put the card's classes into the network's order, or make a "
        f"teacher whose outputs are in the card's by 'python -m segskd import TEACHER --outputs {outputs} --out DIR'"
    )


def _preprocessing_advice(preprocessing: Preprocessing, as_is: Preprocessing) -> list[str]:
    mends = []
    if preprocessing.bgr:
        mends.append("'python -m segskd import TEACHER --bgr --out DIR' makes a teacher of it that takes RGB")
    if (preprocessing.mean, preprocessing.std) != (as_is.mean, as_is.std):
        mean, std = ([round(value, 6) for value in values] for values in (preprocessing.mean, preprocessing.std))
        mends.append(f"write mean: {mean} and std: {std} into the card, or into a copy of it")
    return mends


def _chance_problem(diagnosis: Diagnosis) -> str:
    """Says that the teacher doesn't know the classes, or "" if it does."""
    if diagnosis.skill(diagnosis.miou) >= NEAR_CHANCE:
        return ""
    return (
        f"is hardly better than guessing on {diagnosis.images} {diagnosis.split} images: its mIoU is "
        f"{diagnosis.miou:.3f}; always predicting one class gives {diagnosis.constant:.3f}, and predicting by the "
        f"classes' shares {diagnosis.frequency:.3f}; "
        "no other order of channels or outputs and no other normalisation explains it: name a teacher that was trained "
        "on these classes"
    )


def _ious(counts: Tensor) -> Tensor:
    """IoU float64 (C, C) of each class with each output, 0 where neither has a pixel."""
    counts = counts.double()
    return counts / (counts.sum(1, keepdim=True) + counts.sum(0, keepdim=True) - counts).clamp(min=1)


def _miou(counts: Tensor) -> float:
    """The mean IoU over the classes that occur in the truth or in the outputs, 0 if there are none."""
    present = counts.sum(0) + counts.sum(1) > 0
    return float(_ious(counts).diagonal()[present].mean()) if present.any() else 0.0
